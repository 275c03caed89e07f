//! Where a forward leads.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use dataplane::entry::{Destination, NotADestination};
use thiserror::Error;

/// What a meeting is written behind, before its file.
const MEETING: &str = "meet:";

/// Where a forward leads: `HOST:PORT`, or `meet:@FILE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A destination of the exit.
    Destination(Destination),
    /// The user who has the same secret in a file of this form (SPEC 9.13.1). Only in a paced class.
    Meeting(PathBuf),
}

impl Target {
    /// A relative path of a file is meant from this folder.
    #[must_use]
    pub fn from_folder(self, folder: &Path) -> Target {
        match self {
            Target::Meeting(file) => Target::Meeting(folder.join(file)),
            destination @ Target::Destination(_) => destination,
        }
    }

    /// The destination, unless it is a meeting.
    pub fn destination(&self) -> Option<&Destination> {
        if let Target::Destination(destination) = self { Some(destination) } else { None }
    }
}

impl From<Destination> for Target {
    fn from(destination: Destination) -> Target {
        Target::Destination(destination)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Destination(destination) => destination.fmt(f),
            Target::Meeting(file) => write!(f, "{MEETING}@{}", file.display()),
        }
    }
}

/// A text that is not a target.
#[derive(Debug, Error)]
pub enum NotATarget {
    #[error(transparent)]
    Destination(#[from] NotADestination),
    /// It may be the secret, so it is not quoted.
    #[error(
        "a meeting is named by the file with its secret: expected meet:@FILE, which `eddy meet new --out FILE` makes; \
         other users of this host see a secret on a command line"
    )]
    Meeting,
}

impl FromStr for Target {
    type Err = NotATarget;

    fn from_str(text: &str) -> Result<Target, NotATarget> {
        match text.strip_prefix(MEETING) {
            Some(file) => match file.strip_prefix('@').filter(|file| !file.is_empty()) {
                Some(file) => Ok(Target::Meeting(file.into())),
                None => Err(NotATarget::Meeting),
            },
            None => Ok(Target::Destination(text.parse()?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_is_a_destination_or_the_file_of_a_meeting() {
        let target = |text: &str| text.parse::<Target>();
        assert_eq!(target("meet:@a/b.secret").unwrap(), Target::Meeting("a/b.secret".into()));
        assert_eq!(target("meet:@a").unwrap().from_folder(Path::new("/etc")).to_string(), "meet:@/etc/a");
        assert_eq!(target("meet.example:5").unwrap().to_string(), "meet.example:5");
        for bad in ["meet:", "meet:@", "meet:eddy-meet-1:00"] {
            let why = target(bad).unwrap_err().to_string();
            assert!(why.contains("meet:@FILE") && !why.contains("eddy-meet-1"), "{why}");
        }
    }
}
