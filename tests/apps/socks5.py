"""PySocks and curl at a SOCKS port: UDP to addresses and names, and the error reply for TCP."""

import socket
import subprocess
import sys
import threading

from chain import PATIENCE, Chain, needs, row

LENGTHS = (0, 1, 1000, 1300, 5000)
ROUNDS = 5


def echo():
    """Starts a UDP echo server on loopback; returns its address."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))

    def serve():
        while True:
            data, peer = server.recvfrom(65535)
            server.sendto(data, peer)

    threading.Thread(target=serve, daemon=True).start()
    return server.getsockname()


def converse(made, peers, way):
    """Sends to all peers one after the other; every answer must carry the address of its peer."""
    sent = received = 0
    made.settimeout(PATIENCE)
    for length in LENGTHS * ROUNDS:
        for peer in peers:
            data = bytes([length % 251]) * length
            made.sendto(data, peer)
            sent += 1
            assert made.recvfrom(65535) == (data, peer), f"{length} bytes to {peer}"
            received += 1
    row(recipe="socks5", way=way, sent=sent, received=received, lost=sent - received, reordered=0)


def main(eddy):
    needs("curl", modules=["socks"])
    import socks

    def client(proxy, **who):
        made = socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM)
        made.set_proxy(socks.SOCKS5, *proxy, rdns=True, **who)
        made.settimeout(PATIENCE)
        return made

    peers = [echo(), echo()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as direct:
        converse(direct, peers, "direct")
    with Chain(eddy, socks=True) as chain:
        with client(chain.socks()) as through:
            converse(through, peers, "eddy")
        with client(chain.socks(), username="somebody", password="any") as named:
            named.sendto(b"by name", peers[0])
            assert named.recvfrom(100) == (b"by name", peers[0])
        host, port = chain.socks()
        for scheme in ("socks5", "socks5h"):
            curl = ["curl", "-sS", "--max-time", str(PATIENCE), "--proxy", f"{scheme}://{host}:{port}", "http://127.0.0.1:9/"]
            output = subprocess.run(curl, capture_output=True, text=True, timeout=2 * PATIENCE)
            assert output.returncode == 97 and "(7)" in output.stderr, f"curl: {output.returncode} {output.stderr}"


if __name__ == "__main__":
    main(sys.argv[1])
