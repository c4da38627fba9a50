#!/usr/bin/env bash
# routers.sh: measures Fairway, haproxy, smg, sglang-router and vllm-router in turn before the same two vLLM engines on
# CPU, as routers_test.go says, and prints a table. Run it as `make bench-vllm`. Flags (-repetitions=5) go to the test.
# The figures of a machine that does something else at the same time are worth nothing.
#
# It installs vLLM as e2e.sh does, the routers from the Python package index beside it, and haproxy from Debian's
# packages when it may.
set -euo pipefail
cd "$(dirname "$0")/../../.."
here=bench/e2e/vllm

name=bench-vllm
source bench/e2e/e2e.bash

PATH=$PATH:/usr/sbin
have() { command -v haproxy >/dev/null; }
debian haproxy python3-venv || true
have || fail "it needs haproxy"

routers
export E2E_ROUTERS=$routers
exec $here/e2e.sh -test.run='^TestRouters$' -test.timeout=3h "$@"
