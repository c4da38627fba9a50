package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
	"github.com/fairway-proxy/fairway/proxy/h1"
	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tooLong is when a test gives up waiting for what should have happened.
const tooLong = 2 * time.Minute

// engine is the far end of a Transport: a listener that hands out what it
// accepted.
type engine struct {
	transport *Transport
	accepted  chan *net.TCPConn
}

// listen starts an engine that accepts, until the test ends.
func listen(t testing.TB) *engine {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{&Transport{Address: l.Addr().String()}, make(chan *net.TCPConn, 4096)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			e.accepted <- c.(*net.TCPConn)
		}
	}()
	t.Cleanup(func() {
		e.transport.Close()
		l.Close()
		<-ended
		for close(e.accepted); ; {
			c, more := <-e.accepted
			if !more {
				return
			}
			c.Close()
		}
	})
	return e
}

// get gives a connection of the transport. It is closed when the test ends, if
// it has not been put back.
func (e *engine) get(t testing.TB) *Conn {
	t.Helper()
	c, err := e.transport.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.transport.mu.Lock()
		defer e.transport.mu.Unlock()
		if !c.resting {
			c.Close()
		}
	})
	return c
}

// accept gives the engine's end of the next connection.
func (e *engine) accept(t testing.TB) *net.TCPConn {
	t.Helper()
	select {
	case c := <-e.accepted:
		t.Cleanup(func() { c.Close() })
		return c
	case <-time.After(tooLong):
		t.Fatal("nobody connected")
		return nil
	}
}

// until waits for what another goroutine of the system brings about.
func until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(tooLong); !holds(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%s: never", what)
		}
	}
}

// closed tells whether our end of a connection is closed.
func closed(c *Conn) bool { return errors.Is(c.sock.SetReadDeadline(time.Time{}), net.ErrClosed) }

// piped is a connection of t without a network, which a bubble's time rules.
func piped(t testing.TB, tr *Transport) *Conn {
	t.Helper()
	near, far := net.Pipe()
	s := sock.New(near)
	c := &Conn{wire: http1{h1.NewClientConn(s)}, sock: s, transport: tr}
	t.Cleanup(func() { c.Close(); far.Close() })
	return c
}

// alive tells whether a piped connection is open.
func alive(c *Conn) bool { return c.sock.SetReadDeadline(time.Time{}) == nil }

// The connection used last is the one used next: the others grow old and go.
func TestReuseIsLIFO(t *testing.T) {
	e := listen(t)
	a, b, c := e.get(t), e.get(t), e.get(t)
	if a == b || b == c || a == c {
		t.Fatal("a connection was given twice")
	}
	for _, conn := range []*Conn{b, a, c} {
		e.transport.Put(conn)
	}
	if n := e.transport.Idle(); n != 3 {
		t.Errorf("%d wait", n)
	}
	got := []*Conn{e.get(t), e.get(t), e.get(t)}
	if want := []*Conn{c, a, b}; !slices.Equal(got, want) {
		t.Errorf("got %p, want %p", got, want)
	}
	if n := e.transport.Idle(); n != 0 {
		t.Errorf("%d wait", n)
	}
	if d := e.get(t); slices.Contains(got, d) {
		t.Error("a connection in use was given")
	}
}

// Dial leaves those that wait where they are: a request that an idle connection
// failed is not failed by a second one.
func TestDialIsNew(t *testing.T) {
	e := listen(t)
	a := e.get(t)
	e.transport.Put(a)
	b, err := e.transport.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if a == b || e.transport.Idle() != 1 {
		t.Errorf("the same %v, %d wait", a == b, e.transport.Idle())
	}
}

func TestKeepIdle(t *testing.T) {
	const ms = time.Millisecond
	for _, tt := range []struct {
		name string
		put  []time.Duration // when each connection is put back
		get  time.Duration   // when one is asked for
		want int             // which is given; -1: none
		idle int             // left then
	}{
		{"at once", []time.Duration{0, 0}, 0, 1, 1},
		{"just in time", []time.Duration{0}, KeepIdle, 0, 0},
		{"just too late", []time.Duration{0}, KeepIdle + ms, -1, 0},
		{"all too old", []time.Duration{0, 1000 * ms, 2000 * ms}, KeepIdle + 2001*ms, -1, 0},
		{"the youngest is not", []time.Duration{0, 3000 * ms}, KeepIdle + ms, 1, 1},
		{"put drops the old", []time.Duration{0, 500 * ms, 2000 * ms, KeepIdle + 501*ms}, KeepIdle + 501*ms, 3, 1},
		{"put drops all", []time.Duration{0, 0, KeepIdle + ms}, KeepIdle + ms, 2, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tr := &Transport{Address: "nowhere:0"}
				var conns []*Conn
				start := time.Now()
				for _, at := range tt.put {
					<-time.After(at - time.Since(start))
					c := piped(t, tr)
					conns = append(conns, c)
					tr.Put(c)
				}
				<-time.After(tt.get - time.Since(start))
				got := tr.rested()
				if (got == nil) != (tt.want < 0) || got != nil && got != conns[tt.want] {
					t.Errorf("got %d", slices.Index(conns, got))
				}
				if n := tr.Idle(); n != tt.idle {
					t.Errorf("%d wait, want %d", n, tt.idle)
				}
				open := 0
				for _, c := range conns {
					if alive(c) {
						open++
					}
				}
				if want := tt.idle + min(tt.want+1, 1); open != want {
					t.Errorf("%d are open, want %d", open, want)
				}
			})
		})
	}
}

// A connection that is too old is replaced by a new one.
func TestKeepIdleDials(t *testing.T) {
	e := listen(t)
	old := e.get(t)
	e.transport.Put(old)
	e.transport.mu.Lock()
	old.idleSince = old.idleSince.Add(-KeepIdle - time.Millisecond)
	e.transport.mu.Unlock()
	if c := e.get(t); c == old || closed(c) || !closed(old) {
		t.Errorf("the same %v, closed %v, the old one %v", c == old, closed(c), closed(old))
	}
}

func TestHangup(t *testing.T) {
	for _, end := range []struct {
		name string
		end  func(*net.TCPConn)
	}{
		{"closed", func(c *net.TCPConn) { c.Close() }},
		{"half-closed", func(c *net.TCPConn) { c.CloseWrite() }},
		{"reset", func(c *net.TCPConn) { c.SetLinger(0); c.Close() }},
		{"closed with a word", func(c *net.TCPConn) { c.Write([]byte("HTTP/1.1 408 Request Timeout\r\n\r\n")); c.Close() }},
	} {
		t.Run(end.name+" while idle", func(t *testing.T) {
			e := listen(t)
			var ours []*Conn
			var theirs []*net.TCPConn
			for range 3 {
				ours, theirs = append(ours, e.get(t)), append(theirs, e.accept(t))
			}
			for _, c := range ours {
				e.transport.Put(c)
			}
			end.end(theirs[1])
			until(t, "the connection is given up", func() bool { return e.transport.Idle() == 2 })
			if !closed(ours[1]) || closed(ours[0]) || closed(ours[2]) {
				t.Error("not that one was closed, or another")
			}
			if got := []*Conn{e.get(t), e.get(t)}; !slices.Equal(got, []*Conn{ours[2], ours[0]}) {
				t.Errorf("got %p", got)
			}
		})
		t.Run(end.name+" while in use", func(t *testing.T) {
			e := listen(t)
			c := e.get(t)
			end.end(e.accept(t))
			until(t, "the hang-up is told", func() bool {
				e.transport.mu.Lock()
				defer e.transport.mu.Unlock()
				return c.hungUp
			})
			if closed(c) {
				t.Error("it was closed under its user, who may have bytes to read")
			}
			e.transport.Put(c)
			if !closed(c) || e.transport.Idle() != 0 {
				t.Error("it was kept")
			}
		})
	}
}

// exchange sends a request on c, and has the engine give that answer, and reads its head.
func exchange(t testing.TB, c *Conn, engine *net.TCPConn, answer string) {
	t.Helper()
	if err := c.Send(get("/"), nil); err != nil {
		t.Fatal(err)
	}
	io.WriteString(engine, answer)
	var head message.Response
	if err := c.ReadHead(&head); err != nil {
		t.Fatal(err)
	}
}

func TestPut(t *testing.T) {
	const answer = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"
	next := func(c *Conn) { c.Next() }
	for _, tt := range []struct {
		name   string
		answer string
		then   func(*Conn)
		kept   bool
	}{
		{"read to its end", answer, next, true},
		{"without a body", "HTTP/1.1 204 No Content\r\n\r\n", func(*Conn) {}, true},
		{"not read", answer, func(*Conn) {}, false},
		{"not all there", answer[:len(answer)-1], next, false},
		{"more than declared", answer + "d", next, false},
		{"told to close", "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc", next, false},
		{"1.0", "HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nabc", next, false},
		{"asked again", answer, func(c *Conn) { c.Next(); c.Send(get("/"), nil) }, false},
		{"interrupted", answer, func(c *Conn) { c.Next(); c.sock.Interrupt() }, false},
		{"closed", answer, func(c *Conn) { c.Next(); c.Close() }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := listen(t)
			c := e.get(t)
			exchange(t, c, e.accept(t), tt.answer)
			tt.then(c)
			e.transport.Put(c)
			if kept := e.transport.Idle() == 1; kept != tt.kept || closed(c) == tt.kept {
				t.Errorf("kept %v, closed %v", kept, closed(c))
			}
		})
	}
}

// What an engine says without having been asked is the answer to no request.
func TestUnaskedFor(t *testing.T) {
	const answer = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"
	e := listen(t)
	older, younger := e.get(t), e.get(t)
	first, second := e.accept(t), e.accept(t)
	for c, engine := range map[*Conn]*net.TCPConn{older: first, younger: second} {
		exchange(t, c, engine, answer)
		c.Next()
	}
	e.transport.Put(older)
	e.transport.Put(younger)
	io.WriteString(second, answer)
	until(t, "it arrives", younger.sock.Readable)
	if got := e.get(t); got != older || !closed(younger) {
		t.Errorf("got the one that is to be asked: %v; the other was closed: %v", got == older, closed(younger))
	}
	e.transport.Put(older)
	io.WriteString(first, "\r\n")
	until(t, "it arrives", older.sock.Readable)
	if got := e.get(t); got == older || !closed(older) || e.transport.Idle() != 0 {
		t.Error("got the one that has something to say of itself")
	}
}

// A time-out of the last request does not end the wait for the next.
func TestPutDisarms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := &Transport{}
		c := piped(t, tr)
		c.sock.SetTimeout(time.Second)
		tr.Put(c)
		<-time.After(KeepIdle)
		if got := tr.rested(); got != c || c.sock.Interrupted() {
			t.Errorf("got %p, interrupted %v", got, c.sock.Interrupted())
		}
	})
}

func TestClose(t *testing.T) {
	e := listen(t)
	used, idle := e.get(t), e.get(t)
	e.transport.Put(idle)
	e.transport.Close()
	if !closed(idle) || closed(used) || e.transport.Idle() != 0 {
		t.Errorf("closed: idle %v, used %v; %d wait", closed(idle), closed(used), e.transport.Idle())
	}
	for name, connect := range map[string]func(context.Context) (*Conn, error){"Get": e.transport.Get, "Dial": e.transport.Dial} {
		if c, err := connect(t.Context()); c != nil || !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v, %v", name, c, err)
		}
	}
	e.transport.Put(used)
	if !closed(used) || e.transport.Idle() != 0 {
		t.Error("what is put back after Close is kept")
	}
	e.transport.Close() // again
}

func TestDialErrors(t *testing.T) {
	why := errors.New("the client left")
	left, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	over, stop := context.WithDeadline(t.Context(), time.Unix(1, 0))
	defer stop()
	for _, tt := range []struct {
		name    string
		address string
		ctx     context.Context
		want    error
		dial    bool // is it the endpoint's fault
	}{
		{"refused", process.ClosedAddress(t), t.Context(), syscall.ECONNREFUSED, true},
		{"no such port", "127.0.0.1:100000", t.Context(), nil, true},
		{"no port", "127.0.0.1", t.Context(), nil, true},
		{"cancelled", process.ClosedAddress(t), left, why, false},
		{"too late", process.ClosedAddress(t), over, context.DeadlineExceeded, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr := &Transport{Address: tt.address}
			c, err := tr.Get(tt.ctx)
			if c != nil || err == nil {
				t.Fatalf("got %v, %v", c, err)
			}
			if tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			d, ok := errors.AsType[*DialError](err)
			if ok != tt.dial || ok && d.Address != tt.address {
				t.Errorf("a DialError: %v; %v", ok, err)
			}
			if Exhausted(err) {
				t.Errorf("%v is taken for a lack of ours", err)
			}
		})
	}
}

func TestExhausted(t *testing.T) {
	dial := func(errno syscall.Errno) error {
		return &DialError{"a:1", &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("socket", errno)}}
	}
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{dial(syscall.EMFILE), true},
		{dial(syscall.ENFILE), true},
		{dial(syscall.ENOBUFS), true},
		{dial(syscall.ENOMEM), true},
		{dial(syscall.EADDRNOTAVAIL), true},
		{fmt.Errorf("GET /: %w", dial(syscall.EMFILE)), true},
		{dial(syscall.ECONNREFUSED), false},
		{dial(syscall.EHOSTUNREACH), false},
		{dial(syscall.ETIMEDOUT), false},
		{os.ErrDeadlineExceeded, false},
		{context.Canceled, false},
		{ErrClosed, false},
		{nil, false},
	} {
		if got := Exhausted(tt.err); got != tt.want {
			t.Errorf("Exhausted(%v) = %v", tt.err, got)
		}
	}
}

// No more than maxIdle wait for work, whatever is put back.
func TestIdleIsBounded(t *testing.T) {
	tr := &Transport{}
	t.Cleanup(tr.Close)
	var conns []*Conn
	for range maxIdle + 3 {
		conns = append(conns, piped(t, tr))
		tr.Put(conns[len(conns)-1])
	}
	if n := tr.Idle(); n != maxIdle {
		t.Errorf("%d wait", n)
	}
	for i, c := range conns {
		if alive(c) != (i < maxIdle) {
			t.Fatalf("number %d: open %v", i, alive(c))
		}
	}
	tr.Close()
	for i, c := range conns {
		if alive(c) {
			t.Fatalf("number %d is open after Close", i)
		}
	}
}

// Users, the engine's hang-ups and a Close at once: nobody is given what
// another one has, and nothing stays open.
func TestConcurrency(t *testing.T) {
	const workers, each = 8, 100
	e := listen(t)
	var mu sync.Mutex
	inUse, all := make(map[*Conn]bool), make(map[*Conn]bool)
	use := func(c *Conn, used bool) {
		mu.Lock()
		defer mu.Unlock()
		if inUse[c] == used {
			t.Errorf("in use: %v twice", used)
		}
		inUse[c], all[c] = used, true
	}
	hangUps := make(chan struct{})
	go func() { // the engine ends every third connection
		defer close(hangUps)
		var kept []*net.TCPConn
		for n := 1; ; n++ {
			select {
			case c := <-e.accepted:
				if n%3 == 0 {
					c.Close()
				} else {
					kept = append(kept, c)
				}
			case <-t.Context().Done():
				for _, c := range kept {
					c.Close()
				}
				return
			}
		}
	}()
	t.Cleanup(func() { <-hangUps })

	var users sync.WaitGroup
	for w := range workers {
		users.Go(func() {
			for i := range each {
				connect := e.transport.Get
				if i%10 == 0 {
					connect = e.transport.Dial
				}
				c, err := connect(t.Context())
				if errors.Is(err, ErrClosed) {
					return
				} else if err != nil {
					t.Error(err)
					return
				}
				use(c, true)
				use(c, false)
				if i%7 == 0 {
					c.Close()
				} else {
					e.transport.Put(c)
				}
				if w == 0 && i == each-10 {
					e.transport.Close()
				}
			}
		})
	}
	users.Wait()
	if n := e.transport.Idle(); n != 0 {
		t.Errorf("%d wait after Close", n)
	}
	for c := range all {
		if !closed(c) {
			t.Error("a connection stayed open")
		}
	}
}
