//! The machine that a measurement ran on.

use serde::{Deserialize, Serialize};

/// Machine and version, on which all figures depend.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Name of the processor.
    pub cpu: String,
    /// Cores that this program may use.
    pub cores: usize,
    /// Release of the kernel.
    pub kernel: String,
    /// Load average of the last minute.
    pub load: f64,
    /// Version of eddy, with its commit if the build knew it.
    pub eddy: String,
}

impl Machine {
    /// This machine, now.
    pub fn read() -> Machine {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim()));
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Machine {
            cpu: model.unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            load: load.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0),
            eddy: eddy::version::with_commit(),
        }
    }
}

/// Two lines, the second one indented.
impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Machine { cpu, cores, kernel, load, eddy } = self;
        write!(f, "{cpu}, {cores} cores, load average {load}\n  Linux {kernel}, eddy {eddy}")
    }
}
