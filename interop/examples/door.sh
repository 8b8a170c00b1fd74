#!/usr/bin/env bash
set -euo pipefail
BUS=${BUS:-http://127.0.0.1:7400}

# Bare JSON: the type, the source and the key are in the URL.
curl --fail-with-body "$BUS/v1/events?type=order.placed&source=/shop&key=o-1" \
  --header 'content-type: application/json' --data '{"total_cents":4200}'

# Binary mode: the attributes are headers, percent-encoded, and the body is the data.
curl --fail-with-body "$BUS/v1/events" \
  --header 'ce-specversion: 1.0' --header 'ce-id: invoice-1' --header 'ce-source: /shop' \
  --header 'ce-type: order.invoiced' --header 'ce-customer: J%C3%BCrgen' \
  --header 'content-type: text/plain' --data 'Please pay.'

# Follow. Without `limit` it goes on for ever; `last-event-id` goes on where a connection broke.
curl --no-buffer --fail-with-body --header 'accept: text/event-stream' \
  "$BUS/v1/events?filter=order.*&from=first&limit=2"
