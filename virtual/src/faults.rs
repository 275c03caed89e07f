//! What happens to nodes: restarts, nodes that do not run, clocks that step.

use std::time::Duration;

use dataplane::Nanos;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use wire::cell::Direction;

use super::Chain;
use super::node::Node;

impl Chain {
    /// A node dies and starts again, with what it has on disk. What waits in its sockets is lost.
    pub fn restart(&mut self, node: usize) {
        let index = self.index(node);
        let Node { control, at, wall_ahead, .. } = &self.nodes[index];
        let (at, start) = (*at, (control.state(), *wall_ahead));
        at.into_iter().for_each(|at| while self.links.receive(at).is_some() {});
        self.nodes[index] = self.node(node, start, &mut ChaCha20Rng::seed_from_u64(self.now));
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
}
