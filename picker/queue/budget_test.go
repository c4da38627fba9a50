package queue

import (
	"fmt"
	"testing"
	"time"
)

func TestBudgets(t *testing.T) {
	var b Budgets
	if s, err := b.Take("m", "p", 1e9, 0); s.Made() || err != nil || b.Any() {
		t.Fatal("without limits:", s, err)
	}
	b.Set([]Limit{{Model: "m", Principal: "rich", TokensPerMinute: 6000}, {Model: "m", TokensPerMinute: 600}, {Principal: "q", TokensPerMinute: 60}})
	for _, c := range []struct {
		model, principal string
		tokens           float64
		wait             time.Duration // 0: it is allowed
	}{
		{"m", "rich", 5000, 0},
		{"m", "p", 500, 0},
		{"m", "p", 200, 10 * time.Second}, // 100 are left of 10 a second
		{"m", "p", 100, 0},
		{"m", "o", 600, 0}, // everybody has his own
		{"m", "q", 600, 0}, // the first that matches counts
		{"other", "q", 60, 0},
		{"third", "q", 61, 0}, // more than there ever is takes all there is
		{"third", "q", 1, 2 * time.Second},
		{"other", "p", 1e9, 0},
	} {
		_, err := b.Take(c.model, c.principal, c.tokens, 0)
		var wait time.Duration
		if err != nil {
			if reason(t, err) != OverBudget {
				t.Error(err)
			}
			wait = err.(*Refusal).RetryAfter.Round(time.Millisecond)
		}
		if wait != c.wait {
			t.Errorf("%+v: wait %v", c, wait)
		}
	}

	// What was expected is settled by what it was, and a minute brings it all back.
	s, err := b.Take("m", "rich", 1000, 0)
	if err != nil || s.Tokens() != 1000 {
		t.Fatal(s, err)
	}
	b.Settle(s, 400, 0)
	if _, err := b.Take("m", "rich", 601, 0); err == nil {
		t.Error("more was given back than taken")
	}
	if _, err := b.Take("m", "rich", 600, 0); err != nil {
		t.Error(err)
	}
	s, _ = b.Take("m", "p", 600, time.Minute)
	b.Settle(s, 1200, time.Minute)
	if _, err := b.Take("m", "p", 1, 2*time.Minute); err == nil {
		t.Error("what cost more than expected was forgotten")
	}
	if _, err := b.Take("m", "p", 600, 3*time.Minute); err != nil {
		t.Error(err)
	}
	b.Set(nil)
	if s, err := b.Take("m", "p", 1e9, 0); s.Made() || err != nil {
		t.Error("the limits are gone:", s, err)
	}
}

// However many principals there are, few are remembered, and those who have spent something before the others.
func TestBudgetsAreBounded(t *testing.T) {
	var b Budgets
	b.Set([]Limit{{TokensPerMinute: 60}})
	spent, err := b.Take("m", "spender", 60, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 * maxBuckets {
		if s, err := b.Take("m", fmt.Sprint(i), 1, 0); err == nil {
			b.Settle(s, 0, 0)
		}
	}
	if len(b.buckets) > maxBuckets {
		t.Errorf("%d are remembered", len(b.buckets))
	}
	if b.buckets[spent.of] == nil {
		t.Error("who has spent all is forgotten")
	}
}
