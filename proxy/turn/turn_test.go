package turn

import (
	"runtime"
	"slices"
	"sync"
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

// waits tells whether it has neither had its turn nor given up.
func (w *waiter) waits() bool {
	synctest.Wait()
	return len(w.had) == 0
}

func TestInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &Gate{slots: 2}
		var all []*waiter
		for range 6 {
			all = append(all, wait(g))
		}
		for i := range all {
			for j, w := range all[i:] {
				if w.waits() != (j > 1) {
					t.Errorf("after %d ended, %d waits: %v", i, i+j, w.waits())
				}
			}
			if !<-all[i].had {
				t.Errorf("%d gave up", i)
			}
			g.End(&all[i].Turn)
			g.End(&all[i].Turn) // does nothing
		}
		if g.taken != 0 || g.first != nil || g.last != nil {
			t.Errorf("something is left: %+v", g)
		}
	})
}

// Whoever has to wait, with a turn, keeps the others waiting no longer than most.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &Gate{slots: 1}
		var all []*waiter
		for range 4 {
			all = append(all, wait(g))
		}
		start := time.Now()
		for i, w := range all {
			<-w.had
			if took, want := time.Since(start), time.Duration(i)*most; took != want {
				t.Errorf("%d had its turn after %v, want %v", i, took, want)
			}
		}
		for _, w := range all[:3] {
			g.End(&w.Turn)
		}
		last := wait(g)
		if !last.waits() {
			t.Error("the end of turns that had expired made room")
		}
		g.End(&all[3].Turn)
		if last.waits() {
			t.Error("the end of a turn made no room")
		}
		g.End(&last.Turn)
	})
}

// Who gives up leaves the line, wherever he stands in it, and keeps no turn.
func TestGivingUp(t *testing.T) {
	for gone := range 3 {
		synctest.Test(t, func(t *testing.T) {
			g := &Gate{slots: 1}
			first := wait(g)
			var all []*waiter
			for range 3 {
				all = append(all, wait(g))
			}
			close(all[gone].over)
			if <-all[gone].had {
				t.Error("a turn was given")
			}
			g.End(&all[gone].Turn) // does nothing
			all = slices.Delete(all, gone, gone+1)
			g.End(&first.Turn)
			for _, w := range all {
				if w.waits() {
					t.Fatal("the line does not move")
				}
				g.End(&w.Turn)
			}
			if g.taken != 0 || g.first != nil {
				t.Errorf("something is left: %+v", g)
			}
		})
	}
}

// Turns are given once, and all are, whoever gives up meanwhile.
func TestMany(t *testing.T) {
	g := new(Gate)
	var mu sync.Mutex
	live, had := 0, 0
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			var turn Turn
			for range 200 {
				over := make(chan struct{})
				if i%5 == 0 {
					go close(over)
				}
				if !g.Take(&turn, over) {
					continue
				}
				mu.Lock()
				live++
				had++
				mu.Unlock()
				runtime.Gosched()
				mu.Lock()
				live--
				mu.Unlock()
				g.End(&turn)
			}
		})
	}
	all.Wait()
	if live != 0 || had < 40*200 || g.taken != 0 || g.first != nil {
		t.Errorf("%d turns under way, %d given: %+v", live, had, g)
	}
}

func TestNoGate(t *testing.T) {
	var g *Gate
	var turn Turn
	if !g.Take(&turn, nil) {
		t.Error("no turn")
	}
	g.End(&turn)
}

func TestTurnAlloc(t *testing.T) {
	g := new(Gate)
	var turn Turn
	if n := testing.AllocsPerRun(100, func() {
		g.Take(&turn, nil)
		g.End(&turn)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkTurn(b *testing.B) {
	g := new(Gate)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		var turn Turn
		for pb.Next() {
			g.Take(&turn, nil)
			g.End(&turn)
		}
	})
}
