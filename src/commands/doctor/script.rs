//! Findings as a shell script: fixes that are commands, each with its undo as a comment; advice as comments.

use super::finding::{Finding, Fix};
use super::subject::Subject;

const HEAD: &str = "\
# Root needs no sudo, and may not have it.
if [ \"$(id -u)\" -eq 0 ]; then sudo() { \"$@\"; }; fi
";

/// The file that keeps sysctl settings across reboots. It is not that of tuning/, so that its undo removes only what
/// this script wrote.
const KEPT: &str = "/etc/sysctl.d/99-eddy-doctor.conf";

/// The script.
pub fn write(subject: &Subject, findings: &[Finding]) -> String {
    let again = subject.option.as_ref().map_or("eddy doctor".to_owned(), |option| format!("eddy doctor {option}"));
    let mut script = format!(
        "#!/bin/sh\n# Fixes of this host for {}, as found by `{}`.\n# Read them before you run them: each undo is \
         below its fix. Then run `{}` again.\nset -eu\n\n{HEAD}",
        one_line(&subject.what),
        one_line(&again),
        one_line(&again)
    );

    let mut kept = Vec::new();
    for finding in findings {
        let Some(fix) = &finding.fix else { continue };
        script += &format!("\n# {}: {}: {}\n", finding.name, finding.severity.name(), one_line(&finding.found));
        if let Some(effect) = &finding.effect {
            script += &format!("# effect: {}\n", one_line(effect));
        }
        match fix {
            // A file name may contain a line feed, which would end the comment of the undo.
            Fix::Run { command, undo, .. } if command.contains('\n') || undo.contains('\n') => {
                script += &format!("# to do by hand: {}\n", one_line(command));
            }
            // The script's shell cannot change the environment that nodes are started in.
            Fix::Run { command, undo, .. } if command.starts_with("unset ") => {
                script += &format!("# where nodes are started: {command}\n# undo: {undo}\n");
            }
            Fix::Run { command, undo, sysctl } => {
                script += &format!("{command}\n# undo: {undo}\n");
                kept.extend(sysctl);
            }
            Fix::Do { what, undo } => {
                script += &format!("# to do by hand: {}\n", one_line(what));
                if let Some(undo) = undo {
                    script += &format!("# undo: {undo}\n");
                }
            }
        }
    }

    if !kept.is_empty() {
        script += "\n# These settings are lost at a reboot. To keep them (tuning/99-eddy.conf is such a file):\n";
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
            Finding::warning("receive-buffers", "small\nbuffers", "losses").fix(Fix::sysctl("a.b", 8, 4)),
            Finding::warning("aead-engine", "slow", "time").fix(Fix::run("unset EDDY_AEAD", "export EDDY_AEAD=x")),
            Finding::error("keys", "open", "much").fix(Fix::run("chmod 600 'a\nb'", "chmod 644 'a\nb'")),
            Finding::warning("clock", "it's `off`", "$(exit 1)")
                .fix(Fix::Do { what: "set it".to_owned(), undo: Some("set it back".to_owned()) }),
        ];
        write(&Subject::of_a_chain(), &findings)
    }

    #[test]
    fn commands_have_undos_and_advice_is_a_comment() {
        let script = script();
        let code: Vec<_> = script.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        assert_eq!(code[0], "set -eu");
        assert_eq!(code[2..], ["sudo sysctl -w a.b=8"], "{script}");
        assert!(script.contains("\nsudo sysctl -w a.b=8\n# undo: sudo sysctl -w a.b=4\n"), "{script}");
        assert!(script.contains("# echo 'a.b = 8' | sudo tee -a /etc/sysctl.d/99-eddy-doctor.conf\n"), "{script}");
        assert!(!script.contains("send-buffers"), "{script}");
    }

    #[test]
    fn shell_parses_the_script() {
        let mut shell = Command::new("sh").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut shell.stdin.take().unwrap(), script().as_bytes()).unwrap();
        assert!(shell.wait().unwrap().success());
    }
}
