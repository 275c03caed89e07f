//! Runs a sequence from the start, and enumerates all sequences up to a bound.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use wire::handshake::is_handshake_len;

use super::invariant::{Broken, Invariant, Monitor};
use super::step::{Kind, Message, Move, Sequence, Way, attacker, describe};
use crate::sim::{Fate, Packet, World, ms, up_address};

/// What is enumerated: two ends, what they do, and what may happen to their messages.
pub struct Scenario {
    pub name: &'static str,
    pub world: fn() -> World,
    /// Initiator and responder, by position.
    pub ends: (usize, usize),
    /// True for the first message that a sequence is about.
    pub opens: fn(&World, Message) -> bool,
    pub moves: &'static [Move],
    /// How far a clock is ahead, in ms, after its node has restarted.
    pub clock_ms: i64,
    /// After so long on an honest network the ends must have recovered.
    pub recovery: Duration,
    /// What must hold by then in addition.
    pub also: Also,
}

/// What a scenario checks at the end besides the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Also {
    Nothing,
    /// All hops hold a bundle of the running interval.
    Bundle,
    /// All nodes of the chain have the entry's channel.
    Channel,
}

/// All sequences over the first `messages` messages of which at most `deviations` do not simply pass.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    pub messages: usize,
    pub deviations: usize,
}

/// A run ends before the time for recovery is over if the ends have recovered after this.
const SETTLED: Duration = ms(2000);

/// What an enumeration has found.
pub struct Report {
    pub sequences: usize,
    pub messages: usize,
    /// Of each invariant that did not hold, a shortest sequence and the circumstances.
    pub found: BTreeMap<Invariant, (Sequence, String)>,
}

impl Scenario {
    /// Runs one sequence. Returns the messages that it was about.
    pub fn run(&self, sequence: &Sequence, messages: usize) -> (Vec<Message>, Result<(), Broken>) {
        let mut seen = Vec::new();
        let outcome = catch_unwind(AssertUnwindSafe(|| Run::new(self, sequence, messages, &mut seen).finish()));
        let assertion = |cause: Box<dyn std::any::Any + Send>| {
            let text = cause.downcast_ref::<String>().map(String::as_str).or(cause.downcast_ref::<&str>().copied());
            Err((Invariant::Assertion, text.unwrap_or("a panic").to_owned()))
        };
        let outcome = outcome.unwrap_or_else(assertion);
        (seen, outcome)
    }

    /// Runs all sequences, those with few deviations first. A sequence that breaks an invariant is not continued.
    pub fn enumerate(&self, bound: Bound, threads: usize) -> Report {
        let mut report = Report { sequences: 0, messages: 0, found: BTreeMap::new() };
        let mut level = vec![Sequence::default()];
        for deviations in 0..=bound.deviations {
            let outcomes = self.run_all(&level, bound, threads);
            let mut next = Vec::new();
            for (sequence, (seen, outcome)) in level.iter().zip(outcomes) {
                report.sequences += 1;
                report.messages += seen.len();
                if let Err((which, why)) = outcome {
                    let why = format!("{which:?}: {why}\n{}", describe(sequence, &seen));
                    report.found.entry(which).or_insert((sequence.clone(), why));
                } else if deviations < bound.deviations {
                    for (at, message) in seen.iter().enumerate().skip(sequence.0.len()) {
                        next.extend(message.moves(self.moves).map(|other| sequence.with(at, other)));
                    }
                }
            }
            level = next;
        }
        report
    }

    fn run_all(&self, level: &[Sequence], bound: Bound, threads: usize) -> Vec<(Vec<Message>, Result<(), Broken>)> {
        let run = |sequence: &Sequence| self.run(sequence, bound.messages);
        if threads < 2 {
            return level.iter().map(run).collect();
        }
        let share = level.len().div_ceil(threads).max(1);
        std::thread::scope(|scope| {
            let workers: Vec<_> =
                level.chunks(share).map(|part| scope.spawn(move || part.iter().map(run).collect::<Vec<_>>())).collect();
            workers.into_iter().flat_map(|worker| worker.join().expect("panics are caught")).collect()
        })
    }
}

impl Report {
    /// Prints what was enumerated and found.
    pub fn print(&self, name: &str, bound: Bound, took: Duration) {
        let Bound { messages, deviations } = bound;
        println!(
            "{name}: {} sequences with up to {deviations} deviations in {messages} messages, {took:.1?}",
            self.sequences
        );
        for (sequence, why) in self.found.values() {
            println!("\"{sequence}\" breaks {why}");
        }
    }
}

/// One sequence on the way.
struct Run<'a> {
    scenario: &'a Scenario,
    sequence: &'a Sequence,
    world: World,
    monitor: Monitor,
    /// Datagrams that were just sent, and have no fate yet.
    sent: Rc<RefCell<Vec<Packet>>>,
    /// The messages that the sequence is about, at most `limit`.
    seen: &'a mut Vec<Message>,
    limit: usize,
    is_open: bool,
    /// Datagrams that arrive after the next message of the same direction.
    held: Vec<(Way, Packet)>,
    /// A node that restarts at the next message.
    crashing: Option<usize>,
    honest_since: Option<Duration>,
}

impl<'a> Run<'a> {
    fn new(scenario: &'a Scenario, sequence: &'a Sequence, limit: usize, seen: &'a mut Vec<Message>) -> Run<'a> {
        let mut world = (scenario.world)();
        let sent = Rc::new(RefCell::new(Vec::new()));
        let tap = Rc::clone(&sent);
        world.tap = Box::new(move |_, packet| {
            tap.borrow_mut().push(packet.clone());
            Fate::Lose
        });
        Run {
            scenario,
            sequence,
            world,
            monitor: Monitor::new(scenario.ends),
            sent,
            seen,
            limit,
            is_open: false,
            held: Vec::new(),
            crashing: None,
            honest_since: None,
        }
    }

    fn finish(mut self) -> Result<(), Broken> {
        let limit = self.world.now + Duration::from_secs(120);
        loop {
            let end = self.honest_since.map_or(limit, |since| since + self.scenario.recovery);
            if self.honest_since.is_some_and(|since| self.world.now >= since + SETTLED && self.check_end().is_ok()) {
                return Ok(());
            }
            self.monitor.before(&self.world);
            let moment = self.world.advance(end);
            let sent = self.sent.take();
            self.monitor.after(&self.world, moment, &sent)?;
            for message in sent.chunk_by(same_message) {
                self.decide(message);
            }
            if self.world.now >= end {
                break;
            }
        }
        assert!(self.honest_since.is_some(), "{} messages only", self.seen.len());
        self.check_end()
    }

    fn check_end(&self) -> Result<(), Broken> {
        self.monitor.check_link(&self.world)?;
        match self.scenario.also {
            Also::Nothing => Ok(()),
            Also::Bundle => self.monitor.check_bundle_recovery(&self.world),
            Also::Channel if self.world.has_channels(0, 1) => Ok(()),
            Also::Channel => Err((Invariant::Channel, "the channel is not on the entry's link any more".to_owned())),
        }
    }

    /// None of a message to another node.
    fn message(&self, packet: &Packet) -> Option<Message> {
        let responder = up_address(self.scenario.ends.1);
        let way = match (packet.from, packet.to) {
            (_, to) if to == attacker() => Way::Away,
            (_, to) if to == responder => Way::Forward,
            (from, _) if from == responder => Way::Backward,
            _ => return None,
        };
        Some(Message { kind: kind(packet), way })
    }

    /// Does with a message what the sequence says.
    fn decide(&mut self, packets: &[Packet]) {
        let Some(message) = self.message(&packets[0]) else {
            packets.iter().for_each(|packet| self.world.put(packet.clone()));
            return;
        };
        self.is_open |= (self.scenario.opens)(&self.world, message);
        let mut step = Move::Pass;
        if self.is_open && self.seen.len() < self.limit {
            step = self.sequence.get(self.seen.len());
            self.seen.push(message);
        } else if self.is_open && self.honest_since.is_none() {
            self.become_honest();
        }
        if let Some(node) = self.crashing.take() {
            self.restart(node);
        }
        match message.way {
            Way::Away if step == Move::Pass && self.honest_since.is_none() => self.forward(packets),
            Way::Away => self.monitor.lose(),
            way => self.send(step, way, packets),
        }
        self.act(step);
    }

    /// The attacker sends a copy, from its address.
    fn steal(&mut self, at: Duration, packet: &Packet) {
        let stolen = Packet { at, from: attacker(), ..packet.clone() };
        self.monitor.attacker_sends(&stolen);
        self.world.put(stolen);
    }

    /// The attacker sends copies of everything so far.
    fn replay(&mut self) {
        let at = self.world.now + ms(5);
        for packet in self.world.record.clone() {
            self.steal(at, &packet);
            self.world.put(Packet { at, ..packet });
        }
    }

    /// The attacker sends on what it got.
    fn forward(&mut self, packets: &[Packet]) {
        let (initiator, responder) = self.scenario.ends;
        let (from, to) = (up_address(responder), self.world.node(initiator).down_address);
        packets.iter().for_each(|packet| self.world.put(Packet { from, to, ..packet.clone() }));
    }

    fn send(&mut self, step: Move, way: Way, packets: &[Packet]) {
        let waits = self.held.extract_if(.., |(other, _)| *other == way && step != Move::Hold);
        let waited: Vec<Packet> = waits.map(|(_, packet)| packet).collect();
        for packet in packets {
            match step {
                Move::Drop => {}
                Move::Hold => self.held.push((way, packet.clone())),
                Move::Divert => self.steal(packet.at, packet),
                _ => self.world.put(packet.clone()),
            }
            match step {
                Move::Forge => self.world.put(forged(packet)),
                Move::Overtake => self.steal(packet.at - ms(1), packet),
                Move::Copy => self.held.push((way, packet.clone())),
                Move::Elsewhere => self.held.push((way, Packet { from: attacker(), ..packet.clone() })),
                _ => {}
            }
        }
        let at = packets[0].at + ms(1);
        self.release(at, waited);
        match step {
            Move::Drop | Move::Hold => self.monitor.disturb(self.world.now),
            Move::Divert => self.monitor.lose(),
            _ => {}
        }
    }

    fn release(&mut self, at: Duration, held: Vec<Packet>) {
        for packet in held {
            match packet.from == attacker() {
                true => self.steal(at, &packet),
                false => self.world.put(Packet { at, ..packet }),
            }
        }
    }

    /// What the attacker or a host does after a message was sent.
    fn act(&mut self, step: Move) {
        let (initiator, responder) = self.scenario.ends;
        match step {
            Move::Replay => self.replay(),
            Move::RestartInitiator => self.restart(initiator),
            Move::RestartResponder => self.restart(responder),
            Move::CrashInitiator | Move::CrashResponder => {
                let node = if step == Move::CrashInitiator { initiator } else { responder };
                self.world.broken_disks.insert(node);
                self.crashing = Some(node);
            }
            Move::Roam => {
                let node = self.world.nodes.get_mut(&initiator).expect("it runs");
                node.down_address = ([10, 9, 9, 9], 2000).into();
                self.monitor.lose();
            }
            _ => {}
        }
    }

    /// Restarts a node with what is on its disk, and with the scenario's clock.
    fn restart(&mut self, node: usize) {
        self.world.broken_disks.remove(&node);
        self.world.clock_ms.insert(node, self.scenario.clock_ms);
        self.world.start(node);
        self.monitor.disturb(self.world.now);
    }

    /// From now on everything passes, and the attacker keeps what it gets.
    fn become_honest(&mut self) {
        let at = self.world.now + ms(1);
        let held = std::mem::take(&mut self.held).into_iter().map(|(_, packet)| packet).collect();
        self.release(at, held);
        self.honest_since = Some(self.world.now + ms(10));
    }
}

/// A copy that does not authenticate, and arrives first. Its header is genuine.
fn forged(packet: &Packet) -> Packet {
    let mut bytes = packet.bytes.clone();
    // In front of the two macs of a handshake datagram.
    let last = bytes.len() - if is_handshake_len(bytes.len()) { 33 } else { 1 };
    bytes[last] ^= 1;
    Packet { at: packet.at - ms(1), bytes, ..packet.clone() }
}

fn same_message(one: &Packet, two: &Packet) -> bool {
    (one.from, one.to, kind(one)) == (two.from, two.to, kind(two))
}

fn kind(packet: &Packet) -> Kind {
    if is_handshake_len(packet.bytes.len()) { Kind::Handshake(packet.bytes[0]) } else { Kind::Cells }
}
