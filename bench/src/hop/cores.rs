//! Cores and processor time.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// One core for what is measured, another for what loads it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    /// The mix, or a relay in its place.
    pub(crate) relay: usize,
    /// Generator and sink.
    pub(crate) load: usize,
}

impl Cores {
    /// The last core that this process may use for the mix, the first for the load.
    ///
    /// # Errors
    /// This process may use only one core.
    pub(crate) fn choose() -> anyhow::Result<Cores> {
        let ours = sched_getaffinity(None).context("the cores of this process")?;
        let mut all = (0..CpuSet::MAX_CPU).filter(|core| ours.is_set(*core));
        match (all.next(), all.next_back()) {
            (Some(load), Some(relay)) => Ok(Cores { relay, load }),
            _ => bail!("measuring a hop needs two cores, and this process may use one: check `taskset -p $$`"),
        }
    }
}

/// Keeps the calling thread, and everything it starts, on one core.
///
/// # Errors
/// The system refuses.
pub(crate) fn pin(core: usize) -> anyhow::Result<()> {
    pin_to(&[core])
}

/// As [`pin`], on several cores.
///
/// # Errors
/// The system refuses.
pub(crate) fn pin_to(cores: &[usize]) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    cores.iter().for_each(|core| set.set(*core));
    sched_setaffinity(None, &set).with_context(|| format!("cannot use the cores {cores:?}"))
}

/// Processor time of the calling thread.
pub(crate) fn own_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// A thread of another process.
pub(crate) struct Thread(PathBuf);

impl Thread {
    /// Finds a thread by its name.
    ///
    /// # Errors
    /// The process has no such thread.
    pub(crate) fn find(process: u32, name: &str) -> anyhow::Result<Thread> {
        let tasks = PathBuf::from(format!("/proc/{process}/task"));
        let named = |task: &Path| fs::read_to_string(task.join("comm")).is_ok_and(|found| found.trim() == name);
        let mut all = fs::read_dir(&tasks).with_context(|| tasks.display().to_string())?.filter_map(Result::ok);
        let found = all.find(|task| named(&task.path()));
        found.map(|task| Thread(task.path())).with_context(|| format!("process {process} has no thread `{name}`"))
    }

    /// Waits until the thread sleeps, and returns its processor time. The kernel updates this time when the thread
    /// goes to sleep; for a running thread it would be up to 10 ms old.
    ///
    /// # Errors
    /// The thread does not go to sleep, or the kernel has no such statistics.
    pub(crate) fn time_at_rest(&self) -> anyhow::Result<Duration> {
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.state()? != "S" {
            if Instant::now() > deadline {
                bail!("the worker of the mix does not go to sleep");
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        self.time()
    }

    /// Its processor time when it last went to sleep, or at the kernel's last tick.
    ///
    /// # Errors
    /// The thread has ended, or the kernel has no such statistics.
    pub(crate) fn time(&self) -> anyhow::Result<Duration> {
        let text = fs::read_to_string(self.0.join("schedstat"))
            .context("cannot read schedstat: the kernel needs CONFIG_SCHED_INFO")?;
        let nanos =
            text.split(' ').next().and_then(|first| first.parse().ok()).context("unexpected format of schedstat")?;
        Ok(Duration::from_nanos(nanos))
    }

    /// Its time in user space and in the kernel, in ticks: at a tick all the time since the last one counts as either.
    ///
    /// # Errors
    /// The thread has ended.
    pub(crate) fn ticks(&self) -> anyhow::Result<(u64, u64)> {
        let text = self.stat()?;
        let mut fields = text.split(' ').skip(11).map_while(|field| field.parse().ok());
        fields.next().zip(fields.next()).context("unexpected format of stat")
    }

    fn state(&self) -> anyhow::Result<String> {
        Ok(self.stat()?.chars().take(1).collect())
    }

    /// The fields behind the thread's name, of which the first is its state (proc(5)).
    fn stat(&self) -> anyhow::Result<String> {
        let text = fs::read_to_string(self.0.join("stat")).context("the mix has ended")?;
        Ok(text.rsplit_once(") ").map_or(String::new(), |(_, after)| after.to_owned()))
    }
}
