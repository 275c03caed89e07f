//! The descriptors, records and bundles of a chain that a node holds, and which of them count
//! (SPEC 7.3-7.6).
//!
//! Everything in here was verified when it came in. Nothing in here sends or signs: [`super::sync`]
//! carries, [`super::hop`] signs.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use thiserror::Error;
use wire::paced::PacedTerms;
use wire::setup::HopPublic;

use super::bundle::{self, Signatures, Tag};
use super::chain::ChainTerms;
use super::descriptor::{HopRole, SignedDescriptor, Validity};
use super::encoding::Malformed;
use super::message::Held;
use super::record::SignedRecord;
use super::times::Times;

/// Descriptors of one hop: the newest and earlier ones that records or statics still need.
const DESCRIPTORS_MAX: usize = 4;
/// Records of one hop and epoch: that which counts, and earlier ones that bundles under way still name.
const RECORDS_MAX: usize = 3;
/// New records of one hop and epoch that are taken in an interval.
const NEW_RECORDS_MAX: u8 = 2;
/// New descriptors of one hop that neighbours may bring in an epoch, and one more that revokes others. A hop that signs
/// many gives those who get a bundle at different times different ones.
const NEW_DESCRIPTORS_MAX: u8 = 8;
/// Number of intervals after the running one whose bundles are kept, and the least number of those before it.
const INTERVALS_AROUND: u64 = 2;

/// What a node holds of one hop.
#[derive(Default)]
struct Hop {
    /// Descriptors of a lower revision are revoked.
    floor: u64,
    /// Highest rank first.
    descriptors: Vec<Arc<SignedDescriptor>>,
    /// By epoch; of each highest rank first.
    records: BTreeMap<u64, Vec<Arc<SignedRecord>>>,
    /// New records that were taken for an epoch in the running interval.
    verified: BTreeMap<u64, (u64, u8)>,
    /// An epoch, and the new descriptors that neighbours sent in it.
    carried: (u64, u8),
}

/// Records with their descriptors, by position - 1.
type Named = (Vec<Arc<SignedRecord>>, Vec<Arc<SignedDescriptor>>);

/// The signatures over one set of records, and what they were verified with.
#[derive(Clone)]
pub struct Bundle {
    pub signatures: Signatures,
    /// By position - 1.
    pub records: Vec<Arc<SignedRecord>>,
    /// Those that the records name, by position - 1.
    pub descriptors: Vec<Arc<SignedDescriptor>>,
}

pub struct View {
    terms: ChainTerms,
    chain: [u8; 32],
    times: Times,
    /// Number of intervals before the running one whose bundles are kept.
    kept_before: u64,
    /// By position - 1.
    hops: Vec<Hop>,
    /// By interval; several sets of records only if hops do not agree.
    bundles: BTreeMap<u64, Vec<Bundle>>,
    /// Counts the changes of descriptors.
    version: u64,
}

/// What taking something in has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It counts from now on.
    New,
    /// It is kept beside that which counts, or its floor revokes others.
    Earlier,
    /// It was there already, or it is older than what is kept.
    Known,
}

/// Why a descriptor is not taken in.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BadDescriptor {
    #[error("its identity is not that of a hop of this chain")]
    Unknown,
    #[error("its identity is not that of hop {0} in this chain")]
    Foreign(usize),
    #[error("its identity is that of hop {found}, not of hop {expected}")]
    Misplaced { found: usize, expected: usize },
    #[error("hop {0} must be a mix, but the descriptor is an exit's")]
    NotAMix(usize),
    #[error("hop {0} must be the exit, but the descriptor is a mix's")]
    NotAnExit(usize),
    #[error("it has no address for class {0}, which the chain carries")]
    NoContact(wire::ids::ClassId),
    #[error("it is not valid for another {}: check this host's clock with `date -u`", crate::config::span(*.0))]
    NotYet(u64),
    #[error("its revision {revision} is revoked: {floor} is the lowest that counts")]
    Revoked { revision: u64, floor: u64 },
    #[error("hop {0} has a key that hop {1} has, too")]
    SharedKey(usize, usize),
}

/// Why a record is not taken in.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BadRecord {
    #[error("its descriptor is not held")]
    NoDescriptor,
    #[error("its descriptor has expired, or is revoked")]
    Invalid,
    #[error("it belongs to another time")]
    Epoch,
    #[error("the hop has drawn keys too often in this interval")]
    TooMany,
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Why signatures are not taken in.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BadSignatures {
    #[error("they belong to another time")]
    Interval,
    #[error("a record that they name is not held")]
    NoRecord,
    #[error("their hash is not that of the records they name")]
    Hash,
    #[error("a signature does not verify")]
    Forged,
    /// A hop, by position, has signed two sets of records for one interval. It is corrupt, or runs twice from a copy of
    /// its state.
    #[error("hop {0} signed two bundles of one interval")]
    Twice(usize),
}

/// Setups of a paced class use a bundle after its interval, until phase 1 of a batch that begins in the next interval
/// is over (SPEC 9.8.2), by a clock that is behind.
fn kept_before(terms: &ChainTerms) -> u64 {
    let of = |paced: &PacedTerms| {
        let times = paced.timetable(terms.identities.len());
        let phase_ms = times.begin(times.phase_len()) / 1_000_000;
        INTERVALS_AROUND + phase_ms.div_ceil(u64::from(terms.interval_s) * 1000)
    };
    terms.paced.iter().map(of).max().unwrap_or(INTERVALS_AROUND)
}

impl View {
    /// Nothing is held yet.
    pub fn new(terms: ChainTerms) -> View {
        let hops = terms.identities.iter().map(|_| Hop::default()).collect();
        let (chain, times, kept_before) = (terms.id(), Times::new(&terms), kept_before(&terms));
        View { chain, times, kept_before, terms, hops, bundles: BTreeMap::new(), version: 0 }
    }

    pub fn terms(&self) -> &ChainTerms {
        &self.terms
    }

    /// The chain's id.
    pub fn chain(&self) -> &[u8; 32] {
        &self.chain
    }

    pub fn times(&self) -> Times {
        self.times
    }

    /// Number of hops.
    pub fn hops(&self) -> usize {
        self.hops.len()
    }

    /// The newest descriptor of a hop, by position, whatever its validity.
    pub fn descriptor(&self, hop: usize) -> Option<&Arc<SignedDescriptor>> {
        self.hops[hop - 1].descriptors.first()
    }

    /// All of a hop that are held and not revoked, newest first.
    pub fn descriptors(&self, hop: usize) -> &[Arc<SignedDescriptor>] {
        &self.hops[hop - 1].descriptors
    }

    /// A revision of which two different descriptors of a hop are held. Its identity has signed both.
    pub fn ambiguous_revision(&self, hop: usize) -> Option<u64> {
        let same = |two: &&[Arc<SignedDescriptor>]| two[0].revision == two[1].revision;
        self.descriptors(hop).windows(2).find(same).map(|two| two[0].revision)
    }

    /// Differs from its last value if a descriptor was taken in, revoked or forgotten since.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The position of the hop with an identity.
    pub fn position(&self, identity: &[u8; 32]) -> Option<usize> {
        self.terms.identities.iter().position(|other| other == identity).map(|at| at + 1)
    }

    /// The lowest revision of a hop that is not revoked.
    pub fn floor(&self, hop: usize) -> u64 {
        self.hops[hop - 1].floor
    }

    /// Raises the lowest revision that counts.
    pub(super) fn raise_floor(&mut self, hop: usize, floor: u64) {
        let held = &mut self.hops[hop - 1];
        held.floor = held.floor.max(floor);
        let floor = held.floor;
        self.version += 1;
        held.descriptors.retain(|descriptor| descriptor.revision >= floor);
        for records in held.records.values_mut() {
            records.retain(|record| record.revision >= floor);
        }
        for bundles in self.bundles.values_mut() {
            bundles.retain(|bundle| bundle.descriptors[hop - 1].revision >= floor);
        }
    }

    /// Takes in a descriptor for a hop.
    ///
    /// # Errors
    /// See [`BadDescriptor`]. An expired one is taken: it still says where its node is.
    pub fn take_descriptor(
        &mut self,
        hop: usize,
        descriptor: SignedDescriptor,
        now_s: u64,
    ) -> Result<Taken, BadDescriptor> {
        self.check_place(hop, &descriptor)?;
        if let Validity::NotYet(seconds) = descriptor.validity(now_s) {
            return Err(BadDescriptor::NotYet(seconds));
        }
        let floor = self.floor(hop);
        if descriptor.revision < floor {
            return Err(BadDescriptor::Revoked { revision: descriptor.revision, floor });
        }
        let raises = descriptor.floor > floor;
        if raises {
            self.raise_floor(hop, descriptor.floor);
        }
        let rank = descriptor.rank();
        let held = &mut self.hops[hop - 1].descriptors;
        let at = held.partition_point(|other| other.rank() > rank);
        let is_held = held.get(at).is_some_and(|other| other.rank() == rank);
        let is_kept = at == 0 || matches!(descriptor.validity(now_s), Validity::Valid(_));
        if is_held || !is_kept || at >= DESCRIPTORS_MAX {
            return Ok(if raises { Taken::Earlier } else { Taken::Known });
        }
        held.insert(at, Arc::new(descriptor));
        held.truncate(DESCRIPTORS_MAX);
        self.version += 1;
        Ok(if at == 0 { Taken::New } else { Taken::Earlier })
    }

    /// Takes in a descriptor that a neighbour sent. None if it is refused, or if there were too many in this epoch:
    /// each one is written to disk.
    pub fn take_carried_descriptor(&mut self, hop: usize, bytes: &[u8], now_ms: u64) -> Option<Taken> {
        let epoch = self.times.epoch_of(self.times.interval_at(now_ms));
        let held = &mut self.hops[hop - 1];
        if held.descriptors.iter().any(|other| other.bytes() == bytes) {
            return Some(Taken::Known);
        }
        if held.carried.0 != epoch {
            held.carried = (epoch, 0);
        }
        let (count, floor) = (held.carried.1, held.floor);
        if count > NEW_DESCRIPTORS_MAX {
            return None;
        }
        let descriptor = SignedDescriptor::read(bytes).ok()?;
        if count == NEW_DESCRIPTORS_MAX && descriptor.floor <= floor {
            return None;
        }
        let taken = self.take_descriptor(hop, descriptor, now_ms / 1000).ok()?;
        // Only what the hop's identity has signed and what changes something counts, so that no neighbour can use up
        // the share of another hop.
        if taken != Taken::Known {
            self.hops[hop - 1].carried.1 += 1;
        }
        Some(taken)
    }

    fn check_place(&self, hop: usize, descriptor: &SignedDescriptor) -> Result<(), BadDescriptor> {
        if descriptor.identity != self.terms.identities[hop - 1] {
            let found = self.position(&descriptor.identity);
            return Err(
                found.map_or(BadDescriptor::Foreign(hop), |found| BadDescriptor::Misplaced { found, expected: hop })
            );
        }
        match (descriptor.role, hop == self.hops()) {
            (HopRole::Exit, false) => return Err(BadDescriptor::NotAMix(hop)),
            (HopRole::Mix, true) => return Err(BadDescriptor::NotAnExit(hop)),
            _ => {}
        }
        match self.terms.class_ids().find(|class| descriptor.contact(*class).is_none()) {
            Some(class) => Err(BadDescriptor::NoContact(class)),
            None => Ok(()),
        }
    }

    /// Checks that no other hop's newest descriptor has a key of this hop's. For a chain that is put together: later, a
    /// hop that names another's keys as its own harms itself only, for it cannot sign records with them; if that were
    /// refused, it could name keys that the other is about to use, and so keep them out.
    ///
    /// # Errors
    /// See [`BadDescriptor::SharedKey`].
    pub fn check_own_keys(&self, hop: usize) -> Result<(), BadDescriptor> {
        let Some(own) = self.descriptor(hop) else { return Ok(()) };
        let shares = |other: &usize| {
            let theirs = self.descriptor(*other);
            *other != hop && theirs.is_some_and(|theirs| theirs.noise == own.noise || theirs.signing == own.signing)
        };
        (1..=self.hops()).find(shares).map_or(Ok(()), |other| Err(BadDescriptor::SharedKey(hop, other)))
    }

    /// The descriptor of this hop and hash, if it is held, not revoked, and valid at a time.
    fn certificate(&self, hop: usize, hash: &[u8; 32], at_s: u64) -> Option<&Arc<SignedDescriptor>> {
        let descriptor = self.descriptors(hop).iter().find(|descriptor| descriptor.hash() == hash)?;
        matches!(descriptor.validity(at_s), Validity::Valid(_)).then_some(descriptor)
    }

    /// Takes in a record of a hop as it travels. Known ones cost no signature check.
    ///
    /// # Errors
    /// See [`BadRecord`].
    pub fn take_record(&mut self, hop: usize, travelling: &[u8], now_ms: u64) -> Result<Taken, BadRecord> {
        let all = self.hops[hop - 1].records.values().flatten();
        if all.into_iter().any(|record| record.travelling() == travelling) {
            return Ok(Taken::Known);
        }
        let revision = SignedRecord::claimed_revision(travelling).ok_or(Malformed::Truncated(travelling.len()))?;
        let named: Vec<_> =
            self.descriptors(hop).iter().filter(|descriptor| descriptor.revision == revision).cloned().collect();
        if named.is_empty() {
            return Err(BadRecord::NoDescriptor);
        }
        let is_valid = |named: &&Arc<SignedDescriptor>| matches!(named.validity(now_ms / 1000), Validity::Valid(_));
        if !named.iter().any(|named| is_valid(&named)) {
            return Err(BadRecord::Invalid);
        }
        let epoch = SignedRecord::claimed_epoch(travelling).ok_or(Malformed::Truncated(travelling.len()))?;
        let interval = self.times.interval_at(now_ms);
        if epoch.abs_diff(self.times.epoch_of(interval)) > 1 {
            return Err(BadRecord::Epoch);
        }
        let verified = self.hops[hop - 1].verified.get(&epoch).filter(|(at, _)| *at == interval);
        let verified = verified.map_or(0, |(_, count)| *count);
        if verified >= NEW_RECORDS_MAX {
            return Err(BadRecord::TooMany);
        }
        // Two descriptors may have one revision, until everyone has both.
        let mut read = Err(Malformed::Signature);
        for named in named.iter().filter(is_valid) {
            read = SignedRecord::read(travelling, self.terms.suite, &self.chain, named);
            if read.is_ok() {
                break;
            }
        }
        let record = read?;

        let held = &mut self.hops[hop - 1];
        let records = held.records.entry(epoch).or_default();
        let at = records.partition_point(|other| other.rank() > record.rank());
        if at >= RECORDS_MAX {
            return Ok(Taken::Known);
        }
        held.verified.insert(epoch, (interval, verified + 1));
        records.insert(at, Arc::new(record));
        records.truncate(RECORDS_MAX);
        Ok(if at == 0 { Taken::New } else { Taken::Earlier })
    }

    /// Puts in a record that this node has made itself.
    pub(super) fn put_own(&mut self, hop: usize, record: Arc<SignedRecord>) {
        let records = self.hops[hop - 1].records.entry(record.epoch).or_default();
        let at = records.partition_point(|other| other.rank() > record.rank());
        records.insert(at, record);
        records.truncate(RECORDS_MAX);
    }

    /// The record of a hop and epoch that counts.
    pub fn record(&self, hop: usize, epoch: u64) -> Option<&Arc<SignedRecord>> {
        self.hops[hop - 1].records.get(&epoch)?.first()
    }

    /// The records that a bundle of this interval is made of, if all are held and certified at its start.
    pub fn records(&self, interval: u64) -> Option<Vec<Arc<SignedRecord>>> {
        let at_s = self.times.interval_start(interval) / 1000;
        let epoch = self.times.epoch_of(interval);
        let record = |hop| {
            let record = self.record(hop, epoch)?;
            self.certificate(hop, &record.descriptor, at_s).map(|_| record.clone())
        };
        (1..=self.hops()).map(record).collect()
    }

    /// The records that these tags name, with their descriptors.
    fn named(&self, interval: u64, tags: &[Tag]) -> Option<Named> {
        let at_s = self.times.interval_start(interval) / 1000;
        let epoch = self.times.epoch_of(interval);
        let one = |(i, wanted): (usize, &Tag)| {
            let held = self.hops[i].records.get(&epoch)?;
            let record = held.iter().find(|record| bundle::tag(record) == *wanted)?;
            let descriptor = self.certificate(i + 1, &record.descriptor, at_s)?;
            Some((record.clone(), descriptor.clone()))
        };
        tags.iter().enumerate().map(one).collect::<Option<Vec<_>>>().map(|all| all.into_iter().unzip())
    }

    /// One bit for each hop whose record with this tag is not held.
    pub fn lacks_records(&self, interval: u64, tags: &[Tag]) -> u8 {
        let epoch = self.times.epoch_of(interval);
        let lacks = |(i, tag): (usize, &Tag)| {
            let held = self.hops[i].records.get(&epoch);
            !held.is_some_and(|held| held.iter().any(|record| bundle::tag(record) == *tag))
        };
        tags.iter().enumerate().map(|one| u8::from(lacks(one)) << one.0).sum()
    }

    /// The intervals whose bundles are kept.
    fn kept(&self, now_ms: u64) -> RangeInclusive<u64> {
        let running = self.times.interval_at(now_ms);
        running.saturating_sub(self.kept_before)..=running + INTERVALS_AROUND
    }

    /// Takes in signatures. Each is judged alone; of a hop the first one of an interval counts.
    ///
    /// # Errors
    /// See [`BadSignatures`]; the good ones beside a bad one are taken.
    pub fn take_signatures(&mut self, signatures: &Signatures, now_ms: u64) -> Result<Taken, BadSignatures> {
        let interval = signatures.interval;
        if !self.kept(now_ms).contains(&interval) {
            return Err(BadSignatures::Interval);
        }
        let known = self.bundles.get(&interval).and_then(|all| all.iter().position(|b| b.hash() == signatures.hash));
        let fresh = match known {
            Some(_) => None,
            None => {
                let (records, descriptors) =
                    self.named(interval, &signatures.records).ok_or(BadSignatures::NoRecord)?;
                let held: Vec<&SignedRecord> = records.iter().map(|record| &**record).collect();
                let unsigned = Signatures::new(&self.chain, interval, &held);
                if unsigned.hash != signatures.hash {
                    return Err(BadSignatures::Hash);
                }
                Some(Bundle { signatures: unsigned, records, descriptors })
            }
        };
        let all = self.bundles.entry(interval).or_default();
        let mut bundle = fresh.unwrap_or_else(|| all.remove(known.expect("one of both")));
        let mut taken = Taken::Known;
        let mut outcome = Ok(());
        for (i, signature) in signatures.signatures.iter().enumerate() {
            let (Some(signature), None) = (signature, &bundle.signatures.signatures[i]) else { continue };
            if !bundle::verifies(&bundle.descriptors[i].signing, &signatures.hash, signature) {
                outcome = Err(BadSignatures::Forged);
            } else if all.iter().any(|other| other.signatures.signatures[i].is_some()) {
                outcome = Err(BadSignatures::Twice(i + 1));
            } else {
                bundle.signatures.signatures[i] = Some(*signature);
                taken = Taken::New;
            }
        }
        if bundle.signatures.present() != 0 {
            all.push(bundle);
        }
        outcome.map(|()| taken)
    }

    /// All sets of records that somebody has signed for an interval.
    pub fn bundles(&self, interval: u64) -> &[Bundle] {
        self.bundles.get(&interval).map_or(&[], Vec::as_slice)
    }

    /// The bundle of an interval that all hops have signed.
    pub fn complete(&self, interval: u64) -> Option<&Bundle> {
        self.bundles(interval).iter().find(|bundle| bundle.signatures.is_complete())
    }

    /// The newest bundle that all hops have signed.
    pub fn newest_complete(&self) -> Option<&Bundle> {
        self.bundles.values().rev().flatten().find(|bundle| bundle.signatures.is_complete())
    }

    /// What is held of each hop for an interval.
    pub fn held(&self, interval: u64) -> Vec<Held> {
        let epoch = self.times.epoch_of(interval);
        let held = |hop| {
            let record = self.record(hop, epoch);
            let (revision, descriptor) = self.descriptor(hop).map_or((0, [0; 2]), |held| held.short_rank());
            Held {
                revision,
                descriptor,
                draw: record.map_or(0, |record| record.draw),
                record: record.map_or([0; 4], |record| *record.hash().first_chunk().expect("a hash has 32 bytes")),
            }
        };
        (1..=self.hops()).map(held).collect()
    }

    /// Forgets what the time has passed over.
    pub fn forget(&mut self, now_ms: u64) {
        let interval = self.times.interval_at(now_ms);
        let epoch = self.times.epoch_of(interval);
        let kept = self.kept(now_ms);
        self.bundles.retain(|of, _| kept.contains(of));
        for hop in &mut self.hops {
            hop.records.retain(|of, _| of.abs_diff(epoch) <= 1);
            hop.verified.retain(|_, (at, _)| *at == interval);
            // The newest stays whatever its validity, for contact.
            let (mut newest, before) = (true, hop.descriptors.len());
            hop.descriptors.retain(|descriptor| {
                std::mem::take(&mut newest) || matches!(descriptor.validity(now_ms / 1000), Validity::Valid(_))
            });
            self.version += u64::from(hop.descriptors.len() < before);
        }
    }
}

impl Bundle {
    pub fn hash(&self) -> [u8; 32] {
        self.signatures.hash
    }

    /// The setup keys of all hops of this chain, Mix 1 first.
    pub fn setup_keys(&self, chain: &[u8; 32]) -> Vec<HopPublic> {
        let hops = self.records.len();
        let public = |(i, record): (usize, &Arc<SignedRecord>)| HopPublic {
            setup: record.setup.clone(),
            descriptor_hash: record.setup_hash(chain, i + 1, hops),
        };
        self.records.iter().enumerate().map(public).collect()
    }

    /// Hashes of the records, by position - 1.
    pub fn record_hashes(&self) -> Vec<[u8; 32]> {
        self.records.iter().map(|record| *record.hash()).collect()
    }
}

#[cfg(test)]
pub(super) mod tests;
