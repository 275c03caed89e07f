"""Real entries, with Python mixes and exits among real nodes."""

import contextlib
import os

from .chain import Chain
from .ends import Loop, bound
from .nodes import Exit, Mix, new_channel_id
from .protocol import (
    ACK, ACK_CELLS, CHALLENGE, DGRAM, FORWARD, FRAG, OPEN, PING, PONG, REACH, REPORT, SETUP,
    ack_contents, flip_bit, frame, setup_length, shard, shard_counts,
)  # fmt: skip
from .report import same
from .user import Echo, lengths


class Client:
    """An application of a real entry."""

    def __init__(self, loop, chain, port=5000):
        self.sock, self.received, self.loop = bound(chain.host), [], loop
        self.sock.connect((chain.host, port))
        loop.add(self.sock, lambda datagram, _: self.received.append(datagram))

    def echo(self, *texts):
        """Sends datagrams until each has an answer."""

        def send():
            for text in set(texts) - set(self.received):
                with contextlib.suppress(OSError):  # an ICMP error of an earlier datagram
                    self.sock.send(text)

        self.loop.repeat(send, lambda: set(texts) <= set(self.received), f"answers to {len(texts)} datagrams")


def check_hops(report, eddy):
    chains = ("S", 5, 2, (1, 6), None), ("M", 3, 1, (2,), 3), ("L", 1, 2, (1, 2), 3)
    for klass, mixes, suite, python, renew_s in chains:
        loop = Loop()
        echo = Echo(loop)
        who = " and ".join("exit" if i > mixes else f"mix {i}" for i in python)
        name = f"hops, class {klass}, {mixes} mixes, suite {suite}, Python {who}"
        with Chain(eddy, loop, klass, mixes, suite, python, renew_s) as chain:
            chain.start("--allow", f"127.0.0.1:{echo.address[1]}")
            nodes = [(Exit if i > mixes else Mix)(loop, chain, i) for i in python]
            lose_on_purpose(chain, nodes)
            chain.enter("--forward", f"{chain.host}:5000={':'.join(map(str, echo.address))}")
            client = Client(loop, chain)
            check_traffic(report, name, chain, client, nodes)
            if isinstance(nodes[-1], Exit):
                check_exit(report, name, chain, client, nodes[-1])
            if klass == "S":
                check_ik_attacks(report, name, chain, client, nodes[0])
            else:
                check_renewals(report, name, client, nodes[0])
                check_answers(report, name, client, nodes[0])
            for node in nodes:
                if chain.is_real(node.me.position - 1):
                    check_ack_attacks(report, chain, client, node)
            for node in nodes:
                if node.down and chain.is_real(node.me.position + 1):
                    check_acks_to(report, name, node)
                with report.check(f"{name}: hop {node.me.position} has refused nothing"):
                    same("drops", node.drops(), {})


def lose_on_purpose(chain, nodes):
    """Shards and acks of the first setups."""
    mix = nodes[0]
    k, r = shard_counts(mix.size, mix.me.position + 1)
    mix.unsent = [range(r + 1), range(r), range(k, k + r)]
    if len(nodes) > 1:
        _, r = shard_counts(mix.size, mix.me.position)
        mix.up.unheard = set(range(r))
        nodes[-1].fates = [("wrong", "sound", "sound"), ("lost", "sound", "sound"), ("lost", "lost", "sound")]
        if chain.is_real(nodes[-1].me.position - 1):
            nodes[-1].fates.append(("altered", "sound", "sound"))


def check_traffic(report, name, chain, client, nodes):
    loop, size = client.loop, nodes[0].size

    with report.check(f"{name}: handshakes"):
        for node in nodes:
            if node.down:
                loop.until(lambda: node.down.link.current, "message 2")  # noqa: B023
            loop.until(lambda: any(link.current for link in node.up.links), "a promoted slot")  # noqa: B023

    with report.check(f"{name}: four channels of a real entry, after shards and acks were lost") as row:
        for node in nodes:
            loop.until(lambda: node.open_channels() >= 4, "four channels")  # noqa: B023
        loop.until(lambda: chain.status("entry")["channels"] >= 4, "four channels at the entry")
        same("losses still to come", [nodes[0].unsent, getattr(nodes[-1], "fates", [])], [[], []])
        k, r = shard_counts(size, 1)
        row["note"] = f"setup cells on link 1: {k} + {r}, ack contents: {ack_contents(size)}"
        before = nodes[-1].me.position - 1
        if isinstance(nodes[-1], Exit) and chain.is_real(before):
            same("altered ack cells", chain.count(chain.names[before], "cell-forged"), ack_contents(size))

    for node in nodes:
        if chain.is_real(node.me.position - 1):
            check_shards_from(report, name, node)

    with report.check(f"{name}: datagrams of a real entry and their answers") as row:
        for _ in range(2):
            for length in lengths(size):
                client.echo(os.urandom(length))
        row["note"] = "lengths " + ", ".join(map(str, lengths(size)))

    with report.check(f"{name}: many datagrams at once"):
        client.echo(*(os.urandom(60) for _ in range(100)))


def check_shards_from(report, name, node):
    """5.3.1, 5.3.2: of the real node before this one."""
    k, r = shard_counts(node.size, node.me.position)
    with report.check(f"{name}: hop {node.me.position} gets {k} + {r} shards, points of one polynomial") as row:
        setups = [shards for link in node.up.links for shards in link.setups.values()]
        heard = set(range(k + r)) - node.up.unheard
        node.up.loop.until(lambda: all(set(shards) == heard for shards in setups), f"shards {heard}")
        fillings = set()
        for shards in setups:
            known = dict(list(shards.items())[:k])
            same("shards", {j: shard(known, j) for j in shards}, shards)
            last = shard(known, k - 1)
            fillings.add(last[setup_length(node.size, node.me.position) - (k - 1) * len(last) :])
        if fillings != {b""}:
            same("different fillings", len(fillings), len(setups))
        row["note"] = f"{len(setups)} setups, {len(node.up.unheard)} shards of each lost"


def check_acks_to(report, name, node):
    """5.4.5: of the real node behind this one."""
    with report.check(f"{name}: hop {node.me.position} gets every ack content in three cells"):
        three = dict.fromkeys(range(ack_contents(node.size)), ACK_CELLS)
        opened = [channel for channel in node.down.link.channels.values() if channel.open]
        node.up.loop.until(lambda: all(channel.acks == three for channel in opened), f"ack cells {three}")


def check_exit(report, name, chain, client, node):
    """A real entry before an exit that does unusual things."""
    channel = max(node.channels, key=lambda one: one.sent)
    loop = client.loop

    with report.check(f"{name}: a real entry refuses a wrong confirmation and sets up another channel") as row:
        same("ack-invalid", chain.count("entry", "ack-invalid"), 1)
        row["note"] = "entry counts ack-invalid"

    with report.check(f"{name}: generations 0 to 2 of the backward keys"):
        for seq in (REACH - 1, (1 << 20) - 2, 1 << 20, (1 << 20) + REACH, (1 << 21) - 1, 1 << 21):
            channel.sent = seq
            client.echo(os.urandom(20))

    with report.check(f"{name}: a real entry ignores REPORT and PING, but not what follows them in the cell"):
        (flow,), data = channel.flows, os.urandom(30)
        odd = frame(REPORT, bytes(10)) + frame(PING, bytes(8)) + frame(PONG, bytes(8))
        node.answer(channel, odd + frame(DGRAM, flow, len(data), data))
        loop.until(lambda: data in client.received, "the DGRAM behind them")
        client.echo(os.urandom(30))
        assert not any(one[0] == PONG for one in node.frames), "a PONG"

    with report.check(f"{name}: OPEN in front of each datagram until its STATUS arrives"):
        fresh = Client(loop, chain)
        node.frames.clear()
        node.silent = True
        for length in (30, 30, node.size.one_cell, node.size.longest):
            fresh.echo(os.urandom(length))
        frames = [one for one in node.frames if one[0] in (OPEN, DGRAM, FRAG)]
        for before, one in zip([None, *frames], frames, strict=False):
            if one[0] == DGRAM or one[0] == FRAG and one[3] & 7 == 0:
                assert before and before[0] == OPEN, f"no OPEN in front of {one[:3]}"
        same("tokens", len({one[3] for one in frames if one[0] == OPEN}), 1)
        node.silent = False
        fresh.echo(os.urandom(30))
        node.frames.clear()
        fresh.echo(os.urandom(30))
        assert not any(one[0] == OPEN for one in node.frames), "OPEN after STATUS"

    with report.check(f"{name}: STATUS 5 makes a real entry open the flow again"):
        for one in node.channels:
            one.flows.clear()
        node.frames.clear()
        fresh.sock.send(b"lost")
        loop.until(lambda: any(one[-1] == b"lost" for one in node.frames), "DGRAM")
        # A datagram that leaves before the STATUS has arrived is lost, too.
        for one in (fresh, client):
            one.echo(os.urandom(30))
        assert any(one[0] == OPEN for one in node.frames), "no OPEN after STATUS 5"


def check_renewals(report, name, client, node):
    pattern = node.up.pattern
    with report.check(f"{name}: renewals by {pattern} keep the channels"):
        link = next(link for link in node.up.links if any(one.open for one in link.channels.values()))
        channels, before = set(link.channels), link.promotions
        for renewals in (1, 2):
            client.loop.until(lambda: link.promotions >= before + renewals, "a promotion")  # noqa: B023
            client.echo(os.urandom(30))
        assert channels <= set(link.channels), "channels of another link"
        used = max(link.channels.values(), key=lambda one: len(one.windows[FORWARD].marked))
        marked = len(used.windows[FORWARD].marked)
        client.echo(os.urandom(30))
        assert len(used.windows[FORWARD].marked) > marked, "the datagram took another channel"


def check_answers(report, name, client, node):
    """4.9, 4.10: a real initiator that gets kind 3."""
    link = next(link for link in node.up.links if any(one.open for one in link.channels.values()))

    def renewal():
        before = link.promotions
        client.loop.until(lambda: link.promotions > before, "a promotion")
        client.echo(os.urandom(30))

    with report.check(f"{name}: a real initiator comes back with a cookie"):
        node.up.wants_cookies = True
        renewal()
        node.up.wants_cookies = False
        assert node.up.proven >= 2, "halves without a cookie were taken"
    if node.up.pattern == "IKpsk2":
        with report.check(f"{name}: a real initiator answers a challenge"):
            node.up.stamp = bytes([0xFE]) * 12
            renewal()
            same("answered challenges", node.up.challenged, 1)


def check_ack_attacks(report, chain, client, node):
    """Cells for the real node before this one, in the channel of the client."""
    to, size = chain.names[node.me.position - 1], node.size
    channels = [(one, link, id_) for link in node.up.links for id_, one in link.channels.items()]
    _, link, channel = max(channels, key=lambda entry: len(entry[0].windows[FORWARD].marked))
    contents = ack_contents(size)

    def ack(id_, sub):
        return link.control_cell(ACK, id_, sub, os.urandom(size.payload))

    def attack(what, reason, count, *cells):
        with report.check(f"attack on {to}: {what}") as row, chain.counts(to, reason, count):
            for cell in cells:
                node.up.send(link, cell)
            client.echo(os.urandom(30))
            row["note"] = f"{to} counts {reason}"

    attack("another ack of an open channel", "surplus", contents, *(ack(channel, sub) for sub in range(contents)))
    attack("an ack of an unknown channel", "unexpected-ack", 1, ack(new_channel_id(link), 0))
    attack("an ack content that does not exist", "unexpected-ack", 1, ack(channel, contents))
    attack("an ack of channel 0", "cell-malformed", 1, ack(0, 0))
    attack("an altered ack cell", "cell-forged", 1, flip_bit(ack(channel, 0), 100))
    attack("an ack cell twice", "cell-replayed", 1, *2 * [ack(channel, 0)])
    attack("a setup cell backward", "kind", 1, link.control_cell(SETUP, channel, 0, b""))


def check_ik_attacks(report, name, chain, client, node):
    """Wrong handshakes of the previous hop, each followed by a sound one."""
    loop, end = client.loop, node.down

    def sound():
        index = end.shake()
        loop.until(lambda: index in node.answered, "message 2")
        client.echo(os.urandom(30))

    def attack(what, reason, count, index, halves, challenges=0):
        # The fresh message 1 of 4.10 and the sound one may cross: a cell under the keys of the first comes too late.
        also = ("cookie-required", "unknown-slot") if challenges else ()
        with report.check(f"attack on IK: {what}") as row, chain.counts("mix2", reason, count, also):
            answers = end.drops["unexpected-response"]
            challenges += end.answers[CHALLENGE]
            end.send_halves(halves)
            # 4.10: a cookie, the same halves with it, then the challenge.
            loop.until(lambda: end.answers[CHALLENGE] >= challenges, "a challenge")
            if also:
                loop.until(lambda: not end.pending, "message 2 to the fresh message 1")
                client.echo(os.urandom(30))
            sound()
            assert index not in node.answered, "it was answered"
            same("second answers", end.drops["unexpected-response"], answers)
            row["note"] = f"mix2 counts {reason}"

    index, halves = end.message_1()
    attack("a wrong mac1", "bad-mac1", 2, index, [flip_bit(half, -32) for half in halves])
    older, stamp = end.timestamp(), end.timestamp()
    index, halves = end.message_1(stamp)
    end.send_halves(halves)
    loop.until(lambda: index in node.answered, "message 2")
    attack("the timestamp of the last handshake", "stale-timestamp", 1, *end.message_1(stamp), challenges=1)
    attack("an older timestamp", "stale-timestamp", 1, *end.message_1(older), challenges=1)
    with report.check("IK: stale timestamps bring challenges, which are answered"):
        same("challenges", end.answers[CHALLENGE], 2)
    index, halves = end.message_1()
    end.send_halves(halves)
    loop.until(lambda: index in node.answered, "message 2")
    node.answered.clear()
    attack("a message 1 twice", "handshake-replayed", 1, index, halves)
    honest, end.private = end.private, os.urandom(32)
    index, halves = end.message_1()
    end.private = honest
    attack("a static key that is not the previous hop's", "unknown-initiator", 1, index, halves)
    honest, end.psk = end.psk, os.urandom(32)
    index, halves = end.message_1()
    end.psk = honest
    with report.check("attack on IK: a psk that is not the responder's") as row:
        end.send_halves(halves)
        loop.until(lambda: end.drops["handshake-forged"], "a message 2 that does not open")
        del end.drops["handshake-forged"]
        sound()
        row["note"] = "message 2 does not open, and the next handshake succeeds"
