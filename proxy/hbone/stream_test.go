package hbone

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/fairway-proxy/fairway/proxy/sock"
)

// accepted starts a waypoint whose tunnels come out of the channel.
func (m *mesh) accepted(t testing.TB, adjust ...func(*Config, *limits)) (*waypoint, chan half) {
	tunnels := make(chan half, 1000)
	w := m.listen(t, func(c net.Conn) { tunnels <- c.(half) }, adjust...)
	return w, tunnels
}

func wantRead(t testing.TB, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}

func wantEnd(t testing.TB, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read %d bytes, %v; want the end", n, err)
	}
}

// Each half ends by itself.
func TestHalves(t *testing.T) {
	m := newMesh(t)
	w, tunnels := m.accepted(t)
	client := connect(t, m.client(t, w))
	server := <-tunnels
	client.Write([]byte("request"))
	client.CloseWrite()
	wantRead(t, server, "request")
	wantEnd(t, server)
	wantEnd(t, server)
	server.Write([]byte("answer"))
	wantRead(t, client, "answer")
	server.CloseWrite()
	wantEnd(t, client)
	if _, err := server.Write([]byte("more")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("wrote after the end: %v", err)
	}
	server.Close()
	if err := server.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
	if _, err := server.Write([]byte("more")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("wrote after Close: %v", err)
	}
}

// A reset is no end, on either side, and what came before it can be read.
func TestReset(t *testing.T) {
	m := newMesh(t)
	w, tunnels := m.accepted(t)
	c := m.client(t, w)
	client := connect(t, c)
	server := <-tunnels
	client.Write([]byte("cut"))
	client.Reset(http2.ErrCodeCancel)
	wantRead(t, server, "cut")
	var reset *ResetError
	if _, err := server.Read(make([]byte, 1)); !errors.As(err, &reset) || reset.Code != http2.ErrCodeCancel || !reset.ByPeer || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %v", err)
	}
	if _, err := server.Write([]byte("more")); !errors.As(err, &reset) {
		t.Errorf("wrote: %v", err)
	}

	client = connect(t, c)
	server = <-tunnels
	server.(interface{ SetLinger(int) error }).SetLinger(0)
	server.Close()
	if _, err := client.Read(make([]byte, 1)); err == io.EOF {
		t.Error("a reset came as an end")
	}
	if n := w.Counters.Resets.Load(); n != 2 {
		t.Errorf("%d resets counted", n)
	}
}

// Close ends our half at once, and resets a peer that goes on after a while.
func TestCloseLingers(t *testing.T) {
	m := newMesh(t)
	w, tunnels := m.accepted(t, func(_ *Config, l *limits) { l.linger = 50 * time.Millisecond })
	client := connect(t, m.client(t, w))
	server := <-tunnels
	server.Close()
	wantEnd(t, client)
	for {
		if _, err := client.Write(make([]byte, 10_000)); err != nil {
			break
		}
	}
	waitFor(t, "the tunnel to end", func() bool { return w.Counters.Tunnels.Load() == 0 })
}

// Deadlines stop what waits, and can be moved after they have passed.
func TestDeadlines(t *testing.T) {
	m := newMesh(t)
	w, tunnels := m.accepted(t)
	client := connect(t, m.client(t, w))
	server := <-tunnels
	for range 3 {
		server.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		if _, err := server.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("read: %v", err)
		}
		server.SetReadDeadline(time.Time{})
		client.Write([]byte("late"))
		wantRead(t, server, "late")
	}
	server.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
	var err error
	for err == nil {
		_, err = server.Write(make([]byte, 1<<20)) // nobody reads
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("wrote: %v", err)
	}
	// As sock.Conn's Interrupt does it, while both wait.
	server.SetWriteDeadline(time.Time{})
	failed := make(chan error, 2)
	go func() {
		_, err := server.Read(make([]byte, 1))
		failed <- err
	}()
	go func() {
		var err error
		for err == nil {
			_, err = server.Write(make([]byte, 1<<20))
		}
		failed <- err
	}()
	server.SetDeadline(time.Unix(1, 0))
	for range 2 {
		if err := <-failed; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("interrupted: %v", err)
		}
	}
	server.Close()
}

// The watcher of a tunnel hears of its end though nobody reads.
func TestOnHangup(t *testing.T) {
	m := newMesh(t)
	w, tunnels := m.accepted(t)
	c := m.client(t, w)
	for _, end := range []string{"END_STREAM", "RST_STREAM", "connection", "before"} {
		client := connect(t, c)
		server := <-tunnels
		client.Write([]byte("unread"))
		told := make(chan struct{}, 2)
		watch := func() { server.(interface{ OnHangup(func()) }).OnHangup(func() { told <- struct{}{} }) }
		if end != "before" {
			watch()
		}
		switch end {
		case "END_STREAM":
			client.Close()
		case "RST_STREAM":
			client.Reset(http2.ErrCodeCancel)
		case "connection":
			c.Conns()[0].Close()
		case "before":
			client.Close()
			wantRead(t, server, "unread")
			wantEnd(t, server)
			watch()
		}
		<-told
		server.Close()
	}
}

// sock.Conn hears of a tunnel's end, and finds its Peer, as the proxy uses it.
func TestSock(t *testing.T) {
	m := newMesh(t)
	w, tunnels := m.accepted(t)
	client := connect(t, m.client(t, w))
	server := sock.New(<-tunnels)
	if p, ok := PeerOf(server); !ok || p.ID != m.id("client") {
		t.Errorf("found %+v", p)
	}
	told := make(hangup)
	server.Watch(told)
	buffers := net.Buffers{[]byte("head"), nil, []byte("body")}
	if n, err := server.WriteBuffers(&buffers); n != 8 || err != nil || len(buffers) != 0 {
		t.Errorf("wrote %d, %v", n, err)
	}
	wantRead(t, client, "headbody")
	client.Write([]byte("pipelined"))
	client.Close()
	<-told
	wantRead(t, server, "pipelined")
	server.Reset()
	waitFor(t, "the tunnel to end", func() bool { return w.Counters.Tunnels.Load() == 0 })
}

type hangup chan struct{}

func (h hangup) Hangup() { close(h) }

// Writers for whom there is no room get their turn in order, a frame each.
func TestWritersTakeTurns(t *testing.T) {
	c := newConn(&server{listener: &Listener{}}, false, script{}, &records{}, script{}, defaultBudget, &standardLimits)
	c.maxFrame, c.w.window, c.initial = dataFrame, windowLimit, windowLimit
	c.mu.Lock()
	defer c.mu.Unlock()
	streams := make([]*stream, 3)
	for i := range streams {
		s := c.newStream(uint32(2*i + 1))
		s.out = make([]byte, 4*dataFrame)
		c.w.queue.push(s)
		streams[i] = s
	}
	streams[2].window = dataFrame // and no more
	var turns []uint32
	for {
		c.pump()
		if c.w.pending == nil {
			break
		}
		if n := len(c.w.pending.b); n > pendingLimit {
			t.Errorf("%d bytes are pending", n)
		}
		f := http2.NewFramer(nil, bytes.NewReader(c.w.pending.b))
		for {
			h, err := f.ReadFrame()
			if err != nil {
				break
			}
			turns = append(turns, h.Header().StreamID)
		}
		c.w.pending = nil
	}
	if want := []uint32{1, 3, 5, 1, 3, 1, 3, 1, 3}; !slices.Equal(turns, want) {
		t.Errorf("got %v, want %v", turns, want)
	}
	// What the peer took too little of goes on when it takes more.
	if err := c.widen(streams[2], 10); err != nil || c.w.queue.first != streams[2] {
		t.Errorf("%v, and the queue has %v", err, c.w.queue.first)
	}
}

// A tunnel's window grows while it is read fast, within what there is for that, and
// what it grew by is given back.
func TestWindowGrows(t *testing.T) {
	b := NewBudget(8 << 20)
	c := &conn{budget: b, born: time.Now().Add(-time.Hour)}
	c.rtt.Store(int64(time.Hour))
	s := &stream{conn: c, credit: baseWindow, full: baseWindow}
	read := func(n int64) int64 {
		s.credit -= n
		return s.giveBack()
	}
	if got := read(baseWindow/8 - 1); got != 0 {
		t.Errorf("gave %d back for less than an eighth", got)
	}
	if got := read(1); got != baseWindow/8 {
		t.Errorf("gave %d back for the first eighth", got)
	}
	for want := int64(2 * baseWindow); want <= maxWindow; want *= 2 {
		read(s.full / 8)
		if s.full != want || s.credit != want {
			t.Fatalf("the window is %d with %d of credit, want %d", s.full, s.credit, want)
		}
	}
	read(s.full / 8)
	if s.full != maxWindow || b.grown.Load() != maxWindow-baseWindow {
		t.Errorf("the window is %d, %d taken of the budget", s.full, b.grown.Load())
	}
	other := &stream{conn: c, credit: baseWindow, full: baseWindow, gaveAt: c.now()}
	other.credit -= baseWindow / 8
	if other.giveBack(); other.full != 2*baseWindow {
		t.Errorf("the last of the budget was not given: %d", other.full)
	}
	other.credit -= other.full / 8
	if other.giveBack(); other.full != 2*baseWindow {
		t.Errorf("more than half of the budget was given: %d", other.full)
	}
	// A slow reader's stays.
	c.rtt.Store(1)
	slow := &stream{conn: c, credit: baseWindow - baseWindow/8, full: baseWindow, gaveAt: 1}
	if slow.giveBack(); slow.full != baseWindow {
		t.Errorf("a slow reader's window grew to %d", slow.full)
	}
	// While memory is short, no more than 64 KiB are out.
	b.held.Store(5 << 20)
	s.credit = 1000
	if s.giveBack(); s.credit != tightWindow {
		t.Errorf("%d of credit while memory is short", s.credit)
	}
	s.breakOff(nil)
	other.breakOff(nil)
	if b.grown.Load() != 0 {
		t.Errorf("%d bytes of the budget are lost", b.grown.Load())
	}
}

// A request and its answer allocate nothing but what TLS does.
func TestExchangeAllocatesNothing(t *testing.T) {
	m := newMesh(t)
	w := m.listen(t, echo, func(c *Config, _ *limits) { c.TLS = nil })
	d := m.dialer(w.Addr(), m.waypoint)
	d.TLS = nil
	c, err := d.DialContext(t.Context(), podAddress, m.id("waypoint"))
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1024)
	if n := testing.AllocsPerRun(200, func() {
		c.Write(p)
		io.ReadFull(c, p)
	}); n != 0 && !raceEnabled {
		t.Errorf("%v allocations", n)
	}
	c.Close()
	d.Close()
	waitFor(t, "the connection to end", func() bool { return d.Counters.Conns.Load() == 0 })
}

// What TLS says of its own accord, an alert or a new key, waits for no flush.
func TestWhatTLSSaysIsSent(t *testing.T) {
	near, far := net.Pipe()
	out := &records{Conn: near}
	c := newConn(&server{listener: &Listener{}}, false, near, out, out, defaultBudget, &standardLimits)
	go out.Write([]byte("new key"))
	wantRead(t, far, "new key")
	c.fail(errShutdown)
}
