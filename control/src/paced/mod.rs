//! Paced classes: what all hops and users of a chain compute from its terms and from the time (SPEC 9).
//!
//! ```text
//! terms      the parameters of a class, and what a chain refuses
//! timetable  rounds, releases, batches and phases
//! slots      how many control cells a round has, and which place each of them takes
//! clock      a clock that never steps, and the offset of a neighbour's
//! ```

pub mod clock;
pub mod slots;
pub mod terms;
pub mod timetable;
