//! Limits of the traffic between an exit and a destination, so that users cannot flood one: datagrams to an
//! address that has not answered, and datagrams a second of a flow and of an address, each way (SPEC 3.13).
//!
//! All channels share what an address may receive before it answers. A channel gets one more only while more are left
//! than it has used, and its first few also when nothing is left, at a low rate: one user must not close a destination
//! for the others.
//!
//! The usage of addresses is kept in two tables of fixed size, each address at one row of each, chosen by a hash
//! that only this process knows. Addresses may share rows, and the fuller of both may be another's: what counts is
//! the emptier one. It shows at least what the address has used, so no address gets more than its limit, however many
//! there are, and none has to be turned away because a table is full (a count-min sketch; Cormode and Muthukrishnan,
//! 2005). A channel's own usage has two small tables of the same kind, which only its own addresses share.

use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr};

use foldhash::quality::RandomState;
use hashbrown::HashMap;
use wire::ids::ChannelIndex;

use crate::ledger::DropReason;
use crate::rate::{Bucket, Rate};
use crate::{Nanos, SECOND};

/// Limits for destinations that the policy does not trust, and for names. None means no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Datagrams of all channels to an address that has not answered.
    pub unanswered: Option<u32>,
    /// Datagrams of a flow, each way.
    pub flow: Option<Rate>,
    /// Datagrams of an address, each way.
    pub destination: Option<Rate>,
    /// Names to resolve per second, of all channels.
    pub names: Option<u32>,
}

/// A flow's use of its limits.
#[derive(Clone, Copy, Default)]
pub struct Usage {
    forward: Bucket,
    backward: Bucket,
    /// Its peer has answered.
    answered: bool,
    /// Datagrams sent to a peer that has not answered.
    charged: u32,
}

impl Usage {
    /// The same flow's towards the next address of its name. What it sent to the last one stays charged there.
    pub(crate) fn moved_on(self) -> Usage {
        Usage { answered: false, charged: 0, ..self }
    }
}

/// The use by all flows to an address and to those that share its row.
#[derive(Clone, Copy, Default)]
struct Row {
    forward: Bucket,
    backward: Bucket,
    unanswered: u32,
    /// First datagrams of channels, beyond the limit of unanswered ones.
    first: Bucket,
}

/// Places of a table. Two have a chance of one in 2^28 to fall together in both tables.
const ROWS: usize = 1 << 14;
/// Unanswered datagrams of closed flows are forgotten after this time.
const FORGET: Nanos = 600 * SECOND;
/// Datagrams that a channel may send to an address whose limit of unanswered ones is used up.
const FIRST_MAX: u32 = 3;
/// These datagrams of all channels to one address.
const FIRST: Rate = Rate::new(10, 10);
/// Places of each of two tables for a channel's own usage of addresses: 1 KiB.
const OWN_ROWS: usize = 1 << 7;

/// Of an address in the two tables of all channels. Its places in those of one channel follow from them.
type Places = [usize; 2];
const _: () = assert!(ROWS.is_multiple_of(OWN_ROWS));

/// Holds destinations to their limits.
pub struct Limiter {
    limits: Limits,
    tables: [Box<[Row]>; 2],
    hashers: [RandomState; 2],
    /// Datagrams to addresses that have not answered, of each channel that has sent any.
    own: HashMap<ChannelIndex, Box<[[u32; OWN_ROWS]; 2]>, foldhash::fast::RandomState>,
    forget_at: Nanos,
}

impl Limiter {
    pub fn new(limits: Limits, now: Nanos) -> Limiter {
        let tables = [(); 2].map(|()| vec![Row::default(); ROWS].into_boxed_slice());
        Limiter { limits, tables, hashers: Default::default(), own: HashMap::default(), forget_at: now + FORGET }
    }

    /// The place of an address in each table; of an IPv6 address, that of its subnet, which gives its hosts as many as
    /// they want.
    fn places(&self, ip: IpAddr) -> Places {
        let key = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
            IpAddr::V6(ip) => ip.to_bits() >> 64 << 64,
        };
        let place = |hasher: &RandomState| hasher.hash_one(Ipv6Addr::from_bits(key)) as usize % ROWS;
        self.hashers.each_ref().map(place)
    }

    fn rows(&mut self, places: Places) -> [&mut Row; 2] {
        let [first, second] = &mut self.tables;
        [&mut first[places[0]], &mut second[places[1]]]
    }

    /// Datagrams that a channel has sent to an address without an answer.
    fn own(&self, channel: ChannelIndex, places: Places) -> u32 {
        let Some([first, second]) = self.own.get(&channel).map(Box::as_ref) else { return 0 };
        first[places[0] % OWN_ROWS].min(second[places[1] % OWN_ROWS])
    }

    /// Charges a channel, and the address, for datagrams without an answer.
    fn charge(&mut self, channel: ChannelIndex, places: Places, count: u32) {
        let own = self.own.entry(channel).or_insert_with(|| Box::new([[0; OWN_ROWS]; 2]));
        for (table, place) in own.iter_mut().zip(places) {
            let own = &mut table[place % OWN_ROWS];
            *own = own.saturating_add(count);
        }
        for row in self.rows(places) {
            row.unanswered = row.unanswered.saturating_add(count);
        }
    }

    /// A channel has ended: its index may be given out again. Addresses do not get back what it has used.
    pub fn forget(&mut self, channel: ChannelIndex) {
        self.own.remove(&channel);
    }

    /// A datagram that a flow of `channel` would send to an address.
    ///
    /// # Errors
    /// The flow or the address is over its rate ([`DropReason::FlowRate`], [`DropReason::DestinationRate`]), or the
    /// address has not answered what it has got ([`DropReason::Unanswered`]).
    pub fn forward(
        &mut self,
        channel: ChannelIndex,
        usage: &mut Usage,
        to: IpAddr,
        now: Nanos,
    ) -> Result<(), DropReason> {
        let Limits { unanswered, flow, destination, .. } = self.limits;
        let most = unanswered.filter(|_| !usage.answered);
        if most.is_some() || destination.is_some() {
            let places = self.places(to);
            let own = most.map_or(0, |_| self.own(channel, places));
            let rows = self.rows(places);
            // Never more than the address has: other addresses share the channel's few places.
            let own = rows.iter().map(|row| row.unanswered).fold(own, u32::min);
            let is_within = |most: u32| rows.iter().any(|row| most.saturating_sub(row.unanswered) > own);
            let is_beyond = most.is_some_and(|most| !is_within(most));
            if is_beyond && !(own < FIRST_MAX && rows.iter().any(|row| row.first.has(FIRST, now))) {
                return Err(DropReason::Unanswered);
            }
            if flow.is_some_and(|rate| !usage.forward.has(rate, now)) {
                return Err(DropReason::FlowRate);
            }
            if destination.is_some_and(|rate| !rows.iter().any(|row| row.forward.has(rate, now))) {
                return Err(DropReason::DestinationRate);
            }
            for row in rows {
                destination.map(|rate| row.forward.take(rate, now));
                if is_beyond {
                    row.first.take(FIRST, now);
                }
            }
            if most.is_some() {
                self.charge(channel, places, 1);
                usage.charged += 1;
            }
        }
        match flow {
            Some(rate) if !usage.forward.take(rate, now) => Err(DropReason::FlowRate),
            _ => Ok(()),
        }
    }

    /// A datagram that came for a flow of `channel` from an address; `answers` if that is the flow's peer.
    ///
    /// # Errors
    /// The flow or the address is over its rate.
    pub fn backward(
        &mut self,
        channel: ChannelIndex,
        usage: &mut Usage,
        from: IpAddr,
        answers: bool,
        now: Nanos,
    ) -> Result<(), DropReason> {
        let places = self.places(from);
        if answers {
            self.answered(channel, usage, places);
        }
        let Limits { flow, destination, .. } = self.limits;
        if flow.is_some_and(|rate| !usage.backward.take(rate, now)) {
            return Err(DropReason::FlowRate);
        }
        if let Some(rate) = destination
            && !self.rows(places).map(|row| row.backward.take(rate, now)).contains(&true)
        {
            return Err(DropReason::DestinationRate);
        }
        Ok(())
    }

    /// Credits back what this flow has sent; an answer to one flow credits no other. A flow that has moved credits the
    /// channel that it is on now.
    fn answered(&mut self, channel: ChannelIndex, usage: &mut Usage, places: Places) {
        usage.answered = true;
        let charged = std::mem::take(&mut usage.charged);
        if charged == 0 {
            return;
        }
        for row in self.rows(places) {
            row.unanswered = row.unanswered.saturating_sub(charged);
        }
        for (table, place) in self.own.get_mut(&channel).into_iter().flat_map(|own| own.iter_mut()).zip(places) {
            let own = &mut table[place % OWN_ROWS];
            *own = own.saturating_sub(charged);
        }
    }

    /// Every ten minutes, forgets what flows have sent without an answer, but for those that live.
    pub fn tick<'a>(&mut self, now: Nanos, live: impl Iterator<Item = (ChannelIndex, &'a Usage, IpAddr)>) {
        if now < self.forget_at {
            return;
        }
        self.forget_at = now + FORGET;
        self.tables.iter_mut().flatten().for_each(|row| row.unanswered = 0);
        self.own.clear();
        for (channel, usage, to) in live.filter(|(_, usage, _)| usage.charged > 0) {
            self.charge(channel, self.places(to), usage.charged);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    use rand::Rng;
    use rand_chacha::ChaCha20Rng;

    use crate::MILLI;

    const C: ChannelIndex = ChannelIndex(0);

    fn ip(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    fn limiter(unanswered: u32, flow: u32, destination: u32) -> Limiter {
        let rate = |per_s| (per_s > 0).then(|| Rate::per_second(per_s));
        let unanswered = (unanswered > 0).then_some(unanswered);
        Limiter::new(Limits { unanswered, flow: rate(flow), destination: rate(destination), names: None }, 0)
    }

    /// Sends `count` datagrams of a channel, each in a flow of its own. Returns how many may leave.
    fn sent(limiter: &mut Limiter, channel: u32, to: IpAddr, count: usize, now: Nanos) -> usize {
        let mut send = || limiter.forward(ChannelIndex(channel), &mut Usage::default(), to, now);
        (0..count).filter(|_| send().is_ok()).count()
    }

    #[test]
    fn silent_address_gets_half_from_one_channel_over_all_flows() {
        let mut limiter = limiter(10, 0, 0);
        let mut flows = [Usage::default(); 4];
        let mut sent = 0;
        for round in 0..10 {
            for usage in &mut flows {
                sent += u32::from(limiter.forward(C, usage, ip(1), round).is_ok());
            }
        }
        assert_eq!(sent, 5);
        assert_eq!(limiter.forward(C, &mut flows[0], ip(1), 20), Err(DropReason::Unanswered));
        assert_eq!(limiter.forward(C, &mut flows[0], ip(2), 20), Ok(()), "another address has its own");
    }

    /// One user sends to a destination until it is refused, and again every second: others still reach it.
    #[test]
    fn no_channel_closes_a_destination_for_others() {
        let mut limiter = limiter(1000, 0, 0);
        assert_eq!(sent(&mut limiter, 1, ip(1), 5000, 0), 500);
        for second in 1..600 {
            assert_eq!(sent(&mut limiter, 1, ip(1), 100, second * SECOND), 0);
        }
        assert_eq!(sent(&mut limiter, 2, ip(1), 100, FORGET - 1), 100);
    }

    /// Many channels use up what an address may receive. It gets a bounded number more, and what those send that were
    /// never charged for it is among them.
    #[test]
    fn greedy_channels_leave_first_datagrams_to_others() {
        let mut limiter = limiter(1000, 0, 0);
        let greedy: usize = (0..100).map(|channel| sent(&mut limiter, channel, ip(1), 1000, 0)).sum();
        assert!((1000..=1000 + 10).contains(&greedy), "{greedy}, with the burst of first ones");
        // For a minute new channels send three times as many as there is room for, and others a tenth of that.
        let mut rng = <ChaCha20Rng as rand::SeedableRng>::seed_from_u64(1);
        let (mut hostile, mut honest) = ((1000, 0), (100_000, 0));
        for ms in 0..60_000 {
            let now = SECOND + ms * MILLI;
            match rng.next_u32() % 1000 {
                0..30 => hostile = (hostile.0 + 1, hostile.1 + sent(&mut limiter, hostile.0 / 3, ip(1), 1, now)),
                30..33 => {
                    let (channel, mut usage) = (ChannelIndex(honest.0), Usage::default());
                    if limiter.forward(channel, &mut usage, ip(1), now).is_ok() {
                        limiter.backward(channel, &mut usage, ip(1), true, now).unwrap();
                        assert!((0..1000).all(|_| limiter.forward(channel, &mut usage, ip(1), now).is_ok()));
                        honest = (honest.0 + 1, honest.1 + 1);
                    }
                }
                _ => {}
            }
        }
        assert!(hostile.1 + honest.1 <= 10 * 61, "{hostile:?} and {honest:?}");
        assert!(honest.1 >= 20, "{honest:?}");
    }

    #[test]
    fn channel_has_three_first_datagrams_and_no_more() {
        let mut limiter = limiter(1000, 0, 0);
        (0..50).for_each(|channel| _ = sent(&mut limiter, channel, ip(1), 1000, 0));
        assert_eq!(sent(&mut limiter, 100, ip(1), 100, 10 * SECOND), 3);
        assert_eq!(sent(&mut limiter, 100, ip(1), 100, 20 * SECOND), 0);
        limiter.forget(ChannelIndex(100));
        assert_eq!(sent(&mut limiter, 100, ip(1), 100, 20 * SECOND), 3, "another channel has its index");
    }

    #[test]
    fn answered_flow_sends_on_and_credits_only_itself() {
        let mut limiter = limiter(20, 0, 0);
        let [mut silent, mut heard, mut third] = [Usage::default(); 3];
        (0..6).for_each(|_| limiter.forward(C, &mut silent, ip(1), 0).unwrap());
        (0..4).for_each(|_| limiter.forward(C, &mut heard, ip(1), 0).unwrap());
        assert_eq!(limiter.forward(C, &mut third, ip(1), 0), Err(DropReason::Unanswered));
        limiter.backward(C, &mut heard, ip(1), true, 0).unwrap();
        (0..100).for_each(|_| limiter.forward(C, &mut heard, ip(1), 0).unwrap());
        assert_eq!((0..100).filter(|_| limiter.forward(C, &mut third, ip(1), 0).is_ok()).count(), 4);
        // A datagram from another sender is not an answer.
        limiter.backward(C, &mut silent, ip(9), false, 0).unwrap();
        assert_eq!(limiter.forward(C, &mut silent, ip(1), 0), Err(DropReason::Unanswered));
    }

    #[test]
    fn usage_of_closed_flows_is_forgotten_and_of_live_ones_kept() {
        let mut limiter = limiter(20, 0, 0);
        let [mut closed, mut live] = [Usage::default(); 2];
        (0..4).for_each(|_| limiter.forward(C, &mut closed, ip(1), 0).unwrap());
        (0..6).for_each(|_| limiter.forward(C, &mut live, ip(1), 0).unwrap());
        limiter.tick(FORGET - 1, [(C, &live, ip(1))].into_iter());
        assert_eq!(limiter.forward(C, &mut live, ip(1), FORGET - 1), Err(DropReason::Unanswered));
        limiter.tick(FORGET, [(C, &live, ip(1))].into_iter());
        assert_eq!((0..100).filter(|_| limiter.forward(C, &mut live, ip(1), FORGET).is_ok()).count(), 4);
    }

    #[test]
    fn rates_hold_each_way_for_a_flow_and_for_an_address() {
        let mut limiter = limiter(0, 100, 150);
        let mut flows = [Usage::default(); 2];
        let (mut out, mut back) = (Vec::new(), Vec::new());
        for ms in 0..2000 {
            for usage in &mut flows {
                out.extend(limiter.forward(C, usage, ip(1), ms * SECOND / 1000).err());
                back.extend(limiter.backward(C, usage, ip(1), true, ms * SECOND / 1000).err());
            }
        }
        for refused in [out, back] {
            // A quarter of a second's at first, and then two seconds'.
            let passed = 4000 - refused.len();
            assert!((335..=339).contains(&passed), "{passed}");
            assert!(refused.contains(&DropReason::FlowRate) && refused.contains(&DropReason::DestinationRate));
        }
        let mut other = Usage::default();
        assert_eq!(limiter.forward(C, &mut other, ip(2), 2 * SECOND), Ok(()));
    }

    #[test]
    fn address_limit_is_never_exceeded_and_rarely_undercut() {
        let mut limiter = limiter(8, 0, 0);
        let mut short = 0;
        for n in 0..10_000u32 {
            let to = IpAddr::from((0x0100_0000 + n).to_be_bytes());
            // A channel for each address: one channel's addresses share its places.
            let got = sent(&mut limiter, n, to, 10, 0);
            assert!(got <= 4);
            short += u32::from(got < 4);
        }
        // Both rows are full already for at most (10,000 / 16,384)^2 of the last.
        assert!(short < 2500, "{short}");
    }

    #[test]
    fn hosts_of_an_ipv6_subnet_share_what_it_gets() {
        let mut limiter = limiter(8, 0, 0);
        let to = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut usage = Usage::default();
        let got = (0..10).filter(|n| limiter.forward(C, &mut usage, to(&format!("2600::{n}")), 0).is_ok()).count();
        assert_eq!(got, 4);
        assert_eq!(limiter.forward(C, &mut usage, to("2600:0:0:1::1"), 0), Ok(()));
    }
}
