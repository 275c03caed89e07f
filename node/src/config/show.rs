//! Effective configurations: the file's values, and the defaults of all other keys.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::source::{Source, Table};
use super::table::{DefaultValue, Key, Kind, NODE};
use super::{ConfigError, NodeConfig, NodeRole};

/// The value of one key in an effective configuration.
#[derive(Debug, Serialize)]
pub struct Setting {
    /// The key.
    pub key: &'static str,
    /// Its value; null if it is not set and has no default.
    pub value: Value,
    /// True if the file sets it.
    pub set: bool,
}

/// The configuration that a node started with `path` would run with, in the order of the table of keys.
///
/// # Errors
/// The first mistake in the file.
pub fn effective(path: &Path) -> Result<(NodeRole, Vec<Setting>), ConfigError> {
    let source = Source::read(path)?;
    let role = NodeConfig::read(path)?.role();
    Ok((role, settings(&source.table(NODE)?, NODE, role)?))
}

fn settings(table: &Table<'_>, keys: &'static [Key], role: NodeRole) -> Result<Vec<Setting>, ConfigError> {
    let setting = |key: &'static Key| {
        let set = table.is_set(key.name);
        let value = match &key.kind {
            Kind::Table(keys) => {
                let inner = settings(&table.sub(key.name)?, keys, role)?;
                Value::Object(inner.into_iter().map(|one| (one.key.to_owned(), one.value)).collect())
            }
            Kind::Tables(_) => table.json(key.name).unwrap_or_else(|| Value::Array(Vec::new())),
            Kind::Classes(_) => table.json(key.name).unwrap_or_else(|| Value::Object(Default::default())),
            // Defaults are numbers, switches, words and empty lists, which JSON writes as TOML does.
            _ => table.json(key.name).unwrap_or_else(|| {
                key.default_value().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
            }),
        };
        Ok(Setting { key: key.name, value, set })
    };
    keys.iter().filter(|key| key.roles.contains(&role)).map(setting).collect()
}

/// The same as TOML that a node can be started with. Lines that the file does not have are marked.
pub fn effective_toml(settings: &[Setting]) -> String {
    let (mut lines, mut tables) = (String::new(), String::new());
    for Setting { key, value, set } in settings {
        let mark = if *set { "" } else { "   # default" };
        match value {
            Value::Null => lines += &format!("# {key} is not set: {}\n", unset(key)),
            Value::Object(classes) if classes.values().all(Value::is_object) => {
                for (class, inner) in classes {
                    tables += &format!("\n[{key}.{class}]\n");
                    let pairs = inner.as_object().into_iter().flatten();
                    tables.extend(pairs.map(|(key, value)| format!("{key} = {value}\n")));
                }
            }
            Value::Object(inner) => {
                tables += &format!("\n[{key}]{mark}\n");
                tables.extend(inner.iter().map(|(key, value)| format!("{key} = {value}\n")));
            }
            Value::Array(all) if all.first().is_some_and(Value::is_object) => {
                for one in all {
                    tables += &format!("\n[[{key}]]\n");
                    let pairs = one.as_object().into_iter().flatten();
                    tables.extend(pairs.map(|(key, value)| format!("{key} = {value}\n")));
                }
            }
            Value::Array(all) if all.is_empty() && *key == "forward" => {}
            value => lines += &format!("{key} = {value}{mark}\n"),
        }
    }
    lines + &tables
}

fn unset(name: &str) -> &'static str {
    match super::table::find(NODE, name).map(|key| &key.default) {
        Some(DefaultValue::Unset(meaning)) => meaning,
        _ => "",
    }
}
