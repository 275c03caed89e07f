"""A Python Mix 1 that cheats real entries and hops about keys: 7.5 to 7.8."""

import itertools
import os
import re
import signal

from .chain import Chain
from .ends import Loop
from .holdings import ABSENT, wall_ms
from .hops import Client
from .nodes import Mix
from .protocol import PART, flip_bit
from .report import same
from .trust import (
    BUNDLE, DESCRIPTOR_OF, EPOCH, RECORD_OF, SIGNATURES,
    Bundle, Descriptor, bundle_hash, draw_keys, ed25519_public, part_contents, sign,
)  # fmt: skip
from .user import Echo

PORT = 6000  # of the entry that gets the first lie
NAMED = "that names a record of Mix 1 which does not come"


class Liar(Mix):
    """A Mix 1 that tells the entry behind each port what `lies` has for it: items from items and a bundle."""

    def __init__(self, *args):
        super().__init__(*args)
        self.lies, self.told, self.asks, self.signed = {}, {}, {}, set()
        self.carriage.bundle_items = self.bundle_items
        self.carriage.on_ask = self.on_ask
        self.carriage.on_item = self.on_item

    def bundle_items(self, link, ask, bundle):
        port = link.address[1]
        items = type(self.carriage).bundle_items(self.carriage, link, ask, bundle)
        if port not in self.lies:
            return items
        self.told[port] = ask.n
        return self.lies[port](items, ask, bundle)

    def on_ask(self, end, link, ask):
        if end is self.up:
            self.asks.setdefault(link.address[1], []).append(ask)
        type(self.carriage).on_ask(self.carriage, end, link, ask)

    def on_item(self, link, item, text):
        """Remembers who signed what."""
        type(self.carriage).on_item(self.carriage, link, item, text)
        if item == SIGNATURES:
            n, hash_, _, signatures = Bundle.split(self.size.hops, text)
            self.signed |= {(n, hop, hash_) for hop in signatures}

    def setups_from(self, port):
        return [shards for link in self.up.links if link.address == (self.me.address[0], port)
                for shards in link.setups.values()]  # fmt: skip


def check_bundles(report, eddy):
    loop = Loop()
    echo = Echo(loop)
    with Chain(eddy, loop, "L", 2, 2, python=(1,), interval=2) as chain:
        chain.start("--allow", f"127.0.0.1:{echo.address[1]}")
        liar = Liar(loop, chain, 1)
        check_lies(report, chain, liar)
        check_bad_items(report, chain, liar)
        check_draws(report, chain, liar)
        chain.enter("--forward", forward(chain, echo, 5000), channels=1)
        client = Client(loop, chain)
        check_own_record(report, chain, liar)
        check_renewed_descriptors(report, chain, liar, client)
        with report.check("bundles: afterwards a real entry's datagrams pass, and Mix 1 has refused nothing"):
            client.echo(bytes(40))
            drops = liar.drops()
            drops.pop("no-channel", 0)  # of an entry on a busy machine: a message 1 that comes late makes another link
            same("drops", drops, {})
        check_clock(report, chain, liar)
        check_move(report, chain, liar, echo)


def lies(liar):
    """What an entry may be sent instead of the truth, and whether it then refuses an item."""
    carriage, keys, terms = liar.carriage, liar.carriage.keys, liar.me.terms
    e = carriage.epoch()
    # Keys and a descriptor of Mix 1 that no other hop has seen.
    other, _ = draw_keys(terms, liar.me.descriptor, keys.signing, e, carriage.last_draw + 100)
    newer = carriage.me()._replace(revision=carriage.me().revision + 1).signed(keys.identity)

    def item(bundle, **changes):
        return [(SIGNATURES, bundle._replace(**changes).item())]

    def signatures(change):
        """Replaces signatures of the bundle."""

        def lie(items, _ask, bundle):
            changed = {hop: one for hop, one in (bundle.signatures | change(bundle)).items() if one}
            return [one for one in items if one[0] != SIGNATURES] + item(bundle, signatures=changed)

        return lie

    def record(hop, one, is_sent=True):
        """Puts a record into the place of a hop's, with Mix 1's signature over what follows from it."""

        def lie(items, _ask, bundle):
            records = [one if i == hop else held for i, held in enumerate(bundle.records, 1)]
            hash_ = bundle_hash(terms, bundle.n, records)
            theirs = {i: held for i, held in bundle.signatures.items() if i > 1}
            mine = {1: sign(keys.signing, BUNDLE, hash_)}
            changed = bundle._replace(records=records, hash=hash_)
            if not is_sent:
                return [held for held in items if held[0] != SIGNATURES] + item(changed, signatures=mine)
            kept = [held for held in items if held[0] not in (SIGNATURES, RECORD_OF + hop)]
            return [
                *kept, (RECORD_OF + hop, one.travel()), *item(changed, signatures=mine),
                *item(changed, signatures=theirs),
            ]  # fmt: skip

        return lie

    def descriptor(items, _ask, bundle):
        return [(DESCRIPTOR_OF + 1, newer.text()), *signatures(lambda _: {1: None})(items, _ask, bundle)]

    def altered_record(items, _ask, _bundle):
        return [(kind, flip_bit(text, 40) if kind == RECORD_OF + 1 else text) for kind, text in items]

    def earlier(items, ask, bundle):
        before = carriage.holdings.bundle(ask.n - 1)
        return carriage.holdings.lacking(ask, before.records, before) if before else []

    mix2 = carriage.holdings.newest(2)
    as_mix2 = other._replace(identity=mix2.identity, certificate=mix2.hash(), revision=mix2.revision)
    return {
        "without the signature of Mix 1": (False, signatures(lambda _: {1: None})),
        "without the signature of the exit": (False, signatures(lambda _: {3: None})),
        "with its own signature alone": (False, signatures(lambda _: {2: None, 3: None})),
        "with an altered signature of Mix 1": (True, signatures(lambda b: {1: flip_bit(b.signatures[1], 3)})),
        "with an altered signature of the exit": (True, signatures(lambda b: {3: flip_bit(b.signatures[3], 40)})),
        "with Mix 2's signature as that of Mix 1": (True, signatures(lambda b: {1: b.signatures[2]})),
        "with a signature of Mix 1 as that of the exit": (True, signatures(lambda b: {3: b.signatures[1]})),
        "with a signature by an unknown key": (True, signatures(lambda b: {1: sign(keys.noise, BUNDLE, b.hash)})),
        "with a signature by the identity": (True, signatures(lambda b: {1: sign(keys.identity, BUNDLE, b.hash)})),
        "with a signature under another label": (True, signatures(lambda b: {1: sign(keys.signing, EPOCH, b.hash)})),
        "of the interval before": (False, earlier),
        "with a record of Mix 1 that this user alone gets": (True, record(1, other)),
        NAMED: (False, record(1, other, is_sent=False)),
        "with an altered record": (True, altered_record),
        "with a record of Mix 2 that Mix 1 signed": (True, record(2, as_mix2.signed(terms, keys.signing))),
        "with a newer descriptor of Mix 1, and without its signature": (False, descriptor),
    }


def check_lies(report, chain, liar):
    loop, holdings = liar.up.loop, liar.carriage.holdings
    with report.check("bundles: Python Mix 1 and real hops complete bundles"):
        interval = liar.carriage.interval
        loop.until(lambda: holdings.bundle(interval() - 1) and holdings.bundle(interval()), "bundles of two intervals")

    told = lies(liar)
    names = {what: f"user{i}" for i, what in enumerate(told)}
    ports = {what: PORT + i for i, what in enumerate(told)}
    for what, (_, lie) in told.items():
        liar.lies[ports[what]] = lie
        chain.enter(name=names[what], channels=1, down=f"{chain.host}:{ports[what]}")
    chain.enter(name="honest", channels=1, down=f"{chain.host}:{PORT - 1}")

    with report.check("bundles: an entry that is told the truth gets a channel meanwhile"):
        loop.until(lambda: chain.status("honest")["channels"] == 1, "a channel")
        assert liar.setups_from(PORT - 1), "no setup"

    def asks_after(what):
        first = liar.told.get(ports[what])
        return first and sum(ask.n >= first for ask in liar.asks[ports[what]]) >= 4

    for what, (refuses, _) in told.items():
        with report.check(f"bundles: a real entry opens no channel with a bundle {what}") as row:
            loop.until(lambda: asks_after(what), "asks that follow the lie")  # noqa: B023
            if refuses:
                loop.until(lambda: chain.count(names[what], "trust-item"), "trust-item counted")  # noqa: B023
                row["note"] = "it counts trust-item"
            same("channels", chain.status(names[what])["channels"], 0)
            same("setups", liar.setups_from(ports[what]), [])

    with report.check("bundles: a descriptor is in asks of the link on which it came, and of no other"):
        came = ports["with a newer descriptor of Mix 1, and without its signature"]
        shown = {port: {ask.descriptors[0][0] for ask in asks} for port, asks in liar.asks.items()}
        others = set().union(*(revisions for port, revisions in shown.items() if port != came))
        assert others <= {0, liar.me.descriptor.revision} and shown[came] - others, shown

    with report.check("bundles: a real entry reports no record of a hop while it lacks one that signatures name"):
        asks = liar.asks[ports[NAMED]]
        loop.until(lambda: any(ask.records[0] == ABSENT != ask.records[1] for ask in asks), "such an ask")

    with report.check("bundles: told the truth, all of them get channels"):
        liar.lies.clear()
        for name in names.values():
            loop.until(lambda: chain.status(name)["channels"] == 1, f"a channel of {name}")  # noqa: B023
    for name in [*names.values(), "honest"]:
        chain.stop(name)


def check_bad_items(report, chain, liar):
    """7.5.2, 7.8: a Python hop before a real one."""
    carriage, link, hops = liar.carriage, liar.down.link, liar.size.hops
    terms, keys, me = liar.me.terms, liar.carriage.keys, liar.me.descriptor
    e = carriage.epoch()
    sound, _ = draw_keys(terms, me, keys.signing, e, carriage.last_draw + 50)

    def record(**changes):
        return RECORD_OF + 1, sound._replace(**changes).signed(terms, keys.signing).travel()

    def descriptor(**changes):
        return DESCRIPTOR_OF + 1, me._replace(revision=me.revision + 1, **changes).signed(keys.identity).text()

    last = carriage.holdings.newest(3)
    as_exit = sound._replace(identity=last.identity, certificate=last.hash(), revision=last.revision)
    foreign = sound._replace(signature=sign(keys.signing, EPOCH, bytes(32) + sound.body()))
    items = {
        "a record with a wrong signature": (RECORD_OF + 1, flip_bit(sound.travel(), -1)),
        "a record of another chain": (RECORD_OF + 1, foreign.travel()),
        "a record of the epoch after the next": record(epoch=e + 2),
        "a record with a draw of 2^63": record(draw=1 << 63),
        "a record with an X25519 key of low order": record(x25519=bytes(32)),
        "a record with a coefficient beyond q": record(mlkem=b"\xff\xff" + sound.mlkem[2:]),
        "a record that is a byte longer": (RECORD_OF + 1, sound.travel() + b"\0"),
        "a record of Mix 1 as that of the exit": (RECORD_OF + 3, as_exit.signed(terms, keys.signing).travel()),
        "a descriptor with a wrong signature": (DESCRIPTOR_OF + 1, flip_bit(descriptor()[1], -1)),
        "a descriptor of the future": descriptor(not_before=wall_ms() // 1000 + 600),
        "a descriptor of an exit": descriptor(role=2),
        "a descriptor as that of another hop": (DESCRIPTOR_OF + 2, descriptor()[1]),
    }
    room = liar.size.content(link.sends, link.number)
    ask = carriage.holdings.ask(carriage.interval(), 0, wall_ms())
    part = part_contents(SIGNATURES, bytes(100), room)[0]
    contents = {
        "an unknown item": part_contents(0x50, b"x", room)[0],
        "a record of hop 0": part_contents(RECORD_OF, b"x", room)[0],
        "a record of a hop beyond the exit": part_contents(RECORD_OF + hops + 1, b"x", room)[0],
        "a piece beyond the last": part[:6] + b"\1" + part[7:],
        "an item of no bytes": part[:7] + bytes(2) + part[9:],
        "an item of 2049 bytes": bytes([PART, SIGNATURES, *bytes(5)]) + (2049).to_bytes(2),
        "an item whose id is wrong": flip_bit(part, 2),
        "an ask with an unknown flag": ask._replace(flags=2).content(),
    }

    def attack(what, reason, send):
        with report.check(f"attack on mix2: {what}") as row, chain.counts("mix2", reason):
            send()
            row["note"] = f"mix2 counts {reason}"

    for what, item in items.items():
        attack(what, "trust-item", lambda: carriage.send_item(liar.down, link, *item))  # noqa: B023
    for what, content in contents.items():
        attack(what, "trust-malformed", lambda: liar.down.put(link, content))  # noqa: B023
    with report.check("attack on mix2: afterwards it signs with the others"):
        n = carriage.interval() + 1
        liar.up.loop.until(lambda: any(map(carriage.holdings.bundle, range(n, n + 5))), "a bundle")


def check_draws(report, chain, liar):
    """7.7: a hop that draws new keys several times in an interval."""
    carriage, loop = liar.carriage, liar.up.loop
    with report.check("bundles: other hops sign one hash for an interval, whatever Mix 1 draws") as row:
        start = carriage.interval() + 1
        for draws in itertools.count(1):
            carriage.publish(carriage.epoch(), carriage.last_draw + draws)
            until = wall_ms() + 300
            loop.until(lambda: wall_ms() >= until, "the next draw")  # noqa: B023
            if carriage.interval() >= start + 3:
                break
        carriage.last_draw += draws
        seen = [(n, hop) for n, hop, _ in liar.signed if hop > 1]
        assert any(n >= start for n, _ in seen), "no signatures"
        same("hashes for one interval and hop", len(seen), len(set(seen)))
        row["note"] = f"{draws} draws in three intervals"

    with report.check("bundles: when it stops, bundles are complete again, with its last record"):
        newest = carriage.own[carriage.epoch()].record
        loop.until(lambda: (bundle := carriage.bundle()) and bundle.records[0] == newest, "a bundle")


def check_own_record(report, chain, liar):
    """7.5.5: somebody has the signing key of Mix 2."""
    carriage, loop = liar.carriage, liar.up.loop
    with report.check("bundles: a real hop publishes its keys again over a record of a thief"):
        e = carriage.epoch()
        genuine = carriage.holdings.counting(2, e)
        signing, descriptor = chain.keys(2).signing, carriage.holdings.newest(2)
        stolen, _ = draw_keys(carriage.terms, descriptor, signing, e, genuine.draw + 1000)
        carriage.send_item(liar.down, liar.down.link, RECORD_OF + 2, stolen.travel())
        loop.until(lambda: carriage.holdings.counting(2, e).draw > stolen.draw, "a record with a higher draw")
        same("keys", carriage.holdings.counting(2, e)[5:7], genuine[5:7])


def check_renewed_descriptors(report, chain, liar, client):
    carriage, loop = liar.carriage, liar.up.loop
    adopts(report, "bundles: a Python hop renews its descriptor, and real nodes adopt it", chain, liar)
    client.echo(bytes(41))

    with report.check("bundles: a real hop renews its descriptor, and a Python hop adopts it"):
        before = carriage.holdings.newest(2).revision
        chain.run("renew", "--identity", "mix2/identity.key", "mix2/node.desc")
        chain.processes["mix2"].send_signal(signal.SIGHUP)
        loop.until(lambda: carriage.holdings.newest(2).revision > before, "the descriptor")
        loop.until(lambda: is_named(carriage, 2), "a bundle that names it")
        client.echo(bytes(42))

    signing = os.urandom(32)
    carriage.keys = carriage.keys._replace(signing=signing)
    changes = {"floor": carriage.me().revision + 1, "signing": ed25519_public(signing)}
    adopts(
        report, "bundles: a Python hop revokes its signing key, and real nodes adopt another", chain, liar, **changes
    )

    with report.check("bundles: of two descriptors of one revision, real hops take the one with the higher hash"):
        me = carriage.me()
        both = [me._replace(revision=me.revision + 1, not_after=me.not_after + i) for i in range(2)]
        for one in sorted((one.signed(carriage.keys.identity) for one in both), key=Descriptor.order):
            carriage.renew(one)
            loop.until(lambda: is_named(carriage, 1), "a bundle that names it")
        assert "two descriptors of revision" in chain.log("mix2"), "no report of mix2"

    with report.check("bundles: another entry gets all these descriptors with its bundle, and a channel"):
        chain.enter(name="late", channels=1)
        loop.until(lambda: chain.status("late")["channels"] == 1, "a channel")
        revisions = [carriage.holdings.newest(hop).revision for hop in carriage.holdings.hops]
        loop.until(
            lambda: [hop["revision"] for hop in chain.status("late")["trust"]["hops"]] == revisions,
            f"revisions {revisions}",
        )


def check_clock(report, chain, liar):
    """7.9.5, 7.7.4"""
    with report.check("bundles: Python Mix 1's clock is a minute ahead: its neighbour says so, and bundles go on"):
        loop, carriage = liar.up.loop, liar.carriage
        carriage.ahead_ms = 60_000
        loop.until(lambda: re.search(r"this clock is (60\.\d|59\.9) s behind that of a neighbour", chain.log("mix2")), "a line")
        interval = carriage.interval()
        loop.until(lambda: carriage.holdings.bundle(interval + 1), "another bundle")
        carriage.ahead_ms = 0


def check_move(report, chain, liar, echo):
    """7.3.7"""
    (host, port), loop = liar.me.address, liar.up.loop
    entry = liar.carriage.me().entries[0]._replace(addresses=((host, port), (host, port + 50)))
    adopts(report, "bundles: Python Mix 1 announces another address", chain, liar, entries=(entry,))
    with report.check("bundles: it moves there, and a real entry follows and keeps its channel"):
        # From a file, because what a link brings counts for contact after an epoch only.
        to, moved = forward(chain, echo, 5001), liar.carriage.holdings.newest(1)
        chain.enter("--forward", to, name="follows", beside=moved, channels=1, down=f"{host}:{PORT - 2}")
        client = Client(loop, chain, 5001)
        client.echo(bytes(43))
        link = next(link for link in liar.up.links if link.address == (host, PORT - 2))
        channels, promotions = set(link.channels), link.promotions
        liar.up.rebind(host, port + 50)
        client.echo(bytes(44))
        assert link.promotions > promotions, "no handshake"
        same("channels", set(link.channels), channels)


def forward(chain, echo, port):
    return f"{chain.host}:{port}={':'.join(map(str, echo.address))}"


def is_named(carriage, hop):
    """By the bundle of the running interval: the newest descriptor of a hop."""
    bundle = carriage.bundle()
    return bundle and bundle.records[hop - 1].certificate == carriage.holdings.newest(hop).hash()


def adopts(report, what, chain, liar, **changes):
    """Mix 1 signs a descriptor with these changes."""
    carriage, loop = liar.carriage, liar.up.loop
    with report.check(what):
        newer = carriage.me()._replace(revision=carriage.me().revision + 1, **changes)
        carriage.renew(newer.signed(carriage.keys.identity))
        for name in ("mix2", "exit"):

            def adopted():
                hop = chain.status(name)["trust"]["hops"][0]  # noqa: B023
                return (hop["revision"], hop["floor"]) == (newer.revision, newer.floor)

            loop.until(adopted, f"the descriptor at {name}")
        loop.until(lambda: is_named(carriage, 1), "a bundle that names it")
