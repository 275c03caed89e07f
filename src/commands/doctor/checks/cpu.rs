//! The processor: its cryptography, its cores, its frequency.

use super::super::facts::{Facts, HALT_POLL};
use super::super::finding::{Finding, Fix};
use super::super::host::in_short;
use super::super::subject::Subject;
use super::UNMEASURED;

/// The AEAD engine, against the fastest that this CPU runs.
pub fn engine(_: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "aead-engine";
    const SLOW: &str = "each cell costs more processor time (docs/BENCHMARKS.md)";
    let engines = &facts.engines;
    let features = match engines.features.as_slice() {
        [] => "/proc/cpuinfo lists no relevant features".to_owned(),
        features => format!("CPU features: {}", features.join(" ")),
    };
    if engines.used != engines.best {
        let found = format!("EDDY_AEAD selects {}; the default here is {}", engines.used, engines.best);
        return Finding::warning(NAME, found, SLOW)
            .fix(Fix::run("unset EDDY_AEAD", format!("export EDDY_AEAD={}", engines.used)));
    }
    if engines.best != engines.fastest {
        let found = format!(
            "{} (the faster {} failed its self-test: its results on this CPU are wrong)",
            engines.used, engines.fastest
        );
        return Finding::warning(NAME, found, SLOW)
            .fix(Fix::words("check the CPU, its microcode or its emulator: instructions give wrong results"));
    }
    if engines.best.starts_with("wide") {
        return Finding::ok(NAME, format!("{}; {features}", engines.used));
    }
    Finding::note(NAME, format!("{}; {features}", engines.used))
        .effect("the faster engines need vaes and vpclmulqdq; a hypervisor may hide them")
}

/// The cores that this process may use, against the node's workers.
pub fn cores(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "cores";
    const SHARED: &str = "workers that share a core are slower than one worker (docs/BENCHMARKS.md)";
    let (allowed, workers) = (&facts.cores.allowed, subject.workers);
    let plural = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    if allowed.is_empty() {
        return Finding::note(NAME, "unknown: the system does not report which cores this process may use");
    }
    let has = format!("this process may use {} ({})", plural(allowed.len(), "core"), in_short(allowed));

    if let Some(core) = subject.cores.iter().find(|core| !allowed.contains(core)) {
        return Finding::error(NAME, format!("`cores` lists {core}, but {has}"), "the node does not start")
            .fix(Fix::words("list some of those in `cores`, or remove the line"));
    }

    let mut distinct = subject.cores.clone();
    distinct.sort_unstable();
    distinct.dedup();
    if distinct.len() < subject.pinned {
        let pinned = plural(subject.pinned, "worker");
        let found = format!("`cores` lists {} for {pinned}", plural(distinct.len(), "core"));
        return Finding::warning(NAME, format!("{found}; {has}"), SHARED).fix(Fix::words(format!(
            "list {} in `cores`, for a class in [class.NAME], or make the chain with fewer --lanes",
            subject.pinned
        )));
    }

    if allowed.len() < workers {
        let found = format!("{} on too few cores: {has}", plural(workers, "worker"));
        return match subject.role {
            Some(_) => Finding::warning(NAME, found, SHARED)
                .fix(Fix::words("use a host with more cores, or make the chain with fewer --lanes or classes")),
            // `eddy chain` runs five nodes on one host: fine for a demonstration.
            None => Finding::note(NAME, found),
        };
    }

    let twins =
        facts.cores.siblings.iter().find(|threads| threads.iter().filter(|it| distinct.contains(it)).count() > 1);
    if let Some(twins) = twins {
        let found = format!("cores {} are two threads of one core, and workers run on both", in_short(twins));
        return Finding::note(NAME, found).effect(UNMEASURED);
    }

    let pinned = match subject.pinned {
        0 => "not pinned".to_owned(),
        pinned if pinned < workers => format!("{pinned} of them pinned to {}", in_short(&distinct)),
        _ => format!("pinned to {}", in_short(&distinct)),
    };
    Finding::ok(NAME, format!("{}, {pinned}; {has}", plural(workers, "worker")))
}

/// The frequency governors of the cores.
pub fn governor(_: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "governor";
    const FILE: &str = "cpufreq/scaling_governor";
    let slow: Vec<_> = facts.cores.governors.iter().filter(|(_, name)| name != "performance").collect();
    match (facts.cores.governors.as_slice(), slow.as_slice()) {
        ([], _) => Finding::ok(NAME, "no frequency governor on this host"),
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
            Finding::warning(NAME, found, "cores take time to reach their full frequency")
                .fix(Fix::run(set("performance", &cores), undo))
        }
    }
}

/// The polling time of idle cores of a guest.
pub fn idle(_: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "idle-polling";
    const POLL_NS: u64 = 200_000;
    match facts.cores.halt_poll_ns {
        None => Finding::ok(NAME, "not a guest with the cpuidle governor haltpoll"),
        Some(0) => {
            let set = |ns: u64| format!("echo {ns} | sudo tee {HALT_POLL}");
            Finding::warning(
                NAME,
                "idle cores of this guest halt at once (guest_halt_poll_ns = 0)",
                "each packet waits until the hypervisor wakes the core, at every node of a chain; polling costs the \
                 host up to 0.2 ms of processor time whenever a core runs out of work (tuning/README.md)",
            )
            .fix(Fix::run(set(POLL_NS), set(0)))
        }
        Some(ns) => Finding::ok(NAME, format!("idle cores of this guest poll for up to {ns} ns before they halt")),
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
    fn slower_engine_than_the_best_is_a_warning() {
        let mut facts = sound();
        assert_eq!(engine(&mix(1), &facts).severity, Severity::Ok);
        facts.engines.used = "rustcrypto";
        let found = engine(&mix(1), &facts);
        assert_eq!(found.severity, Severity::Warning);
        assert!(found.found.contains("rustcrypto") && found.found.contains("wide256"), "{}", found.found);
        (facts.engines.best, facts.engines.fastest) = ("rustcrypto", "wide512");
        assert!(engine(&mix(1), &facts).found.contains("wide512 failed its self-test"));
        facts.engines.fastest = "rustcrypto";
        assert_eq!(engine(&mix(1), &facts).severity, Severity::Note);
    }

    #[test]
    fn missing_cores_are_an_error() {
        let facts = sound();
        let named = |cores: &[usize], workers| cores_of(cores, workers, &facts);
        assert_eq!(named(&[], 1).severity, Severity::Ok);
        assert_eq!(named(&[0, 1], 2).severity, Severity::Ok);
        assert_eq!(named(&[7], 1).severity, Severity::Error);
        assert_eq!(named(&[0], 2).severity, Severity::Warning);
        assert_eq!(named(&[1, 1], 2).severity, Severity::Warning);
        assert_eq!(named(&[], 3).severity, Severity::Warning);
        let of_a_class = cores(&Subject { cores: vec![1], pinned: 1, ..mix(2) }, &facts);
        assert_eq!(of_a_class.found, "2 workers, 1 of them pinned to 1; this process may use 2 cores (0-1)");
    }

    fn cores_of(named: &[usize], workers: usize, facts: &Facts) -> Finding {
        let pinned = if named.is_empty() { 0 } else { workers };
        cores(&Subject { cores: named.to_vec(), pinned, ..mix(workers) }, facts)
    }

    #[test]
    fn two_threads_of_one_core_are_a_note() {
        let mut facts = sound();
        facts.cores.siblings = vec![vec![0, 1]];
        assert_eq!(cores_of(&[0, 1], 2, &facts).severity, Severity::Note);
        assert_eq!(cores_of(&[0], 1, &facts).severity, Severity::Ok);
        facts.cores.allowed.clear();
        assert_eq!(cores_of(&[0], 1, &facts).severity, Severity::Note);
    }

    #[test]
    fn cores_that_halt_at_once_have_a_command_and_its_undo() {
        let mut facts = sound();
        assert_eq!(idle(&mix(1), &facts).severity, Severity::Ok);
        facts.cores.halt_poll_ns = Some(200_000);
        assert_eq!(idle(&mix(1), &facts).severity, Severity::Ok);
        facts.cores.halt_poll_ns = Some(0);
        let found = idle(&mix(1), &facts);
        assert_eq!(found.severity, Severity::Warning);
        let Some(Fix::Run { command, undo, .. }) = found.fix else { panic!("no command") };
        assert!(command.starts_with("echo 200000 | ") && undo.starts_with("echo 0 | "), "{command}; {undo}");
    }

    #[test]
    fn undo_restores_the_governor_of_each_core() {
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
