#!/usr/bin/env bash
# Guide: the HTTP door. Needs a running `trunkline up`; BUS says where, if not at its usual place.
set -euo pipefail
BUS=${BUS:-http://127.0.0.1:7400}

# guide: publish
curl --fail-with-body "$BUS/v1/events" \
  --header 'content-type: application/cloudevents+json' \
  --data '{"specversion":"1.0","id":"o-1-placed","source":"/shop","type":"order.placed",
           "partitionkey":"o-1","data":{"order_id":"o-1","total_cents":4200}}'
# guide: end
echo

# guide: many
curl --fail-with-body "$BUS/v1/events" --header 'content-type: application/x-ndjson' --data-binary @- <<'EVENTS'
{"specversion":"1.0","id":"o-2-placed","source":"/shop","type":"order.placed","data":{"order_id":"o-2"}}
{"specversion":"1.0","id":"o-2-paid","source":"/shop","type":"order.paid","data":{"order_id":"o-2"}}
EVENTS
# guide: end
echo

# guide: range
curl --fail-with-body "$BUS/v1/events?filter=order.placed&from=first"
# guide: end

# guide: resume
curl --no-buffer --fail-with-body --header 'accept: text/event-stream' \
  --header 'last-event-id: EVENTS:1' "$BUS/v1/events?filter=order.*&limit=2"
# guide: end
