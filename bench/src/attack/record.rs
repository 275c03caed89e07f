//! From what was captured to a [`Record`].

use attack::{Contents, PacedShape, Passage, Place, Record, Seen};
use dataplane::paced::entry::PREPARE;
use wire::cell::Direction;

use super::capture::Captured;
use super::network::Recorded;
use super::places::{Tap, Wire};

/// What a record is made of.
pub(super) struct Recording<'a> {
    pub(super) captured: &'a [Captured],
    /// Wall clock at which the record begins, and its length, ns.
    pub(super) begin: u64,
    pub(super) length: u64,
    pub(super) class: &'a Recorded,
    pub(super) mixes: usize,
    /// The side of the access links.
    pub(super) tap: Tap,
    pub(super) entries: Entries,
    /// When the adversary's own user sent each of its datagrams.
    pub(super) probe: &'a [u64],
    /// Datagrams of access links were compared with each other.
    pub(super) has_contents: bool,
}

/// Whose entry has which number. Callers meet partners; other users do not. One more user, or pair, belongs to the
/// adversary.
///
/// ```text
/// users     0 to rows - 1, then the adversary's own
/// meetings  callers 0 to rows - 1, their partners in the order of flows, then the adversary's caller and partner
/// ```
#[derive(Clone, Copy, Debug)]
pub(super) struct Entries {
    /// Users or callers: rows of the matrix that attackers fill. As many flows or partners are its columns.
    pub(super) rows: usize,
    pub(super) meetings: bool,
}

/// The role of an entry in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    User(usize),
    /// Its access link is this flow.
    Partner(usize),
    Probe,
    ProbePartner,
}

impl Entries {
    pub(super) fn count(&self) -> usize {
        if self.meetings { 2 * (self.rows + 1) } else { self.rows + 1 }
    }

    pub(super) fn part(&self, entry: usize) -> Part {
        match entry {
            user if user < self.rows => Part::User(user),
            entry if !self.meetings || entry == 2 * self.rows => Part::Probe,
            entry if entry < 2 * self.rows => Part::Partner(entry - self.rows),
            _ => Part::ProbePartner,
        }
    }

    /// The entry of the user with the number `user`; the adversary's own comes after the others.
    pub(super) fn user(&self, user: usize) -> usize {
        if self.meetings && user == self.rows { 2 * self.rows } else { user }
    }

    /// The entry that flow `flow` leads to in a meeting.
    pub(super) fn partner(&self, flow: usize) -> usize {
        self.rows + flow + usize::from(flow == self.rows)
    }
}

impl Recording<'_> {
    /// The record, and the mean time from a datagram of the adversary's own user to the cell that carries it, in
    /// milliseconds; `None` without a passage.
    pub(super) fn record(&self) -> (Record, Option<f64>) {
        let Entries { rows, .. } = self.entries;
        let mut record = Record {
            length: self.length,
            cell_bytes: self.cell_len(Direction::Backward, 1),
            access: vec![Place::default(); rows],
            inner: vec![Place::default(); self.mixes],
            flows: vec![Place::default(); rows],
            paced: self.shape(),
            contents: if self.has_contents { vec![Contents::default(); rows] } else { Vec::new() },
            ..Record::default()
        };
        let mut probe = Probe::default();
        for captured in self.captured {
            let Some(at) = captured.at.checked_sub(self.begin).filter(|at| *at < self.length) else { continue };
            let Some((wire, forward)) = Wire::of(captured.port, captured.to_port) else { continue };
            let (place, link, forward) = match wire {
                Wire::Access(tap, _) if tap != self.tap => continue,
                Wire::Access(_, entry) => match self.entries.part(entry) {
                    Part::User(user) => (&mut record.access[user], Some(1), forward),
                    // What reaches the partner comes from the caller.
                    Part::Partner(flow) => (&mut record.flows[flow], Some(1), !forward),
                    Part::Probe if forward => {
                        probe.access.push(at);
                        continue;
                    }
                    Part::ProbePartner if !forward => {
                        probe.partner.push(at);
                        continue;
                    }
                    Part::Probe | Part::ProbePartner => continue,
                },
                Wire::Inner(mix) if mix <= self.mixes => (&mut record.inner[mix - 1], Some(mix + 1), forward),
                Wire::Flow(flow) if flow < rows => (&mut record.flows[flow], None, forward),
                Wire::Flow(flow) if flow == rows && forward => {
                    probe.flow.push((captured.first, at));
                    continue;
                }
                Wire::Inner(_) | Wire::Flow(_) => continue,
            };
            let direction = if forward { Direction::Forward } else { Direction::Backward };
            let trace = if forward { &mut place.forward } else { &mut place.backward };
            let cell = link.map_or(u32::MAX, |link| self.cell_len(direction, link));
            trace.extend(segments(captured.bytes.into(), cell).map(|bytes| Seen { at, bytes }));
            if let (Wire::Access(_, entry), true) = (wire, self.has_contents)
                && let Part::User(user) = self.entries.part(entry)
            {
                let contents = &mut record.contents[user];
                (if forward { &mut contents.forward } else { &mut contents.backward }).push(captured.content);
            }
        }
        let (passages, waits): (Vec<Passage>, Vec<f64>) = self.passages(&probe).into_iter().unzip();
        record.probe = passages;
        let wait_ms = waits.iter().sum::<f64>() / waits.len() as f64;
        (record, (!waits.is_empty()).then_some(wait_ms))
    }

    /// The public terms of a paced class, and its first round within the record.
    fn shape(&self) -> Option<PacedShape> {
        let Recorded::Paced(terms) = self.class else { return None };
        let period = u64::from(terms.period_ms) * 1_000_000;
        let first = self.begin.div_ceil(period);
        Some(PacedShape {
            period,
            cells: terms.cells.into(),
            copies: terms.copies.into(),
            gap: terms.gap.into(),
            repeat: terms.repeat,
            rounds: terms.rounds.into(),
            hops: self.mixes as u32 + 1,
            first,
            first_at: first * period - self.begin,
        })
    }

    fn cell_len(&self, direction: Direction, link: usize) -> u32 {
        self.class.cell_len(self.mixes + 1, direction, link) as u32
    }

    /// A datagram is in no cell that leaves sooner.
    fn prepare(&self) -> u64 {
        match self.class {
            Recorded::Free { .. } => 0,
            Recorded::Paced(_) => PREPARE,
        }
    }

    /// A datagram entered with the first cell after it was sent. It has left the exit when the destination saw it, or
    /// in the last cell on the partner's access link before the partner's application saw it. With the milliseconds
    /// that it waited.
    fn passages(&self, probe: &Probe) -> Vec<(Passage, f64)> {
        let passage = |&(number, seen): &(u32, u64)| {
            let sent = self.probe.get(number as usize)?.checked_sub(self.begin)?;
            let from = sent + self.prepare();
            let entered = *probe.access.get(probe.access.partition_point(|&at| at < from))?;
            let left = match self.entries.meetings {
                true => *probe.partner[..probe.partner.partition_point(|&at| at <= seen)].last()?,
                false => seen,
            };
            (entered <= left).then_some((Passage { entered, left }, (entered - sent) as f64 / 1e6))
        };
        probe.flow.iter().filter_map(passage).collect()
    }
}

/// The cells of a GSO burst, all of length `segment`. Anything else is one datagram.
fn segments(bytes: u32, segment: u32) -> impl Iterator<Item = u32> {
    let cells = if bytes > 0 && bytes.is_multiple_of(segment) { bytes / segment } else { 0 };
    (0..cells).map(move |_| segment).chain((cells == 0).then_some(bytes))
}

/// What was seen of the adversary's own user.
#[derive(Default)]
struct Probe {
    /// Cells of its access link, and cells that came on its partner's.
    access: Vec<u64>,
    partner: Vec<u64>,
    /// Number and time of its datagrams where they arrive.
    flow: Vec<(u32, u64)>,
}

#[cfg(test)]
mod tests {
    use super::super::cases::NO_MIXING;
    use super::super::places;
    use super::*;
    use eddy_node::ceremony::profile::{ClassChoice, for_hops};
    use wire::cell::Class;
    use wire::paced::{ControlSlots, PacedClass, PacedTerms};
    use wire::setup::Suite;

    fn seen(at: u64, address: std::net::SocketAddr, to_port: bool, bytes: u16, first: u32) -> Captured {
        Captured { at, port: address.port(), to_port, bytes, first, content: 0 }
    }

    fn trace(all: &[(u64, u32)]) -> Vec<Seen> {
        all.iter().map(|&(at, bytes)| Seen { at, bytes }).collect()
    }

    #[test]
    fn bursts_are_cut_and_places_are_told_apart() {
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
            seen(160, places::relay_to_user(0), true, 1409, 0),
            seen(200, places::hop(2), true, 1392, 0),
        ];
        let recording = Recording {
            captured: &captured,
            begin: 100,
            length: 100,
            class: &Recorded::Free { class: Class::L, mixing: NO_MIXING, channels: 1 },
            mixes: 3,
            tap: Tap::User,
            entries: Entries { rows: 2, meetings: false },
            probe: &[95, 108, 300],
            has_contents: false,
        };
        let (record, wait_ms) = recording.record();
        assert_eq!(record.access[0].forward, trace(&[(0, 1408), (0, 1408), (60, 1409)]));
        assert_eq!(record.access[1].backward, trace(&[(3, 64)]));
        assert_eq!(record.inner[0].forward, trace(&[(5, 1392); 3]));
        assert_eq!(record.flows[1].forward, trace(&[(20, 2000)]));
        assert_eq!((&record.probe[..], wait_ms), (&[Passage { entered: 10, left: 40 }][..], Some(2e-6)));
        let (at_mix, _) = Recording { tap: Tap::Mix1, ..recording }.record();
        assert_eq!((&at_mix.access[0].forward, at_mix.access[1].backward.len()), (&trace(&[(50, 1408)]), 0));
        assert_eq!(record.cells(&record.access[1].backward).count(), 0);
        assert_eq!(record.cells(&record.inner[0].forward).count(), 3);
    }

    #[test]
    fn links_of_partners_are_the_flows_of_a_meeting() {
        let entries = Entries { rows: 2, meetings: true };
        let (own, partner) = (entries.user(2), entries.partner(2));
        assert_eq!((entries.count(), own, partner, entries.partner(1)), (6, 4, 5, 3));
        let ms = |at: u64| 1_000_000 * at;
        let captured = [
            seen(ms(1), places::relay_to_user(1), true, 480, 0),
            seen(ms(2), places::relay_to_user(3), false, 240, 0),
            seen(ms(3), places::relay_to_user(3), true, 240, 0),
            seen(ms(11), places::relay_to_user(own), true, 240, 0),
            seen(ms(21), places::relay_to_user(own), true, 240, 0),
            seen(ms(30), places::relay_to_user(own), false, 240, 0),
            seen(ms(38), places::relay_to_user(partner), false, 240, 0),
            seen(ms(41), places::destination(2), true, 40, 0),
            seen(ms(48), places::relay_to_user(partner), false, 240, 0),
        ];
        let recording = Recording {
            captured: &captured,
            begin: 0,
            length: ms(100),
            class: &Recorded::Paced(PacedTerms::new(PacedClass::new(Class::S), "voice", 4)),
            mixes: 3,
            tap: Tap::User,
            entries,
            probe: &[ms(10)],
            has_contents: false,
        };
        let (record, wait_ms) = recording.record();
        assert_eq!(record.access[1].forward, trace(&[(ms(1), 240); 2]));
        assert_eq!(
            (&record.flows[1].forward, &record.flows[1].backward),
            (&trace(&[(ms(2), 240)]), &trace(&[(ms(3), 240)]))
        );
        assert!(record.access[0] == Place::default() && record.flows[0] == Place::default());
        // The cell at 11 ms was built before the datagram came.
        assert_eq!((&record.probe[..], wait_ms), (&[Passage { entered: ms(21), left: ms(38) }][..], Some(11.0)));
    }

    #[test]
    fn attackers_expect_the_cells_that_access_links_carry() {
        for (profile, mixes) in ["voice", "voice-lite", "game", "video"].into_iter().zip([1, 3, 7, 3]) {
            let Ok(ClassChoice::Paced(terms)) = profile.parse() else { panic!("{profile} is paced") };
            let (terms, hops) = (for_hops(terms, mixes + 1), mixes + 1);
            let times = terms.timetable(hops);
            let batch = times.first(80)..times.first(81);
            let recording = Recording {
                captured: &[],
                begin: times.begin(batch.start) - 1,
                length: 1,
                class: &Recorded::Paced(terms.clone()),
                mixes,
                tap: Tap::User,
                entries: Entries { rows: 1, meetings: false },
                probe: &[],
                has_contents: false,
            };
            let shape = recording.shape().expect("a paced class");
            assert_eq!((shape.first, shape.first_at), (batch.start, 1), "{profile}");
            for direction in [Direction::Forward, Direction::Backward] {
                let slots = ControlSlots::new(&terms, Suite::Hybrid, hops, 1, direction);
                let of_link = |round| u32::from(terms.cells) + slots.of(&times, round).total() as u32;
                for round in batch.clone() {
                    let found = shape.new_cells(round, direction == Direction::Forward);
                    assert_eq!(found, of_link(round), "{profile}, {direction:?}, round {}", round - batch.start);
                }
            }
        }
    }
}
