//! The result of a check: the state of one thing, its effect on a node, and the fix.

use serde::Serialize;

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Ok,
    /// Worth knowing; nothing needs to be done.
    Note,
    /// The node runs, slower or with losses.
    Warning,
    /// The node does not start, or does not work.
    Error,
}

impl Severity {
    pub const WORST_FIRST: [Severity; 4] = [Severity::Error, Severity::Warning, Severity::Note, Severity::Ok];

    /// Its name in JSON and scripts.
    pub const fn name(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }

    /// The sign in front of a finding.
    pub const fn sign(self) -> char {
        match self {
            Severity::Ok => '✓',
            Severity::Note => '·',
            Severity::Warning => '!',
            Severity::Error => '✗',
        }
    }

    /// `1 error`, `2 warnings`, `3 ok`.
    pub fn count(self, findings: &[Finding]) -> String {
        let count = findings.iter().filter(|finding| finding.severity == self).count();
        let plural = if count == 1 || self == Severity::Ok { "" } else { "s" };
        format!("{count} {}{plural}", self.name())
    }
}

/// The fix of a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fix {
    /// A command that a shell can run unchanged.
    Run {
        /// One line; `sudo` where it needs root.
        command: String,
        /// One line that reverts it.
        undo: String,
        /// A line for a file in /etc/sysctl.d that keeps the setting across reboots.
        sysctl: Option<String>,
    },
    /// A step that only a person can decide or do.
    Do { what: String, undo: Option<String> },
}

impl Fix {
    /// A kernel setting, whose value was `was`.
    pub fn sysctl(key: &str, value: impl std::fmt::Display, was: impl std::fmt::Display) -> Fix {
        Fix::Run {
            command: format!("sudo sysctl -w {key}={value}"),
            undo: format!("sudo sysctl -w {key}={was}"),
            sysctl: Some(format!("{key} = {value}")),
        }
    }

    /// A command with its undo.
    pub fn run(command: impl Into<String>, undo: impl Into<String>) -> Fix {
        Fix::Run { command: command.into(), undo: undo.into(), sysctl: None }
    }

    /// Advice, which has no undo.
    pub fn words(what: impl Into<String>) -> Fix {
        Fix::Do { what: what.into(), undo: None }
    }
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The check's name, stable for scripts.
    pub name: &'static str,
    pub severity: Severity,
    /// The state of the host.
    pub found: String,
    /// The effect on a node.
    pub effect: Option<String>,
    pub fix: Option<Fix>,
}

impl Finding {
    fn new(name: &'static str, severity: Severity, found: impl Into<String>) -> Finding {
        Finding { name, severity, found: found.into(), effect: None, fix: None }
    }

    pub fn ok(name: &'static str, found: impl Into<String>) -> Finding {
        Finding::new(name, Severity::Ok, found)
    }

    pub fn note(name: &'static str, found: impl Into<String>) -> Finding {
        Finding::new(name, Severity::Note, found)
    }

    pub fn warning(name: &'static str, found: impl Into<String>, effect: impl Into<String>) -> Finding {
        Finding::new(name, Severity::Warning, found).effect(effect)
    }

    pub fn error(name: &'static str, found: impl Into<String>, effect: impl Into<String>) -> Finding {
        Finding::new(name, Severity::Error, found).effect(effect)
    }

    #[must_use]
    pub fn effect(mut self, effect: impl Into<String>) -> Finding {
        self.effect = Some(effect.into());
        self
    }

    #[must_use]
    pub fn fix(mut self, fix: Fix) -> Finding {
        self.fix = Some(fix);
        self
    }
}
