package sim

import (
	"context"
	"reflect"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/workload"
	"github.com/fairway-proxy/fairway/picker"
)

// play runs a workload for a few virtual seconds.
func play(t *testing.T, name string, rate float64, change func(*Config)) *Result {
	t.Helper()
	w, err := workload.New(name, workload.Params{Seed: 1, Rate: rate})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Workload: w, Policy: "fairway", Fleet: sceneOf(name).fleet, Seed: 1, Warmup: 3 * time.Second, Measure: 5 * time.Second}
	if change != nil {
		change(&cfg)
	}
	r, err := Run(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSameSeedSameResult(t *testing.T) {
	for _, policy := range Policies() {
		with := func(seed uint64) *Result {
			return play(t, "chat", 40, func(c *Config) {
				c.Policy, c.Seed, c.Replicas, c.Measure, c.Churn = policy, seed, 2, 3*time.Second, 4*time.Second
			})
		}
		if a, b := with(1), with(1); !reflect.DeepEqual(a, b) {
			t.Errorf("%s: two runs differ", policy)
		}
	}
}

// Every request that is due is served, whatever the policy, also while pods come and go and where the fleet does not keep up.
func TestEveryRequestEnds(t *testing.T) {
	for _, policy := range Policies() {
		for _, rate := range []float64{10, 50} {
			r := play(t, "shared-prefix-short", rate, func(c *Config) {
				c.Policy, c.Warmup, c.Measure, c.Churn, c.Fleet = policy, 0, 4*time.Second, 2*time.Second, c.Fleet[:3]
			})
			due := 0
			w, _ := workload.New("shared-prefix-short", workload.Params{Seed: 1, Rate: rate})
			for s := range w.Sessions() {
				if s.Start >= 4*time.Second {
					break
				}
				due++
			}
			finished := 0
			for _, e := range r.Engines {
				finished += int(e.Finished)
				if e.Running+e.Waiting > 0 || e.KVUsage > 0 {
					t.Errorf("%s: an engine is left with %+v", policy, e)
				}
			}
			if len(r.Records) != due || finished != due {
				t.Errorf("%s: %d requests were due, %d measured, %d finished by engines", policy, due, len(r.Records), finished)
			}
			if len(r.Engines) < 4 {
				t.Errorf("%s: nobody joined", policy)
			}
		}
	}
}

func TestFairwayBeatsRoundRobin(t *testing.T) {
	c := Comparison{
		Workload: "shared-prefix", Load: 0.6, Seeds: 2, Policies: []string{"round-robin", "fairway"},
		Warmup: 60 * time.Second, Measure: 10 * time.Second,
	}
	rows, err := c.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	rr, fw := rows[0], rows[1]
	if rr.Policy != "round-robin" || fw.Policy != "fairway" || fw.Seeds != 2 || fw.Requests != rr.Requests {
		t.Fatalf("rows %+v", rows)
	}
	if fw.TTFTP90 > rr.TTFTP90/2 || fw.HitRate < rr.HitRate+0.1 {
		t.Errorf("p90 %.3f s against %.3f, hits %.2f against %.2f", fw.TTFTP90, rr.TTFTP90, fw.HitRate, rr.HitRate)
	}
}

// A prompt that no engine can hold is refused, as vLLM refuses it, and counted.
func TestTooLongIsRefused(t *testing.T) {
	r := play(t, "unshared", 10, func(c *Config) {
		c.Warmup = 0
		for i := range c.Fleet {
			c.Fleet[i].Blocks = 20
		}
	})
	if r.Refused == 0 || len(r.Records) > 0 {
		t.Errorf("%d refused, %d served", r.Refused, len(r.Records))
	}
}

// What a run may not see is not used: without metrics, and with answers that come whole, everything still ends.
func TestWithoutMetricsAndStreams(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no metrics":   func(c *Config) { c.Scrape = -1 },
		"no streams":   func(c *Config) { c.NonStreaming = true },
		"no reports":   func(c *Config) { c.NoCacheReport = true },
		"all of these": func(c *Config) { c.Scrape, c.NonStreaming, c.NoCacheReport = -1, true, true },
	} {
		r := play(t, "shared-prefix-short", 20, change)
		hits, prompts := 0, 0
		for _, rec := range r.Records {
			hits, prompts = hits+rec.CachedTokens, prompts+rec.PromptTokens
			if (rec.TTFT == rec.E2E) != (name == "no streams" || name == "all of these") {
				t.Fatalf("%s: %+v", name, rec)
			}
		}
		if share := float64(hits) / float64(prompts); share < 0.25 { // by lot, hardly anything would be
			t.Errorf("%s: %.2f cached", name, share)
		}
	}
}

// With more adapters than the fleet has room for, the score keeps them in place: without what an adapter costs, each request
// brings more of them to a GPU.
func TestAdaptersStayInPlace(t *testing.T) {
	loads := func(without picker.Term) float64 {
		c := Comparison{
			Workload: "adapters", Groups: 40, Rate: 100, Policies: []string{"fairway"}, Without: without,
			Warmup: 30 * time.Second, Measure: 20 * time.Second,
		}
		rows, err := c.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return rows[0].Loads
	}
	aware, blind := loads(0), loads(picker.AdapterCost)
	t.Logf("%.4f loads a request, without the term %.4f", aware, blind)
	if aware <= 0 || aware > blind*0.8 {
		t.Errorf("%.4f loads a request, without the term %.4f: want a fifth fewer at least", aware, blind)
	}
}
