//! Histograms of a run: their quantiles, and the file formats of HdrHistogram's own tools.
//!
//! Times are recorded in nanoseconds with three significant digits, and reported in microseconds.

use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer, V2Serializer};
use serde::{Deserialize, Serialize};

use super::Results;

/// Longest time that a histogram records; longer ones count as this.
const LONGEST: Duration = Duration::from_secs(60);

/// An empty histogram of times in nanoseconds.
pub fn histogram() -> Histogram<u64> {
    let longest = LONGEST.as_nanos() as u64;
    Histogram::new_with_bounds(1, longest, 3).expect("valid bounds")
}

/// Quantiles of a histogram: microseconds, or datagrams for a reordering extent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub count: u64,
    pub min: f64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
    /// The whole histogram, of nanoseconds or datagrams: HdrHistogram V2 in base64.
    pub v2: String,
}

impl Spread {
    /// Of a histogram of nanoseconds.
    pub fn of_times(histogram: &Histogram<u64>) -> Spread {
        Spread::of(histogram, 1000.0)
    }

    /// Of a histogram of plain numbers.
    pub(crate) fn of_numbers(histogram: &Histogram<u64>) -> Spread {
        Spread::of(histogram, 1.0)
    }

    fn of(histogram: &Histogram<u64>, unit: f64) -> Spread {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / unit;
        let mut bytes = Vec::new();
        V2DeflateSerializer::new().serialize(histogram, &mut bytes).expect("writing to memory succeeds");
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

    /// Decodes the whole histogram.
    ///
    /// # Errors
    /// `v2` is not a histogram.
    pub fn histogram(&self) -> anyhow::Result<Histogram<u64>> {
        let bytes = BASE64.decode(&self.v2).context("expected a histogram in base64")?;
        Deserializer::new()
            .deserialize(&mut &bytes[..])
            .map_err(|why| anyhow::anyhow!("expected a HdrHistogram V2: {why}"))
    }
}

/// Writes a HdrHistogram log: one histogram of latencies for each stream, tagged with its name.
pub(super) fn log(results: &Results, to: &mut impl Write) -> anyhow::Result<()> {
    let mut serializer = V2Serializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment(&format!("eddy-bench {}", results.command))
        .with_base_time(SystemTime::UNIX_EPOCH)
        .with_max_value_divisor(1000.0)
        .begin_log_with(to, &mut serializer)
        .context("cannot write the HdrHistogram log")?;
    let took = Duration::from_secs_f64(results.seconds);
    for stream in &results.streams {
        let tag = format!("{}-{}", stream.profile, stream.direction);
        let tag = Tag::new(&tag).context("a stream's name has a comma or a space")?;
        log.write_histogram(&stream.latency.histogram()?, Duration::ZERO, took, Some(tag))
            .map_err(|why| anyhow::anyhow!("cannot write the HdrHistogram log: {why:?}"))?;
    }
    Ok(())
}

/// A percentile distribution for HdrHistogram's plotter, in microseconds.
pub(super) fn hgrm(histogram: &Histogram<u64>) -> String {
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
    use crate::machine::Machine;
    use crate::results::{FORMAT, Second, Stream};
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
    use std::fs;

    /// A run with latencies of 1 to 1000 us.
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
            calibration: None,
            seconds: 1.0,
            interrupted: false,
            streams: vec![stream],
            series: vec![Second::default()],
            nodes: vec![],
        }
    }

    #[test]
    fn written_results_are_read_back_with_their_histograms() {
        let folder = tempfile::tempdir().unwrap();
        let read = Results::read(&run().write(folder.path()).unwrap()).unwrap();
        let latency = &read.streams[0].latency;
        assert_eq!(latency.histogram().unwrap().len(), 1000);
        assert!((latency.p50 - 500.0).abs() < 1.0 && (latency.p99 - 990.0).abs() < 1.0, "{latency:?}");
    }

    #[test]
    fn hlog_and_hgrm_are_read_by_hdrhistogram() {
        let folder = tempfile::tempdir().unwrap();
        run().write(folder.path()).unwrap();

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
}
