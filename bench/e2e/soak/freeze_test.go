//go:build e2e

package soak_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestFreeze stops one of four engines, as SIGSTOP does. Requests that come from two seconds later on do not go there, and have
// their first tokens as those of three healthy engines under the same load.
func TestFreeze(t *testing.T) {
	const (
		noticed  = 2 * time.Second
		measured = 12 * time.Second
		worse    = 1.3
	)
	questions := ask(t)
	j := newJournal()
	pods := startPods(t, 4, j)
	log := logFile(t, filepath.Join(t.TempDir(), "fairway.log"))
	config := func(pods []*pod) string {
		return fmt.Sprintf("pools: [{name: main, endpoints: [%s]}]\n", addresses(pods))
	}
	f := startFairway(t, log, config(pods[1:]))
	c := newClient("http://" + f.http)
	capacity := saturate(c, questions, 48*3, 4*time.Second, 6*time.Second)
	rate := 0.7 * capacity

	// round plays the traffic, has spoil done to it, and gives the first tokens of what came later, and how much of that came to the first
	// engine.
	round := func(name string, spoil, mend func()) (ttft []float64, stuck, came int) {
		l := newLedger(t, j)
		l.begin(name, -1)
		var mu sync.Mutex
		var from, until time.Time
		ctx, stop := context.WithCancel(t.Context())
		tr := &traffic{client: c, questions: questions, rate: rate}
		tr.told = func(q *question, o *outcome) {
			there := j.came(o.id, 0)
			l.enter(q, o)
			mu.Lock()
			defer mu.Unlock()
			if o.start.Before(from) || o.start.After(until) {
				return
			}
			came++
			if o.stream {
				ttft = append(ttft, o.ttft.Seconds())
			}
			if there {
				stuck++
			}
		}
		mu.Lock()
		var wg sync.WaitGroup
		wg.Go(func() { tr.run(ctx) })
		time.Sleep(4 * time.Second)
		spoil()
		from = time.Now().Add(noticed)
		until = from.Add(measured)
		mu.Unlock()
		time.Sleep(time.Until(until))
		stop()
		mend()
		wg.Wait()
		return ttft, stuck, came
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%.1f requests a second, 70 %% of what 3 engines can do.\n\n| 4 engines, of which one | from %v later on: TTFT p50 s | p90 s | p99 s | requests sent there |\n|---|---|---|---|---|\n", rate, noticed)
	row := func(name string, ttft []float64, stuck, came int) float64 {
		p90 := quantile(ttft, 0.9)
		fmt.Fprintf(&b, "| %s | %.3f | %.3f | %.3f | %d of %d |\n", name, quantile(ttft, 0.5), p90, quantile(ttft, 0.99), stuck, came)
		return p90
	}
	// A machine that does other things too may spoil a round, not each of five.
	for try := 1; ; try++ {
		f.reload(t, config(pods))
		ttft, stuck, came := round("left out", func() { f.reload(t, config(pods[1:])) }, func() { f.reload(t, config(pods)) })
		healthy := row("is taken out by the configuration", ttft, stuck, came)
		ttft, stuck, came = round("frozen", pods[0].freeze, pods[0].thaw)
		frozen := row("freezes", ttft, stuck, came)
		if frozen <= worse*healthy && stuck == 0 {
			break
		}
		if try == 5 {
			t.Errorf("an engine that is frozen still gets %d requests; first tokens come %.2f times as late, %v are allowed", stuck, frozen/healthy, worse)
			break
		}
	}
	report(t, b.String())
}
