//! Setups of channels, and the cells and ids that they take.

use super::*;

#[test]
fn setup_opens_once_on_any_channel() {
    let mut world = up(Class::L, 2);
    let onion = onion(&world, INFO, 5);
    misuse_setup(&mut world, 1, &onion, 0);
    world.run_for(secs(3));
    assert_eq!(world.node(3).control.class(0).open_channels(), 5);
    for (channel, why) in [(1, Refusal::ChannelInUse), (2, Refusal::SetupReplayed), (3, Refusal::SetupReplayed)] {
        let before = world.refused(1, why);
        // No parity: a channel in use refuses each shard, a replay the last one that it needs.
        misuse_setup(&mut world, channel, &onion, 3);
        world.run_for(secs(1));
        let shards = if channel == 1 { 3 } else { 1 };
        assert_eq!(world.refused(1, why), before + shards);
    }
    assert_eq!(world.node(3).control.class(0).open_channels(), 5);
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
    assert_eq!(world.node(1).control.class(0).open_channels(), 4);
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
    // The nodes of a chain start in any order.
    let refused = |world: &World| [Refusal::NextHopStarting, Refusal::NextHopDown].map(|why| world.refused(1, why));
    assert_eq!(refused(&world), [1, 0]);
    world.run_for(secs(2));
    misuse_setup(&mut world, 2, &onion, 0);
    world.run_for(ms(50));
    assert_eq!(refused(&world), [1, 1]);
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
    let surplus = |w: &World| w.node(1).control.class(0).counters().surplus_cells;
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
    assert_eq!((refused, world.node(1).control.class(0).counters().refused_total()), ([1, 1], 2));
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
    assert_eq!(world.node(1).control.class(0).half_open(), 0);
    assert_eq!(world.node(1).control.classes[0].channels.id_count(), 0);

    let mut world = World::new(Plan::new(Class::L, 2));
    world.tap = losing(0.3);
    world.run_for(secs(60));
    world.tap = Box::new(|_, _| Fate::Pass);
    world.run_for(secs(100));
    world.run_for(secs(200));
    assert_eq!(world.node(0).control.class(0).open_channels(), 4);
    assert_eq!(world.node(0).control.classes[0].channels.id_count(), 4);
}

#[test]
fn id_cools_down_for_180_s_and_live_id_is_never_drawn() {
    let mut world = up(Class::L, 1);
    let (channel, id) = world.node(0).channels.iter().map(|(c, i)| (*c, i.down.unwrap())).next().unwrap();
    world.end(0, channel, EndReason::Lost);
    let used = |w: &World| w.node(0).control.classes[0].channels.used_by(id);
    world.run_for(secs(179));
    assert_eq!(used(&world), Some(Use::CoolingDown));
    world.run_for(secs(2));
    assert_eq!(used(&world), None);

    // The generator repeats earlier ids. They are in use, so the next one is drawn.
    let ClassControl { cx, channels, .. } = &mut world.nodes.get_mut(&0).unwrap().control.classes[0];
    let mut ids = std::collections::HashSet::new();
    for usage in [Use::Open(ChannelIndex(0)), Use::HalfOpen(0), Use::Setup(0), Use::CoolingDown] {
        cx.rng = ChaCha20Rng::seed_from_u64(5);
        assert!(ids.insert(channels.draw_id(cx, id.0, usage)), "{usage:?}");
    }
}
