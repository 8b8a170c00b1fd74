"""nats-py: a service of its own on the same server, which needs nothing of ours but WIRE.md."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from datetime import datetime, timezone
from typing import Any, Awaitable, Callable, Dict, List, Optional
from urllib.parse import quote, urlsplit

import nats
from cloudevents.core.bindings import http
from cloudevents.core.bindings.http import HTTPMessage
from cloudevents.core.v1.event import CloudEvent
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from checks import BUS, WATCHDOG_S, Checks, equal
from trunkline import foreign, replay, start, trunkline

STRUCTURED = "application/cloudevents+json"
TEXT = 'größe "日本語" 100% 😀'
NOON = "2026-01-31T12:00:00.123456Z"
ID = "Nats-Msg-Id"

Prove = Callable[["nats.NATS", JetStreamContext], Awaitable[None]]


def event(type_: str, ident: str, **more: Any) -> Dict[str, Any]:
    required = {"specversion": "1.0", "id": ident, "source": "/nats-py", "type": type_}
    return {**required, "time": NOON, **more}


def body(each: Dict[str, Any]) -> bytes:
    return json.dumps(each, ensure_ascii=False).encode()


def encoded(text: str) -> str:
    """A header's value: what is no visible ASCII, and `"` and `%`, by its bytes (HTTP 3.1.3.2)."""
    visible = "".join(map(chr, range(0x21, 0x7F))).replace('"', "").replace("%", "")
    return quote(text, safe=visible)


def on_nats(prove: Prove) -> Callable[[], None]:
    async def connected() -> None:
        client = await nats.connect(BUS)
        try:
            await prove(client, client.jetstream())
        finally:
            await client.close()

    return lambda: asyncio.run(connected())


async def fetched(js: JetStreamContext, subject: str, count: int) -> List[Any]:
    """The messages of a subject by a pull consumer of this client."""
    found = await js.pull_subscribe(subject, stream="EVENTS")
    messages: List[Any] = []
    while len(messages) < count:
        messages += await found.fetch(count - len(messages), timeout=10)
    for each in messages:
        await each.ack()
    await found.unsubscribe()
    return messages


# --- what it publishes ---------------------------------------------------------------------------


async def structured(_: Any, js: JetStreamContext) -> None:
    sent = [
        event("py.structured", "s-1", data={TEXT: [1, 2.5, None]}, subject=TEXT, tenant=TEXT),
        event("py.structured", "s-2", datacontenttype="text/plain", data=TEXT),
        event("py.structured", "s-3", data_base64="AAH/"),
        event("py.structured", "s-4"),
    ]
    media: List[Optional[str]] = [STRUCTURED, None, f"{STRUCTURED}; charset=utf-8", None]
    for each, kind in zip(sent, media):
        headers = {ID: each["id"], **({"content-type": kind} if kind else {})}
        ack = await js.publish("events.py.structured", body(each), headers=headers)
        equal((ack.stream, ack.duplicate), ("EVENTS", None))
    await js.publish("events.py.structured", body(event("py.structured", "s-5")))
    equal(replay("py.structured"), [*sent, event("py.structured", "s-5")])


async def binary(_: Any, js: JetStreamContext) -> None:
    each = {"specversion": "1.0", "source": "/nats-py", "type": "py.binary", "time": NOON}
    own = {**each, "subject": TEXT, "partitionkey": TEXT, "tenant": TEXT}
    rows = [
        ("application/json", b'{"a":[1]}', {"data": {"a": [1]}}),
        ("text/plain", TEXT.encode(), {"data": TEXT}),
        ("image/png", b"\x89PNG\0\xff", {"data_base64": "iVBORwD/"}),
    ]
    for number, (media, data, _) in enumerate(rows):
        headers = {f"ce-{name}": encoded(value) for name, value in own.items()}
        headers |= {"ce-id": f"b-{number}", ID: f"b-{number}", "content-type": media}
        await js.publish("events.py.binary", data, headers=headers)
    expected = [
        {**own, "id": f"b-{number}", "datacontenttype": media, **data}
        for number, (media, _, data) in enumerate(rows)
    ]
    equal(replay("py.binary"), expected)


async def with_the_sdk(_: Any, js: JetStreamContext) -> None:
    """What the official SDK writes for HTTP has the headers of the NATS binding too."""
    at = datetime(2026, 1, 31, 12, 0, 0, 123456, timezone.utc)
    attributes = {"id": "k-1", "source": "/sdk", "type": "py.sdk", "time": at, "tenant": TEXT}
    attributes["datacontenttype"] = "application/json"
    for mode in ("structured", "binary"):
        sent = CloudEvent({**attributes, "id": mode}, {"größe": [1]})
        message: HTTPMessage = getattr(http, f"to_{mode}_event")(sent)
        await js.publish("events.py.sdk", message.body, headers=dict(message.headers))
    for each, mode in zip(replay("py.sdk"), ("structured", "binary")):
        got = as_sdk(body(each))
        equal(got.get_attributes(), {**attributes, "id": mode, "specversion": "1.0"})
        equal(got.get_data(), {"größe": [1]})


def as_sdk(text: bytes) -> CloudEvent:
    message = HTTPMessage({"content-type": STRUCTURED}, text)
    return http.from_structured_event(message)  # type: ignore[return-value]


#: Bytes of messages as the Go SDK writes them and its kin may: headers as they stand on the wire, the
#: body, and the event that it is. The SDK writes nothing beside a structured body, sets
#: `ce-datacontenttype` and no `content-type`, and encodes no value.
GO: Dict[str, Any] = {
    "structured, no header at all": (
        None,
        b'{"specversion":"1.0","id":"go","source":"/go","type":"go.event","time":"2026-01-31T12:00:00Z","data":{"a":1},"datacontenttype":"application/json"}',
        {"datacontenttype": "application/json", "data": {"a": 1}},
    ),
    "binary, JSON": (
        "ce-datacontenttype: application/json\r\nce-tenant: acme\r\n",
        b'{"a":1}',
        {"datacontenttype": "application/json", "tenant": "acme", "data": {"a": 1}},
    ),
    "binary, values not encoded": (
        "ce-subject: größe 日本語 100% sure\r\nce-datacontenttype: text/plain\r\n",
        "é".encode(),
        {"subject": "größe 日本語 100% sure", "datacontenttype": "text/plain", "data": "é"},
    ),
    "binary, an extension that is a number and one that is a truth": (
        "ce-count: 3\r\nce-yes: true\r\nce-datacontenttype: application/json\r\n",
        b"[1]",
        {"count": "3", "yes": "true", "datacontenttype": "application/json", "data": [1]},
    ),
    "binary, no media type": (
        "ce-tenant: acme\r\n",
        b'{"a":1}',
        {"tenant": "acme", "data_base64": base64.b64encode(b'{"a":1}').decode()},
    ),
    "binary, names as MIME writes them": (
        "Ce-Tenant: acme\r\nContent-Type: application/json\r\n",
        b'{"a":1}',
        {"datacontenttype": "application/json", "tenant": "acme", "data": {"a": 1}},
    ),
    "binary, both media types": (
        "content-type: text/plain\r\nce-datacontenttype: application/json\r\n",
        b'{"a":1}',
        {"datacontenttype": "application/json", "data": {"a": 1}},
    ),
    "binary, no space after the colon": (
        "ce-tenant:acme\r\nce-datacontenttype:application/json\r\n",
        b"null",
        {"tenant": "acme", "datacontenttype": "application/json", "data": None},
    ),
    "binary, no data": ("ce-tenant: acme\r\n", b"", {"tenant": "acme"}),
}


def go(what: str, number: int) -> None:
    headers, data, expected = GO[what]
    required = {"specversion": "1.0", "id": "go", "source": "/go", "type": "go.event"}
    required["time"] = "2026-01-31T12:00:00Z"
    head = b""
    if headers is not None:
        lines = "".join(f"ce-{name}: {value}\r\n" for name, value in required.items())
        head = f"NATS/1.0\r\n{lines}{headers}\r\n".encode()
    raw_publish(f"events.go.event{number}", head, data)
    equal(replay(f"go.event{number}"), [{**required, **expected}])


def raw_publish(subject: str, head: bytes, data: bytes) -> None:
    """Bytes past any client, which might mend them. The answer to PING says that they were taken."""
    where = urlsplit(BUS)
    with socket.create_connection((where.hostname, where.port), WATCHDOG_S) as server:
        size = len(head) + len(data)
        line = f"HPUB {subject} {len(head)} {size}" if head else f"PUB {subject} {size}"
        hello = b'CONNECT {"verbose":false,"headers":true}\r\n'
        server.sendall(hello + line.encode() + b"\r\n" + head + data + b"\r\nPING\r\n")
        said = b""
        while b"PONG\r\n" not in said:
            more = server.recv(4096)
            if not more or b"-ERR" in more:
                raise AssertionError(f"the server did not take it: {said + more!r}")
            said += more


# --- what it reads -------------------------------------------------------------------------------


async def reads(client: Any, js: JetStreamContext) -> None:
    rows = [
        ("py.read", ["py.read", json.dumps({TEXT: [1, 2.5]}), "--key", TEXT], {TEXT: [1, 2.5]}),
        ("py.read", ["py.read", TEXT, "--content-type", "text/plain"], TEXT),
        ("py.read", ["py.read", "null"], None),
    ]
    for _, words, _ in rows:
        trunkline("pub", *words)
    stored = replay("py.read")
    messages = await fetched(js, "events.py.read", len(rows))
    for message, each, (_, _, data) in zip(messages, stored, rows):
        equal(message.subject, "events.py.read")
        equal(json.loads(message.data), each, "the body:")
        equal(message.headers[ID], each["id"])
        equal(message.headers["content-type"], STRUCTURED)
        got = as_sdk(message.data)
        names = {name for name in each if name not in ("data", "data_base64")}
        equal(set(got.get_attributes()), names, "attributes:")
        for name in names - {"time"}:
            equal(got.get_attributes()[name], each[name], name)
        equal(got.get_data(), data, "data:")
    last = await js.get_last_msg("EVENTS", "events.py.read", direct=True)
    equal(json.loads(last.data or b""), stored[-1], "by direct get:")
    equal((last.headers or {})[ID], stored[-1]["id"])
    got = await js.get_msg("EVENTS", seq=last.seq, direct=False)
    equal(got.data, last.data, "by the stream's leader:")


async def subjects(_: Any, js: JetStreamContext) -> None:
    types = {
        "com.example/Order Placed": "events.com.example%2FOrder%20Placed",
        "bestellung.größe": "events.bestellung.gr%C3%B6%C3%9Fe",
    }
    for type_, subject in types.items():
        trunkline("pub", type_, "{}")
        message = await js.get_last_msg("EVENTS", subject, direct=True)
        equal(json.loads(message.data or b"")["type"], type_)


async def once(_: Any, js: JetStreamContext) -> None:
    each = event("py.once", "once-1", data=1)
    trunkline("pub", "py.once", "1", "--id", "once-1")
    ack = await js.publish("events.py.once", body(each), headers={ID: "once-1"})
    equal(ack.duplicate, True, "Trunkline first:")
    await js.publish("events.py.once", body({**each, "id": "once-2"}), headers={ID: "once-2"})
    trunkline("pub", "py.once", "1", "--id", "once-2")
    equal([each["id"] for each in replay("py.once")], ["once-1", "once-2"])


async def reads_binary(_: Any, js: JetStreamContext) -> None:
    """Binary mode, as Trunkline writes it where it is asked to."""
    asked = {"TRUNKLINE_NATS__CONTENT_MODE": "binary"}
    rows = [
        ([json.dumps({TEXT: 1}), "--key", TEXT], json.dumps({TEXT: 1}).encode()),
        ([TEXT, "--content-type", "text/plain"], TEXT.encode()),
        (["50%", "--content-type", "image/svg+xml", "--id", "a % b"], b"50%"),
    ]
    for words, _ in rows:
        trunkline("pub", "py.asked", *words, **asked)
    stored = replay("py.asked")
    messages = await fetched(js, "events.py.asked", len(rows))
    for message, each, (_, data) in zip(messages, stored, rows):
        equal(message.data, data, "the body is the data:")
        headers = {name.lower(): value for name, value in message.headers.items()}
        known = {name: value for name, value in each.items() if not name.startswith("data")}
        for name, value in known.items():
            equal(headers[f"ce-{name}"], encoded(str(value)), name)
        equal(headers["ce-datacontenttype"], each.get("datacontenttype", "application/json"))
        equal(headers[ID.lower()], each["id"])
        got = http.from_binary_event(HTTPMessage(headers, message.data))
        for name in ("id", "source", "type", "partitionkey"):
            equal(got.get_attributes().get(name), each.get(name), f"by the SDK, {name}:")
    dead = {"order_id": "bad"}
    trunkline("pub", "work.ordered", json.dumps(dead), "--id", "w-binary", **asked)
    equal(foreign("handle", "1").splitlines(), ["w-binary bad"])
    letter = await js.get_last_msg("EVENTS_DLQ", "dlq.>", direct=False)
    equal((letter.headers or {})["ce-id"], "w-binary", "a dead letter keeps its headers:")
    equal(json.loads(letter.data or b""), dead)


# --- from before CloudEvents ---------------------------------------------------------------------

#: A message of each form, and what it is as an event.
OLD: Dict[str, Any] = {
    "metadata-payload": (
        b'{"metadata":{"eventId":"l-1","eventType":"TaskCreated","timestamp":"2026-01-31T12:00:00.000Z","source":"secretary","version":"1.0.0","correlationId":"c-1"},"payload":{"title":"gr\u00f6\u00dfe"}}',
        {"id": "l-1", "source": "secretary", "type": "TaskCreated", "correlationid": "c-1"},
        {"title": "größe"},
    ),
    "flat-data": (
        b'{"eventId":"l-2","eventType":"TaskCreated","timestamp":1769860800000,"source":"map","version":2,"data":{"title":"b"}}',
        {"id": "l-2", "source": "map", "type": "TaskCreated", "dataversion": 2},
        {"title": "b"},
    ),
    "tagged": (
        b'{"TaskCreated":{"title":"c","event_id":"l-3"}}',
        {"id": "l-3", "type": "TaskCreated"},
        {"title": "c", "event_id": "l-3"},
    ),
    "message-fields": (
        b'{"id":"l-4","sender":"planner","recipient":"coder","content":"x","message_type":"TaskCreated","task_id":"t-1","title":"d"}',
        {"id": "l-4", "source": "planner", "type": "TaskCreated", "taskid": "t-1"},
        None,
    ),
}


async def old_envelopes(_: Any, js: JetStreamContext) -> None:
    for text, _, _ in OLD.values():
        await js.publish("events.task.created", text)
    cat = ("streams", "cat", "EVENTS", "--json")
    entries = [json.loads(line) for line in trunkline(*cat).splitlines()]
    entries = [each for each in entries if each["subject"] == "events.task.created"]
    equal(["event" in each for each in entries], [False] * 4, "events without the setting:")
    for number, (form, (text, attributes, data)) in enumerate(OLD.items()):
        lines = trunkline(*cat, TRUNKLINE_LEGACY=form).splitlines()
        entries = [json.loads(line) for line in lines]
        entries = [each for each in entries if each["subject"] == "events.task.created"]
        equal(["event" in each for each in entries], [at == number for at in range(4)], form)
        event_ = entries[number]["event"]
        equal({name: event_.get(name) for name in attributes}, attributes, form)
        equal(event_["data"], json.loads(text) if data is None else data, form)
    everything = {"TRUNKLINE_LEGACY": ",".join(OLD)}
    ids = [each["id"] for each in replay("task.created", **everything)]
    equal(ids, ["l-1", "l-2", "l-3", "l-4"])
    handled = await asyncio.to_thread(foreign, "legacy", "4", **everything)
    equal(sorted(handled.splitlines()), ["l-1 größe", "l-2 b", "l-3 c", "l-4 d"])


# --- side by side --------------------------------------------------------------------------------


async def side_by_side(client: Any, js: JetStreamContext) -> None:
    config = ConsumerConfig(durable_name="audit", ack_policy=AckPolicy.EXPLICIT)
    audit = await js.pull_subscribe("events.work.>", durable="audit", config=config)
    orders = ["a", "bad", "c"]
    for order in orders:
        trunkline("pub", "work.ordered", json.dumps({"order_id": order}), "--id", f"w-{order}")
    handled = foreign("handle", "3").splitlines()
    equal(sorted(handled), [f"w-{order} {order}" for order in orders])
    messages = await audit.fetch(3, timeout=10)
    equal([json.loads(each.data)["data"]["order_id"] for each in messages], orders)
    for each in messages[:2]:
        await each.ack_sync()
    theirs = await js.consumer_info("EVENTS", "audit")
    equal(theirs.num_ack_pending, 1, "what it holds still:")
    ours = [each for each in await js.consumers_info("EVENTS") if each.name != "audit"]
    billing = [each for each in ours if "billing" in each.name]
    equal([(each.num_ack_pending, each.num_pending) for each in billing], [(0, 0)])
    listed = json.loads(trunkline("consumers", "list", "--json"))
    assert "audit" in json.dumps(listed), f"its consumer is not listed: {listed}"


async def dead_letter(_: Any, js: JetStreamContext) -> None:
    letters = await js.pull_subscribe("dlq.>", stream="EVENTS_DLQ")
    (letter,) = await letters.fetch(1, timeout=10)
    (bad,) = [each for each in replay("work.ordered") if each["data"]["order_id"] == "bad"]
    equal(json.loads(letter.data), bad, "the event itself:")
    seq = letter.headers["Trunkline-Seq"]
    equal(letter.subject, f"dlq.EVENTS.billing.{seq}")
    names = ("Stream", "Consumer", "Reason", "Failures", "Error", "Subject")
    equal(
        [letter.headers[f"Trunkline-{name}"] for name in names],
        ["EVENTS", "billing", "failed", "1", "it is bad", "events.work.ordered"],
    )
    original = await js.get_msg("EVENTS", seq=int(seq), direct=True)
    equal(letter.data, original.data, "byte for byte:")


async def state(_: Any, js: JetStreamContext) -> None:
    foreign("state")
    bucket = await js.key_value("FOREIGN")
    keys = [key for key in await bucket.keys() if not key.startswith("_")]
    equal(sorted(keys), ["billing.cursor", "billing.name"])
    equal((await bucket.get("billing.cursor")).value, b"17")
    equal((await bucket.get("billing.name")).value, "größe \U0001f600".encode())
    try:
        await bucket.get("billing.gone")
    except nats.js.errors.KeyNotFoundError:
        pass
    else:
        raise AssertionError("a key that was taken back is still there")


# --- what natscli asks ---------------------------------------------------------------------------


async def ask(client: Any, subject: str, question: Any = None) -> Dict[str, Any]:
    """One request of the JetStream API as natscli sends it."""
    payload = b"" if question is None else json.dumps(question).encode()
    answer = json.loads((await client.request(f"$JS.API.{subject}", payload, timeout=10)).data)
    assert "error" not in answer, f"{subject}: {answer['error']}"
    return answer


async def natscli_streams(client: Any, _: JetStreamContext) -> None:
    names = await ask(client, "STREAM.NAMES", {"offset": 0, "subject": "events.>"})
    equal(names["streams"], ["EVENTS"], "`nats stream find`:")
    names = await ask(client, "STREAM.NAMES", {"offset": 0})
    assert {"EVENTS", "COMMANDS", "EVENTS_DLQ"} <= set(names["streams"]), names
    streams = (await ask(client, "STREAM.LIST", {"offset": 0}))["streams"]
    subjects = {each["config"]["name"]: each["config"]["subjects"] for each in streams}
    equal(subjects["EVENTS"], ["events.>"], "`nats stream ls`:")
    equal(subjects["EVENTS_DLQ"], ["dlq.>"])
    info = await ask(client, "STREAM.INFO.EVENTS", {"subjects_filter": ">", "offset": 0})
    count = info["state"]["subjects"]["events.work.ordered"]
    equal(count, len(replay("work.ordered")), "`nats stream subjects`:")
    info = await ask(client, "STREAM.INFO.EVENTS_DLQ")
    equal(info["state"]["messages"], 1, "dead letters:")


async def natscli_consumers(client: Any, js: JetStreamContext) -> None:
    names = (await ask(client, "CONSUMER.NAMES.EVENTS", {"offset": 0}))["consumers"]
    listed = (await ask(client, "CONSUMER.LIST.EVENTS", {"offset": 0}))["consumers"]
    equal(sorted(each["name"] for each in listed), sorted(names), "`nats consumer ls`:")
    (billing,) = [name for name in names if "billing" in name]
    info = await ask(client, f"CONSUMER.INFO.EVENTS.{billing}")
    equal((info["config"]["ack_policy"], info["num_ack_pending"]), ("explicit", 0))
    # `nats consumer next` on the durable of Trunkline: it is theirs to take, and is given back.
    trunkline("pub", "work.ordered", '{"order_id":"next"}', "--id", "w-next")
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox, max_msgs=1)
    question = json.dumps({"batch": 1, "expires": 5_000_000_000}).encode()
    await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.EVENTS.{billing}", question, reply=inbox)
    message = await answers.next_msg(timeout=10)
    equal(json.loads(message.data)["id"], "w-next")
    await message.nak()
    await client.flush()
    equal(foreign("handle", "1").splitlines(), ["w-next next"], "given back:")


async def natscli_messages(client: Any, _: JetStreamContext) -> None:
    stored = replay("work.ordered")
    got = await ask(client, "STREAM.MSG.GET.EVENTS", {"last_by_subj": "events.work.ordered"})
    equal(json.loads(base64.b64decode(got["message"]["data"])), stored[-1], "`nats stream get`:")
    last = await client.request("$JS.API.DIRECT.GET.EVENTS.events.work.ordered", b"", timeout=10)
    equal(json.loads(last.data), stored[-1], "by its subject:")
    equal(last.headers["Nats-Subject"], "events.work.ordered")
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    question = {"batch": 10, "seq": 1, "next_by_subj": "events.work.>"}
    await client.publish("$JS.API.DIRECT.GET.EVENTS", json.dumps(question).encode(), reply=inbox)
    found = []
    while True:
        message = await answers.next_msg(timeout=10)
        if (message.headers or {}).get("Status"):
            break
        found.append(json.loads(message.data))
    equal(found, stored, "a batch, as `nats stream view`:")


async def natscli_purge(client: Any, js: JetStreamContext) -> None:
    for number in range(3):
        trunkline("pub", "py.purged", str(number))
    kept = len(replay("work.ordered"))
    answer = await ask(client, "STREAM.PURGE.EVENTS", {"filter": "events.py.purged", "keep": 1})
    equal((answer["success"], answer["purged"]), (True, 2))
    equal([each["data"] for each in replay("py.purged")], [2])
    equal(len(replay("work.ordered")), kept, "what was not named:")


# --- ephemeral -----------------------------------------------------------------------------------


async def hears(client: Any, _: JetStreamContext) -> None:
    heard = await client.subscribe("live.>")
    await client.flush()
    await asyncio.to_thread(foreign, "emit", "2")
    for number in range(2):
        message = await heard.next_msg(timeout=10)
        equal(message.subject, "live.page.viewed")
        each = json.loads(message.data)
        equal((each["type"], each["source"]), ("page.viewed", "/foreign"))
        equal(each["data"], {"page": f"/größe/{number}"})


async def is_heard(client: Any, _: JetStreamContext) -> None:
    with start("hear", "3") as listener:
        try:
            assert listener.stdout is not None
            equal(await asyncio.to_thread(listener.stdout.readline), "listening\n")
            sent = event("page.viewed", "v-1", data={"page": TEXT})
            await client.publish("live.page.viewed", body(sent))
            headers = {"content-type": STRUCTURED}
            await client.publish("live.page.viewed", body({**sent, "id": "v-2"}), headers=headers)
            own = {"specversion": "1.0", "id": "v-3", "source": "/s", "type": "page.viewed"}
            headers = {f"ce-{name}": value for name, value in own.items()}
            headers["content-type"] = "application/json"
            data = json.dumps({"page": TEXT}).encode()
            await client.publish("live.page.viewed", data, headers=headers)
            await client.flush()
            rest = (await asyncio.to_thread(listener.stdout.read)).splitlines()
            equal(rest, [f"v-{number} {TEXT}" for number in (1, 2, 3)])
        finally:
            listener.kill()


checks = Checks("nats-py")
foreign("make")
for NAME, PROVE in (
    ("structured events come back equal, with a media type and without any header", structured),
    ("binary events with percent-encoded values come back equal", binary),
    ("what the CloudEvents SDK writes comes back equal in both modes", with_the_sdk),
):
    checks.check(NAME, on_nats(PROVE))
for NUMBER, WHAT in enumerate(GO):
    checks.check(f"as the Go SDK: {WHAT}", lambda: go(WHAT, NUMBER))
for NAME, PROVE in (
    ("what Trunkline publishes is a CloudEvent by a pull consumer and by direct get", reads),
    ("subjects are those of WIRE.md", subjects),
    ("envelopes from before CloudEvents are events where a setting names them", old_envelopes),
    ("a repeated id is stored once, whoever sends it", once),
    ("a durable of Trunkline and one of its own see the same events", side_by_side),
    ("a dead letter is the event byte for byte, with its story in headers", dead_letter),
    ("a state bucket is a KV bucket", state),
    ("natscli: streams and dead letters are found, listed and shown", natscli_streams),
    ("natscli: consumers are listed and shown, and a message is taken from one", natscli_consumers),
    ("natscli: messages by subject, directly and as a batch", natscli_messages),
    ("natscli: a purge with a filter", natscli_purge),
    ("what Trunkline writes in binary mode is the data with attributes in headers", reads_binary),
    ("hears ephemeral events", hears),
    ("its ephemeral events are heard in both modes", is_heard),
):
    checks.check(NAME, on_nats(PROVE))
checks.finish()
