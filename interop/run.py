#!/usr/bin/env python3
"""Clients that we did not write, as referees of the HTTP door and of what goes through NATS.

    python3 interop/run.py [CLIENT…]

Without a name all clients run. It installs them below `target/interop` and keeps them there, builds
`trunkline` unless TRUNKLINE_BIN names one, and gives each client a bus or a NATS server of its own. The
last line counts the checks. Needs Python 3.10 with pip, Rust and curl; Node 20 is installed if it is
absent, and so is nats-server unless TRUNKLINE_NATS_SERVER names one or the path has one.
"""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple
from urllib.request import Request, urlopen

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))
# The tree stays as it is; what is generated belongs below `target`.
sys.dont_write_bytecode = True
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

from bus import Bus  # noqa: E402
from checks import WATCHDOG_S  # noqa: E402
from page import check_page, examples  # noqa: E402
from referees import CannotInstall, Referees, install, nats_server  # noqa: E402
from server import Server  # noqa: E402

#: What runs each client. A client stays silent for WATCHDOG_S at most, which each check of it may
#: wait, and then some.
CLIENTS: Dict[str, str] = {
    "curl": "clients/with_curl.py",
    "httpx": "clients/with_httpx.py",
    "cloudevents-python": "clients/with_cloudevents.py",
    "eventsource": "clients/with_eventsource.mjs",
    "cloudevents-javascript": "clients/with_cloudevents.mjs",
}

#: As above, on a NATS server in place of a bus.
NATS_CLIENTS: Dict[str, str] = {
    "nats-py": "clients/with_nats.py",
    "nats-js": "clients/with_nats.mjs",
}


class Tally:
    passed = 0
    failed = 0

    def ok(self, what: str) -> None:
        self.passed += 1
        print(f"ok {what}", flush=True)

    def fail(self, what: str) -> None:
        self.failed += 1
        print(f"FAILED: {what}", flush=True)

    def take(self, line: str) -> None:
        """Counts and shows a line of a client."""
        self.passed += line.startswith("ok ")
        self.failed += line.startswith("FAILED: ")
        print(line, flush=True)


def main(chosen: Sequence[str]) -> int:
    tally = Tally()
    wanted = [*CLIENTS, *NATS_CLIENTS, "examples"]
    unknown = [name for name in chosen if name not in wanted]
    if unknown:
        sys.exit(f"there is no client {', '.join(unknown)}; there are {', '.join(wanted)}")
    # Whoever ends this run ends the buses and clients with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # What a caller has set to reach a registry is not the way to a bus on this host.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
    began = time.monotonic()
    try:
        os.environ["TRUNKLINE_BIN"] = str(binary())
        referees = install(target() / "interop")
        chosen = chosen or wanted
        if any(name in NATS_CLIENTS for name in chosen):
            os.environ["FOREIGN_BIN"] = str(built("-p", "trunkline", "--example", "foreign_nats"))
            os.environ["NATS_SERVER"] = str(nats_server(target() / "interop", referees.python))
    except CannotInstall as error:
        tally.fail(f"set-up: {error}")
    else:
        print(f"set up in {time.monotonic() - began:.1f} s", flush=True)
        for name in chosen:
            began = time.monotonic()
            if name == "examples":
                run_examples(referees, tally)
            elif name in NATS_CLIENTS:
                run_on_nats(name, command(HERE / NATS_CLIENTS[name], referees), tally)
            else:
                run_client(name, command(HERE / CLIENTS[name], referees), tally)
            print(f"{name} took {time.monotonic() - began:.1f} s", flush=True)
    print(f"interop: {tally.passed} passed, {tally.failed} failed", flush=True)
    return 1 if tally.failed or not tally.passed else 0


def target() -> Path:
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


def binary() -> Path:
    """TRUNKLINE_BIN, or the binary of this tree as it is now."""
    given = os.environ.get("TRUNKLINE_BIN")
    if given:
        return Path(given).resolve()
    return built("-p", "trunkline-cli")


def built(*what: str) -> Path:
    """The program that cargo builds of this tree.

    Raises CannotInstall.
    """
    line = [os.environ.get("CARGO", "cargo"), "build", "--quiet", *what]
    done = subprocess.run(
        [*line, "--message-format", "json"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    for message in done.stdout.splitlines():
        executable = json.loads(message).get("executable")
        if executable and done.returncode == 0:
            return Path(executable)
    raise CannotInstall(f"`cargo build {' '.join(what)}` fails")


def command(script: Path, referees: Referees) -> List[str]:
    if script.suffix != ".mjs":
        program = "bash" if script.suffix == ".sh" else str(referees.python)
        return [program, str(script)]
    # Copied each time, because JavaScript looks for its packages from the script's folder upwards.
    for folder in ("clients", "examples"):
        shutil.copytree(HERE / folder, referees.node_folder / folder, dirs_exist_ok=True)
    # Node 20 and 22 have EventSource behind this option; a Node that has it anyway takes it too.
    return [
        str(referees.node),
        "--experimental-eventsource",
        "--no-warnings",
        str(referees.node_folder / script.relative_to(HERE)),
    ]


def run_client(name: str, line: Sequence[str], tally: Tally) -> None:
    try:
        with Bus() as bus:
            watch(name, line, bus.url, tally)
            bus.stop()
    except Exception as error:
        tally.fail(f"{name}: {error}")
    else:
        tally.ok(f"{name}: the bus ends with 0 after SIGTERM")


def run_on_nats(name: str, line: Sequence[str], tally: Tally) -> None:
    try:
        with Server(os.environ["NATS_SERVER"]) as server:
            watch(name, line, server.url, tally)
    except Exception as error:
        tally.fail(f"{name}: {error}")


def watch(name: str, line: Sequence[str], url: str, tally: Tally) -> None:
    """Runs a client and passes on what it says."""
    env = {**os.environ, "BUS": url, "PYTHONPATH": str(HERE), "INTEROP": str(HERE)}
    client = subprocess.Popen(
        line, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said: "queue.Queue[Optional[str]]" = queue.Queue()
    threading.Thread(target=_listen, args=(client, said), daemon=True).start()
    passed, failed = tally.passed, tally.failed
    try:
        while True:
            text = said.get(timeout=WATCHDOG_S + 5)
            if text is None:
                break
            tally.take(text)
        code = client.wait(timeout=WATCHDOG_S)
        if code != 0 and tally.failed == failed:
            tally.fail(f"{name}: ended with {code}")
        elif tally.passed == passed and tally.failed == failed:
            tally.fail(f"{name}: made no check")
    except (queue.Empty, subprocess.TimeoutExpired):
        tally.fail(f"{name}: was silent for {WATCHDOG_S + 5} s and was killed")
    finally:
        client.kill()
        client.wait()


def _listen(client: "subprocess.Popen[str]", said: "queue.Queue[Optional[str]]") -> None:
    for text in client.stdout or ():
        said.put(text.rstrip("\n"))
    said.put(None)


def place(url: str, orders: Sequence[Tuple[str, int]]) -> None:
    for order, cents in orders:
        data = json.dumps({"order_id": order, "total_cents": cents}).encode()
        headers = {"content-type": "application/json"}
        request = Request(f"{url}/v1/events?type=order.placed&source=/shop", data, headers)
        urlopen(request, timeout=WATCHDOG_S).close()


def run_examples(referees: Referees, tally: Tally) -> None:
    """The programs that the guide shows, each on a bus of its own, with what they must print."""
    for example in examples():
        try:
            with Bus() as bus:
                place(bus.url, example.orders)
                done = subprocess.run(
                    command(example.path, referees),
                    env={**os.environ, "BUS": bus.url},
                    capture_output=True,
                    text=True,
                    timeout=WATCHDOG_S,
                )
                if done.returncode != 0:
                    raise AssertionError(
                        f"ended with {done.returncode}: {done.stdout}{done.stderr}"[-2000:]
                    )
                if not re.search(example.prints, done.stdout, re.DOTALL):
                    raise AssertionError(f"did not print {example.prints!r} but {done.stdout!r}")
                bus.stop()
        except Exception as error:
            tally.fail(f"examples: {example.name}: {error}")
        else:
            tally.ok(f"examples: {example.name} runs and prints what it should")
    for what, fault in check_page():
        tally.fail(f"examples: {what}: {fault}") if fault else tally.ok(f"examples: {what}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
