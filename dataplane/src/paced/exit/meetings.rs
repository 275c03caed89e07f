//! Meetings at the exit: which channels of a batch have one token (SPEC 9.13.3).

use std::collections::HashMap;
use std::hash::{Hash, Hasher};

use wire::paced::MeetingToken;

/// A token as a key. The hash has a random key and the comparison takes constant time, so that times show nothing about
/// tokens.
#[derive(PartialEq, Eq)]
struct Key(MeetingToken);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.expose().hash(state);
    }
}

/// The tokens of the batch that is being set up.
#[derive(Default)]
pub(super) struct Meetings {
    batch: u64,
    /// The channel that waits for another with its token, or none if two have met.
    waiting: HashMap<Key, Option<usize>>,
}

impl Meetings {
    /// Adds a channel with a token. Returns the one that it meets: the first with this token, if it is the second.
    pub(super) fn add(&mut self, batch: u64, token: MeetingToken, channel: usize) -> Option<usize> {
        if batch > self.batch {
            self.batch = batch;
            self.waiting.clear();
        }
        if batch < self.batch {
            return None;
        }
        let mut is_first = false;
        let waiting = self.waiting.entry(Key(token)).or_insert_with(|| {
            is_first = true;
            Some(channel)
        });
        if is_first { None } else { waiting.take() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_two_channels_of_a_batch_with_one_token_meet() {
        let mut meetings = Meetings::default();
        let [one, other] = [1, 2].map(|byte| MeetingToken::new([byte; 32]));
        let mut add = |batch, token: &MeetingToken, channel| meetings.add(batch, token.clone(), channel);
        assert_eq!([add(7, &one, 0), add(7, &other, 1), add(7, &one, 2), add(7, &one, 3)], [None, None, Some(0), None]);
        assert_eq!([add(8, &other, 0), add(8, &other, 1)], [None, Some(0)], "each batch has its own");
        assert_eq!(add(7, &one, 4), None, "a batch that has begun");
    }
}
