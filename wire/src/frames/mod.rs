//! Inner frames: the content of the P payload bytes of a data cell (SPEC 3.10, 3.11).
//!
//! Owns the byte layout of every frame: [`parse`] reads a cell, [`Writer`] fills one, and [`split`]
//! turns a datagram that is too long for one cell into fragments. A cell is checked as a whole before
//! any of its frames is handed out: one bad frame drops the cell, so a cell never takes effect in
//! part. Refused are unknown types, truncated frames, frames in the wrong direction, addresses that
//! have another spelling, and too many datagrams. Paced classes and meetings have frames of their own
//! and allow fewer others (SPEC 9.11.7, 9.12, 9.13.6): [`parse_paced`], [`parse_meeting`]. The meaning of
//! OPEN and MOVE, and their repetition (SPEC 3.12), belong to the ends of the chain.
//! [`crate::reassembly`] puts fragments together again.

mod fragment;
mod parse;
mod write;

pub use fragment::{
    DGRAM_OVERHEAD, FRAG_OVERHEAD, FRAGMENTS_MAX, Split, fragment_count, max_datagram_len, max_single_cell_len, split,
};
pub use parse::{BadFrames, Frames, parse, parse_meeting, parse_paced};
pub use write::{Writer, Written};

use std::net::{IpAddr, SocketAddr};

use crate::cell::{Class, Direction};

/// Frames that carry a datagram or a part of one, at most, in a cell of class S (SPEC 3.10.11).
pub const DATAGRAMS_MAX_S: usize = 8;
/// The same of the other classes.
pub const DATAGRAMS_MAX: usize = 32;

/// The same of a cell with `payload` inner bytes.
pub const fn datagrams_max(payload: usize) -> usize {
    if payload <= Class::S.payload() { DATAGRAMS_MAX_S } else { DATAGRAMS_MAX }
}

/// Bytes of an AGAIN frame before its frames.
pub const AGAIN_OVERHEAD: usize = 3;
/// The flow of a STATUS that answers SESSION; no flow has this number (SPEC 9.12.6).
pub const SESSION_FLOW: u16 = 0xffff;

/// The frames other than AGAIN of a cell, in bytes, with room for `inner` bytes: P, or P - 8 in a meeting. `repeat` is
/// true if AGAIN may travel with them. Datagrams are split for as many bytes as these (SPEC 9.11.7, 9.13.6).
pub const fn fresh_max(inner: usize, repeat: bool) -> usize {
    if repeat { inner - AGAIN_OVERHEAD } else { inner }
}

/// First number that a REPORT cannot carry.
const U40_END: u64 = 1 << 40;

/// Names a flow across channels: the client that presents it may move the flow.
pub type Token = [u8; 16];

/// First byte of a frame.
mod frame_type {
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
    pub(super) const SESSION: u8 = 0x0c;
    pub(super) const AGAIN: u8 = 0x0d;
}

/// First byte of an address: the numbers of SOCKS, except for IPv6.
mod address_type {
    pub(super) const NAME: u8 = 3;
    pub(super) const V4: u8 = 4;
    pub(super) const V6: u8 = 6;
}

/// The destination of a flow.
///
/// An address has one spelling: an IPv4-mapped IPv6 address (`::ffff:a.b.c.d`) is written as the IPv4
/// address, and refused when read, so that exit policies need not handle it. Flow label and scope of
/// an IPv6 address are not carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address<'a> {
    Ip(SocketAddr),
    /// A host name that the exit resolves, and a port. 1 to 255 bytes of letters, digits, `-`, `_` and
    /// `.`.
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

/// Checks the syntax of a name in an OPEN. Such a name need not resolve.
pub fn is_host_name(name: &[u8]) -> bool {
    (1..=255).contains(&name.len()) && name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// The state of a flow, as the exit reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    Open = 0,
    /// The exit's policy refuses the destination.
    Refused = 1,
    /// The name does not resolve.
    Unresolvable = 2,
    /// The network reports the destination unreachable.
    Unreachable = 3,
    /// A limit on flows, sockets or names is reached.
    TooManyFlows = 4,
    /// No such flow on this channel: open it, or move it, again.
    UnknownFlow = 5,
    /// The last datagram was too large for the path behind the exit.
    TooLarge = 6,
}

impl Status {
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
        flow: u16,
        /// May be empty, like a UDP datagram.
        data: &'a [u8],
    },
    /// A part of a datagram; both ways.
    Frag {
        flow: u16,
        /// Number of the datagram within its flow and direction.
        id: u16,
        /// 0..=7.
        index: u8,
        last: bool,
        /// P - 8 bytes, fewer in the last.
        data: &'a [u8],
    },
    /// Opens a flow; forward.
    Open {
        flow: u16,
        /// Flows with one map share a socket at the exit.
        map: u16,
        /// A later MOVE must present it.
        token: Token,
        to: Address<'a>,
    },
    /// Ends a flow; both ways.
    Close { flow: u16 },
    /// The state of a flow at the exit; backward.
    Status { flow: u16, code: Status },
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
    /// The peer answers with a PONG of the same bytes; both ways.
    Ping([u8; 8]),
    /// Answers a PING; both ways.
    Pong([u8; 8]),
    /// The address that the name of a flow's destination resolved to; backward.
    Peer { flow: u16, from: SocketAddr },
    /// A whole datagram from an address that no flow has as its destination; backward.
    From {
        /// A flow of the client whose socket received it.
        flow: u16,
        from: SocketAddr,
        data: &'a [u8],
    },
    /// The session that the channel's frames belong to; forward, in paced classes.
    Session([u8; 16]),
    /// The frames of the round before, as they were encoded, without AGAIN and PAD; in paced classes with repeat.
    /// [`Frames::of_again`] reads them.
    Again(&'a [u8]),
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
            Frame::Session(_) => 1 + 16,
            Frame::Again(frames) => AGAIN_OVERHEAD + frames.len(),
        }
    }

    /// True if frames of this type may travel in `direction`. SESSION and AGAIN travel in paced classes only, and AGAIN
    /// backward only in meetings.
    pub const fn travels(&self, direction: Direction) -> bool {
        match self {
            Frame::Dgram { .. } | Frame::Frag { .. } | Frame::Close { .. } | Frame::Ping(_) | Frame::Pong(_) => true,
            Frame::Open { .. } | Frame::Move { .. } | Frame::Session(_) | Frame::Again(_) => {
                matches!(direction, Direction::Forward)
            }
            Frame::Status { .. } | Frame::Report { .. } | Frame::Peer { .. } | Frame::From { .. } => {
                matches!(direction, Direction::Backward)
            }
        }
    }

    /// True if it carries a datagram or a part of one.
    pub const fn is_datagram(&self) -> bool {
        matches!(self, Frame::Dgram { .. } | Frame::Frag { .. } | Frame::From { .. })
    }

    /// True if the layout can carry the values of all fields in a cell with `payload` inner bytes.
    fn is_expressible(&self, payload: usize) -> bool {
        match *self {
            Frame::Dgram { data, .. } | Frame::From { data, .. } => data.len() <= usize::from(u16::MAX),
            Frame::Frag { index, data, .. } => {
                usize::from(index) < FRAGMENTS_MAX && data.len() <= usize::from(u16::MAX)
            }
            Frame::Open { to: Address::Name(name, _), .. } => is_host_name(name.as_bytes()),
            Frame::Report { highest, received } => highest < U40_END && received < U40_END,
            Frame::Again(frames) => frames.len() <= usize::from(u16::MAX) && parse::is_repetition(frames, payload),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;
    use proptest::prelude::*;

    const BOTH: [Direction; 2] = [Direction::Forward, Direction::Backward];

    type Parser = fn(&[u8]) -> Result<Frames<'_>, BadFrames>;
    /// Of every kind of cell.
    const PARSERS: [Parser; 5] = [
        |inner| parse(inner, Direction::Forward),
        |inner| parse(inner, Direction::Backward),
        |inner| parse_paced(inner, Direction::Forward, true),
        |inner| parse_paced(inner, Direction::Backward, true),
        |inner| parse_meeting(inner, true),
    ];

    /// A frame as it is encoded.
    fn one(frame: &Frame<'_>) -> Vec<u8> {
        let mut bytes = vec![0; frame.len()];
        let mut writer = Writer::new(&mut bytes);
        assert!(writer.put(frame));
        writer.finish();
        bytes
    }

    /// A frame that owns what it refers to.
    #[derive(Clone, Debug)]
    enum Owned {
        Dgram(u16, Vec<u8>),
        Frag(u16, u16, u8, bool, Vec<u8>),
        OpenIp(u16, u16, Token, SocketAddr),
        OpenName(u16, u16, Token, String, u16),
        From(u16, SocketAddr, Vec<u8>),
        /// Of one datagram.
        Again(Vec<u8>),
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
                Owned::Again(frames) => Frame::Again(frames),
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
            any::<[u8; 16]>().prop_map(|session| Owned::Plain(Frame::Session(session))),
            data().prop_map(|data| Owned::Again(one(&Frame::Dgram { flow: 0, data: &data }))),
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
                let end = writer.written().bytes;
                writer.finish();
                if let Some(byte) = byte {
                    inner[at.index(end.max(1))] = byte;
                }
                inner
            });
        prop_oneof![written, prop::collection::vec(prop_oneof![0u8..15, any::<u8>()], 0..100)]
    }

    #[test]
    fn frame_bytes_match_the_specification() {
        let token = hex!("000102030405060708090a0b0c0d0e0f");
        let frames: [(Frame<'_>, &[u8]); 16] = [
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
            (Frame::Session(token), &hex!("0c 000102030405060708090a0b0c0d0e0f")),
            (Frame::Again(&hex!("04 0003 01 0004 0000")), &hex!("0d 0008 04 0003 01 0004 0000")),
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
            for direction in BOTH {
                let want = if frame.travels(direction) { Ok(vec![frame]) } else { Err(BadFrames::Direction) };
                let paced = matches!(frame, Frame::Session(_) | Frame::Again(_));
                let free = parse(&inner, direction).map(Iterator::collect::<Vec<_>>);
                assert_eq!(free, if paced { Err(BadFrames::Type) } else { want.clone() });
                if paced {
                    assert_eq!(parse_paced(&inner, direction, true).map(Iterator::collect), want);
                }
            }
        }
    }

    #[test]
    fn paced_lengths_match_the_specification() {
        // The longest DGRAM and a FRAG that is not the last, of a cell with this many inner bytes.
        let lengths = |inner, repeat| {
            let room = fresh_max(inner, repeat);
            let mut parts = split(room, 0, 0, &[0; 1000][..room]);
            let Some(Frame::Frag { data, .. }) = parts.next() else { panic!("it is longer than a cell") };
            (max_single_cell_len(room), data.len())
        };
        const P: usize = 208;
        assert_eq!([lengths(P, false), lengths(P, true)], [(P - 5, P - 8), (P - 8, P - 11)]);
        assert_eq!([lengths(P - 8, false), lengths(P - 8, true)], [(P - 13, P - 16), (P - 16, P - 19)]);
    }

    proptest! {
        #[test]
        fn frames_roundtrip_through_a_cell(
            frames in prop::collection::vec(frame(), 0..8),
            parser in prop::sample::select(&PARSERS),
        ) {
            let mut inner = [0xee; 1328];
            let mut writer = Writer::new(&mut inner);
            let mut put = Vec::new();
            for frame in frames.iter().map(Owned::frame).filter(|frame| parser(&one(frame)).is_ok()) {
                let room = writer.room();
                if writer.put(&frame) {
                    prop_assert_eq!(room - writer.room(), frame.len());
                    put.push(frame);
                } else {
                    prop_assert!(room == writer.room() && frame.len() > room);
                }
            }
            writer.finish();
            let back: Vec<_> = parser(&inner).unwrap().collect();
            prop_assert_eq!(back, put);
        }

        #[test]
        fn parsed_frames_write_the_same_bytes(inner in near_frames(), parser in prop::sample::select(&PARSERS)) {
            if let Ok(frames) = parser(&inner) {
                let mut again = vec![0xee; inner.len()];
                let mut writer = Writer::new(&mut again);
                for frame in frames {
                    prop_assert!(writer.put(&frame));
                }
                let end = writer.written().bytes;
                prop_assert_eq!(&again[..end], &inner[..end]);
                prop_assert!(inner[end..].first().is_none_or(|byte| *byte == frame_type::PAD));
            }
        }
    }
}
