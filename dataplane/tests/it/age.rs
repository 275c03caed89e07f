//! Age at a mix: what a mix that did not run has in its sockets and pools.

use std::time::Duration;

use dataplane::MILLI;
use dataplane::ledger::{DropReason, Tally};
use wire::cell::Class;

use crate::stand::Stand;

fn stand(mixing: &str) -> Stand {
    Stand::limited(Class::S, 8, mixing, Duration::from_millis(250))
}

fn forward(stand: &Stand) -> Tally {
    let ledger = *stand.ledger.lock().unwrap();
    assert!(ledger.closed() && ledger.buffers.free + ledger.cells.forward.held == ledger.buffers.total);
    ledger.cells.forward
}

/// Cells sent, and dropped as aged.
fn outcome(stand: &Stand) -> (u64, u64) {
    let tally = forward(stand);
    (tally.sent, tally.drops(DropReason::Aged))
}

#[test]
fn mix_that_did_not_run_reads_its_sockets_empty() {
    let mut stand = stand("threshold:n=1");
    stand.turn();
    stand.load(64);
    stand.turn_after(250 * MILLI);
    assert_eq!(outcome(&stand), (64, 0));
    // More than a turn receives.
    stand.load(20_000);
    stand.turn_after(251 * MILLI);
    assert_eq!((outcome(&stand), stand.waiting()), ((64, 20_000), 0));
    stand.load(64);
    stand.turn();
    assert_eq!(outcome(&stand), (128, 20_000));
}

#[test]
fn mixing_delay_does_not_count_as_age() {
    let mut stand = stand("timed:t=2s");
    stand.turn();
    stand.load(64);
    (0..30).for_each(|_| stand.turn_after(100 * MILLI));
    assert_eq!(outcome(&stand), (64, 0));
}

#[test]
fn cells_in_a_pool_age_once_they_are_due() {
    let mut stand = stand("timed:t=1s");
    stand.turn();
    stand.load(64);
    stand.turn();
    stand.turn_after(1260 * MILLI);
    assert_eq!(outcome(&stand), (0, 64));
}

#[test]
fn backlog_that_is_never_read_empty_is_bounded_by_age() {
    let mut stand = stand("threshold:n=1");
    stand.turn();
    stand.load(20_000);
    // Every turn reads, and none finds the socket empty.
    for _ in 0..25 {
        stand.turn_after(10 * MILLI);
        assert!(stand.waiting() > 0);
    }
    let (in_time, _) = outcome(&stand);
    assert!(in_time > 0);
    while stand.waiting() > 0 {
        stand.turn_after(10 * MILLI);
    }
    assert_eq!(outcome(&stand), (in_time, 20_000 - in_time));
    stand.load(64);
    stand.turn();
    assert_eq!(outcome(&stand), (in_time + 64, 20_000 - in_time));
}
