//! The order of setups and acks at Mix 1 and at the exit (SPEC 9.8.7 and 9.9.4): whoever has both does not find out
//! which channel is whose.

use std::time::Duration;

use attack::Truth;
use attack::setup_order::{Passed, SetupOrder};
use dataplane::Nanos;
use eddy_virtual::{Chain, FIRST_ENTRY, Plan, number_of};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::paced::PacedTerms;

use crate::common::limit::Permit;
use crate::common::pacedchain::{HOPS, terms};

const USERS: usize = 12;
const BATCHES: usize = 50;

/// The setups for 50 batches of a chain whose access links have 1 % loss and 2 ms of jitter: the mean of an exponential
/// delay.
fn setups(loops: u8) -> (SetupOrder, Vec<Truth>) {
    let _permit = Permit::wait();
    let terms = PacedTerms { loops, ..terms() };
    let timers_late = Duration::from_micros(60);
    let mut chain = Chain::new(Plan { keeps: false, timers_late, ..Plan::new(&terms, HOPS - 1, USERS) });
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    chain.attack(move |_, datagram| {
        let is_access = [datagram.from, datagram.to].iter().any(|end| number_of(*end) >= Some(FIRST_ENTRY));
        let delay = if is_access { -(1.0 - rng.random::<f64>()).ln() * 2e6 } else { 0.0 };
        let is_lost = is_access && rng.random_bool(0.01);
        if is_lost { Vec::new() } else { vec![(delay as Nanos, datagram)] }
    });
    chain.run_to_batch(4);
    chain.watch_setups();
    chain.run_to_batch(1 + BATCHES as u64);
    chain.setup_order()
}

/// Undoes the shuffle in every fourth batch: there the exit has the setups in the order in which Mix 1 had them.
fn unshuffled(mut order: SetupOrder, truths: &[Truth]) -> SetupOrder {
    for (batch, Truth(channel_of)) in order.batches.iter_mut().zip(truths).step_by(4) {
        let mut times: Vec<_> = channel_of.iter().map(|channel| batch.channels[*channel].complete).collect();
        times.sort_unstable();
        let mut users: Vec<usize> = (0..channel_of.len()).collect();
        users.sort_unstable_by_key(|user| batch.users[*user].complete);
        for (user, time) in users.into_iter().zip(times) {
            batch.channels[channel_of[user]].complete = time;
        }
    }
    order
}

fn setups_and_acks_are_at_chance(loops: u8) {
    let (order, truths) = setups(loops);
    assert_eq!(order.batches.len(), BATCHES);
    for batch in &order.batches {
        let channels = USERS + 2 * usize::from(loops) * (HOPS - 1);
        assert_eq!((batch.users.len(), batch.channels.len()), (USERS, channels));
        let is_seen = |passed: &Passed| passed.begun.is_some() && passed.complete.is_some() && passed.ack.is_some();
        assert!(batch.users.iter().chain(&batch.channels).all(is_seen), "{batch:?}");
    }
    let p = order.p(&truths, 1);
    let unshuffled = unshuffled(order, &truths).p(&truths, 1);
    println!("{loops} pairs of loops: p {p}, {unshuffled} without the shuffle in every fourth batch");
    assert!(p > 0.01 && unshuffled < 0.01, "p {p}, unshuffled {unshuffled}");
}

#[test]
fn setups_and_acks_are_at_chance_over_50_batches() {
    setups_and_acks_are_at_chance(0);
}

#[test]
fn setups_and_acks_with_loops_are_at_chance_over_50_batches() {
    setups_and_acks_are_at_chance(1);
}
