"""ffmpeg sends video (H.264) and audio (Opus) as RTP, directly and through forwards; another ffmpeg decodes them.

The frames that it decodes are counted, and its error messages. Its decoder holds the last one or two when it ends; the
direct run shows how many.
"""

import re
import signal
import subprocess
import sys
import tempfile

from chain import PATIENCE, Chain, free, listening, needs, row

SECONDS, RATE = 4, 30

SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=eddy
c=IN IP4 127.0.0.1
t=0 0
m=video {video} RTP/AVP 96
a=rtpmap:96 H264/90000
a=fmtp:96 packetization-mode=1
m=audio {audio} RTP/AVP 97
a=rtpmap:97 opus/48000/2
"""
ERRORS = re.compile(r"missed|error|conceal|corrupt|invalid|late", re.IGNORECASE)


def send(video, audio):
    """Sends to (RTP port, RTCP port) of each."""
    command = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-nostdin", "-re"]
    command += ["-f", "lavfi", "-i", f"testsrc2=size=640x360:rate={RATE}:duration={SECONDS}"]
    command += ["-f", "lavfi", "-i", f"sine=frequency=440:sample_rate=48000:duration={SECONDS}"]
    command += ["-map", "0:v", "-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-g", str(RATE)]
    command += ["-x264-params", "repeat-headers=1", "-b:v", "1M", "-pix_fmt", "yuv420p", "-payload_type", "96"]
    command += ["-f", "rtp", f"rtp://127.0.0.1:{video[0]}?rtcpport={video[1]}&pkt_size=1200"]
    command += ["-map", "1:a", "-c:a", "libopus", "-ac", "2", "-payload_type", "97"]
    command += ["-f", "rtp", f"rtp://127.0.0.1:{audio[0]}?rtcpport={audio[1]}&pkt_size=1200"]
    subprocess.run(command, stdout=subprocess.DEVNULL, timeout=SECONDS + PATIENCE, check=True)


def measure(receive, video, audio, way):
    with tempfile.NamedTemporaryFile("w", suffix=".sdp") as sdp:
        sdp.write(SDP.format(video=receive, audio=receive + 2))
        sdp.flush()
        command = ["ffmpeg", "-hide_banner", "-loglevel", "warning", "-nostats", "-nostdin", "-progress", "pipe:1"]
        command += ["-protocol_whitelist", "file,udp,rtp", "-analyzeduration", "500000", "-i", sdp.name]
        command += ["-map", "0:v", "-f", "null", "/dev/null", "-map", "0:a", "-f", "framehash", "-"]
        receiver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for port in range(receive, receive + 4):
            listening(port)
        send(video, audio)
        # Datagrams still held by mixing arrive within moments.
        try:
            receiver.wait(timeout=5)
        except subprocess.TimeoutExpired:
            receiver.send_signal(signal.SIGINT)
        output, errors = receiver.communicate(timeout=PATIENCE)
    frames = max((int(number) for number in re.findall(r"^frame=\s*(\d+)", output, re.MULTILINE)), default=0)
    heard = len(re.findall(r"^\d+,", output, re.MULTILINE))
    errors = [line for line in errors.splitlines() if ERRORS.search(line)]
    sent = SECONDS * RATE
    row(recipe="ffmpeg", way=way, sent=sent, received=frames, lost=sent - frames, audio=heard, errors=len(errors))
    return frames, heard, errors


def main(eddy):
    needs("ffmpeg")
    receive = free(4)
    ports = [receive + offset for offset in range(4)]
    direct = measure(receive, (ports[0], ports[1]), (ports[2], ports[3]), "direct")
    with Chain(eddy, *(f"127.0.0.1:{port}" for port in ports)) as chain:
        through = [chain.forward(f"127.0.0.1:{port}") for port in ports]
        carried = measure(receive, (through[0], through[1]), (through[2], through[3]), "eddy")
    assert carried[0] >= direct[0] and carried[1] >= direct[1], f"{carried[:2]} of {direct[:2]} frames were decoded"
    assert len(carried[2]) <= len(direct[2]), "\n".join(carried[2])


if __name__ == "__main__":
    main(sys.argv[1])
