//! `eddy chain` as people run it: every option that a chain must bear, as processes on loopback.

use std::net::UdpSocket;
use std::time::Duration;

use eddy_bench::load::{Load, run};
use serde_json::Value;

use crate::common::command::eddy;
use crate::common::process::{Demo, closed, tallies};

/// Runs `eddy chain --json` and returns exit code, last line and standard error.
fn chain(arguments: &[&str]) -> (Option<i32>, Value, String) {
    let output = eddy().args(["chain", "--json"]).args(arguments).output().expect("the command starts");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = stdout.lines().last().and_then(|line| serde_json::from_str(line).ok());
    (output.status.code(), last.unwrap_or(Value::Null), stderr)
}

fn passes(arguments: &[&str]) -> Value {
    let (code, report, stderr) = chain(arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {stderr}\n{report:#}");
    assert!(report["sent"].as_u64() > Some(0), "{report:#}");
    assert_eq!(report["sent"], report["delivered"], "{arguments:?}");
    assert_eq!(report["sent"], report["answered"], "{arguments:?}");
    closed(&report);
    report
}

fn has_ipv6() -> bool {
    let has = UdpSocket::bind("[::1]:0").is_ok();
    if !has {
        eprintln!("skipped: no IPv6 loopback here (sysctl net.ipv6.conf.lo.disable_ipv6=0 enables it)");
    }
    has
}

#[test]
fn the_demonstration_delivers_and_accounts_for_everything() {
    let report = passes(&[]);
    assert_eq!(report["sent"], 10);
    assert!(report["setup_ms"].as_u64().is_some() && report["rtt_us"]["p50"].as_u64() > Some(0));
    let roles: Vec<_> = report["nodes"].as_array().unwrap().iter().map(|node| node["role"].clone()).collect();
    assert_eq!(roles, ["entry", "mix", "mix", "mix", "exit"]);
}

#[test]
fn one_mix_and_seven_and_every_class() {
    passes(&["--mixes", "1"]);
    passes(&["--mixes", "7"]);
    passes(&["--class", "S"]);
    passes(&["--class", "S", "--mixes", "7"]);
    passes(&["--class", "M"]);
}

#[test]
fn ipv6() {
    if has_ipv6() {
        passes(&["--ipv6"]);
        passes(&["--ipv6", "--class", "M", "--mixes", "3"]);
    }
}

#[test]
fn a_threshold_of_five_strands_nothing() {
    passes(&["--mixing", "threshold:n=5", "--mixes", "2"]);
}

#[test]
fn payloads_of_every_length_behave() {
    for len in ["0", "1323", "1324", "4000"] {
        passes(&["--payload-len", len]);
    }
    let (code, report, stderr) = chain(&["--payload-len", "20000"]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("refused 10 datagrams of 20000 bytes") && stderr.contains("10560"), "{stderr}");
    closed(&report);
    assert_eq!(report["nodes"][0]["ledger"]["datagrams"]["forward"]["dropped"]["too-large"], 10);
}

#[test]
fn links_renewed_every_two_seconds_under_traffic_lose_nothing() {
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    let forward = format!("127.0.0.1:0={}", sink.local_addr().unwrap());
    let demo = Demo::start(&["--messages", "1", "--renew-after-s", "2", "--forward", &forward]);
    // Nodes that were started at once may have called twice; from here on nothing may be dropped.
    let dropped = |demo: &Demo| -> Vec<Value> {
        let nodes = (0..5).map(|position| demo.status(position));
        nodes.flat_map(|node| tallies(&node).map(|tally| tally["dropped"].clone()).collect::<Vec<_>>()).collect()
    };
    let before = dropped(&demo);
    let to = demo.forward_to(sink.local_addr().unwrap());
    let load = Load { to, flows: 10, rate: 300, len: 500, time: Duration::from_secs(9) };
    let outcome = run(&load, sink, |_| {}).unwrap();
    assert_eq!((outcome.sent, outcome.lost, outcome.reordered), (2700, 0, 0), "{outcome:?}");
    assert_eq!(dropped(&demo), before);
    let report = demo.end();
    closed(&report);
    for node in report["nodes"].as_array().unwrap() {
        assert!(node["handshakes"]["done"].as_u64() >= Some(4), "{node:#}");
    }
}

#[test]
fn a_pymix_client_gets_its_bare_answer_on_the_socket_it_sent_from() {
    let demo = Demo::start(&["--messages", "1", "--pymix", "127.0.0.1:0"]);
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    let mut request = vec![127, 0, 0, 1];
    request.extend_from_slice(&server.local_addr().unwrap().port().to_be_bytes());
    request.extend_from_slice(b"Hello");
    let mut buffer = [0; 2000];
    for _ in 0..3 {
        client.send_to(&request, demo.pymix()).unwrap();
        let (len, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"Hello");
        server.send_to(b"Got Message. Thanks!", from).unwrap();
        let (len, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (&b"Got Message. Thanks!"[..], demo.pymix()));
    }
    // A header alone is an empty datagram; less than a header, or port 0, is counted.
    client.send_to(&request[..6], demo.pymix()).unwrap();
    assert_eq!(server.recv_from(&mut buffer).unwrap().0, 0);
    client.send_to(&[127, 0, 0], demo.pymix()).unwrap();
    client.send_to(&[127, 0, 0, 1, 0, 0, 1], demo.pymix()).unwrap();
    client.send_to(&request, demo.pymix()).unwrap();
    assert_eq!(server.recv_from(&mut buffer).unwrap().0, 5);
    let report = demo.end();
    closed(&report);
    assert_eq!(report["nodes"][0]["ledger"]["datagrams"]["forward"]["dropped"]["bad-address"], 2);
}

#[test]
fn a_refused_destination_is_counted_and_costs_no_socket() {
    let demo = Demo::start(&["--messages", "1", "--pymix", "127.0.0.1:0"]);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    // A private address: the demonstration's exit admits loopback and the internet, and this goes nowhere.
    for _ in 0..200 {
        client.send_to(&[10, 255, 255, 1, 0, 9, 1], demo.pymix()).unwrap();
        let dropped = demo.status(0)["ledger"]["datagrams"]["forward"]["dropped"]["policy"].as_u64();
        if dropped > Some(0) {
            assert!(demo.status(4)["sockets"].as_u64() <= Some(1), "the demonstration's own flow has one");
            closed(&demo.end());
            return;
        }
    }
    panic!("the entry never heard of the refusal");
}
