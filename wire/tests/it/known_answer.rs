//! The frozen bytes of one chain: class S, three mixes and the exit.
//!
//! `known_answer.json` holds every input and every result, so that implementations in other languages
//! can be compared with it. The test computes everything again and compares. If the protocol changes
//! on purpose, `EDDY_BLESS=1 cargo test -p wire known_answer` rewrites the file; the difference
//! then belongs to the commit that changes SPEC.md.
//!
//! Strings are bytes in hexadecimal, numbers are numbers. Lists named for hops or links start with
//! hop 1 or link 1; link i leads into hop i, and hop 4 is the exit. "Forward" is from the entry to
//! the exit and under the keys "i2r" of a link, "backward" the other way and under "r2i".
//!
//! The names below are those of suite 1. `suite2` holds what differs in suite 2, under the same names:
//! `hops`, `setup`, `setup_cells`, `ack_filling`, `ack_cells`.
//!
//! * `chain` (SPEC 2.2, 5.2): class, P, key hops, lifetime in seconds, first number.
//! * `hops[]` (5.1): the hop's `setup_private` and `setup_public` key, its `descriptor_hash` D, and the
//!   ephemerals x as `entry_ephemeral_private` and y as `hop_ephemeral_private`. In suite 2 also the
//!   seed d | z of its ML-KEM-768 key, the keys made from it, and the random m of the encapsulation
//!   (FIPS 203, algorithms 16 and 17).
//! * `links[]` (4.3): results of the handshake (`handshake_hash`, `k1`, `k2`, `ss_mlkem`), the keys
//!   expanded from it, and the `channel` that the nearer hop drew.
//! * `setup[]` (5.1, 5.2), per hop: `onion`, S as it arrives; `replay_tag`; e as `hop_ephemeral`;
//!   `confirm`; `ack` (key, iv); sec\[0\] as `forward` and `backward`.
//! * `setup_cells[]` (3.6, 5.3), per link: the first cell that carries S, filled up with `filling`. In
//!   suite 2 all of them, `filling` in the last data shard.
//! * `ack_filling` (5.4): the random bytes that the exit begins the ack with.
//! * `ack_cells[]` (5.4), per link: the ack on its way back; hop i has sent the one on link i.
//! * `keepalive_cells[]` (3.6), per link: type 3, forward.
//! * `forward_cells[]` (3.2-3.4, 5.7): two data cells, of generations 0 and 1: `seq`, `inner` (frames
//!   and PAD), and under `links` the cell on each link.
//! * `backward_cells[]` (3.5, 5.7): likewise; the exit has sent the one on link 4.
//!
//! A cell is `header_clear` (the block), `header` (enciphered), `body`; those of types 1 to 3 also
//! have `content`, the body in the clear, and their numbers (3.8) are in `header_clear` only. Header
//! and body together are the UDP payload.

use std::path::PathBuf;

use ml_kem::kem::KeyExport;
use ml_kem::ml_kem_768::DecapsulationKey;
use serde_json::{Value, json};
use wire::cell::{CellKind, Class, Direction, Header, Shape};
use wire::frames::{Address, Frame, Status, Writer, parse};
use wire::gcm::{AeadKey, Job, StreamKey, ctr_batch, open_batch, seal_batch};
use wire::kdf::{Secret, expand_info, x25519_public};
use wire::key::Generations;
use wire::layer::{EntryJob, EntryKeys, data_header, unwrap, wrap};
use wire::link::{ControlKey, HeaderKey, LinkContent, LinkSecrets};
use wire::setup::{self, Encapsulation, EntryShare, HopPublic, HopSecrets, Info, SetupKey, Suite};

pub(super) const HOPS: usize = 4;

/// Arbitrary bytes that stay the same: HKDF-Expand of a zero key, with a name as info.
pub(super) fn fixed<const N: usize>(name: &str) -> [u8; N] {
    let mut out = [0; N];
    expand_info(&Secret::new([0; 32]), name.as_bytes(), &mut out).unwrap();
    out
}

pub(super) fn hex(bytes: &[u8]) -> Value {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

pub(super) struct Link {
    pub(super) secrets: LinkSecrets,
    pub(super) channel: u32,
}

impl Link {
    pub(super) fn new(i: usize) -> (Link, Value) {
        let handshake_hash: [u8; 32] = fixed(&format!("handshake hash {i}"));
        let [k1, k2, ss] = ["k1", "k2", "ss"].map(|name| fixed::<32>(&format!("{name} {i}")));
        let secrets = LinkSecrets::derive(&handshake_hash, &k1, &k2, &ss);
        let channel = u32::from_be_bytes(fixed(&format!("channel {i}")));
        let value = json!({
            "handshake_hash": hex(&handshake_hash),
            "k1": hex(&k1),
            "k2": hex(&k2),
            "ss_mlkem": hex(&ss),
            "header_forward": hex(&secrets.header_i2r[..]),
            "header_backward": hex(&secrets.header_r2i[..]),
            "control_forward": hex(&secrets.control_i2r[..]),
            "control_backward": hex(&secrets.control_r2i[..]),
            "resume": hex(&secrets.resume[..]),
            "channel": hex(&channel.to_be_bytes()),
        });
        (Link { secrets, channel }, value)
    }

    fn cell(&self, direction: Direction, header: &Header, body: &[u8]) -> Value {
        let key = match direction {
            Direction::Forward => &self.secrets.header_i2r,
            Direction::Backward => &self.secrets.header_r2i,
        };
        let mut block = [header.to_block()];
        HeaderKey::new(key).encipher(&mut block);
        json!({ "header_clear": hex(&header.to_block()), "header": hex(&block[0]), "body": hex(body) })
    }

    /// A cell of type 1, 2 or 3.
    fn control_cell(&self, direction: Direction, header: &Header, content: &[u8]) -> Value {
        let key = match direction {
            Direction::Forward => &self.secrets.control_i2r,
            Direction::Backward => &self.secrets.control_r2i,
        };
        let mut body = [content, &[0; 16]].concat();
        ControlKey::new(key).seal(header, &mut body);
        let mut cell = self.cell(direction, header, &body);
        cell["content"] = hex(content);
        cell
    }
}

fn forward_inner(shape: Shape, name: &str) -> Vec<u8> {
    let mut inner = vec![0xff; shape.payload()];
    let mut writer = Writer::new(&mut inner);
    let to = Address::Name("stun.example.org", 3478);
    assert!(writer.put(&Frame::Open { flow: 1, map: 2, token: fixed("token"), to }));
    assert!(writer.put(&Frame::Dgram { flow: 1, data: name.as_bytes() }));
    writer.finish();
    assert_eq!(parse(&inner, Direction::Forward).map(Iterator::count), Ok(2));
    inner
}

fn backward_inner(shape: Shape, name: &str) -> Vec<u8> {
    let mut inner = vec![0xff; shape.payload()];
    let mut writer = Writer::new(&mut inner);
    assert!(writer.put(&Frame::Status { flow: 1, code: Status::Open }));
    assert!(writer.put(&Frame::Peer { flow: 3, from: "[2001:db8::7]:4500".parse().unwrap() }));
    assert!(writer.put(&Frame::Dgram { flow: 3, data: name.as_bytes() }));
    writer.finish();
    assert_eq!(parse(&inner, Direction::Backward).map(Iterator::count), Ok(3));
    inner
}

/// A data cell from the entry to the exit, as it is on each link.
fn forward_cell(shape: Shape, links: &[Link], hops: &[HopSecrets], seq: u64, inner: &[u8]) -> Value {
    let keys = EntryKeys::new(hops, 0);
    let mut cell = vec![0; shape.longest_cell()];
    cell[16..16 + inner.len()].copy_from_slice(inner);
    wrap(shape, &mut [EntryJob { keys: &keys, header: data_header(shape, 0, seq), cell: &mut cell, ok: false }]);
    let mut body = cell.split_off(16);
    let mut on_links = Vec::new();
    for (i, (link, hop)) in links.iter().zip(hops).enumerate() {
        let header = data_header(shape, link.channel, seq);
        assert_eq!(body.len(), shape.forward_body(i + 1));
        on_links.push(link.cell(Direction::Forward, &header, &body));
        let generations = Generations::<AeadKey>::new(&hop.forward, 0);
        let (key, iv) = generations.of(seq).unwrap();
        let mut jobs = [Job::new(key, header.data_nonce(iv), &mut body)];
        open_batch(&mut jobs);
        assert!(jobs[0].ok, "hop {} opens it", i + 1);
        body.truncate(body.len() - 16);
    }
    assert_eq!(body, inner, "the exit finds the inside");
    json!({ "seq": seq, "inner": hex(inner), "links": on_links })
}

/// A data cell from the exit to the entry, as it is on each link.
fn backward_cell(shape: Shape, links: &[Link], hops: &[HopSecrets], seq: u64, inner: &[u8]) -> Value {
    let mut body = [inner, &[0; 16]].concat();
    let mut on_links = Vec::new();
    for (i, (link, hop)) in links.iter().zip(hops).enumerate().rev() {
        let header = data_header(shape, link.channel, seq);
        if i + 1 == HOPS {
            let generations = Generations::<AeadKey>::new(&hop.backward, 0);
            let (key, iv) = generations.of(seq).unwrap();
            seal_batch(&mut [Job::new(key, header.data_nonce(iv), &mut body)]);
        } else {
            let generations = Generations::<StreamKey>::new(&hop.backward, 0);
            let (key, iv) = generations.of(seq).unwrap();
            ctr_batch(&mut [Job::new(key, header.data_nonce(iv), &mut body)]);
        }
        on_links.push(link.cell(Direction::Backward, &header, &body));
    }
    on_links.reverse();
    let keys = EntryKeys::new(hops, 0);
    let mut cell = [&[0; 16][..], &body].concat();
    let mut batch = [EntryJob { keys: &keys, header: data_header(shape, 0, seq), cell: &mut cell, ok: false }];
    unwrap(shape, &mut batch);
    assert!(batch[0].ok, "the entry opens it");
    assert_eq!(cell[16..16 + inner.len()], *inner, "the entry reads the payload");
    json!({ "seq": seq, "inner": hex(inner), "links": on_links })
}

/// A secret of the hop with index `i`.
pub(super) fn secret(name: &str, i: usize) -> Secret {
    Secret::new(fixed(&format!("{name} {}", i + 1)))
}

/// The hop with index `i`: its setup keys, and the entry's share for it.
pub(super) struct Hop {
    pub(super) key: SetupKey,
    pub(super) public: HopPublic,
    pub(super) share: EntryShare,
}

impl Hop {
    pub(super) fn new(suite: Suite, i: usize) -> (Hop, Value) {
        let (x25519, x) = (secret("setup", i), secret("x", i));
        let descriptor_hash = fixed(&format!("D {}", i + 1));
        let mut values = json!({
            "setup_private": hex(x25519.expose()),
            "setup_public": hex(&x25519_public(&x25519)),
            "descriptor_hash": hex(&descriptor_hash),
            "entry_ephemeral_private": hex(x.expose()),
            "hop_ephemeral_private": hex(secret("y", i).expose()),
        });
        let (mut decapsulation, mut kem) = (None, None);
        if suite == Suite::Hybrid {
            let (seed, m): ([u8; 64], [u8; 32]) =
                (fixed(&format!("mlkem seed {}", i + 1)), fixed(&format!("mlkem m {}", i + 1)));
            let oracle = DecapsulationKey::from_seed(seed.into());
            #[allow(deprecated)]
            let private = ml_kem::ExpandedKeyEncoding::to_expanded_bytes(&oracle);
            let (ct, ss) = oracle.encapsulation_key().encapsulate_deterministic(&m.into());
            values["mlkem_seed"] = hex(&seed);
            values["mlkem_private"] = hex(&private);
            values["mlkem_public"] = hex(&oracle.encapsulation_key().to_bytes());
            values["mlkem_m"] = hex(&m);
            decapsulation = Some(private);
            kem = Some(Encapsulation { ciphertext: Box::new(ct.into()), secret: Secret::new(ss.into()) });
        }
        let key = SetupKey::new(x25519, decapsulation.as_ref().map(|key| &key[..])).unwrap();
        let public = HopPublic { setup: key.public(), descriptor_hash };
        (Hop { key, public, share: EntryShare { ephemeral: x, kem } }, values)
    }
}

/// A hop's ephemeral and secrets after a setup.
type Answer = ([u8; 32], HopSecrets);

/// The cells that carry an onion on the link into the hop with index `i`.
fn setup_cells(shape: Shape, suite: Suite, link: &Link, i: usize, onion: &[u8]) -> Vec<Value> {
    let room = shape.control_content(Direction::Forward, i + 1);
    let code = setup::shards(shape, suite, i + 1);
    let (name, first) = match suite {
        Suite::X25519 => (format!("setup filling {}", i + 1), 0x01_0203_0400 + i as u64),
        Suite::Hybrid => (format!("setup filling of suite 2, {}", i + 1), 0x01_0203_1000 + 0x100 * i as u64),
    };
    let filling = &fixed::<256>(&name)[..code.data * room - onion.len()];
    let mut shards: Vec<Vec<u8>> = [onion, filling].concat().chunks(room).map(<[u8]>::to_vec).collect();
    code.encode(&mut shards);
    let cells = shards.iter().enumerate().map(|(sub, shard)| {
        let header = Header {
            channel: link.channel,
            seq: first + sub as u64,
            sub: sub as u8,
            kind: CellKind::Setup,
            class: Class::S,
        };
        let mut cell = link.control_cell(Direction::Forward, &header, shard);
        if sub + 1 == code.data {
            cell["filling"] = hex(filling);
        }
        cell
    });
    cells.collect()
}

/// Passes an onion through all hops: their answers, the values of each hop, and the cells of each link.
fn pass_setup(
    shape: Shape,
    info: Info,
    chain: &[Hop],
    links: &[Link],
    mut onion: Vec<u8>,
) -> (Vec<Answer>, Vec<Value>, Vec<Vec<Value>>) {
    let mut hops = Vec::new();
    let (mut setups, mut cells) = (Vec::new(), Vec::new());
    for (i, (hop, link)) in chain.iter().zip(links).enumerate() {
        cells.push(setup_cells(shape, info.suite, link, i, &onion));
        let opened = setup::open(shape, i + 1, &[hop.public.descriptor_hash], &hop.key, info, &onion).unwrap();
        let (tag, rest) = (opened.tag, opened.rest.clone());
        let (ephemeral, secrets) = opened.answer(secret("y", i)).unwrap();
        setups.push(json!({
            "onion": hex(&onion),
            "replay_tag": hex(&tag),
            "hop_ephemeral": hex(&ephemeral),
            "confirm": hex(&secrets.confirm[..]),
            "ack": hex(&secrets.ack[..]),
            "forward": hex(secrets.forward.expose()),
            "backward": hex(secrets.backward.expose()),
        }));
        hops.push((ephemeral, secrets));
        onion = rest;
    }
    assert!(onion.is_empty(), "the exit is the last hop");
    (hops, setups, cells)
}

/// Passes an ack back from the exit: its content on link 1, and the cells.
fn pass_ack(shape: Shape, links: &[Link], hops: &[Answer], filling: &[u8], first: u64) -> (Vec<u8>, Vec<Value>) {
    assert_eq!(setup::ack_cells(shape), 1);
    let mut content = filling.to_vec();
    let mut ack_cells = Vec::new();
    for (i, ((ephemeral, secrets), link)) in hops.iter().zip(links).enumerate().rev() {
        if i + 1 == HOPS {
            setup::begin_ack(shape, 0, ephemeral, secrets, &mut content);
        } else {
            setup::cover_ack(shape, i + 1, 0, ephemeral, secrets, &mut content);
        }
        let header =
            Header { channel: link.channel, seq: first + i as u64, sub: 0, kind: CellKind::Ack, class: Class::S };
        ack_cells.push(link.control_cell(Direction::Backward, &header, &content));
    }
    ack_cells.reverse();
    (content, ack_cells)
}

/// A setup and its ack through the whole chain: what the entry ends up with, and all values.
fn run_setup(shape: Shape, info: Info, links: &[Link]) -> (Vec<HopSecrets>, Value, Vec<Vec<Value>>) {
    let (chain, hop_values): (Vec<Hop>, Vec<Value>) = (0..HOPS).map(|i| Hop::new(info.suite, i)).unzip();
    let publics: Vec<HopPublic> = chain.iter().map(|hop| hop.public.clone()).collect();
    let shares = (0..HOPS).map(|i| Hop::new(info.suite, i).0.share).collect();
    let (onion, pending) = setup::build(shape, &publics, shares, info).unwrap();
    let (hops, setups, cells) = pass_setup(shape, info, &chain, links, onion);
    let (filling, first) = match info.suite {
        Suite::X25519 => ("ack filling", 0x05_0607_0800),
        Suite::Hybrid => ("ack filling of suite 2", 0x05_0607_1000),
    };
    let ack_filling: [u8; 208] = fixed(filling);
    let (content, ack_cells) = pass_ack(shape, links, &hops, &ack_filling, first);
    let entry = pending.finish(shape, &mut [content]).expect("the entry accepts the ack");
    for (mine, (_, theirs)) in entry.iter().zip(&hops) {
        assert_eq!(mine.forward.expose(), theirs.forward.expose());
        assert_eq!(mine.backward.expose(), theirs.backward.expose());
    }
    let values = json!({
        "hops": hop_values,
        "setup": setups,
        "ack_filling": hex(&ack_filling),
        "ack_cells": ack_cells,
    });
    (entry, values, cells)
}

fn compute() -> Value {
    let shape = Shape::new(Class::S, HOPS).unwrap();
    let info = Info { suite: Suite::X25519, class: Class::S, paced: false, lifetime_s: 3600, first: 0 };
    let (links, link_values): (Vec<Link>, Vec<Value>) = (1..=HOPS).map(Link::new).unzip();
    let (entry, one, cells) = run_setup(shape, info, &links);
    let first_cells: Vec<Value> = cells.into_iter().map(|of_link| of_link[0].clone()).collect();
    let (_, mut two, cells) = run_setup(shape, Info { suite: Suite::Hybrid, ..info }, &links);
    two["setup_cells"] = cells.into();

    let keepalive_cells: Vec<_> = links
        .iter()
        .enumerate()
        .map(|(i, link)| {
            let mut content = vec![0; shape.control_content(Direction::Forward, i + 1)];
            content[0] = LinkContent::Keepalive as u8;
            let header = Header { channel: 0, seq: i as u64, sub: 0, kind: CellKind::Link, class: Class::S };
            link.control_cell(Direction::Forward, &header, &content)
        })
        .collect();

    let numbers = [5, (1 << 20) + 3];
    json!({
        "chain": {
            "class": "S",
            "payload": shape.payload(),
            "hops": HOPS,
            "lifetime_s": info.lifetime_s,
            "first": info.first,
        },
        "hops": one["hops"],
        "links": link_values,
        "setup": one["setup"],
        "setup_cells": first_cells,
        "ack_filling": one["ack_filling"],
        "ack_cells": one["ack_cells"],
        "suite2": two,
        "keepalive_cells": keepalive_cells,
        "forward_cells": numbers.map(|seq| {
            forward_cell(shape, &links, &entry, seq, &forward_inner(shape, &format!("forward {seq}")))
        }),
        "backward_cells": numbers.map(|seq| {
            backward_cell(shape, &links, &entry, seq, &backward_inner(shape, &format!("backward {seq}")))
        }),
    })
}

/// Paths of the values that differ.
pub(super) fn differences(path: &str, want: &Value, have: &Value, out: &mut Vec<String>) {
    match (want, have) {
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => {
            a.iter().for_each(|(name, value)| differences(&format!("{path}.{name}"), value, &b[name], out));
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().for_each(|(i, (a, b))| differences(&format!("{path}[{i}]"), a, b, out));
        }
        _ if want == have => {}
        _ => out.push(path.to_owned()),
    }
}

#[test]
fn bytes_of_a_chain_match_the_known_answer() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/known_answer.json");
    let have = compute();
    if std::env::var_os("EDDY_BLESS").is_some_and(|value| value == "1") {
        let text = serde_json::to_string_pretty(&have).unwrap() + "\n";
        std::fs::write(&file, text).unwrap();
        return;
    }
    let want: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let mut differ = Vec::new();
    differences("", &want, &have, &mut differ);
    assert!(differ.is_empty(), "not as frozen in {}: {differ:#?}", file.display());
}
