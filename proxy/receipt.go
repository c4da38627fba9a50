package proxy

import (
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/openai"
)

// What is kept of a choice, so that it can be explained.

// weighing is what a choice goes by: much, in a pool of many endpoints. It is given back
// as soon as what a receipt tells is noted, since streams live long.
type weighing struct {
	candidates []picker.Candidate
	shadowed   []picker.Candidate // the same, as a shadow policy sees them
}

var weighings = sync.Pool{New: func() any { return new(weighing) }}

// beginWeighing has the next choice leave its candidates.
func (x *Exchange) beginWeighing() {
	x.weighing = weighings.Get().(*weighing)
	x.want.Candidates = &x.weighing.candidates
}

// endWeighing forgets them.
func (x *Exchange) endWeighing() {
	w := x.weighing
	x.weighing, x.want.Candidates = nil, nil
	clear(w.candidates)
	clear(w.shadowed)
	w.candidates, w.shadowed = w.candidates[:0], w.shadowed[:0]
	weighings.Put(w)
}

// notePick keeps when an endpoint was chosen, and how long that was waited for since it was asked for.
func (x *Exchange) notePick(asked time.Duration) {
	x.record.Pick.At = x.want.Now - x.start
	x.record.Pick.Queued += x.want.Now - asked
}

// noteFailure keeps that an endpoint failed.
func (x *Exchange) noteFailure(e *picker.Endpoint, why error) {
	x.record.Pick.Fail(e.Name(), Now()-x.start, why)
}

// noteChoice keeps where the request goes, whether for the first time or again, and what was thought of it.
func (x *Exchange) noteChoice(l *picker.Lease) {
	if x.record.Endpoint != "" {
		x.record.Retries++
	}
	x.record.Endpoint = l.Endpoint().Name()
	x.record.Pick.Prefill = ""
	if p := l.Prefill(); p != nil {
		x.record.Pick.Prefill = p.Name()
	}
	x.record.PredictedTokens, x.record.PredictedHit = l.PromptTokens(), l.HitTokens()

	p, pool := &x.record.Pick, x.pool.picker
	p.PredictedTTFT, p.PredictedTPOT = l.Predicted()
	weighed := x.weighing.candidates
	chosen, next, factor := pool.Why(weighed, l.Endpoint())
	p.Weighed, p.Chosen, p.Next, p.DecidedBy = len(weighed), -1, -1, ""
	p.Candidates, p.Shadow = p.Candidates[:0], account.Shadow{}
	if chosen < 0 {
		return
	}
	x.noteShadow(&weighed[chosen])
	p.DecidedBy = factor.String()
	if slices.Contains(x.consult.endpoints, l.Endpoint()) {
		p.DecidedBy = account.ByEndpointPicker
	}
	for i := range weighed {
		c := &weighed[i]
		at := len(p.Candidates)
		switch {
		case at < account.MaxCandidates:
			p.Candidates = append(p.Candidates, account.Candidate{})
		case i != chosen && i != next:
			if at = worst(p); float32(c.Score) >= p.Candidates[at].Score {
				continue
			}
		default:
			at = worst(p)
		}
		switch i {
		case chosen:
			p.Chosen = at
		case next:
			p.Next = at
		}
		costs := pool.Costs(c)
		to := &p.Candidates[at] // field by field: all at once it is made elsewhere and copied
		to.Endpoint, to.Score = c.Endpoint.Name(), float32(c.Score)
		to.Queue, to.Prompt, to.Adapter, to.Inflicted = float32(costs.Queue), float32(costs.Prompt), float32(costs.Adapter), float32(costs.Inflicted)
		to.Pressure, to.Price = float32(costs.Pressure), float32(costs.Price)
		to.HitTokens, to.UncachedTokens, to.QueuedTokens, to.Requests = float32(c.Hit), float32(c.Uncached), float32(c.Queued), float32(c.InFlight)
		to.KV, to.SecondsPerToken, to.Home = float32(c.KV), float32(c.Speed), c.Home
	}
}

// worst is the candidate with the highest score, of those that may be left out.
func worst(p *account.Pick) int {
	at := -1
	for i := range p.Candidates {
		if i != p.Chosen && i != p.Next && (at < 0 || p.Candidates[i].Score > p.Candidates[at].Score) {
			at = i
		}
	}
	return at
}

// appendReceipt writes one line of JSON: where the request went and what the
// picker thought of it. The whole receipt is there to be asked for once the request
// has ended.
func (x *Exchange) appendReceipt(dst []byte, lease *picker.Lease) []byte {
	dst = append(dst, `{"id":`...)
	dst = openai.AppendQuoted(dst, x.record.ID)
	dst = append(dst, `,"receipt":`...)
	dst = openai.AppendQuoted(dst, x.record.ID+"@"+x.server.account.Replica())
	dst = append(dst, `,"pool":`...)
	dst = openai.AppendQuoted(dst, x.pool.name)
	dst = append(dst, `,"endpoint":`...)
	dst = openai.AppendQuoted(dst, x.record.Endpoint)
	if x.record.Pick.Prefill != "" {
		dst = append(dst, `,"prefill":`...)
		dst = openai.AppendQuoted(dst, x.record.Pick.Prefill)
	}
	dst = append(dst, `,"prompt_tokens":`...)
	dst = strconv.AppendInt(dst, int64(lease.PromptTokens()), 10)
	dst = append(dst, `,"cached_tokens":`...)
	dst = strconv.AppendInt(dst, int64(lease.HitTokens()), 10)
	dst = append(dst, `,"attempts":`...)
	dst = strconv.AppendInt(dst, int64(1+x.record.Retries), 10)
	p := &x.record.Pick
	if p.DecidedBy != "" {
		dst = append(dst, `,"decided_by":`...)
		dst = openai.AppendQuoted(dst, p.DecidedBy)
	}
	if p.Next >= 0 {
		dst = append(dst, `,"next":`...)
		dst = openai.AppendQuoted(dst, p.Candidates[p.Next].Endpoint)
	}
	return append(dst, '}')
}
