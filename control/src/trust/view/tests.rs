use wire::cell::Class;
use wire::kdf::Secret;
use wire::paced::{PacedClass, PacedTerms};
use wire::setup::{SetupKey, Suite};

use super::super::chain::ClassTerms;
use super::super::descriptor::tests::{NOT_AFTER, identity, node};
use super::super::descriptor::{self, Contact, NodeDescriptor};
use super::super::encoding::Signer;
use super::super::record::EpochRecord;
use super::*;

pub(crate) const HOPS: usize = 3;
/// In the middle of an interval and of an epoch.
pub(crate) const NOW_MS: u64 = 1_005_000;

/// The terms of three hops, whose identities have the seeds 1 to 3.
pub(crate) fn terms() -> ChainTerms {
    ChainTerms {
        suite: Suite::X25519,
        interval_s: 10,
        epoch_s: 600,
        classes: vec![ClassTerms { class: Class::L, mixing_delay_ms: 5, lifetime_s: 60 }],
        paced: Vec::new(),
        identities: (1..=HOPS as u8).map(|seed| identity(seed).public()).collect(),
    }
}

pub(crate) fn signer(hop: usize) -> Signer {
    identity(hop as u8 + 100)
}

fn signed(hop: usize, change: impl Fn(&mut NodeDescriptor)) -> SignedDescriptor {
    let mut descriptor = node(hop, HOPS);
    change(&mut descriptor);
    descriptor::tests::signed(descriptor, hop)
}

fn view() -> View {
    let mut view = View::new(terms());
    for hop in 1..=HOPS {
        assert_eq!(view.take_descriptor(hop, signed(hop, |_| ()), NOW_MS / 1000), Ok(Taken::New));
    }
    view
}

fn record(view: &View, hop: usize, epoch: u64, draw: u64) -> SignedRecord {
    let descriptor = view.descriptor(hop).unwrap();
    let record = EpochRecord {
        identity: descriptor.identity,
        descriptor: *descriptor.hash(),
        revision: descriptor.revision,
        epoch,
        draw,
        setup: SetupKey::generate(Suite::X25519, Secret::new([draw as u8; 32])).public(),
    };
    record.sign(view.chain(), &signer(hop))
}

/// A view with a record of every hop for the running epoch.
fn full() -> View {
    let mut view = view();
    for hop in 1..=HOPS {
        let record = record(&view, hop, 1, 5);
        assert_eq!(view.take_record(hop, record.travelling(), NOW_MS), Ok(Taken::New));
    }
    view
}

fn signatures(view: &View, interval: u64, signers: &[usize]) -> Signatures {
    let records = view.records(interval).unwrap();
    let records: Vec<&SignedRecord> = records.iter().map(|record| &**record).collect();
    let mut all = Signatures::new(view.chain(), interval, &records);
    for hop in signers {
        all.signatures[hop - 1] = Some(bundle::sign(&signer(*hop), &all.hash));
    }
    all
}

#[test]
fn descriptor_in_the_wrong_place_is_refused() {
    let mut view = View::new(terms());
    let mut refused = |hop, descriptor| view.take_descriptor(hop, descriptor, 1005).unwrap_err();
    assert_eq!(refused(1, signed(2, |_| ())), BadDescriptor::Misplaced { found: 2, expected: 1 });
    let foreign = descriptor::tests::signed(node(9, 10), 9);
    assert_eq!(refused(1, foreign), BadDescriptor::Foreign(1));
    assert_eq!(refused(1, signed(1, |d| d.role = HopRole::Exit)), BadDescriptor::NotAMix(1));
    assert_eq!(refused(3, signed(3, |d| d.role = HopRole::Mix)), BadDescriptor::NotAnExit(3));
    let other_class = signed(1, |d| d.contacts[0].class = Class::S.into());
    assert_eq!(refused(1, other_class), BadDescriptor::NoContact(Class::L.into()));
    assert_eq!(refused(1, signed(1, |d| d.not_before = 1065)), BadDescriptor::NotYet(60));
}

#[test]
fn hop_needs_a_contact_for_each_paced_class() {
    let paced = PacedClass::new(Class::S);
    let mut view = View::new(ChainTerms { paced: vec![PacedTerms::new(paced, "voice", HOPS)], ..terms() });
    let refused = view.take_descriptor(1, signed(1, |_| ()), 1005).unwrap_err();
    assert_eq!(refused, BadDescriptor::NoContact(paced.into()));
    assert!(refused.to_string().contains("class paced-S"), "{refused}");
    let with_paced = signed(1, |d| {
        let contact = Contact { class: paced.into(), ..d.contacts[0].clone() };
        d.contacts.push(contact);
    });
    assert_eq!(view.take_descriptor(1, with_paced, 1005), Ok(Taken::New));
}

#[test]
fn key_of_another_hop_is_no_key_for_a_new_chain() {
    let mut view = view();
    assert_eq!(view.check_own_keys(1), Ok(()));
    let signing = node(2, HOPS).signing;
    let thief = signed(1, |d| (d.revision, d.signing) = (2, signing));
    assert_eq!(view.take_descriptor(1, thief, 1005), Ok(Taken::New), "it keeps nobody out but itself");
    assert_eq!(view.check_own_keys(1), Err(BadDescriptor::SharedKey(1, 2)));
    let renewed = signed(2, |d| d.revision = 2);
    assert_eq!(view.take_descriptor(2, renewed, 1005), Ok(Taken::New));
}

#[test]
fn highest_revision_counts_and_the_floor_revokes() {
    let mut view = view();
    let at = |revision, floor| signed(1, move |d| (d.revision, d.floor) = (revision, floor));
    assert_eq!(view.take_descriptor(1, at(5, 0), 1005), Ok(Taken::New));
    assert_eq!(view.take_descriptor(1, at(5, 0), 1005), Ok(Taken::Known));
    assert_eq!(view.take_descriptor(1, at(3, 0), 1005), Ok(Taken::Earlier));
    assert_eq!(view.descriptor(1).unwrap().revision, 5);
    assert_eq!(view.take_descriptor(1, at(6, 4), 1005), Ok(Taken::New));
    let revisions: Vec<u64> = view.descriptors(1).iter().map(|d| d.revision).collect();
    assert_eq!(revisions, [6, 5]);
    let refused = view.take_descriptor(1, at(3, 0), 1005);
    assert_eq!(refused, Err(BadDescriptor::Revoked { revision: 3, floor: 4 }));
    // A later descriptor that does not know of the revocation does not undo it.
    assert_eq!(view.take_descriptor(1, at(7, 0), 1005), Ok(Taken::New));
    assert_eq!(view.floor(1), 4);
}

#[test]
fn floor_of_a_lower_descriptor_is_news_of_a_refused_one_not() {
    let mut view = view();
    let other_role = signed(1, |d| (d.revision, d.floor, d.role) = (9, 9, HopRole::Exit));
    assert_eq!(view.take_descriptor(1, other_role, 1005), Err(BadDescriptor::NotAMix(1)));
    assert_eq!((view.floor(1), view.descriptors(1).len()), (0, 1));
    // It arrives late and is not kept, but its floor counts and is saved.
    for revision in 11..15 {
        assert_eq!(view.take_descriptor(1, signed(1, |d| d.revision = revision), 1005), Ok(Taken::New));
    }
    let revoking = signed(1, |d| (d.revision, d.floor) = (10, 10));
    assert_eq!(view.take_descriptor(1, revoking.clone(), 1005), Ok(Taken::Earlier));
    assert_eq!(view.take_descriptor(1, revoking, 1005), Ok(Taken::Known));
    assert_eq!(view.floor(1), 10);
}

#[test]
fn of_two_descriptors_with_one_revision_all_choose_the_same() {
    let a = signed(1, |d| d.revision = 5);
    let b = signed(1, |d| (d.revision, d.not_after) = (5, NOT_AFTER - 1));
    let chosen = [[a.clone(), b.clone()], [b, a]].map(|order| {
        let mut view = view();
        order.into_iter().for_each(|descriptor| assert!(view.take_descriptor(1, descriptor, 1005).is_ok()));
        *view.descriptor(1).unwrap().hash()
    });
    assert_eq!(chosen[0], chosen[1]);
}

#[test]
fn expired_descriptor_serves_for_contact_but_certifies_nothing() {
    let mut view = full();
    assert!(view.records(100).is_some());
    let expired = signed(1, |d| (d.revision, d.not_after) = (2, 900));
    assert_eq!(view.take_descriptor(1, expired, 1005), Ok(Taken::New));
    assert_eq!(view.descriptor(1).unwrap().revision, 2);
    // The record names the earlier one, which is valid.
    assert!(view.records(100).is_some());
    let late = record(&view, 1, 1, 9);
    assert_eq!(view.take_record(1, late.travelling(), NOW_MS), Err(BadRecord::Invalid));
    view.forget(1000 * NOT_AFTER);
    assert_eq!(view.descriptors(1).len(), 1);
    assert!(view.records(100).is_none());
}

#[test]
fn highest_draw_counts_and_bundles_under_way_stay() {
    let mut view = full();
    let older = signatures(&view, 100, &[1, 2]);
    let newer = record(&view, 3, 1, 6);
    assert_eq!(view.take_record(3, newer.travelling(), NOW_MS), Ok(Taken::New));
    assert_eq!(view.record(3, 1).unwrap().draw, 6);
    assert_eq!(view.take_signatures(&older, NOW_MS), Ok(Taken::New));
    assert_eq!(view.bundles(100)[0].signatures.present(), 0b011);
}

#[test]
fn hop_that_draws_often_is_heard_twice_in_an_interval() {
    let mut view = full();
    let mut draw = |draw, now_ms| {
        let record = record(&view, 1, 1, draw);
        view.take_record(1, record.travelling(), now_ms)
    };
    assert_eq!(draw(6, NOW_MS), Ok(Taken::New));
    assert_eq!(draw(7, NOW_MS), Err(BadRecord::TooMany));
    assert_eq!(draw(6, NOW_MS), Ok(Taken::Known), "known ones are not counted");
    assert_eq!(draw(7, NOW_MS + 10_000), Ok(Taken::New));
}

#[test]
fn replayed_records_use_up_no_share_of_new_ones() {
    let mut view = full();
    let mut draw = |draw, now_ms| {
        let record = record(&view, 1, 1, draw);
        view.take_record(1, record.travelling(), now_ms)
    };
    for (at, new) in [(0, 16), (1, 17), (2, 18)] {
        assert_eq!(draw(new, NOW_MS + 10_000 * at), Ok(Taken::New));
    }
    // A neighbour plays old ones back.
    let now_ms = NOW_MS + 30_000;
    (6..12).for_each(|old| assert_eq!(draw(old, now_ms), Ok(Taken::Known)));
    assert_eq!(draw(19, now_ms), Ok(Taken::New));
}

#[test]
fn neighbours_bring_few_descriptors_an_epoch() {
    let mut view = view();
    let at = |revision| signed(1, move |d| d.revision = revision).bytes().to_vec();
    // What its identity has not signed uses nothing up, nor what is there already.
    for revision in 20..30 {
        let mut forged = at(revision);
        forged[200] ^= 1;
        assert_eq!(view.take_carried_descriptor(1, &forged, NOW_MS), None);
        assert_eq!(view.take_carried_descriptor(1, &at(1), NOW_MS), Some(Taken::Known));
    }
    for revision in 1..=u64::from(NEW_DESCRIPTORS_MAX) {
        assert!(view.take_carried_descriptor(1, &at(30 + revision), NOW_MS).is_some());
    }
    assert_eq!(view.take_carried_descriptor(1, &at(50), NOW_MS), None);
    assert!(view.take_carried_descriptor(2, signed(2, |d| d.revision = 5).bytes(), NOW_MS).is_some());
    let revoking = |revision| signed(1, move |d| (d.revision, d.floor) = (revision, revision)).bytes().to_vec();
    assert!(view.take_carried_descriptor(1, &revoking(60), NOW_MS).is_some(), "a revocation always comes through");
    assert_eq!(view.take_carried_descriptor(1, &revoking(70), NOW_MS), None);
    assert!(view.take_carried_descriptor(1, &at(80), NOW_MS + 3_600_000).is_some());
}

#[test]
fn record_of_another_time_is_refused() {
    let mut view = view();
    let mut of = |epoch| {
        let record = record(&view, 1, epoch, 5);
        view.take_record(1, record.travelling(), NOW_MS)
    };
    assert_eq!([of(0), of(1), of(2)], [Ok(Taken::New), Ok(Taken::New), Ok(Taken::New)]);
    assert_eq!(of(3), Err(BadRecord::Epoch));
}

#[test]
fn bundle_is_complete_with_the_signatures_of_all_hops() {
    let mut view = full();
    for hop in 1..=HOPS {
        assert!(view.complete(100).is_none());
        let one = signatures(&view, 100, &[hop]);
        assert_eq!(view.take_signatures(&one, NOW_MS), Ok(Taken::New));
        assert_eq!(view.take_signatures(&one, NOW_MS), Ok(Taken::Known));
    }
    assert_eq!(view.complete(100).unwrap().records.len(), HOPS);
    assert!(view.newest_complete().is_some());
    view.forget(NOW_MS + 40_000);
    assert!(view.newest_complete().is_none());
}

#[test]
fn revocation_takes_back_records_and_bundles() {
    let mut view = full();
    assert_eq!(view.take_signatures(&signatures(&view, 100, &[1, 2, 3]), NOW_MS), Ok(Taken::New));
    assert!(view.complete(100).is_some());
    let revoking = signed(2, |d| (d.revision, d.floor) = (7, 7));
    assert_eq!(view.take_descriptor(2, revoking, NOW_MS / 1000), Ok(Taken::New));
    assert!(view.complete(100).is_none() && view.record(2, 1).is_none());
}

#[test]
fn hop_that_signs_two_bundles_is_named() {
    let mut view = full();
    assert_eq!(view.take_signatures(&signatures(&view, 100, &[1, 2]), NOW_MS), Ok(Taken::New));
    let newer = record(&view, 3, 1, 6);
    assert_eq!(view.take_record(3, newer.travelling(), NOW_MS), Ok(Taken::New));
    let second = signatures(&view, 100, &[2, 3]);
    let mut slander = second.clone();
    slander.signatures[1] = Some([7; 64]);
    assert_eq!(view.take_signatures(&slander, NOW_MS), Err(BadSignatures::Forged));
    assert_eq!(view.take_signatures(&second, NOW_MS), Err(BadSignatures::Twice(2)));
    assert!(view.complete(100).is_none());
}

#[test]
fn forged_signatures_change_nothing() {
    let mut view = full();
    let mut forged = signatures(&view, 100, &[1]);
    forged.signatures[1] = forged.signatures[0];
    forged.signatures[0] = None;
    assert_eq!(view.take_signatures(&forged, NOW_MS), Err(BadSignatures::Forged));
    let mut renamed = signatures(&view, 100, &[1]);
    renamed.interval = 101;
    assert_eq!(view.take_signatures(&renamed, NOW_MS), Err(BadSignatures::Hash));
    renamed.interval = 103;
    assert_eq!(view.take_signatures(&renamed, NOW_MS), Err(BadSignatures::Interval));
    let mut unknown = signatures(&view, 100, &[1]);
    unknown.records[2] = [0; 16];
    assert_eq!(view.take_signatures(&unknown, NOW_MS), Err(BadSignatures::NoRecord));
    assert!(view.bundles(100).is_empty() && view.bundles(101).is_empty());
}
