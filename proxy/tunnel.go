package proxy

import (
	"errors"
	"io"
	"sync"
	"time"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

const (
	// tunnelBuffer is how much is passed on at a time in a tunnel, and all that
	// is held of each direction.
	tunnelBuffer = 16 << 10
	// tunnelStall is how long one end of a WebSocket or the like may take no byte that is there
	// for it, and may go on in silence after the other has ended; tcpStall is that of what is not
	// HTTP, of which nothing is known: a database may be held up for long (Envoy's tcp_proxy,
	// idle_timeout, is as patient).
	tunnelStall = time.Minute
	tcpStall    = time.Hour
)

// relayTunnel is for an endpoint that has switched protocols (status 101), as
// for a WebSocket: from here on both sides say what they like, and it is passed
// on unread until both have ended. timeouts.request bounds no tunnel.
func (x *Exchange) relayTunnel(conn carrier, lease *picker.Lease) (whole bool, outcome picker.Outcome) {
	x.record.Status = x.answer.Status
	x.addFields(lease)
	if x.stream.WriteHead(&x.answer) != nil {
		return x.left()
	}
	client, err := x.stream.Tunnel()
	if err != nil {
		return x.left()
	}
	endpoint, err := conn.Tunnel()
	if err != nil {
		x.stream.Abort()
		return false, picker.Failed
	}

	t := tunnel{idle: x.serving.timeouts.StreamIdle, stall: tunnelStall}
	t.client.conn, t.endpoint.conn = client, endpoint
	t.run()
	x.stream.Unbind() // an interruption under way has now told the Context
	x.record.BytesIn += t.endpoint.written
	x.record.BytesOut += t.client.written

	switch {
	case x.gone() || t.failed == &t.client:
		return x.left()
	case t.failed == &t.endpoint:
		x.record.Reason = account.UpstreamCut
		x.server.log.Warn("tunnel broke off", "request_id", x.record.ID, "pool", x.pool.name, "endpoint", x.record.Endpoint, "error", t.cause)
		x.stream.Abort()
		return false, picker.Failed
	case t.cause != nil:
		x.record.Reason = account.TunnelIdle
		x.stream.Abort()
	case x.stream.Finish(nil) != nil:
		return x.left()
	}
	return false, picker.Done
}

// tunnel passes bytes between two connections, each direction in a goroutine.
type tunnel struct {
	client, endpoint tunnelEnd
	idle             time.Duration // without a byte either way; 0: no bound
	stall            time.Duration // that an end may take nothing, or go on in silence after the other has ended

	mu     sync.Mutex
	ended  bool       // one direction; guarded by mu
	failed *tunnelEnd // the end that broke the tunnel; guarded by mu
	cause  error      // what broke it; guarded by mu
}

// tunnelEnd is one end of a tunnel.
type tunnelEnd struct {
	conn    *sock.Conn
	written int64 // bytes; its writer's
	writing bool  // it has its time-out for itself; guarded by tunnel.mu
}

// run returns when both directions have ended, each in its turn, or the tunnel
// broke: failed is then the end that did, nil when both kept silent for too
// long, and cause says how.
func (t *tunnel) run() {
	t.mu.Lock()
	t.renew()
	t.mu.Unlock()
	var up sync.WaitGroup
	up.Go(func() { t.pass(&t.endpoint, &t.client) })
	t.pass(&t.client, &t.endpoint)
	up.Wait()
}

// pass takes what src says to dst, its end included.
func (t *tunnel) pass(dst, src *tunnelEnd) {
	buf := getBuffer(tunnelBuffer)
	defer putBuffer(buf)
	for {
		n, err := src.conn.Read((*buf)[:tunnelBuffer])
		if n > 0 {
			if err := t.write(dst, (*buf)[:n]); err != nil {
				t.fail(dst, err)
				return
			}
		}
		if err == io.EOF {
			t.end(dst)
			return
		}
		if err != nil {
			t.fail(src, err)
			return
		}
	}
}

// write gives e so long to take p, whatever the other direction does meanwhile.
func (t *tunnel) write(e *tunnelEnd, p []byte) error {
	t.mu.Lock()
	e.writing = true
	e.conn.SetTimeout(t.stall)
	t.mu.Unlock()
	n, err := e.conn.Write(p)
	e.written += int64(n)
	if err != nil {
		return err
	}
	t.mu.Lock()
	e.writing = false
	t.renew()
	t.mu.Unlock()
	return nil
}

// end ends what is said to e. An end that can no longer be told has said so by
// what comes from it.
func (t *tunnel) end(e *tunnelEnd) {
	t.mu.Lock()
	t.ended = true
	t.renew()
	t.mu.Unlock()
	e.conn.CloseWrite()
}

// renew begins the time anew in which a byte has to come. t.mu is held.
func (t *tunnel) renew() {
	d := t.idle
	if t.ended && (d == 0 || d > t.stall) {
		d = t.stall
	}
	for _, e := range []*tunnelEnd{&t.client, &t.endpoint} {
		if !e.writing {
			e.conn.SetTimeout(d)
		}
	}
}

var errTunnelIdle = errors.New("neither side said anything in time")

// fail breaks the tunnel because e did, or was silent for too long. What comes
// after the first failure follows from it.
func (t *tunnel) fail(e *tunnelEnd, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cause != nil {
		return
	}
	if e.conn.TimedOut() && !e.writing {
		t.cause = errTunnelIdle
	} else {
		t.failed, t.cause = e, err
	}
	t.client.conn.Interrupt()
	t.endpoint.conn.Interrupt()
}
