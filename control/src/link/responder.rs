//! Answers handshakes: joins the halves, checks the initiator, finds the link (SPEC 4.2, 4.4, 4.5, 4.10).

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use rand::Rng;
use subtle::ConstantTimeEq;
use wire::handshake::{IK_HALF_LEN, NK_HALF_LEN};
use wire::ids::{LinkId, Side};

use super::admission::{Admission, Asked};
use super::{Link, Links, tai64n};
use crate::config::Config;
use crate::contacts::Static;
use crate::context::Context;
use crate::cookie::{Answer, TEXT_LEN};
use crate::counters::Refusal;
use crate::datagram::{self, MAC_LEN, Mac1Key, MessageKind, Parsed};
use crate::fragments::{Joined, Joiner};
use crate::io::Output;
use crate::noise::{Pattern, ResponderState, Terms};
use crate::slot::Slot;

/// Ephemerals of accepted messages 1 that a link remembers.
const EPHEMERALS_PER_LINK: usize = 16;
/// Ephemerals of accepted messages 1 that a node remembers, over all links.
const EPHEMERALS_MAX: usize = 4096;
/// Halves of message 1 that wait for their other half.
const HALVES_MAX: usize = 256;
/// Of those with a cookie, the most of one prefix. The other half of an honest message follows at once.
const HALVES_PER_SOURCE: usize = 8;
/// The longest wait of each half.
const HALVES_WAIT: Duration = Duration::from_secs(1);
/// A challenge waits this long for its message 1.
const CHALLENGE_WAIT: Duration = Duration::from_secs(10);
/// A timestamp that begins so answers a challenge.
pub(super) const CHALLENGE_HEAD: [u8; 4] = [0xff; 4];
pub(super) const CHALLENGE_LEN: usize = 8;

/// The responder's side of the links to previous hops or entries.
pub(super) struct Responder {
    terms: Terms,
    half_len: usize,
    /// By source and initiator's index.
    halves: Joiner<(SocketAddr, u32)>,
    /// The same, of those with a cookie.
    cookie_halves: Joiner<(SocketAddr, u32)>,
    admission: Admission,
    /// IK: challenges that wait, by static of the previous hop, and the time they were drawn.
    challenges: HashMap<[u8; 32], (Duration, [u8; CHALLENGE_LEN])>,
    /// IK: last accepted timestamp of each static of the previous hop. Whoever stole one cannot lock out another.
    last_timestamps: HashMap<[u8; 32], [u8; 12]>,
    seen: HashSet<[u8; 32]>,
    /// The same, oldest first.
    seen_order: VecDeque<[u8; 32]>,
}

/// A whole message 1.
struct Whole {
    noise: Vec<u8>,
    /// Of part 0.
    mac1: [u8; MAC_LEN],
    /// Index in [`Context::statics`] of the static that it was made for.
    own: usize,
    /// Its source has a cookie.
    has_cookie: bool,
}

impl Responder {
    /// None at the entry.
    pub(super) fn new(config: &Config, chain: &[u8; 32], now: Duration) -> Option<Responder> {
        (!config.is_entry()).then(|| {
            let (pattern, half_len) =
                if config.faces_entries() { (Pattern::Nk, NK_HALF_LEN) } else { (Pattern::Ik, IK_HALF_LEN) };
            let link = (config.position, config.class());
            Responder {
                terms: Terms::new(pattern, chain, link, config.psk_up.as_ref()),
                half_len,
                halves: Joiner::new(HALVES_MAX, HALVES_WAIT),
                cookie_halves: Joiner::new(HALVES_MAX, HALVES_WAIT),
                admission: Admission::new(config, now),
                challenges: HashMap::new(),
                last_timestamps: HashMap::new(),
                seen: HashSet::new(),
                seen_order: VecDeque::new(),
            }
        })
    }

    pub(super) fn require_cookies(&mut self, now: Duration) {
        self.admission.require_cookies(now);
    }

    /// Checks half of message 1, cheapest test first. Returns the whole message if this half completes it.
    fn receive_half(
        &mut self,
        cx: &mut Context,
        now: Duration,
        from: SocketAddr,
        parsed: &Parsed<'_>,
    ) -> Result<Option<Whole>, Refusal> {
        if parsed.kind != MessageKind::Initiation {
            return Err(Refusal::WrongSide);
        }
        // Descriptors name the statics that are answered under, several while keys are replaced.
        let accepts = |own: &Static| cx.contacts.own.contains(&own.public) && own.mac1.accepts(parsed);
        let own = cx.statics.iter().position(accepts).ok_or(Refusal::BadMac1)?;
        let has_cookie = self.admission.has_cookie(cx, now, from, parsed);
        if !has_cookie {
            (0..self.halves.expire(now)).for_each(|_| cx.refuse(Refusal::HalfIncomplete));
            if self.halves.is_filling() {
                self.admission.require_cookies(now);
            }
            if self.admission.requires_cookie(cx, now, from) {
                if parsed.part == 0 {
                    let mac1 = parsed.mac1.first_chunk().expect("a half has one");
                    self.admission.give_cookie(cx, now, &Asked { from, index: parsed.index, mac1, own });
                }
                return Err(Refusal::CookieRequired);
            }
        }
        let (key, part) = ((from, parsed.index), parsed.part);
        let kept = [parsed.noise, parsed.mac1].concat();
        let (joined, given_up) = if has_cookie {
            let is_of_source = |other: &(SocketAddr, u32)| cx.config.is_same_source(other.0.ip(), from.ip());
            self.cookie_halves.join_of_source(now, key, (part, 2), &kept, HALVES_PER_SOURCE, is_of_source)
        } else {
            // The source may be forged, so none has a share that others could use up.
            self.halves.join(now, key, part, 2, &kept)
        };
        (0..given_up).for_each(|_| cx.refuse(Refusal::HalfIncomplete));
        match joined {
            Joined::Incomplete => Ok(None),
            Joined::Duplicate => Err(Refusal::HalfDuplicate),
            Joined::Complete(halves) => {
                let kept = halves.concat();
                let (first, second) = kept.split_at(kept.len() / 2);
                let parts = first.split_last_chunk().zip(second.split_last_chunk::<MAC_LEN>());
                let ((first, mac1), (second, _)) = parts.expect("each half has a mac1");
                Ok(Some(Whole { noise: [first, second].concat(), mac1: *mac1, own, has_cookie }))
            }
        }
    }

    /// IK: the static and the timestamp of message 1, if it is from the previous hop and the timestamp is newer than
    /// the last accepted one or answers a challenge. The responder's own time takes the place of a challenge.
    ///
    /// A stale timestamp of a source without a cookie gets a cookie: replays from forged sources would use up the
    /// challenges.
    fn check_initiator(
        &mut self,
        cx: &mut Context,
        now: Duration,
        (asked, has_cookie): (&Asked<'_>, bool),
        state: &ResponderState,
    ) -> Result<([u8; 32], [u8; 12]), Refusal> {
        let known = |initiator: &[u8; 32]| cx.contacts.previous.contains(initiator);
        let initiator = state.initiator.filter(known).ok_or(Refusal::UnknownInitiator)?;
        let timestamp: [u8; 12] = *state.head.first_chunk().ok_or(Refusal::HandshakeForged)?;
        self.challenges.retain(|_, (drawn, _)| now.saturating_sub(*drawn) < CHALLENGE_WAIT);
        if let Some(bytes) = timestamp.strip_prefix(&CHALLENGE_HEAD) {
            let answers = |(_, challenge): &(Duration, [u8; CHALLENGE_LEN])| challenge.ct_eq(bytes).into();
            if !self.challenges.get(&initiator).is_some_and(answers) {
                return Err(Refusal::StaleTimestamp);
            }
            self.challenges.remove(&initiator);
            return Ok((initiator, tai64n(cx.unix_ns(now))));
        }
        if self.last_timestamps.get(&initiator).is_none_or(|last| timestamp > *last) {
            return Ok((initiator, timestamp));
        }
        if !has_cookie {
            self.admission.give_cookie(cx, now, asked);
            return Err(Refusal::CookieRequired);
        }
        if self.admission.may_challenge(cx, now, asked.from) {
            let (_, challenge) = self.challenges.entry(initiator).or_insert_with(|| {
                let mut bytes = [0; CHALLENGE_LEN];
                cx.rng.fill_bytes(&mut bytes);
                (now, bytes)
            });
            let mut text = [0; TEXT_LEN];
            text[..CHALLENGE_LEN].copy_from_slice(challenge);
            asked.answer(cx, Answer::Challenge, &text);
            cx.counters.challenges += 1;
        }
        Err(Refusal::StaleTimestamp)
    }

    fn remember(&mut self, ephemeral: [u8; 32]) {
        if self.seen.insert(ephemeral) {
            self.seen_order.push_back(ephemeral);
        }
        if self.seen_order.len() > EPHEMERALS_MAX
            && let Some(oldest) = self.seen_order.pop_front()
        {
            self.seen.remove(&oldest);
        }
    }
}

impl Links {
    /// Takes in half of message 1, and answers if it completes a valid message.
    pub(super) fn handle_initiation(
        &mut self,
        cx: &mut Context,
        now: Duration,
        from: SocketAddr,
        bytes: &[u8],
        holds: &dyn Fn(LinkId) -> bool,
    ) -> Result<(), Refusal> {
        let is_up = |link: &&Link| link.side == Side::Up && link.current.is_some();
        let previous = (!cx.config.faces_entries()).then(|| self.iter().find(is_up)).flatten();
        let peer = previous.map(|link| link.peer.ip());
        let responder = self.responder.as_mut().ok_or(Refusal::WrongSide)?;
        responder.admission.set_peer(peer);
        let parsed = datagram::parse(bytes, responder.half_len).ok_or(Refusal::HandshakeMalformed)?;
        let Some(whole) = responder.receive_half(cx, now, from, &parsed)? else { return Ok(()) };

        // Replays and floods are refused before any public-key work.
        let ephemeral: [u8; 32] = *whole.noise.first_chunk().ok_or(Refusal::HandshakeMalformed)?;
        if responder.seen.contains(&ephemeral) {
            return Err(Refusal::HandshakeReplayed);
        }
        responder.admission.admit(cx, now, from, whole.has_cookie)?;
        cx.counters.handshakes_read += 1;
        let own = &cx.statics[whole.own].secret;
        let state = ResponderState::read(&mut cx.rng, &responder.terms, own, &whole.noise)
            .map_err(|_| Refusal::HandshakeForged)?;
        let timestamp = match responder.terms.pattern {
            Pattern::Nk => None,
            Pattern::Ik => {
                let asked = Asked { from, index: parsed.index, mac1: &whole.mac1, own: whole.own };
                let checked = responder.check_initiator(cx, now, (&asked, whole.has_cookie), &state);
                if checked == Err(Refusal::StaleTimestamp) {
                    // It gets one challenge.
                    responder.remember(ephemeral);
                }
                Some(checked?)
            }
        };

        let known = match timestamp {
            Some(_) => self.iter().find(|link| link.side == Side::Up).map(|link| link.id),
            None => self.resumed(cx, now, &state.head)?,
        };
        if let Some(id) = known
            && self.link_mut(id).is_some_and(|link| link.ephemerals.contains(&ephemeral))
        {
            return Err(Refusal::HandshakeReplayed);
        }
        match known {
            Some(id) => self.check_address(id, from)?,
            None => self.make_room(cx, now, from, holds)?,
        }
        let (message, secrets) = state.answer().map_err(|_| Refusal::HandshakeForged)?;

        let link = known.unwrap_or_else(|| self.install_link(cx, now, Side::Up, from));
        self.install_slot(cx, now, link, from, &secrets);
        if let Some(link) = self.link_mut(link) {
            link.ephemerals.push_back(ephemeral);
            if link.ephemerals.len() > EPHEMERALS_PER_LINK {
                link.ephemerals.pop_front();
            }
        }
        let responder = self.responder.as_mut().expect("it was there above");
        if let Some((initiator, timestamp)) = timestamp {
            responder.last_timestamps.insert(initiator, timestamp);
            responder.last_timestamps.retain(|initiator, _| cx.contacts.previous.contains(initiator));
        }
        responder.remember(ephemeral);

        let key = Mac1Key::of(&ephemeral);
        let datagram = datagram::frame(MessageKind::Response, 0, parsed.index, &message, &key);
        cx.out.push_back(Output::Send { side: Side::Up, to: from, datagram });
        Ok(())
    }

    /// NK: the live link whose current, next or overwritten next handshake this token names.
    ///
    /// A token that names `next` proves that its initiator holds those keys, so the slot is promoted
    /// as by a cell. It says nothing about the initiator's address, so a link that is up keeps its
    /// own. A token that names `previous` is spent: a newer message 1 overtook this one, and a link
    /// of its own would draw the initiator away from its channels.
    fn resumed(&mut self, cx: &mut Context, now: Duration, token: &[u8]) -> Result<Option<LinkId>, Refusal> {
        let names = |slot: &Option<Slot>| slot.as_ref().is_some_and(|slot| slot.resume[..].ct_eq(token).into());
        for link in self.all.iter_mut().flatten().filter(|link| link.side == Side::Up) {
            if names(&link.next) {
                // A link that is not up has no address to keep: a cell must give it one.
                if link.current.is_some() {
                    link.promote(cx, now, None);
                }
                return Ok(Some(link.id));
            }
            // The initiator may hold the keys of a `next` that an earlier message 1, arriving later, has overwritten.
            let was_next = link.overwritten.iter().any(|gone| gone[..].ct_eq(token).into());
            if names(&link.current) || was_next {
                return Ok(Some(link.id));
            }
            if names(&link.previous) {
                return Err(Refusal::TokenSpent);
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use wire::cell::Class;
    use wire::handshake::is_handshake_len;

    use super::*;
    use crate::ClassControl;
    use crate::cookie::set_mac2;
    use crate::datagram::frame;
    use crate::sim::{Fate, Plan, World, down_address, secs, up_address};

    #[test]
    fn link_remembers_ephemerals_that_the_node_forgot() {
        let mut plan = Plan::new(Class::L, 1);
        plan.timing.renew_after = secs(20);
        let mut world = World::new(plan);
        world.run_for(secs(19));
        // The response to the renewal is lost, so its token is still valid.
        let is_half = |p: &crate::sim::Packet| p.from == down_address(0) && is_handshake_len(p.bytes.len());
        let before = world.record.len();
        world.tap = Box::new(|_, packet| {
            let is_response = packet.from == up_address(1) && is_handshake_len(packet.bytes.len());
            if is_response { Fate::Lose } else { Fate::Pass }
        });
        let start = world.now;
        assert!(world.run_until(start + secs(4), |w| w.node(1).link(Side::Up).1.next().is_some()));
        let next = world.node(1).link(Side::Up).1.next();
        let halves: Vec<_> = world.record[before..].iter().filter(|p| is_half(p)).take(2).cloned().collect();
        let responder = world.nodes.get_mut(&1).unwrap().control.classes[0].links.responder.as_mut().unwrap();
        for stranger in 0..EPHEMERALS_MAX as u64 {
            let mut ephemeral = [0; 32];
            ephemeral[..8].copy_from_slice(&stranger.to_be_bytes());
            responder.remember(ephemeral);
        }
        assert_eq!(responder.seen.len(), EPHEMERALS_MAX);
        for half in &halves {
            world.deliver_now(half, half.bytes.clone());
        }
        assert_eq!(world.refused(1, Refusal::HandshakeReplayed), 1);
        assert_eq!(world.node(1).link(Side::Up).1.next(), next);
    }

    /// A half of message 1 with a cookie.
    fn receive(world: &mut World, from: SocketAddr, index: u32, part: u8) -> Result<Option<Whole>, Refusal> {
        let now = world.now;
        let ClassControl { cx, links, .. } = &mut world.nodes.get_mut(&1).unwrap().control.classes[0];
        let responder = links.responder.as_mut().unwrap();
        let key = Mac1Key::of(&cx.statics[0].public);
        let mut half = frame(MessageKind::Initiation, part, index, &[part; datagram::NK_MESSAGE_LEN / 2], &key);
        set_mac2(&mut half, &responder.admission.cookies.of(&mut cx.rng, now, from));
        responder.receive_half(cx, now, from, &datagram::parse(&half, NK_HALF_LEN).unwrap())
    }

    #[test]
    fn source_with_a_cookie_pushes_out_no_halves_of_others() {
        let mut world = World::new(Plan::new(Class::L, 1));
        let [user, attacker] = [6, 7].map(|last| SocketAddr::from(([6, 6, 6, last], 7)));
        assert!(matches!(receive(&mut world, user, 1, 0), Ok(None)));
        for index in 0..2 * HALVES_MAX as u32 {
            let from = SocketAddr::new(attacker.ip(), 1000 + index as u16);
            assert!(matches!(receive(&mut world, from, index, 0), Ok(None)));
        }
        assert!(matches!(receive(&mut world, user, 1, 1), Ok(Some(_))));
        assert!(world.refused(1, Refusal::HalfIncomplete) >= 2 * HALVES_MAX as u64 - HALVES_PER_SOURCE as u64);
    }

    #[test]
    fn challenges_elsewhere_take_none_from_the_previous_hop() {
        let mut world = World::new(Plan::new(Class::L, 2));
        let now = world.now;
        let ClassControl { cx, links, .. } = &mut world.nodes.get_mut(&2).unwrap().control.classes[0];
        let admission = &mut links.responder.as_mut().unwrap().admission;
        let elsewhere = SocketAddr::from(([6, 6, 6, 6], 7));
        let mut given = |from| (0..100).filter(|_| admission.may_challenge(cx, now, from)).count();
        assert_eq!((given(elsewhere), given(down_address(1))), (5, 5));
    }

    #[test]
    fn latest_4096_ephemerals_are_remembered() {
        let config = Plan::new(Class::L, 1).first(1).0;
        let mut responder = Responder::new(&config, &[7; 32], Duration::ZERO).unwrap();
        let ephemeral = |n: usize| std::array::from_fn(|i| (n >> (8 * (i % 8))) as u8);
        for n in 0..EPHEMERALS_MAX + 1000 {
            responder.remember(ephemeral(n));
            responder.remember(ephemeral(n));
        }
        assert_eq!((responder.seen.len(), responder.seen_order.len()), (EPHEMERALS_MAX, EPHEMERALS_MAX));
        assert!(!responder.seen.contains(&ephemeral(999)) && responder.seen.contains(&ephemeral(1000)));
    }
}
