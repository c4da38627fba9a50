package turn

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// waiter waits for a turn on a goroutine of its own.
type waiter struct {
	Turn
	over chan struct{}
	had  chan bool
}

func wait(g *Gate) *waiter {
	w := &waiter{over: make(chan struct{}), had: make(chan bool, 1)}
	go func() { w.had <- g.Take(&w.Turn, w.over) }()
	synctest.Wait()
	return w
}

// spent gives a gate with a turn each millisecond and none at the moment.
func spent(t *testing.T) *Gate {
	t.Helper()
	g := &Gate{every: time.Millisecond}
	for i := range few + 1 {
		if w := wait(g); len(w.had) == 0 {
			t.Errorf("%d of a burst waits", i)
		}
	}
	return g
}

func TestInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := spent(t)
		start := time.Now()
		var all []*waiter
		for range 20 {
			all = append(all, wait(g))
		}
		for i, w := range all {
			if !<-w.had {
				t.Errorf("%d gave up", i)
			}
			if took, want := time.Since(start), time.Duration(i+1)*g.every; took != want {
				t.Errorf("%d had its turn after %v, want %v", i, took, want)
			}
		}
		if g.line.Len() != 0 {
			t.Errorf("something is left: %+v", g)
		}
	})
}

// After a time without turns there are some at once, but not all there could have been.
func TestBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := spent(t)
		time.Sleep(time.Hour)
		for range few + 1 {
			wait(g)
		}
		if w := wait(g); len(w.had) > 0 {
			t.Error("one more did not wait")
		} else {
			<-w.had
		}
	})
}

// Who gives up leaves the line, wherever he stands in it, and takes no turn.
func TestGivingUp(t *testing.T) {
	for gone := range 3 {
		synctest.Test(t, func(t *testing.T) {
			g := spent(t)
			start := time.Now()
			var all []*waiter
			for range 3 {
				all = append(all, wait(g))
			}
			close(all[gone].over)
			if <-all[gone].had {
				t.Error("a turn was given")
			}
			all = slices.Delete(all, gone, gone+1)
			for i, w := range all {
				if <-w.had; time.Since(start) != time.Duration(i+1)*g.every {
					t.Errorf("%d had its turn after %v", i, time.Since(start))
				}
			}
			last := wait(g)
			close(last.over)
			if <-last.had || g.line.Len() != 0 {
				t.Errorf("something is left: %+v", g)
			}
		})
	}
}

// The line moves on, whoever gives up meanwhile.
func TestMany(t *testing.T) {
	g := &Gate{every: time.Microsecond}
	var had atomic.Int32
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			var turn Turn
			for range 200 {
				over := make(chan struct{})
				if i%5 == 0 {
					go close(over)
				}
				if g.Take(&turn, over) {
					had.Add(1)
				}
			}
		})
	}
	all.Wait()
	if had.Load() < 40*200 || g.line.Len() != 0 {
		t.Errorf("%d turns given: %+v", had.Load(), g)
	}
}

func TestNoGate(t *testing.T) {
	var g *Gate
	var turn Turn
	if !g.Take(&turn, nil) {
		t.Error("no turn")
	}
}

func TestTurnAlloc(t *testing.T) {
	g := &Gate{every: time.Nanosecond}
	var turn Turn
	if n := testing.AllocsPerRun(100, func() {
		g.Take(&turn, nil)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkTurn(b *testing.B) {
	g := &Gate{every: time.Nanosecond}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		var turn Turn
		for pb.Next() {
			g.Take(&turn, nil)
		}
	})
}

// Where a late timer costs many turns, as many can be made up for.
func TestManyProcessors(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(64))
	synctest.Test(t, func(t *testing.T) {
		var g Gate
		at, w := 0, wait(&g)
		for ; len(w.had) > 0; w = wait(&g) {
			at++
		}
		<-w.had
		if want := perProcessor * 64 * int(late) / int(time.Second); at < want {
			t.Errorf("%d turns at once, want %d", at, want)
		}
	})
}
