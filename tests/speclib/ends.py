"""Ends of links over sockets: the event loop, handshakes, slots, and the checks of a cell up to its effect."""

import collections
import contextlib
import copy
import os
import random
import selectors
import socket
import struct
import time

from kyber_py.ml_kem import ML_KEM_768

from .protocol import (
    ACK, ACK_CELLS, ACK_PERIOD, ANSWER_LENGTH, ASK, CHALLENGE, COOKIE, DATA, ECHO, HALF, KEEPALIVE, LINK, MESSAGE_2,
    MESSAGE_2_LENGTH, PART, PATH, SETUP,
    Link, Noise, Refused,
    flip_bit, handshake_datagram, join_shards, make_answer, make_cookie, open_answer, parse_handshake, shard_counts,
    with_mac2, x25519_public,
)  # fmt: skip

PATIENCE = 60  # Seconds that anything may take: a machine may be busy.
FIRST_WAIT = 0.5  # Seconds after which a datagram is sent again. Then they double.
TICK = 0.05


class Loop:
    """Delivers datagrams to Python nodes and calls their clocks, until an event or a limit."""

    def __init__(self):
        self.selector, self.ticks = selectors.DefaultSelector(), []
        self.dues = []  # functions that return when a node wants its next turn

    def add(self, sock, callback):
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.selector.register(sock, selectors.EVENT_READ, callback)

    def turn(self):
        now = time.monotonic()
        wait = min([TICK, *(due() - now for due in self.dues)])
        for key, _ in self.selector.select(max(wait, 0)):
            for _ in range(64):
                try:
                    datagram, source = key.fileobj.recvfrom(65536)
                except OSError:  # nothing left, or an ICMP error of an earlier datagram
                    break
                key.data(datagram, source)
        for tick in self.ticks:
            tick(time.monotonic())

    def until(self, condition, what, limit=None):
        """Runs until `condition()` holds."""
        limit = limit or PATIENCE
        end = time.monotonic() + limit
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {limit} s for {what}")
            self.turn()

    def repeat(self, action, condition, what, growth=2):
        """Repeats `action` until `condition()` holds. UDP may lose datagrams, most of all fragmented ones."""
        end, wait = time.monotonic() + PATIENCE, FIRST_WAIT
        while True:
            action()
            with contextlib.suppress(TimeoutError):
                return self.until(condition, what, limit=wait)
            if time.monotonic() > end:
                raise TimeoutError(f"waited {PATIENCE} s for {what}")
            wait *= growth


def bound(host, port=0):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, port))
    return sock


class End:
    """A socket with one or more ends of links. `owner` is the node, which accepts what they carry."""

    link_type = Link

    def __init__(self, loop, sock, owner):
        self.loop, self.sock, self.owner = loop, sock, owner
        self.links, self.drops = [], collections.Counter()
        self.later = []  # times and cells to send then
        self.unheard = set()  # indexes of shards to lose on purpose
        loop.add(sock, self.receive)
        loop.ticks.append(self.tick)

    def rebind(self, host, port=0):
        """Moves to another port."""
        self.loop.selector.unregister(self.sock)
        self.sock.close()
        self.sock = bound(host, port)
        self.loop.add(self.sock, self.receive)

    def receive(self, datagram, source):
        try:
            if len(datagram) == self.handshake_length:
                self.handshake(datagram, source)
            elif len(datagram) == ANSWER_LENGTH:
                self.answer(datagram)
            else:
                self.cell(datagram, source)
        except Refused as reason:
            self.drops[str(reason)] += 1

    def cell(self, cell, source):
        """3.7"""
        links = [link for link in self.links if source in link.sources()]
        if not links:
            raise Refused("stranger")
        for link in links:
            with contextlib.suppress(Refused):
                slot, header = link.open(cell)
                break
        else:
            link.open(cell)  # raises the reason
        if header.type == DATA:
            channel = link.channels.get(header.channel)
            if not channel or not channel.open:
                raise Refused("no-channel")
            if header.sub:
                raise Refused("sub")
            effect = self.owner.accept(link, slot, channel, header, cell[16:])
        else:
            slot.window.check(header.seq)
            content = slot.open_control(link.receives, header, cell[16:])
            slot.window.mark(header.seq)

            def effect():
                self.control(link, header, content)

        link.promote(slot, source)
        if link.heard_at <= link.sent_at:
            link.heard_at = time.monotonic()
        effect()

    def control(self, link, header, content):
        if header.type == LINK:
            if header.channel or content[0] > ECHO or PART < content[0] < PATH:
                raise Refused("unknown-link-content")
            if content[0] in (PATH, ECHO):
                self.path(link, content)
            elif content[0] >= ASK:
                self.owner.carriage.on_content(self, link, content)
        elif header.type == SETUP:
            self.setup_shard(link, header.channel, header.sub, content)
        else:
            self.owner.on_ack(link, header, content)

    def setup_shard(self, link, channel, sub, content):
        """5.3.4, 5.3.5 without their bounds. All shards stay in `setups`, for checks."""
        if sub in self.unheard:
            return
        k, r = shard_counts(link.size, link.number)
        shards = link.setups.setdefault(channel, {})
        if not channel or (channel in link.channels and not shards):
            raise Refused("channel-in-use")
        if sub >= k + r or sub in shards:
            raise Refused("fragment-malformed")
        shards[sub] = content
        if len(shards) > k:
            raise Refused("surplus")
        if len(shards) == k:
            self.owner.on_setup(link, channel, join_shards(link.size, link.number, shards))

    def send(self, link, cell):
        self.sock.sendto(cell, link.address)

    def send_ack(self, link, channel, sub, content, fates=("sound",) * ACK_CELLS):
        """5.4.5: cells under their own numbers, a period apart. A check may want them lost, wrong or altered."""

        def send(fate):
            cell = link.control_cell(ACK, channel, sub, os.urandom(len(content)) if fate == "wrong" else content)
            if fate != "lost":
                self.send(link, flip_bit(cell, 100) if fate == "altered" else cell)

        send(fates[0])
        now = time.monotonic()
        self.later += [(now + n * ACK_PERIOD, send, fate) for n, fate in enumerate(fates[1:], 1)]

    def tick(self, now):
        due = [one for one in self.later if one[0] <= now]
        self.later = [one for one in self.later if one[0] > now]
        for _, send, fate in due:
            send(fate)
        # 4.6.1
        for link in self.links:
            if link.current and link.heard_at > link.sent_at and now - link.heard_at >= 0.5:
                self.keepalive(link)

    def put(self, link, content):
        """Sends a type 3 cell."""
        self.send(link, link.control_cell(LINK, 0, 0, content))

    def keepalive(self, link):
        self.put(link, bytes([KEEPALIVE]))


class Initiator(End):
    """4, on the side nearer to the entry. `silent` leaves out the keepalive of 4.4.4."""

    handshake_length = MESSAGE_2_LENGTH

    def __init__(self, loop, sock, owner, peer, pattern, private=None):
        super().__init__(loop, sock, owner)
        self.peer, self.pattern, self.private = peer, pattern, private
        self.link = self.link_type(peer.size, peer.position, initiator=True)
        self.link.address = peer.address
        self.links, self.pending, self.due, self.tries = [self.link], {}, 0.0, 0
        self.clock, self.silent, self.psk = 0, False, bytes(32)
        self.paths, self.answers = 0, collections.Counter()

    def token(self):
        """4.5.2"""
        return self.link.current.resume if self.link.current else bytes(32)

    def timestamp(self):
        """4.1.5, TAI64N: seconds since 1970 plus 2^62 + 10, and nanoseconds."""
        self.clock = max(time.time_ns(), self.clock + 1)
        return struct.pack(">QI", (1 << 62) + 10 + self.clock // 10**9, self.clock % 10**9)

    def message_1(self, front=None):
        """4.1.4, 4.2: index and halves. `front` is a token or timestamp other than the right one."""
        key, private = ML_KEM_768.keygen()
        front = front or (self.token() if self.pattern == "NK" else self.timestamp())
        noise = Noise(self.pattern, True, self.peer.prologue, self.peer.noise, self.private, self.psk)
        text, index = noise.write(front + key), random.getrandbits(32)
        cut = len(text) // 2
        halves = [
            handshake_datagram(HALF, i, index, half, self.peer.noise) for i, half in enumerate((text[:cut], text[cut:]))
        ]
        # A message 1 that answers a challenge takes no other (4.10).
        self.pending[index] = noise, private, halves, {CHALLENGE} if front[:4] == b"\xff" * 4 else set()
        return index, halves

    def shake(self, front=None):
        index, halves = self.message_1(front)
        self.send_halves(halves)
        return index

    def path(self, link, content):
        """4.8, at the initiator."""
        if content[0] == PATH:
            self.paths += 1
            self.put(link, bytes([ECHO]) + content[1:9])

    def answer(self, datagram):
        """4.9.6"""
        part, index = datagram[1], int.from_bytes(datagram[4:8])
        if index not in self.pending:
            raise Refused("unexpected-response")
        halves, taken = self.pending[index][2:]
        text = open_answer(part, datagram, self.peer.noise, halves[0])
        if part in taken:
            raise Refused("unexpected-response")
        taken.add(part)
        self.answers[part] += 1
        if part == COOKIE:
            self.send_halves(with_mac2(half, text) for half in halves)
        else:
            self.shake(b"\xff" * 4 + text[:8])

    def send_halves(self, halves):
        for half in halves:
            self.sock.sendto(half, self.peer.address)

    def tick(self, now):
        super().tick(now)
        if self.link.current and now - self.link.current.made > 120 and now >= self.due:  # 4.6.3
            self.due = now + 5
            self.shake()
        elif not self.link.current and now >= self.due and not self.owner.passive:  # 4.6.4
            self.due = now + (0.5, 0.75, 1)[min(self.tries, 2)]
            self.tries += 1
            self.shake()

    def handshake(self, datagram, _source):
        index = int.from_bytes(datagram[4:8])
        if index not in self.pending:
            raise Refused("unexpected-response")
        noise, private = self.pending[index][:2]
        kind, part, _, text = parse_handshake(datagram, x25519_public(noise.ephemeral))
        if (kind, part) != (MESSAGE_2, 0):
            raise Refused("handshake-malformed")
        noise = copy.deepcopy(noise)  # 4.4.5: a forgery changes nothing
        ciphertext = noise.read(text)
        slot = self.link.slot_type(noise.hash, *noise.split(), ML_KEM_768.decaps(private, ciphertext))
        # 4.4.4, 4.4.5: answers to older messages are of no use any more.
        for old in list(self.pending):
            del self.pending[old]
            if old == index:
                break
        self.link.previous, self.link.current = self.link.current, slot
        self.owner.on_link(index)
        if not self.silent:
            self.keepalive(self.link)


class Responder(End):
    """4, on the side nearer to the exit: NK at Mix 1, with a link for each entry; IKpsk2 at other hops."""

    def __init__(self, loop, sock, owner, me, private, previous_public):
        super().__init__(loop, sock, owner)
        self.me, self.private, self.previous_public = me, private, previous_public
        self.pattern = "IKpsk2" if previous_public else "NK"
        self.handshake_length = 686 if previous_public else 672
        self.halves, self.stamp, self.ephemerals = {}, b"", set()
        self.secret, self.wants_cookies, self.proven = os.urandom(32), False, 0
        self.challenge, self.challenged = None, 0

    def handshake(self, datagram, source):
        kind, part, index, text = parse_handshake(datagram, self.me.noise)
        if kind != HALF or part > 1:
            raise Refused("handshake-malformed")
        # 4.9.2
        has_cookie = with_mac2(datagram, make_cookie(self.secret, source)) == datagram
        if self.wants_cookies and not has_cookie:
            if part == 0:
                self.give_cookie(index, source, datagram)
            return
        self.proven += has_cookie
        # 4.2.4
        halves = self.halves.setdefault((source, index, has_cookie), {})
        if part in halves:
            raise Refused("half-duplicate")
        halves[part] = text, datagram
        if len(halves) == 2:
            del self.halves[source, index, has_cookie]
            self.message_1(halves[0][0] + halves[1][0], index, source, halves[0][1], has_cookie)

    def give_cookie(self, index, source, half):
        cookie = make_cookie(self.secret, source)
        self.sock.sendto(make_answer(COOKIE, index, self.me.noise, half, cookie), source)

    def path(self, _link, _content):
        raise Refused("cell-malformed")

    def answer(self, _datagram):
        raise Refused("wrong-side")

    def message_1(self, text, index, source, half, has_cookie):
        noise = Noise(self.pattern, False, self.me.prologue, self.me.noise, self.private)
        payload = noise.read(text)
        front, key = payload[:-1184], payload[-1184:]
        if self.pattern == "NK":
            if text[:32] in self.ephemerals:  # 4.5.4
                raise Refused("handshake-replayed")
            self.ephemerals.add(text[:32])
            link = self.named_link(front)
        else:
            if noise.their_public != self.previous_public:
                raise Refused("unknown-initiator")
            if front[:4] == b"\xff" * 4:  # 4.10
                if front[4:] != self.challenge:
                    raise Refused("stale-timestamp")
                self.challenge, front = None, struct.pack(">QI", (1 << 62) + 10 + int(time.time()), 0)
                self.challenged += 1
            elif front <= self.stamp:  # 4.1.5
                if not has_cookie:  # 4.10
                    self.give_cookie(index, source, half)
                    return
                self.challenge = self.challenge or os.urandom(8)
                answer = make_answer(CHALLENGE, index, self.me.noise, half, self.challenge + bytes(8))
                self.sock.sendto(answer, source)
                return
            self.stamp = front
            link = self.links[0] if self.links else None
        if not link:
            link = self.link_type(self.me.size, self.me.position, initiator=False)
            self.links.append(link)
        shared, ciphertext = ML_KEM_768.encaps(key)
        answer = noise.write(ciphertext)
        # 4.4.2: cells under `next` may follow at once.
        link.next = link.slot_type(noise.hash, *noise.split(), shared)
        link.next.source = source
        self.sock.sendto(handshake_datagram(MESSAGE_2, 0, index, answer, text[:32]), source)

    def named_link(self, token):
        """4.5.2"""
        for link in self.links:
            if link.next and link.next.resume == token:
                link.promote(link.next, link.address or link.next.source)
            if link.current and link.current.resume == token:
                return link
            if link.previous and link.previous.resume == token:
                raise Refused("token-spent")
        return None
