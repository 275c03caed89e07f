use super::*;
use crate::frames::{Frame, split};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap, VecDeque};

const P: usize = 208;
const CHUNK: usize = 200;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn datagram(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 7) as u8 ^ seed).collect()
}

#[test]
fn channel_without_fragments_allocates_nothing() {
    let reassembler = Reassembler::new(P);
    assert_eq!((reassembler.partials.capacity(), reassembler.done.capacity()), (0, 0));
    assert!(size_of::<Reassembler>() <= 64);
}

#[test]
fn paced_class_holds_fragments_for_its_own_time() {
    let mut reassembler = Reassembler::with_hold(P, Duration::from_secs(2));
    let _ = reassembler.push(ms(0), 1, 1, 0, false, &[1; CHUNK]);
    assert_eq!((reassembler.expire(ms(1999)), reassembler.expire(ms(2000))), (0, 1));
    assert_eq!(reassembler.sweep(ms(5000)), 0);
    let _ = reassembler.push(ms(5000), 1, 1, 0, false, &[1; CHUNK]);
    assert_eq!(reassembler.next_expiry(), Some(ms(7000)), "it keeps the time");
}

#[test]
fn few_idle_buffers_are_kept_and_reused() {
    let mut reassembler = Reassembler::new(P);
    for id in 0..16 {
        let _ = reassembler.push(ms(0), 1, id, 0, false, &[1; CHUNK]);
    }
    assert_eq!(reassembler.expire(ms(250)), 16);
    assert_eq!((reassembler.held(), reassembler.partials.len()), (0, SPARES_MAX));
    let before = reassembler.partials[0].bytes.as_ptr();
    let _ = reassembler.push(ms(300), 1, 99, 0, false, &[2; CHUNK]);
    assert_eq!(reassembler.partials[0].bytes.as_ptr(), before);
    let pushed = reassembler.push(ms(300), 1, 99, 1, true, &[3]);
    assert!(matches!(pushed.outcome, Outcome::Complete(data) if data[..CHUNK] == [2; CHUNK] && data[CHUNK..] == [3]));
}

#[test]
fn buffers_are_freed_after_250_ms_without_fragments() {
    let mut reassembler = Reassembler::new(P);
    assert!(reassembler.is_bare());
    for id in 0..16 {
        let _ = reassembler.push(ms(0), 1, id, 0, false, &[1; CHUNK]);
    }
    assert!(reassembler.give_up(1, 15) && !reassembler.give_up(1, 15));
    let _ = reassembler.push(ms(100), 1, 0, 1, true, &[1]);
    assert_eq!((reassembler.sweep(ms(250)), reassembler.held()), (14, 0));
    assert!(!reassembler.is_bare(), "copies of the datagram completed at 100 ms are still ignored");
    assert_eq!(reassembler.push(ms(250), 1, 0, 0, false, &[1; CHUNK]).outcome, Outcome::Stored);
    assert_eq!((reassembler.sweep(ms(350)), reassembler.is_bare()), (0, true));
}

#[test]
fn seventeenth_datagram_evicts_the_oldest() {
    let mut reassembler = Reassembler::new(P);
    for id in 0..16 {
        let pushed = reassembler.push(ms(id.into()), 1, id, 0, false, &[0; CHUNK]);
        assert_eq!(pushed, Pushed { started: true, evicted: 0, outcome: Outcome::Stored });
    }
    assert_eq!(reassembler.next_expiry(), Some(ms(250)));
    let pushed = reassembler.push(ms(20), 1, 16, 0, false, &[0; CHUNK]);
    assert_eq!(pushed, Pushed { started: true, evicted: 1, outcome: Outcome::Stored });
    assert_eq!((reassembler.held(), reassembler.next_expiry()), (16, Some(ms(251))));
}

#[test]
fn fragment_after_250_ms_does_not_complete() {
    let mut reassembler = Reassembler::new(P);
    let _ = reassembler.push(ms(5), 1, 1, 0, false, &[0; CHUNK]);
    assert_eq!(reassembler.expire(ms(254)), 0);
    let pushed = reassembler.push(ms(255), 1, 1, 1, true, &[0]);
    assert_eq!(pushed, Pushed { started: true, evicted: 1, outcome: Outcome::Stored });
}

#[test]
fn contradicting_fragments_are_refused() {
    let mut reassembler = Reassembler::new(P);
    let full = [0; CHUNK];
    for (index, last, len) in [
        (0, false, CHUNK - 1),
        (0, false, 0),
        (0, true, CHUNK),
        (1, true, 0),
        (1, true, CHUNK + 1),
        (7, false, CHUNK),
        (8, true, 1),
        (255, true, 1),
    ] {
        let pushed = reassembler.push(ms(0), 1, 1, index, last, &[0; CHUNK + 1][..len]);
        assert_eq!(pushed, Pushed { started: false, evicted: 0, outcome: Outcome::Refused }, "{index} {last} {len}");
    }
    assert_eq!(reassembler.held(), 0);
    assert_eq!(reassembler.push(ms(0), 1, 1, 2, false, &full).outcome, Outcome::Stored);
    assert_eq!(reassembler.push(ms(0), 1, 1, 1, true, &[0]).outcome, Outcome::Refused, "an end before a fragment");
    assert_eq!(reassembler.push(ms(0), 1, 1, 2, true, &full).outcome, Outcome::Refused, "both end and not");
    assert_eq!(reassembler.push(ms(0), 1, 1, 3, true, &[0]).outcome, Outcome::Stored);
    assert_eq!(reassembler.push(ms(0), 1, 1, 4, true, &[0]).outcome, Outcome::Refused, "two ends");
    assert_eq!(reassembler.push(ms(0), 1, 1, 3, true, &[0; 2]).outcome, Outcome::Refused, "two lengths");
    assert_eq!(reassembler.push(ms(0), 1, 1, 3, false, &full).outcome, Outcome::Refused, "both end and not");
    assert_eq!(reassembler.push(ms(0), 1, 1, 4, false, &full).outcome, Outcome::Refused, "behind the end");
    assert_eq!(reassembler.push(ms(0), 1, 1, 3, true, &[0]).outcome, Outcome::Stored, "a copy");
    assert_eq!(reassembler.push(ms(0), 1, 1, 0, false, &full).outcome, Outcome::Stored);
    assert!(matches!(reassembler.push(ms(0), 1, 1, 1, false, &full).outcome, Outcome::Complete(d) if d.len() == 601));
}

#[test]
fn fragments_and_ids_of_an_ended_flow_are_dropped() {
    let mut reassembler = Reassembler::new(P);
    let _ = reassembler.push(ms(0), 1, 0, 0, false, &[0; CHUNK]);
    let _ = reassembler.push(ms(0), 2, 0, 0, false, &[0; CHUNK]);
    let _ = reassembler.push(ms(0), 1, 7, 0, false, &[0; CHUNK]);
    let _ = reassembler.push(ms(0), 1, 7, 1, true, &[0]);
    assert_eq!((reassembler.drop_flow(1), reassembler.held()), (1, 1));
    assert!(reassembler.push(ms(1), 1, 7, 0, false, &[0; CHUNK]).started, "not ignored as a copy");
}

/// Fragments by index: the flag `last`, and the data.
type Parts = BTreeMap<u8, (bool, Vec<u8>)>;

/// The plain model: by flow and id, the order and time of the start, and the fragments.
#[derive(Default)]
struct Model {
    partials: HashMap<(u16, u16), (u64, Duration, Parts)>,
    done: VecDeque<((u16, u16), Duration)>,
    starts: u64,
}

#[derive(Debug, PartialEq)]
enum Want {
    Stored,
    Complete(Vec<u8>),
    Refused,
}

impl Model {
    fn expire(&mut self, now: Duration) -> u32 {
        self.done.retain(|(_, since)| *since + HOLD > now);
        let before = self.partials.len();
        self.partials.retain(|_, (_, since, _)| *since + HOLD > now);
        (before - self.partials.len()) as u32
    }

    fn push(&mut self, now: Duration, key: (u16, u16), index: u8, last: bool, data: &[u8]) -> (bool, u32, Want) {
        let mut evicted = self.expire(now);
        let plausible = matches!((index, last, data.len()), (0..7, false, CHUNK) | (1..8, true, 1..=CHUNK));
        if !plausible {
            return (false, evicted, Want::Refused);
        }
        if self.done.iter().any(|(done, _)| *done == key) {
            return (false, evicted, Want::Stored);
        }
        let started = !self.partials.contains_key(&key);
        if started {
            if self.partials.len() == PARTIAL_MAX {
                let oldest = *self.partials.iter().min_by_key(|(_, partial)| partial.0).unwrap().0;
                self.partials.remove(&oldest);
                evicted += 1;
            }
            self.starts += 1;
            self.partials.insert(key, (self.starts, now, BTreeMap::new()));
        }
        let parts = &mut self.partials.get_mut(&key).unwrap().2;
        let clash = parts.iter().any(|(&i, (l, d))| {
            (i == index && (*l != last || d.len() != data.len())) || (*l && index > i) || (last && i > index)
        });
        if clash {
            return (started, evicted, Want::Refused);
        }
        parts.entry(index).or_insert((last, data.to_vec()));
        let (&end, (is_last, _)) = parts.last_key_value().unwrap();
        if !is_last || parts.len() != usize::from(end) + 1 {
            return (started, evicted, Want::Stored);
        }
        let whole = parts.values().flat_map(|(_, d)| d.clone()).collect();
        self.partials.remove(&key);
        self.done.push_back((key, now));
        if self.done.len() > PARTIAL_MAX {
            self.done.pop_front();
        }
        (started, evicted, Want::Complete(whole))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push { after: u64, flow: u16, id: u16, index: u8, last: bool, len: usize, seed: u8 },
    Expire(u64),
    DropFlow(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![6 => Just(CHUNK), 2 => 0..=CHUNK + 1, 2 => 1..3usize];
    let push = (0u64..8, 0u16..3, 0u16..10, prop_oneof![8 => 0u8..4, 1 => 0u8..10], 0u8..3, len, any::<u8>()).prop_map(
        |(after, flow, id, index, last, len, seed)| Step::Push { after, flow, id, index, last: last == 0, len, seed },
    );
    prop_oneof![
        60 => push,
        2 => (0u64..200).prop_map(Step::Expire),
        1 => (0u16..3).prop_map(Step::DropFlow),
    ]
}

proptest! {
    #[test]
    fn shuffled_and_copied_fragments_complete_once(
        p in prop::sample::select(vec![208usize, 1152, 1328]),
        lens in prop::collection::vec(0usize..=1600, 1..8),
        copies in 1usize..3,
        order in any::<u64>(),
    ) {
        use rand::{SeedableRng, seq::SliceRandom};
        let datagrams: Vec<_> =
            lens.iter().enumerate().map(|(i, len)| datagram((len * p / 208).min(8 * (p - 8)), i as u8)).collect();
        let mut cells = Vec::new();
        let mut want = 0;
        for (id, data) in datagrams.iter().enumerate() {
            let frames: Vec<_> = split(p, 5, id as u16, data).collect();
            if let [Frame::Dgram { data: whole, .. }] = frames[..] {
                prop_assert_eq!(whole, &data[..]);
                continue;
            }
            want += 1;
            for _ in 0..copies {
                cells.extend(frames.iter().copied());
            }
        }
        cells.shuffle(&mut rand_chacha::ChaCha20Rng::seed_from_u64(order));
        let mut reassembler = Reassembler::new(p);
        let mut out = HashMap::new();
        let mut started = 0;
        for cell in cells {
            let Frame::Frag { flow, id, index, last, data } = cell else { unreachable!("cut above") };
            let pushed = reassembler.push(ms(1), flow, id, index, last, data);
            prop_assert_eq!(pushed.evicted, 0);
            started += usize::from(pushed.started);
            match pushed.outcome {
                Outcome::Complete(data) => prop_assert!(out.insert(id, data.to_vec()).is_none(), "twice"),
                Outcome::Stored => {}
                Outcome::Refused => prop_assert!(false, "refused"),
            }
        }
        prop_assert_eq!((out.len(), started, reassembler.held()), (want, want, 0));
        for (id, data) in out {
            prop_assert_eq!(&data, &datagrams[usize::from(id)]);
        }
    }

    #[test]
    fn reassembler_agrees_with_a_plain_model(steps in prop::collection::vec(step(), 1..300)) {
        let mut reassembler = Reassembler::new(P);
        let mut model = Model::default();
        let mut now = Duration::ZERO;
        let (mut injected, mut delivered, mut dropped) = (0, 0, 0);
        for step in steps {
            match step {
                Step::Push { after, flow, id, index, last, len, seed } => {
                    now += ms(after);
                    let data = datagram(len, seed);
                    let want = model.push(now, (flow, id), index, last, &data);
                    let pushed = reassembler.push(now, flow, id, index, last, &data);
                    injected += u32::from(pushed.started);
                    dropped += pushed.evicted;
                    let outcome = match pushed.outcome {
                        Outcome::Stored => Want::Stored,
                        Outcome::Complete(data) => {
                            delivered += 1;
                            Want::Complete(data.to_vec())
                        }
                        Outcome::Refused => Want::Refused,
                    };
                    prop_assert_eq!((pushed.started, pushed.evicted, outcome), want);
                }
                Step::Expire(after) => {
                    now += ms(after);
                    let expired = reassembler.expire(now);
                    prop_assert_eq!(expired, model.expire(now));
                    dropped += expired;
                }
                Step::DropFlow(flow) => {
                    let before = model.partials.len();
                    model.partials.retain(|key, _| key.0 != flow);
                    model.done.retain(|(key, _)| key.0 != flow);
                    let gone = reassembler.drop_flow(flow);
                    prop_assert_eq!(gone as usize, before - model.partials.len());
                    dropped += gone;
                }
            }
            prop_assert_eq!(reassembler.held(), model.partials.len());
            prop_assert_eq!(reassembler.next_expiry(), model.partials.values().map(|partial| partial.1 + HOLD).min());
            prop_assert_eq!(injected, delivered + dropped + reassembler.held() as u32);
            prop_assert!(reassembler.partials.len() <= PARTIAL_MAX);
        }
    }
}

#[test]
fn paced_class_with_long_rounds_holds_fragments_for_longer() {
    let mut reassembler = Reassembler::with_hold(P, ms(2000));
    assert!(reassembler.push(ms(0), 1, 1, 0, false, &[1; CHUNK]).started);
    assert_eq!((reassembler.expire(ms(1999)), reassembler.sweep(ms(2000))), (0, 1));
    let _ = reassembler.push(ms(3000), 1, 2, 0, false, &[1; CHUNK]);
    assert_eq!(reassembler.next_expiry(), Some(ms(5000)), "also after its buffers were freed");
}
