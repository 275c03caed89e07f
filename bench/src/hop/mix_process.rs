//! The mix: this program as `eddy mix`, in a process of its own on a core of its own.
//!
//! Its files are those of `eddy init`, with wider admission limits. It ends when this program ends: its standard
//! input is a pipe, which closes then.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use command_fds::{CommandFdExt, FdMapping};
use control::{Caps, Config, Rate, Timing, TrustSetup};
use dataplane::socket::offload::Offload;
use dataplane::stage::pool::Mixing;
use eddy_node::config::Loaded;
use eddy_node::init::{self, Files, Plan, PlannedHop};
use eddy_node::report::NodeReport;
use eddy_node::runtime::{node, status};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use wire::cell::Class;

use super::cores::{self, Cores, Thread};
use crate::chain::end_process;

/// Time limits for the start and the end of the process.
const START_MAX: Duration = Duration::from_secs(20);
const END_MAX: Duration = Duration::from_secs(5);
/// Links are not renewed while a hop is measured.
const RENEW_AFTER: Duration = Duration::from_secs(3600);

#[derive(Clone, Debug)]
pub(crate) struct MixOptions {
    pub(crate) class: Class,
    pub(crate) mixing: Mixing,
    /// Bytes of its receive buffers.
    pub(crate) receive_buffer: usize,
    pub(crate) offload: Offload,
    /// The sockets that it sends to use GRO.
    pub(crate) sink_gro: bool,
    /// More arguments of its command line.
    pub(crate) arguments: Vec<String>,
    /// Lines for its configuration.
    pub(crate) lines: Vec<String>,
    /// It keeps the default limit of handshakes.
    pub(crate) limits_handshakes: bool,
    /// It may also use the core of the load.
    pub(crate) unpinned: bool,
    /// More environment variables.
    pub(crate) environment: Vec<(String, String)>,
    /// Another build of eddy, instead of this program.
    pub(crate) program: Option<PathBuf>,
}

/// A running mix. It ends when this is dropped.
pub(crate) struct MixProcess {
    process: Child,
    lifeline: Option<ChildStdin>,
    /// Its files, which are deleted with it.
    _dir: TempDir,
    files: Files,
    worker: Thread,
    /// Address for cells from entries.
    pub(crate) up: SocketAddr,
    /// Address for cells from the exit.
    pub(crate) down: SocketAddr,
}

impl MixProcess {
    /// Starts a mix whose exit is at `exit`.
    ///
    /// # Errors
    /// The mix does not start; its own messages are on standard error.
    pub(crate) fn start(options: &MixOptions, exit: SocketAddr, cores: Cores) -> anyhow::Result<MixProcess> {
        let dir =
            tempfile::Builder::new().prefix("eddy-bench-").tempdir().context("cannot create a temporary folder")?;
        let sockets = [UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?];
        let (up, down) = (sockets[0].local_addr()?, sockets[1].local_addr()?);
        let mut plan = Plan::new(&[up, exit]);
        plan.class = options.class;
        plan.mixing = options.mixing;
        plan.offload = options.offload;
        plan.receive_buffer = options.receive_buffer;
        plan.renew_after_s = RENEW_AFTER.as_secs();
        plan.caps = wide_caps();
        if options.limits_handshakes {
            plan.caps.handshakes = Caps::default().handshakes;
        }
        plan.hops[0] = PlannedHop { address: up, down };
        let files = init::write(dir.path(), &plan)?;
        let mut lines = options.lines.clone();
        // The mix is stopped while its receive buffer fills, and must not drop what it finds there. A program of
        // another build may not know the key.
        lines.extend(options.program.is_none().then(|| "max_age_ms = 60000".to_owned()));
        set_lines(&files.hops[0], &lines)?;

        let program = match &options.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().context("cannot find the path of this program")?,
        };
        let mut command = Command::new(&program);
        command.args(["mix", "--lifeline", "--report-json", "--config"]).arg(&files.hops[0]).args(&options.arguments);
        command.envs(options.environment.iter().map(|(key, value)| (key, value)));
        if std::env::var_os("EDDY_LOG").is_none() {
            command.env("EDDY_LOG", "error");
        }

        command.env("LISTEN_FDS", sockets.len().to_string());
        command.env_remove("LISTEN_PID").env_remove("LISTEN_FDS_FIRST_FD").env_remove("LISTEN_FDNAMES");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        // A process group of its own: Ctrl-C must not end the mix before this program does.
        command.process_group(0);
        let mapped = sockets.into_iter().map(OwnedFd::from).zip(3..);
        let mapped = mapped.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
        command.fd_mappings(mapped.collect()).context("cannot pass sockets to the mix")?;

        // The mix inherits the core of the thread that starts it.
        if options.unpinned {
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
        Ok(MixProcess { process, lifeline, _dir: dir, files, worker, up, down })
    }

    /// Configurations of `control` for the entry and the exit of this chain, and what they start with.
    ///
    /// # Errors
    /// The files cannot be read.
    pub(crate) fn neighbours(&self) -> anyhow::Result<[(Config, TrustSetup); 2]> {
        let config = |path: &Path| {
            let loaded = Loaded::read(path)?;
            let class = loaded.first_class();
            let next = class.next_contact().map_or(Ok(None), |next| class.next_address(next))?;
            let mut config = node::control_config(&class, next);
            config.caps = wide_caps();
            // A setup waits for those before it, and nothing is sent here while cells are sealed.
            let (setup_allowance, keepalive_after) = (Duration::from_secs(5), Duration::from_millis(1));
            config.timing = Timing { setup_allowance, keepalive_after, ..config.timing };
            anyhow::Ok((config, loaded.trust))
        };
        Ok([config(&self.files.entry)?, config(&self.files.hops[1])?])
    }

    /// Its public Noise static.
    ///
    /// # Errors
    /// Its files cannot be read.
    pub(crate) fn noise(&self) -> anyhow::Result<[u8; 32]> {
        let loaded = Loaded::read(&self.files.entry)?;
        Ok(loaded.trust.view.descriptor(1).context("the chain has a mix")?.noise)
    }

    /// # Errors
    /// The mix has ended.
    pub(crate) fn report(&self) -> anyhow::Result<NodeReport> {
        status::ask(&status_path(&self.files)).context("the mix does not answer")
    }

    /// Processor time of its worker, as soon as that sleeps.
    ///
    /// # Errors
    /// The mix has ended, or its worker does not go to sleep.
    pub(crate) fn time_at_rest(&self) -> anyhow::Result<Duration> {
        self.worker.time_at_rest()
    }

    /// Stops or continues the process. While it is stopped, cells wait in its receive buffer.
    ///
    /// # Errors
    /// The mix has ended.
    pub(crate) fn set_stopped(&self, stopped: bool) -> anyhow::Result<()> {
        let signal = if stopped { Signal::STOP } else { Signal::CONT };
        kill_process(Pid::from_child(&self.process), signal).context("cannot signal the mix")
    }
}

impl Drop for MixProcess {
    fn drop(&mut self) {
        let _ = self.set_stopped(false);
        self.lifeline = None;
        end_process(&mut self.process, END_MAX);
    }
}

/// Puts lines into a configuration file, in place of those that set the same keys.
pub(crate) fn set_lines(config: &Path, lines: &[String]) -> anyhow::Result<()> {
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

/// Waits until the mix answers, and returns its worker thread.
fn await_worker(process: &mut Child, status: &Path) -> anyhow::Result<Thread> {
    let deadline = Instant::now() + START_MAX;
    while status::ask(status).is_err() {
        if let Some(ended) = process.try_wait()? {
            bail!("the mix ended while starting ({ended})");
        }
        if Instant::now() > deadline {
            bail!("the mix did not start within {} s", START_MAX.as_secs());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Thread::find(process.id(), "worker")
}

/// Admission limits for a hundred thousand channels at once.
pub(crate) fn wide_caps() -> Caps {
    let rate = Rate { per_second: 1_000_000, burst: 1_000_000 };
    Caps {
        links: 2048,
        half_open: 1 << 14,
        half_open_per_entry_link: 1 << 14,
        channels: 1 << 18,
        channels_per_entry_link: 1 << 18,
        channels_per_prefix: 1 << 18,
        setups_per_entry_link: rate,
        // A node refuses a rate whose setups of an epoch it could not remember.
        setups: Rate { per_second: 10_000, burst: 1 << 13 },
        handshakes: rate,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn set_lines_replace_those_with_the_same_keys() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mix1.toml");
        std::fs::write(&file, "role = \"mix\"\nreceive_buffer = 8   # bytes\n# cores = [0]\n[caps]\nlinks = 4\n")
            .unwrap();
        super::set_lines(&file, &["receive_buffer = 4".to_owned(), "cores = [1]".to_owned()]).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text, "receive_buffer = 4\ncores = [1]\nrole = \"mix\"\n# cores = [0]\n[caps]\nlinks = 4\n");
    }
}
