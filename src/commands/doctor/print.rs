//! Findings for people and for programs.

use serde::Serialize;

use super::facts::Facts;
use super::finding::{Finding, Fix, Severity};
use super::host::in_short;
use super::subject::Subject;
use crate::tables::wrapping;

/// Columns where standard output is not a terminal.
pub const WIDTH: usize = 80;

/// The column that texts begin in.
const INDENT: usize = 18;
/// A space at which no line ends.
const NO_BREAK: char = '\u{a0}';

/// The problems with their fixes, the worst first; with `verbose` every finding, with effects and undos.
/// Commands can be copied: they stay on one line, or continue as a shell reads it.
pub fn people(subject: &Subject, facts: &Facts, findings: &[Finding], verbose: bool, width: usize) -> String {
    let mut text = format!("{} on Linux {}", subject.what, facts.kernel);
    if !facts.cores.allowed.is_empty() {
        text += &format!(", cores {}", in_short(&facts.cores.allowed));
    }
    text += "\n\n";

    let least = if verbose { Severity::Ok } else { Severity::Warning };
    for severity in Severity::WORST_FIRST.into_iter().filter(|severity| *severity >= least) {
        for finding in findings.iter().filter(|finding| finding.severity == severity) {
            text += &one(finding, verbose, width);
        }
    }
    if findings.iter().all(|finding| finding.severity < least) {
        text += "No problems found.\n";
    }

    let counts = Severity::WORST_FIRST.map(|severity| severity.count(findings));
    text += &format!("\n{}\n", counts.join(", "));
    if !verbose {
        text += "All checks, effects and undo commands: --verbose\n";
    }
    if findings.iter().any(|finding| matches!(finding.fix, Some(Fix::Run { .. }))) {
        text += "All fixes as a shell script: --fix-script\n";
    }
    text
}

fn one(finding: &Finding, verbose: bool, width: usize) -> String {
    let mut text = wrapped(&format!("{} {}", finding.severity.sign(), finding.name), &finding.found, width);
    if let Some(effect) = finding.effect.as_ref().filter(|_| verbose && finding.severity > Severity::Ok) {
        text += &wrapped("", &format!("effect: {effect}"), width);
    }
    let undo = match &finding.fix {
        None => None,
        Some(Fix::Run { command, undo, .. }) => {
            text += &command_line("fix", command, width);
            Some(undo)
        }
        Some(Fix::Do { what, undo }) => {
            text += &wrapped("", &format!("fix: {what}"), width);
            undo.as_ref()
        }
    };
    if let Some(undo) = undo.filter(|_| verbose) {
        text += &command_line("undo", undo, width);
    }
    text
}

/// A command on one line. One that is too long continues on the next, as a shell reads it.
fn command_line(label: &str, command: &str, width: usize) -> String {
    let head = format!("{:INDENT$}{label}: ", "");
    if head.chars().count() + command.chars().count() <= width {
        return format!("{head}{command}\n");
    }
    // A quoted text may not be broken.
    if command.contains(['\'', '"']) {
        return format!("{:INDENT$}{label}:\n    {command}\n", "");
    }
    let options = wrapping(width - 2).initial_indent(&head).subsequent_indent("    ").break_words(false);
    textwrap::wrap(command, options).join(" \\\n") + "\n"
}

fn wrapped(head: &str, text: &str, width: usize) -> String {
    let (head, rest) = (format!("{head:<INDENT$}"), " ".repeat(INDENT));
    // Commands in backticks stay whole, so that they can be copied.
    let mut in_command = false;
    let fixed: String = text
        .chars()
        .map(|c| {
            in_command ^= c == '`';
            if in_command && c == ' ' { NO_BREAK } else { c }
        })
        .collect();
    let options = wrapping(width).initial_indent(&head).subsequent_indent(&rest).break_words(false);
    textwrap::fill(&fixed, options).replace(NO_BREAK, " ") + "\n"
}

/// What `--json` prints. Programs may rely on the names.
#[derive(Serialize)]
struct Report<'a> {
    /// The node, or the nodes of `eddy chain`.
    subject: &'a str,
    /// The kernel's release.
    kernel: &'a str,
    /// The worst severity among the findings.
    worst: Severity,
    /// In the order of the checks.
    findings: Vec<Line<'a>>,
}

#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    severity: Severity,
    found: &'a str,
    effect: Option<&'a str>,
    /// A command or advice.
    fix: Option<&'a str>,
    undo: Option<&'a str>,
    /// A shell can run `fix` unchanged.
    runs: bool,
}

/// A line of JSON.
///
/// # Errors
/// Never in practice.
pub fn json(subject: &Subject, facts: &Facts, findings: &[Finding]) -> serde_json::Result<String> {
    let lines = findings.iter().map(|finding| {
        let (fix, undo, runs) = match &finding.fix {
            None => (None, None, false),
            Some(Fix::Run { command, undo, .. }) => (Some(command.as_str()), Some(undo.as_str()), true),
            Some(Fix::Do { what, undo }) => (Some(what.as_str()), undo.as_deref(), false),
        };
        let Finding { name, severity, found, effect, .. } = finding;
        Line { name, severity: *severity, found, effect: effect.as_deref(), fix, undo, runs }
    });
    serde_json::to_string(&Report {
        subject: &subject.what,
        kernel: &facts.kernel,
        worst: findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok),
        findings: lines.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::facts::sound;
    use super::*;

    fn some() -> Vec<Finding> {
        let long = "word ".repeat(60);
        vec![
            Finding::ok("send-buffers", "as they should be").effect("nothing"),
            Finding::warning("receive-buffers", long, "losses").fix(Fix::sysctl("net.core.rmem_max", 8, 4)),
            Finding::error("keys", "open", "the node does not start").fix(Fix::words("close them")),
        ]
    }

    #[test]
    fn short_form_has_problems_and_fixes_only() {
        let text = people(&Subject::of_a_chain(), &sound(), &some(), false, 80);
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} in {text}"));
        assert!(at("✗ keys") < at("! receive-buffers"));
        assert!(text.contains("fix: sudo sysctl -w net.core.rmem_max=8\n"), "{text}");
        assert!(!text.contains("send-buffers") && !text.contains("undo: ") && !text.contains("effect: "), "{text}");
        assert!(text.contains("\n1 error, 1 warning, 0 notes, 1 ok\n"), "{text}");
        let sound_host = people(&Subject::of_a_chain(), &sound(), &some()[..1], false, 80);
        assert!(sound_host.contains("No problems found."), "{sound_host}");
    }

    #[test]
    fn long_commands_continue_on_the_next_line() {
        let command = "echo 200000 | sudo tee /sys/module/haltpoll/parameters/guest_halt_poll_ns";
        let finding = Finding::warning("idle", "halts", "waits").fix(Fix::run(command, "undo"));
        let text = people(&Subject::of_a_chain(), &sound(), &[finding], true, 80);
        let (first, second) = command.split_once(" /sys").unwrap();
        assert!(text.contains(&format!("fix: {first} \\\n    /sys{second}\n")), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn commands_in_a_text_stay_on_one_line() {
        let finding = Finding::warning("clock", "x", "y")
            .fix(Fix::words("do something first that is long enough, then `sudo ip link set dev eth0 mtu 1420`"));
        let text = people(&Subject::of_a_chain(), &sound(), &[finding], false, 80);
        assert!(text.contains("\n                  `sudo ip link set dev eth0 mtu 1420`\n"), "{text}");
    }

    #[test]
    fn verbose_form_has_every_finding_and_undo() {
        let text = people(&Subject::of_a_chain(), &sound(), &some(), true, 70);
        for part in ["✓ send-buffers", "rmem_max=4\n", "effect: losses"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn json_is_one_object() {
        let json: serde_json::Value =
            serde_json::from_str(&json(&Subject::of_a_chain(), &sound(), &some()).unwrap()).unwrap();
        assert_eq!((json["worst"].as_str(), json["findings"].as_array().unwrap().len()), (Some("error"), 3));
        let buffers = &json["findings"][1];
        assert_eq!((&buffers["name"], &buffers["severity"]), (&"receive-buffers".into(), &"warning".into()));
        assert_eq!((&buffers["runs"], &buffers["undo"]), (&true.into(), &"sudo sysctl -w net.core.rmem_max=4".into()));
        assert_eq!(
            (&json["findings"][2]["runs"], &json["findings"][0]["fix"]),
            (&false.into(), &serde_json::Value::Null)
        );
    }
}
