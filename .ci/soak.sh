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
source .ci/without-route.sh
