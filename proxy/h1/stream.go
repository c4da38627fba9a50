package h1

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/sock"
	"github.com/fairway-proxy/fairway/proxy/turn"
)

// What happens to a body that the handler left unread, so that the next request
// can be found behind it and the client sees the answer before the end of the
// connection.
const (
	drainLimit = 256 << 10
	drainTime  = 500 * time.Millisecond
)

// Phases of a connection.
const (
	phaseIdle  = iota // between requests: Drain may end it
	phaseBusy         // from a request's first byte to the end of its answer
	phaseEnded        // no further request is taken
)

// Stream is one request and its answer. It is the handler's alone, and only
// until the handler returns; Context may be kept.
type Stream struct {
	server *Server
	conn   *sock.Conn
	remote string // the client's address
	ctx    context.Context
	cancel context.CancelCauseFunc
	phase  atomic.Uint32
	// switched: the connection is a tunnel, whose halves end apart.
	switched atomic.Bool

	// What follows belongs to the connection's goroutine.

	parse  parser
	req    message.Request
	buf    []byte // pooled: the head, and what came with it; nil between requests, and once it is spared
	win    []byte // where the body's wire bytes are read into: behind the head in buf, or over
	over   []byte // pooled, when the head leaves too little room in buf
	r, w   int    // win[r:w] is read and not consumed; before the head is, buf[:w]
	spoken bool   // a request came before: the connection is HTTP/1.1's for good (RFC 9113 section 3.3)
	piped  bool   // the request was here before the answer to the one before it had ended
	turn   turn.Turn
	in     inbound
	out    output
	reply  reply

	mu    sync.Mutex
	gone  bool                     // guarded by mu
	bound interface{ Interrupt() } // guarded by mu
}

func newStream(ctx context.Context, server *Server, conn *sock.Conn) *Stream {
	s := &Stream{server: server, conn: conn, remote: conn.RemoteAddr().String()}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	s.out.conn = conn
	s.out.timeout = timeout(server.WriteTimeout, time.Minute)
	return s
}

// Context is done when the client is gone, or the server closed; context.Cause
// says which. It is the same for all requests of a connection.
func (s *Stream) Context() context.Context { return s.ctx }

// Head is the request's head, valid until the handler returns. Its Fields may be
// edited.
func (s *Stream) Head() *message.Request { return &s.req }

// Conn is the connection the request came on, for what can be asked of it, such
// as the peer of a tunnel. It is not to be read, written or closed.
func (s *Stream) Conn() net.Conn { return s.conn.Conn }

// RemoteAddr is the client's address.
func (s *Stream) RemoteAddr() net.Addr { return s.conn.RemoteAddr() }

// Remote is RemoteAddr as text.
func (s *Stream) Remote() string { return s.remote }

// Bind has i interrupted, at most once, when the client goes away. False: it has
// gone already, and i is not bound. A stream has one thing bound at a time.
// Interrupt must not block or call back.
func (s *Stream) Bind(i interface{ Interrupt() }) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return false
	}
	s.bound = i
	return true
}

// Unbind undoes Bind: when it returns, what was bound is not touched any more.
func (s *Stream) Unbind() {
	s.mu.Lock()
	s.bound = nil
	s.mu.Unlock()
}

// lose ends everything that goes on for the client, for that cause. Any
// goroutine may call it. The context is done before what is bound is interrupted,
// so that whoever is interrupted finds out why.
func (s *Stream) lose(cause error) {
	s.mu.Lock()
	s.gone = true
	s.cancel(cause)
	if s.bound != nil {
		s.bound.Interrupt()
		s.bound = nil
	}
	s.mu.Unlock()
	s.conn.Interrupt()
}

// hangup is a Stream as the watcher of its connection sees it.
type hangup Stream

func (h *hangup) Hangup() {
	if s := (*Stream)(h); !s.switched.Load() {
		s.lose(ErrClientGone)
	}
}

// serve takes requests until there are no more.
func (s *Stream) serve() {
	s.conn.Watch((*hangup)(s))
	for {
		refused, ok := s.readHead()
		if !ok {
			return
		}
		if refused != nil {
			s.refuse(refused)
			return
		}
		if !s.exchange() || !s.rest() {
			return
		}
	}
}

// end closes the connection and gives back what it held.
func (s *Stream) end() {
	s.phase.Store(phaseEnded)
	s.cancel(ErrConnClosed)
	if s.reply.framing >= untilClose && !s.reply.finished {
		s.conn.Reset() // an orderly close would look like the body's end
	} else {
		s.conn.Close()
	}
	s.out.drop()
	s.drop()
}

// drop gives the buffers back.
func (s *Stream) drop() {
	putBuffer(s.buf)
	putBuffer(s.over)
	s.buf, s.win, s.over = nil, nil, nil
}

// Spare gives back what the request lies in, if all of it has been read and none of the next has: for an answer that
// takes long, once its head is written. Head is an empty one from here on.
func (s *Stream) Spare() {
	if s.in.ended && s.r == s.w {
		s.req = message.Request{Fields: s.req.Fields[:0]}
		s.drop()
		s.r, s.w = 0, 0
	}
}

// readHead waits for a request and parses its head. ok is false when the
// connection ended instead.
func (s *Stream) readHead() (refused *ProtocolError, ok bool) {
	s.parse.restart()
	s.req = message.Request{Fields: s.req.Fields[:0]}
	limit := s.server.headerLimit()
	if s.w == 0 {
		s.conn.SetTimeout(timeout(s.server.IdleTimeout, 2*time.Minute))
	}
	begun := false
	s.piped = s.spoken && s.w > 0
	for {
		if s.w > 0 {
			done, err := s.parse.request(s.buf[:s.w], &s.req)
			if err == nil && (done && s.parse.line > limit || !done && s.w >= limit) {
				err = errHeadLong
			}
			if done || err != nil {
				s.conn.SetTimeout(0)
				return err, true
			}
			if !begun { // most heads come whole
				begun = true
				s.conn.SetTimeout(timeout(s.server.HeaderTimeout, 10*time.Second))
			}
		}
		s.piped = false
		n, err := s.receiveHead()
		if n > 0 && s.w == 0 && !s.phase.CompareAndSwap(phaseIdle, phaseBusy) {
			return nil, false
		}
		s.w += n
		if err != nil && n == 0 {
			if s.w > 0 && s.conn.TimedOut() && s.server.HeadLate != nil {
				s.server.HeadLate()
			}
			return nil, false
		}
	}
}

// receiveHead reads more of a head. While none of it is there, it holds no buffer.
func (s *Stream) receiveHead() (n int, err error) {
	if s.buf == nil {
		s.buf, n, err = s.conn.ReadLent(lender(small))
		return n, err
	}
	if s.w == len(s.buf) {
		s.grow()
	}
	return s.conn.Read(s.buf[s.w:])
}

// grow doubles the buffer of a head that does not fit.
func (s *Stream) grow() {
	b := getBuffer(2 * len(s.buf))
	copy(b, s.buf)
	putBuffer(s.buf)
	s.buf = b
	s.parse.restart()
}

// exchange has one request answered. It gives false when the connection is to
// be closed.
func (s *Stream) exchange() bool {
	s.win, s.r, s.w = s.buf[s.parse.line:], 0, s.w-s.parse.line
	s.in.begin(&s.parse.head)
	if s.parse.minor == 0 {
		s.in.expects = false // RFC 9110 section 10.1.1: an HTTP/1.0 client gets no 100
	}
	s.reply = reply{close: !s.parse.head.persistent(s.parse.minor)}
	s.out.started = false
	s.spoken = true
	s.conn.Guard()
	if s.piped {
		s.server.Turns.Take(&s.turn, s.ctx.Done())
	}
	s.server.Handler(s)
	s.conn.Unguard()
	return s.settle()
}

// refuse has a request answered whose head was not understood.
func (s *Stream) refuse(err *ProtocolError) {
	if err == errPreface && s.server.HTTP2 != nil && !s.spoken {
		s.conn.Unread(append([]byte(nil), s.buf[:s.w]...))
		s.server.HTTP2(s.ctx, s.conn)
		return
	}
	s.in = inbound{ended: true}
	s.reply = reply{close: true}
	s.out.started = false
	s.req.ContentLength = 0
	if s.server.BadRequest != nil {
		s.server.BadRequest(s, err)
	} else {
		s.WriteHead(&message.Response{Status: err.Status, ContentLength: int64(len(err.Reason)) + 1})
		s.Write([]byte(err.Reason + "\n"))
		s.Finish(nil)
	}
	if s.reply.finished {
		s.linger()
	}
}

// settle finds out, after the handler, whether another request may follow.
func (s *Stream) settle() bool {
	if !s.reply.finished {
		return false
	}
	if !s.in.ended {
		// A client that was not told to continue may never send the body.
		if s.in.expects || !s.drain() {
			s.linger()
			return false
		}
	}
	if s.reply.close && s.r < s.w {
		s.linger()
	}
	return !s.reply.close
}

// rest makes the connection ready for the next request. It gives false when
// there shall be none.
func (s *Stream) rest() bool {
	s.w = copy(s.buf, s.win[s.r:s.w])
	s.r, s.win = 0, nil
	putBuffer(s.over)
	s.over = nil
	if s.w == 0 {
		putBuffer(s.buf)
		s.buf = nil
	}
	if len(s.buf) > small && s.w <= small {
		b := getBuffer(small)
		copy(b, s.buf[:s.w])
		putBuffer(s.buf)
		s.buf = b
	}
	if s.w == 0 {
		s.phase.Store(phaseIdle)
	}
	// Drain marks the server first and the phases then; either it finds this
	// connection idle, or this finds the mark.
	return !s.server.draining.Load()
}

// drain reads what the handler left of the body, within bounds.
func (s *Stream) drain() bool {
	if s.in.left > drainLimit {
		return false
	}
	scratch := getBuffer(large)
	defer putBuffer(scratch)
	s.in.draining = true
	s.conn.SetTimeout(drainTime)
	for total := 0; total <= drainLimit; {
		n, err := s.Read(scratch)
		total += n
		if err != nil {
			s.conn.SetTimeout(0)
			return s.in.ended
		}
	}
	return false
}

// linger ends the sending half and reads on for a moment, because closing a
// socket with unread bytes makes the kernel destroy what the client has not yet
// received of the answer (RFC 9112 section 9.6).
func (s *Stream) linger() {
	s.phase.Store(phaseEnded)
	if s.conn.CloseWrite() != nil {
		return
	}
	scratch := getBuffer(large)
	defer putBuffer(scratch)
	s.conn.SetTimeout(drainTime)
	for total := 0; total <= drainLimit; {
		n, err := s.conn.Read(scratch)
		total += n
		if err != nil {
			return
		}
	}
}
