//! From what was captured to a [`Record`].

use attack::{Passage, Place, Record, Seen};
use wire::cell::{Direction, Shape};

use super::capture::Captured;
use super::places::{Tap, Wire};

/// What a record is made of.
pub(super) struct Recording<'a> {
    pub(super) captured: &'a [Captured],
    /// Wall clock at which the record begins, and its length, ns.
    pub(super) begin: u64,
    pub(super) length: u64,
    pub(super) shape: Shape,
    /// The side of the access links.
    pub(super) tap: Tap,
    /// Users without the adversary's own, which comes after them.
    pub(super) users: usize,
    /// When the adversary's own user sent each of its datagrams.
    pub(super) probe: &'a [u64],
}

impl Recording<'_> {
    pub(super) fn record(&self) -> Record {
        let mixes = self.shape.hops() - 1;
        let mut record = Record {
            length: self.length,
            cell_bytes: self.shape.cell_len(Direction::Backward, 1) as u32,
            access: vec![Place::default(); self.users],
            inner: vec![Place::default(); mixes],
            flows: vec![Place::default(); self.users],
            ..Record::default()
        };
        let mut probe = Probe { sent: self.probe, begin: self.begin, access: Vec::new(), flow: Vec::new() };
        for captured in self.captured {
            let Some(at) = captured.at.checked_sub(self.begin).filter(|at| *at < self.length) else { continue };
            let Some((wire, forward)) = Wire::of(captured.port, captured.to_port) else { continue };
            let (place, link) = match wire {
                Wire::Access(tap, _) if tap != self.tap => continue,
                Wire::Access(_, user) if user < self.users => (&mut record.access[user], Some(1)),
                Wire::Inner(mix) if mix <= mixes => (&mut record.inner[mix - 1], Some(mix + 1)),
                Wire::Flow(flow) if flow < self.users => (&mut record.flows[flow], None),
                Wire::Access(_, user) if user == self.users && forward => {
                    probe.access.push(at);
                    continue;
                }
                Wire::Flow(flow) if flow == self.users && forward => {
                    probe.flow.push((captured.first, at));
                    continue;
                }
                Wire::Access(..) | Wire::Inner(_) | Wire::Flow(_) => continue,
            };
            let direction = if forward { Direction::Forward } else { Direction::Backward };
            let trace = if forward { &mut place.forward } else { &mut place.backward };
            let cell = link.map_or(u32::MAX, |link| self.shape.cell_len(direction, link) as u32);
            trace.extend(segments(captured.bytes.into(), cell).map(|bytes| Seen { at, bytes }));
        }
        record.probe = probe.passages();
        record
    }
}

/// The datagrams of a GSO burst, all but the last of length `segment`.
fn segments(bytes: u32, segment: u32) -> impl Iterator<Item = u32> {
    let whole = bytes / segment;
    let rest = bytes % segment;
    (0..whole).map(move |_| segment).chain((rest > 0 || bytes == 0).then_some(rest))
}

/// The adversary's own user.
struct Probe<'a> {
    /// Wall clock of each datagram.
    sent: &'a [u64],
    begin: u64,
    /// Its cells on its access link.
    access: Vec<u64>,
    /// Number and time of its datagrams at the destination.
    flow: Vec<(u32, u64)>,
}

impl Probe<'_> {
    /// A datagram entered with the first cell after it was sent.
    fn passages(&self) -> Vec<Passage> {
        let passage = |&(number, left): &(u32, u64)| {
            let sent = self.sent.get(number as usize)?.checked_sub(self.begin)?;
            let entered = *self.access.get(self.access.partition_point(|&at| at < sent))?;
            (entered <= left).then_some(Passage { entered, left })
        };
        self.flow.iter().filter_map(passage).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::places;
    use super::*;
    use wire::cell::Class;

    #[test]
    fn bursts_are_cut_and_places_are_told_apart() {
        let shape = Shape::new(Class::L, 4).unwrap();
        let seen = |at, address: std::net::SocketAddr, to_port, bytes, first| Captured {
            at,
            port: address.port(),
            to_port,
            bytes,
            first,
        };
        let captured = [
            seen(90, places::relay_to_user(0), true, 1408, 0),
            seen(100, places::relay_to_user(0), true, 2 * 1408, 0),
            seen(103, places::relay_to_user(1), false, 64, 0),
            seen(105, places::hop(2), true, 3 * 1392, 0),
            seen(110, places::relay_to_user(2), true, 1408, 0),
            seen(120, places::destination(1), true, 2000, 9),
            seen(140, places::destination(2), true, 172, 1),
            seen(141, places::destination(2), true, 172, 7),
            seen(150, places::relay_to_mix(0), false, 1408, 0),
            seen(200, places::hop(2), true, 1392, 0),
        ];
        let tap = Tap::User;
        let recording =
            Recording { captured: &captured, begin: 100, length: 100, shape, tap, users: 2, probe: &[95, 108, 300] };
        let record = recording.record();
        let trace = |all: &[(u64, u32)]| -> Vec<Seen> { all.iter().map(|&(at, bytes)| Seen { at, bytes }).collect() };
        assert_eq!(record.access[0].forward, trace(&[(0, 1408), (0, 1408)]));
        assert_eq!(record.access[1].backward, trace(&[(3, 64)]));
        assert_eq!(record.inner[0].forward, trace(&[(5, 1392); 3]));
        assert_eq!(record.flows[1].forward, trace(&[(20, 2000)]));
        assert_eq!(record.probe, [Passage { entered: 10, left: 40 }]);
        let at_mix = Recording { tap: Tap::Mix1, ..recording }.record();
        assert_eq!((&at_mix.access[0].forward, at_mix.access[1].backward.len()), (&trace(&[(50, 1408)]), 0));
        assert_eq!(record.cells(&record.access[1].backward).count(), 0);
        assert_eq!(record.cells(&record.inner[0].forward).count(), 3);
    }
}
