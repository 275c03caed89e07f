//! What several topics share.

pub mod command;
pub mod flows;
pub mod memchain;
pub mod nodes;
pub mod process;
pub mod tap;
