//! The blaster and the sink, in one thread: a burst leaves memory, and what comes of it is counted.
//!
//! The sink takes bursts (unless told not to) and copies only the first cell of each: its work is not measured. A look
//! at that one cell now and then shows that what arrives is what was sent. Never more is under way than the relay's
//! receive buffer holds, so nothing need be lost; what is lost all the same is counted.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::bail;
use dataplane::sys::{self, MESSAGES_MAX, Message};

use super::burst::Burst;

/// Once all is sent, nothing more is expected after such a silence.
const SILENCE: Duration = Duration::from_secs(3);
/// While there is more to send, whoever should send it on may be kept waiting by the machine, but not for ever.
const PATIENCE: Duration = Duration::from_secs(15);
/// Bursts of one call: the sink is looked at in between.
const BURSTS: usize = 8;
/// Bursts of a paced sender at most: `eddy-bench load` does the same.
const BURSTS_A_SECOND: f64 = 50_000.0;
/// Longest cell.
const LEN_MAX: usize = wire::cell::MAX_CELL_LEN;

/// How a burst is to be sent.
pub struct Blast<'a> {
    /// The cells.
    pub burst: &'a Burst,
    /// So many of them.
    pub cells: usize,
    /// The sockets of the neighbours that they come from.
    pub from: &'a [&'a UdpSocket],
    /// The relay.
    pub to: SocketAddr,
    /// In bursts, or one by one.
    pub gso: bool,
    /// Most cells under way.
    pub window: usize,
    /// So many a second, instead of all that the window admits.
    pub pace: Option<f64>,
}

/// What became of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Played {
    /// Cells that the kernel took.
    pub sent: usize,
    /// Datagrams of a cell's length that arrived.
    pub arrived: usize,
    /// From the first that left to the last that arrived.
    pub took: Duration,
}

impl Blast<'_> {
    /// Plays the burst and waits for what comes of it. `look` is given a cell of each receive call.
    ///
    /// # Errors
    /// A socket fails.
    pub fn play(&self, sink: &mut Sink, look: &mut dyn FnMut(&mut [u8])) -> anyhow::Result<Played> {
        self.play_after(0, sink, look, &mut || Ok(()))
    }

    /// The same with so many cells sent before `go`.
    ///
    /// # Errors
    /// A socket fails, or `go`.
    pub fn play_after(
        &self,
        head: usize,
        sink: &mut Sink,
        look: &mut dyn FnMut(&mut [u8]),
        go: &mut dyn FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Played> {
        let mut played = Played::default();
        while played.sent < head {
            played.sent += self.send(played.sent, head)?;
        }
        let start = Instant::now();
        let mut last = start;
        go()?;
        while played.arrived < self.cells {
            let most = self.cells.min(played.arrived.saturating_add(self.window)).min(self.due(start.elapsed()));
            if played.sent < most {
                played.sent += self.send(played.sent, most)?;
            }
            let arrived = sink.drain(look)?;
            played.arrived += arrived;
            if arrived > 0 {
                last = Instant::now();
            } else if played.sent == self.cells && last.elapsed() > SILENCE {
                break;
            } else if last.elapsed() > PATIENCE {
                bail!("{} of {} cells on their way, and none arrives", played.sent - played.arrived, self.cells);
            }
        }
        played.took = last - start;
        Ok(played)
    }

    /// Cells that are due after a time: at a high rate several at once, for fast senders send in bursts.
    fn due(&self, after: Duration) -> usize {
        let Some(pace) = self.pace else { return usize::MAX };
        let due = (after.as_secs_f64() * pace) as usize;
        let segments = (pace / BURSTS_A_SECOND).max(1.0) as usize;
        if due >= self.cells { due } else { due - due % segments }
    }

    /// Sends from cell `next` on, to before `end`. Cells that went.
    fn send(&self, next: usize, end: usize) -> anyhow::Result<usize> {
        let (to, burst) = (self.to, self.burst);
        let len = burst.cell_len();
        let peer = burst.peer(next);
        let own = (next..end).take_while(|cell| burst.peer(*cell) == peer);
        let sent = if self.gso {
            let own = own.take(BURSTS * burst.burst_max()).count();
            let cells = burst.cells(next..next + own);
            let bursts = cells.chunks(burst.burst_max() * len);
            let messages = bursts.clone().map(|_| Message { to, pieces: 1, segment: Some(len as u16) });
            let sent = sys::send(self.from[peer], messages, bursts.clone());
            sent.map(|sent| bursts.take(sent).map(|burst| burst.len() / len).sum())
        } else {
            let own = own.take(MESSAGES_MAX).count();
            let cells = burst.cells(next..next + own);
            let messages = (0..own).map(|_| Message { to, pieces: 1, segment: None });
            sys::send(self.from[peer], messages, cells.chunks(len))
        };
        match sent {
            Ok(cells) => Ok(cells),
            Err(why) if matches!(why.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
            Err(why) => Err(why.into()),
        }
    }
}

/// Counts what arrives.
pub struct Sink {
    socket: UdpSocket,
    cell_len: usize,
    buffers: Vec<[u8; LEN_MAX]>,
}

impl Sink {
    /// For datagrams of one length, in bursts if the socket joins them.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(socket: &UdpSocket, cell_len: usize) -> io::Result<Sink> {
        let socket = socket.try_clone()?;
        socket.set_nonblocking(true)?;
        Ok(Sink { socket, cell_len, buffers: vec![[0; LEN_MAX]; MESSAGES_MAX] })
    }

    /// What waits; datagrams of a cell's length among it.
    fn drain(&mut self, look: &mut dyn FnMut(&mut [u8])) -> io::Result<usize> {
        let (mut cells, mut first) = (0, None);
        let Sink { socket, cell_len, buffers } = self;
        let buffers_in = buffers.iter_mut().map(|buffer| &mut buffer[..*cell_len]);
        let received = sys::recv(&*socket, buffers_in, 1, |i, message| {
            let step = message.segment.unwrap_or(message.len);
            if step == *cell_len {
                cells += message.len / step;
                first.get_or_insert(i);
            }
        });
        match received {
            Err(why) if !matches!(why.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Err(why),
            _ => {
                if let Some(first) = first {
                    look(&mut buffers[first][..*cell_len]);
                }
                Ok(cells)
            }
        }
    }
}
