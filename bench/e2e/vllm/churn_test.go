//go:build e2e && linux

package vllm_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// churned is what came of a request for an adapter.
type churned struct {
	adapter, engine string
	first           time.Time     // of its first token
	waited          time.Duration // until then
}

// TestAdapterChurn plays the same traffic for three adapters, of which each of two engines has room for one, through Fairway and to
// the engines in turn. Each time that an engine answers for another adapter than before it has had to load it.
func TestAdapterChurn(t *testing.T) {
	var engines [2]*engine
	for i := range engines {
		engines[i] = startEngine(t, fmt.Sprintf("churn-engine-%d", i+1), process.FreeAddress(),
			"adapter-3="+filepath.Join(os.Getenv("E2E_MODELS"), "adapter-3"), "--max-loras", "1")
	}
	for _, e := range engines {
		e.awaitUp(t)
	}
	f := startFairway(t, "churn-fairway", engines[:]...)
	all := append(slices.Clone(adapters), "adapter-3")
	var origins [2]string
	for i, e := range engines {
		origins[i] = e.url()
		for _, a := range all { // once, so that neither run pays for the first
			post(t, e.url()+chatPath, chatBody(a, "Wake up.", 4))
		}
	}

	blind := churn(t, "Blind", all, func(i int) string { return origins[i%2] })
	aware := churn(t, "Aware", all, func(int) string { return f.origin })
	for _, r := range []struct {
		name string
		all  []churned
	}{{"engines in turn", blind}, {"through Fairway", aware}} {
		ttft := make([]time.Duration, len(r.all))
		for i, c := range r.all {
			ttft[i] = c.waited
		}
		slices.Sort(ttft)
		t.Logf("%s: %d requests, %.2f loads a request, TTFT p50 %v, p90 %v", r.name, len(r.all), float64(loads(r.all))/float64(len(r.all)),
			ttft[len(ttft)/2].Round(time.Millisecond), ttft[len(ttft)*9/10].Round(time.Millisecond))
	}
	if a, b := loads(aware), loads(blind); a*10 > b*7 {
		t.Errorf("through Fairway adapters were loaded %d times, in turn %d times: want 30 %% fewer", a, b)
	}
}

// loads is how often an engine answered for another adapter than before: it runs one at a time.
func loads(all []churned) (n int) {
	slices.SortFunc(all, func(a, b churned) int { return a.first.Compare(b.first) })
	last := make(map[string]string)
	for _, c := range all {
		if last[c.engine] != c.adapter {
			n++
		}
		last[c.engine] = c.adapter
	}
	return n
}

// churn asks for adapters by lot, the first the most often, four requests at a time. The name makes the prompts unlike any others.
func churn(t *testing.T, name string, adapters []string, origin func(i int) string) (all []churned) {
	const requests, atOnce = 80, 4
	draw := rand.New(rand.NewPCG(1, 2))
	queue := make(chan int, requests)
	asked := make([]string, requests)
	for i := range asked {
		asked[i] = adapters[[...]int{0, 0, 0, 1, 1, 2}[draw.IntN(6)]]
		queue <- i
	}
	close(queue)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range atOnce {
		wg.Go(func() {
			for i := range queue {
				c := askAdapter(t, name, asked[i], i, origin(i))
				mu.Lock()
				all = append(all, c)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return all
}

// askAdapter asks an adapter, below its own system prompt, for a few tokens.
func askAdapter(t *testing.T, name, adapter string, i int, origin string) churned {
	system := name + " of " + adapter + ". " + strings.Repeat("Answer with care and in order. ", 40)
	question := fmt.Sprintf("Question %d: ", i) + strings.Repeat("what does the scheduler do then? ", 10)
	begin := time.Now()
	s := openStream(t, context.Background(), origin, apis[0], object{
		"model": adapter, "messages": []message{{"system", system}, {"user", question}}, "temperature": 0, "max_tokens": 24, "ignore_eos": true,
	})
	c := churned{adapter: adapter, engine: s.endpoint()}
	if c.engine == "" {
		c.engine = strings.TrimPrefix(origin, "http://")
	}
	s.awaitText(t)
	c.first = time.Now()
	c.waited = c.first.Sub(begin)
	s.rest(t)
	return c
}
