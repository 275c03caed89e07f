//! Resolves the DNS names of the next hop, which its descriptor may list beside its addresses.
//!
//! Its resolver starts with the first question, because most next hops have none.

use std::net::SocketAddr;
use std::sync::Arc;

use dataplane::exit::QueryId;
use dataplane::sys::Waker;
use tracing::warn;

use super::resolver::Resolver;

/// One round of questions at a time; a new round discards the old one.
#[derive(Default)]
pub(super) struct NextNames {
    resolver: Option<Resolver>,
    /// Number of the last question.
    last: QueryId,
    /// Questions without an answer, with the port of each name.
    open: Vec<(QueryId, u16)>,
    found: Vec<SocketAddr>,
}

impl NextNames {
    /// Asks for these names.
    pub(super) fn ask(&mut self, names: Vec<(String, u16)>, waker: &Arc<Waker>) {
        if self.resolver.is_none() {
            match Resolver::start(None, waker.clone()) {
                Ok(resolver) => self.resolver = Some(resolver),
                Err(why) => {
                    warn!("cannot resolve the name of the next hop: {why}");
                    return;
                }
            }
        }
        self.open.clear();
        self.found.clear();
        for (name, port) in names {
            self.last = QueryId(self.last.0.wrapping_add(1));
            self.open.push((self.last, port));
            if let Some(resolver) = &self.resolver {
                resolver.ask(self.last, name.into());
            }
        }
    }

    /// The addresses of all names, as soon as the last answer has come.
    pub(super) fn resolved(&mut self) -> Option<Vec<SocketAddr>> {
        while let Some((query, addresses)) = self.resolver.as_ref().and_then(Resolver::answer) {
            let Some(at) = self.open.iter().position(|(open, _)| *open == query) else { continue };
            let (_, port) = self.open.remove(at);
            self.found.extend(addresses.into_iter().map(|ip| SocketAddr::new(ip, port)));
            if self.open.is_empty() {
                return Some(std::mem::take(&mut self.found));
            }
        }
        None
    }
}
