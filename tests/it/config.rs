//! Configuration files, beyond the table of mistakes in `mistakes`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

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
        (format!("noise = \"{secret}\""), "expected 32 bytes in base64"),
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
    edit(&dir.path().join("chain.toml"), "hops", "hops = 1");
    let output = run(elsewhere.path(), &format!("mix --config {}", config.display()));
    let place = format!("{}:4: ", dir.path().join("chain.toml").display());
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
}
