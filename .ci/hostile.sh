#!/usr/bin/env bash
# Hostile datagrams at every link port of every role: half of them from a stranger's address, half through the link.
# Usage: .ci/hostile.sh [DATAGRAMS]   for each port, 10000000 unless given: half an hour or more. Prints the record in
# docs/BENCHMARKS.md.
# Runs in a network namespace without a route where one may be made. Where not, the exit's policy, which admits
# loopback alone and is proven to before anything hostile is sent, has to be enough.
set -euo pipefail
cd "$(dirname "$0")/.."
export EDDY_HOSTILE_DATAGRAMS=$((${1:-10000000} / 2))
test=(cargo test --release --test it)
"${test[@]}" --no-run
test+=(-- --nocapture hostile_datagrams_at)
source .ci/without-route.sh
