//! Setups on links that lose datagrams at random: how many succeed at the first attempt (SPEC 5.3, 5.4).

use std::collections::BTreeSet;

use control::{Rate, Refusal};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::Class;
use wire::handshake::is_handshake_len;
use wire::ids::{ChannelIndex, EndReason};
use wire::setup::Suite;

use crate::sim::{Fate, Plan, World, ms, secs};

/// Channels that are set up at once, as an entry does by default.
const CHANNELS: usize = 4;

/// Attempts that were needed for `setups` channels. Links are up, and their handshakes are not lost.
fn attempts(class: Class, mixes: usize, share: f64, setups: usize, seed: u64) -> usize {
    let mut plan = Plan::with_suite(class, mixes, Suite::Hybrid);
    plan.channels = CHANNELS;
    plan.caps.setups_per_entry_link = Rate { per_second: 10_000, burst: 10_000 };
    plan.caps.setups = Rate { per_second: 10_000, burst: 10_000 };
    plan.caps.half_open = 20_000;
    plan.shared_prefixes = vec!["10.0.0.0/8".parse().unwrap()];
    let mut world = World::new(plan);
    world.recording = false;
    let end = world.now + secs(5);
    assert!(world.run_until(end, |w| w.has_channels(0, CHANNELS)));

    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    world.tap =
        Box::new(
            move |_, packet| {
                if !is_handshake_len(packet.bytes.len()) && rng.random_bool(share) { Fate::Lose } else { Fate::Pass }
            },
        );
    let first = world.node(0).control.class(0).counters().setups;
    for _ in 0..setups / CHANNELS {
        // Until the last copies of acks have passed.
        world.run_for(ms(200));
        world.forget_acks();
        end_all(&mut world);
        let end = world.now + secs(60);
        assert!(world.run_until(end, |w| w.node(0).channels.len() == CHANNELS), "a channel never opens");
    }
    (world.node(0).control.class(0).counters().setups - first) as usize
}

/// Ends the channels of all nodes. The entry sets others up at once.
fn end_all(world: &mut World) {
    let positions: BTreeSet<usize> = world.nodes.keys().copied().collect();
    for position in positions.into_iter().rev() {
        let open: Vec<ChannelIndex> = world.node(position).channels.keys().copied().collect();
        open.into_iter().for_each(|channel| world.end(position, channel, EndReason::Lost));
    }
}

/// Runs so many setups of each chain at 1 % and 5 % loss. At least 99.9 % and 97 % must succeed.
fn succeed(setups: [usize; 2]) {
    for (class, mixes) in [(Class::S, 7), (Class::L, 7), (Class::S, 3), (Class::L, 3)] {
        for (setups, share, wanted) in [(setups[0], 0.01, 0.999), (setups[1], 0.05, 0.97)] {
            let needed = attempts(class, mixes, share, setups, 7);
            let succeeded = setups as f64 / needed as f64;
            println!("class {class}, {mixes} mixes, {share}: {setups} of {needed}, {:.2} %", 100.0 * succeeded);
            assert!(succeeded >= wanted, "class {class}, {mixes} mixes, {share} lost: {setups} of {needed}");
        }
    }
}

#[test]
fn setups_succeed_with_random_loss() {
    // One failure in a thousand is within the first share.
    succeed([1000, 300]);
}

#[test]
#[ignore = "takes minutes"]
fn thousands_of_setups_succeed_with_random_loss() {
    succeed([10_000; 2]);
}

#[test]
fn many_setups_fit_a_link_that_reorders() {
    // Shards overtake those of other setups, and Mix 1 joins eight setups of an entry at once.
    let mut plan = Plan::with_suite(Class::S, 3, Suite::Hybrid);
    plan.channels = 64;
    plan.caps.setups_per_entry_link = Rate { per_second: 10_000, burst: 10_000 };
    plan.shared_prefixes = vec!["10.0.0.0/8".parse().unwrap()];
    let mut world = World::new(plan);
    world.recording = false;
    world.delay_us = 2_000..40_000;
    let end = world.now + secs(10);
    assert!(world.run_until(end, |w| w.node(0).channels.len() == 64));
    assert_eq!(world.node(0).control.class(0).counters().setups, 64, "each at its first attempt");
    assert_eq!(world.refused(1, Refusal::SetupIncomplete), 0);
}

#[test]
fn no_ack_cell_is_sent_twice_with_the_same_bytes() {
    let mut world = World::new(Plan::new(Class::S, 7));
    world.run_for(secs(3));
    assert!(world.has_channels(0, 4));
    let bytes: BTreeSet<&[u8]> = world.record.iter().map(|packet| &packet.bytes[..]).collect();
    assert_eq!(bytes.len(), world.record.len());
    // Two contents, in three cells each, of which one counts.
    for at in 0..8 {
        assert!(world.node(at).control.class(0).counters().surplus_cells >= 4 * 2 * 2, "node {at}");
        assert_eq!(world.node(at).control.class(0).counters().refused_total(), 0, "node {at}");
    }
}
