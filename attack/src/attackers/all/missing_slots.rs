//! Slots that an access link leaves empty.

use rayon::prelude::*;

use crate::{
    attacker::{Attacker, Scores},
    directions::{Direction, Way},
    record::Record,
    slots::Slots,
};

/// A slot of the right flow has a datagram although its cell is missing with this probability: the match of times is
/// not perfect.
const ERROR: f64 = 0.02;

/// Looks for slots without a cell on links that send at regular times: no datagram of the user's flow can belong to
/// such a slot. It finds links that leave out dummies, and those that lose what is then missing from the flow. In a
/// paced class whose terms are known, a slot is a round, and it is empty if all copies of its cell are missing. That
/// the next round may repeat it is for [`super::Outage`]: a dummy that is left out is not repeated.
pub(crate) struct MissingSlots {
    pub way: Way,
}

impl Attacker for MissingSlots {
    fn name(&self) -> String {
        format!("missing-slots{}", self.way.suffix())
    }

    fn source(&self) -> &'static str {
        "X. Fu et al., On Effectiveness of Link Padding for Statistical Traffic Analysis Attacks, ICDCS 2003; \
         V. Shmatikov and M.-H. Wang, Timing Analysis in Low-Latency Mix Networks, ESORICS 2006"
    }

    fn scores(&self, record: &Record) -> Scores {
        self.way.sum(|forward| {
            let delay = Direction::of(record, forward).delay.median() * if forward { 1 } else { -1 };
            let users = (0..record.access.len()).into_par_iter();
            let links: Vec<Option<Slots>> = users.map(|user| Slots::seen(record, user, forward, false)).collect();
            let earlier = |times: &Vec<u64>| times.iter().map(|&at| at as i64 - delay).collect();
            let flows: Vec<Vec<i64>> = record.datagrams(forward).iter().map(earlier).collect();
            Scores::of_pairs(links.len(), flows.len(), |user, flow| {
                links[user].as_ref().map_or(0.0, |slots| ratio(slots, &flows[flow], record.length))
            })
        })
    }
}

/// The log-likelihood ratio of the flow belonging to the link against its being any flow as busy as this one. The times
/// of the flow are earlier by the delay.
pub(super) fn ratio(slots: &Slots, flow: &[i64], length: u64) -> f64 {
    let half = slots.period as i64 / 2;
    let busy = (flow.len() as f64 * slots.period as f64 / length as f64).clamp(0.01, 0.99);
    let has_datagram = |slot: u64| {
        let next = flow.partition_point(|at| *at < slot as i64 - half);
        flow.get(next).is_some_and(|at| *at <= slot as i64 + half)
    };
    let of_slot = |&(slot, lost): &(u64, f64)| match has_datagram(slot) {
        true => (1.0 - lost + lost * ERROR / busy).ln(),
        false => (1.0 - lost + lost * (1.0 - ERROR * busy) / (1.0 - busy)).ln().min(3.0),
    };
    slots.lacking.iter().map(of_slot).sum()
}
