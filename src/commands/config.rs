//! `eddy config`: explains, checks and shows configurations, from the table of keys.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use eddy_node::ceremony::profile::{ClassChoice, for_hops, profiles};
use eddy_node::config::table::{ALL_FILES, DefaultValue, Key, files};
use eddy_node::config::{
    ConfigError, EntryPart, Forward, Loaded, NodeConfig, Part, Target, effective, effective_toml, nearest,
};
use eddy_node::figures::Figures;
use eddy_node::runtime::running;
use serde_json::json;
use textwrap::fill;
use wire::frames;
use wire::paced::terms::STEP_DEFAULT_MS;
use wire::setup::Suite;

use crate::args::{ConfigAction, ConfigArgs, MEET_HELP};
use crate::tables::wrapping;

/// Columns of a terminal.
const WIDTH: usize = 80;
/// The name of meetings, as a forward has it.
const MEET: &str = "meet";
/// Of the chain for which figures are printed.
const MIXES: usize = 3;

/// Runs the command.
///
/// # Errors
/// A mistake in a file, or an unknown key.
pub fn run(args: &ConfigArgs) -> anyhow::Result<()> {
    let text = match &args.action {
        ConfigAction::Explain { key: Some(key) } => explain(key)?,
        ConfigAction::Explain { key: None } => list(),
        ConfigAction::Check { config, keys } => check(config.path(), keys.as_deref())?,
        ConfigAction::Show { config, json } => show(config.path(), *json)?,
    };
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}

fn check(file: &Path, keys: Option<&Path>) -> anyhow::Result<String> {
    let mut config = NodeConfig::read(file)?;
    if let Some(keys) = keys {
        config.set_keys(keys.to_owned());
    }
    let loaded = Loaded::read_files(config)?;
    let warnings = running::check(&loaded)?;
    super::run::require_listeners(&loaded)?;
    let (file, name) = (file.display(), loaded.name());
    let warnings: String = warnings.iter().map(|warning| format!("{file}: warning: {warning}\n")).collect();
    Ok(format!("{warnings}{file}: ok, {name} of chain {}\n", loaded.chain.short_id()))
}

fn show(file: &Path, json: bool) -> anyhow::Result<String> {
    let (role, settings) = effective(file)?;
    check_meetings(NodeConfig::read(file)?)?;
    if json {
        let value = json!({ "file": file.display().to_string(), "role": role, "settings": settings });
        return Ok(value.to_string() + "\n");
    }
    Ok(effective_toml(&settings))
}

/// Checks that meetings are in classes that serve them, which the chain file knows.
fn check_meetings(config: NodeConfig) -> Result<(), ConfigError> {
    let is_meeting = |forward: &Forward| matches!(forward.to, Target::Meeting(_));
    let Part::Entry(EntryPart { forwards, .. }) = &config.part else { return Ok(()) };
    if !forwards.iter().any(is_meeting) {
        return Ok(());
    }
    let loaded = Loaded::read_files(config)?;
    loaded.check_classes()?;
    loaded.classes().iter().try_for_each(|class| class.meeting_file().map(drop))
}

/// The files of a key: by role for a node's configuration.
fn place(file: &str, key: &Key) -> String {
    if file == ALL_FILES[0].0 { files(key.roles) } else { file.to_owned() }
}

/// The default of a key, or what it means to leave it out.
pub(super) fn default(key: &Key) -> String {
    match key.default {
        DefaultValue::Required => "none, it must be set".to_owned(),
        DefaultValue::Unset(meaning) => format!("not set: {meaning}"),
        DefaultValue::Integer(number) => number.to_string(),
        DefaultValue::Value(text) => text.to_owned(),
    }
}

/// A key, which may be in several tables; a class, as `--class` names it; or `meet`.
fn explain(name: &str) -> Result<String, ConfigError> {
    if name == MEET {
        return Ok(format!(
            "Two users of a paced class who share a secret meet: each calls the other.\n\n{MEET_HELP}\n"
        ));
    }
    if let Ok(class) = name.parse()
        && !name.contains(':')
    {
        return Ok(explain_class(&class));
    }
    let keys = || ALL_FILES.iter().flat_map(|(file, keys)| keys.iter().map(move |key| (*file, key)));
    let texts: Vec<String> = keys().filter(|(_, key)| key.name == name).map(|(file, key)| entry(file, key)).collect();
    if !texts.is_empty() {
        return Ok(texts.join("\n"));
    }
    let names: Vec<&str> = keys().map(|(_, key)| key.name).chain(profiles()).chain([MEET]).collect();
    let hint = nearest(name, &names)
        .map_or("`eddy config explain` lists all keys".to_owned(), |near| format!("did you mean `{near}`?"));
    Err(ConfigError::Arguments(format!("unknown key `{name}`: {hint}")))
}

/// What a class means to its users, in a chain of three mixes.
fn explain_class(choice: &ClassChoice) -> String {
    let about = match choice {
        ClassChoice::Free(class) => format!(
            "Class {class} is a free class: it does not hide a call from somebody who watches both ends of the chain. A \
             datagram of up to {} bytes travels in one cell, of up to {} in eight.",
            frames::max_single_cell_len(class.payload()),
            frames::max_datagram_len(class.payload())
        ),
        ClassChoice::Paced(terms) => {
            let terms = for_hops(terms.clone(), MIXES + 1);
            let figures = Figures::of(&terms, Suite::default(), MIXES + 1).text(&terms);
            return format!(
                "{figures}\n{}\n",
                fill(
                    &format!(
                        "This is {choice}, a profile of a paced class, with {MIXES} mixes and steps of {STEP_DEFAULT_MS} ms; \
                         `eddy inspect chain.toml` prints what a chain has. A chain gets it with `eddy init --class L \
                         --class {choice}`, or with other values `--class {choice}:n_min=4,steps_ms=2`; `eddy config \
                         explain n_min` explains one of them. A forward uses it with `class={choice}` at its end, to a \
                         destination or to another user (`eddy config explain {MEET}`). `[class.{choice}]` in a node's \
                         configuration has its settings there, such as `cores`."
                    ),
                    wrapping(WIDTH)
                )
            );
        }
    };
    fill(&about, wrapping(WIDTH)) + "\n"
}

fn entry(file: &str, key: &Key) -> String {
    let paragraph = wrapping(WIDTH).initial_indent("    ").subsequent_indent("    ");
    let row = |head: &str, text: &str| {
        let head = format!("    {head:<9}");
        fill(text, wrapping(WIDTH).initial_indent(&head).subsequent_indent("             ")) + "\n"
    };
    let mut text = format!("{} in {}\n\n{}\n\n", key.name, place(file, key), fill(key.doc, paragraph));
    text += &row("value", &key.kind.expected());
    text += &row("default", &default(key));
    text + &row("example", &key.line())
}

/// All keys, one line each if it fits.
fn list() -> String {
    let mut text = String::new();
    for (file, keys) in ALL_FILES {
        text += &format!("{file}:\n");
        for key in *keys {
            let head = format!("    {:<21} ", key.name);
            let head = if key.name.len() > 21 { format!("    {}\n{:26}", key.name, "") } else { head };
            let indent = " ".repeat(26);
            let body = fill(key.summary(), wrapping(WIDTH).initial_indent(&indent).subsequent_indent(&indent));
            text += &format!("{head}{}\n", body.trim_start());
        }
        text += "\n";
    }
    let classes = profiles().collect::<Vec<_>>().join(", ");
    let last = format!("eddy config explain KEY explains one, a class ({classes}), or {MEET}.");
    text + &fill(&last, wrapping(WIDTH)) + "\n"
}

/// The table of a node's keys, for docs/OPERATE.md.
pub fn handbook() -> String {
    let mut text = String::from("| key | file | value | default | meaning |\n| --- | --- | --- | --- | --- |\n");
    for (file, keys) in &ALL_FILES[..3] {
        for key in *keys {
            let place = place(file, key).replace("entry.toml or mixN.toml or exit.toml", "all");
            let cells = [format!("`{}`", key.name), place, key.kind.expected(), default(key), key.doc.to_owned()];
            text += &format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|")).join(" | "));
        }
    }
    text
}
