package picker

import (
	"testing"
	"time"
)

// answers has e's only pod report that many of the prompt's believed tokens were cached.
func answers(t *testing.T, p *Pool, r *Request, share float64) {
	t.Helper()
	l := pick(t, p, r, 0)
	l.Usage(l.PromptTokens(), int(share*float64(l.believed)), 10)
	l.End(0, Done)
}

// A pod that does not cache is not believed to: its prompts count in full, whatever the index says.
func TestPodThatDoesNotCache(t *testing.T) {
	p := newTestPool(1, Config{})
	r := prompt(prose(1, 30_000))
	hit := func() float64 { return p.Explain(nil, r, 0)[0].Hit }
	for range 50 {
		answers(t, p, r, .9)
	}
	if got := hit(); got < 7400 {
		t.Errorf("a pod that caches: %v of 7,500 tokens hit", got)
	}
	for range 400 {
		answers(t, p, r, 0)
	}
	if got := hit(); got > 1500 {
		t.Errorf("a pod that does not cache: %v of 7,500 tokens hit", got)
	}
	if got := p.Endpoints()[0].Load(0).Stretch; got != 1 {
		t.Errorf("capacity is taken for %v times what it is, from chunks used a moment ago", got)
	}
	for range 200 {
		answers(t, p, r, 1)
	}
	if got := hit(); got < 7400 {
		t.Errorf("a pod that caches again: %v of 7,500 tokens hit", got)
	}
}

// The capacity that the pod tells, or that is assumed, is corrected by what it proves to keep.
func TestCapacityIsCorrected(t *testing.T) {
	for _, tt := range []struct {
		name   string
		told   float64 // tokens
		truth  int
		lo, hi float64 // stretch in the end
	}{
		{"told right", 400_000, 400_000, .9, 1.2},
		{"told four times too large", 1_600_000, 400_000, .15, .45},
		{"told four times too small", 100_000, 400_000, 2, 5},
	} {
		p := newTestPool(1, Config{})
		e := p.Endpoints()[0]
		e.Observe(sample(known{BlockSize: 16, NumBlocks: tt.told / 16}), 0)
		const others = 80_000 // tokens between two uses
		r := make([]*Request, 12)
		for i := range r {
			r[i] = prompt(prose(i, 8000))
		}
		for round := range 40 {
			for i := range r {
				l := pick(t, p, r[i], 0)
				// In truth the prompts are used in turn: each has aged by (i+1)·80,000 tokens.
				cached := 0
				if round > 0 && (i+1)*others < tt.truth {
					cached = 1984
				}
				l.Usage(2000, cached, 0)
				l.End(0, Done)
			}
			// Give each prompt its age: the first ones were used last.
			clock := e.clock.Load()
			e.clock.Store(clock + uint64(len(r)*others))
			for i := range r {
				at := clock + uint64((len(r)-1-i)*others)
				e.index.Keep(r[i].Chain, e.index.Pin(r[i].Chain, at, 1<<40, 64), at, 64)
			}
		}
		if got := e.Load(0).Stretch; got < tt.lo || got > tt.hi {
			t.Errorf("%s: stretched by %.2f, want %.2f to %.2f", tt.name, got, tt.lo, tt.hi)
		}
	}
}

// Without cached tokens in the answers the pod's own hit counters do.
func TestHitCountersCorrect(t *testing.T) {
	p := newTestPool(1, Config{})
	e := p.Endpoints()[0]
	r := prompt(prose(1, 30_000))
	queries := 1.0
	for i := range 200 {
		l := pick(t, p, r, 0)
		l.Usage(7500, -1, 10)
		l.End(0, Done)
		queries += 7500
		e.Observe(sample(known{PrefixQueries: queries, PrefixHits: 0}), time.Duration(i))
	}
	if got := e.Load(0); got.Credit > .3 {
		t.Errorf("credit %v: the pod's counters say that it caches nothing", got.Credit)
	}
	l := pick(t, p, r, 0)
	l.Usage(7500, 7400, 10)
	l.End(0, Done)
	before := e.Load(0).Credit
	e.Observe(sample(known{PrefixQueries: queries + 1e6, PrefixHits: 0}), time.Second)
	if got := e.Load(0).Credit; got != before {
		t.Error("the counters are asked though the answers tell")
	}
}

// Requests that count on chunks still being computed prove nothing.
func TestSharedPrefillIsNoEvidence(t *testing.T) {
	p := newTestPool(1, Config{})
	r := prompt(prose(1, 30_000))
	for range 300 {
		a, b := pick(t, p, r, 0), pick(t, p, r, 0)
		p.Endpoints()[0].index.Reset(0)
		a.Usage(7500, 0, 1)
		b.Usage(7500, 0, 1)
		a.End(0, Done)
		b.End(0, Done)
		p.Endpoints()[0].index.Reset(0)
	}
	if got := p.Endpoints()[0].Load(0).Credit; got != 1 {
		t.Errorf("credit %v", got)
	}
}
