#!/usr/bin/env bash
# e2e.sh: Fairway against a real API server, as the tests here say. Run it as `make e2e-kube`.
# Flags (-test.run=…) go to the tests; E2E_VERBOSE=1 prints all that they say.
#
# etcd is installed from Debian's packages where it is missing and it may. kube-apiserver, kubectl, helm and the echo
# server of the Gateway API's conformance tests are built from their Go modules; they stay in
# ${XDG_CACHE_HOME:-$HOME/.cache}/fairway-e2e for the next time (the first build takes about 15 minutes of processor time).
# The CRDs are those in their projects' modules.
set -euo pipefail
cd "$(dirname "$0")/../../.."

name=e2e-kube
. bench/e2e/e2e.bash

PATH=$PATH:/usr/sbin
have() { command -v etcd >/dev/null && command -v ip >/dev/null; }
debian etcd-server iproute2 || true # what cannot be had is skipped
have || skip "it needs etcd and ip (Debian: etcd-server, iproute2)"

here=bench/e2e/kube
cache=${XDG_CACHE_HOME:-$HOME/.cache}/fairway-e2e

# program MODULE FLAGS PACKAGE...: sets built to a folder with the commands of a nested module, linked with FLAGS; it is named
# after what makes them.
program() {
	local module=$1 flags="-s -w $2"
	shift 2
	built=$cache/$module-$({ cat "$here/$module/go.mod" "$here/$module/go.sum" && go version && echo "$flags"; } | sha256sum | cut -c 1-12)
	[ ! -e "$built/complete" ] || return 0
	echo "e2e-kube: building $*"
	mkdir -p "$built"
	(cd "$here/$module" && retry go mod download && CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "$flags" -o "$built/" "$@") ||
		fail "go could not build $*"
	touch "$built/complete"
}
# Charts ask for the API server's version, which its own build puts in.
kubernetes=$(cd $here/apiserver && go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${kubernetes#v1.} minor=${minor%%.*}
program apiserver "-X k8s.io/component-base/version.gitVersion=$kubernetes -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$minor" \
	k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kubectl
export E2E_KUBERNETES=$built
program helm "-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=$minor" helm.sh/helm/v3/cmd/helm
export E2E_HELM=$built/helm

program conformance "" sigs.k8s.io/gateway-api/conformance/echo-basic
export E2E_ECHO=$built/echo-basic

# source_of MODULE@VERSION: where a module's files are.
source_of() { (cd "$here/apiserver" && retry go mod download -json "$1") | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'; }
# own MODULE: one that Fairway is built with.
own() { source_of "$1@$(go list -m -f '{{.Version}}' "$1")"; }
gateway=$(own sigs.k8s.io/gateway-api) extension=$(own sigs.k8s.io/gateway-api-inference-extension) istio=$(own istio.io/api)
announced=$(source_of sigs.k8s.io/gateway-api-inference-extension@v0.5.1)
inference=$(source_of sigs.k8s.io/gateway-api-inference-extension@v1.3.0) # the last version whose module has its conformance tests
prometheus=$(source_of github.com/prometheus-operator/prometheus-operator@v0.83.0)
keda=$(source_of github.com/kedacore/keda/v2@v2.17.0)
for found in "$gateway" "$extension" "$istio" "$announced" "$inference" "$prometheus" "$keda"; do
	[ -d "$found" ] || fail "go could not download the modules with the CRDs"
done
export E2E_CRDS=$gateway/config/crd/experimental:$extension/config/crd/bases:$announced/config/crd/bases:$istio/kubernetes/customresourcedefinitions.gen.yaml
E2E_CRDS+=:$prometheus/example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml:$keda/config/crd/bases/keda.sh_scaledobjects.yaml
export E2E_INFERENCE=$inference/conformance

bin=$PWD/bin/e2e-kube
export E2E_BIN=$bin E2E_CONFORMANCE=$bin/conformance.test
mkdir -p "$bin"
go build -o "$bin/" ./cmd/fairway ./cmd/mockvllm
(cd $here/conformance && retry go mod download && CGO_ENABLED=0 go test -c -trimpath -ldflags '-s -w' -o "$E2E_CONFORMANCE" .)
go test -c -tags e2e -o "$bin/kube.test" ./$here

# A network of its own, in which pods have addresses that are none of loopback's, as EndpointSlices want them.
private=()
if unshare -n true 2>/dev/null; then
	private=(unshare -n)
elif unshare -Urn true 2>/dev/null; then
	private=(unshare -Urn)
fi
if [ ${#private[@]} -gt 0 ]; then
	private+=(bash -c 'ip link set lo up && ip addr add 10.244.0.1/16 dev lo && exec "$@"' --)
	export E2E_NETWORK=10.244
else
	echo "e2e-kube: no network namespaces here: the conformance tests are skipped" >&2
fi
(cd $here && "${private[@]}" "$bin/kube.test" -test.v=test2json -test.timeout=20m "$@" </dev/null 2>&1) |
	go tool test2json -t -p $here | go run .ci/summary.go ${E2E_VERBOSE:+-v}
