"""httpx and httpx-sse: publishing, streamed uploads, following and many requests at once."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Dict, Iterator, List

import httpx
from httpx_sse import aconnect_sse, connect_sse

from checks import BUS, Checks, equal
from proxy import CuttingProxy

EVENTS = f"{BUS}/v1/events"
NDJSON = {"content-type": "application/x-ndjson"}
STRUCTURED = {"content-type": "application/cloudevents+json"}
TEXT = "größe 日本語 😀 \u2028 \x7f \u0085 \ufeff"


def event(ident: str, type_: str, **more: Any) -> Dict[str, Any]:
    required = {"specversion": "1.0", "id": ident, "source": "/httpx", "type": type_}
    return {**required, "time": "2026-01-31T12:00:00Z", **more}


def line(each: Dict[str, Any]) -> bytes:
    return json.dumps(each, ensure_ascii=False).encode() + b"\n"


def stored(answer: httpx.Response, count: int = 1) -> None:
    equal(
        (answer.status_code, answer.headers["content-type"]), (200, "application/json"), answer.text
    )
    equal(answer.json()["stored"], count)


def read(type_: str) -> List[Dict[str, Any]]:
    answer = httpx.get(EVENTS, params={"filter": type_}).raise_for_status()
    return [json.loads(each) for each in answer.content.split(b"\n") if each]


def publish() -> None:
    sent = event("p-1", "httpx.größe", subject=TEXT, city=TEXT, data={TEXT: TEXT})
    with httpx.Client() as client:
        stored(client.post(EVENTS, headers=STRUCTURED, content=line(sent)))
        stored(client.post(EVENTS, params={"type": "httpx.bare", "key": TEXT}, json={TEXT: 1}))
    equal(read("httpx.gr%C3%B6%C3%9Fe"), [sent])
    (bare,) = read("httpx.bare")
    equal((bare["partitionkey"], bare["data"]), (TEXT, {TEXT: 1}))


def publish_async() -> None:
    async def prove() -> None:
        async with httpx.AsyncClient() as client:
            stored(
                await client.post(
                    EVENTS, headers=STRUCTURED, content=line(event("a-1", "httpx.async"))
                )
            )

    asyncio.run(prove())
    equal(read("httpx.async"), [event("a-1", "httpx.async")])


def upload() -> None:
    sent = [event(f"u-{number}", "httpx.upload", data=TEXT * 20) for number in range(500)]

    def in_odd_pieces() -> Iterator[bytes]:
        # httpx sends each piece as a chunk; these end within lines and within characters.
        body = b"".join(map(line, sent))
        for at in range(0, len(body), 7_919):
            yield body[at : at + 7_919]

    stored(httpx.post(EVENTS, headers=NDJSON, content=in_odd_pieces()), 500)
    equal(read("httpx.upload"), sent)


def upload_async() -> None:
    async def lines() -> Any:
        for number in range(200):
            yield line(event(f"c-{number}", "httpx.chunks"))

    async def prove() -> None:
        async with httpx.AsyncClient() as client:
            stored(await client.post(EVENTS, headers=NDJSON, content=lines()), 200)

    asyncio.run(prove())
    equal(len(read("httpx.chunks")), 200)


def keep_alive() -> None:
    with CuttingProxy(BUS) as proxy, httpx.Client(base_url=proxy.url) as client:
        for number in range(20):
            body = line(event(f"k-{number}", "httpx.kept"))
            stored(client.post("/v1/events", headers=STRUCTURED, content=body))
            equal(
                client.get(
                    "/v1/events", params={"filter": "httpx.kept", "from": "last:1"}
                ).status_code,
                200,
            )
            # Refusals must not cost the connection either.
            equal(client.get("/v1/events", params={"typo": "1"}).status_code, 400)
            equal(client.post("/v1/events", content=b"no event").status_code, 415)
        equal(proxy.connections, 1, "connections for 80 requests:")


def many_at_once() -> None:
    async def prove() -> None:
        limits = httpx.Limits(max_connections=50, max_keepalive_connections=50)
        async with httpx.AsyncClient(limits=limits) as client:

            async def one(number: int) -> int:
                body = line(event(f"m-{number}", "httpx.many", data=number))
                stored(await client.post(EVENTS, headers=STRUCTURED, content=body))
                seen = await client.get(EVENTS, params={"filter": "httpx.many"})
                return seen.status_code

            statuses = await asyncio.gather(*(one(number) for number in range(250)))
            equal(set(statuses), {200})

    asyncio.run(prove())
    equal(sorted(each["data"] for each in read("httpx.many")), list(range(250)))


def follow() -> None:
    sent = [event(f"s-{number}", "httpx.follow", data=TEXT) for number in range(300)]
    stored(httpx.post(EVENTS, headers=NDJSON, content=b"".join(map(line, sent))), 300)
    seen: List[Dict[str, Any]] = []
    last, cuts = "", 0
    for cut_after in (300, 1_234, 30_001, None):
        with CuttingProxy(BUS, cut_after) as proxy, httpx.Client() as client:
            params = {"filter": "httpx.follow", "from": "first"}
            headers = {"last-event-id": last} if last else {}
            try:
                with connect_sse(
                    client, "GET", f"{proxy.url}/v1/events", params=params, headers=headers
                ) as source:
                    for each in source.iter_sse():
                        last = each.id
                        if each.data:
                            seen.append(each.json())
                        if len(seen) == len(sent):
                            break
            except httpx.TransportError:
                cuts += 1
    equal(seen, sent)
    equal(cuts, 3, "connections that were cut:")


def follow_async() -> None:
    async def prove() -> None:
        async with httpx.AsyncClient() as client:
            url = f"{EVENTS}?filter=httpx.live"
            async with aconnect_sse(client, "GET", url) as source:
                found = source.aiter_sse()
                # The follower is there once it has its first id.
                first = await found.__anext__()
                equal((first.id != "", first.data), (True, ""), "what a follower begins with:")
                for number in range(3):
                    sent = event(f"live-{number}", "httpx.live")
                    stored(await client.post(EVENTS, headers=STRUCTURED, content=line(sent)))
                    got = await found.__anext__()
                    while not got.data:
                        got = await found.__anext__()
                    equal((got.event, got.json()), ("message", sent))

    asyncio.run(prove())


def empty_events() -> None:
    with httpx.Client() as client, connect_sse(client, "GET", EVENTS) as source:
        equal(next(source.iter_sse()).data, "", "an id without data is given as an event:")


def odd_lines() -> None:
    sent = event("odd-1", "httpx.odd", data="a\u2028b")
    stored(httpx.post(EVENTS, headers=STRUCTURED, content=line(sent)))
    with httpx.stream("GET", EVENTS, params={"filter": "httpx.odd"}) as answer:
        equal(len(list(answer.iter_lines())), 2, "pieces of one line:")


checks = Checks("httpx")
checks.check("publishes structured events and bare JSON, UTF-8 everywhere", publish)
checks.check("publishes with async and await", publish_async)
checks.check("uploads lines in chunks that end within lines and characters", upload)
checks.check("uploads lines in chunks as they come, with async and await", upload_async)
checks.check("keeps one connection for many requests, refused ones too", keep_alive)
checks.check("50 connections publish and read at once", many_at_once)
checks.check("follows, is cut anywhere and resumes without a loss or a repeat", follow)
checks.check("follows what is published meanwhile, with async and await", follow_async)
checks.deviation(
    "httpx-sse gives an event for a block without data",
    "HTML 9.2.6: if the data buffer is empty, nothing is dispatched",
    empty_events,
)
checks.deviation(
    "httpx `iter_lines` also splits at U+2028 inside of a JSON string",
    "RFC 8259 section 7, which allows it there unescaped; split at line feeds instead",
    odd_lines,
)
checks.finish()
