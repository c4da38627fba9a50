package sim

import (
	"math/rand/v2"
	"time"

	"github.com/fairway-proxy/fairway/picker/prefix"
)

// sessionHash sends a conversation to the pod that ranks highest for it, wherever its load stands: what a session cookie, or
// consistent hashing of a header, does.
type sessionHash struct{ ledger }

func newSessionHash(*simulation, *rand.Rand) router { return &sessionHash{} }

func (p *sessionHash) pick(r *request, _ time.Duration) int {
	best, highest := p.live[0], uint64(0)
	for _, pod := range p.live {
		if rank := prefix.Link(r.session, uint64(pod)); rank >= highest {
			best, highest = pod, rank
		}
	}
	return p.send(best)
}
