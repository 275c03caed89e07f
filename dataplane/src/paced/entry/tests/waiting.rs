//! Datagrams of applications that wait for a round.

use super::*;

#[test]
fn datagrams_wait_up_to_the_age_of_their_forward() {
    let mut bench = Bench::new(terms(), forwards(&[MAX_AGE, Duration::from_millis(25)]), 1);
    bench.run_to(bench.times.first(BATCH) - 15);
    let start = bench.entry.clock.at(bench.now);
    bench.say(client(1), b"long");
    bench.apps.send(Datagram { from: client(2), to: listener(1), bytes: b"short".to_vec() });
    let mut at = |ms: u64| {
        bench.run_until(start + ms * MILLI);
        let forward = bench.ledger().datagrams.forward;
        (forward.held, forward.drops(DropReason::Aged))
    };
    assert_eq!([at(1), at(25), at(26), at(60), at(61)], [(2, 0), (2, 0), (1, 1), (1, 1), (0, 2)]);
}

/// G.711: a datagram in every second round, the other one repeats it. Another datagram makes it late.
#[test]
fn stream_that_fills_the_class_is_late_for_a_moment_only() {
    for phase in 1..10 {
        let mut bench = Bench::to_destination(PacedTerms { cells: 1, repeat: true, ..terms() });
        bench.open(BATCH);
        let first = bench.times.first(BATCH);
        bench.run_to(first + 3);
        bench.say(client(1), &[1; 182]);
        bench.run_to(first + 6);
        let place = RoundSub { round: first + 3, sub: 0 };
        let answers = [SESSION_FLOW, 0].map(|flow| Frame::Status { flow, code: Status::Open });
        bench.send_from_mix(place, &bench.exit_body(place, &answers));
        bench.run_to(first + 20);
        bench.say(client(1), &[1; 182]);
        let begin = bench.entry.pacer.due_at(first + 20) + phase * MILLI;
        for datagram in 0..200 {
            bench.run_until(begin + datagram * 20 * MILLI);
            bench.say(client(1), &[1; 182]);
        }
        bench.run_until(begin + 4000 * MILLI);
        assert_eq!(bench.entry.packer.len(), 0, "{phase} ms behind a round");
        assert_eq!(bench.ledger().datagrams.forward.drops(DropReason::Aged), 0);
    }
}

/// With a channel it is the application that sends too much. Without one, or stopped, it is not.
#[test]
fn what_the_class_does_not_carry_is_counted_and_told() {
    let mut bench = Bench::to_destination(PacedTerms { cells: 1, ..terms() });
    bench.open(BATCH);
    let first = bench.times.first(BATCH);
    bench.run_to(first - 20);
    (0..5).for_each(|_| bench.say(client(1), &[1; 180]));
    bench.run_to(first + 1);
    let drops = |bench: &mut Bench| {
        let forward = bench.ledger().datagrams.forward;
        [DropReason::Aged, DropReason::OverRate].map(|reason| forward.drops(reason))
    };
    assert_eq!(drops(&mut bench), [5, 0], "no channel");
    (0..20).for_each(|_| bench.say(client(1), &[1; 180]));
    bench.run_to(first + 20);
    let told =
        std::iter::from_fn(|| bench.punts.pop().ok()).filter(|punt| matches!(punt, Punt::Notice(Notice::OverRate)));
    assert!(told.count() > 0);
    let [aged, over_rate] = drops(&mut bench);
    assert!(aged == 5 && (10..20).contains(&over_rate), "{aged} {over_rate}: the first rounds take some");
    bench.say(client(1), &[1; 180]);
    bench.say(client(1), &[1; 180]);
    bench.turn();
    bench.now += 2_000 * MILLI;
    bench.run_to(first + 300);
    assert_eq!(drops(&mut bench), [aged + 2, over_rate], "it was stopped");
}

#[test]
fn queue_of_datagrams_is_bounded() {
    let mut bench = Bench::new(terms(), forwards(&[Duration::from_secs(60)]), 1);
    (0..packer::WAITING_MAX + 10).for_each(|_| bench.say(client(1), &[0; 100]));
    bench.run_to(bench.times.first(BATCH) - 10);
    let forward = bench.ledger().datagrams.forward;
    assert_eq!((forward.held, forward.drops(DropReason::ChannelQueueFull)), (packer::WAITING_MAX as u64, 10));
}
