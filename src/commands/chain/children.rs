//! The nodes of the demonstration, as processes.
//!
//! Each inherits its sockets as descriptors 3 and up and ends when the pipe to its standard input
//! closes, so none outlives this process however that ends. The last lines that each writes to
//! standard error are kept, to be printed when it dies; a chain that stays passes all of them on.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Pid, Signal, kill_process};

use crate::log;
use eddy_node::config::{NodeRole, node_name};
use eddy_node::report::NodeReport;
use eddy_node::runtime::status;

/// Lines of standard error kept per node.
const TAIL: usize = 8;
/// Time of waiting after which a line says so.
pub const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Longest time that a node may take to end.
const END_MAX: Duration = Duration::from_secs(10);

/// A node to start.
pub struct Start {
    pub role: NodeRole,
    /// The entry is 0, the exit the last.
    pub index: usize,
    pub config: PathBuf,
    /// Its status socket.
    pub status: PathBuf,
    /// Its sockets, in the order it takes them.
    pub sockets: Vec<OwnedFd>,
}

/// The processes, the entry first and the exit last. Ends them when dropped.
pub struct Children(Vec<Node>);

struct Node {
    name: String,
    status: PathBuf,
    process: Child,
    lifeline: Option<ChildStdin>,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<()>>,
    tail: Arc<Mutex<VecDeque<String>>>,
}

impl Children {
    /// Starts all nodes with these options of their logs. Log lines go to this process's standard error if `pass_on`.
    ///
    /// # Errors
    /// The system refuses a process.
    pub fn spawn(starts: Vec<Start>, log: &[String], pass_on: bool) -> anyhow::Result<Children> {
        let program = std::env::current_exe().context("cannot find the path of this program")?;
        let mut children = Children(Vec::with_capacity(starts.len()));
        // Kept until the end: while the inherited sockets stay open here, no pipe of a later child can
        // have a descriptor that is about to be replaced in it.
        let mut commands = Vec::with_capacity(starts.len());
        // The exit first, so that a node finds its next hop up.
        for start in starts.into_iter().rev() {
            let name = node_name(start.role, start.index);
            let status = start.status.clone();
            let mut command = command(&program, start, log)?;
            let mut process = command.spawn().with_context(|| format!("cannot start {name}"))?;
            commands.push(command);

            let lifeline = process.stdin.take();
            let stdout = process.stdout.take().map(|mut pipe| {
                std::thread::spawn(move || {
                    let mut text = String::new();
                    // Output that is not text cannot be a report either: `finish` misses it.
                    let _ = pipe.read_to_string(&mut text);
                    text
                })
            });
            let tail = Arc::new(Mutex::new(VecDeque::with_capacity(TAIL)));
            let stderr = process.stderr.take().map(|pipe| {
                let (tail, name) = (tail.clone(), pass_on.then(|| name.clone()));
                std::thread::spawn(move || read_log(BufReader::new(pipe), &tail, name.as_deref()))
            });
            children.0.push(Node { name, status, process, lifeline, stdout, stderr, tail });
        }
        children.0.reverse();
        Ok(children)
    }

    /// Waits until the entry has `wanted` channels open.
    ///
    /// # Errors
    /// A node ends, time is up, or the user interrupts.
    pub fn wait_for_channels(
        &mut self,
        wanted: usize,
        patience: Duration,
        interrupted: &AtomicBool,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        let deadline = started + patience;
        let (entry, mut said) = (self.status_of_entry(), false);
        loop {
            self.check()?;
            if interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            let open = status::ask(&entry).map_or(0, |report| report.channels);
            if open >= wanted as u64 {
                return Ok(());
            }
            if !said && started.elapsed() > SILENCE_MAX {
                said = true;
                let patience = patience.as_secs();
                log::say(format_args!(
                    "waiting for the chain: {open} of {wanted} channels are open; it may take {patience} s"
                ));
            }
            if Instant::now() > deadline {
                let said: Vec<String> = self.0.iter().map(Node::said).collect();
                bail!("{open} of {wanted} channels are open after {} s\n{}", patience.as_secs(), said.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The entry's status socket.
    pub fn status_of_entry(&self) -> PathBuf {
        self.0.first().map(|entry| entry.status.clone()).unwrap_or_default()
    }

    /// A report of every node now; `None` for one that does not answer.
    pub fn reports(&self) -> Vec<Option<NodeReport>> {
        self.0.iter().map(|node| status::ask(&node.status).ok()).collect()
    }

    /// Checks that all nodes run.
    ///
    /// # Errors
    /// One has ended: its name and its last lines.
    pub fn check(&mut self) -> anyhow::Result<()> {
        for node in &mut self.0 {
            if let Some(ended) = node.process.try_wait().with_context(|| node.name.clone())? {
                return Err(node.died(ended));
            }
        }
        Ok(())
    }

    /// Ends all nodes, the entry first, so that nothing is sent to one that has ended, and collects
    /// their last reports.
    ///
    /// # Errors
    /// One fails, or gives no report.
    pub fn finish(mut self) -> anyhow::Result<Vec<NodeReport>> {
        self.0.iter_mut().map(Node::finish).collect()
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for node in &mut self.0 {
            node.lifeline = None;
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        for node in &mut self.0 {
            while matches!(node.process.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            // It may have ended already.
            let _ = node.process.kill();
            let _ = node.process.wait();
        }
    }
}

impl Node {
    fn finish(&mut self) -> anyhow::Result<NodeReport> {
        // It may have ended by itself: its exit status shows that.
        let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
        let deadline = Instant::now() + END_MAX;
        let ended = loop {
            match self.process.try_wait().with_context(|| self.name.clone())? {
                Some(ended) => break ended,
                None if Instant::now() > deadline => {
                    bail!("{} does not end within {} s of SIGTERM\n{}", self.name, END_MAX.as_secs(), self.said());
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        if !ended.success() {
            return Err(self.died(ended));
        }
        let text = self.stdout.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        let last = text.lines().last().unwrap_or_default();
        serde_json::from_str(last).with_context(|| format!("{} ended without a report\n{}", self.name, self.said()))
    }

    fn died(&mut self, ended: ExitStatus) -> anyhow::Error {
        if let Some(reader) = self.stderr.take() {
            let _ = reader.join();
        }
        anyhow!("{} ended with {ended}\n{}", self.name, self.said())
    }

    /// Its last lines, each with its name in front.
    fn said(&self) -> String {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<String> = tail.iter().map(|line| format!("  {}: {line}", self.name)).collect();
        if lines.is_empty() { format!("  {} wrote nothing", self.name) } else { lines.join("\n") }
    }
}

/// The command line and the surroundings of a node.
fn command(program: &Path, start: Start, log: &[String]) -> anyhow::Result<Command> {
    let Start { role, config, sockets, .. } = start;
    let mut command = Command::new(program);
    command.arg(role.name()).arg("--config").arg(config).args(["--lifeline", "--report-json"]).args(log);
    command.env("LISTEN_FDS", sockets.len().to_string());
    command.env_remove("LISTEN_PID").env_remove("LISTEN_FDS_FIRST_FD").env_remove("LISTEN_FDNAMES");
    // A supervisor waits for the chain, not for one of its nodes.
    command.env_remove("NOTIFY_SOCKET");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own, or Ctrl-C would end the nodes before their ledgers are read.
    command.process_group(0);
    let mapped = sockets.into_iter().zip(3..).map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
    command.fd_mappings(mapped.collect()).context("cannot pass sockets to a node")?;
    Ok(command)
}

/// Keeps the last lines of a node's log, and passes them on under its name if it is given.
fn read_log(pipe: impl BufRead, tail: &Mutex<VecDeque<String>>, name: Option<&str>) {
    for line in pipe.lines().map_while(Result::ok) {
        if let Some(name) = name {
            // Standard error may be closed; the node runs on.
            let _ = writeln!(std::io::stderr(), "{}", with_name(name, &line));
        }
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.len() == TAIL {
            tail.pop_front();
        }
        tail.push_back(line);
    }
}

/// A log line with the name of its node: as a field of JSON, or in front of text.
fn with_name(name: &str, line: &str) -> String {
    match line.strip_prefix('{') {
        Some(fields) => format!("{{\"node\":\"{name}\",{fields}"),
        None => format!("{name}: {line}"),
    }
}
