//! New descriptors and records, of honest hops and of thieves, among the hops.

use super::*;

#[test]
fn renewed_descriptor_reaches_everyone_in_band() {
    let mut world = World::new(4, Class::L, (1, 10), 0.05);
    world.add_user(0);
    world.run(3000);
    let renewed = NodeDescriptor { revision: 9, ..node(3, 4) };
    let (now, wall) = (world.now(), world.wall(0));
    world.hops[2].trust.take_descriptor(3, signed(renewed, 3), now, wall).unwrap();
    world.run(4000);
    for hop in 1..=4 {
        assert_eq!(world.hops[hop - 1].trust.view().descriptor(3).unwrap().revision, 9, "at hop {hop}");
    }
    world.time_to_bundle(0, 1000);
    assert_eq!(world.users[0].trust.session().descriptor(3).unwrap().revision, 9);
    let (now, wall) = (world.now(), world.wall(0));
    assert_eq!(world.users[0].trust.bundle(now, wall, now).unwrap().records[2].revision, 9);
    world.run(12_000);
    assert_eq!(world.users[0].trust.durable().descriptor(3).unwrap().revision, 9, "also for contact, an epoch later");
    world.assert_nobody_signed_twice();
}

#[test]
fn descriptor_that_spreads_before_its_node_loads_it_is_adopted() {
    let mut world = World::new(4, Class::L, (1, 10), 0.0);
    world.add_user(0);
    world.run(2000);
    let renewed = NodeDescriptor { revision: 9, ..node(3, 4) };
    let (now, wall) = (world.now(), world.wall(0));
    world.hops[0].trust.take_descriptor(3, signed(renewed, 3), now, wall).unwrap();
    world.run(3000);
    world.time_to_bundle(0, 1000);
    let (now, wall) = (world.now(), world.wall(0));
    assert_eq!(world.users[0].trust.bundle(now, wall, now).unwrap().records[2].revision, 9);
}

#[test]
fn node_whose_keys_are_revoked_says_that_it_cannot_sign() {
    let mut world = World::new(3, Class::L, (1, 10), 0.0);
    world.run(2000);
    let can_sign = |world: &World, hop: usize| world.hops[hop - 1].trust.can_sign(world.wall(0));
    assert!(can_sign(&world, 2));
    // Its operator has revoked the keys, and the new ones are not here yet.
    let revoking = NodeDescriptor { revision: 9, floor: 9, signing: identity(77).public(), ..node(2, 3) };
    let (now, wall) = (world.now(), world.wall(0));
    world.hops[0].trust.take_descriptor(2, signed(revoking, 2), now, wall).unwrap();
    world.run(2000);
    assert!(!can_sign(&world, 2) && can_sign(&world, 1));
    let missing = (2, TrustEvent::OwnKeysMissing { revision: 9 });
    assert_eq!(world.events.iter().filter(|event| **event == missing).count(), 1);
}

/// The newest descriptor of a hop as each hop has it.
fn newest(world: &World, of: usize) -> Vec<[u8; 32]> {
    world.hops.iter().map(|hop| *hop.trust.view().descriptor(of).unwrap().hash()).collect()
}

#[test]
fn of_two_descriptors_with_one_revision_one_spreads() {
    for not_after in [START_MS - 1, START_MS - 2, START_MS - 3, START_MS - 4] {
        let mut world = World::new(4, Class::L, (1, 10), 0.05);
        world.add_user(0);
        world.run(2000);
        let first = newest(&world, 3)[0];
        let second = signed(NodeDescriptor { not_after, ..node(3, 4) }, 3);
        let counts = first.max(*second.hash());
        let (now, wall) = (world.now(), world.wall(0));
        world.hops[0].trust.take_descriptor(3, second, now, wall).unwrap();
        world.run(5000);
        assert_eq!(newest(&world, 3), [counts; 4]);
        world.time_to_bundle(0, 1000);
        let reported = |hop: usize| {
            let twice = |event: &&(usize, TrustEvent)| matches!(event, (at, TrustEvent::AmbiguousRevision { hop: 3, revision: 1 }) if *at == hop);
            world.events.iter().filter(twice).count()
        };
        assert_eq!(reported(1), 1);
        assert!((2..=4).all(|hop| reported(hop) == usize::from(counts != first)));
    }
}

/// Two records of one hop, epoch and draw that an ask does not tell apart.
fn records_alike(view: &View, hop: usize, epoch: u64, draw: u64) -> [SignedRecord; 2] {
    let certificate = view.descriptor(hop).unwrap();
    let mut seen = BTreeMap::new();
    for number in 1u64.. {
        let mut key = [9; 32];
        key[..8].copy_from_slice(&number.to_le_bytes());
        let record = EpochRecord {
            identity: certificate.identity,
            descriptor: *certificate.hash(),
            revision: certificate.revision,
            epoch,
            draw,
            setup: SetupPublic::new(key, None).unwrap(),
        };
        let record = record.sign(view.chain(), &identity(hop as u8 + 100));
        let tag: [u8; 4] = *record.hash().first_chunk().unwrap();
        if let Some(other) = seen.insert(tag, record.clone()) {
            return [other, record];
        }
    }
    unreachable!()
}

#[test]
fn hops_agree_on_records_that_asks_do_not_tell_apart() {
    let mut world = World::new(3, Class::L, (1, 60), 0.0);
    // Hop 3 is corrupt: it tells hop 1 something other than hop 2, and signs nothing.
    world.hops[1].trust.link_down(DOWN);
    world.hops[2].trust.link_down(UP);
    world.run(50);
    let view = world.hops[0].trust.view();
    let epoch = view.times().epoch_of(view.times().interval_at(world.wall(0)));
    let alike = records_alike(view, 3, epoch, START_MS / 1000 + 9);
    let (now, wall) = (world.now(), world.wall(0));
    for (hop, record) in [1, 2].into_iter().zip(&alike) {
        let len = world.shape.control_content(Direction::Forward, 2);
        let trust = &mut world.hops[hop - 1].trust;
        for mut part in cut(ItemKind::Record(3), record.travelling(), len) {
            part.resize(len, 0);
            // At hop 2 as if it came from hop 1: its link to hop 3 is down.
            trust.take(now, wall, if hop == 1 { DOWN } else { UP }, &part).unwrap();
        }
        assert_eq!(trust.view().record(3, epoch).unwrap().hash(), record.hash());
    }
    world.run(3000);
    let held = [0, 1].map(|at| *world.hops[at].trust.view().record(3, epoch).unwrap().hash());
    assert_eq!(held, [*alike[0].hash().max(alike[1].hash()); 2]);
    world.assert_nobody_signed_twice();
}

/// Somebody with the keys of hop 2 of three publishes other setup keys in its name.
fn publish_for_hop_2(world: &mut World, revision: u64, draw: u64) {
    let stolen = signed(NodeDescriptor { revision, ..node(2, 3) }, 2);
    let (now, wall) = (world.now(), world.wall(0));
    let epoch =
        world.users[0].trust.session().times().epoch_of(world.users[0].trust.session().times().interval_at(wall));
    let record = EpochRecord {
        identity: stolen.identity,
        descriptor: *stolen.hash(),
        revision,
        epoch,
        draw,
        setup: SetupKey::generate(Suite::X25519, Secret::new([9; 32])).public(),
    };
    let record = record.sign(world.users[0].trust.session().chain(), &identity(102));
    let _ = world.hops[0].trust.take_descriptor(2, stolen, now, wall);
    let len = world.shape.control_content(Direction::Backward, 2);
    for mut part in cut(ItemKind::Record(2), record.travelling(), len) {
        part.resize(len, 0);
        world.hops[0].trust.take(now, wall, DOWN, &part).unwrap();
    }
}

#[test]
fn records_of_a_thief_do_not_make_a_hop_publish_without_end() {
    for (revision, draw) in [(1, NUMBER_END - 1), (9, 5)] {
        let mut world = World::new(3, Class::L, (1, 10), 0.0);
        world.add_user(0);
        world.run(3000);
        publish_for_hop_2(&mut world, revision, draw);
        let before = world.saves;
        world.run(2000);
        assert!(world.saves - before < 30, "{} states written in 2 s", world.saves - before);
        // In the next epoch but one the hop's own records are the only ones again.
        world.run(20_000);
        world.time_to_bundle(0, 5000);
        world.assert_nobody_signed_twice();
        assert!(world.hops[1].disk.last_draw < NUMBER_END / 2);
    }
}

#[test]
fn renewed_descriptor_ends_the_draws_of_a_thief() {
    let mut world = World::new(3, Class::L, (1, 3600), 0.0);
    world.add_user(0);
    world.run(3000);
    publish_for_hop_2(&mut world, 1, NUMBER_END / 2);
    world.run(2000);
    // Its own record has a draw by its clock again, far below, and counts by its revision.
    let renewed = signed(NodeDescriptor { revision: 9, ..node(2, 3) }, 2);
    let (now, wall) = (world.now(), world.wall(0));
    world.hops[1].trust.take_descriptor(2, renewed, now, wall).unwrap();
    world.run(3000);
    world.time_to_bundle(0, 1000);
    let (now, wall) = (world.now(), world.wall(0));
    assert_eq!(world.users[0].trust.bundle(now, wall, now).unwrap().records[1].revision, 9);
    world.assert_nobody_signed_twice();
}
