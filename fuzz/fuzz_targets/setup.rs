//! What strangers can send to a hop as a setup, and what anybody on the way can make of an ack:
//! refused, without a panic. Run with `cargo +nightly fuzz run setup`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::cell::{Class, Shape};
use wire::kdf::{Secret, x25519_public};
use wire::setup::{HopPublic, Info, ack_cells, build, open, replay_tag};

const HOPS: usize = 5;

fuzz_target!(|input: (u8, &[u8])| {
    let (choice, bytes) = input;
    let shape = Shape::new(Class::S, HOPS).expect("five hops are a chain");
    let info = Info { class: Class::S, lifetime_s: 3600, first: 0 };
    let key = Secret::new([9; 32]);
    let hop = HopPublic { setup: x25519_public(&key), descriptor_hash: [1; 32] };
    let xs = (0..HOPS as u8).map(|i| Secret::new([0x40 + i; 32])).collect();
    let (onion, pending) = build(shape, &[hop; HOPS], xs, info).expect("a good key");
    let i = 1 + usize::from(choice) % HOPS;

    assert_eq!(replay_tag(bytes).is_some(), bytes.len() >= 32);
    assert!(open(shape, i, &hop.descriptor_hash, &key, info, bytes).is_err() || bytes == onion);

    // A real onion with any bits flipped.
    let mut flipped = onion.clone();
    flipped.iter_mut().zip(bytes).for_each(|(byte, flip)| *byte ^= flip);
    assert_eq!(open(shape, 1, &hop.descriptor_hash, &key, info, &flipped).is_ok(), flipped == onion);

    let mut contents = vec![vec![0; shape.payload()]; ack_cells(shape)];
    contents.iter_mut().flatten().zip(bytes).for_each(|(byte, forged)| *byte = *forged);
    assert!(pending.finish(shape, &mut contents).is_err(), "nobody knows the confirmations");
});
