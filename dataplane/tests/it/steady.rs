//! What a cell does not cost in steady state: no allocation, and no copy. The buffer that a cell arrived in is the
//! buffer that it leaves from.

use wire::cell::Class;

use crate::stand::{Stand, Traces};

#[test]
fn steady_state_copies_no_cell_and_allocates_nothing() {
    let mut stand = Stand::new(Class::L, 64, "threshold-or-timed:n=256,n_min=8,t=5ms");
    let mut backward = 0;
    for round in 0..6 {
        stand.load(4000);
        stand.load_backward(4000, backward);
        backward += 63;
        let traced = round == 5;
        for wire in &stand.wires {
            let traces = Traces { received: Vec::with_capacity(4000), sent: Vec::with_capacity(4000) };
            wire.borrow_mut().traces = traced.then_some(traces);
        }
        let turns = allocation_counter::measure(|| {
            while stand.waiting() > 0 {
                stand.turn();
            }
            (0..10).for_each(|_| stand.turn());
        });
        // The first rounds bring scratch space to its size.
        assert!(round < 3 || turns.count_total == 0, "{} allocations in round {round}", turns.count_total);
    }
    let ledger = *stand.ledger.lock().unwrap();
    assert!(ledger.closed());
    assert_eq!((ledger.cells.forward.received, ledger.cells.forward.sent), (24_000, 24_000));
    assert_eq!((ledger.cells.backward.received, ledger.cells.backward.dropped_total()), (24_000, 0));
    let profile = stand.profile.read();
    for (latency, tally) in
        [(profile.latency.forward, ledger.cells.forward), (profile.latency.backward, ledger.cells.backward)]
    {
        assert_eq!([latency.pool.count(), latency.node.count(), latency.total.count()], [tally.sent; 3]);
    }
    for (from, to) in [(0, 1), (1, 0)] {
        let came = &stand.wires[from].borrow().traces.as_ref().unwrap().received.clone();
        let mut went = stand.wires[to].borrow().traces.as_ref().unwrap().sent.clone();
        assert_ne!(*came, went, "shuffled");
        let mut came = came.clone();
        came.sort_unstable();
        went.sort_unstable();
        assert_eq!(came, went, "each cell left from the buffer that it had arrived in");
    }
}
