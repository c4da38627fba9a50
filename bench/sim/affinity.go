package sim

import (
	"math/rand/v2"
	"time"
)

const (
	affinityThreshold = 0.8 // of the prompt that a warm pod has

	// The reference picker's thresholds of saturation.
	saturatedQueue = 5
	saturatedKV    = 0.8
)

// eppAffinity is the endpoint picker as its newer guides set it up: of the pods that were sent at least 80 % of the prompt before and are not
// saturated, else of all, the one with the fewest prompt tokens of the picker's own requests in flight.
type eppAffinity struct {
	eppView
	tokens [maxPods]float64 // of prompts in flight
}

func newEPPAffinity(_ *simulation, rng *rand.Rand) router {
	return &eppAffinity{eppView: eppView{rng: rng, index: eppIndex{remembers{most: eppBlocks}}}}
}

func (p *eppAffinity) pick(r *request, _ time.Duration) int {
	var blocks [maxPods]int
	p.index.match(p.live, r.chain, &blocks)
	warm := func(pod int) bool {
		s := &p.scraped[pod]
		return len(r.chain) > 0 && float64(blocks[pod]) >= affinityThreshold*float64(len(r.chain)) &&
			s.Waiting <= saturatedQueue && s.KVUsage <= saturatedKV
	}
	any := false
	for _, pod := range p.live {
		any = any || warm(pod)
	}
	const cold = 1e15 // more tokens than there are
	pod := p.lowest(p.rng, func(pod int) float64 {
		if any && !warm(pod) {
			return cold
		}
		return p.tokens[pod]
	})
	p.index.sent(pod, r.chain)
	r.tokens = r.estimate()
	p.tokens[pod] += r.tokens
	return p.send(pod)
}

func (p *eppAffinity) end(r *request, now time.Duration) {
	p.tokens[r.pod] -= r.tokens
	p.eppView.end(r, now)
}
