//! Where a node is reached: from addresses, names and classes of a command line to the contacts of a descriptor.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use control::trust::Contact;
use wire::cell::Class;
use wire::ids::{ClassId, UnknownClassId};

use super::PORT;
use super::profile::ClassChoice;
use crate::config::ConfigError;
use crate::init;

/// An address with or without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub ip: IpAddr,
    pub port: Option<u16>,
}

impl Endpoint {
    fn at(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Endpoint, String> {
        let bare = text.parse::<IpAddr>().map(|ip| (ip, None));
        let found = bare.or_else(|_| text.parse::<SocketAddr>().map(|address| (address.ip(), Some(address.port()))));
        let (ip, port) = found.map_err(|_| {
            let is_name = text.contains(|c: char| c.is_ascii_alphabetic()) && text.parse::<Name>().is_ok();
            let remedy = if is_name { "; give a DNS name with --name" } else { "" };
            format!("invalid address {text:?}: expected IP, IP:PORT or [IPv6]:PORT, e.g. 192.0.2.1:4700{remedy}")
        })?;
        Ok(Endpoint { ip: ip.to_canonical(), port })
    }
}

/// A DNS name with or without a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub name: String,
    pub port: Option<u16>,
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Name, String> {
        let invalid = || {
            format!("invalid name {text:?}: expected NAME or NAME:PORT, e.g. mix.example.org or mix.example.org:4700")
        };
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => (name, Some(port.parse().ok().filter(|port: &u16| *port > 0).ok_or_else(invalid)?)),
            None => (text, None),
        };
        let name = name.to_ascii_lowercase();
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
        if name.parse::<IpAddr>().is_ok() {
            return Err(format!("{text:?} is an address: give it with --address"));
        }
        if !(1..=253).contains(&name.len()) || !name.bytes().all(good) {
            return Err(invalid());
        }
        Ok(Name { name, port })
    }
}

/// A class, and its own address if it is not the next one of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassPlace {
    pub class: ClassId,
    pub address: Option<Endpoint>,
}

impl FromStr for ClassPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<ClassPlace, String> {
        let (class, address) = match text.split_once('=') {
            Some((class, address)) => (class, Some(address.parse()?)),
            None => (text, None),
        };
        let class = class.parse().map_err(|why: UnknownClassId| match class.parse::<ClassChoice>() {
            Ok(choice) => {
                let id = choice.id();
                format!("{choice} is a profile of {id}, which `eddy assemble` chooses: write --class {id} here")
            }
            Err(_) => why.to_string(),
        })?;
        Ok(ClassPlace { class, address })
    }
}

/// What a command line says about where a node is reached.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// In the order of the ports. None: class L.
    pub classes: Vec<ClassPlace>,
    /// Best first.
    pub addresses: Vec<Endpoint>,
    pub names: Vec<Name>,
}

fn wrong(text: impl Into<String>) -> ConfigError {
    ConfigError::Arguments(text.into())
}

impl Places {
    /// The contacts of a new node. Classes without an address of their own take the ports from that of each address on,
    /// `lanes` each, paced ones one.
    ///
    /// # Errors
    /// No address and no name, a class twice, ports that overlap, or an address that nobody can send to.
    pub fn contacts(&self, lanes: u8) -> Result<Vec<Contact>, ConfigError> {
        let one = [ClassPlace { class: Class::L.into(), address: None }];
        let classes = if self.classes.is_empty() { &one[..] } else { &self.classes };
        let mut contacts: Vec<Contact> = Vec::new();
        let mut offset = 0;
        for place in classes {
            let lanes = if place.class.is_paced() { 1 } else { lanes };
            let known = contacts.iter().position(|contact| contact.class == place.class);
            match (place.address, known) {
                // Several addresses of one class.
                (Some(own), Some(at)) => contacts[at].addresses.push(own.at(own.port.unwrap_or(PORT))),
                (_, Some(_)) => {
                    let class = place.class;
                    return Err(wrong(format!(
                        "duplicate --class {class}: name it once, or with each of its addresses as --class {class}=ADDR"
                    )));
                }
                (Some(own), None) => {
                    let port = own.port.unwrap_or(PORT);
                    let names = self.names.iter().map(|name| (name.name.clone(), port)).collect();
                    contacts.push(Contact { class: place.class, lanes, addresses: vec![own.at(port)], names });
                }
                (None, None) => {
                    contacts.push(self.next_contact(place.class, lanes, offset)?);
                    offset += u16::from(lanes);
                }
            }
        }
        contacts.sort_by_key(|contact| contact.class);
        check(&contacts)?;
        Ok(contacts)
    }

    /// The contact of a class whose ports are `offset` after those of the node.
    fn next_contact(&self, class: ClassId, lanes: u8, offset: u16) -> Result<Contact, ConfigError> {
        if self.addresses.is_empty() && self.names.is_empty() {
            return Err(wrong("missing --address: give the address that the previous hop sends to, or a DNS --name"));
        }
        let after = |port: Option<u16>| {
            let port = port.unwrap_or(PORT);
            port.checked_add(offset)
                .ok_or_else(|| wrong(format!("port {port} is too high for several classes: choose a lower one")))
        };
        let first = self.addresses.first().and_then(|address| address.port);
        let addresses = self.addresses.iter().map(|address| Ok(address.at(after(address.port)?)));
        let names = self.names.iter().map(|name| Ok((name.name.clone(), after(name.port.or(first))?)));
        Ok(Contact {
            class,
            lanes,
            addresses: addresses.collect::<Result<_, ConfigError>>()?,
            names: names.collect::<Result<_, ConfigError>>()?,
        })
    }

    /// The contacts of a node that has moved. Addresses and names that are given replace all earlier ones; the classes
    /// and the distances between their ports stay. Without a port, every class keeps its own.
    ///
    /// # Errors
    /// As [`Places::contacts`], or a class that the node does not have.
    pub fn moved(&self, old: &[Contact], drop_names: bool) -> Result<Vec<Contact>, ConfigError> {
        let base = old.first().map_or(PORT, port);
        let base = old.iter().map(port).fold(base, u16::min);
        let mut contacts = old.to_vec();
        for contact in &mut contacts {
            let own = port(contact);
            let shifted = |given: Option<u16>| match given {
                None => Ok(own),
                Some(given) => {
                    let far =
                        || wrong(format!("port {given} is too high for the classes of this node: choose a lower one"));
                    given.checked_add(own - base).ok_or_else(far)
                }
            };
            if !self.addresses.is_empty() {
                let all = self.addresses.iter().map(|address| Ok(address.at(shifted(address.port)?)));
                contact.addresses = all.collect::<Result<_, ConfigError>>()?;
            }
            if drop_names {
                contact.names.clear();
            }
            if !self.names.is_empty() {
                let first = port(contact);
                let named = |name: &Name| match name.port {
                    Some(given) => Ok((name.name.clone(), shifted(Some(given))?)),
                    None => Ok((name.name.clone(), first)),
                };
                let all = self.names.iter().map(named);
                contact.names = all.collect::<Result<_, ConfigError>>()?;
            }
            if contact.addresses.is_empty() && contact.names.is_empty() {
                return Err(wrong("without its names this node has no address: give one with --address"));
            }
        }
        check(&contacts)?;
        Ok(contacts)
    }
}

/// The port of a contact: of its first address, else of its first name.
fn port(contact: &Contact) -> u16 {
    let name = || contact.names.first().map(|(_, port)| *port);
    contact.addresses.first().map(SocketAddr::port).or_else(name).unwrap_or(PORT)
}

/// Checks that others can send to all addresses, and that no port is used twice.
fn check(contacts: &[Contact]) -> Result<(), ConfigError> {
    let mut taken: Vec<(SocketAddr, ClassId)> = Vec::new();
    for contact in contacts {
        for (i, address) in contact.addresses.iter().enumerate() {
            if contact.addresses[..i].contains(address) {
                return Err(wrong(format!("duplicate address {address} of class {}", contact.class)));
            }
            for lane in init::lanes(*address, usize::from(contact.lanes))? {
                if let Some((_, class)) = taken.iter().find(|(other, _)| *other == lane) {
                    return Err(wrong(format!(
                        "{address} of class {} needs port {}, which another address of class {class} has: leave {} \
                         ports for each class and address",
                        contact.class,
                        lane.port(),
                        contact.lanes
                    )));
                }
                taken.push((lane, contact.class));
            }
        }
        for (i, name) in contact.names.iter().enumerate() {
            if contact.names[..i].contains(name) {
                return Err(wrong(format!("duplicate --name {}", name.0)));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(classes: &[&str], addresses: &[&str], names: &[&str]) -> Places {
        Places {
            classes: classes.iter().map(|text| text.parse().unwrap()).collect(),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            names: names.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    /// `CLASS ADDRESS,... NAME:PORT,...` of each contact.
    fn shown(contacts: &[Contact]) -> Vec<String> {
        contacts.iter().map(|contact| format!("{} {}", contact.class, super::super::words::places(contact))).collect()
    }

    #[test]
    fn classes_take_consecutive_ports_in_their_order() {
        let made =
            |classes, addresses, names, lanes| shown(&places(classes, addresses, names).contacts(lanes).unwrap());
        assert_eq!(made(&[], &["192.0.2.1"], &[], 1), ["L 192.0.2.1:4700"]);
        assert_eq!(made(&["L", "S"], &["192.0.2.1:5000"], &[], 1), ["S 192.0.2.1:5001", "L 192.0.2.1:5000"]);
        assert_eq!(
            made(&["L", "S"], &["192.0.2.1:5000", "[2001:db8::1]:6000"], &["Mix.Example.org"], 4),
            [
                "S 192.0.2.1:5004, [2001:db8::1]:6004, mix.example.org:5004",
                "L 192.0.2.1:5000, [2001:db8::1]:6000, mix.example.org:5000"
            ]
        );
        assert_eq!(
            made(&["L", "S=192.0.2.2:99", "S=192.0.2.3:99"], &["192.0.2.1:5000"], &["m:7"], 1),
            ["S 192.0.2.2:99, 192.0.2.3:99, m:99", "L 192.0.2.1:5000, m:7"]
        );
        assert_eq!(made(&["M"], &[], &["m"], 1), ["M m:4700"]);
        assert_eq!(
            made(&["paced-S", "L", "paced-L"], &["192.0.2.1"], &[], 4),
            ["L 192.0.2.1:4701", "paced-S 192.0.2.1:4700", "paced-L 192.0.2.1:4705"],
            "a paced class has one lane"
        );
        assert_eq!(made(&["L"], &["::ffff:192.0.2.1"], &[], 1), ["L 192.0.2.1:4700"]);
    }

    #[test]
    fn places_that_cannot_work_are_refused() {
        let refused = |classes, addresses, names, lanes, wanted: &str| {
            let why = places(classes, addresses, names).contacts(lanes).unwrap_err().to_string();
            assert!(why.contains(wanted), "wanted {wanted:?} in {why:?}");
        };
        refused(&["L"], &[], &[], 1, "missing --address");
        refused(&["L", "L"], &["192.0.2.1"], &[], 1, "duplicate --class L");
        refused(&["L", "L=192.0.2.1:4700"], &["192.0.2.1:4700"], &[], 1, "duplicate address 192.0.2.1:4700 of class L");
        refused(
            &["L", "S=192.0.2.1:4701"],
            &["192.0.2.1"],
            &[],
            2,
            "192.0.2.1:4700 of class L needs port 4701, which another address of class S has",
        );
        refused(
            &["L"],
            &["192.0.2.1:1", "192.0.2.1:2"],
            &[],
            2,
            "192.0.2.1:2 of class L needs port 2, which another address of class L has",
        );
        refused(&["L"], &["192.0.2.1", "192.0.2.1:4700"], &[], 1, "duplicate address");
        refused(&["L"], &["0.0.0.0"], &[], 1, "an address that the previous hop can send to");
        refused(&["L"], &["192.0.2.1:65535"], &[], 2, "at most 65534");
        refused(&["L", "S"], &["192.0.2.1:65535"], &[], 1, "port 65535 is too high");
        refused(&["L"], &["192.0.2.1"], &["m", "m"], 1, "duplicate --name m");
    }

    #[test]
    fn profile_of_a_paced_class_is_refused_with_its_class() {
        for text in ["voice", "voice=192.0.2.1:4700"] {
            let why = text.parse::<ClassPlace>().unwrap_err();
            assert!(why.starts_with("voice is a profile of paced-S") && why.contains("--class paced-S"), "{why}");
        }
        let why = "voise".parse::<ClassPlace>().unwrap_err();
        assert!(why.contains("unknown class \"voise\"") && why.contains("paced-S"), "{why}");
    }

    #[test]
    fn moved_node_keeps_the_distances_of_its_ports() {
        let old = places(&["L", "S"], &["192.0.2.1:5000"], &["m"]).contacts(2).unwrap();
        let moved = |addresses, names, drop| shown(&places(&[], addresses, names).moved(&old, drop).unwrap());
        assert_eq!(moved(&[], &[], false), shown(&old));
        assert_eq!(moved(&["192.0.2.9"], &[], true), ["S 192.0.2.9:5002", "L 192.0.2.9:5000"]);
        assert_eq!(
            moved(&["192.0.2.9:80", "192.0.2.1"], &["n:90"], false),
            ["S 192.0.2.9:82, 192.0.2.1:5002, n:92", "L 192.0.2.9:80, 192.0.2.1:5000, n:90"]
        );
        let unnamed = places(&[], &[], &["m"]).contacts(1).unwrap();
        let why = Places::default().moved(&unnamed, true).unwrap_err().to_string();
        assert!(why.contains("give one with --address"), "{why}");
    }

    #[test]
    fn texts_that_are_not_addresses_or_names_are_refused() {
        assert!("192.0.2.1:x".parse::<Endpoint>().is_err());
        let why = "mix.example.org".parse::<Endpoint>().unwrap_err();
        assert!(why.ends_with("; give a DNS name with --name"), "{why}");
        assert!(!"192.0.2.300".parse::<Endpoint>().unwrap_err().contains("--name"));
        assert!("192.0.2.1".parse::<Name>().unwrap_err().contains("--address"));
        for bad in ["", "m:0", "m:x", "a b", "\u{e9}", ":5"] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        assert!("XL".parse::<ClassPlace>().is_err() && "L=x".parse::<ClassPlace>().is_err());
    }
}
