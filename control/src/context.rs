//! The state that all state machines of a class share: configuration, generator, outputs, counters.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;

use wire::ids::LinkId;

use crate::config::Config;
use crate::contacts::{Contacts, Static};
use crate::counters::{Counters, Refusal};
use crate::io::{Change, Event, Output};

pub(crate) struct Context {
    pub(crate) config: Config,
    /// Noise statics of this node, which its classes share.
    pub(crate) statics: Arc<[Static]>,
    pub(crate) contacts: Contacts,
    /// Links that have come up (true) or gone down, in order, until trust has heard of it.
    pub(crate) linked: Vec<(LinkId, bool)>,
    pub(crate) rng: ChaCha20Rng,
    pub(crate) out: VecDeque<Output>,
    /// The host's clock at time zero of `now`, in ns since 1970, as the last tick has set it.
    pub(crate) wall_at_zero: i128,
    pub(crate) counters: Counters,
}

impl Context {
    pub(crate) fn change(&mut self, change: Change) {
        self.out.push_back(Output::Change(change));
    }

    pub(crate) fn event(&mut self, event: Event) {
        match event {
            Event::LinkUp { link, .. } => self.linked.push((link, true)),
            Event::LinkDown { link, .. } => self.linked.push((link, false)),
            _ => {}
        }
        self.out.push_back(Output::Event(event));
    }

    /// The host's clock in ns since 1970.
    pub(crate) fn unix_ns(&self, now: Duration) -> u128 {
        u128::try_from(self.wall_at_zero + now.as_nanos() as i128).unwrap_or(0)
    }

    /// True if the previous hop's descriptors or the operator name this address. If they name none, as in a descriptor
    /// with DNS names only, every address is unknown.
    pub(crate) fn is_previous(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let mut known = self.contacts.previous_addresses.iter().chain(&self.config.previous);
        known.any(|one| one.to_canonical() == address)
    }

    pub(crate) fn refuse(&mut self, why: Refusal) {
        self.counters.refuse(why);
    }

    /// Replaces the generator in place by one seeded from its own output. An attacker who seizes the node later
    /// cannot run the generator back to a past ephemeral.
    pub(crate) fn rekey(&mut self) {
        self.rng = SeedableRng::from_rng(&mut self.rng);
    }
}
