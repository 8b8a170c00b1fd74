#!/usr/bin/env python3
"""The history of a git repository through a bus that is killed twice in the middle.

Four processes handle it, two consumers of two members each, while `trunkline pub -` publishes. Then
the stream is read back: nothing that was acknowledged is missing, nothing is stored twice, each key is
in its order, and each consumer has handled everything.

usage: kills.py file|nats BIN HISTORY.ndjson     BIN holds `trunkline` and `handle_history`

`file` kills `trunkline up` on a directory: two of the four are attached to the directory, two come by
the door, and no command is given a URL. `nats` kills a nats-server: that of TRUNKLINE_NATS_SERVER, or
`nats-server` on the path. Python 3 and its standard library, nothing else.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

KILLS = 2
PATIENCE_S = 120


def refuse(message):
    raise SystemExit(f"kills.py: {message}")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Up:
    """`trunkline up` on a directory of its own, with a door that it keeps from life to life."""

    commands = []

    def __init__(self, folder, binaries):
        self.binary = binaries / "trunkline"
        self.folder = folder
        # Commands find the door where `up` opens it.
        os.environ["TRUNKLINE_DOOR__LISTEN"] = f"127.0.0.1:{free_port()}"
        door = "http://" + os.environ["TRUNKLINE_DOOR__LISTEN"]
        self.options = [["--url", "file:trunkline-data"], ["--url", door]]
        self.start()

    def start(self):
        log = open(self.folder / "up.log", "ab")
        self.process = subprocess.Popen(
            [self.binary, "up", "--json"], stdout=subprocess.PIPE, stderr=log, cwd=self.folder
        )
        if not self.process.stdout.readline():
            refuse(f"`trunkline up`: {(self.folder / 'up.log').read_text()}")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Server:
    """A nats-server on a port of its own, which it keeps from life to life."""

    def __init__(self, folder, _):
        self.binary = os.environ.get("TRUNKLINE_NATS_SERVER") or shutil.which("nats-server")
        if not self.binary:
            refuse("there is no nats-server; name one in TRUNKLINE_NATS_SERVER")
        self.port = free_port()
        self.commands = ["--url", f"nats://127.0.0.1:{self.port}"]
        self.options = [self.commands, self.commands]
        self.folder = folder
        self.start()

    def start(self):
        arguments = ["-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.folder / "store")]
        log = open(self.folder / "nats.log", "ab")
        self.process = subprocess.Popen([self.binary, *arguments], stdout=log, stderr=log)
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                    if connection.recv(4).startswith(b"INFO"):
                        return
            except OSError:
                time.sleep(0.05)
        refuse("nats-server does not answer")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def main(folder, kind, binaries, history):
    sent = [json.loads(line) for line in open(history, encoding="utf-8")]
    # Which bus is meant, the arguments say.
    os.environ.pop("TRUNKLINE_URL", None)
    server = {"file": Up, "nats": Server}[kind](folder, binaries)
    began = time.monotonic()
    run = lambda program, *arguments, **options: subprocess.Popen(
        [binaries / program, *arguments], cwd=folder, **options
    )
    members = []
    try:
        for consumer in ("authors", "sizes"):
            for name, url in zip(("one", "two"), server.options):
                out = folder / f"{consumer}.{name}.ndjson"
                log = open(folder / f"{consumer}.{name}.log", "wb")
                member = run(
                    "handle_history", *url, "--consumer", consumer, "--member", name,
                    "--expect", str(len(sent)), "--out", str(out), "--ack-wait-ms", "5000",
                    stdout=subprocess.PIPE, stderr=log,
                )
                if not member.stdout.readline():
                    refuse(f"member {name} of {consumer}: {(folder / f'{consumer}.{name}.log').read_text()}")
                members.append((consumer, name, member))
        publisher = run(
            "trunkline", *server.commands, "pub", "-", "--json",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open(folder / "pub.log", "wb"),
        )
        kills = {len(sent) * (at + 1) // (KILLS + 1) for at in range(KILLS)}
        for number, event in enumerate(sent):
            if number in kills:
                publisher.stdin.flush()
                server.kill()
                server.start()
            if publisher.poll() is not None:
                refuse(f"pub ended early: {(folder / 'pub.log').read_text()}")
            publisher.stdin.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
        publisher.stdin.close()
        said = json.loads(publisher.stdout.read())
        if publisher.wait() != 0:
            refuse(f"pub ended with {publisher.returncode}: {said}")
        for consumer, name, member in members:
            if member.wait(PATIENCE_S) != 0:
                refuse(f"member {name} of {consumer}: {(folder / f'{consumer}.{name}.log').read_text()}")
        read = run("trunkline", *server.commands, "replay", "--from", "first", "--json", stdout=subprocess.PIPE)
        stored = [json.loads(line) for line in read.stdout]
        if read.wait() != 0:
            refuse("replay failed")
    finally:
        for _, _, member in members:
            member.kill()
        server.kill()

    by_key = lambda events: {key: [event["id"] for event in of] for key, of in grouped(events).items()}
    if len(stored) != len(sent) or by_key(stored) != by_key(sent):
        refuse(f"{len(sent)} events were sent and {len(stored)} are stored, or a key is out of order")
    if said["stored"] != len(sent) or said["refused"] or said["unknown"]:
        refuse(f"pub says {said}")
    wanted = {event["id"] for event in sent}
    told = []
    for consumer in ("authors", "sizes"):
        handled = [
            [json.loads(line)["id"] for line in open(folder / f"{consumer}.{name}.ndjson", encoding="utf-8")]
            for name in ("one", "two")
        ]
        if set().union(*handled) != wanted:
            refuse(f"{consumer}: {len(wanted - set().union(*handled))} events were not handled")
        again = sum(map(len, handled)) - len(wanted)
        told.append(f"{consumer}: {' + '.join(str(len(of)) for of in handled)} ({again} again)")
    print(
        f"{len(sent)} events and {len(by_key(sent))} keys are stored once and in order after {KILLS} kills of the "
        f"server, {said['duplicates']} of them known again; processes handled {', '.join(told)}; "
        f"{time.monotonic() - began:.1f} s"
    )


def grouped(events):
    groups = defaultdict(list)
    for event in events:
        groups[event["partitionkey"]].append(event)
    return groups


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in ("file", "nats"):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder), sys.argv[1], Path(sys.argv[2]).resolve(), sys.argv[3])
