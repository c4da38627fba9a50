package sim

import (
	"math/rand/v2"
	"time"
)

// As the SGLang and vLLM routers document them: --cache-threshold, --balance-abs-threshold, --balance-rel-threshold, --max-tree-size.
const (
	treeThreshold  = 0.3
	treeBalanceAbs = 64
	treeBalanceRel = 1.5
	treeChunks     = 1 << 26 / 256 // of 256 characters
)

// cacheTree is the policy cache_aware: an approximate radix tree of what each worker was sent. While the loads are balanced, the worker
// with the longest match if that is more than the threshold, else the one with the smallest tree; while they are not, the worker
// with the fewest requests in flight.
type cacheTree struct {
	ledger
	rng   *rand.Rand
	trees remembers
}

func newCacheTree(_ *simulation, rng *rand.Rand) router {
	return &cacheTree{rng: rng, trees: remembers{most: treeChunks}}
}

func (p *cacheTree) pick(r *request, _ time.Duration) int {
	pod := p.choose(r)
	p.trees.sent(pod, r.chain)
	return p.send(pod)
}

func (p *cacheTree) choose(r *request) int {
	fewest, most := p.inflight[p.live[0]], 0
	for _, pod := range p.live {
		fewest, most = min(fewest, p.inflight[pod]), max(most, p.inflight[pod])
	}
	if most-fewest > treeBalanceAbs && float64(most) > treeBalanceRel*float64(fewest) {
		return p.lowest(p.rng, p.load)
	}
	best, longest := -1, 0
	for _, pod := range p.live {
		if n := p.trees.matched(pod, r.chain); n > longest {
			best, longest = pod, n
		}
	}
	if best >= 0 && float64(longest) > treeThreshold*float64(len(r.chain)) {
		return best
	}
	return p.lowest(p.rng, func(pod int) float64 { return float64(p.trees.size(pod)) })
}
