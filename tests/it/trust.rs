//! Descriptors, epochs and keys of running nodes: what needs the identity, what a restart costs, what SIGHUP takes.

use std::collections::HashSet;
use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use rustix::process::{Pid, Signal, kill_process};

use crate::common::command::run;
use crate::common::nodes::{Nodes, Plan, until, while_receiving};

/// A chain whose epochs last ten seconds.
fn short_epochs() -> Nodes {
    Nodes::start(Plan { epoch_s: 10, ..Plan::default() })
}

fn beside(nodes: &Nodes, position: usize, ending: &str) -> PathBuf {
    nodes.config(position).with_extension(ending)
}

fn folder(nodes: &Nodes) -> &Path {
    nodes.config(0).parent().unwrap()
}

fn hang_up(nodes: &Nodes, position: usize) {
    kill_process(Pid::from_raw(nodes.pid(position) as i32).unwrap(), Signal::HUP).expect("it runs");
}

fn wait_for_line(nodes: &Nodes, position: usize, wanted: &str) {
    until(&format!("node {position} says {wanted:?}"), || {
        nodes.said(position).iter().any(|line| line.contains(wanted))
    });
}

fn epoch(nodes: &Nodes, position: usize) -> u64 {
    nodes.count(position, "/trust/epoch")
}

fn revision(nodes: &Nodes, position: usize, hop: usize) -> u64 {
    nodes.count(position, &format!("/trust/hops/{}/revision", hop - 1))
}

/// Every form in which a program may keep 32 bytes.
fn forms(seed: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
    vec![
        seed.to_vec(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
        STANDARD.encode(seed).into_bytes(),
        STANDARD_NO_PAD.encode(seed).into_bytes(),
    ]
}

#[test]
fn node_runs_and_restarts_without_its_identity() {
    let mut nodes = short_epochs();
    let identity = beside(&nodes, 1, "identity.key");
    let text = fs::read_to_string(&identity).unwrap();
    let seed = text.lines().find_map(|line| line.strip_prefix("identity = \"")).unwrap().trim_end_matches('"');
    let forms = forms(&STANDARD.decode(seed).unwrap());
    for position in 1..=nodes.exit() {
        fs::remove_file(beside(&nodes, position, "identity.key")).unwrap();
    }
    nodes.stop(1);
    nodes.run(1);
    nodes.assert_carries();
    let first = epoch(&nodes, 1);
    until("the next epoch begins", || epoch(&nodes, 1) > first);
    nodes.assert_carries();

    let contains = |bytes: &[u8]| forms.iter().any(|form| bytes.windows(form.len()).any(|part| part == &form[..]));
    assert!(contains(text.as_bytes()), "the search finds it where it is");
    let open = fs::read_dir(format!("/proc/{}/fd", nodes.pid(1))).unwrap().map(|file| file.unwrap().path());
    let files = open.filter(|path| path.metadata().is_ok_and(|metadata| metadata.is_file()));
    let own = ["key", "state", "desc", "toml"].map(|ending| beside(&nodes, 1, ending));
    for path in files.chain(own) {
        assert!(!contains(&fs::read(&path).unwrap()), "the seed of the identity is in {}", path.display());
    }
    nodes.end();
}

#[test]
fn state_of_a_killed_hop_is_whole_and_its_flows_resume() {
    let mut nodes = short_epochs();
    for position in 1..=nodes.exit() {
        nodes.kill(position);
        let state = fs::read(beside(&nodes, position, "state")).unwrap();
        assert_eq!(control::trust::State::read(&state).unwrap().hop.made, 0, "node {position} has drawn keys");
        nodes.run(position);
        until("it signs again", || nodes.status(position)["trust"]["can_sign"] == true);
        nodes.assert_carries();
    }
    nodes.end();
}

#[test]
fn descriptor_renewed_by_sighup_loses_no_datagram() {
    // Channels are replaced every other epoch: new ones need its keys, and an entry asks for news when it makes one.
    // That happens at least 2 s before they end, and a busy machine may need as long.
    let mut nodes = Nodes::start(Plan { epoch_s: 10, lifetime_s: 20, ..Plan::default() });
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    for socket in [&client, &nodes.sink] {
        socket.set_nonblocking(true).unwrap();
    }
    let (mut sent, mut answered, mut buffer) = (0u64, HashSet::new(), [0; 64]);
    let mut turn = |nodes: &Nodes, send: bool| {
        if send {
            client.send_to(&[b"n", &sent.to_be_bytes()[..]].concat(), nodes.forward()).unwrap();
            sent += 1;
        }
        while_receiving(&nodes.sink, &mut buffer, |bytes, from| _ = nodes.sink.send_to(bytes, from));
        while_receiving(&client, &mut buffer, |bytes, _| _ = answered.insert(bytes.to_vec()));
        (sent, answered.len() as u64)
    };

    let (first, old) = (epoch(&nodes, 0), revision(&nodes, 0, 1));
    assert!(run(folder(&nodes), "renew --identity mix1.identity.key mix1.desc").status.success());
    hang_up(&nodes, 1);
    wait_for_line(&nodes, 1, "took the descriptor of mix1 in ");
    let mut next = Instant::now();
    until("the descriptor has spread and three epochs have passed", || {
        // At most a datagram every 5 ms, and a look at the nodes every now and then.
        let due = Instant::now() >= next;
        if due {
            next = Instant::now() + Duration::from_millis(5);
        }
        let (sent, _) = turn(&nodes, due);
        sent % 64 == 1
            && nodes.positions().all(|position| revision(&nodes, position, 1) > old)
            && epoch(&nodes, 0) >= first + 3
    });
    let kernel_drops = || nodes.positions().map(|position| nodes.count(position, "/kernel_drops")).sum::<u64>();
    until("every datagram is answered, but for those that a kernel queue dropped", || {
        let (sent, answered) = turn(&nodes, false);
        answered + 2 * kernel_drops() >= sent
    });
    nodes.end();
}

#[test]
fn files_that_sighup_refuses_get_a_line_each_and_end_nothing() {
    let mut nodes = Nodes::start(Plan::default());
    let pids = nodes.pids();
    let dir = folder(&nodes).to_owned();
    // Of a node of another chain, garbage, and altered.
    assert!(run(&dir, "keygen --role mix --address 192.0.2.1 --out other").status.success());
    fs::copy(dir.join("other/node.desc"), dir.join("foreign.desc")).unwrap();
    fs::write(dir.join("garbage.desc"), "descriptor = \"AAAA\"\n").unwrap();
    let good = fs::read_to_string(dir.join("mix2.desc")).unwrap();
    let (start, text) = good.rsplit_once("descriptor = \"").unwrap();
    let mut bytes = STANDARD.decode(text.trim_end().trim_end_matches('"')).unwrap();
    bytes[40] ^= 1;
    fs::write(dir.join("altered.desc"), format!("{start}descriptor = \"{}\"\n", STANDARD.encode(bytes))).unwrap();
    hang_up(&nodes, 1);
    for wanted in [
        "foreign.desc: its identity is not that of a hop of this chain",
        "garbage.desc:1: the descriptor was changed or damaged",
        "the signature does not match",
        "reloaded: 0 new, 3 refused",
    ] {
        wait_for_line(&nodes, 1, wanted);
    }

    assert!(run(&dir, "renew --identity mix2.identity.key mix2.desc --revoke").status.success());
    hang_up(&nodes, 1);
    wait_for_line(&nodes, 1, "reloaded: 1 new, 3 refused");
    hang_up(&nodes, 1);
    wait_for_line(&nodes, 1, "chain.toml has an old descriptor of mix2; revision ");

    let chain = dir.join("chain.toml");
    let text = fs::read_to_string(&chain).unwrap();
    fs::write(&chain, text.replace("interval_s = 1", "interval_s = 2")).unwrap();
    fs::write(dir.join("mix1.key"), "noise = 1\n").unwrap();
    hang_up(&nodes, 1);
    wait_for_line(&nodes, 1, "kept the old chain file: ");
    wait_for_line(&nodes, 1, "chain.toml was changed: id says ");
    wait_for_line(&nodes, 1, "kept the old keys: ");
    nodes.assert_unharmed(&pids);
}
