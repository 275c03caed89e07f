//! `eddy doctor` on files of `eddy init`. The findings depend on the host: these tests check the form, and problems
//! that can be made on any host.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::mistakes::edit;
use crate::common::command::{assert_mistake, complaint, eddy, run};
use crate::common::skipped;

fn chain() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    assert!(run(dir.path(), "init . --mixes 3").status.success());
    dir
}

/// The findings, and whether the exit code is that of the worst.
fn findings(output: &Output) -> Vec<Value> {
    let (code, said) = complaint(output);
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|why| panic!("{why}: {text}{said}"));
    assert_eq!(text.lines().count(), 1, "{text}");
    let failed = report["worst"] == "error";
    assert_eq!(code, Some(i32::from(failed)), "{report:#}");
    assert_eq!(said.lines().count(), usize::from(failed), "{said}");
    let findings = report["findings"].as_array().unwrap().clone();
    for finding in &findings {
        let severity = finding["severity"].as_str().unwrap();
        assert!(["ok", "note", "warning", "error"].contains(&severity), "{finding:#}");
        assert!(!finding["found"].as_str().unwrap().is_empty(), "{finding:#}");
        if ["warning", "error"].contains(&severity) {
            assert!(finding["effect"].is_string() && finding["fix"].is_string(), "{finding:#}");
        }
        if finding["runs"] == true {
            assert!(finding["fix"].is_string() && finding["undo"].is_string(), "{finding:#}");
        }
    }
    findings
}

fn named<'a>(findings: &'a [Value], name: &str) -> &'a Value {
    findings.iter().find(|finding| finding["name"] == name).unwrap_or_else(|| panic!("no {name}: {findings:#?}"))
}

/// Checks a script with the shell, and with shellcheck if it is installed.
fn assert_good_script(script: &str) {
    for (program, arguments) in [("sh", &["-n"][..]), ("shellcheck", &["-"])] {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let Ok(mut child) = command.spawn() else {
            assert_ne!(program, "sh", "no shell");
            continue;
        };
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program}: {said}{script}");
    }
}

#[test]
fn every_role_gets_all_checks_in_text_and_json() {
    let dir = chain();
    #[rustfmt::skip]
    let expected = [
        "receive-buffers", "program-buffers", "send-buffers", "gso", "io-uring", "huge-pages", "aead-engine", "cores",
        "governor", "idle-polling", "queues", "numa", "conntrack", "name-servers", "clock", "descriptors", "open-files",
        "locked-memory", "path-mtu", "keys", "ports", "start",
    ];
    for line in ["", " --config entry.toml", " --config mix1.toml", " --config mix3.toml", " --config exit.toml"] {
        let all = findings(&run(dir.path(), &format!("doctor --json{line}")));
        let people = run(dir.path(), &format!("doctor --verbose{line}"));
        let people = String::from_utf8(people.stdout).unwrap();
        for name in expected {
            assert!(people.contains(name), "{line}: {name}: {people}");
            named(&all, name);
        }
        // The files are new and for loopback: these two are fine on every host.
        if !line.is_empty() {
            for name in ["keys", "descriptors", "ports"] {
                assert_eq!(named(&all, name)["severity"], "ok", "{line}: {all:#?}");
            }
        }
    }
}

#[test]
fn receive_buffer_limit_has_a_command_that_raises_it() {
    const WANTED: usize = 1_073_741_823;
    let Some(most) = fs::read_to_string("/proc/sys/net/core/rmem_max").ok().and_then(|most| most.trim().parse().ok())
    else {
        return skipped("needs /proc/sys/net/core/rmem_max, which a network namespace hides: run it outside");
    };
    if WANTED <= most {
        return skipped(format!("needs a limit below {WANTED}: sysctl -w net.core.rmem_max=8388608 (it is {most})"));
    }
    let dir = chain();
    edit(&dir.path().join("mix1.toml"), "# receive_buffer", &format!("receive_buffer = {WANTED}"));
    let all = findings(&run(dir.path(), "doctor --json --config mix1.toml"));
    let buffers = named(&all, "receive-buffers");
    assert!(["warning", "error"].contains(&buffers["severity"].as_str().unwrap()), "{buffers:#}");
    assert!(buffers["found"].as_str().unwrap().contains("net.core.rmem_max"), "{buffers:#}");
    assert!(buffers["effect"].as_str().unwrap().contains("mix1.toml:22"), "{buffers:#}");
    assert_eq!(buffers["fix"], format!("sudo sysctl -w net.core.rmem_max={WANTED}"));
    assert_eq!(buffers["undo"], format!("sudo sysctl -w net.core.rmem_max={most}"));
    let script = run(dir.path(), "doctor --fix-script --config mix1.toml").stdout;
    let script = String::from_utf8(script).unwrap();
    assert!(script.contains(&format!("\nsudo sysctl -w net.core.rmem_max={WANTED}\n# undo: ")), "{script}");
    assert!(script.contains(&format!("'net.core.rmem_max = {WANTED}'")), "kept over a restart: {script}");
    assert_good_script(&script);
}

#[test]
fn seats_that_setups_have_no_time_for_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    assert!(run(dir.path(), "init . --mixes 3 --class voice:seats=16384").status.success());
    let all = findings(&run(dir.path(), "doctor --json --config mix1.toml"));
    let start = named(&all, "start");
    // A note if something else of this host is an error.
    assert!(["error", "note"].contains(&start["severity"].as_str().unwrap()), "{start:#}");
    assert!(start["found"].as_str().unwrap().contains("whose setups take this host"), "{start:#}");
}

#[test]
fn exposed_keys_are_fixed_by_the_script() {
    let dir = chain();
    let key = dir.path().join("exit.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let all = findings(&run(dir.path(), "doctor --json --config exit.toml"));
    let keys = named(&all, "keys");
    assert_eq!((&keys["severity"], &keys["fix"]), (&"error".into(), &"chmod 600 exit.key".into()), "{keys:#}");
    let found = run(dir.path(), "doctor --fix-script --config exit.toml");
    assert_eq!(complaint(&found).0, Some(1));
    let script = String::from_utf8(found.stdout).unwrap();
    assert_good_script(&script);
    // Other fixes change this host: leave them out.
    let alone: String = script
        .lines()
        .filter(|line| !line.starts_with("sudo ") && !line.starts_with("echo "))
        .fold(String::new(), |script, line| script + line + "\n");
    let done = Command::new("sh").arg("-c").arg(&alone).current_dir(dir.path()).output().unwrap();
    assert!(done.status.success(), "{}{alone}", complaint(&done).1);
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let all = findings(&run(dir.path(), "doctor --json --config exit.toml"));
    assert_eq!(named(&all, "keys")["severity"], "ok");
}

#[test]
fn port_that_is_not_published_is_a_warning() {
    let dir = chain();
    let text = fs::read_to_string(dir.path().join("mix1.toml")).unwrap();
    fs::write(dir.path().join("mix1.toml"), text.replace("up = \"127.0.0.1:4701\"", "up = \"127.0.0.1:4799\""))
        .unwrap();
    let all = findings(&run(dir.path(), "doctor --json --config mix1.toml"));
    let ports = named(&all, "ports");
    assert_eq!(ports["severity"], "warning");
    assert!(ports["found"].as_str().unwrap().contains("listens at port 4799"), "{ports:#}");
}

#[test]
fn missing_cores_are_an_error() {
    let dir = chain();
    edit(&dir.path().join("mix2.toml"), "# cores", "cores = [1000]");
    let all = findings(&run(dir.path(), "doctor --json --config mix2.toml"));
    let cores = named(&all, "cores");
    assert_eq!(cores["severity"], "error");
    assert!(cores["found"].as_str().unwrap().contains("`cores` lists 1000"), "{cores:#}");
    let people = run(dir.path(), "doctor --config mix2.toml");
    let (code, said) = complaint(&people);
    assert_eq!(code, Some(1));
    assert!(said.starts_with("eddy: this host has errors: ") && said.contains("cores"), "{said}");
    assert!(String::from_utf8_lossy(&people.stdout).contains("✗ cores"));
}

#[test]
fn workers_of_all_classes_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    assert!(run(dir.path(), "init . --class L --class voice").status.success());
    let found = || {
        let all = findings(&run(dir.path(), "doctor --json --config mix2.toml"));
        named(&all, "cores")["found"].as_str().unwrap().to_owned()
    };
    assert!(found().starts_with("2 workers"), "{}", found());
    edit(&dir.path().join("mix2.toml"), "# cores", "cores = [0]");
    assert!(found().starts_with("`cores` lists 1 core for 2 workers"), "{}", found());
    edit(&dir.path().join("mix2.toml"), "", "[class.voice]\ncores = [1000]");
    assert!(found().starts_with("`cores` lists 1000, but"), "{}", found());
    assert_mistake("cores", &run(dir.path(), "config check mix2.toml"), &["cores lists 1000", "list some of these"]);
}

#[test]
fn mistakes_in_files_are_reported_as_by_the_node() {
    let dir = chain();
    assert_mistake("none", &run(dir.path(), "doctor --config mix9.toml"), &["mix9.toml: No such file", "eddy init"]);
    edit(&dir.path().join("mix1.toml"), "mixing", "mixing = \"timed:t=9ms\"");
    assert_mistake("mixing", &run(dir.path(), "doctor --json --config mix1.toml"), &["mix1.toml:15", "5 ms"]);
    fs::copy(dir.path().join("exit.key"), dir.path().join("mix2.key")).unwrap();
    assert_mistake("keys", &run(dir.path(), "doctor --config mix2.toml"), &["this node is an exit in this chain"]);
    assert!(run(dir.path(), "init paced --class L --class voice").status.success());
    let entry = dir.path().join("paced/entry.toml");
    edit(&entry, "", "[[forward]]\nlisten = \"5000\"\nto = \"meet:@call.secret\"\nclass = \"voice\"");
    let secret = dir.path().join("paced/call.secret");
    let doctor = || run(dir.path(), "doctor --json --config paced/entry.toml");
    assert_mistake("no secret", &doctor(), &["call.secret: No such file"]);
    fs::write(&secret, "garbage").unwrap();
    assert_mistake("no secret", &doctor(), &["call.secret: invalid secret of a meeting"]);
    fs::write(&secret, format!("eddy-meet-1:{}\n", "ab".repeat(32))).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o666)).unwrap();
    assert_mistake("open secret", &doctor(), &["call.secret: mode 0666", "chmod 600"]);
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    assert_ne!(complaint(&doctor()).0, Some(2), "the files are right");
    assert_mistake("both", &run(dir.path(), "doctor --json --fix-script"), &["--json", "--fix-script"]);
    let output = eddy().arg("doctor").env("EDDY_AEAD", "wide128").output().unwrap();
    assert_mistake("engine", &output, &["EDDY_AEAD=wide128", "expected wide512"]);
}

#[test]
fn slow_engine_is_a_warning() {
    let output = eddy().args(["doctor", "--json"]).env("EDDY_AEAD", "rustcrypto").output().unwrap();
    let all = findings(&output);
    let engine = named(&all, "aead-engine");
    assert!(engine["found"].as_str().unwrap().contains("rustcrypto"), "{engine:#}");
    if wire::gcm::Engine::best().name() != "rustcrypto" {
        assert_eq!((&engine["severity"], &engine["fix"]), (&"warning".into(), &"unset EDDY_AEAD".into()), "{engine:#}");
    }
}

#[test]
fn default_script_parses() {
    let script = run(Path::new("."), "doctor --fix-script").stdout;
    let script = String::from_utf8(script).unwrap();
    assert!(script.starts_with("#!/bin/sh\n") && script.contains("\nset -eu\n"), "{script}");
    assert_good_script(&script);
}
