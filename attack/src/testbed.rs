//! A small chain for tests: users, mixes that release all they hold on a grid, an exit.

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;

use crate::active::{Action, Plan};
use crate::{Place, Record, Scores, Seen, Truth};

pub(crate) const CELL: u32 = 1000;
pub(crate) const MS: u64 = 1_000_000;

/// When the users and their destinations send, in nanoseconds: one list per user.
#[derive(Clone)]
pub(crate) struct Calls {
    pub length: u64,
    pub forward: Vec<Vec<u64>>,
    pub backward: Vec<Vec<u64>>,
}

impl Calls {
    /// What a plan leaves of the users' cells.
    pub fn under(&self, plan: &Plan) -> Self {
        let mut calls = self.clone();
        for (user, times) in calls.forward.iter_mut().enumerate() {
            *times = (times.iter())
                .filter_map(|&at| match plan.act(user, at) {
                    Action::Pass => Some(at),
                    Action::Delay(by) => Some(at + by),
                    Action::Drop => None,
                })
                .collect();
            times.sort_unstable();
        }
        calls
    }
}

/// Mixes in a row with one period and phases of their own.
pub(crate) struct Chain {
    pub mixes: usize,
    /// Period of the releases in nanoseconds.
    pub period: u64,
    /// Share of cells lost on each link.
    pub loss: f64,
}

impl Default for Chain {
    fn default() -> Self {
        Self { mixes: 3, period: 5 * MS, loss: 0.0 }
    }
}

impl Chain {
    /// Carries the calls and records them on every link. Flows are in random order.
    pub fn run(&self, seed: u64, calls: &Calls) -> (Record, Truth) {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let users = calls.forward.len();
        let mut flow_of: Vec<usize> = (0..users).collect();
        flow_of.shuffle(&mut rng);
        let mut record = Record {
            length: calls.length,
            cell_bytes: CELL,
            access: vec![Place::default(); users],
            inner: vec![Place::default(); self.mixes],
            flows: vec![Place::default(); users],
            ..Record::default()
        };

        let mut cells = merged(&calls.forward);
        for &(at, user) in &cells {
            record.access[user].forward.push(seen(at));
        }
        for link in &mut record.inner {
            cells = self.mix(&mut rng, &cells);
            link.forward = cells.iter().map(|&(at, _)| seen(at)).collect();
        }
        for (at, user) in exit(&mut rng, &cells) {
            record.flows[flow_of[user]].forward.push(seen(at));
        }

        cells = merged(&calls.backward);
        for &(at, user) in &cells {
            record.flows[flow_of[user]].backward.push(seen(at));
        }
        cells = exit(&mut rng, &cells);
        for link in record.inner.iter_mut().rev() {
            link.backward = cells.iter().map(|&(at, _)| seen(at)).collect();
            cells = self.mix(&mut rng, &cells);
        }
        for &(at, user) in &cells {
            record.access[user].backward.push(seen(at));
        }
        (record.first(calls.length), Truth(flow_of))
    }

    fn mix(&self, rng: &mut ChaCha20Rng, cells: &[(u64, usize)]) -> Vec<(u64, usize)> {
        let phase = rng.random_range(0..self.period);
        let mut pools = std::collections::BTreeMap::<u64, Vec<usize>>::new();
        for &(at, user) in cells {
            if self.loss > 0.0 && rng.random_bool(self.loss) {
                continue;
            }
            let read = at + rng.random_range(20_000..80_000);
            pools.entry((read + self.period - phase) / self.period).or_default().push(user);
        }
        let mut out = Vec::new();
        for (release, mut users) in pools {
            users.shuffle(rng);
            let mut at = release * self.period + phase + rng.random_range(10_000..150_000);
            for burst in users.chunks(16) {
                out.extend(burst.iter().map(|&user| (at, user)));
                at += rng.random_range(8_000..30_000);
            }
        }
        out
    }
}

fn exit(rng: &mut ChaCha20Rng, cells: &[(u64, usize)]) -> Vec<(u64, usize)> {
    let mut out: Vec<_> = cells.iter().map(|&(at, user)| (at + rng.random_range(30_000..120_000), user)).collect();
    out.sort_unstable();
    out
}

fn seen(at: u64) -> Seen {
    Seen { at, bytes: CELL }
}

fn merged(lists: &[Vec<u64>]) -> Vec<(u64, usize)> {
    let mut all: Vec<_> =
        lists.iter().enumerate().flat_map(|(user, times)| times.iter().map(move |&at| (at, user))).collect();
    all.sort_unstable();
    all
}

/// Calls of 50 datagrams a second both ways, with 2 ms of jitter and clocks that differ by up to 50 ppm.
pub(crate) fn constant_calls(seed: u64, users: usize, seconds: f64) -> Calls {
    let mut rng = ChaCha20Rng::seed_from_u64(seed ^ 0xca11);
    let length = (seconds * 1e9) as u64;
    let call = |rng: &mut ChaCha20Rng| {
        let interval = 20e6 * (1.0 + rng.random_range(-50e-6..50e-6));
        let mut at = rng.random_range(0.0..20e6);
        let mut times: Vec<u64> = Vec::new();
        while at < length as f64 {
            times.push((at + gauss(rng) * 2e6).max(0.0) as u64);
            at += interval;
        }
        times.sort_unstable();
        times
    };
    let forward = (0..users).map(|_| call(&mut rng)).collect();
    let backward = (0..users).map(|_| call(&mut rng)).collect();
    Calls { length, forward, backward }
}

/// Calls whose talk and silence alternate, a second on average each.
pub(crate) fn talk_spurts(seed: u64, users: usize, seconds: f64) -> Calls {
    let mut calls = constant_calls(seed, users, seconds);
    let mut rng = ChaCha20Rng::seed_from_u64(seed ^ 0x7a1c);
    for times in calls.forward.iter_mut().chain(&mut calls.backward) {
        let (mut talks, mut until) = (rng.random_bool(0.5), 0.0);
        times.retain(|&at| {
            while at as f64 > until {
                talks = !talks;
                until += -1e9 * rng.random_range(f64::EPSILON..1.0).ln();
            }
            talks
        });
    }
    calls
}

pub(crate) fn gauss(rng: &mut ChaCha20Rng) -> f64 {
    let (radius, angle): (f64, f64) = (rng.random_range(f64::EPSILON..1.0), rng.random_range(0.0..1.0));
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

/// Share of users whose own flow has the highest score in their row.
pub(crate) fn found(scores: &Scores, truth: &Truth) -> f64 {
    let best = |user: usize| {
        let own = scores.at(user, truth.0[user]);
        scores.row(user).iter().enumerate().all(|(flow, &score)| flow == truth.0[user] || score < own)
    };
    (0..scores.rows()).filter(|&user| best(user)).count() as f64 / scores.rows() as f64
}
