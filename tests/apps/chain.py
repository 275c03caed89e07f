"""Shared by the recipes: `eddy chain` with forwards, whose ledgers must close, and rows of measured values."""

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import time

# Seconds that anything may take: a machine may be busy.
PATIENCE = 60


class Chain:
    """A chain on loopback for the duration of the `with` block. The recipes send to loopback only."""

    def __init__(self, eddy, *forwards, socks=False):
        self.command = [eddy, "chain", "--stay", "--json", "--lifeline", "--messages", "1", "--receivers", "1"]
        for forward in forwards:
            self.command += ["--forward", forward if "=" in forward else f"127.0.0.1:0={forward}"]
        if socks:
            self.command += ["--socks", "127.0.0.1:0"]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.up = json.loads(self.process.stdout.readline())
        return self

    def forward(self, to):
        """The port of the entry whose forward leads to `to`."""
        found = [one["listen"] for one in self.up["forwards"] if one["to"] == to]
        return int(found[0].rsplit(":", 1)[1])

    def socks(self):
        host, port = self.up["socks"][0].rsplit(":", 1)
        return host, int(port)

    def __exit__(self, kind, *_):
        self.process.stdin.close()
        output = self.process.stdout.read().strip().splitlines()
        self.process.wait(timeout=PATIENCE)
        if kind is None:
            for node in json.loads(output[-1])["nodes"]:
                for unit in node["ledger"].values():
                    for direction in ("forward", "backward"):
                        assert unit[direction]["closed"], f"{node['role']}: {unit[direction]}"


def needs(*programs, modules=()):
    """Skips the recipe, and prints why, if a program or a Python module is missing."""
    missing = [program for program in programs if shutil.which(program) is None]
    missing += [f"Python's {module}" for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        print(f"skipped: {', '.join(missing)} not found", file=sys.stderr)
        sys.exit(77)


def row(**figures):
    """Prints the values measured one way: direct or through eddy."""
    print(json.dumps(figures), flush=True)


def listening(port, protocol="udp"):
    """Waits until a port of this host is bound."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with open(f"/proc/net/{protocol}") as table:
            ports = [int(line.split()[1].split(":")[1], 16) for line in table.readlines()[1:]]
        if port in ports:
            return
        time.sleep(0.02)
    raise TimeoutError(f"no listener at {protocol} port {port}")


def free(count):
    """Consecutive free ports, the first one even, as RTP requires."""
    for first in range(42000, 60000, 2 * count):
        sockets = []
        try:
            for port in range(first, first + count):
                for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                    made = socket.socket(socket.AF_INET, kind)
                    sockets.append(made)
                    made.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
        finally:
            for made in sockets:
                made.close()
    raise OSError("no free ports")
