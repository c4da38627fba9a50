package main

import (
	"flag"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/engine"
	"github.com/fairway-proxy/fairway/bench/load"
	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/bench/sim"
	"github.com/fairway-proxy/fairway/bench/workload"
	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/picker/queue"
	"github.com/fairway-proxy/fairway/proxy"
)

var overload = flag.Float64("overload", 0, "overload real sockets with mock engines at this speed: below 1 is slow motion, and less the machine's doing")

// ordeal is the mix at a share of what so many H100 sustain. Durations are at speed 1.
type ordeal struct {
	pods            int
	load            float64
	noQueue         bool
	warmup, measure time.Duration
}

// ended is what became of an ordeal, at speed 1.
type ended struct {
	classes [len(workload.Criticalities)]struct {
		requests, refused int
		p90               time.Duration // of the times to first token
	}
	goodput float64 // requests a second that kept the SLO
	tokens  float64 // generated a second, until the last answer
	failed  int     // neither served nor refused
	lag     time.Duration
}

func (o ordeal) workload(t *testing.T, seed uint64, speed float64) *workload.Workload {
	t.Helper()
	const eight = 8 // engines are what saturation rates are of
	saturation, _ := sim.SaturationRate("mix")
	w, err := workload.New("mix", workload.Params{Seed: seed, Rate: o.load * saturation * float64(o.pods) / eight * speed})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// simulated plays the ordeal in virtual time.
func (o ordeal) simulated(t *testing.T, seed uint64) (e ended) {
	t.Helper()
	r, err := sim.Run(t.Context(), sim.Config{
		Workload: o.workload(t, seed, 1), Policy: "fairway", Fleet: slices.Repeat([]engine.Config{engine.Profiles[0].Engine}, o.pods), Seed: seed,
		Warmup: o.warmup, Measure: o.measure, NoQueue: o.noQueue,
	})
	if err != nil {
		t.Fatal(err)
	}
	tokens := 0
	for i, name := range workload.Criticalities {
		var ttft []time.Duration
		for _, rec := range r.Records {
			if rec.Criticality != name {
				continue
			}
			ttft = append(ttft, rec.TTFT)
			tokens += rec.OutputTokens
			if rec.TTFT <= load.DefaultSLO.TTFT && rec.TPOT <= load.DefaultSLO.TPOT {
				e.goodput += 1 / o.measure.Seconds()
			}
		}
		c := &e.classes[i]
		for _, refused := range r.Refusals {
			if refused == name {
				c.refused++
			}
		}
		c.requests = len(ttft) + c.refused
		if slices.Sort(ttft); len(ttft) > 0 {
			c.p90 = ttft[int(math.Ceil(0.9*float64(len(ttft))))-1]
		}
	}
	e.tokens = float64(tokens) / max(o.measure, r.End-r.Start).Seconds()
	return e
}

// onSockets plays it through Fairway to mock engines.
func (o ordeal) onSockets(t *testing.T, seed uint64, speed float64) (e ended) {
	t.Helper()
	slow := func(d time.Duration) time.Duration { return time.Duration(float64(d) / speed) }
	objectives := map[string]string{}
	f := startFleetWith(t, func(c *file.Config) {
		for i, priority := range []int{queue.Critical, queue.Standard, queue.Sheddable} {
			name := strings.ToLower(workload.Criticalities[i])
			objectives[workload.Criticalities[i]] = name
			c.World.Objectives = append(c.World.Objectives, proxy.Objective{Name: name, Pool: "pool", Priority: priority})
		}
		c.World.RaisePriority = proxy.RaiseAnyone
		c.World.Queue = proxy.Queue{Off: o.noQueue, Wait: slow(queue.DefaultWait), SheddableWait: slow(queue.DefaultSheddableWait)}
		c.World.Scrape.Interval = slow(100 * time.Millisecond) // the default
	}, startPods(t, o.pods, mock.Config{Speed: speed})...)
	r, err := load.Run(t.Context(), load.Config{
		URL: f.url, Workload: o.workload(t, seed, speed), Objectives: objectives, Warmup: slow(o.warmup), Duration: slow(o.warmup + o.measure), IgnoreEOS: true,
		SLO: load.SLO{TTFT: slow(load.DefaultSLO.TTFT), TPOT: slow(load.DefaultSLO.TPOT)},
	})
	if err != nil {
		t.Fatal(err)
	}
	e.lag = r.SendLag.P99
	e.tokens = float64(r.CompletionTokens) / max(slow(o.measure).Seconds(), r.Elapsed) / speed
	e.goodput = float64(r.Good) / o.measure.Seconds()
	for _, c := range r.Classes {
		own := &e.classes[slices.Index(workload.Criticalities[:], c.Criticality)]
		own.requests, own.refused, own.p90 = c.Requests, c.Refused, time.Duration(float64(c.TTFT.P90)*speed)
		e.failed += c.Failed
	}
	if e.failed > 0 {
		i := slices.IndexFunc(r.Records, func(rec load.Record) bool { return rec.Failed() && !rec.Refused() })
		t.Errorf("%d requests failed, one with %s: %s", e.failed, r.Records[i].Error, r.Records[i].Detail)
	}
	return e
}

// mean is of what f says of each seed, with its standard deviation.
func mean(seeds []ended, f func(ended) float64) (mean, deviation float64) {
	n := float64(len(seeds))
	for _, e := range seeds {
		mean += f(e) / n
	}
	for _, e := range seeds {
		deviation += (f(e) - mean) * (f(e) - mean) / max(n-1, 1)
	}
	return mean, math.Sqrt(deviation)
}

func (e ended) row() string {
	var b strings.Builder
	for _, c := range e.classes {
		fmt.Fprintf(&b, "%d requests, %d refused, p90 %.0f ms; ", c.requests, c.refused, ms(c.p90))
	}
	fmt.Fprintf(&b, "goodput %.1f/s, %.0f tokens/s; the player's lag %.1f ms", e.goodput, e.tokens, ms(e.lag))
	return b.String()
}

// TestOverload holds on real sockets what the queue is for: under overload, who is worth the most hardly notices.
func TestOverload(t *testing.T) {
	if *overload <= 0 {
		t.Skip("it takes minutes: make bench-overload-sockets")
	}
	const seeds = 5
	var ordeals []ordeal
	for _, share := range []float64{0.5, 1.5} {
		for _, noQueue := range []bool{false, true} {
			ordeals = append(ordeals, ordeal{pods: 6, load: share, noQueue: noQueue, warmup: 15 * time.Second, measure: 20 * time.Second})
		}
	}
	var mu sync.Mutex // guards what follows
	real, simulated := map[ordeal][]ended{}, map[ordeal][]ended{}
	for seed := uint64(1); seed <= seeds; seed++ { // one after another: an overload has thousands of connections
		t.Run(fmt.Sprintf("seed-%d", seed), func(t *testing.T) {
			for _, o := range ordeals {
				t.Run(o.name(), func(t *testing.T) {
					t.Parallel()
					virtual, e := o.simulated(t, seed), o.onSockets(t, seed, *overload)
					t.Logf("simulated: %s", virtual.row())
					t.Logf("on sockets: %s", e.row())
					mu.Lock()
					defer mu.Unlock()
					real[o], simulated[o] = append(real[o], e), append(simulated[o], virtual)
				})
			}
		})
	}
	if t.Failed() {
		return
	}
	var table strings.Builder
	for _, o := range ordeals {
		if len(real[o]) == 0 {
			return // -run chose others
		}
		o.rows(&table, "on sockets", real[o])
		o.rows(&table, "simulated", simulated[o])
	}
	t.Logf("at speed %v, %d seeds:\n%s", *overload, seeds, &table)

	calm, queued, unqueued := real[ordeals[0]], real[ordeals[2]], real[ordeals[3]]
	critical := func(e ended) float64 { return ms(e.classes[0].p90) }
	before, _ := mean(calm, critical)
	after, _ := mean(queued, critical)
	t.Logf("Critical's p90 at 150 %% is %.2f times that at 50 %%", after/before)
	if after > 1.25*before {
		t.Errorf("Critical's p90 is more than 1.25 times as long under overload")
	}
	for _, e := range append(slices.Clone(calm), queued...) {
		if n := e.classes[0].refused; n > 0 {
			t.Errorf("%d Critical requests were refused", n)
		}
	}
	with, _ := mean(queued, func(e ended) float64 { return e.goodput })
	without, _ := mean(unqueued, func(e ended) float64 { return e.goodput })
	if with <= without {
		t.Errorf("goodput %.1f/s with the queue, %.1f/s without", with, without)
	}
	with, _ = mean(queued, func(e ended) float64 { return e.tokens })
	without, _ = mean(unqueued, func(e ended) float64 { return e.tokens })
	t.Logf("the queue changes the tokens a second under overload by %+.1f %%", 100*(with/without-1))
	if with < 0.97*without {
		t.Errorf("%.0f tokens/s with the queue, %.0f without", with, without)
	}
}

func (o ordeal) name() string {
	if o.noQueue {
		return fmt.Sprintf("%.0f %%, no queue", 100*o.load)
	}
	return fmt.Sprintf("%.0f %%, queue", 100*o.load)
}

// rows writes a row of the page's table.
func (o ordeal) rows(b *strings.Builder, how string, seeds []ended) {
	fmt.Fprintf(b, "| %s | %s |", o.name(), how)
	for i := range workload.Criticalities {
		refused, _ := mean(seeds, func(e ended) float64 { return float64(e.classes[i].refused) / float64(max(e.classes[i].requests, 1)) })
		served := slices.DeleteFunc(slices.Clone(seeds), func(e ended) bool { return e.classes[i].p90 == 0 })
		if p90, sd := mean(served, func(e ended) float64 { return e.classes[i].p90.Seconds() }); p90 > 0 {
			fmt.Fprintf(b, " %.3g ± %.2g |", p90, sd)
		} else {
			b.WriteString(" – |")
		}
		fmt.Fprintf(b, " %.0f %% |", 100*refused)
	}
	goodput, _ := mean(seeds, func(e ended) float64 { return e.goodput })
	tokens, _ := mean(seeds, func(e ended) float64 { return e.tokens })
	fmt.Fprintf(b, " %.1f | %.0f |\n", goodput, tokens)
}
