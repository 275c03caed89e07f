//! Control's end of the rings to the workers.
//!
//! A node has one worker, or one for each of its lanes ([`crate::mix::multicore`]). Links go to all of them; a channel goes
//! to the one that its forward cells come to and, if that is another, to the one that its backward cells come to.

use std::collections::VecDeque;
use std::sync::Arc;

use rtrb::Producer;

use crate::lanes::Lanes;
use crate::sys::Waker;
use crate::table::{ChannelKeys, Op};

/// Sends operations to a node's workers, in order.
pub struct OpSender {
    rings: Vec<Ring>,
    lanes: Lanes,
    pushed: u64,
    /// By channel: the workers that know it, for its forward and for its backward cells.
    known: Vec<(Option<u8>, Option<u8>)>,
}

/// The way to one worker.
struct Ring {
    ring: Producer<Op>,
    waker: Arc<Waker>,
    /// Numbers of the operations that went this way and may not have been taken.
    sent: VecDeque<u64>,
}

impl Ring {
    /// How many wait.
    fn waiting(&self) -> usize {
        self.ring.buffer().capacity() - self.ring.slots()
    }

    fn push(&mut self, number: u64, op: Op) {
        let waiting = self.waiting();
        self.sent.drain(..self.sent.len() - waiting);
        self.sent.push_back(number);
        let pushed = self.ring.push(op);
        debug_assert!(pushed.is_ok(), "room was looked for before");
    }
}

impl OpSender {
    /// To a node's only worker, which waits on `waker`.
    pub fn new(ring: Producer<Op>, waker: Arc<Waker>) -> OpSender {
        OpSender::to_all(vec![(ring, waker)], Lanes::ONE)
    }

    /// To the workers of the lanes, in their order.
    ///
    /// # Panics
    /// Unless there are as many as own lanes.
    pub fn to_all(rings: Vec<(Producer<Op>, Arc<Waker>)>, lanes: Lanes) -> OpSender {
        assert_eq!(rings.len(), lanes.own, "one worker for each lane");
        let rings = rings.into_iter().map(|(ring, waker)| Ring { ring, waker, sent: VecDeque::new() }).collect();
        OpSender { rings, lanes, pushed: 0, known: Vec::new() }
    }

    /// Queues an operation; gives it back if a ring is full.
    ///
    /// # Errors
    /// The operation.
    pub fn send(&mut self, op: Op) -> Result<(), Op> {
        if self.rings.iter().any(|ring| ring.ring.slots() == 0) {
            return Err(op);
        }
        self.pushed += 1;
        let number = self.pushed;
        if let [ring] = &mut self.rings[..] {
            ring.push(number, op);
            return Ok(());
        }
        if let Some(copies) = copies(&op, self.rings.len() - 1) {
            for (ring, op) in self.rings.iter_mut().zip(std::iter::once(op).chain(copies)) {
                ring.push(number, op);
            }
            return Ok(());
        }
        match op {
            Op::InstallChannel { channel, up, down, keys, lifetime_s, first } => {
                let edge =
                    |at: Option<(u32, u32)>, edge: &dyn Fn(u32) -> usize| at.map_or(0, |(_, number)| edge(number));
                let forward = edge(up, &|number| self.lanes.up_edge(number));
                let backward = edge(down, &|number| self.lanes.down_edge(number));
                let at = channel as usize;
                if self.known.len() <= at {
                    self.known.resize(at + 1, (None, None));
                }
                self.known[at] = (Some(forward as u8), (forward != backward).then_some(backward as u8));
                if forward != backward
                    && let ChannelKeys::Hop { forward, backward: other } = &keys
                {
                    let keys = ChannelKeys::Hop { forward: forward.clone(), backward: other.clone() };
                    let copy = Op::InstallChannel { channel, up, down, keys, lifetime_s, first };
                    self.rings[backward].push(number, copy);
                }
                self.rings[forward].push(number, Op::InstallChannel { channel, up, down, keys, lifetime_s, first });
            }
            Op::RetireChannel { channel } => {
                let (forward, backward) = self.known(channel);
                for edge in [forward, backward].into_iter().flatten() {
                    self.rings[usize::from(edge)].push(number, Op::RetireChannel { channel });
                }
            }
            op => self.rings[0].push(number, op),
        }
        Ok(())
    }

    fn known(&self, channel: u32) -> (Option<u8>, Option<u8>) {
        self.known.get(channel as usize).copied().unwrap_or_default()
    }

    /// A worker says that a channel has ended there. Whether the channel has ended with that, and control is to be
    /// told; if so, and another worker knows it too, that one is to be sent the operation returned beside.
    pub fn ended(&mut self, worker: usize, channel: u32) -> (bool, Option<Op>) {
        if self.rings.len() == 1 {
            return (true, None);
        }
        let (forward, backward) = self.known(channel);
        if forward != Some(worker as u8) {
            return (false, None);
        }
        self.known[channel as usize].0 = None;
        (true, backward.map(|_| Op::RetireChannel { channel }))
    }

    /// Operations queued so far.
    pub fn pushed(&self) -> u64 {
        self.pushed
    }

    /// Operations that the workers have taken so far. Each applies all it takes before it receives again.
    pub fn taken(&self) -> u64 {
        let oldest = |ring: &Ring| ring.sent.get(ring.sent.len() - ring.waiting()).map_or(self.pushed, |next| next - 1);
        self.rings.iter().map(oldest).min().unwrap_or(self.pushed)
    }

    /// Wakes the workers.
    pub fn signal(&self) {
        self.rings.iter().for_each(|ring| ring.waker.wake());
    }
}

/// As many copies of an operation that every worker must know of; none of any other.
fn copies(op: &Op, count: usize) -> Option<Vec<Op>> {
    let copy = || match op {
        Op::InstallLink { link, side, peer } => Some(Op::InstallLink { link: *link, side: *side, peer: *peer }),
        Op::InstallSlot { link, slot, peer, header_i2r, header_r2i, rank } => Some(Op::InstallSlot {
            link: *link,
            slot: *slot,
            peer: *peer,
            header_i2r: header_i2r.clone(),
            header_r2i: header_r2i.clone(),
            rank: *rank,
        }),
        Op::Promote { link, slot, peer } => Some(Op::Promote { link: *link, slot: *slot, peer: *peer }),
        Op::RetireSlot { link, slot } => Some(Op::RetireSlot { link: *link, slot: *slot }),
        Op::RetireLink { link } => Some(Op::RetireLink { link: *link }),
        _ => None,
    };
    (0..count).map(|_| copy()).collect()
}
