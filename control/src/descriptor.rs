//! A node's descriptor: what entry and neighbours must know of a hop, signed by its identity
//! (SPEC 8.1).
//!
//! The encoding is canonical: fixed fields in one order, big-endian, no optional parts, so one
//! content has one hash. D, the SHA-256 of the bytes without the signature, binds every handshake
//! and setup to exactly this descriptor. Paced classes will add a version of their own.
//!
//! ```text
//! off  len  field
//!  0     4  "eddy"                     24    8  not before, s since 1970
//!  4     1  version (1)                32    8  not after, s since 1970
//!  5     1  suite (1: X25519)          40   32  chain id
//!  6     1  class                      72   32  Noise static key
//!  7     1  position i                104   32  setup key
//!  8     1  key hops h                136    4  largest mixing delay, ms
//!  9     1  lanes n                   140    2  lifetime, s
//! 10     2  forward cell length       142   19  n lanes: family u8 (4, 6), address 16, port u16
//! 12     2  backward cell length       ..   64  Ed25519 signature over everything before it
//! 14     2  zero
//! 16     8  epoch
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use rand::Rng;
use thiserror::Error;
use wire::cell::{Class, Direction, Shape};
use wire::kdf::{Secret, x25519_public};
use wire::setup::{HopPublic, SUITE_X25519};

/// Descriptor version of this program.
pub const VERSION: u8 = 1;
/// Most lanes of a node.
pub const LANES_MAX: usize = 64;
/// Longest lifetime of a channel, in seconds.
pub const LIFETIME_MAX_S: u16 = 3600;

const MAGIC: &[u8; 4] = b"eddy";
const FIXED_LEN: usize = 142;
const LANE_LEN: usize = 19;
const SIGNATURE_LEN: usize = 64;

/// A hop as its operator describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Which chain it belongs to.
    pub chain: [u8; 32],
    /// i: mixes 1..=m, exit m + 1.
    pub position: u8,
    /// h: the mixes and the exit.
    pub hops: u8,
    /// Size class.
    pub class: Class,
    /// Grows with every new setup key; an older one than seen before is refused.
    pub epoch: u64,
    /// Valid from, in seconds since 1970.
    pub not_before: u64,
    /// Valid until, in seconds since 1970.
    pub not_after: u64,
    /// Noise static public key.
    pub noise: [u8; 32],
    /// X25519 setup public key.
    pub setup: [u8; 32],
    /// Largest delay its mixing adds, in milliseconds.
    pub mixing_delay_ms: u32,
    /// Lifetime of every channel, in seconds; the same on all hops of a chain.
    pub lifetime_s: u16,
    /// Where it receives from the previous hop, best first.
    pub lanes: Vec<SocketAddr>,
}

/// Why a descriptor is not accepted.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DescriptorError {
    /// Too short.
    #[error("the descriptor is cut short ({0} bytes): fetch it again")]
    Truncated(usize),
    /// Too long.
    #[error("{0} bytes follow the descriptor: fetch it again, and the file must hold one descriptor only")]
    Trailing(usize),
    /// Not a descriptor.
    #[error("this is no eddy descriptor: check the file or URL")]
    NotADescriptor,
    /// A newer program wrote it.
    #[error("descriptor version {0}, this program knows version {VERSION}: update eddy")]
    Version(u8),
    /// Unknown suite.
    #[error("cipher suite {0}, this program knows suite {SUITE_X25519}: update eddy")]
    Suite(u8),
    /// Signature and content differ.
    #[error(
        "the signature is not by the identity pinned in chain.toml: fetch the file again, or compare the identity with the \
         node's operator"
    )]
    Signature,
    /// Of another chain.
    #[error("the descriptor belongs to another chain: compare the chain id in chain.toml with the operator's")]
    Chain,
    /// Not valid yet.
    #[error(
        "the descriptor is not valid for another {}: check this host's clock with `date -u`; if it is right, ask the \
         node's operator", span(*.0)
    )]
    NotYet(u64),
    /// No longer valid.
    #[error(
        "the descriptor expired {} ago: check this host's clock with `date -u`; if it is right, ask the node's \
         operator for a new one", span(*.0)
    )]
    Expired(u64),
    /// Cell lengths that the class does not have.
    #[error("the cell lengths do not match class and position: the operator must run a matching version of eddy")]
    Lengths,
    /// A field has a value that none may have.
    #[error("{0} is out of range: the operator must publish the descriptor anew")]
    Field(&'static str),
}

/// A time for people, in the largest unit that it has two of.
fn span(seconds: u64) -> String {
    let units = [(86_400, "days"), (3600, "hours"), (60, "minutes")];
    let unit = units.iter().find(|(length, _)| seconds >= 2 * length);
    unit.map_or_else(|| format!("{seconds} s"), |(length, name)| format!("{} {name}", seconds / length))
}

impl Descriptor {
    fn shape(&self) -> Result<Shape, DescriptorError> {
        let shape =
            Shape::new(self.class, usize::from(self.hops)).map_err(|_| DescriptorError::Field("number of hops"))?;
        if !(1..=self.hops).contains(&self.position) {
            return Err(DescriptorError::Field("position"));
        }
        Ok(shape)
    }

    fn check(&self) -> Result<Shape, DescriptorError> {
        let shape = self.shape()?;
        if self.lanes.is_empty() || self.lanes.len() > LANES_MAX {
            return Err(DescriptorError::Field("number of lanes"));
        }
        if self.lanes.iter().any(|lane| lane.port() == 0) {
            return Err(DescriptorError::Field("port of a lane"));
        }
        if self.lifetime_s == 0 || self.lifetime_s > LIFETIME_MAX_S {
            return Err(DescriptorError::Field("lifetime"));
        }
        if self.not_before >= self.not_after {
            return Err(DescriptorError::Field("validity"));
        }
        if self.mixing_delay_ms > 60_000 {
            return Err(DescriptorError::Field("mixing delay"));
        }
        Ok(shape)
    }

    /// The bytes that are hashed and signed.
    ///
    /// # Errors
    /// A field is out of range.
    pub fn to_bytes(&self) -> Result<Vec<u8>, DescriptorError> {
        let shape = self.check()?;
        let length = |direction| (shape.cell_len(direction, usize::from(self.position)) as u16).to_be_bytes();
        let mut out = Vec::with_capacity(FIXED_LEN + LANE_LEN * self.lanes.len() + SIGNATURE_LEN);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[VERSION, SUITE_X25519, self.class as u8, self.position, self.hops]);
        out.push(self.lanes.len() as u8);
        out.extend_from_slice(&length(Direction::Forward));
        out.extend_from_slice(&length(Direction::Backward));
        out.extend_from_slice(&[0; 2]);
        for number in [self.epoch, self.not_before, self.not_after] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        for bytes in [&self.chain, &self.noise, &self.setup] {
            out.extend_from_slice(bytes);
        }
        out.extend_from_slice(&self.mixing_delay_ms.to_be_bytes());
        out.extend_from_slice(&self.lifetime_s.to_be_bytes());
        for lane in &self.lanes {
            let (family, address) = match lane.ip() {
                IpAddr::V4(ip) => {
                    let mut bytes = [0; 16];
                    bytes[..4].copy_from_slice(&ip.octets());
                    (4, bytes)
                }
                IpAddr::V6(ip) => (6, ip.octets()),
            };
            out.push(family);
            out.extend_from_slice(&address);
            out.extend_from_slice(&lane.port().to_be_bytes());
        }
        Ok(out)
    }

    /// D: SHA-256 of the bytes without the signature (SPEC 5.1).
    ///
    /// # Panics
    /// If a field is out of range; one that was verified or signed never is.
    pub fn hash(&self) -> [u8; 32] {
        let bytes = self.to_bytes().expect("a descriptor in use was checked");
        digest::digest(&digest::SHA256, &bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// What a setup needs of this hop.
    pub fn hop(&self) -> HopPublic {
        HopPublic { setup: self.setup, descriptor_hash: self.hash() }
    }

    /// The bytes followed by the identity's signature.
    ///
    /// # Errors
    /// A field is out of range.
    pub fn sign(&self, identity: &Identity) -> Result<Vec<u8>, DescriptorError> {
        let mut bytes = self.to_bytes()?;
        let signature = identity.0.sign(&bytes);
        bytes.extend_from_slice(signature.as_ref());
        Ok(bytes)
    }

    /// Reads a signed descriptor and checks it: form, signature, chain, clock.
    ///
    /// # Errors
    /// See [`DescriptorError`]; each names its remedy.
    pub fn verify(
        bytes: &[u8],
        identity: &[u8; 32],
        chain: &[u8; 32],
        wall: SystemTime,
    ) -> Result<Descriptor, DescriptorError> {
        let (descriptor, signed) = parse(bytes)?;
        UnparsedPublicKey::new(&ED25519, identity)
            .verify(&bytes[..signed], &bytes[signed..])
            .map_err(|_| DescriptorError::Signature)?;
        if descriptor.chain != *chain {
            return Err(DescriptorError::Chain);
        }
        let now = wall.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        if now < descriptor.not_before {
            return Err(DescriptorError::NotYet(descriptor.not_before - now));
        }
        if now > descriptor.not_after {
            return Err(DescriptorError::Expired(now - descriptor.not_after));
        }
        Ok(descriptor)
    }
}

fn parse(bytes: &[u8]) -> Result<(Descriptor, usize), DescriptorError> {
    use DescriptorError::{Field, Lengths, NotADescriptor, Suite, Trailing, Truncated, Version};
    let truncated = || Truncated(bytes.len());
    if !bytes.starts_with(&MAGIC[..bytes.len().min(4)]) {
        return Err(NotADescriptor);
    }
    let version = *bytes.get(4).ok_or_else(truncated)?;
    if version != VERSION {
        return Err(Version(version));
    }
    let fixed: &[u8; FIXED_LEN] = bytes.first_chunk().ok_or_else(truncated)?;
    let lanes_n = usize::from(fixed[9]);
    let signed = FIXED_LEN + LANE_LEN * lanes_n;
    if bytes.len() < signed + SIGNATURE_LEN {
        return Err(truncated());
    }
    if bytes.len() > signed + SIGNATURE_LEN {
        return Err(Trailing(bytes.len() - signed - SIGNATURE_LEN));
    }
    if fixed[5] != SUITE_X25519 {
        return Err(Suite(fixed[5]));
    }
    if fixed[14..16] != [0; 2] {
        return Err(Field("a reserved field"));
    }
    let u16_at = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
    let u64_at = |at: usize| u64::from_be_bytes(fixed[at..at + 8].try_into().expect("8 bytes"));
    let key_at = |at: usize| -> [u8; 32] { fixed[at..at + 32].try_into().expect("32 bytes") };
    let lanes = bytes[FIXED_LEN..signed].chunks_exact(LANE_LEN).map(lane).collect::<Option<Vec<_>>>();
    let descriptor = Descriptor {
        chain: key_at(40),
        position: fixed[7],
        hops: fixed[8],
        class: Class::from_wire(fixed[6]).ok_or(Field("class"))?,
        epoch: u64_at(16),
        not_before: u64_at(24),
        not_after: u64_at(32),
        noise: key_at(72),
        setup: key_at(104),
        mixing_delay_ms: u32::from_be_bytes(fixed[136..140].try_into().expect("4 bytes")),
        lifetime_s: u16_at(140),
        lanes: lanes.ok_or(Field("address of a lane"))?,
    };
    let shape = descriptor.check()?;
    let place = usize::from(descriptor.position);
    if usize::from(u16_at(10)) != shape.cell_len(Direction::Forward, place)
        || usize::from(u16_at(12)) != shape.cell_len(Direction::Backward, place)
    {
        return Err(Lengths);
    }
    Ok((descriptor, signed))
}

fn lane(bytes: &[u8]) -> Option<SocketAddr> {
    let address: [u8; 16] = bytes[1..17].try_into().expect("16 bytes");
    let port = u16::from_be_bytes([bytes[17], bytes[18]]);
    let ip = match bytes[0] {
        4 if address[4..] == [0; 12] => IpAddr::V4(Ipv4Addr::new(address[0], address[1], address[2], address[3])),
        6 => IpAddr::V6(Ipv6Addr::from(address)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// A node's long-term Ed25519 key: signs its descriptors.
pub struct Identity(Ed25519KeyPair);

impl Identity {
    /// The identity of a 32-byte seed.
    ///
    /// # Panics
    /// Never: every seed has a key pair.
    pub fn from_seed(seed: &Secret) -> Identity {
        Identity(Ed25519KeyPair::from_seed_unchecked(seed.expose()).expect("every 32 bytes are a seed"))
    }

    /// Its public key, to be pinned in `chain.toml`.
    pub fn public(&self) -> [u8; 32] {
        self.0.public_key().as_ref().try_into().expect("an Ed25519 key has 32 bytes")
    }
}

/// Draws 32 secret bytes: an identity's seed, a Noise static, a setup key, a chain id.
pub fn draw_secret(rng: &mut impl Rng) -> Secret {
    let mut bytes = zeroize::Zeroizing::new([0; 32]);
    rng.fill_bytes(&mut bytes[..]);
    Secret::new(*bytes)
}

/// A private key and its public key on Curve25519, for Noise statics and setup keys.
pub fn draw_x25519(rng: &mut impl Rng) -> (Secret, [u8; 32]) {
    let secret = draw_secret(rng);
    let public = x25519_public(&secret);
    (secret, public)
}
