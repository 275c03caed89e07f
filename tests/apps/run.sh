#!/usr/bin/env bash
# Third-party programs, directly and through a chain on loopback: what each sent and what arrived. On Debian, as root, it
# installs the programs; otherwise it skips and names the recipes whose programs are missing.
# Usage: tests/apps/run.sh [RECIPE...]     all of them unless named; exit code 1 if one fails
set -euo pipefail
cd "$(dirname "$0")/../.."

recipes=("$@")
[[ $# -gt 0 ]] || recipes=(dns socks5 iperf3 sip ffmpeg quic wireguard meeting)
packages=(bind9-dnsutils dnsmasq-base python3-socks curl iperf3 sip-tester ffmpeg)
packages+=(ngtcp2-client ngtcp2-server openssl wireguard-go wireguard-tools iproute2 iputils-ping)
python=/usr/bin/python3
[[ -x $python ]] || python=python3
if ! command -v "$python" >/dev/null; then
    echo "skipped: python3 is not installed: apt-get install python3"
    exit 0
fi

programs=(dig dnsmasq curl iperf3 sipp ffmpeg gtlsclient /usr/sbin/gtlsserver openssl wireguard-go wg ip ping)
# `command -v` of several succeeds if it finds one.
present() {
    local program
    for program in "${programs[@]}"; do command -v "$program" || return; done
    "$python" -c 'import socks'
} >/dev/null 2>&1
if ! present && [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    get=(apt-get install -yq --no-install-recommends "${packages[@]}")
    DEBIAN_FRONTEND=noninteractive "${get[@]}" >/dev/null 2>&1 ||
        { apt-get update -q && DEBIAN_FRONTEND=noninteractive "${get[@]}"; } >/dev/null 2>&1 || true
fi
present || echo "some recipes are skipped; all run after: apt-get install ${packages[*]}"

cargo build -q --release --locked
target=$(cargo metadata --format-version 1 --no-deps --locked | grep -o '"target_directory":"[^"]*"' | cut -d '"' -f 4)

failed=0
rows=$(mktemp)
trap 'rm -f "$rows"' EXIT
for recipe in "${recipes[@]}"; do
    code=0
    PYTHONDONTWRITEBYTECODE=1 timeout 300 "$python" "tests/apps/$recipe.py" "$target/release/eddy" >>"$rows" || code=$?
    case $code in
    0) ;;
    77) echo "$recipe: skipped" ;;
    *)
        echo "$recipe: FAILED (exit code $code)"
        failed=1
        ;;
    esac
done
"$python" - "$rows" <<'TABLE'
import json, sys

known = ["recipe", "way", "sent", "received", "lost", "reordered", "jitter_ms"]
print("| recipe | way | sent | received | lost | out of order | jitter | more |")
print("| --- | --- | --- | --- | --- | --- | --- | --- |")
for line in open(sys.argv[1]):
    row = json.loads(line)
    cells = [str(row.get(key, "")) for key in known]
    if cells[-1]:
        cells[-1] += " ms"
    more = ", ".join(f"{key} {value}" for key, value in row.items() if key not in known)
    print("| " + " | ".join(cells + [more]) + " |")
TABLE
exit "$failed"
