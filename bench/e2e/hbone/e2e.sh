#!/usr/bin/env bash
# e2e.sh: tunnels of Istio's ambient mesh between Fairway and peers that are not ours, as the tests here say. Run it as
# `make e2e-hbone`. Flags (-test.run=…) go to the tests.
#
# curl, nghttp2's programs and PostgreSQL are installed from Debian's packages where they are missing and it may; what
# cannot be had is skipped.
set -euo pipefail
cd "$(dirname "$0")/../../.."

name=e2e-hbone
. bench/e2e/e2e.bash

PATH=$PATH:/usr/sbin
have() {
	command -v curl >/dev/null && command -v nghttpx >/dev/null && command -v h2load >/dev/null &&
		command -v psql >/dev/null && ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1
}
debian curl nghttp2-client nghttp2-proxy postgresql || true # what cannot be had is skipped

mkdir -p bin
go build -o bin/ ./cmd/fairway
export E2E_FAIRWAY=$PWD/bin/fairway
{
	go test -json -count=1 -timeout 10m -tags e2e ./bench/e2e/hbone "$@"
	# Waypoints are replaced one after the other under an independent client's load.
	go test -json -count=1 -timeout 5m -run '^TestDrainUnderLoad$' ./proxy/hbone -drain 30s
} | go run .ci/summary.go
