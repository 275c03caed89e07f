//! The listening sockets of a class of a running entry, which change while it runs.
//!
//! Owns the list of sockets and their kernel drop counts. The worker owns the sockets themselves and receives changes
//! through control. This list has duplicates, so a socket is closed when both are.
//!
//! Neighbours: [`crate::runtime::console`] adds and removes forwards; [`crate::runtime::socks`] and [`crate::client`]
//! add and remove the relays of associations.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dataplane::command::Command;
use dataplane::entry::{Association, Destination, Listener, ListenerId, ListenerKind};
use dataplane::sys::Waker;
use wire::frames::Status;

use crate::config::{ConfigError, Forward, Payload, Target, in_words};
use crate::runtime::drop_counter::DropCounter;
use crate::runtime::refused_flows::{RefusedFlow, RefusedFlows, WAKE};
use crate::runtime::sockets::cannot_bind;

/// Most listening sockets. Each is a descriptor that the worker polls.
const LISTENERS_MAX: usize = 8192;
/// While this many commands wait for control, no more sockets are opened. A command that closes a socket always has
/// room: there is at most one for each open socket.
const WAITING_COMMANDS_MAX: usize = 1024;

/// Times of a listener, see [`Listener`].
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub idle: Duration,
    pub max_age: Duration,
}

/// A handle on the listening sockets of a class of an entry.
#[derive(Clone)]
pub struct Listeners {
    payload: Payload,
    /// For forwards without times of their own, and for associations.
    times: Times,
    state: Arc<Mutex<State>>,
    /// Commands for the worker that control has not taken yet.
    commands: Arc<Mutex<VecDeque<Command>>>,
    control: Arc<Waker>,
}

#[derive(Default)]
struct State {
    next: u32,
    open: Vec<Open>,
    /// The kernel's drops at sockets that are closed now.
    gone: u64,
}

impl State {
    /// The kernel's drops at open sockets.
    fn drops(&self) -> u64 {
        self.open.iter().map(|open| open.drops.read()).sum()
    }
}

/// The socket of an association, closed when this is dropped. Datagrams to it contain their destination (RFC 1928, 7).
pub struct Relay {
    id: ListenerId,
    at: SocketAddr,
    listeners: Listeners,
}

impl Relay {
    /// The address at which it listens.
    pub fn address(&self) -> SocketAddr {
        self.at
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.listeners.close(self.id);
    }
}

struct Open {
    id: ListenerId,
    drops: DropCounter,
    listener: Listener,
    /// A tunnel's.
    refused: Option<Arc<RefusedFlows>>,
}

impl Listeners {
    /// The sockets with which an entry starts. `control` is woken for each command and calls
    /// [`Listeners::next_command`].
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(
        payload: Payload,
        times: Times,
        first: &[(UdpSocket, Listener)],
        control: Arc<Waker>,
    ) -> std::io::Result<Listeners> {
        let open = first.iter().zip(0..).map(|((socket, listener), id)| {
            let drops = DropCounter::new(socket.try_clone()?);
            Ok(Open { id: ListenerId(id), drops, listener: listener.clone(), refused: None })
        });
        let open = open.collect::<std::io::Result<Vec<_>>>()?;
        let state = State { next: open.len() as u32, open, gone: 0 };
        Ok(Listeners { payload, times, state: Arc::new(Mutex::new(state)), commands: Arc::default(), control })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commands(&self) -> MutexGuard<'_, VecDeque<Command>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the oldest command for the worker.
    pub fn next_command(&self) -> Option<Command> {
        self.commands().pop_front()
    }

    /// True if a command waits for control.
    pub fn has_commands(&self) -> bool {
        !self.commands().is_empty()
    }

    /// What a cell holds.
    pub fn payload(&self) -> &Payload {
        &self.payload
    }

    /// Adds a forward. Returns it with its port if that was 0.
    ///
    /// # Errors
    /// A name that is too long, or a socket that cannot be bound.
    pub fn add(&self, forward: Forward) -> Result<Forward, ConfigError> {
        let Forward { listen, to, idle, max_age, class } = forward;
        let Target::Destination(to) = to else {
            let what = format!("forward on {listen}: a meeting is chosen when the entry starts");
            return Err(ConfigError::Arguments(format!("{what}: restart it with this forward")));
        };
        fits(&self.payload, &to)?;
        let (idle, max_age) = (idle.unwrap_or(self.times.idle), max_age.unwrap_or(self.times.max_age));
        let said = format!("forward on {listen}");
        let socket = UdpSocket::bind(listen).map_err(|why| match self.forward_in_the_way(listen) {
            Some(other) if why.kind() == ErrorKind::AddrInUse => already_forwarded(&other),
            _ => cannot_bind(&said, listen, &why),
        })?;
        let listener = Listener { kind: ListenerKind::Forward(to.clone()), idle, max_age };
        let bound = socket.local_addr().and_then(|at| self.open(socket, listener).map(|_| at));
        let listen =
            bound.map_err(|why| ConfigError::Arguments(format!("{said}: {}: try again later", in_words(&why))))?;
        Ok(Forward { listen, to: to.into(), idle: Some(idle), max_age: Some(max_age), class })
    }

    /// The forward that has the port of this address already.
    fn forward_in_the_way(&self, listen: SocketAddr) -> Option<Forward> {
        let clashes = |own: SocketAddr| {
            let any = own.ip().is_unspecified() || listen.ip().is_unspecified();
            own.port() == listen.port() && (own.ip() == listen.ip() || any)
        };
        self.forwards().into_iter().map(|(_, forward)| forward).find(|forward| clashes(forward.listen))
    }

    /// Removes the forward at this address and closes its flows. None if there is no such forward.
    pub fn remove(&self, listen: SocketAddr) -> Option<Forward> {
        let found = self.forwards().into_iter().find(|(_, forward)| forward.listen == listen);
        let (id, forward) = found?;
        self.close(id);
        Some(forward)
    }

    /// All forwards, oldest first, by the worker's id for them.
    pub fn forwards(&self) -> Vec<(ListenerId, Forward)> {
        let of = |open: &Open| match &open.listener.kind {
            ListenerKind::Forward(to) => {
                let listen = open.drops.socket.local_addr().ok()?;
                let (idle, max_age) = (Some(open.listener.idle), Some(open.listener.max_age));
                Some((open.id, Forward { listen, to: to.clone().into(), idle, max_age, class: None }))
            }
            ListenerKind::Pymix | ListenerKind::Socks(_) => None,
        };
        self.state().open.iter().filter_map(of).collect()
    }

    /// Makes the worker listen at a socket.
    ///
    /// # Errors
    /// No descriptor is left, there are too many listeners, or too many commands wait for the worker.
    pub fn open(&self, socket: UdpSocket, listener: Listener) -> std::io::Result<ListenerId> {
        self.open_for(socket, listener, None)
    }

    fn open_for(
        &self,
        socket: UdpSocket,
        listener: Listener,
        refused: Option<Arc<RefusedFlows>>,
    ) -> std::io::Result<ListenerId> {
        let mut state = self.state();
        if state.open.len() >= LISTENERS_MAX {
            return Err(std::io::Error::other(format!("this entry listens at {LISTENERS_MAX} sockets already")));
        }
        if self.commands().len() >= WAITING_COMMANDS_MAX {
            return Err(std::io::Error::other(format!("{WAITING_COMMANDS_MAX} commands wait for this entry already")));
        }
        let drops = DropCounter::new(socket.try_clone()?);
        let id = ListenerId(state.next);
        state.next += 1;
        state.open.push(Open { id, drops, listener: listener.clone(), refused });
        self.send(Command::Listen { id, socket, listener });
        Ok(id)
    }

    /// The address of an open socket, and whether it is a forward.
    pub fn find(&self, id: ListenerId) -> Option<(SocketAddr, bool)> {
        let state = self.state();
        let Open { drops, listener, .. } = state.open.iter().find(|open| open.id == id)?;
        Some((drops.socket.local_addr().ok()?, matches!(listener.kind, ListenerKind::Forward(_))))
    }

    /// Makes the worker close a socket.
    pub fn close(&self, id: ListenerId) {
        let mut state = self.state();
        if let Some(at) = state.open.iter().position(|open| open.id == id) {
            let gone = state.open.remove(at);
            state.gone += gone.drops.read();
            self.send(Command::Unlisten { id });
        }
    }

    /// Closes all sockets when the node ends, so that the system reports an error to those who still send there.
    /// Tunnels learn it first, because another program may take the ports as soon as they are closed.
    pub fn close_all(&self) {
        let mut state = self.state();
        for Open { drops, listener, refused, .. } in &state.open {
            let (Some(refused), ListenerKind::Socks(association)) = (refused, &listener.kind) else { continue };
            refused.end();
            if let Association { client, port: Some(port) } = association {
                let _ = drops.socket.send_to(WAKE, (*client, *port));
            }
        }
        state.gone += state.drops();
        state.open.clear();
        self.commands().clear();
    }

    fn socks(&self, association: Association) -> Listener {
        let Times { idle, max_age } = self.times;
        Listener { kind: ListenerKind::Socks(association), idle, max_age }
    }

    /// Opens a socket for an association at this address of the host.
    ///
    /// # Errors
    /// No port or descriptor is left, or there are too many listeners.
    pub fn relay(&self, ip: IpAddr, association: Association) -> std::io::Result<Relay> {
        let socket = UdpSocket::bind((ip, 0))?;
        let at = socket.local_addr()?;
        let id = self.open(socket, self.socks(association))?;
        Ok(Relay { id, at, listeners: self.clone() })
    }

    /// The same for a tunnel of this process, which learns through `refused` what the exit refuses.
    ///
    /// # Errors
    /// As for [`Listeners::relay`].
    pub fn tunnel(&self, ip: IpAddr, association: Association, refused: Arc<RefusedFlows>) -> std::io::Result<Relay> {
        let socket = UdpSocket::bind((ip, 0))?;
        let at = socket.local_addr()?;
        let id = self.open_for(socket, self.socks(association), Some(refused))?;
        Ok(Relay { id, at, listeners: self.clone() })
    }

    /// Hands a refusal to the tunnel that listener `id` is the relay of, if it is one.
    pub fn refuse(&self, id: ListenerId, client: SocketAddr, destination: &str, status: Status) {
        let state = self.state();
        let Some(open) = state.open.iter().find(|open| open.id == id) else { return };
        if let (Some(refused), Ok(destination)) = (&open.refused, destination.parse()) {
            refused.push(RefusedFlow { destination, status });
            // Every call of the tunnel checks for refused flows first. A call that already waits is woken.
            let _ = open.drops.socket.send_to(WAKE, client);
        }
    }

    fn send(&self, command: Command) {
        self.commands().push_back(command);
        self.control.wake();
    }

    /// The kernel's drops at all of them.
    pub fn kernel_drops(&self) -> u64 {
        let state = self.state();
        state.gone + state.drops()
    }
}

/// The message for a forward at the port of another one of this entry.
fn already_forwarded(other: &Forward) -> ConfigError {
    let Forward { listen, to, .. } = other;
    ConfigError::Arguments(format!(
        "{listen} is already forwarded to {to}: remove that forward first (`eddy forward remove --config FILE {listen}`), \
         or use another port"
    ))
}

/// Checks that a name fits in one cell of the chain's class, without which its flow could not be opened (SPEC 3.12).
///
/// # Errors
/// It does not fit.
pub fn fits(payload: &Payload, to: &Destination) -> Result<(), ConfigError> {
    let (Destination::Name(name, _), over) = (to, to.open_len().saturating_sub(payload.bytes)) else {
        return Ok(());
    };
    if over == 0 {
        return Ok(());
    }
    Err(ConfigError::Arguments(format!(
        "the name {name} is too long for a cell of class {}: at most {} bytes fit; use the address instead, or a chain of \
         a larger class",
        payload.class,
        name.len() - over
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::class_name::tests::payload_of;
    use dataplane::sys;
    use wire::cell::Class;

    const TIMES: Times = Times { idle: Duration::from_secs(300), max_age: Duration::from_millis(250) };

    fn pymix() -> Listener {
        Listener { kind: ListenerKind::Pymix, idle: TIMES.idle, max_age: TIMES.max_age }
    }

    fn listeners() -> Listeners {
        let first = [(UdpSocket::bind("127.0.0.1:0").unwrap(), pymix())];
        let waker = Arc::new(Waker::new().unwrap());
        Listeners::new(payload_of(Class::S), TIMES, &first, waker).unwrap()
    }

    #[test]
    fn closing_all_ends_and_wakes_tunnels() {
        let listeners = listeners();
        let tunnel = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = tunnel.local_addr().unwrap();
        let refused = Arc::<RefusedFlows>::default();
        let association = Association { client: at.ip(), port: Some(at.port()) };
        let relay = listeners.tunnel(at.ip(), association, refused.clone()).unwrap();
        assert!(!refused.has_ended());
        listeners.close_all();
        assert!(refused.has_ended());
        let mut buffer = [0; 100];
        let (len, from) = tunnel.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (WAKE, relay.address()));
    }

    #[test]
    fn added_and_removed_forwards_are_sent_to_the_worker() {
        let listeners = listeners();
        assert!(listeners.forwards().is_empty(), "a pymix port is not a forward");
        let added = listeners.add("127.0.0.1:0=192.0.2.7:5000,idle_s=30,max_age_ms=80".parse().unwrap()).unwrap();
        assert_eq!((added.idle, added.max_age), (Some(Duration::from_secs(30)), Some(Duration::from_millis(80))));
        let Some(Command::Listen { id: ListenerId(1), socket, listener }) = listeners.next_command() else {
            panic!("no command")
        };
        assert_eq!(socket.local_addr().unwrap(), added.listen);
        assert_eq!((Some(listener.idle), Some(listener.max_age)), (added.idle, added.max_age));
        assert_eq!(listeners.forwards(), [(ListenerId(1), added.clone())]);
        let again = Forward { listen: added.listen, ..added.clone() };
        let refused = listeners.add(again).unwrap_err().to_string();
        let wanted = format!("{} is already forwarded to 192.0.2.7:5000: remove that forward first", added.listen);
        assert!(refused.starts_with(&wanted), "{refused}");
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        let taken = Forward { listen: other.local_addr().unwrap(), ..added.clone() };
        let refused = listeners.add(taken).unwrap_err().to_string();
        assert!(refused.contains("another process uses this port"), "{refused}");
        assert_eq!(listeners.remove(added.listen), Some(added.clone()));
        assert!(matches!(listeners.next_command(), Some(Command::Unlisten { id: ListenerId(1) })));
        assert_eq!(listeners.remove(added.listen), None);
        // The worker closes its socket, too.
        drop(socket);
        assert_eq!(listeners.add(added.clone()).unwrap(), added);
    }

    #[test]
    fn commands_for_the_worker_are_bounded() {
        let listeners = listeners();
        let open = || listeners.open(UdpSocket::bind("127.0.0.1:0").unwrap(), pymix());
        // Each pair leaves two commands that control does not take.
        while listeners.commands().len() < WAITING_COMMANDS_MAX - 2 {
            listeners.close(open().unwrap());
        }
        let last = [open().unwrap(), open().unwrap()];
        let refused = open().unwrap_err().to_string();
        assert!(refused.contains("1024 commands wait"), "{refused}");
        last.into_iter().for_each(|id| listeners.close(id));
        assert_eq!(listeners.commands().len(), WAITING_COMMANDS_MAX + 2, "a socket can always be closed");
        while listeners.next_command().is_some() {}
        open().unwrap();
    }

    #[test]
    fn kernel_drops_of_closed_sockets_stay_counted() {
        let listeners = listeners();
        let added = listeners.add("127.0.0.1:0=192.0.2.7:5000".parse().unwrap()).unwrap();
        let Some(Command::Listen { socket, .. }) = listeners.next_command() else { panic!("no command") };
        sys::size_receive_buffer(&socket, 4096).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        (0..100).for_each(|_| _ = sender.send_to(&[0; 1000], added.listen).unwrap());
        let dropped = listeners.kernel_drops();
        assert!(dropped > 0);
        listeners.remove(added.listen).unwrap();
        assert_eq!(listeners.kernel_drops(), dropped);
    }

    #[test]
    fn name_too_long_for_a_cell_is_refused_with_the_limit() {
        let listeners = listeners();
        let long = ["a23456789."; 20].concat();
        let said = listeners.add(format!("127.0.0.1:0={long}org:9").parse().unwrap()).unwrap_err().to_string();
        let longest: usize = said.split(' ').find_map(|word| word.parse().ok()).unwrap();
        let name = |len: usize| Destination::Name(long[..len].into(), 9);
        let payload = payload_of(Class::S);
        assert!(fits(&payload, &name(longest)).is_ok() && fits(&payload, &name(longest + 1)).is_err());
    }
}
