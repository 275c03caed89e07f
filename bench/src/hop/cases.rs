//! The rows of a measurement: by channels, pools and entries.

use std::fmt;

use clap::ValueEnum;
use wire::cell::Direction::{self, Backward, Forward};

use crate::format::direction_name;

/// The rows of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RowSet {
    /// channels, pools and first-hop
    All,
    /// 1 to 100,000 channels, both directions
    Channels,
    /// Pools of 64 to 4096 cells, both directions
    Pools,
    /// Cells of 1 to 1000 separate entries, which GRO cannot combine
    FirstHop,
    /// 64 channels, pool of 256, both directions
    Quick,
    /// As quick, forward only
    One,
}

/// One row to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) direction: Direction,
    /// Entries that send cells one by one; 0 for a single entry that sends GSO bursts.
    pub(crate) entries: usize,
    pub(crate) channels: usize,
    /// Cells of a pool.
    pub(crate) pool: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { direction, entries, channels, pool } = *self;
        write!(f, "{}, {channels} channels, pool {pool}", direction_name(direction))?;
        if entries > 0 { write!(f, ", from {entries} entries") } else { Ok(()) }
    }
}

/// Rows that share a mix, ordered by their channels: channels are only added.
pub(crate) struct Group {
    /// Cells of the mix's pools.
    pub(crate) pool: usize,
    /// Entries that have a link to the mix.
    pub(crate) entries: usize,
    pub(crate) cases: Vec<Case>,
}

impl Group {
    fn of_one_entry(pool: usize, cases: Vec<Case>) -> Group {
        Group { pool, entries: 1, cases }
    }

    fn channels() -> Group {
        let cases = [1, 64, 4096, 100_000].into_iter().flat_map(|channels| both(channels, 256));
        Group::of_one_entry(256, cases.collect())
    }

    fn pool(pool: usize) -> Group {
        Group::of_one_entry(pool, both(64, pool).to_vec())
    }

    fn first_hop() -> Group {
        let case = |entries| Case { direction: Forward, entries, channels: 4 * entries, pool: 256 };
        Group { pool: 256, entries: 1000, cases: [1, 100, 1000].map(case).to_vec() }
    }
}

fn case(direction: Direction, channels: usize, pool: usize) -> Case {
    Case { direction, entries: 0, channels, pool }
}

fn both(channels: usize, pool: usize) -> [Case; 2] {
    [Forward, Backward].map(|direction| case(direction, channels, pool))
}

impl RowSet {
    /// The rows, mix by mix.
    pub(crate) fn groups(self) -> Vec<Group> {
        match self {
            RowSet::All => {
                // The pool of 256 is among the channels.
                let pools = [64, 1024, 4096].map(Group::pool);
                [Group::channels()].into_iter().chain(pools).chain([Group::first_hop()]).collect()
            }
            RowSet::Channels => vec![Group::channels()],
            RowSet::Pools => [64, 256, 1024, 4096].map(Group::pool).into(),
            RowSet::FirstHop => vec![Group::first_hop()],
            RowSet::Quick => vec![Group::pool(256)],
            RowSet::One => vec![Group::of_one_entry(256, vec![case(Forward, 64, 256)])],
        }
    }
}
