//! Bundles of intervals: the start, restarts, clocks.

use super::*;

#[test]
fn chain_that_starts_for_the_first_time_has_a_bundle_at_once() {
    for (hops, class) in [(2, Class::S), (4, Class::L), (8, Class::S)] {
        let mut world = World::new(hops, class, (10, 3600), 0.0);
        world.add_user(0);
        let took = world.time_to_bundle(0, 10_000);
        assert!(took <= 700, "{hops} hops of class {class}: {took} ms");
        world.assert_nobody_signed_twice();
    }
}

#[test]
fn first_start_late_in_an_interval_does_not_wait_for_the_next() {
    let mut world = World::starting_at(10_000 - START_MS % 10_000 - 1500, 4, Class::L, (10, 3600), 0.0);
    world.add_user(0);
    let took = world.time_to_bundle(0, 10_000);
    assert!(took <= 700, "{took} ms");
    world.run(10_000);
    world.assert_nobody_signed_twice();
}

#[test]
fn every_interval_has_a_bundle_over_three_epochs() {
    for loss in [0.0, 0.05] {
        let mut world = World::new(4, Class::S, (1, 10), loss);
        world.add_user(0);
        world.run(35_000);
        let first = *world.users[0].had.first().unwrap();
        let missed: Vec<u64> = (first..first + 34).filter(|n| !world.users[0].had.contains(n)).collect();
        let allowed = if loss == 0.0 { 0 } else { 2 };
        assert!(missed.len() <= allowed, "loss {loss}: without a bundle in {missed:?} from {first}");
        world.assert_nobody_signed_twice();
    }
}

#[test]
fn restarted_hop_takes_part_in_the_next_interval_that_it_can() {
    let mut worst = 0;
    for hop in 1..=4 {
        for phase_ms in (0..10_000).step_by(1900) {
            let mut world = World::new(4, Class::L, (10, 3600), 0.0);
            if hop > 1 {
                world.add_user(0);
            }
            world.run(20_000 + phase_ms);
            let disk = world.hops[hop - 1].disk.clone();
            world.restart(hop, disk, 1000);
            if hop == 1 {
                world.add_user(0);
            }
            let start = world.now_ms;
            // The bundles that the user still has name keys that are gone.
            let has_new_keys = |world: &mut World| {
                let (now, wall) = (world.now(), world.wall(0));
                let Some(bundle) = world.users[0].trust.bundle(now, wall, now) else { return false };
                let named = bundle.records[hop - 1].clone();
                world.hops[hop - 1].trust.keyring().record(named.epoch).is_some_and(|own| own.hash() == named.hash())
            };
            while !has_new_keys(&mut world) {
                assert!(world.now_ms - start < 20_000, "hop {hop} at {phase_ms} ms");
                world.run(50);
            }
            worst = worst.max(world.now_ms - start + 1000);
            world.assert_nobody_signed_twice();
        }
    }
    assert!(worst <= 14_000, "{worst} ms");
}

#[test]
fn chain_recovers_when_all_hops_restart_without_disks() {
    let mut world = World::new(4, Class::L, (10, 3600), 0.0);
    world.run(23_000);
    for hop in 1..=4 {
        // No state next to a key is a restart, not a first start.
        world.restart(hop, HopState::default(), 5);
    }
    world.add_user(0);
    let took = world.time_to_bundle(0, 20_000);
    assert!(took <= 13_000, "{took} ms");
    world.assert_nobody_signed_twice();
}

#[test]
fn clock_that_steps_signs_no_interval_twice() {
    let mut world = World::new(3, Class::L, (1, 10), 0.0);
    world.add_user(0);
    for step_ms in [60_000, -60_000, 7000, -7000, 1500, -1500] {
        world.run(3000);
        world.hops[1].offset_ms += step_ms;
        world.run(3000);
    }
    world.run(3000);
    world.time_to_bundle(0, 1000);
    world.assert_nobody_signed_twice();
    assert!(world.events.iter().any(|(hop, event)| *hop == 2 && matches!(event, TrustEvent::ClockStops { .. })));
}

#[test]
fn hop_that_always_draws_keys_gives_nobody_keys_of_his_own() {
    let mut world = World::new(3, Class::L, (10, 3600), 0.0);
    world.add_user(0);
    world.add_user(0);
    for _ in 0..40 {
        let disk = world.hops[1].disk.clone();
        world.restart(2, disk, 50);
        world.run(2000);
        let (now, wall) = (world.now(), world.wall(0));
        let hashes: Vec<_> =
            (0..2).map(|user| world.users[user].trust.bundle(now, wall, now).map(|b| b.hash())).collect();
        if let [Some(a), Some(b)] = hashes[..] {
            assert_eq!(a, b);
        }
    }
    world.assert_nobody_signed_twice();
}

#[test]
fn node_with_old_keys_waits_for_the_next_interval() {
    for (ago_s, waits) in [(3600, true), (3599, false)] {
        let mut world = World::new(3, Class::L, (10, 3600), 0.0);
        let made = START_MS / 1000 - ago_s;
        (1..=3).for_each(|hop| world.restart(hop, HopState { made, ..HopState::default() }, 0));
        world.add_user(0);
        let running = world.wall(0) / 10_000;
        world.run(2000);
        assert_eq!(world.signed.keys().all(|(_, interval)| *interval > running), waits, "{ago_s} s");
        world.run(10_000);
        assert!(world.users[0].had.contains(&(running + 1)));
    }
}

/// The last interval that a hop has signed.
fn last_signed(world: &World, hop: usize) -> u64 {
    let of_hop = world.signed.keys().filter(|(of, _)| *of == hop);
    of_hop.map(|(_, interval)| *interval).max().expect("it has signed")
}

#[test]
fn hop_that_knows_no_neighbours_clock_signs_nothing() {
    let mut world = World::new(3, Class::L, (1, 10), 0.0);
    world.run(3000);
    [UP, DOWN].into_iter().for_each(|link| world.hops[1].trust.link_down(link));
    let before = last_signed(&world, 2);
    world.run(3000);
    assert_eq!(last_signed(&world, 2), before);
    (1..3).for_each(|hop| world.connect(hop));
    world.run(1500);
    assert!(last_signed(&world, 2) > before);

    // It was set twice before a neighbour could say its own, just before the next signature.
    world.run(1795 - (START_MS + world.now_ms) % 1000);
    let (now, before) = (world.now(), last_signed(&world, 2));
    (0..2).for_each(|_| world.hops[1].trust.clock_stepped(now));
    world.run(2 * STEP_MS);
    assert_eq!((last_signed(&world, 1), last_signed(&world, 2)), (before + 1, before));
    world.run(200);
    assert_eq!(last_signed(&world, 2), before + 1);
    world.assert_nobody_signed_twice();
}

#[test]
fn hop_says_whose_signature_an_interval_lacks() {
    let mut world = World::new(3, Class::L, (1, 600), 0.0);
    world.run(3000);
    let missing = |world: &World| {
        let events = world.events.iter().filter(|(hop, _)| *hop == 3).map(|(_, event)| *event);
        events.filter(|event| matches!(event, TrustEvent::BundleMissing { .. })).collect::<Vec<_>>()
    };
    assert_eq!(missing(&world), []);
    world.loss = 1.0;
    world.run(3000);
    let said = missing(&world);
    let signed = |event: &TrustEvent| match *event {
        TrustEvent::BundleMissing { interval, signed: 0b100 } => interval,
        _ => panic!("{said:?}"),
    };
    let intervals: Vec<u64> = said.iter().map(signed).collect();
    assert!((2..=3).contains(&intervals.len()) && intervals.is_sorted_by(|a, b| a + 1 == *b), "{intervals:?}");
    world.loss = 0.0;
    world.run(3000);
    assert_eq!(missing(&world).len(), said.len());
}

#[test]
fn hop_asks_until_it_knows_a_neighbours_clock() {
    let mut world = World::new(3, Class::L, (600, 6000), 0.0);
    world.run(5000);
    let can_sign = |world: &World| world.hops[1].trust.can_sign(world.wall(0));
    assert!(can_sign(&world));
    // It has the bundle and has heard both neighbours, and its clock is set.
    let now = world.now();
    world.hops[1].trust.clock_stepped(now);
    world.loss = 1.0;
    world.run(1000);
    assert!(!can_sign(&world));
    world.loss = 0.0;
    world.run(1000);
    assert!(can_sign(&world));
}

#[test]
fn clock_that_was_ahead_at_the_start_does_not_lock_a_hop_out() {
    let mut world = World::new(3, Class::L, (1, 10), 0.0);
    world.add_user(0);
    world.run(3000);
    let disk = world.hops[1].disk.clone();
    world.hops[1].offset_ms = 86_400_000;
    world.restart(2, disk, 100);
    world.run(3000);
    let times = world.hops[1].trust.view().times();
    let is_signed_from_now = |world: &World| world.hops[1].trust.signs_from() <= times.signable_at(world.wall(0));
    assert!(!world.hops[1].trust.can_sign(world.wall(86_400_000)) && !is_signed_from_now(&world));
    world.hops[1].offset_ms = 0;
    world.run(3000);
    assert!(world.hops[1].trust.can_sign(world.wall(0)) && is_signed_from_now(&world));
    world.time_to_bundle(0, 2000);
    world.assert_nobody_signed_twice();
}
