//! Configuration files, beyond the table of mistakes in `mistakes`; `eddy config`; the handbook's table of keys.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use eddy_node::config::NodeConfig;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::command::{assert_mistake, complaint, run};
use crate::mistakes::edit;

/// A chain of three mixes in a fresh folder.
fn chain() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let made = run(dir.path(), "init . --mixes 3");
    assert!(made.status.success(), "{made:?}");
    dir
}

#[test]
fn readable_key_file_is_refused() {
    let dir = chain();
    let file = dir.path().join("mix1.key");
    for mode in [0o644, 0o640, 0o604, 0o620] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let output = run(dir.path(), "mix --config mix1.toml --lifeline");
        assert_mistake("mode", &output, &[&format!("mode {mode:04o}"), "run `chmod 600 mix1.key`"]);
    }
}

#[test]
fn key_file_errors_quote_no_key() {
    let dir = chain();
    let file = dir.path().join("mix1.key");
    let secret = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0";
    let lines = [
        (format!("noise = \"{secret}\""), "noise must be 32 bytes in base64"),
        (format!("noise = \"{secret}"), "mix1.key:"),
        (format!("noise = {secret}"), "mix1.key:"),
        (format!("nose = \"{secret}\""), "did you mean `noise`?"),
        (format!("noise = [\"{secret}\"]"), "mix1.key:"),
    ];
    for (line, wanted) in lines {
        edit(&file, "no", &line);
        let output = run(dir.path(), "mix --config mix1.toml --lifeline");
        assert_mistake(&line, &output, &[wanted]);
        assert!(!complaint(&output).1.contains(&secret[..8]), "{output:?}");
    }
}

#[test]
fn config_paths_are_relative_to_the_file() {
    let dir = chain();
    let elsewhere = tempfile::tempdir().unwrap();
    let config = dir.path().join("mix1.toml");
    edit(&dir.path().join("chain.toml"), "suite", "suite = 3");
    let output = run(elsewhere.path(), &format!("mix --config {}", config.display()));
    let place = format!("{}:5: ", dir.path().join("chain.toml").display());
    assert_mistake("elsewhere", &output, &[&place]);
}

#[test]
fn status_of_a_stopped_node_names_the_start_command() {
    let dir = chain();
    let (code, said) = complaint(&run(dir.path(), "status --config exit.toml"));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no node answers at exit.sock: start it with `eddy exit --config exit.toml`"), "{said}");
}

#[test]
fn name_too_long_for_a_cell_is_refused_at_start() {
    let dir = tempfile::tempdir().unwrap();
    assert!(run(dir.path(), "init . --mixes 1 --class S").status.success());
    let name = ["a".repeat(60), "b".repeat(60), "c".repeat(60), "d".repeat(10)].join(".");
    let output = run(dir.path(), &format!("entry --config entry.toml --forward 127.0.0.1:0={name}:1"));
    assert_mistake("a long name", &output, &["too long for a cell of class S", "at most 183 bytes"]);

    let file = dir.path().join("entry.toml");
    let mut text = std::fs::read_to_string(&file).unwrap();
    let line = text.lines().count() + 3; // of `listen`
    text += &format!("\n[[forward]]\nlisten = \"127.0.0.1:0\"\nto = \"{name}:1\"\n");
    std::fs::write(&file, text).unwrap();
    let place = format!("entry.toml:{line}: the name");
    assert_mistake("a long name in a file", &run(dir.path(), "config check entry.toml"), &[&place]);
}

fn said(dir: &Path, line: &str) -> String {
    let output = run(dir, line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn config_check_accepts_all_files_of_init() {
    let dir = chain();
    for (file, name) in [("entry", "entry"), ("mix1", "mix1"), ("mix2", "mix2"), ("mix3", "mix3"), ("exit", "exit")] {
        let line = said(dir.path(), &format!("config check {file}.toml"));
        assert!(line.starts_with(&format!("{file}.toml: ok, {name} of chain ")), "{line}");
    }
    assert!(!dir.path().join("mix1.sock").exists(), "no socket is opened");
    let line = said(dir.path(), "config check --config mix1.toml");
    assert!(line.starts_with("mix1.toml: ok"), "as for other commands: {line}");
    assert_eq!(said(dir.path(), "config show --config mix1.toml"), said(dir.path(), "config show mix1.toml"));
    assert_mistake("no file", &run(dir.path(), "config check"), &["FILE", "usage: eddy config check"]);
}

#[test]
fn config_check_refuses_what_a_start_would_refuse() {
    let dir = chain();
    let config = dir.path().join("mix1.toml");
    let good = fs::read_to_string(&config).unwrap();
    for (line, with, wanted) in [
        ("mixing", "mixxing = \"timed:t=1ms\"", "did you mean `mixing`?"),
        ("down", "down = \"127.0.0.1:4701\"", "a different port"),
        ("status", "status = \"none/mix1.sock\"", "mkdir -p none"),
        ("keys", "keys = \"exit.key\"", "this node is an exit in this chain, not a mix"),
        ("# cores", "cores = [1000]", "this process may use"),
        ("# next", "next = \"mix2..example.org:4702\"", "does not resolve"),
        ("up", "up = \"192.0.2.1:4701\"", "does not have the address 192.0.2.1"),
    ] {
        edit(&config, line, with);
        assert_mistake(line, &run(dir.path(), "config check mix1.toml"), &["mix1", wanted]);
        fs::write(&config, &good).unwrap();
    }
}

#[test]
fn config_show_prints_a_configuration_with_the_same_meaning() {
    let dir = chain();
    for (file, defaults) in [("entry", "window = 4096   # default"), ("exit", "max_sockets = 4096   # default")] {
        let text = said(dir.path(), &format!("config show {file}.toml"));
        assert!(text.contains(defaults), "{text}");
        let path = dir.path().join(format!("{file}.toml"));
        let (file, shown) = (NodeConfig::read(&path).unwrap(), NodeConfig::parse(&path, &text).unwrap());
        assert_eq!((file.window, file.caps, file.role()), (shown.window, shown.caps, shown.role()));
        assert_eq!(format!("{:?}", file.part), format!("{:?}", shown.part));
    }
    let json: Value = serde_json::from_str(&said(dir.path(), "config show mix1.toml --json")).unwrap();
    let settings = json["settings"].as_array().unwrap();
    let setting = |key: &str| settings.iter().find(|one| one["key"] == key).unwrap();
    assert_eq!((&setting("up")["set"], &setting("up")["value"]), (&true.into(), &"127.0.0.1:4701".into()));
    assert_eq!((&setting("window")["set"], &setting("window")["value"]), (&false.into(), &4096.into()));
    assert_eq!(setting("next")["value"], Value::Null);
    assert_eq!(setting("caps")["value"]["links"], 1024);
}

#[test]
fn config_show_refuses_a_meeting_in_a_free_class() {
    let dir = chain();
    let meeting = "[[forward]]\nlisten = \"5000\"\nto = \"meet:@call.secret\"";
    edit(&dir.path().join("entry.toml"), "", meeting);
    let output = run(dir.path(), "config show entry.toml");
    assert_mistake("show", &output, &["entry.toml:", "is a meeting, which class L does not have"]);
}

#[test]
fn config_explain_fits_a_terminal_and_suggests() {
    let dir = tempfile::tempdir().unwrap();
    let list = said(dir.path(), "config explain");
    let key = said(dir.path(), "config explain mixing");
    for line in list.lines().chain(key.lines()) {
        assert!(line.len() <= 80, "{line}");
    }
    for wanted in ["mixN.toml", "chain.toml", "default  \"threshold-or-timed:n=64,n_min=8,t=5ms\""] {
        assert!(key.contains(wanted), "{key}");
    }
    let to = said(dir.path(), "config explain to");
    assert!(to.contains("meet:@FILE") && to.contains("eddy meet new --out FILE"), "{to}");
    assert!(list.contains("meet:@FILE"), "{list}");
    for (name, wanted) in [
        ("voice", "fits     97 bytes a cell or 200 every two; between users 93 or 192"),
        ("L", "up to 1323 bytes"),
        ("meet", "eddy meet new --out call.secret"),
    ] {
        let text = said(dir.path(), &format!("config explain {name}"));
        assert!(text.contains(wanted) && text.lines().all(|line| line.len() <= 80), "{name}: {text}");
    }
    assert_mistake("explain", &run(dir.path(), "config explain voise"), &["voise", "did you mean `voice`?"]);
    assert_mistake("explain", &run(dir.path(), "config explain mixxing"), &["mixxing", "did you mean `mixing`?"]);
}

const BEGIN: &str = "<!-- keys: begin -->\n";
const END: &str = "<!-- keys: end -->\n";

/// `EDDY_BLESS=1 cargo test --test it config` rewrites it.
#[test]
fn handbook_has_the_table_of_keys() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/OPERATE.md");
    let doc = fs::read_to_string(&file).unwrap();
    let (before, rest) = doc.split_once(BEGIN).expect("the beginning of the table");
    let (printed, after) = rest.split_once(END).expect("the end of the table");
    let made = format!("\n{}\n", eddy::commands::config::handbook());
    if std::env::var_os("EDDY_BLESS").is_some_and(|value| value == "1") {
        fs::write(&file, [before, BEGIN, &made, END, after].concat()).unwrap();
        return;
    }
    assert!(printed == made, "docs/OPERATE.md is not current: EDDY_BLESS=1 cargo test --test it config rewrites it");
}
