//! The yardsticks: relays without any cryptography, which do nothing but move the same bytes.
//!
//! Each is a thread on the mix's core; what it takes is its own processor time from the first packet to the last.
//!
//! ```text
//! Single    recvfrom, sendto: one packet a call, as most UDP programs do
//! Mmsg      recvmmsg, sendmmsg of 64
//! Offload   UDP_GRO in, scattered one packet per buffer; buffers shuffled; UDP_SEGMENT out, gathered
//! ```

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use dataplane::sys::{self, MESSAGES_MAX, Message};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::burst::burst_max;
use super::cores;

/// Cells that a receive call of the offload relay is to bring: what the mix wants of one.
const CELLS_WANTED: usize = 256;
/// How often a relay that sleeps looks whether it is done.
const LOOK: Duration = Duration::from_millis(20);

/// Which yardstick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Single,
    Mmsg,
    Offload,
}

/// What a relay took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Took {
    /// Packets that it sent.
    pub packets: usize,
    /// Its processor time.
    pub time: Duration,
    /// Receive calls, and those after which nothing was there and it slept.
    pub turns: (u64, u64),
}

/// A relay to be started. It waits for the word.
pub struct Relay {
    go: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Took>>,
    /// Where it receives.
    pub at: SocketAddr,
}

/// What a relay is made with.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Which.
    pub kind: Kind,
    /// Where its packets go.
    pub to: SocketAddr,
    /// Bytes of a packet that comes, and of one that leaves.
    pub lens: (usize, usize),
    /// So many packets are expected.
    pub packets: usize,
    /// Bytes that its socket is to hold.
    pub buffer: usize,
    /// The core that it stays on.
    pub core: usize,
}

impl Relay {
    /// Binds its socket and starts its thread.
    ///
    /// # Errors
    /// The system refuses.
    pub fn start(plan: Plan) -> anyhow::Result<Relay> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let at = socket.local_addr()?;
        sys::size_receive_buffer(&socket, plan.buffer)?;
        socket.set_nonblocking(true)?;
        if plan.kind == Kind::Offload {
            sys::enable_gro(&socket)?;
        }
        let go = Arc::new(AtomicBool::new(false));
        let stop = Arc::new(AtomicBool::new(false));
        let (told, stopped) = (go.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("relay".into()).spawn(move || {
            cores::pin(plan.core)?;
            let mut run = Run { socket, plan, stop: stopped, took: Took::default() };
            while !told.load(Ordering::Acquire) {
                std::thread::park();
            }
            match plan.kind {
                Kind::Single => run.single(),
                Kind::Mmsg => run.mmsg(),
                Kind::Offload => run.offload(),
            }?;
            Ok(run.took)
        })?;
        Ok(Relay { go, stop, thread, at })
    }

    /// Lets it begin.
    pub fn go(&self) {
        self.go.store(true, Ordering::Release);
        self.thread.thread().unpark();
    }

    /// Ends it: all that it sent has arrived.
    ///
    /// # Errors
    /// A socket failed.
    pub fn finish(self) -> anyhow::Result<Took> {
        self.stop.store(true, Ordering::Release);
        self.go();
        self.thread.join().map_err(|_| anyhow::anyhow!("the relay's thread died"))?.context("relay")
    }
}

/// A relay at work.
struct Run {
    socket: UdpSocket,
    plan: Plan,
    stop: Arc<AtomicBool>,
    took: Took,
}

impl Run {
    /// What a call that would not wait brought; none once all is done, or it is stopped.
    fn next<T>(&mut self, mut call: impl FnMut(&UdpSocket) -> io::Result<T>) -> io::Result<Option<T>> {
        while self.took.packets < self.plan.packets {
            self.took.turns.0 += 1;
            match call(&self.socket) {
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {
                    self.took.turns.1 += 1;
                    let look = Timespec { tv_sec: 0, tv_nsec: LOOK.as_nanos() as i64 };
                    while poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&look))? == 0 {
                        if self.stop.load(Ordering::Acquire) {
                            return Ok(None);
                        }
                    }
                }
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                got => return got.map(Some),
            }
        }
        Ok(None)
    }

    fn single(&mut self) -> io::Result<()> {
        let mut buffer = [0; wire::cell::MAX_CELL_LEN];
        let start = cores::own_time();
        while let Some((len, _)) = self.next(|socket| socket.recv_from(&mut buffer))? {
            let out = len.min(self.plan.lens.1);
            self.took.packets += usize::from(self.socket.send_to(&buffer[..out], self.plan.to).is_ok());
        }
        self.took.time = cores::own_time() - start;
        Ok(())
    }

    fn mmsg(&mut self) -> io::Result<()> {
        let (to, (len_in, len_out)) = (self.plan.to, self.plan.lens);
        let mut buffers = vec![[0u8; wire::cell::MAX_CELL_LEN]; MESSAGES_MAX];
        let start = cores::own_time();
        while let Some(got) =
            self.next(|socket| sys::recv(socket, buffers.iter_mut().map(|b| &mut b[..len_in]), 1, |_, _| {}))?
        {
            let mut at = 0;
            while at < got {
                let messages = (at..got).map(|_| Message { to, pieces: 1, segment: None });
                at += sys::send(&self.socket, messages, buffers[at..got].iter().map(|b| &b[..len_out]))?;
            }
            self.took.packets += got;
        }
        self.took.time = cores::own_time() - start;
        Ok(())
    }

    fn offload(&mut self) -> io::Result<()> {
        let (to, (len_in, len_out)) = (self.plan.to, self.plan.lens);
        let (per_message, segments) = (burst_max(len_in), burst_max(len_out));
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let most = MESSAGES_MAX.min(sys::PIECES_MAX / per_message);
        let mut buffers = vec![[0u8; wire::cell::MAX_CELL_LEN]; most * per_message];
        let mut order: Vec<usize> = Vec::with_capacity(buffers.len());
        // As many messages a call as bring what is wanted: few where bursts come, many where lone packets do.
        let mut messages = CELLS_WANTED.div_ceil(per_message);
        let start = cores::own_time();
        loop {
            order.clear();
            let Some(got) = self.next(|socket| {
                let offered = buffers.iter_mut().take(messages * per_message).map(|buffer| &mut buffer[..len_in]);
                sys::recv(socket, offered, per_message, |message, got| {
                    let cells = (got.len / len_in).min(per_message);
                    order.extend((0..cells).map(|cell| message * per_message + cell));
                })
            })?
            else {
                break;
            };
            order.shuffle(&mut rng);
            let mut at = 0;
            while at < order.len() {
                let sizes = order[at..].chunks(segments).map(<[usize]>::len);
                let bursts =
                    sizes.clone().map(|pieces| Message { to, pieces, segment: (pieces > 1).then_some(len_out as u16) });
                let pieces = order[at..].iter().map(|i| &buffers[*i][..len_out]);
                let sent = sys::send(&self.socket, bursts, pieces)?;
                at += sizes.take(sent).sum::<usize>();
            }
            self.took.packets += order.len();
            messages = CELLS_WANTED.div_ceil((order.len() / got).max(1)).min(most);
        }
        self.took.time = cores::own_time() - start;
        Ok(())
    }
}
