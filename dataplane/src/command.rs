//! Control's end of the rings to the workers.
//!
//! A node has one worker, or one for each of its lanes ([`crate::mix::multicore`]). Links go to all of them; a channel
//! goes to the one that its forward cells come to and, if that is another, to the one that its backward cells come to.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;

use rtrb::Producer;
use wire::cell::Header;
use wire::ids::{ChannelIndex, ChannelKeys, LinkId, Rank, Side, SlotId};
use zeroize::Zeroizing;

use crate::entry::listener::{Listener, ListenerId};
use crate::exit::names::QueryId;
use crate::lanes::Lanes;
use crate::paced;
use crate::sys::Waker;

/// A change of a link, for all workers of a node.
#[derive(Clone)]
pub enum LinkCommand {
    /// A new neighbour, without slots yet.
    Install { link: LinkId, side: Side, peer: SocketAddr },
    /// Header keys of a finished handshake.
    InstallSlot {
        link: LinkId,
        slot: SlotId,
        /// The source of the handshake. Cells are accepted from there. It is the link's address if the slot is current
        /// at once.
        peer: SocketAddr,
        /// Header key of forward cells.
        header_i2r: Zeroizing<[u8; 16]>,
        /// Header key of backward cells.
        header_r2i: Zeroizing<[u8; 16]>,
        rank: Rank,
    },
    /// The next slot becomes current.
    Promote {
        link: LinkId,
        slot: SlotId,
        /// The address of the link from now on.
        peer: SocketAddr,
    },
    /// Cells of the link go to another address from now on.
    Move { link: LinkId, peer: SocketAddr },
    /// A slot has expired.
    RetireSlot { link: LinkId, slot: SlotId },
    /// A link is gone.
    Retire { link: LinkId },
}

/// One change that control makes.
pub enum Command {
    Link(LinkCommand),
    /// A channel is open.
    InstallChannel {
        channel: ChannelIndex,
        /// Link and number towards the entry.
        up: Option<(LinkId, u32)>,
        /// Link and number towards the exit.
        down: Option<(LinkId, u32)>,
        /// The keys that the setup has agreed.
        keys: ChannelKeys,
        lifetime_s: u16,
        first: u64,
    },
    /// A channel is to end.
    RetireChannel {
        channel: ChannelIndex,
    },
    /// Entry: clients of one channel move to another.
    Supersede {
        old: ChannelIndex,
        new: ChannelIndex,
    },
    /// Entry: listen at one more socket.
    Listen {
        /// Its id. Differs from all indices of [`crate::entry::Settings::listeners`].
        id: ListenerId,
        socket: UdpSocket,
        /// The rules for its datagrams.
        listener: Listener,
    },
    /// Entry: close a listening socket, and forget its clients.
    Unlisten {
        id: ListenerId,
    },
    /// A cell of control's: sealed body, header in the clear.
    Inject {
        /// The link it leaves on.
        link: LinkId,
        /// The slot it was sealed under.
        slot: SlotId,
        header: Header,
        body: Vec<u8>,
        /// It leaves past the pool.
        at_once: bool,
    },
    /// Exit: the addresses of the host have changed.
    OwnAddresses {
        addresses: Vec<IpAddr>,
    },
    /// Exit: the answer to a [`crate::punt::Punt::Resolve`]; empty if there is none.
    Resolved {
        query: QueryId,
        addresses: Vec<IpAddr>,
    },
}

/// Sends commands to a node's workers, in order.
pub struct CommandSender {
    rings: Vec<Ring<Command>>,
    lanes: Lanes,
    pushed: u64,
    /// By channel: the workers that know it, for its forward and for its backward cells.
    known: Vec<(Option<u8>, Option<u8>)>,
}

/// The way to one worker.
struct Ring<C> {
    ring: Producer<C>,
    waker: Arc<Waker>,
    /// Numbers of the commands that went this way and may not have been taken.
    sent: VecDeque<u64>,
}

impl<C> Ring<C> {
    fn new((ring, waker): (Producer<C>, Arc<Waker>)) -> Ring<C> {
        Ring { ring, waker, sent: VecDeque::new() }
    }

    fn waiting(&self) -> usize {
        self.ring.buffer().capacity() - self.ring.slots()
    }

    fn push(&mut self, number: u64, command: C) {
        let waiting = self.waiting();
        self.sent.drain(..self.sent.len() - waiting);
        self.sent.push_back(number);
        let pushed = self.ring.push(command);
        debug_assert!(pushed.is_ok(), "room was looked for before");
    }

    /// Of `pushed` commands the number of those that the worker has taken.
    fn taken(&self, pushed: u64) -> u64 {
        self.sent.get(self.sent.len() - self.waiting()).map_or(pushed, |next| next - 1)
    }
}

impl CommandSender {
    /// To a node's only worker, which waits on `waker`.
    pub fn new(ring: Producer<Command>, waker: Arc<Waker>) -> CommandSender {
        CommandSender::to_all(vec![(ring, waker)], Lanes::ONE)
    }

    /// To the workers of the lanes, in their order.
    ///
    /// # Panics
    /// Unless there are as many as own lanes.
    pub fn to_all(rings: Vec<(Producer<Command>, Arc<Waker>)>, lanes: Lanes) -> CommandSender {
        assert_eq!(rings.len(), lanes.own, "one worker for each lane");
        CommandSender { rings: rings.into_iter().map(Ring::new).collect(), lanes, pushed: 0, known: Vec::new() }
    }

    /// Queues a command.
    ///
    /// # Errors
    /// A ring is full: the command comes back, and nothing was queued.
    pub fn send(&mut self, command: Command) -> Result<(), Command> {
        if self.rings.iter().any(|ring| ring.ring.slots() == 0) {
            return Err(command);
        }
        self.pushed += 1;
        let number = self.pushed;
        if let [ring] = &mut self.rings[..] {
            ring.push(number, command);
            return Ok(());
        }
        match command {
            Command::Link(command) => {
                self.rings.iter_mut().for_each(|ring| ring.push(number, Command::Link(command.clone())));
            }
            Command::InstallChannel { channel, up, down, keys, lifetime_s, first } => {
                let edge =
                    |at: Option<(LinkId, u32)>, edge: &dyn Fn(u32) -> usize| at.map_or(0, |(_, number)| edge(number));
                let forward = edge(up, &|number| self.lanes.up_edge(number));
                let backward = edge(down, &|number| self.lanes.down_edge(number));
                let at = channel.index();
                if self.known.len() <= at {
                    self.known.resize(at + 1, (None, None));
                }
                self.known[at] = (Some(forward as u8), (forward != backward).then_some(backward as u8));
                if forward != backward
                    && let ChannelKeys::Hop { forward, backward: other } = &keys
                {
                    let keys = ChannelKeys::Hop { forward: forward.clone(), backward: other.clone() };
                    let copy = Command::InstallChannel { channel, up, down, keys, lifetime_s, first };
                    self.rings[backward].push(number, copy);
                }
                self.rings[forward]
                    .push(number, Command::InstallChannel { channel, up, down, keys, lifetime_s, first });
            }
            Command::RetireChannel { channel } => {
                let (forward, backward) = self.known(channel);
                for edge in [forward, backward].into_iter().flatten() {
                    self.rings[usize::from(edge)].push(number, Command::RetireChannel { channel });
                }
            }
            // Only a mix has several workers. Its first one takes the cells of control.
            Command::Supersede { .. }
            | Command::Listen { .. }
            | Command::Unlisten { .. }
            | Command::Inject { .. }
            | Command::OwnAddresses { .. }
            | Command::Resolved { .. } => self.rings[0].push(number, command),
        }
        Ok(())
    }

    fn known(&self, channel: ChannelIndex) -> (Option<u8>, Option<u8>) {
        self.known.get(channel.index()).copied().unwrap_or_default()
    }

    /// A worker reports the end of a channel. Returns true if the channel has ended with this report, so that control
    /// must be notified, and the command to send to another worker that still knows the channel.
    pub fn ended(&mut self, worker: usize, channel: ChannelIndex) -> (bool, Option<Command>) {
        if self.rings.len() == 1 {
            return (true, None);
        }
        let (forward, backward) = self.known(channel);
        if forward != Some(worker as u8) {
            return (false, None);
        }
        self.known[channel.index()].0 = None;
        (true, backward.map(|_| Command::RetireChannel { channel }))
    }

    /// Commands queued so far.
    pub fn pushed(&self) -> u64 {
        self.pushed
    }

    /// Commands that the workers have taken so far. Each applies all it takes before it receives again.
    pub fn taken(&self) -> u64 {
        self.rings.iter().map(|ring| ring.taken(self.pushed)).min().unwrap_or(self.pushed)
    }

    pub fn signal(&self) {
        self.rings.iter().for_each(|ring| ring.waker.wake());
    }
}
/// Sends commands to the worker of a paced class, in order.
pub struct PacedSender {
    ring: Ring<paced::Command>,
    pushed: u64,
}

impl PacedSender {
    /// To the worker that waits on `waker`.
    pub fn new(ring: Producer<paced::Command>, waker: Arc<Waker>) -> PacedSender {
        PacedSender { ring: Ring::new((ring, waker)), pushed: 0 }
    }

    /// Queues a command.
    ///
    /// # Errors
    /// The ring is full: the command comes back.
    pub fn send(&mut self, command: paced::Command) -> Result<(), paced::Command> {
        if self.ring.ring.slots() == 0 {
            return Err(command);
        }
        self.pushed += 1;
        self.ring.push(self.pushed, command);
        Ok(())
    }

    /// Commands that can wait for the worker.
    pub fn capacity(&self) -> usize {
        self.ring.ring.buffer().capacity()
    }

    /// As [`CommandSender::pushed`].
    pub fn pushed(&self) -> u64 {
        self.pushed
    }

    /// As [`CommandSender::taken`].
    pub fn taken(&self) -> u64 {
        self.ring.taken(self.pushed)
    }

    pub fn signal(&self) {
        self.ring.waker.wake();
    }
}
