"""Calls of sipp, directly and through forwards: each is set up, carries audio, and is hung up."""

import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

from chain import PATIENCE, Chain, free, listening, needs, row

CALLS, RATE, HELD_MS = 20, 10, 2000
# What is said: PCMU, 8,000 bytes a second, by sipp in packets of 20 ms.
CLOCK, SAID_MS = 8000, 1500


class Ear:
    """Hears RTP (RFC 3550) at a port until it is closed."""

    def __init__(self, port, host="127.0.0.1"):
        self.heard = {}
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.bind((host, port))
        self.socket.settimeout(0.1)
        self.open = True
        self.thread = threading.Thread(target=self.listen)
        self.thread.start()

    def listen(self):
        while self.open:
            try:
                packet = self.socket.recv(2000)
            except TimeoutError:
                continue
            number, stamp, source = (int.from_bytes(packet[a:b], "big") for a, b in ((2, 4), (4, 8), (8, 12)))
            self.heard.setdefault(source, []).append((number, stamp, time.monotonic()))

    def close(self):
        self.open = False
        self.thread.join()
        self.socket.close()

    def figures(self):
        """Of all streams: packets, lost, out of order, and the mean of their last jitters in ms (RFC 3550, 6.4.1)."""
        received = lost = late = 0
        jitters = []
        for packets in self.heard.values():
            first = packets[0][0]
            numbers = [(number - first + 0x8000) % 0x10000 - 0x8000 for number, *_ in packets]
            received += len(set(numbers))
            lost += max(numbers) - min(numbers) + 1 - len(set(numbers))
            late += sum(number < max(numbers[: at + 1]) for at, number in enumerate(numbers))
            jitter = 0
            for (_, stamp, at), (_, next_stamp, next_at) in zip(packets, packets[1:]):
                step = (next_stamp - stamp + 0x80000000) % 0x100000000 - 0x80000000
                spread = (next_at - at) - step / CLOCK
                jitter += (abs(spread) - jitter) / 16
            jitters.append(1000 * jitter)
        return received, lost, late, round(sum(jitters) / max(len(jitters), 1), 3)


def scenarios(folder, media):
    """sipp's own, but whoever answers is heard at port `media` and the caller speaks."""
    own = {name: subprocess.run(["sipp", "-sd", name], capture_output=True, text=True).stdout for name in ("uac", "uas")}
    speak = f'<nop><action><exec rtp_stream="{folder}/said.raw,1,0"/></action></nop>'
    caller = re.sub(r"(ACK sip:.*?</send>)", lambda found: found[1] + speak, own["uac"], count=1, flags=re.DOTALL)
    for name, text in (("uac", caller), ("uas", own["uas"].replace("[media_port]", str(media)))):
        with open(f"{folder}/{name}.xml", "w") as file:
            file.write(text)


def measure(server_port, ear_port, port, media, way, folder):
    scenarios(folder, media)
    server = ["sipp", "-sf", f"{folder}/uas.xml", "-i", "127.0.0.1", "-p", str(server_port), "-nostdin"]
    server = subprocess.Popen(server, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ear = Ear(ear_port)
    try:
        listening(server_port)
        command = ["sipp", "-sf", f"{folder}/uac.xml", f"127.0.0.1:{port}", "-i", "127.0.0.1", "-m", str(CALLS)]
        command += ["-r", str(RATE), "-d", str(HELD_MS), "-nostdin", "-trace_stat", "-fd", "1", "-stf", f"{folder}/{way}.csv"]
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE + 20)
    finally:
        ear.close()
        server.kill()
        server.wait()
    with open(f"{folder}/{way}.csv") as lines:
        names, *_, last = [line.rstrip("\n").split(";") for line in lines]
    figures = dict(zip(names, last))
    held, again = int(figures["SuccessfulCall(C)"]), int(figures["Retransmissions(C)"])
    *_, seconds, micros = figures["ResponseTime1(C)"].split(":")
    setup = 1000 * int(seconds) + int(micros) // 1000
    row(recipe="sip", way=way, sent=CALLS, received=held, lost=CALLS - held, retransmitted=again, setup_ms=setup)
    received, lost, late, jitter = ear.figures()
    row(recipe="sip's RTP", way=way, sent=received + lost, received=received, lost=lost, reordered=late, jitter_ms=jitter)
    assert ended.returncode == 0 and held == CALLS and again == 0, ended.stderr
    assert len(ear.heard) == CALLS and received >= CALLS * (SAID_MS // 20 - 2) and lost == late == 0


def main(eddy):
    needs("sipp")
    server, ear = free(1), free(4) + 2
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/said.raw", "wb") as file:
            file.write(bytes(range(256)) * (CLOCK * SAID_MS // 1000 // 256 + 1))
        measure(server, ear, server, ear, "direct", folder)
        with Chain(eddy, f"127.0.0.1:{server}", f"127.0.0.1:{ear}") as chain:
            through = [chain.forward(f"127.0.0.1:{port}") for port in (server, ear)]
            measure(server, ear, *through, "eddy", folder)


if __name__ == "__main__":
    main(sys.argv[1])
