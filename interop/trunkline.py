"""The command of this tree and its helper, as the foreign clients of NATS use them."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any, Dict, List

from checks import BUS, WATCHDOG_S

#: What the caller has set for a bus of theirs must not reach this one.
ENV = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}
ENV["TRUNKLINE_URL"] = BUS


def trunkline(*words: str, **settings: str) -> str:
    """Runs `trunkline` on the server; an end other than 0 is a fault."""
    return _run([os.environ["TRUNKLINE_BIN"], "--quiet", *words], settings)


def foreign(*words: str, **settings: str) -> str:
    """Runs the example `foreign_nats`, which does what no command does."""
    return _run([os.environ["FOREIGN_BIN"], *words], settings)


def start(*words: str) -> "subprocess.Popen[str]":
    """Starts `foreign_nats` and leaves it to the caller."""
    line = [os.environ["FOREIGN_BIN"], *words]
    return subprocess.Popen(line, env=ENV, stdout=subprocess.PIPE, text=True)


def replay(type_: str, **settings: str) -> List[Dict[str, Any]]:
    """What is stored of a type, as CloudEvents, oldest first."""
    lines = trunkline("replay", type_, "--from", "first", "--json", **settings).splitlines()
    return [json.loads(line) for line in lines]


def _run(line: List[str], settings: Dict[str, str]) -> str:
    env = {**ENV, **settings}
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=WATCHDOG_S)
    if done.returncode != 0:
        raise AssertionError(f"{line[1:]} ended with {done.returncode}: {done.stderr[-1000:]}")
    return done.stdout
