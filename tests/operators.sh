#!/usr/bin/env bash
# Four operators and two users, each in a network namespace of its own, on one Ethernet: they exchange descriptors and
# the chain file, and nothing else. Traffic crosses three epochs while one operator renews its descriptor and a second
# user joins: nothing may be lost. Then an operator moves to an address that it has announced: traffic must be back
# within 15 s. As root; skips otherwise.
# Usage: tests/operators.sh [EDDY]     target/release/eddy unless given
set -euo pipefail
cd "$(dirname "$0")/.."

eddy=${1:-}
hosts=(a b c x user1 user2 far)
declare -A address=([a]=10.99.0.1 [b]=10.99.0.2 [c]=10.99.0.3 [x]=10.99.0.4 [user1]=10.99.0.11 [user2]=10.99.0.12 [far]=10.99.0.99)
source tests/netns.sh

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

start_node x exit --config node.toml --allow 10.99.0.99
for host in c b a; do start_node "$host" mix --config node.toml; done
for host in a b c x; do until_true "$host is ready" grep -q "ready: " "$dir/$host/log"; done

background far python3 "$dir/traffic.py" echo "${address[far]}"
start_user user1
start_traffic user1 one
echo "the first user sends after $((SECONDS - began)) s"

revision_of() { # FILE
    "$eddy" inspect "$dir/$1" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["revision"])'
}
epoch() { status a 'report["trust"]["epoch"]'; }
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

no_node_failed
echo "passed in $((SECONDS - began)) s"
