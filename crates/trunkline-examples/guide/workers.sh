#!/usr/bin/env bash
# Guide: workers in any language. Needs a running `trunkline up`.
set -euo pipefail

# guide: publish
trunkline pub order.placed '{"order_id":"o-1","total_cents":4200}' --key o-1
trunkline pub order.placed '{"order_id":"o-2"}' --key o-2
# guide: end
