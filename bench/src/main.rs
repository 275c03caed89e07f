//! `eddy-bench`: measures mixes, chains and the machine under them.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use eddy_bench::capacity::{self, CapacityArgs};
use eddy_bench::load::command::LoadArgs;
use eddy_bench::performance::{self, PerformanceArgs};
use eddy_bench::replay::{self, ReplayArgs};
use eddy_bench::{hop, load, path, peers, report, stages};

/// Measures mixes, chains and the machine under them.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sends a load through a chain, and straight to its destination, and tells what became of it.
    ///
    /// Open loop: a datagram leaves when it is due and is timed from then on. Without --to a chain is started for it.
    ///
    ///   eddy-bench load                                                 10,000/s of 1000 bytes, 10 s
    ///   eddy-bench load --profile voip:100 --profile game:20 --profile video:5 --seconds 60
    ///   eddy-bench load --mixing threshold:n=1,n_min=1 --payload-len 200 --arrivals poisson --out results
    ///
    /// Into a chain that runs:
    ///
    ///   eddy chain --stay --forward 127.0.0.1:7000=127.0.0.1:7001
    ///   eddy-bench load --to 127.0.0.1:7000 --sink 127.0.0.1:7001 --rate 20000
    #[command(verbatim_doc_comment)]
    Load(LoadArgs),
    /// Searches for the highest rate that passes without loss, and says what limits it.
    ///
    ///   eddy-bench capacity                          a chain of three mixes on this machine
    ///   eddy-bench capacity --mixes 1 --payload-len 200
    ///   eddy-bench capacity --node                   one mix alone, on a core of its own
    ///
    /// Through nodes that run, with their ledgers:
    ///
    ///   eddy-bench capacity --to 127.0.0.1:7000 --sink 127.0.0.1:7001 --status /run/eddy/mix2.sock
    #[command(verbatim_doc_comment)]
    Capacity(CapacityArgs),
    /// Plays traces of real traffic through a chain, and straight to their destination.
    ///
    /// Times, flows and lengths are the trace's; what is in the packets is not sent. Latency, jitter and
    /// order are told against the trace's own times.
    ///
    ///   eddy-bench replay call.pcap
    ///   eddy-bench replay game.out.csv --back game.in.csv --speed 2
    #[command(verbatim_doc_comment)]
    Replay(ReplayArgs),
    /// Measures what a cell costs a mix, beside relays that only move the bytes.
    Hop(hop::HopArgs),
    /// Measures what a whole chain carries on this machine.
    Path(path::PathArgs),
    /// Measures hops, paths, capacity, latency and applications, some rounds in turn, and prints medians as Markdown.
    Performance(PerformanceArgs),
    /// Makes one HTML page, with tables and plots, of what the other commands left behind.
    ///
    /// It takes the NAME.json files of load, replay and capacity, and what any of them,
    /// hop and path printed with --json, in any number and order. The page holds all that
    /// it shows: it can be mailed, printed and opened without a network.
    ///
    ///   eddy-bench hop --json > hop.json
    ///   eddy-bench report results/*.json hop.json --out report.html
    #[command(verbatim_doc_comment)]
    Report(report::ReportArgs),
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

fn main() -> ExitCode {
    // `hop` and `path` run nodes of the very build that they are part of: this program is `eddy`, too.
    if let Some("entry" | "mix" | "exit" | "chain") = std::env::args().nth(1).as_deref() {
        return match eddy::args::Cli::try_parse() {
            Ok(cli) => eddy::commands::run(cli),
            Err(error) => eddy::commands::usage_error(&error),
        };
    }
    let done = match Cli::parse().command {
        Command::Load(args) => load::command::run(&args),
        Command::Capacity(args) => capacity::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Hop(args) => hop::run(&args),
        Command::Path(args) => path::run(&args),
        Command::Performance(args) => performance::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Peers(args) => peers::run(&args),
        Command::Stage(args) => stages::run(&args),
    };
    let Err(error) = done else { return ExitCode::SUCCESS };
    eprintln!("eddy-bench: {error:#}");
    ExitCode::from(2)
}
