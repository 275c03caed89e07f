"""Chains of real nodes on loopback, with places for Python ones. Each node has a folder of its own."""

import base64
import collections
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

from .ends import PATIENCE
from .nodes import COMMON
from .protocol import x25519_public
from .report import same
from .trust import (
    CLASSES, EXIT, MIX,
    ClassEntry, Descriptor, NodeKeys, Place, ed25519_public, new_node_keys, read_chain,
)  # fmt: skip

MIXING = "threshold-or-timed:n=8,n_min=1,t=2ms"
LATE = ("half-open-expired", "setup-incomplete")  # counted seconds after their causes


class Chain:
    """Real nodes on a loopback address of their own, but for the positions that Python plays."""

    def __init__(self, eddy, loop, klass, mixes, suite, python=(), renew_s=None, interval=10, epoch=3600, profile=None):
        """`profile` is what `eddy assemble --class` takes for a paced class."""
        self.eddy, self.loop, self.python, self.renew_s = eddy, loop, python, renew_s
        self.host = "127." + ".".join(str(random.randint(1, 254)) for _ in range(3))
        self.names = ["entry", *(f"mix{i}" for i in range(1, mixes + 1)), "exit"]
        self.folder = Path(tempfile.mkdtemp(prefix="eddy-spec-"))
        self.processes, self.python_keys = {}, {}
        for position in range(1, mixes + 2):
            (self.make_real if self.is_real(position) else self.make_python)(position, klass)
        *descriptors, last = [f"{name}/node.desc" for name in self.names[1:]]
        command = ["assemble", *descriptors, "--exit", last, "--class", profile or klass]
        command += ["--suite", str(suite)]
        self.run(*command, "--interval", str(interval), "--epoch", str(epoch))
        self.file = (self.folder / "chain.toml").read_text()
        self.terms, self.descriptors = read_chain(self.file)
        self.places = [Place(self.terms, i, one) for i, one in enumerate(self.descriptors, 1)]
        for name in self.names[1:]:
            shutil.copy(self.folder / "chain.toml", self.folder / name)

    def make_real(self, position, klass):
        name, role = self.names[position], self.role(position)
        self.run("keygen", "--role", role, "--address", self.address(position), "--class", klass, "--out", name)
        file = self.folder / name / "node.toml"
        text = f"renew_after_s = {self.renew_s}\n" if self.renew_s else ""
        if klass.startswith("paced"):
            text += "unsynchronised_clock = true\n"
        elif role == "mix":
            text += f'mixing = "{MIXING}"\n'
        lines = [line for line in file.read_text().splitlines() if not line.startswith("mixing =")]
        file.write_text(text + "\n".join(lines))

    def make_python(self, position, klass):
        """The descriptor of a Python hop, and a file that `eddy assemble` reads."""
        keys, (host, port), now = new_node_keys(), self.address(position).split(":"), int(time.time())
        self.python_keys[position] = keys
        descriptor = Descriptor(
            role=EXIT if self.role(position) == "exit" else MIX,
            revision=now,
            not_before=now - 3600,
            not_after=now + 90 * 86400,
            identity=ed25519_public(keys.identity),
            noise=x25519_public(keys.noise),
            signing=ed25519_public(keys.signing),
            floor=0,
            entries=(ClassEntry(CLASSES[klass], 1, ((host, int(port)),), ()),),
            signature=b"",
        )
        self.write_descriptor(f"{self.names[position]}/node.desc", descriptor.signed(keys.identity).text())

    def write_descriptor(self, name, text):
        file = self.folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'descriptor = "{base64.b64encode(text).decode()}"\n')
        return file

    def role(self, position):
        return self.names[position].rstrip("0123456789")

    def address(self, position):
        return f"{self.host}:{4700 + position}"

    def run(self, *arguments):
        command = [self.eddy, *arguments]
        return subprocess.run(command, cwd=self.folder, check=True, capture_output=True, timeout=PATIENCE).stdout

    def fails(self, *arguments):
        """The exit code and the message of a command that refuses something."""
        command = [self.eddy, *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, timeout=PATIENCE)
        return done.returncode, done.stderr.decode()

    def keys(self, position):
        if position in self.python_keys:
            return self.python_keys[position]
        files = [tomllib.loads((self.folder / self.names[position] / f"{name}.key").read_text())
                 for name in ("identity", "node")]  # fmt: skip
        return NodeKeys(*(base64.b64decode((files[0] | files[1])[name]) for name in NodeKeys._fields))

    def start(self, *arguments):
        """Starts the real hops and waits until they listen. `arguments` are for the exit."""
        for position, name in enumerate(self.names):
            if position and self.is_real(position):
                last = arguments if name == "exit" else ()
                self.spawn(name, self.role(position), "--config", f"{name}/node.toml", *last)
        self.loop.until(self.ready, "`ready:` in the logs of the nodes")

    def enter(self, *arguments, name="entry", beside=None, **settings):
        """Starts a real entry. Without settings and a descriptor beside it, it has nothing but chain.toml."""
        folder = self.folder / name
        folder.mkdir()
        shutil.copy(self.folder / "chain.toml", folder)
        if beside:
            self.write_descriptor(f"{name}/beside.desc", beside.text())
        how = ["--chain", f"{name}/chain.toml", "--status", f"{name}/node.sock"]
        if self.renew_s:
            settings["renew_after_s"] = self.renew_s
        if settings:
            settings |= {"role": "entry", "chain": "chain.toml", "status": "node.sock", "commands": "node.cmd"}
            (folder / "node.toml").write_text("".join(f"{key} = {json.dumps(x)}\n" for key, x in settings.items()))
            how = ["--config", f"{name}/node.toml"]
        self.spawn(name, "entry", *how, *arguments)
        self.loop.until(self.ready, "`ready:` in the log of the entry")

    def spawn(self, name, *arguments):
        with open(self.folder / f"{name}.log", "wb") as log:
            command = [self.eddy, *arguments, "--log-format", "text"]
            self.processes[name] = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)

    def is_real(self, position):
        return position not in self.python

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def ready(self):
        ended = [name for name, process in self.processes.items() if process.poll() is not None]
        assert not ended, f"{ended[0]} ended: {self.log(ended[0])[-500:]}"
        return all("ready:" in self.log(name) for name in self.processes)

    def status(self, name):
        return json.loads(self.run("status", "--json", "--socket", f"{name}/node.sock"))

    def counted(self, name):
        """What a node has dropped or refused, by reason."""
        status = self.status(name)
        tables = [status["refused"], *(way["dropped"] for way in status["ledger"]["cells"].values())]
        total = sum(map(collections.Counter, tables), collections.Counter())
        total["surplus"] = status["handshakes"]["surplus_cells"]
        return total

    def count(self, name, reason):
        return self.counted(name)[reason]

    @contextlib.contextmanager
    def counts(self, name, reason, more=1, also=()):
        """The node counts this reason `more` times meanwhile, and no other but those in `also`."""
        before = self.counted(name)
        yield
        self.loop.until(lambda: self.count(name, reason) >= before[reason] + more, f"{reason} counted by {name}")
        found = self.counted(name) - before
        for background in (*COMMON, *LATE, *also):
            del found[background]
        same(f"counted by {name}", found, {} if reason in (*COMMON, *LATE) else {reason: more})

    def stop(self, name):
        process = self.processes.pop(name)
        process.terminate()
        same(f"exit code of {name}", process.wait(PATIENCE), 0)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        for process in self.processes.values():
            process.terminate()
        codes = {}
        for name, process in self.processes.items():
            try:
                codes[name] = process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[name] = "killed"
        if kind:
            for name in self.processes:
                print(f"---- end of the log of {name}", *self.log(name).splitlines()[-12:], sep="\n", file=sys.stderr)
        shutil.rmtree(self.folder)
        if not kind:
            same("exit codes of the nodes", set(codes.values()) - {0}, set())
