// Package upstream keeps the connections to endpoints, over TCP, TLS or a tunnel
// of the mesh, and in either HTTP version.
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
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fairway-proxy/fairway/proxy/h1"
	"github.com/fairway-proxy/fairway/proxy/h2"
	"github.com/fairway-proxy/fairway/proxy/message"
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
// use. Its exported fields are set before the first call and not changed.
type Transport struct {
	// Address is "host:port".
	Address string
	// Tunnel makes the connections; nil: they are TCP.
	Tunnel func(ctx context.Context, address string) (net.Conn, error)
	// TLS, when set, is spoken on them.
	TLS *tls.Config
	// HTTP2 is for an endpoint that is to be asked in HTTP/2 with prior knowledge,
	// whatever the request.
	HTTP2 bool

	connect atomic.Int64 // time-out of a dial in nanoseconds

	mu     sync.Mutex
	idle   []*Conn // HTTP/1.1, oldest first
	shared []*h2.ClientConn
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

// Conn is a connection to an endpoint, used by one request at a time, or a stream of
// one in HTTP/2. Give it back with Transport.Put, or Close it.
type Conn struct {
	wire
	transport *Transport
	sock      *sock.Conn // nil in HTTP/2
	idleSince time.Time  // guarded by transport.mu
	resting   bool       // in transport.idle; guarded by transport.mu
	hungUp    bool       // guarded by transport.mu
}

// wire is the client's end of an HTTP version: an h1.ClientConn, or an
// h2.ClientStream. SetTimeout bounds all that is waited for from now on, 0 for no
// bound; Interrupt, from any goroutine, has whoever waits stop waiting, and leaves
// nothing to do but Close.
type wire interface {
	Send(r *message.Request, body ...[]byte) error
	SendHead(r *message.Request) error
	WriteBody(p []byte) error
	EndBody() error
	ReadHead(r *message.Response) error
	Next() ([]byte, error)
	Pending() bool
	Trailers() []message.Field
	Tunnel() (*sock.Conn, error)
	Used() bool
	Reusable() bool
	SetTimeout(d time.Duration)
	TimedOut() bool
	Interrupt()
	Close() error
}

// http1 is an h1.ClientConn whose time-outs are its socket's.
type http1 struct{ *h1.ClientConn }

func (c http1) SetTimeout(d time.Duration) { c.Sock().SetTimeout(d) }
func (c http1) TimedOut() bool             { return c.Sock().TimedOut() }
func (c http1) Interrupt()                 { c.Sock().Interrupt() }

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

// SetConnectTimeout bounds the dials from now on; zero: no bound.
func (t *Transport) SetConnectTimeout(d time.Duration) { t.connect.Store(int64(d)) }

// Get gives a connection: the one used last, or a new one. Its error is a
// *DialError, the cause of ctx, or ErrClosed.
func (t *Transport) Get(ctx context.Context) (*Conn, error) {
	if t.HTTP2 {
		return t.GetHTTP2(ctx)
	}
	for c := t.rested(); c != nil; c = t.rested() {
		if !c.sock.Readable() {
			return c, nil
		}
		c.Close() // what has come without being asked for would be taken for the answer
	}
	return t.Dial(ctx)
}

// rested takes the connection used last out of those that wait, nil without one that is young
// enough.
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
	c.sock.Unguard()
	return c
}

// Dial gives a new connection.
func (t *Transport) Dial(ctx context.Context) (*Conn, error) {
	if t.HTTP2 {
		return t.DialHTTP2(ctx)
	}
	nc, err := t.dialBounded(ctx)
	if err != nil {
		return nil, err
	}
	s := sock.New(nc)
	c := &Conn{wire: http1{h1.NewClientConn(s)}, sock: s, transport: t}
	s.Watch(c)
	return c, nil
}

// unacknowledged is how long what was sent of a request may go unacknowledged, or unsent because the
// endpoint does not read. Without a bound the kernel tries for a quarter of an hour before it reports that
// the endpoint's machine has gone.
const unacknowledged = 20 * time.Second

// dialBounded gives a new connection that fails when an endpoint's machine does not take what it is sent, as a request
// is by an engine that is there.
func (t *Transport) dialBounded(ctx context.Context) (net.Conn, error) {
	nc, err := t.DialRaw(ctx)
	if err != nil || t.Tunnel != nil { // the tunnel's own bounds hold
		return nc, err
	}
	if err := sock.BoundUnacknowledged(nc, unacknowledged); err != nil {
		nc.Close()
		return nil, &DialError{t.Address, err}
	}
	return nc, nil
}

// Tunnel gives the connection itself after a 101. An endpoint may take its time there.
func (c *Conn) Tunnel() (*sock.Conn, error) {
	s, err := c.wire.Tunnel()
	if err == nil && c.transport.Tunnel == nil {
		sock.BoundUnacknowledged(s, 0)
	}
	return s, err
}

// DialRaw gives a new connection of which nobody keeps account, and on which nothing
// was said yet. Its endpoint may take what is sent to it when it likes.
func (t *Transport) DialRaw(ctx context.Context) (net.Conn, error) {
	t.mu.Lock()
	closed := t.closed
	t.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	within, cancel := ctx, func() {}
	if limit := time.Duration(t.connect.Load()); limit > 0 {
		within, cancel = context.WithTimeout(ctx, limit)
	}
	defer cancel()
	nc, err := t.dial(within)
	if err != nil {
		if deadline, ok := ctx.Deadline(); ok && !time.Now().Before(deadline) {
			<-ctx.Done() // the dialer goes by the clock, and may be ahead of ctx
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, &DialError{t.Address, err}
	}
	return nc, nil
}

func (t *Transport) dial(ctx context.Context) (nc net.Conn, err error) {
	if t.Tunnel != nil {
		nc, err = t.Tunnel(ctx, t.Address)
	} else {
		dialer := net.Dialer{KeepAliveConfig: keepAlive}
		nc, err = dialer.DialContext(ctx, "tcp", t.Address)
	}
	if err != nil || t.TLS == nil {
		return nc, err
	}
	c := tls.Client(sock.Under(nc), t.TLS)
	if err := c.HandshakeContext(ctx); err != nil {
		nc.Close()
		return nil, err
	}
	return c, nil
}

// Put takes a connection back after its answer was read to the end. One that
// cannot serve another request is closed.
func (t *Transport) Put(c *Conn) {
	if !c.Reusable() {
		c.Close()
		return
	}
	c.SetTimeout(0)
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
	c.sock.Guard()
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
	t.dropShared()
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
