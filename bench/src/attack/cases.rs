//! The cases that are compared, and their records.

use std::fmt;
use std::str::FromStr;

use attack::simulate::{self, Ideal, Simulation};
use attack::{Record, Truth};
use dataplane::stage::pool::Mixing;

use super::profile::Profile;
use crate::load::profile::Application;

/// A chain, or the lack of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Case {
    /// Mixes that forward each cell at once.
    Off,
    /// Mixes as `--mixing` says.
    Default,
    /// A synthetic record whose flows are independent of its users.
    Ideal,
}

const ALL: [(&str, Case); 3] = [("off", Case::Off), ("default", Case::Default), ("ideal", Case::Ideal)];

impl Case {
    /// The mixing of its chain; `None` if it is synthetic.
    pub(super) fn mixing(self, default: Mixing) -> Option<Mixing> {
        match self {
            Case::Off => Some(Mixing::Threshold { n: 1, n_min: 1 }),
            Case::Default => Some(default),
            Case::Ideal => None,
        }
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = ALL.iter().find(|(name, _)| *name == text).map(|(_, case)| *case);
        known.ok_or_else(|| format!("unknown case {text:?}: expected off, default or ideal"))
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
}

/// A synthetic record of constant links: what flows show has nothing to do with them.
pub(super) fn ideal(users: usize, seconds: f64, seed: u64, profile: &Profile) -> (Record, Truth) {
    // The nearest application of the simulation: the record is independent of the users whatever it is.
    let profile = match profile {
        Profile::Application(Application::Video | Application::Bulk) => simulate::Profile::Video,
        Profile::Constant => simulate::Profile::Constant,
        Profile::Poisson => simulate::Profile::Poisson { per_second: 50.0 },
        Profile::Application(Application::Voip | Application::Game) | Profile::Web | Profile::Trace(_) => {
            simulate::Profile::Voice
        }
    };
    let chain = simulate::Chain::Ideal(Ideal::default());
    Simulation { profile, chain, ..Simulation::new(users, seconds, seed) }.run()
}
