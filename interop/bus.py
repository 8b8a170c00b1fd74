"""A bus of one's own: `trunkline up` on a free port, stopped as an operator would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
from typing import Any

from checks import WATCHDOG_S


class Bus:
    """Listens at `url` inside of a `with`, on a directory of its own unless the options say otherwise.

    Whoever leaves without `stop` kills it.
    """

    def __init__(self, *options: str) -> None:
        # What the caller has set for a bus of theirs must not reach this one.
        env = {
            name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")
        }
        self.log = tempfile.TemporaryFile(mode="w+")
        self.folder = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [os.path.abspath(os.environ["TRUNKLINE_BIN"]), "up", "--listen", "127.0.0.1:0", "--json", *options],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=env,
            cwd=self.folder.name,
        )
        assert self.process.stdout is not None
        # Reading a line cannot be given a deadline, but the end of the process ends it.
        watchdog = threading.Timer(WATCHDOG_S, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        if not line:
            raise RuntimeError(f"`trunkline up` did not say where it listens: {self._said()}")
        self.url: str = json.loads(line)["listening"]

    def stop(self) -> None:
        """SIGTERM; an end in good order is exit code 0.

        Raises RuntimeError when the end is another one.
        """
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=WATCHDOG_S)
        if code != 0:
            raise RuntimeError(f"`trunkline up` ended with {code} after SIGTERM: {self._said()}")

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.log.close()
        self.folder.cleanup()

    def _said(self) -> str:
        self.log.seek(0)
        return self.log.read()[-2000:].strip() or "nothing"
