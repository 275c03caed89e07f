//! What a check says: one thing about this host, what it costs, and what mends it.

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing need be done.
    Note,
    /// The node runs, slower or with losses.
    Costs,
    /// The node would not start, or not work.
    Broken,
}

impl Severity {
    /// All, the worst first.
    pub const WORST_FIRST: [Severity; 4] = [Severity::Broken, Severity::Costs, Severity::Note, Severity::Ok];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Note => "note",
            Severity::Costs => "costs",
            Severity::Broken => "broken",
        }
    }
}

/// What mends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fix {
    /// A command that may be run as it stands.
    Run {
        /// A line for a shell; `sudo` where it needs root.
        command: String,
        /// What takes it back.
        undo: String,
        /// A line for a file in /etc/sysctl.d that keeps it over a restart of the host.
        sysctl: Option<String>,
    },
    /// What only a person can decide or do.
    Do {
        /// What.
        what: String,
        /// What takes it back.
        undo: Option<String>,
    },
}

impl Fix {
    /// A kernel setting, which was `was`.
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

    /// Words, which have no undo.
    pub fn words(what: impl Into<String>) -> Fix {
        Fix::Do { what: what.into(), undo: None }
    }
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The check's name, for scripts.
    pub name: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it found.
    pub found: String,
    /// What that costs: measured in this repository's documents, or said not to be.
    pub costs: Option<String>,
    /// What mends it.
    pub fix: Option<Fix>,
}

impl Finding {
    fn new(name: &'static str, severity: Severity, found: impl Into<String>) -> Finding {
        Finding { name, severity, found: found.into(), costs: None, fix: None }
    }

    /// As it should be.
    pub fn ok(name: &'static str, found: impl Into<String>) -> Finding {
        Finding::new(name, Severity::Ok, found)
    }

    /// Worth knowing.
    pub fn note(name: &'static str, found: impl Into<String>) -> Finding {
        Finding::new(name, Severity::Note, found)
    }

    /// The node runs, slower or with losses.
    pub fn costs(name: &'static str, found: impl Into<String>, costs: impl Into<String>) -> Finding {
        Finding::new(name, Severity::Costs, found).because(costs)
    }

    /// The node would not start, or not work.
    pub fn broken(name: &'static str, found: impl Into<String>, costs: impl Into<String>) -> Finding {
        Finding::new(name, Severity::Broken, found).because(costs)
    }

    /// With what it costs.
    #[must_use]
    pub fn because(mut self, costs: impl Into<String>) -> Finding {
        self.costs = Some(costs.into());
        self
    }

    /// With what mends it.
    #[must_use]
    pub fn mended_by(mut self, fix: Fix) -> Finding {
        self.fix = Some(fix);
        self
    }
}
