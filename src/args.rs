//! The command line: arguments and their help.
//!
//! `-h` fits a screen of 80 x 24 for every command: options for experts are left out (`hide_short_help`).
//! `--help` has all of them, longer explanations and examples, and so have the manual pages.
//! What the arguments do is in [`crate::commands`], one file per command.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueHint};
use dataplane::exit::policy::Rule;
use dataplane::socket::backend::Io;
use dataplane::socket::offload::Offload;
use dataplane::stage::pool::Mixing;
use wire::cell::Class;

use crate::log::LogArgs;
use crate::version;
use eddy_node::config::{Forward, parse_listen};

const ABOUT: &str = "A mix chain for streaming-grade UDP: voice, video, games, QUIC, WireGuard";

const LONG_ABOUT: &str = "\
A mix chain for streaming-grade UDP: voice, video, games, QUIC, WireGuard.

An application sends datagrams to the ENTRY. They cross one to seven MIXES and
leave at the EXIT; answers return the same way. Mixes hold cells of equal length
for a few milliseconds and release them shuffled, so that no single node sees
both who sends and where to.

    application <-> entry <-> mix 1 <-> ... <-> mix m <-> exit <-> destination";

const EXAMPLES: &str = "\
Examples:
  Run a whole chain on this host and check it:
    eddy chain

  Create a chain, run its nodes, and send UDP through it:
    eddy init demo --mixes 3
    eddy doctor --config demo/mix1.toml
    eddy mix --config demo/mix1.toml
    eddy exit --config demo/exit.toml --allow 127.0.0.0/8
    eddy entry --config demo/entry.toml --forward 127.0.0.1:5000=127.0.0.1:9
    eddy status --config demo/entry.toml
  (mix2 and mix3 like mix1; nodes start in any order)

Environment:
  EDDY_LOG   what nodes log, e.g. debug (see `eddy mix --help`, --log)
  EDDY_AEAD  AEAD engine: wide512, wide256, portable or rustcrypto
             [default: the fastest that this CPU runs]
  NO_COLOR   if set, output has no colour

Exit codes:
  0  success
  1  failure
  2  mistake in a configuration or on the command line";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "eddy", version = version::SHORT, long_version = version::long(), about = ABOUT,
          long_about = LONG_ABOUT, after_long_help = EXAMPLES, max_term_width = 90)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole chain on this host and check it
    Chain(ChainArgs),
    /// Create the files of a chain
    Init(InitArgs),
    /// Run an entry: applications send their datagrams to it
    Entry(EntryArgs),
    /// Run a mix
    Mix(MixArgs),
    /// Run an exit: it exchanges datagrams with the destinations
    Exit(ExitArgs),
    /// Run the node that a configuration describes, whatever its role
    Run(RunArgs),
    /// Add, remove or list the forwards of a running entry
    Forward(ForwardArgs),
    /// Print the state of a running node
    Status(StatusArgs),
    /// Check this host for problems and print fixes
    Doctor(DoctorArgs),
    /// Explain, check or show a node's configuration
    Config(ConfigArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages to a folder
    Man {
        /// The folder; created if it does not exist
        #[arg(value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
}

const INIT_HELP: &str = "\
Examples:
  Three mixes and an exit, all on 127.0.0.1:
    eddy init demo

  Small cells and little delay:
    eddy init voice --class S --mixing timed:t=2ms

  Two mixes and an exit on hosts of their own:
    eddy init real --mixes 2 --node 192.0.2.1 --node 198.51.100.7 \\
        --node 203.0.113.9:4700

chain.toml is public. Copy each NAME.key to the host of its node only.";

/// `eddy init`.
#[derive(Args, Debug)]
#[command(after_long_help = INIT_HELP)]
pub struct InitArgs {
    /// The folder to write to; created if it does not exist
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// Mixes between entry and exit, 1 to 7
    #[arg(long, default_value_t = 3, value_parser = mixes, value_name = "N")]
    pub mixes: usize,
    /// Cell size: S, M or L
    ///
    /// S (208 bytes) suits voice and games, M (1152 bytes) any IPv6 path, L (1328 bytes) QUIC, video and WireGuard.
    #[arg(long, default_value_t = Class::L, ignore_case = true)]
    pub class: Class,
    /// Mixing strategy, e.g. timed:t=5ms
    #[arg(long, default_value_t = Mixing::default(), value_name = "SPEC", hide_default_value = true,
          long_help = mixing_help())]
    pub mixing: Mixing,
    /// Address of all mixes and the exit [default: 127.0.0.1, or ::1 with --ipv6]
    #[arg(long, value_name = "IP")]
    pub host: Option<IpAddr>,
    /// Address of one node, IP or IP:PORT: once per mix, then for the exit
    #[arg(long = "node", value_name = "ADDR", conflicts_with = "host")]
    pub nodes: Vec<String>,
    /// Nodes get ports from the one after this on
    #[arg(long, default_value_t = 4700, value_name = "PORT")]
    pub base_port: u16,
    /// Worker threads of each mix, 1 to 64
    ///
    /// Several cores then share the work of a mix. Each worker has a UDP port of its own, from the mix's port on.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64),
          hide_short_help = true)]
    pub lanes: u8,
    /// Use IPv6 for all links
    #[arg(long)]
    pub ipv6: bool,
    /// Lifetime of a channel in seconds, 60 to 3600
    ///
    /// The same for all users of the chain: a lifetime of one's own would identify its user.
    #[arg(long, default_value_t = eddy_node::config::LIFETIME_S, value_name = "SECONDS",
          value_parser = clap::value_parser!(u16).range(60..=3600), hide_short_help = true)]
    pub lifetime: u16,
    /// Algorithms of channel setups, 1 or 2
    ///
    /// 2 is X25519 with ML-KEM-768, 1 is X25519 alone. The same for the whole chain.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=2),
          hide_short_help = true)]
    pub suite: u8,
    /// Overwrite an existing chain, including its keys
    #[arg(long)]
    pub force: bool,
}

/// Arguments of every node.
#[derive(Args, Debug)]
pub struct NodeArgs {
    /// The node's configuration file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// Segmentation offload (GSO, GRO): auto, on or off [default: from the configuration]
    #[arg(long, value_name = "WHEN", hide_short_help = true)]
    pub offload: Option<Offload>,
    /// System calls of link sockets: auto, mmsg or uring [default: from the configuration]
    #[arg(long, value_name = "HOW", hide_short_help = true)]
    pub io: Option<Io>,
    /// Key file, if not the configured one
    ///
    /// For example a credential that systemd passes: --keys %d/eddy.key
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub keys: Option<PathBuf>,
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
The node runs until SIGTERM or Ctrl-C and then prints its counters.

It takes over bound sockets that systemd passes (LISTEN_FDS), in this order:
  entry  down, forwards, pymix, socks
  mix    up (one per lane), down
  exit   up";

const ENTRY_HELP: &str = "\
Examples:
  Carry a game that runs on 192.0.2.7:
    eddy entry --config demo/entry.toml --forward 127.0.0.1:5000=192.0.2.7:5000

  Serve SOCKS5 clients of this host:
    eddy entry --config demo/entry.toml --socks 127.0.0.1:1080

";

/// `eddy entry`.
#[derive(Args, Debug)]
#[command(after_long_help = format!("{ENTRY_HELP}{NODE_HELP}"))]
pub struct EntryArgs {
    #[command(flatten)]
    pub node: NodeArgs,
    /// Forward LISTEN to DEST (repeatable)
    ///
    /// Like `ssh -L`, for UDP. LISTEN is IP:PORT or PORT, DEST is HOST:PORT; the exit resolves a name. With `,idle_s=SECONDS` at the end,
    /// a flow without traffic from the client is closed after that time.
    #[arg(long = "forward", value_name = "LISTEN=DEST", help_heading = "Listeners")]
    pub forwards: Vec<Forward>,
    /// Serve SOCKS5 clients at LISTEN (repeatable)
    ///
    /// Clients of other hosts need a name and password from `socks_users` in the key file.
    #[arg(long, value_name = "LISTEN", value_parser = parse_listen, help_heading = "Listeners")]
    pub socks: Vec<SocketAddr>,
    /// Listen for PyMix clients, whose datagrams begin with their destination (repeatable)
    #[arg(long, value_name = "LISTEN", value_parser = parse_listen, hide_short_help = true, help_heading = "Listeners")]
    pub pymix: Vec<SocketAddr>,
}

/// `eddy mix`.
#[derive(Args, Debug)]
#[command(after_long_help = NODE_HELP)]
pub struct MixArgs {
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `eddy exit`.
#[derive(Args, Debug)]
#[command(after_long_help = NODE_HELP)]
pub struct ExitArgs {
    #[command(flatten)]
    pub node: NodeArgs,
    /// Allow a private network (repeatable)
    ///
    /// The exit refuses private, loopback and link-local destinations unless they are listed here or in the
    /// configuration. CIDR is IP or IP/BITS, and :PORT or :PORT-PORT limits it to these ports, e.g. 10.0.0.0/8:5000-5999.
    #[arg(long = "allow", value_name = "CIDR", help_heading = "Policy")]
    pub allow: Vec<Rule>,
    /// Deny a network (repeatable)
    ///
    /// The narrowest --allow or --deny that contains a destination decides.
    #[arg(long = "deny", value_name = "CIDR", help_heading = "Policy")]
    pub deny: Vec<Rule>,
}

/// `eddy run`.
#[derive(Args, Debug)]
#[command(after_long_help = NODE_HELP)]
pub struct RunArgs {
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `eddy status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// The configuration of the running node
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

The entry must be running and have a command socket (`commands` in its
configuration; `eddy init` writes it). Forwards added here last until the entry
ends. To keep one, add it to the configuration.";

/// `eddy forward`.
#[derive(Args, Debug)]
#[command(after_long_help = FORWARD_HELP)]
pub struct ForwardArgs {
    #[command(subcommand)]
    pub action: ForwardAction,
}

#[derive(Debug, Subcommand)]
pub enum ForwardAction {
    /// Add forwards
    Add {
        /// The configuration of the running entry
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        config: PathBuf,
        /// As for `eddy entry --forward`; port 0 picks a free one
        #[arg(value_name = "LISTEN=DEST", required = true)]
        forwards: Vec<Forward>,
    },
    /// Remove forwards and close their flows
    Remove {
        /// The configuration of the running entry
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        config: PathBuf,
        /// The address of the forward at the entry
        #[arg(value_name = "LISTEN", value_parser = parse_listen, required = true)]
        listen: Vec<SocketAddr>,
    },
    /// Print all forwards
    List {
        /// The configuration of the running entry
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        config: PathBuf,
        /// Print one line of JSON
        #[arg(long)]
        json: bool,
    },
}

const CONFIG_HELP: &str = "\
Examples:
  List all keys, or explain one:
    eddy config explain
    eddy config explain mixing

  Check a node's files as its start would, without opening sockets:
    eddy config check demo/mix1.toml

  Print the configuration in effect, with defaults:
    eddy config show demo/mix1.toml

Exit codes:
  0  no mistake
  2  mistake in a file or on the command line";

/// `eddy config`.
#[derive(Args, Debug)]
#[command(after_long_help = CONFIG_HELP)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub action: ConfigAction,
}

#[derive(Debug, Subcommand)]
pub enum ConfigAction {
    /// Explain the keys of all files
    Explain {
        /// A key [default: list all]
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
        /// Print one line of JSON
        #[arg(long)]
        json: bool,
    },
}

const DOCTOR_HELP: &str = "\
Examples:
  Check this host for `eddy chain`:
    eddy doctor

  Check this host for one node, and write its fixes to a script:
    eddy doctor --config demo/mix1.toml
    eddy doctor --config demo/mix1.toml --fix-script > fix.sh

The doctor changes nothing. Severities:
  error    the node does not start, or does not work
  warning  the node runs, slower or with losses under load
  note     worth knowing (only with --verbose)

Exit codes:
  0  no errors
  1  errors found
  2  mistake in a configuration or on the command line";

/// `eddy doctor`.
#[derive(Args, Debug)]
#[command(after_long_help = DOCTOR_HELP)]
pub struct DoctorArgs {
    /// The configuration of a node that runs on this host [default: the nodes of `eddy chain`]
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
  Send 10 messages to 5 receivers through 3 mixes:
    eddy chain

  Other chains, other traffic:
    eddy chain --mixes 7 --class S --mixing threshold:n=5
    eddy chain --receivers 100 --rate 2000 --seconds 10 --payload-len 1000

  Keep the chain running, with a forward or for SOCKS5 clients:
    eddy chain --stay --forward 5000=127.0.0.1:9
    eddy chain --stay --socks 1080

Exit codes:
  0  every message was delivered and answered, and every ledger closes
  1  messages were lost, or a node failed
  2  mistake on the command line";

/// `eddy chain`.
#[derive(Args, Debug)]
#[command(after_long_help = CHAIN_HELP)]
pub struct ChainArgs {
    /// Number of mixes, 1 to 7
    #[arg(long, default_value_t = 3, value_parser = mixes, value_name = "N")]
    pub mixes: usize,
    /// Cell size: S, M or L
    #[arg(long, default_value_t = Class::L, ignore_case = true)]
    pub class: Class,
    /// Mixing strategy, e.g. timed:t=5ms
    #[arg(long, default_value_t = Mixing::default(), value_name = "SPEC", hide_default_value = true,
          long_help = mixing_help())]
    pub mixing: Mixing,
    /// Worker threads of each mix, 1 to 64
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64),
          hide_short_help = true)]
    pub lanes: u8,
    /// Channels that the entry keeps open
    #[arg(long, default_value_t = eddy_node::config::CHANNELS, value_parser = channels, value_name = "N",
          hide_short_help = true)]
    pub channels: usize,
    /// Use IPv6 for links and applications
    #[arg(long, hide_short_help = true)]
    pub ipv6: bool,
    /// Number of receivers, 1 to 256
    ///
    /// Each has a forward and a client of its own.
    #[arg(long, default_value_t = 5, value_parser = receivers, value_name = "N")]
    pub receivers: usize,
    /// Number of messages
    ///
    /// Each goes to a random receiver.
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub messages: u64,
    /// Messages per second [default: 50]
    #[arg(long, value_name = "R", value_parser = rate)]
    pub rate: Option<f64>,
    /// Send for this long instead of --messages
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub seconds: Option<f64>,
    /// Length of each message instead of "Hello"
    ///
    /// Receivers echo such messages; they answer "Hello" with "Got Message. Thanks!".
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(0..=65_507))]
    pub payload_len: Option<u32>,
    /// Keep the chain running until Ctrl-C
    #[arg(long)]
    pub stay: bool,
    /// Add a forward at the entry (repeatable)
    ///
    /// LISTEN is IP:PORT or PORT, DEST is HOST:PORT.
    #[arg(long = "forward", value_name = "LISTEN=DEST")]
    pub forwards: Vec<Forward>,
    /// Serve SOCKS5 clients of this host
    #[arg(long, value_name = "LISTEN", value_parser = parse_listen)]
    pub socks: Vec<SocketAddr>,
    /// Have the entry listen for PyMix clients (repeatable)
    #[arg(long, value_name = "LISTEN", value_parser = parse_listen, hide_short_help = true)]
    pub pymix: Vec<SocketAddr>,
    /// Allow a private network as destination; loopback is allowed (repeatable)
    #[arg(long = "allow", value_name = "CIDR", hide_short_help = true)]
    pub allow: Vec<Rule>,
    /// Deny a network as destination; the narrowest --allow or --deny decides (repeatable)
    #[arg(long = "deny", value_name = "CIDR", hide_short_help = true)]
    pub deny: Vec<Rule>,
    /// Name server of the exit [default: the system's]
    #[arg(long, value_name = "ADDR", hide_short_help = true)]
    pub resolver: Option<SocketAddr>,
    /// Renew the keys of links after this many seconds
    #[arg(long, default_value_t = eddy_node::config::RENEW_AFTER_S, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3600), hide_short_help = true)]
    pub renew_after_s: u64,
    /// Segmentation offload (GSO, GRO): auto, on or off
    #[arg(long, default_value_t = Offload::Auto, value_name = "WHEN", hide_short_help = true)]
    pub offload: Offload,
    /// System calls of link sockets: auto, mmsg or uring
    #[arg(long, default_value_t = Io::Auto, value_name = "HOW", hide_short_help = true)]
    pub io: Io,
    /// Print one JSON object as the last line
    #[arg(long, conflicts_with = "verbose")]
    pub json: bool,
    /// Print every counter of every node
    #[arg(long, short)]
    pub verbose: bool,
    /// End when standard input closes, too
    #[arg(long, hide = true)]
    pub lifeline: bool,
}

impl Cli {
    /// The command's own description, for completions and manual pages.
    pub fn description() -> clap::Command {
        Cli::command()
    }
}

/// The strategies and the default.
fn mixing_help() -> String {
    format!(
        "Mixing strategy:\n\
         - threshold:n=64 releases as soon as 64 cells wait\n\
         - timed:t=5ms releases every 5 ms\n\
         - threshold-or-timed:n=64,t=5ms releases at the earlier of both\n\n\
         [default: {}]",
        Mixing::default()
    )
}

fn count(text: &str, range: std::ops::RangeInclusive<usize>, what: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| range.contains(n));
    number.ok_or_else(|| format!("{what} {} to {}", range.start(), range.end()))
}

fn mixes(text: &str) -> Result<usize, String> {
    count(text, 1..=7, "expected")
}

fn receivers(text: &str) -> Result<usize, String> {
    count(text, 1..=256, "expected")
}

fn channels(text: &str) -> Result<usize, String> {
    count(text, 1..=256, "expected")
}

fn rate(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|r: &f64| (0.01..=1e6).contains(r));
    number.ok_or_else(|| "expected 0.01 to 1000000 messages per second".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|s: &f64| (0.01..=86_400.0).contains(s));
    number.ok_or_else(|| "expected 0.01 to 86400 seconds".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Checks the help of a command and of its subcommands: `-h` or `--help`.
    fn check(mut command: clap::Command, long: bool, most_lines: usize) {
        let text = if long { command.render_long_help() } else { command.render_help() }.to_string();
        let name = command.get_name();
        assert!(text.lines().count() <= most_lines, "{name}: {} lines\n{text}", text.lines().count());
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{name}: {line}");
        }
        for subcommand in command.get_subcommands() {
            check(subcommand.clone().term_width(80), long, most_lines);
        }
    }

    #[test]
    fn short_help_fits_80x24() {
        check(Cli::command().term_width(80), false, 24);
    }

    #[test]
    fn long_help_fits_80_columns() {
        check(Cli::command().term_width(80), true, 150);
    }
}
