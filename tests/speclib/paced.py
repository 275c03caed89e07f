"""Section 9 of docs/SPEC.md: paced classes. A companion to the text, like protocol.py."""

import collections
import functools
import hmac
import math
import struct

from .protocol import (
    ACK, AGAIN, BACKWARD, CLOCK, CLOSE, COMPANY, DATA, DGRAM, FORWARD, FRAG, FROM, LINK, OPEN, PAD, PEER, REPORT_CELL,
    SESSION, SETUP, STATUS,
    Class, Header, Link, Refused, Slot,
    ack_contents, aes_ecb, expand, extract, frame, parse_frames, seal, shard_counts, unseal, xor,
)  # fmt: skip

# ---- 1.3 POLYVAL (RFC 8452, 3) ----

POLYNOMIAL = 1 << 128 | 1 << 127 | 1 << 126 | 1 << 121 | 1


@functools.lru_cache(256)
def products(key):
    """a * key * x^-128 for every value a of each byte of a block. Bit i of a number is the coefficient of x^i."""
    one, out = int.from_bytes(key, "little"), []
    for _ in range(128):
        one = (one ^ POLYNOMIAL if one & 1 else one) >> 1
    for _ in range(16):
        row = [0]
        for _ in range(8):
            row += [one ^ other for other in row]
            one = one << 1 ^ (POLYNOMIAL if one >> 127 else 0)
        out.append(row)
    return out


def polyval(key, text):
    """`text` is padded with zeros to whole blocks; in section 9 it always has whole blocks."""
    text += bytes(-len(text) % 16)
    table, out = products(key), 0
    for at in range(0, len(text), 16):
        block = out ^ int.from_bytes(text[at : at + 16], "little")
        out = 0
        for row, byte in zip(table, block.to_bytes(16, "little"), strict=True):
            out ^= row[byte]
    return out.to_bytes(16, "little")


# ---- 9.2 Cells ----


class PacedClass(Class):
    """9.1.1, 9.2: `name` is the size, S, M or L."""

    token = 32

    def __init__(self, name, hops, suite):
        super().__init__(name, hops, suite)
        self.number |= 0x10

    def body(self, direction, link):
        return self.payload + 16


class PacedSlot(Slot):
    """4.3 with the key of 9.2.2."""

    def __init__(self, handshake_hash, k1, k2, shared):
        super().__init__(handshake_hash, k1, k2, shared)
        prk = extract(handshake_hash, k1 + k2 + shared)
        self.tag = {way: expand(prk, b"eddy1 tag " + way.encode(), 16) for way in (FORWARD, BACKWARD)}

    def block(self, way, header, body):
        """The header of type 0 in plaintext, with its link tag."""
        return header.block()[:12] + polyval(self.tag[way], body)[:4]

    def data_cell(self, way, header, body):
        return aes_ecb(self.header[way], self.block(way, header, body)) + body

    def open_data_cell(self, way, cell):
        """9.4, steps 3 and 6: header and body."""
        block, body = aes_ecb(self.header[way], cell[:16], decrypt=True), cell[16:]
        if not hmac.compare_digest(block[12:], polyval(self.tag[way], body)[:4]):
            raise Refused("bad-tag")
        return Header.parse(block[:12] + bytes(4)), body


class PacedLink(Link):
    """One end of a link of a paced class. At an entry, `running` is the round of which it sends first copies."""

    slot_type = PacedSlot

    def header_under(self, slot, cell, running):
        """9.4, step 3. `open` does 1 and 4 as in free classes."""
        block = aes_ecb(slot.header[self.receives], cell[:16], decrypt=True)
        header = Header.parse(block[:12] + bytes(4))
        is_near = running is not None and abs(header.seq - running) <= 1024
        is_control = SETUP <= header.type <= LINK and not any(block[12:])
        return header if (is_near if header.type == DATA else is_control) else None

    def data_cell(self, header, body):
        return self.current.data_cell(self.sends, header, body)


# ---- 9.3 Bodies ----


def number(sub, number_of_round):
    """N"""
    return bytes([DATA, sub]) + bytes(5) + number_of_round.to_bytes(5)


def tweak(sub, number_of_round):
    """t"""
    return number(sub, number_of_round) + bytes(4)


class Wide:
    """ENC and DEC under a wide key. With 6 for `cleared`, and any length of tweak and text, it is Tor's UIV+."""

    def __init__(self, key, cleared=7):
        self.block, self.blind, self.stream, self.start = (key[at : at + 16] for at in range(0, 64, 16))
        self.cleared = cleared
        products(self.blind), products(self.start)  # here, and not in the first round of a channel

    def xor_stream(self, left, right):
        first = int.from_bytes(polyval(self.start, left)) >> self.cleared << self.cleared
        blocks = b"".join((first + j).to_bytes(16) for j in range(math.ceil(len(right) / 16)))
        return xor(right, aes_ecb(self.stream, blocks)[: len(right)])

    def enc(self, t, x):
        left, right = x[:16], x[16:]
        u = polyval(self.blind, t + right)
        left = xor(aes_ecb(self.block, xor(left, u)), u)
        return left + self.xor_stream(left, right)

    def dec(self, t, y):
        left, right = y[:16], y[16:]
        right = self.xor_stream(left, right)
        u = polyval(self.blind, t + right)
        return xor(aes_ecb(self.block, xor(left, u), decrypt=True), u) + right


class PacedHop:
    """The keys of a hop: `sec` is its sec[0], forward and backward (5.1). Those of data are used of the exit only."""

    def __init__(self, sec):
        sec = dict(zip((FORWARD, BACKWARD), sec, strict=True))
        self.wide_key = {way: expand(one, b"eddy1 wide", 64) for way, one in sec.items()}
        self.wide = {way: Wide(key) for way, key in self.wide_key.items()}
        self.data = {way: (expand(one, b"eddy1 key", 16), expand(one, b"eddy1 iv", 12)) for way, one in sec.items()}

    def seal(self, way, sub, number_of_round, inner):
        """9.3.1: the inner body `data`."""
        key, iv = self.data[way]
        return seal(key, xor(iv, number(sub, number_of_round)), inner)

    def open(self, way, sub, number_of_round, body):
        key, iv = self.data[way]
        return unseal(key, xor(iv, number(sub, number_of_round)), body)


def wrap(hops, t, x):
    """9.3.2: BODY_1 and what each of these hops makes of it; the last is X."""
    bodies = [x]
    for hop in reversed(hops):
        bodies.insert(0, hop.wide[FORWARD].dec(t, bodies[0]))
    return bodies


def unwrap(hops, t, body):
    """9.3.3 at the entry: X, or what hop m + 1 sent."""
    for hop in hops:
        body = hop.wide[BACKWARD].dec(t, body)
    return body


# ---- 9.5 to 9.9 Offsets, phases, slots ----


def offsets(period, copies, gap, slack, steps):
    """9.5.2, in ms: off_1 .. off_h and off'_1 .. off'_h."""
    forward = [(copies - 1) * gap * period + slack]
    for step in steps:
        forward.append(forward[-1] + step)
    backward = [forward[-1] + 1]
    for step in reversed(steps):
        backward.insert(0, backward[0] + step)
    return forward, backward


class Lead:
    """9.5.5: an entry sends round r when its clock shows r * T - lead. Times are ms."""

    def __init__(self, period, copies, gap, slack):
        self.late, self.early = (copies - 1) * gap * period + slack, 8 * period - slack
        self.value, self.samples, self.peer, self.sent = None, [], 0, False

    def sample(self, now, peer, value):
        """A clock cell of Mix 1 that came at `now`. `peer` is a number of a clock cell, and `value` is the time at
        which Mix 1 received that one, less the time at which it was due here."""
        if peer in (0, self.peer):
            return
        self.peer = peer
        self.samples.append((now, value))
        self.samples = [one for one in self.samples[:-16] if one[0] > now - 40_000] + self.samples[-16:]
        latest = [one for _, one in self.samples[-16:]]
        if not self.sent:
            self.value = min(one for _, one in self.samples)
        elif len(latest) == 16 and (min(latest) > self.value + self.late or max(latest) < self.value - self.early):
            self.value, self.samples = min(latest), self.samples[-16:]

    def moved(self, now, passed):
        """The lead at `now`, when `passed` have passed since the last call."""
        latest = [one for at, one in self.samples if at > now - 40_000]
        if self.sent and latest:
            most = passed * 100e-6
            self.value += max(-most, min(most, min(latest) - self.value))
        return self.value


def phase_rounds(hops, rounds):
    """9.7: L and u."""
    length = (rounds - 64) // (2 * hops)
    return length, 3 * length // 4


def slot_counts(size, link, rounds, seats, loops):
    """9.6: w_i and a_i of a link between hops."""
    _, u = phase_rounds(size.hops, rounds)
    seats += 2 * loops * (link - 1)
    return -(-seats * sum(shard_counts(size, link)) // u), -(-seats * 3 * ack_contents(size) // u)


def link_loss(lost, places):
    """9.15.5: the share p that a link loses in one direction, within its bounds."""
    share = (lost + 4.5 + 3 * math.sqrt(lost + 2.25)) / places
    return min(max(share, 1e-4), 1e-2)


def loop_loss(size, mix, share):
    """9.15.5: f, the share of a mix's loops that links with this loss take."""
    return 1 - (1 - share) ** (2 * (size.hops - mix))


def binomial_tail(tries, share, least):
    """The probability that a binomial variable reaches `least`."""
    def logarithm(k):
        ways = math.lgamma(tries + 1) - math.lgamma(k + 1) - math.lgamma(tries - k + 1)
        return ways + k * math.log(share) + (tries - k) * math.log1p(-share)

    return sum(math.exp(logarithm(k)) for k in range(least, tries + 1))


def loop_setup_loss(size, mix, share):
    """9.15.5: q, the probability that a setup of a loop fails."""
    links = [shard_counts(size, link) for link in range(mix + 1, size.hops + 1)]
    of_links = [binomial_tail(k + r, share, r + 1) + ack_contents(size) * share**3 for k, r in links]
    return min(1, sum(of_links))


def link_window(size, link, rounds, seats, loops):
    """9.1.3: W of 3.9.2 for the keys of a link."""
    need = 8 * (sum(slot_counts(size, link, rounds, seats, loops)) + 2) if link > 1 else 0
    return max(4096, 1 << (need - 1).bit_length())


def copied_rounds(number_of_round, first, copies, gap):
    """9.6.4: rounds of which link 1 carries cells in this round; `first` is the first one of the link."""
    return [one for j in range(copies) if (one := number_of_round - j * gap) >= first]


def refused_terms(size, period, rounds, copies, gap, slack, steps, interval, epoch):
    """9.16.2: the conditions that fail; interval and epoch in s."""
    forward, backward = offsets(period, copies, gap, slack, steps)
    k = shard_counts(size, 1)[0]
    rules = {
        "delay": max(forward[0], *steps) + 2 * period <= 8 * period,
        "acks": backward[0] <= 48 * period,
        "phase": phase_rounds(size.hops, rounds)[1] >= k + max(3, math.ceil(k / 4)),
        "keys": interval * 1000 + rounds * period / 2 + backward[-1] <= epoch * 1000 / 6,
        "parts": interval * 1000 >= 240 * size.hops * period,
    }
    return [name for name, holds in rules.items() if not holds]


# 9.6.6 Contents of type 3 cells


class ClockCell(collections.namedtuple("ClockCell", "sent peer received", defaults=(0, 0))):
    def content(self):
        return struct.pack(">BQQQ", CLOCK, *self)


class ReportCell(collections.namedtuple("ReportCell", "first last places filled lost")):
    def content(self):
        return bytes([REPORT_CELL]) + self.first.to_bytes(5) + self.last.to_bytes(5) + struct.pack(">III", *self[2:])


class CompanyCell(collections.namedtuple("CompanyCell", "channels n_min")):
    def content(self):
        return struct.pack(">BHH", COMPANY, *self)


def parse_content(content):
    """A clock, report or company cell; None for other kinds."""
    if content[0] == CLOCK:
        return ClockCell(*struct.unpack_from(">QQQ", content, 1))
    if content[0] == REPORT_CELL:
        return ReportCell(int.from_bytes(content[1:6]), int.from_bytes(content[6:11]),
                          *struct.unpack_from(">III", content, 11))  # fmt: skip
    if content[0] == COMPANY:
        return CompanyCell(*struct.unpack_from(">HH", content, 1))
    return None


# ---- 9.11, 9.12 Frames ----

ENDS = {DGRAM, FRAG, CLOSE}
PACED_FRAMES = {FORWARD: ENDS | {OPEN, SESSION, AGAIN}, BACKWARD: ENDS | {STATUS, PEER, FROM}}


def again(frames):
    """9.11.7: the frames of the round before, as they were encoded."""
    return frame(AGAIN, len(frames), frames)


def open_at_entry(hops, sub, number_of_round, body, meeting=None, own_salt=None):
    """9.11.8, 9.11.9: "data" or "meeting", and the frames that take effect. Frames of the exit have none in a
    meeting."""
    t = tweak(sub, number_of_round)
    x = unwrap(hops[:-1], t, body)
    try:
        inner = hops[-1].open(BACKWARD, sub, number_of_round, x)
    except Refused:
        if meeting is None:
            raise
        return "meeting", meeting.open(t, own_salt, unwrap(hops[-1:], t, x))[1]
    if meeting is not None and inner[0] != PAD:
        raise Refused("garbled")
    return "data", b"" if meeting is not None else inner


# ---- 9.13 Meetings ----


class Meeting:
    def __init__(self, secret, chain_id, klass, first):
        prk = extract(b"eddy1 meet", secret)
        what = chain_id + bytes([klass]) + first.to_bytes(5)
        self.token, self.call = expand(prk, b"token" + what, 32), expand(prk, b"call" + what, 64)

    def seal(self, t, salt, frames):
        return Wide(self.call).enc(t, bytes(16) + salt + frames)

    def open(self, t, own_salt, x):
        """9.13.4: salt and frames."""
        text = Wide(self.call).dec(t, x)
        if any(text[:16]) or text[16:24] == own_salt:
            raise Refused("garbled")
        return text[16:24], text[24:]


def parse_meeting(inner, payload):
    """9.13.6"""
    frames, rest = parse_frames(inner, FORWARD, {DGRAM, FRAG, AGAIN}, payload)
    for one in frames:
        if any(frame[1] for frame in (one[1] if one[0] == AGAIN else [one])):
            raise Refused("bad-frames")
    return frames, rest


# ---- 9.16 Terms ----


class PacedTerms(
    collections.namedtuple(
        "PacedTerms", "klass name period cells rounds copies gap repeat n_min seats loops slack steps"
    )
):
    """Times in ms."""

    def encode(self):
        """What the class adds to the bytes of the chain id (7.4)."""
        text = self.name.encode()
        out = bytes([self.klass, len(text)]) + text
        out += struct.pack(">HBHBBBHHBH", *self[2:12])
        return out + b"".join(step.to_bytes(2) for step in self.steps)

    def offsets(self):
        return offsets(self.period, self.copies, self.gap, self.slack, self.steps)
