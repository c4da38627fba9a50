#!/usr/bin/env bash
# e2e.sh: Fairway among engines that die, freeze, stall and lie, and with too little of everything, as soak_test.go says. Run it as
# `make soak` or `make soak-short`. Flags (-soak 10m, -every 10s, -test.run=…) go to the tests.
#
# haproxy and nftables are installed from Debian's packages where they are missing and it may; what takes root is skipped without.
# The report is shown at the end, and stays in bin/soak.md.
set -euo pipefail
cd "$(dirname "$0")/../../.."

name=soak
. bench/e2e/e2e.bash

PATH=$PATH:/usr/sbin:/sbin
have() { command -v haproxy >/dev/null && command -v nft >/dev/null && command -v ip >/dev/null; }
debian haproxy iproute2 nftables || true # what cannot be had is skipped

mkdir -p bin/soak
go build -o bin/soak/ ./cmd/fairway ./cmd/mockvllm
go test -c -tags e2e -o bin/soak/soak.test ./bench/e2e/soak
export E2E_BIN=$PWD/bin/soak E2E_REPORT=$PWD/bin/soak.md
: >"$E2E_REPORT"
status=0
(cd bench/e2e/soak && "$E2E_BIN/soak.test" -test.v=test2json -test.timeout=3h "$@" </dev/null 2>&1) |
	go tool test2json -t -p bench/e2e/soak | tee bin/soak.json | go run .ci/summary.go || status=$?
cat "$E2E_REPORT"
exit $status
