//! Those who would use an exit against others: floods, reflection, and destinations that are nobody's business.

use super::*;
use crate::rate::Rate;

impl Bench {
    /// Datagrams of an open flow, each followed by what is due.
    fn flood(&mut self, channel: u32, flow: u16, count: usize) {
        (0..count).for_each(|_| self.frame(channel, &Frame::Dgram { flow, data: b"x" }));
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
    assert_eq!((ledger.sent, ledger.drops(DropReason::Unanswered)), (100, 900));
    // Closing flows gives nothing back.
    bench.frame(0, &Frame::Close { flow: 0 });
    bench.open(0, 20, Address::Ip(address(3000)));
    bench.flood(0, 20, 10);
    assert_eq!(bench.turn().datagrams.forward.drops(DropReason::Unanswered), 910);
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
    let limits = Limits { unanswered: None, flow: rate(100), destination: rate(300) };
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
