//! The descriptors, records and bundles of a chain that a node holds, and which of them count
//! (SPEC 7.3-7.6).
//!
//! Everything in here was verified when it came in. Nothing in here sends or signs: [`super::sync`]
//! carries, [`super::hop`] signs.

use std::collections::BTreeMap;
use std::sync::Arc;

use thiserror::Error;
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
/// Descriptors of one hop that neighbours may bring in an interval.
const NEW_DESCRIPTORS_MAX: u8 = 2;
/// Bundles are kept for so many intervals before and after the running one.
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
    /// An interval, and the new descriptors that neighbours sent in it.
    carried: (u64, u8),
    /// Of an entry: descriptors that Mix 1 sent and no bundle has named yet. They certify records and nothing else.
    unconfirmed: Vec<Arc<SignedDescriptor>>,
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
    /// By position - 1.
    hops: Vec<Hop>,
    /// By interval; several sets of records only if hops do not agree.
    bundles: BTreeMap<u64, Vec<Bundle>>,
    /// Counts the changes of descriptors.
    version: u64,
    /// A descriptor from a neighbour counts when a bundle names it.
    confirms: bool,
}

/// What taking something in has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It counts from now on.
    New,
    /// It is kept beside that which counts.
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
    NoContact(wire::cell::Class),
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

impl View {
    /// Nothing is held yet.
    pub fn new(terms: ChainTerms) -> View {
        let hops = terms.identities.iter().map(|_| Hop::default()).collect();
        View {
            chain: terms.id(),
            times: Times::new(&terms),
            terms,
            hops,
            bundles: BTreeMap::new(),
            version: 0,
            confirms: false,
        }
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
        let is_own = descriptor.identity == self.terms.identities[hop - 1];
        if is_own && matches!(descriptor.validity(now_s), Validity::Valid(_) | Validity::Expired(_)) {
            // Whatever else is wrong with it, it revokes what it says.
            self.raise_floor(hop, descriptor.floor);
        }
        self.check_place(hop, &descriptor)?;
        if let Validity::NotYet(seconds) = descriptor.validity(now_s) {
            return Err(BadDescriptor::NotYet(seconds));
        }
        let floor = self.floor(hop);
        if descriptor.revision < floor {
            return Err(BadDescriptor::Revoked { revision: descriptor.revision, floor });
        }
        let rank = descriptor.rank();
        let held = &self.hops[hop - 1].descriptors;
        let at = held.partition_point(|other| other.rank() > rank);
        if held.get(at).is_some_and(|other| other.rank() == rank) || at >= DESCRIPTORS_MAX {
            return Ok(Taken::Known);
        }
        if at > 0 && !matches!(descriptor.validity(now_s), Validity::Valid(_)) {
            return Ok(Taken::Known);
        }
        let raised = descriptor.floor;
        self.hops[hop - 1].descriptors.insert(at, Arc::new(descriptor));
        self.hops[hop - 1].descriptors.truncate(DESCRIPTORS_MAX);
        self.raise_floor(hop, raised);
        Ok(if at == 0 { Taken::New } else { Taken::Earlier })
    }

    /// For an entry: a descriptor that Mix 1 sends counts for contact only when all hops have signed a record under it.
    /// Otherwise Mix 1 could give each user one of his own and recognise him by it.
    pub(super) fn confirms_descriptors(&mut self) {
        self.confirms = true;
    }

    /// Takes in a descriptor that a neighbour sent. None if it is refused, or if there were too many in this interval:
    /// each one is written to disk.
    pub fn take_carried_descriptor(&mut self, hop: usize, bytes: &[u8], now_ms: u64) -> Option<Taken> {
        let interval = self.times.interval_at(now_ms);
        let held = &mut self.hops[hop - 1];
        if held.descriptors.iter().chain(&held.unconfirmed).any(|other| other.bytes() == bytes) {
            return Some(Taken::Known);
        }
        if held.carried.0 != interval {
            held.carried = (interval, 0);
        }
        if held.carried.1 >= NEW_DESCRIPTORS_MAX {
            return None;
        }
        let descriptor = SignedDescriptor::read(bytes).ok()?;
        let taken = self.take_carried(hop, descriptor, now_ms / 1000)?;
        // Only what the hop's identity has signed and what changes something counts, so that no neighbour can use up
        // the share of another hop.
        if taken != Taken::Known {
            self.hops[hop - 1].carried.1 += 1;
        }
        Some(taken)
    }

    fn take_carried(&mut self, hop: usize, descriptor: SignedDescriptor, now_s: u64) -> Option<Taken> {
        if !self.confirms {
            return self.take_descriptor(hop, descriptor, now_s).ok();
        }
        self.check_place(hop, &descriptor).ok()?;
        let is_valid = matches!(descriptor.validity(now_s), Validity::Valid(_));
        if !is_valid || descriptor.revision < self.floor(hop) {
            return None;
        }
        let unconfirmed = &mut self.hops[hop - 1].unconfirmed;
        unconfirmed.insert(0, Arc::new(descriptor));
        unconfirmed.truncate(DESCRIPTORS_MAX);
        Some(Taken::Earlier)
    }

    /// Descriptors that the bundle of this interval names count from now on. Returns the hops that have a newer one.
    pub(super) fn confirm_descriptors(&mut self, interval: u64, now_s: u64) -> Vec<usize> {
        let Some(bundle) = self.complete(interval) else { return Vec::new() };
        let named = bundle.descriptors.clone();
        let mut renewed = Vec::new();
        for (i, descriptor) in named.into_iter().enumerate() {
            let unconfirmed = &mut self.hops[i].unconfirmed;
            let Some(at) = unconfirmed.iter().position(|other| Arc::ptr_eq(other, &descriptor)) else { continue };
            unconfirmed.remove(at);
            if self.take_descriptor(i + 1, SignedDescriptor::clone(&descriptor), now_s) == Ok(Taken::New) {
                renewed.push(i + 1);
            }
        }
        renewed
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
        for terms in &self.terms.classes {
            if descriptor.contact(terms.class).is_none() {
                return Err(BadDescriptor::NoContact(terms.class));
            }
        }
        Ok(())
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

    /// All descriptors of a hop that may certify its records.
    fn certificates(&self, hop: usize) -> impl Iterator<Item = &Arc<SignedDescriptor>> {
        let hop = &self.hops[hop - 1];
        hop.descriptors.iter().chain(&hop.unconfirmed)
    }

    /// The descriptor of this hop and hash, if it is held, not revoked, and valid at a time.
    fn certificate(&self, hop: usize, hash: &[u8; 32], at_s: u64) -> Option<&Arc<SignedDescriptor>> {
        let descriptor = self.certificates(hop).find(|descriptor| descriptor.hash() == hash)?;
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
            self.certificates(hop).filter(|descriptor| descriptor.revision == revision).cloned().collect();
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

    /// Takes in signatures. Each is judged alone; of a hop the first one of an interval counts.
    ///
    /// # Errors
    /// See [`BadSignatures`]; those in front of a bad one are taken.
    pub fn take_signatures(&mut self, signatures: &Signatures, now_ms: u64) -> Result<Taken, BadSignatures> {
        let interval = signatures.interval;
        if interval.abs_diff(self.times.interval_at(now_ms)) > INTERVALS_AROUND {
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
            if outcome.is_err() {
                break;
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
        self.bundles.retain(|of, _| of.abs_diff(interval) <= INTERVALS_AROUND);
        for hop in &mut self.hops {
            hop.records.retain(|of, _| of.abs_diff(epoch) <= 1);
            hop.verified.retain(|_, (at, _)| *at == interval);
            // The newest stays whatever its validity, for contact.
            let (mut newest, before) = (true, hop.descriptors.len());
            hop.descriptors.retain(|descriptor| {
                std::mem::take(&mut newest) || matches!(descriptor.validity(now_ms / 1000), Validity::Valid(_))
            });
            self.version += u64::from(hop.descriptors.len() < before);
            hop.unconfirmed.retain(|descriptor| {
                descriptor.revision >= hop.floor && matches!(descriptor.validity(now_ms / 1000), Validity::Valid(_))
            });
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
pub(super) mod tests {
    use wire::cell::Class;
    use wire::kdf::Secret;
    use wire::setup::{SetupKey, Suite};

    use super::super::chain::ClassTerms;
    use super::super::descriptor::NodeDescriptor;
    use super::super::descriptor::tests::{descriptor, identity};
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
            identities: (1..=HOPS as u8).map(|seed| identity(seed).public()).collect(),
        }
    }

    pub(crate) fn role(hop: usize) -> HopRole {
        if hop == HOPS { HopRole::Exit } else { HopRole::Mix }
    }

    pub(crate) fn node(hop: usize) -> NodeDescriptor {
        NodeDescriptor { not_before: 0, not_after: 1_000_000, ..descriptor(hop as u8, role(hop)) }
    }

    pub(crate) fn signer(hop: usize) -> Signer {
        identity(hop as u8 + 100)
    }

    fn signed(hop: usize, change: impl Fn(&mut NodeDescriptor)) -> SignedDescriptor {
        let mut descriptor = node(hop);
        change(&mut descriptor);
        descriptor.sign(&identity(hop as u8)).unwrap()
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
        let foreign = descriptor(9, HopRole::Mix).sign(&identity(9)).unwrap();
        assert_eq!(refused(1, foreign), BadDescriptor::Foreign(1));
        assert_eq!(refused(1, signed(1, |d| d.role = HopRole::Exit)), BadDescriptor::NotAMix(1));
        assert_eq!(refused(3, signed(3, |d| d.role = HopRole::Mix)), BadDescriptor::NotAnExit(3));
        let other_class = signed(1, |d| d.contacts[0].class = Class::S);
        assert_eq!(refused(1, other_class), BadDescriptor::NoContact(Class::L));
        assert_eq!(refused(1, signed(1, |d| d.not_before = 1065)), BadDescriptor::NotYet(60));
    }

    #[test]
    fn key_of_another_hop_is_no_key_for_a_new_chain() {
        let mut view = view();
        assert_eq!(view.check_own_keys(1), Ok(()));
        let signing = node(2).signing;
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
    fn of_two_descriptors_with_one_revision_all_choose_the_same() {
        let a = signed(1, |d| d.revision = 5);
        let b = signed(1, |d| (d.revision, d.not_after) = (5, 999_999));
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
        view.forget(1_000_000_000);
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
    fn neighbours_bring_two_descriptors_an_interval() {
        for is_entry in [false, true] {
            let mut view = view();
            if is_entry {
                view.confirms_descriptors();
            }
            let at = |revision| signed(1, move |d| d.revision = revision).bytes().to_vec();
            // What its identity has not signed uses nothing up, nor what is there already.
            for revision in 20..30 {
                let mut forged = at(revision);
                forged[200] ^= 1;
                assert_eq!(view.take_carried_descriptor(1, &forged, NOW_MS), None);
                assert_eq!(view.take_carried_descriptor(1, &at(1), NOW_MS), Some(Taken::Known));
            }
            let taken = [5, 6, 7].map(|revision| view.take_carried_descriptor(1, &at(revision), NOW_MS).is_some());
            assert_eq!(taken, [true, true, false], "entry: {is_entry}");
            assert!(view.take_carried_descriptor(2, signed(2, |d| d.revision = 5).bytes(), NOW_MS).is_some());
            assert!(view.take_carried_descriptor(1, &at(7), NOW_MS + 10_000).is_some());
        }
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
}
