#!/usr/bin/env bash
# Enumerates what a network, an attacker and restarts can do to two nodes of a chain, further than the tests do.
# Usage: control/tests/enumerate.sh [MESSAGES [DEVIATIONS [SCENARIO]]]    (default 8, 3 and all scenarios)
#        control/tests/enumerate.sh replay SCENARIO SEQUENCE              prints what one sequence does
# Scenarios and letters of sequences: control/tests/it/enumerate/scenario.rs and step.rs. Minutes to hours.
set -euo pipefail
cd "$(dirname "$0")/../.."
run=(cargo test --locked -p control --test it -- --ignored --exact --nocapture)
export RUST_BACKTRACE=0
if [[ ${1:-} == replay ]]; then
    EDDY_ENUMERATE_SCENARIO=$2 EDDY_ENUMERATE_SEQUENCE=$3 exec "${run[@]}" enumerate::one_given_sequence
fi
export EDDY_ENUMERATE_MESSAGES=${1:-8} EDDY_ENUMERATE_DEVIATIONS=${2:-3}
[[ -z ${3:-} ]] || export EDDY_ENUMERATE_SCENARIO=$3
exec "${run[@]}" enumerate::all_sequences_up_to_a_given_bound
