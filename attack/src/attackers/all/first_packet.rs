//! When a link starts and stops as a whole.

use crate::{
    attacker::{Attacker, Scores},
    directions::{Direction, Way},
    record::Record,
};

/// Links that send this close to the ends of the record were not seen to start or stop, in nanoseconds.
const EDGE: i64 = 200_000_000;
/// A flow may seem to start this much before its link, in nanoseconds: the delay is not known exactly.
const EARLY: f64 = 15e6;
/// Half of the flows start with their link, within this on average; the others are silent at first, for `SILENT`.
const WITH: f64 = 3e6;
const SILENT: f64 = 2e9;

/// Compares the first packet of a link with the first one of a flow, and the last ones: a link that runs only while its
/// flow does starts just before it and stops just after it.
pub(crate) struct FirstPacket {
    pub way: Way,
}

impl Attacker for FirstPacket {
    fn name(&self) -> String {
        format!("first-packet{}", self.way.suffix())
    }

    fn source(&self) -> &'static str {
        "O. Berthold and H. Langos, Dummy Traffic Against Long Term Intersection Attacks, PET 2002; \
         L. Overlier and P. Syverson, Locating Hidden Servers, S&P 2006"
    }

    fn scores(&self, record: &Record) -> Scores {
        let length = record.length as i64;
        self.way.sum(|forward| {
            let delay = Direction::of(record, forward).delay.median() * if forward { 1 } else { -1 };
            let ends = |times: &Vec<u64>, earlier: i64| {
                Some((*times.first()? as i64 - earlier, *times.last()? as i64 - earlier))
            };
            let links: Vec<_> = record.access_cells(forward).iter().map(|cells| ends(cells, 0)).collect();
            let flows: Vec<_> = record.datagrams(forward).iter().map(|times| ends(times, delay)).collect();
            Scores::of_pairs(links.len(), flows.len(), |user, flow| {
                let (Some(link), Some(flow)) = (links[user], flows[flow]) else { return 0.0 };
                let start = if link.0 > EDGE { likeness(flow.0 - link.0) } else { 0.0 };
                let stop = if link.1 < length - EDGE { likeness(link.1 - flow.1) } else { 0.0 };
                start + stop
            })
        })
    }
}

/// The logarithm of the density of a flow being this much within its link, per second.
fn likeness(within: i64) -> f64 {
    let within = within as f64;
    if within < -EARLY {
        return -10.0;
    }
    let exponential = |mean: f64| (-within.abs() / mean).exp() / mean * 1e9;
    (0.5 * exponential(WITH) + 0.5 * exponential(SILENT)).ln()
}
