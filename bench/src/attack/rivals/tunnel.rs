//! A tunnel between a user and a relay, with padding machines of Maybenot at both ends.
//!
//! This is the program around the framework that the documentation of `maybenot` describes: an action timer and an
//! internal timer for each machine, and blocking that holds packets in order. Timers are exact. Applications send when
//! they want to, whatever the tunnel delays: they do not wait for each other's datagrams.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use maybenot::{Framework, Machine, MachineId, Timer, TriggerAction, TriggerEvent};
use maybenot_rand::ChaCha20Rng as MachineRng;
use rand_chacha::ChaCha20Rng;

use crate::load::source::{Nanos, exponential};

/// What a packet takes from end to end, as a link of the simulation with mixing off: constant, and the mean of an
/// exponential jitter. Packets keep their order.
pub(super) const LINK: Nanos = 30_000;
pub(super) const JITTER: f64 = 100_000.0;

/// What an application sends through the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Datagram {
    /// When the end of the tunnel receives it.
    pub(super) at: Nanos,
    pub(super) bytes: u32,
}

/// A packet on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) sent: Nanos,
    pub(super) arrived: Nanos,
    pub(super) load: Load,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    Padding,
    /// A part of a datagram that is not its last.
    Part,
    /// A datagram, or its last part.
    Datagram(Datagram),
}

impl Packet {
    /// The datagram that is complete with this packet.
    pub(super) fn datagram(&self) -> Option<Datagram> {
        match self.load {
            Load::Datagram(datagram) => Some(datagram),
            Load::Padding | Load::Part => None,
        }
    }
}

/// The user or the relay.
pub(super) struct End {
    framework: Framework<Vec<Machine>, MachineRng>,
    /// What the framework has for time zero.
    origin: Instant,
    /// What each machine does next, and when.
    actions: Vec<Option<(Nanos, TriggerAction)>>,
    /// When the internal timer of each machine ends.
    timers: Vec<Option<Nanos>>,
    blocked_until: Option<Nanos>,
    /// Padding may pass the blocking.
    passable: bool,
    /// What the blocking holds, the oldest first.
    held: VecDeque<Load>,
    /// Datagrams and their parts to come, the next first, and when.
    loads: VecDeque<(Nanos, Load)>,
    /// Draws the jitter of the link.
    jitter: ChaCha20Rng,
    sent: Vec<Packet>,
    /// How many packets have arrived here.
    received: usize,
}

/// What happens at an end.
enum What {
    Unblock,
    Arrival { padding: bool },
    Load(Load),
    Timer(usize),
    Action(usize),
}

/// Runs a tunnel and returns the packets that each end sent before `until`. Those on the way then are among them.
pub(super) fn run(mut ends: [End; 2], until: Nanos) -> [Vec<Packet>; 2] {
    loop {
        let next = |end: usize| ends[end].next(&ends[1 - end].sent).map(|(at, what)| (at, end, what));
        let first = [next(0), next(1)].into_iter().flatten().min_by_key(|(at, ..)| *at);
        match first {
            Some((now, end, what)) if now < until => ends[end].take(what, now),
            _ => return ends.map(|end| end.sent),
        }
    }
}

impl End {
    /// `loads` are what the application sends, in order of time.
    pub(super) fn new(
        machines: Vec<Machine>,
        loads: impl IntoIterator<Item = (Nanos, Load)>,
        random: MachineRng,
        jitter: ChaCha20Rng,
    ) -> End {
        let (count, origin) = (machines.len(), Instant::now());
        End {
            framework: Framework::new(machines, 0.0, 0.0, origin, random).expect("valid machines, no limits"),
            origin,
            actions: vec![None; count],
            timers: vec![None; count],
            blocked_until: None,
            passable: false,
            held: VecDeque::new(),
            loads: loads.into_iter().collect(),
            jitter,
            sent: Vec::new(),
            received: 0,
        }
    }

    /// The first thing to happen here, given what the other end sent. At one time, packets come before machines.
    fn next(&self, inbound: &[Packet]) -> Option<(Nanos, What)> {
        let unblock = self.blocked_until.map(|at| (at, What::Unblock));
        let arrival = |packet: &Packet| (packet.arrived, What::Arrival { padding: packet.load == Load::Padding });
        let arrival = inbound.get(self.received).map(arrival);
        let load = self.loads.front().map(|(at, load)| (*at, What::Load(*load)));
        let timers = (self.timers.iter().enumerate()).filter_map(|(machine, at)| Some(((*at)?, What::Timer(machine))));
        let actions = self.actions.iter().enumerate();
        let actions = actions.filter_map(|(machine, action)| Some((action.as_ref()?.0, What::Action(machine))));
        let packets = unblock.into_iter().chain(arrival).chain(load);
        packets.chain(timers).chain(actions).min_by_key(|(at, _)| *at)
    }

    fn take(&mut self, what: What, now: Nanos) {
        match what {
            What::Unblock => {
                self.blocked_until = None;
                self.trigger(TriggerEvent::BlockingEnd, now);
                for load in std::mem::take(&mut self.held) {
                    self.send(load, now);
                }
            }
            What::Arrival { padding } => {
                self.received += 1;
                self.trigger(TriggerEvent::TunnelRecv, now);
                self.trigger(if padding { TriggerEvent::PaddingRecv } else { TriggerEvent::NormalRecv }, now);
            }
            What::Load(load) => {
                self.loads.pop_front();
                self.trigger(TriggerEvent::NormalSent, now);
                self.offer(load, false, now);
            }
            What::Timer(machine) => {
                self.timers[machine] = None;
                self.trigger(TriggerEvent::TimerEnd { machine: MachineId::from_raw(machine) }, now);
            }
            What::Action(machine) => {
                if let Some((_, action)) = self.actions[machine].take() {
                    self.act(&action, now);
                }
            }
        }
    }

    /// Reports an event to the machines, and schedules what they want.
    fn trigger(&mut self, event: TriggerEvent, now: Nanos) {
        let End { framework, actions, timers, .. } = self;
        let after = |duration: &Duration| now + duration.as_nanos() as Nanos;
        let mut begun = Vec::new();
        for action in framework.trigger_events(&[event], self.origin + Duration::from_nanos(now)) {
            match action {
                TriggerAction::SendPadding { timeout, machine, .. }
                | TriggerAction::BlockOutgoing { timeout, machine, .. } => {
                    actions[machine.into_raw()] = Some((after(timeout), action.clone()));
                }
                TriggerAction::UpdateTimer { duration, replace, machine } => {
                    let timer = &mut timers[machine.into_raw()];
                    if *replace || timer.is_none_or(|at| at < after(duration)) {
                        *timer = Some(after(duration));
                        begun.push(*machine);
                    }
                }
                TriggerAction::Cancel { machine, timer } => {
                    if matches!(timer, Timer::Action | Timer::All) {
                        actions[machine.into_raw()] = None;
                    }
                    if matches!(timer, Timer::Internal | Timer::All) {
                        timers[machine.into_raw()] = None;
                    }
                }
            }
        }
        for machine in begun {
            self.trigger(TriggerEvent::TimerBegin { machine }, now);
        }
    }

    /// Does what a machine scheduled.
    fn act(&mut self, action: &TriggerAction, now: Nanos) {
        match *action {
            TriggerAction::SendPadding { bypass, replace, machine, .. } => {
                self.trigger(TriggerEvent::PaddingSent { machine }, now);
                if !replace || self.held.is_empty() {
                    self.offer(Load::Padding, bypass, now);
                } else if bypass
                    && self.passable
                    && let Some(load) = self.held.pop_front()
                {
                    self.send(load, now);
                }
                // Otherwise a packet that is held, and stays held, takes the place of the padding.
            }
            TriggerAction::BlockOutgoing { duration, bypass, replace, machine, .. } => {
                let until = now + duration.as_nanos() as Nanos;
                if replace || self.blocked_until.is_none_or(|at| at < until) {
                    self.blocked_until = Some(until);
                    self.passable = bypass;
                }
                self.trigger(TriggerEvent::BlockingBegin { machine }, now);
            }
            TriggerAction::Cancel { .. } | TriggerAction::UpdateTimer { .. } => {
                unreachable!("only padding and blocking are scheduled")
            }
        }
    }

    /// Sends a packet, or holds it while sending is blocked.
    fn offer(&mut self, load: Load, bypass: bool, now: Nanos) {
        if self.blocked_until.is_some() && !(bypass && self.passable) {
            self.held.push_back(load);
        } else {
            self.send(load, now);
        }
    }

    fn send(&mut self, load: Load, now: Nanos) {
        let arrived = now + LINK + exponential(&mut self.jitter, JITTER) as Nanos;
        let arrived = arrived.max(self.sent.last().map_or(0, |last| last.arrived));
        self.sent.push(Packet { sent: now, arrived, load });
        self.trigger(TriggerEvent::TunnelSent, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::source::{MILLI, SECOND, seeded};
    use maybenot_machines::tamaraw::tamaraw;
    use maybenot_rand::rand_core::SeedableRng;

    /// What a user with these machines sends to a relay without any.
    fn sent(machines: Vec<Machine>, at_ms: &[u64], until: Nanos) -> Vec<Packet> {
        let loads = at_ms.iter().map(|ms| (ms * MILLI, Load::Datagram(Datagram { at: ms * MILLI, bytes: 172 })));
        let user = End::new(machines, loads, MachineRng::seed_from_u64(1), seeded(2));
        let relay = End::new(Vec::new(), [], MachineRng::seed_from_u64(3), seeded(4));
        let [forward, backward] = run([user, relay], until);
        assert!(backward.is_empty() && forward.is_sorted_by_key(|packet| (packet.sent, packet.arrived)));
        forward
    }

    #[test]
    fn tunnel_without_machines_only_has_the_delay_of_its_link() {
        let at_ms: Vec<u64> = (0..1000).map(|number| 20 * number).collect();
        let packets = sent(Vec::new(), &at_ms, 30 * SECOND);
        assert!(packets.iter().map(|packet| packet.sent / MILLI).eq(at_ms));
        let delays = packets.iter().map(|packet| packet.arrived - packet.sent);
        assert!(delays.clone().all(|delay| (LINK..5 * MILLI).contains(&delay)));
        let mean = delays.sum::<Nanos>() as f64 / packets.len() as f64;
        assert!((mean - LINK as f64 - JITTER).abs() < 20_000.0, "{mean} ns");
    }

    #[test]
    fn tamaraw_holds_datagrams_for_its_slots_in_order() {
        let packets = sent(tamaraw(0.01, 30e6), &[5, 8, 9, 31, 47], 66 * MILLI);
        let all: Vec<_> =
            packets.iter().map(|one| (one.sent / MILLI, one.datagram().map(|one| one.at / MILLI))).collect();
        let slots = [5, 15, 25, 35, 45, 55, 65];
        assert!(slots.into_iter().zip([Some(5), Some(8), Some(9), Some(31), None, Some(47), None]).eq(all));
    }

    #[test]
    fn tamaraw_ends_after_its_window_and_starts_again() {
        let packets = sent(tamaraw(0.01, 1e6), &[0, 100, 5005], 5500 * MILLI);
        // It sends up to a multiple of 100 packets at once, and then the padding that was due.
        let last = packets.iter().rfind(|packet| packet.sent < 5 * SECOND).unwrap();
        assert!((1100 * MILLI..1111 * MILLI).contains(&last.sent), "{last:?}");
        assert!(packets.iter().any(|packet| packet.sent == 5005 * MILLI), "a new start does not wait");
    }
}
