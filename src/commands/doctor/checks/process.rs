//! The node's process: its keys, its clock, its limits.

use super::super::facts::Facts;
use super::super::finding::{Finding, Fix};
use super::super::subject::Subject;
use eddy_node::ceremony::span;
use eddy_node::runtime::expiry::stage;
use eddy_node::runtime::node::{DESCRIPTORS_KEPT, DESCRIPTORS_OWN};

/// The permissions of the key file.
pub fn keys(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "keys";
    let Some(file) = &subject.keys else {
        let found = if subject.option.is_some() { "an entry needs none" } else { "made by `eddy chain` for each run" };
        return Finding::ok(NAME, found);
    };
    let path = file.path.display();
    match (file.exposed, file.mode_and_owner) {
        (true, Some((mode, _))) => Finding::error(
            NAME,
            format!("{path} has mode {mode:04o}: other users can read it"),
            "the node does not start; if anybody has read the keys, draw new ones with `eddy keygen --rotate`",
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

/// The checks of the node itself, which it makes before it starts. Not reported where another check has found an error,
/// which is likely the same.
pub fn start(subject: &Subject, has_errors: bool) -> Finding {
    const NAME: &str = "start";
    match &subject.start {
        None => Finding::note(NAME, "not checked: this user cannot read the node's keys"),
        Some(Err(_)) if has_errors => Finding::note(NAME, "checked again once the errors are fixed"),
        Some(Err(why)) => Finding::error(NAME, why, "the node does not start")
            .fix(Fix::words("as that says; `eddy config check` makes this check alone")),
        Some(Ok(())) => Finding::ok(NAME, "the node's own checks find no mistake"),
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

/// The ends of the chain's descriptors by this host's clock: a warning 30 days before the first of them.
pub fn descriptors_valid(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "descriptors";
    let Some((name, is_own, until)) = subject.descriptors.iter().min_by_key(|(_, _, until)| *until) else {
        return Finding::ok(NAME, "made by `eddy chain` for each run");
    };
    let whose = if *is_own { "that of this node".to_owned() } else { format!("that of {name}") };
    let fix = || {
        Fix::words(match is_own {
            // A node with an expired descriptor does not start, and one that runs takes the next one.
            true if *until <= facts.now => {
                "sign the next one with `eddy renew`, copy it next to chain.toml and start the node, or send SIGHUP to one \
                 that runs"
                    .to_owned()
            }
            true => {
                "sign the next one with `eddy renew`, copy it next to chain.toml and send the node SIGHUP".to_owned()
            }
            false => format!("ask the operator of {name} for the next one (`eddy renew`)"),
        })
    };
    match stage(*until, facts.now) {
        Some(0) => {
            let found = format!("{whose} expired {} ago by this host's clock", span(facts.now - until));
            Finding::error(NAME, found, "nobody can open channels through the chain").fix(fix())
        }
        Some(_) => {
            let found = format!("{whose} expires in {}", span(until - facts.now));
            Finding::warning(NAME, found, "then nobody can open channels through the chain").fix(fix())
        }
        None => Finding::ok(NAME, format!("all valid for another {}", span(until - facts.now))),
    }
}

/// The synchronisation of the clock.
pub fn clock(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "clock";
    let fix = || Fix::Do {
        what: "`sudo timedatectl set-ntp true`, or install chrony".to_owned(),
        undo: Some("sudo timedatectl set-ntp false".to_owned()),
    };
    match facts.clock_kept {
        Some(true) => Finding::ok(NAME, "synchronised (NTP, PTP or similar)"),
        Some(false) if let Some(class) = &subject.needs_clock => Finding::error(
            NAME,
            format!("not synchronised, but class {class} releases rounds by it"),
            "the node does not start, unless `unsynchronised_clock` is set",
        )
        .fix(Fix::Do {
            what: "`sudo timedatectl set-ntp true`, or install chrony; if all hops of the chain are on this host, set \
                   `unsynchronised_clock = true` in its configuration"
                .to_owned(),
            undo: Some("sudo timedatectl set-ntp false".to_owned()),
        }),
        None => Finding::note(NAME, "unknown: this sandbox hides the state of the clock"),
        Some(false) => Finding::warning(
            NAME,
            "not synchronised (a guest's may be correct anyway: compare `date -u`)",
            "a hop whose clock differs by 2 s signs too late, and then nobody can open channels through the chain; neighbours \
             refuse a node whose clock was set back (`stale-timestamp`)",
        )
        .fix(fix()),
    }
}

/// The limit of open files, against the sockets of the node.
pub fn open_files(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "open-files";
    let of_exit = subject.max_sockets.map(|sockets| sockets + DESCRIPTORS_KEPT);
    let needed = of_exit.unwrap_or(subject.sockets + DESCRIPTORS_OWN) as u64;
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
    const DAY: u64 = 86_400;

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
    fn first_descriptor_to_end_is_found() {
        let facts = sound();
        let ends = |own: u64, other: u64| {
            let descriptors = vec![("mix1".to_owned(), true, own), ("mix2".to_owned(), false, other)];
            descriptors_valid(&Subject { descriptors, ..Subject::of_a_chain() }, &facts)
        };
        let now = facts.now;
        assert_eq!(ends(now + 300 * DAY, now + 31 * DAY).severity, Severity::Ok);
        let soon = ends(now + 300 * DAY, now + 10 * DAY);
        assert_eq!(soon.severity, Severity::Warning);
        assert!(soon.found.contains("that of mix2 expires in 10 days"), "{}", soon.found);
        let over = ends(now - 3 * DAY, now + 10 * DAY);
        assert_eq!(over.severity, Severity::Error);
        assert!(over.found.contains("that of this node expired 3 days ago"), "{}", over.found);
    }

    #[test]
    fn unsynchronised_clock_is_a_warning_or_an_error() {
        let mut facts = sound();
        let subject = Subject::of_a_chain();
        for (kept, severity) in [(Some(true), Severity::Ok), (Some(false), Severity::Warning), (None, Severity::Note)] {
            facts.clock_kept = kept;
            assert_eq!(clock(&subject, &facts).severity, severity);
        }
        facts.clock_kept = Some(false);
        let paced = Subject { needs_clock: Some("voice".to_owned()), ..subject };
        assert_eq!(clock(&paced, &facts).severity, Severity::Error);
    }

    #[test]
    fn low_limit_of_open_files_is_found() {
        let mut facts = sound();
        let exit = Subject { role: Some(NodeRole::Exit), ..Subject::of_a_chain() };
        assert_eq!(open_files(&exit, &facts).severity, Severity::Ok);
        facts.descriptors = Some(1024);
        let found = open_files(&exit, &facts);
        assert!(found.effect.unwrap().contains("704 sockets"), "1024 less 320");
        let mix = Subject { role: Some(NodeRole::Mix), max_sockets: None, ..Subject::of_a_chain() };
        assert_eq!(open_files(&mix, &facts).severity, Severity::Ok);
        facts.descriptors = Some(20);
        assert_eq!(open_files(&mix, &facts).severity, Severity::Error);
        facts.descriptors = None;
        assert_eq!(open_files(&mix, &facts).severity, Severity::Ok);
    }
}
