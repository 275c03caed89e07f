"""Attacks on real nodes: what must not be answered is not, and the chain goes on working."""

import contextlib
import copy
import os

from .ends import bound
from .nodes import Entry, lengths, new_channel_id
from .protocol import (
    ACK, DGRAM, FRAG, HALF, KEEPALIVE, LINK, OPEN, PING, PONG, STATUS, SUITE,
    flip_bit, frame, handshake_datagram, seal, setup_info,
)  # fmt: skip
from .report import same


def check_attacks(report, chain, echo):
    loop, last = chain.loop, chain.names[-1]
    entry = Entry(loop, chain)
    entry.connect()
    channel = entry.channel()

    @contextlib.contextmanager
    def attack(name, *counts):
        """A check after which only the PONG of a later PING has come back."""
        with report.check(f"attack: {name}") as row, contextlib.ExitStack() as stack:
            for node, reason, more in counts:
                stack.enter_context(chain.counts(node, reason, more))
            entry.events.clear()
            row["allowed"] = []
            yield row["allowed"]
            pong = entry.ping(channel)
            entry.wait(pong)
            allowed = row.pop("allowed")
            same("what came back", [one for one in entry.events if one not in allowed], [pong])
            row["note"] = ", ".join(f"{node} counts {reason}" for node, reason, _ in counts)

    # Handshakes. Every one that is wrong comes from a port of its own, and a sound one follows it.

    def handshake(change, resend=None):
        stranger = Entry(loop, chain, passive=True)
        index, halves = stranger.down.message_1()
        for half in map(change, halves):
            stranger.down.sock.sendto(half, stranger.down.peer.lanes[0])
        stranger.renew()
        for half in halves if resend else ():
            stranger.down.sock.sendto(half, stranger.down.peer.lanes[0])
        if resend:
            stranger.renew()
        assert ("message 2", index) not in stranger.events
        same("drops", dict(stranger.down.drops), {})

    with attack("a wrong mac1", ("mix1", "bad_mac1", 2)):
        handshake(lambda half: flip_bit(half, -32))
    with attack("a forged message 1 with a sound mac1", ("mix1", "handshake_forged", 1)):

        def forge(half):
            noise = flip_bit(half[8:-32], 100)
            return handshake_datagram(HALF, half[1], int.from_bytes(half[4:8]), noise, chain.hops[0].noise)

        handshake(forge)
    with attack("a message 1 twice", ("mix1", "handshake_replayed", 1)):
        index, halves = entry.down.message_1()
        for half in halves:
            entry.down.sock.sendto(half, entry.link.address)
        entry.wait(("message 2", index))
        entry.alive(channel)
        for half in halves:
            entry.down.sock.sendto(half, entry.link.address)
        entry.renew()
        same("message 2 of one index", entry.events.count(("message 2", index)), 1)
        entry.events.clear()
    with attack("a token that is spent", ("mix1", "token_spent", 1)):
        spent = entry.link.previous.resume
        index = entry.down.shake(spent)
        del entry.down.pending[index]
        unexpected = entry.down.drops["unexpected_response"]
        entry.renew()
        same("answers", entry.down.drops["unexpected_response"], unexpected)
        entry.events.clear()

    # Setups

    def sound_setup(allowed):
        """Of what entered before it, nothing is on its way any more when the ack arrives and a PING follows."""
        sound = entry.send_setup(entry.attempt())
        loop.until(lambda: sound.open, "ack")
        allowed += [("ack", sound.id)]
        return sound

    for i, node in enumerate(chain.names[1:], 1):
        with attack(f"a flipped bit in S_{i}", (node, "setup_invalid", 1)) as allowed:
            entry.send_setup(entry.attempt(flip=i))
            sound_setup(allowed)
    lifetime = chain.hops[0].lifetime
    for what, info in (
        ("lifetime", setup_info(entry.size, lifetime - 1)),
        ("flags", setup_info(entry.size, lifetime)[:3] + b"\1" + setup_info(entry.size, lifetime)[4:]),
        ("last byte", flip_bit(setup_info(entry.size, lifetime), 15)),
    ):
        with attack(f"another {what} in info", ("mix2", "setup_invalid", 1)) as allowed:
            entry.send_setup(entry.attempt(info=info, at=2))
            sound_setup(allowed)
    with attack("a setup twice", ("mix1", "setup_replayed", 1)) as allowed:
        entry.send_setup(sound_setup(allowed))
        sound_setup(allowed)
    with attack("the S_3 of another setup inside fresh layers", ("mix3", "setup_replayed", 1)) as allowed:
        old, fresh = sound_setup(allowed), entry.attempt()
        onion = old.onions[2]
        for i in (2, 1):
            info = setup_info(entry.size, lifetime)
            layer = fresh.layers[i - 1]
            onion = fresh.onions[i - 1][: SUITE.head] + seal(layer.key, layer.nonce, info + onion)
        entry.send_setup(fresh, onion)
        sound_setup(allowed)

    # Cells

    def pong_of(cells):
        for cell in cells:
            entry.down.sock.sendto(cell, entry.link.address)

    with attack("a data cell twice", ("mix1", "replay", 2)) as allowed:
        token = os.urandom(8)
        cell = entry.cell(channel, frame(PING, token))
        pong_of([cell, cell, cell])
        entry.wait((PONG, channel.id, token))
        entry.alive(channel)
        same("PONGs", entry.events.count((PONG, channel.id, token)), 1)
        entry.events.clear()
    with attack("a flipped bit in a body, then the genuine cell", ("mix1", "forged", 1)) as allowed:
        token = os.urandom(8)
        cell = entry.cell(channel, frame(PING, token))
        pong_of([flip_bit(cell, 500), cell])
        entry.wait((PONG, channel.id, token))
        allowed.append((PONG, channel.id, token))
    with attack("a flipped bit in a header, then the genuine cell", ("mix1", "header", 1)) as allowed:
        token = os.urandom(8)
        cell = entry.cell(channel, frame(PING, token))
        pong_of([flip_bit(cell, 3), cell])
        entry.wait((PONG, channel.id, token))
        allowed.append((PONG, channel.id, token))
    for i, node in enumerate(chain.names[1:], 1):
        with attack(f"a flipped bit in BODY_{i}", (node, "forged", 1)):
            entry.ping(channel, flip=i)
    with attack("a cell of an unknown channel", ("mix1", "no-channel", 1)):
        unknown = copy.copy(channel)
        unknown.id = new_channel_id(entry.link)
        entry.ping(unknown)
    with attack("a data cell with a sub", ("mix1", "sub", 1)):
        entry.ping(channel, sub=1)
    with attack("a sound cell from another address", ("mix1", "stranger", 1)):
        with bound(entry.host) as stranger:
            stranger.sendto(entry.cell(channel, frame(PING, bytes(8))), entry.link.address)
    with attack("a cell one byte short", ("mix1", "length", 1)):
        pong_of([entry.cell(channel, frame(PING, bytes(8)))[:-1]])
    with attack("an ack cell forward", ("mix1", "kind", 1)):
        pong_of([entry.link.control_cell(ACK, channel.id, 0, b"")])
    with attack("a link cell of an unknown kind", ("mix1", "unknown_link_content", 1)):
        pong_of([entry.link.control_cell(LINK, 0, 0, b"\x63")])
    with attack("a keepalive twice", ("mix1", "cell_replayed", 1)):
        pong_of(2 * [entry.link.control_cell(LINK, 0, 0, bytes([KEEPALIVE]))])

    # Frames. A PING in front of them is not answered either (3.10.1).

    bad = {
        "an unknown frame": b"\x0c",
        "a truncated frame": frame(DGRAM, 1, 0xFFFF),
        "a frame against its direction": frame(STATUS, 1, b"\0"),
        "an IPv4 address inside IPv6": frame(OPEN, 1, 1, bytes(16), b"\6" + bytes(10) + b"\xff\xff" + bytes(6)),
        "a name with a space": frame(OPEN, 1, 1, bytes(16), b"\3\3a b\0\1"),
        "an empty name": frame(OPEN, 1, 1, bytes(16), b"\3\0\0\1"),
        "a fragment byte with bit 3": frame(FRAG, 1, 1, b"\x88", 1, b"x"),
    }
    for what, text in bad.items():
        with attack(f"{what} behind a PING", (last, "bad-frames", 1)):
            entry.send(channel, frame(PING, bytes(8)) + text)

    with report.check("attack: afterwards the chain carries datagrams and every ledger closes"):
        flow = entry.flow(entry.channel(), echo.address)
        for length in lengths(entry.size):
            entry.echo(flow, os.urandom(length))
        for node in chain.names[1:]:
            for unit in chain.status(node)["ledger"].values():
                assert all(way["closed"] for way in unit.values()), node
