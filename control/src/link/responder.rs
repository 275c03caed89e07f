//! Answers handshakes: checks the initiator, limits the rate, finds the link (SPEC 4.2, 4.4, 4.5).

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use subtle::ConstantTimeEq;
use wire::handshake::{IK_HALF_LEN, NK_HALF_LEN};
use wire::ids::{LinkId, Side};

use super::{Link, Links};
use crate::admission::Bucket;
use crate::config::Config;
use crate::contacts::Static;
use crate::context::Context;
use crate::counters::Refusal;
use crate::datagram::{self, Mac1Key, MessageKind, Parsed};
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
/// The longest wait of each half.
const HALVES_WAIT: Duration = Duration::from_secs(1);

/// The responder's side of the links to previous hops or entries.
pub(super) struct Responder {
    terms: Terms,
    half_len: usize,
    /// By source and initiator's index.
    halves: Joiner<(SocketAddr, u32)>,
    /// Limits public-key work.
    bucket: Bucket,
    /// IK: last accepted timestamp of each static of the previous hop. Whoever stole one cannot lock out another.
    last_timestamps: HashMap<[u8; 32], [u8; 12]>,
    seen: HashSet<[u8; 32]>,
    /// The same, oldest first.
    seen_order: VecDeque<[u8; 32]>,
}

impl Responder {
    /// None at the entry.
    pub(super) fn new(config: &Config, chain: &[u8; 32], now: Duration) -> Option<Responder> {
        (!config.is_entry()).then(|| {
            let (pattern, half_len) =
                if config.faces_entries() { (Pattern::Nk, NK_HALF_LEN) } else { (Pattern::Ik, IK_HALF_LEN) };
            let link = (config.position, config.shape.class());
            Responder {
                terms: Terms::new(pattern, chain, link, config.psk_up.as_ref()),
                half_len,
                halves: Joiner::new(HALVES_MAX, HALVES_WAIT),
                bucket: Bucket::new(config.caps.handshakes, now),
                last_timestamps: HashMap::new(),
                seen: HashSet::new(),
                seen_order: VecDeque::new(),
            }
        })
    }

    /// Checks half of message 1, cheapest test first. Returns the whole message if this half completes it, and which of
    /// this node's statics it was made for.
    fn receive_half(
        &mut self,
        cx: &mut Context,
        now: Duration,
        from: SocketAddr,
        parsed: &Parsed<'_>,
    ) -> Result<Option<(Vec<u8>, usize)>, Refusal> {
        match parsed.kind {
            MessageKind::Initiation => {}
            MessageKind::Response => return Err(Refusal::WrongSide),
            MessageKind::Cookie => return Err(Refusal::Cookie),
        }
        // Descriptors name the statics that are answered under, several while keys are replaced.
        let accepts = |own: &Static| cx.contacts.own.contains(&own.public) && own.mac1.accepts(parsed);
        let own = cx.statics.iter().position(accepts).ok_or(Refusal::BadMac1)?;
        let (joined, given_up) = self.halves.join(now, (from, parsed.index), parsed.part, 2, parsed.noise);
        (0..given_up).for_each(|_| cx.refuse(Refusal::HalfIncomplete));
        match joined {
            Joined::Incomplete => Ok(None),
            Joined::Duplicate => Err(Refusal::HalfDuplicate),
            Joined::Complete(halves) => Ok(Some((halves.concat(), own))),
        }
    }

    /// IK: the timestamp in `head`, if it is newer than the last accepted one and from the previous hop.
    fn check_initiator(&self, cx: &Context, state: &ResponderState) -> Result<([u8; 32], [u8; 12]), Refusal> {
        let known = |initiator: &[u8; 32]| cx.contacts.previous.contains(initiator);
        let initiator = state.initiator.filter(known).ok_or(Refusal::UnknownInitiator)?;
        let timestamp: [u8; 12] = *state.head.first_chunk().ok_or(Refusal::HandshakeForged)?;
        if self.last_timestamps.get(&initiator).is_some_and(|last| timestamp <= *last) {
            return Err(Refusal::StaleTimestamp);
        }
        Ok((initiator, timestamp))
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
    ) -> Result<(), Refusal> {
        let responder = self.responder.as_mut().ok_or(Refusal::WrongSide)?;
        let parsed = datagram::parse(bytes, responder.half_len).ok_or(Refusal::HandshakeMalformed)?;
        let Some((message, own)) = responder.receive_half(cx, now, from, &parsed)? else { return Ok(()) };

        // Replays and floods are refused before any public-key work.
        let ephemeral: [u8; 32] = *message.first_chunk().ok_or(Refusal::HandshakeMalformed)?;
        if responder.seen.contains(&ephemeral) {
            return Err(Refusal::HandshakeReplayed);
        }
        if !responder.bucket.take(now) {
            return Err(Refusal::HandshakeRateLimited);
        }
        let own = &cx.statics[own].secret;
        let state =
            ResponderState::read(&mut cx.rng, &responder.terms, own, &message).map_err(|_| Refusal::HandshakeForged)?;
        let timestamp = match responder.terms.pattern {
            Pattern::Nk => None,
            Pattern::Ik => Some(responder.check_initiator(cx, &state)?),
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
        if known.is_none() {
            self.make_room(cx, from)?;
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

    /// NK: the live link whose current or next handshake this token names.
    ///
    /// A token that names `next` proves that its initiator holds those keys, so the slot is promoted
    /// as by a cell. It says nothing about the initiator's address, so a link that is up keeps its
    /// own. A token that names `previous` is spent: a newer message 1 overtook this one, and a link
    /// of its own would draw the initiator away from its channels.
    fn resumed(&mut self, cx: &mut Context, now: Duration, token: &[u8]) -> Result<Option<LinkId>, Refusal> {
        let names = |slot: &Option<Slot>| slot.as_ref().is_some_and(|slot| slot.resume[..].ct_eq(token).into());
        for link in self.all.iter_mut().flatten().filter(|link| link.side == Side::Up) {
            if names(&link.next) {
                link.promote(cx, now, None);
                return Ok(Some(link.id));
            }
            if names(&link.current) {
                return Ok(Some(link.id));
            }
            if names(&link.previous) {
                return Err(Refusal::TokenSpent);
            }
        }
        Ok(None)
    }

    /// Makes room for one more link under the caps per address and per node. Links that were never
    /// used go first, then those without channels, oldest first. Links with channels never go.
    fn make_room(&mut self, cx: &mut Context, from: SocketAddr) -> Result<(), Refusal> {
        let up = |link: &&Link| link.side == Side::Up;
        let at_address =
            |link: &&Link| up(link) && (link.peer == from || link.next.as_ref().is_some_and(|next| next.peer == from));
        let victim = |among: &mut dyn Iterator<Item = &Link>| {
            among
                .filter(|link| link.carries_no_channels())
                .min_by_key(|link| (link.current.is_some(), link.created_at))
                .map(|link| link.id)
        };

        if self.iter().filter(at_address).count() >= cx.config.caps.links_per_address {
            let id = victim(&mut self.iter().filter(at_address)).ok_or(Refusal::AddressLinksFull)?;
            self.retire(cx, id);
        }
        if self.iter().filter(up).count() >= cx.config.caps.links {
            let id = victim(&mut self.iter().filter(up)).ok_or(Refusal::LinksFull)?;
            self.retire(cx, id);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use wire::cell::Class;
    use wire::handshake::is_handshake_len;

    use super::*;
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
        let responder = world.nodes.get_mut(&1).unwrap().control.links.responder.as_mut().unwrap();
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
