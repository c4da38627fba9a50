//go:build e2e && linux

package vllm_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// TestPredictions plays requests of all lengths to two engines of different speed, one with one thread and one with two, at 70 % of what
// they were seen to serve together, and compares when Fairway predicted the first token, and what it predicted for each after it, with what
// came. It measures, and fails only where nothing could be measured: what else the machine does is not predicted.
func TestPredictions(t *testing.T) {
	var engines [2]*engine
	for i := range engines {
		engines[i] = startEngineOf(t, fmt.Sprintf("predicted-engine-%d", i+1), process.FreeAddress(), i+1)
	}
	for _, e := range engines {
		e.awaitUp(t)
	}
	f := startFairway(t, "predicted-fairway", engines[:]...)
	for _, e := range engines { // so that nothing is measured that happens once
		post(t, e.url()+chatPath, chatBody("tiny", "Wake up.", 4))
	}
	draw := rand.New(rand.NewPCG(7, 8))

	begin := time.Now()
	const busy = 60
	play(t, f, draw, "Busy", busy, 0)
	rate := busy / time.Since(begin).Seconds()
	play(t, f, draw, "Calm", 400, .7*rate)

	var list struct{ Receipts []receipt }
	if err := json.Unmarshal(get(t, f.admin+"/receipts?limit=300").body, &list); err != nil { // those by which it has learned
		t.Fatal(err)
	}
	var first, each []float64
	by := make(map[string]int)
	for _, r := range list.Receipts {
		by[r.Endpoint]++
		if r.Predicted.TTFT > 0 && r.Actual.TTFT > 0 {
			first = append(first, math.Abs(r.Predicted.TTFT-r.Actual.TTFT)/r.Actual.TTFT)
		}
		if r.Predicted.TPOT > 0 && r.Actual.TPOT > 0 {
			each = append(each, math.Abs(r.Predicted.TPOT-r.Actual.TPOT)/r.Actual.TPOT)
		}
	}
	if len(first) < 200 || len(each) < 200 || len(by) != 2 {
		t.Fatalf("%d and %d predictions, requests by engine %v", len(first), len(each), by)
	}
	slices.Sort(first)
	slices.Sort(each)
	a, b := first[len(first)/2], each[len(each)/2]
	t.Logf("%.1f requests/s, 70 %% of %.1f; requests by engine (one thread, two): %d, %d; the median error is %.1f %% to the first token, %.1f %% of each after it",
		.7*rate, rate, by[engines[0].address], by[engines[1].address], 100*a, 100*b)
}

// receipt is what of a receipt is compared.
type receipt struct {
	Endpoint          string
	Predicted, Actual struct {
		TTFT float64 `json:"ttft_s"`
		TPOT float64 `json:"tpot_s"`
	}
}

// play sends n requests that share nothing, with prompts of 100 to 1,500 tokens, and waits for all of them: so many a second, by a Poisson
// process, or eight at once if that is 0.
func play(t *testing.T, f *fairway, draw *rand.Rand, name string, n int, rate float64) {
	t.Helper()
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i := range n {
		prompt := fmt.Sprintf("%s question %d: ", name, i) + strings.Repeat("what does the scheduler do then? ", 10+draw.IntN(150))
		body := chatBody("tiny", prompt, 16+draw.IntN(32)).with("ignore_eos", true)
		if rate > 0 {
			time.Sleep(time.Duration(draw.ExpFloat64() / rate * float64(time.Second)))
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
