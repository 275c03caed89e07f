//! The other end of a link, for tests of workers.

use std::net::SocketAddr;

use wire::cell::{Block, CellKind, Class, HEADER_LEN};
use wire::gcm::PolyvalKey;
use wire::ids::{LinkId, Rank, Side, SlotId};
use wire::link::{ControlKey, HeaderKey, LinkSecrets};
use wire::paced::{PacedClass, PacedHeader};

use super::{Command, SlotKeys};
use crate::command::LinkCommand;
use crate::socket::memory::Datagram;

pub(super) const CLASS: PacedClass = PacedClass::new(Class::S);

pub(super) struct Peer {
    pub(super) at: SocketAddr,
    /// The worker's address.
    worker: SocketAddr,
    pub(super) link: LinkId,
    secrets: LinkSecrets,
    /// The worker's side on which the peer is. One that is nearer to the entry is the initiator.
    side: Side,
}

/// A cell that a peer has received: its body, or the content of a control cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) header: PacedHeader,
    pub(super) body: Vec<u8>,
}

impl Peer {
    pub(super) fn new(number: u8, worker: SocketAddr, side: Side) -> Peer {
        let secrets = LinkSecrets::derive(&[number; 32], &[1; 32], &[2; 32], &[3; 32]);
        let at = ([192, 0, 2, 100 + number], 9).into();
        Peer { at, worker, link: LinkId(number.into()), secrets, side }
    }

    /// What control says to the worker of its link.
    pub(super) fn install(&self) -> [Command; 3] {
        let Peer { at: peer, link, side, .. } = *self;
        let (slot, secrets) = (SlotId(link.0), self.secrets.clone());
        let (tag_in, tag_out, control_out) = match side {
            Side::Up => (secrets.tag_i2r, secrets.tag_r2i, secrets.control_r2i),
            Side::Down => (secrets.tag_r2i, secrets.tag_i2r, secrets.control_i2r),
        };
        let (header_i2r, header_r2i) = (secrets.header_i2r, secrets.header_r2i);
        [
            Command::Link(LinkCommand::Install { link, side, peer }),
            Command::Link(LinkCommand::InstallSlot { link, slot, peer, header_i2r, header_r2i, rank: Rank::Current }),
            Command::SlotKeys { link, slot, keys: SlotKeys { tag_in, tag_out, control_out } },
        ]
    }

    pub(super) fn data(&self, channel: u32, round: u64, sub: u8, body: &[u8]) -> Datagram {
        let (header_key, tag_key) = match self.side {
            Side::Up => (&self.secrets.header_i2r, &self.secrets.tag_i2r),
            Side::Down => (&self.secrets.header_r2i, &self.secrets.tag_r2i),
        };
        let tag = PolyvalKey::prepare(tag_key).link_tag(body);
        let header = PacedHeader { channel, seq: round, sub, kind: CellKind::Data, class: CLASS, tag };
        let mut block = [header.to_block()];
        HeaderKey::new(header_key).encipher(&mut block);
        let bytes = block[0].iter().chain(body).copied().collect();
        Datagram { from: self.at, to: self.worker, bytes }
    }

    /// Reads a cell; the tags of data cells and the bodies of control cells must be genuine.
    pub(super) fn read(&self, bytes: &[u8], running: u64) -> Cell {
        assert_eq!(bytes.len(), CLASS.cell_len());
        let (header_key, tag_key, control) = match self.side {
            Side::Up => (&self.secrets.header_r2i, &self.secrets.tag_r2i, &self.secrets.control_r2i),
            Side::Down => (&self.secrets.header_i2r, &self.secrets.tag_i2r, &self.secrets.control_i2r),
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
}
