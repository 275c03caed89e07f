//! What a turn of a mix costs per cell in user space, without the kernel: `cargo bench -p dataplane --bench turn`.
//!
//! Prints nanoseconds of thread CPU time per forward cell, medians of nine rounds, by number of channels and pool. The
//! copy of each cell into its frame, which the kernel makes in the real thing, is in it.

use rustix::time::{ClockId, clock_gettime};
use wire::cell::Class;

#[path = "../tests/stand/mod.rs"]
mod stand;
use stand::Stand;

fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn main() {
    const CELLS: usize = 16_384;
    println!("{:>9} {:>6} {:>10}", "channels", "pool", "ns a cell");
    for (channels, pool) in [(1, 256), (64, 64), (64, 256), (64, 1024), (64, 4096), (4096, 256), (100_000, 256)] {
        let mut stand = Stand::new(Class::L, channels, &format!("threshold:n={pool},n_min=1"));
        let mut rounds: Vec<u64> = (0..9)
            .map(|_| {
                stand.load(CELLS);
                let before = cpu_ns();
                while stand.waiting() > 0 {
                    stand.turn();
                }
                (cpu_ns() - before) / CELLS as u64
            })
            .collect();
        rounds.sort_unstable();
        let ledger = *stand.ledger.lock().unwrap();
        assert_eq!(ledger.cells.forward.dropped_total(), 0);
        println!("{channels:>9} {pool:>6} {:>10}", rounds[rounds.len() / 2]);
    }
}
