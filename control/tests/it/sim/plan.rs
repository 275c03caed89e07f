//! The configuration of a chain, from which its nodes are made.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use control::draw::{draw_secret, draw_x25519};
use control::trust::{ChainTerms, ClassTerms, Contact, HopRole, NodeDescriptor, SignedDescriptor, Signer, State, View};
use control::{Caps, Config, NodeKeys, Role, Timing, TrustSetup};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use wire::cell::{Class, Shape};
use wire::kdf::Secret;
use wire::setup::Suite;

use super::secs;
/// The private keys of a node.
#[derive(Clone)]
pub struct Keys {
    pub noise: Secret,
    pub signing: Secret,
}

/// The configuration of a chain, from which its nodes are made.
pub struct Plan {
    /// Of the first class.
    pub shape: Shape,
    pub terms: ChainTerms,
    /// Of the hops, Mix 1 first; signed when a node starts.
    pub descriptors: Vec<NodeDescriptor>,
    /// Seeds of the hops' identities, by position.
    identities: Vec<Secret>,
    /// By position; those of the entry are not used.
    pub keys: Vec<Vec<Keys>>,
    pub timing: Timing,
    pub caps: Caps,
    /// Channels in each class.
    pub channels: usize,
    /// The classes that entries use, by place.
    pub entry_classes: Range<usize>,
    pub shared_prefixes: Vec<ipnet::IpNet>,
    /// Shared by positions 1 and 2, or not: (of 1, of 2).
    pub psk: (Option<Secret>, Option<Secret>),
}

/// Where node `position` receives from the previous hop.
pub fn up_address(position: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, position as u8], 1000))
}

/// The same for another class than the first, by place.
pub fn port_of_class(first: SocketAddr, class: usize) -> SocketAddr {
    SocketAddr::new(first.ip(), first.port() + class as u16)
}

/// Where it receives from the next hop.
pub fn down_address(position: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, position as u8], 2000))
}

impl Plan {
    pub fn new(class: Class, mixes: usize) -> Plan {
        Plan::with_suite(class, mixes, Suite::default())
    }

    pub fn with_suite(class: Class, mixes: usize, suite: Suite) -> Plan {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let shape = Shape::new(class, mixes + 1).unwrap();
        let draw = |rng: &mut ChaCha20Rng| Keys { noise: draw_x25519(rng).0, signing: draw_secret(rng) };
        let keys: Vec<Vec<Keys>> = (0..=shape.hops()).map(|_| vec![draw(&mut rng)]).collect();
        let identities: Vec<Secret> = (0..=shape.hops()).map(|_| draw_secret(&mut rng)).collect();
        let descriptors = (1..=shape.hops()).map(|i| NodeDescriptor {
            role: if i == shape.hops() { HopRole::Exit } else { HopRole::Mix },
            revision: 1,
            floor: 0,
            not_before: 0,
            not_after: 1 << 40,
            identity: Signer::from_seed(&identities[i]).public(),
            noise: wire::kdf::x25519_public(&keys[i][0].noise),
            signing: Signer::from_seed(&keys[i][0].signing).public(),
            contacts: vec![Contact {
                class: class.into(),
                lanes: 1,
                addresses: vec![up_address(i)],
                names: Vec::new(),
            }],
        });
        let descriptors: Vec<NodeDescriptor> = descriptors.collect();
        let terms = ChainTerms {
            suite,
            interval_s: 10,
            epoch_s: 3600,
            classes: vec![ClassTerms { class, mixing_delay_ms: 20, lifetime_s: 3600 }],
            paced: Vec::new(),
            identities: descriptors.iter().map(|descriptor| descriptor.identity).collect(),
        };
        Plan {
            shape,
            terms,
            descriptors,
            identities,
            keys,
            timing: Timing::default(),
            caps: Caps::default(),
            channels: 4,
            entry_classes: 0..1,
            shared_prefixes: Vec::new(),
            psk: (None, None),
        }
    }

    /// Adds a class, with a number above those of the others.
    pub fn add_class(&mut self, class: Class) {
        let place = self.terms.classes.len();
        self.entry_classes.end = place + 1;
        self.terms.classes.push(ClassTerms { class, mixing_delay_ms: 20, lifetime_s: 3600 });
        for (descriptor, at) in self.descriptors.iter_mut().zip(1..) {
            let addresses = vec![port_of_class(up_address(at), place)];
            descriptor.contacts.push(Contact { class: class.into(), lanes: 1, addresses, names: Vec::new() });
        }
    }

    /// The shapes of the classes that a node has.
    fn shapes(&self, position: usize) -> impl Iterator<Item = Shape> {
        let classes = &self.terms.classes;
        let classes = if position == 0 { &classes[self.entry_classes.clone()] } else { &classes[..] };
        classes.iter().map(|terms| Shape::new(terms.class, self.shape.hops()).unwrap())
    }

    /// Gives this position keys that the chain does not know, from now on.
    pub fn forge_keys(&mut self, position: usize) {
        let mut rng = ChaCha20Rng::seed_from_u64(99);
        let keys = Keys { noise: draw_x25519(&mut rng).0, signing: draw_secret(&mut rng) };
        self.name_keys(position, &keys);
        self.keys[position] = vec![keys];
    }

    /// Another revision of a descriptor, with other keys.
    pub fn name_keys(&mut self, position: usize, keys: &Keys) {
        let descriptor = &mut self.descriptors[position - 1];
        descriptor.revision += 1;
        descriptor.noise = wire::kdf::x25519_public(&keys.noise);
        descriptor.signing = Signer::from_seed(&keys.signing).public();
    }

    /// A hop's descriptor, signed by its identity.
    pub fn signed(&self, position: usize) -> SignedDescriptor {
        let identity = Signer::from_seed(&self.identities[position]);
        self.descriptors[position - 1].clone().sign(&identity).unwrap()
    }

    /// The configuration of a node's first class, when it starts for the first time.
    pub fn first(&self, position: usize) -> (Config, TrustSetup) {
        let (configs, trust) = self.configs(position, State::fresh(1_800_000_000), UNIX_EPOCH + secs(1_800_000_000));
        (configs.into_iter().next().unwrap(), trust)
    }

    /// The configurations of a node's classes, and what it starts with if this is on its disk.
    pub fn configs(&self, position: usize, state: State, wall: SystemTime) -> (Vec<Config>, TrustSetup) {
        let hops = self.shape.hops();
        let now_s = wall.duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut view = View::new(self.terms.clone());
        let state = state.restore(&mut view, now_s);
        for hop in 1..=hops {
            // One that is not valid yet, or revoked, is left out.
            let _ = view.take_descriptor(hop, self.signed(hop), now_s);
        }
        let config = |shape| Config {
            paced: false,
            role: match position {
                0 => Role::Entry { channels: self.channels },
                p if p == hops => Role::Exit,
                _ => Role::Mix,
            },
            shape,
            position,
            terms: self.terms.clone(),
            next: None,
            previous: Vec::new(),
            shared_prefixes: self.shared_prefixes.clone(),
            psk_up: self.psk.1.clone().filter(|_| position == 2),
            psk_down: self.psk.0.clone().filter(|_| position == 1),
            timing: self.timing,
            caps: self.caps,
        };
        let keys = if position == 0 { Vec::new() } else { self.node_keys(position) };
        (self.shapes(position).map(config).collect(), TrustSetup { view, keys, state })
    }

    pub fn node_keys(&self, position: usize) -> Vec<NodeKeys> {
        let read = |keys: &Keys| NodeKeys { noise: keys.noise.clone(), signer: Signer::from_seed(&keys.signing) };
        self.keys[position].iter().map(read).collect()
    }
}
