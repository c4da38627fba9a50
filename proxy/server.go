// Package proxy is the request path: it takes a request, picks the endpoint that
// will serve it best, and relays the answer as it comes.
//
// Start reading at Exchange.run, the life of one request. The Server holds what
// exchanges share; the World (world.go) is what they serve from, swapped as a
// whole by SetWorld; a Stream (stream.go) is a request apart from the HTTP
// version that carried it; a Chooser (chooser.go) says where it goes.
package proxy

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/picker/queue"
	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/extauthz"
	"github.com/fairway-proxy/fairway/proxy/h1"
	"github.com/fairway-proxy/fairway/proxy/h2"
	"github.com/fairway-proxy/fairway/proxy/hbone"
	"github.com/fairway-proxy/fairway/proxy/sock"
	"github.com/fairway-proxy/fairway/proxy/turn"
)

// Config is what a Server is made with. The zero value works, apart from
// Account.
type Config struct {
	// Account is told of every exchange.
	Account *account.Recorder
	// Log is the proxy's own log; nil: slog.Default.
	Log *slog.Logger
	// Tunnel connects to a pod through the mesh, as (*hbone.Dialer).DialContext
	// does; nil: there is none, and endpoints that want it cannot be reached.
	Tunnel func(ctx context.Context, address string, expected spiffeid.ID) (net.Conn, error)
	// Picker is how pools pick.
	Picker picker.Config
	// Fallbacks is how many endpoints are named beside the one that was picked, to
	// a proxy that forwards its requests itself.
	Fallbacks int
	// HeaderLimit bounds a request's head, in bytes; zero: DefaultHeaderLimit.
	HeaderLimit int
	// Connections bounds the client connections held at once; zero: no bound.
	Connections int
	// HeaderTimeout, BodyTimeout and IdleTimeout bound how long a client may
	// take for a head, may be silent inside a body, and may keep a connection
	// without a request. Zero: 30 s, 60 s and 10 min.
	HeaderTimeout, BodyTimeout, IdleTimeout time.Duration
	// Notice is how long Shutdown goes on taking connections, for a balancer to find
	// out, and how long it leaves idle ones open once nothing is under way, for requests
	// that are on theirs. Answers say that they are the last meanwhile. Zero: not at all.
	Notice time.Duration
}

// Server serves requests from the World it was given. It is safe for
// concurrent use.
type Server struct {
	config  Config
	log     *slog.Logger
	account *account.Recorder

	serving     atomic.Pointer[serving]
	pods        atomic.Pointer[map[netip.Addr]*Workload]
	keySets     authz.KeySets
	authorizers extauthz.Authorizers
	buffers     budget
	shares      shares[owner]      // of requests under way
	addresses   shares[netip.Addr] // of connections
	reached     reached
	budgets     queue.Budgets
	retries     *retryBudget
	mirrors     *mirrors
	live        atomic.Int64 // exchanges under way
	exchanges   sync.Pool    // of *Exchange

	relays relays

	turns   turn.Gate     // of requests that come many at once
	readers chan struct{} // of large bodies: one for each that is looked at

	http1 h1.Server
	http2 h2.Server // on connections that http1 finds to begin with its preface

	mu        sync.Mutex
	pools     map[string]*pool
	listeners map[net.Listener]bool
	stopping  bool

	cut atomic.Bool // Shutdown has ended what was still under way
}

// New makes a Server. It answers 503 until SetWorld gives it a World.
func New(c Config) *Server {
	s := &Server{
		config:    c,
		log:       or(c.Log, slog.Default()),
		account:   c.Account,
		retries:   newRetryBudget(),
		mirrors:   newMirrors(),
		listeners: make(map[net.Listener]bool),
		readers:   make(chan struct{}, max(runtime.GOMAXPROCS(0)/2, 1)),
	}
	s.keySets.Log, s.authorizers.Log = s.log, s.log
	s.config.Picker.IndexSecret = or(c.Picker.IndexSecret, rand.Uint64())
	s.exchanges.New = func() any { return &Exchange{server: s} }
	s.http1 = h1.Server{
		Handler:       func(st *h1.Stream) { s.Handle(st) },
		BadRequest:    func(st *h1.Stream, err *h1.ProtocolError) { s.badRequest(st, err.Status, err) },
		HTTP2:         s.http2.ServeConn,
		HeadLate:      func() { s.reached[LimitTime].Add(1) },
		Turns:         &s.turns,
		HeaderLimit:   or(c.HeaderLimit, DefaultHeaderLimit),
		HeaderTimeout: or(c.HeaderTimeout, 30*time.Second),
		BodyTimeout:   or(c.BodyTimeout, time.Minute),
		IdleTimeout:   or(c.IdleTimeout, 10*time.Minute),
	}
	s.http2.Handler = func(st *h2.Stream) { s.Handle(st) }
	s.http2.BadRequest = func(st *h2.Stream, err *h2.ProtocolError) { s.badRequest(st, err.Status, err) }
	s.http2.Misbehaved = s.reached.countHTTP2
	s.http2.Turns = &s.turns
	s.http2.HeaderLimit = s.http1.HeaderLimit
	s.http2.BodyTimeout = s.http1.BodyTimeout
	s.http2.IdleTimeout = s.http1.IdleTimeout
	return s
}

// Handle runs one exchange, from its head to the end of its answer.
func (s *Server) Handle(st Stream) { s.handle(st, nil) }

// handle runs an exchange that prepare, which may be nil, was given first.
func (s *Server) handle(st Stream, prepare func(*Exchange)) {
	s.live.Add(1)
	defer s.live.Add(-1)
	x := s.exchanges.Get().(*Exchange)
	x.reset(st)
	if prepare != nil {
		prepare(x)
	}
	x.run()
	x.forget()
	s.exchanges.Put(x)
}

// Live is the number of exchanges under way.
func (s *Server) Live() int { return int(s.live.Load()) }

// Clients is the number of clients' connections, and of tunnels that HTTP is spoken in.
func (s *Server) Clients() int { return s.http1.Conns() }

// Buffered is the number of bytes of request bodies held now.
func (s *Server) Buffered() int64 { return s.buffers.used.Load() }

// badRequest answers a request whose head could not be taken.
func (s *Server) badRequest(st Stream, status int, cause error) {
	var rec account.Record
	rec.Reset()
	rec.ID, rec.Start, rec.Remote = newID(), time.Now(), st.Remote()
	if peer := notePeer(&rec, st.Conn()); peer != nil {
		rec.Source = s.workload(peer.Forwarded.Addr())
		if v := s.serving.Load(); v != nil {
			if d := v.destination(peer); d != nil {
				rec.Service = d.host
			}
		}
	}
	e := errMalformed(status, cause.Error())
	rec.Status, rec.Reason = e.Status, e.Type
	if err := writeError(st, e, &rec); err != nil {
		st.Abort()
	}
	rec.Duration = time.Since(rec.Start)
	s.reached.count(&rec)
	s.account.Done(&rec)
}

// malformed is the status for a body that breaks the rules of its HTTP version,
// 0 for any other error.
func malformed(err error) int {
	if e, ok := errors.AsType[*h1.ProtocolError](err); ok {
		return e.Status
	}
	if e, ok := errors.AsType[*h2.ProtocolError](err); ok {
		return e.Status
	}
	return 0
}

// slow tells whether a stream ended because its client took too long.
func slow(cause error) bool {
	return errors.Is(cause, h1.ErrTimeout) || errors.Is(cause, h2.ErrTimeout)
}

// ErrStopped is what Serve answers after Shutdown.
var ErrStopped = errors.New("the server was stopped")

// Serve takes connections from l and serves HTTP/1.1 on them, or HTTP/2 to
// clients that begin with it, until Shutdown, or until l fails for good. Connections
// with an hbone.Peer go where that says; l is then an hbone.Listener, whose Drain
// Shutdown calls, or an hbone.Sandwich. It closes l.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.stopping {
		s.mu.Unlock()
		l.Close()
		return ErrStopped
	}
	s.listeners[l] = true
	s.mu.Unlock()
	defer l.Close()

	var slots chan struct{}
	if s.config.Connections > 0 {
		slots = make(chan struct{}, s.config.Connections)
	}
	for {
		c, err := accept(l)
		if err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.listeners, l)
			if s.stopping {
				return ErrStopped
			}
			return err
		}
		if slots != nil {
			s.takeSlot(slots) // beyond the limit, clients wait in the listener's backlog
		}
		go s.serveConn(c, slots)
	}
}

func (s *Server) serveConn(c net.Conn, slots chan struct{}) {
	if slots != nil {
		defer func() { <-slots }()
	}
	if peer, ok := hbone.PeerOf(c); ok {
		s.serveTunnel(c, peer)
		return
	}
	leave, ok := s.admitted(c)
	if !ok {
		c.Close()
		return
	}
	defer leave()
	sock.LimitUnsent(c)
	if t, ok := c.(*tls.Conn); ok && s.handshake(t) != nil {
		t.Close()
		return
	}
	s.http1.ServeConn(context.Background(), c)
}

// handshake bounds how long a client may take for TLS.
func (s *Server) handshake(c *tls.Conn) error {
	ctx, cancel := context.WithTimeout(context.Background(), s.http1.HeaderTimeout)
	defer cancel()
	err := c.HandshakeContext(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		s.reached[LimitTime].Add(1)
	}
	if err != nil {
		s.log.Debug("TLS handshake failed", "remote", c.RemoteAddr(), "error", err)
	}
	return err
}

// accept takes the next connection, waiting out what passes, such as a full
// table of descriptors.
func accept(l net.Listener) (net.Conn, error) {
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		c, err := l.Accept()
		if err == nil || errors.Is(err, net.ErrClosed) {
			return c, err
		}
		if passing, ok := err.(interface{ Temporary() bool }); !ok || !passing.Temporary() {
			return nil, err
		}
		slog.Warn("accept failed, trying again", "listener", l.Addr(), "error", err, "pause", pause)
		time.Sleep(pause)
	}
}

// drainer is a listener whose connections have to be told before they end: an
// hbone.Listener.
type drainer interface {
	Drain()
	Shutdown(context.Context) error
}

// drainGrace is how long tunnels may still come after Drain: some round trips.
const drainGrace = 500 * time.Millisecond

// cutTime bounds the wait for exchanges that were cut: they have only to notice.
const cutTime = 5 * time.Second

// wait lets d pass, or less if ctx is done.
func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// stop closes the listeners, but for those whose connections have to be told first,
// which it tells.
func (s *Server) stop() (tunnels []drainer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping = true
	for l := range s.listeners {
		if d, ok := l.(drainer); ok {
			tunnels = append(tunnels, d)
			d.Drain()
		} else {
			l.Close()
		}
	}
	return tunnels
}

// rest returns when nothing is under way, and nothing has been for d if anything
// was, or ctx is done.
func (s *Server) rest(ctx context.Context, d time.Duration) {
	const tick = 20 * time.Millisecond
	if s.live.Load() == 0 {
		return
	}
	for idle := time.Duration(0); idle < d && ctx.Err() == nil; idle += tick {
		if s.live.Load() > 0 {
			idle = 0
		}
		wait(ctx, tick)
	}
}

// Shutdown gives notice, stops taking connections, closes those that wait for a
// request, and returns when the last exchange has ended, or cuts what is left when
// ctx is done and returns its error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.http1.Retire()
	wait(ctx, s.config.Notice)
	tunnels := s.stop()
	if len(tunnels) > 0 {
		// Tunnels that were on their way when their peer was told come yet, and are
		// served like any other.
		wait(ctx, drainGrace)
	}

	s.http2.Drain()
	s.rest(ctx, s.config.Notice)
	err := s.http1.Shutdown(ctx) // waits for connections of either version
	if err != nil {
		s.cut.Store(true)
		s.http1.Close()
		cut, cancel := context.WithTimeout(context.Background(), cutTime)
		defer cancel()
		s.http1.Wait(cut)
	}
	err = cmp.Or(err, s.relays.close(ctx))
	for _, l := range tunnels {
		err = cmp.Or(err, l.Shutdown(ctx))
	}

	s.mirrors.close()
	s.keySets.Close()
	s.authorizers.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pools {
		p.close()
	}
	return err
}
