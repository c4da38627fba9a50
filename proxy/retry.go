package proxy

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// retryBudget bounds how many requests may be on their second attempt at once,
// so that retries never multiply the load of a pool that is failing: a fifth of
// the live requests, but always a few (Envoy's retry budgets have the same
// shape). A request that finds no place waits for one: when one of a few
// endpoints dies, more than a fifth of the requests may have to move, and none
// is to be lost for it.
type retryBudget struct {
	retrying atomic.Int64
	freed    chan struct{} // holds one token while there may be a place for one who waits
}

const (
	retryShare = 5  // one in five
	retryFloor = 10 // however few requests are live
	// retryHold is how long a second attempt counts as one if it is not answered
	// before: an endpoint that has not failed by then is computing.
	retryHold = time.Second
)

func newRetryBudget() *retryBudget { return &retryBudget{freed: make(chan struct{}, 1)} }

// retryPlace is a request's place in the budget.
type retryPlace struct {
	budget *retryBudget
	once   sync.Once
	timer  *time.Timer
}

// begin takes a place, waiting for it if need be; nil when ctx ended first.
func (b *retryBudget) begin(ctx context.Context, live *atomic.Int64) *retryPlace {
	for !b.take(live) {
		select {
		case <-b.freed:
		case <-ctx.Done():
			return nil
		}
	}
	b.tell() // there may be another place
	p := &retryPlace{budget: b}
	p.timer = time.AfterFunc(retryHold, p.free)
	return p
}

// end gives the place back.
func (p *retryPlace) end() {
	p.timer.Stop()
	p.free()
}

func (p *retryPlace) free() {
	p.once.Do(func() {
		p.budget.retrying.Add(-1)
		p.budget.tell()
	})
}

func (b *retryBudget) take(live *atomic.Int64) bool {
	for {
		n := b.retrying.Load()
		if n >= max(retryFloor, live.Load()/retryShare) {
			return false
		}
		if b.retrying.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// tell wakes one who waits.
func (b *retryBudget) tell() {
	select {
	case b.freed <- struct{}{}:
	default:
	}
}
