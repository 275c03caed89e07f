//! The erasure code over the cells of a setup (SPEC 5.3): any k of the n shards give the message back.
//!
//! Reed-Solomon over GF(2^8) with the polynomial 0x11D: shard j is p(j), where p is the polynomial of
//! degree below k whose values at 0..k are the data shards. Indexes and lengths are public, and the
//! shards hold ciphertext, so nothing here has to run in constant time. docs/adr/0017 has the reason
//! for an implementation of our own.

/// How a message is spread over cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shards {
    /// Shards that hold the message: k. As many are needed to restore it.
    pub data: usize,
    /// Shards in addition: r.
    pub parity: usize,
}

impl Shards {
    /// For a message of `len` bytes in shards of `content` bytes.
    pub const fn of(len: usize, content: usize) -> Shards {
        let data = len.div_ceil(content);
        let quarter = data.div_ceil(4);
        Shards { data, parity: if quarter > 3 { quarter } else { 3 } }
    }

    /// Cells on the link: n.
    pub const fn total(self) -> usize {
        self.data + self.parity
    }

    /// Appends the parity shards to the data shards.
    ///
    /// # Panics
    /// There are not k shards of one length.
    pub fn encode(self, shards: &mut Vec<Vec<u8>>) {
        assert!(shards.len() == self.data && self.total() <= 256);
        let points: Vec<u8> = (0..self.data).map(|i| i as u8).collect();
        let weights = weights(&points);
        for at in self.data..self.total() {
            shards.push(interpolate(&points, &weights, &shards[..self.data], at as u8));
        }
    }

    /// The k data shards, one after the other, of any k shards and their indexes.
    ///
    /// # Panics
    /// There are not k shards of one length, or an index occurs twice.
    pub fn decode(self, indexes: &[u8], shards: &[Vec<u8>]) -> Vec<u8> {
        assert!(indexes.len() == self.data && shards.len() == self.data);
        let weights = weights(indexes);
        let mut message = Vec::new();
        for wanted in 0..self.data as u8 {
            match indexes.iter().position(|index| *index == wanted) {
                Some(at) => message.extend_from_slice(&shards[at]),
                None => message.append(&mut interpolate(indexes, &weights, shards, wanted)),
            }
        }
        message
    }
}

/// For each of these points 1 / (the product of its differences to the others).
fn weights(points: &[u8]) -> Vec<u8> {
    let differences = |x: u8| points.iter().filter(move |y| **y != x).fold(1, |product, y| times(product, x ^ y));
    points.iter().map(|x| inverse(differences(*x))).collect()
}

/// p(at), of the values of p at `points`, none of which is `at` (Lagrange).
fn interpolate(points: &[u8], weights: &[u8], values: &[Vec<u8>], at: u8) -> Vec<u8> {
    let all = points.iter().fold(1, |product, x| times(product, at ^ x));
    let factor = |(x, weight): (&u8, &u8)| times(times(all, inverse(at ^ x)), *weight);
    let factors: Vec<u8> = points.iter().zip(weights).map(factor).collect();

    // The sum of factor * value, bit by bit of the factors, highest first. Whole shards are doubled and
    // added, which compilers turn into vector instructions.
    let mut sum = vec![0; values[0].len()];
    for bit in (0..8).rev() {
        sum.iter_mut().for_each(|byte| *byte = double(*byte));
        for (_, value) in factors.iter().zip(values).filter(|(factor, _)| *factor >> bit & 1 == 1) {
            sum.iter_mut().zip(value).for_each(|(byte, more)| *byte ^= more);
        }
    }
    sum
}

const fn double(a: u8) -> u8 {
    a << 1 ^ (0x1d & (a >> 7).wrapping_neg())
}

/// Powers of 2, which generates the field, and their logarithms.
const EXP: [u8; 255] = {
    let mut exp = [1; 255];
    let mut i = 1;
    while i < 255 {
        exp[i] = double(exp[i - 1]);
        i += 1;
    }
    exp
};
const LOG: [u8; 256] = {
    let mut log = [0; 256];
    let mut i = 0;
    while i < 255 {
        log[EXP[i] as usize] = i as u8;
        i += 1;
    }
    log
};

fn times(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    EXP[(usize::from(LOG[usize::from(a)]) + usize::from(LOG[usize::from(b)])) % 255]
}

/// 1 / a; `a` is not 0.
fn inverse(a: u8) -> u8 {
    EXP[(255 - usize::from(LOG[usize::from(a)])) % 255]
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;
    use proptest::prelude::*;
    use reed_solomon_erasure::galois_8::ReedSolomon;

    /// The product by the definition of the field: polynomials, reduced by 0x11D.
    fn product(a: u8, b: u8) -> u8 {
        let mut sum = (0..8).filter(|bit| b >> bit & 1 == 1).fold(0u16, |sum, bit| sum ^ u16::from(a) << bit);
        for bit in (8..15).rev() {
            if sum >> bit & 1 == 1 {
                sum ^= 0x11d << (bit - 8);
            }
        }
        sum as u8
    }

    /// p(x), of the values of p at 0, 1, ..., by the textbook's formula.
    fn model(values: &[u8], x: u8) -> u8 {
        let quotient = |a: u8, b: u8| (0..=255).find(|c| product(*c, b) == a).unwrap();
        let point = |i: usize| i as u8;
        (0..values.len()).fold(0, |sum, i| {
            let others = (0..values.len()).filter(|j| *j != i);
            let basis = others.fold(1, |basis, j| product(basis, quotient(x ^ point(j), point(i) ^ point(j))));
            sum ^ product(values[i], basis)
        })
    }

    #[test]
    fn field_has_the_polynomial_0x11d() {
        assert_eq!((double(0x80), times(0x80, 2), times(2, inverse(2))), (0x1d, 0x1d, 1));
        for a in 0..=255 {
            assert!((0..=255).all(|b| times(a, b) == product(a, b)), "{a}");
            assert!(a == 0 || times(a, inverse(a)) == 1, "{a}");
        }
    }

    #[test]
    fn parity_shards_match_known_answers() {
        let mut shards = vec![hex!("00ff10").to_vec(), hex!("013344").to_vec(), hex!("8080aa").to_vec()];
        Shards { data: 3, parity: 3 }.encode(&mut shards);
        assert_eq!(shards[3..], [hex!("814cfe").to_vec(), hex!("2fce31").to_vec(), hex!("2e0265").to_vec()]);
        let mut one = vec![hex!("0123").to_vec()];
        Shards::of(2, 2).encode(&mut one);
        assert_eq!(one, vec![hex!("0123").to_vec(); 4], "a constant polynomial");
    }

    #[test]
    fn counts_match_the_specification() {
        // Class S, seven mixes, suite 2: the longest setup.
        let counts: Vec<_> = (1..=8).map(|i| Shards::of(1152 * (9 - i), 208 + 16 * (8 - i))).collect();
        let expected = [(29, 8), (27, 7), (24, 6), (22, 6), (18, 5), (15, 4), (11, 3), (6, 3)];
        assert_eq!(counts, expected.map(|(data, parity)| Shards { data, parity }));
    }

    proptest! {
        #[test]
        fn shards_agree_with_a_model_and_another_implementation(
            data in 1usize..40, parity in 1usize..12, seed in any::<u64>(), len in 1usize..9,
        ) {
            let mut bytes = seed;
            let mut byte = || { bytes = bytes.wrapping_mul(6364136223846793005).wrapping_add(1); (bytes >> 56) as u8 };
            let mut shards: Vec<Vec<u8>> = (0..data).map(|_| (0..len).map(|_| byte()).collect()).collect();
            let mut theirs = shards.clone();
            theirs.resize(data + parity, vec![0; len]);
            ReedSolomon::new(data, parity).unwrap().encode(&mut theirs).unwrap();

            Shards { data, parity }.encode(&mut shards);
            prop_assert_eq!(&shards, &theirs);
            let first: Vec<u8> = shards[..data].iter().map(|shard| shard[0]).collect();
            prop_assert!((0..data + parity).all(|at| shards[at][0] == model(&first, at as u8)));
        }

        #[test]
        fn any_k_shards_restore_the_message(
            len in 1usize..600, content in 8usize..64, order in any::<[u8; 32]>(),
        ) {
            let code = Shards::of(len, content);
            let mut shards: Vec<Vec<u8>> = (0..code.data).map(|i| vec![i as u8 ^ order[i % 32]; content]).collect();
            let message = shards.concat();
            code.encode(&mut shards);
            prop_assert_eq!(shards.len(), code.total());
            let mut kept: Vec<u8> = (0..code.total() as u8).collect();
            kept.sort_by_key(|at| order[usize::from(*at) % 32].rotate_left(u32::from(*at)).wrapping_mul(167));
            kept.truncate(code.data);
            let of_kept: Vec<Vec<u8>> = kept.iter().map(|at| shards[usize::from(*at)].clone()).collect();
            prop_assert_eq!(code.decode(&kept, &of_kept), message);
        }
    }
}
