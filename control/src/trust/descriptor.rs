//! A node's descriptor: who it is, where it listens, and which keys are its own (SPEC 7.3).
//!
//! It holds what belongs to the node alone. Its position, its chain and the lengths of cells belong
//! to the chain ([`super::chain`]). The encoding is canonical: one content has one byte string.
//!
//! ```text
//! off  len  field                                     class entry
//! 0    4    "eddy"                                    0   1    class
//! 4    1    version (2)                               1   1    lanes, 1..64; 1 for an exit and in a paced class
//! 5    1    role: 1 mix, 2 exit                       2   1    number a of addresses, 0..8
//! 6    1    number c of classes, 1..6                 3   1    number d of names, 0..4
//! 7    1    zero                                      4   19a  addresses: family u8, address 16, port u16
//! 8    8    revision                                  ..  ..   names: length u8, name, port u16
//! 16   8    not before, s since 1970
//! 24   8    not after, s since 1970
//! 32   32   identity
//! 64   32   Noise static public key
//! 96   32   signing public key
//! 128  8    floor: descriptors of a lower revision are revoked
//! 136  ..   c class entries, class numbers ascending
//! ..   64   signature by the identity
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use wire::ids::ClassId;

use super::encoding::{Label, Malformed, Reader, SIGNATURE_LEN, Signer, sha256};

/// The descriptor version that this program reads and writes.
pub const VERSION: u8 = 2;
/// Longest descriptor, with its signature.
pub const LEN_MAX: usize = 2048;
pub const CLASSES_MAX: usize = 6;
pub const ADDRESSES_MAX: usize = 8;
pub const NAMES_MAX: usize = 4;
/// Most lanes of a node.
pub const LANES_MAX: u8 = 64;

const MAGIC: &[u8; 4] = b"eddy";
/// End of the revisions and draws: this one and greater ones are refused, so that there is always a next one.
pub const NUMBER_END: u64 = 1 << 63;

/// What a hop is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum HopRole {
    Mix = 1,
    Exit = 2,
}

/// Where a node receives from the previous hop in one class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    pub class: ClassId,
    /// Consecutive ports, from that of each address on. One in a paced class.
    pub lanes: u8,
    /// Best first.
    pub addresses: Vec<SocketAddr>,
    /// DNS names with their ports, tried after the addresses.
    pub names: Vec<(String, u16)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeDescriptor {
    pub role: HopRole,
    /// Grows with every descriptor of an identity; the highest one counts.
    pub revision: u64,
    /// Descriptors of a lower revision are revoked, with their keys. It never decreases.
    pub floor: u64,
    /// Valid from, in seconds since 1970.
    pub not_before: u64,
    /// Valid before this time, in seconds since 1970.
    pub not_after: u64,
    /// Ed25519 public key that signs this descriptor.
    pub identity: [u8; 32],
    /// X25519 public key of the link handshakes.
    pub noise: [u8; 32],
    /// Ed25519 public key that signs the node's epoch records and bundles.
    pub signing: [u8; 32],
    /// By ascending class number.
    pub contacts: Vec<Contact>,
}

/// A point of time in relation to a descriptor's validity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Valid in so many seconds.
    NotYet(u64),
    /// Valid for so many more seconds.
    Valid(u64),
    /// Expired so many seconds ago.
    Expired(u64),
}

impl NodeDescriptor {
    /// Its contact in a class.
    pub fn contact(&self, class: impl Into<ClassId>) -> Option<&Contact> {
        let class = class.into();
        self.contacts.iter().find(|contact| contact.class == class)
    }

    /// Its validity at `now`, in seconds since 1970.
    pub fn validity(&self, now: u64) -> Validity {
        if now < self.not_before {
            Validity::NotYet(self.not_before - now)
        } else if now < self.not_after {
            Validity::Valid(self.not_after - now)
        } else {
            Validity::Expired(now - self.not_after)
        }
    }

    fn check(&self) -> Result<(), Malformed> {
        if self.revision >= NUMBER_END || self.floor > self.revision {
            return Err(Malformed::Field("its revision is out of range"));
        }
        if self.not_before >= self.not_after {
            return Err(Malformed::Field("its validity ends before it begins"));
        }
        if self.contacts.is_empty() || self.contacts.len() > CLASSES_MAX {
            return Err(Malformed::Field("expected 1 to 6 classes"));
        }
        if !self.contacts.is_sorted_by(|a, b| a.class < b.class) {
            return Err(Malformed::Field("classes must be listed once each, in ascending order"));
        }
        self.contacts.iter().try_for_each(|contact| contact.check(self.role))
    }

    /// The bytes that are hashed and signed.
    fn to_bytes(&self) -> Result<Vec<u8>, Malformed> {
        self.check()?;
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[VERSION, self.role as u8, self.contacts.len() as u8, 0]);
        for number in [self.revision, self.not_before, self.not_after] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        for key in [&self.identity, &self.noise, &self.signing] {
            out.extend_from_slice(key);
        }
        out.extend_from_slice(&self.floor.to_be_bytes());
        self.contacts.iter().for_each(|contact| contact.write(&mut out));
        if out.len() + SIGNATURE_LEN > LEN_MAX {
            return Err(Malformed::TooLong(out.len() + SIGNATURE_LEN, LEN_MAX));
        }
        Ok(out)
    }

    /// Signs it with its identity.
    ///
    /// # Errors
    /// A field is out of range, or `identity` is not the key that the descriptor names.
    pub fn sign(self, identity: &Signer) -> Result<SignedDescriptor, Malformed> {
        if identity.public() != self.identity {
            return Err(Malformed::Field("the identity key is not that of the descriptor"));
        }
        let mut bytes = self.to_bytes()?;
        let hash = sha256(&[&bytes]);
        let signature = identity.sign(Label::Descriptor, &bytes);
        bytes.extend_from_slice(&signature);
        Ok(SignedDescriptor { content: self, bytes, hash })
    }

    /// The content without a signature, as a request to the owner of the identity.
    ///
    /// # Errors
    /// A field is out of range.
    pub fn unsigned(&self) -> Result<Vec<u8>, Malformed> {
        self.to_bytes()
    }

    /// Reads such a request. Nobody vouches for it.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub fn read_unsigned(bytes: &[u8]) -> Result<NodeDescriptor, Malformed> {
        let mut reader = NodeDescriptor::start(bytes)?;
        let descriptor = NodeDescriptor::read_content(&mut reader)?;
        reader.end()?;
        descriptor.check()?;
        Ok(descriptor)
    }

    fn start(bytes: &[u8]) -> Result<Reader<'_>, Malformed> {
        if !bytes.starts_with(&MAGIC[..bytes.len().min(4)]) {
            return Err(Malformed::NotADescriptor);
        }
        if bytes.len() > LEN_MAX {
            return Err(Malformed::TooLong(bytes.len(), LEN_MAX));
        }
        Ok(Reader::new(bytes))
    }

    fn read_content(reader: &mut Reader<'_>) -> Result<NodeDescriptor, Malformed> {
        reader.bytes(MAGIC.len())?;
        let found = reader.u8()?;
        if found != VERSION {
            return Err(Malformed::Version { found, expected: VERSION });
        }
        let role = match reader.u8()? {
            1 => HopRole::Mix,
            2 => HopRole::Exit,
            _ => return Err(Malformed::Field("expected role 1 (mix) or 2 (exit)")),
        };
        let classes = reader.u8()?;
        if reader.u8()? != 0 {
            return Err(Malformed::Field("a reserved byte is not zero: update eddy"));
        }
        let mut descriptor = NodeDescriptor {
            role,
            revision: reader.u64()?,
            not_before: reader.u64()?,
            not_after: reader.u64()?,
            identity: reader.array()?,
            noise: reader.array()?,
            signing: reader.array()?,
            floor: reader.u64()?,
            contacts: Vec::new(),
        };
        for _ in 0..classes {
            descriptor.contacts.push(Contact::read(reader)?);
        }
        Ok(descriptor)
    }

    fn parse(bytes: &[u8]) -> Result<(NodeDescriptor, usize), Malformed> {
        let mut reader = NodeDescriptor::start(bytes)?;
        let descriptor = NodeDescriptor::read_content(&mut reader)?;
        let signed = reader.position();
        reader.bytes(SIGNATURE_LEN)?;
        reader.end()?;
        descriptor.check()?;
        Ok((descriptor, signed))
    }
}

impl Contact {
    fn check(&self, role: HopRole) -> Result<(), Malformed> {
        if !(1..=LANES_MAX).contains(&self.lanes) || role == HopRole::Exit && self.lanes != 1 {
            return Err(Malformed::Field("expected 1 to 64 lanes, and 1 for an exit"));
        }
        if self.class.is_paced() && self.lanes != 1 {
            return Err(Malformed::Field("expected 1 lane in a paced class"));
        }
        if self.addresses.len() > ADDRESSES_MAX || self.names.len() > NAMES_MAX {
            return Err(Malformed::Field("too many addresses or names: at most 8 and 4"));
        }
        if self.addresses.is_empty() && self.names.is_empty() {
            return Err(Malformed::Field("a class has neither an address nor a name"));
        }
        let ports = self.addresses.iter().map(SocketAddr::port).chain(self.names.iter().map(|(_, port)| *port));
        let last = u16::MAX - (u16::from(self.lanes) - 1);
        if ports.into_iter().any(|port| port == 0 || port > last) {
            return Err(Malformed::Field("a port is 0, or its lanes go beyond port 65535"));
        }
        if self.addresses.iter().any(|address| !is_canonical(address)) {
            return Err(Malformed::Field("an IPv4 address is written as an IPv6 one"));
        }
        if self.names.iter().any(|(name, _)| !is_name(name)) {
            return Err(Malformed::Field(
                "a DNS name must have 1 to 253 lower-case letters, digits, hyphens, underscores or dots",
            ));
        }
        let repeats = |i: usize| self.addresses[..i].contains(&self.addresses[i]);
        let repeats_name = |i: usize| self.names[..i].contains(&self.names[i]);
        if (0..self.addresses.len()).any(repeats) || (0..self.names.len()).any(repeats_name) {
            return Err(Malformed::Field("an address or a name is listed twice"));
        }
        Ok(())
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.class.number(), self.lanes, self.addresses.len() as u8, self.names.len() as u8]);
        for address in &self.addresses {
            let (family, ip) = match address.ip() {
                IpAddr::V4(ip) => {
                    let mut bytes = [0; 16];
                    bytes[..4].copy_from_slice(&ip.octets());
                    (4, bytes)
                }
                IpAddr::V6(ip) => (6, ip.octets()),
            };
            out.push(family);
            out.extend_from_slice(&ip);
            out.extend_from_slice(&address.port().to_be_bytes());
        }
        for (name, port) in &self.names {
            out.push(name.len() as u8);
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(&port.to_be_bytes());
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Contact, Malformed> {
        let class = ClassId::from_wire(reader.u8()?).ok_or(Malformed::Field("unknown class: update eddy"))?;
        let [lanes, addresses, names] = reader.array()?;
        let mut contact = Contact { class, lanes, addresses: Vec::new(), names: Vec::new() };
        for _ in 0..addresses {
            contact.addresses.push(read_address(reader)?);
        }
        for _ in 0..names {
            let len = usize::from(reader.u8()?);
            let name = str::from_utf8(reader.bytes(len)?).map_err(|_| Malformed::Field("a DNS name is not ASCII"))?;
            contact.names.push((name.to_owned(), reader.u16()?));
        }
        Ok(contact)
    }
}

fn read_address(reader: &mut Reader<'_>) -> Result<SocketAddr, Malformed> {
    let family = reader.u8()?;
    let bytes: [u8; 16] = reader.array()?;
    let ip = match family {
        4 if bytes[4..] == [0; 12] => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
        6 => IpAddr::V6(Ipv6Addr::from(bytes)),
        _ => return Err(Malformed::Field("an address is neither IPv4 nor IPv6")),
    };
    Ok(SocketAddr::new(ip, reader.u16()?))
}

/// One address has one spelling. A flow label or a scope would be lost in the encoding.
fn is_canonical(address: &SocketAddr) -> bool {
    match address {
        SocketAddr::V4(_) => true,
        SocketAddr::V6(v6) => v6.ip().to_ipv4_mapped().is_none() && v6.flowinfo() == 0 && v6.scope_id() == 0,
    }
}

fn is_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.');
    (1..=253).contains(&name.len()) && name.bytes().all(good)
}

/// A descriptor whose identity signed it, with the bytes that were signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedDescriptor {
    content: NodeDescriptor,
    bytes: Vec<u8>,
    hash: [u8; 32],
}

impl SignedDescriptor {
    /// Reads a descriptor and checks its form and its identity's signature. Whose identity that is, and whether the
    /// descriptor is valid now, the caller decides.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub fn read(bytes: &[u8]) -> Result<SignedDescriptor, Malformed> {
        let (content, signed) = NodeDescriptor::parse(bytes)?;
        if !Label::Descriptor.verifies(&content.identity, &bytes[..signed], &bytes[signed..]) {
            return Err(Malformed::Signature);
        }
        Ok(SignedDescriptor { content, hash: sha256(&[&bytes[..signed]]), bytes: bytes.to_vec() })
    }

    pub fn content(&self) -> &NodeDescriptor {
        &self.content
    }

    /// With its signature.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// SHA-256 of the bytes without the signature.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// Which of two descriptors of one identity counts: the greater one. The hash decides between two of one
    /// revision, so that everyone makes the same choice.
    pub fn rank(&self) -> (u64, [u8; 32]) {
        (self.content.revision, self.hash)
    }

    /// The same as asks show it: with the first bytes of the hash.
    pub(super) fn short_rank(&self) -> (u64, [u8; 2]) {
        (self.content.revision, *self.hash.first_chunk().expect("a hash has 32 bytes"))
    }
}

impl std::ops::Deref for SignedDescriptor {
    type Target = NodeDescriptor;

    fn deref(&self) -> &NodeDescriptor {
        &self.content
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::subsequence;
    use wire::cell::Class;
    use wire::kdf::Secret;
    use wire::paced::PacedClass;

    use super::*;

    pub(crate) fn identity(seed: u8) -> Signer {
        Signer::from_seed(&Secret::new([seed; 32]))
    }

    pub(crate) fn descriptor(seed: u8, role: HopRole) -> NodeDescriptor {
        let contact = Contact {
            class: Class::L.into(),
            lanes: 1,
            addresses: vec![SocketAddr::from(([192, 0, 2, seed], 4700))],
            names: vec![("mix.example.org".to_owned(), 4700)],
        };
        NodeDescriptor {
            role,
            revision: 1,
            floor: 0,
            not_before: 1000,
            not_after: 2000,
            identity: identity(seed).public(),
            noise: [seed; 32],
            signing: identity(seed + 100).public(),
            contacts: vec![contact],
        }
    }

    /// End of the validity of [`node`], in seconds since 1970: after all clocks of tests.
    pub(crate) const NOT_AFTER: u64 = 1_800_005_000;

    /// The descriptor of one hop of a chain with `hops` hops. A hop's number is the seed of its identity.
    pub(crate) fn node(hop: usize, hops: usize) -> NodeDescriptor {
        let role = if hop == hops { HopRole::Exit } else { HopRole::Mix };
        NodeDescriptor { not_before: 0, not_after: NOT_AFTER, ..descriptor(hop as u8, role) }
    }

    /// Signs the descriptor of a hop by its identity.
    pub(crate) fn signed(descriptor: NodeDescriptor, hop: usize) -> SignedDescriptor {
        descriptor.sign(&identity(hop as u8)).unwrap()
    }

    fn address() -> impl Strategy<Value = SocketAddr> {
        let v4 = any::<[u8; 4]>().prop_map(IpAddr::from);
        let v6 = any::<[u8; 16]>().prop_map(|ip| IpAddr::V6(Ipv6Addr::from(ip)));
        (prop_oneof![v4, v6], 1u16..60_000).prop_map(|(ip, port)| SocketAddr::new(ip, port))
    }

    fn contacts() -> impl Strategy<Value = Vec<Contact>> {
        let one = (1u8..=LANES_MAX, vec(address(), 1..=8), vec(("[a-z0-9._-]{1,40}", 1u16..60_000), 0..=4));
        let classes: Vec<ClassId> = (0..=u8::MAX).filter_map(ClassId::from_wire).collect();
        (subsequence(classes, 1..=3), vec(one, 3)).prop_map(|(classes, all)| {
            let contact = |(class, (lanes, addresses, names)): (ClassId, (u8, Vec<_>, Vec<_>))| Contact {
                class,
                lanes: if class.is_paced() { 1 } else { lanes },
                addresses,
                names,
            };
            classes.into_iter().zip(all).map(contact).collect()
        })
    }

    proptest! {
        #[test]
        fn what_was_signed_is_read_again(contacts in contacts(), revision in 0..NUMBER_END, below in 0..9u64) {
            let floor = revision.saturating_sub(below);
            let descriptor = NodeDescriptor { contacts, revision, floor, ..descriptor(1, HopRole::Mix) };
            prop_assume!(descriptor.check().is_ok());
            let signed = descriptor.clone().sign(&identity(1)).unwrap();
            let read = SignedDescriptor::read(signed.bytes()).unwrap();
            prop_assert_eq!(&read, &signed);
            prop_assert_eq!(read.content(), &descriptor);
            prop_assert_eq!(NodeDescriptor::read_unsigned(&descriptor.unsigned().unwrap()), Ok(descriptor));
        }

        /// One content has one byte string, so whatever is read must be written as it was.
        #[test]
        fn what_is_read_is_written_as_it_was(at: prop::sample::Index, byte: u8) {
            let mut bytes = descriptor(1, HopRole::Mix).to_bytes().unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let with_signature = [&bytes[..], &[0; SIGNATURE_LEN]].concat();
            if let Ok((read, signed)) = NodeDescriptor::parse(&with_signature) {
                prop_assert_eq!(signed, bytes.len());
                prop_assert_eq!(read.to_bytes().unwrap(), bytes);
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in vec(any::<u8>(), 0..300), magic: bool) {
            let bytes = if magic { [&b"eddy\x02\x01\x01\x00"[..], &bytes].concat() } else { bytes };
            prop_assert!(SignedDescriptor::read(&bytes).is_err());
        }
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let signed = descriptor(1, HopRole::Exit).sign(&identity(1)).unwrap();
        for bit in 0..signed.bytes().len() * 8 {
            let mut bytes = signed.bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(SignedDescriptor::read(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn every_other_length_is_refused() {
        let signed = descriptor(1, HopRole::Mix).sign(&identity(1)).unwrap();
        let bytes = signed.bytes();
        for len in 0..bytes.len() {
            let refused = SignedDescriptor::read(&bytes[..len]);
            assert_eq!(refused, Err(Malformed::Truncated(len)), "{len} bytes");
        }
        let longer = [bytes, &[0]].concat();
        assert_eq!(SignedDescriptor::read(&longer), Err(Malformed::Trailing(1)));
    }

    #[test]
    fn another_identity_cannot_sign_it() {
        assert!(descriptor(1, HopRole::Mix).sign(&identity(2)).is_err());
        // Nor can it put its own signature behind the bytes.
        let mut bytes = descriptor(1, HopRole::Mix).to_bytes().unwrap();
        let forged = identity(2).sign(Label::Descriptor, &bytes);
        bytes.extend_from_slice(&forged);
        assert_eq!(SignedDescriptor::read(&bytes), Err(Malformed::Signature));
    }

    #[test]
    fn fields_out_of_range_are_refused() {
        let refused = |change: fn(&mut NodeDescriptor)| {
            let mut descriptor = descriptor(1, HopRole::Mix);
            change(&mut descriptor);
            assert!(descriptor.clone().sign(&identity(1)).is_err(), "{descriptor:?}");
        };
        refused(|d| d.not_after = d.not_before);
        refused(|d| d.revision = NUMBER_END);
        refused(|d| d.floor = 2);
        refused(|d| d.contacts.clear());
        refused(|d| d.contacts = vec![d.contacts[0].clone(), d.contacts[0].clone()]);
        refused(|d| d.contacts[0].lanes = 0);
        refused(|d| d.contacts[0].lanes = 65);
        refused(|d| d.contacts[0].addresses[0].set_port(0));
        refused(|d| {
            d.contacts[0].lanes = 2;
            d.contacts[0].addresses[0].set_port(65535);
        });
        refused(|d| d.contacts[0].addresses.push("[::ffff:192.0.2.1]:1".parse().unwrap()));
        refused(|d| {
            let again = d.contacts[0].addresses[0];
            d.contacts[0].addresses.push(again);
        });
        refused(|d| d.contacts[0].names[0].0 = "Mix.example.org".to_owned());
        refused(|d| {
            d.contacts[0].names.clear();
            d.contacts[0].addresses.clear();
        });
        refused(|d| {
            d.role = HopRole::Exit;
            d.contacts[0].lanes = 2;
        });
    }

    #[test]
    fn paced_class_with_two_lanes_is_refused() {
        for size in [Class::S, Class::M, Class::L] {
            let mut descriptor = descriptor(1, HopRole::Mix);
            let paced = PacedClass::new(size);
            descriptor.contacts.push(Contact { class: paced.into(), ..descriptor.contacts[0].clone() });
            let signed = descriptor.clone().sign(&identity(1)).unwrap();
            assert_eq!(SignedDescriptor::read(signed.bytes()).unwrap().contact(paced), Some(&descriptor.contacts[1]));
            descriptor.contacts[1].lanes = 2;
            let refused = descriptor.sign(&identity(1)).unwrap_err();
            assert_eq!(refused, Malformed::Field("expected 1 lane in a paced class"));
        }
    }

    #[test]
    fn validity_includes_its_first_second_and_not_its_end() {
        let descriptor = descriptor(1, HopRole::Mix);
        assert_eq!(descriptor.validity(999), Validity::NotYet(1));
        assert_eq!(descriptor.validity(1000), Validity::Valid(1000));
        assert_eq!(descriptor.validity(1999), Validity::Valid(1));
        assert_eq!(descriptor.validity(2000), Validity::Expired(0));
    }
}
