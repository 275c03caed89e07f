//! Joins messages that arrive in parts: message 1 in two halves, a setup in several shards.
//!
//! Bounded in number and time: when all entries are taken, the oldest is dropped, so a flood must
//! overtake the missing part and not only arrive before the first one (SPEC 4.2, 5.3).

use std::collections::{HashSet, VecDeque};
use std::hash::Hash;
use std::time::Duration;

/// Incomplete messages, by the key that identifies a message.
pub(crate) struct Joiner<K> {
    /// Most messages that may wait at once.
    capacity: usize,
    /// The longest wait of a message after its first part.
    wait: Duration,
    /// Oldest first.
    waiting: VecDeque<Partial<K>>,
}

struct Partial<K> {
    key: K,
    since: Duration,
    parts: Parts,
}

/// Parts of a message, in the order of their arrival.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) indexes: Vec<u8>,
    pub(crate) bytes: Vec<Vec<u8>>,
}

impl Parts {
    /// The bytes of all parts, in the order of their indexes.
    pub(crate) fn concat(self) -> Vec<u8> {
        let mut sorted: Vec<(u8, Vec<u8>)> = self.indexes.into_iter().zip(self.bytes).collect();
        sorted.sort_by_key(|(index, _)| *index);
        sorted.into_iter().flat_map(|(_, bytes)| bytes).collect()
    }
}

/// The state of a message after one of its parts came in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    Incomplete,
    /// This part is there already; nothing changed.
    Duplicate,
    /// As many parts as are needed.
    Complete(Parts),
}

impl<K: PartialEq> Joiner<K> {
    pub(crate) const fn new(capacity: usize, wait: Duration) -> Joiner<K> {
        Joiner { capacity, wait, waiting: VecDeque::new() }
    }

    /// Gives up messages that have waited too long. Returns how many.
    pub(crate) fn expire(&mut self, now: Duration) -> usize {
        let before = self.waiting.len();
        while self.waiting.front().is_some_and(|oldest| now.saturating_sub(oldest.since) >= self.wait) {
            self.waiting.pop_front();
        }
        before - self.waiting.len()
    }

    /// True if more than a quarter of the places is taken.
    pub(crate) fn is_filling(&self) -> bool {
        4 * self.waiting.len() > self.capacity
    }

    /// As [`Joiner::join`]. If `most` other messages of the same source wait, the oldest of them is given up first.
    pub(crate) fn join_of_source(
        &mut self,
        now: Duration,
        key: K,
        (index, needed): (u8, usize),
        bytes: &[u8],
        most: usize,
        is_of_source: impl Fn(&K) -> bool,
    ) -> (Joined, usize) {
        let mut given_up = self.expire(now);
        if !self.waiting.iter().any(|partial| partial.key == key) {
            let mut of_source = (0..self.waiting.len()).filter(|at| is_of_source(&self.waiting[*at].key));
            let oldest = of_source.next();
            if let Some(oldest) = oldest.filter(|_| of_source.count() + 1 >= most) {
                self.waiting.remove(oldest);
                given_up += 1;
            }
        }
        let (joined, more) = self.join(now, key, index, needed, bytes);
        (joined, given_up + more)
    }

    /// Takes in part `index` of a message that needs any `needed` of its parts. Also returns how many
    /// messages were given up, for age or for room.
    pub(crate) fn join(&mut self, now: Duration, key: K, index: u8, needed: usize, bytes: &[u8]) -> (Joined, usize) {
        let mut given_up = self.expire(now);

        let at = self.waiting.iter().position(|partial| partial.key == key).unwrap_or_else(|| {
            if self.waiting.len() >= self.capacity {
                self.waiting.pop_front();
                given_up += 1;
            }
            self.waiting.push_back(Partial { key, since: now, parts: Parts::default() });
            self.waiting.len() - 1
        });

        let parts = &mut self.waiting[at].parts;
        if parts.indexes.contains(&index) {
            return (Joined::Duplicate, given_up);
        }
        parts.indexes.push(index);
        parts.bytes.push(bytes.to_vec());
        if parts.indexes.len() < needed {
            return (Joined::Incomplete, given_up);
        }
        let complete = self.waiting.remove(at).expect("it was found above");
        (Joined::Complete(complete.parts), given_up)
    }
}

/// Messages of which enough parts were there: what comes for them later is surplus. The oldest is
/// forgotten after a time, or when there are too many.
pub(crate) struct Decided<K> {
    capacity: usize,
    keep: Duration,
    keys: HashSet<K>,
    /// Oldest first.
    order: VecDeque<(Duration, K)>,
}

impl<K: Copy + Eq + Hash> Decided<K> {
    pub(crate) fn new(capacity: usize, keep: Duration) -> Decided<K> {
        Decided { capacity, keep, keys: HashSet::new(), order: VecDeque::new() }
    }

    pub(crate) fn contains(&mut self, now: Duration, key: K) -> bool {
        while let Some((at, oldest)) = self.order.front()
            && now.saturating_sub(*at) >= self.keep
        {
            self.keys.remove(oldest);
            self.order.pop_front();
        }
        self.keys.contains(&key)
    }

    pub(crate) fn insert(&mut self, now: Duration, key: K) {
        if !self.keys.insert(key) {
            return;
        }
        self.order.push_back((now, key));
        if self.order.len() > self.capacity
            && let Some((_, oldest)) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn any_needed_parts_join_and_copies_change_nothing() {
        for order in [[0, 1, 4], [2, 0, 1], [1, 4, 3]] {
            let mut joiner = Joiner::new(4, ms(1000));
            let mut join = |index: u8, key| joiner.join(ms(9), key, index, 3, &[index; 2]);
            assert_eq!(join(order[0], 'a'), (Joined::Incomplete, 0));
            assert_eq!(join(order[0], 'a'), (Joined::Duplicate, 0));
            assert_eq!(join(order[1], 'b'), (Joined::Incomplete, 0), "another key is another message");
            assert_eq!(join(order[1], 'a'), (Joined::Incomplete, 0));
            let parts = Parts { indexes: order.to_vec(), bytes: order.map(|index| vec![index; 2]).to_vec() };
            assert_eq!(join(order[2], 'a'), (Joined::Complete(parts.clone()), 0));
            assert!(parts.concat().is_sorted());
            assert_eq!(join(order[2], 'a'), (Joined::Incomplete, 0), "a message that is complete is forgotten");
        }
    }

    #[test]
    fn oldest_message_gives_way_and_all_expire() {
        let mut joiner = Joiner::new(256, ms(1000));
        for key in 0..256 {
            assert_eq!(joiner.join(ms(key), key, 0, 2, &[1]), (Joined::Incomplete, 0));
        }
        assert_eq!(joiner.join(ms(300), 300, 0, 2, &[1]), (Joined::Incomplete, 1));
        assert_eq!(joiner.join(ms(301), 0, 1, 2, &[1]), (Joined::Incomplete, 1), "the oldest was given up");
        assert_eq!(joiner.join(ms(2000), 9, 1, 2, &[1]), (Joined::Incomplete, 256));
    }

    #[test]
    fn source_with_its_share_gives_up_its_own_oldest() {
        let mut joiner = Joiner::new(256, ms(1000));
        let mut join = |key: (char, u16), index| {
            joiner.join_of_source(ms(9), key, (index, 2), &[index], 8, |other| other.0 == key.0)
        };
        assert_eq!(join(('b', 0), 0), (Joined::Incomplete, 0));
        let given_up: usize = (0..1000).map(|n| join(('a', n), 0).1).sum();
        assert_eq!(given_up, 1000 - 8);
        assert!(matches!(join(('b', 0), 1), (Joined::Complete(_), 0)));
        assert!(matches!(join(('a', 992), 1), (Joined::Complete(_), 0)), "its latest eight wait");
        assert_eq!(join(('a', 991), 1), (Joined::Incomplete, 0));
    }

    #[test]
    fn decided_messages_are_forgotten_in_order() {
        let mut decided = Decided::new(3, ms(2000));
        for key in 0..4 {
            decided.insert(ms(100 * key), key);
            decided.insert(ms(100 * key), key);
        }
        assert_eq!([0, 1, 3].map(|key| decided.contains(ms(400), key)), [false, true, true]);
        assert_eq!([1, 2, 3].map(|key| decided.contains(ms(2200), key)), [false, false, true]);
        assert_eq!((decided.contains(ms(2300), 3), decided.order.len()), (false, 0));
    }
}
