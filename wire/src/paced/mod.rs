//! Paced classes: cells as bytes, and what all hops and users of a chain compute from its terms and the time (SPEC 9).
//!
//! ```text
//! cell, body, meeting   headers, layers, inner bodies
//! terms                 the parameters of a class, and what a chain refuses
//! timetable, schedule   rounds, batches and phases; when a hop releases
//! slots                 the places of control cells
//! report                what neighbours report to each other about places and company
//! clock                 a clock that never steps, and the offset of a neighbour's
//! ```
//!
//! The classes differ from free ones in the header of data cells, which has a link tag, and in the layers: a hop
//! encrypts a body of constant length with a wide-block cipher, whatever the body is. Control cells, setups, acks and
//! inner frames are those of free classes, with the differences that [`crate::link`], [`crate::setup`] and
//! [`crate::frames`] take as parameters.

mod body;
mod cell;
pub mod clock;
mod meeting;
mod report;
mod schedule;
mod slots;
pub mod terms;
mod timetable;

/// Rounds beyond the last released one from which a hop accepts cells (SPEC 9.4, step 5).
pub const AHEAD_MAX: u64 = 8;

/// Rounds behind its own for which an entry takes cells, and after a batch those of its channel (SPEC 9.4, step 5).
pub const BEHIND_MAX: u64 = 256;

/// Rounds between two reports (SPEC 9.15.2).
pub const REPORT_EVERY: u64 = 100;
/// A clock cell is due in rounds with this divisor (SPEC 9.6.6).
pub const CLOCK_EVERY: u64 = 16;
/// Mix 1 announces the company in rounds with this divisor (SPEC 9.15.1).
pub const COMPANY_EVERY: u64 = 128;

pub use body::{EntryKeys, ExitKeys, HopKeys, Inner, RoundSub};
pub use cell::{PacedClass, PacedHeader, SLOT_ROUNDS};
pub use meeting::{BadSecret, Call, MEETING_OVERHEAD, Meeting, MeetingSecret, MeetingToken, SALT_LEN};
pub use report::{COMPANY_LEN, Company, REPORT_LEN, Report};
pub use schedule::Schedule;
pub use slots::{ACK_COPIES, ControlSlots, SlotCount, Slots, ack_slots, control_window, seats_on, setup_slots};
pub use terms::PacedTerms;
pub use timetable::{Phase, Timetable};
