//! A TOML file, checked against the table of keys, and its values with their lines.
//!
//! Every message says what was expected, what was found, where, and how to fix it. Values of key files are never
//! quoted.

use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use wire::paced::{BadSecret, MeetingSecret};
use zeroize::Zeroizing;

use super::table::{self, DefaultValue, FileKind, Key, Kind, WHOLE_FILES};
use super::{ClassName, ConfigError, Location, NodeRole, without_secret};

/// How a state file begins; it is not text.
const STATE_MAGIC: &[u8] = b"eddy state";

/// A file's text. It may hold keys, so it is wiped.
pub(crate) struct Source {
    path: PathBuf,
    text: Zeroizing<String>,
    /// It is a file with lines, not the options of a program.
    lined: bool,
    /// Its values are secrets, which messages must not quote.
    secret: bool,
}

impl Source {
    pub(crate) fn read(path: &Path) -> Result<Source, ConfigError> {
        let bytes = std::fs::read(path).map_err(|why| ConfigError::Unreadable {
            path: path.to_owned(),
            remedy: match why.kind() {
                ErrorKind::IsADirectory => "name a file in it, such as node.toml or mix1.toml",
                ErrorKind::PermissionDenied => "run eddy as a user who may read it, or change its owner or mode",
                _ => "check the path, or make a chain with `eddy init DIR`",
            }
            .into(),
            why,
        })?;
        if bytes.starts_with(STATE_MAGIC) {
            let remedy = "name a TOML file, such as node.toml, node.desc or chain.toml".to_owned();
            return Err(ConfigError::Value {
                at: Location::file(path),
                what: "this is a state file of eddy".into(),
                remedy,
            });
        }
        let text = String::from_utf8(bytes).map_err(|why| {
            let valid = why.utf8_error().valid_up_to();
            let bytes = Zeroizing::new(why.into_bytes());
            let line = 1 + bytes[..valid].iter().filter(|byte| **byte == b'\n').count();
            let at = Location { path: path.to_owned(), line: Some(line) };
            let remedy = "save it as UTF-8, or copy it again";
            ConfigError::Value { at, what: "the text is not UTF-8".into(), remedy: remedy.into() }
        })?;

        let source = Source { path: path.to_owned(), text: Zeroizing::new(text), lined: true, secret: false };
        if source.text.trim().is_empty() {
            let remedy = "copy it again from where `eddy init` or `eddy keygen` wrote it";
            let at = Location::file(path);
            return Err(ConfigError::Value { at, what: "the file is empty".into(), remedy: remedy.into() });
        }
        Ok(source)
    }

    /// A text that was, or might have been, read from `path`.
    pub(crate) fn new(path: &Path, text: &str) -> Source {
        Source { path: path.to_owned(), text: Zeroizing::new(text.to_owned()), lined: true, secret: false }
    }

    /// Options of a program, as TOML.
    pub(crate) fn without_lines(name: &str, text: &str) -> Source {
        Source { lined: false, ..Source::new(Path::new(name), text) }
    }

    /// The whole text.
    pub(crate) fn all(&self) -> &str {
        &self.text
    }

    /// The same, of private keys.
    pub(crate) fn secret(self) -> Source {
        Source { secret: true, ..self }
    }

    /// Parses it, and checks names, roles, types and ranges against `keys`.
    ///
    /// `role` is that of a node's configuration, if it is one. Values that depend on others are the reader's to check.
    pub(crate) fn table(&self, keys: &'static [Key]) -> Result<Table<'_>, ConfigError> {
        let values = DeTable::parse(&self.text).map_err(|error| self.syntax(&error, keys))?;
        let table = Table { source: self, keys, values: values.into_inner(), inside: None };
        table.check_kind()?;
        table.check_names()?;
        Ok(table)
    }

    /// The keys at its top, in the order of the file.
    pub(crate) fn names(&self) -> Result<Vec<String>, ConfigError> {
        let values = DeTable::parse(&self.text).map_err(|error| self.syntax(&error, &[]))?.into_inner();
        let mut all: Vec<_> = values.keys().collect();
        all.sort_by_key(|name| name.span().start);
        Ok(all.into_iter().map(|name| name.get_ref().to_string()).collect())
    }

    pub(crate) fn file(&self) -> Location {
        Location::file(&self.path)
    }

    /// The location of a span.
    pub(crate) fn at(&self, span: &Range<usize>) -> Location {
        if !self.lined {
            return Location::file(&self.path);
        }
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Location { path: self.path.clone(), line: Some(line) }
    }

    /// The parser's message. It names no value: that may be a key.
    fn syntax(&self, error: &toml::de::Error, keys: &'static [Key]) -> ConfigError {
        let secret = self.text.parse::<MeetingSecret>();
        if !matches!(secret, Err(BadSecret::Prefix)) {
            let state = if secret.is_ok() { "the secret of a meeting" } else { "a damaged secret of a meeting" };
            return ConfigError::Value {
                at: self.file(),
                what: format!("this is {state}, not a configuration or a public file"),
                remedy: "name it in a forward, LISTEN=meet:@FILE, and give it to the other user alone".to_owned(),
            };
        }
        let at = error.span().map_or_else(|| Location::file(&self.path), |span| self.at(&span));
        let line = at.line.and_then(|line| self.text.lines().nth(line - 1)).unwrap_or_default();
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        let key = table::find(keys, name.trim());
        let mut what = error.message().lines().collect::<Vec<_>>().join(", ");
        if what.starts_with("duplicate key") {
            return self.duplicate(at, name.trim());
        }
        if let Some(key) = key
            && value.trim().is_empty()
        {
            what = format!("{} has no value", key.name);
        } else if let Some(key) = key
            && matches!(key.kind, Kind::Text(_) | Kind::Word(_))
            && !value.trim_start().starts_with(['"', '\''])
        {
            what = format!("the value of {} needs quotes", key.name);
        }
        if self.text.trim_start().starts_with('<') {
            return ConfigError::Value {
                at: self.file(),
                what: "this is a web page (HTML), not a file of eddy".into(),
                remedy: "get the file again: save the file itself, not a page that shows it".into(),
            };
        }
        match key {
            Some(key) => ConfigError::Value {
                at,
                what,
                remedy: restored(key).map_or_else(|| format!("write {}", quoted_line(key)), str::to_owned),
            },
            None => ConfigError::Syntax { at, what },
        }
    }

    /// A key or table that the file sets twice, for the second time at `at`.
    fn duplicate(&self, at: Location, name: &str) -> ConfigError {
        let begins = |line: &str| line.split('=').next().unwrap_or_default().trim() == name;
        let before = self.text.lines().take(at.line.map_or(0, |line| line - 1)).collect::<Vec<_>>();
        let first = before.iter().rposition(|line| begins(line));
        // In a key file anything may be a secret.
        let named = if self.secret { String::new() } else { format!(" {name}") };
        let first = first.map_or("an earlier line".to_owned(), |line| format!("line {}", line + 1));
        let what = format!("duplicate key{named}: {first} sets it, too");
        ConfigError::Value { at, what, remedy: "remove one of the two lines".into() }
    }
}

/// A table of a file. Its names are known; its values are once [`Table::check`] has passed.
pub(crate) struct Table<'s> {
    source: &'s Source,
    keys: &'static [Key],
    values: DeTable<'s>,
    /// The table's name and location, and the keys of the file, if it is not the whole file.
    inside: Option<Inside>,
}

/// The place of an inner table.
struct Inside {
    /// `[caps]` or `[[forward]]`.
    header: String,
    at: Range<usize>,
    /// The keys above the first table.
    top: &'static [Key],
}

/// A text of a file.
pub(crate) struct Text<'t> {
    source: &'t Source,
    pub(crate) value: &'t str,
    span: Range<usize>,
}

impl Text<'_> {
    /// An error at this text: what is wrong with it, then what to do.
    pub(crate) fn wrong(&self, what: impl Into<String>, remedy: impl Into<String>) -> ConfigError {
        let what = without_secret(&what.into()).into_owned();
        ConfigError::Value { at: self.source.at(&self.span), what, remedy: remedy.into() }
    }

    /// The same in one text.
    pub(crate) fn invalid(&self, what: impl Into<String>) -> ConfigError {
        let what = without_secret(&what.into()).into_owned();
        ConfigError::Invalid { at: self.source.at(&self.span), what }
    }

    pub(crate) fn at(&self) -> Location {
        self.source.at(&self.span)
    }

    /// Bytes in base64.
    pub(crate) fn bytes<const N: usize>(&self, key: &str) -> Result<[u8; N], ConfigError> {
        decode_base64(self.value).and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| {
            self.wrong(format!("{key} must be {N} bytes in base64"), "copy it from where it was published")
        })
    }
}

impl<'s> Table<'s> {
    /// The keys that are set, in the order of the file.
    fn in_order(&self) -> Vec<(&Spanned<std::borrow::Cow<'s, str>>, &Spanned<DeValue<'s>>)> {
        let mut all: Vec<_> = self.values.iter().collect();
        all.sort_by_key(|(name, _)| name.span().start);
        all
    }

    /// Refuses a file of another kind, such as the chain file instead of a node's configuration.
    fn check_kind(&self) -> Result<(), ConfigError> {
        let of_kind = |keys: &'static [Key]| self.values.keys().all(|name| table::find(keys, name.get_ref()).is_some());
        if of_kind(self.keys) {
            return Ok(());
        }
        let kind = |is: &dyn Fn(&&FileKind) -> bool| WHOLE_FILES.iter().find(is);
        // By name: the compiler may keep a table of keys at several addresses.
        let is_own = |kind: &&FileKind| kind.keys.iter().map(|key| key.name).eq(self.keys.iter().map(|key| key.name));
        let found = kind(&|kind| of_kind(kind.keys)).zip(kind(&is_own));
        let Some((found, expected)) = found else { return Ok(()) };
        let entry = match (found.name, expected.name) {
            (table::CHAIN, table::CONFIGURATION) => {
                format!("; an entry needs no file of its own: `eddy entry --chain {}`", self.source.path.display())
            }
            _ => String::new(),
        };
        Err(ConfigError::Value {
            at: self.source.file(),
            what: format!("this is {}, expected {}", found.name, expected.name),
            remedy: format!("name {}{entry}", expected.example),
        })
    }

    /// Refuses names that are not in the table of keys.
    fn check_names(&self) -> Result<(), ConfigError> {
        for (name, _) in self.in_order() {
            if table::find(self.keys, name.get_ref()).is_none() {
                return Err(self.unknown(name.get_ref(), &name.span()));
            }
        }
        Ok(())
    }

    fn unknown(&self, name: &str, span: &Range<usize>) -> ConfigError {
        let names: Vec<&str> = self.keys.iter().map(|key| key.name).collect();
        let elsewhere = table::ALL_FILES.iter().filter(|(_, keys)| table::find(keys, name).is_some());
        let elsewhere: Vec<&str> = elsewhere.map(|(file, _)| *file).collect();
        let captured = self.inside.as_ref().filter(|inside| table::find(inside.top, name).is_some());
        let hint = if let Some(Inside { header, .. }) = captured {
            format!("every key below the line {header} belongs to that table: move `{name}` above the first table")
        } else if !elsewhere.is_empty() {
            let files = elsewhere.join(" or ");
            format!("it belongs in {files}: check which file was named, and in which table it is")
        } else if let Some(near) = nearest(name, &names) {
            format!("did you mean `{near}`?")
        } else {
            format!("the keys here are {}", names.join(", "))
        };
        let at = self.source.at(span);
        // Name and value may be swapped.
        if self.source.secret && elsewhere.is_empty() {
            return ConfigError::Value {
                at,
                what: "unknown key (it may be a secret, so it is not shown)".into(),
                remedy: hint,
            };
        }
        ConfigError::UnknownKey { at, key: name.to_owned(), hint }
    }

    /// Checks roles, types, ranges, and that nothing is missing; inner tables as well.
    pub(crate) fn check(&self, role: NodeRole) -> Result<(), ConfigError> {
        for (name, value) in self.in_order() {
            let key = table::find(self.keys, name.get_ref()).expect("names were checked");
            if !key.roles.contains(&role) {
                return Err(ConfigError::Value {
                    at: self.source.at(&name.span()),
                    what: format!("the key `{}` does not apply to role = \"{role}\"", key.name),
                    remedy: format!("move it to {}", table::files(key.roles)),
                });
            }
            self.check_value(key, value, role)?;
        }
        let required = |key: &&Key| matches!(key.default, DefaultValue::Required) && key.roles.contains(&role);
        let missing = self.keys.iter().filter(required).find(|key| self.get(key.name).is_none());
        missing.map_or(Ok(()), |key| Err(self.missing(key)))
    }

    /// The role that a node's configuration names.
    pub(crate) fn role(&self) -> Result<NodeRole, ConfigError> {
        let key = table::find(self.keys, "role").expect("a node's keys");
        let Some(value) = self.get("role") else { return Err(self.missing(key)) };
        self.check_value(key, value, NodeRole::Mix)?;
        Ok(match value.get_ref().as_str() {
            Some("entry") => NodeRole::Entry,
            Some("mix") => NodeRole::Mix,
            _ => NodeRole::Exit,
        })
    }

    fn missing(&self, key: &Key) -> ConfigError {
        let at = self.at();
        match restored(key) {
            Some(remedy) => {
                let what = format!("the key `{}` is missing, so the file was changed or cut short", key.name);
                ConfigError::Value { at, what, remedy: remedy.to_owned() }
            }
            None => ConfigError::MissingKey { at, key: key.name.to_owned(), example: quoted_line(key) },
        }
    }

    fn check_value(&self, key: &Key, value: &Spanned<DeValue<'s>>, role: NodeRole) -> Result<(), ConfigError> {
        let fits = match (&key.kind, value.get_ref()) {
            (Kind::Integer(min, max), value) => integer(value).is_some_and(|number| (*min..=*max).contains(&number)),
            (Kind::Integers(min, max), DeValue::Array(all)) => {
                all.iter().all(|one| integer(one.get_ref()).is_some_and(|number| (*min..=*max).contains(&number)))
            }
            (Kind::Switch, DeValue::Boolean(_)) | (Kind::Text(_), DeValue::String(_)) => true,
            (Kind::Word(words), DeValue::String(word)) => words.contains(&word.as_ref()),
            (Kind::Texts(_), DeValue::Array(all)) => all.iter().all(|one| one.get_ref().is_str()),
            (Kind::Names(_), DeValue::Table(inner)) => inner.iter().all(|(_, one)| one.get_ref().is_str()),
            (Kind::Table(_), DeValue::Table(_)) => return self.inner(key, value)?.check(role),
            (Kind::Classes(_), DeValue::Table(inner)) if inner.values().all(|one| one.get_ref().is_table()) => {
                return self.classes(key.name)?.iter().try_for_each(|(_, table)| table.check(role));
            }
            (Kind::Tables(_) | Kind::Either { .. }, DeValue::Array(all))
                if all.iter().all(|one| one.get_ref().is_table()) =>
            {
                return all.iter().try_for_each(|one| self.inner(key, one)?.check(role));
            }
            _ => false,
        };
        if fits {
            return Ok(());
        }

        let default = key.default_value().map_or(String::new(), |default| format!("; the default is {default}"));
        let remedy = match (&key.kind, value.get_ref()) {
            (Kind::Word(words), DeValue::String(word)) => {
                nearest(word, words).map(|near| format!("did you mean \"{near}\"?"))
            }
            _ => None,
        };
        Err(ConfigError::Value {
            at: self.source.at(&value.span()),
            what: format!("{} must be {} (got {})", key.name, key.kind.expected(), self.found(value.get_ref())),
            remedy: remedy.unwrap_or_else(|| format!("for example {}{default}", quoted_line(key))),
        })
    }

    /// A value that is not accepted, in the form in which it may be quoted.
    fn found(&self, value: &DeValue<'_>) -> String {
        match value {
            _ if self.source.secret => value.type_str().to_owned(),
            DeValue::String(text) if text.len() <= 80 => format!("{:?}", without_secret(text)),
            DeValue::Integer(number) => number.to_string(),
            DeValue::Float(number) => number.as_str().to_owned(),
            DeValue::Boolean(switch) => switch.to_string(),
            other => other.type_str().to_owned(),
        }
    }

    fn inner(&self, key: &Key, value: &Spanned<DeValue<'s>>) -> Result<Table<'s>, ConfigError> {
        let keys = match key.kind {
            Kind::Table(keys) => return self.inner_at(keys, format!("[{}]", key.name), value),
            Kind::Tables(keys) => keys,
            Kind::Either { mark, with, without } => {
                if value.get_ref().as_table().is_some_and(|values| values.contains_key(mark)) { with } else { without }
            }
            _ => unreachable!("{} is not a table", key.name),
        };
        self.inner_at(keys, format!("[[{}]]", key.name), value)
    }

    fn inner_at(
        &self,
        keys: &'static [Key],
        header: String,
        value: &Spanned<DeValue<'s>>,
    ) -> Result<Table<'s>, ConfigError> {
        let values = value.get_ref().as_table().cloned().unwrap_or_default();
        let inside = Some(Inside { header, at: value.span(), top: self.keys });
        let table = Table { source: self.source, keys, values, inside };
        table.check_names()?;
        Ok(table)
    }

    fn get(&self, name: &str) -> Option<&Spanned<DeValue<'s>>> {
        debug_assert!(table::find(self.keys, name).is_some(), "{name} is in the table of keys");
        self.values.get(name)
    }

    /// True if it may have this key.
    pub(crate) fn knows(&self, name: &str) -> bool {
        table::find(self.keys, name).is_some()
    }

    /// True if the file sets a key.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// A whole number: the file's or the default. None if there is neither.
    pub(crate) fn maybe_integer(&self, name: &str) -> Option<i64> {
        let default = || table::find(self.keys, name)?.default_value()?.parse().ok();
        self.get(name).and_then(|value| integer(value.get_ref())).or_else(default)
    }

    /// A whole number that is required or has a default.
    pub(crate) fn integer(&self, name: &str) -> i64 {
        self.maybe_integer(name).expect("a number is required or has a default")
    }

    /// A switch, which has a default.
    pub(crate) fn switch(&self, name: &str) -> bool {
        let default = || table::find(self.keys, name).and_then(Key::default_value).is_some_and(|value| value == "true");
        self.get(name).and_then(|value| value.get_ref().as_bool()).unwrap_or_else(default)
    }

    /// A text that is set.
    pub(crate) fn maybe_text(&self, name: &str) -> Option<Text<'_>> {
        let value = self.get(name)?;
        Some(self.text_of(value))
    }

    /// A required text.
    pub(crate) fn text(&self, name: &str) -> Text<'_> {
        self.maybe_text(name).expect("required")
    }

    fn text_of<'t>(&'t self, value: &'t Spanned<DeValue<'s>>) -> Text<'t> {
        Text { source: self.source, value: value.get_ref().as_str().unwrap_or_default(), span: value.span() }
    }

    /// A text in its parsed form: the file's or the default.
    pub(crate) fn parsed<T: FromStr<Err: std::fmt::Display>>(&self, name: &str) -> Result<T, ConfigError> {
        if let Some(text) = self.maybe_text(name) {
            return text.value.parse().map_err(|why: T::Err| text.invalid(why.to_string()));
        }
        let default = table::find(self.keys, name).and_then(Key::default_value).unwrap_or_default();
        default
            .trim_matches('"')
            .parse()
            .map_err(|why| ConfigError::Arguments(format!("the default of {name} is wrong: {why}: report this bug")))
    }

    /// A list of texts, each read by `read`.
    pub(crate) fn texts<T>(
        &self,
        name: &str,
        read: impl Fn(&Text<'_>) -> Result<T, ConfigError>,
    ) -> Result<Vec<T>, ConfigError> {
        self.elements(name).map(|value| read(&self.text_of(value))).collect()
    }

    /// A list of whole numbers.
    pub(crate) fn integers(&self, name: &str) -> Vec<i64> {
        self.elements(name).filter_map(|value| integer(value.get_ref())).collect()
    }

    fn elements(&self, name: &str) -> impl Iterator<Item = &Spanned<DeValue<'s>>> {
        self.get(name).and_then(|value| value.get_ref().as_array()).into_iter().flatten()
    }

    /// The table of a `Kind::Table`, empty if it is not set.
    pub(crate) fn sub(&self, name: &str) -> Result<Table<'s>, ConfigError> {
        let key = table::find(self.keys, name).expect("a table of keys");
        match self.get(name) {
            Some(value) => self.inner(key, value),
            None => self.inner(key, &Spanned::new(0..0, DeValue::Table(DeTable::new()))),
        }
    }

    /// The tables of a `Kind::Tables` or a `Kind::Either`.
    pub(crate) fn subs(&self, name: &str) -> Result<Vec<Table<'s>>, ConfigError> {
        let key = table::find(self.keys, name).expect("a table of keys");
        self.elements(name).map(|value| self.inner(key, value)).collect()
    }

    /// The tables of a `Kind::Classes`, in the order of the file.
    pub(crate) fn classes(&self, name: &str) -> Result<Vec<(ClassName, Table<'s>)>, ConfigError> {
        let key = table::find(self.keys, name).expect("a table of keys");
        let Kind::Classes(keys) = key.kind else { unreachable!("{name} has no classes") };
        let inner = self.get(name).and_then(|value| value.get_ref().as_table());
        let mut all: Vec<_> = inner.into_iter().flatten().collect();
        all.sort_by_key(|(class, _)| class.span().start);
        let read = |(class, value): (&Spanned<std::borrow::Cow<'_, str>>, &Spanned<DeValue<'s>>)| {
            let known = class.get_ref().parse::<ClassName>().map_err(|_| ConfigError::Value {
                at: self.source.at(&class.span()),
                what: format!("unknown class {:?}", class.get_ref()),
                remedy: format!(
                    "the tables here are [{name}.S], [{name}.M], [{name}.L] and those of paced classes in the chain file, \
                     such as [{name}.voice]"
                ),
            })?;
            let said = format!("[{name}.{known}]");
            Ok((known, self.inner_at(keys, said, value)?))
        };
        all.into_iter().map(read).collect()
    }

    /// The texts of a `Kind::Names`.
    pub(crate) fn names(&self, name: &str) -> Vec<(String, Zeroizing<String>)> {
        let table = self.get(name).and_then(|value| value.get_ref().as_table());
        let all = table.into_iter().flatten();
        let pair = |(name, value): (&Spanned<std::borrow::Cow<'_, str>>, &Spanned<DeValue<'_>>)| {
            (name.get_ref().to_string(), Zeroizing::new(value.get_ref().as_str().unwrap_or_default().to_owned()))
        };
        all.map(pair).collect()
    }

    /// Where it begins: an inner table at its header.
    pub(crate) fn at(&self) -> Location {
        self.inside.as_ref().map_or_else(|| self.source.file(), |inside| self.source.at(&inside.at))
    }

    /// An error at a key's value, or at the table if the key is not set.
    pub(crate) fn wrong(&self, name: &str, what: impl Into<String>, remedy: impl Into<String>) -> ConfigError {
        let at = self.get(name).map_or_else(|| self.at(), |value| self.source.at(&value.span()));
        ConfigError::Value { at, what: what.into(), remedy: remedy.into() }
    }

    /// The keys that are set and their lines; of lists one per element, of tables that of their first key.
    pub(crate) fn lines(&self) -> Vec<(&'static str, Option<usize>)> {
        let mut lines = Vec::new();
        for (name, value) in self.in_order() {
            let Some(key) = table::find(self.keys, name.get_ref()) else { continue };
            let spans: Vec<Range<usize>> = match value.get_ref() {
                DeValue::Array(all) if matches!(key.kind, Kind::Tables(_)) => {
                    let firsts = all.iter().filter_map(|one| one.get_ref().as_table());
                    firsts.filter_map(|one| one.values().map(Spanned::span).min_by_key(|span| span.start)).collect()
                }
                DeValue::Array(all) if !all.is_empty() => all.iter().map(Spanned::span).collect(),
                _ => vec![value.span()],
            };
            lines.extend(spans.iter().map(|span| (key.name, self.source.at(span).line)));
        }
        lines
    }

    /// A value as JSON, if it is set. Strings, numbers, switches and lists of them are TOML at the same time.
    pub(crate) fn json(&self, name: &str) -> Option<serde_json::Value> {
        self.get(name).map(|value| json(value.get_ref()))
    }
}

fn json(value: &DeValue<'_>) -> serde_json::Value {
    match value {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Integer(_) => integer(value).into(),
        DeValue::Boolean(switch) => (*switch).into(),
        DeValue::Array(all) => all.iter().map(|one| json(one.get_ref())).collect(),
        DeValue::Table(table) => {
            let pairs = table.iter().map(|(name, value)| (name.get_ref().to_string(), json(value.get_ref())));
            serde_json::Value::Object(pairs.collect())
        }
        DeValue::Float(_) | DeValue::Datetime(_) => serde_json::Value::Null,
    }
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let number = value.as_integer()?;
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// The remedy for a key that a command of eddy writes, and nobody by hand.
fn restored(key: &Key) -> Option<&'static str> {
    match key.example {
        table::MADE => Some("restore the file that `eddy keygen` or `eddy init` wrote"),
        table::ASSEMBLED | table::COPY => Some("get the file again from whoever made the chain"),
        _ => None,
    }
}

/// A line that sets `key`, in backticks.
fn quoted_line(key: &Key) -> String {
    format!("`{}`", key.line())
}

/// The known name that is most similar to `name`.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let scored = known.iter().map(|one| (strsim::jaro_winkler(name, one), *one));
    scored.filter(|(score, _)| *score > 0.7).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, one)| one)
}

/// Base64 with padding, the form of all files.
pub fn encode_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(crate) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}
