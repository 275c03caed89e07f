"""TCP through WireGuard in user space (wireguard-go), its UDP directly and through a forward.

Three network namespaces that end with this process: the first has the UDP sockets and eddy, the others a tunnel each.
"""

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time

from chain import PATIENCE, Chain, free, listening, needs, row

SIZE, PORT = 20_000_000, 5201
INSIDE = "EDDY_WIREGUARD_INSIDE"
# As the entry logs at its start: `for WireGuard inside set MTU = 1291`.
MTU = 1291


def run(*command, **more):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE, **more).stdout


class End:
    """A tunnel's end: its UDP port here, its device in a namespace of its own."""

    def __init__(self, name, address, port, folder, mtu=MTU):
        self.name, self.address, self.port = name, address, port
        self.key = f"{folder}/{name}.key"
        private = run("wg", "genkey")
        with open(self.key, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(private)
        self.public = run("wg", "pubkey", input=private).strip()
        self.home = subprocess.Popen(["unshare", "-n", "sleep", "600"])
        self.tunnel = subprocess.Popen(["wireguard-go", "-f", name], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        while not os.path.exists(f"/var/run/wireguard/{name}.sock"):
            assert time.monotonic() < deadline and self.tunnel.poll() is None, "wireguard-go does not start"
            time.sleep(0.02)
        run("wg", "set", name, "private-key", self.key, "listen-port", str(port))
        run("ip", "link", "set", name, "mtu", str(mtu), "netns", str(self.home.pid))
        self.inside("ip", "addr", "add", f"{address}/24", "dev", name)
        self.inside("ip", "link", "set", name, "up")

    def command(self, *command):
        return ["nsenter", "-t", str(self.home.pid), "-n", *command]

    def inside(self, *command):
        return run(*self.command(*command))

    def peer(self, other, endpoint=None, keepalive=0):
        """Makes `other` the only peer."""
        known = run("wg", "show", self.name, "peers").split()
        for public in known:
            run("wg", "set", self.name, "peer", public, "remove")
        where = ["endpoint", f"127.0.0.1:{endpoint}"] if endpoint else []
        run("wg", "set", self.name, "peer", other.public, "allowed-ips", f"{other.address}/32", *where, "persistent-keepalive", str(keepalive))

    def close(self):
        for process in (self.tunnel, self.home):
            process.kill()
            process.wait()


def measure(here, there, endpoint, way):
    there.peer(here)
    here.peer(there, endpoint)
    output = here.inside("ping", "-n", "-c", "20", "-i", "0.05", "-W", "5", there.address)
    answered = int(output.split(" received")[0].rsplit(" ", 1)[1])
    rtt = float(output.split("rtt min/avg/max/mdev = ")[1].split("/")[1])
    script = [sys.executable, os.path.abspath(__file__)]
    sink = subprocess.Popen(there.command(*script, "sink", there.address), stdout=subprocess.PIPE, text=True)
    assert sink.stdout.readline() == "ready\n"
    sent = json.loads(run(*here.command(*script, "source", there.address)))
    received = json.loads(sink.communicate(timeout=PATIENCE)[0])["received"]
    row(
        recipe="wireguard",
        way=way,
        sent=SIZE,
        received=received,
        lost=SIZE - received,
        pings=f"{answered} of 20",
        rtt_ms=round(rtt, 1),
        **sent,
    )
    assert answered == 20 and received == SIZE


def sink(address):
    """Receives from one connection."""
    with socket.create_server((address, PORT)) as server:
        print("ready", flush=True)
        connection, _ = server.accept()
        received = 0
        while got := len(connection.recv(1 << 16)):
            received += got
        connection.sendall(b"all")
    print(json.dumps({"received": received}))


def source(address):
    """Sends, waits for the receiver, and counts TCP retransmissions (linux/tcp.h: tcp_info)."""
    with socket.create_connection((address, PORT), timeout=PATIENCE) as connection:
        began = time.monotonic()
        connection.sendall(bytes(SIZE))
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(3) == b"all"
        took = time.monotonic() - began
        [again] = struct.unpack_from("=I", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 100)
    print(json.dumps({"retransmitted": again, "goodput_mbit": round(8 * SIZE / took / 1e6, 1)}))


def apart(eddy):
    """Runs the recipe again in network and mount namespaces of its own, or skips it."""
    needs("wireguard-go", "wg", "ip", "nsenter", "unshare", "ping")
    if os.geteuid() != 0 or not os.access("/dev/net/tun", os.W_OK):
        print("skipped: network namespaces and /dev/net/tun need root", file=sys.stderr)
        sys.exit(77)
    if INSIDE not in os.environ:
        command = ["unshare", "-n", "-m", sys.executable, sys.argv[0], eddy]
        sys.exit(subprocess.run(command, env={**os.environ, INSIDE: "1"}, timeout=300).returncode)
    run("ip", "link", "set", "lo", "up")
    os.makedirs("/var/run/wireguard", exist_ok=True)
    run("mount", "-t", "tmpfs", "tmpfs", "/var/run/wireguard")


def main(eddy):
    apart(eddy)
    first, ends = free(2), []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for number, name in enumerate(("wg-here", "wg-there")):
                ends.append(End(name, f"10.99.0.{1 + number}", first + number, folder))
            here, there = ends
            listening(there.port)
            measure(here, there, there.port, "direct")
            with Chain(eddy, f"127.0.0.1:{there.port}") as chain:
                measure(here, there, chain.forward(f"127.0.0.1:{there.port}"), "eddy")
        finally:
            for end in ends:
                end.close()


if __name__ == "__main__":
    if sys.argv[1] in ("sink", "source"):
        {"sink": sink, "source": source}[sys.argv[1]](sys.argv[2])
    else:
        main(sys.argv[1])
