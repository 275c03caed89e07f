//! What a corrupt exit sees of meetings: the bodies of its cells, with the keys that it has.
//!
//! The exit has no hook for this. Its commands are read on their way from control to its worker, and its cells on the
//! last link. Which entry a channel belongs to is read at the mixes, where no single node could know it.

use std::collections::HashMap;

use dataplane::Nanos;
use dataplane::command::LinkCommand;
use dataplane::paced::{ChannelAt, Command};
use wire::cell::{CellKind, Direction, HEADER_LEN};
use wire::gcm::encipher_batch;
use wire::ids::{ChannelKeys, LinkId, SlotId};
use wire::kdf::Secret;
use wire::link::HeaderKey;
use wire::paced::{HopKeys, PacedClass, PacedHeader, Timetable};

use super::{number_of, wall};

/// The body of a data cell of a joined channel.
pub struct ExitBody<'a> {
    /// The entry whose channel it is, and the one that it meets; from 101.
    pub entry: usize,
    pub partner: usize,
    pub direction: Direction,
    pub round: u64,
    /// The cell's number in its round.
    pub sub: u8,
    /// By the virtual clock: forward when it came, backward when it left.
    pub at: Nanos,
    /// As it is on the last link.
    pub body: &'a [u8],
    /// Forward: between the layers of the two channels.
    pub between: Option<&'a [u8]>,
}

/// Who wants to see the bodies.
pub(super) type Watch = Box<dyn FnMut(ExitBody<'_>)>;

pub(super) struct CorruptExit {
    class: PacedClass,
    hops: usize,
    times: Timetable,
    /// Header keys of the last link, forward and backward.
    headers: Vec<(LinkId, SlotId, HeaderKey, HeaderKey)>,
    /// The entry of each link of Mix 1.
    pub(super) entries: HashMap<LinkId, usize>,
    /// By mix, batch and number on its next link: where the channel comes from.
    ways: HashMap<(usize, u64, u32), ChannelAt>,
    channels: HashMap<(u64, u32), Channel>,
    /// By batch and token: the channel that came first.
    tokens: HashMap<(u64, [u8; 32]), u32>,
    pub(super) watch: Option<Watch>,
}

struct Channel {
    layers: HopKeys,
    peer: Option<u32>,
}

impl CorruptExit {
    pub(super) fn new(class: PacedClass, hops: usize, times: Timetable) -> CorruptExit {
        CorruptExit {
            class,
            hops,
            times,
            headers: Vec::new(),
            entries: HashMap::new(),
            ways: HashMap::new(),
            channels: HashMap::new(),
            tokens: HashMap::new(),
            watch: None,
        }
    }

    /// What control tells the worker of a hop.
    pub(super) fn command(&mut self, hop: usize, command: &Command) {
        match command {
            Command::Link(LinkCommand::Install { link, peer, .. }) if hop == 1 => {
                self.entries.extend(number_of(*peer).map(|entry| (*link, entry)));
            }
            Command::Link(LinkCommand::InstallSlot { link, slot, header_i2r, header_r2i, .. }) if hop == self.hops => {
                self.headers.push((*link, *slot, HeaderKey::new(header_i2r), HeaderKey::new(header_r2i)));
            }
            Command::Link(LinkCommand::RetireSlot { link, slot }) if hop == self.hops => {
                self.headers.retain(|(of, known, ..)| (of, known) != (link, slot));
            }
            Command::InstallChannel { batch, up, down: Some(down), .. } => {
                self.ways.insert((hop, *batch, *down), *up);
            }
            Command::InstallChannel { batch, up, keys, token, .. } => {
                let ChannelKeys::Hop { forward, backward } = &**keys else { return };
                let copy = |secret: &Secret| Secret::new(*secret.expose());
                let layers = HopKeys::new(copy(forward), copy(backward));
                self.channels.insert((*batch, up.number), Channel { layers, peer: None });
                let Some(token) = token else { return };
                match self.tokens.remove(&(*batch, *token.expose())) {
                    None => {
                        self.tokens.insert((*batch, *token.expose()), up.number);
                    }
                    Some(first) => self.join(*batch, [first, up.number]),
                }
            }
            _ => {}
        }
    }

    fn join(&mut self, batch: u64, numbers: [u32; 2]) {
        for (one, other) in [(numbers[0], numbers[1]), (numbers[1], numbers[0])] {
            if let Some(channel) = self.channels.get_mut(&(batch, one)) {
                channel.peer = Some(other);
            }
        }
    }

    /// The entry of a channel on the last link.
    pub(super) fn entry(&self, batch: u64, number: u32) -> Option<usize> {
        let mut at = ChannelAt { link: None, number };
        for mix in (1..self.hops).rev() {
            at = *self.ways.get(&(mix, batch, at.number))?;
        }
        self.entries.get(&at.link?).copied()
    }

    /// A datagram on the last link.
    pub(super) fn sees(&mut self, direction: Direction, at: Nanos, bytes: &[u8]) {
        if self.watch.is_none() || bytes.len() != self.class.cell_len() {
            return;
        }
        let (head, body) = bytes.split_at(HEADER_LEN);
        let running = self.times.round_at(wall(at));
        let header = self.headers.iter().rev().find_map(|(_, _, forward, backward)| {
            let mut block = [head.try_into().ok()?];
            (if direction == Direction::Forward { forward } else { backward }).decipher(&mut block);
            PacedHeader::from_block(&block[0], self.class, Some(running))
        });
        let Some(PacedHeader { channel, seq: round, sub, kind: CellKind::Data, .. }) = header else { return };
        let batch = self.times.batch_of(round);
        let Some(Channel { layers, peer: Some(peer) }) = self.channels.get(&(batch, channel)) else { return };
        let Some((entry, partner)) = self.entry(batch, channel).zip(self.entry(batch, *peer)) else { return };
        let mut between = Vec::new();
        if let (Direction::Forward, Some(header)) = (direction, &header) {
            between.extend_from_slice(body);
            encipher_batch(&mut [layers.job(direction, header.place(), &mut between)]);
        }
        let between = (!between.is_empty()).then_some(&between[..]);
        if let Some(watch) = &mut self.watch {
            watch(ExitBody { entry, partner, direction, round, sub, at, body, between });
        }
    }
}
