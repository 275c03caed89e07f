"""Section 7 of docs/SPEC.md: what is signed, its encodings and its times. carriage.py has how it travels.

Numbers in comments and docstrings are clauses. Hops count from 1."""

import base64
import collections
import hashlib
import os
import socket
import struct
import tomllib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from kyber_py.ml_kem import ML_KEM_768

from .paced import PacedClass, PacedTerms
from .protocol import (
    ASK, PART, SUITES,
    Class, Reader, Refused, SetupKeys, mlkem_public_is_sound, x25519, x25519_public,
)  # fmt: skip

# ---- 7.1, 7.2 Keys and signatures ----

NODE, EPOCH, BUNDLE = b"eddy node", b"eddy epoch", b"eddy bundle"
MIX, EXIT = 1, 2

NodeKeys = collections.namedtuple("NodeKeys", "identity signing noise")  # private keys


def new_node_keys():
    return NodeKeys(os.urandom(32), os.urandom(32), os.urandom(32))


def ed25519_public(private):
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def sign(private, label, text):
    return Ed25519PrivateKey.from_private_bytes(private).sign(label + text)


def verify(public, label, text, signature):
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, label + text)
    except (InvalidSignature, ValueError):
        raise Refused("signature") from None


def sha256(text):
    return hashlib.sha256(text).digest()


def require(condition, what):
    if not condition:
        raise Refused(what)


# ---- 7.3 Node descriptor ----

ClassEntry = collections.namedtuple("ClassEntry", "klass lanes addresses names")  # (host, port) and (name, port)


class Descriptor(
    collections.namedtuple(
        "Descriptor", "role revision not_before not_after identity noise signing floor entries signature"
    )
):
    def body(self):
        """Everything but the signature."""
        out = struct.pack(">4sBBBBQQQ", b"eddy", 2, self.role, len(self.entries), 0, *self[1:4])
        out += self.identity + self.noise + self.signing + self.floor.to_bytes(8)
        for one in self.entries:
            out += bytes([one.klass, one.lanes, len(one.addresses), len(one.names)])
            out += b"".join(encode_address(*address) for address in one.addresses)
            for name, port in one.names:
                out += bytes([len(name)]) + name.encode() + port.to_bytes(2)
        return out

    def text(self):
        return self.body() + self.signature

    def hash(self):
        return sha256(self.body())

    def order(self):
        """7.3.4: of one identity the highest counts."""
        return self.revision, self.hash()

    def signed(self, identity):
        return self._replace(signature=sign(identity, NODE, self.body()))

    @classmethod
    def parse(cls, text):
        """7.3.1, and the signature of 7.2."""
        require(len(text) <= 2048, "length of a descriptor")
        r = Reader(text)
        magic, version, role, count, zero, *times = struct.unpack(">4sBBBBQQQ", r.take(32))
        require((magic, version, zero) == (b"eddy", 2, 0), "head of a descriptor")
        keys = [r.take(32) for _ in range(3)]
        floor, entries = r.number(8), tuple(read_entry(r) for _ in range(count))
        out = cls(role, *times, *keys, floor, entries, r.take(64))
        require(r.at == len(text) and out.text() == text, "encoding of a descriptor")
        require(role in (MIX, EXIT) and 1 <= count <= 6, "role or classes")
        numbers = [one.klass for one in entries]
        require(numbers == sorted(set(numbers)) and set(numbers) <= CLASS_NUMBERS, "classes")
        require(out.not_before < out.not_after and floor <= out.revision < 1 << 63, "times or revision")
        for one in entries:
            require(1 <= one.lanes <= (64 if role == MIX and one.klass < 0x10 else 1), "lanes")
            require(len(one.addresses) <= 8 and len(one.names) <= 4, "number of addresses or names")
            ways = one.addresses + one.names
            require(ways and len(set(ways)) == len(ways), "addresses and names")
            require(all(0 < port <= 65536 - one.lanes for _, port in ways), "port")
        verify(out.identity, NODE, out.body(), out.signature)
        return out

    def is_valid(self, seconds):
        return self.not_before <= seconds < self.not_after

    def address(self, klass):
        """The preferred address of a class."""
        return next(one.addresses[0] for one in self.entries if one.klass == klass)


def encode_address(host, port):
    if ":" in host:
        return b"\6" + socket.inet_pton(socket.AF_INET6, host) + port.to_bytes(2)
    return b"\4" + socket.inet_aton(host) + bytes(12) + port.to_bytes(2)


def read_entry(r):
    klass, lanes, addresses, names = r.take(4)
    return ClassEntry(
        klass, lanes, tuple(read_address(r) for _ in range(addresses)), tuple(read_name(r) for _ in range(names))
    )


def read_address(r):
    family, host, port = r.number(1), r.take(16), r.number()
    require(family in (4, 6) and not (family == 6 and host[:12] == bytes(10) + b"\xff\xff"), "address")
    text = socket.inet_ntop(socket.AF_INET, host[:4]) if family == 4 else socket.inet_ntop(socket.AF_INET6, host)
    return text, port


def read_name(r):
    name = r.take(r.number(1))
    allowed = b"abcdefghijklmnopqrstuvwxyz0123456789-_."
    require(1 <= len(name) <= 253 and all(c in allowed for c in name), "name")
    return name.decode(), r.number()


# ---- 7.4 Chain ----

CLASSES = {"S": 1, "M": 2, "L": 3}
CLASS_NUMBERS = {1, 2, 3, 0x11, 0x12, 0x13}
PACED = {  # 9.16: bounds and default of each key, in the order of the id
    "period_ms": (5, 100, 10), "cells": (1, 32, 1), "rounds": (1, 8192, 2048), "copies": (1, 4, 2), "gap": (1, 4, 1),
    "repeat": (0, 1, 0), "n_min": (1, 16384, 8), "seats": (1, 16384, 256), "loops": (0, 64, 2), "slack_ms": (1, 500, 8),
}  # fmt: skip


class Terms(collections.namedtuple("Terms", "suite interval epoch classes identities paced", defaults=((),))):
    """What all nodes and users of a chain agree on. `classes` are (number, largest mixing delay ms, lifetime s) of the
    free classes, `paced` are PacedTerms."""

    @property
    def id(self):
        """The chain id."""
        hops, classes = len(self.identities), sorted(self.classes)
        count = len(classes) + len(self.paced)
        out = b"eddy chain" + struct.pack(">BBIIBB", 1, self.suite, self.interval, self.epoch, hops, count)
        out += b"".join(struct.pack(">BIH", *one) for one in classes) + b"".join(one.encode() for one in sorted(self.paced))
        return sha256(out + b"".join(self.identities))

    @property
    def hops(self):
        return len(self.identities)

    @property
    def size(self):
        """Of the class that nodes serve: the first (2.2)."""
        number = self.classes[0][0] if self.classes else self.paced[0].klass
        name = next(name for name, one in CLASSES.items() if one == number & 0x0F)
        return (Class if self.classes else PacedClass)(name, self.hops, SUITES[self.suite])

    @property
    def lifetime(self):
        return self.classes[0][2]

    # 7.6, 7.9, with times in ms since 1970

    def interval_at(self, ms):
        return ms // (1000 * self.interval)

    def epoch_of(self, n):
        """7.6: e(n)"""
        return (60 * n * self.interval - self.epoch) // (60 * self.epoch)

    def switch(self, e):
        """7.6: the first interval of an epoch."""
        return -(-(60 * e * self.epoch + self.epoch) // (60 * self.interval))

    def start(self, n):
        return 1000 * n * self.interval

    def published(self, e):
        """7.9.1"""
        return (6 * e - 1) * 1000 * self.epoch // 6

    def signed_from(self, n):
        """7.7.1"""
        return self.start(n) - 1000 * self.interval // 5

    def takes_setups(self, e):
        """7.9.2: from and until when."""
        return self.start(self.switch(e) - 1), self.start(self.switch(e + 1)) + 1000 * self.epoch // 6


def read_paced(one, hops):
    """9.16: PacedTerms, whose bounds hold."""
    values = [one.get(key, default) for key, (_, _, default) in PACED.items()]
    for (key, (least, most, _)), value in zip(PACED.items(), values, strict=True):
        require(least <= value <= most, key)
    steps = one.get("steps_ms", [5] * (hops - 1))
    require(len(steps) == hops - 1 and all(1 <= step <= 500 for step in steps), "steps_ms")
    named = dict(zip(PACED, values, strict=True))
    require(named["rounds"].bit_count() == 1 and named["n_min"] <= named["seats"], "rounds or n_min")
    return PacedTerms(0x10 | CLASSES[one["class"]], one["name"], *values, steps)


def read_chain(text):
    """Terms and descriptors of a chain.toml."""
    file = tomllib.loads(text)
    free = [one for one in file["class"] if "period_ms" not in one]
    classes = [(CLASSES[one["class"]], one["mixing_delay_ms"], one["lifetime_s"]) for one in free]
    paced = tuple(read_paced(one, len(file["hop"])) for one in file["class"] if "period_ms" in one)
    hops = [[base64.b64decode(hop[key], validate=True) for key in ("identity", "descriptor")] for hop in file["hop"]]
    identities = [identity for identity, _ in hops]
    terms = Terms(file["suite"], file["interval_s"], file["epoch_s"], classes, identities, paced)
    require(terms.id.hex() == file["id"], "chain id")
    require(terms.suite in SUITES and 2 <= terms.hops <= 8 and len(set(identities)) == terms.hops, "hops")
    require(1 <= terms.interval <= 600 and 10 * terms.interval <= terms.epoch <= 86400, "interval or epoch")
    require(all(delay <= 60000 and 1 <= lifetime <= 3600 for _, delay, lifetime in classes), "class")
    descriptors = [Descriptor.parse(descriptor) for _, descriptor in hops]
    for i, one in enumerate(descriptors, 1):
        require(one.identity == identities[i - 1], "identity of a descriptor")
        require(one.role == (EXIT if i == terms.hops else MIX), "role of a descriptor")
        numbers = {klass for klass, _, _ in classes} | {one.klass for one in paced}
        require(numbers <= {entry.klass for entry in one.entries}, "classes of a descriptor")
    for keys in ([one.noise for one in descriptors], [one.signing for one in descriptors]):
        require(len(set(keys)) == terms.hops, "keys of descriptors")
    return terms, descriptors


# ---- 7.5 Epoch record ----


class Record(collections.namedtuple("Record", "identity certificate revision epoch draw x25519 mlkem signature")):
    """`certificate` is the hash of the descriptor whose signing key signs the record."""

    def body(self):
        numbers = struct.pack(">QQQ", self.revision, self.epoch, self.draw)
        return self.identity + self.certificate + numbers + self.x25519 + self.mlkem

    def travel(self):
        return self.body()[64:] + self.signature

    def hash(self):
        return sha256(self.body())

    def order(self):
        """7.5.2: of one hop and epoch the highest counts."""
        return self.revision, self.draw, self.hash()

    def signed(self, terms, signing):
        return self._replace(signature=sign(signing, EPOCH, terms.id + self.body()))

    def setup_keys(self, terms, i):
        """With D_i."""
        return SetupKeys(self.x25519, self.mlkem, sha256(self.body() + terms.id + bytes([i, terms.hops])))

    @classmethod
    def parse(cls, terms, descriptors, text):
        """A record as it travels, of the hop with these descriptors."""
        r = Reader(text)
        revision, epoch, draw = struct.unpack(">QQQ", r.take(24))
        x, mlkem, signature = r.take(32), r.take(1184 if terms.suite == 2 else 0), r.take(64)
        require(r.at == len(text) and draw < 1 << 63, "form of a record")
        require(not mlkem or mlkem_public_is_sound(mlkem), "encapsulation key")
        x25519(os.urandom(32), x)  # refuses low order
        # Of two descriptors with one revision, the signature shows which is meant.
        for one in [one for one in descriptors if one.revision == revision]:
            out = cls(one.identity, one.hash(), revision, epoch, draw, x, mlkem, signature)
            try:
                verify(one.signing, EPOCH, terms.id + out.body(), signature)
            except Refused:
                continue
            return out
        raise Refused("record")


SetupPrivate = collections.namedtuple("SetupPrivate", "x25519 mlkem")


def draw_keys(terms, descriptor, signing, epoch, draw):
    """A record and its private keys."""
    x, (public, private) = os.urandom(32), ML_KEM_768.keygen() if terms.suite == 2 else (b"", b"")
    out = Record(
        descriptor.identity, descriptor.hash(), descriptor.revision, epoch, draw, x25519_public(x), public, b""
    )
    return out.signed(terms, signing), SetupPrivate(x, private)


# ---- 7.6 Bundle ----


def bundle_hash(terms, n, records):
    """Of records in the order of the hops."""
    ds = [record.setup_keys(terms, i).d for i, record in enumerate(records, 1)]
    return sha256(terms.id + n.to_bytes(8) + b"".join(ds))


class Bundle(collections.namedtuple("Bundle", "n records hash signatures")):
    """Signatures by hop: some, or all."""

    def setup_keys(self, terms):
        return [record.setup_keys(terms, i) for i, record in enumerate(self.records, 1)]

    def item(self):
        """7.8, item 0x30"""
        tags = b"".join(record.hash()[:16] for record in self.records)
        present = sum(1 << hop - 1 for hop in self.signatures)
        signatures = b"".join(self.signatures[hop] for hop in sorted(self.signatures))
        return self.n.to_bytes(8) + self.hash + tags + bytes([present]) + signatures

    @staticmethod
    def split(hops, text):
        """Interval, hash, tags of records, and signatures by hop."""
        r = Reader(text)
        n, hash_, tags = r.number(8), r.take(32), [r.take(16) for _ in range(hops)]
        present = r.number(1)
        signatures = {hop: r.take(64) for hop in range(1, hops + 1) if present >> hop - 1 & 1}
        require(r.at == len(text) and present and not present >> hops, "form of signatures")
        return n, hash_, tags, signatures

    @classmethod
    def parse(cls, terms, records, certificate_of, text):
        """`records(hop, epoch)` may be named; `certificate_of(record, seconds)` is a descriptor valid then."""
        n, hash_, tags, signatures = cls.split(terms.hops, text)
        found = []
        for hop, tag in enumerate(tags, 1):
            named = [one for one in records(hop, terms.epoch_of(n)) if one.hash()[:16] == tag]
            require(named, "a record that is not here")
            found.append(named[0])
        require(bundle_hash(terms, n, found) == hash_, "hash of a bundle")
        seconds = n * terms.interval
        signing = [certificate_of(record, seconds).signing for record in found]
        for hop, signature in signatures.items():
            verify(signing[hop - 1], BUNDLE, hash_, signature)
        return cls(n, found, hash_, signatures)


# ---- 7.8 Asks and parts ----

DESCRIPTOR_OF, RECORD_OF, SIGNATURES, CLOCK_ITEM = 0x10, 0x20, 0x30, 0x40
WANTS_ANSWER = 1


class Ask(collections.namedtuple("Ask", "flags clock n tag signatures descriptors records")):
    """By hop: `descriptors` are (revision, tag), `records` (draw, tag); `signatures` is one bit for each hop."""

    def content(self):
        out = struct.pack(">BBQQ8sB", ASK, self.flags, self.clock, self.n, self.tag, self.signatures)
        for descriptor, record in zip(self.descriptors, self.records, strict=True):
            out += struct.pack(">Q2sQ4s", *descriptor, *record)
        return out

    @classmethod
    def parse(cls, content, hops):
        fields = struct.unpack_from(">BQQ8sB", content, 1)
        rows = [struct.unpack_from(">Q2sQ4s", content, 27 + 22 * i) for i in range(hops)]
        return cls(*fields, [row[:2] for row in rows], [row[2:] for row in rows])


def part_contents(item, text, room):
    """7.8.2: the contents of the cells that carry an item; `room` is the length of a content."""
    id_, step = sha256(bytes([item]) + text)[:4], room - 9
    cuts = [text[at : at + step] for at in range(0, len(text), step)]
    return [bytes([PART, item]) + id_ + bytes([i]) + len(text).to_bytes(2) + cut for i, cut in enumerate(cuts)]


class Parts:
    """7.8.2, without its bounds: items of a link from their pieces."""

    def __init__(self):
        self.open = {}

    def add(self, content):
        """The item and its bytes, if this piece completes it."""
        item, id_, index, total = struct.unpack_from(">B4sBH", content, 1)
        step = len(content) - 9
        count = -(-total // step)
        require(0 < total <= 2048 and index < count, "form of a part")
        pieces = self.open.setdefault((item, id_, total), {})
        pieces[index] = content[9:]
        if len(pieces) < count:
            return None
        del self.open[item, id_, total]
        text = b"".join(pieces[i] for i in range(count))[:total]
        require(sha256(bytes([item]) + text)[:4] == id_, "id of an item")
        return item, text


class Place(collections.namedtuple("Place", "terms position descriptor")):
    """A hop as its neighbours know it."""

    @property
    def size(self):
        return self.terms.size

    @property
    def noise(self):
        return self.descriptor.noise

    @property
    def address(self):
        return self.descriptor.address(self.size.number)

    @property
    def prologue(self):
        """4.1.3"""
        return b"eddy/1" + self.terms.id + bytes([self.position, self.size.number])
