//! Opens the flows of a run before it begins.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use dataplane::runner::Poller;
use dataplane::sys;

use super::receiver::each_datagram;
use super::{LOOK, Target};
use crate::load::header::{self, Header, Headers, Purpose};
use crate::udp;

/// Time limit for opening all flows.
const DEADLINE: Duration = Duration::from_secs(10);
/// When the flows that did not open are tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Flows that are opened at once: an exit accepts 64 of a channel.
const AT_ONCE: usize = 32;

/// Opens every flow, a few at a time. Returns the source address of each at the sink.
pub(super) fn all(
    clients: &[UdpSocket],
    target: &Target<'_>,
    headers: &Headers,
    interrupted: &AtomicBool,
) -> anyhow::Result<Vec<SocketAddr>> {
    let mut peers: Vec<Option<SocketAddr>> = vec![None; clients.len()];
    let mut buffers = udp::receive_buffers();
    let poller = Poller::new()?;
    poller.add(target.sink.as_fd(), 0)?;
    let deadline = Instant::now() + DEADLINE + target.delay;
    // With error reporting, a port without a listener is noticed at once.
    sys::report_errors(&clients[0], target.to.is_ipv6())?;

    let mut first = 0;
    while first < clients.len() {
        let some = first..clients.len().min(first + AT_ONCE);
        for flow in some.clone().filter(|flow| peers[*flow].is_none()) {
            let mut bytes = [0; header::LEN];
            headers.write(Header { purpose: Purpose::Hello, flow: flow as u32, number: 0, intended_ns: 0 }, &mut bytes);
            clients[flow].send_to(&bytes, target.to).with_context(|| format!("cannot send to {}", target.to))?;
        }

        let retry = Instant::now() + RETRY + target.delay;
        while peers[some.clone()].iter().any(Option::is_none) && Instant::now() < retry {
            poller.wait(Some(LOOK), |_| {});
            if let Ok(Some(why)) = clients[0].take_error() {
                bail!("no process listens at {}: {why}", target.to);
            }
            each_datagram(target.sink, &mut buffers, |bytes, from| {
                if let Some(Header { purpose: Purpose::Hello, flow, .. }) = headers.read(bytes)
                    && let Some(peer) = peers.get_mut(flow as usize)
                {
                    *peer = Some(from);
                }
            });
        }

        if interrupted.load(Ordering::Relaxed) {
            bail!("interrupted before all flows were open");
        }
        while peers.get(first).is_some_and(Option::is_some) {
            first += 1;
        }
        if Instant::now() > deadline {
            let (opened, all) = (peers.iter().flatten().count(), clients.len());
            let sink = target.sink.local_addr().map_or_else(|_| "the sink".into(), |sink| sink.to_string());
            bail!(
                "opened {opened} of {all} flows in {} s: check that {} forwards to {sink}, and that the exit allows it",
                DEADLINE.as_secs(),
                target.to,
            );
        }
    }
    Ok(peers.into_iter().flatten().collect())
}
