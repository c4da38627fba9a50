package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/route"
)

// website is no engine: it notes what it gets.
type website struct {
	address string
	mu      sync.Mutex
	got     []string // guarded by mu
	header  http.Header
}

// startWebsite starts one that answers with its load and a stream which no engine sends.
// Path /held is answered when held is closed.
func startWebsite(t *testing.T, held <-chan struct{}) *website {
	w := new(website)
	s := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.mu.Lock()
		w.got, w.header = append(w.got, r.Method+" "+r.RequestURI+" "+string(body)), r.Header
		w.mu.Unlock()
		if r.URL.Path == "/held" {
			out.WriteHeader(200)
			out.(http.Flusher).Flush()
			<-held
		}
		out.Header().Set("Content-Type", "text/event-stream")
		out.Header().Set("Endpoint-Load-Metrics", "kv_cache_usage_perc=1, num_requests_waiting=9")
		io.WriteString(out, "data: a\n\n")
	}))
	t.Cleanup(s.Close)
	w.address = s.Listener.Addr().String()
	return w
}

// take gives what it got, and forgets it.
func (w *website) take() (got []string, last http.Header) {
	w.mu.Lock()
	defer w.mu.Unlock()
	got, last = w.got, w.header
	w.got, w.header = nil, nil
	return got, last
}

// What is for a plain pool reaches it as it came, and nothing else does.
func TestPlainPool(t *testing.T) {
	site, engine := startWebsite(t, nil), startPod(t, "", quick)
	plain, llama := Pool{Name: "plain", Plain: true, Endpoints: []Endpoint{{Address: site.address}}}, Pool{Name: "llama", Endpoints: []Endpoint{{Address: engine.address}}}
	s := startServer(t, World{})
	s.SetWorld(&World{Pools: []Pool{plain}})
	large := `{"model": "x", "messages": 1` + strings.Repeat(" ", 1<<20) + "}"
	for path, body := range map[string]string{
		"POST /v1/chat/completions":     "this is no JSON",
		"POST /v1/completions":          chat(true, 3, "hi"), // no usage is asked for
		"POST /v1/embeddings":           large,
		"POST /v1/audio/transcriptions": "no form",
		"GET /v1/models":                "",
		"GET /v1/models/x":              "",
		"POST /v1/load_lora_adapter":    "{}",
		"PUT /v1/anything":              "else",
	} {
		method, target, _ := strings.Cut(path, " ")
		m := post(target, body)
		m.head.Method = []byte(method)
		s.Handle(m)
		got, header := site.take()
		if want := path + " " + body; len(got) != 1 || got[0] != want {
			t.Errorf("%s: it got %.200q", path, got)
		}
		if header.Get("Endpoint-Load-Metrics-Format") != "" {
			t.Errorf("%s: its load was asked for", path)
		}
		if m.answer.Status != 200 || !strings.Contains(m.seen(), "data: a\n\n") || m.field("endpoint-load-metrics") == "" {
			t.Errorf("%s: %d %s %s", path, m.answer.Status, m.fields, m.seen())
		}
	}

	// Beside one of engines, it is not asked what models there are.
	s.SetWorld(&World{Pools: []Pool{plain, llama}})
	m := post("/v1/models", "")
	m.head.Method = []byte("GET")
	s.Handle(m)
	if got, _ := site.take(); len(got) > 0 || !strings.Contains(m.seen(), `"id":"mock"`) {
		t.Errorf("%s; asked %q", m.seen(), got)
	}
	for _, e := range s.Endpoints() {
		if e.Engine != (e.Pool == "llama") {
			t.Errorf("endpoint of %s: engine %t", e.Pool, e.Engine)
		}
	}

	// A pool can become one of engines.
	plain.Plain = false
	s.SetWorld(&World{Pools: []Pool{plain}})
	if m = post("/v1/chat/completions", "this is no JSON"); true {
		s.Handle(m)
	}
	if m.answer.Status != 400 {
		t.Errorf("%d", m.answer.Status)
	}
}

// A pool that stops being plain while the body comes has the body read.
// What an unknown service may have done is not asked for twice, unless its method or its route says that this does no
// harm.
func TestPlainRequestsThatGetNoAnswer(t *testing.T) {
	for _, tt := range []struct {
		method string
		rule   *route.Retry
		used   bool // the connection has served a request before
		sent   int32
		status int
	}{
		{"POST", nil, false, 1, 502},
		{"PATCH", nil, false, 1, 502},
		{"POST", nil, true, 1, 502},
		{"POST", &route.Retry{Attempts: 1}, false, 2, 200},
		{"GET", nil, false, 2, 200},
		{"PUT", nil, false, 2, 200},
		{"DELETE", nil, true, 2, 200},
	} {
		t.Run(fmt.Sprintf("%+v", tt), func(t *testing.T) {
			var sent atomic.Int32
			answer := func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") }
			play := func(c net.Conn, in *bufio.Reader) {
				for {
					r, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					io.Copy(io.Discard, r.Body)
					switch {
					case r.URL.Path == "/before":
						answer(c)
					case sent.Add(1) == 1:
						return // it may have been served
					default:
						answer(c)
					}
				}
			}
			pool := Pool{Name: "plain", Plain: true, Endpoints: []Endpoint{{Address: scripted(t, play).address}}}
			if !tt.used { // there is no other connection to choose
				pool.Endpoints = append(pool.Endpoints, Endpoint{Address: scripted(t, play).address})
			}
			s := startServer(t, World{})
			w := &World{Pools: []Pool{pool}}
			w.Routes = []route.Route{{Name: "all", Rules: []route.Rule{{Matches: under("/"), Backends: to("plain"), Retry: tt.rule}}}}
			s.SetWorld(w)
			if tt.used {
				s.Handle(post("/before", ""))
			}
			m := post("/charge", "{}")
			m.head.Method = []byte(tt.method)
			if s.Handle(m); sent.Load() != tt.sent || m.answer.Status != tt.status {
				t.Errorf("sent %d times, answered %d: want %d, %d", sent.Load(), m.answer.Status, tt.sent, tt.status)
			}
		})
	}
}

func TestPlainPoolThatChangesWhileTheBodyComes(t *testing.T) {
	site := startWebsite(t, nil)
	pool := Pool{Name: "p", Plain: true, Endpoints: []Endpoint{{Address: site.address}}}
	for name, next := range map[string]World{
		"engines": {Pools: []Pool{{Name: "p", Endpoints: pool.Endpoints}}},
		"policy":  {Pools: []Pool{pool}, Access: authz.Config{Policies: []authz.Policy{policy(authz.Deny, authz.Rule{When: []authz.Condition{{Key: "request.model", Values: []string{"x"}}}})}}},
	} {
		s := startServer(t, World{})
		s.SetWorld(&World{Pools: []Pool{pool}})
		m := post("/v1/chat/completions", "this is no JSON")
		body := m.body
		m.body = readerFunc(func(p []byte) (int, error) {
			s.SetWorld(&next)
			return body.Read(p)
		})
		if s.Handle(m); m.answer.Status != 400 {
			t.Errorf("%s: %d", name, m.answer.Status)
		}
		if got, _ := site.take(); len(got) > 0 {
			t.Errorf("%s: it got %q", name, got)
		}
	}
}

// A body that takes long reaches the endpoint while it comes.
func TestPlainBodyIsPassedOnAsItComes(t *testing.T) {
	for _, length := range []int64{message.Unknown, 6} {
		t.Run(fmt.Sprint("length ", length), func(t *testing.T) {
			came := make(chan string, 2)
			p := scripted(t, func(c net.Conn, in *bufio.Reader) {
				defer close(came)
				r, err := http.ReadRequest(in)
				if err != nil {
					return
				}
				piece := make([]byte, 3)
				for err == nil {
					if _, err = io.ReadFull(r.Body, piece); err == nil {
						came <- string(piece)
					}
				}
				io.WriteString(c, okAnswer)
			})
			s := startServer(t, World{})
			s.SetWorld(&World{Pools: []Pool{{Name: "p", Plain: true, Endpoints: []Endpoint{{Address: p.address}}}}})
			m := post("/events", "")
			body, client := io.Pipe()
			m.body, m.head.ContentLength = body, length
			done := make(chan struct{})
			go func() { s.Handle(m); close(done) }()
			for _, piece := range []string{"one", "two"} {
				io.WriteString(client, piece)
				select {
				case got := <-came:
					if got != piece {
						t.Errorf("%q came as %q", piece, got)
					}
				case <-time.After(20 * time.Second):
					t.Errorf("%q has not come", piece)
				}
			}
			client.Close()
			<-done
			if m.answer.Status != 200 || m.seen() != "{}" {
				t.Errorf("%d %s", m.answer.Status, m.seen())
			}
			for range came {
			}
		})
	}
}

// What will not be sent again is not held, and leaves the memory for bodies to others.
func TestPlainBodyIsHeldToBeSentAgain(t *testing.T) {
	site := startWebsite(t, nil)
	for method, held := range map[string]bool{"POST": false, "PUT": true} {
		s := startServer(t, World{})
		s.SetWorld(&World{Pools: []Pool{{Name: "p", Plain: true, Endpoints: []Endpoint{{Address: site.address}}}}})
		sent := strings.Repeat("x", 8<<20)
		m := post("/upload", sent)
		m.head.Method = []byte(method)
		most, body := int64(0), m.body
		m.body = readerFunc(func(p []byte) (int, error) { most = max(most, s.Buffered()); return body.Read(p) })
		s.Handle(m)
		if got, _ := site.take(); m.answer.Status != 200 || len(got) != 1 || got[0] != method+" /upload "+sent {
			t.Errorf("%s: %d; it got %d requests", method, m.answer.Status, len(got))
		}
		if most < 4<<20 && held || most > 64<<10 && !held {
			t.Errorf("%s: %d bytes were held", method, most)
		}
	}
}

// Requests go where the fewest are, and where nobody is, to both.
func TestPlainPoolTakesTheLeastBusy(t *testing.T) {
	held := make(chan struct{})
	a, b := startWebsite(t, held), startWebsite(t, held)
	s := startServer(t, World{})
	s.SetWorld(&World{Pools: []Pool{{Name: "p", Plain: true, Endpoints: []Endpoint{{Address: a.address}, {Address: b.address}}}}})
	for count := 0; count < 64; count++ { // of each, a coin 64 times the same
		s.Handle(post("/", ""))
	}
	toA, _ := a.take()
	toB, _ := b.take()
	if len(toA) == 0 || len(toB) == 0 {
		t.Errorf("%d and %d", len(toA), len(toB))
	}

	var wg sync.WaitGroup
	started := make(chan struct{}, 1)
	first := post("/held", "")
	first.onWrite = func() {
		select {
		case started <- struct{}{}:
		default:
		}
	}
	wg.Go(func() { s.Handle(first) })
	<-started
	idle := a
	if got, _ := a.take(); len(got) > 0 {
		idle = b
	}
	for range 8 {
		s.Handle(post("/v1/chat/completions", chat(false, 1, "the same")))
	}
	if got, _ := idle.take(); len(got) != 8 {
		t.Errorf("%d of 8 went where nobody was", len(got))
	}
	close(held)
	wg.Wait()
}

// Policies about models hold there too: then what says no model for sure is refused.
func TestPlainPoolAndPoliciesAboutModels(t *testing.T) {
	site := startWebsite(t, nil)
	s := startServer(t, World{})
	s.SetWorld(&World{Pools: []Pool{{Name: "p", Plain: true, Endpoints: []Endpoint{{Address: site.address}}}}, Access: authz.Config{Policies: []authz.Policy{
		policy(authz.Deny, authz.Rule{When: []authz.Condition{{Key: "request.model", Values: []string{"secret"}}}}),
	}}})
	long := strings.Repeat("a long prompt ", 100_000)
	for body, want := range map[string]int{
		`{"model": "open", "stream": true}`:                              200,
		`{"model": "secret"}`:                                            403,
		`{"model": "open", "prompt": "` + long + `"}`:                    200,
		`{"model": "open", "prompt": "` + long + `", "model": "secret"}`: 400,
		`this is no JSON`:                                                400,
	} {
		m := post("/v1/completions", body)
		s.Handle(m)
		got, _ := site.take()
		if m.answer.Status != want || (len(got) == 1 && strings.HasSuffix(got[0], body)) != (want == 200) || len(got) > 1 {
			t.Errorf("%.60s: %d %s; it got %.100q", body, m.answer.Status, m.seen(), got)
		}
	}
}
