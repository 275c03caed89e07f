//! `eddy-bench performance`: what a README tells of a machine, from one command.
//!
//! Runs the other commands of this program, each as a process of its own and in turn, some rounds of all of them, and
//! writes medians with the least and the most as Markdown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::load::tell::time;
use crate::machine::Machine;
use crate::signals;

/// What `performance` is told.
#[derive(Args, Clone, Debug)]
pub struct PerformanceArgs {
    /// Rounds of everything; 0 tells what --out has from earlier runs
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=20))]
    pub rounds: u32,
    /// Shorter runs of fewer rows: a look, not a measurement
    #[arg(long)]
    pub quick: bool,
    /// A folder for what each command printed, as JSON; rounds that earlier runs have left there count with these,
    /// for hours differ more than rounds do
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
}

/// A command of ours: its name here, and its arguments.
type Step = (&'static str, Vec<&'static str>);

fn steps(quick: bool) -> Vec<Step> {
    let of = |all: &'static str, short: &'static str| -> Vec<&'static str> {
        if quick { short } else { all }.split(' ').collect()
    };
    vec![
        ("hop", of("hop --json --rows all", "hop --json --rows quick --rounds 2")),
        ("path", of("path --json", "path --json --payload-len 1000 --try-ms 300")),
        ("capacity", of("capacity --json", "capacity --json --try-seconds 0.3 --within 20")),
        (
            "latency",
            of(
                "load --json --mixing threshold:n=1,n_min=1 --rate 10000 --payload-len 200 --seconds 10",
                "load --json --mixing threshold:n=1,n_min=1 --rate 10000 --payload-len 200 --seconds 2",
            ),
        ),
        (
            "applications",
            of(
                "load --json --profile voip:100 --profile game:20 --profile video:5 --seconds 60",
                "load --json --profile voip:100 --profile game:20 --profile video:5 --seconds 3",
            ),
        ),
    ]
}

/// Runs the command.
///
/// # Errors
/// One of the commands fails, or is interrupted.
pub fn run(args: &PerformanceArgs) -> anyhow::Result<()> {
    let interrupted = signals::interrupted()?;
    let steps = steps(args.quick);
    let bar = ProgressBar::new(u64::from(args.rounds) * steps.len() as u64)
        .with_style(ProgressStyle::with_template("{bar:20} {pos}/{len} {elapsed} {msg}")?);
    let mut found = match &args.out {
        Some(folder) => kept(folder, &steps)?,
        None => BTreeMap::new(),
    };
    let before = found.values().next().map_or(0, Vec::len) as u32;
    ensure!(args.rounds + before > 0, "no rounds: give --rounds, or an --out that has some");
    for round in before..before + args.rounds {
        for (name, arguments) in &steps {
            bar.set_message(arguments.join(" "));
            bar.tick();
            let value = measure(arguments, &interrupted)?;
            if let Some(folder) = &args.out {
                keep(folder, &format!("{name}-{}.json", round + 1), &value)?;
            }
            found.entry(name).or_default().push(value);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    println!("{}", markdown(args.quick, &found));
    Ok(())
}

/// The rounds of all steps that earlier runs have left in a folder.
fn kept(folder: &Path, steps: &[Step]) -> anyhow::Result<BTreeMap<&'static str, Vec<Value>>> {
    let mut found = BTreeMap::<&str, Vec<Value>>::new();
    for round in 1.. {
        let all: Option<Vec<Value>> = steps
            .iter()
            .map(|(name, _)| read(folder, name, round).transpose())
            .collect::<Option<anyhow::Result<_>>>()
            .transpose()?;
        let Some(all) = all else { break };
        steps.iter().zip(all).for_each(|((name, _), value)| found.entry(name).or_default().push(value));
    }
    Ok(found)
}

/// What [`keep`] has written of one step in one round, if it has.
fn read(folder: &Path, name: &str, round: u32) -> anyhow::Result<Option<Value>> {
    let file = |path: &Path| -> anyhow::Result<Option<Value>> {
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Some(serde_json::from_str(&text).with_context(|| format!("{} is no result", path.display()))?))
    };
    if let Some(value) = file(&folder.join(format!("{name}-{round}.json")))? {
        return Ok(Some(value));
    }
    let runs = ["direct", "chain"].map(|run| file(&folder.join(format!("{name}-{round}-{run}.json"))));
    let runs: Vec<Value> = runs.into_iter().filter_map(Result::transpose).collect::<anyhow::Result<_>>()?;
    Ok((!runs.is_empty()).then(|| serde_json::json!({ "runs": runs })))
}

fn keep(folder: &Path, name: &str, value: &Value) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let path = folder.join(name);
    // A load's runs are files for `report`, one each.
    for run in value["runs"].as_array().into_iter().flatten() {
        let stem = name.trim_end_matches(".json");
        let path = folder.join(format!("{stem}-{}.json", run["name"].as_str().unwrap_or("run")));
        std::fs::write(&path, format!("{run}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if value["runs"].is_null() {
        std::fs::write(&path, format!("{value}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// One command's last line.
fn measure(arguments: &[&str], interrupted: &AtomicBool) -> anyhow::Result<Value> {
    let program = std::env::current_exe().context("the path of this program")?;
    let command = || format!("eddy-bench {}", arguments.join(" "));
    let output = Command::new(program).args(arguments).stderr(Stdio::piped()).output().with_context(command)?;
    if interrupted.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{} failed: {}",
        command(),
        said.trim().lines().last().unwrap_or("without a word")
    );
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().unwrap_or_default()).with_context(command)
}

/// A figure of every round.
struct Figures(Vec<f64>);

impl Figures {
    /// Found in each round's value by `of`.
    fn of(rounds: &[Value], of: impl Fn(&Value) -> Option<f64>) -> Figures {
        let mut all: Vec<f64> = rounds.iter().filter_map(of).collect();
        all.sort_by(f64::total_cmp);
        Figures(all)
    }

    /// The median, with the least and the most if they are told otherwise than it.
    fn told(&self, tell: impl Fn(f64) -> String) -> String {
        let (Some(first), Some(last)) = (self.0.first(), self.0.last()) else { return "-".into() };
        let middle = (self.0[(self.0.len() - 1) / 2] + self.0[self.0.len() / 2]) / 2.0;
        let [median, first, last] = [middle, *first, *last].map(tell);
        if first == last { median } else { format!("{median} ({first} to {last})") }
    }
}

fn whole(value: f64) -> String {
    let digits = format!("{value:.0}");
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join(",")
}

fn ratio(value: f64) -> String {
    format!("{value:.2}")
}

/// Rows of a table: in each round, the element of `list` that has the same values of `keys` as the first round's.
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

fn markdown(quick: bool, found: &BTreeMap<&str, Vec<Value>>) -> String {
    let none = Vec::new();
    let of = |name: &str| found.get(name).unwrap_or(&none).as_slice();
    let machine = Machine::read();
    let (rounds, quick) = (of("hop").len(), if quick { " --quick" } else { "" });
    let mut text = format!(
        "Made by `eddy-bench performance{quick}`, {rounds} rounds, on {}, {} cores, Linux {}, load average {} at its end. Medians of \
         the rounds, and the least and the most of them; generator and nodes share the cores.\n",
        machine.cpu, machine.cores, machine.kernel, machine.load
    );
    text += "\n| one mix hop | ns a cell | of a relay with GRO and GSO | of a relay with `recvmmsg`/`sendmmsg` |\n| --- | --- | --- | --- |\n";
    for (row, find) in rows(of("hop"), "rows", &["direction", "entries", "channels", "pool"]) {
        let figure = |key: &'static str| Figures::of(of("hop"), |round| find(round)?[key].as_f64());
        let entries = row["entries"].as_u64().filter(|entries| *entries > 0);
        let entries = entries.map_or(String::new(), |entries| format!(", {entries} entries without bursts"));
        text += &format!(
            "| {}, {} channels, pool {}{entries} | {} | {} | {} |\n",
            row["direction"].as_str().unwrap_or_default(),
            whole(row["channels"].as_f64().unwrap_or(0.0)),
            whole(row["pool"].as_f64().unwrap_or(0.0)),
            figure("cell_ns").told(whole),
            figure("ratio_gro_gso").told(ratio),
            figure("ratio_mmsg").told(ratio),
        );
    }
    text += "\n| a whole chain carries | datagrams a second | Gbit/s |\n| --- | --- | --- |\n";
    for (row, find) in rows(of("path"), "rows", &["direction", "payload_len"]) {
        let figure = |key: &'static str| Figures::of(of("path"), |round| find(round)?[key].as_f64());
        let ways = if row["direction"] == "both" { "both ways together" } else { "one way" };
        text += &format!(
            "| {} bytes, {ways} | {} | {} |\n",
            row["payload_len"],
            figure("delivered_per_s").told(whole),
            figure("gbit_s").told(ratio)
        );
    }
    let capacity = of("capacity");
    let figure = |key: &'static str| Figures::of(capacity, |round| round[key].as_f64());
    text += &format!(
        "\nWithout any loss (`eddy-bench capacity`): {} datagrams a second of 1,000 bytes, p99 {} there.",
        figure("lossless_per_s").told(whole),
        figure("p99_us").told(time)
    );
    let limits: std::collections::BTreeSet<&str> =
        capacity.iter().filter_map(|round| round["limited_by"].as_str()?.split(':').next()).collect();
    text += &format!(" Limited by: {}.\n", limits.into_iter().collect::<Vec<_>>().join(", "));
    for (row, find) in rows(capacity, "at", &["part"]) {
        let at = |key: &'static str| Figures::of(capacity, |round| find(round)?[key].as_f64()).told(time);
        text += &format!(
            "At {:.0} % of that: p50 {}, p99 {}, p99.9 {}.\n",
            100.0 * row["part"].as_f64().unwrap_or(0.0),
            at("p50_us"),
            at("p99_us"),
            at("p999_us")
        );
    }
    text += "\n| 10,000/s of 200 bytes, no waiting (`threshold:n=1`) | p50 | p99 | p99.9 | max |\n| --- | --- | --- | --- | --- |\n";
    for (row, find) in rows(of("latency"), "runs", &["name"]) {
        let at = |key: &'static str| {
            Figures::of(of("latency"), |round| find(round)?["streams"][0]["latency"][key].as_f64()).told(time)
        };
        let name = row["name"].as_str().unwrap_or_default();
        text += &format!("| {name} | {} | {} | {} | {} |\n", at("p50"), at("p99"), at("p999"), at("max"));
    }
    text += "\n| 100 calls, 20 players, 5 video streams | lost | out of order | p50 | p99 | jitter p50 | MOS (worst) |\n\
             | --- | --- | --- | --- | --- | --- | --- |\n";
    for (run, find) in rows(of("applications"), "runs", &["name"]) {
        let name = run["name"].as_str().unwrap_or_default();
        for (i, stream) in run["streams"].as_array().into_iter().flatten().enumerate() {
            let part = |path: &str| {
                let path = format!("/streams/{i}{path}");
                Figures::of(of("applications"), |round| find(round)?.pointer(&path)?.as_f64())
            };
            let mos = part("/mos/mean");
            let score = if mos.0.is_empty() {
                "-".to_owned()
            } else {
                format!("{} ({})", mos.told(ratio), part("/mos/worst").told(ratio))
            };
            text += &format!(
                "| {name}: {} {} | {} | {} | {} | {} | {} | {score} |\n",
                stream["profile"].as_str().unwrap_or_default(),
                stream["direction"].as_str().unwrap_or_default(),
                part("/lost").told(whole),
                part("/reordered").told(whole),
                part("/latency/p50").told(time),
                part("/latency/p99").told(time),
                part("/jitter/p50").told(time),
            );
        }
    }
    let floor = Figures::of(of("latency"), |round| round.pointer("/runs/0/floor/ceiling_per_s")?.as_f64());
    text + &format!("\nThe generator alone sends and counts {} datagrams of 200 bytes a second.\n", floor.told(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_of_earlier_runs_are_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let steps: [Step; 2] = [("hop", Vec::new()), ("latency", Vec::new())];
        assert!(kept(&dir.path().join("none"), &steps).unwrap().is_empty());
        let hop = |round: u32| serde_json::json!({ "rows": [round] });
        let run = |name: &str, round: u32| serde_json::json!({ "name": name, "round": round });
        let latency = |round| serde_json::json!({ "runs": [run("direct", round), run("chain", round)] });
        for round in 1..3 {
            keep(dir.path(), &format!("hop-{round}.json"), &hop(round)).unwrap();
            keep(dir.path(), &format!("latency-{round}.json"), &latency(round)).unwrap();
        }
        // A third that was interrupted.
        keep(dir.path(), "hop-3.json", &hop(3)).unwrap();
        let found = kept(dir.path(), &steps).unwrap();
        assert_eq!((&found["hop"][..], &found["latency"][..]), (&[hop(1), hop(2)][..], &[latency(1), latency(2)][..]));
        std::fs::write(dir.path().join("hop-1.json"), "{").unwrap();
        assert!(kept(dir.path(), &steps).unwrap_err().to_string().contains("hop-1.json is no result"));
    }

    #[test]
    fn figures_are_told_with_their_spread_and_rows_are_found_again() {
        let round = |ns: f64| serde_json::json!({"rows": [{"a": 2, "ns": 9.0}, {"a": 1, "ns": ns}]});
        let rounds = [round(1200.0), round(1000.0), round(1100.0)];
        let rows = rows(&rounds, "rows", &["a"]);
        let told: Vec<String> = rows
            .iter()
            .map(|(_, find)| Figures::of(&rounds, |round| find(round)?["ns"].as_f64()).told(whole))
            .collect();
        assert_eq!(told, ["9", "1,100 (1,000 to 1,200)"]);
        assert_eq!(Figures(Vec::new()).told(whole), "-");
        assert_eq!((whole(999.0), whole(1_234_567.0)), ("999".into(), "1,234,567".into()));
    }
}
