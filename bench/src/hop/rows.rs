//! What is measured, and how it is told.

use std::fmt;
use std::io::Write;

use eddy::tables::{align_right, table};
use serde::Serialize;
use wire::cell::{Class, Direction, Shape};

use super::Which;
use super::relay::Took;
use super::rig::Reading;
use crate::machine::Machine;

/// Sleeps among a mix's turns beyond which it was not busy.
const IDLE_MAX: f64 = 0.05;

/// One row to be measured.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Which way.
    pub direction: Direction,
    /// Entries that send cells one by one; 0: one that sends bursts.
    pub apart: usize,
    /// Channels.
    pub channels: usize,
    /// Cells of a pool.
    pub pool: usize,
}

/// Rows that share a mix: in the order of their channels, for those are never fewer than before.
pub struct Group {
    /// Cells of its pools.
    pub pool: usize,
    /// Its entries.
    pub entries: usize,
    /// The rows.
    pub cases: Vec<Case>,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { apart, channels, pool, .. } = *self;
        write!(f, "{}, {channels} channels, pool {pool}", name(self.direction))?;
        if apart > 0 { write!(f, ", from {apart} entries") } else { Ok(()) }
    }
}

const fn name(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => "forward",
        Direction::Backward => "backward",
    }
}

/// The rows, mix by mix.
pub fn groups(which: Which) -> Vec<Group> {
    use Direction::{Backward, Forward};
    let case = |direction, channels, pool| Case { direction, apart: 0, channels, pool };
    let both = |channels, pool| [case(Forward, channels, pool), case(Backward, channels, pool)];
    let one = |pool, cases| Group { pool, entries: 1, cases };
    let channels = || {
        let sweep = [1, 64, 4096, 100_000].into_iter().flat_map(|channels| both(channels, 256));
        one(256, sweep.collect())
    };
    // That of 256 is among the channels.
    let pools = |pools: &[usize]| pools.iter().map(|pool| one(*pool, both(64, *pool).to_vec())).collect::<Vec<_>>();
    let first_hop = || {
        let apart = |entries| Case { direction: Forward, apart: entries, channels: 4 * entries, pool: 256 };
        Group { pool: 256, entries: 1000, cases: [1, 100, 1000].map(apart).to_vec() }
    };
    match which {
        Which::All => {
            let mut groups = vec![channels()];
            groups.extend(pools(&[64, 1024, 4096]));
            groups.push(first_hop());
            groups
        }
        Which::Channels => vec![channels()],
        Which::Pools => pools(&[64, 256, 1024, 4096]),
        Which::FirstHop => vec![first_hop()],
        Which::Quick => pools(&[256]),
        Which::One => vec![one(256, vec![case(Forward, 64, 256)])],
    }
}

/// One round: the mix and the yardsticks.
pub struct Sample {
    /// The mix.
    pub mix: Reading,
    /// GRO in, scattered, shuffled, GSO out.
    pub offload: Took,
    /// recvmmsg, sendmmsg.
    pub mmsg: Took,
    /// recvfrom, sendto.
    pub single: Took,
}

/// A row as measured. Times are processor time on one core, medians of the rounds.
#[derive(Debug, Serialize)]
pub struct Row {
    direction: &'static str,
    channels: usize,
    pool: usize,
    /// Separate entry addresses whose cells come one by one; 0: one neighbour that sends bursts.
    entries: usize,
    /// Of the mix's worker, for each cell that left.
    cell_ns: f64,
    /// What one core carries at that: 1e9 / cell_ns.
    cells_per_s: f64,
    /// The same in bits of UDP payload as they leave.
    gbit_s: f64,
    null_gro_gso_ns: f64,
    null_mmsg_ns: f64,
    null_single_ns: f64,
    ratio_gro_gso: f64,
    ratio_mmsg: f64,
    /// The mix slept in more than one of twenty turns: it could have done more, and its figure says little.
    blaster_bound: bool,
    /// Least and greatest cell_ns of the rounds.
    cell_ns_range: [f64; 2],
    /// Cells that left per second of wall-clock time, with whatever else the machine did.
    wall_cells_per_s: f64,
    /// Cells of a release.
    batch: f64,
    turns: u64,
    sleeps: u64,
    /// Of the relay with GRO and GSO.
    null_sleeps: f64,
    played: u64,
    left: u64,
    /// Cells that the kernel lost before the mix, and behind it.
    lost: [u64; 2],
    /// Cells that the mix dropped, all reasons.
    dropped: u64,
    /// Cells opened at the far end, and those of them that were not authentic.
    checked: [u64; 2],
    /// The mix's ledger closed, and every cell is in one of these counts.
    closed: bool,
}

/// Time for each of some packets, in ns.
fn each(time: std::time::Duration, count: u64) -> f64 {
    time.as_nanos() as f64 / count.max(1) as f64
}

impl Took {
    /// A relay's time for a packet, in ns.
    pub fn packet_ns(&self) -> f64 {
        each(self.time, self.packets as u64)
    }
}

impl Reading {
    /// The mix's time for a cell, in ns.
    pub fn cell_ns(&self) -> f64 {
        each(self.time, self.sent)
    }
}

impl Row {
    /// Of its rounds.
    pub fn of(case: &Case, class: Class, samples: &[Sample]) -> Row {
        let shape = Shape::new(class, 2).expect("one mix and an exit");
        let link = if case.direction == Direction::Forward { 2 } else { 1 };
        let len = shape.cell_len(case.direction, link);
        let cells: Vec<f64> = samples.iter().map(|sample| sample.mix.cell_ns()).collect();
        let of = |took: fn(&Sample) -> &Took| median(samples.iter().map(|sample| took(sample).packet_ns()));
        let (offload, mmsg, single) = (of(|s| &s.offload), of(|s| &s.mmsg), of(|s| &s.single));
        let cell = median(cells.iter().copied());
        let sum = |count: fn(&Reading) -> u64| samples.iter().map(|sample| count(&sample.mix)).sum::<u64>();
        let (turns, sleeps) = (sum(|m| m.turns.0), sum(|m| m.turns.1));
        let (sent, left) = (sum(|m| m.sent), sum(|m| m.left));
        let wall = median(
            samples.iter().map(|s| s.mix.played.arrived as f64 / s.mix.played.took.as_secs_f64().max(f64::EPSILON)),
        );
        Row {
            direction: name(case.direction),
            channels: case.channels,
            pool: case.pool,
            entries: case.apart,
            cell_ns: round(cell, 1),
            cells_per_s: round(1e9 / cell, 0),
            gbit_s: round(8.0 * len as f64 / cell, 3),
            null_gro_gso_ns: round(offload, 1),
            null_mmsg_ns: round(mmsg, 1),
            null_single_ns: round(single, 1),
            ratio_gro_gso: round(cell / offload, 3),
            ratio_mmsg: round(cell / mmsg, 3),
            blaster_bound: sleeps as f64 >= IDLE_MAX * turns as f64,
            cell_ns_range: [
                round(cells.iter().copied().fold(f64::INFINITY, f64::min), 1),
                round(cells.iter().copied().fold(0.0, f64::max), 1),
            ],
            wall_cells_per_s: round(wall, 0),
            batch: round(sent as f64 / sum(|m| m.batches).max(1) as f64, 1),
            turns,
            sleeps,
            null_sleeps: round(
                median(samples.iter().map(|s| s.offload.turns.1 as f64 / s.offload.turns.0.max(1) as f64)),
                3,
            ),
            played: sum(|m| m.played.sent as u64),
            left,
            lost: [sum(|m| m.lost.0), sum(|m| m.lost.1)],
            dropped: sum(|m| m.dropped.iter().map(|(_, count)| count).sum()),
            checked: [sum(|m| m.checked.0), sum(|m| m.checked.1)],
            closed: samples.iter().all(|sample| sample.mix.closed),
        }
    }
}

/// The middle one of some values.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// To so many decimal places.
pub fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

/// All of it.
#[derive(Debug, Serialize)]
pub struct Rows {
    /// The rows.
    pub rows: Vec<Row>,
    /// Size of cells.
    pub class: &'static str,
    /// The mix's AEAD engine.
    pub engine: String,
    /// As asked for.
    pub offload: String,
    /// Whether the sink took no bursts.
    pub lone_sink: bool,
    /// Whether the mix's cells left in bursts, at the end.
    pub gso: bool,
    /// As asked for.
    pub io: Option<String>,
    /// Where it was measured.
    pub machine: Machine,
    /// Cores of the mix and of the load.
    pub cores: [usize; 2],
    /// Bytes that a receive buffer holds.
    pub receive_buffer: usize,
}

impl Rows {
    /// Prints it: one JSON object on one line, or a table.
    ///
    /// # Errors
    /// Standard output is gone.
    pub fn print(&self, json: bool) -> anyhow::Result<()> {
        let text = if json { serde_json::to_string(self)? } else { self.people() };
        writeln!(std::io::stdout(), "{text}")?;
        Ok(())
    }

    fn people(&self) -> String {
        let mut all = table(&[
            "direction",
            "entries",
            "channels",
            "pool",
            "ns a cell",
            "least",
            "most",
            "gro/gso",
            "mmsg",
            "single",
            "of gro/gso",
            "of mmsg",
            "Gbit/s",
            "batch",
            "slept",
            "lost",
            "",
        ]);
        for row in &self.rows {
            let lost = row.lost[0] + row.lost[1] + row.dropped;
            all.add_row([
                row.direction.to_owned(),
                if row.entries == 0 { "-".to_owned() } else { row.entries.to_string() },
                row.channels.to_string(),
                row.pool.to_string(),
                format!("{:.0}", row.cell_ns),
                format!("{:.0}", row.cell_ns_range[0]),
                format!("{:.0}", row.cell_ns_range[1]),
                format!("{:.0}", row.null_gro_gso_ns),
                format!("{:.0}", row.null_mmsg_ns),
                format!("{:.0}", row.null_single_ns),
                format!("{:.2}", row.ratio_gro_gso),
                format!("{:.3}", row.ratio_mmsg),
                format!("{:.1}", row.gbit_s),
                format!("{:.0}", row.batch),
                format!("{:.1} %", 100.0 * row.sleeps as f64 / row.turns.max(1) as f64),
                lost.to_string(),
                if row.blaster_bound { "blaster bound" } else { "" }.to_owned(),
            ]);
        }
        align_right(&mut all, 1..16);
        let Machine { cpu, kernel, load, .. } = &self.machine;
        let cores = self.cores;
        format!(
            "{all}\nProcessor time on one core. Class {}, engine {}. {cpu}, Linux {kernel}; mix on core {}, load on \
             core {}; load average {load}.",
            self.class, self.engine, cores[0], cores[1]
        )
    }
}
