//! The processor: its cryptography, its cores, its frequency.

use super::super::facts::{Facts, HALT_POLL};
use super::super::finding::{Finding, Fix};
use super::super::host::in_short;
use super::super::subject::Subject;
use super::{HOP, UNMEASURED};

/// The AEAD engine and what the CPU has for it.
pub fn engine(_: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "aead-engine";
    let engines = &facts.engines;
    let features = if engines.features.is_empty() {
        "/proc/cpuinfo names none of the features that engines use".to_owned()
    } else {
        format!("the CPU has {}", engines.features.join(" "))
    };
    let found = format!("{}; {features}", engines.used);
    let cell = |engine: &str| match engine {
        "wide256" => Some("699"),
        "portable" => Some("754"),
        "rustcrypto" => Some("1,120"),
        _ => None,
    };
    let price = |engine: &str| match cell(engine) {
        Some(ns) => format!("{ns} ns with {engine}"),
        None => format!("what was not measured with {engine}"),
    };
    let costs = if engines.used == engines.best && engines.used.starts_with("wide") {
        format!("a cell costs a mix {} ({HOP})", price(engines.used))
    } else {
        let other = if engines.used == engines.best { "wide256" } else { engines.best };
        format!("a cell costs a mix {}, {} ({HOP})", price(engines.used), price(other))
    };
    if engines.used != engines.best {
        return Finding::costs(
            NAME,
            format!("EDDY_AEAD asks for {found}; {} would be taken without it", engines.best),
            costs,
        )
        .mended_by(Fix::run("unset EDDY_AEAD", format!("export EDDY_AEAD={}", engines.used)));
    }
    if engines.best != engines.fastest {
        return Finding::costs(
            NAME,
            format!("{found}; {} is passed over, for on this CPU it does not compute what it should", engines.fastest),
            costs,
        )
        .mended_by(Fix::words("look at the CPU, its microcode and its emulator: they get instructions wrong"));
    }
    if engines.best.starts_with("wide") {
        return Finding::ok(NAME, found).because(costs);
    }
    Finding::note(NAME, format!("{found}: the wide engines need vaes and vpclmulqdq, which a hypervisor may hide"))
        .because(costs)
}

/// Whether the workers have the cores that they are to have.
pub fn cores(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "cores";
    const SHARED: &str = "two lanes that shared two cores with the whole chain cost 45 to 77 % more for each cell than one \
                          (docs/ARCHITECTURE.md, Several cores)";
    let (allowed, workers) = (&facts.cores.allowed, subject.workers);
    let plural = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    if allowed.is_empty() {
        return Finding::note(NAME, "the system does not tell which cores this process may use");
    }
    let has = format!("this process may use {} ({})", plural(allowed.len(), "core"), in_short(allowed));
    if let Some(core) = subject.cores.iter().find(|core| !allowed.contains(core)) {
        return Finding::broken(NAME, format!("cores names {core}, but {has}"), "the node does not start")
            .mended_by(Fix::words("name some of those in `cores`, or remove the line to let the system choose"));
    }
    let mut distinct = subject.cores.clone();
    distinct.sort_unstable();
    distinct.dedup();
    if !distinct.is_empty() && distinct.len() < workers {
        let found = format!("cores names {} for {}", plural(distinct.len(), "core"), plural(workers, "worker"));
        return Finding::costs(NAME, format!("{found}; {has}"), SHARED)
            .mended_by(Fix::words(format!("name {workers} in `cores`, or make the chain with fewer --lanes")));
    }
    if allowed.len() < workers {
        let found = format!("{} share what there is: {has}", plural(workers, "worker"));
        return match subject.role {
            Some(_) => Finding::costs(NAME, found, SHARED).mended_by(Fix::words("make the chain with fewer --lanes")),
            // Five nodes on one host are a demonstration.
            None => Finding::note(NAME, found),
        };
    }
    let twins =
        facts.cores.siblings.iter().find(|threads| threads.iter().filter(|it| distinct.contains(it)).count() > 1);
    if let Some(twins) = twins {
        return Finding::note(
            NAME,
            format!("cores {} are two threads of one core, and workers run on both", in_short(twins)),
        )
        .because(UNMEASURED);
    }
    let pinned =
        if distinct.is_empty() { "none is pinned".to_owned() } else { format!("pinned to {}", in_short(&distinct)) };
    Finding::ok(NAME, format!("{}, {pinned}; {has}", plural(workers, "worker")))
}

/// Whether cores run at their full frequency.
pub fn governor(_: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "governor";
    const FILE: &str = "cpufreq/scaling_governor";
    let slow: Vec<_> = facts.cores.governors.iter().filter(|(_, name)| name != "performance").collect();
    match (facts.cores.governors.as_slice(), slow.as_slice()) {
        ([], _) => Finding::ok(NAME, "this system has no frequency governor: a guest's is its host's business"),
        (_, []) => Finding::ok(NAME, "performance"),
        (_, [(_, first), ..]) => {
            let one = slow.iter().all(|(_, name)| name == first);
            let cores: Vec<usize> = slow.iter().map(|(core, _)| *core).collect();
            let set = |name: &str, cores: &[usize]| {
                let files: Vec<String> =
                    cores.iter().map(|core| format!("/sys/devices/system/cpu/cpu{core}/{FILE}")).collect();
                format!("echo {name} | sudo tee {}", files.join(" "))
            };
            let undo = if one {
                set(first, &cores)
            } else {
                let each: Vec<String> = slow.iter().map(|(core, name)| set(name, &[*core])).collect();
                each.join("; ")
            };
            let found = format!("{first} on core{} {}", if cores.len() == 1 { "" } else { "s" }, in_short(&cores));
            Finding::costs(NAME, found, format!("{UNMEASURED}: there was no governor to set where eddy was measured"))
                .mended_by(Fix::run(set("performance", &cores), undo))
        }
    }
}

/// Whether an idle core looks for work before it halts, so that a packet need not wait for the hypervisor.
pub fn idle(_: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "idle-polling";
    const POLL_NS: u64 = 200_000;
    match facts.cores.halt_poll_ns {
        None => Finding::ok(NAME, "no guest whose idle cores could look for work before they halt (governor haltpoll)"),
        Some(0) => {
            let set = |ns: u64| format!("echo {ns} | sudo tee {HALT_POLL}");
            Finding::costs(
                NAME,
                "an idle core of this guest halts at once, and the hypervisor has to wake it (guest_halt_poll_ns = 0)",
                "a wake takes some 20 us, and a chain needs one at each node: 185 us instead of 68 at p50 through three \
                 mixes that do not wait (10,000 datagrams a second, Xeon guest; tuning/README.md); polling costs the host \
                 up to 0.2 ms of a core whenever it runs out of work",
            )
            .mended_by(Fix::run(set(POLL_NS), set(0)))
        }
        Some(ns) => {
            Finding::ok(NAME, format!("an idle core of this guest looks for work for up to {ns} ns before it halts"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::facts::sound;
    use super::super::super::finding::Severity;
    use super::*;
    use eddy_node::config::NodeRole;

    fn mix(workers: usize) -> Subject {
        Subject { role: Some(NodeRole::Mix), workers, ..Subject::of_a_chain() }
    }

    #[test]
    fn a_slower_engine_than_the_best_is_told_with_both_prices() {
        let mut facts = sound();
        assert_eq!(engine(&mix(1), &facts).severity, Severity::Ok);
        facts.engines.used = "rustcrypto";
        let found = engine(&mix(1), &facts);
        assert_eq!(found.severity, Severity::Costs);
        let costs = found.costs.unwrap();
        assert!(costs.contains("1,120") && costs.contains("699"), "{costs}");
        (facts.engines.best, facts.engines.fastest) = ("rustcrypto", "wide512");
        assert!(engine(&mix(1), &facts).found.contains("wide512 is passed over"));
        facts.engines.fastest = "rustcrypto";
        assert_eq!(engine(&mix(1), &facts).severity, Severity::Note);
    }

    #[test]
    fn cores_that_are_not_there_keep_a_node_from_starting() {
        let facts = sound();
        let named = |cores: &[usize], workers| cores_of(cores, workers, &facts);
        assert_eq!(named(&[], 1).severity, Severity::Ok);
        assert_eq!(named(&[0, 1], 2).severity, Severity::Ok);
        assert_eq!(named(&[7], 1).severity, Severity::Broken);
        assert_eq!(named(&[0], 2).severity, Severity::Costs);
        assert_eq!(named(&[1, 1], 2).severity, Severity::Costs);
        assert_eq!(named(&[], 3).severity, Severity::Costs);
    }

    fn cores_of(named: &[usize], workers: usize, facts: &Facts) -> Finding {
        cores(&Subject { cores: named.to_vec(), ..mix(workers) }, facts)
    }

    #[test]
    fn two_threads_of_one_core_are_told() {
        let mut facts = sound();
        facts.cores.siblings = vec![vec![0, 1]];
        assert_eq!(cores_of(&[0, 1], 2, &facts).severity, Severity::Note);
        assert_eq!(cores_of(&[0], 1, &facts).severity, Severity::Ok);
        facts.cores.allowed.clear();
        assert_eq!(cores_of(&[0], 1, &facts).severity, Severity::Note);
    }

    #[test]
    fn cores_that_halt_at_once_are_told_with_the_command_and_its_undo() {
        let mut facts = sound();
        assert_eq!(idle(&mix(1), &facts).severity, Severity::Ok);
        facts.cores.halt_poll_ns = Some(200_000);
        assert_eq!(idle(&mix(1), &facts).severity, Severity::Ok);
        facts.cores.halt_poll_ns = Some(0);
        let found = idle(&mix(1), &facts);
        assert_eq!(found.severity, Severity::Costs);
        let Some(Fix::Run { command, undo, .. }) = found.fix else { panic!("no command") };
        assert!(command.starts_with("echo 200000 | ") && undo.starts_with("echo 0 | "), "{command}; {undo}");
    }

    #[test]
    fn governors_are_undone_to_what_each_was() {
        let mut facts = sound();
        let named = |name: &str, core| (core, name.to_owned());
        facts.cores.governors = vec![named("performance", 0), named("performance", 1)];
        assert_eq!(governor(&mix(1), &facts).severity, Severity::Ok);
        facts.cores.governors = vec![named("powersave", 0), named("schedutil", 1)];
        let Some(Fix::Run { command, undo, .. }) = governor(&mix(1), &facts).fix else { panic!("no command") };
        assert!(command.starts_with("echo performance | sudo tee /sys/devices/system/cpu/cpu0/"), "{command}");
        assert!(undo.contains("echo powersave") && undo.contains("echo schedutil"), "{undo}");
    }
}
