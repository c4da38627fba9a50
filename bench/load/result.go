package load

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/fairway-proxy/fairway/bench/workload"
)

// Result is what Run measured. Latencies are those of requests that have them: TTFT of all whose first token came, the others of all
// that ended well; the requests that failed stand beside them.
type Result struct {
	Label       string          `json:"label,omitempty"` // as Config says
	Workload    string          `json:"workload"`
	Params      workload.Params `json:"params"` // its shape
	Seed        uint64          `json:"seed"`
	Rate        float64         `json:"rate"`              // offered requests a second; with a ramp, at its beginning
	RampTo      float64         `json:"ramp_to,omitempty"` // at its end
	Target      string          `json:"target"`
	Model       string          `json:"model"`
	Warmup      float64         `json:"warmup_s"`   // before it nothing was measured
	Duration    float64         `json:"duration_s"` // as Config says; warm-up included
	Elapsed     float64         `json:"elapsed_s"`  // from the end of the warm-up to the end of the last answer
	Interrupted bool            `json:"interrupted"`
	SLOTTFT     float64         `json:"slo_ttft_s"`
	SLOTPOT     float64         `json:"slo_tpot_s"`

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

	// Classes are the same by criticality, the most critical first; empty: the workload has none.
	Classes []Class `json:"by_criticality,omitempty"`

	// In JSON these are flat: ttft_p50_s and so on. What has no samples is left out.
	TTFT       Distribution `json:"-"` // from due to first token
	InterToken Distribution `json:"-"` // between events with content; itl_…
	TPOT       Distribution `json:"-"` // a request's mean time of a token after the first
	E2E        Distribution `json:"-"` // from due to end
	SendLag    Distribution `json:"-"` // from due to sent: how late the player was; send_lag_…

	Records []Record `json:"-"` // in the order in which they ended
}

// Class is what became of the requests of one criticality. What is refused is no failure here: an overloaded server is meant to.
type Class struct {
	Criticality      string  `json:"criticality"`
	Requests         int     `json:"requests"`          // sent
	OK               int     `json:"ok"`                // ended well
	Refused          int     `json:"refused"`           // with status 429 or 503
	Failed           int     `json:"failed"`            // ended otherwise, neither the refused nor the cancelled counted
	CompletionTokens int     `json:"completion_tokens"` // received
	Good             int     `json:"good"`              // ended well and kept the SLO
	Goodput          float64 `json:"goodput"`           // of these a second, over Result.Elapsed

	TTFT Distribution `json:"-"` // of all whose first token came; flat in JSON, as Result's
}

// result sums up the records. Nobody adds to them any more.
func (p *player) result(interrupted bool) *Result {
	w := p.cfg.Workload.Params()
	r := &Result{
		Label: p.cfg.Label, Workload: p.cfg.Workload.Name(), Params: w, Seed: w.Seed, Rate: w.Rate, RampTo: p.cfg.RampTo,
		Target: p.cfg.URL, Model: p.cfg.Model, Warmup: p.cfg.Warmup.Seconds(), Duration: p.cfg.Duration.Seconds(), Interrupted: interrupted,
		SLOTTFT: p.cfg.SLO.TTFT.Seconds(), SLOTPOT: p.cfg.SLO.TPOT.Seconds(),
		Requests: len(p.records), Skipped: p.skipped, Errors: map[ErrorClass]int{}, Endpoints: map[string]int{}, Records: p.records,
		TTFT: p.ttft.distribution(), InterToken: p.interToken.distribution(), TPOT: p.tpot.distribution(),
		E2E: p.e2e.distribution(), SendLag: p.sendLag.distribution(),
	}
	var end time.Duration
	cacheTold := false
	for i := range p.records {
		rec := &p.records[i]
		end = max(end, rec.End)
		r.count(rec, p.cfg.SLO)
		cacheTold = cacheTold || rec.CachedTokens != nil
	}
	// An engine that tells cached tokens may leave them out where there are none.
	if cacheTold && r.PromptTokens > 0 {
		rate := float64(r.CachedTokens) / float64(r.PromptTokens)
		r.HitRate = &rate
	}
	if r.Elapsed = max(0, end-p.cfg.Warmup).Seconds(); r.Elapsed > 0 {
		r.TokensPerSecond = float64(r.CompletionTokens) / r.Elapsed
		r.RequestsPerS = float64(r.OK) / r.Elapsed
		r.Goodput = float64(r.Good) / r.Elapsed
	}
	for _, name := range workload.Criticalities {
		if _, ok := p.classes[name]; ok {
			r.Classes = append(r.Classes, p.class(name, r.Elapsed))
		}
	}
	return r
}

// class sums up the records of one criticality.
func (p *player) class(name string, elapsed float64) Class {
	c := Class{Criticality: name, TTFT: p.classes[name].distribution()}
	for i := range p.records {
		rec := &p.records[i]
		if rec.Criticality != name {
			continue
		}
		c.Requests++
		c.CompletionTokens += rec.CompletionTokens
		switch {
		case rec.Error == "":
			c.OK++
		case rec.Refused():
			c.Refused++
		case rec.Failed():
			c.Failed++
		}
		if rec.Good(p.cfg.SLO) {
			c.Good++
		}
	}
	if elapsed > 0 {
		c.Goodput = float64(c.Good) / elapsed
	}
	return c
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
		b = m.d.appendJSON(b, m.name)
	}
	return append(b, '}'), nil
}

// MarshalJSON writes the class as one flat object, times in seconds.
func (c Class) MarshalJSON() ([]byte, error) {
	type totals Class // without this method
	b, err := json.Marshal(totals(c))
	if err != nil {
		return nil, err
	}
	return append(c.TTFT.appendJSON(b[:len(b)-1], "ttft"), '}'), nil
}

// appendJSON appends the fields of a distribution, of that name, to an object that has others before; none if there are no samples.
func (d Distribution) appendJSON(b []byte, name string) []byte {
	if d.N == 0 {
		return b
	}
	for _, f := range []struct {
		name string
		d    time.Duration
	}{{"mean", d.Mean}, {"p50", d.P50}, {"p90", d.P90}, {"p99", d.P99}, {"max", d.Max}} {
		b = append(b, `,"`+name+"_"+f.name+`_s":`...)
		b = strconv.AppendFloat(b, f.d.Seconds(), 'f', -1, 64)
	}
	return b
}
