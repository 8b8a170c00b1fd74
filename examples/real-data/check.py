#!/usr/bin/env python3
"""Compares what was sent with what came back. Python 3 and its standard library, nothing else.

usage: check.py take COUNT < SSE > LOG        keep the first COUNT events of a stream
       check.py compare SENT READ LOG REPORT  compare everything, print figures, exit 1 at a fault

SENT and READ are NDJSON, LOG has an SSE id, a tab and the event on each line, REPORT is what
`handle_history` prints.
"""

import hashlib
import json
import sys
from collections import defaultdict
from itertools import zip_longest


def events_of(stream):
    """The events of an SSE stream, as pairs of id and data."""
    event_id, data = None, []
    for line in stream:
        line = line.rstrip("\r\n")
        if line:
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "id":
                event_id = value
            elif field == "data":
                data.append(value)
        else:
            # An event without data is a keep-alive, or only an id.
            if data:
                yield event_id, "\n".join(data)
            data = []


def take(count):
    taken = 0
    if count == 0:
        return 0
    for event_id, data in events_of(sys.stdin):
        print(event_id, data, sep="\t")
        taken += 1
        if taken == count:
            return 0
    print(f"check: the stream ended after {taken} of {count} events", file=sys.stderr)
    return 1


def refuse(message):
    raise SystemExit(f"check: {message}")


def data_bytes(event):
    return len(json.dumps(event["data"], ensure_ascii=False, separators=(",", ":")).encode())


def summary(path, lines):
    """Ids in order, a digest of each key's order, bytes, and a digest of everything."""
    ids, keys, size, content = [], defaultdict(hashlib.sha256), 0, hashlib.sha256()
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except ValueError as error:
            refuse(f"{path}, line {number}: {error}")
        if "id" not in event or "partitionkey" not in event:
            # The door says so when events are gone or cannot be read.
            refuse(f"{path}, line {number} is no event: {line.strip()[:200]}")
        ids.append(event["id"])
        keys[event["partitionkey"]].update(event["id"].encode() + b"\n")
        size += data_bytes(event)
        # What is equal as JSON is equal here, whatever the order of the members.
        content.update(json.dumps(event, sort_keys=True).encode() + b"\n")
    return {
        "events": len(ids),
        "ids": ids,
        "keys": {key: digest.hexdigest() for key, digest in keys.items()},
        "bytes": size,
        "content": content.hexdigest(),
    }


def same(what, sent, found):
    if sent == found:
        return
    if isinstance(sent, list):
        at, (one, other) = next((i, p) for i, p in enumerate(zip_longest(sent, found)) if p[0] != p[1])
        refuse(f"{what}: entry {at} was sent as {one} and came back as {other}")
    if isinstance(sent, dict):
        wrong = sorted(key for key in sent.keys() | found.keys() if sent.get(key) != found.get(key))
        refuse(f"{what}: {len(wrong)} keys differ, the first is {wrong[0]!r}")
    refuse(f"{what}: sent {sent}, came back {found}")


def compare(sent_path, read_path, log_path, report_path):
    with open(sent_path, encoding="utf-8", newline="\n") as lines:
        sent = summary(sent_path, lines)
    if len(set(sent["ids"])) != sent["events"]:
        refuse("an id was sent twice")
    with open(read_path, encoding="utf-8", newline="\n") as lines:
        read = summary(read_path, lines)
    with open(log_path, encoding="utf-8", newline="\n") as lines:
        pairs = [line.split("\t", 1) for line in lines]
    followed = summary(log_path, (data for _, data in pairs))
    for what, found in (("range", read), ("SSE", followed)):
        for measure in ("events", "ids", "keys", "bytes", "content"):
            same(f"{what}, {measure}", sent[measure], found[measure])

    places = [event_id.rsplit(":", 1) for event_id, _ in pairs]
    if {stream for stream, _ in places} != {"EVENTS"}:
        refuse("SSE ids are not all of the stream EVENTS")
    same("SSE, sequences", list(range(1, sent["events"] + 1)), [int(seq) for _, seq in places])

    with open(report_path, encoding="utf-8") as file:
        report = json.load(file)
    same("library, published", sent["events"], report["published"])
    for name, consumer in report["consumers"].items():
        same(f"consumer {name}, events", sent["events"], consumer["events"])
        same(f"consumer {name}, bytes", sent["bytes"], consumer["bytes"])
        same(f"consumer {name}, sum of its members", sent["events"], sum(consumer["members"]))
    print(
        f"{sent['events']} events, {len(sent['keys'])} keys and {sent['bytes']} bytes of data are the same "
        f"as range, as SSE and in {len(report['consumers'])} consumers"
    )
    return 0


def main(args):
    if len(args) == 2 and args[0] == "take":
        return take(int(args[1]))
    if len(args) == 5 and args[0] == "compare":
        return compare(*args[1:])
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.stdin.reconfigure(encoding="utf-8", newline="\n")
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    sys.exit(main(sys.argv[1:]))
