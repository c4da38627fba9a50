#!/usr/bin/env bash
# e2e.sh: Fairway against a real API server, as the tests here say. Run it as `make e2e-kube`.
# Flags (-run …) go to the tests; E2E_VERBOSE=1 prints all that they say.
#
# etcd is installed from Debian's packages where it is missing and it may. kube-apiserver, kubectl and helm are built from
# their Go modules; they stay in ${XDG_CACHE_HOME:-$HOME/.cache}/fairway-e2e for the next time (the first build takes about
# 15 minutes of processor time). The CRDs are those in their projects' modules.
set -euo pipefail
cd "$(dirname "$0")/../../.."

name=e2e-kube
. bench/e2e/e2e.bash

if ! command -v etcd >/dev/null && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
	echo "e2e-kube: installing etcd"
	retry apt-get -q update &&
		# In run level 1, Debian does not start what it installs.
		retry env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -q install -y --no-install-recommends ca-certificates etcd-server ||
		echo "e2e-kube: apt-get could not install it" >&2
fi
command -v etcd >/dev/null || skip "it needs etcd (Debian: etcd-server)"

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

# source_of MODULE@VERSION: where a module's files are.
source_of() { (cd "$here/apiserver" && retry go mod download -json "$1") | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'; }
# own MODULE: one that Fairway is built with.
own() { source_of "$1@$(go list -m -f '{{.Version}}' "$1")"; }
gateway=$(own sigs.k8s.io/gateway-api) extension=$(own sigs.k8s.io/gateway-api-inference-extension) istio=$(own istio.io/api)
announced=$(source_of sigs.k8s.io/gateway-api-inference-extension@v0.5.1)
prometheus=$(source_of github.com/prometheus-operator/prometheus-operator@v0.83.0)
keda=$(source_of github.com/kedacore/keda/v2@v2.17.0)
for found in "$gateway" "$extension" "$istio" "$announced" "$prometheus" "$keda"; do
	[ -d "$found" ] || fail "go could not download the modules with the CRDs"
done
export E2E_CRDS=$gateway/config/crd/experimental:$extension/config/crd/bases:$announced/config/crd/bases:$istio/kubernetes/customresourcedefinitions.gen.yaml
E2E_CRDS+=:$prometheus/example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml:$keda/config/crd/bases/keda.sh_scaledobjects.yaml

mkdir -p bin/e2e-kube
go build -o bin/e2e-kube/ ./cmd/fairway ./cmd/mockvllm
export E2E_BIN=$PWD/bin/e2e-kube
go test -json -count=1 -timeout 20m -tags e2e ./$here "$@" | go run .ci/summary.go ${E2E_VERBOSE:+-v}
