package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/fairway-proxy/fairway/bench/e2e/ztunnel"
	"github.com/fairway-proxy/fairway/mtls"
)

// raw is a client that sends what it likes.
type raw struct {
	net.Conn
	*http2.Framer
}

func (m *mesh) raw(t testing.TB, w *waypoint) raw {
	t.Helper()
	c, err := tls.Dial("tcp", w.Addr().String(), m.ca.Client(m.caller))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	r := raw{c, http2.NewFramer(c, c)}
	r.AllowIllegalWrites, r.AllowIllegalReads = true, true
	io.WriteString(c, http2.ClientPreface)
	r.WriteSettings()
	return r
}

// block encodes fields, name and value in turn.
func block(fields ...string) []byte {
	var b strings.Builder
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return []byte(b.String())
}

var connectBlock = block(":method", "CONNECT", ":authority", vip)

func (r raw) connect(id uint32) {
	r.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, BlockFragment: connectBlock})
}

// until reads frames until one is of the kind, and gives it.
func (r raw) until(t testing.TB, kind http2.FrameType) http2.Frame {
	t.Helper()
	r.SetReadDeadline(time.Now().Add(20 * time.Second))
	for {
		f, err := r.ReadFrame()
		if err != nil {
			t.Fatalf("waiting for %v: %v", kind, err)
		}
		if f.Header().Type == kind {
			return f
		}
	}
}

// Everybody who is not what a waypoint's peer has to be is refused in the handshake.
func TestRefusedHandshakes(t *testing.T) {
	m := newMesh(t)
	other, err := ztunnel.NewAuthority("elsewhere.org")
	if err != nil {
		t.Fatal(err)
	}
	issue := func(a *ztunnel.Authority, id string, from time.Time) *tls.Certificate {
		c, err := a.Issue(id, from, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return &c
	}
	now := time.Now()
	for _, tt := range []struct {
		name   string
		cert   *tls.Certificate
		adjust func(*tls.Config)
		reason mtls.Reason
	}{
		{"no certificate", new(tls.Certificate), nil, mtls.NoCertificate},
		{"another trust domain", issue(other, other.ID("default", "client"), now), nil, mtls.UnknownTrustDomain},
		{"expired", issue(m.ca, m.ca.ID("default", "client"), now.Add(-2*time.Hour)), nil, mtls.Expired},
		{"not yet valid", issue(m.ca, m.ca.ID("default", "client"), now.Add(time.Hour)), nil, mtls.NotYetValid},
		{"TLS 1.2", &m.caller, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }, mtls.TLSVersion},
		{"no SPIFFE ID", issue(m.ca, "https://cluster.local/client", now), nil, mtls.NotSPIFFE},
		{"a CA", issue(m.ca, "spiffe://cluster.local", now), nil, mtls.NotSPIFFE},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := m.listen(t, echo)
			config := m.ca.Client(*tt.cert)
			if tt.adjust != nil {
				tt.adjust(config)
			}
			c, err := ztunnel.DialConn(t.Context(), w.Addr().String(), config, 0)
			if err == nil {
				_, err = c.Connect(t.Context(), ztunnel.Request{Authority: vip})
				c.Close()
			}
			if err == nil {
				t.Fatal("it got a tunnel")
			}
			waitFor(t, "the refusal", func() bool { return w.Counters.Refused(ReasonHandshake) > 0 })
			if w.Counters.Refused(ReasonHandshake) != 1 || w.Counters.Handshakes()[tt.reason] != 1 || w.log.lines() != 1 || !strings.Contains(w.log.String(), string(tt.reason)) {
				t.Errorf("%d counted, of %v, %d lines:\n%s", w.Counters.Refused(ReasonHandshake), w.Counters.Handshakes(), w.log.lines(), w.log)
			}
		})
	}
	t.Run("mute", func(t *testing.T) {
		w := m.listen(t, echo, func(_ *Config, l *limits) { l.handshake = 20 * time.Millisecond })
		c, err := net.Dial("tcp", w.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.ReadAll(c)
		waitFor(t, "the refusal", func() bool { return w.Counters.Handshakes()[mtls.Timeout] == 1 && w.log.lines() == 1 })
	})
	t.Run("no TLS", func(t *testing.T) {
		w := m.listen(t, echo)
		c, err := net.Dial("tcp", w.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: llama\r\n\r\n")
		io.ReadAll(c)
		waitFor(t, "the refusal", func() bool { return w.Counters.Handshakes()[mtls.NotTLS] == 1 && w.log.lines() == 1 })
	})
	// ztunnel learns from our certificate that we are somebody else, and says so.
	t.Run("peer does not want us", func(t *testing.T) {
		w := m.listen(t, echo)
		if c, err := ztunnel.DialConn(t.Context(), w.Addr().String(), m.ca.Client(m.caller, m.ca.ID("other", "waypoint")), 0); err == nil {
			c.Close()
			t.Fatal("it got a connection")
		}
		waitFor(t, "the refusal", func() bool { return w.Counters.Handshakes()[mtls.Rejected] == 1 && w.log.lines() == 1 })
	})
}

// What is not a CONNECT to a destination is answered, and nothing else suffers.
func TestRefusedTunnels(t *testing.T) {
	m := newMesh(t)
	for _, tt := range []struct {
		name   string
		r      ztunnel.Request
		status ztunnel.StatusError
		reason Reason
	}{
		{"GET", ztunnel.Request{Method: "GET", Authority: vip}, 400, ReasonMethod},
		{"no authority", ztunnel.Request{}, 400, ReasonAuthority},
		{"no port", ztunnel.Request{Authority: "10.96.0.7"}, 400, ReasonAuthority},
		{"not ours", ztunnel.Request{Authority: "10.96.0.8:80"}, 404, ReasonAdmit},
		{"policy", ztunnel.Request{Authority: "10.96.0.7:81"}, 403, ReasonAdmit},
		{"plain error", ztunnel.Request{Authority: "10.96.0.7:82"}, 400, ReasonAdmit},
		{"too large", ztunnel.Request{Authority: vip, Baggage: strings.Repeat("a,", 8200)}, 431, ReasonFields},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := m.listen(t, echo, func(c *Config, _ *limits) {
				c.Admit = func(p *Peer) error {
					switch p.Authority {
					case vip:
						return nil
					case "10.96.0.7:81":
						return &Refusal{403, "policy default/deny"}
					case "10.96.0.7:82":
						return errors.New("no such port")
					}
					return &Refusal{404, "no Service has this address"}
				}
			})
			c := m.client(t, w)
			beside := connect(t, c)
			_, err := c.Connect(t.Context(), tt.r)
			if err != tt.status {
				t.Errorf("got %v, want %v", err, tt.status)
			}
			if w.Counters.Refused(tt.reason) != 1 || w.log.lines() != 1 {
				t.Errorf("%d counted, %d lines:\n%s", w.Counters.Refused(tt.reason), w.log.lines(), w.log)
			}
			exchange(t, beside, 10_000)
			exchange(t, connect(t, c), 10_000)
			if len(c.Conns()) != 1 {
				t.Error("the connection was lost")
			}
		})
	}
}

// What no HTTP/2 client may send is a reset, and nothing else suffers.
func TestMalformedHeads(t *testing.T) {
	m := newMesh(t)
	w := m.listen(t, echo)
	r := m.raw(t, w)
	id := uint32(1)
	for _, b := range [][]byte{
		block(":method", "CONNECT", ":authority", vip, ":path", "/", ":scheme", "https"),
		block(":method", "CONNECT", ":authority", vip, "Upper", "1"),
		block(":method", "CONNECT", ":authority", vip, "a", "line\nfeed"),
		block(":method", "CONNECT", ":method", "CONNECT", ":authority", vip),
		block(":method", "CONNECT", "a", "b", ":authority", vip),
		block(":method", "CONNECT", ":authority", vip, ":unknown", "1"),
		block(":method", "CONNECT", ":authority", vip, "connection", "close"),
	} {
		r.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, BlockFragment: b})
		f := r.until(t, http2.FrameRSTStream).(*http2.RSTStreamFrame)
		if f.StreamID != id || f.ErrCode != http2.ErrCodeProtocol {
			t.Errorf("%q: %v", b, f)
		}
		id += 2
	}
	if n := w.Counters.Refused(ReasonFields); n != 7 {
		t.Errorf("%d counted", n)
	}
	r.connect(id)
	if f := r.until(t, http2.FrameHeaders); f.Header().StreamID != id {
		t.Error(f)
	}
}

// A ztunnel, which offers a share for X25519 alone, needs no second round trip.
func TestNoHelloRetry(t *testing.T) {
	m := newMesh(t)
	w := m.listen(t, echo)
	c, err := ztunnel.DialConn(t.Context(), w.Addr().String(), m.ca.Client(m.caller), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.State.HelloRetryRequest || c.State.CurveID != tls.X25519 || c.State.NegotiatedProtocol != "h2" || c.State.Version != tls.VersionTLS13 {
		t.Errorf("got %+v", c.State)
	}
}

// Trap 4: whether a tunnel is ours is decided by :authority and the certificate,
// before a byte of what is inside.
func TestTrap4AuthorityIsJudgedNotHost(t *testing.T) {
	m := newMesh(t)
	var seen atomic.Pointer[Peer]
	w := m.listen(t, echo, func(c *Config, _ *limits) {
		c.Admit = func(p *Peer) error {
			seen.Store(p)
			return &Refusal{404, "not bound to us"}
		}
	})
	c := m.client(t, w)
	_, err := c.Connect(t.Context(), ztunnel.Request{Authority: "10.96.0.99:80", Forwarded: `for="1.2.3.4:5";host=ours.default.svc`, Extra: []string{"host", "ours.default.svc"}})
	if err != ztunnel.StatusError(404) {
		t.Errorf("got %v", err)
	}
	if p := seen.Load(); p.Authority != "10.96.0.99:80" || p.ID != m.id("client") {
		t.Errorf("judged by %+v", p)
	}
}

// Trap 5: the answer is exactly 200, one byte, at once, with nobody reading and no
// length.
func TestTrap5The200IsAloneAndAtOnce(t *testing.T) {
	m := newMesh(t)
	hold := make(chan struct{})
	w := m.listen(t, func(c net.Conn) { <-hold; c.Close() })
	defer close(hold)
	r := m.raw(t, w)
	r.connect(1)
	f := r.until(t, http2.FrameHeaders).(*http2.HeadersFrame)
	if string(f.HeaderBlockFragment()) != "\x88" || f.StreamEnded() || !f.HeadersEnded() {
		t.Errorf("%v, %x", f, f.HeaderBlockFragment())
	}
}

// Trap 6: tunnels that nobody reads hold up no other tunnel of their connection,
// whose window is four times theirs at most.
func TestTrap6StalledTunnelsHoldUpNoOther(t *testing.T) {
	m := newMesh(t)
	hold := make(chan struct{})
	w := m.listen(t, func(c net.Conn) {
		var one [1]byte
		io.ReadFull(c, one[:])
		if one[0] == 's' {
			<-hold
			c.Close()
			return
		}
		echo(c)
	}, func(c *Config, _ *limits) { c.Budget = NewBudget(100 << 20) })
	c := m.client(t, w)
	var writing sync.WaitGroup
	stalled := make([]*ztunnel.Tunnel, ztunnel.PoolStreams-1)
	for i := range stalled {
		stalled[i] = connect(t, c)
		writing.Go(func() {
			stalled[i].Write([]byte("s"))
			stalled[i].Write(make([]byte, 1<<20))
		})
	}
	live := connect(t, c)
	waitFor(t, "the tunnels to stall", func() bool { return w.config.Budget.Held() >= int64(len(stalled))*baseWindow })
	live.Write([]byte("l"))
	exchange(t, live, 5<<20)
	if n := len(c.Conns()); n != 1 {
		t.Errorf("%d connections", n)
	}
	// A byte that fills no chunk of its own is why it is a little more.
	if held := w.config.Budget.Held(); held > int64(len(stalled))*(baseWindow+largeChunk) {
		t.Errorf("%d bytes are held", held)
	}
	close(hold)
	for _, s := range stalled {
		s.Reset(http2.ErrCodeCancel)
	}
	writing.Wait()
	waitFor(t, "the memory to be given back", func() bool { return w.config.Budget.Held() == 0 })
}

// Whatever stalled tunnels were promised, they hold no more than the budget.
func TestBudgetBoundsWhatStalledTunnelsHold(t *testing.T) {
	m := newMesh(t)
	hold := make(chan struct{})
	const limit = 2 << 20
	w := m.listen(t, func(c net.Conn) {
		<-hold
		c.Close()
	}, func(c *Config, _ *limits) { c.Budget = NewBudget(limit) })
	c := m.client(t, w)
	var writing sync.WaitGroup
	const tunnels = 40
	var broken atomic.Int64
	for range tunnels {
		tunnel := connect(t, c)
		writing.Go(func() {
			if _, err := tunnel.Write(make([]byte, baseWindow)); err != nil {
				broken.Add(1)
			}
		})
	}
	writing.Wait()
	waitFor(t, "tunnels to be broken off", func() bool { return w.Counters.Resets.Load() > 0 })
	if held := w.config.Budget.Held(); held > limit+tunnels*2*largeChunk {
		t.Errorf("%d bytes are held of %d", held, limit)
	}
	close(hold)
	waitFor(t, "the memory to be given back", func() bool { return w.config.Budget.Held() == 0 })
}

// Exactly what was promised: 250 tunnels a connection, the next is refused and
// nothing else suffers.
func TestStreamsOfAConnection(t *testing.T) {
	m := newMesh(t)
	w := m.listen(t, echo)
	cc, err := ztunnel.DialConn(t.Context(), w.Addr().String(), m.ca.Client(m.caller), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	var tunnels []*ztunnel.Tunnel
	for range maxStreams {
		tunnel, err := cc.Connect(t.Context(), ztunnel.Request{Authority: vip})
		if err != nil {
			t.Fatal(err)
		}
		tunnels = append(tunnels, tunnel)
	}
	if _, err := cc.Connect(t.Context(), ztunnel.Request{Authority: vip}); err != (ztunnel.ErrReset{Code: http2.ErrCodeRefusedStream}) {
		t.Errorf("got %v", err)
	}
	settings := cc.Settings()
	if settings[http2.SettingMaxConcurrentStreams] != maxStreams || settings[http2.SettingMaxFrameSize] != maxFrame || settings[http2.SettingInitialWindowSize] != baseWindow {
		t.Errorf("announced %v", settings)
	}
	for _, tunnel := range tunnels {
		exchange(t, tunnel, 1)
	}
}

// Nobody accepts: the tunnel is answered, not left waiting.
func TestBacklog(t *testing.T) {
	m := newMesh(t)
	inner := loopback(t)
	l := NewListener(inner, Config{TLS: m.waypoint.ServerConfig(), Backlog: 1})
	defer l.Close()
	c := &ztunnel.Client{Address: l.Addr().String(), TLS: m.ca.Client(m.caller)}
	defer c.Close()
	connect(t, c)
	if _, err := c.Connect(t.Context(), ztunnel.Request{Authority: vip}); err != ztunnel.StatusError(503) {
		t.Errorf("got %v", err)
	}
	if l.Counters.Refused(ReasonBacklog) != 1 {
		t.Error("not counted")
	}
}

func TestConnectionsAreLimited(t *testing.T) {
	m := newMesh(t)
	w := m.listen(t, echo, func(c *Config, _ *limits) { c.MaxConns = 1 })
	exchange(t, connect(t, m.client(t, w)), 1)
	if _, err := m.client(t, w).Connect(t.Context(), ztunnel.Request{Authority: vip}); err == nil {
		t.Error("a second connection was taken")
	}
	waitFor(t, "its count", func() bool { return w.Counters.Refused(ReasonConnections) == 1 })
}

// Floods end the connection they come in.
func TestFloods(t *testing.T) {
	m := newMesh(t)
	fragment := block("x", "y")
	for _, tt := range []struct {
		name   string
		send   func(r raw) error // again and again
		code   http2.ErrCode
		reason Reason
	}{
		{"rapid reset", func() func(r raw) error {
			id := uint32(3)
			return func(r raw) error {
				r.connect(id)
				id += 2
				return r.WriteRSTStream(id-2, http2.ErrCodeCancel)
			}
		}(), http2.ErrCodeEnhanceYourCalm, ReasonFlood},
		{"made resets", func() func(r raw) error {
			id := uint32(3)
			return func(r raw) error {
				r.connect(id)
				id += 2
				return r.WriteWindowUpdate(id-2, windowLimit)
			}
		}(), http2.ErrCodeEnhanceYourCalm, ReasonFlood},
		{"SETTINGS", func(r raw) error { return r.WriteSettings() }, http2.ErrCodeEnhanceYourCalm, ReasonFlood},
		{"PING", func(r raw) error { return r.WritePing(false, [8]byte{}) }, http2.ErrCodeEnhanceYourCalm, ReasonFlood},
		{"PRIORITY", func(r raw) error { return r.WritePriority(1, http2.PriorityParam{}) }, http2.ErrCodeEnhanceYourCalm, ReasonFlood},
		{"empty DATA", func(r raw) error { return r.WriteData(1, false, nil) }, http2.ErrCodeEnhanceYourCalm, ReasonFlood},
		{"PING, acknowledged", func(r raw) error { return r.WritePing(true, [8]byte{}) }, http2.ErrCodeEnhanceYourCalm, ReasonFlood},
		{"windows", func(r raw) error { return r.WriteWindowUpdate(1, 1) }, http2.ErrCodeEnhanceYourCalm, ReasonFlood},
		{"unknown frames", func(r raw) error { return r.WriteRawFrame(0xEE, 0, 0, []byte("?")) }, http2.ErrCodeEnhanceYourCalm, ReasonFlood},
		{"CONTINUATION", func() func(r raw) error {
			begun := false
			return func(r raw) error {
				if !begun {
					begun = true
					return r.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: fragment})
				}
				return r.WriteContinuation(3, false, nil)
			}
		}(), http2.ErrCodeEnhanceYourCalm, ReasonFlood},
		{"a header without end", func() func(r raw) error {
			begun := false
			return func(r raw) error {
				if !begun {
					begun = true
					return r.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: fragment})
				}
				return r.WriteContinuation(3, false, make([]byte, 16000))
			}
		}(), http2.ErrCodeEnhanceYourCalm, ReasonFlood},
		{"large SETTINGS", func(r raw) error { return r.WriteRawFrame(http2.FrameSettings, 0, 0, make([]byte, 60_000)) }, http2.ErrCodeEnhanceYourCalm, ReasonFlood},
		{"a frame too large", func(r raw) error { return r.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, maxFrame+1)) }, http2.ErrCodeFrameSize, ReasonProtocol},
		{"more than the window", func(r raw) error { return r.WriteRawFrame(http2.FrameData, 0, 99, make([]byte, 1)) }, http2.ErrCodeProtocol, ReasonProtocol},
		{"DATA after the end", func() func(r raw) error {
			ended := false
			return func(r raw) error {
				if !ended {
					ended = true
					return r.WriteRSTStream(1, http2.ErrCodeCancel)
				}
				return r.WriteData(1, false, make([]byte, 16000))
			}
		}(), http2.ErrCodeEnhanceYourCalm, ReasonFlood},
		{"DATA on no stream", func(r raw) error { return r.WriteData(0, false, []byte("x")) }, http2.ErrCodeProtocol, ReasonProtocol},
		{"PUSH_PROMISE", func(r raw) error { return r.WriteRawFrame(http2.FramePushPromise, 4, 1, make([]byte, 8)) }, http2.ErrCodeProtocol, ReasonProtocol},
		{"an even stream", func(r raw) error { r.connect(4); return nil }, http2.ErrCodeProtocol, ReasonProtocol},
		{"broken HPACK", func(r raw) error {
			return r.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, EndHeaders: true, BlockFragment: []byte{0xFF, 0xFF, 0xFF, 0xFF, 0xFF}})
		}, http2.ErrCodeCompression, ReasonProtocol},
		{"the window overflows", func(r raw) error { return r.WriteWindowUpdate(0, windowLimit) }, http2.ErrCodeFlowControl, ReasonProtocol},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := m.listen(t, echo, func(_ *Config, l *limits) { l.calm = 10 * time.Millisecond })
			r := m.raw(t, w)
			r.connect(1)
			r.until(t, http2.FrameHeaders)
			stop := make(chan struct{})
			var sending sync.WaitGroup
			sending.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if tt.send(r) != nil {
						return
					}
				}
			})
			f := r.until(t, http2.FrameGoAway).(*http2.GoAwayFrame)
			if f.ErrCode != tt.code {
				t.Errorf("got %v, want %v", f.ErrCode, tt.code)
			}
			close(stop)
			r.Close()
			sending.Wait()
			waitFor(t, "the connection to end", func() bool { return w.Counters.Conns.Load() == 0 })
			if w.Counters.Refused(tt.reason) != 1 || w.Counters.Tunnels.Load() != 0 {
				t.Errorf("%d counted, %d tunnels:\n%s", w.Counters.Refused(tt.reason), w.Counters.Tunnels.Load(), w.log)
			}
		})
	}
}

// A peer that takes nothing is cut off, and its tunnels with it.
func TestPeerThatTakesNothing(t *testing.T) {
	m := newMesh(t)
	ended := make(chan error)
	w := m.listen(t, func(c net.Conn) {
		var err error
		for err == nil {
			_, err = c.Write(make([]byte, 1<<20))
		}
		c.Close()
		ended <- err
	}, func(_ *Config, l *limits) { l.writeTimeout = 50 * time.Millisecond })
	r := m.raw(t, w)
	r.connect(1)
	r.WriteWindowUpdate(0, 1<<30)
	r.WriteWindowUpdate(1, 1<<30)
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("ended with %v", err)
	}
	waitFor(t, "the connection to end", func() bool { return w.Counters.Conns.Load() == 0 })
}

// A tunnel that overruns its window is reset; the others live.
func TestOverrunWindow(t *testing.T) {
	m := newMesh(t)
	hold := make(chan struct{})
	defer close(hold)
	w := m.listen(t, func(c net.Conn) { <-hold; c.Close() })
	r := m.raw(t, w)
	r.connect(1)
	r.until(t, http2.FrameHeaders)
	for range baseWindow/16000 + 1 {
		r.WriteData(1, false, make([]byte, 16000))
	}
	if f := r.until(t, http2.FrameRSTStream).(*http2.RSTStreamFrame); f.ErrCode != http2.ErrCodeFlowControl {
		t.Error(f)
	}
	r.WriteData(1, false, []byte("late, and nobody minds"))
	r.connect(3)
	r.until(t, http2.FrameHeaders)
}

// The data of padded frames is what is not padding; both count.
func TestPadding(t *testing.T) {
	m := newMesh(t)
	got := make(chan string, 1)
	w := m.listen(t, func(c net.Conn) {
		b, _ := io.ReadAll(c)
		got <- string(b)
		c.Close()
	})
	r := m.raw(t, w)
	r.connect(1)
	// More than a window of it, so that padding has to be given back too.
	const frames = 4 * baseWindow / 256
	r.until(t, http2.FrameHeaders)
	window := baseWindow
	for range frames {
		for window < 256 {
			if f := r.until(t, http2.FrameWindowUpdate).(*http2.WindowUpdateFrame); f.StreamID == 1 {
				window += int(f.Increment)
			}
		}
		window -= 256
		r.WriteDataPadded(1, false, []byte("x"), make([]byte, 254))
	}
	r.WriteData(1, true, nil)
	if s := <-got; s != strings.Repeat("x", frames) {
		t.Errorf("got %d bytes", len(s))
	}
}

// A header block may come in pieces, and end with trailers.
func TestHeadersInPieces(t *testing.T) {
	m := newMesh(t)
	got := make(chan string, 1)
	w := m.listen(t, func(c net.Conn) {
		p, _ := PeerOf(c)
		b, _ := io.ReadAll(c)
		got <- p.Baggage + string(b)
		c.Close()
	})
	r := m.raw(t, w)
	b := block(":method", "CONNECT", ":authority", vip, "baggage", "a=b", "baggage", "c=d")
	r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:3]})
	r.WriteContinuation(1, false, b[3:9])
	r.WriteContinuation(1, true, b[9:])
	r.WriteData(1, false, []byte("data"))
	r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: block("trailer", "x")})
	if s := <-got; s != "a=b, c=ddata" {
		t.Errorf("got %q", s)
	}
}

// PINGs are answered.
func TestPings(t *testing.T) {
	m := newMesh(t)
	w := m.listen(t, echo)
	c := m.client(t, w)
	tunnel := connect(t, c)
	cc := c.Conns()[0]
	for range 3 {
		cc.Raw(func(f *http2.Framer) { f.WritePing(false, [8]byte{9}) })
	}
	waitFor(t, "answered PINGs", func() bool { return cc.Pings() >= 3 })
	exchange(t, tunnel, 1)
}

// A silent peer is asked after ten seconds, and given up when it has not answered for
// twenty; one that never begins, after ten.
func TestSilence(t *testing.T) {
	for _, begins := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			h := &handed{conns: make(chan net.Conn), closed: make(chan struct{})}
			l := newListener(h, Config{}, standardLimits)
			defer l.Close()
			near, far := net.Pipe()
			defer far.Close()
			h.conns <- near
			start := time.Now()
			f := http2.NewFramer(far, far)
			if begins {
				io.WriteString(far, http2.ClientPreface)
				f.WriteSettings()
			}
			var asked []time.Duration
			for {
				frame, err := f.ReadFrame()
				if err != nil {
					break
				}
				if _, ok := frame.(*http2.PingFrame); ok {
					asked = append(asked, time.Since(start).Round(time.Second))
					if len(asked) < 3 {
						f.WritePing(true, livePing)
					}
				}
			}
			want, end := []time.Duration(nil), 10*time.Second
			if begins {
				want, end = []time.Duration{10 * time.Second, 20 * time.Second, 30 * time.Second}, 50*time.Second
			}
			if took := time.Since(start).Round(time.Second); !slices.Equal(asked, want) || took != end {
				t.Errorf("asked at %v, ended at %v; want %v, %v", asked, took, want, end)
			}
		})
	}
}

// GOAWAY comes in two steps: what is on its way between them is served, what is open
// goes on, and the connection ends after the last.
func TestGoAwayInTwoSteps(t *testing.T) {
	m := newMesh(t)
	w := m.listen(t, echo)
	r := m.raw(t, w)
	r.connect(1)
	r.until(t, http2.FrameHeaders)
	w.Drain()
	if f := r.until(t, http2.FrameGoAway).(*http2.GoAwayFrame); f.LastStreamID != windowLimit || f.ErrCode != http2.ErrCodeNo {
		t.Error(f)
	}
	ping := r.until(t, http2.FramePing).(*http2.PingFrame).Data
	r.connect(3)
	if f := r.until(t, http2.FrameHeaders); f.Header().StreamID != 3 {
		t.Error(f)
	}
	r.WritePing(true, ping)
	if f := r.until(t, http2.FrameGoAway).(*http2.GoAwayFrame); f.LastStreamID != 3 || f.ErrCode != http2.ErrCodeNo {
		t.Error(f)
	}
	r.connect(5) // too late, and not answered
	for _, id := range []uint32{1, 3} {
		r.WriteData(id, true, []byte{byte(id)})
		for {
			f := r.until(t, http2.FrameData).(*http2.DataFrame)
			if f.StreamID != id {
				t.Fatal(f)
			}
			if f.StreamEnded() {
				break
			}
		}
	}
	if _, err := r.ReadFrame(); err != io.EOF {
		t.Errorf("the connection ends with %v", err)
	}
	r.Close()
	if err := w.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := w.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accepts: %v", err)
	}
}

// A tunnel that does not end is cut when the time is over.
func TestShutdownCuts(t *testing.T) {
	m := newMesh(t)
	w := m.listen(t, echo)
	tunnel := connect(t, m.client(t, w))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := w.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if _, err := tunnel.Read(make([]byte, 1)); err == nil {
		t.Error("it lives")
	}
}

// Uploads in 1,024-byte frames give no more than a window update now and then.
func TestSmallFramesAreNotAnsweredOneByOne(t *testing.T) {
	m := newMesh(t)
	w := m.listen(t, func(c net.Conn) { io.Copy(io.Discard, c); c.Close() })
	r := m.raw(t, w)
	r.connect(1)
	r.until(t, http2.FrameHeaders)
	const frames = 128
	for range frames {
		r.WriteData(1, false, make([]byte, 1024))
	}
	r.WriteData(1, true, nil)
	updates := 0
	for {
		f, err := r.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if f.Header().Type == http2.FrameWindowUpdate {
			updates++
		}
		if f, ok := f.(*http2.DataFrame); ok && f.StreamEnded() {
			break
		}
	}
	if updates > frames/16 {
		t.Errorf("%d window updates for %d frames", updates, frames)
	}
}
