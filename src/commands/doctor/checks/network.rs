//! The path to the next hop: its MTU, its device, its connection tracking.

use super::super::facts::Facts;
use super::super::finding::{Finding, Fix};
use super::super::host::in_short;
use super::super::subject::Subject;
use super::UNMEASURED;
use eddy_node::config::{ClassName, Terms};
use eddy_node::runtime::path::{chain_that_fits, longest_packet};

/// The ports of the classes, against those in the descriptor.
pub fn ports(subject: &Subject, _: &Facts) -> Finding {
    const NAME: &str = "ports";
    if subject.other_ports.is_empty() {
        return Finding::ok(NAME, "as in the descriptor");
    }
    Finding::warning(
        NAME,
        subject.other_ports.join("; "),
        "nothing arrives from the previous hop, unless a NAT maps the ports",
    )
    .fix(Fix::words("correct `up`, or publish the port with `eddy renew --address`"))
}

/// The MTU of the path, against the longest packet of the chain.
pub fn path(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "path-mtu";
    const REFUSED: &str = "the node does not start: fragmented cells would be lost";
    let next = match &subject.next {
        Err(why) => {
            return Finding::error(NAME, why, "the node does not start")
                .fix(Fix::words("correct the name or this host's name resolution, or set `next` to IP:PORT"));
        }
        Ok(next) => *next,
    };

    let Some(next) = next else {
        // An exit: the path back is unknown, but the device must carry its cells.
        let ipv6 = subject.up.is_some_and(|up| up.is_ipv6());
        let (needed, class) = longest(subject, subject.position, ipv6);
        let device = facts.path.device.as_ref();
        return match device.and_then(|device| Some((&device.name, device.mtu?))) {
            Some((name, mtu)) if mtu < needed => Finding::error(
                NAME,
                format!("the MTU of {name} is {mtu}, class {class} needs {needed}"),
                "cells do not reach the previous hop",
            )
            .fix(raise(name, mtu, needed, chain_that_fits(&subject.chain, subject.position, mtu, ipv6))),
            Some((name, mtu)) => Finding::ok(NAME, format!("the MTU of {name} is {mtu}, class {class} needs {needed}")),
            None => Finding::note(
                NAME,
                format!("the device towards the previous hop is unknown; its MTU must be {needed} or more"),
            ),
        };
    };

    let (ipv6, link) = (next.is_ipv6(), subject.position + 1);
    let (needed, class) = longest(subject, link, ipv6);
    if subject.from.is_loopback() && !next.ip().is_loopback() {
        let any = if ipv6 { "[::]:0" } else { "0.0.0.0:0" };
        let found = format!("`down` is bound to {}, which cannot reach the next hop at {next}", subject.from);
        return Finding::error(NAME, found, "the node does not start").fix(Fix::words(format!("set down = \"{any}\"")));
    }

    let mtu = match &facts.path.mtu {
        Some(Ok(mtu)) => *mtu,
        Some(Err(why)) => {
            return Finding::error(
                NAME,
                format!("no route to the next hop at {next}: {why}"),
                "the node starts and keeps trying; no traffic passes",
            )
            .fix(Fix::words(format!("add a route; check it with `ip route get {}`", next.ip())));
        }
        None => return Finding::note(NAME, format!("the path to {next} is unknown")),
    };

    let device = facts.path.device.as_ref().map_or("DEVICE", |device| &device.name);
    if needed > mtu {
        let found = format!("the MTU to the next hop at {next} is {mtu}, class {class} needs {needed}");
        let fits = chain_that_fits(&subject.chain, link, mtu, ipv6);
        return Finding::error(NAME, found, REFUSED).fix(raise(device, mtu, needed, fits));
    }
    let found = format!("the MTU to the next hop at {next} is {mtu} on this host, class {class} needs {needed}");
    Finding::ok(NAME, found)
}

/// The longest packet of a link, and its class.
fn longest(subject: &Subject, link: usize, ipv6: bool) -> (usize, ClassName) {
    let of = |terms: &Terms| (longest_packet(terms.id(), subject.shape.hops(), link, ipv6), terms.name());
    subject.classes.iter().map(of).max_by_key(|(len, _)| *len).expect("a node serves a class")
}

/// A larger MTU, or the chain that fits without it.
fn raise(device: &str, mtu: usize, needed: usize, fits: Option<String>) -> Fix {
    let chain = match fits {
        Some(chain) => format!(", or make {chain}"),
        None => "; no class fits this MTU".to_owned(),
    };
    Fix::Do {
        what: format!("`sudo ip link set dev {device} mtu {needed}`, and the same along the whole path{chain}"),
        undo: Some(format!("sudo ip link set dev {device} mtu {mtu}")),
    }
}

/// The name servers of an exit.
pub fn name_servers(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "name-servers";
    const FILE: &str = "/etc/resolv.conf";
    if !subject.system_names {
        let why = if subject.has_exit() { "set by `resolver`" } else { "not needed: only exits resolve names" };
        return Finding::ok(NAME, why);
    }
    let found = match facts.name_servers {
        Some(count @ 1..) => {
            return Finding::ok(NAME, format!("{FILE} lists {count} (not contacted)"));
        }
        Some(0) => format!("{FILE} lists none, and `resolver` is not set"),
        None => format!("{FILE} cannot be read, and `resolver` is not set"),
    };
    Finding::error(NAME, found, "the exit does not start").fix(Fix::words(
        "set one in the exit's configuration, e.g. resolver = \"9.9.9.9:53\"; for `eddy chain`, use --resolver",
    ))
}

/// Receive queues and interrupts of the device, against the workers.
pub fn queues(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "queues";
    let Some(device) = &facts.path.device else {
        return Finding::note(NAME, "the device towards the next hop is unknown");
    };
    if device.loopback {
        return Finding::ok(NAME, "loopback has no queues");
    }
    let (name, queues, workers) = (&device.name, device.queues, subject.workers);
    let mut found = match queues {
        0 => format!("{name}: the number of its queues is unknown"),
        1 => format!("{name} has 1 receive queue"),
        _ => format!("{name} has {queues} receive queues"),
    };
    if !device.interrupts.is_empty() {
        found += &format!(", interrupts on cores {}", in_short(&device.interrupts));
    }

    if queues > 0 && queues < workers && workers > 1 {
        return Finding::note(NAME, format!("{found}, for {workers} workers")).effect(UNMEASURED).fix(Fix::Do {
            what: format!("`sudo ethtool -L {name} combined {workers}`, if `ethtool -l {name}` reports that many"),
            undo: Some(format!("sudo ethtool -L {name} combined {queues}")),
        });
    }
    let shared: Vec<usize> = subject.cores.iter().copied().filter(|core| device.interrupts.contains(core)).collect();
    if !shared.is_empty() && device.interrupts.len() < facts.cores.allowed.len() {
        return Finding::note(NAME, format!("{found}; workers are pinned to {} of them", in_short(&shared)))
            .effect(UNMEASURED);
    }
    Finding::ok(NAME, found)
}

/// The NUMA node of the device, against the workers' cores.
pub fn numa(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "numa";
    let Some((device, (node, near))) =
        facts.path.device.as_ref().and_then(|device| Some((&device.name, device.numa.as_ref()?)))
    else {
        return Finding::ok(NAME, "one NUMA node, or the device reports none");
    };
    let far: Vec<usize> = subject.cores.iter().copied().filter(|core| !near.contains(core)).collect();
    let near = in_short(near);
    if !far.is_empty() {
        let found = format!("{device} is at NUMA node {node} (cores {near}), but `cores` lists {}", in_short(&far));
        return Finding::note(NAME, found)
            .effect(UNMEASURED)
            .fix(Fix::words(format!("list some of {near} in `cores`")));
    }
    let found = if subject.cores.is_empty() {
        format!("{device} is at NUMA node {node} (cores {near}); workers are not pinned")
    } else {
        format!("{device} and the workers are at NUMA node {node}")
    };
    Finding::ok(NAME, found)
}

/// The connection tracking table, against the flows of a node.
pub fn conntrack(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "conntrack";
    const KEY: &str = "net.netfilter.nf_conntrack_max";
    let Some((count, max)) = facts.conntrack else {
        return Finding::ok(NAME, "no connection tracking in this network namespace");
    };
    // A flow of the exit takes an entry per destination, at least one.
    let more = subject.max_sockets.map_or(0, |sockets| sockets as u64);
    let found = format!("{count} of {max} entries in use");
    let effect = "the kernel drops datagrams when the table is full";

    if count.saturating_mul(10) >= max.saturating_mul(8) {
        return Finding::warning(NAME, format!("{found}: nearly full"), effect).fix(Fix::sysctl(
            KEY,
            max.saturating_mul(2).max(1024),
            max,
        ));
    }
    if count.saturating_add(more) > max {
        return Finding::warning(NAME, format!("{found}; the exit may need {more} more"), effect).fix(Fix::sysctl(
            KEY,
            (count + more).saturating_mul(2),
            max,
        ));
    }
    if count == 0 {
        return Finding::ok(NAME, format!("{found} (no rule uses it)"));
    }
    Finding::note(NAME, found).effect(effect)
}

#[cfg(test)]
mod tests {
    use super::super::super::facts::{Device, sound};
    use super::super::super::finding::Severity;
    use super::*;
    use eddy_node::config::NodeRole;
    use wire::cell::Class;
    use wire::paced::{PacedClass, PacedTerms};

    fn mix(workers: usize) -> Subject {
        let (next, from) = (Ok(Some("192.0.2.7:4702".parse().unwrap())), "0.0.0.0".parse().unwrap());
        let (role, position) = (Some(NodeRole::Mix), 1);
        Subject { role, position, workers, max_sockets: None, next, from, ..Subject::of_a_chain() }
    }

    fn device(facts: &mut Facts) -> &mut Device {
        facts.path.device.as_mut().unwrap()
    }

    #[test]
    fn small_mtu_names_the_class_that_fits() {
        let mut facts = sound();
        assert_eq!(path(&mix(1), &facts).severity, Severity::Ok);
        facts.path.mtu = Some(Ok(1280));
        let found = path(&mix(1), &facts);
        assert_eq!(found.severity, Severity::Error);
        let Some(Fix::Do { what, undo: Some(undo) }) = found.fix else { panic!("no words") };
        assert!(what.contains("make a chain of class M") && what.contains("dev eth0 mtu 14"), "{what}");
        assert_eq!(undo, "sudo ip link set dev eth0 mtu 1280");
        facts.path.mtu = Some(Ok(600));
        assert!(matches!(path(&mix(1), &facts).fix, Some(Fix::Do { what, .. }) if what.contains("no class fits")));
        facts.path.mtu = Some(Err("Network is unreachable".to_owned()));
        assert!(path(&mix(1), &facts).found.contains("unreachable"));
        let local = Subject { from: "127.0.0.1".parse().unwrap(), ..mix(1) };
        assert!(path(&local, &sound()).found.starts_with("`down` is bound to 127.0.0.1"));
        let unknown = Subject { next: Err("next = \"a:1\" does not resolve".to_owned()), ..mix(1) };
        assert_eq!(path(&unknown, &sound()).severity, Severity::Error);
    }

    #[test]
    fn mtu_is_that_of_the_class_with_the_longest_packets() {
        let mut small = mix(1);
        let video = PacedTerms::new(PacedClass::new(Class::L), "video", 4);
        small.chain.classes[0].class = Class::S;
        small.chain.paced = vec![video];
        small.classes = Terms::of(&small.chain).collect();
        let mut facts = sound();
        facts.path.mtu = Some(Ok(1300));
        let found = path(&small, &facts);
        assert_eq!(found.severity, Severity::Error);
        assert!(found.found.ends_with("is 1300, class video needs 1388"), "{found:?}");
        assert!(
            matches!(&found.fix, Some(Fix::Do { what, .. }) if what.ends_with("or make a chain without class video"))
        );
        small.chain.classes[0].class = Class::L;
        let fits = chain_that_fits(&small.chain, 2, 1300, false);
        assert_eq!(fits.as_deref(), Some("a chain of class M without class video"));
    }

    #[test]
    fn exit_checks_the_mtu_of_its_device() {
        let exit = Subject { role: Some(NodeRole::Exit), position: 4, next: Ok(None), ..Subject::of_a_chain() };
        let mut facts = sound();
        facts.path.mtu = None;
        assert_eq!(path(&exit, &facts).severity, Severity::Ok);
        device(&mut facts).mtu = Some(1280);
        assert_eq!(path(&exit, &facts).severity, Severity::Error);
        facts.path.device = None;
        assert_eq!(path(&exit, &facts).severity, Severity::Note);
    }

    #[test]
    fn few_queues_and_shared_interrupts_are_notes() {
        let mut facts = sound();
        assert_eq!(queues(&mix(2), &facts).severity, Severity::Ok);
        device(&mut facts).queues = 1;
        let found = queues(&mix(2), &facts);
        assert!(matches!(found.fix, Some(Fix::Do { what, .. }) if what.contains("ethtool -L eth0 combined 2")));
        assert_eq!(queues(&mix(1), &facts).severity, Severity::Ok);
        device(&mut facts).interrupts = vec![1];
        let pinned = Subject { cores: vec![1], ..mix(1) };
        assert_eq!(queues(&pinned, &facts).severity, Severity::Note);
        device(&mut facts).loopback = true;
        assert_eq!(queues(&pinned, &facts).severity, Severity::Ok);
    }

    #[test]
    fn workers_on_another_numa_node_are_a_note() {
        let mut facts = sound();
        device(&mut facts).numa = Some((1, vec![4, 5]));
        assert_eq!(numa(&mix(1), &facts).severity, Severity::Ok);
        assert_eq!(numa(&Subject { cores: vec![4], ..mix(1) }, &facts).severity, Severity::Ok);
        assert_eq!(numa(&Subject { cores: vec![0], ..mix(1) }, &facts).severity, Severity::Note);
    }

    #[test]
    fn exit_without_name_servers_is_an_error() {
        let mut facts = sound();
        let exit = Subject { role: Some(NodeRole::Exit), ..Subject::of_a_chain() };
        let severity = |subject: &Subject, facts: &Facts| name_servers(subject, facts).severity;
        assert_eq!(severity(&exit, &facts), Severity::Ok);
        facts.name_servers = Some(0);
        assert_eq!(severity(&exit, &facts), Severity::Error);
        facts.name_servers = None;
        assert_eq!(severity(&exit, &facts), Severity::Error);
        assert_eq!(severity(&Subject { system_names: false, ..exit }, &facts), Severity::Ok);
    }

    #[test]
    fn nearly_full_conntrack_table_is_a_warning() {
        let mut facts = sound();
        assert_eq!(conntrack(&mix(1), &facts).severity, Severity::Ok);
        facts.conntrack = Some((0, 1000));
        assert_eq!(conntrack(&mix(1), &facts).severity, Severity::Ok);
        facts.conntrack = Some((10, 1000));
        assert_eq!(conntrack(&mix(1), &facts).severity, Severity::Note);
        let exit = Subject { max_sockets: Some(4096), ..mix(1) };
        assert_eq!(conntrack(&exit, &facts).fix, Some(Fix::sysctl("net.netfilter.nf_conntrack_max", 8212, 1000)));
        facts.conntrack = Some((800, 1000));
        assert_eq!(conntrack(&mix(1), &facts).fix, Some(Fix::sysctl("net.netfilter.nf_conntrack_max", 2000, 1000)));
    }
}
