//! What users and destinations send, and when rounds and datagrams leave.

use super::*;

#[test]
fn backward_round_does_not_wait_for_many_datagrams() {
    let mut bench = Bench::new(false);
    bench.channels(1);
    let round = bench.first() + 2;
    let frames: Vec<_> = (0..8).map(|_| datagram(5, b"x")).collect();
    bench.frames(0, round, 0, &[&[Frame::Session(SESSION), open(5, at(9))], &frames[..6]].concat());
    bench.frames(0, round, 1, &frames);
    bench.run_until(bench.exit.schedules.forward.due_at(round) - 1);
    bench.is_in_time("datagram", round, 14);
    assert_eq!(bench.ledger().datagrams.forward.sent, 14);
}

/// OPENs of eight flows, each with a socket of its own.
fn opens() -> [Vec<Frame<'static>>; 2] {
    let open = |flow| Frame::Open { flow, map: flow, token: [flow as u8; 16], to: Address::Ip(at(9)) };
    [0, 4].map(|first| (first..first + 4).map(open).collect())
}

#[test]
fn backward_round_does_not_wait_for_opens() {
    let mut bench = Bench::new(false);
    bench.channels(1);
    let round = bench.first() + 2;
    bench.frames(0, round - 1, 0, &[Frame::Session(SESSION)]);
    (0..).zip(opens()).for_each(|(sub, opens)| bench.frames(0, round, sub, &opens));
    bench.is_in_time("open", round, 8);
    assert_eq!(bench.ledger().gauges.sockets, 8);
}

#[test]
fn backward_round_does_not_wait_for_closes() {
    let mut bench = Bench::new(false);
    bench.channels(1);
    let round = bench.first() + 2;
    bench.frames(0, round - 2, 0, &[Frame::Session(SESSION)]);
    (0..).zip(opens()).for_each(|(sub, opens)| bench.frames(0, round - 1, sub, &opens));
    let closes: Vec<_> = (0..8).map(|flow| Frame::Close { flow }).collect();
    bench.frames(0, round, 1, &closes);
    bench.is_in_time("close", round, 8);
    assert_eq!(bench.ledger().gauges.flows, 0);
}

#[test]
fn backward_round_does_not_wait_for_the_end_of_a_session() {
    let mut bench = Bench::new(false);
    bench.exit.outside.sessions.most = 1;
    bench.channels(2);
    let round = bench.first() + 2;
    bench.frames(0, round - 2, 0, &[Frame::Session(SESSION)]);
    (0..).zip(opens()).for_each(|(sub, opens)| bench.frames(0, round - 1, sub, &opens));
    bench.frames(1, round, 0, &[Frame::Session([1; 16])]);
    bench.is_in_time("close", round, 8);
    let has_begun = bench.exit.outside.sessions.find(&[1; 16]).is_some();
    assert!(has_begun && bench.ledger().gauges.flows == 0);
}

#[test]
fn backward_round_does_not_wait_for_a_flood_of_answers() {
    let mut bench = Bench::new(false);
    bench.channels(1);
    let round = bench.first() + 2;
    let [first, second] = [5, 6].map(|flow| (flow, at(flow)));
    let frames =
        [first, second].map(|(flow, to)| Frame::Open { flow, map: flow, token: [flow as u8; 16], to: Address::Ip(to) });
    let [flooded, other] = [first, second].map(|(flow, _)| datagram(flow, b"x"));
    bench.frames(0, round - 1, 0, &[Frame::Session(SESSION), frames[0], flooded, frames[1], other]);
    bench.release(Direction::Backward, round - 1);
    let [flooded, other] = [first, second].map(|(_, to)| bench.net.receive(to).unwrap().from);
    bench.run_until(bench.exit.schedules.forward.due_at(round) - 1);
    (0..100).for_each(|_| bench.answer(first.1, flooded, "flood"));
    bench.answer(second.1, other, "me too");
    // What the exit holds when it stops within a batch is accounted for. Each batch but the last has eight.
    bench.is_in_time("receive", round, 14);
    assert_eq!(bench.ledger().datagrams.backward.received, 101);
    let heard = bench.hear(0, round + 1);
    assert!(heard.contains(&"6 me too".to_owned()), "{heard:?}");
}

#[test]
fn frames_that_wait_too_long_to_take_effect_are_dropped() {
    let mut bench = Bench::new(false);
    bench.channels(1);
    let round = bench.first() + 2;
    bench.flow(0, round - 1, 5, at(9));
    bench.frames(0, round, 0, &[datagram(5, b"x"); 6]);
    bench.run_until(bench.exit.schedules.forward.due_at(round) - 1);
    // The next release is due after the first step.
    bench.exit.runner_clock = Some(Clock::showing(bench.now + SECOND));
    bench.exit.turn(bench.now + 1);
    bench.exit.runner_clock = None;
    bench.exit.turn(bench.now + 70 * MILLI);
    let forward = bench.ledger().datagrams.forward;
    assert_eq!((forward.sent, forward.drops(DropReason::Aged)), (2, 5), "one has opened the flow");
}

#[test]
fn datagrams_and_answers_do_not_wait_for_later_frames() {
    let mut bench = Bench::new(false);
    bench.channels(1);
    let round = bench.first() + 2;
    let own = bench.flow(0, round - 1, 5, at(9));
    bench.frames(0, round, 0, &[datagram(5, b"first")]);
    (0..2).for_each(|sub| bench.frames(0, round + 1, sub, &[datagram(5, b"x"); 6]));
    bench.run_until(bench.exit.schedules.forward.due_at(round) - 1);
    bench.answer(at(9), own, "answer");
    // A release is due after each step.
    bench.exit.runner_clock = Some(Clock::showing(bench.now + SECOND));
    let next = bench.now + 1 + 10 * MILLI;
    let took_effect = |bench: &mut Bench, now| {
        bench.exit.turn(now);
        let datagrams = bench.ledger().datagrams;
        (datagrams.forward.injected, datagrams.forward.sent, datagrams.backward.received)
    };
    let first = bench.now + 1;
    assert_eq!(took_effect(&mut bench, first), (2, 1, 0));
    let after = [0; 4].map(|_| took_effect(&mut bench, next));
    assert_eq!(after, [(2, 1, 0), (2, 1, 0), (2, 2, 0), (2, 2, 1)]);
    assert_eq!(bench.arrived(at(9)), ["first"]);
    bench.exit.runner_clock = None;
    assert_eq!(took_effect(&mut bench, next), (14, 14, 1));
}

#[test]
fn datagrams_of_a_release_that_wait_too_long_are_dropped() {
    let mut bench = Bench::new(false);
    bench.channels(1);
    let round = bench.first() + 2;
    bench.flow(0, round - 1, 5, at(9));
    bench.frames(0, round, 0, &[datagram(5, b"x")]);
    bench.run_until(bench.exit.schedules.forward.due_at(round) - 1);
    let late = bench.now + 300 * MILLI;
    bench.exit.set_clock(Clock::showing(late));
    // It takes effect in the first turn, and would leave in the last one.
    [bench.now + 1, late, late].into_iter().for_each(|now| _ = bench.exit.turn(now));
    let forward = bench.ledger().datagrams.forward;
    assert_eq!((forward.sent, forward.drops(DropReason::Aged)), (1, 1));
}

#[test]
fn frames_that_come_faster_than_they_take_effect_are_bounded() {
    let mut bench = Bench::new(false);
    bench.channels(1);
    let first = bench.first() + 2;
    bench.flow(0, first - 1, 5, at(9));
    bench.exit.runner_clock = Some(Clock::showing(bench.now + SECOND * SECOND));
    let mut most = 0;
    for round in first..first + 40 {
        (0..2).for_each(|sub| bench.frames(0, round, sub, &[datagram(5, b"x"); 6]));
        // The round before leaves backward, it reads its link, and this one leaves forward: one step each.
        let due = bench.exit.clock.when(bench.exit.schedules.forward.due_at(round));
        [due - 2 * MILLI, due - MILLI, due].into_iter().for_each(|now| _ = bench.exit.turn(now));
        most = most.max(bench.exit.outside.works());
    }
    // The cells of seven rounds and their releases, two each and one, and what is under way.
    assert!((6 * 3..=8 * 3).contains(&most), "{most}");
    assert!(bench.ledger().datagrams.forward.drops(DropReason::Aged) > 100);
}
