//! Records of padding defences of others, for the traffic of a run with the same seed.
//!
//! ```text
//! user, padding -- access link -- relay, padding -- flow -- destination
//! tunnel   both ends of a user's tunnel and its link
//! ```
//!
//! Each user has a tunnel to the relay. Its packets have one length, whether they have a datagram or padding. A
//! datagram that is too long for one packet is cut as eddy cuts it (SPEC 3.11), but into any number. The relay sends a
//! datagram on when it has all of it. Access links are seen at the user's side. The destination answers the opening
//! datagram of a flow, so machines run at both ends before the record begins.
//!
//! The machines are those of `maybenot-machines`, with the parameters of their papers where these fit calls:
//!
//! ```text
//! Tamaraw   Cai et al., CCS 2014: a packet every 12 ms to the user and every 40 ms from it, for pages. Here each
//!           direction has twice the rate of the busiest of 100 users with this profile, and at least 100 packets a
//!           second: every 10 ms for calls, which send every 20 ms. The links stop 30 s after the last datagram, as in
//!           WFDefProxy (Gong et al., IEEE TIFS 2023).
//! FRONT     Gong and Wang, USENIX Security 2020, FT-2: each end draws up to 2500 packets, 1250 on average, at times
//!           with a Rayleigh distribution of scale 1 to 14 s from the first datagram on. 200 states approximate it.
//!           Each sends a uniform number of packets up to its share and then ends, so with the paper's parameters the
//!           machine would send 58 % of the padding in 62 % of the time. With a budget of 4600 and scales of 1.84 to
//!           25.8 s it sends 200 to 2400 packets, 1250 on average, at 9.4 s on average, as in the paper.
//! ```

mod tunnel;

use std::time::Duration;

use attack::{Passage, Place, Record, Seen, Truth};
use dataplane::per_direction::PerDirection;
use maybenot::Machine;
use maybenot_machines::front::front;
use maybenot_machines::tamaraw::tamaraw;
use maybenot_rand::ChaCha20Rng as MachineRng;
use maybenot_rand::rand_core::SeedableRng as _;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::Shape;
use wire::frames::{FRAG_OVERHEAD, max_single_cell_len};

use self::tunnel::{Datagram, End, Load, Packet};
use super::profile::{self, Traffic, WARM_UP};
use crate::load::source::{MILLI, Nanos, SECOND, Source, Sources, seeded};

/// On average Maybenot's FRONT sends a quarter of this, and half a packet more for each state.
const FRONT_BUDGET: u32 = 4600;
/// By how much its states end early, on average over packets.
const FRONT_STRETCH: f64 = 1.84;
const FRONT_STATES: usize = 200;

/// Users and seconds of the sample that the rate of Tamaraw is taken from.
const SAMPLE: (usize, u64) = (100, 60);
/// The lowest rate of Tamaraw, in packets a second.
const RATE_MIN: f64 = 100.0;

/// What pads the tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Defence {
    None,
    Tamaraw,
    Front,
}

impl Defence {
    /// The machines of one end. `interval_us` is from one packet of Tamaraw to the next.
    fn machines(self, interval_us: f64, random: &mut MachineRng) -> Vec<Machine> {
        match self {
            Defence::None => Vec::new(),
            // Seconds for a packet, and microseconds without a datagram until it stops.
            Defence::Tamaraw => tamaraw(interval_us / 1e6, 30e6),
            Defence::Front => {
                let [narrowest, widest] = [1e6, 14e6].map(|scale| FRONT_STRETCH * scale);
                front(FRONT_BUDGET, narrowest, widest, FRONT_STATES, random)
            }
        }
    }
}

/// Users, each with a tunnel.
pub(super) struct Tunnels<'a> {
    pub(super) users: usize,
    pub(super) length: Duration,
    pub(super) seed: u64,
    pub(super) traffic: &'a Traffic,
    /// Of the chain whose cells are as long as the packets.
    pub(super) shape: Shape,
}

/// One user's tunnel after its run.
struct Passed {
    /// What the destination sent.
    answers: Vec<Datagram>,
    /// What the user and the relay sent through the tunnel.
    packets: PerDirection<Vec<Packet>>,
}

impl Tunnels<'_> {
    /// The record, and how long a datagram waited at its end of the tunnel on average until all of it was sent, in
    /// milliseconds. Datagrams that are not sent before the end do not count.
    pub(super) fn record(&self, defence: Defence) -> ((Record, Truth), Option<f64>) {
        let (truth, sources) = profile::draw(self.traffic, self.users, profile::FRAME_LEN, self.seed);
        let intervals = self.intervals_us();
        let mut passed: Vec<Passed> = (sources.into_iter().enumerate())
            .map(|(user, sources)| self.tunnel(user, sources, defence, &intervals))
            .collect();
        let probe = passed.pop().map_or_else(Vec::new, |own| own.packets.forward);

        let packet_len = self.shape.longest_cell() as u32;
        let mut record = Record {
            length: self.length.as_nanos() as Nanos,
            cell_bytes: packet_len,
            flows: vec![Place::default(); self.users],
            ..Record::default()
        };
        let (mut waited, mut count) = (0, 0);
        for (Passed { answers, packets }, &flow) in passed.iter().zip(&truth.0) {
            let sent = |packet: &Packet| (packet.sent, packet_len);
            let arrived = |packet: &Packet| (packet.arrived, packet_len);
            let delivered = |packet: &Packet| Some((packet.arrived, packet.datagram()?.bytes));
            record.access.push(Place {
                forward: self.seen(packets.forward.iter().map(sent)),
                backward: self.seen(packets.backward.iter().map(arrived)),
            });
            record.flows[flow] = Place {
                forward: self.seen(packets.forward.iter().filter_map(delivered)),
                backward: self.seen(answers.iter().map(|datagram| (datagram.at, datagram.bytes))),
            };
            for (packet, datagram) in packets.iter().flatten().filter_map(|packet| Some((packet, packet.datagram()?))) {
                if self.since_begin(packet.sent).is_some() {
                    waited += packet.sent - datagram.at;
                    count += 1;
                }
            }
        }
        let passage = |packet: &Packet| {
            packet.datagram()?;
            Some(Passage { entered: self.since_begin(packet.sent)?, left: self.since_begin(packet.arrived)? })
        };
        record.probe = probe.iter().filter_map(passage).collect();
        ((record, truth), Some(waited as f64 / f64::from(count.max(1)) / MILLI as f64))
    }

    /// Runs the tunnel of a user. The one after the last is the adversary's own.
    fn tunnel(&self, user: usize, sources: Sources, defence: Defence, intervals_us: &PerDirection<f64>) -> Passed {
        let until = (WARM_UP + self.length).as_nanos() as Nanos;
        let forward = datagrams(sources.forward, until);
        let mut answers = datagrams(sources.backward, until);
        answers.splice(0..0, forward.first().copied());

        // The traffic does not depend on what the defence draws.
        let mut own = seeded(self.seed);
        own.set_stream(1 + user as u64);
        let mut end = |datagrams: &[Datagram], interval_us: f64| {
            let mut random = MachineRng::seed_from_u64(own.random());
            let machines = defence.machines(interval_us, &mut random);
            let loads = datagrams.iter().flat_map(|datagram| self.loads(*datagram));
            End::new(machines, loads, random, ChaCha20Rng::from_rng(&mut own))
        };
        let ends = [end(&forward, intervals_us.forward), end(&answers, intervals_us.backward)];
        let [forward, backward] = tunnel::run(ends, until);
        Passed { answers, packets: PerDirection { forward, backward } }
    }

    /// What the packets of a datagram carry.
    fn loads(&self, datagram: Datagram) -> impl Iterator<Item = (Nanos, Load)> + use<> {
        let parts = std::iter::repeat_n(Load::Part, self.packets_of(datagram.bytes as usize) - 1);
        parts.chain([Load::Datagram(datagram)]).map(move |load| (datagram.at, load))
    }

    /// Packets that a datagram takes.
    fn packets_of(&self, bytes: usize) -> usize {
        let payload = self.shape.payload();
        if bytes <= max_single_cell_len(payload) { 1 } else { bytes.div_ceil(payload - FRAG_OVERHEAD) }
    }

    /// From one packet of Tamaraw to the next: the same for all users, or it would be a mark of theirs. In tenths of a
    /// millisecond.
    fn intervals_us(&self) -> PerDirection<f64> {
        let mut rng = seeded(0);
        let mut greatest = PerDirection::from_fn(|_| 0);
        for _ in 0..SAMPLE.0 {
            let Sources { forward, backward } = self.traffic.sources(&mut rng);
            for (most, source) in [(&mut greatest.forward, forward), (&mut greatest.backward, backward)] {
                let all = datagrams(source, SAMPLE.1 * SECOND);
                *most = all.iter().map(|one| self.packets_of(one.bytes as usize)).sum::<usize>().max(*most);
            }
        }
        let interval = |packets: usize| {
            let rate = (2.0 * packets as f64 / SAMPLE.1 as f64).max(RATE_MIN);
            100.0 * (1e4 / rate).round().max(1.0)
        };
        PerDirection { forward: interval(greatest.forward), backward: interval(greatest.backward) }
    }

    /// Time since the record began, within it.
    fn since_begin(&self, at: Nanos) -> Option<Nanos> {
        let at = at.checked_sub(WARM_UP.as_nanos() as Nanos)?;
        (u128::from(at) < self.length.as_nanos()).then_some(at)
    }

    fn seen(&self, all: impl Iterator<Item = (Nanos, u32)>) -> Vec<Seen> {
        all.filter_map(|(at, bytes)| Some(Seen { at: self.since_begin(at)?, bytes })).collect()
    }
}

/// What a source sends before `until`.
fn datagrams(source: Option<Box<dyn Source>>, until: Nanos) -> Vec<Datagram> {
    let Some(mut source) = source else { return Vec::new() };
    let all = std::iter::from_fn(|| source.next()).take_while(|(at, _)| *at < until);
    all.map(|(at, len)| Datagram { at, bytes: len as u32 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use attack::{attackers, figures};
    use wire::cell::Class;

    const USERS: usize = 12;
    const SECONDS: u64 = 10;
    const DEFENCES: [Defence; 3] = [Defence::None, Defence::Tamaraw, Defence::Front];

    fn traffic(profile: &str) -> Traffic {
        Traffic::read(&profile.parse().unwrap()).unwrap()
    }

    fn tunnels(traffic: &Traffic, class: Class, seed: u64) -> Tunnels<'_> {
        let shape = Shape::new(class, 4).unwrap();
        Tunnels { users: USERS, length: Duration::from_secs(SECONDS), seed, traffic, shape }
    }

    fn record(defence: Defence, seed: u64) -> ((Record, Truth), f64) {
        let (record, wait_ms) = tunnels(&traffic("voice"), Class::L, seed).record(defence);
        (record, wait_ms.unwrap())
    }

    fn packets(record: &Record) -> usize {
        record.access.iter().map(|place| place.forward.len() + place.backward.len()).sum()
    }

    #[test]
    fn same_seed_gives_the_same_record() {
        for defence in DEFENCES {
            assert_eq!(record(defence, 4), record(defence, 4));
            assert_ne!(record(defence, 4).0.0, record(defence, 5).0.0);
        }
    }

    #[test]
    fn every_defence_has_the_same_users_and_answers() {
        let ((none, truth), _) = record(Defence::None, 1);
        for defence in [Defence::Tamaraw, Defence::Front] {
            let ((other, same), _) = record(defence, 1);
            assert_eq!(same, truth);
            assert!(none.flows.iter().zip(&other.flows).all(|(none, other)| none.backward == other.backward));
        }
    }

    #[test]
    fn without_padding_each_packet_is_a_datagram() {
        let ((record, truth), wait_ms) = record(Defence::None, 1);
        assert_eq!(wait_ms, 0.0);
        for (access, &flow) in record.access.iter().zip(&truth.0) {
            let flow = &record.flows[flow];
            assert!(access.forward.len().abs_diff(flow.forward.len()) <= 1, "one may be on its way at either end");
            assert!(access.backward.len().abs_diff(flow.backward.len()) <= 1);
        }
        assert!((400..600).contains(&record.probe.len()), "{} passages", record.probe.len());
        assert!(record.probe.iter().all(|passage| passage.left - passage.entered < 5 * MILLI));
    }

    #[test]
    fn tamaraw_links_have_a_constant_rate() {
        let ((record, _), wait_ms) = record(Defence::Tamaraw, 1);
        for access in &record.access {
            assert!(access.forward.windows(2).all(|pair| pair[1].at - pair[0].at == 10 * MILLI));
            assert!(access.backward.windows(2).all(|pair| (pair[1].at - pair[0].at).abs_diff(10 * MILLI) < 5 * MILLI));
            for trace in [&access.forward, &access.backward] {
                assert!(trace.len().abs_diff(100 * SECONDS as usize) <= 1, "{} packets", trace.len());
                assert!(trace.iter().all(|seen| seen.bytes == 1408));
            }
        }
        // Without a queue a datagram waits for the next slot only.
        assert!((3.0..8.0).contains(&wait_ms), "{wait_ms} ms");
    }

    #[test]
    fn tamaraw_flows_have_the_phase_of_their_links() {
        let ((record, truth), _) = record(Defence::Tamaraw, 1);
        for (access, &flow) in record.access.iter().zip(&truth.0) {
            let phase = access.forward[0].at % (10 * MILLI);
            let flow = &record.flows[flow].forward;
            let late = flow.iter().map(|seen| (seen.at + 10 * MILLI - phase) % (10 * MILLI)).sum::<Nanos>();
            let late = late as f64 / flow.len() as f64;
            assert!((100_000.0..200_000.0).contains(&late), "{late} ns after the slots of the link");
        }
    }

    #[test]
    fn tamaraw_has_the_rate_of_its_profile() {
        let intervals = |profile: &str, class: Class| {
            let PerDirection { forward, backward } = tunnels(&traffic(profile), class, 1).intervals_us();
            [forward / 1e3, backward / 1e3]
        };
        for calls in ["voice", "constant", "web"] {
            assert_eq!(intervals(calls, Class::L), [10.0, 10.0], "{calls}");
        }
        let [frames, none] = intervals("video", Class::L);
        assert_eq!([frames, none], [2.5, 10.0], "about 200 packets a second");
        let [player, _] = intervals("game", Class::L);
        assert_eq!(player, 3.9, "128 a second");
        let [cut, _] = intervals("video", Class::S);
        assert!((5.0..7.0).contains(&(frames / cut)), "{cut}: up to six packets for each datagram");
    }

    #[test]
    fn tamaraw_carries_video_without_a_growing_queue() {
        let (_, wait_ms) = tunnels(&traffic("video"), Class::L, 1).record(Defence::Tamaraw);
        assert!(wait_ms.is_some_and(|wait| wait < 50.0), "{wait_ms:?}");
    }

    #[test]
    fn long_datagrams_take_several_packets() {
        let [video, voice] = ["video", "voice"].map(traffic);
        let small = tunnels(&video, Class::S, 1);
        assert_eq!([203, 204, 400, 401, 1200].map(|bytes| small.packets_of(bytes)), [1, 2, 2, 3, 6]);
        let bytes =
            |record: &Record| record.flows.iter().flat_map(|flow| &flow.forward).map(|seen| seen.bytes).sum::<u32>();
        for defence in DEFENCES {
            let (cut, truth) = small.record(defence).0;
            for (access, &flow) in cut.access.iter().zip(&truth.0) {
                let needed =
                    cut.flows[flow].forward.iter().map(|one| small.packets_of(one.bytes as usize)).sum::<usize>();
                assert!(access.forward.len() + 40 >= needed, "{} packets for {needed} parts", access.forward.len());
                assert!(access.forward.iter().all(|seen| seen.bytes == 288));
            }
            let whole = tunnels(&video, Class::L, 1).record(defence).0.0;
            let share = f64::from(bytes(&cut)) / f64::from(bytes(&whole));
            assert!((0.98..1.02).contains(&share), "{share} of the bytes arrive");
        }
        let calls = tunnels(&voice, Class::S, 1).record(Defence::None).0.0;
        assert_eq!(calls.flows, record(Defence::None, 1).0.0.flows, "datagrams of calls fit into all packets");
    }

    #[test]
    fn times_keep_their_nanoseconds() {
        for defence in DEFENCES {
            let ((record, _), _) = record(defence, 1);
            for place in record.access.iter().chain(&record.flows) {
                for trace in [&place.forward, &place.backward] {
                    assert!(trace.iter().any(|seen| !seen.at.is_multiple_of(1000)), "{defence:?}");
                }
            }
        }
    }

    #[test]
    fn front_delays_nothing() {
        let ((none, _), _) = record(Defence::None, 1);
        let ((front, _), wait_ms) = record(Defence::Front, 1);
        assert_eq!(wait_ms, 0.0);
        let flows = |record: &Record| record.flows.iter().map(|flow| flow.forward.len()).sum::<usize>();
        assert!(flows(&none).abs_diff(flows(&front)) <= 2 * USERS, "at most one more or less at either end");
        // Of 1250 packets an end, 62 % are in the ten seconds of the record, which begins 0.6 to 3 s after the flow.
        // The mean of 24 ends has a deviation of 80.
        let padding = (packets(&front) - packets(&none)) as f64 / (2 * USERS) as f64;
        assert!((540.0..1020.0).contains(&padding), "{padding} packets an end");
    }

    #[test]
    fn front_has_the_budget_and_the_times_of_its_paper() {
        const ENDS: u64 = 200;
        let opening = Datagram { at: 0, bytes: 64 };
        let end = |seed: u64, machines: bool| {
            let mut random = MachineRng::seed_from_u64(seed);
            let machines = if machines { Defence::Front.machines(0.0, &mut random) } else { Vec::new() };
            End::new(machines, [(0, Load::Datagram(opening))], random, seeded(seed))
        };
        let (mut numbers, mut sum) = (Vec::new(), 0.0);
        for seed in 0..ENDS {
            let [sent, _] = tunnel::run([end(seed, true), end(seed, false)], 200 * SECOND);
            numbers.push(sent.len() - 1);
            sum += sent[1..].iter().map(|packet| packet.sent as f64 / SECOND as f64).sum::<f64>();
        }
        let all = numbers.iter().sum::<usize>() as f64;
        let (mean, seconds) = (all / ENDS as f64, sum / all);
        // Uniform from 200 to 2400, a little spread; the least budgets are not spent after 200 s.
        numbers.sort_unstable();
        let [least, few, many, most] = [0, 20, 180, 199].map(|at| numbers[at]);
        assert!(least <= 200 && most <= 2700, "{least} to {most}");
        assert!(few.abs_diff(420) < 150 && many.abs_diff(2180) < 150, "{few} and {many} at 10 and 90 %");
        // Mean (1 + 2500) / 2 and a deviation of 635 for each end: three deviations of the mean of all.
        assert!((mean - 1250.5).abs() < 3.0 * 635.0 / (ENDS as f64).sqrt(), "{mean}");
        // The mean of the scales, 7.5 s, times sqrt(pi / 2): again three deviations.
        assert!((seconds - 9.4).abs() < 1.2, "{seconds} s");
    }

    #[test]
    fn users_of_tamaraw_are_found_by_phases() {
        let ((record, truth), _) = record(Defence::Tamaraw, 1);
        let found = |name: &str| {
            let attackers = attackers::passive(&[], |one| one == name);
            figures::top1(&attackers[0].scores(&record), &truth)
        };
        assert!(found("phases") > 0.9 && found("volume") < 0.5, "{} {}", found("phases"), found("volume"));
    }

    #[test]
    fn likelihood_finds_users_without_padding() {
        let ((record, truth), _) = record(Defence::None, 1);
        let attackers = attackers::passive(&[], |name| name.starts_with("likelihood"));
        assert!(!attackers.is_empty());
        for attacker in attackers {
            let top1 = figures::top1(&attacker.scores(&record), &truth);
            assert!(top1 > 0.9, "{}: {top1}", attacker.name());
        }
    }
}
