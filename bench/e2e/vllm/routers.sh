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

fail() {
	echo "bench-vllm: $*" >&2
	exit 1
}

PATH=$PATH:/usr/sbin
if ! command -v haproxy >/dev/null && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
	echo "bench-vllm: installing haproxy"
	apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends haproxy python3-venv
fi
command -v haproxy >/dev/null || fail "it needs haproxy"

export E2E_ROUTERS=${XDG_CACHE_HOME:-$HOME/.cache}/fairway-e2e/routers-$(sha256sum <$here/routers.txt | cut -c 1-12)
if [ ! -e "$E2E_ROUTERS/complete" ]; then
	while read -r router; do
		echo "bench-vllm: installing $router"
		venv=$E2E_ROUTERS/${router%%==*}
		rm -rf "$venv"
		python3 -m venv "$venv"
		"$venv/bin/pip" install -q --disable-pip-version-check --retries 5 "$router" || fail "$router could not be installed"
	done < <(grep -v '^#' $here/routers.txt)
	touch "$E2E_ROUTERS/complete"
fi
exec $here/e2e.sh -test.run='^TestRouters$' -test.timeout=3h "$@"
