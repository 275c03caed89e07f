//! What happens to nodes and links: restarts, nodes that do not run, clocks that step, attackers on the wire.

use std::cell::{Ref, RefCell};
use std::collections::HashMap;
use std::time::Duration;

use control::trust::{ChainTerms, SignedDescriptor};
use dataplane::Nanos;
use dataplane::ledger::Ledger;
use dataplane::paced::entry;
use dataplane::socket::memory::Datagram;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use wire::cell::Direction;
use wire::kdf::Secret;
use wire::paced::{PacedTerms, Phase};

use super::checks::ends;
use super::{Chain, EPOCH_S, HOPS, MILLI, Seen};

/// What nodes are made of, also when they restart.
pub(super) struct Kit {
    pub(super) chain: ChainTerms,
    pub(super) descriptors: Vec<SignedDescriptor>,
    /// Noise and signing keys of the hops.
    pub(super) keys: Vec<(Secret, Secret)>,
    pub(super) terms: PacedTerms,
    /// The secret of each entry that serves a meeting.
    pub(super) meetings: HashMap<usize, [u8; 32]>,
}

/// Datagrams that an attacker holds back.
#[derive(Default)]
pub(super) struct Later {
    queue: Vec<(Nanos, Datagram)>,
    /// What is sent now comes from the queue: it was seen before.
    is_delivering: bool,
}

impl Chain {
    pub fn terms(&self) -> &PacedTerms {
        &self.kit.terms
    }

    /// Records every link datagram as sent. Then `tap` makes of it what arrives, each after a time.
    /// `tap` also gets the time.
    pub fn attack(&self, mut tap: impl FnMut(Nanos, Datagram) -> Vec<(Nanos, Datagram)> + 'static) {
        let (seen, clock, later) = (self.seen.clone(), self.clock.clone(), self.later.clone());
        self.links.tap(move |datagram| {
            if later.borrow().is_delivering {
                return vec![datagram];
            }
            let now = *clock.borrow();
            seen.borrow_mut().push(Seen::new(&datagram, now));
            let (at_once, held): (Vec<_>, Vec<_>) = tap(now, datagram).into_iter().partition(|(after, _)| *after == 0);
            later.borrow_mut().queue.extend(held.into_iter().map(|(after, datagram)| (now + after, datagram)));
            at_once.into_iter().map(|(_, datagram)| datagram).collect()
        });
    }

    /// Loses what an entry sends, or what is sent to it, in a phase of the running batch and a little longer: until the
    /// last copies have left.
    pub fn cut_in_phase(&self, entry: usize, phase: Phase, direction: Direction) {
        let rounds = self.times.rounds_of(self.batch(), phase);
        let begins = |round| self.times.begin(round) - EPOCH_S * 1000 * MILLI;
        let (link, time) = (ends((1, entry), direction), begins(rounds.start) - 5 * MILLI..begins(rounds.end + 12));
        self.attack(move |now, datagram| {
            let is_cut = (datagram.from, datagram.to) == link && time.contains(&now);
            if is_cut { Vec::new() } else { vec![(0, datagram)] }
        });
    }

    pub(super) fn deliver_later(&mut self) {
        let due: Vec<_> = self.later.borrow_mut().queue.extract_if(.., |(at, _)| *at <= self.now).collect();
        self.later.borrow_mut().is_delivering = true;
        due.into_iter().for_each(|(_, datagram)| self.links.send(datagram));
        self.later.borrow_mut().is_delivering = false;
    }

    pub(super) fn next_later(&self) -> Option<Nanos> {
        self.later.borrow().queue.iter().map(|(at, _)| *at).min()
    }

    fn index(&self, node: usize) -> usize {
        if node > 100 { HOPS + node - 101 } else { node - 1 }
    }

    /// A node dies and starts again, with what it has on disk. What waits in its sockets is lost.
    pub fn restart(&mut self, node: usize) {
        let index = self.index(node);
        let (state, at) = (self.nodes[index].control.state(), self.nodes[index].at);
        at.into_iter().for_each(|at| while self.links.receive(at).is_some() {});
        self.nodes[index] = self.node(node, state, &mut ChaCha20Rng::seed_from_u64(self.now));
    }

    /// A node does not run for this time. What comes waits in its sockets.
    pub fn stop(&mut self, node: usize, time: Duration) {
        let index = self.index(node);
        self.nodes[index].stopped_until = self.now + time.as_nanos() as Nanos;
    }

    /// A hop sends no more setups, or no more acks. Nothing on its links shows it.
    pub fn withhold(&mut self, hop: usize, direction: Direction) {
        let index = self.index(hop);
        self.nodes[index].withholds = Some(direction);
    }

    /// The clock of a node's host jumps by this many nanoseconds.
    pub fn step_clock(&mut self, node: usize, by: i64) {
        let index = self.index(node);
        self.nodes[index].wall_ahead += by;
    }

    /// What a node has counted since its start.
    pub fn ledger(&self, node: usize) -> Ledger {
        *self.at(node).ledger.lock().unwrap()
    }

    /// What an entry shows.
    pub fn shown(&self, entry: usize) -> entry::View {
        *self.at(entry).shown.as_ref().expect("an entry").lock().unwrap()
    }

    /// All link datagrams, as they were sent.
    pub fn seen(&self) -> Ref<'_, Vec<Seen>> {
        RefCell::borrow(&self.seen)
    }
}
