#!/usr/bin/env bash
# Attacks paced classes under a virtual clock: calls inside the chain, flows that leave it, losses, watermarks, uplinks.
# Usage: bench/paced-attack.sh [FOLDER]   (default paced-attack). Leaves table.md, all.json, and one JSON a row there;
# rows that are there already are kept. JOBS rows run at a time (default: half of the cores, at least 1), niced.
# USERS, SECONDS_EACH, SEEDS and ROWS (a regular expression of names) make it smaller: defaults 100, 60, 5 and all.
set -euo pipefail
out=${1:-paced-attack}
mkdir -p "$out"
out=$(realpath "$out") # Paths have no spaces.
cd "$(dirname "$0")/.."
command -v jq >/dev/null || { echo "missing jq: install it, e.g. apt-get install jq" >&2; exit 2; }
users=${USERS:-100} seconds=${SECONDS_EACH:-60} seeds=${SEEDS:-5} jobs=${JOBS:-$(($(nproc) > 3 ? $(nproc) / 2 : 1))}

if [[ -z ${EDDY_BENCH:-} ]]; then
    cargo build --release --locked -p eddy-bench
    EDDY_BENCH=$(cargo metadata --format-version 1 --no-deps --locked | jq -r .target_directory)/release/eddy-bench
fi

# Name, whether it counts for the verdict, for which profiles, and options. CLASS is the paced class of the profile.
# Rows have 2 ms of jitter unless they say otherwise. 560250 bit/s of UDP payload are 1.2 times what voice sends.
templates=$(cat <<'ROWS'
inside                   gate   all   --cases paced-virtual
inside-loss-1            gate   all   --cases paced-virtual --loss 0.01
inside-loss-3-bursts-8   gate   all   --cases paced-virtual --loss 0.03:burst=8
inside-cut-10s           gate   all   --cases paced-virtual --outage 3:20:10
inside-delay-watermark   gate   all   --cases paced-virtual --active delay
inside-drop-watermark    gate   all   --cases paced-virtual --active drop
inside-isolation         report voice --cases paced-virtual --active isolation
inside-exit              gate   all   --cases paced-virtual --corrupt-exit --attackers exit-records
inside-exit-loss-1       gate   all   --cases paced-virtual --corrupt-exit --attackers exit-records --loss 0.01
inside-exit-bursts-3-8   gate   all   --cases paced-virtual --corrupt-exit --attackers exit-records --loss 0.03:burst=8
inside-exit-cut-10s      gate   all   --cases paced-virtual --corrupt-exit --attackers exit-records --outage 3:20:10
inside-exit-delay-mark   gate   all   --cases paced-virtual --corrupt-exit --attackers exit-records --active delay
inside-exit-drop-mark    gate   all   --cases paced-virtual --corrupt-exit --attackers exit-records --active drop
outside                  gate   all   --cases paced-virtual-outside
outside-plain            report all   --cases paced-virtual-outside --paced CLASS:repeat=0
outside-loss-0.1-plain   gate   all   --cases paced-virtual-outside --loss 0.001 --paced CLASS:repeat=0
outside-loss-0.1-slack   gate   all   --cases paced-virtual-outside --loss 0.001 --paced CLASS:repeat=0,slack_ms=20
outside-loss-1           gate   all   --cases paced-virtual-outside --loss 0.01 --paced CLASS:repeat=1
outside-loss-1-plain     report all   --cases paced-virtual-outside --loss 0.01 --paced CLASS:repeat=0
outside-loss-3           gate   all   --cases paced-virtual-outside --loss 0.03 --paced CLASS:repeat=1
outside-loss-1-copies-3  gate   all   --cases paced-virtual-outside --loss 0.01 --paced CLASS:copies=3
outside-bursts-0.2-3     report voice --cases paced-virtual-outside --loss 0.002:burst=3
outside-bursts-0.2-8     report voice --cases paced-virtual-outside --loss 0.002:burst=8
outside-bursts-1-3       report voice --cases paced-virtual-outside --loss 0.01:burst=3
outside-bursts-1-8       report voice --cases paced-virtual-outside --loss 0.01:burst=8
outside-bursts-3-3       report voice --cases paced-virtual-outside --loss 0.03:burst=3
outside-bursts-3-8       report voice --cases paced-virtual-outside --loss 0.03:burst=8
outside-exit-loss-1      report voice --cases paced-virtual-outside --corrupt-exit --loss 0.01
outside-exit-bursts-1-3  report voice --cases paced-virtual-outside --corrupt-exit --loss 0.01:burst=3
inside-narrow-uplink     gate   voice --cases paced-virtual --rate 560250
outside-narrow-uplink    report voice --cases paced-virtual-outside --rate 560250
inside-busy-machine      gate   voice --cases paced-virtual --stall 3
outside-busy-machine     report voice --cases paced-virtual-outside --stall 3
planted-late             plant  voice --cases paced-virtual-outside --plant late --jitter-ms 0
planted-gaps             plant  voice --cases paced-virtual-outside --plant gaps --jitter-ms 0
planted-loss             plant  voice --cases paced-virtual --plant loss --loss 0.05 --jitter-ms 0
ROWS
)

# Each template for voice, and those for all profiles for constant calls and video, too: NAME KIND OPTIONS.
rows=$(while read -r name kind profiles options; do
    echo "$name $kind ${options//CLASS/voice}"
    [[ $profiles == all ]] || continue
    echo "$name-constant $kind --profile constant ${options//CLASS/voice}"
    options="--profile video ${options//CLASS/video}"
    [[ $options == *--paced* ]] || options+=" --paced video"
    echo "$name-video $kind $options"
done <<<"$templates")

one() { # NAME KIND OPTIONS...
    local name=$1 kind=$2
    shift 2
    [[ ! -s $out/$name.json ]] || return 0
    echo "$name: $*" >&2
    # Later options replace earlier ones only if they are given once.
    local all=(--users "$users" --seconds "$seconds" --seeds "$seeds" --json)
    [[ " $* " == *" --paced "* ]] || all+=(--paced voice)
    [[ " $* " == *" --jitter-ms "* ]] || all+=(--jitter-ms 2)
    nice -n 19 "$EDDY_BENCH" attack "${all[@]}" "$@" 2>"$out/$name.log" | tail -n 1 |
        jq -c --arg name "$name" --arg kind "$kind" --arg options "$*" '{name: $name, kind: $kind, options: $options} + .' \
            >"$out/$name.part"
    mv "$out/$name.part" "$out/$name.json"
}

while read -r name kind options; do
    [[ $name =~ ${ROWS:-.} ]] || continue
    # The options have no spaces in their values.
    # shellcheck disable=SC2086
    one "$name" "$kind" $options &
    while (($(jobs -rp | wc -l) >= jobs)); do wait -n || true; done
done <<<"$rows"
wait

names= missing=
while read -r name _; do
    if [[ -s $out/$name.json ]]; then
        names+=" $out/$name.json"
    elif [[ $name =~ ${ROWS:-.} ]]; then
        missing+=" $name"
    fi
done <<<"$rows"
[[ -n $names ]] || { echo "no row succeeded: see $out/*.log" >&2; exit 1; }
# shellcheck disable=SC2086
jq -cs . $names >"$out/all.json"
jq -r '
  def percent: (. * 1000 | round / 10 | tostring) + " %";
  def at($table; $seconds): [$table[] | select(.[0] == $seconds)][0][1];
  def top1($s; $t): at($s.top1_after; $t) | if . == null then "-" else percent end;
  # Corrected for the seeds: the smallest p times their number.
  def p($s; $t): at($s.p_after; $t)
    | if . == null then "-" else ([1, (min * length)] | min * 1000 | round / 1000 | tostring) end;
  def marks: if (.active | length) == 0 then "-"
    else ([.active[] | select(.right and .seconds != null)] | length | tostring) + " of " + (.active | length | tostring) end;
  "| row | kind | arrived | delay p50, p99.9 | top-1 after 3, 10, 30, 60 s | chance | p after 3, 10, 30, 60 s | marks found |",
  "| --- | --- | --- | --- | --- | --- | --- | --- |",
  (.[] | . as $row | .summaries[0] as $s
    | [.runs[].facts] as $f
    | "| \(.name) | \(.kind) | \(([$f[].arrived | add] | add) / ([$f[].sent | add] | add) | percent) | "
      + "\([$f[].delays[].p50] | add / length | round), \([$f[].delays[].p999] | max | round) ms | "
      + "\([3, 10, 30, 60] | map(top1($s; .)) | join(", ")) | \($s.chance | percent) | "
      + "\([3, 10, 30, 60] | map(p($s; .)) | join(", ")) | \($row | marks) |")
' "$out/all.json" >"$out/table.md"
cat "$out/table.md"
if [[ -n $missing ]]; then
    echo "these rows failed, see their logs in $out:$missing" >&2
    exit 1
fi
