package load

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/workload"
)

func TestDistribution(t *testing.T) {
	if got := newHistogram().distribution(); got != (Distribution{}) {
		t.Errorf("of nothing: %v", got)
	}
	for _, unit := range []time.Duration{time.Microsecond, time.Millisecond, time.Second} {
		h := newHistogram()
		for i := range 100 {
			h.record(time.Duration(100-i) * unit)
		}
		got := h.distribution()
		for _, x := range []struct{ got, want time.Duration }{{got.P50, 50}, {got.P90, 90}, {got.P99, 99}, {got.Max, 100}, {2 * got.Mean, 101}} {
			if !near(x.got, x.want*unit) {
				t.Errorf("of 1 to 100 times %v: %v", unit, got)
			}
		}
		if got.N != 100 {
			t.Errorf("%d samples", got.N)
		}
	}
	h := newHistogram()
	h.record(-time.Second)
	h.record(1000 * time.Hour)
	if got := h.distribution(); got.P50 != 0 || !near(got.Max, 24*time.Hour) {
		t.Errorf("beyond the range: %v", got)
	}
}

// What others script against.
func TestJSON(t *testing.T) {
	w, _ := workload.New("chat", workload.Params{Seed: 9, Rate: 2})
	sixty := 60
	p := newPlayer(Config{Workload: w, URL: "http://x", Model: "m", Label: "ours", RampTo: 5, SLO: DefaultSLO, Progress: new(Progress)}, nil)
	p.keep(Record{
		Session: 1, Intended: time.Second, Sent: time.Second, FirstToken: 1500 * time.Millisecond, LastToken: 2 * time.Second, End: 2 * time.Second,
		MaxGap: 400 * time.Millisecond, Status: 200, PromptTokens: 80, CachedTokens: &sixty, CompletionTokens: 3,
	}, []time.Duration{100 * time.Millisecond, 400 * time.Millisecond}, 0)
	p.keep(Record{Session: 2, Intended: 3 * time.Second, Sent: 3 * time.Second, End: 4 * time.Second, Status: 503, Error: Err5xx}, nil, 0)
	p.keep(Record{Session: 3, PromptTokens: 40, End: time.Second}, nil, 0) // an engine that leaves out cached tokens when there are none
	b, err := json.Marshal(p.result(false))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	for key, want := range map[string]any{
		"workload": "chat", "seed": 9.0, "rate": 2.0, "requests": 3.0, "refused": 1.0, "failed": 1.0, "hit_rate": 0.5, "elapsed_s": 4.0,
		"tokens_per_s": 0.75, "label": "ours", "ramp_to": 5.0, "slo_ttft_s": 1.0, "slo_tpot_s": 0.1,
	} {
		if got[key] != want {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
	for key, want := range map[string]float64{"ttft_p50_s": 0.5, "ttft_p90_s": 0.5, "tpot_p90_s": 0.25, "e2e_p90_s": 1, "itl_max_s": 0.4} {
		if v, _ := got[key].(float64); math.Abs(v-want) > want/1000 {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
	if _, ok := got["Records"]; ok {
		t.Error("records in the summary")
	}

	line, _ := json.Marshal(p.records[0])
	for _, want := range []string{`"ttft_s":0.5`, `"e2e_s":1`, `"cached_tokens":60`, `"itl_max_s":0.4`, `"intended_s":1`} {
		if !strings.Contains(string(line), want) {
			t.Errorf("no %s in %s", want, line)
		}
	}
	if line, _ = json.Marshal(p.records[1]); strings.Contains(string(line), "ttft") || !strings.Contains(string(line), `"error":"status_5xx"`) {
		t.Errorf("%s", line)
	}
}

func TestSLO(t *testing.T) {
	ms := time.Millisecond
	for _, c := range []struct {
		name string
		rec  Record
		slo  SLO
		good bool
	}{
		{"well within", Record{FirstToken: 10 * ms, LastToken: 20 * ms, CompletionTokens: 2}, SLO{}, true},
		{"late", Record{FirstToken: 1001 * ms, LastToken: 1002 * ms, CompletionTokens: 2}, SLO{}, false},
		{"late, but allowed", Record{FirstToken: 1001 * ms, LastToken: 1002 * ms, CompletionTokens: 2}, SLO{TTFT: 2 * time.Second}, true},
		{"slow", Record{FirstToken: 10 * ms, LastToken: 311 * ms, CompletionTokens: 4}, SLO{}, false},
		{"failed", Record{FirstToken: 10 * ms, Error: ErrCut}, SLO{}, false},
		{"one token", Record{FirstToken: 10 * ms, LastToken: 10 * ms, CompletionTokens: 1}, SLO{}, true},
	} {
		if got := c.rec.Good(c.slo); got != c.good {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
