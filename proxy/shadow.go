package proxy

import (
	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/proxy/account"
)

// shadow is a policy that is asked about a pool's requests, and sends none.
type shadow struct {
	name   ShadowPolicy
	policy picker.Policy
}

// setShadow has a policy asked, or none. The one there is goes on where it was.
func (p *pool) setShadow(name ShadowPolicy) {
	if now := p.shadow.Load(); now != nil && now.name == name {
		return
	}
	switch name {
	case ShadowLeastRequest:
		p.shadow.Store(&shadow{name, picker.LeastRequest{}})
	case ShadowRoundRobin:
		p.shadow.Store(&shadow{name, new(picker.RoundRobin)})
	default:
		p.shadow.Store(nil)
	}
}

// noteShadow keeps where the pool's shadow policy would have sent the request, and when
// the first token was to be expected there and where it goes, if there was a choice:
// both by the terms of the pool's own policy, for that is what is known of both.
func (x *Exchange) noteShadow(chosen *picker.Candidate) {
	s := x.pool.shadow.Load()
	w := x.weighing
	if s == nil || len(w.candidates) < 2 {
		return
	}
	w.shadowed = append(w.shadowed[:0], w.candidates...) // it writes scores of its own
	other := &w.candidates[s.policy.Choose(w.shadowed, &x.want)]
	pool := x.pool.picker
	x.record.Pick.Shadow = account.Shadow{
		Policy: string(s.name), Endpoint: other.Endpoint.Name(), Agrees: other == chosen,
		FirstToken: pool.Costs(other).FirstToken, Chosen: pool.Costs(chosen).FirstToken,
	}
}
