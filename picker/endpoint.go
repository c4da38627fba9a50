package picker

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairway-proxy/fairway/picker/prefix"
)

const (
	// defaultCapacity is the KV cache assumed while a pod does not say: an 8B model on an 80 GB GPU has 456,000
	// tokens. Too large costs little, too small costs the whole benefit.
	defaultCapacity = 1 << 19

	// defaultSpeed is assumed until the pool has shown its own: between an H100 (25 µs) and an A100 (48 µs) with an 8B
	// model. Only predictions depend on it; between pods it cancels out.
	defaultSpeed = 40e-6
	// speedPrior: the pool's mean counts as so many tokens of a pod's own; learning from less follows noise.
	speedPrior = 65536
	// speedHorizon is how many tokens a pod's speed remembers: a minute of a busy pod.
	speedHorizon = 8 * speedPrior
	// speedPoolPrior is what defaultSpeed counts against the pool's own mean.
	speedPoolPrior = 4096
	// minSpeedTokens: smaller prompts measure the engine's step, not its speed.
	minSpeedTokens = 512
	// crowded: with more of its KV cache in use than that share, an engine's first tokens wait until others end. That says nothing of its
	// speed, and a pod that is believed slow for a minute because it was full leaves its load to others.
	crowded = 0.9
	// maxSlowness: a sample counts for at most this many times what is known so far. One that is slower yet is a stall,
	// and a pod that is believed slow gets no requests to show better.
	maxSlowness = 4

	// defaultUncached is what a request is taken to compute before any was seen.
	defaultUncached = 1000
	// uncachedHorizon is how many requests the mean of uncached tokens remembers.
	uncachedHorizon = 1024

	// firstEjection and maxEjection bound how long a pod that refuses connections is left alone.
	firstEjection = time.Second
	// maxStrikes is how many requests in a row an endpoint may fail (Envoy's outlier detection has the same default).
	maxStrikes  = 5
	maxEjection = 30 * time.Second

	// Silence is how long an endpoint may leave questions and requests without any answer until it is passed over. One whose server is
	// busy with large bodies keeps a page of metrics for some tenths of a second.
	Silence = time.Second
	// standstill is how long the counters of an engine that says it computes may stand still until it is passed over: no step of an
	// engine takes so long that fills its batches in chunks.
	standstill = 10 * time.Second

	never = math.MaxInt64
)

// An Endpoint is one pod of a pool and all that is known of it. Its exported methods may be called at any time from any
// goroutine, also after it has left its pool.
type Endpoint struct {
	// What a pick reads of every endpoint comes first, for as few cache lines as possible.

	// Our own work in flight.
	queued   atomic.Int64 // uncached tokens whose first token has not come
	inflight atomic.Int64 // requests
	held     atomic.Int64 // uncached tokens of requests in flight
	promised atomic.Int64 // tokens that these are expected to generate
	sent     atomic.Int64 // uncached tokens so far
	nextDue  atomic.Int64 // the earliest time in due; never: none

	// From outside.
	view         atomic.Pointer[view] // the last scrape, never nil
	ejectedUntil atomic.Int64         // nanoseconds of now
	owing        atomic.Int64         // time of the first question that has had no answer; 0: none
	heard        atomic.Int64         // time of the last first token or answer to a request
	cost         atomic.Uint64        // float64: Spec.Cost, 1 where that is 0

	// Learned.
	clock  atomic.Uint64 // tokens the pod has computed, prompt and generated
	speed  ratio         // seconds a prompt token
	belief belief

	index prefix.Index // has its own locking: readers never wait

	// Fixed.
	pool *Pool
	spec Spec   // without what is not part of the identity
	id   uint64 // hash of the identity, the same in every replica
	name string

	adapters  adapters
	forecasts forecasts

	turned    atomic.Int64  // when the queue's head became its head: one left it, or came to an empty one
	awaiting  atomic.Int64  // requests that queued counts
	ownClock  atomic.Uint64 // part of clock that we counted ourselves and the pod's counters will report once more
	lastFirst atomic.Int64  // time of the last first token

	// Our own work so far.
	promptTokens atomic.Uint64 // of requests that were computed
	hitTokens    atomic.Uint64 // of these, believed to be cached
	agedTokens   atomic.Uint64 // of these, known to the index but believed to have left the cache
	cachedTokens atomic.Uint64 // reported as cached
	reports      atomic.Uint64 // requests that reported cached tokens

	scrapeFailures atomic.Uint64 // since the last scrape

	// Ejection.
	failures  atomic.Int32 // consecutive ejections
	strikes   atomic.Int32 // requests failed in a row
	ejectedAt atomic.Int64 // nanoseconds of now

	mu     sync.Mutex // guards what follows, and serialises Observe and Eject
	due    []due      // requests whose first token will not be seen
	ticket uint64
	audit  audit
	struck bool // the ejection is for failed requests
}

// due is a request whose answer does not stream: its first token is taken to come when it was predicted to.
type due struct {
	ticket uint64
	at     int64
	tokens int64
}

func newEndpoint(p *Pool, s Spec) *Endpoint {
	e := &Endpoint{pool: p, spec: s}
	e.id = prefix.Seed(s.Address, s.UID)
	e.name = s.Address
	if s.Engine != "" {
		e.id = prefix.Seed(s.Address, s.UID, s.Engine)
		e.name += "@dp" + s.Engine
	}
	e.index.MaxBytes, e.index.Secret = p.cfg.IndexBytes, p.cfg.IndexSecret
	e.nextDue.Store(never)
	e.lastFirst.Store(math.MinInt64)
	v := &view{capacity: defaultCapacity}
	e.averageUsage(v, v)
	e.view.Store(v)
	e.setCost(1)
	return e
}

func (e *Endpoint) setCost(c float64) { e.cost.Store(math.Float64bits(c)) }

// Cost is that of its Spec: what a second of it costs, in relation to others of its pool.
func (e *Endpoint) Cost() float64 { return math.Float64frombits(e.cost.Load()) }

// Address returns the address of its Spec.
func (e *Endpoint) Address() string { return e.spec.Address }

// Name tells the endpoint from all others of its pool: its address, and of a server with several engines which of them, as llm-d
// writes it: "10.0.0.1:8000@dp1".
func (e *Endpoint) Name() string { return e.name }

// UID returns the UID of its Spec.
func (e *Endpoint) UID() string { return e.spec.UID }

// Engine returns the Engine of its Spec.
func (e *Endpoint) Engine() string { return e.spec.Engine }

// Role returns the Role of its Spec.
func (e *Endpoint) Role() Role { return e.spec.Role }

// SameServer tells whether o is the endpoint, or another engine of its server.
func (e *Endpoint) SameServer(o *Endpoint) bool {
	return e.spec.Address == o.spec.Address && e.spec.UID == o.spec.UID
}

// Owner returns the Owner of its Spec.
func (e *Endpoint) Owner() any { return e.spec.Owner }

// Rank is the endpoint's rank for a key in rendezvous hashing: the highest is the key's home.
func (e *Endpoint) Rank(key uint64) uint64 {
	return prefix.Link(key, e.id)
}

// add appends the endpoint to the candidates, with what it has to do: the rest of the terms follows in weigh, of all of them at once.
func (m *measure) add(c []Candidate, e *Endpoint) []Candidate {
	c = append(c, Candidate{})
	last := &c[len(c)-1]
	last.Endpoint = e
	e.burden(last, m)
	if s := m.search; s != nil && !s.survey.None(&e.index) {
		s.queries = append(s.queries, prefix.Query{Index: &e.index, Clock: e.clock.Load(), Window: last.window})
		s.asked = append(s.asked, int32(len(c)-1))
	}
	return c
}

// weigh fills in of the candidates c[at:], which were added, what follows from the prompt.
func (m *measure) weigh(c []Candidate, at int) {
	each := m.prefill.Endpoint != nil || m.request.SLO != (SLO{}) // not only those that hold some of it are of another value
	if s := m.search; s != nil {
		s.survey.Match(s.queries)
		for i, k := range s.asked {
			if c[k].Depth = s.queries[i].Depth; c[k].Depth > 0 && !each {
				c[k].Endpoint.value(&c[k], m)
			}
		}
		m.endSearch()
	} else {
		guess := 0
		for i := range c[at:] {
			x := &c[at+i]
			x.Depth = x.Endpoint.index.Match(m.request.Chain, x.Endpoint.clock.Load(), x.window, guess)
			if guess = x.Depth; guess > 0 && !each {
				x.Endpoint.value(x, m)
			}
		}
	}
	if each {
		for i := range c[at:] {
			c[at+i].Endpoint.value(&c[at+i], m)
		}
	}
}

// A search is what looking into many indexes at once needs for its duration.
type search struct {
	survey  prefix.Survey
	queries []prefix.Query
	asked   []int32 // the candidate of each query
}

var searches = sync.Pool{New: func() any { return new(search) }}

// beginSearch has the indexes of n endpoints, of which those that are added now may be candidates, looked into at once, if they are many.
func (m *measure) beginSearch(n int) {
	if census := m.pool.census.Load(); census != nil && n >= minCensus {
		m.search = searches.Get().(*search)
		m.search.survey.Take(census, m.request.Chain)
	}
}

func (m *measure) endSearch() {
	if s := m.search; s != nil {
		clear(s.queries)
		s.queries, s.asked = s.queries[:0], s.asked[:0]
		searches.Put(s)
		m.search = nil
	}
}

// burden fills in what the endpoint has to do, whatever the prompt. It is done for each endpoint of a pool for each request: what few
// have is behind a branch, what few ask for is theirs to work out, and limits are branches too (min and max of floats take several times
// as long, for the sake of what is not a number).
func (e *Endpoint) burden(c *Candidate, m *measure) {
	if int64(m.now) >= e.nextDue.Load() {
		e.releaseDue(m.now)
	}
	v := e.view.Load()
	seen, held, inflight := e.queued.Load(), e.held.Load(), float64(e.inflight.Load())
	c.seen = seen
	c.Queued = float64(seen)
	fresh := v.fresh(m.now, m.pool.cfg.StaleAfter)
	c.KV = e.kv(v, held, fresh, m.mirrored)
	if fresh {
		c.Queued += v.foreignWaiting*m.foreign + m.mirrored*float64(max(e.sent.Load()-v.sent, 0))
		if foreign := v.foreign + m.mirrored*(inflight-float64(v.inflight)); foreign > 0 {
			inflight += foreign
		}
	}
	c.InFlight = inflight
	c.Speed = m.speed
	if m.pool.has(LearnedSpeed) {
		c.Speed = e.speed.mean(m.speed, speedPrior)
	}
	c.left = c.Queued
	if seen > 0 {
		c.left -= e.progress(c, m.now)
	}
	c.capacity = v.capacity
	c.taken = held + e.promised.Load()
	c.window = math.MaxInt64
	if m.pool.has(EvictionClock) {
		c.window = e.room(v, c.KV)
	}
	if m.adapter != 0 {
		c.Adapter = e.adapterCost(m.adapter, v)
	}
	c.Cost = e.Cost()
	c.Premium = c.Cost - 1
	c.Uncached = m.tokens // as most have it: see value
	c.Again = m.again * c.Uncached
}

// value fills in what follows from the chunks of the prompt that the endpoint holds.
func (e *Endpoint) value(c *Candidate, m *measure) {
	if c.Depth > 0 {
		if c.Hit = m.cached(c.Depth) * e.belief.credit(); c.Hit > m.best {
			m.best, m.holder, m.held = c.Hit, e, c.Depth
		}
	}
	c.Uncached = m.tokens - c.Hit
	c.Again = m.again * c.Uncached
	// The sidecar that asks for a prompt passes on which engine is meant: it has to be the like one.
	if o := m.prefill.Endpoint; o != nil && o != e && o.spec.Engine == e.spec.Engine && c.Uncached >= float64(m.request.RemotePrefill) {
		c.prefill = m.prefill.Score
	}
	if m.request.SLO != (SLO{}) {
		c.Premium = 0
		e.predict(c, m)
	}
}

// progress is how many tokens of the queue have been computed since its head became that.
func (e *Endpoint) progress(c *Candidate, now time.Duration) float64 {
	since := (now - time.Duration(e.turned.Load())).Seconds()
	return min(max(since/c.Speed, 0), float64(c.seen))
}

// kv is the share of the KV cache in use: as scraped, and how what we have in flight has changed since, the others likewise; or
// what we have in flight, which is held.
func (e *Endpoint) kv(v *view, held int64, fresh bool, mirrored float64) float64 {
	used := float64(held)
	if fresh && v.hasKV {
		used = v.kv*v.capacity + (1+mirrored)*float64(held-v.held)
	}
	switch {
	case used <= 0:
		return 0
	case used >= v.capacity:
		return 1
	}
	return used / v.capacity
}

// adapterCost is what a request for an adapter costs beyond its prompt, in prompt tokens. A pod that does not say how many adapters
// it runs has no such cost.
func (e *Endpoint) adapterCost(key uint64, v *view) float64 {
	n, ok := v.sample.Get(MaxLoras)
	if !ok || !e.pool.has(AdapterCost) {
		return 0
	}
	return e.adapters.cost(key, int(n), v.adapters)
}

// window is how many tokens the pod can allocate before it drops what was freed last.
func (e *Endpoint) window(v *view, kv float64) int64 {
	if !e.pool.has(EvictionClock) {
		return math.MaxInt64
	}
	return e.room(v, kv)
}

func (e *Endpoint) room(v *view, kv float64) int64 {
	return int64(v.capacity * e.belief.stretch() * (1 - kv))
}

// reserve makes the lease, in l, which is empty. Unless forced, it declines when the queue is not the one that the candidate was weighed with.
func (e *Endpoint) reserve(l *Lease, c *Candidate, m *measure, force bool) bool {
	u := max(int64(c.Uncached), 1)
	work := u
	if c.Remote {
		work = 1 // the last token of a prompt is computed in any case
	}
	if force {
		e.queued.Add(work)
	} else if !e.queued.CompareAndSwap(c.seen, c.seen+work) {
		return false
	}
	if e.awaiting.Add(1) == 1 {
		e.turned.Store(int64(m.now))
	}
	e.inflight.Add(1)
	e.held.Add(u)
	e.promised.Add(int64(m.output))
	e.sent.Add(work)
	e.pool.uncached.add(float64(work), 1, uncachedHorizon)
	e.pool.others.cold.add(c.Uncached, m.tokens, coldHorizon)

	r := m.request
	// One by one: made as a whole it would be on the stack twice, and streams keep the stacks that they have needed.
	l.e, l.chain, l.model, l.bytes, l.extra, l.stream = e, r.Chain, r.Model, r.Bytes, r.Tokens, r.Stream
	l.answers = r.Answers
	l.dispatched, l.step = m.now, max(int64(m.perChunk), 1)
	l.home, l.known, l.slot = c.Home, m.known, -1
	l.prompt, l.hit, l.believed = int64(m.tokens), int64(c.Hit), int64(m.cached(c.Depth))
	l.uncached, l.work, l.output, l.queued = u, work, int64(m.output), true
	l.reported = usage{-1, -1, -1}
	l.features = c.features()
	l.first, l.each = e.forecast(&l.features, c.Speed)
	if c.Remote {
		l.first = c.firstToken() // what is learned is of prompts that are computed here
	}
	if c.Meets {
		l.slo = r.SLO
	}
	clock := e.clock.Load()
	if c.Depth > 0 {
		l.age, l.settled = e.index.Age(r.Chain[c.Depth-1], clock)
	}
	if m.adapter != 0 {
		l.slot = e.adapters.acquire(m.adapter, m.now)
	}
	l.hold = e.index.Pin(r.Chain, clock, c.window, l.step)
	l.lost = int64(m.cached(max(l.hold.Found, c.Depth)) - m.cached(c.Depth))
	if !c.Remote && c != &m.prefill {
		e.pool.repeated.add(m.repeated(c, l.lost), c.Uncached, againHorizon)
	}
	if !r.Stream {
		l.ticket = e.expect(m.now+seconds(c.firstToken()), work)
	}
	if c.Remote {
		l.prefill = new(Lease)
		m.prefill.Endpoint.reserve(l.prefill, &m.prefill, m, true)
		l.prefill.promise(1)
	}
	return true
}

func seconds(s float64) time.Duration { return time.Duration(min(s, 1e6) * float64(time.Second)) }

// expect enters a request whose first token will not be seen.
func (e *Endpoint) expect(at time.Duration, tokens int64) (ticket uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ticket++
	e.due = append(e.due, due{e.ticket, int64(at), tokens})
	e.nextDue.Store(min(e.nextDue.Load(), int64(at)))
	return e.ticket
}

// releaseDue releases the queued tokens of requests whose first token was predicted for before now. It does not wait: who
// holds the lock may be doing the same.
func (e *Endpoint) releaseDue(now time.Duration) {
	if !e.mu.TryLock() {
		return
	}
	defer e.mu.Unlock()
	next := int64(never)
	kept := e.due[:0]
	for _, d := range e.due {
		if d.at <= int64(now) {
			e.release(d.tokens, time.Duration(d.at))
			continue
		}
		next = min(next, d.at)
		kept = append(kept, d)
	}
	e.due = kept
	e.nextDue.Store(next)
}

// settle releases the queued tokens of a request that has ended, and reports whether its prediction had not come yet.
func (e *Endpoint) settle(ticket uint64, now time.Duration) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, d := range e.due {
		if d.ticket == ticket {
			e.release(d.tokens, now)
			last := len(e.due) - 1
			e.due[i] = e.due[last]
			e.due = e.due[:last]
			return true
		}
	}
	return false
}

func (e *Endpoint) release(tokens int64, now time.Duration) {
	e.queued.Add(-tokens)
	e.awaiting.Add(-1)
	e.turned.Store(int64(now))
}

// learnSpeed counts a first token that came for so many uncached tokens. The engine computes one prompt after the other: the
// time counts from the first token before, if that was after the dispatch.
func (e *Endpoint) learnSpeed(dispatched, now time.Duration, uncached int64) {
	last := e.lastFirst.Load()
	for last < int64(now) && !e.lastFirst.CompareAndSwap(last, int64(now)) {
		last = e.lastFirst.Load()
	}
	if v := e.view.Load(); uncached < minSpeedTokens || e.kv(v, e.held.Load(), v.fresh(now, e.pool.cfg.StaleAfter), e.pool.others.mirrored()) > crowded {
		return
	}
	tokens := float64(uncached)
	pool := e.pool.meanSpeed()
	slowest := maxSlowness * max(pool, e.speed.mean(pool, speedPrior))
	took := min(max(now-max(dispatched, time.Duration(last)), 0).Seconds(), slowest*tokens)
	e.speed.add(took, tokens, speedHorizon)
	e.pool.speed.add(took, tokens, speedHorizon)
}

// Eject leaves the endpoint alone for a while, after it has refused a connection: 1 s, twice as long each time it happens
// again, at most 30 s. Further refusals during that time, of requests that had already been sent, change nothing; it tells
// whether this one did.
//
// Where nothing listens, nothing is cached: unless the pod's metrics tell when it starts anew, its index is emptied. The other
// engines of its server are behind the same door: it is the same for them.
func (e *Endpoint) Eject(now time.Duration) bool {
	ejected := e.ejectOne(now)
	if e.spec.Engine != "" {
		for _, o := range e.pool.All() {
			if o != e && o.SameServer(e) {
				o.ejectOne(now)
			}
		}
	}
	return ejected
}

func (e *Endpoint) ejectOne(now time.Duration) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.Ejected(now) {
		return false
	}
	e.eject(now)
	e.struck = false
	if v := e.view.Load(); !v.sample.Has(StartTime) {
		e.restarted(v.capacity)
	}
	return true
}

// eject starts an ejection. The caller holds mu.
func (e *Endpoint) eject(now time.Duration) {
	out := maxEjection
	if n := e.failures.Add(1); n <= 5 {
		out = firstEjection << (n - 1)
	}
	e.ejectedAt.Store(int64(now))
	e.ejectedUntil.Store(int64(now + out))
}

// strike counts a request that the endpoint failed. After maxStrikes in a row it is ejected too: one that fails at once has
// the shortest queue, and would draw all the traffic.
func (e *Endpoint) strike(now time.Duration) {
	if e.strikes.Add(1) < maxStrikes {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.strikes.Store(0)
	if !e.Ejected(now) {
		e.eject(now)
		e.struck = true
	}
}

// Ejected says whether the endpoint is left alone at that time.
func (e *Endpoint) Ejected(now time.Duration) bool { return int64(now) < e.ejectedUntil.Load() }

// Readmit ends an ejection and the count of refusals: a probe has succeeded. It does nothing for an endpoint that takes
// connections and fails requests: that one has to wait its time out. It tells whether there was something to end.
func (e *Endpoint) Readmit() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.struck || e.failures.Load() == 0 {
		return false
	}
	e.readmit()
	return true
}

// readmit ends an ejection of either kind. The caller holds mu.
func (e *Endpoint) readmit() {
	e.struck = false
	e.failures.Store(0)
	e.ejectedUntil.Store(0)
}

// answered notes that a request dispatched then has been served.
func (e *Endpoint) answered(dispatched time.Duration) {
	if e.strikes.Load() != 0 {
		e.strikes.Store(0)
	}
	if e.failures.Load() != 0 && int64(dispatched) >= e.ejectedAt.Load() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.readmit()
	}
}

// Asked notes that the endpoint was asked something that it answers at once if it lives, such as its metrics.
func (e *Endpoint) Asked(now time.Duration) { e.owing.CompareAndSwap(0, max(int64(now), 1)) }

// Answered notes that it has answered such a question, whatever it said.
func (e *Endpoint) Answered() { e.owing.Store(0) }

// Silent says that nothing at all has come from the endpoint for a while though it was asked: it is frozen, or cut off, and takes
// connections all the same, as a kernel does for a process that is stopped. Or nothing has but its metrics, which say that it
// computes and that it gets nowhere: its engine hangs.
func (e *Endpoint) Silent(now time.Duration) bool {
	heard := e.heard.Load()
	if owing := e.owing.Load(); owing != 0 && int64(now)-max(owing, heard) >= int64(Silence) {
		return true
	}
	v := e.view.Load()
	return int64(v.at)-max(int64(v.moved), heard) >= int64(standstill) && v.fresh(now, e.pool.cfg.StaleAfter)
}

// learnBelief takes in how much was cached in truth. A pod that keeps more than it says needs a larger index.
func (e *Endpoint) learnBelief(v evidence) {
	if e.belief.learn(v) {
		e.grow(e.view.Load().capacity * e.belief.stretch())
	}
}

// grow makes room in the index for a cache of so many tokens.
func (e *Endpoint) grow(capacity float64) {
	if e.index.Grow(chunks(capacity)) {
		e.pool.mu.Lock()
		defer e.pool.mu.Unlock()
		e.pool.count()
	}
}

// restarted forgets what a new process does not have. The caller holds mu.
func (e *Endpoint) restarted(capacity float64) {
	e.index.Reset(chunks(capacity))
	e.adapters.reset()
	e.speed.reset()
	e.forecasts.reset()
	e.belief.reset()
	e.ownClock.Store(0)
}

// chunks is how many chunks of English fill a cache of so many tokens.
func chunks(capacity float64) int {
	return int(min(capacity, maxTokens) * defaultBytesPerToken / prefix.ChunkSize)
}
