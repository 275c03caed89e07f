//! The keys and addresses of the links of a class, as its descriptors and those of its neighbours name them (SPEC 7.3).
//!
//! It is made again whenever the descriptors that the node holds have changed.

use std::net::{IpAddr, SocketAddr};

use wire::kdf::{Secret, x25519_public};

use crate::config::Config;
use crate::datagram::Mac1Key;
use crate::trust::Contact;
use crate::trust::view::View;

/// A Noise static of this node.
pub(crate) struct Static {
    pub(crate) secret: Secret,
    pub(crate) public: [u8; 32],
    /// Of messages to this node that are made for it.
    pub(crate) mac1: Mac1Key,
}

impl Static {
    pub(crate) fn new(secret: Secret) -> Static {
        let public = x25519_public(&secret);
        Static { secret, public, mac1: Mac1Key::of(&public) }
    }
}

/// What links use. Of each kind the newest first.
#[derive(Default)]
pub(crate) struct Contacts {
    /// [`View::version`] of the descriptors that it was made of.
    version: Option<u64>,
    /// Public statics of this node that its descriptors name.
    pub(crate) own: Vec<[u8; 32]>,
    /// Public statics of the previous hop.
    pub(crate) previous: Vec<[u8; 32]>,
    /// Addresses that its descriptors name.
    pub(crate) previous_addresses: Vec<IpAddr>,
    /// Public statics of the next hop.
    pub(crate) next: Vec<[u8; 32]>,
    /// Addresses of the next hop.
    pub(crate) addresses: Vec<SocketAddr>,
    /// DNS names of the next hop, with ports.
    pub(crate) names: Vec<(String, u16)>,
    /// What these names resolve to.
    resolved: Vec<SocketAddr>,
}

impl Contacts {
    /// Reads the descriptors again if they have changed.
    pub(crate) fn update(&mut self, config: &Config, view: &View) {
        if self.version == Some(view.version()) {
            return;
        }
        self.version = Some(view.version());
        let (position, hops) = (config.position, config.shape.hops());
        let statics = |hop: usize| {
            let all = if (1..=hops).contains(&hop) { view.descriptors(hop) } else { &[] };
            let mut statics: Vec<[u8; 32]> = Vec::with_capacity(all.len());
            for descriptor in all {
                if !statics.contains(&descriptor.noise) {
                    statics.push(descriptor.noise);
                }
            }
            statics
        };
        self.own = statics(position);
        self.previous = statics(position.wrapping_sub(1));
        self.next = statics(position + 1);
        let previous = if position > 1 { view.descriptors(position - 1) } else { &[] };
        let named = previous.iter().filter_map(|one| one.contact(config.class()));
        self.previous_addresses = named.flat_map(|contact| &contact.addresses).map(SocketAddr::ip).collect();
        let all = if position < hops { view.descriptors(position + 1) } else { &[] };
        let mut contacts: Vec<&Contact> = all.iter().filter_map(|next| next.contact(config.class())).collect();
        if config.is_entry() {
            // The oldest first: by a new one, of which Mix 1 may sign many, it would recognise this entry later.
            self.next.reverse();
            contacts.reverse();
        } else {
            contacts.truncate(1);
        }
        let mut addresses: Vec<SocketAddr> = config.next.into_iter().collect();
        let mut names = Vec::new();
        if config.next.is_none() {
            for name in contacts.iter().flat_map(|contact| &contact.names) {
                if !names.contains(name) {
                    names.push(name.clone());
                }
            }
            for address in contacts.iter().flat_map(|contact| &contact.addresses) {
                if !addresses.contains(address) {
                    addresses.push(*address);
                }
            }
        }
        if names != self.names {
            self.resolved.clear();
        }
        (self.addresses, self.names) = (addresses, names);
    }

    /// The names of the next hop resolve to these addresses.
    pub(crate) fn resolved(&mut self, addresses: Vec<SocketAddr>) {
        self.resolved = addresses;
    }

    /// All addresses of the next hop, in the order in which they are tried.
    pub(crate) fn all_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.addresses.iter().chain(self.resolved.iter().filter(|one| !self.addresses.contains(one))).copied()
    }
}
