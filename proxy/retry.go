package proxy

import (
	"context"
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
	retryShare = 5               // one in five
	retryFloor = 10              // however few requests are live
	retryWait  = 5 * time.Second // for a place
)

func newRetryBudget() *retryBudget { return &retryBudget{freed: make(chan struct{}, 1)} }

// begin takes a place, waiting for it if need be; false when none came free in
// time, or the client left.
func (b *retryBudget) begin(ctx context.Context, live *atomic.Int64) bool {
	if b.take(live) {
		return true
	}
	late := time.NewTimer(retryWait)
	defer late.Stop()
	for {
		select {
		case <-b.freed:
		case <-late.C:
			return false
		case <-ctx.Done():
			return false
		}
		if b.take(live) {
			b.tell() // there may be another place
			return true
		}
	}
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

// end gives a place back.
func (b *retryBudget) end() {
	b.retrying.Add(-1)
	b.tell()
}

func (b *retryBudget) tell() {
	select {
	case b.freed <- struct{}{}:
	default:
	}
}
