//! `eddy-bench performance`: the figures of a machine, as Markdown for a document.
//!
//! Runs the other commands of this program one after the other, each as a process of its own, for several rounds.
//! `markdown` prints the medians with the least and greatest values.

mod markdown;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::signals;

#[derive(Args, Clone, Debug)]
pub struct PerformanceArgs {
    /// Rounds of all measurements; 0 prints what --out has from earlier runs
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=20))]
    rounds: u32,
    /// Shorter runs with fewer rows, for a first look
    #[arg(long)]
    quick: bool,
    /// Folder for the output of each command, as JSON; rounds of earlier runs in it are included
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// A measurement: its name, and the arguments of this program.
type Step = (&'static str, Vec<&'static str>);

fn steps(quick: bool) -> Vec<Step> {
    let of = |full: &'static str, short: &'static str| -> Vec<&'static str> {
        if quick { short } else { full }.split(' ').collect()
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
/// A measurement fails, or is interrupted.
pub fn run(args: &PerformanceArgs) -> anyhow::Result<()> {
    let interrupted = signals::interrupted()?;
    let steps = steps(args.quick);
    let bar = ProgressBar::new(u64::from(args.rounds) * steps.len() as u64)
        .with_style(ProgressStyle::with_template("{bar:20} {pos}/{len} {elapsed} {msg}")?);
    let mut found = match &args.out {
        Some(folder) => read_all(folder, &steps)?,
        None => BTreeMap::new(),
    };
    let before = found.values().next().map_or(0, Vec::len) as u32;
    ensure!(args.rounds + before > 0, "no rounds: set --rounds, or an --out folder with earlier rounds");
    for round in before..before + args.rounds {
        for (name, arguments) in &steps {
            bar.set_message(arguments.join(" "));
            bar.tick();
            let value = measure(arguments, &interrupted)?;
            if let Some(folder) = &args.out {
                write(folder, &format!("{name}-{}", round + 1), &value)?;
            }
            found.entry(name).or_default().push(value);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    println!("{}", markdown::text(args.quick, &found));
    Ok(())
}

/// The rounds of all steps that earlier runs wrote to a folder.
fn read_all(folder: &Path, steps: &[Step]) -> anyhow::Result<BTreeMap<&'static str, Vec<Value>>> {
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

/// Reads the output of one step in one round, as [`write`] wrote it.
fn read(folder: &Path, name: &str, round: u32) -> anyhow::Result<Option<Value>> {
    let file = |path: &Path| -> anyhow::Result<Option<Value>> {
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Some(serde_json::from_str(&text).with_context(|| format!("{} is not a result", path.display()))?))
    };
    if let Some(value) = file(&folder.join(format!("{name}-{round}.json")))? {
        return Ok(Some(value));
    }
    let runs = ["direct", "chain"].map(|run| file(&folder.join(format!("{name}-{round}-{run}.json"))));
    let runs: Vec<Value> = runs.into_iter().filter_map(Result::transpose).collect::<anyhow::Result<_>>()?;
    Ok((!runs.is_empty()).then(|| serde_json::json!({ "runs": runs })))
}

/// Writes the output of a command to `NAME.json`, or each run of `load` to `NAME-RUN.json`, for `report`.
fn write(folder: &Path, name: &str, value: &Value) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create the folder {}", folder.display()))?;
    let write = |name: String, value: &Value| {
        let path = folder.join(name);
        std::fs::write(&path, format!("{value}\n")).with_context(|| format!("cannot write {}", path.display()))
    };
    let Some(runs) = value["runs"].as_array() else { return write(format!("{name}.json"), value) };
    runs.iter().try_for_each(|run| write(format!("{name}-{}.json", run["name"].as_str().unwrap_or("run")), run))
}

/// Runs this program, and returns the last line of its output.
fn measure(arguments: &[&str], interrupted: &AtomicBool) -> anyhow::Result<Value> {
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    let command = || format!("eddy-bench {}", arguments.join(" "));
    let output = Command::new(program).args(arguments).stderr(Stdio::piped()).output().with_context(command)?;
    if interrupted.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{} failed: {}",
        command(),
        stderr.trim().lines().last().unwrap_or("no error message")
    );
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().unwrap_or_default()).with_context(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_of_earlier_runs_are_included() {
        let dir = tempfile::tempdir().unwrap();
        let steps: [Step; 2] = [("hop", Vec::new()), ("latency", Vec::new())];
        assert!(read_all(&dir.path().join("none"), &steps).unwrap().is_empty());
        let hop = |round: u32| serde_json::json!({ "rows": [round] });
        let run = |name: &str, round: u32| serde_json::json!({ "name": name, "round": round });
        let latency = |round| serde_json::json!({ "runs": [run("direct", round), run("chain", round)] });
        for round in 1..3 {
            write(dir.path(), &format!("hop-{round}"), &hop(round)).unwrap();
            write(dir.path(), &format!("latency-{round}"), &latency(round)).unwrap();
        }
        // The third round was interrupted.
        write(dir.path(), "hop-3", &hop(3)).unwrap();
        let found = read_all(dir.path(), &steps).unwrap();
        assert_eq!((&found["hop"][..], &found["latency"][..]), (&[hop(1), hop(2)][..], &[latency(1), latency(2)][..]));
        std::fs::write(dir.path().join("hop-1.json"), "{").unwrap();
        assert!(read_all(dir.path(), &steps).unwrap_err().to_string().contains("hop-1.json is not a result"));
    }
}
