package picker

import (
	"encoding/binary"
	"math"
	"testing"
	"time"
)

type known map[Metric]float64

func sample(k known) (s Sample) {
	for m, v := range k {
		s.Set(m, v)
	}
	return s
}

func TestSample(t *testing.T) {
	var s Sample
	for _, v := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), -1, 1e300} {
		s.Set(Running, v)
		s.Set(numMetrics, v)
		if s.Has(Running) || s.Has(numMetrics) {
			t.Errorf("%v is taken for a number of requests", v)
		}
	}
	s.Set(Running, 3)
	s.Set(Running, math.NaN())
	s.Add(Running, 4)
	s.Add(Waiting, 2)
	if r, ok := s.Get(Running); r != 7 || !ok {
		t.Errorf("running %v, %v", r, ok)
	}
	if w, ok := s.Get(Waiting); w != 2 || !ok {
		t.Errorf("waiting %v, %v", w, ok)
	}
	if s.Has(KVUsage) {
		t.Error("a metric that was not set is known")
	}
}

func TestRestartEmptiesTheIndex(t *testing.T) {
	before := known{StartTime: 1e9, PromptComputed: 5000, Generated: 900, PrefixQueries: 9000, PrefixHits: 4000, Preemptions: 2}
	with := func(k known) known {
		n := known{}
		for m, v := range before {
			n[m] = v
		}
		for m, v := range k {
			if n[m] = v; v < 0 {
				delete(n, m)
			}
		}
		return n
	}
	for _, tt := range []struct {
		name  string
		after known
		anew  bool
	}{
		{"nothing new", with(nil), false},
		{"counters move on", with(known{PromptComputed: 6000, Generated: 1000, PrefixQueries: 9001}), false},
		{"the start time jumps", with(known{StartTime: 1e9 + 60, PromptComputed: 9000}), true},
		{"the start time is rounded", with(known{StartTime: 1e9 + .02}), false},
		{"a counter goes backwards", with(known{Generated: 899}), true},
		{"hits go backwards", with(known{PrefixHits: 0}), true},
		{"a difference of two counters slips", with(known{PromptComputed: 4900}), false},
		{"a difference of two counters starts anew", with(known{PromptComputed: 100}), true},
		{"counters are missing", known{Running: 1}, false},
		{"the start time is missing", with(known{StartTime: -1, PrefixQueries: 1}), true},
		{"nothing at all", known{}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newTestPool(1, Config{})
			e := p.Endpoints()[0]
			e.Observe(sample(before), 0)
			r := prompt(prose(1, 20_000))
			serve(t, p, r, 0)
			under := pick(t, p, r, time.Second)
			e.Observe(sample(tt.after), time.Second)
			if anew := e.Load(time.Second).IndexEntries == 0; anew != tt.anew {
				t.Errorf("index emptied: %v, want %v", anew, tt.anew)
			}
			under.FirstToken(time.Second)
			under.End(time.Second, Done)
			idle(t, p.Endpoints(), time.Second, r.Chain)
			if l := pick(t, p, r, time.Second); l.HitTokens() > 0 == tt.anew {
				t.Errorf("hit %d tokens", l.HitTokens())
			}
		})
	}
	// The counters' last known values survive a scrape that lacks them.
	p := newTestPool(1, Config{})
	e := p.Endpoints()[0]
	serve(t, p, prompt(prose(1, 5000)), 0)
	e.Observe(sample(before), 0)
	e.Observe(Sample{}, 1)
	e.Observe(sample(with(known{StartTime: 1e9 + 60})), 2)
	if e.Load(2).IndexEntries != 0 {
		t.Error("a restart behind an empty scrape went unnoticed")
	}
}

// A refused connection says that nothing is there. Without a start time to tell, the index is emptied.
func TestEjectionForgetsWithoutStartTime(t *testing.T) {
	for _, tells := range []bool{false, true} {
		p := newTestPool(1, Config{})
		e := p.Endpoints()[0]
		if tells {
			e.Observe(sample(known{StartTime: 1e9}), 0)
		}
		serve(t, p, prompt(prose(1, 5000)), 0)
		e.Eject(time.Second)
		if kept := e.Load(time.Second).IndexEntries > 0; kept != tells {
			t.Errorf("start time known: %v, index kept: %v", tells, kept)
		}
	}
}

func TestForeignRequests(t *testing.T) {
	p := newTestPool(1, Config{})
	e := p.Endpoints()[0]
	own := pick(t, p, prompt(prose(1, 8000)), 0) // 2,000 tokens, in the queue
	at := 10 * time.Second
	e.Observe(sample(known{Running: 5, Waiting: 4}), at)
	c := p.Explain(nil, prompt("x"), at)[0]
	// 9 requests are there, one is ours; 4 wait, one may be ours; each is taken to be as long as our own.
	mean := p.uncached.mean(defaultUncached, 1)
	if c.InFlight != 9 || math.Abs(c.Queued-(2000+3*mean)) > 1 {
		t.Errorf("%v requests with %v tokens queued, want 9 with %v", c.InFlight, c.Queued, 2000+3*mean)
	}
	own.End(at, ClientGone)
	// Ours has ended; of the others' some may have, too.
	if c, want := p.Explain(nil, prompt("x"), at)[0], 8-p.others.mirrored(); c.InFlight != want || want >= 8 {
		t.Errorf("%v requests after ours has ended, want %v", c.InFlight, want)
	}
	stale := at + 2*time.Second
	e.ScrapeFailed(stale)
	if c := p.Explain(nil, prompt("x"), stale)[0]; c.InFlight != 0 || c.Queued != 0 {
		t.Errorf("a stale scrape counts: %v requests, %v tokens", c.InFlight, c.Queued)
	}
	if l := e.Load(stale); !l.Stale || l.ScrapeAge != 2*time.Second || l.ScrapeFailures != 1 || l.EjectedUntil != 0 {
		t.Errorf("%+v", l)
	}
}

func TestKV(t *testing.T) {
	p := newTestPool(1, Config{})
	e := p.Endpoints()[0]
	kv := func(now time.Duration) float64 { return p.Explain(nil, prompt("x"), now)[0].KV }
	near := func(got, want float64) bool { return math.Abs(got-want) < 1e-3 }

	a := pick(t, p, prompt(prose(1, 40_000)), 0) // 10,000 tokens
	if got := kv(0); !near(got, 10_000.0/defaultCapacity) {
		t.Errorf("without metrics: %v", got)
	}
	e.Observe(sample(known{KVUsage: .3, BlockSize: 16, NumBlocks: 6250}), 0)
	if got := kv(0); !near(got, .3) || e.Load(0).Capacity != 100_000 {
		t.Errorf("as scraped: %v", got)
	}
	b := pick(t, p, prompt(prose(2, 40_000)), 0)
	if got := kv(0); !near(got, .4) {
		t.Errorf("sent since: %v", got)
	}
	b.End(0, NeverSent)
	if got := kv(0); !near(got, .3) {
		t.Errorf("never sent: %v", got)
	}
	a.End(0, Done)
	if got := kv(0); !near(got, .2) {
		t.Errorf("ended since: %v", got)
	}
	if got := kv(time.Minute); got != 0 {
		t.Errorf("stale: %v", got)
	}
	e.Observe(sample(known{KVUsage: 7}), 0)
	if got := kv(0); got != 1 {
		t.Errorf("absurd: %v", got)
	}
	if got := e.Load(0).Capacity; got != 100_000 {
		t.Errorf("capacity %d after a scrape without it", got)
	}
}

// The allocation clock follows the pod's counters when they are there, and our own usage reports when not; what both tell
// counts once.
func TestClock(t *testing.T) {
	p := newTestPool(1, Config{})
	e := p.Endpoints()[0]
	request := func(now time.Duration, prompt, cached, completion int) {
		r := Request{Tokens: prompt, Stream: true}
		l := pick(t, p, &r, now)
		l.Usage(prompt, cached, completion)
		l.End(now, Done)
	}
	expect := func(what string, want uint64) {
		t.Helper()
		if got := e.clock.Load(); got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}
	request(0, 1000, 300, 50)
	expect("own", 750)
	e.Observe(sample(known{PromptComputed: 10_700, Generated: 5050}), 1)
	expect("the first scrape", 750)
	request(2, 1000, 0, 100)
	expect("with fresh counters", 750)
	e.Observe(sample(known{PromptComputed: 11_700, Generated: 5150}), 3)
	expect("counters moved", 1850)
	stale := 3 * time.Second
	request(stale, 500, 0, 0)
	expect("stale", 2350)
	e.Observe(sample(known{PromptComputed: 12_300, Generated: 5150}), stale+1)
	expect("counters that include what we counted", 2450)
	request(stale+2, 0, -1, -1)
	e.Observe(sample(known{PromptComputed: 1, Generated: 1}), stale+3)
	expect("a restart", 2450)
}

// Chunks leave with the pod's clock: what fits the free part of its cache stays, older prompts are not believed any more.
func TestCacheAges(t *testing.T) {
	p := newTestPool(1, Config{})
	e := p.Endpoints()[0]
	counters := known{BlockSize: 16, NumBlocks: 1000, KVUsage: 0, PromptComputed: 0, Generated: 0}
	e.Observe(sample(counters), 0)
	r := prompt(prose(1, 8000)) // 2,000 tokens
	serve(t, p, r, 0)
	hit := func() float64 { return p.Explain(nil, r, 0)[0].Hit }
	for _, tt := range []struct{ computed, kv, want float64 }{
		{10_000, 0, 1984},
		{10_000, .25, 1984},
		{10_000, .35, 400}, // window 10,400
		{13_000, 0, 1984},  // the tail is 15,000 tokens old
		{15_000, 0, 1000},
		{16_000, 0, 0},
	} {
		counters[PromptComputed], counters[KVUsage] = tt.computed, tt.kv
		e.Observe(sample(counters), 0)
		if got := hit(); math.Abs(got-tt.want) > 100 {
			t.Errorf("after %v tokens, kv %v: hit %v, want about %v", tt.computed, tt.kv, got, tt.want)
		}
	}
}

func TestRoomForCopies(t *testing.T) {
	r := prompt(prose(1, 8000)) // 2,000 tokens
	for _, tt := range []struct {
		name     string
		computed float64 // by the first pod, since it served the prompt
		used     bool    // it serves it when the prompt comes again
		to       int     // where that goes
		scarce   bool
	}{
		{"found where it was", 0, false, 0, false},
		{"computed where it was lost", 20_000, false, 0, true},
		{"copied while nobody uses it", 0, false, 1, true},
		{"copied while it is used", 0, true, 1, false},
	} {
		var to fixed
		p := newTestPool(2, Config{Policy: &to})
		observe := func(computed float64, now time.Duration) {
			counters := known{BlockSize: 16, NumBlocks: 1000, KVUsage: 0, PromptComputed: computed, Generated: 0}
			p.Endpoints()[0].Observe(sample(counters), now)
		}
		observe(0, 0)
		serve(t, p, r, 0)
		observe(tt.computed, time.Second)
		var user Lease
		if tt.used {
			user = pick(t, p, r, time.Second)
		}
		to = fixed(tt.to)
		serve(t, p, r, time.Second)
		user.End(2*time.Second, Done)
		if dearer := p.Explain(nil, prompt(prose(2, 8000)), 2*time.Second)[0].Again > 0; dearer != tt.scarce {
			t.Errorf("%s: what is not cached is dearer: %v", tt.name, dearer)
		}
	}
}

// fixed is the number of the endpoint that is always chosen.
type fixed int

func (f *fixed) Choose([]Candidate, *Request) int { return int(*f) }

// FuzzObserve feeds endpoints with whatever: picks go on, with finite scores.
func FuzzObserve(f *testing.F) {
	number := func(b []byte, v float64) []byte { return binary.LittleEndian.AppendUint64(b, math.Float64bits(v)) }
	var nan, big, negative []byte
	for range 2 * numMetrics {
		nan, big, negative = number(nan, math.NaN()), number(big, 1e18), number(negative, -1)
	}
	f.Add(nan)
	f.Add(big)
	f.Add(negative)
	f.Add(number(number(number(nil, 5), 3), .5))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := withOthers(newTestPool(2, Config{}), 1)
		e := p.Endpoints()[0]
		r := prompt(prose(1, 3000))
		for now := time.Duration(0); len(data) >= 8; now += time.Second {
			var s Sample
			for m := Metric(0); m < numMetrics && len(data) >= 8; m++ {
				s.Add(m, math.Float64frombits(binary.LittleEndian.Uint64(data)))
				data = data[8:]
			}
			e.Observe(s, now)
			for _, c := range p.Explain(nil, r, now) {
				if !(c.Score > 0 && c.Score < math.MaxFloat64 && c.KV >= 0 && c.KV <= 1 && c.Uncached >= 1 && c.Queued >= 0) {
					t.Fatalf("%+v", c)
				}
			}
			l, err := p.Pick(r, now)
			if err != nil {
				t.Fatal(err)
			}
			l.Usage(len(data), len(data)/2, len(data))
			l.End(now, Done)
		}
		idle(t, p.Endpoints(), 0, r.Chain)
	})
}
