package sock

import "time"

// SetTimeout interrupts the connection when d has passed without another call:
// never early, and hardly late. Zero, or less, disarms it. TimedOut then tells
// why I/O failed.
//
// It is one atomic store. Each connection has one timer, which is moved only
// when it would look too late; when it fires and the deadline has meanwhile
// moved on, it goes to sleep again until then. A connection that serves
// thousands of requests a second so touches its timer a few times per time-out,
// not per request.
//
// A time-out that runs out while SetTimeout is being called may still win.
func (c *Conn) SetTimeout(d time.Duration) {
	if d <= 0 {
		if c.deadline.Load() != 0 { // a store costs more
			c.deadline.Store(0)
		}
		return
	}
	at := int64(time.Since(c.born)) + int64(d)
	c.deadline.Store(at)
	// The store above and the load below pair with expire's store and load: one
	// of the two sees the other's, so that a deadline is never left unwatched.
	if w := c.wakes.Load(); w != 0 && w <= at {
		return
	}
	c.wakeAt(at, d)
}

// TimedOut tells whether the time-out interrupted the connection.
func (c *Conn) TimedOut() bool {
	return c.state.Load()&timedOut != 0
}

// wakeAt makes the timer look at the deadline d from now, if it would not
// before.
func (c *Conn) wakeAt(at int64, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.wakes.Load(); w != 0 && w <= at || c.state.Load()&closed != 0 {
		return
	}
	c.wakes.Store(at)
	if c.timer == nil {
		c.timer = time.AfterFunc(d, c.expire)
	} else {
		c.timer.Reset(d)
	}
}

// expire is what the timer calls.
func (c *Conn) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wakes.Store(0)
	at, now := c.deadline.Load(), int64(time.Since(c.born))
	switch {
	case at == 0 || c.state.Load()&closed != 0:
	case at <= now:
		c.state.Or(timedOut)
		c.Interrupt()
	default:
		c.wakes.Store(at)
		c.timer.Reset(time.Duration(at - now))
	}
}
