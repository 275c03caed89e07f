"""What a node holds under section 7 of docs/SPEC.md: numbers in docstrings are clauses.

The bounds of 7.5.3 are left out."""

import time

from .trust import (
    DESCRIPTOR_OF, EXIT, MIX, RECORD_OF, SIGNATURES,
    Ask, Bundle, Descriptor, Record, require,
)  # fmt: skip

ABSENT = (0, bytes(4))


def wall_ms():
    return time.time_ns() // 10**6


def brief(descriptor):
    """What an ask says of it."""
    return descriptor.revision, descriptor.hash()[:2]


class Holdings:
    """Descriptors, records and signatures that have verified."""

    def __init__(self, terms, descriptors=()):
        self.terms = terms
        self.descriptors = [[one] for one in descriptors] or [[] for _ in terms.identities]
        self.records = {}  # (hop, epoch): records
        self.signatures = {}  # n: {hop: (hash, signature)}
        self.hashes = {}  # hash: records

    @property
    def hops(self):
        return range(1, self.terms.hops + 1)

    def newest(self, hop):
        return max(self.descriptors[hop - 1], key=Descriptor.order, default=None)

    def floor(self, hop):
        return max(one.floor for one in self.descriptors[hop - 1])

    def named(self, hop, epoch):
        return self.records.get((hop, epoch), [])

    def counting(self, hop, epoch):
        """7.5.2"""
        return max(self.named(hop, epoch), key=Record.order, default=None)

    def certificate(self, record, seconds):
        """7.6.1: the descriptor that a record names, valid at this time and not revoked."""
        hop = self.terms.identities.index(record.identity) + 1
        found = [one for one in self.descriptors[hop - 1] if one.hash() == record.certificate]
        require(found and found[0].is_valid(seconds) and found[0].revision >= self.floor(hop), "certificate")
        return found[0]

    def add_descriptor(self, hop, text):
        """7.3.4: true if it is new."""
        one = Descriptor.parse(text)
        held = self.descriptors[hop - 1]
        role = EXIT if hop == self.terms.hops else MIX
        require((one.identity, one.role) == (self.terms.identities[hop - 1], role), "another node's descriptor")
        require(one.not_before <= wall_ms() // 1000, "a descriptor of the future")
        new = one not in held
        if new:
            held.append(one)
        return new

    def add_record(self, hop, text):
        """7.5.2: true if it is new."""
        one = Record.parse(self.terms, self.descriptors[hop - 1], text)
        self.certificate(one, wall_ms() // 1000)
        running = self.terms.epoch_of(self.terms.interval_at(wall_ms()))
        require(abs(one.epoch - running) <= 1, "epoch of a record")
        held = self.records.setdefault((hop, one.epoch), [])
        new = one not in held
        if new:
            held.append(one)
        return new

    def add_signatures(self, text):
        """7.8.9: of each hop the first valid signature counts."""
        bundle = Bundle.parse(self.terms, self.named, self.certificate, text)
        for hop, signature in bundle.signatures.items():
            self.add_signature(hop, bundle, signature)
        return True

    def add_signature(self, hop, bundle, signature):
        self.hashes[bundle.hash] = bundle.records
        self.signatures.setdefault(bundle.n, {}).setdefault(hop, (bundle.hash, signature))

    def signed(self, n):
        """The signatures over the hash that most hops have signed."""
        by_hash = {}
        for hop, (hash_, signature) in self.signatures.get(n, {}).items():
            by_hash.setdefault(hash_, {})[hop] = signature
        if not by_hash:
            return None
        hash_ = max(by_hash, key=lambda one: len(by_hash[one]))
        return Bundle(n, self.hashes[hash_], hash_, by_hash[hash_])

    def bundle(self, n):
        """7.6: the complete bundle for n."""
        one = self.signed(n)
        return one if one and len(one.signatures) == self.terms.hops else None

    def newest_bundle(self):
        return next(filter(None, map(self.bundle, sorted(self.signatures, reverse=True))), None)

    def lacks(self, text):
        """7.8.1: the hops of which these signatures name a record that is not here."""
        n, _, tags, _ = Bundle.split(self.terms.hops, text)
        e = self.terms.epoch_of(n)
        return {hop for hop in self.hops if all(one.hash()[:16] != tags[hop - 1] for one in self.named(hop, e))}

    def ask(self, n, flags, clock, named=()):
        """7.8.1; `named` are hops of which it reports nothing."""
        signed, e = self.signed(n), self.terms.epoch_of(n)
        records = [None if hop in named else self.counting(hop, e) for hop in self.hops]
        newest = [None if hop in named else self.newest(hop) for hop in self.hops]
        return Ask(
            flags,
            clock,
            n,
            signed.hash[:8] if signed else bytes(8),
            sum(1 << hop - 1 for hop in signed.signatures) if signed else 0,
            [brief(one) if one else (0, bytes(2)) for one in newest],
            [(one.draw, one.hash()[:4]) if one else ABSENT for one in records],
        )

    def lacking(self, ask, records, signed):
        """7.8.4: of newest descriptors, these records and these signatures, the items that an ask does not show."""
        missing = [hop for hop in self.hops
                   if records[hop - 1] and records[hop - 1].hash()[:4] != ask.records[hop - 1][1]]  # fmt: skip
        out = []
        for hop in self.hops:
            newest, theirs = self.newest(hop), ask.descriptors[hop - 1]
            named = [one for one in self.descriptors[hop - 1] if hop in missing and brief(one) != theirs
                     and one.hash() == records[hop - 1].certificate]  # fmt: skip
            if brief(newest) > theirs:
                named.append(newest)
            out += [(DESCRIPTOR_OF + hop, one.text()) for one in dict.fromkeys(named)]
        out += [(RECORD_OF + hop, records[hop - 1].travel()) for hop in missing]
        if signed:
            shown = ask.signatures if ask.tag == signed.hash[:8] else 0
            if any(not shown >> hop - 1 & 1 for hop in signed.signatures):
                out.append((SIGNATURES, signed.item()))
        return out
