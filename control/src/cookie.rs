//! Cookies: a source proves that it receives at its address before it costs anything (SPEC 4.9); and kind 3, which
//! carries cookies and challenges.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use blake2::Blake2sMac;
use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, Update};
use rand::Rng;
use subtle::ConstantTimeEq;
use wire::gcm::{AeadKey, Job, Prepared, open_batch, prepare, seal_batch};
use wire::handshake::COOKIE_LEN;
use wire::kdf::{expand, extract};
use zeroize::Zeroizing;

use crate::datagram::{MAC_LEN, MessageKind, Parsed, head};

/// A secret is replaced after this time; the one before it still counts.
const SECRET_LIFE: Duration = Duration::from_secs(120);
const NONCE_LEN: usize = 24;
/// Bytes that kind 3 carries.
pub(crate) const TEXT_LEN: usize = 16;

type Secret = Zeroizing<[u8; 32]>;

/// Makes and checks the cookies of this node.
#[derive(Default)]
pub(crate) struct Cookies {
    current: Option<(Duration, Secret)>,
    previous: Option<Secret>,
}

impl Cookies {
    fn rotate(&mut self, rng: &mut impl Rng, now: Duration) -> &Secret {
        let lives = |(drawn, _): &(Duration, Secret)| now.saturating_sub(*drawn) < SECRET_LIFE;
        if !self.current.as_ref().is_some_and(lives) {
            let mut secret = Zeroizing::new([0; 32]);
            rng.fill_bytes(&mut secret[..]);
            let recent = |(drawn, _): &(Duration, Secret)| now.saturating_sub(*drawn) < 2 * SECRET_LIFE;
            self.previous = self.current.replace((now, secret)).filter(recent).map(|(_, secret)| secret);
        }
        &self.current.as_ref().expect("it was drawn above").1
    }

    /// The cookie of an address.
    pub(crate) fn of(&mut self, rng: &mut impl Rng, now: Duration, from: SocketAddr) -> [u8; MAC_LEN] {
        cookie(self.rotate(rng, now), from)
    }

    /// True if mac2 is keyed by a cookie of this address.
    pub(crate) fn accept(&mut self, rng: &mut impl Rng, now: Duration, from: SocketAddr, half: &Parsed<'_>) -> bool {
        if half.mac2 == [0; MAC_LEN] {
            return false;
        }
        self.rotate(rng, now);
        let secrets = self.current.iter().map(|(_, secret)| secret).chain(&self.previous);
        secrets.map(|secret| cookie(secret, from)).any(|cookie| mac(&cookie, half.before_mac2).ct_eq(half.mac2).into())
    }
}

fn cookie(secret: &Secret, from: SocketAddr) -> [u8; MAC_LEN] {
    let address = match from.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let mut bytes = [0; 18];
    bytes[..16].copy_from_slice(&address.octets());
    bytes[16..].copy_from_slice(&from.port().to_be_bytes());
    mac(&secret[..], &bytes)
}

/// Keyed BLAKE2s of 16 bytes.
fn mac(key: &[u8], bytes: &[u8]) -> [u8; MAC_LEN] {
    let mut mac =
        Blake2sMac::<U16>::new_with_salt_and_personal(Some(key), &[], &[]).expect("a key of at most 32 bytes");
    mac.update(bytes);
    mac.finalize_fixed().into()
}

/// Sets mac2 of a half.
pub(crate) fn set_mac2(half: &mut [u8], cookie: &[u8; MAC_LEN]) {
    let (before, mac2) = half.split_at_mut(half.len() - MAC_LEN);
    mac2.copy_from_slice(&mac(cookie, before));
}

/// What kind 3 carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Answer {
    Cookie = 0,
    Challenge = 1,
}

impl Answer {
    pub(crate) fn from_wire(part: u8) -> Answer {
        if part == 0 { Answer::Cookie } else { Answer::Challenge }
    }

    fn label(self) -> &'static str {
        match self {
            Answer::Cookie => "eddy1 cookie",
            Answer::Challenge => "eddy1 stamp",
        }
    }

    /// `responder` is the Noise static that the half was made for, `mac1` that of part 0.
    fn key(self, nonce: &[u8], responder: &[u8; 32], mac1: &[u8; MAC_LEN]) -> AeadKey {
        prepare(&expand(&extract(nonce, &[responder, mac1]), self.label()))
    }

    /// Frames kind 3 (SPEC 4.9.6).
    pub(crate) fn seal(
        self,
        rng: &mut impl Rng,
        index: u32,
        responder: &[u8; 32],
        mac1: &[u8; MAC_LEN],
        text: &[u8; TEXT_LEN],
    ) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        rng.fill_bytes(&mut nonce);
        let key = self.key(&nonce, responder, mac1);
        let mut sealed = [0; TEXT_LEN + MAC_LEN];
        sealed[..TEXT_LEN].copy_from_slice(text);
        let iv = *key.iv();
        seal_batch(&mut [Job::new(&key, iv, &mut sealed)]);
        [&head(MessageKind::Answer, self as u8, index)[..], &nonce, &sealed].concat()
    }

    /// Opens kind 3. None if it is not authentic.
    pub(crate) fn open(
        self,
        answer: &Parsed<'_>,
        responder: &[u8; 32],
        mac1: &[u8; MAC_LEN],
    ) -> Option<[u8; TEXT_LEN]> {
        let (nonce, sealed) = answer.noise.split_at_checked(NONCE_LEN)?;
        let mut sealed: [u8; TEXT_LEN + MAC_LEN] = sealed.try_into().ok()?;
        let key = self.key(nonce, responder, mac1);
        let iv = *key.iv();
        let mut jobs = [Job::new(&key, iv, &mut sealed)];
        open_batch(&mut jobs);
        let ok = jobs[0].ok;
        ok.then(|| *sealed.first_chunk().expect("it is longer"))
    }
}

const _: () = assert!(COOKIE_LEN == 8 + NONCE_LEN + TEXT_LEN + MAC_LEN);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datagram::{Mac1Key, frame, parse};
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;
    use wire::handshake::NK_HALF_LEN;

    const FROM: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 7);

    fn half() -> Vec<u8> {
        frame(MessageKind::Initiation, 0, 9, &[5; 632], &Mac1Key::of(&[1; 32]))
    }

    #[test]
    fn cookie_counts_for_its_address_and_up_to_four_minutes() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let mut cookies = Cookies::default();
        let secs = Duration::from_secs;
        let cookie = cookies.of(&mut rng, secs(0), FROM);
        let mut with_cookie = half();
        set_mac2(&mut with_cookie, &cookie);
        let mut accepts = |at: u64, from: SocketAddr, half: &[u8]| {
            cookies.accept(&mut rng, secs(at), from, &parse(half, NK_HALF_LEN).unwrap())
        };
        assert!(accepts(1, FROM, &with_cookie) && accepts(130, FROM, &with_cookie) && accepts(239, FROM, &with_cookie));
        assert!(!accepts(239, SocketAddr::new(FROM.ip(), 8), &with_cookie), "another port");
        assert!(!accepts(239, FROM, &half()), "no mac2");
        let mut bad = with_cookie.clone();
        bad[100] ^= 1;
        assert!(!accepts(239, FROM, &bad), "another half");
        assert!(!accepts(250, FROM, &with_cookie), "too old");
    }

    #[test]
    fn secrets_of_long_ago_do_not_come_back() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let mut cookies = Cookies::default();
        let mut half = half();
        set_mac2(&mut half, &cookies.of(&mut rng, Duration::ZERO, FROM));
        let parsed = parse(&half, NK_HALF_LEN).unwrap();
        assert!(!cookies.accept(&mut rng, Duration::from_secs(1000), FROM, &parsed), "nothing asked in between");
    }

    #[test]
    fn answer_opens_for_its_half_and_kind_only() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let sealed = Answer::Cookie.seal(&mut rng, 9, &[1; 32], &[2; 16], &[3; 16]);
        assert_eq!(sealed.len(), COOKIE_LEN);
        let parsed = parse(&sealed, NK_HALF_LEN).unwrap();
        assert_eq!((parsed.kind, parsed.part, parsed.index), (MessageKind::Answer, 0, 9));
        assert_eq!(Answer::Cookie.open(&parsed, &[1; 32], &[2; 16]), Some([3; 16]));
        assert_eq!(Answer::Challenge.open(&parsed, &[1; 32], &[2; 16]), None);
        assert_eq!(Answer::Cookie.open(&parsed, &[2; 32], &[2; 16]), None);
        assert_eq!(Answer::Cookie.open(&parsed, &[1; 32], &[3; 16]), None);
        for byte in 8..COOKIE_LEN {
            let mut bad = sealed.clone();
            bad[byte] ^= 1;
            assert_eq!(Answer::Cookie.open(&parse(&bad, NK_HALF_LEN).unwrap(), &[1; 32], &[2; 16]), None);
        }
    }
}
