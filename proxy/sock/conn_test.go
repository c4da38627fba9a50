package sock

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tcpPair gives both ends of a loopback connection.
func tcpPair(t testing.TB) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); d.Close() })
	return a.(*net.TCPConn), d.(*net.TCPConn)
}

func TestTimeout(t *testing.T) {
	// Each step sets a time-out, or none, after a pause; the read that is blocked
	// all the while must fail at the time given.
	type step struct{ pause, timeout time.Duration }
	const s = time.Second
	for _, tt := range []struct {
		name  string
		steps []step
		want  time.Duration
	}{
		{"once", []step{{0, s}}, s},
		{"moved on", []step{{0, s}, {s / 2, s}, {s / 2, s}}, 2 * s},
		{"shortened", []step{{0, 60 * s}, {s, s}}, 2 * s},
		{"shortened, then moved on", []step{{0, 60 * s}, {s, s}, {s / 2, 60 * s}}, 61*s + s/2},
		{"disarmed and armed again", []step{{0, s}, {s / 2, 0}, {10 * s, s}}, 11*s + s/2},
		{"moved on often", []step{{0, s}, {s - 1, s}, {s - 1, s}, {s - 1, s}, {s - 1, s}}, 5*s - 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				defer far.Close()
				c := New(near)
				defer c.Close()
				start := time.Now()
				ended := make(chan time.Duration)
				go func() {
					_, err := c.Read(make([]byte, 1))
					if !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Errorf("the read gave %v", err)
					}
					ended <- time.Since(start)
				}()
				for _, st := range tt.steps {
					time.Sleep(st.pause)
					if c.TimedOut() {
						t.Fatal("too early")
					}
					c.SetTimeout(st.timeout)
				}
				if got := <-ended; got < tt.want || got > tt.want+100*time.Millisecond {
					t.Errorf("over after %v, want %v", got, tt.want)
				}
				if !c.TimedOut() || !c.Interrupted() {
					t.Error("the connection does not say that it timed out")
				}
			})
		})
	}
}

func TestTimeoutAfterCloseDoesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		c := New(near)
		c.SetTimeout(time.Second)
		c.Close()
		c.SetTimeout(time.Second)
		time.Sleep(time.Minute)
		if c.TimedOut() {
			t.Error("a closed connection timed out")
		}
	})
}

func TestInterrupt(t *testing.T) {
	near, far := tcpPair(t)
	_ = far
	c := New(near)
	defer c.Close()
	failed := make(chan error, 2)
	go func() {
		_, err := c.Read(make([]byte, 1))
		failed <- err
	}()
	go func() {
		for {
			// The peer reads nothing: this blocks in the end.
			if _, err := c.Write(make([]byte, 1<<20)); err != nil {
				failed <- err
				return
			}
		}
	}()
	for range 10 {
		go c.Interrupt()
	}
	for range 2 {
		if err := <-failed; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	}
	if c.TimedOut() {
		t.Error("an interrupt is not a time-out")
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a read after the interrupt succeeded")
	}
}

// What there is to read, and the end, is seen without reading it.
func TestReadable(t *testing.T) {
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	for _, tt := range []struct {
		name   string
		secure bool
	}{{"TCP", false}, {"TLS", true}} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := tcpPair(t)
			near, far := net.Conn(a), net.Conn(b)
			if tt.secure {
				near = tls.Client(Under(a), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
				far = tls.Server(b, server.TLS)
				go far.(*tls.Conn).Handshake()
				if err := near.(*tls.Conn).Handshake(); err != nil {
					t.Fatal(err)
				}
			}
			c := New(near)
			defer c.Close()
			if c.raw == nil && !tt.secure {
				t.Skip("this system does not tell")
			}
			if c.Readable() {
				t.Error("there is nothing yet")
			}
			far.Write([]byte("abc"))
			for !c.Readable() {
				runtime.Gosched()
			}
			if n, err := c.Read(make([]byte, 10)); n != 3 || err != nil {
				t.Errorf("then %d bytes came: %v", n, err)
			}
			if c.Readable() {
				t.Error("nothing is left")
			}
			c.Unread([]byte("c"))
			if !c.Readable() {
				t.Error("something was given back")
			}
			c.Read(make([]byte, 1))
			far.Close()
			for !c.Readable() {
				runtime.Gosched()
			}
		})
	}
	t.Run("read ahead", func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		c := New(near)
		defer c.Close()
		c.Watch(newTold())
		c.Guard()
		if c.Readable() {
			t.Error("there is nothing yet")
		}
		far.Write([]byte("a"))
		for !c.Readable() {
			runtime.Gosched()
		}
	})
}

func TestReadableAlloc(t *testing.T) {
	near, _ := tcpPair(t)
	c := New(near)
	defer c.Close()
	if n := testing.AllocsPerRun(100, func() { c.Readable() }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestUnread(t *testing.T) {
	near, far := tcpPair(t)
	c := New(near)
	defer c.Close()
	far.Write([]byte("efg"))
	far.Close()
	c.Unread([]byte("cd"))
	c.Unread([]byte("ab"))
	all, err := io.ReadAll(c)
	if string(all) != "abcdefg" || err != nil {
		t.Errorf("got %q, %v", all, err)
	}
}

func TestNewKeepsConn(t *testing.T) {
	near, _ := tcpPair(t)
	c := New(near)
	if New(c) != c {
		t.Error("a Conn was wrapped twice")
	}
}

func TestWriteBuffers(t *testing.T) {
	near, far := tcpPair(t)
	c := New(near)
	v := net.Buffers{[]byte("one"), []byte("two")}
	if n, err := c.WriteBuffers(&v); n != 6 || err != nil {
		t.Fatal(n, err)
	}
	c.Close()
	all, _ := io.ReadAll(far)
	if string(all) != "onetwo" {
		t.Errorf("got %q", all)
	}
}

func TestResetIsNoEnd(t *testing.T) {
	near, far := tcpPair(t)
	New(near).Reset()
	if _, err := io.ReadAll(far); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("the peer read to an end: %v", err)
	}
}

// An answer that is cut must not look whole to who reads it to the end, which is what TLS says when it is closed.
func TestResetOfTLSIsNoEnd(t *testing.T) {
	site := httptest.NewTLSServer(nil) // for its certificate
	defer site.Close()
	near, far := tcpPair(t)
	roots := x509.NewCertPool()
	roots.AddCert(site.Certificate())
	server, client := tls.Server(Under(near), site.TLS), tls.Client(far, &tls.Config{RootCAs: roots, ServerName: "example.com"})
	shaken := make(chan error, 1)
	go func() { shaken <- client.Handshake() }()
	if err := errors.Join(server.Handshake(), <-shaken); err != nil {
		t.Fatal(err)
	}
	c := New(server)
	if _, err := c.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	c.Reset()
	if _, err := io.ReadAll(client); err == nil {
		t.Error("the peer read to an end")
	}
}

func TestSetTimeoutAllocatesNothing(t *testing.T) {
	near, _ := tcpPair(t)
	c := New(near)
	defer c.Close()
	c.SetTimeout(time.Minute)
	if n := testing.AllocsPerRun(100, func() { c.SetTimeout(time.Hour); c.SetTimeout(0) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkSetTimeout(b *testing.B) {
	near, _ := tcpPair(b)
	c := New(near)
	defer c.Close()
	for b.Loop() {
		c.SetTimeout(time.Minute)
	}
}

func BenchmarkSetDeadline(b *testing.B) {
	near, _ := tcpPair(b)
	for b.Loop() {
		near.SetReadDeadline(time.Now().Add(time.Minute))
	}
}

// counted lends buffers and counts how often.
type counted struct{ got, put atomic.Int32 }

func (l *counted) Get() []byte { l.got.Add(1); return make([]byte, 8) }
func (l *counted) Put([]byte)  { l.put.Add(1) }

// awaitable is a conn that tells when there is something to read.
type awaitable struct {
	net.Conn
	there chan struct{}
}

func (a *awaitable) Await() { <-a.there }

// Whoever waits for bytes holds no buffer, and has one as soon as they are there.
func TestReadLent(t *testing.T) {
	near, far := tcpPair(t)
	c := New(near)
	var l counted
	read := make(chan string)
	go func() {
		for {
			b, n, err := c.ReadLent(&l)
			read <- fmt.Sprintf("%s %v", b[:n], err)
			if err != nil {
				return
			}
		}
	}()
	for l.got.Load() == 0 || l.got.Load() != l.put.Load() { // it has tried
		runtime.Gosched()
	}
	far.Write([]byte("one"))
	if got := <-read; got != "one <nil>" {
		t.Errorf("read %q", got)
	}
	for l.got.Load() < l.put.Load()+1 || l.put.Load() < 2 {
		runtime.Gosched()
	}
	far.Close()
	if got := <-read; got != " EOF" {
		t.Errorf("read %q at the end", got)
	}
	if got, put := l.got.Load(), l.put.Load(); got != put+1 { // what was read is in the one
		t.Errorf("%d buffers taken, %d given back", got, put)
	}
}

func TestReadLentOfAwaitable(t *testing.T) {
	near, far := tcpPair(t)
	a := &awaitable{hidden{near}, make(chan struct{})}
	c := New(a)
	c.Unread([]byte("zero"))
	var l counted
	if b, n, err := c.ReadLent(&l); string(b[:n]) != "zero" || err != nil {
		t.Errorf("read %q, %v", b[:n], err)
	}
	far.Write([]byte("one"))
	read := make(chan string)
	go func() {
		b, n, err := c.ReadLent(&l)
		read <- fmt.Sprintf("%s %v", b[:n], err)
	}()
	if l.got.Load() != 1 {
		t.Error("a buffer was taken before there was anything to read")
	}
	close(a.there)
	if got := <-read; got != "one <nil>" {
		t.Errorf("read %q", got)
	}
}

func TestReadLentInterrupted(t *testing.T) {
	near, _ := tcpPair(t)
	c := New(near)
	c.Interrupt()
	var l counted
	if b, n, err := c.ReadLent(&l); b != nil || n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %q, %v", b[:n], err)
	}
	if l.got.Load() != l.put.Load() {
		t.Error("a buffer was kept")
	}
}
