"""Named checks, each a line of output."""

import contextlib
import time
import traceback


class Failed(Exception):
    """A check of this group failed. The rest of the group does not run."""


class Report:
    def __init__(self, as_json):
        self.as_json, self.rows = as_json, []

    def group(self, name, function):
        """Runs checks up to the first that fails."""
        with contextlib.suppress(Failed):
            try:
                function()
            except Failed:
                raise
            except Exception as error:  # between checks: nodes that do not start, or do not end well
                with self.check(f"{name}: nodes start and end"):
                    raise error

    @contextlib.contextmanager
    def check(self, name):
        """Yields a row, whose `note` may say what was covered."""
        row = {"check": name, "ok": False, "note": ""}
        self.rows.append(row)
        began = time.monotonic()
        try:
            yield row
            row["ok"] = True
        except Exception as error:
            row["note"] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
            raise Failed from None
        finally:
            row["seconds"] = round(time.monotonic() - began, 3)
            if not self.as_json:
                note = f" ({row['note']})" if row["note"] else ""
                print("ok  " if row["ok"] else "FAIL", name + note, flush=True)


def same(what, got, expected):
    assert got == expected, f"{what}: expected {expected!r}, got {got!r}"
