// Package upstream keeps the connections to endpoints.
//
// A Transport holds the connections to one endpoint: it dials, hands out and
// takes back. An idle connection is watched for the engine's hang-up, and is
// given up before the engine would (uvicorn closes a connection that was idle
// for 5 s), so that a request meets a closing connection as rarely as can be.
//
// Requests, scrapes and probes of an endpoint share its Transport: what one of
// them can reach, all can.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fairway-proxy/fairway/proxy/h1"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

// KeepIdle is how long an unused connection is kept: under the 5 s after which
// uvicorn, vLLM's server, closes one (its --timeout-keep-alive).
const KeepIdle = 4 * time.Second

// maxIdle bounds the unused connections to one endpoint; an engine runs at most
// a thousand sequences at once (vLLM's max_num_seqs).
const maxIdle = 1024

// ErrClosed is what Get answers after Close.
var ErrClosed = errors.New("the endpoint was removed")

// DialError is a connection that could not be made: nothing was sent.
type DialError struct {
	Address string
	Err     error
}

func (e *DialError) Error() string { return fmt.Sprintf("connect to %s: %v", e.Address, e.Err) }
func (e *DialError) Unwrap() error { return e.Err }

// Transport holds the connections to one endpoint. It is safe for concurrent
// use. Address is set before the first call and not changed.
type Transport struct {
	// Address is "host:port".
	Address string

	connect atomic.Int64 // time-out of a dial in nanoseconds

	mu     sync.Mutex
	idle   []*Conn // oldest first
	closed bool
}

// Exhausted tells whether a dial failed for want of something on this machine,
// such as descriptors or ports, which says nothing of the endpoint.
func Exhausted(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// keepAlive finds an endpoint whose machine vanished while it owes an answer,
// which may take long: in about half a minute instead of never.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}

// Conn is a connection to an endpoint, used by one request at a time. Give it
// back with Transport.Put, or Close it.
type Conn struct {
	*h1.ClientConn
	transport *Transport
	idleSince time.Time // guarded by transport.mu
	resting   bool      // in transport.idle; guarded by transport.mu
	hungUp    bool      // guarded by transport.mu
}

// Hangup takes the connection out of those that wait for work. The socket's
// watcher calls it when the engine has closed its side.
func (c *Conn) Hangup() {
	t := c.transport
	t.mu.Lock()
	defer t.mu.Unlock()
	c.hungUp = true
	if !c.resting {
		return // whoever uses it reads the end itself
	}
	for i, other := range t.idle {
		if other == c {
			t.idle = append(t.idle[:i], t.idle[i+1:]...)
			break
		}
	}
	c.resting = false
	c.Close()
}

// SetTimeout bounds all that is waited for on the connection from now on; zero: no
// bound.
func (c *Conn) SetTimeout(d time.Duration) { c.Sock().SetTimeout(d) }

// TimedOut tells whether the bound has run out.
func (c *Conn) TimedOut() bool { return c.Sock().TimedOut() }

// Interrupt has whoever waits on the connection stop waiting. It may be called
// from any goroutine; the connection is then of no use but to be closed.
func (c *Conn) Interrupt() { c.Sock().Interrupt() }

// SetConnectTimeout bounds the dials from now on; zero: no bound.
func (t *Transport) SetConnectTimeout(d time.Duration) { t.connect.Store(int64(d)) }

// Get gives a connection: the one used last, or a new one. Its error is a
// *DialError, the cause of ctx, or ErrClosed.
func (t *Transport) Get(ctx context.Context) (*Conn, error) {
	if c := t.rested(); c != nil {
		return c, nil
	}
	return t.Dial(ctx)
}

// rested takes the connection used last out of those that wait, nil without a
// usable one.
func (t *Transport) rested() *Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(t.idle)
	if n == 0 {
		return nil
	}
	c := t.idle[n-1]
	if time.Since(c.idleSince) > KeepIdle {
		t.dropIdle() // the youngest is too old: all are
		return nil
	}
	t.idle[n-1] = nil
	t.idle = t.idle[:n-1]
	c.resting = false
	c.Sock().Unguard()
	return c
}

// Dial gives a new connection.
func (t *Transport) Dial(ctx context.Context) (*Conn, error) {
	t.mu.Lock()
	closed := t.closed
	t.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	dialer := net.Dialer{Timeout: time.Duration(t.connect.Load()), KeepAliveConfig: keepAlive, Control: control}
	nc, err := dialer.DialContext(ctx, "tcp", t.Address)
	if err != nil {
		if deadline, ok := ctx.Deadline(); ok && !time.Now().Before(deadline) {
			<-ctx.Done() // the dialer goes by the clock, and may be ahead of ctx
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, &DialError{t.Address, err}
	}
	s := sock.New(nc)
	c := &Conn{ClientConn: h1.NewClientConn(s), transport: t}
	s.Watch(c)
	return c, nil
}

// Put takes a connection back after its answer was read to the end. One that
// cannot serve another request is closed.
func (t *Transport) Put(c *Conn) {
	if !c.Reusable() {
		c.Close()
		return
	}
	c.Sock().SetTimeout(0)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || c.hungUp || len(t.idle) >= maxIdle {
		c.Close()
		return
	}
	now := time.Now()
	for len(t.idle) > 0 && now.Sub(t.idle[0].idleSince) > KeepIdle {
		t.idle[0].resting = false
		t.idle[0].Close()
		t.idle = t.idle[1:]
	}
	c.idleSince = now
	c.resting = true
	c.Sock().Guard()
	t.idle = append(t.idle, c)
}

// Idle is the number of connections that wait for work.
func (t *Transport) Idle() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.idle)
}

// Close closes the connections that wait for work; those in use are closed
// when they are put back. Get fails from now on.
func (t *Transport) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.dropIdle()
}

// dropIdle closes all that wait. t.mu is held.
func (t *Transport) dropIdle() {
	for _, c := range t.idle {
		c.resting = false
		c.Close()
	}
	clear(t.idle)
	t.idle = t.idle[:0]
}
