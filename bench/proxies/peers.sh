#!/usr/bin/env bash
# peers.sh: what a request costs behind Fairway, and behind the routers for vLLM of the Python package index, which it
# installs, with their policy that looks at prompts. Run it as `make bench-peers`. Flags go to the program, as in run.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
name=bench-peers
source bench/e2e/e2e.bash

routers
export ROUTERS=$routers
exec bench/proxies/run.sh -proxies direct,haproxy,fairway,vllm-router,sglang-router,smg "$@"
