//! `eddy doctor`: checks this host for problems and prints fixes. Changes nothing.
//!
//! `subject` has the requirements of a node, `facts` (over `host`) the state of this host. `checks` compare the two
//! and return `finding`s; `print` and `script` write them out.

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

/// Checks this host and prints the findings.
///
/// # Errors
/// A mistake in the files or the environment; or a finding is an error.
pub fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let engine = eddy_node::runtime::running::engine()?;
    let subject = match (&args.config, &args.chain) {
        (Some(config), _) => Subject::read(config)?,
        (None, Some(chain)) => Subject::of_entry(chain)?,
        (None, None) => Subject::of_a_chain(),
    };
    let facts = Facts::gather(&Host::real(), &subject, engine);
    let findings = checks::all(&subject, &facts);
    let text = if args.json {
        print::json(&subject, &facts, &findings)? + "\n"
    } else if args.fix_script {
        script::write(&subject, &findings)
    } else {
        let width = std::io::stdout().is_terminal().then(terminal_width).flatten();
        print::people(&subject, &facts, &findings, args.verbose, width.unwrap_or(print::WIDTH))
    };
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")?;
    let errors: Vec<_> =
        findings.iter().filter(|finding| finding.severity == Severity::Error).map(|finding| finding.name).collect();
    if !errors.is_empty() {
        bail!("this host has errors: {}: fix these first", errors.join(", "));
    }
    Ok(())
}

/// The terminal's width, within what reads well.
fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    Some(usize::from(size.ws_col).clamp(60, 110))
}
