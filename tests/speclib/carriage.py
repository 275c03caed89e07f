"""What a node holds and sends under section 7 of docs/SPEC.md: numbers in docstrings are clauses.

Everything is in memory, and the bounds of 7.5.3 and 7.8.7 are left out: a Python hop lives once."""

import time
from types import SimpleNamespace

from .protocol import ASK, LINK, Refused
from .trust import (
    BUNDLE, CLOCK_ITEM, DESCRIPTOR_OF, RECORD_OF, SIGNATURES, WANTS_ANSWER,
    Ask, Bundle, Descriptor, Parts, Record, bundle_hash, draw_keys, part_contents, require, sign,
)  # fmt: skip

PACE_S = 0.25  # 7.8.4
ABSENT = (0, bytes(4))


def wall_ms():
    return time.time_ns() // 10**6


class Holdings:
    """Descriptors, records and signatures that have verified."""

    def __init__(self, terms, descriptors):
        self.terms = terms
        self.descriptors = [[one] for one in descriptors]
        self.records = {}  # (hop, epoch): records
        self.signatures = {}  # n: {hop: (hash, signature)}
        self.hashes = {}  # hash: records

    @property
    def hops(self):
        return range(1, self.terms.hops + 1)

    def newest(self, hop):
        return max(self.descriptors[hop - 1], key=Descriptor.order)

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
        require((one.identity, one.role) == (held[0].identity, held[0].role), "another node's descriptor")
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

    def ask(self, n, flags, clock, bare=False):
        """7.8.1; `bare` reports neither records nor signatures (7.8.6)."""
        signed = None if bare else self.signed(n)
        records = [None if bare else self.counting(hop, self.terms.epoch_of(n)) for hop in self.hops]
        return Ask(
            flags,
            clock,
            n,
            signed.hash[:8] if signed else bytes(8),
            sum(1 << hop - 1 for hop in signed.signatures) if signed else 0,
            [self.newest(hop).revision for hop in self.hops],
            [(one.draw, one.hash()[:4]) if one else ABSENT for one in records],
        )

    def lacking(self, ask, records, signed):
        """7.8.4: of newest descriptors, these records and these signatures, the items that an ask does not show."""
        missing = [hop for hop in self.hops
                   if records[hop - 1] and records[hop - 1].hash()[:4] != ask.records[hop - 1][1]]  # fmt: skip
        out = []
        for hop in self.hops:
            first, newest = self.descriptors[hop - 1][0], self.newest(hop)
            named = [one for one in self.descriptors[hop - 1][1:] if hop in missing
                     and one.hash() == records[hop - 1].certificate]  # fmt: skip
            if newest is not first and newest.revision > ask.revisions[hop - 1]:
                named.append(newest)
            out += [(DESCRIPTOR_OF + hop, one.text()) for one in dict.fromkeys(named)]
        out += [(RECORD_OF + hop, records[hop - 1].travel()) for hop in missing]
        if signed:
            shown = ask.signatures if ask.tag == signed.hash[:8] else 0
            if any(not shown >> hop - 1 & 1 for hop in signed.signatures):
                out.append((SIGNATURES, signed.item()))
        return out


class LinkState(SimpleNamespace):
    """Of one link."""

    def __init__(self):
        super().__init__(asks={}, latest=None, parts=Parts(), paces={}, report=False, wanted=None, told=None)

    def is_due(self, key, now, slow_s):
        """7.8.4: every 250 ms, after eight times slowly."""
        times, due = self.paces.get(key, (0, 0.0))
        if now < due:
            return False
        self.paces[key] = times + 1, now + (PACE_S if times < 7 else slow_s)
        return True


class Carriage:
    """7.8: asks and parts on the links of a node."""

    def __init__(self, terms, descriptors):
        self.terms, self.holdings = terms, Holdings(terms, descriptors)
        self.states = {}  # by link
        self.slow_s, self.answers = max(terms.interval / 5, 1), 0

    def state(self, link):
        return self.states.setdefault(link, LinkState())

    def interval(self):
        """The running one."""
        return self.terms.interval_at(wall_ms())

    def epoch(self):
        return self.terms.epoch_of(self.interval())

    def bundle(self):
        """The complete bundle of the running interval."""
        return self.holdings.bundle(self.interval())

    def send(self, end, link, content):
        end.send(link, link.control_cell(LINK, 0, 0, content))

    def send_item(self, end, link, item, text):
        for content in part_contents(item, text, self.terms.size.content(link.sends, link.number)):
            self.send(end, link, content)

    def on_content(self, end, link, content):
        if content[0] == ASK:
            ask = Ask.parse(content, self.terms.hops)
            self.on_ask(end, link, ask)
        else:
            whole = self.state(link).parts.add(content)
            if whole:
                self.on_item(link, *whole)

    def on_item(self, link, item, text):
        kind, hop = item & 0xF0, item & 0x0F
        if item == CLOCK_ITEM:
            require(len(text) == 8, "form of a clock")
            self.answers += 1
        elif item == SIGNATURES:
            self.on_new(item, self.holdings.add_signatures(text))
        else:
            require(kind in (DESCRIPTOR_OF, RECORD_OF) and hop in self.holdings.hops, "item")
            add = self.holdings.add_descriptor if kind == DESCRIPTOR_OF else self.holdings.add_record
            self.on_new(item, add(hop, text))

    def on_new(self, item, is_new):
        pass


class UserCarriage(Carriage):
    """7.8.6 at an entry: asks while `wants` is set and the bundle of the running interval is missing."""

    def __init__(self, *args):
        super().__init__(*args)
        self.wants = False

    def tick(self, end, now):
        link, n = end.link, self.interval()
        if self.wants and link.current and not self.holdings.bundle(n) and self.state(link).is_due(n, now, self.slow_s):
            bare = not self.holdings.records
            self.send(end, link, self.holdings.ask(n, WANTS_ANSWER, 0, bare).content())

    def on_ask(self, _end, _link, _ask):
        raise Refused("an ask of Mix 1")


class Keys(SimpleNamespace):
    """Setup keys of an epoch: the record, its private keys, the public keys under which setups open (7.5.4)."""

    def __init__(self, terms, position, record, private):
        super().__init__(record=record, private=private, publics=[record.setup_keys(terms, position)], tags=set())


class HopCarriage(Carriage):
    """Mixes and exits: 7.7, 7.8.3 to 7.8.6, 7.9.1, 7.9.2. `keys` are the node's."""

    def __init__(self, terms, descriptors, position, keys):
        super().__init__(terms, descriptors)
        self.position, self.keys = position, keys
        self.own = {}  # Keys by epoch
        self.earlier = []  # Keys whose records other hops may have signed
        self.last_draw = 0
        self.signed = {}  # n: (hash, when)
        self.highest = {}  # (hop, epoch): the order of the highest record signed
        self.new_record_at = 0.0

    # 7.9 Times

    def epochs(self, ms):
        """Those for which there must be keys."""
        e = self.terms.epoch_of(self.terms.interval_at(ms))
        return [e, e + 1] if ms >= self.terms.published(e + 1) else [e]

    def intervals(self, ms):
        """Those that hops sign (7.7.1), and the first one of a published epoch."""
        n = self.terms.interval_at(ms)
        signed = [n, n + 1] if ms >= self.terms.signed_from(n + 1) else [n]
        first = self.terms.switch(self.epochs(ms)[-1])
        return [*signed, first] if first > signed[-1] else signed

    def draw(self, ms):
        for e in self.epochs(ms):
            if e not in self.own:
                self.last_draw = max(self.last_draw + 1, ms // 1000)
                self.publish(e, self.last_draw)
        for e in [e for e in self.own if ms >= self.terms.takes_setups(e)[1]]:
            del self.own[e]
        self.earlier = [one for one in self.earlier if one.record.epoch in self.own]

    def publish(self, e, draw):
        if e in self.own:
            self.earlier.append(self.own[e])
        record, private = draw_keys(self.terms, self.me(), self.keys.signing, e, draw)
        self.own[e] = Keys(self.terms, self.position, record, private)
        self.holdings.add_record(self.position, record.travel())

    def me(self):
        return self.holdings.newest(self.position)

    def setup_keys(self):
        """7.9.2: of the running epoch first."""
        ms, running = wall_ms(), self.epoch()
        keys = [*self.own.values(), *self.earlier]
        keys = [one for one in keys if self.terms.takes_setups(one.record.epoch)[0] <= ms]
        return sorted(keys, key=lambda one: one.record.epoch != running)

    def renew(self, descriptor):
        """7.5.4: the same keys under a newer descriptor of this node, with the next draw."""
        self.holdings.add_descriptor(self.position, descriptor.text())
        for keys in self.own.values():
            self.last_draw += 1
            record = keys.record._replace(
                certificate=descriptor.hash(), revision=descriptor.revision, draw=self.last_draw
            )
            keys.record = record.signed(self.terms, self.keys.signing)
            keys.publics = [keys.record.setup_keys(self.terms, self.position), keys.publics[0]]
            self.holdings.add_record(self.position, keys.record.travel())

    # 7.7 What a hop signs

    def sign(self, n, ms, now):
        if n in self.signed or ms < self.terms.signed_from(n) or now - self.new_record_at < 0.05:
            return
        e = self.terms.epoch_of(n)
        records = [self.holdings.counting(hop, e) for hop in self.holdings.hops]
        records[self.position - 1] = self.own[e].record if e in self.own else None
        if None in records or any(
            record.order() < self.highest.get((hop, e), record.order()) for hop, record in enumerate(records, 1)
        ):
            return
        for record in records:
            self.holdings.certificate(record, n * self.terms.interval)
        hash_ = bundle_hash(self.terms, n, records)
        others = [one for one, _ in self.holdings.signatures.get(n, {}).values()]
        if any(one != hash_ for one in others) and ms < self.terms.signed_from(n) + 50 * self.terms.interval:
            return
        self.highest.update({(hop, e): record.order() for hop, record in enumerate(records, 1)})
        self.signed[n] = hash_, now
        self.give_signature(n, records, hash_)

    def give_signature(self, n, records, hash_):
        signature = sign(self.keys.signing, BUNDLE, hash_)
        self.holdings.add_signature(self.position, Bundle(n, records, hash_, {}), signature)

    # 7.8 Carriage

    def on_new(self, item, is_new):
        if is_new and item & 0xF0 == RECORD_OF:
            self.new_record_at = time.monotonic()

    def on_item(self, link, item, text):
        self.state(link).report = True  # 7.8.5
        super().on_item(link, item, text)

    def on_ask(self, end, link, ask):
        state = self.state(link)
        if self.is_entry(link):
            require(ask.clock == 0, "clock of an entry")
            state.wanted = ask
            self.answer(end, link)
        else:
            state.latest = state.asks[self.terms.epoch_of(ask.n)] = ask

    def is_entry(self, link):
        return self.position == 1 and link.number == 1

    def answer(self, end, link):
        """7.8.6 at Mix 1."""
        state = self.state(link)
        ask = state.wanted
        bundle = self.holdings.bundle(ask.n)
        if not bundle:
            bundle = self.holdings.newest_bundle()
            if not bundle or state.told == ask.n:
                return
            state.told = ask.n
        else:
            state.wanted = None
        self.send_item(end, link, CLOCK_ITEM, wall_ms().to_bytes(8))
        for item, text in self.bundle_items(link, ask, bundle):
            self.send_item(end, link, item, text)

    def bundle_items(self, _link, ask, bundle):
        """What an entry lacks. Attacks replace it."""
        return self.holdings.lacking(ask, bundle.records, bundle)

    def shown(self, state, n):
        """What the asks of a neighbour show for n."""
        ask = state.asks.get(self.terms.epoch_of(n))
        if ask and ask.n != n:
            ask = ask._replace(tag=bytes(8), signatures=0)
        return ask or (state.latest and state.latest._replace(signatures=0, records=[ABSENT] * self.terms.hops))

    def is_wanting(self, state, n, now):
        """7.8.5: true while something is missing."""
        if not state.latest:
            return True
        e = self.terms.epoch_of(n)
        if any(self.holdings.counting(hop, e) is None for hop in self.holdings.hops):
            return True
        return n in self.signed and now - self.signed[n][1] >= PACE_S and not self.holdings.bundle(n)

    def tick(self, ends, now):
        ms = wall_ms()
        self.draw(ms)
        for n in self.intervals(ms):
            self.sign(n, ms, now)
        for end in ends:
            for link in end.links:
                if not link.current:
                    continue
                state = self.state(link)
                if not self.is_entry(link):
                    self.serve(end, link, state, ms, now)
                elif state.wanted:
                    self.answer(end, link)

    def serve(self, end, link, state, ms, now):
        """A neighbouring hop."""
        for n in self.intervals(ms):
            e = self.terms.epoch_of(n)
            records = [self.holdings.counting(hop, e) for hop in self.holdings.hops]
            ask = self.shown(state, n)
            for item, text in self.holdings.lacking(ask, records, self.holdings.signed(n)) if ask else ():
                if state.is_due((item, text), now, self.slow_s):
                    self.send_item(end, link, item, text)
            if state.is_due(n, now, self.slow_s) if self.is_wanting(state, n, now) else state.report:
                flags = WANTS_ANSWER if self.is_wanting(state, n, now) else 0
                self.send(end, link, self.holdings.ask(n, flags, ms).content())
        state.report = False
