package sim

import (
	"context"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/workload"
)

// With pods that compute prompts for the others, every request is served by one of the others, and the engines agree on what was
// computed where.
func TestPrefillPods(t *testing.T) {
	w, err := workload.New("unshared", workload.Params{Seed: 1, Rate: 40})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Workload: w, Policy: "fairway", Fleet: sceneOf("unshared").fleet, Prefill: 2, RemotePrefill: 64, Warmup: time.Second, Measure: 10 * time.Second, Seed: 1}
	res, err := Run(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	first := len(cfg.Fleet) - cfg.Prefill
	remote := 0
	for i := range res.Records {
		r := &res.Records[i]
		if r.Pod >= first {
			t.Fatalf("a request was sent to pod %d, which computes prompts", r.Pod)
		}
		if r.Remote {
			remote++
		}
		if r.TTFT <= 0 || r.E2E < r.TTFT {
			t.Errorf("%+v", r)
		}
	}
	var received, prompts uint64
	for i, e := range res.Engines {
		if i < first {
			received += e.PromptTokensReceived
		} else {
			prompts += e.PromptTokens
			if e.GenerationTokens != e.Finished {
				t.Errorf("pod %d has generated %d tokens for %d prompts", i, e.GenerationTokens, e.Finished)
			}
		}
	}
	if remote == 0 || received == 0 || received > prompts {
		t.Errorf("%d of %d requests had their prompts computed elsewhere: %d tokens of %d", remote, len(res.Records), received, prompts)
	}
	cfg.Policy = "round-robin"
	if _, err := Run(context.Background(), cfg); err == nil {
		t.Error("a policy that knows no such pods plays with them")
	}
}
