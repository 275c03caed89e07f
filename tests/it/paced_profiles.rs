//! Paced classes with other terms, in memory: the profiles, three copies, a longer gap, a longer period, and many
//! batches in a row.

use std::net::SocketAddr;
use std::time::Duration;

use control::paced::EntryStatus;
use dataplane::Nanos;
use dataplane::paced::entry::PREPARE;
use eddy_node::ceremony::profile::ClassChoice;
use eddy_node::figures::Figures;
use eddy_virtual::Plan;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::Class;
use wire::ids::Side;
use wire::paced::{PacedClass, PacedTerms};
use wire::setup::Suite;

use crate::common::pacedchain::{Chain, HOPS, LATE, SECRET, client, destination, link_address, quantiles, terms};

/// Delays to a destination, back from it, and both ways of a meeting: of entry 103, and of 101 and 102.
fn all_delays(chain: &Chain) -> [Vec<Nanos>; 3] {
    let inside = [(101, 102), (102, 101)].map(|(from, to)| chain.delays(from, client(to)));
    [chain.delays(103, destination()), chain.delays_of_answers(103), inside.concat()]
}

/// With repeat the last round of a batch takes no new frames (SPEC 9.11.7): what comes then waits for the next one.
fn last_round_ms(terms: &PacedTerms) -> f64 {
    if terms.repeat { f64::from(terms.period_ms) } else { 0.0 }
}

/// Runs a class of these terms for two batches: every datagram comes, all links are constant. Returns half, 99.9 % and
/// all of the delays to a destination, which are no longer than the figures of the class say, as are the others.
fn runs(terms: &PacedTerms) -> [f64; 3] {
    let of_chain = Chain::with_meetings(terms, 3, &[(101, SECRET), (102, SECRET)]);
    let mut chain = of_chain.start();
    let first = chain.batch();
    chain.talk(&[101, 102, 103], 2 * chain.batch_time());
    chain.run(4 * LATE);
    chain.assert_all_constant(&[101, 102, 103], chain.times.first(first)..chain.times.first(first + 2));
    chain.assert_closed();
    chain.assert_sealed_once();
    let delays = all_delays(&chain).map(quantiles);
    let said = Figures::of(terms, Suite::Hybrid, HOPS).delay_ms;
    let said =
        [said.forward, said.backward, said.meeting].map(|ms| ms as f64 + PREPARE as f64 / 1e6 + last_round_ms(terms));
    println!("{}: out, back, inside: p50, p99.9, most {delays:.1?}, at most {said:?} ms", terms.name);
    assert!(delays.iter().zip(said).all(|([.., most], said)| *most <= said), "{delays:?} of {said:?}");
    delays[0]
}

#[test]
fn more_copies_and_longer_gaps_lose_nothing_and_look_alike() {
    let of = |name: &str, copies, gap| PacedTerms { name: name.to_owned(), copies, gap, seats: 6, ..terms() };
    let [p50, p999, _] = runs(&of("copies-3", 3, 1));
    assert!(p50 <= 45.0 && p999 <= 55.0, "three copies: p50 {p50}, p99.9 {p999}");
    runs(&of("gap-2", 2, 2));
    runs(&of("copies-3-gap-2", 3, 2));
}

#[test]
fn profiles_lose_nothing_and_add_what_they_say() {
    for profile in ["voice", "voice-lite", "game", "video"] {
        let short = format!("{profile}:rounds=512,seats=6,loops=1,n_min=1,steps_ms=2/2/2");
        let ClassChoice::Paced(terms) = short.parse().expect("a profile") else { panic!("{short} is paced") };
        runs(&terms);
    }
}

/// The end of a batch, with its keys, numbers and sessions, costs applications no datagram and, without repeat, no
/// time.
fn fifty_batches(repeat: bool) {
    let terms = PacedTerms { repeat, seats: 6, ..terms() };
    let mut chain = Chain::with_meetings(&terms, 3, &[(101, SECRET), (102, SECRET)]).start();
    let first = chain.batch();
    while chain.batch() < first + 50 {
        chain.talk(&[101, 102, 103], Duration::from_millis(997));
        chain.forget_links();
    }
    chain.run(4 * LATE);
    let [out, back, inside] = all_delays(&chain).map(quantiles);
    println!("repeat {repeat}: out {out:?}, back {back:?}, inside {inside:?} ms");
    let (again, last_round) = (if repeat { 10.0 } else { 0.0 }, last_round_ms(&terms));
    assert!(out[2] <= 36.0 + again + last_round && inside[2] <= 43.0 + last_round, "{out:?}, {inside:?}");
    chain.assert_closed();
}

#[test]
fn fifty_batches_in_a_row_lose_nothing() {
    fifty_batches(false);
}

#[test]
fn fifty_batches_with_repeat_lose_nothing() {
    fifty_batches(true);
}

/// At least 99.99 % of setups succeed when every link loses 1 % of its datagrams.
fn setups_that_succeed(terms: PacedTerms, mixes: usize, setups: u64) {
    let entries = 100;
    let mut chain = eddy_virtual::Chain::new(Plan { keeps: false, ..Plan::new(&terms, mixes, entries) });
    let numbers: Vec<_> = (101..101 + entries).collect();
    // All links, each datagram by itself.
    let mut rng = ChaCha20Rng::seed_from_u64(17);
    let count = |chain: &eddy_virtual::Chain| {
        let of = |status: EntryStatus| [status.joined, status.failed];
        numbers
            .iter()
            .map(|entry| of(chain.entry_status(*entry)))
            .fold([0, 0], |[a, b], [joined, failed]| [a + joined, b + failed])
    };
    while count(&chain)[0] < entries as u64 {
        chain.run_to_batch(1);
        println!(
            "{} with {mixes} mixes: {:?} setups made a channel and failed, without losses",
            terms.class,
            count(&chain)
        );
    }
    let is_link = move |at: SocketAddr| at.port() == link_address(1, Side::Up).port();
    chain.tap(move |datagram| !(is_link(datagram.from) && rng.random_bool(0.01)));
    let [joined_before, failed_before] = count(&chain);
    let [joined, failed] = loop {
        chain.run_to_batch(1);
        let [joined, failed] = count(&chain);
        let counts = [joined - joined_before, failed - failed_before];
        println!("{} with {mixes} mixes: {counts:?} setups made a channel and failed", terms.class);
        if counts[0] + counts[1] >= setups {
            break counts;
        }
    };
    let share = joined as f64 / (joined + failed) as f64;
    println!("{} with {mixes} mixes: {joined} of {} setups, {:.4} %", terms.class, joined + failed, 100.0 * share);
    assert!(share >= 0.9999, "{failed} of {} setups failed", joined + failed);
}

#[test]
#[ignore = "takes minutes; run it in release with --nocapture"]
fn setups_of_class_s_succeed_at_one_percent_loss() {
    setups_that_succeed(PacedTerms { seats: 100, ..terms() }, 3, 20_000);
}

#[test]
#[ignore = "takes minutes; run it in release with --nocapture"]
fn setups_of_class_s_with_seven_mixes_succeed_at_such_loss() {
    let terms = PacedTerms { rounds: 2048, seats: 100, steps_ms: vec![2; 7], ..terms() };
    setups_that_succeed(terms, 7, 5_000);
}

#[test]
#[ignore = "takes minutes; run it in release with --nocapture"]
fn setups_of_class_l_succeed_at_one_percent_loss() {
    let class = PacedClass::new(Class::L);
    setups_that_succeed(PacedTerms { class, seats: 100, ..terms() }, 3, 5_000);
}
