"""A Python entry before real mixes and a real exit."""

import contextlib
import os
import random
import time

from .attacks import check_attacks, check_setup_attacks
from .chain import Chain
from .ends import PATIENCE, Loop, bound
from .protocol import (
    ACK_CELLS, CLOSE, COOKIE, DGRAM, HALF, KEEPALIVE, LINK, MOVE, OPEN, OPENED, PEER, PING, PONG, REACH,
    REFUSED_BY_POLICY, STATUS, UNKNOWN_FLOW, UNREACHABLE, WINDOW,
    ack_contents, address, frame, handshake_datagram, shard_counts,
)  # fmt: skip
from .report import same
from .user import Echo, Entry, lengths


def check_entry(report, eddy):
    for klass, mixes, suite in (("S", 7, 2), ("L", 3, 1)):
        loop = Loop()
        echo = Echo(loop)
        name = f"entry, class {klass}, {mixes} mixes, suite {suite}"
        with Chain(eddy, loop, klass, mixes, suite) as chain:
            chain.start("--allow", "127.0.0.1/32")
            entry = Entry(loop, chain)
            channel = check_basics(report, name, entry, echo)
            check_losses(report, name, entry)
            check_setup_attacks(report, name, chain, echo)
            if klass == "S":
                continue
            check_flows(report, name, entry, channel, echo)
            check_numbers(report, name, entry, channel)
            check_renewal(report, name, entry)
            check_attacks(report, chain, echo)


def check_basics(report, name, entry, echo):
    """Returns an open channel."""
    with report.check(f"{name}: NK handshake with Mix 1"):
        entry.connect()

    with report.check(f"{name}: channel setup") as row:
        channel = entry.channel()
        k, r = shard_counts(entry.size, 1)
        row["note"] = f"setup cells on link 1: {k} + {r}, ack contents: {ack_contents(entry.size)}"

    def ack_cells():
        return [len(channel.acks[sub]) for sub in range(ack_contents(entry.size))]

    three = [ACK_CELLS] * ack_contents(entry.size)
    with report.check(f"{name}: every ack content comes in three cells"):
        entry.loop.until(lambda: ack_cells() == three, f"ack cells {three}")

    with report.check(f"{name}: PING and PONG"):
        entry.alive(channel)

    with report.check(f"{name}: datagrams to an echo and back") as row:
        for length in lengths(entry.size):  # each behind an OPEN
            entry.echo(entry.flow(channel, echo.address), os.urandom(length))
        flow = entry.flow(channel, echo.address)
        for length in lengths(entry.size):
            entry.echo(flow, os.urandom(length))
        same("lengths at the echo", {len(data) for data, _ in echo.received}, set(lengths(entry.size)))
        row["note"] = "lengths " + ", ".join(map(str, lengths(entry.size)))

    with report.check(f"{name}: heartbeats both ways keep the link"):
        window = entry.link.current.window
        before = window.highest
        entry.loop.until(lambda: window.highest >= before + 2, "two keepalives of Mix 1")
        entry.alive(channel)
        same("drops at the entry", entry.drops(), {})
        same("ack cells", ack_cells(), three)
    return channel


def check_losses(report, name, entry):
    """5.3.2, 5.3.4, 5.4.5: any k of k + r shards, in any order, and one of three ack cells."""
    k, r = shard_counts(entry.size, 1)
    everything = range(k + r)
    kept = {
        "the first": everything[:k],
        "the last": everything[r:],
        "random": random.sample(everything, k),
    }
    for which, indexes in kept.items():
        with report.check(f"{name}: {which} {k} of {k + r} shards make a channel"):
            attempt = entry.attempt()
            cells = entry.shards(attempt)
            entry.send_cells(cells[sub] for sub in indexes)
            entry.loop.until(lambda: attempt.open, "ack")  # noqa: B023
            entry.alive(attempt)

    for number, which in ((2, "second"), (3, "third")):
        entry.takes = number
        with report.check(f"{name}: the {which} cells of an ack make a channel"):
            entry.alive(entry.channel())
    entry.takes = 1


def check_flows(report, name, entry, channel, echo):
    other = entry.channel()

    def status(channel, flow, code):
        entry.wait((STATUS, channel.id, flow, code))

    with report.check(f"{name}: statuses of OPEN, DGRAM and MOVE"):
        flow = entry.flow(channel, ("127.0.0.2", 1))
        entry.send_datagram(flow, b"refused")
        status(channel, flow.number, REFUSED_BY_POLICY)
        with bound("127.0.0.1") as closed:
            port = closed.getsockname()[1]
        flow = entry.flow(channel, ("127.0.0.1", port))
        entry.send_datagram(flow, b"to a closed port")
        status(channel, flow.number, UNREACHABLE)
        entry.send(channel, frame(DGRAM, 999, 1, b"x"))
        status(channel, 999, UNKNOWN_FLOW)
        entry.send(channel, frame(MOVE, 998, os.urandom(16)))
        status(channel, 998, UNKNOWN_FLOW)

    with report.check(f"{name}: PEER before the STATUS of a flow to a name"):
        flow, text = entry.flow(channel, echo.address), b"127.0.0.1"
        named = b"\x03" + bytes([len(text)]) + text + echo.address[1].to_bytes(2)
        entry.send(channel, frame(OPEN, flow.number, flow.map, flow.token, named))
        status(channel, flow.number, OPENED)
        peer = PEER, channel.id, flow.number, address(*echo.address)
        assert entry.events.index(peer) < entry.events.index((STATUS, channel.id, flow.number, OPENED))
        entry.echo(flow, b"by name")

    with report.check(f"{name}: several frames in one cell"):
        flow, token = entry.flow(channel, echo.address), os.urandom(8)
        texts = [b"one", b"two", b"three"]
        datagrams = b"".join(frame(DGRAM, flow.number, len(text), text) for text in texts)
        entry.send(channel, entry.open_frame(flow) + datagrams + frame(PING, token))
        for event in [(DGRAM, channel.id, flow.number, text) for text in texts] + [(PONG, channel.id, token)]:
            entry.wait(event)

    with report.check(f"{name}: flows of one map share a port of the exit"):
        with Echo(entry.loop) as second:
            flows = [
                entry.flow(channel, echo.address, 7),
                entry.flow(channel, second.address, 7),
                entry.flow(channel, echo.address, 8),
            ]
            for flow, text in zip(flows, (b"a", b"b", b"c"), strict=True):
                entry.echo(flow, text)
            ports = [echo.port(b"a"), second.port(b"b"), echo.port(b"c")]
        assert ports[0] == ports[1] != ports[2], f"ports {ports}"

    with report.check(f"{name}: a repeated OPEN keeps the flow, another token replaces it, CLOSE ends it"):
        flow = entry.flow(channel, echo.address)
        entry.echo(flow, b"first")
        entry.events.clear()  # so OPEN is sent again
        entry.echo(flow, b"second")
        same("port", echo.port(b"second"), echo.port(b"first"))
        other_map = entry.flow(channel, echo.address)
        other_map.number, channel.flows = flow.number, channel.flows - 1
        entry.events.clear()
        entry.echo(other_map, b"third")
        assert echo.port(b"third") != echo.port(b"second"), "the old flow answered an OPEN with another token"
        entry.send(channel, frame(CLOSE, flow.number))
        entry.send(channel, frame(DGRAM, flow.number, 1, b"x"))
        status(channel, flow.number, UNKNOWN_FLOW)

    with report.check(f"{name}: MOVE takes a flow and its port to another channel; the old number leads there"):
        flow = entry.flow(channel, echo.address)
        entry.echo(flow, b"before")
        moved = entry.flow(other, echo.address)
        entry.send(other, frame(MOVE, moved.number, flow.token))
        status(other, moved.number, OPENED)
        entry.echo(moved, b"after")
        same("port", echo.port(b"after"), echo.port(b"before"))
        entry.send(channel, frame(DGRAM, flow.number, 4, b"late"))
        entry.wait((DGRAM, other.id, moved.number, b"late"))

    with report.check(f"{name}: OPEN with the token of a live flow acts as MOVE"):
        flow, again = entry.flow(channel, echo.address), entry.flow(other, echo.address)
        entry.echo(flow, b"before")
        again.token = flow.token
        entry.echo(again, b"after")
        same("port", echo.port(b"after"), echo.port(b"before"))


def check_numbers(report, name, entry, channel):
    with report.check(f"{name}: numbers at the edges of range and window"):
        highest = channel.sent - 1 + REACH
        entry.wait(entry.ping(channel, seq=highest))
        entry.wait(entry.ping(channel, seq=highest - WINDOW + 1))
        late = entry.ping(channel, seq=highest - WINDOW)
        ahead = entry.ping(channel, seq=highest + REACH + 1)
        entry.wait(entry.ping(channel, seq=highest + 1))
        assert late not in entry.events and ahead not in entry.events

    with report.check(f"{name}: generations 0, 1 and 2 of the forward keys"):
        for seq in ((1 << 20) - 1, 1 << 20, (1 << 20) + REACH - 1, (1 << 21) - 1, 1 << 21, (1 << 21) - 2):
            entry.wait(entry.ping(channel, seq=seq))
        channel.sent = (1 << 21) + 1
        entry.alive(channel)


def check_renewal(report, name, entry):
    channel = entry.channel()

    with report.check(f"{name}: a renewal by token keeps the channels, and cells under the previous slot pass"):
        for _ in range(3):
            entry.renew()
            entry.wait(entry.ping(channel, slot=entry.link.previous))
            entry.alive(channel)

    with report.check(f"{name}: the responder sends under its current slot until a cell promotes the next one"):
        entry.down.silent = True
        entry.renew()
        newest, old = entry.link.current, entry.link.previous
        entry.wait(entry.ping(channel, slot=old))
        assert entry.used[-1] is old, "the PONG came under keys that were not promoted"
        entry.alive(channel)
        assert entry.used[-1] is newest, "the PONG came under keys that were no longer current"

    with report.check(f"{name}: the token of the next slot promotes it"):
        for _ in range(2):
            entry.renew()
        entry.alive(channel)
        entry.down.silent = False

    with report.check(f"{name}: roaming to another port"):
        entry.rebind()
        entry.renew()
        entry.alive(channel)
        same("drops at the entry", entry.drops(), {})

    check_path(report, name, entry, channel)
    check_cookies(report, name, entry)


def check_path(report, name, entry, channel):
    """4.8: a thief relays a whole renewal, and the first cell under its keys, from an address of its own."""
    with report.check(f"{name}: a link keeps its address while its initiator answers there"), bound(entry.host) as thief:
        thief.settimeout(PATIENCE)
        index, halves = entry.down.message_1()
        entry.sound.append(("message 2", index))
        for half in halves:
            thief.sendto(half, entry.down.peer.address)
        answer, source = thief.recvfrom(2048)
        entry.down.silent = True
        entry.down.receive(answer, source)
        entry.down.silent = False
        thief.sendto(entry.link.control_cell(LINK, 0, 0, bytes([KEEPALIVE])), entry.down.peer.address)
        entry.loop.until(lambda: entry.down.paths == 1, "a path")
        waited = time.monotonic() + 1.5
        entry.loop.until(lambda: time.monotonic() > waited, "the time of a move")
        entry.alive(channel)
        thief.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            raise AssertionError(f"the thief got {len(thief.recv(2048))} bytes")
        same("paths", entry.down.paths, 1)


def check_cookies(report, name, entry):
    """4.9: halves that wait for others, more than a quarter of the places."""
    with report.check(f"{name}: while many halves wait, a handshake needs a cookie"):
        for index in range(70):
            half = handshake_datagram(HALF, 0, index, os.urandom(632), entry.down.peer.noise)
            entry.down.sock.sendto(half, entry.down.peer.address)
        before = entry.down.answers[COOKIE]
        entry.renew()
        same("cookies", entry.down.answers[COOKIE] - before, 1)
        waited = time.monotonic() + 1.2
        entry.loop.until(lambda: time.monotonic() > waited, "the time of a half")
        entry.renew()
        same("cookies afterwards", entry.down.answers[COOKIE] - before, 1)
