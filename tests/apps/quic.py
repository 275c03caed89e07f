"""A download over QUIC and HTTP/3 (ngtcp2), directly and through a forward: every byte, and the packets lost."""

import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from chain import PATIENCE, Chain, free, listening, needs, row

SIZE = 20_000_000


def events(folder, kind):
    """Counts events in the server's log of a connection, which is complete when the server ends."""
    [log] = pathlib.Path(folder).glob("*.sqlog")
    # RFC 7464: each record begins with a separator.
    names = [json.loads(record).get("name") for record in log.read_text().split("\x1e")[1:]]
    log.unlink()
    return [names.count(name) for name in kind]


class Server:
    """An HTTP/3 server for one download, with a key of its own."""

    def __init__(self, folder, port):
        self.folder = folder
        command = ["/usr/sbin/gtlsserver", "-q", f"--htdocs={folder}/htdocs", f"--qlog-dir={folder}/log", "127.0.0.1"]
        command += [str(port), f"{folder}/key", f"{folder}/cert"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # SIGINT ends it in order, so that its log is complete.
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=PATIENCE)


def download(server_port, through, way, folder, digest):
    with Server(folder, server_port):
        listening(server_port)
        began = time.monotonic()
        client = ["gtlsclient", "-q", "--exit-on-all-streams-close", "--timeout=5s", f"--download={folder}"]
        # Windows larger than a few milliseconds' worth of data.
        client += ["--max-data=24M", "--max-stream-data-bidi-local=16M", "127.0.0.1", str(through)]
        client += ["https://localhost/file"]
        ended = subprocess.run(client, capture_output=True, text=True, timeout=PATIENCE + 20)
        took = time.monotonic() - began
    got = pathlib.Path(folder, "file")
    assert got.exists(), ended.stderr[-2000:]
    whole = hashlib.sha256(got.read_bytes()).hexdigest() == digest
    got.unlink()
    sent, lost = events(f"{folder}/log", ["transport:packet_sent", "recovery:packet_lost"])
    row(recipe="quic", way=way, sent=sent, received=sent - lost, lost=lost, goodput_mbit=round(8 * SIZE / took / 1e6, 1))
    assert whole, "the downloaded file differs"


def main(eddy):
    needs("gtlsclient", "/usr/sbin/gtlsserver", "openssl")
    port = free(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("htdocs", "log"):
            os.mkdir(f"{folder}/{name}")
        data = os.urandom(SIZE)
        pathlib.Path(folder, "htdocs", "file").write_bytes(data)
        certificate = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        certificate += ["-subj", "/CN=localhost", "-keyout", f"{folder}/key", "-out", f"{folder}/cert"]
        subprocess.run(certificate, check=True, capture_output=True, timeout=PATIENCE)
        digest = hashlib.sha256(data).hexdigest()
        download(port, port, "direct", folder, digest)
        with Chain(eddy, f"127.0.0.1:{port}") as chain:
            download(port, chain.forward(f"127.0.0.1:{port}"), "eddy", folder, digest)


if __name__ == "__main__":
    main(sys.argv[1])
