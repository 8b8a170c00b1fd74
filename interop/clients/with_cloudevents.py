"""The official CloudEvents SDK for Python: its events go through the door and come back equal."""

from __future__ import annotations

import base64
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Dict, List, Optional

import httpx
from cloudevents.core.bindings import http
from cloudevents.core.bindings.http import HTTPMessage
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from cloudevents.v1.conversion import from_json, to_binary, to_structured
from cloudevents.v1.http import CloudEvent as OldEvent
from httpx_sse import connect_sse

from checks import BUS, Checks, equal

EVENTS = f"{BUS}/v1/events"
TEXT = 'größe "日本語" 100% 😀 \\ é'
NOON = datetime(2026, 1, 31, 14, 0, 0, 123456, timezone(timedelta(hours=2)))
VECTORS = Path(__file__).resolve().parents[2] / "crates" / "trunkline-core" / "testdata"
FORMAT = JSONFormat()

EVERY_ATTRIBUTE: Dict[str, Any] = {
    "subject": TEXT,
    "time": NOON,
    "dataschema": "https://example.com/order.json",
    "partitionkey": TEXT,
    "correlationid": "c-1",
    "causationid": "c-0",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "a=b,c=d",
    "tenant": TEXT,
}
#: What the data is, as the SDK takes it, and its media type.
DATA: Dict[str, Any] = {
    "an object": (
        {"größe": [1, 2.5, True, None, {"😀": ""}], "big": 9007199254740991},
        "application/json",
    ),
    "an object with a type of its own": ({"a": 1}, "application/vnd.shop.order+json"),
    "text": (f"{TEXT}\nand a second line\u2028", "text/plain"),
    "text with a charset": (TEXT, "text/plain; charset=utf-8"),
    "bytes": (bytes(range(256)), "application/octet-stream"),
    "bytes that look like JSON": (b'{"a":1}', "application/octet-stream"),
    "nothing": (None, None),
}


def event(
    type_: str, ident: str, data: Any = None, media: Optional[str] = None, **more: Any
) -> CloudEvent:
    attributes = {
        "id": f"{type_} {ident}",
        "source": "/sdk/python",
        "type": type_,
        "time": NOON,
        **more,
    }
    if media is not None:
        attributes["datacontenttype"] = media
    return CloudEvent(attributes, data)


def send(message: HTTPMessage, status: int = 200) -> Dict[str, Any]:
    answer = httpx.post(EVENTS, headers=message.headers, content=message.body)
    equal(answer.status_code, status, answer.text)
    return answer.json()


def lines(type_: str) -> List[bytes]:
    answer = httpx.get(EVENTS, params={"filter": type_}).raise_for_status()
    return [line for line in answer.content.split(b"\n") if line]


def as_sdk(line: bytes) -> CloudEvent:
    message = HTTPMessage({"content-type": "application/cloudevents+json"}, line)
    return http.from_structured_event(message)  # type: ignore[return-value]


def same(got: CloudEvent, sent: CloudEvent) -> None:
    equal(got.get_attributes(), sent.get_attributes(), "attributes:")
    equal((got.get_data(), type(got.get_data())), (sent.get_data(), type(sent.get_data())), "data:")


def both_ways(mode: str, what: str) -> None:
    type_ = f"python.{mode}.{what.replace(' ', '-')}"
    sent = event(type_, f"{mode} {what} é", *DATA[what])
    send(getattr(http, f"to_{mode}_event")(sent))
    same(as_sdk(lines(type_)[0]), sent)
    params = {"filter": type_, "from": "first", "limit": 1}
    with httpx.Client() as client, connect_sse(client, "GET", EVENTS, params=params) as source:
        (followed,) = [each.data for each in source.iter_sse() if each.data]
    same(as_sdk(followed.encode()), sent)


def every_attribute(mode: str) -> None:
    sent = event(f"python.attributes.{mode}", TEXT, {"a": 1}, "application/json", **EVERY_ATTRIBUTE)
    send(getattr(http, f"to_{mode}_event")(sent))
    got = as_sdk(lines(f"python.attributes.{mode}")[0])
    same(got, sent)
    equal(got.get_time(), NOON, "the point in time:")


def typed_extensions() -> None:
    own = {"count": 2147483647, "low": -2147483648, "yes": True, "no": False, "empty": ""}
    sent = event("python.extensions", "x-1", None, None, **own)
    send(http.to_structured_event(sent))
    got = as_sdk(lines("python.extensions")[0])
    same(got, sent)
    equal(
        {name: type(got.get_extension(name)) for name in own},
        {name: type(own[name]) for name in own},
    )


def json_values() -> None:
    values: List[Any] = [[1, "a"], "text", 0, 1.5, False, ""]
    for number, value in enumerate(values):
        send(
            http.to_structured_event(event("python.values", str(number), value, "application/json"))
        )
    equal([as_sdk(line).get_data() for line in lines("python.values")], values)


def batch() -> None:
    sent = [
        event("python.batch", str(number), {"n": number}, "application/json")
        for number in range(20)
    ]
    body = b"[" + b",".join(FORMAT.write(each) for each in sent) + b"]"
    send(HTTPMessage({"content-type": "application/cloudevents-batch+json"}, body))
    for got, each in zip(map(as_sdk, lines("python.batch")), sent):
        same(got, each)


def old_api(mode: str) -> None:
    attributes = {
        "id": f"old-{mode}",
        "source": "/sdk/python",
        "type": f"python.old.{mode}",
        "tenant": "acme",
    }
    sent = OldEvent(
        {**attributes, "time": "2026-01-31T12:00:00.5Z", "datacontenttype": "application/json"},
        {"n": [1]},
    )
    headers, body = (to_binary if mode == "binary" else to_structured)(sent)
    send(HTTPMessage(headers, body))
    equal(from_json(OldEvent, lines(f"python.old.{mode}")[0]), sent)


def vectors() -> None:
    rows = json.loads((VECTORS / "structured-write.json").read_text(encoding="utf-8"))
    wrong = []
    for row in rows:
        try:
            got = as_sdk(row["output"].encode())
            expected = dict(row["attributes"])
            for name, value in expected.items():
                found = got.get_attributes().get(name)
                if name == "time":
                    value = as_time(value)
                # An integer that CloudEvents has no type for is written as a string, as WIRE.md says.
                equal(str(found), str(value), name)
            equal(got.get_data(), data_of(row), "data")
        except Exception as error:
            wrong.append(f"{row['name']}: {error}")
    equal(wrong, [], f"of {len(rows)} vectors")


def as_time(text: str) -> Any:
    return as_sdk(
        json.dumps(
            {"specversion": "1.0", "id": "1", "source": "/", "type": "t", "time": text}
        ).encode()
    ).get_time()


def data_of(row: Dict[str, Any]) -> Any:
    """The data of a vector as an SDK must see it, by section 3.1 of the JSON format."""
    written = json.loads(row["output"])
    if "data_base64" in written:
        return base64.b64decode(written["data_base64"])
    return written.get("data")


# --- where the SDK departs from the specifications --------------------------------------------


def time_is_invented() -> None:
    line = b'{"specversion":"1.0","id":"1","source":"/s","type":"t"}'
    assert as_sdk(line).get_time() is not None


def boolean_header() -> None:
    send(http.to_binary_event(event("python.boolean", "1", None, None, yes=True)))
    equal(json.loads(lines("python.boolean")[0])["yes"], "True")


def no_media_type() -> None:
    message = http.to_binary_event(event("python.media", "1", {"a": 1}))
    equal("content-type" in message.headers, False)
    send(message)
    # The door cannot know that it is JSON, and takes it as bytes; none is lost.
    equal(as_sdk(lines("python.media")[0]).get_data(), b'{"a": 1}')


def json_text_in_binary() -> None:
    answer = send(http.to_binary_event(event("python.text", "1", "text", "application/json")), 400)
    equal(answer["results"][0]["error"]["code"], "TL-0005")


def json_list_in_binary() -> None:
    message = http.to_binary_event(event("python.list", "1", ["a"], "application/json"))  # type: ignore[arg-type]
    equal(message.body, b"['a']")
    send(message, 400)


def old_unicode_header() -> None:
    sent = OldEvent({"source": "/s", "type": "python.old.unicode", "subject": "größe"}, None)
    equal(to_binary(sent)[0]["ce-subject"], "größe")


def old_text() -> None:
    sent = OldEvent({"source": "/s", "type": "t", "datacontenttype": "text/plain"}, "text")
    equal(to_binary(sent)[1], b'"text"')


checks = Checks("cloudevents-python")
for MODE in ("structured", "binary"):
    for WHAT in DATA:
        checks.check(
            f"{MODE}: {WHAT} comes back equal, as a line and followed",
            lambda: both_ways(MODE, WHAT),
        )
    checks.check(
        f"{MODE}: every attribute comes back equal, the time with its offset too",
        lambda: every_attribute(MODE),
    )
    checks.check(f"{MODE}: the older API's event comes back equal", lambda: old_api(MODE))
checks.check("extensions keep their type", typed_extensions)
checks.check("every kind of JSON value comes back equal", json_values)
checks.check("a batch comes back equal", batch)
checks.check("every wire vector that we write is read by the SDK", vectors)
HTTP = "HTTP binding"
for NAME, SECTION, PROVE in (
    (
        "an event without a time is given the present",
        "CE, time: only its producer may set it",
        time_is_invented,
    ),
    (
        "binary mode writes a boolean as `True`",
        "CE, Type System: `true` or `false`",
        boolean_header,
    ),
    (
        "binary mode leaves out the implied media type",
        "CE, datacontenttype: it SHOULD be set",
        no_media_type,
    ),
    (
        "binary mode writes a JSON string without quotes",
        f"{HTTP} 3.1.2: data as its media type says",
        json_text_in_binary,
    ),
    (
        "binary mode writes a JSON array as Python does",
        f"{HTTP} 3.1.2: data as its media type says",
        json_list_in_binary,
    ),
    ("the older API does not encode Unicode in headers", f"{HTTP} 3.1.3.2", old_unicode_header),
    (
        "the older API writes text as a JSON string",
        f"{HTTP} 3.1.2: data as its media type says",
        old_text,
    ),
):
    checks.deviation(NAME, SECTION, PROVE)
checks.finish()
