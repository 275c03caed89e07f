"""What a node signs, asks and sends under section 7 of docs/SPEC.md: numbers in docstrings are clauses.

Everything is in memory, so a Python hop lives once; the bounds of 7.8.7 are left out."""

import time
from types import SimpleNamespace

from .holdings import ABSENT, Holdings, wall_ms
from .protocol import ASK, Refused
from .trust import (
    BUNDLE, CLOCK_ITEM, DESCRIPTOR_OF, RECORD_OF, SIGNATURES, WANTS_ANSWER,
    Ask, Bundle, Parts, bundle_hash, draw_keys, part_contents, require, sign,
)  # fmt: skip

PACE_S = 0.25  # 7.8.4


class LinkState(SimpleNamespace):
    """Of one link."""

    def __init__(self):
        super().__init__(asks={}, parts=Parts(), paces={}, lacks=set(), report=False, wanted=None, told=None)

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

    def send_item(self, end, link, item, text):
        for content in part_contents(item, text, self.terms.size.content(link.sends, link.number)):
            end.put(link, content)

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
            self.state(link).lacks = self.holdings.lacks(text)
            self.on_new(item, self.holdings.add_signatures(text))
        else:
            require(kind in (DESCRIPTOR_OF, RECORD_OF) and hop in self.holdings.hops, "item")
            add = self.holdings.add_descriptor if kind == DESCRIPTOR_OF else self.holdings.add_record
            self.on_new(item, add(hop, text))
            self.state(link).lacks -= {hop} if kind == RECORD_OF else set()

    def on_new(self, item, is_new):
        pass


class UserCarriage(Carriage):
    """7.8.6 at an entry: asks while `wants` is set and the bundle of the running interval is missing."""

    def __init__(self, *args):
        super().__init__(*args)
        self.wants, self.link = False, None

    def tick(self, end, now):
        if self.wants and end.link.current:
            self.ask(end, self.interval(), now)

    def ask(self, end, n, now):
        """For the bundle of n, if it is missing and an ask is due."""
        link = end.link
        if link is not self.link:
            self.link, self.holdings = link, Holdings(self.terms)
        if not self.holdings.bundle(n) and self.state(link).is_due(n, now, self.slow_s):
            end.put(link, self.holdings.ask(n, WANTS_ANSWER, 0, self.state(link).lacks).content())

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
        self.ahead_ms = 0  # Of the clock that its asks tell
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
        try:
            for record in records:
                self.holdings.certificate(record, n * self.terms.interval)
        except Refused:
            return
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
            state.asks.pop(ask.n, None)  # so that the latest is the last
            state.asks[ask.n] = ask

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
        """What a neighbour has for n, as far as its latest asks show; None before the first one."""
        if n in state.asks:
            return state.asks[n]
        latest = list(state.asks.values())[::-1]
        same_epoch = [ask for ask in latest if self.terms.epoch_of(ask.n) == self.terms.epoch_of(n)]
        if same_epoch:
            return same_epoch[0]._replace(signatures=0)
        return latest[0]._replace(signatures=0, records=[ABSENT] * self.terms.hops) if latest else None

    def is_wanting(self, state, n, now):
        """7.8.5: true while something is missing."""
        if not state.asks:
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
                end.put(link, self.holdings.ask(n, flags, ms + self.ahead_ms, named=state.lacks).content())
        state.report = False
