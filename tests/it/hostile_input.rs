//! Hostile datagrams at every link port of every role, while well-behaved traffic goes on: from a stranger's
//! address, and from the address that the node knows the link by.
//!
//! The exits here admit loopback alone, which [`Nodes::start`] has proven before anything hostile is sent.
//! The sender waits until the node has read what it sent, so that none of it is lost in the kernel and every
//! count below is exact.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use serde_json::Value;
use wire::cell::Direction::{Backward, Forward};
use wire::cell::HEADER_LEN;
use wire::handshake::COOKIE_LEN;

use crate::common::attack::{Material, Port, queue};
use crate::common::nodes::{Nodes, Plan, until};
use crate::common::process::exclusive;
use crate::common::tap::BOTH;
use crate::common::traffic::{Load, Traffic};

/// Datagrams of one attack, from a stranger's address or through the tap. `EDDY_HOSTILE_DATAGRAMS` sets another number.
const DATAGRAMS: usize = 100_000;
/// UDP over IPv4 carries 0 to 65,507 bytes.
const LENGTHS: usize = 65_508;
/// Bytes that may wait at a socket with the system's default buffer, and with the one that root gets.
const IN_FLIGHT: [usize; 2] = [48 << 10, 2 << 20];

const MIXES: usize = 2;

/// Datagrams that were sent, and those of a length that a node does not refuse at once.
#[derive(Default)]
struct Sent {
    all: u64,
    of_cell_len: u64,
    of_handshake_len: u64,
}

/// Sends a datagram of every length, mutations of the recorded ones, and others drawn from these: never more at once
/// than the socket can hold.
fn run(material: &Material, seed: u64, mut send: impl FnMut(&[u8])) -> Sent {
    let wanted = std::env::var("EDDY_HOSTILE_DATAGRAMS").map_or(DATAGRAMS, |n| n.parse().unwrap());
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let (port, cells, handshakes) = (material.port, &material.cells, &material.handshakes);
    assert!(cells.len() >= 30 && !handshakes.is_empty(), "{} cells, {}", cells.len(), handshakes.len());
    let in_flight = IN_FLIGHT[usize::from(rustix::process::getuid().is_root())];
    let (mut sent, mut weight) = (Sent::default(), 0);
    let mut send = |bytes: &[u8]| {
        // The kernel charges some hundred bytes more for a small one.
        weight += bytes.len() + 800;
        if weight > in_flight {
            while queue(port.address).0 > 0 {
                std::thread::yield_now();
            }
            weight = bytes.len() + 800;
        }
        send(bytes);
        sent.all += 1;
        sent.of_cell_len += u64::from(bytes.len() == port.cell_len);
        sent.of_handshake_len += u64::from(port.handshake_lens().contains(&bytes.len()));
        sent.all
    };

    let mut noise = vec![0; LENGTHS];
    rng.fill_bytes(&mut noise);
    (0..LENGTHS).for_each(|len| _ = send(&noise[..len]));
    // Every byte of some cells and of every handshake, one bit each.
    for one in cells.iter().rev().take(10).chain(handshakes) {
        for at in 0..one.len() {
            let mut bytes = one.clone();
            bytes[at] ^= 1 << (rng.next_u32() % 8);
            send(&bytes);
        }
    }
    // Cut at every byte, and longer by some.
    for one in [&cells[0], &handshakes[0]] {
        (0..one.len()).for_each(|len| _ = send(&one[..len]));
        (1..100).for_each(|more| _ = send(&[&one[..], &vec![0; more]].concat()));
    }
    while send(&material.draw(&mut rng)) < wanted as u64 {}
    until("the attack is read", || queue(port.address).0 == 0);
    sent
}

/// The ledger's row of one direction.
#[derive(Clone, Debug)]
struct Reading {
    tally: Value,
}

impl Reading {
    fn of(nodes: &Nodes, port: Port) -> Reading {
        let status = nodes.status(port.position);
        let direction = if port.direction == Forward { "forward" } else { "backward" };
        Reading { tally: status["ledger"]["cells"][direction].clone() }
    }

    fn count(&self, name: &str) -> u64 {
        self.tally[name].as_u64().unwrap()
    }

    fn dropped(&self, reason: &str) -> u64 {
        self.tally["dropped"][reason].as_u64().unwrap_or(0)
    }

    fn dropped_in_all(&self) -> u64 {
        self.tally["dropped"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum()
    }
}

/// Attacks all link ports of one node, from a stranger's address and through the taps.
fn attack(position: usize) {
    let _lock = exclusive();
    // Links are not renewed by age, because a run may take long.
    let mut nodes = Nodes::start(Plan { taps: true, mixes: MIXES, renew_after_s: 3600, ..Plan::quiet() });
    nodes.assert_carries();
    let pids = nodes.pids();
    let opened = nodes.count(0, "/handshakes/channels_opened");
    let handshakes: Vec<u64> = nodes.positions().map(|i| nodes.count(i, "/handshakes/done")).collect();
    let traffic = Traffic::start(nodes.forward(), &nodes.sink, Load::default());
    until("there is something to mutate", || traffic.counts().answered > 200);

    // Recorded before any attack: the taps forget what is old.
    let ports = Port::all(&nodes).into_iter().filter(|port| port.position == position);
    for material in ports.map(|port| Material::of(port, &nodes.taps)).collect::<Vec<_>>() {
        let port = material.port;
        let link = &nodes.taps[port.link() - 1];
        for through_tap in [false, true] {
            let what = format!(
                "{} at node {position}, {:?}",
                if through_tap { "through the tap" } else { "a stranger" },
                port.direction
            );
            let stranger = UdpSocket::bind((port.address.ip(), 0)).unwrap();
            stranger.set_nonblocking(true).unwrap();
            // Handshakes that find control's own sockets full are in the ledger instead.
            let kernel_drops = || nodes.count(position, "/kernel_drops");
            let before = (Reading::of(&nodes, port), kernel_drops());
            let attack = run(&material, position as u64, |bytes| {
                if through_tap {
                    link.inject(port.direction, bytes);
                } else {
                    stranger.send_to(bytes, port.address).unwrap();
                }
            });
            // A worker publishes at the end of the turn that read the last one.
            until(&format!("{what}: everything is counted"), || {
                let now = Reading::of(&nodes, port);
                let grown = |f: &dyn Fn(&Reading) -> u64| f(&now) - f(&before.0);
                grown(&|r| r.dropped_in_all() + r.count("consumed")) >= attack.all
            });
            let after = Reading::of(&nodes, port);
            let grown = |f: &dyn Fn(&Reading) -> u64| f(&after) - f(&before.0);
            println!("{what}: before {} after {}", before.0.tally, after.tally);
            assert_eq!(kernel_drops(), before.1, "{what}: the kernel dropped none");
            // Nobody honest sends a wrong length, so this is exact, and the rest was taken for what it is not.
            let wrong = attack.all - attack.of_cell_len - attack.of_handshake_len;
            assert_eq!(grown(&|r| r.dropped("length")), wrong, "{what}");
            if !through_tap {
                assert_eq!(grown(&|r| r.dropped("stranger")), attack.of_cell_len, "{what}");
            }
            // No cell leaves that did not come in honestly or was made here.
            let honest = grown(&|r| r.count("received")) - attack.all;
            let out = grown(&|r| r.count("sent") + r.count("held"));
            assert!(out <= honest + grown(&|r| r.count("injected")), "{what}: {out} cells left, {honest} came");
            let mut buffer = [0; 2000];
            while let Ok((len, _)) = stranger.recv_from(&mut buffer) {
                assert_eq!(len, COOKIE_LEN, "{what}: a stranger gets no answer but a cookie");
            }
        }
    }

    let counts = traffic.stop();
    println!("traffic meanwhile: {counts:?}");
    assert_eq!((counts.delivered, counts.answered), (counts.sent, counts.sent), "{counts:?}");
    assert_eq!((counts.again, counts.strange), (0, 0), "{counts:?}");
    assert_eq!(nodes.pids(), pids);
    assert_eq!(nodes.count(0, "/handshakes/channels_opened"), opened, "no channel was lost");
    let done: Vec<u64> = nodes.positions().map(|i| nodes.count(i, "/handshakes/done")).collect();
    assert_eq!(done, handshakes, "no link had to be made again");
    nodes.assert_carries();
    nodes.end();
}

#[test]
fn hostile_datagrams_at_the_entry_change_nothing() {
    attack(0);
}

#[test]
fn hostile_datagrams_at_the_first_mix_change_nothing() {
    attack(1);
}

#[test]
fn hostile_datagrams_at_a_later_mix_change_nothing() {
    attack(2);
}

#[test]
fn hostile_datagrams_at_the_exit_change_nothing() {
    attack(3);
}

/// Cells that are caught and mutated in front of their originals, on each link.
const CAUGHT: usize = 300;

#[test]
fn original_of_a_mutated_forward_cell_is_accepted() {
    let _lock = exclusive();
    let mut nodes = Nodes::start(Plan { taps: true, mixes: MIXES, ..Plan::quiet() });
    let traffic = Traffic::start(nodes.forward(), &nodes.sink, Load::default());
    for link in 1..=MIXES + 1 {
        let port = Port::up(&nodes, link);
        let cell_len = port.cell_len;
        let handshakes = || BOTH.map(|direction| nodes.taps[link - 1].counts(direction).handshakes);
        let before = (Reading::of(&nodes, port), handshakes());
        let mutants = Arc::new(AtomicU64::new(0));
        let (sent, mut caught, mut last) = (mutants.clone(), 0, Vec::new());
        nodes.taps[link - 1].script(Some(Box::new(move |direction, bytes| {
            let mut fates = Vec::new();
            // Only when the mutants before have been read, so that the kernel drops none.
            if direction == Forward && bytes.len() == cell_len && caught < CAUGHT && queue(port.address).0 == 0 {
                // Every byte has its turn: each cell has one in sixteen of them flipped, each time others.
                for at in (caught % 16..cell_len).step_by(16) {
                    let mut mutant = bytes.to_vec();
                    mutant[at] ^= 1 << (caught % 8);
                    fates.push(mutant);
                }
                if !last.is_empty() {
                    fates.push([&bytes[..HEADER_LEN], &Vec::split_off(&mut last, HEADER_LEN)].concat());
                }
                last = bytes.to_vec();
                caught += 1;
                sent.fetch_add(fates.len() as u64, Ordering::Relaxed);
            }
            fates.push(bytes.to_vec());
            fates.into_iter().map(|bytes| (Duration::ZERO, direction, bytes)).collect()
        })));
        let wanted = CAUGHT * cell_len.div_ceil(16) - CAUGHT;
        until("enough mutants are sent", || mutants.load(Ordering::Relaxed) >= wanted as u64);
        nodes.taps[link - 1].script(None);
        let grown = |count: &dyn Fn(&Reading) -> u64| {
            let after = Reading::of(&nodes, port);
            (count(&after) - count(&before.0), after)
        };
        let mutants = mutants.load(Ordering::Relaxed);
        until("every mutant is counted", || grown(&Reading::dropped_in_all).0 >= mutants);
        let (refused, after) = grown(&|reading| reading.dropped("header") + reading.dropped("forged"));
        println!("link {link}: {mutants} mutants, {refused} refused, dropped {}", after.tally["dropped"]);
        assert_eq!(grown(&Reading::dropped_in_all).0, refused, "for no other reason, no original above all: {after:?}");
        // On a busy host a node may hear nothing for a second and shake hands again. If it does so twice, the cells
        // in between have keys that the other end has no more, keepalives among them.
        let is_exact = handshakes() == before.1;
        assert!(refused == mutants || !is_exact && refused > mutants, "{refused} of {mutants}: {after:?}");
    }
    let counts = traffic.stop();
    assert_eq!((counts.delivered, counts.answered), (counts.sent, counts.sent), "{counts:?}");
    assert_eq!((counts.again, counts.strange), (0, 0), "{counts:?}");
    nodes.end();
}

#[test]
fn mutated_backward_cell_is_never_delivered() {
    let _lock = exclusive();
    let mut nodes = Nodes::start(Plan { taps: true, mixes: MIXES, ..Plan::quiet() });
    let entry = Port::down(&nodes, 0);
    for link in 1..=MIXES + 1 {
        let port = Port::down(&nodes, link - 1);
        let cell_len = port.cell_len;
        let before = (Reading::of(&nodes, port), Reading::of(&nodes, entry));
        let counts = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let (sent, mut number) = (counts.clone(), 0usize);
        let traffic = Traffic::start(nodes.forward(), &nodes.sink, Load::default());
        nodes.taps[link - 1].script(Some(Box::new(move |direction, bytes| {
            let mut fates = vec![bytes.to_vec()];
            if direction == Backward && bytes.len() == cell_len {
                number += 1;
                let body = usize::from(number.is_multiple_of(40));
                if body == 1 || number.is_multiple_of(20) {
                    let range = if body == 1 { HEADER_LEN..cell_len } else { 0..HEADER_LEN };
                    let mut mutant = bytes.to_vec();
                    mutant[range.start + number * 7 % range.len()] ^= 1 << (number / 40 % 8);
                    fates.insert(0, mutant);
                    sent[body].fetch_add(1, Ordering::Relaxed);
                }
            }
            fates.into_iter().map(|bytes| (Duration::ZERO, direction, bytes)).collect()
        })));
        until("enough mutants are sent", || counts[1].load(Ordering::Relaxed) >= 20);
        nodes.taps[link - 1].script(None);
        let traffic = traffic.stop();
        let [headers, bodies] = [0, 1].map(|i| counts[i].load(Ordering::Relaxed));
        let after = (Reading::of(&nodes, port), Reading::of(&nodes, entry));
        println!("link {link}: {headers} headers, {bodies} bodies, {traffic:?}, {after:?}");
        assert_eq!(after.0.dropped("header") - before.0.dropped("header"), headers, "refused where they came in");
        // The entry notices, wherever it happened; control cells are refused by whom they were for.
        let forged = after.1.dropped("forged") - before.1.dropped("forged");
        assert!(forged <= bodies && forged + 3 >= bodies, "{forged} forged of {bodies}");
        assert_eq!((traffic.again, traffic.strange), (0, 0), "{traffic:?}");
        assert_eq!(traffic.delivered, traffic.sent);
        // The entry checks before it marks; a mix has nothing to check, and takes the mutant for the original.
        assert_eq!(traffic.answered == traffic.sent, link == 1, "{traffic:?}");
        assert!(traffic.answered * 10 > traffic.sent * 9, "{traffic:?}");
    }
    nodes.assert_carries();
    nodes.end();
}

#[test]
fn only_an_intact_message_1_is_answered() {
    let _lock = exclusive();
    let mut nodes = Nodes::start(Plan { taps: true, mixes: MIXES, renew_after_s: 8, ..Plan::default() });
    let traffic = Traffic::start(nodes.forward(), &nodes.sink, Load::default());
    for link in 1..=MIXES + 1 {
        let up = nodes.up(link);
        let len = wire::handshake::half_len(link);
        // The next message 1 is caught and does not arrive, nor does any after it.
        let caught = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let halves = caught.clone();
        nodes.taps[link - 1].script(Some(Box::new(move |direction, bytes| {
            let mut halves = halves.lock().unwrap();
            if direction == Forward && bytes.len() == len {
                if halves.len() < 2 {
                    halves.push(bytes.to_vec());
                }
                return Vec::new();
            }
            vec![(Duration::ZERO, direction, bytes.to_vec())]
        })));
        until("a renewal", || caught.lock().unwrap().len() == 2);
        let halves = caught.lock().unwrap().clone();
        // Halves of one source find each other: true ones that wait must not meet.
        let strangers = [(); 3].map(|()| UdpSocket::bind((up.ip(), 0)).unwrap());
        let refused = |name: &str| nodes.count(link, &format!("/refused/{name}"));
        let answers = |stranger: &UdpSocket| {
            stranger.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let mut buffer = [0; 2000];
            std::iter::from_fn(|| stranger.recv(&mut buffer).ok()).collect::<Vec<usize>>()
        };
        // Alone, and with any one byte altered: no answer.
        let forms = refused("bad-mac1") + refused("handshake-malformed") + refused("handshake-forged");
        let mut tried = 0;
        for (which, half) in halves.iter().enumerate() {
            // The last sixteen bytes are mac2, for cookies, which are not used yet.
            for at in 0..len - 16 {
                let mut mutant = half.clone();
                mutant[at] ^= 1 << (at % 8);
                let pair = if which == 0 { [&mutant, &halves[1]] } else { [&halves[0], &mutant] };
                // Half of a pair is enough to be refused; both halves of every eighth show that a pair is, too.
                for one in pair.iter().filter(|one| at % 8 == 0 || ***one == mutant) {
                    strangers[which].send_to(one, up).unwrap();
                }
                tried += 1;
                if tried % 16 == 0 {
                    until("the node has read it", || queue(up).0 == 0);
                }
            }
        }
        for stranger in &strangers {
            assert_eq!(answers(stranger), Vec::<usize>::new(), "link {link}: nothing altered is answered");
        }
        until("all are refused by control", || {
            refused("bad-mac1") + refused("handshake-malformed") + refused("handshake-forged") >= forms + tried
        });
        // The true one is answered, once.
        let mut got = Vec::new();
        until("the true one is answered", || {
            for half in &halves {
                strangers[2].send_to(half, up).unwrap();
            }
            got.extend(answers(&strangers[2]));
            !got.is_empty()
        });
        for _ in 0..20 {
            for half in &halves {
                strangers[2].send_to(half, up).unwrap();
            }
        }
        got.extend(answers(&strangers[2]));
        nodes.taps[link - 1].script(None);
        assert_eq!(got, [wire::handshake::RESPONSE_LEN], "link {link}: one answer");
    }
    let counts = traffic.stop();
    assert_eq!((counts.delivered, counts.answered), (counts.sent, counts.sent), "{counts:?}");
    assert_eq!((counts.again, counts.strange), (0, 0), "{counts:?}");
    nodes.end();
}
