#!/usr/bin/env python3
"""Second implementation of the eddy protocol, written from docs/SPEC.md alone, and its checks.

It reproduces the frozen bytes of wire/tests/known_answer.json. Then it plays entries, mixes and
exits against real eddy nodes, which it starts on loopback addresses. tests/speclib/protocol.py and
trust.py are a companion to SPEC: the protocol in the order of its clauses."""

import argparse
import json
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EPILOG = """\
groups:
  vectors  the bytes of wire/tests/known_answer.json; needs no eddy
  entry    a Python entry before real nodes, in both suites: setups, datagrams, numbers, renewal; attacks
  hops     real entries, with Python mixes and exits among real nodes, in both suites
  trust    descriptors and chain files; a Python Mix 1 that cheats about keys; an epoch change

examples:
  tests/spec.py                        everything, with target/release/eddy or target/debug/eddy
  tests/spec.py vectors                one group
  tests/spec.py hops --eddy ./eddy     one group, with this binary

packages (Python 3.11 or later):
  pip install cryptography kyber-py

A failed check ends its group, and the logs of the group's nodes go to standard error.
Exit codes: 0 all passed or skipped, 1 a check failed, 2 a mistake on the command line.
"""


def checks():
    """The groups by name. The import fails where a package is missing."""
    from speclib.bundles import check_bundles
    from speclib.entry import check_entry
    from speclib.epochs import check_epochs
    from speclib.files import check_files
    from speclib.hops import check_hops
    from speclib.vectors import check_vectors

    def check_trust(report, eddy):
        for check in (check_files, check_bundles, check_epochs):
            check(report, eddy)

    return {"vectors": check_vectors, "entry": check_entry, "hops": check_hops, "trust": check_trust}


def arguments():
    names = ("vectors", "entry", "hops", "trust")
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join(names)} [default: all]")
    parser.add_argument("--eddy", type=Path, metavar="PATH", help="the eddy binary")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of text")
    parser.add_argument(
        "--skip-if-missing", action="store_true", help="exit with 0 and `skipped` if a Python package is missing"
    )
    options = parser.parse_args()
    unknown = [name for name in options.groups if name not in names]
    if unknown:
        parser.error(f"unknown group {unknown[0]!r}: expected {', '.join(names)}")
    options.groups = options.groups or names
    return parser, options


def binary(parser, options):
    built = [ROOT / f"target/{profile}/eddy" for profile in ("release", "debug")]
    path = options.eddy or next((path for path in built if path.exists()), built[0])
    if tuple(options.groups) != ("vectors",) and not path.exists():
        parser.error(f"{path} does not exist: run `cargo build --release`, or name a binary with --eddy")
    return path.resolve()


def main():
    parser, options = arguments()
    sys.dont_write_bytecode = True
    try:
        groups = checks()
        from speclib.report import Report
    except ModuleNotFoundError as error:
        missing = "Python 3.11" if error.name == "tomllib" else f"Python package {error.name.split('.')[0]}"
        print(f"skipped: {missing} is missing: pip install cryptography kyber-py")
        return 0 if options.skip_if_missing else 1
    eddy = binary(parser, options)
    # Ends the nodes, too, which a Chain stops on its way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    report, began = Report(options.json), time.monotonic()
    for name in options.groups:
        report.group(name, lambda: groups[name](report, eddy))  # noqa: B023
    failed = sum(not row["ok"] for row in report.rows)
    seconds = round(time.monotonic() - began, 1)
    if options.json:
        print(json.dumps({"ok": not failed, "seconds": seconds, "checks": report.rows}))
    else:
        print(f"{len(report.rows)} checks, {failed} failed, {seconds} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
