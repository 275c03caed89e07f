//! Socket buffers.

use super::super::facts::Facts;
use super::super::finding::{Finding, Fix};
use super::super::subject::Subject;
use eddy_node::runtime::workers::{FLOW_BUFFER, RECEIVE_BUFFER_ENOUGH, short_receive_buffer};

/// The receive buffers that the kernel grants, against what the node requests.
pub fn receive(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "receive-buffers";
    let wanted = subject.receive_buffer;
    let granted = match &facts.buffers.granted {
        Ok(granted) => *granted,
        Err(why) => return Finding::note(NAME, format!("unknown: cannot open a socket: {why}")),
    };
    let most = facts.buffers.rmem_max;
    // CAP_NET_ADMIN lifts the limit: this process may have it, the node usually does not.
    let forced = most.is_some_and(|most| most < wanted) && granted >= wanted;
    if granted >= wanted && !forced {
        let flows = if subject.has_exit() { format!("; flows of an exit: {FLOW_BUFFER}") } else { String::new() };
        return Finding::ok(NAME, format!("the kernel grants {wanted} bytes{flows}"));
    }

    let found = if forced {
        format!("{}; only a process with CAP_NET_ADMIN gets all", short_receive_buffer(most.unwrap_or(0), wanted))
    } else {
        short_receive_buffer(granted, wanted)
    };
    let least = most.filter(|_| forced).unwrap_or(granted);
    if subject.receive_buffer_at.is_none() && least >= RECEIVE_BUFFER_ENOUGH {
        return Finding::note(NAME, format!("{found}; {RECEIVE_BUFFER_ENOUGH} suffice"));
    }
    let effect = "bursts that do not fit are dropped by the kernel (`kernel_drops` in `eddy status`)";
    let fix = Fix::sysctl("net.core.rmem_max", wanted, most.unwrap_or(granted));
    match &subject.receive_buffer_at {
        Some(at) if !forced => Finding::error(NAME, found, format!("{at} requires them: the node does not start")),
        Some(at) => {
            Finding::warning(NAME, found, format!("{at} requires them: without the capability it does not start"))
        }
        None => Finding::warning(NAME, found, effect),
    }
    .fix(fix)
}

/// The default receive buffer of programs that use the entry.
pub fn programs(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "program-buffers";
    const ENOUGH: usize = 4 << 20;
    let default = match facts.buffers.rmem_default {
        _ if !subject.has_entry() => return Finding::ok(NAME, "not needed: no programs use an entry on this host"),
        None => return Finding::note(NAME, "unknown: net.core.rmem_default is not readable here"),
        Some(default) => default,
    };
    if default >= ENOUGH {
        return Finding::ok(NAME, format!("sockets of programs get {default} bytes by default"));
    }
    Finding::warning(
        NAME,
        format!("sockets of programs get only {default} bytes by default (net.core.rmem_default)"),
        "mixes release in bursts: a program with a small buffer loses datagrams between the entry and itself \
         (docs/OPERATE.md)",
    )
    .fix(Fix::sysctl("net.core.rmem_default", ENOUGH, default))
}

/// Send buffers: nodes keep the default.
pub fn send(_: &Subject, facts: &Facts) -> Finding {
    let default =
        facts.buffers.wmem_default.map_or("net.core.wmem_default".to_owned(), |bytes| format!("{bytes} bytes"));
    Finding::ok("send-buffers", format!("nodes use the kernel's default ({default}); net.core.wmem_max has no effect"))
}

#[cfg(test)]
mod tests {
    use super::super::super::facts::sound;
    use super::super::super::finding::Severity;
    use super::*;
    use eddy_node::config::{Location, NodeRole};

    #[test]
    fn small_receive_limit_has_its_command_and_undo() {
        let (mut subject, mut facts) = (Subject::of_a_chain(), sound());
        assert_eq!(receive(&subject, &facts).severity, Severity::Ok);
        facts.buffers.rmem_max = Some(212_992);
        facts.buffers.granted = Ok(212_992);
        let found = receive(&subject, &facts);
        assert_eq!(found.severity, Severity::Warning);
        assert!(found.found.contains("212992 of 8388608"), "{}", found.found);
        assert_eq!(found.fix, Some(Fix::sysctl("net.core.rmem_max", 8_388_608, 212_992)));
        subject.receive_buffer_at = Some(Location { path: "mix1.toml".into(), line: Some(16) });
        let found = receive(&subject, &facts);
        assert_eq!(found.severity, Severity::Error);
        assert!(found.effect.unwrap().starts_with("mix1.toml:16"));
        facts.buffers.rmem_max = Some(4 << 20);
        facts.buffers.granted = Ok(4 << 20);
        assert_eq!(receive(&subject, &facts).severity, Severity::Error, "the configured size is mandatory");
        subject.receive_buffer_at = None;
        assert_eq!(receive(&subject, &facts).severity, Severity::Note, "a start does not warn either");
    }

    #[test]
    fn small_default_buffer_concerns_entries_only() {
        let (mut subject, mut facts) = (Subject::of_a_chain(), sound());
        assert_eq!(programs(&subject, &facts).severity, Severity::Ok);
        facts.buffers.rmem_default = Some(212_992);
        let found = programs(&subject, &facts);
        assert_eq!(found.severity, Severity::Warning);
        assert_eq!(found.fix, Some(Fix::sysctl("net.core.rmem_default", 4_194_304, 212_992)));
        facts.buffers.rmem_default = None;
        assert_eq!(programs(&subject, &facts).severity, Severity::Note);
        subject.role = Some(NodeRole::Mix);
        assert_eq!(programs(&subject, &facts).severity, Severity::Ok);
    }

    #[test]
    fn buffer_granted_to_root_only_is_a_warning() {
        let (mut subject, mut facts) = (Subject::of_a_chain(), sound());
        facts.buffers.rmem_max = Some(212_992);
        for at in [None, Some(Location { path: "mix1.toml".into(), line: Some(16) })] {
            subject.receive_buffer_at = at;
            let found = receive(&subject, &facts);
            assert_eq!(found.severity, Severity::Warning);
            assert!(found.found.contains("CAP_NET_ADMIN") && found.fix.is_some());
        }
        facts.buffers.rmem_max = None;
        assert_eq!(receive(&subject, &facts).severity, Severity::Ok, "a namespace that hides the limit");
    }
}
