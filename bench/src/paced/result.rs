//! The figures of a measurement, and how they are printed.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use dataplane::ledger::{DropReason, Ledger, Tally};
use eddy::tables::{align_right, table};
use serde::Serialize;
use wire::cell::Direction;

use super::generator::{Release, Seen};
use super::{HOPS, Plan};
use crate::args::OutputArgs;
use crate::format::{count, rounded, wrapped};
use crate::machine::Machine;
use crate::stats::round;

/// Reasons for which a cell is dropped before it has a place.
const AT_THE_GATE: [DropReason; 12] = [
    DropReason::Length,
    DropReason::Cut,
    DropReason::Stranger,
    DropReason::Header,
    DropReason::Kind,
    DropReason::Channel,
    DropReason::Sub,
    DropReason::Late,
    DropReason::Early,
    DropReason::Copy,
    DropReason::Replay,
    DropReason::Tag,
];
/// More rounds than this share sent late: the generator is the limit.
const LATE_MAX: f64 = 0.01;
/// A mix that is busy for more than this share of the time is full.
const BUSY: f64 = 0.9;

/// What was measured once for all rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fixed {
    /// A setup at a mix's control.
    pub(super) setup: Duration,
    /// Bytes of a mix with one channel.
    pub(super) memory: u64,
}

/// Errors of departures against the timetable, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct GridError {
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
    deviation_us: f64,
}

impl GridError {
    fn of(mut late_ns: Vec<f64>) -> GridError {
        late_ns.sort_by(f64::total_cmp);
        let Some(last) = late_ns.len().checked_sub(1) else { return GridError::default() };
        let at = |share: f64| round(late_ns[(share * last as f64).round() as usize] / 1e3, 1);
        let mean = late_ns.iter().sum::<f64>() / late_ns.len() as f64;
        let variance = late_ns.iter().map(|ns| (ns - mean).powi(2)).sum::<f64>() / late_ns.len() as f64;
        GridError { p50_us: at(0.5), p99_us: at(0.99), max_us: at(1.0), deviation_us: round(variance.sqrt() / 1e3, 1) }
    }
}

/// Figures of one number of channels. Both directions count together.
#[derive(Debug, Serialize)]
pub(super) struct PacedRow {
    channels: u32,
    rounds: u64,
    /// Processor time of the mix for each data cell that it carries, with the control cells and copies that go with it.
    cell_ns: f64,
    /// The same for a channel in a second, in microseconds.
    channel_us: f64,
    /// With its setup once in each batch.
    channel_with_setup_us: f64,
    /// Part of a core that the mix was busy for, and of that time the part in the kernel.
    core_share: f64,
    kernel_share: f64,
    /// Channels that fill a core at this cost: computed.
    channels_per_core: f64,
    channels_per_core_with_setups: f64,
    /// Data cells that the mix carried in a second.
    cells_per_s: f64,
    /// Releases that were due, those with exactly the cells of their slots, and those of which no cell came: the mix
    /// woke too late and skipped them.
    releases: u64,
    exact: u64,
    missing: u64,
    /// Of the first and the last cell of a release, against the time at which it is due.
    first: GridError,
    last: GridError,
    /// Cells that were sent to the mix, and those of them that the kernel lost.
    sent: u64,
    lost: u64,
    /// Places of the rounds for which cells were sent, and the part that noise has filled.
    places: u64,
    filled: u64,
    filled_share: f64,
    /// What the mix dropped, by reason.
    dropped: BTreeMap<&'static str, u64>,
    /// Cells that were compared with what was sent, of them noise, and those with a wrong tag.
    checked: u64,
    noise: u64,
    wrong: u64,
    /// Every cell is accounted for at the mix.
    closed: bool,
    /// Bytes for a channel: of a mix with these channels, less one with a single channel.
    memory: f64,
    buffers: u64,
    /// Part of a core that the generator was busy for, and rounds that it sent too late.
    generator_share: f64,
    generator_late: u64,
    /// `generator`, `mix` or `neither`.
    limited_by: &'static str,
    turns: u64,
    sleeps: u64,
}

impl PacedRow {
    pub(super) fn of(plan: &Plan, seen: &Seen, ledger: &Ledger, memory: u64, fixed: Fixed) -> PacedRow {
        let [(start, before, generator_before), (end, after, generator_after)] = seen.spent[..] else {
            unreachable!("the generator has run to the end");
        };
        let (wall_s, busy) = ((end - start) as f64 / 1e9, (after.time - before.time).as_nanos() as f64);
        let channels = f64::from(plan.channels);
        let period_s = f64::from(plan.terms.period_ms) / 1e3;
        let cells_per_s = 2.0 * channels * f64::from(plan.terms.cells) / period_s;
        let channel_us = busy / 1e3 / wall_s / channels;
        let batch_s = f64::from(plan.terms.rounds) * period_s;
        let with_setup_us = channel_us + fixed.setup.as_nanos() as f64 / 1e3 / batch_s;
        let core_share = busy / 1e9 / wall_s;
        let [user, system] =
            [after.user_ticks - before.user_ticks, after.system_ticks - before.system_ticks].map(|ticks| ticks as f64);
        let generator_share = (generator_after - generator_before).as_secs_f64() / wall_s;

        let releases: Vec<(Direction, u64, Release)> =
            [(Direction::Forward, &seen.releases.forward), (Direction::Backward, &seen.releases.backward)]
                .into_iter()
                .flat_map(|(direction, all)| {
                    (plan.first_round()..).zip(all).map(move |(at, one)| (direction, at, *one))
                })
                .filter(|(_, at, _)| *at >= plan.measured_from())
                .collect();
        let times = plan.times();
        let is_exact = |(direction, at, one): &&(Direction, u64, Release)| {
            let of_round = |round| seen.releases[*direction].get((round - plan.first_round()) as usize);
            let is_skipped = |round| of_round(round).is_some_and(Release::is_empty);
            (one.data, one.control) == plan.expected(*direction, *at, is_skipped)
        };
        let exact = releases.iter().filter(is_exact).count() as u64;
        let missing = releases.iter().filter(|(_, _, one)| one.is_empty()).count() as u64;
        let late = |time: fn(&Release) -> u64| {
            let came = releases.iter().filter(|(_, _, one)| !one.is_empty());
            let late = came.map(|(direction, at, one)| {
                let due = times.schedule(*direction, plan.position).due_at(*at);
                time(one) as f64 - due as f64
            });
            GridError::of(late.collect())
        };
        let (first, last) = (late(|one| one.first), late(|one| one.last));

        let tallies = [&ledger.cells.forward, &ledger.cells.backward];
        let sum = |of: &dyn Fn(&Tally) -> u64| tallies.iter().map(|tally| of(tally)).sum::<u64>();
        let (sent, received) = (seen.sent.forward + seen.sent.backward, sum(&|tally| tally.received));
        let gate = |tally: &Tally| AT_THE_GATE.iter().map(|reason| tally.drops(*reason)).sum::<u64>();
        let punted = |tally: &Tally| tally.consumed + tally.drops(DropReason::PuntFull);
        let accepted = sum(&|tally| (tally.received - punted(tally)).saturating_sub(gate(tally)));
        let places = 2 * u64::from(plan.channels) * u64::from(plan.terms.cells) * (plan.end() - plan.first_round());
        let filled = places.saturating_sub(accepted);
        let drops = DropReason::ALL.iter().map(|reason| (reason.name(), sum(&|tally| tally.drops(*reason))));

        let rounds_sent = 2 * plan.rounds;
        let limited_by = if seen.late as f64 > LATE_MAX * rounds_sent as f64 {
            "generator"
        } else if core_share > BUSY || exact < releases.len() as u64 || received < sent {
            "mix"
        } else {
            "neither"
        };
        PacedRow {
            channels: plan.channels,
            rounds: plan.rounds,
            cell_ns: round(busy / wall_s / cells_per_s, 1),
            channel_us: round(channel_us, 2),
            channel_with_setup_us: round(with_setup_us, 2),
            core_share: round(core_share, 3),
            kernel_share: round(system / (user + system).max(1.0), 3),
            channels_per_core: round(1e6 / channel_us, 0),
            channels_per_core_with_setups: round(1e6 / with_setup_us, 0),
            cells_per_s,
            releases: releases.len() as u64,
            exact,
            missing,
            first,
            last,
            sent,
            lost: sent.saturating_sub(received),
            places,
            filled,
            filled_share: round(filled as f64 / places as f64, 6),
            dropped: drops.filter(|(_, count)| *count > 0).collect(),
            checked: seen.checked,
            noise: seen.noise,
            wrong: seen.wrong,
            closed: ledger.closed() && seen.others == 0,
            memory: round(memory.saturating_sub(fixed.memory) as f64 / (channels - 1.0).max(1.0), 0),
            buffers: ledger.buffers.total,
            generator_share: round(generator_share, 3),
            generator_late: seen.late,
            limited_by,
            turns: after.turns.0 - before.turns.0,
            sleeps: after.turns.1 - before.turns.1,
        }
    }
}

/// All rows, and the mix and machine that they were measured with.
#[derive(Debug, Serialize)]
pub(super) struct PacedResult {
    pub(super) rows: Vec<PacedRow>,
    pub(super) class: String,
    pub(super) position: u8,
    pub(super) spread_ms: f64,
    /// Processor time of control for a setup.
    pub(super) setup_us: f64,
    pub(super) engine: String,
    pub(super) gso: bool,
    pub(super) receive_buffer: usize,
    pub(super) machine: Machine,
}

impl PacedResult {
    /// Prints one JSON object on one line, or tables.
    ///
    /// # Errors
    /// Standard output is closed.
    pub(super) fn print(&self, output: OutputArgs) -> anyhow::Result<()> {
        let text = if output.json { serde_json::to_string(self)? } else { self.text(output.verbose) };
        writeln!(std::io::stdout(), "{text}")?;
        Ok(())
    }

    fn text(&self, verbose: bool) -> String {
        let mut text = self.costs() + "\n\n" + &self.releases();
        if verbose {
            text += &format!("\n\n{}", self.counts());
        }
        for row in &self.rows {
            let channels = count(row.channels.into());
            let limit = match row.limited_by {
                "generator" => "The generator was the limit, not the mix: it sent too late, and the mix filled places.",
                "mix" => "The mix was the limit.",
                _ => "Neither the mix nor the generator was full.",
            };
            text += &format!("\n{}", wrapped(&format!("{channels} channels: {limit}")));
        }
        let PacedResult { class, position, spread_ms, setup_us, engine, gso, machine, .. } = self;
        let bursts = if *gso { "GSO and GRO" } else { "no GSO" };
        text + &format!(
            "\nus/s: processor time of the mix for a channel and second, + setup: with one setup in a batch\n\
             per core: channels that fill a core, computed from us/s and from + setup\n\
             first, last: cells of a release, us behind the timetable\n\
             Mix: class {class}, T = 10 ms, c = 1, position {position} of {HOPS}, cells arrive within {spread_ms} ms\n  \
             engine {engine}, {bursts}, a setup costs control {setup_us:.0} us\n\
             Machine: {machine}"
        )
    }

    fn table(&self, heads: &[&str], cells: impl Fn(&PacedRow) -> Vec<String>) -> String {
        let mut all = table(&[&["channels"], heads].concat());
        for row in &self.rows {
            all.add_row([vec![count(row.channels.into())], cells(row)].concat());
        }
        align_right(&mut all, 0..heads.len() + 1);
        all.to_string()
    }

    fn costs(&self) -> String {
        self.table(&["ns/cell", "us/s", "+ setup", "core", "kernel", "per core", "+ setup", "kB"], |row| {
            vec![
                format!("{:.0}", row.cell_ns),
                format!("{:.1}", row.channel_us),
                format!("{:.1}", row.channel_with_setup_us),
                percent(row.core_share),
                percent(row.kernel_share),
                rounded(row.channels_per_core),
                rounded(row.channels_per_core_with_setups),
                format!("{:.1}", row.memory / 1e3),
            ]
        })
    }

    fn releases(&self) -> String {
        self.table(&["releases", "exact", "first p50", "p99", "last p50", "p99", "filled"], |row| {
            let mut cells = vec![row.releases.to_string(), row.exact.to_string()];
            let errors = [row.first.p50_us, row.first.p99_us, row.last.p50_us, row.last.p99_us];
            cells.extend(errors.map(|us| format!("{us:.0}")));
            cells.push(format!("{:.3} %", 100.0 * row.filled_share));
            cells
        })
    }

    fn counts(&self) -> String {
        self.table(&["sent", "lost", "checked", "noise", "wrong", "generator", "late", "dropped"], |row| {
            let dropped = row.dropped.iter().map(|(reason, count)| format!("{reason} {count}")).collect::<Vec<_>>();
            let mut cells: Vec<String> =
                [row.sent, row.lost, row.checked, row.noise, row.wrong].map(|count| count.to_string()).into();
            cells.extend([percent(row.generator_share), row.generator_late.to_string(), dropped.join(", ")]);
            cells
        })
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grid_error_has_percentiles_and_deviation() {
        let error = GridError::of((0..=100).map(|us| f64::from(us) * 1e3).collect());
        assert_eq!((error.p50_us, error.p99_us, error.max_us, error.deviation_us), (50.0, 99.0, 100.0, 29.2));
        assert_eq!(GridError::of(Vec::new()).max_us, 0.0);
    }
}
