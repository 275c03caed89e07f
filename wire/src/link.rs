//! Link cryptography: header blocks in batches, and the bodies of control cells (SPEC 3.2, 3.6, 4.3).
//!
//! A handshake yields [`LinkSecrets`]: the data plane takes the two header keys, control keeps the two
//! [`ControlKey`]s. The side nearer to the entry is the initiator.

use aes::Aes128;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use zeroize::Zeroizing;

use crate::cell::{Block, Header, TAG_LEN, control_nonce};
use crate::gcm::{AeadKey, Job, Prepared, open_batch, prepare, seal_batch};
use crate::kdf::{Secret, expand, extract};

/// Enciphers and deciphers the header blocks of one link and direction; wiped on drop.
pub struct HeaderKey(Aes128);

impl HeaderKey {
    pub fn new(key: &[u8; 16]) -> HeaderKey {
        HeaderKey(Aes128::new(key.into()))
    }

    /// Enciphers each block in place. In a batch a block costs about a tenth of a single one.
    pub fn encipher(&self, blocks: &mut [Block]) {
        self.0.encrypt_blocks(aes::cipher::Array::cast_slice_from_core_mut(blocks));
    }

    /// Deciphers each block in place.
    pub fn decipher(&self, blocks: &mut [Block]) {
        self.0.decrypt_blocks(aes::cipher::Array::cast_slice_from_core_mut(blocks));
    }
}

/// Seals or opens the bodies of setup, ack and link cells in one direction of a link.
pub struct ControlKey(AeadKey);

impl ControlKey {
    /// Key (16 bytes) and iv (12 bytes), as one label expands.
    pub fn new(bytes: &[u8; 28]) -> ControlKey {
        ControlKey(prepare(bytes))
    }

    /// Seals a body in place; its last [`TAG_LEN`] bytes become the tag.
    pub fn seal(&self, header: &Header, body: &mut [u8]) {
        self.seal_under(&header.to_block(), body);
    }

    /// [`Self::seal`] under a header in the clear, of any class.
    pub fn seal_under(&self, header: &Block, body: &mut [u8]) {
        seal_batch(&mut [Job::new(&self.0, control_nonce(header, self.0.iv()), body)]);
    }

    /// Opens a body in place and returns its content. None if it is not authentic.
    pub fn open<'a>(&self, header: &Header, body: &'a mut [u8]) -> Option<&'a mut [u8]> {
        self.open_under(&header.to_block(), body)
    }

    /// [`Self::open`] under a header in the clear, of any class.
    pub fn open_under<'a>(&self, header: &Block, body: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let content = body.len().checked_sub(TAG_LEN)?;
        let mut jobs = [Job::new(&self.0, control_nonce(header, self.0.iv()), &mut *body)];
        open_batch(&mut jobs);
        let ok = jobs[0].ok;
        ok.then(|| &mut body[..content])
    }
}

/// All keys of one handshake (SPEC 4.3). `i2r` is from the initiator to the responder: forward cells.
#[derive(Clone)]
pub struct LinkSecrets {
    pub header_i2r: Zeroizing<[u8; 16]>,
    pub header_r2i: Zeroizing<[u8; 16]>,
    /// Key and iv of control cells.
    pub control_i2r: Zeroizing<[u8; 28]>,
    /// Key and iv of control cells.
    pub control_r2i: Zeroizing<[u8; 28]>,
    /// Key of the link tags of forward cells, in paced classes (SPEC 9.2.2).
    pub tag_i2r: Zeroizing<[u8; 16]>,
    /// Key of the link tags of backward cells.
    pub tag_r2i: Zeroizing<[u8; 16]>,
    /// The resumption token by which the next handshake refers to this one.
    pub resume: Zeroizing<[u8; 32]>,
}

impl LinkSecrets {
    /// Expands the link PRK = Extract(handshake hash, k1 | k2 | ss_mlkem).
    pub fn derive(handshake_hash: &[u8], k1: &[u8; 32], k2: &[u8; 32], ss_mlkem: &[u8]) -> LinkSecrets {
        let prk: Secret = extract(handshake_hash, &[k1, k2, ss_mlkem]);
        LinkSecrets {
            header_i2r: expand(&prk, "eddy1 hdr i2r"),
            header_r2i: expand(&prk, "eddy1 hdr r2i"),
            control_i2r: expand(&prk, "eddy1 ctl i2r"),
            control_r2i: expand(&prk, "eddy1 ctl r2i"),
            tag_i2r: expand(&prk, "eddy1 tag i2r"),
            tag_r2i: expand(&prk, "eddy1 tag r2i"),
            resume: expand(&prk, "eddy1 resume"),
        }
    }
}

/// The item of a part cell that says what time it is (SPEC 7.8).
pub const CLOCK_ITEM: u8 = 0x40;

/// What the content of a part cell begins with (SPEC 7.8): `kind 4 | item u8 | id 4 | index u8 | total u16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartHead {
    /// What the item is.
    pub item: u8,
    /// The first bytes of its hash.
    pub id: [u8; 4],
    /// The number of the piece that follows, from 0.
    pub index: u8,
    /// Bytes of the item.
    pub total: u16,
}

impl PartHead {
    /// Bytes in front of the piece.
    pub const LEN: usize = 9;

    pub fn to_bytes(self) -> [u8; PartHead::LEN] {
        let ([a, b, c, d], [high, low]) = (self.id, self.total.to_be_bytes());
        [LinkContent::Part as u8, self.item, a, b, c, d, self.index, high, low]
    }

    /// Reads the content of a link cell; none if it is not a part.
    pub fn read(content: &[u8]) -> Option<PartHead> {
        let &[kind, item, a, b, c, d, index, high, low] = content.first_chunk()?;
        let total = u16::from_be_bytes([high, low]);
        (kind == LinkContent::Part as u8).then_some(PartHead { item, id: [a, b, c, d], index, total })
    }
}

/// The first byte of a link cell's content (SPEC 3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LinkContent {
    Dummy = 0,
    Keepalive = 1,
    /// A clock reading, for paced classes.
    Clock = 2,
    /// What a node holds of descriptors, records and signatures (SPEC 7.8).
    Ask = 3,
    /// A piece of a descriptor, a record or signatures.
    Part = 4,
    /// The places of some rounds, in paced classes (SPEC 9.15.2).
    Report = 5,
    /// The company at Mix 1, in paced classes (SPEC 9.15.1).
    Company = 6,
    /// Asks the initiator whether it still receives at its old address (SPEC 4.8).
    Path = 7,
    /// The answer.
    Echo = 8,
}

impl LinkContent {
    pub const fn from_wire(byte: u8) -> Option<LinkContent> {
        match byte {
            0 => Some(LinkContent::Dummy),
            1 => Some(LinkContent::Keepalive),
            2 => Some(LinkContent::Clock),
            3 => Some(LinkContent::Ask),
            4 => Some(LinkContent::Part),
            5 => Some(LinkContent::Report),
            6 => Some(LinkContent::Company),
            7 => Some(LinkContent::Path),
            8 => Some(LinkContent::Echo),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{CellKind, Class};
    use hex_literal::hex;

    #[test]
    fn header_block_matches_aes_128_of_fips_197() {
        // FIPS-197 appendix C.1.
        let key = HeaderKey::new(&hex!("000102030405060708090a0b0c0d0e0f"));
        let plain = hex!("00112233445566778899aabbccddeeff");
        for batch in [1, 7, 8, 64, 100] {
            let mut blocks = vec![plain; batch];
            key.encipher(&mut blocks);
            assert!(blocks.iter().all(|b| *b == hex!("69c4e0d86a7b0430d8cdb78070b4c55a")));
            key.decipher(&mut blocks);
            assert!(blocks.iter().all(|b| *b == plain));
        }
    }

    #[test]
    fn control_body_opens_only_under_its_own_header() {
        let key = ControlKey::new(&[5; 28]);
        let header = Header { channel: 9, seq: 1, sub: 2, kind: CellKind::Setup, class: Class::S };
        let mut body = [3; 80];
        key.seal(&header, &mut body);
        let sealed = body;
        for other in [
            Header { channel: 8, ..header },
            Header { seq: 2, ..header },
            Header { sub: 3, ..header },
            Header { kind: CellKind::Link, ..header },
            Header { class: Class::M, ..header },
        ] {
            body = sealed;
            assert!(key.open(&other, &mut body).is_none());
        }
        body = sealed;
        assert_eq!(key.open(&header, &mut body).unwrap(), &[3; 64]);
        assert!(key.open(&header, &mut body[..15]).is_none(), "shorter than a tag");
    }
}
