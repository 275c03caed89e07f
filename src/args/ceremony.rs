//! Arguments of the commands with which several operators make a chain.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};
use control::trust::HopRole;
use eddy_node::ceremony::assemble::{EPOCH_S, default_mixing_delay_ms};
use eddy_node::ceremony::contact::{ClassPlace, Endpoint, Name};
use eddy_node::ceremony::profile::ClassChoice;
use eddy_node::ceremony::{VALID_DAYS, VALID_DAYS_MAX};
use eddy_node::config::LIFETIME_S;

use super::class::ClassParser;

/// The role of a new node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    Mix,
    Exit,
}

impl From<RoleArg> for HopRole {
    fn from(role: RoleArg) -> HopRole {
        match role {
            RoleArg::Mix => HopRole::Mix,
            RoleArg::Exit => HopRole::Exit,
        }
    }
}

const KEYGEN_HELP: &str = "\
Run it on the host where the node will run, so that its keys never leave it:

  identity.key  signs the node's descriptors; move it offline
  node.key      keys of the running node; they stay on its host
  node.desc     public: give it to whoever assembles the chain
  node.toml     configuration; its chain is chain.toml in the same folder

Examples:
  A mix at this address, and at a DNS name for the day when it moves:
    eddy keygen --role mix --address 192.0.2.1:4700 \\
        --name mix.example.org --out mymix

  An exit for small and large cells, on ports 4700 (L) and 4701 (S):
    eddy keygen --role exit --address 192.0.2.99:4700 --class L --class S

  New keys for a node: node.key.next, and node.request for `eddy renew`:
    eddy keygen --rotate --out mymix

Exit codes:
  0  the files were written
  2  nothing was written: mistake on the command line, or a file exists";

/// `eddy keygen`.
#[derive(Args, Debug)]
#[command(after_long_help = KEYGEN_HELP)]
pub struct KeygenArgs {
    /// Role of the node
    #[arg(long, value_enum, required_unless_present = "rotate", value_name = "mix|exit")]
    pub role: Option<RoleArg>,
    /// Address that the previous hop sends to, IP or IP:PORT (repeatable)
    ///
    /// The best one first. The port is 4700 unless given.
    #[arg(long = "address", value_name = "ADDR")]
    pub addresses: Vec<Endpoint>,
    /// DNS name of the node, tried after its addresses (repeatable)
    ///
    /// NAME or NAME:PORT; without a port it has that of the first address.
    #[arg(long = "name", value_name = "NAME")]
    pub names: Vec<Name>,
    /// Class: S, M, L, paced-S, paced-M or paced-L, or CLASS=ADDR (repeatable) [default: L]
    ///
    /// Each class has ports of its own: those after the ports of the class before it, or at ADDR. A paced class has one
    /// port.
    #[arg(long = "class", value_name = "CLASS")]
    pub classes: Vec<ClassPlace>,
    /// Worker threads of a mix, 1 to 64; each has a port, from that of the address on
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64),
          hide_short_help = true)]
    pub lanes: u8,
    /// Days for which the descriptor is valid
    #[arg(long, default_value_t = VALID_DAYS, value_name = "N", value_parser = days())]
    pub days: u32,
    /// Folder of the node; created if it does not exist
    #[arg(long, default_value = ".", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub out: PathBuf,
    /// Draw new keys for the node in DIR
    ///
    /// Writes node.key.next, and node.request, which `eddy renew` signs.
    #[arg(long, conflicts_with_all = ["role", "addresses", "names", "classes", "lanes", "days"])]
    pub rotate: bool,
    /// Which node of a folder of `eddy init` to rotate: mix1 for mix1.key
    #[arg(long, default_value = "node", value_name = "NODE", requires = "rotate", hide_short_help = true)]
    pub node: String,
    /// Overwrite existing files, including keys
    #[arg(long)]
    pub force: bool,
}

const ASSEMBLE_HELP: &str = "\
Checks the signature, role, validity and classes of every descriptor, and that
no two hops share an identity, a key or an address. It needs no private key.

Everyone must use the same file. Its fingerprint covers the order of the hops
and all settings, so operators and users compare it, for example over the
phone. It stays the same when descriptors are renewed.

Examples:
  Three mixes and an exit, as their operators sent them:
    eddy assemble a.desc b.desc c.desc --exit exit.desc

  Small cells, and channels of ten minutes:
    eddy assemble a.desc b.desc --exit x.desc --class S --lifetime-s 600

  Calls of at least four users, between hosts that are 2 ms apart, and the rest:
    eddy assemble a.desc b.desc --exit x.desc --class L \\
        --class voice:n_min=4,steps_ms=2

Exit codes:
  0  the chain file was written
  2  nothing was written: a descriptor does not fit, or a file exists";

/// `eddy assemble`.
#[derive(Args, Debug)]
#[command(after_long_help = ASSEMBLE_HELP)]
pub struct AssembleArgs {
    /// Descriptors of the mixes, Mix 1 first
    #[arg(value_name = "NODE.desc", required = true, value_hint = ValueHint::FilePath)]
    pub mixes: Vec<PathBuf>,
    /// Descriptor of the exit
    #[arg(long, value_name = "EXIT.desc", value_hint = ValueHint::FilePath)]
    pub exit: PathBuf,
    /// The chain file to write
    #[arg(long, default_value = "chain.toml", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub out: PathBuf,
    /// S, M, L, or a paced class: voice, voice-lite, game or video (repeatable)
    ///
    /// A chain has each size once, and once paced. voice, voice-lite and game are of size paced-S, video is of size
    /// paced-L. PROFILE:KEY=VALUE,... changes a paced class. Calls are hidden among the users of a batch: one with
    /// fewer than n_min (8) carries nothing. `eddy config explain` lists the keys, below `[[class]]` with period_ms of
    /// chain.toml; steps_ms=N is for all links, steps_ms=N/N/N for each after the first.
    #[arg(long = "class", default_value = "L", value_name = "CLASS", value_parser = ClassParser::<ClassChoice>::new(),
          hide_possible_values = true)]
    pub classes: Vec<ClassChoice>,
    /// Longest time for which the mixing of a node may hold a cell
    ///
    /// A node whose own mixing may hold cells longer does not start.
    #[arg(long, default_value_t = default_mixing_delay_ms(), value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub mixing_delay_ms: u32,
    /// Lifetime of channels in seconds, 1 to 3600
    #[arg(long, default_value_t = LIFETIME_S, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=3600))]
    pub lifetime_s: u16,
    /// Algorithms of channel setups, 1 or 2
    ///
    /// 2 is X25519 with ML-KEM-768, 1 is X25519 alone.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=2),
          hide_short_help = true)]
    pub suite: u8,
    /// Seconds between two bundles of setup keys that all hops sign, 1 to 600 [default: 10]
    ///
    /// A paced class needs 0.24 s for each hop and millisecond of period_ms, so with one the default may be longer.
    /// A hop that starts again takes part from the next one on, so a short interval brings a chain back sooner. But all
    /// clocks must agree within a fifth of it, and each one costs every hop a signature and a few cells.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=600), hide_short_help = true)]
    pub interval: Option<u32>,
    /// Seconds for which nodes keep setup keys: ten times --interval to 86400
    ///
    /// Whoever seizes a running node can open the setups of two epochs at most, so a short epoch limits what a seizure
    /// gives. A move or new keys of Mix 1 reach users only after an epoch.
    #[arg(long, default_value_t = EPOCH_S, value_name = "N", hide_short_help = true)]
    pub epoch: u32,
    /// Overwrite an existing chain file
    #[arg(long)]
    pub force: bool,
}

const RENEW_HELP: &str = "\
Run it where identity.key is, on an offline host for example. It reads and
writes public files only, never node.key.

The new descriptor has a higher revision, so it replaces the old one. It is
written in place of FILE; for a node.request, to node.desc beside it.

Examples:
  Another 90 days:
    eddy renew --identity identity.key node.desc

  A move: list both addresses first, and the new one alone afterwards:
    eddy renew --identity identity.key node.desc \\
        --address 192.0.2.1:4700 --address 198.51.100.7:4700
    eddy renew --identity identity.key node.desc --address 198.51.100.7:4700

  Certify the new keys of `eddy keygen --rotate`, because the old were stolen:
    eddy renew --identity identity.key node.request --revoke

Exit codes:
  0  the descriptor was written
  2  nothing was written: wrong identity, or mistake in a file";

/// `eddy renew`.
#[derive(Args, Debug)]
#[command(after_long_help = RENEW_HELP)]
pub struct RenewArgs {
    /// The node.desc to renew, or a node.request with new keys
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// The node's identity
    #[arg(long, value_name = "identity.key", value_hint = ValueHint::FilePath)]
    pub identity: PathBuf,
    /// New address instead of all old ones, IP or IP:PORT (repeatable)
    ///
    /// With several classes the port is that of the lowest one, and the others keep their distance. Without a port each
    /// class keeps its own.
    #[arg(long = "address", value_name = "ADDR")]
    pub addresses: Vec<Endpoint>,
    /// New DNS name instead of all old ones (repeatable)
    #[arg(long = "name", value_name = "NAME", conflicts_with = "no_names")]
    pub names: Vec<Name>,
    /// List no DNS names any more
    #[arg(long)]
    pub no_names: bool,
    /// Days for which the descriptor is valid
    #[arg(long, default_value_t = VALID_DAYS, value_name = "N", value_parser = days())]
    pub days: u32,
    /// Revoke all earlier descriptors, and their keys except those of FILE
    #[arg(long)]
    pub revoke: bool,
    /// The descriptor to write [default: in place of FILE]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub out: Option<PathBuf>,
}

const INSPECT_HELP: &str = "\
It verifies signatures and the id of a chain, and prints who, where, until when,
and fingerprints: the first 16 bytes of a key or an id.

Before you join a chain, compare the fingerprint of its chain.toml with one that
you got from a second source.

Examples:
  eddy inspect chain.toml
  eddy inspect node.desc --json

Exit codes:
  0  the file is what it claims to be; a descriptor may have expired
  2  it was changed, or is not a public file of eddy";

/// `eddy inspect`.
#[derive(Args, Debug)]
#[command(after_long_help = INSPECT_HELP)]
pub struct InspectArgs {
    /// A node.desc, a node.request or a chain.toml of `eddy assemble`
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Print one line of JSON
    #[arg(long)]
    pub json: bool,
}

fn days() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(VALID_DAYS_MAX))
}
