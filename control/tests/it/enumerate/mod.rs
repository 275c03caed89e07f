//! Enumerates what a network, an attacker and restarts can do to the messages of two nodes, and checks after every
//! event what must always hold (`invariant.rs`).
//!
//! The nodes are real [`control::Control`]s in the simulator, with fixed seeds. A *message* is what one node sends to
//! one address at once: both halves of a message 1, a message 2, or cells. Each message passes, or something else
//! happens to it (`step.rs`): it is lost, late or copied, the attacker overtakes it from an address of its own or sends
//! a copy later, a node restarts. A sequence says what happens to the first messages of a scenario; behind its end the
//! network is honest, and the ends must recover within [`RECOVERY`]. All sequences up to a [`Bound`] run, each one from
//! the start, those with the fewest deviations first, so that the sequence that is reported is a shortest one.
//!
//! The attacker sends on what it receives unless a sequence says otherwise: keeping it is a loss.
//!
//! The enumeration finds nothing. It found path theft, clock lock-out and channel loss before their fixes (BENCHMARKS,
//! Enumeration).
//!
//! # Longer runs
//!
//! `control/tests/enumerate.sh [MESSAGES [DEVIATIONS]]` enumerates more, and
//! `control/tests/enumerate.sh replay SCENARIO SEQUENCE` runs one sequence.

mod invariant;
mod run;
mod scenario;
mod step;

use std::time::{Duration, Instant};

use run::{Bound, Scenario};
use scenario::*;
use step::{Sequence, describe};

use crate::sim::ms;

/// After so long on an honest network the ends of a link have recovered. A node owes a keepalive for at most 0.5 s, is
/// silent for 1.04 s before its initiator starts a handshake, which may need two tries of a second each; half a second
/// is left for what is under way.
const RECOVERY: Duration = ms(500 + 1040 + 2 * 1000 + 500);

/// Enumerates a scenario. It must find nothing.
fn expect_nothing(scenario: &Scenario, bound: Bound) {
    let start = Instant::now();
    let report = scenario.enumerate(bound, 1);
    report.print(scenario.name, bound, start.elapsed());
    let found: Vec<_> = report.found.iter().map(|(which, (sequence, _))| (*which, sequence.to_string())).collect();
    assert_eq!(found, [], "{}: see above", scenario.name);
}

/// About 400 sequences of each scenario.
const SHORT: Bound = Bound { messages: 5, deviations: 2 };
/// The same where more can happen to a message.
const SHORTER: Bound = Bound { messages: 4, deviations: 2 };
/// One deviation, in more messages.
const SINGLE: Bound = Bound { messages: 12, deviations: 1 };
/// The same where little can happen.
const LONGER: Bound = Bound { messages: 6, deviations: 3 };

#[test]
fn start_survives_all_short_sequences() {
    expect_nothing(&START_IK, SHORTER);
    expect_nothing(&START_NK, SHORTER);
}

#[test]
fn renewal_between_hops_survives_all_short_sequences() {
    expect_nothing(&RENEWAL_IK, SHORT);
}

#[test]
fn renewal_of_an_entry_survives_all_short_sequences() {
    expect_nothing(&RENEWAL_NK, SHORT);
}

#[test]
fn theft_fails_in_longer_sequences() {
    expect_nothing(&THEFT, LONGER);
    expect_nothing(&THEFT_BY_DATA, SHORT);
}

#[test]
fn restart_between_hops_survives_all_short_sequences() {
    expect_nothing(&RESTART_IK, SHORTER);
}

#[test]
fn restart_of_an_entry_survives_all_short_sequences() {
    expect_nothing(&RESTART_NK, SHORTER);
}

#[test]
fn roaming_entry_survives_all_short_sequences() {
    expect_nothing(&ROAM, SHORTER);
}

#[test]
fn corrected_clock_survives_all_short_sequences() {
    expect_nothing(&CLOCK, SHORTER);
    expect_nothing(&CLOCK_BEHIND, SINGLE);
}

#[test]
fn epoch_change_survives_all_short_sequences() {
    expect_nothing(&BUNDLE, SHORTER);
    expect_nothing(&PUBLICATION, SINGLE);
    expect_nothing(&BUNDLE_OF_3, SINGLE);
}

const ALL: [Scenario; 14] = [
    START_IK,
    START_NK,
    RENEWAL_IK,
    RENEWAL_NK,
    THEFT,
    THEFT_BY_DATA,
    RESTART_IK,
    RESTART_NK,
    ROAM,
    CLOCK,
    CLOCK_BEHIND,
    BUNDLE,
    PUBLICATION,
    BUNDLE_OF_3,
];

/// For control/tests/enumerate.sh.
#[test]
#[ignore = "takes as long as its bound allows"]
fn all_sequences_up_to_a_given_bound() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |value| value.parse().expect("a number"));
    let bound =
        Bound { messages: number("EDDY_ENUMERATE_MESSAGES", 8), deviations: number("EDDY_ENUMERATE_DEVIATIONS", 3) };
    let only = std::env::var("EDDY_ENUMERATE_SCENARIO").ok();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for scenario in ALL.iter().filter(|scenario| only.as_ref().is_none_or(|only| only == scenario.name)) {
        let start = Instant::now();
        scenario.enumerate(bound, threads).print(scenario.name, bound, start.elapsed());
    }
}

/// For control/tests/enumerate.sh.
#[test]
#[ignore = "needs a scenario and a sequence"]
fn one_given_sequence() {
    let given = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("set {name}"));
    let sequence: Sequence = given("EDDY_ENUMERATE_SEQUENCE").parse().unwrap();
    let name = given("EDDY_ENUMERATE_SCENARIO");
    let scenario = ALL.iter().find(|scenario| scenario.name == name).expect("a scenario of this name");
    let (seen, outcome) = scenario.run(&sequence, sequence.0.len());
    println!("{}{outcome:?}", describe(&sequence, &seen));
}
