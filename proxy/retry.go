package proxy

import "sync/atomic"

// retryBudget bounds how many requests may be on their second attempt at once,
// so that retries never multiply the load of a pool that is failing: a fifth of
// the live requests, but always a few (Envoy's retry budgets have the same
// shape).
type retryBudget struct{ retrying atomic.Int64 }

const (
	retryShare = 5  // one in five
	retryFloor = 10 // however few requests are live
)

// begin takes a place; false when there is none.
func (b *retryBudget) begin(live int64) bool {
	if b.retrying.Add(1) > max(retryFloor, live/retryShare) {
		b.retrying.Add(-1)
		return false
	}
	return true
}

func (b *retryBudget) end() { b.retrying.Add(-1) }
