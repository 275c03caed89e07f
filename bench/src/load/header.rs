//! The first bytes of a datagram, by which whoever receives it knows it.
//!
//! ```text
//! 16 bytes and more   kind u4 | run u4 | flow u24, number u32, intended time u64 (ns since the run began)
//! 4 to 15 bytes       answer u1 | backward u1 | place u30 in the list of short datagrams, where all of that stands
//! ```

use std::sync::Mutex;

/// Bytes of a whole header.
pub const LEN: usize = 16;
/// Bytes that a datagram must have to be known again.
pub const SHORTEST: usize = 4;
/// Most flows of a run.
pub const FLOWS_MAX: usize = 1 << 24;

/// What a datagram is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Opens a flow; not counted.
    Hello,
    /// To the destination.
    Forward,
    /// From the destination.
    Backward,
    /// A forward one that the destination sent back.
    Answer,
}

/// What a datagram says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// Its flow.
    pub flow: u32,
    /// Its number in its flow and direction.
    pub number: u32,
    /// When it was to leave, in nanoseconds since the run began.
    pub intended_ns: u64,
}

/// Headers of one run: a datagram of another is not known.
#[derive(Debug)]
pub struct Headers {
    run: u8,
    short: Mutex<Vec<Header>>,
}

impl Headers {
    /// Of a run with this number; its last four bits count.
    pub fn new(run: u8) -> Headers {
        Headers { run: run & 15, short: Mutex::default() }
    }

    /// Writes one to the front of `bytes`, of which there are at least [`SHORTEST`].
    pub fn write(&self, header: Header, bytes: &mut [u8]) {
        let Header { kind, flow, number, intended_ns } = header;
        if bytes.len() < LEN {
            let mut short = self.short.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let place = short.len() as u32 & 0x3fff_ffff | u32::from(kind == Kind::Backward) << 30;
            short.push(header);
            bytes[..4].copy_from_slice(&place.to_be_bytes());
            bytes[4..].fill(0);
            return;
        }
        let kind = match kind {
            Kind::Hello => 0u32,
            Kind::Forward => 1,
            Kind::Backward => 2,
            Kind::Answer => 3,
        };
        let first = kind << 28 | u32::from(self.run) << 24 | flow & 0xff_ffff;
        bytes[..4].copy_from_slice(&first.to_be_bytes());
        bytes[4..8].copy_from_slice(&number.to_be_bytes());
        bytes[8..16].copy_from_slice(&intended_ns.to_be_bytes());
    }

    /// Reads one, if the datagram is of this run.
    pub fn read(&self, bytes: &[u8]) -> Option<Header> {
        let first = u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?);
        let Some(rest) = bytes.get(4..LEN) else {
            let short = self.short.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let header = short.get((first & 0x3fff_ffff) as usize)?;
            let backward = first & 1 << 30 != 0;
            let kind = if first & 1 << 31 != 0 { Kind::Answer } else { header.kind };
            return ((header.kind == Kind::Backward) == backward).then_some(Header { kind, ..*header });
        };
        if (first >> 24) as u8 & 15 != self.run {
            return None;
        }
        let kind = match first >> 28 {
            0 => Kind::Hello,
            1 => Kind::Forward,
            2 => Kind::Backward,
            3 => Kind::Answer,
            _ => return None,
        };
        let number = u32::from_be_bytes(rest[..4].try_into().ok()?);
        let intended_ns = u64::from_be_bytes(rest[4..].try_into().ok()?);
        Some(Header { kind, flow: first & 0xff_ffff, number, intended_ns })
    }

    /// Makes an answer of a forward datagram.
    pub fn answer(bytes: &mut [u8]) {
        if bytes.len() < LEN {
            bytes[0] |= 0x80;
        } else {
            bytes[0] = 3 << 4 | bytes[0] & 15;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_every_length_are_read_as_they_were_written_and_answers_as_answers() {
        let headers = Headers::new(0x15);
        for (kind, flow) in [(Kind::Forward, 0), (Kind::Backward, 0xff_fffe), (Kind::Forward, 77)] {
            for len in [4, 5, 15, 16, 17, 1323] {
                let header = Header { kind, flow, number: u32::MAX, intended_ns: 1 << 40 };
                let mut bytes = vec![0xaa; len];
                headers.write(header, &mut bytes);
                assert_eq!(headers.read(&bytes), Some(header), "{len}");
                if kind == Kind::Forward {
                    Headers::answer(&mut bytes);
                    assert_eq!(headers.read(&bytes), Some(Header { kind: Kind::Answer, ..header }));
                }
            }
        }
    }

    #[test]
    fn what_is_of_another_run_or_no_header_is_not_known() {
        let mut bytes = [0; 16];
        Headers::new(3).write(Header { kind: Kind::Forward, flow: 1, number: 2, intended_ns: 3 }, &mut bytes);
        assert_eq!(Headers::new(4).read(&bytes), None);
        assert_eq!(Headers::new(3).read(&[]), None);
        assert_eq!(Headers::new(3).read(&[0; 4]), None);
        assert_eq!(Headers::new(0).read(&[0xf0; 16]), None);
    }
}
