//! Attack: strangers on the network. Their datagrams are counted, never answered, and change nothing.

use std::net::SocketAddr;

use control::{Event, Input, Refusal};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::Class;
use wire::handshake::{HANDSHAKE_LENS, RESPONSE_LEN, is_handshake_len};
use wire::ids::{EndReason, LinkId, Side, SlotId};

use crate::sim::{Fate, Packet, Plan, World, down_address, ms, secs, up_address};

fn up(plan: Plan) -> World {
    let mut world = World::new(plan);
    world.run_for(secs(3));
    assert!(world.has_channels(0, 4));
    world
}

fn halves(world: &World, to: SocketAddr) -> Vec<Packet> {
    world.record.iter().filter(|p| p.to == to && is_handshake_len(p.bytes.len())).cloned().collect()
}

/// Messages 2 that left this address.
fn answers(world: &World, from: SocketAddr) -> usize {
    world.record.iter().filter(|p| p.from == from && p.bytes.len() == RESPONSE_LEN).count()
}

/// All slots and addresses of a node's links, to check that nothing changed.
fn slots(world: &World, position: usize) -> Vec<(LinkId, Option<SlotId>, Option<SlotId>, SocketAddr)> {
    world.node(position).links.iter().map(|(id, link)| (*id, link.current(), link.next(), link.peer)).collect()
}

#[test]
fn replayed_message_1_changes_nothing() {
    for position in 1..=3 {
        let mut world = up(Plan::new(Class::L, 2));
        let before = slots(&world, position);
        let answered = answers(&world, up_address(position));
        for _ in 0..5 {
            for packet in halves(&world, up_address(position)).iter().take(2) {
                world.send(packet.from, packet.to, packet.bytes.clone());
                world.send(SocketAddr::from(([6, 6, 6, 6], 6)), packet.to, packet.bytes.clone());
            }
            world.run_for(ms(1500));
        }
        assert_eq!(answers(&world, up_address(position)), answered);
        let after = slots(&world, position);
        assert_eq!(before, after, "node {position}");
        // Between hops a copy from another address is asked for a cookie, half by half.
        let (replayed, unproven) = if position == 1 { (10, 0) } else { (5, 10) };
        assert_eq!(world.refused(position, Refusal::HandshakeReplayed), replayed, "node {position}");
        assert_eq!(world.refused(position, Refusal::CookieRequired), unproven, "node {position}");
    }
}

#[test]
fn older_message_1_does_not_replace_a_newer() {
    // The first message 1 is held back until the second has been answered.
    for position in 1..=2 {
        let mut world = World::empty(Plan::new(Class::L, 1));
        let mut caught = 0;
        let target = up_address(position);
        world.tap = Box::new(move |_, packet| {
            if packet.to == target && is_handshake_len(packet.bytes.len()) && caught < 2 {
                caught += 1;
                return Fate::Delay(ms(20_000));
            }
            Fate::Pass
        });
        for at in 0..=2 {
            world.start(at);
        }
        world.run_for(secs(10));
        assert!(world.has_channels(0, 4));
        world.run_for(secs(20));
        assert!(world.has_channels(0, 4), "position {position}");
        if position == 2 {
            // A challenge is only for who answers a cookie.
            assert_eq!(world.refused(2, Refusal::CookieRequired), 1);
            assert_eq!(world.node(2).control.class(0).counters().challenges, 0);
        }
    }
}

#[test]
fn stranger_gets_no_response_from_a_hop() {
    let mut world = up(Plan::new(Class::L, 2));
    let before = slots(&world, 2);
    let answered = answers(&world, up_address(2));
    world.plan.forge_keys(1);
    world.start_as(77, 1, SocketAddr::from(([6, 6, 6, 6], 6)), SocketAddr::from(([6, 6, 6, 6], 7)));
    world.run_for(secs(5));
    assert!(world.refused(2, Refusal::UnknownInitiator) >= 4);
    assert_eq!(answers(&world, up_address(2)), answered);
    assert_eq!(slots(&world, 2), before);
    assert!(!world.node(77).has_link(Side::Down));
}

#[test]
fn forged_mac1_gets_no_response_and_costs_no_dh() {
    let mut world = up(Plan::new(Class::L, 2));
    for position in 1..=3 {
        let answered = answers(&world, up_address(position));
        let before = world.refused(position, Refusal::BadMac1);
        let real: Vec<Packet> = halves(&world, up_address(position));
        for packet in &real {
            let mut bytes = packet.bytes.clone();
            let mac1 = bytes.len() - 32;
            bytes[mac1] ^= 1;
            world.send(packet.from, packet.to, bytes);
        }
        world.run_for(ms(100));
        assert_eq!(world.refused(position, Refusal::BadMac1) - before, real.len() as u64);
        assert_eq!(answers(&world, up_address(position)), answered);
    }
}

#[test]
fn response_is_never_longer_than_the_request() {
    let world = up(Plan::new(Class::L, 3));
    for position in 1..=4 {
        let bytes = |of: &dyn Fn(&&Packet) -> bool| -> usize {
            world.record.iter().filter(of).filter(|p| is_handshake_len(p.bytes.len())).map(|p| p.bytes.len()).sum()
        };
        let brought = bytes(&|p| p.to == up_address(position));
        let answered = bytes(&|p| p.from == up_address(position));
        assert!(answered > 0 && answered <= brought);
    }
}

#[test]
fn setups_of_one_entry_are_rate_limited() {
    let mut plan = Plan::new(Class::L, 1);
    plan.channels = 200;
    let mut world = World::new(plan);
    let start = world.now;
    for second in 1..=10 {
        world.run_until(start + secs(second), |_| false);
        let passed = world.node(1).control.class(0).counters().setups;
        assert!(passed <= 20 + 5 * second, "{passed} setups after {second} s");
    }
    assert!(world.refused(1, Refusal::LinkSetupsRateLimited) > 10);
    assert!(world.node(0).control.class(0).open_channels() >= 20);
}

#[test]
fn half_open_channels_of_one_entry_are_bounded_and_expire() {
    let mut plan = Plan::new(Class::L, 2);
    plan.channels = 0;
    plan.caps.setups_per_entry_link = control::Rate { per_second: 1000, burst: 1000 };
    plan.caps.half_open_per_entry_link = 4;
    let mut world = World::new(plan);
    world.run_for(secs(2));
    world.tap = Box::new(|_, packet| {
        // The exit's cells are lost, so no ack arrives.
        if packet.from == up_address(3) && !is_handshake_len(packet.bytes.len()) { Fate::Lose } else { Fate::Pass }
    });
    world.want_channels(0, 200);
    world.run_for(secs(2));
    assert_eq!(world.node(1).control.class(0).half_open(), 4);
    assert!(world.refused(1, Refusal::LinkHalfOpenFull) > 0);
    world.run_for(secs(30));
    assert!(world.node(1).control.class(0).half_open() <= 4);
    assert!(world.refused(1, Refusal::HalfOpenExpired) > 4);
}

#[test]
fn setups_and_channels_of_a_node_are_bounded() {
    // Two entries. The bounds of an entry link are wide and the node's narrow, and then the other way round.
    let wide = control::Rate { per_second: 1000, burst: 1000 };
    let narrow = control::Rate { per_second: 1, burst: 5 };
    let run = |change: &dyn Fn(&mut control::Caps)| {
        let mut plan = Plan::new(Class::L, 2);
        plan.channels = 10;
        plan.caps.setups_per_entry_link = wide;
        change(&mut plan.caps);
        let mut world = World::new(plan);
        world.start_as(100, 0, SocketAddr::from(([6, 6, 6, 6], 6)), SocketAddr::from(([6, 6, 6, 6], 7)));
        world.run_for(secs(4));
        world
    };
    let world = run(&|caps| caps.setups = narrow);
    let begun = world.node(1).control.class(0).counters().setups;
    assert!((5..=5 + 4).contains(&begun), "{begun} setups in 4 s");
    assert!(world.refused(1, Refusal::SetupsRateLimited) > 0);

    let world = run(&|caps| caps.channels = 12);
    assert!(world.node(1).control.class(0).open_channels() <= 12);
    assert!(world.refused(1, Refusal::PrefixChannelsFull) > 0);

    let world = run(&|caps| caps.channels_per_entry_link = 7);
    assert_eq!(world.node(1).control.class(0).open_channels(), 7 + 7);
    assert!(world.refused(1, Refusal::LinkChannelsFull) > 0);
}

#[test]
fn handshakes_of_a_node_are_bounded() {
    let mut plan = Plan::new(Class::L, 1);
    plan.caps.handshakes = control::Rate { per_second: 1, burst: 3 };
    let mut world = World::empty(plan);
    world.start(1);
    for number in 100..120u8 {
        let address = |port| SocketAddr::from(([6, 6, 6, number], port));
        world.start_as(number.into(), 0, address(6), address(7));
    }
    for second in 1..=5 {
        world.run_for(secs(1));
        let answered = answers(&world, up_address(1));
        assert!((3..=3 + second).contains(&answered), "{answered} answers after {second} s");
    }
    assert!(world.refused(1, Refusal::HandshakeRateLimited) > 20);
    // They wait, and come up after the flood.
    (100..119).for_each(|number| world.stop(number));
    world.run_for(secs(5));
    assert!(world.node(119).has_link(Side::Down));
}

#[test]
fn strangers_at_an_entrys_address_do_not_displace_its_link() {
    let mut world = up(Plan::new(Class::L, 1));
    let before = slots(&world, 1);
    // Other entries send from the first one's address: spoofed, or behind the same NAT.
    for number in 100..110 {
        world.start_as(number, 0, SocketAddr::from(([6, 6, 6, number as u8], 6)), down_address(0));
        world.run_for(ms(50));
    }
    for number in 100..110 {
        world.stop(number);
    }
    let up_links = world.node(1).links.values().filter(|link| link.side == Side::Up).count();
    assert!(up_links <= 4, "{up_links} links for one address");
    assert!(before.iter().all(|link| world.node(1).links.contains_key(&link.0)));
    world.run_for(secs(20));
    assert!(world.has_channels(0, 4));
    assert_eq!(slots(&world, 1), before, "the strangers' empty links are gone");
}

#[test]
fn links_are_bounded_and_empty_links_make_room() {
    let mut plan = Plan::new(Class::L, 1);
    plan.caps.links = 3;
    let mut world = up(plan);
    for number in 100..106u8 {
        world.start_as(
            number.into(),
            0,
            SocketAddr::from(([6, 6, 6, number], 6)),
            SocketAddr::from(([6, 6, 6, number], 7)),
        );
        world.run_for(secs(2));
    }
    assert_eq!(world.node(1).control.class(0).links(), 3 + 1, "three entries and the exit");
    assert!(world.refused(1, Refusal::LinksFull) > 0, "the first three carry channels and stay");
    assert!(world.has_channels(0, 4));
    assert_eq!(world.node(105).control.class(0).open_channels(), 0);
}

#[test]
fn links_never_used_make_room_first() {
    let mut plan = Plan::new(Class::L, 1);
    plan.channels = 0;
    plan.caps.links = 2;
    let mut world = World::new(plan);
    world.run_for(secs(2));
    let link = world.node(1).links.iter().find(|l| l.1.side == Side::Up).map(|l| *l.0).expect("the entry's");
    // Spoofed sources: no cell under the new keys ever arrives.
    world.tap = Box::new(|_, packet| {
        let spoofed = packet.from.ip().to_string().starts_with("6.");
        if spoofed && !is_handshake_len(packet.bytes.len()) { Fate::Lose } else { Fate::Pass }
    });
    for number in 100..105u8 {
        let address = |port| SocketAddr::from(([6, 6, 6, number], port));
        world.start_as(number.into(), 0, address(6), address(7));
        world.run_for(ms(100));
        world.stop(number.into());
    }
    assert!(world.node(1).links.contains_key(&link));
    assert_eq!(world.node(1).control.class(0).links(), 3);
    assert_eq!(world.node(1).saw(|e| matches!(e, Event::LinkDown { .. })), 0);
}

#[test]
fn overtaken_message_1_does_not_move_the_entry_to_a_new_link() {
    let mut plan = Plan::new(Class::L, 1);
    plan.timing.renew_after = secs(20);
    let mut world = up(plan);
    let (mut calls, mut answers) = (0, 0);
    world.tap = Box::new(move |_, packet| {
        if !is_handshake_len(packet.bytes.len()) {
            return Fate::Pass;
        }
        if packet.from == up_address(1) {
            // The first response is slow, so the entry sends a second message 1 ...
            answers += 1;
            return if answers == 1 { Fate::Delay(secs(5)) } else { Fate::Pass };
        }
        if packet.from == down_address(0) {
            // ... which is slow, too, and arrives when the first handshake is in use.
            calls += 1;
            return if calls == 3 || calls == 4 { Fate::Delay(ms(1500)) } else { Fate::Pass };
        }
        Fate::Pass
    });
    world.run_for(secs(35));
    assert_eq!(world.refused(1, Refusal::TokenSpent), 1);
    assert_eq!(world.node(1).links.len(), 2);
    assert!(world.has_channels(0, 4));
}

#[test]
fn roaming_entry_keeps_link_and_channels() {
    let mut world = up(Plan::new(Class::L, 2));
    let moved = SocketAddr::from(([10, 9, 9, 9], 2000));
    let before: Vec<_> = world.node(0).channels.values().map(|c| c.down).collect();
    let link = world.node(1).link(Side::Up).0;
    world.nodes.get_mut(&0).unwrap().down_address = moved;
    world.run_for(secs(6));
    let (now, state) = world.node(1).link(Side::Up);
    assert_eq!((now, state.peer), (link, moved));
    let told = Event::LinkMoved { side: Side::Up, link, peer: moved };
    assert_eq!(world.node(1).saw(|e| *e == told), 1);
    assert_eq!(world.node(0).channels.values().map(|c| c.down).collect::<Vec<_>>(), before);
    assert!(world.has_channels(0, 4));
}

#[test]
fn data_cell_promotes_like_a_control_cell() {
    let mut world = World::new(Plan::new(Class::L, 1));
    world.tap = Box::new(|_, packet| {
        if packet.from == down_address(0) && !is_handshake_len(packet.bytes.len()) { Fate::Lose } else { Fate::Pass }
    });
    let start = world.now;
    assert!(world.run_until(start + secs(1), |w| w.node(1).links.values().any(|l| l.side == Side::Up)));
    let (link, state) = world.node(1).link(Side::Up);
    let slot = state.next().expect("it is not promoted yet");
    assert_eq!(state.current(), None);
    let from = down_address(0);
    world.input(1, Input::Promoted { link, slot: SlotId(slot.0 + 1), from });
    assert_eq!(world.node(1).link(Side::Up).1.current(), None);
    for _ in 0..2 {
        world.input(1, Input::Promoted { link, slot, from });
        assert_eq!(world.node(1).link(Side::Up).1.current(), Some(slot));
    }
}

#[test]
fn token_does_not_promote_a_link_that_was_never_up() {
    let mut world = World::new(Plan::new(Class::L, 1));
    world.tap = Box::new(|_, packet| {
        if packet.from == down_address(0) && !is_handshake_len(packet.bytes.len()) { Fate::Lose } else { Fate::Pass }
    });
    // The entry hears nothing, so it sends another message 1, which has the token of the first.
    let end = world.now + secs(8);
    assert!(
        world.run_until(end, |w| w.node(1).control.class(0).counters().handshakes_done >= 4),
        "two of the exit's link"
    );
    let (_, state) = world.node(1).link(Side::Up);
    assert!(state.current().is_none() && state.next().is_some(), "a cell must give it an address");
    assert_eq!(world.node(1).saw(|e| matches!(e, Event::LinkUp { side: Side::Up, .. })), 0);
    world.tap = Box::new(|_, _| Fate::Pass);
    world.run_for(secs(5));
    assert!(world.has_channels(0, 4));
}

/// A renewal of the link to `position` whose message 1 an attacker has overtaken with copies: the attacker's address,
/// and message 2, which it has received.
fn overtaken_renewal(position: usize) -> (World, SocketAddr, Packet) {
    // Between hops it needs the previous hop's IP address, as behind one NAT.
    let thief = SocketAddr::from(([10, 0, 0, position as u8 - 1], 6));
    let mut plan = Plan::new(Class::L, 2);
    plan.timing.renew_after = secs(2);
    plan.timing.expire_after = secs(4);
    let mut world = up(plan);
    let here = up_address(position);
    world.record.clear();
    let end = world.now + secs(3);
    assert!(world.run_until(end, |w| halves(w, here).len() == 2));
    for packet in halves(&world, here) {
        world.deliver_now(&Packet { from: thief, ..packet.clone() }, packet.bytes);
    }
    let answer = halves(&world, thief).pop().expect("an answer goes where message 1 came from");
    (world, thief, answer)
}

#[test]
fn copied_message_1_does_not_redirect_the_links_cells() {
    for position in 1..=3 {
        let (mut world, thief, answer) = overtaken_renewal(position);
        let home = down_address(position - 1);
        let (link, before) = world.node(position).link(Side::Up);
        let slot = before.next().expect("not promoted yet");
        assert_eq!(before.peer, home, "and changes nothing before a cell has come");
        // It passes message 2 on.
        world.deliver_now(&Packet { from: thief, to: home, ..answer.clone() }, answer.bytes);
        let promoted = |w: &World| w.node(position).links[&link].current() == Some(slot);
        assert!(world.run_until(world.now + secs(1), promoted), "position {position}");
        assert_eq!(world.node(position).links[&link].peer, home, "position {position}");
        world.record.clear();
        world.run_for(secs(10));
        assert_eq!(world.record.iter().filter(|packet| packet.to == thief).count(), 0);
        assert!(world.has_channels(0, 4));
    }
}

#[test]
fn relayed_first_cell_does_not_redirect_a_link() {
    for position in 1..=3 {
        let (mut world, thief, answer) = overtaken_renewal(position);
        let (home, here) = (down_address(position - 1), up_address(position));
        let sent = world.record.len();
        world.deliver_now(&Packet { from: thief, to: home, ..answer.clone() }, answer.bytes);
        // The first cell under the new keys comes from the attacker, too, before the genuine one.
        let first = world.record[sent..].iter().find(|p| p.to == here && !is_handshake_len(p.bytes.len())).cloned();
        let first = first.expect("the initiator sends a keepalive at once");
        world.deliver_now(&Packet { from: thief, ..first.clone() }, first.bytes);
        world.record.clear();
        world.run_for(secs(10));
        let (link, _) = world.node(position).link(Side::Up);
        assert_eq!(world.node(position).links[&link].peer, home, "position {position}");
        assert_eq!(world.record.iter().filter(|packet| packet.to == thief).count(), 0, "position {position}");
        assert_eq!(world.node(position).control.class(0).counters().moves_refused, 1, "position {position}");
        assert!(world.has_channels(0, 4));
    }
}

#[test]
fn slow_links_keep_their_channels() {
    let mut world = World::new(Plan::new(Class::L, 1));
    world.tap = Box::new(|_, _| Fate::Delay(ms(400)));
    world.run_for(secs(20));
    assert!(world.has_channels(0, 4));
    let before: Vec<_> = world.node(0).channels.values().map(|c| c.down).collect();
    world.run_for(secs(60));
    assert!(world.has_channels(0, 4));
    assert_eq!(world.node(0).channels.values().map(|c| c.down).collect::<Vec<_>>(), before);
    assert_eq!(world.node(1).links.len(), 2);
}

#[test]
fn unused_link_expires() {
    let mut plan = Plan::new(Class::L, 1);
    plan.timing.renew_after = secs(20);
    plan.timing.expire_after = secs(30);
    let mut world = up(plan);
    world.stop(0);
    world.run_for(secs(26));
    assert_eq!(world.node(1).link(Side::Up).1.slot_count(), 1);
    world.run_for(secs(10));
    assert!(!world.node(1).has_link(Side::Up));
    assert_eq!(world.node(1).control.class(0).open_channels(), 0);
    assert_eq!(world.node(1).control.class(0).links(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn chain_recovers_from_any_fault_sequence(
        seed in any::<u64>(),
        lost in 0.0..0.6,
        copied in 0.0..0.3,
        late_ms in 0u64..1500,
        restarts in prop::collection::vec((0usize..4, 0u64..8000), 0..6),
        quick in any::<bool>(),
    ) {
        let mut plan = Plan::new(Class::S, 2);
        if quick {
            plan.timing.renew_after = secs(2);
            plan.timing.expire_after = secs(6);
        }
        let mut world = World::new(plan);
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        world.tap = Box::new(move |_, _| {
            if rng.random_bool(lost) {
                Fate::Lose
            } else if rng.random_bool(copied) {
                Fate::Copy
            } else {
                Fate::Delay(ms(rng.random_range(0..=late_ms)))
            }
        });
        let mut entries = 1;
        for (position, after) in restarts {
            world.run_for(ms(after));
            // An address has four links, and links with channels never make room (SPEC 4.5.5). This model has no data
            // plane that would end the idle channels of an entry that is gone.
            entries += usize::from(position == 0);
            if position != 0 || entries <= 4 {
                world.start(position);
            }
        }
        world.run_for(secs(5));
        world.tap = Box::new(|_, _| Fate::Pass);
        // An entry detects a dead channel by its pings within a second.
        let start = world.now;
        for _ in 0..30 {
            world.run_for(secs(1));
            for channel in world.node(0).channels.keys().copied().collect::<Vec<_>>() {
                if !world.agrees(0, channel) {
                    world.end(0, channel, EndReason::Lost);
                }
            }
            if world.has_channels(0, 4) {
                break;
            }
        }
        prop_assert!(world.has_channels(0, 4), "not after {:?}", world.now - start);
    }

    #[test]
    fn hostile_datagrams_never_stop_a_node_or_get_a_response(
        garbage in prop::collection::vec(
            (any::<bool>(), prop::sample::select([&HANDSHAKE_LENS[..], &[0, 1, 8, 671, 1408]].concat()), any::<[u8; 12]>()),
            1..40,
        ),
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1u8..), 1..40),
        cells in prop::collection::vec((0u32..4, 0u32..12, any::<u32>(), 0u64..1 << 40, any::<u8>(), 0u8..4, 0usize..1500), 1..40),
    ) {
        let mut world = up(Plan::new(Class::L, 1));
        let seen = world.record.clone();
        for position in 0..=2 {
            let before = world.record.len();
            for (is_up, len, head) in &garbage {
                let mut bytes = vec![0x5a; *len];
                let n = bytes.len().min(12);
                bytes[..n].copy_from_slice(&head[..n]);
                if let Some(kind) = bytes.first_mut() {
                    *kind %= 5;
                }
                for first in [false, true] {
                    if first && bytes.len() > 4 {
                        bytes[1..4].fill(0);
                    }
                    let side = if *is_up { Side::Up } else { Side::Down };
                    let from = down_address(0);
                    world.input(position, Input::Handshake { side, from, datagram: &mut bytes.clone() });
                }
            }
            for (which, at, flip) in &mutations {
                let packet = which.get(&seen);
                let mut bytes = packet.bytes.clone();
                // mac2 is ignored, so a datagram with another mac2 is a replay.
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
                for side in [Side::Up, Side::Down] {
                    world.input(position, Input::Handshake { side, from: packet.from, datagram: &mut bytes.clone() });
                }
            }
            for (link, slot, channel, seq, sub, kind, len) in &cells {
                let (link, slot) = (LinkId(*link), SlotId(*slot));
                let kind = [wire::cell::CellKind::Data, wire::cell::CellKind::Setup, wire::cell::CellKind::Ack, wire::cell::CellKind::Link]
                    [usize::from(*kind)];
                let header = wire::cell::Header { channel: *channel, seq: *seq, sub: *sub, kind, class: Class::L };
                for len in [*len, 1344, 1360, 1376] {
                    let mut body = vec![1; len];
                    let from = down_address(0);
                    world.input(position, Input::Cell { link, slot, from, header, body: &mut body });
                    world.input(position, Input::Promoted { link: LinkId(link.0 + 7), slot, from });
                }
            }
            prop_assert_eq!(world.record.len(), before, "node {} answered", position);
        }
        world.run_for(secs(3));
        prop_assert!(world.has_channels(0, 4));
    }
}
