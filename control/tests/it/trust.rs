//! Epochs and bundles in whole chains: starts, restarts, switches, keys and addresses that change, clocks, and hops
//! that cheat (SPEC 7).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use control::trust::hop::TrustEvent;
use control::trust::{State, bundle};
use control::{Event, Refusal};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::{CellKind, Class};
use wire::handshake::is_handshake_len;
use wire::ids::{ChannelIndex, EndReason, Side};

use crate::sim::plan::Keys;
use crate::sim::{Fate, Plan, World, down_address, losing, ms, secs, up_address};

/// The entry's data plane gives up all its channels.
fn give_up_channels(world: &mut World, entry: usize) {
    let channels: Vec<ChannelIndex> = world.node(entry).channels.keys().copied().collect();
    channels.into_iter().for_each(|channel| world.end(entry, channel, EndReason::Lost));
}

/// Runs until the entry has its channels; how long that took.
fn time_to_channels(world: &mut World, limit: Duration) -> Duration {
    let start = world.now;
    let wanted = world.plan.channels;
    assert!(world.run_until(start + limit, |w| w.has_channels(0, wanted)), "not within {limit:?}");
    world.now - start
}

fn trust_events(world: &World, node: usize) -> Vec<TrustEvent> {
    let trust = |(_, event): &(Duration, Event)| if let Event::Trust(trust) = event { Some(*trust) } else { None };
    world.node(node).events.iter().filter_map(trust).collect()
}

#[test]
fn first_start_is_up_within_2_s_of_its_last_node() {
    let mut worst = Duration::ZERO;
    for (class, mixes) in [(Class::L, 3), (Class::S, 3), (Class::S, 7)] {
        for last in 0..=mixes + 1 {
            let mut world = World::empty(Plan::new(class, mixes));
            for at in (0..=mixes + 1).filter(|at| *at != last) {
                world.start(at);
                world.run_for(ms(170));
            }
            world.run_for(ms(700));
            world.start(last);
            let end = world.now + secs(2);
            let start = world.now;
            assert!(
                world.run_until(end, |w| !w.node(0).channels.is_empty()),
                "class {class}, {mixes} mixes, {last} last"
            );
            worst = worst.max(world.now - start);
        }
    }
    println!("up after {worst:?} at the latest");
}

/// A paced class ticks about every millisecond, also in the one in which hops begin to sign.
#[test]
fn ticks_for_other_things_delay_no_signature() {
    let mut world = World::new(Plan::new(Class::L, 1));
    world.run_for(secs(11));
    for _ in 0..3 {
        let end = world.now + secs(10);
        while world.now < end {
            world.run_until(world.now + Duration::from_micros(700), |_| false);
            world.tick_all();
        }
        for hop in [1, 2] {
            let trust = world.node(hop).control.trust_status(world.now);
            let bundles = world.node(hop).control.bundles();
            assert!(bundles.complete(trust.interval).is_some(), "hop {hop}, interval {}", trust.interval);
        }
    }
}

#[test]
fn restarted_hop_carries_channels_again_within_20_s() {
    let mut worst = Duration::ZERO;
    for hop in 1..=4 {
        for phase in [0, 2500, 5000, 7600, 8100, 9900] {
            let mut world = World::new(Plan::new(Class::L, 3));
            world.run_for(secs(20) + ms(phase));
            assert!(world.has_channels(0, 4));
            world.stop(hop);
            world.run_for(ms(500));
            world.start(hop);
            give_up_channels(&mut world, 0);
            worst = worst.max(time_to_channels(&mut world, secs(20)));
        }
    }
    println!("channels after {worst:?} at the latest");
}

#[test]
fn chain_recovers_when_all_its_disks_are_lost() {
    let mut world = World::new(Plan::new(Class::L, 3));
    world.run_for(secs(13));
    for hop in 1..=4 {
        world.stop(hop);
        // No state beside a key is a restart.
        let lost = State { hop: Default::default(), ..State::fresh(0) };
        world.disks.insert(hop, lost.to_bytes());
        world.start(hop);
    }
    give_up_channels(&mut world, 0);
    time_to_channels(&mut world, secs(20));
}

/// Ends channels at the end of their lifetime, as data planes do.
fn end_old_channels(world: &mut World, opened: &mut BTreeMap<(usize, u32), Duration>, lifetime: Duration) {
    let now = world.now;
    for at in world.nodes.keys().copied().collect::<Vec<_>>() {
        for channel in world.node(at).channels.keys().copied().collect::<Vec<_>>() {
            if now - *opened.entry((at, channel.0)).or_insert(now) >= lifetime {
                opened.remove(&(at, channel.0));
                world.end(at, channel, EndReason::Lifetime);
            }
        }
    }
}

#[test]
fn channels_pass_three_epochs_without_a_gap() {
    for loss in [0.0, 0.02] {
        let mut plan = Plan::new(Class::L, 3);
        (plan.terms.interval_s, plan.terms.epoch_s) = (1, 10);
        plan.terms.classes[0].lifetime_s = 8;
        let mut world = World::new(plan);
        world.recording = false;
        time_to_channels(&mut world, secs(4));
        world.tap = losing(loss);
        let (start, mut opened) = (world.now, BTreeMap::new());
        let mut least = usize::MAX;
        while world.now < start + secs(35) {
            world.run_for(ms(100));
            end_old_channels(&mut world, &mut opened, secs(8));
            world.forget_acks();
            let good = |c: &&ChannelIndex| world.agrees(0, **c);
            least = least.min(world.node(0).channels.keys().filter(good).count());
        }
        assert!(world.node(0).superseded.len() >= 4 * 4, "each wanted channel was replaced in every epoch");
        assert!(least >= if loss == 0.0 { 4 } else { 2 }, "loss {loss}: {least} channels");
        for hop in 1..=4 {
            let refused = [Refusal::SetupInvalid, Refusal::SetupReplayed].map(|why| world.refused(hop, why));
            assert_eq!(refused, [0, 0], "hop {hop}: every setup was made for keys that it has");
        }
    }
}

/// The hash that a hop has signed for an interval, if it is still on its disk.
fn signed(world: &World, hop: usize, interval: u64) -> Option<[u8; 32]> {
    State::read(&world.disks[&hop]).expect("it was written").hop.intervals.hash(interval)
}

#[test]
fn hop_that_draws_all_the_time_gives_nobody_keys_of_his_own() {
    let mut plan = Plan::new(Class::L, 2);
    plan.channels = 1;
    let mut world = World::new(plan);
    let others = [100, 101];
    for number in others {
        let port = number as u16;
        world.start_as(number, 0, ([6, 6, 6, 6], port).into(), ([6, 6, 6, 7], port).into());
    }
    let mut rng = ChaCha20Rng::seed_from_u64(5);
    let (mut bundles, mut used) = (BTreeMap::new(), 0);
    for _ in 0..40 {
        world.start(2);
        world.run_for(ms(rng.random_range(500..8000)));
        for entry in [0, 100, 101] {
            give_up_channels(&mut world, entry);
        }
        world.run_for(ms(300));
        for entry in [0, 100, 101] {
            let status = world.node(entry).control.trust_status(world.now);
            let view = world.node(entry).control.bundles();
            let Some(complete) = view.complete(status.interval) else { continue };
            // What an entry uses is what the honest hops have signed in this interval, and nobody uses anything else.
            let hash = complete.hash();
            assert_eq!(*bundles.entry(status.interval).or_insert(hash), hash);
            for honest in [1, 3] {
                assert_eq!(signed(&world, honest, status.interval), Some(hash), "hop {honest}");
            }
            let records: Vec<_> = complete.records.iter().map(|record| &**record).collect();
            assert_eq!(bundle::hash(view.chain(), status.interval, &records), hash);
            used += 1;
        }
    }
    assert!(used > 20, "{used}");
    for node in [1, 3, 0, 100, 101] {
        let twice = |event: &TrustEvent| matches!(event, TrustEvent::SignedTwice { .. });
        assert!(!trust_events(&world, node).iter().any(twice), "node {node}");
    }
    // It stops, and everybody comes back.
    world.run_for(secs(20));
    assert!([0, 100, 101].iter().all(|entry| world.has_channels(*entry, 1)));
}

#[test]
fn clock_of_an_entry_that_is_a_minute_off_is_named() {
    for minutes in [-1, 1] {
        let mut world = World::empty(Plan::new(Class::L, 2));
        world.clock_ms.insert(0, minutes * 60_000);
        (0..=3).for_each(|at| world.start(at));
        world.run_for(secs(40));
        assert!(world.node(0).channels.is_empty());
        let events = trust_events(&world, 0);
        let [TrustEvent::ClockOff { offset_ms }] = events[..] else { panic!("{events:?}") };
        assert!((offset_ms + minutes * 60_000).abs() < 100, "{offset_ms}");
        let said = world.node(0).control.trust_status(world.now).clock_offset_ms.unwrap();
        assert!((said + minutes * 60_000).abs() < 100, "{said}");
        // The clock is set.
        world.clock_ms.clear();
        time_to_channels(&mut world, secs(12));
    }
}

#[test]
fn hop_with_a_clock_a_minute_off_signs_nothing() {
    for hop in 1..=3 {
        let mut world = World::new(Plan::new(Class::L, 2));
        world.run_for(secs(15));
        world.clock_ms.insert(hop, 60_000);
        world.run_for(secs(40));
        let events = trust_events(&world, hop);
        let [TrustEvent::ClockStops { offset_ms }, ref others @ ..] = events[..] else {
            panic!("hop {hop}: {events:?}")
        };
        assert!(others.iter().all(|event| matches!(event, TrustEvent::BundleMissing { .. })), "hop {hop}: {others:?}");
        assert!((offset_ms + 60_000).abs() < 100, "{offset_ms}");
        assert!(!world.node(hop).control.trust_status(world.now).can_sign);
        world.clock_ms.clear();
        world.run_for(secs(20));
        give_up_channels(&mut world, 0);
        time_to_channels(&mut world, secs(20));
    }
}

#[test]
fn clocks_that_waited_while_a_node_was_stopped_do_not_count() {
    for stopped in 0..=3 {
        let mut plan = Plan::new(Class::L, 2);
        plan.terms.interval_s = 2;
        let mut world = World::new(plan);
        world.run_for(secs(15));
        let (from, until) = (world.now, world.now + secs(10));
        // The receive buffers hold what came in the first seconds.
        world.tap = Box::new(move |now, packet| match now {
            _ if ![up_address(stopped), down_address(stopped)].contains(&packet.to) || now >= until => Fate::Pass,
            now if now > from + secs(3) => Fate::Lose,
            now => Fate::Delay(until - now),
        });
        world.run_until(until - ms(1), |_| false);
        world.nodes.get_mut(&stopped).unwrap().control.stalled(from, until);
        world.run_for(secs(20));
        let off = |event: &TrustEvent| matches!(event, TrustEvent::ClockOff { .. } | TrustEvent::ClockStops { .. });
        assert!(!trust_events(&world, stopped).iter().any(off), "{:?}", trust_events(&world, stopped));
        let status = world.node(stopped).control.trust_status(world.now);
        assert!(stopped == 0 || status.can_sign, "node {stopped}");
        assert!(status.clock_offset_ms.is_none_or(|offset| offset.abs() < 100), "{:?}", status.clock_offset_ms);
    }
}

#[test]
fn nothing_leaves_before_the_state_is_on_disk() {
    let mut world = World::empty(Plan::new(Class::L, 2));
    world.broken_disks.insert(2);
    (0..=3).for_each(|at| world.start(at));
    world.run_for(secs(25));
    assert!(world.node(0).channels.is_empty() && world.node(1).control.view().record(2, 500_000).is_none());
    world.broken_disks.clear();
    time_to_channels(&mut world, secs(13));
}

fn new_keys(seed: u8) -> Keys {
    Keys { noise: wire::kdf::Secret::new([seed; 32]), signing: wire::kdf::Secret::new([seed + 100; 32]) }
}

#[test]
fn node_changes_its_keys_while_it_runs() {
    for hop in 1..=3 {
        let mut plan = Plan::new(Class::L, 2);
        (plan.terms.interval_s, plan.terms.epoch_s) = (1, 10);
        let mut world = World::new(plan);
        world.run_for(secs(5));
        let keys = new_keys(hop as u8);
        world.plan.name_keys(hop, &keys);
        world.plan.keys[hop].insert(0, keys);
        let (now, descriptor, all) = (world.now, world.plan.signed(hop), world.plan.node_keys(hop));
        let control = &mut world.nodes.get_mut(&hop).unwrap().control;
        control.load_keys(now, all);
        control.load_descriptor(now, descriptor).unwrap();
        world.run_for(secs(16));
        for at in 0..=3 {
            let revision = world.node(at).control.view().descriptor(hop).unwrap().revision;
            // An entry that has its channels does not ask.
            assert!(revision == 2 || at == 0, "node {at}");
        }
        // An entry knows the new keys for contact when it has set up channels with them an epoch apart.
        for known in [1, 2] {
            give_up_channels(&mut world, 0);
            time_to_channels(&mut world, secs(4));
            assert_eq!(world.node(0).control.bundles().descriptor(hop).unwrap().revision, 2);
            assert_eq!(world.node(0).control.view().descriptor(hop).unwrap().revision, known);
            world.run_for(secs(10));
        }
        // It starts again with the new keys alone.
        world.plan.keys[hop].truncate(1);
        world.stop(hop);
        world.start(hop);
        give_up_channels(&mut world, 0);
        time_to_channels(&mut world, secs(20));
    }
}

#[test]
fn announced_move_is_found_within_15_s() {
    for hop in 1..=3 {
        let mut world = World::new(Plan::new(Class::L, 2));
        world.run_for(secs(5));
        let moved = ([10, 9, 9, hop as u8], 1000).into();
        let descriptor = &mut world.plan.descriptors[hop - 1];
        descriptor.revision += 1;
        descriptor.contacts[0].addresses.push(moved);
        let (now, descriptor) = (world.now, world.plan.signed(hop));
        world.nodes.get_mut(&hop).unwrap().control.load_descriptor(now, descriptor.clone()).unwrap();
        world.run_for(secs(2));
        if hop == 1 {
            // Nothing asks for an entry that has its channels.
            let now = world.now;
            world.nodes.get_mut(&0).unwrap().control.load_descriptor(now, descriptor).unwrap();
        }
        let before: Vec<_> = world.node(0).channels.values().map(|channel| channel.down).collect();
        world.nodes.get_mut(&hop).unwrap().up_address = moved;
        let sent = world.now;
        world.run_for(secs(15));
        let to_new = |w: &World| w.record.iter().filter(|packet| packet.to == moved && packet.at > sent).count();
        assert!(to_new(&world) > 0 && world.has_channels(0, 4), "hop {hop}");
        let after: Vec<_> = world.node(0).channels.values().map(|channel| channel.down).collect();
        assert_eq!(before, after, "hop {hop}: no channel was lost");
    }
}

/// A chain whose hop 2 is found by its name alone, at the address that it has in the plan.
fn named_chain() -> World {
    let mut plan = Plan::new(Class::L, 2);
    let contact = &mut plan.descriptors[1].contacts[0];
    (contact.addresses, contact.names) = (Vec::new(), vec![("mix2.example.org".into(), 1000)]);
    World::empty(plan)
}

/// The name of hop 2 resolves to this from now on.
fn resolve_to(world: &mut World, addresses: &[SocketAddr]) {
    world.names.insert(("mix2.example.org".into(), 1000), addresses.to_vec());
}

#[test]
fn next_hop_with_a_name_alone_is_found() {
    let mut world = named_chain();
    (0..=3).for_each(|at| world.start(at));
    // Nothing has the name at first: it is resolved again, and not all the time.
    world.run_for(secs(15));
    assert!(!world.node(1).has_link(Side::Down));
    assert!((2..=3).contains(&world.node(1).resolved.len()), "{:?}", world.node(1).resolved);
    resolve_to(&mut world, &[([10, 9, 9, 9], 1).into(), up_address(2)]);
    world.run_for(secs(11));
    assert!(world.node(1).has_link(Side::Down));
    time_to_channels(&mut world, secs(11));
    // While the link is up, nobody asks.
    let before = world.node(1).resolved.len();
    world.run_for(secs(60));
    assert_eq!(world.node(1).resolved.len(), before);
}

#[test]
fn renewed_hop_that_moved_is_found_by_its_name() {
    let mut world = named_chain();
    resolve_to(&mut world, &[up_address(2)]);
    (0..=3).for_each(|at| world.start(at));
    time_to_channels(&mut world, secs(4));
    // New keys and a new address at once, and only the name leads there.
    let keys = new_keys(2);
    world.plan.name_keys(2, &keys);
    world.plan.keys[2].insert(0, keys);
    let (now, descriptor, all) = (world.now, world.plan.signed(2), world.plan.node_keys(2));
    let control = &mut world.nodes.get_mut(&2).unwrap().control;
    control.load_keys(now, all);
    control.load_descriptor(now, descriptor).unwrap();
    world.run_for(secs(2));
    let moved = ([10, 9, 9, 2], 1000).into();
    resolve_to(&mut world, &[moved]);
    world.stop(2);
    world.start_as(2, 2, moved, down_address(2));
    give_up_channels(&mut world, 0);
    let sent = world.now;
    time_to_channels(&mut world, secs(25));
    assert_eq!(world.node(1).link(Side::Down).1.peer, moved);
    assert!(world.node(1).resolved.iter().any(|at| *at > sent));
    assert_eq!(world.node(1).control.view().descriptor(2).unwrap().revision, 2);
}

#[test]
fn bundles_come_on_links_that_lose_a_tenth() {
    let mut world = World::new(Plan::new(Class::S, 3));
    world.recording = false;
    world.tap = losing(0.1);
    let mut with = 0;
    for _ in 0..6 {
        world.run_for(secs(10));
        give_up_channels(&mut world, 0);
        let end = world.now + secs(6);
        with += usize::from(world.run_until(end, |w| !w.node(0).channels.is_empty()));
        world.forget_acks();
    }
    assert!(with >= 5, "{with} of 6");
}

/// How long after each start of an interval the entry asked first, in ms.
fn first_asks(world: &World, from: Duration) -> Vec<u128> {
    let starts = (from.as_secs() / 10 + 1..world.now.as_secs() / 10).map(|n| secs(10 * n));
    let asks = |start| world.node(0).sent.iter().filter(move |(at, _, at_once)| *at >= start && *at_once);
    starts.map(|start| (asks(start).next().unwrap().0 - start).as_millis()).collect()
}

#[test]
fn ask_for_an_interval_does_not_show_the_clock() {
    let mut world = World::new(Plan::new(Class::L, 2));
    world.run_for(secs(3));
    world.stop(3);
    world.want_channels(0, 5);
    let start = world.now;
    world.run_for(secs(200));
    let asked = first_asks(&world, start);
    assert!(asked.iter().all(|ms| *ms <= 1001), "{asked:?}");
    assert!(asked.iter().filter(|ms| **ms > 100).count() > asked.len() / 2, "{asked:?}");
    // Who has no channel does not wait.
    give_up_channels(&mut world, 0);
    let start = world.now;
    world.run_for(secs(50));
    let asked = first_asks(&world, start);
    assert!(asked.iter().all(|ms| *ms <= 1), "{asked:?}");
}

#[test]
fn setups_held_back_at_a_switch_leave_at_random_times() {
    let mut plan = Plan::new(Class::L, 2);
    (plan.terms.interval_s, plan.terms.epoch_s) = (1, 10);
    let mut world = World::new(plan);
    let mut waited = Vec::new();
    for number in 0..10 {
        // Switches are a second after each tenth.
        let switch = secs(world.now.as_secs() / 10 * 10 + 11);
        world.run_until(switch - ms(500), |_| false);
        world.want_channels(0, 5 + number);
        world.run_until(switch + ms(2500), |_| false);
        assert!(world.has_channels(0, 5 + number));
        let setups =
            world.node(0).sent.iter().filter(|(at, kind, _)| *kind == CellKind::Setup && *at > switch - ms(500));
        waited.push((setups.map(|(at, ..)| *at).next().unwrap() - switch).as_millis());
    }
    assert!(waited.iter().all(|ms| (1000..=2001).contains(ms)), "{waited:?}");
    assert!(waited.iter().filter(|ms| **ms > 1100).count() > 5, "{waited:?}");
}

#[test]
fn entry_of_another_chain_gets_no_answer() {
    // A node of another chain, at the same address and with the same keys, is not heard.
    let mut world = World::empty(Plan::new(Class::L, 1));
    world.start(1);
    world.start(2);
    world.plan.terms.interval_s += 1;
    world.start(0);
    world.run_for(secs(3));
    assert!(world.refused(1, Refusal::HandshakeForged) > 0);
    assert!(!world.node(0).has_link(Side::Down));
    let answers = world.record.iter().filter(|p| p.from == up_address(1) && is_handshake_len(p.bytes.len())).count();
    assert_eq!(answers, 0);
}

#[test]
fn entry_without_a_bundle_says_so_once() {
    let mut world = World::empty(Plan::new(Class::L, 2));
    (0..=2).for_each(|at| world.start(at));
    world.run_for(secs(40));
    assert_eq!(trust_events(&world, 0), [TrustEvent::NoBundle { newest: None }]);
    world.start(3);
    time_to_channels(&mut world, secs(3));
}
