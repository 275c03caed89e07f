"""What the recipes share: `eddy chain` with forwards, whose ledgers must close, and what was measured as a row."""

import importlib.util
import json
import shutil
import subprocess
import sys

PATIENCE = 20


class Chain:
    """A chain on loopback, as long as the `with` block. Its exit reaches loopback, and the recipes send nowhere else."""

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
        """The port of the entry that leads there."""
        found = [one["listen"] for one in self.up["forwards"] if one["to"] == to]
        return int(found[0].rsplit(":", 1)[1])

    def socks(self):
        host, port = self.up["socks"][0].rsplit(":", 1)
        return host, int(port)

    def __exit__(self, kind, *_):
        self.process.stdin.close()
        said = self.process.stdout.read().strip().splitlines()
        self.process.wait(timeout=PATIENCE)
        if kind is None:
            for node in json.loads(said[-1])["nodes"]:
                for unit in node["ledger"].values():
                    for direction in ("forward", "backward"):
                        assert unit[direction]["closed"], f"{node['role']}: {unit[direction]}"


def needs(*programs, modules=()):
    """Ends the recipe with a line that says what is missing, if anything is: programs, or modules of Python."""
    missing = [program for program in programs if shutil.which(program) is None]
    missing += [f"Python's {module}" for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        print(f"skipped: {', '.join(missing)} not found", file=sys.stderr)
        sys.exit(77)


def row(**figures):
    """Prints what was measured: for one way, direct or through eddy."""
    print(json.dumps(figures), flush=True)


def listening(port, protocol="udp"):
    """Waits until somebody has bound a port of this host."""
    import time

    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with open(f"/proc/net/{protocol}") as table:
            ports = [int(line.split()[1].split(":")[1], 16) for line in table.readlines()[1:]]
        if port in ports:
            return
        time.sleep(0.02)
    raise TimeoutError(f"nobody listens at {protocol} port {port}")


def free(count):
    """Ports in a row that nobody has, the first one even, as RTP wants it."""
    import socket

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
