//! Links of a paced class, without their handshakes.

use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use wire::cell::{CellKind, Class};
use wire::paced::clock::ClockCell;
use wire::paced::{PacedClass, PacedTerms};

use super::*;
use crate::sim::{Plan, ms, secs, up_address};
use crate::{ClassControl, Control, UNIX_EPOCH};

/// Mix 1 of a chain with one class.
fn mix_1(is_paced: bool) -> Control {
    let (mut config, trust) = Plan::new(Class::L, 2).first(1);
    if is_paced {
        config.terms.classes.clear();
        config.terms.paced = vec![PacedTerms::new(PacedClass::new(Class::L), "data", 3)];
        config.paced = true;
    }
    let wall = UNIX_EPOCH + secs(1_800_000_000);
    Control::new(vec![config], trust, ChaCha20Rng::seed_from_u64(1), Duration::ZERO, wall).unwrap()
}

#[test]
fn path_check_waits_for_slots_in_a_paced_class() {
    for (is_paced, wait) in [(false, ms(1000)), (true, ms(1000 + 32 * 10))] {
        let mut control = mix_1(is_paced);
        let ClassControl { cx, links, .. } = &mut control.classes[0];
        let (old, new) = (up_address(5), up_address(6));
        let id = links.install_link(cx, secs(1), Side::Up, old);
        links.link_mut(id).unwrap().moving = Some(Moving::new(cx, secs(2), new));
        let mut peer_at = |at| {
            links.expire(cx, at);
            links.link(id).unwrap().peer
        };
        for probe in [0, 300, 600] {
            assert_eq!(peer_at(secs(2) + ms(probe)), old);
        }
        assert_eq!([ms(1), Duration::ZERO].map(|before| peer_at(secs(2) + wait - before)), [old, new]);
    }
}

#[test]
fn clocks_of_displaced_links_are_forgotten() {
    let mut control = mix_1(true);
    let ClassControl { cx, links, paced, .. } = &mut control.classes[0];
    let (paced, from, now) = (paced.as_mut().unwrap(), up_address(5), secs(1));
    let content = [&[LinkContent::Clock as u8][..], &ClockCell { sent: 1, peer: 0, received: 0 }.to_bytes()].concat();
    let header =
        PacedHeader { channel: 0, seq: 1, sub: 0, kind: CellKind::Link, class: PacedClass::new(Class::L), tag: [0; 4] };
    for _ in 0..10 {
        links.make_room(cx, now, from).unwrap();
        let link = links.install_link(cx, now, Side::Up, from);
        paced.cell(cx, links, &mut control.trust, (now, 1), (link, &header), &content).unwrap();
    }
    assert_eq!((links.len(), paced.clocks()), (4, 10));
    control.classes[0].tick(now, UNIX_EPOCH + secs(1_800_000_000));
    assert_eq!(control.classes[0].paced.as_ref().unwrap().clocks(), 0, "they have no slots either");
}
