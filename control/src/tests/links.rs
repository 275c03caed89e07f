//! Handshakes and cells of links.

use super::*;

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
    let accepted = world.node(1).control.class(0).counters().cells;
    world.deliver_now(&real, real.bytes.clone());
    assert_eq!(world.node(1).control.class(0).counters().cells, accepted + 1);
    world.deliver_now(&real, real.bytes.clone());
    assert_eq!(world.refused(1, Refusal::CellReplayed), 1);
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
    assert_eq!(world.node(0).control.class(0).counters().refused_total(), 2);
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
