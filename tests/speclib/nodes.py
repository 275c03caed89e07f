"""Nodes in Python: a mix, an exit that is an echo, and an entry that a check controls."""

import collections
import os
import random
from types import SimpleNamespace

from .ends import Initiator, Responder, bound
from .protocol import (
    ACK_CELLS, BACKWARD, CLOSE, DATA, DGRAM, FORWARD, FRAG, MOVE, OPEN, OPENED, PING, PONG, SETUP, STATUS,
    UNKNOWN_FLOW,
    Header, HopSecrets, Reassembly, Refused, Window,
    ack_contents, address, ctr_xor, datagram_frames, descriptor_hash, flip_bit, frame, make_setup, new_ephemeral,
    open_setup, parse_frames, read_ack, replay_tag, seal, setup_info, setup_shards, unseal, unwrap_backward,
    wrap_forward, write_ack_slot, x25519, x25519_public,
)  # fmt: skip


def parse_sound_frames(inner, direction):
    """The frames of a sound end, which fills a cell up with zeros (3.10.2)."""
    frames, rest = parse_frames(inner, direction)
    if any(rest):
        raise Refused("bytes after the last frame")
    return frames


# Normal while nodes start in any order, and answers to two messages 1 cross (4.6.4). Every setup has surplus cells.
COMMON = ("header", "stranger", "unexpected-response", "next-hop-down", "surplus")


def serious(*ends):
    """What a sound peer is not refused for."""
    drops = sum((end.drops for end in ends if end), collections.Counter())
    return {name: n for name, n in drops.items() if name not in COMMON}


class Channel(SimpleNamespace):
    """Of a hop: ids on its links, secrets, windows. `open` follows 5.4.4."""

    def __init__(self, **fields):
        windows, acks = {FORWARD: Window(), BACKWARD: Window()}, collections.Counter()  # cells by content
        super().__init__(open=False, windows=windows, acks=acks, sent=0, **fields)


class Hop:
    """What mixes and exits do with a setup (5.3.6)."""

    passive = False

    def __init__(self, loop, chain, position):
        self.me, self.keys = chain.hops[position - 1], chain.keys(position)
        self.size, self.tags = self.me.size, set()
        previous = chain.hops[position - 2].noise if position > 1 else None
        self.up = Responder(loop, bound(*self.me.lanes[0]), self, self.me, self.keys.noise, previous)
        self.down, self.answered = None, []
        if position < self.size.hops:
            peer, host = chain.hops[position], self.me.lanes[0][0]
            self.down = Initiator(loop, bound(host), self, peer, "IKpsk2", self.keys.noise)

    def drops(self):
        return serious(self.up, self.down)

    def open_channels(self):
        return sum(channel.open for link in self.up.links for channel in link.channels.values())

    def on_link(self, index):
        self.answered.append(index)

    def open_setup(self, onion):
        tag = replay_tag(self.size, onion)
        if tag in self.tags:
            raise Refused("setup-replayed")
        layer, info, rest = open_setup(self.size, self.me.position, self.keys, descriptor_hash(self.me), onion)
        if info != setup_info(self.size, self.me.lifetime):
            raise Refused("setup-invalid")
        self.tags.add(tag)
        ephemeral = os.urandom(32)
        public = x25519_public(ephemeral)
        return public, HopSecrets(layer.prk, x25519(ephemeral, onion[:32]), public), rest


def new_channel_id(link):
    """3.8.1"""
    while not (channel := random.getrandbits(32)) or channel in link.channels:
        pass
    return channel


class Mix(Hop):
    """A mix with the strategy `threshold:n=1` (6.2.4): every cell leaves at once."""

    def __init__(self, *args):
        super().__init__(*args)
        self.unsent = []  # of the next setups: the indexes of shards to lose

    def on_setup(self, link, channel, onion):
        if not self.down.link.current:
            raise Refused("next-hop-down")
        public, secrets, rest = self.open_setup(onion)
        down = self.down.link
        record = Channel(up=link, up_id=channel, down_id=new_channel_id(down), public=public, secrets=secrets)
        link.channels[channel] = down.channels[record.down_id] = record
        unsent = self.unsent.pop(0) if self.unsent else ()
        for sub, content in enumerate(setup_shards(self.size, down.number, rest)):
            if sub not in unsent:
                self.down.send(down, down.control_cell(SETUP, record.down_id, sub, content))

    def on_ack(self, link, header, content):
        """5.4.3 to 5.4.6"""
        channel = link.channels.get(header.channel)
        if not channel or header.sub >= ack_contents(self.size):
            raise Refused("unexpected-ack")
        channel.acks[header.sub] += 1
        if channel.acks[header.sub] > 1:
            raise Refused("surplus")
        channel.open = len(channel.acks) == ack_contents(self.size)
        content = channel.secrets.ack_layer(header.sub, content)
        content = write_ack_slot(self.size, self.me.position, channel.public, channel.secrets, header.sub, content)
        self.up.send_ack(channel.up, channel.up_id, header.sub, content)

    def accept(self, link, _slot, channel, header, body):
        """3.4 forward, 3.5 backward: the cell goes on with its number under a new header."""
        channel.windows[link.receives].check(header.seq)
        if link.receives == FORWARD:
            body = unseal(*channel.secrets.forward.key(header), body)
            channel.windows[FORWARD].mark(header.seq)
            end, to, id_ = self.down, self.down.link, channel.down_id
        else:
            channel.windows[BACKWARD].mark(header.seq)
            body = ctr_xor(*channel.secrets.backward.key(header), body)
            end, to, id_ = self.up, channel.up, channel.up_id
        return lambda: end.send(to, to.data_cell(header._replace(channel=id_), body))


class Exit(Hop):
    """An exit without sockets: every flow opens, and every datagram comes back. `silent` sends no STATUS."""

    def __init__(self, *args):
        super().__init__(*args)
        self.channels, self.frames, self.silent, self.fragmented = [], [], False, 0
        self.fates = []  # of the three ack cells of the next setups

    def on_setup(self, link, channel, onion):
        """5.4.2"""
        public, secrets, _ = self.open_setup(onion)
        record = Channel(up=link, up_id=channel, secrets=secrets, reassembly=Reassembly(self.size))
        record.flows = {}
        record.open = True
        link.channels[channel] = record
        self.channels.append(record)
        fates = self.fates.pop(0) if self.fates else ("sound",) * ACK_CELLS
        for sub in range(ack_contents(self.size)):
            content = os.urandom(self.size.payload)
            content = write_ack_slot(self.size, self.size.hops, public, secrets, sub, content)
            self.up.send_ack(link, channel, sub, content, fates)

    def accept(self, _link, slot, channel, header, body):
        channel.windows[FORWARD].check(header.seq)
        inner = unseal(*channel.secrets.forward.key(header), body)
        channel.windows[FORWARD].mark(header.seq)
        frames = parse_sound_frames(inner, FORWARD)
        return lambda: [self.on_frame(channel, *one) for one in frames]

    def answer(self, channel, one):
        header = Header(channel.up_id, channel.sent, 0, DATA, self.size.number)
        channel.sent += 1
        body = seal(*channel.secrets.backward.key(header), one.ljust(self.size.payload, b"\0"))
        self.up.send(channel.up, channel.up.data_cell(header, body))

    def status(self, channel, flow, code):
        if not self.silent:
            self.answer(channel, frame(STATUS, flow, bytes([code])))

    def on_frame(self, channel, kind, *fields):
        self.frames.append((kind, *fields))
        if kind == PING:
            self.answer(channel, frame(PONG, fields[0]))
        elif kind == OPEN:
            channel.flows[fields[0]] = fields[2]
            self.status(channel, fields[0], OPENED)
        elif kind == CLOSE:
            channel.flows.pop(fields[0], None)
        elif kind in (DGRAM, FRAG, MOVE) and fields[0] not in channel.flows:
            self.status(channel, fields[0], UNKNOWN_FLOW)
        elif kind == DGRAM:
            self.echo(channel, *fields)
        elif kind == FRAG:
            whole = channel.reassembly.add(*fields)
            if whole is not None:
                self.echo(channel, fields[0], whole)

    def echo(self, channel, flow, data):
        for one in datagram_frames(self.size, flow, self.fragmented & 0xFFFF, data):
            self.answer(channel, one)
        self.fragmented += 1


class Attempt(SimpleNamespace):
    """A setup of an entry that waits for its ack (5.6)."""


class Entry:
    """An entry that does what a check asks for, and keeps all that comes back in `events`."""

    passive = False

    def __init__(self, loop, chain, passive=False):
        self.loop, self.hops, self.passive = loop, chain.hops, passive
        self.size, self.host, self.events = self.hops[0].size, chain.host, []
        self.used = []  # slots of the data cells received
        self.takes = 1  # which cell of an ack content
        self.sound = []  # events that sound exchanges have caused or may cause yet
        self.down = Initiator(loop, bound(self.host), self, self.hops[0], "NK")

    @property
    def link(self):
        return self.down.link

    def connect(self):
        self.loop.until(lambda: self.link.current, "message 2 of Mix 1")

    def rebind(self):
        """Moves to another port."""
        self.loop.selector.unregister(self.down.sock)
        self.down.sock.close()
        self.down.sock = bound(self.host)
        self.loop.add(self.down.sock, self.down.receive)

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

    def attempt(self, flip=None, info=None, at=None):
        """A setup; `info` replaces that of hop `at`, `flip` is (i, at): damages S_i."""
        infos = [setup_info(self.size, hop.lifetime) for hop in self.hops]
        if info:
            infos[at - 1] = info
        ephemerals = [new_ephemeral() for _ in self.hops]
        onions, layers = make_setup(self.size, self.hops, ephemerals, infos, flip)
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
