"""WireGuard between two users who meet in a paced class, and SIP with RTP inside it, as the handbook says.

Commands and settings are those of the section "Call somebody through eddy" of docs/OPERATE.md. Network namespaces as in
wireguard.py.
"""

import os
import re
import subprocess
import sys
import tempfile
import time

from chain import PATIENCE, free, listening, needs, row
from sip import CLOCK, HELD_MS, SAID_MS, Ear, scenarios
from wireguard import End, apart, run

HANDBOOK = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../docs/OPERATE.md")
# Short batches, and steps for a busy host.
CLASS = "video:rounds=512,n_min=2,seats=16,loops=0,steps_ms=6"
CALLS, SIP, MEDIA = 3, 5060, 6000


def handbook():
    """The commands of both users, and WireGuard's MTU and keepalive."""
    with open(HANDBOOK) as file:
        section = file.read().split("### Call somebody through eddy\n")[1].split("\n### ")[0]
    commands = [block.strip() for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL)]
    assert len(commands) == 2 and "Endpoint = 127.0.0.1:5000" in section, commands
    mtu = re.search(r"\(`video`\) an `MTU` of (\d+)", section)
    keepalive = re.search(r"PersistentKeepalive = (\d+)", section)
    return commands, int(mtu[1]), int(keepalive[1])


class Nodes:
    """Processes that end with the `with` block, and their logs."""

    def __init__(self, folder, eddy):
        self.folder, self.all = folder, []
        # As an operator has it.
        os.symlink(eddy, f"{folder}/eddy")
        self.environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}

    def shell(self, command):
        subprocess.run(command, shell=True, check=True, cwd=self.folder, env=self.environment, stdout=subprocess.DEVNULL)

    def start(self, name, command):
        log = f"{self.folder}/{name}.log"
        with open(log, "w") as out:
            more = {"cwd": self.folder, "env": self.environment, "stdout": out, "stderr": out}
            self.all.append(subprocess.Popen(["sh", "-c", f"exec {command}"], **more))
        return log

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.all:
            process.terminate()
        for process in self.all:
            process.wait(timeout=PATIENCE)


def says(log, text):
    """Waits for a line of a log."""
    deadline = time.monotonic() + 2 * PATIENCE
    while time.monotonic() < deadline:
        with open(log) as lines:
            said = lines.read()
        if text in said:
            return
        time.sleep(0.1)
    raise TimeoutError(f"{log} does not say {text!r}: {said[-2000:]}")


def answer(folder, address):
    """Answers calls, and hears them until standard input closes."""
    command = ["sipp", "-sf", f"{folder}/uas.xml", "-i", address, "-p", str(SIP), "-nostdin"]
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ear = Ear(MEDIA, address)
    listening(SIP)
    print("ready", flush=True)
    sys.stdin.read()
    ear.close()
    server.kill()
    server.wait()
    received, lost, late, jitter = ear.figures()
    row(recipe="RTP in a meeting", way="eddy", sent=received + lost, received=received, lost=lost, reordered=late, jitter_ms=jitter)
    assert len(ear.heard) == CALLS, f"{len(ear.heard)} of {CALLS} calls were heard"


def call(here, there, folder):
    """SIP and RTP between the ends of the tunnel."""
    scenarios(folder, MEDIA)
    with open(f"{folder}/said.raw", "wb") as file:
        file.write(bytes(range(256)) * (CLOCK * SAID_MS // 1000 // 256 + 1))
    script = there.command(sys.executable, os.path.abspath(__file__), "answer", folder, there.address)
    answering = subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert answering.stdout.readline() == "ready\n"
    command = ["sipp", "-sf", f"{folder}/uac.xml", f"{there.address}:{SIP}", "-i", here.address, "-m", str(CALLS), "-nostdin"]
    command = here.command(*command, "-r", str(CALLS), "-d", str(HELD_MS))
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=2 * PATIENCE)
    output, _ = answering.communicate(timeout=PATIENCE)
    sys.stdout.write(output)
    row(recipe="SIP in a meeting", way="eddy", sent=CALLS, received=CALLS if ended.returncode == 0 else 0)
    assert ended.returncode == 0 and answering.returncode == 0, ended.stderr


def main(eddy):
    eddy = os.path.abspath(eddy)
    needs("sipp")
    apart(eddy)
    commands, mtu, keepalive = handbook()
    first, ends = free(4), []
    with tempfile.TemporaryDirectory() as folder, Nodes(folder, eddy) as nodes:
        nodes.shell(f"eddy init chain --mixes 2 --class S --class {CLASS}")
        for name in ("mix1", "mix2", "exit"):
            says(nodes.start(name, f"eddy {name.rstrip('12')} --config chain/{name}.toml"), "ready: ")
        nodes.shell(commands[0])
        logs = []
        # The log says who is there at this level alone.
        for user in range(2):
            ours = commands[1].replace("127.0.0.1:5000", f"127.0.0.1:{first + user}").replace("class=voice", "class=video")
            logs.append(nodes.start(f"user{user}", ours.replace("chain.toml", "chain/chain.toml") + " --log debug"))
        for log in logs:
            says(log, "meeting: joined")
        try:
            for number, name in enumerate(("wg-here", "wg-there")):
                ends.append(End(name, f"10.9.0.{1 + number}", first + 2 + number, folder, mtu))
            here, there = ends
            here.peer(there, first, keepalive)
            there.peer(here, first + 1, keepalive)
            # The first one opens the tunnel.
            here.inside("ping", "-n", "-c", "1", "-w", str(PATIENCE), there.address)
            output = here.inside("ping", "-n", "-c", "20", "-i", "0.2", "-W", "5", there.address)
            answered = int(output.split(" received")[0].rsplit(" ", 1)[1])
            rtt = float(output.split("rtt min/avg/max/mdev = ")[1].split("/")[1])
            row(recipe="WireGuard in a meeting", way="eddy", sent=20, received=answered, lost=20 - answered, rtt_ms=round(rtt, 1))
            assert answered >= 10
            call(here, there, folder)
        finally:
            for end in ends:
                end.close()


if __name__ == "__main__":
    if sys.argv[1] == "answer":
        answer(*sys.argv[2:])
    else:
        main(sys.argv[1])
