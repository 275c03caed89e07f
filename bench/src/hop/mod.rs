//! `eddy-bench hop`: what a cell costs a mix, beside relays that only move the bytes.
//!
//! One real mix as a process of its own, on a core of its own; this program is the chain on both sides of it, on
//! another core. Every round plays a burst of sealed cells through the mix and then its bytes through each of the
//! yardsticks on the same core, so that what the machine does meanwhile falls on all of them alike.
//!
//! ```text
//! cores    who runs where, and its time    child    the mix as a process
//! peer     a neighbour's control           burst    cells sealed ahead, and judged
//! play     blaster and sink                relay    the yardsticks
//! rig      all of it joined, one round     rows     what is measured, and how it is told
//! ```

mod burst;
pub(crate) mod child;
pub(crate) mod cores;
mod peer;
pub(crate) mod play;
mod relay;
pub(crate) mod rig;
pub(crate) mod rows;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(feature = "peers")]
use anyhow::anyhow;
use anyhow::bail;
use clap::{Args, ValueEnum};
use dataplane::io::offload::Offload;
use dataplane::sys;
use indicatif::{ProgressBar, ProgressStyle};
use wire::cell::Class;

use self::child::Wanted;
use self::cores::Cores;
use self::relay::Kind;
use self::rig::Rig;
use self::rows::{Case, Row, Rows, Sample};
use crate::machine::Machine;
use crate::signals;

/// What `hop` is told.
#[derive(Args, Debug)]
pub struct HopArgs {
    /// Size of cells
    #[arg(long, default_value_t = Class::L, ignore_case = true)]
    pub class: Class,
    /// Which rows
    #[arg(long, value_enum, default_value_t = Which::All)]
    pub rows: Which,
    /// Rounds of each row; medians are told
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Cells of a burst
    #[arg(long, default_value_t = 131_072, value_parser = clap::value_parser!(u32).range(1024..=1 << 20))]
    pub cells: u32,
    /// The mix's AEAD engine (EDDY_AEAD)
    #[arg(long)]
    pub engine: Option<String>,
    /// Use GSO and GRO for the mix's cells
    #[arg(long, default_value_t = Offload::Auto)]
    pub offload: Offload,
    /// The sink does not enable GRO, as many programs do and as behind a network card that does not cut them: the kernel
    /// cuts them before they leave
    #[arg(long)]
    pub lone_sink: bool,
    /// How the mix talks to the kernel, where it has a choice (`eddy mix --io`)
    #[arg(long)]
    pub io: Option<String>,
    /// A line for the mix's configuration, such as 'hugepages = true' (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub lines: Vec<String>,
    /// The mix is not kept on a core of its own, so that `--set 'cores = [1]'` can be told from the system's choice
    #[arg(long)]
    pub unpinned: bool,
    /// Measure another build of eddy instead of this program's own
    #[arg(long, value_name = "PATH")]
    pub eddy: Option<PathBuf>,
    /// Print one JSON object as the last line instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Which rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Which {
    /// All that follow.
    All,
    /// 1 to 100,000 channels, both ways.
    Channels,
    /// Pools of 64 to 4096, both ways.
    Pools,
    /// The first hop: entries apart, whose cells do not come in bursts.
    FirstHop,
    /// 64 channels, pool 256, forward and backward.
    Quick,
    /// The same forward only.
    One,
}

/// Bytes that the mix's sockets and ours are to hold, if the system grants them.
pub(crate) const BUFFER_WANTED: usize = 64 << 20;
/// Of these a packet takes so many: the kernel counts its own overhead.
const PACKET_COST: usize = 3072;
/// Cells under way beside those in the pool: a few milliseconds of a mix's work, which stay in the third cache.
const WINDOW: usize = 4096;
/// Packets of a round for the yardsticks that move them one by one.
const LONE_PACKETS: usize = 8192;

/// Runs the command.
///
/// # Errors
/// The system refuses what is needed, the mix ends, or nothing comes through it.
pub fn run(args: &HopArgs) -> anyhow::Result<()> {
    let mut bench = Bench::new(args)?;
    let mut rows = Vec::new();
    for group in rows::groups(args.rows) {
        for (case, samples) in bench.run(&group, &mut |_| Ok(()))? {
            rows.push(Row::of(&case, args.class, &samples));
        }
    }
    bench.bar.finish_and_clear();
    let rows = Rows {
        rows,
        class: args.class.name(),
        engine: bench.engine,
        offload: args.offload.to_string(),
        lone_sink: args.lone_sink,
        gso: bench.gso,
        io: args.io.clone(),
        machine: Machine::read(),
        cores: [bench.cores.relay, bench.cores.load],
        receive_buffer: bench.buffer,
    };
    rows.print(args.json)
}

/// A mix under one quick row, for a comparison that has rows of its own.
#[cfg(feature = "peers")]
pub(crate) struct One {
    /// Of the mix and the relays.
    pub samples: Vec<Sample>,
    /// The mix's AEAD engine.
    pub engine: String,
    /// Where it was measured.
    pub machine: Machine,
}

/// Measures the row `one`, and calls `between` before each round with its number and the core that the mix has; round 0
/// warms up.
///
/// # Errors
/// As [`run`], or what `between` returns.
#[cfg(feature = "peers")]
pub(crate) fn one(rounds: u32, between: &mut dyn FnMut(u32, usize) -> anyhow::Result<()>) -> anyhow::Result<One> {
    let args = HopArgs {
        class: Class::L,
        rows: Which::One,
        rounds,
        cells: 1 << 16,
        engine: None,
        offload: Offload::Auto,
        lone_sink: false,
        io: None,
        lines: Vec::new(),
        unpinned: false,
        eddy: None,
        json: false,
    };
    let mut bench = Bench::new(&args)?;
    let core = bench.cores.relay;
    let group = rows::groups(args.rows).pop().ok_or_else(|| anyhow!("no row"))?;
    let (_, samples) = bench.run(&group, &mut |round| between(round, core))?.pop().ok_or_else(|| anyhow!("no row"))?;
    bench.bar.finish_and_clear();
    Ok(One { samples, engine: bench.engine, machine: Machine::read() })
}

/// What of a receive buffer the system grants.
pub(crate) fn granted(wanted: usize) -> anyhow::Result<usize> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    Ok(wanted.min(sys::size_receive_buffer(&socket, wanted)? / 2))
}

struct Bench<'a> {
    args: &'a HopArgs,
    cores: Cores,
    buffer: usize,
    interrupted: Arc<AtomicBool>,
    bar: ProgressBar,
    /// What the mix says of itself.
    engine: String,
    gso: bool,
}

impl<'a> Bench<'a> {
    fn new(args: &'a HopArgs) -> anyhow::Result<Bench<'a>> {
        let interrupted = signals::interrupted()?;
        let cores = Cores::choose()?;
        let buffer = granted(BUFFER_WANTED)?;
        let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}")?);
        Ok(Bench { args, cores, buffer, interrupted, bar, engine: String::new(), gso: false })
    }

    /// Measures rows that share one mix, all rounds of each. Before each round `between` is called with its number;
    /// 0 is the one that warms up.
    fn run(
        &mut self,
        group: &rows::Group,
        between: &mut dyn FnMut(u32) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<(Case, Vec<Sample>)>> {
        let args = self.args;
        let mut all = Vec::new();
        let mut arguments = Vec::new();
        if let Some(io) = &args.io {
            arguments.extend(["--io".to_owned(), io.clone()]);
        }
        let wanted = Wanted {
            class: args.class,
            mixing: format!("threshold-or-timed:n={},n_min=1,t=20ms", group.pool).parse()?,
            receive_buffer: self.buffer,
            offload: args.offload,
            sink_gro: !args.lone_sink,
            arguments,
            lines: args.lines.clone(),
            unpinned: args.unpinned,
            environment: args.engine.iter().map(|engine| ("EDDY_AEAD".to_owned(), engine.clone())).collect(),
            program: args.eddy.clone(),
        };
        self.bar.set_message(format!("pool {}: links of {} entries", group.pool, group.entries));
        let mut rig = Rig::start(&wanted, group.entries, self.cores)?;
        for case in &group.cases {
            let per_entry = case.channels.div_ceil(case.apart.max(1));
            self.bar.set_message(format!("{case}: channels"));
            let bar = &self.bar;
            rig.open(per_entry, &|open| {
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
                let sample = self.sample(&mut rig, case)?;
                // The first after a change warms up what was cold.
                if round > 0 {
                    samples.push(sample);
                }
            }
            let report = rig.mix.report()?;
            (self.engine, self.gso) = (report.engine, report.messages.gso);
            all.push((*case, samples));
        }
        Ok(all)
    }

    /// The mix and every yardstick, once.
    fn sample(&self, rig: &mut Rig, case: &Case) -> anyhow::Result<Sample> {
        let held = self.buffer / PACKET_COST;
        let burst = self.args.cells as usize;
        let (cells, window) = if case.apart > 0 {
            let all = held.min(burst).min(16_384);
            (all, all)
        } else {
            (burst.max(case.channels.next_power_of_two()), (case.pool + WINDOW).min(held))
        };
        let Case { direction, apart, channels, .. } = *case;
        let round = rig::Round { direction, apart, channels, cells, window, pace: None };
        let mix = rig.measure(round)?;
        let offload = rig.relay(Kind::Offload, round, cells)?;
        let mmsg = rig.relay(Kind::Mmsg, round, LONE_PACKETS)?;
        let single = rig.relay(Kind::Single, round, LONE_PACKETS / 2)?;
        Ok(Sample { mix, offload, mmsg, single })
    }
}
