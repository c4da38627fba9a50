package load

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/workload"
)

func TestDistribution(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(100 - i)
	}
	for _, c := range []struct {
		samples []time.Duration
		want    Distribution
	}{
		{nil, Distribution{}},
		{[]time.Duration{7}, Distribution{1, 7, 7, 7, 7, 7}},
		{[]time.Duration{3, 1}, Distribution{2, 2, 1, 3, 3, 3}},
		{hundred, Distribution{100, 50, 50, 90, 99, 100}},
	} {
		if got := distribution(slices.Clone(c.samples)); got != c.want {
			t.Errorf("%v: got %v, want %v", c.samples, got, c.want)
		}
	}
}

// What others script against.
func TestJSON(t *testing.T) {
	w, _ := workload.New("chat", workload.Params{Seed: 9, Rate: 2})
	sixty := 60
	p := player{cfg: Config{Workload: w, URL: "http://x", Model: "m"}, records: []Record{
		{Session: 1, Intended: time.Second, Sent: time.Second, FirstToken: 1500 * time.Millisecond, LastToken: 2 * time.Second, End: 2 * time.Second,
			Gaps: []time.Duration{100 * time.Millisecond, 400 * time.Millisecond}, Status: 200, PromptTokens: 80, CachedTokens: &sixty, CompletionTokens: 3},
		{Session: 2, Intended: 3 * time.Second, Sent: 3 * time.Second, End: 4 * time.Second, Status: 503, Error: Err5xx},
		{Session: 3, PromptTokens: 40, End: time.Second}, // an engine that leaves out cached tokens when there are none
	}}
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
		"ttft_p50_s": 0.5, "ttft_p90_s": 0.5, "tpot_p90_s": 0.25, "e2e_p90_s": 1.0, "itl_max_s": 0.4, "tokens_per_s": 0.75,
	} {
		if got[key] != want {
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
