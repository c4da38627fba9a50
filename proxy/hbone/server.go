package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"

	"github.com/fairway-proxy/fairway/mtls"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

// maxStreams is how many tunnels a connection may have. ztunnel opens 100, and hangs
// when it may not.
const maxStreams = 250

// A Config says how tunnels are accepted. Of its fields only TLS is required.
type Config struct {
	// TLS is the server's side of mutual TLS: 1.3, "h2" by ALPN, a certificate
	// required and verified. Nil: no TLS and no identities, for tests alone.
	TLS *tls.Config
	// Explain says why a handshake failed, for the log and the counters, as
	// mtls.Source.Explain does. Nil: only what the error says of itself.
	Explain func(error) *mtls.Error
	// Admit decides whether a tunnel is accepted; nil admits every one. It is called
	// before the answer, on the goroutine that reads the connection, and must not
	// block. Its error is the answer: a *Refusal has the status, any other is a 400.
	Admit func(*Peer) error

	// MaxConns bounds the connections, those in their handshake included. 0: 16384.
	MaxConns int
	// Backlog bounds the tunnels that nobody has accepted yet; more are answered
	// 503. 0: 1024.
	Backlog int
	// Budget bounds what lies unread. Nil: one of 512 MiB for all that have none.
	Budget *Budget
	// Log is told of everything that is refused, once and with the reason, at most
	// some lines a second. Nil: nobody is.
	Log *slog.Logger
}

// A Refusal is why a tunnel is not accepted.
type Refusal struct {
	Status int    // of the answer
	Reason string // for the log; a peer is told the status alone
}

func (r *Refusal) Error() string { return fmt.Sprintf("refused with %d: %s", r.Status, r.Reason) }

// A Reason is why a connection or a tunnel was refused or broken off.
type Reason int

const (
	// ReasonHandshake is a handshake that failed: no certificate, one that is out of
	// date, not trusted or not SPIFFE's, an old version of TLS, a peer that does not
	// trust ours, or too slow. Counters.Handshakes says which.
	ReasonHandshake Reason = iota
	// ReasonConnections is too many connections.
	ReasonConnections
	// ReasonProtocol is a connection that was cut because of what came through it.
	ReasonProtocol
	// ReasonFlood is a connection that was cut because of how much came through it.
	ReasonFlood
	// ReasonMethod is a request that is not CONNECT.
	ReasonMethod
	// ReasonAuthority is a CONNECT to what is no destination.
	ReasonAuthority
	// ReasonFields is a header block that is too large or malformed.
	ReasonFields
	// ReasonStreams is a tunnel too many in one connection.
	ReasonStreams
	// ReasonBacklog is a tunnel that nobody accepted in time.
	ReasonBacklog
	// ReasonAdmit is a tunnel that Admit refused.
	ReasonAdmit
	// ReasonProxy is a sandwich's connection that does not say what it is.
	ReasonProxy
	reasons
)

var reasonNames = [reasons]string{"handshake", "connections", "protocol", "flood", "method", "authority",
	"fields", "streams", "backlog", "admit", "proxy"}

func (r Reason) String() string { return reasonNames[r] }

// Reasons are all there are, in order.
func Reasons() []Reason {
	all := make([]Reason, reasons)
	for i := range all {
		all[i] = Reason(i)
	}
	return all
}

// Counters count what a Listener or a Sandwich has seen. They may be read at any
// time.
type Counters struct {
	Conns   atomic.Int64 // open at the moment
	Tunnels atomic.Int64 // open at the moment
	Opened  atomic.Int64 // tunnels accepted so far
	Resets  atomic.Int64 // tunnels broken off so far, by either side
	refused [reasons]atomic.Int64

	mu         sync.Mutex
	handshakes map[mtls.Reason]int64 // guarded by mu
}

// Refused is how much was refused for a reason.
func (c *Counters) Refused(r Reason) int64 { return c.refused[r].Load() }

// Handshakes is how many handshakes failed, by why: what ReasonHandshake counts
// together.
func (c *Counters) Handshakes() map[mtls.Reason]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.handshakes)
}

func (c *Counters) countHandshake(r mtls.Reason) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.handshakes == nil {
		c.handshakes = make(map[mtls.Reason]int64)
	}
	c.handshakes[r]++
}

// Listener accepts tunnels. It is a net.Listener; make one with NewListener.
type Listener struct {
	Counters Counters

	inner  net.Listener
	config Config
	limits limits
	accept chan net.Conn
	report report

	mu       sync.Mutex
	conns    map[*conn]struct{}    // guarded by mu
	greeting map[net.Conn]struct{} // in their handshake; guarded by mu
	draining bool                  // guarded by mu
	closed   bool                  // guarded by mu
	done     chan struct{}         // closed with closed
	running  sync.WaitGroup        // the goroutines of connections and of the accept loop
}

// NewListener accepts tunnels inside the connections of inner, which it closes.
func NewListener(inner net.Listener, config Config) *Listener {
	return newListener(inner, config, standardLimits)
}

func newListener(inner net.Listener, config Config, limits limits) *Listener {
	if config.MaxConns == 0 {
		config.MaxConns = 16384
	}
	if config.Backlog == 0 {
		config.Backlog = 1024
	}
	if config.Budget == nil {
		config.Budget = defaultBudget
	}
	if config.TLS != nil {
		config.TLS = config.TLS.Clone()
		config.TLS.DynamicRecordSizingDisabled = true
	}
	l := &Listener{
		inner: inner, config: config, limits: limits,
		accept:   make(chan net.Conn, config.Backlog),
		conns:    make(map[*conn]struct{}),
		greeting: make(map[net.Conn]struct{}),
		done:     make(chan struct{}),
	}
	l.report.log = config.Log
	l.report.counters = &l.Counters
	l.running.Go(l.acceptConns)
	return l
}

// Accept gives a tunnel, which was answered with 200. Its error is net.ErrClosed,
// after Close or when a Shutdown is done.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accept:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Addr is the address connections come to.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

// drainAccept is for how long connections are taken that are on their way when the
// drain begins.
const drainAccept = 50 * time.Millisecond

// Drain closes the inner listener and asks all peers for no more tunnels. Those that
// are on their way are accepted still, and those that are open go on. It does not
// wait.
func (l *Listener) Drain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.draining {
		return
	}
	l.draining = true
	if d, ok := l.inner.(interface{ SetDeadline(time.Time) error }); !ok || d.SetDeadline(time.Now().Add(drainAccept)) != nil {
		l.inner.Close()
	}
	for c := range l.conns {
		go c.drain()
	}
}

// Shutdown is Drain, and waits until the last tunnel has ended. When ctx is done it
// cuts what is left and returns ctx's error. Tunnels have to be accepted meanwhile.
func (l *Listener) Shutdown(ctx context.Context) error {
	l.Drain()
	ended := make(chan struct{})
	go func() {
		l.running.Wait()
		close(ended)
	}()
	var err error
	select {
	case <-ended:
	case <-ctx.Done():
		err = ctx.Err()
	}
	l.Close()
	<-ended
	return err
}

// Close closes the inner listener and cuts all connections with their tunnels.
func (l *Listener) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return net.ErrClosed
	}
	l.draining, l.closed = true, true
	close(l.done)
	for raw := range l.greeting {
		raw.Close()
	}
	cut := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		cut = append(cut, c)
	}
	l.mu.Unlock()
	err := l.inner.Close()
	for _, c := range cut {
		c.fail(errShutdown)
	}
	l.running.Wait()
	for {
		select {
		case c := <-l.accept:
			c.Close()
		default:
			return err
		}
	}
}

// acceptConns takes connections until the inner listener is closed.
func (l *Listener) acceptConns() {
	var pause time.Duration
	for {
		raw, err := l.inner.Accept()
		if err != nil {
			l.mu.Lock()
			over := l.draining
			l.mu.Unlock()
			if over || errors.Is(err, net.ErrClosed) {
				l.inner.Close()
				return
			}
			// For want of descriptors, mostly, which others will give back.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			l.report.say("hbone: cannot accept", "error", err)
			select {
			case <-time.After(pause):
			case <-l.done:
			}
			continue
		}
		pause = 0
		raw = sock.Under(raw)
		l.mu.Lock()
		switch {
		case l.closed:
			raw.Close()
		case len(l.conns)+len(l.greeting) >= l.config.MaxConns:
			raw.Close()
			l.report.refuse(ReasonConnections, "remote", raw.RemoteAddr(), "limit", l.config.MaxConns)
		default:
			l.greeting[raw] = struct{}{}
			l.running.Go(func() { l.serve(raw) })
		}
		l.mu.Unlock()
	}
}

// serve reads one connection to its end.
func (l *Listener) serve(raw net.Conn) {
	s := &server{listener: l, remote: raw.RemoteAddr()}
	out := &records{Conn: raw}
	var sec net.Conn = out
	if l.config.TLS != nil {
		t := tls.Server(out, l.config.TLS)
		ctx, cancel := context.WithTimeout(context.Background(), l.limits.handshake)
		err := t.HandshakeContext(ctx)
		cancel()
		if err == nil {
			s.peer.ID, err = mtls.PeerID(t.ConnectionState())
		}
		if err == nil && t.ConnectionState().Version < tls.VersionTLS13 {
			err = &mtls.Error{Reason: mtls.TLSVersion}
		}
		if err != nil {
			l.mu.Lock()
			delete(l.greeting, raw)
			l.mu.Unlock()
			raw.Close()
			l.refuseHandshake(s, err)
			return
		}
		sec = t
	}
	c := newConn(s, false, raw, out, sec, l.config.Budget, &l.limits)
	s.conn = c
	s.peer.Remote = s.remote
	l.mu.Lock()
	delete(l.greeting, raw)
	if l.closed {
		l.mu.Unlock()
		raw.Close()
		return
	}
	l.conns[c] = struct{}{}
	draining := l.draining
	l.mu.Unlock()
	l.Counters.Conns.Add(1)
	c.start()
	if draining {
		c.drain()
	}
	c.read()
}

// refuseHandshake logs and counts a peer that is not in the mesh, or that does not
// take us to be.
func (l *Listener) refuseHandshake(s *server, err error) {
	why := explain(l.config.Explain, err)
	l.Counters.countHandshake(why.Reason)
	l.report.refuse(ReasonHandshake, "why", why.Reason, "remote", s.remote, "peer", s.peer.ID, "error", why)
}

// explain is Explain, if there is one.
func explain(with func(error) *mtls.Error, err error) *mtls.Error {
	if with != nil {
		return with(err)
	}
	var known *mtls.Error
	if errors.As(err, &known) {
		return known
	}
	return &mtls.Error{Reason: mtls.HandshakeFailed, Err: err}
}

// server is a connection's role: it takes CONNECTs.
type server struct {
	listener *Listener
	conn     *conn
	remote   net.Addr
	peer     Peer // what all its tunnels have in common
}

// refuse logs and counts a refusal, and answers the stream with it: who has the answer finds it counted.
func (s *server) refuse(id uint32, end bool, status int, reason Reason, f *fields, why string) {
	s.listener.report.refuse(reason, "remote", s.remote, "peer", s.peer.ID, "method", f.method, "authority", f.authority, "status", status, "why", why)
	s.conn.mu.Lock()
	s.conn.refuse(id, status, end)
	s.conn.mu.Unlock()
}

func (s *server) headers(id uint32, f *fields, end bool) error {
	c, l := s.conn, s.listener
	c.mu.Lock()
	if id <= c.seenPeer {
		defer c.mu.Unlock()
		return s.trailers(id, f, end)
	}
	c.seenPeer = id
	late := c.draining == 2
	if late {
		c.expect(baseWindow)
	} else {
		c.lastPeer = id
	}
	full := len(c.streams) >= maxStreams
	c.mu.Unlock()
	switch {
	case late: // it came after the GOAWAY that said so
		return nil
	case full:
		l.report.refuse(ReasonStreams, "remote", s.remote, "peer", s.peer.ID, "limit", maxStreams)
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeRefusedStream}
	case f.size > maxHeaderList:
		s.refuse(id, end, 431, ReasonFields, f, "the header is too large")
		return nil
	case f.malformed != "":
		l.report.refuse(ReasonFields, "remote", s.remote, "peer", s.peer.ID, "why", f.malformed)
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol}
	case f.method != "CONNECT" || f.protocol != "":
		s.refuse(id, end, 400, ReasonMethod, f, "not a CONNECT")
		return nil
	case f.scheme != "" || f.path != "": // RFC 9113, section 8.5
		l.report.refuse(ReasonFields, "remote", s.remote, "peer", s.peer.ID, "why", "a CONNECT with a path")
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol}
	}
	destination, err := parseAuthority(f.authority)
	if err != nil {
		s.refuse(id, end, 400, ReasonAuthority, f, err.Error())
		return nil
	}
	peer := s.peer
	peer.Authority, peer.Destination = f.authority, destination
	peer.Forwarded, peer.ForwardedHost = parseForwarded(f.forwarded)
	peer.Baggage, peer.Traceparent = f.baggage, f.traceparent
	if l.config.Admit != nil {
		if err := l.config.Admit(&peer); err != nil {
			status := 400
			var r *Refusal
			if errors.As(err, &r) {
				status = r.Status
			}
			s.refuse(id, end, status, ReasonAdmit, f, err.Error())
			return nil
		}
	}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return c.err
	}
	tunnel := c.newStream(id)
	tunnel.peer = &peer
	select {
	case l.accept <- tunnel:
	default:
		delete(c.streams, id)
		c.mu.Unlock()
		s.refuse(id, end, 503, ReasonBacklog, f, "nobody accepts tunnels")
		return nil
	}
	// Alone in its flush: ztunnel sends nothing before it has come.
	c.controlFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, id, appendStatus(nil, 200))
	l.Counters.Tunnels.Add(1)
	l.Counters.Opened.Add(1)
	if end {
		c.peerEnded(tunnel)
	}
	c.mu.Unlock()
	return nil
}

// trailers is a second header block on a stream. c.mu is held.
func (s *server) trailers(id uint32, f *fields, end bool) error {
	c := s.conn
	if t := c.streams[id]; t != nil && !t.peerDone {
		if !end || f.malformed != "" {
			return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol}
		}
		c.peerEnded(t)
	}
	return nil
}

func (s *server) free(t *stream) {
	s.listener.Counters.Tunnels.Add(-1)
	if t.broken != nil {
		s.listener.Counters.Resets.Add(1)
	}
}

func (s *server) gone(err error) {
	l := s.listener
	l.mu.Lock()
	delete(l.conns, s.conn)
	l.mu.Unlock()
	defer l.Counters.Conns.Add(-1) // why is counted by then
	var ce http2.ConnectionError
	switch {
	case errors.As(err, &ce) && http2.ErrCode(ce) == http2.ErrCodeEnhanceYourCalm, errors.Is(err, errNotTaken):
		l.report.refuse(ReasonFlood, "remote", s.remote, "peer", s.peer.ID, "error", err)
	case errors.As(err, &ce), errors.Is(err, http2.ErrFrameTooLarge):
		l.report.refuse(ReasonProtocol, "remote", s.remote, "peer", s.peer.ID, "error", err)
	case refusesUs(err):
		l.refuseHandshake(s, err)
	}
}

// report counts and logs refusals.
type report struct {
	log      *slog.Logger
	counters *Counters

	mu     sync.Mutex
	lines  bucket    // guarded by mu
	born   time.Time // guarded by mu
	silent int       // lines left out since the last; guarded by mu
}

// Of lines so many at once, and one more each interval.
const (
	reportLines = 100
	reportEvery = 100 * time.Millisecond
)

func (r *report) refuse(reason Reason, args ...any) {
	r.say("hbone: refused", append([]any{"reason", reason.String()}, args...)...)
	r.counters.refused[reason].Add(1) // what is counted has been told
}

func (r *report) say(message string, args ...any) {
	if r.log == nil {
		return
	}
	r.mu.Lock()
	if r.born.IsZero() {
		r.born = time.Now()
		r.lines = bucket{size: reportLines, every: int64(reportEvery)}
	}
	if !r.lines.take(int64(time.Since(r.born))) {
		r.silent++
		r.mu.Unlock()
		return
	}
	if r.silent > 0 {
		args = append(args, "left_out", r.silent)
		r.silent = 0
	}
	r.mu.Unlock()
	r.log.Warn(message, args...)
}
