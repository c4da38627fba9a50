package upstream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
	"github.com/fairway-proxy/fairway/proxy/message"
)

func get(target string) *message.Request {
	return &message.Request{Method: []byte("GET"), Target: []byte(target), Authority: []byte("pod")}
}

// asked is a request as an engine's end reads it.
type asked struct {
	*http.Request
	body string
}

// play has the engine answer its connections, each with the next of answers,
// one after another; it is over when they are, and then waits for the end of the
// test. What was asked is sent on.
func (e *engine) play(t testing.TB, answers ...func(c *net.TCPConn, next func() bool)) <-chan asked {
	t.Helper()
	requests := make(chan asked, 1000)
	var all sync.WaitGroup
	all.Go(func() {
		for _, answer := range answers {
			var c *net.TCPConn
			select {
			case c = <-e.accepted:
			case <-t.Context().Done():
				return
			}
			all.Go(func() {
				stop := context.AfterFunc(t.Context(), func() { c.Close() })
				defer stop()
				defer c.Close()
				r := bufio.NewReader(c)
				answer(c, func() bool {
					req, err := http.ReadRequest(r)
					if err != nil {
						return false
					}
					body, err := io.ReadAll(req.Body)
					requests <- asked{req, string(body)}
					return err == nil
				})
			})
		}
	})
	t.Cleanup(all.Wait)
	return requests
}

// page answers every request with a body.
func page(status, body string) func(*net.TCPConn, func() bool) {
	return func(c *net.TCPConn, next func() bool) {
		for next() {
			fmt.Fprintf(c, "HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s", status, len(body), body)
		}
	}
}

// once says what is given as the answer to the first request and closes.
func once(answer string) func(*net.TCPConn, func() bool) {
	return func(c *net.TCPConn, next func() bool) {
		if next() {
			io.WriteString(c, answer)
		}
	}
}

// open says what is given as the answer to the first request and leaves it at that.
func open(answer string) func(*net.TCPConn, func() bool) {
	return func(c *net.TCPConn, next func() bool) {
		if next() {
			io.WriteString(c, answer)
			next() // until the other side closes
		}
	}
}

func TestFetch(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer func(*net.TCPConn, func() bool)
		status int
		body   string
		idle   int // connections kept
	}{
		{"page", page("200 OK", "vllm:num_requests_running 1\n"), 200, "vllm:num_requests_running 1\n", 1},
		{"empty", page("200 OK", ""), 200, "", 1},
		{"error with a body", page("503 Service Unavailable", "engine is dead"), 503, "engine is dead", 1},
		{"not found", page("404 Not Found", `{"detail":"Not Found"}`), 404, `{"detail":"Not Found"}`, 1},
		{"no content", open("HTTP/1.1 204 No Content\r\n\r\n"), 204, "", 1},
		{"chunked", open("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), 200, "abcde", 1},
		{"until close", once("HTTP/1.1 200 OK\r\n\r\nabc"), 200, "abc", 0},
		{"not kept", open("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc"), 200, "abc", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := listen(t)
			requests := e.play(t, tt.answer)
			status, body, err := e.transport.Fetch(t.Context(), "/metrics?a=b", []byte("kept "))
			if status != tt.status || string(body) != "kept "+tt.body || err != nil {
				t.Errorf("got %d, %q, %v", status, body, err)
			}
			if n := e.transport.Idle(); n != tt.idle {
				t.Errorf("%d connections are kept, want %d", n, tt.idle)
			}
			r := <-requests
			if r.Method != "GET" || r.RequestURI != "/metrics?a=b" || r.Host != e.transport.Address || r.UserAgent() != "fairway" || r.body != "" {
				t.Errorf("asked %+v", r)
			}
			e.transport.Close()
		})
	}
}

func TestFetchReuses(t *testing.T) {
	e := listen(t)
	e.play(t, page("200 OK", "abc"))
	buf := make([]byte, 0, 100)
	for range 5 {
		status, body, err := e.transport.Fetch(t.Context(), "/health", buf[:0])
		if status != 200 || string(body) != "abc" || err != nil || &body[0] != &buf[:1][0] {
			t.Fatalf("got %d, %q, %v, or another buffer", status, body, err)
		}
	}
	e.transport.Close()
}

func TestAsk(t *testing.T) {
	e := listen(t)
	requests := e.play(t, page("200 OK", "done"))
	r := &message.Request{
		Method: []byte("POST"), Target: []byte("/v1/load_lora_adapter"), Authority: []byte("pod:8000"),
		Fields:  []message.Field{{Name: []byte("Content-Type"), Value: []byte("application/json")}},
		Upgrade: []byte("websocket"), ContentLength: 99,
	}
	length := int64(0)
	look := func(head *message.Response) { length = head.ContentLength }
	status, body, err := e.transport.Ask(t.Context(), r, []byte(`{"lora_name":"x"}`), nil, look)
	if status != 200 || string(body) != "done" || length != 4 || err != nil {
		t.Errorf("got %d, %q, a head that tells of %d bytes, %v", status, body, length, err)
	}
	got := <-requests
	if got.Method != "POST" || got.RequestURI != "/v1/load_lora_adapter" || got.Host != "pod:8000" || got.body != `{"lora_name":"x"}` ||
		got.Header.Get("Content-Type") != "application/json" || got.Header.Get("Upgrade") != "" {
		t.Errorf("asked %+v, %q", got.Request, got.body)
	}
	if string(r.Upgrade) != "websocket" {
		t.Error("the request was changed")
	}
	e.transport.Close()
}

// An engine that closes an idle connection in the moment it is used is asked
// once more, on a new connection, and only once.
func TestStaleConnection(t *testing.T) {
	// reused answers one request and then, without a word, ends the connection
	// that carries the next.
	reused := func(c *net.TCPConn, next func() bool) {
		if next() {
			io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfirst")
			next()
		}
	}
	cut := func(said string) func(*net.TCPConn, func() bool) {
		return func(c *net.TCPConn, next func() bool) {
			reused(c, next)
			io.WriteString(c, said)
		}
	}
	for _, tt := range []struct {
		name    string
		answers []func(*net.TCPConn, func() bool)
		status  int
		body    string
		err     error
		asked   int // with the first
	}{
		{"answered by the new one", []func(*net.TCPConn, func() bool){reused, page("200 OK", "second")}, 200, "second", nil, 3},
		{"closed too", []func(*net.TCPConn, func() bool){reused, once(""), page("200 OK", "never")}, 0, "", io.EOF, 3},
		{"not stale: it has begun to answer", []func(*net.TCPConn, func() bool){cut("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"), page("200 OK", "never")},
			200, "abc", io.ErrUnexpectedEOF, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := listen(t)
			requests := e.play(t, tt.answers...)
			if _, body, err := e.transport.Fetch(t.Context(), "/a", nil); string(body) != "first" || err != nil {
				t.Fatalf("got %q, %v", body, err)
			}
			status, body, err := e.transport.Fetch(t.Context(), "/b", nil)
			if status != tt.status || string(body) != tt.body || !errors.Is(err, tt.err) {
				t.Errorf("got %d, %q, %v", status, body, err)
			}
			if n := len(requests); n != tt.asked {
				t.Errorf("asked %d times", n)
			}
			e.transport.Close()
		})
	}
	// Those that wait may all be stale: the second attempt takes none of them.
	t.Run("several", func(t *testing.T) {
		e := listen(t)
		a, b := e.get(t), e.get(t)
		requests := e.play(t, reused, reused, page("200 OK", "new"))
		for _, c := range []*Conn{a, b} {
			if status, _, err := c.ask(get("/"), nil, nil, nil); status != 200 || err != nil {
				t.Fatal(status, err)
			}
			e.transport.Put(c)
		}
		if _, body, err := e.transport.Fetch(t.Context(), "/b", nil); string(body) != "new" || err != nil {
			t.Errorf("got %q, %v", body, err)
		}
		if n := len(requests); n != 4 {
			t.Errorf("asked %d times", n)
		}
		e.transport.Close()
	})
	t.Run("a new one is asked once", func(t *testing.T) {
		e := listen(t)
		requests := e.play(t, once(""), page("200 OK", "never"))
		status, _, err := e.transport.Fetch(t.Context(), "/b", nil)
		if status != 0 || !errors.Is(err, io.EOF) || len(requests) != 1 {
			t.Errorf("got %d, %v, asked %d times", status, err, len(requests))
		}
		if !strings.Contains(err.Error(), "GET /b at "+e.transport.Address) {
			t.Errorf("%v does not say what failed where", err)
		}
	})
}

func TestMaxPage(t *testing.T) {
	for _, framing := range []string{"length", "chunked", "close"} {
		for _, over := range []int{0, 1} {
			t.Run(fmt.Sprintf("%s, %d too many", framing, over), func(t *testing.T) {
				e := listen(t)
				e.play(t, func(c *net.TCPConn, next func() bool) {
					if !next() {
						return
					}
					body := bytes.Repeat([]byte("x"), MaxPage+over)
					switch framing {
					case "length":
						fmt.Fprintf(c, "HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s", len(body), body)
					case "chunked":
						fmt.Fprintf(c, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(body), body)
					default:
						fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n\r\n%s", body)
					}
				})
				status, body, err := e.transport.Fetch(t.Context(), "/metrics", []byte("before"))
				if status != 200 || (err != nil) != (over > 0) {
					t.Fatalf("got %d, %v", status, err)
				}
				if over == 0 && len(body) != len("before")+MaxPage || over > 0 && string(body) != "before" {
					t.Errorf("got %d bytes", len(body))
				}
				if over > 0 && e.transport.Idle() != 0 {
					t.Error("a connection with bytes unread was kept")
				}
				e.transport.Close()
			})
		}
	}
}

// An answer without an end does not make the page grow without one.
func TestEndlessPage(t *testing.T) {
	e := listen(t)
	e.play(t, func(c *net.TCPConn, next func() bool) {
		if !next() {
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		for piece := make([]byte, 64<<10); ; {
			if _, err := c.Write(piece); err != nil {
				return
			}
		}
	})
	_, body, err := e.transport.Fetch(t.Context(), "/metrics", nil)
	if err == nil || len(body) != 0 || cap(body) > 2*MaxPage {
		t.Errorf("%d bytes, room for %d, %v", len(body), cap(body), err)
	}
}

// The end of the caller's patience ends the exchange in each of its phases, and
// the connection with it.
func TestEndedByContext(t *testing.T) {
	const answer = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"
	why := errors.New("the client left")
	for _, phase := range []struct {
		name string
		said string
	}{
		{"before the head", ""},
		{"in the head", answer[:20]},
		{"in the body", answer},
	} {
		for _, used := range []bool{false, true} {
			name := fmt.Sprintf("%s, used=%v", phase.name, used)
			// prepare has the engine say its part, and then tell that it did.
			prepare := func(t *testing.T) (*engine, <-chan asked, chan struct{}) {
				e, said := listen(t), make(chan struct{})
				requests := e.play(t, func(c *net.TCPConn, next func() bool) {
					if used && next() {
						io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
					}
					if next() {
						io.WriteString(c, phase.said)
						close(said)
						next()
					}
				}, page("200 OK", "a second connection"))
				if used {
					if _, _, err := e.transport.Fetch(t.Context(), "/", nil); err != nil {
						t.Fatal(err)
					}
					<-requests
				}
				return e, requests, said
			}
			check := func(t *testing.T, e *engine, requests <-chan asked) {
				if e.transport.Idle() != 0 {
					t.Error("the connection was kept")
				}
				if n := len(requests); n != 1 {
					t.Errorf("asked %d times", n)
				}
			}
			t.Run("cancelled "+name, func(t *testing.T) {
				e, requests, said := prepare(t)
				ctx, cancel := context.WithCancelCause(t.Context())
				go func() { <-said; cancel(why) }()
				_, _, err := e.transport.Fetch(ctx, "/", nil)
				if !errors.Is(err, why) {
					t.Errorf("got %v, not the cause of the context", err)
				}
				check(t, e, requests)
			})
			t.Run("too late "+name, func(t *testing.T) {
				e, requests, _ := prepare(t)
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				defer cancel()
				_, _, err := e.transport.Fetch(ctx, "/", nil)
				if late, ok := errors.AsType[net.Error](err); !ok || !late.Timeout() {
					t.Errorf("got %v", err)
				}
				check(t, e, requests)
			})
		}
	}
}

// A deadline is that of its exchange: it does not hold for the next one on the
// same connection.
func TestDeadlineIsNotKept(t *testing.T) {
	e := listen(t)
	late := make(chan struct{})
	e.play(t, func(c *net.TCPConn, next func() bool) {
		for i := 0; next(); i++ {
			if i == 1 {
				<-late
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc")
		}
	}, page("200 OK", "a second connection"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, _, err := e.transport.Fetch(ctx, "/", nil); err != nil {
		t.Skip("this machine is too busy for an exchange in a second:", err)
	}
	go func() { <-ctx.Done(); close(late) }()
	if _, body, err := e.transport.Fetch(t.Context(), "/", nil); string(body) != "abc" || err != nil {
		t.Errorf("got %q, %v", body, err)
	}
	e.transport.Close()
}

func TestFetchWithoutConnection(t *testing.T) {
	tr := &Transport{Address: process.ClosedAddress(t)}
	status, body, err := tr.Fetch(t.Context(), "/metrics", []byte("before"))
	if _, ok := errors.AsType[*DialError](err); !ok || status != 0 || string(body) != "before" {
		t.Errorf("got %d, %q, %v", status, body, err)
	}
	tr.Close()
	if _, _, err := tr.Fetch(t.Context(), "/metrics", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestFetchConcurrently(t *testing.T) {
	const workers, each = 8, 50
	e := listen(t)
	var answers []func(*net.TCPConn, func() bool)
	for range workers * each { // more than are needed
		answers = append(answers, func(c *net.TCPConn, next func() bool) {
			for next() {
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\ncontent-length: 4096\r\n\r\n%s", strings.Repeat("x", 4096))
			}
		})
	}
	e.play(t, answers...)
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			var buf []byte
			for range each {
				var err error
				var status int
				if status, buf, err = e.transport.Fetch(t.Context(), "/metrics", buf[:0]); status != 200 || len(buf) != 4096 || err != nil {
					t.Errorf("got %d, %d bytes, %v", status, len(buf), err)
				}
			}
		})
	}
	all.Wait()
	if n := e.transport.Idle(); n < 1 || n > workers {
		t.Errorf("%d connections for %d users", n, workers)
	}
	e.transport.Close()
}
