//! Keys of channels that do not exist: what is done with them takes as long as with those of a channel.

use rand::Rng;
use rand_chacha::ChaCha20Rng;
use wire::kdf::Secret;
use wire::paced::{Call, EntryKeys, HopKeys, MeetingSecret, PacedClass, SALT_LEN};
use wire::setup::HopSecrets;
use zeroize::Zeroizing;

fn secret(rng: &mut ChaCha20Rng) -> Secret {
    let mut bytes = [0; 32];
    rng.fill_bytes(&mut bytes);
    Secret::new(bytes)
}

/// Keys of the entry of a channel through `hops` hops, and of its meeting.
pub(super) fn entry_keys(class: PacedClass, hops: usize, rng: &mut ChaCha20Rng) -> (EntryKeys, Call) {
    let hop = |_| HopSecrets {
        confirm: Default::default(),
        ack: Zeroizing::new([0; 28]),
        forward: secret(rng),
        backward: secret(rng),
    };
    let keys = EntryKeys::new((0..hops).map(hop).collect());
    let mut bytes = [0; 32];
    rng.fill_bytes(&mut bytes);
    (keys, MeetingSecret::new(bytes).meeting(&[0; 32], class, 0).call([0; SALT_LEN]))
}

/// Keys of a hop.
pub(super) fn hop_keys(rng: &mut ChaCha20Rng) -> HopKeys {
    HopKeys::new(&secret(rng), &secret(rng))
}
