//! Phases: how long after the slots of a link the datagrams of a flow are.
//!
//! A link at a constant rate shows neither when nor how much its user sends. But it has a clock of its own. If what
//! comes through it is sent on when it arrives, the flow has the phase of the link: its datagrams are one delay of the
//! chain after slots. Only the flow of this link is so for long, if clocks drift, and if they do not, only flows of
//! links with nearly the same phase are.
//!
//! Nothing is assumed about the delay but that it has one density for all users. It is found along with the flows: the
//! offsets of all pairs show it faintly, it shows which pairs are likely, and the offsets of these show it clearly.
//!
//! Backward there is nothing of that kind: answers come to the far end of a link at any time and wait for a slot.

use rayon::prelude::*;

use crate::{Attacker, Record, Scores, clock::Clock, math::median};

/// Nanoseconds of a bin of offsets.
const BIN: f64 = 10_000.0;

/// Most bins: offsets on links with longer periods share them.
const BINS: usize = 10_000;

/// A link is paced if half of its cells are nearer to their slots than this share of a period.
const NEAR: f64 = 1.0 / 16.0;

/// Share of datagrams whose offset has nothing to do with the link.
const STRAY: f64 = 0.03;

/// How often the density of offsets is estimated.
const ROUNDS: usize = 5;

/// Pairs that are less likely than this do not count for the density.
const UNLIKELY: f64 = 1e-5;

/// Compares phases of links at a constant rate with phases of flows.
pub(crate) struct Phases;

impl Attacker for Phases {
    fn name(&self) -> String {
        "phases".into()
    }

    fn source(&self) -> &'static str {
        "of this project, against padding at a constant rate (X. Cai et al., A Systematic Approach to Developing and \
         Evaluating Website Fingerprinting Defenses, CCS 2014) behind which packets are sent on at once; T. Kohno, A. \
         Broido and K. Claffy, Remote Physical Device Fingerprinting, S&P 2005 (fitting a clock); A. Dempster, N. Laird \
         and D. Rubin, Maximum Likelihood from Incomplete Data via the EM Algorithm, J. Royal Statistical Society B 1977"
    }

    fn scores(&self, record: &Record) -> Scores {
        let links = record.access_cells(true);
        let links: Vec<Option<Link>> = links.par_iter().map(|cells| Clock::of(cells).and_then(Link::new)).collect();
        let flows = record.datagrams(true);
        let mut scores = Scores::of_pairs(links.len(), flows.len(), |_, _| 0.0);
        if links.iter().all(Option::is_none) {
            return scores;
        }
        for _ in 0..ROUNDS {
            scores = posteriors(&links, &flows, &density(&links, &flows, &scores));
        }
        scores
    }
}

/// The slots of a paced link.
struct Link {
    phase: f64,
    period: f64,
    /// Nanoseconds of a bin.
    bin: f64,
}

impl Link {
    /// `None` if the link is not paced.
    fn new(mut clock: Clock) -> Option<Self> {
        let Clock { phase, period, .. } = clock;
        clock.late.iter_mut().for_each(|late| *late = late.abs());
        let off = median(&mut clock.late);
        (off <= NEAR * period).then(|| Self { phase, period, bin: BIN.max(period / BINS as f64) })
    }

    fn bins(&self) -> usize {
        (self.period / self.bin).ceil() as usize
    }

    /// The bins of times after the last slot before each.
    fn offsets<'a>(&self, times: &'a [u64]) -> impl Iterator<Item = usize> + use<'a> {
        let (phase, period, bin, last) = (self.phase, self.period, self.bin, self.bins() - 1);
        times.iter().map(move |&at| {
            let periods = (at as f64 - phase) / period;
            (((periods - periods.floor()) * period / bin) as usize).min(last)
        })
    }
}

/// The density of offsets, over the pairs in proportion to how likely each is in its row. It sums to one.
fn density(links: &[Option<Link>], flows: &[Vec<u64>], scores: &Scores) -> Vec<f64> {
    let bins = links.iter().flatten().map(Link::bins).max().unwrap_or(1);
    let of_link = |(user, link): (usize, &Option<Link>)| {
        let mut counts = vec![0.0; bins];
        let row = scores.row(user);
        let total = log_sum(row.iter().copied());
        for (times, score) in flows.iter().zip(row) {
            let share = (score - total).exp();
            if let Some(link) = link.as_ref().filter(|_| share > UNLIKELY) {
                link.offsets(times).for_each(|bin| counts[bin] += share);
            }
        }
        counts
    };
    // Summed in the order of the users, so that one record has one result.
    let of_links: Vec<Vec<f64>> = links.par_iter().enumerate().map(of_link).collect();
    let counts: Vec<f64> = (0..bins).map(|bin| of_links.iter().map(|counts| counts[bin]).sum()).collect();
    let total = counts.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    let beside = |bin: usize| counts[(bin + 1) % bins] + counts[(bin + bins - 1) % bins];
    (0..bins).map(|bin| (0.5 * counts[bin] + 0.25 * beside(bin)) / total).collect()
}

/// For each pair the logarithm of how likely the flow is this user's and no other's: the likelihood of its offsets
/// against that of any offsets, over the sum of the same for all users.
fn posteriors(links: &[Option<Link>], flows: &[Vec<u64>], density: &[f64]) -> Scores {
    let weights = |link: &Link| {
        let uniform = link.bin / link.period;
        density.iter().map(|share| ((1.0 - STRAY) * share / uniform + STRAY).ln()).collect::<Vec<f64>>()
    };
    let links: Vec<_> = links.iter().map(|link| link.as_ref().map(|link| (link, weights(link)))).collect();
    let likelihoods = Scores::of_pairs(links.len(), flows.len(), |user, flow| {
        let of = |(link, weights): &(&Link, Vec<f64>)| link.offsets(&flows[flow]).map(|bin| weights[bin]).sum();
        links[user].as_ref().map_or(0.0, of)
    });
    let column = |flow: usize| log_sum((0..links.len()).map(|user| likelihoods.at(user, flow)));
    let sums: Vec<f64> = (0..flows.len()).map(column).collect();
    Scores::of_pairs(links.len(), flows.len(), |user, flow| likelihoods.at(user, flow) - sums[flow])
}

/// The logarithm of the sum of what these are logarithms of.
fn log_sum(logarithms: impl Iterator<Item = f64> + Clone) -> f64 {
    let most = logarithms.clone().fold(f64::MIN, f64::max);
    most + logarithms.map(|logarithm| (logarithm - most).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Seen, Truth,
        figures::top1,
        simulate::{Answers, Chain, Draw, Ideal, Profile, Simulation, exponential, generator},
    };
    use rand::RngExt as _;

    const USERS: usize = 60;

    /// A cell every 10 ms on each link, with a phase and a drift of its own up to `drift`. Datagrams wait for a slot,
    /// and are sent on 5 ms after it and 0.1 ms more on average: after the slots of their own link, or of the user's
    /// after it.
    fn paced(seconds: f64, drift: f64, own: bool) -> (Record, Truth) {
        let calls = Simulation { chain: Chain::OFF, ..Simulation::new(USERS, seconds, 1) };
        let (mut record, truth) = calls.run();
        let mut rng = generator(1, Draw::Link, 0);
        let clocks: Vec<(f64, f64)> = (0..USERS)
            .map(|_| (rng.random::<f64>() * 1e7, 1e7 * (1.0 + drift * (2.0 * rng.random::<f64>() - 1.0))))
            .collect();
        for (user, &(phase, period)) in clocks.iter().enumerate() {
            let slots = (0..).map(|slot| (phase + f64::from(slot) * period) as u64);
            let cells = slots.take_while(|at| *at < record.length).map(|at| Seen { at, bytes: record.cell_bytes });
            record.access[user].forward = cells.collect();
            let (phase, period) = clocks[(user + usize::from(!own)) % USERS];
            let flow = &mut record.flows[truth.0[user]].forward;
            for seen in flow.iter_mut() {
                let slot = phase + ((seen.at as f64 - phase) / period).ceil() * period;
                seen.at = (slot + 5e6 + exponential(&mut rng, 1e5)) as u64;
            }
            flow.sort_by_key(|seen| seen.at);
        }
        (record.first(record.length), truth)
    }

    #[test]
    fn flows_released_at_the_slots_of_their_links_are_found() {
        for drift in [0.0, 50e-6] {
            let (record, truth) = paced(10.0, drift, true);
            let found = [2, 10].map(|seconds| top1(&Phases.scores(&record.first(seconds * 1_000_000_000)), &truth));
            assert!(found[0] > 0.5 && found[1] > 0.95, "{found:?} at a drift of {drift}");
        }
    }

    #[test]
    fn flows_released_at_other_slots_are_not_found() {
        for drift in [0.0, 50e-6] {
            let (record, truth) = paced(10.0, drift, false);
            let scores = Phases.scores(&record);
            let found = top1(&scores, &truth);
            assert!(found <= 0.05, "{found} at a drift of {drift}");
            assert_eq!(scores, Phases.scores(&record), "one record, one result");
        }
    }

    #[test]
    fn ideal_rounds_are_not_found() {
        let chain = Chain::Ideal(Ideal::default());
        let found = |seed: u64| {
            let (record, truth) = Simulation { chain: chain.clone(), ..Simulation::new(USERS, 20.0, seed) }.run();
            top1(&Phases.scores(&record), &truth)
        };
        let mean = (1..=5).map(found).sum::<f64>() / 5.0;
        assert!(mean <= 0.04, "{mean}");
    }

    #[test]
    fn calls_without_pauses_are_found_by_their_own_phase() {
        let calls =
            Simulation { profile: Profile::Constant, answers: Answers::Independent, ..Simulation::new(USERS, 10.0, 1) };
        let (record, truth) = Simulation { chain: Chain::OFF, ..calls }.run();
        let found = top1(&Phases.scores(&record), &truth);
        assert!(found > 0.95, "{found}");
    }

    #[test]
    fn links_without_a_clock_are_scored_as_equal() {
        let profile = Profile::Poisson { per_second: 50.0 };
        let (record, _) = Simulation { profile, chain: Chain::OFF, ..Simulation::new(USERS, 10.0, 1) }.run();
        assert_eq!(Phases.scores(&record), Scores::of_pairs(USERS, USERS, |_, _| 0.0));
    }
}
