//! Puts messages together that arrive in parts: message 1 in two halves, a setup in several cells.
//!
//! Bounded in number and time: when all entries are taken, the oldest is dropped, so a flood must
//! overtake the missing part and not only arrive before the first one (SPEC 4.2, 5.3).

use std::time::Duration;

/// Incomplete messages, by the key that identifies a message.
pub(crate) struct Joiner<K> {
    /// Most messages that may wait at once.
    capacity: usize,
    /// The longest wait of a message after its first part.
    wait: Duration,
    /// Oldest first.
    waiting: Vec<Partial<K>>,
}

struct Partial<K> {
    key: K,
    since: Duration,
    parts: Vec<Option<Vec<u8>>>,
}

/// The state of a message after one of its parts came in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    Incomplete,
    /// This part is there already; nothing changed.
    Duplicate,
    /// All parts in order.
    Complete(Vec<u8>),
}

impl<K: PartialEq> Joiner<K> {
    pub(crate) const fn new(capacity: usize, wait: Duration) -> Joiner<K> {
        Joiner { capacity, wait, waiting: Vec::new() }
    }

    /// Takes in part `index` of `count`. Also returns how many messages were given up, for age or
    /// for room.
    pub(crate) fn join(&mut self, now: Duration, key: K, index: usize, count: usize, bytes: &[u8]) -> (Joined, usize) {
        let before = self.waiting.len();
        self.waiting.retain(|partial| now.saturating_sub(partial.since) < self.wait);
        let mut given_up = before - self.waiting.len();

        let at = self.waiting.iter().position(|partial| partial.key == key).unwrap_or_else(|| {
            if self.waiting.len() >= self.capacity {
                self.waiting.remove(0);
                given_up += 1;
            }
            self.waiting.push(Partial { key, since: now, parts: vec![None; count] });
            self.waiting.len() - 1
        });

        let parts = &mut self.waiting[at].parts;
        if parts[index].is_some() {
            return (Joined::Duplicate, given_up);
        }
        parts[index] = Some(bytes.to_vec());
        if parts.iter().any(Option::is_none) {
            return (Joined::Incomplete, given_up);
        }
        let parts = self.waiting.remove(at).parts;
        (Joined::Complete(parts.into_iter().flatten().flatten().collect()), given_up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn parts_join_in_any_order_and_copies_change_nothing() {
        for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
            let mut joiner = Joiner::new(4, ms(1000));
            let mut join = |index: usize, key| joiner.join(ms(9), key, index, 3, &[index as u8; 2]);
            assert_eq!(join(order[0], 'a'), (Joined::Incomplete, 0));
            assert_eq!(join(order[0], 'a'), (Joined::Duplicate, 0));
            assert_eq!(join(order[1], 'b'), (Joined::Incomplete, 0), "another key is another message");
            assert_eq!(join(order[1], 'a'), (Joined::Incomplete, 0));
            assert_eq!(join(order[2], 'a'), (Joined::Complete(vec![0, 0, 1, 1, 2, 2]), 0));
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
}
