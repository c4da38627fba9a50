package h2

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// backend serves h with net/http, HTTP/2 with prior knowledge alone, and gives a
// connection to it.
func backend(t *testing.T, h http.HandlerFunc) *ClientConn {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.DisableGeneralOptionsHandler = true
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	c := connect(t, s.Listener.Addr().String())
	t.Cleanup(func() {
		c.Close()
		s.CloseClientConnections()
		s.Close()
	})
	return c
}

func connect(t *testing.T, addr string) *ClientConn {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewClientConn(nc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func open(t *testing.T, c *ClientConn) *ClientStream {
	t.Helper()
	s := c.Open()
	if s == nil {
		t.Fatal("no stream")
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func ask(method, target string, fields ...message.Field) *message.Request {
	return &message.Request{Method: []byte(method), Target: []byte(target), Authority: []byte("pod:8000"), Fields: fields, ContentLength: message.Unknown}
}

func readAll(t *testing.T, s *ClientStream) string {
	t.Helper()
	var all []byte
	for {
		p, err := s.Next()
		all = append(all, p...)
		if err == io.EOF {
			return string(all)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestClient(t *testing.T) {
	type seen struct {
		method, uri, host, body string
		length                  int64
		header                  http.Header
	}
	got := make(chan seen, 1)
	c := backend(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- seen{r.Method, r.RequestURI, r.Host, string(body), r.ContentLength, r.Header}
		w.Header().Set("X-One", "1")
		w.Header().Set("Grpc-Status", "x")
		w.WriteHeader(201)
		if r.Method != "GET" {
			io.WriteString(w, "answer")
			w.Header().Set(http.TrailerPrefix+"X-Sum", "42")
		}
	})
	for i, tt := range []struct {
		method, target string
		send           func(s *ClientStream, r *message.Request) error
		body           string
		length         int64
	}{
		{"POST", "/v1/chat?a=b", func(s *ClientStream, r *message.Request) error {
			return s.Send(r, []byte("hello, "), nil, []byte("world"))
		}, "hello, world", 12},
		{"POST", "//b/../c%2f", func(s *ClientStream, r *message.Request) error { return s.Send(r) }, "", 0},
		{"GET", "/?", func(s *ClientStream, r *message.Request) error { return s.Send(r) }, "", 0},
		{"HEAD", "/", func(s *ClientStream, r *message.Request) error { return s.Send(r) }, "", 0},
		{"OPTIONS", "*", func(s *ClientStream, r *message.Request) error { return s.Send(r) }, "", 0},
		{"POST", "/", func(s *ClientStream, r *message.Request) error {
			return errors.Join(s.SendHead(r), s.WriteBody([]byte("one ")), s.WriteBody([]byte("two")), s.EndBody())
		}, "one two", -1},
		{"POST", "/", func(s *ClientStream, r *message.Request) error {
			r.ContentLength = 7
			return errors.Join(s.SendHead(r), s.WriteBody([]byte("one two")), s.EndBody())
		}, "one two", 7},
	} {
		s := open(t, c)
		if s.Used() != (i > 0) {
			t.Errorf("used: %v", s.Used())
		}
		r := ask(tt.method, tt.target, field("x-two", "2"), field("Connection", "close"), field("Content-Type", "application/grpc+proto"))
		if err := tt.send(s, r); err != nil {
			t.Fatal(tt, err)
		}
		var answer message.Response
		if err := s.ReadHead(&answer); err != nil {
			t.Fatal(err)
		}
		g := <-got
		if g.method != tt.method || g.uri != tt.target || g.host != "pod:8000" || g.body != tt.body || g.length != tt.length {
			t.Errorf("asked %+v, want %s %s %q (%d)", g, tt.method, tt.target, tt.body, tt.length)
		}
		if g.header.Get("X-Two") != "2" || g.header.Get("Te") != "trailers" || g.header.Get("User-Agent") != "" || g.header.Get("Accept-Encoding") != "" || g.header.Get("Connection") != "" {
			t.Errorf("fields %v", g.header)
		}
		if answer.Status != 201 || string(message.Get(answer.Fields, "x-one")) != "1" {
			t.Errorf("answered %+v", answer)
		}
		want, sum := "answer", "42"
		if tt.method == "GET" || tt.method == "HEAD" {
			want, sum = "", ""
		}
		if tt.method == "HEAD" && !s.Pending() {
			t.Error("an answer without a body has not ended")
		}
		if body := readAll(t, s); body != want {
			t.Errorf("answered %q", body)
		}
		if tt.method != "HEAD" {
			if got := message.Get(s.Trailers(), "x-sum"); string(got) != sum {
				t.Errorf("trailers %q", s.Trailers())
			}
		}
		s.Close()
	}
	await(t, "the streams' end", func() bool { return c.Streams() == 0 })
	// A request that cannot be sent takes nothing.
	s := open(t, c)
	if err := s.Send(ask("G T", "/")); err == nil {
		t.Error("sent a bad method")
	}
	s.Close()
	await(t, "the reservation's end", func() bool { return c.Streams() == 0 })
	if c.Ended() {
		t.Error("the connection has ended")
	}
}

// An answer without a body may say how long it would be (RFC 9110 section 8.6).
func TestClientAnswerWithoutBody(t *testing.T) {
	c := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "5")
		w.WriteHeader(304)
	})
	s := open(t, c)
	defer s.Close()
	if err := s.Send(ask("GET", "/")); err != nil {
		t.Fatal(err)
	}
	var answer message.Response
	if err := s.ReadHead(&answer); err != nil || answer.Status != 304 || answer.ContentLength != 5 {
		t.Errorf("answered %+v, %v", answer, err)
	}
	if body := readAll(t, s); body != "" {
		t.Errorf("answered %q", body)
	}
}

// await polls until cond holds.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(tooLong)
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("never came about: %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

// Both ways at once: the answer comes while the request is written.
func TestClientDuplex(t *testing.T) {
	c := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			w.Write([]byte(strings.ToUpper(string(buf[:n]))))
			w.(http.Flusher).Flush()
			if err != nil {
				return
			}
		}
	})
	s := open(t, c)
	if err := s.SendHead(ask("POST", "/")); err != nil {
		t.Fatal(err)
	}
	var answer message.Response
	if err := s.ReadHead(&answer); err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"one", "two", "three"} {
		if err := s.WriteBody([]byte(word)); err != nil {
			t.Fatal(err)
		}
		if p, err := s.Next(); string(p) != strings.ToUpper(word) || err != nil {
			t.Fatalf("got %q, %v", p, err)
		}
	}
	s.EndBody()
	if _, err := s.Next(); err != io.EOF {
		t.Errorf("the end is %v", err)
	}
}

// A server may answer before it has the request: nothing that Send was given is
// touched after ReadHead, and the answer is whole.
func TestClientEarlyAnswer(t *testing.T) {
	release := make(chan bool)
	c := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(413)
		w.(http.Flusher).Flush()
		<-release
		io.WriteString(w, "too large")
	})
	s := open(t, c)
	body := make([]byte, 10<<20) // more than its window
	if err := s.Send(ask("POST", "/"), body); err != errEarly {
		t.Errorf("sent: %v", err)
	}
	var answer message.Response
	if err := s.ReadHead(&answer); err != nil || answer.Status != 413 {
		t.Fatal(answer.Status, err)
	}
	clear(body) // for the race detector
	close(release)
	if got := readAll(t, s); got != "too large" {
		t.Errorf("answered %q", got)
	}
}

func TestClientInterrupt(t *testing.T) {
	left := make(chan bool, 100)
	stall := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/answer" {
			io.Copy(io.Discard, r.Body) // an answer before its end would stop the sending
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done()
		left <- true
	}
	for _, phase := range []string{"sending", "waiting", "answer"} {
		for _, how := range []string{"interrupt", "time-out", "close"} {
			if phase == "sending" && how == "close" {
				continue // that is the sender's to do
			}
			t.Run(phase+", "+how, func(t *testing.T) {
				c := backend(t, stall)
				s := open(t, c)
				var all sync.WaitGroup
				defer all.Wait()
				stop := func() {
					switch how {
					case "interrupt":
						all.Go(s.Interrupt)
					case "time-out":
						s.SetTimeout(time.Hour)
						s.SetTimeout(10 * time.Millisecond)
					}
				}
				var err error
				if phase == "sending" {
					stop()
					if err = s.Send(ask("POST", "/"), make([]byte, 10<<20)); err == nil {
						t.Error("sent")
					}
				} else if err = s.Send(ask("POST", "/"+phase), []byte("hello")); err != nil {
					t.Fatal(err)
				}
				var answer message.Response
				if phase == "answer" {
					if err := s.ReadHead(&answer); err != nil {
						t.Fatal(err)
					}
					if s.Pending() {
						t.Error("something is there")
					}
				}
				if phase != "sending" {
					stop()
				}
				if how == "close" {
					s.Close()
				} else if phase == "answer" {
					_, err = s.Next()
				} else {
					err = s.ReadHead(&answer)
				}
				if how != "close" && err == nil {
					t.Error("it goes on")
				}
				if s.TimedOut() != (how == "time-out") {
					t.Errorf("timed out: %v", s.TimedOut())
				}
				s.Close()
				if phase != "sending" { // it may not even have begun
					<-left
				}
				if c.Ended() {
					t.Error("the connection has ended with its stream")
				}
			})
		}
	}
}

func TestClientConnectionEnds(t *testing.T) {
	c := backend(t, func(w http.ResponseWriter, r *http.Request) {
		panic(http.ErrAbortHandler)
	})
	s := open(t, c)
	if err := s.Send(ask("GET", "/")); err != nil {
		t.Fatal(err)
	}
	var answer message.Response
	if err := s.ReadHead(&answer); err == nil {
		t.Errorf("answered %+v", answer)
	}
	s.Close()
	if c.Ended() {
		t.Error("a reset ends the connection")
	}
	c.Close()
	if !c.Ended() || c.Open() != nil {
		t.Error("it goes on after Close")
	}
}

// Both ends of this package agree.
func TestClientAndServer(t *testing.T) {
	s := &Server{Handler: echo}
	c := connect(t, listen(t, s))
	st := open(t, c)
	if err := st.Send(ask("POST", "/"), []byte("hello")); err != nil {
		t.Fatal(err)
	}
	var answer message.Response
	if err := st.ReadHead(&answer); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, st); got != "hello" || answer.ContentLength != 5 {
		t.Errorf("%q, length %d", got, answer.ContentLength)
	}
	st.Close()
	s.Drain()
	await(t, "no more streams", func() bool {
		st := c.Open()
		if st != nil {
			st.Close()
		}
		return st == nil
	})
}
