//! Attack: a stranger sends setups to a hop, made up, or genuine with any bit flipped. All are refused, without
//! a panic. The setup arrives in shards: any of them, as many as are needed, give it back. In paced classes the exit
//! finds a token.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use wire::cell::{Class, Shape};
use wire::kdf::Secret;
use wire::paced::PacedClass;
use wire::setup::{
    BadSetup, HopPublic, Info, SetupKey, Suite, build_with_token, onion_len, open, paced_shards, replay_tag, shards,
};

const HOPS: usize = 5;
const FIRST: u64 = 80_000_000 * 2048;

struct Chain {
    shape: Shape,
    info: Info,
    key: SetupKey,
    token: Vec<u8>,
    /// The onions that arrive at hop 1, 2, ...
    onions: Vec<Vec<u8>>,
}

/// Both suites in a free class, then in a paced one.
static CHAINS: LazyLock<[Chain; 4]> = LazyLock::new(|| {
    let [one, two] = Suite::ALL;
    let free = |suite| Info { suite, class: Class::S, paced: false, lifetime_s: 3600, first: 0 };
    let paced = |suite| Info::paced(suite, PacedClass::new(Class::S), FIRST);
    [free(one), free(two), paced(one), paced(two)].map(chain)
});

fn chain(info: Info) -> Chain {
    let (shape, suite) = (Shape::new(Class::S, HOPS).expect("five hops are a chain"), info.suite);
    let token = if info.paced { vec![0x77; 32] } else { Vec::new() };
    let key = SetupKey::generate(suite, Secret::new([9; 32]));
    let hop = HopPublic { setup: key.public(), descriptor_hash: [1; 32] };
    let shares = (0..HOPS as u8).map(|i| hop.setup.share(Secret::new([0x40 + i; 32]))).collect();
    let (onion, _) = build_with_token(shape, &vec![hop; HOPS], shares, info, &token).expect("a good key");
    let mut onions = vec![onion];
    for i in 1..=HOPS {
        let opened = open(shape, i, &[[1; 32]], &key, info, &onions[i - 1]).expect("it is for this hop");
        let left = if i == HOPS { 0 } else { onion_len(shape, suite, i + 1) };
        assert_eq!(opened.rest.len(), left + token.len());
        onions.push(opened.rest);
    }
    assert_eq!(onions[HOPS], token);
    Chain { shape, info, key, token, onions }
}

fuzz_target!(|input: (u8, &[u8])| {
    let (choice, bytes) = input;
    let Chain { shape, info, key, token, onions } = &CHAINS[usize::from(choice) % CHAINS.len()];
    let (info, suite) = (*info, info.suite);
    let i = 1 + usize::from(choice) / CHAINS.len() % HOPS;
    let (onion, len) = (&onions[i - 1], onion_len(*shape, suite, i) + token.len());
    let try_open = |i, hash: &[u8; 32], info, onion: &[u8]| open(*shape, i, &[*hash], key, info, onion);

    let head = [32, 32 + 1088][suite as usize - 1];
    assert_eq!(replay_tag(suite, bytes).is_some(), bytes.len() >= head);
    match try_open(i, &[1; 32], info, bytes) {
        Ok(_) => assert_eq!(bytes, onion),
        Err(BadSetup::Length) => assert_ne!(bytes.len(), len),
        Err(_) => assert_eq!(bytes.len(), len),
    }

    // The genuine onion with flipped bits.
    let mut flipped = onion.clone();
    flipped.iter_mut().zip(bytes).for_each(|(byte, flip)| *byte ^= flip);
    match try_open(i, &[1; 32], info, &flipped) {
        Ok(opened) => {
            assert_eq!(&flipped, onion);
            assert_eq!(opened.rest, onions[i]);
            assert_eq!(Some(opened.tag), replay_tag(suite, onion));
        }
        Err(why) => {
            assert_ne!(&flipped, onion);
            assert!(matches!(why, BadSetup::Forged | BadSetup::LowOrder), "{why}");
        }
    }

    // Its shards, kept or lost as the input says, as long as there are enough.
    let code = if info.paced { paced_shards(*shape, suite, i) } else { shards(*shape, suite, i) };
    let content = onion.len().div_ceil(code.data);
    let mut parts: Vec<Vec<u8>> = onion.chunks(content).map(<[u8]>::to_vec).collect();
    if parts.len() == code.data {
        parts.last_mut().expect("there is one").resize(content, 7);
        code.encode(&mut parts);
        let mut kept: Vec<u8> = (0..code.total() as u8).collect();
        kept.sort_by_key(|at| bytes.get(usize::from(*at)).copied().unwrap_or(*at));
        kept.truncate(code.data);
        let of_kept: Vec<Vec<u8>> = kept.iter().map(|at| parts[usize::from(*at)].clone()).collect();
        assert!(code.decode(&kept, &of_kept).starts_with(onion), "shards {kept:?} give another setup");
    }

    // The genuine onion with another descriptor or other constants.
    let Some((&[flip, at], _)) = bytes.split_first_chunk::<2>() else { return };
    if flip != 0 {
        let mut hash = [1; 32];
        hash[usize::from(at) % 32] ^= flip;
        assert!(try_open(i, &hash, info, onion).is_err_and(|why| why == BadSetup::Forged));
        let others = [
            Info { lifetime_s: info.lifetime_s ^ u16::from(flip), ..info },
            Info { first: info.first ^ u64::from(flip), ..info },
        ];
        for other in others {
            assert!(try_open(i, &[1; 32], other, onion).is_err_and(|why| why == BadSetup::Info));
        }
    }
});
