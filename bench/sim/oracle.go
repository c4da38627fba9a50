package sim

import (
	"math/rand/v2"
	"time"
)

// oracle gives the score of package picker's Fairway to the engines' true state, requests on their way included: what their caches hold,
// what they have still to compute, how fast they are. It is no upper bound: the score looks at one request at a time.
type oracle struct {
	ledger
	sim *simulation
	rng *rand.Rand
}

func newOracle(s *simulation, rng *rand.Rand) router {
	s.truth = true
	return &oracle{sim: s, rng: rng}
}

func (p *oracle) pick(r *request, _ time.Duration) int {
	return p.send(p.lowest(p.rng, func(pod int) float64 { return p.score(r, pod) }))
}

func (p *oracle) score(r *request, pod int) float64 {
	const (
		interference = 0.1
		decodeTokens = 2000
		kvBarrier    = 0.8
	)
	x := p.sim.pods[pod]
	u := float64(max(1, r.seq.PromptTokens-x.engine.CachedPrefix(&r.seq)))
	speed := x.engine.Config().Cost.PrefillToken.Seconds()
	return speed * (float64(x.queued) + u + interference*float64(x.requests)*(u+decodeTokens)) / (1 - kvBarrier*x.engine.Stats().KVUsage)
}
