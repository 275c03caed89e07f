//! Limits of the traffic between an exit and a destination, so that users cannot flood one: datagrams to an
//! address that has not answered, and datagrams a second of a flow and of an address, each way (SPEC 3.13).
//!
//! The usage of addresses is kept in two tables of fixed size, each address at one row of each, chosen by a hash
//! that only this process knows. Addresses may share rows, and the fuller of both may be another's: what counts is
//! the emptier one. It shows at least what the address has used, so no address gets more than its limit, however many
//! there are, and none has to be turned away because a table is full (a count-min sketch; Cormode and Muthukrishnan,
//! 2005).

use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr};

use foldhash::quality::RandomState;

use crate::ledger::DropReason;
use crate::rate::{Bucket, Rate};
use crate::{Nanos, SECOND};

/// Limits for destinations that the policy does not trust, and for names. None means no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Datagrams to an address that has not answered.
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
}

/// Places of a table. Two have a chance of one in 2^28 to fall together in both tables.
const ROWS: usize = 1 << 14;
/// Unanswered datagrams of closed flows are forgotten after this time.
const FORGET: Nanos = 600 * SECOND;

/// Holds destinations to their limits.
pub struct Limiter {
    limits: Limits,
    tables: [Box<[Row]>; 2],
    hashers: [RandomState; 2],
    forget_at: Nanos,
}

impl Limiter {
    pub fn new(limits: Limits, now: Nanos) -> Limiter {
        let tables = [(); 2].map(|()| vec![Row::default(); ROWS].into_boxed_slice());
        Limiter { limits, tables, hashers: Default::default(), forget_at: now + FORGET }
    }

    /// The rows of an address; of an IPv6 address, those of its subnet, which gives its hosts as many as they want.
    fn rows(&mut self, ip: IpAddr) -> [&mut Row; 2] {
        let key = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
            IpAddr::V6(ip) => ip.to_bits() >> 64 << 64,
        };
        let [first, second] = &mut self.tables;
        let at = |hasher: &RandomState| hasher.hash_one(Ipv6Addr::from_bits(key)) as usize % ROWS;
        [&mut first[at(&self.hashers[0])], &mut second[at(&self.hashers[1])]]
    }

    /// A datagram that a flow would send to an address.
    ///
    /// # Errors
    /// The flow or the address is over its rate ([`DropReason::FlowRate`], [`DropReason::DestinationRate`]), or the
    /// address has not answered what it has got ([`DropReason::Unanswered`]).
    pub fn forward(&mut self, usage: &mut Usage, to: IpAddr, now: Nanos) -> Result<(), DropReason> {
        let Limits { unanswered, flow, destination, .. } = self.limits;
        let most = unanswered.filter(|_| !usage.answered);
        if most.is_some() || destination.is_some() {
            let rows = self.rows(to);
            if most.is_some_and(|most| rows.iter().all(|row| row.unanswered >= most)) {
                return Err(DropReason::Unanswered);
            }
            if flow.is_some_and(|rate| !usage.forward.has(rate, now)) {
                return Err(DropReason::FlowRate);
            }
            if destination.is_some_and(|rate| !rows.iter().any(|row| row.forward.has(rate, now))) {
                return Err(DropReason::DestinationRate);
            }
            for row in rows {
                row.unanswered = row.unanswered.saturating_add(u32::from(most.is_some()));
                destination.map(|rate| row.forward.take(rate, now));
            }
            usage.charged += u32::from(most.is_some());
        }
        match flow {
            Some(rate) if !usage.forward.take(rate, now) => Err(DropReason::FlowRate),
            _ => Ok(()),
        }
    }

    /// A datagram that came for a flow from an address; `answers` if that is the flow's peer.
    ///
    /// # Errors
    /// The flow or the address is over its rate.
    pub fn backward(&mut self, usage: &mut Usage, from: IpAddr, answers: bool, now: Nanos) -> Result<(), DropReason> {
        if answers {
            self.answered(usage, from);
        }
        let Limits { flow, destination, .. } = self.limits;
        if flow.is_some_and(|rate| !usage.backward.take(rate, now)) {
            return Err(DropReason::FlowRate);
        }
        if let Some(rate) = destination
            && !self.rows(from).map(|row| row.backward.take(rate, now)).contains(&true)
        {
            return Err(DropReason::DestinationRate);
        }
        Ok(())
    }

    /// Gives back what the flow has sent, and no other: whose peer answers earns nothing for those that do not.
    fn answered(&mut self, usage: &mut Usage, from: IpAddr) {
        usage.answered = true;
        let charged = std::mem::take(&mut usage.charged);
        if charged > 0 {
            for row in self.rows(from) {
                row.unanswered = row.unanswered.saturating_sub(charged);
            }
        }
    }

    /// Every ten minutes, forgets what flows have sent without an answer, but for those that live.
    pub fn tick<'a>(&mut self, now: Nanos, live: impl Iterator<Item = (&'a Usage, IpAddr)>) {
        if now < self.forget_at {
            return;
        }
        self.forget_at = now + FORGET;
        self.tables.iter_mut().flatten().for_each(|row| row.unanswered = 0);
        for (usage, to) in live.filter(|(usage, _)| usage.charged > 0) {
            for row in self.rows(to) {
                row.unanswered = row.unanswered.saturating_add(usage.charged);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn ip(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    fn limiter(unanswered: u32, flow: u32, destination: u32) -> Limiter {
        let rate = |per_s| (per_s > 0).then(|| Rate::per_second(per_s));
        let unanswered = (unanswered > 0).then_some(unanswered);
        Limiter::new(Limits { unanswered, flow: rate(flow), destination: rate(destination), names: None }, 0)
    }

    #[test]
    fn a_silent_address_gets_its_budget_over_all_flows_and_no_more() {
        let mut limiter = limiter(10, 0, 0);
        let mut flows = [Usage::default(); 4];
        let mut sent = 0;
        for round in 0..10 {
            for usage in &mut flows {
                sent += u32::from(limiter.forward(usage, ip(1), round).is_ok());
            }
        }
        assert_eq!(sent, 10);
        assert_eq!(limiter.forward(&mut flows[0], ip(1), 20), Err(DropReason::Unanswered));
        assert_eq!(limiter.forward(&mut flows[0], ip(2), 20), Ok(()), "another address has its own");
    }

    #[test]
    fn who_is_answered_sends_on_and_gives_back_what_it_used_alone() {
        let mut limiter = limiter(10, 0, 0);
        let [mut silent, mut heard, mut third] = [Usage::default(); 3];
        (0..6).for_each(|_| limiter.forward(&mut silent, ip(1), 0).unwrap());
        (0..4).for_each(|_| limiter.forward(&mut heard, ip(1), 0).unwrap());
        limiter.backward(&mut heard, ip(1), true, 0).unwrap();
        (0..100).for_each(|_| limiter.forward(&mut heard, ip(1), 0).unwrap());
        assert_eq!((0..100).filter(|_| limiter.forward(&mut third, ip(1), 0).is_ok()).count(), 4);
        // A datagram from another sender is not an answer.
        limiter.backward(&mut silent, ip(9), false, 0).unwrap();
        assert_eq!(limiter.forward(&mut silent, ip(1), 0), Err(DropReason::Unanswered));
    }

    #[test]
    fn usage_of_closed_flows_is_forgotten_and_of_live_ones_kept() {
        let mut limiter = limiter(10, 0, 0);
        let [mut closed, mut live] = [Usage::default(); 2];
        (0..4).for_each(|_| limiter.forward(&mut closed, ip(1), 0).unwrap());
        (0..6).for_each(|_| limiter.forward(&mut live, ip(1), 0).unwrap());
        limiter.tick(FORGET - 1, [(&live, ip(1))].into_iter());
        assert_eq!(limiter.forward(&mut live, ip(1), FORGET - 1), Err(DropReason::Unanswered));
        limiter.tick(FORGET, [(&live, ip(1))].into_iter());
        assert_eq!((0..100).filter(|_| limiter.forward(&mut live, ip(1), FORGET).is_ok()).count(), 4);
    }

    #[test]
    fn rates_hold_each_way_for_a_flow_and_for_an_address() {
        let mut limiter = limiter(0, 100, 150);
        let mut flows = [Usage::default(); 2];
        let (mut out, mut back) = (Vec::new(), Vec::new());
        for ms in 0..2000 {
            for usage in &mut flows {
                out.extend(limiter.forward(usage, ip(1), ms * SECOND / 1000).err());
                back.extend(limiter.backward(usage, ip(1), true, ms * SECOND / 1000).err());
            }
        }
        for refused in [out, back] {
            // A quarter of a second's at first, and then two seconds'.
            let passed = 4000 - refused.len();
            assert!((335..=339).contains(&passed), "{passed}");
            assert!(refused.contains(&DropReason::FlowRate) && refused.contains(&DropReason::DestinationRate));
        }
        let mut other = Usage::default();
        assert_eq!(limiter.forward(&mut other, ip(2), 2 * SECOND), Ok(()));
    }

    #[test]
    fn address_limit_is_never_exceeded_and_rarely_undercut() {
        let mut limiter = limiter(3, 0, 0);
        let mut short = 0;
        for n in 0..10_000u32 {
            let to = IpAddr::from((0x0100_0000 + n).to_be_bytes());
            let got = (0..5).filter(|_| limiter.forward(&mut Usage::default(), to, 0).is_ok()).count();
            assert!(got <= 3);
            short += u32::from(got < 3);
        }
        // Both rows are full already for at most (10,000 / 16,384)^2 of the last.
        assert!(short < 2500, "{short}");
    }

    #[test]
    fn hosts_of_an_ipv6_subnet_share_what_it_gets() {
        let mut limiter = limiter(3, 0, 0);
        let to = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut usage = Usage::default();
        let got = (0..10).filter(|n| limiter.forward(&mut usage, to(&format!("2600::{n}")), 0).is_ok()).count();
        assert_eq!(got, 3);
        assert_eq!(limiter.forward(&mut usage, to("2600:0:0:1::1"), 0), Ok(()));
    }
}
