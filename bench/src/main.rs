//! `eddy-bench`: measures mixes and chains.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use eddy_bench::attack::{self, AttackArgs};
use eddy_bench::capacity::{self, CapacityArgs};
use eddy_bench::hop::{self, HopArgs};
use eddy_bench::load::command::{self as load, LoadArgs};
use eddy_bench::paced::{self, PacedArgs};
use eddy_bench::path::{self, PathArgs};
use eddy_bench::peers::{self, PeersArgs};
use eddy_bench::performance::{self, PerformanceArgs};
use eddy_bench::replay::{self, ReplayArgs};
use eddy_bench::report::{self, ReportArgs};
use eddy_bench::setup::{self, SetupArgs};
use eddy_bench::stages::{self, StageArgs};

/// Measures mixes and chains.
#[derive(Parser)]
#[command(version, about, term_width = 80)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send a load through a chain and directly, and compare latency and loss
    ///
    /// Examples:
    ///   eddy-bench load
    ///   eddy-bench load --profile voip:100 --profile video:5 --seconds 60
    ///   eddy-bench load --rate 50000 --payload-len 200 --out results
    ///
    /// Through a running chain:
    ///   eddy chain --stay --forward 127.0.0.1:7000=127.0.0.1:7001
    ///   eddy-bench load --to 127.0.0.1:7000 --sink 127.0.0.1:7001
    #[command(verbatim_doc_comment)]
    Load(LoadArgs),
    /// Find the highest rate without loss, and what limits it
    ///
    /// Examples:
    ///   eddy-bench capacity
    ///   eddy-bench capacity --mixes 1 --payload-len 200
    ///   eddy-bench capacity --node
    ///
    /// Through a running chain, with the ledger of a node:
    ///   eddy-bench capacity --to 127.0.0.1:7000 --sink 127.0.0.1:7001 \
    ///       --status /run/eddy/mix2.sock
    #[command(verbatim_doc_comment)]
    Capacity(CapacityArgs),
    /// Replay recorded traffic through a chain and directly
    ///
    /// Times, flows and lengths are those of the trace. The contents of its
    /// packets are not sent.
    ///
    /// Examples:
    ///   eddy-bench replay call.pcap
    ///   eddy-bench replay game.out.csv --back game.in.csv --speed 2
    #[command(verbatim_doc_comment)]
    Replay(ReplayArgs),
    /// Measure the processor time of a mix for a cell
    ///
    /// Relays that only move the bytes, without cryptography, are measured on the
    /// same core for comparison.
    ///
    /// Examples:
    ///   eddy-bench hop --rows quick
    ///   eddy-bench hop --rows quick --set 'hugepages = false'
    #[command(verbatim_doc_comment)]
    Hop(HopArgs),
    /// Measure how many channels of a paced class a core carries
    ///
    /// A mix on one core and its neighbours on another exchange a cell of every
    /// channel in every round, both ways, over loopback.
    ///
    /// Examples:
    ///   eddy-bench paced
    ///   eddy-bench paced --class L --channels 500,1000 --spread-ms 0
    ///   eddy-bench paced --position 1 --channels 500
    #[command(verbatim_doc_comment)]
    Paced(PacedArgs),
    /// Measure the load that a whole chain carries on this machine
    Path(PathArgs),
    /// Measure channel setups in both suites
    ///
    /// Processor time of the entry and of a hop, and the time from setup to ack
    /// through three mixes on loopback.
    #[command(verbatim_doc_comment)]
    Setup(SetupArgs),
    /// Run all measurements in rounds and print medians as Markdown
    Performance(PerformanceArgs),
    /// Make an HTML page from the results of the other commands
    ///
    /// The page has tables and plots, and needs no network. Its input is the
    /// NAME.json files of load, replay and capacity, and the output of capacity,
    /// hop and path with --json.
    ///
    /// Example:
    ///   eddy-bench hop --json > hop.json
    ///   eddy-bench report results/*.json hop.json --out report.html
    #[command(verbatim_doc_comment)]
    Report(ReportArgs),
    /// Compare a hop with Sphinx, WireGuard, Noise and plain relays
    ///
    /// The libraries of the others need a feature:
    ///   cargo run --release -p eddy-bench --features peers -- peers
    #[command(verbatim_doc_comment)]
    Peers(PeersArgs),
    /// Record what an adversary on all wires sees, and match users to flows
    ///
    /// A chain and its users run in a network of their own. Packet sockets record
    /// time, wire and length of each datagram: nothing comes from inside a node.
    /// Attackers from the literature then match users to flows, and the table says
    /// how many they find: with mixes that forward at once (off), with --mixing
    /// (default), and in synthetic records that show nothing (ideal). Chance is one
    /// over the number of users. No root is needed where user namespaces are
    /// allowed.
    ///
    /// Examples:
    ///   eddy-bench attack
    ///   eddy-bench attack --profile video --seeds 1 --verbose
    ///   eddy-bench attack --mixing timed:t=50ms --cases default,ideal
    ///   eddy-bench attack --profile constant --loss 0.01:burst=3
    ///   eddy-bench attack --active delay --cases default --attackers volume
    ///
    /// Keep records, and attack them again:
    ///   eddy-bench attack --record records --wf4nym
    ///   eddy-bench attack --from records --attackers likelihood,correlation
    #[command(verbatim_doc_comment)]
    Attack(AttackArgs),
    /// Run stages of a cell's path in memory, for a profiler
    Stage(StageArgs),
}

fn main() -> ExitCode {
    // Measurements start nodes of this build: this program is `eddy`, too.
    if let Some("entry" | "mix" | "exit" | "chain") = std::env::args().nth(1).as_deref() {
        return match eddy::args::Cli::try_parse() {
            Ok(cli) => eddy::commands::run(cli),
            Err(error) => eddy::commands::usage_error(&error),
        };
    }
    let done = match Cli::parse().command {
        Command::Load(args) => load::run(&args),
        Command::Capacity(args) => capacity::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Hop(args) => hop::run(&args),
        Command::Paced(args) => paced::run(&args),
        Command::Path(args) => path::run(&args),
        Command::Setup(args) => setup::run(&args),
        Command::Performance(args) => performance::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Peers(args) => peers::run(&args),
        Command::Attack(args) => attack::run(&args),
        Command::Stage(args) => stages::run(&args),
    };
    let Err(error) = done else { return ExitCode::SUCCESS };
    eprintln!("eddy-bench: {error:#}");
    ExitCode::from(2)
}
