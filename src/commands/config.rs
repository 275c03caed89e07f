//! `eddy config`: explains, checks and shows configurations, from the table of keys.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use eddy_node::config::table::{ALL_FILES, DefaultValue, Key, files};
use eddy_node::config::{ConfigError, Loaded, NodeConfig, effective, effective_toml, nearest, node_name};
use eddy_node::runtime::running;
use serde_json::json;
use textwrap::fill;

use crate::args::{ConfigAction, ConfigArgs};
use crate::tables::wrapping;

/// Columns of a terminal.
const WIDTH: usize = 80;

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
        config.keys = keys.to_owned();
    }
    let loaded = Loaded::read_files(config)?;
    let warnings = running::check(&loaded)?;
    super::run::require_listeners(&loaded)?;
    let (config, chain) = (&loaded.config, &loaded.chain);
    let (file, name) = (file.display(), node_name(config.role(), config.position));
    let warnings: String = warnings.iter().map(|warning| format!("{file}: warning: {warning}\n")).collect();
    Ok(format!("{warnings}{file}: ok, {name} of chain {}\n", chain.short_id()))
}

fn show(file: &Path, json: bool) -> anyhow::Result<String> {
    let (role, settings) = effective(file)?;
    if json {
        let value = json!({ "file": file.display().to_string(), "role": role, "settings": settings });
        return Ok(value.to_string() + "\n");
    }
    Ok(effective_toml(&settings))
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

/// One key. A name may be in several tables.
fn explain(name: &str) -> Result<String, ConfigError> {
    let keys = || ALL_FILES.iter().flat_map(|(file, keys)| keys.iter().map(move |key| (*file, key)));
    let texts: Vec<String> = keys().filter(|(_, key)| key.name == name).map(|(file, key)| entry(file, key)).collect();
    if !texts.is_empty() {
        return Ok(texts.join("\n"));
    }
    let names: Vec<&str> = keys().map(|(_, key)| key.name).collect();
    let hint = nearest(name, &names)
        .map_or("`eddy config explain` lists all keys".to_owned(), |near| format!("did you mean `{near}`?"));
    Err(ConfigError::Arguments(format!("unknown key `{name}`: {hint}")))
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
    text + "eddy config explain KEY explains one.\n"
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
