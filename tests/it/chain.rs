//! `eddy chain` as a user runs it: processes, sockets, exit codes.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv6Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use dataplane::socket::backend::{Calls, Io};
use rustix::process::Signal;
use serde_json::Value;

use crate::common::command::{complaint, eddy, io, run};
use crate::common::limit::Permit;
use crate::common::nodes::{PATIENCE, until};
use crate::common::process::{Demo, counted_by_time, tallies};
use crate::common::skipped;

/// Runs the demonstration with `--json`; its exit code, complaints and last line.
fn demo(options: &str) -> (Option<i32>, String, Value) {
    let io = if options.contains("--io") { String::new() } else { format!("--io {}", io()) };
    let output = run(Path::new("."), &format!("chain --json {io} {options}"));
    let (code, said) = complaint(&output);
    let text = String::from_utf8(output.stdout).unwrap();
    let last = text.lines().last().unwrap_or_else(|| panic!("{options}: no output, but: {said}"));
    (code, said, serde_json::from_str(last).unwrap())
}

/// Checks that everything was delivered and answered, and that every ledger of every node closes.
fn assert_whole(options: &str, messages: u64, mixes: usize) {
    let (code, said, json) = demo(options);
    assert_eq!(code, Some(0), "{options}: {said}");
    for name in ["sent", "delivered", "answered"] {
        assert_eq!(json[name], messages, "{options}: {name}");
    }
    assert_eq!(json["rtt_us"]["p50"].is_u64(), messages > 0, "{options}");
    assert_ledgers(&json, mixes);
}

fn assert_ledgers(json: &Value, mixes: usize) {
    let nodes = json["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), mixes + 2);
    for (i, node) in nodes.iter().enumerate() {
        assert_eq!(node["index"], i);
        let role = if i == 0 { "entry" } else { ["mix", "exit"][usize::from(i == mixes + 1)] };
        assert_eq!(node["role"], role);
        let units: &[&str] = if role == "mix" { &["cells"] } else { &["cells", "datagrams"] };
        for unit in units {
            for direction in ["forward", "backward"] {
                assert_eq!(node["ledger"][unit][direction]["closed"], true, "{role} {i} {unit} {direction}");
            }
        }
        counted_by_time(node, f64::INFINITY);
        assert!(node["mean_release"].is_f64());
    }
}

#[test]
fn chain_delivers_and_accounts_for_everything() {
    assert_whole("", 10, 3);
}

#[test]
fn report_has_mixing_and_node_latency_apart() {
    let (code, said, json) = demo("--mixes 2 --mixing timed:t=20ms --messages 30 --rate 200");
    assert_eq!(code, Some(0), "{said}");
    for node in json["nodes"].as_array().unwrap() {
        counted_by_time(node, 20_000.0);
        let forward = &node["latency_us"]["forward"];
        assert!(forward["node"]["count"].as_u64() >= Some(1), "{node:#}");
        if node["role"] == "mix" {
            // Thirty cells at any time of the grid: half do not all wait for nothing.
            assert!(forward["pool"]["p50"].as_f64() > Some(0.0), "{forward:#}");
        }
    }
}

#[test]
fn calls_in_a_paced_class_are_compared_with_a_free_one() {
    let (code, said, json) = demo("--class voice:rounds=256 --mixes 1 --users 4 --seconds 2");
    // On a busy machine much may be lost, but everything is accounted for.
    assert!(code == Some(0) || said.contains("did not work"), "{code:?} {said}");
    let [paced, free, direct] = &json["results"].as_array().unwrap()[..] else { panic!("{json:#}") };
    assert_eq!((&paced["class"], &free["class"]), (&"voice".into(), &"S".into()));
    assert_eq!((&paced["constant"], &free["constant"]), (&true.into(), &false.into()));
    assert_eq!(paced["sent"], free["sent"], "the same calls");
    assert_eq!((&direct["class"], &direct["sent"]), (&"direct".into(), &free["sent"]));
    assert!(direct["constant"].is_null() && direct["mos"]["mean"].as_f64() > Some(1.0), "{direct:#}");
    for class in [paced, free] {
        let (sent, received) = (class["sent"].as_u64(), class["received"].as_u64());
        assert!(sent <= Some(400) && Some(1) <= sent && received <= sent && class["mos"]["mean"].is_f64(), "{class:#}");
        // Whom it found depends on the machine; of two calls it guesses half.
        let found = &class["attacker"];
        assert!(found["calls"] == 2 && found["matched"].as_u64() <= Some(2), "{found:#}");
        assert!(found["p"].as_f64() > Some(0.0) && found["p"].as_f64() <= Some(1.0), "{found:#}");
        assert!(received > Some(0), "{class:#}");
    }
    // In a round one of each user: there are no loops. On a busy machine setups fail for the second batch.
    let [fewest, most] = ["fewest", "most"].map(|key| paced["cells"][key].as_u64().unwrap());
    assert!(most == 4 && (1..=most).contains(&fewest), "{fewest} to {most}");
    let [fewest, most] = ["fewest", "most"].map(|key| free["cells"][key].as_u64().unwrap());
    assert!(1 <= fewest && fewest <= most, "{fewest} to {most}");
    let rounds = &paced["rounds"];
    assert!(rounds["released"].as_u64() > Some(0) && rounds["uneven"] == 0, "{rounds:#}");
    let nodes = json["nodes"].as_array().unwrap();
    let roles: Vec<&str> = nodes.iter().map(|node| node["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["entry", "entry", "entry", "entry", "mix", "exit"]);
    for node in nodes {
        for class in ["voice", "S"] {
            tallies(&node["classes"][class]).for_each(|tally| assert_eq!(tally["closed"], true, "{node:#}"));
        }
    }
}

#[test]
fn chain_prints_messages_and_a_verdict_on_one_screen() {
    let output = run(Path::new("."), &format!("chain --io {}", io()));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().count() < 24 && text.lines().all(|line| line.chars().count() <= 80), "{text}");
    for line in ["10 sent, 10 delivered, 10 answered", "Round trip p50", "Dropped: ", "Ledgers of all 5 nodes close: "]
    {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[test]
fn chain_verbose_prints_the_tables_of_every_node() {
    let output = run(Path::new("."), &format!("chain --verbose --io {} --mixes 1 --messages 3", io()));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    for part in ["mixing p50", "node p50", "Datagrams", "Releases", "State"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let entry = text.split("State\n").nth(1).and_then(|state| state.lines().find(|line| line.starts_with("entry")));
    let entry: Vec<&str> = entry.unwrap().split_whitespace().collect();
    assert_eq!(entry[1..3], ["1", "4"], "links and channels before the end: {text}");
    assert!(!text.contains("refused by control"), "a node that is still starting is not a refusal: {text}");
}

#[test]
fn chain_that_stays_prints_forwards_asked_for_and_warnings() {
    let _permit = Permit::wait();
    let mut chain = eddy()
        .args(["chain", "--stay", "--lifeline", "--mixes", "1", "--messages", "1", "--io", &io().to_string()])
        .args(["--deny", "127.0.0.9/32", "--forward", "127.0.0.1:0=127.0.0.9:9"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let until = |pipe: &mut dyn BufRead, wanted: &str| {
        let mut text = String::new();
        for line in pipe.lines().map(Result::unwrap) {
            text += &(line + "\n");
            if text.contains(wanted) {
                return text;
            }
        }
        panic!("no {wanted:?} in {text}");
    };

    let mut stdout = BufReader::new(chain.stdout.take().unwrap());
    let text = until(&mut stdout, "Inspect a node");
    let forwards: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("forward ")).collect();
    assert_eq!(forwards.len(), 1, "{text}");
    assert!(forwards[0].ends_with("-> 127.0.0.9:9") && text.contains("MTU = "), "{text}");

    until(&mut stdout, "Test: 1 sent, 1 delivered");

    let listen = forwards[0].split_whitespace().next().unwrap();
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"denied", listen).unwrap();
    let mut stderr = BufReader::new(chain.stderr.take().unwrap());
    let warnings = until(&mut stderr, "the exit refused 127.0.0.9:9");
    assert!(warnings.lines().any(|line| line.starts_with("entry: ")), "{warnings}");
    // Its lifeline closes, and with it the chain.
    drop(chain.stdin.take());
    let (mut text, mut errors) = (String::new(), String::new());
    stdout.read_to_string(&mut text).unwrap();
    stderr.read_to_string(&mut errors).unwrap();
    assert!(text.contains("Ledgers of all 3 nodes close"), "{text}{errors}");
    let carried = text.lines().find(|line| line.starts_with("to destinations")).unwrap();
    assert_eq!(carried.split_whitespace().skip(2).collect::<Vec<_>>(), ["1", "0"], "what the program sent: {text}");
    assert!(text.contains("Test at the start: 1 sent, 1 delivered"), "{text}");
    chain.wait().unwrap();
}

#[test]
fn chain_of_1_to_7_mixes_carries_every_class() {
    assert_whole("--mixes 1 --class S --messages 5", 5, 1);
    assert_whole("--mixes 7 --class L --messages 5", 5, 7);
    assert_whole("--mixes 2 --class M --messages 5", 5, 2);
}

#[test]
fn payloads_of_0_to_8_fragments_arrive() {
    for len in [0, 1, 1323, 1324, 4000, 10_560] {
        assert_whole(&format!("--mixes 1 --messages 5 --payload-len {len}"), 5, 1);
    }
}

#[test]
fn every_io_backend_carries_traffic_with_and_without_gso() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for (wanted, has) in [(Io::Auto, "mmsg"), (Io::Mmsg, "mmsg"), (Io::Uring, "uring")] {
        if let (_, Some(why)) = Calls::new(wanted, &socket) {
            skipped(format!("{wanted}: {why}"));
            continue;
        }
        for offload in ["on", "off"] {
            let (code, said, json) = demo(&format!(
                "--io {wanted} --offload {offload} --mixes 2 --messages 400 --rate 4000 --payload-len 900"
            ));
            assert_eq!(code, Some(0), "{wanted}, {offload}: {said}");
            assert_eq!((&json["delivered"], &json["answered"]), (&400.into(), &400.into()));
            assert_ledgers(&json, 2);
            for node in json["nodes"].as_array().unwrap() {
                assert_eq!((&node["io"], &node["messages"]["gso"]), (&has.into(), &(offload == "on").into()));
            }
            let about =
                |line: &&str| line.contains("WARN") && ["GSO", "GRO", "io_uring"].iter().any(|of| line.contains(of));
            assert_eq!(said.lines().find(about), None, "{said}");
        }
    }
}

#[test]
fn threshold_pool_strands_no_cell() {
    assert_whole("--mixes 2 --mixing threshold:n=5 --messages 3", 3, 2);
}

#[test]
fn links_over_ipv6_carry_traffic() {
    if UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        skipped("needs IPv6 on loopback: sysctl -w net.ipv6.conf.lo.disable_ipv6=0");
        return;
    }
    assert_whole("--ipv6 --mixes 1", 10, 1);
}

#[test]
fn oversized_payload_is_refused_and_reported() {
    let (code, said, json) = demo("--mixes 1 --messages 4 --payload-len 20000");
    assert_eq!(code, Some(1));
    assert!(said.contains("the entry refused 4 datagrams of 20000 bytes (limit 10560)"), "{said}");
    assert_eq!(json["nodes"][0]["ledger"]["datagrams"]["forward"]["dropped"]["too-large"], 4);
    assert_eq!((&json["sent"], &json["delivered"]), (&Value::from(4), &Value::from(0)));
    assert_ledgers(&json, 1);
}

fn paths(list: &Value) -> Vec<PathBuf> {
    list.as_array().unwrap().iter().map(|path| path.as_str().unwrap().into()).collect()
}

#[test]
fn staying_chain_serves_until_a_signal() {
    let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = echo.local_addr().unwrap();
    let demo = Demo::start(&["--mixes", "1", "--messages", "2", "--pymix", "0", "--forward", &format!("0={to}")]);
    let ready = demo.ready.clone();
    let forwards = ready["forwards"].as_array().unwrap();
    assert_eq!(forwards.len(), 6);
    assert_eq!(forwards[5]["to"], to.to_string());

    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    for socket in [&client, &echo] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let mut buffer = [0; 64];
    let mut pymix = match to.ip() {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(_) => panic!("bound to IPv4"),
    };
    pymix.extend(to.port().to_be_bytes());
    pymix.extend(b"by pymix");
    let ways = [
        (&forwards[5]["listen"], b"by forward".to_vec(), &b"by forward"[..]),
        (&ready["pymix"][0], pymix, b"by pymix"),
    ];
    // Its own messages come first: a signal before their end would be a failure.
    until("the answers to its own messages are there", || {
        demo.status(0)["ledger"]["datagrams"]["backward"]["sent"].as_u64() >= Some(2)
    });
    for (listen, message, arrives) in ways {
        client.send_to(&message, listen.as_str().unwrap()).unwrap();
        let (len, from) = echo.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], arrives);
        echo.send_to(b"back", from).unwrap();
        let (len, _) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"back");
    }

    for config in paths(&ready["configs"]) {
        let asked = run(Path::new("."), &format!("status --json --config {}", config.display()));
        let status: Value = serde_json::from_slice(&asked.stdout).unwrap();
        assert_eq!(status["ledger"]["cells"]["forward"]["closed"], true);
        assert!(run(Path::new("."), &format!("status --config {}", config.display())).status.success());
        let path = run(Path::new("."), &format!("status --json --path --config {}", config.display()));
        assert_eq!(path.stdout, b"null\n", "a free class has none");
    }
    // Twice, as supervisors do.
    demo.signal(Signal::TERM);
    demo.signal(Signal::TERM);
    assert_ledgers(&demo.finish(), 1);
    let dir = paths(&ready["configs"])[0].parent().unwrap().to_owned();
    assert!(!dir.exists(), "the temporary folder goes with the chain");
}

#[test]
fn nodes_end_with_the_chain_process() {
    let mut demo = Demo::start(&["--mixes", "1", "--messages", "2"]);
    demo.process.kill().unwrap();
    demo.process.wait().unwrap();
    let sockets = paths(&demo.ready["status"]);
    // A node that ends removes its status socket.
    until("all status sockets are gone", || !sockets.iter().any(|socket| socket.exists()));
    std::fs::remove_dir_all(sockets[0].parent().unwrap()).unwrap();
}
