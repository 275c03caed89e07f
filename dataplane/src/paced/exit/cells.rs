//! What an exit does with the cells of a round: layers on arrival, their frames, and the seal of the backward round.

use arrayvec::ArrayVec;
use wire::cell::{Direction, HEADER_LEN};
use wire::frames::{Frame, Frames, parse_paced};
use wire::gcm::{AeadKey, Job, UivKey, encipher_batch, open_batch, seal_batch};
use wire::layer::BATCH_MAX;
use wire::paced::RoundSub;

use super::{ByPlace, Exit};
use crate::Nanos;
use crate::buffer::{Cell, Opened};
use crate::ledger::DropReason;
use crate::paced::batches::Channel;
use crate::paced::gate::Arrived;
use crate::paced::sender::Leaving;
use crate::per_direction::PerDirection;
use crate::socket::Port;
use crate::socket::apps::Apps;
use crate::stage::rounds::{Origin, Place};

impl<U: Port, A: Apps> Exit<U, A> {
    /// Cells that have arrived in meetings get the layer of their channel and take their places.
    pub(super) fn encipher_joined(&mut self) {
        let Self { rounds, batches, arrived, class, .. } = self;
        let body_len = class.terms.class.body_len();
        let state = |cell: &Arrived<Place>| &batches.of_round(cell.header.seq)[cell.place.channel].state;
        let mut joined: Vec<_> = arrived.extract_if(.., |cell| state(cell).peer.is_some()).collect();
        for cells in joined.chunks_mut(BATCH_MAX) {
            let mut jobs = ArrayVec::<Job<'_, UivKey>, BATCH_MAX>::new();
            for cell in cells {
                let keys = &state(cell).keys;
                let place = cell.header.round_sub();
                jobs.push(keys.layers.job(Direction::Forward, place, cell.cell.body_mut(body_len)));
            }
            encipher_batch(&mut jobs);
        }
        for Arrived { cell, header, place, .. } in joined {
            rounds.put(header.seq, place, cell.opened());
        }
    }

    /// Opens the other cells that have arrived. Those with good frames take their places.
    pub(super) fn open_data(&mut self) {
        let Self { rounds, batches, arrived, class, tally: PerDirection { forward: tally, .. }, free, .. } = self;
        let (body_len, payload) = (class.terms.class.body_len(), class.terms.class.size().payload());
        let mut are_open = Vec::with_capacity(arrived.len());
        for cells in arrived.chunks_mut(BATCH_MAX) {
            let mut jobs = ArrayVec::<Job<'_, AeadKey>, BATCH_MAX>::new();
            for Arrived { cell, header, place, .. } in cells {
                let keys = &batches.of_round(header.seq)[place.channel].state.keys;
                jobs.push(keys.data_job(Direction::Forward, header.round_sub(), cell.body_mut(body_len)));
            }
            open_batch(&mut jobs);
            are_open.extend(jobs.iter().map(|job| job.ok));
        }
        for (Arrived { mut cell, header, place, .. }, is_open) in arrived.drain(..).zip(are_open) {
            let parsed = parse_paced(&cell.body_mut(body_len)[..payload], Direction::Forward, class.terms.repeat);
            match (is_open, parsed) {
                (true, Ok(_)) => rounds.put(header.seq, place, cell.opened()),
                (is_open, _) => {
                    tally.drop(if is_open { DropReason::Frames } else { DropReason::Garbled });
                    free.give(cell.into_buffer());
                }
            }
        }
    }

    /// What has come for a round: what was opened, and what goes back to the others of meetings.
    pub(super) fn take_round(&mut self, round: u64) -> (ByPlace, ByPlace) {
        let Self { rounds, batches, places, tally, class, .. } = self;
        let (channels, cells) = (batches.of_round(round), usize::from(class.terms.cells));
        let (mut came, mut met) = (ByPlace::new(), ByPlace::new());
        came.resize_with(channels.len() * cells, || None);
        met.resize_with(channels.len() * cells, || None);
        rounds.take(channels.len(), |place, cell, has_come| {
            places.add(None, if has_come { Origin::Came } else { Origin::Lost });
            let at = |channel| channel * cells + usize::from(place.sub);
            match channels[place.channel].state.peer {
                Some(peer) => {
                    let count = u64::from(cell.is_some());
                    tally.forward.consumed += count;
                    tally.backward.injected += count;
                    met[at(peer)] = cell;
                }
                None => came[at(place.channel)] = cell,
            }
        });
        (came, met)
    }

    /// Takes in the frames of a round, to take effect next: those of its own cells or else, with repeat, those that the
    /// next round's cells have again. Lower numbers of cells go first, so each flow keeps their order.
    pub(super) fn take_frames(&mut self, round: u64, cells: ByPlace, now: Nanos) {
        let Self { batches, outside, class, times, latest: (next, again), tally, free, .. } = self;
        let (per_round, payload) = (usize::from(class.terms.cells), class.terms.class.size().payload());
        let (batch, has_repeat) = (times.batch_of(round), class.terms.repeat);
        let is_next = has_repeat && *next == round + 1;
        // A round whose repetitions were skipped is skipped, too.
        let is_due = is_next || !has_repeat;
        let again = if is_next && times.batch_of(*next) == batch { &again[..] } else { &[] };
        let channels = if is_due { batches.of_round_mut(round) } else { &mut [] };
        let mut refused = 0;
        for sub in 0..per_round {
            for (channel, Channel { state, .. }) in channels.iter_mut().enumerate() {
                let at = channel * per_round + sub;
                let (frames, has_come) = match (inner(&cells, at, payload), inner(again, at, payload)) {
                    (Some(own), _) => (own, true),
                    (None, Some(next)) => (again_of(next), false),
                    (None, None) => continue,
                };
                let is_good = outside.take((state, (batch, channel)), round, frames, now);
                refused += u64::from(has_come && !is_good);
            }
        }
        let came = cells.into_iter().flatten().map(|cell| free.give(cell.into_buffer())).count() as u64;
        if is_due {
            tally.forward.consumed += came - refused;
            tally.forward.drop_many(DropReason::Frames, refused);
        } else {
            tally.forward.drop_many(DropReason::Skipped, came);
        }
    }

    /// Seals the backward round with this number: c cells of every channel, those of meetings with what has come for
    /// them or noise, others with answers or PAD.
    pub(super) fn seal(&mut self, round: u64, mut met: ByPlace, now: Nanos) {
        let Self { batches, outside, class, times, noise, tally, free, sealed, .. } = self;
        let tally = &mut tally.backward;
        let (body_len, payload) = (class.terms.class.body_len(), class.terms.class.size().payload());
        let (batch, channels) = (times.batch_of(round), batches.of_round(round));
        let (mut joined, mut data, mut empty) = (Vec::new(), Vec::new(), Vec::new());
        let places = (0..channels.len()).flat_map(|channel| (0..class.terms.cells).map(move |sub| (channel, sub)));
        for ((channel, sub), cell) in places.zip(&mut met) {
            let Channel { up, state, .. } = &channels[channel];
            let leaving = |cell| (channel, Leaving { cell, number: up.number, sub });
            if state.peer.is_some() {
                match cell.take() {
                    Some(cell) => joined.push(leaving(cell)),
                    None => {
                        tally.injected += 1;
                        match noise.take() {
                            Some(cell) => empty.push(leaving(cell)),
                            None => tally.drop(DropReason::NoBuffer),
                        }
                    }
                }
                continue;
            }
            tally.injected += 1;
            let Some(mut cell) = free.take().map(Cell::own) else {
                tally.drop(DropReason::NoBuffer);
                continue;
            };
            let answers = &mut outside.tally.backward;
            outside.sessions.fill(state.session, (batch, channel), cell.body_mut(payload), now, answers);
            data.push(leaving(cell));
        }

        for cells in joined.chunks_mut(BATCH_MAX) {
            let mut jobs = ArrayVec::<Job<'_, UivKey>, BATCH_MAX>::new();
            for (channel, Leaving { cell, sub, .. }) in cells {
                let place = RoundSub { round, sub: *sub };
                let keys = &channels[*channel].state.keys;
                jobs.push(keys.layers.job(Direction::Backward, place, cell.body_mut(body_len)));
            }
            encipher_batch(&mut jobs);
        }
        for cells in data.chunks_mut(BATCH_MAX) {
            let mut jobs = ArrayVec::<Job<'_, AeadKey>, BATCH_MAX>::new();
            for (channel, Leaving { cell, sub, .. }) in cells {
                let place = RoundSub { round, sub: *sub };
                let keys = &channels[*channel].state.keys;
                jobs.push(keys.data_job(Direction::Backward, place, cell.body_mut(body_len)));
            }
            seal_batch(&mut jobs);
        }
        let cells = [joined, data, empty].into_iter().flatten().map(|(_, leaving)| leaving);
        sealed.push_back((round, cells.collect()));
        self.draw_noise();
    }

    /// Noise for the places of meetings in the next round.
    fn draw_noise(&mut self) {
        let channels = self.batches.of_round(self.rounds.released() + 1);
        let joined = channels.iter().filter(|channel| channel.state.peer.is_some()).count();
        self.noise.draw(joined * usize::from(self.class.terms.cells), &mut self.free);
    }
}

/// The inner bytes of the cell at a place.
fn inner(cells: &[Option<Cell<Opened>>], at: usize, payload: usize) -> Option<&[u8]> {
    let cell = cells.get(at)?.as_ref()?;
    Some(&cell.bytes(HEADER_LEN + payload)[HEADER_LEN..])
}

/// The frames of the round before that a cell has again.
fn again_of(frames: &[u8]) -> &[u8] {
    let again = |frame| match frame {
        Frame::Again(frames) => Some(frames),
        _ => None,
    };
    Frames::of_again(frames).find_map(again).unwrap_or_default()
}
