//! Generator and sink, in one thread: sends sealed cells and counts those that arrive.
//!
//! The sink uses GRO (unless `--no-sink-gro`) and copies only the first cell of each message, to take little time.
//! One cell of each receive call is checked. There are never more cells in flight than fit the relay's receive
//! buffer; cells that are lost nevertheless are counted.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::bail;
use dataplane::sys::{self, MESSAGES_MAX, Message};

use super::sealed::{SealedCells, burst_max};

/// After the last cell was sent, the end waits this long for the next one to arrive.
const SILENCE: Duration = Duration::from_secs(3);
/// Before that, the relay may be delayed by the machine for this long.
const STALL_TIMEOUT: Duration = Duration::from_secs(15);
/// GSO bursts of one send call: between calls the sink receives.
const BURSTS_PER_CALL: usize = 8;
/// Most GSO bursts per second of a paced generator, as in `eddy-bench load`.
const BURSTS_PER_S: f64 = 50_000.0;
/// Longest cell.
const LEN_MAX: usize = wire::cell::MAX_CELL_LEN;

/// Sends sealed cells.
pub(crate) struct Generator<'a> {
    pub(crate) sealed: &'a SealedCells,
    /// Number of cells to send.
    pub(crate) cells: usize,
    /// Sockets of the neighbours, by entry.
    pub(crate) from: &'a [&'a UdpSocket],
    /// The mix or relay.
    pub(crate) to: SocketAddr,
    /// In GSO bursts, instead of one by one.
    pub(crate) gso: bool,
    /// Most cells in flight.
    pub(crate) window: usize,
    /// Cells per second; `None` for as many as the window admits.
    pub(crate) pace: Option<f64>,
}

/// Counts of the cells.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Delivery {
    /// Cells that the kernel accepted.
    pub(crate) sent: usize,
    /// Datagrams of a cell's length that arrived.
    pub(crate) arrived: usize,
    /// From the first cell that was sent to the last that arrived.
    pub(crate) took: Duration,
}

impl Generator<'_> {
    /// Sends the cells and waits until they arrive. `check` gets one cell of each receive call.
    ///
    /// # Errors
    /// A socket fails, or no cell arrives for a long time.
    pub(crate) fn run(&self, sink: &mut Sink, check: &mut dyn FnMut(&mut [u8])) -> anyhow::Result<Delivery> {
        self.run_after(0, sink, check, &mut || Ok(()))
    }

    /// As [`Generator::run`], with the first `head` cells sent before `start` is called.
    ///
    /// # Errors
    /// A socket or `start` fails, or no cell arrives for a long time.
    pub(crate) fn run_after(
        &self,
        head: usize,
        sink: &mut Sink,
        check: &mut dyn FnMut(&mut [u8]),
        start: &mut dyn FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Delivery> {
        let mut delivery = Delivery::default();
        while delivery.sent < head {
            delivery.sent += self.send(delivery.sent, head)?;
        }
        let began = Instant::now();
        let mut last = began;
        start()?;
        while delivery.arrived < self.cells {
            let most = self.cells.min(delivery.arrived.saturating_add(self.window)).min(self.due(began.elapsed()));
            if delivery.sent < most {
                delivery.sent += self.send(delivery.sent, most)?;
            }
            let arrived = sink.drain(check)?;
            delivery.arrived += arrived;
            if arrived > 0 {
                last = Instant::now();
            } else if delivery.sent == self.cells && last.elapsed() > SILENCE {
                break;
            } else if last.elapsed() > STALL_TIMEOUT {
                bail!(
                    "{} of {} cells are in flight, and none arrived for {} s",
                    delivery.sent - delivery.arrived,
                    self.cells,
                    STALL_TIMEOUT.as_secs()
                );
            }
        }
        delivery.took = last - began;
        Ok(delivery)
    }

    /// Cells that are due after a time. At a high rate several become due at once, since fast programs send GSO bursts.
    fn due(&self, after: Duration) -> usize {
        let Some(pace) = self.pace else { return usize::MAX };
        let due = (after.as_secs_f64() * pace) as usize;
        let burst = (pace / BURSTS_PER_S).max(1.0) as usize;
        if due >= self.cells { due } else { due - due % burst }
    }

    /// Sends from cell `next` on, at most up to `end`. Returns how many cells the kernel accepted.
    fn send(&self, next: usize, end: usize) -> anyhow::Result<usize> {
        let (to, sealed) = (self.to, self.sealed);
        let len = sealed.cell_len();
        let entry = sealed.entry(next);
        let own = (next..end).take_while(|cell| sealed.entry(*cell) == entry);
        let sent = if self.gso {
            let burst_max = burst_max(len);
            let own = own.take(BURSTS_PER_CALL * burst_max).count();
            let bursts = sealed.cells(next..next + own).chunks(burst_max * len);
            let messages = bursts.clone().map(|_| Message { to, pieces: 1, segment: Some(len as u16) });
            let sent = sys::send(self.from[entry], messages, bursts.clone());
            sent.map(|sent| bursts.take(sent).map(|burst| burst.len() / len).sum())
        } else {
            let own = own.take(MESSAGES_MAX).count();
            let cells = sealed.cells(next..next + own).chunks(len);
            let messages = (0..own).map(|_| Message { to, pieces: 1, segment: None });
            sys::send(self.from[entry], messages, cells)
        };
        match sent {
            Ok(cells) => Ok(cells),
            Err(why) if matches!(why.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
            Err(why) => Err(why.into()),
        }
    }
}

/// Counts the cells that arrive.
pub(crate) struct Sink {
    socket: UdpSocket,
    cell_len: usize,
    buffers: Vec<[u8; LEN_MAX]>,
}

impl Sink {
    /// For datagrams of one length, with GRO if the socket uses it.
    ///
    /// # Errors
    /// No descriptor is available.
    pub(crate) fn new(socket: &UdpSocket, cell_len: usize) -> io::Result<Sink> {
        let socket = socket.try_clone()?;
        socket.set_nonblocking(true)?;
        Ok(Sink { socket, cell_len, buffers: vec![[0; LEN_MAX]; MESSAGES_MAX] })
    }

    /// Receives once. Returns the number of datagrams of a cell's length.
    fn drain(&mut self, check: &mut dyn FnMut(&mut [u8])) -> io::Result<usize> {
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
                    check(&mut buffers[first][..*cell_len]);
                }
                Ok(cells)
            }
        }
    }
}
