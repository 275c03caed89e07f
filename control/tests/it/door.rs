//! Attack: strangers who want to keep others out, or a hop in the wrong place. Honest nodes get in all the same.

use std::net::SocketAddr;

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use control::{Event, Refusal};
use wire::cell::Class;
use wire::handshake::{COOKIE_LEN, IK_HALF_LEN, NK_HALF_LEN, RESPONSE_LEN};
use wire::ids::Side;

use crate::sim::{Fate, Packet, Plan, World, down_address, ms, secs, up_address};

/// A handshake datagram of anybody who knows the receiver's public key.
fn forge(receiver: &[u8; 32], kind: u8, part: u8, index: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![kind, part, 0, 0];
    bytes.extend_from_slice(&index.to_be_bytes());
    bytes.resize(len - 32, index as u8);
    let key = Blake2s256::digest([&b"mac1----"[..], receiver].concat());
    let mut mac = Blake2sMac::<U16>::new_with_salt_and_personal(Some(&key), &[], &[]).unwrap();
    mac.update(&bytes);
    bytes.extend_from_slice(&mac.finalize_fixed());
    bytes.resize(len, 0);
    bytes
}

/// A source of its own for each number.
fn forged_source(number: u32) -> SocketAddr {
    let [_, a, b, c] = number.to_be_bytes();
    SocketAddr::from(([77, a, b, c], 7))
}

/// Sends forged halves of message 1 to Mix 1 for this many seconds, while `each` looks at the world.
fn flood(world: &mut World, seconds: u64, per_ms: u32, parts: u8, mut each: impl FnMut(&mut World)) {
    let mix1 = world.plan.descriptors[0].noise;
    world.recording = false;
    let mut number = 0;
    for _ in 0..1000 * seconds {
        for _ in 0..per_ms {
            number += 1;
            for part in 0..parts {
                let half = forge(&mix1, 1, part, number, NK_HALF_LEN);
                world.send(forged_source(number), up_address(1), half);
            }
        }
        world.run_for(ms(1));
        each(world);
    }
    world.recording = true;
}

#[test]
fn flood_of_forged_handshakes_does_not_keep_users_out() {
    // Whole messages 1, twice as many as the node's rate allows; and first halves, which fill the places of others.
    for (per_ms, parts) in [(2, 2), (5, 1)] {
        let mut world = World::new(Plan::new(Class::L, 1));
        world.run_for(secs(3));
        flood(&mut world, 3, per_ms, parts, |_| {});
        let start = world.now;
        world.start_as(100, 0, SocketAddr::from(([6, 6, 6, 6], 6)), SocketAddr::from(([6, 6, 6, 6], 7)));
        let mut got_in = None;
        flood(&mut world, 5, per_ms, parts, |world| {
            if got_in.is_none() && !world.node(100).channels.is_empty() {
                got_in = Some(world.now - start);
            }
        });
        assert!(got_in.is_some(), "a new user is in within 5 s");
        assert!(world.refused(1, Refusal::CookieRequired) > 1000);
        assert_eq!(world.refused(1, Refusal::HandshakeRateLimited), 0, "forged ones take half of the tokens at most");
        assert!(world.has_channels(0, 4));
    }
}

#[test]
fn cookies_end_a_second_after_their_reason() {
    let mut world = World::new(Plan::new(Class::L, 1));
    world.run_for(secs(3));
    let mix1 = world.plan.descriptors[0].noise;
    let stranger = SocketAddr::from(([6, 6, 6, 6], 7));
    (0..70).for_each(|number| world.send(stranger, up_address(1), forge(&mix1, 1, 0, number, NK_HALF_LEN)));
    world.run_for(secs(3));
    let required = world.refused(1, Refusal::CookieRequired);
    assert!(required > 0);
    world.start_as(100, 0, SocketAddr::from(([6, 6, 6, 7], 6)), SocketAddr::from(([6, 6, 6, 7], 7)));
    world.run_for(secs(3));
    assert!(world.has_channels(100, 4));
    assert_eq!(world.refused(1, Refusal::CookieRequired), required);
}

#[test]
fn links_never_used_keep_nobody_out() {
    // A user with a link; handshakes from many forged prefixes, whose answers reach nobody; another user of the first
    // one's prefix.
    let mut plan = Plan::new(Class::L, 1);
    plan.caps.links = 16;
    let mut world = World::new(plan);
    let user = |number: u16| (SocketAddr::from(([6, 6, 6, 6], number)), SocketAddr::from(([6, 6, 6, 6], number + 1)));
    world.start_as(50, 0, user(100).0, user(100).1);
    world.run_for(secs(3));
    assert!(world.has_channels(50, 4));
    world.tap = Box::new(|_, packet| if packet.to.port() == 77 { Fate::Lose } else { Fate::Pass });
    for number in 0..40u8 {
        let address = |port| SocketAddr::from(([7, 7, 7, number], port));
        world.start_as(100 + usize::from(number), 0, address(76), address(77));
        world.run_for(ms(100));
        world.stop(100 + usize::from(number));
    }
    world.start_as(51, 0, user(200).0, user(200).1);
    world.run_for(secs(4));
    assert!(world.has_channels(51, 4) && world.has_channels(50, 4) && world.has_channels(0, 4));
    assert_eq!(world.refused(1, Refusal::LinksFull) + world.refused(1, Refusal::PrefixLinksFull), 0);
}

#[test]
fn cookie_is_shorter_than_the_half_that_it_answers() {
    let mut plan = Plan::new(Class::L, 1);
    plan.caps.handshakes.burst = 4;
    plan.caps.handshakes.per_second = 1;
    let mut world = World::new(plan);
    world.run_for(secs(1));
    let sent = world.record.len();
    let mix1 = world.plan.descriptors[0].noise;
    for number in 0..20 {
        for part in [0, 1] {
            world.send(forged_source(number), up_address(1), forge(&mix1, 1, part, number, NK_HALF_LEN));
        }
    }
    world.run_for(ms(100));
    let to_strangers = |p: &&Packet| p.from == up_address(1) && p.to.port() == 7;
    let cookies: Vec<usize> = world.record[sent..].iter().filter(to_strangers).map(|p| p.bytes.len()).collect();
    assert!((10..=20).contains(&cookies.len()), "{cookies:?}");
    assert!(cookies.iter().all(|len| *len == COOKIE_LEN));
    assert_eq!(world.node(1).control.class(0).counters().cookies, cookies.len() as u64);
}

#[test]
fn user_under_a_forgers_prefix_gets_in_by_a_cookie() {
    // The attacker sends from the user's own address; nothing else goes on at the node.
    let mut world = World::new(Plan::new(Class::L, 1));
    world.run_for(secs(3));
    let mix1 = world.plan.descriptors[0].noise;
    let attack = |world: &mut World, seconds: u32| {
        for number in 0..100 * seconds {
            for part in [0, 1] {
                let source = SocketAddr::from(([6, 6, 6, 6], 7000 + (number % 5000) as u16));
                world.send(source, up_address(1), forge(&mix1, 1, part, number, NK_HALF_LEN));
            }
            world.run_for(ms(10));
        }
    };
    attack(&mut world, 2);
    world.start_as(100, 0, SocketAddr::from(([6, 6, 6, 6], 6)), SocketAddr::from(([6, 6, 6, 6], 7)));
    attack(&mut world, 3);
    assert!(world.has_channels(100, 4));
}

#[test]
fn hop_whose_clock_was_ahead_gets_in_again() {
    let mut world = World::new(Plan::new(Class::L, 2));
    world.clock_ms.insert(1, 3_600_000);
    world.stop(1);
    world.start(1);
    world.run_for(secs(3));
    assert!(world.node(2).has_link(Side::Up));
    world.clock_ms.remove(&1);
    world.stop(1);
    world.start(1);
    world.run_for(secs(5));
    assert_eq!(world.node(2).control.class(0).counters().challenges, 1);
    assert!(world.node(1).has_link(Side::Down));
    let forged = world.refused(2, Refusal::StaleTimestamp);
    // From then on its own timestamps count again.
    world.stop(1);
    world.start(1);
    world.run_for(secs(5));
    assert_eq!(world.refused(2, Refusal::StaleTimestamp), forged);
    assert!(world.node(1).has_link(Side::Down));
}

#[test]
fn replayed_stale_handshakes_bring_cookies_and_no_challenge() {
    let mut world = World::new(Plan::new(Class::L, 2));
    world.run_for(secs(1));
    let halves: Vec<Packet> =
        world.record.iter().filter(|p| p.to == up_address(2) && p.bytes.len() == 686).cloned().collect();
    world.stop(2);
    world.disks.clear();
    world.start(2);
    world.run_for(secs(3));
    assert!(world.node(2).has_link(Side::Up), "a newer handshake was accepted");
    for _ in 0..20 {
        halves.iter().for_each(|half| world.send(half.from, half.to, half.bytes.clone()));
        world.run_for(ms(50));
    }
    // Whoever replays them cannot answer a cookie, so it takes none of the challenges from the hop.
    let counters = world.node(2).control.class(0).counters();
    assert_eq!((counters.challenges, counters.refused(Refusal::StaleTimestamp)), (0, 0));
    assert!(counters.cookies > 0 && counters.refused(Refusal::CookieRequired) > 0);
    assert!(world.node(1).has_link(Side::Down), "the previous hop ignores cookies that it has not asked for");
}

#[test]
fn hop_with_a_corrected_clock_gets_in_despite_replays() {
    let mut world = World::new(Plan::new(Class::L, 2));
    world.clock_ms.insert(1, 3_600_000);
    let before = world.record.len();
    for _ in 0..20 {
        world.stop(1);
        world.start(1);
        world.run_for(secs(1));
    }
    let is_half = |p: &&Packet| p.to == up_address(2) && p.bytes.len() == IK_HALF_LEN && p.bytes.ends_with(&[0; 16]);
    let halves: Vec<Packet> = world.record[before..].iter().filter(is_half).cloned().collect();
    assert!(halves.len() >= 40, "{}", halves.len());
    // The responder has forgotten all ephemerals, and remembers the latest timestamp again.
    world.stop(2);
    world.start(2);
    world.run_for(secs(2));
    world.clock_ms.remove(&1);
    world.stop(1);
    world.start(1);
    for number in 0..200 {
        for half in halves.chunks(2).nth(number % (halves.len() / 2)).unwrap() {
            world.send(half.from, half.to, half.bytes.clone());
        }
        world.run_for(ms(5));
    }
    world.run_for(secs(1));
    assert!(world.node(1).has_link(Side::Down) && world.node(2).has_link(Side::Up));
    assert!(world.node(2).control.class(0).counters().challenges >= 1);
}

#[test]
fn sixteen_forged_responses_cost_work_then_none_do() {
    for (forged, at_once) in [(15, true), (40, false)] {
        let mut world = World::empty(Plan::new(Class::L, 1));
        world.tap =
            Box::new(|_, packet| if packet.bytes.len() == RESPONSE_LEN { Fate::Delay(ms(300)) } else { Fate::Pass });
        (0..=2).rev().for_each(|at| world.start(at));
        world.run_for(ms(100));
        let half = world.record.iter().find(|p| p.from == down_address(0) && p.bytes[1] == 0).unwrap().clone();
        let ephemeral: [u8; 32] = half.bytes[8..40].try_into().unwrap();
        let index = u32::from_be_bytes(half.bytes[4..8].try_into().unwrap());
        for _ in 0..forged {
            let bytes = forge(&ephemeral, 2, 0, index, RESPONSE_LEN);
            world.deliver_now(&Packet { from: up_address(1), to: down_address(0), ..half.clone() }, bytes);
        }
        assert_eq!(world.refused(0, Refusal::HandshakeForged), forged);
        world.run_for(ms(250));
        assert_eq!(world.node(0).has_link(Side::Down), at_once);
        world.run_for(secs(3));
        assert!(world.has_channels(0, 4));
    }
}

#[test]
fn hop_that_sends_from_elsewhere_needs_a_cookie() {
    let mut world = World::empty(Plan::new(Class::L, 2));
    (0..=3).rev().for_each(|at| world.start(at));
    let elsewhere = SocketAddr::from(([10, 8, 8, 8], 2000));
    world.nodes.get_mut(&1).unwrap().down_address = elsewhere;
    world.run_for(secs(4));
    assert!(world.has_channels(0, 4), "it may be behind a NAT");
    assert!(world.refused(2, Refusal::CookieRequired) >= 2);
    assert_eq!(world.node(2).saw(|e| *e == Event::HandshakeFromElsewhere { from: elsewhere }), 1);
    assert_eq!(world.refused(3, Refusal::CookieRequired), 0);
}

#[test]
fn hop_with_names_alone_needs_a_cookie_until_its_link_is_up() {
    let mut plan = Plan::new(Class::L, 2);
    plan.timing.renew_after = secs(20);
    let contact = &mut plan.descriptors[0].contacts[0];
    contact.addresses.clear();
    contact.names = vec![("mix1.example".to_owned(), 1000)];
    let mut world = World::empty(plan);
    world.names.insert(("mix1.example".to_owned(), 1000), vec![up_address(1)]);
    (0..=3).rev().for_each(|at| world.start(at));
    world.run_for(secs(4));
    assert!(world.has_channels(0, 4));
    let required = world.refused(2, Refusal::CookieRequired);
    assert!(required >= 2);
    // A stranger with a cookie has two messages 1 a second, not the hop's rate.
    world.plan.forge_keys(1);
    let start_stranger = |world: &mut World, number: u16| {
        let address = |side| SocketAddr::from(([6, 6, 6, 6], 10 * number + side));
        world.start_as(100 + usize::from(number), 1, address(6), address(7));
    };
    (0..20).for_each(|number| start_stranger(&mut world, number));
    world.run_for(secs(20));
    assert!(world.refused(2, Refusal::ElsewhereRateLimited) > 10);
    assert!(world.node(2).saw(|e| matches!(e, Event::LinkRenewed { side: Side::Up, .. })) >= 1);
    assert!(world.has_channels(0, 4));
}

#[test]
fn peer_of_a_link_that_is_up_is_not_elsewhere() {
    let mut plan = Plan::new(Class::L, 2);
    plan.timing.renew_after = secs(20);
    let mut world = World::empty(plan);
    (0..=3).rev().for_each(|at| world.start(at));
    // Behind a NAT that gives it another port for each renewal.
    world.nodes.get_mut(&1).unwrap().down_address = SocketAddr::from(([10, 8, 8, 8], 2000));
    world.run_for(secs(4));
    assert!(world.has_channels(0, 4));
    let required = world.refused(2, Refusal::CookieRequired);
    assert!(required >= 2, "the first message 1 came from elsewhere");
    for port in 2001..2004 {
        world.nodes.get_mut(&1).unwrap().down_address.set_port(port);
        world.run_for(secs(25));
    }
    assert!(world.node(2).saw(|e| matches!(e, Event::LinkRenewed { side: Side::Up, .. })) >= 3);
    assert_eq!(world.refused(2, Refusal::CookieRequired), required);
    // Another address is.
    world.nodes.get_mut(&1).unwrap().down_address = SocketAddr::from(([10, 8, 8, 9], 2000));
    world.run_for(secs(25));
    assert!(world.refused(2, Refusal::CookieRequired) > required);
}

#[test]
fn link_that_goes_on_does_not_come_to_a_full_address() {
    let full = SocketAddr::from(([6, 6, 6, 6], 7));
    let mut plan = Plan::new(Class::L, 1);
    plan.timing.renew_after = secs(20);
    let mut world = World::new(plan);
    let at_address = |world: &World| {
        let links = world.node(1).links.values();
        links.filter(|link| link.side == Side::Up && link.peer == full).count()
    };
    for number in 100..104 {
        world.start_as(number, 0, SocketAddr::from(([6, 6, 6, number as u8], 6)), full);
        world.run_for(secs(3));
        assert!(world.has_channels(number, 4));
        if number < 103 {
            world.stop(number);
        }
    }
    assert_eq!(at_address(&world), 4);
    // A link that is there renews.
    let renewed = |world: &World| world.node(103).saw(|e| matches!(e, Event::LinkRenewed { .. }));
    let limit = world.now + secs(30);
    assert!(world.run_until(limit, |world| renewed(world) == 1));
    assert_eq!(world.refused(1, Refusal::PrefixLinksFull), 0);
    world.stop(103);

    world.nodes.get_mut(&0).unwrap().down_address = full;
    world.run_for(secs(6));
    assert!(world.refused(1, Refusal::PrefixLinksFull) > 0);
    assert_eq!(at_address(&world), 4);
    assert_eq!(world.node(1).saw(|e| matches!(e, Event::LinkMoved { .. })), 0);
}

#[test]
fn messages_from_elsewhere_have_a_rate_of_their_own() {
    let mut world = World::new(Plan::new(Class::L, 2));
    world.run_for(secs(3));
    // Strangers with addresses of their own, who can have cookies, and no key that the hop knows.
    world.plan.forge_keys(1);
    for number in 0..20u16 {
        let address = |side| SocketAddr::from(([6, 6, 6, 6], 10 * number + side));
        world.start_as(100 + usize::from(number), 1, address(6), address(7));
    }
    world.run_for(secs(5));
    assert!(world.refused(2, Refusal::UnknownInitiator) <= 2 + 2 * 5);
    assert!(world.refused(2, Refusal::ElsewhereRateLimited) > 10);
    assert!(world.has_channels(0, 4));
}
