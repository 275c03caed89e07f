"""A Python entry in the rounds of a paced class (SPEC 9), before real mixes and a real exit."""

import contextlib
import itertools
import os
import time

from .chain import Chain
from .ends import Loop
from .hops import Client
from .paced_user import PacedEntry
from .protocol import (
    ACK, DATA, DGRAM, LINK, PING, SETUP, STATUS, UNKNOWN_FLOW,
    Header,
    flip_bit, frame, setup_length, shard_counts,
)  # fmt: skip
from .report import same
from .user import Echo

# On a busy machine a Python process sends late, and leaves rounds out. So a cell may take 200 ms to Mix 1, hops have
# 300 ms, and 2 of the 12 rounds in which a setup travels suffice.
PERIOD, ROUNDS = 100, 128
PROFILE = (
    f"video:period_ms={PERIOD},rounds={ROUNDS},cells=2,copies=1,repeat=1,n_min=1,seats=8,loops=0,"
    "slack_ms=200,steps_ms=300"
)
BATCH_S = PERIOD * ROUNDS / 1000
START_S = 22  # for nodes to start, to sign a bundle, and for the bundle to reach the entry
AGAIN_S = 4  # after which a datagram is sent again: twice the way there and back


def check_rounds(report, eddy):
    loop = Loop()
    echo = Echo(loop)
    name = "rounds, class L paced, 1 mix, suite 2"
    with Chain(eddy, loop, "paced-L", 1, 2, interval=interval(2), profile=PROFILE) as chain:
        chain.start("--allow", "127.0.0.1/32")
        chain.run("meet", "new", "--out", "call.secret")
        chain.enter("--forward", f"{chain.host}:5000=meet:@call.secret,max_age_ms=30000")
        text = (chain.folder / "call.secret").read_text().strip().removeprefix("eddy-meet-1:")
        entry, caller = PacedEntry(loop, chain), PacedEntry(loop, chain, secret=bytes.fromhex(text))
        check_link(report, name, chain, entry)
        check_setup(report, name, entry)
        flow = check_destination(report, name, entry, echo)
        check_meeting(report, name, chain, caller, Client(loop, chain))
        check_next_batch(report, name, entry, flow, echo)
        check_attacks(report, name, chain, entry, flow)
        check_accounts(report, name, chain, entry, caller)


def interval(hops):
    """I for which the bundle of the running interval is for setups soon: a batch that begins in the next interval,
    right after its start (9.8.2)."""
    now = time.time()
    begins = (now + START_S) // BATCH_S * BATCH_S
    while True:
        begins += BATCH_S
        for seconds in range(240 * hops * PERIOD // 1000 + 1, 361):
            if begins % seconds < 2 and begins - begins % seconds > now + START_S - 2:
                return seconds


def deliver(entry, what, texts, send, received):
    """Sends datagrams until each has come."""
    missing = set(texts)
    for _ in range(15):
        for text in missing:
            send(text)
        with contextlib.suppress(TimeoutError):
            return entry.loop.until(lambda: set(texts) <= set(received()), what, limit=AGAIN_S + 0.1 * len(missing))
        missing = set(texts) - set(received())
    raise TimeoutError(f"{what}: {len(missing)} of {len(texts)} did not come")


def channel(entry, what, wanted=lambda batch: batch.hops):
    """The first batch that fits, when its rounds have begun."""

    def running():
        return entry.running is not None and entry.batches.get(entry.running // ROUNDS)

    entry.loop.until(lambda: running() and wanted(running()), what, limit=10 * BATCH_S)
    return running()


def mix_1_skipped(chain):
    """Rounds that Mix 1 has skipped (9.5.8)."""
    return chain.status("mix1")["rounds"]["skipped"]


def check_link(report, name, chain, entry):
    loop, paced = entry.loop, entry.paced

    with report.check(f"{name}: NK handshake with Mix 1"):
        entry.connect()

    with report.check(f"{name}: a clock cell brings the lead") as row:
        loop.until(lambda: entry.lead.value is not None, "a sample of the lead")
        # Mix 1 has the same clock. On a busy machine the first sample may have come late.
        assert -5 < entry.lead.value < 1000, f"lead {entry.lead.value} ms"
        row["note"] = f"{entry.lead.value:.1f} ms, from {entry.drawn_lead / 3.6e6:.1f} h"

    with report.check(f"{name}: Mix 1 sends c cells of every round, when it releases it backward") as row:
        (_, backward), skipped = paced.offsets(), mix_1_skipped(chain)
        first = entry.running + 8
        rounds = range(first, first + 24)
        late = first + 24 + backward[0] // PERIOD + 32
        loop.until(lambda: entry.running > late, "24 rounds")
        missing = [number for number in rounds if any((number, sub) not in entry.noise for sub in range(paced.cells))]
        assert len(missing) <= mix_1_skipped(chain) - skipped, f"no cells of {missing}"
        delays = sorted(at - number * PERIOD - backward[0] for number, at in entry.arrivals)
        assert -5 < delays[0] < 1000, f"first {delays[0]} ms after its release"
        row["note"] = f"{delays[0]:.1f} ms after it at the soonest"

    with report.check(f"{name}: a new handshake goes on with the link"):
        before, index = entry.link.current, entry.down.shake()
        entry.wait(("message 2", index))
        noise = len(entry.noise)
        loop.until(lambda: entry.used_slot is entry.link.current is not before, "cells under the new keys")
        loop.until(lambda: len(entry.noise) > noise + 16, "cells of later rounds")


def check_setup(report, name, entry):
    with report.check(f"{name}: a setup in phase 1 and its ack in phase 2h make a channel of the next batch") as row:
        batch = channel(entry, "a channel")
        k, shards = shard_counts(entry.size, 1)[0], len(batch.attempt.shards)
        acks = sum(map(len, batch.acks.values()))
        row["note"] = f"{k} of {shards} shards hold {setup_length(entry.size, 1)} bytes, {acks} ack cells"
    with report.check(f"{name}: cells of the channel's places come backward, noise where nothing is to be sent"):
        entry.loop.until(lambda: len(batch.came) >= 8, "cells of the channel")
        same("data bodies", set(batch.states), {"data"})
        same("garbled", entry.garbled, 0)


def lengths(entry, meeting):
    """Of a DGRAM and of FRAGs, with their edges (9.11.7, 9.13.6)."""
    less = entry.less(meeting)
    one, part = entry.size.one_cell - less, entry.size.payload - 8 - less
    return [0, 1, 100, one - 1, one, one + 1, 2 * part, 2 * part + 1]


def received(entry, flow):
    return [data for kind, number, *rest in entry.events if kind == DGRAM and number == flow for data in rest]


def exchange(entry, flow, *texts):
    """Through the echo."""
    deliver(entry, "answers", texts, lambda text: entry.send_datagram(flow, text), lambda: received(entry, flow.number))


def check_destination(report, name, entry, echo):
    flow = entry.flow(echo.address)

    with report.check(f"{name}: SESSION, OPEN, datagrams to an echo and back") as row:
        wanted = lengths(entry, meeting=False)
        exchange(entry, flow, *map(os.urandom, wanted))
        same("lengths at the echo", {len(data) for data, _ in echo.received}, set(wanted))
        entry.wait((STATUS, 0xFFFF, 0))
        row["note"] = "lengths " + ", ".join(map(str, wanted))

    with report.check(f"{name}: statuses of OPEN and DGRAM"):
        refused = entry.flow(("127.0.0.2", 1))
        entry.send_datagram(refused, b"refused")
        entry.enqueue(frame(DGRAM, 999, 1, b"x"))
        entry.wait((STATUS, refused.number, 1))
        entry.wait((STATUS, 999, UNKNOWN_FLOW))
        exchange(entry, flow, b"in one batch")
    return flow


def check_next_batch(report, name, entry, flow, echo):
    with report.check(f"{name}: a flow and its port go on in the next batch, without another OPEN"):
        number = min(number for number, batch in entry.batches.items() if batch.answered)
        channel(entry, "a channel in the next batch", lambda batch: batch.number > number and batch.hops)
        exchange(entry, flow, b"in another batch")
        same("port", echo.port(b"in another batch"), echo.port(b"in one batch"))


def check_attacks(report, name, chain, entry, flow):
    """9.4 at Mix 1, 9.12 at the exit."""
    reasons = ("header", "kind", "sub", "late", "early", "bad-tag", "copy", "forged", "cell-forged", "control-rate")

    def data(ahead, sub=0, number=None, damage=None):
        batch, of = entry.batches[entry.running // ROUNDS], entry.running + ahead
        header = Header(batch.channel if number is None else number, of, sub, DATA, entry.size.number)
        cell = entry.link.data_cell(header, os.urandom(entry.size.payload + 16))
        return flip_bit(cell, damage) if damage else cell

    def control(kind, content, channel=0):
        return entry.link.control_cell(kind, channel, 0, content)

    def attack(what, reason, cells, least=1):
        with report.check(f"attack on mix1: {what}") as row:
            channel(entry, "the middle of a batch", lambda batch: batch.hops and 16 < entry.running % ROUNDS < 90)
            before = chain.counted("mix1")

            def send():
                for cell in cells():
                    entry.down.send(entry.link, cell)

            def counted():
                return chain.count("mix1", reason) >= before[reason] + least

            entry.loop.repeat(send, counted, f"{reason} counted by mix1")
            more = chain.counted("mix1") - before
            same("others counted", {one for one in reasons if more[one]} - {reason, "late"}, set())  # or its own, late
            row["note"] = f"mix1 counts {reason}"

    attack("a round that has left", "late", lambda: [data(-20)])
    attack("a round more than 8 ahead", "early", lambda: [data(30)])
    attack("a round thousands ahead", "header", lambda: [data(5000)])
    attack("a number beyond c", "sub", lambda: [data(2, sub=entry.paced.cells)])
    attack("a channel that is not of the batch", "no-channel", lambda: [data(2, number=1)])
    for what, at in (("first", 16), ("last", -1)):
        attack(f"the {what} byte of a body altered", "bad-tag", lambda: [data(3, damage=at)])  # noqa: B023
    attack("a place twice, and the entry's own cell for it", "copy", lambda: 2 * [data(3)], least=2)
    attack("a control cell twice", "copy", lambda: 2 * [control(LINK, b"\0")])
    attack("a control cell altered", "forged", lambda: [flip_bit(control(SETUP, b"", 5), 100)])
    attack("an ack", "kind", lambda: [control(ACK, b"", 5)])
    attack("control cells of 40 rounds at once", "control-rate", lambda: [control(LINK, b"\0") for _ in range(160)], 90)

    with report.check("attack on exit: a PING, which AGAIN may repeat") as row:
        before = chain.count("exit", "bad-frames")
        entry.loop.repeat(
            lambda: entry.enqueue(frame(PING, bytes(8))),
            lambda: chain.count("exit", "bad-frames") > before,
            "bad-frames counted by the exit",
        )
        row["note"] = "the exit counts bad-frames"
    with report.check(f"{name}: the channel has survived the attacks"):
        exchange(entry, flow, os.urandom(30))


def check_meeting(report, name, chain, entry, friend):
    wanted = lengths(entry, meeting=True)

    with report.check(f"{name}: the token of a meeting in the setup joins a real entry"):
        batch = channel(entry, "a channel of a meeting")
        entry.loop.until(lambda: batch.states["meeting"], "bodies of the other entry")
        joined = lambda: chain.status("entry")["paced"]["entry"]["meeting"] == "joined"  # noqa: E731
        entry.loop.until(joined, "`joined` in the status of the other entry")

    with report.check(f"{name}: datagrams of the real entry in the meeting") as row:
        texts = [os.urandom(length) for length in wanted]
        deliver(entry, "datagrams", texts, friend.sock.send, lambda: received(entry, 0))
        row["note"] = "lengths " + ", ".join(map(str, wanted))

    with report.check(f"{name}: datagrams to the real entry in the meeting"):
        texts = [os.urandom(length) for length in wanted]
        deliver(entry, "datagrams", texts, lambda text: entry.send_datagram(None, text), lambda: friend.received)
        same("bodies of the exit in the meeting", set(batch.states) - {"meeting", "data"}, set())


def check_accounts(report, name, chain, entry, caller):
    """9.15.1, 9.15.2, and what both ends have dropped."""
    cells = entry.paced.cells

    with report.check(f"{name}: reports of Mix 1 count the places of the channel") as row:
        entry.loop.until(lambda: len(entry.reports()) >= 3, "three reports")
        lost = 0
        for before, one in itertools.pairwise(entry.reports()):
            rounds = range(before.last + 1, one.last + 1)
            batches = {number: entry.batch(number // ROUNDS) for number in rounds}
            of_channel = {number for number, batch in batches.items() if batch.hops}
            set_up = sum(batch.attempt is not None for batch in batches.values())  # its ack may have been lost
            places, filled = one.places - before.places, one.filled - before.filled
            same("first", one.first, before.first)
            same("rounds", len(rounds) % 100, 0)
            same("lost of the filled places", one.lost - before.lost, filled)
            skipped = mix_1_skipped(chain)
            least = (len(of_channel) - skipped) * cells
            assert least <= places <= set_up * cells, f"{places} places of {len(of_channel)} rounds"
            missing = len(of_channel - set(entry.sent)) * cells
            assert filled >= missing - skipped * cells, f"{filled} filled, {missing} not sent"
            lost += filled
        row["note"] = f"{one.places} places, {lost} of them filled; rounds not sent: {len(entry.skipped)}"

    with report.check(f"{name}: company cells of Mix 1 have the channels of the batch"):
        entry.loop.until(lambda: (3, 1) in entry.companies(), "three channels in a batch")
        same("n_min", {one.n_min for one in entry.companies()}, {1})

    with report.check(f"{name}: the entries have refused nothing"):
        same("drops", [entry.drops(), caller.drops()], [{}, {}])
