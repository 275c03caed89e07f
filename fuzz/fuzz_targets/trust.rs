//! Attack: neighbours and entries of a Mix 1 send asks and parts of any content, and genuine descriptors, records and
//! signatures of the other hops, some with flipped bits, in any order. The mix signs one bundle per interval, holds no
//! signature that does not verify, and sends asks and parts of one cell each, to entries parts only.

#![no_main]

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use control::trust::bundle::{self, Signatures};
use control::trust::hop::{CertifiedKeys, HopSetup, HopTrust, Step};
use control::trust::message::{ASK, ItemKind, PART, cut};
use control::trust::sync::Peer;
use control::trust::{EpochRecord, SignedDescriptor, SignedRecord, Signer, State, View};
use eddy_fuzz::{HOPS, WALL_S, descriptor, identity_seed, noise_key, setup_key, shape, signed, signing_seed, terms};
use libfuzzer_sys::fuzz_target;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use wire::cell::Direction;
use wire::ids::LinkId;
use wire::kdf::x25519_public;

const START: Duration = Duration::from_secs(1000);
const NEIGHBOUR: LinkId = LinkId(1);
const ENTRIES: [LinkId; 2] = [LinkId(2), LinkId(3)];

fn signer(hop: usize) -> Signer {
    Signer::from_seed(&signing_seed(hop))
}

/// Of hops 2 and 3: a newer descriptor, and a record under the first one for the running epoch and the next.
struct Genuine {
    descriptor: SignedDescriptor,
    records: [SignedRecord; 2],
}

static GENUINE: LazyLock<[Genuine; 2]> = LazyLock::new(|| {
    let view = View::new(terms());
    let running = view.times().epoch_of(view.times().interval_at(WALL_S * 1000));
    [2, 3].map(|hop| {
        let newer = control::trust::NodeDescriptor { revision: 2, ..descriptor(hop) };
        let record = |epoch| {
            let certificate = signed(hop);
            let content = EpochRecord {
                identity: certificate.identity,
                descriptor: *certificate.hash(),
                revision: certificate.revision,
                epoch,
                draw: WALL_S,
                setup: setup_key(hop).public(),
            };
            content.sign(view.chain(), &signer(hop))
        };
        Genuine {
            descriptor: newer.sign(&Signer::from_seed(&identity_seed(hop))).expect("it is in order"),
            records: [record(running), record(running + 1)],
        }
    })
});

struct World {
    rng: ChaCha20Rng,
    now: Duration,
    hop: HopTrust,
    /// What hop 1 has signed, by interval.
    signed: HashMap<u64, [u8; 32]>,
}

impl World {
    fn new() -> World {
        let mut view = View::new(terms());
        for hop in 1..=HOPS {
            view.take_descriptor(hop, signed(hop), WALL_S).expect("it is in order");
        }
        let keys = vec![CertifiedKeys { signer: signer(1), noise: x25519_public(&noise_key(1)) }];
        let state = State::fresh(WALL_S).hop;
        let setup = HopSetup { position: 1, view, keys, state, replay_capacity: 16, is_paced: false };
        let mut hop = HopTrust::new(setup, START, WALL_S * 1000);
        hop.link_up(NEIGHBOUR, Peer::Hop, shape().control_content(Direction::Forward, 2), START);
        for entry in ENTRIES {
            hop.link_up(entry, Peer::Entry(None), shape().control_content(Direction::Backward, 1), START);
        }
        let mut world = World { rng: ChaCha20Rng::seed_from_u64(1), now: START, hop, signed: HashMap::new() };
        world.tick(0);
        world
    }

    fn wall_ms(&self) -> u64 {
        WALL_S * 1000 + (self.now - START).as_millis() as u64
    }

    fn tick(&mut self, ms: u16) {
        self.now += Duration::from_millis(ms.into());
        let (now, wall_ms) = (self.now, self.wall_ms());
        self.hop.tick(&mut self.rng, now, wall_ms);
        self.check();
    }

    fn take(&mut self, link: LinkId, content: &[u8]) {
        // Cells have their full length, and the bridge passes on these two kinds only.
        let direction = if link == NEIGHBOUR { Direction::Backward } else { Direction::Forward };
        let mut content = content.to_vec();
        content.resize(shape().control_content(direction, if link == NEIGHBOUR { 2 } else { 1 }), 0);
        if !matches!(content[0], ASK | PART) {
            return;
        }
        let (now, wall_ms) = (self.now, self.wall_ms());
        let _ = self.hop.take(now, wall_ms, link, &content);
        self.check();
    }

    fn item(&mut self, link: LinkId, kind: ItemKind, bytes: &[u8]) {
        let direction = if link == NEIGHBOUR { Direction::Backward } else { Direction::Forward };
        let len = shape().control_content(direction, if link == NEIGHBOUR { 2 } else { 1 });
        for content in cut(kind, bytes, len) {
            self.take(link, &content);
        }
    }

    /// The signatures of hops 2 and 3 over the records that hop 1 holds.
    fn signatures(&self, ahead: bool) -> Option<Signatures> {
        let view = self.hop.view();
        let interval = view.times().interval_at(self.wall_ms()) + u64::from(ahead);
        let records = view.records(interval)?;
        let records: Vec<&SignedRecord> = records.iter().map(|record| &**record).collect();
        let mut all = Signatures::new(view.chain(), interval, &records);
        for hop in [2, 3] {
            all.signatures[hop - 1] = Some(bundle::sign(&signer(hop), &all.hash));
        }
        Some(all)
    }

    fn check(&mut self) {
        let (now, wall_ms) = (self.now, self.wall_ms());
        let mut steps = self.hop.steps();
        while !steps.is_empty() {
            for step in std::mem::take(&mut steps) {
                match step {
                    Step::Save(number) => {
                        let state = self.hop.state();
                        for (interval, hash) in state.intervals.recent() {
                            assert_eq!(self.signed.entry(*interval).or_insert(*hash), hash, "signed twice");
                        }
                        self.hop.saved(number, now, wall_ms);
                        steps.extend(self.hop.steps());
                    }
                    Step::Send(link, content) => {
                        let (direction, hop) = match link {
                            NEIGHBOUR => (Direction::Forward, 2),
                            _ => (Direction::Backward, 1),
                        };
                        assert!(content.len() <= shape().control_content(direction, hop));
                        assert!(content[0] == PART || (content[0] == ASK && link == NEIGHBOUR));
                    }
                    Step::Event(_) => {}
                }
            }
        }
        let view = self.hop.view();
        let running = view.times().interval_at(wall_ms);
        for bundle in (running.saturating_sub(2)..=running + 2).flat_map(|interval| view.bundles(interval)) {
            for (at, signature) in bundle.signatures.signatures.iter().enumerate() {
                let signing = &bundle.descriptors[at].signing;
                let verifies = |signature| bundle::verifies(signing, &bundle.signatures.hash, signature);
                assert!(signature.as_ref().is_none_or(verifies), "hop {} did not sign this", at + 1);
            }
        }
    }
}

/// Takes bytes from the front of a script; none at its end.
fn take<'a>(script: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (first, rest) = script.split_at_checked(n)?;
    *script = rest;
    Some(first)
}

/// Flips up to three bits.
fn flip(bytes: &mut [u8], script: &mut &[u8], n: u8) -> Option<()> {
    for _ in 0..n % 4 {
        let with = take(script, 3)?;
        let at = usize::from(u16::from_be_bytes([with[0], with[1]])) % bytes.len();
        bytes[at] ^= 1 << (with[2] % 8);
    }
    Some(())
}

fn step(world: &mut World, script: &mut &[u8]) -> Option<()> {
    let head = take(script, 3)?;
    let link = [NEIGHBOUR, ENTRIES[0], ENTRIES[1]][usize::from(head[1]) % 3];
    match head[0] % 6 {
        0 => {
            let kind = [ASK, PART][usize::from(head[2] & 1)];
            let content = take(script, usize::from(head[2] >> 1).min(script.len()))?;
            world.take(link, &[&[kind], content].concat());
        }
        1 => {
            let hop = 2 + usize::from(head[2] & 1);
            let mut bytes = GENUINE[hop - 2].descriptor.bytes().to_vec();
            flip(&mut bytes, script, head[2] >> 1)?;
            world.item(link, ItemKind::Descriptor(hop as u8), &bytes);
        }
        2 => {
            let hop = 2 + usize::from(head[2] & 1);
            let mut bytes = GENUINE[hop - 2].records[usize::from(head[2] >> 1 & 1)].travelling().to_vec();
            flip(&mut bytes, script, head[2] >> 2)?;
            world.item(link, ItemKind::Record(hop as u8), &bytes);
        }
        3 => {
            if let Some(mut all) = world.signatures(head[2] & 1 == 1) {
                (2..=HOPS).filter(|hop| head[2] >> hop & 1 == 1).for_each(|hop| all.signatures[hop - 1] = None);
                let mut bytes = all.to_bytes();
                flip(&mut bytes, script, head[2] >> 4)?;
                world.item(link, ItemKind::Signatures, &bytes);
            }
        }
        4 => {
            let state = State::read(take(script, usize::from(head[2]).min(script.len()))?);
            if let Ok(state) = state {
                let bytes = state.to_bytes();
                assert!(State::read(&bytes).is_ok_and(|again| again.to_bytes() == bytes));
            }
        }
        _ => world.tick(u16::from_be_bytes([head[1], head[2]])),
    }
    Some(())
}

fuzz_target!(|script: &[u8]| {
    let mut script = script;
    let mut world = World::new();
    for _ in 0..60 {
        if step(&mut world, &mut script).is_none() {
            break;
        }
    }
});
