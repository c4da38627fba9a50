package main

import (
	"flag"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/engine"
	"github.com/fairway-proxy/fairway/bench/load"
	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/bench/sim"
	"github.com/fairway-proxy/fairway/bench/workload"
)

var validate = flag.Float64("validate", 0, "hold the simulation to real sockets with mock engines at this speed: below 1 is slow motion, and less the machine's doing")

// played is one workload played both ways.
type played struct {
	workload string
	seed     uint64
	sim      outcome
	sockets  outcome
	lag      time.Duration // of the player, at the 99th percentile
}

// outcome is what is compared.
type outcome struct {
	requests, prompt int
	hits             float64 // share of the prompt tokens
	p50, p90         time.Duration
}

// scene is what is played: on so many H100 at that share of what they sustain.
type scene struct {
	workload        string
	params          workload.Params // its own where zero
	pods            int
	load            float64
	speed           float64
	warmup, measure time.Duration // at speed 1
}

// play plays the scene in virtual time, and through Fairway on real sockets with mock engines.
func (s scene) play(t *testing.T, seed uint64) played {
	const (
		eight  = 8                      // engines are what saturation rates are of
		scrape = 100 * time.Millisecond // the default
	)
	slow := func(d time.Duration) time.Duration { return time.Duration(float64(d) / s.speed) }
	saturation, ok := sim.SaturationRate(s.workload)
	if !ok {
		t.Fatalf("no saturation rate of %s", s.workload)
	}
	params := s.params
	params.Seed, params.Rate = seed, s.load*saturation*float64(s.pods)/eight*s.speed
	w, err := workload.New(s.workload, params)
	if err != nil {
		t.Fatal(err)
	}
	if think := w.Params().Think; think > 0 {
		params.Think = slow(think)
		w, _ = workload.New(s.workload, params)
	}

	one := engine.Profiles[0].Engine
	one.Speed = s.speed
	simulated, err := sim.Run(t.Context(), sim.Config{
		Workload: w, Policy: "fairway", Fleet: slices.Repeat([]engine.Config{one}, s.pods), Seed: seed,
		Warmup: slow(s.warmup), Measure: slow(s.measure), Scrape: slow(scrape),
	})
	if err != nil {
		t.Fatal(err)
	}

	f := startFleet(t, startPods(t, s.pods, mock.Config{Speed: s.speed})...)
	f.config.World.Scrape.Interval = slow(scrape)
	f.config.World.Timeouts.Connect = time.Minute // a machine that is busy otherwise takes long even for that
	f.apply(f.config)
	real, err := load.Run(t.Context(), load.Config{
		URL: f.url, Workload: w, Warmup: slow(s.warmup), Duration: slow(s.warmup + s.measure), Timeout: slow(time.Minute), IgnoreEOS: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if real.Failed > 0 || real.HitRate == nil {
		i := slices.IndexFunc(real.Records, func(r load.Record) bool { return r.Failed() })
		t.Fatalf("%d of %d requests failed: %v, one with %+v", real.Failed, real.Requests, real.Errors, real.Records[max(i, 0)])
	}
	return played{
		workload: s.workload, seed: seed, sim: simulatedOutcome(simulated), lag: real.SendLag.P99,
		sockets: outcome{real.Requests, real.PromptTokens, *real.HitRate, real.TTFT.P50, real.TTFT.P90},
	}
}

func simulatedOutcome(r *sim.Result) outcome {
	o := outcome{requests: len(r.Records)}
	cached := 0
	var ttft []time.Duration
	for _, rec := range r.Records {
		o.prompt += rec.PromptTokens
		cached += rec.CachedTokens
		ttft = append(ttft, rec.TTFT)
	}
	if len(ttft) == 0 {
		return o
	}
	slices.Sort(ttft)
	at := func(q float64) time.Duration { return ttft[int(math.Ceil(q*float64(len(ttft))))-1] }
	o.hits, o.p50, o.p90 = float64(cached)/float64(o.prompt), at(0.5), at(0.9)
	return o
}

// apart is by how much two figures differ.
func apart[T int | float64 | time.Duration](sim, real T) float64 {
	return float64(sim)/float64(real) - 1
}

// The simulation and real sockets are given the same requests, and find as much of them cached. With one engine that is no matter of
// time; how long requests take, and which engine they go to, is looked at by TestAgreement, in slow motion.
func TestSimulationPlaysWhatSocketsPlay(t *testing.T) {
	p := scene{
		workload: "shared-prefix-short", params: workload.Params{Groups: 4, AnswerTokens: 20}, pods: 1,
		load: 0.3, speed: 4, warmup: time.Second, measure: 8 * time.Second,
	}.play(t, 1)
	t.Logf("%+v", p)
	if p.sim.requests != p.sockets.requests || p.sim.requests < 10 || math.Abs(apart(p.sim.prompt, p.sockets.prompt)) > 0.02 {
		t.Errorf("%d requests of %d tokens simulated, %d of %d sent", p.sim.requests, p.sim.prompt, p.sockets.requests, p.sockets.prompt)
	}
	if math.Abs(p.sim.hits-p.sockets.hits) > 0.02 {
		t.Errorf("%.2f found cached in the simulation, %.2f on sockets", p.sim.hits, p.sockets.hits)
	}
}

// TestAgreement holds hit rates and times to first token of the simulation to those of real sockets, within 10 %.
func TestAgreement(t *testing.T) {
	if *validate <= 0 {
		t.Skip("it takes minutes: make bench-validate")
	}
	const seeds = 3
	scenes := []scene{
		{workload: "shared-prefix-short", params: workload.Params{Groups: 40, AnswerTokens: 100}, pods: 4, load: 0.7, warmup: 15 * time.Second, measure: 30 * time.Second},
		{workload: "chat", params: workload.Params{AnswerTokens: 100}, pods: 2, load: 0.7, warmup: 15 * time.Second, measure: 30 * time.Second},
		{workload: "rag", params: workload.Params{AnswerTokens: 100}, pods: 4, load: 0.7, warmup: 5 * time.Second, measure: 40 * time.Second},
		{workload: "unshared", params: workload.Params{AnswerTokens: 64}, pods: 1, load: 0.7, warmup: 5 * time.Second, measure: 40 * time.Second},
	}
	results := make([][]played, len(scenes))
	var mu sync.Mutex // guards results
	t.Run("play", func(t *testing.T) {
		for seed := range seeds {
			for i, s := range scenes {
				s.speed = *validate
				t.Run(fmt.Sprintf("%s-%d", s.workload, seed+1), func(t *testing.T) {
					t.Parallel() // they wait most of the time
					p := s.play(t, uint64(seed+1))
					mu.Lock()
					defer mu.Unlock()
					results[i] = append(results[i], p)
				})
			}
		}
	})
	if t.Failed() {
		return
	}
	t.Logf("at speed %v, simulated / on sockets", *validate)
	for _, list := range results {
		if len(list) == 0 {
			continue // -run chose others
		}
		n := float64(len(list))
		var mean, hits, p50, p90 float64
		for _, p := range list {
			t.Logf("%-20s seed %d: %d / %d requests, cached %.1f / %.1f %%, TTFT p50 %.0f / %.0f ms, p90 %.0f / %.0f ms; the player's lag %.1f ms", p.workload, p.seed,
				p.sim.requests, p.sockets.requests, 100*p.sim.hits, 100*p.sockets.hits, ms(p.sim.p50), ms(p.sockets.p50), ms(p.sim.p90), ms(p.sockets.p90), ms(p.lag))
			mean += p.sockets.hits / n
			hits += (p.sim.hits - p.sockets.hits) / n
			p50 += apart(p.sim.p50, p.sockets.p50) / n
			p90 += apart(p.sim.p90, p.sockets.p90) / n
		}
		t.Logf("%-20s the simulation differs by %+.1f points cached, %+.1f %% in p50, %+.1f %% in p90", list[0].workload, 100*hits, 100*p50, 100*p90)
		if math.Abs(hits) > max(0.1*mean, 0.01) || math.Abs(p50) > 0.1 || math.Abs(p90) > 0.1 {
			t.Errorf("%s: they differ by more than a tenth; where the player's lag is no small part of the times, the machine was busy otherwise: try again, or at a lower speed",
				list[0].workload)
		}
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
