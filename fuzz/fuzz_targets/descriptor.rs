//! Descriptors. An accepted descriptor has one encoding and one hash, and is signed by the pinned identity.
//! Half of the inputs are signed as they are, so that they pass the signature check.

#![no_main]

use std::time::{Duration, UNIX_EPOCH};

use control::descriptor::{Descriptor, DescriptorError, Identity, LANES_MAX, LIFETIME_MAX_S};
use eddy_fuzz::{CHAIN, identity_seed, sign_again, wall};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, &[u8])| {
    let (sign, bytes) = input;
    let mut bytes = bytes.to_vec();
    if sign {
        sign_again(&mut bytes);
    }
    let identity = Identity::from_seed(&identity_seed());
    let verify = |bytes: &[u8], wall| Descriptor::verify(bytes, &identity.public(), &CHAIN, wall);
    let descriptor = match verify(&bytes, wall()) {
        Ok(descriptor) => descriptor,
        Err(why) => {
            let text = why.to_string();
            assert!(text.contains(": ") && text.lines().count() == 1, "{text:?} names no remedy");
            return;
        }
    };
    let mut signed = bytes.clone();
    sign_again(&mut signed);
    assert_eq!(signed, bytes, "nobody else can sign");
    assert_eq!(descriptor.sign(&identity).expect("it was in order"), bytes, "one content, one encoding");
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes[..bytes.len() - 64]);
    assert_eq!(descriptor.hash(), hash.as_ref());
    assert_eq!(descriptor.chain, CHAIN);
    assert!((1..=descriptor.hops).contains(&descriptor.position) && (2..=8).contains(&descriptor.hops));
    assert!((1..=LANES_MAX).contains(&descriptor.lanes.len()));
    assert!((1..=LIFETIME_MAX_S).contains(&descriptor.lifetime_s));
    assert!(descriptor.not_before < descriptor.not_after);

    let at = |seconds: Option<u64>| seconds.and_then(|s| UNIX_EPOCH.checked_add(Duration::from_secs(s)));
    if let Some(early) = at(descriptor.not_before.checked_sub(1)) {
        assert_eq!(verify(&bytes, early), Err(DescriptorError::NotYet(1)));
    }
    if let Some(late) = at(descriptor.not_after.checked_add(1)) {
        assert_eq!(verify(&bytes, late), Err(DescriptorError::Expired(1)));
    }
    let other = Descriptor::verify(&bytes, &identity.public(), &[8; 32], wall());
    assert_eq!(other, Err(DescriptorError::Chain));
    let flip = usize::from(descriptor.epoch as u16) % bytes.len();
    bytes[flip] ^= 1 << (descriptor.not_after % 8);
    assert!(verify(&bytes, wall()).is_err(), "byte {flip} flipped");
});
