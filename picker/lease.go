package picker

import (
	"time"

	"github.com/fairway-proxy/fairway/picker/prefix"
)

// An Outcome is how a request ended.
type Outcome uint8

const (
	Done       Outcome = iota // the endpoint answered
	Refused                   // it answered that it will not, and computed nothing: a bad request
	ClientGone                // the client left before the end
	Failed                    // the endpoint failed: reset, time-out, a stream cut short, an error of its own
	NeverSent                 // the request did not reach the endpoint
)

// A Lease is one request's place on an endpoint, from Pick to End. It is a value for the request to own: it may be moved,
// but only one copy may be used, by one goroutine at a time. The request's Chain and Model must not change until it has
// ended. The zero value is a lease of nothing; all its methods may be called.
type Lease struct {
	e          *Endpoint
	chain      []uint64
	model      string
	hold       prefix.Hold
	dispatched time.Duration
	bytes      int    // of text
	extra      int    // prompt tokens beyond bytes
	answers    int    // to be generated beside one another
	prompt     int64  // tokens, estimated
	hit        int64  // of these, what the score counted as cached
	believed   int64  // of these, cached as the index has it
	lost       int64  // of these, known to the index but believed to have left the cache
	output     int64  // tokens it is expected to generate
	uncached   int64  // tokens counted in the endpoint's sums
	work       int64  // of these, computed there: they count in its queue
	prefill    *Lease // on the endpoint that computes the others; nil: none
	step       int64  // tokens in prefix.ChunkSize bytes of the chain
	age        int64  // of the last chunk believed to be cached, if settled
	slot       int    // of its adapter
	ticket     uint64 // in the endpoint's due, if the answer does not stream
	reported   usage
	features   features
	first      float64       // seconds until the first token, as predicted
	each       float64       // seconds that each further token takes, as predicted
	begun      time.Duration // when the first token came
	slo        SLO           // what it asks for and was predicted to get
	known      uint64        // the last chunk that was common, if home
	home       bool          // the endpoint was the prompt's home
	settled    bool          // the last chunk believed to be cached had been computed, and was not in use
	stream     bool
	queued     bool // counted in the endpoint's queue
	answered   bool // the first token has come
	ended      bool
}

// usage is what the endpoint said, in tokens; −1: nothing.
type usage struct{ prompt, cached, completion int }

// Endpoint returns where to send the request; nil for the zero Lease.
func (l *Lease) Endpoint() *Endpoint { return l.e }

// PromptTokens returns the estimated length of the prompt.
func (l *Lease) PromptTokens() int { return int(l.prompt) }

// HitTokens returns how many of these the endpoint is believed to have cached.
func (l *Lease) HitTokens() int { return int(l.hit) }

// FirstToken says that the first token has come. The prompt leaves the endpoint's queue, and its speed is learned. Calls
// after the first, and for requests that do not stream, do nothing.
func (l *Lease) FirstToken(now time.Duration) {
	if l.e == nil || l.ended || l.answered || !l.stream {
		return
	}
	l.answered, l.begun = true, now
	l.leaveQueue(now)
	if l.slo.FirstToken > 0 {
		l.e.pool.forecasts.first.promised(now <= l.slo.FirstToken)
	}
	if l.prefill == nil {
		l.e.learnSpeed(l.dispatched, now, l.uncached)
		l.e.learnFirst(&l.features, (now - l.dispatched).Seconds(), l.first, l.uncached)
	} else {
		l.prefill.FirstToken(now)
		l.prefill.End(now, Done)
	}
	l.e.answered(l.dispatched)
	l.e.heard.Store(int64(now))
	l.e.pool.freed()
}

// Predicted returns how long after the choice the first token was predicted to come, and how long each further one was predicted to take;
// 0: of that nothing is known yet.
func (l *Lease) Predicted() (firstToken, perToken time.Duration) {
	return seconds(l.first), seconds(l.each)
}

// Expected returns how many tokens the request was expected to cost: its prompt and what it generates.
func (l *Lease) Expected() int { return int(l.prompt + l.output) }

// Usage says what the endpoint reported of the request: tokens of the prompt, of these cached, tokens generated; −1 for
// what it did not say. The last report counts.
func (l *Lease) Usage(prompt, cached, completion int) {
	l.reported = usage{prompt, cached, completion}
}

// End gives everything back, and learns from what was reported. Calls after the first do nothing.
func (l *Lease) End(now time.Duration, o Outcome) {
	if l.e == nil || l.ended {
		return
	}
	l.ended = true
	e := l.e
	defer e.pool.freed()
	waiting := l.leaveQueue(now) // still: the first token has neither come nor been due
	e.inflight.Add(-1)
	e.adapters.release(l.slot)
	e.held.Add(-l.uncached)
	e.promised.Add(-l.output)
	if o == NeverSent {
		e.sent.Add(-l.work)
	}
	if l.prefill != nil {
		l.prefill.End(now, o) // which of the two has failed is not known: the one that has not succeeds with others
	}
	switch o {
	case Done, Refused:
		e.answered(l.dispatched)
		e.heard.Store(int64(now))
	case Failed:
		e.strike(now)
	}
	computed := o == Done || l.answered || o == ClientGone && !waiting
	if !computed {
		e.index.Drop(l.chain, l.hold)
		return
	}
	e.advance(l.allocated(), now)
	e.index.Keep(l.chain, l.hold, e.clock.Load(), l.step)
	l.learn()
	if n := l.perAnswer(); o == Done && l.answered && n >= minPerToken {
		each := (now - l.begun).Seconds() / float64(n-1)
		if l.slo.PerToken > 0 {
			e.pool.forecasts.each.promised(each <= l.slo.PerToken.Seconds())
		}
		e.learnEach(&l.features, each, l.each)
	}
}

// leaveQueue takes the request out of the endpoint's queue and reports whether it was there.
func (l *Lease) leaveQueue(now time.Duration) bool {
	if !l.queued {
		return false
	}
	l.queued = false
	if !l.stream {
		return l.e.settle(l.ticket, now)
	}
	l.e.release(l.work, now)
	return true
}

// allocated is how many tokens the endpoint has computed for the request.
func (l *Lease) allocated() int64 {
	n := l.uncached
	if u := l.reported; u.prompt >= 0 && u.cached >= 0 {
		n = int64(max(clampTokens(u.prompt)-clampTokens(u.cached), 0))
	}
	return n + int64(clampTokens(l.reported.completion))
}

// perAnswer is how many tokens each answer took; below 0: nobody said.
func (l *Lease) perAnswer() int {
	if l.reported.completion < 0 {
		return -1
	}
	return clampTokens(l.reported.completion) / max(l.answers, 1)
}

// learn corrects what was believed by what was reported.
func (l *Lease) learn() {
	e, u := l.e, l.reported
	e.promptTokens.Add(uint64(l.prompt))
	e.hitTokens.Add(uint64(l.believed))
	e.agedTokens.Add(uint64(l.lost))
	tokens := -1
	if u.prompt > 0 && u.prompt <= maxTokens && l.extra <= u.prompt/8 { // what media take is a rough estimate
		tokens = u.prompt - clampTokens(l.extra)
	}
	e.pool.learnModel(l.model, l.bytes, tokens, l.perAnswer())
	if u.cached < 0 || u.cached > maxTokens || l.prefill != nil { // whose cache it was in is not known
		return
	}
	e.reports.Add(1)
	if l.home {
		e.pool.others.learnHome(l.known, float64(u.cached) > float64(l.believed+l.prompt)/2)
	}
	e.cachedTokens.Add(uint64(u.cached))
	if l.believed > 0 && !l.settled {
		return // it counted on chunks that were still being computed
	}
	e.learnBelief(evidence{
		believed: float64(l.believed),
		lost:     float64(l.lost),
		found:    float64(u.cached),
		old:      l.age > e.window(e.view.Load(), 0)/2,
	})
}
