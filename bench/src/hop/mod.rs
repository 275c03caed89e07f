//! `eddy-bench hop`: what a cell costs a mix, compared with relays that only move the bytes.
//!
//! One mix runs as a process of its own, on a core of its own. This program is the chain on both sides of it, on
//! another core. Each round sends sealed cells through the mix, and then the same bytes through each of the relays on
//! the same core, so that other load of the machine affects all of them alike.
//!
//! ```text
//! cases         what is measured                  mix_process   the mix
//! result        rows of figures                   neighbour     control of an entry or the exit
//! testbed       a mix with its neighbours         sealed        cells sealed ahead, and checked
//! generator     sends cells and counts them       relay         relays without cryptography
//! cores         pinning, and processor time      flood         forged handshakes meanwhile
//! ```

mod cases;
pub(crate) mod cores;
mod flood;
pub(crate) mod generator;
pub(crate) mod mix_process;
mod neighbour;
mod relay;
pub(crate) mod result;
pub(crate) mod sealed;
pub(crate) mod testbed;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::bail;
use clap::Args;
use dataplane::socket::offload::Offload;
use dataplane::sys;
use indicatif::{ProgressBar, ProgressStyle};
use wire::cell::Class;

pub use self::cases::RowSet;
use self::cases::{Case, Group};
use self::cores::Cores;
use self::flood::{FloodKind, FloodPlan};
use self::mix_process::MixOptions;
use self::relay::RelayKind;
use self::result::{Flooded, Sample};
pub(crate) use self::result::{HopResult, HopRow};
use self::testbed::{Round, Testbed};
use crate::args::OutputArgs;
use crate::chain::engine_environment;
use crate::machine::Machine;
use crate::signals;

#[derive(Args, Debug)]
pub struct HopArgs {
    /// Rows to measure
    #[arg(long, value_enum, default_value_t = RowSet::All, help_heading = "Measurement")]
    rows: RowSet,
    /// Rounds of each row; the result is their median
    #[arg(
        long,
        default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=100),
        help_heading = "Measurement"
    )]
    rounds: u32,
    /// Cells of a round
    #[arg(
        long,
        default_value_t = 131_072,
        value_parser = clap::value_parser!(u32).range(1024..=1 << 20),
        help_heading = "Measurement"
    )]
    cells: u32,
    /// Receive without GRO behind the mix, so that the kernel splits its bursts
    #[arg(long, help_heading = "Measurement")]
    no_sink_gro: bool,
    /// Repeat each round under a flood of RATE forged handshakes per second, and once while it goes to another port
    #[arg(long, value_name = "RATE", value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "Measurement")]
    forged: Option<u32>,
    /// The flood of --forged: lone halves, GSO bursts of them, or empty datagrams
    #[arg(long, value_enum, default_value = "halves", value_name = "KIND", help_heading = "Measurement")]
    forged_kind: FloodKind,
    #[command(flatten)]
    output: OutputArgs,

    /// Size class of the cells
    #[arg(long, default_value_t = Class::L, ignore_case = true, help_heading = "Mix")]
    class: Class,
    /// GSO and GRO
    #[arg(long, default_value_t = Offload::Auto, value_name = "WHEN", help_heading = "Mix")]
    offload: Offload,
    /// System calls of the sockets (`eddy mix --io`)
    #[arg(long, help_heading = "Mix")]
    io: Option<String>,
    /// AEAD engine (sets EDDY_AEAD)
    #[arg(long, help_heading = "Mix")]
    engine: Option<String>,
    /// Line for the configuration, e.g. 'hugepages = true' (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE", help_heading = "Mix")]
    lines: Vec<String>,
    /// Let the mix use both cores instead of pinning it to one
    #[arg(long, help_heading = "Mix")]
    unpinned: bool,
    /// Measure this build of eddy instead of the one in this program
    #[arg(long, value_name = "PATH", help_heading = "Mix")]
    eddy: Option<PathBuf>,
}

/// Receive buffer of the mix and of its neighbours, if the system grants it.
pub(crate) const RECEIVE_BUFFER: usize = 64 << 20;
/// Bytes of a receive buffer that a packet takes, with the kernel's overhead.
const PACKET_COST: usize = 3072;
/// Cells in flight in addition to those in the pool: a few milliseconds of work, which fit the third-level cache.
const WINDOW: usize = 4096;
/// Most cells of a round from separate entries.
const SEPARATE_CELLS_MAX: usize = 16_384;
/// Packets of a round of the relays that move them one by one.
const SINGLE_PACKETS: usize = 8192;

/// Runs the command.
///
/// # Errors
/// The system refuses a resource, the mix ends, or no cell comes through it.
pub fn run(args: &HopArgs) -> anyhow::Result<()> {
    let mut bench = Bench::new(args)?;
    let mut rows = Vec::new();
    for group in args.rows.groups() {
        for (case, samples) in bench.run(&group, &mut |_| Ok(()))? {
            rows.push(HopRow::of(&case, args.class, &samples));
        }
    }
    bench.bar.finish_and_clear();
    let result = HopResult {
        rows,
        class: args.class.name().to_owned(),
        engine: bench.engine,
        offload: args.offload.to_string(),
        sink_gro: !args.no_sink_gro,
        gso: bench.gso,
        io: bench.io,
        machine: Machine { cores: bench.machine_cores, ..Machine::read() },
        mix_core: bench.cores.relay,
        load_core: bench.cores.load,
        receive_buffer: bench.buffer,
    };
    result.print(args.output)
}

/// A mix under the row `one`, for a comparison that has rows of its own.
#[cfg(feature = "peers")]
pub(crate) struct OneRow {
    /// Of the mix and the relays.
    pub(crate) samples: Vec<Sample>,
    /// AEAD engine of the mix.
    pub(crate) engine: String,
    pub(crate) machine: Machine,
}

/// Measures the row `one`. Before each round it calls `between` with the round's number and the core of the mix;
/// round 0 is a warm-up.
///
/// # Errors
/// As [`run`], or what `between` returns.
#[cfg(feature = "peers")]
pub(crate) fn one_row(
    rounds: u32,
    between: &mut dyn FnMut(u32, usize) -> anyhow::Result<()>,
) -> anyhow::Result<OneRow> {
    use anyhow::Context;

    let args = HopArgs {
        rows: RowSet::One,
        rounds,
        cells: 1 << 16,
        no_sink_gro: false,
        forged: None,
        forged_kind: FloodKind::Halves,
        output: OutputArgs::default(),
        class: Class::L,
        offload: Offload::Auto,
        io: None,
        engine: None,
        lines: Vec::new(),
        unpinned: false,
        eddy: None,
    };
    let mut bench = Bench::new(&args)?;
    let core = bench.cores.relay;
    let group = args.rows.groups().pop().context("the row `one` exists")?;
    let measured = bench.run(&group, &mut |round| between(round, core))?.pop();
    let (_, samples) = measured.context("the row `one` was measured")?;
    bench.bar.finish_and_clear();
    Ok(OneRow { samples, engine: bench.engine, machine: Machine { cores: bench.machine_cores, ..Machine::read() } })
}

/// How much of a receive buffer the system grants, in bytes.
pub(crate) fn granted_buffer(wanted: usize) -> anyhow::Result<usize> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    Ok(wanted.min(sys::size_receive_buffer(&socket, wanted)? / 2))
}

struct Bench<'a> {
    args: &'a HopArgs,
    cores: Cores,
    /// Cores of this program before it was pinned.
    machine_cores: usize,
    buffer: usize,
    interrupted: Arc<AtomicBool>,
    bar: ProgressBar,
    /// As the mix reports them.
    engine: String,
    io: String,
    gso: bool,
}

impl<'a> Bench<'a> {
    fn new(args: &'a HopArgs) -> anyhow::Result<Bench<'a>> {
        let interrupted = signals::interrupted()?;
        let machine_cores = Machine::read().cores;
        let cores = Cores::choose()?;
        let buffer = granted_buffer(RECEIVE_BUFFER)?;
        let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}")?);
        let (engine, io) = (String::new(), String::new());
        Ok(Bench { args, cores, machine_cores, buffer, interrupted, bar, engine, io, gso: false })
    }

    /// Measures rows that share one mix, all rounds of each. Before each round it calls `between` with the round's
    /// number; round 0 is a warm-up.
    fn run(
        &mut self,
        group: &Group,
        between: &mut dyn FnMut(u32) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<(Case, Vec<Sample>)>> {
        let args = self.args;
        self.bar.set_message(format!("pool {}: links of {} entries", group.pool, group.entries));
        let mut testbed = Testbed::start(&self.options(group.pool)?, group.entries, self.cores)?;

        let mut all = Vec::new();
        for case in &group.cases {
            let per_entry = case.channels.div_ceil(case.entries.max(1));
            self.bar.set_message(format!("{case}: channels"));
            let bar = &self.bar;
            testbed.open(per_entry, &|open| {
                bar.set_message(format!("{case}: {open} channels open"));
                bar.tick();
            })?;

            let mut samples = Vec::new();
            for round in 0..=args.rounds {
                if self.interrupted.load(Ordering::Relaxed) {
                    bail!("interrupted");
                }
                self.bar.set_message(format!("{case}: round {round} of {}", args.rounds));
                self.bar.tick();
                between(round)?;
                let sample = self.sample(&mut testbed, case)?;
                if round > 0 {
                    samples.push(sample);
                }
            }
            let report = testbed.mix.report()?;
            (self.engine, self.io, self.gso) = (report.engine, report.io, report.messages.gso);
            all.push((*case, samples));
        }
        Ok(all)
    }

    fn options(&self, pool: usize) -> anyhow::Result<MixOptions> {
        let args = self.args;
        Ok(MixOptions {
            class: args.class,
            mixing: format!("threshold-or-timed:n={pool},n_min=1,t=20ms").parse()?,
            receive_buffer: self.buffer,
            offload: args.offload,
            sink_gro: !args.no_sink_gro,
            arguments: args.io.iter().flat_map(|io| ["--io".to_owned(), io.clone()]).collect(),
            lines: args.lines.clone(),
            limits_handshakes: args.forged.is_some(),
            unpinned: args.unpinned,
            environment: engine_environment(args.engine.as_deref()),
            program: args.eddy.clone(),
        })
    }

    fn flood(&self) -> Option<FloodPlan> {
        self.args.forged.map(|rate| FloodPlan { kind: self.args.forged_kind, rate })
    }

    /// One round of the mix and of every relay.
    fn sample(&self, testbed: &mut Testbed, case: &Case) -> anyhow::Result<Sample> {
        let Case { direction, entries, channels, pool } = *case;
        let held = self.buffer / PACKET_COST;
        let cells = self.args.cells as usize;
        let (cells, window) = if entries > 0 {
            let all = held.min(cells).min(SEPARATE_CELLS_MAX);
            (all, all)
        } else {
            (cells.max(channels.next_power_of_two()), (pool + WINDOW).min(held))
        };
        let round = Round { direction, entries, channels, cells, window, pace: None };
        let mix = testbed.measure(round)?;
        Ok(Sample {
            mix,
            flooded: self.flood().map(|flood| flooded(testbed, round, flood)).transpose()?,
            gso: testbed.relay(RelayKind::Gso, round, cells)?,
            mmsg: testbed.relay(RelayKind::Mmsg, round, SINGLE_PACKETS)?,
            single: testbed.relay(RelayKind::Single, round, SINGLE_PACKETS / 2)?,
        })
    }
}

fn flooded(testbed: &mut Testbed, round: Round, flood: FloodPlan) -> anyhow::Result<Flooded> {
    Ok(Flooded { mix: testbed.measure_flooded(round, flood)?, beside: testbed.measure_beside_flood(round, flood)? })
}
