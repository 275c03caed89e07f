//! Matches the users of a mix network to the flows that leave it, from times and lengths of packets alone.
//!
//! This crate imports nothing of eddy: no keys, no cells, no sockets. Of paced classes it knows what anybody can read,
//! the slots of a link in each round (SPEC 9.6, 9.7). It takes a [`Record`], which anybody on the wires could have
//! made, and a set of [`Attacker`]s, each from a paper. An attacker scores every pair of a user and a flow. The truth
//! stays outside until the scores are judged ([`Truth`]), so no attacker can read it by mistake.

#![forbid(unsafe_code)]
// One attacker alone needs a part of what all of them share.
#![cfg_attr(not(feature = "all"), allow(dead_code))]

#[cfg(feature = "all")]
pub mod active;
#[cfg(feature = "all")]
mod assignment;
mod attacker;
pub mod attackers;
#[cfg(feature = "all")]
mod clock;
mod delay;
mod directions;
#[cfg(feature = "all")]
pub mod disclosure;
#[cfg(feature = "all")]
pub mod export;
pub mod figures;
pub mod independence;
mod intensity;
#[cfg(feature = "all")]
mod links;
#[cfg(feature = "all")]
mod math;
mod paced;
mod record;
pub mod setup_order;
#[cfg(feature = "all")]
pub mod simulate;
#[cfg(feature = "all")]
mod slots;
#[cfg(all(test, feature = "all"))]
mod tests;

pub use attacker::{Attacker, Example, Scores};
pub use paced::{Bodies, Body, Contents, ExitRound, Meeting, PacedShape};
pub use record::{Passage, Place, Record, Seen, Trace, Truth};
