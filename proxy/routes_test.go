package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/hbone"
	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/route"
)

// routed makes a World with a pool for each pod, named a, b and so on, and these
// rules in one route.
func routed(t testing.TB, rules []route.Rule, pods ...*pod) (*Server, World) {
	t.Helper()
	w := World{Routes: []route.Route{{Name: "r", Rules: rules}}}
	for i, p := range pods {
		w.Pools = append(w.Pools, Pool{Name: string(rune('a' + i)), Endpoints: []Endpoint{{Address: p.address}}})
	}
	s := startServer(t, World{})
	s.SetWorld(&w)
	return s, w
}

func to(pool string) []route.Backend { return []route.Backend{{Pool: pool, Weight: 1}} }

func under(path string) []route.Match {
	return []route.Match{{Path: route.PathMatch{Type: route.PathPrefix, Value: path}}}
}

func field(name, value string) []message.Field {
	return []message.Field{{Name: []byte(name), Value: []byte(value)}}
}

func TestRouteChoosesThePoolAndChangesTheRequest(t *testing.T) {
	a, b := startPod(t, "", quick), startPod(t, "", quick)
	s, _ := routed(t, []route.Rule{
		{Matches: under("/llama"), Backends: to("a"), Filters: route.Filters{
			RequestHeaders:  &route.HeaderModifier{Set: field("x-team", "llama"), Remove: []string{"x-secret"}},
			ResponseHeaders: &route.HeaderModifier{Set: field("x-served-by", "a"), Remove: []string{"server"}},
			Rewrite:         &route.Rewrite{Hostname: "in.example", Path: &route.PathModifier{Prefix: true, Replacement: "/"}},
		}},
		{Matches: under("/v1"), Backends: []route.Backend{{Pool: "b", Weight: 1, RequestHeaders: &route.HeaderModifier{Add: field("x-pool", "b")},
			ResponseHeaders: &route.HeaderModifier{Add: field("x-served-by", "b")}}}},
	}, a, b)
	var got *http.Request
	note := func(r *http.Request, _ []byte) { got = r }
	a.SetFaults(mock.Faults{OnRequest: note})
	b.SetFaults(mock.Faults{OnRequest: note})

	m := post("/llama/v1/chat/completions", chat(true, 3, "hi"), "X-Secret", "s", "X-Team", "mine")
	s.Handle(m)
	if m.answer.Status != 200 || a.Stats().Received != 1 {
		t.Fatalf("%d %s", m.answer.Status, m.seen())
	}
	if got.RequestURI != "/v1/chat/completions" || got.Host != "in.example" || got.Header.Get("X-Secret") != "" || !slices.Equal(got.Header.Values("X-Team"), []string{"llama"}) {
		t.Errorf("the engine got %s for %s with %v", got.RequestURI, got.Host, got.Header)
	}
	if m.field("x-served-by") != "a" || m.field("server") != "" || m.field("x-request-id") == "" {
		t.Errorf("the client got %s", m.fields)
	}
	// The path that was rewritten is the one that says what is asked: the usage
	// event that nobody asked for is withheld.
	if strings.Contains(m.seen(), `"usage"`) || !strings.Contains(m.seen(), "[DONE]") {
		t.Errorf("not read as a chat: %s", m.seen())
	}

	m = post("/v1/chat/completions", chat(false, 3, "hi"))
	s.Handle(m)
	if m.answer.Status != 200 || b.Stats().Received != 1 || got.Header.Get("X-Pool") != "b" || m.field("x-served-by") != "b" {
		t.Errorf("%d, %v, %s", m.answer.Status, got.Header, m.fields)
	}

	// What is matched is what is sent: one spelling.
	m = post("/x/../llama/%76%31/chat/completions", chat(false, 3, "hi"))
	s.Handle(m)
	if m.answer.Status != 200 || a.Stats().Received != 2 || got.RequestURI != "/v1/chat/completions" {
		t.Errorf("%d: the engine got %s", m.answer.Status, got.RequestURI)
	}
}

func TestRequestsThatNoRuleServes(t *testing.T) {
	a := startPod(t, "", quick)
	s, _ := routed(t, []route.Rule{
		{Matches: under("/gone"), Backends: to("none")},
		{Matches: under("/zero"), Backends: []route.Backend{{Pool: "a", Weight: 0}}},
		{Matches: under("/nothing")},
		{Matches: under("/old"), Filters: route.Filters{Redirect: &route.Redirect{Hostname: "new.example", Status: 301, Path: &route.PathModifier{Prefix: true, Replacement: "/new"}},
			ResponseHeaders: &route.HeaderModifier{Set: field("cache-control", "no-store")}}},
	}, a)
	for _, test := range []struct {
		path   string
		status int
		typ    string
	}{
		{"/v1/chat/completions", 404, "fairway_no_route"},
		{"/gone/x", 500, "fairway_no_backend"},
		{"/zero/x", 500, "fairway_no_backend"},
		{"/nothing", 500, "fairway_no_backend"},
	} {
		m := post(test.path, chat(false, 1, "hi"))
		s.Handle(m)
		if typ, says := refusal(t, m); m.answer.Status != test.status || typ != test.typ {
			t.Errorf("%s: %d %s %s", test.path, m.answer.Status, typ, says)
		}
	}
	m := post("/old/x?y", "{}")
	s.Handle(m)
	if m.answer.Status != 301 || m.field("location") != "http://new.example/new/x?y" || m.field("cache-control") != "no-store" || !m.finished || m.answer.ContentLength != 0 {
		t.Errorf("%d %s", m.answer.Status, m.fields)
	}
	if n := a.Stats().Received; n != 0 {
		t.Errorf("%d requests went to an engine", n)
	}
}

// Over TLS a redirect stays with TLS, and policies may go by the name that was asked for.
func TestRequestsOverTLS(t *testing.T) {
	p := startPod(t, "", quick)
	s, w := routed(t, []route.Rule{
		{Matches: under("/old"), Filters: route.Filters{Redirect: &route.Redirect{Status: 301, Path: &route.PathModifier{Prefix: true, Replacement: "/new"}}}},
		{Backends: to("a")},
	}, p)
	w.Gateway.Policies = []*authz.Policy{{Name: "not-there", Action: authz.Deny, Rules: []authz.Rule{{When: []authz.Condition{{Key: "connection.sni", Values: []string{"*.example.com"}}}}}}}
	s.SetWorld(&w)
	site := httptest.NewTLSServer(nil) // for its certificate
	defer site.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(tls.NewListener(l, site.TLS)) }()
	defer func() { s.Shutdown(t.Context()); <-served }()
	for name, want := range map[string]int{"example.com": 301, "www.example.com": 403} {
		client := &http.Client{
			Transport:     &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: name}},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
		resp, err := client.Get("https://" + l.Addr().String() + "/old/x")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		client.CloseIdleConnections()
		if got := resp.Header.Get("Location"); resp.StatusCode != want || want == 301 && got != "https://"+l.Addr().String()+"/new/x" {
			t.Errorf("asked for as %s: %d %q, want %d", name, resp.StatusCode, got, want)
		}
	}
}

// The shares of a backend that does not exist and of a pool without endpoints are
// answered with 500 and 503; the others serve.
func TestWeightedBackends(t *testing.T) {
	a, b := startPod(t, "", quick), startPod(t, "", quick)
	s, w := routed(t, []route.Rule{{Backends: []route.Backend{{Pool: "a", Weight: 60}, {Pool: "b", Weight: 20}, {Pool: "", Weight: 10}, {Pool: "empty", Weight: 10}}}}, a, b)
	w.Pools = append(w.Pools, Pool{Name: "empty"})
	s.SetWorld(&w)
	const n = 1000
	statuses := make(map[int]int)
	for range n {
		m := post("/v1/chat/completions", chat(false, 1, "hi"))
		s.Handle(m)
		statuses[m.answer.Status]++
	}
	got := []int{int(a.Stats().Received), int(b.Stats().Received), statuses[500], statuses[503]}
	for i, want := range []int{600, 200, 100, 100} {
		if got[i] < want-80 || got[i] > want+80 { // five standard deviations
			t.Errorf("%v of %d requests went to a, b, no backend and an empty pool", got, n)
			break
		}
	}
}

// A model belongs to a pool: a route chooses the pool, and its models say what may
// be asked for there.
func TestModelsApplyWithinTheRoutesPool(t *testing.T) {
	a, b := startPod(t, "", mock.Config{Speed: 100, Model: "a-v1"}), startPod(t, "", mock.Config{Speed: 100, Model: "b-v1"})
	c := startPod(t, "", quick)
	s, w := routed(t, []route.Rule{
		{Matches: under("/a"), Backends: to("a"), Filters: route.Filters{Rewrite: &route.Rewrite{Path: &route.PathModifier{Prefix: true}}}},
		{Matches: under("/b"), Backends: to("b"), Filters: route.Filters{Rewrite: &route.Rewrite{Path: &route.PathModifier{Prefix: true}}}},
		{Matches: under("/c"), Backends: to("c"), Filters: route.Filters{Rewrite: &route.Rewrite{Path: &route.PathModifier{Prefix: true}}}},
		{Matches: under("/v1/models"), Backends: []route.Backend{{Pool: "a", Weight: 1}, {Pool: "b", Weight: 1}}},
	}, a, b, c)
	w.Models = []Model{
		{Name: "chat", Pool: "a", Targets: []Target{{"a-v1", 1}}}, {Name: "only-a", Pool: "a", Targets: []Target{{"a-v1", 1}}},
		{Name: "chat", Pool: "b", Targets: []Target{{"b-v1", 1}}},
	}
	s.SetWorld(&w)
	for _, test := range []struct {
		path, model string
		status      int
		to          *pod
	}{
		{"/a", "chat", 200, a}, {"/b", "chat", 200, b}, {"/a", "only-a", 200, a}, {"/b", "only-a", 404, nil}, {"/c", "mock", 200, c},
	} {
		before := map[*pod]int{}
		for _, p := range []*pod{a, b, c} {
			before[p] = int(p.Stats().Received)
		}
		m := post(test.path+"/v1/chat/completions", strings.Replace(chat(false, 1, "hi"), `"mock"`, `"`+test.model+`"`, 1))
		s.Handle(m)
		if m.answer.Status != test.status {
			t.Errorf("%s at %s: %d %s", test.model, test.path, m.answer.Status, m.seen())
		}
		for p, n := range before {
			if want := n; p == test.to && int(p.Stats().Received) != want+1 || p != test.to && int(p.Stats().Received) != want {
				t.Errorf("%s at %s went to the wrong pool", test.model, test.path)
			}
		}
	}
	for path, want := range map[string]string{"/a/v1/models": "chat only-a", "/b/v1/models": "chat", "/c/v1/models": "mock", "/v1/models": "chat only-a"} {
		m := post(path, "")
		m.head.Method = []byte("GET")
		s.Handle(m)
		var list struct{ Data []struct{ ID string } }
		if err := json.Unmarshal([]byte(m.seen()), &list); err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, d := range list.Data {
			ids = append(ids, d.ID)
		}
		if got := strings.Join(ids, " "); got != want {
			t.Errorf("%s lists %q, want %q", path, got, want)
		}
	}
}

// A new World is in force for what it is asked from then on; a pool that left while
// a body came in takes nothing.
func TestPoolThatLeftWhileTheBodyCame(t *testing.T) {
	a := startPod(t, "", quick)
	s, w := routed(t, []route.Rule{{Backends: to("a")}}, a)
	m := post("/v1/chat/completions", chat(false, 1, "hi"))
	m.body = readerFunc(func(p []byte) (int, error) {
		w := w
		w.Pools = []Pool{{Name: "other", Endpoints: w.Pools[0].Endpoints}}
		s.SetWorld(&w)
		return strings.NewReader(chat(false, 1, "hi")).Read(p)
	})
	s.Handle(m)
	if typ, _ := refusal(t, m); typ != "fairway_no_endpoint" {
		t.Errorf("%d %s", m.answer.Status, typ)
	}
}

// HTTPRouteTimeoutRequest and HTTPRouteTimeoutBackendRequest.
func TestRouteTimeouts(t *testing.T) {
	asked := make(chan bool, 16) // once for each attempt, which has a connection of its own
	slow := scripted(t, func(_ net.Conn, in *bufio.Reader) {
		asked <- true
		io.Copy(io.Discard, in)
	})
	d := 30 * time.Millisecond
	for _, test := range []struct {
		name     string
		timeouts route.Timeouts
		retry    *route.Retry
		sent     int
	}{
		{"request", route.Timeouts{Request: &d}, nil, 1},
		{"request, with retries", route.Timeouts{Request: &d}, &route.Retry{Attempts: 2}, 1},
		{"backend request", route.Timeouts{BackendRequest: &d}, nil, 1},
		{"backend request, with retries", route.Timeouts{BackendRequest: &d}, &route.Retry{Attempts: 2, Backoff: time.Millisecond}, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, _ := routed(t, []route.Rule{{Backends: to("a"), Timeouts: test.timeouts, Retry: test.retry}}, slow)
			m := post("/v1/chat/completions", chat(false, 5, "hi"))
			s.Handle(m)
			typ, says := refusal(t, m)
			if m.answer.Status != 504 || typ != "fairway_timeout" || !strings.Contains(says, d.String()) {
				t.Errorf("%d %s %s", m.answer.Status, typ, says)
			}
			if test.timeouts.Request != nil {
				return // its time may be over before it is sent
			}
			if n := 1 + s.account.Receipts(account.Query{})[0].Retries; n != test.sent {
				t.Errorf("sent %d times, want %d", n, test.sent)
			}
			for range test.sent {
				<-asked
			}
		})
	}
	// Zero disables the World's.
	zero := time.Duration(0)
	a := startPod(t, "", quick)
	s, w := routed(t, []route.Rule{{Backends: to("a"), Timeouts: route.Timeouts{Request: &zero}}}, a)
	w.Timeouts.Request = time.Nanosecond
	s.SetWorld(&w)
	m := post("/v1/chat/completions", chat(false, 1, "hi"))
	if s.Handle(m); m.answer.Status != 200 {
		t.Errorf("%d %s", m.answer.Status, m.seen())
	}
}

// HTTPRouteRetry: the answers that are asked for again, how often, and what the
// client sees.
func TestRouteRetries(t *testing.T) {
	for _, test := range []struct {
		name   string
		retry  *route.Retry
		fail   int // so many requests, with status
		status int
		want   int
		sent   int
	}{
		{"succeeds after 2 retries", &route.Retry{Codes: []int{500}, Attempts: 3}, 2, 500, 200, 3},
		{"fails when the retries are used up", &route.Retry{Codes: []int{500}, Attempts: 3}, 9, 500, 500, 4},
		{"another status", &route.Retry{Codes: []int{500}, Attempts: 3}, 9, 503, 503, 1},
		{"all statuses", &route.Retry{Codes: []int{500, 502, 503, 504}, Attempts: 2}, 1, 504, 200, 2},
		{"no attempts", &route.Retry{Codes: []int{500}}, 1, 500, 500, 1},
		{"no retry", nil, 1, 500, 500, 1},
		{"with a pause", &route.Retry{Codes: []int{503}, Attempts: 2, Backoff: time.Millisecond}, 2, 503, 200, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, pods := range []int{1, 2} {
				var sent atomic.Int64
				w := World{Routes: []route.Route{{Name: "r", Rules: []route.Rule{{Backends: to("pool"), Retry: test.retry}}}}}
				var all []*pod
				for range pods {
					all = append(all, failing(t, &sent, test.fail, test.status))
				}
				s := startServer(t, w, all...)
				m := post("/v1/chat/completions", chat(false, 1, "hi"))
				s.Handle(m)
				if m.answer.Status != test.want || int(sent.Load()) != test.sent {
					t.Errorf("with %d pods: %d after %d requests, want %d after %d: %s", pods, m.answer.Status, sent.Load(), test.want, test.sent, m.seen())
				}
				if s.Buffered() != 0 {
					t.Errorf("%d bytes are still held", s.Buffered())
				}
			}
		})
	}
}

// failing is an engine that counts what it is sent and answers the first of it
// with a status.
func failing(t *testing.T, sent *atomic.Int64, first, status int) *pod {
	engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if sent.Add(1) <= int64(first) {
			w.WriteHeader(status)
		}
	}))
	t.Cleanup(engine.Close)
	return &pod{address: engine.Listener.Addr().String()}
}

func TestBackOffDoubles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := Exchange{progress: progress{stream: post("/", ""), ctx: context.Background()}}
		x.found.Rule = &route.Rule{Retry: &route.Retry{Backoff: time.Second}}
		for i, want := range []time.Duration{1, 2, 4, 8, 16, 16, 16} {
			x.resends = i + 1
			before := time.Now()
			if err := x.backOff(); err != nil {
				t.Fatal(err)
			}
			if got := time.Since(before); got != want*time.Second {
				t.Errorf("the %d. wait was %s", i+1, got)
			}
		}
		m := post("/", "")
		x.stream, x.ctx = m, m.ctx
		time.AfterFunc(3*time.Second, m.leave)
		before := time.Now()
		if err := x.backOff(); err != errGone || time.Since(before) != 3*time.Second {
			t.Errorf("%v after %s", err, time.Since(before))
		}
	})
}

// HTTPRouteRequestMirror and -MultipleMirrors: copies reach the pools, whatever
// becomes of them.
func TestMirror(t *testing.T) {
	a, b := startPod(t, "", quick), startPod(t, "", mock.Config{Speed: 100, Model: "b-v1"})
	type copied struct{ host, path, team, id, body string }
	got := make(chan copied, 8)
	b.SetFaults(mock.Faults{OnRequest: func(r *http.Request, body []byte) {
		got <- copied{r.Host, r.RequestURI, r.Header.Get("X-Team"), r.Header.Get("X-Request-Id"), string(body)}
	}})
	s, w := routed(t, []route.Rule{{Backends: to("a"), Filters: route.Filters{
		RequestHeaders: &route.HeaderModifier{Set: field("x-team", "llama")},
		Rewrite:        &route.Rewrite{Path: &route.PathModifier{Replacement: "/v1/chat/completions"}},
		Mirrors:        []route.Mirror{{Pool: "b"}, {Pool: "b"}, {Pool: "none"}, {Pool: "b", Numerator: 0, Denominator: 100}},
	}}}, a, b)
	w.Models = []Model{{Name: "mock", Pool: "a"}, {Name: "mock", Pool: "b", Targets: []Target{{"b-v1", 1}}}}
	s.SetWorld(&w)
	m := post("/mirrored", strings.TrimSuffix(chat(true, 3, "hi"), "}")+`,"metadata":{"pad":"`+strings.Repeat("x", wholeSize)+`"}}`)
	s.Handle(m)
	if m.answer.Status != 200 || !strings.Contains(m.seen(), "[DONE]") {
		t.Fatalf("%d %s", m.answer.Status, m.seen())
	}
	for range 2 {
		c := <-got
		if c.host != "fairway.test" || c.path != "/v1/chat/completions" || c.team != "llama" || c.id != m.field("x-request-id") || !strings.Contains(c.body, `"model":"b-v1"`) {
			t.Errorf("the copy is %.300v", c)
		}
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if len(got) > 0 || s.Buffered() != 0 {
		t.Errorf("%d copies more, %d bytes held", len(got), s.Buffered())
	}
}

// A copy that is never answered holds up neither the client nor the end.
func TestMirrorThatHangs(t *testing.T) {
	a, b := startPod(t, "", quick), startPod(t, "", quick)
	got := make(chan bool, 1)
	b.SetFaults(mock.Faults{HeaderDelay: time.Hour, OnRequest: func(*http.Request, []byte) { got <- true }})
	s, _ := routed(t, []route.Rule{{Backends: to("a"), Filters: route.Filters{Mirrors: []route.Mirror{{Pool: "b"}}}}}, a, b)
	m := post("/v1/chat/completions", chat(false, 1, "hi"))
	s.Handle(m)
	if m.answer.Status != 200 {
		t.Fatalf("%d %s", m.answer.Status, m.seen())
	}
	<-got
	if err := s.Shutdown(t.Context()); err != nil || s.Live() != 0 {
		t.Errorf("%v, %d live", err, s.Live())
	}
	// None begins after the end.
	s.Handle(post("/v1/chat/completions", chat(false, 1, "hi")))
	if s.Buffered() != 0 {
		t.Errorf("%d bytes are still held", s.Buffered())
	}
}

func BenchmarkExchangeWithRoutes(b *testing.B) {
	answer := "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 75\r\n\r\n" +
		`{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":1,"total":10}}`
	for _, n := range []int{0, 1, 1000} {
		b.Run(fmt.Sprintf("%d", n), func(b *testing.B) {
			w := World{}
			for i := range n {
				w.Routes = append(w.Routes, route.Route{Rules: []route.Rule{{Matches: under("/v1/chat"), Backends: to("pool")}}})
				if i > 0 {
					w.Routes[i].Hostnames = []string{fmt.Sprintf("t%d.example.com", i)}
				}
			}
			s := startServer(b, w, canned(b, answer))
			body := chat(false, 1, strings.Repeat("a prompt of some length. ", 41))
			b.ReportAllocs()
			for b.Loop() {
				s.Handle(sink{post("/v1/chat/completions", body)})
			}
		})
	}
}

// A Model without a name is for all that its pool does not name.
func TestModelForAllOtherNames(t *testing.T) {
	a := startPod(t, "", mock.Config{Speed: 100, Model: "a-v1"})
	w := World{Models: []Model{{Name: "known", Pool: "pool", Targets: []Target{{"a-v1", 1}}}, {Pool: "pool", Targets: []Target{{"other-v1", 1}}}}}
	s := startServer(t, w, a)
	var got string
	a.SetFaults(mock.Faults{OnRequest: func(_ *http.Request, body []byte) { got = string(body) }})
	for model, target := range map[string]string{"known": "a-v1", "whatever": "other-v1"} {
		s.Handle(post("/v1/chat/completions", strings.Replace(chat(false, 1, "hi"), `"mock"`, `"`+model+`"`, 1)))
		if !strings.Contains(got, `"model":"`+target+`"`) {
			t.Errorf("%s is asked for with %s", model, got)
		}
	}
	m := post("/v1/models", "")
	m.head.Method = []byte("GET")
	if s.Handle(m); strings.Count(m.seen(), `"id"`) != 1 || !strings.Contains(m.seen(), `"known"`) {
		t.Errorf("lists %s", m.seen())
	}
	w.Models[1].Targets = nil
	w.Pools = []Pool{{Name: "pool", Endpoints: []Endpoint{{Address: a.address}}}}
	s.SetWorld(&w)
	body := strings.Replace(chat(false, 1, "hi"), `"mock"`, `"whatever"`, 1)
	if s.Handle(post("/v1/chat/completions", body)); got != body {
		t.Errorf("%s is sent as %s", body, got)
	}
}

// meshConn is a connection of the mesh.
type meshConn struct {
	net.Conn
	peer *hbone.Peer
}

func (c meshConn) Peer() *hbone.Peer    { return c.peer }
func (c meshConn) LocalAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 15008} }
func (c meshConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 4711} }

// Routes of a port of a Service are for what is called there, whatever the host
// that the request names; those of the plain listener are not.
func TestRoutesOfAServicePort(t *testing.T) {
	a, b := startPod(t, "", quick), startPod(t, "", quick)
	s, w := routed(t, []route.Rule{{Matches: under("/plain"), Backends: to("a")}}, a, b)
	w.Services = []Service{
		{Host: "llm.default.svc.cluster.local", VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.7")}, Ports: []ServicePort{
			{Port: 80, Protocol: PortHTTP, Pool: "b", Routes: []route.Route{{Rules: []route.Rule{{Matches: under("/v1"), Backends: to("a")}}}}},
			{Port: 81, Protocol: PortHTTP, Pool: "b"},
		}},
		{Host: "secret.default.svc.cluster.local", VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.8")}, Access: authz.Scope{Withheld: "its policies are not known"},
			Ports: []ServicePort{{Port: 80, Protocol: PortHTTP, Pool: "b"}}},
	}
	s.SetWorld(&w)
	for _, test := range []struct {
		authority, path string
		status          int
		to              *pod
		typ             string
	}{
		{"10.96.0.7:80", "/v1/chat/completions", 200, a, ""},
		{"10.96.0.7:80", "/v2/chat/completions", 404, nil, "fairway_no_route"},
		{"10.96.0.7:80", "/plain", 404, nil, "fairway_no_route"},
		{"10.96.0.7:81", "/v1/chat/completions", 200, b, ""},
		{"10.96.0.8:80", "/v1/chat/completions", 503, nil, "fairway_not_ready"},
		{"10.96.0.9:80", "/v1/chat/completions", 404, nil, "fairway_no_route"},
	} {
		before := map[*pod]int{a: int(a.Stats().Received), b: int(b.Stats().Received)}
		m := post(test.path, chat(false, 1, "hi"))
		m.conn = meshConn{peer: &hbone.Peer{Authority: test.authority}}
		s.Handle(m)
		typ := ""
		if m.answer.Status != 200 {
			typ, _ = refusal(t, m)
		}
		if m.answer.Status != test.status || typ != test.typ {
			t.Errorf("%s%s: %d %s", test.authority, test.path, m.answer.Status, m.seen())
		}
		for p, n := range before {
			if p == test.to {
				n++
			}
			if int(p.Stats().Received) != n {
				t.Errorf("%s%s went to the wrong pool", test.authority, test.path)
			}
		}
	}
}
