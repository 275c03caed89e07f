//! The frozen bytes of a paced class: `paced.json`. `tests/speclib/paced_vectors.py` made it from SPEC 9 and explains
//! its layout. The test computes everything again with this crate, and what is not part of a cell in a few lines.

use std::path::PathBuf;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};
use wire::cell::{Block, CellKind, Class, Direction, Shape};
use wire::frames::{self, Frame, SESSION_FLOW, Status, Writer};
use wire::gcm::{PolyvalKey, UivKey, encipher_batch, open_batch, seal_batch};
use wire::kdf::{Secret, expand, expand_info, extract};
use wire::link::{ControlKey, HeaderKey, LinkContent, LinkSecrets};
use wire::paced::clock::ClockCell;
use wire::paced::{
    Company, ControlSlots, EntryKeys, ExitKeys, HopKeys, Inner, MEETING_OVERHEAD, Meeting, MeetingSecret, PacedClass,
    PacedHeader, PacedTerms, Phase, Report, RoundSub, seats_on,
};
use wire::setup::{self, HopSecrets, Info, Pending, Suite};

use super::known_answer::{HOPS, Hop, Link, differences, fixed, hex, secret};
use super::uiv::{Way, uiv, unhex};

/// Rounds of a batch.
const ROUNDS: u64 = 2048;
/// First round of the batch.
const FIRST: u64 = 80_000_000 * ROUNDS;
const N_MIN: u16 = 8;
const FORWARD: Direction = Direction::Forward;
const BACKWARD: Direction = Direction::Backward;

/// A chain whose cells are in the file.
struct Chain {
    class: PacedClass,
    suite: Suite,
    links: Vec<Link>,
    /// Number of its data cells in their rounds.
    sub: u8,
    /// How fixed bytes are called.
    name: &'static str,
}

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
        UivKey::prepare(&key).encipher(&RoundSub { round: FIRST, sub: 0 }.nonce(), &mut body);
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
        "name": "voice", "period": 10, "cells": 1, "rounds": ROUNDS, "copies": 2, "gap": 1, "repeat": 1,
        "n_min": N_MIN, "seats": 256, "loops": 2, "slack": 8, "steps": [2, 2, 2], "bytes": hex(&bytes),
        "chain_id": hex(id.as_ref()),
    });
    let offsets = json!({ "forward": [18, 20, 22, 24], "backward": [31, 29, 27, 25] });
    (id.as_ref().try_into().unwrap(), values, offsets)
}

impl Chain {
    fn hops(&self) -> usize {
        self.links.len()
    }

    fn payload(&self) -> usize {
        self.class.size().payload()
    }

    fn shape(&self) -> Shape {
        Shape::new(self.class.size(), self.hops()).unwrap()
    }

    /// A cell of a header in the clear and a body.
    fn cell(&self, link: &Link, direction: Direction, block: Block, body: &[u8]) -> Value {
        let key = HeaderKey::new(match direction {
            Direction::Forward => &link.secrets.header_i2r,
            Direction::Backward => &link.secrets.header_r2i,
        });
        let mut header = block;
        key.encipher(std::slice::from_mut(&mut header));
        json!({ "header_clear": hex(&block), "header": hex(&header), "body": hex(body) })
    }

    /// A data cell on the link of the first channel, or of the channel whose number is higher by `offset`.
    fn data_cell(&self, link: &Link, direction: Direction, place: RoundSub, body: &[u8], offset: u32) -> Value {
        let key = PolyvalKey::prepare(match direction {
            Direction::Forward => &link.secrets.tag_i2r,
            Direction::Backward => &link.secrets.tag_r2i,
        });
        let (RoundSub { round, sub }, tag) = (place, key.link_tag(body));
        let channel = link.channel + offset;
        let header = PacedHeader { channel, seq: round, sub, kind: CellKind::Data, class: self.class, tag };
        let read = PacedHeader::from_block(&header.to_block(), self.class, Some(FIRST)).unwrap();
        assert!(read == header && read.round_sub() == place && read.is_tag_of(&key, body));
        self.cell(link, direction, header.to_block(), body)
    }

    /// A cell of type 1, 2 or 3.
    fn control_cell(
        &self,
        link: &Link,
        direction: Direction,
        (kind, seq, sub): (CellKind, u64, u8),
        content: &[u8],
    ) -> Value {
        let channel = if kind == CellKind::Link { 0 } else { link.channel };
        let header = PacedHeader { channel, seq, sub, kind, class: self.class, tag: [0; 4] };
        assert_eq!(PacedHeader::from_block(&header.to_block(), self.class, None), Some(header));
        let (block, mut body) = (header.to_block(), vec![0; self.payload() + 16]);
        body[..content.len()].copy_from_slice(content);
        let content = body[..self.payload()].to_vec();
        let key = ControlKey::new(match direction {
            Direction::Forward => &link.secrets.control_i2r,
            Direction::Backward => &link.secrets.control_r2i,
        });
        key.seal_under(&block, &mut body);
        assert_eq!(key.open_under(&block, &mut body.clone()).unwrap(), content);
        let mut cell = self.cell(link, direction, block, &body);
        cell["content"] = hex(&content);
        cell
    }

    /// Some cells of the setup on the link into hop `i`.
    fn setup_cells(&self, link: &Link, i: usize, onion: &[u8]) -> Value {
        let mut code = setup::paced_shards(self.shape(), self.suite, i);
        if i == 1 {
            let used = (ROUNDS as usize - 64) / (2 * self.hops()) * 3 / 4;
            code.parity = used.min(255) - code.data;
        }
        let payload = self.payload();
        let filling = &fixed::<256>(&format!("{} filling {i}", self.name))[..code.data * payload - onion.len()];
        let mut shards: Vec<Vec<u8>> = [onion, filling].concat().chunks(payload).map(<[u8]>::to_vec).collect();
        code.encode(&mut shards);
        let last: Vec<u8> = (code.parity as u8..code.total() as u8).collect();
        assert!(code.decode(&last, &shards[code.parity..]).starts_with(onion));
        let mut indexes = vec![0, code.data - 1, code.total() - 1];
        indexes.dedup();
        let cells = indexes.into_iter().map(|index| {
            let mut cell =
                self.control_cell(link, FORWARD, (CellKind::Setup, index as u64, index as u8), &shards[index]);
            cell["index"] = index.into();
            cell
        });
        cells.collect()
    }

    /// A setup through all hops and its ack: what they and the entry share, and the values of both.
    fn run_setup(&self, hops: Vec<Hop>, token: &[u8; 32]) -> (Vec<HopSecrets>, Value, Value) {
        let info = Info::paced(self.suite, self.class, FIRST);
        let publics: Vec<_> = hops.iter().map(|hop| hop.public.clone()).collect();
        let (shares, keys): (Vec<_>, Vec<_>) = hops.into_iter().map(|hop| (hop.share, hop.key)).unzip();
        let (mut onion, pending) = setup::build_with_token(self.shape(), &publics, shares, info, token).unwrap();
        let (mut answers, mut parts, mut shards) = (Vec::new(), Vec::new(), Vec::new());
        for (i, (link, public)) in self.links.iter().zip(&publics).enumerate() {
            shards.push(self.setup_cells(link, i + 1, &onion));
            let opened = setup::open(self.shape(), i + 1, &[public.descriptor_hash], &keys[i], info, &onion).unwrap();
            let rest = opened.rest.clone();
            let (ephemeral, secrets) = opened.answer(secret("y", i)).unwrap();
            let mut part =
                json!({ "onion": hex(&onion), "confirm": hex(&secrets.confirm[..]), "ack": hex(&secrets.ack[..]) });
            for (name, one) in [("forward", &secrets.forward), ("backward", &secrets.backward)] {
                part[name] = hex(one.expose());
                part[format!("wide_{name}")] = hex(&expand::<64>(one, "eddy1 wide")[..]);
                if i + 1 == self.hops() {
                    let (key, iv) = (expand::<16>(one, "eddy1 key"), expand::<12>(one, "eddy1 iv"));
                    part[format!("data_{name}")] = hex(&[&key[..], &iv[..]].concat());
                }
            }
            parts.push(part);
            answers.push((ephemeral, secrets));
            onion = rest;
        }
        assert_eq!(onion, token);
        let head = [1, self.suite as u8, self.class.number(), 0, 0, 0];
        let info = [&head[..], &FIRST.to_be_bytes()[3..], &[0; 5]].concat();
        let ack = self.run_ack(&answers, &pending);
        let secrets = answers.into_iter().map(|(_, secrets)| secrets).collect();
        (secrets, json!({ "info": hex(&info), "token": hex(token), "hops": parts, "shards": shards }), ack)
    }

    /// The contents of an ack on their way back, with the ephemerals and secrets of the hops.
    fn run_ack(&self, hops: &[([u8; 32], HopSecrets)], pending: &Pending) -> Value {
        let (mut contents, mut values) = (Vec::new(), Vec::new());
        for sub in 0..setup::ack_cells(self.shape()) as u8 {
            let filling = fixed::<208>(&format!("{} ack filling {sub}", self.name));
            let (mut content, mut cells) = (filling.to_vec(), Vec::new());
            for (i, (link, (ephemeral, secrets))) in self.links.iter().zip(hops).enumerate().rev() {
                if i + 1 == self.hops() {
                    setup::begin_ack(self.shape(), sub, ephemeral, secrets, &mut content);
                } else {
                    setup::cover_ack(self.shape(), i + 1, sub, ephemeral, secrets, &mut content);
                }
                let numbers = (CellKind::Ack, 100 + u64::from(sub), sub);
                cells.push(self.control_cell(link, BACKWARD, numbers, &content));
            }
            cells.reverse();
            contents.push(content);
            values.push(json!({ "filling": hex(&filling), "links": cells }));
        }
        let read = pending.finish(self.shape(), &mut contents).expect("the entry accepts the ack");
        for (mine, (_, theirs)) in read.iter().zip(hops) {
            assert_eq!(mine.forward.expose(), theirs.forward.expose());
            assert_eq!(mine.backward.expose(), theirs.backward.expose());
        }
        values.into()
    }

    fn data(&self, hops: &[HopSecrets]) -> Value {
        let place = RoundSub { round: FIRST + 7, sub: self.sub };
        let before: [u8; 20] = fixed("paced datagram before");
        let before = encoded(&Frame::Dgram { flow: 3, data: &before });
        let (session, datagram): (_, [u8; 40]) = (fixed("paced session"), fixed("paced datagram"));
        let all = [Frame::Again(&before), Frame::Session(session), Frame::Dgram { flow: 3, data: &datagram }];
        let inner = inner(self.payload(), &all);
        let read = frames::parse_paced(&inner, FORWARD, true).unwrap();
        assert_eq!(read.collect::<Vec<_>>(), all);

        let exit = exit_of(hops);
        let mut x = [&inner[..], &[0; 16]].concat();
        let mut body = x.clone();
        seal_batch(&mut [exit.data_job(FORWARD, place, &mut x)]);
        EntryKeys::new(hops.to_vec()).seal_data(place, &mut body);
        let mut cells = Vec::new();
        for (i, link) in self.links.iter().enumerate() {
            cells.push(self.data_cell(link, FORWARD, place, &body, 0));
            if i + 1 < self.hops() {
                encipher_batch(&mut [keys_of(&hops[i]).job(FORWARD, place, &mut body)]);
            }
        }
        assert_eq!(body, x);
        let mut jobs = [exit.data_job(FORWARD, place, &mut body)];
        open_batch(&mut jobs);
        assert!(jobs[0].ok && body[..self.payload()] == inner);
        json!({ "round": place.round, "sub": place.sub, "inner": hex(&inner), "x": hex(&x), "links": cells })
    }

    fn answer(&self, hops: &[HopSecrets]) -> Value {
        let place = RoundSub { round: FIRST + 9, sub: self.sub };
        let status = Frame::Status { flow: SESSION_FLOW, code: Status::Open };
        let inner = inner(self.payload(), &[status]);
        let read = frames::parse_paced(&inner, BACKWARD, true).unwrap();
        assert_eq!(read.collect::<Vec<_>>(), [status]);

        let mut body = [&inner[..], &[0; 16]].concat();
        seal_batch(&mut [exit_of(hops).data_job(BACKWARD, place, &mut body)]);
        let x = body.clone();
        let mut cells = Vec::new();
        for (i, link) in self.links.iter().enumerate().rev() {
            if i + 1 < self.hops() {
                encipher_batch(&mut [keys_of(&hops[i]).job(BACKWARD, place, &mut body)]);
            }
            cells.push(self.data_cell(link, BACKWARD, place, &body, 0));
        }
        cells.reverse();
        assert_eq!(EntryKeys::new(hops.to_vec()).open(None, place, &mut body), Some(Inner::Data(&inner)));
        json!({ "round": place.round, "sub": place.sub, "inner": hex(&inner), "x": hex(&x), "links": cells })
    }

    /// A meeting body from the channel of `hops` to that of `peer`.
    fn call(&self, hops: &[HopSecrets], peer: &[HopSecrets], meeting: &Meeting) -> Value {
        let place = RoundSub { round: FIRST + 11, sub: self.sub };
        let before: [u8; 12] = fixed("paced call before");
        let before = encoded(&Frame::Dgram { flow: 0, data: &before });
        let datagram: [u8; 60] = fixed("paced call");
        let all = [Frame::Again(&before), Frame::Dgram { flow: 0, data: &datagram }];
        let inner = inner(self.payload() - 8, &all);
        assert_eq!(frames::parse_meeting(&inner, true).unwrap().collect::<Vec<_>>(), all);

        let (salt, other) = (fixed("paced salt"), fixed("paced other salt"));
        let mut x = [&[0; MEETING_OVERHEAD][..], &inner].concat();
        let mut body = x.clone();
        meeting.call(salt).seal(place, &mut x);
        EntryKeys::new(hops.to_vec()).seal_meeting(&meeting.call(salt), place, &mut body);
        let (mut there, mut back) = (Vec::new(), Vec::new());
        for (link, hop) in self.links.iter().zip(hops) {
            there.push(self.data_cell(link, FORWARD, place, &body, 0));
            encipher_batch(&mut [keys_of(hop).job(FORWARD, place, &mut body)]);
        }
        assert_eq!(body, x);
        for (link, hop) in self.links.iter().zip(peer).rev() {
            encipher_batch(&mut [keys_of(hop).job(BACKWARD, place, &mut body)]);
            back.push(self.data_cell(link, BACKWARD, place, &body, 1));
        }
        back.reverse();
        let got = EntryKeys::new(peer.to_vec());
        assert_eq!(got.open(Some(&meeting.call(other)), place, &mut body), Some(Inner::Meeting(&inner)));
        json!({
            "round": place.round, "sub": place.sub, "salt": hex(&salt), "inner": hex(&inner), "x": hex(&x),
            "forward": there, "backward": back,
        })
    }

    /// Type 3 cells.
    fn control(&self, release_ms: u64) -> Value {
        let sent = (FIRST * 10 + release_ms) * 1_000_000;
        let clock = |sent, peer, received| {
            let cell = ClockCell { sent, peer, received };
            assert_eq!(ClockCell::from_bytes(&cell.to_bytes()), cell);
            let fields = json!({ "sent": sent, "peer": peer, "received": received });
            (LinkContent::Clock, fields, cell.to_bytes().to_vec())
        };
        let Report { first, last, places, filled, lost } =
            Report { first: FIRST - 4000, last: FIRST + 99, places: 4100, filled: 12, lost: 0xFFFF_FFF0 };
        let report = Report { first, last, places, filled, lost }.to_bytes();
        assert_eq!(Report::from_bytes(&report), Report { first, last, places, filled, lost });
        let of_report = json!({ "first": first, "last": last, "places": places, "filled": filled, "lost": lost });
        let company = Company { channels: 9, n_min: N_MIN }.to_bytes();
        assert_eq!(Company::from_bytes(&company), Company { channels: 9, n_min: N_MIN });
        let of_company = json!({ "channels": 9, "n_min": N_MIN });
        let cells = [
            ("clock", FORWARD, 2, clock(sent, sent - 158_765_432, sent - 151_234_567)),
            ("entry_clock", FORWARD, 1, clock(7, 0, 0)),
            ("answered_clock", BACKWARD, 1, clock(sent + 13_000_000, 7, sent - 1_234_567)),
            ("report", BACKWARD, 1, (LinkContent::Report, of_report, report.to_vec())),
            ("company", BACKWARD, 1, (LinkContent::Company, of_company, company.to_vec())),
            ("dummy", BACKWARD, 1, (LinkContent::Dummy, json!({}), Vec::new())),
        ];
        let cells = cells.into_iter().enumerate().map(|(seq, (name, direction, link, (kind, fields, bytes)))| {
            let content = [&[kind as u8], &bytes[..]].concat();
            let numbers = (CellKind::Link, seq as u64, 0);
            let mut cell = self.control_cell(&self.links[link - 1], direction, numbers, &content);
            for (key, value) in [("name", name.into()), ("link", link.into()), ("fields", fields)] {
                cell[key] = value;
            }
            cell
        });
        cells.collect()
    }

    fn tags(&self) -> Value {
        let of_link = |link: &Link| {
            let LinkSecrets { tag_i2r, tag_r2i, .. } = &link.secrets;
            json!({ "tag_forward": hex(&tag_i2r[..]), "tag_backward": hex(&tag_r2i[..]) })
        };
        self.links.iter().map(of_link).collect()
    }
}

fn keys_of(hop: &HopSecrets) -> HopKeys {
    HopKeys::new(&hop.forward, &hop.backward)
}

fn exit_of(hops: &[HopSecrets]) -> ExitKeys {
    let last = hops.last().expect("a chain has hops");
    ExitKeys::new(&last.forward, &last.backward)
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

/// The secrets of a channel's hops with this name; only its `sec[0]` matter.
fn channel(name: &str, hops: usize) -> Vec<HopSecrets> {
    let secret = |i, way| Secret::new(fixed(&format!("{name} {i} {way}")));
    let of_hop = |i| HopSecrets {
        confirm: Default::default(),
        ack: zeroize::Zeroizing::new([0; 28]),
        forward: secret(i, 'f'),
        backward: secret(i, 'b'),
    };
    (1..=hops).map(of_hop).collect()
}

fn secrets(hops: &[HopSecrets]) -> Value {
    hops.iter().map(|hop| Value::from_iter([&hop.forward, &hop.backward].map(|one| hex(one.expose())))).collect()
}

/// Classes M and L in chains of one mix.
fn size(size: Class, meeting: &MeetingSecret, chain: &[u8; 32]) -> Value {
    let links = (1..=2).map(|i| Link::new(i).0).collect();
    let class = PacedClass::new(size);
    let on = Chain { class, suite: Suite::Hybrid, links, sub: 31, name: "" };
    let (hops, peer) = (channel(&format!("paced {size}"), 2), channel(&format!("paced peer {size}"), 2));
    let meeting = meeting.meeting(chain, class, FIRST);
    json!({
        "class": size.to_string(), "hops": secrets(&hops), "peer": secrets(&peer),
        "token": hex(meeting.token.expose()), "data": on.data(&hops), "answer": on.answer(&hops),
        "call": on.call(&hops, &peer, &meeting),
    })
}

/// Seven mixes.
fn long() -> Value {
    let (links, mut link_values): (Vec<Link>, Vec<Value>) = (1..=8).map(Link::new).unzip();
    let (hops, hop_values): (Vec<Hop>, Vec<Value>) = (0..8).map(|i| Hop::new(Suite::X25519, i)).unzip();
    let on = Chain { class: PacedClass::new(Class::S), suite: Suite::X25519, links, sub: 3, name: "paced long" };
    for (values, tags) in link_values.iter_mut().zip(on.tags().as_array().unwrap()) {
        let values = values.as_object_mut().unwrap();
        values.retain(|name, _| ["handshake_hash", "k1", "k2", "ss_mlkem", "channel"].contains(&&name[..]));
        values.extend(tags.as_object().unwrap().clone());
    }
    let (mine, setup, ack) = on.run_setup(hops, &fixed("paced long token"));
    json!({
        "first": FIRST, "hops": hop_values, "links": link_values, "setup": setup, "ack": ack, "data": on.data(&mine),
        "answer": on.answer(&mine),
    })
}

/// What follows from the terms in a row.
fn table(row: &Value) -> Value {
    let number = |name: &str| row[name].as_u64().unwrap();
    let size = [Class::S, Class::M, Class::L].into_iter().find(|size| row["class"] == size.to_string()).unwrap();
    let hops = number("hops") as usize;
    let suite = Suite::from_wire(number("suite") as u8).unwrap();
    let terms = PacedTerms {
        period_ms: number("period") as u16,
        rounds: number("rounds") as u16,
        copies: number("copies") as u8,
        gap: number("gap") as u8,
        slack_ms: number("slack") as u16,
        steps_ms: row["steps"].as_array().unwrap().iter().map(|step| step.as_u64().unwrap() as u16).collect(),
        seats: number("seats") as u16,
        loops: number("loops") as u8,
        ..PacedTerms::new(PacedClass::new(size), "table", hops)
    };
    let times = terms.timetable(hops);
    let phases = (1..=hops).map(Phase::Setup).chain((1..=hops).rev().map(Phase::Ack));
    let offsets = |direction| (1..=hops).map(|hop| times.offset(direction, hop) / 1_000_000).collect::<Value>();
    let links = (1..=hops).map(|link| {
        let slots = |direction| {
            let of = ControlSlots::new(&terms, suite, hops, link, direction);
            let phase = if direction == FORWARD { Phase::Setup(link) } else { Phase::Ack(link) };
            let rounds = times.rounds_of(80_000_000, phase);
            assert_eq!(of.of(&times, rounds.start + times.used()).placed, 0);
            of.of(&times, rounds.start + times.used() - 1).placed
        };
        let (code, w, a) = (terms.setup_shards(suite, hops, link), slots(FORWARD), slots(BACKWARD));
        let parity = if link == 1 { times.used().min(255) as usize - code.data } else { code.parity };
        let wanted = if link == 1 { 0 } else { 8 * (w + a + 2) };
        json!({
            "k": code.data, "r": parity, "seats": seats_on(link, terms.seats, terms.loops), "w": w, "a": a,
            "window": wanted.max(4096).next_power_of_two(),
        })
    });
    let mut out = row.clone();
    out["links"] = links.collect();
    out["L"] = times.phase_len().into();
    out["u"] = times.used().into();
    out["phases"] = phases.map(|phase| times.rounds_of(0, phase).start).collect();
    out["offsets_forward"] = offsets(FORWARD);
    out["offsets_backward"] = offsets(BACKWARD);
    out
}

fn compute(file: &Value) -> Value {
    let links = (1..=HOPS).map(|i| Link::new(i).0).collect();
    let on = Chain { class: PacedClass::new(Class::S), suite: Suite::Hybrid, links, sub: 0, name: "paced" };
    let hops: Vec<Hop> = (0..HOPS).map(|i| Hop::new(Suite::Hybrid, i).0).collect();
    let [polyval, uiv_plus, wide] = primitives(file);
    let (chain, terms, offsets) = terms(&hops);

    let secret: [u8; 32] = fixed("paced secret");
    let prk = extract(b"eddy1 meet", &[&secret]);
    let mut call_key = [0; 64];
    let info = [b"call", &chain[..], &[on.class.number()], &FIRST.to_be_bytes()[3..]].concat();
    expand_info(&prk, &info, &mut call_key).unwrap();
    let meeting_secret = MeetingSecret::new(secret);
    let meeting = meeting_secret.meeting(&chain, on.class, FIRST);

    let (mine, setup, ack) = on.run_setup(hops, meeting.token.expose());
    let peer = channel("paced peer", HOPS);
    let sizes = [Class::M, Class::L].map(|one| size(one, &meeting_secret, &chain)).to_vec();
    json!({
        "polyval": polyval,
        "uiv_plus": uiv_plus,
        "wide": wide,
        "terms": terms,
        "offsets_ms": offsets,
        "links": on.tags(),
        "meeting": {
            "secret": hex(&secret), "prk": hex(prk.expose()), "first": FIRST, "token": hex(meeting.token.expose()),
            "call": hex(&call_key),
        },
        "setup": setup,
        "ack": ack,
        "control": on.control(18),
        "data": on.data(&mine),
        "answer": on.answer(&mine),
        "peer": secrets(&peer),
        "call": on.call(&mine, &peer, &meeting),
        "sizes": sizes,
        "long": long(),
        "tables": file["tables"].as_array().unwrap().iter().map(table).collect::<Value>(),
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
