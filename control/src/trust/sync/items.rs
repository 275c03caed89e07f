//! The items of descriptors, records and signatures: which of them the other side lacks, and what becomes of one that
//! arrives.

use super::super::SignedDescriptor;
use super::super::bundle::Signatures;
use super::super::message::{Ask, Held, ItemKind};
use super::super::view::{BadRecord, BadSignatures, Bundle, Taken, View};
use super::{Link, News, Refused};

/// An item that this node can send.
pub(super) struct Item {
    pub(super) kind: ItemKind,
    pub(super) bytes: Vec<u8>,
}

/// The intervals whose records and signatures are carried now: those which hops sign for, and the first one of an epoch
/// whose records are published and not signed yet.
pub(super) fn intervals(view: &View, wall_ms: u64) -> Vec<u64> {
    let times = view.times();
    let interval = times.signable_at(wall_ms);
    let next = times.switch(times.epoch_of(interval) + 1);
    let published = times.publish_at(times.epoch_of(next)) <= wall_ms && next > interval;
    times.signable(wall_ms).chain(published.then_some(next)).collect()
}

pub(super) fn own_ask(view: &View, interval: u64, answer: bool, wall_ms: u64) -> Ask {
    let bundle = best(view, interval);
    Ask {
        answer,
        clock_ms: wall_ms,
        interval,
        hash: bundle.map_or([0; 8], |bundle| hash_tag(&bundle.hash())),
        signatures: bundle.map_or(0, |bundle| bundle.signatures.present()),
        held: view.held(interval),
    }
}

fn hash_tag(hash: &[u8; 32]) -> [u8; 8] {
    *hash.first_chunk().expect("a hash has 32 bytes")
}

/// Of the sets of records that somebody has signed, that with the most signatures.
pub(in crate::trust) fn best(view: &View, interval: u64) -> Option<&Bundle> {
    view.bundles(interval).iter().max_by_key(|bundle| (bundle.signatures.present().count_ones(), bundle.hash()))
}

/// What the other side holds for an interval: what its ask said, or what an ask for another interval lets conclude.
pub(super) fn theirs(view: &View, link: &Link, interval: u64) -> Option<Ask> {
    if let Some(ask) = link.theirs.iter().find(|ask| ask.interval == interval) {
        return Some(ask.clone());
    }
    let epoch = view.times().epoch_of(interval);
    let same_epoch = |ask: &&Ask| view.times().epoch_of(ask.interval) == epoch;
    let known = link.theirs.iter().rev().find(same_epoch).or_else(|| link.theirs.back())?;
    let held = if same_epoch(&known) {
        known.held.clone()
    } else {
        known.held.iter().map(|held| Held { draw: 0, record: [0; 4], ..*held }).collect()
    };
    Some(Ask { interval, hash: [0; 8], signatures: 0, held, ..known.clone() })
}

pub(super) fn descriptor_item(hop: usize, descriptor: &SignedDescriptor) -> Item {
    Item { kind: ItemKind::Descriptor(hop as u8), bytes: descriptor.bytes().to_vec() }
}

/// What a neighbouring hop lacks for an interval: descriptors, then records, then signatures, each of which needs those
/// before it.
pub(super) fn lacking(view: &View, interval: u64, theirs: &Ask) -> Vec<Item> {
    let epoch = view.times().epoch_of(interval);
    let mut descriptors = Vec::new();
    let mut records = Vec::new();
    for hop in 1..=view.hops() {
        let held = theirs.held[hop - 1];
        let newest = view.descriptor(hop).filter(|newest| newest.short_rank() > held.rank());
        descriptors.extend(newest.map(|newest| descriptor_item(hop, newest)));
        let Some(record) = view.record(hop, epoch) else { continue };
        // Not by the draw: of two records the one with the higher revision may have the lower draw (SPEC 7.8.4).
        if record.hash()[..4] != held.record {
            let certificate = view.descriptors(hop).iter().find(|other| *other.hash() == record.descriptor);
            let is_sent = newest.is_some_and(|newest| *newest.hash() == record.descriptor);
            let certificate = certificate.filter(|other| !is_sent && other.short_rank() != held.rank());
            descriptors.extend(certificate.map(|other| descriptor_item(hop, other)));
            records.push(Item { kind: ItemKind::Record(hop as u8), bytes: record.travelling().to_vec() });
        }
    }
    let signatures = best(view, interval).filter(|bundle| lacks_signatures(&bundle.signatures, theirs));
    let signatures = signatures.map(|bundle| signatures_item(&bundle.signatures));
    descriptors.into_iter().chain(records).chain(signatures).collect()
}

pub(super) fn lacks_signatures(mine: &Signatures, theirs: &Ask) -> bool {
    theirs.hash != hash_tag(&mine.hash) || mine.present() & !theirs.signatures != 0
}

pub(super) fn signatures_item(signatures: &Signatures) -> Item {
    Item { kind: ItemKind::Signatures, bytes: signatures.to_bytes() }
}

pub(super) fn take_item(
    view: &mut View,
    wall_ms: u64,
    kind: ItemKind,
    bytes: &[u8],
    hops: usize,
) -> Result<Outcome, Refused> {
    match kind {
        ItemKind::Descriptor(hop) => {
            let hop = usize::from(hop);
            let taken = view.take_carried_descriptor(hop, bytes, wall_ms).ok_or(Refused::Item)?;
            let news = if taken == Taken::New { News::Descriptor(hop) } else { News::Certificate(hop) };
            Ok(Outcome::of(taken, news))
        }
        ItemKind::Record(hop) => {
            let hop = usize::from(hop);
            match view.take_record(hop, bytes, wall_ms) {
                Ok(taken) => Ok(Outcome::of(taken, News::Record(hop))),
                Err(BadRecord::NoDescriptor) => Ok(Outcome::Early),
                Err(_) => Err(Refused::Item),
            }
        }
        ItemKind::Signatures => {
            let signatures = Signatures::read(bytes, hops)?;
            match view.take_signatures(&signatures, wall_ms) {
                Ok(taken) => Ok(Outcome::of(taken, News::Signatures(signatures.interval))),
                Err(BadSignatures::Twice(hop)) => Ok(Outcome::News(News::SignedTwice(hop, signatures.interval))),
                Err(BadSignatures::NoRecord) => Ok(Outcome::Early),
                Err(_) => Err(Refused::Item),
            }
        }
        ItemKind::Clock => Ok(Outcome::Known),
    }
}

/// What became of an item.
pub(super) enum Outcome {
    News(News),
    /// It changes nothing.
    Known,
    /// What it needs is not here.
    Early,
}

impl Outcome {
    fn of(taken: Taken, news: News) -> Outcome {
        if taken == Taken::Known { Outcome::Known } else { Outcome::News(news) }
    }
}

/// The hops whose records signatures name and this node does not hold.
pub(super) fn unknown_records(view: &View, kind: ItemKind, bytes: &[u8], hops: usize) -> u8 {
    let signatures = (kind == ItemKind::Signatures).then(|| Signatures::read(bytes, hops).ok()).flatten();
    signatures.map_or(0, |signatures| view.lacks_records(signatures.interval, &signatures.records))
}
