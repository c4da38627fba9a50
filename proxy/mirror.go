package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/route"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

// maxMirrors bounds the copies under way: beyond it requests are not mirrored.
const maxMirrors = 1024

// mirrors tells whether the request's rule has copies sent elsewhere.
func (x *Exchange) mirrors() bool { return x.found.Rule != nil && len(x.found.Mirrors) > 0 }

// mirror sends copies of the request to where its rule wants them, as exchanges
// of their own whose answers nobody reads. They outlive this one.
func (x *Exchange) mirror() {
	if !x.mirrors() || x.head.Upgrade != nil || x.call != nil {
		return
	}
	for i := range x.found.Mirrors {
		m := &x.found.Mirrors[i]
		if x.serving.byName[m.Pool] == nil || !m.Hit(rand.Uint64()) {
			continue
		}
		copied := int64(len(x.body.bytes))
		if !x.server.buffers.take(copied) {
			continue
		}
		c := &mirrorStream{
			ctx: x.server.mirrors.ctx, head: cloneHead(x.head), body: bytes.Clone(x.body.bytes), copied: copied, budget: &x.server.buffers,
			remote: x.stream.RemoteAddr(),
		}
		if !x.server.mirrors.begin() {
			c.release()
			continue
		}
		go x.server.runMirror(c, m.Pool)
	}
}

func (s *Server) runMirror(c *mirrorStream, pool string) {
	defer s.mirrors.end()
	defer c.release()
	s.handle(c, func(x *Exchange) {
		x.mirrored, x.backend = true, &route.Backend{Pool: pool}
	})
}

// mirrors are the copies under way.
type mirrors struct {
	ctx  context.Context // done when they are to end
	stop context.CancelFunc

	mu    sync.Mutex
	n     int           // under way; guarded by mu
	ended bool          // no more of them begin; guarded by mu
	idle  chan struct{} // closed when ended and none is left
}

func newMirrors() *mirrors {
	m := &mirrors{idle: make(chan struct{})}
	m.ctx, m.stop = context.WithCancel(context.Background())
	return m
}

// begin takes a place for one more; false if there is none.
func (m *mirrors) begin() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended || m.n == maxMirrors {
		return false
	}
	m.n++
	return true
}

func (m *mirrors) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.n--
	if m.ended && m.n == 0 {
		close(m.idle)
	}
}

// close ends all that are under way and waits for them.
func (m *mirrors) close() {
	m.stop()
	m.mu.Lock()
	if !m.ended {
		m.ended = true
		if m.n == 0 {
			close(m.idle)
		}
	}
	m.mu.Unlock()
	<-m.idle
}

// mirrorStream is the copy of a request; whatever answers it is thrown away.
type mirrorStream struct {
	ctx    context.Context
	head   message.Request
	remote net.Addr

	body    []byte // not read yet
	copied  int64  // taken from budget for body; 0 when given back
	budget  *budget
	started bool

	mu     sync.Mutex
	bound  interface{ Interrupt() } // guarded by mu
	unbind func() bool
}

// release gives the body back.
func (c *mirrorStream) release() {
	c.budget.give(c.copied)
	c.body, c.copied = nil, 0
}

func (c *mirrorStream) Context() context.Context { return c.ctx }
func (c *mirrorStream) Head() *message.Request   { return &c.head }
func (c *mirrorStream) RemoteAddr() net.Addr     { return c.remote }
func (c *mirrorStream) Remote() string           { return c.remote.String() }
func (c *mirrorStream) Conn() net.Conn           { return nil }

func (c *mirrorStream) Read(p []byte) (int, error) {
	if len(c.body) == 0 {
		c.release()
		return 0, io.EOF
	}
	n := copy(p, c.body)
	if c.body = c.body[n:]; len(c.body) == 0 {
		c.release()
	}
	return n, nil
}

func (c *mirrorStream) Bind(i interface{ Interrupt() }) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return false
	}
	c.bound = i
	c.unbind = context.AfterFunc(c.ctx, c.interrupt)
	return true
}

func (c *mirrorStream) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bound != nil {
		c.bound.Interrupt()
	}
}

func (c *mirrorStream) Unbind() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bound = nil
	if c.unbind != nil {
		c.unbind()
	}
}

func (c *mirrorStream) WriteHead(*message.Response) error { c.started = true; return nil }
func (c *mirrorStream) Write(p []byte) (int, error)       { return len(p), nil }
func (c *mirrorStream) Flush() error                      { return nil }
func (c *mirrorStream) Finish([]message.Field) error      { return nil }
func (c *mirrorStream) Abort()                            {}
func (c *mirrorStream) Started() bool                     { return c.started }

func (c *mirrorStream) Tunnel() (*sock.Conn, error) {
	return nil, errors.New("a copy of a request has no tunnel")
}

// cloneHead copies a head with all that it points to.
func cloneHead(r *message.Request) message.Request {
	c := *r
	c.Method, c.Target, c.Authority = bytes.Clone(r.Method), bytes.Clone(r.Target), bytes.Clone(r.Authority)
	c.Fields = make([]message.Field, len(r.Fields))
	for i, f := range r.Fields {
		c.Fields[i] = message.Field{Name: bytes.Clone(f.Name), Value: bytes.Clone(f.Value)}
	}
	return c
}
