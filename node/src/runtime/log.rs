//! The log of a node: lines about its neighbours, its channels and its clients.
//!
//! Decides which events become a line, and how often. Trouble that lasts is reported soon, then at growing intervals,
//! and when it ends. Not every packet causes a line, and strangers cannot choose how often a line is written.
//!
//! Neighbours: `runtime::control_thread` feeds it on the control thread; the command decides where lines go.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use control::Event;
use control::paced::{Cause, PacedEvent};
use control::trust::hop::TrustEvent;
use dataplane::punt::Notice;
use tracing::{debug, info, warn};
use wire::cell::Direction;
use wire::frames::Status;
use wire::ids::Side;
use wire::paced::Company;

use crate::config::{ChainFile, NodeRole, node_name};

/// Trouble is reported after it has lasted this long.
const REPORT_AFTER: Duration = Duration::from_millis(1500);
/// Time from the first report of trouble to the second; then it doubles.
const REPEAT_FIRST: Duration = Duration::from_secs(10);
/// Longest time between two reports of the same trouble.
const REPEAT_MAX: Duration = Duration::from_secs(600);
/// Time between two lines about clients, whatever they do.
const CLIENTS_EVERY: Duration = Duration::from_secs(1);
/// Destinations and clients that get lines of their own.
const CLIENT_TROUBLES_MAX: usize = 64;
/// New ones of these that get a line at once.
const SUBJECTS_AT_ONCE: u32 = 8;
/// Time after which one more does.
const SUBJECTS_EVERY: Duration = Duration::from_secs(60);

/// The end of a line about a silent next hop. A node does not answer handshakes for other keys than its own.
const CHECK_NEXT_HOP: &str =
    "check that it runs, that UDP reaches it, and that it has the same chain.toml as this node";

/// The log of one node.
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
    /// In paced classes.
    not_joined: Trouble,
    has_joined: bool,
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

/// Trouble that may last, or come back.
#[derive(Default)]
pub(super) struct Trouble {
    /// Once it has been reported: when to report it again, and the interval before that.
    repeat: Option<(Duration, Duration)>,
    /// It has lasted for [`REPORT_AFTER`] and has not ended.
    lasts: bool,
    /// It was reported and has not ended since.
    reported: bool,
    ended: Option<Duration>,
}

impl Trouble {
    /// True if a report is due for trouble that has lasted this long.
    ///
    /// Trouble that comes back continues at the interval it had reached, unless it was absent for that long.
    fn is_due(&mut self, now: Duration, lasted: Duration) -> bool {
        if !self.lasts {
            if lasted < REPORT_AFTER {
                return false;
            }
            self.lasts = true;
            let began = now.saturating_sub(lasted);
            if let (Some(ended), Some((_, interval))) = (self.ended, self.repeat)
                && began >= ended + interval
            {
                self.repeat = None;
            }
        }
        let interval = match self.repeat {
            None => REPEAT_FIRST,
            Some((at, _)) if now < at => return false,
            Some((_, interval)) => (interval * 2).min(REPEAT_MAX),
        };
        self.repeat = Some((now + interval, interval));
        self.reported = true;
        true
    }

    /// True if a report is due for a single event. What was not seen for the longest interval is new again.
    pub(super) fn occurs(&mut self, now: Duration) -> bool {
        if self.is_over(now) {
            *self = Trouble::default();
        }
        self.is_due(now, REPORT_AFTER)
    }

    /// True if it was not seen for the longest interval.
    fn is_over(&self, now: Duration) -> bool {
        self.repeat.is_some_and(|(at, _)| now >= at + REPEAT_MAX)
    }

    /// Ends the trouble. True if it had been reported.
    pub(super) fn end(&mut self, now: Duration) -> bool {
        if std::mem::take(&mut self.lasts) {
            self.ended = Some(now);
        }
        std::mem::take(&mut self.reported)
    }
}

/// Trouble that clients cause, by its subject: a refused destination, or a client with too long datagrams.
///
/// Each subject is reported at growing intervals, and all together at most once per [`CLIENTS_EVERY`]. A client can
/// make up any number of subjects, so only [`SUBJECTS_AT_ONCE`] and one more per [`SUBJECTS_EVERY`] get lines of their
/// own. The others are counted in one line, at growing intervals as well.
#[derive(Default)]
struct ClientTroubles {
    by_subject: BTreeMap<String, Trouble>,
    last_line: Option<Duration>,
    /// When all of [`SUBJECTS_AT_ONCE`] are available again.
    subjects_refilled: Duration,
    /// Notices about other subjects since the last line about them.
    unlisted: u64,
    more: Trouble,
}

impl ClientTroubles {
    /// True if a report about this subject is due.
    fn is_due(&mut self, now: Duration, subject: String) -> bool {
        let may_log = self.may_log(now);
        if may_log {
            self.by_subject.retain(|_, trouble| !trouble.is_over(now));
        }
        let has_room = self.has_room(now);
        let is_due = match self.by_subject.get_mut(&subject) {
            Some(trouble) => may_log && trouble.occurs(now),
            None if may_log && has_room => {
                self.subjects_refilled = self.subjects_refilled.max(now) + SUBJECTS_EVERY;
                self.by_subject.entry(subject).or_default().occurs(now)
            }
            None => {
                self.unlisted += 1;
                false
            }
        };
        if is_due {
            self.last_line = Some(now);
        }
        is_due
    }

    /// The number of notices that got no line, if a line about them is due.
    fn more(&mut self, now: Duration) -> Option<u64> {
        if self.unlisted == 0 || !self.may_log(now) || !self.more.occurs(now) {
            return None;
        }
        self.last_line = Some(now);
        Some(std::mem::take(&mut self.unlisted))
    }

    fn may_log(&self, now: Duration) -> bool {
        self.last_line.is_none_or(|last| now >= last + CLIENTS_EVERY)
    }

    /// True if a new subject may have lines of its own.
    fn has_room(&self, now: Duration) -> bool {
        let available = self.subjects_refilled <= now + SUBJECTS_EVERY * (SUBJECTS_AT_ONCE - 1);
        available && self.by_subject.len() < CLIENT_TROUBLES_MAX
    }
}

impl Log {
    /// The log of the node at this position, whose next hop is reached at `next`, as far as that is known.
    pub fn new(chain: &ChainFile, position: usize, next: Option<SocketAddr>) -> Log {
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
            was_connected: false,
            silence: Trouble::default(),
            setups: Trouble::default(),
            setups_fail_since: None,
            refused_acks: Trouble::default(),
            not_joined: Trouble::default(),
            has_joined: false,
            deaf: Trouble::default(),
            clients: ClientTroubles::default(),
            hops: (1..=hops).filter_map(name).collect(),
            signed_twice: (1..=hops).map(|_| Trouble::default()).collect(),
            descriptors: (1..=hops).map(|_| Trouble::default()).collect(),
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

    /// Takes an event of a paced class.
    fn paced(&mut self, now: Duration, event: &PacedEvent) {
        match *event {
            PacedEvent::JoinsAt { batch, wait } => {
                let wait_s = wait.as_secs_f64().round();
                info!(batch, wait_s, "connected; joins with the next batch in {wait_s} s");
            }
            PacedEvent::Joined { batch } => {
                self.setups_fail_since = None;
                self.setups.end(now);
                self.not_joined.end(now);
                if std::mem::replace(&mut self.has_joined, true) {
                    debug!(batch, "has a channel in batch {batch}");
                } else {
                    info!(batch, "has a channel from batch {batch} on");
                }
            }
            PacedEvent::NotJoined { batch, why } => {
                self.has_joined = false;
                if self.not_joined.occurs(now) {
                    warn!(
                        batch,
                        "no channel in batch {batch}: {why}; the next setup is for the batch after it; if this repeats, check \
                         the clock (`timedatectl`) and the loss of the access link (`eddy status`)"
                    );
                }
            }
            PacedEvent::Company(Company { channels, n_min }) if channels < n_min => {
                info!(
                    channels,
                    n_min, "waiting for company: {channels} of {n_min} channels, and nothing arrives before that"
                );
            }
            PacedEvent::Company(Company { channels, n_min }) => {
                debug!(channels, n_min, "{channels} channels in this batch, {n_min} are needed");
            }
            PacedEvent::LeadMoved { lead_ns } => {
                let lead_ms = lead_ns as f64 / 1e6;
                warn!(
                    lead_ms,
                    "the way to the first mix got longer or shorter by more than the slack of the class within 10 minutes, or \
                     its clock or this one is wrong (lead {lead_ms:.1} ms): check time synchronisation on this host, and \
                     which network it uses"
                );
            }
            PacedEvent::ClockOff { side, offset_ns } => {
                let neighbour = match side {
                    Side::Up => self.previous.as_deref(),
                    Side::Down => self.next.as_ref().map(|next| next.name.as_str()),
                };
                let (neighbour, offset_ms) = (neighbour.unwrap_or("a neighbour"), offset_ns as f64 / 1e6);
                let (off, way) = (offset_ms.abs(), if offset_ns > 0 { "ahead of" } else { "behind" });
                warn!(
                    peer = neighbour,
                    offset_ms,
                    "the clock of {neighbour} is {off:.1} ms {way} this one: paced classes need 2 ms, so check time \
                     synchronisation on both hosts"
                );
            }
            PacedEvent::Dropping(cause) => match cause {
                Cause::Lost { direction, places, lost } => {
                    let way = if direction == Direction::Forward { "on their way to" } else { "coming from" };
                    warn!(
                        places,
                        lost,
                        "dropping: {lost} of {places} cells were lost in all copies {way} the first mix, more than before: \
                         outages of the access link, this host slept, or somebody drops cells on purpose; keep the entry \
                         running, and check the link with `ping`"
                    );
                }
                Cause::NoReports => warn!(
                    "dropping: five reports of the first mix in a row did not come: outages of the access link, or somebody \
                     drops cells on purpose; keep the entry running, and check the link with `ping`"
                ),
                Cause::NoClock => warn!(
                    "dropping: for 40 s the first mix answered no clock cells, so this entry sends by a time that gets older: \
                     outages of the access link, or somebody drops cells on purpose; if it is the first mix, tell its operator"
                ),
                Cause::Setup { batch, why } => warn!(
                    batch,
                    "dropping: no channel in batch {batch} ({why}), which losses do not explain: somebody may drop setups; \
                     keep the entry running, and do not begin calls that matter until this ends"
                ),
                Cause::Loops { places, lost, garbled } => {
                    let next = self.next.as_ref().map_or("the next hop", |next| &next.name);
                    warn!(
                        places,
                        lost,
                        garbled,
                        "dropping: of {places} cells of this mix's loops {lost} did not come back from {next}, and {garbled} came \
                         as noise, more than its links explain: an outage, a hop behind this one was restarted, or somebody \
                         drops cells on purpose"
                    );
                }
                Cause::LoopSetups { batch, sent, failed } => warn!(
                    batch,
                    sent,
                    failed,
                    "dropping: {failed} of {sent} setups of this mix's loops for batch {batch} failed, which losses do not \
                     explain: a hop behind this one was restarted, or somebody drops setups"
                ),
            },
            PacedEvent::SetupsExcused { hop, setups } => {
                let name = self.hops.get(hop - 1).cloned().unwrap_or_default();
                warn!(
                    peer = name,
                    setups,
                    "hop {hop}, {name}, has restarted: it has other setup keys, so {setups} failed setups are excused; once in \
                     65,536 rounds"
                );
            }
            PacedEvent::DroppingEnded => info!("dropping has ended"),
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
                    let reason = match (&self.next, &self.beyond) {
                        (Some(next), Some(beyond)) => {
                            format!(": {} replies, so check {beyond} and the hops after it", next.name)
                        }
                        _ => String::new(),
                    };
                    warn!(
                        "no channel can be set up, because not all hops have signed this interval's keys{reason}; a hop that was \
                         restarted signs from the next interval on"
                    );
                }
            }
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
        match (&self.next, &self.beyond) {
            (Some(next), Some(beyond)) => {
                let reason = format!("{} replies, so check {beyond} and the hops after it", next.name);
                warn!(peer = next.name, attempt, timeout_s, "{line}: {reason}");
            }
            _ => warn!(attempt, timeout_s, "{line}"),
        }
    }

    /// Takes a notice of the worker about a client or a listener.
    pub fn notice(&mut self, now: Duration, notice: &Notice) {
        match notice {
            Notice::Deaf { why } => {
                if self.deaf.occurs(now) {
                    warn!("cannot listen on a new forward: {why}");
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
    use super::*;

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn lasting_trouble_is_reported_at_growing_intervals() {
        let mut trouble = Trouble::default();
        let reports: Vec<u64> = (0..3600).filter(|s| trouble.is_due(secs(*s), secs(*s))).collect();
        assert_eq!(reports, [2, 12, 32, 72, 152, 312, 632, 1232, 1832, 2432, 3032]);
        assert!(trouble.end(secs(3600)) && !trouble.end(secs(3600)));
        assert!(!trouble.is_due(secs(3602), secs(2)), "it is back too soon");
        assert!(!trouble.end(secs(3603)), "its end is not reported either");
        // It was absent for the last interval of 600 s, so it is new.
        let reports: Vec<u64> = (4300..4400).filter(|s| trouble.is_due(secs(*s), secs(*s - 4300))).collect();
        assert_eq!(reports, [4302, 4312, 4332, 4372]);
    }

    #[test]
    fn flapping_trouble_is_reported_at_growing_intervals() {
        let mut trouble = Trouble::default();
        let mut reports = Vec::new();
        for s in 0..200 {
            let phase = s % 5;
            if phase == 3 {
                trouble.end(secs(s));
            } else if phase < 3 && trouble.is_due(secs(s), secs(phase)) {
                reports.push(s);
            }
        }
        assert_eq!(reports, [2, 12, 32, 72, 152]);
    }

    #[test]
    fn refused_destinations_are_reported_at_growing_intervals() {
        let mut troubles = ClientTroubles::default();
        let reports: Vec<u64> = (0..100).filter(|s| troubles.is_due(secs(*s), "a.example:53".to_owned())).collect();
        assert_eq!(reports, [0, 10, 30, 70]);
        assert!(troubles.is_due(secs(100), "b.example:53".to_owned()), "another subject does not wait");
        assert!(!troubles.is_due(secs(100), "c.example:53".to_owned()), "at most one line a second");
        assert!(troubles.is_due(secs(5000), "a.example:53".to_owned()));
        assert!(troubles.is_due(secs(5010), "a.example:53".to_owned()), "what ended is new trouble");
    }

    #[test]
    fn flood_of_subjects_is_counted_and_hides_no_known_one() {
        let mut troubles = ClientTroubles::default();
        let (mut known, mut listed, mut counts, mut total) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for s in 0..400 {
            if troubles.is_due(secs(s), "a.example:53".to_owned()) {
                known.push(s);
            }
            for port in 0..100 {
                total += 1;
                if troubles.is_due(secs(s), format!("192.0.2.1:{s}.{port}")) {
                    listed.push(s);
                }
                counts.extend(troubles.more(secs(s)).map(|more| (s, more)));
            }
        }
        assert_eq!(known, [0, 10, 30, 70, 150, 310]);
        assert_eq!(listed, [1, 2, 3, 4, 5, 6, 7, 60, 120, 180, 240, 300, 360]);
        let times: Vec<u64> = counts.iter().map(|(s, _)| *s).collect();
        assert_eq!(times, [8, 18, 38, 78, 158, 318]);
        assert_eq!(counts.iter().map(|(_, more)| more).sum::<u64>() + troubles.unlisted + listed.len() as u64, total);
    }

    #[test]
    fn remembered_client_troubles_are_bounded() {
        let mut troubles = ClientTroubles::default();
        // One more every ten minutes, and all others again.
        for round in 0..100 {
            (0..=round).for_each(|port| _ = troubles.is_due(secs(round * 600 + port), format!("192.0.2.1:{port}")));
        }
        assert_eq!(troubles.by_subject.len(), CLIENT_TROUBLES_MAX);
    }

    #[test]
    fn closed_port_does_not_read_like_a_refusal() {
        let line = |status| status_line("192.0.2.7:9", status);
        assert!(line(Status::Refused).starts_with("the exit refused 192.0.2.7:9: its policy"));
        let closed = line(Status::Unreachable);
        assert!(closed.starts_with("the exit cannot reach 192.0.2.7:9: the port is closed"), "{closed}");
        assert!(!closed.contains("refused"), "{closed}");
    }

    #[test]
    fn short_trouble_is_not_reported() {
        let mut trouble = Trouble::default();
        assert!(!trouble.is_due(secs(1), secs(1)));
        assert!(!trouble.end(secs(1)));
    }
}
