//! The files that a page is made of: runs, and what `attack`, `capacity`, `hop` and `path` printed.
//!
//! A file holds any number of JSON objects one after the other, so output that was appended to a file can be read, too.
//! Lines of text between them are skipped: a log may have progress and warnings as well.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use serde_json::Value;

use crate::attack::AttackResult;
use crate::capacity::CapacityResult;
use crate::hop::HopResult;
use crate::path::PathResult;
use crate::results::{Results, Spread};

/// Everything that goes into a page.
#[derive(Default)]
pub(crate) struct Sources {
    /// Of `load`, `replay` and `capacity`.
    pub(crate) runs: Vec<Run>,
    pub(crate) attacks: Vec<Labelled<AttackResult>>,
    pub(crate) capacities: Vec<Labelled<CapacityResult>>,
    pub(crate) hops: Vec<Labelled<HopResult>>,
    pub(crate) paths: Vec<Labelled<PathResult>>,
}

/// A result with a label that no other result of its type has.
pub(crate) struct Labelled<T> {
    pub(crate) label: String,
    pub(crate) value: T,
}

/// A run with its histograms decoded.
pub(crate) struct Run {
    /// Its name, followed by its file where another run has the same name.
    pub(crate) label: String,
    pub(crate) results: Results,
    /// One for each stream.
    pub(crate) times: Vec<Times>,
}

/// A stream's histograms, of nanoseconds.
pub(crate) struct Times {
    pub(crate) latency: Histogram<u64>,
    pub(crate) round_trip: Option<Histogram<u64>>,
}

/// The commands whose output a page is made of.
const EXPECTED: &str = "expected a NAME.json of `eddy-bench load`, `replay` or `capacity`, or what `attack`, \
                        `capacity`, `hop` or `path` print with --json";

impl Sources {
    /// Reads all files.
    ///
    /// # Errors
    /// A file cannot be read, or does not hold results.
    pub(crate) fn read<P: AsRef<Path>>(files: &[P]) -> anyhow::Result<Sources> {
        let mut sources = Sources::default();
        for path in files.iter().map(AsRef::as_ref) {
            let name = path.display();
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
            let objects = objects(&text).with_context(|| format!("{name} is not valid JSON: {EXPECTED}"))?;
            ensure!(!objects.is_empty(), "{name} has no results: {EXPECTED}");
            for object in objects {
                sources.add(object, &name.to_string())?;
            }
        }
        sources.make_labels_unique();
        Ok(sources)
    }

    /// Adds one object of the file `name`.
    fn add(&mut self, mut object: Value, name: &str) -> anyhow::Result<()> {
        let first_row = object["rows"].get(0).cloned().unwrap_or_default();
        let rows_have = |key: &str| first_row.get(key).is_some();
        if object.get("format").is_some() {
            self.runs.push(Run::of(Results::of(object, name)?, name)?);
        } else if object.get("summaries").is_some() {
            let mut attack = Labelled::<AttackResult>::of(object, name)?;
            attack.label.push_str(&attack.value.users());
            self.attacks.push(attack);
        } else if let Some(Value::Array(runs)) = object.get_mut("runs").map(Value::take) {
            ensure!(!runs.is_empty(), "{name} has no runs");
            for run in runs {
                self.runs.push(Run::of(Results::of(run, name)?, name)?);
            }
        } else if object.get("lossless_per_s").is_some() {
            self.capacities.push(Labelled::of(object, name)?);
        } else if rows_have("cell_ns") {
            self.hops.push(Labelled::of(object, name)?);
        } else if rows_have("delivered_per_s") {
            self.paths.push(Labelled::of(object, name)?);
        } else {
            bail!("{name} is not a result: {EXPECTED}");
        }
        Ok(())
    }

    fn make_labels_unique(&mut self) {
        let mut names = HashMap::<String, usize>::new();
        self.runs.iter().for_each(|run| *names.entry(run.results.name.clone()).or_default() += 1);
        for run in &mut self.runs {
            if names[&run.results.name] == 1 {
                run.label.clone_from(&run.results.name);
            }
        }
        number_repeats(self.runs.iter_mut().map(|run| &mut run.label));
        number_repeats(self.attacks.iter_mut().map(|attack| &mut attack.label));
        number_repeats(self.capacities.iter_mut().map(|capacity| &mut capacity.label));
        number_repeats(self.hops.iter_mut().map(|hop| &mut hop.label));
        number_repeats(self.paths.iter_mut().map(|path| &mut path.label));
    }

    /// Number of results of each type, as text.
    pub(crate) fn summary(&self) -> String {
        let streams = self.runs.iter().map(|run| run.results.streams.len()).sum();
        let parts = [
            (self.runs.len(), "run", "runs"),
            (streams, "stream", "streams"),
            (self.attacks.len(), "attack", "attacks"),
            (self.capacities.len(), "capacity", "capacities"),
            (self.hops.len(), "hop measurement", "hop measurements"),
            (self.paths.len(), "path measurement", "path measurements"),
        ];
        let parts = parts.into_iter().filter(|(count, ..)| *count > 0);
        let parts = parts.map(|(count, one, many)| format!("{count} {}", if count == 1 { one } else { many }));
        parts.collect::<Vec<_>>().join(", ")
    }
}

impl<T: serde::de::DeserializeOwned> Labelled<T> {
    fn of(object: Value, name: &str) -> anyhow::Result<Labelled<T>> {
        let value = serde_json::from_value(object);
        let value = value.with_context(|| format!("{name} is damaged, or another version of eddy-bench wrote it"))?;
        Ok(Labelled { label: name.to_owned(), value })
    }
}

/// The JSON objects in a text. Lines outside of them are skipped.
fn objects(mut text: &str) -> serde_json::Result<Vec<Value>> {
    let mut objects = Vec::new();
    loop {
        text = text.trim_start();
        if text.is_empty() {
            return Ok(objects);
        }
        if text.starts_with('{') {
            let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
            objects.extend(stream.next().transpose()?);
            text = &text[stream.byte_offset()..];
        } else {
            text = text.split_once('\n').map_or("", |(_, next)| next);
        }
    }
}

/// Numbers each label that an earlier one equals: `#2`, `#3`.
fn number_repeats<'a>(labels: impl Iterator<Item = &'a mut String>) {
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
