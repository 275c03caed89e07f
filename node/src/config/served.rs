//! The classes that a node serves, each with its part of the configuration.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use control::trust::Contact;
use dataplane::lanes::Lanes;
use dataplane::paced::default_max_age;
use dataplane::stage::pool::Mixing;
use wire::cell::Shape;
use wire::paced::{MeetingSecret, PacedTerms};

use super::class_name::{ClassName, Terms};
use super::node::{address, listen, next};
use super::source::{Table, nearest};
use super::{ConfigError, Forward, Loaded, Location, NodeConfig, Part, Target, node_name, read_meeting};

/// A `[class.NAME]` of a configuration. What it does not set is as for the node, but for ports: those of the first
/// class are not shared.
#[derive(Clone, Debug)]
pub struct ClassConfig {
    pub class: ClassName,
    at: Location,
    up: Option<SocketAddr>,
    down: Option<SocketAddr>,
    next: Option<String>,
    mixing: Option<Mixing>,
    meter_floor: Option<u32>,
    channels: Option<usize>,
    socks: Vec<SocketAddr>,
    cores: Vec<usize>,
    /// As in [`NodeConfig`].
    lines: Vec<(&'static str, Option<usize>)>,
}

impl ClassConfig {
    pub(super) fn read((class, table): &(ClassName, Table<'_>)) -> Result<ClassConfig, ConfigError> {
        Ok(ClassConfig {
            class: class.clone(),
            at: table.at(),
            up: table.maybe_text("up").map(|text| address("up", text)).transpose()?,
            down: table.maybe_text("down").map(|text| address("down", text)).transpose()?,
            next: table.maybe_text("next").map(next).transpose()?,
            mixing: table.maybe_text("mixing").map(|_| table.parsed("mixing")).transpose()?,
            meter_floor: table.maybe_integer("meter_floor").map(|floor| floor as u32),
            channels: table.maybe_integer("channels").map(|channels| channels as usize),
            socks: table.texts("socks", listen)?,
            cores: table.integers("cores").into_iter().map(|core| core as usize).collect(),
            lines: table.lines(),
        })
    }

    /// Puts its settings in place of those of `config`.
    fn replace(&self, config: &mut NodeConfig) {
        config.up = self.up.or(config.up);
        config.down = self.down.or(config.down);
        config.next = self.next.clone().or(config.next.take());
        if !self.cores.is_empty() {
            config.cores = self.cores.clone();
        }
        match &mut config.part {
            Part::Entry(part) => {
                part.channels = self.channels.unwrap_or(part.channels);
                part.socks.extend(&self.socks);
            }
            Part::Mix { mixing, meter_floor, .. } => {
                *mixing = self.mixing.unwrap_or(*mixing);
                *meter_floor = self.meter_floor.unwrap_or(*meter_floor);
            }
            Part::Exit(_) => {}
        }
        let is_replaced = |name: &str| name != "socks" && self.lines.iter().any(|(own, _)| *own == name);
        config.lines.retain(|(name, _)| !is_replaced(name));
        config.lines.extend(&self.lines);
    }
}

/// A class that a node serves.
pub struct ServedClass<'a> {
    pub(crate) loaded: &'a Loaded,
    /// Its terms in the chain.
    pub terms: Terms,
    /// Class and length of its chain.
    pub shape: Shape,
    /// The node's configuration, with the settings of this class, and its forwards only.
    pub config: NodeConfig,
}

impl Loaded {
    /// The first of the classes that the node serves: at a hop the chain's first one.
    pub fn first_class(&self) -> ServedClass<'_> {
        self.classes().swap_remove(0)
    }

    /// The classes that the node serves, in the chain's order: a hop all; an entry those that its configuration names,
    /// and the chain's first one if something uses it, or if it names none.
    pub fn classes(&self) -> Vec<ServedClass<'_>> {
        let Part::Entry(part) = &self.config.part else { return self.terms().map(|terms| self.class(terms)).collect() };
        let is_named = |terms: &Terms| {
            let name = terms.name();
            self.config.classes.iter().any(|one| one.class == name)
                || part.forwards.iter().any(|forward| forward.class.as_ref() == Some(&name))
        };
        let first = self.chain.terms.first_class();
        let needs_first = part.uses_first_class() || !self.terms().any(|terms| is_named(&terms));
        let is_served = |terms: &Terms| is_named(terms) || (needs_first && terms.id() == first);
        self.terms().filter(is_served).map(|terms| self.class(terms)).collect()
    }

    fn terms(&self) -> impl Iterator<Item = Terms> {
        Terms::of(&self.chain.terms)
    }

    fn class(&self, terms: Terms) -> ServedClass<'_> {
        let (name, is_first) = (terms.name(), terms.id() == self.chain.terms.first_class());
        let shape = Shape::new(terms.id().size(), self.chain.descriptors.len()).expect("the number was checked");
        let mut class = ServedClass { loaded: self, terms, shape, config: self.config.clone() };
        if !is_first {
            class.set_own_ports();
        } else if class.up_is_of_another_class() {
            class.set_own_up();
        }
        if let Some(own) = self.config.classes.iter().find(|own| own.class == name) {
            own.replace(&mut class.config);
        }
        class.config.keep_forwards(|of| of.map_or(is_first, |of| *of == name));
        if let (Terms::Paced(terms), Part::Entry(_)) = (&class.terms, &class.config.part) {
            class.config.max_age = queue_age(&class.config, terms);
        }
        class
    }

    /// Checks that the chain has the classes that the configuration names.
    ///
    /// # Errors
    /// The first one that it does not have.
    pub fn check_classes(&self) -> Result<(), ConfigError> {
        let names: Vec<String> = self.terms().map(|terms| terms.name().to_string()).collect();
        let refuse = |at: Location, class: &ClassName, what: String| {
            let known: Vec<&str> = names.iter().map(String::as_str).collect();
            let near = nearest(class.as_str(), &known).map_or(String::new(), |near| format!("did you mean {near}? "));
            let remedy = format!("{near}name a class of the chain ({}), or use another chain", names.join(", "));
            Err(ConfigError::Value { at, what, remedy })
        };
        let is_unknown = |class: &ClassName| !names.iter().any(|name| name == class.as_str());
        if let Some(ClassConfig { class, at, .. }) = self.config.classes.iter().find(|one| is_unknown(&one.class)) {
            return refuse(at.clone(), class, format!("[class.{class}], but the chain has no class {class}"));
        }
        let paced: Vec<ClassName> =
            self.terms().filter(|terms| terms.paced().is_some()).map(|terms| terms.name()).collect();
        for ClassConfig { class, at, lines, .. } in self.config.classes.iter().filter(|one| paced.contains(&one.class))
        {
            let foreign = lines.iter().find(|(name, _)| ["mixing", "meter_floor", "channels"].contains(name));
            if let Some((name, line)) = foreign {
                return Err(ConfigError::Value {
                    at: Location { line: *line, ..at.clone() },
                    what: format!("[class.{class}] sets `{name}`, which a paced class does not have"),
                    remedy: "remove the line: its mixing and its channels are the same for everybody in the chain"
                        .into(),
                });
            }
        }
        let Part::Entry(part) = &self.config.part else { return Ok(()) };
        for (nth, forward) in part.forwards.iter().enumerate() {
            if let Some(class) = forward.class.as_ref().filter(|class| is_unknown(class)) {
                let at = self.config.place("forward", nth).unwrap_or_else(|| Location::file(&self.config.path));
                let listen = forward.listen;
                return refuse(
                    at,
                    class,
                    format!("the forward on {listen} is of class {class}, which the chain does not have"),
                );
            }
        }
        Ok(())
    }
}

/// How long a datagram of an application waits for a round of a paced class (SPEC 9.1.4).
pub fn queue_age(config: &NodeConfig, terms: &PacedTerms) -> Duration {
    if config.place("max_age_ms", 0).is_some() { config.max_age } else { default_max_age(terms) }
}

impl NodeConfig {
    /// Keeps the forwards whose class is wanted, and their lines.
    fn keep_forwards(&mut self, is_wanted: impl Fn(Option<&ClassName>) -> bool) {
        let Part::Entry(part) = &mut self.part else { return };
        let kept: Vec<bool> = part.forwards.iter().map(|forward| is_wanted(forward.class.as_ref())).collect();
        let mut nth = kept.iter();
        part.forwards.retain(|_| *nth.next().expect("one for each"));
        let mut nth = kept.iter();
        self.lines.retain(|(name, _)| *name != "forward" || *nth.next().unwrap_or(&true));
    }
}

impl<'a> ServedClass<'a> {
    /// The forward of an entry that leads to a meeting, and its file. The class then has nothing else (SPEC 9.11.3).
    pub fn meeting(&self) -> Option<(&Forward, &Path)> {
        let Part::Entry(part) = &self.config.part else { return None };
        part.forwards.iter().find_map(|forward| match &forward.to {
            Target::Meeting(file) => Some((forward, file.as_path())),
            Target::Destination(_) => None,
        })
    }

    /// Reads the secret of its meeting.
    ///
    /// # Errors
    /// The class does not serve it ([`ServedClass::meeting_file`]), or the file is refused.
    pub fn read_meeting(&self) -> Result<Option<MeetingSecret>, ConfigError> {
        self.meeting_file()?.map(read_meeting).transpose()
    }

    /// The file with the secret of its meeting.
    ///
    /// # Errors
    /// The class is a free one, or has other listeners, too.
    pub fn meeting_file(&self) -> Result<Option<&Path>, ConfigError> {
        let Some((Forward { listen, .. }, file)) = self.meeting() else { return Ok(None) };
        let Part::Entry(part) = &self.config.part else { unreachable!("it has a forward") };
        let nth = part.forwards.iter().position(|forward| matches!(forward.to, Target::Meeting(_)));
        let place = self.config.place("forward", nth.unwrap_or(0));
        let refuse = |what: String, remedy: &str| {
            let at = place.clone().unwrap_or_else(|| Location::file(&self.config.path));
            Err(ConfigError::Value { at, what, remedy: remedy.to_owned() })
        };
        let name = self.terms.name();
        if self.terms.paced().is_none() {
            let paced = self.loaded.terms().find(|terms| terms.paced().is_some());
            let remedy = match paced {
                // In a file it is a line of its own.
                Some(terms) if place.is_some() => format!("add `class = \"{}\"` to it", terms.name()),
                Some(terms) => format!("add class={} to it", terms.name()),
                None => "use a chain that has a paced class".to_owned(),
            };
            return refuse(format!("the forward on {listen} is a meeting, which class {name} does not have"), &remedy);
        }
        if part.forwards.len() + part.pymix.len() + part.socks.len() > 1 {
            return refuse(
                format!("class {name} has the meeting on {listen} and other listeners, but serves one or the other"),
                "give one of them another class of the chain, or run two entries",
            );
        }
        Ok(Some(file))
    }

    /// Other ports than those of the first class: the published one towards the previous hop, any one towards the next;
    /// no listeners.
    fn set_own_ports(&mut self) {
        self.set_own_up();
        let config = &mut self.config;
        config.down = config.down.map(|down| SocketAddr::new(down.ip(), 0));
        config.next = None;
        if let Part::Entry(part) = &mut config.part {
            part.pymix.clear();
            part.socks.clear();
        }
        config.lines.retain(|(name, _)| !["down", "next", "pymix", "socks"].contains(name));
    }

    /// The published port towards the previous hop.
    fn set_own_up(&mut self) {
        let published = self.own_contact().and_then(|own| ports(own).next());
        let config = &mut self.config;
        config.up = config.up.zip(published).map(|(up, port)| SocketAddr::new(up.ip(), port));
        config.lines.retain(|(name, _)| *name != "up");
    }

    /// True if the descriptor publishes the port of `up` for another class alone. `eddy keygen` writes that of the
    /// node's first class, which the chain may leave out.
    fn up_is_of_another_class(&self) -> bool {
        let (Some(up), Some(own)) = (self.config.up, self.own_contact()) else { return false };
        let has_port = |contact: &Contact| ports(contact).any(|port| port == up.port());
        let all = self.loaded.trust.view.descriptor(self.loaded.position).map_or(&[][..], |own| &own.contacts);
        !has_port(own) && all.iter().any(has_port)
    }

    /// The warning that its descriptor publishes another port than the one at which it listens.
    pub fn other_port(&self) -> Option<String> {
        let (up, own) = (self.config.up.filter(|up| up.port() != 0)?, self.own_contact()?);
        let published = ports(own).next().filter(|_| ports(own).all(|port| port != up.port()))?;
        Some(format!(
            "{}: class {} listens at port {}, but its descriptor has port {published}: unless a NAT maps that to this one, \
             nothing arrives; correct `up`",
            self.config.place_of("up"),
            self.terms.name(),
            up.port()
        ))
    }

    /// Where this hop is reached, by its newest descriptor. None at the entry.
    pub fn own_contact(&self) -> Option<&'a Contact> {
        let Loaded { position, trust, .. } = self.loaded;
        let own = (*position > 0).then(|| trust.view.descriptor(*position))??;
        own.contact(self.terms.id())
    }

    /// Where the next hop is reached, by the preferred descriptor of [`Loaded::next_hops`].
    pub fn next_contact(&self) -> Option<&'a Contact> {
        self.loaded.next_hops().first()?.contact(self.terms.id())
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
        if let (Terms::Free(terms), Part::Mix { mixing, .. }) = (&self.terms, &self.config.part)
            && let largest_ms = terms.mixing_delay_ms
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

/// The ports of a contact, of its addresses and then of its names.
fn ports(contact: &Contact) -> impl Iterator<Item = u16> {
    let addresses = contact.addresses.iter().map(SocketAddr::port);
    addresses.chain(contact.names.iter().map(|(_, port)| *port))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use control::trust::ClassTerms;
    use wire::cell::Class;
    use wire::paced::PacedClass;

    use crate::ceremony::files::read_identity;
    use crate::config::{ChainFile, wall_s};
    use crate::init::{self, Files, Plan, PlannedClass};

    /// An address of this test alone; its ports are below those that the system chooses.
    fn at(family: u8, port: u16) -> SocketAddr {
        let [_, _, high, low] = std::process::id().to_be_bytes();
        SocketAddr::from(([127, family, high, low.max(1)], port))
    }

    fn plan(family: u8) -> Plan {
        let allow = vec!["127.0.0.0/8".parse().unwrap()];
        let mut plan = Plan { class: Class::S, allow, ..Plan::new(&[at(family, 4701), at(family, 4702)]) };
        plan.hops[0].down = at(family, 0);
        plan
    }

    /// The files of a chain with class S and the paced class `voice`, in short batches.
    pub(crate) fn chain_of_a_paced_class(dir: &Path) -> Files {
        chain_with_seats(dir, 8)
    }

    /// The same, with room for as many channels.
    pub(crate) fn chain_with_seats(dir: &Path, seats: u16) -> Files {
        let of_class = PacedTerms::new(PacedClass::new(Class::S), "voice", 2);
        let terms = PacedTerms { rounds: 256, n_min: 1, seats, loops: 0, ..of_class };
        let paced = vec![PlannedClass { terms, addresses: vec![at(92, 4711), at(92, 4712)] }];
        init::write(dir, &Plan { interval_s: 5, epoch_s: 60, paced, ..plan(92) }).unwrap()
    }

    /// The files of a chain with classes S and L, whose exit may send to this host.
    pub(crate) fn chain_of_two_classes(dir: &Path) -> Files {
        let files = init::write(dir, &plan(91)).unwrap();
        let mut chain = ChainFile::read(&files.chain, wall_s()).unwrap();
        chain.terms.classes.push(ClassTerms { class: Class::L, ..chain.terms.classes[0] });
        for hop in 1..=2 {
            let name = node_name(chain.role(hop), hop);
            let identity = read_identity(&dir.join(format!("{name}.identity.key"))).unwrap();
            let mut content = chain.descriptors[hop - 1].content().clone();
            content.revision += 1;
            let addresses = vec![at(91, 4710 + hop as u16)];
            content.contacts.push(Contact { class: Class::L.into(), lanes: 1, addresses, names: Vec::new() });
            chain.descriptors[hop - 1] = content.sign(&identity).unwrap();
        }
        chain.id = chain.terms.id();
        std::fs::write(&files.chain, chain.text()).unwrap();
        files
    }

    #[test]
    fn class_has_its_published_port_and_its_own_settings() {
        let dir = tempfile::tempdir().unwrap();
        let files = chain_of_two_classes(dir.path());
        let mix = std::fs::read_to_string(&files.hops[0]).unwrap();
        let configs = |lines: &str| {
            let loaded =
                Loaded::read_files(NodeConfig::parse(&files.hops[0], &(mix.clone() + lines)).unwrap()).unwrap();
            let all = loaded.classes();
            assert!(all.iter().map(|class| class.terms.name().to_string()).eq(["S", "L"]));
            all.into_iter().map(|class| class.config).collect::<Vec<_>>()
        };
        let floor = |config: &NodeConfig| match config.part {
            Part::Mix { meter_floor, .. } => meter_floor,
            Part::Entry(_) | Part::Exit(_) => unreachable!("a mix"),
        };
        let port = |config: &NodeConfig| config.up.map(|up| up.port());

        let [first, second] = &configs("")[..] else { panic!("two classes") };
        assert_eq!([port(first), port(second)], [Some(4701), Some(4711)]);
        assert_eq!((second.up.unwrap().ip(), second.down.unwrap().port()), (first.up.unwrap().ip(), 0));
        assert!(first.place("up", 0).is_some() && second.place("up", 0).is_none());

        let of_class = "[class.L]\nup = \"127.0.0.1:9\"\nmeter_floor = 7\nmixing = \"timed:t=1ms\"\ncores = [0]\n";
        let [first, second] = &configs(of_class)[..] else { panic!("two classes") };
        assert_eq!((port(first), second.up), (Some(4701), "127.0.0.1:9".parse().ok()));
        assert_eq!(([floor(first), floor(second)], first.cores.len(), second.cores.len()), ([0, 7], 0, 1));
        let line = |config: &NodeConfig, key| config.place(key, 0).and_then(|place| place.line);
        assert_eq!(line(second, "up"), Some(mix.lines().count() + 2));
        assert_ne!(line(first, "up"), line(second, "up"));
        assert_eq!(line(second, "chain"), line(first, "chain"));
    }

    #[test]
    fn first_class_does_not_listen_at_the_port_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let files = chain_of_two_classes(dir.path());
        let mix = std::fs::read_to_string(&files.hops[0]).unwrap();
        let read = |port: u16, lines: &str| {
            let text = mix.replace(&format!("up = \"{}", at(91, 4701)), &format!("up = \"{}", at(91, port))) + lines;
            let loaded = Loaded::read_files(NodeConfig::parse(&files.hops[0], &text).unwrap()).unwrap();
            let ports: Vec<_> = loaded.classes().iter().map(|class| class.config.up.unwrap().port()).collect();
            let warnings = loaded.warnings.into_iter().filter(|warning| warning.contains("listens at"));
            (ports, warnings.collect::<Vec<_>>())
        };
        assert_eq!(read(4701, ""), (vec![4701, 4711], vec![]));
        assert_eq!(read(4711, ""), (vec![4701, 4711], vec![]), "`up` is of class L");
        assert_eq!(read(0, ""), (vec![0, 4711], vec![]));
        let (ports, warnings) = read(4799, "[class.L]\nup = \"127.0.0.1:4701\"\n");
        assert_eq!(ports, [4799, 4701]);
        for (warning, parts) in warnings.iter().zip([
            ["class S listens at port 4799", "descriptor has port 4701"],
            ["class L listens at port 4701", "descriptor has port 4711"],
        ]) {
            assert!(parts.iter().all(|part| warning.contains(part)), "{warning}");
        }
        assert_eq!(warnings.len(), 2);
    }

    #[test]
    fn entry_serves_the_first_class_only_if_something_uses_it() {
        let dir = tempfile::tempdir().unwrap();
        let files = chain_of_a_paced_class(dir.path());
        let text = std::fs::read_to_string(&files.entry).unwrap();
        let served = |lines: &str, has_tunnels| {
            let mut loaded =
                Loaded::read_files(NodeConfig::parse(&files.entry, &(text.clone() + lines)).unwrap()).unwrap();
            let Part::Entry(part) = &mut loaded.config.part else { unreachable!("an entry") };
            part.has_tunnels = has_tunnels;
            let names = loaded.classes().iter().map(|class| class.terms.name().to_string()).collect::<Vec<_>>();
            assert_eq!(loaded.first_class().terms.name().as_str(), names[0]);
            names.join(" ")
        };
        let meeting = "[[forward]]\nlisten = \"5000\"\nto = \"meet:@call.secret\"\nclass = \"voice\"\n";
        let forward = "[[forward]]\nlisten = \"5001\"\nto = \"192.0.2.1:5\"\n";
        assert_eq!(served("", false), "S");
        assert_eq!(served(meeting, false), "voice");
        assert_eq!(served("[class.voice]\nsocks = [\"1080\"]\n", false), "voice");
        for both in [&(meeting.to_owned() + forward), &(meeting.to_owned() + "[class.S]\n")] {
            assert_eq!(served(both, false), "S voice", "{both}");
        }
        assert_eq!(served(meeting, true), "S voice", "a program may open a tunnel");
    }

    #[test]
    fn class_that_the_chain_does_not_have_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let files = chain_of_two_classes(dir.path());
        let refused = |lines: &str| {
            let text = std::fs::read_to_string(&files.entry).unwrap();
            let config = NodeConfig::parse(&files.entry, &(text + lines)).unwrap();
            Loaded::read_files(config).err().map(|why| why.to_string())
        };
        assert_eq!(refused("[class.L]\nchannels = 1\n"), None);
        let why = refused("[class.M]\nchannels = 1\n").unwrap();
        assert!(why.contains("the chain has no class M: name a class of the chain (S, L)"), "{why}");
        let why = refused("[[forward]]\nlisten = \"1\"\nto = \"a.example:2\"\nclass = \"M\"\n").unwrap();
        assert!(why.contains("class M, which the chain does not have"), "{why}");
        let text = std::fs::read_to_string(&files.entry).unwrap() + "[class.X]\n";
        let why = NodeConfig::parse(&files.entry, &text).unwrap_err().to_string();
        assert!(why.contains("unknown class \"X\": the tables here are [class.S], [class.M], [class.L]"), "{why}");
    }
}
