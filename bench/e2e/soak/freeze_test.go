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

// TestFreeze stops one of four engines, as SIGSTOP does, and compares the first tokens of requests that come from two seconds
// later on with those of three healthy engines under the same load.
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

	// round plays the traffic, has spoil done to it, and gives the 90th percentile of the first tokens after that.
	round := func(name string, spoil, mend func()) float64 {
		l := newLedger(t, j)
		l.begin(name, -1)
		var mu sync.Mutex
		var ttft []float64
		var from, until time.Time
		ctx, stop := context.WithCancel(t.Context())
		tr := &traffic{client: c, questions: questions, rate: rate}
		tr.told = func(q *question, o *outcome) {
			l.enter(q, o)
			mu.Lock()
			defer mu.Unlock()
			if o.stream && o.start.After(from) && o.start.Before(until) {
				ttft = append(ttft, o.ttft.Seconds())
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
		return quantile(ttft, 0.9)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%.1f requests a second, 70 %% of what 3 engines can do.\n\n| 4 engines, of which one | TTFT p90 s, from %v later on |\n|---|---|\n", rate, noticed)
	// A machine that does other things too may spoil a round, not all of them.
	for try := 1; ; try++ {
		f.reload(t, config(pods))
		healthy := round("left out", func() { f.reload(t, config(pods[1:])) }, func() { f.reload(t, config(pods)) })
		frozen := round("frozen", pods[0].freeze, pods[0].thaw)
		fmt.Fprintf(&b, "| is taken out by the configuration | %.3f |\n| freezes | %.3f (%.2f×) |\n", healthy, frozen, frozen/healthy)
		if frozen <= worse*healthy {
			break
		}
		if try == 3 {
			t.Errorf("the freeze of one engine makes first tokens later by more than %v times", worse)
			break
		}
	}
	report(t, b.String())
}
