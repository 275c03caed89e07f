//! The checks: each is a function of the requirements of a node ([`Subject`]) and the state of the host ([`Facts`]).
//!
//! An effect has no figures: those are in docs/BENCHMARKS.md, with their machine and date.

mod buffers;
mod cpu;
mod kernel;
mod network;
mod process;
mod rounds;

use super::facts::Facts;
use super::finding::{Finding, Severity};
use super::subject::Subject;

type Check = fn(&Subject, &Facts) -> Finding;

/// In the order of `--json`.
const ALL: [Check; 22] = [
    process::keys,
    process::descriptors_valid,
    process::clock,
    rounds::steps,
    network::ports,
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

/// Runs all checks.
pub fn all(subject: &Subject, facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<_> = ALL.iter().map(|check| check(subject, facts)).collect();
    findings.push(process::start(subject, findings.iter().any(|finding| finding.severity == Severity::Error)));
    findings
}

const UNMEASURED: &str = "the effect has not been measured";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::facts::sound;
    use crate::commands::doctor::finding::Fix;
    use dataplane::socket::offload::{NoOffload, Offloads};

    #[test]
    fn sound_host_has_no_problems() {
        for finding in all(&Subject::of_a_chain(), &sound()) {
            assert!(finding.severity <= Severity::Note, "{finding:?}");
            assert!(finding.fix.is_none(), "{finding:?}");
        }
    }

    #[test]
    fn problems_have_distinct_names_effects_and_fixes() {
        let mut facts = sound();
        facts.buffers.granted = Ok(212_992);
        facts.buffers.rmem_max = Some(212_992);
        let refused = NoOffload::Refused(std::io::Error::other("not supported"));
        facts.offloads = (Offloads::NONE, Some(refused));
        facts.clock_kept = Some(false);
        facts.conntrack = Some((900, 1000));
        facts.cores.governors = vec![(0, "powersave".to_owned())];
        facts.descriptors = Some(1024);
        let findings = all(&Subject::of_a_chain(), &facts);
        let mut names: Vec<_> = findings.iter().map(|finding| finding.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len() + 1);
        let bad: Vec<_> = findings.iter().filter(|finding| finding.severity >= Severity::Warning).collect();
        assert!(bad.len() >= 6, "{bad:#?}");
        for finding in bad {
            assert!(finding.effect.is_some() && finding.fix.is_some(), "{finding:?}");
            if let Some(Fix::Run { command, undo, .. }) = &finding.fix {
                assert!(!command.contains('\n') && !undo.contains('\n') && !undo.is_empty(), "{finding:?}");
            }
        }
    }
}
