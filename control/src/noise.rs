//! The hybrid handshake as pure functions: Noise by `snow`, ML-KEM-768 in its payloads (SPEC 4.1,
//! 4.3).
//!
//! Entry to Mix 1 is NK, hop to hop IKpsk2. X25519 is that of `wire`, so a low-order point fails here
//! too. The ephemerals come from the caller's generator; ML-KEM draws from aws-lc's own. Framing is in
//! [`crate::datagram`], time and attempts are in [`crate::link`].

use std::sync::LazyLock;

use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState};
use wire::ids::ClassId;
use wire::kdf::{Secret, x25519, x25519_public};
use wire::link::LinkSecrets;
use zeroize::{Zeroize, Zeroizing};

use crate::datagram::{IK_MESSAGE_LEN, NK_MESSAGE_LEN, RESPONSE_MESSAGE_LEN};

const EK_LEN: usize = 1184;
const CIPHERTEXT_LEN: usize = 1088;

static NK: LazyLock<NoiseParams> = LazyLock::new(|| parse("Noise_NK_25519_AESGCM_SHA256"));
static IK: LazyLock<NoiseParams> = LazyLock::new(|| parse("Noise_IKpsk2_25519_AESGCM_SHA256"));

fn parse(name: &str) -> NoiseParams {
    name.parse().expect("the name is one that snow knows")
}

/// The two handshakes of links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Entry to Mix 1: the initiator is anonymous.
    Nk,
    /// Between hops: both ends have static keys.
    Ik,
}

impl Pattern {
    /// Bytes in front of the encapsulation key: a resumption token (NK) or a TAI64N timestamp (IK).
    pub(crate) const fn head_len(self) -> usize {
        match self {
            Pattern::Nk => 32,
            Pattern::Ik => 12,
        }
    }

    /// Noise bytes of message 1.
    const fn message_len(self) -> usize {
        match self {
            Pattern::Nk => NK_MESSAGE_LEN,
            Pattern::Ik => IK_MESSAGE_LEN,
        }
    }
}

/// Parameters that both ends of a link must agree on before the handshake.
pub(crate) struct Terms {
    pub(crate) pattern: Pattern,
    prologue: Vec<u8>,
    psk: Zeroizing<[u8; 32]>,
}

impl Terms {
    /// The prologue binds protocol version, chain, link and class. `link` leads into the hop of that position.
    pub(crate) fn new(
        pattern: Pattern,
        chain: &[u8; 32],
        (link, class): (usize, impl Into<ClassId>),
        psk: Option<&Secret>,
    ) -> Terms {
        let mut prologue = b"eddy/1".to_vec();
        prologue.extend_from_slice(chain);
        prologue.extend_from_slice(&[link as u8, class.into().number()]);
        Terms { pattern, prologue, psk: Zeroizing::new(psk.map_or([0; 32], |psk| *psk.expose())) }
    }

    fn build(
        &self,
        rng: &mut ChaCha20Rng,
        own: Option<&Secret>,
        theirs: Option<&[u8; 32]>,
        initiator: bool,
    ) -> Result<HandshakeState, snow::Error> {
        let params = match self.pattern {
            Pattern::Nk => NK.clone(),
            Pattern::Ik => IK.clone(),
        };
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut seed[..]);
        let mut builder = Builder::with_resolver(params, Box::new(Resolver(seed))).prologue(&self.prologue)?;
        if self.pattern == Pattern::Ik {
            builder = builder.psk(2, &self.psk)?;
        }
        if let Some(own) = own {
            builder = builder.local_private_key(own.expose())?;
        }
        if let Some(theirs) = theirs {
            builder = builder.remote_public_key(theirs)?;
        }
        if initiator { builder.build_initiator() } else { builder.build_responder() }
    }
}

/// Noise or ML-KEM does not accept the message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Forged;

impl From<snow::Error> for Forged {
    fn from(_: snow::Error) -> Forged {
        Forged
    }
}

impl From<aws_lc_rs::error::Unspecified> for Forged {
    fn from(_: aws_lc_rs::error::Unspecified) -> Forged {
        Forged
    }
}

/// The initiator after message 1: it waits for message 2.
pub(crate) struct InitiatorState {
    state: HandshakeState,
    decapsulation: DecapsulationKey,
    /// First 32 bytes of message 1. Message 2's mac1 is keyed by it.
    pub(crate) ephemeral: [u8; 32],
}

impl InitiatorState {
    /// Also returns the Noise bytes of message 1. `head` precedes the encapsulation key.
    pub(crate) fn start(
        rng: &mut ChaCha20Rng,
        terms: &Terms,
        own: Option<&Secret>,
        theirs: &[u8; 32],
        head: &[u8],
    ) -> Result<(InitiatorState, Vec<u8>), Forged> {
        debug_assert_eq!(head.len(), terms.pattern.head_len());
        debug_assert_eq!(own.is_some(), terms.pattern == Pattern::Ik);
        let mut state = terms.build(rng, own, Some(theirs), true)?;
        let decapsulation = DecapsulationKey::generate(&ML_KEM_768)?;
        let mut payload = Zeroizing::new(head.to_vec());
        payload.extend_from_slice(decapsulation.encapsulation_key()?.key_bytes()?.as_ref());
        let mut message = vec![0; terms.pattern.message_len()];
        let len = state.write_message(&payload, &mut message)?;
        debug_assert_eq!(len, message.len());
        let ephemeral = *message.first_chunk().ok_or(Forged)?;
        Ok((InitiatorState { state, decapsulation, ephemeral }, message))
    }

    /// Reads message 2. A forged one changes nothing, because the genuine one may still arrive.
    pub(crate) fn finish(&mut self, message: &[u8]) -> Result<LinkSecrets, Forged> {
        let mut ciphertext = [0; RESPONSE_MESSAGE_LEN];
        let len = self.state.read_message(message, &mut ciphertext)?;
        if len != CIPHERTEXT_LEN {
            return Err(Forged);
        }
        let shared = self.decapsulation.decapsulate(Ciphertext::from(&ciphertext[..len]))?;
        Ok(split(&mut self.state, shared.as_ref()))
    }
}

/// The responder after message 1: nothing is answered yet.
pub(crate) struct ResponderState {
    state: HandshakeState,
    /// Resumption token (NK) or timestamp (IK).
    pub(crate) head: Zeroizing<Vec<u8>>,
    /// The initiator's static key, IK only.
    pub(crate) initiator: Option<[u8; 32]>,
    encapsulation: EncapsulationKey,
}

impl ResponderState {
    /// Reads message 1.
    pub(crate) fn read(
        rng: &mut ChaCha20Rng,
        terms: &Terms,
        own: &Secret,
        message: &[u8],
    ) -> Result<ResponderState, Forged> {
        let mut state = terms.build(rng, Some(own), None, false)?;
        let mut payload = Zeroizing::new(vec![0; message.len()]);
        let len = state.read_message(message, &mut payload)?;
        let head_len = terms.pattern.head_len();
        if len != head_len + EK_LEN {
            return Err(Forged);
        }
        let encapsulation = EncapsulationKey::new(&ML_KEM_768, &payload[head_len..len]).map_err(|_| Forged)?;
        payload.truncate(head_len);
        let initiator = state.get_remote_static().and_then(|key| key.try_into().ok());
        Ok(ResponderState { state, head: payload, initiator, encapsulation })
    }

    /// Writes message 2.
    pub(crate) fn answer(mut self) -> Result<(Vec<u8>, LinkSecrets), Forged> {
        let (ciphertext, shared) = self.encapsulation.encapsulate()?;
        let mut message = vec![0; RESPONSE_MESSAGE_LEN];
        let len = self.state.write_message(ciphertext.as_ref(), &mut message)?;
        debug_assert_eq!(len, message.len());
        Ok((message, split(&mut self.state, shared.as_ref())))
    }
}

fn split(state: &mut HandshakeState, shared: &[u8]) -> LinkSecrets {
    let (k1, k2) = state.dangerously_get_raw_split();
    let (k1, k2) = (Zeroizing::new(k1), Zeroizing::new(k2));
    LinkSecrets::derive(state.get_handshake_hash(), &k1, &k2, shared)
}

/// snow's primitives with this crate's X25519 and generator.
struct Resolver(Zeroizing<[u8; 32]>);

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Seeded(ChaCha20Rng::from_seed(*self.0))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::new(X25519::default()) as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

struct Seeded(ChaCha20Rng);

impl Random for Seeded {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        self.0.fill_bytes(dest);
        Ok(())
    }
}

struct X25519 {
    private: Secret,
    public: [u8; 32],
}

impl Default for X25519 {
    fn default() -> X25519 {
        X25519 { private: Secret::new([0; 32]), public: [0; 32] }
    }
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, private: &[u8]) {
        let mut bytes = Zeroizing::new([0; 32]);
        bytes.copy_from_slice(&private[..32]);
        self.private = Secret::new(*bytes);
        self.public = x25519_public(&self.private);
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut bytes = [0; 32];
        rng.try_fill_bytes(&mut bytes)?;
        self.set(&bytes);
        bytes.zeroize();
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        self.private.expose()
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let public = public.first_chunk().ok_or(snow::Error::Dh)?;
        let shared = x25519(&self.private, public).map_err(|_| snow::Error::Dh)?;
        out[..32].copy_from_slice(shared.expose());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::draw_x25519;
    use wire::cell::Class;

    struct Pair {
        rng: ChaCha20Rng,
        terms: Terms,
        initiator: (Secret, [u8; 32]),
        responder: (Secret, [u8; 32]),
    }

    fn pair(pattern: Pattern) -> Pair {
        let mut rng = ChaCha20Rng::seed_from_u64(7);
        let (initiator, responder) = (draw_x25519(&mut rng), draw_x25519(&mut rng));
        Pair { rng, terms: new_terms(pattern), initiator, responder }
    }

    impl Pair {
        fn start(&mut self) -> (InitiatorState, Vec<u8>) {
            let head = vec![9; self.terms.pattern.head_len()];
            let own = (self.terms.pattern == Pattern::Ik).then_some(&self.initiator.0);
            InitiatorState::start(&mut self.rng, &self.terms, own, &self.responder.1, &head).unwrap()
        }

        fn read(&mut self, terms: &Terms, message: &[u8]) -> Result<ResponderState, Forged> {
            ResponderState::read(&mut self.rng, terms, &self.responder.0, message)
        }
    }

    fn new_terms(pattern: Pattern) -> Terms {
        Terms::new(pattern, &[5; 32], (2, Class::L), None)
    }

    fn terms(pair: &Pair) -> Terms {
        new_terms(pair.terms.pattern)
    }

    #[test]
    fn both_ends_derive_the_same_link_secrets() {
        for pattern in [Pattern::Nk, Pattern::Ik] {
            let mut pair = pair(pattern);
            let (mut initiator, one) = pair.start();
            let terms = terms(&pair);
            let responder = pair.read(&terms, &one).unwrap();
            assert_eq!(responder.head[..], vec![9; pattern.head_len()]);
            assert_eq!(responder.initiator, (pattern == Pattern::Ik).then_some(pair.initiator.1));
            let (two, theirs) = responder.answer().unwrap();
            let ours = initiator.finish(&two).unwrap();
            assert_eq!(ours.header_i2r, theirs.header_i2r);
            assert_eq!(ours.control_r2i, theirs.control_r2i);
            assert_eq!(ours.resume, theirs.resume);
            assert_ne!(ours.header_i2r, ours.header_r2i);
        }
    }

    #[test]
    fn other_class_link_chain_or_psk_does_not_open() {
        let psk = Secret::new([1; 32]);
        let mut pair = pair(Pattern::Ik);
        let (mut initiator, one) = pair.start();
        for (chain, link, class) in [([5; 32], 2, Class::M), ([5; 32], 3, Class::L), ([6; 32], 2, Class::L)] {
            let other = Terms::new(Pattern::Ik, &chain, (link, class), None);
            assert!(pair.read(&other, &one).is_err());
        }
        // psk2 is mixed into message 2.
        let other = Terms::new(Pattern::Ik, &[5; 32], (2, Class::L), Some(&psk));
        let (two, _) = pair.read(&other, &one).unwrap().answer().unwrap();
        assert!(initiator.finish(&two).is_err());
    }

    #[test]
    fn forged_response_before_the_true_one_changes_nothing() {
        for pattern in [Pattern::Nk, Pattern::Ik] {
            let mut pair = pair(pattern);
            let (mut initiator, one) = pair.start();
            let terms = terms(&pair);
            let (two, theirs) = pair.read(&terms, &one).unwrap().answer().unwrap();
            for byte in [0, 31, 32, 700, RESPONSE_MESSAGE_LEN - 1] {
                let mut bad = two.clone();
                bad[byte] ^= 4;
                assert!(initiator.finish(&bad).is_err(), "byte {byte}");
            }
            let mut low = two.clone();
            low[..32].fill(0);
            assert!(initiator.finish(&low).is_err());
            assert!(initiator.finish(&two[..40]).is_err());
            assert_eq!(initiator.finish(&two).unwrap().resume, theirs.resume);
        }
    }

    #[test]
    fn flipped_bit_in_message_1_is_refused() {
        for pattern in [Pattern::Nk, Pattern::Ik] {
            let mut pair = pair(pattern);
            let (_, one) = pair.start();
            let terms = terms(&pair);
            for byte in (0..one.len()).step_by(13) {
                let mut bad = one.clone();
                bad[byte] ^= 1;
                assert!(pair.read(&terms, &bad).is_err(), "byte {byte}");
            }
        }
    }
}
