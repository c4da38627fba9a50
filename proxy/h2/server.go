package h2

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"

	"github.com/fairway-proxy/fairway/proxy/flood"
	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/sock"
	"github.com/fairway-proxy/fairway/proxy/turn"
)

// What one connection may make the server hold.
const (
	maxStreams = 100
	// streamWindow is how much of a body that nobody reads a client may send. The
	// connection's window has room for all streams at once: one that is not read
	// stops no other.
	streamWindow  = 256 << 10
	connWindow    = maxStreams * streamWindow
	maxFrameSize  = 64 << 10
	maxFields     = 200 // header fields of one request, as in proxy/h1
	maxTarget     = 16 << 10
	fieldOverhead = 32 // what a field counts beside its octets: RFC 9113 section 10.5.1
)

// A connection is asked for a sign of life (PING) after so much silence, and is
// given up when none comes.
const (
	pingAfter = 30 * time.Second
	pingWait  = 15 * time.Second
)

// floodPause is how long a connection that is cut for a flood stays open, unheard: a client that
// comes back at once has as many more of them open, and the bounds on connections are bounds on
// floods.
const floodPause = 500 * time.Millisecond

// readAhead is how much is read of a connection at once, so that frames do not take a system call
// or two each; stretch is how many of them are taken before the next take a turn. Of heads of requests
// that came together, those behind the first few take one each: they are dear before their requests
// can wait for their own. Behind fewer, nothing waits, such as the reset of a stream.
const (
	readAhead = 4 << 10
	stretch   = 64
	fewHeads  = 8
)

// prefaceTimeout is how long the client's preface may take.
const prefaceTimeout = 10 * time.Second

// Server takes HTTP/2 requests off connections. Fields are set before the first
// ServeConn and not changed afterwards. Of the time-outs, zero means the default
// and less than zero means none.
type Server struct {
	// Handler answers one request, on a goroutine of its own. It ends the answer
	// with Finish or Abort; without either the stream is reset. Required.
	Handler func(*Stream)
	// BadRequest answers a request whose head was refused. Nil: the status and
	// the reason as plain text.
	BadRequest func(*Stream, *ProtocolError)
	// Misbehaved is told what clients do that costs them a stream or the
	// connection, in the library's words (CountError of net/http.HTTP2Config), or
	// Flood. Nil: nobody is.
	Misbehaved func(what string)
	// Turns is where the requests of a connection that come before others of it are under
	// way (Stream.Bind) wait for their turn, and frames that come by the dozen. Nil: they
	// wait for nothing.
	Turns *turn.Gate
	// HeaderLimit is how large a request's head may be in bytes, each field
	// counted with 32 more. 0: 64 KiB.
	HeaderLimit int
	// IdleTimeout is how long a connection may be without a request. Default: 2
	// minutes.
	IdleTimeout time.Duration
	// BodyTimeout is how long a read of the body waits for a byte. Default: 1
	// minute.
	BodyTimeout time.Duration
	// WriteTimeout is how long a write waits for the client to take it. Default:
	// 1 minute.
	WriteTimeout time.Duration

	once sync.Once
	base http.Server

	mu   sync.Mutex
	idle map[*handed]struct{} // connections without a stream; guarded by mu
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

// ready makes the library's server.
func (s *Server) ready() {
	s.once.Do(func() {
		s.base.Protocols = new(http.Protocols)
		s.base.Protocols.SetUnencryptedHTTP2(true)
		s.base.HTTP2 = &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReadFrameSize:              maxFrameSize,
			MaxReceiveBufferPerStream:     streamWindow,
			MaxReceiveBufferPerConnection: connWindow,
			SendPingTimeout:               pingAfter,
			PingTimeout:                   pingWait,
			WriteByteTimeout:              timeout(s.WriteTimeout, time.Minute),
			CountError:                    s.Misbehaved,
		}
		// The library answers larger heads by itself; those in between are BadRequest's.
		s.base.MaxHeaderBytes = 2 * s.headerLimit()
		s.base.ReadHeaderTimeout = prefaceTimeout
		s.base.IdleTimeout = timeout(s.IdleTimeout, 2*time.Minute)
		s.base.ErrorLog = log.New(io.Discard, "", 0) // what a client does wrong is no news
		s.base.ConnContext = func(_ context.Context, c net.Conn) context.Context { return c.(*handed).ctx }
		s.base.ConnState = s.note
		s.base.Handler = http.HandlerFunc(s.serve)
	})
}

// ServeConn serves the requests of a connection whose client speaks HTTP/2 with
// prior knowledge (RFC 9113 section 3.3), from the preface on, until it ends, and
// closes it. The streams' Context descends from ctx. After Drain it closes the
// connection at once.
func (s *Server) ServeConn(ctx context.Context, c *sock.Conn) {
	s.ready()
	h := &handed{Conn: c, server: s, over: make(chan struct{}), door: make(chan struct{}, 1)}
	h.ctx = context.WithValue(ctx, connKey{}, h)
	h.received.skip = len(preface)
	l := &handover{conn: h, over: h.over, closed: make(chan struct{})}
	s.base.Serve(l)
	if l.conn != nil { // after Drain
		c.Close()
		return
	}
	<-h.over
}

// connKey is where a request's context has its connection.
type connKey struct{}

// handover is a listener that gives one connection: what the library serves comes
// from listeners.
type handover struct {
	conn   *handed // nil once it was given
	over   chan struct{}
	once   sync.Once
	closed chan struct{} // by Drain
}

func (l *handover) Accept() (net.Conn, error) {
	if h := l.conn; h != nil {
		l.conn = nil
		return h, nil
	}
	select {
	case <-l.over:
	case <-l.closed:
	}
	return nil, net.ErrClosed
}

func (l *handover) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *handover) Addr() net.Addr { return nil }

// handed is a connection that ServeConn waits for. It cuts off floods, of which the library
// has no notion.
type handed struct {
	*sock.Conn
	server *Server
	ctx    context.Context
	once   sync.Once
	over   chan struct{} // closed with the connection

	meter flood.Meter
	sent  frames // the library's writer's

	// The library's reader's.
	received frames
	flooded  bool
	ahead    []byte // of buf: read and not yet taken
	taken    int    // frames of what was read at once
	heads    int    // HEADERS of that
	turn     turn.Turn
	buf      [readAhead]byte

	// Requests that are not under way yet wait for their turn one after another, so that those of
	// other connections have as many turns.
	beginning atomic.Int32
	door      chan struct{} // holds one while one of them waits
}

func (h *handed) Read(p []byte) (int, error) {
	if h.flooded {
		return 0, errFlood
	}
	if len(h.ahead) == 0 {
		h.taken, h.heads = 0, 0
		if len(p) >= len(h.buf) {
			n, err := h.Conn.Read(p)
			if !h.meters(p[:n]) {
				return 0, errFlood
			}
			return n, err
		}
		n, err := h.Conn.Read(h.buf[:])
		if n == 0 {
			return 0, err
		}
		h.ahead = h.buf[:n]
	}
	if h.taken >= stretch {
		h.taken = 0
		h.server.Turns.Take(&h.turn, h.over)
	}
	n := copy(p, h.ahead)
	h.ahead = h.ahead[n:]
	if !h.meters(p[:n]) {
		return 0, errFlood
	}
	return n, nil
}

// meters tells whether the frames in p may come; if not, some time later.
func (h *handed) meters(p []byte) bool {
	if h.received.each(p, func(kind http2.FrameType, flags http2.Flags, length int, word uint32) bool {
		h.taken++
		if kind == http2.FrameHeaders {
			if h.heads++; h.heads > fewHeads {
				h.taken = stretch
			}
		}
		return h.meter.Received(kind, flags, length, word)
	}) {
		return true
	}
	h.flooded = true
	if h.server.Misbehaved != nil {
		h.server.Misbehaved(Flood)
	}
	hear := sock.Ignore(h.Conn)
	select {
	case <-time.After(floodPause):
	case <-h.over:
	}
	hear()
	return false
}

func (h *handed) Write(p []byte) (int, error) {
	h.sent.each(p, func(kind http2.FrameType, _ http2.Flags, length int, word uint32) bool {
		h.meter.Sent(kind, length)
		if code := http2.ErrCode(word); kind == http2.FrameRSTStream && (code == http2.ErrCodeProtocol || code == http2.ErrCodeRefusedStream) {
			h.meter.Refused()
		}
		return true
	})
	return h.Conn.Write(p)
}

func (h *handed) Close() error {
	err := h.Conn.Close()
	h.once.Do(func() { close(h.over) })
	return err
}

// note keeps which connections are idle.
func (s *Server) note(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := c.(*handed); state == http.StateIdle {
		if s.idle == nil {
			s.idle = make(map[*handed]struct{})
		}
		s.idle[h] = struct{}{}
	} else {
		delete(s.idle, h)
	}
}

// CloseIdle closes one of the connections that have no stream, any of them, and tells
// whether there was one.
func (s *Server) CloseIdle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for h := range s.idle {
		delete(s.idle, h)
		h.Interrupt()
		return true
	}
	return false
}

// Drain has every connection end: clients are told to open no further stream
// (GOAWAY), and those that are open go on to their end. It does not wait.
func (s *Server) Drain() {
	s.ready()
	over, cancel := context.WithCancel(context.Background())
	cancel()
	s.base.Shutdown(over)
}

// serve has one request answered.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	h := r.Context().Value(connKey{}).(*handed)
	st := &Stream{server: s, conn: h.Conn, w: w, r: r, control: http.NewResponseController(w)}
	if !st.beginning.begin(h, r.Context().Done()) {
		panic(http.ErrAbortHandler) // it was reset before its turn came
	}
	st.watch()
	defer st.end()
	if refused := st.readHead(); refused != nil {
		st.refuse(refused)
	} else {
		s.Handler(st)
	}
	if !st.finished {
		panic(http.ErrAbortHandler) // has the library reset the stream
	}
}

// refuse has a request answered whose head was not understood.
func (st *Stream) refuse(err *ProtocolError) {
	if st.server.BadRequest != nil {
		st.server.BadRequest(st, err)
		return
	}
	st.WriteHead(&message.Response{Status: err.Status, ContentLength: int64(len(err.Reason)) + 1})
	st.Write([]byte(err.Reason + "\n"))
	st.Finish(nil)
}
