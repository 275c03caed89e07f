//! Everything that nodes renew while they run, under a stream that does not stop: keys of links, generations of keys,
//! channels and epochs. Nothing is lost or comes twice. In memory, a flow is reordered at most as often as channels are
//! replaced, and by no more than the hops hold its cells.
//!
//! In memory every channel begins shortly before its second generation of keys. Processes have short timers;
//! `.ci/renewal.sh` sends as many cells as a generation has.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use dataplane::socket::memory::Datagram;
use dataplane::{MILLI, Nanos, SECOND};
use serde_json::Value;
use wire::cell::Class;

use crate::common::memchain::{Chain, Plan as MemPlan, TURN, app};
use crate::common::nodes::{Nodes, Plan};
use crate::common::process::exclusive;
use crate::common::traffic::{Load, Traffic};

/// The order of one flow at one end.
#[derive(Default)]
struct Order {
    seen: HashSet<u64>,
    /// The arrivals of numbers that were the highest so far.
    records: BTreeMap<u64, Nanos>,
    /// Times at which it was reordered: more than a second apart, so one for each channel that it left.
    times: Vec<Nanos>,
    /// How long after a later number the latest one came.
    late_max: Nanos,
}

impl Order {
    fn arrived(&mut self, number: u64, now: Nanos) {
        assert!(self.seen.insert(number), "{number} came twice");
        match self.records.range(number..).next() {
            None => _ = self.records.insert(number, now),
            Some((_, overtaken_at)) => {
                self.late_max = self.late_max.max(now - overtaken_at);
                if self.times.last().is_none_or(|last| now > last + SECOND) {
                    self.times.push(now);
                }
            }
        }
    }
}

#[test]
fn renewals_under_a_stream_lose_nothing_in_memory() {
    const CLIENTS: u16 = 8;
    const SECONDS: u64 = 25;
    let mut plan = MemPlan {
        class: Class::S,
        interval_s: 1,
        epoch_s: 10,
        lifetime_s: 20,
        first: (1 << 20) - 300,
        ..MemPlan::default()
    };
    plan.timing.renew_after = Duration::from_secs(2);
    plan.timing.expire_after = Duration::from_secs(12);
    let mixing = plan.mixing.largest_delay().as_nanos() as Nanos * plan.mixes as Nanos;
    let (wanted, epoch) = (plan.channels, Nanos::from(plan.epoch_s) * SECOND);
    let mut chain = Chain::new(plan);
    chain.open();

    let clients: Vec<_> = (0..CLIENTS).map(|client| app(20, 1 + client)).collect();
    let mut orders: Vec<[Order; 2]> = clients.iter().map(|_| Default::default()).collect();
    let (began, mut sent) = (chain.now, 0u64);
    let mut step = 0;
    while chain.now < began + (SECONDS + 1) * SECOND {
        if chain.now < began + SECONDS * SECOND {
            for _ in 0..2 {
                let client = (sent % u64::from(CLIENTS)) as usize;
                chain.send(clients[client], &sent.to_be_bytes());
                sent += 1;
            }
        }
        step += 1;
        chain.run_until(began + step * MILLI);
        let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("eight bytes"));
        let client = |number: u64| (number % u64::from(CLIENTS)) as usize;
        for datagram in chain.receive(chain.plan.destination) {
            let number = number(&datagram.bytes);
            orders[client(number)][0].arrived(number, chain.now);
            chain.apps.send(Datagram { from: chain.plan.destination, to: datagram.from, bytes: datagram.bytes });
        }
        for (at, order) in clients.iter().zip(&mut orders) {
            chain.receive(*at).iter().for_each(|datagram| order[1].arrived(number(&datagram.bytes), chain.now));
        }
        // A record of every datagram on a link would fill the memory.
        chain.seen.borrow_mut().clear();
    }

    for way in 0..2 {
        let arrived: usize = orders.iter().map(|order| order[way].seen.len()).sum();
        assert_eq!(arrived as u64, sent, "{:#?}", chain.notes);
    }
    chain.assert_lossless();

    // All of it happened.
    for link in 1..=chain.shape.hops() {
        assert!(chain.keys.slots[&link].len() >= 9, "link {link}: {} handshakes", chain.keys.slots[&link].len());
    }
    assert!(chain.now / epoch >= began / epoch + 2, "two changes of the epoch");
    let replaced = chain.keys.channels.len() - wanted;
    assert!(replaced >= wanted, "{replaced} channels were replaced");
    assert!(sent / (wanted + replaced) as u64 > 1000, "each channel has used two generations of keys");

    // A datagram arrives at the end of a step.
    let most = mixing + 2 * chain.shape.hops() as Nanos * TURN + MILLI;
    let orders = || orders.iter().flatten();
    let late_max = orders().map(|order| order.late_max).max().unwrap();
    let times = orders().map(|order| order.times.len()).max().unwrap();
    println!(
        "{sent} datagrams, {replaced} channels replaced: a flow was reordered {times} times at most, by {:?} of {:?}",
        Duration::from_nanos(late_max),
        Duration::from_nanos(mixing)
    );
    assert!(late_max <= most, "{late_max} ns");
}

/// Sends a stream through three mixes with short timers. A datagram that does not arrive must be one that the kernel
/// dropped and counted. Returns the cells that a channel has sent.
fn renew_under_a_stream(plan: Plan, load: Load, seconds: u64) -> u64 {
    let _lock = exclusive();
    let mixing = plan.mixing.largest_delay() * 3;
    let (wanted, renew_after_s) = (plan.channels as u64, plan.renew_after_s);
    let mut nodes = Nodes::start(Plan { mixes: 3, ..plan });
    nodes.wait_for_channels();
    let pids = nodes.pids();
    let channels = |nodes: &Nodes| nodes.count(0, "/handshakes/channels_opened");
    let (before, epoch_before) = (channels(&nodes), nodes.count(0, "/trust/epoch"));
    let counts = Traffic::exchange(nodes.forward(), &nodes.sink, load, u64::from(load.rate) * seconds);

    let reports: Vec<Value> = nodes.positions().map(|position| nodes.status(position)).collect();
    let number = |report: &Value, pointer: &str| report.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let kernel: u64 = reports.iter().map(|report| number(report, "/kernel_drops")).sum();
    let kernel = kernel + counts.kernel_drops;
    let replaced = channels(&nodes) - before;
    let cells = number(&reports[0], "/ledger/cells/forward/sent");
    println!(
        "{counts:?}: {cells} cells, {replaced} channels replaced, mixing holds cells for {mixing:?} at most, the kernel \
         dropped {kernel}"
    );
    let lost: Vec<_> = reports.iter().map(|report| report["ledger"].clone()).collect();
    assert!(counts.sent - counts.answered <= kernel, "{kernel} dropped by the kernel: {lost:#?}");
    assert_eq!((counts.again, counts.strange), (0, 0), "{counts:?}");
    assert!(counts.reordered == 0 || replaced > 0, "{counts:?}");

    // All of it happened.
    for report in &reports[..reports.len() - 1] {
        assert!(number(report, "/handshakes/done") > seconds / (2 * renew_after_s), "links are renewed: {report:#}");
    }
    assert!(replaced >= wanted, "{replaced} channels were replaced");
    assert!(number(&nodes.status(0), "/trust/epoch") > epoch_before, "the epoch has changed");
    nodes.assert_unharmed(&pids);
    cells / (wanted + replaced)
}

#[test]
fn renewals_under_a_stream_lose_nothing() {
    let plan = Plan { renew_after_s: 2, epoch_s: 10, lifetime_s: 20, ..Plan::default() };
    renew_under_a_stream(plan, Load { rate: 400, ..Load::default() }, 25);
}

/// With lifetimes in which a channel sends more cells than a generation has.
#[test]
#[ignore = "takes minutes and a quiet machine with receive buffers of 8 MB: .ci/renewal.sh runs it"]
fn renewals_under_20000_cells_per_second_lose_nothing() {
    let seconds = std::env::var("EDDY_RENEWAL_SECONDS").map_or(300, |s| s.parse().unwrap());
    let mixing = "threshold-or-timed:n=64,n_min=8,t=5ms".parse().unwrap();
    let plan = Plan { mixing, channels: 1, renew_after_s: 10, epoch_s: 60, lifetime_s: 240, ..Plan::default() };
    let load = Load { flows: 8, rate: 20_000, len: 150, under_way: 8192, answers: true };
    let cells = renew_under_a_stream(plan, load, seconds);
    println!("{cells} cells for each channel, {} generations of keys", cells as f64 / f64::from(1 << 20));
    assert!(cells > 1 << 20, "each channel has used two generations of keys");
}
