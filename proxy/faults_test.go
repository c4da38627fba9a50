package proxy

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/message"
)

// scripted is an engine whose every connection is played by a function.
func scripted(t *testing.T, play func(c net.Conn, in *bufio.Reader)) *pod {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				play(c, bufio.NewReader(c))
			})
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		conns.Wait()
	})
	return &pod{address: l.Addr().String()}
}

// take reads a request whole.
func take(in *bufio.Reader) (*http.Request, error) {
	r, err := http.ReadRequest(in)
	if err == nil {
		_, err = io.Copy(io.Discard, r.Body)
	}
	return r, err
}

const okAnswer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"

// An engine may close an idle connection in the moment it is used again, its
// first reuse included: the client must not see it.
func TestConnectionClosedInTheMomentItIsReused(t *testing.T) {
	for _, served := range []int{1, 2} {
		t.Run(fmt.Sprint("after ", served), func(t *testing.T) {
			p := scripted(t, func(c net.Conn, in *bufio.Reader) {
				for range served {
					if _, err := take(in); err != nil {
						return
					}
					io.WriteString(c, okAnswer)
				}
				take(in) // one more, and close without a word
			})
			s := startServer(t, World{}, p)
			for i := range 3 * (served + 1) {
				m := post("/v1/chat/completions", chat(false, 1, "hi"))
				s.Handle(m)
				if m.answer.Status != 200 {
					t.Fatalf("request %d: %d %s", i, m.answer.Status, m.seen())
				}
			}
		})
	}
}

// An engine may refuse a request before it has read all of it, and close: that
// answer is the client's, and the request is not sent again.
func TestEarlyAnswerIsRelayed(t *testing.T) {
	var requests atomic.Int64
	p := scripted(t, func(c net.Conn, in *bufio.Reader) {
		if _, err := http.ReadRequest(in); err != nil {
			return
		}
		requests.Add(1)
		io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nconnection: close\r\ncontent-length: 3\r\n\r\nno\n")
		c.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, io.LimitReader(c, 100<<10)) // then a reset
	})
	s := startServer(t, World{}, p)
	for i := range 10 {
		m := post("/v1/chat/completions", chat(false, 1, strings.Repeat("x", 5<<20)))
		s.Handle(m)
		if m.answer.Status != 401 || m.seen() != "no\n" {
			t.Fatalf("request %d: %d %q", i, m.answer.Status, m.seen())
		}
	}
	if n := requests.Load(); n != 10 {
		t.Errorf("the engine saw %d requests, want 10", n)
	}
}

// A pod that fails at once has the shortest queue. It must not draw the traffic.
func TestPodThatFailsFastDoesNotDrawTheTraffic(t *testing.T) {
	for _, status := range []int{500, 503} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			failing, sound := startPod(t, "", quick), startPod(t, "", mock.Config{Speed: 5})
			failing.SetFaults(mock.Faults{Status: status})
			s := startServer(t, World{}, failing, sound)
			var wg sync.WaitGroup
			var failures atomic.Int64
			for client := range 10 {
				wg.Go(func() {
					for i := range 20 {
						m := post("/v1/chat/completions", chat(true, 20, fmt.Sprint(client, " asks ", i)))
						s.Handle(m)
						if m.answer.Status != 200 {
							failures.Add(1)
						}
					}
				})
			}
			wg.Wait()
			if n := failures.Load(); n > 40 {
				t.Errorf("%d of 200 requests went to the pod that fails", n)
			}
		})
	}
}

// stream_idle is for silence of the engine, not for a client that pauses.
func TestClientThatPausesIsNotCutOff(t *testing.T) {
	p := startPod(t, "", mock.Config{Speed: 10})
	patiently(t, func(idle time.Duration) error {
		s := startServer(t, World{Timeouts: Timeouts{StreamIdle: idle}}, p)
		m := post("/v1/chat/completions", chat(true, 50, "hello"))
		var once sync.Once
		m.onWrite = func() { once.Do(func() { <-time.After(4 * idle) }) }
		s.Handle(m)
		if !m.finished || strings.Contains(m.seen(), `"error"`) {
			return fmt.Errorf("cut off: %s", m.seen()[max(0, len(m.seen())-300):])
		}
		return nil
	})
}

// patiently tries what a busy machine may be too slow for with a short time, and
// with ever longer ones until it succeeds.
func patiently(t *testing.T, try func(time.Duration) error) {
	t.Helper()
	for d := 50 * time.Millisecond; ; d *= 4 {
		err := try(d)
		if err == nil {
			return
		}
		if d > 10*time.Second {
			t.Fatalf("with %v: %v", d, err)
		}
	}
}

func TestStreamThatFallsSilent(t *testing.T) {
	p := scripted(t, func(c net.Conn, in *bufio.Reader) {
		take(in)
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n", len(event), event)
		io.Copy(io.Discard, c)
	})
	for says, timeouts := range map[string]func(time.Duration) Timeouts{
		`(timeouts.stream_idle).","type":"fairway_upstream_failed"`: func(d time.Duration) Timeouts { return Timeouts{StreamIdle: d} },
		`(timeouts).","type":"fairway_timeout"`:                     func(d time.Duration) Timeouts { return Timeouts{Request: d} },
	} {
		patiently(t, func(d time.Duration) error {
			s := startServer(t, World{Timeouts: timeouts(d)}, p)
			m := post("/v1/chat/completions", chat(true, 5, "hello"))
			s.Handle(m)
			if !strings.HasPrefix(m.seen(), event) || !strings.Contains(m.seen(), says) || !strings.HasSuffix(m.seen(), "data: [DONE]\n\n") {
				return fmt.Errorf("%s: %s", says, m.seen())
			}
			return nil
		})
	}
}

// The head of an answer does not wait for its body.
func TestHeadIsRelayedBeforeTheBodyCame(t *testing.T) {
	more := make(chan struct{})
	p := scripted(t, func(c net.Conn, in *bufio.Reader) {
		take(in)
		io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
		<-more
		io.WriteString(c, "{}")
	})
	s := startServer(t, World{}, p)
	m := post("/v1/chat/completions", chat(false, 1, "hello"))
	var once sync.Once
	m.onWrite = func() { once.Do(func() { close(more) }) } // by the flush of the head, or never
	s.Handle(m)
	if m.seen() != "{}" {
		t.Errorf("%q", m.seen())
	}
}

// Fields that only the proxy says are taken from others, on both ways.
func TestForgedFields(t *testing.T) {
	var upstream http.Header
	p := scripted(t, func(c net.Conn, in *bufio.Reader) {
		if r, err := take(in); err == nil {
			upstream = r.Header
			io.WriteString(c, "HTTP/1.1 200 OK\r\nX-Fairway-Endpoint: evil:1\r\nx-ok: 1\r\ncontent-length: 2\r\n\r\n{}")
		}
	})
	s := startServer(t, World{Explain: ExplainNever}, p)
	m := post("/v1/chat/completions", chat(false, 1, "hello"), "X-Fairway-Endpoint", "evil:2", "X-Fairway-Anything", "1")
	s.Handle(m)
	if m.field("x-fairway-endpoint") != "" || m.field("x-ok") != "1" {
		t.Errorf("the answer's fields: %s", m.fields)
	}
	for name := range upstream {
		if strings.HasPrefix(name, "X-Fairway-") {
			t.Errorf("%s went upstream", name)
		}
	}
}

// Whoever announces much and sends little holds little.
func TestAnnouncedBytesAreNotHeld(t *testing.T) {
	s := startServer(t, World{}, startPod(t, "", quick))
	m := post("/v1/chat/completions", "")
	m.head.ContentLength = 60 << 20
	sent := strings.Repeat("x", 100)
	held := int64(0)
	m.body = io.MultiReader(strings.NewReader(sent), iotest.ErrReader(errClientLeft))
	m.body = readerFunc(func(body io.Reader) func(p []byte) (int, error) {
		return func(p []byte) (int, error) { held = max(held, s.Buffered()); return body.Read(p) }
	}(m.body))
	s.Handle(m)
	if held == 0 || held > 64<<10 {
		t.Errorf("%d bytes were held for %d that came", held, len(sent))
	}
	if s.Buffered() != 0 {
		t.Errorf("%d bytes are still held", s.Buffered())
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// A large body that is not read for routing passes through as it comes, held or
// not.
func TestLargeBodyPassesThrough(t *testing.T) {
	var got atomic.Int64
	p := scripted(t, func(c net.Conn, in *bufio.Reader) {
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			n, err := io.Copy(io.Discard, r.Body)
			if err != nil {
				return
			}
			got.Store(n)
			io.WriteString(c, okAnswer)
		}
	})
	const size = 5 << 20
	for _, length := range []int64{size, message.Unknown} {
		for _, buffers := range []int64{DefaultBufferLimit, 2 << 20} {
			s := startServer(t, World{Limits: Limits{Buffers: buffers}}, p)
			m := post("/v1/files", strings.Repeat("x", size))
			m.head.ContentLength = length
			s.Handle(m)
			if m.answer.Status != 200 || got.Load() != size {
				t.Errorf("length %d, budget %d: status %d %s, the engine got %d bytes", length, buffers, m.answer.Status, m.seen(), got.Load())
			}
			if s.Buffered() != 0 {
				t.Errorf("%d bytes are still held", s.Buffered())
			}
		}
	}
}

// largeChat is a chat body of several MB whose first MB is text.
func largeChat(before, after string) string {
	return `{` + before + `"messages":[{"role":"user","content":"` + strings.Repeat("A long document. ", 200_000) + `"}],"max_tokens":1` + after + `}`
}

// Of a large body whose start says enough, the rest is sent on as it comes.
func TestLargeBodyIsSentWhileItIsReceived(t *testing.T) {
	began, whole := make(chan struct{}, 1), make(chan string, 1)
	p := scripted(t, func(c net.Conn, in *bufio.Reader) {
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			began <- struct{}{}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			whole <- string(body)
			io.WriteString(c, okAnswer)
		}
	})
	for _, test := range []struct {
		name  string
		world World
		body  string
		early bool
		want  string // of what is sent, if not all of it
	}{
		{"model first", World{}, largeChat(`"model":"mock",`, ``), true, ""},
		{"model last", World{}, largeChat(``, `,"model":"mock"`), false, ""},
		{"the name changes", World{Models: []Model{{Name: "mock", Pool: "pool", Targets: []Target{{Name: "another", Weight: 1}}}}}, largeChat(`"model":"mock",`, ``), true, largeChat(`"model":"another",`, ``)},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := startServer(t, test.world, p)
			m := post("/v1/chat/completions", test.body)
			sent := 0
			early := false
			wait := 100 * time.Millisecond
			if test.early {
				wait = time.Minute
			}
			m.body = readerFunc(func(b []byte) (int, error) {
				n := copy(b, test.body[sent:])
				if sent += n; sent == len(test.body) {
					select {
					case <-began: // before the last of the body was received
						early = true
					case <-time.After(wait):
					}
				}
				if n == 0 {
					return 0, io.EOF
				}
				return n, nil
			})
			s.Handle(m)
			if m.answer.Status != 200 {
				t.Fatalf("%d %s", m.answer.Status, m.seen())
			}
			if got := <-whole; got != test.body && got != test.want {
				t.Errorf("the engine got another body, of %d bytes", len(got))
			}
			if early != test.early {
				t.Errorf("sent on early: %v", early)
			}
			if !early {
				<-began
			}
			if s.Buffered() != 0 {
				t.Errorf("%d bytes are still held", s.Buffered())
			}
		})
	}
}

// A model that a body takes back in its last bytes must not be served by the
// pod of the first.
func TestLargeBodyThatNamesTwoModels(t *testing.T) {
	complete := make(chan bool, 1)
	p := scripted(t, func(c net.Conn, in *bufio.Reader) {
		if r, err := http.ReadRequest(in); err == nil {
			_, err = io.Copy(io.Discard, r.Body)
			complete <- err == nil
		}
	})
	s := startServer(t, World{}, p)
	m := post("/v1/chat/completions", largeChat(`"model":"mock",`, `,"model":"another"`))
	s.Handle(m)
	if typ, says := refusal(t, m); m.answer.Status != 400 || typ != "fairway_bad_request" {
		t.Errorf("%d %s: %s", m.answer.Status, typ, says)
	}
	if <-complete {
		t.Error("the engine got the whole body")
	}
}

// The start of a large body is sent again to another endpoint when the first
// one dies over it.
func TestLargeBodyMovesToAnotherEndpoint(t *testing.T) {
	dies := scripted(t, func(c net.Conn, in *bufio.Reader) {
		http.ReadRequest(in)
		io.Copy(io.Discard, io.LimitReader(in, 100<<10))
	})
	var got atomic.Int64
	lives := scripted(t, func(c net.Conn, in *bufio.Reader) {
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			n, _ := io.Copy(io.Discard, r.Body)
			got.Store(n)
			io.WriteString(c, okAnswer)
		}
	})
	s := startServer(t, World{}, dies, lives)
	for i := range 6 {
		body := largeChat(fmt.Sprintf(`"model":"mock","cache_salt":"%d",`, i), ``)
		m := post("/v1/chat/completions", body)
		s.Handle(m)
		if m.answer.Status != 200 || got.Load() != int64(len(body)) {
			t.Errorf("%d %s; got %d of %d bytes", m.answer.Status, m.seen(), got.Load(), len(body))
		}
	}
}

// vLLM ends a stream that it gives up before its first token with nothing but
// [DONE]. That is no answer.
func TestStreamOfNothingCountsAsAFailure(t *testing.T) {
	p := scripted(t, func(c net.Conn, in *bufio.Reader) {
		take(in)
		io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: [DONE]\n\n")
	})
	registry := prometheus.NewRegistry()
	s := New(Config{Account: account.New(registry, account.Config{}), Log: slog.New(slog.DiscardHandler)})
	s.SetWorld(&World{Pools: []Pool{{Name: "pool", Endpoints: []Endpoint{{Address: p.address}}}}})
	defer s.Shutdown(t.Context())
	s.Handle(post("/v1/completions", `{"model":"m","prompt":"hello","stream":true}`))
	families, err := registry.Gather()
	if err != nil || !strings.Contains(fmt.Sprint(families), account.UpstreamAborted) {
		t.Errorf("%v, %v", families, err)
	}
}
