package hbone

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// Whatever both ends do and whenever, what was echoed is what was sent, and nothing is
// left of it afterwards.
func TestChaos(t *testing.T) {
	m := newMesh(t)
	in, out := NewBudget(64<<20), NewBudget(64<<20)
	w := m.listen(t, func(c net.Conn) {
		switch rand.IntN(8) {
		case 0:
			c.Close()
		case 1:
			c.(interface{ SetLinger(int) error }).SetLinger(0)
			c.Write([]byte("cut"))
			c.Close()
		case 2:
			c.SetReadDeadline(time.Now().Add(time.Millisecond))
			echo(c)
		case 3:
			c.Write(make([]byte, rand.IntN(1<<20)))
			c.Close()
		default:
			echo(c)
		}
	}, func(c *Config, l *limits) { c.Budget, l.linger = in, 20*time.Millisecond })
	d := m.dialer(w.Addr(), m.waypoint)
	d.Budget = out
	short := standardLimits
	short.linger = 20 * time.Millisecond
	d.limits = &short

	one := func() {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if rand.IntN(8) == 0 {
			time.AfterFunc(time.Duration(rand.IntN(500))*time.Microsecond, cancel)
		}
		c, err := d.DialContext(ctx, podAddress, m.id("waypoint"))
		if err != nil {
			if ctx.Err() == nil {
				t.Error(err)
			}
			return
		}
		defer c.Close()
		sent := pattern(rand.IntN(300_000))
		var writing sync.WaitGroup
		defer writing.Wait()
		writing.Go(func() {
			for rest := sent; len(rest) > 0; {
				n := min(len(rest), 1+rand.IntN(100_000))
				if _, err := c.Write(rest[:n]); err != nil {
					return
				}
				rest = rest[n:]
			}
			c.(half).CloseWrite()
		})
		switch rand.IntN(5) {
		case 0:
			c.(interface{ SetLinger(int) error }).SetLinger(0)
			c.Close()
		case 1:
			c.Close()
		case 2:
			c.SetDeadline(time.Unix(1, 0))
		default:
			got, err := io.ReadAll(c)
			if err == nil && len(got) == len(sent) && string(got) != string(sent) && string(got) != string(make([]byte, len(got))) {
				t.Error("other bytes came back")
			}
		}
	}
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for range 10 {
				one()
			}
		})
	}
	all.Wait()
	waitFor(t, "the tunnels to end", func() bool {
		return w.Counters.Tunnels.Load() == 0 && d.Counters.Tunnels.Load() == 0
	})
	defer func() {
		if t.Failed() {
			t.Logf("held %d in, %d out; grown %d in, %d out", in.Held(), out.Held(), in.grown.Load(), out.grown.Load())
		}
	}()
	waitFor(t, "the memory to be given back", func() bool {
		return in.Held() == 0 && out.Held() == 0 && in.grown.Load() == 0 && out.grown.Load() == 0
	})
	if err := w.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	d.Close()
	waitFor(t, "the connections to end", func() bool { return d.Counters.Conns.Load() == 0 && w.Counters.Conns.Load() == 0 })
}
