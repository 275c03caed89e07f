//! Names with several addresses: a flow moves on from one that is unreachable, and no name makes the exit a scanner.

use std::collections::HashMap;

use super::*;
use proptest::prelude::*;
use std::net::IpAddr;

use crate::exit::flows::Target;

/// The channel of all flows.
const CHANNEL: u32 = 0;

/// An address of the network that the exit may send to.
fn host(last: u8) -> IpAddr {
    [198, 51, 100, last].into()
}

fn at(last: u8) -> SocketAddr {
    SocketAddr::new(host(last), 53)
}

impl Bench {
    /// The system reports an address unreachable at every send, or no longer.
    fn refuses(&self, last: u8, refuses: bool) {
        self.net.fail_send(at(last), refuses.then_some(libc::ECONNREFUSED));
    }

    fn open_name(&mut self, flow: u16) {
        self.open(CHANNEL, flow, Address::Name("several.test", 53));
    }

    fn resolved(&mut self, query: QueryId, addresses: Vec<IpAddr>) {
        let Exit { endpoint, gateway, .. } = &mut self.exit;
        gateway.resolved(&mut context(endpoint, self.now), query, &addresses);
    }

    fn datagram(&mut self, flow: u16, data: &[u8]) {
        self.frame(CHANNEL, &Frame::Dgram { flow, data });
    }

    /// The middle of a turn: what is due is sent, and errors are read. What the entry hears: peers and statuses.
    fn hear(&mut self) -> Vec<String> {
        self.exit.send_datagrams();
        self.exit.receive_apps(self.now);
        self.exit.move_on(self.now);
        self.said(|frame| match *frame {
            Frame::Peer { from, .. } => Some(format!("peer {from}")),
            Frame::Status { code, .. } => Some(format!("{code:?}")),
            _ => None,
        })
    }

    /// Datagrams that have arrived at an address.
    fn arrived(&self, last: u8) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.net.receive(at(last))).map(|datagram: Datagram| datagram.bytes).collect()
    }
}

#[test]
fn flow_moves_on_from_an_unreachable_address() {
    let mut bench = Bench::new(Class::S, 1);
    bench.refuses(1, true);
    bench.open_name(7);
    (0..6).for_each(|n| bench.datagram(7, &[n]));
    bench.resolved(QueryId(0), vec![host(1), host(2)]);
    assert_eq!(bench.hear(), ["peer 198.51.100.1:53", "Open", "peer 198.51.100.2:53", "Open"]);
    let ledger = bench.turn().datagrams.forward;
    assert_eq!(bench.arrived(2), [2, 3, 4, 5].map(|n| vec![n]), "the latest four again");
    assert_eq!((ledger.injected, ledger.sent, ledger.drops(DropReason::Unreachable)), (10, 4, 6));
    bench.datagram(7, b"on");
    bench.turn();
    assert_eq!(bench.arrived(2), [b"on"]);
    // The last address is refused, too: reported as for any flow.
    bench.refuses(2, true);
    bench.datagram(7, b"x");
    assert_eq!(bench.hear(), ["Unreachable"]);
}

#[test]
fn moved_flow_repeats_its_peer_before_answers() {
    let mut bench = Bench::new(Class::S, 1);
    bench.refuses(1, true);
    bench.open_name(7);
    bench.datagram(7, b"x");
    bench.resolved(QueryId(0), vec![host(1), host(2)]);
    bench.hear();
    // The datagram that was sent again leaves.
    bench.turn();
    let question: Datagram = bench.net.receive(at(2)).unwrap();

    let answer = |bench: &Bench| bench.net.send(Datagram { from: at(2), to: question.from, bytes: b"y".to_vec() });
    let repeated = ["peer 198.51.100.2:53"];
    answer(&bench);
    assert_eq!(bench.hear(), repeated);
    answer(&bench);
    assert_eq!(bench.hear(), [""; 0], "once a second");
    bench.now += SECOND;
    assert_eq!(bench.hear(), [""; 0], "only with an answer");
    answer(&bench);
    assert_eq!(bench.hear(), repeated);
}

#[test]
fn address_that_has_answered_is_kept() {
    let mut bench = Bench::new(Class::S, 1);
    bench.open_name(7);
    bench.resolved(QueryId(0), vec![host(1), host(2)]);
    bench.datagram(7, b"x");
    bench.turn();
    let question: Datagram = bench.net.receive(at(1)).unwrap();
    bench.net.send(Datagram { from: at(1), to: question.from, bytes: b"y".to_vec() });
    bench.turn();
    bench.refuses(1, true);
    bench.datagram(7, b"x");
    assert_eq!(bench.hear(), ["Unreachable"]);
    bench.turn();
    assert_eq!(bench.arrived(2), Vec::<Vec<u8>>::new());
    assert_eq!(bench.exit.gateway.flows.fallbacks.kept(), 0);
}

#[test]
fn datagrams_older_than_a_second_are_not_sent_again() {
    let mut bench = Bench::new(Class::S, 1);
    bench.open_name(7);
    bench.resolved(QueryId(0), vec![host(1), host(2)]);
    bench.datagram(7, b"old");
    bench.turn();
    bench.now += SECOND + 1;
    bench.refuses(1, true);
    bench.datagram(7, b"new");
    bench.hear();
    bench.turn();
    assert_eq!(bench.arrived(2), [b"new"]);
}

#[test]
fn datagram_is_as_old_after_a_move_as_before() {
    let mut bench = Bench::new(Class::S, 1);
    bench.open_name(7);
    bench.resolved(QueryId(0), vec![host(1), host(2), host(3)]);
    bench.datagram(7, b"first");
    bench.turn();
    for (last, data) in [(1, b"second"), (2, b"third!")] {
        bench.now += SECOND / 10 * 9;
        bench.refuses(last, true);
        bench.datagram(7, data);
        bench.hear();
        bench.turn();
    }
    assert_eq!(bench.arrived(2), [&b"first"[..], b"second"]);
    assert_eq!(bench.arrived(3), [b"second", b"third!"]);
}

#[test]
fn error_long_after_a_datagram_moves_no_flow() {
    let mut bench = Bench::new(Class::S, 1);
    bench.open_name(7);
    bench.resolved(QueryId(0), vec![host(1), host(2)]);
    bench.datagram(7, b"x");
    bench.turn();
    let (_, flow) = bench.exit.gateway.flows.at(ChannelIndex(CHANNEL), 7).unwrap();
    let Target::Peer { socket, to } = flow.target else { panic!("it has a peer") };
    bench.now += SECOND + 1;
    bench.exit.gateway.unreachable.push((socket, to));
    assert_eq!(bench.hear(), ["Unreachable"]);
    bench.datagram(7, b"y");
    bench.turn();
    bench.exit.gateway.unreachable.push((socket, to));
    assert_eq!(bench.hear(), ["peer 198.51.100.2:53", "Open"]);
}

#[test]
fn flow_tries_four_addresses_at_most() {
    let mut bench = Bench::new(Class::S, 1);
    (1..=6).for_each(|last| bench.refuses(last, true));
    bench.open_name(7);
    // Repeated addresses and those that the policy refuses are not tried.
    let inside: IpAddr = [10, 0, 0, 1].into();
    let addresses = [inside, host(1), host(1), host(2), inside, host(3), host(4), host(5), host(6)];
    bench.resolved(QueryId(0), addresses.to_vec());
    let mut heard = Vec::new();
    for _ in 0..8 {
        bench.datagram(7, b"x");
        heard.extend(bench.hear());
    }
    let peers: Vec<_> = heard.iter().filter(|said| said.starts_with("peer")).collect();
    assert_eq!(peers, [1, 2, 3, 4].map(|last| format!("peer {}", at(last))).iter().collect::<Vec<_>>());
    assert_eq!(heard.iter().filter(|said| *said == "Unreachable").count(), 1, "once a second");
    bench.turn();
}

#[test]
fn name_with_private_addresses_sends_nothing() {
    let mut bench = Bench::new(Class::S, 1);
    bench.open_name(7);
    bench.datagram(7, b"x");
    let inside = [[10, 0, 0, 1], [127, 0, 0, 1], [192, 168, 0, 1], [169, 254, 0, 1]].map(IpAddr::from);
    bench.resolved(QueryId(0), inside.to_vec());
    assert_eq!(bench.hear(), ["Refused"]);
    let ledger = bench.turn().datagrams.forward;
    assert_eq!((ledger.sent, ledger.drops(DropReason::Policy)), (0, 1));
    assert_eq!(bench.net.waiting(), 0);
}

#[test]
fn name_is_not_a_scanner() {
    let limits = Limits { unanswered: Some(3), ..Limits::default() };
    let mut bench = Bench::with(Class::S, 1, |settings| settings.limits = limits);
    let (mut moved, mut turns) = (0, 0);
    for flow in 0..200 {
        // Each name has four addresses of its own subnet's few hosts, and all refuse.
        let hosts: Vec<u8> = (0..4).map(|i| 1 + ((flow * 4 + i) % 16) as u8).collect();
        hosts.iter().for_each(|last| bench.refuses(*last, true));
        bench.open_name(flow);
        if bench.exit.gateway.flows.at(ChannelIndex(CHANNEL), flow).is_none() {
            break;
        }
        bench.resolved(QueryId(flow.into()), hosts.into_iter().map(host).collect());
        for _ in 0..8 {
            bench.datagram(flow, b"x");
            let heard = bench.hear();
            moved += heard.iter().filter(|said| said.starts_with("peer")).count();
        }
        turns += 1;
    }
    // Every address that is tried takes a token as an OPEN does.
    assert!(turns <= 64 && (64..=64 + turns).contains(&moved), "{moved} addresses of {turns} names");
    // And none has got more than an address gets, over all names and attempts.
    let ledger = bench.turn().datagrams.forward;
    // Some may share places of the channel, and get less.
    assert!((12 * 3..=16 * 3).contains(&ledger.drops(DropReason::Unreachable)), "{ledger:?}");
}

#[test]
fn trust_is_judged_for_each_address() {
    let limits = Limits { unanswered: Some(2), ..Limits::default() };
    let mut bench = Bench::with(Class::S, 1, |settings| {
        let allow = vec!["198.51.100.0/24".parse().unwrap()];
        let trust = vec!["198.51.100.1/32".parse().unwrap()];
        settings.limits = limits;
        settings.policy = Policy::new(allow, Vec::new(), Vec::new()).trusting(trust);
    });
    bench.refuses(1, true);
    bench.open_name(7);
    bench.resolved(QueryId(0), vec![host(1), host(2)]);
    bench.datagram(7, b"x");
    bench.hear();
    (0..10).for_each(|_| bench.datagram(7, b"x"));
    let ledger = bench.turn().datagrams.forward;
    // One of the two, and the rest of the channel's first three.
    assert_eq!(bench.arrived(2).len(), 3);
    assert_eq!(ledger.drops(DropReason::Unanswered), 8);
}

/// What may happen to an exit whose flows lead to names.
#[derive(Clone, Debug)]
enum Step {
    Open(u16),
    Resolve(Vec<u8>),
    Send(u16, u8),
    /// An address refuses from now on, or does not.
    Refuses(u8, bool),
    /// An address answers everything that it has received.
    Answers(u8),
    Close(u16),
    Turn(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0u16..4).prop_map(Step::Open),
        3 => prop::collection::vec(0u8..6, 0..6).prop_map(Step::Resolve),
        8 => (0u16..4, any::<u8>()).prop_map(|(flow, data)| Step::Send(flow, data)),
        3 => (0u8..6, any::<bool>()).prop_map(|(last, refuses)| Step::Refuses(last, refuses)),
        1 => (0u8..6).prop_map(Step::Answers),
        1 => (0u16..4).prop_map(Step::Close),
        4 => (0u64..2000).prop_map(Step::Turn),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// At every turn the sum of the ledger closes, what is counted as sent has arrived, and copies are bounded.
    #[test]
    fn ledger_closes_whatever_addresses_do(steps in prop::collection::vec(step(), 1..80)) {
        let mut bench = Bench::new(Class::S, 1);
        let mut queries: HashMap<u16, QueryId> = HashMap::new();
        let (mut asked, mut arrived) = (0, 0);
        for step in steps {
            match step {
                Step::Open(flow) => {
                    let before = bench.exit.gateway.flows.len();
                    bench.open_name(flow);
                    if bench.exit.gateway.flows.len() > before {
                        queries.insert(flow, QueryId(asked));
                        asked += 1;
                    }
                }
                Step::Resolve(hosts) => {
                    if let Some(flow) = queries.keys().next().copied() {
                        let query = queries.remove(&flow).unwrap();
                        bench.resolved(query, hosts.into_iter().map(host).collect());
                    }
                }
                Step::Send(flow, data) => bench.datagram(flow, &[data]),
                Step::Refuses(last, refuses) => bench.refuses(last, refuses),
                Step::Answers(last) => {
                    while let Some(Datagram { from, .. }) = bench.net.receive(at(last)) {
                        arrived += 1;
                        bench.net.send(Datagram { from: at(last), to: from, bytes: b"answer".to_vec() });
                    }
                }
                Step::Close(flow) => bench.frame(CHANNEL, &Frame::Close { flow }),
                Step::Turn(ms) => {
                    bench.now += ms * SECOND / 1000;
                    bench.turn();
                    prop_assert!(bench.exit.gateway.flows.fallbacks.kept() <= 4 * 4);
                }
            }
        }
        // What was sent again in the last turn leaves in the next.
        bench.turn();
        let ledger = bench.turn().datagrams.forward;
        arrived += (0..6).map(|last| bench.arrived(last).len() as u64).sum::<u64>();
        prop_assert_eq!(ledger.sent, arrived);
        for flow in 0..4 {
            bench.frame(CHANNEL, &Frame::Close { flow });
        }
        prop_assert_eq!(bench.exit.gateway.flows.fallbacks.kept(), 0);
        prop_assert_eq!(bench.turn().datagrams.forward.held, 0);
    }
}
