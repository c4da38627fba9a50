package proxy

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/picker/queue"
	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/extauthz"
	"github.com/fairway-proxy/fairway/proxy/hbone"
	"github.com/fairway-proxy/fairway/proxy/route"
)

// documentedError is a row of docs/errors.md for one status.
type documentedError struct {
	typ    string
	status int
}

// documentedErrors reads docs/errors.md: to each error the fields that its answer has.
func documentedErrors(t *testing.T) map[documentedError]string {
	t.Helper()
	page, err := os.ReadFile("../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[documentedError]string)
	for _, m := range regexp.MustCompile("(?m)^\\| `(fairway_\\w+)` \\| ([0-9, ]+) \\| (.*?) \\|").FindAllStringSubmatch(string(page), -1) {
		for _, text := range strings.Split(m[2], ", ") {
			status, err := strconv.Atoi(text)
			if err != nil {
				t.Fatal(err)
			}
			all[documentedError{m[1], status}] = m[3]
		}
	}
	return all
}

// Every error that docs/errors.md has is provoked here, and comes with the status, the type, the fields and the body that the page
// says. (That the page has all is held in package main.)
func TestEveryErrorIsAsDocumented(t *testing.T) {
	documented := documentedErrors(t)
	if len(documented) < 20 {
		t.Fatalf("found only %v", documented)
	}
	p := startPod(t, "", mock.Config{Speed: 100, LoraUpdates: true})
	hangs := scripted(t, func(c net.Conn, in *bufio.Reader) { take(in); io.Copy(io.Discard, in) })
	closes := scripted(t, func(c net.Conn, in *bufio.Reader) { take(in) })
	ask := func(m *memoryStream) func(*testing.T, *Server) *memoryStream {
		return func(_ *testing.T, s *Server) *memoryStream { s.Handle(m); return m }
	}
	hi := func(fields ...string) func(*testing.T, *Server) *memoryStream {
		return ask(post("/v1/chat/completions", chat(false, 1, "hi"), fields...))
	}
	busy := func(fields ...string) func(*testing.T, *Server) *memoryStream {
		return func(t *testing.T, s *Server) *memoryStream {
			defer occupy(t, s.pools["pool"].picker)()
			return hi(fields...)(t, s)
		}
	}
	// on a connection, as it is written
	wire := func(request string) func(*testing.T, *Server) *memoryStream {
		return func(t *testing.T, s *Server) *memoryStream { return overWire(t, s, request) }
	}
	rule := func(backends ...route.Backend) []route.Route {
		return []route.Route{{Name: "a/b", Rules: []route.Rule{{Matches: under("/v1"), Backends: backends}}}}
	}
	provoked := make(map[documentedError]bool)
	token := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256","kid":"k"}`)) + "." +
		base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"issuer","exp":4000000000}`)) + ".AAAA"
	for _, test := range []struct {
		name    string
		world   *World
		pods    []*pod
		provoke func(*testing.T, *Server) *memoryStream
		want    documentedError
	}{
		{"no JSON", nil, nil, ask(post("/v1/chat/completions", `{"model":`)), documentedError{"fairway_bad_request", 400}},
		{"a head without Host", nil, nil, wire("GET / HTTP/1.1\r\n\r\n"), documentedError{"fairway_bad_request", 400}},
		{"a chunk without size", nil, nil, wire("POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"), documentedError{"fairway_bad_request", 400}},
		{"a long target", nil, nil, wire("GET /" + strings.Repeat("a", 80<<10) + " HTTP/1.1\r\nHost: a\r\n\r\n"), documentedError{"fairway_bad_request", 414}},
		{"an expectation", nil, nil, wire("GET / HTTP/1.1\r\nHost: a\r\nExpect: more\r\n\r\n"), documentedError{"fairway_bad_request", 417}},
		{"a long head", nil, nil, wire("GET / HTTP/1.1\r\nHost: a\r\na: " + strings.Repeat("a", 80<<10) + "\r\n\r\n"), documentedError{"fairway_bad_request", 431}},
		{"a coding", nil, nil, wire("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n"), documentedError{"fairway_bad_request", 501}},
		{"a version", nil, nil, wire("GET / HTTP/3.0\r\nHost: a\r\n\r\n"), documentedError{"fairway_bad_request", 505}},
		{"no key", &World{Access: authz.Config{HasKeys: true, Required: true}}, nil, hi(), documentedError{"fairway_unauthenticated", 401}},
		{"a policy", &World{Access: authz.Config{Policies: []authz.Policy{policy(authz.Deny, authz.Rule{})}}}, nil, hi(), documentedError{"fairway_forbidden", 403}},
		{"an authorizer that is not there", &World{Authorizers: []extauthz.Provider{{Name: "p", Address: "127.0.0.1:1"}}, Access: authz.Config{Policies: []authz.Policy{custom("p", authz.Rule{})}}}, nil,
			hi(), documentedError{"fairway_authorizer_failed", 403}},
		{"a model", &World{Models: []Model{{Name: "known", Pool: "pool"}}}, nil, hi(), documentedError{"fairway_unknown_model", 404}},
		{"no rule", &World{Routes: rule()}, nil, ask(post("/v2", "{}")), documentedError{"fairway_no_route", 404}},
		{"two pools", &World{Pools: []Pool{{Name: "other"}}}, nil, ask(post("/v2", "{}")), documentedError{"fairway_no_route", 404}},
		{"a tunnel to nowhere", &World{Services: []Service{{Host: "llm", VIPs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}}}, nil, func(_ *testing.T, s *Server) *memoryStream {
			m := post("/v1/chat/completions", chat(false, 1, "hi"))
			m.conn = meshConn{peer: &hbone.Peer{Authority: "10.0.0.2:80"}}
			s.Handle(m)
			return m
		}, documentedError{"fairway_no_route", 404}},
		{"a slow body", &World{Timeouts: Timeouts{Request: time.Millisecond}}, nil, func(_ *testing.T, s *Server) *memoryStream {
			m := post("/v1/chat/completions", chat(false, 1, "hi"))
			body := m.body
			m.body = readerFunc(func(p []byte) (int, error) {
				<-time.After(2 * time.Millisecond)
				return body.Read(p[:1])
			})
			s.Handle(m)
			return m
		}, documentedError{"fairway_timeout", 408}},
		{"a large body", &World{Limits: Limits{Body: 10}}, nil, hi(), documentedError{"fairway_body_too_large", 413}},
		{"a busy pool, sheddable", &World{Queue: Queue{SheddableWait: time.Millisecond}, Objectives: []Objective{{"batch", "pool", -1}}}, nil,
			busy("x-gateway-inference-objective", "batch"), documentedError{"fairway_saturated", 429}},
		{"a full queue", &World{Queue: Queue{Bytes: 1}}, nil, busy(), documentedError{"fairway_queue_full", 429}},
		{"a long wait", &World{Queue: Queue{Wait: time.Millisecond}}, nil, busy(), documentedError{"fairway_queue_timeout", 429}},
		{"a hurry", nil, nil, busy("x-envoy-expected-rq-timeout-ms", "1"), documentedError{"fairway_deadline", 429}},
		{"an SLO that nobody meets, sheddable", &World{Objectives: []Objective{{"batch", "pool", -1}}}, nil,
			busy("x-gateway-inference-objective", "batch", "x-slo-ttft-ms", "1"), documentedError{"fairway_slo", 429}},
		{"a budget", &World{Budgets: []queue.Limit{{TokensPerMinute: 100}}}, nil, func(t *testing.T, s *Server) *memoryStream {
			for { // each takes a hundred, if there is as much
				if m := hi()(t, s); m.answer.Status != 200 {
					return m
				}
			}
		}, documentedError{"fairway_budget_exceeded", 429}},
		{"as many requests as one may have", &World{Limits: Limits{RequestsByPrincipal: 1}}, nil, func(t *testing.T, s *Server) *memoryStream {
			who := owner{network: netip.MustParseAddr("192.0.2.1")}
			s.shares.take(who, 1)
			defer s.shares.give(who)
			return hi()(t, s)
		}, documentedError{"fairway_too_many_requests", 429}},
		{"a fault", nil, nil, func(_ *testing.T, s *Server) *memoryStream {
			m := post("/v1/chat/completions", "{}")
			m.body = panicking{}
			s.Handle(m)
			return m
		}, documentedError{"fairway_internal", 500}},
		{"a rule without backend", &World{Routes: rule(route.Backend{Pool: "nowhere", Weight: 1})}, nil, hi(), documentedError{"fairway_no_backend", 500}},
		{"an engine that closes", nil, []*pod{closes}, hi(), documentedError{"fairway_upstream_failed", 502}},
		{"an adapter that half of the engines load", nil, []*pod{p, closes}, ask(post("/v1/load_lora_adapter", `{"lora_name":"a","lora_path":"b"}`)), documentedError{"fairway_partly_done", 502}},
		{"a pool without engines", nil, []*pod{}, hi(), documentedError{"fairway_no_endpoint", 503}},
		{"a picker that is not there", nil, nil, func(t *testing.T, s *Server) *memoryStream {
			s.SetWorld(&World{Pools: []Pool{{Name: "pool", Endpoints: []Endpoint{{Address: p.address}}, Picker: &Picker{Address: "127.0.0.1:1", Plain: true, Timeout: 50 * time.Millisecond}}}})
			return hi()(t, s)
		}, documentedError{"fairway_picker_failed", 503}},
		{"before the first World", nil, nil, func(t *testing.T, _ *Server) *memoryStream {
			s := New(Config{Account: account.New(prometheus.NewRegistry(), account.Config{}), Log: slog.New(slog.DiscardHandler)})
			defer s.Shutdown(t.Context())
			return hi()(t, s)
		}, documentedError{"fairway_not_ready", 503}},
		{"buffers", &World{Limits: Limits{Buffers: 10}}, nil, hi(), documentedError{"fairway_buffers_spent", 503}},
		{"no more connections", nil, nil, func(t *testing.T, _ *Server) *memoryStream {
			s := New(Config{Account: account.New(prometheus.NewRegistry(), account.Config{}), Log: slog.New(slog.DiscardHandler),
				Tunnel: func(context.Context, string, spiffeid.ID) (net.Conn, error) { return nil, syscall.EMFILE }})
			defer s.Shutdown(t.Context())
			s.SetWorld(&World{Pools: []Pool{{Name: "pool", Endpoints: []Endpoint{{Address: "127.0.0.1:1", Scheme: SchemeHBONE}}}}})
			return hi()(t, s)
		}, documentedError{"fairway_exhausted", 503}},
		{"keys that cannot be fetched", &World{Access: authz.Config{Tokens: []authz.TokenRule{{Issuer: "issuer", JWKSURI: "http://127.0.0.1:1/keys", Timeout: time.Second}}}}, nil,
			hi("Authorization", "Bearer "+token), documentedError{"fairway_keys_unavailable", 503}},
		{"an engine that hangs", &World{Timeouts: Timeouts{FirstByte: time.Millisecond}}, []*pod{hangs}, hi(), documentedError{"fairway_timeout", 504}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := World{}
			if test.world != nil {
				w = *test.world
			}
			pods := test.pods
			if pods == nil {
				pods = []*pod{p}
			}
			s := startServer(t, w, pods...)
			m := test.provoke(t, s)
			typ, says := refusal(t, m)
			got := documentedError{typ, m.answer.Status}
			fields, ok := documented[got]
			if !ok || got != test.want || says == "" {
				t.Fatalf("got %v: %s; want %v", got, says, test.want)
			}
			for field, word := range map[string]string{
				"retry-after": "Retry-After", "www-authenticate": "WWW-Authenticate", "x-llm-d-request-dropped-reason": "dropped-reason: " + m.field("x-llm-d-request-dropped-reason"),
			} {
				if has := m.field(field) != ""; has != strings.Contains(fields, word) {
					t.Errorf("%s: %v, documented: %s", word, has, fields)
				}
			}
			if m.field("x-request-id") == "" || m.field("content-type") != "application/json" {
				t.Errorf("fields %s", m.fields)
			}
		})
		provoked[test.want] = true
	}
	for e := range documented {
		if !provoked[e] {
			t.Errorf("%v is documented, and nothing here provokes it", e)
		}
	}
}

// overWire sends a request as it is written, and gives the answer as one in memory.
func overWire(t *testing.T, s *Server, request string) *memoryStream {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() { s.Shutdown(t.Context()); <-served })
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go io.WriteString(c, request) // it may be refused before it was taken
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || !json.Valid(body) {
		t.Fatalf("%q: %v", body, err)
	}
	m := &memoryStream{finished: true}
	m.answer.Status = resp.StatusCode
	m.written.Write(body)
	m.flushed = len(body)
	for name := range resp.Header {
		m.fields = append(m.fields, field(name, resp.Header.Get(name))...)
	}
	return m
}
