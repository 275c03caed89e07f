//! Initiates handshakes with the next hop, repeats them, and accepts responses (SPEC 4.4, 4.6, 7.3.7).
//!
//! The next hop may have several addresses and, while keys are replaced, both ends several statics. The way that worked
//! last is tried first, then all others, one message 1 each.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::{Rng, RngExt};
use wire::handshake::{IK_HALF_LEN, NK_HALF_LEN};
use wire::ids::Side;
use zeroize::Zeroizing;

use super::responder::{CHALLENGE_HEAD, CHALLENGE_LEN};
use super::{Links, keepalive, tai64n};
use crate::config::{Config, Timing};
use crate::context::Context;
use crate::cookie::{self, Answer};
use crate::counters::Refusal;
use crate::datagram::{self, Mac1Key, MessageKind, Parsed};
use crate::io::{Event, Output};
use crate::noise::{InitiatorState, Pattern, Terms};

/// Messages 1 that may wait for a response at once.
pub(super) const PENDING_MAX: usize = 4;
/// A message 1 waits this long for its response.
const RESPONSE_WAIT: Duration = Duration::from_secs(5);
/// Forged messages 2, and cookies, that cost work, for each message 1.
const FORGED_MAX: usize = 16;
/// For this long after its start a node does not report a missing next hop: the nodes of a chain start in any order.
const STARTING: Duration = Duration::from_secs(1);

/// The names of a next hop that does not respond are resolved again after this.
const RESOLVE_AGAIN: Duration = Duration::from_secs(10);

/// A message 1 that waits for its response.
struct Pending {
    index: u32,
    /// NK without a resumption token: the responder makes a new link for it.
    is_fresh: bool,
    /// Another fresh one was answered first, so the response to this one changes nothing.
    is_overtaken: bool,
    sent_at: Duration,
    state: InitiatorState,
    key: Mac1Key,
    way: Way,
    /// As they were sent.
    halves: [Vec<u8>; 2],
    /// Cookies for which the halves were sent again: whoever sees them can forge one.
    cookies: Vec<[u8; 16]>,
    /// It answers a challenge, or has brought one.
    is_challenged: bool,
    /// Messages 2 that did not authenticate.
    forged: usize,
}

/// One way to reach the next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    address: SocketAddr,
    /// The next hop's Noise static.
    theirs: [u8; 32],
    /// This node's; none at an entry.
    own: Option<[u8; 32]>,
}

/// Why a new handshake is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    NoLink,
    Age,
    Silence,
}

impl Cause {
    /// The wait for the response. `retry` grows from attempt to attempt.
    fn wait(self, timing: &Timing, retry: Duration) -> Duration {
        match self {
            Cause::NoLink => retry,
            Cause::Silence => timing.handshake_retry_max,
            // A renewal has time. If it were repeated before its response arrives, the responder would
            // overwrite the keys that the response brings, and cells would be lost.
            Cause::Age => {
                ((timing.expire_after - timing.renew_after) / 8).min(RESPONSE_WAIT).max(timing.handshake_retry)
            }
        }
    }
}

/// The initiator's side of the link to the next hop.
pub(super) struct Initiator {
    terms: Terms,
    /// The way of the last response.
    worked: Option<Way>,
    /// Messages 1 since the last response.
    tries: usize,
    /// The names of the next hop are not resolved before this.
    resolve_at: Duration,
    /// Oldest first.
    pending: VecDeque<Pending>,
    /// Wait for the next response while there is no link; grows with every attempt.
    retry: Duration,
    /// The time at which the link was lost or the node started. Not used while there is a link.
    pub(super) unlinked_since: Duration,
    /// No new message 1 before this time.
    pub(super) due: Duration,
    /// Last timestamp sent, ns since 1970. Each is greater, even if the wall clock steps back.
    last_timestamp: u128,
}

impl Initiator {
    /// None at the exit.
    pub(super) fn new(config: &Config, chain: &[u8; 32], now: Duration) -> Option<Initiator> {
        (config.position < config.shape.hops()).then(|| {
            let pattern = if config.is_entry() { Pattern::Nk } else { Pattern::Ik };
            let link = (config.position + 1, config.class());
            Initiator {
                terms: Terms::new(pattern, chain, link, config.psk_down.as_ref()),
                worked: None,
                tries: 0,
                resolve_at: now,
                pending: VecDeque::new(),
                retry: config.timing.handshake_retry,
                unlinked_since: now,
                due: now,
                last_timestamp: 0,
            }
        })
    }

    /// The link is gone. An entry forgets the route that worked, or Mix 1 could recognise its next link (SPEC 7.3.7).
    pub(super) fn link_ended(&mut self, cx: &mut Context) {
        if self.terms.pattern == Pattern::Nk {
            (self.worked, self.tries, self.resolve_at) = (None, 0, Duration::ZERO);
            cx.contacts.resolved(Vec::new());
        }
    }

    /// TAI64N of the wall clock, or of one nanosecond after the last if the clock has not advanced.
    fn next_timestamp(&mut self, wall: SystemTime) -> [u8; 12] {
        let unix = wall.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.last_timestamp = unix.as_nanos().max(self.last_timestamp + 1);
        tai64n(self.last_timestamp)
    }

    /// All ways, in the order in which they are tried.
    fn ways(&self, cx: &Context) -> Vec<Way> {
        let has = |own: &&[u8; 32]| cx.statics.iter().any(|one| one.public == **own);
        let own: Vec<Option<[u8; 32]>> = match self.terms.pattern {
            Pattern::Nk => vec![None],
            Pattern::Ik => cx.contacts.own.iter().filter(has).copied().map(Some).collect(),
        };
        let mut ways = Vec::new();
        for theirs in &cx.contacts.next {
            for own in &own {
                let at = |address| Way { address, theirs: *theirs, own: *own };
                ways.extend(cx.contacts.all_addresses().map(at));
            }
        }
        if let Some(worked) = self.worked.and_then(|worked| ways.iter().position(|way| *way == worked)) {
            ways[..=worked].rotate_right(1);
        }
        ways
    }

    /// Asks for the addresses of the next hop's names, if that is due.
    fn resolve(&mut self, cx: &mut Context, now: Duration) {
        if self.resolve_at <= now && !cx.contacts.names.is_empty() {
            self.resolve_at = now + RESOLVE_AGAIN;
            let names = cx.contacts.names.clone();
            cx.out.push_back(Output::Resolve(names));
        }
    }

    /// Sets the time of the next attempt.
    fn schedule(&mut self, cx: &mut Context, now: Duration, cause: Cause, ways: usize) {
        let timing = &cx.config.timing;
        if ways > 1 && cause != Cause::Age && self.tries < ways {
            self.due = now + timing.handshake_retry;
            return;
        }
        let wait = cause.wait(timing, self.retry);
        // Up to a fifth less, so that the neighbours of one node do not all retry at the same time.
        let spread = cx.rng.random_range(0.8..=1.0);
        self.due = now + if cause == Cause::Silence { wait } else { wait.mul_f64(spread) };
        self.retry = (self.retry * 3 / 2).min(timing.handshake_retry_max);
    }

    /// Sends message 1 with `head` in front of its encapsulation key.
    fn send(&mut self, cx: &mut Context, now: Duration, head: &[u8], way: Way) {
        self.pending.retain(|pending| now.saturating_sub(pending.sent_at) < RESPONSE_WAIT);
        if self.pending.len() >= PENDING_MAX {
            self.pending.pop_front();
        }

        let own = cx.statics.iter().find(|one| way.own == Some(one.public)).map(|one| &one.secret);
        let started = InitiatorState::start(&mut cx.rng, &self.terms, own, &way.theirs, head);
        let Ok((state, message)) = started else {
            cx.refuse(Refusal::HandshakeForged);
            return;
        };
        let mut index = cx.rng.next_u32();
        while self.pending.iter().any(|pending| pending.index == index) {
            index = cx.rng.next_u32();
        }
        let halves = datagram::frame_halves(index, &message, &Mac1Key::of(&way.theirs));
        for datagram in halves.clone() {
            cx.out.push_back(Output::Send { side: Side::Down, to: way.address, datagram });
        }

        let key = Mac1Key::of(&state.ephemeral);
        let is_fresh = self.terms.pattern == Pattern::Nk && head == [0; 32];
        self.pending.push_back(Pending {
            index,
            is_fresh,
            is_overtaken: false,
            sent_at: now,
            state,
            key,
            way,
            halves,
            cookies: Vec::new(),
            is_challenged: head.starts_with(&CHALLENGE_HEAD),
            forged: 0,
        });
        cx.counters.handshakes_started += 1;
    }

    /// Takes in kind 3: sends the halves again with a cookie, or a fresh message 1 with a challenge (SPEC 4.9, 4.10).
    fn take_answer(&mut self, cx: &mut Context, now: Duration, parsed: &Parsed<'_>) -> Result<(), Refusal> {
        let waits = |pending: &&mut Pending| pending.index == parsed.index && !pending.is_overtaken;
        let pending = self.pending.iter_mut().find(waits).ok_or(Refusal::UnexpectedResponse)?;
        let answer = Answer::from_wire(parsed.part);
        let mac1 = datagram::mac1(&pending.halves[0]);
        let text = answer.open(parsed, &pending.way.theirs, &mac1).ok_or(Refusal::AnswerForged)?;
        match answer {
            Answer::Cookie if pending.cookies.len() < FORGED_MAX && !pending.cookies.contains(&text) => {
                pending.cookies.push(text);
                for half in &mut pending.halves {
                    cookie::set_mac2(half, &text);
                    let datagram = half.clone();
                    cx.out.push_back(Output::Send { side: Side::Down, to: pending.way.address, datagram });
                }
            }
            Answer::Challenge if self.terms.pattern == Pattern::Ik && !pending.is_challenged => {
                pending.is_challenged = true;
                let way = pending.way;
                let timestamp = [&CHALLENGE_HEAD[..], &text[..CHALLENGE_LEN]].concat();
                self.send(cx, now, &timestamp, way);
            }
            _ => return Err(Refusal::UnexpectedResponse),
        }
        Ok(())
    }
}

impl Links {
    /// Takes in message 2, or an answer in its place. True if the link has new keys.
    pub(super) fn handle_answer(&mut self, cx: &mut Context, now: Duration, bytes: &[u8]) -> Result<bool, Refusal> {
        let initiator = self.initiator.as_mut().ok_or(Refusal::WrongSide)?;
        let parsed = datagram::parse(bytes, NK_HALF_LEN)
            .or_else(|| datagram::parse(bytes, IK_HALF_LEN))
            .ok_or(Refusal::HandshakeMalformed)?;
        match parsed.kind {
            MessageKind::Response => {}
            MessageKind::Initiation => return Err(Refusal::WrongSide),
            MessageKind::Answer => return initiator.take_answer(cx, now, &parsed).map(|()| false),
        }
        let at = initiator.pending.iter().position(|pending| pending.index == parsed.index);
        let at = at.ok_or(Refusal::UnexpectedResponse)?;
        let pending = &mut initiator.pending[at];
        if !pending.key.accepts(&parsed) {
            return Err(Refusal::BadMac1);
        }
        if pending.is_overtaken {
            return Ok(false);
        }
        if pending.forged >= FORGED_MAX {
            return Err(Refusal::HandshakeForged);
        }
        let Ok(secrets) = pending.state.finish(parsed.noise) else {
            pending.forged += 1;
            return Err(Refusal::HandshakeForged);
        };

        // The response to an older message 1 must not take over from this one. The response to a newer
        // one does, because the responder has overwritten this handshake with it. Without a token,
        // however, each message 1 made a link of its own, and the first response is as good as any.
        let (is_fresh, way) = (pending.is_fresh, pending.way);
        initiator.pending.drain(..=at);
        (initiator.worked, initiator.tries, initiator.resolve_at) = (Some(way), 0, now);
        if is_fresh {
            initiator.pending.iter_mut().for_each(|pending| pending.is_overtaken = true);
        }
        initiator.retry = cx.config.timing.handshake_retry;

        let peer = way.address;
        let id = match self.down {
            Some(id) => id,
            None => self.install_link(cx, now, Side::Down, peer),
        };
        self.down = Some(id);
        let was_up = self.down_ready().is_some();
        self.install_slot(cx, now, id, peer, &secrets);
        let link = self.link_mut(id).expect("it was installed above");
        link.report_up(cx, was_up);
        link.unanswered_since = None;
        // The responder sends nothing under the new keys before it has seen a cell under them.
        keepalive(cx, now, link);
        Ok(true)
    }

    /// The time for which the next hop has not replied although this node sends to it. None while it replies, and at
    /// the exit.
    pub(crate) fn next_hop_silence(&self, cx: &Context, now: Duration) -> Option<Duration> {
        let initiator = self.initiator.as_ref()?;
        let link = self.down.and_then(|id| self.link(id)).filter(|link| link.current.is_some());
        let Some(link) = link else { return Some(now.saturating_sub(initiator.unlinked_since)) };
        let silence = now.saturating_sub(link.unanswered_since?);
        (silence >= cx.config.silent_after()).then_some(silence)
    }

    /// True if the next hop may not have started yet.
    pub(crate) fn is_starting(&self, now: Duration) -> bool {
        let Some(initiator) = &self.initiator else { return false };
        self.down.is_none() && now.saturating_sub(initiator.unlinked_since) < STARTING
    }

    /// Why a handshake with the next hop is due, if it is.
    fn cause(&self, cx: &Context, now: Duration) -> Option<Cause> {
        let link = self.down.and_then(|id| self.link(id));
        let Some((link, slot)) = link.and_then(|link| Some((link, link.current.as_ref()?))) else {
            return Some(Cause::NoLink);
        };
        if link.unanswered_since.is_some_and(|since| now.saturating_sub(since) >= cx.config.silent_after()) {
            return Some(Cause::Silence);
        }
        (now.saturating_sub(slot.created_at) >= cx.config.timing.renew_after).then_some(Cause::Age)
    }

    /// Sends message 1, if one is due.
    pub(crate) fn initiate(&mut self, cx: &mut Context, now: Duration, wall: SystemTime) {
        let Some(cause) = self.cause(cx, now) else { return };
        let down = self.down;
        let Some(initiator) = &mut self.initiator else { return };
        if now < initiator.due {
            return;
        }

        let link = down.and_then(|id| self.all[id.index()].as_mut());
        let current = link.as_ref().and_then(|link| link.current.as_ref());
        let head = Zeroizing::new(match initiator.terms.pattern {
            Pattern::Nk => current.map_or_else(|| vec![0; 32], |slot| slot.resume.to_vec()),
            Pattern::Ik => initiator.next_timestamp(wall).to_vec(),
        });
        if let (Cause::Silence, Some(link)) = (cause, link)
            && !link.silence_reported
        {
            link.silence_reported = true;
            cx.event(Event::LinkSilent { link: link.id });
        }

        if cause != Cause::Age {
            initiator.resolve(cx, now);
        }
        let ways = initiator.ways(cx);
        initiator.schedule(cx, now, cause, ways.len());
        // A renewal that finds no answer becomes a silence.
        let next = if cause == Cause::Age { 0 } else { initiator.tries % ways.len().max(1) };
        if let Some(way) = ways.get(next) {
            initiator.tries += 1;
            initiator.send(cx, now, &head, *way);
        }
    }

    /// The names of the next hop were resolved: its addresses are tried from the first on.
    pub(crate) fn resolved(&mut self, cx: &mut Context, now: Duration, addresses: Vec<SocketAddr>) {
        let before = cx.contacts.all_addresses().count();
        cx.contacts.resolved(addresses);
        if let Some(initiator) = self.initiator.as_mut().filter(|_| before == 0) {
            // There was nowhere to send to.
            (initiator.due, initiator.retry) = (now, cx.config.timing.handshake_retry);
        }
    }
}
