"""Descriptors and chain files, from Python to `eddy` and back (7.3, 7.4). No node runs."""

import base64
import json
import re

from .chain import Chain
from .ends import Loop
from .paced import PacedTerms
from .protocol import Refused, flip_bit, x25519_public
from .report import same
from .trust import (
    CLASSES, EPOCH, EXIT, MIX, NODE,
    ClassEntry, Descriptor, NodeKeys, Terms, ed25519_public, new_node_keys, read_chain, sign,
)  # fmt: skip

TERMS = (  # of `eddy assemble`: class, suite, I, E, delay, lifetime
    (("L",), 2, 10, 3600, 5, 3600),
    (("S",), 1, 1, 10, 1, 1),
    (("L", "S", "M"), 2, 600, 86400, 60000, 600),
    (("voice", "L", "video:n_min=2,steps_ms=9/4"), 2, 10, 3600, 5, 3600),
    (("voice",), 2, 10, 3600, 5, 3600),
)


def check_files(report, eddy):
    with Chain(eddy, Loop(), "S", 2, 2, python=(2,)) as chain:
        check_keygen(report, chain)
        check_descriptor(report, chain)
        check_bad_descriptors(report, chain)
        check_chain_ids(report, chain)
        check_altered_chains(report, chain)
        check_refused_chains(report, chain)


def check_keygen(report, chain):
    with report.check("files: descriptors of `eddy keygen` verify, and belong to its private keys") as row:
        for position, one in enumerate(chain.descriptors, 1):
            keys = chain.keys(position)
            public = NodeKeys(ed25519_public(keys.identity), ed25519_public(keys.signing), x25519_public(keys.noise))
            same("keys", public, NodeKeys(one.identity, one.signing, one.noise))
            same("role", one.role, EXIT if position == 3 else MIX)
            assert one.revision - one.not_before == 3600, "not before is an hour back"
        row["note"] = f"{len(chain.descriptors)} descriptors"


def sample(keys):
    """A descriptor with everything that one may have."""
    addresses = ("192.0.2.1", 4700), ("2001:db8::1", 65532)
    names = ("a-b_c.example", 4700), ("x" * 253, 1)
    return Descriptor(
        role=MIX,
        revision=1 << 40,
        not_before=1_700_000_000,
        not_after=1 << 33,
        identity=ed25519_public(keys.identity),
        noise=x25519_public(keys.noise),
        signing=ed25519_public(keys.signing),
        floor=7,
        entries=(ClassEntry(1, 4, addresses, names), ClassEntry(3, 64, (), (("lanes.example", 65472),))),
        signature=b"",
    )


def check_descriptor(report, chain):
    with report.check("files: `eddy inspect` reads a descriptor of Python's"):
        keys = new_node_keys()
        one = sample(keys).signed(keys.identity)
        same("parsed", Descriptor.parse(one.text()), one)
        chain.write_descriptor("sample.desc", one.text())
        said = json.loads(chain.run("inspect", "--json", "sample.desc"))
        for name in ("revision", "not_before", "not_after", "floor"):
            same(name, said[name], getattr(one, name))
        for name in ("identity", "noise", "signing"):
            same(name, said[name], getattr(one, name).hex())
        first, second = said["classes"]
        same("addresses", first["addresses"], ["192.0.2.1:4700", "[2001:db8::1]:65532"])
        same("names", first["names"], [f"{name}:{port}" for name, port in one.entries[0].names])
        same("lanes", (first["lanes"], second["lanes"]), (4, 64))


def bad_descriptors(keys):
    """Bytes by what is wrong with them."""
    good = sample(keys)
    small, large = good.entries

    def entry(**fields):
        return good._replace(entries=(small._replace(**fields), large))

    def many(count):
        return tuple((f"192.0.2.{i}", 4700) for i in range(1, count + 1))

    fields = {
        "role 0": good._replace(role=0),
        "role 3": good._replace(role=3),
        "no class": good._replace(entries=()),
        "not after at not before": good._replace(not_after=good.not_before),
        "revision 2^63": good._replace(revision=1 << 63),
        "a floor above the revision": good._replace(floor=good.revision + 1),
        "classes in descending order": good._replace(entries=(large, small)),
        "a class twice": good._replace(entries=(large, large)),
        "65 lanes": entry(lanes=65),
        "no lane": entry(lanes=0),
        "two lanes of a paced class": good._replace(entries=(small._replace(klass=0x11, lanes=2),)),
        "an unknown class": good._replace(entries=(small._replace(klass=4),)),
        "an exit with two lanes": good._replace(role=EXIT, entries=(small._replace(lanes=2),)),
        "no address and no name": entry(addresses=(), names=()),
        "nine addresses": entry(addresses=many(9)),
        "five names": entry(names=tuple((f"{i}.example", 1) for i in range(5))),
        "port 0": entry(addresses=(("192.0.2.1", 0),)),
        "port 0 of a name": entry(names=(("a.example", 0),)),
        "lanes beyond port 65535": entry(addresses=(("192.0.2.1", 65533),)),
        "an IPv4 address inside IPv6": entry(addresses=(("::ffff:192.0.2.1", 4700),)),
        "an address twice": entry(addresses=many(1) * 2),
        "a name twice": entry(names=(("a.example", 1),) * 2),
        "a name with a capital": entry(names=(("A.example", 1),)),
        "a name with a space": entry(names=(("a example", 1),)),
        "an empty name": entry(names=(("", 1),)),
        "a name of 254 bytes": entry(names=(("x" * 254, 1),)),
        "more than 2048 bytes": good._replace(
            entries=tuple(
                ClassEntry(klass, 1, many(8), tuple((f"{i}{'x' * 150}", 1) for i in range(4))) for klass in (1, 2, 3)
            )
        ),
    }
    body = good.body()
    at = body.index(bytes([4, 192, 0, 2, 1])) + 5  # behind an IPv4 address
    edits = {
        "version 1": (4, 1),
        "a byte that is not 0": (7, 1),
        "an address of family 5": (at - 5, 5),
        "bytes behind an IPv4 address": (at, 1),
    }
    bodies = {what: one.body() for what, one in fields.items()}
    bodies |= {what: body[:i] + bytes([byte]) + body[i + 1 :] for what, (i, byte) in edits.items()}
    bodies["a byte behind the classes"] = body + b"\0"
    texts = {what: one + sign(keys.identity, NODE, one) for what, one in bodies.items()}
    sound = good.signed(keys.identity).text()
    texts["a byte behind the signature"] = sound + b"\0"
    texts["a wrong signature"] = flip_bit(sound, -40)
    texts["the label of a record"] = body + sign(keys.identity, EPOCH, body)
    texts["the signature of its signing key"] = body + sign(keys.signing, NODE, body)
    return texts


def check_bad_descriptors(report, chain):
    texts = bad_descriptors(new_node_keys())
    with report.check("files: bad descriptors are refused, by Python and by `eddy inspect`") as row:
        for what, text in texts.items():
            refuses(what, Descriptor.parse, text)
            chain.write_descriptor("bad.desc", text)
            same(f"exit code for {what}", chain.fails("inspect", "bad.desc")[0], 2)
        row["note"] = f"{len(texts)}: " + ", ".join(texts)


def refuses(what, parse, text):
    try:
        parse(text)
    except Refused:
        return
    raise AssertionError(f"Python accepts {what}")


def check_chain_ids(report, chain):
    """7.4"""
    served = flags("--class", ("L", "S", "M", "paced-S", "paced-L"))
    for name, role, number in (("a", "mix", 1), ("x", "exit", 2), ("b", "mix", 3)):
        chain.run("keygen", "--role", role, "--address", f"192.0.2.{number}", "--out", name, *served)
    with report.check("files: Python computes the id that `eddy assemble` writes and `eddy inspect` prints") as row:
        ids = set()
        for number, (classes, suite, interval, epoch, delay, lifetime) in enumerate(TERMS):
            mixes = ["a/node.desc", "b/node.desc"][: 1 + number % 2]
            file = f"chain{number}.toml"
            command = ["assemble", *mixes, "--exit", "x/node.desc", "--out", file, *flags("--class", classes)]
            command += ["--suite", str(suite), "--interval", str(interval), "--epoch", str(epoch)]
            chain.run(*command, "--mixing-delay-ms", str(delay), "--lifetime-s", str(lifetime))
            terms, _ = read_chain((chain.folder / file).read_text())
            same("hops", terms.hops, len(mixes) + 1)
            rows = [(CLASSES[one], delay, lifetime) for one in classes if one in CLASSES]
            paced = tuple(terms_of_profile(one, len(mixes)) for one in classes if one not in CLASSES)
            own = Terms(suite, interval, epoch, rows, terms.identities, paced)
            same("id", json.loads(chain.run("inspect", "--json", file))["id"], own.id.hex())
            ids.add(own.id)
        same("different ids", len(ids), len(TERMS))
        row["note"] = f"{len(TERMS)} chains"


def terms_of_profile(text, links):
    """What `eddy assemble --class` makes of a profile."""
    if text == "voice":
        return PacedTerms(0x11, "voice", 10, 1, 2048, 2, 1, 1, 8, 256, 2, 8, [5] * links)
    return PacedTerms(0x13, "video", 10, 2, 2048, 2, 1, 0, 2, 256, 2, 20, [9, 4])


def flags(name, values):
    return [word for value in values for word in (name, value)]


def check_altered_chains(report, chain):
    text = chain.file
    hop = re.findall(r"\[\[hop\]\]\n(identity = .*\ndescriptor = .*\n)", text)
    hexadecimal = chain.terms.id.hex()
    descriptor = base64.b64encode(chain.descriptors[0].text()).decode()
    damaged = base64.b64encode(flip_bit(chain.descriptors[0].text(), 20)).decode()
    altered = {
        "id": text.replace(hexadecimal, flip_bit(chain.terms.id, 5).hex()),
        "suite": text.replace("suite = 2", "suite = 1"),
        "I": text.replace("interval_s = 10", "interval_s = 11"),
        "E": text.replace("epoch_s = 3600", "epoch_s = 3601"),
        "class": text.replace('class = "S"', 'class = "M"'),
        "mixing delay": text.replace("mixing_delay_ms = 5", "mixing_delay_ms = 6"),
        "lifetime": text.replace("lifetime_s = 3600", "lifetime_s = 3599"),
        "order of hops": text.replace(hop[0], "?").replace(hop[1], hop[0]).replace("?", hop[1]),
        "descriptor": text.replace(descriptor, damaged),
        "another hop's descriptor": text.replace(descriptor, base64.b64encode(chain.descriptors[1].text()).decode()),
    }
    with report.check("files: an altered chain.toml is refused, by Python and by `eddy inspect`") as row:
        same("chain", read_chain(text)[0], chain.terms)
        for what, one in altered.items():
            assert one != text, what
            refuses(what, read_chain, one)
            (chain.folder / "altered.toml").write_text(one)
            same(f"exit code for {what}", chain.fails("inspect", "altered.toml")[0], 2)
        row["note"] = ", ".join(altered)


def check_refused_chains(report, chain):
    """7.4, 7.3.9"""
    keys, old = chain.keys(2), chain.descriptors[1]
    other = new_node_keys()
    one, two, last = (f"{name}/node.desc" for name in chain.names[1:])

    def written(name, descriptor, identity=None):
        chain.write_descriptor(name, descriptor.signed(identity or keys.identity).text())
        return name

    foreign = old._replace(identity=ed25519_public(other.identity), entries=chain.descriptors[0].entries)
    now = old.revision
    wrong = {
        "an exit as a mix": [one, last, "--exit", last],
        "a mix as the exit": [one, "--exit", two],
        "a hop twice": [one, two, two, "--exit", last],
        "two identities with the same keys": [written("foreign.desc", foreign, other.identity), two, "--exit", last],
        "a descriptor of the future": [one, written("future.desc", old._replace(not_before=now + 999)), "--exit", last],
        "an expired descriptor": [one, written("expired.desc", old._replace(not_after=now - 1)), "--exit", last],
        "a class that a hop does not have": [one, two, "--exit", last, "--class", "L"],
        "an epoch shorter than ten intervals": [one, two, "--exit", last, "--interval", "10", "--epoch", "99"],
        "an interval of 601 s": [one, two, "--exit", last, "--interval", "601", "--epoch", "86400"],
        "a lifetime of 0": [one, two, "--exit", last, "--lifetime-s", "0"],
        "a mixing delay of 60001 ms": [one, two, "--exit", last, "--mixing-delay-ms", "60001"],
        "no mix": ["--exit", last],
        "eight mixes": [one] * 8 + ["--exit", last],
    }
    with report.check("files: `eddy assemble` refuses chains that must not be") as row:
        sound = ["--class", "S", "--out", "new.toml", "--force"]
        chain.run("assemble", one, two, "--exit", last, *sound)
        for what, arguments in wrong.items():
            rest = sound[2:] if "--class" in arguments else sound
            same(f"exit code for {what}", chain.fails("assemble", *arguments, *rest)[0], 2)
        row["note"] = ", ".join(wrong)
