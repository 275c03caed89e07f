//! The table of configuration keys: name, roles, type, default, doc and example of each, in one place.
//!
//! Parser, role check, suggestions for misspelt keys, generated files, the handbook's table and `eddy config` follow
//! from it. A new key of a node is a row of `table_node.rs`, a field of [`super::NodeConfig`] and the line that
//! reads it.

use super::NodeRole::{self, Entry, Exit, Mix};
pub use super::table_node::{CAPS, CLASS, FORWARD, NODE};
use super::table_trust::{
    CHAIN_CLASS, CHAIN_FILE, CHAIN_HOP, CHAIN_PACED_CLASS, DESCRIPTOR_FILE, IDENTITY_FILE, NODE_KEY_FILE, REQUEST_FILE,
};

/// One key.
pub struct Key {
    /// As written in the file.
    pub name: &'static str,
    /// The roles whose configuration has it.
    pub roles: &'static [NodeRole],
    /// The accepted values.
    pub kind: Kind,
    /// Its meaning when it is not set.
    pub default: DefaultValue,
    /// The first sentence also follows the line in a generated file.
    pub doc: &'static str,
    /// A value, as TOML. Empty: the default is the example.
    pub example: &'static str,
}

/// The accepted values of a key.
pub enum Kind {
    /// A whole number from a range, both ends included.
    Integer(i64, i64),
    /// A list of such numbers.
    Integers(i64, i64),
    /// `true` or `false`.
    Switch,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Text in this form.
    Text(&'static str),
    /// A list of texts in this form.
    Texts(&'static str),
    /// A table of its own, `[name]`.
    Table(&'static [Key]),
    /// Any number of such tables, `[[name]]`.
    Tables(&'static [Key]),
    /// Any number of such tables of two kinds: those with the key `mark` have the keys `with`, the others `without`.
    Either { mark: &'static str, with: &'static [Key], without: &'static [Key] },
    /// At most one such table for each class, `[name.CLASS]`.
    Classes(&'static [Key]),
    /// A table of texts whose names are the operator's, in this form.
    Names(&'static str),
}

/// The meaning of a key that is not set.
pub enum DefaultValue {
    /// The key must be set.
    Required,
    /// No value, with its meaning.
    Unset(&'static str),
    /// This number.
    Integer(i64),
    /// This value, as TOML.
    Value(&'static str),
}

pub(super) const ALL: &[NodeRole] = &[Entry, Mix, Exit];

/// A key of another kind of file.
pub(super) const fn plain(name: &'static str, kind: Kind, doc: &'static str, example: &'static str) -> Key {
    Key { name, roles: ALL, kind, default: DefaultValue::Required, doc, example }
}

pub(super) const ASSEMBLED: &str = "\"...\" as `eddy assemble` wrote it";
pub(super) const MADE: &str = "\"...\" as `eddy keygen` wrote it";
pub(super) const COPY: &str = "\"...\" as the chain's operator gives it";

pub(super) const SECRET: Kind = Kind::Text("32 bytes in base64");

/// An optional key of a key file.
pub(super) const fn optional(
    name: &'static str,
    kind: Kind,
    unset: &'static str,
    doc: &'static str,
    example: &'static str,
) -> Key {
    Key { name, roles: ALL, kind, default: DefaultValue::Unset(unset), doc, example }
}

/// The key of an entry's file of SOCKS users.
pub static USERS_FILE: &[Key] = &[plain(
    "socks_users",
    Kind::Names("name = \"password\""),
    "Users of an entry's SOCKS ports from other hosts (RFC 1929).",
    "",
)];

/// All tables, with what messages call their files.
pub static ALL_FILES: &[(&str, &[Key])] = &[
    (CONFIGURATION, NODE),
    ("a [[forward]] of entry.toml", FORWARD),
    ("[caps] of mixN.toml or exit.toml", CAPS),
    ("a file of SOCKS users", USERS_FILE),
    ("chain.toml", CHAIN_FILE),
    ("a [[class]] of chain.toml", CHAIN_CLASS),
    ("a [[class]] with period_ms of chain.toml", CHAIN_PACED_CLASS),
    ("a [[hop]] of chain.toml", CHAIN_HOP),
    ("node.desc", DESCRIPTOR_FILE),
    ("node.request", REQUEST_FILE),
    ("node.key", NODE_KEY_FILE),
    ("identity.key", IDENTITY_FILE),
];

/// A kind of file.
pub struct FileKind {
    /// As messages call it.
    pub name: &'static str,
    /// A file of this kind, for messages.
    pub example: &'static str,
    pub keys: &'static [Key],
}

pub(super) const CONFIGURATION: &str = "a node's configuration";
pub(super) const CHAIN: &str = "the chain's public file";

/// All kinds of files.
pub static WHOLE_FILES: &[FileKind] = &[
    FileKind { name: CONFIGURATION, example: "the node's own file, such as node.toml or mix1.toml", keys: NODE },
    FileKind { name: CHAIN, example: "chain.toml as `eddy assemble` writes it", keys: CHAIN_FILE },
    FileKind { name: "a key file", example: "the node's key file, such as mix1.key", keys: NODE_KEY_FILE },
    FileKind { name: "a node's identity", example: "identity.key as `eddy keygen` writes it", keys: IDENTITY_FILE },
    FileKind { name: "a node's descriptor", example: "node.desc as `eddy keygen` writes it", keys: DESCRIPTOR_FILE },
    FileKind {
        name: "a request for new keys",
        example: "node.request as `eddy keygen --rotate` writes it",
        keys: REQUEST_FILE,
    },
];

impl Key {
    /// The first sentence of its doc.
    pub fn summary(&self) -> &'static str {
        self.doc.split_once(". ").map_or(self.doc, |(first, _)| first).trim_end_matches('.')
    }

    /// Its default as TOML, if it is a value.
    pub fn default_value(&self) -> Option<String> {
        match self.default {
            DefaultValue::Integer(number) => Some(number.to_string()),
            DefaultValue::Value(text) => Some(text.to_owned()),
            DefaultValue::Required | DefaultValue::Unset(_) => None,
        }
    }

    /// A line that sets it, or how its table is written.
    pub fn line(&self) -> String {
        match &self.kind {
            Kind::Table(keys) => format!("[{}] with lines such as {}", self.name, keys[0].line()),
            Kind::Tables(keys) | Kind::Either { without: keys, .. } => {
                let required = keys.iter().filter(|key| matches!(key.default, DefaultValue::Required));
                let names: Vec<&str> = required.map(|key| key.name).collect();
                format!("[[{}]] with {} below it", self.name, names.join(", "))
            }
            Kind::Classes(keys) => format!("[{}.M] with lines such as {}", self.name, keys[0].line()),
            Kind::Names(form) => format!("[{}] with lines such as {form}", self.name),
            _ if self.example.is_empty() => format!("{} = {}", self.name, self.default_value().unwrap_or_default()),
            _ => format!("{} = {}", self.name, self.example),
        }
    }
}

impl Kind {
    /// The values, for messages and tables: "a whole number from 1 to 8".
    pub fn expected(&self) -> String {
        match self {
            Kind::Integer(min, max) => format!("a whole number from {min} to {max}"),
            Kind::Integers(min, max) => format!("a list of whole numbers from {min} to {max}"),
            Kind::Switch => "true or false".to_owned(),
            Kind::Word(words) => {
                let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
                match quoted.split_last() {
                    Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
                    _ => quoted.concat(),
                }
            }
            Kind::Text(form) => format!("text: {form}"),
            Kind::Texts(form) => format!("a list of texts: {form}"),
            Kind::Table(_) => "a table".to_owned(),
            Kind::Tables(_) | Kind::Either { .. } => "tables".to_owned(),
            Kind::Classes(_) => "a table for each class: S, M, L, or the name of a paced one".to_owned(),
            Kind::Names(form) => format!("lines of the form {form}"),
        }
    }
}

/// The files that have a key: `entry.toml`, `mixN.toml or exit.toml`.
pub fn files(roles: &[NodeRole]) -> String {
    let names = roles.iter().map(|role| if *role == Mix { "mixN.toml".to_owned() } else { format!("{role}.toml") });
    names.collect::<Vec<_>>().join(" or ")
}

/// The key of this name among `keys`.
pub fn find(keys: &'static [Key], name: &str) -> Option<&'static Key> {
    keys.iter().find(|key| key.name == name)
}
