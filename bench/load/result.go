package load

import (
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/fairway-proxy/fairway/bench/workload"
)

// Result is what Run measured. Latencies are those of requests that have them: TTFT of all whose first token came, the others of all
// that ended well; the requests that failed stand beside them.
type Result struct {
	Workload    string          `json:"workload"`
	Params      workload.Params `json:"params"` // its shape
	Seed        uint64          `json:"seed"`
	Rate        float64         `json:"rate"` // offered requests a second
	Target      string          `json:"target"`
	Model       string          `json:"model"`
	Elapsed     float64         `json:"elapsed_s"` // from the start to the end of the last answer
	Interrupted bool            `json:"interrupted"`

	Requests  int                `json:"requests"`  // sent
	OK        int                `json:"ok"`        // ended well
	Failed    int                `json:"failed"`    // ended otherwise, the cancelled not counted
	Refused   int                `json:"refused"`   // those of Failed with status 429 or 503
	Cancelled int                `json:"cancelled"` // under way when Run was interrupted
	Skipped   int                `json:"skipped"`   // not sent, because an earlier turn of their conversation failed
	Errors    map[ErrorClass]int `json:"errors"`
	Endpoints map[string]int     `json:"endpoints,omitempty"` // requests by who served them, where told

	PromptTokens     int      `json:"prompt_tokens"`     // where told
	CachedTokens     int      `json:"cached_tokens"`     // where told
	CompletionTokens int      `json:"completion_tokens"` // received
	HitRate          *float64 `json:"hit_rate,omitempty"`
	TokensPerSecond  float64  `json:"tokens_per_s"`   // received
	RequestsPerS     float64  `json:"requests_per_s"` // ended well
	Good             int      `json:"good"`           // ended well and kept the SLO
	Goodput          float64  `json:"goodput"`        // of these a second, as in vLLM's benchmark (request_goodput)

	// In JSON these are flat: ttft_p50_s and so on. What has no samples is left out.
	TTFT       Distribution `json:"-"` // from due to first token
	InterToken Distribution `json:"-"` // between events with content; itl_…
	TPOT       Distribution `json:"-"` // a request's mean time of a token after the first
	E2E        Distribution `json:"-"` // from due to end
	SendLag    Distribution `json:"-"` // from due to sent: how late the player was; send_lag_…

	Records []Record `json:"-"` // in the order in which they ended
}

// Distribution describes samples. A quantile is the smallest sample that at least so many are not above.
type Distribution struct {
	N                        int
	Mean, P50, P90, P99, Max time.Duration
}

// distribution sorts samples and describes them.
func distribution(samples []time.Duration) Distribution {
	n := len(samples)
	if n == 0 {
		return Distribution{}
	}
	slices.Sort(samples)
	var sum float64
	for _, s := range samples {
		sum += float64(s)
	}
	quantile := func(q float64) time.Duration { return samples[max(0, int(math.Ceil(q*float64(n)))-1)] }
	return Distribution{
		N: n, Mean: time.Duration(sum / float64(n)), P50: quantile(0.5), P90: quantile(0.9), P99: quantile(0.99), Max: samples[n-1],
	}
}

// result sums up the records. Nobody adds to them any more.
func (p *player) result(interrupted bool) *Result {
	w := p.cfg.Workload.Params()
	r := &Result{
		Workload: p.cfg.Workload.Name(), Params: w, Seed: w.Seed, Rate: w.Rate, Target: p.cfg.URL, Model: p.cfg.Model, Interrupted: interrupted,
		Requests: len(p.records), Skipped: p.skipped, Errors: map[ErrorClass]int{}, Endpoints: map[string]int{}, Records: p.records,
	}
	var ttft, gaps, tpot, e2e, lag []time.Duration
	var end time.Duration
	cacheTold := false
	for i := range p.records {
		rec := &p.records[i]
		end = max(end, rec.End)
		lag = append(lag, rec.Sent-rec.Intended)
		r.count(rec, p.cfg.SLO)
		cacheTold = cacheTold || rec.CachedTokens != nil
		if rec.FirstToken > 0 {
			ttft = append(ttft, rec.TTFT())
		}
		if rec.Error == "" {
			e2e = append(e2e, rec.E2E())
			gaps = append(gaps, rec.Gaps...)
			if rec.CompletionTokens > 1 {
				tpot = append(tpot, rec.TPOT())
			}
		}
	}
	r.TTFT, r.InterToken, r.TPOT = distribution(ttft), distribution(gaps), distribution(tpot)
	r.E2E, r.SendLag = distribution(e2e), distribution(lag)
	// An engine that tells cached tokens may leave them out where there are none.
	if cacheTold && r.PromptTokens > 0 {
		rate := float64(r.CachedTokens) / float64(r.PromptTokens)
		r.HitRate = &rate
	}
	if r.Elapsed = end.Seconds(); r.Elapsed > 0 {
		r.TokensPerSecond = float64(r.CompletionTokens) / r.Elapsed
		r.RequestsPerS = float64(r.OK) / r.Elapsed
		r.Goodput = float64(r.Good) / r.Elapsed
	}
	return r
}

// count adds a record to the totals.
func (r *Result) count(rec *Record, slo SLO) {
	switch {
	case rec.Error == "":
		r.OK++
	case rec.Failed():
		r.Failed++
	default:
		r.Cancelled++
	}
	if rec.Error != "" {
		r.Errors[rec.Error]++
	}
	if rec.Refused() {
		r.Refused++
	}
	if rec.Good(slo) {
		r.Good++
	}
	if rec.Endpoint != "" {
		r.Endpoints[rec.Endpoint]++
	}
	r.PromptTokens += rec.PromptTokens
	r.CompletionTokens += rec.CompletionTokens
	if rec.CachedTokens != nil {
		r.CachedTokens += *rec.CachedTokens
	}
}

// MarshalJSON writes the result as one flat object, times in seconds, without the records.
func (r Result) MarshalJSON() ([]byte, error) {
	type totals Result // without this method
	b, err := json.Marshal(totals(r))
	if err != nil {
		return nil, err
	}
	b = b[:len(b)-1] // the closing brace
	for _, m := range []struct {
		name string
		d    Distribution
	}{{"ttft", r.TTFT}, {"itl", r.InterToken}, {"tpot", r.TPOT}, {"e2e", r.E2E}, {"send_lag", r.SendLag}} {
		if m.d.N == 0 {
			continue
		}
		for _, f := range []struct {
			name string
			d    time.Duration
		}{{"mean", m.d.Mean}, {"p50", m.d.P50}, {"p90", m.d.P90}, {"p99", m.d.P99}, {"max", m.d.Max}} {
			b = append(b, `,"`+m.name+"_"+f.name+`_s":`...)
			b = strconv.AppendFloat(b, f.d.Seconds(), 'f', -1, 64)
		}
	}
	return append(b, '}'), nil
}
