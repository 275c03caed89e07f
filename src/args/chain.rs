//! Arguments of the commands that create a whole chain.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueHint};
use dataplane::exit::policy::Rule;
use dataplane::socket::backend::Io;
use dataplane::socket::offload::Offload;
use dataplane::stage::pool::Mixing;
use eddy_node::ceremony::profile::ClassChoice;
use eddy_node::config::{Forward, LIFETIME_S, RENEW_AFTER_S, parse_listen};
use wire::cell::Class;
use wire::paced::PacedTerms;

use super::class::ClassParser;
use crate::log::LogArgs;

/// The shape of a new chain, for `eddy init` and `eddy chain`.
#[derive(Args, Debug)]
pub struct ShapeArgs {
    /// Mixes between entry and exit, 1 to 7
    #[arg(long, default_value_t = 3, value_parser = mixes, value_name = "N")]
    pub mixes: usize,
    /// Mixing strategy, e.g. timed:t=5ms
    #[arg(long, default_value_t = Mixing::default(), value_name = "SPEC", hide_default_value = true,
          long_help = mixing_help())]
    pub mixing: Mixing,
    /// Worker threads of each mix, 1 to 64
    ///
    /// Several cores then share the work of a mix. Each worker has a UDP port of its own, from the mix's port on.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64),
          hide_short_help = true)]
    pub lanes: u8,
}

const INIT_HELP: &str = "\
Examples:
  Three mixes and an exit, all on 127.0.0.1:
    eddy init demo

  Small cells and little delay:
    eddy init small --class S --mixing timed:t=2ms

  Calls between users of which nobody sees who talks to whom, and the rest in L:
    eddy init calls --class L --class voice:n_min=4,steps_ms=2

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
    #[command(flatten)]
    pub shape: ShapeArgs,
    /// Class: S, M or L, and paced ones: voice, voice-lite, game or video (repeatable) [default: L]
    ///
    /// S suits small datagrams (203 bytes per cell), M links of MTU 1280 (1147 bytes), L WireGuard, QUIC and video
    /// (1323 bytes). Longer datagrams take up to 8 cells. A chain has one of them, L unless another is named, and each
    /// size once paced. Calls between users that an observer of both ends must not match need a paced class.
    /// PROFILE:KEY=VALUE,... changes one, as for `eddy assemble`. A node has a port for each paced class, in the order
    /// of their sizes, after the ports of its lanes.
    #[arg(long = "class", value_name = "CLASS", value_parser = ClassParser::<ClassChoice>::new(),
          hide_possible_values = true)]
    pub classes: Vec<ClassChoice>,
    /// Address of all mixes and the exit [default: 127.0.0.1, or ::1 with --ipv6]
    #[arg(long, value_name = "IP")]
    pub host: Option<IpAddr>,
    /// Address of one node, IP or IP:PORT: once per mix, then for the exit
    ///
    /// Without a port, nodes get 4701, 4702 and so on in this order (--base-port): every Nth if a mix has N ports,
    /// because of --lanes and paced classes.
    #[arg(long = "node", value_name = "ADDR", conflicts_with = "host")]
    pub nodes: Vec<String>,
    /// Nodes get ports from the one after this on
    #[arg(long, default_value_t = 4700, value_name = "PORT")]
    pub base_port: u16,
    /// Use IPv6 for all links (class L: at most 5 mixes)
    #[arg(long)]
    pub ipv6: bool,
    /// Lifetime of a channel in seconds, 60 to 3600
    ///
    /// The same for all users of the chain: a lifetime of one's own would identify its user.
    #[arg(long, default_value_t = LIFETIME_S, value_name = "SECONDS",
          value_parser = clap::value_parser!(u16).range(60..=3600), hide_short_help = true)]
    pub lifetime: u16,
    /// Algorithms of channel setups, 1 or 2
    ///
    /// 2 is X25519 with ML-KEM-768, 1 is X25519 alone. The same for the whole chain.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=2),
          hide_short_help = true)]
    pub suite: u8,
    /// Accept --lanes for links between hops
    ///
    /// The UDP port of a cell then shows bits of its channel's number to whoever sees the link.
    #[arg(long, hide_short_help = true)]
    pub lanes_show_label_bits: bool,
    /// Overwrite an existing chain, including its keys
    #[arg(long)]
    pub force: bool,
}

const CHAIN_HELP: &str = "\
Examples:
  Send 10 messages to 5 receivers through 3 mixes:
    eddy chain

  Other chains, other traffic:
    eddy chain --mixes 7 --class S --mixing timed:t=2ms
    eddy chain --receivers 100 --rate 2000 --seconds 10 --payload-len 1000

  Calls between 20 users in a paced class, compared with a free one:
    eddy chain --class voice

  Keep the chain running, with a forward or for SOCKS5 clients:
    eddy chain --stay --forward 5000=127.0.0.1:6000
    eddy chain --stay --socks 1080

Exit codes:
  0  every message was delivered and answered, or no call lost more than half of
     what was said and links were constant, and every ledger closes
  1  messages or calls were lost, or a node failed
  2  mistake on the command line";

/// `eddy chain`.
#[derive(Args, Debug)]
#[command(
    after_long_help = CHAIN_HELP,
    mut_arg("verbose", |arg| arg
        .help("Print every counter of every node, and log more")
        .long_help("Print every counter of every node, and log more: -v info, -vv debug\n\nOverrides --log.")),
    mut_arg("quiet", |arg| arg
        .help("Log less: -q error, -qq off")
        .long_help("Log less: -q error, -qq off\n\nOverrides --log.")),
    mut_arg("log", |arg| arg
        .hide_short_help(true)
        .long_help("Log filter of the nodes, e.g. info or info,eddy_node=debug\n\nA level (off, error, warn, info, \
                    debug, trace), or MODULE=LEVEL, comma-separated [env: EDDY_LOG] [default: warn]")),
    mut_arg("log_format", |arg| arg.hide_short_help(true)),
)]
pub struct ChainArgs {
    #[command(flatten)]
    pub shape: ShapeArgs,
    /// S, M, L, or paced: voice and others [default: L]
    ///
    /// S holds datagrams of 203 bytes in a cell, M 1147 (MTU 1280), L 1323; longer ones take up to 8 cells. With a
    /// paced class (voice, voice-lite, game, video) users call each other in it, then in the free class of its size,
    /// and a table compares the two. Its batches are short: rounds=512,n_min=2,seats=64,loops=0,steps_ms=2 unless
    /// PROFILE:KEY=VALUE,... changes them, as for `eddy assemble`.
    #[arg(long, default_value = "L", value_name = "CLASS", value_parser = ClassParser::<ChainClass>::new(),
          hide_default_value = true, hide_possible_values = true)]
    pub class: ChainClass,
    /// Users who call each other, 2 to 32 [default: 20]
    #[arg(long, value_name = "N", value_parser = users)]
    pub users: Option<usize>,
    /// Channels that the entry keeps open [default: 4]
    #[arg(long, value_parser = channels, value_name = "N", hide_short_help = true)]
    pub channels: Option<usize>,
    /// Use IPv6 for links and applications (class L: at most 5 mixes)
    #[arg(long, hide_short_help = true)]
    pub ipv6: bool,
    /// Number of receivers, 1 to 256 [default: 5]
    #[arg(long, value_parser = receivers, value_name = "N")]
    pub receivers: Option<usize>,
    /// Messages, each to a random receiver [default: 10]
    #[arg(long, value_name = "N")]
    pub messages: Option<u64>,
    /// Messages per second [default: 50]
    #[arg(long, value_name = "R", value_parser = rate)]
    pub rate: Option<f64>,
    /// Send for this long, not --messages [calls: 10]
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
    #[arg(long, default_value_t = RENEW_AFTER_S, value_name = "SECONDS",
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
    #[command(flatten)]
    pub log: LogArgs,
    /// End when standard input closes, too
    #[arg(long, hide = true)]
    pub lifeline: bool,
}

/// The class of `eddy chain`.
#[derive(Clone, Debug)]
pub enum ChainClass {
    Free(Class),
    /// In batches as short as a demonstration likes them, unless the command line sets `rounds`.
    Paced {
        terms: PacedTerms,
        sets_rounds: bool,
    },
}

/// What a demonstration changes of a profile. `rounds` grows with the number of mixes.
const DEMO: &[(&str, u16)] = &[("rounds", 512), ("n_min", 2), ("seats", 64), ("loops", 0), ("steps_ms", 2)];

impl FromStr for ChainClass {
    type Err = String;

    fn from_str(text: &str) -> Result<ChainClass, String> {
        match text.parse::<ClassChoice>()? {
            ClassChoice::Free(class) => Ok(ChainClass::Free(class)),
            ClassChoice::Paced(_) => {
                let (profile, changes) = text.split_once(':').unwrap_or((text, ""));
                let is_set = |key: &str| changes.split(',').any(|one| one.split('=').next() == Some(key));
                let of_demo = DEMO.iter().filter(|(key, _)| !is_set(key)).map(|(key, value)| format!("{key}={value}"));
                let own = changes.split(',').filter(|one| !one.is_empty()).map(str::to_owned);
                let all: Vec<String> = of_demo.chain(own).collect();
                match format!("{profile}:{}", all.join(",")).parse::<ClassChoice>()? {
                    ClassChoice::Paced(terms) => Ok(ChainClass::Paced { terms, sets_rounds: is_set("rounds") }),
                    ClassChoice::Free(class) => Ok(ChainClass::Free(class)),
                }
            }
        }
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

fn count(text: &str, range: RangeInclusive<usize>) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| range.contains(n));
    number.ok_or_else(|| format!("expected {} to {}", range.start(), range.end()))
}

fn mixes(text: &str) -> Result<usize, String> {
    count(text, 1..=7)
}

fn receivers(text: &str) -> Result<usize, String> {
    count(text, 1..=256)
}

fn channels(text: &str) -> Result<usize, String> {
    count(text, 1..=256)
}

fn users(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n: &usize| (2..=32).contains(n) && n.is_multiple_of(2));
    number.ok_or_else(|| "expected an even number, 2 to 32".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|r: &f64| (0.01..=1e6).contains(r));
    number.ok_or_else(|| "expected 0.01 to 1000000 messages per second".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|s: &f64| (0.01..=86_400.0).contains(s));
    number.ok_or_else(|| "expected 0.01 to 86400 seconds".to_owned())
}
