//! Records of padding defences of others, for the traffic of a run with the same seed.
//!
//! ```text
//! user, padding -- access link -- relay, padding -- flow -- destination
//! tunnel   both ends of a user's tunnel and its link
//! ```
//!
//! Each user has a tunnel to the relay. Its packets have one length, whether they have a datagram or padding. The relay
//! sends a datagram on when it arrives. Access links are seen at the user's side. The destination answers the opening
//! datagram of a flow, so machines run at both ends before the record begins.
//!
//! The machines are those of `maybenot-machines`, with the parameters of their papers where these fit calls:
//!
//! ```text
//! Tamaraw   Cai et al., CCS 2014: a packet every 12 ms to the user and every 40 ms from it, for pages. A call sends
//!           every 20 ms both ways, so here: every 10 ms both ways. The links stop 30 s after the last datagram.
//! FRONT     Gong and Wang, USENIX Security 2020, FT-2: at each end a budget of up to 2500 packets, at times with a
//!           Rayleigh distribution of scale 1 to 14 s, from the first datagram on. 200 states approximate it, each
//!           with a uniform number of packets up to its share, so about half of the budget is sent.
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
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;

use self::tunnel::{Datagram, End, Packet};
use super::profile::{self, Traffic, WARM_UP};
use crate::load::source::{MILLI, Nanos, Source, seeded};

/// What pads the tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Defence {
    None,
    Tamaraw,
    Front,
}

impl Defence {
    /// The machines of one end.
    fn machines(self, random: &mut MachineRng) -> Vec<Machine> {
        match self {
            Defence::None => Vec::new(),
            // Seconds for a packet, and microseconds without a datagram until it stops.
            Defence::Tamaraw => tamaraw(0.01, 30e6),
            Defence::Front => front(2500, 1e6, 14e6, 200, random),
        }
    }
}

/// Users, each with a tunnel.
pub(super) struct Tunnels<'a> {
    pub(super) users: usize,
    pub(super) length: Duration,
    pub(super) seed: u64,
    pub(super) traffic: &'a Traffic,
    /// Bytes of a packet on the access link.
    pub(super) packet_len: u32,
}

/// One user's tunnel after its run.
struct Passed {
    /// What the destination sent.
    answers: Vec<Datagram>,
    /// What the user and the relay sent through the tunnel.
    packets: PerDirection<Vec<Packet>>,
}

impl Tunnels<'_> {
    /// The record, and how long a datagram waited at its end of the tunnel on average, in milliseconds. Datagrams that
    /// are not sent before the end do not count.
    pub(super) fn record(&self, defence: Defence) -> ((Record, Truth), Option<f64>) {
        // As a session draws them: one seed has the same users and traffic in all cases.
        let mut rng = seeded(self.seed);
        let mut flow_of: Vec<usize> = (0..self.users).collect();
        flow_of.shuffle(&mut rng);

        let mut record = Record {
            length: self.length.as_nanos() as Nanos,
            cell_bytes: self.packet_len,
            flows: vec![Place::default(); self.users],
            ..Record::default()
        };
        let (mut waited, mut count) = (0, 0);
        for (user, &flow) in flow_of.iter().enumerate() {
            let Passed { answers, packets } = self.tunnel(user, defence, &mut rng);
            let sent = |packet: &Packet| (packet.sent, self.packet_len);
            let arrived = |packet: &Packet| (packet.arrived, self.packet_len);
            let delivered = |packet: &Packet| Some((packet.arrived, packet.datagram?.bytes));
            record.access.push(Place {
                forward: self.seen(packets.forward.iter().map(sent)),
                backward: self.seen(packets.backward.iter().map(arrived)),
            });
            record.flows[flow] = Place {
                forward: self.seen(packets.forward.iter().filter_map(delivered)),
                backward: self.seen(answers.iter().map(|datagram| (datagram.at, datagram.bytes))),
            };
            for (packet, datagram) in packets.iter().flatten().filter_map(|packet| Some((packet, packet.datagram?))) {
                if self.since_begin(packet.sent).is_some() {
                    waited += packet.sent - datagram.at;
                    count += 1;
                }
            }
        }

        let probe = self.tunnel(self.users, defence, &mut rng).packets.forward;
        let passage = |packet: &Packet| {
            packet.datagram?;
            Some(Passage { entered: self.since_begin(packet.sent)?, left: self.since_begin(packet.arrived)? })
        };
        record.probe = probe.iter().filter_map(passage).collect();
        ((record, Truth(flow_of)), Some(waited as f64 / f64::from(count.max(1)) / MILLI as f64))
    }

    /// Runs the tunnel of a user. The one after the last is the adversary's own.
    fn tunnel(&self, user: usize, defence: Defence, traffic: &mut ChaCha20Rng) -> Passed {
        let until = (WARM_UP + self.length).as_nanos() as Nanos;
        let flow = profile::flow((user < self.users).then_some(self.traffic), traffic);
        let forward = datagrams(flow.forward, until);
        let mut answers = datagrams(flow.backward, until);
        answers.splice(0..0, forward.first().copied());

        // The traffic does not depend on what the defence draws.
        let mut own = seeded(self.seed);
        own.set_stream(1 + user as u64);
        let mut end = |datagrams: &[Datagram]| {
            let mut random = MachineRng::seed_from_u64(own.random());
            let machines = defence.machines(&mut random);
            End::new(machines, datagrams, random, ChaCha20Rng::from_rng(&mut own))
        };
        let [forward, backward] = tunnel::run([end(&forward), end(&answers)], until);
        Passed { answers, packets: PerDirection { forward, backward } }
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

    const USERS: usize = 12;
    const SECONDS: u64 = 10;
    const DEFENCES: [Defence; 3] = [Defence::None, Defence::Tamaraw, Defence::Front];

    fn record(defence: Defence, seed: u64) -> ((Record, Truth), f64) {
        let traffic = Traffic::read(&"voice".parse().unwrap()).unwrap();
        let length = Duration::from_secs(SECONDS);
        let tunnels = Tunnels { users: USERS, length, seed, traffic: &traffic, packet_len: 1408 };
        let (record, wait_ms) = tunnels.record(defence);
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
    fn front_adds_padding_and_delays_nothing() {
        let ((none, _), _) = record(Defence::None, 1);
        let ((front, _), wait_ms) = record(Defence::Front, 1);
        assert_eq!(wait_ms, 0.0);
        let padding = packets(&front) as f64 / packets(&none) as f64 - 1.0;
        assert!(padding > 0.5, "{padding} padding packets for each datagram");
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
