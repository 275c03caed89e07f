//! `eddy-bench paced`: how many channels of a paced class a core carries, over UDP sockets on loopback.
//!
//! A mix runs in a thread of its own, on a core of its own. This thread, on another core, is its neighbours: it sends a
//! valid cell of every channel in every round, in both directions, with the control cells of their slots, and counts
//! what leaves the mix, release by release.
//!
//! ```text
//! worker      the mix                       generator   sends rounds and counts releases
//! links       the other ends of its links   setups      what a setup costs control
//! result      rows of figures
//! ```

mod generator;
mod links;
mod result;
mod setups;
mod worker;

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use dataplane::Nanos;
use dataplane::paced::{Command, Settings};
use dataplane::runner::Clock;
use dataplane::socket::offload::{Offload, Offloads};
use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use wire::cell::{Class, Direction};
use wire::ids::Side;
use wire::paced::clock::SteadyClock;
use wire::paced::{ControlSlots, PacedClass, PacedTerms, Timetable, terms};
use wire::setup::Suite;

use self::generator::{End, Generator};
use self::links::{Bodies, install};
use self::result::{Fixed, PacedResult, PacedRow};
use self::worker::{Handle, Idle};
use crate::args::{OutputArgs, in_range, seconds};
use crate::hop::cores::{Cores, pin};
use crate::hop::{RECEIVE_BUFFER, granted_buffer};
use crate::machine::Machine;
use crate::signals;

/// Hops of the chain: three mixes and an exit.
const HOPS: usize = 4;
/// The batch whose rounds are measured first: in 2021.
const BATCH: u64 = 80_000_000;
/// Rounds before the measurement.
const WARM_UP: u64 = 50;
const MS: Nanos = 1_000_000;
/// The last cell of a round comes so long before the release that takes it.
const MARGIN: Nanos = 2 * MS;
/// From the start of the class's clock to the first round.
const START_IN: Nanos = 300 * MS;
/// The mix is set up so long before that, by a clock that is then replaced.
const BEFORE: Nanos = 3_600_000 * MS;
/// Time limit for the mix to take in its links and channels.
const SETUP_MAX: Duration = Duration::from_secs(60);

#[derive(Args, Debug)]
pub struct PacedArgs {
    /// Channels, each of which is a row of the result
    #[arg(
        long,
        default_values_t = [500, 2000, 4000],
        value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(1..=i64::from(*terms::SEATS.end())),
        help_heading = "Measurement"
    )]
    channels: Vec<u32>,
    /// Seconds that each row is measured for
    #[arg(long, default_value_t = 4.0, value_parser = seconds, help_heading = "Measurement")]
    seconds: f64,
    /// Time over which the cells of a round come in, in ms; 0 for all at once, as from another mix
    #[arg(long, default_value_t = 5.0, value_name = "MS", value_parser = spread, help_heading = "Measurement")]
    spread_ms: f64,
    #[command(flatten)]
    output: OutputArgs,

    /// Size class of the cells
    #[arg(long, default_value_t = Class::S, ignore_case = true, help_heading = "Mix")]
    class: Class,
    /// Position of the mix in the chain: 1 has a link and a socket for each channel, 2 has mixes on both sides
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=2), help_heading = "Mix")]
    position: u8,
    /// GSO and GRO
    #[arg(long, default_value_t = Offload::Auto, value_name = "WHEN", help_heading = "Mix")]
    offload: Offload,
}

fn spread(text: &str) -> Result<f64, String> {
    in_range(text, 0.0, 8.0, "milliseconds")
}

/// What one row measures.
struct Plan {
    terms: PacedTerms,
    position: usize,
    channels: u32,
    spread: Nanos,
    /// Rounds that are measured.
    rounds: u64,
}

impl Plan {
    fn new(args: &PacedArgs, channels: u32) -> Plan {
        let class = PacedClass::new(args.class);
        let terms = PacedTerms { seats: channels as u16, n_min: 1, ..PacedTerms::new(class, "bench", HOPS) };
        let rounds = (args.seconds * 1000.0 / f64::from(terms.period_ms)) as u64;
        let spread = (args.spread_ms * MS as f64) as Nanos;
        Plan { terms, position: args.position.into(), channels, spread, rounds }
    }

    fn class(&self) -> PacedClass {
        self.terms.class
    }

    fn times(&self) -> Timetable {
        self.terms.timetable(HOPS)
    }

    fn settings(&self) -> Settings {
        let Plan { terms, position, .. } = self;
        Settings { terms: terms.clone(), suite: Suite::Hybrid, hops: HOPS, position: *position, hugepages: true }
    }

    /// From the first cell of a round to the release. Another mix sends a step before.
    fn sends_before(&self) -> Nanos {
        if self.spread == 0 { Nanos::from(self.terms.steps_ms[0]) * MS } else { self.spread + MARGIN }
    }

    fn first_round(&self) -> u64 {
        self.times().first(BATCH)
    }

    fn measured_from(&self) -> u64 {
        self.first_round() + WARM_UP
    }

    /// The round behind the last one that is sent.
    fn end(&self) -> u64 {
        self.measured_from() + self.rounds
    }

    /// Links of entries at the mix; none between hops.
    fn entries(&self) -> u32 {
        if self.position == 1 { self.channels } else { 0 }
    }

    /// How many rounds ago the rounds were whose cells are sent together on the link towards the entry.
    fn copies(&self) -> Vec<u64> {
        let copies = if self.position == 1 { self.terms.copies } else { 1 };
        (0..copies).map(|copy| u64::from(copy * self.terms.gap)).collect()
    }

    fn slots(&self, link: usize, direction: Direction) -> ControlSlots {
        ControlSlots::new(&self.terms, Suite::Hybrid, HOPS, link, direction)
    }

    /// Control slots of the link on which cells of a direction come to the mix.
    fn slots_in(&self, direction: Direction) -> ControlSlots {
        let link = if direction == Direction::Forward { self.position } else { self.position + 1 };
        self.slots(link, direction)
    }

    /// Data and control cells that leave in a release. Of a round that was skipped there are no copies.
    fn expected(&self, direction: Direction, round: u64, is_skipped: impl Fn(u64) -> bool) -> (u64, u64) {
        let link = if direction == Direction::Forward { self.position + 1 } else { self.position };
        let (times, slots) = (self.times(), self.slots(link, direction));
        let (is_first, channels) = (link == 1, u64::from(self.channels));
        let links = if is_first { channels } else { 1 };
        let rounds = if is_first { self.copies() } else { vec![0] };
        let rounds = rounds.iter().map(|ago| round - ago).filter(|of| *of == round || !is_skipped(*of));
        let control = |of| {
            let slots = slots.of(&times, of);
            slots.total() as u64
        };
        (channels * rounds.clone().count() as u64, links * rounds.map(control).sum::<u64>())
    }
}

/// Runs the command.
///
/// # Errors
/// The system refuses a resource, or the mix ends.
pub fn run(args: &PacedArgs) -> anyhow::Result<()> {
    let interrupted = signals::interrupted()?;
    let machine_cores = Machine::read().cores;
    let (cores, buffer) = (Cores::choose()?, granted_buffer(RECEIVE_BUFFER)?);
    pin(cores.load)?;
    let cell_len = PacedClass::new(args.class).cell_len();
    let (offloads, _) = args.offload.decide(&[cell_len], false);
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}")?);
    let fixed = Fixed {
        setup: setups::setup_cost(&Plan::new(args, 1).terms, args.position.into()),
        memory: memory_of_one(args, (buffer, offloads))?,
    };
    let mut rows = Vec::new();
    for channels in &args.channels {
        let plan = Plan::new(args, *channels);
        let tick = |passed: u64| {
            let seconds = passed as f64 * f64::from(plan.terms.period_ms) / 1000.0;
            bar.set_message(format!("{channels} channels: {seconds:.0} s of {:.0} s", args.seconds));
            bar.tick();
        };
        tick(0);
        rows.push(measure(&plan, cores, (buffer, offloads), fixed, &interrupted, &tick)?);
    }
    bar.finish_and_clear();
    let result = PacedResult {
        rows,
        class: args.class.name().to_owned(),
        position: args.position,
        spread_ms: args.spread_ms,
        setup_us: fixed.setup.as_nanos() as f64 / 1e3,
        engine: wire::gcm::engine().name().to_owned(),
        gso: offloads.gso,
        receive_buffer: buffer,
        machine: Machine { cores: machine_cores, ..Machine::read() },
    };
    result.print(args.output)
}

/// Bytes of this process in memory.
fn resident() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let kb = text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    kb.map(|kb: u64| kb << 10).context("unexpected format of /proc/self/status")
}

/// What a mix for one channel takes, in bytes.
fn memory_of_one(args: &PacedArgs, sockets: (usize, Offloads)) -> anyhow::Result<u64> {
    let plan = Plan::new(args, 1);
    let clock = Clock::start();
    let steady = SteadyClock::new(clock.now(), plan.times().begin(plan.first_round()));
    let before = resident()?;
    let _mix = Idle::new(plan.settings(), 16, sockets, (clock, steady))?;
    Ok(resident()?.saturating_sub(before))
}

/// Measures one row.
fn measure(
    plan: &Plan,
    cores: Cores,
    sockets: (usize, Offloads),
    fixed: Fixed,
    interrupted: &AtomicBool,
    tick: &dyn Fn(u64),
) -> anyhow::Result<PacedRow> {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let bodies = Bodies::new(plan.class(), &mut rng);
    let ends = [(Side::Up, plan.entries().max(1)), (Side::Down, 1)].map(|(side, count)| {
        let buffer = if count > 1 { sockets.0 >> 6 } else { sockets.0 };
        (0..count).map(|number| End::new(number, side, buffer)).collect::<anyhow::Result<Vec<End>>>()
    });
    let [up, down] = ends;
    let ends = [up?, down?];

    let clock = Clock::start();
    let steady = |lead| SteadyClock::new(clock.now(), plan.times().begin(plan.first_round()) - lead);
    let before = resident()?;
    let commands = 1024 + plan.channels as usize + 3 * (ends[0].len() + ends[1].len());
    let mut mix = Idle::new(plan.settings(), commands, sockets, (clock, steady(BEFORE)))?;
    connect(plan, &ends, mix.handle())?;
    let mut mix = mix.start(clock, cores.relay)?;
    mix.handle.await_taken(SETUP_MAX)?;
    let steady = steady(START_IN);
    mix.handle.command(Command::Clock(steady.clone()))?;
    mix.handle.wake();
    let addresses = (mix.handle.up, mix.handle.down);
    let generator = Generator::new(plan, ends, addresses, (clock, steady), bodies, rng)?;

    let seen = generator.run(&mut mix, interrupted, &mut |round| tick(round.saturating_sub(plan.measured_from())))?;
    let memory = resident()?.saturating_sub(before);
    let ledger = mix.finish()?;
    Ok(PacedRow::of(plan, &seen, &ledger, memory, fixed))
}

/// Gives the mix its links, and the channels of the first batch.
fn connect(plan: &Plan, ends: &[Vec<End>; 2], mix: &mut Handle) -> anyhow::Result<()> {
    for end in ends.iter().flatten() {
        let address = end.address()?;
        end.link().commands(address).into_iter().try_for_each(|command| mix.command(command))?;
    }
    for number in 1..=plan.channels {
        let entry = (plan.position == 1).then(|| ends[0][number as usize - 1].link());
        mix.command(install(BATCH, number, entry))?;
    }
    Ok(())
}
