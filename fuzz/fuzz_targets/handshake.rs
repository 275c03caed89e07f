//! Two neighbours before and after their handshake, and whatever anybody puts between them: datagrams of
//! any length, and the true ones with bits flipped, with mac1 set anew, to the wrong node, twice. Nothing is
//! accepted but what the other side sent, nothing is answered but a whole message 1, and that with less
//! than it brought; and the true handshake passes afterwards.

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
    Control::new(config(position), ChaCha20Rng::seed_from_u64(seed), START).expect("the chain is in order")
}

fn outputs(node: &mut Control) -> Vec<Output> {
    std::iter::from_fn(|| node.poll_output()).collect()
}

fn handle(node: &mut Control, now: Duration, side: Side, from: SocketAddr, bytes: &[u8]) -> Vec<Output> {
    node.handle(now, wall(), Input::Handshake { side, from, datagram: &mut bytes.to_vec() });
    outputs(node)
}

fn sends(outputs: &[Output]) -> Vec<(Side, SocketAddr, Vec<u8>)> {
    let send = |output: &Output| match output {
        Output::Send { side, to, datagram } => Some((*side, *to, datagram.clone())),
        Output::Data(_) | Output::Event(_) => None,
    };
    outputs.iter().filter_map(send).collect()
}

/// Whether a receiver with this public key would look at a datagram at all.
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
    caller: Control,
    callee: Control,
    /// Public keys that mac1 of messages to each is made with: its static, and the caller's ephemeral.
    callee_key: [u8; 32],
    caller_key: [u8; 32],
    /// Both halves of message 1, and message 2 as another incarnation of the callee wrote it.
    recorded: [Vec<u8>; 3],
    /// Which halves the callee has had intact.
    had: [bool; 2],
    answered: bool,
    accepted: bool,
}

impl World {
    fn new(position: usize) -> World {
        let (mut caller, mut callee, mut twin) = (node(position, 1), node(position + 1, 2), node(position + 1, 3));
        for node in [&mut caller, &mut callee, &mut twin] {
            node.tick(START, wall());
        }
        let _ = (outputs(&mut callee), outputs(&mut twin));
        let halves = sends(&outputs(&mut caller));
        let [(_, _, first), (_, _, second)] = &halves[..] else { panic!("a caller sends two halves") };
        assert!(handle(&mut twin, START, Side::Up, address(position), first).is_empty());
        let answer = sends(&handle(&mut twin, START, Side::Up, address(position), second));
        let [(_, _, answer)] = &answer[..] else { panic!("a whole message 1 is answered once") };
        World {
            now: START,
            ticked: false,
            callee_key: x25519_public(&noise_key(position + 1)),
            caller_key: first[8..40].try_into().expect("32 bytes"),
            recorded: [first.clone(), second.clone(), answer.clone()],
            caller,
            callee,
            had: [false; 2],
            answered: false,
            accepted: false,
        }
    }

    fn deliver(&mut self, to: To, mut datagram: Vec<u8>) {
        if to.mac1 {
            set_mac1(&mut datagram, if to.callee { &self.callee_key } else { &self.caller_key });
        }
        // mac2 is not looked at.
        if let Some(at) = datagram.len().checked_sub(16) {
            datagram[at..].fill(0);
        }
        let from = SocketAddr::from(([10, 9, 9, to.from], 2000));
        let side = if to.up { Side::Up } else { Side::Down };
        if to.callee { self.to_callee(side, from, &datagram) } else { self.to_caller(side, from, &datagram) }
    }

    fn to_callee(&mut self, side: Side, from: SocketAddr, datagram: &[u8]) {
        let counters = self.callee.counters();
        let (done, refused, links) = (counters.handshakes_done, counters.refused_total(), self.callee.links());
        let outputs = handle(&mut self.callee, self.now, side, from, datagram);
        let part = [0, 1].into_iter().find(|part| {
            let like = &self.recorded[*part];
            well_formed(datagram, like, &self.callee_key) && noise_bytes(datagram) == noise_bytes(like)
        });
        let whole = side == Side::Up && part.is_some_and(|part| self.had[1 - part]);
        if let (Side::Up, Some(part)) = (side, part) {
            self.had[part] = true;
        }
        let sent = sends(&outputs);
        if sent.is_empty() {
            assert!(outputs.is_empty(), "{outputs:?} without an answer");
            assert_eq!((self.callee.counters().handshakes_done, self.callee.links()), (done, links));
            let waits = [0, 1].into_iter().any(|part| well_formed(datagram, &self.recorded[part], &self.callee_key));
            assert!(waits || self.callee.counters().refused_total() > refused, "it is counted");
            return;
        }
        assert!(whole && !self.answered, "an answer to what nobody has sent");
        self.answered = true;
        let [(Side::Up, to, answer)] = &sent[..] else { panic!("{sent:?}") };
        assert!(*to == from && answer.len() <= 2 * datagram.len(), "an answer is never longer");
    }

    fn to_caller(&mut self, side: Side, from: SocketAddr, datagram: &[u8]) {
        let refused = self.caller.counters().refused_total();
        let outputs = handle(&mut self.caller, self.now, side, from, datagram);
        let true_answer = &self.recorded[2];
        let intact = side == Side::Down
            && well_formed(datagram, true_answer, &self.caller_key)
            && datagram[..true_answer.len() - 32] == true_answer[..true_answer.len() - 32];
        assert!(sends(&outputs).is_empty(), "message 2 is not answered");
        if outputs.is_empty() {
            // As a hop the caller takes handshakes of others on its other side: their halves may wait.
            let other = self.caller.counters().refused_total() > refused || side == Side::Up;
            assert!(other, "it is counted");
            assert!(!intact || self.accepted || self.ticked, "the true answer was refused");
        } else {
            assert!(intact && !self.accepted, "accepted: {outputs:?}");
            assert_eq!(self.caller.links(), 1);
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
                for node in [&mut self.caller, &mut self.callee] {
                    node.tick(self.now, wall());
                    let calls = sends(&outputs(node));
                    assert!(calls.iter().all(|(side, ..)| *side == Side::Down), "who calls, calls down");
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
    // Whatever was before, the true handshake passes: from an address where nobody else has been.
    let [first, second, answer] = world.recorded.clone();
    if !world.answered {
        let from = SocketAddr::from(([10, 8, 8, 8], 2000));
        world.had = [false; 2];
        world.to_callee(Side::Up, from, &first);
        world.to_callee(Side::Up, from, &second);
        assert!(world.answered, "the true message 1 was refused");
    }
    if !world.accepted && !world.ticked {
        world.to_caller(Side::Down, address(position + 1), &answer);
        assert!(world.accepted);
    }
});
