//! Reads the frames of a cell.

use std::iter::FusedIterator;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

use super::{Address, Frame, Status, address_type, datagrams_max, frame_type, is_host_name};
use crate::cell::Direction;

/// Why the payload of a cell is refused. Counted, never answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum BadFrames {
    /// Also a type that is known but not allowed in this class.
    #[error("unknown frame type")]
    Type,
    /// A frame that ends after the cell.
    #[error("truncated frame")]
    Truncated,
    #[error("frame in the wrong direction")]
    Direction,
    #[error("unknown status code")]
    Status,
    /// An unknown address type, a malformed name, or an address that has another spelling.
    #[error("bad address")]
    Address,
    /// A reserved bit of a fragment's index is set.
    #[error("bad fragment index")]
    Fragment,
    /// More datagrams than [`datagrams_max`].
    #[error("too many datagrams")]
    Datagrams,
    /// An AGAIN without frames, or with PAD or another AGAIN inside.
    #[error("bad repetition")]
    Again,
    /// In a meeting, where all flows are 0.
    #[error("frame of a flow in a meeting")]
    Flow,
}

/// Checks the whole payload of a cell of a free class, and only then hands out its frames. PAD ends the frames; bytes
/// after it are ignored.
///
/// # Errors
/// The first bad frame in the payload, or too many datagrams in all. The cell must be dropped.
pub fn parse(payload: &[u8], direction: Direction) -> Result<Frames<'_>, BadFrames> {
    check(payload, payload.len(), |frame| match frame {
        Frame::Session(_) | Frame::Again(_) => Err(BadFrames::Type),
        _ if !frame.travels(direction) => Err(BadFrames::Direction),
        _ => Ok(()),
    })
}

/// [`parse`] of a paced class, to or from the exit (SPEC 9.11.7, 9.12). `repeat` is that of the class: without it AGAIN
/// is refused, too.
///
/// # Errors
/// As [`parse`], also of the frames inside AGAIN.
pub fn parse_paced(payload: &[u8], direction: Direction, repeat: bool) -> Result<Frames<'_>, BadFrames> {
    check_with_again(payload, |frame| match frame {
        Frame::Move { .. } | Frame::Report { .. } | Frame::Ping(_) | Frame::Pong(_) => Err(BadFrames::Type),
        Frame::Again(_) if !repeat => Err(BadFrames::Type),
        _ if !frame.travels(direction) => Err(BadFrames::Direction),
        _ => Ok(()),
    })
}

/// [`parse`] of the P - 8 inner bytes of a meeting (SPEC 9.13.6).
///
/// # Errors
/// As [`parse_paced`], or a flow is not 0.
pub fn parse_meeting(inner: &[u8], repeat: bool) -> Result<Frames<'_>, BadFrames> {
    check_with_again(inner, |frame| match *frame {
        Frame::Dgram { flow: 0, .. } | Frame::Frag { flow: 0, .. } => Ok(()),
        Frame::Dgram { .. } | Frame::Frag { .. } => Err(BadFrames::Flow),
        Frame::Again(_) if repeat => Ok(()),
        _ => Err(BadFrames::Type),
    })
}

/// Checks all frames of a text, up to PAD. Its bound on datagrams is that of a cell with `payload` inner bytes.
#[inline]
fn check<'a>(
    text: &'a [u8],
    payload: usize,
    allow: impl Fn(&Frame<'a>) -> Result<(), BadFrames>,
) -> Result<Frames<'a>, BadFrames> {
    let mut rest = text;
    let mut count = 0;
    while let Some(frame) = take_frame(&mut rest)? {
        allow(&frame)?;
        count += 1;
    }
    let max = datagrams_max(payload);
    if count > max && has_more_datagrams(text, max) {
        return Err(BadFrames::Datagrams);
    }
    Ok(Frames { rest: text })
}

/// True if the frames of a text have more datagrams than `max`. Few cells have so many frames that this must be known.
#[cold]
fn has_more_datagrams(text: &[u8], max: usize) -> bool {
    Frames { rest: text }.filter(Frame::is_datagram).count() > max
}

/// [`check`], also of the frames inside AGAIN, which have a bound of their own.
fn check_with_again<'a>(
    payload: &'a [u8],
    allow: impl Fn(&Frame<'a>) -> Result<(), BadFrames>,
) -> Result<Frames<'a>, BadFrames> {
    check(payload, payload.len(), |frame| {
        allow(frame)?;
        match frame {
            Frame::Again(frames) => check_again(frames, payload.len(), &allow),
            _ => Ok(()),
        }
    })
}

/// Checks the frames inside an AGAIN (SPEC 9.12.3).
fn check_again<'a>(
    frames: &'a [u8],
    payload: usize,
    allow: impl Fn(&Frame<'a>) -> Result<(), BadFrames>,
) -> Result<(), BadFrames> {
    let read = check(frames, payload, |frame| match frame {
        Frame::Again(_) => Err(BadFrames::Again),
        _ => allow(frame),
    })?;
    // PAD, or nothing, ends the frames before the end of the text.
    let len: usize = read.map(|frame| frame.len()).sum();
    if frames.is_empty() || len < frames.len() { Err(BadFrames::Again) } else { Ok(()) }
}

/// True if an AGAIN may carry these frames, wherever they may travel.
#[inline(never)]
pub(super) fn is_repetition(frames: &[u8], payload: usize) -> bool {
    check_again(frames, payload, |_| Ok(())).is_ok()
}

/// The frames of a cell that were checked.
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Frames<'a> {
    /// Those inside an AGAIN of a cell that was checked.
    pub fn of_again(frames: &'a [u8]) -> Frames<'a> {
        Frames { rest: frames }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        // Every frame up to the end is checked, so there is no error here.
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

/// A u16 length and that many bytes.
fn take_data<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], BadFrames> {
    let len = take_u16(rest)?;
    take_slice(rest, len.into())
}

fn take_address<'a>(rest: &mut &'a [u8]) -> Result<Address<'a>, BadFrames> {
    let ip: IpAddr = match take_u8(rest)? {
        address_type::V4 => Ipv4Addr::from(take::<4>(rest)?).into(),
        address_type::V6 => {
            let ip = Ipv6Addr::from(take::<16>(rest)?);
            if ip.to_ipv4_mapped().is_some() {
                return Err(BadFrames::Address);
            }
            ip.into()
        }
        address_type::NAME => {
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

/// An address that is not a name.
fn take_ip(rest: &mut &[u8]) -> Result<SocketAddr, BadFrames> {
    match take_address(rest)? {
        Address::Ip(socket) => Ok(socket),
        Address::Name(..) => Err(BadFrames::Address),
    }
}

/// The next frame. None at the end of the cell or at PAD, which empties `rest`.
fn take_frame<'a>(rest: &mut &'a [u8]) -> Result<Option<Frame<'a>>, BadFrames> {
    if rest.is_empty() {
        return Ok(None);
    }
    let frame = match take_u8(rest)? {
        frame_type::PAD => {
            *rest = &[];
            return Ok(None);
        }
        frame_type::DGRAM => Frame::Dgram { flow: take_u16(rest)?, data: take_data(rest)? },
        frame_type::FRAG => {
            let (flow, id, byte) = (take_u16(rest)?, take_u16(rest)?, take_u8(rest)?);
            if byte & 0x78 != 0 {
                return Err(BadFrames::Fragment);
            }
            Frame::Frag { flow, id, index: byte & 7, last: byte & 0x80 != 0, data: take_data(rest)? }
        }
        frame_type::OPEN => {
            Frame::Open { flow: take_u16(rest)?, map: take_u16(rest)?, token: take(rest)?, to: take_address(rest)? }
        }
        frame_type::CLOSE => Frame::Close { flow: take_u16(rest)? },
        frame_type::STATUS => {
            let flow = take_u16(rest)?;
            Frame::Status { flow, code: Status::from_wire(take_u8(rest)?).ok_or(BadFrames::Status)? }
        }
        frame_type::MOVE => Frame::Move { flow: take_u16(rest)?, token: take(rest)? },
        frame_type::REPORT => Frame::Report { highest: take_u40(rest)?, received: take_u40(rest)? },
        frame_type::PING => Frame::Ping(take(rest)?),
        frame_type::PONG => Frame::Pong(take(rest)?),
        frame_type::PEER => Frame::Peer { flow: take_u16(rest)?, from: take_ip(rest)? },
        frame_type::FROM => Frame::From { flow: take_u16(rest)?, from: take_ip(rest)?, data: take_data(rest)? },
        frame_type::SESSION => Frame::Session(take(rest)?),
        frame_type::AGAIN => Frame::Again(take_data(rest)?),
        _ => return Err(BadFrames::Type),
    };
    Ok(Some(frame))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;

    #[test]
    fn one_bad_frame_drops_the_whole_cell() {
        let token = "000102030405060708090a0b0c0d0e0f";
        let cases = [
            (format!("0c {token}"), BadFrames::Type),
            ("0d 0003 040001".to_owned(), BadFrames::Type),
            ("0e".to_owned(), BadFrames::Type),
            ("ff".to_owned(), BadFrames::Type),
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
            let mut inner = vec![frame_type::CLOSE, 0, 1];
            inner.extend(digits.chunks(2).map(|d| u8::from_str_radix(str::from_utf8(d).unwrap(), 16).unwrap()));
            assert_eq!(parse(&inner, Direction::Forward).err(), Some(reason), "{text}");
        }
        for named in [&hex!("0a 0001 03 03 612e62 0035")[..], &hex!("0b 0001 03 03 612e62 0035 0000")] {
            assert_eq!(parse(named, Direction::Backward).err(), Some(BadFrames::Address));
        }
    }

    #[test]
    fn cell_with_too_many_datagrams_is_refused() {
        for (payload, max) in [(208, 8), (1152, 32), (1328, 32)] {
            let cell = |datagrams: usize| {
                let empty = [frame_type::DGRAM, 0, 1, 0, 0];
                let mut inner = [frame_type::CLOSE, 0, 1].repeat(2);
                inner.extend(empty.repeat(datagrams));
                inner.resize(payload, frame_type::PAD);
                inner
            };
            for direction in [Direction::Forward, Direction::Backward] {
                assert_eq!(parse(&cell(max), direction).unwrap().count(), 2 + max);
                assert_eq!(parse(&cell(max + 1), direction).err(), Some(BadFrames::Datagrams));
            }
        }
    }

    /// Why a cell is refused in a paced class with repeat: forward, backward, in a meeting.
    type Reasons = [Option<BadFrames>; 3];

    fn reasons(inner: &[u8]) -> Reasons {
        let paced = |direction| parse_paced(inner, direction, true).err();
        [paced(Direction::Forward), paced(Direction::Backward), parse_meeting(inner, true).err()]
    }

    #[test]
    fn paced_classes_allow_other_frames() {
        use BadFrames::{Direction as Way, Flow, Type};
        let token = [7; 16];
        let cases: [(&[&[u8]], Reasons); 14] = [
            (&[&hex!("01 0000 0001 aa")], [None; 3]),
            (&[&hex!("02 0000 0001 80 0001 aa")], [None; 3]),
            (&[&hex!("01 0001 0001 aa")], [None, None, Some(Flow)]),
            (&[&hex!("02 0001 0001 80 0001 aa")], [None, None, Some(Flow)]),
            (&[&hex!("03 0000 0001"), &token, &hex!("04 c0000201 0035")], [None, Some(Way), Some(Type)]),
            (&[&hex!("04 0000")], [None, None, Some(Type)]),
            (&[&hex!("05 ffff 05")], [Some(Way), None, Some(Type)]),
            (&[&hex!("06 0001"), &token], [Some(Type); 3]),
            (&[&hex!("07 0000000001 0000000001")], [Some(Type); 3]),
            (&[&hex!("08 0000000000000000")], [Some(Type); 3]),
            (&[&hex!("09 0000000000000000")], [Some(Type); 3]),
            (&[&hex!("0a 0001 04 c0000201 0035")], [Some(Way), None, Some(Type)]),
            (&[&hex!("0b 0001 04 c0000201 0035 0000")], [Some(Way), None, Some(Type)]),
            (&[&[frame_type::SESSION], &token], [None, Some(Way), Some(Type)]),
        ];
        for (parts, expected) in cases {
            let frame = parts.concat();
            assert_eq!(reasons(&frame), expected, "{frame:02x?}");
            // The frames inside AGAIN obey the same rules. Backward AGAIN travels in meetings only.
            let again = [&[frame_type::AGAIN, 0, frame.len() as u8], &frame[..]].concat();
            assert_eq!(reasons(&again), [expected[0], Some(Way), expected[2]], "{again:02x?}");
            assert_eq!(parse_paced(&again, Direction::Forward, false).err(), Some(Type), "a class without repeat");
            assert_eq!(parse_meeting(&again, false).err(), Some(Type));
        }
    }

    #[test]
    fn bad_repetition_drops_the_whole_cell() {
        let datagram = hex!("01 0000 0001 aa");
        let again = |frames: &[u8]| [&[frame_type::AGAIN, 0, frames.len() as u8], frames].concat();
        let cases = [
            (again(&[]), BadFrames::Again),
            (again(&[frame_type::PAD]), BadFrames::Again),
            (again(&[&datagram[..], &[frame_type::PAD]].concat()), BadFrames::Again),
            (again(&again(&datagram)), BadFrames::Again),
            (again(&datagram[..5]), BadFrames::Truncated),
            (again(&[0x0e]), BadFrames::Type),
            (again(&datagram)[..8].to_vec(), BadFrames::Truncated),
            (again(&hex!("02 0000 0001 08 0000")), BadFrames::Fragment),
        ];
        for (bad, reason) in cases {
            let inner = [&datagram[..], &bad].concat();
            assert_eq!(parse_paced(&inner, Direction::Forward, true).err(), Some(reason), "{bad:02x?}");
            assert_eq!(parse_meeting(&inner, true).err(), Some(reason), "{bad:02x?}");
        }
    }

    #[test]
    fn repeated_datagrams_have_a_bound_of_their_own() {
        for (payload, max) in [(208, 8), (200, 8), (1328, 32), (1320, 32)] {
            let cell = |repeated, fresh| {
                let datagrams = |count| [frame_type::DGRAM, 0, 0, 0, 0].repeat(count);
                let len = u16::try_from(5 * repeated).unwrap().to_be_bytes();
                let mut inner = [&[frame_type::AGAIN], &len[..], &datagrams(repeated), &datagrams(fresh)].concat();
                inner.resize(payload, frame_type::PAD);
                inner
            };
            let both =
                |inner: &[u8]| [parse_paced(inner, Direction::Forward, true).err(), parse_meeting(inner, true).err()];
            assert_eq!(both(&cell(max, max)), [None; 2]);
            assert_eq!(both(&cell(max + 1, 1)), [Some(BadFrames::Datagrams); 2]);
            assert_eq!(both(&cell(1, max + 1)), [Some(BadFrames::Datagrams); 2]);
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
}
