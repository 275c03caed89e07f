//! The program as it is run: every cell and datagram that was sent is somewhere. No figure is judged.

use std::net::UdpSocket;
use std::process::{Command, Stdio};

use eddy_bench::results::Results;

use serde_json::Value;

/// Runs it; its last line.
fn measure(arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_eddy-bench")).args(arguments).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8(output.stdout).expect("text");
    serde_json::from_str(text.lines().last().expect("a line")).expect("JSON")
}

#[test]
fn every_cell_of_a_hop_leaves_or_is_named() {
    let report = measure(&["hop", "--json", "--rows", "quick", "--rounds", "2", "--cells", "2048"]);
    let rows = report["rows"].as_array().expect("rows");
    let directions: Vec<&str> = rows.iter().filter_map(|row| row["direction"].as_str()).collect();
    assert_eq!(directions, ["forward", "backward"]);
    for row in rows {
        let count = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("no count in {row}"));
        let [before, behind] = [&row["lost"][0], &row["lost"][1]].map(count);
        assert_eq!(count(&row["played"]), 2 * 2048);
        assert_eq!(count(&row["played"]), count(&row["left"]) + before + count(&row["dropped"]), "{row}");
        assert!(behind <= count(&row["left"]), "{row}");
        let [checked, foreign] = [&row["checked"][0], &row["checked"][1]].map(count);
        assert!(checked > 0 && foreign == 0, "{row}");
        assert_eq!(row["closed"], true, "{row}");
        for key in ["cell_ns", "null_gro_gso_ns", "null_mmsg_ns", "null_single_ns", "ratio_gro_gso", "ratio_mmsg"] {
            assert!(row[key].as_f64().is_some_and(|value| value > 0.0), "{key} in {row}");
        }
    }
}

#[test]
fn a_path_is_searched_both_ways_and_its_ledgers_close() {
    let report = measure(&["path", "--json", "--payload-len", "200", "--try-ms", "50", "--flows", "16"]);
    let rows = report["rows"].as_array().expect("rows");
    let directions: Vec<&str> = rows.iter().filter_map(|row| row["direction"].as_str()).collect();
    assert_eq!(directions, ["forward", "both"]);
    assert!(rows.iter().all(|row| row["loss"].as_f64().is_some_and(|loss| loss <= 1e-4)), "{report}");
    assert_eq!(report["closed"], true);
}

/// All ledgers of the nodes of a run closed.
fn closed(run: &Value) {
    let nodes = run["nodes"].as_array().expect("nodes");
    assert_eq!(nodes.len(), 5, "{run}");
    for node in nodes {
        for unit in node["ledger"].as_object().expect("a ledger").values() {
            assert!(["forward", "backward"].iter().all(|direction| unit[direction]["closed"] == true), "{node}");
        }
    }
}

#[test]
fn a_load_goes_through_a_chain_and_beside_it_and_leaves_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().to_str().expect("a path");
    let report = measure(&[
        "load",
        "--json",
        "--out",
        out,
        "--seconds",
        "1",
        "--rate",
        "400",
        "--flows",
        "4",
        "--arrivals",
        "poisson",
        "--payload-len",
        "4-1300",
        "--answers",
    ]);
    let runs = report["runs"].as_array().expect("runs");
    let names: Vec<&str> = runs.iter().filter_map(|run| run["name"].as_str()).collect();
    assert_eq!(names, ["direct", "chain"]);
    for run in runs {
        let [stream] = &run["streams"].as_array().expect("streams")[..] else { panic!("{run}") };
        for key in ["lost", "reordered", "duplicated", "refused"] {
            assert_eq!(stream[key], 0, "{key} of {run}");
        }
        let sent = stream["sent"].as_u64().expect("a number");
        assert!(sent > 200 && stream["delivered"] == sent && stream["latency"]["count"] == sent, "{stream}");
        assert_eq!(stream["round_trip"]["count"], sent);
        assert!(run["floor"]["ceiling_per_s"].as_f64().is_some_and(|ceiling| ceiling > 0.0));
        let read =
            Results::read(&folder.path().join(format!("{}.json", run["name"].as_str().unwrap()))).expect("a file");
        assert_eq!(read.streams[0].latency.histogram().expect("a histogram").len(), sent);
    }
    closed(&runs[1]);
    for file in ["chain.hlog", "chain.even.forward.hgrm", "direct.hlog", "direct.even.forward.hgrm"] {
        assert!(folder.path().join(file).metadata().is_ok_and(|file| file.len() > 0), "{file}");
    }
}

#[test]
fn profiles_and_traces_go_through_a_chain_both_ways_and_nothing_is_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let trace = folder.path().join("game.csv");
    let lines: String = (0..200).map(|i| format!("{},{},9,{}\n", i as f64 / 200.0, i % 3, i * 7 % 1400)).collect();
    std::fs::write(&trace, format!("t_s,src,dst,payload_len\n{lines}")).expect("a file");
    let trace = trace.to_str().expect("a path");
    for arguments in [
        &["load", "--profile", "voip:4", "--profile", "game:2", "--profile", "video:1", "--seconds", "2"][..],
        &["replay", trace, "--back", trace, "--speed", "0.5"],
    ] {
        let report = measure(&[arguments, &["--json", "--no-direct"]].concat());
        let [run] = &report["runs"].as_array().expect("runs")[..] else { panic!("{report}") };
        closed(run);
        for stream in run["streams"].as_array().expect("streams") {
            assert_eq!((&stream["lost"], &stream["reordered"]), (&0.into(), &0.into()), "{stream}");
            assert!(stream["delivered"].as_u64().is_some_and(|count| count > 0), "{stream}");
        }
        let directions = |wanted: &str| {
            run["streams"].as_array().expect("streams").iter().any(|stream| stream["direction"] == wanted)
        };
        assert!(directions("forward") && directions("backward"));
        if arguments[0] == "replay" {
            assert_eq!(run["streams"][0]["sent"], 200);
        }
    }
}

#[test]
fn a_capacity_is_found_and_says_what_limits_it() {
    let report = measure(&["capacity", "--json", "--try-seconds", "0.1", "--within", "50", "--flows", "8"]);
    let number = |key: &str| report[key].as_f64().unwrap_or_else(|| panic!("{key} in {report}"));
    assert!(number("lossless_per_s") > 0.0 && number("p99_us") <= number("budget_us"), "{report}");
    assert!(report["limited_by"].as_str().is_some_and(|why| !why.is_empty()));
    let tries = report["tries"].as_array().expect("tries");
    let passed = tries.iter().filter(|tried| tried["rate"] == report["lossless_per_s"] && tried["passed"] == true);
    assert!(passed.count() >= 3, "{report}");
    assert!(tries.iter().all(|tried| tried["passed"] == tried["limited_by"].is_null()), "{report}");
    assert_eq!(report["at"].as_array().map(Vec::len), Some(2));
}

#[test]
fn an_interrupted_load_tells_what_it_has() {
    // A forward of our own, so that it is known when something has come.
    let forward = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let sink = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
    let to = forward.local_addr().expect("an address").to_string();
    let arguments = ["load", "--json", "--to", &to, "--sink", &sink.to_string(), "--seconds", "3600", "--flows", "1"];
    let child = Command::new(env!("CARGO_BIN_EXE_eddy-bench"))
        .args(arguments)
        .args(["--rate", "200"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let pid = rustix::process::Pid::from_raw(child.id() as i32).expect("a process");
    let mut bytes = [0; 1500];
    for number in 0..=50 {
        let (len, _) = forward.recv_from(&mut bytes).expect("a datagram");
        forward.send_to(&bytes[..len], sink).expect("the sink takes it");
        if number == 50 {
            rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("a signal");
        }
    }
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let run = &report["runs"][0];
    assert_eq!(run["interrupted"], true);
    assert!(run["streams"][0]["delivered"].as_u64().is_some_and(|count| count > 10), "{report}");
}

#[test]
fn a_mistake_gives_one_line_and_exit_code_2() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        path.to_str().expect("a path").to_owned()
    };
    let csv = file("bad.csv", b"t_s,src,dst,payload_len\n0,0,1,9\nnever,0,1,9\n");
    let pcap = file("bad.pcap", &[0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0]);
    // Bound and given back, so nobody listens there.
    let free = || UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").to_string();
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let (to, sink, taken) = (free(), free(), taken.local_addr().expect("an address").to_string());
    for (arguments, wanted) in [
        (&["replay", &csv][..], "bad.csv:3: t_s is \"never\""),
        (&["replay", &pcap], "bad.pcap is a damaged capture"),
        (&["replay", "/nowhere/trace.pcap"], "cannot read the trace /nowhere/trace.pcap"),
        (&["load", "--to", &to, "--sink", &sink], "nobody listens at"),
        (&["load", "--to", &to, "--sink", &taken], "the sink cannot listen at"),
        (&["capacity", "--to", &to, "--sink", &sink, "--status", "/nowhere/x.sock"], "nobody listens at"),
        (&["load", "--seconds", "0"], "seconds, from 0.1"),
        (&["load", "--rate", "1e99"], "datagrams per second, from 0.1 to 20000000"),
        (&["load", "--payload-len", "3"], "bytes as in 1000"),
        (&["load", "--profile", "fax:1"], "there is no profile"),
        (&["replay", &csv, "--speed", "0"], "how many times as fast"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_eddy-bench")).args(arguments).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(wanted) && !said.contains("panicked"), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty());
    }
}

#[cfg(not(feature = "peers"))]
#[test]
fn peers_say_in_one_line_how_they_are_built() {
    let output = Command::new(env!("CARGO_BIN_EXE_eddy-bench")).arg("peers").output().expect("it starts");
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("cargo run --release -p eddy-bench --features peers -- peers"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[cfg(feature = "peers")]
#[test]
fn peers_stand_beside_eddy_in_rows_of_both_kinds() {
    let report = measure(&["peers", "--json", "--rounds", "1"]);
    let rows = report["rows"].as_array().expect("rows");
    for (kind, names) in [
        ("crypto-only", &["eddy", "eddy", "sphinx-packet", "boringtun", "snow", "snow"][..]),
        ("with-io", &["eddy", "no cryptography", "no cryptography", "no cryptography"][..]),
    ] {
        let of = rows.iter().filter(|row| row["kind"] == kind).collect::<Vec<_>>();
        assert!(of.iter().map(|row| row["name"].as_str().expect("a name")).eq(names.iter().copied()), "{report}");
        assert_eq!(of[0]["ratio"], 1.0);
        assert!(of.iter().all(|row| row["packet_ns"].as_f64().is_some_and(|ns| ns > 0.0)), "{report}");
    }
}
