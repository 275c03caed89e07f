//! Every table of control at its bound: one more entry is refused under its own name, the others stay, and there is
//! room again when one has gone.

use std::net::SocketAddr;

use control::{Rate, Refusal};
use wire::cell::Class;
use wire::handshake::is_handshake_len;
use wire::ids::{ChannelIndex, EndReason, Side};

use crate::sim::{Fate, Plan, World, down_address, ms, secs, up_address};

/// Another entry with addresses of its own.
fn start_entry(world: &mut World, number: u8) {
    let address = |port| SocketAddr::from(([6, 6, 6, number], port));
    world.start_as(number.into(), 0, address(6), address(7));
}

/// Ends all channels of an entry, everywhere.
fn end_channels(world: &mut World, entry: usize) {
    for at in [entry, 1, 2] {
        let channels: Vec<ChannelIndex> = world.node(at).channels.keys().copied().collect();
        channels.into_iter().for_each(|channel| world.end(at, channel, EndReason::Idle));
    }
}

const MANY: Rate = Rate { per_second: 10_000, burst: 10_000 };

#[test]
fn open_channels_of_a_node_are_bounded() {
    let mut plan = Plan::new(Class::L, 1);
    plan.caps.channels = 6;
    plan.shared_prefixes = vec!["0.0.0.0/0".parse().unwrap()];
    let mut world = World::new(plan);
    world.run_for(secs(3));
    assert!(world.has_channels(0, 4));
    start_entry(&mut world, 100);
    world.run_for(secs(20));
    assert_eq!((world.node(1).control.class(0).open_channels(), world.node(100).channels.len()), (6, 2));
    assert!(world.refused(1, Refusal::ChannelsFull) > 0);
    assert_eq!(world.refused(1, Refusal::LinkChannelsFull), 0);
    assert!(world.has_channels(0, 4));
    world.stop(0);
    end_channels(&mut world, 100);
    world.run_for(secs(60));
    assert!(world.has_channels(100, 4), "there is room again");
}

#[test]
fn open_channels_of_an_entry_link_are_bounded() {
    let mut plan = Plan::new(Class::L, 1);
    plan.channels = 8;
    plan.caps.channels_per_entry_link = 3;
    let mut world = World::new(plan);
    world.run_for(secs(20));
    assert_eq!(world.node(1).control.class(0).open_channels(), 3);
    assert!(world.refused(1, Refusal::LinkChannelsFull) > 0);
    start_entry(&mut world, 100);
    world.run_for(secs(20));
    assert_eq!(world.node(1).control.class(0).open_channels(), 6, "another entry has its own");
    assert_eq!(world.refused(1, Refusal::ChannelsFull), 0);
}

#[test]
fn half_open_channels_of_a_node_are_bounded_and_expire() {
    let mut plan = Plan::new(Class::L, 2);
    plan.channels = 0;
    plan.caps.setups_per_entry_link = MANY;
    plan.caps.half_open = 8;
    plan.caps.setups = Rate { per_second: 1000, burst: 4 };
    let mut world = World::new(plan);
    world.run_for(secs(2));
    world.tap = Box::new(|_, packet| {
        if packet.from == up_address(3) && !is_handshake_len(packet.bytes.len()) { Fate::Lose } else { Fate::Pass }
    });
    world.want_channels(0, 50);
    world.run_for(secs(2));
    assert_eq!(world.node(1).control.class(0).half_open(), 4, "one prefix leaves as many to others");
    assert!(world.refused(1, Refusal::PrefixHalfOpenFull) > 0);
    assert_eq!(world.refused(1, Refusal::LinkHalfOpenFull), 0);
    world.tap = Box::new(|_, _| Fate::Pass);
    world.run_for(secs(120));
    assert_eq!(world.node(1).control.class(0).half_open(), 0);
    assert_eq!(world.node(0).control.class(0).open_channels(), 50, "there is room again");
}

#[test]
fn links_of_a_prefix_leave_as_many_to_others() {
    let mut plan = Plan::new(Class::L, 1);
    plan.caps.links = 8;
    let mut world = World::new(plan);
    world.run_for(secs(3));
    for port in 0..10u16 {
        let address = |side| SocketAddr::from(([6, 6, 6, 6], 10 * port + side));
        world.start_as(100 + usize::from(port), 0, address(1), address(2));
        world.run_for(secs(2));
    }
    assert!(world.refused(1, Refusal::PrefixLinksFull) > 0);
    assert_eq!(world.refused(1, Refusal::LinksFull), 0);
    // The first entry has one of eight; of the other seven the prefix gets one more while more are free than it has.
    assert_eq!(world.node(1).links.values().filter(|link| link.side == Side::Up).count(), 5);
    start_entry(&mut world, 99);
    world.run_for(secs(4));
    assert!(world.has_channels(99, 4) && world.has_channels(0, 4));
}

#[test]
fn channels_of_a_prefix_leave_as_many_to_others() {
    let mut plan = Plan::new(Class::L, 1);
    plan.channels = 0;
    plan.caps.channels = 20;
    let mut world = World::new(plan);
    start_entry(&mut world, 100);
    world.run_for(secs(2));
    world.want_channels(100, 20);
    world.run_for(secs(20));
    assert_eq!(world.node(100).control.class(0).open_channels(), 10);
    assert!(world.refused(1, Refusal::PrefixChannelsFull) > 0);
    start_entry(&mut world, 101);
    world.run_for(secs(2));
    world.want_channels(101, 4);
    world.run_for(secs(10));
    assert_eq!(world.node(101).control.class(0).open_channels(), 4);
}

#[test]
fn channels_of_a_prefix_have_a_cap_of_their_own() {
    for is_shared in [false, true] {
        let mut plan = Plan::new(Class::L, 1);
        plan.channels = 0;
        plan.caps.channels_per_prefix = 10;
        if is_shared {
            plan.shared_prefixes = vec!["6.6.6.6/32".parse().unwrap()];
        }
        let mut world = World::new(plan);
        for entry in [100, 101] {
            let address = |port| SocketAddr::from(([6, 6, 6, 6], port));
            world.start_as(entry, 0, address(2 * entry as u16), address(2 * entry as u16 + 1));
            world.run_for(secs(2));
            world.want_channels(entry, 8);
        }
        start_entry(&mut world, 99);
        world.run_for(secs(2));
        world.want_channels(99, 4);
        world.run_for(secs(20));
        let open: usize = [100, 101].map(|entry| world.node(entry).control.class(0).open_channels()).iter().sum();
        assert_eq!(open, if is_shared { 16 } else { 10 });
        assert_eq!(world.refused(1, Refusal::PrefixChannelsFull) > 0, !is_shared);
        assert_eq!(world.node(99).control.class(0).open_channels(), 4, "another prefix has its own");
    }
}

/// A user with one /64 of a provider's /48 leaves channels to the others in it.
#[test]
fn channels_of_a_64_leave_some_to_its_48() {
    let mut plan = Plan::new(Class::L, 1);
    plan.channels = 0;
    plan.caps.channels_per_prefix = 10;
    let mut world = World::new(plan);
    for (entry, subnet, wanted) in [(100, 1, 10), (101, 2, 2)] {
        let address = |port| SocketAddr::from(([0x2001, 0xdb8, 6, subnet, 0, 0, 0, 1], port));
        world.start_as(entry, 0, address(2 * entry as u16), address(2 * entry as u16 + 1));
        world.run_for(secs(2));
        world.want_channels(entry, wanted);
        world.run_for(secs(10));
    }
    let open = [100, 101].map(|entry| world.node(entry).control.class(0).open_channels());
    assert_eq!(open, [5, 2]);
    assert!(world.refused(1, Refusal::PrefixChannelsFull) > 0);
}

#[test]
fn link_that_moves_stays_in_the_account_of_its_prefix() {
    let mut plan = Plan::new(Class::L, 1);
    plan.channels = 0;
    plan.caps.channels_per_prefix = 10;
    let mut world = World::new(plan);
    world.run_for(secs(2));
    world.want_channels(0, 8);
    world.run_for(secs(10));
    let (link, moved) = (world.node(1).link(Side::Up).0, SocketAddr::from(([7, 7, 7, 7], 2000)));
    world.nodes.get_mut(&0).unwrap().down_address = moved;
    world.run_for(secs(6));
    assert_eq!((world.node(1).link(Side::Up).0, world.node(1).link(Side::Up).1.peer), (link, moved));

    let address = |port| SocketAddr::new(down_address(0).ip(), port);
    world.start_as(101, 0, address(2001), address(2002));
    world.run_for(secs(2));
    world.want_channels(101, 8);
    world.run_for(secs(20));
    let open = [0, 101].map(|entry| world.node(entry).control.class(0).open_channels());
    assert_eq!(open.iter().sum::<usize>(), 10, "{open:?}");
    assert!(world.refused(1, Refusal::PrefixChannelsFull) > 0);
}

#[test]
fn handshakes_of_a_prefix_are_rate_limited() {
    let mut plan = Plan::new(Class::L, 1);
    plan.channels = 0;
    let mut world = World::new(plan);
    let entries = 100..200;
    for entry in entries.clone() {
        let address = |port| SocketAddr::from(([6, 6, 6, 6], port));
        world.start_as(entry, 0, address(2 * entry as u16), address(2 * entry as u16 + 1));
        // Not all at once, because few halves of a prefix wait for their others.
        world.run_for(ms(3));
    }
    start_entry(&mut world, 99);
    world.run_for(ms(50));
    // Half of the tokens without a cookie, then all of those with one.
    let connected = |world: &World| entries.clone().filter(|entry| world.node(*entry).has_link(Side::Down)).count();
    assert!((50..75).contains(&connected(&world)), "{}", connected(&world));
    assert!(world.refused(1, Refusal::PrefixRateLimited) > 0);
    assert_eq!(world.refused(1, Refusal::HandshakeRateLimited), 0);
    assert!(world.node(99).has_link(Side::Down), "another prefix has its own tokens");
    world.run_for(secs(20));
    assert_eq!(connected(&world), 100, "there are tokens again");
}

#[test]
fn setups_of_a_prefix_are_rate_limited() {
    let mut plan = Plan::new(Class::L, 1);
    plan.channels = 0;
    plan.caps.setups_per_entry_link = MANY;
    plan.caps.channels_per_prefix = 1000;
    let mut world = World::new(plan);
    start_entry(&mut world, 99);
    world.run_for(secs(2));
    world.want_channels(0, 100);
    let start = world.now;
    for second in 1..=3 {
        world.run_until(start + secs(second), |_| false);
        let passed = world.node(1).control.class(0).counters().setups;
        assert!(passed <= 40 + 10 * second, "{passed} setups after {second} s");
    }
    assert!(world.refused(1, Refusal::PrefixSetupsRateLimited) > 0);
    assert_eq!(world.refused(1, Refusal::SetupsRateLimited) + world.refused(1, Refusal::LinkSetupsRateLimited), 0);
    world.want_channels(99, 4);
    world.run_for(secs(1));
    assert!(world.has_channels(99, 4), "another prefix has its own tokens");
    world.run_for(secs(60));
    assert!(world.has_channels(0, 100), "there are tokens again");
}

#[test]
fn shared_prefix_may_take_all_links() {
    let mut plan = Plan::new(Class::L, 1);
    plan.caps.links = 8;
    plan.shared_prefixes = vec!["6.6.0.0/16".parse().unwrap()];
    let mut world = World::new(plan);
    for port in 0..7u16 {
        let address = |side| SocketAddr::from(([6, 6, 6, 6], 10 * port + side));
        world.start_as(100 + usize::from(port), 0, address(1), address(2));
    }
    world.run_for(secs(6));
    assert!((100..107).all(|entry| world.has_channels(entry, 4)));
    assert_eq!(world.refused(1, Refusal::PrefixLinksFull), 0);
}

#[test]
fn oldest_half_open_channel_gives_way() {
    let mut plan = Plan::new(Class::L, 3);
    plan.channels = 0;
    plan.caps.half_open = 8;
    plan.caps.setups = Rate { per_second: 1000, burst: 4 };
    let mut world = World::new(plan);
    world.run_for(secs(2));
    world.tap = Box::new(|_, packet| {
        if packet.from == up_address(4) && !is_handshake_len(packet.bytes.len()) { Fate::Lose } else { Fate::Pass }
    });
    for entry in 100..106 {
        start_entry(&mut world, entry);
        world.want_channels(entry.into(), 4);
    }
    world.run_for(secs(4));
    assert!(world.refused(2, Refusal::HalfOpenReplaced) > 0, "Mix 2 has one link and no prefixes");
    assert!(world.node(2).control.class(0).half_open() <= 8);
    world.tap = Box::new(|_, _| Fate::Pass);
    world.run_for(secs(60));
    assert!((100..106).all(|entry| world.has_channels(entry, 4)), "there is room again");
}

#[test]
fn setups_of_a_node_are_rate_limited() {
    let mut plan = Plan::new(Class::L, 1);
    plan.channels = 60;
    plan.caps.setups_per_entry_link = MANY;
    plan.caps.setups = Rate { per_second: 5, burst: 10 };
    let mut world = World::new(plan);
    let start = world.now;
    for second in 1..=8 {
        world.run_until(start + secs(second), |_| false);
        let passed = world.node(1).control.class(0).counters().setups;
        assert!(passed <= 10 + 5 * second, "{passed} setups after {second} s");
    }
    assert!(world.refused(1, Refusal::SetupsRateLimited) > 0);
    assert!(world.node(0).control.class(0).open_channels() >= 10);
}

#[test]
fn handshakes_of_a_node_are_rate_limited() {
    let mut plan = Plan::new(Class::L, 1);
    plan.caps.handshakes = Rate { per_second: 1, burst: 2 };
    let mut world = World::new(plan);
    world.run_for(secs(3));
    assert!(world.has_channels(0, 4));
    for number in 100..110 {
        start_entry(&mut world, number);
    }
    world.run_for(ms(900));
    assert!(world.refused(1, Refusal::CookieRequired) > 0, "before the bucket is empty, those without cookie wait");
    assert!(world.refused(1, Refusal::HandshakeRateLimited) > 0);
    assert!(world.has_channels(0, 4), "a link that is up lives on");
    for number in 101..110 {
        world.stop(number);
    }
    world.run_for(secs(20));
    assert!(world.has_channels(100, 4), "there are tokens again");
}
