//! The configuration of a node's control plane: position, keys, neighbours, times and caps.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use thiserror::Error;
use wire::cell::{Class, Shape};
use wire::kdf::{Secret, x25519_public};
use wire::setup::{SetupKey, Suite};

use crate::descriptor::Descriptor;

/// Neither `Clone` nor printed in full, because it holds the private keys.
pub struct Config {
    pub role: Role,
    /// The chain's class and number of key hops.
    pub shape: Shape,
    /// Entry 0, mixes 1..=m, exit m + 1.
    pub position: usize,
    /// Noise static private key. The entry does not use its own, so any value works there.
    pub noise: Secret,
    /// Setup private keys; unused at the entry.
    pub setup: SetupKey,
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
    pub timing: Timing,
    pub caps: Caps,
}

/// A node's role, and the settings that only this role needs.
pub enum Role {
    /// The user's end of the chain; it sets up the channels.
    Entry {
        /// The descriptors of all hops, Mix 1 first.
        hops: Vec<Descriptor>,
        /// Channels to keep up; 4 by default.
        channels: usize,
    },
    Mix,
    Exit,
}

pub struct NextHop {
    /// Already verified.
    pub descriptor: Descriptor,
    /// The address to send to. May differ from the lanes in its descriptor (NAT, proxies, tests).
    pub address: SocketAddr,
}

/// Least time between the cells of one ack content.
const ACK_PERIOD_MIN: Duration = Duration::from_millis(5);

/// Times of the state machines. The defaults are those of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// An initiator renews this long after a handshake: 120 s.
    pub renew_after: Duration,
    /// Both ends drop a slot this long after its handshake: 180 s.
    pub expire_after: Duration,
    /// First wait for message 2, which grows up to `handshake_retry_max`: 500 ms.
    pub handshake_retry: Duration,
    /// Longest wait for message 2: 1 s, so that neighbours started in any order connect within 2 s.
    pub handshake_retry_max: Duration,
    /// A node sends a keepalive if it sent nothing for this long after it received a cell: 500 ms.
    pub keepalive_after: Duration,
    /// An initiator starts a new handshake if it receives nothing for this long, plus both nodes'
    /// mixing delays, after it sent a cell: 1 s.
    pub silent_after: Duration,
    /// Time that a setup may take in addition to the hops' mixing delays: 500 ms.
    pub setup_allowance: Duration,
    /// Longest wait for an ack: 30 s.
    pub setup_retry_max: Duration,
    /// Longest wait for an ack while no channel is open and one setup at a time probes the chain: 2 s.
    pub probe_retry_max: Duration,
    /// Shortest lifetime of a half-open record: 5 s.
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
    /// Links of the node towards entries: 1024. Must be below 4096.
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
    /// Complete messages 1 per second, each of which costs public-key work: 1000, burst 2000.
    pub handshakes: Rate,
    /// Setups that are remembered against replay, as long as the setup key is in use: 2^20. A full
    /// cache refuses setups.
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

/// The size of a token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub per_second: u32,
    /// Most tokens that it holds.
    pub burst: u32,
}

/// A configuration that contradicts itself.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadConfig {
    /// The position does not fit the role.
    #[error("position {position} in a chain of {hops} key hops does not belong to this role: the entry is 0, mixes are 1 to {}, the exit is {hops}", hops - 1)]
    Position { position: usize, hops: usize },
    #[error("a mix or exit needs its own descriptor: get the chain file again from its operator")]
    NoDescriptor,
    #[error(
        "descriptor {expected} is for position {position} of {hops} key hops in class {class}: fetch the chain's descriptors again"
    )]
    Descriptor {
        /// The position that it was used for.
        expected: usize,
        position: u8,
        hops: u8,
        class: Class,
    },
    #[error(
        "the descriptors have different channel lifetimes ({0} s and {1} s): run `eddy init` for the whole chain again"
    )]
    Lifetime(u16, u16),
    #[error(
        "the descriptors have different suites ({0} and {1}): a chain has one; run `eddy init` for the whole chain again"
    )]
    Suite(Suite, Suite),
    #[error("the {0} key does not match this node's descriptor: get the chain file again from its operator")]
    Key(&'static str),
    #[error(
        "previous hop: expected its Noise key at the exit and at every mix after Mix 1, and none at the entry and Mix 1"
    )]
    Previous,
    #[error("next hop: expected one at the entry and at every mix, and none at the exit")]
    Next,
    #[error("{0} descriptors for {1} key hops: fetch the chain's descriptors again")]
    Hops(usize, usize),
    /// A time or a cap that cannot work.
    #[error("{0}")]
    Value(&'static str),
}

impl Config {
    pub(crate) fn is_entry(&self) -> bool {
        self.position == 0
    }

    /// True if its up side has a link for each entry, without a known peer.
    pub(crate) fn faces_entries(&self) -> bool {
        self.position == 1
    }

    /// Checks that all parts fit together.
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

        self.check_own_keys()?;
        if self.previous.is_some() != (self.position > 1) {
            return Err(BadConfig::Previous);
        }
        if self.next.is_some() != (self.position < hops) {
            return Err(BadConfig::Next);
        }
        self.check_descriptors()?;
        self.check_values()
    }

    fn check_own_keys(&self) -> Result<(), BadConfig> {
        if self.position == 0 {
            return Ok(());
        }
        let own = self.descriptor.as_ref().ok_or(BadConfig::NoDescriptor)?;
        self.check_descriptor(own, self.position)?;
        if x25519_public(&self.noise) != own.noise {
            return Err(BadConfig::Key("Noise"));
        }
        if self.setup.public() != own.setup {
            return Err(BadConfig::Key("setup"));
        }
        Ok(())
    }

    fn check_descriptor(&self, descriptor: &Descriptor, expected: usize) -> Result<(), BadConfig> {
        let same = usize::from(descriptor.position) == expected
            && usize::from(descriptor.hops) == self.shape.hops()
            && descriptor.class == self.shape.class();
        same.then_some(()).ok_or(BadConfig::Descriptor {
            expected,
            position: descriptor.position,
            hops: descriptor.hops,
            class: descriptor.class,
        })
    }

    fn check_descriptors(&self) -> Result<(), BadConfig> {
        let mut all: Vec<&Descriptor> = self.descriptor.iter().collect();
        if let Some(next) = &self.next {
            self.check_descriptor(&next.descriptor, self.position + 1)?;
            all.push(&next.descriptor);
        }
        if let Role::Entry { hops, .. } = &self.role {
            if hops.len() != self.shape.hops() {
                return Err(BadConfig::Hops(hops.len(), self.shape.hops()));
            }
            for (i, descriptor) in hops.iter().enumerate() {
                self.check_descriptor(descriptor, i + 1)?;
                all.push(descriptor);
            }
        }
        for pair in all.windows(2) {
            let (one, other) = (pair[0], pair[1]);
            if one.lifetime_s != other.lifetime_s {
                return Err(BadConfig::Lifetime(one.lifetime_s, other.lifetime_s));
            }
            if one.setup.suite() != other.setup.suite() {
                return Err(BadConfig::Suite(one.setup.suite(), other.setup.suite()));
            }
        }
        Ok(())
    }

    fn check_values(&self) -> Result<(), BadConfig> {
        let (timing, caps) = (&self.timing, &self.caps);
        let checks = [
            (
                timing.renew_after < timing.expire_after,
                "renew_after must be shorter than expire_after, otherwise links expire before their renewal",
            ),
            (
                !timing.handshake_retry.is_zero()
                    && !timing.keepalive_after.is_zero()
                    && !timing.silent_after.is_zero(),
                "handshake_retry, keepalive_after and silent_after must not be zero",
            ),
            (!timing.setup_allowance.is_zero(), "setup_allowance must not be zero"),
            (caps.links < 1 << wire::ids::LinkId::INDEX_BITS, "caps.links must be below 4096"),
            (caps.links > 0 && caps.links_per_address > 0, "caps.links and caps.links_per_address must be at least 1"),
        ];
        match checks.into_iter().find(|(holds, _)| !holds) {
            Some((_, why)) => Err(BadConfig::Value(why)),
            None => Ok(()),
        }
    }

    /// A descriptor of this chain, for what all of them have in common.
    fn any_descriptor(&self) -> Option<&Descriptor> {
        self.descriptor.as_ref().or(self.next.as_ref().map(|next| &next.descriptor))
    }

    /// The lifetime of every channel, and the one in the `info` of every setup.
    pub(crate) fn lifetime_s(&self) -> u16 {
        self.any_descriptor().map_or(0, |d| d.lifetime_s)
    }

    /// The suite of every setup.
    pub(crate) fn suite(&self) -> Suite {
        self.any_descriptor().map_or(Suite::default(), |d| d.setup.suite())
    }

    /// How long apart the three cells of an ack content leave (SPEC 5.4.5): after this node's pool has
    /// released the one before.
    pub(crate) fn ack_period(&self) -> Duration {
        let delay = self.descriptor.as_ref().map_or(0, |own| u64::from(own.mixing_delay_ms));
        ACK_PERIOD_MIN.max(Duration::from_millis(delay))
    }

    /// First timeout of a setup: the allowance and twice the hops' mixing delays. A hop knows only its
    /// own delay and that of the next hop, and assumes the larger one for every hop.
    pub(crate) fn setup_timeout(&self) -> Duration {
        let sum: u64 = match &self.role {
            Role::Entry { hops, .. } => hops.iter().map(|d| u64::from(d.mixing_delay_ms)).sum(),
            Role::Mix | Role::Exit => self.mixing_delays().into_iter().max().unwrap_or(0) * self.shape.hops() as u64,
        };
        self.timing.setup_allowance + Duration::from_millis(2 * sum)
    }

    /// The life of a half-open record.
    pub(crate) fn half_open_for(&self) -> Duration {
        self.timing.half_open_min.max(2 * self.setup_timeout())
    }

    /// An initiator waits this long for an answer before it starts a new handshake.
    pub(crate) fn silent_after(&self) -> Duration {
        self.timing.silent_after + Duration::from_millis(self.mixing_delays().into_iter().sum())
    }

    /// Largest mixing delays of this node and of the next hop, in ms.
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
