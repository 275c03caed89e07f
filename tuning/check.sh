#!/usr/bin/env bash
# Holds the unit against systemd: that it reads it without a word, and that it is as closed as it was. Needs no running
# systemd and no root. Says so in one line, and is content, where systemd-analyze is not installed.
set -euo pipefail
cd "$(dirname "$0")"

# Exposure by `systemd-analyze security`, in tenths, at most. It is 12 with systemd 252, mostly the network, which a node
# is for; newer versions may count more.
most=20

if ! command -v systemd-analyze >/dev/null; then
    echo "systemd-analyze is not installed: eddy@.service not checked"
    exit 0
fi
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

# verify wants the program to be there; what the unit calls need not be installed where it is checked.
sed "s|^ExecStart=/usr/local/bin/eddy |ExecStart=$(command -v true) |" eddy@.service >"$dir/eddy@.service"
cp "$dir/eddy@.service" "$dir/eddy@mix1.service"
said=$(SYSTEMD_LOG_LEVEL=warning systemd-analyze --man=no verify "$dir/eddy@mix1.service" 2>&1) || {
    printf '%s\n' "$said" >&2
    exit 1
}
# Other units of the host may have faults of their own.
if grep -F 'eddy@' <<<"$said" >&2; then
    exit 1
fi
if ! systemd-analyze security --help 2>/dev/null | grep -q -- --offline; then
    echo "systemd-analyze knows no --offline: exposure of eddy@.service not checked"
    exit 0
fi
systemd-analyze security --no-pager --offline=true --threshold=$most "$dir/eddy@mix1.service" | tail -n 1
