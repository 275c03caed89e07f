"""`iperf3 -u` directly, and through a forward.

iperf3 has a TCP control connection to the port that its datagrams go to. eddy does not carry TCP: a small relay here
carries that connection from the forward's address to the server, as any TCP proxy would.
"""

import json
import socket
import subprocess
import sys
import threading

from chain import PATIENCE, Chain, free, listening, needs, row

RATE, LENGTH, SECONDS = "20M", 1200, 5
SERVER, FORWARD = "127.0.0.1", "127.0.0.2"


def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def relay(port):
    """TCP from FORWARD to SERVER."""
    listener = socket.create_server((FORWARD, port))

    def serve():
        while True:
            client, _ = listener.accept()
            server = socket.create_connection((SERVER, port))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()


def measure(host, port, way):
    server = subprocess.Popen(["iperf3", "-s", "-1", "-B", SERVER, "-p", str(port)], stdout=subprocess.DEVNULL)
    try:
        listening(port, "tcp")
        client = ["iperf3", "-c", host, "-p", str(port), "-u", "-b", RATE, "-l", str(LENGTH), "-t", str(SECONDS), "--json"]
        output = json.loads(subprocess.run(client, capture_output=True, text=True, timeout=SECONDS + PATIENCE).stdout)
        assert "error" not in output, output["error"]
        total = output["end"]["sum"]
        order = sum(stream["udp"]["out_of_order"] for stream in output["end"]["streams"])
        sent, lost = total["packets"], total["lost_packets"]
        jitter = round(total["jitter_ms"], 3)
        row(recipe="iperf3", way=way, sent=sent, received=sent - lost, lost=lost, reordered=order, jitter_ms=jitter)
        assert (lost, order) == (0, 0)
    finally:
        server.kill()
        server.wait()


def main(eddy):
    needs("iperf3")
    port = free(1)
    measure(SERVER, port, "direct")
    with Chain(eddy, f"{FORWARD}:{port}={SERVER}:{port}"):
        relay(port)
        measure(FORWARD, port, "eddy")


if __name__ == "__main__":
    main(sys.argv[1])
