//! Forwards of a running entry: added, used, listed and removed with `eddy forward`.

use std::net::{SocketAddr, UdpSocket};
use std::process::Output;

use serde_json::Value;

use crate::common::command::{assert_mistake, complaint, eddy};
use crate::common::nodes::{PATIENCE, until};
use crate::common::process::{Demo, closed};

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn forward(arguments: &[&str]) -> Output {
    eddy().arg("forward").args(arguments).output().unwrap()
}

/// Adds a forward; where it listens.
fn add(demo: &Demo, forwarded: &str) -> SocketAddr {
    let output = forward(&["add", "--config", demo.config(0), forwarded]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said.split(' ').next().unwrap().parse().unwrap()
}

/// There and back.
fn carries(client: &UdpSocket, through: SocketAddr, server: &UdpSocket, what: &[u8]) {
    let mut buffer = [0; 2000];
    client.send_to(what, through).unwrap();
    let (len, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], what);
    server.send_to(b"back", from).unwrap();
    let (len, from) = client.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], from), (&b"back"[..], through));
}

#[test]
fn forwards_change_while_the_entry_runs() {
    let demo = Demo::start(&["--messages", "1", "--receivers", "1"]);
    let (client, first, second) = (socket(), socket(), socket());
    let to = |server: &UdpSocket| format!("127.0.0.1:0={}", server.local_addr().unwrap());
    let one = add(&demo, &to(&first));
    let other = add(&demo, &format!("{},idle_s=700", to(&second)));
    // One client through both is two flows; nothing of it is lost, an empty datagram least of all.
    carries(&client, one, &first, b"one");
    carries(&client, other, &second, b"");
    carries(&socket(), one, &first, &[7; 1300]);
    let listed = forward(&["list", "--json", "--config", demo.config(0)]);
    let listed: Vec<Value> = serde_json::from_slice(&listed.stdout).unwrap();
    let known = |at: SocketAddr| listed.iter().find(|one| one["listen"] == at.to_string()).unwrap();
    assert_eq!((listed.len(), &known(one)["idle_s"], &known(other)["idle_s"]), (3, &300.into(), &700.into()));
    let table = String::from_utf8(forward(&["list", "--config", demo.config(0)]).stdout).unwrap();
    assert!(table.contains(&other.to_string()) && table.contains("700 s"), "{table}");

    let flows = |position: usize| demo.status(position)["flows"].as_u64().unwrap();
    let before = (flows(0), flows(4));
    let removed = forward(&["remove", "--config", demo.config(0), &one.to_string()]);
    assert!(removed.status.success());
    until("the flows of the removed forward are closed, here and at the exit", || {
        (flows(0), flows(4)) == (before.0 - 2, before.1 - 2)
    });
    // The port is free again, and what it leads to may be another now.
    let again = add(&demo, &format!("{one}={}", second.local_addr().unwrap()));
    assert_eq!(again, one);
    carries(&client, again, &second, b"elsewhere");
    carries(&client, other, &second, b"as before");
    closed(&demo.end());
}

#[test]
fn bad_forward_commands_name_their_fix() {
    let demo = Demo::start(&["--messages", "1", "--receivers", "1"]);
    let entry = demo.config(0);
    let taken = demo.ready["forwards"][0]["listen"].as_str().unwrap();
    let refused = |what: &str, arguments: &[&str], wanted: &[&str]| assert_mistake(what, &forward(arguments), wanted);
    let both = forward(&["add", "--config", entry, "127.0.0.1:0=127.0.0.1:9", &format!("{taken}=127.0.0.1:9")]);
    let (code, said) = complaint(&both);
    assert_eq!(code, Some(2), "{said}");
    for part in
        [taken, "is already forwarded to 127.0.0.1:", "remove that forward first", "(the forward before it was added)"]
    {
        assert!(said.contains(part), "wanted {part:?} in {said}");
    }
    assert_eq!(String::from_utf8_lossy(&both.stdout).lines().count(), 1, "the forward that was added is printed");
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    let in_use = format!("{}=127.0.0.1:9", other.local_addr().unwrap());
    refused("a port in use", &["add", "--config", entry, &in_use], &["uses this port", "ss -ulpn"]);
    refused("a foreign address", &["add", "--config", entry, "192.0.2.1:9=127.0.0.1:9"], &["ip address"]);
    refused("no idle time", &["add", "--config", entry, "127.0.0.1:0=127.0.0.1:9,idle_s=0"], &["1 to 86400"]);
    refused("no option", &["add", "--config", entry, "127.0.0.1:0=127.0.0.1:9,fast"], &["idle_s=SECONDS"]);
    refused("no destination", &["add", "--config", entry, "127.0.0.1:0"], &["LISTEN=DEST"]);
    refused("no such forward", &["remove", "--config", entry, "127.0.0.1:1"], &["eddy forward list"]);
    refused("a mix", &["list", "--config", demo.config(1)], &["configures a mix"]);
    let text = std::fs::read_to_string(entry).unwrap();
    let silent = std::path::Path::new(entry).with_file_name("silent.toml");
    let lines = text.lines().filter(|line| !line.starts_with("commands")).collect::<Vec<_>>();
    std::fs::write(&silent, lines.join("\n")).unwrap();
    refused("no command socket", &["list", "--config", silent.to_str().unwrap()], &["commands = \"entry.cmd\""]);
    let config = entry.to_owned();
    drop(demo);
    let gone = forward(&["list", "--config", &config]);
    assert!(!gone.status.success());
}
