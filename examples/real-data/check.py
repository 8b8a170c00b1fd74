#!/usr/bin/env python3
"""Compares what was sent with what came back. Python 3 and its standard library, nothing else.

usage: check.py take COUNT < SSE > LOG        keep the first COUNT events of a stream
       check.py compare FOLDER                compare everything, print figures, exit 1 at a fault

The folder is that of `run.sh`:
  sent.ndjson, few.ndjson     what was sent, and what of it by HTTP
  piped.json, filed.json      what `trunkline pub --json` said of the rest
  read.ndjson                 an HTTP range
  followed.log                SSE: an id, a tab and the event on each line
  replayed.ndjson             `trunkline replay --json`
  streams.json, consumers.json   what the command line tells of the bus
  members/CONSUMER.MEMBER.*   what each process handled (ndjson) and said at its end (json)
  handled.json                what `handle_history` says of a bus of its own
"""

import hashlib
import json
import sys
from collections import defaultdict
from itertools import zip_longest
from pathlib import Path


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


# Both members of a consumer must have handled something once there is this much for two: a member
# fetches some hundred at once.
ENOUGH_FOR_TWO = 5_000


def lines_of(path):
    with open(path, encoding="utf-8", newline="\n") as lines:
        yield from lines


def document(path):
    return json.loads(path.read_text(encoding="utf-8"))


def compare(folder):
    folder = Path(folder)
    sent = summary("sent.ndjson", lines_of(folder / "sent.ndjson"))
    if len(set(sent["ids"])) != sent["events"]:
        refuse("an id was sent twice")
    pairs = [line.split("\t", 1) for line in lines_of(folder / "followed.log")]
    ways = {
        "range": lines_of(folder / "read.ndjson"),
        "SSE": (data for _, data in pairs),
        "replay": lines_of(folder / "replayed.ndjson"),
    }
    for way, lines in ways.items():
        found = summary(way, lines)
        for measure in ("events", "ids", "keys", "bytes", "content"):
            same(f"{way}, {measure}", sent[measure], found[measure])

    places = [event_id.rsplit(":", 1) for event_id, _ in pairs]
    if {stream for stream, _ in places} != {"EVENTS"}:
        refuse("SSE ids are not all of the stream EVENTS")
    same("SSE, sequences", list(range(1, sent["events"] + 1)), [int(seq) for _, seq in places])

    compare_told(folder, sent["events"])
    members = [
        f"{name}: {' + '.join(map(str, counts))}{f' ({again} again)' if again else ''}"
        for name, counts, again in compare_members(folder / "members")
    ]
    in_process = compare_library(document(folder / "handled.json"), sent)
    print(
        f"{sent['events']} events, {len(sent['keys'])} keys and {sent['bytes']} bytes of data are the same "
        f"as {', '.join(ways)} and in {in_process} consumers of one process; processes handled {', '.join(members)}"
    )
    return 0


def compare_told(folder, events):
    """What the commands told, beside what was sent."""
    by_pub = events - sum(1 for _ in lines_of(folder / "few.ndjson"))
    said = [document(folder / name) for name in ("piped.json", "filed.json")]
    for outcome, expected in {"stored": by_pub, "duplicates": 0, "sent": 0, "refused": 0, "unknown": 0}.items():
        same(f"pub, {outcome}", expected, sum(of[outcome] for of in said))
    streams = {stream["name"]: stream for stream in document(folder / "streams.json")}
    same("streams list, EVENTS", events, streams["EVENTS"]["events"])
    for name in streams.keys() - {"EVENTS"}:
        same(f"streams list, {name}", 0, streams[name]["events"])
    consumers = document(folder / "consumers.json")
    named = sorted((consumer["stream"], consumer["name"]) for consumer in consumers)
    same("consumers list", [("EVENTS", name) for name in ("authors", "sizes", "survivors")], named)
    for consumer in consumers:
        for measure, expected in {"pending": 0, "in_flight": 0, "floor": events, "expired_at_most": 0}.items():
            same(f"consumers list, {consumer['name']}, {measure}", expected, consumer[measure])


def compare_members(folder):
    """What the processes of each consumer handled, together exactly what is stored: each event once,
    or at least once where one was killed. Yields the consumer, each member's count, the repeats."""
    # The sequences are those of SSE, which are compared with what was sent.
    stored = {}
    for seq, line in enumerate(lines_of(folder.parent / "sent.ndjson"), 1):
        event = json.loads(line)
        stored[seq] = (event["id"], event["partitionkey"])
    consumers = defaultdict(dict)
    for path in sorted(folder.glob("*.ndjson")):
        consumer, member, _ = path.name.split(".")
        consumers[consumer][member] = [json.loads(line) for line in lines_of(path)]
    for consumer, members in consumers.items():
        killed = "killed" in members
        same(f"consumer {consumer}, members", 2, len(members))
        times = defaultdict(int)
        for member, handled in members.items():
            for event in handled:
                seq = event["seq"]
                same(f"{consumer}.{member}, event {seq}", stored.get(seq), (event["id"], event["key"]))
                times[seq] += 1
            if not handled and len(stored) >= ENOUGH_FOR_TWO:
                refuse(f"consumer {consumer}: {member} handled nothing")
            if member != "killed":
                # The line that says what it did comes after the one that says that it is ready.
                said = json.loads((folder / f"{consumer}.{member}.json").read_text().splitlines()[-1])
                same(f"{consumer}.{member}, count", len(handled), said["events"])
        lost = sorted(stored.keys() - times.keys())
        if lost:
            refuse(f"consumer {consumer}: {len(lost)} events were not handled, the first is {lost[0]}")
        again = sum(times.values()) - len(stored)
        if again and not killed:
            seq = min(seq for seq, count in times.items() if count > 1)
            refuse(f"consumer {consumer}: {again} events were handled again, the first is {seq}")
        if killed and not again:
            refuse(f"consumer {consumer}: nothing was handled again, so the kill came too late to prove anything")
        yield consumer, [len(handled) for handled in members.values()], again


def compare_library(report, sent):
    same("library, published", sent["events"], report["published"])
    for name, consumer in report["consumers"].items():
        same(f"library, {name}, events", sent["events"], consumer["events"])
        same(f"library, {name}, bytes", sent["bytes"], consumer["bytes"])
        same(f"library, {name}, sum of its members", sent["events"], sum(consumer["members"]))
    return len(report["consumers"])


def main(args):
    if len(args) == 2 and args[0] == "take":
        return take(int(args[1]))
    if len(args) == 2 and args[0] == "compare":
        return compare(args[1])
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.stdin.reconfigure(encoding="utf-8", newline="\n")
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    sys.exit(main(sys.argv[1:]))
