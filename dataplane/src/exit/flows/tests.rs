use super::idlers::YIELDS_AFTER;
use super::*;
use crate::exit::mappings::Held;
use crate::exit::names::WAITING_PER_FLOW;
use crate::exit::quota::{FEW, Opens};
use crate::ledger::Tally;
use crate::runner::Poller;
use crate::socket::app_batch::SendBatch;
use crate::socket::apps::UdpApps;
use crate::socket::memory::{MemApps, MemNet};
use crate::socket::offload::Offloads;
use std::time::Duration;

fn exit() -> (Flows, MemApps) {
    let caps = Caps { flows_per_channel: 3, sockets: 4 };
    let apps = MemApps::new(MemNet::default(), Vec::new(), [192, 0, 2, 1].into());
    (Flows::new(caps, Duration::from_secs(300), 0), apps)
}

fn peer(port: u16) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 1], port))
}

fn socket(flows: &mut Flows, channel: u32, number: u16) -> SocketId {
    match flows.at(ChannelIndex(channel), number).unwrap().1.target {
        Target::Peer { socket, .. } => socket,
        Target::Resolving { .. } | Target::Unconnected => panic!("no socket yet"),
    }
}

#[test]
fn a_client_keeps_one_port_towards_all_its_peers() {
    let (mut flows, mut apps) = exit();
    for number in 0..3 {
        assert_eq!(flows.open(&mut apps, (ChannelIndex(1), number), 7, [number as u8; 16], peer(number), 0), Ok(()));
    }
    assert_eq!(flows.open(&mut apps, (ChannelIndex(2), 0), 7, [9; 16], peer(0), 0), Ok(()));
    let sockets: Vec<_> = (0..3).map(|n| socket(&mut flows, 1, n)).collect();
    assert!(sockets.iter().all(|s| *s == sockets[0]));
    assert_ne!(socket(&mut flows, 2, 0), sockets[0], "maps of two channels are two clients");
    assert_eq!(flows.talking_to(sockets[0], peer(2)).unwrap().1.number, 2);
    assert!(flows.talking_to(sockets[0], peer(3)).is_none(), "nobody talks to that peer");
    assert_eq!(flows.open(&mut apps, (ChannelIndex(1), 9), 7, [8; 16], peer(9), 0), Err(DropReason::ChannelFlowsFull));
}

#[test]
fn moved_flow_keeps_its_socket_and_shares_it_with_new_flows() {
    let (mut flows, mut apps) = exit();
    flows.open(&mut apps, (ChannelIndex(1), 0), 7, [1; 16], peer(1), 0).unwrap();
    flows.open(&mut apps, (ChannelIndex(1), 1), 7, [2; 16], peer(2), 0).unwrap();
    let before = socket(&mut flows, 1, 0);
    assert_eq!(flows.relocate(ChannelIndex(5), 40, &[1; 16], 0), Ok(()));
    assert_eq!(flows.relocate(ChannelIndex(5), 40, &[1; 16], 0), Ok(()), "MOVE is repeated");
    assert_eq!(flows.relocate(ChannelIndex(5), 41, &[2; 16], 0), Ok(()));
    assert_eq!(flows.relocate(ChannelIndex(5), 42, &[3; 16], 0), Err(DropReason::Flow));
    let at = |flows: &mut Flows| flows.at_or_was(ChannelIndex(1), 0).map(|(_, flow)| (flow.channel, flow.number));
    assert_eq!(at(&mut flows), Some((ChannelIndex(5), 40)), "what was under way still arrives");
    assert!(flows.at(ChannelIndex(1), 0).is_none());
    flows.forget_aliases(MOVED);
    assert_eq!(at(&mut flows), None);
    flows.open(&mut apps, (ChannelIndex(5), 42), 7, [3; 16], peer(3), 0).unwrap();
    assert!((40..43).all(|n| socket(&mut flows, 5, n) == before));
    assert_eq!(flows.close_channel(&mut apps, ChannelIndex(1)), 0);
    assert_eq!((flows.len(), flows.sockets()), (3, 1), "nothing of the old channel is left");
    flows.close_channel(&mut apps, ChannelIndex(5));
    assert_eq!((flows.len(), flows.sockets()), (0, 0));
}

#[test]
fn idle_flows_end_and_the_last_one_takes_the_socket_along() {
    let (mut flows, mut apps) = exit();
    flows.open(&mut apps, (ChannelIndex(1), 0), 7, [1; 16], peer(1), 0).unwrap();
    flows.open(&mut apps, (ChannelIndex(1), 1), 7, [2; 16], peer(2), 0).unwrap();
    let (id, _) = flows.at(ChannelIndex(1), 1).unwrap();
    flows.touch(id, 100 * SECOND);
    let mut closed = Vec::new();
    flows.expire(&mut apps, 301 * SECOND, usize::MAX, |channel, number| closed.push((channel, number)));
    assert_eq!((&closed[..], flows.sockets()), (&[(ChannelIndex(1), 0)][..], 1));
    flows.expire(&mut apps, 402 * SECOND, usize::MAX, |channel, number| closed.push((channel, number)));
    assert_eq!((closed.len(), flows.sockets()), (2, 0));
}

#[test]
fn sockets_are_bounded_and_a_refused_flow_leaves_nothing() {
    let (mut flows, mut apps) = exit();
    // The last one is for a channel that has none.
    for channel in 0..4 {
        assert_eq!(flows.open(&mut apps, (ChannelIndex(channel), 0), 1, [channel as u8; 16], peer(1), 0), Ok(()));
    }
    assert_eq!(flows.open(&mut apps, (ChannelIndex(4), 0), 1, [9; 16], peer(1), 0), Err(DropReason::SocketsFull));
    assert_eq!((flows.len(), flows.sockets()), (4, 4));
    assert_eq!(flows.relocate(ChannelIndex(0), 5, &[9; 16], 0), Err(DropReason::Flow));
}

#[test]
fn nothing_of_an_ended_channel_is_found_under_its_index() {
    let (mut flows, mut apps) = exit();
    // One client with two flows; one moves to channel 9 and ends there, the other stays alive.
    flows.open(&mut apps, (ChannelIndex(7), 0), 0, [1; 16], peer(1), 0).unwrap();
    flows.open(&mut apps, (ChannelIndex(7), 1), 0, [2; 16], peer(2), 0).unwrap();
    assert_eq!(flows.relocate(ChannelIndex(9), 0, &[1; 16], 0), Ok(()));
    flows.close_number(&mut apps, ChannelIndex(9), 0);
    flows.close_channel(&mut apps, ChannelIndex(9));
    // Index 9 is another entry's now, whose first client has map 0 too.
    flows.open(&mut apps, (ChannelIndex(9), 0), 0, [3; 16], peer(3), 0).unwrap();
    assert_ne!(socket(&mut flows, 7, 1), socket(&mut flows, 9, 0));
    // A flow leaves channel 7, which ends: its old number leads nowhere.
    assert_eq!(flows.relocate(ChannelIndex(8), 0, &[2; 16], 0), Ok(()));
    assert!(flows.at_or_was(ChannelIndex(7), 1).is_some());
    flows.close_channel(&mut apps, ChannelIndex(7));
    assert!(flows.at_or_was(ChannelIndex(7), 1).is_none());
}

#[test]
fn a_flow_that_moves_for_ever_leaves_one_alias_behind() {
    let (mut flows, mut apps) = exit();
    flows.open(&mut apps, (ChannelIndex(7), 0), 0, [1; 16], peer(1), 0).unwrap();
    for number in 1..1000 {
        assert_eq!(flows.relocate(ChannelIndex(7), number, &[1; 16], 0), Ok(()));
        assert!(flows.at_or_was(ChannelIndex(7), number - 1).is_some());
    }
    assert_eq!(flows.aliases.len(), 1);
    // A new flow takes the old place.
    flows.open(&mut apps, (ChannelIndex(7), 998), 0, [2; 16], peer(2), 0).unwrap();
    assert_eq!(flows.aliases.len(), 0);
    assert_eq!(flows.at_or_was(ChannelIndex(7), 998).unwrap().1.token, [2; 16]);
}

/// A flow's old place is forgotten, and another flow leaves the same place: the first one keeps no hold of it.
#[test]
fn flow_that_ends_or_moves_leaves_others_their_old_places() {
    for (first_moves, closes_channel) in [(false, false), (true, false), (false, true), (true, true)] {
        let (mut flows, mut apps) = exit();
        flows.open(&mut apps, (ChannelIndex(1), 0), 0, [1; 16], peer(1), 0).unwrap();
        flows.relocate(ChannelIndex(2), 0, &[1; 16], 0).unwrap();
        if closes_channel {
            flows.close_channel(&mut apps, ChannelIndex(1));
        } else {
            flows.forget_aliases(MOVED);
        }
        flows.open(&mut apps, (ChannelIndex(1), 0), 0, [2; 16], peer(2), MOVED).unwrap();
        flows.relocate(ChannelIndex(2), 1, &[2; 16], MOVED).unwrap();
        if first_moves {
            flows.relocate(ChannelIndex(2), 2, &[1; 16], MOVED).unwrap();
        } else {
            flows.close_number(&mut apps, ChannelIndex(2), 0);
        }
        let number = flows.at_or_was(ChannelIndex(1), 0).map(|(_, flow)| flow.number);
        assert_eq!(number, Some(1), "what is under way to the second one still arrives");
        (1..3).for_each(|channel| _ = flows.close_channel(&mut apps, ChannelIndex(channel)));
        assert_empty(&mut flows, &mut apps);
    }
}

#[test]
fn flows_that_come_and_go_leave_no_timers_behind() {
    let (mut flows, mut apps) = exit();
    flows.open(&mut apps, (ChannelIndex(7), 9), 0, [9; 16], peer(9), 0).unwrap();
    for round in 0..3u64 {
        let start = round * 301 * SECOND;
        for i in 0..10_000u32 {
            let mut token = [round as u8; 16];
            token[..4].copy_from_slice(&i.to_be_bytes());
            flows.close_number(&mut apps, ChannelIndex(7), 0);
            assert_eq!(flows.open(&mut apps, (ChannelIndex(7), 0), 0, token, peer(1), start), Ok(()));
        }
        for number in [0, 9] {
            let (id, _) = flows.at(ChannelIndex(7), number).unwrap();
            flows.touch(id, start + 300 * SECOND);
        }
        flows.expire(&mut apps, start + 301 * SECOND, usize::MAX, |_, _| ());
        assert_eq!((flows.len(), flows.wheel.timers()), (2, 2));
    }
}

fn exit_with(flows_per_channel: usize, sockets: usize) -> (Flows, MemApps, MemNet) {
    let net = MemNet::default();
    let apps = MemApps::new(net.clone(), Vec::new(), [192, 0, 2, 1].into());
    (Flows::new(Caps { flows_per_channel, sockets }, Duration::from_secs(300), 0), apps, net)
}

/// A token for each channel and number.
fn token(channel: u32, number: u16) -> Token {
    let mut token = [0; 16];
    token[..4].copy_from_slice(&channel.to_be_bytes());
    token[4..6].copy_from_slice(&number.to_be_bytes());
    token
}

/// Opens flows of a channel, a client each, until one is refused.
fn fill(flows: &mut Flows, apps: &mut MemApps, channel: u32, from: u16) -> (u16, DropReason) {
    for number in from.. {
        let done = flows.open(apps, (ChannelIndex(channel), number), number, token(channel, number), peer(1), 0);
        if let Err(why) = done {
            return (number - from, why);
        }
    }
    unreachable!("there is a bound")
}

fn assert_empty(flows: &mut Flows, apps: &mut MemApps) {
    assert_eq!((flows.len(), flows.sockets(), flows.waiting()), (0, 0, 0));
    assert!(flows.by_token.is_empty() && flows.by_peer.is_empty() && flows.mappings.is_empty());
    assert!(flows.quota.is_empty() && flows.aliases.is_empty() && flows.names.len() == 0);
    assert_eq!(flows.vacant.len(), flows.flows.len());
    flows.expire(apps, 10_000 * SECOND, usize::MAX, |_, _| ());
    assert_eq!(flows.wheel.timers(), 0);
}

#[test]
fn a_channel_has_no_more_sockets_than_are_left_to_the_others() {
    let (mut flows, mut apps, _) = exit_with(1024, 100);
    assert_eq!(fill(&mut flows, &mut apps, 1, 0), (38, DropReason::SocketsFull));
    assert_eq!(fill(&mut flows, &mut apps, 2, 0), (19, DropReason::SocketsFull));
    assert_eq!(fill(&mut flows, &mut apps, 3, 0), (9, DropReason::SocketsFull));
    assert_eq!(flows.sockets(), 66);
    assert!((0..38).all(|number| flows.at(ChannelIndex(1), number).is_some()), "who has some keeps them");
    // Moving what it has gives a channel room for nothing more.
    for number in 0..38 {
        assert_eq!(flows.relocate(ChannelIndex(4), number, &token(1, number), 0), Ok(()));
    }
    assert_eq!(fill(&mut flows, &mut apps, 1, 38), (0, DropReason::SocketsFull));
    flows.close_channel(&mut apps, ChannelIndex(2));
    assert_eq!(fill(&mut flows, &mut apps, 3, 9), (10, DropReason::SocketsFull), "there is room again");
    [1, 3, 4].into_iter().for_each(|channel| {
        flows.close_channel(&mut apps, ChannelIndex(channel));
    });
    assert_empty(&mut flows, &mut apps);
}

#[test]
fn sockets_of_an_ended_channel_count_for_that_of_their_flows() {
    let (mut flows, mut apps, _) = exit_with(1024, 100);
    fill(&mut flows, &mut apps, 1, 0);
    for number in 0..38 {
        assert_eq!(flows.relocate(ChannelIndex(2), number, &token(1, number), 0), Ok(()));
    }
    assert_eq!(flows.quota.of(ChannelIndex(2)).sockets, 0);
    flows.close_channel(&mut apps, ChannelIndex(1));
    assert_eq!((flows.sockets(), flows.quota.of(ChannelIndex(2)).sockets), (38, 38));
    assert_eq!(fill(&mut flows, &mut apps, 2, 38), (0, DropReason::SocketsFull));
    // Index 1 is another entry's now.
    assert_eq!(fill(&mut flows, &mut apps, 1, 0), (19, DropReason::SocketsFull));
    flows.close_channel(&mut apps, ChannelIndex(2));
    flows.close_channel(&mut apps, ChannelIndex(1));
    assert_empty(&mut flows, &mut apps);
}

/// Channels take what they get, one after the other. Newcomers would find nothing once a dozen have halved what the one
/// before had left.
#[test]
fn greedy_channels_leave_sockets_and_questions_to_newcomers() {
    let (mut flows, mut apps, _) = exit_with(1024, 4096);
    (0..20).for_each(|channel| {
        fill(&mut flows, &mut apps, channel, 0);
        let mut ask = |number| flows.open_name((ChannelIndex(channel), number), number, token(channel, number), 53, 0);
        assert!((2000..4000).any(|number| ask(number).is_err()));
    });
    assert!(flows.sockets() > 3000 && flows.names.len() > QUESTIONS_MAX / 2 - 20);
    for channel in 100..200 {
        assert_eq!(flows.open(&mut apps, (ChannelIndex(channel), 0), 0, token(channel, 0), peer(1), 0), Ok(()));
        assert!(flows.open_name((ChannelIndex(channel), 1), 1, token(channel, 1), 53, 0).is_ok());
    }
}

/// A user's channels take what they get: a dozen are enough for all sockets that are not kept.
#[test]
fn channel_with_a_socket_gets_others_in_a_crowd() {
    let (mut flows, mut apps, _) = exit_with(1024, 4096);
    assert_eq!(newcomers(&mut flows, &mut apps, 900..901, 0), 1);
    (0..30).for_each(|channel| _ = fill(&mut flows, &mut apps, channel, 0));
    assert_eq!(fill(&mut flows, &mut apps, 900, 1), (FEW as u16 - 1, DropReason::SocketsFull));
}

/// Idle sockets go from channels with many to those with few, while others are kept for channels without any.
#[test]
fn idle_sockets_of_large_channels_go_to_smaller_ones() {
    let (mut flows, mut apps, _) = exit_with(1024, 100);
    let small = |number: u16, now: Nanos| {
        move |flows: &mut Flows, apps: &mut MemApps| {
            flows.open(apps, (ChannelIndex(900), number), number, token(900, number), peer(1), now)
        }
    };
    crowd(&mut flows, &mut apps);
    assert_eq!(small(0, 0)(&mut flows, &mut apps), Ok(()));
    assert_eq!(small(1, SECOND)(&mut flows, &mut apps), Err(DropReason::SocketsFull), "nobody is idle");
    let before = flows.sockets();
    let gets = (1..100).take_while(|number| small(*number, YIELDS_AFTER)(&mut flows, &mut apps).is_ok()).count();
    // It takes from the one with 38 until that has one more.
    let mut of = |channel| flows.quota.of(ChannelIndex(channel)).sockets;
    assert_eq!((gets, [900, 0, 1, 2].map(&mut of)), (18, [19, 20, 19, 9]));
    assert_eq!((flows.sockets(), flows.quota.of(ChannelIndex(900)).first_sockets), (before, 1));
    let parts = [Part::First, Part::Few, Part::Common].map(|part| {
        let is_of = |(_, held): &(MappingId, Held)| held.counts_for == ChannelIndex(900) && held.part == part;
        flows.mappings.held_by_clients().filter(is_of).count()
    });
    assert_eq!(parts, [1, FEW - 1, 11]);
    // Those that were too few for that one are there for others in the same second.
    assert_eq!(newcomers(&mut flows, &mut apps, 901..902, YIELDS_AFTER), 1);
    let gets = open_more(&mut flows, &mut apps, 901, 1, YIELDS_AFTER);
    assert!(gets >= 12, "{gets}");
    assert_eq!(newcomers(&mut flows, &mut apps, 2000..2011, YIELDS_AFTER), 11, "what is kept is there");
}

/// Opens flows of a channel, a client each, until one gets no socket. Returns how many got one.
fn open_more(flows: &mut Flows, apps: &mut MemApps, channel: u32, from: u16, now: Nanos) -> usize {
    let open = |number: &u16| {
        let to = (ChannelIndex(channel), *number);
        flows.open(apps, to, *number, token(channel, *number), peer(1), now).is_ok()
    };
    (from..from + 1000).take_while(open).count()
}

/// All clients but those of a channel send something.
fn all_send_but(flows: &mut Flows, channel: u32, now: Nanos) {
    let others = flows.flows.iter_mut().flatten().filter(|flow| flow.channel != ChannelIndex(channel));
    others.for_each(|flow| flow.seen = now);
}

#[test]
fn idle_sockets_of_the_kept_parts_are_not_collected() {
    let now = YIELDS_AFTER + SECOND;
    let (mut flows, mut apps, _) = exit_with(1024, 100);
    // A channel gets its first socket in a crowd, and others after that has gone.
    let next = crowd(&mut flows, &mut apps);
    assert_eq!(newcomers(&mut flows, &mut apps, 500..501, 0), 1);
    (0..next).for_each(|channel| _ = flows.close_channel(&mut apps, ChannelIndex(channel)));
    for number in 1..15 {
        let to = (ChannelIndex(500), number);
        assert_eq!(flows.open(&mut apps, to, number, token(500, number), peer(1), SECOND), Ok(()));
    }
    crowd(&mut flows, &mut apps);
    all_send_but(&mut flows, 500, now);
    assert_eq!(newcomers(&mut flows, &mut apps, 900..901, now), 1);
    assert_eq!(open_more(&mut flows, &mut apps, 900, 1, now), 7);
    assert!(flows.at(ChannelIndex(500), 0).is_some(), "the one that has been idle for longest");

    // The same of those that it gets because it has few, and a channel that has more.
    let (mut flows, mut apps, _) = exit_with(4096, 4096);
    (0..13).for_each(|channel| _ = fill(&mut flows, &mut apps, channel, 0));
    assert_eq!(fill(&mut flows, &mut apps, 500, 0).0, FEW as u16);
    (0..13).for_each(|channel| _ = flows.close_channel(&mut apps, ChannelIndex(channel)));
    for (channel, number) in (8..20).map(|number| (500, number)).chain((0..10).map(|number| (900, number))) {
        let to = (ChannelIndex(channel), number);
        assert_eq!(flows.open(&mut apps, to, number, token(channel, number), peer(1), SECOND), Ok(()));
    }
    (0..13).for_each(|channel| _ = fill(&mut flows, &mut apps, channel, 0));
    all_send_but(&mut flows, 500, now);
    assert_eq!(open_more(&mut flows, &mut apps, 900, 10, now), 1);
    assert!((1..8).all(|number| flows.at(ChannelIndex(500), number).is_some()));
}

/// Clients are listed once a second, and the channel of one has fewer since.
#[test]
fn channel_that_has_few_by_now_keeps_idle_sockets() {
    let now = YIELDS_AFTER + SECOND;
    let (mut flows, mut apps, _) = exit_with(1024, 100);
    assert_eq!(open_more(&mut flows, &mut apps, 500, 0, SECOND), 38);
    crowd(&mut flows, &mut apps);
    all_send_but(&mut flows, 500, now);
    assert_eq!(newcomers(&mut flows, &mut apps, 900..901, now), 1);
    let one_more = |flows: &mut Flows, apps: &mut MemApps, number: u16| {
        flows.open(apps, (ChannelIndex(900), number), number, token(900, number), peer(1), now)
    };
    assert_eq!(one_more(&mut flows, &mut apps, 1), Ok(()));
    let [(of, gone)] = flows.take_evicted()[..] else { panic!("one client") };
    assert_eq!(of, ChannelIndex(500));
    let left = (0..38).filter(|number| *number != gone).skip(3).collect::<Vec<_>>();
    left.into_iter().for_each(|number| _ = flows.close_number(&mut apps, ChannelIndex(500), number));
    (2000..2100).for_each(|channel| _ = fill(&mut flows, &mut apps, channel, 0));
    assert_eq!(one_more(&mut flows, &mut apps, 2), Err(DropReason::SocketsFull));
    assert_eq!(flows.quota.of(ChannelIndex(500)).sockets, 3);
}

/// Opens a flow of each channel, a client each. Returns how many got a socket.
fn newcomers(flows: &mut Flows, apps: &mut impl Apps, channels: std::ops::Range<u32>, now: Nanos) -> usize {
    let mut open =
        |channel| flows.open(apps, (ChannelIndex(channel), 0), 0, token(channel, 0), peer(channel as u16), now).is_ok();
    channels.filter(|channel| open(*channel)).count()
}

/// Channels take what they get until only what is kept for channels without any is left. Returns the next channel.
fn crowd(flows: &mut Flows, apps: &mut MemApps) -> u32 {
    let kept = (flows.caps.sockets / 4).div_ceil(2);
    let is_crowded = |flows: &Flows| flows.caps.sockets - flows.sockets() <= kept;
    let last = (0..).find(|channel| {
        fill(flows, apps, *channel, 0);
        is_crowded(flows)
    });
    assert_eq!(flows.caps.sockets - flows.sockets(), kept);
    last.unwrap() + 1
}

/// A user opens a channel, moves its only flow to another one that collects them, ends the channel, and so on.
#[test]
fn channels_that_come_and_go_leave_sockets_to_newcomers() {
    let (mut flows, mut apps, _) = exit_with(1024, 100);
    let next = crowd(&mut flows, &mut apps);
    let collector = ChannelIndex(999);
    for (number, channel) in (1000..1100).enumerate() {
        assert_eq!(newcomers(&mut flows, &mut apps, channel..channel + 1, 0), 1);
        assert_eq!(flows.relocate(collector, number as u16, &token(channel, 0), 0), Ok(()));
        flows.close_channel(&mut apps, ChannelIndex(channel));
        assert!(flows.quota.of(collector) == share(1, 1));
        // The first one stays, and the others end where they have moved.
        let ended = if number == 0 { vec![] } else { vec![(collector, number as u16)] };
        assert_eq!(flows.take_evicted(), ended);
    }
    assert_eq!(newcomers(&mut flows, &mut apps, 2000..2100, 0), 12);
    (0..next).chain([999]).chain(2000..2100).for_each(|channel| {
        flows.close_channel(&mut apps, ChannelIndex(channel));
    });
    assert_empty(&mut flows, &mut apps);
}

/// A channel with few gets sockets that are kept for such, moves their flows to one with many, ends, and so on.
#[test]
fn channels_that_come_and_go_leave_sockets_to_those_with_few() {
    let (mut flows, mut apps, _) = exit_with(4096, 4096);
    assert_eq!(newcomers(&mut flows, &mut apps, 900..901, 0), 1);
    (0..13).for_each(|channel| _ = fill(&mut flows, &mut apps, channel, 0));
    for (round, channel) in (1000..1100).enumerate() {
        let (got, _) = fill(&mut flows, &mut apps, channel, 0);
        for number in 0..got {
            let at = 2000 + round as u16 * 8 + number;
            assert_eq!(flows.relocate(ChannelIndex(0), at, &token(channel, number), 0), Ok(()));
        }
        flows.close_channel(&mut apps, ChannelIndex(channel));
    }
    assert_eq!(fill(&mut flows, &mut apps, 900, 1), (FEW as u16 - 1, DropReason::SocketsFull));
    (0..901).for_each(|channel| _ = flows.close_channel(&mut apps, ChannelIndex(channel)));
    assert_empty(&mut flows, &mut apps);
}

/// What a channel has, among it a socket that it got because it had none.
fn share(flows: usize, sockets: usize) -> Share {
    Share { flows, sockets, first_sockets: 1, ..Share::default() }
}

#[test]
fn replaced_channel_keeps_its_sockets_while_there_is_room() {
    let (mut flows, mut apps, _) = exit_with(1024, 100);
    // Two channels that were opened in a crowd, which has gone.
    let next = crowd(&mut flows, &mut apps);
    assert_eq!(newcomers(&mut flows, &mut apps, 100..102, 0), 2);
    (0..next).for_each(|channel| _ = flows.close_channel(&mut apps, ChannelIndex(channel)));
    for number in 1..10 {
        let to = (ChannelIndex(100), number);
        assert_eq!(flows.open(&mut apps, to, number, token(100, number), peer(1), 0), Ok(()));
    }
    assert_eq!(newcomers(&mut flows, &mut apps, 102..103, 0), 1, "the new channel has a client of its own");
    let moved = (0..10).map(|number| token(100, number)).chain([token(101, 0)]);
    for (number, token) in (1..).zip(moved) {
        assert_eq!(flows.relocate(ChannelIndex(102), number, &token, 0), Ok(()));
    }
    (100..102).for_each(|channel| _ = flows.close_channel(&mut apps, ChannelIndex(channel)));
    assert_eq!(flows.take_evicted(), []);
    assert!(flows.quota.of(ChannelIndex(102)) == Share { first_sockets: 0, ..share(12, 12) });
    flows.close_channel(&mut apps, ChannelIndex(102));
    assert_empty(&mut flows, &mut apps);
}

#[test]
fn replaced_channel_in_a_crowd_loses_one_socket_at_most() {
    let (mut flows, mut apps, _) = exit_with(1024, 100);
    // An entry has a channel from before the crowd, and one that came in it.
    (0..5).for_each(|number| {
        let to = (ChannelIndex(100), number);
        assert_eq!(flows.open(&mut apps, to, number, token(100, number), peer(1), 0), Ok(()));
    });
    let next = crowd(&mut flows, &mut apps);
    assert_eq!(newcomers(&mut flows, &mut apps, 101..102, 0), 1);
    let replace = |flows: &mut Flows, apps: &mut MemApps, old: u32, new: u32, tokens: &[Token]| {
        for (number, token) in (1..).zip(tokens) {
            assert_eq!(flows.relocate(ChannelIndex(new), number, token, 0), Ok(()));
        }
        flows.close_channel(apps, ChannelIndex(old));
        flows.take_evicted()
    };
    let tokens: Vec<_> = (0..5).map(|number| token(100, number)).collect();
    assert_eq!(replace(&mut flows, &mut apps, 100, 200, &tokens), []);
    assert_eq!(replace(&mut flows, &mut apps, 101, 201, &[token(101, 0)]), []);
    assert_eq!(replace(&mut flows, &mut apps, 201, 202, &[token(101, 0)]), [], "and again");
    assert!(flows.quota.of(ChannelIndex(202)) == share(1, 1));
    // The new channel has got a socket of its own before the old one ends.
    assert_eq!(newcomers(&mut flows, &mut apps, 203..204, 0), 1);
    assert_eq!(replace(&mut flows, &mut apps, 202, 203, &[token(101, 0)]), [(ChannelIndex(203), 1)]);
    assert!(flows.quota.of(ChannelIndex(203)) == share(1, 1));
    (0..next).chain([200, 203]).for_each(|channel| {
        flows.close_channel(&mut apps, ChannelIndex(channel));
    });
    assert_empty(&mut flows, &mut apps);
}

/// The same attack as on sockets, for which no channel has to end.
#[test]
fn flows_that_move_leave_flows_to_newcomers() {
    let (mut flows, mut apps, _) = exit_with(1024, 4096);
    let add = |flows: &mut Flows, channel: u32, number: u16| {
        flows.add(ChannelIndex(channel), number, 0, token(channel, number), Target::Unconnected, 0)
    };
    let last = (0..).find(|channel| {
        (0..1024).find(|number| add(&mut flows, *channel, *number).is_err());
        FLOWS_MAX - flows.len() <= FLOWS_MAX / 8
    });
    assert_eq!(FLOWS_MAX - flows.len(), FLOWS_MAX / 8);
    for channel in 5000..5500 {
        assert!(add(&mut flows, channel, 0).is_ok());
        let moved = flows.relocate(ChannelIndex(4999), channel as u16, &token(channel, 0), 0);
        assert_eq!(moved, if channel == 5000 { Ok(()) } else { Err(DropReason::FlowsFull) });
        assert_eq!(add(&mut flows, channel, 1).is_ok(), channel == 5000);
    }
    // Moved on by itself, and to the next channel, it has its place.
    assert_eq!(flows.relocate(ChannelIndex(4999), 1, &token(5000, 0), 0), Ok(()));
    assert_eq!(flows.relocate(ChannelIndex(4998), 1, &token(5000, 0), 0), Ok(()));
    (0..=last.unwrap()).for_each(|channel| _ = flows.close_channel(&mut apps, ChannelIndex(channel)));
    for channel in 5001..5500 {
        assert_eq!(flows.relocate(ChannelIndex(4998), channel as u16, &token(channel, 0), 0), Ok(()));
    }
    (4998..5500).for_each(|channel| _ = flows.close_channel(&mut apps, ChannelIndex(channel)));
    assert_empty(&mut flows, &mut apps);
}

/// A channel with few gets flows that are kept for such, moves them to one with many, and so on.
#[test]
fn flows_that_move_leave_flows_to_channels_with_few() {
    let (mut flows, mut apps, _) = exit_with(1024, 4096);
    let add = |flows: &mut Flows, channel: u32, number: u16| {
        flows.add(ChannelIndex(channel), number, number, token(channel, number), Target::Unconnected, 0)
    };
    assert!(add(&mut flows, 900, 0).is_ok());
    for number in 0..1000 {
        (0..60).for_each(|channel| _ = add(&mut flows, channel, number));
    }
    assert!((FLOWS_MAX / 5..FLOWS_MAX / 3).contains(&(FLOWS_MAX - flows.len())));
    for number in 0..10_000 {
        let _ = add(&mut flows, 5000, number);
        let _ = flows.relocate(ChannelIndex(u32::from(number) % 60), 2000 + number, &token(5000, number), 0);
    }
    assert_eq!((1..100).find(|number| add(&mut flows, 900, *number).is_err()), Some(FEW as u16));
    (0..5001).for_each(|channel| _ = flows.close_channel(&mut apps, ChannelIndex(channel)));
    assert_empty(&mut flows, &mut apps);
}

/// Channels open and close sockets in one turn, until the system may not hold any more.
#[test]
fn sockets_closed_within_a_turn_evict_nobody() {
    let (mut flows, _) = exit();
    let mut apps = UdpApps::new(Poller::new().unwrap(), Vec::new(), 65536, Offloads::BOTH).unwrap();
    assert_eq!(newcomers(&mut flows, &mut apps, 0..1, 0), 1);
    for gets in [1, 1, 1, 0, 0] {
        assert_eq!(newcomers(&mut flows, &mut apps, 9..10, YIELDS_AFTER), gets);
        flows.close_number(&mut apps, ChannelIndex(9), 0);
    }
    assert_eq!((flows.take_evicted(), flows.sockets(), apps.held()), (vec![], 1, 4));
    apps.send(&mut SendBatch::default(), &mut Tally::default());
    assert_eq!(newcomers(&mut flows, &mut apps, 9..10, YIELDS_AFTER), 1);
}

/// A client's flows move from channel to channel, and new ones join them where it is. What the end of one costs grows
/// with their number.
#[test]
fn client_has_no_more_flows_than_a_channel() {
    let (mut flows, mut apps, _) = exit_with(100, 4096);
    let mut opened = 0;
    for channel in 0..10 {
        let to = |number| (ChannelIndex(channel), number);
        let open = |number| flows.open(&mut apps, to(number), 0, token(channel, number), peer(number), 0);
        opened += (0..200).map(open).take_while(Result::is_ok).count();
        assert_eq!(flows.relocate(ChannelIndex(channel + 1), 1000, &token(0, 0), 0), Ok(()));
    }
    assert_eq!((opened, flows.sockets()), (100, 1));
    (0..11).for_each(|channel| _ = flows.close_channel(&mut apps, ChannelIndex(channel)));
    assert_empty(&mut flows, &mut apps);
}

#[test]
fn channel_without_a_socket_gets_that_of_the_longest_idle() {
    let (mut flows, mut apps, _) = exit_with(1024, 4);
    let mut open = |flows: &mut Flows, (channel, number): (u32, u16), map: u16, now: Nanos| {
        flows.open(&mut apps, (ChannelIndex(channel), number), map, token(channel, number), peer(number), now)
    };
    for channel in 0..4 {
        assert_eq!(open(&mut flows, (channel, 0), 0, SECOND * Nanos::from(channel)), Ok(()));
    }
    // The client that came first has a second flow, and a third one that has ended.
    assert_eq!(open(&mut flows, (0, 1), 0, 10 * SECOND), Ok(()));
    assert_eq!(open(&mut flows, (0, 2), 0, 20 * SECOND), Ok(()));
    let (id, _) = flows.at(ChannelIndex(0), 2).unwrap();
    assert_eq!(flows.end(id, |_| panic!("the client has other flows")), 0);
    assert_eq!(open(&mut flows, (9, 0), 0, YIELDS_AFTER), Err(DropReason::SocketsFull));
    // Channel 1 has been idle for longest. A channel that has a socket gets no other.
    let now = YIELDS_AFTER + 10 * SECOND;
    assert_eq!(open(&mut flows, (3, 1), 1, now), Err(DropReason::SocketsFull));
    assert_eq!(open(&mut flows, (9, 0), 0, now), Ok(()));
    assert_eq!(flows.take_evicted(), [(ChannelIndex(1), 0)]);
    // The next one that is idle; one has sent since they were listed.
    let (id, _) = flows.at(ChannelIndex(2), 0).unwrap();
    flows.touch(id, now);
    assert_eq!(open(&mut flows, (10, 0), 0, now), Ok(()));
    assert_eq!(flows.take_evicted(), [(ChannelIndex(3), 0)]);
    assert_eq!(open(&mut flows, (11, 0), 0, now), Err(DropReason::SocketsFull));
    assert_eq!(flows.sockets(), 4);
    assert_eq!(open(&mut flows, (11, 0), 0, 10_000 * SECOND), Ok(()));
    assert_eq!(flows.take_evicted(), [(ChannelIndex(0), 0), (ChannelIndex(0), 1)]);
    (0..12).for_each(|channel| {
        flows.close_channel(&mut apps, ChannelIndex(channel));
    });
    assert_empty(&mut flows, &mut apps);
}

/// Clients are listed when one of them has to go, and the others go by that list later.
#[test]
fn client_that_was_idle_once_shields_no_other() {
    let (mut flows, mut apps, _) = exit_with(1024, 4);
    let touch = |flows: &mut Flows, channel: u32, now: Nanos| {
        let (id, _) = flows.at(ChannelIndex(channel), 0).unwrap();
        flows.touch(id, now);
    };
    (0..4).for_each(|channel| touch_new(&mut flows, &mut apps, channel, SECOND * Nanos::from(channel)));
    let mut goes = |flows: &mut Flows, newcomer: u32, now: Nanos| {
        touch_new(flows, &mut apps, newcomer, now);
        flows.take_evicted().iter().map(|(channel, _)| channel.0).collect::<Vec<_>>()
    };
    assert_eq!(goes(&mut flows, 10, 40 * SECOND), [0]);
    // Channel 1 is on the list, sends, and is idle again for less long than the two behind it.
    touch(&mut flows, 1, 41 * SECOND);
    assert_eq!(goes(&mut flows, 11, 100 * SECOND), [2]);
    assert_eq!(goes(&mut flows, 12, 100 * SECOND), [3]);
    // Nobody is left on it: they are looked for again.
    assert_eq!(goes(&mut flows, 13, 102 * SECOND), [10]);
    // All that are listed have sent since.
    touch(&mut flows, 1, 104 * SECOND);
    touch(&mut flows, 11, 110 * SECOND);
    assert_eq!(goes(&mut flows, 14, 150 * SECOND), [12]);
}

/// Opens the flow of a channel that finds a socket.
fn touch_new(flows: &mut Flows, apps: &mut MemApps, channel: u32, now: Nanos) {
    assert_eq!(newcomers(flows, apps, channel..channel + 1, now), 1);
}

#[test]
fn system_never_holds_more_sockets_than_the_exit_may_have() {
    let (mut flows, _) = exit();
    let mut apps = UdpApps::new(Poller::new().unwrap(), Vec::new(), 65536, Offloads::BOTH).unwrap();
    assert_eq!(newcomers(&mut flows, &mut apps, 0..4, 0), 4);
    // All in one turn: the clients of these go, and those that came instead are not idle.
    for (channel, gets) in (10..15).zip([1, 1, 1, 1, 0]) {
        assert_eq!(newcomers(&mut flows, &mut apps, channel..channel + 1, YIELDS_AFTER), gets);
        assert_eq!((flows.sockets(), apps.held()), (4, 4));
    }
    // The datagrams of a flow that has ended may still wait to be sent.
    flows.close_channel(&mut apps, ChannelIndex(10));
    assert_eq!(newcomers(&mut flows, &mut apps, 20..21, YIELDS_AFTER), 0);
    assert_eq!((flows.sockets(), apps.held()), (3, 4));
    apps.send(&mut SendBatch::default(), &mut Tally::default());
    assert_eq!(newcomers(&mut flows, &mut apps, 20..22, YIELDS_AFTER), 1);
    assert_eq!((flows.sockets(), apps.held()), (4, 4));
}

#[test]
fn flows_of_an_exit_are_bounded() {
    let (mut flows, mut apps, _) = exit_with(1024, 4096);
    let mut open = |flows: &mut Flows, channel: u32, number: u16| {
        flows.open(&mut apps, (ChannelIndex(channel), number), 0, token(channel, number), peer(number), 0)
    };
    // Greedy channels get three quarters of all and a few each, and the others one each.
    let greedy: Vec<_> =
        (0..200).map(|channel| (0..1024).find_map(|number| open(&mut flows, channel, number).err())).collect();
    assert_eq!((greedy[0], greedy[199]), (None, Some(DropReason::FlowsFull)));
    assert!((FLOWS_MAX * 3 / 4..FLOWS_MAX * 3 / 4 + 200 * FEW).contains(&flows.len()), "{}", flows.len());
    let last = 200 + (FLOWS_MAX - flows.len()) as u32;
    // Those that come now use the sockets of others, which is not what this test is about.
    let add = |channel| flows.add(ChannelIndex(channel), 0, 0, token(channel, 0), Target::Unconnected, 0);
    let firsts: Vec<FlowId> = (200..last).map(add).collect::<Result<_, _>>().unwrap();
    assert_eq!(flows.len(), FLOWS_MAX);
    assert_eq!(open(&mut flows, last, 0), Err(DropReason::FlowsFull));
    assert!(flows.at(ChannelIndex(0), 1023).is_some());
    flows.close_channel(&mut apps, ChannelIndex(0));
    assert_eq!(flows.open(&mut apps, (ChannelIndex(last), 0), 0, token(last, 0), peer(1), 0), Ok(()));
    firsts.into_iter().for_each(|id| _ = flows.close(&mut apps, id));
    (1..200).chain([last]).for_each(|channel| {
        flows.close_channel(&mut apps, ChannelIndex(channel));
    });
    assert_empty(&mut flows, &mut apps);
}

#[test]
fn flows_survive_a_shortage_of_descriptors() {
    let (mut flows, mut apps, net) = exit_with(1024, 4096);
    assert_eq!(flows.open(&mut apps, (ChannelIndex(1), 0), 0, token(1, 0), peer(1), 0), Ok(()));
    for errno in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS] {
        net.fail_open(Some(errno));
        assert_eq!(fill(&mut flows, &mut apps, 1, 1), (0, DropReason::NoSocket));
        assert_eq!(
            flows.open(&mut apps, (ChannelIndex(1), 1), 0, token(1, 1), peer(2), 0),
            Ok(()),
            "over the socket it has"
        );
        flows.close_number(&mut apps, ChannelIndex(1), 1);
        assert_eq!((flows.len(), flows.sockets()), (1, 1));
    }
    net.fail_open(None);
    assert_eq!(flows.open(&mut apps, (ChannelIndex(1), 1), 1, token(1, 1), peer(1), 0), Ok(()));
    flows.close_channel(&mut apps, ChannelIndex(1));
    assert_empty(&mut flows, &mut apps);
}

#[test]
fn questions_are_shared_and_bounded_until_they_are_answered() {
    let (mut flows, mut apps, _) = exit_with(1024, 4096);
    let ask = |flows: &mut Flows, channel: u32| {
        let mut queries = Vec::new();
        for number in 0.. {
            match flows.open_name((ChannelIndex(channel), number), number, token(channel, number), 53, 0) {
                Ok(query) => queries.push(query),
                Err(why) => return (queries, why),
            }
        }
        unreachable!("there is a bound")
    };
    let (first, why) = ask(&mut flows, 1);
    assert_eq!((first.len(), why), (QUESTIONS_MAX / 4, DropReason::NamesFull));
    let (second, why) = ask(&mut flows, 2);
    assert_eq!((second.len(), why), (QUESTIONS_MAX / 8, DropReason::NamesFull));
    // Who hangs up has asked all the same; an answer makes room, whether anybody waits for it or not.
    flows.close_channel(&mut apps, ChannelIndex(1));
    assert_eq!(flows.names.len(), first.len() + second.len());
    first.into_iter().for_each(|query| assert!(flows.answered(query).is_none()));
    assert_eq!(ask(&mut flows, 3).0.len(), QUESTIONS_MAX * 3 / 16);
    flows.close_channel(&mut apps, ChannelIndex(2));
    flows.close_channel(&mut apps, ChannelIndex(3));
    (0..1000).for_each(|query| assert!(flows.answered(QueryId(query)).is_none()));
    assert_empty(&mut flows, &mut apps);
}

#[test]
fn question_of_an_ended_channel_counts_for_nobody() {
    let (mut flows, mut apps, _) = exit_with(1024, 4096);
    let ask = |flows: &mut Flows, number| flows.open_name((ChannelIndex(1), 0), 0, token(1, number), 53, 0).unwrap();
    let before = ask(&mut flows, 0);
    flows.close_channel(&mut apps, ChannelIndex(1));
    // The index is another channel's now, which asks, too.
    let after = ask(&mut flows, 1);
    assert!(flows.answered(before).is_none());
    assert_eq!(flows.quota.of(ChannelIndex(1)).questions, 1);
    assert!(flows.answered(after).is_some());
    flows.close_channel(&mut apps, ChannelIndex(1));
    assert_empty(&mut flows, &mut apps);
}

/// Whoever has many names resolved at once takes nobody's room for datagrams.
#[test]
fn datagrams_that_wait_for_names_are_bounded_by_flow() {
    let (mut flows, mut apps, _) = exit_with(1024, 4096);
    let mut queries = Vec::new();
    for channel in 0..QUESTIONS_MAX as u32 {
        let channel = ChannelIndex(channel);
        queries.push(flows.open_name((channel, 0), 0, token(channel.0, 0), 53, 0).unwrap());
        let (id, _) = flows.at(channel, 0).unwrap();
        (0..WAITING_PER_FLOW).for_each(|_| assert_eq!(flows.wait(id, b"x", 0), Ok(())));
        assert_eq!(flows.wait(id, b"x", 0), Err(DropReason::FlowQueueFull));
    }
    assert_eq!(flows.waiting(), QUESTIONS_MAX * WAITING_PER_FLOW);
    assert_eq!(flows.answered(queries[0]).map(|(_, _, data)| data.len()), Some(WAITING_PER_FLOW));
    assert_eq!(flows.close_channel(&mut apps, ChannelIndex(0)), 0);
    let closed = (1..QUESTIONS_MAX as u32).map(|channel| flows.close_channel(&mut apps, ChannelIndex(channel)));
    assert_eq!(closed.sum::<usize>(), (QUESTIONS_MAX - 1) * WAITING_PER_FLOW);
    queries.into_iter().for_each(|query| drop(flows.answered(query)));
    assert_empty(&mut flows, &mut apps);
}

#[test]
fn flow_opens_of_a_channel_are_rate_limited() {
    let mut opens = Opens::default();
    let mut taken = |now: Nanos| (0..1000).filter(|_| opens.take(now)).count();
    assert_eq!([SECOND, SECOND, 3 * SECOND / 2, 2 * SECOND, 9 * SECOND].map(&mut taken), [64, 0, 32, 32, 64]);
}

#[test]
fn a_token_that_differs_in_a_bit_reaches_no_flow() {
    let (mut flows, mut apps) = exit();
    let token = [0xa5; 16];
    flows.open(&mut apps, (ChannelIndex(1), 0), 7, token, peer(1), 0).unwrap();
    for bit in 0..128 {
        let mut guess = token;
        guess[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(flows.relocate(ChannelIndex(2), 0, &guess, 0), Err(DropReason::Flow), "bit {bit}");
        assert!(!flows.is_same(ChannelIndex(1), 0, &guess), "bit {bit}");
    }
    assert_eq!(flows.close_number(&mut apps, ChannelIndex(2), 0), 0);
    assert_eq!(flows.place(flows.by_token[&token]), Some((ChannelIndex(1), 0)), "it is where it was");
    // Nor does the true one take a place that is another flow's.
    flows.open(&mut apps, (ChannelIndex(2), 0), 7, [1; 16], peer(2), 0).unwrap();
    assert_eq!(flows.relocate(ChannelIndex(2), 0, &token, 0), Err(DropReason::NumberTaken));
    assert_eq!(flows.at(ChannelIndex(2), 0).unwrap().1.token, [1; 16]);
}

#[test]
fn full_channel_takes_no_flow_by_open_or_move() {
    let (mut flows, mut apps) = exit();
    for number in 0..3 {
        flows.open(&mut apps, (ChannelIndex(1), number), 0, [number as u8; 16], peer(1), 0).unwrap();
    }
    assert_eq!(flows.open(&mut apps, (ChannelIndex(1), 3), 0, [8; 16], peer(1), 0), Err(DropReason::ChannelFlowsFull));
    assert_eq!(flows.open_name((ChannelIndex(1), 3), 0, [8; 16], 53, 0), Err(DropReason::ChannelFlowsFull));
    flows.open(&mut apps, (ChannelIndex(2), 0), 1, [9; 16], peer(1), 0).unwrap();
    assert_eq!(flows.relocate(ChannelIndex(1), 3, &[9; 16], 0), Err(DropReason::ChannelFlowsFull));
    assert_eq!((flows.len(), flows.sockets()), (4, 2));
}

#[test]
fn answers_go_to_an_older_flow_when_the_newer_ends() {
    let (mut flows, mut apps) = exit();
    for number in 0..3 {
        flows.open(&mut apps, (ChannelIndex(1), number), 7, [number as u8; 16], peer(1), 0).unwrap();
    }
    let socket = socket(&mut flows, 1, 0);
    let heard = |flows: &mut Flows| flows.talking_to(socket, peer(1)).map(|(_, flow)| flow.number);
    assert_eq!(heard(&mut flows), Some(2));
    flows.close_number(&mut apps, ChannelIndex(1), 1);
    assert_eq!(heard(&mut flows), Some(2));
    flows.close_number(&mut apps, ChannelIndex(1), 2);
    assert_eq!(heard(&mut flows), Some(0));
    flows.close_number(&mut apps, ChannelIndex(1), 0);
    assert_eq!(heard(&mut flows), None);
    assert_empty(&mut flows, &mut apps);
}

#[test]
fn reused_channel_index_keeps_its_own_clients() {
    let (mut flows, mut apps) = exit();
    flows.open(&mut apps, (ChannelIndex(1), 0), 7, [1; 16], peer(1), 0).unwrap();
    flows.open(&mut apps, (ChannelIndex(2), 0), 7, [2; 16], peer(2), 0).unwrap();
    // Map 7 of channel 2 has a client, so this one stays listed under channel 1, which ends.
    flows.relocate(ChannelIndex(2), 1, &[1; 16], 0).unwrap();
    flows.close_channel(&mut apps, ChannelIndex(1));
    // Its index is given out again.
    flows.open(&mut apps, (ChannelIndex(1), 0), 7, [3; 16], peer(3), 0).unwrap();
    flows.relocate(ChannelIndex(3), 0, &[1; 16], 0).unwrap();
    flows.open(&mut apps, (ChannelIndex(1), 1), 7, [4; 16], peer(4), 0).unwrap();
    assert_eq!(socket(&mut flows, 1, 0), socket(&mut flows, 1, 1), "the client keeps one port");
}
