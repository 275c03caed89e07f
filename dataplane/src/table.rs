//! Channels, as control installs them with its commands ([`crate::command`]).
//!
//! The worker owns the table: plain records in a slab, indices, no pointers. It is changed at the
//! start of a turn only, in the order control wrote, so a channel is there before the cell that
//! announces it. Windows and keys advance here and nowhere else.

use hashbrown::HashMap;
use wire::cell::Direction;
use wire::gcm::{AeadKey, Prepared, StreamKey};
use wire::ids::{ChannelIndex, EndReason, LinkId, Side};
use wire::kdf::Secret;
use wire::key::{GENERATION_SHIFT, Generations};
use wire::replay::{Refused, Window};

use crate::command::LinkCommand;
use crate::ledger::DropReason;
use crate::links::Links;
use crate::slab::Slab;
use crate::sys;

/// A hop's channel ends this many seconds after its last authentic forward cell (SPEC 5.8).
pub(crate) const IDLE_S: u64 = 30;

/// One direction of a channel at a hop. The first cache line holds all that a cell needs except the key.
#[repr(C, align(64))]
pub struct Half<K> {
    window: Window,
    /// Link and number under which its cells leave; none where they end.
    pub egress: Option<(LinkId, u32)>,
    /// Second of its last cell; of its opening, before there is one.
    seen_s: u32,
    keys: Generations<K>,
}

#[cfg(target_arch = "x86_64")]
const _: () = assert!(std::mem::offset_of!(Half<AeadKey>, keys) == 64 && size_of::<Half<AeadKey>>() == 12 * 64);

impl<K: Prepared> Half<K> {
    /// From sec\[0\], with a window of `width` numbers from `first`. `seen_s` is when it opened.
    pub fn new(sec0: &Secret, first: u64, width: usize, egress: Option<(LinkId, u32)>, seen_s: u64) -> Self {
        let (keys, window) = (Generations::new(sec0, first), Window::new(first, width));
        Half { keys, window, egress, seen_s: seen_s as u32 }
    }

    /// Key and iv of a number in range.
    pub fn key(&self, seq: u64) -> Option<(&K, &[u8; 12])> {
        self.keys.since(self.window.lowest(), seq)
    }

    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Second of its last cell; of its opening, before there is one.
    pub(crate) fn seen_s(&self) -> u64 {
        self.seen_s.into()
    }

    /// Prefetches the window word and the key that `seq` will use.
    pub fn prefetch(&self, seq: u64) {
        if let Some(word) = self.window.word(seq) {
            sys::prefetch(word);
        }
        if let Some((key, _)) = self.key(seq) {
            sys::prefetch(key);
        }
    }

    /// Tests and marks, and lets go of generations the window has passed.
    ///
    /// # Errors
    /// Why the number is refused.
    pub fn mark_seen(&mut self, seq: u64, now_s: u64) -> Result<(), Refused> {
        let before = self.window.lowest();
        self.window.mark_seen(seq)?;
        self.seen_s = now_s as u32;
        let lowest = self.window.lowest();
        // Who asks the keys touches a line behind them.
        if lowest >> GENERATION_SHIFT != before >> GENERATION_SHIFT {
            self.keys.advance(lowest);
        }
        Ok(())
    }
}

/// The state that a role keeps of a channel.
pub trait ChannelState {
    /// Offset in bytes of the part of the state that the check of a cell in `direction` reads.
    fn offset(_direction: Direction) -> usize {
        0
    }

    /// The window of cells that arrive in `direction`.
    fn window(&self, direction: Direction) -> &Window;
}

/// A channel with a forward layer to take off: at a mix and at the exit.
pub trait ForwardHalf: ChannelState {
    /// Its keys and window.
    fn forward(&self) -> &Half<AeadKey>;
    /// The same, to be marked.
    fn forward_mut(&mut self) -> &mut Half<AeadKey>;
}

/// A channel with a backward layer to put on: at a mix.
pub trait BackwardHalf: ChannelState {
    /// Its keys and window.
    fn backward(&self) -> &Half<StreamKey>;
    /// The same, to be marked.
    fn backward_mut(&mut self) -> &mut Half<StreamKey>;
}

/// A channel; what a cell needs of it comes first.
#[repr(C)]
pub struct Record<C> {
    pub state: C,
    /// Link and number towards the entry.
    pub up: Option<(LinkId, u32)>,
    /// Link and number towards the exit.
    pub down: Option<(LinkId, u32)>,
    /// Second at which its lifetime ends.
    pub ends_s: u64,
}

type ByNumber = HashMap<(LinkId, u32), ChannelIndex, foldhash::fast::RandomState>;

/// Links and channels of a worker.
pub struct Table<C> {
    pub links: Links,
    records: Slab<Record<C>>,
    by_up: ByNumber,
    by_down: ByNumber,
    open: usize,
    /// Scratch of the stages: one verdict per cell.
    pub(crate) verdicts: Vec<Option<DropReason>>,
}

impl<C> Default for Table<C> {
    fn default() -> Self {
        Table::on(false)
    }
}

impl<C: ChannelState> Table<C> {
    /// Prefetches the part of a channel's record that the check of a cell in `direction` reads.
    pub fn prefetch(&self, channel: ChannelIndex, direction: Direction) {
        if let Some(at) = self.records.address(channel.index()) {
            // The state comes first in a record; the first cache line also shows whether there is one.
            sys::prefetch_lines(at, 1);
            let offset = C::offset(direction);
            if offset > 0 {
                sys::prefetch_lines(at.wrapping_add(offset), 1);
            }
        }
    }
}

impl<C: ForwardHalf> Table<C> {
    /// The second until which a hop's channel lives on, or why it ends now (SPEC 5.8).
    pub(crate) fn lifespan(&self, channel: ChannelIndex, now_s: u64) -> Option<Result<u64, EndReason>> {
        let record = self.record(channel)?;
        let idle_s = record.state.forward().seen_s() + IDLE_S;
        Some(if record.ends_s <= now_s {
            Err(EndReason::Lifetime)
        } else if idle_s <= now_s {
            Err(EndReason::Idle)
        } else {
            Ok(record.ends_s.min(idle_s))
        })
    }
}

impl<C> Table<C> {
    /// An empty table, whose channels lie on huge pages if `hugepages` is set and the system has them.
    pub fn on(hugepages: bool) -> Self {
        Table {
            links: Links::default(),
            records: Slab::new(hugepages),
            by_up: HashMap::default(),
            by_down: HashMap::default(),
            open: 0,
            verdicts: Vec::new(),
        }
    }

    /// Adds a channel; one of the same index is replaced.
    pub fn install(&mut self, channel: ChannelIndex, record: Record<C>) {
        self.install_half(channel, record, [true, true]);
    }

    /// Adds a channel whose cells come here from the sides towards the entry and the exit, or from one of them: the
    /// other's come to another worker, and must be unknown here, or its window would not see them.
    pub(crate) fn install_half(&mut self, channel: ChannelIndex, record: Record<C>, [from_up, from_down]: [bool; 2]) {
        self.remove(channel);
        if let Some(up) = record.up.filter(|_| from_up) {
            self.by_up.insert(up, channel);
        }
        if let Some(down) = record.down.filter(|_| from_down) {
            self.by_down.insert(down, channel);
        }
        self.records.insert(channel.index(), record);
        self.open += 1;
    }

    /// Forgets a channel and wipes its keys.
    pub fn remove(&mut self, channel: ChannelIndex) -> Option<Record<C>> {
        let record = self.records.take(channel.index())?;
        if let Some(up) = record.up {
            self.by_up.remove(&up);
        }
        if let Some(down) = record.down {
            self.by_down.remove(&down);
        }
        self.open -= 1;
        Some(record)
    }

    /// The channel with this number on a link.
    pub(crate) fn lookup(&self, side: Side, link: LinkId, number: u32) -> Option<ChannelIndex> {
        let map = match side {
            Side::Up => &self.by_up,
            Side::Down => &self.by_down,
        };
        map.get(&(link, number)).copied()
    }

    /// A channel by its index.
    pub fn record(&self, channel: ChannelIndex) -> Option<&Record<C>> {
        self.records.get(channel.index())
    }

    /// A channel by its index.
    pub(crate) fn record_mut(&mut self, channel: ChannelIndex) -> Option<&mut Record<C>> {
        self.records.get_mut(channel.index())
    }

    pub fn iter(&self) -> impl Iterator<Item = (ChannelIndex, &Record<C>)> {
        self.records.iter().map(|(channel, record)| (ChannelIndex(channel as u32), record))
    }

    pub fn len(&self) -> usize {
        self.open
    }

    pub fn is_empty(&self) -> bool {
        self.open == 0
    }

    /// Applies a change of a link.
    pub fn apply(&mut self, command: LinkCommand) {
        self.links.apply(command);
    }
}

impl From<Refused> for DropReason {
    fn from(refused: Refused) -> DropReason {
        match refused {
            Refused::Old => DropReason::Old,
            Refused::Ahead => DropReason::Ahead,
            Refused::Seen => DropReason::Replay,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::replay::{JUMP_MAX, WIDTH_DEFAULT};

    #[test]
    fn a_hop_forgets_the_generations_that_its_window_has_passed() {
        let mut half = Half::<StreamKey>::new(&Secret::new([3; 32]), 0, WIDTH_DEFAULT, None, 0);
        for seq in [0, JUMP_MAX, 2 * JUMP_MAX] {
            half.mark_seen(seq, 0).unwrap();
            assert!(half.key(0).is_some(), "{seq}: the window still reaches back");
        }
        half.mark_seen((1 << 20) + WIDTH_DEFAULT as u64, 0).unwrap();
        assert!(half.key((1 << 20) - 1).is_none());
        assert!(half.key(1 << 20).is_some() && half.key(2 << 20).is_some());
    }
}
