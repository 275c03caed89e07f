//! A question to a server through a chain, by an entry in this process.
//!
//! It takes an entry's configuration as `eddy init` writes it, IP:PORT or NAME:PORT of a server that answers datagrams,
//! and the question. To try it with a server of this host:
//!
//! ```sh
//! eddy init demo
//! for mix in 1 2 3; do eddy mix --config demo/mix$mix.toml & done
//! eddy exit --config demo/exit.toml --allow 127.0.0.0/8 &
//! cargo run --release --example channel -- demo/entry.toml 127.0.0.1:7 'is anybody there?'
//! ```

use std::path::Path;
use std::time::Duration;

use eddy_node::client::{Channel, Destination, Entry};

/// How long to wait for an answer before asking again: no datagram is certain to arrive.
const PATIENCE: Duration = Duration::from_secs(5);
/// Then the server is taken for silent.
const TRIES: usize = 3;

/// Sends `question` until `server` answers it. The answer, and where it came from.
pub fn ask(entry: &Entry, server: &Destination, question: &[u8]) -> anyhow::Result<(Destination, Vec<u8>)> {
    let channel = Channel::open(entry)?;
    channel.set_read_timeout(Some(PATIENCE))?;
    let mut answer = vec![0; entry.longest()];
    for _ in 0..TRIES {
        channel.send_to(question, server)?;
        if let Ok((len, from)) = channel.recv_from(&mut answer) {
            answer.truncate(len);
            return Ok((from, answer));
        }
    }
    anyhow::bail!("{server} does not answer: the entry's report says where the questions went")
}

#[allow(dead_code, reason = "a test includes this file")]
fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, server, words] = &arguments[..] else {
        anyhow::bail!("write ENTRY.toml DEST WORDS, for example: entry.toml 192.0.2.7:7 'is anybody there?'")
    };
    let entry = Entry::start(Path::new(config))?;
    let asked = ask(&entry, &server.parse()?, words.as_bytes());
    let report = entry.stop()?;
    match asked {
        Ok((from, answer)) => println!("{from}: {}", String::from_utf8_lossy(&answer)),
        Err(why) => {
            eprintln!("{report:#?}");
            return Err(why);
        }
    }
    Ok(())
}
