//! A node: its `Control`, and for each class a data plane with slots and channels only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use control::{Change, Control, Event};
use wire::cell::{BadHeader, CellKind, Header, Shape};
use wire::ids::{ChannelIndex, ChannelKeys, LinkId, Rank, Side, SlotId};
use wire::link::HeaderKey;
use zeroize::Zeroizing;
pub(super) struct PlaneSlot {
    pub(super) slot: SlotId,
    peer: SocketAddr,
    pub(super) i2r: Zeroizing<[u8; 16]>,
    r2i: Zeroizing<[u8; 16]>,
}

pub struct PlaneLink {
    pub side: Side,
    pub peer: SocketAddr,
    pub(super) current: Option<PlaneSlot>,
    next: Option<PlaneSlot>,
    previous: Option<PlaneSlot>,
}

impl PlaneLink {
    pub(super) fn slots(&self) -> impl Iterator<Item = &PlaneSlot> {
        [&self.current, &self.next, &self.previous].into_iter().flatten()
    }

    pub fn current(&self) -> Option<SlotId> {
        self.current.as_ref().map(|s| s.slot)
    }

    pub fn next(&self) -> Option<SlotId> {
        self.next.as_ref().map(|s| s.slot)
    }

    /// The header keys of forward cells: under its current slot, and under any.
    pub fn keys(&self) -> (Option<[u8; 16]>, Vec<[u8; 16]>) {
        (self.current.as_ref().map(|slot| *slot.i2r), self.slots().map(|slot| *slot.i2r).collect())
    }

    pub fn slot_count(&self) -> usize {
        self.slots().count()
    }
}

pub struct Installed {
    pub up: Option<(LinkId, u32)>,
    pub down: Option<(LinkId, u32)>,
    pub keys: ChannelKeys,
}

/// The data plane of one class.
pub struct Plane {
    pub shape: Shape,
    pub links: BTreeMap<LinkId, PlaneLink>,
    used: BTreeSet<LinkId>,
    pub channels: BTreeMap<ChannelIndex, Installed>,
    pub superseded: Vec<(ChannelIndex, ChannelIndex)>,
    pub up_address: SocketAddr,
    pub down_address: SocketAddr,
    /// Cells sent: when, of which type, and past the pool or not.
    pub sent: Vec<(Duration, CellKind, bool)>,
}

/// Most tests have one class, so a node stands for the data plane of its first one.
pub struct Node {
    pub control: Control,
    pub position: usize,
    pub planes: Vec<Plane>,
    pub events: Vec<(Duration, Event)>,
    /// False if a test makes it break the protocol.
    pub honest: bool,
    /// Cells sent for each ack content, by link and channel.
    pub(super) acks: BTreeMap<(LinkId, u32), BTreeMap<u8, usize>>,
    /// When it had the names of its next hop resolved.
    pub resolved: Vec<Duration>,
    /// Cells injected for a slot that was gone.
    pub late: usize,
}

impl Deref for Node {
    type Target = Plane;

    fn deref(&self) -> &Plane {
        &self.planes[0]
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut Plane {
        &mut self.planes[0]
    }
}

impl Node {
    pub fn saw(&self, what: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|(_, e)| what(e)).count()
    }
}

impl Plane {
    pub(super) fn new(shape: Shape, up_address: SocketAddr, down_address: SocketAddr) -> Plane {
        let (links, used, channels, superseded, sent) = Default::default();
        Plane { shape, links, used, channels, superseded, up_address, down_address, sent }
    }

    pub fn address(&self, side: Side) -> SocketAddr {
        match side {
            Side::Up => self.up_address,
            Side::Down => self.down_address,
        }
    }

    /// A header key of a slot: of the cells from its initiator, or of those to it.
    pub(super) fn header_key(&self, link: LinkId, slot: SlotId, is_forward: bool) -> Option<[u8; 16]> {
        let slot = self.links.get(&link)?.slots().find(|s| s.slot == slot)?;
        Some(if is_forward { *slot.i2r } else { *slot.r2i })
    }

    /// That of the cells which this node sends.
    pub(super) fn sends_with(&self, link: LinkId, slot: SlotId) -> Option<[u8; 16]> {
        let side = self.links.get(&link).expect("cells are injected on installed links").side;
        self.header_key(link, slot, side == Side::Down)
    }

    pub(super) fn encipher(
        &self,
        link: LinkId,
        slot: SlotId,
        header: Header,
        body: &[u8],
    ) -> Option<(SocketAddr, SocketAddr, Vec<u8>)> {
        let key = self.sends_with(link, slot)?;
        let link = &self.links[&link];
        let mut block = [header.to_block()];
        HeaderKey::new(&key).encipher(&mut block);
        Some((self.address(link.side), link.peer, [&block[0][..], body].concat()))
    }

    pub(super) fn find(&self, side: Side, from: SocketAddr, bytes: &[u8]) -> Option<(LinkId, SlotId, Header)> {
        let block: [u8; 16] = *bytes.first_chunk()?;
        for (id, link) in self.links.iter().filter(|(_, link)| link.side == side) {
            for slot in link.slots().filter(|s| s.peer == from || link.peer == from) {
                let key = match side {
                    Side::Up => &slot.i2r,
                    Side::Down => &slot.r2i,
                };
                let mut block = [block];
                HeaderKey::new(key).decipher(&mut block);
                match Header::from_block(&block[0], self.shape.class()) {
                    Ok(header) => return Some((*id, slot.slot, header)),
                    Err(BadHeader::Zero | BadHeader::Class | BadHeader::Kind) => {}
                }
            }
        }
        None
    }

    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Paced(_) => unreachable!("this simulation has free classes only"),
            Change::InstallLink { link, side, peer } => {
                let fresh = PlaneLink { side, peer, current: None, next: None, previous: None };
                assert!(self.links.insert(link, fresh).is_none(), "a live link is not installed again");
                assert!(self.used.insert(link), "a number names one link only");
            }
            Change::InstallSlot { link, slot, peer, header_i2r, header_r2i, rank } => {
                let link = self.links.get_mut(&link).expect("the link comes before the slot");
                let slot = Some(PlaneSlot { slot, peer, i2r: header_i2r, r2i: header_r2i });
                match rank {
                    Rank::Next => link.next = slot,
                    Rank::Previous => unreachable!("control never installs a previous slot"),
                    Rank::Current => {
                        link.peer = peer;
                        link.previous = std::mem::replace(&mut link.current, slot);
                    }
                }
            }
            Change::Promote { link, slot, peer } => {
                let link = self.links.get_mut(&link).expect("a live link is promoted");
                assert_eq!(link.next(), Some(slot), "only next is promoted");
                let next = link.next.take();
                link.peer = peer;
                link.previous = std::mem::replace(&mut link.current, next);
            }
            Change::MoveLink { link, peer } => self.links.get_mut(&link).expect("a live link moves").peer = peer,
            Change::RetireSlot { link, slot } => {
                let link = self.links.get_mut(&link).expect("the slot's link lives");
                assert!(link.slots().any(|s| s.slot == slot), "an unknown slot is retired");
                for place in [&mut link.current, &mut link.next, &mut link.previous] {
                    place.take_if(|s| s.slot == slot);
                }
            }
            Change::RetireLink { link } => {
                self.links.remove(&link).expect("a live link is retired");
                let over = |id: Option<(LinkId, u32)>| id.is_some_and(|id| id.0 == link);
                assert!(!self.channels.values().any(|c| over(c.up) || over(c.down)), "its channels went first");
            }
            Change::InstallChannel { channel, up, down, keys, .. } => {
                assert!(self.channels.insert(channel, Installed { up, down, keys }).is_none(), "the index was free");
            }
            Change::Supersede { old, new } => {
                assert!(self.channels.contains_key(&old) && self.channels.contains_key(&new));
                self.superseded.push((old, new));
            }
            Change::RetireChannel { .. } | Change::Inject { .. } => unreachable!("handled by the world"),
        }
    }

    /// The only link of this side.
    pub fn link(&self, side: Side) -> (LinkId, &PlaneLink) {
        let mut all = self.links.iter().filter(|(_, link)| link.side == side);
        let (id, link) = all.next().expect("there is a link");
        assert!(all.next().is_none(), "there is one link only");
        (*id, link)
    }

    pub fn has_link(&self, side: Side) -> bool {
        self.links.values().any(|link| link.side == side && link.current.is_some())
    }
}
