#!/usr/bin/env bash
# Loads a page of `eddy-bench report` in a headless Chromium, and checks its console and its plots.
# Usage: bench/report-check.sh [FILE...]   result files; default: those of the tests and of a small run.
# CHROMIUM names another browser of this type. Without one, it is installed (as root with apt-get), or this is skipped.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."

browser=${CHROMIUM:-}
for name in chromium chromium-browser google-chrome; do
    [[ -n $browser ]] || browser=$(command -v "$name" || true)
done
if [[ -z $browser && $(id -u) -eq 0 ]] && command -v apt-get >/dev/null; then
    echo "installing chromium"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null 2>&1 || true
    browser=$(command -v chromium || true)
fi
if [[ -z $browser ]]; then
    echo "skipped: no browser found (apt-get install chromium, or set CHROMIUM=PATH)"
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The whole workspace, as for its tests: a part of it would be built again with other features.
cargo test -q --locked --workspace --no-run
target=$(cargo metadata --format-version 1 --no-deps --locked | grep -o '"target_directory":"[^"]*"' | cut -d '"' -f 4)
bench() { "$target/debug/eddy-bench" "$@"; }

look() { # PAGE
    local page=$1 plots lines what
    [[ -f $page ]] || return
    if ! timeout 60 "$browser" --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run \
        --user-data-dir="$work/profile" --enable-logging=stderr --v=0 --virtual-time-budget=5000 \
        --dump-dom "file://$page" >"$work/dom" 2>"$work/log"; then
        tail -n 20 "$work/log"
        echo "the browser did not load $page"
        return 1
    fi
    # Console messages, and what the page's policy refused.
    if grep -E 'CONSOLE|Refused to|ERR_' "$work/log"; then
        echo "the console has messages"
        return 1
    fi
    count() { grep -o "$1" "$2" | wc -l; }
    plots=$(count 'class="plot"' "$work/dom")
    lines=$(count '<polyline ' "$work/dom")
    # The browser dropped nothing as malformed.
    for what in 'class="plot"' '<svg ' '</svg>' '<polyline ' '<rect ' '<text ' '<tr' '</table>' '</section>'; do
        if [[ $(count "$what" "$page") -ne $(count "$what" "$work/dom") ]]; then
            echo "$what: $(count "$what" "$page") in the file, $(count "$what" "$work/dom") in the browser"
            return 1
        fi
    done
    if ! grep -q '</html>' "$work/dom" || [[ $plots -lt $2 || $lines -lt $3 ]]; then
        echo "expected at least $2 plots and $3 lines, found $plots and $lines"
        return 1
    fi
    echo "${page##*/}: $plots plots with $lines lines and axes, console empty"
}

if [[ $# -gt 0 ]]; then
    files=()
    for file in "$@"; do
        files+=("$(cd "$here" && realpath -- "$file")")
    done
    bench report "${files[@]}" --out "$work/given.html"
    look "$work/given.html" 1 1
    exit
fi
mkdir "$work/sample"
EDDY_REPORT_FOLDER="$work/sample" cargo test -q --locked --workspace --test it page_shows >"$work/test" 2>&1 || {
    cat "$work/test"
    exit 1
}
look "$work/sample/report.html" 23 60
# Results of a small run.
bench load --seconds 2 --rate 400 --flows 8 --out "$work/run" >"$work/test" 2>&1 || {
    cat "$work/test"
    exit 1
}
bench report "$work"/run/*.json --out "$work/run.html" >/dev/null
look "$work/run.html" 3 4
