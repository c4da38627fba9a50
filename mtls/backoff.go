package mtls

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff is how long to wait after failures in a row: twice as long each time,
// from least to most, without end. Chance takes away up to half of it, so that
// those who failed together do not come back together.
type backoff struct {
	least, most time.Duration
	next        time.Duration // of its upper bound; 0: least
}

// Next is how long to wait after one more failure.
func (b *backoff) Next() time.Duration {
	bound := max(b.next, b.least)
	b.next = min(2*bound, b.most)
	return bound/2 + rand.N(bound/2)
}

// Reset begins anew, after a success.
func (b *backoff) Reset() { b.next = 0 }

// sleep waits, and says whether ctx has not ended meanwhile.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
