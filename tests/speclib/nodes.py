"""Hops in Python: a mix, and an exit that is an echo."""

import collections
import contextlib
import os
import random
from types import SimpleNamespace

from .carriage import HopCarriage
from .ends import Initiator, Responder, bound
from .protocol import (
    ACK_CELLS, BACKWARD, CLOSE, DATA, DGRAM, FORWARD, FRAG, MOVE, OPEN, OPENED, PING, PONG, SETUP, STATUS,
    UNKNOWN_FLOW,
    Header, HopSecrets, Reassembly, Refused, Window,
    ack_contents, ctr_xor, datagram_frames, frame, open_setup, parse_frames, replay_tag, seal,
    setup_info, setup_shards, unseal, write_ack_slot, x25519, x25519_public,
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
        self.me, keys = chain.places[position - 1], chain.keys(position)
        self.size, self.lifetime = self.me.size, self.me.terms.lifetime
        self.carriage = HopCarriage(self.me.terms, chain.descriptors, position, keys)
        previous = chain.places[position - 2].noise if position > 1 else None
        self.up = Responder(loop, bound(*self.me.address), self, self.me, keys.noise, previous)
        self.down, self.answered, self.ends = None, [], [self.up]
        self.opened = collections.Counter()  # setups by epoch
        if position < self.size.hops:
            peer, host = chain.places[position], self.me.address[0]
            self.down = Initiator(loop, bound(host), self, peer, "IKpsk2", keys.noise)
            self.ends.append(self.down)
        loop.ticks.append(lambda now: self.carriage.tick(self.ends, now))

    def drops(self):
        return serious(self.up, self.down)

    def open_channels(self):
        return sum(channel.open for link in self.up.links for channel in link.channels.values())

    def on_link(self, index):
        self.answered.append(index)

    def open_setup(self, onion):
        for keys in self.carriage.setup_keys():
            tag = replay_tag(self.size, onion)
            if tag in keys.tags:
                raise Refused("setup-replayed")
            for public in keys.publics:
                with contextlib.suppress(Refused):
                    layer, info, rest = open_setup(self.size, self.me.position, keys.private, public.d, onion)
                    break
            else:
                continue
            if info != setup_info(self.size, self.lifetime):
                raise Refused("setup-invalid")
            keys.tags.add(tag)
            self.opened[keys.record.epoch] += 1
            ephemeral = os.urandom(32)
            public = x25519_public(ephemeral)
            return public, HopSecrets(layer.prk, x25519(ephemeral, onion[:32]), public), rest
        raise Refused("setup-invalid")


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
