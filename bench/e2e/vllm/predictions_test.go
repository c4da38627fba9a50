//go:build e2e && linux

package vllm_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// TestPredictions plays requests of all lengths to two engines of different speed at 70 % of what they were seen to serve together, and
// compares when Fairway predicted the first token, and what it predicted for each after it, with what came. One engine has one thread,
// the other two, and computes with numbers of twice the length. First it says what is not to be predicted: by how much the same request
// differs from the median of its like when nobody else asks anything of the engine.
//
// It measures, and fails only where nothing could be measured: what else the machine does is not predicted.
func TestPredictions(t *testing.T) {
	for _, tt := range []struct {
		name   string
		places [2]place
	}{
		{"a core each", [2]place{{cpus: "0", threads: 1, passive: true}, {cpus: "1", threads: 2, passive: true}}},
		{"cores shared", [2]place{{threads: 1, passive: true}, {threads: 2, passive: true}}},
		{"cores shared, threads that spin", [2]place{{threads: 1}, {threads: 2}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.places[0].cpus != "" && runtime.NumCPU() < 2 {
				t.Skip("there is one core")
			}
			predictions(t, tt.places)
		})
	}
}

func predictions(t *testing.T, places [2]place) {
	var engines [2]*engine
	for i, flags := range [2][]string{{}, {"--dtype", "float32"}} {
		engines[i] = startEngineIn(t, places[i], fmt.Sprintf("predicted-engine-%d", i+1), process.FreeAddress(), flags...)
	}
	for _, e := range engines {
		e.awaitUp(t)
	}
	for i, e := range engines {
		floor(t, fmt.Sprintf("engine %d, the other idle", i+1), e)
		stop := keepBusy(t, engines[1-i])
		floor(t, fmt.Sprintf("engine %d, the other busy", i+1), e)
		stop()
	}
	var first, each []float64
	for repetition := range *repetitions {
		t.Run(fmt.Sprint(repetition+1), func(t *testing.T) {
			a, b := predicted(t, engines, uint64(repetition))
			first, each = append(first, a), append(each, b)
		})
	}
	slices.Sort(first)
	slices.Sort(each)
	if n := len(first); n > 0 {
		t.Logf("of %d runs: the median error is %.0f (%.0f–%.0f) %% to the first token, %.0f (%.0f–%.0f) %% of each after it", n,
			first[n/2], first[0], first[n-1], each[n/2], each[0], each[n-1])
	}
}

// floor tells how the time to the first token varies among requests of the same length, one after the other.
func floor(t *testing.T, name string, e *engine) {
	t.Helper()
	for _, sentences := range []int{20, 80, 150} {
		var took []float64
		for i := range 25 {
			body := chatBody("tiny", prompt(fmt.Sprintf("%s, %d %2d", name, sentences, i), sentences), 4).with("ignore_eos", true)
			begin := time.Now()
			s := openStream(t, t.Context(), e.url(), apis[0], body)
			s.awaitText(t)
			if i >= 5 { // so that nothing is measured that happens once
				took = append(took, time.Since(begin).Seconds())
			}
			s.rest(t)
		}
		slices.Sort(took)
		median := took[len(took)/2]
		var off []float64
		for _, y := range took {
			off = append(off, math.Abs(median-y)/y)
		}
		slices.Sort(off)
		t.Logf("%s: %d sentences: the first token after %.0f ms (%.0f–%.0f for eight of ten); the median differs from each by %.1f %% in the median", name, sentences,
			1e3*median, 1e3*took[len(took)/10], 1e3*took[len(took)*9/10], 100*off[len(off)/2])
	}
}

// keepBusy has an engine answer three requests at a time, until stop.
func keepBusy(t *testing.T, e *engine) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				openStream(t, context.Background(), e.url(), apis[0],
					chatBody("tiny", prompt(fmt.Sprintf("Busy %d, %d of %s", i, n, e.Name), 80), 32).with("ignore_eos", true)).rest(t)
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

// predicted plays once, through a Fairway that has yet to learn, and returns the median errors in percent.
func predicted(t *testing.T, engines [2]*engine, seed uint64) (first, each float64) {
	t.Helper()
	f := startFairway(t, "predicted-fairway", engines[:]...)
	draw := rand.New(rand.NewPCG(7, seed))
	begin := time.Now()
	const busy = 120
	play(t, f, draw, fmt.Sprintf("Busy %d", seed), busy, 0)
	rate := busy / time.Since(begin).Seconds()
	play(t, f, draw, fmt.Sprintf("Calm %d", seed), 400, .7*rate)

	var list struct{ Receipts []receipt }
	if err := json.Unmarshal(get(t, f.admin+"/receipts?limit=300").body, &list); err != nil { // those by which it has learned
		t.Fatal(err)
	}
	var off struct{ first, each, one, other []float64 }
	for _, r := range list.Receipts {
		if r.Predicted.TTFT > 0 && r.Actual.TTFT > 0 {
			o := 100 * math.Abs(r.Predicted.TTFT-r.Actual.TTFT) / r.Actual.TTFT
			off.first = append(off.first, o)
			if r.Endpoint == engines[0].address {
				off.one = append(off.one, o)
			} else {
				off.other = append(off.other, o)
			}
		}
		if r.Predicted.TPOT > 0 && r.Actual.TPOT > 0 {
			off.each = append(off.each, 100*math.Abs(r.Predicted.TPOT-r.Actual.TPOT)/r.Actual.TPOT)
		}
	}
	if len(off.first) < 200 || len(off.each) < 200 || len(off.one) == 0 || len(off.other) == 0 {
		t.Fatalf("%d and %d predictions, %d and %d of the engines", len(off.first), len(off.each), len(off.one), len(off.other))
	}
	for _, s := range [][]float64{off.first, off.each, off.one, off.other} {
		slices.Sort(s)
	}
	median := func(s []float64) float64 { return s[len(s)/2] }
	t.Logf("%.1f requests/s, 70 %% of %.1f; the median error is %.1f %% to the first token (%.1f %% of %d at engine 1, %.1f %% of %d at engine 2; nine of ten within %.0f %%), %.1f %% of each after it",
		.7*rate, rate, median(off.first), median(off.one), len(off.one), median(off.other), len(off.other), off.first[len(off.first)*9/10], median(off.each))
	return median(off.first), median(off.each)
}

// receipt is what of a receipt is compared.
type receipt struct {
	Endpoint          string
	Predicted, Actual struct {
		TTFT float64 `json:"ttft_s"`
		TPOT float64 `json:"tpot_s"`
	}
}

// prompt says that many sentences, of ten tokens each, and shares no beginning with those of other names.
func prompt(name string, sentences int) string {
	return name + ": " + strings.Repeat("what does the scheduler do then? ", sentences)
}

// play sends n requests that share nothing, with prompts of 100 to 1,600 tokens, and waits for all of them: so many a second, by a Poisson
// process, or eight at once if that is 0.
func play(t *testing.T, f *fairway, draw *rand.Rand, name string, n int, rate float64) {
	t.Helper()
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	due := time.Now()
	for i := range n {
		body := chatBody("tiny", prompt(fmt.Sprintf("%s, question %d", name, i), 10+draw.IntN(150)), 16+draw.IntN(32)).with("ignore_eos", true)
		if rate > 0 {
			due = due.Add(time.Duration(draw.ExpFloat64() / rate * float64(time.Second)))
			time.Sleep(time.Until(due))
		} else {
			slots <- struct{}{}
		}
		wg.Go(func() {
			openStream(t, context.Background(), f.origin, apis[0], body).rest(t)
			if rate == 0 {
				<-slots
			}
		})
	}
	wg.Wait()
}
