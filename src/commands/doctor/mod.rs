//! `eddy doctor`: this host with a node's eyes. Changes nothing.
//!
//! `subject` is what a node asks of a host, `facts` (over `host`) what this one is, `checks` hold one against the other
//! and say `finding`s, `print` and `script` tell them.

mod checks;
mod facts;
mod finding;
mod host;
mod print;
mod script;
mod subject;

use std::io::{IsTerminal, Write};

use anyhow::{Context, bail};

use self::facts::Facts;
use self::finding::Severity;
use self::host::Host;
use self::subject::Subject;
use crate::args::DoctorArgs;

/// Looks at this host, and tells.
///
/// # Errors
/// A mistake in the files or the environment; or something is broken, which has been told by then.
pub fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let engine = eddy_node::runtime::running::engine()?;
    let subject = args.config.as_deref().map_or_else(|| Ok(Subject::of_a_chain()), Subject::read)?;
    let facts = Facts::gather(&Host::real(), &subject, engine);
    let findings = checks::all(&subject, &facts);
    let text = if args.json {
        print::json(&subject, &facts, &findings)? + "\n"
    } else if args.fix_script {
        script::write(&subject, &findings)
    } else {
        let width = std::io::stdout().is_terminal().then(terminal_width).flatten();
        print::people(&subject, &facts, &findings, width.unwrap_or(print::WIDTH))
    };
    std::io::stdout().write_all(text.as_bytes()).context("standard output")?;
    let broken: Vec<_> =
        findings.iter().filter(|finding| finding.severity == Severity::Broken).map(|finding| finding.name).collect();
    if !broken.is_empty() {
        bail!("broken: {}: mend that first", broken.join(", "));
    }
    Ok(())
}

/// The terminal's width, where it is one that reads well.
fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    Some(usize::from(size.ws_col).clamp(60, 140))
}
