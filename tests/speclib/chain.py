"""Chains of real nodes on loopback, with places for Python ones."""

import base64
import collections
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from types import SimpleNamespace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from .ends import PATIENCE
from .nodes import COMMON
from .protocol import DEFAULT_SUITE, parse_descriptor
from .report import same

LATE = ("half-open-expired", "setup-incomplete")  # counted seconds after their causes


class Chain:
    """Real nodes on a loopback address of their own, but for the positions that Python plays."""

    def __init__(self, eddy, loop, klass, mixes, suite, python=(), renew_s=None):
        self.eddy, self.loop, self.python = eddy, loop, python
        self.host = "127." + ".".join(str(random.randint(1, 254)) for _ in range(3))
        self.names = ["entry", *(f"mix{i}" for i in range(1, mixes + 1)), "exit"]
        self.folder = Path(tempfile.mkdtemp(prefix="eddy-spec-"))
        self.processes = {}
        command = ["init", "chain", "--class", klass, "--mixes", str(mixes), "--host", self.host]
        command += ["--suite", str(suite)] if suite != DEFAULT_SUITE else []
        self.run(*command, "--mixing", "threshold-or-timed:n=8,n_min=1,t=2ms")
        for name in self.names if renew_s else ():
            file = self.folder / f"chain/{name}.toml"
            file.write_text(f"renew_after_s = {renew_s}\n{file.read_text()}")
        self.file = tomllib.loads((self.folder / "chain/chain.toml").read_text())
        decoded = [[base64.b64decode(node[key]) for key in ("descriptor", "identity")] for node in self.file["node"]]
        self.hops = [parse_descriptor(*pair) for pair in decoded]

    def run(self, *arguments):
        command = [self.eddy, *arguments]
        return subprocess.run(command, cwd=self.folder, check=True, capture_output=True, timeout=PATIENCE).stdout

    def keys(self, position):
        file = tomllib.loads((self.folder / f"chain/{self.names[position]}.key").read_text())
        return SimpleNamespace(**{name: base64.b64decode(key) for name, key in file.items()})

    def start(self, *arguments, entry=False):
        """Starts the real nodes and waits until they listen. `arguments` are for the exit, or the entry."""
        for position, name in enumerate(self.names):
            if position in self.python or (position == 0) != entry:
                continue
            role = name.rstrip("0123456789")
            command = [self.eddy, role, "--config", f"chain/{name}.toml", "--log-format", "text"]
            command += arguments if role in ("entry", "exit") else ()
            with open(self.folder / f"{name}.log", "wb") as log:
                self.processes[name] = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        self.loop.until(self.ready, "`ready:` in the logs of the nodes")

    def start_with(self, position, body):
        """The exit code of a mix that finds this descriptor of its own, signed, in chain.toml."""
        file, name = self.folder / "chain/chain.toml", self.names[position]
        sound, old = file.read_text(), self.file["node"][position - 1]["descriptor"]
        signature = Ed25519PrivateKey.from_private_bytes(self.keys(position).identity).sign(body)
        file.write_text(sound.replace(old, base64.b64encode(body + signature).decode()))
        command = [self.eddy, "mix", "--config", f"chain/{name}.toml"]
        try:
            return subprocess.run(command, cwd=self.folder, capture_output=True, timeout=PATIENCE).returncode
        finally:
            file.write_text(sound)

    def is_real(self, position):
        return position not in self.python

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def ready(self):
        ended = [name for name, process in self.processes.items() if process.poll() is not None]
        assert not ended, f"{ended[0]} ended: {self.log(ended[0])[-500:]}"
        return all("ready:" in self.log(name) for name in self.processes)

    def status(self, name):
        return json.loads(self.run("status", "--json", "--config", f"chain/{name}.toml"))

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
    def counts(self, name, reason, more=1):
        """The node counts this reason `more` times meanwhile, and no other."""
        before = self.counted(name)
        yield
        self.loop.until(lambda: self.count(name, reason) >= before[reason] + more, f"{reason} counted by {name}")
        found = self.counted(name) - before
        for background in (*COMMON, *LATE):
            del found[background]
        same(f"counted by {name}", found, {} if reason in (*COMMON, *LATE) else {reason: more})

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
            same("exit codes of the nodes", set(codes.values()), {0})
