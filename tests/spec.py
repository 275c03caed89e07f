#!/usr/bin/env python3
"""Second implementation of the eddy protocol, written from docs/SPEC.md alone, and its checks.

It reproduces the frozen bytes of wire/tests/known_answer.json and paced.json. Then it plays entries, mixes and
exits against real eddy nodes, which it starts on loopback addresses. tests/speclib/protocol.py, trust.py
and paced.py are a companion to SPEC: the protocol in the order of its clauses."""

import argparse
import importlib
import json
import multiprocessing
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GROUPS = {  # the longest first, because two run at a time
    "vectors": "the bytes of known_answer.json and paced.json in wire/tests; needs no eddy",
    "rounds": "a Python entry in the rounds of a paced class: setups, datagrams, a meeting with a real entry; attacks",
    "entry": "a Python entry before real nodes, in both suites: setups, datagrams, numbers, renewal; attacks",
    "bundles": "a Python Mix 1 that cheats real entries and hops about keys; renewed descriptors",
    "hops": "real entries, with Python mixes and exits among real nodes, in both suites",
    "epochs": "an epoch change under a Python hop",
    "files": "descriptors and chain files, from Python to eddy and back",
}
EPILOG = f"""\
groups:
{chr(10).join(f"  {name:8} {what}" for name, what in GROUPS.items())}

examples:
  tests/spec.py                        everything, with target/release/eddy or target/debug/eddy
  tests/spec.py vectors                one group
  tests/spec.py hops --eddy ./eddy     one group, with this binary

packages (Python 3.11 or later):
  pip install cryptography kyber-py

Two groups run at a time. A failed check ends its group, and the logs of the group's nodes go to standard error.
Exit codes: 0 all passed or skipped, 1 a check failed, 2 a mistake on the command line.
"""


def run(name, as_json, eddy):
    """The rows of one group. The import fails where a package is missing."""
    from speclib.report import Report

    check = getattr(importlib.import_module(f"speclib.{name}"), f"check_{name}")
    report = Report(as_json)
    report.group(name, lambda: check(report, eddy))
    return report.rows


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join(GROUPS)} [default: all]")
    parser.add_argument("--eddy", type=Path, metavar="PATH", help="the eddy binary")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of text")
    parser.add_argument(
        "--skip-if-missing", action="store_true", help="exit with 0 and `skipped` if a Python package is missing"
    )
    options = parser.parse_args()
    unknown = [name for name in options.groups if name not in GROUPS]
    if unknown:
        parser.error(f"unknown group {unknown[0]!r}: expected {', '.join(GROUPS)}")
    options.groups = options.groups or list(GROUPS)
    return parser, options


def binary(parser, options):
    built = [ROOT / f"target/{profile}/eddy" for profile in ("release", "debug")]
    path = options.eddy or next((path for path in built if path.exists()), built[0])
    if options.groups != ["vectors"] and not path.exists():
        parser.error(f"{path} does not exist: run `cargo build --release`, or name a binary with --eddy")
    return path.resolve()


def main():
    parser, options = arguments()
    sys.dont_write_bytecode = True
    try:
        import speclib.entry  # noqa: F401
    except ModuleNotFoundError as error:
        missing = "Python 3.11" if error.name == "tomllib" else f"Python package {error.name.split('.')[0]}"
        print(f"skipped: {missing} is missing: pip install cryptography kyber-py")
        return 0 if options.skip_if_missing else 1
    eddy = binary(parser, options)
    # Also ends the groups, whose Chains then stop their nodes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    began = time.monotonic()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        groups = [(name, options.json, eddy) for name in options.groups]
        rows = [row for rows in pool.starmap(run, groups, chunksize=1) for row in rows]
    failed = sum(not row["ok"] for row in rows)
    seconds = round(time.monotonic() - began, 1)
    if options.json:
        print(json.dumps({"ok": not failed, "seconds": seconds, "checks": rows}))
    else:
        print(f"{len(rows)} checks, {failed} failed, {seconds} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
