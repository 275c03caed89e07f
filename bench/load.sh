#!/usr/bin/env bash
# The load test: 100 flows, 20,000 datagrams of 1,000 bytes per second, through entry, three mixes and exit.
# Usage: bench/load.sh [SECONDS]   (default 60). Nodes that run as root may exceed net.core.rmem_max.
set -euo pipefail
cd "$(dirname "$0")/.."
wanted=8388608
if [[ $(id -u) -ne 0 && $(cat /proc/sys/net/core/rmem_max) -lt $wanted ]]; then
    echo "receive buffers are too small for this load: run as root, or run sysctl -w net.core.rmem_max=$wanted" >&2
    exit 2
fi
EDDY_LOAD_SECONDS=${1:-60} cargo test --workspace --locked --test it -- --ignored --nocapture load::load_floor
