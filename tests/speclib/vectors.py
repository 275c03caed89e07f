"""Reproduces wire/tests/known_answer.json, as sender and as receiver."""

import json
from pathlib import Path
from types import SimpleNamespace

from .protocol import (
    ACK, BACKWARD, DATA, FORWARD, KEEPALIVE, LINK, SETUP,
    Class, Header, HopSecrets, Slot,
    ack_cells, ctr_xor, make_setup, open_setup, parse_frames, read_ack, replay_tag, seal, setup_contents, setup_info,
    setup_length, unseal, unwrap_backward, wrap_forward, write_ack_slot, x25519, x25519_public,
)  # fmt: skip
from .report import same

FILE = Path(__file__).resolve().parents[2] / "wire/tests/known_answer.json"


def unhex(value):
    if isinstance(value, str):
        return bytes.fromhex(value) if value not in ("S", "M", "L") else value
    if isinstance(value, dict):
        return SimpleNamespace(**{key: unhex(inner) for key, inner in value.items()})
    return [unhex(inner) for inner in value] if isinstance(value, list) else value


def check_vectors(report, _eddy):
    file = unhex(json.loads(FILE.read_text()))
    size = Class(getattr(file.chain, "class"), file.chain.hops)
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

    def compare(way, link, cell, header, content=None, body=None):
        slot = slots[link - 1]
        whole = slot.cell(way, header, body) if content is None else slot.control_cell(way, header, content)
        same("block", header.block(), cell.header_clear)
        same("cell", whole, cell.header + cell.body)
        same("length", len(whole), size.cell(way, link))
        same("header", slot.open_header(way, whole), header)
        if content is not None:
            same("content", slot.open_control(way, header, whole[16:]), content)

    with report.check("vectors: setup keys and onion at every hop"):
        ephemerals = [hop.entry_ephemeral_private for hop in file.hops]
        public = [(x25519_public(hop.setup_private), hop.descriptor_hash) for hop in file.hops]
        same("setup keys", [key for key, _ in public], [hop.setup_public for hop in file.hops])
        info = setup_info(size, file.chain.lifetime_s)
        onions, layers = make_setup(public, ephemerals, [info] * h)
        same("onion", onions, [one.onion for one in file.setup])
        hops = []
        for i, (hop, one) in enumerate(zip(file.hops, file.setup, strict=True), 1):
            same("length", len(one.onion), setup_length(size, i))
            layer, found, rest = open_setup(i, h, hop.setup_private, hop.descriptor_hash, one.onion)
            same("info and S_{i+1}", (found, rest), (info, onions[i] if i < h else b""))
            e = x25519_public(hop.hop_ephemeral_private)
            hops.append(HopSecrets(layer.prk, x25519(hop.hop_ephemeral_private, one.onion[:32]), e))
            same("e", e, one.hop_ephemeral)
            same("replay tag", replay_tag(one.onion), one.replay_tag)
            same("secrets", (hops[-1].confirm, hops[-1].ack), (one.confirm, one.ack))
            same("sec[0]", hops[-1].sec, (one.forward, one.backward))

    channels = [int.from_bytes(link.channel) for link in file.links]
    with report.check("vectors: setup cells on every link"):
        for link, cell in enumerate(file.setup_cells, 1):
            (content,) = setup_contents(size, link, onions[link - 1], cell.filling)
            number = slots[link - 1].open_header(FORWARD, cell.header).seq
            compare(FORWARD, link, cell, Header(channels[link - 1], number, 0, SETUP, size.number), content)

    with report.check("vectors: ack cells on every link, and the entry's reading"):
        same("K", ack_cells(size), 1)
        content = file.ack_filling
        for link in range(h, 0, -1):
            hop, cell = hops[link - 1], file.ack_cells[link - 1]
            if link < h:
                content = hop.ack_layer(0, content)
            content = write_ack_slot(size, link, file.setup[link - 1].hop_ephemeral, hop, 0, content)
            number = slots[link - 1].open_header(BACKWARD, cell.header).seq
            compare(BACKWARD, link, cell, Header(channels[link - 1], number, 0, ACK, size.number), content)
        read = read_ack(size, layers, ephemerals, [content])
        same("sec[0] at the entry", [hop.sec for hop in read], [hop.sec for hop in hops])

    with report.check("vectors: keepalive cells"):
        for link, cell in enumerate(file.keepalive_cells, 1):
            content = bytes([KEEPALIVE]).ljust(size.content(FORWARD, link), b"\0")
            number = slots[link - 1].open_header(FORWARD, cell.header).seq
            compare(FORWARD, link, cell, Header(0, number, 0, LINK, size.number), content)

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
