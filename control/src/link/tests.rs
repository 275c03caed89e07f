//! Links without their handshakes: tables as large as they get, and links of paced classes.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::UNIX_EPOCH;

use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use wire::cell::{CellKind, Class};
use wire::paced::clock::ClockCell;
use wire::paced::terms::SEATS;
use wire::paced::{PacedClass, PacedTerms};

use super::*;
use crate::paced::{ClassTime, PacedCell};
use crate::sim::{Plan, ms, secs, up_address};
use crate::{ClassControl, Control, Output};

/// Control of Mix 1 in a free class.
fn free_mix_1() -> Control {
    control(Plan::new(Class::L, 2).first(1))
}

/// Control of Mix 1 in a paced class with the most seats.
fn mix_1() -> Control {
    let (mut config, trust) = Plan::new(Class::S, 3).first(1);
    let terms = PacedTerms::new(PacedClass::new(Class::S), "voice", 4);
    config.terms.classes.clear();
    config.terms.paced = vec![PacedTerms { seats: *SEATS.end(), ..terms }];
    config.paced = true;
    control((config, trust))
}

fn control((config, trust): (Config, crate::TrustSetup)) -> Control {
    let rng = ChaCha20Rng::seed_from_u64(1);
    Control::new(vec![config], trust, rng, secs(1000), UNIX_EPOCH + secs(1_800_000_000)).unwrap()
}

/// Where an entry is.
fn address(entry: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + entry), 4000))
}

/// Gives a link another slot, and promotes it.
fn renew(cx: &mut Context, links: &mut Links, now: Duration, id: LinkId, secrets: &LinkSecrets) {
    let peer = links.link(id).unwrap().peer;
    links.install_slot(cx, now, id, peer, secrets);
    let slot = links.link(id).and_then(|link| link.next.as_ref()).unwrap().id;
    links.promoted(cx, now, (id, slot), peer);
    cx.out.clear();
}

/// Makes the link of an entry, which is up.
fn link(cx: &mut Context, links: &mut Links, now: Duration, entry: u32, secrets: &LinkSecrets) -> LinkId {
    let id = links.install_link(cx, now, Side::Up, address(entry));
    renew(cx, links, now, id, secrets);
    id
}

fn secrets() -> LinkSecrets {
    LinkSecrets::derive(&[1; 32], &[2; 32], &[3; 32], &[4; 32])
}

#[test]
fn mix_1_has_two_links_for_each_of_the_most_seats() {
    let mut control = mix_1();
    let ClassControl { cx, links, .. } = &mut control.classes[0];
    let (now, secrets, most) = (secs(1000), secrets(), 2 * u32::from(*SEATS.end()));
    let newcomer = SocketAddr::from(([192, 0, 2, 1], 4000));
    let mut ids = HashSet::new();
    for entry in 0..most {
        if entry % 4096 == 0 {
            assert_eq!(links.make_room(cx, now, newcomer, &|_| true), Ok(()));
        }
        ids.insert(link(cx, links, now, entry, &secrets));
    }
    assert_eq!((ids.len(), links.len()), (32_768, 32_768));
    assert_eq!(links.make_room(cx, now, newcomer, &|_| true), Err(Refusal::LinksFull), "all have channels");
    let held = *ids.iter().max().unwrap();
    assert_eq!(links.make_room(cx, now, newcomer, &|link| link == held), Ok(()));
    assert_eq!((links.len(), links.side(held)), (32_767, Some(Side::Up)), "one without a channel has gone");

    control.tick(secs(1001), UNIX_EPOCH + secs(1_800_000_001));
    assert_eq!(control.class(0).links(), 32_767);
    control.tick(secs(1180), UNIX_EPOCH + secs(1_800_000_180));
    assert_eq!(control.class(0).links(), 0, "nobody has renewed one");
}

#[test]
fn each_link_ends_in_its_own_time() {
    let mut control = mix_1();
    let ClassControl { cx, links, .. } = &mut control.classes[0];
    let secrets = secrets();
    let first = link(cx, links, secs(1000), 1, &secrets);
    let second = link(cx, links, secs(1060), 2, &secrets);
    assert_eq!(links.expire(cx, secs(1179)), []);
    assert_eq!(links.due, secs(1180));
    assert_eq!(links.expire(cx, secs(1180)), [first]);
    links.retire(cx, first);
    assert_eq!(links.due, secs(1240));
    renew(cx, links, secs(1200), second, &secrets);
    assert_eq!(links.expire(cx, secs(1240)), [], "it has another slot");
    assert_eq!(links.due, secs(1380));
    assert_eq!(links.expire(cx, secs(1380)), [second]);
}

#[test]
fn path_check_waits_for_slots_in_a_paced_class() {
    for (mut control, wait) in [(free_mix_1(), ms(1000)), (mix_1(), ms(1000 + 32 * 10))] {
        let ClassControl { cx, links, .. } = &mut control.classes[0];
        let (old, new) = (up_address(5), up_address(6));
        let id = links.install_link(cx, secs(1001), Side::Up, old);
        links.link_mut(id).unwrap().moving = Some(Moving::new(cx, secs(1002), new));
        let mut peer_at = |at| {
            links.due = Duration::ZERO;
            links.expire(cx, at);
            links.link(id).unwrap().peer
        };
        for probe in [0, 300, 600] {
            assert_eq!(peer_at(secs(1002) + ms(probe)), old);
        }
        assert_eq!([ms(1), Duration::ZERO].map(|before| peer_at(secs(1002) + wait - before)), [old, new]);
    }
}

/// A hop whose clock was ahead is restarted with the right one: its neighbours would wait until its cells say a later
/// time.
#[test]
fn clock_cells_of_a_new_slot_count_although_they_are_earlier() {
    let mut control = mix_1();
    let ClassControl { cx, links, paced, .. } = &mut control.classes[0];
    let (paced, now) = (paced.as_mut().unwrap(), secs(1000));
    let id = links.install_link(cx, now, Side::Up, up_address(5));
    let header =
        PacedHeader { channel: 0, seq: 1, sub: 0, kind: CellKind::Link, class: PacedClass::new(Class::S), tag: [0; 4] };
    let mut take = |slot, sent| {
        let clock = ClockCell { sent, peer: 0, received: 0 };
        let content = [&[LinkContent::Clock as u8][..], &clock.to_bytes()].concat();
        let at = ClassTime { now, class_ns: 1 };
        let cell = PacedCell { at, link: id, slot: SlotId(slot), header: &header, content: &content };
        cx.out.clear();
        paced.cell(cx, links, &mut control.trust, &cell).unwrap();
        cx.out.iter().find_map(|output| match output {
            Output::Change(Change::Paced(PacedChange::ClockSeen { sent_ns, .. })) => Some(*sent_ns),
            _ => None,
        })
    };
    let seen = [(1, 5000), (1, 4000), (2, 100), (1, 6000), (2, 200)].map(|(slot, sent)| take(slot, sent));
    assert_eq!(seen, [Some(5000), Some(5000), Some(100), None, Some(200)]);
}

#[test]
fn clocks_of_displaced_links_are_forgotten() {
    let mut control = mix_1();
    let ClassControl { cx, links, paced, .. } = &mut control.classes[0];
    let (paced, from, now) = (paced.as_mut().unwrap(), up_address(5), secs(1000));
    let content = [&[LinkContent::Clock as u8][..], &ClockCell { sent: 1, peer: 0, received: 0 }.to_bytes()].concat();
    let header =
        PacedHeader { channel: 0, seq: 1, sub: 0, kind: CellKind::Link, class: PacedClass::new(Class::S), tag: [0; 4] };
    let secrets = secrets();
    for _ in 0..10 {
        let first = links.iter().map(|link| link.id).next();
        let id = links.install_link(cx, now, Side::Up, from);
        renew(cx, links, now, id, &secrets);
        let at = ClassTime { now, class_ns: 1 };
        let cell = PacedCell { at, link: id, slot: SlotId(0), header: &header, content: &content };
        paced.cell(cx, links, &mut control.trust, &cell).unwrap();
        first.into_iter().for_each(|first| links.retire(cx, first));
    }
    assert_eq!((links.len(), paced.clocks()), (1, 10));
    control.follow_links(now);
    assert_eq!(control.classes[0].paced.as_ref().unwrap().clocks(), 1);
}
