//! Kernel features that a node uses: GSO and GRO, io_uring, huge pages.

use dataplane::socket::backend::{Io, NoUring};
use dataplane::socket::offload::{NoOffload, Offload, breaks_gso};

use super::super::facts::Facts;
use super::super::finding::{Finding, Fix};
use super::super::subject::Subject;

/// Segmentation offload (UDP_SEGMENT, UDP_GRO): several cells per system call.
pub fn gso(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "gso";
    const SLOW: &str = "each cell costs a system call of its own: several times the processor time";
    const LOST: &str = "cells may be lost without an error here; the next hop then counts `header` and `forged` drops";
    let (offloads, why) = &facts.offloads;
    let kernel = &facts.kernel;
    let (true, true, None) = (offloads.gro, offloads.gso, why) else {
        if let Some(NoOffload::Untested) = why {
            return Finding::warning(NAME, "GSO not tested: nothing can be sent over loopback", SLOW)
                .fix(Fix::run("sudo ip link set lo up", "sudo ip link set lo down"));
        }
        let why = why.as_ref().map_or("the configuration says offload = \"off\"".to_owned(), ToString::to_string);
        return match subject.offload {
            Offload::Off => Finding::warning(NAME, format!("GSO disabled: {why}"), SLOW).fix(Fix::Do {
                what: "remove `offload` from the configuration, unless a network device corrupts bursts".to_owned(),
                undo: Some("offload = \"off\"".to_owned()),
            }),
            Offload::On => Finding::error(NAME, format!("offload = \"on\", but {why}"), LOST)
                .fix(Fix::words("set offload = \"auto\"")),
            Offload::Auto if breaks_gso(kernel) => Finding::warning(NAME, format!("GSO disabled: {why}"), SLOW)
                .fix(Fix::words("run Linux 7.1.5 or later, or a version before 7.0")),
            Offload::Auto if matches!(facts.offloads.1, Some(NoOffload::Broken { .. })) => {
                Finding::warning(NAME, format!("GSO disabled: {why}"), SLOW)
                    .fix(Fix::words("check GSO of loopback: `ip -d link show lo` must show gso_max_size 65536 or more"))
            }
            Offload::Auto => Finding::warning(NAME, format!("GSO disabled: {why}"), SLOW)
                .fix(Fix::words("run Linux 5.0 or later; a sandbox must allow UDP_SEGMENT and UDP_GRO")),
        };
    };
    if breaks_gso(kernel) {
        let found = format!("offload = \"on\" with Linux {kernel}, which corrupts GSO bursts on some devices");
        return Finding::warning(NAME, found, LOST)
            .fix(Fix::words("set offload = \"auto\", or run Linux 7.1.5 or later"));
    }
    Finding::ok(NAME, "GSO and GRO work over loopback; devices are not tested (tuning/README.md)")
}

/// io_uring, which is optional.
pub fn io_uring(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "io-uring";
    match (&facts.no_uring, subject.io == Io::Uring) {
        (None, true) => Finding::note(NAME, "enabled for link sockets")
            .effect("it costs about as much as recvmmsg and sendmmsg, the default (docs/BENCHMARKS.md)"),
        (None, false) => Finding::ok(NAME, "available but not enabled"),
        (Some(why), false) => Finding::ok(NAME, format!("not enabled, and not available: {why}")),
        (Some(why), true) => {
            let found = format!("io = \"uring\", but {why}");
            Finding::warning(NAME, found, "the node uses recvmmsg and sendmmsg instead").fix(match why {
                NoUring::Disabled(level) => Fix::sysctl("kernel.io_uring_disabled", 0, level),
                _ => Fix::Do {
                    what: "remove `io` from the configuration".to_owned(),
                    undo: Some("io = \"uring\"".to_owned()),
                },
            })
        }
    }
}

/// Pages of 2 MB, if the configuration asks for them.
pub fn huge_pages(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "huge-pages";
    const FILE: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    match (subject.hugepages, facts.huge_pages.as_deref()) {
        (false, _) => Finding::ok(NAME, "not enabled (hugepages = false)"),
        (true, Some(now)) if now.contains("[never]") => Finding::warning(
            NAME,
            format!("disabled by {FILE}"),
            "buffers and channels are on pages of 4 kB: more TLB misses with many channels",
        )
        .fix(Fix::run(format!("echo madvise | sudo tee {FILE}"), format!("echo never | sudo tee {FILE}"))),
        (true, Some(_)) => Finding::ok(NAME, "available on request (madvise)"),
        (true, None) => Finding::note(NAME, "this kernel or sandbox has no transparent huge pages"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::facts::sound;
    use super::super::super::finding::Severity;
    use super::*;
    use dataplane::socket::offload::Offloads;

    #[test]
    fn missing_gso_is_a_warning_and_forced_gso_an_error() {
        let (mut subject, mut facts) = (Subject::of_a_chain(), sound());
        assert_eq!(gso(&subject, &facts).severity, Severity::Ok);
        facts.offloads = (Offloads::NONE, Some(NoOffload::Refused(std::io::Error::other("Protocol not available"))));
        let found = gso(&subject, &facts);
        assert_eq!(found.severity, Severity::Warning);
        facts.offloads = (Offloads::NONE, Some(NoOffload::Broken { cells: 46, len: 1360 }));
        let found = gso(&subject, &facts);
        assert!(matches!(found.fix, Some(Fix::Do { what, .. }) if what.contains("gso_max_size")));
        facts.offloads = (Offloads::NONE, Some(NoOffload::Untested));
        let found = gso(&subject, &facts);
        assert!(matches!(found.fix, Some(Fix::Run { .. })) && !found.found.contains("kernel"), "{found:?}");
        facts.offloads = (Offloads::BOTH, Some(NoOffload::Broken { cells: 46, len: 1360 }));
        subject.offload = Offload::On;
        assert_eq!(gso(&subject, &facts).severity, Severity::Error);
    }

    #[test]
    fn kernels_that_corrupt_bursts_are_a_warning() {
        let (mut subject, mut facts) = (Subject::of_a_chain(), sound());
        facts.kernel = "7.1.2-generic".to_owned();
        facts.offloads = (Offloads { gro: true, gso: false }, Some(NoOffload::Known("7.1.2-generic".to_owned())));
        let found = gso(&subject, &facts);
        assert!(matches!(found.fix, Some(Fix::Do { what, .. }) if what.contains("7.1.5")));
        subject.offload = Offload::On;
        facts.offloads = (Offloads::BOTH, None);
        assert_eq!(gso(&subject, &facts).severity, Severity::Warning);
    }

    #[test]
    fn missing_io_uring_matters_only_if_enabled() {
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
    fn missing_huge_pages_matter_only_if_enabled() {
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
