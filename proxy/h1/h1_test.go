package h1

import (
	"context"
	"io"
	"net"
	"testing"

	"go.uber.org/goleak"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type sockConn = sock.Conn

// listen serves s on the loopback until the test ends, and gives the address.
func listen(t testing.TB, s *Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.ServeConn(t.Context(), c)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		s.Close()
		s.Wait(context.Background())
	})
	return l.Addr().String()
}

func dial(t testing.TB, addr string) *ClientConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	cc := NewClientConn(sock.New(c))
	t.Cleanup(func() { cc.Close() })
	return cc
}

// echo answers with the request's body, framed as the request was, and with a trailer.
func echo(s *Stream) {
	head := message.Response{Status: 200, ContentLength: s.Head().ContentLength}
	s.WriteHead(&head)
	var buf [4096]byte
	for {
		n, err := s.Read(buf[:])
		if n > 0 {
			if _, err := s.Write(buf[:n]); err != nil {
				return
			}
		}
		if err == io.EOF {
			s.Finish([]message.Field{{Name: []byte("x-sum"), Value: []byte("6")}})
			return
		}
		if err != nil {
			s.Abort()
			return
		}
	}
}

func readAll(t testing.TB, c *ClientConn) string {
	t.Helper()
	var all []byte
	for {
		p, err := c.Next()
		all = append(all, p...)
		if err == io.EOF {
			return string(all)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestKeepAlive(t *testing.T) {
	c := dial(t, listen(t, &Server{Handler: echo}))
	req := message.Request{Method: []byte("POST"), Target: []byte("/"), Authority: []byte("a")}
	var resp message.Response
	for range 3 {
		if err := c.Send(&req, []byte("hello, "), []byte("world")); err != nil {
			t.Fatal(err)
		}
		if err := c.ReadHead(&resp); err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, c); resp.Status != 200 || resp.ContentLength != 12 || got != "hello, world" {
			t.Fatalf("got %d, length %d, %q", resp.Status, resp.ContentLength, got)
		}
		if !c.Reusable() {
			t.Fatal("the connection cannot be used again")
		}
		req.ContentLength = message.Unknown
		if err := c.SendHead(&req); err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{"one", "two"} {
			if err := c.WriteBody([]byte(s)); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.EndBody(); err != nil {
			t.Fatal(err)
		}
		if err := c.ReadHead(&resp); err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, c); resp.ContentLength != message.Unknown || got != "onetwo" {
			t.Fatalf("got length %d, %q", resp.ContentLength, got)
		}
		if got := message.Get(c.Trailers(), "x-sum"); string(got) != "6" {
			t.Fatalf("trailer %q", got)
		}
	}
}
