//! What a node writes to its log about its neighbours, its channels and its clients.
//!
//! Decides which events become a line, and how often. Trouble that lasts is reported soon, again at growing intervals,
//! and when it is over. No packet causes a line of its own, and strangers cannot choose how often one is written.
//!
//! Neighbours: [`crate::runtime::node`] feeds it on the control thread; the command decides where lines go.

use std::net::SocketAddr;
use std::time::Duration;

use control::Event;
use dataplane::punt::Notice;
use tracing::{debug, info, warn};
use wire::frames::Status;
use wire::ids::Side;

use crate::config::{Chain, NodeRole, node_name};

/// How long trouble may last before it is reported.
const PATIENCE: Duration = Duration::from_millis(1500);
/// From the first report of trouble to the second; then it doubles.
const REPEAT_FIRST: Duration = Duration::from_secs(10);
/// Longest time between two reports of the same trouble.
const REPEAT_MAX: Duration = Duration::from_secs(600);
/// Time between two lines on what clients do.
const CLIENTS_EVERY: Duration = Duration::from_secs(1);

/// The log of one node.
pub struct Log {
    next: Option<Peer>,
    /// Name of the previous hop; none where strangers connect.
    previous: Option<String>,
    /// Name of the hop after the next one.
    beyond: Option<String>,
    /// Whether there ever was a link to the next hop.
    was_connected: bool,
    silence: Trouble,
    setups: Trouble,
    setups_fail_since: Option<Duration>,
    refused_acks: Trouble,
    /// When the last line on clients was written.
    clients: Option<Duration>,
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
    /// Whether a report is due of trouble that has lasted for this long.
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

    /// Whether it has been reported and not ended since.
    fn is_reported(&self) -> bool {
        self.repeat.is_some()
    }

    /// Ends it. Whether it had been reported.
    fn end(&mut self) -> bool {
        self.repeat.take().is_some()
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
            clients: None,
        }
    }

    /// Takes in for how long the next hop has been silent; at least once a second while it is.
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

    /// Takes in an event of control's.
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
                let (setup_us, setup_ms) = (setup.as_micros() as u64, setup.as_millis());
                debug!(channel = channel.0, setup_us, "opened channel {channel} in {setup_ms} ms");
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

    /// Takes in what the worker noticed about a client or a listener.
    pub fn notice(&mut self, now: Duration, notice: &Notice) {
        if let Notice::Deaf { why } = notice {
            warn!("cannot listen on a new forward: {why}");
            return;
        }
        if self.clients.is_some_and(|last| now < last + CLIENTS_EVERY) {
            return;
        }
        self.clients = Some(now);
        match notice {
            Notice::Deaf { .. } => {}
            Notice::TooLarge { client, len, max } => {
                let address = client.address;
                warn!(%address, len, max, "dropped a datagram of {len} bytes from {address}: the limit is {max} (8 fragments)");
            }
            Notice::Refused { destination, status, .. } => {
                let reason = status_text(*status);
                warn!(%destination, ?status, "the exit refused {destination}: {reason}");
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
        Status::TooManyFlows => "it has too many flows or sockets",
        Status::UnknownFlow => "it does not know the flow",
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
    fn short_trouble_is_not_reported() {
        let mut trouble = Trouble::default();
        assert!(!trouble.is_due(secs(1), secs(1)));
        assert!(!trouble.end());
    }
}
