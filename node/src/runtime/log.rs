//! The log of a node: lines about its neighbours, its channels and its clients.
//!
//! Decides which events become a line, and how often. Trouble that lasts is reported soon, then at growing intervals, and
//! when it ends. Not every packet causes a line, and strangers cannot choose how often a line is written.
//!
//! Neighbours: [`crate::runtime::node`] feeds it on the control thread; the command decides where lines go.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use control::Event;
use dataplane::punt::Notice;
use tracing::{debug, info, warn};
use wire::frames::Status;
use wire::ids::Side;

use crate::config::{Chain, NodeRole, node_name};

/// Trouble is reported after it has lasted this long.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Time from the first report of trouble to the second; then it doubles.
const REPEAT_FIRST: Duration = Duration::from_secs(10);
/// Longest time between two reports of the same trouble.
const REPEAT_MAX: Duration = Duration::from_secs(600);
/// Time between two lines about clients, whatever they do.
const CLIENTS_EVERY: Duration = Duration::from_secs(1);
/// Destinations and clients whose trouble is remembered; then the one that is due first is forgotten.
const CLIENT_TROUBLES_MAX: usize = 64;

/// The log of one node.
pub struct Log {
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
    clients: ClientTroubles,
}

/// A neighbour, as log lines name it.
struct Peer {
    name: String,
    role: NodeRole,
    address: SocketAddr,
}

/// Trouble that may last.
#[derive(Default)]
struct Trouble {
    /// Once it has been reported: when to report it again, and the interval before that.
    repeat: Option<(Duration, Duration)>,
}

impl Trouble {
    /// True if a report is due for trouble that has lasted this long.
    fn is_due(&mut self, now: Duration, lasted: Duration) -> bool {
        let interval = match self.repeat {
            None if lasted < PATIENCE => return false,
            None => REPEAT_FIRST,
            Some((at, _)) if now < at => return false,
            Some((_, interval)) => (interval * 2).min(REPEAT_MAX),
        };
        self.repeat = Some((now + interval, interval));
        true
    }

    /// True if the trouble was reported and has not ended since.
    fn is_reported(&self) -> bool {
        self.repeat.is_some()
    }

    /// Ends the trouble. True if it had been reported.
    fn end(&mut self) -> bool {
        self.repeat.take().is_some()
    }
}

/// Trouble that clients cause, by its subject: a refused destination, or a client with too long datagrams.
///
/// Each subject is reported at growing intervals, and all together at most once per [`CLIENTS_EVERY`].
#[derive(Default)]
struct ClientTroubles {
    by_subject: BTreeMap<String, Trouble>,
    last_line: Option<Duration>,
}

impl ClientTroubles {
    /// True if a report about this subject is due.
    fn is_due(&mut self, now: Duration, subject: String) -> bool {
        if self.last_line.is_some_and(|last| now < last + CLIENTS_EVERY) {
            return false;
        }
        // Trouble that was not seen for the longest interval has ended.
        self.by_subject.retain(|_, trouble| trouble.repeat.is_some_and(|(at, _)| now < at + REPEAT_MAX));
        if self.by_subject.len() == CLIENT_TROUBLES_MAX && !self.by_subject.contains_key(&subject) {
            let first_due = self.by_subject.iter().min_by_key(|(_, trouble)| trouble.repeat);
            let first_due = first_due.map(|(subject, _)| subject.clone()).unwrap_or_default();
            self.by_subject.remove(&first_due);
        }

        let is_due = self.by_subject.entry(subject).or_default().is_due(now, PATIENCE);
        if is_due {
            self.last_line = Some(now);
        }
        is_due
    }
}

impl Log {
    /// The log of the node at this position, whose next hop is reached at `next`.
    pub fn new(chain: &Chain, position: usize, next: Option<SocketAddr>) -> Log {
        let role = |position: usize| chain.node(position).map(|node| node.role);
        let name = |position: usize| role(position).map(|role| node_name(role, position));
        let peer = |address| {
            let role = role(position + 1)?;
            Some(Peer { name: node_name(role, position + 1), role, address })
        };
        Log {
            next: next.and_then(peer),
            previous: position.checked_sub(1).filter(|previous| *previous > 0).and_then(name),
            beyond: name(position + 2),
            was_connected: false,
            silence: Trouble::default(),
            setups: Trouble::default(),
            setups_fail_since: None,
            refused_acks: Trouble::default(),
            clients: ClientTroubles::default(),
        }
    }

    /// Takes the time for which the next hop has been silent. Called at least once a second meanwhile.
    pub fn next_hop(&mut self, now: Duration, silence: Option<Duration>) {
        let Some(Peer { name, role, address }) = &self.next else { return };
        let Some(lasted) = silence else {
            if self.silence.end() {
                info!(peer = name, %role, %address, "next hop {name} ({address}) replies again");
            }
            return;
        };
        if !self.silence.is_due(now, lasted) {
            return;
        }
        let silent_s = lasted.as_secs_f64().round();
        if self.was_connected {
            warn!(peer = name, %role, %address, silent_s, "lost the next hop {name} ({address}): no reply for {silent_s} s");
        } else {
            warn!(peer = name, %role, %address, silent_s, "no reply from next hop {name} ({address}) for {silent_s} s; retrying");
        }
    }

    /// Takes an event of control.
    pub fn event(&mut self, now: Duration, event: &Event) {
        match event {
            Event::LinkUp { side: Side::Down, .. } => self.connected(),
            Event::LinkUp { side: Side::Up, peer, .. } => match &self.previous {
                Some(name) => info!(peer = name, address = %peer, "previous hop {name} ({peer}) connected"),
                // Users connect here, and who they are does not belong in a log.
                None => debug!(address = %peer, "an entry ({peer}) connected"),
            },
            Event::LinkRenewed { side, peer, .. } => {
                debug!(side = side.name(), address = %peer, "renewed the keys of the {} link ({peer})", side.name());
            }
            // Reported when it fell silent.
            Event::LinkDown { side: Side::Down, .. } => debug!("the keys of the link to the next hop expired"),
            Event::LinkDown { side: Side::Up, .. } => match &self.previous {
                Some(name) => info!(peer = name, "previous hop {name} disconnected: its keys expired"),
                None => debug!("an entry disconnected"),
            },
            Event::LinkSilent { .. } => debug!("no reply from the next hop; started a new handshake"),
            Event::ChannelOpen { channel, setup } => {
                let setup_ms = setup.as_millis();
                debug!(channel = channel.0, setup_ms, "opened channel {channel} in {setup_ms} ms");
                self.setups_fail_since = None;
                self.refused_acks.end();
                if self.setups.end() {
                    info!("channel setup succeeded");
                }
            }
            Event::ChannelClosed { channel, reason } => {
                debug!(channel = channel.0, ?reason, "closed channel {channel}: {reason:?}")
            }
            Event::SetupTimedOut { attempts, next_timeout } => self.setup_timed_out(now, *attempts, *next_timeout),
            Event::SetupRefused(why) => {
                if self.refused_acks.is_due(now, PATIENCE) {
                    warn!(
                        "channel setup failed: the answer is not from the hops of this chain ({why}); compare chain.toml on all nodes"
                    );
                }
            }
        }
    }

    fn connected(&mut self) {
        self.was_connected = true;
        self.silence.end();
        if let Some(Peer { name, role, address }) = &self.next {
            info!(peer = name, %role, %address, "connected to next hop {name} ({address})");
        }
    }

    fn setup_timed_out(&mut self, now: Duration, attempt: u32, next_timeout: Duration) {
        let since = *self.setups_fail_since.get_or_insert(now);
        // If the next hop is silent, that was reported and is the reason.
        if self.silence.is_reported() || !self.setups.is_due(now, now.saturating_sub(since)) {
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
        if let Notice::Deaf { why } = notice {
            warn!("cannot listen on a new forward: {why}");
            return;
        }
        match notice {
            Notice::Deaf { .. } => {}
            Notice::TooLarge { client, len, max } => {
                let address = client.address;
                if self.clients.is_due(now, format!("client {address}")) {
                    warn!(%address, len, max, "dropped a datagram of {len} bytes from {address}: the limit is {max} (8 fragments)");
                }
            }
            Notice::Refused { destination, status, .. } => {
                let reason = status_text(*status);
                if self.clients.is_due(now, format!("{destination}: {reason}")) {
                    warn!(%destination, ?status, "the exit refused {destination}: {reason}");
                }
            }
        }
    }
}

fn status_text(status: Status) -> &'static str {
    match status {
        Status::Open => "open",
        Status::Refused => "its policy does not allow it (see `allow` and `deny` in the exit's configuration)",
        Status::Unresolvable => "the name does not resolve there",
        Status::Unreachable => "the destination is unreachable",
        Status::TooManyFlows => "the exit has too many flows or sockets",
        Status::UnknownFlow => "the flow is unknown there",
        Status::TooLarge => "the datagram is too large",
    }
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
        assert!(trouble.end() && !trouble.end());
        assert!(trouble.is_due(secs(3600), secs(2)), "new trouble does not wait for the old interval");
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
    fn remembered_client_troubles_are_bounded() {
        let mut troubles = ClientTroubles::default();
        assert!((0..200).all(|s| troubles.is_due(secs(s), format!("192.0.2.1:{s}"))));
        assert_eq!(troubles.by_subject.len(), CLIENT_TROUBLES_MAX);
    }

    #[test]
    fn short_trouble_is_not_reported() {
        let mut trouble = Trouble::default();
        assert!(!trouble.is_due(secs(1), secs(1)));
        assert!(!trouble.end());
    }
}
