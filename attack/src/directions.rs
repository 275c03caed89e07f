//! Both directions of a record in one form: what goes in, and what comes out later.
//!
//! Forward, cells on the access links go in and datagrams of the flows come out. Backward, answers go in and cells come
//! out. An attacker compares inputs with outputs and does not care which is which.

use crate::{attacker::Scores, delay::Delay, record::Record};

/// The directions that an attacker compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Forward,
    Backward,
    /// The sum of the scores of both.
    Both,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::Forward, Self::Backward, Self::Both];

    /// For the names of attackers.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Forward => "-forward",
            Self::Backward => "-backward",
            Self::Both => "",
        }
    }

    /// The scores of these directions, each computed by `one`, which takes true for forward.
    pub(crate) fn sum(self, one: impl Fn(bool) -> Scores) -> Scores {
        match self {
            Self::Forward => one(true),
            Self::Backward => one(false),
            Self::Both => one(true).plus(&one(false)),
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
        let delay = Delay::measured(record);
        let (cells, datagrams) = (record.access_cells(forward), record.datagrams(forward));
        if forward {
            Self { length, delay, inputs: cells, outputs: datagrams }
        } else {
            Self { length, delay: delay.moved_to(&datagrams, &cells), inputs: datagrams, outputs: cells }
        }
    }
}

/// Scores of users and flows from `score`, which gives a matrix of inputs (rows) and outputs (columns) for a direction.
pub(crate) fn scores(record: &Record, way: Way, score: impl Fn(&Direction) -> Scores) -> Scores {
    way.sum(|forward| {
        let matrix = score(&Direction::of(record, forward));
        if forward { matrix } else { matrix.transposed() }
    })
}
