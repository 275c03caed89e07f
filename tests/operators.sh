#!/usr/bin/env bash
# Four operators and two users, each in a network namespace of its own, on one Ethernet: they exchange descriptors and
# the chain file, and nothing else. Traffic crosses three epochs while one operator renews its descriptor and a second
# user joins: nothing may be lost. Then an operator moves to an address that it has announced: traffic must be back
# within 15 s. As root; skips otherwise.
# Usage: tests/operators.sh [EDDY]     target/release/eddy unless given
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
    echo "skipped: $1"
    exit 0
}
[[ $(id -u) == 0 ]] || skip "needs root, for network namespaces"
command -v ip >/dev/null || skip "needs ip(8): apt-get install iproute2"
command -v python3 >/dev/null || skip "needs python3"

eddy=${1:-}
if [[ -z $eddy ]]; then
    cargo build -q --release --locked
    target=$(cargo metadata --format-version 1 --no-deps --locked | grep -o '"target_directory":"[^"]*"' | cut -d '"' -f 4)
    eddy=$target/release/eddy
fi
eddy=$(realpath "$eddy")

dir=$(mktemp -d)
tag=eddy$$
hosts=(a b c x user1 user2 far)
declare -A address=([a]=10.99.0.1 [b]=10.99.0.2 [c]=10.99.0.3 [x]=10.99.0.4 [user1]=10.99.0.11 [user2]=10.99.0.12 [far]=10.99.0.99)
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

began=$SECONDS
echo "each operator draws the keys of its own node"
for node in "a mix" "b mix" "c mix" "x exit"; do
    read -r host role <<<"$node"
    (cd "$dir/$host" && on "$host" "$eddy" keygen --role "$role" --address "${address[$host]}:4700" >keygen.out)
    cp "$dir/$host/node.desc" "$dir/$host.desc"
done

echo "anyone assembles the chain; everyone gets chain.toml"
(cd "$dir" && "$eddy" assemble a.desc b.desc c.desc --exit x.desc --interval 1 --epoch 10 --lifetime-s 20 >assemble.out)
for host in a b c x user1 user2; do cp "$dir/chain.toml" "$dir/$host/"; done

declare -A pid
start_node() { # HOST ROLE ARGUMENTS...
    local host=$1 role=$2
    shift 2
    (cd "$dir/$host" && exec ip netns exec "$tag-$host" "$eddy" "$role" "$@" >>out 2>>log) &
    pid[$host]=$!
    pids+=("$!")
}
start_node x exit --config node.toml --allow 10.99.0.99
for host in c b a; do start_node "$host" mix --config node.toml; done
for host in a b c x; do until_true "$host is ready" grep -q "ready: " "$dir/$host/log"; done

background far python3 "$dir/traffic.py" echo "${address[far]}"
start_user() { # USER
    start_node "$1" entry --chain chain.toml --status entry.sock --forward 127.0.0.1:5000=10.99.0.99:7000
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
start_user user1
start_traffic user1 one
echo "the first user sends after $((SECONDS - began)) s"

status() { # HOST PYTHON-EXPRESSION over `report`
    (cd "$dir/$1" && on "$1" "$eddy" status --socket "${3:-node.sock}" --json) |
        python3 -c "import json, sys; report = json.load(sys.stdin); print($2)"
}
revision_of() { # FILE
    "$eddy" inspect "$dir/$1" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["revision"])'
}
epoch() { status a 'report["trust"]["epoch"]'; }
is() { [[ $(status "$1" "$2" "${4:-node.sock}" 2>/dev/null) == "$3" ]]; }
first_epoch=$(epoch)

echo "operator b renews its descriptor, where its identity is, and sends its node SIGHUP"
mkdir "$dir/offline"
mv "$dir/b/identity.key" "$dir/offline/"
cp "$dir/b/node.desc" "$dir/offline/"
(cd "$dir/offline" && "$eddy" renew --identity identity.key node.desc >renew.out)
cp "$dir/offline/node.desc" "$dir/b/node.desc"
revision=$(revision_of offline/node.desc)
kill -HUP "${pid[b]}"
for host in a b c x; do
    until_true "$host has the new descriptor of b" is "$host" 'report["trust"]["hops"][1]["revision"]' "$revision"
done

echo "a second user joins"
start_user user2
start_traffic user2 two

later() { (($(epoch) >= first_epoch + 3)); }
until_true "three epochs pass" later
end_traffic one
end_traffic two
for name in one two; do
    read -r sent lost which <"$dir/traffic-$name"
    echo "traffic $name: $sent datagrams there and back, $lost lost"
    [[ $lost == 0 ]] || fail "traffic $name lost $lost of $sent datagrams: $which"
done

echo "operator c announces a second address, and moves there when its neighbours know it"
(cd "$dir/c" && "$eddy" renew --identity identity.key node.desc --address 10.99.0.3 --address 10.99.0.33 >/dev/null)
revision=$(revision_of c/node.desc)
kill -HUP "${pid[c]}"
for host in b x; do
    until_true "$host has the new descriptor of c" is "$host" 'report["trust"]["hops"][2]["revision"]' "$revision"
done
kill "${pid[c]}"
wait "${pid[c]}" 2>/dev/null || true
ip -n "$tag-c" address delete 10.99.0.3/24 dev eth0
ip -n "$tag-c" address add 10.99.0.33/24 dev eth0
sed -i 's/^up = .*/up = "10.99.0.33:4700"/' "$dir/c/node.toml"
moved=$SECONDS
start_node c mix --config node.toml
background user1 python3 "$dir/traffic.py" client "$dir/stop-three" "$dir/traffic-three"
until_true "traffic is back after the move" test -s "$dir/traffic-three.first"
took=$((SECONDS - moved))
touch "$dir/stop-three"
echo "traffic is back $took s after the move"
((took <= 15)) || fail "traffic came back only $took s after the move"

for host in a b c x user1 user2; do
    ! grep -q panicked "$dir/$host/log" || fail "$host panicked"
    kill -0 "${pid[$host]}" 2>/dev/null || fail "the node of $host has ended"
done
echo "passed in $((SECONDS - began)) s"
