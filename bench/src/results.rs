//! What a run leaves behind: one JSON object that `report` reads, and files that HdrHistogram's own tools read.
//!
//! Latencies are recorded in nanoseconds with three significant digits, and told in microseconds.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer, V2Serializer};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::machine::Machine;

/// The form of the file. Goes up when an older reader would misread it.
pub const FORMAT: u32 = 1;

/// Longest time that a histogram tells apart.
const LONGEST: Duration = Duration::from_secs(60);

/// An empty histogram of times in nanoseconds.
pub fn histogram() -> Histogram<u64> {
    let longest = LONGEST.as_nanos() as u64;
    Histogram::new_with_bounds(1, longest, 3).expect("bounds that the crate takes")
}

/// One run: a load through one target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// [`FORMAT`].
    pub format: u32,
    /// What the run is called in tables, plots and file names: `chain`, `direct`.
    pub name: String,
    /// What repeats it.
    pub command: String,
    /// Where it was measured.
    pub machine: Machine,
    /// What it went through, if this program started it.
    #[serde(default)]
    pub chain: Option<ChainFacts>,
    /// What the generator can do without a chain.
    #[serde(default)]
    pub floor: Option<Floor>,
    /// How long was sent.
    pub seconds: f64,
    /// Somebody ended it before its time.
    pub interrupted: bool,
    /// What was sent, by profile and direction.
    pub streams: Vec<Stream>,
    /// The same by the second.
    pub series: Vec<Second>,
    /// What the chain's nodes said of themselves at its end, as `eddy status --json` tells it.
    #[serde(default)]
    pub nodes: Vec<Value>,
}

/// A chain that this program started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChainFacts {
    /// Mixes.
    pub mixes: u32,
    /// Size of cells.
    pub class: String,
    /// What the mixes do.
    pub mixing: String,
    /// Channels that the entry keeps up.
    pub channels: u32,
    /// Lanes of each mix.
    pub lanes: u32,
    /// Whether cells travel in GSO bursts, as asked for.
    pub offload: String,
    /// The AEAD engine in use.
    pub engine: String,
    /// How cells get into the kernel: `mmsg` or `uring`.
    pub io: String,
}

/// The generator alone, straight into its own sink.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Floor {
    /// Datagrams a second that it can send and count, of the mean length of the load.
    pub ceiling_per_s: f64,
    /// Its own latency under the same load, in microseconds.
    pub p50_us: f64,
    /// The same.
    pub p99_us: f64,
    /// The same.
    pub p999_us: f64,
    /// The same.
    pub max_us: f64,
}

/// One profile in one direction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stream {
    /// `voip`, `game`, `video`, `bulk`, `even` or a trace's name.
    pub profile: String,
    /// `forward`: to the destination. `backward`: from there.
    pub direction: String,
    /// Flows, each from a socket of its own.
    pub flows: usize,
    /// The kernel took them.
    pub sent: u64,
    /// The kernel refused them.
    pub refused: u64,
    /// Arrived for the first time.
    pub delivered: u64,
    /// Arrived again.
    pub duplicated: u64,
    /// Arrived behind a later one of their flow (RFC 4737, 3).
    pub reordered: u64,
    /// Sent, and never arrived.
    pub lost: u64,
    /// Payload bytes delivered.
    pub bytes: u64,
    /// `[n, times]`: n datagrams in a row of a flow were lost, so many times.
    pub loss_bursts: Vec<(u64, u64)>,
    /// From the intended time of sending to arrival.
    pub latency: Spread,
    /// From the intended time of sending to the arrival of the answer, where datagrams are answered.
    #[serde(default)]
    pub round_trip: Option<Spread>,
    /// Interarrival jitter (RFC 3550, 6.4.1), after each datagram.
    pub jitter: Spread,
    /// By how many datagrams those that were reordered were late (RFC 4737, 4.2.1: reordering extent).
    #[serde(default)]
    pub reorder_extent: Option<Spread>,
    /// What a call sounds like, where the profile is one.
    #[serde(default)]
    pub mos: Option<Mos>,
}

/// Mean opinion score by the E-model (ITU-T G.107), 1 to 4.5.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mos {
    /// Over all flows.
    pub mean: f64,
    /// The worst of them.
    pub worst: f64,
}

/// A second of a run, by the intended time of its datagrams, over all streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Second {
    /// Sent.
    pub sent: u64,
    /// Of these arrived, whenever that was.
    pub delivered: u64,
    /// Payload bytes of these.
    pub bytes: u64,
    /// Latency of these, in microseconds.
    pub p50_us: f64,
    /// The same.
    pub p99_us: f64,
    /// The same.
    pub max_us: f64,
}

/// How values are spread.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How many there are.
    pub count: u64,
    /// Quantiles and extremes: microseconds, or datagrams for an extent.
    pub min: f64,
    /// The mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// 90 of 100 are not above it.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1000.
    pub p999: f64,
    /// The greatest.
    pub max: f64,
    /// All of it: a HdrHistogram V2 in base64, of nanoseconds or datagrams.
    pub v2: String,
}

impl Spread {
    /// Of a histogram of nanoseconds.
    pub fn of_times(histogram: &Histogram<u64>) -> Spread {
        Spread::of(histogram, 1000.0)
    }

    /// Of a histogram of numbers.
    pub fn of_numbers(histogram: &Histogram<u64>) -> Spread {
        Spread::of(histogram, 1.0)
    }

    fn of(histogram: &Histogram<u64>, unit: f64) -> Spread {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / unit;
        let mut bytes = Vec::new();
        V2DeflateSerializer::new().serialize(histogram, &mut bytes).expect("memory takes it");
        if histogram.is_empty() {
            return Spread { v2: BASE64.encode(bytes), ..Spread::default() };
        }
        Spread {
            count: histogram.len(),
            min: histogram.min() as f64 / unit,
            mean: histogram.mean() / unit,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / unit,
            v2: BASE64.encode(bytes),
        }
    }

    /// The histogram behind it.
    ///
    /// # Errors
    /// It is none.
    pub fn histogram(&self) -> anyhow::Result<Histogram<u64>> {
        let bytes = BASE64.decode(&self.v2).context("a histogram in base64")?;
        Deserializer::new().deserialize(&mut &bytes[..]).map_err(|why| anyhow::anyhow!("no HdrHistogram V2: {why}"))
    }
}

impl Results {
    /// Reads a file that [`Results::write`] made.
    ///
    /// # Errors
    /// It cannot be read, or is not of this form.
    pub fn read(path: &Path) -> anyhow::Result<Results> {
        let name = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        let form: Value = serde_json::from_str(&text).with_context(|| format!("{name} is no JSON"))?;
        Results::of(form, &name.to_string())
    }

    /// From such an object, of the file `name`.
    ///
    /// # Errors
    /// It is not of this form.
    pub fn of(form: Value, name: &str) -> anyhow::Result<Results> {
        let format = form["format"].as_u64();
        ensure!(
            format == Some(FORMAT.into()),
            "{name} is no result of `eddy-bench load`, `replay` or `capacity`{}",
            format.map(|format| format!(" of this version: its format is {format}, not {FORMAT}")).unwrap_or_default()
        );
        serde_json::from_value(form).with_context(|| format!("{name} is damaged"))
    }

    /// Writes `NAME.json`, a `.hgrm` for each stream and a HdrHistogram log `NAME.hlog` into a folder, which is made if
    /// need be. Returns the JSON's path.
    ///
    /// # Errors
    /// The folder or a file cannot be written.
    pub fn write(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let place = |name: String| -> anyhow::Result<(PathBuf, fs::File)> {
            let path = folder.join(name);
            let file = fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
            Ok((path, file))
        };
        for stream in &self.streams {
            let name = format!("{}.{}.{}.hgrm", self.name, stream.profile, stream.direction);
            write!(place(name)?.1, "{}", hgrm(&stream.latency.histogram()?))?;
        }
        self.log(&mut place(format!("{}.hlog", self.name))?.1)?;
        let (path, mut json) = place(format!("{}.json", self.name))?;
        writeln!(json, "{}", serde_json::to_string(self)?)?;
        Ok(path)
    }

    /// One histogram of latencies for each stream, tagged with its name.
    fn log(&self, to: &mut impl Write) -> anyhow::Result<()> {
        let mut serializer = V2Serializer::new();
        let mut log = IntervalLogWriterBuilder::new()
            .add_comment(&format!("eddy-bench {}", self.command))
            .with_base_time(SystemTime::UNIX_EPOCH)
            .with_max_value_divisor(1000.0)
            .begin_log_with(to, &mut serializer)
            .context("the log")?;
        let took = Duration::from_secs_f64(self.seconds);
        for stream in &self.streams {
            let tag = format!("{}-{}", stream.profile, stream.direction);
            let tag = Tag::new(&tag).context("a stream's name has a comma or a space")?;
            log.write_histogram(&stream.latency.histogram()?, Duration::ZERO, took, Some(tag))
                .map_err(|why| anyhow::anyhow!("the log: {why:?}"))?;
        }
        Ok(())
    }
}

/// A percentile distribution as HdrHistogram's plotter reads it, in microseconds.
fn hgrm(histogram: &Histogram<u64>) -> String {
    let mut out = String::from("       Value     Percentile TotalCount 1/(1-Percentile)\n\n");
    let mut counted = 0;
    for step in histogram.iter_quantiles(5) {
        counted += step.count_since_last_iteration();
        let (value, quantile) = (step.value_iterated_to() as f64 / 1000.0, step.quantile_iterated_to());
        let line = if quantile < 1.0 {
            format!("{value:12.3} {quantile:2.12} {counted:10} {:14.2}\n", 1.0 / (1.0 - quantile))
        } else {
            format!("{value:12.3} {quantile:2.12} {counted:10}\n")
        };
        out.push_str(&line);
    }
    let micro = |value: f64| value / 1000.0;
    out.push_str(&format!(
        "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]\n#[Max     = {:12.3}, Total count    = {:12}]\n\
         #[Buckets = {:12}, SubBuckets     = {:12}]\n",
        micro(histogram.mean()),
        micro(histogram.stdev()),
        micro(histogram.max() as f64),
        histogram.len(),
        histogram.buckets(),
        histogram.distinct_values()
    ));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    /// A run with known figures.
    fn run() -> Results {
        let mut latency = histogram();
        (1..=1000).for_each(|us| latency.record(us * 1000).unwrap());
        let times = Spread::of_times(&latency);
        let stream = Stream {
            profile: "even".into(),
            direction: "forward".into(),
            flows: 1,
            sent: 1001,
            refused: 0,
            delivered: 1000,
            duplicated: 0,
            reordered: 0,
            lost: 1,
            bytes: 1000,
            loss_bursts: vec![(1, 1)],
            latency: times.clone(),
            round_trip: None,
            jitter: times,
            reorder_extent: None,
            mos: None,
        };
        Results {
            format: FORMAT,
            name: "known".into(),
            command: "load".into(),
            machine: Machine::read(),
            chain: None,
            floor: None,
            seconds: 1.0,
            interrupted: false,
            streams: vec![stream],
            series: vec![Second::default()],
            nodes: vec![],
        }
    }

    #[test]
    fn what_was_written_can_be_read_again_by_us_and_by_the_histograms_own_reader() {
        let folder = tempfile::tempdir().unwrap();
        let path = run().write(folder.path()).unwrap();
        let read = Results::read(&path).unwrap();
        let latency = &read.streams[0].latency;
        assert_eq!(latency.histogram().unwrap().len(), 1000);
        assert!((latency.p50 - 500.0).abs() < 1.0 && (latency.p99 - 990.0).abs() < 1.0, "{latency:?}");
        let log = fs::read(folder.path().join("known.hlog")).unwrap();
        let mut found = 0;
        for entry in IntervalLogIterator::new(&log) {
            if let LogEntry::Interval(interval) = entry.unwrap() {
                let bytes = BASE64.decode(interval.encoded_histogram()).unwrap();
                let histogram: Histogram<u64> = Deserializer::new().deserialize(&mut &bytes[..]).unwrap();
                assert_eq!((histogram.len(), interval.tag().unwrap().as_str()), (1000, "even-forward"));
                found += 1;
            }
        }
        assert_eq!(found, 1);
        let hgrm = fs::read_to_string(folder.path().join("known.even.forward.hgrm")).unwrap();
        let last = hgrm.lines().rfind(|line| !line.starts_with('#')).unwrap();
        assert!(last.contains("1.000000000000       1000"), "{last}");
    }

    #[test]
    fn a_file_of_another_form_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        for (text, wanted) in [("{", "is no JSON"), ("{}", "is no result of"), (r#"{"format":99}"#, "format is 99")] {
            fs::write(&path, text).unwrap();
            let error = format!("{:#}", Results::read(&path).unwrap_err());
            assert!(error.contains(wanted) && error.contains("x.json"), "{error}");
        }
    }
}
