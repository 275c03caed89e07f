//! The ceremony as a whole: keygen, assemble, renew and the files between them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use control::trust::{HopRole, NodeDescriptor, Signer};
use tempfile::TempDir;
use wire::cell::Class;
use wire::kdf::x25519_public;
use wire::paced::PacedTerms;

use super::assemble::{self, assemble};
use super::contact::Places;
use super::files::{
    DESCRIPTOR, DescriptorFile, IDENTITY_KEY, NODE_KEY, NodeKeys, Renewable, read_identity, request_text,
};
use super::inspect::PublicFile;
use super::keygen::{self, keygen, rotate};
use super::profile::ClassChoice;
use super::renew::{self, renew};
use super::{ChainFile, fingerprint};
use crate::config::{ConfigError, Loaded, NodeConfig, NodeRole, TrustFiles};

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 86_400;

fn places(address: &str) -> Places {
    Places { addresses: vec![address.parse().unwrap()], ..Places::default() }
}

/// The same in several classes.
fn places_of(classes: &[&str], address: &str) -> Places {
    Places { classes: classes.iter().map(|class| class.parse().unwrap()).collect(), ..places(address) }
}

fn plan(role: HopRole, places: &Places) -> keygen::Plan {
    keygen::Plan { role, contacts: places.contacts(1).unwrap(), days: 90, force: false }
}

/// A folder with the folders of `mixes` mixes and an exit, and their names.
fn nodes(mixes: usize) -> (TempDir, Vec<PathBuf>) {
    nodes_of(&["L"], mixes)
}

/// The same with these classes.
fn nodes_of(classes: &[&str], mixes: usize) -> (TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let make = |i: usize| {
        let role = if i == mixes { HopRole::Exit } else { HopRole::Mix };
        let folder = dir.path().join(i.to_string());
        keygen(&folder, &plan(role, &places_of(classes, &format!("192.0.2.{}:4700", i + 1))), NOW).unwrap();
        folder
    };
    let folders = (0..=mixes).map(make).collect();
    (dir, folders)
}

fn chain_plan(dir: &Path, nodes: &[PathBuf]) -> assemble::Plan {
    let mut files: Vec<PathBuf> = nodes.iter().map(|node| node.join(DESCRIPTOR)).collect();
    let exit = files.pop().unwrap();
    assemble::Plan::new(files, exit, dir.join("chain.toml"))
}

fn chain(mixes: usize) -> (TempDir, Vec<PathBuf>, ChainFile) {
    let (dir, folders) = nodes(mixes);
    let chain = assemble(&chain_plan(dir.path(), &folders), NOW).unwrap();
    (dir, folders, chain)
}

/// A chain with the classes that `--class` names, of nodes with class L and all paced ones.
fn paced_chain(mixes: usize, classes: &[&str]) -> (TempDir, Vec<PathBuf>, ChainFile) {
    let (dir, folders) = nodes_of(&["L", "paced-S", "paced-M", "paced-L"], mixes);
    let classes = classes.iter().map(|class| class.parse().unwrap()).collect();
    let chain = assemble(&assemble::Plan { classes, ..chain_plan(dir.path(), &folders) }, NOW).unwrap();
    (dir, folders, chain)
}

fn renew_plan(node: &Path, file: &str) -> renew::Plan {
    renew::Plan {
        identity: node.join(IDENTITY_KEY),
        file: node.join(file),
        out: None,
        places: Places::default(),
        drop_names: false,
        days: 90,
        revoke: false,
    }
}

/// Checks that a message is one line with all of these.
fn assert_says(why: &ConfigError, wanted: &[&str]) {
    let text = why.to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    for part in wanted {
        assert!(text.contains(part), "wanted {part:?} in {text:?}");
    }
}

#[test]
fn files_of_keygen_belong_together() {
    let (_dir, folders) = nodes(1);
    for (folder, role) in folders.iter().zip([NodeRole::Mix, NodeRole::Exit]) {
        let mode = |name: &str| fs::metadata(folder.join(name)).unwrap().mode() & 0o777;
        assert_eq!([IDENTITY_KEY, NODE_KEY].map(mode), [0o600, 0o600]);
        let descriptor = DescriptorFile::read(&folder.join(DESCRIPTOR)).unwrap().descriptor;
        let keys = NodeKeys::read(&folder.join(NODE_KEY)).unwrap();
        assert_eq!(read_identity(&folder.join(IDENTITY_KEY)).unwrap().public(), descriptor.identity);
        assert_eq!(x25519_public(&keys.noise), descriptor.noise);
        assert_eq!(Signer::from_seed(&keys.signing).public(), descriptor.signing);
        assert!(keys.psk_up.is_none() && keys.psk_down.is_none());
        assert_eq!((descriptor.revision, descriptor.floor), (NOW, 0));
        assert_eq!((descriptor.not_before, descriptor.not_after), (NOW - 3600, NOW + 90 * DAY));

        let config = NodeConfig::read(&folder.join("node.toml")).unwrap();
        assert_eq!((config.role(), &config.chain), (role, &folder.join("chain.toml")));
        assert_eq!((config.keys, config.state), (Some(folder.join(NODE_KEY)), Some(folder.join("node.state"))));
        assert_eq!(fs::read(folder.join("node.state")).unwrap(), control::trust::State::fresh(NOW).to_bytes());
        assert_eq!(config.up, Some(descriptor.contacts[0].addresses[0]));
    }
}

#[test]
fn existing_keys_are_kept_unless_forced() {
    let (_dir, folders) = nodes(1);
    let before = fs::read(folders[0].join(NODE_KEY)).unwrap();
    fs::remove_file(folders[0].join(IDENTITY_KEY)).unwrap();
    let mut plan = plan(HopRole::Mix, &places("192.0.2.1:4700"));
    assert_says(&keygen(&folders[0], &plan, NOW).unwrap_err(), &["node.key", "exists", "--out", "--force"]);
    assert_eq!(fs::read(folders[0].join(NODE_KEY)).unwrap(), before);
    assert!(!folders[0].join(IDENTITY_KEY).exists());
    plan.force = true;
    keygen(&folders[0], &plan, NOW).unwrap();
    assert_ne!(fs::read(folders[0].join(NODE_KEY)).unwrap(), before);
}

#[test]
fn assembled_chain_is_read_again() {
    for mixes in [1, 3, 7] {
        let (dir, _, made) = chain(mixes);
        let path = dir.path().join("chain.toml");
        assert_eq!(ChainFile::read(&path, NOW).unwrap(), made);
        assert_eq!(made.id, made.terms.id());
        assert_eq!(fs::read_to_string(&path).unwrap(), made.text());
        assert!(made.text().contains(&fingerprint(&made.id)));
    }
}

#[test]
fn assembling_refuses_nodes_that_do_not_fit() {
    let (dir, folders) = nodes(3);
    let good = chain_plan(dir.path(), &folders);
    let refused = |change: &dyn Fn(&mut assemble::Plan), now_s: u64, wanted: &[&str]| {
        let mut plan = good.clone();
        change(&mut plan);
        assert_says(&assemble(&plan, now_s).unwrap_err(), wanted);
        assert!(!plan.out.exists());
    };
    let (exit, mix) = (good.exit.clone(), good.mixes[0].clone());
    refused(&|plan| plan.mixes[1] = exit.clone(), NOW, &["3/node.desc:", "hop 2 must be a mix", "--exit"]);
    refused(&|plan| plan.exit = mix.clone(), NOW, &["0/node.desc:", "must be an exit, but this is a mix"]);
    refused(&|plan| plan.mixes[2] = mix.clone(), NOW, &["0/node.desc:", "is also that of", "name each node once"]);
    refused(&|_| {}, NOW - 2 * 3600, &["0/node.desc:", "not valid before 2027-01-15 07:00 UTC", "date -u"]);
    refused(&|_| {}, NOW + 91 * DAY, &["expired on 2027-04-15 08:00 UTC, 24 h ago", "eddy renew"]);
    refused(&|plan| plan.classes = vec![ClassChoice::Free(Class::S)], NOW, &["no address for class S, only for L"]);
    refused(&|plan| plan.classes = vec![ClassChoice::Free(Class::L); 2], NOW, &["duplicate --class L"]);
    refused(
        &|plan| plan.epoch_s = 99,
        NOW,
        &["invalid --epoch \"99\": expected at least 100, ten times --interval 10"],
    );
    refused(&|plan| plan.mixes = vec![mix.clone(); 8], NOW, &["name each node once"]);

    // Another node with the address, the Noise key or the signing key of a node.
    let twin = dir.path().join("twin");
    keygen(&twin, &plan(HopRole::Mix, &places("192.0.2.1:4700")), NOW).unwrap();
    refused(&|plan| plan.mixes[1] = twin.join(DESCRIPTOR), NOW, &["the address 192.0.2.1:4700 is also that of"]);
    let theirs = DescriptorFile::read(&mix).unwrap().descriptor.content().clone();
    let identity = read_identity(&twin.join(IDENTITY_KEY)).unwrap();
    let own = DescriptorFile::read(&twin.join(DESCRIPTOR)).unwrap().descriptor.content().clone();
    for (kind, content) in [
        ("Noise", control::trust::NodeDescriptor { noise: theirs.noise, ..own.clone() }),
        ("signing", control::trust::NodeDescriptor { signing: theirs.signing, ..own }),
    ] {
        let stolen = super::files::descriptor_text(&content.sign(&identity).unwrap());
        fs::write(twin.join(DESCRIPTOR), stolen).unwrap();
        refused(&|plan| plan.mixes[1] = twin.join(DESCRIPTOR), NOW, &[&format!("the {kind} key"), "is also that of"]);
    }

    let local = dir.path().join("local");
    keygen(&local, &plan(HopRole::Mix, &places("127.0.0.1:4700")), NOW).unwrap();
    let wanted = ["local/node.desc:", "loopback addresses alone", "does not reach", "eddy renew"];
    refused(&|plan| plan.mixes[1] = local.join(DESCRIPTOR), NOW, &wanted);
    refused(&|plan| plan.mixes[0] = local.join(DESCRIPTOR), NOW, &wanted);
}

#[test]
fn cells_too_long_for_ipv6_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folders: Vec<PathBuf> = (0..8).map(|i| dir.path().join(i.to_string())).collect();
    for (i, folder) in folders.iter().enumerate() {
        let role = if i == 7 { HopRole::Exit } else { HopRole::Mix };
        keygen(folder, &plan(role, &places(&format!("[2001:db8::{}]:4700", i + 1))), NOW).unwrap();
    }
    let why = assemble(&chain_plan(dir.path(), &folders), NOW).unwrap_err();
    assert_says(&why, &["class L with 7 mixes", "1472 bytes", "at most 5 mixes, or --class M"]);
}

#[test]
fn paced_classes_are_assembled_and_read_again() {
    for (mixes, classes, interval_s) in [
        (3, &["voice"][..], 10),
        (1, &["video", "L", "game"], 10),
        (3, &["voice-lite:name=calls,n_min=2,rounds=512,steps_ms=1/2/3"], 20),
        (7, &["voice", "L"], 20),
    ] {
        let (dir, _, made) = paced_chain(mixes, classes);
        let path = dir.path().join("chain.toml");
        assert_eq!(ChainFile::read(&path, NOW).unwrap(), made);
        assert_eq!(fs::read_to_string(&path).unwrap(), made.text());
        assert_eq!(made.terms.paced.len() + made.terms.classes.len(), classes.len());
        assert_eq!(made.terms.interval_s, interval_s, "{classes:?}");
        assert!(made.terms.paced.iter().all(|class| class.steps_ms.len() == mixes));
        assert_eq!(made.shape().hops(), mixes + 1);
    }
}

#[test]
fn terms_of_a_paced_class_have_the_defaults_of_the_table() {
    let (_dir, _, mut made) = paced_chain(3, &["voice:repeat=0"]);
    let text = made.text();
    let all = ["cells", "rounds", "copies", "gap", "repeat", "n_min", "seats", "loops", "slack_ms", "steps_ms"];
    let is_left_out = |line: &&str| all.iter().any(|key| line.starts_with(&format!("{key} = ")));
    let short: Vec<&str> = text.lines().filter(|line| !is_left_out(line)).collect();
    assert_eq!(short.len() + all.len(), text.lines().count());
    assert_eq!(ChainFile::parse(Path::new("chain.toml"), &short.join("\n"), NOW).unwrap(), made);
    // And those of the program.
    let class = &mut made.terms.paced[0];
    assert_eq!(*class, PacedTerms::new(class.class, "voice", 4));
}

#[test]
fn assembling_refuses_classes_that_do_not_fit() {
    let (dir, folders) = nodes_of(&["L", "paced-S"], 3);
    let refused = |classes: &[&str], interval_s: Option<u32>, wanted: &[&str]| {
        let classes = classes.iter().map(|class| class.parse().unwrap()).collect();
        let plan = assemble::Plan { classes, interval_s, ..chain_plan(dir.path(), &folders) };
        assert_says(&assemble(&plan, NOW).unwrap_err(), wanted);
        assert!(!plan.out.exists());
    };
    refused(&["voice", "game"], None, &["--class voice and --class game are both of class paced-S", "choose one"]);
    refused(&["voice", "voice:n_min=2"], None, &["duplicate --class voice"]);
    refused(&["video"], None, &["0/node.desc:", "no address for class paced-L, only for L and paced-S"]);
    refused(
        &["voice:n_min=257"],
        None,
        &["invalid --class \"voice\": n_min must be 1 to seats, which is 256 (got 257)"],
    );
    refused(&["voice:rounds=256"], None, &["invalid --class \"voice\": rounds is too small"]);
    refused(&["voice:steps_ms=1/2"], None, &["steps_ms must have 3 steps, one for each link after the first (got 2)"]);
    refused(&["voice:copies=4,gap=3"], None, &["copies, gap and slack_ms delay a cell for 98 ms"]);
    refused(&["voice:name=S"], None, &["name must be 1 to 16 of the characters a-z, 0-9 and - (got \"S\")"]);
    refused(&["voice"], Some(9), &["invalid --interval \"9\": expected at least 10, because", "class voice"]);
}

#[test]
fn bad_paced_class_in_a_chain_file_is_refused_with_its_line() {
    let (_dir, _, made) = paced_chain(3, &["L", "voice", "video"]);
    let text = made.text();
    let refused = |from: &str, to: &str, wanted: &[&str]| {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        assert_says(&ChainFile::parse(Path::new("chain.toml"), &changed, NOW).unwrap_err(), wanted);
    };
    let line = |line: &str| format!("chain.toml:{}:", 1 + text.lines().position(|one| one == line).expect(line));
    refused("cells = 1\n", "cells = 2\n", &["chain.toml was changed: id says "]);
    refused("rounds = 2048\n", "rounds = 2000\n", &[&line("rounds = 2048"), "class voice: rounds must be a power"]);
    refused("copies = 2\n", "copies = 5\n", &[&line("copies = 2"), "copies must be a whole number from 1 to 4"]);
    refused(
        "n_min = 8\n",
        "n_min = 257\n",
        &[&line("n_min = 8"), "class voice: n_min must be 1 to seats, which is 256 (got 257)"],
    );
    refused(
        "steps_ms = [5, 5, 5]\n",
        "steps_ms = [5]\n",
        &[&line("steps_ms = [5, 5, 5]"), "steps_ms must have 3 steps"],
    );
    refused("name = \"video\"\n", "name = \"voice\"\n", &["two paced classes have the name \"voice\""]);
    refused("name = \"voice\"\n", "", &["the key `name` is missing: add `name = \"voice\"`"]);
    refused("period_ms = 10\n", "", &["unknown key `name`", "a [[class]] with period_ms of chain.toml"]);
    refused("loops = 2\n", "lops = 2\n", &[&line("loops = 2"), "unknown key `lops`: did you mean `loops`?"]);
    refused("loops = 2\n", "lifetime_s = 2\n", &["unknown key `lifetime_s`", "a [[class]] of chain.toml"]);
    refused("class = \"L\"\nname", "class = \"S\"\nname", &["the classes must be listed once each"]);
}

#[test]
fn entry_of_a_chain_without_a_free_class_serves_its_paced_one() {
    let (_dir, folders, made) = paced_chain(2, &["voice"]);
    let config = NodeConfig::of_entry(&folders[0].join("chain.toml"));
    let loaded = Loaded::with_chain(TrustFiles::of(&config), config, made).unwrap();
    assert_eq!(loaded.first_class().terms.name().as_str(), "voice");
    assert_eq!(loaded.classes().len(), 1);
}

#[test]
fn chain_file_is_not_overwritten_unless_forced() {
    let (dir, folders, _) = chain(2);
    let mut plan = chain_plan(dir.path(), &folders);
    assert_says(&assemble(&plan, NOW).unwrap_err(), &["chain.toml", "exists", "--force"]);
    plan.force = true;
    assemble(&plan, NOW).unwrap();
}

/// Each byte of each value of a file, by its place in the text.
fn value_bytes(text: &str) -> Vec<usize> {
    let mut at = 0;
    let mut all = Vec::new();
    for line in text.split_inclusive('\n') {
        if let Some((name, rest)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            let value = rest.split("   #").next().unwrap().trim_end();
            let start = at + name.len() + 3;
            let quotes = usize::from(value.starts_with('"'));
            all.extend(start + quotes..start + value.len() - quotes);
        }
        at += line.len();
    }
    all
}

#[test]
fn every_changed_byte_of_a_chain_file_is_refused() {
    let (_dir, _, made) = paced_chain(2, &["L", "voice"]);
    let text = made.text();
    let path = Path::new("chain.toml");
    assert!(ChainFile::parse(path, &text, NOW).is_ok());
    let all = value_bytes(&text);
    assert!(all.len() > 1000, "{} bytes", all.len());
    for at in all {
        let byte = text.as_bytes()[at];
        let other = match byte {
            b'0'..=b'9' => b'0' + (byte - b'0' + 1) % 10,
            b'a'..=b'z' | b'A'..=b'Z' => byte ^ 0x20,
            _ => b'A',
        };
        for other in [other, byte ^ 1] {
            let mut changed = text.clone().into_bytes();
            changed[at] = other;
            let changed = String::from_utf8(changed).unwrap();
            let line = 1 + text[..at].matches('\n').count();
            let Err(why) = ChainFile::parse(path, &changed, NOW) else { panic!("line {line}, byte {at}: {other}") };
            assert_says(&why, &["chain.toml:"]);
        }
    }
    let interval = text.replace("interval_s = 10\n", "interval_s = 11\n");
    let why = ChainFile::parse(path, &interval, NOW).unwrap_err();
    assert_says(&why, &["chain.toml:4: chain.toml was changed: id says ", ", content gives ", "get the file again"]);
}

#[test]
fn descriptors_in_a_chain_file_stay_with_their_hops() {
    let (dir, _, made) = chain(3);
    let path = Path::new("chain.toml");
    let text = made.text();
    let refused = |change: &dyn Fn(&mut ChainFile), wanted: &[&str]| {
        let mut changed = made.clone();
        change(&mut changed);
        // Identities are in the id; descriptors are not.
        let mut written = changed.text();
        let identities = changed.descriptors.iter().zip(&made.descriptors);
        for (changed, old) in identities.filter(|(changed, old)| changed.identity != old.identity) {
            let line = |identity: &[u8; 32]| format!("identity = \"{}\"", crate::config::encode_base64(identity));
            written = written.replacen(&line(&changed.identity), &line(&old.identity), 1);
        }
        assert_says(&ChainFile::parse(path, &written, NOW).unwrap_err(), wanted);
    };
    let foreign = dir.path().join("foreign");
    let foreign = keygen(&foreign, &plan(HopRole::Mix, &places("192.0.2.9:4700")), NOW).unwrap();
    refused(&|chain| chain.descriptors[1] = foreign.clone(), &["hop 2", "identity is not that of hop 2"]);
    refused(&|chain| chain.descriptors[2] = foreign.clone(), &["hop 3", "identity is not that of hop 3"]);

    assert!(ChainFile::parse(path, &text, NOW + 100 * DAY).is_ok(), "expired copies still say where nodes are");
    let why = ChainFile::parse(path, &text, NOW - DAY).unwrap_err();
    assert_says(&why, &["chain.toml:", "hop 1", "not valid for another", "date -u"]);

    let [first, second] = [0, 1].map(|i| crate::config::encode_base64(made.descriptors[i].bytes()));
    let swapped = text.replace(&first, "x").replace(&second, &first).replace("\"x\"", &format!("\"{second}\""));
    let why = ChainFile::parse(path, &swapped, NOW).unwrap_err();
    assert_says(&why, &["hop 1", "its identity is that of hop 2, not of hop 1"]);
}

#[test]
fn renewed_descriptor_keeps_the_chain_id() {
    let (dir, folders, made) = chain(2);
    let node = &folders[1];
    // Signing needs no key of the running node.
    fs::remove_file(node.join(NODE_KEY)).unwrap();
    let mut plan = renew_plan(node, DESCRIPTOR);
    plan.places = places("192.0.2.77:4800");
    plan.places.names = vec!["mix.example.org".parse().unwrap()];
    let renewed = renew(&plan, NOW + DAY).unwrap();
    assert!(!renewed.new_keys);
    assert_eq!((renewed.descriptor.revision, renewed.descriptor.floor), (NOW + DAY, 0));
    assert_eq!(renewed.descriptor.not_after, NOW + 91 * DAY);
    assert_eq!(renewed.descriptor.noise, made.descriptors[1].noise);
    let contact = &renewed.descriptor.contacts[0];
    assert_eq!(super::words::places(contact), "192.0.2.77:4800, mix.example.org:4800");

    let again = assemble::Plan { force: true, ..chain_plan(dir.path(), &folders) };
    assert_eq!(assemble(&again, NOW + DAY).unwrap().id, made.id);
}

#[test]
fn revisions_grow_and_floors_stay() {
    let (_dir, folders) = nodes(1);
    let plan = renew_plan(&folders[0], DESCRIPTOR);
    let revisions = |plan: &renew::Plan, now_s| {
        let descriptor = renew(plan, now_s).unwrap().descriptor;
        (descriptor.revision, descriptor.floor)
    };
    // A clock that was set back, or two renewals in one second.
    assert_eq!(revisions(&plan, NOW), (NOW + 1, 0));
    assert_eq!(revisions(&plan, NOW - 100), (NOW + 2, 0));
    let revoking = renew::Plan { revoke: true, ..plan.clone() };
    assert_eq!(revisions(&revoking, NOW + 50), (NOW + 50, NOW + 50));
    assert_eq!(revisions(&plan, NOW + 60), (NOW + 60, NOW + 50));
}

#[test]
fn descriptors_of_other_identities_stay_as_they_are() {
    let (_dir, folders) = nodes(1);
    let before = fs::read(folders[0].join(DESCRIPTOR)).unwrap();
    let other = renew::Plan { identity: folders[1].join(IDENTITY_KEY), ..renew_plan(&folders[0], DESCRIPTOR) };
    assert_says(&renew(&other, NOW).unwrap_err(), &["1/identity.key: the identity is ", "0/node.desc is of "]);
    let elsewhere = renew::Plan { out: Some(folders[1].join(DESCRIPTOR)), ..renew_plan(&folders[0], DESCRIPTOR) };
    assert_says(&renew(&elsewhere, NOW).unwrap_err(), &["1/node.desc:", "of another identity", "--out"]);
    assert_eq!(fs::read(folders[0].join(DESCRIPTOR)).unwrap(), before);
}

#[test]
fn rotated_keys_are_certified_by_the_identity() {
    let (dir, folders) = nodes(1);
    let node = &folders[0];
    let psk = crate::config::encode_base64(&[7; 32]);
    let text = fs::read_to_string(node.join(NODE_KEY)).unwrap() + &format!("psk_up = \"{psk}\"\n");
    fs::write(node.join(NODE_KEY), text).unwrap();
    let old = DescriptorFile::read(&node.join(DESCRIPTOR)).unwrap().descriptor;
    let rotation = rotate(node, "node", false).unwrap();
    assert_says(&rotate(node, "node", false).unwrap_err(), &["node.key.next", "exists", "--force"]);
    assert_eq!(fs::metadata(&rotation.keys).unwrap().mode() & 0o777, 0o600);
    let next = NodeKeys::read(&rotation.keys).unwrap();
    assert_eq!(next.psk_up.as_ref().unwrap().expose(), &[7; 32]);
    assert_eq!(x25519_public(&next.noise), rotation.content.noise);

    // The identity is elsewhere, and only public files get there.
    let offline = dir.path().join("offline");
    fs::create_dir(&offline).unwrap();
    fs::rename(node.join(IDENTITY_KEY), offline.join(IDENTITY_KEY)).unwrap();
    fs::copy(&rotation.request, offline.join("node.request")).unwrap();
    let missing = renew(&renew_plan(&offline, "node.request"), NOW + 5).unwrap_err();
    assert_says(&missing, &["offline/node.desc:", "is not here", "copy the node's node.desc"]);
    fs::copy(node.join(DESCRIPTOR), offline.join(DESCRIPTOR)).unwrap();
    assert!(Renewable::read(&offline.join("node.request")).unwrap().is_request);
    let renewed = renew(&renew_plan(&offline, "node.request"), NOW + 5).unwrap();
    assert!(renewed.new_keys);
    assert_eq!((renewed.path, renewed.descriptor.revision), (offline.join(DESCRIPTOR), NOW + 5));
    assert_eq!(renewed.descriptor.noise, rotation.content.noise);
    assert_eq!(renewed.descriptor.signing, Signer::from_seed(&next.signing).public());
    assert_eq!(renewed.descriptor.contacts, old.contacts);
    assert_ne!(renewed.descriptor.noise, old.noise);

    // A move that was announced after the request was made stays.
    let mut moved = renew_plan(&offline, DESCRIPTOR);
    moved.places = places("192.0.2.88:4700");
    let moved = renew(&moved, NOW + 6).unwrap().descriptor;
    let again = renew(&renew_plan(&offline, "node.request"), NOW + 7).unwrap();
    assert_eq!((&again.descriptor.contacts, again.new_keys), (&moved.contacts, false));

    fs::copy(folders[1].join(NODE_KEY), node.join(NODE_KEY)).unwrap();
    assert_says(&rotate(node, "node", true).unwrap_err(), &["node.key: the keys are not those of", "node.desc"]);
}

#[test]
fn only_two_keys_of_a_request_are_signed() {
    let (_dir, folders) = nodes(1);
    let node = &folders[0];
    let honest = rotate(node, "node", false).unwrap().content;
    let before = DescriptorFile::read(&node.join(DESCRIPTOR)).unwrap().descriptor;
    // Someone changes it on its way: other addresses, another role, and a last revision.
    let mut changed =
        NodeDescriptor { role: HopRole::Exit, floor: before.revision, not_after: NOW + 9, ..honest.clone() };
    changed.contacts = places("203.0.113.66:4700").contacts(1).unwrap();
    let write =
        |content: &NodeDescriptor| fs::write(node.join("node.request"), request_text(content).unwrap()).unwrap();
    write(&changed);
    let signed = renew(&renew_plan(node, "node.request"), NOW + 5).unwrap().descriptor;
    assert_eq!((signed.noise, signed.signing), (honest.noise, honest.signing));
    let rest = |descriptor: &NodeDescriptor| (descriptor.role, descriptor.floor, descriptor.contacts.clone());
    assert_eq!(rest(&signed), rest(&before));
    assert!(signed.not_after > NOW + 86_400);
    changed.revision = (1 << 63) - 2;
    write(&changed);
    let why = renew(&renew_plan(node, "node.request"), NOW + 6).unwrap_err();
    assert_says(&why, &["node.request:", "the request follows revision 9223372036854775806", "copy the node's newest"]);
}

#[test]
fn inspect_says_who_where_and_until_when() {
    let (dir, folders, made) = chain(2);
    let path = folders[0].join(DESCRIPTOR);
    let file = PublicFile::read(&path, NOW).unwrap();
    let text = file.text(Path::new("node.desc"), NOW);
    let identity = fingerprint(&made.descriptors[0].identity);
    for wanted in ["node.desc: descriptor of a mix", &identity, "192.0.2.1:4700", "2027-04-15 08:00 UTC (90 days left)"]
    {
        assert!(text.contains(wanted), "wanted {wanted:?} in {text}");
    }
    assert!(file.text(&path, NOW + 91 * DAY).contains("expired 24 h ago"));
    assert_eq!(file.json(NOW)["kind"], "descriptor");
    assert_eq!(file.json(NOW)["classes"][0]["addresses"][0], "192.0.2.1:4700");

    let file = PublicFile::read(&dir.path().join("chain.toml"), NOW).unwrap();
    let text = file.text(Path::new("chain.toml"), NOW);
    for wanted in
        ["chain of 2 mixes and an exit", &fingerprint(&made.id), "\nmix2\n", "\nexit\n", "2 (X25519 with ML-KEM"]
    {
        assert!(text.contains(wanted), "wanted {wanted:?} in {text}");
    }
    assert_eq!(file.json(NOW)["hops"].as_array().unwrap().len(), 3);
    assert_eq!(file.json(NOW)["id"], super::hex(&made.id));

    let (dir, _, _) = paced_chain(3, &["voice:steps_ms=2", "L"]);
    let file = PublicFile::read(&dir.path().join("chain.toml"), NOW).unwrap();
    let text = file.text(Path::new("chain.toml"), NOW);
    for wanted in [
        "class L      mixing delay",
        "class voice  paced-S: 1 cell every 10 ms, with repeat\n",
        "    carries    80 kbit/s to destinations, 162 back, 76 between users\n",
        "235 MB an hour",
        "at most 46 ms to destinations",
        "  class paced-S  192.0.2.1:4701\n",
    ] {
        assert!(text.contains(wanted), "wanted {wanted:?} in {text}");
    }
    let shown = file.json(NOW);
    assert_eq!((&shown["classes"][0]["class"], &shown["paced"][0]["class"]), (&"L".into(), &"paced-S".into()));
    assert_eq!(shown["paced"][0]["steps_ms"], serde_json::json!([2, 2, 2]));
    assert_eq!((&shown["paced"][0]["repeat"], &shown["paced"][0]["kbit_s"]["forward"]), (&1.into(), &80.into()));
    assert_eq!(shown["hops"][0]["classes"][1]["class"], "paced-S");

    rotate(&folders[0], "node", false).unwrap();
    let text = PublicFile::read(&folders[0].join("node.request"), NOW).unwrap().text(Path::new("r"), NOW);
    assert!(text.starts_with("r: request of a mix for new keys, not signed"), "{text}");
    let why = PublicFile::read(&folders[0].join(IDENTITY_KEY), NOW).unwrap_err();
    assert_says(&why, &["identity.key: this file holds private keys", "node.desc"]);
}
