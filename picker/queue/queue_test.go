package queue

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/picker"
)

// bench is a queue before a pool of one endpoint. Nothing is cached, four bytes are a token, and no answer is expected.
type bench struct {
	pool   *picker.Pool
	queue  *Queue
	now    time.Duration
	leases []picker.Lease // in flight
}

func newBench(c Config) *bench {
	b := &bench{pool: picker.NewPool(picker.Config{})}
	b.pool.SetEndpoints([]picker.Spec{{Address: "a"}})
	b.queue = New(b.pool, c)
	return b
}

// ask makes a request of so many tokens, one of which is its answer.
func ask(priority int, flow uint64, tokens int) *picker.Request {
	return &picker.Request{Priority: priority, Flow: flow, Bytes: 4 * (tokens - 1), MaxTokens: 1, Stream: true}
}

func (b *bench) offer(r *picker.Request) (*Ticket, error) {
	l, t, err := b.queue.Offer(r, func() any { return r }, b.now)
	if t == nil && err == nil {
		b.leases = append(b.leases, l)
	}
	return t, err
}

// fill keeps the endpoint busy, so that everybody has to wait.
func (b *bench) fill(t testing.TB) {
	t.Helper()
	r := ask(math.MaxInt32, 0, 20_000)
	r.Waited = true
	if _, err := b.offer(r); err != nil {
		t.Fatal(err)
	}
}

// finish ends the i-th request in flight.
func (b *bench) finish(i int) {
	b.leases[i].FirstToken(b.now)
	b.leases[i].End(b.now, picker.Done)
	b.leases = slices.Delete(b.leases, i, i+1)
}

// wake returns what is decided, and keeps the leases.
func (b *bench) wake() []*Ticket {
	all := b.queue.Wake(nil, b.now)
	for _, t := range all {
		if l, err := t.Lease(); err == nil {
			b.leases = append(b.leases, l)
		}
	}
	return all
}

func reason(t testing.TB, err error) Reason {
	t.Helper()
	r, ok := err.(*Refusal)
	if !ok {
		t.Fatalf("%v is no refusal", err)
	}
	return r.Reason
}

// mustWait offers what has to wait.
func (b *bench) mustWait(t testing.TB, r *picker.Request) *Ticket {
	t.Helper()
	k, err := b.offer(r)
	if k == nil {
		t.Fatalf("it does not wait: %v", err)
	}
	if got := b.wake(); len(got) != 0 {
		t.Fatalf("%d are decided", len(got))
	}
	return k
}

func TestWhoHasRoomDoesNotWait(t *testing.T) {
	b := newBench(Config{})
	for i := range 3 {
		if k, err := b.offer(ask(Standard, 0, 5000)); k != nil || err != nil {
			t.Fatalf("request %d: %v, %v", i, k, err)
		}
	}
	// 15,000 tokens are before the next one, which is within two steps; then there are more.
	if k, err := b.offer(ask(Standard, 0, 5000)); k != nil || err != nil {
		t.Fatal(k, err)
	}
	k := b.mustWait(t, ask(Standard, 0, 5000))
	for i := range 4 {
		b.finish(0)
		got := b.wake()
		if want := i == 0; (len(got) == 1 && got[0] == k) != want {
			t.Fatalf("after %d ends: %d are decided", i+1, len(got))
		}
	}
	if b.queue.Waiting() {
		t.Error("somebody waits")
	}
}

// The order is strict between priorities; the first comes first within a flow.
func TestOrder(t *testing.T) {
	b := newBench(Config{})
	b.fill(t)
	low := b.mustWait(t, ask(Standard, 0, 100))
	first := b.mustWait(t, ask(Critical, 0, 100))
	second := b.mustWait(t, ask(Critical, 0, 100))
	b.finish(0)
	if got := b.wake(); !slices.Equal(got, []*Ticket{first, second, low}) {
		t.Errorf("order %v, want %v", got, []*Ticket{first, second, low})
	}
}

// A priority that others outrank leaves an endpoint to them that has something to compute; once they have not come for a while, it does
// as they did.
func TestOutranked(t *testing.T) {
	b := newBench(Config{})
	if k, err := b.offer(ask(Critical, 0, 2000)); k != nil || err != nil {
		t.Fatal(k, err)
	}
	k := b.mustWait(t, ask(Standard, 0, 2000))
	if k, err := b.offer(ask(Critical, 0, 2000)); k != nil || err != nil {
		t.Errorf("a higher priority waits behind a lower one: %v, %v", k, err)
	}
	b.now += rankMemory
	if got := b.wake(); len(got) != 1 || got[0] != k {
		t.Errorf("%d are decided", len(got))
	}
}

func TestSheddableHearsAtOnce(t *testing.T) {
	b := newBench(Config{})
	b.fill(t)
	waits := b.mustWait(t, ask(Sheddable, 0, 3000))
	b.now += 300 * time.Millisecond
	_, err := b.offer(ask(Sheddable, 0, 100_000))
	if reason(t, err) != Saturated {
		t.Errorf("refused with %v", err)
	}
	if r := err.(*Refusal); r.RetryAfter < DefaultSheddableWait || r.RetryAfter > time.Minute {
		t.Errorf("come again in %v", r.RetryAfter)
	}
	b.now += 200 * time.Millisecond
	if at, ok := b.queue.Next(); !ok || at != b.now {
		t.Errorf("Next %v, %v", at, ok)
	}
	got := b.wake()
	if len(got) != 1 || got[0] != waits {
		t.Fatalf("%d are decided", len(got))
	}
	if _, err := waits.Lease(); reason(t, err) != Saturated {
		t.Error(err)
	}
}

func TestDeadlines(t *testing.T) {
	b := newBench(Config{})
	late := ask(Standard, 0, 100_000) // 4 s at 40 µs a token
	late.Until = time.Second
	if _, err := b.offer(late); reason(t, err) != TooLate {
		t.Errorf("an idle endpoint: %v", err)
	}
	b.fill(t)
	soon := ask(Standard, 0, 100)
	soon.Until = b.now + time.Second
	k := b.mustWait(t, soon)
	patient := b.mustWait(t, ask(Standard, 0, 100))
	b.now += time.Second
	if got := b.wake(); len(got) != 1 || got[0] != k {
		t.Fatalf("%d are decided", len(got))
	}
	if _, err := k.Lease(); reason(t, err) != TooLate {
		t.Error(err)
	}
	b.now += DefaultWait
	if got := b.wake(); len(got) != 1 || got[0] != patient {
		t.Fatalf("%d are decided", len(got))
	}
	if _, err := patient.Lease(); reason(t, err) != TimedOut {
		t.Error(err)
	}
}

// When as many wait as may, the last of the lowest priority goes for a higher one.
func TestFull(t *testing.T) {
	for _, c := range []Config{{Requests: 2}, {Bytes: 20}} {
		b := newBench(c)
		b.fill(t)
		tickets := make(map[int]*Ticket)
		offer := func(priority int) error {
			r := ask(priority, 0, 100)
			r.Held = 10
			k, err := b.offer(r)
			tickets[priority] = k
			return err
		}
		for _, p := range []int{Standard, 1} {
			if err := offer(p); err != nil {
				t.Fatal(err)
			}
		}
		if err := offer(Standard); reason(t, err) != Full {
			t.Error(err)
		}
		standard := b.queue.deadlines[0]
		if err := offer(Critical); err != nil {
			t.Fatal(err)
		}
		got := b.wake()
		if len(got) != 1 || got[0] != standard {
			t.Fatalf("%d had to make room", len(got))
		}
		if _, err := got[0].Lease(); reason(t, err) != Full {
			t.Error(err)
		}
	}
}

// A flow that asks for ten times as much as another gets as much as the other while that waits, and everything while it is alone.
func TestFlowsShare(t *testing.T) {
	b := newBench(Config{})
	b.fill(t)
	for i := range 500 {
		for f := range uint64(6) {
			if f == 0 || i%10 == 0 {
				b.mustWait(t, ask(Standard, f, 800+100*int(f)))
			}
		}
	}
	b.finish(0)
	got := make(map[uint64]int)
	served := 0
	for b.queue.Waiting() {
		for _, k := range b.wake() {
			r := k.Owner.(*picker.Request)
			if b.queue.bands[0].n > 0 && len(b.queue.bands[0].ready) == 6 {
				got[r.Flow] += r.Bytes / 4
			}
			served++
		}
		for len(b.leases) > 0 {
			b.finish(0)
		}
	}
	if served != 500+5*50 {
		t.Errorf("%d were served", served)
	}
	total := 0
	for _, n := range got {
		total += n
	}
	for f, n := range got {
		if share := 6 * float64(n) / float64(total); share > 1.2 || share < 0.8 {
			t.Errorf("flow %d got %.2f of its share", f, share)
		}
	}
}

// New flows without end do not keep one that waits from its share, and are forgotten.
func TestNewFlowsDoNotStarve(t *testing.T) {
	b := newBench(Config{})
	b.fill(t)
	for range 100 {
		b.mustWait(t, ask(Standard, 0, 1000))
	}
	b.finish(0)
	served := 0
	for f := uint64(1); f < 3000; f++ {
		if k, err := b.offer(ask(Standard, f, 1000)); k == nil {
			t.Fatal(err)
		}
		for _, k := range b.wake() {
			if k.Owner.(*picker.Request).Flow == 0 {
				served++
			}
		}
		for len(b.leases) > 0 {
			b.finish(0)
		}
		if !b.queue.Waiting() {
			break
		}
	}
	if served != 100 {
		t.Errorf("%d of 100 were served", served)
	}
	if n := len(b.queue.band(Standard).flows); n > 200 {
		t.Errorf("%d flows are remembered", n)
	}
}

// Lower priorities get the share that is configured, and no more.
func TestLowerShare(t *testing.T) {
	for _, share := range []float64{0, 0.25} {
		b := newBench(Config{LowerShare: share, Wait: time.Hour})
		b.fill(t)
		for range 400 {
			b.mustWait(t, ask(Standard, 0, 500))
			b.mustWait(t, ask(Critical, 0, 500))
		}
		b.finish(0)
		low, n := 0, 0
		for n < 300 {
			for _, k := range b.wake() {
				if n++; k.Owner.(*picker.Request).Priority == Standard {
					low++
				}
			}
			for len(b.leases) > 0 {
				b.finish(0)
			}
		}
		if got := float64(low) / float64(n); math.Abs(got-share) > 0.02 {
			t.Errorf("the lower priority got %.3f, want %.3f", got, share)
		}
	}
}

// Those who leave give their place back at once; when all have left, nothing is left of them.
func TestLeave(t *testing.T) {
	b := newBench(Config{Requests: 10_000, Bytes: 10_000})
	b.fill(t)
	var all []*Ticket
	for i := range 10_000 {
		r := ask([]int{Standard, Critical, 3}[i%3], uint64(i%700), 10+i%50)
		r.Held = 1
		k, err := b.offer(r)
		if k == nil {
			t.Fatal(err)
		}
		all = append(all, k)
	}
	if k, err := b.offer(ask(Standard, 0, 10)); reason(t, err) != Full {
		t.Fatal(k, err)
	}
	rand.New(rand.NewPCG(1, 1)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, k := range all {
		if !b.queue.Leave(k, b.now) || b.queue.Leave(k, b.now) {
			t.Fatal("it did not leave, or twice")
		}
	}
	q := b.queue
	if q.Waiting() || q.requests != 0 || q.bytes != 0 || len(q.deadlines) != 0 || len(b.wake()) != 0 {
		t.Errorf("%d requests of %d bytes are left", q.requests, q.bytes)
	}
	for _, band := range q.bands {
		if band.n != 0 || band.tokens != 0 || len(band.flows) != 0 || len(band.ready) != 0 {
			t.Errorf("a band is left with %+v", band)
		}
	}
	if a, s, d := q.Len(); a+s+d != 0 {
		t.Errorf("Len %d, %d, %d", a, s, d)
	}
}

// What there is never room for, more of it than is looked at together, does not hold up what there is room for; and is served first once
// there is room for it.
func TestWhoHasNoRoomHoldsNobodyUp(t *testing.T) {
	for _, flows := range []uint64{1, 100} {
		b := newBench(Config{})
		b.pool.SetEndpoints([]picker.Spec{{Address: "busy"}, {Address: "idle"}})
		endpoints := b.pool.Endpoints()
		busy := ask(math.MaxInt32, 0, 20_000)
		busy.Waited, busy.Exclude = true, endpoints[1:]
		if _, err := b.offer(busy); err != nil {
			t.Fatal(err)
		}
		var stuck []*Ticket
		for i := range uint64(100) {
			r := ask(Standard, i%flows, 100)
			r.Exclude = endpoints[1:]
			stuck = append(stuck, b.mustWait(t, r))
		}
		k, err := b.offer(ask(Standard, flows-1, 100))
		if flows > 1 {
			k, err = b.offer(ask(Standard, flows, 100))
		}
		if k == nil {
			t.Fatal(err)
		}
		var got []*Ticket
		for range 100 {
			got = append(got, b.wake()...)
		}
		if !slices.Contains(got, k) {
			t.Errorf("%d flows: it waits, though an endpoint is idle", flows)
		}
		b.finish(0)
		if got := b.wake(); len(got) < 100 || got[0] != stuck[0] {
			t.Errorf("%d flows: %d are served, not the first of them first", flows, len(got))
		}
	}
}

// The prompt that does not fit beside what runs waits; what fits goes past it.
func TestLargePromptsHoldNobodyUp(t *testing.T) {
	b := newBench(Config{})
	if k, err := b.offer(ask(Critical, 0, 10)); k != nil || err != nil {
		t.Fatal(k, err)
	}
	for f := range uint64(20) {
		b.mustWait(t, ask(Standard, f, 1<<20))
	}
	k, err := b.offer(ask(Standard, 20, 10))
	if k == nil {
		t.Fatal(err)
	}
	var got []*Ticket
	for range 20 {
		got = append(got, b.wake()...)
	}
	if len(got) != 1 || got[0] != k {
		t.Errorf("%d are served", len(got))
	}
}

// A request for which there would be no place even if nobody below it waited displaces nobody; one that displaces is woken for.
func TestNobodyMakesRoomForNothing(t *testing.T) {
	b := newBench(Config{Bytes: 100})
	b.fill(t)
	for _, r := range []*picker.Request{ask(Standard, 0, 100), ask(Critical, 0, 100)} {
		r.Held = 50
		b.mustWait(t, r)
	}
	large := ask(Critical, 0, 100)
	large.Held = 51
	if _, err := b.offer(large); reason(t, err) != Full {
		t.Error(err)
	}
	if got := b.wake(); len(got) != 0 {
		t.Fatalf("%d had to make room", len(got))
	}
	large.Held = 50
	k, err := b.offer(large)
	if k == nil {
		t.Fatal(err)
	}
	for _, band := range b.queue.bands {
		for band.n > 0 {
			b.queue.Leave(band.ready[0].head, b.now)
		}
	}
	if !b.queue.Waiting() {
		t.Error("who had to make room is not waited for")
	}
	if got := b.wake(); len(got) != 1 || b.queue.Waiting() {
		t.Errorf("%d had to make room", len(got))
	}
}

// naive is the queue as a list, by the same rules.
type naive struct {
	waiting []*waiter
	virtual map[int]float64
	begins  map[string]float64
	number  int
}

type waiter struct {
	ticket *Ticket
	r      *picker.Request
	until  time.Duration
	number int
}

func flowOf(r *picker.Request) string { return fmt.Sprint(r.Priority, "/", r.Flow) }

func (n *naive) of(priority int, flow func(*picker.Request) bool) int {
	count := 0
	for _, w := range n.waiting {
		if w.r.Priority == priority && flow(w.r) {
			count++
		}
	}
	return count
}

// add notes a request that waits.
func (n *naive) add(t *Ticket, r *picker.Request, until time.Duration) {
	name := flowOf(r)
	if n.of(r.Priority, func(o *picker.Request) bool { return o.Flow == r.Flow }) == 0 {
		n.begins[name] = max(n.begins[name], n.virtual[r.Priority])
	}
	n.number++
	n.waiting = append(n.waiting, &waiter{t, r, until, n.number})
}

// remove takes one out.
func (n *naive) remove(i int) {
	p := n.waiting[i].r.Priority
	n.waiting = slices.Delete(n.waiting, i, i+1)
	if n.of(p, func(*picker.Request) bool { return true }) == 0 {
		n.virtual[p] = 0
		for f := range 4 {
			delete(n.begins, flowOf(&picker.Request{Priority: p, Flow: uint64(f)}))
		}
	}
}

// next is whose turn it is; −1: nobody's.
func (n *naive) next() int {
	best := -1
	var seen []string
	for i, w := range n.waiting { // in the order in which they came
		name := flowOf(w.r)
		if slices.Contains(seen, name) {
			continue
		}
		seen = append(seen, name)
		if best < 0 {
			best = i
			continue
		}
		b := n.waiting[best]
		if w.r.Priority > b.r.Priority || w.r.Priority == b.r.Priority && n.begins[name] < n.begins[flowOf(b.r)] {
			best = i
		}
	}
	return best
}

// grant counts the one whose turn it was as served.
func (n *naive) grant(i int) {
	w := n.waiting[i]
	cost := float64(w.r.Bytes/4 + 1)
	flows, least := make(map[uint64]bool), math.Inf(1)
	for _, o := range n.waiting {
		if o.r.Priority == w.r.Priority {
			flows[o.r.Flow] = true
			least = min(least, n.begins[flowOf(o.r)])
		}
	}
	n.virtual[w.r.Priority] = max(n.virtual[w.r.Priority]+cost/float64(len(flows)), least)
	n.begins[flowOf(w.r)] += cost
	n.remove(i)
}

// The queue does what a list does that is searched for whose turn it is. Who is outranked is left out: all priorities have come lately.
func TestLikeNaive(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 1))
		limit := 5 + rng.IntN(30)
		b := newBench(Config{Requests: limit, Wait: 3 * time.Second, SheddableWait: 2 * time.Second})
		n := &naive{virtual: map[int]float64{}, begins: map[string]float64{}}
		top, seen := math.MinInt, time.Duration(0)
		room := func(p, queued int) bool { // with so many tokens before it
			most := 16384
			if p < top && b.now-seen < rankMemory {
				most = 1000
			}
			return len(b.leases) == 0 || queued <= most
		}
		settle := func() { // what Wake has to give out, beside those who had to make room
			var want []*Ticket
			for {
				i := slices.IndexFunc(n.waiting, func(w *waiter) bool { return w.until <= b.now })
				if i < 0 {
					break
				}
				want = append(want, n.waiting[i].ticket)
				n.remove(i)
			}
			late := len(want)
			queued := b.pool.Endpoints()[0].Load(b.now).Queued
			got := b.queue.Wake(nil, b.now)
			for _, k := range got {
				l, err := k.Lease()
				if err != nil {
					if late--; late < 0 || !slices.Contains(want, k) {
						t.Fatalf("seed %d: %v: it has time", seed, err)
					}
					continue
				}
				i := n.next()
				if i < 0 || n.waiting[i].ticket != k || !room(n.waiting[i].r.Priority, queued) {
					t.Fatalf("seed %d: a lease for who does not have its turn", seed)
				}
				queued += n.waiting[i].r.Bytes / 4
				n.grant(i)
				b.leases = append(b.leases, l)
			}
			if late != 0 {
				t.Fatalf("seed %d: %d wait beyond their time", seed, late)
			}
			if i := n.next(); i >= 0 && room(n.waiting[i].r.Priority, queued) {
				t.Fatalf("seed %d: there is room, and somebody waits", seed)
			}
		}
		for range 400 {
			switch op := rng.IntN(10); {
			case op < 5:
				p := []int{Critical, 3, Standard, Sheddable}[rng.IntN(4)]
				r := ask(p, rng.Uint64N(4), 100+rng.IntN(6000))
				if p >= top || b.now-seen >= rankMemory {
					if p != top || b.now-seen > rankMemory/64 {
						seen = b.now
					}
					top = p
				}
				ahead := slices.ContainsFunc(n.waiting, func(w *waiter) bool { return w.r.Priority >= p })
				free := !ahead && room(p, b.pool.Endpoints()[0].Load(b.now).Queued)
				k, err := b.offer(r)
				switch {
				case free != (k == nil && err == nil):
					t.Fatalf("seed %d: room %v, got %v, %v", seed, free, k, err)
				case free:
				case k != nil:
					if len(n.waiting) == limit { // the last of the lowest priority makes room
						out := -1
						for i, w := range n.waiting {
							if out < 0 || w.r.Priority <= n.waiting[out].r.Priority {
								out = i
							}
						}
						if d := b.queue.decided; len(d) != 1 || d[0] != n.waiting[out].ticket || n.waiting[out].r.Priority >= p {
							t.Fatalf("seed %d: another had to make room", seed)
						}
						b.queue.decided = nil
						n.remove(out)
					}
					wait := 3 * time.Second
					if p < 0 {
						wait = 2 * time.Second
					}
					n.add(k, r, b.now+wait)
				case reason(t, err) == Full:
					if len(n.waiting) < limit || slices.ContainsFunc(n.waiting, func(w *waiter) bool { return w.r.Priority < p }) {
						t.Fatalf("seed %d: it is not full", seed)
					}
				case p >= 0 || reason(t, err) != Saturated:
					t.Fatalf("seed %d: %v", seed, err)
				}
			case op < 7 && len(b.leases) > 0:
				b.finish(rng.IntN(len(b.leases)))
			case op < 8 && len(n.waiting) > 0:
				i := rng.IntN(len(n.waiting))
				if !b.queue.Leave(n.waiting[i].ticket, b.now) {
					t.Fatalf("seed %d: it could not leave", seed)
				}
				n.remove(i)
			default:
				b.now += time.Duration(rng.IntN(int(time.Second)))
			}
			settle()
			critical, standard, sheddable := b.queue.Len()
			if critical+standard+sheddable != len(n.waiting) || b.queue.Waiting() != (len(n.waiting) > 0) {
				t.Fatalf("seed %d: %d wait, want %d", seed, critical+standard+sheddable, len(n.waiting))
			}
		}
	}
}

func TestBandsAreBounded(t *testing.T) {
	b := newBench(Config{})
	b.fill(t)
	for p := range 10 * maxBands {
		b.queue.Leave(b.mustWait(t, ask(p, 0, 10)), b.now)
	}
	if n := len(b.queue.bands); n > maxBands {
		t.Errorf("%d bands", n)
	}
}

// An empty queue costs no memory.
func TestAllocEmpty(t *testing.T) {
	b := newBench(Config{})
	r := ask(Standard, 7, 1000)
	owner := func() any { return nil }
	if n := testing.AllocsPerRun(1000, func() {
		r.Waited = false
		l, k, err := b.queue.Offer(r, owner, b.now)
		if k != nil || err != nil {
			t.Fatal(k, err)
		}
		l.FirstToken(b.now)
		l.End(b.now, picker.Done)
	}); n > 0 && !raceEnabled {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkOffer is what an empty queue costs, with the pick and without the queue.
func BenchmarkOffer(b *testing.B) {
	for _, queued := range []bool{true, false} {
		name := map[bool]string{true: "queue", false: "pick alone"}[queued]
		b.Run(name, func(b *testing.B) {
			bench := newBench(Config{})
			var specs []picker.Spec
			for i := range 8 {
				specs = append(specs, picker.Spec{Address: fmt.Sprint(i)})
			}
			bench.pool.SetEndpoints(specs)
			r := ask(Standard, 7, 1000)
			owner := func() any { return nil }
			b.ReportAllocs()
			for b.Loop() {
				r.Waited = false
				var l picker.Lease
				var err error
				if queued {
					l, _, err = bench.queue.Offer(r, owner, 0)
				} else {
					l, err = bench.pool.Pick(r, 0)
				}
				if err != nil {
					b.Fatal(err)
				}
				l.FirstToken(0)
				l.End(0, picker.Done)
			}
		})
	}
}

// BenchmarkWake looks in vain for room for 32 long prompts that wait.
func BenchmarkWake(b *testing.B) {
	bench := newBench(Config{})
	bench.fill(b)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 32 {
		r := ask(Standard, uint64(i), 55_000)
		for range 180 {
			r.Chain = append(r.Chain, random.Uint64())
		}
		bench.mustWait(b, r)
	}
	var decided []*Ticket
	b.ReportAllocs()
	for b.Loop() {
		if decided = bench.queue.Wake(decided[:0], 0); len(decided) > 0 {
			b.Fatal("there was room")
		}
	}
}

// What no endpoint is predicted to serve in time is refused if its priority is below 0, at once or as soon as that is so; what is worth more
// is served though it will be late.
func TestSheddableIsRefusedForItsSLO(t *testing.T) {
	b := newBench(Config{})
	hasty := func(priority int, in time.Duration) *picker.Request {
		r := ask(priority, 0, 1000)
		r.SLO.FirstToken = b.now + in
		return r
	}
	if _, err := b.offer(hasty(Sheddable, 10*time.Millisecond)); err == nil || reason(t, err) != Unmet {
		t.Errorf("sheddable: %v", err)
	}
	if ticket, err := b.offer(hasty(Standard, 10*time.Millisecond)); ticket != nil || err != nil {
		t.Errorf("standard: %v %v", ticket, err)
	}
	if _, err := b.offer(hasty(Sheddable, time.Second)); err != nil {
		t.Errorf("with a second to spare: %v", err)
	}
	waived := hasty(Sheddable, 10*time.Millisecond)
	waived.Waited = true // nobody waits here
	if _, err := b.offer(waived); err == nil || reason(t, err) != Unmet {
		t.Errorf("without waiting: %v", err)
	}

	b = newBench(Config{SheddableWait: time.Minute})
	b.fill(t) // 0.8 s at the speed assumed, its own prompt 0.04 s, and a quarter more for safety
	ticket := b.mustWait(t, hasty(Sheddable, 1200*time.Millisecond))
	if all := b.wake(); len(all) != 0 {
		t.Fatalf("%d are decided at once", len(all))
	}
	b.now += 1100 * time.Millisecond // the queue should be done
	if all := b.wake(); len(all) != 0 {
		t.Fatalf("%d are decided while there is time", len(all))
	}
	b.now += 60 * time.Millisecond
	if all := b.wake(); len(all) != 1 || all[0] != ticket {
		t.Fatalf("%d are decided when it has become too late", len(all))
	}
	if _, err := ticket.Lease(); err == nil || reason(t, err) != Unmet {
		t.Errorf("while it waits: %v", err)
	}
}
