//! Whole chains: links come up, channels open, losses are recovered.

use control::{Event, Refusal};
use wire::cell::Class;
use wire::handshake::is_handshake_len;
use wire::ids::{EndReason, Side};

use crate::sim::{Fate, Plan, World, losing, ms, secs};

#[test]
fn every_chain_comes_up_with_equal_secrets_at_both_ends() {
    for class in [Class::S, Class::M, Class::L] {
        for mixes in [1, 3, 7] {
            let mut world = World::new(Plan::new(class, mixes));
            let start = world.now;
            assert!(world.run_until(start + secs(2), |w| w.has_channels(0, 4)), "class {class}, {mixes} mixes");
            for at in 0..=mixes + 1 {
                let node = world.node(at);
                assert_eq!(node.has_link(Side::Up), at > 0);
                assert_eq!(node.has_link(Side::Down), at <= mixes);
                assert_eq!(node.control.class(0).half_open(), 0);
            }
        }
    }
}

#[test]
fn idle_chain_keeps_its_links_with_one_handshake_each() {
    let mut world = World::new(Plan::new(Class::L, 3));
    world.run_for(secs(100));
    assert!(world.has_channels(0, 4));
    for at in 0..=3 {
        assert_eq!(world.node(at).control.class(0).counters().handshakes_started, 1, "node {at}");
        assert_eq!(world.node(at).control.class(0).counters().refused_total(), 0, "node {at}");
    }
}

#[test]
fn loss_of_any_single_datagram_is_recovered() {
    // The shortest chain whose acks have two contents.
    let plan = || {
        let mut plan = Plan::new(Class::S, 4);
        plan.channels = 1;
        plan
    };
    let mut world = World::new(plan());
    let end = world.now + secs(3);
    assert!(world.run_until(end, |w| w.has_channels(0, 1)));
    let sent = world.record.len();
    for lost in 1..=sent {
        let mut world = World::new(plan());
        world.tap = Box::new(move |_, packet| if packet.number == lost { Fate::Lose } else { Fate::Pass });
        let end = world.now + secs(8);
        assert!(world.run_until(end, |w| w.has_channels(0, 1)), "datagram {lost} of {sent}");
    }
}

#[test]
fn chain_comes_up_with_a_third_of_datagrams_lost() {
    let mut world = World::new(Plan::new(Class::L, 2));
    world.tap = losing(1.0 / 3.0);
    let start = world.now;
    assert!(world.run_until(start + secs(300), |w| w.node(0).channels.len() == 4));
}

#[test]
fn duplicates_of_every_datagram_change_nothing() {
    let mut world = World::new(Plan::new(Class::S, 7));
    world.tap = Box::new(|_, _| Fate::Copy);
    let end = world.now + secs(5);
    assert!(world.run_until(end, |w| w.has_channels(0, 4)));
    world.run_for(secs(5));
    for at in 0..=8 {
        assert_eq!(world.node(at).control.class(0).open_channels(), 4, "node {at}");
        assert_eq!(world.node(at).links.len(), if at == 0 || at == 8 { 1 } else { 2 });
        // Each kind of duplicate is refused by the first check that can detect it.
        let known =
            [Refusal::HalfDuplicate, Refusal::HandshakeReplayed, Refusal::UnexpectedResponse, Refusal::CellReplayed];
        let counters = world.node(at).control.class(0).counters();
        assert!(counters.refused(Refusal::CellReplayed) > 0, "node {at}");
        assert_eq!(known.map(|why| counters.refused(why)).iter().sum::<u64>(), counters.refused_total(), "node {at}");
    }
}

#[test]
fn nodes_started_in_any_order_connect_within_2_s() {
    for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3], [0, 4, 2, 3, 1]] {
        let mut world = World::empty(Plan::new(Class::L, 3));
        for at in order {
            world.run_for(ms(7_300));
            world.start(at);
        }
        let end = world.now + secs(2);
        let links = |w: &World| {
            (0..=4).all(|at| (at == 0 || w.node(at).has_link(Side::Up)) && (at == 4 || w.node(at).has_link(Side::Down)))
        };
        assert!(world.run_until(end, links), "{order:?}");
        let end = world.now + secs(4);
        assert!(world.run_until(end, |w| w.has_channels(0, 4)), "{order:?}");
    }
}

#[test]
fn restarted_node_reconnects_and_channels_are_replaced() {
    for restarted in 0..=4 {
        let mut world = World::new(Plan::new(Class::L, 3));
        world.run_for(secs(10));
        assert!(world.has_channels(0, 4));
        world.start(restarted);
        let found = world.run_until(world.now + secs(4), |w| {
            let node = w.node(restarted);
            (restarted == 0 || node.has_link(Side::Up)) && (restarted == 4 || node.has_link(Side::Down))
        });
        assert!(found, "node {restarted}");
        for channel in world.node(0).channels.keys().copied().collect::<Vec<_>>() {
            world.end(0, channel, EndReason::Lost);
        }
        // The keys of a restarted hop are in the next interval's bundle.
        let end = world.now + secs(16);
        assert!(world.run_until(end, |w| w.has_channels(0, 4)), "node {restarted}");
    }
}

#[test]
fn returning_node_is_reconnected_within_2_s() {
    for stopped in 1..=3 {
        let mut world = World::new(Plan::new(Class::L, 2));
        world.run_for(secs(5));
        world.stop(stopped);
        world.run_for(secs(60));
        world.start(stopped);
        let end = world.now + secs(2);
        let found =
            |w: &World| w.node(stopped).has_link(Side::Up) && (stopped == 3 || w.node(stopped).has_link(Side::Down));
        assert!(world.run_until(end, found), "node {stopped}");
        assert!(world.node(stopped - 1).saw(|e| matches!(e, Event::LinkSilent { .. })) > 0);
    }
}

#[test]
fn silence_of_the_next_hop_is_measured() {
    let mut world = World::empty(Plan::new(Class::L, 2));
    let silence = |w: &World| w.node(1).control.class(0).next_hop_silence(w.now);
    world.start(1);
    world.run_for(secs(10));
    assert_eq!(silence(&world), Some(secs(10)), "since the start");
    world.start(2);
    world.start(3);
    assert!(world.run_until(world.now + secs(2), |w| silence(w).is_none()));
    assert_eq!(world.node(3).control.class(0).next_hop_silence(world.now), None, "the exit has no next hop");
    world.run_for(secs(30));
    world.stop(2);
    let stopped = world.now;
    world.run_for(secs(10));
    let since = world.now - silence(&world).expect("silent");
    assert!(since.abs_diff(stopped) < secs(1));
    // The link expires, and the silence continues.
    world.run_for(secs(300));
    assert!(!world.node(1).has_link(Side::Down));
    assert_eq!(world.now - silence(&world).expect("silent"), since);
    world.start(2);
    assert!(world.run_until(world.now + secs(2), |w| silence(w).is_none()));
}

#[test]
fn silence_does_not_count_while_a_node_does_not_run() {
    let mut world = World::new(Plan::new(Class::L, 2));
    world.run_for(secs(30));
    world.stop(2);
    let silences = |world: &World| world.node(1).saw(|event| matches!(event, Event::LinkSilent { .. }));
    for _ in 0..20 {
        world.run_for(ms(500));
        let now = world.now;
        world.nodes.get_mut(&1).expect("it runs").control.stalled(now - ms(500), now);
    }
    assert_eq!(silences(&world), 0);
    world.run_for(secs(2));
    assert_eq!(silences(&world), 1);
}

#[test]
fn second_response_to_a_first_handshake_is_not_a_refusal() {
    let mut plan = Plan::new(Class::S, 1);
    plan.channels = 1;
    let mut world = World::empty(plan);
    // Longer than the entry's first wait for a response.
    world.tap =
        Box::new(|_, packet| if is_handshake_len(packet.bytes.len()) { Fate::Delay(ms(400)) } else { Fate::Pass });
    (0..=2).for_each(|position| world.start(position));
    world.run_for(secs(5));
    let counters = world.node(0).control.class(0).counters();
    assert!(counters.handshakes_started > 1 && world.node(0).has_link(Side::Down));
    assert_eq!(counters.refused_total(), 0, "{:?}", counters);
}

#[test]
fn channels_survive_a_renewal_every_2_s() {
    let mut plan = Plan::new(Class::L, 3);
    plan.timing.renew_after = secs(2);
    plan.timing.expire_after = secs(3);
    let mut world = World::new(plan);
    world.run_for(secs(5));
    assert!(world.has_channels(0, 4));
    let before: Vec<_> = world.node(0).channels.values().map(|c| c.down).collect();
    world.run_for(secs(60));
    assert!(world.has_channels(0, 4));
    assert_eq!(world.node(0).channels.values().map(|c| c.down).collect::<Vec<_>>(), before, "none was replaced");
    for at in 0..=3 {
        let renewed = world.node(at).saw(|e| matches!(e, Event::LinkRenewed { side: Side::Down, .. }));
        assert!((28..=33).contains(&renewed), "node {at} renewed {renewed} times");
        assert_eq!(world.node(at + 1).links.len(), if at == 3 { 1 } else { 2 }, "no link except the first");
        assert_eq!(world.node(at).late, 0);
    }
}

#[test]
fn renewal_with_a_response_after_2_s_is_not_repeated() {
    let mut plan = Plan::new(Class::S, 2);
    plan.timing.renew_after = secs(60);
    let mut world = World::new(plan);
    // Cells are not delayed: an initiator that receives none for 2 s would start a handshake every second.
    world.tap =
        Box::new(|_, packet| if is_handshake_len(packet.bytes.len()) { Fate::Delay(ms(1000)) } else { Fate::Pass });
    world.run_for(secs(30));
    assert!(world.has_channels(0, 4));
    let counts = |w: &World| {
        let of = |at: usize| w.node(at).control.class(0).counters();
        [of(0).handshakes_started, of(1).handshakes_started, of(2).handshakes_started, of(3).handshakes_done]
    };
    let before = counts(&world);
    world.run_for(secs(150));
    let more = std::array::from_fn(|i| counts(&world)[i] - before[i]);
    assert_eq!(more, [2; 4], "one message 1 for each renewal, and one answer");
}

#[test]
fn channels_survive_renewals_with_10_percent_loss() {
    let mut plan = Plan::new(Class::L, 2);
    plan.timing.renew_after = secs(4);
    plan.timing.expire_after = secs(12);
    let mut world = World::new(plan);
    world.run_for(secs(5));
    assert!(world.has_channels(0, 4));
    world.tap = losing(0.1);
    let before: Vec<_> = world.node(0).channels.values().map(|c| c.down).collect();
    world.run_for(secs(120));
    let after: Vec<_> = world.node(0).channels.values().map(|c| c.down).collect();
    assert_eq!(before, after);
    for at in 1..=3 {
        assert!(world.node(at).control.class(0).open_channels() >= 4, "node {at}");
    }
    assert!(world.has_channels(0, 4));
}

#[test]
fn search_retries_faster_once_no_channel_is_open() {
    for first in [0, 1] {
        let mut plan = Plan::new(Class::S, 2);
        plan.channels = 2;
        let mut world = World::new(plan);
        world.run_for(secs(3));
        let channels: Vec<_> = world.node(0).channels.keys().copied().collect();
        world.tap = losing(1.0);
        world.end(0, channels[first], EndReason::Lost);
        world.run_for(secs(50));
        world.end(0, channels[1 - first], EndReason::Lost);
        world.run_for(secs(1));
        world.tap = Box::new(|_, _| Fate::Pass);
        let end = world.now + secs(3);
        assert!(world.run_until(end, |w| w.has_channels(0, 2)), "lost first: {first}");
    }
}

#[test]
fn channel_near_its_end_is_superseded() {
    let mut plan = Plan::new(Class::M, 2);
    plan.terms.classes[0].lifetime_s = 100;
    let mut world = World::new(plan);
    world.run_for(secs(3));
    assert!(world.has_channels(0, 4));
    let start = world.now;
    assert!(world.run_until(start + secs(100), |w| w.node(0).superseded.len() == 4));
    assert!(world.now > start + secs(40), "not before half its life is over");
    assert_eq!(world.node(0).control.class(0).open_channels(), 8, "the old ones live on");
    for (old, _) in world.node(0).superseded.clone() {
        world.end(0, old, EndReason::Lifetime);
    }
    world.run_for(secs(2));
    assert!(world.has_channels(0, 4), "a superseded channel's end asks for no other");
}

#[test]
fn channels_of_a_dead_next_hop_end_with_its_last_slot() {
    let mut plan = Plan::new(Class::L, 2);
    plan.timing.renew_after = secs(5);
    plan.timing.expire_after = secs(9);
    let mut world = World::new(plan);
    world.run_for(secs(3));
    assert!(world.has_channels(0, 4));
    world.stop(2);
    world.run_for(secs(20));
    let mix = world.node(1);
    assert!(!mix.has_link(Side::Down) && mix.has_link(Side::Up));
    assert_eq!((mix.control.class(0).open_channels(), mix.channels.len()), (0, 0));
    assert_eq!(mix.saw(|e| matches!(e, Event::LinkDown { side: Side::Down, .. })), 1);
    assert!(
        mix.control.class(0).counters().refused(control::Refusal::NextHopDown) == 0,
        "the entry noticed nothing yet"
    );
    let exit = world.node(3);
    assert_eq!((exit.links.len(), exit.channels.len()), (0, 0), "nor has the exit a link");
}

#[test]
fn renewals_continue_when_the_host_clock_steps_back() {
    let mut plan = Plan::new(Class::L, 2);
    plan.timing.renew_after = secs(2);
    plan.timing.expire_after = secs(5);
    let mut world = World::new(plan);
    world.run_for(secs(5));
    world.wall_base -= secs(86_400);
    world.run_for(secs(60));
    assert!(world.has_channels(0, 4));
    for at in 1..=3 {
        assert_eq!(world.refused(at, control::Refusal::StaleTimestamp), 0);
    }
}

#[test]
fn link_needs_equal_pre_shared_keys() {
    let key = |n| Some(wire::kdf::Secret::new([n; 32]));
    for (psk, meet) in [((key(1), key(1)), true), ((key(1), key(2)), false), ((None, key(1)), false)] {
        let mut plan = Plan::new(Class::L, 2);
        plan.psk = psk;
        let mut world = World::new(plan);
        world.run_for(secs(3));
        assert_eq!(world.has_channels(0, 4), meet);
        assert_eq!(world.node(1).has_link(Side::Down), meet);
    }
}
