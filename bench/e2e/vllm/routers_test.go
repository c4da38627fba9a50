//go:build e2e && linux

package vllm_test

import (
	"cmp"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
	"github.com/fairway-proxy/fairway/bench/load"
	"github.com/fairway-proxy/fairway/bench/workload"
)

// A router is one of those that are compared: a name, and how to start it before the engines. It returns its origin.
type router struct {
	name  string
	start func(t *testing.T, engines []*engine) (origin string, p *server)
}

// routers are all of them. Those written in Rust are run as their command lines' help says, with their defaults.
func routers() []router {
	venv := func(name string) string { return filepath.Join(os.Getenv("E2E_ROUTERS"), name, "bin", name) }
	return []router{
		{"Fairway", func(t *testing.T, engines []*engine) (string, *server) {
			f := startFairway(t, "fairway", engines...)
			return f.origin, f.server
		}},
		{"haproxy, round robin", haproxy("roundrobin")},
		{"haproxy, least connections", haproxy("leastconn")},
		{"smg, cache_aware", cacheAware(venv("smg"), "launch")},
		{"sglang-router, cache_aware", cacheAware(venv("sglang-router"), "launch")},
		{"vllm-router, cache_aware", cacheAware(venv("vllm-router"))},
	}
}

func haproxy(balance string) func(*testing.T, []*engine) (string, *server) {
	return func(t *testing.T, engines []*engine) (string, *server) {
		listen := process.FreeAddress()
		var b strings.Builder
		fmt.Fprintf(&b, "defaults\n mode http\n timeout connect 5s\n timeout client 5m\n timeout server 5m\n option http-no-delay\n")
		fmt.Fprintf(&b, "listen engines\n bind %s\n balance %s\n", listen, balance)
		for i, e := range engines {
			fmt.Fprintf(&b, " server engine%d %s\n", i, e.address)
		}
		file := filepath.Join(t.TempDir(), "haproxy.cfg")
		if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return "http://" + listen, start(t, "haproxy", nil, "haproxy", "-db", "-f", file)
	}
}

func cacheAware(argv ...string) func(*testing.T, []*engine) (string, *server) {
	return func(t *testing.T, engines []*engine) (string, *server) {
		listen, metrics := process.FreeAddress(), process.FreeAddress()
		host, port, _ := net.SplitHostPort(listen)
		_, metricsPort, _ := net.SplitHostPort(metrics)
		line := append(slices.Clone(argv), "--host", host, "--port", port, "--prometheus-host", host, "--prometheus-port", metricsPort,
			"--policy", "cache_aware", "--worker-urls")
		for _, e := range engines {
			line = append(line, e.url())
		}
		return "http://" + listen, start(t, filepath.Base(argv[0]), nil, line...)
	}
}

// traffic is what is played through each router, in a time that follows a warm-up. The common prompts of shared-prefix are 31,000 tokens,
// of which one engine's cache holds 22,400, as on a GPU with much more traffic; the conversations of chat fit. The rate leaves the
// engines idle more than half of the time: with a router and the player they have to share a small machine.
type traffic struct {
	name   string
	params workload.Params
}

const (
	cacheBlocks = 700 // of 32 tokens
	warmup      = 10 * time.Second
)

var (
	repetitions = flag.Int("repetitions", 3, "how often TestRouters measures each router")
	measured    = flag.Duration("measured", 30*time.Second, "how long TestRouters measures, after a warm-up of 10 s")
)

var traffics = []traffic{
	{"shared-prefix", workload.Params{Rate: 4, Groups: 16, SystemTokens: 1200, TurnTokens: 100, AnswerTokens: 16}},
	{"chat", workload.Params{Rate: 4, Groups: 4, SystemTokens: 500, TurnTokens: 150, AnswerTokens: 16, Turns: 6, Think: 4 * time.Second}},
}

// outcome is what one run came to.
type outcome struct {
	hits     float64
	p50, p90 time.Duration
	requests int
	failed   int
	lag      time.Duration
}

// TestRouters plays the same traffic through each router to the same two engines, whose caches are emptied before. The order changes
// from one repetition to the next. It measures, and fails only where nothing could be measured.
func TestRouters(t *testing.T) {
	t.Setenv("VLLM_SERVER_DEV_MODE", "1") // for /reset_prefix_cache
	var engines []*engine
	for i := range 2 {
		engines = append(engines, startEngine(t, fmt.Sprintf("engine-%d", i+1), process.FreeAddress(), "--num-gpu-blocks-override", fmt.Sprint(cacheBlocks)))
	}
	for _, e := range engines {
		e.awaitUp(t)
	}
	all := routers()
	found := map[string][]outcome{} // by traffic and router
	for repetition := range *repetitions {
		order := slices.Clone(all)
		if repetition%2 == 1 {
			slices.Reverse(order)
		}
		for _, tr := range traffics {
			for _, r := range order {
				o := measure(t, r, tr, engines, uint64(repetition+1))
				t.Logf("%d %-14s %-28s %4d requests, %d failed, cached %.1f %%, TTFT p50 %3d ms, p90 %4d ms, the player's lag %d ms", repetition+1, tr.name, r.name,
					o.requests, o.failed, 100*o.hits, o.p50.Milliseconds(), o.p90.Milliseconds(), o.lag.Milliseconds())
				key := tr.name + r.name
				found[key] = append(found[key], o)
			}
		}
		t.Logf("after %d repetitions:\n%s", repetition+1, table(all, found))
	}
}

// measure plays the traffic once.
func measure(t *testing.T, r router, tr traffic, engines []*engine, seed uint64) (o outcome) {
	t.Helper()
	t.Run(fmt.Sprintf("%d/%s/%s", seed, tr.name, r.name), func(t *testing.T) {
		p := tr.params
		p.Seed = seed
		w, err := workload.New(tr.name, p)
		if err != nil {
			t.Fatal(err)
		}
		origin, proc := r.start(t, engines)
		process.Eventually(t, patience, func() error { return answers(proc, origin) })
		for _, e := range engines {
			reset(t, e)
		}
		res, err := load.Run(t.Context(), load.Config{
			URL: origin, Model: "tiny", Workload: w, Warmup: warmup, Duration: warmup + *measured, Timeout: time.Minute, IgnoreEOS: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		if res.HitRate == nil {
			t.Fatalf("no answer says how many tokens were cached: %d requests, %d failed, %v", res.Requests, res.Failed, res.Errors)
		}
		o = outcome{*res.HitRate, res.TTFT.P50, res.TTFT.P90, res.Requests, res.Failed, res.SendLag.P99}
	})
	return o
}

// answers reports whether a request through the router is answered: some need a while until they have found their engines.
func answers(p *server, origin string) error {
	select {
	case <-p.Ended:
		return fmt.Errorf("%s ended: %s", p.Name, p.tail(5))
	default:
	}
	body := `{"model":"tiny","messages":[{"role":"user","content":"Are you there?"}],"max_tokens":1}`
	resp, err := client.Post(origin+chatPath, "application/json", strings.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", p.Name, resp.Status)
	}
	return nil
}

// reset empties an engine's prefix cache.
func reset(t *testing.T, e *engine) {
	t.Helper()
	resp, err := client.Post(e.url()+"/reset_prefix_cache", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s does not empty its cache: %s", e.Name, resp.Status)
	}
}

// table sums up what was measured: the median over the repetitions, and the lowest and highest.
func table(all []router, found map[string][]outcome) string {
	var b strings.Builder
	b.WriteString("| traffic | router | cached | TTFT p50 | TTFT p90 | failed |\n|---|---|---|---|---|---|\n")
	for _, tr := range traffics {
		for _, r := range all {
			list := found[tr.name+r.name]
			requests, failed := 0, 0
			for _, o := range list {
				requests, failed = requests+o.requests, failed+o.failed
			}
			ms := func(of func(outcome) time.Duration) string {
				return spread(list, func(o outcome) float64 { return float64(of(o)) / float64(time.Millisecond) }, "ms")
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %d of %d |\n", tr.name, r.name,
				spread(list, func(o outcome) float64 { return 100 * o.hits }, "%"),
				ms(func(o outcome) time.Duration { return o.p50 }), ms(func(o outcome) time.Duration { return o.p90 }), failed, requests)
		}
	}
	return b.String()
}

func spread(list []outcome, of func(outcome) float64, unit string) string {
	if len(list) == 0 {
		return "–"
	}
	sorted := slices.SortedFunc(slices.Values(list), func(a, b outcome) int { return cmp.Compare(of(a), of(b)) })
	low, high := of(sorted[0]), of(sorted[len(sorted)-1])
	return fmt.Sprintf("%.0f (%.0f–%.0f) %s", of(sorted[len(sorted)/2]), low, high, unit)
}
