//! Results of a run (`load`, `replay`, and `capacity --out`): one JSON object that `report` reads, and files for
//! HdrHistogram's own tools.

mod histograms;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::histograms::{Spread, histogram};
use crate::machine::Machine;

/// Version of the file format. Goes up when an older reader would misread it.
pub const FORMAT: u32 = 2;

/// One load through one target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// [`FORMAT`].
    pub format: u32,
    /// Name of the run in tables, plots and file names, such as `chain` or `direct`.
    pub name: String,
    /// Arguments of `eddy-bench` that repeat the run.
    pub command: String,
    pub machine: Machine,
    /// The chain, if this program started it.
    pub chain: Option<ChainFacts>,
    /// Limits of the generator without a chain.
    pub calibration: Option<Calibration>,
    /// Time of sending.
    pub seconds: f64,
    /// A user or a signal ended the run early.
    pub interrupted: bool,
    /// By profile and direction.
    pub streams: Vec<Stream>,
    /// All streams together, second by second.
    pub series: Vec<Second>,
    /// Reports of the chain's nodes at its end, as in `eddy status --json`.
    pub nodes: Vec<Value>,
}

/// A chain that this program started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChainFacts {
    pub mixes: u32,
    /// Size class of the cells.
    pub class: String,
    pub mixing: String,
    /// Channels that the entry keeps open; 0 if this varies.
    pub channels: u32,
    /// Lanes of each mix.
    pub lanes: u32,
    /// GSO and GRO, as configured.
    pub offload: String,
    /// AEAD engine in use.
    pub engine: String,
    /// System calls of the sockets: `mmsg` or `uring`.
    pub io: String,
}

/// The generator alone, sending straight to its own sink.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Datagrams per second, of the mean length of the load, that the generator can send and count.
    pub ceiling_per_s: f64,
    /// Latency of the same load without a chain.
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

/// One profile in one direction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stream {
    /// `voip`, `opus`, `game`, `video`, `bulk`, `even`, or the name of a trace.
    pub profile: String,
    /// `forward` (to the destination) or `backward`.
    pub direction: String,
    /// Number of flows. Each has its own socket.
    pub flows: usize,
    /// Datagrams that the kernel accepted.
    pub sent: u64,
    /// Datagrams that the kernel refused.
    pub refused: u64,
    /// Datagrams that arrived, without duplicates.
    pub delivered: u64,
    pub duplicated: u64,
    /// Datagrams that arrived after a later one of their flow (RFC 4737, 3).
    pub reordered: u64,
    /// Datagrams that were sent and never arrived.
    pub lost: u64,
    /// Payload bytes delivered.
    pub bytes: u64,
    /// `[n, times]`: how many times n datagrams of a flow were lost in a row.
    pub loss_bursts: Vec<(u64, u64)>,
    /// From the time at which a datagram was due to its arrival.
    pub latency: Spread,
    /// From the time at which a datagram was due to the arrival of its answer; `None` without answers.
    pub round_trip: Option<Spread>,
    /// Interarrival jitter (RFC 3550, 6.4.1), after each datagram.
    pub jitter: Spread,
    /// Reordering extent in datagrams (RFC 4737, 4.2.1).
    pub reorder_extent: Option<Spread>,
    /// Call quality, for profiles that are calls.
    pub mos: Option<Mos>,
}

/// Mean opinion score of calls by the E-model (ITU-T G.107), from 1 to 4.5.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mos {
    pub mean: f64,
    pub worst: f64,
}

/// The datagrams that were due in one second of a run, over all streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Second {
    pub sent: u64,
    /// Of these, datagrams that arrived at any time.
    pub delivered: u64,
    /// Payload bytes delivered.
    pub bytes: u64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
}

impl Results {
    /// Reads a file that [`Results::write`] made.
    ///
    /// # Errors
    /// The file cannot be read, or has another format.
    pub fn read(path: &Path) -> anyhow::Result<Results> {
        let name = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        let object: Value = serde_json::from_str(&text).with_context(|| format!("{name} is not valid JSON"))?;
        Results::of(object, &name.to_string())
    }

    /// From an object of the file `name`.
    ///
    /// # Errors
    /// The object has another format.
    pub(crate) fn of(object: Value, name: &str) -> anyhow::Result<Results> {
        let format = &object["format"];
        ensure!(
            *format == FORMAT,
            "{name} is not a result of this version of eddy-bench: expected format {FORMAT}, found {format}"
        );
        serde_json::from_value(object).with_context(|| format!("{name} is damaged"))
    }

    /// Writes `NAME.json`, a `.hgrm` file for each stream and a HdrHistogram log `NAME.hlog` into a folder, and creates
    /// the folder if necessary. Returns the path of the JSON file.
    ///
    /// # Errors
    /// The folder or a file cannot be written.
    pub fn write(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create the folder {}", folder.display()))?;
        let create = |name: String| -> anyhow::Result<(PathBuf, fs::File)> {
            let path = folder.join(name);
            let file = fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
            Ok((path, file))
        };

        for stream in &self.streams {
            let name = format!("{}.{}.{}.hgrm", self.name, stream.profile, stream.direction);
            write!(create(name)?.1, "{}", histograms::hgrm(&stream.latency.histogram()?))?;
        }
        histograms::log(self, &mut create(format!("{}.hlog", self.name))?.1)?;

        let (path, mut json) = create(format!("{}.json", self.name))?;
        writeln!(json, "{}", serde_json::to_string(self)?)?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_of_another_format_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        let cases = [("{", "is not valid JSON"), ("{}", "is not a result"), (r#"{"format":99}"#, "found 99")];
        for (text, wanted) in cases {
            fs::write(&path, text).unwrap();
            let error = format!("{:#}", Results::read(&path).unwrap_err());
            assert!(error.contains(wanted) && error.contains("x.json"), "{error}");
        }
    }
}
