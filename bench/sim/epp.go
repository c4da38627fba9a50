package sim

import (
	"math/rand/v2"
	"time"

	"github.com/fairway-proxy/fairway/bench/engine"
)

// Weights of the default scorers of the Gateway API Inference Extension's endpoint picker.
const (
	eppQueueWeight  = 2
	eppKVWeight     = 2
	eppPrefixWeight = 3

	// eppBlocks is how many blocks its index holds for each pod. It has as many as the engine has of its own, of 64 tokens instead
	// of 16: it remembers four times what the engine keeps.
	eppBlocks = 28_500
)

// eppView is what the endpoint picker sees: the gauges of its last scrape, and which blocks it sent where.
type eppView struct {
	ledger
	rng     *rand.Rand
	scraped [maxPods]engine.Stats
	index   eppIndex
}

func (p *eppView) observe(pod int, st *engine.Stats, _ time.Duration) { p.scraped[pod] = *st }

// eppIndex is its approximate prefix cache. A prompt's blocks are entered head first, so that the head is the first to be forgotten; and
// a pod matches each block that it has up to the first that no pod has, whether or not it has those before it.
type eppIndex struct{ remembers }

// match fills in how many of the chain's blocks each pod has.
func (x *eppIndex) match(live []int, chain []uint64, blocks *[maxPods]int) {
	for _, pod := range live {
		blocks[pod] = 0
	}
	for _, key := range chain {
		found := false
		for _, pod := range live {
			if l := x.pods[pod]; l != nil && l.has(key) {
				blocks[pod]++
				found = true
			}
		}
		if !found {
			return
		}
	}
}

// eppDefault adds up three scores, each from 0 to 1: how short the queue is between the longest and the shortest, how much of the KV cache
// is free, how much of the prompt was sent there before. The highest sum wins; the lot decides among equals.
type eppDefault struct{ eppView }

func newEPPDefault(_ *simulation, rng *rand.Rand) router {
	return &eppDefault{eppView{rng: rng, index: eppIndex{remembers{most: eppBlocks}}}}
}

func (p *eppDefault) pick(r *request, _ time.Duration) int {
	var blocks [maxPods]int
	p.index.match(p.live, r.chain, &blocks)
	shortest, longest := p.scraped[p.live[0]].Waiting, 0
	for _, pod := range p.live {
		shortest, longest = min(shortest, p.scraped[pod].Waiting), max(longest, p.scraped[pod].Waiting)
	}
	pod := p.lowest(p.rng, func(pod int) float64 {
		queue := 1.0
		if longest > shortest {
			queue = float64(longest-p.scraped[pod].Waiting) / float64(longest-shortest)
		}
		match := 0.0
		if len(r.chain) > 0 {
			match = float64(blocks[pod]) / float64(len(r.chain))
		}
		return -(eppQueueWeight*queue + eppKVWeight*(1-p.scraped[pod].KVUsage) + eppPrefixWeight*match)
	})
	p.index.sent(pod, r.chain)
	return p.send(pod)
}
