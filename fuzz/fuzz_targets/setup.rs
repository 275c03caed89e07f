//! Attack: a stranger sends setups to a hop, made up, or genuine with any bit flipped. All are refused, without
//! a panic.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use wire::cell::{Class, Shape};
use wire::kdf::{Secret, x25519_public};
use wire::setup::{BadSetup, HopPublic, Info, build, onion_len, open, replay_tag};

const HOPS: usize = 5;
const INFO: Info = Info { class: Class::S, lifetime_s: 3600, first: 0 };

struct Chain {
    shape: Shape,
    key: Secret,
    /// The onions that arrive at hop 1, 2, ...
    onions: Vec<Vec<u8>>,
}

static CHAIN: LazyLock<Chain> = LazyLock::new(|| {
    let shape = Shape::new(Class::S, HOPS).expect("five hops are a chain");
    let key = Secret::new([9; 32]);
    let hop = HopPublic { setup: x25519_public(&key), descriptor_hash: [1; 32] };
    let xs = (0..HOPS as u8).map(|i| Secret::new([0x40 + i; 32])).collect();
    let (onion, _) = build(shape, &[hop; HOPS], xs, INFO).expect("a good key");
    let mut onions = vec![onion];
    for i in 1..=HOPS {
        let opened = open(shape, i, &[1; 32], &key, INFO, &onions[i - 1]).expect("it is for this hop");
        assert_eq!(opened.rest.len(), if i == HOPS { 0 } else { onion_len(shape, i + 1) });
        onions.push(opened.rest);
    }
    Chain { shape, key, onions }
});

fuzz_target!(|input: (u8, &[u8])| {
    let (choice, bytes) = input;
    let Chain { shape, key, onions } = &*CHAIN;
    let i = 1 + usize::from(choice) % HOPS;
    let onion = &onions[i - 1];
    let try_open = |i, hash, info, onion: &[u8]| open(*shape, i, hash, key, info, onion);

    assert_eq!(replay_tag(bytes).is_some(), bytes.len() >= 32);
    match try_open(i, &[1; 32], INFO, bytes) {
        Ok(_) => assert_eq!(bytes, onion),
        Err(BadSetup::Length) => assert_ne!(bytes.len(), onion_len(*shape, i)),
        Err(_) => assert_eq!(bytes.len(), onion_len(*shape, i)),
    }

    // The genuine onion with flipped bits.
    let mut flipped = onion.clone();
    flipped.iter_mut().zip(bytes).for_each(|(byte, flip)| *byte ^= flip);
    match try_open(i, &[1; 32], INFO, &flipped) {
        Ok(opened) => {
            assert_eq!(&flipped, onion);
            assert_eq!(opened.rest, onions[i]);
            assert_eq!(Some(opened.tag), replay_tag(onion));
        }
        Err(why) => {
            assert_ne!(&flipped, onion);
            assert!(matches!(why, BadSetup::Forged | BadSetup::LowOrder), "{why}");
        }
    }

    // The genuine onion with another descriptor or other constants.
    let Some((&[flip, at], _)) = bytes.split_first_chunk::<2>() else { return };
    if flip != 0 {
        let mut hash = [1; 32];
        hash[usize::from(at) % 32] ^= flip;
        assert!(try_open(i, &hash, INFO, onion).is_err_and(|why| why == BadSetup::Forged));
        let info = Info { lifetime_s: 3600 ^ u16::from(flip), ..INFO };
        assert!(try_open(i, &[1; 32], info, onion).is_err_and(|why| why == BadSetup::Info));
    }
});
