//! The attackers, one file each.

#[cfg(feature = "all")]
pub(crate) mod all;
mod likelihood;

#[cfg(feature = "all")]
pub use all::passive;
pub(crate) use likelihood::Likelihood;

use crate::{attacker::Attacker, directions::Way};

/// The attacker that asks how likely the cells of access links and the datagrams of flows are, given each other and the
/// delay. It looks forward only.
pub fn likelihood() -> impl Attacker {
    Likelihood { way: Way::Forward, two_sided: true }
}
