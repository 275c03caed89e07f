//! Writes frames into a cell.

use std::net::{IpAddr, SocketAddr};

use super::{Address, Frame, address_type, datagrams_max, frame_type};

/// Writes frames into the payload of a cell, in order.
#[must_use = "the bytes after the last frame keep their old values until `finish`"]
pub struct Writer<'a> {
    payload: &'a mut [u8],
    written: Written,
}

/// The part of a cell that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    pub bytes: usize,
    /// Frames that carry a datagram or a part of one, and that may still come.
    datagrams_left: usize,
}

impl<'a> Writer<'a> {
    pub fn new(payload: &'a mut [u8]) -> Writer<'a> {
        let written = Written { bytes: 0, datagrams_left: datagrams_max(payload.len()) };
        Writer { payload, written }
    }

    /// Continues after what an earlier writer has [`Writer::written`].
    ///
    /// # Panics
    /// If the payload is shorter.
    pub fn resume(payload: &'a mut [u8], written: Written) -> Writer<'a> {
        assert!(written.bytes <= payload.len());
        Writer { payload, written }
    }

    /// What is written so far.
    pub fn written(&self) -> Written {
        self.written
    }

    /// Appends a frame. False, without any change, if it does not fit, if the cell has its maximum of
    /// datagrams, or if the layout cannot carry it (a malformed name, an index over 7, a count over 40
    /// bits, bad frames of an AGAIN). The parser accepts every frame that is written where it may travel.
    pub fn put(&mut self, frame: &Frame<'_>) -> bool {
        let len = frame.len();
        let fits = len <= self.room() && (self.written.datagrams_left > 0 || !frame.is_datagram());
        if !(fits && frame.is_expressible(self.payload.len())) {
            return false;
        }
        let at = self.written.bytes;
        let mut out = Rest(&mut self.payload[at..at + len]);
        match *frame {
            Frame::Dgram { flow, data } => {
                out.start(frame_type::DGRAM, flow);
                out.data(data);
            }
            Frame::Frag { flow, id, index, last, data } => {
                out.start(frame_type::FRAG, flow);
                out.u16(id);
                out.bytes(&[u8::from(last) << 7 | index]);
                out.data(data);
            }
            Frame::Open { flow, map, token, to } => {
                out.start(frame_type::OPEN, flow);
                out.u16(map);
                out.bytes(&token);
                match to {
                    Address::Ip(socket) => out.ip(socket),
                    Address::Name(name, port) => {
                        out.bytes(&[address_type::NAME, name.len() as u8]);
                        out.bytes(name.as_bytes());
                        out.u16(port);
                    }
                }
            }
            Frame::Close { flow } => {
                out.start(frame_type::CLOSE, flow);
            }
            Frame::Status { flow, code } => {
                out.start(frame_type::STATUS, flow);
                out.bytes(&[code as u8]);
            }
            Frame::Move { flow, token } => {
                out.start(frame_type::MOVE, flow);
                out.bytes(&token);
            }
            Frame::Report { highest, received } => {
                out.bytes(&[frame_type::REPORT]);
                out.bytes(&highest.to_be_bytes()[3..]);
                out.bytes(&received.to_be_bytes()[3..]);
            }
            Frame::Ping(echo) => {
                out.bytes(&[frame_type::PING]);
                out.bytes(&echo);
            }
            Frame::Pong(echo) => {
                out.bytes(&[frame_type::PONG]);
                out.bytes(&echo);
            }
            Frame::Peer { flow, from } => {
                out.start(frame_type::PEER, flow);
                out.ip(from);
            }
            Frame::From { flow, from, data } => {
                out.start(frame_type::FROM, flow);
                out.ip(from);
                out.data(data);
            }
            Frame::Session(session) => {
                out.bytes(&[frame_type::SESSION]);
                out.bytes(&session);
            }
            Frame::Again(frames) => {
                out.bytes(&[frame_type::AGAIN]);
                out.data(frames);
            }
        }
        debug_assert!(out.0.is_empty(), "a frame is as long as it says");
        self.written.bytes += len;
        self.written.datagrams_left -= usize::from(frame.is_datagram());
        true
    }

    /// Free bytes.
    pub fn room(&self) -> usize {
        self.payload.len() - self.written.bytes
    }

    /// True if no frame is written.
    pub fn is_empty(&self) -> bool {
        self.written.bytes == 0
    }

    /// Fills the rest with PAD.
    pub fn finish(self) {
        self.payload[self.written.bytes..].fill(frame_type::PAD);
    }
}

/// The rest of a frame's place in the cell. All is inlined: a copy of constant length is then a few instructions.
struct Rest<'a>(&'a mut [u8]);

impl Rest<'_> {
    #[inline(always)]
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.split_off_mut(..bytes.len()).expect("a frame is as long as it says").copy_from_slice(bytes);
    }

    /// The type and the flow, which most frames start with.
    #[inline(always)]
    fn start(&mut self, frame_type: u8, flow: u16) {
        let [high, low] = flow.to_be_bytes();
        self.bytes(&[frame_type, high, low]);
    }

    #[inline(always)]
    fn u16(&mut self, number: u16) {
        self.bytes(&number.to_be_bytes());
    }

    #[inline(always)]
    fn data(&mut self, data: &[u8]) {
        self.u16(data.len() as u16);
        self.bytes(data);
    }

    #[inline(always)]
    fn ip(&mut self, socket: SocketAddr) {
        match socket.ip().to_canonical() {
            IpAddr::V4(ip) => {
                self.bytes(&[address_type::V4]);
                self.bytes(&ip.octets());
            }
            IpAddr::V6(ip) => {
                self.bytes(&[address_type::V6]);
                self.bytes(&ip.octets());
            }
        }
        self.u16(socket.port());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Direction;
    use crate::frames::{U40_END, parse};

    #[test]
    fn inexpressible_frame_is_not_written() {
        let mut payload = [0xee; 600];
        let mut writer = Writer::new(&mut payload);
        let long = "a".repeat(256);
        for name in ["", "a b", "ä", "a/b", &long] {
            let to = Address::Name(name, 1);
            assert!(!writer.put(&Frame::Open { flow: 0, map: 0, token: [0; 16], to }), "{name}");
        }
        assert!(!writer.put(&Frame::Frag { flow: 0, id: 0, index: 8, last: false, data: &[] }));
        assert!(!writer.put(&Frame::Report { highest: U40_END, received: 0 }));
        let (pad, datagram) = ([0x04, 0, 1, 0x00], [0x01, 0, 1, 0, 0]);
        for frames in [&[][..], &pad, &pad[..2], &[0x0d, 0, 3, 0x04, 0, 1], &datagram.repeat(33)] {
            assert!(!writer.put(&Frame::Again(frames)), "{frames:02x?}");
        }
        assert!(!writer.put(&Frame::Dgram { flow: 0, data: &[0; 596] }));
        assert!(writer.is_empty() && writer.room() == 600);
        assert!(writer.put(&Frame::Dgram { flow: 0, data: &[0; 595] }));
        assert!(!writer.put(&Frame::Close { flow: 0 }) && writer.room() == 0);
    }

    #[test]
    fn writer_counts_datagrams_across_a_pause() {
        for (payload, max) in [(208, 8), (1328, 32)] {
            let mut cell = vec![0xee; payload];
            let mut written = Writer::new(&mut cell).written();
            let put = |written: &mut Written, cell: &mut [u8], frame: &Frame<'_>| {
                let mut writer = Writer::resume(cell, *written);
                let fits = writer.put(frame);
                *written = writer.written();
                fits
            };
            for _ in 0..max {
                assert!(put(&mut written, &mut cell, &Frame::Dgram { flow: 1, data: &[] }));
            }
            let full = written;
            assert!(!put(&mut written, &mut cell, &Frame::Frag { flow: 1, id: 1, index: 0, last: false, data: &[] }));
            assert_eq!(written, full);
            assert!(put(&mut written, &mut cell, &Frame::Close { flow: 1 }), "other frames do not count");
            Writer::resume(&mut cell, written).finish();
            assert_eq!(parse(&cell, Direction::Forward).unwrap().count(), max + 1);
        }
    }

    #[test]
    fn mapped_ipv4_address_is_written_as_ipv4() {
        let from = "[::ffff:192.0.2.1]:53".parse().unwrap();
        let mut payload = [0; 20];
        let mut writer = Writer::new(&mut payload);
        assert!(writer.put(&Frame::Peer { flow: 1, from }));
        writer.finish();
        let frame = parse(&payload, Direction::Backward).unwrap().next();
        assert_eq!(frame, Some(Frame::Peer { flow: 1, from: "192.0.2.1:53".parse().unwrap() }));
    }
}
