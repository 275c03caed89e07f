//! A node's descriptor: the facts about a hop that the entry and the neighbours need, signed by its
//! identity (SPEC 7.1).
//!
//! The encoding is canonical: fixed fields in one order, big-endian, no optional parts. Equal
//! contents therefore have equal hashes. D, the SHA-256 of the bytes without the signature, binds
//! every handshake and setup to exactly this descriptor. Paced classes will add a new version.
//!
//! ```text
//! off  len  field
//!  0     4  "eddy"                     24    8  not before, s since 1970
//!  4     1  version (1)                32    8  not after, s since 1970
//!  5     1  suite (1, 2: SPEC 5.1)     40   32  chain id
//!  6     1  class                      72   32  Noise static key
//!  7     1  position i                104   32  X25519 setup key
//!  8     1  key hops h                136    4  largest mixing delay, ms
//!  9     1  lanes n                   140    2  lifetime, s
//! 10     2  forward cell length       142   19  n lanes: family u8 (4, 6), address 16, port u16
//! 12     2  backward cell length       .. 1184  ML-KEM-768 setup key, suite 2 only
//! 14     2  zero                       ..   64  Ed25519 signature over everything before it
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
use wire::setup::{HopPublic, MLKEM_PUBLIC_LEN, SetupKey, SetupPublic, Suite};

/// The descriptor version that this program reads and writes.
pub const VERSION: u8 = 1;
/// Most lanes of a node.
pub const LANES_MAX: usize = 64;
pub const LIFETIME_MAX_S: u16 = 3600;

const MAGIC: &[u8; 4] = b"eddy";
const FIXED_LEN: usize = 142;
const LANE_LEN: usize = 19;
const SIGNATURE_LEN: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Chain id.
    pub chain: [u8; 32],
    /// Mixes 1..=m, exit m + 1.
    pub position: u8,
    /// Key hops: the mixes and the exit.
    pub hops: u8,
    pub class: Class,
    /// Grows with every new setup key. A descriptor with a smaller epoch than seen before is refused.
    pub epoch: u64,
    /// Valid from, in seconds since 1970.
    pub not_before: u64,
    /// Valid until, in seconds since 1970.
    pub not_after: u64,
    /// Noise static public key.
    pub noise: [u8; 32],
    /// Setup public keys. The suite follows from them.
    pub setup: SetupPublic,
    /// Largest delay that its mixing adds.
    pub mixing_delay_ms: u32,
    /// Lifetime of every channel; the same on all hops of a chain.
    pub lifetime_s: u16,
    /// Addresses where it receives from the previous hop, best first.
    pub lanes: Vec<SocketAddr>,
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DescriptorError {
    #[error("the descriptor is truncated ({0} bytes): fetch it again")]
    Truncated(usize),
    #[error("{0} bytes follow the descriptor: fetch it again; a file holds one descriptor only")]
    Trailing(usize),
    #[error("not an eddy descriptor: check the file or URL")]
    NotADescriptor,
    #[error("unsupported descriptor version {0} (expected {VERSION}): update eddy")]
    Version(u8),
    #[error("unsupported cipher suite {0} (expected 1 or 2): update eddy")]
    Suite(u8),
    #[error(
        "the signature does not match the identity pinned in chain.toml: fetch the file again, or compare the identity with \
         the node's operator"
    )]
    Signature,
    #[error("the descriptor belongs to another chain: compare the chain id in chain.toml with the operator's")]
    Chain,
    /// Seconds until it is valid.
    #[error(
        "the descriptor is not valid for another {}: check this host's clock with `date -u`; if it is right, ask the \
         node's operator", span(*.0)
    )]
    NotYet(u64),
    /// Seconds since it expired.
    #[error(
        "the descriptor expired {} ago: check this host's clock with `date -u`; if it is right, ask the node's \
         operator for a new one", span(*.0)
    )]
    Expired(u64),
    #[error(
        "the cell lengths do not match class and position: the operator and you must run matching versions of eddy"
    )]
    Lengths,
    #[error("{0} is out of range: ask the node's operator for a new descriptor")]
    Field(&'static str),
}

/// A time in the largest unit of which it has at least two.
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
        let mut out = Vec::with_capacity(FIXED_LEN + LANE_LEN * self.lanes.len() + MLKEM_PUBLIC_LEN + SIGNATURE_LEN);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[VERSION, self.setup.suite() as u8, self.class as u8, self.position, self.hops]);
        out.push(self.lanes.len() as u8);
        out.extend_from_slice(&length(Direction::Forward));
        out.extend_from_slice(&length(Direction::Backward));
        out.extend_from_slice(&[0; 2]);
        for number in [self.epoch, self.not_before, self.not_after] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        for bytes in [&self.chain, &self.noise, self.setup.x25519()] {
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
        out.extend(self.setup.mlkem().into_iter().flatten());
        Ok(out)
    }

    /// D: SHA-256 of the bytes without the signature (SPEC 5.1).
    ///
    /// # Panics
    /// If a field is out of range. A descriptor that was verified or signed has no such field.
    pub fn hash(&self) -> [u8; 32] {
        let bytes = self.to_bytes().expect("a descriptor in use was checked");
        digest::digest(&digest::SHA256, &bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// The parts that a setup needs.
    pub fn hop(&self) -> HopPublic {
        HopPublic { setup: self.setup.clone(), descriptor_hash: self.hash() }
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

    /// Reads a signed descriptor and checks form, signature, chain id and validity at `wall`.
    ///
    /// # Errors
    /// See [`DescriptorError`]; each message names a remedy.
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
    let suite = wire::setup::Suite::from_wire(fixed[5]).ok_or(Suite(fixed[5]))?;
    let lanes_n = usize::from(fixed[9]);
    let lanes_end = FIXED_LEN + LANE_LEN * lanes_n;
    let signed = lanes_end + mlkem_len(suite);
    if bytes.len() < signed + SIGNATURE_LEN {
        return Err(truncated());
    }
    if bytes.len() > signed + SIGNATURE_LEN {
        return Err(Trailing(bytes.len() - signed - SIGNATURE_LEN));
    }
    if fixed[14..16] != [0; 2] {
        return Err(Field("a reserved field"));
    }
    let u16_at = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
    let u64_at = |at: usize| u64::from_be_bytes(fixed[at..at + 8].try_into().expect("8 bytes"));
    let key_at = |at: usize| -> [u8; 32] { fixed[at..at + 32].try_into().expect("32 bytes") };
    let lanes = bytes[FIXED_LEN..lanes_end].chunks_exact(LANE_LEN).map(lane).collect::<Option<Vec<_>>>();
    let mlkem = (signed > lanes_end).then_some(&bytes[lanes_end..signed]);
    let setup = SetupPublic::new(key_at(104), mlkem).map_err(|_| Field("the ML-KEM setup key"))?;
    let descriptor = Descriptor {
        chain: key_at(40),
        position: fixed[7],
        hops: fixed[8],
        class: Class::from_wire(fixed[6]).ok_or(Field("class"))?,
        epoch: u64_at(16),
        not_before: u64_at(24),
        not_after: u64_at(32),
        noise: key_at(72),
        setup,
        mixing_delay_ms: u32::from_be_bytes(fixed[136..140].try_into().expect("4 bytes")),
        lifetime_s: u16_at(140),
        lanes: lanes.ok_or(Field("address of a lane"))?,
    };
    let shape = descriptor.check()?;
    let position = usize::from(descriptor.position);
    if usize::from(u16_at(10)) != shape.cell_len(Direction::Forward, position)
        || usize::from(u16_at(12)) != shape.cell_len(Direction::Backward, position)
    {
        return Err(Lengths);
    }
    Ok((descriptor, signed))
}

/// Bytes of the ML-KEM setup key.
const fn mlkem_len(suite: Suite) -> usize {
    match suite {
        Suite::X25519 => 0,
        Suite::Hybrid => MLKEM_PUBLIC_LEN,
    }
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

/// A node's long-term Ed25519 key. It signs the node's descriptors.
pub struct Identity(Ed25519KeyPair);

impl Identity {
    /// The key pair of a 32-byte seed.
    pub fn from_seed(seed: &Secret) -> Identity {
        Identity(Ed25519KeyPair::from_seed_unchecked(seed.expose()).expect("any 32 bytes are a seed"))
    }

    /// Its public key, which `chain.toml` pins.
    pub fn public(&self) -> [u8; 32] {
        self.0.public_key().as_ref().try_into().expect("an Ed25519 key has 32 bytes")
    }
}

/// Draws 32 bytes: an identity's seed, a Noise static, an X25519 setup key, a chain id.
pub fn draw_secret(rng: &mut impl Rng) -> Secret {
    let mut bytes = zeroize::Zeroizing::new([0; 32]);
    rng.fill_bytes(&mut bytes[..]);
    Secret::new(*bytes)
}

/// Draws a private key on Curve25519, and its public key, for Noise statics.
pub fn draw_x25519(rng: &mut impl Rng) -> (Secret, [u8; 32]) {
    let secret = draw_secret(rng);
    let public = x25519_public(&secret);
    (secret, public)
}

/// Draws a hop's private setup keys. That of ML-KEM is drawn by aws-lc's generator.
pub fn draw_setup(rng: &mut impl Rng, suite: Suite) -> SetupKey {
    SetupKey::generate(suite, draw_secret(rng))
}
