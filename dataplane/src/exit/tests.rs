//! The worker of an exit by itself: what it forgets.

use super::*;
use crate::io::mem::{MemApps, MemNet, MemPort};
use rand::SeedableRng;
use wire::cell::Class;
use wire::kdf::Secret;

fn exit() -> Exit<MemPort, MemApps> {
    let settings = Settings {
        shape: Shape::new(Class::S, 2).unwrap(),
        window: 64,
        policy: Policy::default(),
        caps: Caps { flows_per_channel: 4, sockets: 4 },
        flow_idle: Duration::from_secs(300),
    };
    let net = MemNet::default();
    let port = net.port("192.0.2.1:1".parse().unwrap());
    let apps = MemApps::new(net, Vec::new(), [192, 0, 2, 1].into());
    let (_, ops) = rtrb::RingBuffer::new(8);
    let (ring, _) = rtrb::RingBuffer::new(8);
    let punts = PuntSender::new(ring, Arc::new(crate::sys::Waker::new().unwrap()));
    let rngs = [1, 2].map(ChaCha20Rng::seed_from_u64);
    Exit::new(settings, port, apps, ops, punts, rngs, SECOND)
}

#[test]
fn the_order_of_a_turns_flows_cannot_be_drawn_again_from_what_is_left() {
    let mut exit = exit();
    for turn in 1..=2 {
        let before = exit.rng.clone();
        exit.turn(turn * SECOND);
        assert_ne!(exit.rng.get_seed(), before.get_seed());
    }
}

#[test]
fn an_exit_forgets_generations_once_it_has_sealed_past_them() {
    let mut exit = exit();
    let secret = Secret::new([4; 32]);
    let state = ExitChannel {
        forward: Lane::new(&secret, 0, 64),
        backward: Generations::new(&secret, 0),
        next_seq: 1 << 20,
        reassembler: Reassembler::new(exit.settings.shape.payload()),
    };
    exit.table.install(0, Record { up: Some((0, 5)), down: None, ends_s: 100, seen_s: 0, state });
    let live = |exit: &Exit<MemPort, MemApps>, seq| exit.table.record(0).unwrap().state.backward.of(seq).is_some();
    assert!(live(&exit, 0));
    exit.packer.put(0, &Frame::Pong([0; 8]), &mut exit.free).unwrap();
    exit.leave(SECOND);
    assert!(!live(&exit, (1 << 20) - 1) && live(&exit, 1 << 20) && live(&exit, 2 << 20));
}
