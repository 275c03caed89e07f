//! The log of a node: its level, form and destination.
//!
//! Lines go to standard error. A text line is a sentence that contains its values; `--log-format json` has them as
//! fields, too. If standard error is the journal of systemd, each line begins with its priority (`<3>` to `<7>`,
//! sd-daemon(3)). This needs no second channel to the journal, keeps the order of all lines of the process, and works
//! in any sandbox.

use std::fmt;
use std::io::{IsTerminal, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::str::FromStr;

use clap::{ArgAction, Args, ValueEnum};
use eddy_node::config::{ConfigError, without_secret};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{self as layer, FmtContext, FormattedFields};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Scope};
use tracing_subscriber::util::SubscriberInitExt;

/// The variable that may hold a [`Filter`].
const VARIABLE: &str = "EDDY_LOG";

/// Levels from the least to the most, for `-v` and `-q`.
const LEVELS: [LevelFilter; 6] = [
    LevelFilter::OFF,
    LevelFilter::ERROR,
    LevelFilter::WARN,
    LevelFilter::INFO,
    LevelFilter::DEBUG,
    LevelFilter::TRACE,
];

/// Options of a node's log.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// Log more: -v debug, -vv trace
    ///
    /// Overrides --log.
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Log less: -q warn, -qq error, -qqq off
    ///
    /// Overrides --log.
    #[arg(short, long, action = ArgAction::Count)]
    pub quiet: u8,
    /// Log filter, e.g. warn or info,eddy_node=debug
    ///
    /// A level (off, error, warn, info, debug, trace), or MODULE=LEVEL, comma-separated [env: EDDY_LOG] [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<Filter>,
    /// Log lines as text or json
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT", hide_possible_values = true)]
    pub log_format: LogFormat,
}

/// Form of the log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A sentence
    #[default]
    Text,
    /// A JSON object with its values as fields
    Json,
}

/// Which events are logged: a default level and levels of modules.
#[derive(Clone, Debug)]
pub struct Filter(Targets);

impl From<LevelFilter> for Filter {
    fn from(level: LevelFilter) -> Filter {
        Filter(Targets::new().with_default(level))
    }
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Filter, String> {
        let invalid = || {
            "expected a level (off, error, warn, info, debug, trace) or MODULE=LEVEL, comma-separated, e.g. \
             info,eddy_node=debug"
                .to_owned()
        };
        let mut targets = Targets::new().with_default(Level::INFO);
        for directive in text.split(',').map(str::trim) {
            targets = match directive.split_once('=') {
                None => targets.with_default(level(directive).ok_or_else(invalid)?),
                Some((module, text)) if is_module(module) => {
                    targets.with_target(module, level(text).ok_or_else(invalid)?)
                }
                Some(_) => return Err(invalid()),
            };
        }
        Ok(Filter(targets))
    }
}

fn level(text: &str) -> Option<LevelFilter> {
    let names = ["off", "error", "warn", "info", "debug", "trace"];
    names.iter().any(|name| name.eq_ignore_ascii_case(text)).then(|| text.parse().ok())?
}

fn is_module(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

impl LogArgs {
    /// The filter that these arguments and the environment select; `usual` without either.
    ///
    /// # Errors
    /// `EDDY_LOG` is not a filter.
    fn filter(&self, usual: LevelFilter) -> Result<Filter, ConfigError> {
        let change = isize::from(self.verbose) - isize::from(self.quiet);
        if change != 0 {
            let usual = LEVELS.iter().position(|level| *level == usual).unwrap_or_default();
            let level = usual.saturating_add_signed(change).min(LEVELS.len() - 1);
            return Ok(LEVELS[level].into());
        }
        match (&self.log, std::env::var_os(VARIABLE)) {
            (Some(filter), _) => Ok(filter.clone()),
            (None, Some(text)) if !text.is_empty() => {
                let text = text.to_string_lossy();
                text.parse().map_err(|why| ConfigError::Arguments(format!("invalid {VARIABLE} {text:?}: {why}")))
            }
            _ => Ok(usual.into()),
        }
    }

    /// True if the command line selects log lines.
    pub fn is_set(&self) -> bool {
        self.verbose > 0 || self.log.is_some()
    }

    /// The options with which a child process has the same log; at level `usual` without any.
    ///
    /// # Errors
    /// `EDDY_LOG` is not a filter.
    pub fn for_children(&self, usual: LevelFilter) -> Result<Vec<String>, ConfigError> {
        let Filter(targets) = self.filter(usual)?;
        let format = match self.log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        Ok(vec!["--log".to_owned(), targets.to_string(), "--log-format".to_owned(), format.to_owned()])
    }

    /// Starts the log of this process.
    ///
    /// # Errors
    /// `EDDY_LOG` is not a filter.
    pub fn start(&self) -> Result<(), ConfigError> {
        let Filter(targets) = self.filter(LevelFilter::INFO)?;
        // Modules are shown only if the filter names modules or more than the usual level.
        let with_target = targets.iter().next().is_some() || targets.default_level() > Some(LevelFilter::INFO);
        let layer = layer::layer().with_writer(std::io::stderr);
        let sentence = format::debug_fn(|writer, field, value| match field.name() {
            "message" => write!(writer, "{value:?}"),
            _ => Ok(()),
        });
        let layer = match self.log_format {
            LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).boxed(),
            LogFormat::Text if is_journal() => layer.fmt_fields(sentence).event_format(Journal).boxed(),
            LogFormat::Text => layer.with_ansi(with_colour()).fmt_fields(sentence).with_target(with_target).boxed(),
        };
        // A second log in one process is that of a test.
        let _ = tracing_subscriber::registry().with(layer).with(targets).try_init();
        Ok(())
    }
}

/// True if log lines are coloured: on a terminal, unless NO_COLOR is set (no-color.org).
fn with_colour() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// True if standard error is the journal: JOURNAL_STREAM has its device and inode (systemd.exec(5)). A child whose
/// standard error was redirected inherits the variable, but not the file.
fn is_journal() -> bool {
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else { return false };
    let Some((device, inode)) = stream.split_once(':') else { return false };
    let file = std::io::stderr().as_fd().try_clone_to_owned().map(std::fs::File::from);
    let Ok(ours) = file.and_then(|file| file.metadata()) else { return false };
    device.parse() == Ok(ours.dev()) && inode.parse() == Ok(ours.ino())
}

/// Writes a line to standard error. If nobody reads it any more, the line is lost and nothing else.
pub fn say(line: fmt::Arguments) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Writes the line with which a command ends that failed.
pub fn complain(line: impl fmt::Display) {
    let priority = if is_journal() { "<3>" } else { "" };
    say(format_args!("{priority}eddy: {}", without_secret(&line.to_string())));
}

/// Lines for the journal, which has times and the name of the process already.
struct Journal;

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        for span in context.event_scope().into_iter().flat_map(Scope::from_root) {
            write!(writer, "{}", span.name())?;
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>() {
                write!(writer, "{{{fields}}}")?;
            }
            write!(writer, ": ")?;
        }
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_accepts_levels_and_modules_only() {
        for text in ["info", "OFF", "warn,eddy_node=debug", "eddy_node::runtime=trace", "error, hickory_resolver=debug"]
        {
            assert!(text.parse::<Filter>().is_ok(), "{text}");
        }
        for text in ["", "dbug", "3", "info,", "=debug", "eddy_node=", "eddy_node=loud", "a b=debug", "[span]=info"] {
            assert!(text.parse::<Filter>().is_err(), "{text}");
        }
    }

    #[test]
    fn options_for_children_are_accepted_as_a_filter() {
        let options = |args: LogArgs| args.for_children(LevelFilter::WARN).unwrap();
        let level = |verbose, quiet| options(LogArgs { verbose, quiet, ..LogArgs::default() })[1].clone();
        assert_eq!([level(1, 0), level(9, 0), level(0, 1), level(0, 9)], ["info", "trace", "error", "off"]);
        let log = Some("error,eddy_node=debug".parse().unwrap());
        let Filter(targets) = options(LogArgs { log, ..LogArgs::default() })[1].parse().unwrap();
        assert!(targets.would_enable("eddy_node", &Level::DEBUG) && !targets.would_enable("control", &Level::WARN));
    }

    #[test]
    fn modules_leave_the_default_level_at_info() {
        let Filter(targets) = "eddy_node=debug".parse().unwrap();
        assert!(targets.would_enable("control", &Level::INFO) && !targets.would_enable("control", &Level::DEBUG));
        assert!(targets.would_enable("eddy_node::runtime", &Level::DEBUG));
    }
}
