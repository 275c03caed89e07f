//! A node's sockets: bound, or passed by the process that started it.
//!
//! Owns the order in which they are passed, and the messages for sockets that cannot be bound or cannot reach the next
//! hop. [`crate::runtime::workers`] sets their options.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use dataplane::entry::{Listener, ListenerKind};
use dataplane::lanes::{self, Lanes};
use listenfd::ListenFd;
use rustix::io::Errno;
use rustix::net::sockopt;
use socket2::{Domain, Socket, Type};
use wire::cell::{Class, Direction, Shape};
use wire::handshake::HANDSHAKE_LEN_MAX;

use crate::config::{ConfigError, Forward, Loaded, Location, NodeConfig, NodeRole, Part, in_words, node_name};
use crate::runtime::node::Sockets;

/// IP and UDP headers, over IPv4 and over IPv6.
const HEADERS: [usize; 2] = [20 + 8, 40 + 8];

/// A socket that the node needs.
struct Wanted {
    /// What it is for: `up`, `down`, `a forward`, `pymix`, `socks`.
    name: &'static str,
    /// The setting and where it is.
    said: String,
    /// The address to bind, or the bound one.
    address: SocketAddr,
    /// TCP instead of UDP.
    stream: bool,
    /// Passed by the process that started the node.
    passed: Option<OwnedFd>,
}

/// Binds a node's sockets, or takes those that were passed. Also returns the address of the next hop; none at the exit.
///
/// # Errors
/// A mistake: sockets that contradict each other or cannot be bound, or a next hop out of reach.
pub fn open(loaded: &Loaded, mut passed: ListenFd) -> Result<(Sockets, Option<SocketAddr>), ConfigError> {
    let config = &loaded.config;
    let next = loaded.next_address()?;
    let lanes = loaded.lanes();
    let (mut wanted, listeners) = wanted(config, next, lanes)?;
    let socks = wanted.iter().filter(|one| one.stream).count();
    open_to_all(loaded)?;
    take(&mut wanted, &mut passed, config.role())?;
    apart(&wanted)?;
    if let Some(next) = next {
        not_itself(loaded, &wanted, next)?;
    }
    // Several sockets towards the next hop share a port, one for each of its lanes.
    let (downs, mut shared) = (lanes.downs(), None);
    let mut bound = Vec::with_capacity(wanted.len());
    for Wanted { name, said, address, stream, passed } in wanted {
        let share = name == "down" && downs > 1;
        let new = || -> io::Result<OwnedFd> {
            Ok(match (stream, share) {
                (true, _) => TcpListener::bind(address)?.into(),
                (false, true) => bind_shared(address)?.into(),
                (false, false) => UdpSocket::bind(address)?.into(),
            })
        };
        bound.push(match passed {
            Some(socket) => socket,
            None => new().map_err(|why| if stream { cannot_listen } else { cannot_bind }(&said, address, &why))?,
        });
        if share {
            shared = Some(said);
        }
    }
    let socks = bound.split_off(bound.len() - socks).into_iter().map(TcpListener::from).collect();
    let mut bound = bound.into_iter().map(UdpSocket::from);
    let up = bound.by_ref().take(config.up.map_or(0, |_| lanes.own)).collect();
    let mut down: Vec<UdpSocket> = bound.by_ref().take(usize::from(next.is_some())).collect();
    if let (Some(down), Some(next)) = (down.first(), next) {
        let local = down.local_addr().map_err(|why| mistake(place(config, "down"), in_words(&why), "pass another"))?;
        path_carries(config, loaded.chain.shape, local.ip(), next)?;
    }
    if let (Some(said), Some(next)) = (shared, next) {
        spread(&mut down, next, downs).map_err(|why| {
            let what = format!("{downs} sockets cannot share the port: {}", in_words(&why));
            mistake(said, what, "if it was passed, let whoever binds it set SO_REUSEPORT (systemd: ReusePort=yes)")
        })?;
    }
    Ok((Sockets { up, down, listeners: bound.zip(listeners).collect(), socks }, next))
}

/// Checks a node's addresses as [`open`] does, without opening sockets. A next hop with a host name is not resolved.
///
/// # Errors
/// Addresses that contradict each other, or a SOCKS port that is open to everybody.
pub fn check(loaded: &Loaded) -> Result<(), ConfigError> {
    let next = match &loaded.config.next {
        None => loaded.next_address()?,
        Some(next) => next.parse().ok(),
    };
    let (wanted, _) = wanted(&loaded.config, next, loaded.lanes())?;
    open_to_all(loaded)?;
    apart(&wanted)?;
    next.map_or(Ok(()), |next| not_itself(loaded, &wanted, next))
}

/// A SOCKS port that other hosts reach needs users, or it would serve everybody.
fn open_to_all(loaded: &Loaded) -> Result<(), ConfigError> {
    let Part::Entry(entry) = &loaded.config.part else { return Ok(()) };
    let open = entry.socks.iter().position(|listen| !listen.ip().to_canonical().is_loopback());
    match open {
        Some(nth) if loaded.keys.socks_users.is_empty() => {
            let listen = entry.socks[nth];
            let said = match loaded.config.place("socks", nth) {
                Some(place) => format!("{place}: socks on {listen}"),
                None => format!("--socks {listen}"),
            };
            let keys = loaded.config.keys.display();
            Err(mistake(
                said,
                "other hosts reach this address, and nobody is asked who they are",
                format!(
                    "add `[socks_users]` and lines such as `alice = \"password\"` to {keys}, or listen at 127.0.0.1"
                ),
            ))
        }
        _ => Ok(()),
    }
}

/// A socket whose port this node's other sockets may share.
pub fn bind_shared(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Binds as many sockets as the next hop has lanes and connects each to one lane, so that the kernel delivers to it what
/// comes from there.
fn spread(down: &mut Vec<UdpSocket>, next: SocketAddr, lanes: usize) -> io::Result<()> {
    let at = down[0].local_addr()?;
    for lane in 0..lanes {
        if lane > 0 {
            down.push(bind_shared(at)?);
        }
        down[lane].connect(lanes::address(next, lane).ok_or(ErrorKind::AddrNotAvailable)?)?;
    }
    Ok(())
}

fn mistake(said: impl std::fmt::Display, what: impl std::fmt::Display, remedy: impl std::fmt::Display) -> ConfigError {
    ConfigError::Arguments(format!("{said}: {what}: {remedy}"))
}

/// The system's view of a path.
pub struct KnownPath {
    /// The longest packet that it carries unfragmented, in bytes.
    pub mtu: usize,
    /// Source address of the packets.
    pub local: IpAddr,
}

/// Reads the system's view of the path between two addresses. Sends nothing.
pub fn known_path(from: IpAddr, to: SocketAddr) -> io::Result<KnownPath> {
    let probe = UdpSocket::bind((from, 0))?;
    probe.connect(to)?;
    let mtu = if to.is_ipv4() { sockopt::ip_mtu(&probe) } else { sockopt::ipv6_mtu(&probe) };
    Ok(KnownPath { mtu: mtu? as usize, local: probe.local_addr()?.ip() })
}

/// The longest packet of a link, cells of both directions and handshakes included, in bytes.
pub fn longest_packet(shape: Shape, link: usize, ipv6: bool) -> usize {
    let both = [Direction::Forward, Direction::Backward];
    let cell = both.iter().map(|direction| shape.cell_len(*direction, link)).max().unwrap_or_default();
    HEADERS[usize::from(ipv6)] + cell.max(HANDSHAKE_LEN_MAX)
}

/// The largest class with shorter cells that fits the MTU.
pub fn smaller_class(shape: Shape, mtu: usize, ipv6: bool) -> Option<Class> {
    let fits = |class: &Class| {
        let longest = Shape::new(*class, shape.hops()).map_or(usize::MAX, Shape::longest_cell);
        longest < shape.longest_cell() && HEADERS[usize::from(ipv6)] + longest.max(HANDSHAKE_LEN_MAX) <= mtu
    };
    [Class::M, Class::S].into_iter().find(fits)
}

/// The name of the device with this address.
pub fn device(local: IpAddr) -> Option<String> {
    let interfaces = if_addrs::get_if_addrs().ok()?;
    interfaces.into_iter().find(|interface| interface.ip() == local).map(|found| found.name)
}

fn place(config: &NodeConfig, key: &str) -> Location {
    config.place(key, 0).unwrap_or_else(|| Location::file(&config.path))
}

/// The sockets of a node, in the order in which they are passed.
fn wanted(
    config: &NodeConfig,
    next: Option<SocketAddr>,
    lanes: Lanes,
) -> Result<(Vec<Wanted>, Vec<Listener>), ConfigError> {
    let mut wanted = Vec::new();
    let mut want =
        |name, said, address| wanted.push(Wanted { name, said, address, stream: name == "socks", passed: None });
    if let Some(up) = config.up {
        let said = format!("{}: up = \"{up}\"", place(config, "up"));
        for lane in 0..lanes.own {
            let address = lanes::address(up, lane).filter(|_| lane == 0 || up.port() != 0).ok_or_else(|| {
                mistake(&said, format!("{} lanes need as many ports from there on", lanes.own), "take another port")
            })?;
            want("up", if lane == 0 { said.clone() } else { format!("{said}, lane {lane}") }, address);
        }
    }
    if let Some(next) = next {
        let any = if next.is_ipv4() { ([0u8; 4], 0).into() } else { ([0u16; 8], 0).into() };
        let down = config.down.unwrap_or(any);
        let said = format!("{}: down = \"{down}\"", place(config, "down"));
        if down.is_ipv4() != next.is_ipv4() {
            return Err(mistake(
                said,
                format!("{} cannot reach the next hop at {next}", if down.is_ipv6() { "IPv6" } else { "IPv4" }),
                format!("write down = \"{any}\""),
            ));
        }
        want("down", said, down);
    }
    let mut listeners = Vec::new();
    if let Part::Entry(entry) = &config.part {
        for (i, Forward { listen, to, idle }) in entry.forwards.iter().enumerate() {
            let said = match config.place("forward", i) {
                Some(place) => format!("{place}: the forward on {listen}"),
                None => format!("--forward {listen}={to}"),
            };
            want("a forward", said, *listen);
            listeners.push(Listener { kind: ListenerKind::Forward(to.clone()), idle: idle.unwrap_or(entry.flow_idle) });
        }
        for (i, listen) in entry.pymix.iter().enumerate() {
            let said = match config.place("pymix", i) {
                Some(place) => format!("{place}: pymix on {listen}"),
                None => format!("--pymix {listen}"),
            };
            want("pymix", said, *listen);
            listeners.push(Listener { kind: ListenerKind::Pymix, idle: entry.flow_idle });
        }
        for (i, listen) in entry.socks.iter().enumerate() {
            let said = match config.place("socks", i) {
                Some(place) => format!("{place}: socks on {listen}"),
                None => format!("--socks {listen}"),
            };
            want("socks", said, *listen);
        }
    }
    Ok((wanted, listeners))
}

/// Takes the sockets that were passed, which must be all or none.
fn take(wanted: &mut [Wanted], passed: &mut ListenFd, role: NodeRole) -> Result<(), ConfigError> {
    if passed.len() == 0 {
        return Ok(());
    }
    let names: Vec<&str> = wanted.iter().map(|one| one.name).collect();
    let names = names.join(", ");
    if passed.len() != wanted.len() {
        let (n, sockets) = (wanted.len(), if wanted.len() == 1 { "socket" } else { "sockets" });
        return Err(mistake(
            format!("LISTEN_FDS = {}", passed.len()),
            format!("this {role} takes {n} {sockets}"),
            format!("pass {names} in this order, or none"),
        ));
    }
    let and_tcp = if wanted.iter().any(|one| one.stream) { ", and for socks listening TCP ones" } else { "" };
    for (i, one) in wanted.iter_mut().enumerate() {
        let again = || io::Error::other("it was taken already");
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
fn apart(wanted: &[Wanted]) -> Result<(), ConfigError> {
    for (i, one) in wanted.iter().enumerate() {
        let (ip, port) = (one.address.ip(), one.address.port());
        let clash = |other: &&Wanted| {
            let there = other.address.ip();
            let any = there.is_unspecified() || ip.is_unspecified();
            let same = other.stream == one.stream && other.address.port() == port;
            port != 0 && same && (there == ip || any && there.is_ipv4() == ip.is_ipv4())
        };
        if let Some(other) = wanted[..i].iter().find(clash) {
            let what = format!("{} has port {port} already, on {}", other.name, other.address);
            return Err(mistake(&one.said, what, "give each a port of its own"));
        }
    }
    Ok(())
}

/// Refuses a next hop that is this node.
fn not_itself(loaded: &Loaded, wanted: &[Wanted], next: SocketAddr) -> Result<(), ConfigError> {
    let config = &loaded.config;
    let position = config.position + 1;
    let (name, published) = match loaded.chain.node(position) {
        Some(hop) => (node_name(hop.role, position), hop.address),
        None => return Ok(()),
    };
    let said = match &config.next {
        Some(text) => format!("{}: next = {text:?}", place(config, "next")),
        None => format!("{}: the next hop {name} is published at {next}", config.chain.display()),
    };
    if next.ip().is_unspecified() {
        let remedy = format!("write where {name} is reached; it published {published}");
        return Err(mistake(said, "this is the address of no host", remedy));
    }
    let reaches = |bound: IpAddr| match bound {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => next.is_ipv4() && is_own(next.ip()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => is_own(next.ip()),
        bound => bound == next.ip(),
    };
    let own = wanted.iter().find(|one| !one.stream && one.address.port() == next.port() && reaches(one.address.ip()));
    let Some(own) = own else { return Ok(()) };
    let remedy = match &config.next {
        Some(_) => format!("write where {name} is reached; it published {published}"),
        None => format!("give `{}` another port, or say with `next` where {name} is reached", own.name),
    };
    Err(mistake(said, format!("that is this node's own socket, {} on {}", own.name, own.address), remedy))
}

/// Whether an address belongs to this host. If the system does not list its addresses, only loopback does.
fn is_own(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    ip.is_loopback()
        || if_addrs::get_if_addrs().is_ok_and(|all| all.iter().any(|interface| interface.ip().to_canonical() == ip))
}

/// The message for a socket that cannot be bound. `said` is the setting and where it is.
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
            "another process has this port",
            format!("find it with `{list} 'sport = :{port}'` and end it, or take another port"),
        ),
        ErrorKind::AddrNotAvailable => mistake(
            said,
            format!("this host does not have the address {}", address.ip()),
            "take one that `ip address` lists",
        ),
        ErrorKind::PermissionDenied if port > 0 => mistake(
            said,
            format!("port {port} needs a privilege"),
            format!(
                "take a port from 1024 on, or run `sudo setcap cap_net_bind_service=+ep $(command -v eddy)` or `sudo \
                 sysctl -w net.ipv4.ip_unprivileged_port_start={port}`"
            ),
        ),
        _ if why.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) => mistake(
            said,
            format!("this host has no {}", if address.is_ipv6() { "IPv6" } else { "IPv4" }),
            "turn it on, or take an address of the other family",
        ),
        _ => mistake(said, in_words(why), "take another address or port"),
    }
}

/// Checks that the path to the next hop carries the longest cell and handshake, which are sent unfragmented. A path that
/// does not exist yet is not an error, because the node keeps trying.
fn path_carries(config: &NodeConfig, shape: Shape, from: IpAddr, next: SocketAddr) -> Result<(), ConfigError> {
    let KnownPath { mtu, local } = match known_path(from, next) {
        Ok(path) => path,
        // Linux returns this for a loopback address towards any other.
        Err(why) if why.kind() == ErrorKind::InvalidInput => {
            let any = if next.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            return Err(mistake(
                format!("{}: down is bound to {from}", place(config, "down")),
                format!("from there nothing reaches the next hop at {next}"),
                format!("write down = \"{any}\""),
            ));
        }
        Err(why) => {
            tracing::warn!(address = %next, "no route to the next hop at {next} yet: {}", in_words(&why));
            return Ok(());
        }
    };
    let needed = longest_packet(shape, config.position + 1, next.is_ipv6());
    if needed <= mtu {
        return Ok(());
    }
    let device = device(local).unwrap_or_else(|| "DEVICE".to_owned());
    let raise = format!("raise the MTU all along the path, here `sudo ip link set dev {device} mtu {needed}`");
    let remedy = match smaller_class(shape, mtu, next.is_ipv6()) {
        Some(smaller) => format!("make the chain with `eddy init --class {smaller}`, or {raise}"),
        None => raise,
    };
    let what = format!(
        "the path to the next hop at {next} carries packets of {mtu} bytes, this chain of class {} makes some of \
         {needed}",
        shape.class()
    );
    Err(mistake(place(config, "next"), what, remedy))
}
