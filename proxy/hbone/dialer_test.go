package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/net/http2"

	"github.com/fairway-proxy/fairway/bench/e2e/ztunnel"
	"github.com/fairway-proxy/fairway/mtls"
)

const podAddress = "127.0.0.1:8000"

// Trap 7: what is asked for is the pod's own address and port, the one that was
// dialled; a pod answers anything else with 400.
func TestTrap7AuthorityIsThePodsAddress(t *testing.T) {
	m := newMesh(t)
	asked := make(chan string, 2)
	_, d := m.podServer(t, func(s *ztunnel.Server) {
		s.Pod = netip.MustParseAddr("127.0.0.1")
		s.Status = func(authority string) int { asked <- authority; return 0 }
	})
	c, err := d.DialContext(t.Context(), podAddress, m.id("vllm"))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if got := <-asked; got != podAddress {
		t.Errorf("asked for %s", got)
	}
	_, elsewhere := m.podServer(t, func(s *ztunnel.Server) { s.Pod = netip.MustParseAddr("127.0.0.2") })
	_, err = elsewhere.DialContext(t.Context(), podAddress, m.id("vllm"))
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Status != 400 {
		t.Errorf("got %v", err)
	}
	if _, err := d.DialContext(t.Context(), "llama.default.svc:80", m.id("vllm")); err == nil {
		t.Error("dialled a name")
	}
}

// Trap 8: policies of the pod see our identity, not the client's, and the error says
// which that is and what to do.
func TestTrap8RefusalNamesOurIdentity(t *testing.T) {
	m := newMesh(t)
	_, d := m.podServer(t, func(s *ztunnel.Server) { s.Status = func(string) int { return 401 } })
	_, err := d.DialContext(t.Context(), podAddress, m.id("vllm"))
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Status != 401 || refused.Identity != m.id("waypoint") || refused.Address != podAddress {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"spiffe://cluster.local/ns/default/sa/waypoint", "policy", podAddress, "401"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %s", err, want)
		}
	}
	if d.Counters.Refused.Load() != 1 || d.Counters.Tunnels.Load() != 0 {
		t.Errorf("%d refused, %d open", d.Counters.Refused.Load(), d.Counters.Tunnels.Load())
	}
}

func TestRefusedByPod(t *testing.T) {
	m := newMesh(t)
	_, d := m.podServer(t, func(s *ztunnel.Server) { s.Handle = nil })
	closed := loopback(t)
	closed.Close()
	_, err := d.DialContext(t.Context(), closed.Addr().String(), m.id("vllm"))
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Status != 503 {
		t.Errorf("got %v", err)
	}
}

// Only the pod that is expected gets a tunnel.
func TestPodHasToBeWhoIsExpected(t *testing.T) {
	m := newMesh(t)
	_, d := m.podServer(t)
	var failed *ConnectError
	var why *mtls.Error
	if _, err := d.DialContext(t.Context(), podAddress, m.id("other")); !errors.As(err, &failed) || failed.Expected != m.id("other") || !errors.As(err, &why) || why.Reason != mtls.WrongIdentity {
		t.Errorf("got %v", err)
	}
	// A configuration that lets everybody in does not make it so.
	d.TLS = func(spiffeid.ID) *tls.Config { return m.ca.Client(m.pod) }
	if _, err := d.DialContext(t.Context(), podAddress, m.id("other")); !errors.As(err, &failed) {
		t.Errorf("got %v", err)
	}
}

// A pod that does not trust us says so only after the handshake.
func TestPodRejectsOurCertificate(t *testing.T) {
	m := newMesh(t)
	other, err := ztunnel.NewAuthority("elsewhere.org")
	if err != nil {
		t.Fatal(err)
	}
	us := m.source(t, other, "waypoint")
	_, d := m.podServer(t)
	d.TLS, d.Explain = func(id spiffeid.ID) *tls.Config { return us.ClientConfig(id) }, us.Explain
	_, err = d.DialContext(t.Context(), podAddress, m.id("vllm"))
	var failed *ConnectError
	if !errors.As(err, &failed) || failed.Identity.String() != other.ID("default", "waypoint") || !strings.Contains(err.Error(), "does not accept our certificate") {
		t.Errorf("got %v", err)
	}
}

func TestNobodyListens(t *testing.T) {
	m := newMesh(t)
	l := loopback(t)
	l.Close()
	d := m.dialer(l.Addr(), m.waypoint)
	defer d.Close()
	var failed *ConnectError
	if _, err := d.DialContext(t.Context(), podAddress, m.id("vllm")); !errors.As(err, &failed) || failed.Address != podAddress {
		t.Errorf("got %v", err)
	}
	if d.Counters.Dials.Load() != 1 {
		t.Errorf("%d dials", d.Counters.Dials.Load())
	}
}

// Connections are shared by a hundred tunnels, per address and identity.
func TestConnectionsAreShared(t *testing.T) {
	m := newMesh(t)
	s, d := m.podServer(t)
	tunnels := make([]half, openStreams+1)
	var all sync.WaitGroup
	for i := range tunnels {
		all.Go(func() {
			c, err := d.DialContext(t.Context(), fmt.Sprintf("127.0.0.1:%d", 8000+i), m.id("vllm"))
			if err != nil {
				t.Error(err)
				return
			}
			tunnels[i] = c.(half)
		})
	}
	all.Wait()
	if n := s.Seen(); n != 2 {
		t.Errorf("%d connections for %d tunnels", n, len(tunnels))
	}
	if n := d.Counters.Tunnels.Load(); n != int64(len(tunnels)) {
		t.Errorf("%d tunnels counted", n)
	}
	for _, c := range tunnels {
		exchange(t, c, 10)
	}
	waitFor(t, "the tunnels to end", func() bool { return d.Counters.Tunnels.Load() == 0 })
}

// A connection takes no more tunnels once a certificate that it rests on has expired;
// those that are open go on.
func TestConnectionsEndWithTheirCertificates(t *testing.T) {
	m := newMesh(t)
	_, d := m.podServer(t)
	first, err := d.DialContext(t.Context(), podAddress, m.id("vllm"))
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	role := onlyRole(t, d)
	if left := time.Until(role.proven); left <= 0 || left > 24*time.Hour {
		t.Fatalf("proven for %v", left)
	}
	role.proven = time.Now()
	second, err := d.DialContext(t.Context(), podAddress, m.id("vllm"))
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if n := d.Counters.Dials.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
	exchange(t, first.(half), 1000)
	exchange(t, second.(half), 1000)
	first.Close()
	waitFor(t, "the end of the first", func() bool { return d.Counters.Conns.Load() == 1 })

	// Nor does one that nobody uses.
	second.Close()
	waitFor(t, "the second to be idle", func() bool { return d.Counters.Tunnels.Load() == 0 })
	onlyRole(t, d).proven = time.Now()
	third, err := d.DialContext(t.Context(), podAddress, m.id("vllm"))
	if err != nil {
		t.Fatal(err)
	}
	third.Close()
	waitFor(t, "the end of the second", func() bool { return d.Counters.Conns.Load() == 1 })
}

// onlyRole is the one connection that a dialer has to any pod.
func onlyRole(t *testing.T, d *Dialer) *client {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.targets {
		if len(p.conns) == 1 {
			return p.conns[0]
		}
	}
	t.Fatal("not one connection")
	return nil
}

// A pod that takes fewer tunnels than we would open gets fewer.
func TestPodsLimitIsHonoured(t *testing.T) {
	m := newMesh(t)
	s, d := m.podServer(t, func(s *ztunnel.Server) { s.Streams = 3 })
	var all sync.WaitGroup
	tunnels := make([]half, 9)
	for i := range tunnels {
		c, err := d.DialContext(t.Context(), podAddress, m.id("vllm"))
		if err != nil {
			t.Fatal(err)
		}
		tunnels[i] = c.(half)
	}
	all.Wait()
	if n := s.Seen(); n != 3 {
		t.Errorf("%d connections", n)
	}
	for _, c := range tunnels {
		exchange(t, c, 10)
	}
}

// Before the 200, going away does not reset the stream: enough of these and ztunnel
// closes the connection, with every tunnel in it.
func TestCancelBeforeTheAnswer(t *testing.T) {
	m := newMesh(t)
	hold := make(chan struct{})
	var asked atomic.Int64
	var slow atomic.Bool
	_, d := m.podServer(t, func(s *ztunnel.Server) {
		s.Answer = func() {
			asked.Add(1)
			if slow.Load() {
				<-hold
			}
		}
	})
	live, err := d.DialContext(t.Context(), podAddress, m.id("vllm"))
	if err != nil {
		t.Fatal(err)
	}
	slow.Store(true)
	const cancelled = 80
	var all sync.WaitGroup
	ctx, cancel := context.WithCancelCause(t.Context())
	left := errors.New("the client left")
	for range cancelled {
		all.Go(func() {
			if _, err := d.DialContext(ctx, podAddress, m.id("vllm")); !errors.Is(err, left) {
				t.Errorf("got %v", err)
			}
		})
	}
	waitFor(t, "all to be asked", func() bool { return asked.Load() == cancelled+1 })
	cancel(left)
	all.Wait()
	close(hold)
	waitFor(t, "the streams to be reset", func() bool { return d.Counters.Tunnels.Load() == 1 })
	exchange(t, live.(half), 10_000)
	if n := d.Counters.Dials.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// A CONNECT that is not answered is given up.
func TestNoAnswer(t *testing.T) {
	m := newMesh(t)
	hold := make(chan struct{})
	_, d := m.podServer(t, func(s *ztunnel.Server) { s.Answer = func() { <-hold } })
	short := standardLimits
	short.answer = 20 * time.Millisecond
	d.limits = &short
	_, err := d.DialContext(t.Context(), podAddress, m.id("vllm"))
	var failed *ConnectError
	if !errors.As(err, &failed) || !errors.Is(err, errUnanswered) {
		t.Errorf("got %v", err)
	}
	close(hold)
}

// A change of policy resets tunnels, each alone.
func TestResetByPod(t *testing.T) {
	m := newMesh(t)
	s, d := m.podServer(t)
	c, err := d.DialContext(t.Context(), podAddress, m.id("vllm"))
	if err != nil {
		t.Fatal(err)
	}
	s.ResetTunnels(http2.ErrCodeCancel)
	var reset *ResetError
	if _, err := c.Read(make([]byte, 1)); !errors.As(err, &reset) || reset.Code != http2.ErrCodeCancel {
		t.Errorf("read %v", err)
	}
	c.Close()
	if c, err = d.DialContext(t.Context(), podAddress, m.id("vllm")); err != nil {
		t.Fatal(err)
	}
	exchange(t, c.(half), 10)
	if s.Seen() != 1 {
		t.Error("the connection was lost")
	}
}

// A pod's ztunnel that shuts down lets tunnels finish; new ones go to a new
// connection.
func TestPodDrains(t *testing.T) {
	m := newMesh(t)
	s, d := m.podServer(t)
	c, err := d.DialContext(t.Context(), podAddress, m.id("vllm"))
	if err != nil {
		t.Fatal(err)
	}
	s.Drain()
	role := c.(*stream).conn
	waitFor(t, "GOAWAY", func() bool {
		role.mu.Lock()
		defer role.mu.Unlock()
		return role.away
	})
	if _, err := d.DialContext(t.Context(), podAddress, m.id("vllm")); err == nil {
		t.Error("the drained connection was used, and nobody listens for another")
	}
	exchange(t, c.(half), 100_000)
	waitFor(t, "the connection to end", func() bool { return d.Counters.Conns.Load() == 0 })
}

// ENHANCE_YOUR_CALM kills every tunnel of a connection, and each says so.
func TestEnhanceYourCalm(t *testing.T) {
	m := newMesh(t)
	inner := loopback(t)
	d := m.dialer(inner.Addr(), m.waypoint)
	defer d.Close()
	go func() {
		c, err := tls.NewListener(inner, m.ca.Server(m.pod)).Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.ReadFull(c, make([]byte, len(http2.ClientPreface)))
		f := http2.NewFramer(c, c)
		f.WriteSettings()
		for {
			h, err := f.ReadFrame()
			if err != nil {
				return
			}
			if h.Header().Type == http2.FrameHeaders {
				f.WriteGoAway(0, http2.ErrCodeEnhanceYourCalm, []byte("too_many_resets"))
			}
		}
	}()
	defer inner.Close()
	_, err := d.DialContext(t.Context(), podAddress, m.id("vllm"))
	var away *GoAwayError
	if !errors.As(err, &away) || away.Code != http2.ErrCodeEnhanceYourCalm || away.Debug != "too_many_resets" {
		t.Errorf("got %v", err)
	}
	d.Close()
	waitFor(t, "the connection to end", func() bool { return d.Counters.Conns.Load() == 0 })
}

// The pods' windows hold us up, and no other tunnel.
func TestStalledPodHoldsUpNoOther(t *testing.T) {
	m := newMesh(t)
	hold := make(chan struct{})
	_, d := m.podServer(t, func(s *ztunnel.Server) {
		s.Handle = func(t *ztunnel.Tunnel) {
			if strings.HasSuffix(t.Authority, ":1") {
				<-hold
			}
			io.Copy(t, t)
			t.CloseWrite()
		}
	})
	stalled, err := d.DialContext(t.Context(), "127.0.0.1:1", m.id("vllm"))
	if err != nil {
		t.Fatal(err)
	}
	wrote := make(chan int)
	go func() {
		n, _ := stalled.Write(make([]byte, 8<<20))
		wrote <- n
	}()
	live, err := d.DialContext(t.Context(), "127.0.0.1:2", m.id("vllm"))
	if err != nil {
		t.Fatal(err)
	}
	exchange(t, live.(half), 1<<20)
	stalled.SetWriteDeadline(time.Unix(1, 0))
	if n := <-wrote; n > ztunnel.StreamWindow {
		t.Errorf("%d bytes were sent into a window of %d", n, ztunnel.StreamWindow)
	}
	stalled.(interface{ SetLinger(int) error }).SetLinger(0)
	stalled.Close()
	close(hold)
}

func TestDialerClosed(t *testing.T) {
	m := newMesh(t)
	_, d := m.podServer(t)
	c, err := d.DialContext(t.Context(), podAddress, m.id("vllm"))
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("read: %v", err)
	}
	if _, err := d.DialContext(t.Context(), podAddress, m.id("vllm")); !errors.Is(err, errDialerClosed) {
		t.Errorf("dialled: %v", err)
	}
}

var drainFor = flag.Duration("drain", time.Second, "how long TestDrainUnderLoad goes on")

// handed is a listener whose connections are handed to it.
type handed struct {
	net.Listener
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (h *handed) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *handed) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

func (h *handed) SetDeadline(time.Time) error { return h.Close() }

// A waypoint is replaced over and over: the new one takes the connections from now on,
// the old one drains. An independent client that opens 200 tunnels a second, and learns
// of it by GOAWAY alone, loses none in a thousand.
func TestDrainUnderLoad(t *testing.T) {
	m := newMesh(t)
	front := loopback(t)
	listen := func() (*waypoint, *handed) {
		h := &handed{Listener: front, conns: make(chan net.Conn), closed: make(chan struct{})}
		return m.listenOn(t, h, echo), h
	}
	w, h := listen()
	current := atomic.Pointer[handed]{}
	current.Store(h)
	var accepting, calling sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := front.Accept()
			if err != nil {
				return
			}
			for taken := false; !taken; {
				h := current.Load()
				select {
				case h.conns <- c:
					taken = true
				case <-h.closed: // in this moment: there is a new one
				}
			}
		}
	})

	const rate = 200
	c := m.client(t, w)
	var opened, lost atomic.Int64
	one := func() {
		opened.Add(1)
		tunnel, err := c.Connect(t.Context(), ztunnel.Request{Authority: vip})
		if err == nil {
			if _, err = tunnel.Write([]byte("ping")); err == nil {
				tunnel.CloseWrite()
				var b []byte
				if b, err = io.ReadAll(tunnel); err == nil && string(b) != "ping" {
					err = io.ErrUnexpectedEOF
				}
			}
		}
		if err != nil {
			lost.Add(1)
			t.Log(err)
		}
	}
	stop := make(chan struct{})
	calling.Go(func() {
		var tunnels sync.WaitGroup
		defer tunnels.Wait()
		tick := time.NewTicker(time.Second / rate)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				tunnels.Go(one)
			}
		}
	})
	drains := 0
	for began := time.Now(); drains < 3 || time.Since(began) < *drainFor; drains++ {
		at := opened.Load()
		waitFor(t, "tunnels", func() bool { return opened.Load() > at+20 })
		old := w
		w, h = listen()
		current.Store(h)
		if err := old.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	calling.Wait()
	front.Close()
	accepting.Wait()
	t.Logf("%d tunnels, %d drains, %d lost", opened.Load(), drains, lost.Load())
	if lost.Load()*1000 > opened.Load() {
		t.Errorf("lost %d of %d", lost.Load(), opened.Load())
	}
}
