//! Resolves a name at a DNS server through a chain, so that neither sees the other. Async.
//!
//! `eddy chain --stay` starts a chain on this host and prints the path of its `chain.toml`.
//!
//! ```sh
//! cargo run --release -p eddy-node --features tokio --example dns -- chain.toml 9.9.9.9:53 example.org
//! ```

use std::io;
use std::time::Duration;

use anyhow::{Context, bail};
use eddy_node::{AsyncUdpTunnel, Destination, Entry};
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use tokio::time::timeout;

/// How long to wait for an answer before asking again: any datagram may be lost.
const TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 3;

async fn look_up(tunnel: &AsyncUdpTunnel, server: &Destination, name: &str) -> anyhow::Result<Message> {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name)?, RecordType::A));
    let (id, query) = (query.metadata.id, query.to_vec()?);

    let mut buffer = [0; 4096];
    for _ in 0..ATTEMPTS {
        tunnel.send_to(&query, server).await?;
        // A late answer to an earlier attempt has the same id, and is as good.
        while let Ok(received) = timeout(TIMEOUT, tunnel.recv_from(&mut buffer)).await {
            let (len, from) = received?;
            match Message::from_vec(&buffer[..len]) {
                Ok(answer) if from == *server && answer.metadata.id == id => return Ok(answer),
                _ => continue,
            }
        }
    }
    bail!("{server} did not answer {ATTEMPTS} queries")
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [chain, server, name] = &arguments[..] else {
        bail!("usage: dns CHAIN.toml IP:PORT NAME, e.g. dns chain.toml 9.9.9.9:53 example.org")
    };
    let server: Destination = server.parse()?;
    let entry = Entry::builder().chain_file(chain).channels(1).start()?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async {
        entry.wait_ready_async(Duration::from_secs(10)).await.map_err(io::Error::other)?;
        let tunnel = AsyncUdpTunnel::open(&entry)?;
        look_up(&tunnel, &server, name).await.context("no answer")
    })?;

    for record in &answer.answers {
        println!("{record}");
    }
    entry.shutdown()?;
    Ok(())
}
