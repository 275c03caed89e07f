//! Plain books of a mix: what its ledger must show, without keys, buffers or sockets.

use super::*;

/// The books of one channel and direction.
#[derive(Default)]
pub(super) struct Numbers {
    pub(super) seen: HashSet<u64>,
    /// One more than the highest.
    pub(super) next: u64,
}

impl Numbers {
    pub(super) fn range(&self, seq: u64) -> Option<DropReason> {
        if seq + WINDOW < self.next {
            Some(DropReason::Old)
        } else if seq >= self.next + AHEAD {
            Some(DropReason::Ahead)
        } else {
            None
        }
    }

    pub(super) fn mark(&mut self, seq: u64) -> Option<DropReason> {
        let verdict = self.range(seq).or((!self.seen.insert(seq)).then_some(DropReason::Replay));
        if verdict.is_none() {
            self.next = self.next.max(seq + 1);
        }
        verdict
    }

    /// Whether the window has left the generation of `seq` behind.
    pub(super) fn wiped(&self, seq: u64) -> bool {
        seq >> GENERATION_SHIFT < self.next.saturating_sub(WINDOW) >> GENERATION_SHIFT
    }
}

/// The books of one direction: what arrives on `from` leaves on the other side.
pub(super) struct Books {
    pub(super) from: Side,
    pub(super) waiting: VecDeque<Arrival>,
    /// For each cell in the pool: control's are for this slot.
    pub(super) pooled: Vec<Option<u32>>,
    pub(super) queued: usize,
    pub(super) takes: usize,
    pub(super) fails: bool,
    pub(super) numbers: Vec<Numbers>,
    pub(super) sent_up_to: Vec<u64>,
    pub(super) count: Count,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) received: u64,
    pub(super) injected: u64,
    pub(super) sent: u64,
    pub(super) send_errors: u64,
    pub(super) consumed: u64,
    pub(super) dropped: BTreeMap<&'static str, u64>,
    pub(super) held: u64,
}

impl Count {
    pub(super) fn drop(&mut self, reason: DropReason) {
        *self.dropped.entry(reason.name()).or_default() += 1;
    }

    /// What a ledger says, beyond what it said before.
    pub(super) fn since(tally: &Tally, before: &Tally) -> Count {
        let dropped =
            DropReason::ALL.iter().map(|reason| (reason.name(), tally.drops(*reason) - before.drops(*reason)));
        Count {
            received: tally.received - before.received,
            injected: tally.injected - before.injected,
            sent: tally.sent - before.sent,
            send_errors: tally.send_errors - before.send_errors,
            consumed: tally.consumed - before.consumed,
            dropped: dropped.filter(|(_, n)| *n > 0).collect(),
            held: tally.held - before.held,
        }
    }
}

impl Books {
    pub(super) fn new(from: Side) -> Books {
        Books {
            from,
            waiting: VecDeque::new(),
            pooled: Vec::new(),
            queued: 0,
            takes: usize::MAX,
            fails: false,
            numbers: (0..CHANNELS).map(|_| Numbers::default()).collect(),
            sent_up_to: vec![0; CHANNELS as usize + 1],
            count: Count::default(),
        }
    }

    pub(super) fn receive(&mut self, slots: &BTreeMap<u32, Side>, open: &[bool], modest: bool) {
        for _ in 0..4 {
            if self.queued > 0 {
                return;
            }
            // A batch is looked at whole before any of its numbers is marked.
            let batch: Vec<Arrival> = self.waiting.drain(..self.waiting.len().min(64)).collect();
            let mut data = Vec::new();
            for arrival in batch {
                self.count.received += 1;
                match arrival {
                    Arrival::Length(_) => self.count.drop(DropReason::Length),
                    Arrival::Handshake if modest => self.count.consumed += 1,
                    Arrival::Handshake => self.count.drop(DropReason::PuntFull),
                    Arrival::Stranger => self.count.drop(DropReason::Stranger),
                    Arrival::Garbage => self.count.drop(DropReason::Header),
                    Arrival::Cell { slot, .. } if slots.get(&slot) != Some(&self.from) => {
                        self.count.drop(DropReason::Header)
                    }
                    Arrival::Cell { kind: CellKind::Data, channel, seq, sub, forged, .. } => {
                        if channel >= CHANNELS || !open[channel as usize] {
                            self.count.drop(DropReason::Channel);
                        } else if sub != 0 {
                            self.count.drop(DropReason::Sub);
                        } else if let Some(reason) = self.numbers[channel as usize].range(seq) {
                            self.count.drop(reason);
                        } else {
                            data.push((channel as usize, seq, forged));
                        }
                    }
                    Arrival::Cell { kind: CellKind::Setup, .. } if self.from == Side::Down => {
                        self.count.drop(DropReason::Kind)
                    }
                    Arrival::Cell { kind: CellKind::Ack, .. } if self.from == Side::Up => {
                        self.count.drop(DropReason::Kind)
                    }
                    Arrival::Cell { .. } => self.count.consumed += 1,
                }
            }
            let mut marked = Vec::new();
            for (channel, seq, forged) in data {
                // Backward a mix cannot tell.
                if forged && self.from == Side::Up {
                    self.count.drop(DropReason::Forged);
                } else if let Some(reason) = self.numbers[channel].mark(seq) {
                    self.count.drop(reason);
                } else {
                    marked.push((channel, seq));
                }
            }
            for (channel, seq) in marked {
                // Backward a cell is covered after the whole batch is marked, and a later cell of it may
                // have taken the window out of this one's generation.
                if self.from == Side::Down && self.numbers[channel].wiped(seq) {
                    self.count.drop(DropReason::Old);
                } else {
                    self.pooled.push(None);
                }
            }
        }
    }

    /// Everything is released at the first turn after it came, unless the queue is not empty.
    pub(super) fn release(&mut self, due: bool, slots: &BTreeMap<u32, Side>) {
        if !due || self.queued > 0 {
            return;
        }
        let current = slots.values().any(|side| *side != self.from);
        for slot in std::mem::take(&mut self.pooled) {
            match slot {
                None if !current => self.count.drop(DropReason::LinkDown),
                Some(slot) if slots.get(&slot).is_none_or(|side| *side == self.from) => {
                    self.count.drop(DropReason::SlotExpired);
                }
                _ => self.queued += 1,
            }
        }
    }

    pub(super) fn send(&mut self) {
        let count = self.queued.min(self.takes);
        let failed = if self.fails { count.div_ceil(3) } else { 0 };
        self.count.sent += (count - failed) as u64;
        self.count.send_errors += failed as u64;
        self.queued -= count;
        self.count.held = (self.pooled.len() + self.queued) as u64;
    }
}
