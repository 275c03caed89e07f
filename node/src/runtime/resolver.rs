//! Resolves names for the exit, with hickory-resolver on a thread of its own.
//!
//! The data plane has at most [`QUESTIONS_MAX`] open questions, and each gets one answer. Without the thread, and after
//! `DEADLINE`, it is empty: a slow name server must not keep the places of others. Addresses come in the order in
//! which they are to be tried (`address_order`). The data plane decides which of them may be used.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use dataplane::exit::{QUESTIONS_MAX, QueryId};
use dataplane::sys::Waker;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::sync::mpsc;

use crate::error::StartError;
use crate::runtime::address_order;

/// Addresses of a name that are considered.
const ADDRESSES_MAX: usize = 64;
/// The longest time that a question takes.
const DEADLINE: Duration = Duration::from_secs(2);

/// The addresses found for a question.
pub type Answer = (QueryId, Vec<IpAddr>);

/// The resolver thread. It ends some time after this is dropped: dropping does not wait for a slow name server.
pub struct Resolver {
    questions: mpsc::Sender<(QueryId, Box<str>)>,
    answers: Receiver<Answer>,
    refuse: SyncSender<Answer>,
}

impl Resolver {
    /// Starts the thread. It asks `server` or, without one, the name servers of /etc/resolv.conf. Each answer wakes
    /// `waker`.
    ///
    /// # Errors
    /// /etc/resolv.conf cannot be read, or the system refuses a thread.
    pub fn start(server: Option<SocketAddr>, waker: Arc<Waker>) -> Result<Resolver, StartError> {
        let system = || StartError::system("start the resolver");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system())?;
        let resolver = configured(server)?;

        let (questions, mut asked) = mpsc::channel::<(QueryId, Box<str>)>(QUESTIONS_MAX);
        let (answer, answers) = sync_channel(QUESTIONS_MAX);
        let refuse = answer.clone();

        let serve = move || {
            runtime.block_on(async {
                while let Some((query, name)) = asked.recv().await {
                    let (resolver, answer, waker) = (resolver.clone(), answer.clone(), waker.clone());
                    tokio::spawn(async move {
                        let found = addresses(&resolver, &name).await;
                        // There is room: the data plane has one open question for each place.
                        let _ = answer.try_send((query, found));
                        waker.wake();
                    });
                }
            });
        };
        std::thread::Builder::new().name("resolver".into()).spawn(serve).map_err(system())?;
        Ok(Resolver { questions, answers, refuse })
    }

    /// Asks for a name; never waits.
    pub fn ask(&self, query: QueryId, name: Box<str>) {
        if self.questions.try_send((query, name)).is_err() {
            let _ = self.refuse.try_send((query, Vec::new()));
        }
    }

    /// The next answer, if one has come.
    pub fn answer(&self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }
}

/// The addresses of a name, in the order in which they are to be tried. None if it has none, or nobody says so in time.
async fn addresses(resolver: &TokioResolver, name: &str) -> Vec<IpAddr> {
    let name = name.trim_end_matches('.');
    if let Ok(ip) = name.parse() {
        return vec![ip];
    }
    // A trailing dot: the name is whole, search domains do not apply.
    match tokio::time::timeout(DEADLINE, resolver.lookup_ip(format!("{name}."))).await {
        Ok(Ok(found)) => in_order(found.iter()),
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

/// Checks that an exit has a name server. Does not contact it.
///
/// # Errors
/// /etc/resolv.conf is needed and cannot be read.
pub fn check(server: Option<SocketAddr>) -> Result<(), StartError> {
    configured(server).map(drop)
}

fn configured(server: Option<SocketAddr>) -> Result<TokioResolver, StartError> {
    let mut builder = match server {
        Some(server) => {
            let mut connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
            connections.iter_mut().for_each(|connection| connection.port = server.port());
            let server = NameServerConfig::new(server.ip(), true, connections.into());
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
        None => TokioResolver::builder_tokio().map_err(|why| StartError::Resolver(why.to_string()))?,
    };
    // A lost datagram is sent again before the deadline.
    builder.options_mut().timeout = DEADLINE / 2;
    builder.build().map_err(|why| StartError::Resolver(why.to_string()))
}

/// The first of these addresses, in the order in which they are to be tried.
fn in_order(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = addresses.take(ADDRESSES_MAX).collect();
    address_order::sort(&mut addresses);
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorting_considers_a_bounded_number_of_addresses() {
        let many = (0..=255).map(|last| IpAddr::from([127, 0, 0, last]));
        assert_eq!(in_order(many).len(), ADDRESSES_MAX);
    }

    /// The clock of the test jumps to the next timer whenever nothing else happens.
    #[test]
    fn name_server_that_does_not_reply_costs_two_seconds() {
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let resolver = configured(Some(silent.local_addr().unwrap())).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let began = tokio::time::Instant::now();
            assert_eq!(addresses(&resolver, "name.example").await, Vec::<IpAddr>::new());
            assert!(began.elapsed() < 2 * DEADLINE, "{:?}", began.elapsed());
            assert_eq!(addresses(&resolver, "192.0.2.1").await, [IpAddr::from([192, 0, 2, 1])]);
        });
    }
}
