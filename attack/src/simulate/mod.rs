//! Synthetic records: users with application flows behind a simulated chain.
//!
//! The judge is tested with these before it judges a real chain: records in which everybody must be found, records
//! that are independent of the users by construction, and the latter with one leak planted. All follow from the seed.
//!
//! Traffic and loss of a user depend on the seed and the user only, not on the chain, so the same users can be seen
//! through several chains. Access links are recorded at Mix 1's end: a forward cell that the link lost is missing from
//! the record, a backward cell is in the record whether or not it arrives.

mod chain;
mod ideal;
mod loss;
mod traffic;

use rand::{RngExt as _, SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;

use crate::{
    active::Plan,
    record::{Record, Seen, Truth},
};

pub use ideal::{Ideal, Leak};
pub use loss::Loss;
pub use traffic::{Answers, Profile};

pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const MS: u64 = 1_000_000;
pub(crate) const US: u64 = 1_000;

/// Bytes of a cell on the access and inner links of every simulated chain.
pub(crate) const CELL_BYTES: u32 = 1184;

/// What stands between access links and flows.
#[derive(Clone, Debug, PartialEq)]
pub enum Chain {
    /// Hops that forward at once; only the links add jitter (exponential, mean 0.1 ms a link).
    Off { hops: usize },
    /// Pools that release everything on a grid of `period_ms` with random phase, or as soon as `threshold` cells of at
    /// least an eighth as many channels are held. Labels are shuffled and channels keep their order (docs/SPEC.md 6.2
    /// and 6.3). With `shuffle` off, cells leave in the order in which they came: a planted fault.
    Pool { hops: usize, period_ms: f64, threshold: usize, shuffle: bool },
    /// Each cell waits for an exponential time of mean `mean_ms` at every hop (Loopix, Nym). Users add `cover` cells a
    /// second, as a Poisson process, which the exit drops.
    Exponential { hops: usize, mean_ms: f64, cover: f64 },
    /// Constant links and full rounds: access links and flows are independent, unless a leak is planted.
    Ideal(Ideal),
}

impl Chain {
    pub const OFF: Self = Self::Off { hops: 3 };
    /// eddy's default class: `threshold-or-timed {n = 64, t = 5 ms}` at three mixes.
    pub const DEFAULT: Self = Self::Pool { hops: 3, period_ms: 5.0, threshold: 64, shuffle: true };
    /// eddy's `timed {t = 50 ms}` at three mixes.
    pub const TIMED: Self = Self::Pool { hops: 3, period_ms: 50.0, threshold: usize::MAX, shuffle: true };
}

/// A run to simulate. [`Simulation::new`] fills in defaults; change the fields that matter.
#[derive(Clone, Debug, PartialEq)]
pub struct Simulation {
    pub users: usize,
    pub seconds: f64,
    pub seed: u64,
    pub profile: Profile,
    pub answers: Answers,
    /// Flows start at times uniform in the first `starts` seconds.
    pub starts: f64,
    pub chain: Chain,
    /// Loss of forward cells on access links.
    pub loss: Loss,
    /// What an active adversary does to forward cells on access links. The record shows them behind it.
    pub plan: Option<Plan>,
}

/// What a generator draws is a stream of its own, so that one does not shift another.
#[derive(Clone, Copy)]
pub(crate) enum Draw {
    Truth,
    Chain,
    Traffic,
    Loss,
    Link,
}

pub(crate) fn generator(seed: u64, draw: Draw, user: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(((user as u64) << 8) | draw as u64);
    rng
}

/// An exponential time of the given mean.
pub(crate) fn exponential(rng: &mut ChaCha8Rng, mean: f64) -> f64 {
    -mean * (1.0 - rng.random::<f64>()).ln()
}

/// A standard normal number (Box and Muller).
pub(crate) fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// The datagrams of a user's application, before any chain.
pub(crate) struct Application {
    pub start: u64,
    /// From the user: when the entry receives them.
    pub forward: Vec<Seen>,
    /// To the user: when the exit receives them.
    pub backward: Vec<Seen>,
}

impl Simulation {
    /// Voice calls through eddy's default class: both parties speak in turn, flows run from the start, nothing is lost.
    pub fn new(users: usize, seconds: f64, seed: u64) -> Self {
        Self {
            users,
            seconds,
            seed,
            profile: Profile::Voice,
            answers: Answers::Turns,
            starts: 0.0,
            chain: Chain::DEFAULT,
            loss: Loss::None,
            plan: None,
        }
    }

    pub fn run(&self) -> (Record, Truth) {
        let mut flow_of: Vec<usize> = (0..self.users).collect();
        flow_of.shuffle(&mut generator(self.seed, Draw::Truth, 0));
        let applications: Vec<Application> = (0..self.users).map(|user| self.application(user)).collect();
        let mut record = match &self.chain {
            Chain::Ideal(ideal) => ideal::run(self, ideal, &applications),
            _ => chain::run(self, &applications),
        };
        // Both simulations give flows in the order of the users.
        let mut flows = vec![Default::default(); self.users];
        let mut unopened = vec![Vec::new(); record.unopened.len()];
        for (user, flow) in record.flows.drain(..).enumerate() {
            flows[flow_of[user]] = flow;
        }
        for (user, times) in record.unopened.drain(..).enumerate() {
            unopened[flow_of[user]] = times;
        }
        record.flows = flows;
        record.unopened = unopened;
        (record, Truth(flow_of))
    }

    pub(crate) fn length(&self) -> u64 {
        (self.seconds * SECOND as f64) as u64
    }

    fn application(&self, user: usize) -> Application {
        let mut rng = generator(self.seed, Draw::Traffic, user);
        let start = (self.starts * rng.random::<f64>() * SECOND as f64) as u64;
        let (forward, backward) = traffic::datagrams(self.profile, self.answers, start, self.length(), &mut rng);
        Application { start, forward, backward }
    }

    /// For each of a user's cells, in the order in which they are sent: does the access link lose it?
    pub(crate) fn lost(&self, user: usize, cells: usize) -> Vec<bool> {
        loss::lost(self.loss, &mut generator(self.seed, Draw::Loss, user), cells)
    }

    /// When a cell that a user sends at `at` passes the adversary; `None` if it is dropped.
    pub(crate) fn passes(&self, user: usize, at: u64) -> Option<u64> {
        self.plan.as_ref().map_or(Some(at), |plan| plan.passes(user, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_record() {
        for chain in [Chain::DEFAULT, Chain::OFF, Chain::Ideal(Ideal::default())] {
            let simulation = Simulation { chain, ..Simulation::new(8, 3.0, 5) };
            assert_eq!(simulation.run(), simulation.run());
            assert_ne!(simulation.run().0, Simulation { seed: 6, ..simulation }.run().0);
        }
    }

    #[test]
    fn traces_are_in_order_of_time() {
        for chain in [Chain::DEFAULT, Chain::OFF, Chain::TIMED, Chain::Ideal(Ideal::default())] {
            let (record, _) = Simulation { chain, profile: Profile::Video, ..Simulation::new(8, 3.0, 5) }.run();
            let places = record.access.iter().chain(&record.inner).chain(&record.flows);
            for trace in places.flat_map(|place| [&place.forward, &place.backward]) {
                assert!(trace.is_sorted_by_key(|seen| seen.at));
            }
        }
    }

    #[test]
    fn what_enters_a_free_chain_leaves_it() {
        let (record, truth) = Simulation::new(20, 10.0, 1).run();
        for (user, &flow) in truth.0.iter().enumerate() {
            let (cells, datagrams) = (record.access[user].forward.len(), record.flows[flow].forward.len());
            assert!(cells >= datagrams && cells - datagrams <= 2, "{cells} cells, {datagrams} datagrams");
            let (answers, cells) = (record.flows[flow].backward.len(), record.access[user].backward.len());
            assert!(answers >= cells && answers - cells <= 2, "{answers} answers, {cells} cells");
        }
        let delays: Vec<u64> = record.probe.iter().map(|passage| passage.left - passage.entered).collect();
        let mean = delays.iter().sum::<u64>() as f64 / delays.len() as f64 / MS as f64;
        // The first pool holds a cell for 2.5 ms on average, the others for the distance of their grids' phases.
        assert!((2.5..12.8).contains(&mean), "{mean} ms");
    }

    #[test]
    fn ideal_links_do_not_depend_on_flows() {
        let chain = Chain::Ideal(Ideal { copies: 2, ..Ideal::default() });
        let voice = Simulation { chain, loss: Loss::Independent(0.01), ..Simulation::new(5, 5.0, 3) };
        let video = Simulation { profile: Profile::Video, ..voice.clone() };
        assert_eq!(voice.run().0.access, video.run().0.access);
        assert_eq!(voice.run().0.inner, video.run().0.inner);
        assert_ne!(voice.run().0.flows, video.run().0.flows);
    }

    #[test]
    fn bursts_lose_their_share_in_runs() {
        let loss = Loss::Bursts { share: 0.05, run: 4.0 };
        let lost = Simulation { loss, ..Simulation::new(1, 1.0, 3) }.lost(0, 200_000);
        let share = lost.iter().filter(|lost| **lost).count() as f64 / lost.len() as f64;
        let runs = lost.windows(2).filter(|w| w[0] && !w[1]).count() as f64;
        assert!((0.045..0.055).contains(&share), "{share}");
        assert!((3.7..4.3).contains(&(share * lost.len() as f64 / runs)), "{runs} runs");
    }
}
