//! The classes that a node serves, each with its part of the configuration.

use std::borrow::Cow;
use std::net::{SocketAddr, ToSocketAddrs};

use control::trust::{ClassTerms, Contact};
use dataplane::lanes::Lanes;
use wire::cell::Shape;

use super::{ConfigError, Loaded, NodeConfig, Part, node_name};

/// A class that a node serves.
pub struct ServedClass<'a> {
    pub(crate) loaded: &'a Loaded,
    /// Its terms in the chain.
    pub terms: ClassTerms,
    /// Class and length of its chain.
    pub shape: Shape,
    /// The node's configuration, with the settings of this class.
    pub config: Cow<'a, NodeConfig>,
}

impl Loaded {
    /// The first of the classes that the node serves, which is the chain's first one.
    pub fn first_class(&self) -> ServedClass<'_> {
        self.class(&self.chain.terms.classes[0])
    }

    /// The classes that the node serves, in the chain's order: a hop all, an entry the first one.
    pub fn classes(&self) -> Vec<ServedClass<'_>> {
        let all = &self.chain.terms.classes;
        let served = if self.position == 0 { &all[..1] } else { all };
        served.iter().map(|terms| self.class(terms)).collect()
    }

    fn class(&self, terms: &ClassTerms) -> ServedClass<'_> {
        let shape = Shape::new(terms.class, self.chain.descriptors.len()).expect("the number of hops was checked");
        let mut class = ServedClass { loaded: self, terms: *terms, shape, config: Cow::Borrowed(&self.config) };
        if terms.class != self.chain.terms.classes[0].class {
            class.config = Cow::Owned(class.own_ports());
        }
        class
    }
}

impl<'a> ServedClass<'a> {
    /// The node's configuration with other ports than those of the first class: the published one towards the previous
    /// hop, any one towards the next.
    fn own_ports(&self) -> NodeConfig {
        let any_port = |address: SocketAddr| SocketAddr::new(address.ip(), 0);
        let mut config = self.loaded.config.clone();
        let published = self.own_contact().and_then(|own| {
            let addresses = own.addresses.iter().map(SocketAddr::port);
            addresses.chain(own.names.iter().map(|(_, port)| *port)).next()
        });
        config.up = config.up.zip(published).map(|(up, port)| SocketAddr::new(up.ip(), port));
        config.down = config.down.map(any_port);
        config.next = None;
        config
    }

    /// Where this hop is reached, by its newest descriptor. None at the entry.
    pub fn own_contact(&self) -> Option<&'a Contact> {
        let Loaded { position, trust, .. } = self.loaded;
        let own = (*position > 0).then(|| trust.view.descriptor(*position))??;
        own.contact(self.terms.class)
    }

    /// Where the next hop is reached, by the preferred descriptor of [`Loaded::next_hops`].
    pub fn next_contact(&self) -> Option<&'a Contact> {
        self.loaded.next_hops().first()?.contact(self.terms.class)
    }

    /// The lanes of its links, if the next hop is reached at `next`.
    pub fn lanes(&self, next: Option<&Contact>) -> Lanes {
        let of = |contact: Option<&Contact>| contact.map_or(1, |contact| usize::from(contact.lanes));
        Lanes { own: of(self.own_contact()), next: of(next) }
    }

    /// Refuses links between hops that are spread over several ports, unless the configuration accepts what that shows
    /// (SPEC 4.7.7).
    ///
    /// # Errors
    /// There is such a link.
    pub fn check_lanes(&self, next: Option<&Contact>) -> Result<(), ConfigError> {
        let Part::Mix { lanes_show_label_bits: false, .. } = self.config.part else { return Ok(()) };
        let Lanes { own, next } = self.lanes(next);
        let (link, lanes) = match self.loaded.position {
            position if position > 1 && own > 1 => (position, own),
            position if next > 1 => (position + 1, next),
            _ => return Ok(()),
        };
        let name = |hop| node_name(self.loaded.chain.role(hop), hop);
        Err(ConfigError::Value {
            at: self.config.place_of("lanes_show_label_bits"),
            what: format!(
                "the link from {} to {} has {lanes} lanes: the UDP port of a cell shows bits of its channel's number to \
                 whoever sees that link",
                name(link - 1),
                name(link)
            ),
            remedy: format!(
                "make {} with `--lanes 1`, or set `lanes_show_label_bits = true` at both ends of the link",
                name(link)
            ),
        })
    }

    /// The address of the next hop: `next` of the configuration, or the best one of `contact`, or what its name
    /// resolves to. `None` if no name resolves now.
    ///
    /// # Errors
    /// `next` is set and does not resolve.
    pub fn next_address(&self, contact: &Contact) -> Result<Option<SocketAddr>, ConfigError> {
        let Some(next) = &self.config.next else {
            let resolved = || {
                let named = |(name, port): &(String, u16)| (name.as_str(), *port).to_socket_addrs().ok()?.next();
                contact.names.iter().find_map(named)
            };
            return Ok(contact.addresses.first().copied().or_else(resolved));
        };
        let found = next.to_socket_addrs().ok().and_then(|mut all| all.next());
        found.map(Some).ok_or_else(|| ConfigError::Value {
            at: self.config.place_of("next"),
            what: format!("next = \"{next}\" does not resolve"),
            remedy: "check the name, write the next hop's address as IP:PORT, or fix this host's name resolution"
                .into(),
        })
    }

    /// Checks that it does not listen on loopback alone while its descriptor has other addresses, and that its mixing
    /// keeps within the chain's terms.
    ///
    /// # Errors
    /// The first mismatch, with its remedy.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        // Everyone computes timeouts from the chain's largest delay.
        let largest_ms = self.terms.mixing_delay_ms;
        if let Part::Mix { mixing, .. } = &self.config.part
            && mixing.largest_delay().as_nanos() > u128::from(largest_ms) * 1_000_000
        {
            return Err(ConfigError::Value {
                at: self.config.place_of("mixing"),
                what: format!(
                    "mixing = \"{mixing}\" may hold cells longer than the {largest_ms} ms that this chain allows"
                ),
                remedy: format!(
                    "use a shorter delay, for example mixing = \"threshold-or-timed:n=64,n_min=8,t={largest_ms}ms\""
                ),
            });
        }
        self.check_reachable()
    }

    fn check_reachable(&self) -> Result<(), ConfigError> {
        let (Some(up), Some(own)) = (self.config.up, self.own_contact()) else { return Ok(()) };
        let is_loopback = |address: &SocketAddr| address.ip().to_canonical().is_loopback();
        let Some(published) = own.addresses.first().filter(|_| is_loopback(&up)) else { return Ok(()) };
        if own.addresses.iter().any(is_loopback) {
            return Ok(());
        }
        Err(ConfigError::Value {
            at: self.config.place_of("up"),
            what: format!("up = \"{up}\" is on loopback, but the previous hop sends to {published}"),
            remedy: format!("set `up` to an address of this host that is reached from there, or 0.0.0.0:{}", up.port()),
        })
    }
}
