//! The frozen bytes of a paced class: `paced.json`. `tests/speclib/paced_vectors.py` made it from SPEC 9 and explains
//! its layout. The test computes everything again with this crate, and what is not part of a cell in a few lines.

use std::path::PathBuf;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};
use wire::cell::{Block, CellKind, Class, Direction, Shape};
use wire::frames::{self, Frame, SESSION_FLOW, Status, Writer};
use wire::gcm::{PolyvalKey, UivKey, encipher_batch, open_batch, seal_batch};
use wire::kdf::{Secret, expand, expand_info, extract};
use wire::link::{ControlKey, HeaderKey};
use wire::paced::{
    EntryKeys, ExitKeys, HopKeys, Inner, MEETING_OVERHEAD, MeetingSecret, PacedClass, PacedHeader, Place,
};
use wire::setup::{self, HopSecrets, Info, Suite};

use super::known_answer::{HOPS, Hop, Link, differences, fixed, hex, secret};
use super::uiv::{Way, uiv, unhex};

const CLASS: PacedClass = PacedClass::new(Class::S);
const P: usize = Class::S.payload();
/// Rounds of a batch.
const ROUNDS: u64 = 2048;
/// First round of the batch.
const FIRST: u64 = 80_000_000 * ROUNDS;
/// Rounds of a phase that carry setups (SPEC 9.7), hence cells of a setup on link 1.
const USED: usize = (ROUNDS as usize - 64) / (2 * HOPS) * 3 / 4;

/// POLYVAL, Tor's UIV+ and the wide-block layer.
fn primitives(file: &Value) -> [Value; 3] {
    let mut polyval = file["polyval"].clone();
    let [key, text] = ["key", "text"].map(|name| unhex(polyval[name].as_str().unwrap()));
    polyval["out"] = hex(&PolyvalKey::prepare(key.first_chunk().unwrap()).hash(&text));

    let tor = file["uiv_plus"].as_array().unwrap().iter().map(|vector| {
        let [key, tweak, text] = ["key", "tweak", "text"].map(|name| unhex(vector[name].as_str().unwrap()));
        let mut vector = vector.clone();
        for (name, way) in [("enc", Way::Encipher), ("dec", Way::Decipher)] {
            vector[name] = hex(&uiv(&key, 6, &tweak, way, &text));
        }
        vector
    });

    let key: [u8; 64] = fixed("paced wide");
    let texts = [Class::S, Class::M, Class::L].map(|size| {
        let text = &fixed::<1344>(&format!("paced text {size}"))[..PacedClass::new(size).body_len()];
        let mut body = text.to_vec();
        UivKey::prepare(&key).encipher(&Place { round: FIRST, sub: 0 }.nonce(), &mut body);
        json!({ "text": hex(text), "enc": hex(&body) })
    });
    [polyval, tor.collect(), json!({ "key": hex(&key), "round": FIRST, "sub": 0, "texts": texts })]
}

/// The terms of the class, the id of a chain with it, and the offsets of releases.
fn terms(hops: &[Hop]) -> ([u8; 32], Value, Value) {
    let bytes = hex_literal::hex!("11 05 766f696365 000a 01 0800 02 01 01 0008 0100 02 0008 0002 0002 0002");
    let hashes: Vec<_> = hops.iter().map(|hop| hop.public.descriptor_hash).collect();
    let start = hex_literal::hex!("01 02 0000000a 00000e10 04 01");
    let id = digest(&SHA256, &[b"eddy chain", &start[..], &bytes, &hashes.concat()].concat());
    let values = json!({
        "name": "voice", "period": 10, "cells": 1, "rounds": ROUNDS, "copies": 2, "gap": 1, "repeat": 1, "n_min": 8,
        "seats": 256, "loops": 2, "slack": 8, "steps": [2, 2, 2], "bytes": hex(&bytes), "chain_id": hex(id.as_ref()),
    });
    let offsets = json!({ "forward": [18, 20, 22, 24], "backward": [31, 29, 27, 25] });
    (id.as_ref().try_into().unwrap(), values, offsets)
}

/// A cell of a header in the clear and a body.
fn cell(link: &Link, direction: Direction, block: Block, body: &[u8]) -> Value {
    let key = HeaderKey::new(match direction {
        Direction::Forward => &link.secrets.header_i2r,
        Direction::Backward => &link.secrets.header_r2i,
    });
    let mut cell = [&block[..], body].concat();
    let (header, _) = CLASS.split_cell(&mut cell).unwrap();
    key.encipher(std::slice::from_mut(header));
    json!({ "header_clear": hex(&block), "header": hex(header), "body": hex(body) })
}

/// A data cell on the link of the first channel, or of the channel whose number is higher by `offset`.
fn data_cell(link: &Link, direction: Direction, place: Place, body: &[u8], offset: u32) -> Value {
    let key = PolyvalKey::prepare(match direction {
        Direction::Forward => &link.secrets.tag_i2r,
        Direction::Backward => &link.secrets.tag_r2i,
    });
    let Place { round, sub } = place;
    let tag = key.link_tag(body);
    let header =
        PacedHeader { channel: link.channel + offset, seq: round, sub, kind: CellKind::Data, class: CLASS, tag };
    let read = PacedHeader::from_block(&header.to_block(), CLASS, Some(FIRST)).unwrap();
    assert!(read == header && read.place() == place && read.is_tag_of(&key, body));
    cell(link, direction, header.to_block(), body)
}

/// The setup's cell with this index.
fn setup_cell(link: &Link, index: usize, content: &[u8]) -> Value {
    let (seq, sub) = (index as u64, index as u8);
    let header = PacedHeader { channel: link.channel, seq, sub, kind: CellKind::Setup, class: CLASS, tag: [0; 4] };
    let (block, mut body) = (header.to_block(), [content, &[0; 16]].concat());
    let key = ControlKey::new(&link.secrets.control_i2r);
    key.seal_under(&block, &mut body);
    assert_eq!(key.open_under(&block, &mut body.clone()).unwrap(), content);
    let mut cell = cell(link, Direction::Forward, block, &body);
    cell["index"] = index.into();
    cell["content"] = hex(content);
    cell
}

/// Some cells of the setup on the link into hop `i`.
fn setup_cells(shape: Shape, link: &Link, i: usize, onion: &[u8]) -> Value {
    let mut code = setup::paced_shards(shape, Suite::Hybrid, i);
    if i == 1 {
        code.parity = USED.min(255) - code.data;
    }
    let filling = &fixed::<256>(&format!("paced filling {i}"))[..code.data * P - onion.len()];
    let mut shards: Vec<Vec<u8>> = [onion, filling].concat().chunks(P).map(<[u8]>::to_vec).collect();
    code.encode(&mut shards);
    let last: Vec<u8> = (code.parity as u8..code.total() as u8).collect();
    assert!(code.decode(&last, &shards[code.parity..]).starts_with(onion));
    [0, code.data - 1, code.total() - 1].map(|index| setup_cell(link, index, &shards[index])).to_vec().into()
}

/// The setup through all hops: what they and the entry share.
fn run_setup(shape: Shape, links: &[Link], hops: Vec<Hop>, token: &[u8; 32]) -> (Vec<HopSecrets>, Value) {
    let info = Info::paced(Suite::Hybrid, CLASS, FIRST);
    let publics: Vec<_> = hops.iter().map(|hop| hop.public.clone()).collect();
    let (shares, keys): (Vec<_>, Vec<_>) = hops.into_iter().map(|hop| (hop.share, hop.key)).unzip();
    let (mut onion, _) = setup::build_with_token(shape, &publics, shares, info, token).unwrap();
    let (mut all, mut parts, mut shards) = (Vec::new(), Vec::new(), Vec::new());
    for (i, (link, public)) in links.iter().zip(&publics).enumerate() {
        shards.push(setup_cells(shape, link, i + 1, &onion));
        let opened = setup::open(shape, i + 1, &[public.descriptor_hash], &keys[i], info, &onion).unwrap();
        let rest = opened.rest.clone();
        let (_, secrets) = opened.answer(secret("y", i)).unwrap();
        let mut part = json!({ "onion": hex(&onion) });
        for (name, one) in [("forward", &secrets.forward), ("backward", &secrets.backward)] {
            part[name] = hex(one.expose());
            part[format!("wide_{name}")] = hex(&expand::<64>(one, "eddy1 wide")[..]);
            if i + 1 == HOPS {
                let (key, iv) = (expand::<16>(one, "eddy1 key"), expand::<12>(one, "eddy1 iv"));
                part[format!("data_{name}")] = hex(&[&key[..], &iv[..]].concat());
            }
        }
        parts.push(part);
        all.push(secrets);
        onion = rest;
    }
    assert_eq!(onion, token);
    let info = hex_literal::hex!("01 02 11 00 0000 2625a00000 0000000000");
    (all, json!({ "info": hex(&info), "token": hex(token), "hops": parts, "shards": shards }))
}

fn keys_of(hop: &HopSecrets) -> HopKeys {
    HopKeys::new(hop.forward.clone(), hop.backward.clone())
}

fn exit_of(hops: &[HopSecrets]) -> ExitKeys {
    ExitKeys::new(hops[HOPS - 1].forward.clone(), hops[HOPS - 1].backward.clone())
}

/// Frames that fill `len` inner bytes, zeros behind them.
fn inner(len: usize, frames: &[Frame<'_>]) -> Vec<u8> {
    let mut inner = vec![0xff; len];
    let mut writer = Writer::new(&mut inner);
    assert!(frames.iter().all(|frame| writer.put(frame)));
    writer.finish();
    inner
}

/// A frame as it is encoded.
fn encoded(frame: &Frame<'_>) -> Vec<u8> {
    inner(frame.len(), &[*frame])
}

fn data(links: &[Link], hops: &[HopSecrets]) -> Value {
    let place = Place { round: FIRST + 7, sub: 0 };
    let before: [u8; 20] = fixed("paced datagram before");
    let before = encoded(&Frame::Dgram { flow: 3, data: &before });
    let (session, datagram): (_, [u8; 40]) = (fixed("paced session"), fixed("paced datagram"));
    let all = [Frame::Again(&before), Frame::Session(session), Frame::Dgram { flow: 3, data: &datagram }];
    let inner = inner(P, &all);
    let read = frames::parse_paced(&inner, Direction::Forward, true).unwrap();
    assert_eq!(read.collect::<Vec<_>>(), all);

    let exit = exit_of(hops);
    let mut x = [&inner[..], &[0; 16]].concat();
    let mut body = x.clone();
    seal_batch(&mut [exit.data_job(Direction::Forward, place, &mut x)]);
    EntryKeys::new(hops.to_vec()).seal_data(place, &mut body);
    let mut cells = Vec::new();
    for (i, link) in links.iter().enumerate() {
        cells.push(data_cell(link, Direction::Forward, place, &body, 0));
        if i + 1 < HOPS {
            encipher_batch(&mut [keys_of(&hops[i]).job(Direction::Forward, place, &mut body)]);
        }
    }
    assert_eq!(body, x);
    let mut jobs = [exit.data_job(Direction::Forward, place, &mut body)];
    open_batch(&mut jobs);
    assert!(jobs[0].ok && body[..P] == inner);
    json!({ "round": place.round, "sub": place.sub, "inner": hex(&inner), "x": hex(&x), "links": cells })
}

fn answer(links: &[Link], hops: &[HopSecrets]) -> Value {
    let place = Place { round: FIRST + 9, sub: 0 };
    let status = Frame::Status { flow: SESSION_FLOW, code: Status::Open };
    let inner = inner(P, &[status]);
    let read = frames::parse_paced(&inner, Direction::Backward, true).unwrap();
    assert_eq!(read.collect::<Vec<_>>(), [status]);

    let mut body = [&inner[..], &[0; 16]].concat();
    seal_batch(&mut [exit_of(hops).data_job(Direction::Backward, place, &mut body)]);
    let x = body.clone();
    let mut cells = Vec::new();
    for (i, link) in links.iter().enumerate().rev() {
        if i + 1 < HOPS {
            encipher_batch(&mut [keys_of(&hops[i]).job(Direction::Backward, place, &mut body)]);
        }
        cells.push(data_cell(link, Direction::Backward, place, &body, 0));
    }
    cells.reverse();
    assert_eq!(EntryKeys::new(hops.to_vec()).open(None, place, &mut body), Some(Inner::Data(&inner)));
    json!({ "round": place.round, "sub": place.sub, "inner": hex(&inner), "x": hex(&x), "links": cells })
}

fn call(links: &[Link], hops: &[HopSecrets], peer: &[HopSecrets], secret: &MeetingSecret, chain: &[u8; 32]) -> Value {
    let place = Place { round: FIRST + 11, sub: 0 };
    let before: [u8; 12] = fixed("paced call before");
    let before = encoded(&Frame::Dgram { flow: 0, data: &before });
    let datagram: [u8; 60] = fixed("paced call");
    let all = [Frame::Again(&before), Frame::Dgram { flow: 0, data: &datagram }];
    let inner = inner(P - 8, &all);
    assert_eq!(frames::parse_meeting(&inner, true).unwrap().collect::<Vec<_>>(), all);

    let meeting = secret.meeting(chain, CLASS, FIRST);
    let (salt, other) = (fixed("paced salt"), fixed("paced other salt"));
    let mut x = [&[0; MEETING_OVERHEAD][..], &inner].concat();
    let mut body = x.clone();
    meeting.call(salt).seal(place, &mut x);
    EntryKeys::new(hops.to_vec()).seal_meeting(&meeting.call(salt), place, &mut body);
    let (mut there, mut back) = (Vec::new(), Vec::new());
    for (link, hop) in links.iter().zip(hops) {
        there.push(data_cell(link, Direction::Forward, place, &body, 0));
        encipher_batch(&mut [keys_of(hop).job(Direction::Forward, place, &mut body)]);
    }
    assert_eq!(body, x);
    for (link, hop) in links.iter().zip(peer).rev() {
        encipher_batch(&mut [keys_of(hop).job(Direction::Backward, place, &mut body)]);
        back.push(data_cell(link, Direction::Backward, place, &body, 1));
    }
    back.reverse();
    let got = EntryKeys::new(peer.to_vec());
    assert_eq!(got.open(Some(&meeting.call(other)), place, &mut body), Some(Inner::Meeting(&inner)));
    json!({
        "round": place.round, "sub": place.sub, "salt": hex(&salt), "inner": hex(&inner), "x": hex(&x),
        "forward": there, "backward": back,
    })
}

/// The secrets of the second channel's hops; only its `sec[0]` matter.
fn peer() -> Vec<HopSecrets> {
    let secret = |i, way| Secret::new(fixed(&format!("paced peer {i} {way}")));
    let of_hop = |i| HopSecrets {
        confirm: [0; 16],
        ack: zeroize::Zeroizing::new([0; 28]),
        forward: secret(i, 'f'),
        backward: secret(i, 'b'),
    };
    (1..=HOPS).map(of_hop).collect()
}

fn compute(file: &Value) -> Value {
    let shape = Shape::new(Class::S, HOPS).unwrap();
    let links: Vec<Link> = (1..=HOPS).map(|i| Link::new(i).0).collect();
    let hops: Vec<Hop> = (0..HOPS).map(|i| Hop::new(Suite::Hybrid, i).0).collect();
    let [polyval, uiv_plus, wide] = primitives(file);
    let (chain, terms, offsets) = terms(&hops);

    let secret: [u8; 32] = fixed("paced secret");
    let prk = extract(b"eddy1 meet", &[&secret]);
    let mut call_key = [0; 64];
    let info = [b"call", &chain[..], &[CLASS.number()], &FIRST.to_be_bytes()[3..]].concat();
    expand_info(&prk, &info, &mut call_key).unwrap();
    let meeting_secret = MeetingSecret::new(secret);
    let token = meeting_secret.meeting(&chain, CLASS, FIRST).token;

    let (mine, setup) = run_setup(shape, &links, hops, token.expose());
    let peer = peer();
    let peer_secrets = peer.iter().map(|hop| [&hop.forward, &hop.backward].map(|one| hex(one.expose())));
    let tags = links.iter().map(
        |link| json!({ "tag_forward": hex(&link.secrets.tag_i2r[..]), "tag_backward": hex(&link.secrets.tag_r2i[..]) }),
    );
    json!({
        "polyval": polyval,
        "uiv_plus": uiv_plus,
        "wide": wide,
        "terms": terms,
        "offsets_ms": offsets,
        "links": tags.collect::<Value>(),
        "meeting": {
            "secret": hex(&secret), "prk": hex(prk.expose()), "first": FIRST, "token": hex(token.expose()),
            "call": hex(&call_key),
        },
        "setup": setup,
        "data": data(&links, &mine),
        "answer": answer(&links, &mine),
        "peer": peer_secrets.map(Value::from_iter).collect::<Value>(),
        "call": call(&links, &mine, &peer, &meeting_secret, &chain),
    })
}

#[test]
fn bytes_of_a_paced_class_match_the_known_answer() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/paced.json");
    let file: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let mut differ = Vec::new();
    differences("", &file, &compute(&file), &mut differ);
    assert!(differ.is_empty(), "not as in {}: {differ:#?}", path.display());
}
