package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/hbone"
	"github.com/fairway-proxy/fairway/proxy/sock"
	"github.com/fairway-proxy/fairway/proxy/upstream"
)

// What is not HTTP: passed on unread to the endpoint with the fewest connections.

const (
	// sniffTime is how long a client may be silent before it is taken to wait for
	// the server's first word, as with MySQL or SMTP. Ports whose Service says tcp
	// do not wait.
	sniffTime = time.Second
	// sniffLimit bounds what is looked at to find the end of a request line.
	sniffLimit = 4 << 10
)

// sniff finds out whether a connection begins as HTTP does, and leaves what it read
// to be read again.
func sniff(c *sock.Conn) (PortProtocol, error) {
	buf := make([]byte, 0, 512)
	c.Conn.SetReadDeadline(time.Now().Add(sniffTime))
	defer c.Conn.SetReadDeadline(time.Time{})
	for {
		if protocol, sure := protocolOf(buf); sure || len(buf) >= sniffLimit {
			c.Unread(buf)
			return protocol, nil
		}
		buf = slices.Grow(buf, 512)
		n, err := c.Conn.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if n > 0 {
			continue
		}
		if err != nil && err != io.EOF && !errors.Is(err, os.ErrDeadlineExceeded) {
			return "", err
		}
		protocol, _ := protocolOf(buf) // that is all there is
		c.Unread(buf)
		return protocol, nil
	}
}

// protocolOf tells from the first bytes of a connection whether it is HTTP, in either
// version; sure when no further byte could change the answer.
func protocolOf(b []byte) (p PortProtocol, sure bool) {
	line, _, whole := bytes.Cut(b, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	method, rest, spaced := bytes.Cut(line, []byte(" "))
	const longest = 32 // of a method
	if len(method) > longest || slices.ContainsFunc(method, func(c byte) bool { return c != '-' && (c < 'A' || c > 'Z') }) {
		return PortTCP, true
	}
	if whole {
		at := bytes.LastIndexByte(rest, ' ')
		if len(method) > 0 && at > 0 && bytes.HasPrefix(rest[at+1:], []byte("HTTP/")) {
			return PortHTTP, true
		}
		return PortTCP, true
	}
	// A target begins with a slash, an asterisk, or a scheme's or host's name.
	if len(method) > 0 && spaced && len(rest) > 0 {
		return PortHTTP, false
	}
	return PortTCP, false
}

// connections are those of a pool that are passed on unread.
type connections struct {
	mu sync.Mutex
	at map[*picker.Endpoint]int // guarded by mu
}

// least takes a place at the endpoint that has the fewest, of those whose server is not
// in tried and, if there is one, take connections. It gives nil without one.
func (n *connections) least(all, tried []*picker.Endpoint, pod string) *picker.Endpoint {
	n.mu.Lock()
	defer n.mu.Unlock()
	var best *picker.Endpoint
	var ejected bool
	now, ties := Now(), 0
	for _, e := range all {
		if slices.ContainsFunc(tried, e.SameServer) || pod != "" && e.Address() != pod {
			continue
		}
		out := e.Ejected(now)
		switch {
		case best == nil || ejected && !out || out == ejected && n.at[e] < n.at[best]:
			best, ejected, ties = e, out, 1
		case out == ejected && n.at[e] == n.at[best]:
			if ties++; rand.IntN(ties) == 0 {
				best = e
			}
		}
	}
	if best != nil {
		if n.at == nil {
			n.at = make(map[*picker.Endpoint]int)
		}
		n.at[best]++
	}
	return best
}

func (n *connections) leave(e *picker.Endpoint) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.at[e]--; n.at[e] == 0 {
		delete(n.at, e)
	}
}

// relays are the connections passed on unread that are open.
type relays struct {
	mu   sync.Mutex
	open map[*sock.Conn]struct{} // the clients' ends; guarded by mu
	wg   sync.WaitGroup
	cut  bool // guarded by mu
}

func (r *relays) begin(c *sock.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cut {
		return false
	}
	if r.open == nil {
		r.open = make(map[*sock.Conn]struct{})
	}
	r.open[c] = struct{}{}
	r.wg.Add(1)
	return true
}

func (r *relays) end(c *sock.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, c)
	r.wg.Done()
}

// close waits for all of them to end, and cuts them when ctx is done.
func (r *relays) close(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.cut = true
		for c := range r.open {
			c.Interrupt()
		}
	})
	r.wg.Wait()
	if !stop() {
		return ctx.Err()
	}
	return nil
}

// serveTCP passes a connection on to an endpoint of d, until both have ended it.
func (s *Server) serveTCP(client *sock.Conn, peer *hbone.Peer, d *destination) {
	if !s.relays.begin(client) {
		client.Reset()
		return
	}
	defer s.relays.end(client)
	var rec account.Record
	rec.Reset()
	rec.ID, rec.Start, rec.Remote, rec.Peer, rec.Service = newID(), time.Now(), remoteOf(client, peer), peerID(peer), d.host
	defer func() {
		rec.Duration = time.Since(rec.Start)
		s.account.DoneTCP(&rec)
	}()
	if d.guard.Withheld != "" {
		s.log.Warn("a connection is refused for the moment", "id", rec.ID, "service", d.host, "why", d.guard.Withheld)
		rec.Reason = typeNotReady
		client.Reset()
		return
	}
	if !s.admit(d, &rec, peer, client) {
		client.Reset()
		return
	}
	if d.pool == nil {
		rec.Reason = "fairway_no_route"
		client.Reset()
		return
	}
	rec.Pool = d.pool.name
	endpoint, leave, err := s.dialTCP(&rec, d)
	if err != nil {
		s.log.Warn("no endpoint takes the connection", "id", rec.ID, "pool", rec.Pool, "error", err)
		client.Reset()
		return
	}
	defer leave()

	t := tunnel{idle: s.serving.Load().timeouts.StreamIdle, stall: tcpStall}
	t.client.conn, t.endpoint.conn = client, endpoint
	t.run()
	rec.BytesIn, rec.BytesOut = t.endpoint.written, t.client.written
	switch {
	case t.failed == &t.client:
		rec.Reason = account.ClientGone
	case t.failed == &t.endpoint:
		rec.Reason = account.UpstreamCut
	case t.cause != nil:
		rec.Reason = account.TunnelIdle
	}
	if t.cause == nil {
		client.Close()
		endpoint.Close()
		return
	}
	client.Reset() // so that neither takes it for the end
	endpoint.Reset()
}

// dialTCP connects to an endpoint, trying each once. Leave gives its place back.
func (s *Server) dialTCP(rec *account.Record, d *destination) (conn *sock.Conn, leave func(), err error) {
	var tried []*picker.Endpoint
	err = picker.ErrNoEndpoints
	all := d.pool.picker.Endpoints()
	if d.pod != "" {
		all = d.pool.picker.All()
	}
	for {
		e := d.pool.connections.least(all, tried, d.pod)
		if e == nil {
			rec.Reason = "fairway_no_endpoint"
			if len(tried) > 0 {
				rec.Reason = "fairway_upstream_failed"
			}
			return nil, nil, err
		}
		if rec.Endpoint != "" {
			rec.Retries++
		}
		rec.Endpoint = e.Address()
		var nc net.Conn
		nc, err = e.Owner().(*upstream.Transport).DialRaw(context.Background())
		if err == nil {
			return sock.New(nc), func() { d.pool.connections.leave(e) }, nil
		}
		d.pool.connections.leave(e)
		tried = append(tried, e)
		if upstream.Exhausted(err) {
			rec.Reason = "fairway_exhausted"
			return nil, nil, err
		}
		if e.Eject(Now()) {
			s.log.Warn("endpoint does not take connections", "pool", rec.Pool, "endpoint", rec.Endpoint, "error", err)
		}
	}
}

// remoteOf is where a connection in a tunnel comes from.
func remoteOf(c net.Conn, p *hbone.Peer) string {
	if p != nil && p.Forwarded.IsValid() {
		return p.Forwarded.String()
	}
	return c.RemoteAddr().String()
}

// peerID is the SPIFFE ID of a tunnel's other end, "" without one.
func peerID(p *hbone.Peer) string {
	if p == nil || p.ID.IsZero() {
		return ""
	}
	return p.ID.String()
}
