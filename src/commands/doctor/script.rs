//! Findings as a shell script: each fix that is a command, with its undo as a comment; the others as comments.

use super::finding::{Finding, Fix};
use super::subject::Subject;

const HEAD: &str = "\
# As root no sudo is needed, and there may be none.
if [ \"$(id -u)\" -eq 0 ]; then sudo() { \"$@\"; }; fi
";

/// The file that sysctl settings are kept in.
const KEPT: &str = "/etc/sysctl.d/99-eddy.conf";

/// The script.
pub fn write(subject: &Subject, findings: &[Finding]) -> String {
    let again = match &subject.config {
        Some(path) => format!("eddy doctor --config {}", path.display()),
        None => "eddy doctor".to_owned(),
    };
    let mut script = format!(
        "#!/bin/sh\n# What mends this host for {}, as `{}` found it.\n# Read it before you run it; each undo stands \
         below its fix. Then run `{}` again.\nset -eu\n\n{HEAD}",
        one_line(&subject.what),
        one_line(&again),
        one_line(&again)
    );
    let mut kept = Vec::new();
    for finding in findings {
        let Some(fix) = &finding.fix else { continue };
        script += &format!("\n# {}: {}: {}\n", finding.name, finding.severity.name(), one_line(&finding.found));
        if let Some(costs) = &finding.costs {
            script += &format!("# costs: {}\n", one_line(costs));
        }
        match fix {
            // A name of a file may hold a line's end, which would end the comment of the undo.
            Fix::Run { command, undo, .. } if command.contains('\n') || undo.contains('\n') => {
                script += &format!("# for you to do: {}\n", one_line(command));
            }
            // A shell of its own cannot change the environment of whoever starts nodes.
            Fix::Run { command, undo, .. } if command.starts_with("unset ") => {
                script += &format!("# where nodes are started: {command}\n# undo: {undo}\n");
            }
            Fix::Run { command, undo, sysctl } => {
                script += &format!("{command}\n# undo: {undo}\n");
                kept.extend(sysctl);
            }
            Fix::Do { what, undo } => {
                script += &format!("# for you to do: {}\n", one_line(what));
                if let Some(undo) = undo {
                    script += &format!("# undo: {undo}\n");
                }
            }
        }
    }
    if !kept.is_empty() {
        script += "\n# The host forgets these when it restarts. To keep them (tuning/99-eddy.conf is such a file):\n";
        for line in kept {
            script += &format!("# echo '{line}' | sudo tee -a {KEPT}\n");
        }
        script += &format!("# undo: sudo rm {KEPT}\n");
    }
    script
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn script() -> String {
        let findings = [
            Finding::ok("send-buffers", "as they should be"),
            Finding::costs("receive-buffers", "small\nbuffers", "losses").mended_by(Fix::sysctl("a.b", 8, 4)),
            Finding::costs("aead-engine", "slow", "time").mended_by(Fix::run("unset EDDY_AEAD", "export EDDY_AEAD=x")),
            Finding::broken("keys", "open", "much").mended_by(Fix::run("chmod 600 'a\nb'", "chmod 644 'a\nb'")),
            Finding::costs("clock", "it's `off`", "$(exit 1)")
                .mended_by(Fix::Do { what: "set it".to_owned(), undo: Some("set it back".to_owned()) }),
        ];
        write(&Subject::of_a_chain(), &findings)
    }

    #[test]
    fn every_command_has_its_undo_and_words_are_comments() {
        let script = script();
        let code: Vec<_> = script.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        assert_eq!(code[0], "set -eu");
        assert_eq!(code[2..], ["sudo sysctl -w a.b=8"], "{script}");
        assert!(script.contains("\nsudo sysctl -w a.b=8\n# undo: sudo sysctl -w a.b=4\n"), "{script}");
        assert!(script.contains("# echo 'a.b = 8' | sudo tee -a /etc/sysctl.d/99-eddy.conf\n"), "{script}");
        assert!(!script.contains("send-buffers"), "{script}");
    }

    #[test]
    fn a_shell_can_read_it() {
        let mut shell = Command::new("sh").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut shell.stdin.take().unwrap(), script().as_bytes()).unwrap();
        assert!(shell.wait().unwrap().success());
    }
}
