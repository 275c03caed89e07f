//! When a link starts and stops as a whole.

use crate::{
    attacker::{Attacker, Scores},
    directions::{Direction, Way},
    record::{Place, Record},
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
pub struct FirstPacket {
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
        let one = |forward: bool| {
            let pick = |place: &Place| if forward { place.forward.clone() } else { place.backward.clone() };
            let delay = Direction::of(record, forward).delay.median() * if forward { 1 } else { -1 };
            let ends = |mut times: Box<dyn Iterator<Item = u64> + '_>, delay: i64| {
                let first = times.next()? as i64;
                let last = times.last().map_or(first, |last| last as i64);
                Some((first - delay, last - delay))
            };
            let links: Vec<_> = (record.access.iter())
                .map(|place| ends(Box::new(record.cells(&pick(place)).collect::<Vec<u64>>().into_iter()), 0))
                .collect();
            let flows: Vec<_> = (record.flows.iter())
                .map(|place| ends(Box::new(pick(place).into_iter().map(|seen| seen.at)), delay))
                .collect();
            Scores::of_pairs(links.len(), flows.len(), |user, flow| {
                let (Some(link), Some(flow)) = (links[user], flows[flow]) else { return 0.0 };
                let start = if link.0 > EDGE { likeness(flow.0 - link.0) } else { 0.0 };
                let stop = if link.1 < length - EDGE { likeness(link.1 - flow.1) } else { 0.0 };
                start + stop
            })
        };
        match self.way {
            Way::Forward => one(true),
            Way::Backward => one(false),
            Way::Both => one(true).plus(&one(false)),
        }
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
