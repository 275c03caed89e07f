//! Order statistics: the rank of a cell in its release against the rank of a datagram in its turn.

use crate::{
    attacker::{Attacker, Scores},
    delay::Delay,
    record::{Record, merged},
};

/// Packets closer together than this belong to one release or turn, in nanoseconds.
const TOGETHER: u64 = 500_000;

/// Ranks of a cell and its datagram differ by this on average where the order is kept: other cells come between.
const SPREAD: f64 = 0.05;
/// Share of datagrams whose rank has nothing to do with that of the cell.
const STRAY: f64 = 0.3;

/// Compares the order in which cells came to Mix 1 for a release with the order in which the exit's datagrams left it.
/// A mix that shuffles leaves nothing to find here.
pub(crate) struct Order;

impl Attacker for Order {
    fn name(&self) -> String {
        "order".into()
    }

    fn source(&self) -> &'static str {
        "D. Chaum, Untraceable Electronic Mail, Return Addresses, and Digital Pseudonyms, CACM 1981 (why batches are \
         put into another order)"
    }

    fn scores(&self, record: &Record) -> Scores {
        let delay = Delay::measured(record);
        let reach = (delay.quantile(0.95) - delay.quantile(0.05)).max(1_000_000);
        let users = ranked_by_release(record);
        let flows = ranked_by_turn(record);
        let chance = closeness_by_chance();
        Scores::of_pairs(users.len(), flows.len(), |user, flow| {
            let pairs = nearest(&users[user], &flows[flow], delay.median(), reach);
            pairs.map(|(cell, datagram)| closeness(cell - datagram) - chance).sum()
        })
    }
}

/// For each user, the times of its cells and their ranks, from 0 to 1, among the cells that Mix 1 releases together.
fn ranked_by_release(record: &Record) -> Vec<Vec<(i64, f64)>> {
    let cells = merged(&record.access_cells(true));
    let mut releases: Vec<u64> = Vec::new();
    let mut last = None;
    for at in record.inner.first().iter().flat_map(|link| record.cells(&link.forward)) {
        if last.is_none_or(|last| at - last > TOGETHER) {
            releases.push(at);
        }
        last = Some(at);
    }
    let release_of = |at: u64| releases.partition_point(|release| *release < at);
    let mut ranked = vec![Vec::new(); record.access.len()];
    for group in cells.chunk_by(|a, b| release_of(a.0) == release_of(b.0)) {
        rank(group, &mut ranked);
    }
    ranked
}

/// For each flow, the times of its datagrams and their ranks among those that the exit sends in one turn.
fn ranked_by_turn(record: &Record) -> Vec<Vec<(i64, f64)>> {
    let datagrams = merged(&record.datagrams(true));
    let mut ranked = vec![Vec::new(); record.flows.len()];
    for group in datagrams.chunk_by(|a, b| b.0 - a.0 <= TOGETHER) {
        rank(group, &mut ranked);
    }
    ranked
}

/// A packet alone has no rank.
fn rank(group: &[(u64, usize)], ranked: &mut [Vec<(i64, f64)>]) {
    if group.len() > 1 {
        for (i, &(at, whose)) in group.iter().enumerate() {
            ranked[whose].push((at as i64, i as f64 / (group.len() - 1) as f64));
        }
    }
}

/// For each datagram the cell that is nearest to it less the delay, if one is within reach: the ranks of both.
fn nearest(cells: &[(i64, f64)], datagrams: &[(i64, f64)], delay: i64, reach: i64) -> impl Iterator<Item = (f64, f64)> {
    let mut next = 0;
    datagrams.iter().filter_map(move |&(at, datagram)| {
        let at = at - delay;
        while cells.get(next + 1).is_some_and(|cell| (cell.0 - at).abs() <= (cells[next].0 - at).abs()) {
            next += 1;
        }
        let &(time, cell) = cells.get(next)?;
        ((time - at).abs() <= reach).then_some((cell, datagram))
    })
}

/// The logarithm of the density of a difference of ranks, relative to ranks that are independent of each other.
fn closeness(difference: f64) -> f64 {
    ((1.0 - STRAY) * (-difference.abs() / SPREAD).exp() / (2.0 * SPREAD) + STRAY).ln()
}

/// The mean of [`closeness`] over independent ranks.
fn closeness_by_chance() -> f64 {
    const STEPS: u32 = 1000;
    let at = |step: u32| (f64::from(step) + 0.5) / f64::from(STEPS);
    (0..STEPS).map(|step| 2.0 * (1.0 - at(step)) * closeness(at(step))).sum::<f64>() / f64::from(STEPS)
}
