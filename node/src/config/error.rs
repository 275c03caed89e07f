//! What is wrong in a file or on the command line, where, and what to do about it: one line each.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use control::descriptor::DescriptorError;
use thiserror::Error;
use wire::cell::Class;

/// A file, and a line of it where one is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Its line, from 1.
    pub line: Option<usize>,
}

impl Place {
    /// A whole file.
    pub fn file(path: &Path) -> Place {
        Place { path: path.to_owned(), line: None }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.line.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

/// What the system says, without its error number.
pub fn in_words(why: &io::Error) -> String {
    let text = why.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// An operator's mistake: the command ends with exit code 2.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A file that cannot be read.
    #[error("{}: {}: {remedy}", path.display(), in_words(why))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: io::Error,
        /// What to do.
        remedy: String,
    },
    /// A file or folder that cannot be written.
    #[error("{}: {}: choose a folder that this user may write to", path.display(), in_words(why))]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: io::Error,
    },
    /// No TOML.
    #[error("{at}: {what}: write it as TOML, one `key = value` per line")]
    Syntax {
        /// Where.
        at: Place,
        /// What the parser says.
        what: String,
    },
    /// A key that the file does not have.
    #[error("{at}: unknown key `{key}`: {hint}")]
    UnknownKey {
        /// Where.
        at: Place,
        /// As written.
        key: String,
        /// The nearest known key, or all of them.
        hint: String,
    },
    /// A key that the file must have.
    #[error("{at}: the key `{key}` is missing: add {example}")]
    MissingKey {
        /// Where.
        at: Place,
        /// Which.
        key: String,
        /// A line that would do.
        example: String,
    },
    /// A value that cannot be.
    #[error("{at}: {what}: {remedy}")]
    Value {
        /// Where.
        at: Place,
        /// What is wrong.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// A value that cannot be, in words that name the remedy.
    #[error("{at}: {what}")]
    Invalid {
        /// Where.
        at: Place,
        /// What is wrong and what to do.
        what: String,
    },
    /// A descriptor that is not accepted.
    #[error("{at}: node {index}: {why}")]
    Descriptor {
        /// Where.
        at: Place,
        /// The node's place in the chain.
        index: usize,
        /// Why not; names the remedy.
        why: DescriptorError,
    },
    /// A key file that others may read.
    #[error("{}: mode {mode:04o} lets others read these keys: run `chmod 600 {}`", path.display(), path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file that would be overwritten.
    #[error("{} exists: choose another folder, or overwrite the chain and its keys with --force", .0.display())]
    Exists(PathBuf),
    /// Cells that no usual path carries.
    #[error(
        "class {class} with {mixes} mixes makes datagrams of {cell} bytes, over {family} {limit} fit: \
         take --mixes {fits} or --class {smaller}"
    )]
    TooLong {
        /// The class.
        class: Class,
        /// The mixes.
        mixes: usize,
        /// IPv4 or IPv6.
        family: &'static str,
        /// The longest cell.
        cell: usize,
        /// The longest that fits.
        limit: usize,
        /// So many mixes fit.
        fits: usize,
        /// A class that fits.
        smaller: Class,
    },
    /// Anything else; the text says what, where, and what to do.
    #[error("{0}")]
    Arguments(String),
}
