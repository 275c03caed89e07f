//! An ack that was changed on its way, or made up. It is refused if a bit in the slot of any hop is
//! flipped, and accepted if only padding is changed.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use wire::cell::{Class, Shape};
use wire::kdf::Secret;
use wire::setup::{
    HopPublic, HopSecrets, Info, Pending, SetupKey, Suite, ack_cells, begin_ack, build, cover_ack, open, slot,
};

struct Chain {
    shape: Shape,
    pending: Pending,
    /// Ephemeral and secrets of each hop, hop 1 first.
    hops: Vec<([u8; 32], HopSecrets)>,
    /// Contents of the cells that hop 1, 2, ... sends.
    sent: Vec<Vec<Vec<u8>>>,
}

static CHAINS: LazyLock<[Chain; 4]> = LazyLock::new(|| {
    let [one, two] = Suite::ALL;
    [(one, Class::S, 5), (two, Class::L, 3), (two, Class::S, 8), (one, Class::M, 2)]
        .map(|(suite, class, n)| chain(suite, class, n))
});

fn chain(suite: Suite, class: Class, n: usize) -> Chain {
    let shape = Shape::new(class, n).expect("it is a chain");
    let info = Info { suite, class, paced: false, lifetime_s: 3600, first: 0 };
    let key = SetupKey::generate(suite, Secret::new([9; 32]));
    let hop = HopPublic { setup: key.public(), descriptor_hash: [1; 32] };
    let shares = (0..n as u8).map(|i| hop.setup.share(Secret::new([0x40 + i; 32]))).collect();
    let (mut onion, pending) = build(shape, &vec![hop; n], shares, info).expect("a good key");
    let mut hops = Vec::new();
    for i in 1..=n {
        let opened = open(shape, i, &[[1; 32]], &key, info, &onion).expect("it is for this hop");
        onion.clone_from(&opened.rest);
        hops.push(opened.answer(Secret::new([0x80 + i as u8; 32])).expect("a good ephemeral"));
    }
    let mut contents = vec![vec![0xaa; shape.payload()]; ack_cells(shape)];
    let mut sent = vec![Vec::new(); n];
    for i in (1..=n).rev() {
        pass(shape, &hops, i, &mut contents);
        sent[i - 1].clone_from(&contents);
    }
    Chain { shape, pending, hops, sent }
}

fn pass(shape: Shape, hops: &[([u8; 32], HopSecrets)], i: usize, contents: &mut [Vec<u8>]) {
    let (ephemeral, secrets) = &hops[i - 1];
    for (sub, content) in contents.iter_mut().enumerate() {
        if i == shape.hops() {
            begin_ack(shape, sub as u8, ephemeral, secrets, content);
        } else {
            cover_ack(shape, i, sub as u8, ephemeral, secrets, content);
        }
    }
}

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (which, hop, bytes) = input;
    let Chain { shape, pending, hops, sent } = &CHAINS[usize::from(which) % 4];
    let shape = *shape;
    let at = 1 + usize::from(hop) % shape.hops();

    let mut contents = sent[at - 1].clone();
    contents.iter_mut().flatten().zip(bytes).for_each(|(byte, flip)| *byte ^= flip);
    // Hops nearer to the entry overwrite flipped bits with their own slots.
    let touched = (at..=shape.hops()).any(|i| {
        let (cell, range) = slot(shape, i);
        contents[cell][range.clone()] != sent[at - 1][cell][range]
    });
    (1..at).rev().for_each(|i| pass(shape, hops, i, &mut contents));
    match pending.finish(shape, &mut contents) {
        Ok(secrets) => {
            assert!(!touched, "a flipped bit was believed");
            assert_eq!(secrets.len(), hops.len());
            for (mine, (_, theirs)) in secrets.iter().zip(hops) {
                assert_eq!(mine.forward.expose(), theirs.forward.expose());
                assert_eq!(mine.backward.expose(), theirs.backward.expose());
            }
        }
        Err(_) => assert!(touched, "a true ack was refused"),
    }

    let mut made_up = vec![vec![0; shape.payload()]; ack_cells(shape)];
    made_up.iter_mut().flatten().zip(bytes).for_each(|(byte, forged)| *byte = *forged);
    assert!(pending.finish(shape, &mut made_up).is_err(), "nobody knows the confirmations");
});
