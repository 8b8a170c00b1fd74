import os

import httpx
from cloudevents.core.bindings.http import to_structured_event
from cloudevents.core.v1.event import CloudEvent

BUS = os.environ.get("BUS", "http://127.0.0.1:7400")

event = CloudEvent(
    # The SDK makes an id and a time. Whoever sends an event again must send the same id.
    {
        "source": "/shop",
        "type": "order.placed",
        "partitionkey": "o-1",
        "datacontenttype": "application/json",
    },
    {"order_id": "o-1", "total_cents": 4200},
)
message = to_structured_event(event)
answer = httpx.post(f"{BUS}/v1/events", headers=message.headers, content=message.body)
answer.raise_for_status()

stored = answer.json()
print("stored", stored["stored"], "as number", stored["results"][0]["seq"])
