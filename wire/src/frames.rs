//! f
/// x
pub const DGRAM_OVERHEAD: usize = 5;
