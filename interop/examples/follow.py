import os

import httpx
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event
from httpx_sse import connect_sse

BUS = os.environ.get("BUS", "http://127.0.0.1:7400")
# The bus breaks silence after 15 s, so a reader that waits for longer knows that the connection
# is dead.
client = httpx.Client(timeout=httpx.Timeout(10, read=40))
last_id, orders = "", 0

while orders < 2:  # A service would not stop.
    try:
        params = {"filter": "order.placed", "from": "first"}
        headers = {"last-event-id": last_id} if last_id else {}
        url = f"{BUS}/v1/events"
        with connect_sse(client, "GET", url, params=params, headers=headers) as source:
            source.response.raise_for_status()
            for each in source.iter_sse():
                last_id = each.id  # Where to go on after the connection broke.
                if each.event != "message":
                    # `gap`, `reset` or `invalid`: something was missed, and somebody must know.
                    raise SystemExit(f"{each.event}: {each.data}")
                if not each.data:
                    continue  # httpx-sse also gives blocks that have an id and no data.
                event = from_structured_event(HTTPMessage({}, each.data.encode()))
                order = event.get_data()
                cents = order["total_cents"]
                print(f"{order['order_id']} from {event.get_source()}: {cents} cents")
                orders += 1
                if orders == 2:
                    break
    except httpx.TransportError:
        pass  # Again, from `last_id`. A service would wait a little.
