//! The replay window of sequence numbers (SPEC 3.9).
//!
//! A ring of bits, one for each of the last `width` numbers up to the highest one seen. The caller
//! checks [`Window::accept`] before it opens a cell, and calls [`Window::mark_seen`] once the cell is
//! authentic. That call tests again and marks in one step, so two copies in one batch cannot both
//! pass. The word of the highest number is stored beside the numbers, so cells that arrive in order
//! touch the ring only once in 64 cells.

/// The furthest that a cell may be ahead of the highest number seen.
pub const JUMP_MAX: u64 = 1 << 19;
pub const WIDTH_DEFAULT: usize = 4096;
/// Of a channel; that of control cells between hops follows the slots of a round.
pub const WIDTH_MAX: usize = 65536;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Behind the window.
    Old,
    /// More than [`JUMP_MAX`] ahead.
    Ahead,
    Seen,
}

/// The numbers seen on one channel and direction, or under one link key.
pub struct Window {
    first: u64,
    /// One more than the highest number seen.
    next: u64,
    /// The word [`Window::top`]. It moves to the ring when a higher word follows.
    hot: u64,
    /// The words below it, word n at index n modulo the length.
    ring: Box<[u64]>,
}

impl Window {
    /// A window of `width` numbers, none of them seen; numbers start at `first`.
    ///
    /// # Panics
    /// Unless width is a power of two from 64 to [`JUMP_MAX`].
    pub fn new(first: u64, width: usize) -> Window {
        assert!(width.is_power_of_two() && (64..=JUMP_MAX as usize).contains(&width), "window width {width}");
        Window { first, next: first, hot: 0, ring: vec![0; width / 64].into() }
    }

    fn width(&self) -> u64 {
        self.ring.len() as u64 * 64
    }

    /// Index of the word with the highest number seen; with `first` as long as there is none.
    fn top(&self) -> u64 {
        self.next.saturating_sub(1).max(self.first) / 64
    }

    fn place(&self, word: u64) -> usize {
        // The length is a power of two.
        word as usize & (self.ring.len() - 1)
    }

    /// The word of the ring that [`Window::mark_seen`] touches for `seq`, if any, for a caller that prefetches it.
    pub fn word(&self, seq: u64) -> Option<&u64> {
        let (word, top) = (seq / 64, self.top());
        (word != top).then(|| &self.ring[self.place(word.min(top))])
    }

    /// One more than the highest number seen.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The lowest acceptable number.
    pub fn lowest(&self) -> u64 {
        self.next.saturating_sub(self.width()).max(self.first)
    }

    /// Checks that `seq` is in range: highest - width < seq <= highest + 2^19, and not below the first.
    ///
    /// # Errors
    /// `seq` is too old or too far ahead.
    pub fn accept(&self, seq: u64) -> Result<(), Refused> {
        if seq < self.lowest() {
            Err(Refused::Old)
        } else if seq >= self.next + JUMP_MAX {
            Err(Refused::Ahead)
        } else {
            Ok(())
        }
    }

    /// Marks `seq` as seen.
    ///
    /// # Errors
    /// `seq` is out of range or was seen before. Nothing changes then.
    pub fn mark_seen(&mut self, seq: u64) -> Result<(), Refused> {
        self.accept(seq)?;
        let (word, top) = (seq / 64, self.top());
        if word > top {
            self.move_top(top, word);
        }
        let (bit, place) = (1 << (seq % 64), self.place(word));
        let bits = if word < top { &mut self.ring[place] } else { &mut self.hot };
        if *bits & bit != 0 {
            return Err(Refused::Seen);
        }
        *bits |= bit;
        self.next = self.next.max(seq + 1);
        Ok(())
    }

    /// Moves word `top` to the ring and goes on with a higher word. The words between are empty.
    fn move_top(&mut self, top: u64, word: u64) {
        if word - top > self.ring.len() as u64 {
            self.ring.fill(0);
        } else {
            let place = self.place(top);
            self.ring[place] = self.hot;
            for between in top + 1..word {
                let place = self.place(between);
                self.ring[place] = 0;
            }
        }
        self.hot = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn numbers_outside_the_window_are_refused() {
        let mut window = Window::new(0, 64);
        assert_eq!(window.mark_seen(0), Ok(()));
        assert_eq!(window.mark_seen(0), Err(Refused::Seen));
        assert_eq!(window.mark_seen(64), Ok(()));
        assert_eq!(window.mark_seen(0), Err(Refused::Old));
        assert_eq!(window.mark_seen(1), Ok(()));
        assert_eq!(window.mark_seen(64 + JUMP_MAX + 1), Err(Refused::Ahead));
        assert_eq!(window.mark_seen(64 + JUMP_MAX), Ok(()));
        assert_eq!(window.mark_seen(64), Err(Refused::Old));
    }

    /// The next number: near the highest, at either end of the range, or anywhere.
    #[derive(Clone, Copy, Debug)]
    enum Next {
        Near(i64),
        Behind(i64),
        Ahead(i64),
        Far(i64),
        Again(prop::sample::Index),
        At(u64),
    }

    fn next_number() -> impl Strategy<Value = Next> {
        prop_oneof![
            8 => (-80i64..80).prop_map(Next::Near),
            3 => (-2i64..=2).prop_map(Next::Behind),
            2 => (-2i64..=2).prop_map(Next::Ahead),
            2 => (-70_000i64..600_000).prop_map(Next::Far),
            4 => any::<prop::sample::Index>().prop_map(Next::Again),
            1 => any::<u64>().prop_map(|seq| Next::At(seq >> 24)),
        ]
    }

    proptest! {
        #[test]
        fn replay_window_agrees_with_a_set(
            width in (6u32..17).prop_map(|p| 1usize << p),
            first in prop_oneof![Just(0), 0u64..5000, (1u64 << 39) - 200_000..1 << 39],
            steps in prop::collection::vec(next_number(), 1..400),
        ) {
            let mut window = Window::new(first, width);
            let mut seen: HashSet<u64> = HashSet::new();
            let mut asked = vec![first];
            let mut next = first;
            for step in steps {
                let seq = match step {
                    Next::Near(step) | Next::Far(step) => next.saturating_add_signed(step),
                    Next::Behind(step) => next.saturating_sub(width as u64).saturating_add_signed(step),
                    Next::Ahead(step) => (next + JUMP_MAX).saturating_add_signed(step),
                    Next::Again(which) => *which.get(&asked),
                    Next::At(seq) => seq,
                };
                asked.push(seq);
                let range = if seq < first || seq + (width as u64) < next {
                    Err(Refused::Old)
                } else if seq >= next + JUMP_MAX {
                    Err(Refused::Ahead)
                } else {
                    Ok(())
                };
                prop_assert_eq!(window.accept(seq), range);
                let want = range.and_then(|()| if seen.insert(seq) { Ok(()) } else { Err(Refused::Seen) });
                if want.is_ok() {
                    next = next.max(seq + 1);
                }
                prop_assert_eq!(window.mark_seen(seq), want);
                prop_assert_eq!(window.next(), next);
                let lowest = window.lowest();
                if seen.contains(&lowest) {
                    prop_assert_eq!(window.mark_seen(lowest), Err(Refused::Seen), "the lowest number is remembered");
                }
                prop_assert_eq!(lowest, first.max(next.saturating_sub(width as u64)));
            }
        }
    }
}
