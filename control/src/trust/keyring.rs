//! A hop's own setup keys: one pair per epoch, in memory only, each with its replay cache
//! (SPEC 7.5, 7.9).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use blake2::Blake2sMac;
use blake2::digest::consts::U8;
use blake2::digest::{FixedOutput, Update};
use rand::Rng;
use wire::cell::{Class, Shape};
use wire::setup::{self, BadSetup, Info, Opened, SetupKey, Suite};
use zeroize::Zeroizing;

use super::descriptor::SignedDescriptor;
use super::encoding::Signer;
use super::record::{EpochRecord, SignedRecord};
use super::times::Times;
use crate::draw::draw_secret;

/// Records of one pair under which setups are opened: the newest, and the one before it.
const RECORDS_MAX: usize = 2;

/// A pair of setup keys.
struct Pair {
    epoch: u64,
    key: SetupKey,
    /// Newest first.
    records: Vec<Arc<SignedRecord>>,
    /// D of each.
    setup_hashes: Vec<[u8; 32]>,
    seen: Seen,
    /// When it is wiped at the latest, whatever the clock of the host does.
    wipe_by: Duration,
}

/// Tags of the setups that a pair has opened.
struct Seen {
    key: Zeroizing<[u8; 32]>,
    /// By the first byte of the tag. One large table would stop the node for a moment whenever it grows.
    tags: Vec<HashSet<u64>>,
    len: usize,
    /// Those of paced classes, with the first round of the batch that they are for. Nothing opens a setup for an
    /// earlier batch, and the capacity does not count them (SPEC 9.8.5).
    paced: HashMap<Class, (u64, HashSet<u64>)>,
}

impl Seen {
    fn new(key: Zeroizing<[u8; 32]>) -> Seen {
        Seen { key, tags: vec![HashSet::new(); 256], len: 0, paced: HashMap::new() }
    }

    /// True if a setup with this tag was opened.
    fn contains(&self, info: Info, tag: u64) -> bool {
        if info.paced {
            return self
                .paced
                .get(&info.class)
                .is_some_and(|(first, tags)| *first == info.first && tags.contains(&tag));
        }
        self.tags[(tag >> 56) as usize].contains(&tag)
    }

    fn insert(&mut self, info: Info, tag: u64) {
        if info.paced {
            let (first, tags) = self.paced.entry(info.class).or_default();
            if *first != info.first {
                (*first, *tags) = (info.first, HashSet::new());
            }
            tags.insert(tag);
            return;
        }
        self.len += usize::from(self.tags[(tag >> 56) as usize].insert(tag));
    }

    /// A keyed hash of 8 bytes: strangers cannot choose tags that meet.
    fn tag(&self, replay_tag: &[u8; 16]) -> u64 {
        let mut mac = Blake2sMac::<U8>::new_with_salt_and_personal(Some(&self.key[..]), &[], &[])
            .expect("a key of 32 bytes, no salt, no personalisation");
        mac.update(replay_tag);
        u64::from_be_bytes(mac.finalize_fixed().into())
    }
}

/// The keys of a hop.
pub struct Keyring {
    chain: [u8; 32],
    suite: Suite,
    times: Times,
    position: usize,
    hops: usize,
    /// Most setups of free classes that one pair opens.
    capacity: usize,
    /// Highest epoch first.
    pairs: Vec<Pair>,
}

/// Why a setup was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOpened {
    Replayed,
    /// The replay cache of its pair is full.
    Full,
    /// It was made for none of the keys.
    Invalid(BadSetup),
}

impl Keyring {
    /// Without keys.
    pub fn new(
        (chain, suite, times): ([u8; 32], Suite, Times),
        (position, hops): (usize, usize),
        capacity: usize,
    ) -> Keyring {
        Keyring { chain, suite, times, position, hops, capacity, pairs: Vec::new() }
    }

    pub fn has(&self, epoch: u64) -> bool {
        self.pairs.iter().any(|pair| pair.epoch == epoch)
    }

    /// The newest record of an epoch.
    pub fn record(&self, epoch: u64) -> Option<&Arc<SignedRecord>> {
        self.pairs.iter().find(|pair| pair.epoch == epoch)?.records.first()
    }

    /// Draws the keys of an epoch and signs their record.
    pub fn draw(
        &mut self,
        rng: &mut impl Rng,
        now: Duration,
        epoch: u64,
        draw: u64,
        certificate: &SignedDescriptor,
        signer: &Signer,
    ) -> Arc<SignedRecord> {
        let key = SetupKey::generate(self.suite, draw_secret(rng));
        let mut seen_key = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut seen_key[..]);
        let pair = Pair {
            epoch,
            key,
            records: Vec::new(),
            setup_hashes: Vec::new(),
            seen: Seen::new(seen_key),
            wipe_by: now + self.times.key_life_max(),
        };
        self.pairs.retain(|pair| pair.epoch != epoch);
        self.pairs.push(pair);
        self.pairs.sort_by_key(|pair| std::cmp::Reverse(pair.epoch));
        self.publish(epoch, draw, certificate, signer).expect("its keys were drawn above")
    }

    /// Signs the keys of an epoch, under another descriptor or with a higher draw.
    pub fn publish(
        &mut self,
        epoch: u64,
        draw: u64,
        certificate: &SignedDescriptor,
        signer: &Signer,
    ) -> Option<Arc<SignedRecord>> {
        let pair = self.pairs.iter_mut().find(|pair| pair.epoch == epoch)?;
        let record = EpochRecord {
            identity: certificate.identity,
            descriptor: *certificate.hash(),
            revision: certificate.revision,
            epoch,
            draw,
            setup: pair.key.public(),
        };
        let record = Arc::new(record.sign(&self.chain, signer));
        pair.setup_hashes.insert(0, record.setup_hash(&self.chain, self.position, self.hops));
        pair.records.insert(0, record.clone());
        pair.records.truncate(RECORDS_MAX);
        pair.setup_hashes.truncate(RECORDS_MAX);
        Some(record)
    }

    /// Wipes the keys whose time is over.
    pub fn wipe(&mut self, now: Duration, wall_ms: u64) {
        let times = self.times;
        let running = times.epoch_of(times.interval_at(wall_ms));
        // Epochs far from the running one are left by a clock that was ahead.
        let is_near = |pair: &Pair| pair.epoch <= running + 1 && wall_ms < times.wipe_at(pair.epoch);
        self.pairs.retain(|pair| now < pair.wipe_by && is_near(pair));
    }

    /// Opens a setup with the keys of the running epoch, else with those of the next one, else with the previous ones.
    ///
    /// # Errors
    /// See [`NotOpened`].
    pub fn open(&mut self, shape: Shape, info: Info, onion: &[u8], wall_ms: u64) -> Result<Opened, NotOpened> {
        let times = self.times;
        let tag = setup::replay_tag(self.suite, onion).ok_or(NotOpened::Invalid(BadSetup::Length))?;
        let running = times.epoch_of(times.interval_at(wall_ms));
        let accepted = |pair: &&mut Pair| times.accept_at(pair.epoch) <= wall_ms && wall_ms < times.wipe_at(pair.epoch);
        let mut pairs: Vec<&mut Pair> = self.pairs.iter_mut().filter(accepted).collect();
        pairs.sort_by_key(|pair| pair.epoch != running);

        let mut why = NotOpened::Invalid(BadSetup::Forged);
        for pair in pairs {
            let tag = pair.seen.tag(&tag);
            if pair.seen.contains(info, tag) {
                return Err(NotOpened::Replayed);
            }
            if !info.paced && pair.seen.len >= self.capacity {
                why = NotOpened::Full;
                continue;
            }
            match setup::open(shape, self.position, &pair.setup_hashes, &pair.key, info, onion) {
                Ok(opened) => {
                    pair.seen.insert(info, tag);
                    return Ok(opened);
                }
                Err(BadSetup::Forged) => {}
                Err(bad) => return Err(NotOpened::Invalid(bad)),
            }
        }
        Err(why)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;
    use wire::paced::PacedClass;
    use wire::setup::{HopPublic, TOKEN_LEN};

    use super::super::descriptor::HopRole;
    use super::super::descriptor::tests::{descriptor, identity};
    use super::super::view::tests::terms;
    use super::*;

    const CHAIN: [u8; 32] = [0xcc; 32];
    const INFO: Info = Info { suite: Suite::X25519, class: Class::L, paced: false, lifetime_s: 60, first: 0 };
    /// E = 600 s, I = 10 s: epoch 1 is used from 610 s to 1210 s.
    const RUNNING: u64 = 700_000;

    struct Ring {
        rng: ChaCha20Rng,
        keyring: Keyring,
        shape: Shape,
        certificate: SignedDescriptor,
        signer: Signer,
    }

    impl Ring {
        fn new(capacity: usize) -> Ring {
            let times = Times::new(&terms());
            Ring {
                rng: ChaCha20Rng::seed_from_u64(1),
                keyring: Keyring::new((CHAIN, Suite::X25519, times), (1, 2), capacity),
                shape: Shape::new(Class::L, 2).unwrap(),
                certificate: descriptor(1, HopRole::Mix).sign(&identity(1)).unwrap(),
                signer: identity(101),
            }
        }

        fn draw(&mut self, epoch: u64, draw: u64) -> Arc<SignedRecord> {
            self.keyring.draw(&mut self.rng, Duration::ZERO, epoch, draw, &self.certificate, &self.signer)
        }

        fn publish(&mut self, epoch: u64, draw: u64) -> Arc<SignedRecord> {
            self.keyring.publish(epoch, draw, &self.certificate, &self.signer).unwrap()
        }

        /// A setup to the keys of this record.
        fn setup(&mut self, record: &SignedRecord) -> Vec<u8> {
            self.setup_with(record, INFO)
        }

        fn setup_with(&mut self, record: &SignedRecord, info: Info) -> Vec<u8> {
            let token = if info.paced { &[7; TOKEN_LEN][..] } else { &[] };
            let hop = |i| HopPublic { setup: record.setup.clone(), descriptor_hash: record.setup_hash(&CHAIN, i, 2) };
            let hops = [hop(1), hop(2)];
            let shares = hops.iter().map(|hop| hop.setup.share(draw_secret(&mut self.rng))).collect();
            setup::build_with_token(self.shape, &hops, shares, info, token).unwrap().0
        }

        fn open(&mut self, onion: &[u8], wall_ms: u64) -> Result<(), NotOpened> {
            self.keyring.open(self.shape, INFO, onion, wall_ms).map(drop)
        }
    }

    #[test]
    fn setup_opens_once_under_its_record_and_the_one_before() {
        let mut ring = Ring::new(100);
        let first = ring.draw(1, 5);
        let onions: Vec<Vec<u8>> = (0..3).map(|_| ring.setup(&first)).collect();
        assert_eq!(ring.open(&onions[0], RUNNING), Ok(()));
        assert_eq!(ring.open(&onions[0], RUNNING), Err(NotOpened::Replayed));
        // The same keys again, in the next record: setups under way still open, and are still remembered.
        let second = ring.publish(1, 6);
        let newer = ring.setup(&second);
        assert_eq!([ring.open(&onions[1], RUNNING), ring.open(&newer, RUNNING)], [Ok(()); 2]);
        assert_eq!(ring.open(&onions[0], RUNNING), Err(NotOpened::Replayed));
        ring.publish(1, 7);
        assert_eq!(ring.open(&onions[2], RUNNING), Err(NotOpened::Invalid(BadSetup::Forged)));
    }

    #[test]
    fn full_replay_cache_refuses_setups() {
        let mut ring = Ring::new(2);
        let record = ring.draw(1, 5);
        for _ in 0..2 {
            let onion = ring.setup(&record);
            assert_eq!(ring.open(&onion, RUNNING), Ok(()));
        }
        let onion = ring.setup(&record);
        assert_eq!(ring.open(&onion, RUNNING), Err(NotOpened::Full));
        // The keys of the next epoch have a cache of their own.
        let next = ring.draw(2, 6);
        let onion = ring.setup(&next);
        assert_eq!(ring.open(&onion, 1_210_000), Ok(()));
    }

    #[test]
    fn paced_setup_opens_once_in_its_batch_alone() {
        let mut ring = Ring::new(1);
        let record = ring.draw(1, 5);
        let info = |first| Info::paced(Suite::X25519, PacedClass::new(Class::L), first);
        let onions: Vec<Vec<u8>> = (0..3).map(|_| ring.setup_with(&record, info(2048))).collect();
        let mut open = |onion: &[u8], first| ring.keyring.open(ring.shape, info(first), onion, RUNNING).map(drop);
        for onion in &onions {
            assert_eq!(open(onion, 2048), Ok(()), "the capacity is that of free classes");
            assert_eq!(open(onion, 2048), Err(NotOpened::Replayed));
        }
        assert_eq!(open(&onions[0], 4096), Err(NotOpened::Invalid(BadSetup::Info)));
        let next = ring.setup_with(&record, info(4096));
        assert_eq!(ring.keyring.open(ring.shape, info(4096), &next, RUNNING).map(drop), Ok(()));
        let [pair] = &ring.keyring.pairs[..] else { panic!("one pair was drawn") };
        assert_eq!((pair.seen.len, pair.seen.paced[&Class::L].1.len()), (0, 1), "tags of the batch before are gone");
    }

    #[test]
    fn keys_open_setups_around_their_epoch_and_are_then_wiped() {
        let mut ring = Ring::new(100);
        let record = ring.draw(1, 5);
        let times = Times::new(&terms());
        let (from, until) = (times.accept_at(1), times.wipe_at(1));
        assert_eq!((from, until), (600_000, 1_310_000));
        for (wall_ms, opens) in [(from - 1, false), (from, true), (until - 1, true), (until, false)] {
            let onion = ring.setup(&record);
            assert_eq!(ring.open(&onion, wall_ms).is_ok(), opens, "{wall_ms}");
        }
        ring.keyring.wipe(Duration::ZERO, until - 1);
        assert!(ring.keyring.has(1));
        ring.keyring.wipe(Duration::ZERO, until);
        assert!(!ring.keyring.has(1));
        // A clock that stands still does not keep them.
        ring.draw(1, 6);
        ring.keyring.wipe(times.key_life_max(), RUNNING);
        assert!(!ring.keyring.has(1));
    }
}
