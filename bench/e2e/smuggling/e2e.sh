#!/usr/bin/env bash
# e2e.sh: requests of which two servers could think differently, sent through Fairway to uvicorn and nginx, as
# smuggling_test.go says. Run it as `make e2e-smuggling`. Flags (-test.run=…) go to the tests.
#
# uvicorn stays in ${XDG_CACHE_HOME:-$HOME/.cache}/fairway-e2e for the next time. nginx and Python's venv are installed from
# Debian's packages where they are missing and it may.
set -euo pipefail
cd "$(dirname "$0")/../../.."

name=e2e-smuggling
. bench/e2e/e2e.bash

PATH=$PATH:/usr/sbin
have() {
	command -v nginx >/dev/null && command -v python3 >/dev/null && python3 -c 'import ensurepip, venv' 2>/dev/null
}
debian nginx-light python3 python3-venv || fail "it needs these packages"
have || skip "it needs nginx, and python3 with venv (Debian: nginx-light, python3-venv)"

here=bench/e2e/smuggling
environment smuggling $here

mkdir -p bin
go test -c -tags e2e -o bin/smuggling.test ./$here
(cd $here && E2E_UVICORN=$venv/bin/uvicorn ../../../bin/smuggling.test -test.v=test2json -test.timeout=5m "$@" </dev/null 2>&1) |
	go tool test2json -t -p $here | go run .ci/summary.go
