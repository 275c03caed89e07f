//! What a turn of a mix costs per cell in user space, without the kernel: `cargo bench -p dataplane --bench turn`.
//!
//! Prints nanoseconds of thread CPU time per cell, medians of nine rounds, by direction, number of channels and pool.
//! The copy of each cell into its buffer, which the kernel makes in the real thing, is in it.

use rustix::time::{ClockId, clock_gettime};
use wire::cell::Class;

#[path = "../tests/stand/mod.rs"]
mod stand;
use stand::Stand;

fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

const CELLS: usize = 16_384;
const ROUNDS: usize = 9;

/// The median over rounds of what it costs to take in what `load` puts on the wire.
fn median(stand: &mut Stand, mut load: impl FnMut(&mut Stand, u64)) -> u64 {
    let mut rounds: Vec<u64> = (0..ROUNDS as u64)
        .map(|round| {
            load(stand, round);
            let before = cpu_ns();
            while stand.waiting() > 0 {
                stand.turn();
            }
            (cpu_ns() - before) / CELLS as u64
        })
        .collect();
    rounds.sort_unstable();
    rounds[ROUNDS / 2]
}

fn main() {
    println!("{:>9} {:>6} {:>8} {:>9}", "channels", "pool", "forward", "backward");
    for (channels, pool) in [(1, 256), (64, 64), (64, 256), (64, 1024), (64, 4096), (4096, 256), (100_000, 256)] {
        let mut stand = Stand::new(Class::L, channels, &format!("threshold:n={pool},n_min=1"));
        let forward = median(&mut stand, |stand, _| stand.load(CELLS));
        let numbers = CELLS.div_ceil(channels as usize) as u64;
        let backward = median(&mut stand, |stand, round| stand.load_backward(CELLS, round * numbers));
        let ledger = *stand.ledger.lock().unwrap();
        let counted = stand.profile.read().latency.forward.total.count();
        assert_eq!(counted, ledger.cells.forward.sent);
        assert_eq!((ledger.cells.forward.dropped_total(), ledger.cells.backward.dropped_total()), (0, 0));
        println!("{channels:>9} {pool:>6} {forward:>8} {backward:>9}");
    }
}
