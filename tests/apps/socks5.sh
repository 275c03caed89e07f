#!/usr/bin/env bash
# A SOCKS5 client that others wrote (PySocks) through a chain: UDP to addresses and names, and what curl is told about
# TCP. Needs python3-socks and curl, which it installs as root on Debian; skips elsewhere, with a line that says so.
# All traffic stays on loopback.
# Usage: tests/apps/socks5.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

python=/usr/bin/python3
ready() { command -v curl >/dev/null && [[ -x $python ]] && "$python" -c 'import socks' 2>/dev/null; }
if ! ready && [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    { apt-get install -yq python3-socks curl || { apt-get update -q && apt-get install -yq python3-socks curl; }; } \
        >/dev/null 2>&1 || true
fi
if ! ready; then
    echo "skipped: apt-get install python3-socks curl"
    exit 0
fi

cargo build -q --release --locked
eddy=$(cargo metadata --format-version 1 --no-deps --locked | grep -o '"target_directory":"[^"]*"' | cut -d '"' -f 4)/release/eddy
exec "$python" tests/apps/socks5.py "$eddy"
