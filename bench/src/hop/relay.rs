//! Relays without cryptography, which only move the same bytes: what a mix is compared with.
//!
//! Each is a thread on the mix's core. Its cost is its own processor time from the first packet to the last.
//!
//! ```text
//! Single    recvfrom, sendto: one packet per call, as most UDP programs do
//! Mmsg      recvmmsg, sendmmsg of 64
//! Gso       UDP_GRO in, one packet per buffer; buffers shuffled; UDP_SEGMENT out
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

use super::cores;
use super::sealed::burst_max;

/// Cells that a receive call of the GSO relay should return, as in the mix.
const CELLS_WANTED: usize = 256;
/// Interval at which a sleeping relay checks for its end.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RelayKind {
    Single,
    Mmsg,
    Gso,
}

/// Work and cost of a relay.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RelayCost {
    /// Packets sent.
    pub(crate) packets: usize,
    /// Processor time.
    pub(crate) time: Duration,
    /// Receive calls, and those of them that found nothing, so that the relay slept.
    pub(crate) turns: (u64, u64),
}

/// A relay, which waits for [`Relay::go`].
pub(crate) struct Relay {
    go: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<RelayCost>>,
    /// Its address.
    pub(crate) at: SocketAddr,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct RelayOptions {
    pub(crate) kind: RelayKind,
    /// Destination of its packets.
    pub(crate) to: SocketAddr,
    /// Bytes of a packet in, and out.
    pub(crate) lens: (usize, usize),
    /// Number of packets to expect.
    pub(crate) packets: usize,
    /// Bytes of its receive buffer.
    pub(crate) buffer: usize,
    pub(crate) core: usize,
}

impl Relay {
    /// Binds its socket and starts its thread.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn start(options: RelayOptions) -> anyhow::Result<Relay> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let at = socket.local_addr()?;
        sys::size_receive_buffer(&socket, options.buffer)?;
        socket.set_nonblocking(true)?;
        if options.kind == RelayKind::Gso {
            sys::enable_gro(&socket)?;
        }
        let go = Arc::new(AtomicBool::new(false));
        let stop = Arc::new(AtomicBool::new(false));
        let (may_go, stopped) = (go.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("relay".into()).spawn(move || {
            cores::pin(options.core)?;
            let mut run = Run { socket, options, stop: stopped, cost: RelayCost::default() };
            while !may_go.load(Ordering::Acquire) {
                std::thread::park();
            }
            match options.kind {
                RelayKind::Single => run.single(),
                RelayKind::Mmsg => run.mmsg(),
                RelayKind::Gso => run.gso(),
            }?;
            Ok(run.cost)
        })?;
        Ok(Relay { go, stop, thread, at })
    }

    /// Lets it begin.
    pub(crate) fn go(&self) {
        self.go.store(true, Ordering::Release);
        self.thread.thread().unpark();
    }

    /// Ends it.
    ///
    /// # Errors
    /// A socket failed.
    pub(crate) fn finish(self) -> anyhow::Result<RelayCost> {
        self.stop.store(true, Ordering::Release);
        self.go();
        self.thread.join().map_err(|_| anyhow::anyhow!("the relay's thread panicked"))?.context("a relay failed")
    }
}

struct Run {
    socket: UdpSocket,
    options: RelayOptions,
    stop: Arc<AtomicBool>,
    cost: RelayCost,
}

impl Run {
    /// Calls until there is something to receive. `None` once all packets were sent, or the relay should stop.
    fn next<T>(&mut self, mut call: impl FnMut(&UdpSocket) -> io::Result<T>) -> io::Result<Option<T>> {
        while self.cost.packets < self.options.packets {
            self.cost.turns.0 += 1;
            match call(&self.socket) {
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {
                    self.cost.turns.1 += 1;
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
            let out = len.min(self.options.lens.1);
            self.cost.packets += usize::from(self.socket.send_to(&buffer[..out], self.options.to).is_ok());
        }
        self.cost.time = cores::own_time() - start;
        Ok(())
    }

    fn mmsg(&mut self) -> io::Result<()> {
        let (to, (len_in, len_out)) = (self.options.to, self.options.lens);
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
            self.cost.packets += got;
        }
        self.cost.time = cores::own_time() - start;
        Ok(())
    }

    fn gso(&mut self) -> io::Result<()> {
        let (to, (len_in, len_out)) = (self.options.to, self.options.lens);
        let (per_message, per_burst) = (burst_max(len_in), burst_max(len_out));
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let most = MESSAGES_MAX.min(sys::PIECES_MAX / per_message);
        let mut buffers = vec![[0u8; wire::cell::MAX_CELL_LEN]; most * per_message];
        let mut order: Vec<usize> = Vec::with_capacity(buffers.len());
        // Messages per call: few where GRO combines packets, many where it does not.
        let mut messages = CELLS_WANTED.div_ceil(per_message);
        let start = cores::own_time();
        loop {
            order.clear();
            let Some(got) = self.next(|socket| {
                let free = buffers.iter_mut().take(messages * per_message).map(|buffer| &mut buffer[..len_in]);
                sys::recv(socket, free, per_message, |message, got| {
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
                let sizes = order[at..].chunks(per_burst).map(<[usize]>::len);
                let bursts =
                    sizes.clone().map(|pieces| Message { to, pieces, segment: (pieces > 1).then_some(len_out as u16) });
                let pieces = order[at..].iter().map(|i| &buffers[*i][..len_out]);
                let sent = sys::send(&self.socket, bursts, pieces)?;
                at += sizes.take(sent).sum::<usize>();
            }
            self.cost.packets += order.len();
            messages = CELLS_WANTED.div_ceil((order.len() / got).max(1)).min(most);
        }
        self.cost.time = cores::own_time() - start;
        Ok(())
    }
}
