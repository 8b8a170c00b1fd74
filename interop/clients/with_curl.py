"""curl: every content type in, a range and server-sent events out, and how errors look."""

from __future__ import annotations

import json
import subprocess
from typing import Any, Dict, List, Optional

from bus import Bus
from checks import BUS, WATCHDOG_S, Checks, equal
from proxy import CuttingProxy

EVENTS = f"{BUS}/v1/events"
SSE = ("--header", "accept: text/event-stream")
PROBLEM = "application/problem+json"


class Answer:
    def __init__(self, *options: str, data: Optional[bytes] = None) -> None:
        line = ["curl", "--silent", "--show-error", "--max-time", str(WATCHDOG_S), *options]
        line += ["--write-out", "\n%{http_code} %{content_type}"]
        if data is not None:
            line += ["--data-binary", "@-"]
        done = subprocess.run(line, input=data, capture_output=True, check=True)
        body, _, told = done.stdout.decode("utf-8").rpartition("\n")
        status, _, self.content_type = told.partition(" ")
        self.status, self.body = int(status), body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> List[Dict[str, Any]]:
        # Not `splitlines`, which also splits at U+2028, and that may be inside of a JSON string.
        return [json.loads(line) for line in self.body.split("\n") if line]


def event(ident: str, type_: str, **more: Any) -> Dict[str, Any]:
    required = {"specversion": "1.0", "id": ident, "source": "/curl", "type": type_}
    return {**required, "time": "2026-01-31T12:00:00Z", **more}


def post(content_type: str, body: Any, *options: str, query: str = "") -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    return Answer(*options, "--header", f"content-type: {content_type}", EVENTS + query, data=data)


def stored(answer: Answer, count: int = 1) -> None:
    equal((answer.status, answer.content_type), (200, "application/json"), answer.body)
    equal((answer.json["stored"], len(answer.json["results"])), (count, count))


def ndjson(events: List[Dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in events)


def read(query: str, *options: str) -> Answer:
    answer = Answer(*options, f"{EVENTS}?{query}")
    equal((answer.status, answer.content_type), (200, "application/x-ndjson"), answer.body)
    return answer


# --- in ---------------------------------------------------------------------------------------


def structured() -> None:
    sent = event("s-1", "curl.structured", subject="größe 日本語 😀", data={"text": "naïve \u2028"})
    stored(post("application/cloudevents+json", sent))
    stored(post("application/cloudevents+json; charset=UTF-8", {**sent, "id": "s-2"}))
    equal(read("filter=curl.structured").lines, [sent, {**sent, "id": "s-2"}])


def batch() -> None:
    sent = [event(f"b-{number}", "curl.batch", data=number) for number in range(3)]
    stored(post("application/cloudevents-batch+json", sent), 3)
    equal(read("filter=curl.batch").lines, sent)


def lines() -> None:
    sent = [event(f"l-{number}", "curl.lines", data=[number]) for number in range(3)]
    stored(post("application/x-ndjson", ndjson(sent)), 3)
    stored(post("application/ndjson", ndjson([event("l-3", "curl.lines")]).rstrip()), 1)
    equal(read("filter=curl.lines").lines, [*sent, event("l-3", "curl.lines")])


def binary() -> None:
    headers = {
        "ce-specversion": "1.0",
        "CE-ID": "h-1",
        "ce-source": "/curl",
        "ce-type": "curl.binary",
        "ce-customer": "J%C3%BCrgen%20%22J%22",
        "ce-time": "2026-01-31T14:00:00%2B02:00",
    }
    options = [part for name in headers for part in ("--header", f"{name}: {headers[name]}")]
    stored(post("application/json", b'{"n": 1.50}', *options))
    options[3] = "CE-ID: h-2"
    stored(post("image/png", b"\x89PNG\x00\xff", *options))
    body = read("filter=curl.binary").body
    assert '"data":{"n": 1.50}' in body, body
    assert '"datacontenttype":"image/png"' in body and '"data_base64":"iVBORwD/"' in body, body
    for each in map(json.loads, body.strip().split("\n")):
        equal((each["customer"], each["time"]), ('Jürgen "J"', "2026-01-31T12:00:00Z"))


def bare() -> None:
    query = "?type=curl.bare&source=%2Fown&key=k%C3%B6nig"
    stored(post("application/json", {"n": 1}, query=query))
    stored(post("application/x-ndjson", b"2\n3\n", query=query), 2)
    got = read("filter=curl.bare").lines
    equal([each["data"] for each in got], [{"n": 1}, 2, 3])
    equal({(each["source"], each["partitionkey"]) for each in got}, {("/own", "könig")})


def time() -> None:
    sent = {"specversion": "1.0", "id": "t-1", "source": "/curl", "type": "curl.time"}
    stored(post("application/cloudevents+json", sent))
    (got,) = read("filter=curl.time").lines
    assert got.pop("time").endswith("Z"), got
    equal(got, sent)


def large() -> None:
    # curl asks for leave with `Expect: 100-continue` before it sends that much.
    sent = [event(f"x-{number}", "curl.large", data="x" * 500) for number in range(4000)]
    stored(post("application/x-ndjson", ndjson(sent)), 4000)
    answer = read("filter=curl.large", "--compressed", "--http1.1")
    equal([each["id"] for each in answer.lines], [each["id"] for each in sent])


def again() -> None:
    sent = event("again", "curl.again")
    stored(post("application/cloudevents+json", sent))
    equal(post("application/cloudevents+json", sent).json["results"][0]["duplicate"], True)
    equal(len(read("filter=curl.again").lines), 1)


# --- out --------------------------------------------------------------------------------------


def ranges() -> None:
    sent = [event(f"r-{number}", "curl.range") for number in range(5)]
    first = post("application/x-ndjson", ndjson(sent)).json["results"][0]["seq"]

    def ids(query: str) -> List[str]:
        return [each["id"] for each in read(f"filter=curl.range&{query}").lines]

    equal(ids("from=first&limit=2"), ["r-0", "r-1"])
    equal(ids("from=last:2"), ["r-3", "r-4"])
    equal(ids(f"from={first + 3}"), ["r-3", "r-4"])
    equal(ids("from=2000-01-01T00:00:00Z"), ["r-0", "r-1", "r-2", "r-3", "r-4"])
    equal(ids("from=new"), [])
    old = Answer("--http1.0", f"{EVENTS}?filter=curl.range")
    equal((old.status, len(old.lines)), (200, 5), "HTTP/1.0")
    head = Answer("--head", f"{EVENTS}?filter=curl.range")
    equal((head.status, head.content_type), (200, "application/x-ndjson"), "HEAD")


def sse(text: str) -> "tuple[List[str], str]":
    """The ids of whole events, and the id to resume from, by the rules of the HTML standard."""
    seen, last, ident, data = [], "", "", ""
    for line in text.split("\n")[:-1]:
        if line.startswith("id: "):
            ident = line[4:]
        elif line.startswith("data: "):
            data = line[6:]
        elif not line:
            last = ident
            if data:
                seen.append(json.loads(data)["id"])
            data = ""
    return seen, last


def resume() -> None:
    sent = [event(f"f-{number}", "curl.follow", data="é" * 50) for number in range(200)]
    stored(post("application/x-ndjson", ndjson(sent)), 200)
    seen: List[str] = []
    last = ""
    # Each connection is cut somewhere else, most often in the middle of an event.
    for cut_after in (200, 700, 5_003, 20_011, None):
        with CuttingProxy(BUS, cut_after) as proxy:
            url = f"{proxy.url}/v1/events?filter=curl.follow&from=first"
            options = ["--header", f"last-event-id: {last}"] if last else []
            if cut_after is None:
                options += [f"{url}&limit={len(sent) - len(seen)}"]
            line = ["curl", "--silent", "--no-buffer", "--max-time", str(WATCHDOG_S), *SSE]
            done = subprocess.run(
                [*line, *options, *([url] if cut_after else [])], capture_output=True
            )
            equal(
                done.returncode != 0,
                cut_after is not None,
                f"curl, cut after {cut_after}: exit code",
            )
            got, resumed = sse(done.stdout.decode("utf-8", "replace"))
            seen, last = seen + got, resumed or last
    equal(seen, [each["id"] for each in sent])
    by_query = Answer(
        *SSE, f"{EVENTS}?filter=curl.follow&last-event-id={last}&limit=1&from=first&follow=false"
    )
    equal((by_query.status, sse(by_query.body)[0]), (200, []), "resumed after the last by query")


def follow_lines() -> None:
    follower = subprocess.Popen(
        ["curl", "--silent", "--no-buffer", "--max-time", str(WATCHDOG_S)]
        + [f"{EVENTS}?filter=curl.live&follow=true&limit=2"],
        stdout=subprocess.PIPE,
    )
    sent = [event(f"live-{number}", "curl.live") for number in range(2)]
    for each in sent:
        stored(post("application/cloudevents+json", each))
    out, _ = follower.communicate(timeout=WATCHDOG_S)
    equal([json.loads(line) for line in out.splitlines()], sent)


def stopped() -> None:
    with Bus() as bus:
        options = ["--silent", "--no-buffer", "--max-time", str(WATCHDOG_S), *SSE]
        line = ["curl", *options, f"{bus.url}/v1/events"]
        follower = subprocess.Popen(line, stdout=subprocess.PIPE)
        assert follower.stdout is not None
        follower.stdout.readline()  # The id that it begins with: it follows by now.
        bus.stop()
        rest, _ = follower.communicate(timeout=WATCHDOG_S)
        equal((follower.returncode, rest.strip()), (0, b""), "the end of a follower")


# --- errors -----------------------------------------------------------------------------------


def refused(answer: Answer, status: int, code: Optional[str]) -> None:
    equal((answer.status, answer.content_type), (status, PROBLEM), answer.body)
    problem = answer.json
    equal((problem["status"], problem.get("code")), (status, code), answer.body)
    assert problem["title"] and problem["detail"] and problem["type"], problem
    equal(problem["type"] == "about:blank", code is None, "a code has a page, and")


def whole_requests() -> None:
    json_type = "application/json"
    refused(post(json_type, {}), 415, "TL-0601")
    refused(post("text/html", b"<p>"), 415, "TL-0601")
    refused(post("application/cloudevents-batch+json", b"{}"), 400, "TL-0005")
    refused(post(json_type, {}, query="?typo=1"), 400, None)
    refused(Answer(f"{EVENTS}?typo=1"), 400, None)
    refused(Answer(f"{EVENTS}?filter=a..b"), 400, "TL-0003")
    refused(Answer(f"{EVENTS}?from=yesterday"), 400, "TL-0009")
    refused(Answer("--header", "last-event-id: 17", EVENTS), 400, "TL-0009")
    refused(Answer(f"{BUS}/v2/events"), 404, None)
    refused(Answer("--header", "host: evil.example", EVENTS), 403, "TL-0602")
    refused(Answer("--header", "origin: https://evil.example", EVENTS), 403, "TL-0602")
    many = ndjson([event(str(number), "curl.many") for number in range(10_001)])
    refused(post("application/x-ndjson", many), 413, "TL-0106")
    refused(post("application/x-ndjson", b" " * (17 << 20)), 413, "TL-0101")


def allowed() -> None:
    answer = Answer("--include", "--request", "DELETE", EVENTS)
    equal(answer.status, 405)
    headers = {line.split(":")[0].lower(): line for line in answer.body.splitlines() if ":" in line}
    assert "GET" in headers["allow"] and "POST" in headers["allow"], headers


def some_events() -> None:
    lines = (
        ndjson([event("ok", "curl.some")]) + b'{"id":"half"}\n' + ndjson([event("ok-2", "curl.1")])
    )
    answer = post("application/x-ndjson", lines)
    equal((answer.status, answer.json["stored"], answer.json["refused"]), (207, 1, 2), answer.body)
    codes = [result.get("error", {}).get("code") for result in answer.json["results"]]
    equal(codes, [None, "TL-0005", "TL-0004"])
    one = post("application/cloudevents+json", b'{"specversion":"1.0"')
    equal((one.status, one.json["results"][0]["error"]["code"]), (400, "TL-0005"))


checks = Checks("curl")
checks.check("a structured event is stored as it is, UTF-8 and all", structured)
checks.check("a batch is stored in its order", batch)
checks.check("a structured event on each line is stored", lines)
checks.check("attributes in ce- headers are read, with JSON and with bytes", binary)
checks.check("bare JSON is an event of the type in the URL", bare)
checks.check("an event without a time gets the time at which it came, and nothing else", time)
checks.check("a body of megabytes that waits for 100-continue is taken, and read back", large)
checks.check("the same event twice is stored once", again)
checks.check("ranges begin and end where they are asked to, over HTTP/1.0 and for HEAD too", ranges)
checks.check("a follower that is cut anywhere resumes without a loss or a repeat", resume)
checks.check("lines can be followed as well", follow_lines)
checks.check("a follower ends in good order when the bus stops", stopped)
checks.check("a request that is refused says why as a problem with a code", whole_requests)
checks.check("a method that is not allowed names those that are", allowed)
checks.check("events that are refused among others are named one by one", some_events)
checks.finish()
