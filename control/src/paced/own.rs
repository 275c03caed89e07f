//! Setups that a node makes itself: those of an entry, and of the loops of a mix (SPEC 9.8, 9.14).

use std::collections::BTreeMap;

use rand::Rng;
use rand_chacha::ChaCha20Rng;
use thiserror::Error;
use wire::kdf::LowOrder;
use wire::paced::{Call, EntryKeys, Meeting, MeetingToken, SALT_LEN};
use wire::setup::{BadAck, HopPublic, Pending, TOKEN_LEN, build_with_token};
use wire::shards::Shards;

use super::PacedConfig;
use crate::draw::draw_secret;

/// What became of a channel of this node.
pub(crate) enum Outcome {
    /// It exists at all hops.
    Ready {
        batch: u64,
        /// Its number on the link towards the exit.
        channel: u32,
        keys: Box<EntryKeys>,
        /// If it meets another channel, or is a loop.
        call: Option<Box<Call>>,
    },
    /// The node sends random bodies under this number in the batch.
    Failed { batch: u64, channel: u32, why: Failure },
}

/// Why a node has no channel in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Failure {
    #[error("no bundle for its batch came in time")]
    NoBundle,
    /// Of a loop: its mix was not.
    #[error("the entry was not ready in time")]
    NotReady,
    #[error("a setup key of the bundle is of low order")]
    BadBundle,
    #[error("no complete ack came in time")]
    NoAck,
    #[error("{0}")]
    BadAck(BadAck),
    /// Only of a loop.
    #[error("the loop that it meets was not set up")]
    Alone,
}

/// The setup keys of all hops, by the interval of their bundle.
#[derive(Default)]
pub(super) struct Bundles(BTreeMap<u64, Vec<HopPublic>>);

impl Bundles {
    pub(super) fn insert(&mut self, interval: u64, hops: Vec<HopPublic>) {
        self.0.insert(interval, hops);
    }

    pub(super) fn get(&self, interval: u64) -> Option<&[HopPublic]> {
        self.0.get(&interval).map(Vec::as_slice)
    }

    /// Forgets those of earlier intervals.
    pub(super) fn keep_from(&mut self, interval: u64) {
        self.0 = self.0.split_off(&interval);
    }
}

/// The contents of an ack that have come; the first cell of each counts.
#[derive(Default)]
pub(super) struct Answer(Vec<Option<Vec<u8>>>);

impl Answer {
    pub(super) fn new(contents: usize) -> Answer {
        Answer(vec![None; contents])
    }

    /// Keeps a content. False if it is there already.
    ///
    /// # Panics
    /// `sub` is not below the number of contents of an ack.
    pub(super) fn put(&mut self, sub: u8, content: &[u8]) -> bool {
        let place = &mut self.0[usize::from(sub)];
        let is_first = place.is_none();
        place.get_or_insert_with(|| content.to_vec());
        is_first
    }

    pub(super) fn is_complete(&self) -> bool {
        self.0.iter().all(Option::is_some)
    }

    /// All contents, random bytes in place of those that did not come.
    pub(super) fn fill(self, len: usize, rng: &mut ChaCha20Rng) -> Vec<Vec<u8>> {
        let random = |rng: &mut ChaCha20Rng| {
            let mut content = vec![0; len];
            rng.fill_bytes(&mut content);
            content
        };
        self.0.into_iter().map(|content| content.unwrap_or_else(|| random(rng))).collect()
    }
}

/// A setup that was sent and has no complete ack.
pub(super) struct Own {
    pub(super) batch: u64,
    pub(super) channel: u32,
    pending: Pending,
    call: Option<Box<Call>>,
}

impl Own {
    /// Builds the setup of a channel through `hops`, which end with the exit, and its shards on link `link`. Without a
    /// meeting its token is random.
    pub(super) fn build(
        rng: &mut ChaCha20Rng,
        config: &PacedConfig,
        (batch, channel): (u64, u32),
        hops: &[HopPublic],
        meeting: Option<&Meeting>,
        code: Shards,
    ) -> Result<(Own, Vec<Vec<u8>>), LowOrder> {
        let (mut random, mut salt) = ([0; TOKEN_LEN], [0; SALT_LEN]);
        rng.fill_bytes(&mut random);
        rng.fill_bytes(&mut salt);
        let token = meeting.map_or_else(|| MeetingToken::new(random), |meeting| meeting.token.clone());
        let shares = hops.iter().map(|hop| hop.setup.share(draw_secret(rng))).collect();
        let (onion, pending) = build_with_token(config.shape, hops, shares, config.info(batch), token.expose())?;
        let own = Own { batch, channel, pending, call: meeting.map(|meeting| Box::new(meeting.call(salt))) };
        Ok((own, spread(rng, onion, code, config.shape.payload())))
    }

    /// Reads the ack.
    pub(super) fn finish(self, config: &PacedConfig, answer: Answer) -> Outcome {
        let Own { batch, channel, pending, call } = self;
        let contents: Option<Vec<Vec<u8>>> = answer.0.into_iter().collect();
        let finished = match contents {
            Some(mut contents) => pending.finish(config.shape, &mut contents).map_err(Failure::BadAck),
            None => Err(Failure::NoAck),
        };
        match finished {
            Ok(hops) => Outcome::Ready { batch, channel, keys: Box::new(EntryKeys::new(hops)), call },
            Err(why) => Outcome::Failed { batch, channel, why },
        }
    }
}

/// The shards of an onion, each of `len` bytes. Random bytes fill up the last data shard.
pub(super) fn spread(rng: &mut ChaCha20Rng, mut onion: Vec<u8>, code: Shards, len: usize) -> Vec<Vec<u8>> {
    let filled = onion.len();
    onion.resize(code.data * len, 0);
    rng.fill_bytes(&mut onion[filled..]);
    let mut shards: Vec<Vec<u8>> = onion.chunks(len).map(<[u8]>::to_vec).collect();
    code.encode(&mut shards);
    shards
}
