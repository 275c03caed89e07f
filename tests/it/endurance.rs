//! Load without end: copies by the thousand, floods, long flows, more flows than descriptors, neighbours that restart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use wire::cell::Direction::Forward;

use crate::common::attack::{Port, queue};
use crate::common::nodes::{Nodes, Plan, until, while_receiving};
use crate::common::process::{exclusive, may_open, tallies};
use crate::common::traffic::{Load, Traffic};
use crate::robustness::{PROBES, SENT_BY_ENTRY, counted, dropped_at, lost_at_ends, next, socket, there_and_back};

/// A class S cell carries one datagram of this length.
const LEN: usize = 150;

#[test]
fn thousand_copies_of_a_cell_pass_once_on_every_link() {
    const COPIES: u64 = 1000;
    let mut nodes = Nodes::start(Plan { taps: true, channels: 1, ..Plan::quiet() });
    let pids = nodes.pids();
    let client = socket();
    there_and_back(&nodes, &client, b"the flow is open");
    for port in Port::all(&nodes) {
        let (Port { position, direction, cell_len: len, .. }, link, dropped) = (port, port.link(), dropped_at(&port));
        // Copies of data cells, and of all: control refuses those of its own cells, and the kernel counts what it had
        // no room for.
        let copies = || {
            let report = nodes.status(position);
            let count = |pointer: &str| report.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
            let of_data = count(&format!("{dropped}/replay")) + count("/kernel_drops");
            let of_control = ["/refused/cell-replayed", "/refused/unknown-slot"].map(count);
            let unread = count(&format!("{dropped}/control-queue-full"));
            (of_data, of_data + of_control.iter().sum::<u64>() + unread)
        };
        let before = copies();
        let cells = Arc::new(AtomicU64::new(0));
        let counter = cells.clone();
        there_and_back(&nodes, &client, b"no keepalive is due now");
        nodes.taps[link - 1].script(Some(Box::new(move |of, bytes| {
            let copied = of == direction && bytes.len() == len;
            counter.fetch_add(u64::from(copied), Ordering::Relaxed);
            vec![(Duration::ZERO, of, bytes.to_vec()); if copied { 1 + COPIES as usize } else { 1 }]
        })));
        for number in 0..5 {
            there_and_back(&nodes, &client, &[number]);
            // The next cell finds an empty queue: the kernel may drop copies, and none of the originals.
            until(&format!("all copies {direction:?} on link {link} are counted"), || {
                copies().1 >= before.1 + COPIES * cells.load(Ordering::Relaxed)
            });
        }
        nodes.taps[link - 1].script(None);
        let wanted = COPIES * cells.load(Ordering::Relaxed);
        assert!(wanted >= 5 * COPIES);
        until(&format!("{wanted} copies {direction:?} on link {link}"), || copies().1 >= before.1 + wanted);
        let after = copies();
        assert_eq!(after.1, before.1 + wanted, "{direction:?} on link {link}");
        assert!(after.0 >= before.0 + 5 * COPIES, "{direction:?} on link {link}");
    }
    there_and_back(&nodes, &client, b"the next to arrive");
    nodes.assert_unharmed(&pids);
}

#[test]
fn overtaken_cell_is_delivered_within_the_replay_window() {
    let mut nodes = Nodes::start(Plan { taps: true, channels: 1, ..Plan::quiet() });
    let pids = nodes.pids();
    let len = nodes.shape().cell_len(Forward, 2);
    let client = socket();
    let exit = there_and_back(&nodes, &client, b"the flow is open");
    let old = || nodes.count(2, "/ledger/cells/forward/dropped/old");
    // Cells that mix 1 sends by itself: keepalives, and what control has to say.
    let own = || nodes.count(1, "/ledger/cells/forward/injected");
    let mut first = 0;
    for overtaken_by in [1000, 4095, 4096] {
        let (late, old_before) = loop {
            first += 100_000;
            let before = (own(), old());
            let late = overtake(&nodes, &client, exit, len, first, overtaken_by);
            if own() == before.0 {
                break (late, before.1);
            }
            println!("among {overtaken_by} cells was one of no channel: once more");
        };
        assert_eq!(late, overtaken_by < 4096, "overtaken by {overtaken_by}");
        counted(&nodes, 2, "/ledger/cells/forward/dropped/old", old_before + u64::from(!late));
        there_and_back(&nodes, &client, b"the next to arrive");
    }
    nodes.assert_unharmed(&pids);
}

/// Holds a cell of link 2 back until `overtaken_by` others have passed. Returns true if it was delivered then; the
/// others must be, in their order.
fn overtake(nodes: &Nodes, client: &UdpSocket, exit: SocketAddr, len: usize, first: u32, overtaken_by: u32) -> bool {
    let released = Arc::new(AtomicBool::new(false));
    let (mut held, mut passed, done) = (None, 0, released.clone());
    nodes.taps[1].script(Some(Box::new(move |of, bytes| {
        let mut fates = vec![(Duration::ZERO, of, bytes.to_vec())];
        if of != Forward || bytes.len() != len || done.load(Ordering::Acquire) {
            return fates;
        }
        if held.is_none() {
            held = fates.pop();
            return fates;
        }
        passed += 1;
        if passed == overtaken_by {
            fates.extend(held.clone());
            done.store(true, Ordering::Release);
        }
        fates
    })));
    let send = |number: u32| {
        let mut data = [0; LEN];
        data[..4].copy_from_slice(&number.to_be_bytes());
        client.send_to(&data, nodes.forward()).unwrap();
    };
    // Datagrams of an earlier attempt are skipped.
    let receive = || {
        let mut numbers = std::iter::repeat_with(|| u32::from_be_bytes(next(&nodes.sink).0[..4].try_into().unwrap()));
        numbers.find(|number| *number >= first).unwrap()
    };
    send(first);
    let (mut last, mut late) = (first, false);
    while !released.load(Ordering::Acquire) {
        // Few enough to wait in any socket.
        let some = last + 1..last + 33;
        some.clone().for_each(send);
        for want in some {
            let mut got = receive();
            if got == first {
                late = true;
                got = receive();
            }
            assert_eq!(got, want, "the others keep their order");
            last = got;
        }
        // An answer, so that no keepalive is due.
        nodes.sink.send_to(b"go on", exit).unwrap();
        assert_eq!(next(client).0, b"go on");
    }
    assert!(last >= first + overtaken_by - 100, "nearly all cells are datagrams");
    nodes.taps[1].script(None);
    late || overtaken_by < 4096 && receive() == first
}

#[test]
fn twenty_thousand_messages_arrive_once_and_in_order() {
    let _lock = exclusive();
    let mut nodes = Nodes::start(Plan::default());
    let pids = nodes.pids();
    let load = Load { flows: 1, rate: 20_000, len: LEN, ..Load::default() };
    let counts = Traffic::exchange(nodes.forward(), &nodes.sink, load, 20_000);
    assert_eq!(counts.sent, 20_000);
    counts.assert_whole();
    for position in nodes.positions() {
        let report = nodes.status(position);
        assert!(tallies(&report).all(|tally| tally["closed"] == true), "{report:#}");
        assert_eq!(report["kernel_drops"], 0, "{report:#}");
    }
    nodes.assert_unharmed(&pids);
}

/// The kernel's drops at a socket of this machine.
fn kernel_drops_at(address: SocketAddr) -> u64 {
    queue(address).1
}

#[test]
fn malformed_flood_costs_another_forward_nothing() {
    const EACH: usize = 10_000;
    let _lock = exclusive();
    let quiet = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut nodes = Nodes::start(Plan { forwards: vec![quiet.local_addr().unwrap()], ..Plan::default() });
    let pids = nodes.pids();
    counted(&nodes, 0, SENT_BY_ENTRY, PROBES);
    let before = nodes.status(0);
    // For pymix: a whole address in front of a payload that is too long.
    let mut oversized = vec![0; 65_507];
    oversized[..6].copy_from_slice(&[127, 0, 0, 1, 0, 9]);
    let ports = [nodes.forward(), nodes.pymix()];
    let flood = std::thread::spawn(move || {
        let (socket, began) = (socket(), Instant::now());
        let sent = ports.map(|port| {
            let kinds = [&[][..], &[1], &oversized];
            kinds.map(|data| (0..EACH).filter(|_| socket.send_to(data, port).is_ok()).count() as u64)
        });
        (sent, began.elapsed())
    });
    let load = Load { flows: 10, rate: 1000, len: LEN, ..Load::default() };
    let counts = Traffic::exchange(nodes.further_forward(0), &quiet, load, 5000);
    let (sent, took) = flood.join().unwrap();
    println!("flood of {sent:?} in {took:?}, meanwhile {counts:?}");
    assert_eq!(sent, [[EACH as u64; 3]; 2]);
    // The other traffic: once, in order, and all of it but what the kernel had no room for on its way.
    let links: Vec<SocketAddr> = Port::all(&nodes).into_iter().map(|port| port.address).collect();
    let on_its_way: u64 = links.iter().chain([&nodes.further_forward(0)]).map(|at| kernel_drops_at(*at)).sum();
    assert!(counts.sent - counts.answered <= on_its_way, "{counts:?}, {on_its_way} dropped on the way");
    assert_eq!((counts.again, counts.reordered, counts.strange), (0, 0, 0), "{counts:?}");
    // The flood: every datagram that the kernel handed over is accounted for.
    let now = || {
        let entry = nodes.status(0);
        let tally = |report: &Value, name: &str| {
            report["ledger"]["datagrams"]["forward"].pointer(name).and_then(Value::as_u64).unwrap_or(0)
        };
        ["/received", "/dropped/too-large", "/dropped/bad-address", "/consumed"]
            .map(|name| tally(&entry, name) - tally(&before, name))
    };
    let missing = ports.map(kernel_drops_at);
    let flooded = 6 * EACH as u64 - missing.iter().sum::<u64>();
    let loaded = counts.sent - kernel_drops_at(nodes.further_forward(0));
    until("the flood is counted", || now()[0] >= flooded + loaded);
    let [received, too_large, bad_address, consumed] = now();
    assert_eq!(received, flooded + loaded);
    assert_eq!(received, too_large + bad_address + consumed, "nothing was dropped for another reason");
    assert!(too_large > 0 && too_large <= 2 * EACH as u64);
    assert!(bad_address > 0 && bad_address <= 2 * EACH as u64);
    println!(
        "of the flood the kernel dropped {missing:?}, the entry {too_large} as too large, {bad_address} as no address"
    );
    nodes.assert_unharmed(&pids);
}

#[test]
fn exit_at_its_descriptor_limit_keeps_flows_and_recovers() {
    const FLOWS: u32 = 1100;
    const LIMIT: u64 = 1024;
    let _lock = exclusive();
    if !may_open(2 * u64::from(FLOWS)) {
        return;
    }
    let idle = "flow_idle_s = 20".to_owned();
    let mut nodes = Nodes::start(Plan {
        channels: 16,
        extra: vec![(0, idle.clone()), (3, idle + "\nmax_sockets = 8000\nmax_flows_per_channel = 8000")],
        descriptors: Some(LIMIT),
        ..Plan::default()
    });
    let pids = nodes.pids();
    let exit = nodes.exit();
    nodes.sink.set_nonblocking(true).unwrap();
    let open_before = [nodes.descriptors(0), nodes.descriptors(exit)];
    let lost_before = lost_at_ends(&nodes);
    let clients: Vec<UdpSocket> = (0..FLOWS).map(|_| socket()).collect();
    let (mut sent, mut delivered, mut rounds) = (0, 0, 0);
    // One datagram of each of some clients, each of which arrives or is dropped under a name. Which arrived, and from
    // where.
    let mut send_round = |nodes: &Nodes, some: Range<u32>| {
        rounds += 1;
        let mut who = BTreeMap::new();
        // Few enough at once for any socket's buffer: the kernel drops none.
        for few in some.collect::<Vec<_>>().chunks(50) {
            for client in few {
                let data = [client.to_be_bytes(), u32::to_be_bytes(rounds)].concat();
                clients[*client as usize].send_to(&data, nodes.forward()).unwrap();
                sent += 1;
            }
            until("every datagram has arrived or is counted as dropped", || {
                while_receiving(&nodes.sink, &mut [0; 64], |bytes, from| {
                    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
                    delivered += 1;
                    assert_eq!((number(4), who.insert(number(0), from)), (rounds, None), "delivered once");
                });
                sent == delivered + lost_at_ends(nodes) - lost_before
            });
        }
        who
    };

    // More clients than the exit has descriptors for.
    let mut who = BTreeMap::new();
    let refused = |position: usize, reason: &str| {
        nodes.count(position, &format!("/ledger/datagrams/forward/dropped/{reason}")) > 0
    };
    until("the exit has no more descriptors, and the entry knows", || {
        who = send_round(&nodes, 0..FLOWS);
        refused(exit, "sockets-full") && refused(0, "exit-full")
    });
    let (open, flows) = (nodes.descriptors(exit), nodes.count(exit, "/flows"));
    println!("{flows} flows, {open} of {LIMIT} descriptors at the exit");
    // A quarter is kept for channels with few sockets, and 320 for the resolver and the node.
    assert!(open as u64 > LIMIT * 2 / 5 && open as u64 <= LIMIT, "{open}");
    assert_eq!(nodes.descriptors(0), open_before[0], "an entry has no descriptor per client");
    for (position, words) in [(exit, "open files"), (0, "the exit refused")] {
        assert!(nodes.said(position).iter().any(|line| line.contains(words)), "{:#?}", nodes.said(position));
    }
    // Those that have one keep it.
    for _ in 0..3 {
        let again = send_round(&nodes, 0..FLOWS);
        let kept = who.iter().filter(|(client, from)| again.get(client) == Some(from)).count();
        assert_eq!(kept, who.len(), "all flows live on, and leave from the sockets that they had");
        who = again;
    }
    assert!(who.len() > 400, "{}", who.len());
    // Idle flows end, and with them their descriptors.
    until("descriptors come back", || nodes.descriptors(exit) <= open_before[1]);
    let mut fresh = BTreeSet::new();
    until("new flows work", || {
        fresh.extend(send_round(&nodes, 1000..FLOWS).into_keys());
        fresh.len() == 100
    });
    nodes.sink.set_nonblocking(false).unwrap();
    nodes.assert_unharmed(&pids);
}

/// Waits until a client's datagrams go both ways again; none that was sent before counts.
fn resumes(nodes: &Nodes, client: &UdpSocket, since: Instant, what: &str) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let first = NUMBER.load(Ordering::Relaxed);
    let mut buffer = [0; 64];
    let mut answered = false;
    until(what, || {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        client.send_to(&number, nodes.forward()).unwrap();
        while_receiving(&nodes.sink, &mut buffer, |bytes, from| _ = nodes.sink.send_to(bytes, from));
        while_receiving(client, &mut buffer, |bytes, _| {
            answered = answered || bytes.try_into().is_ok_and(|bytes| u64::from_be_bytes(bytes) >= first);
        });
        answered
    });
    println!("{what} after {:.1?}", since.elapsed());
}

/// Ends some nodes, starts them again, and waits for one and the same client's traffic to go both ways.
fn restart(how: &str, which: &[&[usize]]) {
    // Links are not renewed by age, so they must come back without it.
    let mut nodes = Nodes::start(Plan { renew_after_s: 3600, ..Plan::default() });
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    for socket in [&client, &nodes.sink] {
        socket.set_nonblocking(true).unwrap();
    }
    resumes(&nodes, &client, Instant::now(), "traffic begins");
    for some in which {
        let before = nodes.pids();
        for position in *some {
            if how == "SIGKILL" { nodes.kill(*position) } else { nodes.stop(*position) }
        }
        let since = Instant::now();
        some.iter().for_each(|position| nodes.run(*position));
        resumes(
            &nodes,
            &client,
            since,
            &format!("nodes {some:?} of {}, ended by {how}: traffic is back", before.len()),
        );
        for position in nodes.positions() {
            assert!(nodes.is_alive(position));
            assert_eq!(nodes.pid(position) == before[position], !some.contains(&position), "node {position}");
        }
    }
    nodes.sink.set_nonblocking(false).unwrap();
    let pids = nodes.pids();
    nodes.assert_unharmed(&pids);
}

#[test]
fn terminated_node_reconnects_after_restart() {
    restart("SIGTERM", &[&[0], &[1], &[2], &[3]]);
}

#[test]
fn killed_node_reconnects_after_restart() {
    restart("SIGKILL", &[&[0], &[1], &[2], &[3]]);
}

#[test]
fn all_mixes_restarted_at_once_reconnect() {
    restart("SIGKILL", &[&[1, 2]]);
    restart("SIGTERM", &[&[1, 2]]);
}
