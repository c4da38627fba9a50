package upstream

import (
	"context"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// option reads one option of a connection's socket.
func option(t testing.TB, c net.Conn, level, name int) int {
	t.Helper()
	rc, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var value int
	if cerr := rc.Control(func(fd uintptr) { value, err = unix.GetsockoptInt(int(fd), level, name) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return value
}

func TestSocketOptions(t *testing.T) {
	e := listen(t)
	c := e.get(t)
	for _, tt := range []struct {
		name        string
		level, what int
		want        int
	}{
		{"TCP_USER_TIMEOUT, ms", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 20_000},
		{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{"TCP_KEEPIDLE, s", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
		{"TCP_KEEPINTVL, s", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 5},
		{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3},
		{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
	} {
		if got := option(t, c.sock.Conn, tt.level, tt.what); got != tt.want {
			t.Errorf("%s is %d, want %d", tt.name, got, tt.want)
		}
	}
}

// Of what is not a request nobody knows when the endpoint will take more of it: one that does not read is not taken for
// one that has gone, as TCP_USER_TIMEOUT has it.
func TestEndpointMayTakeItsTime(t *testing.T) {
	e := listen(t)
	nc, err := e.transport.DialRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	e.accept(t)
	if got := option(t, nc, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); got != 0 {
		t.Errorf("of what is passed on unread TCP_USER_TIMEOUT is %d ms", got)
	}
	c := e.get(t)
	r := get("/")
	r.Upgrade = []byte("websocket")
	if err := c.Send(r); err != nil {
		t.Fatal(err)
	}
	io.WriteString(e.accept(t), "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
	var head message.Response
	if err := c.ReadHead(&head); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Tunnel(); err != nil {
		t.Fatal(err)
	}
	if got := option(t, c.sock.Conn, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); got != 0 {
		t.Errorf("of a WebSocket TCP_USER_TIMEOUT is %d ms", got)
	}
}

// crowded gives the address of a listener that answers no further connection:
// its queue is full, and Linux drops the SYN of whoever comes then.
func crowded(t testing.TB) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "crowded")
	t.Cleanup(func() { f.Close() })
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: name.(*unix.SockaddrInet4).Port}).String()
	for range 16 {
		// Of a listener, Unacked is how long its queue is and Sacked how long it may be: one more is let in.
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			t.Fatal(err)
		}
		if info.Unacked > info.Sacked {
			return address
		}
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Skip("this system's queue of connections has no end")
	return ""
}

func TestConnectTimeout(t *testing.T) {
	tr := &Transport{Address: crowded(t)}
	t.Run("of the endpoint", func(t *testing.T) {
		tr.SetConnectTimeout(50 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), tooLong)
		defer cancel()
		_, err := tr.Get(ctx)
		d, ok := err.(*DialError)
		if !ok {
			t.Fatalf("got %v", err)
		}
		if e, ok := d.Err.(net.Error); !ok || !e.Timeout() || Exhausted(err) {
			t.Errorf("got %v", err)
		}
	})
	// Without a bound of its own it is the caller who ends it.
	t.Run("of the caller", func(t *testing.T) {
		tr.SetConnectTimeout(0)
		ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, os.ErrProcessDone)
		defer cancel()
		if _, err := tr.Get(ctx); err != os.ErrProcessDone {
			t.Errorf("got %v, not the cause of the context", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		tr.SetConnectTimeout(tooLong)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancel)
		if _, err := tr.Get(ctx); err != context.Canceled {
			t.Errorf("got %v", err)
		}
	})
}
