//! The descriptor of the next hop with which a node starts: its address, its lanes, and the socket towards it.
//!
//! Each descriptor that is held is judged, the preferred one first ([`Loaded::next_hops`]). One that does not fit this
//! node is passed over with a warning, because a neighbour may have sent it. If none fits, the start is refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use control::trust::Contact;
use dataplane::lanes::Lanes;

use super::path;
use super::sockets::{Wanted, cannot_bind, mistake};
use crate::ceremony::places;
use crate::config::{ConfigError, Loaded, ServedClass, node_name};

/// How a node reaches the next hop.
pub(super) struct NextHop {
    /// None at the exit, and if no name of the next hop resolves now.
    pub(super) address: Option<SocketAddr>,
    pub(super) lanes: Lanes,
    /// Address of the socket towards it, if neither the configuration nor the process that started the node sets it.
    pub(super) down: Option<SocketAddr>,
    pub(super) warnings: Vec<String>,
}

/// Chooses the first descriptor of the next hop that fits this node's configuration and its `own` sockets.
///
/// # Errors
/// Why the last one does not fit: lanes that are not accepted, another address family than that of `down`, an address
/// of this node, a path with too small an MTU, or a name in `next` that does not resolve.
pub(super) fn choose(class: &ServedClass<'_>, own: &[Wanted]) -> Result<NextHop, ConfigError> {
    let (loaded, mut unfit) = (class.loaded, Vec::new());
    let of_class = class.terms.id();
    let contacts = loaded.next_hops().into_iter().filter_map(|one| Some((one.revision, one.contact(of_class)?)));
    let mut contacts = contacts.collect::<Vec<_>>().into_iter().peekable();
    while let Some((revision, contact)) = contacts.next() {
        match fit(class, contact, own) {
            Ok(mut fitted) => {
                let name = next_name(loaded);
                let warnings = unfit.iter().map(|(unfit, why)| {
                    format!(
                        "revision {unfit} of the descriptor of {name} does not fit this node, which starts as revision \
                         {revision} says: {why}. Until that is settled with its operator, there may be no link to {name}"
                    )
                });
                fitted.warnings.splice(0..0, warnings);
                return Ok(fitted);
            }
            Err(why) if contacts.peek().is_none() => return Err(why),
            Err(why) => unfit.push((revision, why)),
        }
    }
    // At the exit.
    Ok(NextHop { address: None, lanes: class.lanes(None), down: None, warnings: Vec::new() })
}

/// The name of the next hop in messages.
fn next_name(loaded: &Loaded) -> String {
    let hop = loaded.position + 1;
    node_name(loaded.chain.role(hop), hop)
}

/// The next hop at `contact`, if that fits.
fn fit(class: &ServedClass<'_>, contact: &Contact, own: &[Wanted]) -> Result<NextHop, ConfigError> {
    let config = &class.config;
    class.check_lanes(Some(contact))?;
    let next = class.next_address(contact)?;

    let any: SocketAddr =
        if next.is_some_and(|next| next.is_ipv6()) { ([0u16; 8], 0).into() } else { ([0u8; 4], 0).into() };
    let free = |one: &&Wanted| config.down.is_none() && one.passed.is_none();
    let socket = own.iter().find(|one| one.name == "down" && one.class == class.terms.id());
    let down = socket.filter(free).map(|_| next.and_then(|next| published(class, next)).unwrap_or(any));
    let from = down.or(socket.map(|one| one.address)).unwrap_or(any);
    let said = format!("{}: down = \"{from}\"", config.place_of("down"));
    if let Some(down) = down {
        UdpSocket::bind(down).map_err(|why| cannot_bind(&said, down, &why))?;
    }
    let mut warnings = Vec::new();
    if let Some(next) = next {
        if next.is_ipv4() != from.is_ipv4() {
            let family = if from.is_ipv6() { "IPv6" } else { "IPv4" };
            let what = format!("an {family} socket cannot reach the next hop at {next}");
            return Err(mistake(said, what, format!("set down = \"{any}\"")));
        }
        refuse_self(class, contact, own, next)?;
        warnings.extend(path::check(class, from.ip(), next)?);
    }
    Ok(NextHop { address: next, lanes: class.lanes(Some(contact)), down, warnings })
}

/// Any port of an address that this hop's descriptor names, if this host has one from which `next` is reached: the next
/// hop compares it (docs/SPEC.md 4.9.5).
fn published(class: &ServedClass<'_>, next: SocketAddr) -> Option<SocketAddr> {
    let own = class.own_contact()?;
    let fits = |ip: &IpAddr| ip.is_ipv4() == next.is_ipv4() && ip.is_loopback() == next.ip().is_loopback();
    let addresses = own.addresses.iter().map(SocketAddr::ip).filter(fits).map(|ip| SocketAddr::new(ip, 0));
    addresses.into_iter().find(|address| UdpSocket::bind(address).is_ok())
}

/// Refuses a next hop that is this node.
fn refuse_self(
    class: &ServedClass<'_>,
    contact: &Contact,
    wanted: &[Wanted],
    next: SocketAddr,
) -> Result<(), ConfigError> {
    let config = &class.config;
    let (name, published) = (next_name(class.loaded), places(contact));
    let said = match &config.next {
        Some(text) => format!("{}: next = {text:?}", config.place_of("next")),
        None => format!("{}: the next hop {name} is published at {next}", config.chain.display()),
    };
    let set_next = format!("set `next` to the address of {name}, which published {published}");
    if next.ip().is_unspecified() {
        return Err(mistake(said, format!("nothing can be sent to {}", next.ip()), set_next));
    }

    let reaches = |bound: IpAddr| match bound {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => next.is_ipv4() && is_own(next.ip()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => is_own(next.ip()),
        bound => bound == next.ip(),
    };
    let own = wanted.iter().find(|one| !one.stream && one.address.port() == next.port() && reaches(one.address.ip()));
    let Some(own) = own else { return Ok(()) };
    let remedy = match &config.next {
        Some(_) => set_next,
        None => format!("set `{}` to another port, or `next` to the address of {name}", own.name),
    };
    Err(mistake(said, format!("this is the node's own socket, {} on {}", own.name, own.address), remedy))
}

/// True if an address belongs to this host. If the system does not list its addresses, only loopback does.
fn is_own(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    ip.is_loopback()
        || if_addrs::get_if_addrs().is_ok_and(|all| all.iter().any(|interface| interface.ip().to_canonical() == ip))
}

#[cfg(test)]
mod tests {
    use listenfd::ListenFd;

    use crate::config::Loaded;
    use crate::init::{self, Plan};
    use crate::runtime::sockets;

    use super::*;

    #[test]
    fn descriptor_from_a_neighbour_does_not_stop_a_start() {
        let dir = tempfile::tempdir().unwrap();
        let addresses = [1, 2, 3].map(|host| SocketAddr::from(([127, 0, 0, host], 4700)));
        let files = init::write(dir.path(), &Plan::new(&addresses)).unwrap();
        type Change<'a> = &'a dyn Fn(&mut Contact);
        let cases: [(&str, Change<'_>); 3] = [
            ("an IPv4 socket cannot reach", &|next| next.addresses = vec!["[::1]:4700".parse().unwrap()]),
            ("this is the node's own socket", &|next| next.addresses = vec![addresses[0]]),
            ("has 2 lanes", &|next| next.lanes = 2),
        ];
        for (why, change) in cases {
            let mut loaded = Loaded::read(&files.hops[0]).unwrap();
            loaded.config.down = Some("127.0.0.1:0".parse().unwrap());
            loaded.receive(dir.path(), 2, change);
            let plan = sockets::Plan::new(&loaded, ListenFd::empty()).unwrap();
            assert_eq!((plan.classes[0].next, plan.classes[0].lanes), (Some(addresses[1]), Lanes::ONE), "{why}");
            let [warning] = &plan.warnings[..] else { panic!("{why}: {:?}", plan.warnings) };
            let names = warning.contains("of the descriptor of mix2 does not fit this node");
            assert!(names && warning.contains(why), "{why}: {warning}");
        }
    }

    #[test]
    fn descriptor_in_a_file_that_does_not_fit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let addresses = [1, 2, 3].map(|host| SocketAddr::from(([127, 0, 0, host], 4700)));
        let files = init::write(dir.path(), &Plan::new(&addresses)).unwrap();
        let mut loaded = Loaded::read(&files.hops[0]).unwrap();
        loaded.config.down = Some("[::1]:0".parse().unwrap());
        let refused = sockets::Plan::new(&loaded, ListenFd::empty()).err().unwrap().to_string();
        assert!(refused.contains("an IPv6 socket cannot reach the next hop at 127.0.0.2:4700"), "{refused}");
    }
}
