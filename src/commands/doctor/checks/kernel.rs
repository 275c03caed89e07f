//! What the kernel does for a node: GSO, io_uring, huge pages.

use dataplane::io::calls::{Io, NoUring};
use dataplane::io::offload::{Offload, breaks_gso};

use super::super::facts::Facts;
use super::super::finding::{Finding, Fix};
use super::super::subject::Subject;
use super::HOP;

/// Whether cells travel in GSO bursts (UDP_SEGMENT, UDP_GRO).
pub fn gso(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "gso";
    let (offloads, why) = &facts.offloads;
    let kernel = &facts.kernel;
    let costs = format!("without GSO a cell costs a mix 4,975 ns instead of 699 ({HOP})");
    let (true, true, None) = (offloads.gro, offloads.gso, why) else {
        let why = why.as_deref().unwrap_or("they are not to be had");
        return match subject.offload {
            Offload::Off => Finding::costs(NAME, format!("GSO is disabled: {why}"), costs).mended_by(Fix::Do {
                what:
                    "remove the line `offload` from the configuration; it stands for a device that mangles GSO bursts, if \
                           there is one"
                        .to_owned(),
                undo: Some("offload = \"off\"".to_owned()),
            }),
            Offload::On => Finding::broken(
                NAME,
                format!("offload = \"on\", but {why}"),
                "cells are lost, and nobody refuses them: the next hop counts `header` and `forged`",
            )
            .mended_by(Fix::words("write offload = \"auto\"")),
            Offload::Auto if breaks_gso(kernel) => {
                Finding::costs(NAME, format!("cells leave one by one: {why}"), costs)
                    .mended_by(Fix::words("run a kernel from 7.1.5 on, or before 7.0"))
            }
            Offload::Auto => Finding::costs(NAME, format!("GSO is disabled: {why}"), costs)
                .mended_by(Fix::words("run Linux 5.0 or later; let a sandbox pass UDP_SEGMENT and UDP_GRO")),
        };
    };
    if breaks_gso(kernel) {
        return Finding::costs(
            NAME,
            format!("offload = \"on\" with Linux {kernel}, which is known to break GSO behind some devices"),
            "there cells are lost, and nobody refuses them: the next hop counts `header` and `forged`",
        )
        .mended_by(Fix::words("write offload = \"auto\", or run a kernel from 7.1.5 on"));
    }
    Finding::ok(NAME, format!("Linux {kernel} carries GSO bursts of cells whole over loopback (UDP_SEGMENT, UDP_GRO)"))
        .because(
            "a device that mangles them silently cannot be seen from here: the next hop would count `header` and \
                  `forged` (tuning/README.md, Offloads)",
        )
}

/// Whether io_uring is to be had, and whether that matters.
pub fn io_uring(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "io-uring";
    let measured =
        format!("it costs more than recvmmsg and sendmmsg on the kernel measured: 716 ns a cell for 699 ({HOP})");
    match (&facts.no_uring, subject.io == Io::Uring) {
        (None, true) => Finding::note(NAME, "link sockets use io_uring").because(measured),
        (None, false) => Finding::ok(NAME, "io_uring is to be had, and not asked for").because(measured),
        (Some(why), false) => Finding::ok(NAME, format!("not asked for; {why}")).because(measured),
        (Some(why), true) => {
            let finding = Finding::costs(
                NAME,
                format!("io = \"uring\", but {why}"),
                "recvmmsg and sendmmsg are used instead, which measured better where both were to be had \
                 (docs/ARCHITECTURE.md)",
            );
            finding.mended_by(match why {
                NoUring::Disabled(level) => Fix::sysctl("kernel.io_uring_disabled", 0, level),
                _ => Fix::Do {
                    what: "remove the line `io` from the configuration".to_owned(),
                    undo: Some("io = \"uring\"".to_owned()),
                },
            })
        }
    }
}

/// Whether there are the pages of 2 MB that the configuration asks for.
pub fn huge_pages(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "huge-pages";
    const COSTS: &str = "a mix takes 5 % more time for a cell with 4,096 channels, and 10 % more with 100,000";
    let (path, now) = ("/sys/kernel/mm/transparent_hugepage/enabled", facts.huge_pages.as_deref());
    match (subject.hugepages, now) {
        (false, _) => Finding::ok(NAME, "not wanted (hugepages = false)"),
        (true, Some(now)) if now.contains("[never]") => {
            Finding::costs(NAME, format!("{path} says never: buffers and channels lie on ordinary pages"), COSTS)
                .mended_by(Fix::run(format!("echo madvise | sudo tee {path}"), format!("echo never | sudo tee {path}")))
        }
        (true, Some(_)) => Finding::ok(NAME, "the system gives pages of 2 MB to whoever asks (madvise)"),
        (true, None) => Finding::note(NAME, "this kernel or sandbox has no transparent huge pages"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::facts::sound;
    use super::super::super::finding::Severity;
    use super::*;
    use dataplane::io::offload::Offloads;

    #[test]
    fn missing_gso_costs_what_was_measured_and_forced_ones_lose_cells() {
        let (mut subject, mut facts) = (Subject::of_a_chain(), sound());
        assert_eq!(gso(&subject, &facts).severity, Severity::Ok);
        facts.offloads = (Offloads::NONE, Some("the kernel refuses them: Protocol not available".to_owned()));
        let found = gso(&subject, &facts);
        assert_eq!(found.severity, Severity::Costs);
        assert!(found.costs.unwrap().contains("4,975"));
        facts.offloads = (Offloads::BOTH, Some("a GSO burst of 46 cells did not come through".to_owned()));
        subject.offload = Offload::On;
        assert_eq!(gso(&subject, &facts).severity, Severity::Broken);
    }

    #[test]
    fn kernels_that_break_gso_are_told_whatever_the_probe_says() {
        let (mut subject, mut facts) = (Subject::of_a_chain(), sound());
        facts.kernel = "7.1.2-generic".to_owned();
        facts.offloads = (Offloads { gro: true, gso: false }, Some("Linux 7.1.2-generic is known to".to_owned()));
        let found = gso(&subject, &facts);
        assert!(matches!(found.fix, Some(Fix::Do { what, .. }) if what.contains("7.1.5")));
        subject.offload = Offload::On;
        facts.offloads = (Offloads::BOTH, None);
        assert_eq!(gso(&subject, &facts).severity, Severity::Costs);
    }

    #[test]
    fn io_uring_matters_to_whoever_asked_for_it() {
        let (mut subject, mut facts) = (Subject::of_a_chain(), sound());
        facts.no_uring = Some(NoUring::Disabled(2));
        assert_eq!(io_uring(&subject, &facts).severity, Severity::Ok);
        subject.io = Io::Uring;
        let found = io_uring(&subject, &facts);
        assert_eq!(found.fix, Some(Fix::sysctl("kernel.io_uring_disabled", 0, 2)));
        facts.no_uring = Some(NoUring::Forbidden);
        assert!(matches!(io_uring(&subject, &facts).fix, Some(Fix::Do { .. })));
        facts.no_uring = None;
        assert_eq!(io_uring(&subject, &facts).severity, Severity::Note);
    }

    #[test]
    fn huge_pages_are_missed_by_whoever_wants_them() {
        let (mut subject, mut facts) = (Subject::of_a_chain(), sound());
        facts.huge_pages = Some("always madvise [never]".to_owned());
        assert!(matches!(huge_pages(&subject, &facts).fix, Some(Fix::Run { .. })));
        facts.huge_pages = None;
        assert_eq!(huge_pages(&subject, &facts).severity, Severity::Note);
        subject.hugepages = false;
        assert_eq!(huge_pages(&subject, &facts).severity, Severity::Ok);
        subject.hugepages = true;
        facts.huge_pages = Some("always [madvise] never".to_owned());
        assert_eq!(huge_pages(&subject, &facts).severity, Severity::Ok);
    }
}
