//! The configuration of a node's control plane: position, neighbours, times and caps of each class, and what it starts
//! with of keys and descriptors.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use thiserror::Error;
use wire::cell::Shape;
use wire::ids::{ClassId, Side};
use wire::kdf::{Secret, x25519_public};
use wire::paced::{PacedClass, PacedTerms, control_window};
use wire::replay::WIDTH_DEFAULT;
use wire::setup::Suite;

use crate::prefix::Prefix;
use crate::rate::Rate;
use crate::trust::hop::{CertifiedKeys, HopState};
use crate::trust::view::View;
use crate::trust::{ChainTerms, ClassTerms, SignedDescriptor, Signer, Times, Validity};
use crate::unix_ms;

/// The configuration of one class of a node.
///
/// Neither `Clone` nor printed in full, because it holds the private keys.
pub struct Config {
    pub role: Role,
    /// The class, and the chain's number of key hops.
    pub shape: Shape,
    /// The class is the paced one of the shape's size.
    pub paced: bool,
    /// Entry 0, mixes 1..=m, exit m + 1.
    pub position: usize,
    /// The terms of the chain.
    pub terms: ChainTerms,
    /// The address of the next hop, if it differs from those in its descriptor (NAT, proxies, tests).
    pub next: Option<SocketAddr>,
    /// Addresses of the previous hop in addition to those in its descriptors (NAT, names).
    pub previous: Vec<IpAddr>,
    /// Prefixes whose users share few addresses: their links, handshakes and setups are not counted together.
    pub shared_prefixes: Vec<IpNet>,
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
        /// Channels to keep up; 4 by default.
        channels: usize,
    },
    Mix,
    Exit,
}

/// The keys, descriptors and state that a node starts with.
pub struct TrustSetup {
    /// The chain's terms, and the descriptors that the node has.
    pub view: View,
    /// Private keys; several while they are replaced, none at an entry.
    pub keys: Vec<NodeKeys>,
    /// From the state file; the default at an entry.
    pub state: HopState,
}

/// The private keys that one descriptor of a node names.
pub struct NodeKeys {
    /// Noise static.
    pub noise: Secret,
    /// Signs epoch records and bundles.
    pub signer: Signer,
}

impl NodeKeys {
    /// True if this descriptor names them.
    pub fn are_of(&self, descriptor: &SignedDescriptor) -> bool {
        self.signer.public() == descriptor.signing && x25519_public(&self.noise) == descriptor.noise
    }

    /// Noise static with its public key, and what signs.
    pub(crate) fn split(self) -> (Secret, CertifiedKeys) {
        let noise = x25519_public(&self.noise);
        (self.noise, CertifiedKeys { signer: self.signer, noise })
    }
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
    /// Links of the node towards entries in a free class: 1024. At most [`LINKS_MAX`].
    pub links: usize,
    /// Half-open records of the node: 4096.
    pub half_open: usize,
    /// Half-open records of one entry link: 64.
    pub half_open_per_entry_link: usize,
    /// Open channels of the node: 2^16.
    pub channels: usize,
    /// Open channels of one entry link: 4096.
    pub channels_per_entry_link: usize,
    /// Half-open and open channels of the entries of one prefix: 64.
    pub channels_per_prefix: usize,
    /// Setups per second on one entry link: 5, burst 20.
    pub setups_per_entry_link: Rate,
    /// Setups per second of the node: 1000, burst 512. At a mix they are no more than leave every half-open channel the
    /// time that an ack may take.
    pub setups: Rate,
    /// Complete messages 1 per second, each of which costs public-key work: 1000, burst 2000.
    pub handshakes: Rate,
}

impl Default for Caps {
    fn default() -> Caps {
        Caps {
            links: 1024,
            half_open: 4096,
            half_open_per_entry_link: 64,
            channels: 1 << 16,
            channels_per_entry_link: 4096,
            channels_per_prefix: 64,
            setups_per_entry_link: Rate { per_second: 5, burst: 20 },
            setups: Rate { per_second: 1000, burst: 512 },
            handshakes: Rate { per_second: 1000, burst: 2000 },
        }
    }
}

/// Most links towards entries that a node may be given in a free class.
pub const LINKS_MAX: usize = 4095;
/// Most setups that one pair of keys can remember: 2^26.
const REPLAY_CACHE_MAX: u64 = 1 << 26;

/// A configuration that contradicts itself.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadConfig {
    /// The position does not fit the role.
    #[error("position {position} in a chain of {hops} key hops does not belong to this role: the entry is 0, mixes are 1 to {}, the exit is {hops}", hops - 1)]
    Position { position: usize, hops: usize },
    #[error("{0} key hops, but the chain has {1}: get the chain file again")]
    Hops(usize, usize),
    #[error("the chain does not have class {0}")]
    Class(ClassId),
    /// Records and signatures travel on its links.
    #[error("this hop does not serve class {0}, the chain's first one, which every hop must serve")]
    FirstClass(ClassId),
    #[error("the chain file has no descriptor of this node (hop {0}): copy its node.desc next to the chain file")]
    NoDescriptor(usize),
    #[error("the chain file has no descriptor of the next hop (hop {0}): get the chain file again")]
    NoNextDescriptor(usize),
    /// How many seconds ago.
    #[error(
        "this node's descriptor expired {} ago: check this host's clock with `date -u`; if it is right, run `eddy renew`, \
         then copy node.desc next to chain.toml", span(*.0)
    )]
    Expired(u64),
    #[error("no descriptor of this node (hop {0}) has the keys in its key file: `eddy renew` signs new ones")]
    Keys(usize),
    #[error(
        "setups of {rate}/s need a replay cache of {places} places for one epoch, at most {REPLAY_CACHE_MAX}: \
         lower setups to {rate_max}/s"
    )]
    ReplayCache { rate: u32, places: u64, rate_max: u32 },
    /// A time or a cap that cannot work.
    #[error("{0}")]
    Value(&'static str),
}

/// A time in the largest unit of which it has at least two.
pub(crate) fn span(seconds: u64) -> String {
    let units = [(86_400, "days"), (3600, "hours"), (60, "minutes")];
    let unit = units.iter().find(|(length, _)| seconds >= 2 * length);
    unit.map_or_else(|| format!("{seconds} s"), |(length, name)| format!("{} {name}", seconds / length))
}

impl Config {
    /// The prefix of an address; none if it is exempt (SPEC 4.11).
    pub(crate) fn prefix(&self, address: IpAddr) -> Option<Prefix> {
        let address = address.to_canonical();
        let is_exempt = address.is_loopback() || self.shared_prefixes.iter().any(|shared| shared.contains(&address));
        (self.faces_entries() && !is_exempt).then(|| Prefix::of(address))
    }

    /// True if two addresses are in one prefix, or are the same where prefixes do not count.
    pub(crate) fn is_same_source(&self, one: IpAddr, other: IpAddr) -> bool {
        let source = |address: IpAddr| match self.prefix(address) {
            None if self.faces_entries() => (None, Some(address.to_canonical())),
            _ => (Some(Prefix::of(address)), None),
        };
        source(one) == source(other)
    }

    /// Setups per second of the node.
    pub(crate) fn setups(&self) -> Rate {
        let mut rate = self.caps.setups;
        if matches!(self.role, Role::Mix) {
            let beyond_burst = self.caps.half_open.saturating_sub(rate.burst as usize);
            let for_acks = beyond_burst as f64 / self.setup_timeout().as_secs_f64();
            rate.per_second = rate.per_second.min(for_acks as u32).max(1);
        }
        rate
    }

    pub(crate) fn is_entry(&self) -> bool {
        self.position == 0
    }

    /// True if its up side has a link for each entry, without a known peer.
    pub(crate) fn faces_entries(&self) -> bool {
        self.position == 1
    }

    /// Checks the classes of a node, each one and together, at the time `wall`.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(classes: &[Config], trust: &TrustSetup, wall: SystemTime) -> Result<(), BadConfig> {
        let [first, others @ ..] = classes else { return Err(BadConfig::Value("a node has at least one class")) };
        classes.iter().try_for_each(Config::check_class)?;
        let number = |config: &Config| config.class().number();
        if !classes.is_sorted_by(|one, next| number(one) < number(next)) {
            return Err(BadConfig::Value("the classes of a node must be listed once each, in ascending order"));
        }
        if others.iter().any(|other| (other.position, &other.terms) != (first.position, &first.terms)) {
            return Err(BadConfig::Value("the classes of a node must be those of one chain, at one position"));
        }
        let of_chain = first.terms.first_class();
        if !first.is_entry() && first.class() != of_chain {
            return Err(BadConfig::FirstClass(of_chain));
        }
        first.check_own_keys(trust, wall)?;
        let next = first.position + 1;
        if next <= first.shape.hops() && trust.view.descriptor(next).is_none() {
            return Err(BadConfig::NoNextDescriptor(next));
        }
        classes.iter().try_for_each(Config::check_values)?;
        Config::check_replay_cache(classes)
    }

    /// Checks that the class is one of the chain, at a position of the node's role.
    fn check_class(&self) -> Result<(), BadConfig> {
        let hops = self.shape.hops();
        let fits = match self.role {
            Role::Entry { .. } => self.position == 0,
            Role::Mix => (1..hops).contains(&self.position),
            Role::Exit => self.position == hops,
        };
        if !fits {
            return Err(BadConfig::Position { position: self.position, hops });
        }
        if self.terms.identities.len() != hops {
            return Err(BadConfig::Hops(hops, self.terms.identities.len()));
        }
        let class = self.class();
        let is_of_chain = self.terms.class_ids().any(|one| one == class);
        if is_of_chain { Ok(()) } else { Err(BadConfig::Class(class)) }
    }

    fn check_own_keys(&self, trust: &TrustSetup, wall: SystemTime) -> Result<(), BadConfig> {
        if self.is_entry() {
            return Ok(());
        }
        let all = trust.view.descriptors(self.position);
        if all.is_empty() {
            return Err(BadConfig::NoDescriptor(self.position));
        }
        let own = all.iter().find(|own| trust.keys.iter().any(|keys| keys.are_of(own)));
        let own = own.ok_or(BadConfig::Keys(self.position))?;
        match own.validity(unix_ms(wall) / 1000) {
            Validity::Expired(ago) => Err(BadConfig::Expired(ago)),
            Validity::Valid(_) | Validity::NotYet(_) => Ok(()),
        }
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
            (caps.links <= LINKS_MAX, "caps.links must be at most 4095"),
            (caps.links > 0, "caps.links must be at least 1"),
            (
                !matches!(self.role, Role::Mix) || 2 * caps.setups.burst as usize <= caps.half_open,
                "setups_burst must be at most half of half_open: otherwise one burst of setups replaces channels whose \
                 acks are under way",
            ),
        ];
        if let Some((_, why)) = checks.into_iter().find(|(holds, _)| !holds) {
            return Err(BadConfig::Value(why));
        }
        Ok(())
    }

    fn check_replay_cache(classes: &[Config]) -> Result<(), BadConfig> {
        let places = Config::replay_places(classes);
        if places <= REPLAY_CACHE_MAX {
            return Ok(());
        }
        let rate = classes.iter().map(|config| config.setups().per_second).sum();
        let bursts: u64 = classes.iter().map(|config| u64::from(config.caps.setups.burst)).sum();
        let rate_max = REPLAY_CACHE_MAX.saturating_sub(bursts) * u64::from(rate).max(1) / places;
        Err(BadConfig::ReplayCache { rate, places, rate_max: rate_max as u32 })
    }

    /// Places in the replay cache of a pair of setup keys, which serves all classes (SPEC 7.9.4).
    pub(crate) fn replay_places(classes: &[Config]) -> u64 {
        let of_class = |config: &Config| {
            let per_key = Times::new(&config.terms).setups_per_key(config.setups().per_second);
            per_key + u64::from(config.caps.setups.burst)
        };
        classes.iter().map(of_class).sum()
    }

    pub(crate) fn class(&self) -> ClassId {
        if self.paced { PacedClass::new(self.shape.class()).into() } else { self.shape.class().into() }
    }

    /// The terms of the class, if it is a paced one.
    pub(crate) fn paced_terms(&self) -> Option<&PacedTerms> {
        self.terms.paced.iter().find(|terms| ClassId::from(terms.class) == self.class())
    }

    /// Links towards entries: those of the caps, in a paced class twice `seats` (SPEC 9.8.6).
    pub(crate) fn links_max(&self) -> usize {
        self.paced_terms().map_or(self.caps.links, |terms| 2 * usize::from(terms.seats))
    }

    /// Numbers in the replay window of control cells on the link of a side (SPEC 3.9.2, 9.1.3).
    pub(crate) fn control_window(&self, side: Side) -> usize {
        let link = if side == Side::Up { self.position } else { self.position + 1 };
        let of_paced = |terms| control_window(terms, self.suite(), self.shape.hops(), link);
        self.paced_terms().map_or(WIDTH_DEFAULT, of_paced)
    }

    /// The terms of the class. A paced one has none of these.
    fn class_terms(&self) -> ClassTerms {
        let class = self.shape.class();
        let free = self.terms.classes.iter().find(|terms| !self.paced && terms.class == class).copied();
        free.unwrap_or(ClassTerms { class, mixing_delay_ms: 0, lifetime_s: 0 })
    }

    /// The lifetime of every channel, and the one in the `info` of every setup.
    pub(crate) fn lifetime_s(&self) -> u16 {
        self.class_terms().lifetime_s
    }

    /// The suite of every setup.
    pub(crate) fn suite(&self) -> Suite {
        self.terms.suite
    }

    /// The longest that the mixing of a hop may hold a cell.
    fn mixing_delay(&self) -> Duration {
        Duration::from_millis(u64::from(self.class_terms().mixing_delay_ms))
    }

    /// How long apart the three cells of an ack content leave (SPEC 5.4.5): after the pool has released the one before.
    pub(crate) fn ack_period(&self) -> Duration {
        ACK_PERIOD_MIN.max(self.mixing_delay())
    }

    /// First timeout of a setup: the allowance and twice the hops' mixing delays.
    pub(crate) fn setup_timeout(&self) -> Duration {
        self.timing.setup_allowance + 2 * self.shape.hops() as u32 * self.mixing_delay()
    }

    /// The life of a half-open record.
    pub(crate) fn half_open_for(&self) -> Duration {
        self.timing.half_open_min.max(2 * self.setup_timeout())
    }

    /// An initiator waits this long for an answer before it starts a new handshake.
    pub(crate) fn silent_after(&self) -> Duration {
        self.timing.silent_after + 2 * self.mixing_delay()
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("position", &self.position)
            .field("shape", &self.shape)
            .field("timing", &self.timing)
            .field("caps", &self.caps)
            .finish_non_exhaustive()
    }
}
