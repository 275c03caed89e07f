//! Where something was measured: a figure says nothing without it.

use serde::{Deserialize, Serialize};

/// A machine, as far as it decides a figure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Cores that this program may use.
    pub cores: usize,
    /// The kernel's release.
    pub kernel: String,
    /// Processes that wanted to run, over the last minute, when the run ended.
    pub load: f64,
    /// The version of eddy.
    pub eddy: String,
}

impl Machine {
    /// This one.
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
