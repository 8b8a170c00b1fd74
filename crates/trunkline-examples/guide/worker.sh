#!/usr/bin/env bash
# Guide: workers in any language. Needs a running `trunkline up`.
set -euo pipefail

# guide: work
exec trunkline worker --consumer billing --filter 'order.>' --concurrency 4 --time-out 30s --exec ./bill.py
# guide: end
