//! What several topics share: whole chains in memory, and the command.

pub mod command;
pub mod memchain;
