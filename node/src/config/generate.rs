//! Generated configuration files: every key of the role, with its summary. Defaults and examples are commented out.

use super::table::{self, CAPS, DefaultValue, FORWARD, Key, Kind, NODE};
use super::{Forward, NodeRole, caps_values};
use control::Caps;

/// A value of a generated file, as TOML.
pub enum Value {
    /// Set.
    Set(String),
    /// Commented out: a better example than the table's.
    Hint(String),
}

/// The keys before which a blank line is left, in the order of the table.
const GROUPS: [&str; 4] = ["up", "mixing", "allow", "window"];

/// The text of a node's configuration, `NAME.toml`. Keys without a value are commented out.
///
/// `forwards` are an entry's, `caps` a mix's or an exit's.
pub fn generate(role: NodeRole, name: &str, values: &[(&str, Value)], forwards: &[Forward], caps: &Caps) -> String {
    let mut text = format!(
        "# Run with: eddy {role} --config {name}.toml\n\
         # A line that begins with # shows a default or an example. More: eddy config explain KEY\n"
    );
    let mut group = 0;
    for (at, key) in NODE.iter().enumerate().filter(|(_, key)| key.roles.contains(&role)) {
        let starts = |name: &&str| NODE[..=at].iter().any(|key| key.name == *name);
        let now = GROUPS.iter().filter(|name| starts(name)).count();
        if std::mem::replace(&mut group, now) != now {
            text += "\n";
        }
        match &key.kind {
            Kind::Tables(_) => text += &forwards_text(key, forwards),
            Kind::Table(_) => text += &caps_text(key, caps),
            // A generated chain has one class.
            Kind::Classes(_) => {}
            _ => text += &line(key, values.iter().find(|(name, _)| *name == key.name).map(|(_, value)| value)),
        }
    }
    text
}

fn line(key: &Key, value: Option<&Value>) -> String {
    let default = key.default_value().filter(|value| value != "[]");
    let (off, value) = match value {
        Some(Value::Set(value)) => ("", value.clone()),
        Some(Value::Hint(value)) => ("# ", value.clone()),
        None => ("# ", default.unwrap_or_else(|| key.example.to_owned())),
    };
    format!("{off}{} = {value}   # {}\n", key.name, key.summary())
}

fn forwards_text(key: &Key, forwards: &[Forward]) -> String {
    let mut text = format!("\n# {}\n", key.doc);
    if forwards.is_empty() {
        let required = FORWARD.iter().filter(|key| matches!(key.default, DefaultValue::Required));
        text += "# [[forward]]\n";
        text.extend(required.map(|key| format!("# {}\n", key.line())));
        text += "# Or, to another user in a paced class: to = \"meet:@call.secret\" and class = \"voice\"\n";
    }
    for Forward { listen, to, idle, max_age, class } in forwards {
        text += &format!("[[forward]]\nlisten = \"{listen}\"\nto = \"{to}\"\n");
        text.extend(idle.map(|idle| format!("idle_s = {}\n", idle.as_secs())));
        text.extend(max_age.map(|max_age| format!("max_age_ms = {}\n", max_age.as_millis())));
        text.extend(class.as_ref().map(|class| format!("class = \"{class}\"\n")));
    }
    text
}

/// All of them if one differs from its default.
fn caps_text(key: &Key, caps: &Caps) -> String {
    let off = if *caps == Caps::default() { "# " } else { "" };
    let mut text = format!("\n# {}\n{off}[caps]\n", key.doc);
    for (name, value) in caps_values(caps) {
        let summary = table::find(CAPS, name).map_or("", Key::summary);
        text += &format!("{off}{name} = {value}   # {summary}\n");
    }
    text
}
