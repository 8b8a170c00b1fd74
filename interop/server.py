"""A NATS server of one's own: JetStream in a temporary folder, a port that is free, killed at the end."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from checks import WATCHDOG_S


class Server:
    """Listens at `url` inside of a `with`."""

    def __init__(self, program: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="trunkline-interop-"))
        self.log = self.folder / "log"
        line = [program, "-a", "127.0.0.1", "-p", "-1", "-js", "-sd", str(self.folder)]
        self.process = subprocess.Popen(
            [*line, "--ports_file_dir", str(self.folder), "--log", str(self.log)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self.url = self._listens()
        except BaseException:
            self.__exit__()
            raise

    def _listens(self) -> str:
        """It writes the file when it listens; what is half written is read again."""
        end = time.monotonic() + WATCHDOG_S
        while time.monotonic() < end and self.process.poll() is None:
            for ports in self.folder.glob("*.ports"):
                try:
                    return json.loads(ports.read_text())["nats"][0]
                except (ValueError, KeyError):
                    pass
            time.sleep(0.02)
        said = self.log.read_text()[-2000:] if self.log.exists() else "nothing"
        raise RuntimeError(f"nats-server did not say where it listens: {said}")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
