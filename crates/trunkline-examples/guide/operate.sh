#!/usr/bin/env bash
# Guide: workers in any language. Needs a running `trunkline up`, and the worker.
set -euo pipefail

# guide: operate
trunkline consumers show billing
trunkline consumers pause billing --reason 'the bank is closed'
trunkline consumers lag billing
trunkline consumers resume billing --reason 'the bank is closed'
trunkline consumers reset billing --to first --yes
# guide: end
