//! Both directions of a record in one form: what goes in, and what comes out later.
//!
//! Forward, cells on the access links go in and datagrams of the flows come out. Backward, answers go in and cells come
//! out. An attacker compares inputs with outputs and does not care which is which.

use crate::{attacker::Scores, delay::Delay, record::Record};

/// The directions that an attacker compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Forward,
    Backward,
    /// The sum of the scores of both.
    Both,
}

impl Way {
    pub const ALL: [Self; 3] = [Self::Forward, Self::Backward, Self::Both];

    /// For the names of attackers.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Forward => "-forward",
            Self::Backward => "-backward",
            Self::Both => "",
        }
    }
}

/// One direction: times of packets, in nanoseconds, for each user and each flow.
pub(crate) struct Direction {
    pub length: u64,
    /// From an input to its output.
    pub delay: Delay,
    /// Forward one list per user, backward one per flow.
    pub inputs: Vec<Vec<u64>>,
    /// Forward one list per flow, backward one per user.
    pub outputs: Vec<Vec<u64>>,
}

impl Direction {
    pub(crate) fn of(record: &Record, forward: bool) -> Self {
        let length = record.length;
        let measured = Delay::measured(record);
        if forward {
            let inputs = record.access.iter().map(|place| record.cells(&place.forward).collect()).collect();
            let outputs = record.flows.iter().map(|place| times(&place.forward)).collect();
            Self { length, delay: measured, inputs, outputs }
        } else {
            let inputs: Vec<Vec<u64>> = record.flows.iter().map(|place| times(&place.backward)).collect();
            let outputs: Vec<Vec<u64>> =
                record.access.iter().map(|place| record.cells(&place.backward).collect()).collect();
            Self { length, delay: measured.moved_to(&inputs, &outputs), inputs, outputs }
        }
    }
}

fn times(trace: &[crate::record::Seen]) -> Vec<u64> {
    trace.iter().map(|seen| seen.at).collect()
}

/// Scores of users and flows from `score`, which gives a matrix of inputs (rows) and outputs (columns) for a direction.
pub(crate) fn scores(record: &Record, way: Way, score: impl Fn(&Direction) -> Scores) -> Scores {
    let one = |forward: bool| {
        let matrix = score(&Direction::of(record, forward));
        if forward { matrix } else { matrix.transposed() }
    };
    match way {
        Way::Forward => one(true),
        Way::Backward => one(false),
        Way::Both => one(true).plus(&one(false)),
    }
}
