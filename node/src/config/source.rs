//! A TOML file with the places of what it says, and serde's complaints in an operator's words.

use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use toml::Spanned;
use zeroize::Zeroizing;

use super::{ConfigError, Place};

/// Keys of all three kinds of files, as one would write them.
const EXAMPLES: &[(&str, &str)] = &[
    ("role", "role = \"mix\""),
    ("position", "position = 1"),
    ("chain", "chain = \"chain.toml\""),
    ("keys", "keys = \"mix1.key\""),
    ("up", "up = \"127.0.0.1:4701\""),
    ("down", "down = \"0.0.0.0:0\""),
    ("next", "next = \"192.0.2.7:4702\""),
    ("status", "status = \"mix1.sock\""),
    ("mixing", "mixing = \"threshold-or-timed:n=64,t=5ms\""),
    ("window", "window = 4096"),
    ("receive_buffer", "receive_buffer = 8388608"),
    ("renew_after_s", "renew_after_s = 120"),
    ("channels", "channels = 4"),
    ("flow_idle_s", "flow_idle_s = 300"),
    ("forward", "[[forward]] with `listen` and `to` below it"),
    ("listen", "listen = \"127.0.0.1:5000\""),
    ("to", "to = \"192.0.2.7:5000\""),
    ("idle_s", "idle_s = 300"),
    ("pymix", "pymix = [\"127.0.0.1:5001\"]"),
    ("socks", "socks = [\"127.0.0.1:1080\"]"),
    ("commands", "commands = \"entry.cmd\""),
    ("allow", "allow = [\"10.0.0.0/8\"]"),
    ("deny", "deny = [\"192.0.2.0/24\"]"),
    ("trust", "trust = [\"192.0.2.7:5004\"]"),
    ("max_unanswered", "max_unanswered = 1000"),
    ("max_flow_rate", "max_flow_rate = 100000"),
    ("max_destination_rate", "max_destination_rate = 200000"),
    ("filtering", "filtering = \"endpoint\""),
    ("resolver", "resolver = \"9.9.9.9:53\""),
    ("max_flows_per_channel", "max_flows_per_channel = 1024"),
    ("max_sockets", "max_sockets = 4096"),
    ("caps", "[caps] with bounds below it, such as `channels = 100000`"),
    ("id", "id = \"...\" as the chain's operator gives it"),
    ("class", "class = \"L\""),
    ("hops", "hops = 4"),
    ("lifetime_s", "lifetime_s = 3600"),
    ("node", "a [[node]] for every mix and the exit, as the chain's operator gives them"),
    ("index", "index = 1"),
    ("identity", "identity = \"...\" as the node's operator gives it"),
    ("address", "address = \"192.0.2.7:4701\""),
    ("descriptor", "descriptor = \"...\" as the node's operator gives it"),
    ("noise", "noise = \"...\", 32 bytes in base64"),
    ("setup", "setup = \"...\", 32 bytes in base64"),
];

/// A line that sets `key`.
fn example(key: &str) -> String {
    let known = EXAMPLES.iter().find(|(name, _)| *name == key);
    known.map_or_else(|| format!("a line `{key} = ...`"), |(_, line)| format!("`{line}`"))
}

/// A file's text. It may hold keys, so it is wiped.
pub(super) struct Source {
    path: PathBuf,
    text: Zeroizing<String>,
    /// Whether it has lines that its reader could look at.
    lined: bool,
}

impl Source {
    pub(super) fn read(path: &Path) -> Result<Source, ConfigError> {
        let bytes = std::fs::read(path).map_err(|why| ConfigError::Unreadable {
            path: path.to_owned(),
            remedy: match why.kind() {
                ErrorKind::IsADirectory => "name a file in it, such as mix1.toml",
                ErrorKind::PermissionDenied => "run eddy as the user who may read it, or change its owner or mode",
                _ => "check the path, or make a chain with `eddy init DIR`",
            }
            .into(),
            why,
        })?;
        let text = String::from_utf8(bytes).map_err(|why| {
            let valid = why.utf8_error().valid_up_to();
            let bytes = Zeroizing::new(why.into_bytes());
            let line = 1 + bytes[..valid].iter().filter(|byte| **byte == b'\n').count();
            let at = Place { path: path.to_owned(), line: Some(line) };
            let remedy = "save it as UTF-8, or copy it anew";
            ConfigError::Value { at, what: "this is no UTF-8 text".into(), remedy: remedy.into() }
        })?;
        let source = Source { path: path.to_owned(), text: Zeroizing::new(text), lined: true };
        if source.text.trim().is_empty() {
            let remedy = "copy it anew from where `eddy init` wrote it";
            let at = Place::file(path);
            return Err(ConfigError::Value { at, what: "the file is empty".into(), remedy: remedy.into() });
        }
        Ok(source)
    }

    /// A text that was, or might have been, read from `path`.
    pub(super) fn new(path: &Path, text: &str) -> Source {
        Source { path: path.to_owned(), text: Zeroizing::new(text.to_owned()), lined: true }
    }

    /// A text that a program has made.
    pub(super) fn without_lines(name: &str, text: &str) -> Source {
        Source { lined: false, ..Source::new(Path::new(name), text) }
    }

    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        toml::from_str(&self.text).map_err(|error| self.explain(&error))
    }

    /// The place of a span.
    pub(super) fn at(&self, span: Range<usize>) -> Place {
        if !self.lined {
            return Place::file(&self.path);
        }
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        Place { path: self.path.clone(), line: Some(1 + before.iter().filter(|byte| **byte == b'\n').count()) }
    }

    /// A value that cannot be.
    pub(super) fn wrong<T>(
        &self,
        value: &Spanned<T>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Value { at: self.at(value.span()), what: what.into(), remedy: remedy.into() }
    }

    /// A value whose fault names the remedy.
    pub(super) fn invalid<T>(&self, value: &Spanned<T>, what: impl Into<String>) -> ConfigError {
        ConfigError::Invalid { at: self.at(value.span()), what: what.into() }
    }

    /// A whole number from a range, or its default.
    pub(super) fn number(
        &self,
        key: &str,
        value: Option<&Spanned<i64>>,
        range: Range<i64>,
        default: i64,
    ) -> Result<i64, ConfigError> {
        value.map_or(Ok(default), |value| self.ranged(key, value, range, &format!("; the default is {default}")))
    }

    /// A whole number from a range.
    pub(super) fn required(&self, key: &str, value: &Spanned<i64>, range: Range<i64>) -> Result<i64, ConfigError> {
        self.ranged(key, value, range, "")
    }

    fn ranged(&self, key: &str, value: &Spanned<i64>, range: Range<i64>, more: &str) -> Result<i64, ConfigError> {
        let number = *value.get_ref();
        if range.contains(&number) {
            return Ok(number);
        }
        let remedy = format!("take {} to {}{more}", range.start, range.end - 1);
        Err(self.wrong(value, format!("{key} = {number} is out of range"), remedy))
    }

    /// Bytes in base64 or, where so many bytes are known, in hex.
    pub(super) fn bytes<const N: usize>(&self, key: &str, value: &Spanned<String>) -> Result<[u8; N], ConfigError> {
        let text = value.get_ref();
        let decoded = if text.len() == 2 * N { decode_hex(text) } else { STANDARD.decode(text).ok() };
        decoded.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| {
            self.wrong(value, format!("{key} is not {N} bytes in base64 or hex"), "copy it from where it was published")
        })
    }

    /// The key and the value that a line sets, if the key is known: anything else may be a secret.
    fn setting(&self, place: &Place) -> Option<(&str, &str)> {
        let (key, value) = self.text.lines().nth(place.line? - 1)?.split_once('=')?;
        let key = key.trim();
        EXAMPLES.iter().any(|(known, _)| *known == key).then_some((key, value.trim()))
    }

    /// Serde and the parser name what they found in backticks; the file's own text is never quoted,
    /// for it may be a key.
    fn explain(&self, error: &toml::de::Error) -> ConfigError {
        let at = error.span().map_or_else(|| Place::file(&self.path), |span| self.at(span));
        let what = error.message().lines().collect::<Vec<_>>().join(", ");
        let mut quoted = what.split('`').skip(1).step_by(2);
        if what.starts_with("unknown field") {
            let key = quoted.next().unwrap_or_default().to_owned();
            let known: Vec<&str> = quoted.collect();
            let elsewhere = EXAMPLES.iter().any(|(name, _)| *name == key);
            let hint = match nearest(&key, &known) {
                _ if elsewhere => "it belongs to another kind of file: check which file was named".to_owned(),
                Some(name) => format!("did you mean `{name}`?"),
                None => format!("the keys here are {}", known.join(", ")),
            };
            return ConfigError::UnknownKey { at, key, hint };
        }
        if what.starts_with("missing field") {
            let key = quoted.next().unwrap_or_default().to_owned();
            let at = if at.line == Some(1) { Place::file(&self.path) } else { at };
            return ConfigError::MissingKey { at, example: example(&key), key };
        }
        if what.starts_with("invalid ") && what.contains("expected") && !what.contains("invalid string") {
            let remedy = self.setting(&at).map_or_else(
                || "compare it with what `eddy init` writes".to_owned(),
                |(key, _)| format!("write it like {}", example(key)),
            );
            return ConfigError::Value { at, what: what.replace("expected i64", "expected a whole number"), remedy };
        }
        match self.setting(&at) {
            Some((key, value)) => {
                let what = if value.is_empty() { format!("`{key}` has no value") } else { what };
                ConfigError::Value { at, what, remedy: format!("write it like {}", example(key)) }
            }
            None => ConfigError::Syntax { at, what },
        }
    }
}

/// The known name that `name` is probably meant to be.
pub(super) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let scored = known.iter().map(|one| (strsim::jaro_winkler(name, one), *one));
    scored.filter(|(score, _)| *score > 0.7).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, one)| one)
}

/// Base64 with padding, as all files have it.
pub fn encode_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(super) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}
