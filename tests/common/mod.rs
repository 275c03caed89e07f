//! What several topics share.

pub mod command;
pub mod memchain;
pub mod process;
