package sim

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/fairway-proxy/fairway/picker/prefix"
)

const (
	chwblReplication = 256  // points of each pod on the ring
	chwblLoadFactor  = 1.25 // of the mean load that a pod may have
)

// boundedHash is consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2018) as KubeAI documents it: the key is the
// beginning of the prompt (100 characters there, the first chunk here), the ring is walked from the key on to the first pod
// whose requests in flight stay within 125 % of the mean.
type boundedHash struct {
	ledger
	ring []ringPoint
}

type ringPoint struct {
	at  uint64
	pod int
}

func newCHWBL(*simulation, *rand.Rand) router { return &boundedHash{} }

func (p *boundedHash) setPods(live []int) {
	p.ledger.setPods(live)
	p.ring = p.ring[:0]
	for _, pod := range live {
		for i := range uint64(chwblReplication) {
			p.ring = append(p.ring, ringPoint{prefix.Link(uint64(pod)+1, i), pod})
		}
	}
	slices.SortFunc(p.ring, func(a, b ringPoint) int { return cmp.Compare(a.at, b.at) })
}

func (p *boundedHash) pick(r *request, _ time.Duration) int {
	key := r.digest
	if len(r.chain) > 0 {
		key = r.chain[0]
	}
	start, _ := slices.BinarySearchFunc(p.ring, key, func(a ringPoint, k uint64) int { return cmp.Compare(a.at, k) })
	limit := float64(p.total+1) / float64(len(p.live)) * chwblLoadFactor
	for i := range p.ring {
		pod := p.ring[(start+i)%len(p.ring)].pod
		if p.total == 0 || p.load(pod)+1 <= limit {
			return p.send(pod)
		}
	}
	return p.send(p.ring[start%len(p.ring)].pod)
}
