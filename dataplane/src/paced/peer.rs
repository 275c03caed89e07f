//! For tests: the other ends of a hop's links.

use std::net::SocketAddr;

use wire::cell::{Block, CellKind, Class, HEADER_LEN};
use wire::gcm::PolyvalKey;
use wire::ids::{LinkId, Side};
use wire::link::{ControlKey, HeaderKey, LinkSecrets};
use wire::paced::{PacedClass, PacedHeader, PacedTerms};

use super::{Command, link_commands};
use crate::socket::memory::Datagram;

/// Hops of the chain.
pub(super) const HOPS: usize = 3;
pub(super) const CLASS: PacedClass = PacedClass::new(Class::S);
pub(super) const BODY: usize = CLASS.body_len();

pub(super) fn terms() -> PacedTerms {
    PacedTerms { cells: 2, rounds: 512, n_min: 1, seats: 16, loops: 0, ..PacedTerms::new(CLASS, "voice", HOPS) }
}

/// The other end of a link.
pub(super) struct Peer {
    pub(super) at: SocketAddr,
    hop: SocketAddr,
    pub(super) link: LinkId,
    secrets: LinkSecrets,
    /// The peer is nearer to the entry, so it is the initiator.
    is_up: bool,
}

/// A cell that a peer has received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) header: PacedHeader,
    pub(super) body: Vec<u8>,
}

impl Peer {
    pub(super) fn new(number: u8, hop: SocketAddr, is_up: bool) -> Peer {
        let secrets = LinkSecrets::derive(&[number; 32], &[1; 32], &[2; 32], &[3; 32]);
        let at = ([192, 0, 2, 100 + number], 9).into();
        Peer { at, hop, link: LinkId(number.into()), secrets, is_up }
    }

    /// A data cell from it.
    pub(super) fn data(&self, channel: u32, round: u64, sub: u8, body: &[u8]) -> Datagram {
        let (header_key, tag_key) = match self.is_up {
            true => (&self.secrets.header_i2r, &self.secrets.tag_i2r),
            false => (&self.secrets.header_r2i, &self.secrets.tag_r2i),
        };
        let tag = PolyvalKey::prepare(tag_key).link_tag(body);
        let header = PacedHeader { channel, seq: round, sub, kind: CellKind::Data, class: CLASS, tag };
        let mut block = [header.to_block()];
        HeaderKey::new(header_key).encipher(&mut block);
        let bytes = block[0].iter().chain(body).copied().collect();
        Datagram { from: self.at, to: self.hop, bytes }
    }

    /// A link cell from it.
    pub(super) fn control(&self, seq: u64) -> Datagram {
        let (header_key, control) = match self.is_up {
            true => (&self.secrets.header_i2r, &self.secrets.control_i2r),
            false => (&self.secrets.header_r2i, &self.secrets.control_r2i),
        };
        let header = PacedHeader { channel: 0, seq, sub: 0, kind: CellKind::Link, class: CLASS, tag: [0; 4] };
        let (mut block, mut body) = ([header.to_block()], [0; BODY]);
        ControlKey::new(control).seal_under(&block[0], &mut body);
        HeaderKey::new(header_key).encipher(&mut block);
        let bytes = block[0].iter().chain(&body).copied().collect();
        Datagram { from: self.at, to: self.hop, bytes }
    }

    /// Reads a cell; the tags of data cells and the bodies of control cells must be genuine.
    pub(super) fn read(&self, bytes: &[u8], running: u64) -> Cell {
        assert_eq!(bytes.len(), CLASS.cell_len());
        let (header_key, tag_key, control) = match self.is_up {
            true => (&self.secrets.header_r2i, &self.secrets.tag_r2i, &self.secrets.control_r2i),
            false => (&self.secrets.header_i2r, &self.secrets.tag_i2r, &self.secrets.control_i2r),
        };
        let mut block: [Block; 1] = [*bytes.first_chunk().unwrap()];
        HeaderKey::new(header_key).decipher(&mut block);
        let header = PacedHeader::from_block(&block[0], CLASS, Some(running)).expect("a header of this link");
        let mut body = bytes[HEADER_LEN..].to_vec();
        match header.kind {
            CellKind::Data => assert!(header.is_tag_of(&PolyvalKey::prepare(tag_key), &body)),
            _ => {
                body = ControlKey::new(control).open_under(&header.to_block(), &mut body).expect("authentic").to_vec();
            }
        }
        Cell { header, body }
    }

    /// What installs its link at the hop.
    pub(super) fn link_commands(&self) -> [Command; 3] {
        let side = if self.is_up { Side::Up } else { Side::Down };
        link_commands(self.link, side, self.at, self.secrets.clone())
    }
}

/// The data cells among some.
pub(super) fn data(cells: &[Cell]) -> impl Iterator<Item = &Cell> {
    cells.iter().filter(|cell| cell.header.kind == CellKind::Data)
}
