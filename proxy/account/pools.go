package account

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// keepPool is how long the counts of a pool that is gone are kept: its last requests are among them, and who reads metrics has seen them.
const keepPool = time.Hour

// pools are those that there are, and those that were there a while ago.
type pools struct {
	mu   sync.Mutex
	live map[string]bool      // nil: nobody has said; never changed once set; guarded by mu
	gone map[string]time.Time // when it went, or was found to be counted though it is gone; guarded by mu
}

// SetPools says which pools there are: what is counted by the name of any other is forgotten an hour later. Until it is called, nothing is.
// The map may not be changed any more. A nil Recorder forgets nothing.
func (r *Recorder) SetPools(live map[string]bool) {
	if r == nil {
		return
	}
	p := &r.pools
	p.mu.Lock()
	for name := range p.live {
		if !live[name] {
			p.gone[name] = time.Now()
		}
	}
	p.live = live
	for name := range p.gone {
		if live[name] {
			delete(p.gone, name)
		}
	}
	p.mu.Unlock()
	r.forgetPools()
}

// note has a pool that is gone, and of which something is counted still, forgotten in its time.
func (p *pools) note(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noteLocked(name)
}

func (p *pools) noteLocked(name string) {
	if p.live == nil || p.live[name] || name == "" {
		return
	}
	if _, known := p.gone[name]; !known {
		p.gone[name] = time.Now()
	}
}

// forgetPools drops the counts of pools that have been gone for long enough.
func (r *Recorder) forgetPools() {
	p := &r.pools
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range r.desks.all {
		d.mu.Lock()
		for name := range d.tally.pools {
			p.noteLocked(name)
		}
		d.mu.Unlock()
	}
	for name, since := range p.gone {
		if time.Since(since) < keepPool {
			continue
		}
		delete(p.gone, name)
		for _, d := range r.desks.all {
			d.mu.Lock()
			d.tally.forget(name)
			d.mu.Unlock()
		}
		r.metrics.forget(name)
	}
}

// forget drops what is counted of a pool.
func (t *tally) forget(pool string) {
	delete(t.pools, pool)
	for k := range t.models {
		if k.pool == pool {
			delete(t.models, k)
		}
	}
	t.last = nil
}

func (m *metrics) forget(pool string) {
	for _, v := range []*prometheus.CounterVec{m.gone, m.shed, m.tcpConnections, m.tcpBytes} {
		v.DeletePartialMatch(prometheus.Labels{"pool": pool})
	}
}
