package sim

import (
	"math/rand/v2"
	"time"
)

// byLot picks any pod.
type byLot struct {
	ledger
	rng *rand.Rand
}

func newRandom(_ *simulation, rng *rand.Rand) router { return &byLot{rng: rng} }

func (p *byLot) pick(*request, time.Duration) int { return p.send(p.live[p.rng.IntN(len(p.live))]) }

// twoChoices draws two pods and takes the one with fewer of the router's own requests in flight (Mitzenmacher, "The Power of Two
// Choices in Randomized Load Balancing"; Envoy's least-request balancer does the same).
type twoChoices struct {
	ledger
	rng *rand.Rand
}

func newP2C(_ *simulation, rng *rand.Rand) router { return &twoChoices{rng: rng} }

func (p *twoChoices) pick(*request, time.Duration) int {
	i := p.rng.IntN(len(p.live))
	a := p.live[i]
	if len(p.live) > 1 {
		j := p.rng.IntN(len(p.live) - 1)
		if j >= i {
			j++
		}
		if b := p.live[j]; p.inflight[b] < p.inflight[a] {
			a = b
		}
	}
	return p.send(a)
}
