package picker

import (
	"math"
	"testing"
	"time"
)

// What each term costs adds up to the score.
func TestCosts(t *testing.T) {
	for _, without := range []Term{0, Interference, DecodeShare, KVBarrier} {
		p := NewPool(Config{Without: without})
		c := Candidate{Uncached: 500, Forgiven: 100, Queued: 1500, InFlight: 4, Adapter: 4000, Again: 700, KV: .25, Speed: 25e-6, Premium: 1.5}
		k := p.Costs(&c)
		if got, want := (k.Queue+k.Prompt+k.Adapter+k.Inflicted)*k.Pressure*k.Price, p.score(&c); math.Abs(got-want) > 1e-12 {
			t.Errorf("without %b: costs %v, score %v", without, got, want)
		}
		if want := 25e-6 * 6000; math.Abs(k.FirstToken-want) > 1e-12 {
			t.Errorf("without %b: the first token is expected after %v s, want %v", without, k.FirstToken, want)
		}
	}
}

func TestWhy(t *testing.T) {
	e := testEndpoints(3)
	for _, tt := range []struct {
		want Factor
		next int
		c    []Candidate // the first is chosen
	}{
		{Nothing, -1, []Candidate{{Uncached: 5000}}},
		{Cache, 1, []Candidate{{Uncached: 300, Depth: 9}, {Uncached: 5000}, {Uncached: 6000}}},
		{Queue, 2, []Candidate{{Uncached: 5000}, {Uncached: 5000, Queued: 9000}, {Uncached: 5000, Queued: 6000}}},
		{Requests, 1, []Candidate{{Uncached: 4000, InFlight: 2}, {Uncached: 4000, InFlight: 30}}},
		{KV, 1, []Candidate{{Uncached: 4000, KV: .1}, {Uncached: 4000, KV: .9}}},
		{Speed, 1, []Candidate{{Uncached: 4000}, {Uncached: 4000, Speed: 3}}},
		{Adapter, 1, []Candidate{{Uncached: 400}, {Uncached: 400, Adapter: adapterWait}}},
		{HomePod, 1, []Candidate{{Uncached: 4000, Home: true, Forgiven: 3600}, {Uncached: 4000}}},
		{Price, 1, []Candidate{{Uncached: 4000}, {Uncached: 4000, Premium: 1}}},
		{Price, 1, []Candidate{{Uncached: 4000, Meets: true}, {Uncached: 3000, Meets: true, out: true}}},
		{Objective, 1, []Candidate{{Uncached: 4000, Meets: true}, {Uncached: 3000, out: true}}},
		{Hash, 1, []Candidate{{Uncached: 4000}, {Uncached: 4000, InFlight: .1}}},
	} {
		p := NewPool(Config{})
		for i := range tt.c {
			tt.c[i].Endpoint = e[i]
			if tt.c[i].Speed == 0 {
				tt.c[i].Speed = 1
			}
			tt.c[i].Score = p.score(&tt.c[i])
		}
		if chosen, next, f := p.Why(tt.c, e[0]); chosen != 0 || next != tt.next || f != tt.want {
			t.Errorf("%v: %d before %d because of %v, want 0 before %d", tt.want, chosen, next, f, tt.next)
		}
	}
	for f := range numFactors {
		if f.String() == "" || f.String() == "unknown" {
			t.Errorf("factor %d has no name", f)
		}
	}
}

// A policy of another kind is its own reason.
func TestWhyByPolicy(t *testing.T) {
	p := newTestPool(2, Config{Policy: LeastRequest{}})
	r := prompt("x")
	var terms []Candidate
	r.Candidates = &terms
	l, err := p.Pick(r, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer l.End(time.Second, Done)
	if chosen, next, f := p.Why(terms, l.Endpoint()); chosen+next != 1 || f != ByPolicy {
		t.Errorf("%d before %d because of %v", chosen, next, f)
	}
	if _, next, f := p.Why(terms[:1], terms[0].Endpoint); next != -1 || f != Nothing {
		t.Errorf("the only one comes before %d because of %v", next, f)
	}
}

func BenchmarkWhy(b *testing.B) {
	p := newTestPool(8, Config{})
	r := prompt(prose(0, 28_672))
	terms := p.Explain(nil, r, time.Second)
	b.ReportAllocs()
	for b.Loop() {
		p.Why(terms, terms[3].Endpoint)
	}
}
