//! A chain of several operators, with the command: they exchange public files only. Bad input is refused in one line.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{SystemTime, UNIX_EPOCH};

use control::trust::HopRole;
use eddy_node::ceremony::contact::Places;
use eddy_node::ceremony::files::{DescriptorFile, descriptor_text, read_identity};
use eddy_node::ceremony::keygen::{Plan, keygen};
use tempfile::TempDir;

use crate::common::command::{assert_mistake, run};
use crate::mistakes::edit;

const DAY: u64 = 86_400;

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Standard output of a command that succeeds.
fn said(dir: &Path, line: &str) -> String {
    let output = run(dir, line);
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A meeting place with a folder for each operator: `a`, `b`, `c` with a mix, `x` with an exit, and their descriptors
/// `a.desc`, ...
struct Meeting {
    dir: TempDir,
}

const OPERATORS: [(&str, &str); 4] = [("a", "mix"), ("b", "mix"), ("c", "mix"), ("x", "exit")];
const ASSEMBLE: &str = "assemble a.desc b.desc c.desc --exit x.desc";

impl Meeting {
    fn new() -> Meeting {
        let dir = tempfile::tempdir().unwrap();
        for (i, (name, role)) in OPERATORS.iter().enumerate() {
            let folder = dir.path().join(name);
            fs::create_dir(&folder).unwrap();
            said(&folder, &format!("keygen --role {role} --address 192.0.2.{}:4700", i + 1));
            fs::copy(folder.join("node.desc"), dir.path().join(format!("{name}.desc"))).unwrap();
        }
        Meeting { dir }
    }

    fn assembled() -> Meeting {
        let meeting = Meeting::new();
        said(meeting.path(), ASSEMBLE);
        meeting
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn run(&self, line: &str) -> Output {
        run(self.path(), line)
    }

    /// Makes a mix at another time, as `NAME.desc`.
    fn add(&self, name: &str, now_s: u64) {
        let places = Places { addresses: vec!["192.0.2.50".parse().unwrap()], ..Places::default() };
        let plan = Plan { role: HopRole::Mix, contacts: places.contacts(1).unwrap(), days: 90, force: false };
        keygen(&self.file(name), &plan, now_s).unwrap();
        fs::copy(self.file(name).join("node.desc"), self.file(&format!("{name}.desc"))).unwrap();
    }
}

/// The values of a file in base64, of which none may be in another one.
fn secrets(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| Some(line.split_once(" = \"")?.1.trim_end_matches('"').to_owned())).collect()
}

#[test]
fn four_operators_make_a_chain_of_public_files() {
    let meeting = Meeting::new();
    let made = said(meeting.path(), ASSEMBLE);
    let fingerprint = made.lines().find_map(|line| line.strip_prefix("fingerprint  ")).expect("a fingerprint");
    assert_eq!(fingerprint.split(' ').map(str::len).collect::<Vec<_>>(), [4; 8], "{made}");
    assert!(made.lines().all(|line| line.len() <= 80), "{made}");

    let public: String = ["a.desc", "b.desc", "c.desc", "x.desc", "chain.toml", "a/node.toml"]
        .map(|file| fs::read_to_string(meeting.file(file)).unwrap())
        .concat();
    for (name, _) in OPERATORS {
        fs::copy(meeting.file("chain.toml"), meeting.file(name).join("chain.toml")).unwrap();
        let own = said(&meeting.file(name), "inspect chain.toml");
        assert!(own.contains(fingerprint) && own.contains("chain of 3 mixes and an exit"), "{own}");
        let keys = ["identity.key", "node.key"].map(|file| secrets(&meeting.file(name).join(file))).concat();
        assert_eq!(keys.len(), 3);
        assert!(keys.iter().all(|key| key.len() == 44 && !public.contains(key)), "a private key of {name} is public");
    }
}

#[test]
fn keygen_says_where_the_identity_is() {
    let dir = tempfile::tempdir().unwrap();
    let line = "keygen --role exit --address 192.0.2.99 --class L --class S --name exit.example.org --out new/exit";
    let made = said(dir.path(), line);
    let identity = dir.path().canonicalize().unwrap().join("new/exit/identity.key");
    assert!(made.contains(&format!("\n  {}\n", identity.display())) && made.contains("offline"), "{made}");
    let fits = |line: &str| line.len() <= 80 || line.contains("identity.key");
    assert!(made.lines().count() < 24 && made.lines().all(fits), "{made}");
    let shown = said(dir.path(), "inspect new/exit/node.desc");
    for wanted in [
        "new/exit/node.desc: descriptor of an exit",
        "class S      192.0.2.99:4701, exit.example.org:4701",
        "class L      192.0.2.99:4700, exit.example.org:4700",
        "days left)",
    ] {
        assert!(shown.contains(wanted), "wanted {wanted:?} in {shown}");
    }
    assert_mistake("again", &run(dir.path(), line), &["new/exit/identity.key: the file exists", "--out", "--force"]);
    said(dir.path(), &format!("{line} --force"));
}

#[test]
fn assembling_says_what_paced_classes_do() {
    let dir = tempfile::tempdir().unwrap();
    for (name, role, number) in [("a", "mix", 1), ("b", "mix", 2), ("c", "mix", 3), ("x", "exit", 4)] {
        let classes = "--class L --class paced-S --class paced-L";
        said(dir.path(), &format!("keygen --role {role} --address 192.0.2.{number} {classes} --out {name}"));
    }
    let nodes = "a/node.desc b/node.desc c/node.desc --exit x/node.desc";
    let made = said(
        dir.path(),
        &format!("assemble {nodes} --class video --class L --class voice-lite:n_min=2,name=calls,steps_ms=2/3/4"),
    );
    assert!(made.lines().all(|line| line.len() <= 80), "{made}");
    for wanted in [
        "\nclass calls (paced-S):\n\n  carries  40 kbit/s to destinations, 81 back, 38 between users\n",
        "\nclass video (paced-L):\n\n  carries  2116 kbit/s",
        "\ninterval     20 s, the shortest for these classes\n",
    ] {
        assert!(made.contains(wanted), "wanted {wanted:?} in {made}");
    }
    let shown: serde_json::Value = serde_json::from_str(&said(dir.path(), "inspect chain.toml --json")).unwrap();
    let calls = &shown["paced"][0];
    assert_eq!((&calls["name"], &calls["n_min"], &calls["period_ms"]), (&"calls".into(), &2.into(), &20.into()));
    assert_eq!(calls["steps_ms"], serde_json::json!([2, 3, 4]));
    let shown = said(dir.path(), "inspect chain.toml");
    assert!(shown.lines().all(|line| line.len() <= 80), "{shown}");
}

#[test]
fn wrong_arguments_of_a_ceremony_write_nothing() {
    #[rustfmt::skip]
    let mistakes: &[(&str, &[&str])] = &[
        ("keygen --out new", &["missing --role <mix|exit>", "eddy keygen --role mix --address"]),
        ("keygen --out new --role entry", &["invalid --role \"entry\"", "mix, exit"]),
        ("keygen --out new --role mix", &["missing --address"]),
        ("keygen --out new --role mix --address mix.example.org", &["invalid --address \"mix.example.org\"", "expected IP, IP:PORT", "a DNS name with --name"]),
        ("keygen --out new --role mix --address 0.0.0.0", &["an address that the previous hop can send to"]),
        ("keygen --out new --role mix --address 192.0.2.1 --name 192.0.2.2", &["give it with --address"]),
        ("keygen --out new --role mix --address 192.0.2.1 --class X", &["invalid --class \"X\"", "expected S (203 bytes in a cell)"]),
        ("keygen --out new --role mix --address 192.0.2.1 --class voice", &["invalid --class \"voice\"", "voice is a profile of paced-S", "write --class paced-S here"]),
        ("keygen --out new --role mix --address 192.0.2.1 --class L --class L", &["duplicate --class L: name it once", "--class L=ADDR"]),
        ("keygen --out new --role mix --address 192.0.2.1 --days 0", &["invalid --days \"0\": expected 1 to 3650"]),
        ("keygen --out new --role exit --address 192.0.2.1 --lanes 2", &["--lanes is for mixes"]),
        ("keygen --out new --rotate --role mix", &["--rotate"]),
        ("keygen --out new --rotate", &["new/node.key: No such file", "give the node's folder with --out"]),
        ("assemble --exit x.desc", &["NODE.desc"]),
        ("assemble a.desc", &["missing --exit"]),
        ("assemble a.desc --exit x.desc", &["a.desc: No such file", "eddy keygen"]),
        ("assemble a.desc --exit x.desc --class voise", &["invalid --class \"voise\"", "did you mean voice?"]),
        ("assemble a.desc --exit x.desc --class voice:sets=2", &["unknown setting \"sets\"", "did you mean seats?"]),
        ("assemble a.desc --exit x.desc --interval 601", &["invalid --interval \"601\": expected 1 to 600"]),
        ("renew node.desc", &["missing --identity"]),
        ("renew --identity identity.key node.desc", &["node.desc: No such file", "node.request"]),
        ("renew --identity i node.desc --name m --no-names", &["--no-names"]),
        ("inspect chain.toml", &["chain.toml: No such file", "node.desc, node.request and chain.toml"]),
        ("inspect .", &["Is a directory", "name a file in it"]),
    ];
    for (line, wanted) in mistakes {
        let dir = tempfile::tempdir().unwrap();
        assert_mistake(line, &run(dir.path(), line), wanted);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{line}");
    }
}

#[test]
fn assemble_refuses_descriptors_that_do_not_fit() {
    let meeting = Meeting::new();
    meeting.add("early", now_s() + DAY);
    meeting.add("late", now_s() - 91 * DAY);
    fs::write(meeting.file("noise.desc"), [0xff; 300]).unwrap();
    fs::write(meeting.file("empty.desc"), "").unwrap();
    fs::write(meeting.file("text.desc"), "descriptor = \"Zm9yZWlnbg==\"\n").unwrap();
    // A character of the signed content, and one of the signature.
    let good = fs::read_to_string(meeting.file("b.desc")).unwrap();
    let start = good.find("descriptor = \"").unwrap() + 14;
    for (name, at) in [("altered.desc", start + 60), ("forged.desc", good.len() - 20)] {
        let other = if good.as_bytes()[at] == b'A' { "B" } else { "A" };
        let mut changed = good.clone();
        changed.replace_range(at..=at, other);
        fs::write(meeting.file(name), changed).unwrap();
    }
    // Another node of one identity.
    let content = DescriptorFile::read(&meeting.file("a.desc")).unwrap().descriptor.content().clone();
    let mut content = control::trust::NodeDescriptor { noise: [9; 32], signing: [9; 32], ..content };
    content.contacts[0].addresses[0] = "192.0.2.77:4700".parse().unwrap();
    let signed = content.sign(&read_identity(&meeting.file("a/identity.key")).unwrap()).unwrap();
    fs::write(meeting.file("second.desc"), descriptor_text(&signed)).unwrap();

    #[rustfmt::skip]
    let mistakes: &[(&str, &[&str])] = &[
        ("a.desc early.desc --exit x.desc", &["early.desc:", "not valid before", "date -u"]),
        ("a.desc late.desc --exit x.desc", &["late.desc:", "the descriptor expired on", "24 h ago", "eddy renew"]),
        ("a.desc x.desc --exit x.desc", &["x.desc:", "hop 2 must be a mix, but this is an exit"]),
        ("a.desc b.desc --exit c.desc", &["c.desc:", "must be an exit, but this is a mix"]),
        ("a.desc b.desc a.desc --exit x.desc", &["a.desc:", "is also that of a.desc", "name each node once"]),
        ("a.desc second.desc --exit x.desc", &["second.desc:", "the identity", "is also that of a.desc"]),
        ("a.desc altered.desc --exit x.desc", &["altered.desc:", "descriptor"]),
        ("a.desc forged.desc --exit x.desc", &["forged.desc:", "the signature does not match"]),
        ("a.desc noise.desc --exit x.desc", &["noise.desc:1: the text is not UTF-8"]),
        ("a.desc empty.desc --exit x.desc", &["empty.desc: the file is empty"]),
        ("a.desc text.desc --exit x.desc", &["text.desc:1: the descriptor was changed or damaged: not an eddy descriptor"]),
        ("a.desc a/node.toml --exit x.desc", &["a/node.toml: this is a node's configuration, expected a node's descriptor"]),
        ("a.desc a/identity.key --exit x.desc", &["a/identity.key:", "this is a node's identity, expected a node's descriptor"]),
        ("a.desc b.desc --exit x.desc --class S", &["a.desc:", "no address for class S, only for L"]),
        ("a.desc b.desc --exit x.desc --epoch 50", &["invalid --epoch \"50\": expected at least 100, ten times --interval 10"]),
    ];
    for (line, wanted) in mistakes {
        let line = format!("assemble {line}");
        assert_mistake(&line, &meeting.run(&line), wanted);
        assert!(!meeting.file("chain.toml").exists(), "{line}");
    }
    said(meeting.path(), ASSEMBLE);
    assert_mistake("again", &meeting.run(ASSEMBLE), &["chain.toml: the file exists", "--force"]);
}

/// Line and place of each value of a chain file.
fn values(text: &str) -> Vec<(usize, std::ops::Range<usize>)> {
    let mut at = 0;
    let mut all = Vec::new();
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if let Some((name, rest)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            let value = rest.split("   #").next().unwrap().trim_end();
            let start = at + name.len() + 3;
            let quotes = usize::from(value.starts_with('"'));
            all.push((number + 1, start + quotes..start + value.len() - quotes));
        }
        at += line.len();
    }
    all
}

#[test]
fn changed_chain_file_is_refused_with_its_line() {
    let meeting = Meeting::assembled();
    let good = fs::read_to_string(meeting.file("chain.toml")).unwrap();
    let all = values(&good);
    assert_eq!(all.len(), 4 + 3 + 2 * 4);
    for (line, range) in all {
        // The library's tests change every byte; here one is changed at the start, in the middle and at the end.
        for at in [range.start, (range.start + range.end) / 2, range.end - 1] {
            let byte = good.as_bytes()[at];
            let other = match byte {
                b'0'..=b'9' => (b'0' + (byte - b'0' + 1) % 10) as char,
                b'A' => 'B',
                _ => 'A',
            };
            let mut changed = good.clone();
            changed.replace_range(at..=at, &other.to_string());
            fs::write(meeting.file("chain.toml"), changed).unwrap();
            let output = meeting.run("inspect chain.toml");
            assert_mistake(&format!("byte {at} of line {line}"), &output, &["chain.toml:"]);
        }
    }

    let changes = [
        ("interval_s", "interval_s = 11", "chain.toml:4: chain.toml was changed: id says "),
        ("suite", "suite = 1", ", content gives "),
        ("lifetime_s", "lifetime_s = 60", "chain.toml was changed"),
        ("epoch_s", "epoch_s = 20", "chain.toml:7: the epoch must be 100, ten intervals, to 86400 s (got 20)"),
        ("suite", "suit = 2", "did you mean `suite`?"),
        ("interval_s", "# interval_s", "the key `interval_s` is missing"),
    ];
    for (line, with, wanted) in changes {
        fs::write(meeting.file("chain.toml"), &good).unwrap();
        edit(&meeting.file("chain.toml"), line, with);
        assert_mistake(with, &meeting.run("inspect chain.toml"), &["chain.toml:", wanted]);
    }
}

#[test]
fn renew_needs_the_identity_and_no_other_key() {
    let meeting = Meeting::assembled();
    let folder = meeting.file("a");
    fs::remove_file(folder.join("node.key")).unwrap();
    let before = fs::read_to_string(folder.join("node.desc")).unwrap();
    let renewed = said(&folder, "renew --identity identity.key node.desc --address 192.0.2.1 --address 192.0.2.51");
    assert!(renewed.contains("Signed revision ") && renewed.lines().all(|line| line.len() <= 80), "{renewed}");
    assert_ne!(fs::read_to_string(folder.join("node.desc")).unwrap(), before);
    assert!(!folder.join("node.key").exists());
    assert!(said(&folder, "inspect node.desc").contains("192.0.2.1:4700, 192.0.2.51:4700"));

    // The chain is the same one, with a newer descriptor.
    let fingerprint = |file: &str| {
        let shown: serde_json::Value =
            serde_json::from_str(&said(meeting.path(), &format!("inspect {file} --json"))).unwrap();
        (shown["id"].clone(), shown["hops"][0]["revision"].as_u64().unwrap())
    };
    fs::copy(folder.join("node.desc"), meeting.file("a.desc")).unwrap();
    said(meeting.path(), &format!("{ASSEMBLE} --out new.toml"));
    let (old, new) = (fingerprint("chain.toml"), fingerprint("new.toml"));
    assert!(old.0 == new.0 && old.1 < new.1, "{old:?} {new:?}");

    let before = fs::read_to_string(meeting.file("b/node.desc")).unwrap();
    let output = meeting.run("renew --identity a/identity.key b/node.desc");
    assert_mistake("another identity", &output, &["a/identity.key: the identity is ", "but b/node.desc is of "]);
    let output = meeting.run("renew --identity b/node.key b/node.desc");
    assert_mistake("not an identity", &output, &["b/node.key: this is a key file, expected a node's identity"]);
    let output = meeting.run("renew --identity none.key b/node.desc");
    assert_mistake("no identity", &output, &["none.key: No such file", "check the path"]);
    fs::set_permissions(meeting.file("b/identity.key"), fs::Permissions::from_mode(0o640)).unwrap();
    let output = meeting.run("renew --identity b/identity.key b/node.desc");
    assert_mistake("readable", &output, &["b/identity.key: mode 0640", "chmod 600 b/identity.key"]);
    assert_eq!(fs::read_to_string(meeting.file("b/node.desc")).unwrap(), before);
}

#[test]
fn rotated_keys_take_a_public_request_to_the_identity() {
    let meeting = Meeting::new();
    let (node, offline) = (meeting.file("a"), meeting.file("offline"));
    fs::create_dir(&offline).unwrap();
    fs::rename(node.join("identity.key"), offline.join("identity.key")).unwrap();
    let drawn = said(&node, "keygen --rotate");
    let noise = drawn.lines().find_map(|line| line.strip_prefix("noise    ")).expect("a fingerprint");
    let request = fs::read_to_string(node.join("node.request")).unwrap();
    assert!(secrets(&node.join("node.key.next")).iter().all(|key| !request.contains(key)));

    fs::copy(node.join("node.request"), offline.join("node.request")).unwrap();
    let alone = run(&offline, "renew --identity identity.key node.request");
    assert_mistake("alone", &alone, &["node.desc: the last descriptor of the node is not here", "copy the node's"]);
    fs::copy(node.join("node.desc"), offline.join("node.desc")).unwrap();
    assert!(said(&offline, "inspect node.request").contains(noise));
    let signed = said(&offline, "renew --identity identity.key node.request --revoke");
    assert!(signed.contains(noise) && signed.contains("revoked"), "{signed}");
    let shown = said(&offline, "inspect node.desc");
    assert!(shown.contains(noise) && shown.contains("are revoked)"), "{shown}");

    assert_mistake("again", &run(&node, "keygen --rotate"), &["node.key.next: the file exists", "--force"]);
    fs::set_permissions(node.join("node.key"), fs::Permissions::from_mode(0o604)).unwrap();
    assert_mistake("readable", &run(&node, "keygen --rotate --force"), &["node.key: mode 0604", "chmod 600"]);
    assert_mistake("private", &run(&offline, "inspect identity.key"), &["holds private keys"]);
}
