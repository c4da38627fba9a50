package h1

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// interrupts counts.
type interrupts struct{ n atomic.Int32 }

func (i *interrupts) Interrupt() { i.n.Add(1) }

// hidden hides a connection's descriptor, as a layer above it does.
type hidden struct{ net.Conn }

// The client's going away ends the context, interrupts what is bound and blocked
// reads and writes, in every phase, within 100 ms, however it goes and whatever
// it sent before.
func TestClientGone(t *testing.T) {
	const post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
	const get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	begin := func(s *Stream) {
		s.WriteHead(&message.Response{Status: 200, ContentLength: message.Unknown})
		s.Write([]byte("data: {}\n\n"))
		s.Flush()
	}
	ends := map[string]func(*net.TCPConn){
		"close":      func(c *net.TCPConn) { c.Close() },
		"half-close": func(c *net.TCPConn) { c.CloseWrite() },
		"reset":      func(c *net.TCPConn) { c.SetLinger(0); c.Close() },
	}
	for _, tt := range []struct {
		name, in string
		phase    func(*Stream, func()) error // calls its argument when the client may go, and then waits
	}{
		{"waiting", get, func(s *Stream, ready func()) error {
			ready()
			<-s.Context().Done()
			return context.Cause(s.Context())
		}},
		{"waiting, large body read", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("x", 100000), func(s *Stream, ready func()) error {
			if n, err := io.Copy(io.Discard, s); n != 100000 || err != nil {
				return err
			}
			ready()
			<-s.Context().Done()
			return context.Cause(s.Context())
		}},
		{"waiting, body unread", post + "he", func(s *Stream, ready func()) error {
			ready()
			<-s.Context().Done()
			return context.Cause(s.Context())
		}},
		{"pipelined request behind", get + get + get, func(s *Stream, ready func()) error {
			ready()
			<-s.Context().Done()
			return context.Cause(s.Context())
		}},
		{"streaming", get, func(s *Stream, ready func()) error {
			begin(s)
			ready()
			<-s.Context().Done()
			return context.Cause(s.Context())
		}},
		{"reading", post + "he", func(s *Stream, ready func()) error {
			ready()
			_, err := io.ReadAll(s)
			return err
		}},
		{"reading chunks", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab", func(s *Stream, ready func()) error {
			ready()
			_, err := io.ReadAll(s)
			return err
		}},
		{"writing to one that does not read", get, func(s *Stream, ready func()) error {
			begin(s)
			ready()
			for {
				if _, err := s.Write(make([]byte, 1<<20)); err != nil {
					return err
				}
			}
		}},
	} {
		for how, end := range ends {
			for _, hide := range []bool{false, true} {
				if hide && tt.name == "writing to one that does not read" {
					continue // the write finds out by itself, or its time-out
				}
				t.Run(fmt.Sprintf("%s/%s/hidden=%v", tt.name, how, hide), func(t *testing.T) {
					// A busy machine may be late, but not every time.
					for tries := 1; goneAfter(t, tt.in, tt.phase, end, hide) > 100*time.Millisecond; tries++ {
						if tries == 20 {
							t.Fatal("of 20 clients that left not one was noticed within 100 ms")
						}
					}
				})
			}
		}
	}
}

// goneAfter is how long a handler is held in a phase after its client has left.
func goneAfter(t *testing.T, in string, phase func(*Stream, func()) error, end func(*net.TCPConn), hide bool) (took time.Duration) {
	ready, left := make(chan struct{}), make(chan time.Time, 1)
	server := &Server{Handler: func(s *Stream) {
		var bound interrupts
		if !s.Bind(&bound) {
			t.Error("gone before it went")
		}
		err := phase(s, func() { close(ready) })
		took = time.Since(<-left)
		if err != ErrClientGone || context.Cause(s.Context()) != ErrClientGone {
			t.Errorf("got %v, the context %v", err, context.Cause(s.Context()))
		}
		s.Unbind()
		if n := bound.n.Load(); n != 1 {
			t.Errorf("interrupted %d times", n)
		}
		if s.Bind(&bound) {
			t.Error("bound though the client is gone")
		}
		s.Abort()
	}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	near, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if hide {
		near = hidden{near}
	}
	fmt.Fprint(c, in)
	go func() {
		<-ready
		left <- time.Now()
		end(c.(*net.TCPConn))
	}()
	server.ServeConn(t.Context(), near)
	return took
}

// Unbind and the client's going race; whichever comes first, the other keeps its
// promise.
func TestUnbindWhileClientGoes(t *testing.T) {
	for range 50 {
		server := &Server{Handler: func(s *Stream) {
			for range 100 {
				var bound interrupts
				ok := s.Bind(&bound)
				s.Unbind()
				n := bound.n.Load()
				if n > 1 || n == 1 && !ok {
					t.Errorf("bound %v, interrupted %d times", ok, n)
				}
			}
			answer(s, 200, "")
		}}
		near, far := net.Pipe()
		go func() {
			fmt.Fprint(far, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			far.Close()
		}()
		server.ServeConn(t.Context(), near)
	}
}

// An answer that was cut does not look whole.
func TestTruncationShows(t *testing.T) {
	for _, version := range []string{"1.0", "1.1", "1.0 forgotten"} {
		version, forgotten := strings.CutSuffix(version, " forgotten")
		for _, length := range []int64{message.Unknown, 1000} {
			addr := listen(t, &Server{Handler: func(s *Stream) {
				s.WriteHead(&message.Response{Status: 200, ContentLength: length})
				s.Write([]byte("abc"))
				s.Flush()
				if !forgotten {
					s.Abort()
				}
			}})
			c := dial(t, addr)
			fmt.Fprintf(c.Sock(), "GET / HTTP/%s\r\nHost: a\r\n\r\n", version)
			c.sent = 1 // it was
			var resp message.Response
			err := c.ReadHead(&resp)
			for err == nil {
				_, err = c.Next()
			}
			if err == io.EOF {
				t.Errorf("HTTP/%s, length %d: the answer looks whole", version, length)
			}
		}
	}
}

// A client that sends a body nobody wants gets the answer nevertheless.
func TestAnswerReachesClientThatStillSends(t *testing.T) {
	addr := listen(t, &Server{Handler: func(s *Stream) { answer(s, 413, "too large") }})
	for range 5 {
		c := dial(t, addr)
		req := message.Request{Method: []byte("POST"), Target: []byte("/"), Authority: []byte("a"), ContentLength: 100 << 20}
		if err := c.SendHead(&req); err != nil {
			t.Fatal(err)
		}
		for range 8 {
			if c.WriteBody(make([]byte, 16<<10)) != nil {
				break
			}
		}
		var resp message.Response
		if err := c.ReadHead(&resp); err != nil || resp.Status != 413 {
			t.Fatalf("%d, %v", resp.Status, err)
		}
		if got := readAll(t, c); got != "too large" || c.Reusable() {
			t.Fatalf("got %q, reusable %v", got, c.Reusable())
		}
		if _, err := c.Sock().Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("the connection did not end in order: %v", err)
		}
	}
}
