// Package turn has what a client begins many of at once begin one after another, in turn with
// what other clients do: a client that means well and has one request to begin finds a processor
// free, however many another sends at once.
//
// Go runs what is ready in the order in which it became so, and looks for what has arrived on
// the network when nothing is left to run, or after 10 ms: a thousand requests that begin together
// are a wait of as long as all of them take for the one that comes behind. What waits for a turn is
// not ready, and what has one is little.
package turn

import (
	"runtime"
	"sync"
	"time"
)

// most is how long a turn may keep others waiting. It is meant for work of a processor, of some
// hundred microseconds; what has to wait for the network or for somebody's answer, with a turn
// that it did not end, does not hold up the others.
const most = 500 * time.Microsecond

// Gate gives turns: to half of the processors at once, in the order in which they are asked for.
// The zero value is ready. A nil Gate has a turn for everybody at once.
type Gate struct {
	mu          sync.Mutex
	slots       int         // turns at once; 0: not known yet
	taken       int         // of slots
	age         uint64      // of the turns that count in taken
	first, last *Turn       // the line
	timer       *time.Timer // runs while there is a line
}

// Turn is a turn, or a place in the line for one. Its zero value is neither. It is used by one
// goroutine at a time.
type Turn struct {
	age    uint64        // of Gate, when it was given; guarded by its mu
	given  chan struct{} // holds one when it was given after a wait
	place  place         // guarded by the gate's mu
	before *Turn         // in the line; guarded by the gate's mu
	behind *Turn         // in the line; guarded by the gate's mu
}

type place uint8

const (
	nowhere place = iota
	inLine
	through
)

// Take waits for a turn, until over. It tells whether t has one now, for End to end.
func (g *Gate) Take(t *Turn, over <-chan struct{}) bool {
	if g == nil {
		return true
	}
	g.mu.Lock()
	if g.slots == 0 {
		g.slots = max(runtime.GOMAXPROCS(0)/2, 1)
	}
	if g.first == nil && g.taken < g.slots {
		g.give(t)
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
	if t.place == inLine {
		g.remove(t)
	} else { // it was given at the same moment
		<-t.given
		g.end(t)
	}
	return false
}

// End ends a turn. Without one it does nothing.
func (g *Gate) End(t *Turn) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.end(t)
}

func (g *Gate) end(t *Turn) {
	if t.place != through {
		return
	}
	t.place = nowhere
	if t.age == g.age {
		g.taken--
		g.next()
	}
}

func (g *Gate) give(t *Turn) {
	t.place, t.age = through, g.age
	g.taken++
}

// next gives the turns there are to the first in the line.
func (g *Gate) next() {
	for g.first != nil && g.taken < g.slots {
		t := g.first
		g.remove(t)
		g.give(t)
		t.given <- struct{}{}
	}
}

// expire has the turns of all that have one count no longer.
func (g *Gate) expire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.first == nil {
		return
	}
	g.age++
	g.taken = 0
	g.next()
	if g.first != nil {
		g.timer.Reset(most)
	}
}

// push puts t at the end of the line.
func (g *Gate) push(t *Turn) {
	t.place, t.before, t.behind = inLine, g.last, nil
	if g.last != nil {
		g.last.behind = t
		g.last = t
		return
	}
	g.first, g.last = t, t
	if g.timer == nil {
		g.timer = time.AfterFunc(most, g.expire)
	} else {
		g.timer.Reset(most)
	}
}

// remove takes t out of the line.
func (g *Gate) remove(t *Turn) {
	if t.before != nil {
		t.before.behind = t.behind
	} else {
		g.first = t.behind
	}
	if t.behind != nil {
		t.behind.before = t.before
	} else {
		g.last = t.before
	}
	t.place, t.before, t.behind = nowhere, nil, nil
	if g.first == nil {
		g.timer.Stop()
	}
}
