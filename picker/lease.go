package picker

import (
	"time"

	"github.com/fairway-proxy/fairway/picker/prefix"
)

// An Outcome is how a request ended.
type Outcome uint8

const (
	Done       Outcome = iota // the endpoint answered, whatever it said
	ClientGone                // the client left before the end
	Failed                    // the endpoint failed: reset, time-out, a stream cut short
	NeverSent                 // the request did not reach the endpoint
)

// A Lease is one request's place on an endpoint, from Pick to End. It is a value for the request to own: it must not be
// copied after Pick has returned it, nor used by two goroutines at once. The request's Chain and Model must not change
// until it has ended. The zero value is a lease of nothing; all its methods may be called.
type Lease struct {
	e          *Endpoint
	chain      []uint64
	model      string
	hold       prefix.Hold
	dispatched time.Duration
	bytes      int    // of text
	known      int    // prompt tokens beyond bytes
	prompt     int64  // tokens, estimated
	hit        int64  // of these, believed to be cached
	lost       int64  // of these, known but believed to have left the cache
	uncached   int64  // tokens counted in the endpoint's sums
	step       int64  // tokens in a chunk
	age        int64  // of the last chunk believed to be cached, if aged
	ticket     uint64 // in the endpoint's due, if the answer does not stream
	reported   usage
	aged       bool // the last chunk believed to be cached was not in use
	stream     bool
	queued     bool // counted in the endpoint's queue
	first      bool // the first token has come
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
	if l.e == nil || l.ended || l.first || !l.stream {
		return
	}
	l.first = true
	l.leaveQueue()
	l.e.learnSpeed(l.dispatched, now, l.uncached)
	l.e.answered(l.dispatched)
}

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
	computed := l.first
	if !l.first && !l.leaveQueue() {
		computed = true // the answer does not stream, and the first token was due
	}
	computed = o == Done || computed && o == ClientGone || l.first && o == Failed
	e.inflight.Add(-1)
	e.held.Add(-l.uncached)
	if o == Done {
		e.answered(l.dispatched)
	}
	if !computed {
		e.index.Drop(l.chain, l.hold)
		return
	}
	e.advance(l.allocated(), now)
	e.index.Keep(l.chain, l.hold, e.clock.Load(), l.step)
	l.learn()
}

// leaveQueue takes the request out of the endpoint's queue and reports whether it was there.
func (l *Lease) leaveQueue() bool {
	if !l.queued {
		return false
	}
	l.queued = false
	if !l.stream {
		return l.e.settle(l.ticket)
	}
	l.e.release(l.uncached)
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

// learn corrects what was believed by what was reported.
func (l *Lease) learn() {
	u := l.reported
	if u.prompt > 0 && u.prompt <= maxTokens {
		l.e.pool.learnText(l.model, l.bytes, u.prompt-clampTokens(l.known))
	}
	if u.cached < 0 || u.cached > maxTokens {
		return
	}
	l.e.reports.Add(1)
	l.e.cachedTokens.Add(uint64(u.cached))
	if l.hit == 0 || l.aged {
		l.e.belief.learn(evidence{
			believed: float64(l.hit), lost: float64(l.lost), found: float64(u.cached),
			old: l.age > l.e.window(l.e.view.Load(), 0)/2,
		})
	}
}
