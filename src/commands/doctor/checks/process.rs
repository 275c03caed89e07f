//! The node's process: its keys, its time, its limits.

use super::super::facts::Facts;
use super::super::finding::{Finding, Fix};
use super::super::subject::Subject;
use eddy_node::runtime::node::DESCRIPTORS_KEPT;

const DAY: u64 = 86_400;

/// Who may read the keys.
pub fn keys(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "keys";
    let Some(file) = &subject.keys else {
        return Finding::ok(NAME, "`eddy chain` makes its own, in a folder that goes with it");
    };
    let path = file.path.display();
    match (file.exposed, file.mode_and_owner) {
        (true, Some((mode, _))) => Finding::broken(
            NAME,
            format!("{path} has mode {mode:04o}, which lets others read these keys"),
            "the node does not start; whoever has read them can pass for this node: make a new chain if anybody may have",
        )
        .mended_by(Fix::run(format!("chmod 600 {}", quoted(&path)), format!("chmod {mode:o} {}", quoted(&path)))),
        (_, Some((mode, owner))) if file.unreadable => Finding::note(
            NAME,
            format!(
                "{path} has mode {mode:04o} and belongs to user {owner}, and this is user {}: only whoever may read it can \
                 tell whether it is the right one",
                facts.user
            ),
        ),
        (_, None) => Finding::note(NAME, format!("{path} is in a folder that this user (user {}) may not enter", facts.user)),
        (_, Some((mode, _))) => Finding::ok(NAME, format!("{path} has mode {mode:04o} and is this node's")),
    }
}

/// A word of a shell.
fn quoted(path: &impl std::fmt::Display) -> String {
    let path = path.to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+' | '=' | '@' | '%');
    if path.chars().all(plain) && !path.starts_with('-') {
        return path;
    }
    let dash = if path.starts_with('-') { "./" } else { "" };
    format!("'{dash}{}'", path.replace('\'', r"'\''"))
}

/// Whether the chain's descriptors are valid by this host's clock.
pub fn descriptors_valid(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "descriptors";
    let Some(valid) = &subject.valid else {
        return Finding::ok(NAME, "`eddy chain` makes its own");
    };
    let again =
        || Fix::words("make the chain anew with `eddy init --force`, and restart all its nodes with the new files");
    let starts = "no node of the chain starts";
    if facts.now < valid.start {
        let found = format!("by this host's clock the descriptors are valid in {}", span(valid.start - facts.now));
        return Finding::broken(NAME, found, starts).mended_by(Fix::words("look at `date -u` and set the clock"));
    }
    if facts.now > valid.end {
        let found = format!("by this host's clock the descriptors expired {} ago", span(facts.now - valid.end));
        return Finding::broken(NAME, found, starts).mended_by(again());
    }
    let left = valid.end - facts.now;
    let found = format!("the chain's descriptors are valid for another {}", span(left));
    if left < 30 * DAY {
        return Finding::costs(NAME, found, format!("after that {starts} any more")).mended_by(again());
    }
    Finding::ok(NAME, found)
}

/// A time for people.
fn span(seconds: u64) -> String {
    let units = [(DAY, "days"), (3600, "hours"), (60, "minutes")];
    let unit = units.iter().find(|(length, _)| seconds >= 2 * length);
    unit.map_or_else(|| format!("{seconds} s"), |(length, name)| format!("{} {name}", seconds / length))
}

/// Whether somebody keeps the clock.
pub fn clock(_: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "clock";
    match facts.clock_kept {
        Some(true) => Finding::ok(NAME, "kept by somebody (NTP, PTP or the like), says the kernel"),
        None => Finding::note(NAME, "this sandbox does not tell whether somebody keeps the clock"),
        Some(false) => Finding::costs(
            NAME,
            "nobody keeps the clock, says the kernel; a guest's may be right all the same: compare `date -u`",
            "descriptors are valid from an hour before they were made: a node whose clock says otherwise does not start, and \
             a neighbour refuses one whose clock was set back (`stale_timestamp`)",
        )
        .mended_by(Fix::Do {
            what: "`sudo timedatectl set-ntp true`, or install chrony".to_owned(),
            undo: Some("sudo timedatectl set-ntp false".to_owned()),
        }),
    }
}

/// Descriptors that the process may open.
pub fn open_files(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "open-files";
    let needed = (subject.max_sockets.unwrap_or(subject.sockets) + DESCRIPTORS_KEPT) as u64;
    let Some(limit) = facts.descriptors.filter(|limit| *limit < needed) else {
        let limit = facts.descriptors.map_or("any number of".to_owned(), |limit| limit.to_string());
        return Finding::ok(
            NAME,
            format!("a process of this shell may open {limit} files, the node needs {needed} at most"),
        );
    };
    let found = format!("a process of this shell may open {limit} files (ulimit -Hn), the node needs {needed} at most");
    let fix = Fix::Do {
        what: format!(
            "`ulimit -Hn {needed}` as root before the node, or LimitNOFILE={needed} in its unit (tuning/eddy@.service has 65536)"
        ),
        undo: Some(format!("ulimit -Hn {limit}")),
    };
    match subject.max_sockets {
        Some(wanted) => Finding::costs(
            NAME,
            found,
            format!(
                "an exit has {} sockets for flows instead of {wanted}; datagrams of clients beyond them are dropped as \
                 `sockets-full`",
                limit.saturating_sub(DESCRIPTORS_KEPT as u64).max(1)
            ),
        ),
        None => Finding::broken(NAME, found, "the node may not start, or nobody can ask for its status"),
    }
    .mended_by(fix)
}

/// Locked memory, of which nodes ask for none.
pub fn locked_memory(_: &Subject, _: &Facts) -> Finding {
    Finding::ok(
        "locked-memory",
        "nodes lock none, and rings of io_uring count no longer since Linux 5.12: ulimit -l is as it may",
    )
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
    fn keys_that_others_may_read_are_closed_with_one_command() {
        let found = keys(&with_keys("my chain/mix1.key", 0o644, true, false), &sound());
        assert_eq!(found.severity, Severity::Broken);
        assert_eq!(found.fix, Some(Fix::run("chmod 600 'my chain/mix1.key'", "chmod 644 'my chain/mix1.key'")));
        assert_eq!(keys(&with_keys("mix1.key", 0o600, false, false), &sound()).severity, Severity::Ok);
        assert_eq!(keys(&with_keys("mix1.key", 0o600, false, true), &sound()).severity, Severity::Note);
    }

    #[test]
    fn paths_are_quoted_where_a_shell_would_read_them_otherwise() {
        assert_eq!(quoted(&"a/b.key"), "a/b.key");
        assert_eq!(quoted(&"it's"), r"'it'\''s'");
        assert_eq!(quoted(&"$(date)"), "'$(date)'");
        assert_eq!(quoted(&"-rf"), "'./-rf'");
    }

    #[test]
    fn descriptors_that_end_soon_have_ended_or_have_not_begun_are_told() {
        let facts = sound();
        let valid = |from: u64, until: u64| {
            descriptors_valid(&Subject { valid: Some(from..until), ..Subject::of_a_chain() }, &facts)
        };
        let now = facts.now;
        assert_eq!(valid(now - DAY, now + 300 * DAY).severity, Severity::Ok);
        assert_eq!(valid(now - DAY, now + 10 * DAY).severity, Severity::Costs);
        assert!(valid(now - 10 * DAY, now - 3 * DAY).found.contains("expired 3 days ago"));
        assert_eq!(valid(now + DAY, now + 2 * DAY).severity, Severity::Broken);
    }

    #[test]
    fn a_clock_that_nobody_keeps_is_told() {
        let mut facts = sound();
        let subject = Subject::of_a_chain();
        for (kept, severity) in [(Some(true), Severity::Ok), (Some(false), Severity::Costs), (None, Severity::Note)] {
            facts.clock_kept = kept;
            assert_eq!(clock(&subject, &facts).severity, severity);
        }
    }

    #[test]
    fn an_exit_with_few_descriptors_has_fewer_sockets_and_a_mix_may_not_start() {
        let mut facts = sound();
        let exit = Subject { role: Some(NodeRole::Exit), ..Subject::of_a_chain() };
        assert_eq!(open_files(&exit, &facts).severity, Severity::Ok);
        facts.descriptors = Some(1024);
        let found = open_files(&exit, &facts);
        assert!(found.costs.unwrap().contains("960 sockets"), "1024 less 64");
        let mix = Subject { role: Some(NodeRole::Mix), max_sockets: None, ..Subject::of_a_chain() };
        assert_eq!(open_files(&mix, &facts).severity, Severity::Ok);
        facts.descriptors = Some(20);
        assert_eq!(open_files(&mix, &facts).severity, Severity::Broken);
        facts.descriptors = None;
        assert_eq!(open_files(&mix, &facts).severity, Severity::Ok);
    }
}
