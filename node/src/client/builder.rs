//! An entry without a configuration file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dataplane::entry::Destination;
use zeroize::Zeroizing;

use super::Entry;
use crate::config::{
    ChainFile, ClassName, ConfigError, Loaded, Location, NodeConfig, Part, Target, TrustFiles, is_user, wall_s,
};
use crate::error::StartError;

/// The source of the chain.
enum Source {
    File(PathBuf),
    Text(String),
}

/// Builds an [`Entry`] from a chain's public file and options. Made by [`Entry::builder`].
///
/// The options are those of an entry's configuration file, with the same defaults. An entry needs no key file: it does
/// not prove an identity, and makes new keys at every start.
///
/// ```no_run
/// use std::time::Duration;
///
/// use eddy_node::Entry;
///
/// # fn main() -> Result<(), eddy_node::StartError> {
/// let entry = Entry::builder()
///     .chain_file("chain.toml")
///     .channels(2)
///     .forward("127.0.0.1:5000".parse().unwrap(), "vpn.example.org:51820".parse().unwrap())
///     .flow_idle(Duration::from_secs(60))
///     .options("cores = [1]")
///     .start()?;
/// # Ok(())
/// # }
/// ```
#[must_use = "`start` starts the entry"]
pub struct EntryBuilder {
    chain: Option<Source>,
    /// Lines of a configuration, one for each option.
    lines: String,
    /// Further lines as given. They may begin tables, so they come after all keys.
    options: String,
    forwards: String,
    socks: Vec<String>,
    users: Vec<(String, Zeroizing<String>)>,
    state: Option<PathBuf>,
    status: Option<PathBuf>,
    commands: Option<PathBuf>,
}

/// The name of the options in messages.
const NAME: &str = "entry options";

impl EntryBuilder {
    pub(super) fn new() -> EntryBuilder {
        EntryBuilder {
            chain: None,
            lines: String::new(),
            options: String::new(),
            forwards: String::new(),
            socks: Vec::new(),
            users: Vec::new(),
            state: None,
            status: None,
            commands: None,
        }
    }

    fn line(mut self, key: &str, value: impl Into<toml::Value>) -> EntryBuilder {
        self.lines += &format!("{key} = {}\n", value.into());
        self
    }

    /// The chain's public file, `chain.toml`, at this path. It is read by [`EntryBuilder::start`].
    pub fn chain_file(mut self, path: impl Into<PathBuf>) -> EntryBuilder {
        self.chain = Some(Source::File(path.into()));
        self
    }

    /// The text of the chain's public file.
    pub fn chain_text(mut self, text: impl Into<String>) -> EntryBuilder {
        self.chain = Some(Source::Text(text.into()));
        self
    }

    /// Channels to keep open, 1 to 256; 4 by default. Tunnels and other clients are spread over them.
    pub fn channels(self, channels: u16) -> EntryBuilder {
        self.line("channels", i64::from(channels))
    }

    /// Flows that have sent nothing for this long are closed: whole seconds, 1 s to a day; 300 s by default.
    pub fn flow_idle(self, idle: Duration) -> EntryBuilder {
        self.line("flow_idle_s", i64::try_from(idle.as_secs()).unwrap_or(i64::MAX))
    }

    /// Datagrams that have waited in the entry for longer are dropped: whole milliseconds, 20 ms to an hour; 250 ms by
    /// default.
    pub fn max_age(self, max_age: Duration) -> EntryBuilder {
        self.line("max_age_ms", i64::try_from(max_age.as_millis()).unwrap_or(i64::MAX))
    }

    /// Listens on `listen` and sends what arrives there to `to`. May be repeated.
    pub fn forward(mut self, listen: SocketAddr, to: Destination) -> EntryBuilder {
        let text = |text: String| toml::Value::from(text);
        let (listen, to) = (text(listen.to_string()), text(to.to_string()));
        self.forwards += &format!("[[forward]]\nlisten = {listen}\nto = {to}\n");
        self
    }

    /// The same in cells of a class of the chain. In a paced class `to` may be a meeting, which then is all that the
    /// class serves. The channels of the chain's first class are kept open, too, for tunnels. May be repeated.
    pub fn forward_in(mut self, class: &ClassName, listen: SocketAddr, to: &Target) -> EntryBuilder {
        let text = |text: String| toml::Value::from(text);
        let (listen, to, class) = (text(listen.to_string()), text(to.to_string()), text(class.to_string()));
        self.forwards += &format!("[[forward]]\nlisten = {listen}\nto = {to}\nclass = {class}\n");
        self
    }

    /// Serves SOCKS5 clients, for UDP, on this address. May be repeated. On an address that other hosts reach it needs
    /// [`EntryBuilder::socks_user`].
    pub fn socks(mut self, listen: SocketAddr) -> EntryBuilder {
        self.socks.push(listen.to_string());
        self
    }

    /// Lets in a SOCKS5 client from another host that gives this name and password, 1 to 255 bytes each (RFC 1929). May
    /// be repeated.
    pub fn socks_user(mut self, name: impl Into<String>, password: impl Into<String>) -> EntryBuilder {
        self.users.push((name.into(), Zeroizing::new(password.into())));
        self
    }

    /// The local address of the link to mix1; any port of any address by default.
    pub fn bind(self, down: SocketAddr) -> EntryBuilder {
        self.line("down", down.to_string())
    }

    /// The address of mix1, `HOST:PORT`, if it is not reached at its published one.
    pub fn next(self, address: impl Into<String>) -> EntryBuilder {
        self.line("next", address.into())
    }

    /// A file in which the entry keeps the newest descriptors of the chain, so that a later start does not go back to
    /// older ones. Nothing in it is secret. None by default: what it learns ends with it.
    pub fn state_file(mut self, path: impl Into<PathBuf>) -> EntryBuilder {
        self.state = Some(path.into());
        self
    }

    /// A Unix socket for `eddy status`; none by default.
    pub fn status_socket(mut self, path: impl Into<PathBuf>) -> EntryBuilder {
        self.status = Some(path.into());
        self
    }

    /// A Unix socket for `eddy forward`; none by default.
    pub fn command_socket(mut self, path: impl Into<PathBuf>) -> EntryBuilder {
        self.commands = Some(path.into());
        self
    }

    /// Further lines of an entry's configuration, as TOML: `receive_buffer = 4194304`. `eddy config explain` lists the
    /// keys.
    pub fn options(mut self, lines: &str) -> EntryBuilder {
        self.options += lines;
        self.options += "\n";
        self
    }

    /// Starts the entry and returns before its channels are open. [`Entry::wait_ready`] waits for them.
    ///
    /// # Errors
    /// A mistake in the chain file or the options, or a refusal of the operating system.
    pub fn start(self) -> Result<Entry, StartError> {
        let chain = match &self.chain {
            Some(Source::File(path)) => ChainFile::read(path, wall_s())?,
            Some(Source::Text(text)) => ChainFile::parse(Path::new("chain text"), text, wall_s())?,
            None => {
                let what = format!("{NAME}: no chain: call `chain_file` or `chain_text` before `start`");
                return Err(ConfigError::Arguments(what).into());
            }
        };

        let socks = if self.socks.is_empty() { String::new() } else { format!("socks = {:?}\n", self.socks) };
        let text = format!(
            "role = \"entry\"\nchain = \"chain\"\nstatus = \"status\"\n{}{socks}{}{}",
            self.lines, self.options, self.forwards
        );
        let mut config = NodeConfig::parse_options(NAME, &text)?;
        let files = TrustFiles {
            chain: match &self.chain {
                Some(Source::File(path)) => Some(path.clone()),
                Some(Source::Text(_)) | None => None,
            },
            keys: None,
            state: self.state,
        };
        config.chain = files.chain.clone().unwrap_or_default();
        config.state = files.state.clone();
        config.status = self.status;
        let Part::Entry(part) = &mut config.part else { unreachable!("the text says so") };
        part.commands = self.commands;
        let mut loaded = Loaded::with_chain(files, config, chain)?;
        for (name, password) in self.users {
            if !is_user(&name, &password) {
                let what = "name and password of `socks_user` must have 1 to 255 bytes each (RFC 1929)".to_owned();
                return Err(ConfigError::Invalid { at: Location::file(Path::new(NAME)), what }.into());
            }
            loaded.socks_users.insert(name, password);
        }
        Entry::run(loaded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::{self, Plan};

    #[test]
    fn errors_of_options_name_no_command_line_flags() {
        let dir = tempfile::tempdir().unwrap();
        let addresses = ["127.0.0.1:4701", "127.0.0.1:4702"].map(|address| address.parse().unwrap());
        let files = init::write(dir.path(), &Plan::new(&addresses)).unwrap();
        let builder = || Entry::builder().chain_file(&files.chain);
        let refused = |builder: EntryBuilder| builder.start().err().expect("a mistake").to_string();

        let forward = |builder: EntryBuilder| builder.forward(addresses[0], addresses[1].into());
        let clash = refused(forward(forward(builder())));
        assert!(clash.starts_with("entry options: forward on 127.0.0.1:4701: the port is also"), "{clash}");
        let open = refused(builder().socks("0.0.0.0:1080".parse().unwrap()));
        assert!(open.contains("add a user with `socks_user`"), "{open}");
        assert!(!clash.contains("--") && !open.contains("--"), "{clash}; {open}");

        // A destination is a value, whatever it contains.
        let name = "a\"\nidle_s = 7\n#".into();
        let injected = refused(builder().forward(addresses[0], Destination::Name(name, 53)));
        assert!(injected.contains("is not an address or host name"), "{injected}");
        // `channels` is not read as a key of the table before it.
        let table = "[[forward]]\nlisten = \"127.0.0.1:4701\"\nto = \"127.0.0.1:4702\"";
        let clash = refused(forward(builder().options(table)).channels(2));
        assert!(clash.contains("the port is also that of"), "{clash}");
    }
}
