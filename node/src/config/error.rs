//! Mistakes in files and on the command line: location, mistake and remedy, on one line each.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use control::descriptor::DescriptorError;
use thiserror::Error;
use wire::cell::Class;

/// A file, and a line if one is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The file.
    pub path: PathBuf,
    /// Its line, from 1.
    pub line: Option<usize>,
}

impl Location {
    /// A whole file.
    pub fn file(path: &Path) -> Location {
        Location { path: path.to_owned(), line: None }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.line.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

/// The system's message, without its error number.
pub fn in_words(why: &io::Error) -> String {
    let text = why.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// What to do when the system refuses to write a file or folder.
fn write_remedy(why: &io::Error) -> &'static str {
    match why.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "choose a folder that this user may write to",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some space, or choose a folder on another disk",
        ErrorKind::AlreadyExists | ErrorKind::NotADirectory => {
            "a file is in the way: remove it, or choose another folder"
        }
        ErrorKind::IsADirectory => "a folder is in the way: remove it, or choose another folder",
        _ => "choose another folder",
    }
}

/// A mistake in a file, an option or a setting of this host: the command ends with exit code 2.
///
/// The message is one line: the location, the expected and the found value, and the remedy.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A file that cannot be read.
    #[error("{}: {}: {remedy}", path.display(), in_words(why))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The answer of the system.
        why: io::Error,
        /// The remedy.
        remedy: String,
    },
    /// A file or folder that cannot be written.
    #[error("{}: {}: {}", path.display(), in_words(why), write_remedy(why))]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The answer of the system.
        why: io::Error,
    },
    /// The text is not TOML.
    #[error("{at}: {what}: write it as TOML, one `key = value` per line")]
    Syntax {
        /// The location.
        at: Location,
        /// The message of the parser.
        what: String,
    },
    /// The file has no such key.
    #[error("{at}: unknown key `{key}`: {hint}")]
    UnknownKey {
        /// The location.
        at: Location,
        /// As written.
        key: String,
        /// The nearest known key, or all of them.
        hint: String,
    },
    /// A required key is not set.
    #[error("{at}: the key `{key}` is missing: add {example}")]
    MissingKey {
        /// The location.
        at: Location,
        /// Its name.
        key: String,
        /// A line that sets it.
        example: String,
    },
    /// A value that is not accepted.
    #[error("{at}: {what}: {remedy}")]
    Value {
        /// The location.
        at: Location,
        /// The mistake.
        what: String,
        /// The remedy.
        remedy: String,
    },
    /// The same, with a text that includes the remedy.
    #[error("{at}: {what}")]
    Invalid {
        /// The location.
        at: Location,
        /// The mistake and its remedy.
        what: String,
    },
    /// A descriptor that is not accepted.
    #[error("{at}: {node}: {why}")]
    Descriptor {
        /// The location.
        at: Location,
        /// The node's name.
        node: String,
        /// The reason, with the remedy.
        why: DescriptorError,
    },
    /// A key file that others may read.
    #[error("{}: mode {mode:04o} lets other users read these keys: run `chmod 600 {}`", path.display(), path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file that would be overwritten.
    #[error("{} exists: choose another folder, or overwrite the chain and its keys with --force", .0.display())]
    Exists(PathBuf),
    /// Cells too long for a path of 1500 bytes.
    #[error(
        "class {class} with {mixes} mixes needs datagrams of {cell} bytes, but over {family} only {limit} fit: \
         use --mixes {fits} or --class {smaller}"
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
        /// The most mixes that fit.
        fits: usize,
        /// A class that fits.
        smaller: Class,
    },
    /// Any other mistake; the text is complete.
    #[error("{0}")]
    Arguments(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedy_of_a_failed_write_fits_its_cause() {
        for (kind, remedy) in [
            (ErrorKind::PermissionDenied, "choose a folder that this user may write to"),
            (ErrorKind::StorageFull, "free some space, or choose a folder on another disk"),
            (ErrorKind::AlreadyExists, "a file is in the way: remove it, or choose another folder"),
        ] {
            let said = ConfigError::Unwritable { path: "demo".into(), why: kind.into() }.to_string();
            assert!(said.ends_with(remedy), "{said}");
        }
    }
}
