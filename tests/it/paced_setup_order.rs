//! The order of setups and acks at Mix 1 and at the exit (SPEC 9.8.7 and 9.9.4), over 50 batches of a chain in memory:
//! an attacker that has both ends does not find out which channel is whose.

use std::time::{Duration, Instant};

use attack::Truth;
use attack::setup_order::SetupOrder;
use dataplane::Nanos;
use eddy_virtual::{Chain, ENTRIES, Setup, number_of};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::paced::PacedTerms;

use crate::common::limit::Permit;
use crate::common::pacedchain::{HOPS, terms};

const USERS: usize = 12;
const BATCHES: usize = 50;

/// Setups for 50 batches, with 2 ms of jitter (the mean of an exponential delay) and 1 % loss on access links.
fn setups(loops: u8) -> (SetupOrder, Vec<Truth>) {
    let _permit = Permit::wait();
    let timers_late = Duration::from_micros(60);
    let terms = PacedTerms { loops, ..terms() };
    let mut chain = Chain::new(Setup { keeps: false, timers_late, ..Setup::new(&terms, HOPS - 1, USERS) });
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    chain.attack(move |_, datagram| {
        let is_access = [datagram.from, datagram.to].map(number_of).into_iter().flatten().any(|node| node >= ENTRIES);
        let after = -(1.0 - rng.random::<f64>()).ln() * 2e6;
        match is_access {
            true if rng.random_bool(0.01) => Vec::new(),
            true => vec![(after as Nanos, datagram)],
            false => vec![(0, datagram)],
        }
    });
    // Until entries have channels.
    let start = Instant::now();
    chain.run_to_batch(4);
    chain.watch_setups();
    chain.run_to_batch(2 + BATCHES as u64);
    println!("{:?}", start.elapsed());
    chain.setup_order()
}

#[test]
fn order_of_setups_and_acks_says_nothing_over_50_batches() {
    for loops in [0, 1] {
        let (order, truths) = setups(loops);
        let (users, channels) = (USERS, USERS + 2 * usize::from(loops) * (HOPS - 1));
        println!(
            "{:?}",
            order.batches.iter().map(|batch| (batch.users.len(), batch.channels.len())).collect::<Vec<_>>()
        );
        println!("{:?}", order.batches[0]);
        let p = order.p(&truths, 1);
        println!("{loops} loops: p {p}");
        assert!(p > 0.01, "{p}");
    }
}
