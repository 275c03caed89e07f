//! An entry's way to Mix 1, its bundles, and a Mix 1 that shows it others.

use super::*;

/// The events with which links of a node towards the next hop came up, or went down.
fn down_links(world: &World, node: usize, are_up: bool) -> usize {
    world.node(node).saw(|event| match event {
        Event::LinkUp { side: Side::Down, .. } => are_up,
        Event::LinkDown { side: Side::Down, .. } => !are_up,
        _ => false,
    })
}

#[test]
fn entry_forgets_its_way_to_mix_1_when_a_link_has_ended() {
    let mut world = World::empty(Plan::new(Class::L, 1));
    let second = ([10, 9, 9, 1], 1000).into();
    world.plan.descriptors[0].contacts[0].addresses.push(second);
    (1..=2).for_each(|at| world.start(at));
    world.nodes.get_mut(&1).unwrap().up_address = second;
    world.start(0);
    world.run_for(secs(5));
    assert!(world.has_channels(0, 4), "by its second way");
    let resolved = ([10, 9, 9, 9], 1000).into();
    world.nodes.get_mut(&0).unwrap().control.resolved(world.now, 0, vec![resolved]);

    world.stop(1);
    let limit = world.now + secs(200);
    assert!(world.run_until(limit, |w| down_links(w, 0, false) == 1));
    assert!(world.node(0).control.classes[0].cx.contacts.all_addresses().eq([up_address(1), second]));
    world.record.clear();
    world.run_for(secs(2));
    let sent: Vec<_> = world.record.iter().filter(|packet| is_handshake_len(packet.bytes.len())).collect();
    assert_eq!(sent[0].to, up_address(1), "a new link does not show the way of the last one");
}

#[test]
fn entry_resolves_the_names_of_all_descriptors_of_mix_1() {
    let mut world = World::empty(Plan::new(Class::L, 1));
    let [old, both, new] = ["old.example.org", "mix1.example.org", "new.example.org"].map(|name| (name.into(), 1000));
    world.plan.descriptors[0].contacts[0].names = vec![both.clone(), old.clone()];
    world.start(0);
    let newer = &mut world.plan.descriptors[0];
    newer.revision += 1;
    newer.contacts[0].names = vec![new.clone(), both.clone()];
    let (now, newer) = (world.now, world.plan.signed(1));
    world.nodes.get_mut(&0).unwrap().control.load_descriptor(now, newer).unwrap();
    world.run_for(secs(1));
    assert_eq!(world.node(0).control.classes[0].cx.contacts.names, [both, old, new]);
}

#[test]
fn no_setup_for_the_last_links_bundle_leaves_on_a_new_link() {
    let mut world = World::empty(Plan::new(Class::L, 2));
    world.run_for(secs(1));
    (0..=3).for_each(|at| world.start(at));
    world.run_for(secs(4));
    // No handshake of the entry arrives, but cells do, until the link is too old in the middle of an interval.
    world.tap =
        Box::new(|_, p| if p.to == up_address(1) && is_handshake_len(p.bytes.len()) { Fate::Lose } else { Fate::Pass });
    world.run_for(ms(175_100));
    for channel in world.node(0).channels.keys().copied().collect::<Vec<_>>() {
        world.end(0, channel, EndReason::Lost);
    }
    world.run_for(ms(700));
    assert!(world.has_channels(0, 4), "with this interval's bundle");
    let limit = world.now + secs(5);
    assert!(world.run_until(limit, |w| down_links(w, 0, false) == 1));
    world.tap = Box::new(|_, _| Fate::Pass);
    let (ended, before) = (world.now, world.node(0).control.class(0).counters().setups);
    assert!(world.run_until(ended + secs(8), |w| down_links(w, 0, true) == 2));
    assert_eq!(
        (ended.as_secs() / 10, world.node(0).control.class(0).counters().setups),
        (world.now.as_secs() / 10, before)
    );
    let limit = world.now + secs(2);
    assert!(world.run_until(limit, |w| w.has_channels(0, 4)));
}

/// Mix 1 sends an item to an entry as its own control never would. It arrives whatever the tap does.
fn misuse_trust(world: &mut World, link: LinkId, kind: ItemKind, item: &[u8]) {
    let (now, shape) = (world.now, world.plan.shape);
    let tap = std::mem::replace(&mut world.tap, Box::new(|_, _| Fate::Pass));
    let ClassControl { cx, links, .. } = &mut world.nodes.get_mut(&1).unwrap().control.classes[0];
    for part in message::cut(kind, item, shape.payload()) {
        links.inject_trust(cx, now, link, &part);
    }
    world.input(1, Input::Activity { link, received: false, sent: true });
    world.tap = tap;
}

/// What a corrupt Mix 1 makes of a bundle for one entry: records with setup keys of its own, and the signatures that it
/// can have. All but those of others are valid.
fn own_bundles(world: &World, interval: u64, setup: &SetupPublic) -> (Vec<SignedRecord>, Vec<Signatures>) {
    let view = world.node(1).control.view();
    let signer = Signer::from_seed(&world.plan.keys[1][0].signing);
    let genuine = view.complete(interval).expect("it is up").clone();
    let honest = genuine.records[0].content().clone();
    let mut records: Vec<SignedRecord> = genuine.records.iter().map(|record| SignedRecord::clone(record)).collect();
    records[0] = EpochRecord { draw: honest.draw + 1, setup: setup.clone(), ..honest }.sign(view.chain(), &signer);
    let held: Vec<&SignedRecord> = records.iter().collect();
    let mut own = Signatures::new(view.chain(), interval, &held);
    own.signatures[0] = Some(bundle::sign(&signer, &own.hash));
    let mut borrowed = own.clone();
    borrowed.signatures[1..].clone_from_slice(&genuine.signatures.signatures[1..]);
    // The hash that everyone signed, over other records.
    let mut renamed = genuine.signatures.clone();
    renamed.records.clone_from(&own.records);
    let mut everyone = own.clone();
    everyone.signatures.fill(own.signatures[0]);
    (records, vec![borrowed, renamed, everyone, own])
}

#[test]
fn mix_1_that_shows_entries_different_keys_gives_them_none() {
    for answers in [true, false] {
        let mut world = up(Class::L, 2);
        // Another entry comes, and Mix 1 shows it keys that nobody else has.
        let before: Vec<LinkId> = world.node(1).links.keys().copied().collect();
        let (up_at, down_at) = (([6, 6, 6, 6], 1).into(), ([6, 6, 6, 7], 1).into());
        if !answers {
            // What its honest control would send is lost.
            let cell_to_victim = move |p: &crate::sim::Packet| p.to == down_at && !is_handshake_len(p.bytes.len());
            world.tap = Box::new(move |_, p| if cell_to_victim(p) { Fate::Lose } else { Fate::Pass });
        }
        world.start_as(100, 0, up_at, down_at);
        let link = |w: &World| w.node(1).links.keys().copied().find(|link| !before.contains(link));
        let limit = world.now + secs(5);
        assert!(world.run_until(limit, |w| link(w).is_some() && w.node(100).has_link(Side::Down)));
        let victim = link(&world).expect("it is there");
        let setup = SetupKey::generate(world.plan.terms.suite, Secret::new([0x66; 32])).public();
        let (start, mut has_seen) = (world.now, false);
        while world.now < start + secs(8) {
            let interval = world.node(1).control.trust_status(world.now).interval;
            if world.node(1).control.view().complete(interval).is_some() {
                let (records, all) = own_bundles(&world, interval, &setup);
                for hop in 1..=3 {
                    let descriptor = world.plan.signed(hop);
                    misuse_trust(&mut world, victim, ItemKind::Descriptor(hop as u8), descriptor.bytes());
                }
                for (hop, record) in (1..).zip(&records) {
                    misuse_trust(&mut world, victim, ItemKind::Record(hop), record.travelling());
                }
                for signatures in all {
                    misuse_trust(&mut world, victim, ItemKind::Signatures, &signatures.to_bytes());
                }
            }
            world.run_for(ms(200));
            let view = world.node(100).control.bundles();
            has_seen |= view.bundles(interval).iter().any(|bundle| bundle.records[0].setup == setup);
            let bundles = view.bundles(interval).iter().filter(|bundle| bundle.signatures.is_complete());
            let signed = |hop: usize| State::read(&world.disks[&hop]).unwrap().hop.intervals.hash(interval);
            bundles.for_each(|bundle| assert!((2..=3).all(|honest| signed(honest) == Some(bundle.hash()))));
        }
        assert!(has_seen, "Mix 1 has signed them, and the entry has taken its signature");
        assert_eq!(!world.node(100).channels.is_empty(), answers, "channels come with everyone's keys only");
        for channel in world.node(100).channels.keys() {
            assert!(world.agrees(100, *channel));
        }
    }
}
