//! The medians of all rounds, as Markdown tables.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::format::{duration, rounded};
use crate::machine::Machine;

/// The outputs of a command, one for each round, by the name of the step.
type Rounds<'a> = BTreeMap<&'a str, Vec<Value>>;

/// A figure of every round, sorted.
struct Figures(Vec<f64>);

impl Figures {
    /// `of` finds the figure in the value of a round.
    fn of(rounds: &[Value], of: impl Fn(&Value) -> Option<f64>) -> Figures {
        let mut all: Vec<f64> = rounds.iter().filter_map(of).collect();
        all.sort_by(f64::total_cmp);
        Figures(all)
    }

    /// The median, with the range if this differs from it.
    fn text(&self, format: impl Fn(f64) -> String) -> String {
        let (Some(first), Some(last)) = (self.0.first(), self.0.last()) else { return "-".into() };
        let median = (self.0[(self.0.len() - 1) / 2] + self.0[self.0.len() / 2]) / 2.0;
        let [median, first, last] = [median, *first, *last].map(format);
        if first == last { median } else { format!("{median} ({first} to {last})") }
    }
}

fn ratio(value: f64) -> String {
    format!("{value:.2}")
}

/// The rows of a table, by the first round: each with a function that finds the row with the same `keys` in a round's
/// list.
fn rows<'a>(
    rounds: &'a [Value],
    list: &'a str,
    keys: &'a [&str],
) -> Vec<(Value, impl Fn(&Value) -> Option<Value> + 'a)> {
    let first = rounds.first().and_then(|round| round[list].as_array()).cloned().unwrap_or_default();
    first
        .into_iter()
        .map(|row| {
            let wanted: Vec<Value> = keys.iter().map(|key| row[*key].clone()).collect();
            let find = move |round: &Value| {
                let same = |row: &&Value| keys.iter().zip(&wanted).all(|(key, wanted)| row[*key] == *wanted);
                round[list].as_array()?.iter().find(same).cloned()
            };
            (row, find)
        })
        .collect()
}

/// All tables.
pub(super) fn text(quick: bool, found: &Rounds<'_>) -> String {
    let of = |name: &str| found.get(name).map_or(&[][..], Vec::as_slice);
    let Machine { cpu, cores, kernel, load, .. } = Machine::read();
    let (rounds, quick) = (of("hop").len(), if quick { " --quick" } else { "" });
    let intro = format!(
        "Measured by `eddy-bench performance{quick}` in {rounds} rounds on {cpu}, {cores} cores, Linux {kernel}, load \
         average {load} at the end. Medians of the rounds, with the range in parentheses. Generator and nodes share the \
         cores.\n"
    );
    let latency = of("latency");
    let parts = [
        intro,
        hop_table(of("hop")),
        path_table(of("path")),
        capacity_lines(of("capacity")),
        latency_table(latency),
        application_table(of("applications")),
        ceiling_line(latency),
    ];
    parts.join("\n")
}

fn hop_table(rounds: &[Value]) -> String {
    let mut text = String::from(
        "| one mix | ns/cell | x relay with GSO and GRO | x relay with `recvmmsg`, `sendmmsg` |\n| --- | --- | --- | --- |\n",
    );
    for (row, find) in rows(rounds, "rows", &["direction", "entries", "channels", "pool"]) {
        let figure = |key: &'static str| Figures::of(rounds, |round| find(round)?[key].as_f64());
        let entries = row["entries"].as_u64().filter(|entries| *entries > 0);
        let entries = entries.map_or(String::new(), |entries| format!(", {entries} entries without GSO"));
        text += &format!(
            "| {}, {} channels, pool {}{entries} | {} | {} | {} |\n",
            row["direction"].as_str().unwrap_or_default(),
            rounded(row["channels"].as_f64().unwrap_or(0.0)),
            rounded(row["pool"].as_f64().unwrap_or(0.0)),
            figure("cell_ns").text(rounded),
            figure("ratio_gso").text(ratio),
            figure("ratio_mmsg").text(ratio),
        );
    }
    text
}

fn path_table(rounds: &[Value]) -> String {
    let mut text = String::from("| a whole chain | datagrams/s | Gbit/s |\n| --- | --- | --- |\n");
    for (row, find) in rows(rounds, "rows", &["direction", "payload_len"]) {
        let figure = |key: &'static str| Figures::of(rounds, |round| find(round)?[key].as_f64());
        let directions = if row["direction"] == "both" { "both directions together" } else { "one direction" };
        text += &format!(
            "| {} bytes, {directions} | {} | {} |\n",
            row["payload_len"],
            figure("delivered_per_s").text(rounded),
            figure("gbit_s").text(ratio)
        );
    }
    text
}

fn capacity_lines(rounds: &[Value]) -> String {
    let figure = |key: &'static str| Figures::of(rounds, |round| round[key].as_f64());
    let limits: BTreeSet<&str> =
        rounds.iter().filter_map(|round| round["limited_by"].as_str()?.split(':').next()).collect();
    let mut text = format!(
        "Without any loss (`eddy-bench capacity`): {} datagrams/s of 1,000 bytes, p99 {}. Limited by: {}.\n",
        figure("lossless_per_s").text(rounded),
        figure("p99_us").text(duration),
        limits.into_iter().collect::<Vec<_>>().join(", ")
    );
    for (row, find) in rows(rounds, "at", &["part"]) {
        let at = |key: &'static str| Figures::of(rounds, |round| find(round)?[key].as_f64()).text(duration);
        text += &format!(
            "At {:.0} % of that rate: p50 {}, p99 {}, p99.9 {}.\n",
            100.0 * row["part"].as_f64().unwrap_or(0.0),
            at("p50_us"),
            at("p99_us"),
            at("p999_us")
        );
    }
    text
}

fn latency_table(rounds: &[Value]) -> String {
    let mut text = String::from(
        "| 10,000/s of 200 bytes without waiting (`threshold:n=1`) | p50 | p99 | p99.9 | max |\n\
         | --- | --- | --- | --- | --- |\n",
    );
    for (row, find) in rows(rounds, "runs", &["name"]) {
        let at = |key: &'static str| {
            Figures::of(rounds, |round| find(round)?["streams"][0]["latency"][key].as_f64()).text(duration)
        };
        let name = row["name"].as_str().unwrap_or_default();
        text += &format!("| {name} | {} | {} | {} | {} |\n", at("p50"), at("p99"), at("p999"), at("max"));
    }
    text
}

fn application_table(rounds: &[Value]) -> String {
    let mut text = String::from(
        "| 100 calls, 20 players, 5 video streams | lost | reordered | p50 | p99 | jitter p50 | MOS (worst) |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for (run, find) in rows(rounds, "runs", &["name"]) {
        let name = run["name"].as_str().unwrap_or_default();
        for (i, stream) in run["streams"].as_array().into_iter().flatten().enumerate() {
            let figure = |path: &str| {
                let path = format!("/streams/{i}{path}");
                Figures::of(rounds, |round| find(round)?.pointer(&path)?.as_f64())
            };
            let mos = figure("/mos/mean");
            let score = if mos.0.is_empty() {
                "-".to_owned()
            } else {
                format!("{} ({})", mos.text(ratio), figure("/mos/worst").text(ratio))
            };
            text += &format!(
                "| {name}: {} {} | {} | {} | {} | {} | {} | {score} |\n",
                stream["profile"].as_str().unwrap_or_default(),
                stream["direction"].as_str().unwrap_or_default(),
                figure("/lost").text(rounded),
                figure("/reordered").text(rounded),
                figure("/latency/p50").text(duration),
                figure("/latency/p99").text(duration),
                figure("/jitter/p50").text(duration),
            );
        }
    }
    text
}

fn ceiling_line(rounds: &[Value]) -> String {
    let ceiling = Figures::of(rounds, |round| round.pointer("/runs/0/calibration/ceiling_per_s")?.as_f64());
    format!("The generator alone sends and counts {} datagrams/s of 200 bytes.\n", ceiling.text(rounded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_medians_with_their_range() {
        let round = |ns: f64| serde_json::json!({"rows": [{"a": 2, "ns": 9.0}, {"a": 1, "ns": ns}]});
        let rounds = [round(1200.0), round(1000.0), round(1100.0)];
        let rows = rows(&rounds, "rows", &["a"]);
        let figure = |find: &dyn Fn(&Value) -> Option<Value>| Figures::of(&rounds, |round| find(round)?["ns"].as_f64());
        let texts: Vec<String> = rows.iter().map(|(_, find)| figure(find).text(rounded)).collect();
        assert_eq!(texts, ["9", "1,100 (1,000 to 1,200)"]);
        assert_eq!(Figures(Vec::new()).text(rounded), "-");
    }
}
