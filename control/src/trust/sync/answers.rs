//! Mix 1's answers to its entries: what they lack of a bundle, within a budget, for entries are strangers (SPEC 7.8.6,
//! 7.8.7).

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use wire::ids::LinkId;

use super::super::bundle;
use super::super::message::{ASK, Ask, ItemKind, PART, cells, cut};
use super::super::view::{Bundle, View};
use super::items::{Item, descriptor_item, lacks_signatures, signatures_item};
use super::{Outgoing, Refused, VERIFICATIONS};
use crate::prefix::Prefix;
use crate::rate::{Bucket, Rate};

/// Cells with which Mix 1 answers all its entries.
pub(super) const ANSWER_CELLS: Rate = Rate { per_second: 5000, burst: 5000 };
/// Of these, those for one entry, and most of one answer. What is more follows the entry's next ask.
const LINK_CELLS: Rate = Rate { per_second: 100, burst: 100 };
/// Links that have been up for no longer than this have a queue of their own for their first cells, as many as
/// [`LINK_CELLS`] has at once: a new user needs a bundle. One link of a prefix is in it at a time, of all classes.
const NEW_FOR: Duration = Duration::from_secs(5);
/// Answers that found the budget of all entries used up are tried again after this.
const ANSWER_AGAIN: Duration = Duration::from_millis(50);

/// A link of an entry.
struct Link {
    /// None if it is exempt.
    prefix: Option<Prefix>,
    /// Bytes of content of the cells that this node sends on the link.
    content_len: usize,
    asks: Bucket,
    cells: Bucket,
    up_since: Duration,
    /// Cells that it has been sent.
    sent: u32,
    /// The ask that waits for its bundle, or in a queue.
    waiting: Option<Ask>,
    is_queued: bool,
    /// The interval for which an older bundle was sent.
    answered_old: Option<u64>,
}

impl Link {
    fn is_new(&self, now: Duration) -> bool {
        now <= self.up_since + NEW_FOR && self.sent < LINK_CELLS.burst
    }
}

/// Entries whose answers the budget of all had no room for: new links and others in turn, each in their order.
#[derive(Default)]
struct Queue {
    new: VecDeque<(LinkId, Option<Prefix>)>,
    /// Those that have a link among the new ones.
    prefixes: HashSet<Prefix>,
    others: VecDeque<LinkId>,
    is_turn_of_others: bool,
}

impl Queue {
    /// True if a link, new or not, has to queue.
    fn must_wait(&self, is_new: bool) -> bool {
        !self.new.is_empty() || !is_new && !self.others.is_empty()
    }

    /// Appends a link to the new ones, unless another one of its prefix is there, or to the others.
    fn push(&mut self, id: LinkId, prefix: Option<Prefix>, is_new: bool) {
        if is_new && prefix.is_none_or(|prefix| self.prefixes.insert(prefix)) {
            self.new.push_back((id, prefix));
        } else {
            self.others.push_back(id);
        }
    }

    fn are_others_next(&self) -> bool {
        self.new.is_empty() || self.is_turn_of_others && !self.others.is_empty()
    }

    fn front(&self) -> Option<LinkId> {
        if self.are_others_next() { self.others.front().copied() } else { self.new.front().map(|(id, _)| *id) }
    }

    fn pop(&mut self) {
        if self.are_others_next() {
            self.others.pop_front();
        } else if let Some((_, Some(prefix))) = self.new.pop_front() {
            self.prefixes.remove(&prefix);
        }
        self.is_turn_of_others = !self.is_turn_of_others;
    }
}

/// The links of entries, and what they wait for. An ask takes as long however many there are.
pub(super) struct Answers {
    links: BTreeMap<LinkId, Link>,
    cells: Bucket,
    /// When bundles may be complete that entries wait for.
    look_at: Duration,
    queue: Queue,
    /// When the queue is looked at again.
    queue_at: Duration,
}

impl Answers {
    pub(super) fn new(now: Duration) -> Answers {
        Answers {
            links: BTreeMap::new(),
            cells: Bucket::new(ANSWER_CELLS, now),
            look_at: Duration::MAX,
            queue: Queue::default(),
            queue_at: Duration::MAX,
        }
    }

    /// `address` is None for an entry that is exempt (SPEC 4.11).
    pub(super) fn link_up(&mut self, id: LinkId, address: Option<IpAddr>, content_len: usize, now: Duration) {
        let asks = Bucket::new(VERIFICATIONS, now);
        let cells = Bucket::new(LINK_CELLS, now);
        let link = Link {
            prefix: address.map(Prefix::of),
            content_len,
            asks,
            cells,
            up_since: now,
            sent: 0,
            waiting: None,
            is_queued: false,
            answered_old: None,
        };
        self.links.insert(id, link);
    }

    pub(super) fn link_down(&mut self, id: LinkId) {
        self.links.remove(&id);
    }

    /// Something has changed: it looks for bundles that entries wait for.
    pub(super) fn look_at(&mut self, at: Duration) {
        if !self.links.is_empty() {
            self.look_at = self.look_at.min(at);
        }
    }

    pub(super) fn next_wake(&self) -> Duration {
        self.look_at.min(self.queue_at)
    }

    /// Takes in the content of an ask or part cell of an entry.
    pub(super) fn take(
        &mut self,
        view: &View,
        clocks: (Duration, u64),
        id: LinkId,
        content: &[u8],
        out: &mut Vec<Outgoing>,
    ) -> Result<(), Refused> {
        let link = self.links.get_mut(&id).ok_or(Refused::Item)?;
        match content[0] {
            ASK => {
                let ask = Ask::read(content, view.hops())?;
                if !ask.answer || ask.clock_ms != 0 {
                    return Err(Refused::NotForEntries);
                }
                if !link.asks.take(clocks.0) {
                    link.waiting = None;
                    return Err(Refused::RateLimited);
                }
                self.answer(view, clocks, id, ask, false, out)
            }
            PART => Err(Refused::NotForEntries),
            _ => Err(Refused::Item),
        }
    }

    /// Answers an entry with what it lacks of its interval's bundle, or keeps its ask until that is complete, or until
    /// it is its turn. Those who wait are queued, so that nobody is served more often by asking more often.
    fn answer(
        &mut self,
        view: &View,
        (now, wall_ms): (Duration, u64),
        id: LinkId,
        ask: Ask,
        is_its_turn: bool,
        out: &mut Vec<Outgoing>,
    ) -> Result<(), Refused> {
        let Some(link) = self.links.get_mut(&id) else { return Err(Refused::Item) };
        let mut items = vec![Item { kind: ItemKind::Clock, bytes: wall_ms.to_be_bytes().to_vec() }];
        let mut is_old = false;
        match view.complete(ask.interval) {
            Some(bundle) => {
                items.extend(missing_of(view, bundle, &ask));
                link.waiting = None;
            }
            None => {
                let old = view.newest_complete().filter(|_| link.answered_old != Some(ask.interval));
                if let Some(old) = old {
                    items.extend(missing_of(view, old, &ask));
                    is_old = true;
                }
                link.waiting = Some(ask.clone());
            }
        }
        let (mut count, mut fitting) = (0, 0);
        for item in &items {
            let more = cells(&item.bytes, link.content_len) as u32;
            if count + more > LINK_CELLS.burst {
                break;
            }
            (count, fitting) = (count + more, fitting + 1);
        }
        let is_new = link.is_new(now);
        let waits = !is_its_turn && self.queue.must_wait(is_new);
        if link.cells.tokens(now) < count {
            link.waiting = None;
            return Err(Refused::RateLimited);
        }
        if waits || !self.cells.take_many(now, count) {
            link.waiting = Some(ask);
            if !std::mem::replace(&mut link.is_queued, true) {
                self.queue.push(id, link.prefix, is_new);
            }
            self.queue_at = self.queue_at.min(now + ANSWER_AGAIN);
            // It is answered in its turn.
            return Ok(());
        }
        link.cells.take_many(now, count);
        link.sent = link.sent.saturating_add(count);
        if is_old {
            link.answered_old = Some(ask.interval);
        }
        let contents = items[..fitting].iter().flat_map(|item| cut(item.kind, &item.bytes, link.content_len));
        out.extend(contents.map(|content| (id, content)));
        Ok(())
    }

    /// Answers those whose bundle is complete now, and those whose turn it is.
    pub(super) fn run(&mut self, view: &View, clocks: (Duration, u64), out: &mut Vec<Outgoing>) {
        if self.look_at <= clocks.0 {
            self.look_at = Duration::MAX;
            let is_ready = |ask: &mut Ask| view.complete(ask.interval).is_some();
            let ready = self.links.iter_mut().filter_map(|(id, link)| Some((*id, link.waiting.take_if(is_ready)?)));
            for (id, ask) in ready.collect::<Vec<_>>() {
                let _ = self.answer(view, clocks, id, ask, false, out);
            }
        }
        self.serve_queue(view, clocks, out);
    }

    /// Answers those who wait for the budget: new links and others in turn, each in their order.
    fn serve_queue(&mut self, view: &View, clocks: (Duration, u64), out: &mut Vec<Outgoing>) {
        if self.queue_at > clocks.0 {
            return;
        }
        self.queue_at = Duration::MAX;
        while let Some(id) = self.queue.front() {
            // Its link may be gone, or its ask answered, given up, or for another bundle that is not complete.
            let is_ready = |ask: &mut Ask| view.complete(ask.interval).is_some();
            if let Some(ask) = self.links.get_mut(&id).and_then(|link| link.waiting.take_if(is_ready)) {
                let _ = self.answer(view, clocks, id, ask, true, out);
                if self.queue_at != Duration::MAX {
                    return;
                }
            }
            self.queue.pop();
            if let Some(link) = self.links.get_mut(&id) {
                link.is_queued = false;
            }
        }
    }
}

/// What an entry lacks of a bundle, and descriptors that are newer than its own.
fn missing_of(view: &View, bundle: &Bundle, ask: &Ask) -> Vec<Item> {
    let mut items = Vec::new();
    let mut records = Vec::new();
    for (i, (record, certificate)) in bundle.records.iter().zip(&bundle.descriptors).enumerate() {
        let held = ask.held[i];
        let has_record = bundle::tag(record)[..4] == held.record;
        let newest = view.descriptor(i + 1).filter(|newest| newest.short_rank() > held.rank());
        if let Some(newest) = newest {
            items.push(descriptor_item(i + 1, newest));
        }
        let is_sent = newest.is_some_and(|newest| Arc::ptr_eq(newest, certificate));
        if !has_record {
            if certificate.short_rank() != held.rank() && !is_sent {
                items.push(descriptor_item(i + 1, certificate));
            }
            records.push(Item { kind: ItemKind::Record(i as u8 + 1), bytes: record.travelling().to_vec() });
        }
    }
    items.append(&mut records);
    if lacks_signatures(&bundle.signatures, ask) {
        items.push(signatures_item(&bundle.signatures));
    }
    items
}
