package proxy

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Of the live requests a fifth may be on their second attempt, or ten; the others wait until one of these was answered, or a second
// has passed, and as long as somebody waits for them.
func TestRetryBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRetryBudget()
		var live, begun atomic.Int64
		places := make(chan *retryPlace, 100)
		begin := func(ctx context.Context) {
			go func() {
				p := b.begin(ctx, &live)
				if p != nil {
					begun.Add(1)
				}
				places <- p
			}()
		}
		want := func(n int64, what string) {
			t.Helper()
			if synctest.Wait(); begun.Load() != n {
				t.Errorf("%d have begun %s, want %d", begun.Load(), what, n)
			}
		}
		for range 12 {
			begin(t.Context())
		}
		want(10, "while few are live")
		(<-places).end()
		want(11, "after the first was answered")
		time.Sleep(retryHold)
		want(12, "after a second")
		time.Sleep(retryHold)

		live.Store(100)
		for range 20 {
			begin(t.Context())
		}
		want(12+20, "of a hundred")
		ctx, cancel := context.WithCancel(t.Context())
		begin(ctx)
		want(12+20, "beyond a fifth")
		cancel()
		want(12+20, "though their client has gone")
		time.Sleep(retryHold)
		want(12+20, "whose client had gone")
		if n := b.retrying.Load(); n != 0 {
			t.Errorf("%d places are held", n)
		}
	})
}
