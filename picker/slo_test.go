package picker

import (
	"testing"
	"time"
)

// Of the endpoints that meet an SLO the cheapest is chosen, where they differ in cost, and else the one with the lowest score.
func TestChoiceWithAnSLO(t *testing.T) {
	e := testEndpoints(3)
	const fast, slow = 25e-6, 50e-6
	for _, tt := range []struct {
		name string
		c    []Candidate
		want int
	}{
		{"all meet it, and cost as much", []Candidate{{Speed: slow, Meets: true}, {Speed: fast, Meets: true}, {Speed: slow, Meets: true}}, 1},
		{"all meet it: the cheapest", []Candidate{{Speed: fast, Meets: true, Cost: 3}, {Speed: slow, Meets: true}, {Speed: fast, Meets: true, Cost: 3}}, 1},
		{"what is dearer by the second, and cheaper by the request", []Candidate{{Speed: fast, Meets: true, Cost: 1.5}, {Speed: slow, Meets: true}}, 0},
		{"what is dear keeps no prompts for having them cached", []Candidate{{Speed: fast, Uncached: 1000, Meets: true, Cost: 4}, {Speed: slow, Uncached: 5000, Meets: true}}, 1},
		{"unless most of a long one is", []Candidate{{Speed: fast, Uncached: 1000, Meets: true, Cost: 4}, {Speed: slow, Uncached: 50_000, Meets: true}}, 0},
		{"among the cheapest the lowest score", []Candidate{{Speed: slow, Queued: 9000, Meets: true}, {Speed: slow, Meets: true}, {Speed: fast, Meets: true, Cost: 3}}, 1},
		{"the cheap one is too slow", []Candidate{{Speed: fast, Meets: true, Cost: 3}, {Speed: slow}, {Speed: slow}}, 0},
		{"none meets it: the best, whatever it costs", []Candidate{{Speed: slow}, {Speed: fast, Cost: 100}, {Speed: slow}}, 1},
	} {
		for i := range tt.c {
			c := &tt.c[i]
			c.Endpoint = e[i]
			if c.Uncached == 0 {
				c.Uncached = 2000
			}
			if c.Cost == 0 {
				c.Cost = 1
			}
		}
		f := fairway{e[0].pool}
		if got := f.Choose(tt.c, &Request{Hash: 1, SLO: SLO{FirstToken: time.Second}}); got != tt.want {
			t.Errorf("%s: chose %d, want %d", tt.name, got, tt.want)
		}
	}
}

// Without an SLO an endpoint that costs twice as much has to be twice as good.
func TestCostWithoutAnSLO(t *testing.T) {
	p := NewPool(Config{})
	s := specs(2)
	s[1].Cost = 2
	p.SetEndpoints(s)
	cheap, dear := p.Endpoints()[0], p.Endpoints()[1]
	r := prompt(prose(1, 8000))
	l := pick(t, p, r, 0)
	if l.Endpoint() != cheap {
		t.Errorf("an idle pool: it went to %s", l.Endpoint().Address())
	}
	l = pick(t, p, prompt(prose(2, 8000)), 0) // as long
	if l.Endpoint() != dear {
		t.Errorf("the cheap one has more than twice as much to do: it went to %s", l.Endpoint().Address())
	}
	c := p.Explain(nil, r, 0)
	if c[0].Premium != 0 || c[1].Premium != 1 || p.Costs(&c[1]).Price != 2 {
		t.Errorf("candidates %+v", c)
	}
	// A cost that changes is another price of the same endpoint.
	s[1].Cost = 0
	p.SetEndpoints(s)
	if e := p.Endpoints()[1]; e != dear || e.Cost() != 1 || e.inflight.Load() != 1 {
		t.Errorf("%p costs %v, was %p", e, e.Cost(), dear)
	}
}

// Predictions say which endpoints meet an SLO; if none does, priorities below 0 are refused, and the others served.
func TestSLOThatNobodyMeets(t *testing.T) {
	p := newTestPool(2, Config{})
	now := time.Minute
	for i := range 40 { // each is seen to take 400 ms, and 20 ms a token
		r := prompt(prose(i, 8000))
		r.Exclude = p.Endpoints()[i%2 : i%2+1]
		l := pick(t, p, r, now)
		l.FirstToken(now + 400*time.Millisecond)
		l.Usage(2000, 0, 11)
		l.End(now+600*time.Millisecond, Done)
		now += 5 * time.Second
	}
	for _, tt := range []struct {
		name  string
		slo   SLO
		meets bool
	}{
		{"nothing", SLO{}, false},
		{"much time", SLO{now + 2*time.Second, 100 * time.Millisecond}, true},
		{"the first token soon", SLO{FirstToken: now + 350*time.Millisecond}, false},
		{"fast tokens", SLO{PerToken: 15 * time.Millisecond}, false},
		{"both in time", SLO{now + time.Second, 50 * time.Millisecond}, true},
		{"one in time", SLO{now + time.Second, 15 * time.Millisecond}, false},
		{"it is too late already", SLO{FirstToken: now - 1}, false},
	} {
		r := prompt(prose(500, 8000))
		r.SLO = tt.slo
		var candidates []Candidate
		r.Candidates = &candidates
		l := pick(t, p, r, now) // whoever it is that asks
		l.End(now, NeverSent)
		for _, c := range candidates {
			if c.Meets != tt.meets {
				t.Errorf("%s: %s is predicted to take %.3f s and %.4f s a token: meets it: %v", tt.name, c.Endpoint.Address(), c.FirstToken, c.PerToken, c.Meets)
			}
		}
		r.Priority = -1
		l, err := p.Pick(r, now)
		if refused := err == ErrSLO; refused == (tt.meets || tt.slo == SLO{}) {
			t.Errorf("%s: sheddable: %v", tt.name, err)
		}
		l.End(now, NeverSent)
		r.Exclude = p.Endpoints()[:1]
		if l, err = p.Pick(r, now); err != nil {
			t.Errorf("%s: after a failure: %v", tt.name, err)
		}
		l.End(now, NeverSent)
	}

	// A cache that is nearly full promises nothing, though nobody waits.
	var s Sample
	s.Set(KVUsage, .95)
	s.Set(Running, 5)
	for _, e := range p.Endpoints() {
		e.Observe(s, now)
	}
	r := prompt(prose(501, 8000))
	r.Priority, r.SLO = -1, SLO{FirstToken: now + time.Minute}
	if _, err := p.Pick(r, now); err != ErrSLO {
		t.Errorf("with full caches: %v", err)
	}
}
