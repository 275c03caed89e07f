//! What files hold: runs, what `capacity` found, and rows of `hop` and `path`.
//!
//! A file is any number of JSON objects behind each other, so what was appended to one file can be read, too.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use serde::Deserialize;
use serde_json::Value;

use crate::capacity::search::Try;
use crate::results::{ChainFacts, Results, Spread};

/// All that goes into a page.
#[derive(Default)]
pub struct Sources {
    /// Of `load`, `replay` and `capacity`.
    pub runs: Vec<Run>,
    /// What `capacity` printed.
    pub capacities: Vec<Capacity>,
    /// Of `hop`.
    pub hops: Vec<Hop>,
    /// Of `path`.
    pub paths: Vec<PathRows>,
}

/// A run, ready to be drawn.
pub struct Run {
    /// Its name; with its file where others are called the same.
    pub label: String,
    /// As read.
    pub results: Results,
    /// Of each stream.
    pub times: Vec<Times>,
}

/// A stream's histograms, of nanoseconds.
pub struct Times {
    /// One way.
    pub latency: Histogram<u64>,
    /// There and back.
    pub round_trip: Option<Histogram<u64>>,
}

/// What `capacity --json` prints, as far as it is shown.
#[derive(Deserialize)]
pub struct Capacity {
    #[serde(skip)]
    pub label: String,
    pub lossless_per_s: f64,
    #[serde(default)]
    pub interval: [Option<f64>; 2],
    #[serde(default)]
    pub p99_us: f64,
    #[serde(default)]
    pub limited_by: String,
    #[serde(default)]
    pub budget_us: f64,
    #[serde(default)]
    pub payload_len: String,
    #[serde(default)]
    pub at: Vec<At>,
    pub tries: Vec<Try>,
    #[serde(default)]
    pub chain: Option<ChainFacts>,
    #[serde(default)]
    pub machine: Place,
    #[serde(default)]
    pub interrupted: bool,
}

/// Latency at a part of a capacity.
#[derive(Deserialize)]
pub struct At {
    pub part: f64,
    pub rate: f64,
    pub lost: u64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

/// What `hop --json` prints, as far as it is shown.
#[derive(Deserialize)]
pub struct Hop {
    #[serde(skip)]
    pub label: String,
    pub rows: Vec<HopRow>,
    #[serde(default)]
    pub class: String,
    #[serde(default)]
    pub engine: String,
    #[serde(default)]
    pub offload: String,
    #[serde(default)]
    pub io: Option<String>,
    #[serde(default)]
    pub lone_sink: bool,
    #[serde(default)]
    pub machine: Place,
    #[serde(default)]
    pub cores: Value,
}

impl Hop {
    /// How many cores it took: where they are listed depends on the version.
    pub fn cores(&self) -> usize {
        [&self.cores, &self.machine.cores].into_iter().find_map(Value::as_array).map_or(2, Vec::len)
    }
}

/// One of its rows. A figure that could not be had is null there.
#[derive(Deserialize)]
pub struct HopRow {
    pub direction: String,
    pub channels: u64,
    pub pool: u64,
    #[serde(default)]
    pub entries: u64,
    pub cell_ns: Option<f64>,
    pub cell_ns_range: Option<[Option<f64>; 2]>,
    pub null_gro_gso_ns: Option<f64>,
    pub null_mmsg_ns: Option<f64>,
    pub null_single_ns: Option<f64>,
    pub ratio_gro_gso: Option<f64>,
    pub ratio_mmsg: Option<f64>,
    pub gbit_s: Option<f64>,
    pub batch: Option<f64>,
    #[serde(default)]
    pub blaster_bound: bool,
}

/// Where it was measured.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Place {
    pub cpu: String,
    pub kernel: String,
    pub eddy: String,
    pub cores: Value,
    pub load: f64,
}

/// What `path --json` prints, as far as it is shown.
#[derive(Deserialize)]
pub struct PathRows {
    #[serde(skip)]
    pub label: String,
    pub rows: Vec<PathRow>,
    #[serde(default)]
    pub mixing: String,
    #[serde(default)]
    pub mixes: u64,
    #[serde(default)]
    pub lanes: u64,
    #[serde(default)]
    pub channels: u64,
    #[serde(default)]
    pub flows: u64,
    #[serde(default)]
    pub nodes: Vec<NodeCost>,
    #[serde(default)]
    pub closed: bool,
    #[serde(default)]
    pub cores: u64,
    #[serde(default)]
    pub load: f64,
}

/// One of its rows.
#[derive(Deserialize)]
pub struct PathRow {
    pub direction: String,
    pub payload_len: u64,
    pub delivered_per_s: f64,
    pub gbit_s: f64,
    pub loss: f64,
    pub sent_per_s: f64,
    #[serde(default)]
    pub generator_bound: bool,
}

/// What a cell cost a node.
#[derive(Deserialize)]
pub struct NodeCost {
    pub node: String,
    pub cells: u64,
    pub cell_ns: u64,
}

impl Sources {
    /// Reads all files.
    ///
    /// # Errors
    /// One cannot be read or is none of ours.
    pub fn read<P: AsRef<Path>>(files: &[P]) -> anyhow::Result<Sources> {
        let mut sources = Sources::default();
        for path in files.iter().map(AsRef::as_ref) {
            let name = path.display();
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
            let mut empty = true;
            for form in serde_json::Deserializer::from_str(&text).into_iter::<Value>() {
                let form = form.with_context(|| {
                    format!(
                        "{name} is no JSON (a report is made from NAME.json of `eddy-bench load`, `replay` or \
                         `capacity`, and from what `capacity`, `hop` and `path` print with --json)"
                    )
                })?;
                sources.take(form, path)?;
                empty = false;
            }
            ensure!(!empty, "{name} is empty");
        }
        sources.tell_apart();
        Ok(sources)
    }

    /// One object.
    fn take(&mut self, mut form: Value, path: &Path) -> anyhow::Result<()> {
        let name = path.display().to_string();
        let damaged = || format!("{name} is damaged");
        let first = form["rows"].get(0).cloned().unwrap_or_default();
        let has = |key: &str| first.get(key).is_some();
        if form.get("format").is_some() {
            self.runs.push(Run::of(Results::of(form, &name)?, &name)?);
        } else if let Some(Value::Array(runs)) = form.get_mut("runs").map(Value::take) {
            ensure!(!runs.is_empty(), "{name} holds no runs");
            for run in runs {
                self.runs.push(Run::of(Results::of(run, &name)?, &name)?);
            }
        } else if form.get("lossless_per_s").is_some() {
            let label = name.clone();
            self.capacities.push(Capacity { label, ..serde_json::from_value(form).with_context(damaged)? });
        } else if has("cell_ns") {
            self.hops.push(Hop { label: name.clone(), ..serde_json::from_value(form).with_context(damaged)? });
        } else if has("delivered_per_s") {
            self.paths.push(PathRows { label: name.clone(), ..serde_json::from_value(form).with_context(damaged)? });
        } else {
            bail!(
                "{name} is no result of `eddy-bench load`, `replay` or `capacity`, nor what `capacity`, `hop` or \
                 `path` print with --json"
            );
        }
        Ok(())
    }

    /// Sees to it that no two of a kind are called the same.
    fn tell_apart(&mut self) {
        let mut names = HashMap::<String, usize>::new();
        self.runs.iter().for_each(|run| *names.entry(run.results.name.clone()).or_default() += 1);
        for run in &mut self.runs {
            if names[&run.results.name] == 1 {
                run.label.clone_from(&run.results.name);
            }
        }
        number(self.runs.iter_mut().map(|run| &mut run.label));
        number(self.capacities.iter_mut().map(|capacity| &mut capacity.label));
        number(self.hops.iter_mut().map(|hop| &mut hop.label));
        number(self.paths.iter_mut().map(|path| &mut path.label));
    }

    /// What there is of each, for people.
    pub fn summary(&self) -> String {
        let streams = self.runs.iter().map(|run| run.results.streams.len()).sum();
        let parts = [
            (self.runs.len(), "run", "runs"),
            (streams, "stream", "streams"),
            (self.capacities.len(), "capacity", "capacities"),
            (self.hops.len(), "measurement of a hop", "measurements of a hop"),
            (self.paths.len(), "measurement of a path", "measurements of a path"),
        ];
        let parts = parts.into_iter().filter(|(count, ..)| *count > 0);
        let parts: Vec<String> =
            parts.map(|(count, one, many)| format!("{count} {}", if count == 1 { one } else { many })).collect();
        parts.join(", ")
    }
}

/// Numbers those that have a name of an earlier one.
fn number<'a>(labels: impl Iterator<Item = &'a mut String>) {
    let mut seen = HashMap::<String, usize>::new();
    for label in labels {
        let count = seen.entry(label.clone()).or_default();
        *count += 1;
        if *count > 1 {
            label.push_str(&format!(" #{count}"));
        }
    }
}

impl Run {
    /// With the histograms of its streams.
    fn of(results: Results, file: &str) -> anyhow::Result<Run> {
        let times = results.streams.iter().map(|stream| {
            let histogram = |spread: &Spread| {
                let which = || format!("{file} is damaged: {} {}", stream.profile, stream.direction);
                spread.histogram().with_context(which)
            };
            Ok(Times {
                latency: histogram(&stream.latency)?,
                round_trip: stream.round_trip.as_ref().map(histogram).transpose()?,
            })
        });
        let times = times.collect::<anyhow::Result<_>>()?;
        Ok(Run { label: format!("{} ({file})", results.name), results, times })
    }
}
