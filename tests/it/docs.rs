//! Documents and code agree: the tests and counters that docs/THREATS.md names exist.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use control::Refusal;
use dataplane::ledger::DropReason;

/// Rows without a test, and why.
const WITHOUT_TEST: &[(&str, &str)] = &[];

/// All Rust files below a folder.
pub(super) fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

/// Names of all functions that are tests: `fn` within the lines behind a `#[test]`.
pub(super) fn tests_there_are() -> HashSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    ["wire", "control", "dataplane", "node", "virtual", "src", "tests", "bench", "attack"]
        .iter()
        .for_each(|folder| sources(&root.join(folder), &mut files));
    let mut names = HashSet::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        for behind in text.split("#[test]").skip(1) {
            let name = behind.split_once("fn ").and_then(|(_, rest)| rest.split_once('('));
            names.extend(name.map(|(name, _)| name.trim().to_owned()));
        }
    }
    names
}

#[test]
fn threat_table_names_existing_tests_and_counters() {
    let threats = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/THREATS.md")).unwrap();
    let (_, tables) = threats.split_once("\n## Attack and defence\n").expect("the section");
    let there = tests_there_are();
    let drops = DropReason::ALL.iter().map(|drop| drop.name());
    let counters: HashSet<&str> = drops.chain(Refusal::NAMES.iter().copied()).collect();
    let mut without: HashSet<&str> = WITHOUT_TEST.iter().map(|(attack, _)| *attack).collect();
    let (mut rows, mut wrong) = (0, Vec::new());
    for line in tables.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [attack, defence, tests, result] = cells[..] else {
            wrong.push(format!("not four columns: {line}"));
            continue;
        };
        if attack == "attack" || attack.starts_with("---") {
            continue;
        }
        rows += 1;
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        for name in names.iter().filter(|name| !there.contains(**name)) {
            wrong.push(format!("no such test: {name} ({attack})"));
        }
        if names.is_empty() && !without.remove(attack) {
            wrong.push(format!("no test: {attack}"));
        }
        for name in result.split('`').skip(1).step_by(2).filter(|name| !counters.contains(name)) {
            wrong.push(format!("no such counter: {name} ({attack})"));
        }
        if defence.is_empty() || result.is_empty() {
            wrong.push(format!("no defence or no result: {attack}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(without.is_empty(), "they have tests now, or are gone: {without:?}");
    assert!(rows > 60, "{rows} rows");
}

/// Words of the log table that stand for others.
const PLACEHOLDERS: &[&str] =
    &["ADDR", "DEST", "FILE", "NAME", "ID", "N", "M", "LISTEN=DEST", "CONNECT", "mix1", "mix2", "s", "days", "behind"];

/// The parts of a line of the log table that the program prints as they are.
fn literals(line: &str) -> Vec<String> {
    let (mut all, mut words) = (Vec::new(), Vec::new());
    for word in line.split_whitespace() {
        let bare = word.trim_matches(['(', ')', ':', ',', ';']);
        let stands_for_others = PLACEHOLDERS.contains(&bare)
            || word.contains(|c: char| c.is_ascii_digit() || c == '…')
            || bare.starts_with("node.key");
        if stands_for_others {
            all.push(std::mem::take(&mut words).join(" "));
        } else {
            words.push(word);
        }
    }
    all.push(words.join(" "));
    let all = all.iter().map(|part| part.trim_end_matches([':', ';', ',', '(', '.', ')', ' ']));
    // Behind this word other lines of the program follow.
    let all = all.map(|part| part.strip_suffix("; check").unwrap_or(part).trim_start_matches('('));
    all.filter(|part| part.len() > 5).map(str::to_owned).collect()
}

#[test]
fn every_line_of_the_log_table_is_one_of_the_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    ["src", "node/src", "dataplane/src"].iter().for_each(|folder| sources(&root.join(folder), &mut files));
    let joined = |file: &PathBuf| {
        let text = fs::read_to_string(file).unwrap();
        // A text goes on behind a backslash and the space that follows.
        let mut parts = text.split("\\\n").map(str::to_owned).collect::<Vec<_>>();
        parts[1..].iter_mut().for_each(|part| *part = part.trim_start().to_owned());
        parts.concat().replace('`', "")
    };
    let sources: String = files.iter().map(joined).collect();
    let doc = fs::read_to_string(root.join("docs/OPERATE.md")).unwrap();
    let (_, table) = doc.split_once("\n### Log\n").expect("the section");
    let (table, _) = table.split_once("\nConnections to mix1").expect("its end");
    let rows = table.lines().filter_map(|row| row.strip_prefix("| `")?.split(" | ").next());
    let lines: Vec<&str> = rows.flat_map(|cell| cell.split('`').step_by(2)).filter(|line| !line.is_empty()).collect();
    assert!(lines.len() > 50, "{}", lines.len());
    for line in lines {
        for part in literals(line) {
            assert!(sources.contains(&part), "no line of the program has {part:?}: {line}");
        }
    }
}
