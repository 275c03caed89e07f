//! Batch tracing: follows every cell from release to release.
//!
//! A mix that releases everything it holds hides a cell among those of its release, and nothing else. The adversary
//! counts cells in and out, so it knows the release in which each cell leaves, on every link to the exit. A user's cell
//! and its datagram share the last release. Users that only send at the same rate meet there by chance.

use super::releases::Releases;
use crate::{Attacker, Record, Scores, Seen, record::merged};

/// Share of releases in which a user and its own flow disagree: loss, cells of control, borders between releases.
const ERROR: f64 = 0.03;

/// Datagrams of one flow in one release that are told apart; more count as this many.
const MOST: usize = 15;

/// The time over which a flow's habits are taken as constant, in nanoseconds.
const HABIT: u64 = 1_000_000_000;

/// Follows cells from the access links to the flows, and answers from the flows to the access links.
pub(crate) struct BatchTracing;

impl Attacker for BatchTracing {
    fn name(&self) -> String {
        "batch-tracing".into()
    }

    fn source(&self) -> &'static str {
        "A. Serjantov, R. Dingledine and P. Syverson, From a Trickle to a Flood: Active Attacks on Several Mix Types, \
         IH 2002 (pools that empty hide nothing else); G. Danezis, The Traffic Analysis of Continuous-Time Mixes, PET \
         2004 (likelihood ratios of whole streams)"
    }

    fn scores(&self, record: &Record) -> Scores {
        let forward = forward(record);
        let backward = backward(record);
        Scores::of_pairs(record.access.len(), record.flows.len(), |user, flow| {
            forward.ratio(user, flow) + backward.ratio(flow, user)
        })
    }
}

/// Cells to the exit: traced up to the last inner link. A datagram leaves the exit right after the release that brings
/// it.
fn forward(record: &Record) -> Meetings {
    let links: Vec<Releases> = record.inner.iter().map(|place| releases(record, &place.forward)).collect();
    Meetings::over(&record.access_cells(true), &links, &record.datagrams(true))
}

/// Answers from the exit, which does not hold them: the first pool is that of the last mix, and its releases are on
/// the last inner link but one. The first mix's releases are on the access links together.
fn backward(record: &Record) -> Meetings {
    let cells = record.access_cells(false);
    let mut links: Vec<Releases> =
        record.inner.iter().rev().skip(1).map(|place| releases(record, &place.backward)).collect();
    links.push(Releases::of(&merged(&cells).into_iter().map(|(at, _)| at).collect::<Vec<u64>>()));
    Meetings::over(&record.datagrams(false), &links, &cells)
}

fn releases(record: &Record, trace: &[Seen]) -> Releases {
    Releases::of(&record.cells(trace).collect::<Vec<u64>>())
}

/// The last link's release of each arrival, through the releases of every link. Arrivals too late for one are left out
/// at the end.
fn traced(arrivals: &[u64], links: &[Releases]) -> Vec<u32> {
    let mut links = links.iter();
    let Some(mut link) = links.next() else { return Vec::new() };
    let mut releases = link.assign(arrivals);
    for next in links {
        // The cells of a release arrive together, and the next pool holds them in the order of the link.
        let cells: Vec<u64> = link
            .starts
            .iter()
            .enumerate()
            .flat_map(|(r, &start)| {
                let before = r.checked_sub(1).map_or(0, |before| link.sent[before]);
                std::iter::repeat_n(start, link.sent[r] - before)
            })
            .collect();
        let onwards = next.assign(&cells);
        // A release whose cells are in two releases of the next link: its middle decides.
        let middle = |r: u32| {
            let r = r as usize;
            let before = r.checked_sub(1).map_or(0, |before| link.sent[before]);
            onwards.get(before.midpoint(link.sent[r] - 1)).copied()
        };
        releases = releases.into_iter().map_while(middle).collect();
        link = next;
    }
    releases
}

/// How often each source has cells in a release and each sink has datagrams in it.
struct Meetings {
    /// Of each source: the releases with its cells, and how many.
    sources: Vec<Vec<(u32, u8)>>,
    /// Of each sink: its datagrams in each release.
    sinks: Vec<Vec<u8>>,
    /// Of each sink: the logarithm of how much more likely than by habit each number of datagrams is for its own
    /// source, by period, number of cells and number of datagrams.
    weights: Vec<Vec<[[f32; MOST + 1]; MOST + 1]>>,
    /// Of each sink: the sum of the weights of all releases, if its source had no cell in any.
    silent: Vec<f64>,
    /// The period of each release.
    periods: Vec<u32>,
}

impl Meetings {
    /// From packets that enter the pool before the first of `links` to packets that follow the last of them.
    fn over(sources: &[Vec<u64>], links: &[Releases], sinks: &[Vec<u64>]) -> Self {
        let Some(last) = links.last() else {
            return Self::new((sources.len(), sinks.len()), &[], [].into_iter(), [].into_iter());
        };
        let (arrivals, owners): (Vec<u64>, Vec<usize>) = merged(sources).into_iter().unzip();
        let entered = traced(&arrivals, links).into_iter().map(|release| release as usize).zip(owners);
        let left = merged(sinks).into_iter().filter_map(|(at, sink)| Some((last.under_way(at)?, sink)));
        Self::new((sources.len(), sinks.len()), &last.starts, entered, left)
    }

    /// `sources` and `sinks` are pairs of a release and an index.
    fn new(
        counts: (usize, usize),
        starts: &[u64],
        sources: impl Iterator<Item = (usize, usize)>,
        sinks: impl Iterator<Item = (usize, usize)>,
    ) -> Self {
        let cells = table(counts.0, starts.len(), sources);
        let sinks = table(counts.1, starts.len(), sinks);
        let periods: Vec<u32> = starts.iter().map(|start| (start / HABIT) as u32).collect();
        let weights: Vec<Vec<_>> = sinks.iter().map(|counts| weights(counts, &periods)).collect();
        let silent = (sinks.iter().zip(&weights))
            .map(|(counts, weights)| {
                let weight = |(k, p): (&u8, &u32)| f64::from(weights[*p as usize][0][*k as usize]);
                counts.iter().zip(&periods).map(weight).sum()
            })
            .collect();
        let sources = cells.into_iter().map(|counts| (0..).zip(counts).filter(|&(_, n)| n > 0).collect()).collect();
        Self { sources, sinks, weights, silent, periods }
    }

    /// The logarithm of the likelihood ratio: the sink's datagrams are the source's cells, or its own habit.
    fn ratio(&self, source: usize, sink: usize) -> f64 {
        let (cells, datagrams, weights) = (&self.sources[source], &self.sinks[sink], &self.weights[sink]);
        let gain = |&(release, m): &(u32, u8)| {
            let weights = &weights[self.periods[release as usize] as usize];
            let k = datagrams[release as usize] as usize;
            f64::from(weights[m as usize][k] - weights[0][k])
        };
        self.silent[sink] + cells.iter().map(gain).sum::<f64>()
    }
}

/// Occurrences of each index in each release, up to [`MOST`].
fn table(rows: usize, releases: usize, pairs: impl Iterator<Item = (usize, usize)>) -> Vec<Vec<u8>> {
    let mut counts = vec![vec![0; releases]; rows];
    for (release, row) in pairs {
        let count = &mut counts[row][release];
        *count = (*count + 1).min(MOST as u8);
    }
    counts
}

/// Log-likelihood ratios for a sink with these datagrams per release: by period, cells and datagrams.
///
/// By habit, the number of datagrams follows its frequencies in the period and the two beside it. As the source's, it
/// is the number of cells, next to it now and then, and follows the habit where tracing failed.
fn weights(datagrams: &[u8], periods: &[u32]) -> Vec<[[f32; MOST + 1]; MOST + 1]> {
    let count = periods.last().map_or(0, |last| *last as usize + 1);
    let mut seen = vec![[0.0; MOST + 1]; count];
    for (&k, &period) in datagrams.iter().zip(periods) {
        seen[period as usize][k as usize] += 1.0;
    }
    (0..count)
        .map(|period| {
            let near = &seen[period.saturating_sub(1)..count.min(period + 2)];
            let sum = |k: usize| near.iter().map(|seen| seen[k]).sum::<f64>();
            let total: f64 = (0..=MOST).map(sum).sum();
            let habit = |k: usize| (sum(k) + 0.5 / (k + 1) as f64) / (total + 1.7);
            std::array::from_fn(|m| {
                std::array::from_fn(|k| {
                    let own = match m.abs_diff(k) {
                        0 => 1.0 - ERROR,
                        1 => ERROR / 2.0,
                        _ => 0.0,
                    };
                    (own / habit(k) + ERROR / 2.0).ln() as f32
                })
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        figures::top1,
        simulate::{Answers, Loss, Profile, Simulation},
    };

    fn constant(users: usize, seconds: f64, seed: u64) -> Simulation {
        let (profile, answers) = (Profile::Constant, Answers::Independent);
        Simulation { profile, answers, ..Simulation::new(users, seconds, seed) }
    }

    #[test]
    fn constant_calls_through_a_grid_are_found() {
        let (record, truth) = constant(100, 60.0, 1).run();
        let found = top1(&BatchTracing.scores(&record), &truth);
        assert!(found >= 0.9, "{found}");
    }

    #[test]
    fn losses_and_talk_spurts_do_not_end_the_trace() {
        let lossy = Simulation { loss: Loss::Independent(0.01), ..Simulation::new(60, 10.0, 2) };
        let (record, truth) = lossy.run();
        let found = top1(&BatchTracing.scores(&record), &truth);
        assert!(found >= 0.9, "{found}");
    }

    #[test]
    fn independent_flows_are_not_found() {
        let (record, _) = constant(60, 20.0, 3).run();
        let (other, truth) = constant(60, 20.0, 4).run();
        let mixed = Record { flows: other.flows, ..record };
        assert!(top1(&BatchTracing.scores(&mixed), &truth) < 0.1);
    }
}
