//! Cells of paced classes as bytes: header, bodies, meetings (SPEC 9.2, 9.3, 9.13).
//!
//! The classes differ from free ones in the header of data cells, which has a link tag, and in the layers: a hop
//! encrypts a body of constant length with a wide-block cipher, whatever the body is. Times, places and batches belong
//! to the callers. Control cells, setups, acks and inner frames are those of free classes, with the differences that
//! [`crate::link`], [`crate::setup`] and [`crate::frames`] take as parameters.

mod body;
mod cell;
mod meeting;

pub use body::{EntryKeys, ExitKeys, HopKeys, Inner, Place};
pub use cell::{PacedClass, PacedHeader, SLOT_ROUNDS, WrongLength};
pub use meeting::{BadSecret, Call, MEETING_OVERHEAD, Meeting, MeetingSecret, MeetingToken, SALT_LEN};
