"""The user's side: an entry that a check controls, and an echo."""

import os
import random
from types import SimpleNamespace

from .carriage import UserCarriage
from .ends import Initiator, bound
from .nodes import new_channel_id, parse_sound_frames, serious
from .protocol import (
    BACKWARD, DATA, DGRAM, FRAG, OPEN, OPENED, PING, PONG, SETUP, STATUS,
    Header, Reassembly, Refused, Window,
    ack_contents, address, datagram_frames, flip_bit, frame, make_setup, new_ephemeral, read_ack, setup_info,
    setup_shards, unwrap_backward, wrap_forward,
)  # fmt: skip


class Attempt(SimpleNamespace):
    """A setup of an entry that waits for its ack (5.6)."""


class Entry:
    """An entry that does what a check asks for, and keeps all that comes back in `events`."""

    passive = False

    def __init__(self, loop, chain, passive=False):
        self.loop, self.passive, self.terms = loop, passive, chain.terms
        self.size, self.host, self.events = self.terms.size, chain.host, []
        self.used = []  # slots of the data cells received
        self.takes = 1  # which cell of an ack content
        self.sound = []  # events that sound exchanges have caused or may cause yet
        self.carriage = UserCarriage(self.terms, chain.descriptors)
        self.down = Initiator(loop, bound(self.host), self, chain.places[0], "NK")
        loop.ticks.append(lambda now: self.carriage.tick(self.down, now))

    @property
    def link(self):
        return self.down.link

    def connect(self):
        self.loop.until(lambda: self.link.current, "message 2 of Mix 1")

    def rebind(self):
        """Moves to another port."""
        self.down.rebind(self.host)

    def renew(self):
        index = self.down.shake()
        self.sound.append(("message 2", index))
        self.wait(self.sound[-1])

    def wait(self, event):
        self.loop.until(lambda: event in self.events, event)

    def drops(self):
        return serious(self.down)

    # What comes back

    def on_link(self, index):
        self.events.append(("message 2", index))

    def on_setup(self, *_):
        raise Refused("kind")

    def on_ack(self, link, header, content):
        attempt = link.channels.get(header.channel)
        if not attempt or header.sub >= ack_contents(self.size):
            raise Refused("unexpected-ack")
        cells = attempt.acks.setdefault(header.sub, [])
        cells.append(content)
        if content != cells[0]:
            raise Refused("another content")
        if len(cells) != self.takes:
            raise Refused("surplus")
        attempt.contents[header.sub] = content
        self.events.append(("ack", header.channel))
        if len(attempt.contents) == ack_contents(self.size):
            contents = [attempt.contents[sub] for sub in range(len(attempt.contents))]
            attempt.secrets = read_ack(self.size, attempt.layers, attempt.ephemerals, contents)
            attempt.open = True

    def accept(self, _link, slot, channel, header, body):
        channel.window.check(header.seq)
        inner = unwrap_backward(channel.secrets, header, body)
        channel.window.mark(header.seq)
        self.used.append(slot)
        frames = parse_sound_frames(inner, BACKWARD)
        return lambda: [self.on_frame(channel, *one) for one in frames]

    def on_frame(self, channel, kind, *fields):
        if kind == FRAG:
            whole = channel.reassembly.add(*fields)
            if whole is None:
                return
            kind, fields = DGRAM, (fields[0], whole)
        self.events.append((kind, channel.id, *fields))

    # Setups

    def bundle(self):
        """7.6.2: of the running interval."""
        carriage = self.carriage
        carriage.wants = True
        self.loop.until(carriage.bundle, "the bundle of the running interval")
        carriage.wants = False
        return carriage.holdings.newest_bundle()

    def attempt(self, flip=None, info=None, at=None, bundle=None):
        """A setup; `info` replaces that of hop `at`, `flip` is (i, at): damages S_i."""
        keys = (bundle or self.bundle()).setup_keys(self.terms)
        infos = [setup_info(self.size, self.terms.lifetime) for _ in keys]
        if info:
            infos[at - 1] = info
        ephemerals = [new_ephemeral() for _ in keys]
        onions, layers = make_setup(self.size, keys, ephemerals, infos, flip)
        return Attempt(ephemerals=ephemerals, onions=onions, layers=layers)

    def register(self, attempt):
        """Gives an attempt a new channel id."""
        attempt.id = new_channel_id(self.link)
        attempt.open, attempt.acks, attempt.contents, attempt.sent, attempt.flows = False, {}, {}, 0, 0
        attempt.window, attempt.reassembly = Window(), Reassembly(self.size)
        self.link.channels[attempt.id] = attempt
        return attempt

    def shards(self, attempt, onion=None, size=None):
        """Gives an attempt a new channel. Returns the cells of S_1 by index, or of `onion` in the suite of `size`."""
        self.register(attempt)
        contents = setup_shards(size or self.size, 1, onion or attempt.onions[0])
        return {sub: self.setup_cell(attempt, sub, content) for sub, content in enumerate(contents)}

    def setup_cell(self, attempt, sub, content):
        return self.link.control_cell(SETUP, attempt.id, sub, content)

    def send_cells(self, cells):
        for cell in cells:
            self.down.send(self.link, cell)

    def send_setup(self, attempt, onion=None):
        self.send_cells(self.shards(attempt, onion).values())
        return attempt

    def channel(self):
        """5.6: attempts until one succeeds. Later hops may have no link yet."""
        attempts = []

        def send():
            attempts.append(self.send_setup(self.attempt()))
            self.sound.append(("ack", attempts[-1].id))

        self.loop.repeat(send, lambda: any(one.open for one in attempts), "ack")
        return next(one for one in attempts if one.open)

    # Data

    def cell(self, channel, inner, seq=None, flip=None, sub=0, slot=None):
        """The next data cell, under another number, sub or slot if named. `flip` damages BODY_i inside sound layers."""
        if seq is not None:
            channel.sent = seq
        header = Header(channel.id, channel.sent, sub, DATA, self.size.number)
        channel.sent += 1
        hops, inner = channel.secrets, inner.ljust(self.size.payload, b"\0")
        if flip:
            body = wrap_forward(hops[flip - 1 :], header, inner)[0]
            body = flip_bit(body, len(body) // 2)
            bodies = wrap_forward(hops[: flip - 1], header, body) or [body]
        else:
            bodies = wrap_forward(hops, header, inner)
        return self.link.data_cell(header, bodies[0], slot)

    def send(self, channel, inner, **how):
        self.down.send(self.link, self.cell(channel, inner, **how))

    def ping(self, channel, **how):
        """Sends a PING and returns the event of its PONG."""
        token = os.urandom(8)
        self.send(channel, frame(PING, token), **how)
        return PONG, channel.id, token

    def alive(self, channel):
        """PINGs until there is a PONG."""
        first = len(self.sound)
        self.loop.repeat(
            lambda: self.sound.append(self.ping(channel)),
            lambda: any(one in self.events for one in self.sound[first:]),
            "PONG",
        )

    def flow(self, channel, to, map_=None):
        channel.flows += 1
        map_ = random.getrandbits(16) if map_ is None else map_
        return SimpleNamespace(
            channel=channel, number=channel.flows, map=map_, token=os.urandom(16), to=to, fragmented=0
        )

    def open_frame(self, flow):
        return frame(OPEN, flow.number, flow.map, flow.token, address(*flow.to))

    def send_datagram(self, flow, data):
        """3.11, 3.12.1"""
        front, opened = b"", (STATUS, flow.channel.id, flow.number, OPENED)
        if opened not in self.events:
            front = self.open_frame(flow)
        frames = datagram_frames(self.size, flow.number, flow.fragmented & 0xFFFF, data)
        flow.fragmented += len(frames) > 1
        if front and len(front) + len(frames[0]) > self.size.payload:
            self.send(flow.channel, front)
            front = b""
        for one in frames:
            self.send(flow.channel, front + one)
            front = b""

    def echo(self, flow, data):
        """Sends a datagram to an echo until there is an answer."""
        answer = DGRAM, flow.channel.id, flow.number, data
        self.loop.repeat(lambda: self.send_datagram(flow, data), lambda: answer in self.events, answer[:3])


class Echo:
    """A UDP socket that returns what it receives."""

    def __init__(self, loop):
        self.loop = loop
        self.sock, self.received = bound("127.0.0.1"), []
        self.address = self.sock.getsockname()
        loop.add(self.sock, self.receive)

    def receive(self, datagram, source):
        self.received.append((datagram, source))
        self.sock.sendto(datagram, source)

    def port(self, text):
        """The port that this text came from last."""
        return [source for datagram, source in self.received if datagram == text][-1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.loop.selector.unregister(self.sock)
        self.sock.close()


def lengths(size):
    """Of a DGRAM and of FRAGs, with their edges (2.3.4, 3.11.1)."""
    part = size.payload - 8
    return [0, 1, 100, size.one_cell - 28, size.one_cell, size.one_cell + 1, 2 * part, 2 * part + 1, size.longest]
