package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/fairway-proxy/fairway/bench/engine"
	"github.com/fairway-proxy/fairway/bench/workload"
	"github.com/fairway-proxy/fairway/picker"
)

// SLO is what a request must keep to count for Row.Goodput. The zero value is a first token within 1 s and 100 ms a token after it.
type SLO struct {
	TTFT time.Duration // at most; 0: 1 s
	TPOT time.Duration // at most, in the mean; 0: 100 ms
}

func (s SLO) withDefaults() SLO {
	return SLO{TTFT: cmp.Or(s.TTFT, time.Second), TPOT: cmp.Or(s.TPOT, 100*time.Millisecond)}
}

func (s SLO) met(r *Record) bool {
	s = s.withDefaults()
	return r.TTFT <= s.TTFT && r.TPOT <= s.TPOT
}

// Comparison plays a workload through several policies, with the same seeds for each.
type Comparison struct {
	Workload      string             // a name that package workload knows
	Trace         *workload.Workload // played instead of a named one, at Load times its recorded rate; the same for every seed
	Load          float64            // fraction of the workload's saturation rate
	Rate          float64            // requests a second, instead of Load; 0: as Load says
	Policies      []string           // nil: all
	Seeds         int                // 1 to Seeds; 0: 1
	Replicas      int                // of the router; 0: 1
	Burst         int                // as in workload.Params
	Groups        int                // likewise
	SLO           SLO
	Costs         []float64 // what a second of each pod costs, in turn; Fairway is told of that and of the SLO. nil: of neither
	ByCriticality bool      // a row for each criticality instead of one for all

	// As in Config; 0: as the workload needs.
	Scrape, Warmup, Measure, Churn time.Duration
	NonStreaming, NoCacheReport    bool
	Without                        picker.Term
	NoQueue                        bool // Fairway sends every request at once
	Prefill                        int  // pods that compute prompts for the others, of those that there are
	RemotePrefill                  int  // from how many uncached tokens on
	Transfer                       time.Duration
	CacheTokens                    int  // of each pod, instead of what its GPU has room for; 0: that
	GiveUp                         bool // on a run as soon as more than a tenth of its first tokens were later than 5 s

	// Done is called after each run with how many there were and will be, never by two goroutines at once; nil: nobody looks.
	Done func(done, total int)
}

// A Row is what came of one policy, over all seeds. Its JSON is read by others' scripts.
type Row struct {
	Workload    string    `json:"workload"`
	Policy      string    `json:"policy"`
	Load        float64   `json:"load"`
	Replicas    int       `json:"replicas"`
	Seeds       int       `json:"seeds"`                 // that it is made of
	Criticality string    `json:"criticality,omitempty"` // of its requests; "": all
	Requests    int       `json:"requests"`              // measured, over all seeds, and refused
	Refused     int       `json:"refused"`               // of these, by the router or, for being too long, by the engine
	TTFTP50     float64   `json:"ttft_p50_s"`            // this and all below: mean over the seeds
	TTFTP90     float64   `json:"ttft_p90_s"`
	TTFTP90SD   float64   `json:"ttft_p90_sd"` // standard deviation over the seeds
	TTFTP90s    []float64 `json:"-"`           // of each seed, the lowest first; +Inf: it was given up
	TPOTP90     float64   `json:"tpot_p90_s"`
	GapP90      float64   `json:"gap_p90_s"` // of the longest between two tokens of a request
	E2EP90      float64   `json:"e2e_p90_s"`
	HitRate     float64   `json:"hit_rate"`                // prompt tokens found cached
	Goodput     float64   `json:"goodput"`                 // requests a second that met the SLO
	TokensPerS  float64   `json:"tokens_per_s"`            // generated
	Loads       float64   `json:"adapter_loads,omitempty"` // LoRA adapters brought to a GPU, a request
	Remote      float64   `json:"remote,omitempty"`        // requests whose prompt another pod computed, as a share
	Met         float64   `json:"slo_met"`                 // share of the requests, those refused included, that met the SLO
	Cost        float64   `json:"cost"`                    // of a request: by how many seconds it made its engine's steps longer, times what a second there costs
	TTFTError   float64   `json:"ttft_error,omitempty"`    // median of how far the time to first token, as predicted at the pick, was off, as a share of it
	TPOTError   float64   `json:"tpot_error,omitempty"`    // likewise of the time of each token after the first
}

// RequestRate is how many requests a second the comparison offers.
func (c *Comparison) RequestRate() (float64, error) {
	switch {
	case c.Rate > 0:
		return c.Rate, nil
	case c.Trace != nil:
		return c.Load * c.Trace.Params().Rate, nil
	}
	saturation, ok := SaturationRate(c.Workload)
	if !ok {
		return 0, fmt.Errorf("the saturation rate of workload %q has not been measured: give a rate instead of a load", c.Workload)
	}
	return c.Load * saturation, nil
}

// config is one run.
func (c *Comparison) config(policy string, seed uint64) (Config, error) {
	rate, err := c.RequestRate()
	if err != nil {
		return Config{}, err
	}
	w := c.Trace
	if w != nil {
		w = w.At(rate)
	} else if w, err = workload.New(c.Workload, workload.Params{Seed: seed, Rate: rate, Burst: c.Burst, Groups: c.Groups}); err != nil {
		return Config{}, err
	}
	scene := sceneOf(c.Workload)
	cfg := Config{
		Workload: w, Policy: policy, Fleet: scene.fleet, Replicas: c.Replicas, Seed: seed,
		Warmup: scene.warmup, Measure: scene.measure, Scrape: c.Scrape, Churn: c.Churn,
		NonStreaming: c.NonStreaming, NoCacheReport: c.NoCacheReport, Without: c.Without, NoQueue: c.NoQueue,
		Prefill: c.Prefill, RemotePrefill: c.RemotePrefill, Transfer: c.Transfer,
		SLO: c.SLO.withDefaults(), Costs: c.Costs, Asked: len(c.Costs) > 0,
	}
	for i := range cfg.Fleet {
		if c.CacheTokens > 0 {
			cfg.Fleet[i].Blocks = c.CacheTokens / engine.BlockSize
		}
	}
	if c.Trace != nil { // the beginning of a trace fills the caches
		cfg.Warmup, cfg.Measure = w.Length()/10, w.Length()-w.Length()/10
	}
	if c.Warmup > 0 {
		cfg.Warmup = c.Warmup
	}
	if c.Measure > 0 {
		cfg.Measure = c.Measure
	}
	if c.GiveUp {
		cfg.tolerate(rate)
	}
	return cfg, nil
}

// Run plays everything, as many runs at once as there are processors. When ctx ends it returns the rows of what was played until then,
// and ctx's error.
func (c *Comparison) Run(ctx context.Context) ([]Row, error) {
	names := c.Policies
	if len(names) == 0 {
		names = Policies()
	}
	seeds := max(c.Seeds, 1)
	jobs := make([]Config, 0, len(names)*seeds)
	for seed := range seeds { // the seeds are the outer loop: whoever interrupts has something of every policy
		for _, name := range names {
			if _, err := policyNamed(name); err != nil {
				return nil, err
			}
			cfg, err := c.config(name, uint64(seed+1))
			if err != nil {
				return nil, err
			}
			jobs = append(jobs, cfg)
		}
	}
	results, err := runAll(ctx, jobs, c.Done)
	rows := make([]Row, 0, len(names))
	for i, name := range names {
		var own []*Result
		for j := i; j < len(results); j += len(names) {
			if results[j] != nil {
				own = append(own, results[j])
			}
		}
		for _, criticality := range c.classes(own) {
			if row, ok := c.row(name, criticality, own); ok {
				rows = append(rows, row)
			}
		}
	}
	return rows, err
}

// runAll plays the configurations; the result of one that did not end is nil.
func runAll(ctx context.Context, jobs []Config, done func(done, total int)) ([]*Result, error) {
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex // guards what follows
		next    int
		ended   int
		first   error
		results = make([]*Result, len(jobs))
	)
	work := func() {
		for {
			mu.Lock()
			i := next
			next++
			stop := first != nil
			mu.Unlock()
			if i >= len(jobs) || stop {
				return
			}
			r, err := Run(ctx, jobs[i])
			if errors.Is(err, errUnsustained) {
				r, err = &Result{givenUp: true}, nil
			}
			mu.Lock()
			results[i] = r
			if err != nil && first == nil {
				first = err
			}
			if ended++; err == nil && done != nil {
				done(ended, len(jobs))
			}
			mu.Unlock()
		}
	}
	for range min(runtime.GOMAXPROCS(0), len(jobs)) {
		wg.Go(work)
	}
	wg.Wait()
	return results, first
}

// classes are the criticalities to make rows of.
func (c *Comparison) classes(results []*Result) []string {
	if !c.ByCriticality {
		return []string{""}
	}
	var found []string
	for _, r := range results {
		for i := range r.Records {
			if k := classOf(r.Records[i].Criticality); !slices.Contains(found, k) {
				found = append(found, k)
			}
		}
		for _, k := range r.Refusals {
			if !slices.Contains(found, classOf(k)) {
				found = append(found, classOf(k))
			}
		}
	}
	slices.Sort(found)
	return found
}

// classOf is a request's criticality.
func classOf(k string) string {
	if k == "" {
		return "Standard"
	}
	return k
}

// row sums up the seeds of one policy.
func (c *Comparison) row(policy, class string, results []*Result) (Row, bool) {
	row := Row{Workload: c.Workload, Policy: policy, Load: c.Load, Replicas: max(c.Replicas, 1), Criticality: class}
	var p90s []float64
	for _, res := range results {
		if res.givenUp {
			row.TTFTP90s = append(row.TTFTP90s, math.Inf(1))
			continue
		}
		var ttft, tpot, gap, e2e, firstOff, eachOff []float64
		cost := 0.0
		var prompt, cached, output, good, loads, remote int
		for i := range res.Records {
			r := &res.Records[i]
			if class != "" && classOf(r.Criticality) != class {
				continue
			}
			ttft, tpot, e2e = append(ttft, r.TTFT.Seconds()), append(tpot, r.TPOT.Seconds()), append(e2e, r.E2E.Seconds())
			gap = append(gap, r.Gap.Seconds())
			loads += r.AdapterLoads
			cost += r.Cost
			if r.Remote {
				remote++
			}
			if r.Took > 0 {
				firstOff = append(firstOff, math.Abs(float64(r.Predicted-r.Took))/float64(r.Took))
			}
			if r.Each > 0 && r.TPOT > 0 {
				eachOff = append(eachOff, math.Abs(float64(r.Each-r.TPOT))/float64(r.TPOT))
			}
			prompt, cached, output = prompt+r.PromptTokens, cached+r.CachedTokens, output+r.OutputTokens
			if c.SLO.met(r) {
				good++
			}
		}
		refused := 0
		for _, k := range res.Refusals {
			if class == "" || class == classOf(k) {
				refused++
			}
		}
		if class == "" {
			refused += res.Refused
		}
		if len(ttft)+refused == 0 {
			continue
		}
		row.Seeds++
		row.Requests += len(ttft) + refused
		row.Refused += refused
		if len(ttft) == 0 {
			p90s = append(p90s, 0) // all were refused
			continue
		}
		row.TTFTP50 += quantile(ttft, 0.5)
		p90s = append(p90s, quantile(ttft, 0.9))
		row.TPOTP90 += quantile(tpot, 0.9)
		row.GapP90 += quantile(gap, 0.9)
		row.E2EP90 += quantile(e2e, 0.9)
		row.Remote += float64(remote) / float64(len(ttft))
		row.Loads += float64(loads) / float64(len(ttft))
		row.Cost += cost / float64(len(ttft))
		row.Met += float64(good) / float64(len(ttft)+refused)
		if len(firstOff) > 0 {
			row.TTFTError += quantile(firstOff, 0.5)
		}
		if len(eachOff) > 0 {
			row.TPOTError += quantile(eachOff, 0.5)
		}
		row.HitRate += float64(cached) / float64(prompt)
		row.Goodput += float64(good) / res.Window.Seconds()
		// The window's answers, over the time in which they were given: longer than the window where the fleet does not keep up.
		row.TokensPerS += float64(output) / max(res.Window, res.End-res.Start).Seconds()
	}
	row.TTFTP90s = append(row.TTFTP90s, p90s...)
	slices.Sort(row.TTFTP90s)
	if row.Seeds == 0 {
		return row, len(row.TTFTP90s) > 0
	}
	for _, v := range []*float64{&row.TTFTP50, &row.TPOTP90, &row.GapP90, &row.E2EP90, &row.Remote, &row.HitRate, &row.Loads, &row.Goodput, &row.TokensPerS, &row.Met, &row.Cost, &row.TTFTError, &row.TPOTError} {
		*v /= float64(row.Seeds)
	}
	row.TTFTP90, row.TTFTP90SD = meanAndDeviation(p90s)
	return row, true
}

// quantile sorts values and returns the smallest that at least the share q of them do not exceed.
func quantile(values []float64, q float64) float64 {
	slices.Sort(values)
	return values[min(int(math.Ceil(q*float64(len(values))))-1, len(values)-1)]
}

func meanAndDeviation(values []float64) (mean, deviation float64) {
	for _, v := range values {
		mean += v / float64(len(values))
	}
	if len(values) < 2 {
		return mean, 0
	}
	for _, v := range values {
		deviation += (v - mean) * (v - mean) / float64(len(values)-1)
	}
	return mean, math.Sqrt(deviation)
}
