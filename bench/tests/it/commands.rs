//! The commands: every cell and datagram that was sent is accounted for. No figure is judged.

use std::net::UdpSocket;
use std::process::{Command, Stdio};

use eddy_bench::results::Results;
use serde_json::Value;

/// Runs the program, and returns the last line of its output.
fn measure(arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_eddy-bench")).args(arguments).output().expect("it starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let text = String::from_utf8(output.stdout).expect("text");
    serde_json::from_str(text.lines().last().expect("a line")).expect("JSON")
}

#[test]
fn hop_accounts_for_every_cell() {
    let report = measure(&["hop", "--json", "--rows", "quick", "--rounds", "2", "--cells", "2048"]);
    let rows = report["rows"].as_array().expect("rows");
    let directions: Vec<&str> = rows.iter().filter_map(|row| row["direction"].as_str()).collect();
    assert_eq!(directions, ["forward", "backward"]);
    for row in rows {
        let count = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("not a count in {row}"));
        let [before, after] = [&row["lost"][0], &row["lost"][1]].map(count);
        assert_eq!(count(&row["offered"]), 2 * 2048);
        assert_eq!(count(&row["offered"]), count(&row["forwarded"]) + before + count(&row["dropped"]), "{row}");
        assert!(after <= count(&row["forwarded"]), "{row}");
        let [checked, forged] = [&row["checked"][0], &row["checked"][1]].map(count);
        assert!(checked > 0 && forged == 0, "{row}");
        assert_eq!(row["closed"], true, "{row}");
        for key in ["cell_ns", "relay_gso_ns", "relay_mmsg_ns", "relay_single_ns", "ratio_gso", "ratio_mmsg"] {
            assert!(row[key].as_f64().is_some_and(|value| value > 0.0), "{key} in {row}");
        }
    }
}

#[test]
fn paced_accounts_for_every_release_and_cell() {
    for position in ["1", "2"] {
        let report = measure(&["paced", "--json", "--channels", "20", "--seconds", "1", "--position", position]);
        let [row] = &report["rows"].as_array().expect("rows")[..] else { panic!("{report}") };
        let count = |key: &str| row[key].as_u64().unwrap_or_else(|| panic!("{key} in {row}"));
        // A busy machine may make the mix skip rounds, or the generator late: then noise takes the places.
        assert_eq!(count("releases"), 2 * 100);
        assert_eq!(count("exact") + count("missing"), count("releases"), "{row}");
        assert!(count("exact") > 0 && count("sent") > count("places"), "{row}");
        assert!(count("checked") > 0 && count("wrong") == 0 && count("noise") <= count("filled"), "{row}");
        assert_eq!(count("places"), 2 * 20 * (100 + 50), "with the rounds before the measurement");
        assert!(count("filled") <= count("places") && row["closed"] == true, "{row}");
    }
}

#[test]
fn path_is_measured_both_ways_and_ledgers_close() {
    let report = measure(&["path", "--json", "--payload-len", "200", "--try-ms", "50", "--flows", "16"]);
    let rows = report["rows"].as_array().expect("rows");
    let directions: Vec<&str> = rows.iter().filter_map(|row| row["direction"].as_str()).collect();
    assert_eq!(directions, ["forward", "both"]);
    assert!(rows.iter().all(|row| row["loss"].as_f64().is_some_and(|loss| loss <= 1e-4)), "{report}");
    assert_eq!(report["closed"], true);
}

/// Every ledger of a run's nodes closed.
fn assert_closed(run: &Value) {
    let nodes = run["nodes"].as_array().expect("nodes");
    assert_eq!(nodes.len(), 5, "{run}");
    for node in nodes {
        for unit in node["ledger"].as_object().expect("a ledger").values() {
            assert!(["forward", "backward"].iter().all(|direction| unit[direction]["closed"] == true), "{node}");
        }
    }
}

#[test]
fn load_runs_directly_and_through_a_chain() {
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
        assert!(run["calibration"]["ceiling_per_s"].as_f64().is_some_and(|ceiling| ceiling > 0.0));
        let read =
            Results::read(&folder.path().join(format!("{}.json", run["name"].as_str().unwrap()))).expect("a file");
        assert_eq!(read.streams[0].latency.histogram().expect("a histogram").len(), sent);
    }
    assert_closed(&runs[1]);
    for file in ["chain.hlog", "chain.even.forward.hgrm", "direct.hlog", "direct.even.forward.hgrm"] {
        assert!(folder.path().join(file).metadata().is_ok_and(|file| file.len() > 0), "{file}");
    }
}

#[test]
fn profiles_and_traces_lose_nothing_in_a_chain() {
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
        assert_closed(run);
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
fn capacity_is_found_with_its_limit() {
    // A busy machine may delay every datagram: only losses limit the rate.
    let arguments =
        ["capacity", "--json", "--try-seconds", "0.1", "--within", "50", "--flows", "8", "--p99-ms", "60000"];
    let report = measure(&arguments);
    let number = |key: &str| report[key].as_f64().unwrap_or_else(|| panic!("{key} in {report}"));
    assert!(number("lossless_per_s") > 0.0 && number("p99_us") <= number("budget_us"), "{report}");
    assert!(report["limited_by"].as_str().is_some_and(|why| !why.is_empty()));
    let tries = report["trials"].as_array().expect("trials");
    let passed = tries.iter().filter(|tried| tried["rate"] == report["lossless_per_s"] && tried["passed"] == true);
    assert!(passed.count() >= 3, "{report}");
    assert!(tries.iter().all(|tried| tried["passed"] == tried["limited_by"].is_null()), "{report}");
    assert_eq!(report["at"].as_array().map(Vec::len), Some(2));
}

#[test]
fn interrupted_load_prints_its_results() {
    // This test is the forward, so it knows when something has arrived.
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
fn user_error_gives_a_message_and_exit_code_2() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        path.to_str().expect("a path").to_owned()
    };
    let csv = file("bad.csv", b"t_s,src,dst,payload_len\n0,0,1,9\nnever,0,1,9\n");
    let pcap = file("bad.pcap", &[0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0]);
    // Bound and closed again, so no process listens there.
    let free = || UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").to_string();
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let (to, sink, taken) = (free(), free(), taken.local_addr().expect("an address").to_string());
    for (arguments, wanted) in [
        (&["replay", &csv][..], "bad.csv:3: invalid t_s \"never\""),
        (&["replay", &pcap], "bad.pcap is a damaged capture"),
        (&["replay", "/nowhere/trace.pcap"], "cannot read the trace /nowhere/trace.pcap"),
        (&["load", "--to", &to, "--sink", &sink], "no process listens at"),
        (&["load", "--to", &to, "--sink", &taken], "cannot listen at the sink"),
        (&["capacity", "--to", &to, "--sink", &sink, "--status", "/nowhere/x.sock"], "no process listens at"),
        (&["load", "--seconds", "0"], "expected seconds from 0.1"),
        (&["load", "--rate", "1e99"], "expected datagrams per second from 0.1 to 20000000"),
        (&["load", "--payload-len", "3"], "expected bytes from 4"),
        (&["load", "--profile", "fax:1"], "unknown profile"),
        (&["replay", &csv, "--speed", "0"], "expected a speed"),
        (&["attack", "--users", "1"], "1 is not in 2..=1000"),
        (&["attack", "--profile", "fax"], "unknown profile \"fax\": expected one of voice"),
        (&["attack", "--profile", "/nowhere/trace.pcap"], "cannot read the trace /nowhere/trace.pcap"),
        (
            &["attack", "--cases", "best"],
            "unknown case \"best\": expected one of off, default, paced, paced-outside, paced-virtual, paced-virtual-outside, ideal",
        ),
        (&["attack", "--attackers", "oracle"], "unknown attacker \"oracle\": expected"),
        (&["attack", "--loss", "2"], "expected SHARE or SHARE:burst=MEAN"),
        (&["attack", "--outage", "100:1:1"], "--outage names user 100, but --users is 100"),
        (&["attack", "--from", "/nowhere"], "cannot read the folder /nowhere"),
        (&["attack", "--from", &csv, "--users", "50"], "'--from <FOLDER>' cannot be used with"),
        (&["attack", "--from", &csv, "--cases", "off"], "'--from <FOLDER>' cannot be used with"),
        (&["attack", "--from", &csv, "--outage", "1:1:1"], "'--from <FOLDER>' cannot be used with"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_eddy-bench")).args(arguments).output().expect("it starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(wanted) && !stderr.contains("panicked"), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn attack_without_a_terminal_prints_a_line_for_each_step() {
    let few = ["attack", "--users", "4", "--seconds", "2", "--seeds", "2", "--cases", "ideal"];
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eddy-bench"));
        let output = command.args(few).args(["--attackers", "volume"]).args(more).output().expect("it starts");
        assert!(output.status.success());
        String::from_utf8(output.stderr).expect("text")
    };
    let steps =
        "record 1 of 2: ideal, seed 1\nrecord 2 of 2: ideal, seed 2\nattacking ideal (records: 2, attackers: 1)\n";
    assert_eq!(run(&[]), steps);
    let warning = "warning: records of 2 s may be too short for the drop-watermark, which needs about 45 s: record with \
                   --seconds 45 or more\n";
    assert_eq!(run(&["--active", "drop"]), format!("{warning}{steps}"));
}

#[cfg(not(feature = "peers"))]
#[test]
fn peers_without_its_feature_prints_how_to_build_it() {
    let output = Command::new(env!("CARGO_BIN_EXE_eddy-bench")).arg("peers").output().expect("it starts");
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("cargo run --release -p eddy-bench --features peers -- peers"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[cfg(feature = "peers")]
#[test]
fn peers_has_rows_of_both_scopes() {
    let report = measure(&["peers", "--json", "--rounds", "1"]);
    let rows = report["rows"].as_array().expect("rows");
    for (scope, names) in [
        ("crypto-only", &["eddy", "eddy", "sphinx-packet", "boringtun", "snow", "snow"][..]),
        ("with-io", &["eddy", "no cryptography", "no cryptography", "no cryptography"][..]),
    ] {
        let of = rows.iter().filter(|row| row["scope"] == scope).collect::<Vec<_>>();
        assert!(of.iter().map(|row| row["name"].as_str().expect("a name")).eq(names.iter().copied()), "{report}");
        assert_eq!(of[0]["ratio"], 1.0);
        assert!(of.iter().all(|row| row["packet_ns"].as_f64().is_some_and(|ns| ns > 0.0)), "{report}");
    }
}
