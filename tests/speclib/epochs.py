"""An epoch change under a Python hop, a Python entry and a real one (7.9)."""

import os
import time

from .chain import Chain
from .ends import Loop
from .holdings import wall_ms
from .hops import Client
from .nodes import Mix
from .report import same
from .user import Echo, Entry

NAME = "epochs, interval 1 s"


def short_epoch():
    """Of 18 s or more: the one that is over soonest, E/6 after it ends, and whose next records are not out yet."""
    now = time.time()

    def ends(epoch):
        return epoch - now % epoch

    return min((one for one in range(18, 60) if ends(one) - one / 6 > 4), key=lambda one: ends(one) + one / 6)


def check_epochs(report, eddy):
    loop, epoch = Loop(), short_epoch()
    echo = Echo(loop)
    with Chain(eddy, loop, "L", 2, 2, python=(2,), interval=1, epoch=epoch) as chain:
        terms = chain.terms
        chain.start("--allow", f"127.0.0.1:{echo.address[1]}")
        node, user = Mix(loop, chain, 2), Entry(loop, chain)
        chain.enter("--forward", f"{chain.host}:5000={':'.join(map(str, echo.address))}")
        client = Client(loop, chain)
        carriage = node.carriage

        def at(ms, what):
            """Waits for a time, under traffic."""
            while wall_ms() < ms:
                client.echo(os.urandom(20))
                end = min(ms, wall_ms() + 100)
                loop.until(lambda: wall_ms() >= end, what)  # noqa: B023

        with report.check(f"{NAME}: channels with the keys of an epoch") as row:
            user.connect()
            old = user.bundle()
            e = terms.epoch_of(old.n)
            old_channel = user.channel()
            client.echo(b"before")
            same("epochs of setups at the Python hop", set(node.opened), {e})
            row["note"] = f"epoch of {epoch} s"

        with report.check(f"{NAME}: hops publish their next records E/6 before the epoch, and not earlier"):
            first = terms.switch(e + 1)
            assert wall_ms() < terms.published(e + 1), "the machine was too slow"
            assert not any(carriage.holdings.named(hop, e + 1) for hop in carriage.holdings.hops), "a record"
            at(terms.published(e + 1), "the publication")
            loop.until(lambda: all(carriage.holdings.named(hop, e + 1) for hop in carriage.holdings.hops), "records")

        with report.check(f"{NAME}: the first interval's bundle has new keys of every hop, the one before has not"):
            loop.until(lambda: carriage.holdings.bundle(first), "the bundle")
            before, new = carriage.holdings.bundle(first - 1).records, carriage.holdings.bundle(first).records
            same("epochs of records", ({one.epoch for one in before}, {one.epoch for one in new}), ({e}, {e + 1}))
            assert not {one.x25519 for one in before} & {one.x25519 for one in new}, "old keys"

        with report.check(f"{NAME}: after the switch, hops accept setups to the old keys for E/6, and to the new ones"):
            at(terms.start(first), "the switch")
            attempt = user.send_setup(user.attempt(bundle=old))
            user.wait(("ack", attempt.id))
            same("the new bundle", {one.epoch for one in user.bundle().records}, {e + 1})
            user.alive(user.channel())
            assert node.opened[e + 1], "no setup to the new keys at the Python hop"

        with report.check(f"{NAME}: another real entry sets up a channel with the new keys"):
            opened = node.opened[e + 1]
            chain.enter(name="late", channels=1)
            loop.until(lambda: chain.status("late")["channels"] == 1, "a channel")
            assert node.opened[e + 1] > opened, "setups to old keys"

        with report.check(f"{NAME}: later they refuse the old keys, and channels of the old epoch go on"):
            at(terms.takes_setups(e)[1] + 300, "the end of the old keys")
            with chain.counts("mix1", "setup-invalid"):
                user.send_setup(user.attempt(bundle=old))
                user.alive(user.channel())
            same("epochs of the Python hop's keys", set(carriage.own), {e + 1})
            user.alive(old_channel)
            client.echo(b"after")
            same("drops", node.drops(), {})
