//! The payload of a cell, as a free class, a paced one and a meeting read it. Parsed frames write the same
//! bytes again. Their fragments keep the ledger of the reassembler balanced, and a completed datagram consists of
//! received fragments.

#![no_main]

use std::collections::HashSet;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use wire::cell::Direction;
use wire::frames::{
    BadFrames, FRAG_OVERHEAD, FRAGMENTS_MAX, Frame, Frames, Writer, datagrams_max, parse, parse_meeting, parse_paced,
};
use wire::reassembly::{HOLD, Outcome, PARTIAL_MAX, Reassembler};

/// Small, so that an input of a few hundred bytes holds full fragments.
const PAYLOAD: usize = 24;
const CHUNK: usize = PAYLOAD - FRAG_OVERHEAD;

type Read = fn(&[u8]) -> Result<Frames<'_>, BadFrames>;

/// In a meeting AGAIN travels in each direction; its frames are alike in both.
const READERS: [(Direction, Read); 8] = [
    (Direction::Forward, |inner| parse(inner, Direction::Forward)),
    (Direction::Backward, |inner| parse(inner, Direction::Backward)),
    (Direction::Forward, |inner| parse_paced(inner, Direction::Forward, false)),
    (Direction::Forward, |inner| parse_paced(inner, Direction::Forward, true)),
    (Direction::Backward, |inner| parse_paced(inner, Direction::Backward, false)),
    (Direction::Backward, |inner| parse_paced(inner, Direction::Backward, true)),
    (Direction::Forward, |inner| parse_meeting(inner, false)),
    (Direction::Forward, |inner| parse_meeting(inner, true)),
];

/// The frames inside an AGAIN: as many bytes as there are, and not one of them could be left out or repeated again.
fn check_again(frames: &[u8], payload: usize, heading: Direction) {
    let all: Vec<_> = Frames::of_again(frames).collect();
    assert_eq!(all.iter().map(Frame::len).sum::<usize>(), frames.len());
    assert!(!all.is_empty() && all.iter().all(|one| one.travels(heading) && !matches!(one, Frame::Again(_))));
    assert!(all.iter().filter(|one| one.is_datagram()).count() <= datagrams_max(payload));
}

/// A meeting has fewer kinds of frames than a channel to the exit, and without repeat there are fewer than with it.
fn check_subsets(inner: &[u8]) {
    let same = |less: Result<Frames<'_>, _>, more: Result<Frames<'_>, _>| {
        assert!(less.is_err() || more.is_ok_and(|more| less.is_ok_and(|less| less.eq(more))));
    };
    for repeat in [false, true] {
        same(parse_meeting(inner, repeat), parse_paced(inner, Direction::Forward, repeat));
    }
    same(parse_meeting(inner, false), parse_meeting(inner, true));
    for direction in [Direction::Forward, Direction::Backward] {
        same(parse_paced(inner, direction, false), parse_paced(inner, direction, true));
    }
    if parse_meeting(inner, true).is_ok() {
        let own = parse_meeting(inner, true).expect("it has been read");
        let no_flow = |one: &Frame<'_>| matches!(one, Frame::Dgram { flow: 0, .. } | Frame::Frag { flow: 0, .. });
        assert!(own.into_iter().all(|one| match one {
            Frame::Again(frames) => Frames::of_again(frames).all(|one| no_flow(&one)),
            one => no_flow(&one),
        }));
    }
}

fuzz_target!(|inner: &[u8]| {
    check_subsets(inner);
    for (heading, read) in READERS {
        let Ok(frames) = read(inner) else { continue };
        let mut again = vec![0xee; inner.len()];
        let mut writer = Writer::new(&mut again);
        let mut reassembler = Reassembler::new(PAYLOAD);
        let mut now = Duration::ZERO;
        let mut came = HashSet::new();
        let (mut injected, mut delivered, mut dropped) = (0, 0, 0);
        for frame in frames {
            let room = writer.room();
            assert!(frame.travels(heading) && writer.put(&frame));
            assert_eq!(room - writer.room(), frame.len());
            match frame {
                Frame::Frag { flow, id, index, last, data } => {
                    came.insert((flow, id, index, data.to_vec()));
                    let held = reassembler.held();
                    let pushed = reassembler.push(now, flow, id, index, last, data);
                    injected += u32::from(pushed.started);
                    dropped += pushed.evicted;
                    match pushed.outcome {
                        Outcome::Complete(whole) => {
                            delivered += 1;
                            assert!((CHUNK + 1..=FRAGMENTS_MAX * CHUNK).contains(&whole.len()));
                            for (index, part) in whole.chunks(CHUNK).enumerate() {
                                let part = (flow, id, index as u8, part.to_vec());
                                assert!(came.contains(&part), "nobody sent {part:?}");
                            }
                        }
                        Outcome::Refused if pushed.evicted == 0 && !pushed.started => {
                            assert_eq!(reassembler.held(), held, "what is refused changes nothing");
                        }
                        Outcome::Stored | Outcome::Refused => {}
                    }
                    assert!(reassembler.next_expiry().is_none_or(|due| due > now && due <= now + HOLD));
                }
                Frame::Dgram { flow, .. } => now += Duration::from_millis(flow.into()),
                Frame::Close { flow } => {
                    dropped += reassembler.drop_flow(flow);
                    came.retain(|part| part.0 != flow);
                }
                Frame::Again(frames) => check_again(frames, inner.len(), heading),
                _ => {}
            }
            assert_eq!(injected, delivered + dropped + reassembler.held() as u32);
            assert!(reassembler.held() <= PARTIAL_MAX);
        }
        let end = inner.len() - writer.room();
        writer.finish();
        assert_eq!(again[..end], inner[..end]);
        assert!(inner[end..].first().is_none_or(|byte| *byte == 0));
        assert_eq!(
            reassembler.expire(now + HOLD) as usize + reassembler.held(),
            (injected - delivered - dropped) as usize
        );
        assert_eq!(reassembler.held(), 0, "all is overdue in the end");
        // Without PAD a cell can only end where a frame ends.
        for end in 0..end {
            let cut = read(&inner[..end]);
            assert!(cut.is_err() || cut.is_ok_and(|frames| frames.map(|frame| frame.len()).sum::<usize>() == end));
        }
    }
});
