package rpc

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A Server serves the calls of the connections that it accepts. Fields are set before
// the first Serve and not changed afterwards.
type Server struct {
	// Handler serves one call. Its error becomes the call's status
	// (google.golang.org/grpc/status). Required, and safe for concurrent use.
	Handler func(*Call) error
	// MessageLimit bounds one message that is received, in bytes. Zero: 4 MiB.
	MessageLimit int
	// BufferLimit bounds what all calls hold of what they have received, in bytes; the
	// one whose turn it is then ends with RESOURCE_EXHAUSTED. Zero: 1 GiB.
	BufferLimit int64
	// Connections bounds those that are open at a time; further clients wait until one has
	// ended. Zero: no bound.
	Connections int
	// Misbehaved is told of each connection that was cut for what its client sent: for a flood, or
	// else for breaking HTTP/2. Nil: nobody is.
	Misbehaved func(flood bool)

	mu        sync.Mutex
	listeners map[net.Listener]struct{} // guarded by mu
	conns     map[*conn]struct{}        // guarded by mu
	ending    bool                      // Shutdown or Close was called; guarded by mu
	ended     chan struct{}             // closed with the last connection when ending; guarded by mu

	slots   chan struct{} // has a token of each connection; nil: any number
	held    atomic.Int64  // bytes that BufferLimit bounds
	once    sync.Once
	idle    chan *Call // to workers that wait for a call
	waiting atomic.Int32
	work    sync.WaitGroup // workers
	stop    sync.Once
}

const (
	defaultMessageLimit = 4 << 20
	defaultBufferLimit  = 1 << 30
	// maxIdleWorkers keep their stacks from one call to the next. Calls beyond so many
	// at once get a goroutine each.
	maxIdleWorkers = 256
	maxAcceptWait  = time.Second
)

// ErrServerClosed is what Serve returns after Shutdown or Close.
var ErrServerClosed = errors.New("rpc: server closed")

func (s *Server) ready() {
	s.once.Do(func() {
		s.listeners = make(map[net.Listener]struct{})
		s.conns = make(map[*conn]struct{})
		s.ended = make(chan struct{})
		s.idle = make(chan *Call)
		if s.Connections > 0 {
			s.slots = make(chan struct{}, s.Connections)
		}
	})
}

func (s *Server) limit() int {
	if s.MessageLimit == 0 {
		return defaultMessageLimit
	}
	return s.MessageLimit
}

func (s *Server) bufferLimit() int64 {
	if s.BufferLimit == 0 {
		return defaultBufferLimit
	}
	return s.BufferLimit
}

// Serve serves the connections that l gives, until l fails or the server ends: then it
// returns ErrServerClosed. A listener of tls serves TLS.
func (s *Server) Serve(l net.Listener) error {
	s.ready()
	s.mu.Lock()
	if s.ending {
		s.mu.Unlock()
		l.Close()
		return ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	var wait time.Duration
	for {
		nc, err := l.Accept()
		if err == nil {
			wait = 0
			if s.slots != nil {
				s.slots <- struct{}{} // there is room when all have been closed, at the latest
			}
			s.begin(nc)
			continue
		}
		s.mu.Lock()
		ending := s.ending
		s.mu.Unlock()
		if ending {
			return ErrServerClosed
		}
		//lint:ignore SA1019 what listeners say when there are no file descriptors left
		if e, ok := err.(net.Error); !ok || !e.Temporary() {
			return err
		}
		wait = min(max(2*wait, 5*time.Millisecond), maxAcceptWait)
		<-time.After(wait)
	}
}

// begin serves a connection by a goroutine of its own.
func (s *Server) begin(nc net.Conn) {
	c := newConn(s, nc)
	s.mu.Lock()
	if s.ending {
		s.mu.Unlock()
		nc.Close()
		s.giveSlot()
		return
	}
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	go c.serve()
}

func (s *Server) giveSlot() {
	if s.slots != nil {
		<-s.slots
	}
}

// forget takes a connection off that has ended.
func (s *Server) forget(c *conn) {
	defer s.giveSlot()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if s.ending && len(s.conns) == 0 {
		s.endLocked()
	}
}

// endLocked tells that no connection is left, once.
func (s *Server) endLocked() {
	select {
	case <-s.ended:
	default:
		close(s.ended)
	}
}

// close has nothing accepted any more, and gives the connections there are.
func (s *Server) close() []*conn {
	s.ready()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending = true
	for l := range s.listeners {
		l.Close()
	}
	clear(s.listeners)
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	if len(conns) == 0 {
		s.endLocked()
	}
	return conns
}

// Shutdown accepts nothing more, has the clients send no further call (GOAWAY), and
// waits until those that are under way have ended; when ctx is done before, they are
// broken off.
func (s *Server) Shutdown(ctx context.Context) {
	for _, c := range s.close() {
		go c.drain() // which a client may hold up that does not read
	}
	select {
	case <-s.ended:
	case <-ctx.Done():
	}
	s.Close()
}

// Close breaks off all there is, and waits for the handlers.
func (s *Server) Close() {
	for _, c := range s.close() {
		c.cut()
	}
	<-s.ended
	s.stop.Do(func() { close(s.idle) }) // no connection is left to send on it
	s.work.Wait()
}

// serve has a call served, by a worker that waits or by a new one.
func (s *Server) serve(c *Call) {
	select {
	case s.idle <- c:
	default:
		s.work.Go(func() { s.runCalls(c) })
	}
}

// runCalls is a worker: it serves a call, and waits for the next unless there are
// enough who do.
func (s *Server) runCalls(c *Call) {
	for ok := true; ok; {
		c.run()
		if s.waiting.Add(1) > maxIdleWorkers {
			s.waiting.Add(-1)
			return
		}
		c, ok = <-s.idle
		s.waiting.Add(-1)
	}
}
