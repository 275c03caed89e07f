//! Header at the start of each generated datagram.
//!
//! ```text
//! 16 bytes and more   kind u4 | run u4 | flow u24, number u32, intended time u64 (ns since the run began)
//! 4 to 15 bytes       answer u1 | backward u1 | index u30 into the list of short datagrams, which holds the same
//!                     fields
//! ```

use std::sync::Mutex;

/// Bytes of a full header.
pub(crate) const LEN: usize = 16;
/// Bytes of the shortest datagram that can be recognised.
pub(crate) const SHORTEST: usize = 4;
/// The flow number has 24 bits.
pub(crate) const FLOWS_MAX: usize = 1 << 24;

/// Purpose of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Opens a flow; not counted.
    Hello,
    /// To the destination.
    Forward,
    /// From the destination.
    Backward,
    /// A forward datagram that the destination sent back.
    Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) purpose: Purpose,
    pub(crate) flow: u32,
    /// Counts the datagrams of a flow and direction, from 0.
    pub(crate) number: u32,
    /// When it was due, since the run began.
    pub(crate) intended_ns: u64,
}

/// Reads and writes the headers of one run. Datagrams of other runs are not recognised.
#[derive(Debug)]
pub(crate) struct Headers {
    run: u8,
    short: Mutex<Vec<Header>>,
}

impl Headers {
    /// Of a run whose number has these last four bits.
    pub(crate) fn new(run: u8) -> Headers {
        Headers { run: run & 15, short: Mutex::default() }
    }

    /// Writes a header to the start of `bytes`, which are at least [`SHORTEST`].
    pub(crate) fn write(&self, header: Header, bytes: &mut [u8]) {
        let Header { purpose, flow, number, intended_ns } = header;
        if bytes.len() < LEN {
            let mut short = self.short.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let index = short.len() as u32 & 0x3fff_ffff | u32::from(purpose == Purpose::Backward) << 30;
            short.push(header);
            bytes[..4].copy_from_slice(&index.to_be_bytes());
            bytes[4..].fill(0);
            return;
        }
        let purpose = match purpose {
            Purpose::Hello => 0u32,
            Purpose::Forward => 1,
            Purpose::Backward => 2,
            Purpose::Answer => 3,
        };
        let first = purpose << 28 | u32::from(self.run) << 24 | flow & 0xff_ffff;
        bytes[..4].copy_from_slice(&first.to_be_bytes());
        bytes[4..8].copy_from_slice(&number.to_be_bytes());
        bytes[8..16].copy_from_slice(&intended_ns.to_be_bytes());
    }

    /// Reads a header, if the datagram is of this run.
    pub(crate) fn read(&self, bytes: &[u8]) -> Option<Header> {
        let first = u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?);
        let Some(rest) = bytes.get(4..LEN) else {
            let short = self.short.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let header = short.get((first & 0x3fff_ffff) as usize)?;
            let backward = first & 1 << 30 != 0;
            let purpose = if first & 1 << 31 != 0 { Purpose::Answer } else { header.purpose };
            return ((header.purpose == Purpose::Backward) == backward).then_some(Header { purpose, ..*header });
        };
        if (first >> 24) as u8 & 15 != self.run {
            return None;
        }
        let purpose = match first >> 28 {
            0 => Purpose::Hello,
            1 => Purpose::Forward,
            2 => Purpose::Backward,
            3 => Purpose::Answer,
            _ => return None,
        };
        let number = u32::from_be_bytes(rest[..4].try_into().ok()?);
        let intended_ns = u64::from_be_bytes(rest[4..].try_into().ok()?);
        Some(Header { purpose, flow: first & 0xff_ffff, number, intended_ns })
    }

    /// Turns a forward datagram into its answer.
    pub(crate) fn mark_answer(bytes: &mut [u8]) {
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
    fn header_of_any_length_is_read_as_written() {
        let headers = Headers::new(0x15);
        for (purpose, flow) in [(Purpose::Forward, 0), (Purpose::Backward, 0xff_fffe), (Purpose::Forward, 77)] {
            for len in [4, 5, 15, 16, 17, 1323] {
                let header = Header { purpose, flow, number: u32::MAX, intended_ns: 1 << 40 };
                let mut bytes = vec![0xaa; len];
                headers.write(header, &mut bytes);
                assert_eq!(headers.read(&bytes), Some(header), "{len}");
                if purpose == Purpose::Forward {
                    Headers::mark_answer(&mut bytes);
                    assert_eq!(headers.read(&bytes), Some(Header { purpose: Purpose::Answer, ..header }));
                }
            }
        }
    }

    #[test]
    fn datagram_of_another_run_is_not_recognised() {
        let mut bytes = [0; 16];
        Headers::new(3).write(Header { purpose: Purpose::Forward, flow: 1, number: 2, intended_ns: 3 }, &mut bytes);
        assert_eq!(Headers::new(4).read(&bytes), None);
        assert_eq!(Headers::new(3).read(&[]), None);
        assert_eq!(Headers::new(3).read(&[0; 4]), None);
        assert_eq!(Headers::new(0).read(&[0xf0; 16]), None);
    }
}
