//! Loops: their cells, counts and reports.

use super::*;

/// Secrets of Mix 2 and the exit in a loop.
pub(super) fn secrets(loop_: u8) -> [HopSecrets; 2] {
    let of = |hop: u8, way: u8| Secret::new([0x80 | loop_ << 2 | hop << 1 | way; 32]);
    [0, 1].map(|hop| HopSecrets {
        confirm: Default::default(),
        ack: zeroize::Zeroizing::new([0; 28]),
        forward: of(hop, 0),
        backward: of(hop, 1),
    })
}

/// What comes back to a loop for a cell that it has sent: the exit's PAD, or what the other one of its pair gets.
fn back(cell: &Cell, meets: Option<u8>) -> (u32, Vec<u8>) {
    let (place, number) = (cell.header.round_sub(), cell.header.channel);
    let pass = |hop: &HopSecrets, direction, body: &mut [u8]| {
        let keys = HopKeys::new(&hop.forward, &hop.backward);
        encipher_batch(&mut [keys.job(direction, place, body)]);
    };
    let (from, to) = ((number - 200) as u8, meets.unwrap_or((number - 200) as u8));
    let mut body = cell.body.clone();
    match meets {
        Some(to) => {
            secrets(from).iter().for_each(|hop| pass(hop, Direction::Forward, &mut body));
            pass(&secrets(to)[1], Direction::Backward, &mut body);
        }
        None => {
            let [_, HopSecrets { forward, backward, .. }] = secrets(from);
            body.fill(0);
            let exit = ExitKeys::new(&forward, &backward);
            seal_batch(&mut [exit.data_job(Direction::Backward, place, &mut body)]);
        }
    }
    pass(&secrets(to)[0], Direction::Backward, &mut body);
    (u32::from(to) + 200, body)
}

/// A mix with an entry's channel, a pair of loops, one without company, and one whose setup has failed.
pub(super) fn with_loops() -> Bench {
    let mut bench = Bench::with(PacedTerms { loops: 2, ..terms() }, 1);
    bench.open(BATCH, 0);
    [(0, 7), (1, 7), (2, 8)].into_iter().for_each(|(loop_, secret)| bench.open_loop(loop_, secret));
    bench.command(Command::InstallLoop { batch: BATCH, number: 203, keys: None });
    bench
}

#[test]
fn loops_send_in_every_round_whatever_becomes_of_them() {
    let mut bench = with_loops();
    let (first, end) = (bench.times.first(BATCH), bench.times.first(BATCH + 1));
    bench.release(Direction::Forward, first - 2);
    bench.take(None);
    let mut bodies = std::collections::HashSet::new();
    for round in first - 1..=end {
        bench.release(Direction::Forward, round);
        let cells = bench.take(None);
        let mut places: Vec<_> = data(&cells).map(|cell| (cell.header.channel, cell.header.sub)).collect();
        places.sort_unstable();
        let of_batch: Vec<_> = [100, 200, 201, 202, 203].into_iter().flat_map(|of| [(of, 0), (of, 1)]).collect();
        assert_eq!(places, if (first..end).contains(&round) { of_batch } else { Vec::new() }, "round {round}");
        assert!(data(&cells).all(|cell| cell.header.seq == round && bodies.insert(cell.body.clone())));
    }
    let tally = bench.tally(Direction::Forward);
    assert!(tally.injected >= 512 * 10 && tally.injected == tally.sent);
}

#[test]
fn cells_of_loops_end_at_the_mix_and_are_counted() {
    let mut bench = with_loops();
    let (first, end) = (bench.times.first(BATCH), bench.times.first(BATCH + 1));
    bench.release(Direction::Forward, first - 1);
    bench.take(None);
    bench.mix.links.heard(LinkId(0), bench.now);
    let (lost, damaged, again) = ((first + 3, 201, 0), (first + 5, 202, 1), (first + 7, 200, 1));
    for round in first..first + 20 {
        bench.release(Direction::Forward, round);
        let cells = bench.take(None);
        for cell in data(&cells).filter(|cell| cell.header.channel >= 200) {
            let meets = [Some(1), Some(0), None, None][cell.header.channel as usize - 200];
            let (number, mut body) = back(cell, meets);
            let place = (round, number, cell.header.sub);
            body[9] ^= u8::from(place == damaged);
            let datagram = bench.next.data(number, round, cell.header.sub, &body);
            if place != lost {
                bench.net.send(datagram.clone());
            }
            if place == again {
                bench.net.send(datagram);
            }
        }
    }
    bench.release(Direction::Backward, first + 19);
    let cells = bench.take(Some(0));
    let of_batch: Vec<_> = data(&cells).filter(|cell| cell.header.seq >= first).collect();
    // The last round has no second copy yet.
    assert_eq!(of_batch.len(), 20 * 2 * 2 - 2);
    assert!(of_batch.iter().all(|cell| cell.header.channel == 10), "nothing goes on to link 1");
    let view = *bench.mix.view().lock().unwrap();
    // Three loops with keys, of which two meet.
    // The loops, the failed one left out. Nothing has come for the entry's channel: hop 2 may have refused it.
    let (link_places, link_lost) = (20 * 3 * 2, 1);
    let counts = LoopCounts { places: 20 * 3 * 2, lost: 1, garbled: 1, link_places, link_lost };
    // Forward it is two rounds ahead.
    let expected = LoopsView { counts, sent: 22 * 4 * 2, met: 20 * 2 * 2 - 1, delay: None };
    assert_eq!(view, expected);
    let tally = bench.tally(Direction::Backward);
    assert_eq!(tally.consumed, 20 * 4 * 2 - 2, "those of the failed one, too");
    assert_eq!([DropReason::Garbled, DropReason::Replay].map(|reason| tally.drops(reason)), [1, 1]);
    bench.release(Direction::Backward, end - 1);
    let view = *bench.mix.view().lock().unwrap();
    assert_eq!((view.counts.places, view.counts.lost, view.met), (512 * 6, 492 * 6 + 1, expected.met));
    let delay = view.delay.unwrap();
    assert!(delay.batch == BATCH && delay.p50 <= delay.p99 && delay.p99 < MILLI, "{delay:?}");
    assert!(bench.mix.loops.count(first) == 0, "their keys are wiped");
}

/// Hop 2 would see by the time that the mix takes which channels are loops.
#[test]
fn cells_of_loops_are_taken_in_like_others_and_opened_later() {
    let mut bench = with_loops();
    let first = bench.times.first(BATCH);
    bench.release(Direction::Forward, first + 2);
    let cells = bench.take(None);
    let round = |cell: &Cell| cell.header.seq == first + 2;
    for cell in data(&cells).filter(|cell| round(cell) && cell.header.channel == 200) {
        let (number, body) = back(cell, Some(1));
        bench.net.send(bench.next.data(number, first + 2, cell.header.sub, &body));
    }
    let counted = |bench: &Bench| {
        let tally = bench.tally(Direction::Backward);
        (tally.consumed, tally.held, bench.mix.view().lock().unwrap().met)
    };
    bench.run_until(bench.mix.clock.at(bench.now) + MILLI);
    assert_eq!(counted(&bench), (0, 2, 0));
    bench.release(Direction::Backward, first + 2);
    assert_eq!(counted(&bench), (2, 0, 2));
}

/// A user whose setup hop 2 refuses would otherwise explain what somebody drops on the next link.
#[test]
fn channel_counts_for_the_next_link_once_a_cell_has_come() {
    let mut bench = with_loops();
    let first = bench.times.first(BATCH);
    bench.release(Direction::Forward, first + 2);
    let datagram = bench.next.data(100, first + 3, 0, &[1; BODY]);
    bench.net.send(datagram);
    bench.release(Direction::Backward, first + 9);
    let LoopCounts { places, lost, link_places, link_lost, .. } = bench.mix.view().lock().unwrap().counts;
    assert_eq!((places, lost), (10 * 6, 10 * 6));
    // From that cell on: in its round the place of the other cell, and two in each of six rounds.
    assert_eq!((link_places - places, link_lost - lost), (1 + 1 + 6 * 2, 1 + 6 * 2));
}

#[test]
fn report_on_the_next_link_counts_all_loops() {
    let mut bench = with_loops();
    let first = bench.times.first(BATCH);
    let last = (first + 99..).find(|round| (round + 1).is_multiple_of(100)).unwrap();
    bench.release(Direction::Forward, last + 20);
    // The channel of the entry, and four loops, one of which was not set up.
    let count = 100 * 5 * 2;
    let expected = Report { first: last - 99, last, places: count, filled: count, lost: count };
    let reports = bench.reports(None);
    let [.., before, latest] = reports[..] else { panic!("{reports:?}") };
    assert_eq!(latest.since(before), Some(expected));
    // Control hears of those that were set up. Of the entry's channel nothing has come.
    let heard = std::iter::from_fn(|| bench.punts.pop().ok()).filter_map(|punt| match punt {
        Punt::PacedLoops { first, rounds, counts } => Some((first + rounds, counts)),
        _ => None,
    });
    let places = 100 * 3 * 2;
    let counts = LoopCounts { places, lost: places, garbled: 0, link_places: places, link_lost: places };
    assert_eq!(heard.last(), Some((last + 1, counts)));
}

/// A corrupt next hop that drops the cells of one channel must not learn from the report whether it is a loop.
#[test]
fn report_does_not_show_which_channels_are_loops() {
    for n_min in [1, 2] {
        let after_drop = [100, 200, 201, 202, 203].map(|dropped| {
            let mut bench = with_loops();
            bench.mix.settings.terms.n_min = n_min;
            let first = bench.times.first(BATCH).next_multiple_of(100);
            bench.release(Direction::Backward, first - 1);
            for round in first..first + 100 {
                for number in [100, 200, 201, 202, 203].into_iter().filter(|number| *number != dropped) {
                    let body = bench.body();
                    (0..2).for_each(|sub| bench.net.send(bench.next.data(number, round, sub, &body)));
                }
                bench.release(Direction::Backward, round);
            }
            bench.release(Direction::Forward, first + 120);
            let reports = bench.reports(None);
            let of = |last| *reports.iter().find(|report| report.last == last).unwrap();
            of(first + 99).since(of(first - 1)).unwrap()
        });
        assert!(after_drop.iter().all(|report| *report == after_drop[0]), "{after_drop:?}");
        assert_eq!(after_drop[0].lost, if n_min == 1 { 200 } else { 0 }, "the floor fills all of them");
    }
}

#[test]
fn floor_leaves_loops_alone() {
    let mut bench = with_loops();
    bench.mix.settings.terms.n_min = 2;
    let first = bench.times.first(BATCH);
    bench.release(Direction::Forward, first - 1);
    bench.take(None);
    bench.release(Direction::Forward, first);
    let cells = bench.take(None);
    let cell = data(&cells).find(|cell| (cell.header.channel, cell.header.sub) == (200, 0)).unwrap();
    let (number, body) = back(cell, Some(1));
    bench.net.send(bench.next.data(number, first, 0, &body));
    bench.release(Direction::Backward, first);
    assert_eq!(bench.mix.loops.view.met, 1);
    assert_eq!(bench.tally(Direction::Backward).drops(DropReason::Floor), 0);
}

#[test]
fn late_mix_sends_each_round_of_its_loops_once() {
    let mut bench = with_loops();
    let first = bench.times.first(BATCH);
    bench.release(Direction::Forward, first);
    bench.take(None);
    bench.now += 120 * MILLI;
    bench.mix.turn(bench.now);
    let mut places: Vec<_> = data(&bench.take(None))
        .filter(|cell| cell.header.channel == 200)
        .map(|cell| (cell.header.seq, cell.header.sub))
        .collect();
    places.sort_unstable();
    assert_eq!(places, (first + 5..=first + 12).flat_map(|round| [(round, 0), (round, 1)]).collect::<Vec<_>>());
    assert_eq!(bench.tally(Direction::Forward).drops(DropReason::NoBuffer), 0);
}

#[test]
fn cell_of_a_loop_without_a_buffer_is_counted() {
    let mut bench = with_loops();
    let first = bench.times.first(BATCH);
    bench.release(Direction::Forward, first);
    bench.take(None);
    bench.mix.loops.leave(first + 1).for_each(|leaving| bench.mix.free.give(leaving.cell.into_buffer()));
    bench.release(Direction::Forward, first + 1);
    assert_eq!(data(&bench.take(None)).count(), 2);
    assert_eq!(bench.tally(Direction::Forward).drops(DropReason::NoBuffer), 8);
}
