package h1

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/turn"
)

// answer answers with a body of known length.
func answer(s *Stream, status int, body string) {
	s.WriteHead(&message.Response{Status: status, ContentLength: int64(len(body))})
	s.Write([]byte(body))
	s.Finish(nil)
}

// talk sends in, as one piece, to a server with that handler and gives all that
// comes back until the server closes, or until it waits for more and idle
// time-out closes. It runs in virtual time.
func talk(t *testing.T, server *Server, in string) (out string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		go server.ServeConn(context.Background(), near)
		go far.Write([]byte(in))
		b, _ := io.ReadAll(far)
		out = string(b)
		far.Close()
		server.Wait(context.Background())
	})
	return out
}

func TestAnswers(t *testing.T) {
	const get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	const old = "GET / HTTP/1.0\r\n\r\n"
	unknown := func(s *Stream) {
		s.WriteHead(&message.Response{Status: 200, ContentLength: message.Unknown})
		s.Write([]byte("abc"))
		s.Write(nil)
		s.Flush()
		s.Write([]byte("0123456789"))
		s.Finish([]message.Field{{Name: []byte("x-sum"), Value: []byte("13")}, {Name: []byte("Content-Length"), Value: []byte("3")}})
	}
	const chunkedAnswer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\na\r\n0123456789\r\n0\r\nx-sum: 13\r\n\r\n"
	plain := func(s *Stream) { answer(s, 200, "abc") }
	const plainAnswer = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"
	status := func(status int, length int64) func(*Stream) {
		return func(s *Stream) {
			s.WriteHead(&message.Response{Status: status, ContentLength: length})
			s.Write([]byte("not sent"))
			s.Finish(nil)
		}
	}
	for _, tt := range []struct {
		name    string
		handler func(*Stream)
		in      string
		want    string
	}{
		{"length", plain, get, plainAnswer},
		{"pipelined", plain, get + get + get, plainAnswer + plainAnswer + plainAnswer},
		{"chunked", unknown, get + get, chunkedAnswer + chunkedAnswer},
		{"until close for 1.0", unknown, old, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc0123456789"},
		{"until close though 1.0 would keep it", unknown, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + old,
			"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc0123456789"},
		{"close for 1.0", plain, old + old, "HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc"},
		{"keep-alive for 1.0", plain, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + old,
			"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: keep-alive\r\n\r\nabc" +
				"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc"},
		{"close as asked", plain, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + get,
			"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc"},
		{"head", plain, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"},
		{"head of unknown length", unknown, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" + "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
			"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"},
		{"204", status(204, 0), get, "HTTP/1.1 204 No Content\r\n\r\n"},
		{"304", status(304, 7), get, "HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n"},
		{"304 without length", status(304, 0), get, "HTTP/1.1 304 Not Modified\r\n\r\n"},
		{"unknown status", status(799, 8), get, "HTTP/1.1 799 \r\ncontent-length: 8\r\n\r\nnot sent"},
		{"fields as given, none that is not end-to-end", func(s *Stream) {
			s.WriteHead(&message.Response{Status: 200, Fields: []message.Field{
				{Name: []byte("X-One"), Value: []byte("1")}, {Name: []byte("Connection"), Value: []byte("x")},
				{Name: []byte("content-LENGTH"), Value: []byte("9")}, {Name: []byte("x-two"), Value: []byte("")},
				{Name: []byte("Transfer-Encoding"), Value: []byte("x")}}})
			s.Finish(nil)
		}, get, "HTTP/1.1 200 OK\r\nX-One: 1\r\nx-two: \r\ncontent-length: 0\r\n\r\n"},
		{"early hints", func(s *Stream) {
			s.WriteHead(&message.Response{Status: 103, Fields: []message.Field{{Name: []byte("link"), Value: []byte("x")}}})
			if s.Started() {
				t.Error("an interim head counts as the answer")
			}
			plain(s)
		}, get, "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + plainAnswer},
		{"no early hints for 1.0", func(s *Stream) {
			s.WriteHead(&message.Response{Status: 103})
			plain(s)
		}, old, "HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc"},
		{"body and trailers", echo, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nA: b\r\nHost: c\r\n\r\n" + get,
			"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\nx-sum: 6\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"},
		{"body left unread", plain, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello" + get, plainAnswer + plainAnswer},
		{"chunked body left unread", plain, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + get, plainAnswer + plainAnswer},
		{"malformed body left unread", plain, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\nabc\r\n0\r\n\r\n" + get, plainAnswer},
		{"malformed body answered", func(s *Stream) {
			_, err := io.ReadAll(s)
			answer(s, err.(*ProtocolError).Status, "")
		}, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\nabc\r\n0\r\n\r\n" + get,
			"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"},
		{"huge body left unread", plain, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000\r\n\r\nhello",
			"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc"},
		{"expectation, body left unread", plain, "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
			"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc"},
		{"abort", func(s *Stream) {
			s.WriteHead(&message.Response{Status: 200, ContentLength: message.Unknown})
			s.Write([]byte("abc"))
			s.Flush()
			s.Write([]byte("def"))
			s.Abort()
			if _, err := s.Write([]byte("x")); err == nil || s.Flush() == nil || s.Finish(nil) == nil {
				t.Error("an aborted answer can be written on")
			}
		}, get + get, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"},
		{"handler forgot to finish", func(s *Stream) {
			s.WriteHead(&message.Response{Status: 200, ContentLength: message.Unknown})
			s.Flush()
		}, get + get, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"},
		{"handler forgot to answer", func(s *Stream) {}, get, ""},
		{"too long", func(s *Stream) {
			s.WriteHead(&message.Response{Status: 200, ContentLength: 3})
			if n, err := s.Write([]byte("abcd")); n != 0 || err != ErrLength {
				t.Errorf("wrote %d bytes of 3, %v", n, err)
			}
			s.Write([]byte("abc"))
			s.Finish(nil)
		}, get, plainAnswer},
		{"too short", func(s *Stream) {
			s.WriteHead(&message.Response{Status: 200, ContentLength: 3})
			s.Write([]byte("ab"))
			s.Flush()
			if err := s.Finish(nil); err != ErrLength {
				t.Errorf("finished: %v", err)
			}
		}, get + get, "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab"},
		{"out of turn", func(s *Stream) {
			if _, err := s.Write([]byte("x")); err != ErrState {
				t.Error("a body before its head")
			}
			if err := s.Finish(nil); err != ErrState {
				t.Error("finished before begun")
			}
			plain(s)
			if s.WriteHead(&message.Response{Status: 200}) != ErrState || s.Finish(nil) != ErrState {
				t.Error("answered twice")
			}
			s.Abort() // does nothing any more
		}, get + get, plainAnswer + plainAnswer},
		{"no line break gets into a head", func(s *Stream) {
			for _, f := range []message.Field{
				{Name: []byte("x"), Value: []byte("y\r\nset-cookie: z")}, {Name: []byte("x:y"), Value: []byte("z")}, {Name: nil, Value: []byte("z")},
			} {
				if err := s.WriteHead(&message.Response{Status: 200, Fields: []message.Field{f}}); err != ErrField {
					t.Errorf("%s: %v", f.Name, err)
				}
			}
			plain(s)
		}, get, plainAnswer},
		{"refused", plain, "GET / HTTP/1.1\r\n\r\n" + get,
			"HTTP/1.1 400 Bad Request\r\ncontent-length: 14\r\nconnection: close\r\n\r\nno Host field\n"},
		{"refused after an answer", plain, get + "BAD\r\n\r\n",
			plainAnswer + "HTTP/1.1 400 Bad Request\r\ncontent-length: 23\r\nconnection: close\r\n\r\nmalformed request line\n"},
		{"refused HTTP/2", plain, preface,
			"HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-length: 26\r\nconnection: close\r\n\r\nHTTP/2 is not spoken here\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := talk(t, &Server{Handler: tt.handler}, tt.in); got != tt.want {
				t.Errorf("\n got %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestBadRequest(t *testing.T) {
	server := &Server{
		Handler: func(*Stream) { t.Error("a refused request was handled") },
		BadRequest: func(s *Stream, err *ProtocolError) {
			if n, rerr := s.Read(make([]byte, 1)); n != 0 || rerr != io.EOF {
				t.Errorf("a refused request has a body: %d, %v", n, rerr)
			}
			answer(s, err.Status, string(s.Head().Method)+" "+err.Reason)
		},
		HeaderLimit: 1000,
	}
	const body = "\r\ncontent-length: 35\r\nconnection: close\r\n\r\nPUT "
	for in, want := range map[string]string{
		"PUT / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 1000) + "\r\n\r\n": "HTTP/1.1 431 Request Header Fields Too Large" + body + errHeadLong.Reason,
		"PUT / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 10000):             "HTTP/1.1 431 Request Header Fields Too Large" + body + errHeadLong.Reason,
	} {
		if got := talk(t, server, in); got != want {
			t.Errorf("%.60q: got %q, want %q", in, got, want)
		}
	}
}

// A head up to the limit is taken, however large the buffer has to grow.
func TestLargeHead(t *testing.T) {
	for _, size := range []int{8000, 8192, 9000, 16384, 20000, 60000, 64 << 10} {
		head := "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nX: "
		head += strings.Repeat("x", size-len(head)-4) + "\r\n\r\n"
		var x int
		got := talk(t, &Server{Handler: func(s *Stream) {
			echo(s)
			x += len(message.Get(s.Head().Fields, "x"))
		}}, head+"3\r\nabc\r\n0\r\n\r\n"+head+"3\r\ndef\r\n0\r\n\r\n")
		const each = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n%s\r\n0\r\nx-sum: 6\r\n\r\n"
		if got != fmt.Sprintf(each, "abc")+fmt.Sprintf(each, "def") || x < 2*(size-100) {
			t.Errorf("%d bytes: %q", size, got)
		}
	}
}

func TestHTTP2TakesOver(t *testing.T) {
	got := make(chan string, 1)
	server := &Server{Handler: echo}
	server.HTTP2 = func(_ context.Context, c *sockConn) {
		b := make([]byte, len(preface)+5)
		io.ReadFull(c, b)
		got <- string(b)
		c.Write([]byte("settings"))
	}
	if out := talk(t, server, preface+"hello"); out != "settings" || <-got != preface+"hello" {
		t.Errorf("got %q", out)
	}
}

// Only a new connection can be HTTP/2's.
func TestHTTP2ComesTooLate(t *testing.T) {
	server := &Server{Handler: echo, HTTP2: func(context.Context, *sockConn) { t.Error("HTTP/2 took over") }}
	out := talk(t, server, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"+preface)
	if !strings.HasPrefix(out, "HTTP/1.1 200 ") || !strings.Contains(out, "HTTP/1.1 505 ") {
		t.Errorf("got %q", out)
	}
}

// The client is asked for the body when the handler wants it, unless it came
// unasked.
func TestContinue(t *testing.T) {
	addr := listen(t, &Server{Handler: func(s *Stream) {
		body, err := io.ReadAll(s)
		if err != nil {
			s.Abort()
			return
		}
		answer(s, 200, string(body))
	}})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	for _, tt := range []struct{ head, body string }{
		{"Transfer-Encoding: chunked\r\n\r\n", "3\r\nabc\r\n0\r\n\r\n"},
		{"Content-Length: 3\r\n\r\n", "abc"},
		{"Content-Length: 3\r\n\r\nabc", ""},
	} {
		fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"+tt.head)
		if tt.body != "" {
			resp, err := http.ReadResponse(r, nil)
			if err != nil || resp.StatusCode != 100 {
				t.Fatal(resp, err)
			}
			fmt.Fprint(c, tt.body)
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		if b, err := io.ReadAll(resp.Body); string(b) != "abc" || err != nil {
			t.Fatalf("%q, %v", b, err)
		}
	}
}

// The client is asked even if the answer has begun, unless its head has left.
// The connection closes then, for the head says that the body may never come.
func TestContinueBesideAnswer(t *testing.T) {
	addr := listen(t, &Server{Handler: func(s *Stream) {
		s.WriteHead(&message.Response{Status: 200, ContentLength: 3})
		if string(s.Head().Target) == "/flush" {
			s.Flush()
		}
		body, err := io.ReadAll(s)
		if err != nil {
			s.Abort()
			return
		}
		s.Write(body)
		s.Finish(nil)
	}})
	for _, target := range []string{"/", "/flush"} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		r := bufio.NewReader(c)
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n", target)
		resp, err := http.ReadResponse(r, nil)
		if err != nil || (resp.StatusCode == 100) != (target == "/") {
			t.Fatal(target, resp, err)
		}
		fmt.Fprint(c, "abc")
		if target == "/" {
			if resp, err = http.ReadResponse(r, nil); err != nil || resp.StatusCode != 200 {
				t.Fatal(target, resp, err)
			}
		}
		if b, err := io.ReadAll(resp.Body); string(b) != "abc" || err != nil || !resp.Close {
			t.Fatalf("%s: %q, %v, close %v", target, b, err, resp.Close)
		}
	}
}

func TestTimeouts(t *testing.T) {
	server := &Server{
		IdleTimeout: 3 * time.Second, HeaderTimeout: 2 * time.Second, BodyTimeout: time.Second, WriteTimeout: 4 * time.Second,
	}
	for _, tt := range []struct {
		name string
		in   []string // one a second
		want time.Duration
		err  error // what the handler gets
	}{
		{"idle from the start", nil, 3 * time.Second, nil},
		{"idle after a request", []string{"GET / HTTP/1.1\r\nHost: a\r\n\r\n"}, 3 * time.Second, nil},
		{"head", []string{"GET / HT"}, 2 * time.Second, nil},
		{"slow head", []string{"GET / HTTP/1.1\r\n", "Host: a\r\n", "X: y\r\n", "X: y\r\n"}, 2 * time.Second, nil},
		{"body", []string{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na"}, time.Second, ErrTimeout},
		{"slow chunked body", []string{"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "5\r\na", "b"}, 3 * time.Second, ErrTimeout},
		{"no reader", []string{"GET /large HTTP/1.1\r\nHost: a\r\n\r\n"}, 4 * time.Second, ErrTimeout},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				defer far.Close()
				start := time.Now()
				var got error
				late := 0
				s := &Server{HeadLate: func() { late++ }, IdleTimeout: server.IdleTimeout, HeaderTimeout: server.HeaderTimeout, BodyTimeout: server.BodyTimeout,
					WriteTimeout: server.WriteTimeout, Handler: func(s *Stream) {
						if string(s.Head().Target) != "/large" {
							if _, err := io.Copy(io.Discard, s); err != nil {
								got = err
								return
							}
							answer(s, 200, "")
							return
						}
						s.WriteHead(&message.Response{Status: 200, ContentLength: message.Unknown})
						for got == nil {
							_, got = s.Write(make([]byte, 300000))
						}
						if cause := context.Cause(s.Context()); cause != got {
							t.Errorf("the context ended with %v", cause)
						}
					}}
				sent := make(chan struct{})
				go func() {
					defer close(sent)
					for i, piece := range tt.in {
						if i > 0 {
							time.Sleep(time.Second - time.Millisecond)
						}
						if _, err := far.Write([]byte(piece)); err != nil {
							return
						}
					}
					if tt.name == "idle after a request" {
						io.Copy(io.Discard, far)
					}
				}()
				s.ServeConn(t.Context(), near)
				if d := time.Since(start); d < tt.want-10*time.Millisecond || d > tt.want+100*time.Millisecond {
					t.Errorf("ended after %v, want %v", d, tt.want)
				}
				<-sent
				if got != tt.err {
					t.Errorf("the handler got %v, want %v", got, tt.err)
				}
				if (late == 1) != strings.HasSuffix(tt.name, "head") || late > 1 {
					t.Errorf("%d heads are told to be late", late)
				}
			})
		})
	}
}

// A slow reader that makes progress is waited for.
func TestSlowReaderIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		s := &Server{WriteTimeout: time.Second, Handler: func(s *Stream) {
			s.WriteHead(&message.Response{Status: 200, ContentLength: message.Unknown})
			if _, err := s.Write(make([]byte, 1<<20)); err != nil {
				t.Error(err)
			}
			s.Finish(nil)
		}}
		var wait = make(chan struct{})
		go func() { s.ServeConn(context.Background(), near); close(wait) }()
		fmt.Fprint(far, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		total := 0
		for buf := make([]byte, 16<<10); ; {
			n, err := far.Read(buf)
			if total += n; err != nil {
				break
			}
			time.Sleep(100 * time.Millisecond) // 128 KiB take 0.8 s
		}
		<-wait
		if total < 1<<20 {
			t.Errorf("got %d bytes", total)
		}
	})
}

// The head and the first bytes of the body leave together, and so do a chunk's
// size, data and end.
func TestWritesAreGathered(t *testing.T) {
	for _, tt := range []struct {
		name    string
		handler func(*Stream)
		want    int
	}{
		{"known length", func(s *Stream) { answer(s, 200, "hello") }, 1},
		{"more than the first buffer holds", func(s *Stream) { answer(s, 200, strings.Repeat("x", copyLimit)) }, 1},
		{"three events", func(s *Stream) {
			s.WriteHead(&message.Response{Status: 200, ContentLength: message.Unknown})
			for range 3 {
				s.Write([]byte("data: {}\n\n"))
				s.Flush()
			}
			s.Finish(nil)
		}, 4},
		{"last event with the end", func(s *Stream) {
			s.WriteHead(&message.Response{Status: 200, ContentLength: message.Unknown})
			s.Write([]byte("data: {}\n\n"))
			s.Finish(nil)
		}, 1},
	} {
		c := &script{in: []byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), step: 4096}
		(&Server{Handler: tt.handler}).ServeConn(t.Context(), c)
		if c.writes != tt.want {
			t.Errorf("%s: %d writes, want %d: %q", tt.name, c.writes, tt.want, c.out.String())
		}
	}
}

func TestShutdown(t *testing.T) {
	began, finish := make(chan struct{}), make(chan struct{})
	server := &Server{Handler: func(s *Stream) {
		if string(s.Head().Target) == "/slow" {
			began <- struct{}{}
			<-finish
		}
		answer(s, 200, "x")
	}}
	addr := listen(t, server)
	request := func(c *ClientConn, target string) {
		t.Helper()
		if err := c.Send(&message.Request{Method: []byte("GET"), Target: []byte(target), Authority: []byte("a")}); err != nil {
			t.Fatal(err)
		}
	}
	var resp message.Response
	fresh, idle, busy := dial(t, addr), dial(t, addr), dial(t, addr)
	request(idle, "/")
	if err := idle.ReadHead(&resp); err != nil {
		t.Fatal(err)
	}
	readAll(t, idle)
	request(busy, "/slow")
	<-began
	server.Drain()
	for name, c := range map[string]*ClientConn{"fresh": fresh, "idle": idle} {
		if _, err := c.Sock().Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the %s connection: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := server.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting for a busy server: %v", err)
	}
	close(finish)
	if err := busy.ReadHead(&resp); err != nil || resp.Status != 200 {
		t.Fatalf("the busy connection: %d, %v", resp.Status, err)
	}
	if got := readAll(t, busy); got != "x" || busy.Reusable() {
		t.Errorf("the busy connection: %q, reusable %v", got, busy.Reusable())
	}
	if err := server.Shutdown(t.Context()); err != nil || server.Conns() != 0 {
		t.Errorf("%v, %d connections are left", err, server.Conns())
	}
	late := dial(t, addr)
	if _, err := late.Sock().Read(make([]byte, 1)); err == nil {
		t.Error("a connection was taken after the shutdown")
	}
}

// An answer that had begun when the server was drained cannot say that it is
// the last, but it is.
func TestDrainDuringAnswer(t *testing.T) {
	began, finish := make(chan struct{}), make(chan struct{})
	server := &Server{Handler: func(s *Stream) {
		s.WriteHead(&message.Response{Status: 200, ContentLength: 3})
		s.Flush()
		began <- struct{}{}
		<-finish
		s.Write([]byte("abc"))
		s.Finish(nil)
	}}
	c := dial(t, listen(t, server))
	if err := c.Send(&message.Request{Method: []byte("GET"), Target: []byte("/"), Authority: []byte("a")}); err != nil {
		t.Fatal(err)
	}
	<-began
	server.Drain()
	close(finish)
	var resp message.Response
	if err := c.ReadHead(&resp); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, c); got != "abc" {
		t.Errorf("got %q", got)
	}
	if _, err := c.Sock().Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection stayed: %v", err)
	}
}

// A server that retires takes connections and has each answer say that it is the last. A client that could not be told, as its answer
// had begun, may send one request more.
func TestRetire(t *testing.T) {
	began, finish := make(chan struct{}), make(chan struct{})
	server := &Server{Handler: func(s *Stream) {
		s.WriteHead(&message.Response{Status: 200, ContentLength: 1})
		s.Flush()
		if string(s.Head().Target) == "/slow" {
			began <- struct{}{}
			<-finish
		}
		s.Write([]byte("x"))
		s.Finish(nil)
	}}
	addr := listen(t, server)
	ask := func(c *ClientConn, target string) {
		t.Helper()
		if err := c.Send(&message.Request{Method: []byte("GET"), Target: []byte(target), Authority: []byte("a")}); err != nil {
			t.Fatal(err)
		}
	}
	answered := func(c *ClientConn, again bool) {
		t.Helper()
		var resp message.Response
		if err := c.ReadHead(&resp); err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, c); got != "x" || c.Reusable() != again {
			t.Errorf("got %q; may ask again: %v, want %v", got, c.Reusable(), again)
		}
	}
	busy := dial(t, addr)
	ask(busy, "/slow")
	<-began
	server.Retire()
	late := dial(t, addr)
	ask(late, "/")
	answered(late, false)
	close(finish)
	answered(busy, true)
	ask(busy, "/")
	answered(busy, false)
	if err := server.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestCloseCutsEverything(t *testing.T) {
	cause := make(chan error, 1)
	began := make(chan struct{})
	server := &Server{Handler: func(s *Stream) {
		close(began)
		<-s.Context().Done()
		cause <- context.Cause(s.Context())
	}}
	c := dial(t, listen(t, server))
	c.Send(&message.Request{Method: []byte("GET"), Target: []byte("/"), Authority: []byte("a")})
	<-began
	server.Close()
	if err := <-cause; err != ErrServerClosed {
		t.Errorf("the context ended with %v", err)
	}
	server.Wait(context.Background())
}

// A request that was pipelined waits for its turn, any other does not.
func TestPipelinedInTurn(t *testing.T) {
	const get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	synctest.Test(t, func(t *testing.T) {
		turns := new(turn.Gate)
		for start := time.Now(); time.Since(start) == 0; { // until there are none
			turns.Take(new(turn.Turn), nil)
		}
		begun := make(chan time.Duration, 3)
		start := time.Now()
		server := &Server{Turns: turns, Handler: func(s *Stream) {
			begun <- time.Since(start)
			answer(s, 200, "abc")
		}}
		near, far := net.Pipe()
		go server.ServeConn(context.Background(), near)
		go io.Copy(io.Discard, far)
		far.Write([]byte(get + get))
		first, second := <-begun, <-begun
		time.Sleep(time.Second)
		far.Write([]byte(get))
		if third := <-begun; first != 0 || second == 0 || second > 10*time.Millisecond || third != time.Second+second {
			t.Errorf("begun after %v, %v and %v", first, second, third)
		}
		far.Close()
		server.Wait(context.Background())
	})
}

// A request can be spared while its answer goes on, unless something lies behind it: the next one comes all the same.
func TestSpare(t *testing.T) {
	const head = "POST /%d HTTP/1.1\r\nhost: a\r\n"
	first, second := fmt.Sprintf(head, 1)+"content-length: 3\r\n\r\nabc", fmt.Sprintf(head, 2)+"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
	for _, tt := range []struct {
		name, in string
		unread   bool   // the handler leaves the body where it is
		spared   string // the targets of those whose memory was given back
	}{
		{"one after the other", first + "|" + second + "|" + first, false, "/1 /2 /1 "},
		{"pipelined", first + second, false, "/2 "},
		{"part of the next", first + "POST |/2 HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", false, "/2 "},
		{"body not read", first + "|" + first, true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spared, served := "", ""
			server := &Server{Handler: func(s *Stream) {
				target := string(s.Head().Target) + " "
				if !tt.unread {
					io.ReadAll(s)
				}
				s.WriteHead(&message.Response{Status: 200, ContentLength: message.Unknown})
				s.Flush()
				s.Spare()
				if s.buf == nil {
					spared += target
				}
				s.Write([]byte("answer"))
				s.Finish(nil)
				served += target
			}}
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				go server.ServeConn(context.Background(), near)
				go func() {
					for _, part := range strings.Split(tt.in, "|") {
						far.Write([]byte(part))
						time.Sleep(time.Second)
					}
					far.Close()
				}()
				io.Copy(io.Discard, far)
				server.Wait(context.Background())
			})
			if want := strings.Count(tt.in, " HTTP"); strings.Count(served, "/") != want {
				t.Errorf("served %s of %d", served, want)
			}
			if spared != tt.spared {
				t.Errorf("spared %q, want %q", spared, tt.spared)
			}
		})
	}
}
