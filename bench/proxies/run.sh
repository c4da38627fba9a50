#!/usr/bin/env bash
# run.sh: what proxies cost, Fairway beside haproxy, nginx, Envoy and net/http's ReverseProxy, in one run. Run it as `make bench-proxy`.
# Flags go to the program: `run.sh -rounds 1 -proxies haproxy,fairway`.
#
# haproxy and nginx are Debian's; as root they are installed where they are missing. Envoy is what `make e2e-envoy` installs. What cannot
# be had is left out, and told.
set -euo pipefail
cd "$(dirname "$0")/../.."

PATH=$PATH:/usr/sbin
if { ! command -v haproxy || ! command -v nginx; } >/dev/null && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
	# In run level 1, Debian does not start what it installs.
	{ apt-get -q update && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -q install -y --no-install-recommends haproxy nginx-light; } >&2 || true
fi
if [ -z "${ENVOY:-}" ]; then
	for found in "${XDG_CACHE_HOME:-$HOME/.cache}"/fairway-e2e/envoy-*/lib/python3*/site-packages/envoy/_bin/envoy; do
		[ -x "$found" ] && export ENVOY=$found
	done
fi
mkdir -p bin
go build -o bin/proxies ./bench/proxies
exec bin/proxies "$@"
