//! What a hop tells its neighbours about the places of rounds, and an entry about its company (SPEC 9.6.6, 9.15).

/// The content of a report behind its kind.
pub const REPORT_LEN: usize = 19;
/// The content of a company cell behind its kind.
pub const COMPANY_LEN: usize = 4;

/// The places of some rounds in the direction that the sender of the report received. To an entry those of its own
/// channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// 40 bits.
    pub first: u64,
    pub rounds: u16,
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
        bytes[5..7].copy_from_slice(&self.rounds.to_be_bytes());
        for (place, count) in bytes[7..].chunks_exact_mut(4).zip([self.places, self.filled, self.lost]) {
            place.copy_from_slice(&count.to_be_bytes());
        }
        bytes
    }

    pub fn from_bytes(bytes: &[u8; REPORT_LEN]) -> Report {
        let count = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        Report {
            first: bytes[..5].iter().fold(0, |first, byte| first << 8 | u64::from(*byte)),
            rounds: u16::from_be_bytes([bytes[5], bytes[6]]),
            places: count(7),
            filled: count(11),
            lost: count(15),
        }
    }
}

/// How many channels of entries a batch has at Mix 1, and how many it needs (SPEC 9.15.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Company {
    pub channels: u16,
    pub n_min: u16,
}

impl Company {
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
        let report = Report { first: 0x1_0203_0405, rounds: 100, places: 0x1000, filled: 7, lost: 5 };
        let bytes = hex!("0102030405 0064 00001000 00000007 00000005");
        assert_eq!((report.to_bytes(), Report::from_bytes(&bytes)), (bytes, report));
        let company = Company { channels: 5, n_min: 0x108 };
        assert_eq!((company.to_bytes(), Company::from_bytes(&[0, 5, 1, 8])), ([0, 5, 1, 8], company));
    }
}
