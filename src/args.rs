//! The command line: what can be said, and the help that teaches it.
//!
//! Owns arguments and their texts. What they do is in [`crate::commands`], one file per command.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueHint};
use dataplane::exit::policy::Rule;
use dataplane::io::calls::Io;
use dataplane::io::offload::Offload;
use dataplane::pool::Mixing;
use wire::cell::Class;

use crate::log::LogArgs;
use eddy_node::config::{Forward, parse_listen};

const ABOUT: &str = "A mix chain for streaming-grade UDP: voice, video, games, QUIC, WireGuard";

const LONG_ABOUT: &str = "\
A mix chain for streaming-grade UDP: voice, video, games, QUIC, WireGuard.

Datagrams that an application sends to the ENTRY cross one to seven MIXES, which hold cells of equal \
length for a few milliseconds and release them shuffled, and leave at the EXIT. Answers come back the \
same way. Nobody on the path sees both who sends and where to.

    application <-> entry <-> mix 1 <-> ... <-> mix m <-> exit <-> destination";

const EXAMPLES: &str = "\
Try it on this host, nothing to prepare:
    eddy chain

Make a chain, then run each of its nodes, and send UDP through it:
    eddy init demo --mixes 3
    eddy doctor --config demo/mix1.toml     (what this host lacks for it)
    eddy mix --config demo/mix1.toml        (mix2, mix3 likewise, in any order)
    eddy exit --config demo/exit.toml --allow 127.0.0.0/8
    eddy entry --config demo/entry.toml --forward 127.0.0.1:5000=127.0.0.1:9
    eddy status --config demo/entry.toml

Environment:
    EDDY_LOG     what a node logs, e.g. debug or info,eddy_node=debug (see `eddy mix --help`)
    EDDY_AEAD    the AEAD engine instead of the fastest: wide512, wide256, portable or rustcrypto
    NO_COLOR     if it is set, log lines have no colour

Exit codes: 0 done, 1 failed, 2 a mistake in a configuration or on the command line.";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "eddy", version, about = ABOUT, long_about = LONG_ABOUT, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a chain: its public file, and a configuration and a key file per node
    Init(InitArgs),
    /// Run an entry: the user's end of a chain
    Entry(EntryArgs),
    /// Run a mix
    Mix(MixArgs),
    /// Run an exit: the end of a chain that talks to destinations
    Exit(ExitArgs),
    /// Run the node that a configuration describes, whatever its role (for supervisors)
    Run(RunArgs),
    /// Ask a running node for its ledger
    Status(StatusArgs),
    /// Add, remove or list the forwards of a running entry
    Forward(ForwardArgs),
    /// Look at this host with a node's eyes: what costs speed or keeps it from working, and what mends it
    Doctor(DoctorArgs),
    /// Try a whole chain on this host, as separate processes, and account for every packet
    Chain(ChainArgs),
    /// Explain, check or show a node's configuration
    Config(ConfigArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages
    Man {
        /// The folder to write them to
        #[arg(value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
}

const INIT_HELP: &str = "\
Examples:
    eddy init demo                                       three mixes and an exit on 127.0.0.1
    eddy init voice --class S --mixing timed:t=2ms       small cells, little delay
    eddy init real --mixes 2 --node 192.0.2.1 --node 198.51.100.7 --node 203.0.113.9:4700

chain.toml is public. Each NAME.key belongs on the host of its node and nowhere else.";

/// `eddy init`.
#[derive(Args, Debug)]
#[command(after_help = INIT_HELP)]
pub struct InitArgs {
    /// The folder to write to; made if it does not exist
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// Mixes between entry and exit, 1 to 7
    #[arg(long, default_value_t = 3, value_parser = mixes, value_name = "N")]
    pub mixes: usize,
    /// Size of cells: S (208 bytes: voice, games), M (1152: any IPv6 path), L (1328: QUIC, video, WireGuard)
    #[arg(long, default_value_t = Class::L, ignore_case = true)]
    pub class: Class,
    /// What mixes do: threshold:n=64, timed:t=5ms or threshold-or-timed:n=64,t=5ms
    #[arg(long, default_value_t = Mixing::default(), value_name = "NAME:KEY=VALUE,...")]
    pub mixing: Mixing,
    /// Where all mixes and the exit run, unless --node says otherwise [default: 127.0.0.1, or ::1 with --ipv6]
    #[arg(long, value_name = "IP")]
    pub host: Option<IpAddr>,
    /// Where one node runs, IP or IP:PORT: once for each mix, then for the exit
    #[arg(long = "node", value_name = "ADDR", conflicts_with = "host")]
    pub nodes: Vec<String>,
    /// Ports are counted from here: Mix 1 has the next one, or the next ones
    #[arg(long, default_value_t = 4700, value_name = "PORT")]
    pub base_port: u16,
    /// Lanes of each mix: so many ports from its own on, and a worker for each, so that several cores share the work
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub lanes: u8,
    /// All links over IPv6
    #[arg(long)]
    pub ipv6: bool,
    /// Lifetime of a channel in seconds, 60 to 3600; the same for everyone, or it would be a label
    #[arg(long, default_value_t = eddy_node::config::LIFETIME_S, value_name = "SECONDS",
          value_parser = clap::value_parser!(u16).range(60..=3600))]
    pub lifetime: u16,
    /// Overwrite a chain that is there, keys and all
    #[arg(long)]
    pub force: bool,
}

/// What all nodes take.
#[derive(Args, Debug)]
pub struct NodeArgs {
    /// The node's configuration, as `eddy init` writes it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// Use GSO and GRO for cells: auto, on or off; instead of what the configuration says
    #[arg(long, value_name = "WHEN")]
    pub offload: Option<Offload>,
    /// How cells get into the kernel: auto, mmsg or uring; instead of what the configuration says
    #[arg(long, value_name = "HOW")]
    pub io: Option<Io>,
    /// The key file, instead of what the configuration says: a credential that systemd passes, for example
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub keys: Option<PathBuf>,
    /// The log.
    #[command(flatten)]
    pub log: LogArgs,
    /// End when standard input closes, too
    #[arg(long, hide = true)]
    pub lifeline: bool,
    /// Print the final report as a line of JSON
    #[arg(long, hide = true)]
    pub report_json: bool,
}

const NODE_HELP: &str = "\
Ends on SIGTERM or Ctrl-C, and prints where every packet went.
Sockets bound outside (systemd, LISTEN_FDS) are taken over, in this order: \
mix: up (one for each lane), down; entry: down, forwards, pymix, socks; exit: up.";

/// `eddy entry`.
#[derive(Args, Debug)]
#[command(after_help = NODE_HELP)]
pub struct EntryArgs {
    /// What all nodes take.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Send what arrives at LISTEN to DEST, like `ssh -L` for UDP: IP:PORT=HOST:PORT; a name is resolved
    /// at the exit. With `,idle_s=SECONDS` behind it, flows that have sent nothing for so long are closed (repeatable)
    #[arg(long = "forward", value_name = "LISTEN=DEST")]
    pub forwards: Vec<Forward>,
    /// Listen for PyMix clients, whose datagrams begin with their destination (repeatable)
    #[arg(long, value_name = "LISTEN", value_parser = parse_listen)]
    pub pymix: Vec<SocketAddr>,
    /// Serve SOCKS5 clients, for UDP (repeatable); beyond loopback only those in `socks_users` of the key file
    #[arg(long, value_name = "LISTEN", value_parser = parse_listen)]
    pub socks: Vec<SocketAddr>,
}

/// `eddy mix`.
#[derive(Args, Debug)]
#[command(after_help = NODE_HELP)]
pub struct MixArgs {
    /// What all nodes take.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `eddy exit`.
#[derive(Args, Debug)]
#[command(after_help = NODE_HELP)]
pub struct ExitArgs {
    /// What all nodes take.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Let traffic reach this network although it is private, loopback or this host's own; with :PORT or
    /// :PORT-PORT behind it these ports alone (repeatable)
    #[arg(long = "allow", value_name = "CIDR")]
    pub allow: Vec<Rule>,
    /// Let no traffic reach this network, or ports of it; the narrowest of all --allow and --deny decides (repeatable)
    #[arg(long = "deny", value_name = "CIDR")]
    pub deny: Vec<Rule>,
}

/// `eddy run`.
#[derive(Args, Debug)]
#[command(after_help = NODE_HELP)]
pub struct RunArgs {
    /// What all nodes take.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `eddy status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// The configuration that the node runs with
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// Print one line of JSON
    #[arg(long, conflicts_with = "verbose")]
    pub json: bool,
    /// Print every counter, in tables of up to 100 columns
    #[arg(long, short)]
    pub verbose: bool,
}

const FORWARD_HELP: &str = "\
Examples:
    eddy forward add --config demo/entry.toml 127.0.0.1:5000=192.0.2.7:5000
    eddy forward add --config demo/entry.toml 127.0.0.1:0=dns.example:53,idle_s=30
    eddy forward list --config demo/entry.toml
    eddy forward remove --config demo/entry.toml 127.0.0.1:5000

The entry must run, and its configuration name a command socket (`commands`), as `eddy init` writes it. What is
added so is gone with the entry; what is to stay belongs in the configuration.";

/// `eddy forward`.
#[derive(Args, Debug)]
#[command(after_help = FORWARD_HELP)]
pub struct ForwardArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: ForwardAction,
}

/// What to do with forwards.
#[derive(Debug, Subcommand)]
pub enum ForwardAction {
    /// Listen at more ports
    Add {
        /// The configuration that the entry runs with
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        config: PathBuf,
        /// As for `eddy entry --forward`; port 0 takes one that is free
        #[arg(value_name = "LISTEN=DEST", required = true)]
        forwards: Vec<Forward>,
    },
    /// Close ports, and their flows
    Remove {
        /// The configuration that the entry runs with
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        config: PathBuf,
        /// Where it listens
        #[arg(value_name = "LISTEN", value_parser = parse_listen, required = true)]
        listen: Vec<SocketAddr>,
    },
    /// Print all forwards
    List {
        /// The configuration that the entry runs with
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        config: PathBuf,
        /// Print a line of JSON instead of a table
        #[arg(long)]
        json: bool,
    },
}

const CONFIG_HELP: &str = "\
Examples:
    eddy config explain                       all keys
    eddy config explain mixing                one key: values, default, example
    eddy config check demo/mix1.toml          all that a start checks, without opening sockets
    eddy config show demo/mix1.toml           the configuration in effect, with defaults

Exit codes: 0 no mistake, 2 a mistake.";

/// `eddy config`.
#[derive(Args, Debug)]
#[command(after_help = CONFIG_HELP)]
pub struct ConfigArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: ConfigAction,
}

/// What to do with a configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigAction {
    /// Explain the keys of all files
    Explain {
        /// One key; without it all are listed
        key: Option<String>,
    },
    /// Check a node's configuration, its chain file and its key file
    Check {
        /// The node's configuration
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// The key file, instead of the one in the configuration
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        keys: Option<PathBuf>,
    },
    /// Print a node's configuration with all defaults
    Show {
        /// The node's configuration
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Print a line of JSON
        #[arg(long)]
        json: bool,
    },
}

const DOCTOR_HELP: &str = "\
Examples:
    eddy doctor                                          this host for `eddy chain`
    eddy doctor --config mychain/mix1.toml               this host for that node
    eddy doctor --config mychain/mix1.toml --fix-script > fix.sh

It changes nothing. Severities: ok; note: worth knowing; costs: speed, or losses under load; broken: \
the node would not start, or not work.
Exit codes: 0 nothing is broken, 1 something is, 2 a mistake in a configuration or on the command line.";

/// `eddy doctor`.
#[derive(Args, Debug)]
#[command(after_help = DOCTOR_HELP)]
pub struct DoctorArgs {
    /// The configuration of the node that is to run here; without it, what `eddy chain` asks of a host
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Print one line of JSON
    #[arg(long, conflicts_with_all = ["fix_script", "verbose"])]
    pub json: bool,
    /// Print all fixes as a shell script, each with its undo
    #[arg(long, conflicts_with = "verbose")]
    pub fix_script: bool,
    /// Print every check, with effects and undo commands
    #[arg(long, short)]
    pub verbose: bool,
}

const CHAIN_HELP: &str = "\
Examples:
    eddy chain                                        10 x \"Hello\" to 5 receivers through 3 mixes
    eddy chain --mixes 7 --class S --mixing threshold:n=5
    eddy chain --receivers 100 --rate 2000 --seconds 10 --payload-len 1000
    eddy chain --stay --forward 5000=127.0.0.1:9      a chain to play with, until Ctrl-C
    eddy chain --stay --socks 1080                    the same for SOCKS5 clients, with UDP

Ends with 0 only if every message was delivered and answered and every ledger closes.";

/// `eddy chain`.
#[derive(Args, Debug)]
#[command(after_help = CHAIN_HELP)]
pub struct ChainArgs {
    /// Mixes between entry and exit, 1 to 7
    #[arg(long, default_value_t = 3, value_parser = mixes, value_name = "N")]
    pub mixes: usize,
    /// Size of cells: S, M or L
    #[arg(long, default_value_t = Class::L, ignore_case = true)]
    pub class: Class,
    /// What mixes do: threshold:n=64, timed:t=5ms or threshold-or-timed:n=64,t=5ms
    #[arg(long, default_value_t = Mixing::default(), value_name = "NAME:KEY=VALUE,...")]
    pub mixing: Mixing,
    /// Lanes of each mix: so many ports and workers
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub lanes: u8,
    /// Channels that the entry keeps up
    #[arg(long, default_value_t = eddy_node::config::CHANNELS, value_parser = channels, value_name = "N")]
    pub channels: usize,
    /// Receivers, each with a forward and a client socket of its own, 1 to 256
    #[arg(long, default_value_t = 5, value_parser = receivers, value_name = "N")]
    pub receivers: usize,
    /// Messages to send, each to a receiver chosen at random
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub messages: u64,
    /// Messages per second
    #[arg(long, value_name = "R", value_parser = rate)]
    pub rate: Option<f64>,
    /// Send for so many seconds; overrides --messages
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub seconds: Option<f64>,
    /// Length of a message in bytes instead of "Hello"; the receiver sends it back as it is
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(0..=65_507))]
    pub payload_len: Option<u32>,
    /// Links and applications over IPv6
    #[arg(long)]
    pub ipv6: bool,
    /// Renew the links' keys after so many seconds
    #[arg(long, default_value_t = eddy_node::config::RENEW_AFTER_S, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub renew_after_s: u64,
    /// Use GSO and GRO for cells: auto, on or off
    #[arg(long, default_value_t = Offload::Auto, value_name = "WHEN")]
    pub offload: Offload,
    /// How cells get into the kernel: auto, mmsg or uring
    #[arg(long, default_value_t = Io::Auto, value_name = "HOW")]
    pub io: Io,
    /// Print one JSON object as the last line
    #[arg(long, conflicts_with = "verbose")]
    pub json: bool,
    /// Print every counter of every node, in tables of up to 100 columns
    #[arg(long, short)]
    pub verbose: bool,
    /// Keep the chain running until Ctrl-C, and print the entry's addresses
    #[arg(long)]
    pub stay: bool,
    /// End when standard input closes, too
    #[arg(long, hide = true)]
    pub lifeline: bool,
    /// Have the entry listen for PyMix clients (repeatable)
    #[arg(long, value_name = "LISTEN", value_parser = parse_listen)]
    pub pymix: Vec<SocketAddr>,
    /// Have the entry serve SOCKS5 clients, for UDP (repeatable; loopback only)
    #[arg(long, value_name = "LISTEN", value_parser = parse_listen)]
    pub socks: Vec<SocketAddr>,
    /// Have the entry send what arrives at LISTEN to DEST (repeatable)
    #[arg(long = "forward", value_name = "LISTEN=DEST")]
    pub forwards: Vec<Forward>,
    /// Let the exit resolve names there, instead of where the system does
    #[arg(long, value_name = "ADDR")]
    pub resolver: Option<SocketAddr>,
    /// Let the exit reach this network, too; loopback it may reach already (repeatable)
    #[arg(long = "allow", value_name = "CIDR")]
    pub allow: Vec<Rule>,
    /// Keep the exit from this network; the narrowest of all --allow and --deny decides (repeatable)
    #[arg(long = "deny", value_name = "CIDR")]
    pub deny: Vec<Rule>,
}

impl Cli {
    /// The command's own description, for completions and manual pages.
    pub fn description() -> clap::Command {
        Cli::command()
    }
}

fn count(text: &str, range: std::ops::RangeInclusive<usize>, what: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| range.contains(n));
    number.ok_or_else(|| format!("{what} {} to {}", range.start(), range.end()))
}

fn mixes(text: &str) -> Result<usize, String> {
    count(text, 1..=7, "a chain has")
}

fn receivers(text: &str) -> Result<usize, String> {
    count(text, 1..=256, "take")
}

fn channels(text: &str) -> Result<usize, String> {
    count(text, 1..=256, "take")
}

fn rate(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|r: &f64| (0.01..=1e6).contains(r));
    number.ok_or_else(|| "take 0.01 to 1000000 messages per second".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|s: &f64| (0.01..=86_400.0).contains(s));
    number.ok_or_else(|| "take 0.01 to 86400 seconds".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
