//! Where control and the data plane meet: punts become inputs, outputs become operations.
//!
//! The two crates do not know each other; this file alone translates. It owns no thread and no socket:
//! [`crate::node`] runs it beside a worker, and the tests run whole chains of it in memory.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use control::{Control, DataOp, EndReason, Event, Input, Output};
use dataplane::links::{Rank, Side};
use dataplane::punt::{Ended, Notice, Punt};
use dataplane::table::{ChannelKeys, Op, OpSender};

const _: () = assert!(control::LINK_PLACE_BITS == dataplane::links::PLACE_BITS);

/// Handshake datagrams that wait at most.
const OUTGOING_MAX: usize = 1024;
/// How soon to look again at a ring that was not drained.
const AGAIN: Duration = Duration::from_micros(100);
/// Punts taken in one turn.
const PUNTS_MAX: usize = 1024;

/// Something for the node around the joint.
pub enum Note {
    /// Control has something for the log.
    Event(Event),
    /// The data plane has something for the log.
    Notice(Notice),
    /// A name to resolve; answer with [`Joint::resolved`].
    Resolve {
        /// The question's number.
        query: u32,
        /// The name.
        name: Box<str>,
    },
}

/// A handshake datagram, and how many operations the worker must have taken before it leaves.
struct Outgoing {
    after: u64,
    side: Side,
    to: SocketAddr,
    datagram: Vec<u8>,
}

/// Control with its ends of the two rings.
pub struct Joint {
    control: Control,
    ops: OpSender,
    punts: rtrb::Consumer<Punt>,
    /// Operations that found the ring full; their order is binding.
    backlog: VecDeque<Op>,
    /// Handshake datagrams that wait until the worker has the keys they speak of: whoever gets a message 2
    /// may answer with a cell before this node's worker has woken up.
    outgoing: VecDeque<Outgoing>,
}

impl Joint {
    /// Joins a control plane to a worker's rings.
    pub fn new(control: Control, ops: OpSender, punts: rtrb::Consumer<Punt>) -> Joint {
        Joint { control, ops, punts, backlog: VecDeque::new(), outgoing: VecDeque::new() }
    }

    /// The control plane, to be asked.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Hands everything over, both ways. Returns when to come back at the latest.
    pub fn turn(
        &mut self,
        now: Duration,
        wall: SystemTime,
        send: &mut dyn FnMut(Side, SocketAddr, &[u8]),
        note: &mut dyn FnMut(Note),
    ) -> Duration {
        for _ in 0..PUNTS_MAX {
            let Ok(punt) = self.punts.pop() else { break };
            self.take(punt, now, wall, note);
        }
        self.control.tick(now, wall);
        while let Some(output) = self.control.poll_output() {
            match output {
                Output::Send { side, to, datagram } => {
                    let after = self.ops.pushed() + self.backlog.len() as u64;
                    // One too many is lost like any datagram; its handshake is tried again.
                    if self.outgoing.len() < OUTGOING_MAX {
                        self.outgoing.push_back(Outgoing { after, side: data_side(side), to, datagram });
                    }
                }
                Output::Data(op) => self.backlog.push_back(operation(op)),
                Output::Event(event) => note(Note::Event(event)),
            }
        }
        if !self.backlog.is_empty() {
            while let Some(op) = self.backlog.pop_front() {
                if let Err(op) = self.ops.send(op) {
                    self.backlog.push_front(op);
                    break;
                }
            }
            self.ops.signal();
        }
        let taken = self.ops.taken();
        while let Some(Outgoing { side, to, datagram, .. }) = self.outgoing.pop_front_if(|next| next.after <= taken) {
            send(side, to, &datagram);
        }
        if self.backlog.is_empty() && self.outgoing.is_empty() { self.control.next_wake() } else { now + AGAIN }
    }

    /// Answers a [`Note::Resolve`].
    pub fn resolved(&mut self, query: u32, addresses: Vec<IpAddr>) {
        self.backlog.push_back(Op::Resolved { query, addresses });
    }

    fn take(&mut self, punt: Punt, now: Duration, wall: SystemTime, note: &mut dyn FnMut(Note)) {
        match punt {
            Punt::Handshake { side, from, mut datagram } => {
                let side = control_side(side);
                self.control.handle(now, wall, Input::Handshake { side, from, datagram: datagram.bytes_mut() });
            }
            Punt::Cell { link, slot, from, header, mut body } => {
                self.control.handle(now, wall, Input::Cell { link, slot, from, header, body: body.bytes_mut() });
            }
            Punt::Promoted { link, slot, from } => {
                self.control.handle(now, wall, Input::Promoted { link, slot, from });
            }
            Punt::Activity { link, received, sent } => {
                self.control.handle(now, wall, Input::Activity { link, received, sent });
            }
            Punt::ChannelEnded { channel, reason } => {
                let reason = match reason {
                    Ended::Lifetime => EndReason::Lifetime,
                    Ended::Idle => EndReason::Idle,
                    Ended::Lost => EndReason::Lost,
                    Ended::Retired => EndReason::Retired,
                };
                self.control.handle(now, wall, Input::ChannelEnded { channel, reason });
            }
            Punt::Resolve { query, name } => note(Note::Resolve { query, name }),
            Punt::Notice(notice) => note(Note::Notice(notice)),
        }
    }
}

fn control_side(side: Side) -> control::Side {
    match side {
        Side::Up => control::Side::Up,
        Side::Down => control::Side::Down,
    }
}

fn data_side(side: control::Side) -> Side {
    match side {
        control::Side::Up => Side::Up,
        control::Side::Down => Side::Down,
    }
}

fn operation(op: DataOp) -> Op {
    match op {
        DataOp::InstallLink { link, side, peer } => Op::InstallLink { link, side: data_side(side), peer },
        DataOp::InstallSlot { link, slot, peer, header_i2r, header_r2i, rank } => {
            let rank = match rank {
                control::Rank::Next => Rank::Next,
                control::Rank::Current => Rank::Current,
            };
            Op::InstallSlot { link, slot, peer, header_i2r, header_r2i, rank }
        }
        DataOp::Promote { link, slot, peer } => Op::Promote { link, slot, peer },
        DataOp::RetireSlot { link, slot } => Op::RetireSlot { link, slot },
        DataOp::RetireLink { link } => Op::RetireLink { link },
        DataOp::InstallChannel { channel, up, down, keys, lifetime_s, first } => {
            let keys = match keys {
                control::ChannelKeys::Hop { forward, backward } => ChannelKeys::Hop { forward, backward },
                control::ChannelKeys::Entry(hops) => ChannelKeys::Entry(hops),
            };
            Op::InstallChannel { channel, up, down, keys, lifetime_s, first }
        }
        DataOp::RetireChannel { channel } => Op::RetireChannel { channel },
        DataOp::Supersede { old, new } => Op::Supersede { old, new },
        DataOp::Inject { link, slot, header, body } => Op::Inject { link, slot, header, body },
    }
}
