"""Calls of sipp, straight and through a forward: each is set up, held, and hung up."""

import subprocess
import sys
import tempfile

from chain import PATIENCE, Chain, free, listening, needs, row

CALLS, RATE, HELD_MS = 20, 10, 500


def measure(port, way, folder):
    command = ["sipp", "-sn", "uac", f"127.0.0.1:{port}", "-i", "127.0.0.1", "-m", str(CALLS), "-r", str(RATE)]
    command += ["-d", str(HELD_MS), "-nostdin", "-trace_stat", "-fd", "1", "-stf", f"{folder}/{way}.csv"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE + 20)
    with open(f"{folder}/{way}.csv") as lines:
        names, *_, last = [line.rstrip("\n").split(";") for line in lines]
    figures = dict(zip(names, last))
    held, again = int(figures["SuccessfulCall(C)"]), int(figures["Retransmissions(C)"])
    *_, seconds, micros = figures["ResponseTime1(C)"].split(":")
    setup = 1000 * int(seconds) + int(micros) // 1000
    row(recipe="sip", way=way, sent=CALLS, received=held, lost=CALLS - held, retransmitted=again, setup_ms=setup)
    assert ended.returncode == 0 and held == CALLS and again == 0, ended.stderr


def main(eddy):
    needs("sipp")
    port = free(1)
    with tempfile.TemporaryDirectory() as folder:
        server = ["sipp", "-sn", "uas", "-i", "127.0.0.1", "-p", str(port), "-nostdin"]
        server = subprocess.Popen(server, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            listening(port)
            measure(port, "direct", folder)
            with Chain(eddy, f"127.0.0.1:{port}") as chain:
                measure(chain.forward(f"127.0.0.1:{port}"), "eddy", folder)
        finally:
            server.kill()
            server.wait()


if __name__ == "__main__":
    main(sys.argv[1])
