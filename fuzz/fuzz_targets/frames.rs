//! The inside of a cell: whatever parses is written the same again, and its fragments leave the
//! reassembler's ledger in balance. Run with `cargo +nightly fuzz run frames`.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use wire::cell::Direction;
use wire::frames::{Frame, Writer, parse};
use wire::reassembly::{Outcome, Reassembler};

/// Small, so that an input of some hundred bytes holds full fragments.
const PAYLOAD: usize = 24;

fuzz_target!(|inner: &[u8]| {
    for heading in [Direction::Forward, Direction::Backward] {
        let Ok(frames) = parse(inner, heading) else { continue };
        let mut again = vec![0xee; inner.len()];
        let mut writer = Writer::new(&mut again);
        let mut reassembler = Reassembler::new(PAYLOAD);
        let mut now = Duration::ZERO;
        let (mut injected, mut delivered, mut dropped) = (0, 0, 0);
        for frame in frames {
            assert!(frame.travels(heading) && writer.put(&frame));
            match frame {
                Frame::Frag { flow, id, index, last, data } => {
                    let pushed = reassembler.push(now, flow, id, index, last, data);
                    injected += u32::from(pushed.started);
                    dropped += pushed.evicted;
                    delivered += u32::from(matches!(pushed.outcome, Outcome::Complete(_)));
                }
                Frame::Dgram { flow, .. } => now += Duration::from_millis(flow.into()),
                Frame::Close { flow } => dropped += reassembler.drop_flow(flow),
                _ => {}
            }
            assert_eq!(injected, delivered + dropped + reassembler.held() as u32);
        }
        let end = inner.len() - writer.room();
        writer.finish();
        assert_eq!(again[..end], inner[..end]);
        assert!(inner[end..].first().is_none_or(|byte| *byte == 0));
    }
});
