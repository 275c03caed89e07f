use super::*;
use rand::SeedableRng;

const IDLE: Duration = Duration::from_secs(300);

fn clients(channels: &[u32]) -> (Clients, ChaCha20Rng) {
    let mut clients = Clients::new(0);
    channels.iter().for_each(|channel| clients.channel_up(ChannelIndex(*channel)));
    (clients, ChaCha20Rng::seed_from_u64(1))
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn destination(port: u16) -> Destination {
    Destination::Ip(SocketAddr::from(([192, 0, 2, 1], port)))
}

#[test]
fn clients_are_spread_over_channels_and_stay() {
    let (mut clients, mut rng) = clients(&[5, 6, 7, 8]);
    let mut counts: Map<u32, usize> = Map::default();
    for round in 0..2 {
        for port in 0..100 {
            let client = clients.client(0, address(port), IDLE).unwrap().unwrap();
            assert_eq!(client, ClientId(port.into()));
            let flow = clients.flow(client, &destination(1), 0, &mut rng).unwrap();
            if round == 0 {
                *counts.entry(flow.channel.0).or_default() += 1;
            }
        }
    }
    assert!(counts.values().all(|n| *n == 25), "{counts:?}");
    assert_eq!((clients.len(), clients.flows()), (100, 100));
}

#[test]
fn a_lost_channel_moves_known_flows_and_opens_the_others_again() {
    let (mut clients, mut rng) = clients(&[1]);
    let client = clients.client(0, address(1), IDLE).unwrap().unwrap();
    let number = clients.flow(client, &destination(1), 0, &mut rng).unwrap().number;
    clients.status(ChannelIndex(1), number, Status::Open, 0);
    let token = clients.flow(client, &destination(1), 0, &mut rng).unwrap().token;
    assert_eq!(clients.flow(client, &destination(2), 0, &mut rng).unwrap().state, FlowState::Opening);
    clients.channel_down(ChannelIndex(1));
    assert_eq!(clients.client(0, address(1), IDLE), Ok(None));
    clients.channel_up(ChannelIndex(9));
    assert_eq!(clients.client(0, address(1), IDLE), Ok(Some(client)));
    let flow = clients.flow(client, &destination(1), 0, &mut rng).unwrap();
    assert_eq!((flow.channel, flow.token, flow.state), (ChannelIndex(9), token, FlowState::Moving));
    let number = flow.number;
    assert_eq!(clients.flow(client, &destination(2), 0, &mut rng).unwrap().state, FlowState::Opening);
    clients.status(ChannelIndex(9), number, Status::UnknownFlow, 0);
    assert_eq!(clients.flow(client, &destination(1), 0, &mut rng).unwrap().state, FlowState::Opening);
}

#[test]
fn a_flow_that_the_exit_has_closed_is_opened_again() {
    let (mut clients, mut rng) = clients(&[1]);
    let client = clients.client(0, address(1), IDLE).unwrap().unwrap();
    let left = clients.flow(client, &destination(1), 0, &mut rng).unwrap().number;
    clients.channel_up(ChannelIndex(2));
    clients.supersede(ChannelIndex(1), ChannelIndex(2));
    let number = clients.flow(client, &destination(1), 0, &mut rng).unwrap().number;
    clients.status(ChannelIndex(2), number, Status::Open, 0);
    clients.closed(ChannelIndex(1), left);
    let flow = clients.flow(client, &destination(1), 0, &mut rng).unwrap();
    assert_eq!(flow.state, FlowState::Open, "a place that it has left says nothing");
    clients.closed(ChannelIndex(2), number);
    let flow = clients.flow(client, &destination(1), 0, &mut rng).unwrap();
    assert_eq!(flow.state, FlowState::Opening);
    clients.channel_up(ChannelIndex(3));
    clients.supersede(ChannelIndex(2), ChannelIndex(3));
    let flow = clients.flow(client, &destination(1), 0, &mut rng).unwrap();
    assert_eq!(flow.state, FlowState::Opening, "the exit knows no token of it");
}

#[test]
fn a_refused_flow_drops_for_a_while_and_then_asks_again() {
    let (mut clients, mut rng) = clients(&[1]);
    let client = clients.client(0, address(1), IDLE).unwrap().unwrap();
    let number = clients.flow(client, &destination(1), 0, &mut rng).unwrap().number;
    let refused = clients.status(ChannelIndex(1), number, Status::Refused, 10).map(|flow| flow.destination.clone());
    assert_eq!(refused, Some(destination(1)));
    let state = clients.flow(client, &destination(1), 11, &mut rng).unwrap().state;
    assert!(matches!(state, FlowState::Refused { reason: DropReason::Policy, .. }));
    clients.status(ChannelIndex(1), number, Status::UnknownFlow, 12);
    assert_eq!(clients.flow(client, &destination(1), 13, &mut rng).unwrap().state, state);
    let state = clients.flow(client, &destination(1), 10 + RETRY, &mut rng).unwrap().state;
    assert_eq!(state, FlowState::Opening);
}

#[test]
fn answers_find_their_client_on_old_and_new_channel() {
    let (mut clients, mut rng) = clients(&[1]);
    let client = clients.client(3, address(1), IDLE).unwrap().unwrap();
    let old = clients.flow(client, &destination(1), 0, &mut rng).unwrap().number;
    clients.channel_up(ChannelIndex(2));
    clients.supersede(ChannelIndex(1), ChannelIndex(2));
    let new = clients.flow(client, &destination(1), 0, &mut rng).unwrap().number;
    for (channel, number) in [(1, old), (2, new)] {
        let Reply { socket, to, peer, .. } = clients.reply_to(ChannelIndex(channel), number).unwrap();
        assert_eq!((socket, to, &*peer), (3, address(1), &destination(1)));
    }
    assert!(clients.reply_to(ChannelIndex(2), new + 1).is_none());
    assert_eq!(clients.client(3, address(2), IDLE).map(|_| ()), Ok(()));
    let second = clients.client(3, address(2), IDLE).unwrap().unwrap();
    let channel = clients.flow(second, &destination(1), 0, &mut rng).unwrap().channel;
    assert_eq!(channel, ChannelIndex(2), "nobody is bound to a channel about to end");
}

#[test]
fn idle_flows_are_closed_and_their_clients_forgotten() {
    let (mut clients, mut rng) = clients(&[1]);
    for port in 0..10 {
        let client = clients.client(0, address(port), IDLE).unwrap().unwrap();
        clients.flow(client, &destination(1), 0, &mut rng).unwrap();
    }
    let busy = clients.client(0, address(3), IDLE).unwrap().unwrap();
    clients.flow(busy, &destination(1), 200 * SECOND, &mut rng).unwrap();
    let mut closed = 0;
    clients.expire(301 * SECOND, |_, _| closed += 1);
    assert_eq!((closed, clients.len(), clients.flows()), (9, 1, 1));
    clients.expire(502 * SECOND, |_, _| closed += 1);
    assert_eq!((closed, clients.len(), clients.flows()), (10, 0, 0));
}

/// Everything idle goes, and nothing is left of it.
fn assert_empties(clients: &mut Clients, now: Nanos) {
    clients.expire(now + 301 * SECOND, |_, _| ());
    assert_eq!((clients.len(), clients.flows(), clients.wheel.timers()), (0, 0, 0));
    assert_eq!(
        (clients.vacant_clients.len(), clients.vacant_flows.len()),
        (clients.clients.len(), clients.flows.len())
    );
    assert!(clients.channels.values().all(|channel| channel.clients == 0 && channel.flows.is_empty()));
}

#[test]
fn clients_are_bounded() {
    let (mut clients, mut rng) = clients(&[1, 2]);
    let add = |clients: &mut Clients, rng: &mut ChaCha20Rng, socket, port| {
        let client = clients.client(socket, address(port), IDLE)?.expect("a channel is up");
        clients.flow(client, &destination(1), 0, rng).map(|_| ())
    };
    for port in 0..=u16::MAX {
        assert_eq!(add(&mut clients, &mut rng, 0, port), Ok(()));
    }
    assert_eq!(clients.len(), CLIENTS_MAX);
    assert_eq!(add(&mut clients, &mut rng, 1, 1), Err(DropReason::ClientsFull));
    assert_eq!(add(&mut clients, &mut rng, 0, 1), Ok(()), "who is there stays");
    assert_empties(&mut clients, 0);
    assert_eq!(add(&mut clients, &mut rng, 1, 1), Ok(()));
}

#[test]
fn flows_are_bounded_and_a_client_that_gets_none_is_forgotten() {
    let (mut clients, mut rng) = clients(&[1, 2, 3]);
    for port in 0..3 {
        let client = clients.client(0, address(port), IDLE).unwrap().unwrap();
        let flows = if port < 2 { 60_000 } else { FLOWS_MAX - 120_000 };
        for n in 0..flows {
            let to = Destination::Ip(SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 1)));
            assert!(clients.flow(client, &to, 0, &mut rng).is_ok());
        }
    }
    assert_eq!(clients.flows(), FLOWS_MAX);
    let late = clients.client(0, address(9), IDLE).unwrap().unwrap();
    assert_eq!(clients.flow(late, &destination(1), 0, &mut rng).err(), Some(DropReason::FlowsFull));
    assert_eq!(clients.len(), 3);
    let next = ClientId(late.0 + 1);
    assert_eq!(clients.client(0, address(9), IDLE).unwrap(), Some(next), "its number rests");
    assert_eq!(clients.flow(next, &destination(1), 0, &mut rng).err(), Some(DropReason::FlowsFull));
    assert_empties(&mut clients, 0);
    let again = clients.client(0, address(9), IDLE).unwrap().unwrap();
    assert!(clients.flow(again, &destination(1), 0, &mut rng).is_ok());
}

#[test]
fn refusal_of_new_flows_leaves_others_as_they_are() {
    let (mut clients, mut rng) = clients(&[1]);
    let old = clients.client(0, address(1), IDLE).unwrap().unwrap();
    assert!(clients.flow(old, &destination(1), 0, &mut rng).is_ok());
    clients.refuse_new(true);
    assert!(clients.flow(old, &destination(1), 0, &mut rng).is_ok());
    assert_eq!(clients.flow(old, &destination(2), 0, &mut rng).err(), Some(DropReason::Alarm));
    let new = clients.client(0, address(2), IDLE).unwrap().unwrap();
    assert_eq!(clients.flow(new, &destination(1), 0, &mut rng).err(), Some(DropReason::Alarm));
    assert_eq!((clients.len(), clients.flows()), (1, 1), "who got no flow is forgotten");
    clients.refuse_new(false);
    assert!(clients.flow(old, &destination(2), 0, &mut rng).is_ok());
}

#[test]
fn flow_numbers_are_bounded_and_a_flow_without_one_reopens() {
    let (mut clients, mut rng) = clients(&[1]);
    let to = |n: usize| Destination::Ip(SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 1)));
    let client = clients.client(0, address(1), IDLE).unwrap().unwrap();
    for n in 0..=usize::from(u16::MAX) {
        assert!(clients.flow(client, &to(n), 0, &mut rng).is_ok());
    }
    assert_eq!(clients.flow(client, &to(70_000), 0, &mut rng).err(), None, "it is one that exists");
    assert_eq!(clients.flow(client, &destination(1), 0, &mut rng).err(), Some(DropReason::NumbersFull));
    let other = clients.client(0, address(2), IDLE).unwrap().unwrap();
    assert_eq!(clients.flow(other, &destination(1), 0, &mut rng).err(), Some(DropReason::NumbersFull));
    assert_eq!(clients.len(), 1, "a client without a flow is forgotten");
    // Another client fills part of the next channel, to which the first then moves.
    clients.channel_up(ChannelIndex(2));
    let other = clients.client(0, address(3), IDLE).unwrap().unwrap();
    for n in 0..1000 {
        assert_eq!(clients.flow(other, &to(n), 0, &mut rng).unwrap().channel, ChannelIndex(2));
    }
    clients.supersede(ChannelIndex(1), ChannelIndex(2));
    clients.channel_down(ChannelIndex(1));
    assert_eq!(clients.flows(), 1 << 16, "a thousand found no number");
    let flows: Vec<&Flow> = clients.flows.iter().flatten().collect();
    assert!(flows.iter().all(|flow| flow.channel == ChannelIndex(2)), "and none is left on a channel that is gone");
    assert_eq!(flows.len(), flows_of(&mut clients.clients, client).len() + 1000);
    let lost = to(usize::from(u16::MAX));
    assert_eq!(clients.flow(client, &lost, 0, &mut rng).err(), Some(DropReason::NumbersFull));
    assert_empties(&mut clients, 0);
}

#[test]
fn a_client_none_of_whose_flows_finds_a_number_is_forgotten() {
    let (mut clients, mut rng) = clients(&[2]);
    let full = clients.client(0, address(1), IDLE).unwrap().unwrap();
    for n in 0..=usize::from(u16::MAX) {
        let to = Destination::Ip(SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 1)));
        assert!(clients.flow(full, &to, 0, &mut rng).is_ok());
    }
    clients.channel_up(ChannelIndex(1));
    let client = clients.client(0, address(2), IDLE).unwrap().unwrap();
    assert_eq!(clients.flow(client, &destination(1), 0, &mut rng).unwrap().channel, ChannelIndex(1));
    clients.supersede(ChannelIndex(1), ChannelIndex(2));
    clients.channel_down(ChannelIndex(1));
    assert_eq!((clients.len(), clients.flows()), (1, 1 << 16));
    assert_empties(&mut clients, 0);
}

#[test]
fn every_flow_has_a_token_of_its_own_drawn_from_the_generator() {
    let (mut clients, mut rng) = clients(&[1]);
    let client = clients.client(0, address(1), IDLE).unwrap().unwrap();
    let mut tokens = std::collections::HashSet::new();
    for port in 0..1000 {
        let mut same = rng.clone();
        let token = clients.flow(client, &destination(port), 0, &mut rng).unwrap().token;
        let mut drawn = [0; 16];
        same.fill_bytes(&mut drawn);
        assert_eq!(token, drawn);
        assert!(tokens.insert(token));
    }
}

#[test]
fn a_closed_listener_takes_its_clients_and_their_flows_along() {
    let (mut clients, mut rng) = clients(&[1]);
    let mut numbers = Vec::new();
    for (socket, port) in [(3, 1), (3, 2), (4, 1)] {
        let client = clients.client(socket, address(port), IDLE).unwrap().unwrap();
        for to in [1, 2] {
            numbers.push((socket, clients.flow(client, &destination(to), 0, &mut rng).unwrap().number));
        }
    }
    let mut closed = Vec::new();
    clients.forget(3, |channel, number| closed.push((channel, number)));
    closed.sort_unstable();
    let mut gone: Vec<_> =
        numbers.iter().filter(|(socket, _)| *socket == 3).map(|(_, number)| (ChannelIndex(1), *number)).collect();
    gone.sort_unstable();
    assert_eq!(closed, gone);
    assert_eq!((clients.len(), clients.flows()), (1, 2));
    assert!(gone.iter().all(|(channel, number)| clients.reply_to(*channel, *number).is_none()));
    clients.forget(3, |_, _| panic!("nobody is left there"));
    assert_empties(&mut clients, 0);
}

#[test]
fn each_listener_has_its_own_patience() {
    let (mut clients, mut rng) = clients(&[1]);
    for (socket, idle) in [(0, 30), (1, 600)] {
        let client = clients.client(socket, address(1), Duration::from_secs(idle)).unwrap().unwrap();
        clients.flow(client, &destination(1), 0, &mut rng).unwrap();
    }
    clients.expire(29 * SECOND, |_, _| panic!("too early"));
    let mut closed = 0;
    clients.expire(32 * SECOND, |_, _| closed += 1);
    assert_eq!((closed, clients.len()), (1, 1));
    clients.expire(599 * SECOND, |_, _| panic!("too early"));
    clients.expire(602 * SECOND, |_, _| closed += 1);
    assert_eq!((closed, clients.len()), (2, 0));
}

#[test]
fn name_is_open_once_its_peer_is_known() {
    let (mut clients, mut rng) = clients(&[1]);
    let client = clients.client(0, address(1), IDLE).unwrap().unwrap();
    let name = Destination::Name("a.example".into(), 53);
    let number = clients.flow(client, &name, 0, &mut rng).unwrap().number;
    assert_eq!(*clients.reply_to(ChannelIndex(1), number).unwrap().peer, name);
    // STATUS came and PEER was lost: it is asked for again.
    clients.status(ChannelIndex(1), number, Status::Open, 0);
    assert_eq!(clients.flow(client, &name, 0, &mut rng).unwrap().state, FlowState::Opening);
    let peer = SocketAddr::from(([192, 0, 2, 9], 53));
    clients.resolved((ChannelIndex(1), number), 1, peer);
    clients.status(ChannelIndex(1), number, Status::Open, 0);
    assert_eq!(clients.flow(client, &name, 0, &mut rng).unwrap().state, FlowState::Open);
    assert_eq!(*clients.reply_to(ChannelIndex(1), number).unwrap().peer, Destination::Ip(peer));
    let number = clients.flow(client, &destination(1), 0, &mut rng).unwrap().number;
    clients.resolved((ChannelIndex(1), number), 2, peer);
    assert_eq!(*clients.reply_to(ChannelIndex(1), number).unwrap().peer, destination(1), "an address is its own");
}

#[test]
fn flow_that_the_exit_has_lost_asks_for_its_peer_again() {
    let (mut clients, mut rng) = clients(&[1]);
    let client = clients.client(0, address(1), IDLE).unwrap().unwrap();
    let name = Destination::Name("a.example".into(), 53);
    let place = (ChannelIndex(1), clients.flow(client, &name, 0, &mut rng).unwrap().number);
    let host = |last| SocketAddr::from(([192, 0, 2, last], 53));
    let state = |clients: &mut Clients, rng: &mut _| clients.flow(client, &name, 0, rng).unwrap().state;
    clients.resolved(place, 1, host(1));
    clients.status(place.0, place.1, Status::Open, 0);
    for lose in [0, 1] {
        match lose {
            0 => clients.closed(place.0, place.1),
            _ => drop(clients.status(place.0, place.1, Status::UnknownFlow, 0)),
        }
        assert_eq!(*clients.reply_to(place.0, place.1).unwrap().peer, name);
        // The PEER in front of this STATUS was lost, and the name may have another address now.
        clients.status(place.0, place.1, Status::Open, 0);
        assert_eq!(state(&mut clients, &mut rng), FlowState::Opening);
        clients.resolved(place, 2, host(2));
        clients.status(place.0, place.1, Status::Open, 0);
        assert_eq!(state(&mut clients, &mut rng), FlowState::Open);
        assert_eq!(*clients.reply_to(place.0, place.1).unwrap().peer, Destination::Ip(host(2)));
    }
}

#[test]
fn later_peer_wins_in_whatever_order_cells_arrive() {
    let (mut clients, mut rng) = clients(&[1]);
    let client = clients.client(0, address(1), IDLE).unwrap().unwrap();
    let name = Destination::Name("a.example".into(), 53);
    let number = clients.flow(client, &name, 0, &mut rng).unwrap().number;
    let place = (ChannelIndex(1), number);
    let host = |last| SocketAddr::from(([192, 0, 2, last], 53));
    let peer = |clients: &mut Clients| clients.reply_to(place.0, place.1).unwrap().peer.into_owned();

    // Both in one cell: the second counts.
    clients.resolved(place, 5, host(1));
    clients.resolved(place, 5, host(2));
    assert_eq!(peer(&mut clients), Destination::Ip(host(2)));
    clients.resolved(place, 9, host(4));
    assert_eq!(peer(&mut clients), Destination::Ip(host(4)));
    clients.resolved(place, 8, host(3));
    assert_eq!(peer(&mut clients), Destination::Ip(host(4)), "an earlier cell that arrives late undoes nothing");

    // The numbers of another channel start anywhere; the place that the flow has left no longer counts.
    clients.channel_up(ChannelIndex(2));
    clients.supersede(ChannelIndex(1), ChannelIndex(2));
    let number = clients.flow(client, &name, 0, &mut rng).unwrap().number;
    clients.resolved(place, 10, host(5));
    assert_eq!(peer(&mut clients), Destination::Ip(host(4)));
    clients.resolved((ChannelIndex(2), number), 1, host(6));
    assert_eq!(peer(&mut clients), Destination::Ip(host(6)));
}
