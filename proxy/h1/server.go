package h1

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairway-proxy/fairway/proxy/sock"
	"github.com/fairway-proxy/fairway/proxy/turn"
)

// Server takes HTTP/1.1 requests off connections. Fields are set before the
// first ServeConn and not changed afterwards. Of the time-outs, zero means the
// default and less than zero means none.
type Server struct {
	// Handler answers one request; it is called on the connection's goroutine,
	// one request of a connection after another. It ends the answer with Finish
	// or Abort; without either the connection is cut. Required.
	Handler func(*Stream)
	// BadRequest answers a request whose head was refused; what of the head was
	// understood is in the stream's Head. The connection closes afterwards. Nil:
	// the status and the reason as plain text.
	BadRequest func(*Stream, *ProtocolError)
	// HTTP2 takes over a connection whose client speaks HTTP/2 with prior
	// knowledge; it reads the preface itself, and the connection is closed when it
	// returns. Nil: such a connection is refused by BadRequest.
	HTTP2 func(context.Context, *sock.Conn)

	// HeadLate is called when a head has begun and was not whole in time: its
	// connection is closed. Nil: nobody is told.
	HeadLate func()

	// Turns is where a request that was pipelined waits for its turn: it was here before the
	// answer to the one before it had ended. Nil: it does not wait.
	Turns *turn.Gate
	// HeaderLimit is how large a request's head may be in bytes. 0: 64 KiB.
	HeaderLimit int
	// IdleTimeout is how long a connection may wait for a request to begin.
	// Default: 2 minutes.
	IdleTimeout time.Duration
	// HeaderTimeout is how long a head may take from its first byte to its last.
	// Default: 10 seconds.
	HeaderTimeout time.Duration
	// BodyTimeout is how long a read of the body waits for a byte. Default: 1
	// minute.
	BodyTimeout time.Duration
	// WriteTimeout is how long a write waits for the client to take 128 KiB.
	// Default: 1 minute.
	WriteTimeout time.Duration

	retiring atomic.Bool // answers are the last of their connections
	draining atomic.Bool

	mu      sync.Mutex
	streams map[*Stream]struct{} // one a connection; guarded by mu
	closed  bool                 // guarded by mu
	empty   chan struct{}        // closed when the last stream leaves; nil while nobody waits; guarded by mu
}

func (s *Server) headerLimit() int {
	if s.HeaderLimit <= 0 {
		return 64 << 10
	}
	return s.HeaderLimit
}

func timeout(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return max(d, 0)
}

// ServeConn serves the requests of a connection until it ends, and closes it.
// The streams' Context descends from ctx; that ctx is done cuts nothing by
// itself.
func (s *Server) ServeConn(ctx context.Context, c net.Conn) {
	stream := newStream(ctx, s, sock.New(c))
	if s.add(stream) {
		stream.serve()
		s.remove(stream)
	}
	stream.end()
}

func (s *Server) add(c *Stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.draining.Load() {
		return false
	}
	if s.streams == nil {
		s.streams = make(map[*Stream]struct{})
	}
	s.streams[c] = struct{}{}
	return true
}

func (s *Server) remove(c *Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, c)
	if len(s.streams) == 0 && s.empty != nil {
		close(s.empty)
		s.empty = nil
	}
}

// Conns is the number of connections being served.
func (s *Server) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams)
}

// Retire has every answer from now on be the last of its connection, and say so.
// Connections are taken as before.
func (s *Server) Retire() { s.retiring.Store(true) }

// Drain closes idle connections at once and every other after the answer it is
// busy with, which says so (connection: close) if its head is still to be
// written. Connections that come later are closed. It does not wait.
func (s *Server) Drain() {
	s.retiring.Store(true)
	s.draining.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.streams {
		if c.phase.CompareAndSwap(phaseIdle, phaseEnded) {
			c.conn.Interrupt()
		}
	}
}

// CloseIdle closes one of the connections that wait for a request, any of them, and
// tells whether there was one.
func (s *Server) CloseIdle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.streams {
		if c.phase.CompareAndSwap(phaseIdle, phaseEnded) {
			c.conn.Interrupt()
			return true
		}
	}
	return false
}

// Wait waits until no connection is being served, or ctx is done, whose error it
// returns then.
func (s *Server) Wait(ctx context.Context) error {
	s.mu.Lock()
	if len(s.streams) == 0 {
		s.mu.Unlock()
		return nil
	}
	if s.empty == nil {
		s.empty = make(chan struct{})
	}
	empty := s.empty
	s.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Shutdown is Drain and Wait.
func (s *Server) Shutdown(ctx context.Context) error {
	s.Drain()
	return s.Wait(ctx)
}

// Close cuts all connections, whatever they are doing: contexts end with
// ErrServerClosed and what is bound to a stream is interrupted. It does not wait
// for handlers.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.streams {
		c.lose(ErrServerClosed)
	}
}
