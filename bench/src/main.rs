//! `eddy-bench`: measures a running chain.

use std::net::{SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use eddy_bench::load::{LEN_MIN, Load, Outcome, run};
use eddy_bench::{hop, path, peers, stages};
use indicatif::{ProgressBar, ProgressStyle};

/// Measures a running chain.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sends an even load into a forward and counts what arrives behind the exit.
    ///
    /// Start a chain with a forward to an address of your choice, then load it:
    ///
    ///   eddy chain --stay --forward 127.0.0.1:7000=127.0.0.1:7001
    ///   eddy-bench load --to 127.0.0.1:7000 --sink 127.0.0.1:7001 --rate 20000
    #[command(verbatim_doc_comment)]
    Load(LoadArgs),
    /// Measures what a cell costs a mix, beside relays that only move the bytes.
    Hop(hop::HopArgs),
    /// Measures what a whole chain carries on this machine.
    Path(path::PathArgs),
    /// Measures a hop beside what others do for a packet: Sphinx, WireGuard, Noise, bare relays.
    ///
    /// Needs the others' libraries, which plain builds are without:
    ///
    ///   cargo run --release -p eddy-bench --features peers -- peers
    #[command(verbatim_doc_comment)]
    Peers(peers::PeersArgs),
    /// Runs one stage of a cell's path over and over, for a profiler that looks at its function alone.
    Stage(stages::StageArgs),
}

/// What `load` is told.
#[derive(Args)]
struct LoadArgs {
    /// The entry's forward, or the sink itself to measure the generator alone.
    #[arg(long, value_name = "ADDR")]
    to: SocketAddr,
    /// Where the forward leads: received here.
    #[arg(long, value_name = "ADDR")]
    sink: SocketAddr,
    /// Flows, each from a socket of its own.
    #[arg(long, default_value_t = 100)]
    flows: usize,
    /// Datagrams per second over all flows.
    #[arg(long, default_value_t = 20_000)]
    rate: u64,
    /// Bytes per datagram.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(LEN_MIN as i64..=65_507))]
    payload_len: u32,
    /// How long to send.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    // `hop` and `path` run nodes of the very build that they are part of: this program is `eddy`, too.
    if let Some("entry" | "mix" | "exit" | "chain") = std::env::args().nth(1).as_deref() {
        return match eddy::cli::Cli::try_parse() {
            Ok(cli) => eddy::commands::run(cli),
            Err(error) => eddy::commands::misspoken(&error),
        };
    }
    let done = match Cli::parse().command {
        Command::Load(args) => measure(&args),
        Command::Hop(args) => hop::run(&args),
        Command::Path(args) => path::run(&args),
        Command::Peers(args) => peers::run(&args),
        Command::Stage(args) => stages::run(&args),
    };
    let Err(error) = done else { return ExitCode::SUCCESS };
    eprintln!("eddy-bench: {error:#}");
    ExitCode::from(2)
}

fn measure(args: &LoadArgs) -> anyhow::Result<()> {
    let &LoadArgs { to, sink, flows, rate, payload_len, seconds, json } = args;
    let load = Load { to, flows, rate, len: payload_len as usize, time: Duration::from_secs(seconds) };
    let sink = UdpSocket::bind(sink).with_context(|| format!("the sink cannot listen at {sink}"))?;
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} datagrams, {per_sec}, {eta} left")?;
    let bar = ProgressBar::new(rate * seconds).with_style(style);
    let outcome = run(&load, sink, |sent| bar.set_position(sent))?;
    bar.finish_and_clear();
    if json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        print(&outcome);
    }
    Ok(())
}

fn print(outcome: &Outcome) {
    let Outcome { sent, refused, delivered, duplicated, reordered, lost, sink_kernel_drops, sent_per_s, latency_us } =
        outcome;
    println!("sent        {sent} ({sent_per_s:.0}/s; {refused} refused by the kernel)");
    println!("delivered   {delivered} ({lost} lost, {reordered} reordered, {duplicated} twice)");
    println!("at the sink {sink_kernel_drops} dropped by the kernel");
    let load::Latency { p50, p99, p999, max } = latency_us;
    println!("latency     p50 {p50} us, p99 {p99} us, p99.9 {p999} us, max {max} us");
}

use eddy_bench::load;
