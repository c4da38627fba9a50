//go:build e2e

package soak_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// balance starts haproxy, which passes connections on to replicas that are ready, and gives its address.
func balance(t *testing.T, replicas []*fairway) string {
	t.Helper()
	haproxy, err := exec.LookPath("haproxy")
	if err != nil {
		haproxy, err = exec.LookPath("/usr/sbin/haproxy")
	}
	if err != nil {
		t.Skip("the balancer is haproxy, which is not installed")
	}
	address, stats := process.FreeAddress(), process.FreeAddress()
	var servers strings.Builder
	for i, f := range replicas {
		fmt.Fprintf(&servers, "  server s%d %s check port %s inter 200ms fall 1 rise 1\n", i, f.http, f.metrics[strings.LastIndexByte(f.metrics, ':')+1:])
	}
	config := filepath.Join(t.TempDir(), "haproxy.cfg")
	text := fmt.Sprintf(`defaults
  mode tcp
  timeout connect 5s
  timeout check 5s
  timeout client 5m
  timeout server 5m
  retries 3
  option redispatch 1
frontend clients
  bind %s
  default_backend replicas
frontend stats
  mode http
  bind %s
  monitor-uri /up
backend replicas
  balance roundrobin
  option httpchk GET /healthz/ready
  http-check expect status 200
%s`, address, stats, servers.String())
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	start(t, logFile(t, filepath.Join(t.TempDir(), "haproxy.log")), "http://"+stats+"/up", haproxy, "-db", "-f", config)
	return address
}

// tokens are what a replica's engines have counted of its requests.
type tokens struct{ prompt, cached float64 }

func (f *fairway) tokens() (n tokens) {
	page, _ := process.Page("http://" + f.metrics + "/metrics")
	n.prompt, _ = process.Sum(page, "fairway_tokens_total", `kind="prompt"`)
	n.cached, _ = process.Sum(page, "fairway_tokens_total", `kind="cached"`)
	return n
}

// since is the share of cached tokens since before; 0 if there was no request.
func (n tokens) since(before tokens) float64 {
	if n.prompt == before.prompt {
		return 0
	}
	return (n.cached - before.cached) / (n.prompt - before.prompt)
}

// percent is a share for people; "–" for that of no requests.
func percent(share float64) string {
	if share == 0 {
		return "–"
	}
	return fmt.Sprintf("%.0f %%", 100*share)
}

// TestRollingRestart replaces two replicas behind a TCP balancer, one after the other, by SIGTERM at full load. No request
// fails and no stream is cut; each replica ends within its grace period, and the new one finds as much in the engines'
// caches as the other within a minute.
func TestRollingRestart(t *testing.T) {
	questions := ask(t)
	j := newJournal()
	pods := startPods(t, 4, j)
	config := fmt.Sprintf("pools: [{name: main, endpoints: [%s]}]\ntimeouts: {drain: 60s}\n", addresses(pods))
	log := logFile(t, filepath.Join(t.TempDir(), "fairway.log"))
	replicas := []*fairway{startFairway(t, log, config), startFairway(t, log, config)}
	c := newClient("http://" + balance(t, replicas))
	process.Await(t, patience, "both replicas are served from", func() bool {
		c.http.CloseIdleConnections()
		c.ask(t.Context(), &questions[0], "mock", true, 0)
		return replicas[0].tokens().prompt > 0 && replicas[1].tokens().prompt > 0
	})
	capacity := saturate(c, questions, 48*len(pods), 4*time.Second, 6*time.Second)

	l := newLedger(t, j)
	f := &traffic{client: c, questions: questions, rate: 0.7 * capacity, leave: 0.03, told: l.enter}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { f.run(ctx) })
	time.Sleep(3 * time.Second)

	var b strings.Builder
	fmt.Fprintf(&b, "%.1f requests a second, 70 %% of what 4 engines can do, through haproxy in TCP mode to two replicas.\n\n", f.rate)
	b.WriteString("| replica | drained in s | serves again after s | its hit rate, by 5 s since | the other's meanwhile |\n|---|---|---|---|---|\n")
	for i, f := range replicas {
		l.begin(fmt.Sprintf("replica %d restarts", i), -1)
		asked := time.Now()
		f.Signal(syscall.SIGTERM)
		select {
		case <-f.Ended:
		case <-time.After(60 * time.Second):
			t.Fatal("a replica did not end within its grace period")
		}
		drained := time.Since(asked)
		if code := f.Cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("a drained replica ended with %d", code)
		}
		f.start(t, log)
		ready := time.Since(asked)
		var rates, others []string
		recovered := false
		for began := time.Now(); time.Since(began) < time.Minute && !recovered; {
			own, other := f.tokens(), replicas[1-i].tokens()
			time.Sleep(5 * time.Second)
			rate, with := f.tokens().since(own), replicas[1-i].tokens().since(other)
			rates, others = append(rates, percent(rate)), append(others, percent(with))
			recovered = rate >= 0.9*with && rate > 0
		}
		if !recovered {
			t.Errorf("replica %d finds %v in the caches, the other %v", i, rates, others)
		}
		fmt.Fprintf(&b, "| %d | %.1f | %.1f | %s | %s |\n", i, drained.Seconds(), ready.Seconds(), strings.Join(rates, ", "), strings.Join(others, ", "))
	}
	stop()
	wg.Wait()
	report(t, b.String()+"\n"+l.table())
}
