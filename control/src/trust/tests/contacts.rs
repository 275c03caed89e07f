//! Descriptors of Mix 1 at an entry: which count for contact, and what the entry shows of them.

use super::*;

#[test]
fn descriptor_that_no_bundle_names_is_no_contact() {
    let mut world = World::new(3, Class::L, (1, 10), 0.0);
    world.add_user(0);
    world.run(2000);
    // Mix 1 gives this user a descriptor of its own that nobody else has, to recognise him by it later.
    let only_his = signed(NodeDescriptor { revision: 99, ..node(1, 3) }, 1);
    let (now, wall) = (world.now(), world.wall(0));
    for mut part in cut(ItemKind::Descriptor(1), only_his.bytes(), world.shape.payload()) {
        part.resize(world.shape.payload(), 0);
        world.users[0].trust.take(now, wall, DOWN, &part).unwrap();
    }
    world.run(5000);
    assert!(world.users[0].had.len() > 5, "bundles come on");
    assert_eq!(contact_revisions(&world), [1, 1, 1]);
}

/// The newest revision of each hop that the first entry uses for contact and has on disk.
fn contact_revisions(world: &World) -> Vec<u64> {
    let durable = world.users[0].trust.durable();
    let revisions: Vec<u64> = (1..=world.hops.len()).map(|hop| durable.descriptor(hop).unwrap().revision).collect();
    let state = State::of(durable, HopState::default());
    let on_disk = |hop: usize| {
        let all = state.descriptors.iter().filter(|one| one.identity == world.terms.identities[hop - 1]);
        all.map(|one| one.revision).max().unwrap()
    };
    assert!(revisions.iter().zip(1..).all(|(revision, hop)| *revision == on_disk(hop)));
    revisions
}

/// Hop 1 has another descriptor, which revokes all before it.
fn renew_mix_1(world: &mut World, revision: u64) {
    let renewed = signed(NodeDescriptor { revision, floor: revision, ..node(1, world.hops.len()) }, 1);
    let (now, wall) = (world.now(), world.wall(0));
    world.hops[0].trust.take_descriptor(1, renewed, now, wall).unwrap();
}

#[test]
fn descriptor_is_a_contact_after_bundles_an_epoch_apart() {
    let mut world = World::new(3, Class::L, (1, 10), 0.0);
    world.add_user(0);
    world.run(2000);
    renew_mix_1(&mut world, 9);
    world.run(2000);
    assert_eq!(world.users[0].trust.session().descriptor(1).unwrap().revision, 9);
    // It certifies at once, and neither it nor its floor counts for anything else.
    world.run(7000);
    assert_eq!((contact_revisions(&world), world.users[0].trust.durable().floor(1)), (vec![1, 1, 1], 0));
    world.run(3000);
    assert_eq!((contact_revisions(&world), world.users[0].trust.durable().floor(1)), (vec![9, 1, 1], 9));
    world.time_to_bundle(0, 1000);
}

#[test]
fn descriptor_replaced_within_an_epoch_is_no_contact() {
    let mut world = World::new(3, Class::L, (1, 10), 0.0);
    world.add_user(0);
    world.run(2000);
    // Whoever joins within some seconds would have a contact of his own.
    for revision in 10..15 {
        renew_mix_1(&mut world, revision);
        world.run(6000);
        assert_eq!(world.users[0].trust.session().descriptor(1).unwrap().revision, revision);
        assert_eq!((contact_revisions(&world), world.users[0].trust.durable().floor(1)), (vec![1, 1, 1], 0));
    }
    world.run(7000);
    assert_eq!(contact_revisions(&world), [14, 1, 1]);
}

#[test]
fn interval_without_a_bundle_lets_descriptors_wait_again() {
    let mut world = World::new(3, Class::L, (1, 10), 0.0);
    world.add_user(0);
    world.run(2000);
    renew_mix_1(&mut world, 9);
    world.run(4000);
    // Mix 1 withholds bundles from this user alone.
    world.users[0].trust.link_down(DOWN);
    world.run(2100);
    let (now, content) = (world.now(), world.shape.control_content(Direction::Forward, 1));
    world.users[0].trust.link_up(DOWN, content, now);
    // More than an epoch after the first bundle that named it.
    world.run(7900);
    assert_eq!(contact_revisions(&world), [1, 1, 1]);
    world.run(5000);
    assert_eq!(contact_revisions(&world), [9, 1, 1]);
}

#[test]
fn descriptor_below_the_newest_contact_is_no_contact() {
    let mut world = World::new(3, Class::L, (1, 10), 0.0);
    world.add_user(0);
    world.run(2000);
    let from_a_file = signed(NodeDescriptor { revision: 20, ..node(1, 3) }, 1);
    let wall = world.wall(0);
    world.users[0].trust.take_descriptor(1, from_a_file, wall).unwrap();
    // It would be the first one that is tried.
    renew_mix_1(&mut world, 9);
    world.run(15_000);
    assert_eq!(world.users[0].trust.session().descriptor(1).unwrap().revision, 9);
    let durable = world.users[0].trust.durable();
    let revisions: Vec<u64> = durable.descriptors(1).iter().map(|one| one.revision).collect();
    assert_eq!((revisions, durable.floor(1)), (vec![20, 1], 0));
}

#[test]
fn bundle_that_files_revoke_is_not_used_nor_asked_for_again() {
    let mut world = World::new(3, Class::L, (10, 3600), 0.0);
    (0..2).for_each(|_| world.add_user(0));
    let revoking = signed(NodeDescriptor { revision: 9, floor: 9, ..node(3, 3) }, 3);
    let wall = world.wall(0);
    world.users[0].trust.take_descriptor(3, revoking, wall).unwrap();
    world.run(2000);
    let (now, wall) = (world.now(), world.wall(0));
    let [user, other] = [0, 1].map(|user| {
        let trust = &mut world.users[user].trust;
        let is_usable = trust.bundle(now, wall, now).is_some();
        trust.tick(now, (wall, wall));
        (is_usable, trust.steps().len())
    });
    assert_eq!((user, other), ((false, 0), (true, 0)), "nobody asks any more");
}

/// What an entry sends on a new link on which these items come, one every 300 ms.
fn shown_on_a_new_link(world: &World, trust: &mut UserTrust, items: &[(ItemKind, Vec<u8>)]) -> Vec<Vec<u8>> {
    let (mut now, mut wall) = (world.now(), world.wall(0));
    let new = LinkId(77);
    trust.link_down(DOWN);
    trust.steps();
    trust.link_up(new, world.shape.control_content(Direction::Forward, 1), now);
    let mut shown = Vec::new();
    for (kind, item) in items {
        for mut part in cut(*kind, item, world.shape.payload()) {
            part.resize(world.shape.payload(), 0);
            let _ = trust.take(now, wall, new, &part);
        }
        trust.bundle(now, wall, now);
        trust.tick(now, (wall, wall));
        shown.extend(trust.steps().into_iter().filter_map(|step| match step {
            Step::Send(link, content) => Some((link, content)),
            _ => None,
        }));
        (now, wall) = (now + Duration::from_millis(300), wall + 300);
    }
    assert!(shown.iter().all(|(link, content)| *link == new && content[0] == ASK));
    shown.into_iter().map(|(_, content)| content).collect()
}

/// Lets an entry have items on the link that it has.
fn give(world: &mut World, user: usize, items: &[(ItemKind, Vec<u8>)]) {
    let (now, wall) = (world.now(), world.wall(0));
    for (kind, item) in items {
        for mut part in cut(*kind, item, world.shape.payload()) {
            part.resize(world.shape.payload(), 0);
            let _ = world.users[user].trust.take(now, wall, DOWN, &part);
        }
    }
}

fn item(descriptor: &SignedDescriptor, hop: u8) -> (ItemKind, Vec<u8>) {
    (ItemKind::Descriptor(hop), descriptor.bytes().to_vec())
}

/// Entries with different pasts get the same items on a new link, and show the same there.
fn assert_shown_alike(world: &World, mut trusts: Vec<UserTrust>, items: &[(ItemKind, Vec<u8>)]) -> Vec<Ask> {
    let mut all: Vec<_> = trusts.iter_mut().map(|trust| shown_on_a_new_link(world, trust, items)).collect();
    let first = all.pop().unwrap();
    assert!(first.len() > 1 && all.iter().all(|other| *other == first));
    first.iter().map(|ask| Ask::read(ask, world.hops.len()).unwrap()).collect()
}

#[test]
fn entry_shows_on_a_link_only_what_came_on_it() {
    let mut world = World::new(3, Class::L, (10, 3600), 0.0);
    // One has been on another link, one has a newer descriptor from a file, one starts.
    (0..2).for_each(|_| world.add_user(0));
    world.run(2000);
    let newer = signed(NodeDescriptor { revision: 9, ..node(2, 3) }, 2);
    let wall = world.wall(0);
    world.users[1].trust.take_descriptor(2, newer, wall).unwrap();
    world.add_user(0);
    let view = world.hops[0].trust.view();
    let bundle = view.complete(view.times().interval_at(wall)).unwrap().clone();
    let mut items = vec![(ItemKind::Clock, wall.to_be_bytes().to_vec())];
    // Altered, and so refused; then as everyone has them.
    let mut altered = item(&bundle.descriptors[1], 2);
    *altered.1.last_mut().unwrap() ^= 1;
    items.push(altered);
    items.extend((1..).zip(&bundle.descriptors).map(|(hop, descriptor)| item(descriptor, hop)));
    let record = |(hop, record): (u8, &SignedRecord)| (ItemKind::Record(hop), record.travelling().to_vec());
    items.extend((1..).zip(bundle.records.iter().map(|record| &**record)).map(record));
    let mut some = bundle.signatures.clone();
    some.signatures[2] = None;
    items.push((ItemKind::Signatures, some.to_bytes()));
    items.push((ItemKind::Signatures, bundle.signatures.to_bytes()));

    let trusts = std::mem::take(&mut world.users).into_iter().map(|user| user.trust).collect();
    let asks = assert_shown_alike(&world, trusts, &items);
    assert!(asks[0].held.iter().all(|held| *held == Held::default()) && asks[0].signatures == 0);
    let last = asks.last().unwrap();
    assert!(last.held.iter().all(|held| held.revision == 1 && held.draw > 0) && last.signatures == 0b011);
    assert!(asks.iter().all(|ask| ask.clock_ms == 0));
}

#[test]
fn entry_does_not_show_which_descriptors_it_has() {
    let mut world = World::new(3, Class::L, (10, 3600), 0.0);
    (0..3).for_each(|_| world.add_user(0));
    world.run(2000);
    // A label of the first entry: it has it for contact. The second one has it from its link.
    let label = signed(NodeDescriptor { revision: 9, ..node(1, 3) }, 1);
    let wall = world.wall(0);
    world.users[0].trust.take_descriptor(1, label.clone(), wall).unwrap();
    give(&mut world, 1, &[item(&label, 1)]);
    let view = world.hops[0].trust.view();
    let (chain, epoch) = (*view.chain(), view.times().epoch_of(view.times().interval_at(wall)));
    let record = EpochRecord {
        identity: label.identity,
        descriptor: *label.hash(),
        revision: 9,
        epoch,
        draw: wall / 1000 + 50,
        setup: SetupPublic::new([9; 32], None).unwrap(),
    };
    let record = record.sign(&chain, &identity(101));
    // Mix 1 sends a record under it, and not the descriptor.
    let probe = (ItemKind::Record(1), record.travelling().to_vec());
    let trusts = std::mem::take(&mut world.users).into_iter().map(|user| user.trust).collect();
    let asks = assert_shown_alike(&world, trusts, &[probe.clone(), probe]);
    assert!(asks.iter().all(|ask| ask.held[0] == Held::default()));
}

#[test]
fn items_of_one_link_use_up_no_share_of_the_next() {
    let mut world = World::new(3, Class::L, (10, 3600), 0.0);
    (0..2).for_each(|_| world.add_user(0));
    world.run(2000);
    let at = |revision| item(&signed(NodeDescriptor { revision, ..node(1, 3) }, 1), 1);
    // As many new descriptors as there may be in an epoch.
    give(&mut world, 0, &(10..20).map(at).collect::<Vec<_>>());
    let trusts = std::mem::take(&mut world.users).into_iter().map(|user| user.trust).collect();
    let asks = assert_shown_alike(&world, trusts, &[at(30), at(31)]);
    assert_eq!(asks[1].held[0].revision, 31);
}
