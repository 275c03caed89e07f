//! SOCKS5 for UDP (RFC 1928, RFC 1929): the TCP side of associations.
//!
//! A client connects, authenticates and requests UDP ASSOCIATE. The answer is the address of a relay: a UDP socket of
//! its own at the entry, which exists as long as that connection. The entry handles the datagrams of the relay
//! ([`dataplane::entry::Listener`]), and the exit resolves names. CONNECT and BIND are refused with 0x07, because eddy
//! does not carry TCP.
//!
//! Clients without a name and password are served on loopback only. fast-socks5 implements the protocol, on a tokio
//! runtime of one thread.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dataplane::entry::Association;
use fast_socks5::server::{
    NoAuthentication, PasswordAuthentication, Socks5ServerProtocol, SocksServerError, StandardAuthentication,
    StandardAuthenticationStarted, states,
};
use fast_socks5::util::target_addr::TargetAddr;
use fast_socks5::{ReplyError, Socks5Command};
use socket2::{SockRef, TcpKeepalive};
use subtle::ConstantTimeEq;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::runtime::listeners::Listeners;
use crate::runtime::log::Trouble;

/// Names and passwords for ports that are not on loopback.
pub type Users = BTreeMap<String, Zeroizing<String>>;

/// Most connections; more wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;
/// Longest time that a client may take for its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence before TCP keepalive probes, which find clients that vanished.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);

/// The SOCKS thread. It ends, with all associations, when this is dropped.
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    users: Users,
    listeners: Listeners,
    room: Semaphore,
    started: Instant,
    /// Relays that could not be opened, and requests for TCP. Any client can cause both.
    failures: Mutex<Trouble>,
    tcp_requests: Mutex<Trouble>,
}

impl Shared {
    /// True if a line about this trouble is due.
    fn may_log(&self, trouble: &Mutex<Trouble>) -> bool {
        trouble.lock().unwrap_or_else(PoisonError::into_inner).occurs(self.started.elapsed())
    }
}

/// Serves SOCKS clients at these sockets.
///
/// # Errors
/// No thread or no descriptors left.
pub fn serve(sockets: Vec<TcpListener>, users: Users, listeners: Listeners) -> io::Result<Server> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let sockets = {
        let _inside = runtime.enter();
        let adopt = |socket: TcpListener| {
            socket.set_nonblocking(true)?;
            tokio::net::TcpListener::from_std(socket)
        };
        sockets.into_iter().map(adopt).collect::<io::Result<Vec<_>>>()?
    };
    let (stop, stopped) = oneshot::channel();
    let shared = Arc::new(Shared {
        users,
        listeners,
        room: Semaphore::new(CONNECTIONS_MAX),
        started: Instant::now(),
        failures: Mutex::default(),
        tcp_requests: Mutex::default(),
    });
    let thread = std::thread::Builder::new().name("socks".into()).spawn(move || {
        runtime.block_on(async {
            for socket in sockets {
                tokio::spawn(accept(socket, shared.clone()));
            }
            let _ = stopped.await;
        });
        // Dropping the runtime ends every connection and its relay.
    })?;
    Ok(Server { stop: Some(stop), thread: Some(thread) })
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(socket: tokio::net::TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok(room) = shared.room.acquire().await else { return };
        match socket.accept().await {
            Ok((stream, peer)) => {
                room.forget();
                let shared = shared.clone();
                tokio::spawn(async move {
                    if let Err(why) = converse(stream, peer, &shared).await {
                        tracing::debug!("SOCKS client: {why}");
                    }
                    shared.room.add_permits(1);
                });
            }
            // No descriptor is left; the client waits.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Why a connection ended early.
#[derive(Debug, thiserror::Error)]
enum ConversationError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Protocol(#[from] SocksServerError),
}

/// Serves one connection until it ends.
async fn converse(stream: TcpStream, peer: SocketAddr, shared: &Shared) -> Result<(), ConversationError> {
    let (local, client) = (stream.local_addr()?, peer.ip().to_canonical());
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_AFTER / 4);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    stream.set_nodelay(true)?;

    let asked = timeout(REQUEST_TIMEOUT, async {
        match authenticate(stream, local.ip(), &shared.users).await? {
            Some(opened) => Ok(Some(opened.read_command().await?)),
            None => Ok::<_, ConversationError>(None),
        }
    });
    let Ok(asked) = asked.await else { return Ok(()) };
    let Some((asked, command, target)) = asked? else { return Ok(()) };
    if !matches!(command, Socks5Command::UDPAssociate) {
        if shared.may_log(&shared.tcp_requests) {
            let command = if matches!(command, Socks5Command::TCPBind) { "BIND" } else { "CONNECT" };
            tracing::warn!(
                command,
                "refused {command} of a SOCKS client: eddy carries UDP only (UDP ASSOCIATE); exclude TCP from this proxy \
                 in the program, or send TCP through a WireGuard inside a forward"
            );
        }
        return Ok(asked.reply_error(&ReplyError::CommandNotSupported).await?);
    }

    let association = Association { client, port: source_port(&target, client) };
    let relay = match shared.listeners.relay(local.ip(), association) {
        Ok(relay) => relay,
        Err(why) => {
            if shared.may_log(&shared.failures) {
                tracing::warn!("cannot open a relay for a SOCKS client: {why}");
            }
            return Ok(asked.reply_error(&ReplyError::GeneralFailure).await?);
        }
    };

    let at = relay.address();
    let mut stream = asked.reply_success(SocketAddr::new(at.ip().to_canonical(), at.port())).await?;
    // The relay lives until the client closes the connection.
    let mut ignored = [0; 256];
    while stream.read(&mut ignored).await.is_ok_and(|len| len > 0) {}
    Ok(())
}

/// Authenticates a client. On loopback every client is accepted, elsewhere a name and its password are required.
/// `None`: the client was refused.
async fn authenticate(
    stream: TcpStream,
    local: IpAddr,
    users: &Users,
) -> Result<Option<Socks5ServerProtocol<TcpStream, states::Authenticated>>, SocksServerError> {
    let loopback = local.to_canonical().is_loopback();
    let methods: [StandardAuthentication; 2] = [
        StandardAuthentication::NoAuthentication(NoAuthentication),
        StandardAuthentication::PasswordAuthentication(PasswordAuthentication),
    ];
    match Socks5ServerProtocol::start(stream).negotiate_auth(&methods[usize::from(!loopback)..]).await? {
        StandardAuthenticationStarted::NoAuthentication(opened) => Ok(Some(Socks5ServerProtocol::finish_auth(opened))),
        StandardAuthenticationStarted::PasswordAuthentication(asked) => {
            let (name, password, asked) = asked.read_username_password().await?;
            // Some programs send a name to every server.
            if loopback || knows(users, &name, &Zeroizing::new(password)) {
                Ok(Some(Socks5ServerProtocol::finish_auth(asked.accept().await?)))
            } else {
                asked.reject().await?;
                Ok(None)
            }
        }
    }
}

/// True if the name and password are those of a user. An unknown name takes as long as a known one.
fn knows(users: &Users, name: &str, password: &str) -> bool {
    let (known, expected) = users.get(name).map_or((false, ""), |password| (true, password.as_str()));
    bool::from(password.as_bytes().ct_eq(expected.as_bytes())) && known
}

/// The port from which a client announces to send (RFC 1928, 4: DST.ADDR and DST.PORT of UDP ASSOCIATE). Many clients
/// write zeros, and some write their destination.
fn source_port(target: &TargetAddr, client: IpAddr) -> Option<u16> {
    match target {
        TargetAddr::Ip(address) => {
            let ip = address.ip().to_canonical();
            (address.port() != 0 && (ip.is_unspecified() || ip == client)).then_some(address.port())
        }
        TargetAddr::Domain(..) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[test]
    fn a_client_may_say_which_port_it_sends_from() {
        let client: IpAddr = "192.0.2.1".parse().unwrap();
        let port = |text: &str| source_port(&TargetAddr::Ip(text.parse().unwrap()), client);
        assert_eq!(port("0.0.0.0:0"), None);
        assert_eq!(port("0.0.0.0:7"), Some(7));
        assert_eq!(port("192.0.2.1:7"), Some(7));
        assert_eq!(port("[::ffff:192.0.2.1]:7"), Some(7));
        assert_eq!(port("192.0.2.2:7"), None, "somebody's destination");
        assert_eq!(source_port(&TargetAddr::Domain("a.example".into(), 7), client), None);
    }

    /// The answer to these bytes from a server whose address is `local`.
    fn heard(local: &str, users: &Users, said: &'static [u8]) -> (Vec<u8>, bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (server, _) = listener.accept().await.unwrap();
            client.write_all(said).await.unwrap();
            let let_in = authenticate(server, local.parse().unwrap(), users).await.is_ok_and(|opened| opened.is_some());
            let mut heard = Vec::new();
            client.read_to_end(&mut heard).await.unwrap();
            (heard, let_in)
        })
    }

    #[test]
    fn strangers_need_a_name_and_its_password() {
        let users = Users::from([("alice".to_owned(), Zeroizing::new("secret".to_owned()))]);
        let at = |local: &str, said| heard(local, &users, said);
        assert_eq!(at("192.0.2.1", b"\x05\x02\x00\x02\x01\x05alice\x06secret"), (vec![5, 2, 1, 0], true));
        let (said, let_in) = at("192.0.2.1", b"\x05\x01\x02\x01\x05alice\x06Secret");
        assert!(!let_in && said[..3] == [5, 2, 1] && said[3] != 0, "{said:?}");
        assert_eq!(at("192.0.2.1", b"\x05\x01\x00"), (vec![5, 0xff], false));
        for local in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(at(local, b"\x05\x02\x00\x02"), (vec![5, 0], true), "{local}");
            assert_eq!(at(local, b"\x05\x01\x02\x01\x05alice\x03any"), (vec![5, 2, 1, 0], true), "{local}");
        }
    }

    #[test]
    fn only_a_name_with_its_password_is_known() {
        let users = Users::from([("alice".to_owned(), Zeroizing::new("secret".to_owned()))]);
        assert!(knows(&users, "alice", "secret"));
        for (name, password) in [("alice", "secre"), ("alice", ""), ("bob", "secret"), ("bob", ""), ("", "")] {
            assert!(!knows(&users, name, password), "{name} {password}");
        }
    }
}
