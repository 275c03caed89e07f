//! What several topics share: whole chains in memory.

pub mod memchain;
