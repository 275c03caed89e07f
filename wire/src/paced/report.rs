//! What a hop reports to its neighbours about the places of rounds, and an entry about its company (SPEC 9.6.6, 9.15).

/// The content of a report behind its kind.
pub const REPORT_LEN: usize = 22;
/// The content of a company cell behind its kind.
pub const COMPANY_LEN: usize = 4;

/// The places of rounds in the direction that the sender of the report received. To an entry those of its own channels.
///
/// Reports have running totals, modulo 2^32: the next one covers what a lost one would have said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The round with which the totals begin, 40 bits: another one if the sender, or the link, is another.
    pub first: u64,
    /// The last round that they cover, 40 bits.
    pub last: u64,
    pub places: u32,
    /// Those that left with random bytes.
    pub filled: u32,
    /// Those of the filled ones that the floor has not filled: all copies were lost.
    pub lost: u32,
}

impl Report {
    pub fn to_bytes(self) -> [u8; REPORT_LEN] {
        let mut bytes = [0; REPORT_LEN];
        bytes[..5].copy_from_slice(&self.first.to_be_bytes()[3..]);
        bytes[5..10].copy_from_slice(&self.last.to_be_bytes()[3..]);
        for (place, count) in bytes[10..].chunks_exact_mut(4).zip([self.places, self.filled, self.lost]) {
            place.copy_from_slice(&count.to_be_bytes());
        }
        bytes
    }

    pub fn from_bytes(bytes: &[u8; REPORT_LEN]) -> Report {
        let round = |at: usize| bytes[at..at + 5].iter().fold(0, |round, byte| round << 8 | u64::from(*byte));
        let count = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        Report { first: round(0), last: round(5), places: count(10), filled: count(14), lost: count(18) }
    }

    /// What it adds to an earlier report: the places of the rounds behind that one. All of its own if its totals began
    /// with another round, also with an earlier one: its sender's clock was ahead. None if it is not later.
    pub fn since(self, earlier: Report) -> Option<Report> {
        let Report { first, last, places, filled, lost } = earlier;
        if self.first != first {
            return Some(self);
        }
        if self.last <= last {
            return None;
        }
        Some(Report {
            first: last + 1,
            last: self.last,
            places: self.places.wrapping_sub(places),
            filled: self.filled.wrapping_sub(filled),
            lost: self.lost.wrapping_sub(lost),
        })
    }
}

/// How many channels of entries a batch has at Mix 1, and how many it needs (SPEC 9.15.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Company {
    pub channels: u16,
    pub n_min: u16,
}

impl Company {
    /// True if Mix 1 lets nothing through in the batch (SPEC 9.15.1).
    pub const fn is_low(self) -> bool {
        self.channels < self.n_min
    }

    pub fn to_bytes(self) -> [u8; COMPANY_LEN] {
        let ([a, b], [c, d]) = (self.channels.to_be_bytes(), self.n_min.to_be_bytes());
        [a, b, c, d]
    }

    pub const fn from_bytes(bytes: &[u8; COMPANY_LEN]) -> Company {
        let [a, b, c, d] = *bytes;
        Company { channels: u16::from_be_bytes([a, b]), n_min: u16::from_be_bytes([c, d]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;

    #[test]
    fn contents_have_the_fields_of_the_specification() {
        let report = Report { first: 0x1_0203_0405, last: 0x1_0203_0468, places: 0x1000, filled: 7, lost: 5 };
        let bytes = hex!("0102030405 0102030468 00001000 00000007 00000005");
        assert_eq!((report.to_bytes(), Report::from_bytes(&bytes)), (bytes, report));
        let company = Company { channels: 5, n_min: 0x108 };
        assert_eq!((company.to_bytes(), Company::from_bytes(&[0, 5, 1, 8])), ([0, 5, 1, 8], company));
    }

    #[test]
    fn report_adds_what_a_lost_one_would_have_said() {
        let report = |first, last, [places, filled, lost]: [u32; 3]| Report { first, last, places, filled, lost };
        let earlier = report(200, 299, [u32::MAX, 50, 7]);
        assert_eq!(report(200, 499, [199, 60, 8]).since(earlier), Some(report(300, 499, [200, 10, 1])));
        assert_eq!([299, 199].map(|last| report(200, last, [199, 60, 8]).since(earlier)), [None; 2], "it is not later");
        let other = report(300, 399, [100, 3, 2]);
        assert_eq!(other.since(earlier), Some(other), "the sender has restarted");
        let back = report(100, 199, [100, 3, 2]);
        assert_eq!(back.since(earlier), Some(back), "its clock was ahead");
    }
}
