"""Reproduces wire/tests/paced.json: class S paced, three mixes and the exit, suite 2, and other chains in part.

Strings are bytes in hexadecimal unless they are names, numbers are numbers. Lists named for hops or links start
with hop 1 or link 1. The keys of the hops, and the results of the links' handshakes, are those of
known_answer.json: `suite2.hops` and `links`. A cell is `header_clear`, `header`, `body`; one of types 1 to 3
has `content`.

* `polyval`: the vector of RFC 8452, appendix A.
* `uiv_plus`: published vectors of Tor, with a tweak of 17 bytes, 509 bytes of text and 6 cleared bits: `enc`
  and `dec` are what ENC and DEC make of `text`. They are from the crate tor-proto, testdata/cgo_uiv.rs
  ("Pseudorandom 1"; MIT or Apache-2.0).
* `wide` (SPEC 9.3): ENC of a text of each size under one wide key.
* `terms` (7.4, 9.16): the class in `chain.toml`, its bytes, and the id of a chain with this class alone. The
  identities are the descriptor hashes of `hops`.
* `offsets_ms` (9.5.2).
* `links` (9.2.2): `tag_forward`, `tag_backward`.
* `meeting` (9.13): secret, PRK, token, call.
* `setup` (9.8): info, token, S of each link, and of each hop confirm, the key and iv of the ack, sec[0] and the keys
  of 9.3. `shards` are the setup's cells on each link with the indexes 0, k - 1 and the last one; on link 1 that is
  u - 1. Their type 1 numbers are their indexes.
* `ack` (9.9, 5.4): by content, the random bytes with which the exit begins it, and its cell on each link. Their numbers
  are 100 and the content's. The confirmations of the entry are right.
* `control` (9.6.6): type 3 cells on a link. A mix and an entry send `clock` and `entry_clock`, Mix 1 `answered_clock`,
  `report`, `company` and `dummy` to the entry. Their numbers are their places in this list.
* `data` (9.3.2, 9.11.6, 9.11.7): a forward cell to a destination at every link. Its frames are AGAIN, SESSION,
  DGRAM.
* `answer` (9.3.3): a backward cell at every link, with STATUS of the session. An entry whose channel serves a
  meeting refuses it as `garbled` (9.11.9).
* `call` (9.13): a meeting body from the channel of `setup` to a second channel, whose sec[0] of each hop are in
  `peer`: at every link forward, and backward to the other entry. The second channel has the numbers of links
  + 1.
* `sizes`: `data`, `answer` and `call` of classes M and L in chains of one mix. sec[0] of each hop are in `hops`, those
  of the second channel in `peer`.
* `long`: a chain of seven mixes, class S, suite 1. Hops and links as in known_answer.json, and the same as above of
  them.
* `tables` (9.5 to 9.9): of a class in a chain with these terms, L, u, the rounds of a batch with which its phases
  begin, the offsets in ms, and for each link the shards k and r, the seats, w, a and the window of link keys. On link 1
  w and a are those of 9.6, 1, and r makes min(u, 255) shards."""

import json
import os
from types import SimpleNamespace

from .protocol import (
    ACK, AGAIN, BACKWARD, DATA, DGRAM, DUMMY, FORWARD, LINK, MOVE, PING, SESSION, SETUP, STATUS, SUITES,
    Ephemeral, Header, HopSecrets, Refused, SetupKeys, Suite1, Suite2,
    ack_contents, expand, extract, flip_bit, frame, join_shards, make_setup, open_setup, parse_frames, read_ack,
    setup_info, setup_length, setup_shards, shard_counts, write_ack_slot, x25519, x25519_public,
)  # fmt: skip
from .paced import (
    PACED_FRAMES, ClockCell, CompanyCell, Lead, Meeting, PacedClass, PacedHop, PacedSlot, PacedTerms, ReportCell, Wide,
    again, binomial_tail, copied_rounds, link_loss, link_window, loop_loss, loop_setup_loss, offsets, open_at_entry,
    parse_content, parse_meeting, phase_rounds, polyval, refused_terms, slot_counts, tweak, unwrap, wrap,
)  # fmt: skip
from .report import same
from .trust import SetupPrivate, sha256

TERMS = dict(
    name="voice", period=10, cells=1, rounds=2048, copies=2, gap=1, repeat=1, n_min=8, seats=256, loops=2,
    slack=8, steps=[2, 2, 2],
)  # fmt: skip
BATCH = 80_000_000
SUB = 0
LINK_INPUTS = ("handshake_hash", "k1", "k2", "ss_mlkem")
DIRECTIONS = (("forward", FORWARD), ("backward", BACKWARD))


def fixed(name, length=32):
    """Arbitrary bytes that stay the same, as in wire/tests/it/known_answer.rs."""
    return expand(bytes(32), name.encode(), length)


def plain(value):
    """JSON of bytes."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def fixed_link(i):
    """A link of known_answer.json, or one more."""
    inputs = {name: fixed(f"{name} {i}".replace("_", " ").replace("ss mlkem", "ss")) for name in LINK_INPUTS}
    return SimpleNamespace(**inputs, channel=fixed(f"channel {i}", 4))


class Links:
    """Links with paced slots, and the number in a round of the data cells on them."""

    def __init__(self, size, links, sub=SUB):
        self.size, self.sub = size, sub
        self.channels = [int.from_bytes(link.channel) for link in links]
        self.slots = [PacedSlot(*(getattr(link, name) for name in LINK_INPUTS)) for link in links]

    def tags(self):
        return [{f"tag_{name}": slot.tag[way] for name, way in DIRECTIONS} for slot in self.slots]

    def data(self, way, link, number_of_round, body, offset=0):
        slot, channel = self.slots[link - 1], self.channels[link - 1] + offset
        header = Header(channel, number_of_round, self.sub, DATA, self.size.number)
        cell = slot.data_cell(way, header, body)
        same("length", len(cell), self.size.cell(way, link))
        same("opened", slot.open_data_cell(way, cell), (header, body))
        return dict(header_clear=slot.block(way, header, body), header=cell[:16], body=cell[16:])

    def control(self, way, link, kind, seq, sub, content):
        slot, content = self.slots[link - 1], content.ljust(self.size.payload, b"\0")
        header = Header(0 if kind == LINK else self.channels[link - 1], seq, sub, kind, self.size.number)
        cell = slot.control_cell(way, header, content)
        same("length", len(cell), self.size.cell(way, link))
        same("opened", slot.open_control(way, header, cell[16:]), content)
        return dict(header_clear=header.block(), header=cell[:16], body=cell[16:], content=content)


def compute(known, tor):
    """The contents of the file, without `uiv_plus`. `known` is known_answer.json."""
    hops, h = known.suite2.hops, len(known.suite2.hops)
    size = PacedClass("S", h, Suite2)
    links = Links(size, known.links)
    first = BATCH * TERMS["rounds"]
    out = {"polyval": rfc8452(), "uiv_plus": tor}

    key = fixed("paced wide", 64)
    out["wide"] = {"key": key, "round": first, "sub": SUB, "texts": []}
    for name in "SML":
        text = fixed(f"paced text {name}", PacedClass(name, h, Suite2).payload + 16)
        ciphertext = Wide(key).enc(tweak(SUB, first), text)
        same("DEC", Wide(key).dec(tweak(SUB, first), ciphertext), text)
        out["wide"]["texts"].append({"text": text, "enc": ciphertext})

    terms = PacedTerms(size.number, **TERMS)
    start = b"eddy chain" + bytes([1, 2]) + (10).to_bytes(4) + (3600).to_bytes(4) + bytes([h, 1])
    chain_id = sha256(start + terms.encode() + b"".join(hop.descriptor_hash for hop in hops))
    out["terms"] = {**TERMS, "bytes": terms.encode(), "chain_id": chain_id}
    forward, backward = terms.offsets()
    out["offsets_ms"] = {"forward": forward, "backward": backward}
    out["links"] = links.tags()

    secret = fixed("paced secret")
    meeting = Meeting(secret, chain_id, size.number, first)
    prk = extract(b"eddy1 meet", secret)
    out["meeting"] = {"secret": secret, "prk": prk, "first": first, "token": meeting.token, "call": meeting.call}

    caller, parts = compute_channel(links, setup_hops(known), first, phase_rounds(h, TERMS["rounds"])[1], meeting.token)
    out |= parts
    out["control"] = compute_control(links, first, forward[0])
    out |= compute_call(links, caller, "paced peer", meeting, first + 11)
    out["sizes"] = [compute_size(name, secret, chain_id, first) for name in "ML"]
    out["long"] = compute_long(first)
    out["tables"] = [compute_table(*row) for row in TABLES]
    return plain(out)


def setup_hops(known):
    """Keys of the hops, and what an entry and they draw."""
    publics, privates = known.setup_keys
    return [
        SimpleNamespace(
            public=public,
            private=private,
            ephemeral=Ephemeral(hop.entry_ephemeral_private, hop.mlkem_m),
            y=hop.hop_ephemeral_private,
        )
        for public, private, hop in zip(publics, privates, known.suite2.hops, strict=True)
    ]


def compute_channel(links, hops, first, used, token, name="paced"):
    """A setup with its ack, a cell to a destination and one back. Returns the keys of the hops, too."""
    setup, secrets, layers = compute_setup(links, hops, first, used, token, name)
    keys = [PacedHop(one.sec) for one in secrets]
    return keys, {
        "setup": setup,
        "ack": compute_ack(links, hops, secrets, layers, name),
        "data": compute_data(links, keys, first + 7),
        "answer": compute_answer(links, keys, first + 9),
    }


def compute_long(first):
    """Seven mixes: an ack has two contents."""
    size = PacedClass("S", 8, Suite1)
    inputs = [fixed_link(i) for i in range(1, 9)]
    links, hops, shown = Links(size, inputs, sub=3), [], []
    for i in range(1, 9):
        private, d, x, y = (fixed(f"{name} {i}") for name in ("setup", "D", "x", "y"))
        public = SetupKeys(x25519_public(private), b"", d)
        own, drawn = SetupPrivate(private, b""), Ephemeral(x, b"")
        hops.append(SimpleNamespace(public=public, private=own, ephemeral=drawn, y=y))
        shown.append({
            "setup_private": private, "setup_public": public.x25519, "descriptor_hash": d,
            "entry_ephemeral_private": x, "hop_ephemeral_private": y,
        })  # fmt: skip
    token = fixed("paced long token")
    _, parts = compute_channel(links, hops, first, phase_rounds(8, TERMS["rounds"])[1], token, "paced long")
    shown_links = [vars(link) | tags for link, tags in zip(inputs, links.tags(), strict=True)]
    return {"first": first, "hops": shown, "links": shown_links, **parts}


def compute_size(name, secret, chain_id, first):
    """A channel of class M or L, whose cells are the last ones of 32 in a round."""
    size = PacedClass(name, 2, Suite2)
    links = Links(size, [fixed_link(i) for i in (1, 2)], sub=31)
    secs = [[fixed(f"paced {name} {i} {way}") for way in "fb"] for i in (1, 2)]
    keys, meeting = [PacedHop(sec) for sec in secs], Meeting(secret, chain_id, size.number, first)
    return {
        "class": name, "hops": secs, "token": meeting.token,
        "data": compute_data(links, keys, first + 7),
        "answer": compute_answer(links, keys, first + 9),
        **compute_call(links, keys, f"paced peer {name}", meeting, first + 11),
    }  # fmt: skip


def rfc8452():
    key, text = "25629347589242761d31f826ba4b757b", "4f4f95668c83dfb6401762bb2d01a262d1a24ddd2721d006bbe45f20d3c9f362"
    out = polyval(bytes.fromhex(key), bytes.fromhex(text)).hex()
    same("RFC 8452, appendix A", out, "f7a3b47b846119fae5b7866cf5e5b77e")
    return {"key": key, "text": text, "out": out}


def check_tor(vectors):
    """Each has key, tweak, text; `enc` and `dec` are what ENC and DEC make of the text."""
    for one in vectors:
        key, t, text = (bytes.fromhex(one[name]) for name in ("key", "tweak", "text"))
        wide = Wide(key, cleared=6)
        same("Tor's encryption", wide.enc(t, text).hex(), one["enc"])
        same("Tor's decryption", wide.dec(t, text).hex(), one["dec"])


def compute_setup(links, hops, first, used, token, name):
    """Also the secrets of the hops, and the layers of the entry."""
    size = links.size
    h, info = size.hops, setup_info(size, 0, first)
    publics, ephemerals = [hop.public for hop in hops], [hop.ephemeral for hop in hops]
    onions, layers = make_setup(size, publics, ephemerals, [info] * h, token=token)
    parts, all_secrets, shards = [], [], []
    for i, (hop, onion) in enumerate(zip(hops, onions, strict=True), 1):
        same("length", len(onion), setup_length(size, i))
        layer, found, rest = open_setup(size, i, hop.private, hop.public.d, onion)
        same("info and the rest", (found, rest), (info, onions[i] if i < h else token))
        secrets = HopSecrets(layer.prk, x25519(hop.y, onion[:32]), x25519_public(hop.y))
        all_secrets.append(secrets)
        paced = PacedHop(secrets.sec)
        part = {"onion": onion, "confirm": secrets.confirm, "ack": secrets.ack}
        part |= {"forward": secrets.sec[0], "backward": secrets.sec[1]}
        part |= {"wide_forward": paced.wide_key[FORWARD], "wide_backward": paced.wide_key[BACKWARD]}
        if i == h:
            part |= {f"data_{name}": b"".join(paced.data[way]) for name, way in DIRECTIONS}
        parts.append(part)

        k, r = shard_counts(size, i)
        count = min(used, 255) if i == 1 else k + r
        filling = fixed(f"{name} filling {i}", k * size.payload - len(onion))
        contents = setup_shards(size, i, onion, filling, count)
        last = dict(list(enumerate(contents))[count - k :])
        same("S_i", join_shards(size, i, last), onion)
        indexes = dict.fromkeys((0, k - 1, count - 1))  # k may be 1
        shards.append(
            [{"index": j} | links.control(FORWARD, i, SETUP, j, j, contents[j]) for j in indexes]
        )
    return {"info": info, "token": token, "hops": parts, "shards": shards}, all_secrets, layers


def compute_ack(links, hops, secrets, layers, name):
    """9.9.1: every content on its way back."""
    size = links.size
    fillings = [fixed(f"{name} ack filling {sub}", size.payload) for sub in range(ack_contents(size))]
    cells, contents = [[] for _ in fillings], list(fillings)
    for i in range(size.hops, 0, -1):
        for sub, content in enumerate(contents):
            if i < size.hops:
                content = secrets[i - 1].ack_layer(sub, content)
            content = write_ack_slot(size, i, x25519_public(hops[i - 1].y), secrets[i - 1], sub, content)
            contents[sub] = content
            cells[sub].insert(0, links.control(BACKWARD, i, ACK, 100 + sub, sub, content))
    read = read_ack(size, layers, [hop.ephemeral for hop in hops], contents)
    same("sec[0] at the entry", [hop.sec for hop in read], [hop.sec for hop in secrets])
    return [{"filling": filling, "links": of_link} for filling, of_link in zip(fillings, cells, strict=True)]


def compute_control(links, first, release):
    """Type 3 cells of round `first`, a multiple of 128, and of `first` + 99 the report."""
    sent = (first * TERMS["period"] + release) * 10**6
    contents = (
        ("clock", FORWARD, 2, ClockCell(sent, sent - 158_765_432, sent - 151_234_567)),
        ("entry_clock", FORWARD, 1, ClockCell(7, 0, 0)),
        ("answered_clock", BACKWARD, 1, ClockCell(sent + 13_000_000, 7, sent - 1_234_567)),
        ("report", BACKWARD, 1, ReportCell(first - 4000, first + 99, 4100, 12, 0xFFFF_FFF0)),
        ("company", BACKWARD, 1, CompanyCell(9, TERMS["n_min"])),
        ("dummy", BACKWARD, 1, None),
    )
    out = []
    for seq, (name, way, link, cell) in enumerate(contents):
        content = cell.content() if cell else bytes([DUMMY])
        same(name, parse_content(content.ljust(links.size.payload, b"\0")), cell)
        fields = cell._asdict() if cell else {}
        out.append({"name": name, "link": link, "fields": fields, **links.control(way, link, LINK, seq, 0, content)})
    return out


# Class, hops, suite, T, R, copies, gap, slack, steps, seats, loops
TABLES = (
    ("S", 2, 2, 10, 512, 1, 1, 1, [1], 1, 0),
    ("S", 4, 2, 10, 512, 2, 1, 8, [5, 6, 7], 40, 1),
    ("S", 4, 2, 10, 2048, 2, 1, 8, [5, 5, 5], 256, 2),
    ("S", 8, 2, 20, 2048, 4, 2, 8, [1, 2, 3, 4, 5, 6, 7], 16384, 64),
    ("S", 8, 1, 10, 1024, 2, 1, 8, [2] * 7, 100, 2),
    ("M", 2, 1, 100, 128, 1, 1, 500, [500], 8, 0),
    ("M", 6, 2, 5, 8192, 3, 2, 10, [30, 1, 30, 1, 30], 1000, 2),
    ("L", 3, 2, 100, 128, 1, 1, 200, [300, 300], 8, 0),
    ("L", 4, 2, 10, 2048, 2, 1, 8, [9, 4, 9], 256, 2),
    ("L", 8, 1, 10, 4096, 2, 4, 20, [10] * 7, 333, 3),
)


def compute_table(name, hops, suite, period, rounds, copies, gap, slack, steps, seats, loops):
    size = PacedClass(name, hops, SUITES[suite])
    length, used = phase_rounds(hops, rounds)
    forward, backward = offsets(period, copies, gap, slack, steps)
    rows = []
    for link in range(1, hops + 1):
        k, r = shard_counts(size, link)
        w, a = slot_counts(size, link, rounds, seats, loops) if link > 1 else (1, 1)
        rows.append({
            "k": k, "r": r if link > 1 else min(used, 255) - k, "seats": seats + 2 * loops * (link - 1), "w": w, "a": a,
            "window": link_window(size, link, rounds, seats, loops),
        })  # fmt: skip
    return {
        "class": name, "hops": hops, "suite": suite, "period": period, "rounds": rounds, "copies": copies, "gap": gap,
        "slack": slack, "steps": steps, "seats": seats, "loops": loops,
        "L": length, "u": used, "phases": [phase * length for phase in range(2 * hops)],
        "offsets_forward": forward, "offsets_backward": backward, "links": rows,
    }  # fmt: skip


def compute_data(links, hops, number_of_round):
    before = frame(DGRAM, 3, 20, fixed("paced datagram before", 20))
    datagram = frame(DGRAM, 3, 40, fixed("paced datagram", 40))
    frames = again(before) + frame(SESSION, fixed("paced session", 16)) + datagram
    inner, sub = frames.ljust(links.size.payload, b"\0"), links.sub
    kinds = [one[0] for one in parse_frames(inner, FORWARD, PACED_FRAMES[FORWARD])[0]]
    same("frames", kinds, [AGAIN, SESSION, DGRAM])
    t = tweak(sub, number_of_round)
    x = hops[-1].seal(FORWARD, sub, number_of_round, inner)
    bodies = wrap(hops[:-1], t, x)
    for hop, body, after in zip(hops[:-1], bodies[:-1], bodies[1:], strict=True):
        same("ENC", hop.wide[FORWARD].enc(t, body), after)
    same("at the exit", hops[-1].open(FORWARD, sub, number_of_round, bodies[-1]), inner)
    cells = [links.data(FORWARD, link, number_of_round, body) for link, body in enumerate(bodies, 1)]
    return {"round": number_of_round, "sub": sub, "inner": inner, "x": x, "links": cells}


def compute_answer(links, hops, number_of_round):
    inner, sub = frame(STATUS, 0xFFFF, b"\0").ljust(links.size.payload, b"\0"), links.sub
    parse_frames(inner, BACKWARD, PACED_FRAMES[BACKWARD])
    t = tweak(sub, number_of_round)
    x = body = hops[-1].seal(BACKWARD, sub, number_of_round, inner)
    cells = []
    for link in range(len(hops), 0, -1):
        if link < len(hops):
            body = hops[link - 1].wide[BACKWARD].enc(t, body)
        cells.insert(0, links.data(BACKWARD, link, number_of_round, body))
    same("at the entry", hops[-1].open(BACKWARD, sub, number_of_round, unwrap(hops[:-1], t, body)), inner)
    return {"round": number_of_round, "sub": sub, "inner": inner, "x": x, "links": cells}


def compute_call(links, caller, peer_name, meeting, number_of_round):
    """From one channel to another, whose secrets have this name."""
    secs = [[fixed(f"{peer_name} {i} {way}") for way in "fb"] for i in range(1, len(caller) + 1)]
    p, sub, peer = links.size.payload, links.sub, [PacedHop(sec) for sec in secs]
    salt = fixed("paced salt", 8)
    frames = again(frame(DGRAM, 0, 12, fixed("paced call before", 12))) + frame(DGRAM, 0, 60, fixed("paced call", 60))
    inner = frames.ljust(p - 8, b"\0")
    same("frames", [one[0] for one in parse_meeting(inner, p)[0]], [AGAIN, DGRAM])
    t = tweak(sub, number_of_round)
    x = meeting.seal(t, salt, inner)
    bodies = wrap(caller, t, x)
    same("X behind the exit's first ENC", caller[-1].wide[FORWARD].enc(t, bodies[-2]), x)
    there = [links.data(FORWARD, link, number_of_round, body) for link, body in enumerate(bodies[:-1], 1)]
    back, body = [], x
    for link in range(len(peer), 0, -1):
        body = peer[link - 1].wide[BACKWARD].enc(t, body)
        back.insert(0, links.data(BACKWARD, link, number_of_round, body, offset=1))
    got = meeting.open(t, fixed("paced other salt", 8), unwrap(peer, t, body))
    same("at the other entry", got, (salt, inner))
    call = {"round": number_of_round, "sub": sub, "salt": salt, "inner": inner, "x": x}
    return {"peer": secs, "call": call | {"forward": there, "backward": back}}


def check_refusals(known, file):
    """What a receiver refuses, with the cells of the file."""
    size = PacedClass("S", 4, Suite2)
    p, slot = size.payload, Links(size, known.links).slots[0]
    cell = bytes.fromhex(file["data"]["links"][0]["header"] + file["data"]["links"][0]["body"])
    hop = PacedHop([bytes.fromhex(file["setup"]["hops"][0][way]) for way, _ in DIRECTIONS])
    t = tweak(SUB, file["data"]["round"])
    whole = hop.wide[FORWARD].enc(t, cell[16:])
    for at in (16, 31, 32, len(cell) - 1):
        damaged = flip_bit(cell, at)
        refuses("bad-tag", slot.open_data_cell, FORWARD, damaged)
        other = hop.wide[FORWARD].enc(t, damaged[16:])
        left = [i for i in range(0, p + 16, 16) if other[i : i + 16] == whole[i : i + 16]]
        same("blocks that a flipped bit leaves", left, [])

    call, secret = file["call"], bytes.fromhex(file["meeting"]["secret"])
    meeting = Meeting(secret, bytes.fromhex(file["terms"]["chain_id"]), size.number, file["meeting"]["first"])
    t, x, salt = tweak(SUB, call["round"]), bytes.fromhex(call["x"]), bytes.fromhex(call["salt"])
    refuses("garbled", meeting.open, t, salt, x)  # a reflection
    refuses("garbled", meeting.open, t, bytes(8), flip_bit(x, 100))
    refuses("garbled", meeting.open, tweak(SUB, call["round"] + 1), bytes(8), x)

    check_meeting_entry(file, p, meeting)
    datagram, session = frame(DGRAM, 0, 1, b"x"), frame(SESSION, bytes(16))
    forward, backward = PACED_FRAMES[FORWARD], PACED_FRAMES[BACKWARD]
    for kinds, text in (
        (forward, again(b"")),
        (forward, again(datagram + b"\0")),
        (forward, again(again(datagram))),
        (forward, again(datagram)[:-1]),
        (forward, frame(PING, bytes(8))),
        (forward, frame(MOVE, 1, bytes(16))),
        (forward, 9 * frame(DGRAM, 1, 0)),
        (forward, again(9 * frame(DGRAM, 1, 0))),
        (backward, session),
        (backward, again(datagram)),
    ):
        refuses("bad-frames", parse_frames, text, FORWARD, kinds, p)
    parse_frames(again(8 * frame(DGRAM, 1, 0)) + 8 * frame(DGRAM, 1, 0), FORWARD, forward, p)
    for text in (session, frame(DGRAM, 1, 0), again(frame(DGRAM, 1, 0))):
        refuses("bad-frames", parse_meeting, text, p)
    for text in (session, again(datagram)):
        refuses("bad-frames", parse_frames, text, FORWARD)  # a free class


def check_meeting_entry(file, p, meeting):
    """9.11.9: the exit has k_e, and cannot put frames into a call."""
    hops = [PacedHop([bytes.fromhex(hop[way]) for way, _ in DIRECTIONS]) for hop in file["setup"]["hops"]]
    peer = [PacedHop([bytes.fromhex(sec) for sec in secs]) for secs in file["peer"]]
    answer, call = file["answer"], file["call"]
    got = open_at_entry(hops, SUB, answer["round"], bytes.fromhex(answer["links"][0]["body"]))
    same("to destinations", got, ("data", bytes.fromhex(answer["inner"])))
    got = open_at_entry(peer, SUB, call["round"], bytes.fromhex(call["backward"][0]["body"]), meeting, bytes(8))
    same("of the other entry", got, ("meeting", bytes.fromhex(call["inner"])))
    for frames in (bytes.fromhex(answer["inner"]), frame(DGRAM, 0, 1, b"x"), frame(DGRAM, 0, 0), b""):
        body = hops[-1].seal(BACKWARD, SUB, answer["round"], frames.ljust(p, b"\0"))
        for hop in reversed(hops[:-1]):
            body = hop.wide[BACKWARD].enc(tweak(SUB, answer["round"]), body)
        arguments = (hops, SUB, answer["round"], body, meeting, bytes(8))
        if frames:
            refuses("garbled", open_at_entry, *arguments)
        else:
            same("waiting", open_at_entry(*arguments), ("data", b""))


def check_times():
    """9.5.5, 9.6.4, 9.1.3, 9.16.2"""
    size = PacedClass("S", 4, Suite2)
    every = 16 * 10  # ms between clock cells
    for name, delays, most, final in (
        ("none", lambda at: 0, 0, 0),
        ("on and off, 12 s each", lambda at: 17 * (at // 12_000 % 2), 0, 0),
        ("7 ms for good", lambda at: 7 * (at > 60_000), 7, 7),
        ("a ramp of 1 ms in 6 s", lambda at: max(0, min(30, (at - 60_000) / 6000)), 20.1, 20),
        ("a longer path", lambda at: 30 * (at > 60_000), 30, 30),
        ("one early sample", lambda at: 90 if at < 60_000 or at >= 60_000 + every else 0, 4.1, None),
    ):
        lead, first = Lead(10, 2, 1, 8), delays(0)
        moves = []
        for at in range(0, 300_000, every):
            lead.sample(at, at + 1, 20 + delays(at))
            moves.append(lead.moved(at, every) - 20 - first)
            lead.sent = True
        same(f"lead, {name}", max(map(abs, moves)) <= most, True)
        if final is not None:
            same(f"lead, {name}, at the end", abs(moves[-1] - final) < 0.1, True)
    lead = Lead(10, 2, 1, 8)
    for received in (25, 21, 30):
        lead.sample(received, 1, received - 1)  # one sample: the peer is the same
    same("a peer counts once", lead.value, 24)

    same("rounds on link 1", copied_rounds(100, 97, 3, 2), [100, 98])
    same("windows", [link_window(size, link, 2048, 256, 2) for link in (1, 2)], [4096, 4096])
    same("window, large", link_window(PacedClass("S", 8, Suite2), 2, 2048, 16384, 2), 131072)
    # With four loops of each mix before the link.
    places = [slot_counts(size, link, 2048, 256, 2) for link in (2, 3, 4)]
    same("places of setups and acks", places, [(31, 5), (22, 5), (13, 5)])
    same("loss of a link", [link_loss(x, n) for x, n in ((0, 260_000), (70, 7000), (7, 7000))], [1e-4, 1e-2, (11.5 + 3 * 9.25**0.5) / 7000])
    usual = [loop_loss(size, 1, share) for share in (1e-4, 1e-3, 1e-2)]
    same("loss of loops", [round(share, 6) for share in usual], [0.0006, 0.005985, 0.05852])
    tails = [binomial_tail(4000, share, least - below) for share, least in zip(usual, (14, 51, 309)) for below in (1, 0)]
    same("least lost of 4,000", [tail < 1e-6 for tail in tails], [False, True] * 3)
    fails = [loop_setup_loss(size, 1, share) for share in (1e-4, 1e-3, 1e-2)]
    same("failed setups", [f"{q:.2e}" for q in fails], ["3.15e-12", "4.48e-09", "1.68e-05"])
    terms = dict(period=10, rounds=2048, copies=2, gap=1, slack=8, steps=[5, 5, 5], interval=10, epoch=3600)
    eight = PacedClass("S", 8, Suite2)
    for size_of, changes, want in (
        (size, {}, []),
        (size, {"gap": 6}, ["delay"]),
        (size, {"period": 20}, ["parts"]),
        (size, {"rounds": 256}, ["phase"]),
        (size, {"epoch": 100}, ["keys"]),
        (eight, {"period": 5, "steps": [30] * 7}, ["acks"]),
    ):
        same(f"terms with {changes}", refused_terms(size_of, **{**terms, **changes}), want)


def refuses(reason, function, *arguments):
    try:
        function(*arguments)
    except Refused as refused:
        same("reason", str(refused), reason)
    else:
        raise AssertionError(f"accepted instead of {reason}")


def differences(path, want, have):
    """Paths of the values that differ."""
    if isinstance(want, dict) and isinstance(have, dict) and want.keys() == have.keys():
        return [one for key in want for one in differences(f"{path}.{key}", want[key], have[key])]
    if isinstance(want, list) and isinstance(have, list) and len(want) == len(have):
        return [one for i in range(len(want)) for one in differences(f"{path}[{i}]", want[i], have[i])]
    return [] if want == have else [path]


def check_paced(report, known, path):
    """EDDY_BLESS=1 writes the file again, when the protocol changes on purpose."""
    file = json.loads(path.read_text())
    with report.check("vectors: POLYVAL of RFC 8452, UIV+ of Tor"):
        rfc8452()
        check_tor(file["uiv_plus"])
    with report.check("vectors: paced classes: setups, acks, cells at every hop, tables"):
        have = compute(known, file["uiv_plus"])
        if os.environ.get("EDDY_BLESS") == "1":
            path.write_text(json.dumps(have, indent=2, sort_keys=True) + "\n")
        else:
            same(f"paths that differ in {path.name}", differences("", file, have), [])
    with report.check("vectors: what a paced class refuses"):
        check_refusals(known, have)
    with report.check("vectors: times, windows and terms of paced classes"):
        check_times()
