//! Attack: a neighbour with valid keys sends cells that it may not send.

use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use wire::cell::{CellKind, Class, Direction};
use wire::handshake::is_handshake_len;
use wire::ids::{ChannelIndex, EndReason, LinkId, Side};
use wire::kdf::Secret;
use wire::link::LinkContent;
use wire::setup::{self, EntryShare, HopPublic, Info, SetupKey, SetupPublic, Suite};

use crate::channel::Use;
use crate::context::Context;
use crate::cookie::Answer;
use crate::datagram::{self, Mac1Key};
use crate::draw::draw_secret;
use crate::link::Outgoing;
use crate::sim::{Fate, Plan, World, losing, ms, secs, up_address};
use crate::trust::bundle::{self, Signatures};
use crate::trust::message::{self, ItemKind};
use crate::trust::{EpochRecord, SignedRecord, Signer, State, View};
use crate::{BadConfig, Config, Control, Event, Input, Part, Refusal, TrustSetup};

fn up(class: Class, mixes: usize) -> World {
    let mut world = World::new(Plan::new(class, mixes));
    world.run_for(secs(3));
    assert!(world.has_channels(0, 4));
    world
}

/// Lets a node seal and send any content on its link of this side.
fn misuse(world: &mut World, from: usize, side: Side, kind: CellKind, channel: u32, sub: u8, content: &[u8]) {
    let now = world.now;
    let link = world.node(from).link(side).0;
    world.nodes.get_mut(&from).unwrap().honest = false;
    let Control { cx, links, .. } = &mut world.nodes.get_mut(&from).unwrap().control;
    assert!(links.inject(cx, now, link, &Outgoing { kind, channel, sub, content, at_once: false }));
    // Any input lets the world take the outputs.
    world.input(from, Input::Activity { link, received: false, sent: true });
}

/// The setup keys that the entry uses.
fn setup_keys(world: &World) -> &[HopPublic] {
    let Part::Entry(entry, _) = &world.node(0).control.part else { panic!("node 0 is an entry") };
    entry.setup_keys()
}

fn onion(world: &World, info: Info, seed: u64) -> Vec<u8> {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let (plan, hops) = (&world.plan, setup_keys(world));
    let shares: Vec<EntryShare> = hops.iter().map(|hop| hop.setup.share(draw_secret(&mut rng))).collect();
    setup::build(plan.shape, hops, shares, info).unwrap().0
}

/// Lets the entry send this onion in the cells of this channel, but for the last `less` of them.
fn misuse_setup(world: &mut World, channel: u32, onion: &[u8], less: usize) {
    let shape = world.plan.shape;
    let mut shards: Vec<Vec<u8>> =
        onion.chunks(shape.control_content(Direction::Forward, 1)).map(<[u8]>::to_vec).collect();
    shards.last_mut().unwrap().resize(shape.control_content(Direction::Forward, 1), 9);
    setup::shards(shape, Suite::default(), 1).encode(&mut shards);
    for (sub, content) in shards.iter().enumerate().take(shards.len() - less) {
        misuse(world, 0, Side::Down, CellKind::Setup, channel, sub as u8, content);
    }
}

const INFO: Info = Info { suite: Suite::Hybrid, class: Class::L, lifetime_s: 3600, first: 0 };

#[test]
fn setup_opens_once_on_any_channel() {
    let mut world = up(Class::L, 2);
    let onion = onion(&world, INFO, 5);
    misuse_setup(&mut world, 1, &onion, 0);
    world.run_for(secs(3));
    assert_eq!(world.node(3).control.open_channels(), 5);
    for (channel, why) in [(1, Refusal::ChannelInUse), (2, Refusal::SetupReplayed), (3, Refusal::SetupReplayed)] {
        let before = world.refused(1, why);
        // No parity: a channel in use refuses each shard, a replay the last one that it needs.
        misuse_setup(&mut world, channel, &onion, 3);
        world.run_for(secs(1));
        let shards = if channel == 1 { 3 } else { 1 };
        assert_eq!(world.refused(1, why), before + shards);
    }
    assert_eq!(world.node(3).control.open_channels(), 5);
}

#[test]
fn setup_with_an_unusual_field_is_dropped() {
    let mut world = up(Class::L, 2);
    for (channel, info) in
        [(1, Info { lifetime_s: 3599, ..INFO }), (2, Info { first: 1, ..INFO }), (3, Info { class: Class::S, ..INFO })]
    {
        let bad = onion(&world, info, 7);
        misuse_setup(&mut world, channel, &bad, 0);
        world.run_for(secs(1));
    }
    assert_eq!(world.refused(1, Refusal::SetupInvalid), 3);
    assert_eq!(world.node(1).control.open_channels(), 4);
}

#[test]
fn setup_before_the_next_hop_is_up_is_refused_after_1_s() {
    let mut world = World::empty(Plan::new(Class::S, 2));
    world.start(1);
    world.start(0);
    world.run_for(ms(900));
    let onion = vec![5; setup::onion_len(world.plan.shape, Suite::default(), 1)];
    misuse_setup(&mut world, 1, &onion, 0);
    world.run_for(ms(50));
    assert_eq!(world.node(1).control.counters().refused_total(), 0, "the nodes of a chain start in any order");
    world.run_for(secs(2));
    misuse_setup(&mut world, 2, &onion, 0);
    world.run_for(ms(50));
    assert_eq!(world.refused(1, Refusal::NextHopDown), 1);
}

#[test]
fn eight_incomplete_setups_wait_for_two_seconds() {
    let mut world = up(Class::S, 7);
    let content = vec![3; world.plan.shape.control_content(Direction::Forward, 1)];
    for channel in 1..=9 {
        misuse(&mut world, 0, Side::Down, CellKind::Setup, channel, 0, &content);
    }
    misuse(&mut world, 0, Side::Down, CellKind::Setup, 9, 0, &content);
    misuse(&mut world, 0, Side::Down, CellKind::Setup, 9, 37, &content);
    world.run_for(ms(100));
    assert_eq!(world.refused(1, Refusal::SetupIncomplete), 1, "the ninth takes the oldest one's place");
    assert_eq!(world.refused(1, Refusal::FragmentMalformed), 2, "a piece twice, a piece that none has");
    world.run_for(secs(3));
    misuse(&mut world, 0, Side::Down, CellKind::Setup, 20, 1, &content);
    world.run_for(ms(100));
    assert_eq!(world.refused(1, Refusal::SetupIncomplete), 9);
    assert_eq!(world.refused(1, Refusal::SetupInvalid), 0);
}

#[test]
fn link_between_hops_holds_256_incomplete_setups() {
    let mut world = up(Class::S, 2);
    let content = vec![3; world.plan.shape.control_content(Direction::Forward, 2)];
    for channel in 1..=257 {
        misuse(&mut world, 1, Side::Down, CellKind::Setup, channel, 0, &content);
    }
    world.run_for(ms(100));
    assert_eq!(world.refused(2, Refusal::SetupIncomplete), 1, "the last takes the oldest one's place");
}

#[test]
fn shards_after_the_decision_are_surplus() {
    let mut world = up(Class::L, 2);
    let shards = setup::shards(world.plan.shape, Suite::default(), 1);
    assert_eq!((shards.data, shards.parity), (3, 3));
    let surplus = |w: &World| w.node(1).control.counters().surplus_cells;
    let before = surplus(&world);
    // Accepted, refused, and refused again: each is decided by three shards, and three are too many.
    let good = onion(&world, INFO, 5);
    let mut forged = good.clone();
    forged[40] ^= 1;
    for (number, (channel, onion)) in (1..).zip([(1, &good), (2, &forged), (3, &good)]) {
        misuse_setup(&mut world, channel, onion, 0);
        world.run_for(ms(200));
        // Two of the three ack cells of the accepted one are surplus, too.
        assert_eq!(surplus(&world), before + 2 + 3 * number);
    }
    let refused = [Refusal::SetupInvalid, Refusal::SetupReplayed].map(|why| world.refused(1, why));
    assert_eq!((refused, world.node(1).control.counters().refused_total()), ([1, 1], 2));
    assert_eq!(world.refused(1, Refusal::SetupIncomplete), 0);
    // After two seconds nothing remembers them: a shard starts another setup, or names a live channel.
    world.run_for(secs(2));
    let content = vec![3; world.plan.shape.control_content(Direction::Forward, 1)];
    misuse(&mut world, 0, Side::Down, CellKind::Setup, 1, 5, &content);
    misuse(&mut world, 0, Side::Down, CellKind::Setup, 2, 5, &content);
    world.run_for(ms(100));
    assert_eq!((surplus(&world), world.refused(1, Refusal::ChannelInUse)), (before + 11, 1));
}

#[test]
fn replayed_cell_is_refused_and_forged_cell_not_marked_seen() {
    let mut world = up(Class::L, 1);
    let start = world.now;
    world.record.clear();
    let cell = |w: &World| w.record.iter().find(|p| p.to == up_address(1) && p.bytes.len() > 1300).cloned();
    assert!(world.run_until(start + secs(3), |w| cell(w).is_some()));
    // The genuine cell is in flight. A copy with its header and a garbage body overtakes it.
    let real = cell(&world).unwrap();
    let mut forged = real.bytes.clone();
    forged[100] ^= 1;
    world.deliver_now(&real, forged);
    assert_eq!(world.refused(1, Refusal::CellForged), 1);
    let accepted = world.node(1).control.counters().cells;
    world.deliver_now(&real, real.bytes.clone());
    assert_eq!(world.node(1).control.counters().cells, accepted + 1);
    world.deliver_now(&real, real.bytes.clone());
    assert_eq!(world.refused(1, Refusal::CellReplayed), 1);
}

#[test]
fn control_can_move_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<Control>();
}

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
    world.nodes.get_mut(&0).unwrap().control.resolved(world.now, vec![resolved]);

    world.stop(1);
    let limit = world.now + secs(200);
    assert!(world.run_until(limit, |w| down_links(w, 0, false) == 1));
    assert!(world.node(0).control.cx.contacts.all_addresses().eq([up_address(1), second]));
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
    assert_eq!(world.node(0).control.cx.contacts.names, [both, old, new]);
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
    let (ended, before) = (world.now, world.node(0).control.counters().setups);
    assert!(world.run_until(ended + secs(8), |w| down_links(w, 0, true) == 2));
    assert_eq!((ended.as_secs() / 10, world.node(0).control.counters().setups), (world.now.as_secs() / 10, before));
    let limit = world.now + secs(2);
    assert!(world.run_until(limit, |w| w.has_channels(0, 4)));
}

/// Mix 1 sends an item to an entry as its own control never would. It arrives whatever the tap does.
fn misuse_trust(world: &mut World, link: LinkId, kind: ItemKind, item: &[u8]) {
    let (now, shape) = (world.now, world.plan.shape);
    let tap = std::mem::replace(&mut world.tap, Box::new(|_, _| Fate::Pass));
    let Control { cx, links, .. } = &mut world.nodes.get_mut(&1).unwrap().control;
    for part in message::cut(kind, item, shape.payload()) {
        links.inject_trust(cx, now, link, part);
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

#[test]
fn ack_passes_a_mix_once_and_only_if_awaited() {
    let mut world = up(Class::L, 2);
    let content = vec![3; world.plan.shape.payload()];
    // The exit acknowledges an open channel again, then an unknown one, then sends part 1 of an ack with one part.
    let open = world.node(3).channels.values().next().unwrap().up.unwrap().1;
    let before = world.node(2).control.counters().surplus_cells;
    for (channel, sub) in [(open, 0), (12345, 0), (open, 1)] {
        misuse(&mut world, 3, Side::Up, CellKind::Ack, channel, sub, &content);
    }
    world.run_for(secs(1));
    assert_eq!(world.refused(2, Refusal::UnexpectedAck), 2);
    assert_eq!(world.node(2).control.counters().surplus_cells, before + 1, "a copy for an open channel");
    assert_eq!(world.refused(1, Refusal::UnexpectedAck), 0, "nothing came through");
}

/// A chain whose exit's cells are lost from the first setup on, so that channels stay half-open.
fn without_acks(class: Class, mixes: usize) -> World {
    let mut world = World::new(Plan::new(class, mixes));
    let start = world.now;
    assert!(world.run_until(start + secs(2), |w| !w.node(mixes + 1).channels.is_empty()));
    world.lose_flight(up_address(mixes + 1));
    world.tap = Box::new(move |_, packet| {
        let lost = packet.from == up_address(mixes + 1) && !is_handshake_len(packet.bytes.len());
        if lost { Fate::Lose } else { Fate::Pass }
    });
    // The exit's other ack cells are lost, too.
    world.run_for(ms(100));
    world
}

#[test]
fn each_ack_part_passes_once_so_no_keystream_repeats() {
    // Eight hops of class S have two parts.
    let mut world = without_acks(Class::S, 7);
    let half_open = *world.nodes[&8].channels.values().next().map(|c| c.up.as_ref().unwrap()).unwrap();
    world.tap = Box::new(|_, _| Fate::Pass);
    let content = vec![3; world.plan.shape.payload()];
    let surplus = |w: &World| w.node(7).control.counters().surplus_cells;
    let sent = |w: &World| w.record.iter().filter(|p| p.from == up_address(7)).count();
    let (before, sent_before) = (surplus(&world), sent(&world));
    for _ in 0..3 {
        misuse(&mut world, 8, Side::Up, CellKind::Ack, half_open.1, 0, &content);
    }
    world.run_for(ms(100));
    assert_eq!(surplus(&world), before + 2);
    assert_eq!(sent(&world), sent_before + 3, "one content, in three cells");
    // There is no part 2, and acks do not come from the entry's side.
    misuse(&mut world, 8, Side::Up, CellKind::Ack, half_open.1, 2, &content);
    let up = world.node(7).control.channels.half_open_ids()[0];
    let content = vec![3; world.plan.shape.control_content(Direction::Forward, 7)];
    misuse(&mut world, 6, Side::Down, CellKind::Ack, up, 1, &content);
    world.run_for(ms(40));
    assert_eq!((world.refused(7, Refusal::UnexpectedAck), world.refused(7, Refusal::CellMalformed)), (1, 1));
}

#[test]
fn entry_takes_the_first_copy_of_an_ack_part() {
    let mut world = without_acks(Class::S, 7);
    let waits = world.node(1).control.channels.half_open_ids()[0];
    let content = vec![3; world.plan.shape.control_content(Direction::Backward, 1)];
    for (sub, surplus, refused) in [(0, 0, 0), (0, 1, 0), (2, 1, 1)] {
        misuse(&mut world, 1, Side::Up, CellKind::Ack, waits, sub, &content);
        world.run_for(ms(40));
        assert_eq!(world.refused(0, Refusal::UnexpectedAck), refused, "content {sub} of 0 and 1");
        assert_eq!(world.node(0).control.counters().surplus_cells, surplus, "content {sub} of 0 and 1");
    }
    misuse(&mut world, 1, Side::Up, CellKind::Ack, waits, 1, &content);
    world.run_for(ms(40));
    assert_eq!((world.refused(0, Refusal::UnexpectedAck), world.refused(0, Refusal::AckInvalid)), (1, 1));
}

#[test]
fn channel_that_ends_twice_frees_its_index_once() {
    let mut world = up(Class::L, 2);
    let channel = *world.node(0).channels.keys().next().unwrap();
    world.end(0, channel, EndReason::Lost);
    world.input(0, Input::ChannelEnded { channel, reason: EndReason::Lost });
    assert_eq!(world.node(0).saw(|event| matches!(event, Event::ChannelClosed { .. })), 1);
    world.run_for(secs(5));
    assert!(world.has_channels(0, 4));
}

#[test]
fn setup_for_a_half_open_channel_is_dropped() {
    let mut world = without_acks(Class::L, 2);
    for (seed, channel) in [(1, 7), (2, 7), (3, 8)] {
        let onion = onion(&world, INFO, seed);
        misuse_setup(&mut world, channel, &onion, 3);
        world.run_for(ms(2100));
    }
    assert_eq!(world.refused(1, Refusal::ChannelInUse), 3, "each of its shards");
}

#[test]
fn ids_of_failed_setups_become_free_again() {
    let mut world = without_acks(Class::L, 2);
    world.run_for(secs(20));
    world.stop(0);
    world.run_for(secs(180));
    world.run_for(secs(20));
    assert_eq!(world.node(1).control.half_open(), 0);
    assert_eq!(world.node(1).control.channels.id_count(), 0);

    let mut world = World::new(Plan::new(Class::L, 2));
    world.tap = losing(0.3);
    world.run_for(secs(60));
    world.tap = Box::new(|_, _| Fate::Pass);
    world.run_for(secs(100));
    world.run_for(secs(200));
    assert_eq!(world.node(0).control.open_channels(), 4);
    assert_eq!(world.node(0).control.channels.id_count(), 4);
}

#[test]
fn forged_ack_discards_the_setup_and_entry_retries() {
    let mut world = World::new(Plan::new(Class::L, 1));
    let start = world.now;
    assert!(world.run_until(start + secs(1), |w| w.node(1).control.half_open() > 0));
    let channel = *world.nodes[&1].control.channels.half_open_ids().first().unwrap();
    let content = vec![3; world.plan.shape.payload()];
    misuse(&mut world, 1, Side::Up, CellKind::Ack, channel, 0, &content);
    assert!(world.run_until(start + secs(10), |w| w.has_channels(0, 4) || w.node(0).channels.len() == 4));
    assert_eq!(world.refused(0, Refusal::AckInvalid), 1);
}

#[test]
fn id_cools_down_for_180_s_and_live_id_is_never_drawn() {
    let mut world = up(Class::L, 1);
    let (channel, id) = world.node(0).channels.iter().map(|(c, i)| (*c, i.down.unwrap())).next().unwrap();
    world.end(0, channel, EndReason::Lost);
    let used = |w: &World| w.node(0).control.channels.used_by(id);
    world.run_for(secs(179));
    assert_eq!(used(&world), Some(Use::CoolingDown));
    world.run_for(secs(2));
    assert_eq!(used(&world), None);

    // The generator repeats earlier ids. They are in use, so the next one is drawn.
    let Control { cx, channels, .. } = &mut world.nodes.get_mut(&0).unwrap().control;
    let mut ids = std::collections::HashSet::new();
    for usage in [Use::Open(ChannelIndex(0)), Use::HalfOpen(0), Use::Setup(0), Use::CoolingDown] {
        cx.rng = ChaCha20Rng::seed_from_u64(5);
        assert!(ids.insert(channels.draw_id(cx, id.0, usage)), "{usage:?}");
    }
}

#[test]
fn contradictory_configuration_names_the_contradiction() {
    let plan = Plan::new(Class::L, 2);
    let check = |position: usize, change: &dyn Fn(&mut Config, &mut TrustSetup)| {
        let (mut config, mut trust) = plan.first(position);
        change(&mut config, &mut trust);
        config.check(&trust, crate::UNIX_EPOCH + secs(1_800_000_000)).unwrap_err()
    };
    assert_eq!(check(1, &|c, _| c.position = 3), BadConfig::Position { position: 3, hops: 3 });
    assert_eq!(check(1, &|c, _| c.terms.identities.truncate(2)), BadConfig::Hops(3, 2));
    assert_eq!(check(1, &|c, _| c.terms.classes[0].class = Class::M), BadConfig::Class(Class::L));
    let nothing = |_: &mut Config, t: &mut TrustSetup| t.view = View::new(t.view.terms().clone());
    assert_eq!(check(1, &nothing), BadConfig::NoDescriptor(1));
    assert_eq!(check(0, &nothing), BadConfig::NoNextDescriptor(1));
    assert_eq!(check(1, &|_, t| t.keys.clear()), BadConfig::Keys(1));
    assert_eq!(check(1, &|_, t| t.keys[0].noise = Secret::new([1; 32])), BadConfig::Keys(1));
    let most = (1 << 26) - 512;
    let bad = check(3, &|c, _| c.caps.setups.per_second = 20_000);
    let BadConfig::ReplayCache { rate: 20_000, places: 84_400_512, rate_max } = bad else { panic!("{bad}") };
    assert!(check_rate(&plan, rate_max) && most / u64::from(rate_max) < 4221, "{rate_max}");
    assert!(matches!(check(1, &|c, _| c.timing.expire_after = c.timing.renew_after), BadConfig::Value(_)));
    assert!(matches!(check(2, &|c, _| c.caps.setups.burst = 2049), BadConfig::Value(_)));

    let mut expired = Plan::new(Class::L, 2);
    expired.descriptors[0].not_after = 1_800_000_000 - 7200;
    let (config, trust) = expired.first(1);
    assert_eq!(config.check(&trust, crate::UNIX_EPOCH + secs(1_800_000_000)), Err(BadConfig::Expired(7200)));
}

fn check_rate(plan: &Plan, rate: u32) -> bool {
    let (mut config, trust) = plan.first(3);
    config.caps.setups.per_second = rate;
    config.check(&trust, crate::UNIX_EPOCH + secs(1_800_000_000)).is_ok()
}

#[test]
fn mix_admits_setups_no_faster_than_acks_may_take() {
    let mut plan = Plan::new(Class::L, 2);
    plan.terms.classes[0].mixing_delay_ms = 1000;
    let rate = |position: usize| plan.first(position).0.setups().per_second;
    // An ack takes up to 500 ms and six times a second.
    assert_eq!((rate(1), rate(3)), ((4096 - 512) * 2 / 13, 1000));
}

#[test]
fn secrets_do_not_print() {
    let plan = Plan::new(Class::L, 1);
    let (config, trust) = plan.first(1);
    let text = format!("{config:?}");
    assert!(!text.contains("psk") && !text.contains("Secret"), "{text}");
    let bytes = format!("{:?}", trust.keys[0].noise.expose());
    assert!(!text.contains(bytes.trim_matches(['[', ']'])), "{text}");
    let mut world = World::new(Plan::new(Class::L, 1));
    world.run_for(secs(2));
    let installed = world.node(1).channels.values().next().unwrap();
    assert_eq!(format!("{:?}", installed.keys), "ChannelKeys(..)");
}

/// A chain of one mix whose entry waits for the response to its first message 1, and that response.
fn response_in_flight() -> (World, crate::sim::Packet) {
    let mut world = World::new(Plan::new(Class::L, 1));
    let is_response = |p: &crate::sim::Packet| p.from == up_address(1) && is_handshake_len(p.bytes.len());
    world.tap = Box::new(move |_, packet| if is_response(packet) { Fate::Lose } else { Fate::Pass });
    let find = |w: &World| w.record.iter().find(|p| is_response(p)).cloned();
    assert!(world.run_until(world.now + ms(400), |w| find(w).is_some()));
    let response = find(&world).unwrap();
    world.tap = Box::new(|_, _| Fate::Pass);
    (world, response)
}

#[test]
fn forged_response_keeps_the_handshake_pending() {
    let (mut world, response) = response_in_flight();
    // mac1 of message 2 is keyed by the ephemeral, which is public.
    let half = world.record.iter().find(|p| p.from == crate::sim::down_address(0)).unwrap();
    let mac1 = Mac1Key::of(half.bytes[8..40].try_into().unwrap());
    let mut noise = response.bytes[8..response.bytes.len() - 32].to_vec();
    noise[40] ^= 1;
    let index = u32::from_be_bytes(response.bytes[4..8].try_into().unwrap());
    let forged = datagram::frame(datagram::MessageKind::Response, 0, index, &noise, &mac1);
    let mut wrong_mac1 = response.bytes.clone();
    wrong_mac1[response.bytes.len() - 32] ^= 1;
    for (bytes, why) in [(wrong_mac1, Refusal::BadMac1), (forged, Refusal::HandshakeForged)] {
        world.deliver_now(&response, bytes);
        assert_eq!(world.refused(0, why), 1);
        assert!(!world.node(0).has_link(Side::Down));
    }
    world.deliver_now(&response, response.bytes.clone());
    assert!(world.node(0).has_link(Side::Down));
    assert_eq!(world.node(0).control.counters().refused_total(), 2);
}

#[test]
fn halves_are_sent_again_for_sixteen_cookies_of_a_message_1() {
    let mut world = World::empty(Plan::new(Class::L, 1));
    world.start(0);
    world.run_for(ms(10));
    let half = world.record.iter().find(|p| p.bytes[1] == 0).unwrap().clone();
    let index = u32::from_be_bytes(half.bytes[4..8].try_into().unwrap());
    let (mix1, mac1) = (world.plan.descriptors[0].noise, datagram::mac1(&half.bytes));
    let mut rng = ChaCha20Rng::seed_from_u64(3);
    let before = world.record.len();
    // Whoever sees the half can make them. Each comes twice.
    for number in 0..40 {
        let cookie = Answer::Cookie.seal(&mut rng, index, &mix1, &mac1, &[number; 16]);
        for _ in 0..2 {
            let answer = crate::sim::Packet { from: half.to, to: half.from, ..half.clone() };
            world.deliver_now(&answer, cookie.clone());
        }
    }
    assert_eq!(world.record.len() - before, 2 * 16);
    assert_eq!(world.refused(0, Refusal::UnexpectedResponse), 2 * 40 - 16);
}

#[test]
fn three_probes_of_a_handshake_are_answered() {
    let mut plan = Plan::new(Class::L, 1);
    plan.timing.renew_after = secs(20);
    let mut world = World::new(plan);
    world.run_for(secs(3));
    let mut probe = vec![0; world.plan.shape.payload()];
    probe[0] = LinkContent::Path as u8;
    let echoes =
        |w: &World| w.node(0).sent.iter().filter(|(_, kind, at_once)| *kind == CellKind::Link && *at_once).count();
    for handshake in 1..=2 {
        let renewed = |w: &World| w.node(0).saw(|e| matches!(e, Event::LinkRenewed { .. })) + 1 == handshake;
        let limit = world.now + secs(25);
        assert!(world.run_until(limit, renewed));
        let (refused, mut sent) = (world.refused(0, Refusal::CellMalformed), 0);
        for _ in 0..10 {
            misuse(&mut world, 1, Side::Up, CellKind::Link, 0, 0, &probe);
            let before = echoes(&world);
            world.run_for(ms(10));
            sent += echoes(&world) - before;
        }
        assert_eq!(world.refused(0, Refusal::CellMalformed) - refused, 7, "handshake {handshake}");
        assert!(sent >= 3, "asks of trust are sent at once, too");
    }
}

#[test]
fn forged_cell_does_not_promote_the_next_slot() {
    let (mut world, response) = response_in_flight();
    world.tap = Box::new(|_, _| Fate::Lose);
    world.deliver_now(&response, response.bytes.clone());
    // The entry's keepalive is lost. A cell with its header and a garbage body arrives instead.
    let first = world.record.last().cloned().unwrap();
    assert_eq!(first.from, crate::sim::down_address(0));
    let mut forged = first.bytes.clone();
    forged[100] ^= 1;
    world.deliver_now(&first, forged);
    assert_eq!(world.refused(1, Refusal::CellForged), 1);
    let state = |w: &World| {
        let link = w.node(1).links.values().find(|link| link.side == Side::Up).unwrap();
        (link.current().is_some(), link.next().is_some())
    };
    assert_eq!(state(&world), (false, true));
    world.deliver_now(&first, first.bytes.clone());
    assert_eq!(state(&world), (true, false));
}

#[test]
fn generator_cannot_be_run_back_to_past_ephemerals() {
    let mut world = up(Class::L, 1);
    let seed = |w: &World| w.node(1).control.cx.rng.get_seed();
    let mut seen = std::collections::HashSet::from([seed(&world)]);
    let link = world.node(1).link(Side::Up).0;
    for _ in 0..3 {
        world.input(1, Input::Activity { link, received: true, sent: false });
        assert!(seen.insert(seed(&world)), "after an input");
        let (now, wall) = (world.now, world.wall(1));
        world.nodes.get_mut(&1).unwrap().control.tick(now, wall);
        assert!(seen.insert(seed(&world)), "after a tick");
    }
    // An attacker with the new state can seek to any position and finds no past value.
    let Context { rng, .. } = &mut world.nodes.get_mut(&1).unwrap().control.cx;
    let past = draw_secret(rng);
    world.input(1, Input::Activity { link, received: true, sent: false });
    let mut stolen = world.node(1).control.cx.rng.clone();
    stolen.set_word_pos(0);
    assert!((0..1000).all(|_| draw_secret(&mut stolen).expose() != past.expose()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn hostile_neighbour_cells_never_stop_a_node(
        class in prop::sample::select(vec![Class::S, Class::L]),
        cells in prop::collection::vec(
            (0usize..4, any::<bool>(), 0u8..4, 0u32..5, 0u8..6, any::<u8>(), prop::option::weighted(0.2, 0usize..100)),
            1..60,
        ),
    ) {
        // Eight hops of class S have setups in many shards and acks of two contents.
        let mut world = up(class, 7);
        for (from, forward, kind, channel, sub, fill, other_len) in cells {
            let (from, side) = if forward { (from * 2, Side::Down) } else { (from * 2 + 1, Side::Up) };
            let (direction, link) =
                if forward { (Direction::Forward, from + 1) } else { (Direction::Backward, from) };
            let kind = [CellKind::Data, CellKind::Setup, CellKind::Ack, CellKind::Link][usize::from(kind)];
            // Sometimes the id of a live channel.
            let live = world.node(from).channels.values().next().and_then(|c| if forward { c.down } else { c.up });
            let channel = if channel == 4 { live.map_or(4, |id| id.1) } else { channel };
            let content = vec![fill; other_len.unwrap_or(world.plan.shape.control_content(direction, link))];
            misuse(&mut world, from, side, kind, channel, sub, &content);
        }
        world.run_for(secs(3));
        prop_assert!(world.has_channels(0, 4));
    }
}
