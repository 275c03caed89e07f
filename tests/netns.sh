# Nodes in network namespaces of their own, on one Ethernet. Sourced by scripts that define the array `hosts`, the map
# `address` and the variable `eddy` (empty: the release build). As root; skips otherwise.

skip() {
    echo "skipped: $1"
    exit 0
}
[[ $(id -u) == 0 ]] || skip "needs root, for network namespaces"
command -v ip >/dev/null || skip "needs ip(8): apt-get install iproute2"
command -v python3 >/dev/null || skip "needs python3"

if [[ -z $eddy ]]; then
    cargo build -q --release --locked
    target=$(cargo metadata --format-version 1 --no-deps --locked | grep -o '"target_directory":"[^"]*"' | cut -d '"' -f 4)
    eddy=$target/release/eddy
fi
eddy=$(realpath "$eddy")

dir=$(mktemp -d)
tag=eddy$$
pids=()

cleanup() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    for host in "${hosts[@]}" switch; do ip netns delete "$tag-$host" 2>/dev/null || true; done
    rm -rf "$dir"
}
trap cleanup EXIT

fail() {
    echo "FAILED: $1" >&2
    for log in "$dir"/*/log; do
        echo "-- $log" >&2
        tail -n 15 "$log" >&2
    done
    exit 1
}

on() { # HOST COMMAND...
    local host=$1
    shift
    ip netns exec "$tag-$host" "$@"
}

# In the background, until the end of this script.
background() { # HOST COMMAND...
    local host=$1
    shift
    (exec ip netns exec "$tag-$host" "$@") &
    pids+=("$!")
}

# Waits up to 60 s for a command to succeed.
until_true() { # WHAT COMMAND...
    local what=$1 deadline=$((SECONDS + 60))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || fail "still waiting: $what"
        sleep 0.1
    done
}

ip netns add "$tag-switch" 2>/dev/null || skip "cannot make network namespaces"
ip -n "$tag-switch" link add br0 type bridge 2>/dev/null || skip "the kernel has no Ethernet bridge"
ip -n "$tag-switch" link set br0 up
for host in "${hosts[@]}"; do
    ip netns add "$tag-$host"
    ip -n "$tag-$host" link set lo up
    ip link add eth0 netns "$tag-$host" type veth peer name "to-$host" netns "$tag-switch"
    ip -n "$tag-switch" link set "to-$host" master br0 up
    ip -n "$tag-$host" address add "${address[$host]}/24" dev eth0
    ip -n "$tag-$host" link set eth0 up
    mkdir "$dir/$host"
done

cat >"$dir/traffic.py" <<'PYTHON'
import os, select, socket, sys, time

if sys.argv[1] == "echo":
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((sys.argv[2], 7000))
    while True:
        data, peer = server.recvfrom(2048)
        server.sendto(data, peer)

# Sends numbered datagrams through the forward until the file STOP exists, and writes to OUT how many were sent since the
# first one that was answered, how many of them were not, and which. OUT.first has the number of that first one.
_, _, stop, out = sys.argv  # "client" STOP OUT
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect(("127.0.0.1", 5000))
number, answered, sent_at, first = 0, set(), 0.0, None
ending = None
while ending is None or time.monotonic() < ending:
    now = time.monotonic()
    if ending is None and now >= sent_at + 0.005:
        sent_at = now
        number += 1
        try:
            client.send(number.to_bytes(8, "big"))
        except ConnectionError:
            pass
    if ending is None and os.path.exists(stop):
        ending = now + 2
    if select.select([client], [], [], 0.002)[0]:
        try:
            got = int.from_bytes(client.recv(64), "big")
        except ConnectionError:
            continue
        if first is None:
            first = got
            open(out + ".first", "w").write(str(got))
        answered.add(got)
counted = [n for n in range(first or 1, number + 1)]
lost = [n for n in counted if n not in answered]
open(out, "w").write(f"{len(counted)} {len(lost)} {lost[:20]}\n")
PYTHON

declare -A pid
start_node() { # HOST ROLE ARGUMENTS...
    local host=$1 role=$2
    shift 2
    : >>"$dir/$host/log"
    (cd "$dir/$host" && exec ip netns exec "$tag-$host" "$eddy" "$role" "$@" >>out 2>>log) &
    pid[$host]=$!
    pids+=("$!")
}

# Enters the chain with its public file alone.
start_user() { # USER
    start_node "$1" entry --chain chain.toml --status entry.sock --forward 127.0.0.1:5000=${address[far]}:7000
    until_true "$1 is ready" grep -q "ready: " "$dir/$1/log"
}
start_traffic() { # USER NAME
    background "$1" python3 "$dir/traffic.py" client "$dir/stop-$2" "$dir/traffic-$2"
    until_true "$1's traffic is answered" test -s "$dir/traffic-$2.first"
}
end_traffic() { # NAME
    touch "$dir/stop-$1"
    until_true "traffic $1 ends" test -s "$dir/traffic-$1"
}

status() { # HOST PYTHON-EXPRESSION over `report`
    (cd "$dir/$1" && on "$1" "$eddy" status --socket "${3:-node.sock}" --json) |
        python3 -c "import json, sys; report = json.load(sys.stdin); print($2)"
}
is() { [[ $(status "$1" "$2" "${4:-node.sock}" 2>/dev/null) == "$3" ]]; }

no_node_failed() {
    for host in "${!pid[@]}"; do
        ! grep -q panicked "$dir/$host/log" || fail "$host panicked"
        kill -0 "${pid[$host]}" 2>/dev/null || fail "the node of $host has ended"
    done
}
