//! What entry and exit share.

pub mod packer;
