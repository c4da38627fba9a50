package picker

import "time"

// A Load is an endpoint's state at one time, for people and metrics.
type Load struct {
	Queued   int     // Q: uncached tokens sent whose first token has not come
	InFlight int     // our own requests
	Foreign  int     // requests of others, as of the last scrape
	KV       float64 // 0..1 of the KV cache in use, estimated
	Speed    float64 // seconds a prompt token
	Capacity int     // tokens of KV cache as the pod says, or assumed
	Stretch  float64 // by how much the capacity seems to differ
	Credit   float64 // what a token believed to be cached is worth, 0..1

	Scrape         Sample        // as last seen, counters also from earlier scrapes
	ScrapeAge      time.Duration // −1: never scraped
	Stale          bool          // too old to be used
	ScrapeFailures int           // since the last success
	Silent         bool          // nothing has come from it for a while though it was asked

	IndexEntries int // chunks
	IndexBytes   int

	PromptTokens uint64 // of all requests so far, estimated
	HitTokens    uint64 // of these, believed to be cached when picked
	CachedTokens uint64 // reported as cached by the endpoint

	Failures     int           // consecutive refusals
	EjectedUntil time.Duration // in terms of now; 0: not ejected
}

// Load returns the endpoint's state. Its fields are read one by one: while requests come and go they may be of slightly
// different moments.
func (e *Endpoint) Load(now time.Duration) Load {
	v := e.view.Load()
	fresh := v.fresh(now, e.pool.cfg.StaleAfter)
	l := Load{
		Queued:         int(e.queued.Load()),
		InFlight:       int(e.inflight.Load()),
		KV:             e.kv(v, e.held.Load(), fresh, e.pool.others.mirrored()),
		Speed:          e.speed.mean(e.pool.meanSpeed(), speedPrior),
		Capacity:       int(v.capacity),
		Stretch:        e.belief.stretch(),
		Credit:         e.belief.credit(),
		Scrape:         v.sample,
		ScrapeAge:      -1,
		Stale:          !fresh,
		ScrapeFailures: int(e.scrapeFailures.Load()),
		Silent:         e.Silent(now),
		IndexEntries:   e.index.Len(),
		IndexBytes:     e.index.Bytes(),
		PromptTokens:   e.promptTokens.Load(),
		HitTokens:      e.hitTokens.Load(),
		CachedTokens:   e.cachedTokens.Load(),
		Failures:       int(e.failures.Load()),
	}
	if v.scraped {
		l.ScrapeAge = now - v.at
	}
	if fresh {
		l.Foreign = int(v.foreign)
	}
	if e.Ejected(now) {
		l.EjectedUntil = time.Duration(e.ejectedUntil.Load())
	}
	return l
}
