"""The user's side of a paced class: an entry that keeps its rounds (SPEC 9), and counts what comes back.

It follows clauses 9.5.5, 9.6, 9.8, 9.9 and 9.11 for a class with one copy. Times are ms of its own clock."""

import collections
import os
import random
import time
from types import SimpleNamespace

from .carriage import UserCarriage
from .ends import Initiator, bound
from .nodes import new_channel_id, serious
from .paced import (
    PACED_FRAMES, ClockCell, CompanyCell, Lead, Meeting, PacedHop, PacedLink, ReportCell,
    again, open_at_entry, parse_content, parse_meeting, phase_rounds, tweak, wrap,
)  # fmt: skip
from .protocol import (
    ACK, AGAIN, BACKWARD, CLOCK, COMPANY, DATA, DGRAM, DUMMY, ECHO, FORWARD, FRAG, KEEPALIVE, LINK, OPEN, OPENED,
    REPORT_CELL, SESSION, SETUP, STATUS, UNKNOWN_FLOW,
    Header, Reassembly, Refused,
    ack_contents, address, datagram_frames, datagrams_max, frame, make_setup, new_ephemeral, parse_frames, read_ack,
    setup_info, setup_shards, shard_counts,
)  # fmt: skip
from .report import same

SESSION_FLOW = 0xFFFF
ORDER = (KEEPALIVE, ECHO, CLOCK)  # 9.6.6: what waits for a type 3 slot; asks come last


class PacedEnd(Initiator):
    """4 and 9.4 on link 1. Type 3 cells wait for their slots."""

    link_type = PacedLink

    def __init__(self, *args):
        self.waiting = []
        super().__init__(*args)

    def put(self, _link, content):
        self.waiting.append(content)
        self.waiting.sort(key=lambda one: ORDER.index(one[0]) if one[0] in ORDER else len(ORDER))

    def cell(self, cell, source):
        link = self.link
        if source not in link.sources():
            raise Refused("stranger")
        slot, header = link.open(cell, self.owner.running)
        if header.type == DATA:
            return self.owner.on_data(slot, header, cell)
        if header.type == ACK:
            self.owner.check_ack(header)
        slot.window.check(header.seq)
        content = slot.open_control(BACKWARD, header, cell[16:])
        slot.window.mark(header.seq)
        if header.type == LINK and content[0] in (DUMMY, CLOCK, REPORT_CELL, COMPANY):
            self.owner.on_content(header, content)
        else:
            self.control(link, header, content)


class Batch(SimpleNamespace):
    """Of an entry: its channel number on link 1, and the channel if its setup succeeded."""

    def __init__(self, number, channel):
        super().__init__(
            number=number, channel=channel, attempt=None, hops=None, meeting=None, salt=os.urandom(8), acks={},
            sent={}, came=set(), opened=set(), sessions=0, session_at=0, answered=False, states=collections.Counter(),
        )  # fmt: skip


class PacedEntry:
    """It sends its cells in every round. With the secret of a meeting it serves that, otherwise destinations."""

    passive = False

    def __init__(self, loop, chain, secret=None):
        self.loop, self.terms, self.size, self.host = loop, chain.terms, chain.terms.size, chain.host
        self.paced = chain.terms.paced[0]
        same("copies", self.paced.copies, 1)
        self.length, self.used = phase_rounds(self.size.hops, self.paced.rounds)
        self.carriage = UserCarriage(self.terms, chain.descriptors)
        self.started = time.time() * 1000 - time.monotonic() * 1000
        self.lead = Lead(self.paced.period, self.paced.copies, self.paced.gap, self.paced.slack)
        self.drawn_lead = -random.uniform(0, 12 * 3600 * 1000)  # 9.5.5
        self.moved_at = self.clock()
        self.running = self.ready_from = self.prepared = None
        self.skipped, self.sent, self.batches, self.secret = [], [], {}, secret
        self.clocks = {}  # 9.5.6: when the slots of clock cells were due, by their numbers
        self.arrivals = []  # (round, ms) of cells of type 0, by Mix 1's clock
        self.contents, self.dummies, self.noise = [], 0, set()
        self.session, self.flows, self.opened, self.queue = os.urandom(16), [], set(), collections.deque()
        self.fragmented, self.events, self.used_frames, self.garbled = 0, [], set(), 0
        self.reassembly = Reassembly(self.size)
        self.meeting_reassembly = Reassembly(self.size, self.less(meeting=True))
        self.used_slot = None  # of the latest data cell received
        self.down = PacedEnd(loop, bound(self.host), self, chain.places[0], "NK")
        loop.ticks.append(self.tick)
        loop.dues.append(self.wakes)

    @property
    def link(self):
        return self.down.link

    def connect(self):
        self.loop.until(lambda: self.link.current, "message 2 of Mix 1")

    def drops(self):
        return serious(self.down)

    def wait(self, event):
        self.loop.until(lambda: event in self.events, event)

    # 9.5 Time

    def clock(self):
        return self.started + time.monotonic() * 1000

    def lead_now(self):
        return self.drawn_lead if self.lead.value is None else self.lead.value

    def due(self, number):
        return number * self.paced.period - self.lead_now()

    def round_at(self, now):
        """The latest round that is due."""
        return int((now + self.lead_now()) // self.paced.period)

    def wakes(self):
        """Of Loop: when the next round is due."""
        return (self.due(self.prepared[0]) - self.started) / 1000 if self.prepared else time.monotonic() + 1

    def tick(self, _now):
        if not self.link.current:
            return
        now = self.clock()
        if not self.prepared:
            self.prepare(self.round_at(now) + 1)
        number, cells = self.prepared
        if now < self.due(number):
            return
        self.lead.moved(now, now - self.moved_at)
        self.moved_at, latest = now, self.round_at(now)
        if now < self.due(number + 1):
            for cell in cells:
                self.down.send(self.link, cell)
            self.sent.append(number)
            self.running = None if self.lead.value is None else number
            self.prepare(number + 1)
        else:  # 9.5.8: never later than the next slot
            self.skipped += range(number, latest)
            self.prepare(latest)

    def on_clock(self, cell):
        """9.5.5"""
        if cell.peer not in self.clocks:
            return
        now, is_first = self.clock(), self.lead.value is None
        self.lead.sample(now, cell.peer, cell.received / 1e6 - self.clocks[cell.peer])
        if is_first:
            self.running = self.round_at(now)
            self.ready_from, self.prepared = self.running + 1, None
            self.skipped, self.sent, self.batches = [], [], {}

    # 9.6 Slots of a round

    def batch(self, number):
        if number not in self.batches:
            self.batches[number] = Batch(number, new_channel_id(self.link))
        return self.batches[number]

    def prepare(self, number):
        """9.11.1: all cells of a round."""
        if self.lead.value is not None:
            self.set_up(number)
        batch = self.batch(number // self.paced.rounds)
        cells = [self.data_cell(batch, number, sub) for sub in range(self.paced.cells)]
        place = number % self.paced.rounds
        if place < self.used:
            cells.append(self.setup_slot(self.batch(batch.number + 1), place))
        if number % 8 == 0:
            cells.append(self.link_slot(number))
        random.shuffle(cells)
        self.prepared = number, cells

    def data_cell(self, batch, number, sub):
        header = Header(batch.channel, number, sub, DATA, self.size.number)
        body = self.seal(batch, number, sub) or os.urandom(self.size.payload + 16)
        return self.link.data_cell(header, body)

    def setup_slot(self, batch, place):
        if batch.attempt and place >= batch.attempt.begins and place - batch.attempt.begins < len(batch.attempt.shards):
            sub = place - batch.attempt.begins
            return self.link.control_cell(SETUP, batch.channel, sub, batch.attempt.shards[sub])
        return self.dummy()

    def link_slot(self, number):
        if number % 16 == 0:
            self.down.put(self.link, bytes([CLOCK]))
        if self.lead.value is not None and not any(one[0] not in ORDER for one in self.down.waiting):
            self.carriage.ask(self.down, self.wanted(number), time.monotonic())
        if not self.down.waiting:
            return self.dummy()
        content = self.down.waiting.pop(0)
        if content[0] == CLOCK:
            self.clocks[len(self.clocks) + 1] = self.due(number)
            content = ClockCell(len(self.clocks)).content()
        return self.link.control_cell(LINK, 0, 0, content)

    def dummy(self):
        return self.link.control_cell(LINK, 0, 0, bytes([DUMMY]))

    # 9.8 Setup

    def target(self, number):
        """The batch whose setup this round is for, or the next one, and the place in its phase 1."""
        batch, place = divmod(number, self.paced.rounds)
        if place > self.used - sum(shard_counts(self.size, 1)):
            return batch + 2, 0
        return batch + 1, place

    def wanted(self, number):
        """9.8.2: the interval whose bundle the next setup needs."""
        target, _ = self.target(number)
        begins = (target - 1) * self.paced.rounds * self.paced.period
        return begins // (1000 * self.terms.interval) - 1

    def set_up(self, number):
        """9.8.2, 9.8.3"""
        target, place = self.target(number)
        batch, bundle = self.batch(target), self.carriage.holdings.bundle(self.wanted(number))
        if batch.attempt or not bundle or (target - 1) * self.paced.rounds < self.ready_from:
            return
        first = target * self.paced.rounds
        token = os.urandom(32)
        if self.secret:
            batch.meeting = Meeting(self.secret, self.terms.id, self.size.number, first)
            token = batch.meeting.token
        keys = bundle.setup_keys(self.terms)
        ephemerals = [new_ephemeral() for _ in keys]
        infos = [setup_info(self.size, 0, first)] * len(keys)
        onions, layers = make_setup(self.size, keys, ephemerals, infos, token=token)
        shards = setup_shards(self.size, 1, onions[0], count=min(self.used, 255))
        batch.attempt = SimpleNamespace(ephemerals=ephemerals, layers=layers, shards=shards, begins=place)

    # 9.9 Ack

    def check_ack(self, header):
        """9.9.3"""
        batch, place = divmod(self.running or 0, self.paced.rounds)
        target = self.batches.get(batch + 1)
        expected = target and target.attempt and header.channel == target.channel
        if not expected or header.sub >= ack_contents(self.size):
            raise Refused("unexpected-ack")
        if place + 8 < (2 * self.size.hops - 1) * self.length:
            raise Refused("ack-early")

    def on_ack(self, _link, header, content):
        batch = self.batches[self.running // self.paced.rounds + 1]
        cells = batch.acks.setdefault(header.sub, [])
        cells.append(content)
        if len(cells) > 1:
            same("a copy of an ack", content, cells[0])
        elif len(batch.acks) == ack_contents(self.size):
            contents = [batch.acks[sub][0] for sub in range(len(batch.acks))]
            hops = read_ack(self.size, batch.attempt.layers, batch.attempt.ephemerals, contents)
            batch.hops = [PacedHop(hop.sec) for hop in hops]

    def on_setup(self, *_):
        raise Refused("kind")

    def on_link(self, index):
        self.events.append(("message 2", index))

    # 9.11 Bodies and frames

    def less(self, meeting):
        """By how much datagrams of a cell are shorter than in 3.11."""
        return 3 * self.paced.repeat + 8 * meeting

    def seal(self, batch, number, sub):
        """BODY_1 of this round; None for a random one."""
        if self.lead.value is None or not batch.hops or not (batch.meeting or self.flows):
            return None
        self.lead.sent = True
        t, frames = tweak(sub, number), self.frames(batch, number, sub)
        if batch.meeting:
            x = batch.meeting.seal(t, batch.salt, frames.ljust(self.size.payload - 8, b"\0"))
            return wrap(batch.hops, t, x)[0]
        x = batch.hops[-1].seal(FORWARD, sub, number, frames.ljust(self.size.payload, b"\0"))
        return wrap(batch.hops[:-1], t, x)[0]

    def frames(self, batch, number, sub):
        """9.11.6, 9.11.7"""
        payload = self.size.payload - 8 * bool(batch.meeting)
        room, before = payload, b""
        if self.paced.repeat:
            before = batch.sent.get((number - 1, sub), b"")
            if before and self.queue and self.clock() - self.queue[0][0] > 2 * self.paced.period:
                before = before if random.random() > 1 / 16 else b""
            room -= 3 + len(before)
            if (number + 1) % self.paced.rounds == 0:
                room = 0
        others, datagrams, count = b"", b"", 0
        if self.wants_session(batch, number, sub) and room >= 17:
            others += frame(SESSION, self.session)
            batch.sessions, batch.session_at = batch.sessions + 1, number
        while self.queue and len(others + datagrams + self.queue[0][1]) <= room and count < datagrams_max(payload):
            one = self.queue.popleft()[1]
            if one[0] in (DGRAM, FRAG):
                datagrams, count = datagrams + one, count + 1
            else:
                others += one
        batch.sent[number, sub] = others + datagrams
        return (again(before) if before else b"") + others + datagrams

    def wants_session(self, batch, number, sub):
        """9.12.6"""
        if batch.meeting or sub:
            return False
        return batch.sessions < 4 or not batch.answered and number >= batch.session_at + 10

    def flow(self, to):
        number = len(self.flows) + 1
        self.flows.append(SimpleNamespace(number=number, token=os.urandom(16), to=to))
        return self.flows[-1]

    def send_datagram(self, flow, data):
        """3.12.1 to a destination; without a flow, to the other entry of the meeting."""
        if flow and flow.number not in self.opened:
            self.enqueue(frame(OPEN, flow.number, flow.number, flow.token, address(*flow.to)))
        number, less = flow.number if flow else 0, self.less(meeting=not flow)
        for one in datagram_frames(self.size, number, self.fragmented & 0xFFFF, data, less):
            self.enqueue(one)
        self.fragmented += 1

    def enqueue(self, one):
        self.queue.append((self.clock(), one))

    # What comes back

    def on_content(self, header, content):
        if header.channel:
            raise Refused("unknown-link-content")
        parsed = parse_content(content)
        if isinstance(parsed, ClockCell):
            self.on_clock(parsed)
        if parsed:
            self.contents.append(parsed)
        else:
            self.dummies += 1

    def reports(self):
        return [one for one in self.contents if isinstance(one, ReportCell)]

    def companies(self):
        return [one for one in self.contents if isinstance(one, CompanyCell)]

    def on_data(self, slot, header, cell):
        """9.4.5 to 9.4.7, 9.11.8"""
        number, sub = header.seq, header.sub
        if sub >= self.paced.cells:
            raise Refused("bad-sub")
        if not self.running - 256 <= number <= self.running + 8:
            raise Refused("late" if number < self.running else "early")
        batch = self.batches.get(number // self.paced.rounds)
        if header.channel and not (batch and header.channel == batch.channel and batch.hops):
            raise Refused("unknown-channel")
        _, body = slot.open_data_cell(BACKWARD, cell)
        self.arrivals.append((number, self.clock() + self.lead.value))
        self.used_slot = slot
        if not header.channel:
            self.noise.add((number, sub))
            return
        if (number, sub) in batch.came:
            raise Refused("replay")
        batch.came.add((number, sub))
        try:
            kind, inner = open_at_entry(batch.hops, sub, number, body, batch.meeting, batch.salt)
        except Refused:
            self.garbled += 1
            return
        batch.opened.add((number, sub))
        batch.states[kind] += 1
        if kind == "meeting":
            self.on_meeting(number, sub, inner)
        elif not batch.meeting:
            frames, rest = parse_frames(inner, BACKWARD, PACED_FRAMES[BACKWARD])
            same("behind the frames", any(rest), False)
            for one in frames:
                self.on_frame(batch, self.reassembly, *one)

    def on_meeting(self, number, sub, inner):
        """9.13.6: the frames of a place are used once."""
        frames, rest = parse_meeting(inner, self.size.payload)
        same("behind the frames", any(rest), False)
        repeated = [one for kind, *fields in frames if kind == AGAIN for one in fields[0]]
        own = [one for one in frames if one[0] != AGAIN]
        for place, some in (((number - 1, sub), repeated), ((number, sub), own)):
            if some and place not in self.used_frames:
                self.used_frames.add(place)
                for one in some:
                    self.on_frame(None, self.meeting_reassembly, *one)

    def on_frame(self, batch, reassembly, kind, *fields):
        if kind == FRAG:
            whole = reassembly.add(*fields)
            if whole is None:
                return
            kind, fields = DGRAM, (fields[0], whole)
        if kind == STATUS and fields[0] == SESSION_FLOW:
            batch.answered = True
            if fields[1] == UNKNOWN_FLOW:
                self.opened.clear()
        elif kind == STATUS and fields[1] == OPENED:
            self.opened.add(fields[0])
        self.events.append((kind, *fields))
