//! One flow in one direction: which numbers arrived, in what order, and how evenly.

use std::collections::VecDeque;

/// Maxima that are kept, to compute the extent of a reordering.
const MAXIMA: usize = 1024;

/// Datagrams of a flow are numbered from 0, so any number that is missing at the end was lost.
#[derive(Default)]
pub(super) struct Flow {
    pub(super) stream: usize,
    /// A bit for each number that arrived.
    seen: Vec<u64>,
    /// One more than the highest number that arrived.
    next: u32,
    arrived: u64,
    /// Numbers that were the highest on arrival, with how many datagrams had arrived before; oldest first.
    maxima: VecDeque<(u32, u64)>,
    /// Latency of the last datagram.
    transit_ns: Option<i64>,
    jitter_ns: f64,
    slowest_ns: u64,
}

/// Order of a new datagram relative to those before it.
pub(super) struct Order {
    /// Reordering extent (RFC 4737, 4.2.1), if a later datagram arrived first.
    pub(super) reordered: Option<u64>,
    /// Interarrival jitter (RFC 3550, 6.4.1) after this datagram; `None` for the first one.
    pub(super) jitter_ns: Option<u64>,
}

impl Flow {
    pub(super) fn of(stream: usize) -> Flow {
        Flow { stream, ..Flow::default() }
    }

    /// Counts a datagram; `None` for a duplicate.
    pub(super) fn arrive(&mut self, number: u32, latency_ns: u64) -> Option<Order> {
        if !self.mark_seen(number) {
            return None;
        }
        let mut reordered = None;
        if number >= self.next {
            self.next = number + 1;
            if self.maxima.len() == MAXIMA {
                self.maxima.pop_front();
            }
            self.maxima.push_back((number, self.arrived));
        } else {
            reordered = Some(self.extent(number));
        }
        self.arrived += 1;
        self.slowest_ns = self.slowest_ns.max(latency_ns);

        // In nanoseconds, where RFC 3550 uses units of the media clock.
        let before = self.transit_ns.replace(latency_ns as i64);
        let jitter_ns = before.map(|before| {
            let difference = (latency_ns as i64 - before).abs() as f64;
            self.jitter_ns += (difference - self.jitter_ns) / 16.0;
            self.jitter_ns as u64
        });
        Some(Order { reordered, jitter_ns })
    }

    /// False if the number was seen before.
    fn mark_seen(&mut self, number: u32) -> bool {
        let (word, bit) = (number as usize / 64, 1u64 << (number % 64));
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        let fresh = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        fresh
    }

    fn has(&self, number: u32) -> bool {
        self.seen.get(number as usize / 64).is_some_and(|word| word & 1 << (number % 64) != 0)
    }

    /// Number of datagrams that arrived since the first one that overtook this number.
    fn extent(&self, number: u32) -> u64 {
        let first = self.maxima.partition_point(|(highest, _)| *highest < number);
        self.maxima.get(first).map_or(MAXIMA as u64, |(_, before)| self.arrived - before)
    }

    /// Lengths of the runs of numbers that are missing among the first `sent`.
    pub(super) fn loss_bursts(&self, sent: u32) -> Vec<u64> {
        let mut bursts = Vec::new();
        let mut burst = 0;
        for number in 0..=sent {
            if number < sent && !self.has(number) {
                burst += 1;
            } else if burst > 0 {
                bursts.push(burst);
                burst = 0;
            }
        }
        bursts
    }

    /// Share of `sent` datagrams that did not arrive.
    pub(super) fn loss(&self, sent: u32) -> f64 {
        u64::from(sent).saturating_sub(self.arrived) as f64 / f64::from(sent.max(1))
    }

    pub(super) fn slowest_ms(&self) -> f64 {
        self.slowest_ns as f64 / 1e6
    }
}
