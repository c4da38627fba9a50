//go:build e2e

// Package soak_test has Fairway live through what happens around it: engines that die, freeze, stall, lie and flap, networks
// that lose and cut, full disks, signals, too little memory. Every answer is checked, byte for byte. Run it as `make soak`
// or `make soak-short`.
//
// Fairway and the engines are processes. A relay in this one stands before each engine: it makes the faults of networks, and
// sees which request came to which engine. A request may fail only if every engine that it came to was killed, or had its
// connections broken, while it was there.
package soak_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

var (
	long  = flag.Duration("soak", 68*time.Second, "how long TestSoak goes on")
	every = flag.Duration("every", 4*time.Second, "how often TestSoak makes a fault")
	load  = flag.Float64("load", 0.7, "share of what the engines can do that TestSoak asks for")
)

// report adds to the report, which e2e.sh shows at the end.
func report(t *testing.T, text string) {
	t.Log("\n" + text)
	path := os.Getenv("E2E_REPORT")
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fmt.Fprintf(f, "\n## %s\n\n%s", t.Name(), text)
}

// stage is what TestSoak plays on.
type stage struct {
	t      *testing.T
	pods   []*pod
	fair   *fairway
	picker *process.Process
	launch func() *process.Process // the picker, again
	disk   string                  // a small file system that the access log is on; empty: there is none
	ledger *ledger
}

// config is fairway.yaml for these pods.
func (s *stage) config(pods []*pod, asked string) string {
	return fmt.Sprintf(`pools:
  - {name: main, endpoints: [%s]}
  - name: asked
    endpoints: [%s]
    picker: {address: %q, failure_mode: FailOpen, secure_serving: false, timeout: 500ms}
models:
  - {name: mock, pool: main}
  - {name: asked, pool: asked, targets: [{name: mock, weight: 1}]}
`, addresses(pods), addresses(s.pods), asked)
}

// A trial is a kind of fault. It returns when the fault is over; harms says that requests on the pod may fail by it.
type trial struct {
	name  string
	harms bool
	run   func(s *stage, p *pod, d time.Duration)
}

// passing has a relay make a fault for a while.
func passing(f fault) func(*stage, *pod, time.Duration) {
	return func(_ *stage, p *pod, d time.Duration) {
		p.set(f)
		time.Sleep(d)
		p.set(fault{})
	}
}

var trials = []trial{
	{"killed", true, func(s *stage, p *pod, d time.Duration) {
		p.kill()
		time.Sleep(d)
		p.revive(s.t)
	}},
	{"frozen", false, func(_ *stage, p *pod, d time.Duration) {
		p.freeze()
		time.Sleep(d)
		p.thaw()
	}},
	{"slow", false, passing(fault{delay: 30 * time.Millisecond})},
	{"resetting", true, passing(fault{reset: true})},
	{"garbage", true, passing(fault{garbage: true})},
	{"half-closing", true, passing(fault{half: true})},
	{"flapping", true, func(s *stage, p *pod, d time.Duration) {
		for end := time.Now().Add(d); time.Now().Before(end); {
			p.kill()
			time.Sleep(500 * time.Millisecond)
			p.revive(s.t)
			time.Sleep(500 * time.Millisecond)
		}
	}},
	{"partition", false, passing(fault{hold: true})},
	{"loss and delay", false, passing(fault{delay: 5 * time.Millisecond, loss: 0.05})},
	{"metrics gone", false, passing(fault{metrics: "gone"})},
	{"metrics garbage", false, passing(fault{metrics: "garbage"})},
	{"metrics hang", false, passing(fault{metrics: "hang"})},
	{"reloaded", false, func(s *stage, p *pod, d time.Duration) {
		// One pod less, and all again, with SIGHUP each time.
		for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
			var rest []*pod
			for _, other := range s.pods {
				if other != p {
					rest = append(rest, other)
				}
			}
			s.fair.reload(s.t, s.config(rest, pickerAddress))
			time.Sleep(200 * time.Millisecond)
			s.fair.reload(s.t, s.config(s.pods, pickerAddress))
		}
	}},
	{"picker gone", false, func(s *stage, _ *pod, d time.Duration) {
		s.picker.End(syscall.SIGKILL)
		time.Sleep(d)
		s.picker = s.launch()
	}},
	{"disk full", false, func(s *stage, _ *pod, d time.Duration) {
		filler := filepath.Join(s.disk, "filler")
		f, err := os.Create(filler)
		if err != nil {
			s.t.Error(err)
			return
		}
		defer os.Remove(filler)
		defer f.Close()
		block := make([]byte, 64<<10)
		for end := time.Now().Add(d); time.Now().Before(end); {
			if _, err := f.Write(block); err != nil { // full, as it is to stay
				block = block[:max(len(block)/2, 1)]
				time.Sleep(10 * time.Millisecond)
			}
		}
	}},
	{"partition by nftables", false, func(s *stage, p *pod, d time.Duration) {
		p.space.drop(s.t, true)
		time.Sleep(d)
		p.space.drop(s.t, false)
	}},
}

var pickerAddress string

// TestSoak makes one fault after the other at a load of 70 % of what the engines can do.
func TestSoak(t *testing.T) {
	questions := ask(t)
	j := newJournal()
	s := &stage{t: t}
	const pods = 5
	space, missing := newNetns(t)
	for i := range pods {
		if i < pods-1 {
			s.pods = append(s.pods, startPod(t, i, j, nil))
		} else {
			s.pods = append(s.pods, startPod(t, i, j, space))
		}
	}
	var skipped []string
	skipped = append(skipped, "clock jumps: time namespaces shift only the monotonic clock, once, before a process starts; the wall clock has none, and the machine's is not ours to set")
	if missing != nil {
		skipped = append(skipped, fmt.Sprintf("partition by nftables: %v", missing))
	}
	logs := t.TempDir()
	if err := syscall.Mount("none", logs, "tmpfs", 0, "size=48m"); err == nil {
		s.disk = logs
		t.Cleanup(func() { syscall.Unmount(logs, syscall.MNT_DETACH) })
	} else {
		skipped = append(skipped, fmt.Sprintf("disk full: a small file system cannot be mounted: %v", err))
	}

	// The picker of the second pool.
	pickerAddress = process.FreeAddress()
	pickerMetrics := process.FreeAddress()
	args := []string{"epp", "--listen", pickerAddress, "--secure-serving=false", "--metrics", pickerMetrics, "--admin", process.FreeAddress()}
	for _, p := range s.pods {
		args = append(args, "--endpoint", "http://"+p.address)
	}
	pickerLog := logFile(t, filepath.Join(t.TempDir(), "picker.log"))
	s.launch = func() *process.Process {
		return start(t, pickerLog, "http://"+pickerMetrics+"/healthz/ready", program("fairway"), args...)
	}
	s.picker = s.launch()

	fairwayLog := logFile(t, filepath.Join(logs, "fairway.log"))
	s.fair = startFairway(t, fairwayLog, s.config(s.pods, pickerAddress))
	c := newClient("http://" + s.fair.http)
	capacity := saturate(c, questions, 48*pods, 4*time.Second, 6*time.Second)
	quiet(t, s.fair, c)
	before, ok := used(s.fair)
	if !ok {
		t.Fatal("what Fairway holds cannot be told: it takes /proc")
	}

	s.ledger = newLedger(t, j)
	f := &traffic{client: c, questions: questions, rate: *load * capacity, asked: 0.1, leave: 0.03, told: s.ledger.enter}
	ctx, stop := context.WithTimeout(t.Context(), *long)
	defer stop()
	var held []usage
	var wg sync.WaitGroup
	wg.Go(func() { f.run(ctx) })
	wg.Go(func() { held = watch(ctx, s.fair) })
	s.play(ctx)
	wg.Wait()
	quiet(t, s.fair, c)
	after, _ := used(s.fair)

	var b strings.Builder
	fmt.Fprintf(&b, "%v at %.1f requests a second, %.0f %% of what %d engines can do; a fault every %v.\n\n%s\n%s\n", *long, f.rate, 100**load, pods, *every, s.ledger.table(), flat(t, before, after, held))
	for _, why := range skipped {
		fmt.Fprintf(&b, "Skipped: %s.\n", why)
	}
	report(t, b.String())
	if s.ledger.shown > 20 {
		t.Errorf("%d violations in all", s.ledger.shown)
	}
}

// play makes faults until ctx is done, each in turn, on a pod by chance.
func (s *stage) play(ctx context.Context) {
	for turn := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(*every - *every*6/10):
		}
		trial := trials[turn%len(trials)]
		turn++
		p := s.pods[rand.IntN(len(s.pods))]
		switch trial.name {
		case "disk full":
			if s.disk == "" {
				continue
			}
		case "partition by nftables":
			if p = s.pods[len(s.pods)-1]; p.space == nil {
				continue
			}
		}
		pod := -1
		if trial.harms {
			pod = p.pod
		}
		h := s.ledger.begin(trial.name, pod)
		trial.run(s, p, *every*6/10)
		s.ledger.end(h)
	}
}

// quiet returns when nothing is under way any more and idle connections have been closed.
func quiet(t *testing.T, f *fairway, c *client) {
	t.Helper()
	c.http.CloseIdleConnections()
	page := "http://" + f.metrics + "/metrics"
	process.Await(t, patience, "nothing is live and nothing is buffered", func() bool {
		live, err := process.SumAt(page, "fairway_requests_live")
		buffered, err2 := process.SumAt(page, "fairway_request_bodies_bytes")
		return err == nil && err2 == nil && live == 0 && buffered == 0
	})
	time.Sleep(7 * time.Second) // engines close idle connections after 5
}
