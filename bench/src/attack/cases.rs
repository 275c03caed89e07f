//! The cases that are compared, and their records.

use std::fmt;
use std::str::FromStr;

use attack::simulate::{self, Ideal, Simulation};
use attack::{Record, Truth};
use dataplane::stage::pool::Mixing;

use super::profile::Profile;
#[cfg(feature = "rivals")]
use super::rivals::Defence;
use crate::load::profile::Application;

/// A chain, or the lack of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Case {
    /// Mixes that forward each cell at once.
    Off,
    /// Mixes as `--mixing` says.
    Default,
    /// A paced class. Users meet in pairs.
    Paced,
    /// A paced class. Each user sends to a destination behind the exit.
    PacedOutside,
    /// As `Paced` and `PacedOutside`, in memory under a virtual clock.
    PacedVirtual,
    PacedVirtualOutside,
    /// A synthetic record whose flows are independent of its users.
    Ideal,
    /// A tunnel to one relay, with padding of others.
    #[cfg(feature = "rivals")]
    Rival(Defence),
}

const ALL: &[(&str, Case)] = &[
    ("off", Case::Off),
    ("default", Case::Default),
    ("paced", Case::Paced),
    ("paced-outside", Case::PacedOutside),
    ("paced-virtual", Case::PacedVirtual),
    ("paced-virtual-outside", Case::PacedVirtualOutside),
    ("ideal", Case::Ideal),
    #[cfg(feature = "rivals")]
    ("rival-none", Case::Rival(Defence::None)),
    #[cfg(feature = "rivals")]
    ("rival-tamaraw", Case::Rival(Defence::Tamaraw)),
    #[cfg(feature = "rivals")]
    ("rival-front", Case::Rival(Defence::Front)),
];

impl Case {
    pub(super) fn is_virtual(self) -> bool {
        matches!(self, Case::PacedVirtual | Case::PacedVirtualOutside)
    }

    pub(super) fn is_paced(self) -> bool {
        self.is_virtual() || matches!(self, Case::Paced | Case::PacedOutside)
    }

    /// Users meet in pairs.
    pub(super) fn has_meetings(self) -> bool {
        matches!(self, Case::Paced | Case::PacedVirtual)
    }
}

/// A class without mixing, for chains in which it is not measured.
pub(super) const NO_MIXING: Mixing = Mixing::Threshold { n: 1, n_min: 1 };

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((_, case)) = ALL.iter().find(|(name, _)| *name == text) {
            return Ok(*case);
        }
        if cfg!(not(feature = "rivals")) && text.starts_with("rival-") {
            return Err(format!(
                "case {text:?} needs padding machines that this build does not have: build it with \
                 `cargo build -p eddy-bench --features rivals`"
            ));
        }
        let names = ALL.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        Err(format!("unknown case {text:?}: expected one of {names}"))
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = ALL.iter().find(|(_, case)| case == self).map_or("", |(name, _)| *name);
        f.pad(name)
    }
}

/// The record of a case and seed.
pub(super) struct Attacked {
    pub(super) case: String,
    pub(super) seed: u64,
    /// What its users send; `None` if the record does not say.
    pub(super) profile: Option<String>,
    /// Arguments of `eddy-bench` that made it; `None` if the record does not say.
    pub(super) command: Option<String>,
    pub(super) record: Record,
    pub(super) truth: Truth,
    /// Mean time that a datagram waited at the end of its tunnel before it was sent; `None` if it is not known.
    pub(super) wait_ms: Option<f64>,
}

/// A synthetic record of constant links: what flows show has nothing to do with them.
pub(super) fn ideal(users: usize, seconds: f64, seed: u64, profile: &Profile) -> (Record, Truth) {
    // The nearest application of the simulation: the record is independent of the users whatever it is.
    let profile = match profile {
        Profile::Application(Application::Video | Application::Bulk) => simulate::Profile::Video,
        Profile::Constant => simulate::Profile::Constant,
        Profile::Poisson => simulate::Profile::Poisson { per_second: 50.0 },
        Profile::Application(Application::Voip | Application::Opus | Application::Game)
        | Profile::Web
        | Profile::Trace(_) => simulate::Profile::Voice,
    };
    let chain = simulate::Chain::Ideal(Ideal::default());
    Simulation { profile, chain, ..Simulation::new(users, seconds, seed) }.run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_known_by_name() {
        for (name, case) in ALL {
            assert_eq!(name.parse(), Ok(*case));
            assert_eq!(case.to_string(), *name);
        }
        let error = "of".parse::<Case>().unwrap_err();
        assert!(error.contains("expected one of off, default, paced"), "{error}");
    }

    #[cfg(not(feature = "rivals"))]
    #[test]
    fn rival_cases_say_how_to_build_them() {
        for name in ["rival-none", "rival-tamaraw", "rival-front"] {
            let error = name.parse::<Case>().unwrap_err();
            assert!(error.contains("cargo build -p eddy-bench --features rivals"), "{error}");
        }
    }
}
