package proxy

import (
	"log/slog"
	"math"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-proxy/fairway/proxy/account"
)

// shadowSums are the metrics of the pool's shadow, by their last label.
func shadowSums(t *testing.T, reg *prometheus.Registry, policy ShadowPolicy) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sums := make(map[string]float64)
	for _, f := range families {
		if name := f.GetName(); name != "fairway_shadow_picks_total" && name != "fairway_shadow_first_token_seconds_total" {
			continue
		}
		for _, m := range f.Metric {
			labels := make(map[string]string)
			for _, l := range m.Label {
				labels[l.GetName()] = l.GetValue()
			}
			if labels["policy"] == string(policy) && labels["pool"] == "pool" {
				sums[labels["agrees"]+labels["at"]] = m.Counter.GetValue()
			}
		}
	}
	return sums
}

// Turns of one conversation stay where its cache is. The shadow, which takes endpoints in
// turn, would have sent every other of them to where nothing of it is cached, and later:
// that is its regret. No request goes where the shadow says.
func TestShadowPolicy(t *testing.T) {
	a, b := startPod(t, "", quick), startPod(t, "", quick)
	reg := prometheus.NewRegistry()
	acc := account.New(reg, account.Config{})
	s := New(Config{Account: acc, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() { s.Shutdown(t.Context()) })
	w := World{Pools: []Pool{{Name: "pool", Endpoints: []Endpoint{{Address: a.address}, {Address: b.address}}}}}
	s.SetWorld(&w)
	prompt := chat(true, 1, string(slices.Repeat([]byte("a long history "), 2000)))
	s.Handle(post("/v1/chat/completions", prompt))
	if got := shadowSums(t, reg, ShadowRoundRobin); len(got) != 0 {
		t.Errorf("without a shadow: %v", got)
	}

	w.Shadow = ShadowRoundRobin
	s.SetWorld(&w)
	const n = 8
	regret := 0.0
	for i := range n {
		if i == n/2 {
			next := w
			s.SetWorld(&next) // its turn goes on
		}
		s.Handle(post("/v1/chat/completions", prompt))
		r := acc.Receipts(account.Query{Limit: 1})[0]
		if r.Shadow == nil || r.Shadow.Policy != "round-robin" || r.Shadow.Endpoint != []string{a.address, b.address}[i%2] {
			t.Fatalf("request %d: %+v", i, r.Shadow)
		}
		if agrees := r.Shadow.Endpoint == r.Endpoint; agrees && r.Shadow.Regret != 0 || !agrees && r.Shadow.Regret <= 0 {
			t.Errorf("request %d went to %s, the shadow is %+v", i, r.Endpoint, r.Shadow)
		}
		regret += r.Shadow.Regret
	}
	if one, other := a.Stats().Received, b.Stats().Received; one != 0 && other != 0 || one+other != n+1 {
		t.Errorf("%d and %d requests", one, other)
	}
	got := shadowSums(t, reg, ShadowRoundRobin)
	if got["true"] != n/2 || got["false"] != n/2 || math.Abs(got["shadow"]-got["chosen"]-regret) > 1e-9 || regret <= 0 {
		t.Errorf("%v, with a regret of %v in the receipts", got, regret)
	}

	w.Shadow = ShadowLeastRequest
	s.SetWorld(&w)
	s.Handle(post("/v1/chat/completions", prompt))
	if got := shadowSums(t, reg, ShadowLeastRequest); got["true"]+got["false"] != 1 {
		t.Errorf("after a change: %v", got)
	}
	w.Shadow = ShadowNone
	s.SetWorld(&w)
	s.Handle(post("/v1/chat/completions", prompt))
	if r := acc.Receipts(account.Query{Limit: 1})[0]; r.Shadow != nil {
		t.Errorf("after its end: %+v", r.Shadow)
	}
}
