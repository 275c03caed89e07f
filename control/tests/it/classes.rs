//! Several classes in one node: each has links and channels of its own, all have the trust of the first (SPEC 2.1.5,
//! 7.8,
//! 9.6.7).

use control::Refusal;
use wire::cell::{CellKind, Class};
use wire::handshake::is_handshake_len;
use wire::ids::{EndReason, Side};

use crate::sim::{Fate, Plan, World, port_of_class, secs, up_address};

/// A chain with classes S and L.
fn plan(mixes: usize) -> Plan {
    let mut plan = Plan::new(Class::S, mixes);
    plan.add_class(Class::L);
    plan
}

fn both_up(world: &World) -> bool {
    (0..2).all(|class| world.has_channels_of(class, 0, 4))
}

#[test]
fn links_and_channels_of_both_classes_come_up() {
    let mut world = World::new(plan(3));
    let start = world.now;
    assert!(world.run_until(start + secs(3), both_up));
    for at in 0..=4 {
        let node = world.node(at);
        let control = &node.control;
        assert_eq!(control.class_count(), 2);
        for class in 0..2 {
            let one = control.class(class);
            assert_eq!((one.open_channels(), one.links()), (4, if at == 0 || at == 4 { 1 } else { 2 }), "node {at}");
            assert!(node.planes[class].links.keys().all(|link| link.class() == class), "node {at}");
            assert_eq!(one.counters().refused_total(), 0, "node {at}");
        }
    }
    // A hop has one bundle of an interval, and signs once.
    let status = world.node(4).control.trust_status(world.now);
    assert!(status.can_sign && status.bundle == Some(status.interval));
}

#[test]
fn hops_exchange_trust_on_links_of_the_first_class_only() {
    let mut world = World::new(plan(2));
    let start = world.now;
    assert!(world.run_until(start + secs(3), both_up));
    world.run_for(secs(25));
    for at in 0..=3 {
        // Only asks, parts and the check of a path leave at once.
        let sent = world.node(at).planes.iter().map(|plane| {
            let at_once = plane.sent.iter().filter(|(_, kind, at_once)| (*kind, *at_once) == (CellKind::Link, true));
            at_once.count()
        });
        let [first, second] = sent.collect::<Vec<_>>()[..] else { panic!("two classes") };
        assert!(first > 0 && second == 0, "node {at}: {first}, {second}");
    }
}

#[test]
fn entry_of_the_second_class_alone_gets_its_bundle_there() {
    let mut plan = plan(2);
    plan.entry_classes = 1..2;
    let mut world = World::new(plan);
    let start = world.now;
    assert!(world.run_until(start + secs(3), |w| w.node(0).control.class(0).open_channels() == 4));
    assert_eq!(world.node(1).control.class(1).open_channels(), 4);
    assert_eq!(world.node(1).control.class(0).open_channels(), 0);
    assert_eq!(world.node(1).control.class(1).counters().refused_total(), 0);
}

#[test]
fn lost_link_of_one_class_leaves_the_other_alone() {
    let mut world = World::new(plan(2));
    let start = world.now;
    assert!(world.run_until(start + secs(3), both_up));
    // Nothing of the second class reaches mix 2 any more.
    let gone = port_of_class(up_address(2), 1);
    world.tap = Box::new(move |_, packet| if packet.to == gone { Fate::Lose } else { Fate::Pass });
    world.run_for(secs(200));
    let silence = |class: usize| world.node(1).control.class(class).next_hop_silence(world.now).is_some();
    assert!(silence(1) && !silence(0));
    assert!(world.has_channels(0, 4));
    for at in [1, 2] {
        assert_eq!(world.node(at).planes[1].channels.len(), 0, "node {at}");
    }

    // The entry's first class wants no bundle now, but the second does.
    world.tap = Box::new(|_, _| Fate::Pass);
    for channel in world.node(0).planes[1].channels.keys().copied().collect::<Vec<_>>() {
        world.end_of(1, 0, channel, EndReason::Lost);
    }
    let start = world.now;
    assert!(world.run_until(start + secs(10), both_up));
}

#[test]
fn limits_of_one_class_are_not_those_of_the_other() {
    let mut plan = plan(1);
    plan.caps.channels_per_prefix = 4;
    let mut world = World::new(plan);
    let start = world.now;
    assert!(world.run_until(start + secs(3), both_up), "four of each class");
    let now = world.now;
    world.nodes.get_mut(&0).unwrap().control.want_channels(now, 1, 5);
    world.run_for(secs(5));
    let refused = |class: usize| world.node(1).control.class(class).counters().refused(Refusal::PrefixChannelsFull);
    assert!(refused(0) == 0 && refused(1) > 0);
}

#[test]
fn handshake_of_one_class_does_not_pass_at_the_port_of_another() {
    let mut world = World::new(plan(1));
    let start = world.now;
    assert!(world.run_until(start + secs(3), both_up));
    world.run_for(secs(10));
    let (first, second) = (up_address(2), port_of_class(up_address(2), 1));
    let halves = world.record.iter().filter(|packet| packet.to == second && is_handshake_len(packet.bytes.len()));
    let halves: Vec<_> = halves.take(2).cloned().collect();
    let links = world.node(2).control.class(0).links();
    for half in halves {
        let bytes = half.bytes.clone();
        world.deliver_now(&crate::sim::Packet { to: first, ..half }, bytes);
    }
    assert_eq!(world.refused(2, Refusal::HandshakeForged), 1);
    assert_eq!(world.node(2).control.class(0).links(), links);
    assert!(world.node(2).has_link(Side::Up));
}
