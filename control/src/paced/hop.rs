//! One class at a mix or the exit: setups and acks of all channels of a batch (SPEC 9.7 to 9.9, 9.14).

mod loops;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::ops::Range;

use rand_chacha::ChaCha20Rng;
use wire::cell::{CellKind, Direction, Shape};
use wire::ids::{ChannelKeys, LinkId};
use wire::kdf::Secret;
use wire::paced::{AHEAD_MAX, MeetingToken, Phase};
use wire::setup::{HopPublic, HopSecrets, Info, Opened, TOKEN_LEN, ack_cells, begin_ack, cover_ack, onion_len};
use zeroize::Zeroize;

use super::PacedConfig;
use super::numbers::Numbers;
use super::own::{Answer, Bundles, Outcome, Own, spread};
use super::queue::{Item, Placed, Queue};
use super::seats::{Joined, Seats};
use crate::channel::LinkChannel;
use crate::counters::{Counters, Refusal};
use crate::draw::draw_secret;
use crate::prefix::Prefix;
use crate::trust::keyring::NotOpened;

/// A setup cell from the previous hop, or from an entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShardCell<'a> {
    pub(crate) link: LinkId,
    /// Mix 1: where the link was first promoted; none if its prefix is exempt (SPEC 4.11).
    pub(crate) home: Option<IpAddr>,
    pub(crate) channel: u32,
    pub(crate) sub: u8,
    /// P bytes.
    pub(crate) content: &'a [u8],
}

/// A channel that this hop has accepted. It exists from now on, also if its ack is lost, and until its batch ends.
pub(crate) struct Install {
    pub(crate) batch: u64,
    /// Link and number towards the entry.
    pub(crate) up: (LinkId, u32),
    /// Number on the link to the next hop; none at the exit.
    pub(crate) down: Option<u32>,
    /// [`ChannelKeys::Hop`].
    pub(crate) keys: Box<ChannelKeys>,
    /// At the exit, which joins channels with equal tokens in the order in which they were accepted (SPEC 9.13.3).
    pub(crate) token: Option<MeetingToken>,
}

/// A setup that this hop has accepted.
struct Accepted {
    up: LinkChannel,
    prefix: Option<Prefix>,
    down: Option<u32>,
    ephemeral: [u8; 32],
    /// Confirmation and ack key, until the ack is made.
    secrets: Option<Box<HopSecrets>>,
}

/// The channels of the batch that is being set up.
struct Coming {
    batch: u64,
    seats: Seats,
    accepted: Vec<Accepted>,
    /// What goes to the next hop, until its phase begins.
    items: Vec<Item>,
    /// With the number of its pair, if it meets another one.
    loops: Vec<(Option<u8>, Own)>,
    /// Rounds in which their setups should have left, and those in which their acks should have come, that this mix has
    /// skipped.
    skipped: [u64; 2],
    /// Acks from the next hop, by its channel.
    answers: HashMap<u32, Answer>,
    /// From the beginning of their phases on.
    setups: Option<Queue>,
    acks: Option<Queue>,
}

impl Coming {
    fn new(batch: u64, seats: Seats) -> Coming {
        Coming {
            batch,
            seats,
            accepted: Vec::new(),
            items: Vec::new(),
            loops: Vec::new(),
            skipped: [0; 2],
            answers: HashMap::new(),
            setups: None,
            acks: None,
        }
    }
}

/// The channels of a class at a hop, by rounds alone. [`super::class`] gives it the time and the links.
pub(crate) struct PacedHop {
    config: PacedConfig,
    /// From 1.
    position: usize,
    /// The last released round of each direction.
    forward: u64,
    backward: u64,
    numbers: Numbers,
    bundles: Bundles,
    /// Channels of the running batch.
    live: HashSet<LinkChannel>,
    coming: Coming,
}

impl PacedHop {
    /// A hop without channels. These are the last rounds that are due forward and backward when it starts.
    ///
    /// # Panics
    /// The chain has fewer than `position` hops.
    pub(crate) fn new(config: PacedConfig, position: usize, [forward, backward]: [u64; 2]) -> PacedHop {
        assert!((1..=config.shape.hops()).contains(&position));
        let coming = Coming::new(config.coming(forward), seats(&config, position, std::iter::empty()));
        let numbers = Numbers::new(config.terms.period_ms);
        let (bundles, live) = Default::default();
        PacedHop { config, position, forward, backward, numbers, bundles, live, coming }
    }

    pub(crate) const fn config(&self) -> &PacedConfig {
        &self.config
    }

    /// The last round that [`PacedHop::advance`] was called for in a direction.
    pub(super) fn released(&self, direction: Direction) -> u64 {
        match direction {
            Direction::Forward => self.forward,
            Direction::Backward => self.backward,
        }
    }

    fn is_exit(&self) -> bool {
        self.position == self.config.shape.hops()
    }

    /// The batch whose channels are set up.
    pub(crate) fn coming_batch(&self) -> u64 {
        self.coming.batch
    }

    /// Channels of that batch that were accepted from the previous link. The number is final when
    /// [`PacedHop::advance`] was called for the first round of the phase in which the next link carries its setups.
    pub(crate) fn accepted(&self) -> usize {
        self.coming.accepted.len()
    }

    /// Prefixes of the links of these channels at Mix 1; those that are exempt count as one.
    pub(super) fn prefixes(&self) -> usize {
        self.coming.accepted.iter().map(|one| one.prefix).collect::<HashSet<_>>().len()
    }

    /// Mix: the interval whose bundle it lacks for its loops of the coming batch, until the next link's phase begins.
    pub(crate) fn wanted_interval(&self) -> Option<u64> {
        let has_loops = !self.is_exit() && self.config.terms.loops > 0;
        let interval = self.config.interval_of(self.coming.batch);
        let is_missing = self.coming.setups.is_none() && self.bundles.get(interval).is_none();
        (has_loops && is_missing).then_some(interval)
    }

    /// Mix: takes in the setup keys of all hops, for its loops.
    pub(crate) fn bundle(&mut self, interval: u64, hops: Vec<HopPublic>) {
        self.bundles.insert(interval, hops);
    }

    /// True if a link to an entry has a channel or a setup: no handshake displaces it (SPEC 9.8.6).
    pub(crate) fn holds(&self, link: LinkId) -> bool {
        self.coming.seats.holds(link)
    }

    /// Checks whether setup cells from the previous hop, or ack cells from the next one, come in time: step 5 of SPEC
    /// 9.4.
    ///
    /// # Errors
    /// [`Refusal::CellEarly`], [`Refusal::CellLate`], or no such cells come here.
    pub(crate) fn check(&self, kind: CellKind) -> Result<(), Refusal> {
        let (phase, first, last) = match kind {
            // The exit makes its acks when it releases the round backward.
            CellKind::Setup if self.is_exit() => (Phase::Setup(self.position), self.forward, self.backward),
            CellKind::Setup => (Phase::Setup(self.position), self.forward, self.forward),
            CellKind::Ack if !self.is_exit() => (Phase::Ack(self.position + 1), self.backward, self.backward),
            _ => return Err(Refusal::CellMalformed),
        };
        let rounds = self.config.rounds_of(self.coming.batch, phase);
        if first + AHEAD_MAX < rounds.start {
            return Err(Refusal::CellEarly);
        }
        if last >= rounds.end { Err(Refusal::CellLate) } else { Ok(()) }
    }

    /// Takes in a setup cell. `open` opens an onion that has these constants: [`crate::trust::keyring::Keyring::open`].
    ///
    /// # Errors
    /// The cell, or the setup that it completes, is refused.
    pub(crate) fn shard(
        &mut self,
        rng: &mut ChaCha20Rng,
        counters: &mut Counters,
        cell: ShardCell<'_>,
        open: impl FnOnce(Shape, Info, &[u8]) -> Result<Opened, NotOpened>,
    ) -> Result<Option<Install>, Refusal> {
        let (config, up) = (&self.config, (cell.link, cell.channel));
        let is_valid = cell.channel != 0 && cell.content.len() == config.shape.payload();
        if !is_valid || usize::from(cell.sub) >= config.shards_max(self.position) {
            return Err(Refusal::FragmentMalformed);
        }
        self.check(CellKind::Setup)?;
        if self.live.contains(&up) {
            return Err(Refusal::ChannelInUse);
        }

        let (code, prefix) = (config.code(self.position), cell.home.map(Prefix::of));
        let parts = match self.coming.seats.join(up, prefix, (cell.sub, code.data), cell.content)? {
            Joined::Incomplete => return Ok(None),
            Joined::Surplus => {
                counters.surplus_cells += 1;
                return Ok(None);
            }
            Joined::Complete(parts) => parts,
        };
        // Whoever withholds the bundle would take away the loops, which are the cover of these setups.
        if self.wanted_interval().is_some() {
            return Err(Refusal::NoBundle);
        }
        let mut onion = code.decode(&parts.indexes, &parts.bytes);
        onion.truncate(onion_len(config.shape, config.suite, self.position) + TOKEN_LEN);
        let opened = open(config.shape, config.info(self.coming.batch), &onion).map_err(|why| match why {
            NotOpened::Replayed => Refusal::SetupReplayed,
            NotOpened::Full => Refusal::ReplayCacheFull,
            NotOpened::Invalid(_) => Refusal::SetupInvalid,
        })?;
        self.accept(rng, counters, up, prefix, opened).map(Some)
    }

    fn accept(
        &mut self,
        rng: &mut ChaCha20Rng,
        counters: &mut Counters,
        up: LinkChannel,
        prefix: Option<Prefix>,
        mut opened: Opened,
    ) -> Result<Install, Refusal> {
        let mut rest = std::mem::take(&mut opened.rest);
        let (ephemeral, mut secrets) = opened.answer(draw_secret(rng)).map_err(|_| Refusal::SetupInvalid)?;
        // The ack needs neither of the two. Boxed, they are not left behind where queues have moved them.
        let take = |secret: &mut Secret| std::mem::replace(secret, Secret::new([0; 32]));
        let (forward, backward) = (take(&mut secrets.forward), take(&mut secrets.backward));
        let keys = Box::new(ChannelKeys::Hop { forward, backward });
        counters.setups += 1;

        let batch = self.coming.batch;
        let (down, token) = if self.is_exit() {
            let token = MeetingToken::try_from(&rest[..]).expect("the setup has the length of one with a token");
            rest.zeroize();
            (None, Some(token))
        } else {
            let down = self.draw_number(rng);
            let code = self.config.code(self.position + 1);
            let contents = spread(rng, rest, code, self.config.shape.payload());
            self.send(Item { link: None, channel: down, contents });
            (Some(down), None)
        };
        self.coming.accepted.push(Accepted { up, prefix, down, ephemeral, secrets: Some(Box::new(secrets)) });
        Ok(Install { batch, up, down, keys, token })
    }

    fn draw_number(&mut self, rng: &mut ChaCha20Rng) -> u32 {
        self.numbers.draw(rng, self.config.times.first(self.coming.batch + 1))
    }

    /// Keeps a setup for the next hop, and expects its ack.
    fn send(&mut self, item: Item) {
        self.coming.answers.insert(item.channel, Answer::new(ack_cells(self.config.shape)));
        self.coming.items.push(item);
    }

    /// Mix: takes in an ack cell from the next hop.
    ///
    /// # Errors
    /// The cell is refused.
    pub(crate) fn ack(
        &mut self,
        counters: &mut Counters,
        (channel, sub): (u32, u8),
        content: &[u8],
    ) -> Result<(), Refusal> {
        let shape = self.config.shape;
        if usize::from(sub) >= ack_cells(shape) || content.len() != shape.payload() {
            return Err(Refusal::UnexpectedAck);
        }
        self.check(CellKind::Ack)?;
        let answer = self.coming.answers.get_mut(&channel).ok_or(Refusal::UnexpectedAck)?;
        if !answer.put(sub, content) {
            counters.surplus_cells += 1;
        }
        Ok(())
    }

    /// The hop releases this round, or prepares it, at most one round before. Returns what has become of its own loops.
    /// Rounds may be left out (SPEC 9.5.8).
    pub(crate) fn advance(
        &mut self,
        rng: &mut ChaCha20Rng,
        counters: &mut Counters,
        direction: Direction,
        round: u64,
    ) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        match direction {
            Direction::Forward => {
                let before = self.forward;
                self.forward = before.max(round);
                outcomes.extend(self.follow(counters, before));
                let next = Phase::Setup(self.position + 1);
                self.coming.skipped[0] += self.skipped_of(next, before + 1..self.forward);
                // It is over if all its rounds were left out.
                let begin = || self.config.rounds_of(self.coming.batch, next).start;
                let begins = || (before + 1..=self.forward).contains(&begin());
                let is_due = || begins() || self.config.place_of(self.coming.batch, next, self.forward).is_some();
                if !self.is_exit() && self.coming.setups.is_none() && is_due() {
                    outcomes.extend(self.begin_setups(rng, counters));
                }
            }
            Direction::Backward => {
                let before = self.backward;
                self.backward = before.max(round);
                self.coming.skipped[1] += self.skipped_of(Phase::Ack(self.position + 1), before + 1..self.backward);
                let own = self.config.rounds_of(self.coming.batch, Phase::Ack(self.position)).start;
                if self.coming.acks.is_none() && self.backward >= own {
                    self.begin_acks(rng, counters);
                    outcomes.extend(self.finish_loops());
                }
            }
        }
        outcomes
    }

    /// How many of these rounds carry setups or acks of a phase of the next link. The exit has none.
    fn skipped_of(&self, phase: Phase, rounds: Range<u64>) -> u64 {
        if self.is_exit() {
            return 0;
        }
        let begin = self.config.rounds_of(self.coming.batch, phase).start;
        rounds.end.min(begin + self.config.times.used()).saturating_sub(begin.max(rounds.start))
    }

    /// Turns to the next batch when its setups may come. The last forward round was `before`.
    fn follow(&mut self, counters: &mut Counters, before: u64) -> Vec<Outcome> {
        let batch = self.config.coming(self.forward);
        if batch == self.coming.batch {
            return Vec::new();
        }
        self.close(counters);
        // It may have been stopped until now.
        let [setups, acks] = [Phase::Setup(self.position + 1), Phase::Ack(self.position + 1)];
        self.coming.skipped[0] += self.skipped_of(setups, before + 1..self.forward);
        self.coming.skipped[1] += self.skipped_of(acks, self.backward + 1..self.forward);
        let failed = self.finish_loops();
        // A hop that has skipped a batch has no channel in the running one.
        let running = if self.coming.batch + 1 == batch { &self.coming.accepted[..] } else { &[] };
        self.live = running.iter().map(|one| one.up).collect();
        let seats = seats(&self.config, self.position, running.iter().map(|one| (one.up.0, one.prefix)));
        self.coming = Coming::new(batch, seats);
        self.numbers.expire(self.forward);
        self.bundles.keep_from(self.config.interval_of(batch));
        failed
    }

    /// The setups of the coming batch are complete.
    fn close(&mut self, counters: &mut Counters) {
        (0..self.coming.seats.close()).for_each(|_| counters.refuse(Refusal::SetupIncomplete));
    }

    /// The next link's phase begins: each setup gets its place. After a stall for all rounds of the phase none is sent.
    fn begin_setups(&mut self, rng: &mut ChaCha20Rng, counters: &mut Counters) -> Vec<Outcome> {
        self.close(counters);
        let is_late = self.config.place_of(self.coming.batch, Phase::Setup(self.position + 1), self.forward).is_none();
        let failed = self.send_loops(rng, counters, is_late);
        let items = std::mem::take(&mut self.coming.items);
        let slots = self.config.setup_slots(self.position + 1);
        self.coming.setups = Some(Queue::ranked(CellKind::Setup, slots, items, rng));
        failed
    }

    /// The phase of acks on the previous link begins: each setup gets its ack, whatever has come from the next hop.
    fn begin_acks(&mut self, rng: &mut ChaCha20Rng, counters: &mut Counters) {
        self.close(counters);
        let (config, position) = (&self.config, self.position);
        let mut items = Vec::with_capacity(self.coming.accepted.len());
        for one in &mut self.coming.accepted {
            let answer = one.down.and_then(|down| self.coming.answers.remove(&down));
            let answer = answer.unwrap_or_else(|| Answer::new(ack_cells(config.shape)));
            let mut contents = answer.fill(config.shape.payload(), rng);
            let secrets = one.secrets.take().expect("an ack is made once");
            for (sub, content) in (0..).zip(&mut contents) {
                if position == config.shape.hops() {
                    begin_ack(config.shape, sub, &one.ephemeral, &secrets, content);
                } else {
                    cover_ack(config.shape, position, sub, &one.ephemeral, &secrets, content);
                }
            }
            items.push(Item { link: Some(one.up.0), channel: one.up.1, contents });
        }
        self.coming.acks = Some(match position {
            1 => Queue::of_entries(items),
            _ => Queue::ranked(CellKind::Ack, config.ack_slots(position), items, rng),
        });
    }

    /// What the setup or ack slots of a round carry: forward those to the next hop, backward those to the previous one
    /// or, at Mix 1, to each entry link. Slots without a cell here carry dummies, see [`PacedConfig::setup_slots`] and
    /// [`PacedConfig::ack_slots`]; an entry link has one. Call [`PacedHop::advance`] with the round first.
    pub(crate) fn cells(&self, direction: Direction, round: u64) -> Vec<Placed<'_>> {
        let (queue, phase) = match direction {
            Direction::Forward if self.is_exit() => return Vec::new(),
            Direction::Forward => (&self.coming.setups, Phase::Setup(self.position + 1)),
            Direction::Backward => (&self.coming.acks, Phase::Ack(self.position)),
        };
        let at = self.config.place_of(self.coming.batch, phase, round);
        at.zip(queue.as_ref()).map(|(at, queue)| queue.cells(at)).unwrap_or_default()
    }
}

/// The seats of a batch. `running` are the links with a channel in the batch before, and their prefixes.
fn seats(config: &PacedConfig, position: usize, running: impl Iterator<Item = (LinkId, Option<Prefix>)>) -> Seats {
    match position {
        1 => Seats::of_mix_1(config.seats(1), running),
        _ => Seats::of_hop(config.seats(position)),
    }
}
