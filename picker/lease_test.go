package picker

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

func TestFirstTokenLeavesTheQueue(t *testing.T) {
	p := newTestPool(1, Config{})
	e := p.Endpoints()[0]
	l := pick(t, p, prompt(prose(1, 8000)), 0)
	if got := e.Load(0); got.Queued != 2000 || got.InFlight != 1 {
		t.Errorf("%d queued, %d in flight", got.Queued, got.InFlight)
	}
	l.FirstToken(1)
	l.FirstToken(2)
	if got := e.Load(0); got.Queued != 0 || got.InFlight != 1 {
		t.Errorf("after the first token: %d queued, %d in flight", got.Queued, got.InFlight)
	}
	l.End(3, Done)
	l.End(4, Failed)
	l.FirstToken(5)
	idle(t, p.Endpoints(), 5)
}

// An answer that does not stream leaves the queue when its first token was predicted to come, or when it ends.
func TestUnseenFirstToken(t *testing.T) {
	p := newTestPool(1, Config{})
	e := p.Endpoints()[0]
	queued := func(now time.Duration) float64 { return p.Explain(nil, prompt("x"), now)[0].Queued }
	unseen := func(id int) Lease {
		r := prompt(prose(id, 8000))
		r.Stream = false
		return pick(t, p, r, 0)
	}
	a, b, c := unseen(1), unseen(2), unseen(3) // 40 µs a token: due at 80, 160, 240 ms
	for _, tt := range []struct {
		ms   time.Duration
		want float64
	}{{0, 6000}, {79, 6000}, {80, 4000}, {159, 4000}, {160, 2000}} {
		if got := queued(tt.ms * time.Millisecond); math.Abs(got-tt.want) > 1 {
			t.Errorf("%d ms: %v tokens queued, want %v", tt.ms, got, tt.want)
		}
	}
	a.FirstToken(200 * time.Millisecond)
	if s, _ := unpack(e.speed.word.Load()); s != 0 {
		t.Error("the speed was learned from an unseen first token")
	}
	c.End(200*time.Millisecond, Done) // before it was due
	if got := queued(200 * time.Millisecond); got != 0 {
		t.Errorf("%v tokens queued", got)
	}
	b.End(time.Second, Done)
	a.End(time.Second, Done)
	queued(time.Minute)
	idle(t, p.Endpoints(), time.Minute)
}

func TestWhatIsForgotten(t *testing.T) {
	for _, tt := range []struct {
		name    string
		outcome Outcome
		stream  bool
		first   bool
		end     time.Duration
		kept    bool
	}{
		{"done", Done, true, true, time.Second, true},
		{"done without a first token", Done, true, false, time.Second, true},
		{"never sent", NeverSent, true, false, 0, false},
		{"failed at once", Failed, true, false, 0, false},
		{"failed while it streamed", Failed, true, true, time.Second, true},
		{"failed, not streaming", Failed, false, false, time.Second, false},
		{"client gone from the queue", ClientGone, true, false, 0, false},
		{"client gone from the stream", ClientGone, true, true, time.Second, true},
		{"client gone before the answer was due", ClientGone, false, false, 0, false},
		{"client gone after the answer was due", ClientGone, false, false, time.Second, true},
	} {
		p := newTestPool(1, Config{})
		system := prose(0, 4000)
		serve(t, p, prompt(system, "one"), 0)
		r := prompt(system, prose(1, 4000))
		r.Stream = tt.stream
		l := pick(t, p, r, 0)
		if tt.first {
			l.FirstToken(tt.end)
		}
		p.Explain(nil, r, tt.end)
		l.End(tt.end, tt.outcome)
		idle(t, p.Endpoints(), tt.end, r.Chain)
		c := p.Explain(nil, r, tt.end)[0]
		if c.Depth < 15 || c.Depth > 15 != tt.kept {
			t.Errorf("%s: %d chunks are believed cached, of 15 that were before", tt.name, c.Depth)
		}
	}
}

func TestSpeedIsLearned(t *testing.T) {
	p := newTestPool(2, Config{})
	fast, slow := p.Endpoints()[0], p.Endpoints()[1]
	now := time.Duration(0)
	request := func(e *Endpoint, id, bytes int, perToken float64) {
		r := prompt(prose(id, bytes))
		for _, x := range p.Endpoints() {
			if x != e {
				r.Exclude = append(r.Exclude, x)
			}
		}
		l := pick(t, p, r, now)
		now += time.Duration(perToken * float64(l.PromptTokens()) * 1e9)
		l.FirstToken(now)
		l.End(now, Done)
	}
	for id := range 300 {
		request(fast, 2*id, 8000, 25e-6)
		request(slow, 2*id+1, 8000, 50e-6)
	}
	f, s := fast.Load(now).Speed, slow.Load(now).Speed
	if f < 24e-6 || f > 29e-6 || s < 46e-6 || s > 51e-6 {
		t.Errorf("learned %.1f and %.1f µs a token, want about 25 and 50", f*1e6, s*1e6)
	}
	for id := range 100 {
		request(fast, 1000+id, 2000, 1) // 500 tokens
	}
	if got := fast.Load(now).Speed; got != f {
		t.Error("small prompts teach speed")
	}
	for id := range 10 {
		fast.Observe(sample(known{KVUsage: .95}), now)
		request(fast, 2000+id, 8000, 100e-6)
	}
	if got := fast.Load(now).Speed; got != f {
		t.Error("first tokens that wait for room in the KV cache teach speed")
	}
	fast.Observe(sample(known{KVUsage: .5}), now)
	request(fast, 3000, 8000, 100e-6)
	if got := fast.Load(now).Speed; got <= f {
		t.Error("with room nothing is learned any more")
	}
}

// Prompts that wait for each other do not count the wait twice.
func TestSpeedCountsFromTheFirstTokenBefore(t *testing.T) {
	p := newTestPool(1, Config{})
	e := p.Endpoints()[0]
	const perToken = 30e-6
	now := time.Duration(0)
	for round := range 50 {
		var leases []Lease
		for i := range 8 {
			leases = append(leases, pick(t, p, prompt(prose(round*8+i, 8000)), now))
		}
		for i := range leases {
			now += time.Duration(2000 * perToken * 1e9)
			leases[i].FirstToken(now)
		}
		for i := range leases {
			leases[i].End(now, Done)
		}
	}
	if got := e.Load(now).Speed; got < 29e-6 || got > 32e-6 {
		t.Errorf("learned %.1f µs a token, want 30", got*1e6)
	}
}

func TestBytesPerToken(t *testing.T) {
	p := newTestPool(1, Config{})
	serveAs := func(model string, id, tokens int) int {
		r := prompt(prose(id, 6000))
		r.Model = model
		l := pick(t, p, r, 0)
		l.Usage(tokens, -1, 10)
		l.End(0, Done)
		return l.PromptTokens()
	}
	if got := serveAs("a", 0, 2000); got != 1500 {
		t.Errorf("a prior of 4 bytes: %d tokens, want 1500", got)
	}
	for id := range 100 {
		serveAs("a", id, 2000)
		serveAs("b", 200+id, 1000)
	}
	a, b := serveAs("a", 500, -1), serveAs("b", 501, -1)
	if a < 1950 || a > 2000 || b < 1000 || b > 1050 {
		t.Errorf("%d and %d tokens, want 2000 and 1000", a, b)
	}
	for i := range 2 * maxModels {
		serveAs(fmt.Sprint("adapter-", i), i, 1500)
	}
	if n := len(*p.models.Load()); n != maxModels {
		t.Errorf("%d models are remembered, want %d", n, maxModels)
	}
	for _, tokens := range []int{0, -5, 1 << 60, math.MinInt, 1} {
		serveAs("a", 600, tokens)
	}
	if got := serveAs("a", 601, -1); got < 1 || got > 6000*4 {
		t.Errorf("absurd reports make %d tokens of 6000 bytes", got)
	}
}

// What one answer takes is learned from requests for many, and the other way round.
func TestSeveralAnswers(t *testing.T) {
	p := newTestPool(1, Config{})
	if one, eight := p.Tokens(&Request{Tokens: 10}), p.Tokens(&Request{Tokens: 10, Answers: 8}); eight-10 != 8*(one-10) {
		t.Errorf("one is expected to cost %v tokens, eight %v", one, eight)
	}
	if n := p.Tokens(&Request{Tokens: 10, Answers: 8, MaxTokens: 20}); n != 30 {
		t.Errorf("with a bound %v tokens", n)
	}
	for range 1000 {
		l := pick(t, p, &Request{Tokens: 10, Answers: 4}, 0)
		l.Usage(10, 0, 4*50)
		l.End(0, Done)
	}
	if n := p.Tokens(&Request{Tokens: 10}); n < 10+45 || n > 10+65 {
		t.Errorf("one answer like those is expected to cost %v tokens", n)
	}
}

// Absurd requests are picked for as others are.
func TestAbsurdRequests(t *testing.T) {
	p := withOthers(newTestPool(3, Config{}), 1)
	for _, r := range []Request{
		{},
		{Tokens: math.MaxInt, Bytes: math.MaxInt},
		{Tokens: math.MinInt, Bytes: -1, MaxTokens: -1, Answers: -1},
		{Answers: math.MaxInt},
		{Chain: make([]uint64, 1000)},
		{Chain: []uint64{1, 1, 1, 1}, Stream: true},
	} {
		l := pick(t, p, &r, 0)
		if l.PromptTokens() < 1 || l.HitTokens() < 0 || l.HitTokens() >= l.PromptTokens() {
			t.Errorf("%d tokens, %d hit", l.PromptTokens(), l.HitTokens())
		}
		l.Usage(math.MaxInt, math.MaxInt, math.MaxInt)
		l.End(0, Done)
		again := pick(t, p, &r, 0)
		again.End(0, Failed)
	}
	idle(t, p.Endpoints(), time.Hour, []uint64{1, 1})
}

func TestConcurrentRequests(t *testing.T) {
	p := withOthers(newTestPool(6, Config{}), 1)
	first := p.Endpoints()
	var chains [][]uint64
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range uint64(8) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(w, 2))
			now := time.Duration(0)
			var held []Lease
			for i := range 400 {
				now += time.Duration(rnd.IntN(50)) * time.Millisecond
				r := prompt(prose(rnd.IntN(4), 3000), prose(int(w)*1000+i, rnd.IntN(6000)))
				r.Stream = rnd.IntN(3) > 0
				if rnd.IntN(4) == 0 {
					r.Exclude = p.Endpoints()[:1]
				}
				mu.Lock()
				chains = append(chains, r.Chain)
				mu.Unlock()
				l, err := p.Pick(r, now)
				if err != nil {
					t.Error(err)
					return
				}
				held = append(held, l)
				for len(held) > 5 || len(held) > 0 && rnd.IntN(2) == 0 {
					k := rnd.IntN(len(held))
					l := &held[k]
					if rnd.IntN(4) > 0 {
						l.FirstToken(now)
					}
					if rnd.IntN(4) > 0 {
						l.Usage(l.PromptTokens(), rnd.IntN(l.PromptTokens()), rnd.IntN(500))
					}
					if rnd.IntN(50) == 0 {
						l.Endpoint().Eject(now)
					}
					l.End(now, Outcome(rnd.IntN(4)))
					l.End(now, Done)
					held[k] = held[len(held)-1]
					held = held[:len(held)-1]
				}
			}
			for i := range held {
				held[i].End(now, Done)
			}
		})
	}
	wg.Go(func() {
		rnd := rand.New(rand.NewPCG(9, 9))
		for i := range 300 {
			now := time.Duration(i) * 30 * time.Millisecond
			p.SetEndpoints(specs(2 + rnd.IntN(5)))
			for _, e := range p.Endpoints() {
				var s Sample
				s.Set(StartTime, float64(1000+i/100*10))
				s.Set(Running, rnd.Float64()*20)
				s.Set(KVUsage, rnd.Float64())
				s.Set(PromptComputed, float64(i)*1000)
				s.Set(Generated, float64(i)*100)
				s.Set(BlockSize, 16)
				s.Set(NumBlocks, float64(1000*(1+i/60)))
				e.Observe(s, now)
				e.Load(now)
				e.ScrapeFailed(now)
				e.Readmit()
			}
			p.Explain(nil, &Request{}, now)
		}
	})
	wg.Wait()
	idle(t, first, time.Hour, chains...)
	idle(t, p.Endpoints(), time.Hour, chains...)
}

// One request after the other at random, against sums kept the simple way.
func TestSumsAgainstModel(t *testing.T) {
	type request struct {
		lease            Lease
		tokens           int64
		stream, in, open bool
		due              time.Duration
	}
	rnd := rand.New(rand.NewPCG(3, 3))
	p := newTestPool(3, Config{})
	var live []*request
	now := time.Duration(0)
	for range 3000 {
		now += time.Duration(rnd.IntN(30)) * time.Millisecond
		switch rnd.IntN(3) {
		case 0:
			r := prompt(prose(rnd.IntN(50), 1000+rnd.IntN(20_000)))
			r.Stream = rnd.IntN(2) == 0
			terms := p.Explain(nil, r, now)
			l := pick(t, p, r, now)
			q := &request{lease: l, stream: r.Stream, in: true, open: true}
			for _, c := range terms {
				if c.Endpoint == l.Endpoint() {
					q.tokens = int64(c.Uncached)
					q.due = now + seconds(c.Speed*(c.Queued+c.Uncached))
				}
			}
			live = append(live, q)
		case 1:
			if len(live) > 0 {
				q := live[rnd.IntN(len(live))]
				q.lease.FirstToken(now)
				q.in = q.in && !q.stream
			}
		case 2:
			if len(live) > 0 {
				k := rnd.IntN(len(live))
				live[k].lease.End(now, Outcome(rnd.IntN(4)))
				live = append(live[:k], live[k+1:]...)
			}
		}
		p.Explain(nil, &Request{}, now) // releases what is due
		for _, e := range p.Endpoints() {
			var queued, held, n int64
			for _, q := range live {
				if q.lease.Endpoint() != e {
					continue
				}
				if q.in = q.in && (q.stream || q.due > now); q.in {
					queued += q.tokens
				}
				held += q.tokens
				n++
			}
			if got := e.Load(now); int64(got.Queued) != queued || int64(got.InFlight) != n || e.held.Load() != held {
				t.Fatalf("%s at %v: %d queued, %d in flight, %d held; want %d, %d, %d", e.Address(), now, got.Queued, got.InFlight, e.held.Load(), queued, n, held)
			}
		}
	}
}

func TestRequestsDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool drops at random under the race detector")
	}
	for _, policy := range []Policy{nil, &RoundRobin{}, LeastRequest{}} {
		for _, stream := range []bool{true, false} {
			pods := minCensus / 2
			if stream {
				pods = minCensus
			}
			p := newTestPool(pods, Config{Policy: policy})
			for _, e := range p.Endpoints() {
				e.Observe(sample(known{KVUsage: .2, Running: 1, Waiting: 1}), 0)
			}
			r := prompt(prose(1, 30_000))
			r.Stream = stream
			var terms []Candidate
			now := time.Duration(0)
			request := func() {
				now += 10 * time.Millisecond
				if r.Candidates, r.SLO = nil, (SLO{}); now%(20*time.Millisecond) == 0 {
					r.Candidates, r.SLO = &terms, SLO{now + time.Second, 50 * time.Millisecond}
				}
				l, err := p.Pick(r, now)
				if err != nil {
					t.Fatal(err)
				}
				p.Why(terms, l.Endpoint())
				l.FirstToken(now + 1)
				l.Usage(7000, 6500, 100)
				l.End(now+2, Done)
			}
			for range 100 { // every endpoint makes its table, the model is learned
				request()
			}
			if n := testing.AllocsPerRun(200, request); n != 0 {
				t.Errorf("%T, streaming %v: %v allocations a request", policy, stream, n)
			}
		}
	}
}
