//! What all hops sign in an interval: the records of everyone, under one hash (SPEC 7.6, 7.8.1).

use super::encoding::{Label, Malformed, Reader, SIGNATURE_LEN, Signer, sha256};
use super::record::SignedRecord;

/// SHA-256 over chain, interval and D of all hops, in order.
pub fn hash(chain: &[u8; 32], interval: u64, records: &[&SignedRecord]) -> [u8; 32] {
    let hops = records.len();
    let hashes: Vec<u8> =
        records.iter().enumerate().flat_map(|(i, record)| record.setup_hash(chain, i + 1, hops)).collect();
    sha256(&[chain, &interval.to_be_bytes(), &hashes])
}

pub fn sign(signer: &Signer, hash: &[u8; 32]) -> [u8; SIGNATURE_LEN] {
    signer.sign(Label::Bundle, hash)
}

/// Checks a hop's signature under the signing key in its descriptor.
pub fn verifies(signing: &[u8; 32], hash: &[u8; 32], signature: &[u8; SIGNATURE_LEN]) -> bool {
    Label::Bundle.verifies(signing, hash, signature)
}

/// The first bytes of a record's hash: as many as it takes so that nobody can make two records with one tag.
pub type Tag = [u8; 16];

/// The tag of a record.
pub fn tag(record: &SignedRecord) -> Tag {
    *record.hash().first_chunk().expect("a hash has 32 bytes")
}

/// Signatures of some hops over one hash, as they travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signatures {
    pub interval: u64,
    pub hash: [u8; 32],
    /// Tags of the records under that hash, by position - 1.
    pub records: Vec<Tag>,
    /// By position - 1.
    pub signatures: Vec<Option<[u8; SIGNATURE_LEN]>>,
}

impl Signatures {
    /// No hop has signed these records yet.
    pub fn new(chain: &[u8; 32], interval: u64, records: &[&SignedRecord]) -> Signatures {
        Signatures {
            interval,
            hash: hash(chain, interval, records),
            records: records.iter().map(|record| tag(record)).collect(),
            signatures: vec![None; records.len()],
        }
    }

    /// One bit per hop that has signed, that of hop 1 lowest.
    pub fn present(&self) -> u8 {
        let bit = |(i, signature): (usize, &Option<_>)| u8::from(signature.is_some()) << i;
        self.signatures.iter().enumerate().map(bit).sum()
    }

    pub fn is_complete(&self) -> bool {
        self.signatures.iter().all(Option::is_some)
    }

    /// `n u64 | hash 32 | h x record tag 16 | present u8 | 64 bytes for each bit set, hop 1 first`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(41 + (16 + SIGNATURE_LEN) * self.signatures.len());
        out.extend_from_slice(&self.interval.to_be_bytes());
        out.extend_from_slice(&self.hash);
        self.records.iter().for_each(|tag| out.extend_from_slice(tag));
        out.push(self.present());
        self.signatures.iter().flatten().for_each(|signature| out.extend_from_slice(signature));
        out
    }

    /// Reads the signatures of a chain with `hops` hops. They are not verified.
    ///
    /// # Errors
    /// Another length, or a bit for a hop that does not exist.
    pub fn read(bytes: &[u8], hops: usize) -> Result<Signatures, Malformed> {
        let mut reader = Reader::new(bytes);
        let (interval, hash) = (reader.u64()?, reader.array()?);
        let records = (0..hops).map(|_| reader.array()).collect::<Result<_, _>>()?;
        let mut signatures = Signatures { interval, hash, records, signatures: vec![None; hops] };
        let present = reader.u8()?;
        if u16::from(present) >> hops != 0 {
            return Err(Malformed::Field("a signature of a hop that does not exist"));
        }
        for (i, signature) in signatures.signatures.iter_mut().enumerate() {
            if present >> i & 1 == 1 {
                *signature = Some(reader.array()?);
            }
        }
        reader.end()?;
        Ok(signatures)
    }
}

#[cfg(test)]
mod tests {
    use super::super::descriptor::tests::identity;
    use super::super::record::tests::record;
    use super::*;

    #[test]
    fn any_difference_in_the_records_changes_the_hash() {
        let [a, b, c] = [record(1, 5, 1), record(2, 5, 1), record(2, 5, 2)];
        let base = hash(&[0; 32], 9, &[&a, &b]);
        assert_eq!(hash(&[0; 32], 9, &[&a, &b]), base);
        let others = [
            hash(&[1; 32], 9, &[&a, &b]),
            hash(&[0; 32], 10, &[&a, &b]),
            hash(&[0; 32], 9, &[&b, &a]),
            hash(&[0; 32], 9, &[&a, &c]),
        ];
        assert!(others.iter().all(|other| *other != base));
        let signer = identity(101);
        assert!(verifies(&signer.public(), &base, &sign(&signer, &base)));
        assert!(!verifies(&signer.public(), &others[0], &sign(&signer, &base)));
    }

    #[test]
    fn signatures_travel_with_the_bits_of_their_hops() {
        let records: Vec<_> = (1..=4).map(|seed| record(seed, 5, 1)).collect();
        let records: Vec<_> = records.iter().collect();
        for present in 0..16u8 {
            let mut all = Signatures::new(&[1; 32], 7, &records);
            for (i, signature) in all.signatures.iter_mut().enumerate() {
                *signature = (present >> i & 1 == 1).then_some([i as u8; 64]);
            }
            assert_eq!((all.present(), all.is_complete()), (present, present == 15));
            let bytes = all.to_bytes();
            assert_eq!(Signatures::read(&bytes, 4), Ok(all));
            assert!(Signatures::read(&bytes[..bytes.len() - 1], 4).is_err());
            assert!(Signatures::read(&[&bytes[..], &[0]].concat(), 4).is_err());
        }
        // For four hops, a whole one fits two cells of class S with the nine bytes of a part.
        let whole = Signatures { signatures: vec![Some([0; 64]); 4], ..Signatures::new(&[1; 32], 7, &records) };
        assert!(whole.to_bytes().len() <= 2 * (208 - 9));
    }

    #[test]
    fn signature_of_a_hop_that_does_not_exist_is_refused() {
        let records = [record(1, 5, 1), record(2, 5, 1)];
        let mut bytes = Signatures::new(&[1; 32], 7, &[&records[0], &records[1]]).to_bytes();
        assert_eq!(Signatures::read(&bytes, 2).unwrap().present(), 0);
        let present = bytes.len() - 1;
        bytes[present] = 4;
        bytes.extend_from_slice(&[0; 64]);
        assert!(Signatures::read(&bytes, 2).is_err());
    }
}
