package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/cmd/internal/cli"
)

// call runs a command line to its end.
func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = cli.Execute(t.Context(), newRoot(), args, &out, &err)
	return code, out.String(), err.String()
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestExitCodes(t *testing.T) {
	good := filepath.Join(t.TempDir(), "good.yaml")
	writeFile(t, good, "pools: [{name: a, endpoints: [http://127.0.0.1:1]}]\n")
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	writeFile(t, bad, "pools:\n  - name: a\n    endpoint: [http://127.0.0.1:1]\n")
	guarded := filepath.Join(t.TempDir(), "guarded.yaml")
	writeFile(t, guarded, "pools: [{name: a, endpoints: [http://127.0.0.1:1]}]\npolicies: [{name: a}]\n")
	meshed := filepath.Join(t.TempDir(), "meshed.yaml")
	writeFile(t, meshed, "listen: {http: \"\", hbone: \":15008\"}\ntls: {spiffe: {}}\npools: [{name: a, endpoints: [http://127.0.0.1:1]}]\n"+
		"services: [{host: llm, vip: 10.96.0.7, ports: [{port: 81, protocol: tcp, pool: a}, {port: 80, protocol: http, routes: [{matches: [{path: {value: /v1}}], backendRefs: [{name: a}]}]}]}]\n")
	for _, test := range []struct {
		args string
		code int
		says string
	}{
		{"version", 0, "fairway"},
		{"version --json", 0, `"go"`},
		{"check -f " + good, 0, "http://127.0.0.1:1"},
		{"check --json -f " + good, 0, `"ok": true`},
		{"check --json -f " + good, 0, `"requests": 5000`},
		{"check -f " + meshed, 0, "SERVICE llm:80"},
		{"check -f " + meshed, 0, "SERVICE llm:81  tcp  to a"},
		{"check -f " + bad, 1, "bad.yaml:3"},
		{"check --json -f " + bad, 1, `"ok": false`},
		{"check -f /nowhere/fairway.yaml", 1, "/nowhere/fairway.yaml"},
		{"check", 2, "-f FILE"},
		{"check -f ../../discovery/kube/testdata/announcement.yaml", 0, "llama-3-8b-customer-v1 80%"},
		{"check --json -f ../../discovery/kube/testdata/waypoint.yaml", 0, `"service": "ai-workloads/llm:80"`},
		{"check -f ../../discovery/kube/testdata/routes.yaml", 1, "testdata/routes.yaml:81: HTTPRoute team/old: spec.rules[1].backendRefs[0]"},
		{"check -f ../../discovery/kube/testdata", 1, "testdata/broken.yaml:5"},
		{"check -f " + t.TempDir(), 1, "no manifests"},
		{"check --json -f " + t.TempDir(), 1, `"ok": false`},
		{"serve", 2, "--endpoint"},
		{"serve --endpoint 10.0.0.1", 2, "--endpoint"},
		{"serve --endpoint http://a:1 --config " + good, 2, "exclude"},
		{"serve --listen nonsense --endpoint http://a:1", 2, "--listen"},
		{"serve --log-level loud --endpoint http://a:1", 2, "--log-level: "},
		{"serve --nonsense", 2, "--nonsense"},
		{"serve extra", 2, "extra"},
		{"serve --kubernetes", 2, "--listen"},
		{"serve --kubernetes --config " + good, 1, "leave it out beside --kubernetes"},
		{"serve --kubernetes --listen 127.0.0.1:0 --endpoint http://a:1", 2, "excludes"},
		{"serve --kubernetes --listen 127.0.0.1:0 --kubeconfig /nowhere/kubeconfig", 1, "/nowhere/kubeconfig"},
		{"serve --kubernetes --listen 127.0.0.1:0 --trust-domain Cluster.Local", 2, "--trust-domain"},
		{"serve --config " + bad, 1, "bad.yaml:3"},
		{"epp --config " + guarded, 1, "auth and policies"},
		{"doctor", 2, "--endpoint"},
		{"doctor --endpoint 10.0.0.1", 2, "--endpoint"},
		{"doctor --config " + bad, 1, "bad.yaml:3"},
		{"doctor --no-requests --endpoint http://127.0.0.1:1", 1, "problem: reachable"},
		{"demo --pods 0", 2, "--pods"},
		{"nonsense", 2, "nonsense"},
		{"--help", 0, "serve"},
		{"serve --help", 0, "--endpoint"},
	} {
		t.Run(test.args, func(t *testing.T) {
			code, out, err := call(t, strings.Fields(test.args)...)
			if code != test.code || !strings.Contains(out+err, test.says) {
				t.Errorf("exit code %d, want %d; it said\n%s%s", code, test.code, out, err)
			}
		})
	}
}

// Every command has a page in the manual, and shells can complete them.
func TestManual(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man1")
	if code, out, err := call(t, "man", dir); code != 0 || !strings.Contains(out, "pages in "+dir) {
		t.Fatalf("exit code %d: %s%s", code, out, err)
	}
	for _, c := range newRoot().Commands() {
		page, err := os.ReadFile(filepath.Join(dir, "fairway-"+c.Name()+".1"))
		if err != nil || !strings.Contains(string(page), ".SH NAME") {
			t.Errorf("%s: %v", c.Name(), err)
		}
	}
	if code, _, err := call(t, "man"); code != 2 || !strings.Contains(err, "which directory") {
		t.Errorf("exit code %d: %s", code, err)
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if code, out, _ := call(t, "completion", shell); code != 0 || len(out) < 1000 {
			t.Errorf("%s: exit code %d, %d bytes", shell, code, len(out))
		}
	}
	if code, out, _ := call(t, "__complete", "doctor", "--no"); code != 0 || !strings.Contains(out, "--no-requests") {
		t.Errorf("exit code %d: %s", code, out)
	}
}

// running is a `fairway serve` in this process.
type running struct {
	code   chan int
	stop   context.CancelFunc // as SIGTERM does
	stderr *lockedBuffer
}

func serve(t *testing.T, args ...string) *running {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	r := &running{make(chan int, 1), stop, new(lockedBuffer)}
	go func() {
		r.code <- cli.Execute(ctx, newRoot(), append([]string{"serve"}, args...), io.Discard, r.stderr)
	}()
	t.Cleanup(stop)
	return r
}

// lockedBuffer is a buffer that a running command writes to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// freeAddresses are loopback addresses that nobody listens on.
func freeAddresses(n int) []string {
	addresses := make([]string, n)
	for i := range addresses {
		addresses[i] = process.FreeAddress()
	}
	return addresses
}

// get fetches a page; the status is 0 while nobody answers.
func get(url string) (status int, body string) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	resp, err := client.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	raw, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(raw)
}

// TestServe takes a proxy through its life: a file, readiness, requests, a
// change of the file, a bad change, and an end that lets a stream finish.
func TestServe(t *testing.T) {
	first, second := startPod(t, "", mock.Config{Speed: 5}), startPod(t, "", mock.Config{Speed: 5})
	at := freeAddresses(3)
	path := filepath.Join(t.TempDir(), "fairway.yaml")
	config := func(endpoint string) string {
		return fmt.Sprintf("listen: {http: %q, metrics: %q, admin: %q}\npools: [{name: a, endpoints: [http://%s]}]\ntimeouts: {drain: 30s}\n", at[0], at[1], at[2], endpoint)
	}
	writeFile(t, path, config(first.address))
	r := serve(t, "--config", path, "--json")
	waitFor(t, "readiness", func() bool { status, _ := get("http://" + at[1] + "/healthz/ready"); return status == 200 })

	f := &fleet{url: "http://" + at[0], client: &http.Client{Transport: &http.Transport{}}}
	defer f.client.CloseIdleConnections()
	hello := request{Messages: []message{{"user", "hello"}}, MaxTokens: 3}
	if a := f.mustAsk(t, hello); a.endpoint != first.address {
		t.Errorf("answered by %s", a.endpoint)
	}
	waitFor(t, "the request is counted", func() bool { // which it is after the client has its last byte
		_, page := get("http://" + at[1] + "/metrics")
		return strings.Contains(page, `fairway_requests_total{code="200",model="mock",pool="a",reason=""} 1`)
	})
	for _, path := range []string{"/endpoints", "/config", "/debug/pprof/", "/healthz/live", "/stats/prometheus"} {
		if status, page := get("http://" + at[2] + path); status != 200 {
			t.Errorf("%s: %d %s", path, status, page)
		}
	}

	// A stream that is under way goes on through both changes and the end.
	streamed := make(chan error, 1)
	go func() {
		a, err := f.ask(context.Background(), request{Messages: []message{{"user", "at length"}}, MaxTokens: 4000})
		if err == nil && (!a.done || a.err != "") {
			err = fmt.Errorf("done %v, error event %q", a.done, a.err)
		}
		streamed <- err
	}()
	waitFor(t, "the long stream", func() bool { return first.Stats().Engine.Running == 1 })

	writeFile(t, path, config(second.address))
	waitFor(t, "the changed file in force", func() bool { return strings.Contains(r.stderr.String(), "configuration in force") })
	if a := f.mustAsk(t, hello); a.endpoint != second.address {
		t.Errorf("after the change, answered by %s", a.endpoint)
	}
	writeFile(t, path, "pools: 7\n")
	waitFor(t, "the bad file is told", func() bool { return strings.Contains(r.stderr.String(), "the last good one stays in force") })
	if a := f.mustAsk(t, hello); a.endpoint != second.address {
		t.Errorf("after the bad change, answered by %s", a.endpoint)
	}

	r.stop()
	waitFor(t, "not ready", func() bool { status, _ := get("http://" + at[1] + "/healthz/ready"); return status == 503 })
	waitFor(t, "no more connections", func() bool {
		c, err := net.Dial("tcp", at[0])
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	select {
	case err := <-streamed:
		if err != nil {
			t.Errorf("the stream was not let finish: %v", err)
		}
	case <-time.After(2 * time.Minute):
		t.Error("the stream did not end")
	}
	if code := <-r.code; code != 0 {
		t.Errorf("exit code %d: %s", code, r.stderr)
	}
}

func TestServeEndsStreamsWhenDrainIsOver(t *testing.T) {
	pod := startPod(t, "", mock.Config{})
	at := freeAddresses(3)
	path := filepath.Join(t.TempDir(), "fairway.yaml")
	writeFile(t, path, fmt.Sprintf("listen: {http: %q, metrics: %q, admin: %q}\npools: [{name: a, endpoints: [http://%s]}]\ntimeouts: {drain: 100ms}\n", at[0], at[1], at[2], pod.address))
	r := serve(t, "--config", path)
	waitFor(t, "readiness", func() bool { status, _ := get("http://" + at[1] + "/healthz/ready"); return status == 200 })
	f := &fleet{url: "http://" + at[0], client: &http.Client{Transport: &http.Transport{}}}
	defer f.client.CloseIdleConnections()
	streamed := make(chan answer, 1)
	go func() {
		a, _ := f.ask(context.Background(), request{Messages: []message{{"user", "at length"}}, MaxTokens: 100_000})
		streamed <- a
	}()
	waitFor(t, "the stream", func() bool { return pod.Stats().Engine.GenerationTokens > 3 })
	r.stop()
	if code := <-r.code; code != 1 || !strings.Contains(r.stderr.String(), "before all requests had ended") {
		t.Errorf("exit code %d: %s", code, r.stderr)
	}
	if a := <-streamed; a.done {
		t.Error("the stream ended as if it were whole")
	}
}

// TestDemo gives a busy machine more time until the cache shows: on one, few
// conversations come to a second turn in four seconds, or to their end in six.
func TestDemo(t *testing.T) {
	for _, life := range []string{"6s", "30s", "2m"} {
		at := freeAddresses(3)
		code, out, stderr := call(t, "demo", "--for", life, "--pods", "2", "--json", "--listen", at[0], "--metrics", at[1], "--admin", at[2])
		var report demoReport
		if err := json.Unmarshal([]byte(out), &report); code != 0 || err != nil {
			t.Fatalf("exit code %d, %v\n%s\n%s", code, err, out, stderr)
		}
		good := report.Fairway.HitRate > report.RoundRobin.HitRate
		for _, side := range []demoSide{report.Fairway, report.RoundRobin} {
			good = good && side.Requests > 0 && side.Failed == 0 && len(side.Pods) == 2 && side.TTFTp90 > 0
		}
		if good {
			return
		}
		t.Logf("in %s: %s", life, out)
	}
	t.Error("the demo never shows a hit rate above that of round robin, without a failure")
}
