//! Inner frames: what stands in the P bytes of a data cell (SPEC 3.10), and how a datagram that is
//! too long for one cell becomes fragments (SPEC 3.11).
//!
//! Owns the byte layout of every frame. A cell is checked whole before any of its frames is handed
//! out: one bad frame drops the cell, so no cell takes effect by halves. Refuses unknown types,
//! truncated frames, frames against their direction, and addresses that have another spelling.
//! What an OPEN or a MOVE means, and how often it is repeated (SPEC 3.12), is for the ends of the
//! chain; [`crate::reassembly`] puts fragments together again.

use std::iter::FusedIterator;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

use crate::cell::Direction;

/// Bytes of a DGRAM frame before its data.
pub const DGRAM_OVERHEAD: usize = 5;
/// Bytes of a FRAG frame before its data.
pub const FRAG_OVERHEAD: usize = 8;
/// Most fragments of one datagram.
pub const FRAGMENTS_MAX: usize = 8;

/// First number that a REPORT cannot carry.
const U40_END: u64 = 1 << 40;

/// Names a flow across channels: whoever shows it may move the flow.
pub type Token = [u8; 16];

/// First byte of a frame.
mod kind {
    pub(super) const PAD: u8 = 0x00;
    pub(super) const DGRAM: u8 = 0x01;
    pub(super) const FRAG: u8 = 0x02;
    pub(super) const OPEN: u8 = 0x03;
    pub(super) const CLOSE: u8 = 0x04;
    pub(super) const STATUS: u8 = 0x05;
    pub(super) const MOVE: u8 = 0x06;
    pub(super) const REPORT: u8 = 0x07;
    pub(super) const PING: u8 = 0x08;
    pub(super) const PONG: u8 = 0x09;
    pub(super) const PEER: u8 = 0x0a;
    pub(super) const FROM: u8 = 0x0b;
}

/// First byte of an address: SOCKS numbers, except for 6.
mod atype {
    pub(super) const NAME: u8 = 3;
    pub(super) const V4: u8 = 4;
    pub(super) const V6: u8 = 6;
}

/// Where a flow leads.
///
/// An address has one spelling: an IPv4 address in IPv6 clothes (`::ffff:a.b.c.d`) is written as the
/// IPv4 address, and refused when read, so that no exit policy has to think of it. Flow label and
/// scope of an IPv6 address are not carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address<'a> {
    /// Atypes 4 and 6.
    Ip(SocketAddr),
    /// Atype 3: a host name for the exit to resolve, and a port. 1 to 255 bytes of letters, digits,
    /// `-`, `_` and `.`.
    Name(&'a str, u16),
}

impl Address<'_> {
    fn len(&self) -> usize {
        match self {
            Address::Ip(socket) => ip_len(socket),
            Address::Name(name, _) => 1 + 1 + name.len() + 2,
        }
    }
}

fn ip_len(socket: &SocketAddr) -> usize {
    match socket.ip().to_canonical() {
        IpAddr::V4(_) => 1 + 4 + 2,
        IpAddr::V6(_) => 1 + 16 + 2,
    }
}

/// Whether an OPEN may carry this name. It says nothing about whether the name resolves.
pub fn is_host_name(name: &[u8]) -> bool {
    (1..=255).contains(&name.len()) && name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// What the exit says about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    /// It is open.
    Open = 0,
    /// The exit's policy refuses the destination.
    Refused = 1,
    /// The name does not resolve.
    Unresolvable = 2,
    /// The network reports the destination unreachable.
    Unreachable = 3,
    /// The channel has as many flows as it may.
    TooManyFlows = 4,
    /// No such flow here: open it, or move it, again.
    UnknownFlow = 5,
    /// The last datagram was too large for the path behind the exit.
    TooLarge = 6,
}

impl Status {
    /// The status with this number on the wire.
    pub const fn from_wire(byte: u8) -> Option<Status> {
        match byte {
            0 => Some(Status::Open),
            1 => Some(Status::Refused),
            2 => Some(Status::Unresolvable),
            3 => Some(Status::Unreachable),
            4 => Some(Status::TooManyFlows),
            5 => Some(Status::UnknownFlow),
            6 => Some(Status::TooLarge),
            _ => None,
        }
    }
}

/// One inner frame (SPEC 3.10). Flows are numbered by the entry, per channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A whole datagram; both ways.
    Dgram {
        /// Its flow.
        flow: u16,
        /// Its bytes; may be empty, as a UDP datagram may.
        data: &'a [u8],
    },
    /// A part of a datagram; both ways.
    Frag {
        /// Its flow.
        flow: u16,
        /// The datagram within the flow and direction.
        id: u16,
        /// 0..=7.
        index: u8,
        /// No fragment follows this one.
        last: bool,
        /// P - 8 bytes, fewer in the last.
        data: &'a [u8],
    },
    /// Opens a flow; forward.
    Open {
        /// Its new number.
        flow: u16,
        /// Flows with one map share a socket at the exit.
        map: u16,
        /// What a later MOVE has to show.
        token: Token,
        /// Its destination.
        to: Address<'a>,
    },
    /// Ends a flow; both ways.
    Close {
        /// Which.
        flow: u16,
    },
    /// The exit's word on a flow; backward.
    Status {
        /// Which.
        flow: u16,
        /// The word.
        code: Status,
    },
    /// Brings a flow and its socket to this channel; forward.
    Move {
        /// Its number on this channel.
        flow: u16,
        /// The token of its OPEN.
        token: Token,
    },
    /// The exit's count of the channel's forward cells; backward.
    Report {
        /// Highest seq accepted, 40 bits.
        highest: u64,
        /// Cells accepted, 40 bits.
        received: u64,
    },
    /// To be answered with a PONG of the same bytes; both ways.
    Ping([u8; 8]),
    /// Answers a PING; both ways.
    Pong([u8; 8]),
    /// The address that the name of a flow's destination has resolved to; backward.
    Peer {
        /// Which flow.
        flow: u16,
        /// The address.
        from: SocketAddr,
    },
    /// A whole datagram from an address that no flow talks to; backward.
    From {
        /// A flow of the client whose socket it came to.
        flow: u16,
        /// Its sender.
        from: SocketAddr,
        /// Its bytes.
        data: &'a [u8],
    },
}

#[expect(clippy::len_without_is_empty, reason = "no frame is empty")]
impl Frame<'_> {
    /// Encoded bytes.
    pub fn len(&self) -> usize {
        match self {
            Frame::Dgram { data, .. } => DGRAM_OVERHEAD + data.len(),
            Frame::Frag { data, .. } => FRAG_OVERHEAD + data.len(),
            Frame::Open { to, .. } => 1 + 2 + 2 + 16 + to.len(),
            Frame::Close { .. } => 1 + 2,
            Frame::Status { .. } => 1 + 2 + 1,
            Frame::Move { .. } => 1 + 2 + 16,
            Frame::Report { .. } => 1 + 5 + 5,
            Frame::Ping(_) | Frame::Pong(_) => 1 + 8,
            Frame::Peer { from, .. } => 1 + 2 + ip_len(from),
            Frame::From { from, data, .. } => 1 + 2 + ip_len(from) + 2 + data.len(),
        }
    }

    /// Whether frames of this type may travel in `heading`.
    pub const fn travels(&self, heading: Direction) -> bool {
        match self {
            Frame::Dgram { .. } | Frame::Frag { .. } | Frame::Close { .. } | Frame::Ping(_) | Frame::Pong(_) => true,
            Frame::Open { .. } | Frame::Move { .. } => matches!(heading, Direction::Forward),
            Frame::Status { .. } | Frame::Report { .. } | Frame::Peer { .. } | Frame::From { .. } => {
                matches!(heading, Direction::Backward)
            }
        }
    }

    /// Whether the fields have values that the layout can carry.
    fn is_expressible(&self) -> bool {
        match *self {
            Frame::Dgram { data, .. } | Frame::From { data, .. } => data.len() <= usize::from(u16::MAX),
            Frame::Frag { index, data, .. } => {
                usize::from(index) < FRAGMENTS_MAX && data.len() <= usize::from(u16::MAX)
            }
            Frame::Open { to: Address::Name(name, _), .. } => is_host_name(name.as_bytes()),
            Frame::Report { highest, received } => highest < U40_END && received < U40_END,
            _ => true,
        }
    }
}

/// Why a cell's inside is refused. Counted, never answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum BadFrames {
    /// A type that this version does not know.
    #[error("unknown frame type")]
    Kind,
    /// A frame reaches past the end of the cell.
    #[error("truncated frame")]
    Truncated,
    /// A type that may not travel in this direction.
    #[error("frame against its direction")]
    Direction,
    /// A status code that this version does not know.
    #[error("unknown status code")]
    Status,
    /// An unknown atype, a name that is none, or an address that has another spelling.
    #[error("bad address")]
    Address,
    /// Bits of a fragment's index that must be zero are not.
    #[error("bad fragment index")]
    Fragment,
}

/// Checks the whole of a cell's inside and only then hands out its frames. PAD ends a cell; what
/// follows it is ignored.
///
/// # Errors
/// The first thing that is wrong; the cell is then to be dropped.
pub fn parse(inner: &[u8], heading: Direction) -> Result<Frames<'_>, BadFrames> {
    let mut rest = inner;
    while let Some(frame) = take_frame(&mut rest)? {
        if !frame.travels(heading) {
            return Err(BadFrames::Direction);
        }
    }
    Ok(Frames { rest: inner })
}

/// The frames of a cell that [`parse`] has checked.
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        // `parse` has seen every frame up to the end: an error cannot come.
        take_frame(&mut self.rest).ok().flatten()
    }
}

impl FusedIterator for Frames<'_> {}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], BadFrames> {
    let (head, tail) = rest.split_first_chunk().ok_or(BadFrames::Truncated)?;
    *rest = tail;
    Ok(*head)
}

fn take_u8(rest: &mut &[u8]) -> Result<u8, BadFrames> {
    take::<1>(rest).map(|[byte]| byte)
}

fn take_u16(rest: &mut &[u8]) -> Result<u16, BadFrames> {
    take(rest).map(u16::from_be_bytes)
}

fn take_u40(rest: &mut &[u8]) -> Result<u64, BadFrames> {
    let [a, b, c, d, e] = take(rest)?;
    Ok(u64::from_be_bytes([0, 0, 0, a, b, c, d, e]))
}

fn take_slice<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], BadFrames> {
    rest.split_off(..len).ok_or(BadFrames::Truncated)
}

/// A u16 length and as many bytes.
fn take_data<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], BadFrames> {
    let len = take_u16(rest)?;
    take_slice(rest, len.into())
}

fn take_address<'a>(rest: &mut &'a [u8]) -> Result<Address<'a>, BadFrames> {
    let ip: IpAddr = match take_u8(rest)? {
        atype::V4 => Ipv4Addr::from(take::<4>(rest)?).into(),
        atype::V6 => {
            let ip = Ipv6Addr::from(take::<16>(rest)?);
            if ip.to_ipv4_mapped().is_some() {
                return Err(BadFrames::Address);
            }
            ip.into()
        }
        atype::NAME => {
            let len = take_u8(rest)?;
            let name = take_slice(rest, len.into())?;
            if !is_host_name(name) {
                return Err(BadFrames::Address);
            }
            let name = str::from_utf8(name).map_err(|_| BadFrames::Address)?;
            return Ok(Address::Name(name, take_u16(rest)?));
        }
        _ => return Err(BadFrames::Address),
    };
    Ok(Address::Ip(SocketAddr::new(ip, take_u16(rest)?)))
}

/// An address that is no name.
fn take_ip(rest: &mut &[u8]) -> Result<SocketAddr, BadFrames> {
    match take_address(rest)? {
        Address::Ip(socket) => Ok(socket),
        Address::Name(..) => Err(BadFrames::Address),
    }
}

/// The next frame; nothing at the end of the cell or at PAD, which leaves `rest` empty.
fn take_frame<'a>(rest: &mut &'a [u8]) -> Result<Option<Frame<'a>>, BadFrames> {
    if rest.is_empty() {
        return Ok(None);
    }
    let frame = match take_u8(rest)? {
        kind::PAD => {
            *rest = &[];
            return Ok(None);
        }
        kind::DGRAM => Frame::Dgram { flow: take_u16(rest)?, data: take_data(rest)? },
        kind::FRAG => {
            let (flow, id, byte) = (take_u16(rest)?, take_u16(rest)?, take_u8(rest)?);
            if byte & 0x78 != 0 {
                return Err(BadFrames::Fragment);
            }
            Frame::Frag { flow, id, index: byte & 7, last: byte & 0x80 != 0, data: take_data(rest)? }
        }
        kind::OPEN => {
            Frame::Open { flow: take_u16(rest)?, map: take_u16(rest)?, token: take(rest)?, to: take_address(rest)? }
        }
        kind::CLOSE => Frame::Close { flow: take_u16(rest)? },
        kind::STATUS => {
            let flow = take_u16(rest)?;
            Frame::Status { flow, code: Status::from_wire(take_u8(rest)?).ok_or(BadFrames::Status)? }
        }
        kind::MOVE => Frame::Move { flow: take_u16(rest)?, token: take(rest)? },
        kind::REPORT => Frame::Report { highest: take_u40(rest)?, received: take_u40(rest)? },
        kind::PING => Frame::Ping(take(rest)?),
        kind::PONG => Frame::Pong(take(rest)?),
        kind::PEER => Frame::Peer { flow: take_u16(rest)?, from: take_ip(rest)? },
        kind::FROM => Frame::From { flow: take_u16(rest)?, from: take_ip(rest)?, data: take_data(rest)? },
        _ => return Err(BadFrames::Kind),
    };
    Ok(Some(frame))
}

/// Fills a cell's inside with frames, in order.
#[must_use = "the bytes behind the last frame are what they were until `finish`"]
pub struct Writer<'a> {
    inner: &'a mut [u8],
    at: usize,
}

impl<'a> Writer<'a> {
    /// Starts at the first of the P bytes.
    pub fn new(inner: &'a mut [u8]) -> Writer<'a> {
        Writer { inner, at: 0 }
    }

    /// Goes on behind the first `at` bytes, which an earlier writer has [`Writer::written`].
    ///
    /// # Panics
    /// If the inside is shorter.
    pub fn resume(inner: &'a mut [u8], at: usize) -> Writer<'a> {
        assert!(at <= inner.len());
        Writer { inner, at }
    }

    /// Bytes put so far.
    pub fn written(&self) -> usize {
        self.at
    }

    /// Appends a frame. False, and nothing is changed, if it does not fit or if no cell could carry
    /// it (a name that is none, an index over 7, a count over 40 bits); whatever is put, parses.
    pub fn put(&mut self, frame: &Frame<'_>) -> bool {
        if frame.len() > self.room() || !frame.is_expressible() {
            return false;
        }
        match *frame {
            Frame::Dgram { flow, data } => {
                self.bytes(&[kind::DGRAM]);
                self.u16(flow);
                self.data(data);
            }
            Frame::Frag { flow, id, index, last, data } => {
                self.bytes(&[kind::FRAG]);
                self.u16(flow);
                self.u16(id);
                self.bytes(&[u8::from(last) << 7 | index]);
                self.data(data);
            }
            Frame::Open { flow, map, token, to } => {
                self.bytes(&[kind::OPEN]);
                self.u16(flow);
                self.u16(map);
                self.bytes(&token);
                match to {
                    Address::Ip(socket) => self.ip(socket),
                    Address::Name(name, port) => {
                        self.bytes(&[atype::NAME, name.len() as u8]);
                        self.bytes(name.as_bytes());
                        self.u16(port);
                    }
                }
            }
            Frame::Close { flow } => {
                self.bytes(&[kind::CLOSE]);
                self.u16(flow);
            }
            Frame::Status { flow, code } => {
                self.bytes(&[kind::STATUS]);
                self.u16(flow);
                self.bytes(&[code as u8]);
            }
            Frame::Move { flow, token } => {
                self.bytes(&[kind::MOVE]);
                self.u16(flow);
                self.bytes(&token);
            }
            Frame::Report { highest, received } => {
                self.bytes(&[kind::REPORT]);
                self.bytes(&highest.to_be_bytes()[3..]);
                self.bytes(&received.to_be_bytes()[3..]);
            }
            Frame::Ping(echo) => {
                self.bytes(&[kind::PING]);
                self.bytes(&echo);
            }
            Frame::Pong(echo) => {
                self.bytes(&[kind::PONG]);
                self.bytes(&echo);
            }
            Frame::Peer { flow, from } => {
                self.bytes(&[kind::PEER]);
                self.u16(flow);
                self.ip(from);
            }
            Frame::From { flow, from, data } => {
                self.bytes(&[kind::FROM]);
                self.u16(flow);
                self.ip(from);
                self.data(data);
            }
        }
        true
    }

    /// Bytes that are left.
    pub fn room(&self) -> usize {
        self.inner.len() - self.at
    }

    /// Whether nothing was put yet.
    pub fn is_empty(&self) -> bool {
        self.at == 0
    }

    /// Fills the rest with PAD.
    pub fn finish(self) {
        self.inner[self.at..].fill(kind::PAD);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.inner[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    fn u16(&mut self, number: u16) {
        self.bytes(&number.to_be_bytes());
    }

    fn data(&mut self, data: &[u8]) {
        self.u16(data.len() as u16);
        self.bytes(data);
    }

    fn ip(&mut self, socket: SocketAddr) {
        match socket.ip().to_canonical() {
            IpAddr::V4(ip) => {
                self.bytes(&[atype::V4]);
                self.bytes(&ip.octets());
            }
            IpAddr::V6(ip) => {
                self.bytes(&[atype::V6]);
                self.bytes(&ip.octets());
            }
        }
        self.u16(socket.port());
    }
}

/// Bytes of the longest datagram that cells of a payload of P bytes carry, in [`FRAGMENTS_MAX`] of them (SPEC 3.11).
pub const fn longest(payload: usize) -> usize {
    FRAGMENTS_MAX * (payload - FRAG_OVERHEAD)
}

/// Cells that a datagram of `len` bytes takes under a payload of P bytes: 1 if one DGRAM holds it,
/// nothing if it needs more than [`FRAGMENTS_MAX`] fragments: it is longer than [`longest`] (SPEC 3.11).
pub const fn fragments(payload: usize, len: usize) -> Option<usize> {
    if len <= payload - DGRAM_OVERHEAD {
        return Some(1);
    }
    let count = len.div_ceil(payload - FRAG_OVERHEAD);
    if count <= FRAGMENTS_MAX { Some(count) } else { None }
}

/// The frames of a datagram: one DGRAM, or 2 to 8 FRAGs of P - 8 bytes each but the last. Nothing if
/// [`fragments`] says nothing. Each FRAG but the last fills a cell of its own.
pub fn split<'a>(payload: usize, flow: u16, id: u16, data: &'a [u8]) -> Split<'a> {
    Split { payload, flow, id, data, index: 0, count: fragments(payload, data.len()).unwrap_or(0) }
}

/// What [`split`] returns.
#[derive(Clone, Debug)]
pub struct Split<'a> {
    payload: usize,
    flow: u16,
    id: u16,
    /// What is still to be handed out.
    data: &'a [u8],
    index: usize,
    count: usize,
}

impl<'a> Iterator for Split<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        if self.index == self.count {
            return None;
        }
        let (flow, id, index) = (self.flow, self.id, self.index);
        self.index += 1;
        if self.count == 1 {
            return Some(Frame::Dgram { flow, data: self.data });
        }
        let (data, rest) = self.data.split_at(self.data.len().min(self.payload - FRAG_OVERHEAD));
        self.data = rest;
        Some(Frame::Frag { flow, id, index: index as u8, last: self.index == self.count, data })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count - self.index, Some(self.count - self.index))
    }
}

impl ExactSizeIterator for Split<'_> {}
impl FusedIterator for Split<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Class;
    use hex_literal::hex;
    use proptest::prelude::*;

    const BOTH: [Direction; 2] = [Direction::Forward, Direction::Backward];

    /// A frame that owns what it refers to.
    #[derive(Clone, Debug)]
    enum Owned {
        Dgram(u16, Vec<u8>),
        Frag(u16, u16, u8, bool, Vec<u8>),
        OpenIp(u16, u16, Token, SocketAddr),
        OpenName(u16, u16, Token, String, u16),
        From(u16, SocketAddr, Vec<u8>),
        Plain(Frame<'static>),
    }

    impl Owned {
        fn frame(&self) -> Frame<'_> {
            match self {
                Owned::Dgram(flow, data) => Frame::Dgram { flow: *flow, data },
                Owned::Frag(flow, id, index, last, data) => {
                    Frame::Frag { flow: *flow, id: *id, index: *index, last: *last, data }
                }
                Owned::OpenIp(flow, map, token, to) => {
                    Frame::Open { flow: *flow, map: *map, token: *token, to: Address::Ip(*to) }
                }
                Owned::OpenName(flow, map, token, name, port) => {
                    Frame::Open { flow: *flow, map: *map, token: *token, to: Address::Name(name, *port) }
                }
                Owned::From(flow, from, data) => Frame::From { flow: *flow, from: *from, data },
                Owned::Plain(frame) => *frame,
            }
        }
    }

    fn socket() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
    }

    fn frame() -> impl Strategy<Value = Owned> {
        let data = || prop::collection::vec(any::<u8>(), 0..300);
        let status = (0u8..7).prop_map(|byte| Status::from_wire(byte).unwrap());
        prop_oneof![
            (any::<u16>(), data()).prop_map(|(flow, data)| Owned::Dgram(flow, data)),
            (any::<(u16, u16)>(), 0u8..8, any::<bool>(), data())
                .prop_map(|((flow, id), index, last, data)| Owned::Frag(flow, id, index, last, data)),
            (any::<(u16, u16, Token)>(), socket()).prop_map(|((f, m, t), to)| Owned::OpenIp(f, m, t, to)),
            (any::<(u16, u16, Token)>(), "[a-zA-Z0-9._-]{1,255}", any::<u16>())
                .prop_map(|((f, m, t), name, port)| Owned::OpenName(f, m, t, name, port)),
            any::<u16>().prop_map(|flow| Owned::Plain(Frame::Close { flow })),
            (any::<u16>(), status).prop_map(|(flow, code)| Owned::Plain(Frame::Status { flow, code })),
            any::<(u16, Token)>().prop_map(|(flow, token)| Owned::Plain(Frame::Move { flow, token })),
            (0..U40_END, 0..U40_END).prop_map(|(highest, received)| Owned::Plain(Frame::Report { highest, received })),
            any::<[u8; 8]>().prop_map(|echo| Owned::Plain(Frame::Ping(echo))),
            any::<[u8; 8]>().prop_map(|echo| Owned::Plain(Frame::Pong(echo))),
            (any::<u16>(), socket()).prop_map(|(flow, from)| Owned::Plain(Frame::Peer { flow, from })),
            (any::<u16>(), socket(), data()).prop_map(|(flow, from, data)| Owned::From(flow, from, data)),
        ]
    }

    /// Bytes that often look like frames: random ones, and written frames with a byte changed.
    fn near_frames() -> impl Strategy<Value = Vec<u8>> {
        let written = (prop::collection::vec(frame(), 0..5), any::<prop::sample::Index>(), any::<Option<u8>>())
            .prop_map(|(frames, at, byte)| {
                let mut inner = vec![0; 1328];
                let mut writer = Writer::new(&mut inner);
                for frame in &frames {
                    let _ = writer.put(&frame.frame());
                }
                let end = writer.at;
                writer.finish();
                if let Some(byte) = byte {
                    inner[at.index(end.max(1))] = byte;
                }
                inner
            });
        prop_oneof![written, prop::collection::vec(prop_oneof![0u8..13, any::<u8>()], 0..100)]
    }

    #[test]
    fn frame_bytes_match_the_specification() {
        let token = hex!("000102030405060708090a0b0c0d0e0f");
        let frames: [(Frame<'_>, &[u8]); 14] = [
            (Frame::Dgram { flow: 0x1234, data: b"hi" }, &hex!("01 1234 0002 6869")),
            (Frame::Frag { flow: 1, id: 0xabcd, index: 7, last: true, data: &[9] }, &hex!("02 0001 abcd 87 0001 09")),
            (Frame::Frag { flow: 1, id: 2, index: 0, last: false, data: &[] }, &hex!("02 0001 0002 00 0000")),
            (
                Frame::Open { flow: 1, map: 2, token, to: Address::Ip("192.0.2.1:53".parse().unwrap()) },
                &hex!("03 0001 0002 000102030405060708090a0b0c0d0e0f 04 c0000201 0035"),
            ),
            (
                Frame::Open { flow: 1, map: 2, token, to: Address::Ip("[2001:db8::1]:53".parse().unwrap()) },
                &hex!("03 0001 0002 000102030405060708090a0b0c0d0e0f 06 20010db8000000000000000000000001 0035"),
            ),
            (
                Frame::Open { flow: 1, map: 2, token, to: Address::Name("a.b", 443) },
                &hex!("03 0001 0002 000102030405060708090a0b0c0d0e0f 03 03 612e62 01bb"),
            ),
            (Frame::Close { flow: 3 }, &hex!("04 0003")),
            (Frame::Status { flow: 3, code: Status::TooLarge }, &hex!("05 0003 06")),
            (Frame::Move { flow: 3, token }, &hex!("06 0003 000102030405060708090a0b0c0d0e0f")),
            (Frame::Report { highest: 0x01_0203_0405, received: 6 }, &hex!("07 0102030405 0000000006")),
            (Frame::Ping([8; 8]), &hex!("08 0808080808080808")),
            (Frame::Pong([8; 8]), &hex!("09 0808080808080808")),
            (Frame::Peer { flow: 3, from: "192.0.2.1:53".parse().unwrap() }, &hex!("0a 0003 04 c0000201 0035")),
            (
                Frame::From { flow: 3, from: "192.0.2.1:53".parse().unwrap(), data: b"hi" },
                &hex!("0b 0003 04 c0000201 0035 0002 6869"),
            ),
        ];
        for (frame, bytes) in frames {
            let mut inner = vec![0xff; bytes.len() + 3];
            let mut writer = Writer::new(&mut inner);
            assert!(writer.is_empty() && writer.put(&frame) && !writer.is_empty());
            assert_eq!(writer.room(), 3);
            writer.finish();
            assert_eq!(inner[..bytes.len()], *bytes, "{frame:?}");
            assert_eq!(inner[bytes.len()..], [0; 3]);
            assert_eq!(frame.len(), bytes.len());
            for heading in BOTH {
                let want = if frame.travels(heading) { Ok(vec![frame]) } else { Err(BadFrames::Direction) };
                assert_eq!(parse(&inner, heading).map(Iterator::collect::<Vec<_>>), want);
            }
        }
    }

    #[test]
    fn one_bad_frame_drops_the_whole_cell() {
        let token = "000102030405060708090a0b0c0d0e0f";
        let cases = [
            ("0c".to_owned(), BadFrames::Kind),
            ("ff".to_owned(), BadFrames::Kind),
            ("01 0001 0003 aabb".to_owned(), BadFrames::Truncated),
            ("01 0001 00".to_owned(), BadFrames::Truncated),
            ("02 0001 0002 08 0000".to_owned(), BadFrames::Fragment),
            ("02 0001 0002 c0 0000".to_owned(), BadFrames::Fragment),
            ("05 0001 07".to_owned(), BadFrames::Status),
            ("05 0001 06".to_owned(), BadFrames::Direction),
            (format!("03 0001 0002 {token} 05 01020304 0035"), BadFrames::Address),
            (format!("03 0001 0002 {token} 03 00 0035"), BadFrames::Address),
            (format!("03 0001 0002 {token} 03 03 612062 0035"), BadFrames::Address),
            (format!("03 0001 0002 {token} 03 02 c3a4 0035"), BadFrames::Address),
            (format!("03 0001 0002 {token} 03 05 6162"), BadFrames::Truncated),
            (format!("03 0001 0002 {token} 06 00000000000000000000ffff01020304 0035"), BadFrames::Address),
            (format!("03 0001 0002 {token} 04 01020304 00"), BadFrames::Truncated),
        ];
        for (text, reason) in cases {
            let digits: Vec<u8> = text.bytes().filter(|b| *b != b' ').collect();
            let mut inner = vec![kind::CLOSE, 0, 1];
            inner.extend(digits.chunks(2).map(|d| u8::from_str_radix(str::from_utf8(d).unwrap(), 16).unwrap()));
            assert_eq!(parse(&inner, Direction::Forward).err(), Some(reason), "{text}");
        }
        for named in [&hex!("0a 0001 03 03 612e62 0035")[..], &hex!("0b 0001 03 03 612e62 0035 0000")] {
            assert_eq!(parse(named, Direction::Backward).err(), Some(BadFrames::Address));
        }
    }

    #[test]
    fn bytes_after_pad_are_ignored() {
        let inner = hex!("04 0001 00 ff ff ff");
        let frames: Vec<_> = parse(&inner, Direction::Forward).unwrap().collect();
        assert_eq!(frames, [Frame::Close { flow: 1 }]);
        assert_eq!(parse(&[], Direction::Forward).unwrap().count(), 0);
        assert_eq!(parse(&[0; 208], Direction::Backward).unwrap().count(), 0);
    }

    #[test]
    fn inexpressible_frame_is_not_written() {
        let mut inner = [0xee; 600];
        let mut writer = Writer::new(&mut inner);
        let long = "a".repeat(256);
        for name in ["", "a b", "ä", "a/b", &long] {
            let to = Address::Name(name, 1);
            assert!(!writer.put(&Frame::Open { flow: 0, map: 0, token: [0; 16], to }), "{name}");
        }
        assert!(!writer.put(&Frame::Frag { flow: 0, id: 0, index: 8, last: false, data: &[] }));
        assert!(!writer.put(&Frame::Report { highest: U40_END, received: 0 }));
        assert!(!writer.put(&Frame::Dgram { flow: 0, data: &[0; 596] }));
        assert!(writer.is_empty() && writer.room() == 600);
        assert!(writer.put(&Frame::Dgram { flow: 0, data: &[0; 595] }));
        assert!(!writer.put(&Frame::Close { flow: 0 }) && writer.room() == 0);
    }

    #[test]
    fn mapped_ipv4_address_is_written_as_ipv4() {
        let from = "[::ffff:192.0.2.1]:53".parse().unwrap();
        let mut inner = [0; 20];
        let mut writer = Writer::new(&mut inner);
        assert!(writer.put(&Frame::Peer { flow: 1, from }));
        writer.finish();
        let frame = parse(&inner, Direction::Backward).unwrap().next();
        assert_eq!(frame, Some(Frame::Peer { flow: 1, from: "192.0.2.1:53".parse().unwrap() }));
    }

    #[test]
    fn datagram_splits_where_the_specification_says() {
        for class in [Class::S, Class::M, Class::L] {
            let p = class.payload();
            assert_eq!(fragments(p, 0), Some(1));
            assert_eq!(fragments(p, p - 5), Some(1));
            assert_eq!(fragments(p, p - 4), Some(2));
            assert_eq!(fragments(p, 2 * (p - 8)), Some(2));
            assert_eq!(fragments(p, 2 * (p - 8) + 1), Some(3));
            assert_eq!(fragments(p, 8 * (p - 8)), Some(8));
            assert_eq!(fragments(p, 8 * (p - 8) + 1), None);
            let data = vec![1; 8 * (p - 8) + 1];
            assert_eq!(split(p, 0, 0, &data).count(), 0);
            let frames: Vec<_> = split(p, 0, 0, &data[1..]).collect();
            assert_eq!(frames.len(), 8);
            assert!(frames.iter().all(|frame| frame.len() == p), "each fills a cell");
        }
    }

    proptest! {
        #[test]
        fn frames_roundtrip_through_a_cell(
            frames in prop::collection::vec(frame(), 0..8),
            heading in prop::sample::select(&BOTH),
        ) {
            let mut inner = [0xee; 1328];
            let mut writer = Writer::new(&mut inner);
            let mut put = Vec::new();
            for frame in frames.iter().map(Owned::frame).filter(|f| f.travels(heading)) {
                let room = writer.room();
                if writer.put(&frame) {
                    prop_assert_eq!(room - writer.room(), frame.len());
                    put.push(frame);
                } else {
                    prop_assert!(room == writer.room() && frame.len() > room);
                }
            }
            writer.finish();
            let back: Vec<_> = parse(&inner, heading).unwrap().collect();
            prop_assert_eq!(back, put);
        }

        #[test]
        fn parsed_frames_write_the_same_bytes(inner in near_frames(), heading in prop::sample::select(&BOTH)) {
            if let Ok(frames) = parse(&inner, heading) {
                let mut again = vec![0xee; inner.len()];
                let mut writer = Writer::new(&mut again);
                for frame in frames {
                    prop_assert!(frame.travels(heading) && writer.put(&frame));
                }
                let end = writer.at;
                prop_assert_eq!(&again[..end], &inner[..end]);
                prop_assert!(inner[end..].first().is_none_or(|byte| *byte == kind::PAD));
            }
        }

        #[test]
        fn fragment_count_matches_the_split(
            p in prop::sample::select(vec![208usize, 1152, 1328]),
            len in 0usize..11_000,
        ) {
            let data = vec![7; len];
            let frames: Vec<_> = split(p, 3, 4, &data).collect();
            prop_assert_eq!(frames.len(), fragments(p, len).unwrap_or(0));
            prop_assert!(frames.iter().all(|frame| frame.len() <= p));
        }
    }
}
