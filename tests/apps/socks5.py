"""PySocks and curl against `eddy chain --stay --socks`. The path of eddy is the argument; exit code 0 if all held."""

import json
import socket
import subprocess
import sys
import threading

import socks

PATIENCE = 10


def echo():
    """A UDP server on loopback that sends everything back, and its address."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))

    def serve():
        while True:
            data, peer = server.recvfrom(65535)
            server.sendto(data, peer)

    threading.Thread(target=serve, daemon=True).start()
    return server.getsockname()


def client(proxy, username=None):
    made = socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM)
    password = None if username is None else "any"
    made.set_proxy(socks.SOCKS5, *proxy, rdns=True, username=username, password=password)
    made.settimeout(PATIENCE)
    return made


def main(eddy):
    command = [eddy, "chain", "--stay", "--json", "--lifeline", "--messages", "1", "--receivers", "1"]
    command += ["--socks", "127.0.0.1:0"]
    chain = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        up = json.loads(chain.stdout.readline())
        host, port = up["socks"][0].rsplit(":", 1)
        proxy = (host, int(port))
        one, other = echo(), echo()

        associated = client(proxy)
        for length in (0, 1, 1000, 1300, 5000):
            for peer in (one, other):
                data = bytes([length % 251]) * length
                associated.sendto(data, peer)
                answer, source = associated.recvfrom(65535)
                assert answer == data, f"{length} bytes came back as {len(answer)}"
                assert source == peer, f"an answer of {peer} bears {source}"
        print("PySocks: 10 datagrams of 0 to 5000 bytes to 2 peers came back, each from where it was sent")

        named = client(proxy, username="somebody")
        named.sendto(b"by name", ("127.0.0.1", one[1]))
        assert named.recvfrom(100) == (b"by name", one)
        print("PySocks with a name and password: the same")

        for scheme in ("socks5", "socks5h"):
            address = f"{scheme}://{host}:{port}"
            curl = ["curl", "-sS", "--max-time", str(PATIENCE), "--proxy", address, "http://127.0.0.1:9/"]
            said = subprocess.run(curl, capture_output=True, text=True)
            assert said.returncode == 97 and "(7)" in said.stderr, f"curl: {said.returncode} {said.stderr}"
        print("curl: CONNECT is refused with 7, command not supported")

        associated.close()
        named.close()
        chain.stdin.close()
        report = json.loads(chain.stdout.read().strip().splitlines()[-1])
        for node in report["nodes"]:
            for unit in node["ledger"].values():
                for direction in ("forward", "backward"):
                    assert unit[direction]["closed"], f"{node['role']}: {unit[direction]}"
        print("every ledger closes")
    finally:
        chain.stdin.close()
        chain.wait(timeout=2 * PATIENCE)


if __name__ == "__main__":
    main(sys.argv[1])
