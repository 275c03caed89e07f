//! How this node answers handshakes: whom, at most how many, and onto which link (SPEC 4.2, 4.4,
//! 4.5).

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use subtle::ConstantTimeEq;
use wire::handshake::{IK_HALF_LEN, NK_HALF_LEN};
use wire::ids::{LinkId, Side};
use wire::kdf::x25519_public;

use super::{Link, Links};
use crate::admission::Bucket;
use crate::config::Config;
use crate::core::Core;
use crate::counters::Refusal;
use crate::datagram::{self, Halves, Joined, Mac1Key};
use crate::io::Output;
use crate::noise::{Pattern, Responder, Terms};
use crate::slot::Slot;

/// Ephemerals of accepted first messages that a link remembers.
const EPHEMERALS_PER_LINK: usize = 16;
/// And the node, over all links.
const EPHEMERALS_MAX: usize = 4096;

/// How this node answers them.
pub(super) struct Callee {
    terms: Terms,
    half_len: usize,
    key: Mac1Key,
    halves: Halves,
    bucket: Bucket,
    /// IK: last accepted timestamp.
    stamp: [u8; 12],
    seen: HashSet<[u8; 32]>,
    seen_order: VecDeque<[u8; 32]>,
}

impl Callee {
    /// None at the entry.
    pub(super) fn new(config: &Config, now: Duration) -> Option<Callee> {
        let class = config.shape.class();
        config.descriptor.as_ref().filter(|_| !config.is_entry()).map(|own| {
            let (pattern, half_len) =
                if config.faces_entries() { (Pattern::Nk, NK_HALF_LEN) } else { (Pattern::Ik, IK_HALF_LEN) };
            Callee {
                terms: Terms::new(pattern, class, &own.hash(), config.psk_up.as_ref()),
                half_len,
                key: Mac1Key::of(&x25519_public(&config.noise)),
                halves: Halves::default(),
                bucket: Bucket::new(config.caps.handshakes, now),
                stamp: [0; 12],
                seen: HashSet::new(),
                seen_order: VecDeque::new(),
            }
        })
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
    /// Responder: half of message 1.
    pub(super) fn hello(
        &mut self,
        core: &mut Core,
        now: Duration,
        from: SocketAddr,
        bytes: &[u8],
    ) -> Result<(), Refusal> {
        let callee = self.callee.as_mut().ok_or(Refusal::WrongSide)?;
        let parsed = datagram::parse(bytes, callee.half_len).ok_or(Refusal::HandshakeForm)?;
        match parsed.kind {
            datagram::Kind::Hello => {}
            datagram::Kind::Answer => return Err(Refusal::WrongSide),
            datagram::Kind::Cookie => return Err(Refusal::Cookie),
        }
        if !callee.key.accepts(&parsed) {
            return Err(Refusal::BadMac1);
        }
        let message = match callee.halves.join(now, from, &parsed) {
            Joined::Waits(gone) => {
                (0..gone).for_each(|_| core.refuse(Refusal::HalfAlone));
                return Ok(());
            }
            Joined::Twice => return Err(Refusal::HalfTwice),
            Joined::Whole(message) => message,
        };
        let ephemeral: [u8; 32] = *message.first_chunk().ok_or(Refusal::HandshakeForm)?;
        if callee.seen.contains(&ephemeral) {
            return Err(Refusal::HandshakeReplayed);
        }
        if !callee.bucket.take(now) {
            return Err(Refusal::HandshakeBucketEmpty);
        }
        let responder = Responder::read(&mut core.rng, &callee.terms, &core.config.noise, &message)
            .map_err(|_| Refusal::HandshakeForged)?;
        let stamp: Option<[u8; 12]> = match callee.terms.pattern {
            Pattern::Nk => None,
            Pattern::Ik => {
                if responder.initiator != core.config.previous || responder.initiator.is_none() {
                    return Err(Refusal::NotANeighbour);
                }
                let stamp: [u8; 12] = *responder.head.first_chunk().ok_or(Refusal::HandshakeForged)?;
                if stamp <= callee.stamp {
                    return Err(Refusal::StaleTimestamp);
                }
                Some(stamp)
            }
        };
        let known = match stamp {
            Some(_) => self.iter().find(|link| link.side == Side::Up).map(|link| link.id),
            None => self.resumed(core, &responder.head)?,
        };
        if let Some(id) = known
            && self.link_mut(id).is_some_and(|link| link.ephemerals.contains(&ephemeral))
        {
            return Err(Refusal::HandshakeReplayed);
        }
        if known.is_none() {
            self.make_room(core, from)?;
        }
        let (message, secrets) = responder.answer().map_err(|_| Refusal::HandshakeForged)?;
        let link = known.unwrap_or_else(|| self.install_link(core, now, Side::Up, from));
        self.install_slot(core, now, link, from, &secrets);
        if let Some(link) = self.link_mut(link) {
            link.ephemerals.push_back(ephemeral);
            if link.ephemerals.len() > EPHEMERALS_PER_LINK {
                link.ephemerals.pop_front();
            }
        }
        let callee = self.callee.as_mut().expect("it was there above");
        if let Some(stamp) = stamp {
            callee.stamp = stamp;
        }
        callee.remember(ephemeral);
        let key = Mac1Key::of(&ephemeral);
        let datagram = datagram::frame(datagram::Kind::Answer, 0, parsed.index, &message, &key);
        core.out.push_back(Output::Send { side: Side::Up, to: from, datagram });
        Ok(())
    }

    /// NK: the live link whose current or next handshake this token names. One that names `next`
    /// proves that its initiator holds those keys, so it is promoted like by a cell; but it says nothing of
    /// where its initiator is, so a link that is up keeps its address. One that names
    /// `previous` is spent: its message 1 was overtaken by a newer, and a link of its own would draw
    /// the initiator away from its channels.
    fn resumed(&mut self, core: &mut Core, token: &[u8]) -> Result<Option<LinkId>, Refusal> {
        let names = |slot: &Option<Slot>| slot.as_ref().is_some_and(|slot| slot.resume[..].ct_eq(token).into());
        for link in self.all.iter_mut().flatten().filter(|link| link.side == Side::Up) {
            if names(&link.next) {
                link.promote(core, None);
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

    /// Makes room for one more link: at most so many per address and per node. Those that were never
    /// used go first, then those without channels, the oldest first; others never go.
    fn make_room(&mut self, core: &mut Core, from: SocketAddr) -> Result<(), Refusal> {
        let up = |link: &&Link| link.side == Side::Up;
        let victim = |of: &mut dyn Iterator<Item = &Link>| {
            of.filter(|link| link.is_empty()).min_by_key(|link| (link.current.is_some(), link.made)).map(|link| link.id)
        };
        let here =
            |link: &&Link| up(link) && (link.peer == from || link.next.as_ref().is_some_and(|next| next.peer == from));
        if self.iter().filter(here).count() >= core.config.caps.links_per_address {
            let id = victim(&mut self.iter().filter(here)).ok_or(Refusal::AddressLinksFull)?;
            self.retire(core, id);
        }
        if self.iter().filter(up).count() >= core.config.caps.links {
            let id = victim(&mut self.iter().filter(up)).ok_or(Refusal::LinksFull)?;
            self.retire(core, id);
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
    fn a_link_remembers_its_ephemerals_when_the_node_has_forgotten_them() {
        let mut plan = Plan::new(Class::L, 1);
        plan.timing.renew_after = secs(20);
        let mut world = World::new(plan);
        world.run_for(secs(19));
        // The renewal is not answered, so its token is good still.
        let is_hello = |p: &crate::sim::Packet| p.from == down_address(0) && is_handshake_len(p.bytes.len());
        let before = world.record.len();
        world.tap = Box::new(|_, packet| {
            let answer = packet.from == up_address(1) && is_handshake_len(packet.bytes.len());
            if answer { Fate::Lose } else { Fate::Pass }
        });
        let start = world.now;
        assert!(world.run_until(start + secs(4), |w| w.node(1).link(Side::Up).1.next().is_some()));
        let next = world.node(1).link(Side::Up).1.next();
        let halves: Vec<_> = world.record[before..].iter().filter(|p| is_hello(p)).take(2).cloned().collect();
        let callee = world.nodes.get_mut(&1).unwrap().control.links.callee.as_mut().unwrap();
        for stranger in 0..EPHEMERALS_MAX as u64 {
            let mut ephemeral = [0; 32];
            ephemeral[..8].copy_from_slice(&stranger.to_be_bytes());
            callee.remember(ephemeral);
        }
        assert_eq!(callee.seen.len(), EPHEMERALS_MAX);
        for half in &halves {
            world.deliver_now(half, half.bytes.clone());
        }
        assert_eq!(world.refused(1, Refusal::HandshakeReplayed), 1);
        assert_eq!(world.node(1).link(Side::Up).1.next(), next);
    }

    #[test]
    fn the_latest_4096_ephemerals_are_remembered() {
        let config = Plan::new(Class::L, 1).config(1);
        let mut callee = Callee::new(&config, Duration::ZERO).unwrap();
        let ephemeral = |n: usize| std::array::from_fn(|i| (n >> (8 * (i % 8))) as u8);
        for n in 0..EPHEMERALS_MAX + 1000 {
            callee.remember(ephemeral(n));
            callee.remember(ephemeral(n));
        }
        assert_eq!((callee.seen.len(), callee.seen_order.len()), (EPHEMERALS_MAX, EPHEMERALS_MAX));
        assert!(!callee.seen.contains(&ephemeral(999)) && callee.seen.contains(&ephemeral(1000)));
    }
}
