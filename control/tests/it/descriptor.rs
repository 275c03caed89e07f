//! Descriptors: equal contents have equal encodings and hashes; every error names its remedy.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use control::descriptor::{Descriptor, DescriptorError, Identity, draw_secret, draw_setup};
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use wire::cell::Class;
use wire::setup::{SetupPublic, Suite};

fn identity(seed: u64) -> Identity {
    Identity::from_seed(&draw_secret(&mut ChaCha20Rng::seed_from_u64(seed)))
}

fn descriptor() -> Descriptor {
    Descriptor {
        chain: [7; 32],
        position: 2,
        hops: 4,
        class: Class::L,
        epoch: 3,
        not_before: 1000,
        not_after: 2000,
        noise: [1; 32],
        setup: SetupPublic::new([2; 32], None).unwrap(),
        mixing_delay_ms: 20,
        lifetime_s: 3600,
        lanes: vec!["192.0.2.1:4000".parse().unwrap(), "[2001:db8::1]:4001".parse().unwrap()],
    }
}

/// The same in suite 2.
fn hybrid() -> Descriptor {
    let setup = draw_setup(&mut ChaCha20Rng::seed_from_u64(3), Suite::Hybrid).public();
    Descriptor { setup, ..descriptor() }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn verify(bytes: &[u8]) -> Result<Descriptor, DescriptorError> {
    Descriptor::verify(bytes, &identity(1).public(), &[7; 32], at(1500))
}

/// Signs the bytes, whatever their content.
fn resign(mut bytes: Vec<u8>, change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    bytes.truncate(bytes.len() - 64);
    change(&mut bytes);
    let seed = draw_secret(&mut ChaCha20Rng::seed_from_u64(1));
    let pair = aws_lc_rs::signature::Ed25519KeyPair::from_seed_unchecked(seed.expose()).unwrap();
    let signature = pair.sign(&bytes);
    bytes.extend_from_slice(signature.as_ref());
    bytes
}

#[test]
fn signed_descriptor_reads_back_unchanged() {
    for (descriptor, len) in [(descriptor(), 142 + 2 * 19 + 64), (hybrid(), 142 + 2 * 19 + 1184 + 64)] {
        let signed = descriptor.sign(&identity(1)).unwrap();
        assert_eq!(signed.len(), len);
        let read = verify(&signed).unwrap();
        assert_eq!(read, descriptor);
        assert_eq!(read.hash(), descriptor.hash());
        assert_eq!(read.sign(&identity(1)).unwrap(), signed);
    }
}

#[test]
fn malformed_encapsulation_key_is_refused() {
    let signed = hybrid().sign(&identity(1)).unwrap();
    let at = signed.len() - 64 - 1184;
    let bad = DescriptorError::Field("the ML-KEM setup key");
    // The first coefficient becomes 0xfff, which is not below 3329.
    let wrong = resign(signed.clone(), |b| (b[at], b[at + 1]) = (0xff, b[at + 1] | 0x0f));
    assert_eq!(verify(&wrong), Err(bad.clone()));
    assert!(bad.to_string().contains("the ML-KEM setup key is out of range: ask"), "{bad}");
    // A suite without its key, and a key without its suite.
    assert!(matches!(verify(&resign(signed.clone(), |b| b.truncate(at))), Err(DescriptorError::Truncated(_))));
    assert_eq!(verify(&resign(signed, |b| b[5] = 1)), Err(DescriptorError::Trailing(1184)));
}

#[test]
fn every_descriptor_error_is_distinct() {
    let signed = descriptor().sign(&identity(1)).unwrap();
    let who = identity(1).public();
    let check = |change: &dyn Fn(&mut Vec<u8>)| verify(&resign(signed.clone(), change)).unwrap_err();

    assert_eq!(Descriptor::verify(&signed, &who, &[7; 32], at(2009)), Err(DescriptorError::Expired(9)));
    assert_eq!(Descriptor::verify(&signed, &who, &[7; 32], at(990)), Err(DescriptorError::NotYet(10)));
    assert_eq!(Descriptor::verify(&signed, &who, &[8; 32], at(1500)), Err(DescriptorError::Chain));
    let other = identity(2).public();
    assert_eq!(Descriptor::verify(&signed, &other, &[7; 32], at(1500)), Err(DescriptorError::Signature));
    assert_eq!(check(&|b| b[4] = 2), DescriptorError::Version(2));
    assert_eq!(check(&|b| b[5] = 3), DescriptorError::Suite(3));
    assert_eq!(check(&|b| b[6] = 4), DescriptorError::Field("class"));
    assert_eq!(check(&|b| b[7] = 5), DescriptorError::Field("position"));
    assert_eq!(check(&|b| b[8] = 9), DescriptorError::Field("number of hops"));
    assert_eq!(check(&|b| b[11] ^= 16), DescriptorError::Lengths);
    assert_eq!(check(&|b| b[13] ^= 16), DescriptorError::Lengths);
    assert_eq!(check(&|b| b[15] = 1), DescriptorError::Field("a reserved field"));
    assert_eq!(check(&|b| b[140..142].copy_from_slice(&[0; 2])), DescriptorError::Field("lifetime"));
    assert_eq!(check(&|b| b[140] = 0xff), DescriptorError::Field("lifetime"));
    assert_eq!(check(&|b| b[142] = 5), DescriptorError::Field("address of a lane"));
    assert_eq!(check(&|b| b[142 + 10] = 5), DescriptorError::Field("address of a lane"), "IPv4 leaves zeros");
    assert_eq!(check(&|b| b[0] = b'E'), DescriptorError::NotADescriptor);
    assert_eq!(verify(b"ed"), Err(DescriptorError::Truncated(2)));
    for len in [4, 5, 100, signed.len() - 1] {
        assert_eq!(verify(&signed[..len]), Err(DescriptorError::Truncated(len)));
    }
    let long = [&signed[..], &[0; 3]].concat();
    assert_eq!(verify(&long), Err(DescriptorError::Trailing(3)));
}

#[test]
fn unusable_descriptor_is_not_signed() {
    let sign = |change: &dyn Fn(&mut Descriptor)| {
        let mut bad = descriptor();
        change(&mut bad);
        bad.sign(&identity(1)).unwrap_err()
    };
    assert_eq!(sign(&|d| d.lanes.clear()), DescriptorError::Field("number of lanes"));
    assert_eq!(sign(&|d| d.lanes[0].set_port(0)), DescriptorError::Field("port of a lane"));
    assert_eq!(sign(&|d| d.lifetime_s = 3601), DescriptorError::Field("lifetime"));
    assert_eq!(sign(&|d| d.not_after = d.not_before), DescriptorError::Field("validity"));
    assert_eq!(sign(&|d| d.position = 0), DescriptorError::Field("position"));
    assert_eq!(sign(&|d| d.mixing_delay_ms = 60_001), DescriptorError::Field("mixing delay"));
}

#[test]
fn every_descriptor_error_names_a_remedy() {
    for error in [
        DescriptorError::Truncated(1),
        DescriptorError::Version(9),
        DescriptorError::Signature,
        DescriptorError::Chain,
        DescriptorError::Expired(5),
        DescriptorError::Lengths,
    ] {
        assert!(error.to_string().contains(": "), "{error}");
    }
}

proptest! {
    #[test]
    fn descriptor_with_a_flipped_bit_is_refused(byte in any::<prop::sample::Index>(), bit in 0..8) {
        let mut signed = hybrid().sign(&identity(1)).unwrap();
        let at = byte.index(signed.len());
        signed[at] ^= 1u8 << bit;
        prop_assert!(verify(&signed).is_err());
    }

    #[test]
    fn arbitrary_bytes_do_not_panic_the_parser(mut bytes in prop::collection::vec(any::<u8>(), 0..400), real in any::<bool>()) {
        if real && bytes.len() > 6 {
            bytes[..6].copy_from_slice(b"eddy\x01\x01");
        }
        let _ = verify(&bytes);
        if bytes.len() > 64 {
            let _ = verify(&resign(bytes, |_| {}));
        }
    }
}
