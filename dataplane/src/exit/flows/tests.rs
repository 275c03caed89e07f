use super::*;
use crate::io::mem::{MemApps, MemNet};
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
    match flows.at(channel, number).unwrap().1.target {
        Target::Peer { socket, .. } => socket,
        Target::Resolving { .. } => panic!("no socket yet"),
    }
}

#[test]
fn a_client_keeps_one_port_towards_all_its_peers() {
    let (mut flows, mut apps) = exit();
    for number in 0..3 {
        assert_eq!(flows.open(&mut apps, (1, number), 7, [number as u8; 16], peer(number), 0), Ok(()));
    }
    assert_eq!(flows.open(&mut apps, (2, 0), 7, [9; 16], peer(0), 0), Ok(()));
    let sockets: Vec<_> = (0..3).map(|n| socket(&mut flows, 1, n)).collect();
    assert!(sockets.iter().all(|s| *s == sockets[0]));
    assert_ne!(socket(&mut flows, 2, 0), sockets[0], "maps of two channels are two clients");
    assert_eq!(flows.talking_to(sockets[0], peer(2)).unwrap().number, 2);
    assert!(flows.talking_to(sockets[0], peer(3)).is_none(), "nobody talks to that peer");
    assert_eq!(flows.open(&mut apps, (1, 9), 7, [8; 16], peer(9), 0), Err(Drop::ChannelFlowsFull));
}

#[test]
fn a_moved_flow_keeps_its_socket_and_a_new_flow_of_the_client_joins_it() {
    let (mut flows, mut apps) = exit();
    flows.open(&mut apps, (1, 0), 7, [1; 16], peer(1), 0).unwrap();
    flows.open(&mut apps, (1, 1), 7, [2; 16], peer(2), 0).unwrap();
    let before = socket(&mut flows, 1, 0);
    assert_eq!(flows.relocate(5, 40, &[1; 16], 0), Ok(()));
    assert_eq!(flows.relocate(5, 40, &[1; 16], 0), Ok(()), "MOVE is repeated");
    assert_eq!(flows.relocate(5, 41, &[2; 16], 0), Ok(()));
    assert_eq!(flows.relocate(5, 42, &[3; 16], 0), Err(Drop::Flow));
    let at = |flows: &mut Flows| flows.at_or_was(1, 0).map(|(_, flow)| (flow.channel, flow.number));
    assert_eq!(at(&mut flows), Some((5, 40)), "what was under way still arrives");
    assert!(flows.at(1, 0).is_none());
    flows.forget_aliases(MOVED);
    assert_eq!(at(&mut flows), None);
    flows.open(&mut apps, (5, 42), 7, [3; 16], peer(3), 0).unwrap();
    assert!((40..43).all(|n| socket(&mut flows, 5, n) == before));
    assert_eq!(flows.close_channel(&mut apps, 1), 0);
    assert_eq!((flows.len(), flows.sockets()), (3, 1), "nothing of the old channel is left");
    flows.close_channel(&mut apps, 5);
    assert_eq!((flows.len(), flows.sockets()), (0, 0));
}

#[test]
fn idle_flows_end_and_the_last_one_takes_the_socket_along() {
    let (mut flows, mut apps) = exit();
    flows.open(&mut apps, (1, 0), 7, [1; 16], peer(1), 0).unwrap();
    flows.open(&mut apps, (1, 1), 7, [2; 16], peer(2), 0).unwrap();
    let (id, _) = flows.at(1, 1).unwrap();
    flows.touch(id, 100 * SECOND);
    let mut closed = Vec::new();
    flows.expire(&mut apps, 301 * SECOND, |channel, number| closed.push((channel, number)));
    assert_eq!((&closed[..], flows.sockets()), (&[(1, 0)][..], 1));
    flows.expire(&mut apps, 402 * SECOND, |channel, number| closed.push((channel, number)));
    assert_eq!((closed.len(), flows.sockets()), (2, 0));
}

#[test]
fn sockets_are_bounded_and_a_refused_flow_leaves_nothing_behind() {
    let (mut flows, mut apps) = exit();
    for channel in 0..4 {
        assert_eq!(flows.open(&mut apps, (channel, 0), 1, [channel as u8; 16], peer(1), 0), Ok(()));
    }
    assert_eq!(flows.open(&mut apps, (4, 0), 1, [9; 16], peer(1), 0), Err(Drop::SocketsFull));
    assert_eq!((flows.len(), flows.sockets()), (4, 4));
    assert_eq!(flows.relocate(0, 5, &[9; 16], 0), Err(Drop::Flow));
}

#[test]
fn nothing_of_an_ended_channel_is_found_under_its_index() {
    let (mut flows, mut apps) = exit();
    // One client with two flows; one moves to channel 9 and ends there, the other stays alive.
    flows.open(&mut apps, (7, 0), 0, [1; 16], peer(1), 0).unwrap();
    flows.open(&mut apps, (7, 1), 0, [2; 16], peer(2), 0).unwrap();
    assert_eq!(flows.relocate(9, 0, &[1; 16], 0), Ok(()));
    flows.close_number(&mut apps, 9, 0);
    flows.close_channel(&mut apps, 9);
    // Index 9 is another entry's now, whose first client has map 0 too.
    flows.open(&mut apps, (9, 0), 0, [3; 16], peer(3), 0).unwrap();
    assert_ne!(socket(&mut flows, 7, 1), socket(&mut flows, 9, 0));
    // A flow leaves channel 7, which ends: its old number leads nowhere.
    assert_eq!(flows.relocate(8, 0, &[2; 16], 0), Ok(()));
    assert!(flows.at_or_was(7, 1).is_some());
    flows.close_channel(&mut apps, 7);
    assert!(flows.at_or_was(7, 1).is_none());
}

#[test]
fn a_flow_that_moves_for_ever_leaves_one_alias_behind() {
    let (mut flows, mut apps) = exit();
    flows.open(&mut apps, (7, 0), 0, [1; 16], peer(1), 0).unwrap();
    for number in 1..1000 {
        assert_eq!(flows.relocate(7, number, &[1; 16], 0), Ok(()));
        assert!(flows.at_or_was(7, number - 1).is_some());
    }
    assert_eq!(flows.aliases.len(), 1);
    // A new flow takes the old place.
    flows.open(&mut apps, (7, 998), 0, [2; 16], peer(2), 0).unwrap();
    assert_eq!(flows.aliases.len(), 0);
    assert_eq!(flows.at_or_was(7, 998).unwrap().1.token, [2; 16]);
}

#[test]
fn flows_that_come_and_go_leave_no_timers_behind() {
    let (mut flows, mut apps) = exit();
    flows.open(&mut apps, (7, 9), 0, [9; 16], peer(9), 0).unwrap();
    for round in 0..3u64 {
        let start = round * 301 * SECOND;
        for i in 0..10_000u32 {
            let mut token = [round as u8; 16];
            token[..4].copy_from_slice(&i.to_be_bytes());
            flows.close_number(&mut apps, 7, 0);
            assert_eq!(flows.open(&mut apps, (7, 0), 0, token, peer(1), start), Ok(()));
        }
        for number in [0, 9] {
            let (id, _) = flows.at(7, number).unwrap();
            flows.touch(id, start + 300 * SECOND);
        }
        flows.expire(&mut apps, start + 301 * SECOND, |_, _| ());
        assert_eq!((flows.len(), flows.wheel.timers()), (2, 2));
    }
}
