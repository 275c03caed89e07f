//! What every state machine of a node shares: configuration, generator, outputs, counters.

use std::collections::VecDeque;

use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;

use crate::config::Config;
use crate::counters::{Counters, Refusal};
use crate::io::{DataOp, Event, Output};

pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) rng: ChaCha20Rng,
    pub(crate) out: VecDeque<Output>,
    pub(crate) counters: Counters,
}

impl Core {
    pub(crate) fn data(&mut self, op: DataOp) {
        self.out.push_back(Output::Data(op));
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.out.push_back(Output::Event(event));
    }

    pub(crate) fn refuse(&mut self, why: Refusal) {
        self.counters.refuse(why);
    }

    /// Replaces the generator by one seeded from its own output, over its own memory: who takes the node
    /// later cannot run it back to an ephemeral of the past.
    pub(crate) fn rekey(&mut self) {
        self.rng = SeedableRng::from_rng(&mut self.rng);
    }
}
