//! What several topics share.

pub mod attack;
pub mod command;
pub mod flows;
pub mod limit;
pub mod memchain;
pub mod nameserver;
pub mod network;
pub mod nodes;
pub mod pacedchain;
pub mod process;
mod skipped;
pub mod tap;
pub mod traffic;

pub(crate) use skipped::skipped;
