//! What a node must know before it can shake hands: its place, keys, neighbours, times and caps.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use thiserror::Error;
use wire::cell::{Class, Shape};
use wire::kdf::{Secret, x25519_public};

use crate::descriptor::Descriptor;

/// A node's control configuration. Not cloned, not printed: it holds the private keys.
pub struct Config {
    /// What the node is.
    pub role: Role,
    /// The chain's class and number of key hops.
    pub shape: Shape,
    /// Entry 0, mixes 1..=m, exit m + 1.
    pub position: usize,
    /// Noise static private key. The entry has none on the wire; any value will do there.
    pub noise: Secret,
    /// Setup private key. Unused at the entry.
    pub setup: Secret,
    /// The node's own descriptor; none at the entry.
    pub descriptor: Option<Descriptor>,
    /// The previous hop's Noise static public key; none at the entry and Mix 1.
    pub previous: Option<[u8; 32]>,
    /// The next hop; none at the exit.
    pub next: Option<NextHop>,
    /// Pre-shared key with the previous hop, if agreed (IK links only).
    pub psk_up: Option<Secret>,
    /// Pre-shared key with the next hop, if agreed (IK links only).
    pub psk_down: Option<Secret>,
    /// Times.
    pub timing: Timing,
    /// Bounds.
    pub caps: Caps,
}

/// What a node is, and what only that kind of node needs.
pub enum Role {
    /// The user's end: starts channels.
    Entry {
        /// The descriptors of all hops, Mix 1 first.
        hops: Vec<Descriptor>,
        /// Channels to keep up; 4 unless there is a reason.
        channels: usize,
    },
    /// A hop with a next hop.
    Mix,
    /// The last hop.
    Exit,
}

/// The next hop.
pub struct NextHop {
    /// Its descriptor, verified.
    pub descriptor: Descriptor,
    /// Where it is reached; may differ from its lanes (NAT, proxies, tests).
    pub address: SocketAddr,
}

/// Times of the state machines. The defaults are the specification's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// An initiator renews this long after a handshake: 120 s.
    pub renew_after: Duration,
    /// Both ends drop a slot this long after its handshake: 180 s.
    pub expire_after: Duration,
    /// First wait for message 2; grows to `handshake_retry_max`: 500 ms.
    pub handshake_retry: Duration,
    /// Longest wait for message 2: 1 s, so that neighbours started in any order meet within two.
    pub handshake_retry_max: Duration,
    /// A node that has received and sent nothing for this long sends a keepalive: 500 ms.
    pub keepalive_after: Duration,
    /// An initiator that has sent for this long (and both nodes' mixing delays) unheard starts a new
    /// handshake: 1 s.
    pub silent_after: Duration,
    /// What a setup may take beside the hops' mixing delays: 500 ms.
    pub setup_allowance: Duration,
    /// Longest wait for an ack: 30 s.
    pub setup_retry_max: Duration,
    /// Longest wait while no channel is open at all, when one setup at a time probes: 2 s.
    pub probe_retry_max: Duration,
    /// Least time a half-open record lasts: 5 s.
    pub half_open_min: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            renew_after: Duration::from_secs(120),
            expire_after: Duration::from_secs(180),
            handshake_retry: Duration::from_millis(500),
            handshake_retry_max: Duration::from_secs(1),
            keepalive_after: Duration::from_millis(500),
            silent_after: Duration::from_secs(1),
            setup_allowance: Duration::from_millis(500),
            setup_retry_max: Duration::from_secs(30),
            probe_retry_max: Duration::from_secs(2),
            half_open_min: Duration::from_secs(5),
        }
    }
}

/// Bounds of every table and rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Links of the node towards entries: 1024; below 4096.
    pub links: usize,
    /// Entry links from one address and port: 4.
    pub links_per_address: usize,
    /// Half-open records of the node: 1024.
    pub half_open: usize,
    /// Half-open records of one entry link: 64.
    pub half_open_per_entry_link: usize,
    /// Open channels of the node: 2^16.
    pub channels: usize,
    /// Open channels of one entry link: 4096.
    pub channels_per_entry_link: usize,
    /// Setups per second on one entry link: 5, burst 20.
    pub setups_per_entry_link: Rate,
    /// Setups per second of the node: 1000, burst 2000.
    pub setups: Rate,
    /// Whole first messages per second that cost public-key work: 1000, burst 2000.
    pub handshakes: Rate,
    /// Setups remembered against replay, for as long as the setup key lives: 2^20. A full cache
    /// refuses.
    pub replay_cache: usize,
}

impl Default for Caps {
    fn default() -> Caps {
        Caps {
            links: 1024,
            links_per_address: 4,
            half_open: 1024,
            half_open_per_entry_link: 64,
            channels: 1 << 16,
            channels_per_entry_link: 4096,
            setups_per_entry_link: Rate { per_second: 5, burst: 20 },
            setups: Rate { per_second: 1000, burst: 2000 },
            handshakes: Rate { per_second: 1000, burst: 2000 },
            replay_cache: 1 << 20,
        }
    }
}

/// A token bucket's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens that come back per second.
    pub per_second: u32,
    /// Tokens at most.
    pub burst: u32,
}

/// A configuration that contradicts itself.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadConfig {
    /// Role and position differ.
    #[error("position {position} in a chain of {hops} key hops does not belong to this role: the entry is 0, mixes are 1 to {}, the exit is {hops}", hops - 1)]
    Position {
        /// As configured.
        position: usize,
        /// h.
        hops: usize,
    },
    /// A mix or exit without its descriptor.
    #[error("a mix or exit needs its own descriptor: run `eddy init` on this node")]
    NoDescriptor,
    /// A descriptor is of another place, class or chain length.
    #[error(
        "the descriptor in place {place} says position {position}, {hops} key hops, class {class}: fetch the chain's descriptors again"
    )]
    Descriptor {
        /// Where it was used.
        place: usize,
        /// What it says.
        position: u8,
        /// What it says.
        hops: u8,
        /// What it says.
        class: Class,
    },
    /// The hops do not agree on the lifetime.
    #[error("the descriptors name different lifetimes ({0} and {1} s): all hops of a chain must be initialised alike")]
    Lifetime(u16, u16),
    /// Own descriptor and own keys differ.
    #[error("the {0} key does not belong to this node's descriptor: publish the descriptor anew after a key change")]
    Key(&'static str),
    /// No previous hop, or one too many.
    #[error("a mix after the first and the exit need the previous hop's Noise key; entry and Mix 1 have none")]
    Previous,
    /// No next hop, or one too many.
    #[error("entry and mixes need a next hop; the exit has none")]
    Next,
    /// The entry has not as many descriptors as the chain hops.
    #[error("{0} descriptors for {1} key hops: fetch the chain's descriptors again")]
    Hops(usize, usize),
    /// Times or caps that cannot work.
    #[error("{0}")]
    Value(&'static str),
}

impl Config {
    /// Whether this node is the entry.
    pub(crate) fn is_entry(&self) -> bool {
        self.position == 0
    }

    /// Whether its up side faces entries: many links, no known peer.
    pub(crate) fn faces_entries(&self) -> bool {
        self.position == 1
    }

    /// Checks that all parts belong together.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self) -> Result<(), BadConfig> {
        let hops = self.shape.hops();
        let fits = match self.role {
            Role::Entry { .. } => self.position == 0,
            Role::Mix => (1..hops).contains(&self.position),
            Role::Exit => self.position == hops,
        };
        if !fits {
            return Err(BadConfig::Position { position: self.position, hops });
        }
        let check = |descriptor: &Descriptor, place: usize| {
            let same = usize::from(descriptor.position) == place
                && usize::from(descriptor.hops) == hops
                && descriptor.class == self.shape.class();
            same.then_some(()).ok_or(BadConfig::Descriptor {
                place,
                position: descriptor.position,
                hops: descriptor.hops,
                class: descriptor.class,
            })
        };
        let mut lifetimes = Vec::new();
        if self.position > 0 {
            let own = self.descriptor.as_ref().ok_or(BadConfig::NoDescriptor)?;
            check(own, self.position)?;
            if x25519_public(&self.noise) != own.noise {
                return Err(BadConfig::Key("Noise"));
            }
            if x25519_public(&self.setup) != own.setup {
                return Err(BadConfig::Key("setup"));
            }
            lifetimes.push(own.lifetime_s);
        }
        if self.previous.is_some() != (self.position > 1) {
            return Err(BadConfig::Previous);
        }
        if self.next.is_some() != (self.position < hops) {
            return Err(BadConfig::Next);
        }
        if let Some(next) = &self.next {
            check(&next.descriptor, self.position + 1)?;
            lifetimes.push(next.descriptor.lifetime_s);
        }
        if let Role::Entry { hops: all, .. } = &self.role {
            if all.len() != hops {
                return Err(BadConfig::Hops(all.len(), hops));
            }
            for (place, descriptor) in all.iter().enumerate() {
                check(descriptor, place + 1)?;
                lifetimes.push(descriptor.lifetime_s);
            }
        }
        if let Some(&other) = lifetimes.iter().find(|s| **s != lifetimes[0]) {
            return Err(BadConfig::Lifetime(lifetimes[0], other));
        }
        let timing = &self.timing;
        if timing.renew_after >= timing.expire_after {
            return Err(BadConfig::Value("renew_after must be shorter than expire_after, or links die before renewal"));
        }
        if timing.handshake_retry.is_zero() || timing.keepalive_after.is_zero() || timing.silent_after.is_zero() {
            return Err(BadConfig::Value("handshake_retry, keepalive_after and silent_after must not be zero"));
        }
        if timing.setup_allowance.is_zero() {
            return Err(BadConfig::Value("setup_allowance must not be zero"));
        }
        if self.caps.links >= 1 << wire::ids::LinkId::INDEX_BITS {
            return Err(BadConfig::Value("caps.links must be below 4096"));
        }
        if self.caps.links == 0 || self.caps.links_per_address == 0 {
            return Err(BadConfig::Value("caps.links and caps.links_per_address must be at least 1"));
        }
        Ok(())
    }

    /// Every setup's `info`, and the lifetime of every channel.
    pub(crate) fn lifetime_s(&self) -> u16 {
        let any = self.descriptor.as_ref().or(self.next.as_ref().map(|n| &n.descriptor));
        any.map_or(0, |d| d.lifetime_s)
    }

    /// First timeout of a setup: the allowance and twice the hops' mixing delays. A hop knows its own
    /// and the next one's and takes the larger for each.
    pub(crate) fn setup_timeout(&self) -> Duration {
        let sum: u64 = match &self.role {
            Role::Entry { hops, .. } => hops.iter().map(|d| u64::from(d.mixing_delay_ms)).sum(),
            Role::Mix | Role::Exit => self.mixing_delays().into_iter().max().unwrap_or(0) * self.shape.hops() as u64,
        };
        self.timing.setup_allowance + Duration::from_millis(2 * sum)
    }

    /// How long a half-open record lasts.
    pub(crate) fn half_open_for(&self) -> Duration {
        self.timing.half_open_min.max(2 * self.setup_timeout())
    }

    /// How long an initiator sends unheard before it starts a new handshake.
    pub(crate) fn silent_after(&self) -> Duration {
        self.timing.silent_after + Duration::from_millis(self.mixing_delays().into_iter().sum())
    }

    /// Largest mixing delays of this node and the next, in ms.
    fn mixing_delays(&self) -> [u64; 2] {
        let of = |d: Option<&Descriptor>| d.map_or(0, |d| u64::from(d.mixing_delay_ms));
        [of(self.descriptor.as_ref()), of(self.next.as_ref().map(|n| &n.descriptor))]
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("position", &self.position)
            .field("shape", &self.shape)
            .field("timing", &self.timing)
            .field("caps", &self.caps)
            .finish_non_exhaustive()
    }
}
