"""Attacks on real nodes: what must not be answered is not, and the chain goes on working."""

import contextlib
import copy
import os

from kyber_py.ml_kem import ML_KEM_768

from .ends import bound
from .holdings import wall_ms
from .nodes import new_channel_id
from .protocol import (
    ACK, ACK_CELLS, DATA, DGRAM, FORWARD, FRAG, HALF, KEEPALIVE, LINK, OPEN, PING, PONG, SETUP, STATUS, SUITES,
    Class, Header, Suite1, ack_contents, datagrams_max, flip_bit, frame, handshake_datagram, make_setup, new_ephemeral, seal,
    setup_info, setup_length, setup_shards, shard_counts,
)  # fmt: skip
from .report import same
from .trust import RECORD_OF, WANTS_ANSWER, part_contents
from .user import Entry, lengths


def check_attacks(report, chain, echo):
    for topic in (attack_handshakes, attack_with_asks, attack_with_cells, attack_with_frames):
        topic(Attacker(report, chain))
    check_survival(report, "attacks", chain, echo)


def check_setup_attacks(report, name, chain, echo):
    for topic in (attack_setups, attack_with_old_setups, attack_with_few_shards, attack_with_shards):
        topic(Attacker(report, chain))
    check_survival(report, f"{name}: attacks on setups", chain, echo)


def check_survival(report, name, chain, echo):
    with report.check(f"{name}: afterwards the chain carries datagrams and every ledger closes"):
        entry = Entry(chain.loop, chain)
        entry.connect()
        flow = entry.flow(entry.channel(), echo.address)
        for length in lengths(entry.size):
            entry.echo(flow, os.urandom(length))
        for node in chain.names[1:]:
            for unit in chain.status(node)["ledger"].values():
                assert all(way["closed"] for way in unit.values()), node


class Attacker:
    """An entry with a channel."""

    def __init__(self, report, chain):
        self.report, self.chain = report, chain
        self.connect()

    def connect(self):
        """Another link, so full buckets (5.9)."""
        self.entry = Entry(self.chain.loop, self.chain)
        self.entry.connect()
        self.channel = self.entry.channel()
        return self.entry

    @contextlib.contextmanager
    def attack(self, name, node, reason, times=1):
        """A check that `node` counts this reason, and that only answers to sound exchanges come back.

        A mix releases everything that it holds (6.1), so an answer to the attack cannot come later
        than the PONG of a PING that is sent when a sound exchange after it is complete."""
        entry = self.entry
        suite = entry.size.suite.number
        with self.report.check(f"attack, suite {suite}: {name}") as row, self.chain.counts(node, reason, times):
            entry.events.clear()
            answers = entry.down.drops["unexpected-response"]
            yield
            for _ in range(2):
                entry.alive(self.channel)
            same("what came back", [one for one in entry.events if one not in entry.sound], [])
            same("second answers", entry.down.drops["unexpected-response"], answers)
            row["note"] = f"{node} counts {reason}"

    def new_setup(self, sound=True):
        """A setup and its shards. If it is sound, its ack may come."""
        attempt = self.entry.register(self.entry.attempt())
        if sound:
            self.entry.sound.append(("ack", attempt.id))
        return attempt, setup_shards(self.entry.size, 1, attempt.onions[0])

    def send_shards(self, attempt, contents, first=0):
        self.send(*(self.entry.setup_cell(attempt, sub, content) for sub, content in enumerate(contents, first)))

    def outlast_incomplete_setup(self):
        """Mix 1 drops and counts it when a shard comes after the 2 s of 5.3.4."""
        before = self.chain.count("mix1", "setup-incomplete")
        self.entry.loop.repeat(
            self.entry.channel,
            lambda: self.chain.count("mix1", "setup-incomplete") > before,
            "the end of a setup",
            growth=1,
        )

    def send(self, *cells):
        self.entry.send_cells(cells)


def attack_handshakes(by):
    entry, chain = by.entry, by.chain

    def handshake(change):
        """A wrong handshake and a sound one, from a port without a link."""
        stranger = Entry(entry.loop, chain, passive=True)
        index, halves = stranger.down.message_1()
        stranger.down.send_halves(map(change, halves))
        stranger.renew()
        assert ("message 2", index) not in stranger.events
        same("drops", dict(stranger.down.drops), {})

    def forge(half):
        noise = flip_bit(half[8:-32], 100)
        return handshake_datagram(HALF, half[1], int.from_bytes(half[4:8]), noise, chain.places[0].noise)

    def reserve(half):
        return handshake_datagram(HALF, half[1] + 2, int.from_bytes(half[4:8]), half[8:-32], chain.places[0].noise)

    with by.attack("a wrong mac1", "mix1", "bad-mac1", 2):
        handshake(lambda half: flip_bit(half, -32))

    with by.attack("a forged message 1 with a sound mac1", "mix1", "handshake-forged"):
        handshake(forge)

    with by.attack("parts 2 and 3 of a message 1", "mix1", "handshake-malformed", 2):
        handshake(reserve)

    with by.attack("a message 1 twice", "mix1", "handshake-replayed"):
        index, halves = entry.down.message_1()
        entry.sound.append(("message 2", index))
        entry.down.send_halves(halves)
        entry.wait(("message 2", index))
        entry.alive(by.channel)
        entry.down.send_halves(halves)
        entry.renew()

    with by.attack("a token that is spent", "mix1", "token-spent"):
        entry.down.shake(entry.link.previous.resume)
        entry.renew()


def attack_setups(by):
    size, lifetime = by.entry.size, by.entry.terms.lifetime
    sound = setup_info(size, lifetime)
    places = {"E": 0, "ct": 32, "the tag": -1}
    if size.suite is Suite1:
        del places["ct"]

    for i, node in enumerate(by.chain.names[1:], 1):
        entry = by.connect()
        what = ", ".join(places)
        with by.attack(f"flipped bits in S_{i}: {what}", node, "setup-invalid", len(places)):
            for at in places.values():
                entry.send_setup(entry.attempt(flip=(i, at)))
            entry.channel()

    with by.attack("E of zeros", "mix1", "setup-invalid"):
        attempt = entry.attempt()
        entry.send_setup(attempt, bytes(32) + attempt.onions[0][32:])
        entry.channel()

    infos = {
        "suite": setup_info(other_suite(size), lifetime),
        "lifetime": setup_info(size, lifetime - 1),
        "flags": flip_bit(sound, 3),
        "last byte": flip_bit(sound, 15),
    }
    entry = by.connect()
    with by.attack(f"another value in info: {', '.join(infos)}", "mix2", "setup-invalid", len(infos)):
        for info in infos.values():
            entry.send_setup(entry.attempt(info=info, at=2))
        entry.channel()


def attack_with_old_setups(by):
    entry = by.entry

    with by.attack("a setup twice", "mix1", "setup-replayed"):
        entry.send_setup(copy.copy(entry.channel()))
        entry.channel()

    with by.attack("the head of an old setup before other bytes", "mix1", "setup-replayed"):
        old = entry.channel()
        entry.send_setup(copy.copy(old), flip_bit(old.onions[0], -1))
        entry.channel()

    with by.attack("the S_3 of another setup inside fresh layers", "mix3", "setup-replayed"):
        onion, fresh = entry.channel().onions[2], entry.attempt()
        for i in (2, 1):
            layer, head = fresh.layers[i - 1], fresh.onions[i - 1][: entry.size.suite.head]
            info = setup_info(entry.size, entry.terms.lifetime)
            onion = head + seal(layer.key, layer.nonce, info + onion)
        entry.send_setup(fresh, onion)
        entry.channel()


def attack_with_few_shards(by):
    """5.3.4, 5.3.5"""
    entry, size = by.entry, by.entry.size
    k, r = shard_counts(size, 1)
    if k == 1:
        return  # no setup is ever incomplete

    with by.attack(f"a setup that lost {r + 1} of {k + r} shards", "mix1", "setup-incomplete"):
        attempt, contents = by.new_setup(sound=False)
        by.send_shards(attempt, contents[: k - 1])
        by.outlast_incomplete_setup()

    # The attack before took the 2 s of 5.3.5, so this is not surplus.
    with by.attack("a shard for a live channel", "mix1", "channel-in-use"):
        by.send_shards(by.channel, [b""])

    firsts, ninths = [], []

    def nine():
        """The first makes room for the ninth, so its k-th shard comes too late."""
        setups = [by.new_setup() for _ in range(9)]
        for attempt, contents in setups:
            by.send_shards(attempt, contents[: k - 1])
        for attempt, contents in setups[8], setups[0]:
            by.send_shards(attempt, contents[k - 1 : k], k - 1)
        firsts.append(setups[0][0])
        ninths.append(setups[8][0])

    with by.attack("nine incomplete setups", "mix1", "setup-incomplete"):
        entry.loop.repeat(nine, lambda: any(one.open for one in ninths), "ack of the ninth setup")
        entry.channel()
        assert not any(one.open for one in firsts), "the first of nine setups"


def attack_with_shards(by):
    entry, size = by.entry, by.entry.size
    k, r = shard_counts(size, 1)

    with by.attack("a shard for channel 0", "mix1", "cell-malformed"):
        by.send(entry.link.control_cell(SETUP, 0, 0, b""))

    with by.attack("shards twice, and one beyond the last, in front of the k-th", "mix1", "fragment-malformed", k):
        attempt, contents = by.new_setup()
        by.send_shards(attempt, [contents[0]], k + r)
        for _ in range(2):
            by.send_shards(attempt, contents[: k - 1])
        by.send_shards(attempt, [contents[k - 1]], k - 1)
        entry.wait(entry.sound[-1])

    surplus = k + 2 * r + (ACK_CELLS - 1) * ack_contents(size)
    with by.attack("shards behind the k-th, some twice", "mix1", "surplus", surplus):
        attempt, contents = by.new_setup()
        by.send_shards(attempt, contents)
        by.send_shards(attempt, contents)
        entry.wait(entry.sound[-1])

    with by.attack("a wrong shard among the k", "mix1", "setup-invalid"):
        attempt, contents = by.new_setup(sound=False)
        by.send_shards(attempt, [*contents[: k - 1], flip_bit(contents[k - 1], 0)])
        entry.channel()

    with by.attack("the cells of a setup twice", "mix1", "cell-replayed", k + r):
        attempt = entry.attempt()
        cells = entry.shards(attempt).values()
        entry.sound.append(("ack", attempt.id))
        by.send(*cells, *cells)
        entry.wait(entry.sound[-1])

    other = other_suite(size)
    onion, title = onion_of(other, entry), f"a setup of suite {other.suite.number}"
    if size.suite is Suite1:
        reason, afterwards = "setup-invalid", entry.channel
    else:  # it has too few shards
        reason, afterwards = "setup-incomplete", by.outlast_incomplete_setup
    with by.attack(title, "mix1", reason):
        by.send(*list(entry.shards(entry.attempt(), onion, other).values())[: k + r])
        afterwards()

    with by.attack(f"{title} in {k} + {r} shards", "mix1", "setup-invalid"):
        entry.send_setup(entry.attempt(), onion[: setup_length(size, 1)])
        entry.channel()


def other_suite(size):
    return Class(size.name, size.hops, SUITES[3 - size.suite.number])


def onion_of(size, entry):
    """S_1 of another suite than that of the chain, whose hops may have no key for ML-KEM."""
    keys = entry.bundle().setup_keys(entry.terms)
    keys = [one._replace(mlkem=one.mlkem or ML_KEM_768.keygen()[0]) for one in keys]
    infos = [setup_info(size, entry.terms.lifetime) for _ in keys]
    return make_setup(size, keys, [new_ephemeral() for _ in keys], infos)[0][0]


def attack_with_asks(by):
    """7.8: of an entry"""
    entry, carriage = by.entry, by.entry.carriage
    ask = carriage.holdings.ask(carriage.interval(), WANTS_ANSWER, 0)
    record = carriage.holdings.newest_bundle().records[0]
    room = entry.size.content(FORWARD, 1)

    def send(*contents):
        for content in contents:
            entry.down.put(entry.link, content)

    wrong = {
        "an ask with a clock": (ask._replace(clock=wall_ms()).content(), "trust-from-entry"),
        "a record of an entry": (part_contents(RECORD_OF + 1, record.travel(), room)[0], "trust-from-entry"),
        "an ask with an unknown flag": (ask._replace(flags=3).content(), "trust-malformed"),
    }
    for what, (content, reason) in wrong.items():
        with by.attack(what, "mix1", reason):
            send(content)

    with by.report.check("attack: hundreds of asks at once, of which Mix 1 answers some") as row:
        answers, before = carriage.answers, by.chain.count("mix1", "trust-rate-limited")
        send(*400 * [ask.content()])
        entry.loop.until(lambda: by.chain.count("mix1", "trust-rate-limited") >= before + 100, "100 of them refused")
        entry.alive(by.channel)
        row["note"] = f"{carriage.answers - answers} of 400 are answered"


def attack_with_cells(by):
    entry, channel = by.entry, by.channel

    def ping():
        """A cell that may be answered."""
        token = os.urandom(8)
        entry.sound.append((PONG, channel.id, token))
        return entry.cell(channel, frame(PING, token)), entry.sound[-1]

    with by.attack("a data cell three times", "mix1", "replay", 2):
        cell, pong = ping()
        by.send(cell, cell, cell)
        entry.wait(pong)
        entry.alive(channel)
        same("PONGs", entry.events.count(pong), 1)

    for what, at, reason in (("body", 500, "forged"), ("header", 3, "header")):
        with by.attack(f"a flipped bit in a {what}, then the genuine cell", "mix1", reason):
            cell, pong = ping()
            by.send(flip_bit(cell, at), cell)
            entry.wait(pong)

    for i, node in enumerate(by.chain.names[1:], 1):
        with by.attack(f"a flipped bit in BODY_{i}", node, "forged"):
            entry.send(channel, frame(PING, bytes(8)), flip=i)

    with by.attack("a cell of an unknown channel", "mix1", "no-channel"):
        unknown = copy.copy(channel)
        unknown.id = new_channel_id(entry.link)
        entry.send(unknown, frame(PING, bytes(8)))

    with by.attack("a cell of a half-open channel", "mix1", "no-channel"):
        half_open = entry.send_setup(entry.attempt(flip=(2, -1)))
        entry.channel()
        header = Header(half_open.id, 0, 0, DATA, entry.size.number)
        by.send(entry.link.data_cell(header, os.urandom(entry.size.body(FORWARD, 1))))

    with by.attack("a data cell with a sub", "mix1", "sub"):
        entry.send(channel, frame(PING, bytes(8)), sub=1)

    with by.attack("a sound cell from another address", "mix1", "stranger"), bound(entry.host) as stranger:
        stranger.sendto(entry.cell(channel, frame(PING, bytes(8))), entry.link.address)

    with by.attack("a cell one byte short", "mix1", "length"):
        by.send(entry.cell(channel, frame(PING, bytes(8)))[:-1])

    with by.attack("an ack cell forward", "mix1", "kind"):
        by.send(entry.link.control_cell(ACK, channel.id, 0, b""))

    with by.attack("a link cell of an unknown kind", "mix1", "unknown-link-content"):
        by.send(entry.link.control_cell(LINK, 0, 0, b"\x63"))

    with by.attack("a keepalive twice", "mix1", "cell-replayed"):
        by.send(*2 * [entry.link.control_cell(LINK, 0, 0, bytes([KEEPALIVE]))])


def attack_with_frames(by):
    """A PING in front of a bad frame is not answered either (3.10.1, 3.10.11)."""
    bad = {
        "an unknown frame": b"\x0c",
        "a truncated frame": frame(DGRAM, 1, 0xFFFF),
        "a frame against its direction": frame(STATUS, 1, b"\0"),
        "an IPv4 address inside IPv6": frame(OPEN, 1, 1, bytes(16), b"\6" + bytes(10) + b"\xff\xff" + bytes(6)),
        "a name with a space": frame(OPEN, 1, 1, bytes(16), b"\3\3a b\0\1"),
        "an empty name": frame(OPEN, 1, 1, bytes(16), b"\3\0\0\1"),
        "a fragment byte with bit 3": frame(FRAG, 1, 1, b"\x88", 1, b"x"),
        "too many datagrams": frame(DGRAM, 1, 0) * (datagrams_max(by.entry.size.payload) + 1),
    }
    for what, text in bad.items():
        with by.attack(f"{what} behind a PING", by.chain.names[-1], "bad-frames"):
            by.entry.send(by.channel, frame(PING, bytes(8)) + text)
