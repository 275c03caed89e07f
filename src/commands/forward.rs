//! `eddy forward`: adds, removes and lists the forwards of a running entry.

use std::io::Write;
use std::path::Path;

use anyhow::Context;

use crate::args::{ForwardAction, ForwardArgs};
use crate::tables::{lines, table};
use eddy_node::config::{ConfigError, NodeConfig, NodeRole, Part};
use eddy_node::runtime::console::{self, Answer, ForwardInfo, Request};

/// Runs the subcommand.
///
/// # Errors
/// The configuration is not of an entry, no entry answers, or it refuses.
pub fn run(args: &ForwardArgs) -> anyhow::Result<()> {
    match &args.action {
        ForwardAction::Add { config, forwards } => {
            let path = socket(config)?;
            for (added, forward) in forwards.iter().enumerate() {
                let answer = ask(&path, config, &Request::Add(forward.into()));
                for info in answer.map_err(|error| after_others(error, added))? {
                    say(&format!("{} -> {}", info.listen, info.to))?;
                }
            }
        }
        ForwardAction::Remove { config, listen } => {
            let path = socket(config)?;
            for listen in listen {
                for info in ask(&path, config, &Request::Remove { listen: *listen })? {
                    say(&format!("removed {} -> {} and closed its flows", info.listen, info.to))?;
                }
            }
        }
        ForwardAction::List { config, json } => {
            let forwards = ask(&socket(config)?, config, &Request::List)?;
            if *json {
                say(&serde_json::to_string(&forwards)?)?;
            } else if forwards.is_empty() {
                say("no forwards")?;
            } else {
                let has_classes = forwards.iter().any(|forward| forward.class.is_some());
                let header = ["listen", "to", "idle timeout", "max age", "class"];
                let mut rows = table(if has_classes { &header } else { &header[..4] });
                for ForwardInfo { listen, to, idle_s, max_age_ms, class } in forwards {
                    let idle = idle_s.map_or_else(String::new, |seconds| format!("{seconds} s"));
                    let max_age = max_age_ms.map_or_else(String::new, |ms| format!("{ms} ms"));
                    rows.add_row([listen.to_string(), to, idle, max_age].into_iter().chain(class));
                }
                say(lines(&rows).trim_end())?;
            }
        }
    }
    Ok(())
}

/// The error of a forward after others that were added.
fn after_others(error: anyhow::Error, added: usize) -> anyhow::Error {
    let before = match added {
        0 => return error,
        1 => "the forward before it was added".to_owned(),
        more => format!("the {more} forwards before it were added"),
    };
    let said = format!("{error:#} ({before})");
    if error.is::<ConfigError>() { ConfigError::Arguments(said).into() } else { anyhow::Error::msg(said) }
}

fn say(line: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").context("cannot write to standard output")
}

/// The command socket of the entry with this configuration.
fn socket(config: &Path) -> Result<std::path::PathBuf, ConfigError> {
    let read = NodeConfig::read(config)?;
    let (file, role) = (config.display(), read.role());
    match read.part {
        Part::Entry(part) => part.commands.ok_or_else(|| {
            ConfigError::Arguments(format!(
                "{file} has no command socket: add the line `commands = \"entry.cmd\"` and restart the entry"
            ))
        }),
        Part::Mix { .. } | Part::Exit(_) => Err(ConfigError::Arguments(format!(
            "{file} configures {}: only an entry has forwards, pass its file with --config",
            role.with_article()
        ))),
    }
}

fn ask(path: &Path, config: &Path, request: &Request) -> anyhow::Result<Vec<ForwardInfo>> {
    let start = format!("`eddy entry --config {}`", config.display());
    let unanswered = |why| super::status::unanswered(path, NodeRole::Entry, &start, why);
    let answer = console::ask(path, request).map_err(unanswered)?;
    match answer {
        Answer::Forwards(forwards) => Ok(forwards),
        Answer::Refused(why) => Err(ConfigError::Arguments(why).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_after_added_forwards_counts_them() {
        let error = || ConfigError::Arguments("no port is left".to_owned()).into();
        assert_eq!(after_others(error(), 0).to_string(), "no port is left");
        assert_eq!(after_others(error(), 1).to_string(), "no port is left (the forward before it was added)");
        let third = after_others(error(), 2);
        assert!(third.is::<ConfigError>(), "exit code 2");
        assert_eq!(third.to_string(), "no port is left (the 2 forwards before it were added)");
    }
}
