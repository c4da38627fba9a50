package picker

import (
	"fmt"
	"math"
	"testing"
)

// withOthers makes the pool believe that others have so many requests for each of ours.
func withOthers(p *Pool, perOwn float64) *Pool {
	for range 1000 {
		p.others.learn(1000*(1+perOwn), 1000)
	}
	return p
}

func testEndpoints(n int) []*Endpoint {
	p := NewPool(Config{})
	var specs []Spec
	for i := range n {
		specs = append(specs, Spec{Address: fmt.Sprintf("10.0.0.%d:8000", i+1)})
	}
	p.SetEndpoints(specs)
	return p.Endpoints()
}

// Scores worked out by hand from the formula in the package comment, in token-equivalents (s = 1) but where said.
func TestScore(t *testing.T) {
	p := NewPool(Config{})
	for _, tt := range []struct {
		name string
		c    Candidate
		want float64
	}{
		{"idle, cold", Candidate{Uncached: 8000, Speed: 1}, 8000},
		{"idle, warm", Candidate{Uncached: 200, Speed: 1}, 200},
		{"a queue", Candidate{Uncached: 200, Queued: 3000, Speed: 1}, 3200},
		{"ten requests decode", Candidate{Uncached: 1000, InFlight: 10, Speed: 1}, 1000 + .1*10*3000},
		{"half the cache in use", Candidate{Uncached: 600, KV: .5, Speed: 1}, 1000},
		{"cache full", Candidate{Uncached: 100, KV: 1, Speed: 1}, 500},
		{"an adapter to load", Candidate{Uncached: 300, Adapter: 4000, InFlight: 10, Speed: 1}, 4300 + .1*10*6300},
		{"no room for copies", Candidate{Uncached: 300, Again: 600, InFlight: 10, Speed: 1}, 900 + .1*10*2300},
		{"all at once, on an H100", Candidate{Uncached: 500, Queued: 1500, InFlight: 4, KV: .25, Speed: 25e-6}, 25e-6 * 3000 / .8},
	} {
		if got := p.score(&tt.c); math.Abs(got-tt.want) > 1e-9*tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestFairwayChooses(t *testing.T) {
	e := testEndpoints(3)
	for _, tt := range []struct {
		name string
		c    []Candidate
		want int
	}{
		{"the warm one", []Candidate{{Uncached: 5000}, {Uncached: 300}, {Uncached: 5000}}, 1},
		{"a cold one, when the warm one's queue is longer than the prompt", []Candidate{{Uncached: 5000, InFlight: 9, Queued: 50}, {Uncached: 300, Queued: 6000}, {Uncached: 5000}}, 2},
		{"the warm one, when its queue is shorter", []Candidate{{Uncached: 5000}, {Uncached: 300, Queued: 4000}, {Uncached: 5000}}, 1},
		{"not where many would wait", []Candidate{{Uncached: 4000, InFlight: 30}, {Uncached: 4000, InFlight: 2}, {Uncached: 4000, InFlight: 10}}, 1},
		{"the fast one", []Candidate{{Uncached: 900, Speed: 48e-6}, {Uncached: 900, Speed: 48e-6}, {Uncached: 900, Speed: 25e-6}}, 2},
		{"not the full one", []Candidate{{Uncached: 900, KV: .9}, {Uncached: 500, KV: .95}, {Uncached: 900, KV: .1}}, 2},
	} {
		for i := range tt.c {
			tt.c[i].Endpoint = e[i]
			if tt.c[i].Speed == 0 {
				tt.c[i].Speed = 30e-6
			}
		}
		f := fairway{e[0].pool}
		if got := f.Choose(tt.c, &Request{Hash: 1}); got != tt.want {
			t.Errorf("%s: chose %d, want %d; scores %v", tt.name, got, tt.want, tt.c)
		}
	}
}

// Equals share the prompts, each prompt always has the same one, and the noise of measured speeds decides nothing.
func TestTies(t *testing.T) {
	e := testEndpoints(8)
	f := fairway{e[0].pool}
	count := make([]int, len(e))
	for hash := range uint64(4000) {
		var c []Candidate
		for i := range e {
			c = append(c, Candidate{Endpoint: e[i], Uncached: 1000, Speed: 30e-6 * (1 + .004*float64(i))})
		}
		r := Request{Hash: hash * 0x9E3779B97F4A7C15}
		got := f.Choose(c, &r)
		if again := f.Choose(c, &r); again != got {
			t.Fatalf("hash %d: chose %d, then %d", hash, got, again)
		}
		count[got]++
	}
	for i, n := range count {
		if n < 400 || n > 600 {
			t.Errorf("endpoint %d got %d of 4000 prompts, want about 500", i, n)
		}
	}
}

// Replicas that have seen nothing of each other send cold prompts that share a chunk to the same pod.
func TestHome(t *testing.T) {
	e := testEndpoints(5)
	f := fairway{withOthers(e[0].pool, 2)}
	cold := func(key uint64, load float64, queued ...float64) ([]Candidate, *Request) {
		var c []Candidate
		for i := range e {
			c = append(c, Candidate{Endpoint: e[i], Uncached: 6000, Speed: 30e-6, InFlight: load})
			if i < len(queued) {
				c[i].Queued = queued[i]
			}
		}
		return c, &Request{Chain: []uint64{key, key + 1}}
	}
	homes := map[int]int{}
	for key := range uint64(500) {
		c, r := cold(key*0x9E3779B97F4A7C15+1, 0)
		home := f.Choose(c, r)
		if !c[home].Home {
			t.Fatal("an idle pool does not send a prompt home")
		}
		homes[home]++
		// 0.9 of 6,000 tokens are forgiven: a queue of 4,000 at home is worth it, one of 6,100 is not.
		queued := make([]float64, 5)
		queued[home] = 4000
		if c, r := cold(r.Chain[0], 0, queued...); f.Choose(c, r) != home {
			t.Fatal("a short queue keeps the prompt from home")
		}
		queued[home] = 6100
		if c, r := cold(r.Chain[0], 0, queued...); f.Choose(c, r) == home {
			t.Fatal("a long queue does not keep the prompt from home")
		}
	}
	if len(homes) != 5 {
		t.Errorf("homes: %v", homes)
	}

	// A home is taken to hold what another pod is known to hold, and 0.9 of the rest.
	c, r := cold(1, 0)
	home := f.Choose(c, r)
	warm := (home + 1) % 5
	choose := func(queuedAtHome float64, holders ...int) int {
		c, _ = cold(1, 0)
		for _, i := range holders {
			c[i].Hit, c[i].Uncached, c[i].Depth = 5500, 500, 1
		}
		c[home].Queued = queuedAtHome
		return f.Choose(c, r)
	}
	if got := choose(0, warm); got != home || math.Abs(c[home].Score-30e-6*.1*500) > 1e-12 {
		t.Errorf("chose %d, want the home %d, which scores %v", got, home, c[home].Score)
	}
	if got := choose(1000, warm); got != warm {
		t.Errorf("while the home is busy: chose %d, want the warm pod %d", got, warm)
	}
	// A home that has it needs nothing forgiven, and what three pods have has another home.
	if got := choose(0, home); got != home || c[home].Home {
		t.Errorf("chose %d, want %d, which has it: %+v", got, home, c[home])
	}
	if got := choose(0, warm, (home+2)%5, (home+3)%5); got == home && c[home].Uncached == 6000 {
		t.Errorf("chose %d, which has nothing of what is common", got)
	}
}

func TestRendezvousMovesOnlyTheirKeys(t *testing.T) {
	e := testEndpoints(10)
	home := func(key uint64, e []*Endpoint) *Endpoint {
		var c []Candidate
		for i := range e {
			c = append(c, Candidate{Endpoint: e[i]})
		}
		return c[rendezvous(c, key, 0, anyDepth)].Endpoint
	}
	for key := range uint64(1000) {
		before, after := home(key, e), home(key, e[1:])
		if before != e[0] && before != after {
			t.Fatalf("key %d moved from %s to %s", key, before.Address(), after.Address())
		}
	}
}

func TestOtherPolicies(t *testing.T) {
	e := testEndpoints(3)
	c := []Candidate{{Endpoint: e[0], InFlight: 3}, {Endpoint: e[1], InFlight: 1}, {Endpoint: e[2], InFlight: 2}}
	if got := (LeastRequest{}).Choose(c, &Request{}); got != 1 {
		t.Errorf("least request chose %d", got)
	}
	var rr RoundRobin
	for i := range 7 {
		if got := rr.Choose(c, nil); got != i%3 {
			t.Errorf("turn %d: chose %d", i, got)
		}
	}
}
