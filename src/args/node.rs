//! Arguments of the commands that run one node.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand, ValueHint};
use dataplane::exit::policy::Rule;
use dataplane::socket::backend::Io;
use dataplane::socket::offload::Offload;
use eddy_node::config::{Forward, parse_listen};

use crate::log::LogArgs;

/// Arguments of a mix, an exit, or a node of any role.
#[derive(Args, Debug)]
pub struct NodeArgs {
    /// The node's configuration file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// Key file, if not the configured one
    ///
    /// For example a credential that systemd passes: --keys %d/eddy.key. At an entry, the file of its SOCKS users.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub keys: Option<PathBuf>,
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// Arguments of every node.
#[derive(Args, Debug)]
pub struct ProcessArgs {
    /// Segmentation offload (GSO, GRO): auto, on or off [default: from the configuration]
    #[arg(long, value_name = "WHEN", hide_short_help = true)]
    pub offload: Option<Offload>,
    /// System calls of link sockets: auto, mmsg or uring [default: from the configuration]
    #[arg(long, value_name = "HOW", hide_short_help = true)]
    pub io: Option<Io>,
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
The node runs until SIGTERM or Ctrl-C and then prints its counters. SIGHUP has
it read chain.toml, the *.desc files next to it, its key files and the secret of
a meeting again.

systemd can pass all of its sockets, already bound (LISTEN_FDS), in this order:
  entry  down, forwards, pymix, socks
  mix    up, down; with --lanes N first N sockets for up
  exit   up";

const ENTRY_HELP: &str = "\
Examples:
  Enter a chain with nothing but its public file, and carry a game:
    eddy entry --chain chain.toml --forward 5000=192.0.2.7:5000

  Carry a game that runs on 192.0.2.7:
    eddy entry --config demo/entry.toml --forward 127.0.0.1:5000=192.0.2.7:5000

  Serve SOCKS5 clients of this host:
    eddy entry --config demo/entry.toml --socks 127.0.0.1:1080

";

/// `eddy entry`.
#[derive(Args, Debug)]
#[command(after_long_help = format!("{ENTRY_HELP}{NODE_HELP}"),
          group = ArgGroup::new("file").required(true).args(["chain", "config"]))]
pub struct EntryArgs {
    /// The entry's configuration file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// The chain's public file: enough for an entry without a configuration
    ///
    /// The newest descriptors of the chain are kept in a file next to it, chain.state.
    #[arg(long, value_name = "chain.toml", value_hint = ValueHint::FilePath)]
    pub chain: Option<PathBuf>,
    /// With --chain: Unix socket for `eddy status --socket`
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, hide_short_help = true)]
    pub status: Option<PathBuf>,
    #[command(flatten)]
    pub process: ProcessArgs,
    /// Forward LISTEN to DEST (repeatable)
    ///
    /// Like `ssh -L`, for UDP. LISTEN is IP:PORT or PORT, DEST is HOST:PORT; the exit resolves a name. DEST may be
    /// meet:@FILE, the user with the same secret (`eddy meet new`), in a paced class: those who watch all links do
    /// not find the other end among the channels of a batch, which are n_min or more (8, unless the chain has another
    /// number). Of a call to HOST:PORT, even in a paced class, outages show outside. With `,idle_s=SECONDS` at the
    /// end, a flow without traffic from the client is closed after that time; with `,max_age_ms=MILLISECONDS`,
    /// datagrams that have waited for longer at the entry are dropped; with `,class=NAME` they travel in cells of
    /// another class of the chain than its first.
    #[arg(long = "forward", value_name = "LISTEN=DEST", help_heading = "Listeners")]
    pub forwards: Vec<Forward>,
    /// Serve SOCKS5 clients at LISTEN (repeatable)
    ///
    /// Clients of other hosts need a name and password from the file that `socks_users` names.
    #[arg(long, value_name = "LISTEN", value_parser = parse_listen, help_heading = "Listeners")]
    pub socks: Vec<SocketAddr>,
    /// Listen for PyMix clients, whose datagrams begin with their destination (repeatable)
    #[arg(long, value_name = "LISTEN", value_parser = parse_listen, hide_short_help = true, help_heading = "Listeners")]
    pub pymix: Vec<SocketAddr>,
}

pub const MEET_HELP: &str = "\
Examples:
  One user makes the secret, and gives it to the other on a safe way:
    eddy meet new --out call.secret

  Both name it in place of a destination, in a paced class of the chain:
    eddy entry --chain chain.toml --forward 5000=meet:@call.secret,class=voice

Each then has a local UDP port at which the other one answers: for a call, a
game, or WireGuard. Whoever watches all links and the exit sees that both are
online. Within a batch they do not see who of its users meets whom, if one mix
is honest: it has n_min of them or more (8, unless the chain has another
number), and among two there is nothing to hide. Over batches they compare who
is online with how many pairs there are: keep the entry running, not for the
call alone. Whoever gets the secret later can read what was recorded: use SRTP
or WireGuard inside.";

/// `eddy meet`.
#[derive(Args, Debug)]
#[command(after_long_help = MEET_HELP)]
pub struct MeetArgs {
    #[command(subcommand)]
    pub action: MeetAction,
}

#[derive(Debug, Subcommand)]
pub enum MeetAction {
    /// Make the secret of a meeting
    New(MeetNewArgs),
}

const MEET_NEW_HELP: &str = "\
Examples:
  A secret for two users, in a file that only its owner may read:
    eddy meet new --out call.secret

  The same for a third person, who gets another one:
    eddy meet new --out call-bob.secret";

/// `eddy meet new`.
#[derive(Args, Debug)]
#[command(after_long_help = MEET_NEW_HELP)]
pub struct MeetNewArgs {
    /// A new file for it, which only its owner may read [default: standard output]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub out: Option<PathBuf>,
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
    /// configuration. CIDR is IP or IP/BITS, and :PORT or :PORT-PORT limits it to these ports, e.g.
    /// 10.0.0.0/8:5000-5999.
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
