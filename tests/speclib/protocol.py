"""Sections 1 to 5 of docs/SPEC.md, in its order: numbers in comments and docstrings are its clauses.

Section 7 is in trust.py, section 9 in paced.py. They are companions to the text. They prefer reading over speed, wipe no keys,
compare little in constant time and have none of the bounds of 5.9, so they are for checks only."""

import collections
import functools
import hashlib
import hmac
import os
import socket
import struct
import time

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from kyber_py.ml_kem import ML_KEM_768

# ---- 1.3 Primitives ----

FORWARD, BACKWARD = "i2r", "r2i"


class Refused(Exception):
    """A receiver's reason to drop something."""


def aes_ecb(key, block, decrypt=False):
    cipher = Cipher(algorithms.AES(key), modes.ECB())
    return (cipher.decryptor() if decrypt else cipher.encryptor()).update(block)


def seal(key, nonce, text):
    return AESGCM(key).encrypt(nonce, text, None)


def unseal(key, nonce, text):
    try:
        return AESGCM(key).decrypt(nonce, text, None)
    except InvalidTag:
        raise Refused("forged") from None


def ctr_xor(key, nonce, text):
    return Cipher(algorithms.AES(key), modes.CTR(nonce + bytes([0, 0, 0, 1]))).encryptor().update(text)


def xor(a, b):
    assert len(a) == len(b)
    return (int.from_bytes(a) ^ int.from_bytes(b)).to_bytes(len(a))


def extract(salt, ikm):
    return hmac.digest(salt, ikm, "sha256")


def expand(prk, label, length):
    out, block = b"", b""
    for n in range(1, -(-length // 32) + 1):
        block = hmac.digest(prk, block + label + bytes([n]), "sha256")
        out += block
    return out[:length]


def x25519(private, public):
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise Refused("all-zero X25519") from None


def x25519_public(private):
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def blake2s_mac(key, text):
    return hashlib.blake2s(text, digest_size=16, key=key).digest()


def mlkem_encapsulate(public, m):
    """A shared secret and its ciphertext. `m` is the random input of FIPS 203, algorithm 17."""
    return ML_KEM_768._encaps_internal(public, m)


def mlkem_public_is_sound(public):
    """The input check of FIPS 203, 7.2: 768 numbers of 12 bits, each below q."""
    numbers = int.from_bytes(public[:1152], "little")
    return len(public) == 1184 and all(numbers >> 12 * i & 0xFFF < 3329 for i in range(768))


# ---- 2 Sizes ----


class Class:
    """2.2: a class, and the lengths of 2.3 in a chain of `hops` key hops and this suite (5.1)."""

    token = 0  # length of what the exit's part of an onion ends with: nothing in free classes (9.8.1)

    def __init__(self, name, hops, suite):
        self.name, self.hops, self.suite = name, hops, suite
        self.number, self.payload = {"S": (1, 208), "M": (2, 1152), "L": (3, 1328)}[name]
        self.one_cell, self.longest = self.payload - 5, 8 * (self.payload - 8)

    def body(self, direction, link):
        return self.payload + 16 * (self.hops - link + 1 if direction == FORWARD else 1)

    def content(self, direction, link):
        """3.6.2: the content of a control cell."""
        return self.body(direction, link) - 16

    def cell(self, direction, link):
        return 16 + self.body(direction, link)


# ---- 3 Cell ----

DATA, SETUP, ACK, LINK = range(4)
DUMMY, KEEPALIVE, CLOCK, ASK, PART, REPORT_CELL, COMPANY, PATH, ECHO = range(9)
REACH, WINDOW = 1 << 19, 4096


class Header(collections.namedtuple("Header", "channel seq sub type klass")):
    """3.2"""

    def block(self):
        return struct.pack(">I5sBBB4x", self.channel, self.seq.to_bytes(5), self.sub, self.type, self.klass)

    @classmethod
    def parse(cls, block):
        channel, seq, sub, kind, klass, zero = struct.unpack(">I5sBBB4s", block)
        return cls(channel, int.from_bytes(seq), sub, kind, klass) if not any(zero) else None


class Window:
    """3.9. It remembers every number, which costs nothing in a check."""

    def __init__(self):
        self.highest, self.marked = -1, set()

    def check(self, seq):
        if not self.highest - WINDOW < seq <= self.highest + REACH:
            raise Refused("old" if seq <= self.highest else "ahead")

    def mark(self, seq):
        if seq in self.marked:
            raise Refused("replay")
        self.marked.add(seq)
        self.highest = max(self.highest, seq)


class Generations:
    """5.7: key and iv of every generation of one hop and direction."""

    def __init__(self, secret):
        self.secret, self.keys = secret, []

    def key(self, header):
        """The key for a data cell, and its nonce (3.3)."""
        while len(self.keys) <= header.seq >> 20:
            self.keys.append((expand(self.secret, b"eddy1 key", 16), expand(self.secret, b"eddy1 iv", 12)))
            self.secret = expand(self.secret, b"eddy1 next", 32)
        key, iv = self.keys[header.seq >> 20]
        return key, xor(iv, bytes([header.type, header.sub]) + bytes(5) + header.seq.to_bytes(5))


def wrap_forward(hops, header, inner):
    """3.4: BODY_1 .. BODY_h of the secrets of hops 1..h."""
    bodies = [inner]
    for hop in reversed(hops):
        bodies.insert(0, seal(*hop.forward.key(header), bodies[0]))
    return bodies[:-1]


def unwrap_backward(hops, header, body):
    """3.5 at the entry."""
    for hop in hops[:-1]:
        body = ctr_xor(*hop.backward.key(header), body)
    return unseal(*hops[-1].backward.key(header), body)


# 3.10 Inner frames

PAD, DGRAM, FRAG, OPEN, CLOSE, STATUS, MOVE, REPORT, PING, PONG, PEER, FROM, SESSION, AGAIN = range(14)
BOTH_WAYS = {DGRAM, FRAG, CLOSE, PING, PONG}
FREE_FRAMES = {FORWARD: BOTH_WAYS | {OPEN, MOVE}, BACKWARD: BOTH_WAYS | {STATUS, REPORT, PEER, FROM}}
OPENED, REFUSED_BY_POLICY, UNREACHABLE, UNKNOWN_FLOW = 0, 1, 3, 5


def address(host, port):
    return b"\x04" + socket.inet_aton(host) + port.to_bytes(2)


def frame(kind, *fields):
    """A frame of numbers of 16 bits and byte strings."""
    return bytes([kind]) + b"".join(x if isinstance(x, bytes) else x.to_bytes(2) for x in fields)


def datagrams_max(payload):
    """3.10.11"""
    return 8 if payload == 208 else 32


def datagram_frames(size, flow, number, data, less=0):
    """3.11.1: a DGRAM, or FRAGs that need a cell each. In paced classes they are `less` shorter (9.11.7, 9.13.6)."""
    if len(data) <= size.one_cell - less:
        return [frame(DGRAM, flow, len(data), data)]
    part = size.payload - 8 - less
    parts = [data[at : at + part] for at in range(0, len(data), part)]
    assert len(parts) <= 8
    last = [0] * (len(parts) - 1) + [0x80]
    return [frame(FRAG, flow, number, bytes([last[i] | i]), len(parts[i]), parts[i]) for i in range(len(parts))]


class Reader:
    def __init__(self, text):
        self.text, self.at = text, 0

    def take(self, length):
        self.at += length
        if self.at > len(self.text):
            raise Refused("bad-frames")
        return self.text[self.at - length : self.at]

    def number(self, length=2):
        return int.from_bytes(self.take(length))

    def address(self, name):
        """3.10.3: the bytes of one address."""
        began, family = self.at, self.number(1)
        if family == 4:
            self.take(4)
        elif family == 6:
            if self.take(16)[:12] == bytes(10) + b"\xff\xff":
                raise Refused("bad-frames")
        elif family == 3 and name:
            text = self.take(self.number(1))
            if not text or not all(chr(c).isascii() and (chr(c).isalnum() or c in b"-_.") for c in text):
                raise Refused("bad-frames")
        else:
            raise Refused("bad-frames")
        self.take(2)
        return self.text[began : self.at]


def parse_frames(inner, direction, kinds=None, payload=None):
    """3.10.1: all frames of a cell as tuples, and what follows them; or a refusal of the cell. `kinds` are
    those that may travel here, of a free class by default, and `payload` is P if `inner` is shorter."""
    out, r, kinds = [], Reader(inner), kinds or FREE_FRAMES[direction]
    while r.at < len(inner) and inner[r.at] != PAD:
        kind = r.number(1)
        if kind not in kinds:
            raise Refused("bad-frames")
        if kind in (PING, PONG):
            out.append((kind, r.take(8)))
            continue
        if kind == REPORT:
            out.append((kind, r.number(5), r.number(5)))
            continue
        if kind == SESSION:
            out.append((kind, r.take(16)))
            continue
        if kind == AGAIN:  # 9.12.3
            again = r.take(r.number())
            frames, rest = parse_frames(again, direction, kinds - {AGAIN}, payload or len(inner))
            if rest or not frames:
                raise Refused("bad-frames")
            out.append((kind, frames))
            continue
        fields = [kind, r.number()]
        if kind == FRAG:
            fields += [r.number(), r.number(1)]
            if fields[3] & 0x78:
                raise Refused("bad-frames")
        if kind in (DGRAM, FRAG):
            fields.append(r.take(r.number()))
        elif kind == OPEN:
            fields += [r.number(), r.take(16), r.address(name=True)]
        elif kind == STATUS:
            fields.append(r.number(1))
            if fields[2] > 6:
                raise Refused("bad-frames")
        elif kind == MOVE:
            fields.append(r.take(16))
        elif kind in (PEER, FROM):
            fields.append(r.address(name=False))
            if kind == FROM:
                fields.append(r.take(r.number()))
        out.append(tuple(fields))
    if sum(one[0] in (DGRAM, FRAG, FROM) for one in out) > datagrams_max(payload or len(inner)):
        raise Refused("bad-frames")
    return out, inner[r.at :]


class Reassembly:
    """3.11.3, without its bounds: datagrams of a channel and direction from FRAGs."""

    def __init__(self, size, less=0):
        self.part, self.open = size.payload - 8 - less, {}

    def add(self, flow, number, byte, data):
        """The datagram, if this fragment completes it."""
        index, last = byte & 7, byte >> 7
        if not data or len(data) > self.part or not last and len(data) < self.part:
            raise Refused("bad fragment")
        parts = self.open.setdefault((flow, number), {})
        parts[index] = (data, last)
        end = [i for i in parts if parts[i][1]]
        if not end or len(parts) <= end[0]:
            return None
        del self.open[flow, number]
        return b"".join(parts[i][0] for i in range(end[0] + 1))


# ---- 4 Link handshake ----


class Noise:
    """4.1: one handshake of two messages, as in sections 5, 7 and 9 of the Noise specification."""

    PATTERNS = {
        "NK": (("e", "es"), ("e", "ee")),
        "IKpsk2": (("e", "es", "s", "ss"), ("e", "ee", "se", "psk")),
    }

    def __init__(self, pattern, initiator, prologue, responder_public, private=None, psk=bytes(32)):
        self.messages, self.initiator, self.psk = list(self.PATTERNS[pattern]), initiator, psk
        self.ephemeral, self.private = os.urandom(32), private
        self.their_ephemeral, self.their_public = None, responder_public if initiator else None
        self.mix_psk = "psk" in pattern
        name = f"Noise_{pattern}_25519_AESGCM_SHA256".encode()
        self.hash = self.chaining = name.ljust(32, b"\0")  # no name here is longer than 32
        self.key, self.count = None, 0
        self.mix_hash(prologue)
        self.mix_hash(responder_public)  # the pre-message `<- s`

    def mix_hash(self, data):
        self.hash = hashlib.sha256(self.hash + data).digest()

    def mix_key(self, data):
        out = expand(extract(self.chaining, data), b"", 64)
        self.chaining, self.key, self.count = out[:32], out[32:], 0

    def mix_key_and_hash(self, data):
        out = expand(extract(self.chaining, data), b"", 96)
        self.mix_hash(out[32:64])
        self.chaining, self.key, self.count = out[:32], out[64:], 0

    def nonce(self):
        """Noise, 12.4: 32 zero bits and a counter. Every text of these patterns has a key before it."""
        self.count += 1
        return bytes(4) + (self.count - 1).to_bytes(8)

    def encrypt(self, text):
        """EncryptAndHash"""
        out = AESGCM(self.key).encrypt(self.nonce(), text, self.hash)
        self.mix_hash(out)
        return out

    def decrypt(self, text):
        """DecryptAndHash"""
        try:
            out = AESGCM(self.key).decrypt(self.nonce(), text, self.hash)
        except InvalidTag:
            raise Refused("handshake-forged") from None
        self.mix_hash(text)
        return out

    def mix_dh(self, token):
        """`es` is the initiator's ephemeral with the responder's static, and so on."""
        mine, theirs = token if self.initiator else token[::-1]
        private = self.ephemeral if mine == "e" else self.private
        self.mix_key(x25519(private, self.their_ephemeral if theirs == "e" else self.their_public))

    def take_ephemeral(self, public):
        self.mix_hash(public)
        if self.mix_psk:
            self.mix_key(public)

    def write(self, payload):
        out = b""
        for token in self.messages.pop(0):
            if token == "e":
                out += x25519_public(self.ephemeral)
                self.take_ephemeral(out)
            elif token == "s":
                out += self.encrypt(x25519_public(self.private))
            elif token == "psk":
                self.mix_key_and_hash(self.psk)
            else:
                self.mix_dh(token)
        return out + self.encrypt(payload)

    def read(self, message):
        for token in self.messages.pop(0):
            if token == "e":
                self.their_ephemeral, message = message[:32], message[32:]
                self.take_ephemeral(self.their_ephemeral)
            elif token == "s":
                self.their_public, message = self.decrypt(message[:48]), message[48:]
            elif token == "psk":
                self.mix_key_and_hash(self.psk)
            else:
                self.mix_dh(token)
        return self.decrypt(message)

    def split(self):
        out = expand(extract(self.chaining, b""), b"", 64)
        return out[:32], out[32:]


# 4.2 Datagrams

HALF, MESSAGE_2, ANSWER = 1, 2, 3
MESSAGE_2_LENGTH, ANSWER_LENGTH = 1176, 64
COOKIE, CHALLENGE = 0, 1


def handshake_datagram(kind, part, index, noise, receiver_public):
    out = struct.pack(">BBHI", kind, part, 0, index) + noise
    return out + mac1(receiver_public, out) + bytes(16)


def with_mac2(half, cookie):
    """4.9.2"""
    return half[:-16] + blake2s_mac(cookie, half[:-16])


def make_cookie(secret, source):
    """4.9.1"""
    host, port = source
    return blake2s_mac(secret, bytes(10) + b"\xff\xff" + socket.inet_aton(host) + port.to_bytes(2))


def answer_keys(part, nonce, responder_public, half):
    """4.9.6: key and nonce. `half` is part 0 of the message 1."""
    label = b"eddy1 cookie" if part == COOKIE else b"eddy1 stamp"
    out = expand(extract(nonce, responder_public + half[-32:-16]), label, 28)
    return out[:16], out[16:]


def make_answer(part, index, responder_public, half, text):
    nonce = os.urandom(24)
    head = struct.pack(">BBHI", ANSWER, part, 0, index)
    return head + nonce + seal(*answer_keys(part, nonce, responder_public, half), text)


def open_answer(part, datagram, responder_public, half):
    nonce, sealed = datagram[8:32], datagram[32:]
    return unseal(*answer_keys(part, nonce, responder_public, half), sealed)


def mac1(receiver_public, text):
    return blake2s_mac(hashlib.blake2s(b"mac1----" + receiver_public).digest(), text)


def parse_handshake(datagram, receiver_public):
    """Kind, part, index and noise bytes."""
    kind, part, zero, index = struct.unpack_from(">BBHI", datagram)
    if not hmac.compare_digest(datagram[-32:-16], mac1(receiver_public, datagram[:-32])):
        raise Refused("bad-mac1")
    if zero:
        raise Refused("handshake-malformed")
    return kind, part, index, datagram[8:-32]


class Slot:
    """4.3: the keys of one handshake, with the control numbers sent (3.8.4) and received."""

    def __init__(self, handshake_hash, k1, k2, shared):
        prk = extract(handshake_hash, k1 + k2 + shared)
        self.header = {way: expand(prk, b"eddy1 hdr " + way.encode(), 16) for way in (FORWARD, BACKWARD)}
        self.control = {way: expand(prk, b"eddy1 ctl " + way.encode(), 28) for way in (FORWARD, BACKWARD)}
        self.resume = expand(prk, b"eddy1 resume", 32)
        self.number, self.window, self.made = 0, Window(), time.monotonic()
        self.source = None  # where the handshake came from

    def cell(self, way, header, body):
        return aes_ecb(self.header[way], header.block()) + body

    def open_header(self, way, cell):
        return Header.parse(aes_ecb(self.header[way], cell[:16], decrypt=True))

    def control_nonce(self, way, header):
        """3.6: key and nonce."""
        return self.control[way][:16], xor(self.control[way][16:], header.block()[:12])

    def control_cell(self, way, header, content):
        return self.cell(way, header, seal(*self.control_nonce(way, header), content))

    def open_control(self, way, header, body):
        return unseal(*self.control_nonce(way, header), body)


class Link:
    """One end of a link: slots (4.4) and the cells under them."""

    slot_type = Slot

    def __init__(self, size, number, initiator):
        self.size, self.number = size, number
        self.sends, self.receives = (FORWARD, BACKWARD) if initiator else (BACKWARD, FORWARD)
        self.current = self.next = self.previous = None
        self.address, self.promotions = None, 0
        self.heard_at = self.sent_at = 0.0
        self.channels, self.setups = {}, {}

    def slots(self):
        return [slot for slot in (self.current, self.next, self.previous) if slot]

    def sources(self):
        """4.4.6: where cells may come from."""
        return {self.address, *(slot.source for slot in self.slots())}

    def data_cell(self, header, body, slot=None):
        self.sent_at = time.monotonic()
        return (slot or self.current).cell(self.sends, header, body)

    def control_cell(self, kind, channel, sub, content):
        """3.6, content filled up with zeros."""
        self.sent_at = time.monotonic()
        header = Header(channel, self.current.number, sub, kind, self.size.number)
        self.current.number += 1
        content = content.ljust(self.size.content(self.sends, self.number), b"\0")
        return self.current.control_cell(self.sends, header, content)

    def header_under(self, slot, cell):
        """3.7, step 3: None if it is not under this slot."""
        header = slot.open_header(self.receives, cell)
        return header if header and header.type <= LINK else None

    def open(self, cell, *context):
        """3.7, steps 1 to 4: slot and header."""
        if len(cell) != self.size.cell(self.receives, self.number):
            raise Refused("length")
        for slot in self.slots():
            header = self.header_under(slot, cell, *context)
            if header and header.klass == self.size.number:
                break
        else:
            raise Refused("header")
        if header.type == (ACK if self.receives == FORWARD else SETUP):
            raise Refused("kind")
        return slot, header

    def promote(self, slot, source):
        """4.4.3"""
        if slot is self.next:
            self.previous, self.current, self.next = self.current, slot, None
            self.promotions += 1
            self.address = source


# ---- 5 Channel setup ----


SetupKeys = collections.namedtuple("SetupKeys", "x25519 mlkem d")  # public, with D_i
Ephemeral = collections.namedtuple("Ephemeral", "x m")  # what an entry draws for a hop; m is for ML-KEM


def new_ephemeral():
    return Ephemeral(os.urandom(32), os.urandom(32))


class Suite1:
    """5.1: H_i and ss_i by X25519. `public` are the hop's SetupKeys, `private` its private ones."""

    number, head = 1, 32

    @staticmethod
    def encapsulate(public, ephemeral):
        """At the entry: H_i and ss_i."""
        return x25519_public(ephemeral.x), x25519(ephemeral.x, public.x25519)

    @staticmethod
    def decapsulate(private, head):
        """At the hop: ss_i."""
        return x25519(private.x25519, head[:32])


class Suite2:
    """5.1: H_i and ss_i by X25519 and ML-KEM-768."""

    number, head = 2, 32 + 1088

    @staticmethod
    def encapsulate(public, ephemeral):
        head, shared = Suite1.encapsulate(public, ephemeral)
        post_quantum, ciphertext = mlkem_encapsulate(public.mlkem, ephemeral.m)
        return head + ciphertext, shared + post_quantum

    @staticmethod
    def decapsulate(private, head):
        return Suite1.decapsulate(private, head) + ML_KEM_768.decaps(private.mlkem, head[32:])


SUITES = {1: Suite1, 2: Suite2}


class Layer:
    """PRK0_i: the AEAD of S_i (5.1)."""

    def __init__(self, size, i, d, shared, head):
        self.prk = extract(b"eddy/1" + bytes([size.suite.number, i, size.hops]) + d, shared + head)
        out = expand(self.prk, b"eddy1 setup", 28)
        self.key, self.nonce = out[:16], out[16:]


class HopSecrets:
    """PRK1_i and what follows from it (5.1)."""

    def __init__(self, prk0, shared, hop_public):
        prk = extract(prk0, shared + hop_public)
        self.confirm, self.ack = expand(prk, b"eddy1 confirm", 16), expand(prk, b"eddy1 ack", 28)
        self.sec = expand(prk, b"eddy1 fwd", 32), expand(prk, b"eddy1 bwd", 32)
        self.forward, self.backward = map(Generations, self.sec)

    def ack_layer(self, sub, content):
        """5.4.3"""
        return ctr_xor(self.ack[:16], xor(self.ack[16:], bytes(11) + bytes([sub])), content)


# 5.2 Onion and info


def setup_info(size, lifetime, first=0):
    return bytes([1, size.suite.number, size.number, 0]) + lifetime.to_bytes(2) + first.to_bytes(5) + bytes(5)


def make_setup(size, keys, ephemerals, infos, flip=None, token=b""):
    """S_1 .. S_h and the layers, for the SetupKeys of the hops. `flip` is (i, at): damages S_i inside sound layers.
    `token` is for the exit, in paced classes (9.8.1)."""
    onions, layers = [token], []
    for i in range(size.hops, 0, -1):
        head, shared = size.suite.encapsulate(keys[i - 1], ephemerals[i - 1])
        layers.insert(0, Layer(size, i, keys[i - 1].d, shared, head))
        onion = head + seal(layers[0].key, layers[0].nonce, infos[i - 1] + onions[0])
        onions.insert(0, flip_bit(onion, flip[1]) if flip and flip[0] == i else onion)
    return onions[:-1], layers


def open_setup(size, i, private, d, onion):
    """5.3.6 at hop i: the layer, info and S_{i+1}."""
    head, sealed = onion[: size.suite.head], onion[size.suite.head :]
    layer = Layer(size, i, d, size.suite.decapsulate(private, head), head)
    try:
        text = unseal(layer.key, layer.nonce, sealed)
    except Refused:
        raise Refused("setup-invalid") from None
    return layer, text[:16], text[16:]


def replay_tag(size, onion):
    return hashlib.sha256(onion[: size.suite.head]).digest()[:16]


def setup_length(size, link):
    return (size.suite.head + 16 + 16) * (size.hops - link + 1) + size.token


# 5.3 Carriage


def shard_counts(size, link):
    """5.3.1: k and r."""
    k = -(-setup_length(size, link) // size.content(FORWARD, link))
    return k, max(3, -(-k // 4))


@functools.cache
def times(a):
    """5.3.2: the products of a with every byte in GF(2^8)."""

    def product(b):
        out, power = 0, a  # a times x^bit
        for bit in range(8):
            out ^= power * (b >> bit & 1)
            power = power << 1 ^ (0x11D if power & 0x80 else 0)
        return out

    return bytes(map(product, range(256)))


def shard(known, j):
    """5.3.2: p(j) from k shards by index, with Lagrange's formula. In GF(2^8), + and - are XOR."""
    out = bytes(len(next(iter(known.values()))))
    for i, content in known.items():
        above = below = 1
        for other in known.keys() - {i}:
            above, below = times(above)[j ^ other], times(below)[i ^ other]
        factor = times(below).index(above)
        out = xor(out, content.translate(times(factor)))
    return out


def setup_shards(size, link, onion, filling=None, count=None):
    """5.3.1: the contents of the k + r type 1 cells on a link, or of `count` (9.8.3)."""
    k, r = shard_counts(size, link)
    length = size.content(FORWARD, link)
    text = onion + (filling or os.urandom(k * length - len(onion)))
    known = {i: text[i * length : (i + 1) * length] for i in range(k)}
    return [*known.values(), *(shard(known, j) for j in range(k, count or k + r))]


def join_shards(size, link, known):
    """5.3.2: S_i from any k shards by index."""
    k, _ = shard_counts(size, link)
    return b"".join(shard(known, j) for j in range(k))[: setup_length(size, link)]


# 5.4 Ack

ACK_CELLS = 3  # of a content
ACK_PERIOD = 0.005  # 5.4.5, for a node that mixes for at most 5 ms


def ack_contents(size):
    """5.4: K."""
    return -(-size.hops // (size.payload // 48))


def ack_place(size, i):
    """5.4: content and offset of slot i."""
    sub, slot = divmod(size.hops - i, size.payload // 48)
    return sub, 48 * slot


def write_ack_slot(size, i, hop_public, secrets, sub, content):
    place, at = ack_place(size, i)
    return content[:at] + hop_public + secrets.confirm + content[at + 48 :] if place == sub else content


def read_ack(size, layers, ephemerals, contents):
    """5.4.7: the secrets of every hop."""
    secrets, contents = [], list(contents)
    for i in range(1, size.hops + 1):
        sub, at = ack_place(size, i)
        public, confirm = contents[sub][at : at + 32], contents[sub][at + 32 : at + 48]
        hop = HopSecrets(layers[i - 1].prk, x25519(ephemerals[i - 1].x, public), public)
        if not hmac.compare_digest(hop.confirm, confirm):
            raise Refused("ack-invalid")
        contents = [hop.ack_layer(sub, content) for sub, content in enumerate(contents)]
        secrets.append(hop)
    return secrets


def flip_bit(text, at):
    at %= len(text)
    return text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :]
