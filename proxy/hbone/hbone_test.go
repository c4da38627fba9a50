package hbone

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/fairway-proxy/fairway/bench/e2e/ztunnel"
	"github.com/fairway-proxy/fairway/mtls"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mesh is a trust domain with one of each: a calling ztunnel, a waypoint and a pod's
// ztunnel.
type mesh struct {
	ca          *ztunnel.Authority
	caller, pod tls.Certificate
	waypoint    *mtls.Source // ours
}

func newMesh(t testing.TB) *mesh {
	t.Helper()
	ca, err := ztunnel.NewAuthority("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{ca: ca}
	m.caller = m.issue(t, "default", "client")
	m.waypoint = m.source(t, m.ca, "waypoint")
	m.pod = m.issue(t, "default", "vllm")
	return m
}

func (m *mesh) issue(t testing.TB, namespace, account string) tls.Certificate {
	t.Helper()
	cert, err := m.ca.Issue(m.ca.ID(namespace, account), time.Now().Add(-time.Minute), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// source is an identity of ours, by a CA that may be another's, in a mesh with m's
// roots.
func (m *mesh) source(t testing.TB, ca *ztunnel.Authority, account string) *mtls.Source {
	t.Helper()
	cert, err := ca.Issue(ca.ID("default", account), time.Now().Add(-time.Minute), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	roots := map[spiffeid.TrustDomain][]*x509.Certificate{}
	for _, a := range []*ztunnel.Authority{m.ca, ca} {
		roots[spiffeid.RequireTrustDomainFromString(a.Domain)] = []*x509.Certificate{a.Cert}
	}
	s := mtls.Open(mtls.Identity{Certificate: cert, Roots: roots}, nil)
	t.Cleanup(s.Close)
	return s
}

func (m *mesh) id(account string) spiffeid.ID {
	return spiffeid.RequireFromString(m.ca.ID("default", account))
}

// log collects lines of a log.
type log struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *log) lines() int { return strings.Count(l.String(), "\n") }

// waypoint is a Listener that echoes, unless the test says otherwise.
type waypoint struct {
	*Listener
	log     *log
	serving sync.WaitGroup
}

// echo sends back what comes, and ends when it ends.
func echo(c net.Conn) {
	defer c.Close()
	io.Copy(c, c)
	c.(interface{ CloseWrite() error }).CloseWrite()
}

// listen starts a waypoint on loopback.
func (m *mesh) listen(t testing.TB, serve func(net.Conn), adjust ...func(*Config, *limits)) *waypoint {
	t.Helper()
	return m.listenOn(t, loopback(t), serve, adjust...)
}

func (m *mesh) listenOn(t testing.TB, inner net.Listener, serve func(net.Conn), adjust ...func(*Config, *limits)) *waypoint {
	t.Helper()
	w := &waypoint{log: new(log)}
	config := Config{TLS: m.waypoint.ServerConfig(), Explain: m.waypoint.Explain, Log: slog.New(slog.NewTextHandler(w.log, nil))}
	l := standardLimits
	for _, a := range adjust {
		a(&config, &l)
	}
	w.Listener = newListener(inner, config, l)
	w.serving.Go(func() {
		for {
			c, err := w.Accept()
			if err != nil {
				return
			}
			w.serving.Go(func() { serve(c) })
		}
	})
	t.Cleanup(func() {
		w.Close()
		w.serving.Wait()
	})
	return w
}

// client is a calling ztunnel.
func (m *mesh) client(t testing.TB, w *waypoint) *ztunnel.Client {
	c := &ztunnel.Client{Address: w.Addr().String(), TLS: m.ca.Client(m.caller, m.ca.ID("default", "waypoint"))}
	t.Cleanup(c.Close)
	return c
}

// podServer is a pod's ztunnel, whose tunnels echo unless the test says otherwise.
func (m *mesh) podServer(t testing.TB, adjust ...func(*ztunnel.Server)) (*ztunnel.Server, *Dialer) {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &ztunnel.Server{TLS: m.ca.Server(m.pod), Handle: func(t *ztunnel.Tunnel) {
		io.Copy(t, t)
		t.CloseWrite()
	}}
	for _, a := range adjust {
		a(s)
	}
	s.Serve(inner)
	d := m.dialer(inner.Addr(), m.waypoint)
	t.Cleanup(func() {
		d.Close()
		s.Close()
		waitFor(t, "the dialer's connections to end", func() bool { return d.Counters.Conns.Load() == 0 })
	})
	return s, d
}

// dialer makes tunnels by way of the ztunnel at that address.
func (m *mesh) dialer(ztunnel net.Addr, us *mtls.Source) *Dialer {
	return &Dialer{
		Port:    ztunnel.(*net.TCPAddr).AddrPort().Port(),
		TLS:     func(id spiffeid.ID) *tls.Config { return us.ClientConfig(id) },
		Explain: us.Explain,
	}
}

// waitFor waits until something that has been set off has happened.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	limit := time.NewTimer(20 * time.Second)
	defer limit.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

const vip = "10.96.0.7:80"

func connect(t testing.TB, c *ztunnel.Client) *ztunnel.Tunnel {
	t.Helper()
	tunnel, err := c.Connect(t.Context(), ztunnel.Request{Authority: vip})
	if err != nil {
		t.Fatal(err)
	}
	return tunnel
}

func TestTunnelIn(t *testing.T) {
	m := newMesh(t)
	peers := make(chan *Peer, 1)
	w := m.listen(t, func(c net.Conn) {
		p, _ := PeerOf(c)
		peers <- p
		echo(c)
	})
	c := m.client(t, w)
	tunnel, err := c.Connect(t.Context(), ztunnel.Request{
		Authority: vip, Forwarded: `for="10.1.2.3:4567";host=llama.default.svc.cluster.local`,
		Baggage: "k8s.cluster.name=Kubernetes", Traceparent: "00-1-2-01",
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(tunnel.Fields) != 0 {
		t.Errorf("the 200 has fields: %v", tunnel.Fields)
	}
	p := <-peers
	want := Peer{
		ID: m.id("client"), Destination: netip.MustParseAddrPort(vip), Authority: vip,
		Forwarded: netip.MustParseAddrPort("10.1.2.3:4567"), ForwardedHost: "llama.default.svc.cluster.local",
		Baggage: "k8s.cluster.name=Kubernetes", Traceparent: "00-1-2-01", Remote: p.Remote,
	}
	if *p != want {
		t.Errorf("got %+v, want %+v", *p, want)
	}
	exchange(t, tunnel, 3<<20)
	waitFor(t, "the tunnel to end", func() bool { return w.Counters.Tunnels.Load() == 0 })
	if w.log.lines() != 0 {
		t.Error(w.log)
	}
}

func TestTunnelOut(t *testing.T) {
	m := newMesh(t)
	s, d := m.podServer(t)
	for range 3 {
		c, err := d.DialContext(t.Context(), "127.0.0.1:8000", m.id("vllm"))
		if err != nil {
			t.Fatal(err)
		}
		p, ok := PeerOf(c)
		if !ok || p.ID != m.id("vllm") || p.Authority != "127.0.0.1:8000" || p.Baggage != "k8s.pod.name=pod" {
			t.Errorf("got %+v", p)
		}
		exchange(t, c.(half), 3<<20)
	}
	if s.Seen() != 1 {
		t.Errorf("%d connections", s.Seen())
	}
}

// half is a connection with halves.
type half interface {
	net.Conn
	CloseWrite() error
}

// exchange sends n bytes, ends, and wants them back with the end.
func exchange(t testing.TB, c half, n int) {
	t.Helper()
	sent := pattern(n)
	go func() {
		c.Write(sent)
		c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || len(got) != n {
		t.Fatalf("got %d bytes of %d back, %v", len(got), n, err)
	}
	if string(got) != string(sent) {
		t.Fatal("other bytes came back")
	}
	c.Close()
}

// pattern is n bytes of which none look like their neighbours.
func pattern(n int) []byte {
	p := make([]byte, n)
	x := uint32(1)
	for i := range p {
		x = x*1664525 + 1013904223
		p[i] = byte(x >> 24)
	}
	return p
}

// Both ends are ours: the waypoint of one namespace calls that of another.
func TestTunnelThrough(t *testing.T) {
	m := newMesh(t)
	w := m.listen(t, echo)
	d := m.dialer(w.Addr(), m.waypoint)
	defer d.Close()
	var all sync.WaitGroup
	for range 150 {
		all.Go(func() {
			c, err := d.DialContext(t.Context(), "127.0.0.1:80", m.id("waypoint"))
			if err != nil {
				t.Error(err)
				return
			}
			exchange(t, c.(half), 100_000)
		})
	}
	all.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := w.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	waitFor(t, "the dialer's connections to end", func() bool { return d.Counters.Conns.Load() == 0 })
}
