//! What an exit's limits cost per datagram: `cargo bench -p dataplane --bench limits`.
//!
//! Prints nanoseconds of thread CPU time for a datagram out and one back, medians of nine rounds, by number of
//! addresses, each with a flow, in turn.

use std::hint::black_box;
use std::net::IpAddr;

use dataplane::SECOND;
use dataplane::exit::limits::{Limiter, Limits, Usage};
use dataplane::rate::Rate;
use rustix::time::{ClockId, clock_gettime};
use wire::ids::ChannelIndex;

/// All flows are of one channel.
const CHANNEL: ChannelIndex = ChannelIndex(0);

fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

const ROUNDS: u64 = 9;
const DATAGRAMS: u64 = 1 << 18;

fn main() {
    println!("{:>9} {:>5} {:>5}", "addresses", "out", "back");
    for addresses in [1u32, 64, 1024, 65_536] {
        let rate = |per_s| Some(Rate::per_second(per_s));
        let limits =
            Limits { unanswered: Some(1000), flow: rate(1_000_000), destination: rate(1_000_000), ..Limits::default() };
        let mut limiter = Limiter::new(limits, 0);
        let mut flows: Vec<(IpAddr, Usage)> =
            (0..addresses).map(|n| ((0x0100_0000 + n).to_be_bytes().into(), Usage::default())).collect();
        let (mut out, mut back, mut now) = (Vec::new(), Vec::new(), 0);
        for (ip, usage) in &mut flows {
            // From here on it may have what it wants.
            assert_eq!(limiter.backward(CHANNEL, usage, *ip, true, 0), Ok(()));
        }
        for _ in 0..ROUNDS {
            for (times, backward) in [(&mut out, false), (&mut back, true)] {
                let before = cpu_ns();
                for n in 0..DATAGRAMS {
                    let (ip, usage) = &mut flows[n as usize % addresses as usize];
                    // So slow that nobody reaches a rate.
                    now += SECOND / 500_000;
                    let done = match backward {
                        true => limiter.backward(CHANNEL, usage, *ip, true, now),
                        false => limiter.forward(CHANNEL, usage, *ip, now),
                    };
                    assert_eq!(black_box(done), Ok(()));
                }
                times.push((cpu_ns() - before) as f64 / DATAGRAMS as f64);
            }
        }
        let median = |mut times: Vec<f64>| {
            times.sort_unstable_by(f64::total_cmp);
            times[times.len() / 2]
        };
        println!("{addresses:>9} {:>5.1} {:>5.1}", median(out), median(back));
    }
}
