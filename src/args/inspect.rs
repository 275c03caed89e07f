//! Arguments of the commands that examine a host, a node or its files.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, Subcommand, ValueHint};
use eddy_node::config::{Forward, parse_listen};

/// `eddy status`.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("node").required(true).args(["config", "socket"]))]
pub struct StatusArgs {
    /// The configuration of the running node
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Its status socket, for an entry without a configuration
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,
    /// Print one line of JSON
    #[arg(long, conflicts_with = "verbose")]
    pub json: bool,
    /// Print every counter, in tables of up to 80 columns
    #[arg(long, short)]
    pub verbose: bool,
    /// Print where the delay of a paced class comes from
    ///
    /// With --json as one line: the path, or if the node has several classes the path of each paced one by its name.
    #[arg(long, conflicts_with = "verbose")]
    pub path: bool,
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
        /// A key, a class such as voice, or meet [default: list all keys]
        key: Option<String>,
    },
    /// Check a node's configuration, its chain file and its key file
    Check {
        #[command(flatten)]
        config: ConfigFile,
        /// The key file, instead of the one in the configuration
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        keys: Option<PathBuf>,
    },
    /// Print a node's configuration with all defaults
    Show {
        #[command(flatten)]
        config: ConfigFile,
        /// Print one line of JSON
        #[arg(long)]
        json: bool,
    },
}

/// The file of a node, as an argument or as the option of the other commands.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct ConfigFile {
    /// The node's configuration
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// The same, as for other commands
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
}

impl ConfigFile {
    /// The one that was given.
    pub fn path(&self) -> &Path {
        self.file.as_deref().or(self.config.as_deref()).unwrap_or(Path::new(""))
    }
}

const DOCTOR_HELP: &str = "\
Examples:
  Check this host for `eddy chain`:
    eddy doctor

  Check this host for an entry that has nothing but the chain's public file:
    eddy doctor --chain chain.toml

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
    /// The public file of a chain: for an entry without a configuration
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "config")]
    pub chain: Option<PathBuf>,
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
