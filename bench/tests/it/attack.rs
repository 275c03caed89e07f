//! `eddy-bench attack`: small runs. Of free classes only the order of the cases is judged, of paced ones what their
//! links carry.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::process::{Command, Output};

use attack::{Place, Record, Trace};
use serde_json::Value;

use crate::skipped::skipped;

fn attack(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_eddy-bench")).arg("attack").args(arguments).output().expect("it starts")
}

fn json(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(stdout.lines().last().expect("a line")).expect("JSON")
}

/// Top-1 of an attacker in each case, after the whole record.
fn top1(report: &Value, attacker: &str) -> BTreeMap<String, f64> {
    let results = report["results"].as_array().expect("results").iter();
    let own = results.filter(|one| one["attacker"] == attacker && one["seconds"] == 8.0);
    own.map(|one| (one["case"].as_str().expect("a name").to_owned(), one["top1"].as_f64().expect("a share"))).collect()
}

fn bytes(places: &[Place]) -> [u64; 2] {
    let sum = |trace: &[attack::Seen]| trace.iter().map(|seen| u64::from(seen.bytes)).sum::<u64>();
    places.iter().fold([0, 0], |all, place| [all[0] + sum(&place.forward), all[1] + sum(&place.backward)])
}

fn read(folder: &Path) -> Record {
    attack::export::read_csv(BufReader::new(File::open(folder.join("record.csv")).unwrap())).unwrap()
}

/// More bytes come in than leave, every link has cells, and times are in order.
fn assert_sane(folder: &Path) {
    let record = read(folder);
    assert_eq!((record.access.len(), record.inner.len(), record.flows.len()), (12, 3, 12));
    for (access, flows) in bytes(&record.access).into_iter().zip(bytes(&record.flows)) {
        assert!(access > flows && flows > 0, "{access} bytes in, {flows} out");
    }
    for inner in &record.inner {
        let [forward, backward] = [&inner.forward, &inner.backward].map(|trace| record.cells(trace).count());
        assert!(forward > 0 && backward > 0);
        assert!(inner.forward.is_sorted_by_key(|seen| seen.at) && inner.backward.is_sorted_by_key(|seen| seen.at));
    }
    assert!(!record.probe.is_empty() && record.probe.iter().all(|passage| passage.entered <= passage.left));
}

#[test]
fn mixing_hides_no_more_than_an_ideal_chain() {
    let folder = tempfile::tempdir().expect("a folder");
    let records = folder.path().join("records");
    let records_text = records.to_str().expect("a path");
    let attackers = ["--attackers", "likelihood-two-sided,batch-tracing", "--json"];
    let arguments = ["--users", "12", "--seconds", "8", "--seeds", "1", "--record", records_text, "--wf4nym"];
    let output = attack(&[&arguments[..], &attackers[..]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("cannot make a network namespace") {
        skipped(stderr.trim());
        return;
    }
    let report = json(&output);
    for attacker in ["likelihood-two-sided", "batch-tracing"] {
        let found = top1(&report, attacker);
        let [off, default, ideal] = ["off", "default", "ideal"].map(|case| found[case]);
        assert!(off >= default - 0.2 && default >= ideal + 0.3, "{attacker}: {found:?}");
    }
    let runs = report["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 3);
    for run in runs.iter().filter(|run| run["case"] != "ideal") {
        assert!(
            run["costs"]["delay"]["count"].as_u64() > Some(0) && run["facts"]["meter"][0]["seconds"].is_f64(),
            "{run}"
        );
        assert_eq!(
            (&run["facts"]["capture_lost"], &run["facts"]["ledgers_closed"]),
            (&0.into(), &true.into()),
            "{run}"
        );
    }
    for case in ["off-1", "default-1"] {
        assert_sane(&records.join(case));
        assert!(records.join(case).join("wf4nym").is_dir());
    }
    // The same records give the same figures.
    let again = json(&attack(&[&["--from", records_text], &attackers[..]].concat()));
    assert_eq!(top1(&again, "batch-tracing"), top1(&report, "batch-tracing"));
    for one in [&report, &again].into_iter().flat_map(|report| report["results"].as_array().expect("results")) {
        assert_eq!(one["profile"], "voice", "{one}");
    }
    // A page of them.
    let [file, page] = ["attack.json", "report.html"].map(|name| folder.path().join(name));
    std::fs::write(&file, report.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_eddy-bench"));
    let made = command.arg("report").arg(&file).arg("--out").arg(&page).output().expect("it starts");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert!(std::fs::read_to_string(&page).unwrap().contains("id=\"attack-entropy\""));
}

fn cells(trace: &Trace) -> usize {
    trace.iter().filter(|seen| seen.bytes == PACED_CELL).count()
}

/// All links carry cells of one length, and as many but for `slack`.
fn assert_alike(traces: &[&Trace], slack: u64) {
    for trace in traces {
        let others = trace.len() - cells(trace);
        assert!(others * 20 < trace.len(), "{others} of {} are not cells of the class", trace.len());
    }
    let counts: Vec<usize> = traces.iter().map(|trace| cells(trace)).collect();
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!((most - least) as u64 <= slack, "{counts:?} differ by more than {slack}");
}

/// Bytes of a cell of the paced class of size S.
const PACED_CELL: u32 = 240;

#[test]
fn links_of_a_paced_class_are_alike_whatever_users_send() {
    let folder = tempfile::tempdir().expect("a folder");
    let records = folder.path().join("records");
    let class = ["--paced", "voice:rounds=512,steps_ms=2,loops=0", "--attackers", "likelihood-two-sided", "--json"];
    let arguments = ["--users", "8", "--seconds", "6", "--seeds", "1", "--cases", "paced,paced-outside", "--record"];
    let output = attack(&[&arguments[..], &[records.to_str().expect("a path")], &class[..]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("cannot make a network namespace") {
        skipped(stderr.trim());
        return;
    }
    let report = json(&output);
    let runs = report["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 2);
    for run in runs {
        let case = run["case"].as_str().expect("a name");
        let (facts, record) = (&run["facts"], read(&records.join(format!("{case}-1"))));
        assert_eq!((&facts["capture_lost"], &facts["ledgers_closed"]), (&0.into(), &true.into()), "{run}");
        let count = |key: &str, way: usize| facts[key][way].as_u64().expect("a number");
        // On a busy machine rounds are late. What that costs a link at most is counted.
        let paced = |key: &str| facts["paced"][key].as_u64().expect("a number");
        let drops = |reason: &str| facts["paced"]["drops"][format!("cells {reason}")].as_u64().unwrap_or(0);
        let rounds_skipped = paced("skipped");
        let is_quiet = (rounds_skipped + paced("lost") + drops("late")) * 100 <= paced("places");
        // The record may cut a round at each end.
        let slack = 12 + 6 * rounds_skipped + drops("aged") + drops("skipped");
        for way in 0..2 {
            let (sent, arrived) = (count("sent", way), count("arrived", way));
            assert!(sent > 0 && (!is_quiet || arrived * 10 > sent * 8), "{case}: {arrived} of {sent}");
        }

        let rows = if case == "paced" { 4 } else { 8 };
        assert_eq!((record.access.len(), record.inner.len(), record.flows.len()), (rows, 3, rows));
        let links: Vec<&Place> = match case {
            "paced" => record.access.iter().chain(&record.flows).collect(),
            _ => record.access.iter().collect(),
        };
        // One in five may differ at most, or the comparison says nothing.
        let fewest = links.iter().flat_map(|link| [cells(&link.forward), cells(&link.backward)]).min();
        if fewest < Some(5 * slack as usize) {
            skipped(format!("{case}: this machine is too busy, rounds were late: counts may differ by {slack}"));
            continue;
        }
        // What comes to entries is sent by one mix, at once. Of a partner, that is forward in a record.
        let (partners, users) = (&links[rows..], &links[..rows]);
        let from_mix = users.iter().map(|link| &link.backward).chain(partners.iter().map(|link| &link.forward));
        assert_alike(&from_mix.collect::<Vec<_>>(), slack);
        let to_mix = users.iter().map(|link| &link.forward).chain(partners.iter().map(|link| &link.backward));
        assert_alike(&to_mix.collect::<Vec<_>>(), slack);
    }
}

/// Arguments of small records under a virtual clock.
const VIRTUAL: [&str; 4] = ["--seeds", "1", "--paced", "voice:rounds=512,steps_ms=2,loops=0"];

/// Cells of each round of a link: rounds are apart, their cells are not. Those at the ends of the record are left out.
fn rounds(trace: &Trace) -> Vec<usize> {
    let rounds = trace.chunk_by(|one, next| next.at - one.at < 5_000_000).map(<[attack::Seen]>::len);
    let rounds: Vec<usize> = rounds.collect();
    rounds[1..rounds.len() - 1].to_vec()
}

#[test]
fn virtual_links_are_constant_and_everything_arrives() {
    let folder = tempfile::tempdir().expect("a folder");
    let records = folder.path().join("records");
    let small = ["--users", "6", "--seconds", "3", "--cases", "paced-virtual,paced-virtual-outside", "--json"];
    let chosen = ["--attackers", "likelihood-two-sided", "--record", records.to_str().expect("a path")];
    let report = json(&attack(&[&small[..], &VIRTUAL[..], &chosen[..]].concat()));
    for run in report["runs"].as_array().expect("runs") {
        let (case, facts) = (run["case"].as_str().expect("a name"), &run["facts"]);
        assert_eq!(facts["sent"], facts["arrived"], "{run}");
        assert_eq!((&facts["ledgers_closed"], &facts["paced"]["skipped"]), (&true.into(), &0.into()), "{run}");
        for way in facts["delays"].as_array().expect("delays") {
            let delays = ["p50", "p999"].map(|quantile| way[quantile].as_f64().expect("a delay"));
            assert!(delays[0] > 10.0 && delays[1] < 100.0, "{run}");
        }

        let record = read(&records.join(format!("{case}-1")));
        let is_inside = case == "paced-virtual";
        assert_eq!((record.access.len(), record.inner.len()), (if is_inside { 3 } else { 6 }, 3));
        // What a partner gets is forward in a record.
        let partners: &[Place] = if is_inside { &record.flows } else { &[] };
        let from_mix = record.access.iter().map(|link| &link.backward).chain(partners.iter().map(|link| &link.forward));
        let to_mix = record.access.iter().map(|link| &link.forward).chain(partners.iter().map(|link| &link.backward));
        for links in [from_mix.map(rounds).collect::<Vec<_>>(), to_mix.map(rounds).collect()] {
            // A record may begin and end within a round, before or behind what an entry sends.
            let is_alike = |link: &[usize]| {
                let starts = [(0, 0), (0, 1), (1, 0)];
                link.len() > 290 && starts.iter().any(|(one, other)| link[*one..][..289] == links[0][*other..][..289])
            };
            assert!(links.iter().all(|link| is_alike(link)), "{case}: {links:?}");
        }
    }
}

/// The permutation p of one record under a virtual clock, with the attackers that begin so.
fn virtual_p(case: &str, attackers: &str, more: &[&str]) -> f64 {
    let arguments = ["--cases", case, "--attackers", attackers, "--json"];
    let report = json(&attack(&[&arguments[..], &VIRTUAL[..], more].concat()));
    report["summaries"][0]["verdicts"][0]["p"].as_f64().expect("a p")
}

/// Each planted leak is found, and nothing is without it.
fn assert_found(case: &str, attackers: &str, leak: &str, more: &[&str]) {
    let without = virtual_p(case, attackers, more);
    let with = virtual_p(case, attackers, &[more, &["--plant", leak]].concat());
    assert!(with < 0.005 && without > 0.05, "{leak}: p {with}, and {without} without it");
}

#[test]
fn planted_lateness_of_data_is_found() {
    assert_found("paced-virtual-outside", "lateness", "late", &["--users", "12", "--seconds", "12"]);
}

#[test]
fn planted_gaps_of_silent_users_are_found() {
    assert_found("paced-virtual-outside", "missing-slots", "gaps", &["--users", "12", "--seconds", "12"]);
}

#[test]
fn planted_loss_behind_mix_1_is_found() {
    let more = ["--users", "16", "--seconds", "10", "--loss", "0.2"];
    assert_found("paced-virtual", "missing-slots,outage", "loss", &more);
}
