package picker

import (
	"math"
	"time"
)

// startJitter is how far the start time of one process may differ between scrapes, in seconds.
const startJitter = 1

// auditTokens is how many tokens the pod's hit counters have to advance to be compared with what was believed.
const auditTokens = 65536

// A view is what the last scrape has told, and where our own counts stood then. It never changes.
type view struct {
	at             time.Duration
	moved          time.Duration // of the last scrape at which nothing ran, or the engine had got on since the one before
	kv             float64       // 0..1
	usage          float64       // 0..1: kv in the mean, see usageMemory
	remoteness     float64       // by how much the endpoint is farther from each key than others; see homeOf
	capacity       float64       // tokens, > 0
	foreign        float64       // requests on the pod that are not ours
	foreignWaiting float64       // of these, waiting
	sent           int64         // the endpoint's sent
	held           int64         // and held
	inflight       int64         // and inflight
	scraped        bool          // there was a scrape
	hasKV          bool          // this scrape told KVUsage
	hasClock       bool          // this scrape told PromptComputed and Generated
	adapters       int64         // time of the last scrape that saw adapters running
	sample         Sample        // counters and constants are kept from earlier scrapes
}

func (v *view) fresh(now, staleAfter time.Duration) bool { return v.scraped && now-v.at < staleAfter }

// audit is where the counters stood when the pod's hits were last compared with what was believed.
type audit struct {
	queries, hits          float64
	prompt, believed, lost uint64
	reports                uint64
}

// Observe takes in a scrape. A counter that went backwards or a start time that jumped says that the pod has started anew:
// its index is emptied and what was learned of it is forgotten.
func (e *Endpoint) Observe(s Sample, now time.Duration) {
	defer e.pool.freed()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.scrapeFailures.Store(0)
	old := e.view.Load()
	v := &view{at: now, scraped: true, sample: s, capacity: defaultCapacity}
	anew := startedAnew(&old.sample, &s)
	if !anew {
		for m := PromptComputed; m < numMetrics; m++ {
			if x, ok := old.sample.Get(m); ok && !s.Has(m) {
				v.sample.Set(m, x)
			}
		}
	}
	size, ok1 := v.sample.Get(BlockSize)
	blocks, ok2 := v.sample.Get(NumBlocks)
	if capacity := size * blocks; ok1 && ok2 && capacity >= 1 {
		v.capacity = capacity
	}
	v.kv, v.hasKV = s.Get(KVUsage)
	v.kv = min(v.kv, 1)
	e.averageUsage(v, old)
	v.hasClock = s.Has(PromptComputed) && s.Has(Generated)
	e.stand(v)
	running, known := s.Get(Running)
	waiting, _ := s.Get(Waiting)
	v.moved = now
	if running > 0 && v.hasClock && old.hasClock && stands(&old.sample, &s) {
		v.moved = old.moved
	}
	v.foreign = max(running+waiting-float64(v.inflight), 0)
	if known {
		e.pool.others.learn(running+waiting, float64(v.inflight))
	}
	v.foreignWaiting = min(max(waiting-float64(e.awaiting.Load()), 0), v.foreign)

	if anew {
		e.restarted(v.capacity)
		e.audit = audit{}
	} else {
		if v.capacity > old.capacity || !old.scraped {
			e.grow(v.capacity)
		}
		e.advanceTo(&old.sample, &s)
	}
	if keys := s.adapters[:s.nAdapters]; len(keys) > 0 {
		v.adapters = int64(now)
		e.pool.learnAdapters(keys)
		e.adapters.observe(keys, now)
	}
	e.view.Store(v)
	e.compare(&v.sample)
}

// ObserveAnswer takes in the load that an answer reported of its pod (ORCA): what of the KV cache is in use, 0 to 1, and how many
// requests wait. It refreshes those two between scrapes, and is all there is where the pod has no metrics page. A value that
// cannot be is ignored.
func (e *Endpoint) ObserveAnswer(kv, waiting float64, now time.Duration) {
	if !(kv >= 0 && kv <= 1) || !(waiting >= 0 && waiting <= limits[Waiting]) {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	v := *e.view.Load()
	if !v.fresh(now, e.pool.cfg.StaleAfter) {
		v.at, v.moved, v.scraped, v.hasClock, v.foreign = now, now, true, false, 0
	}
	v.kv, v.hasKV = kv, true
	e.stand(&v)
	v.foreignWaiting = max(waiting-float64(e.awaiting.Load()), 0)
	v.foreign = max(v.foreign, v.foreignWaiting)
	e.view.Store(&v)
}

// averageUsage takes the KV usage into its mean. An endpoint that does not tell it counts as full.
func (e *Endpoint) averageUsage(v, old *view) {
	switch {
	case !v.hasKV:
		v.usage = 1
	case !old.hasKV:
		v.usage = v.kv
	default:
		keep := math.Exp(-(v.at - old.at).Seconds() / usageMemory.Seconds())
		v.usage = v.kv + keep*(old.usage-v.kv)
	}
	v.remoteness = 1
	if e.pool.has(HomeSpread) {
		v.remoteness = math.Sqrt(idleKV + v.usage)
	}
}

// stands says whether an engine has got nowhere between two samples. A prompt is counted when all of it is computed, which may take
// half a minute; until then the KV cache fills with every step.
func stands(old, s *Sample) bool {
	for _, m := range [...]Metric{KVUsage, PromptComputed, Generated} {
		if s.values[m] != old.values[m] {
			return false
		}
	}
	return true
}

// stand notes where our own counts stand.
func (e *Endpoint) stand(v *view) {
	v.sent, v.held, v.inflight = e.sent.Load(), e.held.Load(), e.inflight.Load()
}

// ScrapeFailed notes that a scrape found nothing. It takes no endpoint out: once the last scrape is stale, our own counts
// stand alone.
func (e *Endpoint) ScrapeFailed(time.Duration) { e.scrapeFailures.Add(1) }

// startedAnew says whether two samples come from different processes.
func startedAnew(old, s *Sample) bool {
	a, ok := old.Get(StartTime)
	b, known := s.Get(StartTime)
	if ok && known && math.Abs(a-b) > startJitter {
		return true
	}
	for m := PromptComputed; m <= Preemptions; m++ {
		a, ok := old.Get(m)
		b, known := s.Get(m)
		if m == PromptComputed {
			a /= 2 // where it is the difference of two counters, it may slip a little
		}
		if ok && known && b < a {
			return true
		}
	}
	return false
}

// advanceTo moves the clock by what the pod's counters have moved, less what we have counted ourselves in the meantime.
func (e *Endpoint) advanceTo(old, s *Sample) {
	if !s.Has(PromptComputed) || !s.Has(Generated) {
		return
	}
	own := float64(e.ownClock.Swap(0))
	if !old.Has(PromptComputed) || !old.Has(Generated) {
		return // the counters' first values: what they stand for is long past
	}
	moved := max(s.values[PromptComputed]-old.values[PromptComputed], 0) + s.values[Generated] - old.values[Generated]
	e.clock.Add(uint64(max(moved-own, 0)))
}

// advance moves the clock by what a request of ours has cost, if the pod's counters do not.
func (e *Endpoint) advance(tokens int64, now time.Duration) {
	if v := e.view.Load(); v.hasClock && v.fresh(now, e.pool.cfg.StaleAfter) {
		return
	}
	e.clock.Add(uint64(tokens))
	e.ownClock.Add(uint64(tokens))
}

// compare corrects the belief in the index by the pod's hit counters, where its answers do not report cached tokens.
func (e *Endpoint) compare(s *Sample) {
	queries, ok1 := s.Get(PrefixQueries)
	hits, ok2 := s.Get(PrefixHits)
	if !ok1 || !ok2 {
		return
	}
	now := audit{
		queries: queries, hits: hits,
		prompt: e.promptTokens.Load(), believed: e.hitTokens.Load(), lost: e.agedTokens.Load(),
		reports: e.reports.Load(),
	}
	was := e.audit
	if was.queries == 0 {
		e.audit = now
		return
	}
	if queries-was.queries < auditTokens {
		return
	}
	e.audit = now
	if now.reports != was.reports {
		return
	}
	share := min((hits-was.hits)/(queries-was.queries), 1)
	e.learnBelief(evidence{
		believed: float64(now.believed - was.believed),
		lost:     float64(now.lost - was.lost),
		found:    share * float64(now.prompt-was.prompt),
		old:      true,
	})
}
