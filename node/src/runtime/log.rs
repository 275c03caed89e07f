//! The log of a node: lines about its neighbours, its channels and its clients.
//!
//! Decides which events become a line, and how often. Trouble that lasts is reported soon, then at growing intervals,
//! and when it ends. Not every packet causes a line, and strangers cannot choose how often a line is written.
//!
//! Neighbours: `runtime::control_thread` feeds it on the control thread; the command decides where lines go.

mod paced;
mod trouble;

use std::net::SocketAddr;
use std::time::Duration;

use control::Event;
use control::trust::hop::TrustEvent;
use dataplane::punt::Notice;
use tracing::{debug, info, warn};
use wire::frames::Status;
use wire::ids::Side;
use wire::paced::{Company, PacedTerms};

use crate::config::{ChainFile, NodeRole, node_name};
use crate::figures::Figures;
use crate::report::paced::{CompanyReport, alarm_lasts};
use trouble::{ClientTroubles, REPORT_AFTER};

pub(super) use trouble::Trouble;

/// The end of a line about a silent next hop. A node does not answer handshakes for other keys than its own.
const CHECK_NEXT_HOP: &str =
    "check that it runs, that UDP reaches it, and that it has the same chain.toml as this node";

/// Notices within a minute from which on programs send too much: a stream that fills a class loses one now and then.
const OVER_RATE_FROM: u32 = 10;

/// The log of one node.
#[derive(Default)]
pub struct Log {
    /// At an entry: with a larger difference from Mix 1's clock it gets bundles late or never (SPEC 7.9.5).
    clock_off_max_ms: Option<u64>,
    next: Option<Peer>,
    /// Name of the previous hop; `None` at Mix 1, where strangers connect.
    previous: Option<String>,
    /// Name of the hop after the next one.
    beyond: Option<String>,
    /// There was a link to the next hop at some time.
    was_connected: bool,
    silence: Trouble,
    setups: Trouble,
    setups_fail_since: Option<Duration>,
    refused_acks: Trouble,
    /// Clocks of neighbours, which they may show as they like: in asks and parts, and in clock cells of paced classes.
    bundle_missing: Trouble,
    clock_off: Trouble,
    clock_stops: Trouble,
    clock_of_previous: Trouble,
    clock_of_next: Trouble,
    /// In paced classes.
    not_joined: Trouble,
    has_joined: bool,
    /// Batches that it has missed since its start for want of a bundle; as many as are usual once it had a channel.
    bundles_missed: u32,
    /// The latest setup had no ack, and since then no other one had.
    lacks_ack: bool,
    /// The alarm `dropping` of this entry is up.
    is_dropping: bool,
    /// The company of a batch without a free seat for which no ack had come.
    full: Option<CompanyReport>,
    no_company: Trouble,
    /// As Mix 1 announced it last.
    company: Option<Company>,
    /// Of a batch, for users.
    seats: Option<u16>,
    /// For how long the alarm of a paced class lasts.
    alarm_lasts: Duration,
    position: usize,
    no_seat: Trouble,
    over_rate: Trouble,
    /// Notices of that within a minute from this time on.
    over_rated: (Duration, u32),
    /// What the class carries, in words.
    carries: String,
    cells_without_seat: u64,
    /// By position - 1: restarts that explain failed setups.
    restarts: Vec<Trouble>,
    deaf: Trouble,
    clients: ClientTroubles,
    /// Names of the hops.
    hops: Vec<String>,
    /// By position - 1, like the next one.
    signed_twice: Vec<Trouble>,
    /// News of descriptors: a hop may sign one every few seconds.
    descriptors: Vec<Trouble>,
}

/// A neighbour, as log lines name it.
struct Peer {
    name: String,
    role: NodeRole,
    /// The last one that answered, or the first to be tried.
    address: SocketAddr,
}

impl Log {
    /// The log of the node at this position, whose next hop is reached at `next`, as far as that is known. `paced` are
    /// the terms of a paced class.
    pub fn new(chain: &ChainFile, position: usize, next: Option<SocketAddr>, paced: Option<&PacedTerms>) -> Log {
        let hops = chain.descriptors.len();
        let role = |position: usize| NodeRole::at(position, hops);
        let name = |position: usize| role(position).map(|role| node_name(role, position));
        let peer = |role| Peer {
            name: node_name(role, position + 1),
            role,
            address: next.unwrap_or(SocketAddr::from(([0; 4], 0))),
        };
        Log {
            clock_off_max_ms: (position == 0).then_some(u64::from(chain.terms.interval_s) * 200),
            next: role(position + 1).map(peer),
            previous: position.checked_sub(1).filter(|previous| *previous > 0).and_then(name),
            beyond: name(position + 2),
            hops: (1..=hops).filter_map(name).collect(),
            seats: paced.map(|terms| terms.seats),
            alarm_lasts: paced.map_or(Duration::ZERO, alarm_lasts),
            carries: paced.map_or_else(String::new, |terms| Figures::of(terms, chain.terms.suite, hops).carries()),
            position,
            restarts: (1..=hops).map(|_| Trouble::default()).collect(),
            signed_twice: (1..=hops).map(|_| Trouble::default()).collect(),
            descriptors: (1..=hops).map(|_| Trouble::default()).collect(),
            ..Log::default()
        }
    }

    /// Takes the time for which the next hop has been silent. Called at least once a second meanwhile.
    pub fn next_hop(&mut self, now: Duration, silence: Option<Duration>) {
        let Some(Peer { name, role, address }) = &self.next else { return };
        let Some(lasted) = silence else {
            if self.silence.end(now) {
                info!(peer = name, %role, %address, "next hop {name} ({address}) replies again");
            }
            return;
        };
        if !self.silence.is_due(now, lasted) {
            return;
        }
        let silent_s = lasted.as_secs_f64().round();
        if self.was_connected {
            warn!(
                peer = name, %role, %address, silent_s,
                "lost the next hop {name} ({address}): no reply for {silent_s} s; {CHECK_NEXT_HOP}"
            );
        } else {
            warn!(
                peer = name, %role, %address, silent_s,
                "no reply from next hop {name} ({address}) for {silent_s} s; retrying; {CHECK_NEXT_HOP}"
            );
        }
    }

    /// Takes an event of control.
    pub fn event(&mut self, now: Duration, event: &Event) {
        match event {
            Event::LinkUp { side: Side::Down, peer, .. } => self.connected(now, *peer),
            Event::LinkUp { side: Side::Up, peer, .. } => match &self.previous {
                Some(name) => info!(peer = name, address = %peer, "previous hop {name} ({peer}) connected"),
                // Users connect here, and who they are does not belong in a log.
                None => debug!(address = %peer, "an entry ({peer}) connected"),
            },
            Event::LinkRenewed { side, peer, .. } => {
                if let (Side::Down, Some(next)) = (side, &mut self.next) {
                    next.address = *peer;
                }
                debug!(side = side.name(), address = %peer, "renewed the keys of the {} link ({peer})", side.name());
            }
            Event::LinkMoved { peer, .. } => match &self.previous {
                Some(name) => info!(peer = name, address = %peer, "previous hop {name} now sends from {peer}"),
                None => debug!(address = %peer, "an entry now sends from {peer}"),
            },
            Event::HandshakeFromElsewhere { from } => {
                let previous = self.previous.as_deref().unwrap_or("entry");
                warn!(
                    address = %from.ip(),
                    "a handshake came from {from}, which is not an address of the previous hop, {previous}: if {previous} sends \
                     from there, add `previous = [\"{}\"]` to the configuration", from.ip()
                );
            }
            // Reported when it fell silent.
            Event::LinkDown { side: Side::Down, .. } => debug!("the keys of the link to the next hop expired"),
            Event::LinkDown { side: Side::Up, .. } => match &self.previous {
                Some(name) => info!(peer = name, "previous hop {name} disconnected: its keys expired"),
                None => debug!("an entry disconnected"),
            },
            Event::LinkSilent { .. } => debug!("no reply from the next hop; started a new handshake"),
            Event::ChannelOpen { channel, setup } => {
                let (setup_us, setup_ms) = (setup.as_micros() as u64, setup.as_millis());
                debug!(channel = channel.0, setup_us, "opened channel {channel} in {setup_ms} ms");
                self.setups_fail_since = None;
                self.refused_acks.end(now);
                if self.setups.end(now) {
                    info!("channel setup succeeded");
                }
            }
            Event::ChannelClosed { channel, reason } => {
                debug!(channel = channel.0, ?reason, "closed channel {channel}: {reason:?}")
            }
            Event::SetupTimedOut { attempts, next_timeout } => self.setup_timed_out(now, *attempts, *next_timeout),
            Event::Trust(event) => self.trust(now, event),
            Event::Paced(event) => self.paced(now, event),
            Event::SetupRefused(why) => {
                if self.refused_acks.is_due(now, REPORT_AFTER) {
                    warn!(
                        "channel setup failed: the answer is not from the hops whose keys it was made for ({why}); if it lasts, a \
                         hop is corrupt: use another chain"
                    );
                }
            }
        }
    }

    /// Takes an event of trust.
    fn trust(&mut self, now: Duration, event: &TrustEvent) {
        let name = |hop: &usize| self.hops.get(*hop - 1).cloned().unwrap_or_default();
        match event {
            TrustEvent::Descriptor { hop, revision } => {
                if self.descriptors.get_mut(*hop - 1).is_some_and(|news| news.occurs(now)) {
                    let name = name(hop);
                    info!(peer = name, revision, "{name} has a newer descriptor, revision {revision}");
                }
            }
            TrustEvent::AmbiguousRevision { hop, revision } => {
                let name = name(hop);
                warn!(
                    peer = name,
                    revision,
                    "{name} has signed two descriptors of revision {revision}: one counts, the same at all nodes; sign another \
                     one with `eddy renew`"
                );
            }
            TrustEvent::SignedTwice { hop, interval } => {
                let name = name(hop);
                if self.signed_twice.get_mut(*hop - 1).is_some_and(|trouble| trouble.occurs(now)) {
                    warn!(
                        peer = name,
                        interval,
                        "{name} has signed two bundles of one interval: ask its operator whether a second node runs with its \
                         files; if not, somebody has its keys, and new ones must be drawn"
                    );
                }
            }
            TrustEvent::NoBundle { .. } => {
                self.setups_fail_since.get_or_insert(now);
                if !self.silence.lasts && self.setups.occurs(now) {
                    let reason = self.check_beyond().map_or_else(String::new, |(_, reason)| format!(": {reason}"));
                    warn!(
                        "no channel can be set up, because not all hops have signed this interval's keys{reason}; a hop that was \
                         restarted signs from the next interval on"
                    );
                }
            }
            TrustEvent::BundleMissing { interval, signed } => {
                if self.bundle_missing.occurs(now) {
                    let name = |i: usize| if i + 1 == self.position { "this node" } else { &self.hops[i] };
                    let missing: Vec<&str> = (0..self.hops.len()).filter(|i| signed >> i & 1 == 0).map(name).collect();
                    warn!(
                        interval,
                        "interval {interval} has no complete bundle of keys here, without which users get no new \
                         channels: the signature of {} is missing; it is down or has just started, its clock is off, \
                         or a hop on the way is down or keeps it back",
                        missing.join(", ")
                    );
                }
            }
            TrustEvent::ClockOff { .. } if !self.clock_off.occurs(now) => {}
            TrustEvent::ClockOff { offset_ms } => {
                let off = clock_off(*offset_ms);
                match &self.next {
                    Some(next) if self.clock_off_max_ms.is_some_and(|max| offset_ms.unsigned_abs() > max) => warn!(
                        offset_ms,
                        "this clock is {off} that of {}: no channel can be opened until they agree; check `date -u` and time \
                         synchronisation on this host",
                        next.name
                    ),
                    _ => warn!(
                        offset_ms,
                        "this clock is {off} that of a neighbour: check `date -u` and time synchronisation on both hosts"
                    ),
                }
            }
            TrustEvent::ClockStops { .. } if !self.clock_stops.occurs(now) => {}
            TrustEvent::ClockStops { offset_ms } => {
                let off = clock_off(*offset_ms);
                warn!(
                    offset_ms,
                    "this clock is {off} those of all neighbouring hops: this node signs nothing until they agree; check `date -u` \
                     here and there"
                );
            }
            TrustEvent::OwnKeysMissing { revision } => warn!(
                revision,
                "revision {revision} of this node's descriptor names keys that are not here: put them next to the key file \
                 and reload with SIGHUP"
            ),
            // `Expiry` reports it.
            TrustEvent::OwnExpired => {}
            TrustEvent::OwnRecordElsewhere { draw } => warn!(
                draw,
                "another node publishes setup keys in the name of this one, or the state file was lost: look for a copy of \
                 the key file that runs elsewhere"
            ),
        }
    }

    fn connected(&mut self, now: Duration, peer: SocketAddr) {
        self.was_connected = true;
        self.silence.end(now);
        if let Some(next) = &mut self.next {
            next.address = peer;
        }
        if let Some(Peer { name, role, address }) = &self.next {
            info!(peer = name, %role, %address, "connected to next hop {name} ({address})");
        }
    }

    fn setup_timed_out(&mut self, now: Duration, attempt: u32, next_timeout: Duration) {
        let since = *self.setups_fail_since.get_or_insert(now);
        // If the next hop is silent, that is the reason, and is reported by itself.
        if self.silence.lasts || !self.setups.is_due(now, now.saturating_sub(since)) {
            return;
        }
        let timeout_s = next_timeout.as_secs_f64();
        let line = format!("channel setup timed out (attempt {attempt}); retrying, timeout {timeout_s:.1} s");
        match self.check_beyond() {
            Some((next, reason)) => warn!(peer = next, attempt, timeout_s, "{line}: {reason}"),
            None => warn!(attempt, timeout_s, "{line}"),
        }
    }

    /// The next hop, which replies, and what to check then.
    fn check_beyond(&self) -> Option<(&str, String)> {
        let (next, beyond) = (&self.next.as_ref()?.name, self.beyond.as_ref()?);
        Some((next, format!("{next} replies, so unless it was just restarted, check {beyond} and the hops after it")))
    }

    /// Takes a notice of the worker about a client or a listener.
    pub fn notice(&mut self, now: Duration, notice: &Notice) {
        match notice {
            Notice::Deaf { why } => {
                if self.deaf.occurs(now) {
                    warn!("cannot listen on a new forward: {why}");
                }
            }
            Notice::OverRate => {
                let (since, count) = &mut self.over_rated;
                if now >= *since + Duration::from_secs(60) {
                    (*since, *count) = (now, 0);
                }
                *count += 1;
                if *count >= OVER_RATE_FROM && self.over_rate.occurs(now) {
                    warn!(
                        "programs send more than this class carries, which is {}: the rest is dropped (`over-rate`); lower their bit \
                         rate, or use a class that carries more",
                        self.carries
                    );
                }
            }
            Notice::TooLarge { client, len, max } => {
                let address = client.address;
                if self.clients.is_due(now, format!("client {address}")) {
                    warn!(%address, len, max, "dropped a datagram of {len} bytes from {address}: the limit is {max} (8 fragments)");
                }
            }
            Notice::Refused { destination, status, .. } => {
                let line = status_line(destination, *status);
                if self.clients.is_due(now, line.clone()) {
                    warn!(%destination, ?status, "{line}");
                }
            }
        }
        if let Some(more) = self.clients.more(now) {
            warn!(
                more,
                "{more} more times the exit refused or could not reach a destination, or this entry dropped a datagram, for \
                 destinations or clients that are not listed"
            );
        }
    }
}

/// The difference to another clock in words, which go on with that clock.
fn clock_off(offset_ms: i64) -> String {
    let seconds = offset_ms.unsigned_abs() as f64 / 1000.0;
    format!("{seconds:.1} s {}", if offset_ms > 0 { "behind" } else { "ahead of" })
}

fn status_line(destination: &str, status: Status) -> String {
    let reason = match status {
        Status::Unresolvable => return format!("the exit cannot resolve {destination}: check the name"),
        // Not a refusal by the exit.
        Status::Unreachable => {
            return format!(
                "the exit cannot reach {destination}: the port is closed, no route leads there, or the host left \
                 `max_unanswered` datagrams unanswered; check that the service is running"
            );
        }
        Status::Refused => {
            "its policy does not allow it (private, loopback, link-local, multicast and reserved addresses are closed: the \
             exit's `allow` opens them)"
        }
        Status::TooManyFlows => "the exit has too many flows or sockets",
        Status::TooLarge => "the datagram is too large",
        Status::UnknownFlow => "the flow is unknown there",
        Status::Open => "open",
    };
    format!("the exit refused {destination}: {reason}")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use control::paced::{Cause, Failure, PacedEvent};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Level, Metadata, Subscriber, subscriber};

    use super::*;

    /// Counts the lines that are logged by default, and warnings apart.
    #[derive(Clone, Default)]
    struct Lines(Arc<AtomicUsize>, Arc<AtomicUsize>);

    impl Subscriber for Lines {
        fn enabled(&self, of: &Metadata<'_>) -> bool {
            *of.level() <= Level::INFO
        }

        fn event(&self, event: &tracing::Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
            self.1.fetch_add(usize::from(*event.metadata().level() == Level::WARN), Ordering::Relaxed);
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    /// A corrupt neighbour sends what it likes, as often as it likes.
    #[test]
    fn news_of_a_neighbour_are_logged_at_growing_intervals() {
        let company = |channels| Event::Paced(PacedEvent::Company(Company { channels, n_min: 8 }));
        let clock = |side| Event::Paced(PacedEvent::ClockOff { side, offset_ns: 3_000_000 });
        let all: [&dyn Fn(u16) -> Event; 5] = [
            &|s| company(s % 12),
            &|_| clock(Side::Up),
            &|_| clock(Side::Down),
            &|_| Event::Trust(TrustEvent::ClockOff { offset_ms: 2500 }),
            &|_| Event::Trust(TrustEvent::ClockStops { offset_ms: 25_000 }),
        ];
        for event in all {
            let (mut log, lines) = (Log::default(), Lines::default());
            let hour = || (0..3600).for_each(|s| log.event(Duration::from_secs(s.into()), &event(s)));
            subscriber::with_default(lines.clone(), hour);
            let lines = lines.0.load(Ordering::Relaxed);
            assert!((5..=24).contains(&lines), "{lines} of {:?}", event(0));
        }
    }

    #[test]
    fn only_mix_1_warns_of_seats_and_at_growing_intervals() {
        let lines_of = |position| {
            let (mut log, lines) = (Log { seats: Some(4), position, ..Log::default() }, Lines::default());
            let hour = || (0..3600).for_each(|s| log.seats(Duration::from_secs(s), s.min(1800), 4));
            subscriber::with_default(lines.clone(), hour);
            lines.0.load(Ordering::Relaxed)
        };
        assert!((5..=9).contains(&lines_of(1)) && lines_of(2) == 0, "{} lines", lines_of(1));
    }

    #[test]
    fn programs_that_send_too_much_are_told_once_it_is_many() {
        let lines_of = |each_ms: u64| {
            let (mut log, lines) = (Log::default(), Lines::default());
            let mut notice = |nth| log.notice(Duration::from_millis(nth * each_ms), &Notice::OverRate);
            subscriber::with_default(lines.clone(), || (0..100).for_each(&mut notice));
            lines.0.load(Ordering::Relaxed)
        };
        assert_eq!([20_000, 10, 100].map(lines_of), [0, 1, 1]);
    }

    #[test]
    fn full_class_is_said_of_setups_without_an_ack() {
        let company = |channels| Some(Company { channels, n_min: 1 });
        let reason = |channels, why| Log { seats: Some(4), company: company(channels), ..Log::default() }.reason(why);
        assert!(reason(4, Failure::NoAck).starts_with("the class is full, 4 of 4 seats as mix1 says"));
        assert!(reason(3, Failure::NoAck).starts_with("no complete ack came in time, or users behind your address"));
        assert_eq!(reason(4, Failure::NoBundle), "no bundle for its batch came in time");
    }

    #[test]
    fn full_class_is_remembered_until_the_alarm_ends() {
        let mut log = Log { seats: Some(4), ..Log::default() };
        let mut say = |event| {
            log.event(Duration::ZERO, &Event::Paced(event));
            log.full_since_setup().map(|full| full.channels)
        };
        let company = |channels| PacedEvent::Company(Company { channels, n_min: 1 });
        let not_joined = |why| PacedEvent::NotJoined { batch: 7, why };
        assert_eq!([say(company(4)), say(not_joined(Failure::NoBundle)), say(company(4))], [None; 3]);
        assert_eq!([say(company(3)), say(not_joined(Failure::NoAck)), say(company(3))], [None; 3]);
        assert_eq!(say(company(4)), Some(4), "mix1 announces the batch that it could not join");
        assert_eq!([say(PacedEvent::Joined { batch: 8 }), say(company(2))], [None; 2], "no alarm was raised");
        assert_eq!(say(not_joined(Failure::NoAck)), None, "of another failure, without an alarm");
        assert_eq!(say(company(4)), Some(4));
        let why = Failure::NoAck;
        assert_eq!(say(PacedEvent::Dropping(Cause::Setup { batch: 9, why })), Some(4));
        assert_eq!([say(company(0)), say(not_joined(why)), say(PacedEvent::Joined { batch: 10 })], [Some(4); 3]);
        assert_eq!(say(PacedEvent::DroppingEnded), None);
        assert_eq!(say(company(4)), None, "it has a channel");
    }

    #[test]
    fn first_batch_without_a_bundle_is_no_warning() {
        let warnings = |missed: &[Failure]| {
            let (mut log, lines) = (Log::default(), Lines::default());
            let all = missed.iter().map(|why| Event::Paced(PacedEvent::NotJoined { batch: 7, why: *why }));
            subscriber::with_default(lines.clone(), || all.for_each(|event| log.event(Duration::ZERO, &event)));
            (lines.0.load(Ordering::Relaxed), lines.1.load(Ordering::Relaxed))
        };
        use Failure::{NoAck, NoBundle};
        assert_eq!([&[NoBundle][..], &[NoBundle; 4], &[NoAck]].map(warnings), [(1, 0), (4, 1), (1, 1)]);
    }

    #[test]
    fn closed_port_does_not_read_like_a_refusal() {
        let line = |status| status_line("192.0.2.7:9", status);
        assert!(line(Status::Refused).starts_with("the exit refused 192.0.2.7:9: its policy"));
        let closed = line(Status::Unreachable);
        assert!(closed.starts_with("the exit cannot reach 192.0.2.7:9: the port is closed"), "{closed}");
        assert!(!closed.contains("refused"), "{closed}");
    }
}
