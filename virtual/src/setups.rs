//! When setups and acks pass Mix 1 and the exit, for an attacker that has both (`attack::setup_order`).
//!
//! Mix 1 and the exit have no hook for this. Their cells are read on the access links and on the last link: forward as
//! they come, backward as they leave. Which channel of the exit is which user's is read at the mixes, where no single
//! node could know it.

use std::collections::{BTreeMap, HashSet};

use attack::Truth;
use attack::setup_order::{Batch, Passed, SetupOrder};
use dataplane::Nanos;
use dataplane::paced::Command;
use dataplane::socket::memory::Datagram;
use wire::cell::{CellKind, Direction};
use wire::paced::{AHEAD_MAX, PacedTerms, Timetable};
use wire::setup::Suite;

use super::corrupt_exit::CorruptExit;
use super::headers::HeaderKeys;
use super::{FIRST_ENTRY, link_of, wall};

pub(super) struct Setups {
    terms: PacedTerms,
    hops: usize,
    times: Timetable,
    /// Different cells with which a setup can be opened at Mix 1.
    needed: usize,
    /// By the batch that they are for.
    batches: BTreeMap<u64, OfBatch>,
    /// The first batch whose setups are kept; none until somebody watches.
    first: Option<u64>,
    /// Counts what is seen: an order without ties.
    position: u64,
}

#[derive(Default)]
struct OfBatch {
    /// By entry, with the numbers of the cells that came.
    users: BTreeMap<usize, (Passed, HashSet<u8>)>,
    /// By number on the last link.
    channels: BTreeMap<u32, Passed>,
    /// The channels of entries.
    channel_of: BTreeMap<usize, u32>,
}

impl Setups {
    pub(super) fn new(terms: &PacedTerms, hops: usize, times: Timetable) -> Setups {
        Setups {
            terms: terms.clone(),
            hops,
            times,
            needed: terms.setup_shards(Suite::Hybrid, hops, 1).data,
            batches: BTreeMap::new(),
            first: None,
            position: 0,
        }
    }

    /// Setups that travel now are for the batch behind the running one, or began before anybody watched.
    pub(super) fn watch(&mut self, now: Nanos) {
        self.first = Some(self.next_batch(now) + 1);
    }

    /// The batch for which setups travel: cells of a phase may come up to [`AHEAD_MAX`] rounds before it.
    fn next_batch(&self, now: Nanos) -> u64 {
        self.times.batch_of(self.times.round_at(wall(now)) + AHEAD_MAX) + 1
    }

    /// What control passes to the worker of a hop. `known` has seen it.
    pub(super) fn command(&mut self, command: &Command, known: &CorruptExit) {
        if let Command::InstallChannel { batch, up, down: None, .. } = command
            && self.keeps(*batch)
        {
            let complete = Some(self.next_position());
            let of_batch = self.batches.entry(*batch).or_default();
            of_batch.channels.entry(up.number).or_default().complete = complete;
            let entry = known.entry(*batch, up.number);
            of_batch.channel_of.extend(entry.map(|entry| (entry, up.number)));
        }
    }

    fn keeps(&self, batch: u64) -> bool {
        self.first.is_some_and(|first| batch >= first)
    }

    fn next_position(&mut self) -> u64 {
        self.position += 1;
        self.position
    }

    /// A datagram of a link: forward as it comes, backward as it leaves.
    pub(super) fn sees(&mut self, direction: Direction, now: Nanos, datagram: &Datagram, keys: &HeaderKeys) {
        let Datagram { from, to, bytes } = datagram;
        let (batch, running) = (self.next_batch(now), self.times.round_at(wall(now)));
        if bytes.len() != self.terms.class.cell_len() || !self.keeps(batch) {
            return;
        }
        let Some((up, _)) = link_of(*from, *to).filter(|(_, way)| *way == direction) else { return };
        let is_access = up >= FIRST_ENTRY;
        if !is_access && up + 1 != self.hops {
            return;
        }
        let Some((_, header)) = keys.open((up, direction), bytes, running) else { return };
        let is_setup = header.kind == CellKind::Setup && direction == Direction::Forward;
        if !is_setup && (header.kind != CellKind::Ack || direction == Direction::Forward) {
            return;
        }
        let position = self.next_position();
        let of_batch = self.batches.entry(batch).or_default();
        let passed = if is_access {
            let (passed, cells) = of_batch.users.entry(up).or_default();
            if is_setup && cells.insert(header.sub) && cells.len() == self.needed {
                passed.complete = Some(position);
            }
            passed
        } else {
            of_batch.channels.entry(header.channel).or_default()
        };
        (if is_setup { &mut passed.begun } else { &mut passed.ack }).get_or_insert(position);
    }

    /// The setups for batches until this one, and the channel of each user.
    pub(super) fn order(&self, until: u64) -> (SetupOrder, Vec<Truth>) {
        let batch = |of_batch: &OfBatch| {
            // A setup that was not opened has no channel.
            let is_open = |(_, passed): &(&u32, &Passed)| passed.complete.is_some();
            let (numbers, channels): (Vec<u32>, Vec<Passed>) = of_batch.channels.iter().filter(is_open).unzip();
            let index = |number| numbers.binary_search(number).expect("a channel of the exit");
            let users = of_batch
                .channel_of
                .keys()
                .map(|entry| of_batch.users.get(entry).map(|user| user.0).unwrap_or_default());
            let truth = Truth(of_batch.channel_of.values().map(index).collect());
            (Batch { users: users.collect(), channels }, truth)
        };
        let (batches, truths) = self.batches.range(..=until).map(|(_, of_batch)| batch(of_batch)).unzip();
        (SetupOrder { batches }, truths)
    }
}
