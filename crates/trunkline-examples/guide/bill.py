#!/usr/bin/env python3
# Guide: workers in any language. Bills one order.

# guide: handler
import json
import os
import sys

event = json.load(sys.stdin)
order = event["data"]
if "total_cents" not in order:
    print(f"order {order['order_id']} has no total", file=sys.stderr)
    sys.exit(65)  # never again: a dead letter
if os.path.exists("bank-is-closed"):
    print("retry-after: 60", file=sys.stderr)
    sys.exit(75)  # not now: again in a minute, which does not count as an attempt
print(f"billed {order['order_id']}: {order['total_cents']} cents", flush=True)
# guide: end
