//! Ideal rounds: access links that send in every round no matter what the flow does, and flows that leave at round
//! times. Access links and flows are then independent. One leak can be planted.

use rand::RngExt as _;

use super::{Application, CELL_BYTES, Draw, MS, Simulation, US, exponential, generator};
use crate::{
    paced::{Contents, PacedShape},
    record::{Passage, Place, Record, Seen, Trace},
};

/// Nanoseconds between rounds.
const ROUND: u64 = 10 * MS;
/// Hops whose inner links are recorded.
const HOPS: usize = 3;
/// Rounds of a batch, and the number of the first round of a record with a timetable: behind the phase of setups, and
/// 60 s before that of acks.
const BATCH: u64 = 8192;
const FIRST: u64 = 1016;
/// What an entry lets a datagram wait for a round.
const QUEUE_AGE: u64 = 60 * MS;

/// How rounds work, and what leaks.
#[derive(Clone, Debug, PartialEq)]
pub struct Ideal {
    /// How often each forward cell is sent, one round apart.
    pub copies: u32,
    /// Each forward cell repeats the datagram of the round before, and flows leave a round later.
    pub repeat: bool,
    pub leak: Option<Leak>,
    /// Fill [`Record::unopened`]. Only lossy links make a difference there.
    pub corrupt_exit: bool,
    /// Access links have slots for control cells in every eighth round, backward cells have copies too, and the record
    /// says which cells these are: [`Record::paced`] and [`Record::contents`].
    pub timetable: bool,
}

/// A fault planted in ideal rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Leak {
    /// Cells with data are this much later on the access link than dummies, in microseconds.
    LateData { us: f64 },
    /// This share of the dummies is not sent.
    LeftOut { share: f64 },
    /// A datagram that the access link loses in all copies and repeats is missing from the flow.
    Losses,
    /// The access link starts with the flow.
    Starts,
}

impl Default for Ideal {
    fn default() -> Self {
        Self { copies: 1, repeat: false, leak: None, corrupt_exit: false, timetable: false }
    }
}

impl Ideal {
    pub fn with(leak: Leak) -> Self {
        Self { leak: Some(leak), ..Self::default() }
    }

    /// From the start of a round to the times at which hop `hop` releases it; `HOPS` is the exit.
    fn offset(&self, hop: usize) -> u64 {
        u64::from(self.copies - 1) * ROUND + 8 * MS + 2 * MS * hop as u64
    }

    /// The cells in the slot of a round, the newest first: their rounds, and whether they are control cells.
    fn cells(&self, slot: usize) -> Vec<(usize, bool)> {
        let rounds = (0..self.copies as usize).filter_map(|copy| slot.checked_sub(copy));
        let has_control = |round: usize| self.timetable && round.is_multiple_of(8);
        rounds
            .flat_map(|round| [(round, false)].into_iter().chain(has_control(round).then_some((round, true))))
            .collect()
    }

    /// From the start of a round to the time at which the exit sends its datagrams.
    fn departure(&self) -> u64 {
        self.offset(HOPS) + if self.repeat { ROUND } else { 0 }
    }
}

pub(super) fn run(simulation: &Simulation, ideal: &Ideal, applications: &[Application]) -> Record {
    let length = simulation.length();
    let rounds = length / ROUND;
    let users = simulation.users;
    let paced = ideal.timetable.then(|| PacedShape {
        period: ROUND,
        copies: ideal.copies,
        rounds: BATCH,
        first: FIRST,
        ..PacedShape::default()
    });
    let mut record = Record { length, cell_bytes: CELL_BYTES, paced, ..Record::default() };
    for (user, application) in applications.iter().enumerate() {
        let (access, contents, flow, unopened) = one_user(simulation, ideal, user, application);
        record.access.push(access);
        record.flows.push(flow);
        if ideal.timetable {
            record.contents.push(contents);
        }
        if ideal.corrupt_exit {
            record.unopened.push(unopened);
        }
    }
    let mut rng = generator(simulation.seed, Draw::Chain, 0);
    for hop in 0..HOPS {
        let mut round = |at: u64| {
            let at = at + exponential(&mut rng, 20.0 * US as f64) as u64;
            (0..=users).map(move |i| Seen { at: at + 10 * US * (i as u64 / 48), bytes: CELL_BYTES })
        };
        let forward = (0..rounds).flat_map(|r| round(r * ROUND + ideal.offset(hop))).collect();
        let backward = (0..rounds).flat_map(|r| round(r * ROUND + MS + 2 * MS * (HOPS - hop) as u64)).collect();
        record.inner.push(Place { forward, backward });
    }
    for round in (0..rounds).step_by(5) {
        let entered = round * ROUND + exponential(&mut rng, 20.0 * US as f64) as u64;
        let left = round * ROUND + ideal.departure() + exponential(&mut rng, 50.0 * US as f64) as u64;
        record.probe.push(Passage { entered, left });
    }
    record.first(length)
}

fn one_user(
    simulation: &Simulation,
    ideal: &Ideal,
    user: usize,
    application: &Application,
) -> (Place, Contents, Place, Vec<u64>) {
    let mut rng = generator(simulation.seed, Draw::Link, user);
    let rounds = (simulation.length() / ROUND) as usize;
    let data = in_rounds(&application.forward, rounds);
    // Users' cells reach Mix 1 up to 2 ms apart.
    let phase = (rng.random::<f64>() * 2.0 * MS as f64) as u64;

    let first_round = match ideal.leak {
        Some(Leak::Starts) => (application.start / ROUND) as usize,
        _ => 0,
    };
    // One cell for each copy, the newest round first: (time, round, is control).
    let mut sent: Vec<(u64, usize, bool)> = Vec::new();
    for slot in first_round..rounds {
        let mut at = slot as u64 * ROUND + phase + exponential(&mut rng, 20.0 * US as f64) as u64;
        for (round, is_control) in ideal.cells(slot) {
            let is_data = data[round].is_some() && !is_control;
            let late = match ideal.leak {
                Some(Leak::LateData { us }) if is_data => (us * US as f64) as u64,
                _ => 0,
            };
            let left_out = match ideal.leak {
                Some(Leak::LeftOut { share }) => !is_data && rng.random::<f64>() < share,
                _ => false,
            };
            if !left_out {
                sent.push((at + late, round, is_control));
            }
            at += 5 * US;
        }
    }
    sent.sort_by_key(|cell| cell.0);
    let lost = simulation.lost(user, sent.len());
    let mut received = vec![false; rounds];
    let mut forward: Vec<(Seen, u32)> = Vec::new();
    for (&(at, round, is_control), _) in sent.iter().zip(lost).filter(|(_, lost)| !lost) {
        let Some(at) = simulation.passes(user, at) else { continue };
        forward.push((Seen { at, bytes: CELL_BYTES }, content(round, is_control)));
        received[round] |= !is_control;
    }
    forward.sort_by_key(|(seen, _)| seen.at);
    let backward = (0..rounds).flat_map(|slot| {
        let release = slot as u64 * ROUND + 7 * MS + exponential(&mut rng, 30.0 * US as f64) as u64;
        let cells = if ideal.timetable { ideal.cells(slot) } else { vec![(slot, false)] };
        let cell = move |(round, is_control)| (Seen { at: release, bytes: CELL_BYTES }, content(round, is_control));
        cells.into_iter().map(cell)
    });
    let mut access = Place::default();
    let mut contents = Contents::default();
    (access.backward, contents.backward) = backward.unzip();
    (access.forward, contents.forward) = forward.into_iter().unzip();

    let visible = matches!(ideal.leak, Some(Leak::Losses));
    let mut flow = Place { forward: Trace::new(), backward: application.backward.clone() };
    let repeated = |round: usize| ideal.repeat && received.get(round + 1).is_some_and(|received| *received);
    for (round, bytes) in data.iter().enumerate().filter_map(|(round, bytes)| Some((round, (*bytes)?))) {
        if !visible || received[round] || repeated(round) {
            let at = round as u64 * ROUND + ideal.departure() + exponential(&mut rng, 50.0 * US as f64) as u64;
            flow.forward.push(Seen { at, bytes });
        }
    }
    let unopened = (first_round..rounds)
        .filter(|&round| visible && !received[round])
        .map(|round| round as u64 * ROUND + ideal.offset(HOPS))
        .collect();
    (access, contents, flow, unopened)
}

/// A number for the bytes of a cell and its copies.
fn content(round: usize, is_control: bool) -> u32 {
    2 * round as u32 + u32::from(is_control)
}

/// The datagram that each round carries, as its length: one a round, the oldest first, none that waited too long.
fn in_rounds(datagrams: &[Seen], rounds: usize) -> Vec<Option<u32>> {
    let mut waiting = datagrams.iter().peekable();
    (0..rounds as u64)
        .map(|round| {
            let now = round * ROUND;
            while waiting.next_if(|seen| seen.at + QUEUE_AGE < now).is_some() {}
            waiting.next_if(|seen| seen.at <= now).map(|seen| seen.bytes)
        })
        .collect()
}
