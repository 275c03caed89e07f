//! Attack: an attacker between two neighbours, before and after their handshake. It sends datagrams of any
//! length, and genuine ones with flipped bits, with mac1 recomputed, to the wrong node, or twice. A node accepts
//! only what the other side sent, answers only a complete message 1, and with fewer bytes than it received.
//! Afterwards the genuine handshake still succeeds.

#![no_main]

use std::net::SocketAddr;
use std::time::Duration;

use control::{Control, Input, Output};
use eddy_fuzz::{LENGTHS, Step, To, address, config, noise_key, set_mac1, wall};
use libfuzzer_sys::fuzz_target;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use wire::ids::Side;
use wire::kdf::x25519_public;

const START: Duration = Duration::from_secs(1000);

fn node(position: usize, seed: u64) -> Control {
    let (config, trust) = config(position);
    Control::new(vec![config], trust, ChaCha20Rng::seed_from_u64(seed), START, wall()).expect("the chain is in order")
}

fn outputs(node: &mut Control) -> Vec<Output> {
    // Nothing is saved here, so nothing of trust is sent.
    std::iter::from_fn(|| Some(node.poll_output()?.1)).filter(|output| !matches!(output, Output::Save(_))).collect()
}

fn handle(node: &mut Control, now: Duration, side: Side, from: SocketAddr, bytes: &[u8]) -> Vec<Output> {
    node.handle(now, 0, Input::Handshake { side, from, datagram: &mut bytes.to_vec() });
    outputs(node)
}

fn sends(outputs: &[Output]) -> Vec<(Side, SocketAddr, Vec<u8>)> {
    let send = |output: &Output| match output {
        Output::Send { side, to, datagram } => Some((*side, *to, datagram.clone())),
        Output::Change(_) | Output::Save(_) | Output::Resolve(_) | Output::Event(_) => None,
    };
    outputs.iter().filter_map(send).collect()
}

/// True if a receiver with this public key accepts form and mac1 of the datagram.
fn well_formed(datagram: &[u8], like: &[u8], receiver: &[u8; 32]) -> bool {
    let mut set = datagram.to_vec();
    set_mac1(&mut set, receiver);
    datagram.len() == like.len() && datagram[..4] == like[..4] && set == datagram
}

fn noise_bytes(datagram: &[u8]) -> &[u8] {
    &datagram[8..datagram.len() - 32]
}

struct World {
    now: Duration,
    ticked: bool,
    initiator: Control,
    responder: Control,
    /// Public keys that mac1 is keyed with: the responder's static, and the initiator's ephemeral.
    responder_key: [u8; 32],
    initiator_key: [u8; 32],
    /// Both halves of message 1, and message 2 by another instance of the responder.
    recorded: [Vec<u8>; 3],
    /// The halves that the responder has received intact.
    had: [bool; 2],
    answered: bool,
    accepted: bool,
}

impl World {
    fn new(position: usize) -> World {
        let (mut initiator, mut responder, mut twin) =
            (node(position, 1), node(position + 1, 2), node(position + 1, 3));
        for node in [&mut initiator, &mut responder, &mut twin] {
            node.tick(START, wall());
        }
        let _ = (outputs(&mut responder), outputs(&mut twin));
        let halves = sends(&outputs(&mut initiator));
        let [(_, _, first), (_, _, second)] = &halves[..] else { panic!("an initiator sends two halves") };
        assert!(handle(&mut twin, START, Side::Up, address(position), first).is_empty());
        let response = sends(&handle(&mut twin, START, Side::Up, address(position), second));
        let [(_, _, response)] = &response[..] else { panic!("a whole message 1 is answered once") };
        World {
            now: START,
            ticked: false,
            responder_key: x25519_public(&noise_key(position + 1)),
            initiator_key: first[8..40].try_into().expect("32 bytes"),
            recorded: [first.clone(), second.clone(), response.clone()],
            initiator,
            responder,
            had: [false; 2],
            answered: false,
            accepted: false,
        }
    }

    fn deliver(&mut self, to: To, mut datagram: Vec<u8>) {
        if to.mac1 {
            set_mac1(&mut datagram, if to.responder { &self.responder_key } else { &self.initiator_key });
        }
        // mac2 is ignored.
        if let Some(at) = datagram.len().checked_sub(16) {
            datagram[at..].fill(0);
        }
        let from = SocketAddr::from(([10, 9, 9, to.from], 2000));
        let side = if to.up { Side::Up } else { Side::Down };
        if to.responder { self.to_responder(side, from, &datagram) } else { self.to_initiator(side, from, &datagram) }
    }

    fn to_responder(&mut self, side: Side, from: SocketAddr, datagram: &[u8]) {
        let counters = self.responder.class(0).counters();
        let (done, refused, links) =
            (counters.handshakes_done, counters.refused_total(), self.responder.class(0).links());
        let outputs = handle(&mut self.responder, self.now, side, from, datagram);
        let part = [0, 1].into_iter().find(|part| {
            let like = &self.recorded[*part];
            well_formed(datagram, like, &self.responder_key) && noise_bytes(datagram) == noise_bytes(like)
        });
        let whole = side == Side::Up && part.is_some_and(|part| self.had[1 - part]);
        if let (Side::Up, Some(part)) = (side, part) {
            self.had[part] = true;
        }
        let sent = sends(&outputs);
        if sent.is_empty() {
            assert!(outputs.is_empty(), "{outputs:?} without a response");
            assert_eq!(
                (self.responder.class(0).counters().handshakes_done, self.responder.class(0).links()),
                (done, links)
            );
            let waits = [0, 1].into_iter().any(|part| well_formed(datagram, &self.recorded[part], &self.responder_key));
            assert!(waits || self.responder.class(0).counters().refused_total() > refused, "it is counted");
            return;
        }
        assert!(whole && !self.answered, "a response without a complete message 1");
        self.answered = true;
        let [(Side::Up, to, response)] = &sent[..] else { panic!("{sent:?}") };
        assert!(*to == from && response.len() <= 2 * datagram.len(), "a response is never longer");
    }

    fn to_initiator(&mut self, side: Side, from: SocketAddr, datagram: &[u8]) {
        let refused = self.initiator.class(0).counters().refused_total();
        let outputs = handle(&mut self.initiator, self.now, side, from, datagram);
        let genuine = &self.recorded[2];
        let intact = side == Side::Down
            && well_formed(datagram, genuine, &self.initiator_key)
            && datagram[..genuine.len() - 32] == genuine[..genuine.len() - 32];
        assert!(sends(&outputs).is_empty(), "message 2 is not answered");
        if outputs.is_empty() {
            // A hop is a responder on its other side, where halves of messages 1 may wait.
            let other = self.initiator.class(0).counters().refused_total() > refused || side == Side::Up;
            assert!(other, "it is counted");
            assert!(!intact || self.accepted || self.ticked, "the genuine response was refused");
        } else {
            assert!(intact && !self.accepted, "accepted: {outputs:?}");
            assert_eq!(self.initiator.class(0).links(), 1);
            self.accepted = true;
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Raw { to, len, bytes } => {
                let mut datagram = vec![0; LENGTHS[usize::from(len) % LENGTHS.len()]];
                datagram.iter_mut().zip(bytes).for_each(|(byte, with)| *byte = with);
                self.deliver(to, datagram);
            }
            Step::Recorded { to, which, flips } => {
                let mut datagram = self.recorded[usize::from(which) % 3].clone();
                for (at, bits) in flips {
                    let at = usize::from(at) % datagram.len();
                    datagram[at] ^= bits;
                }
                self.deliver(to, datagram);
            }
            Step::Tick(ms) => {
                self.ticked = true;
                self.now += Duration::from_millis(ms.into());
                for node in [&mut self.initiator, &mut self.responder] {
                    node.tick(self.now, wall());
                    let sent = sends(&outputs(node));
                    assert!(
                        sent.iter().all(|(side, ..)| *side == Side::Down),
                        "handshakes start on the down side only"
                    );
                }
            }
        }
    }
}

fuzz_target!(|input: (bool, &[u8])| {
    let (between_hops, mut script) = input;
    let position = usize::from(between_hops);
    let mut world = World::new(position);
    for _ in 0..100 {
        let Some(step) = Step::take(&mut script) else { break };
        world.step(step);
    }
    // The genuine handshake still succeeds, from an address that was not used before.
    let [first, second, response] = world.recorded.clone();
    if !world.answered {
        let from = SocketAddr::from(([10, 8, 8, 8], 2000));
        world.had = [false; 2];
        world.to_responder(Side::Up, from, &first);
        world.to_responder(Side::Up, from, &second);
        assert!(world.answered, "the genuine message 1 was refused");
    }
    if !world.accepted && !world.ticked {
        world.to_initiator(Side::Down, address(position + 1), &response);
        assert!(world.accepted);
    }
});
