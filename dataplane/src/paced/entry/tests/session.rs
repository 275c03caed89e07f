//! The session's name, and the ends of flows.

use super::*;

#[test]
fn flows_of_a_closed_listener_are_closed_at_the_exit() {
    let mut bench = Bench::to_destination(terms());
    bench.open(BATCH);
    let first = bench.times.first(BATCH);
    bench.run_to(first + 20);
    bench.say(client(1), b"ask");
    bench.run_to(first + 21);
    bench.command(Command::Entry(EntryCommand::Unlisten { id: ListenerId(0) }));
    let cells = bench.data_of(first + 22);
    assert_eq!(kinds(&bench.read_at_exit(&cells[0]).unwrap(), false), ["session", "close"]);
    assert_eq!(bench.ledger().gauges.flows, 0);
    let cells = bench.data_of(first + 23);
    assert!(cells.iter().all(|cell| bench.read_at_exit(cell).is_none()), "random without a flow");
}

#[test]
fn session_is_drawn_again_after_a_batch_without_a_flow() {
    let mut bench = Bench::to_destination(terms());
    bench.open(BATCH);
    let (first, rounds) = (bench.times.first(BATCH), u64::from(terms().rounds));
    bench.run_to(first + 20);
    let before = bench.entry.session;
    bench.say(client(1), b"ask");
    bench.run_to(first + 21);
    assert_eq!(bench.entry.users.clients.flow_at(packer::SESSION, 0).map(|flow| flow.number), Some(0));
    bench.command(Command::Entry(EntryCommand::Unlisten { id: ListenerId(0) }));
    let until = |bench: &mut Bench, round| {
        bench.run_to(round);
        bench.entry.session != before
    };
    let changed = (first + 22..).find(|round| until(&mut bench, *round)).unwrap();
    let after = changed - first - 21 - wire::paced::BEHIND_MAX;
    assert!((rounds..rounds + 4).contains(&after), "{after}");
    let renewed = bench.entry.session;
    bench.run_to(changed + 2 * rounds);
    assert_eq!(bench.entry.session, renewed, "nobody has heard it");
}

/// Whoever keeps channels from an entry would have it keep the name, however long.
#[test]
fn end_of_a_flow_that_finds_no_channel_does_not_keep_the_name() {
    let mut bench = Bench::to_destination(terms());
    bench.open(BATCH);
    let (first, next) = (bench.times.first(BATCH), bench.times.first(BATCH + 1));
    bench.run_to(first + 20);
    let before = bench.entry.session;
    bench.say(client(1), b"ask");
    bench.run_to(next + 10);
    bench.command(Command::Entry(EntryCommand::Unlisten { id: ListenerId(0) }));
    let again = bench.times.first(BATCH + 4);
    bench.run_to(again - 20);
    assert_ne!(bench.entry.session, before);
    bench.open(BATCH + 4);
    let cells = bench.data_of(again + 1);
    assert!(cells.iter().all(|cell| bench.read_at_exit(cell).is_none()), "the end is not said under another name");
}
