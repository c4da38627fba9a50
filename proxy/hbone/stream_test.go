package hbone

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
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
