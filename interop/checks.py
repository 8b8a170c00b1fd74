"""What every check reports: `ok NAME` or `FAILED: NAME: WHY`, one line each, which `run.py` counts."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import Any, Callable, NoReturn

#: No check waits longer than this, in seconds.
WATCHDOG_S = 30

#: Where the bus of this group of checks listens. Absent in checks that start their own.
BUS = os.environ.get("BUS", "")


class Checks:
    """The checks of one client. `finish` ends the program, with 1 if one of them failed."""

    def __init__(self, client: str) -> None:
        self.client = client
        self.failed = 0
        signal.signal(signal.SIGALRM, _too_long)

    def check(self, name: str, prove: Callable[[], Any]) -> None:
        signal.alarm(WATCHDOG_S)
        try:
            prove()
        except Exception as error:  # One failed check must not hide what the others have to say.
            self.failed += 1
            why = str(error) or traceback.format_exc(limit=-2)
            line = " ".join(f"{type(error).__name__}: {why}".split())
            print(f"FAILED: {self.client}: {name}: {line[:2000]}", flush=True)
        else:
            print(f"ok {self.client}: {name}", flush=True)
        finally:
            signal.alarm(0)

    def deviation(self, what: str, section: str, prove: Callable[[], Any]) -> None:
        """A client that departs from a specification. `prove` shows that it does.

        Once the client is mended the check fails, so that the exception is removed here and in
        `interop/README.md`.
        """
        self.check(f"{what} (the client departs from {section})", prove)

    def finish(self) -> NoReturn:
        sys.exit(1 if self.failed else 0)


def equal(got: Any, expected: Any, what: str = "") -> None:
    if got != expected:
        raise AssertionError(f"{what} expected {expected!r}, got {got!r}".strip())


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"nothing happened for {WATCHDOG_S} s")
