#!/usr/bin/env bash
# e2e.sh: builds the image, starts docker-compose.yaml and uses it, as e2e_test.go says. Run it as
# `make e2e-compose`, which fills bin/image first.
#
# As root on Linux it takes an engine of its own (engine.sh), installing Docker's Debian packages where they
# are missing. Otherwise it uses the engine that `docker` reaches, on this machine's ports. Without either it
# says so and skips.
set -euo pipefail
cd "$(dirname "$0")/../.."

name=e2e-compose
. bench/e2e/e2e.bash

have() {
	command -v dockerd docker ip unshare >/dev/null && { docker compose version || docker-compose version; } >/dev/null 2>&1
}

install() {
	retry apt-get -q update && retry env DEBIAN_FRONTEND=noninteractive apt-get -q install -y docker.io docker-compose iproute2
}

engine=()
if [ "$(uname)" = Linux ] && [ "$(id -u)" -eq 0 ]; then
	if ! have && command -v apt-get >/dev/null; then
		echo "e2e-compose: installing Docker from Debian's packages"
		install || fail "apt-get could not install docker.io and docker-compose"
	fi
	if have && unshare --net --mount --pid --fork --mount-proc true; then
		engine=(../../deploy/compose/engine.sh)
	fi
fi
if [ ${#engine[@]} -eq 0 ]; then
	docker version >/dev/null 2>&1 || skip "an engine of its own needs root on Linux, dockerd and docker-compose; and docker reaches no other"
	echo "e2e-compose: using the engine that docker reaches"
fi

go test -c -tags e2e -o bin/compose.test ./deploy/compose
(cd deploy/compose && "${engine[@]}" ../../bin/compose.test -test.v=test2json -test.timeout=10m </dev/null 2>&1) |
	go tool test2json -t -p deploy/compose | go run .ci/summary.go -v
