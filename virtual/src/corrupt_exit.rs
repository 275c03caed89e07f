//! What a corrupt exit sees of meetings: the bodies of its cells, with the keys that it has.
//!
//! The exit has no hook for this. Its commands are read on their way from control to its worker, and its cells on the
//! last link. Which entry a channel belongs to is read at the mixes, where no single node could know it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use dataplane::Nanos;
use dataplane::command::LinkCommand;
use dataplane::paced::{ChannelAt, Command};
use wire::cell::{CellKind, Direction, HEADER_LEN};
use wire::gcm::encipher_batch;
use wire::ids::{ChannelKeys, LinkId};
use wire::paced::{HopKeys, PacedClass, PacedHeader, Timetable};

use super::headers::HeaderKeys;
use super::{number_of, wall};

/// Batches before the one that is set up of whose channels cells may still come.
const BATCHES: u64 = 2;

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
    /// The entry of each link of Mix 1.
    entries: HashMap<LinkId, usize>,
    /// By mix, batch and number on its next link: where the channel comes from.
    ways: HashMap<(usize, u64, u32), ChannelAt>,
    channels: HashMap<(u64, u32), Channel>,
    /// By batch and token: the channel that came first, until the second one has.
    tokens: HashMap<(u64, [u8; 32]), Option<u32>>,
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
            entries: HashMap::new(),
            ways: HashMap::new(),
            channels: HashMap::new(),
            tokens: HashMap::new(),
            watch: None,
        }
    }

    /// What control passes to the worker of a hop.
    pub(super) fn command(&mut self, hop: usize, command: &Command) {
        match command {
            Command::Link(LinkCommand::Install { link, peer, .. }) if hop == 1 => {
                self.entries.extend(number_of(*peer).map(|entry| (*link, entry)));
            }
            Command::InstallChannel { batch, up, down: Some(down), .. } => {
                self.ways.insert((hop, *batch, *down), *up);
            }
            Command::InstallChannel { batch, up, keys, token, .. } => {
                self.forget_before(batch.saturating_sub(BATCHES));
                let ChannelKeys::Hop { forward, backward } = &**keys else { return };
                let layers = HopKeys::new(forward, backward);
                self.channels.insert((*batch, up.number), Channel { layers, peer: None });
                let Some(token) = token else { return };
                match self.tokens.entry((*batch, *token.expose())) {
                    Entry::Vacant(token) => _ = token.insert(Some(up.number)),
                    Entry::Occupied(mut token) => {
                        if let Some(first) = token.get_mut().take() {
                            self.join(*batch, [first, up.number]);
                        }
                    }
                }
            }
            _ => {}
        }
    }

    /// Forgets the channels of batches before this one.
    fn forget_before(&mut self, batch: u64) {
        self.ways.retain(|(_, of, _), _| *of >= batch);
        self.channels.retain(|(of, _), _| *of >= batch);
        self.tokens.retain(|(of, _), _| *of >= batch);
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

    /// A datagram on the last link, whose upper end is the last mix.
    pub(super) fn sees(&mut self, direction: Direction, at: Nanos, bytes: &[u8], keys: &HeaderKeys) {
        if self.watch.is_none() || bytes.len() != self.class.cell_len() {
            return;
        }
        let header = keys.open((self.hops - 1, direction), bytes, self.times.round_at(wall(at)));
        let Some((_, header @ PacedHeader { channel, seq: round, sub, kind: CellKind::Data, .. })) = header else {
            return;
        };
        let body = &bytes[HEADER_LEN..];
        let batch = self.times.batch_of(round);
        let Some(Channel { layers, peer: Some(peer) }) = self.channels.get(&(batch, channel)) else { return };
        let Some((entry, partner)) = self.entry(batch, channel).zip(self.entry(batch, *peer)) else { return };
        let between = (direction == Direction::Forward).then(|| {
            let mut between = body.to_vec();
            encipher_batch(&mut [layers.job(direction, header.round_sub(), &mut between)]);
            between
        });
        let between = between.as_deref();
        if let Some(watch) = &mut self.watch {
            watch(ExitBody { entry, partner, direction, round, sub, at, body, between });
        }
    }
}
