"""Reproduces wire/tests/known_answer.json, as sender and as receiver. paced_vectors.py does paced.json."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

from kyber_py.ml_kem import ML_KEM_768

from .protocol import (
    ACK, BACKWARD, DATA, FORWARD, KEEPALIVE, LINK, SETUP, SUITES,
    Class, Ephemeral, Header, HopSecrets, SetupKeys, Slot, Suite1, Suite2,
    ack_contents, ctr_xor, join_shards, make_setup, mlkem_public_is_sound, open_setup, parse_frames, read_ack,
    replay_tag, seal, setup_info, setup_length, setup_shards, shard_counts, unseal, unwrap_backward, wrap_forward,
    write_ack_slot, x25519, x25519_public,
)  # fmt: skip
from .paced import PacedClass, phase_rounds
from .paced_vectors import check_paced
from .report import same
from .trust import SetupPrivate

ROOT = Path(__file__).resolve().parents[2]
FILE, SPEC = ROOT / "wire/tests/known_answer.json", ROOT / "docs/SPEC.md"
PACED = ROOT / "wire/tests/paced.json"


def unhex(value):
    if isinstance(value, str):
        return bytes.fromhex(value) if value not in ("S", "M", "L") else value
    if isinstance(value, dict):
        return SimpleNamespace(**{key: unhex(inner) for key, inner in value.items()})
    return [unhex(inner) for inner in value] if isinstance(value, list) else value


def setup_of(suite, part, lifetime):
    """The part of the file for a suite, with the names of protocol.py."""
    out = SimpleNamespace(**vars(part), lifetime=lifetime)
    if suite is Suite1:
        out.setup_cells = [[first] for first in part.setup_cells]
    out.hops = []
    for hop in part.hops:
        public, private = getattr(hop, "mlkem_public", b""), getattr(hop, "mlkem_private", b"")
        keys = SetupKeys(hop.setup_public, public, hop.descriptor_hash)
        own = SetupPrivate(hop.setup_private, private)
        x, y, m = hop.entry_ephemeral_private, hop.hop_ephemeral_private, getattr(hop, "mlkem_m", b"")
        seed = getattr(hop, "mlkem_seed", b"")
        out.hops.append(SimpleNamespace(keys=keys, own=own, x=x, y=y, m=m, seed=seed))
    return out


def check_table(report):
    """The table of 5.3: k + r on every link."""
    with report.check("vectors: cells of a setup in the table of SPEC 5.3") as row:
        rows = re.findall(r"^\| ([SML, ]+) \| ([12]) \| (\d[\d+ ]*) \| (\d[\d+ ]*) \|$", SPEC.read_text(), re.MULTILINE)
        same("rows", len(rows), 5)
        for klasses, suite, *columns in rows:
            for klass in klasses.split(", "):
                for hops, cells in zip((4, 8), columns, strict=True):
                    size = Class(klass, hops, SUITES[int(suite)])
                    counts = [shard_counts(size, link) for link in range(1, hops + 1)]
                    same(f"class {klass}, suite {suite}", " ".join(f"{k}+{r}" for k, r in counts), cells)
        row["note"] = f"{len(rows)} rows"


def check_paced_tables(report):
    """The tables of 9.7 and 9.8.3."""
    with report.check("vectors: phases and cells of a setup in the tables of SPEC 9.7 and 9.8.3") as row:
        text = SPEC.read_text()
        phases = re.findall(r"^\| m = (\d) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
        same("rows of 9.7", len(phases), 3)
        for mixes, length, u in phases:
            same(f"m = {mixes}", phase_rounds(int(mixes) + 1, 2048), (int(length), int(u)))
        rows = re.findall(r"^ *\| paced ([SML]) \| (\d[\d+ ]*) \| (\d[\d+ ]*) \|$", text, re.MULTILINE)
        same("rows of 9.8.3", len(rows), 3)
        for klass, *columns in rows:
            for hops, cells in zip((4, 8), columns, strict=True):
                counts = [shard_counts(PacedClass(klass, hops, Suite2), link) for link in range(1, hops + 1)]
                expected = " ".join([str(counts[0][0]), *(f"{k}+{r}" for k, r in counts[1:])])
                same(f"class {klass}", expected, cells)
        row["note"] = f"{len(phases) + len(rows)} rows"


def check_vectors(report, _eddy):
    check_table(report)
    check_paced_tables(report)
    file = unhex(json.loads(FILE.read_text()))
    klass = getattr(file.chain, "class")
    size = Class(klass, file.chain.hops, Suite1)
    h = size.hops
    same("P", size.payload, file.chain.payload)
    slots = []

    with report.check("vectors: link keys"):
        for link in file.links:
            slot = Slot(link.handshake_hash, link.k1, link.k2, link.ss_mlkem)
            slots.append(slot)
            same("header keys", slot.header, {FORWARD: link.header_forward, BACKWARD: link.header_backward})
            same("control keys", slot.control, {FORWARD: link.control_forward, BACKWARD: link.control_backward})
            same("resume", slot.resume, link.resume)

    channels = [int.from_bytes(link.channel) for link in file.links]

    def compare(way, link, cell, header, content=None, body=None):
        slot = slots[link - 1]
        whole = slot.cell(way, header, body) if content is None else slot.control_cell(way, header, content)
        same("block", header.block(), cell.header_clear)
        same("cell", whole, cell.header + cell.body)
        same("length", len(whole), size.cell(way, link))
        same("header", slot.open_header(way, whole), header)
        if content is not None:
            same("content", slot.open_control(way, header, whole[16:]), content)

    def compare_control(way, link, cell, kind, sub, content):
        seq = Header.parse(cell.header_clear).seq  # of the sender's choice (3.8.4)
        channel = 0 if kind == LINK else channels[link - 1]
        compare(way, link, cell, Header(channel, seq, sub, kind, size.number), content)

    # The data cells of the file belong to the setup of suite 1.
    for suite, part in ((Suite2, file.suite2), (Suite1, file)):
        size = Class(klass, file.chain.hops, suite)
        setup = setup_of(suite, part, file.chain.lifetime_s)
        hops, read = check_setup(report, f"vectors: suite {suite.number}", size, setup, compare_control)

    with report.check("vectors: keepalive cells"):
        for link, cell in enumerate(file.keepalive_cells, 1):
            content = bytes([KEEPALIVE]).ljust(size.content(FORWARD, link), b"\0")
            compare_control(FORWARD, link, cell, LINK, 0, content)

    with report.check("vectors: forward cells at every hop"):
        for one in file.forward_cells:
            parse_frames(one.inner, FORWARD)
            bodies = wrap_forward(read, Header(0, one.seq, 0, DATA, 1), one.inner)
            for link, (cell, body) in enumerate(zip(one.links, bodies, strict=True), 1):
                header = Header(channels[link - 1], one.seq, 0, DATA, size.number)
                compare(FORWARD, link, cell, header, body=body)
                opened = unseal(*hops[link - 1].forward.key(header), body)
                same("opened", opened, bodies[link] if link < h else one.inner)

    with report.check("vectors: backward cells at every hop"):
        for one in file.backward_cells:
            parse_frames(one.inner, BACKWARD)
            body = None
            for link in range(h, 0, -1):
                header = Header(channels[link - 1], one.seq, 0, DATA, size.number)
                key = hops[link - 1].backward.key(header)
                body = seal(*key, one.inner) if link == h else ctr_xor(*key, body)
                compare(BACKWARD, link, one.links[link - 1], header, body=body)
            same("at the entry", unwrap_backward(read, header, body), one.inner)

    hops = setup_of(Suite2, file.suite2, file.chain.lifetime_s).hops
    file.setup_keys = [hop.keys for hop in hops], [hop.own for hop in hops]
    check_paced(report, file, PACED)


def check_setup(report, name, size, file, compare):
    """A setup and its ack. Returns the secrets of the hops, and the entry's."""
    h, ephemerals = size.hops, [Ephemeral(hop.x, hop.m) for hop in file.hops]

    with report.check(f"{name}: setup keys and onion at every hop"):
        for hop in file.hops:
            same("X25519 key", x25519_public(hop.own.x25519), hop.keys.x25519)
            if size.suite is Suite2:
                pair = hop.keys.mlkem, hop.own.mlkem
                same("ML-KEM key", ML_KEM_768.key_derive(hop.seed), pair)
                assert mlkem_public_is_sound(pair[0])
        info = setup_info(size, file.lifetime)
        onions, layers = make_setup(size, [hop.keys for hop in file.hops], ephemerals, [info] * h)
        same("onion", onions, [one.onion for one in file.setup])
        hops = []
        for i, (hop, one) in enumerate(zip(file.hops, file.setup, strict=True), 1):
            same("length", len(one.onion), setup_length(size, i))
            layer, found, rest = open_setup(size, i, hop.own, hop.keys.d, one.onion)
            same("info and S_{i+1}", (found, rest), (info, onions[i] if i < h else b""))
            hops.append(HopSecrets(layer.prk, x25519(hop.y, one.onion[:32]), one.hop_ephemeral))
            same("e", x25519_public(hop.y), one.hop_ephemeral)
            same("replay tag", replay_tag(size, one.onion), one.replay_tag)
            same("secrets", (hops[-1].confirm, hops[-1].ack), (one.confirm, one.ack))
            same("sec[0]", hops[-1].sec, (one.forward, one.backward))

    with report.check(f"{name}: setup cells on every link, and S_i from the last k of them"):
        for link, (onion, cells) in enumerate(zip(onions, file.setup_cells, strict=True), 1):
            k, r = shard_counts(size, link)
            contents = setup_shards(size, link, onion, cells[k - 1].filling)
            same("k + r", len(contents), k + r)
            for sub, cell in enumerate(cells):
                compare(FORWARD, link, cell, SETUP, sub, contents[sub])
            same("S_i", join_shards(size, link, dict(list(enumerate(contents))[r:])), onion)

    with report.check(f"{name}: ack cells on every link, and the entry's reading"):
        same("K", ack_contents(size), 1)
        content = file.ack_filling
        for link in range(h, 0, -1):
            hop = hops[link - 1]
            if link < h:
                content = hop.ack_layer(0, content)
            content = write_ack_slot(size, link, file.setup[link - 1].hop_ephemeral, hop, 0, content)
            compare(BACKWARD, link, file.ack_cells[link - 1], ACK, 0, content)
        read = read_ack(size, layers, ephemerals, [content])
        same("sec[0] at the entry", [hop.sec for hop in read], [hop.sec for hop in hops])
    return hops, read
