package sim

import (
	"math"
	"math/rand/v2"
	"time"
)

// cheapest knows the engines' true state and what their steps take, as the oracle does, and picks of the pods at which a request's first
// token will come in time, and its others fast enough, the one where it costs the least; among equals, and if no pod is fast enough, the one
// with the oracle's lowest score. Who comes later is not known to it: Config.Slack says how much of the SLO it reckons with.
type cheapest struct{ oracle }

func newCheapest(s *simulation, rng *rand.Rand) router {
	s.truth = true
	return &cheapest{oracle{sim: s, rng: rng}}
}

func (p *cheapest) pick(r *request, now time.Duration) int {
	var prices [maxPods]float64
	least, most := math.Inf(1), 0
	for _, pod := range p.live {
		most = max(most, p.sim.pods[pod].engine.CachedPrefix(&r.seq))
	}
	for _, pod := range p.live {
		prices[pod] = p.price(r, pod, most, now)
		least = min(least, prices[pod])
	}
	return p.send(p.lowest(p.rng, func(pod int) float64 {
		if prices[pod] > least*1.001 {
			return math.Inf(1)
		}
		return p.score(r, pod)
	}))
}

// price is what the request will cost at a pod; infinite: it would be too late.
// most is how much of the prompt is cached where most is.
func (p *cheapest) price(r *request, pod, most int, now time.Duration) float64 {
	x := p.sim.pods[pod]
	cfg := x.engine.Config()
	done := r.seq // as it will have been
	done.Cached = x.engine.CachedPrefix(&r.seq)
	done.Generated = done.OutputTokens

	// The first token comes after the step under way and those that compute what is queued before it.
	stats := x.engine.Stats()
	busy := stats.KVUsage * float64(x.engine.MaxTokens())
	step := cfg.Cost.Step + time.Duration(stats.Running)*cfg.Cost.DecodeSeq + time.Duration(busy)*cfg.Cost.ContextToken
	tokens := x.queued + done.PromptTokens - done.Cached
	steps := time.Duration((tokens + cfg.MaxBatchedTokens - 1) / cfg.MaxBatchedTokens)
	first := max(dispatchDelay, x.free-now) + steps*step + time.Duration(tokens)*cfg.Cost.PrefillToken
	slo := p.sim.cfg.SLO.withDefaults()
	slack := p.sim.cfg.Slack
	if slack == 0 {
		slack = 1
	}
	if float64(now-r.intended+first) > slack*float64(slo.TTFT) || float64(step) > slack*float64(slo.TPOT) {
		return math.Inf(1)
	}
	done.Cached += int((1 - p.sim.cfg.Share) * float64(max(0, most-done.Cached)))
	return p.sim.costOf(pod) * cfg.Cost.Of(&done).Seconds()
}
