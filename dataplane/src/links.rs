//! Links and their receive slots, as control installs them (SPEC 4.4).
//!
//! A link has up to three slots: current, next and previous. Cells go out under the current one and
//! are accepted under all three. This table knows header keys only; bodies of control cells are
//! control's.

use std::net::{IpAddr, SocketAddr};

use hashbrown::HashMap;
use wire::ids::{LinkId, Rank, Side, SlotId};
use wire::link::HeaderKey;
use zeroize::Zeroizing;

use crate::batch::NO_PREFIX;
use crate::command::LinkCommand;
use crate::punt::{Punt, PuntSender};
use crate::{MILLI, Nanos};

/// Activity is reported at most this often.
const REPORT: Nanos = 100 * MILLI;

/// The header keys of one handshake.
pub struct Slot {
    /// Control's number for it.
    pub id: SlotId,
    /// The source of its handshake.
    peer: SocketAddr,
    incoming: HeaderKey,
    outgoing: HeaderKey,
}

impl Slot {
    pub fn id(&self) -> SlotId {
        self.id
    }

    pub fn incoming(&self) -> &HeaderKey {
        &self.incoming
    }

    pub fn outgoing(&self) -> &HeaderKey {
        &self.outgoing
    }
}

pub struct Link {
    id: LinkId,
    side: Side,
    /// The destination of its cells.
    peer: SocketAddr,
    /// The network of the peer ([`prefix`]).
    prefix: u32,
    current: Option<Slot>,
    next: Option<Slot>,
    previous: Option<Slot>,
    /// The sources from which cells are accepted: its own address and those of its slots' handshakes.
    addresses: Vec<SocketAddr>,
    /// A data cell passed header and window since the last report.
    received: bool,
    /// A data cell was sent since the last report.
    sent: bool,
    /// Control knows that a cell authenticated under the next slot of this number.
    proposed: Option<SlotId>,
}

impl Link {
    /// Its slots, in the order in which they are tried.
    pub fn slots(&self) -> impl Iterator<Item = (Rank, &Slot)> {
        [(Rank::Current, &self.current), (Rank::Next, &self.next), (Rank::Previous, &self.previous)]
            .into_iter()
            .filter_map(|(rank, slot)| Some((rank, slot.as_ref()?)))
    }

    /// The destination of its cells.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The slot that data leaves under.
    pub fn current(&self) -> Option<&Slot> {
        self.current.as_ref()
    }

    /// The slot with this number, if it still lives.
    pub fn slot(&self, id: SlotId) -> Option<&Slot> {
        self.slots().map(|(_, slot)| slot).find(|slot| slot.id == id)
    }
}

/// All links of a worker.
#[derive(Default)]
pub struct Links {
    list: Vec<Option<Link>>,
    count: usize,
    /// Links that did something since the last report, each once.
    active: Vec<LinkId>,
    by_address: HashMap<(Side, SocketAddr), Vec<LinkId>, foldhash::fast::RandomState>,
}

impl Links {
    /// Makes a change of control's.
    pub fn apply(&mut self, command: LinkCommand) {
        match command {
            LinkCommand::Install { link, side, peer } => self.install(link, side, peer),
            LinkCommand::InstallSlot { link, slot, peer, header_i2r, header_r2i, rank } => {
                self.install_slot(link, slot, peer, rank, &header_i2r, &header_r2i);
            }
            LinkCommand::Promote { link, slot, peer } => {
                self.promote(link, slot, peer);
            }
            LinkCommand::Move { link, peer } => self.move_to(link, peer),
            LinkCommand::RetireSlot { link, slot } => self.retire_slot(link, slot),
            LinkCommand::Retire { link } => self.retire(link),
        }
    }

    /// Adds a link without slots.
    pub fn install(&mut self, id: LinkId, side: Side, peer: SocketAddr) {
        let at = id.index();
        if self.list.len() <= at {
            self.list.resize_with(at + 1, || None);
        }
        if let Some(old) = self.list[at].as_ref().map(|link| link.id) {
            self.retire(old);
        }
        self.list[at] = Some(Link {
            id,
            side,
            peer,
            prefix: prefix(peer.ip()),
            current: None,
            next: None,
            previous: None,
            addresses: Vec::new(),
            received: false,
            sent: false,
            proposed: None,
        });
        self.count += 1;
        self.map(id, peer);
    }

    /// Adds a slot. A new current one makes the old one previous; a new next one overwrites.
    pub fn install_slot(
        &mut self,
        id: LinkId,
        slot: SlotId,
        peer: SocketAddr,
        rank: Rank,
        header_i2r: &Zeroizing<[u8; 16]>,
        header_r2i: &Zeroizing<[u8; 16]>,
    ) {
        let Some(link) = self.link_mut(id) else { return };
        let (incoming, outgoing) = match link.side {
            Side::Up => (header_i2r, header_r2i),
            Side::Down => (header_r2i, header_i2r),
        };
        let made = Slot { id: slot, peer, incoming: HeaderKey::new(incoming), outgoing: HeaderKey::new(outgoing) };
        match rank {
            Rank::Current => {
                link.peer = peer;
                link.previous = link.current.replace(made).or(link.previous.take());
            }
            Rank::Next => link.next = Some(made),
            Rank::Previous => link.previous = Some(made),
        }
        self.remap(id);
    }

    /// Makes the next slot current, if it is this one; the link's cells go to `peer` from now on. True if that
    /// changed anything.
    pub fn promote(&mut self, id: LinkId, slot: SlotId, peer: SocketAddr) -> bool {
        let Some(link) = self.link_mut(id) else { return false };
        let Some(next) = link.next.take_if(|next| next.id == slot) else { return false };
        link.peer = peer;
        link.previous = link.current.replace(next).or(link.previous.take());
        self.remap(id);
        true
    }

    /// Sends the link's cells to another address from now on.
    pub fn move_to(&mut self, id: LinkId, peer: SocketAddr) {
        if let Some(link) = self.link_mut(id) {
            link.peer = peer;
            self.remap(id);
        }
    }

    pub(crate) fn retire_slot(&mut self, id: LinkId, slot: SlotId) {
        let Some(link) = self.link_mut(id) else { return };
        for place in [&mut link.current, &mut link.next, &mut link.previous] {
            place.take_if(|s| s.id == slot);
        }
        self.remap(id);
    }

    pub fn retire(&mut self, id: LinkId) {
        if let Some(link) = self.list.get_mut(id.index()).and_then(|at| at.take_if(|link| link.id == id)) {
            self.count -= 1;
            self.active.retain(|active| *active != id);
            for address in &link.addresses {
                self.unmap(id, link.side, *address);
            }
        }
    }

    /// The link with this number.
    pub fn link(&self, id: LinkId) -> Option<&Link> {
        self.list.get(id.index())?.as_ref().filter(|link| link.id == id)
    }

    /// The link with this number.
    pub fn link_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        self.list.get_mut(id.index())?.as_mut().filter(|link| link.id == id)
    }

    /// The network of a link's peer, as a number (SPEC 4.11): equal for addresses with one /32 of IPv4 or one /48 of
    /// IPv6, and different for others but by chance. For counting alone.
    pub fn prefix(&self, id: LinkId) -> u32 {
        self.link(id).map_or(NO_PREFIX, |link| link.prefix)
    }

    pub fn side(&self, id: LinkId) -> Option<Side> {
        self.link(id).map(|link| link.side)
    }

    /// Links whose cells may come from this address.
    pub fn at(&self, side: Side, peer: SocketAddr) -> &[LinkId] {
        self.by_address.get(&(side, peer)).map_or(&[], Vec::as_slice)
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A data cell passed header and window.
    pub fn received(&mut self, id: LinkId) {
        self.note(id, |link| &mut link.received);
    }

    /// A data cell was sent.
    pub fn sent(&mut self, id: LinkId) {
        self.note(id, |link| &mut link.sent);
    }

    fn note(&mut self, id: LinkId, flag: impl Fn(&mut Link) -> &mut bool) {
        let Some(link) = self.link_mut(id) else { return };
        let fresh = !(link.received || link.sent);
        *flag(link) = true;
        if fresh {
            self.active.push(id);
        }
    }

    /// True if a link has activity that is not reported yet.
    pub(crate) fn has_activity(&self) -> bool {
        !self.active.is_empty()
    }

    /// Takes what one link did, if one did something: number, received, sent.
    pub(crate) fn take_activity(&mut self) -> Option<(LinkId, bool, bool)> {
        let id = self.active.pop()?;
        let link = self.link_mut(id).expect("a retired link is not active");
        Some((id, std::mem::take(&mut link.received), std::mem::take(&mut link.sent)))
    }

    /// True the first time that a cell authenticates under this next slot: control must hear of it once.
    pub(crate) fn proposes(&mut self, id: LinkId, slot: SlotId) -> bool {
        self.link_mut(id).is_some_and(|link| link.proposed.replace(slot) != Some(slot))
    }

    fn map(&mut self, id: LinkId, address: SocketAddr) {
        let Some(link) = self.link_mut(id) else { return };
        if !link.addresses.contains(&address) {
            link.addresses.push(address);
            let side = link.side;
            self.by_address.entry((side, address)).or_default().push(id);
        }
    }

    fn unmap(&mut self, id: LinkId, side: Side, address: SocketAddr) {
        if let Some(ids) = self.by_address.get_mut(&(side, address)) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_address.remove(&(side, address));
            }
        }
    }

    /// Makes the address map agree with the slots.
    fn remap(&mut self, id: LinkId) {
        let Some(link) = self.link_mut(id) else { return };
        link.prefix = prefix(link.peer.ip());
        let side = link.side;
        let want: Vec<SocketAddr> = link.slots().map(|(_, slot)| slot.peer).chain(std::iter::once(link.peer)).collect();
        let old: Vec<SocketAddr> = link.addresses.extract_if(.., |address| !want.contains(address)).collect();
        for address in old {
            self.unmap(id, side, address);
        }
        for address in want {
            self.map(id, address);
        }
    }
}

/// Reports to control what the links did, at most every 100 ms.
pub(crate) fn report_activity(links: &mut Links, punts: &mut PuntSender, due: &mut Nanos, now: Nanos) {
    if now < *due || !links.has_activity() {
        return;
    }
    *due = now + REPORT;
    // Reports that find no room wait for the next call.
    while punts.room() > 0
        && let Some((link, received, sent)) = links.take_activity()
    {
        let _ = punts.send(Punt::Activity { link, received, sent });
    }
}

/// The network of an address as a number that is not [`NO_PREFIX`].
fn prefix(address: IpAddr) -> u32 {
    let number = match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_bits(),
        IpAddr::V6(v6) => {
            // Fibonacci hashing: networks next to each other fall far apart.
            let network = (v6.to_bits() >> 80) as u64;
            (network.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
        }
    };
    number.max(NO_PREFIX + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SECOND;

    fn slot(links: &mut Links, id: u32, slot: u32, peer: &str, rank: Rank) {
        let key = Zeroizing::new([slot as u8; 16]);
        links.install_slot(LinkId(id), SlotId(slot), peer.parse().unwrap(), rank, &key, &key);
    }

    fn ranks(links: &Links, id: u32) -> Vec<(Rank, u32)> {
        links.link(LinkId(id)).unwrap().slots().map(|(rank, slot)| (rank, slot.id.0)).collect()
    }

    #[test]
    fn prefix_is_of_a_network_and_follows_the_peer() {
        let mut links = Links::default();
        let mut of = |peer: &str| {
            links.install(LinkId(3), Side::Up, peer.parse().unwrap());
            links.prefix(LinkId(3))
        };
        assert_ne!(of("192.0.2.1:1"), of("192.0.2.2:1"));
        assert_eq!(of("192.0.2.1:1"), of("[::ffff:192.0.2.1]:2"));
        assert_eq!(of("[2001:db8:1:2::3]:1"), of("[2001:db8:1:ffff::4]:2"));
        assert_ne!(of("[2001:db8:1::3]:1"), of("[2001:db8:2::3]:1"));
        assert_ne!(of("0.0.0.0:1"), NO_PREFIX);
        links.move_to(LinkId(3), "192.0.2.7:9".parse().unwrap());
        let moved = links.prefix(LinkId(3));
        assert_eq!((moved, links.prefix(LinkId(4))), (prefix("192.0.2.7".parse().unwrap()), NO_PREFIX));
    }

    #[test]
    fn a_responder_goes_on_under_current_until_next_is_promoted() {
        let mut links = Links::default();
        links.install(LinkId(3), Side::Up, "1.1.1.1:1".parse().unwrap());
        slot(&mut links, 3, 10, "1.1.1.1:1", Rank::Current);
        slot(&mut links, 3, 11, "1.1.1.1:1", Rank::Next);
        slot(&mut links, 3, 12, "1.1.1.1:1", Rank::Next);
        assert_eq!(links.link(LinkId(3)).unwrap().current().unwrap().id, SlotId(10));
        let from = "1.1.1.1:1".parse().unwrap();
        assert!(!links.promote(LinkId(3), SlotId(11), from), "a newer next has overwritten it");
        assert!(links.promote(LinkId(3), SlotId(12), from));
        assert_eq!(ranks(&links, 3), [(Rank::Current, 12), (Rank::Previous, 10)]);
        links.retire_slot(LinkId(3), SlotId(10));
        assert_eq!(ranks(&links, 3), [(Rank::Current, 12)]);
    }

    #[test]
    fn addresses_follow_the_slots() {
        let mut links = Links::default();
        let (a, b): (SocketAddr, SocketAddr) = ("1.1.1.1:1".parse().unwrap(), "2.2.2.2:2".parse().unwrap());
        links.install(LinkId(0), Side::Up, a);
        slot(&mut links, 0, 1, "1.1.1.1:1", Rank::Current);
        slot(&mut links, 0, 2, "2.2.2.2:2", Rank::Next);
        assert_eq!((links.at(Side::Up, a), links.at(Side::Up, b)), (&[LinkId(0)][..], &[LinkId(0)][..]));
        assert!(links.at(Side::Down, a).is_empty());
        assert_eq!(links.link(LinkId(0)).unwrap().peer(), a, "cells go where they went");
        links.promote(LinkId(0), SlotId(2), b);
        assert_eq!(links.at(Side::Up, a), [LinkId(0)], "previous is still accepted from there");
        links.retire_slot(LinkId(0), SlotId(1));
        assert!(links.at(Side::Up, a).is_empty());
        assert_eq!(links.link(LinkId(0)).unwrap().peer(), b);
        links.retire(LinkId(0));
        assert!(links.at(Side::Up, b).is_empty() && links.is_empty());
    }

    #[test]
    fn link_address_follows_promoting_cell_not_handshake() {
        let mut links = Links::default();
        let (home, thief) = ("1.1.1.1:1".parse().unwrap(), "6.6.6.6:6".parse().unwrap());
        links.install(LinkId(0), Side::Up, home);
        slot(&mut links, 0, 1, "1.1.1.1:1", Rank::Next);
        links.promote(LinkId(0), SlotId(1), home);
        slot(&mut links, 0, 2, "6.6.6.6:6", Rank::Next);
        assert_eq!((links.link(LinkId(0)).unwrap().peer(), links.at(Side::Up, home)), (home, &[LinkId(0)][..]));
        links.promote(LinkId(0), SlotId(2), home);
        links.retire_slot(LinkId(0), SlotId(1));
        assert_eq!(links.link(LinkId(0)).unwrap().peer(), home);
        assert_eq!((links.at(Side::Up, home), links.at(Side::Up, thief)), (&[LinkId(0)][..], &[LinkId(0)][..]));
        links.move_to(LinkId(0), thief);
        assert_eq!(links.link(LinkId(0)).unwrap().peer(), thief);
        assert!(links.at(Side::Up, home).is_empty(), "no slot has a handshake from there");
        links.retire(LinkId(0));
        assert!(links.by_address.is_empty());
    }

    #[test]
    fn more_active_links_than_the_ring_holds_are_reported_in_turns() {
        let (ring, mut control) = rtrb::RingBuffer::new(256);
        let mut punts = PuntSender::new(ring, std::sync::Arc::new(crate::sys::Waker::new().unwrap()));
        let mut links = Links::default();
        for link in 0..300 {
            links.install(LinkId(link), Side::Up, SocketAddr::from(([192, 0, 2, 1], 1000 + link as u16)));
            links.received(LinkId(link));
        }
        let (mut due, mut reported) = (0, Vec::new());
        for turn in 1..=2 {
            report_activity(&mut links, &mut punts, &mut due, turn * SECOND);
            assert_eq!(due, turn * SECOND + REPORT);
            while let Ok(punt) = control.pop() {
                if let Punt::Activity { link, received: true, sent: false } = punt {
                    reported.push(link);
                }
            }
        }
        reported.sort_unstable();
        assert!(reported.into_iter().eq((0..300).map(LinkId)) && !links.has_activity());
    }
}
