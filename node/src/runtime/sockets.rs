//! A node's sockets: bound, or passed by the process that started it.
//!
//! [`Plan`] has the addresses, checked against each other, the chain and this host; [`Plan::open`] binds them. Owns the
//! order in which sockets are passed, and the messages for addresses that contradict each other or cannot be bound.
//! [`crate::runtime::workers`] sets the options of the sockets.

use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use dataplane::entry::{Destination, Listener, ListenerKind};
use dataplane::lanes::{self, Lanes};
use listenfd::ListenFd;
use rustix::io::Errno;
use rustix::net::connect_unspec;
use socket2::{Domain, Socket, Type};
use wire::ids::{ClassId, Side};

use super::next_hop::{self, NextHop};
use crate::config::{
    COMMAND_LINE, ConfigError, EntryPart, Forward, Loaded, NodeConfig, NodeRole, Part, ServedClass, in_words,
};

/// A node's sockets of one class, bound.
pub struct Sockets {
    /// Towards the previous hop, one for each lane; none at the entry.
    pub up: Vec<UdpSocket>,
    /// Towards the next hop ([`Lanes::downs`]); none at the exit.
    pub down: Vec<UdpSocket>,
    /// The entry's listeners.
    pub listeners: Vec<(UdpSocket, Listener)>,
    /// The entry's SOCKS ports.
    pub socks: Vec<TcpListener>,
    /// The socket of a meeting, which then has no listeners.
    pub meeting: Option<UdpSocket>,
}

impl Sockets {
    /// All link sockets.
    pub fn links(&self) -> impl Iterator<Item = &UdpSocket> {
        self.up.iter().chain(&self.down)
    }
}

/// A socket that the node needs.
pub(super) struct Wanted {
    /// `up`, `down`, `forward`, `pymix` or `socks`.
    pub(super) name: &'static str,
    pub(super) class: ClassId,
    /// The setting and its location, for messages.
    said: String,
    /// The address to bind, or the bound one.
    pub(super) address: SocketAddr,
    /// TCP instead of UDP.
    pub(super) stream: bool,
    /// Passed by the process that started the node.
    pub(super) passed: Option<OwnedFd>,
}

/// The sockets of a node before they are opened, in the order in which they are passed: of each class `up` (one per
/// lane), `down`, listeners, SOCKS ports.
pub struct Plan {
    wanted: Vec<Wanted>,
    /// In the order of the classes.
    pub classes: Vec<ClassPlan>,
    /// What the operator should know, although the node starts.
    pub warnings: Vec<String>,
}

/// What is known of a class before its sockets are opened.
pub struct ClassPlan {
    class: ClassId,
    listeners: Vec<Listener>,
    /// Of the links.
    pub lanes: Lanes,
    /// Address of the next hop; none at the exit, and if its name does not resolve now.
    pub next: Option<SocketAddr>,
}

impl Plan {
    /// The sockets that were passed, or those that the node's files name. Resolves the name of the next hop.
    ///
    /// # Errors
    /// Addresses that contradict each other, a SOCKS port that is open to everybody, wrong sockets passed, or a next
    /// hop that is refused ([`next_hop::choose`]).
    pub fn new(loaded: &Loaded, mut passed: ListenFd) -> Result<Plan, ConfigError> {
        let served = loaded.classes();
        let (mut wanted, mut listeners) = (Vec::new(), Vec::new());
        for class in &served {
            let (of_class, its_listeners) = self::wanted(class)?;
            wanted.extend(of_class);
            listeners.push(its_listeners);
        }
        served.iter().try_for_each(require_users)?;
        take(&mut wanted, &mut passed, loaded.config.role())?;
        require_distinct_ports(&wanted)?;

        let mut plan = Plan { wanted, classes: Vec::new(), warnings: Vec::new() };
        for (served, listeners) in served.iter().zip(listeners) {
            let class = served.terms.id();
            let NextHop { address: next, lanes, down, warnings } = next_hop::choose(served, &plan.wanted)?;
            let socket = plan.wanted.iter_mut().find(|one| one.name == "down" && one.class == class);
            if let Some((down, wanted)) = down.zip(socket) {
                (wanted.said, wanted.address) =
                    (format!("{}: down = \"{down}\"", served.config.place_of("down")), down);
            }
            plan.classes.push(ClassPlan { class, listeners, lanes, next });
            plan.warnings.extend(warnings);
        }
        Ok(plan)
    }

    /// Checks that this host has all the addresses. Ports stay free: the node may be running.
    ///
    /// # Errors
    /// An address of another host, or of a family that this host does not have.
    pub fn check_addresses(&self) -> Result<(), ConfigError> {
        for Wanted { said, address, .. } in &self.wanted {
            let any_port = SocketAddr::new(address.ip(), 0);
            UdpSocket::bind(any_port).map_err(|why| cannot_bind(said, any_port, &why))?;
        }
        Ok(())
    }

    /// Binds the sockets that were not passed. Returns those of each class.
    ///
    /// # Errors
    /// A socket cannot be bound.
    pub fn open(self) -> Result<Vec<Sockets>, ConfigError> {
        let Plan { mut wanted, classes, .. } = self;
        let mut open = |ClassPlan { class, listeners, lanes, .. }: ClassPlan| {
            let of_class = wanted.extract_if(.., |one| one.class == class).collect();
            open_class(of_class, listeners, lanes)
        };
        classes.into_iter().map(&mut open).collect()
    }
}

/// Binds the sockets of a class that were not passed.
fn open_class(wanted: Vec<Wanted>, listeners: Vec<Listener>, lanes: Lanes) -> Result<Sockets, ConfigError> {
    // Several sockets towards the next hop share a port, one for each of its lanes.
    let downs = lanes.downs();
    let (mut up, mut down, mut apps, mut socks, mut shared) = (vec![], vec![], vec![], vec![], None);
    for Wanted { name, said, address, stream, passed, .. } in wanted {
        let shares = name == "down" && downs > 1;
        let socket = match passed {
            Some(socket) => socket,
            None if stream => TcpListener::bind(address).map_err(|why| cannot_listen(&said, address, &why))?.into(),
            None => {
                let bound = if shares { bind_shared(address) } else { UdpSocket::bind(address) };
                bound.map_err(|why| cannot_bind(&said, address, &why))?.into()
            }
        };
        match name {
            "up" => up.push(UdpSocket::from(socket)),
            "down" => down.push(UdpSocket::from(socket)),
            "socks" => socks.push(TcpListener::from(socket)),
            _ => apps.push(UdpSocket::from(socket)),
        }
        if shares {
            shared = Some(said);
        }
    }

    if let Some(said) = shared {
        share(&mut down, downs).map_err(|why| {
            let what = format!("{downs} sockets cannot share the port: {}", in_words(&why));
            mistake(said, what, "if the socket was passed, bind it with SO_REUSEPORT (systemd: ReusePort=yes)")
        })?;
    }
    let meeting = if listeners.is_empty() { apps.pop() } else { None };
    Ok(Sockets { up, down, listeners: apps.into_iter().zip(listeners).collect(), socks, meeting })
}

/// Refuses a SOCKS port that other hosts reach if no users are configured: it would serve everybody.
fn require_users(ServedClass { loaded, config, .. }: &ServedClass<'_>) -> Result<(), ConfigError> {
    let Part::Entry(entry) = &config.part else { return Ok(()) };
    let open = entry.socks.iter().position(|listen| !listen.ip().to_canonical().is_loopback());
    let Some(nth) = open.filter(|_| loaded.socks_users.is_empty()) else { return Ok(()) };
    let users = if config.is_file() {
        "set `socks_users` to a file with `[socks_users]` and lines such as `alice = \"password\"`".to_owned()
    } else if config.path.as_os_str() == COMMAND_LINE {
        "use a configuration file with `socks_users`".to_owned()
    } else {
        "add a user with `socks_user`".to_owned()
    };
    Err(mistake(
        setting(config, "socks", nth, &entry.socks[nth].to_string()),
        "other hosts can reach this address, but no users are configured",
        format!("{users}, or listen on 127.0.0.1"),
    ))
}

/// A socket whose port this node's other sockets may share.
pub fn bind_shared(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    let socket = UdpSocket::from(socket);
    // A socket that is disconnected loses a port that the system has chosen, and keeps one that it was bound to.
    if address.port() == 0 { bind_shared(socket.local_addr()?) } else { Ok(socket) }
}

/// Binds one socket for each lane of the next hop to the port of the first. Handshakes connect them.
fn share(down: &mut Vec<UdpSocket>, lanes: usize) -> io::Result<()> {
    let at = down[0].local_addr()?;
    for _ in 1..lanes {
        down.push(bind_shared(at)?);
    }
    Ok(())
}

/// Duplicates of a node's link sockets, for its handshakes.
pub struct HandshakeSockets {
    up: Option<UdpSocket>,
    /// One for each lane of the next hop if they share a port; otherwise one.
    down: Vec<UdpSocket>,
    /// The address of the next hop's first lane to which they are connected, if they share a port.
    connected: Option<SocketAddr>,
}

impl HandshakeSockets {
    /// Duplicates the sockets.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn new(sockets: &Sockets) -> io::Result<HandshakeSockets> {
        let up = sockets.up.first().map(UdpSocket::try_clone).transpose()?;
        let down = sockets.down.iter().map(UdpSocket::try_clone).collect::<io::Result<Vec<_>>>()?;
        Ok(HandshakeSockets { up, down, connected: None })
    }

    /// Sends a handshake. If it is lost, control sends another one.
    ///
    /// Sockets that share a port are connected to the lanes of the next hop, so that the kernel delivers the datagrams
    /// of each lane to its socket. They follow the handshakes: where one goes, its answer and then cells come from.
    pub fn send(&mut self, side: Side, to: SocketAddr, datagram: &[u8]) {
        let socket = match side {
            Side::Up => self.up.as_ref(),
            Side::Down => {
                if self.down.len() > 1 && self.connected != Some(to) {
                    self.connected = self.connect(to).is_ok().then_some(to);
                }
                self.down.first()
            }
        };
        if let Some(socket) = socket {
            let _ = socket.send_to(datagram, to);
        }
    }

    fn connect(&self, to: SocketAddr) -> io::Result<()> {
        for (lane, socket) in self.down.iter().enumerate() {
            let to = lanes::address(to, lane).ok_or(ErrorKind::AddrNotAvailable)?;
            // A source address that the system chose for another destination may not reach this one.
            connect_unspec(socket)?;
            socket.connect(to)?;
        }
        Ok(())
    }
}

pub(super) fn mistake(said: impl Display, what: impl Display, remedy: impl Display) -> ConfigError {
    ConfigError::Arguments(format!("{said}: {what}: {remedy}"))
}

/// The `nth` value of a list, for messages: with its location, or as the option that added it on the command line.
fn setting(config: &NodeConfig, key: &str, nth: usize, value: &str) -> String {
    match config.place(key, nth) {
        Some(place) => format!("{place}: {key} on {value}"),
        None => format!("--{key} {value}"),
    }
}

/// The sockets of a class, in the order in which they are passed. Without `down` in the configuration, the address of
/// that socket depends on the next hop and is set later.
fn wanted(class: &ServedClass<'_>) -> Result<(Vec<Wanted>, Vec<Listener>), ConfigError> {
    let (config, lanes) = (&class.config, class.lanes(None));
    let mut wanted = Vec::new();
    let of_class = class.terms.id();
    let want =
        |name, said, address| Wanted { name, class: of_class, said, address, stream: name == "socks", passed: None };

    if let Some(up) = config.up {
        let said = format!("{}: up = \"{up}\"", config.place_of("up"));
        for lane in 0..lanes.own {
            let address = lanes::address(up, lane).filter(|_| lane == 0 || up.port() != 0).ok_or_else(|| {
                let what = format!("{} lanes need {0} consecutive ports from {} on", lanes.own, up.port());
                mistake(&said, what, "use a port from 1 on, low enough for all of them")
            })?;
            wanted.push(want("up", if lane == 0 { said.clone() } else { format!("{said}, lane {lane}") }, address));
        }
    }

    if config.role() != NodeRole::Exit {
        let down = config.down.unwrap_or((Ipv4Addr::UNSPECIFIED, 0).into());
        let said = format!("{}: down = \"{down}\"", config.place_of("down"));
        wanted.push(want("down", said, down));
    }

    let mut listeners = Vec::new();
    if let Part::Entry(EntryPart { forwards, pymix, socks, flow_idle, .. }) = &config.part {
        let max_age = config.max_age;
        for (i, Forward { listen, to, idle, max_age: own, .. }) in forwards.iter().enumerate() {
            let value =
                if config.place("forward", i).is_some() { listen.to_string() } else { format!("{listen}={to}") };
            wanted.push(want("forward", setting(config, "forward", i, &value), *listen));
            let (idle, max_age) = (idle.unwrap_or(*flow_idle), own.unwrap_or(max_age));
            let listener = |to: &Destination| Listener { kind: ListenerKind::Forward(to.clone()), idle, max_age };
            listeners.extend(to.destination().map(listener));
        }
        for (i, listen) in pymix.iter().enumerate() {
            wanted.push(want("pymix", setting(config, "pymix", i, &listen.to_string()), *listen));
            listeners.push(Listener { kind: ListenerKind::Pymix, idle: *flow_idle, max_age });
        }
        let socks = socks.iter().enumerate();
        wanted.extend(socks.map(|(i, at)| want("socks", setting(config, "socks", i, &at.to_string()), *at)));
    }
    Ok((wanted, listeners))
}

/// Takes the sockets that were passed, which must be all or none.
fn take(wanted: &mut [Wanted], passed: &mut ListenFd, role: NodeRole) -> Result<(), ConfigError> {
    if passed.len() == 0 {
        return Ok(());
    }
    let names = wanted.iter().map(|one| one.name).collect::<Vec<_>>().join(", ");
    if passed.len() != wanted.len() {
        let (n, plural) = (wanted.len(), if wanted.len() == 1 { "" } else { "s" });
        return Err(mistake(
            format!("LISTEN_FDS = {}", passed.len()),
            format!("expected {n} socket{plural} for this {role}"),
            format!("pass {names} in this order, or no sockets"),
        ));
    }

    let and_tcp = if wanted.iter().any(|one| one.stream) { ", and for socks listening TCP sockets" } else { "" };
    for (i, one) in wanted.iter_mut().enumerate() {
        let again = || io::Error::other("the socket was already taken");
        let taken: io::Result<(OwnedFd, SocketAddr)> = if one.stream {
            let socket = passed.take_tcp_listener(i).and_then(|socket| socket.ok_or_else(again));
            socket.and_then(|socket| socket.local_addr().map(|address| (socket.into(), address)))
        } else {
            let socket = passed.take_udp_socket(i).and_then(|socket| socket.ok_or_else(again));
            socket.and_then(|socket| socket.local_addr().map(|address| (socket.into(), address)))
        };
        let (socket, address) = taken.map_err(|why| {
            let socket = format!("LISTEN_FDS: descriptor {} for {}", 3 + i, one.name);
            mistake(socket, in_words(&why), format!("pass bound UDP sockets{and_tcp}: {names}"))
        })?;
        (one.said, one.address) = (format!("LISTEN_FDS: {} on {address}", one.name), address);
        one.passed = Some(socket);
    }
    Ok(())
}

/// Refuses two sockets with the same port.
fn require_distinct_ports(wanted: &[Wanted]) -> Result<(), ConfigError> {
    for (i, one) in wanted.iter().enumerate() {
        let (ip, port) = (one.address.ip(), one.address.port());
        let clash = |other: &&Wanted| {
            let there = other.address.ip();
            let any = there.is_unspecified() || ip.is_unspecified();
            let same = other.stream == one.stream && other.address.port() == port;
            port != 0 && same && (there == ip || any && there.is_ipv4() == ip.is_ipv4())
        };
        if let Some(other) = wanted[..i].iter().find(clash) {
            let what = format!("the port is also that of {}", other.said);
            return Err(mistake(&one.said, what, "use a different port for each"));
        }
    }
    Ok(())
}

/// The message for a socket that cannot be bound. `said` is the setting and its location.
pub fn cannot_bind(said: &str, address: SocketAddr, why: &io::Error) -> ConfigError {
    unbindable(said, address, "ss -ulpn", why)
}

/// The same for a TCP socket.
pub fn cannot_listen(said: &str, address: SocketAddr, why: &io::Error) -> ConfigError {
    unbindable(said, address, "ss -tlpn", why)
}

fn unbindable(said: &str, address: SocketAddr, list: &str, why: &io::Error) -> ConfigError {
    let port = address.port();
    match why.kind() {
        ErrorKind::AddrInUse if port > 0 => mistake(
            said,
            "another process uses this port",
            format!("find it with `{list} 'sport = :{port}'` and stop it, or use another port"),
        ),
        ErrorKind::AddrNotAvailable => mistake(
            said,
            format!("this host does not have the address {}", address.ip()),
            "use an address that `ip address` lists",
        ),
        ErrorKind::PermissionDenied if port > 0 => mistake(
            said,
            format!("port {port} requires a privilege"),
            format!(
                "use a port from 1024 on, or run `sudo setcap cap_net_bind_service=+ep $(command -v eddy)` or `sudo \
                 sysctl -w net.ipv4.ip_unprivileged_port_start={port}`"
            ),
        ),
        _ if why.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) => mistake(
            said,
            format!("this host has no {}", if address.is_ipv6() { "IPv6" } else { "IPv4" }),
            "enable it, or use an address of the other family",
        ),
        _ => mistake(said, in_words(why), "use another address or port"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Two sockets with ports next to each other.
    fn two_lanes() -> [UdpSocket; 2] {
        loop {
            let first = UdpSocket::bind("127.0.0.1:0").unwrap();
            let second = lanes::address(first.local_addr().unwrap(), 1).map(UdpSocket::bind);
            if let Some(Ok(second)) = second {
                return [first, second];
            }
        }
    }

    #[test]
    fn sockets_of_lanes_follow_the_handshakes() {
        let mut down = vec![bind_shared(([127, 0, 0, 1], 0).into()).unwrap()];
        share(&mut down, 2).unwrap();
        let sockets = Sockets { up: Vec::new(), down, listeners: Vec::new(), socks: Vec::new(), meeting: None };
        let mut handshakes = HandshakeSockets::new(&sockets).unwrap();
        let mut buffer = [0; 8];
        let hops = [two_lanes(), two_lanes()];
        for socket in hops.iter().flatten().chain(&sockets.down) {
            socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        }
        for hop in [0, 1, 0] {
            handshakes.send(Side::Down, hops[hop][0].local_addr().unwrap(), b"hello");
            let (len, from) = hops[hop][0].recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..len], from), (&b"hello"[..], sockets.down[0].local_addr().unwrap()));
            for lane in [1, 0, 1] {
                hops[hop][lane].send_to(&[lane as u8], from).unwrap();
                assert_eq!(sockets.down[lane].recv_from(&mut buffer).unwrap().0, 1);
                assert_eq!(usize::from(buffer[0]), lane);
            }
        }
    }
}
