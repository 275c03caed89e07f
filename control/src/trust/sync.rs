//! How descriptors, records and signatures reach everyone: neighbours tell each other what they hold,
//! and send what the other lacks until it is there (SPEC 7.8).
//!
//! Between hops both ends send and ask. An entry only asks, and Mix 1 answers within a budget, for
//! entries are strangers. Cells may be lost: whatever is sent is sent again until the other side's ask
//! shows it.

mod answers;
mod items;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use wire::ids::LinkId;

use self::answers::{ANSWER_CELLS, Answers};
pub(super) use self::items::best;
use self::items::{Item, Outcome, intervals, lacking, own_ask, take_item, theirs, unknown_records};
use super::Malformed;
use super::encoding::sha256;
use super::message::{ASK, Ask, Held, ItemKind, PART, Reassembly, Taken as Piece, cells, cut};
use super::view::View;
use crate::rate::{Bucket, Rate};

/// What is unanswered is sent again after this.
const AGAIN: Duration = Duration::from_millis(250);
/// After so many times it is sent once in a fifth of an interval only.
const QUICK_TRIES: u32 = 8;
/// Changes within this time leave together.
const GATHER: Duration = Duration::from_millis(20);
/// Between two asks that only say what has arrived.
const ACKNOWLEDGE: Duration = Duration::from_millis(50);
/// Signature checks per link.
const VERIFICATIONS: Rate = Rate { per_second: 50, burst: 50 };
/// Asks of a neighbouring hop. An honest one acknowledges every 50 ms, at most four intervals each time.
const HOP_ASKS: Rate = Rate { per_second: 100, burst: 100 };
/// Cells that a neighbouring hop gets. The burst is all that it can lack of the longest chain, in class S: three
/// descriptors of each hop, its records of two epochs, the signatures of three intervals, and asks.
const HOP_CELLS: Rate = Rate { per_second: 400, burst: 400 };
/// A clock that differs by more from a neighbour's is reported.
pub(super) const OFFSET_MAX_MS: u64 = 2000;
/// Time for which clocks are ignored after a pause. By then even a busy host has read what waited in its sockets.
const CLOCKS_LATE_FOR: Duration = Duration::from_secs(1);
/// Most cells that one call sends: the answers to entries, and what two neighbours get.
pub(crate) const CELLS_MAX: usize = (ANSWER_CELLS.burst + 2 * HOP_CELLS.burst) as usize;
/// Asks of a neighbouring hop that are remembered, each for another interval.
const ASKS_MAX: usize = 4;

/// The other end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A neighbouring hop, of a hop.
    Hop,
    /// An entry, of Mix 1: its address, or None if it is exempt from what holds for prefixes (SPEC 4.11).
    Entry(Option<IpAddr>),
    /// Mix 1, of an entry.
    FirstHop,
}

/// Something of interest that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A hop, by position, has another newest descriptor.
    Descriptor(usize),
    /// A descriptor of a hop has arrived that is not its newest.
    Certificate(usize),
    /// A record of a hop has arrived.
    Record(usize),
    /// Signatures for this interval have arrived.
    Signatures(u64),
    /// A hop has signed two bundles of one interval.
    SignedTwice(usize, u64),
}

/// Why the content of a cell was refused. Counted, never answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    Malformed(Malformed),
    /// An entry sent something other than an ask, or asked for no answer.
    NotForEntries,
    /// More than the link may cause.
    RateLimited,
    /// An item was refused. Its sender may be honest: what it needs may not be here yet.
    Item,
}

impl From<Malformed> for Refused {
    fn from(why: Malformed) -> Refused {
        Refused::Malformed(why)
    }
}

/// An item that was sent and is not known to have arrived.
struct Sent {
    kind: ItemKind,
    id: [u8; 32],
    tries: u32,
    again_at: Duration,
}

/// A link to a neighbouring hop, or of an entry to Mix 1.
struct Link {
    is_first_hop: bool,
    /// Bytes of content of the cells that this node sends on the link.
    content_len: usize,
    reassembly: Reassembly,
    verifications: Bucket,
    /// Asks of this neighbouring hop.
    hop_asks: Bucket,
    /// Cells that this neighbouring hop gets.
    cells: Bucket,
    /// The latest asks, one for each interval, the newest last.
    theirs: VecDeque<Ask>,
    sent: Vec<Sent>,
    /// When this node looks again at what the other side lacks.
    look_at: Duration,
    /// When an ask is due, and how many were sent since the last cause.
    ask_at: Duration,
    asks: u32,
    /// When an ask is due that only says what has arrived.
    acknowledge_at: Option<Duration>,
    /// The other side's clock minus this node's, in ms.
    offset_ms: Option<i64>,
    /// Items that arrived before what they need. The oldest first.
    early: VecDeque<(ItemKind, Vec<u8>)>,
    /// The latest signatures name records of these hops that are not held, or their latest records were refused: a bit
    /// for each. The other side may believe that they are held, or their descriptors: an ask shows few bytes of each.
    unknown: u8,
}

/// A bundle that an entry asks for until it is complete.
struct Wanted {
    ask_at: Duration,
    /// Asks since the last cause.
    asks: u32,
}

/// The links over which this node's trust is carried.
pub struct Sync {
    hops: usize,
    /// Those of entries are apart: there are many of them.
    links: BTreeMap<LinkId, Link>,
    answers: Answers,
    /// A fifth of an interval, at least a second.
    slow: Duration,
    /// The intervals whose bundles an entry wants.
    wanted: BTreeMap<u64, Wanted>,
    /// Clocks that arrive before this time may have waited here, and do not count.
    clocks_count_from: Duration,
    /// Asks and parts wait for slots of a paced class, so the clocks in them are late. Its clock cells count instead.
    is_paced: bool,
}

/// A cell's content to send on a link at once, past the pool.
pub type Outgoing = (LinkId, Vec<u8>);

impl Sync {
    /// `is_paced`: the links are those of a paced class.
    pub fn new(view: &View, is_paced: bool, now: Duration) -> Sync {
        let slow = Duration::from_millis(u64::from(view.terms().interval_s) * 200).max(Duration::from_secs(1));
        Sync {
            hops: view.hops(),
            links: BTreeMap::new(),
            answers: Answers::new(now),
            slow,
            wanted: BTreeMap::new(),
            clocks_count_from: now,
            is_paced,
        }
    }

    /// A link is up.
    pub fn link_up(&mut self, id: LinkId, peer: Peer, content_len: usize, now: Duration) {
        let is_first_hop = match peer {
            Peer::Entry(address) => return self.answers.link_up(id, address, content_len, now),
            Peer::Hop => false,
            Peer::FirstHop => true,
        };
        let link = Link {
            is_first_hop,
            content_len,
            reassembly: Reassembly::new(self.hops),
            verifications: Bucket::new(VERIFICATIONS, now),
            hop_asks: Bucket::new(HOP_ASKS, now),
            cells: Bucket::new(HOP_CELLS, now),
            theirs: VecDeque::new(),
            sent: Vec::new(),
            look_at: Duration::MAX,
            ask_at: if is_first_hop { Duration::MAX } else { now },
            asks: 0,
            acknowledge_at: None,
            offset_ms: None,
            early: VecDeque::new(),
            unknown: 0,
        };
        self.links.insert(id, link);
        if is_first_hop {
            self.wanted.values_mut().for_each(|wanted| *wanted = Wanted { ask_at: now, asks: 0 });
        }
    }

    pub fn link_down(&mut self, id: LinkId) {
        self.links.remove(&id);
        self.answers.link_down(id);
    }

    /// Something has changed that neighbours may lack.
    pub fn changed(&mut self, now: Duration) {
        for link in self.links.values_mut().filter(|link| !link.is_first_hop) {
            link.look_at = link.look_at.min(now + GATHER);
        }
        self.answers.look_at(now + GATHER);
    }

    /// This node's clock was set: what is known of the neighbours' clocks is out of date.
    pub fn forget_offsets(&mut self) {
        self.links.values_mut().for_each(|link| link.offset_ms = None);
    }

    /// This node did not run until now: clocks in messages that waited for it are late.
    pub fn stalled(&mut self, now: Duration) {
        self.clocks_count_from = now + CLOCKS_LATE_FOR;
    }

    /// Something is missing: hops ask now, and again until it is there.
    pub fn ask_soon(&mut self, now: Duration) {
        for link in self.links.values_mut() {
            (link.ask_at, link.asks) = (now, 0);
        }
    }

    /// Entry: asks Mix 1, from this time on, until the bundle of this interval is complete.
    pub fn want(&mut self, interval: u64, from: Duration) {
        let wanted = self.wanted.entry(interval).or_insert(Wanted { ask_at: from, asks: 0 });
        if wanted.asks == 0 {
            wanted.ask_at = wanted.ask_at.min(from);
        }
    }

    /// Entry: wants the bundles of no other intervals.
    pub fn want_only(&mut self, intervals: &[u64]) {
        self.wanted.retain(|interval, _| intervals.contains(interval));
    }

    /// The clock cells of a paced link show that the neighbour's clock is so much ahead.
    pub fn clock_compared(&mut self, id: LinkId, offset_ms: i64) {
        if let Some(link) = self.links.get_mut(&id).filter(|_| self.is_paced) {
            link.offset_ms = Some(offset_ms);
        }
    }

    /// Offsets of the neighbours' clocks from this node's, in ms, as far as they are known.
    pub fn offsets_ms(&self) -> impl Iterator<Item = i64> {
        self.links.values().filter_map(|link| link.offset_ms)
    }

    /// True if all neighbouring hops, and at least one, have this or a higher revision of a hop's descriptor.
    pub fn neighbours_have(&self, hop: usize, revision: u64) -> bool {
        let mut neighbours = self.links.values().filter(|link| !link.is_first_hop).peekable();
        let has = |link: &Link| link.theirs.iter().any(|ask| ask.held[hop - 1].revision >= revision);
        neighbours.peek().is_some() && neighbours.all(has)
    }

    /// Takes in the content of an ask or part cell.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn take(
        &mut self,
        view: &mut View,
        now: Duration,
        wall_ms: u64,
        id: LinkId,
        content: &[u8],
        out: &mut Vec<Outgoing>,
    ) -> Result<Vec<News>, Refused> {
        let Some(link) = self.links.get_mut(&id) else {
            return self.answers.take(view, (now, wall_ms), id, content, out).map(|()| Vec::new());
        };
        let is_clock_true = now >= self.clocks_count_from && !self.is_paced;
        match content[0] {
            ASK if link.is_first_hop => Err(Refused::NotForEntries),
            ASK => {
                if !link.hop_asks.take(now) {
                    return Err(Refused::RateLimited);
                }
                let ask = Ask::read(content, self.hops)?;
                if is_clock_true {
                    link.offset_ms = Some(offset(ask.clock_ms, wall_ms));
                }
                if ask.answer {
                    link.acknowledge_at = Some(link.acknowledge_at.unwrap_or(now).min(now));
                }
                link.theirs.retain(|other| other.interval != ask.interval);
                if link.theirs.len() >= ASKS_MAX {
                    link.theirs.pop_front();
                }
                link.theirs.push_back(ask);
                link.look_at = now;
                Ok(Vec::new())
            }
            PART => match link.reassembly.take(now, content, self.hops)? {
                Piece::Incomplete => Ok(Vec::new()),
                Piece::Complete(kind, bytes) => {
                    if !link.is_first_hop {
                        let due = now + ACKNOWLEDGE;
                        link.acknowledge_at = Some(link.acknowledge_at.map_or(due, |at| at.min(due)));
                    }
                    if let ItemKind::Clock = kind {
                        let clock: [u8; 8] = bytes.try_into().map_err(|_| Malformed::Field("a clock has 8 bytes"))?;
                        if is_clock_true {
                            link.offset_ms = Some(offset(u64::from_be_bytes(clock), wall_ms));
                        }
                        return Ok(Vec::new());
                    }
                    if !link.verifications.take(now) {
                        return Err(Refused::RateLimited);
                    }
                    if let ItemKind::Record(hop) = kind {
                        link.unknown &= !(1 << (hop - 1));
                    }
                    let outcome = take_item(view, wall_ms, kind, &bytes, self.hops);
                    if let (ItemKind::Record(hop), Err(_) | Ok(Outcome::Early)) = (kind, &outcome) {
                        link.unknown |= 1 << (hop - 1);
                    }
                    let mut news = match outcome? {
                        Outcome::Early => {
                            link.unknown |= unknown_records(view, kind, &bytes, self.hops);
                            link.keep_early(kind, bytes, self.hops + 1);
                            return Ok(Vec::new());
                        }
                        Outcome::Known => return Ok(Vec::new()),
                        Outcome::News(news) => vec![news],
                    };
                    // What it was needed for may have arrived before it, and so may what that was needed for.
                    let mut before = 0;
                    while std::mem::replace(&mut before, news.len()) < news.len() {
                        for (kind, bytes) in std::mem::take(&mut link.early) {
                            match take_item(view, wall_ms, kind, &bytes, self.hops) {
                                Ok(Outcome::Early) => link.early.push_back((kind, bytes)),
                                Ok(Outcome::News(more)) => {
                                    if let News::Record(hop) = more {
                                        link.unknown &= !(1 << (hop - 1));
                                    }
                                    news.push(more);
                                }
                                Ok(Outcome::Known) | Err(_) => {}
                            }
                        }
                    }
                    self.changed(now);
                    Ok(news)
                }
            },
            _ => Err(Refused::Item),
        }
    }

    /// Sends what is due.
    pub fn run(&mut self, view: &View, now: Duration, wall_ms: u64, out: &mut Vec<Outgoing>) {
        self.answers.run(view, (now, wall_ms), out);

        let intervals = intervals(view, wall_ms);
        for (id, link) in self.links.iter_mut().filter(|(_, link)| !link.is_first_hop) {
            link.ask(view, *id, &intervals, (now, wall_ms), self.slow, out);
            if link.look_at <= now {
                let lacking = intervals.iter().flat_map(|n| {
                    // Before the other side has said what it holds, this node asks and sends nothing.
                    theirs(view, link, *n).map_or(Vec::new(), |theirs| lacking(view, *n, &theirs))
                });
                let items: Vec<Item> = lacking.collect();
                link.look_at = Duration::MAX;
                send(link, *id, items, now, self.slow, out);
            }
        }
        self.wanted.retain(|interval, _| view.complete(*interval).is_none());
        if !self.links.values().any(|link| link.is_first_hop) {
            return;
        }
        for (interval, wanted) in self.wanted.iter_mut().filter(|(_, wanted)| wanted.ask_at <= now) {
            for (id, link) in self.links.iter_mut().filter(|(_, link)| link.is_first_hop) {
                // Its clock is nobody's business: it would be recognised by it.
                let mut ask = own_ask(view, *interval, true, 0);
                link.show_unknown(&mut ask);
                link.unknown = 0;
                out.push((*id, ask.to_bytes()));
            }
            wanted.ask_at = now + pace(wanted.asks, self.slow);
            wanted.asks += 1;
        }
    }

    /// When [`Sync::run`] has something to do next.
    pub fn next_wake(&self) -> Duration {
        let of = |link: &Link| link.look_at.min(link.ask_at).min(link.acknowledge_at.unwrap_or(Duration::MAX));
        // Without a link nobody is asked.
        let can_ask = self.links.values().any(|link| link.is_first_hop);
        let asks = self.wanted.values().filter(|_| can_ask).map(|wanted| wanted.ask_at);
        self.links.values().map(of).chain(asks).min().unwrap_or(Duration::MAX).min(self.answers.next_wake())
    }
}

fn pace(tries: u32, slow: Duration) -> Duration {
    if tries < QUICK_TRIES { AGAIN } else { slow }
}

fn offset(theirs_ms: u64, wall_ms: u64) -> i64 {
    let ms = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    ms(theirs_ms).saturating_sub(ms(wall_ms))
}

/// Sends new items at once, and others again when their time has come, as far as the link's budget goes.
fn send(link: &mut Link, id: LinkId, items: Vec<Item>, now: Duration, slow: Duration, out: &mut Vec<Outgoing>) {
    let mut before = std::mem::take(&mut link.sent);
    for item in items {
        let hash = sha256(&[&item.bytes]);
        let is_same = |sent: &Sent| sent.kind == item.kind && sent.id == hash;
        // Intervals of one epoch lack the same records.
        if link.sent.iter().any(is_same) {
            continue;
        }
        let mut sent = match before.iter().position(is_same) {
            Some(at) => before.swap_remove(at),
            None => Sent { kind: item.kind, id: hash, tries: 0, again_at: now },
        };
        if sent.again_at <= now {
            if link.cells.take_many(now, cells(&item.bytes, link.content_len) as u32) {
                out.extend(cut(item.kind, &item.bytes, link.content_len).into_iter().map(|content| (id, content)));
                sent.again_at = now + pace(sent.tries, slow);
                sent.tries += 1;
            } else {
                sent.again_at = now + AGAIN;
            }
        }
        link.look_at = link.look_at.min(sent.again_at);
        link.sent.push(sent);
    }
    // Asks that show an item and then do not show it have it sent no sooner.
    link.sent.extend(before.into_iter().filter(|sent| sent.again_at > now));
}

impl Link {
    /// Sends the asks that are due to a neighbouring hop.
    fn ask(
        &mut self,
        view: &View,
        id: LinkId,
        intervals: &[u64],
        (now, wall_ms): (Duration, u64),
        slow: Duration,
        out: &mut Vec<Outgoing>,
    ) {
        let asks = self.ask_at <= now;
        let acknowledges = self.acknowledge_at.is_some_and(|at| at <= now);
        if !asks && !acknowledges {
            return;
        }
        if !self.cells.take_many(now, intervals.len() as u32) {
            let later = now + ACKNOWLEDGE;
            self.ask_at = if asks { later } else { self.ask_at };
            self.acknowledge_at = self.acknowledge_at.map(|at| at.max(later));
            return;
        }
        for (i, interval) in intervals.iter().enumerate() {
            let mut ask = own_ask(view, *interval, asks && i == 0, wall_ms);
            self.show_unknown(&mut ask);
            out.push((id, ask.to_bytes()));
        }
        self.acknowledge_at = None;
        self.unknown = 0;
        if asks {
            let is_signed = view.complete(view.times().signable_at(wall_ms)).is_some();
            let missing = !is_signed || self.theirs.is_empty() || self.offset_ms.is_none();
            self.ask_at = if missing { now + pace(self.asks, slow) } else { Duration::MAX };
            self.asks += 1;
        }
    }

    /// Says of the hops whose records are unknown that this node holds nothing of them.
    fn show_unknown(&self, ask: &mut Ask) {
        for (i, held) in ask.held.iter_mut().enumerate() {
            if self.unknown >> i & 1 == 1 {
                *held = Held::default();
            }
        }
    }

    /// Keeps an item until something else has arrived: at most `most` of them, of each kind the last one.
    fn keep_early(&mut self, kind: ItemKind, bytes: Vec<u8>, most: usize) {
        self.early.retain(|(other, _)| *other != kind);
        if self.early.len() >= most {
            self.early.pop_front();
        }
        self.early.push_back((kind, bytes));
    }
}
