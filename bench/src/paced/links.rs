//! The other ends of the mix's links: what they send is as valid as what a hop or an entry sends.
//!
//! Keys are derived from numbers, and no handshake or setup is made: the commands that install links and channels are
//! those that control gives a worker.

use std::net::SocketAddr;

use dataplane::paced::{ChannelAt, Command, link_commands};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use wire::cell::{Block, CellKind, Direction, HEADER_LEN};
use wire::gcm::{PolyvalKey, encipher_batch};
use wire::ids::{ChannelKeys, LinkId, Side};
use wire::kdf::Secret;
use wire::link::{ControlKey, HeaderKey, LinkContent, LinkSecrets};
use wire::paced::{HopKeys, PacedClass, PacedHeader, RoundSub, SlotCount};

/// Bodies that cells are made of. A mix enciphers whatever it gets.
const BODIES: usize = 1024;

/// The other end of one link.
pub(super) struct Link {
    id: LinkId,
    side: Side,
    secrets: LinkSecrets,
    header_out: HeaderKey,
    header_in: HeaderKey,
    tag_out: PolyvalKey,
    tag_in: PolyvalKey,
    control_out: ControlKey,
    /// Number of the next control cell.
    next_seq: u64,
}

impl Link {
    /// `side` is where the mix sees it.
    pub(super) fn new(number: u32, side: Side) -> Link {
        let mut seed = [side as u8; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        let secrets = LinkSecrets::derive(&seed, &[1; 32], &[2; 32], &[3; 32]);
        let (i2r, r2i) = (HeaderKey::new(&secrets.header_i2r), HeaderKey::new(&secrets.header_r2i));
        let (tag_i2r, tag_r2i) = (PolyvalKey::prepare(&secrets.tag_i2r), PolyvalKey::prepare(&secrets.tag_r2i));
        let (header_out, header_in, tag_out, tag_in, control_out) = match side {
            Side::Up => (i2r, r2i, tag_i2r, tag_r2i, ControlKey::new(&secrets.control_i2r)),
            Side::Down => (r2i, i2r, tag_r2i, tag_i2r, ControlKey::new(&secrets.control_r2i)),
        };
        let id = LinkId(2 * number + side as u32);
        Link { id, side, secrets, header_out, header_in, tag_out, tag_in, control_out, next_seq: 0 }
    }

    /// What installs it at the mix; `peer` is the address of this end.
    pub(super) fn commands(&self, peer: SocketAddr) -> [Command; 3] {
        link_commands(self.id, self.side, peer, self.secrets.clone())
    }

    /// Appends a data cell of each of these channels for a round, and its control cells.
    pub(super) fn seal(
        &mut self,
        channels: impl Iterator<Item = u32>,
        (round, slots): (u64, SlotCount),
        bodies: &Bodies,
        out: &mut Vec<u8>,
    ) {
        let class = bodies.class;
        let first = out.len();
        for channel in channels {
            let body = bodies.of(channel, round);
            let tag = self.tag_out.link_tag(body);
            let header = PacedHeader { channel, seq: round, sub: 0, kind: CellKind::Data, class, tag };
            out.extend_from_slice(&header.to_block());
            out.extend_from_slice(body);
        }
        for _ in 0..slots.total() {
            let header =
                PacedHeader { channel: 0, seq: self.next_seq, sub: 0, kind: CellKind::Link, class, tag: [0; 4] };
            self.next_seq += 1;
            let at = out.len();
            out.extend_from_slice(&header.to_block());
            out.resize(at + class.cell_len(), 0);
            out[at + HEADER_LEN] = LinkContent::Dummy as u8;
            self.control_out.seal_under(&header.to_block(), &mut out[at + HEADER_LEN..]);
        }
        let cells = || (first..).step_by(class.cell_len());
        let block = |at: usize| out[at..at + HEADER_LEN].try_into().expect("16 bytes");
        let mut blocks: Vec<Block> = cells().take_while(|at| *at < out.len()).map(block).collect();
        self.header_out.encipher(&mut blocks);
        for (block, at) in blocks.iter().zip(cells()) {
            out[at..at + HEADER_LEN].copy_from_slice(block);
        }
    }

    /// The headers of cells of the class that came; `running` is a round near theirs.
    pub(super) fn read(
        &self,
        class: PacedClass,
        cells: &[u8],
        running: u64,
        blocks: &mut Vec<Block>,
    ) -> impl Iterator<Item = Option<PacedHeader>> {
        blocks.clear();
        blocks.extend(cells.chunks_exact(class.cell_len()).filter_map(|cell| cell.first_chunk().copied()));
        self.header_in.decipher(blocks);
        blocks.iter().map(move |block| PacedHeader::from_block(block, class, Some(running)))
    }

    /// True if the link tag of a data cell that came is right.
    pub(super) fn is_genuine(&self, header: &PacedHeader, body: &[u8]) -> bool {
        header.is_tag_of(&self.tag_in, body)
    }
}

/// Random bodies, one after the other, of which each channel has another one in each round.
pub(super) struct Bodies {
    class: PacedClass,
    bytes: Vec<u8>,
}

impl Bodies {
    pub(super) fn new(class: PacedClass, rng: &mut ChaCha8Rng) -> Bodies {
        let mut bytes = vec![0; BODIES * class.body_len()];
        rng.fill_bytes(&mut bytes);
        Bodies { class, bytes }
    }

    fn of(&self, channel: u32, round: u64) -> &[u8] {
        let at = (u64::from(channel) * 7 + round * 13) as usize % BODIES;
        &self.bytes[at * self.class.body_len()..][..self.class.body_len()]
    }

    /// True if a body that came is the one that was sent, under the layer of the mix. Otherwise it is noise.
    pub(super) fn is_layered(&self, direction: Direction, header: &PacedHeader, number: u32, body: &[u8]) -> bool {
        let mut wanted = self.of(number, header.seq).to_vec();
        let keys = channel_keys(number);
        encipher_batch(&mut [keys.job(direction, RoundSub { round: header.seq, sub: header.sub }, &mut wanted)]);
        wanted == body
    }
}

fn channel_secrets(number: u32) -> (Secret, Secret) {
    let secret = |side: u8| {
        let mut bytes = [side; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        Secret::new(bytes)
    };
    (secret(1), secret(2))
}

fn channel_keys(number: u32) -> HopKeys {
    let (forward, backward) = channel_secrets(number);
    HopKeys::new(&forward, &backward)
}

/// What adds a channel to a batch. It has one number on both links; `entry` is the link of its entry at Mix 1.
pub(super) fn install(batch: u64, number: u32, entry: Option<&Link>) -> Command {
    let (forward, backward) = channel_secrets(number);
    let up = ChannelAt { link: entry.map(|link| link.id), number };
    let keys = Box::new(ChannelKeys::Hop { forward, backward });
    Command::InstallChannel { batch, up, down: Some(number), keys, token: None }
}
