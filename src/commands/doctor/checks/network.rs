//! The way to the next hop: its MTU, its device, its state.

use wire::cell::Shape;

use super::super::facts::Facts;
use super::super::finding::{Finding, Fix};
use super::super::host::in_short;
use super::super::subject::Subject;
use super::UNMEASURED;
use eddy_node::runtime::sockets::{longest_packet, smaller_class};

/// Whether the path carries cells whole.
pub fn path(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "path-mtu";
    const REFUSED: &str = "the node does not start: a cell that is fragmented is a cell lost";
    let shape = subject.shape;
    let next =
        match &subject.next {
            Err(why) => return Finding::broken(NAME, why, "the node does not start").mended_by(Fix::words(
                "mend the name or this host's name resolution, or write the next hop's address as IP:PORT in `next`",
            )),
            Ok(next) => *next,
        };
    let Some(next) = next else {
        // An exit: nobody knows the way back, but the device must carry its cells.
        let ipv6 = subject.up.is_some_and(|up| up.is_ipv6());
        let needed = longest_packet(shape, subject.position, ipv6);
        let device = facts.path.device.as_ref();
        return match device.and_then(|device| Some((&device.name, device.mtu?))) {
            Some((name, mtu)) if mtu < needed => Finding::broken(
                NAME,
                format!("{name} carries packets of {mtu} bytes, class {} makes some of {needed}", shape.class()),
                "cells do not get back to the previous hop",
            )
            .mended_by(raise(name, mtu, needed, shape, ipv6)),
            Some((name, mtu)) => Finding::ok(
                NAME,
                format!("{name} carries packets of {mtu} bytes, class {} needs {needed}", shape.class()),
            ),
            None => Finding::note(NAME, format!("the device of the way back is unknown; it must carry {needed} bytes")),
        };
    };
    let (ipv6, link) = (next.is_ipv6(), subject.position + 1);
    let needed = longest_packet(shape, link, ipv6);
    if subject.from.is_loopback() && !next.ip().is_loopback() {
        let any = if ipv6 { "[::]:0" } else { "0.0.0.0:0" };
        let found = format!("down is bound to {}: from there nothing reaches the next hop at {next}", subject.from);
        return Finding::broken(NAME, found, "the node does not start")
            .mended_by(Fix::words(format!("write down = \"{any}\"")));
    }
    let mtu = match &facts.path.mtu {
        Some(Ok(mtu)) => *mtu,
        Some(Err(why)) => {
            return Finding::broken(
                NAME,
                format!("there is no way to the next hop at {next}: {why}"),
                "nothing is carried until there is; the node keeps trying",
            )
            .mended_by(Fix::words(format!("mend the route: `ip route get {}`", next.ip())));
        }
        None => return Finding::note(NAME, format!("the path to {next} is unknown")),
    };
    let device = facts.path.device.as_ref().map_or("DEVICE", |device| &device.name);
    if needed > mtu {
        let found = format!(
            "the path to the next hop at {next} carries packets of {mtu} bytes, class {} makes some of {needed}",
            shape.class()
        );
        return Finding::broken(NAME, found, REFUSED).mended_by(raise(device, mtu, needed, shape, ipv6));
    }
    let found = format!(
        "the path to the next hop at {next} carries packets of {mtu} bytes, class {} needs {needed} (this system's word: \
         further on it may be less)",
        shape.class()
    );
    Finding::ok(NAME, found)
}

/// A larger MTU, and the class that fits without it.
fn raise(device: &str, mtu: usize, needed: usize, shape: Shape, ipv6: bool) -> Fix {
    let class = match smaller_class(shape, mtu, ipv6) {
        Some(class) => format!("; or make the chain with `eddy init --class {class}`, which fits"),
        None => "; no class fits as it is".to_owned(),
    };
    Fix::Do {
        what: format!("`sudo ip link set dev {device} mtu {needed}`, and as much all along the path{class}"),
        undo: Some(format!("sudo ip link set dev {device} mtu {mtu}")),
    }
}

/// Whether the exit has somebody to ask for names.
pub fn name_servers(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "name-servers";
    const FILE: &str = "/etc/resolv.conf";
    if !subject.system_names {
        let why = if subject.has_exit() { "`resolver` names one" } else { "an exit's business" };
        return Finding::ok(NAME, why);
    }
    let found = match facts.name_servers {
        Some(count @ 1..) => {
            return Finding::ok(NAME, format!("{FILE} names {count}; whether they answer is not tried"));
        }
        Some(0) => format!("{FILE} names none, and `resolver` is not set"),
        None => format!("{FILE} cannot be read, and `resolver` is not set"),
    };
    Finding::broken(NAME, found, "the exit does not start").mended_by(Fix::words(
        "name one in the exit's configuration, such as resolver = \"9.9.9.9:53\"; for `eddy chain`, --resolver",
    ))
}

/// Receive queues and interrupts of the device, against the workers.
pub fn queues(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "queues";
    let Some(device) = &facts.path.device else {
        return Finding::note(NAME, "the device towards the next hop is unknown");
    };
    if device.loopback {
        return Finding::ok(NAME, "loopback has no queues: the sender's core does the receiver's work");
    }
    let (name, queues, workers) = (&device.name, device.queues, subject.workers);
    let mut found = match queues {
        0 => format!("{name}: its queues are not to be seen here"),
        1 => format!("{name} has 1 receive queue"),
        _ => format!("{name} has {queues} receive queues"),
    };
    if !device.interrupts.is_empty() {
        found += &format!(", interrupts on cores {}", in_short(&device.interrupts));
    }
    if queues > 0 && queues < workers && workers > 1 {
        return Finding::note(NAME, format!("{found}, for {workers} workers")).because(UNMEASURED).mended_by(Fix::Do {
            what: format!(
                "`sudo ethtool -L {name} combined {workers}`, where `ethtool -l {name}` says that it has so many"
            ),
            undo: Some(format!("sudo ethtool -L {name} combined {queues}")),
        });
    }
    let shared: Vec<usize> = subject.cores.iter().copied().filter(|core| device.interrupts.contains(core)).collect();
    if !shared.is_empty() && device.interrupts.len() < facts.cores.allowed.len() {
        return Finding::note(NAME, format!("{found}; workers are pinned to {} of them", in_short(&shared)))
            .because(UNMEASURED);
    }
    Finding::ok(NAME, found)
}

/// Whether the workers' cores are near the device.
pub fn numa(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "numa";
    let Some((device, (node, near))) =
        facts.path.device.as_ref().and_then(|device| Some((&device.name, device.numa.as_ref()?)))
    else {
        return Finding::ok(NAME, "one memory node, or none that the device is said to be at");
    };
    let far: Vec<usize> = subject.cores.iter().copied().filter(|core| !near.contains(core)).collect();
    let near = in_short(near);
    if !far.is_empty() {
        let found = format!("{device} is at node {node} (cores {near}), and `cores` names {}", in_short(&far));
        return Finding::note(NAME, found)
            .because(UNMEASURED)
            .mended_by(Fix::words(format!("take some of {near} for `cores`")));
    }
    let found = if subject.cores.is_empty() {
        format!("{device} is at node {node} (cores {near}); no worker is pinned")
    } else {
        format!("{device} is at node {node}, and so are the workers")
    };
    Finding::ok(NAME, found)
}

/// Whether the kernel keeps a record of every flow, and has room for them.
pub fn conntrack(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "conntrack";
    const KEY: &str = "net.netfilter.nf_conntrack_max";
    let Some((count, max)) = facts.conntrack else {
        return Finding::ok(NAME, "no connection tracking in this network namespace");
    };
    // A flow of the exit is an entry for each destination that its client talks to: one at least.
    let more = subject.max_sockets.map_or(0, |sockets| sockets as u64);
    let found = format!("connection tracking has {count} entries of {max}");
    let costs = format!("when its table is full the kernel drops datagrams; tracking itself: {UNMEASURED}");
    if count.saturating_mul(10) >= max.saturating_mul(8) {
        return Finding::costs(NAME, format!("{found}: nearly full"), costs).mended_by(Fix::sysctl(
            KEY,
            max.saturating_mul(2).max(1024),
            max,
        ));
    }
    if count.saturating_add(more) > max {
        return Finding::costs(NAME, format!("{found}, and the exit may open {more} sockets"), costs)
            .mended_by(Fix::sysctl(KEY, (count + more).saturating_mul(2), max));
    }
    if count == 0 {
        return Finding::ok(NAME, format!("{found}: loaded, and no rule uses it"));
    }
    Finding::note(NAME, found).because(costs)
}

#[cfg(test)]
mod tests {
    use super::super::super::facts::{Device, sound};
    use super::super::super::finding::Severity;
    use super::*;
    use eddy_node::config::NodeRole;

    fn mix(workers: usize) -> Subject {
        let (next, from) = (Ok(Some("192.0.2.7:4702".parse().unwrap())), "0.0.0.0".parse().unwrap());
        let (role, position) = (Some(NodeRole::Mix), 1);
        Subject { role, position, workers, max_sockets: None, next, from, ..Subject::of_a_chain() }
    }

    fn device(facts: &mut Facts) -> &mut Device {
        facts.path.device.as_mut().unwrap()
    }

    #[test]
    fn a_path_too_narrow_names_the_class_that_fits() {
        let mut facts = sound();
        assert_eq!(path(&mix(1), &facts).severity, Severity::Ok);
        facts.path.mtu = Some(Ok(1280));
        let found = path(&mix(1), &facts);
        assert_eq!(found.severity, Severity::Broken);
        let Some(Fix::Do { what, undo: Some(undo) }) = found.fix else { panic!("no words") };
        assert!(what.contains("--class M") && what.contains("dev eth0 mtu 14"), "{what}");
        assert_eq!(undo, "sudo ip link set dev eth0 mtu 1280");
        facts.path.mtu = Some(Ok(600));
        assert!(matches!(path(&mix(1), &facts).fix, Some(Fix::Do { what, .. }) if what.contains("no class fits")));
        facts.path.mtu = Some(Err("Network is unreachable".to_owned()));
        assert!(path(&mix(1), &facts).found.contains("unreachable"));
        let local = Subject { from: "127.0.0.1".parse().unwrap(), ..mix(1) };
        assert!(path(&local, &sound()).found.starts_with("down is bound to 127.0.0.1"));
        let unknown = Subject { next: Err("next = \"a:1\" does not resolve".to_owned()), ..mix(1) };
        assert_eq!(path(&unknown, &sound()).severity, Severity::Broken);
    }

    #[test]
    fn an_exit_is_held_against_its_device() {
        let exit = Subject { role: Some(NodeRole::Exit), position: 4, next: Ok(None), ..Subject::of_a_chain() };
        let mut facts = sound();
        facts.path.mtu = None;
        assert_eq!(path(&exit, &facts).severity, Severity::Ok);
        device(&mut facts).mtu = Some(1280);
        assert_eq!(path(&exit, &facts).severity, Severity::Broken);
        facts.path.device = None;
        assert_eq!(path(&exit, &facts).severity, Severity::Note);
    }

    #[test]
    fn fewer_queues_than_workers_and_interrupts_on_their_cores_are_told() {
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
    fn workers_far_from_the_device_are_told() {
        let mut facts = sound();
        device(&mut facts).numa = Some((1, vec![4, 5]));
        assert_eq!(numa(&mix(1), &facts).severity, Severity::Ok);
        assert_eq!(numa(&Subject { cores: vec![4], ..mix(1) }, &facts).severity, Severity::Ok);
        assert_eq!(numa(&Subject { cores: vec![0], ..mix(1) }, &facts).severity, Severity::Note);
    }

    #[test]
    fn an_exit_without_a_name_server_is_told() {
        let mut facts = sound();
        let exit = Subject { role: Some(NodeRole::Exit), ..Subject::of_a_chain() };
        let severity = |subject: &Subject, facts: &Facts| name_servers(subject, facts).severity;
        assert_eq!(severity(&exit, &facts), Severity::Ok);
        facts.name_servers = Some(0);
        assert_eq!(severity(&exit, &facts), Severity::Broken);
        facts.name_servers = None;
        assert_eq!(severity(&exit, &facts), Severity::Broken);
        assert_eq!(severity(&Subject { system_names: false, ..exit }, &facts), Severity::Ok);
    }

    #[test]
    fn a_tracking_table_that_fills_up_is_told() {
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
