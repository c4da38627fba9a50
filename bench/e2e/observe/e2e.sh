#!/usr/bin/env bash
# e2e.sh: a running Fairway as Prometheus, OpenTelemetry's collector, a browser and a newcomer see it, who types the commands of
# README and docs, as the tests here say. Run it as `make e2e-observe`. Flags (-run=…) go to the tests. E2E_SHOTS names a folder for screenshots, else they are in a
# temporary one that goes with the tests.
#
# Prometheus, Chromium and what documented commands need are Debian's, installed where they are missing and it may. The collector of spans is built from
# its Go modules by its own builder, and stays in ${XDG_CACHE_HOME:-$HOME/.cache}/fairway-e2e for the next time.
set -euo pipefail
cd "$(dirname "$0")/../../.."

name=e2e-observe
. bench/e2e/e2e.bash

here=bench/e2e/observe
PATH=$PATH:/usr/sbin
have() { local each; for each in prometheus promtool chromium curl ip nghttpx openssl; do command -v $each >/dev/null || return 1; done; }
debian chromium curl iproute2 nghttp2-proxy openssl prometheus || true # what cannot be had is skipped
have || skip "it needs Prometheus with promtool, Chromium, curl, ip, nghttpx and openssl (Debian: prometheus, chromium, curl, iproute2, nghttp2-proxy, openssl)"

# The collector is named after what makes it, so that a change makes a new one.
collector=${XDG_CACHE_HOME:-$HOME/.cache}/fairway-e2e/otelcol-$({ cat $here/collector.yaml && go env GOVERSION; } | sha256sum | cut -c 1-12)
build_collector() {
	rm -rf "$collector"
	mkdir -p "$collector"
	sed "s#^dist:#dist:\n  output_path: $collector/src#" $here/collector.yaml >"$collector/builder.yaml"
	(cd "$collector" && CGO_ENABLED=0 go run "go.opentelemetry.io/collector/cmd/builder@v$(sed -n 's/^  version: //p' builder.yaml)" --config builder.yaml) &&
		mv "$collector/src/otelcol" "$collector/otelcol" && rm -rf "$collector/src"
}
if [ ! -x "$collector/otelcol" ]; then
	echo "e2e-observe: building OpenTelemetry's collector in $collector"
	retry build_collector || fail "the collector could not be built"
fi
export E2E_OTELCOL=$collector/otelcol

mkdir -p bin
go build -o bin/ ./cmd/fairway ./cmd/mockvllm
export E2E_FAIRWAY=$PWD/bin/fairway E2E_MOCKVLLM=$PWD/bin/mockvllm
E2E_PROMETHEUS=$(command -v prometheus) E2E_PROMTOOL=$(command -v promtool) E2E_CHROMIUM=$(command -v chromium)
export E2E_PROMETHEUS E2E_PROMTOOL E2E_CHROMIUM
go test -json -count=1 -timeout 25m -tags e2e ./$here "$@" | go run .ci/summary.go
