//! A host that is busy with other things: nodes get their turns late, and no channel is given up for that alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::nodes::{Nodes, Plan};
use crate::common::process::exclusive;
use crate::common::traffic::{Load, Traffic};

/// `EDDY_STARVE_SECONDS=60` for the record in docs/BENCHMARKS.md.
#[test]
fn busy_host_costs_no_channel() {
    let seconds = std::env::var("EDDY_STARVE_SECONDS").map_or(8, |s| s.parse::<u64>().unwrap());
    let _lock = exclusive();
    // Nothing is replaced by age meanwhile.
    let busy_threads = 8 * std::thread::available_parallelism().unwrap().get();
    let mut nodes = Nodes::start(Plan { mixes: 3, channels: 4, ..Plan::quiet() });
    nodes.wait_for_channels();
    let pids = nodes.pids();
    let opened = |nodes: &Nodes| nodes.count(0, "/handshakes/channels_opened");
    let before = opened(&nodes);

    let stop = Arc::<AtomicBool>::default();
    let busy: Vec<_> = (0..busy_threads)
        .map(|_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        })
        .collect();
    let load = Load { flows: 16, rate: 200, ..Load::default() };
    let counts = Traffic::exchange(nodes.forward(), &nodes.sink, load, u64::from(load.rate) * seconds);
    stop.store(true, Ordering::Relaxed);
    busy.into_iter().for_each(|thread| thread.join().unwrap());

    let after = opened(&nodes);
    println!("{seconds} s with {busy_threads} busy threads: {counts:?}, {} channels given up", after - before);
    assert_eq!(after, before, "no channel was given up: {:#?}", nodes.said(0));
    assert_eq!((counts.again, counts.strange), (0, 0), "{counts:?}");
    nodes.assert_unharmed(&pids);
}
