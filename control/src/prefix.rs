//! Networks that count as one source of links, handshakes and setups (SPEC 4.11).

use std::net::IpAddr;
use std::time::Duration;

use blake2::Blake2sMac;
use blake2::digest::consts::U8;
use blake2::digest::{FixedOutput, Update};
use rand::Rng;

use crate::rate::{Bucket, Rate};

/// Handshakes and setups of a prefix at Mix 1.
pub(crate) const PREFIX: Rate = Rate { per_second: 10, burst: 40 };
/// What a /64 of IPv6 may use of that, so that it leaves half of it to others of its /48.
const SUBNET: Rate = Rate { per_second: PREFIX.per_second / 2, burst: PREFIX.burst / 2 };
/// Buckets of a table. Prefixes with equal hashes share a bucket.
const BUCKETS: usize = 4096;

/// A /32 of IPv4 or a /48 of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Prefix([u8; 7]);

impl Prefix {
    pub(crate) fn of(address: IpAddr) -> Prefix {
        let mut bytes = [0; 7];
        match address.to_canonical() {
            IpAddr::V4(v4) => {
                bytes[0] = 4;
                bytes[1..5].copy_from_slice(&v4.octets());
            }
            IpAddr::V6(v6) => {
                bytes[0] = 6;
                bytes[1..].copy_from_slice(&v6.octets()[..6]);
            }
        }
        Prefix(bytes)
    }
}

/// The /64 of an address of IPv6.
fn subnet(address: IpAddr) -> Option<[u8; 8]> {
    match address.to_canonical() {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => v6.octets().first_chunk().copied(),
    }
}

/// True if two addresses are in one /64 of IPv6.
pub(crate) fn is_same_subnet(one: IpAddr, other: IpAddr) -> bool {
    subnet(one).is_some_and(|subnet_of_one| subnet(other) == Some(subnet_of_one))
}

/// True if a prefix that has `own` of `used` places gets no other of `most`: after the first it gets one more only
/// while more are free than it has. So k prefixes that take turns leave one part in k + 1 to others, and one after the
/// other one part in 2^k.
pub(crate) fn has_its_share(own: usize, used: usize, most: usize) -> bool {
    own > 0 && most.saturating_sub(used) <= own
}

/// A token bucket for each prefix, in memory of a fixed size.
pub(crate) struct Buckets {
    /// Drawn at the first use, so that nobody can choose prefixes that share a bucket.
    key: Option<[u8; 32]>,
    prefixes: Vec<Bucket>,
    /// One for each /64 of IPv6, unless only prefixes have a rate.
    subnets: Vec<Bucket>,
}

impl Buckets {
    /// Of prefixes alone.
    pub(crate) fn new(rate: Rate, now: Duration) -> Buckets {
        Buckets { key: None, prefixes: table(rate, now), subnets: Vec::new() }
    }

    /// At Mix 1: [`PREFIX`] for each prefix, half of it for each /64 of IPv6.
    pub(crate) fn with_subnets(now: Duration) -> Buckets {
        Buckets { subnets: table(SUBNET, now), ..Buckets::new(PREFIX, now) }
    }

    /// Those of an address, that of its /64 first.
    fn of(&mut self, rng: &mut impl Rng, address: IpAddr) -> impl Iterator<Item = &mut Bucket> {
        let key = self.key.get_or_insert_with(|| {
            let mut key = [0; 32];
            rng.fill_bytes(&mut key);
            key
        });
        let place = |network: &[u8]| {
            let mut mac = Blake2sMac::<U8>::new_with_salt_and_personal(Some(key), &[], &[]).expect("a key of 32 bytes");
            mac.update(network);
            u64::from_be_bytes(mac.finalize_fixed().into()) as usize % BUCKETS
        };
        let of_subnet = subnet(address).and_then(|subnet| self.subnets.get_mut(place(&subnet)));
        of_subnet.into_iter().chain([&mut self.prefixes[place(&Prefix::of(address).0)]])
    }

    /// Takes a token of this address's networks. False if one of them has none.
    pub(crate) fn take(&mut self, rng: &mut impl Rng, now: Duration, address: IpAddr) -> bool {
        self.of(rng, address).all(|bucket| bucket.take(now))
    }

    /// True if one of this address's networks has fewer than half of its tokens.
    pub(crate) fn is_low(&mut self, rng: &mut impl Rng, now: Duration, address: IpAddr) -> bool {
        self.of(rng, address).any(|bucket| bucket.is_low(now))
    }
}

fn table(rate: Rate, now: Duration) -> Vec<Bucket> {
    (0..BUCKETS).map(|_| Bucket::new(rate, now)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    #[test]
    fn prefixes_are_32_and_48_bits() {
        let of = |text: &str| Prefix::of(text.parse().unwrap());
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert_eq!(of("2001:db8:1:ffff::1"), of("2001:db8:1::2"));
        assert_ne!(of("2001:db8:1::1"), of("2001:db8:2::1"));
    }

    #[test]
    fn subnets_are_64_bits_of_ipv6() {
        let is_same = |one: &str, other: &str| is_same_subnet(one.parse().unwrap(), other.parse().unwrap());
        assert!(is_same("2001:db8:1:2::1", "2001:db8:1:2:3::4"));
        assert!(!is_same("2001:db8:1:2::1", "2001:db8:1:3::1"));
        assert!(!is_same("192.0.2.1", "192.0.2.1") && !is_same("192.0.2.1", "2001:db8::1"));
        assert!(!is_same("::ffff:192.0.2.1", "::ffff:192.0.2.1"), "an IPv4 prefix has one address");
    }

    #[test]
    fn prefixes_leave_one_part_to_others() {
        let may_take = |own: &[usize], at: usize| !has_its_share(own[at], own.iter().sum(), 1024);
        for k in 1..6 {
            let (mut in_turns, mut one_by_one) = (vec![0; k], vec![0; k]);
            while let Some(at) = (0..k).filter(|at| may_take(&in_turns, *at)).min_by_key(|at| in_turns[*at]) {
                in_turns[at] += 1;
            }
            while let Some(at) = (0..k).find(|at| may_take(&one_by_one, *at)) {
                one_by_one[at] += 1;
            }
            let left = [in_turns, one_by_one].map(|own| 1024 - own.iter().sum::<usize>());
            assert_eq!(left, [1024 / (k + 1), 1024 >> k], "{k} prefixes");
        }
        assert!(!has_its_share(0, 1024, 1024), "the cap of the node is checked elsewhere");
    }

    /// How many tokens each of these addresses gets, one after the other.
    fn taken<const N: usize>(buckets: &mut Buckets, now: Duration, addresses: [&str; N]) -> [usize; N] {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        addresses.map(|text| (0..100).filter(|_| buckets.take(&mut rng, now, text.parse().unwrap())).count())
    }

    #[test]
    fn prefix_has_its_burst_and_leaves_others_theirs() {
        let mut buckets = Buckets::new(PREFIX, Duration::ZERO);
        assert_eq!(taken(&mut buckets, Duration::ZERO, ["192.0.2.1"]), [40]);
        let mut is_low =
            |text: &str| buckets.is_low(&mut ChaCha20Rng::seed_from_u64(1), Duration::ZERO, text.parse().unwrap());
        assert!(is_low("192.0.2.1") && !is_low("2001:db8::1"));
        assert_eq!(taken(&mut buckets, Duration::from_millis(100), ["192.0.2.1", "2001:db8::1"]), [1, 40]);
    }

    #[test]
    fn subnet_leaves_half_of_its_prefix_to_others() {
        let mut buckets = Buckets::with_subnets(Duration::ZERO);
        let [one, other, v4] = ["2001:db8:1:2::1", "2001:db8:1:3::1", "192.0.2.1"];
        assert_eq!(taken(&mut buckets, Duration::ZERO, [one, other, v4]), [20, 20, 40]);
        // One takes what it gets for ten seconds, and the other the rest.
        let second = |second| taken(&mut buckets, Duration::from_secs(second), [one, other]);
        assert!((1..10).map(second).all(|got| got == [5, 5]));
        let mut buckets = Buckets::with_subnets(Duration::ZERO);
        assert_eq!(taken(&mut buckets, Duration::ZERO, [one]), [20]);
        let mut is_low =
            |text: &str| buckets.is_low(&mut ChaCha20Rng::seed_from_u64(1), Duration::ZERO, text.parse().unwrap());
        assert!(is_low(one) && !is_low(other), "who has none is asked for a cookie");
    }
}
