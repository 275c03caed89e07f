//! What a corrupt exit sees of meetings against what the access links show.
//!
//! An exit that joins two channels cannot read what passes. By design it is noise, whether it came from the entry or a
//! mix filled a place. The attacker looks for anything about a body, before and after the layers of the exit, that is
//! different in the rounds that an access link lost, or got late.

use std::collections::{HashMap, HashSet};

use rayon::prelude::*;

use crate::{
    attacker::{Attacker, Scores},
    links,
    math::dot,
    paced::{Body, ExitRound},
    record::Record,
};

/// Of a round on an access link: lost cells, missing copies, lateness.
const SIGNALS: usize = 3;
/// Of a body: chi-square, ones, changed bits, and whether it occurs twice.
const OF_BODY: usize = 4;
/// Of a place in one direction: whether a cell came, how long it waited, and three bodies.
const OF_PLACE: usize = 2 + 3 * OF_BODY;

/// Correlates what meetings show, round by round, with what access links show.
pub(crate) struct ExitRecords;

impl Attacker for ExitRecords {
    fn name(&self) -> String {
        "exit-records".into()
    }

    fn source(&self) -> &'static str {
        "D. Lazar, Y. Gilad and N. Zeldovich, Yodel: Strong Metadata Security for Voice Calls, SOSP 2019 (noise takes \
         the place of what is missing, so that the last hop cannot tell who lost it)"
    }

    fn applies(&self, record: &Record) -> bool {
        record.paced.is_some() && !record.meetings.is_empty()
    }

    fn scores(&self, record: &Record) -> Scores {
        let (users, flows) = (record.access.len(), record.flows.len());
        let (Some(shape), Some(first)) = (&record.paced, first_round(record)) else {
            return Scores::of_pairs(users, flows, |_, _| 0.0);
        };
        let rounds = (record.length / shape.period) as usize + 1;
        let signals: Vec<_> = (0..users).into_par_iter().map(|user| signals(record, user, first, rounds)).collect();
        let twice = twice(record);
        let features: Vec<_> = (0..flows)
            .into_par_iter()
            .map(|flow| {
                let meeting = record.meetings.get(flow);
                let of =
                    |forward| features(meeting.map_or(&[][..], |meeting| meeting.of(forward)), first, rounds, &twice);
                of(true).into_iter().chain(of(false)).collect::<Vec<Vec<f32>>>()
            })
            .collect();
        // Whatever the leak is, it is in one feature and one signal.
        Scores::of_pairs(users, flows, |user, flow| {
            let pairs = signals[user].iter().flat_map(|signal| features[flow].iter().map(move |one| (signal, one)));
            let correlation =
                |(signal, feature): (&Vec<f32>, &Vec<f32>)| (dot(signal, feature) / (rounds as f32).sqrt()).abs();
            f64::from(pairs.map(correlation).fold(0.0, f32::max))
        })
    }
}

/// The number of the first round that any meeting has.
fn first_round(record: &Record) -> Option<u64> {
    let firsts = record.meetings.iter().flat_map(|meeting| [meeting.forward.first(), meeting.backward.first()]);
    firsts.flatten().map(|one| one.round).min()
}

/// The fingerprints that more than one place has. A place whose bytes the exit drew has one in all three bodies.
fn twice(record: &Record) -> HashSet<u64> {
    let mut counts: HashMap<u64, u32> = HashMap::new();
    let places = record.meetings.iter().flat_map(|meeting| meeting.forward.iter().chain(&meeting.backward));
    for place in places {
        let mut own: Vec<u64> = bodies(place).into_iter().flatten().map(|body| body.fingerprint).collect();
        own.sort_unstable();
        own.dedup();
        own.into_iter().for_each(|fingerprint| *counts.entry(fingerprint).or_default() += 1);
    }
    counts.into_iter().filter(|(_, count)| *count > 1).map(|(fingerprint, _)| fingerprint).collect()
}

fn bodies(place: &ExitRound) -> [Option<Body>; 3] {
    [Some(place.before), place.between, Some(place.after)]
}

/// By round from `first` on, standardised.
fn signals(record: &Record, user: usize, first: u64, rounds: usize) -> [Vec<f32>; SIGNALS] {
    let mut rows = Rows::default();
    for round in links::rounds(record, user, true) {
        if let Some(index) = round.round.checked_sub(first) {
            rows.add(index as usize, [round.lost as f32, round.missing as f32, round.late as f32]);
        }
    }
    rows.standard(rounds)
}

/// By round from `first` on, standardised.
fn features(places: &[ExitRound], first: u64, rounds: usize, twice: &HashSet<u64>) -> [Vec<f32>; OF_PLACE] {
    let mut rows = Rows::default();
    for place in places {
        let of_body = |body: Option<Body>| {
            body.map_or([0.0; OF_BODY], |body| {
                let is_twice = f32::from(u8::from(twice.contains(&body.fingerprint)));
                [body.chi_square, body.ones.into(), body.changed.into(), is_twice]
            })
        };
        let mut row = [0.0; OF_PLACE];
        row[0] = f32::from(u8::from(place.waited.is_some()));
        row[1] = place.waited.unwrap_or(0) as f32;
        row[2..].copy_from_slice(bodies(place).map(of_body).as_flattened());
        rows.add((place.round - first) as usize, row);
    }
    rows.standard(rounds)
}

/// A row of values for some of the rounds.
struct Rows<const N: usize> {
    rows: Vec<(usize, [f32; N])>,
}

impl<const N: usize> Default for Rows<N> {
    fn default() -> Self {
        Self { rows: Vec::new() }
    }
}

impl<const N: usize> Rows<N> {
    fn add(&mut self, round: usize, row: [f32; N]) {
        self.rows.push((round, row));
    }

    /// Columns for `rounds` rounds, of mean zero and variance one over the rows; zero for rounds without a row, and for
    /// a column of equal values. A round with several rows has their sum.
    fn standard(&self, rounds: usize) -> [Vec<f32>; N] {
        let count = self.rows.len() as f64;
        std::array::from_fn(|column| {
            let values = || self.rows.iter().map(move |(_, row)| f64::from(row[column]));
            let mean = values().sum::<f64>() / count;
            let deviation = (values().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt();
            let mut standard = vec![0.0; rounds];
            if deviation > 1e-6 {
                for ((round, _), value) in self.rows.iter().zip(values()) {
                    if let Some(sum) = standard.get_mut(*round) {
                        *sum += ((value - mean) / deviation) as f32;
                    }
                }
            }
            standard
        })
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng as _, RngExt as _, SeedableRng as _, seq::SliceRandom as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::{
        figures::top1,
        independence::verdict,
        paced::{Bodies, Contents, Meeting, PacedShape},
        record::{Place, Seen, Truth},
    };

    const USERS: usize = 16;
    const ROUNDS: u64 = 1_200;
    const FIRST: u64 = 2048 * 9 + 200;

    /// What is wrong with a place whose cell the access link lost.
    type Plant = fn(&mut [u8; 224], &mut Option<u32>);

    /// Callers whose access links are down for four rounds now and then, and whose meetings are noise, but for what is
    /// planted in the rounds that they lost.
    fn record(seed: u64, plant: Plant) -> (Record, Truth) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let shape = PacedShape { first: FIRST, first_at: 4_000_000, ..PacedShape::default() };
        let mut flow_of: Vec<usize> = (0..USERS).collect();
        flow_of.shuffle(&mut rng);
        let mut record = Record {
            length: ROUNDS * shape.period,
            cell_bytes: 240,
            access: vec![Place::default(); USERS],
            flows: vec![Place::default(); USERS],
            contents: vec![Contents::default(); USERS],
            meetings: vec![Meeting::default(); USERS],
            ..Record::default()
        };
        for (user, &flow) in flow_of.iter().enumerate() {
            let outages: Vec<u64> = (0..20).map(|_| rng.random_range(20..ROUNDS - 20)).collect();
            let is_down = |slot: u64| outages.iter().any(|&outage| (outage..outage + 4).contains(&slot));
            for slot in 0..ROUNDS {
                let at = shape.begins(FIRST + slot) + rng.random_range(0..1_000_000);
                let cells = [Some(slot), slot.checked_sub(1)].into_iter().flatten();
                for number in cells.flat_map(|round| {
                    let control = (FIRST + round).is_multiple_of(8).then_some(2 * round + 1);
                    [2 * round].into_iter().chain(control)
                }) {
                    if !is_down(slot) {
                        record.access[user].forward.push(Seen { at, bytes: 240 });
                        record.contents[user].forward.push(number as u32);
                    }
                }
            }
            for forward in [true, false] {
                let mut bodies = [Bodies::default(), Bodies::default(), Bodies::default()];
                let rounds = (0..ROUNDS).map(|round| {
                    let mut body = [[0u8; 224]; 3];
                    body.iter_mut().for_each(|body| rng.fill_bytes(body));
                    let mut waited = Some(rng.random_range(0..2_000_000));
                    if forward && is_down(round) && is_down(round + 1) {
                        plant(&mut body[0], &mut waited);
                    }
                    let [before, between, after] = std::array::from_fn(|i| bodies[i].next(&body[i]));
                    ExitRound { round: FIRST + round, waited, before, between: Some(between), after }
                });
                let rounds = rounds.collect();
                let meeting = &mut record.meetings[flow];
                *(if forward { &mut meeting.forward } else { &mut meeting.backward }) = rounds;
            }
        }
        record.paced = Some(shape);
        (record, Truth(flow_of))
    }

    #[test]
    fn meetings_that_are_noise_are_at_chance() {
        let p = |seed| {
            let (record, truth) = record(seed, |_, _| ());
            assert!(ExitRecords.applies(&record));
            verdict(&[ExitRecords.scores(&record)], &truth, seed).p
        };
        let all: Vec<f64> = (1..=4).map(p).collect();
        assert!(all.iter().all(|&p| p > 0.005) && all.iter().any(|&p| p > 0.2), "{all:?}");
    }

    #[test]
    fn noise_that_differs_in_lost_rounds_is_found() {
        let plants: [(&str, Plant); 4] = [
            ("a place without a cell", |_, waited| *waited = None),
            ("a cell that waited longer", |_, waited| *waited = waited.map(|waited| waited + 1_500_000)),
            ("one byte in 16 is zero", |body, _| body.iter_mut().step_by(16).for_each(|byte| *byte = 0)),
            ("one body for all", |body, _| *body = std::array::from_fn(|i| (i * i * 7 + i / 3) as u8)),
        ];
        for (name, plant) in plants {
            let (record, truth) = record(7, plant);
            let found = top1(&ExitRecords.scores(&record), &truth);
            assert!(found >= 0.9, "{name}: {found}");
        }
    }

    #[test]
    fn record_without_meetings_does_not_apply() {
        let (record, _) = record(1, |_, _| ());
        assert!(!ExitRecords.applies(&Record { meetings: Vec::new(), ..record.clone() }));
        assert!(!ExitRecords.applies(&Record { paced: None, ..record }));
    }
}
