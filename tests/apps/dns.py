"""`dig` queries a name server (dnsmasq) directly, through a forward, and through SOCKS (with PySocks, as dig does not
support it for UDP)."""

import socket
import subprocess
import sys
import threading
import time

from chain import PATIENCE, Chain, free, listening, needs, row

QUESTIONS = 50


def ask(port, way):
    received, times = 0, []
    for number in range(QUESTIONS):
        began = time.monotonic()
        dig = ["dig", "@127.0.0.1", "-p", str(port), f"h{number}.here.test", "+short", "+tries=1", "+time=5"]
        output = subprocess.run(dig, capture_output=True, text=True, timeout=PATIENCE).stdout.strip()
        times.append(1000 * (time.monotonic() - began))
        received += output == "192.0.2.7"
    times.sort()
    row(recipe="dns", way=way, sent=QUESTIONS, received=received, lost=QUESTIONS - received, p50_ms=round(times[len(times) // 2], 1))
    assert received == QUESTIONS


def bridge(proxy, server):
    """A loopback port whose datagrams go to `server` through a SOCKS association, and answers back."""
    import socks

    beyond = socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM)
    beyond.set_proxy(socks.SOCKS5, *proxy)
    beyond.settimeout(PATIENCE)
    near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    near.bind(("127.0.0.1", 0))

    def carry():
        while True:
            question, asker = near.recvfrom(65535)
            beyond.sendto(question, server)
            near.sendto(beyond.recvfrom(65535)[0], asker)

    threading.Thread(target=carry, daemon=True).start()
    return near.getsockname()[1]


def main(eddy):
    needs("dig", "dnsmasq", modules=["socks"])
    port = free(1)
    server = ["dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"]
    server += [f"--port={port}", "--listen-address=127.0.0.1", "--address=/here.test/192.0.2.7", "--pid-file="]
    server = subprocess.Popen(server, stderr=subprocess.DEVNULL)
    try:
        listening(port)
        ask(port, "direct")
        with Chain(eddy, f"127.0.0.1:{port}", socks=True) as chain:
            ask(chain.forward(f"127.0.0.1:{port}"), "eddy")
            ask(bridge(chain.socks(), ("127.0.0.1", port)), "eddy, SOCKS")
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main(sys.argv[1])
