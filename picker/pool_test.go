package picker

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/picker/prefix"
)

// newTestPool returns a pool of n endpoints.
func newTestPool(n int, cfg Config) *Pool {
	p := NewPool(cfg)
	p.SetEndpoints(specs(n))
	return p
}

func specs(n int) []Spec {
	s := make([]Spec, n)
	for i := range s {
		s[i] = Spec{Address: fmt.Sprintf("10.0.0.%d:8000", i+1), UID: fmt.Sprintf("uid-%d", i+1)}
	}
	return s
}

// prose returns n bytes that belong to id and do not repeat.
func prose(id, n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "text %d, sentence %d. ", id, i)
	}
	return b.String()[:n]
}

// prompt returns a streaming request for these messages.
func prompt(messages ...string) *Request {
	var spans []prefix.Span
	for _, m := range messages {
		spans = append(spans, prefix.Span{Data: []byte(m)})
	}
	r := &Request{Model: "m", Stream: true}
	r.Chain, r.Hash, r.Bytes = prefix.AppendChain(nil, prefix.Seed(r.Model), spans)
	return r
}

func pick(t *testing.T, p *Pool, r *Request, now time.Duration) Lease {
	t.Helper()
	l, err := p.Pick(r, now)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serve lets a request through and returns where it went.
func serve(t *testing.T, p *Pool, r *Request, now time.Duration) *Endpoint {
	t.Helper()
	l := pick(t, p, r, now)
	l.FirstToken(now + 50*time.Millisecond)
	l.Usage(l.PromptTokens(), l.HitTokens(), 100)
	l.End(now+time.Second, Done)
	return l.Endpoint()
}

// idle fails the test if anything is left of requests that have all ended.
func idle(t *testing.T, endpoints []*Endpoint, now time.Duration, chains ...[]uint64) {
	t.Helper()
	for _, e := range endpoints {
		if q, n, h, a := e.queued.Load(), e.inflight.Load(), e.held.Load(), e.awaiting.Load(); q != 0 || n != 0 || h != 0 || a != 0 || len(e.due) != 0 {
			t.Errorf("%s: %d tokens queued for %d requests, %d in flight with %d tokens, %d due", e.Address(), q, a, n, h, len(e.due))
		}
		for _, c := range chains {
			if d := e.index.Match(c, e.clock.Load(), -1<<40, 0); d != 0 {
				t.Errorf("%s: %d chunks are still pinned", e.Address(), d)
			}
		}
	}
}

func TestConversationStaysOnItsPod(t *testing.T) {
	for _, pods := range []int{2, 4, 16} {
		p := newTestPool(pods, Config{})
		var messages []string
		var home *Endpoint
		for turn := range 10 {
			messages = append(messages, prose(turn, 1500))
			e := serve(t, p, prompt(messages...), time.Duration(turn)*10*time.Second)
			if home == nil {
				home = e
			}
			if e != home {
				t.Errorf("%d pods: turn %d went to %s, the conversation is on %s", pods, turn, e.Address(), home.Address())
			}
		}
	}
}

func TestSharedSystemPrompt(t *testing.T) {
	system := prose(0, 30_000)
	p := newTestPool(4, Config{})
	warm := serve(t, p, prompt(system, "one"), 0)
	now := time.Minute
	if e := serve(t, p, prompt(system, "two"), now); e != warm {
		t.Errorf("an idle pool: the second went to %s, the system prompt is on %s", e.Address(), warm.Address())
	}
	// Now the warm pod is kept busy by others.
	var others []Lease
	for i := range 8 {
		r := prompt(prose(100+i, 8000))
		for _, e := range p.Endpoints() {
			if e != warm {
				r.Exclude = append(r.Exclude, e)
			}
		}
		others = append(others, pick(t, p, r, now))
	}
	if e := serve(t, p, prompt(system, "three"), now); e == warm {
		t.Error("a busy pool: the third waits behind the warm pod's queue")
	}
	for i := range others {
		others[i].End(now, Done)
	}
	idle(t, p.Endpoints(), now)
}

func TestTurnsOfManyConversationsSpread(t *testing.T) {
	p := newTestPool(4, Config{})
	count := map[*Endpoint]int{}
	for i := range 400 {
		count[serve(t, p, prompt(prose(i, 3000)), time.Duration(i)*10*time.Second)]++
	}
	for e, n := range count {
		if n < 60 || n > 140 {
			t.Errorf("%s got %d of 400 conversations", e.Address(), n)
		}
	}
}

func TestSetEndpointsKeepsState(t *testing.T) {
	p := newTestPool(4, Config{})
	r := prompt(prose(1, 20_000))
	home := serve(t, p, r, 0)
	under := pick(t, p, r, time.Second)
	home.Eject(2 * time.Second)
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 1000 {
		s := specs(4)
		rnd.Shuffle(4, func(i, j int) { s[i], s[j] = s[j], s[i] })
		p.SetEndpoints(append(s, s[0]))
	}
	if n := len(p.Endpoints()); n != 4 {
		t.Fatalf("%d endpoints", n)
	}
	l := home.Load(2 * time.Second)
	if l.InFlight != 1 || l.Failures != 1 || l.EjectedUntil != 3*time.Second {
		t.Errorf("lost state: %+v", l)
	}
	home.Readmit()
	under.End(3*time.Second, Done)
	again := pick(t, p, r, time.Minute)
	if again.Endpoint() != home {
		t.Error("the endpoint's index is lost")
	}
	again.End(time.Minute, Done)

	// A new pod on the old address is another endpoint.
	s := specs(4)
	for i := range s {
		s[i].UID += "-new"
	}
	old := p.Endpoints()
	leaving := pick(t, p, r, time.Minute)
	p.SetEndpoints(s)
	l2 := pick(t, p, r, time.Minute)
	if l2.HitTokens() != 0 {
		t.Error("a new pod has its predecessor's cache")
	}
	l2.End(time.Minute, Done)
	leaving.FirstToken(time.Minute)
	leaving.End(time.Minute, Done)
	idle(t, old, time.Minute, r.Chain)
	idle(t, p.Endpoints(), time.Minute, r.Chain)
}

func TestPickErrors(t *testing.T) {
	p := NewPool(Config{})
	if l, err := p.Pick(&Request{}, 0); !errors.Is(err, ErrNoEndpoints) || l.Endpoint() != nil {
		t.Errorf("an empty pool: %v, %v", l.Endpoint(), err)
	}
	p.SetEndpoints(specs(3))
	e := p.Endpoints()
	r := prompt("hello")
	r.Exclude = e
	if _, err := p.Pick(r, 0); !errors.Is(err, ErrExcluded) {
		t.Errorf("all excluded: %v", err)
	}
	r.Exclude = e[:2]
	if l, err := p.Pick(r, 0); err != nil || l.Endpoint() != e[2] {
		t.Errorf("the only one left: %v, %v", l.Endpoint(), err)
	}
	var zero Lease
	zero.FirstToken(0)
	zero.Usage(1, 1, 1)
	zero.End(0, Done)
}

func TestEjectedEndpoints(t *testing.T) {
	p := newTestPool(3, Config{})
	e := p.Endpoints()
	r := prompt("hello")
	e[1].Eject(0)
	e[2].Eject(10)
	for i := range 20 {
		if got := serve(t, p, prompt(fmt.Sprint(i)), 100); got != e[0] {
			t.Fatalf("picked the ejected %s", got.Address())
		}
	}
	e[0].Eject(20)
	if l := pick(t, p, r, 100); l.Endpoint() != e[1] {
		t.Error("with all ejected, not the one ejected longest ago")
	}
	r.Exclude = []*Endpoint{e[1]}
	if l := pick(t, p, r, 100); l.Endpoint() != e[2] {
		t.Error("an excluded endpoint counts, or a younger ejection")
	}
	r.Exclude = e
	if _, err := p.Pick(r, 100); !errors.Is(err, ErrExcluded) {
		t.Errorf("all ejected and excluded: %v", err)
	}
}

func TestSilentEndpoints(t *testing.T) {
	p := newTestPool(3, Config{})
	e := p.Endpoints()
	r := prompt(prose(1, 4096))
	warm := serve(t, p, r, 0)
	at := 10 * time.Second
	warm.Asked(at)
	warm.Asked(at + Silence/2) // the first question counts
	if got := serve(t, p, r, at+Silence-1); got != warm {
		t.Errorf("passed over before its time: picked %s", got.Address())
	}
	// What came in the meantime was an answer, though not to the question.
	at += 3*Silence - 1
	if warm.Silent(at-1) || !warm.Silent(at) {
		t.Errorf("silent just before %v: %v, then: %v", at, warm.Silent(at-1), warm.Silent(at))
	}
	at += time.Second
	other := serve(t, p, r, at)
	if other == warm {
		t.Fatal("picked a silent endpoint for what it has cached")
	}
	for _, x := range e {
		x.Asked(at)
	}
	if got := serve(t, p, r, at+time.Minute); got != warm {
		t.Errorf("all are silent, and %s was passed over", warm.Address())
	}
	for _, x := range e {
		if x != warm {
			x.Eject(at + time.Minute)
		}
	}
	if got := serve(t, p, r, at+time.Minute); got != warm {
		t.Errorf("the only one that takes connections is silent, and picked was %s", got.Address())
	}
	warm.Answered()
	if warm.Silent(at + time.Hour) {
		t.Error("silent though it has answered and was asked nothing")
	}
}

// A pod that goes on answering scrapes and computes nothing, as one whose GPU hangs, keeps a handful of requests: what waits there
// makes it dear, even for what it has cached.
func TestStalledEndpoint(t *testing.T) {
	p := newTestPool(4, Config{})
	beginning := prose(1, 16384)
	stalled := serve(t, p, prompt(beginning), 0)
	kept := 0
	for i := range 200 {
		now := time.Duration(i+20) * 100 * time.Millisecond
		l := pick(t, p, prompt(beginning, prose(2+i, 400)), now)
		if l.Endpoint() == stalled {
			kept++
			continue
		}
		l.FirstToken(now + 50*time.Millisecond)
		l.End(now+90*time.Millisecond, Done)
	}
	if kept > 15 {
		t.Errorf("it keeps %d of 200 requests", kept)
	}
}

// A pod is passed over whose engine hangs: it says for ten seconds that requests run, and computes nothing.
func TestStandstill(t *testing.T) {
	p := newTestPool(2, Config{})
	hung, well := p.Endpoints()[0], p.Endpoints()[1]
	sample := func(running, computed, generated float64) (s Sample) {
		s.Set(Running, running)
		s.Set(PromptComputed, computed)
		s.Set(Generated, generated)
		return s
	}
	picked := func(now time.Duration) bool {
		for i := range 50 {
			l := pick(t, p, prompt(fmt.Sprint(now, i)), now)
			l.End(now, NeverSent)
			if l.Endpoint() == hung {
				return true
			}
		}
		return false
	}
	at := time.Duration(0)
	for ; at < standstill; at += 100 * time.Millisecond {
		hung.Observe(sample(1, 1000, 50), at)
		well.Observe(sample(1, 1000, 50+float64(at)), at)
		if !picked(at) {
			t.Fatalf("passed over after %v", at)
		}
	}
	hung.Observe(sample(1, 1000, 50), at)
	if picked(at) {
		t.Error("picked though it stands still")
	}
	if !picked(at + time.Minute) {
		t.Error("passed over by a scrape that is stale")
	}
	l := p.Reserve(hung, prompt("an older request"), at)
	l.FirstToken(at)
	if hung.Silent(at) {
		t.Error("passed over though a first token came")
	}
	l.End(at, Done)
	at += standstill
	hung.Observe(sample(1, 1000, 50), at)
	if !hung.Silent(at) {
		t.Error("not passed over though it has stood still since")
	}
	hung.Observe(sample(1, 1000, 51), at)
	if hung.Silent(at) {
		t.Error("passed over though it computes again")
	}
	at += standstill
	hung.Observe(sample(0, 1000, 51), at)
	if hung.Silent(at) {
		t.Error("passed over though there is nothing to compute")
	}
}

// A pod that computes one long prompt is not passed over: its counters stand still until all of it is computed, but its cache fills.
func TestLongPrompt(t *testing.T) {
	e := newTestPool(2, Config{}).Endpoints()[0]
	var s Sample
	s.Set(Running, 1)
	s.Set(PromptComputed, 1000)
	s.Set(Generated, 50)
	for at := time.Duration(0); at < time.Minute; at += 100 * time.Millisecond {
		s.Set(KVUsage, float64(at/time.Second)/100) // a step takes a second
		if e.Observe(s, at); e.Silent(at) {
			t.Fatalf("passed over after %v", at)
		}
	}
}

// An answer that reports its pod's load says nothing of how long the pod has stood still.
func TestReportIsNoStandstill(t *testing.T) {
	e := newTestPool(1, Config{}).Endpoints()[0]
	if e.ObserveAnswer(0.5, 0, time.Minute); e.Silent(time.Minute) {
		t.Error("passed over for what an answer reports")
	}
}

// The last endpoint that is not ejected may be silent, and be ejected while it is looked at.
func TestEjectedInTheLastMoment(t *testing.T) {
	p := newTestPool(1, Config{})
	e, now := p.Endpoints()[0], time.Minute
	e.Asked(time.Second)
	done := make(chan struct{})
	var other sync.WaitGroup
	other.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				e.Eject(now)
				e.Readmit()
			}
		}
	})
	for range 50000 {
		l := pick(t, p, prompt("x"), now)
		l.End(now, NeverSent)
	}
	close(done)
	other.Wait()
}

func TestEjectionDoubles(t *testing.T) {
	p := newTestPool(1, Config{})
	e := p.Endpoints()[0]
	now := time.Duration(0)
	for i, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30, 30} {
		e.Eject(now)
		e.Eject(now + 1) // another request was refused at the same time
		if got := e.Load(now).EjectedUntil - now; got != want*time.Second {
			t.Fatalf("ejection %d lasts %v, want %v", i+1, got, want*time.Second)
		}
		now += want * time.Second
		if e.Ejected(now) {
			t.Fatal("still ejected after its time")
		}
	}
	e.Readmit()
	e.Eject(now)
	if got := e.Load(now).EjectedUntil - now; got != time.Second {
		t.Errorf("after a success: %v", got)
	}
}

// A pod that drains still finishes streams while it refuses connections: only what was sent since proves that it is back.
func TestOnlyNewAnswersReadmit(t *testing.T) {
	p := newTestPool(1, Config{})
	e := p.Endpoints()[0]
	before := pick(t, p, prompt("a"), 0)
	e.Eject(time.Second)
	before.FirstToken(time.Second)
	before.End(time.Second, Done)
	if !e.Ejected(time.Second) || e.Load(0).Failures != 1 {
		t.Error("readmitted by an answer to a request from before")
	}
	after := pick(t, p, prompt("b"), 3*time.Second)
	after.FirstToken(3 * time.Second)
	if e.Load(3*time.Second).Failures != 0 {
		t.Error("not readmitted by a first token")
	}
	after.End(3*time.Second, Done)
}

// together is a policy whose first calls wait for each other: picks at the same instant.
type together struct {
	fairway
	calls atomic.Int32
	all   sync.WaitGroup
}

func (p *together) Choose(c []Candidate, r *Request) int {
	if p.calls.Add(1) <= attempts {
		p.all.Done()
		p.all.Wait()
	}
	return p.fairway.Choose(c, r)
}

// Picks that happen at the same instant do not all find the same pod idle.
func TestSimultaneousPicksSeeEachOther(t *testing.T) {
	for hash := range uint64(20) {
		policy := &together{}
		policy.all.Add(attempts)
		p := newTestPool(attempts, Config{Policy: policy})
		policy.pool = p
		leases := make([]Lease, attempts)
		var wg sync.WaitGroup
		for i := range leases {
			wg.Go(func() {
				leases[i], _ = p.Pick(&Request{Tokens: 2000, Hash: hash, Stream: true}, 0)
			})
		}
		wg.Wait()
		at := map[*Endpoint]int{}
		for i := range leases {
			at[leases[i].Endpoint()]++
			leases[i].End(0, Done)
		}
		if len(at) != attempts {
			t.Fatalf("%d requests went to %d of as many idle pods", attempts, len(at))
		}
		idle(t, p.Endpoints(), 0)
	}
}

func TestExplain(t *testing.T) {
	p := withOthers(newTestPool(4, Config{}), 1)
	r := prompt(prose(1, 20_000))
	serve(t, p, r, 0)
	before := p.Explain(nil, r, time.Second)
	again := p.Explain(nil, r, time.Second)
	terms := []Candidate{{Score: 42}} // of another pick
	r.Candidates = &terms
	l, err := p.Pick(r, time.Second)
	r.Candidates = nil
	if err != nil || len(terms) != 4 {
		t.Fatalf("%d terms, %v", len(terms), err)
	}
	lowest := 0
	for i, c := range terms {
		if before[i] != c || again[i] != c {
			t.Errorf("explained %+v, then %+v, picked by %+v", before[i], again[i], c)
		}
		if c.Score < terms[lowest].Score {
			lowest = i
		}
	}
	if c := terms[lowest]; c.Endpoint != l.Endpoint() || int(c.Hit) != l.HitTokens() || c.Hit < 4900 {
		t.Errorf("the lease (%d tokens hit) is not the lowest score's (%+v)", l.HitTokens(), c)
	}
	if got := p.Explain(nil, r, time.Second); got[lowest].InFlight != 1 {
		t.Errorf("in flight: %v, want 1: Explain must not reserve, Pick must", got[lowest].InFlight)
	}
	l.End(time.Second, Done)
	idle(t, p.Endpoints(), time.Second, r.Chain)
	if got := NewPool(Config{}).Explain(nil, r, 0); len(got) != 0 {
		t.Errorf("an empty pool explains %v", got)
	}
}

// However many endpoints there are, and come and go, each is seen to hold what its own index says.
func TestCensusChangesNoCandidate(t *testing.T) {
	p := NewPool(Config{IndexSecret: 7})
	random := rand.New(rand.NewPCG(5, 6))
	for round, n := range []int{minCensus, 2 * minCensus, 3, 150, 70, 71} {
		p.SetEndpoints(specs(n))
		for i, e := range p.Endpoints() {
			switch random.IntN(8) {
			case 0:
				e.Observe(sample(known{BlockSize: 16, NumBlocks: float64(int(2000) << (i % 8))}), time.Duration(round))
			case 1:
				e.Eject(time.Duration(round)) // empties its index
				e.Readmit()
			}
		}
		for id := range 10 {
			r := prompt(prose(id, 20_000))
			for _, e := range p.Endpoints() {
				if random.IntN(3) == 0 {
					hold(e, r.Chain[:random.IntN(len(r.Chain)+1)])
				}
			}
			c := p.Explain(nil, r, 0)
			if len(c) != n {
				t.Fatalf("%d candidates of %d endpoints", len(c), n)
			}
			for i := range c {
				e := c[i].Endpoint
				if want := e.index.Match(r.Chain, e.clock.Load(), c[i].window, 0); c[i].Depth != want {
					t.Errorf("of %d endpoints, %s holds %d chunks, not %d", n, e.Name(), want, c[i].Depth)
				}
			}
		}
	}
}

// Weighing endpoints waits for nobody: not for a writer of an index, not for a scrape being taken in, not for SetEndpoints.
func TestWeighingTakesNoLock(t *testing.T) {
	p := newTestPool(3, Config{})
	r := prompt(prose(1, 20_000))
	serve(t, p, r, 0)
	r.Stream = false
	l := pick(t, p, r, 0)
	p.mu.Lock()
	for _, e := range p.Endpoints() {
		e.mu.Lock()
	}
	if got := p.Explain(nil, r, time.Hour); len(got) != 3 {
		t.Errorf("%d candidates", len(got))
	}
	for _, e := range p.Endpoints() {
		e.Load(time.Hour)
		e.mu.Unlock()
	}
	p.mu.Unlock()
	l.End(time.Hour, Done)
}

func BenchmarkPick(b *testing.B) {
	for _, pods := range []int{8, 100} {
		for _, bytes := range []int{28_672, 409_600} {
			b.Run(fmt.Sprintf("%dpods/%dtokens", pods, bytes/4), func(b *testing.B) {
				p := newTestPool(pods, Config{})
				system := prose(0, bytes/2)
				now := time.Duration(0)
				for i := range pods { // everyone holds the system prompt
					r := prompt(system, prose(i, bytes/2))
					for j, e := range p.Endpoints() {
						if j != i {
							r.Exclude = append(r.Exclude, e)
						}
					}
					l, _ := p.Pick(r, now)
					l.End(now, Done)
				}
				r := prompt(system, prose(0, bytes/2))
				var terms []Candidate
				r.Candidates = &terms
				b.ReportAllocs()
				for b.Loop() {
					now += time.Millisecond
					l, _ := p.Pick(r, now)
					l.FirstToken(now)
					l.Usage(7000, 6900, 100)
					l.End(now, Done)
				}
			})
		}
	}
}

// BenchmarkWeigh is the part of a pick that grows with the pool, without the pins of the chosen.
func BenchmarkWeigh(b *testing.B) {
	for _, pods := range []int{8, 100} {
		b.Run(fmt.Sprintf("%dpods", pods), func(b *testing.B) {
			p := newTestPool(pods, Config{})
			r := prompt(prose(0, 28_672))
			for _, e := range p.Endpoints() {
				e.index.Keep(r.Chain[:56], e.index.Pin(r.Chain[:56], 0, 1<<30, 64), 0, 64)
			}
			terms := make([]Candidate, 0, pods)
			b.ReportAllocs()
			for b.Loop() {
				terms = p.Explain(terms[:0], r, time.Second)
			}
		})
	}
	for _, n := range []struct{ pods, holders int }{{100, 100}, {1000, 8}, {1000, 1000}} {
		b.Run(fmt.Sprintf("%dpods/%dholders", n.pods, n.holders), func(b *testing.B) {
			p, requests := rotation(n.pods, n.holders)
			terms := make([]Candidate, 0, n.pods)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				terms = p.Explain(terms[:0], requests[i%len(requests)], time.Second)
			}
		})
	}
}

// BenchmarkWeighers is the same by as many at once as there are processors, alone and while somebody writes to the indexes as fast as
// that goes.
func BenchmarkWeighers(b *testing.B) {
	p, requests := rotation(100, 100)
	for _, writers := range []int{0, 1} {
		b.Run(fmt.Sprintf("%dwriters", writers), func(b *testing.B) {
			var stop atomic.Bool
			var wg sync.WaitGroup
			for range writers {
				wg.Go(func() {
					for i := 0; !stop.Load(); i++ {
						hold(p.Endpoints()[i%100], requests[i%len(requests)].Chain)
					}
				})
			}
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				terms := make([]Candidate, 0, 100)
				for i := rand.IntN(len(requests)); pb.Next(); i++ {
					terms = p.Explain(terms[:0], requests[i%len(requests)], time.Second)
				}
			})
			stop.Store(true)
			wg.Wait()
		})
	}
}

// hold has an endpoint keep a chain.
func hold(e *Endpoint, c []uint64) { e.index.Keep(c, e.index.Pin(c, 0, 1<<30, 1), 0, 1) }

// rotation returns a pool whose tables are full, and prompts of 100,000 tokens of which so many have the beginning, as far as it happens.
func rotation(pods, holders int) (*Pool, []*Request) {
	p := newTestPool(pods, Config{})
	random := rand.New(rand.NewPCG(1, 2))
	chain := func() []uint64 {
		c := make([]uint64, 213)
		for i := range c {
			c[i] = random.Uint64()
		}
		return c
	}
	for _, e := range p.Endpoints() {
		for range 80 {
			hold(e, chain())
		}
	}
	requests := make([]*Request, 64)
	for i := range requests {
		r := &Request{Chain: chain(), Hash: random.Uint64(), Bytes: 409_600}
		for _, at := range random.Perm(pods)[:holders] {
			hold(p.Endpoints()[at], r.Chain[:1+random.IntN(len(r.Chain))])
		}
		requests[i] = r
	}
	return p, requests
}
