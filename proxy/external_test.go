package proxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/picker/queue"
	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/extauthz"
	"github.com/fairway-proxy/fairway/proxy/hbone"
)

// grpcAuthorizer is a provider that answers as answer says.
type grpcAuthorizer struct {
	authv3.UnimplementedAuthorizationServer
	answer func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error)
	asked  atomic.Int64
}

func (g *grpcAuthorizer) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	g.asked.Add(1)
	return g.answer(ctx, r)
}

// startAuthorizer runs one and gives its address.
func startAuthorizer(t *testing.T, answer func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error)) (*grpcAuthorizer, string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &grpcAuthorizer{answer: answer}
	s := grpc.NewServer()
	authv3.RegisterAuthorizationServer(s, g)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		<-served
	})
	return g, l.Addr().String()
}

func ok(r *authv3.OkHttpResponse) *authv3.CheckResponse {
	return &authv3.CheckResponse{Status: status.New(codes.OK, "").Proto(), HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: r}}
}

func no(code int, body string, fields ...string) *authv3.CheckResponse {
	return &authv3.CheckResponse{Status: status.New(codes.PermissionDenied, "").Proto(), HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
		Status: &typev3.HttpStatus{Code: typev3.StatusCode(code)}, Body: body, Headers: options(fields...),
	}}}
}

func options(fields ...string) (all []*corev3.HeaderValueOption) {
	for i := 0; i < len(fields); i += 2 {
		all = append(all, &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: fields[i], Value: fields[i+1]}})
	}
	return all
}

// custom is a policy that has everything that r matches asked of a provider.
func custom(provider string, r authz.Rule) authz.Policy {
	return authz.Policy{Name: "ask-" + provider, Action: authz.Custom, Provider: provider, Rules: []authz.Rule{r}}
}

// A provider allows, denies, changes what it may, and fails in every way there is.
func TestExternalAuthorizerByGRPC(t *testing.T) {
	answers := map[string]func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error){
		"ok": func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
			return &authv3.CheckResponse{}, nil
		},
		"denied": func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) { return no(0, ""), nil },
		"answered": func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
			return no(302, "go there", "Location", "https://login.example/", "Connection", "close"), nil
		},
		"redirected": func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
			return no(302, "go there", "Location", "https://login.example/"), nil
		},
		"changed": func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
			return ok(&authv3.OkHttpResponse{
				Headers: options("X-User", "me", "x-fairway-explain", "1", "x-forwarded-for", "1.2.3.4", "x-request-id", "forged", "x_under", "1", "x-gateway-destination-endpoint", "1.2.3.4:5",
					"x-from-token", "forged"),
				HeadersToRemove:      []string{"X-Secret", "x-request-id", "content-length"},
				ResponseHeadersToAdd: options("x-told", "yes", "x-request-id", "forged"),
			}), nil
		},
		"framing": func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
			return ok(&authv3.OkHttpResponse{Headers: options("content-length", "5")}), nil
		},
		"splitting": func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
			return ok(&authv3.OkHttpResponse{Headers: options("x-a", "b\r\nx-c: d")}), nil
		},
		"both": func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
			r := no(403, "")
			r.Status.Code = int32(codes.OK)
			return r, nil
		},
		"strange status": func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) { return no(101, ""), nil },
		"odd option": func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
			r := no(403, "", "X-A", "b")
			r.GetDeniedResponse().Headers[0].AppendAction = corev3.HeaderValueOption_ADD_IF_ABSENT
			return r, nil
		},
		"denied as allowed": func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
			r := ok(&authv3.OkHttpResponse{})
			r.Status.Code = int32(codes.PermissionDenied)
			return r, nil
		},
		"query": func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
			return ok(&authv3.OkHttpResponse{QueryParametersToRemove: []string{"a"}}), nil
		},
		"error": func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
			return nil, errors.New("broken")
		},
		"slow": func(ctx context.Context, _ *authv3.CheckRequest) (*authv3.CheckResponse, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
	}
	var asked atomic.Pointer[authv3.CheckRequest]
	_, address := startAuthorizer(t, func(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		asked.Store(r)
		return answers[r.Attributes.Request.Http.Headers["x-case"]](ctx, r)
	})
	garbage := listenTCP(t, func(c *net.TCPConn) {
		io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
		io.Copy(io.Discard, c)
	})
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	const short = 300 * time.Millisecond
	p := startPod(t, "", quick)
	reached := seen(p)
	s := startServer(t, World{
		Authorizers: []extauthz.Provider{
			{Name: "p", Address: address, Timeout: time.Minute}, {Name: "short", Address: address, Timeout: short}, {Name: "503", Address: address, Timeout: short, StatusOnError: 503},
			{Name: "open", Address: address, Timeout: short, FailOpen: true},
			{Name: "dead", Address: closed.Addr().String()}, {Name: "garbage", Address: garbage, Timeout: short},
		},
		Access: authz.Config{
			Policies: []authz.Policy{
				custom("p", on("p")), custom("short", on("short")), custom("503", on("503")), custom("open", on("open")), custom("dead", on("dead")), custom("garbage", on("garbage")), custom("nobody", on("nobody")),
				policy(authz.Deny, authz.Rule{When: []authz.Condition{{Key: "request.headers[x-user]", Values: []string{"evil"}}}}),
			},
			Tokens: []authz.TokenRule{{Issuer: "i", JWKS: `{"keys":[]}`, OutputClaimToHeaders: []authz.ClaimHeader{{Header: "x-from-token", Claim: "sub"}}}},
		},
	}, p)
	for _, tt := range []struct {
		provider, say string
		status        int
		typ           string // of a refusal that is ours
	}{
		{"", "", 200, ""}, // no policy asks
		{"p", "ok", 200, ""}, {"p", "denied", 403, "fairway_forbidden"}, {"p", "redirected", 302, ""}, {"p", "changed", 200, ""},
		{"p", "answered", 302, ""}, // with what has no place in an answer
		{"p", "framing", 403, "fairway_authorizer_failed"}, {"p", "splitting", 403, "fairway_authorizer_failed"}, {"p", "both", 403, "fairway_authorizer_failed"},
		{"p", "strange status", 403, "fairway_forbidden"}, {"p", "odd option", 403, "fairway_forbidden"}, {"p", "denied as allowed", 403, "fairway_forbidden"}, {"p", "query", 403, "fairway_authorizer_failed"}, {"p", "error", 403, "fairway_authorizer_failed"},
		{"short", "slow", 403, "fairway_authorizer_failed"}, {"503", "slow", 503, "fairway_authorizer_failed"}, {"503", "denied", 403, "fairway_forbidden"},
		// One that is heard at all is heard whatever failOpen says.
		{"open", "slow", 200, ""}, {"open", "error", 200, ""}, {"open", "ok", 200, ""}, {"open", "changed", 200, ""}, {"open", "denied", 403, "fairway_forbidden"}, {"open", "redirected", 302, ""},
		{"open", "answered", 302, ""}, {"open", "strange status", 403, "fairway_forbidden"}, {"open", "odd option", 403, "fairway_forbidden"}, {"open", "denied as allowed", 403, "fairway_forbidden"},
		{"open", "framing", 403, "fairway_authorizer_failed"}, {"open", "splitting", 403, "fairway_authorizer_failed"}, {"open", "both", 403, "fairway_authorizer_failed"}, {"open", "query", 403, "fairway_authorizer_failed"},
		{"dead", "ok", 403, "fairway_authorizer_failed"}, {"garbage", "ok", 403, "fairway_authorizer_failed"}, {"nobody", "ok", 403, "fairway_forbidden"},
	} {
		reached.take()
		asked.Store(nil)
		m := post("/v1/chat/completions", chat(false, 1, "hi"), "X-Ask", tt.provider, "X-Case", tt.say, "X-Secret", "s", "X-Request-Id", "the-id", "X-From-Token", "client")
		s.Handle(m)
		all := reached.take()
		if m.answer.Status != tt.status || (len(all) > 0) != (tt.status == 200) {
			t.Errorf("%+v: %d %s", tt, m.answer.Status, m.seen())
			continue
		}
		if tt.typ != "" {
			if typ, _ := refusal(t, m); typ != tt.typ {
				t.Errorf("%+v: %s", tt, typ)
			}
		}
		switch tt.say {
		case "redirected", "answered":
			if m.field("location") != "https://login.example/" || m.field("connection") != "" || m.seen() != "go there" {
				t.Errorf("%s %q", m.fields, m.seen())
			}
		case "changed":
			h := all[0].Header
			if h.Get("X-User") != "me" || h.Get("X-Secret") != "" || h.Get("X-Forwarded-For") != "" || h.Get("X-Request-Id") != "the-id" || h.Get("X-From-Token") != "" ||
				h.Get("X-Gateway-Destination-Endpoint") != "" || h.Values("X_under") != nil {
				t.Errorf("the engine got %v", h)
			}
			if m.field("x-told") != "yes" || m.field("x-request-id") != "the-id" {
				t.Errorf("the client got %s", m.fields)
			}
			r := asked.Load().Attributes
			if http := r.Request.Http; http.Method != "POST" || http.Path != "/v1/chat/completions" || http.Id != "the-id" || http.Headers["x-secret"] != "s" || http.Body != "" || r.Source.Address == nil {
				t.Errorf("it was told %v", r)
			}
		}
	}
}

// on matches requests that ask for a provider by a field.
func on(provider string) authz.Rule {
	return authz.Rule{When: []authz.Condition{{Key: "request.headers[x-ask]", Values: []string{provider}}}}
}

// An authorizer comes before tokens and before other policies, which judge by what it
// has set.
func TestExternalAuthorizerComesFirst(t *testing.T) {
	g, address := startAuthorizer(t, func(_ context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		return ok(&authv3.OkHttpResponse{Headers: options("x-user", r.Attributes.Request.Http.Headers["x-name"])}), nil
	})
	p := startPod(t, "", quick)
	s := startServer(t, World{
		Authorizers: []extauthz.Provider{{Name: "p", Address: address}},
		Access: authz.Config{Policies: []authz.Policy{
			custom("p", authz.Rule{}), policy(authz.Allow, authz.Rule{When: []authz.Condition{{Key: "request.headers[x-user]", Values: []string{"good"}}}}),
		}, Tokens: []authz.TokenRule{{Issuer: "i", JWKS: `{"keys":[]}`}}},
	}, p)
	for name, want := range map[string]int{"good": 200, "evil": 403} {
		m := post("/v1/chat/completions", chat(false, 1, "hi"), "X-Name", name, "X-User", "good")
		if s.Handle(m); m.answer.Status != want {
			t.Errorf("%s: %d %s", name, m.answer.Status, m.seen())
		}
	}
	before := g.asked.Load()
	m := post("/v1/chat/completions", chat(false, 1, "hi"), "X-Name", "good", "Authorization", "Bearer no.token.here")
	if s.Handle(m); m.answer.Status != 503 && m.answer.Status != 401 || g.asked.Load() != before+1 {
		t.Errorf("with a bad token: %d, asked %d times", m.answer.Status, g.asked.Load()-before)
	}
}

// What goes by the model or wants the body waits for it.
func TestExternalAuthorizerThatWaitsForTheBody(t *testing.T) {
	var asked atomic.Pointer[authv3.AttributeContext_HttpRequest]
	g, address := startAuthorizer(t, func(_ context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		asked.Store(r.Attributes.Request.Http)
		if strings.Contains(r.Attributes.Request.Http.Body+string(r.Attributes.Request.Http.RawBody), "forbidden") {
			return no(0, ""), nil
		}
		return ok(&authv3.OkHttpResponse{Headers: options("x-judged", "yes")}), nil
	})
	p := startPod(t, "", quick)
	reached := seen(p)
	body := func(name string, most int, partial, raw bool) extauthz.Provider {
		return extauthz.Provider{Name: name, Address: address, Body: most, AllowPartial: partial, PackAsBytes: raw}
	}
	s := startServer(t, World{
		Authorizers: []extauthz.Provider{body("whole", 4096, false, false), body("start", 64, true, true), {Name: "model", Address: address}},
		Access: authz.Config{Policies: []authz.Policy{custom("whole", on("whole")), custom("start", on("start")),
			custom("model", authz.Rule{When: []authz.Condition{{Key: "request.model", Values: []string{"secret"}}}})}},
	}, p)
	long := strings.Repeat("a long prompt ", 1000)
	for _, tt := range []struct {
		ask, body string
		status    int
		partial   string // "" for not asked
	}{
		{"whole", chat(false, 1, "hi"), 200, "false"}, {"whole", chat(false, 1, "forbidden"), 403, "false"}, {"whole", chat(false, 1, long), 413, ""},
		{"start", chat(false, 1, "hi"), 200, "true"}, {"start", chat(false, 1, long), 200, "true"}, {"start", chat(false, 1, long, "forbidden"), 200, "true"},
		{"start", `{"model":"mock","user":"forbidden",` + chat(false, 1, "hi")[1:], 403, "true"},
		{"", strings.Replace(chat(false, 1, "hi"), `"mock"`, `"secret"`, 1), 404, "-"}, {"", chat(false, 1, "hi"), 200, ""},
	} {
		asked.Store(nil)
		reached.take()
		before := g.asked.Load()
		m := post("/v1/chat/completions", tt.body, "X-Ask", tt.ask)
		s.Handle(m)
		if m.answer.Status != tt.status || (g.asked.Load() > before) != (tt.partial != "") {
			t.Errorf("%s %.60s: %d, asked %d times: %s", tt.ask, tt.body, m.answer.Status, g.asked.Load()-before, m.seen())
		}
		if r := asked.Load(); r != nil && tt.partial != "-" && r.Headers["x-envoy-auth-partial-body"] != tt.partial {
			t.Errorf("%s %.60s: partial is %q", tt.ask, tt.body, r.Headers["x-envoy-auth-partial-body"])
		}
		if all := reached.take(); tt.status == 200 && (len(all) != 1 || (all[0].Header.Get("X-Judged") == "yes") != (tt.partial != "")) {
			t.Errorf("%s %.60s: the engine got %v", tt.ask, tt.body, all)
		}
	}
}

// A name that a field asks to be served by is asked about, and paid for, like the one that
// the body asks for.
func TestOverrideIsAskedAboutAndPaidFor(t *testing.T) {
	g, address := startAuthorizer(t, func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) { return no(0, ""), nil })
	p := startPod(t, "", mock.Config{Speed: 100, Loras: []string{"dear"}})
	reached := seen(p)
	s := startServer(t, World{
		RaisePriority: RaiseAnyone, Budgets: []queue.Limit{{Model: "dear", TokensPerMinute: 1}},
		Authorizers: []extauthz.Provider{{Name: "model", Address: address}},
		Access:      authz.Config{Policies: []authz.Policy{custom("model", authz.Rule{When: []authz.Condition{{Key: "request.model", Values: []string{"secret"}}}})}},
	}, p)
	for _, tt := range []struct {
		override string
		status   int
		asked    int64
		sent     int
	}{{"", 200, 0, 1}, {"secret", 403, 1, 0}, {"dear", 200, 0, 1}, {"dear", 429, 0, 0}, {"mock", 200, 0, 1}} {
		g.asked.Store(0)
		reached.take()
		m := post("/v1/chat/completions", chat(false, 1, "hi"), "X-Gateway-Model-Name-Rewrite", tt.override)
		s.Handle(m)
		if sent := len(reached.take()); m.answer.Status != tt.status || g.asked.Load() != tt.asked || sent != tt.sent {
			t.Errorf("%+v: %d, asked %d, sent %d: %s", tt, m.answer.Status, g.asked.Load(), sent, m.seen())
		}
	}
}

// Authorizers that are asked once the body is there know what the client has shown, like those
// that are asked at once; the engine does not.
func TestExternalAuthorizerKnowsCredentials(t *testing.T) {
	var asked atomic.Pointer[authv3.AttributeContext_HttpRequest]
	_, address := startAuthorizer(t, func(_ context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		asked.Store(r.Attributes.Request.Http)
		return ok(&authv3.OkHttpResponse{Headers: options("x-judged", "yes")}), nil
	})
	p := startPod(t, "", quick)
	reached := seen(p)
	s := startServer(t, World{
		Authorizers: []extauthz.Provider{{Name: "body", Address: address, Body: 4096}, {Name: "model", Address: address}},
		Access: authz.Config{HasKeys: true, Keys: []authz.Key{{Name: "k", Sum: sha256.Sum256([]byte("secret"))}},
			Tokens: []authz.TokenRule{{Issuer: "i", JWKS: `{"keys":[]}`, OutputClaimToHeaders: []authz.ClaimHeader{{Header: "x-from-token", Claim: "sub"}}}},
			Policies: []authz.Policy{custom("body", on("body")), custom("model", authz.Rule{When: []authz.Condition{
				{Key: "request.model", Values: []string{"mock"}}, {Key: "request.headers[x-api-key]", Values: []string{"*"}}}}),
				policy(authz.Deny, authz.Rule{When: []authz.Condition{{Key: "request.model", Values: []string{"mock"}}, {Key: "request.headers[x-judged]", NotValues: []string{"yes"}}}}),
			}},
	}, p)
	for _, tt := range []struct{ ask, field, value string }{{"body", "authorization", "Bearer secret"}, {"model", "x-api-key", "secret"}} {
		asked.Store(nil)
		reached.take()
		m := post("/v1/chat/completions", chat(false, 1, "hi"), "X-Ask", tt.ask, tt.field, tt.value, "X-From-Token", "forged")
		s.Handle(m)
		all := reached.take()
		if r := asked.Load(); m.answer.Status != 200 || r == nil || r.Headers[tt.field] != tt.value || r.Headers["x-from-token"] != "" {
			t.Errorf("%s: %d, it was told %v", tt.ask, m.answer.Status, r)
		}
		if len(all) != 1 || all[0].Header.Get(tt.field) != "" || all[0].Header.Get("X-Judged") != "yes" {
			t.Errorf("%s: the engine got %v", tt.ask, all)
		}
	}
}

// What authorizers tell the client stands beside what the engine says, unless they say otherwise.
func TestExternalAuthorizerTellsTheClient(t *testing.T) {
	set := options("content-type", "text/x-told")
	set[0].AppendAction = corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
	_, address := startAuthorizer(t, func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		return ok(&authv3.OkHttpResponse{ResponseHeadersToAdd: append(options("set-cookie", "a=1", "set-cookie", "b=2"), set...)}), nil
	})
	byHTTP := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Set-Cookie"] = []string{"a=1", "b=2"}
		w.Header().Set("content-type", "text/x-told")
	}))
	defer byHTTP.Close()
	engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("set-cookie", "own=1") }))
	defer engine.Close()
	s := startServer(t, World{
		Authorizers: []extauthz.Provider{{Name: "grpc", Address: address}, {Name: "http", Address: byHTTP.Listener.Addr().String(), HTTP: true, ToClientOnAllow: []string{"set-cookie", "content-type"}}},
		Access:      authz.Config{Policies: []authz.Policy{custom("grpc", on("grpc")), custom("http", on("http"))}},
	}, &pod{address: engine.Listener.Addr().String()})
	for _, provider := range []string{"grpc", "http"} {
		m := post("/v1/chat/completions", chat(false, 1, "hi"), "X-Ask", provider)
		s.Handle(m)
		var told []string
		for _, f := range m.fields {
			if name := strings.ToLower(string(f.Name)); name == "set-cookie" || name == "content-type" {
				told = append(told, name+"="+string(f.Value))
			}
		}
		slices.Sort(told)
		if got := strings.Join(told, " "); got != "content-type=text/x-told set-cookie=a=1 set-cookie=b=2 set-cookie=own=1" {
			t.Errorf("%s: %s", provider, got)
		}
	}
}

// A client that leaves is not asked about any longer.
func TestExternalAuthorizerWhenTheClientLeaves(t *testing.T) {
	begun, left := make(chan bool, 1), make(chan bool, 1)
	_, address := startAuthorizer(t, func(ctx context.Context, _ *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		begun <- true
		<-ctx.Done()
		left <- true
		return nil, ctx.Err()
	})
	s := startServer(t, World{
		Authorizers: []extauthz.Provider{{Name: "p", Address: address, Timeout: time.Hour}}, Access: authz.Config{Policies: []authz.Policy{custom("p", authz.Rule{})}},
	}, startPod(t, "", quick))
	m := post("/v1/chat/completions", chat(false, 1, "hi"))
	var done sync.WaitGroup
	done.Go(func() { s.Handle(m) })
	<-begun
	m.leave()
	<-left
	done.Wait()
	if m.started {
		t.Errorf("it was answered: %d", m.answer.Status)
	}
}

// Nobody gets past an authorizer by being slow, whatever its failOpen says.
func TestExternalAuthorizerWhenTimeIsOver(t *testing.T) {
	// It does not go by the deadline that it is told, which may be over for it a moment sooner than for us.
	over := make(chan struct{})
	_, address := startAuthorizer(t, func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		<-over
		return nil, context.Canceled
	})
	t.Cleanup(func() { close(over) })
	p := startPod(t, "", quick)
	reached := seen(p)
	for name, limit := range map[string]time.Duration{"before it is asked": 1, "while it is asked": 300 * time.Millisecond} {
		w := World{
			Authorizers: []extauthz.Provider{{Name: "open", Address: address, Timeout: time.Hour, FailOpen: true, Body: 1 << 20}},
			Access:      authz.Config{Policies: []authz.Policy{custom("open", on("open"))}},
		}
		s := startServer(t, w, p)
		m := post("/v1/chat/completions", chat(false, 1, "hi")) // leaves a connection
		if s.Handle(m); m.answer.Status != 200 {
			t.Fatalf("%s: %d %s", name, m.answer.Status, m.seen())
		}
		w = *s.serving.Load().world
		w.Timeouts.Request = limit
		s.SetWorld(&w)
		reached.take()
		m = post("/v1/chat/completions", chat(false, 1, "hi"), "X-Ask", "open")
		if s.Handle(m); m.answer.Status != 504 || len(reached.take()) > 0 {
			t.Errorf("%s: %d %s", name, m.answer.Status, m.seen())
		}
	}
}

// By HTTP, the request's own head is what is asked about.
func TestExternalAuthorizerByHTTP(t *testing.T) {
	var asked atomic.Pointer[http.Request]
	var askedBody atomic.Value
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		askedBody.Store(string(body))
		asked.Store(r)
		w.Header().Set("x-user", "me")
		w.Header().Set("x-other", "o")
		w.Header().Set("x-forwarded-for", "1.2.3.4")
		switch r.Header.Get("x-case") {
		case "denied":
			w.Header().Set("www-authenticate", "Custom")
			w.WriteHeader(401)
			io.WriteString(w, "who are you?")
		case "broken":
			w.WriteHeader(500)
		case "endless":
			w.Write(bytes.Repeat([]byte("x"), 2<<20))
		case "redirected":
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		case "nowhere":
			w.Header().Set("location", "http://[")
			w.WriteHeader(302)
		case "cut":
			w.Header().Set("content-length", "9")
			w.WriteHeader(403)
		case "removes":
			w.Header().Set("x-envoy-auth-headers-to-remove", "X-Secret, x-request-id")
		}
	}))
	defer provider.Close()
	p := startPod(t, "", quick)
	reached := seen(p)
	at := func(name string, change func(*extauthz.Provider)) extauthz.Provider {
		a := extauthz.Provider{Name: name, Address: provider.Listener.Addr().String(), HTTP: true, IncludeHeaders: []string{"x-case", "x-in*"}}
		change(&a)
		return a
	}
	s := startServer(t, World{
		Authorizers: []extauthz.Provider{
			at("plain", func(*extauthz.Provider) {}),
			at("open", func(a *extauthz.Provider) { a.FailOpen = true }),
			at("full", func(a *extauthz.Provider) {
				a.PathPrefix, a.AddHeaders, a.Body = "/check", map[string]string{"x-in-added": "a", "x-in-said": "over"}, 4096
				a.ToUpstreamOnAllow, a.ToClientOnAllow, a.ToClientOnDeny = []string{"x-user", "x-forwarded-*"}, []string{"*-other"}, []string{"x-user"}
			}),
		},
		Access: authz.Config{Policies: []authz.Policy{custom("plain", on("plain")), custom("open", on("open")), custom("full", on("full"))}},
	}, p)
	for _, tt := range []struct {
		provider, say, path string
		status              int
	}{
		{"plain", "ok", "/v1/chat/completions", 200}, {"full", "ok", "/v1/chat/completions?a=b%20c", 200}, {"plain", "removes", "/v1/chat/completions", 200},
		{"plain", "denied", "/v1/chat/completions", 401}, {"full", "denied", "/v1/chat/completions", 401},
		{"plain", "broken", "/v1/chat/completions", 403}, {"plain", "endless", "/v1/chat/completions", 403}, {"plain", "redirected", "/v1/chat/completions", 302},
		{"open", "broken", "/v1/chat/completions", 200}, {"open", "denied", "/v1/chat/completions", 401}, {"open", "redirected", "/v1/chat/completions", 302},
		{"open", "nowhere", "/v1/chat/completions", 302}, {"open", "cut", "/v1/chat/completions", 403}, {"open", "endless", "/v1/chat/completions", 403},
	} {
		reached.take()
		m := post(tt.path, chat(false, 1, "hi"), "X-Ask", tt.provider, "X-Case", tt.say, "X-Secret", "s", "X-In-Said", "i", "Authorization", "Bearer b", "X-User", "forged", "X-Request-Id", "the-id")
		s.Handle(m)
		all := reached.take()
		if m.answer.Status != tt.status || (len(all) > 0) != (tt.status == 200) {
			t.Errorf("%+v: %d %s", tt, m.answer.Status, m.seen())
			continue
		}
		r, full := asked.Load(), tt.provider == "full"
		if want := map[bool]string{false: tt.path, true: "/check" + tt.path}[full]; r.Method != "POST" || r.RequestURI != want || r.Host != "fairway.test" ||
			r.Header.Get("Authorization") != "Bearer b" || r.Header.Get("X-Secret") != "" || (r.Header.Get("X-In-Said") == "over") != full || (askedBody.Load() != "") != full {
			t.Errorf("%+v: it was asked %s %s %s %v %q", tt, r.Method, r.Host, r.RequestURI, r.Header, askedBody.Load())
		}
		switch tt.say {
		case "ok":
			h := all[0].Header
			if (h.Get("X-User") == "me") != full || h.Get("X-Forwarded-For") != "" || (m.field("x-other") == "o") != full || m.field("x-user") != "" {
				t.Errorf("%+v: the engine got %v, the client %s", tt, h, m.fields)
			}
		case "removes":
			if h := all[0].Header; h.Get("X-Secret") != "" || h.Get("X-Request-Id") != "the-id" {
				t.Errorf("the engine got %v", h)
			}
		case "denied":
			if m.seen() != "who are you?" || m.field("www-authenticate") != "Custom" || m.field("x-user") != "me" || (m.field("x-other") == "") != full || m.field("x-forwarded-for") != "" {
				t.Errorf("%+v: %s %q", tt, m.fields, m.seen())
			}
		case "redirected":
			if m.field("location") != "/elsewhere" {
				t.Errorf("%s", m.fields)
			}
		}
	}
}

// Connections that are not HTTP are asked about by gRPC alone.
func TestExternalAuthorizerOfConnections(t *testing.T) {
	_, address := startAuthorizer(t, func(_ context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		if r.Attributes.Request.Http != nil || r.Attributes.Source.Principal != "spiffe://cluster.local/ns/a/sa/good" || r.Attributes.Destination.Address.GetSocketAddress().GetPortValue() != 90 {
			return no(0, ""), nil
		}
		return &authv3.CheckResponse{}, nil
	})
	s := New(Config{Account: account.New(prometheus.NewRegistry(), account.Config{}), Log: slog.New(slog.DiscardHandler)})
	defer s.Shutdown(t.Context())
	s.SetWorld(&World{Authorizers: []extauthz.Provider{{Name: "grpc", Address: address}, {Name: "http", Address: address, HTTP: true}}})
	c, other := net.Pipe()
	defer c.Close()
	defer other.Close()
	for _, tt := range []struct {
		provider, account string
		want              bool
	}{{"grpc", "good", true}, {"grpc", "evil", false}, {"http", "good", false}, {"nobody", "good", false}} {
		p := custom(tt.provider, authz.Rule{To: []authz.Operation{{Paths: []string{"/x"}}}}) // which a connection has not
		d := &destination{guard: authz.NewCompiler(new(authz.Config), nil).Guard(&authz.Scope{Policies: []*authz.Policy{&p}})}
		peer := &hbone.Peer{Destination: netip.MustParseAddrPort("10.0.0.1:90"), ID: spiffeid.RequireFromString("spiffe://cluster.local/ns/a/sa/" + tt.account)}
		var rec account.Record
		if got := s.admit(d, &rec, peer, meshConn{Conn: c, peer: peer}); got != tt.want || (rec.Policy == "") != tt.want {
			t.Errorf("%+v: %v, denied by %q", tt, got, rec.Policy)
		}
	}
}

// Who has to bring a key cannot do without by being taken for something else than HTTP.
func TestConnectionsWithoutTheKeyThatIsRequired(t *testing.T) {
	s := startServer(t, World{})
	c, other := net.Pipe()
	defer c.Close()
	defer other.Close()
	peer := &hbone.Peer{Destination: netip.MustParseAddrPort("10.0.0.1:90")}
	for _, tt := range []struct {
		access authz.Config
		reason string
	}{
		{authz.Config{HasKeys: true}, ""},
		{authz.Config{HasKeys: true, Required: true}, "fairway_unauthenticated"},
		{authz.Config{Tokens: []authz.TokenRule{{Issuer: "i", JWKS: `{"keys":[]}`}}, Required: true}, "fairway_unauthenticated"},
	} {
		d := &destination{guard: authz.NewCompiler(&tt.access, nil).Guard(nil)}
		var rec account.Record
		if got := s.admit(d, &rec, peer, meshConn{Conn: c, peer: peer}); got != (tt.reason == "") || rec.Reason != tt.reason {
			t.Errorf("%+v: %v, %s", tt.access, got, rec.Reason)
		}
	}
}

// What has not changed from one World to the next keeps its connection, and what is being
// asked is answered though its provider has left.
func TestAuthorizersOutliveWorlds(t *testing.T) {
	begun, end := make(chan bool, 1), make(chan bool)
	_, address := startAuthorizer(t, func(ctx context.Context, _ *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		begun <- true
		<-end
		return &authv3.CheckResponse{}, nil
	})
	var a extauthz.Authorizers
	defer a.Close()
	p := extauthz.Provider{Name: "p", Address: address, Timeout: time.Minute, AddHeaders: map[string]string{"a": "b"}}
	first := a.Set([]extauthz.Provider{p})["p"]
	if a.Set([]extauthz.Provider{p})["p"] != first {
		t.Error("it was made anew")
	}
	got := make(chan *extauthz.Answer, 1)
	go func() { got <- first.Check(t.Context(), &extauthz.Request{}) }()
	<-begun
	p.FailOpen = true
	if a.Set([]extauthz.Provider{p})["p"] == first {
		t.Error("it was not made anew")
	}
	close(end)
	if answer := <-got; !answer.Allowed || answer.Err != nil {
		t.Errorf("%+v", answer)
	}
}
