#!/usr/bin/env bash
# Runs fuzz targets, each for some seconds, and stops at the first crash. See README.md.
#
#   fuzz/run.sh [--stable] [SECONDS] [TARGET...]
set -euo pipefail
cd "$(dirname "$0")"

stable=
if [[ ${1-} == --stable ]]; then
    stable=yes
    shift
fi
seconds=20
if [[ ${1-} =~ ^[0-9]+$ ]]; then
    seconds=$1
    shift
fi
targets=("$@")
if ((${#targets[@]} == 0)); then
    targets=(aead cell frames paced setup ack handshake descriptor trust config mixing pymix)
fi
for target in "${targets[@]}"; do
    [[ -f fuzz_targets/$target.rs ]] || {
        echo "fuzz: no target $target: there are $(basename -s .rs fuzz_targets/*.rs | paste -sd' ')" >&2
        exit 2
    }
done

# Coverage without a nightly compiler, and without AddressSanitizer.
sancov="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Copt-level=2"
triple=$(rustc -vV | sed -n 's/^host: //p')

if [[ $stable ]]; then
    RUSTFLAGS=$(tr -s ' \n' ' ' <<<"$sancov")
    export RUSTFLAGS
    cargo build --target "$triple" --bins
    run() { "${CARGO_TARGET_DIR:-target}/$triple/debug/$1" "${@:2}"; }
elif cargo +nightly --version >/dev/null 2>&1 && cargo +nightly fuzz --version >/dev/null 2>&1; then
    cargo +nightly fuzz build
    run() { cargo +nightly fuzz run "$1" "${@:2:2}" -- "${@:4}"; }
else
    echo "skipped: install a nightly compiler (rustup toolchain install nightly) and cargo install cargo-fuzz," \
        "or take --stable"
    exit 0
fi

for target in "${targets[@]}"; do
    # What is new goes into the first folder; the seeds stay as they are.
    mkdir -p "corpus/$target" "artifacts/$target"
    printf '\n== fuzz %s: %d s\n' "$target" "$seconds"
    log=$(mktemp)
    run "$target" "corpus/$target" "seeds/$target" -artifact_prefix="artifacts/$target/" \
        -max_total_time="$seconds" -timeout=10 -print_final_stats=1 >"$log" 2>&1 || {
        tail -n 40 "$log"
        found=$(sed -n "s/.*Test unit written to //p" "$log" | tail -n 1)
        rm -f "$log"
        echo "fuzz: $target failed: ${found:+its reproducer is $(readlink -f "$found")}" >&2
        exit 1
    }
    grep -E 'stat::(number_of_executed_units|average_exec_per_sec)|[[:space:]]DONE' "$log" || true
    rm -f "$log"
done
printf '\nfuzz: %d targets, no crash\n' "${#targets[@]}"
