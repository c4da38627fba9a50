//go:build e2e

package envoy_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// patience is for a machine that does other things too.
const patience = time.Minute

// start returns when url answers 200.
func start(t *testing.T, url string, name string, args ...string) *process.Process {
	t.Helper()
	p := process.Start(t, exec.Command(name, args...))
	p.Await(t, patience, process.Answers(url))
	return p
}

// engine is a mock engine.
type engine struct {
	*process.Process
	address string
}

func startEngine(t *testing.T, address string) *engine {
	t.Helper()
	if address == "" {
		address = process.FreeAddress()
	}
	return &engine{start(t, "http://"+address+"/health", filepath.Join(os.Getenv("E2E_BIN"), "mockvllm"), "--listen", address, "--model", "m", "--speed", "20"), address}
}

func startEngines(t *testing.T, n int) []*engine {
	engines := make([]*engine, n)
	for i := range engines {
		engines[i] = startEngine(t, "")
	}
	return engines
}

func addressesOf(engines []*engine) []string {
	var all []string
	for _, e := range engines {
		all = append(all, e.address)
	}
	return all
}

// gauge reads a metric off an engine's page.
func (e *engine) gauge(t *testing.T, name string) float64 {
	t.Helper()
	return process.Metric(t, "http://"+e.address+"/metrics", name)
}

// picker is a running `fairway epp`.
type picker struct {
	*process.Process
	address, metrics string
}

func startPicker(t *testing.T, address string, endpoints []string, args ...string) *picker {
	t.Helper()
	if address == "" {
		address = process.FreeAddress()
	}
	p := &picker{address: address, metrics: process.FreeAddress()}
	args = append([]string{"epp", "--listen", address, "--secure-serving=false", "--metrics", p.metrics, "--admin", process.FreeAddress()}, args...)
	for _, e := range endpoints {
		args = append(args, "--endpoint", "http://"+e)
	}
	p.Process = start(t, "http://"+p.metrics+"/healthz/ready", filepath.Join(os.Getenv("E2E_BIN"), "fairway"), args...)
	return p
}

// setup is how an Envoy is set up.
type setup struct {
	request, response string // body modes; empty: FULL_DUPLEX_STREAMED
	override          bool   // destinations are taken from a list, by the policy override_host
	subset            string // the only endpoint that may be named; empty: any
}

// startEnvoy starts Envoy with these pickers, and gives its URL. Healthy waits until
// it holds so many of them for healthy.
func startEnvoy(t *testing.T, s setup, engines []string, pickers ...*picker) (url string, healthy func(n int)) {
	t.Helper()
	const duplex = "FULL_DUPLEX_STREAMED"
	if s.request == "" {
		s.request = duplex
	}
	if s.response == "" {
		s.response = duplex
	}
	trailers, cluster := "SKIP", "original"
	if s.request == duplex || s.response == duplex {
		trailers = "SEND" // Envoy asks for it
	}
	if s.override {
		cluster = "override"
	}
	listen, admin := process.FreeAddress(), process.FreeAddress()
	hint := "nobody.reads.this"
	if s.subset != "" {
		hint = "envoy.lb.subset_hint"
	}
	list := func(addresses []string) string {
		var all []string
		for _, a := range addresses {
			host, port, _ := net.SplitHostPort(a)
			all = append(all, fmt.Sprintf("{endpoint: {address: {socket_address: {address: %s, port_value: %s}}}}", host, port))
		}
		return strings.Join(all, ", ")
	}
	port := func(address string) string { _, port, _ := net.SplitHostPort(address); return port }
	var asked []string
	for _, p := range pickers {
		asked = append(asked, p.address)
	}
	config, err := os.ReadFile("envoy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	filled := strings.NewReplacer("ADMIN_PORT", port(admin), "LISTEN_PORT", port(listen), "REQUEST_MODE", s.request, "RESPONSE_MODE", s.response,
		"TRAILER_MODE", trailers, "DESTINATION", cluster, "HINT", hint, "SUBSET", fmt.Sprintf("%q", s.subset), "PICKERS", list(asked), "ENGINES", list(engines)).Replace(string(config))
	path := filepath.Join(t.TempDir(), "envoy.yaml")
	if err := os.WriteFile(path, []byte(filled), 0o644); err != nil {
		t.Fatal(err)
	}
	start(t, "http://"+admin+"/ready", os.Getenv("E2E_ENVOY"), "-c", path, "-l", "warning", "--concurrency", "2", "--use-dynamic-base-id")
	healthy = func(n int) {
		t.Helper()
		process.Await(t, patience, "Envoy holds its pickers for healthy", func() bool {
			return process.Metric(t, "http://"+admin+"/stats/prometheus", "envoy_cluster_membership_healthy", `envoy_cluster_name="picker"`) == float64(n)
		})
	}
	healthy(len(pickers))
	return "http://" + listen, healthy
}
