//! Where a forward leads.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use dataplane::entry::{Destination, NotADestination};
use thiserror::Error;
use wire::paced::MeetingSecret;

/// What a meeting is written behind, before its file.
const MEETING: &str = "meet:";

/// How secrets of meetings begin, of whatever version.
const SECRET: &str = "eddy-meet-";

/// As many characters behind that may be a version. More are of a secret.
const VERSION_MAX: usize = 4;

/// A text as messages may quote it: a secret of a meeting, which somebody wrote in the wrong place, would stay in logs.
pub fn without_secret(text: &str) -> Cow<'_, str> {
    let Some((before, after)) = text.split_once(SECRET) else { return text.into() };
    let rest = after.trim_start_matches(|one: char| one.is_ascii_alphanumeric() || one == ':');
    let (own, rest) = (&after[..after.len() - rest.len()], without_secret(rest));
    format!("{before}{SECRET}{}{rest}", if own.len() > VERSION_MAX { "..." } else { own }).into()
}

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
    #[error("{0}")]
    Destination(String),
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
        let has_secret = text.contains(MeetingSecret::PREFIX);
        // `@FILE` and `meet@FILE` are no names of hosts.
        let is_meeting = has_secret || text.starts_with('@') || text.starts_with("meet@");
        let Some(file) = text.strip_prefix(MEETING).or(is_meeting.then_some("")) else {
            let wrong = |why: NotADestination| NotATarget::Destination(without_secret(&why.to_string()).into_owned());
            return text.parse().map(Target::Destination).map_err(wrong);
        };
        let file = file.strip_prefix('@').filter(|file| !file.is_empty() && !has_secret);
        file.map(|file| Target::Meeting(file.into())).ok_or(NotATarget::Meeting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Forward, parse_listen};

    #[test]
    fn target_is_a_destination_or_the_file_of_a_meeting() {
        let target = |text: &str| text.parse::<Target>();
        assert_eq!(target("meet:@a/b.secret").unwrap(), Target::Meeting("a/b.secret".into()));
        assert_eq!(target("meet:@a").unwrap().from_folder(Path::new("/etc")).to_string(), "meet:@/etc/a");
        assert_eq!(target("meet.example:5").unwrap().to_string(), "meet.example:5");
        for bad in [
            "meet:",
            "meet:@",
            "meet:eddy-meet-1:00",
            "meet:@eddy-meet-1:00",
            "eddy-meet-1:00",
            "eddy-meet-1:00:5",
            "@a",
            "meet@a",
            "meet@a:5",
        ] {
            let why = target(bad).unwrap_err().to_string();
            assert!(why.contains("meet:@FILE") && !why.contains("eddy-meet-1"), "{why}");
        }
        assert!(target("meet:@eddy-meet-bob.secret").is_ok(), "the name of a file");
        assert!(target("eddy-meet-2:c0ffee").unwrap_err().to_string().starts_with("\"eddy-meet-...\""));
    }

    #[test]
    fn messages_about_forwards_quote_no_secret() {
        assert_eq!(
            without_secret("a \"eddy-meet-1:c0ffee\" b eddy-meet-c0ffee"),
            "a \"eddy-meet-...\" b eddy-meet-..."
        );
        for bad in [
            "5000=eddy-meet-1:c0ffee,class=voice",
            "5000=eddy-meet-1:c0ffee:5000",
            "5000=meet:@eddy-meet-1:c0ffee",
            "meet:eddy-meet-1:c0ffee=5000",
            "eddy-meet-1:c0ffee",
            "eddy-meet-1:c0ffee=a.example:5",
            "5000=a.example:5,eddy-meet-1:c0ffee",
            "5000=a.example:5,class=eddy-meet-1:c0ffee",
        ] {
            let why = bad.parse::<Forward>().unwrap_err();
            assert!(!why.contains("c0ffee"), "{bad}: {why}");
        }
        assert!("5000=meet:@F,idle_s=5,class=voice".parse::<Forward>().unwrap_err().ends_with("idle: remove idle_s"));
        assert!(!parse_listen("eddy-meet-1:c0ffee").unwrap_err().contains("c0ffee"));
    }
}
