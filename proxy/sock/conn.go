// Package sock is a connection as the proxy uses it: a net.Conn with a coarse
// time-out that costs no system call and no timer per request, an interrupt
// that any goroutine may call, and a watch that tells when the peer has hung up
// while nobody reads.
//
// A Conn has one owner at a time, who reads, writes, sets time-outs and closes.
// Interrupt, TimedOut, Interrupted and Close may be called from any goroutine.
package sock

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Hangup is told that the peer has gone. See Conn.Watch.
type Hangup interface {
	Hangup()
}

// Conn is a connection. Make one with New; the zero value is not usable.
type Conn struct {
	net.Conn

	raw      *raw         // reads and writes in place of Conn, where it can; nil elsewhere
	born     time.Time    // what deadline and wakes count from
	deadline atomic.Int64 // nanoseconds after born at which the time-out is over, 0 for none
	wakes    atomic.Int64 // when timer looks at deadline next, 0 for not at all
	state    atomic.Uint32

	mu    sync.Mutex
	timer *time.Timer // guarded by mu, made by the first SetTimeout

	watch  watch     // how a hang-up is noticed; written by Watch alone
	ahead  *ahead    // the reader in the background, nil where the kernel tells of hang-ups
	unread []byte    // bytes given back by Unread; the owner's
	hup    Hangup    // written once, by Watch
	told   sync.Once // Hangup is called at most once
}

const (
	interrupted = 1 << iota
	timedOut
	closed
)

// past is a deadline that is over, whatever clock is looked at.
var past = time.Unix(1, 0)

// New wraps c, which belongs to the Conn from then on. A *Conn is given back
// as it is.
func New(c net.Conn) *Conn {
	if s, ok := c.(*Conn); ok {
		return s
	}
	return &Conn{Conn: c, raw: newRaw(c), born: time.Now()}
}

// NetConn is the connection itself, as New was given it.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// As finds the first that is a T among c and what it wraps, as told by NetConn.
func As[T any](c net.Conn) (found T, ok bool) {
	for c != nil {
		if found, ok = c.(T); ok {
			return found, true
		}
		w, wraps := c.(interface{ NetConn() net.Conn })
		if !wraps {
			break
		}
		c = w.NetConn()
	}
	return found, false
}

// Read reads from the connection: first what Unread gave back, then what was
// read ahead to notice a hang-up, then the connection itself.
func (c *Conn) Read(p []byte) (int, error) {
	if len(c.unread) > 0 {
		n := copy(p, c.unread)
		if c.unread = c.unread[n:]; len(c.unread) == 0 {
			c.unread = nil
		}
		return n, nil
	}
	if c.ahead != nil {
		return c.ahead.read(p)
	}
	if c.raw != nil {
		return c.raw.Read(p)
	}
	return c.Conn.Read(p)
}

// Lender lends buffers to read into.
type Lender interface {
	// Get gives a buffer, which is not empty.
	Get() []byte
	// Put takes back what Get gave.
	Put([]byte)
}

// ReadLent reads as Read does, into a buffer of a lender's that is the caller's from then on, if it reads anything. Of a TCP
// connection, or one that can tell when there is something to read (Await), it holds no buffer while it waits.
func (c *Conn) ReadLent(from Lender) (b []byte, n int, err error) {
	if len(c.unread) == 0 && c.ahead == nil {
		if c.raw != nil {
			return c.raw.ReadLent(from)
		}
		if t, ok := c.Conn.(interface{ Await() }); ok {
			t.Await()
		}
	}
	b = from.Get()
	if n, err = c.Read(b); n == 0 {
		from.Put(b)
		b = nil
	}
	return b, n, err
}

// Readable tells whether a Read would find something at once, be it the end. Of a connection that is
// neither TCP, nor TLS on it, nor can tell (Readable), it says so of what was read ahead alone.
func (c *Conn) Readable() bool {
	switch {
	case len(c.unread) > 0:
		return true
	case c.ahead != nil:
		return c.ahead.readable()
	case c.raw != nil:
		return c.raw.Readable()
	}
	t, ok := As[interface{ Readable() bool }](c.Conn)
	return ok && t.Readable()
}

// Write writes all of p.
func (c *Conn) Write(p []byte) (int, error) {
	if c.raw != nil {
		return c.raw.Write(p)
	}
	return c.Conn.Write(p)
}

// Unread gives p back: the next Reads return it first. p is not copied and must
// not change until it has been read.
func (c *Conn) Unread(p []byte) {
	if len(c.unread) > 0 {
		p = append(append(make([]byte, 0, len(p)+len(c.unread)), p...), c.unread...)
	}
	c.unread = p
}

// WriteBuffers writes all of v, in one system call where the connection is a
// TCP socket (writev) or has a WriteBuffers of its own, as a tunnel has. It
// consumes v as net.Buffers.WriteTo does.
func (c *Conn) WriteBuffers(v *net.Buffers) (int64, error) {
	if c.raw != nil {
		return c.raw.WriteBuffers(v)
	}
	if t, ok := c.Conn.(interface {
		WriteBuffers(*net.Buffers) (int64, error)
	}); ok {
		return t.WriteBuffers(v)
	}
	return v.WriteTo(c.Conn)
}

// Interrupt makes blocked and future Reads and Writes return an error at once.
// The connection is of no further use but to be closed.
func (c *Conn) Interrupt() {
	if c.state.Or(interrupted)&interrupted == 0 {
		c.Conn.SetDeadline(past)
	}
}

// Interrupted tells whether Interrupt was called or the time-out has run out.
func (c *Conn) Interrupted() bool {
	return c.state.Load()&interrupted != 0
}

// Close closes the connection and ends its watch. A Hangup that is being told
// at this moment may still be running when Close returns.
func (c *Conn) Close() error {
	if c.state.Or(closed)&closed != 0 {
		return net.ErrClosed
	}
	c.deadline.Store(0)
	c.mu.Lock()
	if c.timer != nil {
		c.timer.Stop()
	}
	c.mu.Unlock()
	c.watch.stop()
	return c.Conn.Close()
}

// Reset closes the connection so that the peer sees it broken, not ended: a
// TCP socket sends RST instead of FIN. What it has not yet sent is lost.
func (c *Conn) Reset() error {
	type lingerer interface {
		net.Conn
		SetLinger(seconds int) error
	}
	if t, ok := As[lingerer](c.Conn); ok {
		t.SetLinger(0)
		if net.Conn(t) != c.Conn {
			t.Close() // before TLS can say that all has been sent
		}
	}
	return c.Close()
}

// CloseWrite ends the sending half, where the connection has halves.
func (c *Conn) CloseWrite() error {
	if t, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return t.CloseWrite()
	}
	return nil
}
