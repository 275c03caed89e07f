//! Matches the users of a mix network to the flows that leave it, from times and lengths of packets alone.
//!
//! This crate knows nothing of eddy: no keys, no cells, no sockets. It takes a [`Record`], which anybody on the wires
//! could have made, and a set of [`Attacker`]s, each from a paper. An attacker scores every pair of a user and a flow.
//! The truth stays outside until the scores are judged ([`Truth`]), so no attacker can read it by mistake.

#![forbid(unsafe_code)]

pub mod active;
mod assignment;
mod attacker;
pub mod attackers;
mod clock;
mod delay;
mod directions;
pub mod disclosure;
pub mod export;
pub mod figures;
pub mod independence;
mod intensity;
mod links;
mod math;
mod paced;
mod record;
pub mod setup_order;
pub mod simulate;
mod slots;
#[cfg(test)]
mod tests;

pub use attacker::{Attacker, Example, Scores};
pub use paced::{Bodies, Body, Contents, ExitRound, Meeting, PacedShape};
pub use record::{Passage, Place, Record, Seen, Trace, Truth};
