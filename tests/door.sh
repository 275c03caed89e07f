#!/usr/bin/env bash
# One host that sends what it likes to Mix 1, from its own address and from forged ones: a user who is in loses nothing,
# and a new user gets in within 5 s. In network namespaces without a route out. As root; skips otherwise.
# Usage: tests/door.sh [EDDY [SECONDS [MBIT...]]]     target/release/eddy, 8 s at 54 Mbit/s (10,000 datagrams a second)
set -euo pipefail
cd "$(dirname "$0")/.."

eddy=${1:-}
seconds=${2:-8}
rates=("${@:3}")
((${#rates[@]})) || rates=(54)
hosts=(a x user1 user2 evil far)
declare -A address=([a]=10.99.0.1 [x]=10.99.0.4 [user1]=10.99.0.11 [user2]=10.99.0.12 [evil]=10.99.0.66 [far]=10.99.0.99)
source tests/netns.sh

# Halves of message 1 with a right mac1, whole handshakes of noise, halves with a wrong cookie, and stray datagrams: SPEC
# 4.2. Forged sources have a /32 of their own each.
cat >"$dir/flood.py" <<'PYTHON'
import hashlib, os, random, socket, struct, sys, time

mix, noise, source, mbit, seconds = sys.argv[1], bytes.fromhex(sys.argv[2]), sys.argv[3], float(sys.argv[4]), float(sys.argv[5])
key = hashlib.blake2s(b"mac1----" + noise).digest()

def half(part, index, mac2):
    before = struct.pack(">BBHI", 1, part, 0, index) + os.urandom(632)
    return before + hashlib.blake2s(before, key=key, digest_size=16).digest() + mac2

payloads = []
for index in range(1024):
    mac2 = os.urandom(16) if index % 4 == 3 else bytes(16)
    payloads += [half(0, index, mac2), half(1, index, mac2)]
payloads += [os.urandom(size) for size in (0, 1, 64, 672, 1176, 1400) for _ in range(8)]

def header(payload, ip):
    udp = struct.pack(">HHHH", 7, 4700, 8 + len(payload), 0)
    return struct.pack(">BBHHHBBH4s4s", 0x45, 0, 28 + len(payload), 0, 0, 64, 17, 0, ip, socket.inet_aton(mix)) + udp

if source == "forged":
    out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    packets = [header(p, bytes([11, *os.urandom(3)])) + p for p in payloads]
else:
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    packets = payloads
begin, sent, number = time.monotonic(), 0, 0
while (passed := time.monotonic() - begin) < seconds:
    while sent < passed * mbit * 125_000:
        packet = packets[number % len(packets)]
        number += 1
        out.sendto(packet, (mix, 4700))
        sent += len(packet)
    time.sleep(0.001)
print(f"{number} datagrams, {sent * 8 / 1e6 / seconds:.1f} Mbit/s")
PYTHON

began=$SECONDS
for node in "a mix" "x exit"; do
    read -r host role <<<"$node"
    (cd "$dir/$host" && on "$host" "$eddy" keygen --role "$role" --address "${address[$host]}:4700" >keygen.out)
done
"$eddy" assemble "$dir/a/node.desc" --exit "$dir/x/node.desc" --out "$dir/chain.toml" >"$dir/assemble.out"
for host in a x user1 user2; do cp "$dir/chain.toml" "$dir/$host/"; done
noise=$("$eddy" inspect "$dir/a/node.desc" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["noise"])')
on a sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0

start_node x exit --config node.toml --allow "${address[far]}"
start_node a mix --config node.toml
for host in a x; do until_true "$host is ready" grep -q "ready: " "$dir/$host/log"; done
background far python3 "$dir/traffic.py" echo "${address[far]}"
start_user user1
start_traffic user1 throughout

for rate in "${rates[@]}"; do
    for source in own forged; do
        case=$source-$rate
        start_traffic user1 "$case"
        (on evil python3 "$dir/flood.py" "${address[a]}" "$noise" "$source" "$rate" "$seconds" >"$dir/flood") &
        flood=$!
        sleep 2
        joined=$(date +%s%N)
        start_user user2
        start_traffic user2 "new-$case"
        took=$((($(date +%s%N) - joined) / 1000000))
        wait "$flood" || fail "the flood failed"
        end_traffic "$case"
        read -r sent lost which <"$dir/traffic-$case"
        echo "$source, $(<"$dir/flood"): $lost of $sent datagrams of a user lost; a new one was in after $took ms"
        [[ $lost == 0 ]] || fail "a running link lost $lost of $sent datagrams: $which"
        end_traffic "new-$case"
        ((took <= 5000)) || fail "the new user got in only after $took ms"
        kill "${pid[user2]}"
        wait "${pid[user2]}" 2>/dev/null || true
        unset "pid[user2]"
        rm -f "$dir/user2/"{log,entry.sock,entry.state}
    done
done
end_traffic throughout
read -r sent lost which <"$dir/traffic-throughout"
[[ $lost == 0 ]] || fail "a running link lost $lost of $sent datagrams over all floods: $which"
status a '", ".join(f"{why} {count}" for why, count in sorted(report["refused"].items()))'
no_node_failed
echo "passed in $((SECONDS - began)) s"
