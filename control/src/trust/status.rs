//! What an operator or a user may want to know of descriptors, clocks and bundles.

use super::sync::{Sync, best};
use super::view::{Bundle, View};

/// The state of a node's trust.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustStatus {
    /// The running interval, by this node's clock.
    pub interval: u64,
    /// The epoch of its records.
    pub epoch: u64,
    /// The newest interval whose bundle all hops have signed, as far as this node knows.
    pub bundle: Option<u64>,
    /// The bundle of the running interval, or else the newest that is complete.
    pub newest: Option<BundleStatus>,
    /// A hop: nothing prevents it from signing. Its keys are here, valid, and saved, it knows a neighbour's clock, and
    /// its own is right.
    pub can_sign: bool,
    /// A hop: the first interval that it may sign; it may have signed earlier ones before its start.
    pub signs_from: u64,
    /// The neighbour's clock minus this node's that differs most, as far as they are known.
    pub clock_offset_ms: Option<i64>,
    /// Mix 1 first.
    pub hops: Vec<HopStatus>,
}

/// A bundle that some hops, or all, have signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BundleStatus {
    pub interval: u64,
    pub epoch: u64,
    /// What they sign.
    pub hash: [u8; 32],
    /// Mix 1 first.
    pub records: Vec<RecordStatus>,
}

/// The record of a hop in a bundle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordStatus {
    /// Of the descriptor whose signing key signs the record and the bundle.
    pub revision: u64,
    pub draw: u64,
    pub hash: [u8; 32],
    /// The hop has signed the bundle.
    pub has_signed: bool,
}

impl BundleStatus {
    fn of(view: &View, bundle: &Bundle) -> BundleStatus {
        let interval = bundle.signatures.interval;
        let present = bundle.signatures.present();
        let record = |(i, record): (usize, &std::sync::Arc<super::SignedRecord>)| RecordStatus {
            revision: record.revision,
            draw: record.draw,
            hash: *record.hash(),
            has_signed: present >> i & 1 == 1,
        };
        BundleStatus {
            interval,
            epoch: view.times().epoch_of(interval),
            hash: bundle.hash(),
            records: bundle.records.iter().enumerate().map(record).collect(),
        }
    }
}

/// What is held of a hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HopStatus {
    /// Revision of its newest descriptor, at an entry also if it does not count for contact yet; 0 if there is none.
    pub revision: u64,
    /// End of the validity of that descriptor, in seconds since 1970.
    pub not_after: u64,
    /// Descriptors of a lower revision are revoked.
    pub floor: u64,
    /// All neighbouring hops have this revision.
    pub neighbours_have: bool,
}

impl TrustStatus {
    /// Apart from what only a hop does. `bundles` has what came on the link of an entry; at a hop both views are one.
    pub(crate) fn of(view: &View, bundles: &View, sync: &Sync, wall_ms: u64) -> TrustStatus {
        let interval = view.times().interval_at(wall_ms);
        let hop = |hop| {
            let newest =
                [view, bundles].into_iter().filter_map(|view| view.descriptor(hop)).max_by_key(|one| one.rank());
            let (revision, not_after) = newest.map_or((0, 0), |newest| (newest.revision, newest.not_after));
            HopStatus {
                revision,
                not_after,
                floor: view.floor(hop),
                neighbours_have: sync.neighbours_have(hop, revision),
            }
        };
        let newest = best(bundles, interval).or_else(|| bundles.newest_complete());
        TrustStatus {
            interval,
            epoch: view.times().epoch_of(interval),
            bundle: bundles.newest_complete().map(|bundle| bundle.signatures.interval),
            newest: newest.map(|bundle| BundleStatus::of(bundles, bundle)),
            can_sign: false,
            signs_from: 0,
            clock_offset_ms: sync.offsets_ms().max_by_key(|offset| offset.unsigned_abs()),
            hops: (1..=view.hops()).map(hop).collect(),
        }
    }
}
