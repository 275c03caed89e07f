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
//! # What it finds
//!
//! [`PATH_THEFT`], [`CLOCK_LOCKOUT`] and [`CHANNEL_LOSS`] name what the enumeration finds in the code as it is, each
//! with a shortest sequence. A fix sets its constant to `None`: then the same enumerations must find nothing. To show
//! that they would, remove the fix and run `cargo test -p control --test it -- enumerate::`: a test fails and prints
//! the sequence in words.
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

use invariant::Invariant;
use run::{Bound, Scenario};
use scenario::*;
use step::{Sequence, describe};

use crate::sim::ms;

/// After so long on an honest network the ends of a link have recovered. A node owes a keepalive for at most 0.5 s, is
/// silent for 1.04 s before its initiator starts a handshake, which may need two tries of a second each; half a second
/// is left for what is under way.
const RECOVERY: Duration = ms(500 + 1040 + 2 * 1000 + 500);

/// Path theft (SPEC 8.11) in three messages: the attacker's copy of message 1 arrives first, it passes message 2 on to
/// the initiator, and its copy of the first cell arrives first. None once a link defends its address.
const PATH_THEFT: Option<(Invariant, &str)> = None;

/// A hop whose clock ran an hour ahead restarts with the right one: for an hour its timestamps are stale. None once
/// stale timestamps are answered.
const CLOCK_LOCKOUT: Option<(Invariant, &str)> = None;

/// A message 1 of an entry arrives after the next one, so the responder has the keys of the earlier one, and the entry
/// those of the later one. The token of the later one then names nothing: the entry gets a new link, without its
/// channels. None once the token of an overwritten `next` still names its link.
const CHANNEL_LOSS: Option<(Invariant, &str)> = None;

/// Enumerates a scenario. It must find what is expected and nothing else.
fn expect(scenario: &Scenario, bound: Bound, expected: impl IntoIterator<Item = (Invariant, &'static str)>) {
    let start = Instant::now();
    let report = scenario.enumerate(bound, 1);
    report.print(scenario.name, bound, start.elapsed());
    let found = report.found.iter().map(|(which, (sequence, _))| (*which, sequence.to_string()));
    let expected = expected.into_iter().map(|(which, sequence)| (which, sequence.to_owned()));
    assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{}: see above", scenario.name);
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
    expect(&START_IK, SHORTER, None);
    expect(&START_NK, SHORTER, None);
}

#[test]
fn renewal_between_hops_survives_all_short_sequences() {
    expect(&RENEWAL_IK, SHORT, PATH_THEFT);
}

#[test]
fn renewal_of_an_entry_survives_all_short_sequences() {
    expect(&RENEWAL_NK, SHORT, PATH_THEFT.into_iter().chain(CHANNEL_LOSS));
}

#[test]
fn theft_fails_in_longer_sequences() {
    expect(&THEFT, LONGER, PATH_THEFT);
    expect(&THEFT_BY_DATA, SHORT, PATH_THEFT);
}

#[test]
fn restart_between_hops_survives_all_short_sequences() {
    expect(&RESTART_IK, SHORTER, None);
}

#[test]
fn restart_of_an_entry_survives_all_short_sequences() {
    expect(&RESTART_NK, SHORTER, None);
}

#[test]
fn roaming_entry_survives_all_short_sequences() {
    // A loss causes the handshake, then the same happens.
    expect(&ROAM, SHORTER, CHANNEL_LOSS.map(|(which, _)| (which, "xh")));
}

#[test]
fn corrected_clock_survives_all_short_sequences() {
    expect(&CLOCK, SHORTER, CLOCK_LOCKOUT);
    expect(&CLOCK_BEHIND, SINGLE, CLOCK_LOCKOUT);
}

#[test]
fn epoch_change_survives_all_short_sequences() {
    expect(&BUNDLE, SHORTER, None);
    expect(&PUBLICATION, SINGLE, None);
    expect(&BUNDLE_OF_3, SINGLE, None);
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
