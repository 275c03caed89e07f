//! The checks: each is a function of what a node asks ([`Subject`]) and what the host is ([`Facts`]).
//!
//! What something costs is said in figures of this repository's own documents, which name their machine, or said not to
//! have been measured.

mod buffers;
mod cpu;
mod kernel;
mod network;
mod process;

use super::facts::Facts;
use super::finding::Finding;
use super::subject::Subject;

/// A check.
type Check = fn(&Subject, &Facts) -> Finding;

/// All, in the order of their telling.
const ALL: [Check; 20] = [
    process::keys,
    process::descriptors_valid,
    process::clock,
    network::path,
    network::name_servers,
    buffers::receive,
    buffers::programs,
    buffers::send,
    kernel::gso,
    kernel::io_uring,
    kernel::huge_pages,
    cpu::engine,
    cpu::cores,
    cpu::governor,
    cpu::idle,
    network::queues,
    network::numa,
    network::conntrack,
    process::open_files,
    process::locked_memory,
];

/// What all checks say of this host.
pub fn all(subject: &Subject, facts: &Facts) -> Vec<Finding> {
    ALL.iter().map(|check| check(subject, facts)).collect()
}

/// `eddy-bench hop`, and where its figures come from.
const HOP: &str = "class L, 64 channels, `eddy-bench hop`, Zen 3 guest";
/// What nobody has measured.
const UNMEASURED: &str = "what it costs has not been measured";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::facts::sound;
    use crate::commands::doctor::finding::{Fix, Severity};

    #[test]
    fn a_sound_host_has_nothing_to_mend() {
        for finding in all(&Subject::of_a_chain(), &sound()) {
            assert!(finding.severity <= Severity::Note, "{finding:?}");
            assert!(finding.fix.is_none(), "{finding:?}");
        }
    }

    #[test]
    fn names_differ_and_what_costs_says_what() {
        let mut facts = sound();
        facts.buffers.granted = Ok(212_992);
        facts.buffers.rmem_max = Some(212_992);
        facts.offloads = (dataplane::io::offload::Offloads::NONE, Some("the kernel refuses them".to_owned()));
        facts.clock_kept = Some(false);
        facts.conntrack = Some((900, 1000));
        facts.cores.governors = vec![(0, "powersave".to_owned())];
        facts.descriptors = Some(1024);
        let findings = all(&Subject::of_a_chain(), &facts);
        let mut names: Vec<_> = findings.iter().map(|finding| finding.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        let bad: Vec<_> = findings.iter().filter(|finding| finding.severity >= Severity::Costs).collect();
        assert!(bad.len() >= 6, "{bad:#?}");
        for finding in bad {
            assert!(finding.costs.is_some() && finding.fix.is_some(), "{finding:?}");
            if let Some(Fix::Run { command, undo, .. }) = &finding.fix {
                assert!(!command.contains('\n') && !undo.contains('\n') && !undo.is_empty(), "{finding:?}");
            }
        }
    }
}
