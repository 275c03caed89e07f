#!/usr/bin/env bash
# Half an hour of everything at once: bad links, hostile datagrams at every port, a node restarted every minute.
# Usage: .ci/soak.sh [SECONDS]   (1800 unless given). Prints the record in docs/BENCHMARKS.md.
# Runs in a network namespace without a route where one may be made. Where not, the exit's policy, which admits
# loopback alone and is proven to before anything hostile is sent, has to be enough.
set -euo pipefail
cd "$(dirname "$0")/.."
export EDDY_SOAK_SECONDS=${1:-1800}
test=(cargo test --release --test it)
"${test[@]}" --no-run
test+=(-- --ignored --exact --nocapture soak::long_soak_crashes_nothing_and_closes_ledgers)
own=(unshare -n)
[[ $(id -u) == 0 ]] || own=(unshare -rn)
if "${own[@]}" ip link set lo up 2>/dev/null; then
    CARGO_NET_OFFLINE=true exec "${own[@]}" sh -c 'ip link set lo up && exec "$@"' soak "${test[@]}"
fi
echo "no network namespace for this user (try as root, with ip from iproute2): the exit's policy alone keeps traffic here" >&2
exec "${test[@]}"
