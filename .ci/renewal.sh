#!/usr/bin/env bash
# Renews everything under 20,000 cells per second through three mixes: links every 10 s, epochs every minute, channels
# every two to four minutes, and the keys of each channel. Needs a quiet machine and receive buffers of 8 MB.
# Usage: .ci/renewal.sh [SECONDS]   (300 unless given). Prints the record in docs/BENCHMARKS.md.
set -euo pipefail
cd "$(dirname "$0")/.."
export EDDY_RENEWAL_SECONDS=${1:-300}
exec cargo test --release --test it -- --ignored --exact --nocapture \
    renewal::renewals_under_20000_cells_per_second_lose_nothing
