package ztunnel

import (
	"context"
	"crypto/tls"
	"maps"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// PoolStreams is how many tunnels a connection has before there is another one.
const PoolStreams = 100

// A Client is ztunnel at the side of whoever calls a waypoint. Its fields are set
// before the first call.
type Client struct {
	// Address is the waypoint's.
	Address string
	// TLS is its side of mutual TLS, see Authority.Client.
	TLS *tls.Config
	// Ping is the interval of PINGs. 0: ten seconds.
	Ping time.Duration

	mu    sync.Mutex
	conns []*ClientConn
}

// A Request is what a CONNECT says.
type Request struct {
	Authority   string
	Forwarded   string
	Baggage     string
	Traceparent string
	Method      string   // other than CONNECT
	Extra       []string // fields besides, name and value in turn
}

// StatusError is an answer other than 200.
type StatusError int

func (e StatusError) Error() string { return "status " + strconv.Itoa(int(e)) }

// Connect gives a tunnel in one of the client's connections, when its 200 has come. As
// with ztunnel there is no second try.
func (c *Client) Connect(ctx context.Context, r Request) (*Tunnel, error) {
	c.mu.Lock()
	var conn *ClientConn
	for _, have := range c.conns {
		if have.usable() {
			conn = have
			break
		}
	}
	if conn == nil {
		made, err := DialConn(ctx, c.Address, c.TLS, c.Ping)
		if err != nil {
			c.mu.Unlock()
			return nil, err
		}
		conn = made
		c.conns = append(c.conns, conn)
	}
	t, err := conn.begin(r)
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return conn.await(ctx, t)
}

// Conns is the connections made so far.
func (c *Client) Conns() []*ClientConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*ClientConn(nil), c.conns...)
}

// Close closes all connections.
func (c *Client) Close() {
	for _, conn := range c.Conns() {
		conn.Close()
	}
}

// ClientConn is one connection to a waypoint.
type ClientConn struct {
	c     *conn
	State tls.ConnectionState
	ended chan struct{}
}

// DialConn connects and says the preface.
func DialConn(ctx context.Context, address string, config *tls.Config, ping time.Duration) (*ClientConn, error) {
	raw, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	nc := tls.Client(raw, config)
	if err := nc.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	c := newConn(nc, true, ping)
	cc := &ClientConn{c: c, State: nc.ConnectionState(), ended: make(chan struct{})}
	c.headers = cc.headers
	err = c.send(func() {
		c.bw.WriteString(http2.ClientPreface)
		c.fr.WriteSettings(
			http2.Setting{ID: http2.SettingEnablePush, Val: 0},
			http2.Setting{ID: http2.SettingInitialWindowSize, Val: StreamWindow},
			http2.Setting{ID: http2.SettingMaxFrameSize, Val: MaxFrame},
			http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: ClientHeaders})
		c.fr.WriteWindowUpdate(0, ConnWindow-65535)
	})
	if err != nil {
		return nil, err
	}
	go func() {
		c.run()
		close(cc.ended)
	}()
	return cc, nil
}

func (cc *ClientConn) headers(f *http2.MetaHeadersFrame) {
	c := cc.c
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.moved.Broadcast()
	t := c.tunnels[f.StreamID]
	if t == nil {
		return
	}
	status, _ := strconv.Atoi(f.PseudoValue("status"))
	if status < 200 {
		return
	}
	for _, field := range f.RegularFields() {
		t.Fields[field.Name] = field.Value
	}
	if t.Fields["content-length"] != "" { // as h2 does for a CONNECT
		t.fail(ErrReset{http2.ErrCodeProtocol})
	}
	t.status = status
	if f.StreamEnded() {
		t.ended = true
		c.done(t)
	}
}

func (cc *ClientConn) usable() bool {
	cc.c.mu.Lock()
	defer cc.c.mu.Unlock()
	return cc.c.err == nil && cc.c.away == nil && len(cc.c.tunnels) < PoolStreams
}

// begin sends a CONNECT.
func (cc *ClientConn) begin(r Request) (*Tunnel, error) {
	c := cc.c
	c.write.Lock()
	defer c.write.Unlock()
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return nil, c.err
	}
	t := c.newTunnel(c.next)
	t.Authority = r.Authority
	c.next += 2
	c.mu.Unlock()
	method := r.Method
	if method == "" {
		method = "CONNECT"
	}
	fields := []string{":method", method}
	if r.Authority != "" {
		fields = append(fields, ":authority", r.Authority)
	}
	if method != "CONNECT" {
		fields = append(fields, ":scheme", "https", ":path", "/")
	}
	for _, f := range [][2]string{{"baggage", r.Baggage}, {"forwarded", r.Forwarded}, {"traceparent", r.Traceparent}} {
		if f[1] != "" {
			fields = append(fields, f[0], f[1])
		}
	}
	c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: t.id, EndHeaders: true, BlockFragment: c.block(append(fields, r.Extra...)...)})
	if err := c.bw.Flush(); err != nil {
		return nil, err
	}
	return t, nil
}

// await waits for the answer.
func (cc *ClientConn) await(ctx context.Context, t *Tunnel) (*Tunnel, error) {
	c := cc.c
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.moved.Broadcast()
	})
	defer stop()
	c.mu.Lock()
	for t.status == 0 && t.err == nil && ctx.Err() == nil {
		c.moved.Wait()
	}
	status, err := t.status, t.err
	c.mu.Unlock()
	switch {
	case status != 0 && status != 200:
		t.CloseWrite()
		return nil, StatusError(status)
	case err != nil:
		return nil, err
	case status == 0:
		t.Reset(http2.ErrCodeCancel)
		return nil, ctx.Err()
	}
	return t, nil
}

// Connect asks for a tunnel in this connection.
func (cc *ClientConn) Connect(ctx context.Context, r Request) (*Tunnel, error) {
	t, err := cc.begin(r)
	if err != nil {
		return nil, err
	}
	return cc.await(ctx, t)
}

// Settings are what the peer has announced.
func (cc *ClientConn) Settings() map[http2.SettingID]uint32 {
	cc.c.mu.Lock()
	defer cc.c.mu.Unlock()
	return maps.Clone(cc.c.settings)
}

// Pings is how many PINGs were answered.
func (cc *ClientConn) Pings() int {
	cc.c.mu.Lock()
	defer cc.c.mu.Unlock()
	return cc.c.pinged
}

// Raw lets a test send what ztunnel never would.
func (cc *ClientConn) Raw(frames func(*http2.Framer)) error {
	return cc.c.send(func() {
		cc.c.fr.AllowIllegalWrites = true
		frames(cc.c.fr)
	})
}

// Close closes the connection.
func (cc *ClientConn) Close() {
	cc.c.fail(net.ErrClosed)
	<-cc.ended
}
