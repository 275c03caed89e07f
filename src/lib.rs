//! eddy
pub mod join;
