//! The node's process: its keys, its clock, its limits.

use super::super::facts::Facts;
use super::super::finding::{Finding, Fix};
use super::super::subject::Subject;
use eddy_node::runtime::node::DESCRIPTORS_KEPT;

const DAY: u64 = 86_400;

/// The permissions of the key file.
pub fn keys(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "keys";
    let Some(file) = &subject.keys else {
        return Finding::ok(NAME, "made by `eddy chain` for each run");
    };
    let path = file.path.display();
    match (file.exposed, file.mode_and_owner) {
        (true, Some((mode, _))) => Finding::error(
            NAME,
            format!("{path} has mode {mode:04o}: other users can read it"),
            "the node does not start; if anybody has read the keys, make a new chain",
        )
        .fix(Fix::run(format!("chmod 600 {}", quoted(&path)), format!("chmod {mode:o} {}", quoted(&path)))),
        (_, Some((mode, owner))) if file.unreadable => Finding::note(
            NAME,
            format!("not checked: {path} (mode {mode:04o}, owner {owner}) is not readable by user {}", facts.user),
        ),
        (_, None) => Finding::note(NAME, format!("not checked: user {} cannot open the folder of {path}", facts.user)),
        (_, Some((mode, _))) => Finding::ok(NAME, format!("{path} has mode {mode:04o} and belongs to this node")),
    }
}

/// Quoted for a shell if necessary.
fn quoted(path: &impl std::fmt::Display) -> String {
    let path = path.to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+' | '=' | '@' | '%');
    if path.chars().all(plain) && !path.starts_with('-') {
        return path;
    }
    let dash = if path.starts_with('-') { "./" } else { "" };
    format!("'{dash}{}'", path.replace('\'', r"'\''"))
}

/// The validity of the chain's descriptors by this host's clock.
pub fn descriptors_valid(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "descriptors";
    let Some(valid) = &subject.valid else {
        return Finding::ok(NAME, "made by `eddy chain` for each run");
    };
    let again = || Fix::words("make the chain again with `eddy init --force` and restart all nodes with the new files");
    let starts = "no node of the chain starts then";
    if facts.now < valid.start {
        let found = format!("not valid for another {} by this host's clock", span(valid.start - facts.now));
        return Finding::error(NAME, found, starts).fix(Fix::words("check `date -u` and set the clock"));
    }
    if facts.now > valid.end {
        let found = format!("expired {} ago by this host's clock", span(facts.now - valid.end));
        return Finding::error(NAME, found, starts).fix(again());
    }
    let left = valid.end - facts.now;
    let found = format!("valid for another {}", span(left));
    if left < 30 * DAY {
        return Finding::warning(NAME, found, starts).fix(again());
    }
    Finding::ok(NAME, found)
}

/// A time in its largest unit.
fn span(seconds: u64) -> String {
    let units = [(DAY, "days"), (3600, "hours"), (60, "minutes")];
    let unit = units.iter().find(|(length, _)| seconds >= 2 * length);
    unit.map_or_else(|| format!("{seconds} s"), |(length, name)| format!("{} {name}", seconds / length))
}

/// The synchronisation of the clock.
pub fn clock(_: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "clock";
    match facts.clock_kept {
        Some(true) => Finding::ok(NAME, "synchronised (NTP, PTP or similar)"),
        None => Finding::note(NAME, "unknown: this sandbox hides the state of the clock"),
        Some(false) => Finding::warning(
            NAME,
            "not synchronised (a guest's may be correct anyway: compare `date -u`)",
            "a node does not start if its clock is over an hour slow when the chain is new; neighbours refuse a node whose \
             clock was set back (`stale-timestamp`)",
        )
        .fix(Fix::Do {
            what: "`sudo timedatectl set-ntp true`, or install chrony".to_owned(),
            undo: Some("sudo timedatectl set-ntp false".to_owned()),
        }),
    }
}

/// The limit of open files, against the sockets of the node.
pub fn open_files(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "open-files";
    let needed = (subject.max_sockets.unwrap_or(subject.sockets) + DESCRIPTORS_KEPT) as u64;
    let Some(limit) = facts.descriptors.filter(|limit| *limit < needed) else {
        let limit = facts.descriptors.map_or("unlimited".to_owned(), |limit| limit.to_string());
        return Finding::ok(NAME, format!("limit {limit}, the node needs up to {needed}"));
    };

    let found = format!("limit {limit} (ulimit -Hn), the node needs up to {needed}");
    let fix = Fix::Do {
        what: format!(
            "set LimitNOFILE={needed} in the node's unit, or run `ulimit -Hn {needed}` as root before it starts"
        ),
        undo: Some(format!("ulimit -Hn {limit}")),
    };
    match subject.max_sockets {
        Some(wanted) => Finding::warning(
            NAME,
            found,
            format!(
                "the exit has {} sockets for flows instead of {wanted}; it drops datagrams of further clients \
                 (`sockets-full`)",
                limit.saturating_sub(DESCRIPTORS_KEPT as u64).max(1)
            ),
        ),
        None => Finding::error(NAME, found, "the node may not start, or cannot answer `eddy status`"),
    }
    .fix(fix)
}

/// Locked memory: nodes need none.
pub fn locked_memory(_: &Subject, _: &Facts) -> Finding {
    Finding::ok("locked-memory", "not needed: nodes lock no memory, and io_uring rings do not count since Linux 5.12")
}

#[cfg(test)]
mod tests {
    use super::super::super::facts::sound;
    use super::super::super::finding::Severity;
    use super::super::super::subject::KeyFile;
    use super::*;
    use eddy_node::config::NodeRole;

    fn with_keys(path: &str, mode: u32, exposed: bool, unreadable: bool) -> Subject {
        let keys = KeyFile { path: path.into(), mode_and_owner: Some((mode, 7)), unreadable, exposed };
        Subject { keys: Some(keys), ..Subject::of_a_chain() }
    }

    #[test]
    fn keys_readable_by_others_have_a_fix() {
        let found = keys(&with_keys("my chain/mix1.key", 0o644, true, false), &sound());
        assert_eq!(found.severity, Severity::Error);
        assert_eq!(found.fix, Some(Fix::run("chmod 600 'my chain/mix1.key'", "chmod 644 'my chain/mix1.key'")));
        assert_eq!(keys(&with_keys("mix1.key", 0o600, false, false), &sound()).severity, Severity::Ok);
        assert_eq!(keys(&with_keys("mix1.key", 0o600, false, true), &sound()).severity, Severity::Note);
    }

    #[test]
    fn paths_are_quoted_for_a_shell_where_needed() {
        assert_eq!(quoted(&"a/b.key"), "a/b.key");
        assert_eq!(quoted(&"it's"), r"'it'\''s'");
        assert_eq!(quoted(&"$(date)"), "'$(date)'");
        assert_eq!(quoted(&"-rf"), "'./-rf'");
    }

    #[test]
    fn descriptors_outside_their_validity_are_found() {
        let facts = sound();
        let valid = |from: u64, until: u64| {
            descriptors_valid(&Subject { valid: Some(from..until), ..Subject::of_a_chain() }, &facts)
        };
        let now = facts.now;
        assert_eq!(valid(now - DAY, now + 300 * DAY).severity, Severity::Ok);
        assert_eq!(valid(now - DAY, now + 10 * DAY).severity, Severity::Warning);
        assert!(valid(now - 10 * DAY, now - 3 * DAY).found.contains("expired 3 days ago"));
        assert_eq!(valid(now + DAY, now + 2 * DAY).severity, Severity::Error);
    }

    #[test]
    fn unsynchronised_clock_is_a_warning() {
        let mut facts = sound();
        let subject = Subject::of_a_chain();
        for (kept, severity) in [(Some(true), Severity::Ok), (Some(false), Severity::Warning), (None, Severity::Note)] {
            facts.clock_kept = kept;
            assert_eq!(clock(&subject, &facts).severity, severity);
        }
    }

    #[test]
    fn low_limit_of_open_files_is_found() {
        let mut facts = sound();
        let exit = Subject { role: Some(NodeRole::Exit), ..Subject::of_a_chain() };
        assert_eq!(open_files(&exit, &facts).severity, Severity::Ok);
        facts.descriptors = Some(1024);
        let found = open_files(&exit, &facts);
        assert!(found.effect.unwrap().contains("960 sockets"), "1024 less 64");
        let mix = Subject { role: Some(NodeRole::Mix), max_sockets: None, ..Subject::of_a_chain() };
        assert_eq!(open_files(&mix, &facts).severity, Severity::Ok);
        facts.descriptors = Some(20);
        assert_eq!(open_files(&mix, &facts).severity, Severity::Error);
        facts.descriptors = None;
        assert_eq!(open_files(&mix, &facts).severity, Severity::Ok);
    }
}
