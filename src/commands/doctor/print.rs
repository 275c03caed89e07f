//! Findings for people and for programs.

use serde::Serialize;
use textwrap::{Options, WordSplitter};

use super::facts::Facts;
use super::finding::{Finding, Fix, Severity};
use super::host::in_short;
use super::subject::Subject;

/// Columns, where there is no terminal to ask.
pub const WIDTH: usize = 110;

/// The column that texts begin in.
const INDENT: usize = 20;

/// A list for people: the worst first, each with what it costs and what mends it. Commands stay on one line, however
/// long.
pub fn people(subject: &Subject, facts: &Facts, findings: &[Finding], width: usize) -> String {
    let mut text = format!("{} on Linux {}", subject.what, facts.kernel);
    if !facts.cores.allowed.is_empty() {
        text += &format!(", cores {}", in_short(&facts.cores.allowed));
    }
    text.push('\n');
    for severity in Severity::WORST_FIRST {
        let group: Vec<_> = findings.iter().filter(|finding| finding.severity == severity).collect();
        if group.is_empty() {
            continue;
        }
        text += &format!("\n{}\n", severity.name());
        for finding in group {
            let mark = match severity {
                Severity::Ok => "✓",
                Severity::Note => "·",
                Severity::Costs => "!",
                Severity::Broken => "✗",
            };
            text += &wrapped(&format!("  {mark} {:<16}", finding.name), &finding.found, width);
            if let Some(costs) = finding.costs.as_ref().filter(|_| severity > Severity::Ok) {
                text += &wrapped("      costs:", costs, width);
            }
            match &finding.fix {
                None => {}
                Some(Fix::Run { command, undo, .. }) => {
                    text += &format!("{:<INDENT$}{command}\n{:<INDENT$}{undo}\n", "      mend:", "      undo:");
                }
                Some(Fix::Do { what, undo }) => {
                    text += &wrapped("      mend:", what, width);
                    if let Some(undo) = undo {
                        text += &format!("{:<INDENT$}{undo}\n", "      undo:");
                    }
                }
            }
        }
    }
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let counts: Vec<_> =
        Severity::WORST_FIRST.map(|severity| format!("{} {}", count(severity), severity.name())).to_vec();
    let script = match findings.iter().any(|finding| matches!(finding.fix, Some(Fix::Run { .. }))) {
        true => "; --fix-script prints what mends it as a script",
        false => "",
    };
    text + &format!("\n{}{script}\n", counts.join(", "))
}

fn wrapped(head: &str, text: &str, width: usize) -> String {
    let (head, rest) = (format!("{head:<INDENT$}"), " ".repeat(INDENT));
    let options = Options::new(width).initial_indent(&head).subsequent_indent(&rest);
    // Names of options and programs stay whole, or nobody can copy them.
    textwrap::fill(text, options.word_splitter(WordSplitter::NoHyphenation).break_words(false)) + "\n"
}

/// What `--json` prints; whoever reads it may rely on the names.
#[derive(Serialize)]
struct Report<'a> {
    /// What was looked at.
    subject: &'a str,
    /// The kernel's release.
    kernel: &'a str,
    /// The worst severity among the findings.
    worst: Severity,
    /// In the order of the checks.
    findings: Vec<Line<'a>>,
}

/// A finding.
#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    severity: Severity,
    found: &'a str,
    costs: Option<&'a str>,
    /// A command or words.
    fix: Option<&'a str>,
    undo: Option<&'a str>,
    /// `fix` may be run by a shell as it stands.
    runs: bool,
}

/// A line of JSON.
///
/// # Errors
/// None that is known of.
pub fn json(subject: &Subject, facts: &Facts, findings: &[Finding]) -> serde_json::Result<String> {
    let lines = findings.iter().map(|finding| {
        let (fix, undo, runs) = match &finding.fix {
            None => (None, None, false),
            Some(Fix::Run { command, undo, .. }) => (Some(command.as_str()), Some(undo.as_str()), true),
            Some(Fix::Do { what, undo }) => (Some(what.as_str()), undo.as_deref(), false),
        };
        let Finding { name, severity, found, costs, .. } = finding;
        Line { name, severity: *severity, found, costs: costs.as_deref(), fix, undo, runs }
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
            Finding::ok("send-buffers", "as they should be").because("nothing"),
            Finding::costs("receive-buffers", long, "losses").mended_by(Fix::sysctl("net.core.rmem_max", 8, 4)),
            Finding::broken("keys", "open", "the node does not start").mended_by(Fix::words("close them")),
        ]
    }

    #[test]
    fn people_read_the_worst_first_and_commands_on_one_line() {
        let text = people(&Subject::of_a_chain(), &sound(), &some(), 70);
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} in {text}"));
        assert!(at("✗ keys") < at("! receive-buffers") && at("! receive-buffers") < at("✓ send-buffers"));
        assert!(text.contains("sudo sysctl -w net.core.rmem_max=8\n") && text.contains("rmem_max=4\n"));
        assert!(text.lines().all(|line| line.chars().count() <= 90), "{text}");
        assert!(text.ends_with("1 broken, 1 costs, 0 note, 1 ok; --fix-script prints what mends it as a script\n"));
    }

    #[test]
    fn programs_read_one_object() {
        let json: serde_json::Value =
            serde_json::from_str(&json(&Subject::of_a_chain(), &sound(), &some()).unwrap()).unwrap();
        assert_eq!((json["worst"].as_str(), json["findings"].as_array().unwrap().len()), (Some("broken"), 3));
        let buffers = &json["findings"][1];
        assert_eq!((&buffers["name"], &buffers["severity"]), (&"receive-buffers".into(), &"costs".into()));
        assert_eq!((&buffers["runs"], &buffers["undo"]), (&true.into(), &"sudo sysctl -w net.core.rmem_max=4".into()));
        assert_eq!(
            (&json["findings"][2]["runs"], &json["findings"][0]["fix"]),
            (&false.into(), &serde_json::Value::Null)
        );
    }
}
