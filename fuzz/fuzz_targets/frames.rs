//! The payload of a cell. Parsed frames write the same bytes again. Their fragments keep the ledger of the
//! reassembler balanced, and a completed datagram consists of received fragments.

#![no_main]

use std::collections::HashSet;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use wire::cell::Direction;
use wire::frames::{FRAG_OVERHEAD, FRAGMENTS_MAX, Frame, Writer, parse};
use wire::reassembly::{HOLD, Outcome, PARTIAL_MAX, Reassembler};

/// Small, so that an input of a few hundred bytes holds full fragments.
const PAYLOAD: usize = 24;
const CHUNK: usize = PAYLOAD - FRAG_OVERHEAD;

fuzz_target!(|inner: &[u8]| {
    for heading in [Direction::Forward, Direction::Backward] {
        let Ok(frames) = parse(inner, heading) else { continue };
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
            let cut = parse(&inner[..end], heading);
            assert!(cut.is_err() || cut.is_ok_and(|frames| frames.map(|frame| frame.len()).sum::<usize>() == end));
        }
    }
});
