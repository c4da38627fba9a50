# Fairway's house: everything a person or the CI does here is one of these targets.
# `make help` lists them. Only Go and make are needed, except where a target says otherwise.

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
CYCLONEDX := github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GOBUILD := CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)'

# The race detector needs cgo, a C compiler and the C library's headers.
# The tests run without it where one of them is missing.
RACE := $(shell [ "$$(go env CGO_ENABLED)" = 1 ] && echo '\#include <stdlib.h>' | $$(go env CC) -E - >/dev/null 2>&1 && echo -race)

# Pools forget things under the race detector, so the tests with Alloc in their names run once more without it.
ALLOCATING = $(shell grep -rl AllocsPerRun --include='*_test.go' . | xargs -n 1 dirname | sort -u)

.DEFAULT_GOAL := help
.PHONY: help demo build test check bench bench-proxy bench-peers bench-epp bench-routing bench-overload bench-overload-sockets bench-validate bench-vllm churn fuzz hostile reproducible sbom vulncheck image-context image e2e-compose e2e-vllm e2e-clients e2e-smuggling e2e-envoy e2e-hbone e2e-kube e2e-observe soak soak-short clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-22s %s\n", $$1, $$2}' Makefile

demo: build ## mock pods, proxy and traffic in one process: the quickest look at what Fairway does
	bin/fairway demo

build: ## every command into bin/, static
	$(GOBUILD) -o bin/ ./cmd/...

test: ## the tests, under the race detector where there is a C compiler; TESTFLAGS adds flags
	@$(if $(RACE),,echo 'make test: no C compiler with headers found, so the race detector is off' >&2)
	go test $(RACE) $(TESTFLAGS) ./...
	$(if $(RACE),go test $(TESTFLAGS) -run Alloc $(ALLOCATING))

check: ## format, vet, staticcheck, go.mod's tidiness, import rules, no binaries
	@large=$$(git ls-files -z | xargs -0 -r stat -c '%s %n' | awk '$$1 > 1048576 { print $$2 }'); [ -z "$$large" ] || { echo "over 1 MiB, so hardly written by anybody: $$large"; exit 1; }
	@unformatted=$$(gofmt -l . .ci | sort -u); [ -z "$$unformatted" ] || { echo "not formatted (run gofmt -w):"; echo "$$unformatted"; exit 1; }
	go vet -tags e2e ./...
	go vet .ci/summary.go
	go run $(STATICCHECK) -tags e2e ./...
	go mod tidy -diff
	go test -count=1 -run '^Test(Imports|Dependencies)' ./cmd/fairway

bench: ## every Go benchmark once, with allocations
	go test -run '^$$' -bench . -benchmem -count=1 -p 1 ./...

bench-proxy: build ## what a request costs beside haproxy, nginx, Envoy and net/http, in one run; JSON=1 for machines
	@bench/proxies/run.sh $(if $(JSON),-json)

bench-peers: build ## likewise beside the routers for vLLM (vllm-router, sglang-router, smg; installs them)
	@bench/proxies/peers.sh $(if $(JSON),-json)

bench-epp: build ## what an endpoint picker costs behind Envoy, beside haproxy; and what it takes to read 100 engines' metrics 20 times a second
	@bench/proxies/run.sh -proxies haproxy,epp
	@bench/proxies/run.sh -scrape 100 -rounds 3

bench-routing: ## saturation rates and every table of docs/routing.md, in virtual time; SEEDS says how often
	go run ./cmd/loadtest saturation --out bench/sim/saturation.json
	go run ./cmd/loadtest tables --seeds $(or $(SEEDS),5) --page docs/routing.md

bench-overload: ## what the queue is worth, in virtual time; rewrites the tables of docs/overload.md; SEEDS says how often
	go run ./cmd/loadtest overload --seeds $(or $(SEEDS),5) --page docs/overload.md

bench-overload-sockets: ## the same overload on real sockets with mock engines, in slow motion; 10 minutes on a machine that does nothing else; SPEED=0.25 for less of a machine
	go test $(TESTFLAGS) -count=1 -v -timeout 60m -parallel 4 -run '^TestOverload$$' ./cmd/fairway -overload $(or $(SPEED),0.5)

bench-validate: ## the simulation held to real sockets with mock engines in slow motion; 8 minutes, during which it takes a quarter of a core
	go test $(TESTFLAGS) -count=1 -v -timeout 60m -parallel 12 -run '^TestAgreement$$' ./cmd/fairway -validate $(or $(SPEED),0.1)

bench-vllm: ## Fairway, haproxy, smg, sglang-router and vllm-router before the same two vLLM engines; and what Fairway predicts of two of different speed; installs them; some 40 minutes
	bench/e2e/vllm/routers.sh
	bench/e2e/vllm/e2e.sh -test.run='^TestPredictions$$'

churn: ## a minute of 300 streams while engines are killed and started again; a minute of load while certificates rotate
	go test $(RACE) $(TESTFLAGS) -count=1 -timeout 5m -run '^TestStreamsWhilePodsComeAndGo$$' ./cmd/fairway -churn 1m
	go test $(RACE) $(TESTFLAGS) -count=1 -timeout 5m -run '^TestRotationUnderLoad$$' ./mtls -rotate 1m

fuzz: ## every fuzz target for FUZZTIME (10s) on one core; FUZZ chooses some by package and name, such as FUZZ=proxy/h1
	@FUZZTIME='$(FUZZTIME)' FUZZ='$(FUZZ)' .ci/fuzz

reproducible: ## the commands built twice, in two places, with an empty cache: the same to the byte
	@VERSION=$(VERSION) .ci/reproducible

sbom: build ## what each command is made of, as CycloneDX, beside it in bin/
	for command in fairway mockvllm loadtest; do go run $(CYCLONEDX) bin -json -version $(VERSION) -output bin/$$command.cdx.json bin/$$command || exit; done

vulncheck: ## known vulnerabilities in what the commands call, where their database can be had
	@GOVULNCHECK=$(GOVULNCHECK) .ci/vulncheck

hostile: ## what hostile clients cost the others, in time and memory; six minutes on a machine that does nothing else; FOR=5s says how long each, HOSTILE=PING which
	go test $(TESTFLAGS) -count=1 -v -timeout 60m -run '^TestHostileClientsCost$$/$(HOSTILE)' ./cmd/fairway -hostile $(or $(FOR),5s)

# The binaries an image is made of are built outside of it, so that building one pulls nothing.
image-context: # every command for Linux into bin/image/
	rm -rf bin/image
	GOOS=linux $(GOBUILD) -o bin/image/ ./cmd/...
	cp LICENSE bin/image/
	chmod -R a+rX bin/image

image: image-context ## the container image fairway:dev (needs Docker)
	docker build -t fairway:dev -f deploy/image/Dockerfile bin/image

e2e-compose: image-context ## deploy/compose on a real Docker engine (as root on Linux: a private one)
	deploy/compose/e2e.sh

e2e-vllm: ## two real vLLM engines with a tiny model on CPU, behind Fairway; needs Python 3.11 (installs 6 GB into the cache)
	bench/e2e/vllm/e2e.sh

e2e-clients: ## real clients (openai for Python and npm, LangChain, curl, aiperf) against Fairway; needs Python 3.11 and curl
	bench/e2e/clients/e2e.sh

e2e-smuggling: ## requests that two servers could read differently, through Fairway to uvicorn and nginx
	bench/e2e/smuggling/e2e.sh

e2e-envoy: ## a real Envoy with `fairway epp` as its endpoint picker
	bench/e2e/envoy/e2e.sh

e2e-hbone: ## Fairway as a waypoint between peers that are not ours: ztunnel's shape, nghttp2, curl, PostgreSQL, gRPC
	bench/e2e/hbone/e2e.sh

e2e-kube: ## Fairway, its chart and its examples against a real API server and etcd; builds kube-apiserver and helm the first time
	bench/e2e/kube/e2e.sh

e2e-observe: ## a running demo as Prometheus, a collector of spans, a browser and a newcomer see it, who types the commands of the docs
	bench/e2e/observe/e2e.sh

soak: ## half an hour of faults at 70 % load: engines that die, freeze, stall, lie; a full disk; restarts; too little memory. SOAK=10m for less
	bench/e2e/soak/e2e.sh -soak $(or $(SOAK),30m) -every 10s

soak-short: ## the same in some four minutes
	bench/e2e/soak/e2e.sh

clean: ## remove what was built
	rm -rf bin
