//! Descriptors. An accepted descriptor has one encoding and one hash, and is signed by the identity that it names.
//! Half of the inputs are signed as they are, so that they pass the signature check.

#![no_main]

use control::trust::{NodeDescriptor, SignedDescriptor, Signer};
use eddy_fuzz::{identity_seed, sign_again};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, &[u8])| {
    let (sign, bytes) = input;
    let mut bytes = bytes.to_vec();
    if sign {
        sign_again(&mut bytes);
    }
    let _ = NodeDescriptor::read_unsigned(&bytes);
    let descriptor = match SignedDescriptor::read(&bytes) {
        Ok(descriptor) => descriptor,
        Err(why) => {
            let text = why.to_string();
            assert_eq!(text.lines().count(), 1, "{text:?}");
            return;
        }
    };
    assert_eq!(descriptor.bytes(), &bytes[..], "kept as it came");
    let identity = Signer::from_seed(&identity_seed(1));
    if descriptor.identity == identity.public() {
        let again = descriptor.content().clone().sign(&identity).expect("it was in order");
        assert_eq!(again.bytes(), &bytes[..], "one content, one encoding");
    }
    assert!(descriptor.not_before < descriptor.not_after && descriptor.floor <= descriptor.revision);
    let unsigned = descriptor.unsigned().expect("it was in order");
    assert_eq!(unsigned, bytes[..bytes.len() - 64]);
    let flip = usize::from(descriptor.revision as u16) % bytes.len();
    bytes[flip] ^= 1 << (descriptor.not_after % 8);
    assert!(SignedDescriptor::read(&bytes).is_err(), "byte {flip} flipped");
});
