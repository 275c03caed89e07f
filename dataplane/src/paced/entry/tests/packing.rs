//! How cells are filled.

use proptest::prelude::*;

use super::*;
use crate::entry::clients::Clients;
use crate::paced::entry::packer::Cell;

/// What one cell holds: its AGAIN, and its other frames.
fn parts(inner: &[u8], is_meeting: bool) -> (Vec<u8>, Vec<u8>) {
    let frames = match is_meeting {
        true => frames::parse_meeting(inner, true),
        false => frames::parse_paced(inner, Direction::Forward, true),
    };
    let frames: Vec<_> = frames.expect("valid frames").collect();
    let len = frames.iter().map(Frame::len).sum::<usize>();
    match frames.first() {
        Some(Frame::Again(again)) => (again.to_vec(), inner[3 + again.len()..len].to_vec()),
        _ => (Vec::new(), inner[..len].to_vec()),
    }
}

proptest! {
    #[test]
    fn frames_are_repeated_within_the_length_rules(
        lens in prop::collection::vec(0..1500usize, 1..20),
        is_meeting: bool,
        cells in 1..3u8,
        closes in 0..30u16,
        pauses in prop::collection::vec(0..4u8, 1..20),
    ) {
        let terms = PacedTerms { repeat: true, cells, ..terms() };
        let inner_len = if is_meeting { P - 8 } else { P };
        let mut packer = Packer::new(&terms, inner_len);
        let fresh_max = packer.fresh_max();
        prop_assert_eq!(fresh_max, inner_len - 3);
        let (mut tally, mut clients) = (Tally::default(), Clients::new(0));
        clients.session_up(SESSION);
        let mut rng = ChaCha20Rng::seed_from_u64(3);
        let id = clients.client(0, client(1), Duration::from_secs(60)).unwrap().unwrap();
        let flow = clients.flow(id, &Destination::Ip(destination()), 0, &mut rng).unwrap();
        let flow = (!is_meeting).then_some(FlowAt { number: flow.number, token: flow.token });
        let mut said = Vec::new();
        for (i, len) in lens.iter().enumerate() {
            let data: Vec<u8> = (0..*len).map(|at| (at + i) as u8).collect();
            said.push(data.clone());
            let waiting =
                Waiting { arrived: 0, socket: 0, flow, id: i as u16, data, written: 0, is_opened: false };
            packer.push(waiting);
        }
        (0..closes).filter(|_| !is_meeting).for_each(|flow| packer.close(flow));

        let mut reassembler = Reassembler::new(fresh_max);
        let mut came = Vec::new();
        let mut before = vec![Vec::new(); cells.into()];
        let mut pauses = pauses.into_iter().cycle();
        for round in 0..400u64 {
            // A new batch now and then: nothing is repeated in it, and nothing new in the round before.
            let starts = round % 50 == 0;
            if starts {
                packer.forget_before();
                before.iter_mut().for_each(Vec::clear);
            }
            let takes_new = round % 50 != 49;
            for sub in 0..cells {
                let mut inner = vec![0xee; inner_len];
                let names = !is_meeting && sub == 0 && round % 50 < 10 && pauses.next() == Some(0);
                let session = names.then_some(&[5; 16]);
                let is_named = packer.fill(&mut inner, &Cell { sub, session, takes_new, catches_up: false }, &clients, &mut tally);
                let (again, fresh) = parts(&inner, is_meeting);
                let before = &mut before[usize::from(sub)];
                prop_assert_eq!(&again, &*before, "round {}", round);
                prop_assert!(fresh.len() <= fresh_max);
                prop_assert!(again.is_empty() || 3 + again.len() + fresh.len() <= inner_len);
                prop_assert!(takes_new || fresh.is_empty());
                let frames: Vec<_> = Frames::of_again(&fresh).collect();
                prop_assert_eq!(is_named, matches!(frames.first(), Some(Frame::Session(_))));
                prop_assert!(frames.iter().map(Frame::is_datagram).is_sorted(), "datagrams are last");
                for frame in &frames {
                    match *frame {
                        Frame::Dgram { data, .. } => {
                            prop_assert!(data.len() <= fresh_max - 5);
                            came.push(data.to_vec());
                        }
                        Frame::Frag { flow, id, index, last, data } => {
                            prop_assert!(last || data.len() == fresh_max - 8);
                            let pushed = reassembler.push(Duration::ZERO, flow, id, index, last, data);
                            if let wire::reassembly::Outcome::Complete(data) = pushed.outcome {
                                came.push(data.to_vec());
                            }
                        }
                        _ => {}
                    }
                }
                *before = fresh;
            }
        }
        prop_assert_eq!(came, said);
        prop_assert_eq!((tally.consumed, packer.len(), packer.has_others()), (lens.len() as u64, 0, false));
    }
}

#[test]
fn open_precedes_each_datagram_until_the_exit_answers() {
    let mut packer = Packer::new(&PacedTerms { cells: 1, ..terms() }, P);
    let mut clients = Clients::new(0);
    clients.session_up(SESSION);
    let mut rng = ChaCha20Rng::seed_from_u64(3);
    let id = clients.client(0, client(1), Duration::from_secs(60)).unwrap().unwrap();
    let flow = clients.flow(id, &Destination::Ip(destination()), 0, &mut rng).unwrap();
    let at = FlowAt { number: flow.number, token: flow.token };
    let push = |packer: &mut Packer, len, flow| {
        let waiting = Waiting {
            arrived: 0,
            socket: 0,
            flow: Some(flow),
            id: 0,
            data: vec![1; len],
            written: 0,
            is_opened: false,
        };
        packer.push(waiting);
    };
    // The first two share a cell with one OPEN; the third does not fit into a cell with it.
    [20, 30, P - 10, 300].into_iter().for_each(|len| push(&mut packer, len, at));
    let mut tally = Tally::default();
    let mut fill = |packer: &mut Packer, clients: &Clients| {
        let mut inner = vec![0; P];
        let cell = Cell { sub: 0, session: None, takes_new: true, catches_up: false };
        packer.fill(&mut inner, &cell, clients, &mut tally);
        kinds(&inner, false).join(" ")
    };
    let cells: Vec<_> = (0..6).map(|_| fill(&mut packer, &clients)).collect();
    assert_eq!(cells, ["open dgram dgram", "open", "dgram", "open", "frag", "frag"]);
    clients.status(SESSION, at.number, Status::Open, 0);
    push(&mut packer, 20, at);
    push(&mut packer, 20, FlowAt { token: [0; 16], ..at });
    assert_eq!(fill(&mut packer, &clients), "dgram");
    clients.status(SESSION, at.number, Status::Refused, 0);
    push(&mut packer, 20, at);
    assert_eq!(fill(&mut packer, &clients), "");
    assert_eq!([DropReason::Ended, DropReason::Policy].map(|reason| tally.drops(reason)), [1, 1]);
}

#[test]
fn late_queue_shrinks_for_want_of_a_repeat() {
    let mut packer = Packer::new(&PacedTerms { repeat: true, cells: 1, ..terms() }, P - 8);
    let (mut tally, clients) = (Tally::default(), Clients::new(0));
    for arrived in [10, 20, 30] {
        let data = vec![arrived as u8; 160];
        packer.push(Waiting { arrived, socket: 0, flow: None, id: 0, data, written: 0, is_opened: false });
    }
    // True if nothing of the cell is a repeat, and what is new in it.
    let mut fill = |takes_new, catches_up| {
        let mut inner = vec![0; P - 8];
        packer.fill(&mut inner, &Cell { sub: 0, session: None, takes_new, catches_up }, &clients, &mut tally);
        let (again, fresh) = parts(&inner, true);
        let new = Frames::of_again(&fresh).next();
        (again.is_empty(), new.map(|frame| matches!(frame, Frame::Dgram { data, .. } if data.len() == 160)))
    };
    assert_eq!(fill(true, false), (true, Some(true)));
    assert_eq!(fill(false, true), (false, None), "the last round of a batch");
    assert_eq!(fill(true, false), (true, Some(true)));
    assert_eq!(fill(true, false), (false, None));
    assert_eq!(fill(true, true), (true, Some(true)));
    assert_eq!(fill(true, true), (false, None), "nothing waits");
}

#[test]
fn queue_is_late_after_64_rounds_in_a_row() {
    let mut packer = Packer::new(&PacedTerms { repeat: true, cells: 1, ..terms() }, P - 8);
    let waiting = Waiting { arrived: 10, socket: 0, flow: None, id: 0, data: vec![1], written: 0, is_opened: false };
    packer.push(waiting);
    let mut late = |rounds, until| (0..rounds).filter(|_| packer.falls_behind(until)).count();
    assert_eq!([late(63, 11), late(1, 10), late(63, 11), late(3, 11)], [0, 0, 0, 3]);
}
