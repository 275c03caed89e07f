//! The mix: a process of this program's own, as `eddy mix` would be, on a core of its own.
//!
//! Its files are what `eddy init` writes, with wider bounds of admission. It ends when this program does, however
//! that ends: its standard input is a pipe that closes then.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use command_fds::{CommandFdExt, FdMapping};
use control::{Caps, Config, Rate, Timing};
use dataplane::io::offload::Offload;
use dataplane::pool::Mixing;
use eddy_node::config::Loaded;
use eddy_node::init::{self, Files, Plan, PlannedHop};
use eddy_node::report::NodeReport;
use eddy_node::runtime::{node, status};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use wire::cell::Class;

use super::cores::{self, Cores, Thread};

/// Time for a process to begin or to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Links are not renewed while a hop is measured.
const RENEW_AFTER: Duration = Duration::from_secs(3600);

/// What kind of mix.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Size of cells.
    pub class: Class,
    /// When its pools are released.
    pub mixing: Mixing,
    /// Bytes that its sockets hold.
    pub receive_buffer: usize,
    /// Whether cells travel in GSO bursts.
    pub offload: Offload,
    /// Whether those it sends to take bursts.
    pub sink_gro: bool,
    /// More of its command line.
    pub arguments: Vec<String>,
    /// Lines for its configuration.
    pub lines: Vec<String>,
    /// It may use the load's core, too.
    pub unpinned: bool,
    /// More of its environment.
    pub environment: Vec<(String, String)>,
    /// Another build of eddy to measure; this program's own unless set.
    pub program: Option<PathBuf>,
}

/// A running mix. Ends when dropped.
pub struct Mix {
    process: Child,
    lifeline: Option<ChildStdin>,
    /// Its files go with it.
    _dir: TempDir,
    files: Files,
    worker: Thread,
    /// Where cells from entries arrive.
    pub up: SocketAddr,
    /// Where cells from the exit arrive.
    pub down: SocketAddr,
}

impl Mix {
    /// Starts one whose exit is at `exit`.
    ///
    /// # Errors
    /// It does not come up; its own words are on standard error.
    pub fn start(wanted: &Wanted, exit: SocketAddr, cores: Cores) -> anyhow::Result<Mix> {
        let dir = tempfile::Builder::new().prefix("eddy-bench-").tempdir().context("temporary folder")?;
        let sockets = [UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?];
        let (up, down) = (sockets[0].local_addr()?, sockets[1].local_addr()?);
        let mut plan = Plan::new(&[up, exit]);
        plan.class = wanted.class;
        plan.mixing = wanted.mixing;
        plan.offload = wanted.offload;
        plan.receive_buffer = wanted.receive_buffer;
        plan.renew_after_s = RENEW_AFTER.as_secs();
        plan.caps = wide();
        plan.hops[0] = PlannedHop { address: up, down };
        let files = init::write(dir.path(), &plan)?;
        set(&files.hops[0], &wanted.lines)?;

        let program = match &wanted.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().context("the path of this program")?,
        };
        let mut command = Command::new(&program);
        command.args(["mix", "--lifeline", "--report-json", "--config"]).arg(&files.hops[0]).args(&wanted.arguments);
        command.envs(wanted.environment.iter().map(|(key, value)| (key, value)));
        if std::env::var_os("EDDY_LOG").is_none() {
            command.env("EDDY_LOG", "error");
        }
        command.env("LISTEN_FDS", sockets.len().to_string());
        command.env_remove("LISTEN_PID").env_remove("LISTEN_FDS_FIRST_FD").env_remove("LISTEN_FDNAMES");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        // A group of its own: Ctrl-C is for this program, and the end of the pipe for the mix.
        command.process_group(0);
        let mapped = sockets.into_iter().map(OwnedFd::from).zip(3..);
        let mapped = mapped.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
        command.fd_mappings(mapped.collect()).context("descriptors of the mix")?;
        // It inherits the core of the thread that starts it.
        if wanted.unpinned {
            cores::pin_to(&[cores.relay, cores.load])?
        } else {
            cores::pin(cores.relay)?
        }
        let spawned = command.spawn().with_context(|| format!("cannot start {}", program.display()));
        cores::pin(cores.load)?;
        let mut process = spawned?;
        let lifeline = process.stdin.take();
        let worker = match await_worker(&mut process, &status_path(&files)) {
            Ok(worker) => worker,
            Err(why) => {
                let _ = process.kill();
                let _ = process.wait();
                return Err(why);
            }
        };
        Ok(Mix { process, lifeline, _dir: dir, files, worker, up, down })
    }

    /// What control is told at the entry and at the exit of this chain.
    ///
    /// # Errors
    /// The files do not agree.
    pub fn neighbours(&self) -> anyhow::Result<[Config; 2]> {
        let config = |path: &Path| {
            let loaded = Loaded::read(path)?;
            let next = loaded.next_address()?;
            let Loaded { config, chain, keys } = loaded;
            let mut config = node::control_config(&chain, config.position, &config, &keys, next);
            config.caps = wide();
            // Setups wait for each other, not for a clock; and while a burst is sealed nobody here sends anything.
            let (setup_allowance, keepalive_after) = (Duration::from_secs(5), Duration::from_millis(1));
            config.timing = Timing { setup_allowance, keepalive_after, ..config.timing };
            anyhow::Ok(config)
        };
        Ok([config(&self.files.entry)?, config(&self.files.hops[1])?])
    }

    /// Its report now.
    ///
    /// # Errors
    /// It has ended.
    pub fn report(&self) -> anyhow::Result<NodeReport> {
        status::ask(&status_path(&self.files)).context("the mix does not answer")
    }

    /// Processor time of its worker, as soon as that sleeps.
    ///
    /// # Errors
    /// It has ended, or does not come to rest.
    pub fn time_at_rest(&self) -> anyhow::Result<Duration> {
        self.worker.time_at_rest()
    }

    /// Holds it, so that what arrives waits in its socket.
    ///
    /// # Errors
    /// It has ended.
    pub fn hold(&self, held: bool) -> anyhow::Result<()> {
        let signal = if held { Signal::STOP } else { Signal::CONT };
        kill_process(Pid::from_child(&self.process), signal).context("the mix")
    }
}

impl Drop for Mix {
    fn drop(&mut self) {
        let _ = self.hold(false);
        self.lifeline = None;
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        // Ended already, or beyond asking.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Puts lines into a configuration, in place of those that set the same keys.
fn set(config: &Path, lines: &[String]) -> anyhow::Result<()> {
    let key = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
    let keys: Vec<String> = lines.iter().map(|line| key(line)).collect();
    let text = std::fs::read_to_string(config)?;
    let kept = text.lines().filter(|line| !keys.contains(&key(line)));
    let all: Vec<&str> = lines.iter().map(String::as_str).chain(kept).collect();
    Ok(std::fs::write(config, all.join("\n") + "\n")?)
}

fn status_path(files: &Files) -> PathBuf {
    files.hops[0].with_extension("sock")
}

/// Waits until the mix answers.
fn await_worker(process: &mut Child, status: &Path) -> anyhow::Result<Thread> {
    let deadline = Instant::now() + PATIENCE;
    while status::ask(status).is_err() {
        if let Some(ended) = process.try_wait()? {
            bail!("the mix ended with {ended}");
        }
        if Instant::now() > deadline {
            bail!("the mix does not come up within {} s", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Thread::find(process.id(), "worker")
}

/// Bounds that let a hundred thousand channels in as fast as they can be made.
fn wide() -> Caps {
    let rate = Rate { per_second: 1_000_000, burst: 1_000_000 };
    Caps {
        links: 2048,
        links_per_address: 16,
        half_open: 1 << 14,
        half_open_per_entry_link: 1 << 14,
        channels: 1 << 18,
        channels_per_entry_link: 1 << 18,
        setups_per_entry_link: rate,
        setups: rate,
        handshakes: rate,
        ..Caps::default()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn lines_take_the_place_of_those_that_set_the_same_keys() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mix1.toml");
        std::fs::write(&file, "role = \"mix\"\nreceive_buffer = 8   # bytes\n# cores = [0]\n[caps]\nlinks = 4\n")
            .unwrap();
        super::set(&file, &["receive_buffer = 4".to_owned(), "cores = [1]".to_owned()]).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text, "receive_buffer = 4\ncores = [1]\nrole = \"mix\"\n# cores = [0]\n[caps]\nlinks = 4\n");
    }
}
