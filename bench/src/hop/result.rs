//! The figures of a measurement, and how they are printed.

use std::io::Write;
use std::time::Duration;

use eddy::tables::{align_right, table};
use serde::{Deserialize, Deserializer, Serialize};
use wire::cell::{Class, Direction, Shape};

use super::cases::Case;
use super::relay::RelayCost;
use super::testbed::Measurement;
use crate::args::OutputArgs;
use crate::format::direction_name;
use crate::machine::Machine;
use crate::results::ChainFacts;
use crate::stats::{median, range, round};

/// A mix that sleeps in more than this part of its turns was not busy.
const IDLE_MAX: f64 = 0.05;

/// One round of the mix and of the relays.
pub(crate) struct Sample {
    pub(crate) mix: Measurement,
    pub(crate) flooded: Option<Flooded>,
    pub(crate) gso: RelayCost,
    pub(crate) mmsg: RelayCost,
    pub(crate) single: RelayCost,
}

/// The round again with a flood of forged handshakes.
pub(crate) struct Flooded {
    pub(crate) mix: Measurement,
    /// While the flood goes to another port.
    pub(crate) beside: Measurement,
}

/// Figures of a flood of forged handshakes: processor time for a cell, and medians of ratios within a round.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct FloodFigures {
    /// Of the worker.
    cell_ns: f64,
    /// Of the worker, to the round without a flood.
    ratio: f64,
    /// Of the worker, to the round in which the flood goes to another port: the load core has less time for cells then,
    /// too.
    ratio_beside: f64,
    /// Of all threads of the mix, to the same.
    process_ratio_beside: f64,
    /// Mean number of cells of a release.
    batch: f64,
}

/// Figures of one row. Times are processor time on one core, medians of the rounds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HopRow {
    pub(crate) direction: String,
    pub(crate) channels: usize,
    pub(crate) pool: usize,
    /// Entries that send cells one by one; 0 for a single entry that sends GSO bursts.
    pub(crate) entries: usize,
    /// Of the mix's worker, for each cell that it sent.
    #[serde(deserialize_with = "null_as_nan")]
    pub(crate) cell_ns: f64,
    /// What one core carries: 1e9 / cell_ns.
    #[serde(deserialize_with = "null_as_nan")]
    cells_per_s: f64,
    /// The same in bits of UDP payload as it leaves the mix.
    #[serde(deserialize_with = "null_as_nan")]
    pub(crate) gbit_s: f64,
    #[serde(deserialize_with = "null_as_nan")]
    pub(crate) relay_gso_ns: f64,
    #[serde(deserialize_with = "null_as_nan")]
    pub(crate) relay_mmsg_ns: f64,
    #[serde(deserialize_with = "null_as_nan")]
    pub(crate) relay_single_ns: f64,
    #[serde(deserialize_with = "null_as_nan")]
    pub(crate) ratio_gso: f64,
    #[serde(deserialize_with = "null_as_nan")]
    pub(crate) ratio_mmsg: f64,
    /// The mix slept in more than 5 % of its turns, so it could have done more, and `cell_ns` is too high.
    pub(crate) generator_bound: bool,
    /// With `--forged`.
    pub(crate) forged: Option<FloodFigures>,
    /// Least and greatest `cell_ns` of the rounds.
    pub(crate) cell_ns_range: [f64; 2],
    /// Cells per second of wall-clock time, which depends on the other load of the machine.
    wall_cells_per_s: f64,
    /// Mean number of cells of a release.
    pub(crate) batch: f64,
    turns: u64,
    sleeps: u64,
    /// Share of the GSO relay's turns in which it slept.
    #[serde(deserialize_with = "null_as_nan")]
    relay_gso_sleeps: f64,
    /// Cells sent to the mix.
    offered: u64,
    /// Of these, cells that the mix sent.
    forwarded: u64,
    /// Cells that the kernel lost before the mix, and after it.
    lost: [u64; 2],
    /// Cells that the mix dropped.
    dropped: u64,
    /// Cells opened at the far end, and those of them that were forged.
    checked: [u64; 2],
    /// The mix's ledger closed, and every cell is in one of these counts.
    closed: bool,
}

/// JSON has no NaN: a figure that could not be measured is null.
fn null_as_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

fn ns_each(time: Duration, count: u64) -> f64 {
    time.as_nanos() as f64 / count.max(1) as f64
}

impl RelayCost {
    /// Processor time for a packet, in ns.
    pub(crate) fn packet_ns(&self) -> f64 {
        ns_each(self.time, self.packets as u64)
    }

    /// Share of turns in which it slept.
    fn sleeps(&self) -> f64 {
        self.turns.1 as f64 / self.turns.0.max(1) as f64
    }
}

impl Measurement {
    /// Processor time for a cell, in ns.
    pub(crate) fn cell_ns(&self) -> f64 {
        ns_each(self.time, self.sent)
    }

    /// Processor time of all threads for a cell, in ns.
    fn process_cell_ns(&self) -> f64 {
        ns_each(self.process_time, self.sent)
    }
}

impl HopRow {
    /// From the rounds of a case.
    pub(crate) fn of(case: &Case, class: Class, samples: &[Sample]) -> HopRow {
        let shape = Shape::new(class, 2).expect("two hops: one mix and an exit");
        let link = if case.direction == Direction::Forward { 2 } else { 1 };
        let len = shape.cell_len(case.direction, link);

        let cells: Vec<f64> = samples.iter().map(|sample| sample.mix.cell_ns()).collect();
        let cell = median(cells.iter().copied());
        let relay = |cost: fn(&Sample) -> &RelayCost| median(samples.iter().map(|sample| cost(sample).packet_ns()));
        let (gso, mmsg, single) = (relay(|s| &s.gso), relay(|s| &s.mmsg), relay(|s| &s.single));
        let wall = median(samples.iter().map(|sample| {
            let delivery = &sample.mix.delivery;
            delivery.arrived as f64 / delivery.took.as_secs_f64().max(f64::EPSILON)
        }));
        let sum = |count: fn(&Measurement) -> u64| samples.iter().map(|sample| count(&sample.mix)).sum::<u64>();
        let (turns, sleeps) = (sum(|mix| mix.turns.0), sum(|mix| mix.turns.1));

        let forged = samples.iter().all(|sample| sample.flooded.is_some()).then(|| {
            let pairs = || samples.iter().filter_map(|sample| Some((&sample.mix, sample.flooded.as_ref()?)));
            let figure =
                |of: fn(&Measurement, &Flooded) -> f64| median(pairs().map(|(calm, flooded)| of(calm, flooded)));
            FloodFigures {
                cell_ns: round(figure(|_, flooded| flooded.mix.cell_ns()), 1),
                ratio: round(figure(|calm, flooded| flooded.mix.cell_ns() / calm.cell_ns()), 3),
                ratio_beside: round(figure(|_, flooded| flooded.mix.cell_ns() / flooded.beside.cell_ns()), 3),
                process_ratio_beside: round(
                    figure(|_, flooded| flooded.mix.process_cell_ns() / flooded.beside.process_cell_ns()),
                    3,
                ),
                batch: round(figure(|_, flooded| flooded.mix.sent as f64 / flooded.mix.releases.max(1) as f64), 1),
            }
        });

        HopRow {
            direction: direction_name(case.direction).to_owned(),
            channels: case.channels,
            pool: case.pool,
            entries: case.entries,
            cell_ns: round(cell, 1),
            cells_per_s: round(1e9 / cell, 0),
            gbit_s: round(8.0 * len as f64 / cell, 3),
            relay_gso_ns: round(gso, 1),
            relay_mmsg_ns: round(mmsg, 1),
            relay_single_ns: round(single, 1),
            ratio_gso: round(cell / gso, 3),
            ratio_mmsg: round(cell / mmsg, 3),
            generator_bound: sleeps as f64 >= IDLE_MAX * turns as f64,
            forged,
            cell_ns_range: range(&cells).map(|ns| round(ns, 1)),
            wall_cells_per_s: round(wall, 0),
            batch: round(sum(|mix| mix.sent) as f64 / sum(|mix| mix.releases).max(1) as f64, 1),
            turns,
            sleeps,
            relay_gso_sleeps: round(median(samples.iter().map(|sample| sample.gso.sleeps())), 3),
            offered: sum(|mix| mix.delivery.sent as u64),
            forwarded: sum(|mix| mix.forwarded),
            lost: [sum(|mix| mix.lost.0), sum(|mix| mix.lost.1)],
            dropped: sum(|mix| mix.dropped.iter().map(|(_, count)| count).sum()),
            checked: [sum(|mix| mix.checked.0), sum(|mix| mix.checked.1)],
            closed: samples.iter().all(|sample| sample.mix.closed),
        }
    }
}

/// All rows, and the mix and machine that they were measured with.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HopResult {
    pub(crate) rows: Vec<HopRow>,
    /// Size class of the cells.
    pub(crate) class: String,
    /// AEAD engine of the mix.
    pub(crate) engine: String,
    /// GSO and GRO, as configured.
    pub(crate) offload: String,
    /// The sink behind the mix used GRO.
    pub(crate) sink_gro: bool,
    /// The mix used GSO at the end.
    pub(crate) gso: bool,
    /// System calls of the sockets: `mmsg` or `uring`.
    pub(crate) io: String,
    pub(crate) machine: Machine,
    pub(crate) mix_core: usize,
    pub(crate) load_core: usize,
    /// Bytes of a receive buffer.
    pub(crate) receive_buffer: usize,
}

impl HopResult {
    /// The chain of one mix.
    pub(crate) fn chain_facts(&self) -> ChainFacts {
        ChainFacts {
            mixes: 1,
            class: self.class.clone(),
            lanes: 1,
            offload: format!("{}{}", self.offload, if self.sink_gro { "" } else { ", sink without GRO" }),
            engine: self.engine.clone(),
            io: self.io.clone(),
            ..ChainFacts::default()
        }
    }

    /// Prints one JSON object on one line, or tables.
    ///
    /// # Errors
    /// Standard output is closed.
    pub(crate) fn print(&self, output: OutputArgs) -> anyhow::Result<()> {
        let text = if output.json { serde_json::to_string(self)? } else { self.text(output.verbose) };
        writeln!(std::io::stdout(), "{text}")?;
        Ok(())
    }

    fn text(&self, verbose: bool) -> String {
        let mut text = self.overview();
        if verbose {
            text += &format!("\n\n{}\n\n{}\n", self.costs(), self.counts());
        }
        let HopResult { class, engine, io, offload, mix_core, load_core, machine, .. } = self;
        if self.rows.iter().any(|row| row.generator_bound) {
            text += "\n< The mix was not busy: its cost is at most this.";
        }
        text + &format!(
            "\nProcessor time of a mix for a cell; x: relative to relays without cryptography.\n\
             Mix: class {class}, engine {engine}, {io}, offload {offload}\n  \
             core {mix_core}, load on core {load_core}\n\
             Machine: {machine}"
        )
    }

    /// A table whose first columns name the row.
    fn table(&self, heads: &[&str], cells: impl Fn(&HopRow) -> Vec<String>) -> String {
        let heads = [&["direction", "channels", "pool", "entries"], heads].concat();
        let mut all = table(&heads);
        for row in &self.rows {
            let entries = if row.entries == 0 { "-".to_owned() } else { row.entries.to_string() };
            let name = vec![row.direction.clone(), row.channels.to_string(), row.pool.to_string(), entries];
            all.add_row([name, cells(row)].concat());
        }
        align_right(&mut all, 1..heads.len());
        all.to_string()
    }

    fn overview(&self) -> String {
        let is_flooded = self.rows.iter().any(|row| row.forged.is_some());
        let more: &[&str] = if is_flooded { &["flooded", "x calm", "x beside", "process"] } else { &[] };
        self.table(&[&["ns/cell", "Gbit/s", "x GSO", "x mmsg"], more].concat(), |row| {
            // The mark says that the mix was not busy.
            let idle = if row.generator_bound { "<" } else { "" };
            let mut cells = vec![
                format!("{idle}{:.0}", row.cell_ns),
                format!("{:.1}", row.gbit_s),
                format!("{:.2}", row.ratio_gso),
                format!("{:.2}", row.ratio_mmsg),
            ];
            if is_flooded {
                let ratios = |forged: FloodFigures| [forged.ratio, forged.ratio_beside, forged.process_ratio_beside];
                cells.push(row.forged.map_or_else(String::new, |forged| format!("{:.0}", forged.cell_ns)));
                let ratios = row.forged.map_or([f64::NAN; 3], ratios);
                cells.extend(ratios.map(|ratio| format!("{ratio:.2}")));
            }
            cells
        })
    }

    fn costs(&self) -> String {
        self.table(&["min ns", "max ns", "GSO ns", "mmsg ns", "single ns"], |row| {
            let [least, most] = row.cell_ns_range;
            let relays = [row.relay_gso_ns, row.relay_mmsg_ns, row.relay_single_ns];
            [least, most].into_iter().chain(relays).map(|ns| format!("{ns:.0}")).collect()
        })
    }

    fn counts(&self) -> String {
        self.table(&["batch", "slept", "offered", "lost", "dropped", "checked", "forged"], |row| {
            vec![
                format!("{:.0}", row.batch),
                format!("{:.1} %", 100.0 * row.sleeps as f64 / row.turns.max(1) as f64),
                row.offered.to_string(),
                row.lost.iter().sum::<u64>().to_string(),
                row.dropped.to_string(),
                row.checked[0].to_string(),
                row.checked[1].to_string(),
            ]
        })
    }
}
