//! `eddy-bench report`: what the page shows, and which files are refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use eddy_bench::machine::Machine;
use eddy_bench::results::{Calibration, ChainFacts, FORMAT, Mos, Results, Second, Spread, Stream, histogram};
use roxmltree::Document;
use serde_json::{Value, json};

use crate::attack_result::attack_result;

/// Text that must not become markup.
const EVIL: &str = "<script>alert(1)</script> & \"co\"";

fn report(arguments: &[&Path]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eddy-bench"));
    command.arg("report").args(arguments).output().expect("it starts")
}

/// `count` times from `least` microseconds on, with an exponential tail of `scale`.
fn times(count: u32, least: f64, scale: f64) -> Spread {
    let mut all = histogram();
    for i in 0..count {
        let rank = (f64::from(i) + 0.5) / f64::from(count);
        all.record(((least - scale * (1.0 - rank).ln()) * 1e3) as u64).expect("it fits");
    }
    Spread::of_times(&all)
}

fn stream(profile: &str, direction: &str, least: f64, lost: u64) -> Stream {
    let delivered = 20_000 - lost;
    Stream {
        profile: profile.into(),
        direction: direction.into(),
        flows: 20,
        sent: 20_000,
        refused: 0,
        delivered,
        duplicated: 0,
        reordered: 3,
        lost,
        bytes: 200 * delivered,
        loss_bursts: if lost > 0 { vec![(1, lost - 4), (4, 1)] } else { vec![] },
        latency: times(delivered as u32, least, least / 4.0),
        round_trip: (direction == "forward").then(|| times(delivered as u32, 2.0 * least, least / 2.0)),
        jitter: times(delivered as u32, 10.0, least / 8.0),
        reorder_extent: None,
        mos: (profile == "voip").then_some(Mos { mean: 4.37, worst: 4.31 }),
    }
}

fn node(role: &str, index: u64) -> Value {
    let stay = |us: f64| json!({ "count": 20_000, "p50": us, "p90": us, "p99": 2.0 * us, "p999": us, "max": us });
    let mut way = json!({ "node": stay(90.0), "total": stay(5000.0) });
    if role == "mix" {
        way["pool"] = stay(4910.0);
    }
    let tally = |dropped: Value| json!({ "received": 20_000, "injected": 0, "dropped": dropped, "closed": true });
    json!({
        "role": role, "index": index, "releases": 700, "mean_release": 57.1, "largest_release": 64, "kernel_drops": 0,
        "meter": { "forward": { "effective": 12.5 }, "backward": { "effective": 11.5 } }, "cpu_s": 0.04, "latency_us": { "forward": way },
        "release_sizes": [[1, 20], [2, 9], [15, 31], [47, 40], [63, 100], [71, 500]],
        "ledger": { "cells": { "forward": tally(json!({ "replay": 7 })), "backward": tally(json!({})) } },
    })
}

fn run(name: &str, streams: Vec<Stream>, with_chain: bool) -> Results {
    let lost: u64 = streams.iter().map(|stream| stream.lost).sum();
    let second = |at: u64| {
        let sent = 2000 * streams.len() as u64;
        let delivered = if at == 3 { sent - lost } else { sent };
        Second {
            sent,
            delivered,
            bytes: 200 * delivered,
            p50_us: 4000.0,
            p99_us: 9000.0 + 300.0 * at as f64,
            max_us: 2e4,
        }
    };
    let series = (0..10).map(second).collect();
    Results {
        format: FORMAT,
        name: name.into(),
        command: "load --profile voip:20 --answers --seconds 10 --seed 1".into(),
        machine: Machine::read(),
        chain: with_chain.then(|| ChainFacts {
            mixes: 3,
            class: "L".into(),
            mixing: "threshold-or-timed:n=64,t=5ms".into(),
            channels: 16,
            lanes: 1,
            offload: "auto".into(),
            engine: "wide256".into(),
            io: "mmsg".into(),
        }),
        calibration: Some(Calibration {
            ceiling_per_s: 1.2e6,
            p50_us: 31.0,
            p99_us: 64.0,
            p999_us: 210.0,
            max_us: 900.0,
        }),
        seconds: 10.0,
        interrupted: false,
        streams,
        series,
        nodes: if with_chain { vec![node("entry", 0), node("mix", 1), node("exit", 2)] } else { vec![] },
    }
}

/// Output of `hop`, `path` and `capacity` with --json.
fn lines() -> String {
    let machine = json!({ "cpu": "a processor", "cores": 2, "kernel": "6.18", "load": 0.5, "eddy": "0.1.0" });
    let row = |direction: &str, channels: u64, ns: f64| {
        json!({
            "direction": direction, "channels": channels, "pool": 256, "entries": 0, "cell_ns": ns, "gbit_s": 15.0,
            "cell_ns_range": [ns - 9.0, ns + 9.0], "relay_gso_ns": 411.0, "relay_mmsg_ns": 4800.0, "batch": 256.0,
            "relay_single_ns": null, "ratio_gso": ns / 411.0, "ratio_mmsg": ns / 4800.0, "generator_bound": false,
            "cells_per_s": 1e9 / ns, "wall_cells_per_s": 5e5, "turns": 9, "sleeps": 0, "relay_gso_sleeps": 0.0,
            "offered": 9, "forwarded": 9, "lost": [0, 0], "dropped": 0, "checked": [9, 0], "closed": true,
        })
    };
    let hop = json!({
        "rows": [row("forward", 64, 729.0), row("backward", 64, 612.0)], "class": "L", "engine": "wide256",
        "offload": "auto", "sink_gro": true, "gso": true, "io": "mmsg", "machine": machine, "mix_core": 1,
        "load_core": 0, "receive_buffer": 8 << 20,
    });
    let path = json!({
        "rows": [{ "direction": "forward", "payload_len": 1000, "delivered_per_s": 400_000.0, "gbit_s": 3.2,
                   "loss": 0.0, "sent_per_s": 400_000.0, "generator_bound": false }],
        "flows": 64, "closed": true, "machine": machine, "nodes": [{ "node": "entry", "cells": 9, "cell_ns": 1200 }],
        "chain": { "mixes": 3, "class": "L", "mixing": "threshold-or-timed:n=64,t=5ms", "channels": 16, "lanes": 1,
                   "offload": "auto", "engine": "wide256", "io": "mmsg" },
    });
    let trial = |rate: u64, limit: Option<&str>| {
        json!({ "rate": rate as f64, "passed": limit.is_none(), "sent": rate, "lost": 0, "p50_us": 4000.0,
                "p99_us": rate as f64 / 9.0, "limited_by": limit })
    };
    let short = "forward";
    let capacity = json!({
        "lossless_per_s": 128_000.0, "interval": [128_000.0, 134_000.0], "p99_us": 14_222.0, "limited_by": short,
        "budget_us": 18_000.0, "payload_len": "1000", "interrupted": false, "chain": null,
        "trials": [trial(128_000, None), trial(256_000, Some(short)), trial(134_000, Some(short))],
        "at": [{ "part": 0.5, "rate": 64_000.0, "lost": 0, "p50_us": 1.0, "p99_us": 2.0, "p999_us": 3.0,
                 "max_us": 4.0 }],
        "machine": machine,
    });
    // One of them spans several lines, and one shares a line with it.
    format!("{hop}\n{path}{capacity:#}\n")
}

/// Files of every type, and the page of them.
fn sample(folder: &Path) -> (Vec<PathBuf>, String) {
    let direct = run("direct", vec![stream("voip", "forward", 40.0, 0)], false);
    let two = vec![stream("voip", "forward", 9000.0, 40), stream("voip", "backward", 8000.0, 0)];
    let mut files: Vec<PathBuf> =
        [direct, run("chain", two, true)].iter().map(|run| run.write(folder).expect("the file is written")).collect();
    files.push(folder.join("lines.json"));
    fs::write(&files[2], lines()).unwrap();
    files.push(folder.join("attack.json"));
    fs::write(&files[3], attack_result(&times(2000, 9000.0, 3000.0)).to_string()).unwrap();
    (files.clone(), page(folder, &files))
}

fn page(folder: &Path, files: &[PathBuf]) -> String {
    let out = folder.join("report.html");
    let mut arguments: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    arguments.extend([Path::new("--out"), &out, Path::new("--title"), Path::new(EVIL)]);
    let output = report(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::read_to_string(out).unwrap()
}

/// The body of the page, which is well-formed XML.
fn body(page: &str) -> &str {
    let from = page.find("<body>").expect("a body");
    &page[from..page.find("</body>").expect("its end") + "</body>".len()]
}

/// The number of lines in each plot of a section.
fn lines_of(document: &Document<'_>, section: &str) -> Vec<usize> {
    let section = document.descendants().find(|node| node.attribute("id") == Some(section)).expect("the section");
    let plots = section.descendants().filter(|node| node.attribute("class") == Some("plot"));
    let series = |node: &roxmltree::Node<'_, '_>| {
        // Axes are thinner.
        node.has_tag_name("polyline")
            && node.attribute("stroke-width").is_some_and(|width| width.parse::<u32>().unwrap() > 4)
    };
    plots.map(|plot| plot.descendants().filter(series).count()).collect()
}

#[test]
fn page_shows_all_results_and_fetches_nothing() {
    let kept = std::env::var_os("EDDY_REPORT_FOLDER").map(PathBuf::from);
    let folder = tempfile::tempdir().unwrap();
    let (_, page) = sample(kept.as_deref().unwrap_or(folder.path()));
    let text = body(&page);
    let document = Document::parse(text).unwrap_or_else(|error| panic!("{error}"));
    for name in ["direct", "chain", "voip forward", "voip backward", "generator alone", "threshold-or-timed:n=64,t=5ms"]
    {
        let names =
            |node: roxmltree::Node<'_, '_>| node.is_text() && node.text().is_some_and(|text| text.contains(name));
        assert!(document.descendants().any(names), "no {name}");
    }
    // Three streams and the generator alone; two streams with answers; two runs over time, and what one of them sent.
    assert_eq!(lines_of(&document, "latency"), [4]);
    assert_eq!(lines_of(&document, "round-trip"), [2]);
    assert_eq!(lines_of(&document, "time"), [3, 2, 2]);
    assert_eq!(lines_of(&document, "releases").len(), 3);
    assert_eq!(lines_of(&document, "hop").len(), 1);
    // p50, p99 and the budget.
    assert_eq!(lines_of(&document, "capacity"), [3]);
    // Three cases and chance; three cases, two meters and the most that is possible.
    assert_eq!(lines_of(&document, "attack"), [4, 3, 3, 3]);
    assert_eq!(lines_of(&document, "attack-entropy"), [6]);
    // Two attackers and chance, in three cases, after the shortest and the longest record.
    assert_eq!(lines_of(&document, "attack-roc"), [3; 6]);
    assert_eq!(lines_of(&document, "attack-delay").len(), 3);
    assert!(
        text.contains("default: the best attacker finds 61.1 % of the users after 30 s and half of them after 5.5 s")
    );
    assert!(text.contains("no attacker says otherwise (p = 0.620)"));
    for section in ["attack-cost", "delivery", "losses", "inside", "nodes", "path", "setup"] {
        assert!(text.contains(&format!("id=\"{section}\"")), "{section}");
    }
    for plot in document.descendants().filter(|node| node.attribute("class") == Some("plot")) {
        assert!(plot.attribute("aria-label").is_some_and(|label| label.len() > 20));
    }
    for foreign in ["<script", "<link", "<img", "src=", "@import", "url("] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    assert!(!page.replace("http://www.w3.org/2000/svg", "").contains("://"));
}

#[test]
fn text_from_files_never_becomes_markup() {
    let folder = tempfile::tempdir().unwrap();
    let mut wild = run("wild", vec![stream("even", "forward", 900.0, 7)], true);
    wild.streams[0].profile = EVIL.into();
    wild.name = EVIL.into();
    wild.command = EVIL.into();
    (wild.machine.cpu, wild.machine.kernel, wild.machine.eddy) = (EVIL.into(), EVIL.into(), EVIL.into());
    wild.chain.as_mut().unwrap().mixing = EVIL.into();
    wild.nodes[0]["role"] = json!(EVIL);
    wild.nodes[0]["ledger"]["cells"]["forward"]["dropped"] = json!({ EVIL: 1 });
    let runs = folder.path().join("runs.json");
    fs::write(&runs, json!({ "runs": [wild] }).to_string()).unwrap();
    let rows = folder.path().join("<b>.json");
    fs::write(&rows, lines().replace("\"forward\"", &json!(EVIL).to_string())).unwrap();
    let attack = folder.path().join("attack.json");
    let text = attack_result(&times(9, 9.0, 9.0)).to_string();
    let text = ["default", "batch-tracing", "voice", "a processor"]
        .into_iter()
        .fold(text, |text, word| text.replace(&json!(word).to_string(), &json!(EVIL).to_string()));
    fs::write(&attack, text).unwrap();
    let page = page(folder.path(), &[runs, rows, attack]);
    let document = Document::parse(body(&page)).unwrap_or_else(|error| panic!("{error}"));
    assert!(!page.contains("<script") && !page.contains("<b>"));
    let tags = ["section", "tr", "th", "td", "svg", "text", "li", "code", "dt", "h1", "h2", "h3"];
    assert!(document.descendants().any(|node| tags.contains(&node.tag_name().name()) && node.text() == Some(EVIL)));
    assert!(page.matches("&lt;script&gt;").count() > 12, "{}", page.matches("&lt;script&gt;").count());
}

#[test]
fn runs_of_one_name_are_labelled_with_their_files() {
    let folder = tempfile::tempdir().unwrap();
    let files: Vec<PathBuf> = ["a", "b"]
        .map(|name| {
            run("same", vec![stream("even", "forward", 900.0, 0)], false).write(&folder.path().join(name)).unwrap()
        })
        .into();
    let page = page(folder.path(), &[files.clone(), files[1..].to_vec()].concat());
    for file in &files {
        assert!(page.contains(&format!("same ({})", file.display())));
    }
    assert!(page.contains(&format!("same ({}) #2", files[1].display())));
    assert!(page.contains("No datagram was lost."));
}

#[test]
fn log_with_text_and_several_attacks_is_one_page() {
    let folder = tempfile::tempdir().unwrap();
    let voice = attack_result(&times(9, 9.0, 9.0)).to_string();
    let video = voice.replace("\"voice\"", "\"video\"").replace("\"off\"", "\"rival-front\"");
    let log = folder.path().join("night.log");
    let text =
        format!("record 1 of 6: off, seed 1\nwarning: [1] {{\n{voice}\n  case  found\n{video}\nMachine: x\n{voice}");
    fs::write(&log, text).unwrap();
    let page = page(folder.path(), std::slice::from_ref(&log));
    let headings = |label: &str| page.matches(&format!("<h3>{}: {label}</h3>", log.display())).count();
    let all = ["voice, 100 users", "voice, 100 users #2", "video, 100 users"].map(headings);
    assert!(all[0] >= 4 && all == [all[0]; 3], "{all:?}");
    assert!(page.contains("rival-front: the best attacker finds"));
}

#[test]
fn run_without_arrivals_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let mut dead = run("dead", vec![stream("even", "forward", 900.0, 9)], true);
    let nothing = Spread::of_times(&histogram());
    dead.streams[0] = Stream {
        delivered: 0,
        lost: 20_000,
        latency: nothing.clone(),
        round_trip: Some(nothing.clone()),
        jitter: nothing,
        ..dead.streams[0].clone()
    };
    dead.calibration = None;
    dead.series = vec![Second { sent: 20_000, ..Second::default() }];
    dead.seconds = 0.0;
    dead.nodes = vec![json!({}), json!({ "role": "mix", "release_sizes": "many", "latency_us": 7, "ledger": [] })];
    let page = page(folder.path(), &[dead.write(folder.path()).unwrap()]);
    let document = Document::parse(body(&page)).unwrap_or_else(|error| panic!("{error}"));
    assert!(page.contains("do not report releases by size"));
    assert!(!page.contains("NaN") && !page.contains("inf"));
    assert_eq!(lines_of(&document, "time"), [2, 1]);
}

#[test]
fn invalid_file_is_named_in_a_one_line_error() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let good = run("good", vec![stream("even", "forward", 900.0, 0)], false).write(folder.path()).unwrap();
    let mut torn: Value = serde_json::from_str(&fs::read_to_string(&good).unwrap()).unwrap();
    torn["streams"][0]["latency"]["v2"] = json!("AAAA");
    fs::write(at("torn.json"), torn.to_string()).unwrap();
    for (name, text) in [
        ("text.json", "latency p50 31 us"),
        ("half.json", "{\"rows\": [{\"cell_ns\": 1"),
        ("foreign.json", "{\"hello\": [1]}"),
        ("list.json", "[1, 2]"),
        ("empty.json", ""),
        ("later.json", "{\"format\": 99}"),
        ("short.json", "{\"format\": 2}"),
        ("row.json", "{\"rows\": [{\"cell_ns\": 1}]}"),
        ("rate.json", "{\"lossless_per_s\": 1}"),
        ("found.json", "{\"summaries\": [], \"runs\": []}"),
        ("none.json", "{\"runs\": []}"),
    ] {
        fs::write(at(name), text).unwrap();
    }
    let cases = [
        ("absent.json", "cannot read"),
        ("text.json", "has no results"),
        ("half.json", "is not valid JSON"),
        ("foreign.json", "is not a result"),
        ("list.json", "has no results"),
        ("empty.json", "has no results"),
        ("later.json", "found 99"),
        ("short.json", "is damaged"),
        ("row.json", "is damaged"),
        ("rate.json", "is damaged"),
        ("found.json", "is damaged"),
        ("none.json", "has no runs"),
        ("torn.json", "is damaged: even forward"),
    ];
    let out = at("page.html");
    for (name, wanted) in cases {
        let output = report(&[&good, &at(name), Path::new("--out"), &out]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}: {stderr}");
        assert!(
            stderr.contains(wanted) && stderr.contains(name) && stderr.trim_end().lines().count() == 1,
            "{name}: {stderr}"
        );
        assert!(!out.exists(), "{name}");
    }
    for (out, wanted) in [(at("no/such/page.html"), "create the folder"), (good.clone(), "would overwrite")] {
        let output = report(&[&good, Path::new("--out"), &out]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(wanted) && stderr.trim_end().lines().count() == 1, "{stderr}");
    }
    let output = report(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("<FILE>..."));
}
