//! A datagram of a PyMix client: six bytes of destination, then the data. The destination is read as written,
//! and the data leaves its cells unchanged.

#![no_main]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use dataplane::entry::{Destination, pymix_destination};
use libfuzzer_sys::fuzz_target;
use wire::cell::{Class, Direction};
use wire::frames::{Address, Frame, Writer, fragment_count, parse, split};
use wire::reassembly::{Outcome, Reassembler};

fuzz_target!(|input: (u8, u16, &[u8])| {
    let (class, repeat, bytes) = input;
    let payload = [Class::S, Class::M, Class::L][usize::from(class) % 3].payload();
    let Some(destination) = pymix_destination(bytes) else {
        assert!(bytes.len() < 6 || bytes[4..6] == [0; 2], "a good header was refused");
        return;
    };
    let Destination::Ip(to) = destination else { panic!("pymix has no names") };
    let SocketAddr::V4(v4) = to else { panic!("pymix has IPv4 only") };
    assert_eq!(v4.ip(), &Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]));
    assert_eq!(v4.port().to_be_bytes(), bytes[4..6]);
    assert_ne!(v4.port(), 0);

    // Makes long datagrams of short inputs.
    let data: Vec<u8> =
        bytes[6..].iter().copied().cycle().take(bytes.len() - 6 + usize::from(repeat) % 11_000).collect();
    let data = if bytes.len() == 6 { Vec::new() } else { data };
    let count = split(payload, 3, 4, &data).count();
    assert_eq!(count, fragment_count(payload, data.len()).unwrap_or(0));
    assert_eq!(count == 0, data.len() > 8 * (payload - 8));
    let mut reassembler = Reassembler::new(payload);
    let mut came = None;
    for (i, frame) in split(payload, 3, 4, &data).enumerate() {
        let mut inner = vec![0xee; payload];
        let mut writer = Writer::new(&mut inner);
        let open = Frame::Open { flow: 3, map: 9, token: [5; 16], to: Address::Ip(to) };
        let opened = i == 0 && open.len() + frame.len() <= payload;
        assert!(!opened || writer.put(&open));
        assert!(writer.put(&frame), "each fragment fits a cell");
        writer.finish();
        let mut frames = parse(&inner, Direction::Forward).expect("it was written just now");
        assert!(!opened || frames.next() == Some(open));
        match frames.next() {
            Some(Frame::Dgram { flow: 3, data }) => came = Some(data.to_vec()),
            Some(Frame::Frag { flow: 3, id: 4, index, last, data }) => {
                assert!(came.is_none(), "complete before its end");
                let pushed = reassembler.push(Duration::ZERO, 3, 4, index, last, data);
                match pushed.outcome {
                    Outcome::Complete(whole) => came = Some(whole.to_vec()),
                    Outcome::Stored => {}
                    Outcome::Refused => panic!("a fragment cut by the rules was refused"),
                }
            }
            other => panic!("{other:?}"),
        }
        assert!(frames.next().is_none());
    }
    assert_eq!(came, (count > 0).then_some(data));
});
