//! Asks a server through a chain and prints its answer. Blocking.
//!
//! Its arguments are the chain's public file, IP:PORT or NAME:PORT of a server that answers datagrams, and the
//! question. To try it with an echo server on port 7 of this host, start a chain, which prints the path of its
//! `chain.toml`:
//!
//! ```sh
//! eddy chain --stay
//! ```
//!
//! Then, in another terminal:
//!
//! ```sh
//! cargo run --release -p eddy-node --example echo -- /tmp/eddy-chain-XXXXXX/chain.toml 127.0.0.1:7 'anybody there?'
//! ```

use std::io::ErrorKind;
use std::time::Duration;

use anyhow::bail;
use eddy_node::{Destination, Entry, UdpTunnel};

/// How long to wait for an answer before asking again: any datagram may be lost.
const TIMEOUT: Duration = Duration::from_secs(5);
const ATTEMPTS: usize = 3;

/// Sends `question` until `server` answers. Returns the sender and the answer.
pub fn ask(entry: &Entry, server: &Destination, question: &[u8]) -> anyhow::Result<(Destination, Vec<u8>)> {
    let tunnel = UdpTunnel::open(entry)?;
    tunnel.set_read_timeout(Some(TIMEOUT))?;
    let mut answer = vec![0; entry.max_datagram_len()];

    for _ in 0..ATTEMPTS {
        tunnel.send_to(question, server)?;
        match tunnel.recv_from(&mut answer) {
            Ok((len, from)) => {
                answer.truncate(len);
                return Ok((from, answer));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // For example: the exit's policy refuses the server.
            Err(error) => return Err(error.into()),
        }
    }
    bail!("{server} did not answer {ATTEMPTS} datagrams")
}

#[allow(dead_code, reason = "a test includes this file")]
fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [chain, server, question] = &arguments[..] else {
        bail!("usage: echo CHAIN.toml HOST:PORT QUESTION, e.g. echo chain.toml 192.0.2.7:7 'anybody there?'")
    };
    let entry = Entry::builder().chain_file(chain).start()?;
    entry.wait_ready(Duration::from_secs(10))?;

    let (from, answer) = ask(&entry, &server.parse()?, question.as_bytes())?;
    println!("{from}: {}", String::from_utf8_lossy(&answer));
    entry.shutdown()?;
    Ok(())
}
