package hbone

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/net/http2"

	"github.com/fairway-proxy/fairway/mtls"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

const (
	// openStreams is how many tunnels of ours a connection has at most, whatever the
	// peer would take: ztunnel's own number.
	openStreams = 100
	// idleConn is how long a connection without tunnels is kept, as ztunnel does.
	idleConn = 5 * time.Minute
	// connectTimeout bounds a connection's making, TLS included.
	connectTimeout = 10 * time.Second
	// unprocessedTries is how often a tunnel is asked for when peers close the
	// connection, or say that it is full, before they have looked at it.
	unprocessedTries = 3
	// openTries is how many new connections a tunnel waits for, each of which others
	// fill before it comes to its turn, or which takes none at all.
	openTries = 8
)

// A Dialer makes tunnels. Fields are set before the first call and not changed. It is
// safe for concurrent use.
type Dialer struct {
	// TLS gives the client's side of mutual TLS with a peer that must be expected
	// and no other. It is called for each connection. Nil: no TLS, for tests alone.
	TLS func(expected spiffeid.ID) *tls.Config
	// Explain says why a handshake failed, as mtls.Source.Explain does. Nil: only
	// what the error says of itself.
	Explain func(error) *mtls.Error
	// Port is where the pods' ztunnel takes tunnels. 0: 15008.
	Port uint16
	// Dial makes the connections tunnels are in. Nil: a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Budget bounds what lies unread. Nil: one of 512 MiB for all that have none.
	Budget *Budget

	Counters DialCounters

	limits *limits // nil: the standard ones

	mu      sync.Mutex
	targets map[target]*pool // guarded by mu
	closed  bool             // guarded by mu
}

// DialCounters count what a Dialer has done. They may be read at any time.
type DialCounters struct {
	Conns   atomic.Int64 // open at the moment
	Tunnels atomic.Int64 // open at the moment
	Opened  atomic.Int64 // tunnels so far
	Dials   atomic.Int64 // connections so far, failed ones included
	Refused atomic.Int64 // answers other than 200
	Resets  atomic.Int64 // tunnels broken off so far, by either side
}

// A ConnectError is a connection to a pod's ztunnel that could not be made, or broke
// before it answered: nothing of the tunnel's was sent.
type ConnectError struct {
	Address  string      // of the pod
	Identity spiffeid.ID // ours, zero if it was not asked for
	Expected spiffeid.ID
	Err      error
}

func (e *ConnectError) Error() string {
	if refusesUs(e.Err) {
		return fmt.Sprintf("hbone: %s does not accept our certificate (we are %s): check that it trusts our trust domain: %v", e.Address, orNobody(e.Identity), e.Err)
	}
	return fmt.Sprintf("hbone: no tunnel to %s, which must be %s: %v", e.Address, e.Expected, e.Err)
}

func (e *ConnectError) Unwrap() error { return e.Err }

// A RefusedError is an answer other than 200.
type RefusedError struct {
	Address  string // of the pod
	Status   int
	Identity spiffeid.ID // ours, as the peer has seen it
	Expected spiffeid.ID
}

func (e *RefusedError) Error() string {
	why := ""
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		why = fmt.Sprintf(": a policy of the pod does not let %s in: let an AuthorizationPolicy there allow this principal, not those of the clients", orNobody(e.Identity))
	case http.StatusBadRequest:
		why = ": this is not an address of the pod behind it"
	case http.StatusServiceUnavailable:
		why = ": the pod takes no connection at this port"
	}
	return fmt.Sprintf("hbone: %s refused the tunnel with status %d%s", e.Address, e.Status, why)
}

func orNobody(id spiffeid.ID) string {
	if id.IsZero() {
		return "nobody"
	}
	return id.String()
}

// refusesUs tells whether the peer ended TLS by an alert, which after the handshake
// is about our certificate.
func refusesUs(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

var (
	errDialerClosed = errors.New("hbone: the dialer is closed")
	errNoRoom       = errors.New("hbone: the peer takes no more tunnels")
	errUnanswered   = errors.New("hbone: no answer in time")
	errNoHTTP2      = errors.New("hbone: the peer does not speak HTTP/2")
)

// target is what connections are shared by.
type target struct {
	address  string // of the ztunnel
	expected spiffeid.ID
}

// pool is the connections to one target. dialer.mu guards it.
type pool struct {
	conns   []*client
	waiting []chan poolEvent
	dials   int // under way
}

// poolEvent is what those that wait for a connection are told.
type poolEvent struct{ err error }

// client is a connection's role.
type client struct {
	dialer   *Dialer
	target   target
	pool     *pool
	conn     *conn
	identity spiffeid.ID // ours, as the peer has seen it
	peer     spiffeid.ID
	proven   time.Time   // until when both have proven who they are; zero without TLS; set before conn is, as is identity
	idle     *time.Timer // guarded by conn.mu
}

// dialing is a CONNECT that waits for its answer.
type dialing struct {
	answered  chan struct{} // closed when status is there, or the stream's broken
	status    int
	abandoned bool // nobody waits any more: reset it when it is answered
	timer     *time.Timer
}

// DialContext makes a tunnel to address, "ip:port" of a pod, through the pod's
// ztunnel, which has to prove that it is expected. Connections are shared by tunnels to
// the same pod and identity.
//
// Its error is a *ConnectError, a *RefusedError, a *ResetError, a *GoAwayError or the
// cause of ctx; in each case nothing has reached the pod.
func (d *Dialer) DialContext(ctx context.Context, address string, expected spiffeid.ID) (net.Conn, error) {
	pod, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, &ConnectError{Address: address, Expected: expected, Err: err}
	}
	port := d.Port
	if port == 0 {
		port = 15008
	}
	to := target{net.JoinHostPort(pod.Addr().String(), strconv.Itoa(int(port))), expected}
	for try := 1; ; try++ {
		s, role, err := d.open(ctx, to, address)
		if err == nil {
			if err = role.await(ctx, s); err != nil {
				s.forsake() // the answer may have come with data behind it
			}
		}
		if err == nil {
			return s, nil
		}
		if errors.Is(err, errUnprocessed) && try < unprocessedTries {
			continue
		}
		var ce *ConnectError
		if errors.As(err, &ce) {
			// One for all that waited; each asked for its own address.
			return nil, &ConnectError{address, ce.Identity, expected, ce.Err}
		}
		return nil, err
	}
}

// open asks for a tunnel on a connection that has room for one, making one if need
// be.
func (d *Dialer) open(ctx context.Context, to target, authority string) (*stream, *client, error) {
	for range openTries {
		d.mu.Lock()
		if d.closed {
			d.mu.Unlock()
			return nil, nil, errDialerClosed
		}
		p := d.targets[to]
		if p == nil {
			if d.targets == nil {
				d.targets = make(map[target]*pool)
			}
			p = &pool{}
			d.targets[to] = p
		}
		for _, role := range p.conns {
			if s := role.open(authority); s != nil {
				d.mu.Unlock()
				role.conn.mu.Lock()
				role.conn.flush()
				role.conn.mu.Unlock()
				return s, role, nil
			}
		}
		told := make(chan poolEvent, 1)
		p.waiting = append(p.waiting, told)
		if len(p.waiting) > p.dials*openStreams {
			p.dials++
			d.Counters.Dials.Add(1)
			go d.connect(to, p)
		}
		d.mu.Unlock()
		select {
		case event := <-told:
			if event.err != nil {
				return nil, nil, event.err
			}
		case <-ctx.Done():
			d.mu.Lock()
			for i, w := range p.waiting {
				if w == told {
					p.waiting = append(p.waiting[:i], p.waiting[i+1:]...)
					break
				}
			}
			d.mu.Unlock()
			return nil, nil, context.Cause(ctx)
		}
	}
	return nil, nil, &ConnectError{to.address, spiffeid.ID{}, to.expected, errNoRoom}
}

// connect makes a connection for those that wait, whoever of them goes away
// meanwhile.
func (d *Dialer) connect(to target, p *pool) {
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	role, err := d.handshake(ctx, to)
	d.mu.Lock()
	defer d.mu.Unlock()
	p.dials--
	if err == nil && d.closed {
		role.conn.raw.Close()
		err = errDialerClosed
	}
	var told []chan poolEvent
	if err == nil {
		role.pool = p
		p.conns = append(p.conns, role)
		d.Counters.Conns.Add(1)
		role.conn.start()
		role.rest()
		go role.conn.read()
		n := min(len(p.waiting), openStreams)
		told, p.waiting = p.waiting[:n:n], p.waiting[n:]
	} else if p.dials == 0 || errors.Is(err, errDialerClosed) {
		told, p.waiting = p.waiting, nil
	}
	for _, w := range told {
		w <- poolEvent{err}
	}
	d.forget(to, p)
}

// forget drops a pool that holds nothing. d.mu is held.
func (d *Dialer) forget(to target, p *pool) {
	if len(p.conns) == 0 && len(p.waiting) == 0 && p.dials == 0 && d.targets[to] == p {
		delete(d.targets, to)
	}
}

// handshake connects and proves identities.
func (d *Dialer) handshake(ctx context.Context, to target) (*client, error) {
	dial := d.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	role := &client{dialer: d, target: to, peer: to.expected}
	failed := func(err error) error { return &ConnectError{to.address, role.identity, to.expected, err} }
	raw, err := dial(ctx, "tcp", to.address)
	if err != nil {
		return nil, failed(err)
	}
	raw = sock.Under(raw)
	out := &records{Conn: raw}
	var sec net.Conn = out
	if d.TLS != nil {
		config := d.TLS(to.expected).Clone()
		config.DynamicRecordSizingDisabled = true
		role.noteIdentity(config)
		t := tls.Client(out, config)
		err := t.HandshakeContext(ctx)
		if err == nil {
			var id spiffeid.ID
			if id, err = mtls.PeerID(t.ConnectionState()); err == nil && id != to.expected {
				err = &mtls.Error{Reason: mtls.WrongIdentity, Peer: id}
			}
		}
		if err == nil && t.ConnectionState().NegotiatedProtocol != http2.NextProtoTLS {
			err = errNoHTTP2
		} else if err != nil {
			err = explain(d.Explain, err)
		}
		if err != nil {
			raw.Close()
			return nil, failed(err)
		}
		role.prove(t.ConnectionState().PeerCertificates[0])
		sec = t
	}
	budget, l := d.Budget, d.limits
	if budget == nil {
		budget = defaultBudget
	}
	if l == nil {
		l = &standardLimits
	}
	role.conn = newConn(role, true, raw, out, sec, budget, l)
	return role, nil
}

// noteIdentity has the certificate remembered that the peer is shown.
func (role *client) noteIdentity(config *tls.Config) {
	get := config.GetClientCertificate
	if get == nil {
		all := config.Certificates
		get = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if len(all) == 0 {
				return new(tls.Certificate), nil
			}
			return &all[0], nil
		}
	}
	config.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert, err := get(info)
		if err == nil && cert != nil && len(cert.Certificate) > 0 {
			leaf := cert.Leaf
			if leaf == nil {
				leaf, _ = x509.ParseCertificate(cert.Certificate[0])
			}
			if leaf != nil {
				role.identity, _ = idOf(leaf)
				role.prove(leaf)
			}
		}
		return cert, err
	}
}

// prove notes that the connection rests on a certificate.
func (role *client) prove(leaf *x509.Certificate) {
	if role.proven.IsZero() || leaf.NotAfter.Before(role.proven) {
		role.proven = leaf.NotAfter
	}
}

// open opens a stream, nil when the connection has no room for it, or rests on a
// certificate that has expired: one that is never idle would otherwise outlive what it
// was trusted for. The next flush sends it.
func (role *client) open(authority string) *stream {
	c := role.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if !role.proven.IsZero() && !time.Now().Before(role.proven) && !c.away {
		c.away = true // what is open goes on
		if len(c.streams) == 0 {
			c.end(http2.ErrCodeNo, c.limits.linger)
		}
	}
	if c.err != nil || c.closing || c.away || int64(len(c.streams)) >= min(c.maxOpen, openStreams) || c.nextID > windowLimit-2 {
		return nil
	}
	s := c.newStream(c.nextID)
	c.nextID += 2
	s.peer = &Peer{ID: role.peer, Authority: authority, Remote: c.raw.RemoteAddr()}
	s.peer.Destination, _ = netip.ParseAddrPort(authority)
	s.dial = &dialing{answered: make(chan struct{})}
	if role.idle != nil {
		role.idle.Stop()
		role.idle = nil
	}
	role.dialer.Counters.Tunnels.Add(1)
	// ":method" and ":authority", by RFC 7541's static table.
	block := appendLiteral(appendLiteral(make([]byte, 0, 64), 2, "CONNECT"), 1, authority)
	c.controlFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, s.id, block)
	return s
}

// await waits for the answer to a CONNECT.
func (role *client) await(ctx context.Context, s *stream) error {
	c, d := role.conn, s.dial
	timer := time.NewTimer(c.limits.answer)
	defer timer.Stop()
	var err error
	select {
	case <-d.answered:
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-timer.C:
		err = &ConnectError{role.target.address, role.identity, role.target.expected, errUnanswered}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case d.status == 200 && err == nil:
		s.dial = nil
		role.dialer.Counters.Opened.Add(1)
		return nil
	case d.status == 200:
		c.reset(s, http2.ErrCodeCancel, err)
		c.kick()
		return err
	case d.status != 0:
		return &RefusedError{s.peer.Authority, d.status, role.identity, role.target.expected}
	case s.broken != nil:
		if s.unprocessed {
			return fmt.Errorf("%w: %w", errUnprocessed, s.broken)
		}
		var reset *ResetError
		var away *GoAwayError
		if errors.As(s.broken, &reset) || errors.As(s.broken, &away) {
			return s.broken
		}
		err := s.broken
		if refusesUs(err) {
			err = explain(role.dialer.Explain, err)
		}
		return &ConnectError{role.target.address, role.identity, role.target.expected, err}
	}
	// Not answered yet. ztunnel counts streams that are reset before they are, and
	// closes the connection after some, so wait for it on nobody's behalf.
	if errors.Is(err, errUnanswered) {
		c.reset(s, http2.ErrCodeCancel, err)
		c.kick()
		return err
	}
	d.abandoned = true
	d.timer = time.AfterFunc(c.limits.answer, s.giveUp)
	return err
}

// headers takes the answer to a CONNECT.
func (role *client) headers(id uint32, f *fields, end bool) error {
	c := role.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.streams[id]
	if s == nil {
		if c.idle(id) {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		return nil
	}
	if f.malformed != "" || f.size > maxHeaderList {
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol}
	}
	d := s.dial
	if d == nil || d.status != 0 { // trailers
		if !end {
			return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol}
		}
		c.peerEnded(s)
		return nil
	}
	status, err := strconv.Atoi(f.status)
	switch {
	case err != nil || len(f.status) != 3 || status < 100 || status < 200 && end:
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol}
	case status < 200:
		return nil // something interim
	}
	d.status = status
	s.peer.Baggage = f.baggage
	close(d.answered)
	switch {
	case status != 200:
		role.dialer.Counters.Refused.Add(1)
		s.ending, s.endSent = true, true
		if end {
			c.rst(id, http2.ErrCodeNo)
			c.drop(s, nil)
		} else {
			c.reset(s, http2.ErrCodeCancel, nil)
		}
	case d.abandoned:
		c.reset(s, http2.ErrCodeCancel, net.ErrClosed)
	case end:
		c.peerEnded(s)
	}
	return nil
}

// free makes room for another tunnel.
func (role *client) free(s *stream) {
	role.dialer.Counters.Tunnels.Add(-1)
	if d := s.dial; d != nil {
		if d.timer != nil {
			d.timer.Stop()
		}
		if d.status == 0 {
			close(d.answered)
		}
	} else if s.broken != nil {
		role.dialer.Counters.Resets.Add(1)
	}
	c := role.conn
	if len(c.streams) > 0 || c.err != nil {
		return
	}
	if c.away {
		c.end(http2.ErrCodeNo, c.limits.linger)
		return
	}
	role.idle = time.AfterFunc(idleConn, role.retire)
}

// rest begins the time after which a connection that nobody uses is closed.
func (role *client) rest() {
	role.conn.mu.Lock()
	role.idle = time.AfterFunc(idleConn, role.retire)
	role.conn.mu.Unlock()
}

// retire closes a connection that nobody has used for long.
func (role *client) retire() {
	c := role.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.streams) == 0 {
		c.away = true
		c.end(http2.ErrCodeNo, c.limits.linger)
	}
}

func (role *client) gone(error) {
	c := role.conn
	c.mu.Lock()
	if role.idle != nil {
		role.idle.Stop()
	}
	c.mu.Unlock()
	d := role.dialer
	d.Counters.Conns.Add(-1)
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, other := range role.pool.conns {
		if other == role {
			role.pool.conns = append(role.pool.conns[:i], role.pool.conns[i+1:]...)
			break
		}
	}
	d.forget(role.target, role.pool)
}

// Close cuts all connections with their tunnels.
func (d *Dialer) Close() error {
	d.mu.Lock()
	d.closed = true
	var cut []*conn
	for _, p := range d.targets {
		for _, role := range p.conns {
			cut = append(cut, role.conn)
		}
	}
	d.mu.Unlock()
	for _, c := range cut {
		c.fail(errShutdown)
	}
	return nil
}
