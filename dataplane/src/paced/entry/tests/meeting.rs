//! Entries of a meeting.

use wire::paced::BEHIND_MAX;

use super::*;
use crate::paced::entry::LOST_AFTER;

/// Two entries with one secret, and the exit between them.
struct Pair {
    ends: [Bench; 2],
}

impl Pair {
    fn new(terms: &PacedTerms) -> Pair {
        let mut ends = [1, 2].map(|seed| Bench::new(terms.clone(), Service::Meeting { max_age: MAX_AGE }, seed));
        for end in &mut ends {
            (BATCH..BATCH + 2).for_each(|batch| end.open(batch));
        }
        Pair { ends }
    }

    /// Both run a round, and what is joined at the exit comes to the other. `loses` drops bodies, which are returned.
    fn round(&mut self, round: u64, loses: impl Fn(usize, u8) -> bool) -> Vec<(RoundSub, Vec<u8>)> {
        let mut lost = Vec::new();
        let cells = self.ends.each_mut().map(|end| end.data_of(round));
        for (from, cells) in cells.iter().enumerate() {
            let (here, there) = (&self.ends[from], &self.ends[1 - from]);
            for cell in cells {
                assert!(here.read_at_exit(cell).is_none(), "the exit cannot read it");
                let (place, mut body) = (cell.header.round_sub(), cell.body.clone());
                here.pass(HOPS, Direction::Forward, place, &mut body);
                there.pass(HOPS, Direction::Backward, place, &mut body);
                if loses(from, cell.header.sub) {
                    lost.push((place, body));
                } else {
                    (0..2).for_each(|_| drop(there.send_from_mix(place, &body)));
                }
            }
        }
        for end in &mut self.ends {
            end.turn();
        }
        lost
    }
}

#[test]
fn entries_of_a_meeting_hear_each_other() {
    for repeat in [false, true] {
        let terms = PacedTerms { repeat, cells: 1, ..terms() };
        let mut pair = Pair::new(&terms);
        let next = pair.ends[0].times.first(BATCH + 1);
        pair.ends.iter_mut().for_each(|end| drop(end.run_to(next - 30)));
        let mut heard = [Vec::new(), Vec::new()];
        for round in next - 29..next + 30 {
            for (i, end) in pair.ends.iter().enumerate() {
                // One in four takes two cells.
                let len = if round % 4 == 0 { 250 } else { 40 };
                let data = [&[i as u8], &round.to_be_bytes()[..], &vec![7; len]].concat();
                if round < next + 20 {
                    end.say(client(1), &data);
                }
            }
            // One body of three is lost on the way to one end.
            pair.round(round, |from, _| repeat && from == 0 && round % 3 == 0);
            for (end, heard) in pair.ends.iter().zip(&mut heard) {
                heard.extend(end.heard(client(1)));
            }
        }
        for (i, heard) in heard.iter().enumerate() {
            let rounds: Vec<u64> =
                heard.iter().map(|data| u64::from_be_bytes(data[1..9].try_into().unwrap())).collect();
            assert!(heard.iter().all(|data| data[0] == 1 - i as u8));
            let unique: HashSet<_> = rounds.iter().collect();
            assert_eq!(unique.len(), rounds.len(), "each once");
            if !repeat {
                assert_eq!(rounds, (next - 29..next + 20).collect::<Vec<_>>());
            }
            assert_eq!(pair.ends[i].shown().meeting, Some(MeetingState::Joined));
        }
    }
}

/// The user has changed the secret: what waits for the one before is not for the next one.
#[test]
fn another_meeting_gets_nothing_of_the_one_before() {
    for (repeat, number) in [(false, 1), (false, 2), (true, 1), (true, 2)] {
        let mut pair = Pair::new(&PacedTerms { repeat, cells: 1, ..terms() });
        pair.ends[0].open_of(BATCH + 1, number);
        let next = pair.ends[0].times.first(BATCH + 1);
        pair.ends.iter_mut().for_each(|end| drop(end.run_to(next - 30)));
        let (mut heard, mut late) = (Vec::new(), Vec::new());
        for round in next - 29..next + 20 {
            // More than leaves in a round.
            (round < next).then(|| (0..3).for_each(|_| pair.ends[0].say(client(1), &[1; 150])));
            pair.ends[1].say(client(1), b"to be known");
            late.extend(pair.round(round, |from, _| from == 1 && round == next - 1));
            let of_round = pair.ends[1].heard(client(1));
            heard.extend((round >= next).then_some(of_round).into_iter().flatten());
        }
        let dropped = pair.ends[0].ledger().datagrams.forward.drops(DropReason::Ended);
        assert_eq!((heard.is_empty(), dropped > 0), (number == 2, number == 2), "{repeat}, {number}");
        let [end, _] = &mut pair.ends;
        assert_eq!(end.shown().meeting, Some(MeetingState::Joined), "with the next one");
        // Cells of the one before that come late accuse nobody.
        late.iter().for_each(|(place, body)| drop(end.send_from_mix(*place, body)));
        end.run_to(next + BEHIND_MAX + 150);
        assert_eq!((late.len(), end.shown().of_other_end.of_exit), (1, 0), "{repeat}, {number}");
    }
}

/// Cells that the former other end did not send do not count as lost to the next one.
#[test]
fn silence_of_the_one_before_is_no_loss_of_the_next() {
    for (number, lost) in [(1, 30), (2, 0)] {
        let mut pair = Pair::new(&PacedTerms { cells: 1, ..terms() });
        pair.ends[0].open_of(BATCH + 1, number);
        let [first, next] = [BATCH, BATCH + 1].map(|batch| pair.ends[0].times.first(batch));
        pair.ends.iter_mut().for_each(|end| drop(end.run_to(first - 1)));
        for round in first..next + 20 {
            pair.round(round, |from, _| from == 1 && (next - 30..next).contains(&round));
        }
        let [end, _] = &mut pair.ends;
        end.run_to(next + 20 + BEHIND_MAX + 20);
        assert_eq!(
            end.shown().of_other_end,
            EndToEnd { places: next - first - 10 + lost, lost, of_exit: 0 },
            "{number}"
        );
    }
}

/// They have not been read when the meeting changes, and are more than are read at once.
#[test]
fn datagrams_in_a_socket_are_not_for_another_meeting() {
    for number in [1, 2] {
        let mut pair = Pair::new(&PacedTerms { cells: 1, ..terms() });
        pair.ends[0].open_of(BATCH + 1, number);
        let next = pair.ends[0].times.first(BATCH + 1);
        pair.ends.iter_mut().for_each(|end| drop(end.run_to(next - 1)));
        let [end, _] = &mut pair.ends;
        end.run_until(end.entry.pacer.due_at(next) - QUIET);
        (0..400).for_each(|_| end.say(client(1), b"before"));
        let mut heard = Vec::new();
        for round in next..next + 30 {
            pair.ends[1].say(client(1), b"to be known");
            pair.round(round, |_, _| false);
            if round == next + 15 {
                pair.ends[0].say(client(1), b"after");
            }
            heard.extend(pair.ends[1].heard(client(1)));
        }
        let count = |text: &[u8]| heard.iter().filter(|data| *data == text).count();
        let dropped = pair.ends[0].ledger().datagrams.forward.drops(DropReason::Ended);
        assert_eq!((count(b"before") > 0, count(b"after"), dropped), (number == 1, 1, 400 * u64::from(number == 2)));
    }
}

#[test]
fn repeat_brings_what_one_lost_cell_held() {
    let mut pair = Pair::new(&PacedTerms { repeat: true, cells: 1, ..terms() });
    let first = pair.ends[0].times.first(BATCH);
    pair.ends.iter_mut().for_each(|end| drop(end.run_to(first + 5)));
    for round in first + 6..first + 40 {
        if round < first + 36 {
            pair.ends[0].say(client(1), &round.to_be_bytes());
            pair.ends[1].say(client(1), b"to be known");
        }
        pair.round(round, |from, _| from == 0 && round % 2 == 0);
    }
    let heard = pair.ends[1].heard(client(1));
    let mut rounds: Vec<u64> = heard.iter().map(|data| u64::from_be_bytes(data[..].try_into().unwrap())).collect();
    rounds.sort_unstable();
    assert_eq!(rounds, (first + 6..first + 36).collect::<Vec<_>>(), "every datagram once");
    let garbled = pair.ends[1].ledger().cells.backward.drops(DropReason::Garbled);
    assert_eq!(garbled, 0);
}

#[test]
fn losses_from_the_other_end_count_until_it_stops() {
    let mut pair = Pair::new(&PacedTerms { cells: 1, ..terms() });
    let first = pair.ends[0].times.first(BATCH);
    pair.ends.iter_mut().for_each(|end| drop(end.run_to(first - 1)));
    for round in first..first + 40 {
        pair.round(round, |from, _| from == 0 && round % 4 == 0);
    }
    // The other end has stopped: what did not come since then is not lost.
    for end in &mut pair.ends {
        end.run_to(first + 40 + BEHIND_MAX + 20);
    }
    let shown = pair.ends.each_ref().map(|end| end.shown());
    assert_eq!(
        shown.map(|view| view.of_other_end),
        [(40, 0), (40, 10)].map(|(places, lost)| EndToEnd { places, lost, of_exit: 0 })
    );
    assert_eq!(shown.map(|view| view.lost >= 20), [true; 2], "the access link brought nothing any more");
}

/// A corrupt exit that drops a cell of the other end can put one of its own in its place.
#[test]
fn bodies_of_the_exit_do_not_hide_losses() {
    let mut pair = Pair::new(&PacedTerms { cells: 1, ..terms() });
    let first = pair.ends[0].times.first(BATCH);
    pair.ends.iter_mut().for_each(|end| drop(end.run_to(first - 1)));
    for round in first..first + 40 {
        // In the last rounds it lets nothing pass.
        let is_dropped = round % 4 == 0 || round >= first + 36;
        pair.round(round, |from, _| from == 0 && is_dropped);
        if is_dropped {
            let (end, place) = (&mut pair.ends[1], RoundSub { round, sub: 0 });
            end.send_from_mix(place, &end.exit_body(place, &[]));
            end.turn();
        }
    }
    pair.ends[1].run_to(first + 40 + BEHIND_MAX + 20);
    let shown = pair.ends[1].shown();
    assert_eq!(shown.of_other_end, EndToEnd { places: 36, lost: 9, of_exit: 9 + 4 });
    assert_eq!(pair.ends[1].ledger().cells.backward.drops(DropReason::Garbled), 0);
}

#[test]
fn reflected_bodies_are_garbled() {
    let mut pair = Pair::new(&PacedTerms { cells: 1, ..terms() });
    let first = pair.ends[0].times.first(BATCH);
    let end = &mut pair.ends[0];
    end.run_to(first + 5);
    end.say(client(1), b"echo");
    for round in first + 6..first + 10 {
        for cell in end.data_of(round) {
            let (place, mut body) = (cell.header.round_sub(), cell.body);
            end.pass(HOPS, Direction::Forward, place, &mut body);
            end.pass(HOPS, Direction::Backward, place, &mut body);
            end.send_from_mix(place, &body);
        }
    }
    end.turn();
    assert_eq!(end.ledger().cells.backward.drops(DropReason::Garbled), 4);
    assert_eq!(end.heard(client(1)), [[0; 0]; 0]);
}

#[test]
fn meeting_is_lost_after_silent_rounds_with_a_channel() {
    let mut bench = Bench::new(terms(), Service::Meeting { max_age: MAX_AGE }, 1);
    let first = bench.times.first(BATCH);
    bench.run_to(first - 1);
    assert_eq!(bench.shown().meeting, Some(MeetingState::Waiting), "without a channel nothing is expected");
    let mut bench = Bench::new(terms(), Service::Meeting { max_age: MAX_AGE }, 1);
    bench.open(BATCH);
    bench.run_to(first + LOST_AFTER - 2);
    assert_eq!(bench.shown().meeting, Some(MeetingState::Waiting), "nothing has opened yet");
    bench.run_to(first + LOST_AFTER + 2);
    assert_eq!(bench.shown().meeting, Some(MeetingState::Lost));
    let place = RoundSub { round: first + LOST_AFTER + 1, sub: 0 };
    bench.send_from_mix(place, &bench.exit_body(place, &[]));
    bench.turn();
    assert_eq!(bench.shown().meeting, Some(MeetingState::Waiting));
}

#[test]
fn exit_cannot_speak_in_a_meeting() {
    let mut bench = Bench::new(terms(), Service::Meeting { max_age: MAX_AGE }, 1);
    bench.open(BATCH);
    let first = bench.times.first(BATCH);
    bench.run_to(first + 5);
    bench.say(client(1), b"hello");
    bench.run_to(first + 6);
    let place = |sub| RoundSub { round: first + 5, sub };
    bench.send_from_mix(place(0), &bench.exit_body(place(0), &[]));
    bench.send_from_mix(place(1), &bench.exit_body(place(1), &[Frame::Dgram { flow: 0, data: b"forged" }]));
    bench.turn();
    let tally = bench.ledger().cells.backward;
    assert_eq!((tally.consumed, tally.drops(DropReason::Garbled)), (1, 1));
    assert_eq!((bench.heard(client(1)), bench.shown().meeting), (vec![], Some(MeetingState::Waiting)));
    bench.run_to(first + 5 + LOST_AFTER);
    assert_eq!(bench.shown().meeting, Some(MeetingState::Waiting));
    bench.run_to(first + 5 + LOST_AFTER + 3);
    assert_eq!(bench.shown().meeting, Some(MeetingState::Lost));
}
