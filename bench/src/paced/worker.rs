//! The mix: the worker of a node in a thread of its own, on a core of its own, between two UDP sockets.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use dataplane::ledger::Ledger;
use dataplane::paced::mix::Mix;
use dataplane::paced::{Command, Settings};
use dataplane::punt::{Punt, PuntSender};
use dataplane::runner::{Clock, Poller, Run, Turns, run, watch};
use dataplane::socket::backend::{Calls, Io};
use dataplane::socket::link::LinkPort;
use dataplane::socket::offload::Offloads;
use dataplane::sys::{self, Waker};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use wire::ids::Side;
use wire::paced::clock::SteadyClock;

use crate::hop::cores::{self, Thread};

/// Name of its thread.
const NAME: &str = "paced-mix";
/// Messages to control that wait at most, or more with many channels: as many as a node's.
const PUNTS: usize = 2048;

/// A mix that does not run yet.
pub(super) struct Idle {
    mix: Mix<LinkPort, LinkPort>,
    sockets: [UdpSocket; 2],
    handle: Handle,
}

/// What others see of a mix.
pub(super) struct Handle {
    /// Its addresses towards the entry and towards the exit.
    pub(super) up: SocketAddr,
    pub(super) down: SocketAddr,
    pub(super) commands: rtrb::Producer<Command>,
    pub(super) punts: rtrb::Consumer<Punt>,
    waker: Arc<Waker>,
    ledger: Arc<Mutex<Ledger>>,
}

/// A mix that runs.
pub(super) struct Running {
    pub(super) handle: Handle,
    stop: Arc<AtomicBool>,
    turns: Arc<Turns>,
    thread: JoinHandle<anyhow::Result<()>>,
    task: Thread,
}

impl Idle {
    /// A mix that takes at most `commands` commands before it runs.
    ///
    /// # Errors
    /// The system refuses a socket.
    pub(super) fn new(
        settings: Settings,
        commands: usize,
        (buffer, offloads): (usize, Offloads),
        (clock, steady): (Clock, SteadyClock),
    ) -> anyhow::Result<Idle> {
        let (commands, worker_commands) = rtrb::RingBuffer::new(commands);
        let (worker_punts, punts) = rtrb::RingBuffer::new(settings.punts_max().max(PUNTS));
        let sockets = [UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?];
        let port = |socket: &UdpSocket, side| {
            socket.set_nonblocking(true)?;
            sys::size_receive_buffer(socket, buffer)?;
            if offloads.gro {
                sys::enable_gro(socket)?;
            }
            let (calls, _) = Calls::new(Io::Mmsg, socket);
            anyhow::Ok(LinkPort::new(socket.try_clone()?, calls, settings.lengths(side), offloads))
        };
        let ports = (port(&sockets[0], Side::Up)?, port(&sockets[1], Side::Down)?);
        let waker = Arc::new(Waker::new()?);
        // Punts need no waking: the generator looks after them between its calls.
        let punt_sender = PuntSender::new(worker_punts, Arc::new(Waker::new()?));
        let rng = ChaCha20Rng::seed_from_u64(1);
        let mix = Mix::new(settings, ports, worker_commands, punt_sender, rng, steady, clock.now());
        let (up, down) = (sockets[0].local_addr()?, sockets[1].local_addr()?);
        let handle = Handle { up, down, commands, punts, waker, ledger: mix.published() };
        Ok(Idle { mix, sockets, handle })
    }

    pub(super) fn handle(&mut self) -> &mut Handle {
        &mut self.handle
    }

    /// Starts it on a core.
    ///
    /// # Errors
    /// The system refuses a thread or the core.
    pub(super) fn start(self, clock: Clock, core: usize) -> anyhow::Result<Running> {
        let Idle { mut mix, sockets, handle } = self;
        let poller = Poller::new()?;
        let waker = handle.waker.clone();
        watch(&poller, &waker, Some(sockets[0].as_fd()), Some(sockets[1].as_fd()))?;
        let (stop, turns) = (Arc::<AtomicBool>::default(), Arc::<Turns>::default());
        let (stopped, counted) = (stop.clone(), turns.clone());
        let (is_there, started) = std::sync::mpsc::channel();
        let work = move || {
            let pinned = cores::pin(core);
            let _ = is_there.send(());
            pinned?;
            let (poller, waker) = (&poller, &*waker);
            let spin = Duration::ZERO;
            run(&mut mix, Run { poller, waker, clock, spin, exact: true, stop: &stopped, turns: &counted });
            anyhow::Ok(())
        };
        let thread = std::thread::Builder::new().name(NAME.into()).spawn(work)?;
        started.recv().context("the mix's thread has ended")?;
        let task = Thread::find(std::process::id(), NAME)?;
        Ok(Running { handle, stop, turns, thread, task })
    }
}

impl Handle {
    /// Gives the mix a command.
    ///
    /// # Errors
    /// It does not take commands any more.
    pub(super) fn command(&mut self, command: Command) -> anyhow::Result<()> {
        self.commands.push(command).map_err(|_| anyhow!("the mix takes no more commands"))
    }

    /// Waits until the mix has taken all commands.
    ///
    /// # Errors
    /// It has not after `limit`.
    pub(super) fn await_taken(&self, limit: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        self.wake();
        while self.commands.slots() < self.commands.buffer().capacity() {
            ensure!(start.elapsed() < limit, "the mix does not take its channels: is the machine very busy?");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Lets it take its commands.
    pub(super) fn wake(&self) {
        self.waker.wake();
    }

    /// Its counters at its last turn.
    pub(super) fn ledger(&self) -> Ledger {
        *self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Processor time of a mix, and its turns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spent {
    pub(super) time: Duration,
    /// As the kernel has counted them by its ticks.
    pub(super) user_ticks: u64,
    pub(super) system_ticks: u64,
    pub(super) turns: (u64, u64),
}

impl Running {
    /// What it has spent so far.
    ///
    /// # Errors
    /// It has ended.
    pub(super) fn spent(&self) -> anyhow::Result<Spent> {
        let (user_ticks, system_ticks) = self.task.ticks()?;
        Ok(Spent { time: self.task.time()?, user_ticks, system_ticks, turns: self.turns.read() })
    }

    /// Ends it, and returns its last counters.
    ///
    /// # Errors
    /// Its thread has failed.
    pub(super) fn finish(self) -> anyhow::Result<Ledger> {
        self.stop.store(true, Ordering::Release);
        self.handle.wake();
        self.thread.join().map_err(|_| anyhow!("the mix's thread panicked"))??;
        Ok(self.handle.ledger())
    }
}
