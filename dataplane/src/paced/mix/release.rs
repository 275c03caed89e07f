//! What a mix does when a round is due: fill, shuffle, send, and the reports of what it has counted.

use rand::seq::SliceRandom;
use wire::cell::Direction;
use wire::ids::Side;
use wire::link::LinkContent;
use wire::paced::{COMPANY_EVERY, Company};

use super::{Mix, Pipe};

use crate::ledger::DropReason;
use crate::paced::control_cells::Control;
use crate::paced::report_counts::ReportCounts;
use crate::paced::sender::{Leaving, Release};
use crate::punt::Punt;
use crate::socket::Port;
use crate::stage::rounds::{Origin, Released};
use crate::{Nanos, SECOND};

/// Mix 1 sends to an entry for this long after its last cell (SPEC 9.6.3).
const ENTRY_SILENT: Nanos = 15 * SECOND;

impl<U: Port, D: Port> Mix<U, D> {
    /// Releases the rounds of a direction that are due.
    pub(super) fn release(&mut self, direction: Direction, now: Nanos) {
        let (schedule, released) = (self.pipes[direction].schedule, self.pipes[direction].rounds.released());
        let due = schedule.due(released, self.clock.at(now));
        if due.is_empty() {
            return;
        }
        let Pipe { rounds, out, tally, .. } = &mut self.pipes[direction];
        // What the socket has not taken in a whole period comes too late.
        tally.drop_many(DropReason::Aged, out.len() as u64);
        out.lose(out.len(), &mut self.free);
        let (skipped, dropped) = rounds.skip_to(*due.start(), &mut self.free);
        self.counts.skipped += skipped;
        tally.drop_many(DropReason::Skipped, dropped as u64);
        // Rounds of loops may have been skipped.
        self.prepare();
        for round in due {
            self.release_round(direction, round, now);
            // What leaves gives its buffers back, for the next round.
            self.send();
            if direction == Direction::Backward {
                self.loops.open(round, &mut self.free, &mut self.pipes.backward.tally);
                self.report_loops(round);
            }
            self.prepare();
        }
    }

    fn release_round(&mut self, direction: Direction, round: u64, now: Nanos) {
        let channels = self.batches.of_round(round).len();
        // No channel joins or leaves a batch that has begun, so all its rounds in both directions are alike.
        let has_floor = self.is_first() && channels < usize::from(self.settings.terms.n_min);
        let mut released = std::mem::take(&mut self.released);
        let Pipe { rounds, noise, tally, schedule, slots, places, .. } = &mut self.pipes[direction];
        match direction {
            Direction::Forward => {
                let own = self.loops.count(round);
                self.loops.view.sent += own as u64;
                tally.injected += own as u64;
                tally.drop_many(DropReason::NoBuffer, (own - self.loops.sealed()) as u64);
            }
            Direction::Backward => self.loops.end_round(round, has_floor, rounds, places),
        }
        let filling = rounds.release(channels, has_floor, noise, &mut self.free, &mut released);
        tally.injected += (filling.filled + filling.missing) as u64;
        tally.drop_many(DropReason::NoBuffer, filling.missing as u64);
        tally.drop_many(DropReason::Floor, filling.floored as u64);
        let release = Release { round, due: schedule.due_at(round), slots: slots.of(&self.times, round) };
        self.count_places(direction, round, &released);
        match (direction, self.is_first()) {
            (Direction::Backward, true) => self.leave_to_entries(release, &mut released, now),
            _ => self.leave_to_neighbour(direction, release, &mut released),
        }
        self.released = released;
        self.pipes[direction].sender.end_round(round, &mut self.free);
        self.report(direction, round);
        if direction == Direction::Backward {
            self.batches.forget_before(round + 1);
        }
    }

    fn leave_to_neighbour(&mut self, direction: Direction, release: Release, released: &mut Vec<Released>) {
        let Self { batches, loops, pipes, links, free, counts, settings, .. } = self;
        let Pipe { sender, out, tally, .. } = &mut pipes[direction];
        let side = if direction == Direction::Forward { Side::Down } else { Side::Up };
        let channels = batches.of_round(release.round);
        let leaving = released.drain(..).map(|Released { cell, place, .. }| {
            let channel = &channels[place.channel];
            let number = match direction {
                Direction::Forward => channel.down.expect("a mix has a next hop"),
                Direction::Backward => channel.up.number,
            };
            Leaving { cell, number, sub: place.sub }
        });
        let is_forward = direction == Direction::Forward;
        let own_cells = if is_forward { loops.count(release.round) } else { 0 };
        let own = is_forward.then(|| loops.leave(release.round));
        let leaving = leaving.chain(own.into_iter().flatten());
        let of_others = channels.len() * usize::from(settings.terms.cells);
        let (link, before) = (links.neighbour(side), out.len());
        sender.leave(link, release, leaving, links, out, free, tally);
        if link.is_some() {
            counts.add(out.len() - before, release.slots.total(), of_others + own_cells);
        }
    }

    fn leave_to_entries(&mut self, release: Release, released: &mut Vec<Released>, now: Nanos) {
        let Self { batches, pipes, links, free, by_link, rng, settings, .. } = self;
        let Pipe { sender, out, tally, noise, .. } = &mut pipes.backward;
        by_link.extend(links.entries_heard_since(now.saturating_sub(ENTRY_SILENT)).map(|link| (link, Vec::new())));
        by_link.sort_unstable_by_key(|(link, _)| *link);
        let channels = batches.of_round(release.round);
        for Released { cell, place, .. } in released.drain(..) {
            let at = channels[place.channel].up;
            match by_link.binary_search_by_key(&at.link, |(link, _)| Some(*link)) {
                Ok(found) => by_link[found].1.push(Leaving { cell, number: at.number, sub: place.sub }),
                Err(_) => {
                    tally.drop(DropReason::LinkDown);
                    free.give(cell.into_buffer());
                }
            }
        }
        for (_, cells) in by_link.iter_mut().filter(|(_, cells)| cells.is_empty()) {
            for sub in 0..settings.terms.cells {
                // An entry without a channel gets cells that look the same (SPEC 9.10.6).
                tally.injected += 1;
                match noise.take() {
                    Some(cell) => cells.push(Leaving { cell, number: 0, sub }),
                    None => tally.drop(DropReason::NoBuffer),
                }
            }
        }
        by_link.shuffle(rng);
        for (link, cells) in by_link.drain(..) {
            sender.leave(Some(link), release, cells.into_iter(), links, out, free, tally);
        }
        crate::rekey(rng);
    }

    fn count_places(&mut self, direction: Direction, round: u64, released: &[Released]) {
        let by_entry = direction == Direction::Forward && self.is_first();
        let channels = self.batches.of_round_mut(round);
        for Released { place, origin, .. } in released {
            let channel = &mut channels[place.channel];
            let of = if by_entry { channel.up.link } else { None };
            self.pipes[direction].places.add(of, *origin);
            if direction == Direction::Backward {
                channel.state.is_heard |= *origin == Origin::Came;
                if channel.state.is_heard {
                    self.loops.view.counts.add_to_link(*origin);
                }
            }
        }
    }

    /// Reports to control what was counted backward up to round `last`, when reports are due.
    fn report_loops(&mut self, last: u64) {
        let Self { loops, settings, punts, .. } = self;
        let (first, before) = loops.reported;
        if settings.loops() == 0 || !ReportCounts::is_due(last) {
            return;
        }
        let counts = loops.view.counts;
        if punts.send(Punt::PacedLoops { first, rounds: last + 1 - first, counts: counts.since(before) }) {
            loops.reported = (last + 1, counts);
        }
    }

    /// Queues a report to whoever sends in this direction, and to entries the company.
    fn report(&mut self, direction: Direction, last: u64) {
        let is_first = self.is_first();
        let Self { pipes, links, batches, settings, .. } = self;
        if ReportCounts::is_due(last) {
            if direction == Direction::Forward && is_first {
                for link in links.entries_heard_since(0) {
                    let report = pipes.forward.places.report(Some(link), last);
                    let _ = pipes.backward.sender.control(Some(link)).queue(report);
                }
            } else {
                let back = if direction == Direction::Forward { Direction::Backward } else { Direction::Forward };
                let report = pipes[direction].places.report(None, last);
                let _ = pipes[back].sender.control(None).queue(report);
            }
            pipes[direction].places.reported(last, |link| links.links.side(link).is_some());
        }
        if is_first && direction == Direction::Backward && last.is_multiple_of(COMPANY_EVERY) {
            let channels = batches.of_round(last).len() as u16;
            let company = Company { channels, n_min: settings.terms.n_min };
            for link in links.entries_heard_since(0) {
                let cell = Control::link(LinkContent::Company, &company.to_bytes());
                let _ = pipes.backward.sender.control(Some(link)).queue(cell);
            }
        }
    }
}
