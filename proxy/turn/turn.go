// Package turn has what a client begins many of at once begin in turn with what other clients do:
// a client that means well and has one request to begin finds a processor free, however many
// another sends at once.
//
// Go runs what is ready in the order in which it became so, and looks for what has arrived on
// the network when nothing is left to run, or after 10 ms: a thousand requests that begin together
// are a wait of as long as all of them take for the one that comes behind. What waits for a turn is
// not ready, and turns are spaced.
package turn

import (
	"container/list"
	"runtime"
	"sync"
	"time"
)

// perProcessor is how many turns there are in a second for each processor. To begin a request takes some 100 µs of it,
// 350 where a connection to an engine is opened for it: so it is a tenth of what processors can do, or a third.
const perProcessor = 1000

// Turns that nobody took are kept for late, and a few of them for longer: Go's timers are a millisecond
// late where nothing else goes on, and on many processors that is many turns.
const (
	late = 2 * time.Millisecond
	few  = 8
)

// Gate gives turns, in the order in which they are asked for. The zero value is ready. A nil Gate
// has a turn for everybody at once.
type Gate struct {
	mu    sync.Mutex
	every time.Duration // from turn to turn; 0: not known yet
	at    time.Time     // when the next turn is to be given
	line  list.List     // of *Turn
	timer *time.Timer   // runs while there is a line
}

// Turn is a place in the line. Its zero value is none. It is used by one goroutine at a time.
type Turn struct {
	given chan struct{} // holds one when a turn was given after a wait
	place *list.Element // in the line, nil outside of it; guarded by the gate's mu
}

// Take waits for a turn. It gives false if it was over before.
func (g *Gate) Take(t *Turn, over <-chan struct{}) bool {
	if g == nil {
		return true
	}
	g.mu.Lock()
	if g.every == 0 {
		g.every = time.Second / perProcessor / time.Duration(runtime.GOMAXPROCS(0))
	}
	if g.line.Len() == 0 && g.give(time.Now()) {
		g.mu.Unlock()
		return true
	}
	if t.given == nil {
		t.given = make(chan struct{}, 1)
	}
	g.push(t)
	g.mu.Unlock()

	select {
	case <-t.given:
		return true
	case <-over:
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if t.place == nil { // its turn came at the same moment
		<-t.given
		return false
	}
	if g.remove(t); g.line.Len() == 0 {
		g.timer.Stop()
	}
	return false
}

// give takes a turn if there is one.
func (g *Gate) give(now time.Time) bool {
	if earliest := now.Add(-max(late, few*g.every)); g.at.Before(earliest) {
		g.at = earliest
	}
	if g.at.After(now) {
		return false
	}
	g.at = g.at.Add(g.every)
	return true
}

// next gives the turns there are to the first in the line.
func (g *Gate) next() {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	for g.line.Len() > 0 && g.give(now) {
		t := g.line.Front().Value.(*Turn)
		g.remove(t)
		t.given <- struct{}{}
	}
	if g.line.Len() > 0 {
		g.timer.Reset(g.at.Sub(now))
	}
}

// push puts t at the end of the line.
func (g *Gate) push(t *Turn) {
	t.place = g.line.PushBack(t)
	if g.line.Len() > 1 {
		return
	}
	wait := time.Until(g.at)
	if g.timer == nil {
		g.timer = time.AfterFunc(wait, g.next)
	} else {
		g.timer.Reset(wait)
	}
}

// remove takes t out of the line.
func (g *Gate) remove(t *Turn) {
	g.line.Remove(t.place)
	t.place = nil
}
