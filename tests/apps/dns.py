"""`dig` asks a name server (dnsmasq) straight, and through a forward."""

import subprocess
import sys
import time

from chain import PATIENCE, Chain, free, listening, needs, row

QUESTIONS = 50


def ask(port, way):
    received, times = 0, []
    for number in range(QUESTIONS):
        began = time.monotonic()
        dig = ["dig", "@127.0.0.1", "-p", str(port), f"h{number}.here.test", "+short", "+tries=1", "+time=5"]
        said = subprocess.run(dig, capture_output=True, text=True, timeout=PATIENCE).stdout.strip()
        times.append(1000 * (time.monotonic() - began))
        received += said == "192.0.2.7"
    times.sort()
    row(recipe="dns", way=way, sent=QUESTIONS, received=received, lost=QUESTIONS - received, p50_ms=round(times[len(times) // 2], 1))
    assert received == QUESTIONS


def main(eddy):
    needs("dig", "dnsmasq")
    port = free(1)
    server = ["dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"]
    server += [f"--port={port}", "--listen-address=127.0.0.1", "--address=/here.test/192.0.2.7", "--pid-file="]
    server = subprocess.Popen(server, stderr=subprocess.DEVNULL)
    try:
        listening(port)
        ask(port, "direct")
        with Chain(eddy, f"127.0.0.1:{port}") as chain:
            ask(chain.forward(f"127.0.0.1:{port}"), "eddy")
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main(sys.argv[1])
