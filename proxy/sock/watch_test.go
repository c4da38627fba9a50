package sock

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// told counts its hang-ups, and signals the first.
type told struct {
	n     atomic.Int32
	first chan struct{}
}

func newTold() *told { return &told{first: make(chan struct{})} }

func (h *told) Hangup() {
	if h.n.Add(1) == 1 {
		close(h.first)
	}
}

func (h *told) await(t testing.TB) {
	t.Helper()
	select {
	case <-h.first:
	case <-time.After(2 * time.Minute):
		t.Error("nobody told of the hang-up")
	}
}

// hidden hides a connection's descriptor, as a layer above it does.
type hidden struct{ net.Conn }

var ends = []struct {
	name string
	end  func(*net.TCPConn)
}{
	{"close", func(c *net.TCPConn) { c.Close() }},
	{"half-close", func(c *net.TCPConn) { c.CloseWrite() }},
	{"reset", func(c *net.TCPConn) { c.SetLinger(0); c.Close() }},
}

func TestHangup(t *testing.T) {
	for _, hide := range []bool{false, true} {
		for _, e := range ends {
			for _, unread := range []int{0, 1, 4096} {
				t.Run(fmt.Sprintf("hidden=%v/%s/%d bytes unread", hide, e.name, unread), func(t *testing.T) {
					near, far := tcpPair(t)
					var conn net.Conn = near
					if hide {
						conn = hidden{near}
					}
					c := New(conn)
					defer c.Close()
					h := newTold()
					c.Watch(h)
					c.Guard()
					far.Write(make([]byte, unread))
					if h.n.Load() != 0 {
						t.Fatal("told of a hang-up before there was one")
					}
					e.end(far)
					h.await(t)
					c.Unguard()
					if e.name != "reset" {
						if got, err := io.ReadAll(c); len(got) != unread || err != nil {
							t.Errorf("read %d bytes, %v", len(got), err)
						}
					}
					if n := h.n.Load(); n != 1 {
						t.Errorf("told %d times", n)
					}
				})
			}
		}
	}
}

func TestHangupBeforeWatch(t *testing.T) {
	near, far := tcpPair(t)
	far.Close()
	c := New(near)
	defer c.Close()
	h := newTold()
	c.Watch(h)
	h.await(t)
}

func TestOwnCloseIsNoHangup(t *testing.T) {
	for _, hide := range []bool{false, true} {
		near, far := tcpPair(t)
		var conn net.Conn = near
		if hide {
			conn = hidden{near}
		}
		c, other := New(conn), New(far)
		h, last := newTold(), newTold()
		c.Watch(h)
		other.Watch(last)
		c.Guard()
		c.Close()
		last.await(t) // the watcher has been round since
		other.Close()
		if h.n.Load() != 0 {
			t.Error("told of our own close")
		}
	}
}

func TestInterruptIsNoHangup(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	c := New(near)
	defer c.Close()
	h := newTold()
	c.Watch(h)
	c.Guard()
	c.Interrupt()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a read after the interrupt succeeded")
	}
	if h.n.Load() != 0 {
		t.Error("told of our own interrupt")
	}
}

// Descriptors are reused at once; a hang-up must reach the connection it
// happened to and no other.
func TestHangupReachesItsOwn(t *testing.T) {
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				near, far := tcpPair(t)
				kept := New(near)
				h := newTold()
				kept.Watch(h)
				// Another whose peer hangs up while it is closed.
				near2, far2 := tcpPair(t)
				gone := New(near2)
				gone.Watch(newTold())
				far2.Close()
				gone.Close()
				if h.n.Load() != 0 {
					t.Error("told of another's hang-up")
				}
				far.Close()
				h.await(t)
				kept.Close()
			}
		})
	}
	all.Wait()
	watcherIsGone(t)
}

func TestHangupThroughTLS(t *testing.T) {
	near, far := tcpPair(t)
	c := New(tls.Server(near, &tls.Config{}))
	defer c.Close()
	h := newTold()
	c.Watch(h)
	far.Close()
	h.await(t)
}

// tunnel tells of its hang-up itself.
type tunnel struct {
	net.Conn
	f func()
}

func (t *tunnel) OnHangup(f func()) { t.f = f }

func TestHangupOfTunnel(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	conn := &tunnel{Conn: near}
	c := New(conn)
	defer c.Close()
	h := newTold()
	c.Watch(h)
	conn.f()
	conn.f()
	if n := h.n.Load(); n != 1 {
		t.Errorf("told %d times", n)
	}
}

// Where the kernel does not tell, bytes are read ahead, and only as many as fit.
func TestReadAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		c := New(near)
		defer c.Close()
		h := newTold()
		c.Watch(h)
		c.Guard()
		sent := make(chan int)
		go func() {
			n, _ := far.Write(make([]byte, 4*aheadLimit))
			sent <- n
		}()
		synctest.Wait()
		if n := len(c.ahead.kept); n > aheadLimit || n < aheadLimit/2 {
			t.Errorf("%d bytes were read ahead", n)
		}
		c.Unguard()
		got, err := io.ReadFull(c, make([]byte, 4*aheadLimit))
		if got != 4*aheadLimit || err != nil {
			t.Errorf("read %d bytes, %v", got, err)
		}
		if n := <-sent; n != 4*aheadLimit {
			t.Errorf("sent %d", n)
		}
		// Unguarded, the end is the reader's to find.
		far.Close()
		synctest.Wait()
		if h.n.Load() != 0 {
			t.Error("read ahead without a guard")
		}
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("got %v at the end", err)
		}
	})
}

// After Unguard the read that had begun is the last: what it got is kept, and
// what comes after it is left to the reader.
func TestUnguard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		c := New(near)
		defer c.Close()
		h := newTold()
		c.Watch(h)
		c.Guard()
		synctest.Wait()
		c.Unguard()
		far.Write([]byte("next"))
		far.Close()
		synctest.Wait()
		if h.n.Load() != 0 {
			t.Error("read ahead without a guard")
		}
		if all, err := io.ReadAll(c); string(all) != "next" || err != nil {
			t.Errorf("got %q, %v", all, err)
		}
	})
}
