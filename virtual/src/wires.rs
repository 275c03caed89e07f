//! The wires: all datagrams of a chain, what becomes of them, and who receives them.

use std::cell::{Cell, Ref, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use attack::Truth;
use attack::setup_order::SetupOrder;
use dataplane::Nanos;
use dataplane::paced::Command;
use dataplane::socket::memory::{Datagram, MemNet};
use wire::cell::Direction;
use wire::paced::PacedTerms;

use super::corrupt_exit::{CorruptExit, ExitBody};
use super::headers::HeaderKeys;
use super::setups::Setups;
use super::{Chain, EXIT_HOST, link_of, number_of};

/// A datagram as it was sent.
pub struct Seen {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub at: Nanos,
    pub bytes: Vec<u8>,
}

impl Seen {
    fn new(datagram: &Datagram, at: Nanos) -> Seen {
        Seen { from: datagram.from, to: datagram.to, at, bytes: datagram.bytes.clone() }
    }
}

/// What the taps of both networks share with their chain.
pub(super) struct Wires {
    pub(super) now: Cell<Nanos>,
    exit: usize,
    keeps: bool,
    keys: Rc<RefCell<HeaderKeys>>,
    corrupt_exit: RefCell<CorruptExit>,
    pub(super) setups: RefCell<Setups>,
    links_seen: RefCell<Vec<Seen>>,
    apps_seen: RefCell<Vec<Seen>>,
    /// Numbers of the nodes to which something has come.
    pub(super) arrived: RefCell<Vec<usize>>,
    /// Datagrams that were put into a queue.
    pub(super) delivered: Cell<u64>,
    /// Datagrams that arrive later, in order of time, and then of sending.
    later: RefCell<BinaryHeap<Reverse<Held>>>,
    held: Cell<u64>,
    /// What is sent now was held: it was seen before.
    is_delivering: Cell<bool>,
}

#[derive(PartialEq, Eq)]
struct Held {
    at: Nanos,
    number: u64,
    datagram: Datagram,
}

impl Ord for Held {
    fn cmp(&self, other: &Held) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Held) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Wires {
    /// Those of a chain with this number of hops. `keeps` is as in [`super::Plan`].
    pub(super) fn new(now: Nanos, keeps: bool, terms: &PacedTerms, exit: usize) -> Wires {
        Wires {
            now: Cell::new(now),
            exit,
            keeps,
            keys: Rc::new(RefCell::new(HeaderKeys::new(terms.class))),
            corrupt_exit: RefCell::new(CorruptExit::new(terms.class, exit, terms.timetable(exit))),
            setups: RefCell::new(Setups::new(terms, exit, terms.timetable(exit))),
            links_seen: RefCell::default(),
            apps_seen: RefCell::default(),
            arrived: RefCell::default(),
            delivered: Cell::default(),
            later: RefCell::default(),
            held: Cell::default(),
            is_delivering: Cell::default(),
        }
    }

    /// What control passes to the worker of a node.
    pub(super) fn command(&self, node: usize, command: &Command) {
        self.keys.borrow_mut().command(node, command);
        let mut corrupt_exit = self.corrupt_exit.borrow_mut();
        corrupt_exit.command(node, command);
        self.setups.borrow_mut().command(command, &corrupt_exit);
    }

    /// The datagram goes into the queue of its receiver.
    fn arrive(&self, datagram: Datagram) -> Datagram {
        self.delivered.set(self.delivered.get() + 1);
        let host = match datagram.to.ip() {
            IpAddr::V4(host) => host.octets(),
            IpAddr::V6(_) => return datagram,
        };
        let number = if host == EXIT_HOST { Some(self.exit) } else { number_of(datagram.to) };
        self.arrived.borrow_mut().extend(number);
        datagram
    }

    fn arrive_at_link(&self, datagram: Datagram) -> Datagram {
        self.setups.borrow_mut().sees(Direction::Forward, self.now.get(), &datagram, &self.keys.borrow());
        self.arrive(datagram)
    }

    /// A link datagram as it leaves, for attackers that have nodes.
    fn show(&self, now: Nanos, datagram: &Datagram) {
        let keys = self.keys.borrow();
        if let Some((up, direction)) = link_of(datagram.from, datagram.to)
            && up + 1 == self.exit
        {
            self.corrupt_exit.borrow_mut().sees(direction, now, &datagram.bytes, &keys);
        }
        self.setups.borrow_mut().sees(Direction::Backward, now, datagram, &keys);
    }

    fn hold(&self, after: Nanos, datagram: Datagram) {
        self.held.set(self.held.get() + 1);
        let held = Held { at: self.now.get() + after, number: self.held.get(), datagram };
        self.later.borrow_mut().push(Reverse(held));
    }

    /// Sends what was held until now.
    pub(super) fn deliver(&self, links: &MemNet) {
        self.is_delivering.set(true);
        while self.next().is_some_and(|at| at <= self.now.get()) {
            let Some(Reverse(held)) = self.later.borrow_mut().pop() else { break };
            links.send(held.datagram);
        }
        self.is_delivering.set(false);
    }

    /// When the next one arrives that is held.
    pub(super) fn next(&self) -> Option<Nanos> {
        self.later.borrow().peek().map(|Reverse(held)| held.at)
    }
}

impl Chain {
    /// From now on `tap` sees every link datagram as it is sent, and decides whether it arrives.
    pub fn tap(&self, mut tap: impl FnMut(&Datagram) -> bool + 'static) {
        self.attack(move |_, datagram| if tap(&datagram) { vec![(0, datagram)] } else { Vec::new() });
    }

    /// From now on `tap` gets every link datagram with the time at which it is sent, and makes of it what arrives, each
    /// after a time.
    pub fn attack(&self, mut tap: impl FnMut(Nanos, Datagram) -> Vec<(Nanos, Datagram)> + 'static) {
        let wires = self.wires.clone();
        self.links.tap(move |datagram| {
            if wires.is_delivering.get() {
                return vec![wires.arrive_at_link(datagram)];
            }
            let now = wires.now.get();
            if wires.keeps {
                wires.links_seen.borrow_mut().push(Seen::new(&datagram, now));
            }
            wires.show(now, &datagram);
            let mut at_once = Vec::new();
            for (after, datagram) in tap(now, datagram) {
                if after == 0 {
                    at_once.push(wires.arrive_at_link(datagram));
                } else {
                    wires.hold(after, datagram);
                }
            }
            at_once
        });
    }

    /// From now on `watch` sees what applications and destinations send, and what is sent to them, and decides whether
    /// it arrives.
    pub fn watch_apps(&self, mut watch: impl FnMut(Nanos, &Datagram) -> bool + 'static) {
        let wires = self.wires.clone();
        self.apps.tap(move |datagram| {
            let now = wires.now.get();
            if wires.keeps {
                wires.apps_seen.borrow_mut().push(Seen::new(&datagram, now));
            }
            if watch(now, &datagram) { vec![wires.arrive(datagram)] } else { Vec::new() }
        });
    }

    /// From now on the exit is corrupt: `watch` sees the bodies of meetings there, in the order of the last link.
    pub fn watch_exit(&self, watch: impl FnMut(ExitBody<'_>) + 'static) {
        self.wires.corrupt_exit.borrow_mut().watch = Some(Box::new(watch));
    }

    /// From the next batch on, what Mix 1 and the exit see of setups and acks is kept for [`Chain::setup_order`].
    pub fn watch_setups(&self) {
        self.wires.setups.borrow_mut().watch(self.now);
    }

    /// The setups for all batches that have begun since, and the channel of each user.
    pub fn setup_order(&self) -> (SetupOrder, Vec<Truth>) {
        self.wires.setups.borrow().order(self.batch())
    }

    /// The header keys of all links, which get more as time passes.
    pub fn header_keys(&self) -> Rc<RefCell<HeaderKeys>> {
        self.wires.keys.clone()
    }

    /// All link datagrams as they were sent, if they are kept.
    pub fn seen(&self) -> Ref<'_, Vec<Seen>> {
        self.wires.links_seen.borrow()
    }

    /// Forgets the link datagrams that were kept until now.
    pub fn forget_links(&self) {
        self.wires.links_seen.borrow_mut().clear();
    }

    /// What applications and destinations sent, and what was sent to them, if it is kept.
    pub fn at_apps(&self) -> Ref<'_, Vec<Seen>> {
        self.wires.apps_seen.borrow()
    }
}
