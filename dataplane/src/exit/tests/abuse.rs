//! Those who would use an exit against others: floods, reflection, and destinations that are nobody's business.

use super::*;
use crate::command::LinkCommand;
use crate::rate::Rate;
use wire::cell::{CellKind, HEADER_LEN, Header};
use wire::frames::{DATAGRAMS_MAX, Writer};
use wire::ids::{Rank, Side, SlotId};
use wire::link::HeaderKey;
use zeroize::Zeroizing;

/// The key under which Mix m enciphers its headers.
const HEADER_KEY: [u8; 16] = [5; 16];

impl Bench {
    /// Datagrams of an open flow, each followed by what is due.
    fn flood(&mut self, channel: u32, flow: u16, count: usize) {
        (0..count).for_each(|_| self.frame(channel, &Frame::Dgram { flow, data: b"x" }));
    }

    /// Brings up the link to Mix m.
    fn connect(&mut self) {
        let (link, peer) = (LinkId(9), address(2));
        let [header_i2r, header_r2i] = [HEADER_KEY, [6; 16]].map(Zeroizing::new);
        let slot =
            LinkCommand::InstallSlot { link, slot: SlotId(1), peer, header_i2r, header_r2i, rank: Rank::Current };
        for command in [LinkCommand::Install { link, side: Side::Up, peer }, slot] {
            assert!(self.commands.push(Command::Link(command)).is_ok());
        }
        self.turn();
    }

    /// Sends the exit a cell of a channel with these bytes inside.
    fn cell(&mut self, channel: u32, seq: u64, inner: &[u8]) {
        let shape = self.exit.endpoint.shape;
        let header = Header { channel, seq, sub: 0, kind: CellKind::Data, class: shape.class() };
        let mut cell = vec![0; shape.cell_len(Direction::Forward, shape.hops())];
        cell[HEADER_LEN..HEADER_LEN + inner.len()].copy_from_slice(inner);
        let keys = Generations::<AeadKey>::new(&Secret::new([1; 32]), 0);
        let (key, iv) = keys.of(seq).unwrap();
        seal_batch(&mut [Job::new(key, header.data_nonce(iv), &mut cell[HEADER_LEN..])]);
        let mut block = [header.to_block()];
        HeaderKey::new(&HEADER_KEY).encipher(&mut block);
        cell[..HEADER_LEN].copy_from_slice(&block[0]);
        self.link.send(Datagram { from: address(2), to: address(1), bytes: cell });
    }

    /// What the exit has to say to the entry in the middle of a turn: datagrams, and who sent them if it says so.
    fn answers(&mut self) -> Vec<(u16, Option<SocketAddr>)> {
        self.exit.receive_apps(self.now);
        self.said(|frame| match *frame {
            Frame::Dgram { flow, .. } => Some((flow, None)),
            Frame::From { flow, from, .. } => Some((flow, Some(from))),
            _ => None,
        })
    }
}

/// Empty datagrams take five bytes of a cell, so that a cell of 1.4 kB would have the exit send 265 of them.
#[test]
fn cell_full_of_empty_datagrams_is_dropped() {
    let mut bench = Bench::new(Class::L, 1);
    bench.connect();
    bench.open(0, 1, Address::Ip(address(9)));
    let mut inner = vec![0; 1328];
    inner[..1325].copy_from_slice(&[1, 0, 1, 0, 0].repeat(265));
    bench.cell(0, 0, &inner);
    let ledger = bench.turn();
    assert_eq!((ledger.cells.forward.received, ledger.cells.forward.drops(DropReason::Frames)), (1, 1));
    assert_eq!((ledger.datagrams.forward.sent, bench.delivered(address(9))), (0, 0));

    inner[5 * DATAGRAMS_MAX..].fill(0);
    bench.cell(0, 1, &inner);
    let ledger = bench.turn();
    assert_eq!((ledger.datagrams.forward.sent, bench.delivered(address(9))), (DATAGRAMS_MAX as u64, DATAGRAMS_MAX));
}

#[test]
fn datagrams_of_a_turn_are_bounded() {
    const CELLS: u64 = 1000;
    let mut bench = Bench::new(Class::L, 1);
    bench.connect();
    bench.open(0, 1, Address::Ip(address(9)));
    let mut inner = vec![0; 1328];
    let mut writer = Writer::new(&mut inner);
    while writer.put(&Frame::Dgram { flow: 1, data: &[] }) {}
    (0..CELLS).for_each(|seq| bench.cell(0, seq, &inner));
    let (mut sent, mut turns) = (0, 0);
    while sent < CELLS * DATAGRAMS_MAX as u64 {
        let before = sent;
        sent = bench.turn().datagrams.forward.sent;
        // The memory port brings 64 cells in a call.
        assert!(sent - before < (SENDS_MAX + 64 * DATAGRAMS_MAX) as u64, "{}", sent - before);
        turns += 1;
    }
    assert_eq!((sent, bench.turn().cells.forward.consumed), (CELLS * DATAGRAMS_MAX as u64, CELLS));
    assert!(turns >= 8, "{turns}");
}

#[test]
fn names_have_a_rate_of_which_each_channel_gets_a_part() {
    let limits = Limits { names: Some(40), ..Limits::default() };
    let mut bench = Bench::with(Class::L, 3, |settings| settings.limits = limits);
    let mut flow = 0;
    let mut ask = |bench: &mut Bench, channel: u32, count: usize| {
        for _ in 0..count {
            flow += 1;
            bench.open(channel, flow, Address::Name("example.org", 53));
            bench.frame(channel, &Frame::Dgram { flow, data: b"x" });
        }
        let refused = bench.statuses();
        assert!(refused.iter().all(|(_, status)| *status == Status::TooManyFlows));
        let mut asked = 0;
        while let Ok(punt) = bench.punts.pop() {
            asked += usize::from(matches!(punt, crate::punt::Punt::Resolve { .. }));
        }
        assert_eq!(asked + refused.len(), count);
        asked
    };
    assert_eq!([0, 1, 2].map(|channel| ask(&mut bench, channel, 60)), [10, 5, 3]);
    bench.now += SECOND;
    assert_eq!(ask(&mut bench, 0, 60), 10, "others' part stays free");
    let ledger = bench.turn().datagrams.forward;
    assert_eq!((ledger.drops(DropReason::NameRate), ledger.held), (50 + 55 + 57 + 50, 28));
}

#[test]
fn address_that_the_host_gets_later_is_closed() {
    let mut bench = Bench::new(Class::L, 1);
    let new: SocketAddr = "93.184.216.34:9".parse().unwrap();
    bench.send(0, 1, new);
    bench.turn();
    assert_eq!(bench.delivered(new), 1);
    assert!(bench.commands.push(Command::OwnAddresses { addresses: vec![new.ip()] }).is_ok());
    bench.turn();
    bench.send(0, 2, new);
    assert_eq!((bench.drops(DropReason::Policy), bench.delivered(new)), (1, 0));
}

#[test]
fn silent_destination_gets_one_budget_over_all_channels() {
    let limits = Limits { unanswered: Some(100), ..Limits::default() };
    let mut bench = Bench::with(Class::L, 2, |settings| settings.limits = limits);
    for channel in 0..2 {
        for flow in 0..10 {
            // Other ports are the same host.
            bench.open(channel, flow, Address::Ip(address(1000 + flow)));
            bench.flood(channel, flow, 50);
        }
        bench.now += SECOND;
    }
    let said = bench.statuses();
    assert!(said.contains(&(9, Status::Unreachable)));
    let ledger = bench.turn().datagrams.forward;
    // Each channel gets one more while more are left than it has used.
    assert_eq!((ledger.sent, ledger.drops(DropReason::Unanswered)), (50 + 25, 925));
    // Closing flows gives nothing back.
    bench.frame(0, &Frame::Close { flow: 0 });
    bench.open(0, 20, Address::Ip(address(3000)));
    bench.flood(0, 20, 10);
    assert_eq!(bench.turn().datagrams.forward.drops(DropReason::Unanswered), 935);
}

/// Some channels send to a port of a destination where nobody answers, until they are refused: flows of others to its
/// other ports still open, and are not limited once they have an answer.
#[test]
fn no_user_closes_a_destination_for_others() {
    const HOSTILE: u32 = 20;
    let limits = Limits { unanswered: Some(100), ..Limits::default() };
    let mut bench = Bench::with(Class::L, HOSTILE + 1, |settings| settings.limits = limits);
    for channel in 0..HOSTILE {
        bench.open(channel, 1, Address::Ip(address(7)));
        bench.flood(channel, 1, 200);
    }
    let sent = bench.turn().datagrams.forward.sent;
    assert!((100..=110).contains(&sent), "{sent}, with a burst of first datagrams");
    assert_eq!(bench.delivered(address(7)) as u64, sent);
    bench.now += SECOND;
    bench.send(HOSTILE, 1, address(9));
    bench.turn();
    let exit = bench.net.receive(address(9)).expect("a first datagram").from;
    bench.net.send(Datagram { from: address(9), to: exit, bytes: b"hello".to_vec() });
    bench.turn();
    bench.flood(HOSTILE, 1, 1000);
    bench.turn();
    assert_eq!(bench.delivered(address(9)), 1000);
}

#[test]
fn entry_learns_which_flows_end_with_a_socket_not_passed_on() {
    let mut bench = Bench::with(Class::L, 7, |settings| settings.caps.sockets = 12);
    for channel in 0..7 {
        (0..3).for_each(|flow| bench.send(channel, flow, address(9)));
    }
    // The last two have one because they had none. The flow of one moves to the other.
    assert_eq!(bench.turn().gauges.sockets, 12);
    let mut token = [0; 16];
    token[2..6].copy_from_slice(&6u32.to_be_bytes());
    bench.frame(5, &Frame::Move { flow: 7, token });
    assert_eq!(bench.statuses(), [(7, Status::Open)]);
    bench.exit.apply(Command::RetireChannel { channel: ChannelIndex(6) }, bench.now);
    assert_eq!(bench.said(|frame| if let Frame::Close { flow } = frame { Some(*flow) } else { None }), [7]);
    let ledger = bench.turn();
    assert_eq!((ledger.gauges.sockets, ledger.gauges.flows), (11, 11));
}

#[test]
fn exit_that_stops_in_a_crowd_gives_all_buffers_back() {
    let mut bench = Bench::with(Class::L, 7, |settings| settings.caps.sockets = 12);
    for channel in (0..7).rev() {
        (0..3).for_each(|flow| bench.send(channel, flow, address(9)));
    }
    bench.turn();
    let token = [0; 16];
    bench.frame(1, &Frame::Move { flow: 7, token });
    bench.turn();
    // The flow that has moved ends with the channel before its own.
    bench.exit.finish(bench.now);
    let ledger = *bench.exit.endpoint.published.lock().unwrap();
    assert_eq!((ledger.gauges.flows, ledger.gauges.sockets, ledger.gauges.channels), (0, 0, 0));
    assert_eq!((ledger.cells.backward.drops(DropReason::Ended), ledger.buffers.free), (1, ledger.buffers.total));
}

#[test]
fn answering_and_trusted_destinations_have_no_budget() {
    let limits = Limits { unanswered: Some(100), ..Limits::default() };
    let mut bench = Bench::with(Class::L, 1, |settings| {
        settings.limits = limits;
        settings.policy = std::mem::take(&mut settings.policy).trusting(vec!["198.51.100.7:7".parse().unwrap()]);
    });
    bench.send(0, 1, address(9));
    bench.turn();
    let exit = bench.net.receive(address(9)).unwrap().from;
    bench.net.send(Datagram { from: address(9), to: exit, bytes: b"hello".to_vec() });
    bench.turn();
    bench.flood(0, 1, 5000);
    bench.open(0, 2, Address::Ip(address(7)));
    bench.flood(0, 2, 5000);
    bench.open(0, 3, Address::Name("example.org", 7));
    bench.flood(0, 3, 10);
    assert!(bench.commands.push(Command::Resolved { query: QueryId(0), addresses: vec![address(7).ip()] }).is_ok());
    bench.turn();
    bench.flood(0, 3, 4990);
    let ledger = bench.turn().datagrams.forward;
    assert_eq!((ledger.sent, ledger.drops(DropReason::Unanswered)), (15_001, 0));
}

#[test]
fn a_flow_and_an_address_have_their_rates() {
    let rate = |per_s| Some(Rate::per_second(per_s));
    let limits = Limits { flow: rate(100), destination: rate(300), ..Limits::default() };
    let mut bench = Bench::with(Class::L, 1, |settings| settings.limits = limits);
    for flow in 0..4 {
        bench.open(0, flow, Address::Ip(address(9)));
        bench.flood(0, flow, 100);
    }
    // A quarter of a second's at once: 25 of each flow, 75 of the address.
    let ledger = bench.turn().datagrams.forward;
    let drops = [DropReason::FlowRate, DropReason::DestinationRate].map(|why| ledger.drops(why));
    assert_eq!((ledger.sent, drops), (75, [225, 100]));
    bench.now += SECOND / 10;
    (0..4).for_each(|flow| bench.flood(0, flow, 100));
    assert_eq!(bench.turn().datagrams.forward.sent, 105);
}

#[test]
fn a_flood_of_answers_is_capped_and_counted() {
    let limits = Limits { flow: Some(Rate::per_second(400)), ..Limits::default() };
    let mut bench = Bench::with(Class::L, 1, |settings| settings.limits = limits);
    bench.send(0, 1, address(9));
    bench.turn();
    let exit = bench.net.receive(address(9)).unwrap().from;
    for _ in 0..10_000 {
        bench.net.send(Datagram { from: address(9), to: exit, bytes: b"flood".to_vec() });
    }
    let mut came = 0;
    while came < 10_000 {
        came = bench.turn().datagrams.backward.received;
    }
    let ledger = bench.turn().datagrams.backward;
    assert_eq!((ledger.consumed, ledger.drops(DropReason::FlowRate)), (100, 9900));
}

#[test]
fn without_filtering_strangers_come_with_their_address() {
    for filtering in [Filtering::Endpoint, Filtering::None] {
        let mut bench = Bench::with(Class::S, 1, |settings| settings.filtering = filtering);
        bench.send(0, 1, address(9));
        bench.turn();
        let exit = bench.net.receive(address(9)).unwrap().from;
        let inside = SocketAddr::from(([10, 0, 0, 1], 9));
        let come = |from, len| bench.net.send(Datagram { from, to: exit, bytes: vec![7; len] });
        come(address(9), 5);
        come(address(10), 0);
        come(inside, 5);
        // Of a stranger no more than a cell holds beside the address: 208 less 12.
        come(address(10), 196);
        come(address(10), 197);
        let heard = bench.answers();
        let tally = bench.turn().datagrams.backward;
        let drops = [DropReason::Filtered, DropReason::TooLarge].map(|why| tally.drops(why));
        match filtering {
            Filtering::Endpoint => assert_eq!((&heard[..], drops), (&[(1, None)][..], [4, 0])),
            Filtering::None => {
                let stranger = (1, Some(address(10)));
                assert_eq!((&heard[..], drops), (&[(1, None), stranger, stranger][..], [1, 1]));
            }
        }
    }
}

#[test]
fn refused_opens_cost_neither_sockets_nor_flows() {
    let mut bench = Bench::new(Class::L, 2);
    for n in 0..100_000u32 {
        let [_, a, b, c] = n.to_be_bytes();
        bench.send(n % 2, (n % 60_000) as u16, SocketAddr::from(([10, a, b, c], 9)));
        if n % 100 == 99 {
            let refused = bench.statuses().iter().filter(|(_, status)| *status == Status::Refused).count();
            assert_eq!(refused, 100);
            let ledger = bench.turn();
            assert_eq!((ledger.gauges.flows, ledger.gauges.sockets), (0, 0));
            bench.now += SECOND / 50;
        }
    }
    let ledger = bench.turn().datagrams.forward;
    assert_eq!((ledger.sent, ledger.drops(DropReason::Policy) + ledger.drops(DropReason::RefusedFull)), (0, 100_000));
    bench.send(0, 1, address(9));
    bench.turn();
    assert_eq!(bench.delivered(address(9)), 1);
}
