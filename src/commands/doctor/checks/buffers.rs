//! Socket buffers.

use super::super::facts::Facts;
use super::super::finding::{Finding, Fix};
use super::super::subject::Subject;
use eddy_node::runtime::workers::FLOW_BUFFER;

/// What the kernel grants of the receive buffers that the node asks for.
pub fn receive(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "receive-buffers";
    let wanted = subject.receive_buffer;
    let granted = match &facts.buffers.granted {
        Ok(granted) => *granted,
        Err(why) => return Finding::note(NAME, format!("no socket to try on: {why}")),
    };
    let mut sockets = "link sockets".to_owned();
    if subject.has_entry() {
        sockets += " and the entry's listening sockets";
    }
    if subject.has_exit() {
        sockets += &format!(" (those of an exit's flows: {FLOW_BUFFER})");
    }
    let most = facts.buffers.rmem_max;
    // Whoever has CAP_NET_ADMIN gets what he asks for; a node that is not root does not.
    let forced = most.is_some_and(|most| most < wanted) && granted >= wanted;
    if granted >= wanted && !forced {
        return Finding::ok(NAME, format!("the kernel grants the {wanted} bytes that {sockets} ask for"));
    }
    let found = if forced {
        format!(
            "net.core.rmem_max is {}; {sockets} ask for {wanted} bytes, which only a node with CAP_NET_ADMIN gets, as \
             this process would",
            most.unwrap_or(0)
        )
    } else {
        format!("the kernel grants {granted} of the {wanted} bytes that {sockets} ask for (net.core.rmem_max)")
    };
    let costs = "what does not fit is lost in the kernel (`kernel drops` in `eddy status`): 212992 bytes hold three \
                 GSO bursts, a millisecond of a link at 100,000 cells a second (tuning/README.md); a chain lost 0.12 % of \
                 that, and nothing with 1048576";
    let fix = Fix::sysctl("net.core.rmem_max", wanted, most.unwrap_or(granted));
    match &subject.receive_buffer_at {
        Some(at) if !forced => Finding::broken(NAME, found, format!("{at} demands them: the node does not start")),
        Some(at) => Finding::costs(NAME, found, format!("{at} demands them: without that privilege it does not start")),
        None => Finding::costs(NAME, found, costs),
    }
    .mended_by(fix)
}

/// What a program that uses the entry gets for its own sockets if it asks for nothing.
pub fn programs(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "program-buffers";
    const ENOUGH: usize = 4 << 20;
    let default = match facts.buffers.rmem_default {
        _ if !subject.has_entry() => return Finding::ok(NAME, "no programs use an entry here"),
        None => return Finding::note(NAME, "net.core.rmem_default is not to be read here"),
        Some(default) => default,
    };
    if default >= ENOUGH {
        return Finding::ok(NAME, format!("sockets of programs that ask for no receive buffer get {default} bytes"));
    }
    Finding::costs(
        NAME,
        format!("sockets of programs that ask for no receive buffer get {default} bytes (net.core.rmem_default)"),
        "mixes release in bursts, and what does not fit is lost between the entry and the program: with 212992 bytes a \
         QUIC download lost 3 of 100 packets, with 4194304 none (docs/OPERATE.md)",
    )
    .mended_by(Fix::sysctl("net.core.rmem_default", ENOUGH, default))
}

/// Send buffers, of which nodes ask for none.
pub fn send(_: &Subject, facts: &Facts) -> Finding {
    let default =
        facts.buffers.wmem_default.map_or("net.core.wmem_default".to_owned(), |bytes| format!("{bytes} bytes"));
    Finding::ok(
        "send-buffers",
        format!(
            "nodes ask for none: their sockets have the kernel's default ({default}), and net.core.wmem_max changes \
             nothing; a link whose buffer is full waits; a datagram for an application is dropped then (`send-buffer-full`)"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::super::super::facts::sound;
    use super::super::super::finding::Severity;
    use super::*;
    use eddy_node::config::{NodeRole, Place};

    #[test]
    fn a_small_limit_is_named_with_the_command_and_its_undo() {
        let (mut subject, mut facts) = (Subject::of_a_chain(), sound());
        assert_eq!(receive(&subject, &facts).severity, Severity::Ok);
        facts.buffers.rmem_max = Some(212_992);
        facts.buffers.granted = Ok(212_992);
        let found = receive(&subject, &facts);
        assert_eq!(found.severity, Severity::Costs);
        assert!(found.found.contains("212992 of the 8388608"), "{}", found.found);
        assert_eq!(found.fix, Some(Fix::sysctl("net.core.rmem_max", 8_388_608, 212_992)));
        subject.receive_buffer_at = Some(Place { path: "mix1.toml".into(), line: Some(16) });
        let found = receive(&subject, &facts);
        assert_eq!(found.severity, Severity::Broken);
        assert!(found.costs.unwrap().starts_with("mix1.toml:16"));
    }

    #[test]
    fn programs_of_an_entry_are_told_of_a_small_default_and_others_are_not() {
        let (mut subject, mut facts) = (Subject::of_a_chain(), sound());
        assert_eq!(programs(&subject, &facts).severity, Severity::Ok);
        facts.buffers.rmem_default = Some(212_992);
        let found = programs(&subject, &facts);
        assert_eq!(found.severity, Severity::Costs);
        assert_eq!(found.fix, Some(Fix::sysctl("net.core.rmem_default", 4_194_304, 212_992)));
        facts.buffers.rmem_default = None;
        assert_eq!(programs(&subject, &facts).severity, Severity::Note);
        subject.role = Some(NodeRole::Mix);
        assert_eq!(programs(&subject, &facts).severity, Severity::Ok);
    }

    #[test]
    fn what_root_gets_by_force_is_not_taken_for_what_a_node_gets() {
        let (mut subject, mut facts) = (Subject::of_a_chain(), sound());
        facts.buffers.rmem_max = Some(212_992);
        for at in [None, Some(Place { path: "mix1.toml".into(), line: Some(16) })] {
            subject.receive_buffer_at = at;
            let found = receive(&subject, &facts);
            assert_eq!(found.severity, Severity::Costs);
            assert!(found.found.contains("CAP_NET_ADMIN") && found.fix.is_some());
        }
        facts.buffers.rmem_max = None;
        assert_eq!(receive(&subject, &facts).severity, Severity::Ok, "a namespace that hides the limit");
    }
}
