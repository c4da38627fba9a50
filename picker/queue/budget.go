package queue

import (
	"sync"
	"sync/atomic"
	"time"
)

// A Limit is how many tokens a minute one principal may have of a model. At most a minute's worth is saved up.
type Limit struct {
	Model           string // as clients name it; "": each model
	Principal       string // whose; "": everybody's own
	TokensPerMinute float64
}

// maxBuckets bounds how many pairs of a model and a principal are told apart. Beyond it, those who have spent the least are forgotten.
const maxBuckets = 10_000

// Budgets keep Limits. The zero value has none. All methods may be called at any time from any goroutine.
type Budgets struct {
	any atomic.Bool

	mu      sync.Mutex // guards what follows
	limits  []Limit
	buckets map[Limit]*bucket // by the Limit with its Model and Principal filled in
}

// A bucket is what somebody may spend.
type bucket struct {
	tokens float64 // may be below 0: what was spent was more than expected
	at     time.Duration
}

// A Spending is what was taken from a budget. The zero value: nothing.
type Spending struct {
	of     Limit
	tokens float64
}

// Made says whether anything was taken.
func (s *Spending) Made() bool { return s.of.TokensPerMinute > 0 }

// Tokens is how many were taken.
func (s *Spending) Tokens() float64 { return s.tokens }

// Set replaces the limits. What was spent of those that stay is remembered.
func (b *Budgets) Set(limits []Limit) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limits = limits
	if len(limits) == 0 {
		b.buckets = nil
	}
	b.any.Store(len(limits) > 0)
}

// Any says whether there are limits.
func (b *Budgets) Any() bool { return b.any.Load() }

// Take takes what a request is expected to cost from the budget of the first limit that is about its model and its principal. The error is a
// *Refusal, if there is not as much, nor all that there can be.
func (b *Budgets) Take(model, principal string, tokens float64, now time.Duration) (Spending, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.limits {
		if l.Model != "" && l.Model != model || l.Principal != "" && l.Principal != principal {
			continue
		}
		l.Model, l.Principal = model, principal
		k := b.bucket(l, now)
		rate := l.TokensPerMinute / 60
		if missing := min(tokens, l.TokensPerMinute) - k.tokens; missing > 0 {
			return Spending{}, &Refusal{OverBudget, time.Duration(missing / rate * float64(time.Second))}
		}
		k.tokens -= tokens
		return Spending{l, tokens}, nil
	}
	return Spending{}, nil
}

// Settle corrects what was taken to what it should have been.
func (b *Budgets) Settle(s Spending, tokens float64, now time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if k := b.buckets[s.of]; k != nil {
		k.fill(s.of, now)
		k.tokens = min(k.tokens+s.tokens-tokens, s.of.TokensPerMinute)
	}
}

// bucket returns the bucket of a limit, filled to now.
func (b *Budgets) bucket(l Limit, now time.Duration) *bucket {
	k := b.buckets[l]
	if k == nil {
		b.makeRoom(now)
		k = &bucket{l.TokensPerMinute, now}
		if b.buckets == nil {
			b.buckets = make(map[Limit]*bucket)
		}
		b.buckets[l] = k
	}
	k.fill(l, now)
	return k
}

func (k *bucket) fill(l Limit, now time.Duration) {
	if passed := now - k.at; passed > 0 {
		k.tokens = min(k.tokens+l.TokensPerMinute*passed.Minutes(), l.TokensPerMinute)
		k.at = now
	}
}

// makeRoom forgets full buckets, or else a few at random, once there are too many.
func (b *Budgets) makeRoom(now time.Duration) {
	if len(b.buckets) < maxBuckets {
		return
	}
	for l, k := range b.buckets {
		if k.fill(l, now); k.tokens >= l.TokensPerMinute {
			delete(b.buckets, l)
		}
	}
	for l := range b.buckets {
		if len(b.buckets) < maxBuckets-maxBuckets/16 {
			return
		}
		delete(b.buckets, l)
	}
}
