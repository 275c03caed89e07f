//! `eddy init` and the command line: errors and output.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::common::command::{assert_mistake, run};

#[test]
fn init_refuses_bad_plans_and_writes_nothing() {
    #[rustfmt::skip]
    let mistakes: &[(&str, &[&str])] = &[
        ("init new --ipv6 --mixes 6",
            &["class L with 6 mixes", "1456 bytes, but over IPv6 only 1452 fit", "--mixes 5 or --class M"]),
        ("init new --host ::1 --mixes 7", &["1472 bytes, but over IPv6 only 1452 fit"]),
        ("init new --ipv6 --host 127.0.0.1", &["--host 127.0.0.1 is IPv4"]),
        ("init new --mixes 2 --node 192.0.2.1", &["1 --node for 2 mixes and an exit", "give --node 3 times"]),
        (
            "init new --mixes 1 --lanes 2 --node 192.0.2.1:4701 --node 192.0.2.1:4702",
            &["--node 192.0.2.1:4702 is one of the 2 ports of 192.0.2.1:4701", "leave 2 ports for each mix"],
        ),
        ("init new --mixes 1 --lanes 2 --node 192.0.2.1:65535 --node 192.0.2.2:1", &["at most 65534", "2 lanes need consecutive ports"]),
        ("init new --mixes 2 --lanes 2", &["--lanes 2 with 2 mixes", "--mixes 1", "--lanes-show-label-bits"]),
        ("init new --mixes 1 --node 192.0.2.1:x --node 192.0.2.2", &["invalid --node \"192.0.2.1:x\"", "expected IP, IP:PORT"]),
        ("init new --mixes 1 --node 192.0.2.1:5 --node 192.0.2.1:5", &["duplicate --node: mix1 and exit both get 192.0.2.1:5", "write --node IP:PORT"]),
        ("init new --mixes 1 --node 192.0.2.1:0 --node 192.0.2.2", &["192.0.2.1:0: expected a port from 1 to 65535", "port"]),
        ("init new --base-port 65534", &["--base-port 65534 is too high", "needs 4 ports"]),
        ("chain --ipv6 --mixes 7", &["1472 bytes, but over IPv6 only 1452 fit"]),
        ("chain --rate 1000000 --seconds 86400", &["too many for one run"]),
        ("init new --class S --class L", &["chains of one free class", "`eddy assemble`"]),
        ("init new --class voice --class game", &["both of class paced-S", "choose one of them"]),
        ("init new --class voice:rounds=256", &["rounds is too small"]),
        (
            "init new --mixes 1 --class voice --node 192.0.2.1:4701 --node 192.0.2.1:4702",
            &["--node 192.0.2.1:4702 is one of the 2 ports of 192.0.2.1:4701", "leave 2 ports for each mix"],
        ),
        ("chain --users 4", &["--users needs a paced class", "--class voice"]),
        ("chain --class voice --stay", &["--stay is for chains of a free class", "instead of voice"]),
        ("chain --class voice --channels 2", &["--channels is for chains of a free class", "leave it out"]),
        ("chain --class voice --receivers 5", &["--receivers is for chains of a free class", "leave it out"]),
        ("chain --class voice --messages 10", &["--messages is for chains of a free class", "leave it out"]),
        ("chain --class voice --allow 10.0.0.0/8", &["--allow is for chains of a free class", "leave it out"]),
        ("chain --class voice --deny 10.0.0.0/8", &["--deny is for chains of a free class", "leave it out"]),
        ("chain --class voice --resolver 192.0.2.1:53", &["--resolver is for chains of a free class", "leave it out"]),
        ("chain --class voice:seats=8", &["--users 20 does not fit seats 8: expected 20 or more"]),
        ("chain --class voice:n_min=40 --users 4", &["does not fit n_min 40: expected --users 40 or more", "noise only"]),
        ("chain --class voice:rounds=512 --mixes 7", &["rounds is too small", "expected 2048 or more"]),
        ("init new --class voice:n_min=300", &["n_min must be 1 to seats, which is 256 (got 300)"]),
    ];
    for (line, wanted) in mistakes {
        let dir = tempfile::tempdir().unwrap();
        assert_mistake(line, &run(dir.path(), line), wanted);
        assert!(!dir.path().join("new").exists(), "{line}");
    }
}

#[test]
fn secret_of_a_meeting_gets_a_new_file_for_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let (line, path) = ("meet new --out call.secret", dir.path().join("call.secret"));
    let made = run(dir.path(), line);
    assert!(made.status.success() && made.stdout.is_empty(), "{made:?}");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("eddy-meet-1:") && text.len() == 77);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_mistake(line, &run(dir.path(), line), &["call.secret: this file exists", "another FILE"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), text, "the first one stays");
    let printed = run(dir.path(), "meet new");
    assert!(printed.stdout.starts_with(b"eddy-meet-1:") && printed.stdout != text.as_bytes());
}

#[test]
fn no_message_quotes_the_secret_of_a_meeting() {
    let dir = tempfile::tempdir().unwrap();
    let printed = run(dir.path(), "meet new");
    let secret = String::from_utf8_lossy(&printed.stdout);
    let secret = secret.trim();
    let assert_hidden = |line: &str, wanted: &str| {
        let refused = run(dir.path(), line);
        assert_mistake(line, &refused, &[wanted]);
        assert!(!String::from_utf8_lossy(&refused.stderr).contains(&secret[12..20]), "{refused:?}");
    };
    let named = "a meeting is named by the file";
    for (forward, wanted) in [
        (format!("5900=meet:{secret},class=voice"), named),
        (format!("5900={secret},class=voice"), named),
        (format!("5900={secret}:5000"), named),
        (format!("5900=meet:@{secret}"), named),
        (format!("meet:{secret}=5900"), "invalid listen address"),
        (secret.to_owned(), "expected LISTEN=DEST"),
    ] {
        assert_hidden(&format!("entry --chain chain.toml --forward {forward}"), wanted);
        assert_hidden(&format!("forward add --config entry.toml {forward}"), wanted);
    }
    assert_hidden(&format!("meet new {secret}"), "eddy-meet-...");
    run(dir.path(), "init . --mixes 1 --force");
    let entry = fs::read_to_string(dir.path().join("entry.toml")).unwrap();
    for to in [secret.to_owned(), format!("meet:@{secret}"), format!("{secret}:5")] {
        let forward = format!("{entry}\n[[forward]]\nlisten = \"5900\"\nto = \"{to}\"\n");
        fs::write(dir.path().join("entry.toml"), forward).unwrap();
        assert_hidden("entry --config entry.toml", named);
    }
}

#[test]
fn wrong_argument_exits_2_and_names_the_fix() {
    #[rustfmt::skip]
    let mistakes: &[(&str, &str)] = &[
        ("init", "<DIR>"),
        ("init x --mixes 0", "invalid --mixes \"0\": expected 1 to 7"),
        ("init x --mixes 8", "expected 1 to 7"),
        ("init x --mixes 1 --node 192.0.2.1:0 --node 192.0.2.2:1", "192.0.2.1:0: expected a port from 1 to 65535"),
        ("init x --host 0.0.0.0", "expected an address that the previous hop can send to"),
        ("init x --class XL", "expected S (203 bytes in a cell)"),
        ("init x --mixing pool:t=1ms", "expected one of"),
        ("init x --mixing threshold:n=5,n=6", "duplicate key n"),
        ("init x --lifetime 10", "expected 60 to 3600"),
        ("init x --mxies 3", "--mixes"),
        ("mix", "missing --config <FILE>; usage: eddy mix --config <FILE>"),
        ("mixx --config x", "mix"),
        ("entry --config x --forward 5000", "LISTEN=DEST"),
        ("entry --config x --forward here=192.0.2.1:5", "invalid listen address"),
        ("entry --config x --forward 5000=192.0.2.1:0", "port 0"),
        ("entry --config x --pymix here", "invalid --pymix \"here\""),
        ("exit --config x --allow everyone", "expected IP/BITS"),
        ("chain --payload-len 70000", "expected 0 to 65507"),
        ("chain --receivers 0", "expected 1 to 256"),
        ("chain --users 3", "expected an even number, 2 to 32"),
        ("chain --class voise", "did you mean voice?"),
        ("chain --rate 0", "messages per second"),
        ("completions klingon", "bash"),
    ];
    for (line, wanted) in mistakes {
        let dir = tempfile::tempdir().unwrap();
        assert_mistake(line, &run(dir.path(), line), &[wanted]);
    }
}

#[test]
fn init_prints_next_commands_and_keeps_existing_keys() {
    let dir = tempfile::tempdir().unwrap();
    let line = "init my --mixes 2 --class s --node 192.0.2.1 --node 198.51.100.7:99 --node 203.0.113.9";
    let made = run(dir.path(), line);
    assert!(made.status.success(), "{made:?}");
    let said = String::from_utf8(made.stdout).unwrap();
    for wanted in [
        "Class S suits voice and games: 203 bytes per cell, link MTU 12",
        "eddy mix --config my/mix1.toml     # 192.0.2.1:4701",
        "eddy mix --config my/mix2.toml     # 198.51.100.7:99",
        "eddy exit --config my/exit.toml    # 203.0.113.9:4703",
        "eddy entry --config my/entry.toml",
        "--forward",
    ] {
        assert!(said.contains(wanted), "wanted {wanted:?} in {said}");
    }
    assert!(said.lines().count() < 24 && said.lines().all(|line| line.len() <= 80), "{said}");
    let mut files: Vec<_> =
        fs::read_dir(dir.path().join("my")).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    let of_hops = ["exit", "mix1", "mix2"].into_iter();
    let of_hops =
        of_hops.flat_map(|hop| ["desc", "identity.key", "key", "state", "toml"].map(|end| format!("{hop}.{end}")));
    let mut wanted: Vec<_> = ["chain.toml", "entry.toml"].map(str::to_owned).into_iter().chain(of_hops).collect();
    wanted.sort();
    assert_eq!(files, wanted);

    let key = fs::read(dir.path().join("my/mix1.key")).unwrap();
    assert_mistake("again", &run(dir.path(), line), &["my/chain.toml exists", "--force"]);
    assert_eq!(fs::read(dir.path().join("my/mix1.key")).unwrap(), key);
    assert!(run(dir.path(), &format!("{line} --force")).status.success());
    assert_ne!(fs::read(dir.path().join("my/mix1.key")).unwrap(), key);
}

#[test]
fn man_pages_and_completions_are_generated() {
    let dir = tempfile::tempdir().unwrap();
    assert!(run(dir.path(), "man pages").status.success());
    let page = fs::read_to_string(dir.path().join("pages/eddy-chain.1")).unwrap();
    assert!(page.contains("payload") && page.contains(".nf"), "{page}");
    let script = run(dir.path(), "completions bash");
    let script = String::from_utf8_lossy(&script.stdout).into_owned();
    assert!(script.contains("_eddy()") && script.contains("voice voice-lite game video S M L"));
}

#[test]
fn help_of_help_is_help() {
    let dir = tempfile::tempdir().unwrap();
    for (line, usage) in [
        ("help -h", "Usage: eddy <COMMAND>"),
        ("help --help", "Usage: eddy <COMMAND>"),
        ("help chain -h", "Usage: eddy chain"),
        ("config help -h", "Usage: eddy config"),
    ] {
        let output = run(dir.path(), line);
        assert!(
            output.status.success() && String::from_utf8_lossy(&output.stdout).contains(usage),
            "{line}: {output:?}"
        );
    }
}

#[test]
fn paced_class_has_the_port_after_those_of_lanes() {
    let dir = tempfile::tempdir().unwrap();
    let made = run(dir.path(), "init x --mixes 1 --lanes 2 --class S --class voice:n_min=2 --class video");
    let said = String::from_utf8(made.stdout).unwrap();
    for wanted in [
        "Created a chain of classes S, voice, video (paced) with 1 mix in x.",
        "# 127.0.0.1:4701",
        "# 127.0.0.1:4705",
        "class voice (paced-S):",
        "Warning: n_min = 2 lets batches of fewer than 4 channels through, which hide\nnobody",
        "eddy entry --chain x/chain.toml --forward 5000=",
        "meet:@call.secret,class=voice",
        "link MTU 1388 (video).",
    ] {
        assert!(said.contains(wanted), "wanted {wanted:?} in {said}");
    }
    assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
    let shown = run(dir.path(), "inspect x/chain.toml");
    let shown = String::from_utf8(shown.stdout).unwrap();
    for wanted in ["127.0.0.1:4703", "127.0.0.1:4704", "127.0.0.1:4706", "127.0.0.1:4707"] {
        assert!(shown.contains(wanted), "wanted {wanted:?} in {shown}");
    }
    for node in ["mix1", "exit", "entry"] {
        assert!(run(dir.path(), &format!("config check x/{node}.toml")).status.success(), "{node}");
    }
}

#[test]
fn nodes_without_ports_share_a_host() {
    let dir = tempfile::tempdir().unwrap();
    let made = run(
        dir.path(),
        "init x --mixes 2 --lanes 2 --lanes-show-label-bits --node 192.0.2.1 --node 192.0.2.1 --node 192.0.2.1",
    );
    let said = String::from_utf8(made.stdout).unwrap();
    for address in ["192.0.2.1:4701", "192.0.2.1:4703", "192.0.2.1:4705"] {
        assert!(said.contains(address), "{said}");
    }
}

#[test]
fn version_names_commit_and_engine() {
    let dir = tempfile::tempdir().unwrap();
    let text = |line| String::from_utf8(run(dir.path(), line).stdout).unwrap();
    let long = text("--version");
    assert!(long.starts_with("eddy ") && long.contains("\ncommit  ") && long.contains("\nengine  "), "{long}");
    assert_eq!(text("-V").lines().count(), 1);
}
