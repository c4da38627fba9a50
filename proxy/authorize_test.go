package proxy

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/hbone"
	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/openai"
	"github.com/fairway-proxy/fairway/proxy/route"
)

func policy(action authz.Action, r authz.Rule) authz.Policy {
	return authz.Policy{Name: strings.ToLower(string(action)), Action: action, Rules: []authz.Rule{r}}
}

// arrivals are the requests that have reached a pod.
type arrivals struct {
	mu  sync.Mutex
	all []*http.Request // guarded by mu
}

// take gives them, and forgets them.
func (a *arrivals) take() []*http.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := a.all
	a.all = nil
	return all
}

// seen notes the requests that reach a pod.
func seen(p *pod) *arrivals {
	a := new(arrivals)
	p.SetFaults(mock.Faults{OnRequest: func(r *http.Request, _ []byte) {
		if r.URL.Path != "/metrics" {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.all = append(a.all, r)
		}
	}})
	return a
}

func TestRequestsWithoutAGoodKeyAreRefused(t *testing.T) {
	p := startPod(t, "", quick)
	reached := seen(p)
	s := startServer(t, World{Access: authz.Config{HasKeys: true, Required: true, Keys: []authz.Key{{Name: "a", Sum: sha256.Sum256([]byte("secret"))}}}}, p)
	for _, fields := range [][]string{nil, {"Authorization", "Bearer wrong"}, {"X-Api-Key", "wrong"}} {
		m := post("/v1/chat/completions", chat(false, 3, "hello"), fields...)
		s.Handle(m)
		typ, text := refusal(t, m)
		if m.answer.Status != 401 || typ != "fairway_unauthenticated" || string(message.Get(m.fields, "www-authenticate")) != "Bearer" || strings.Contains(text, "wrong") {
			t.Errorf("%v: %d %s %q %s", fields, m.answer.Status, typ, text, m.fields)
		}
	}
	if all := reached.take(); len(all) > 0 {
		t.Fatalf("reached: %v", all)
	}
	m := post("/v1/chat/completions", chat(false, 3, "hello"), "Authorization", "Bearer secret")
	s.Handle(m)
	if all := reached.take(); m.answer.Status != 200 || len(all) != 1 || all[0].Header.Get("Authorization") != "" {
		t.Errorf("%d, %v", m.answer.Status, all)
	}
}

func TestPoliciesAreEnforced(t *testing.T) {
	p := startPod(t, "", quick)
	reached := seen(p)
	s := startServer(t, World{Access: authz.Config{Policies: []authz.Policy{
		policy(authz.Deny, authz.Rule{To: []authz.Operation{{Paths: []string{"/tokenize"}}}}),
		policy(authz.Allow, authz.Rule{From: []authz.Source{{IPBlocks: []string{"192.0.2.0/24"}}}}),
	}}}, p)
	m := post("/tokenize", `{"prompt":"a","model":"mock"}`)
	s.Handle(m)
	all := reached.take()
	if typ, _ := refusal(t, m); m.answer.Status != 403 || typ != "fairway_forbidden" || len(all) > 0 {
		t.Errorf("%d %s, reached %d", m.answer.Status, typ, len(all))
	}
	m = post("/v1/chat/completions", chat(false, 3, "hello"))
	if s.Handle(m); m.answer.Status != 200 {
		t.Errorf("%d %s", m.answer.Status, m.seen())
	}
}

func TestModelsAreAllowedByName(t *testing.T) {
	p := startPod(t, "", quick)
	reached := seen(p)
	s := startServer(t, World{Access: authz.Config{Policies: []authz.Policy{
		policy(authz.Allow, authz.Rule{When: []authz.Condition{{Key: "request.model", Values: []string{"mock"}}}}),
	}}}, p)
	long := strings.Repeat("a long prompt ", 200_000) // its endpoint is chosen by its start
	named := func(model, prompt string) string {
		return strings.Replace(chat(false, 3, prompt), `"mock"`, `"`+model+`"`, 1)
	}
	for body, want := range map[string]int{ // of the long ones, the engine says that they are too long
		named("mock", "hello"):      200,
		named("other", "hello"):     403,
		named(`moc\u006b`, "hello"): 200,
		named("mock", long):         400,
		named("other", long):        403,
		`{"model":"other","messages":[{"role":"user","content":"` + long + `"}]}`: 403,
		`{"model":"mock","messages":[{"role":"user","content":"` + long + `"}]}`:  400,
	} {
		m := post("/v1/chat/completions", body)
		s.Handle(m)
		if all := reached.take(); m.answer.Status != want || (len(all) > 0) != (want != 403) {
			t.Errorf("%.80s: %d, want %d; reached %d", body, m.answer.Status, want, len(all))
		}
	}
	// What names no model is not allowed.
	m := post("/v1/nothing", `{"model":"mock"}`)
	if s.Handle(m); m.answer.Status != 403 {
		t.Errorf("%d", m.answer.Status)
	}
}

// Policies judge what the client asked for, not what a route makes of it, both times.
func TestPoliciesComeBeforeRoutes(t *testing.T) {
	p := startPod(t, "", quick)
	reached := seen(p)
	s := startServer(t, World{
		Access: authz.Config{Policies: []authz.Policy{
			policy(authz.Allow, authz.Rule{
				To:   []authz.Operation{{Paths: []string{"/team-a/*"}}},
				When: []authz.Condition{{Key: "request.model", Values: []string{"mock"}}, {Key: "request.headers[x-asked]", Values: []string{"1"}}},
			}),
		}},
		Routes: []route.Route{{Name: "route", Rules: []route.Rule{{
			Matches: []route.Match{{Path: route.PathMatch{Type: route.PathPrefix, Value: "/team-a"}}},

			Filters:  route.Filters{Rewrite: &route.Rewrite{Path: &route.PathModifier{Prefix: true, Replacement: "/"}}, RequestHeaders: &route.HeaderModifier{Remove: []string{"x-asked"}}},
			Backends: []route.Backend{{Pool: "pool", Weight: 1}},
		}}}},
	}, p)
	m := post("/team-a/v1/chat/completions", chat(false, 3, "hello"), "X-Other", "1", "X-Asked", "1", "X-Last", "1")
	s.Handle(m)
	if all := reached.take(); m.answer.Status != 200 || len(all) != 1 || all[0].URL.Path != "/v1/chat/completions" || all[0].Header.Get("X-Asked") != "" {
		t.Errorf("%d %s", m.answer.Status, m.seen())
	}
	m = post("/v1/chat/completions", chat(false, 3, "hello"), "X-Asked", "1")
	if s.Handle(m); m.answer.Status != 403 {
		t.Errorf("%d %s", m.answer.Status, m.seen())
	}
}

// A policy that comes while a body is received counts for it.
func TestPoliciesThatComeWithTheBody(t *testing.T) {
	s := startServer(t, World{}, startPod(t, "", quick))
	m := post("/v1/chat/completions", chat(false, 3, "hello"))
	body := m.body
	m.body = readerFunc(func(p []byte) (int, error) {
		w := *s.World()
		w.Access.Policies = []authz.Policy{policy(authz.Deny, authz.Rule{})}
		s.SetWorld(&w)
		return body.Read(p)
	})
	if s.Handle(m); m.answer.Status != 403 {
		t.Errorf("%d", m.answer.Status)
	}
}

// What is judged is what is sent: one spelling of the path, and no field that only
// some may set.
func TestWhatIsJudgedIsSent(t *testing.T) {
	p := startPod(t, "", quick)
	reached := seen(p)
	fields := []string{"X-Forwarded-For", "203.0.113.9", "X-Forwarded-Proto", "https", "Forwarded", "for=a", "X-Real-Ip", "203.0.113.9", "X-Gateway-Model-Name", "other",
		"x_gateway_model_name", "other", "X_Forwarded_For", "a", "X-Fairway-Anything", "1", "X-Prefiller-Host-Port", "192.0.2.9:1", "x-Encoder-Hosts-Ports", "a", "X-Kept", "1"}
	for _, trusted := range []bool{false, true} {
		w := World{Access: authz.Config{Policies: []authz.Policy{policy(authz.Deny, authz.Rule{To: []authz.Operation{{Paths: []string{"/tokenize"}}}})}}}
		kept := []string{"X-Kept"}
		if trusted {
			w.Access.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}
			w.Access.Policies = append(w.Access.Policies, policy(authz.Deny, authz.Rule{From: []authz.Source{{NotRemoteIPBlocks: []string{"203.0.113.9"}}}}))
			kept = []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Gateway-Model-Name", "X-Kept", "X-Real-Ip"}
		}
		s := startServer(t, w, p)
		m := post("/v1/./chat//%63ompletions?a=//b", chat(false, 3, "hello"), fields...)
		s.Handle(m)
		all := reached.take()
		if m.answer.Status != 200 || len(all) != 1 {
			t.Fatalf("%d %s", m.answer.Status, m.seen())
		}
		r := all[0]
		var got []string
		for name := range r.Header {
			if strings.HasPrefix(strings.ToUpper(name), "X") && name != "X-Request-Id" || name == "Forwarded" {
				got = append(got, name)
			}
		}
		slices.Sort(got)
		if r.RequestURI != "/v1/chat/completions?a=//b" || !slices.Equal(got, kept) {
			t.Errorf("trusted %v: %s with %s, want %s", trusted, r.RequestURI, got, kept)
		}
		for _, path := range []string{"/tokenize", "//tokenize", "/v1/../tokenize", "/%74okenize", "/x%2f..%2ftokenize", "/./tokenize?a"} {
			m := post(path, `{"prompt":"a","model":"mock"}`, "X-Forwarded-For", "203.0.113.9")
			if s.Handle(m); m.answer.Status != 403 {
				t.Errorf("%s: %d", path, m.answer.Status)
			}
		}
	}
}

// A proxy that asks for an endpoint has judged already: its request stays as it is.
func TestWhatWasJudgedElsewhereStaysAsItIs(t *testing.T) {
	p := startPod(t, "", quick)
	reached := seen(p)
	s := startServer(t, World{Access: authz.Config{Elsewhere: true, Required: true, HasKeys: true, Policies: []authz.Policy{policy(authz.Deny, authz.Rule{})}}}, p)
	m := post("/v1/chat/%63ompletions", chat(false, 3, "hello"), "X-Forwarded-For", "203.0.113.9", "x_y", "1", "Authorization", "Bearer a")
	s.Handle(m)
	all := reached.take()
	if len(all) != 1 {
		t.Fatalf("%d %s", m.answer.Status, m.seen())
	}
	if r := all[0]; r.RequestURI != "/v1/chat/%63ompletions" || r.Header.Get("X-Forwarded-For") == "" || r.Header.Get("x_y") == "" || r.Header.Get("Authorization") == "" {
		t.Errorf("%s %v", r.RequestURI, r.Header)
	}
}

func TestPathsThatAreNone(t *testing.T) {
	s := startServer(t, World{}, startPod(t, "", quick))
	for _, path := range []string{"/%00", "/a%00b?c"} {
		m := post(path, "{}")
		s.Handle(m)
		if typ, text := refusal(t, m); m.answer.Status != 400 || typ != "fairway_bad_request" {
			t.Errorf("%s: %d %s %s", path, m.answer.Status, typ, text)
		}
	}
}

// The address that policies know is the last one that no trusted proxy stands for.
func TestRemoteAddress(t *testing.T) {
	for _, tt := range []struct{ trusted, forwarded, want string }{
		{"", "203.0.113.9", "192.0.2.1"},
		{"192.0.2.1", "203.0.113.9", "203.0.113.9"},
		{"192.0.2.1", "198.51.100.1, 203.0.113.9", "203.0.113.9"},
		{"192.0.2.1 203.0.113.0/24", "198.51.100.1, 203.0.113.9", "198.51.100.1"},
		{"192.0.2.1 203.0.113.0/24", "198.51.100.1,203.0.113.9|203.0.113.8", "198.51.100.1"},
		{"0.0.0.0/0", "198.51.100.1, 203.0.113.9", "198.51.100.1"},
		{"192.0.2.1", "203.0.113.9, nonsense", "192.0.2.1"},
		{"192.0.2.1", "", "192.0.2.1"},
		{"192.0.2.1", "::ffff:203.0.113.9", "203.0.113.9"},
	} {
		var c authz.Config
		for _, cidr := range strings.Fields(tt.trusted) {
			p, err := authz.ParsePrefix(cidr)
			if err != nil {
				t.Fatal(err)
			}
			c.TrustedProxies = append(c.TrustedProxies, p)
		}
		g := authz.NewCompiler(&c, nil).Guard(nil)
		var fields []message.Field
		for _, value := range strings.Split(tt.forwarded, "|") {
			if value != "" {
				fields = append(fields, message.Field{Name: []byte("X-Forwarded-For"), Value: []byte(value)})
			}
		}
		if got := g.Remote(netip.MustParseAddr("192.0.2.1"), fields); got.String() != tt.want {
			t.Errorf("%+v: %s", tt, got)
		}
	}
}

// Policies cost a request no allocation.
func TestAuthorizeAllocs(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool drops at random under the race detector")
	}
	w := World{Access: authz.Config{Policies: []authz.Policy{
		policy(authz.Deny, authz.Rule{To: []authz.Operation{{Paths: []string{"/secret"}}}}),
		policy(authz.Allow, authz.Rule{When: []authz.Condition{{Key: "request.model", Values: []string{"mock"}}}}),
	}}}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // pools forget in a collection
	allocs := func(w World) float64 {
		s := New(Config{Account: account.New(prometheus.NewRegistry(), account.Config{}), Log: slog.New(slog.DiscardHandler)})
		w.Pools = []Pool{{Name: "pool"}} // nobody is there: the exchange ends with a 503
		s.SetWorld(&w)
		t.Cleanup(func() { s.Shutdown(t.Context()) })
		body := chat(false, 1, "hello")
		one := func() { s.Handle(sink{post("/v1/chat/completions", body)}) }
		for range 2 * account.DefaultReceipts { // until all places where requests are kept have been used
			one()
		}
		return testing.AllocsPerRun(200, one)
	}
	without, with := allocs(World{}), allocs(w)
	if with > without {
		t.Errorf("%v allocations, %v without policies", with, without)
	}
}

// meshListener gives connections the peers that a mesh would know, in turn.
type meshListener struct {
	net.Listener
	peers chan *hbone.Peer
}

func (l meshListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return meshConn{c, <-l.peers}, nil
}

// Policies of a Service judge what is for it, HTTP or not, and nothing else.
func TestPoliciesOfAService(t *testing.T) {
	p := startPod(t, "", quick)
	echo := listenTCP(t, func(c *net.TCPConn) { io.Copy(c, c) })
	from := func(action authz.Action, r authz.Rule, namespace string) *authz.Policy {
		r.From = []authz.Source{{Namespaces: []string{namespace}}}
		return &authz.Policy{Namespace: "a", Name: strings.ToLower(string(action)) + "-" + namespace, Action: action, Rules: []authz.Rule{r}}
	}
	gateway := from(authz.Deny, authz.Rule{}, "evil")
	service := func(ip string, s authz.Scope) Service {
		return Service{Host: ip + ".default.svc.cluster.local", VIPs: []netip.Addr{netip.MustParseAddr(ip)}, Access: s, Ports: []ServicePort{
			{Port: 80, Protocol: PortHTTP, Pool: "pool"}, {Port: 90, Protocol: PortTCP, Pool: "tcp"}}}
	}
	var log bytes.Buffer
	access := account.NewLog(&log, account.Text)
	s := New(Config{Account: account.New(prometheus.NewRegistry(), account.Config{Access: access}), Log: slog.New(slog.DiscardHandler)})
	s.SetWorld(&World{
		Pools:   []Pool{{Name: "pool", Endpoints: []Endpoint{{Address: p.address}}}, {Name: "tcp", Endpoints: []Endpoint{{Address: echo}}}},
		Gateway: authz.Scope{Policies: []*authz.Policy{from(authz.Deny, authz.Rule{}, "")}},
		Services: []Service{
			service("10.0.0.1", authz.Scope{Policies: []*authz.Policy{gateway, from(authz.Allow, authz.Rule{}, "good")}}),
			service("10.0.0.2", authz.Scope{Policies: []*authz.Policy{gateway, from(authz.Allow, authz.Rule{To: []authz.Operation{{Paths: []string{"/v1/chat/completions"}}}}, "good")}}),
			service("10.0.0.3", authz.Scope{Withheld: "for now"}),
			service("10.0.0.4", authz.Scope{}),
		},
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ml := meshListener{l, make(chan *hbone.Peer, 1)}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ml) }()
	for _, tt := range []struct {
		ip, namespace string
		status        int
		tcp           bool
	}{
		{"10.0.0.1", "good", 200, true}, {"10.0.0.1", "evil", 403, false}, {"10.0.0.1", "other", 403, false},
		{"10.0.0.2", "good", 200, false}, {"10.0.0.2", "evil", 403, false}, // what allows by HTTP allows no connection without
		{"10.0.0.3", "good", 503, false},
		{"10.0.0.4", "good", 200, true}, {"10.0.0.4", "evil", 200, true},
	} {
		peer := func(port uint16) *hbone.Peer {
			to := netip.AddrPortFrom(netip.MustParseAddr(tt.ip), port)
			return &hbone.Peer{Authority: to.String(), Destination: to, ID: spiffeid.RequireFromString("spiffe://cluster.local/ns/" + tt.namespace + "/sa/x")}
		}
		m := post("/v1/chat/completions", chat(false, 1, "hi"))
		m.conn = meshConn{peer: peer(80)}
		if s.Handle(m); m.answer.Status != tt.status {
			t.Errorf("%+v: %d %s", tt, m.answer.Status, m.seen())
		}
		ml.peers <- peer(90)
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte("hello"))
		c.(*net.TCPConn).CloseWrite()
		if got, _ := io.ReadAll(c); (string(got) == "hello") != tt.tcp {
			t.Errorf("%+v: %q over TCP", tt, got)
		}
		c.Close()
	}
	s.Shutdown(t.Context())
	<-served
	for _, want := range []string{"denied_by=a/deny-evil", "denied_by=default", "response_code_details=fairway_not_ready"} {
		if access.Close(); !strings.Contains(log.String(), want) {
			t.Errorf("no line says %s: %s", want, &log)
		}
	}
}

// A Service that is asked for by its name is judged by its address, HTTP or not.
func TestPoliciesByAddressOfAServiceAskedForByName(t *testing.T) {
	p := startPod(t, "", quick)
	deny := &authz.Policy{Name: "by-address", Action: authz.Deny, Rules: []authz.Rule{{When: []authz.Condition{{Key: "destination.ip", Values: []string{"10.0.0.0/24"}}}}}}
	s := New(Config{Log: slog.New(slog.DiscardHandler)})
	s.SetWorld(&World{
		Pools: []Pool{{Name: "pool", Endpoints: []Endpoint{{Address: p.address}}}},
		Services: []Service{{Host: "llm.a.svc.cluster.local", VIPs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
			Access: authz.Scope{Policies: []*authz.Policy{deny}}, Ports: []ServicePort{{Port: 80, Pool: "pool"}}}},
	})
	for authority, status := range map[string]int{"10.0.0.1:80": 403, "llm.a.svc.cluster.local:80": 403, "LLM.a.svc.cluster.local:80": 403, "[fd00::1]:80": 200} {
		peer := &hbone.Peer{Authority: authority, ID: spiffeid.RequireFromString("spiffe://cluster.local/ns/evil/sa/x")}
		peer.Destination, _ = netip.ParseAddrPort(authority)
		m := post("/v1/chat/completions", chat(false, 1, "hi"))
		m.conn = meshConn{peer: peer}
		if s.Handle(m); m.answer.Status != status {
			t.Errorf("%s: %d, want %d: %s", authority, m.answer.Status, status, m.seen())
		}
		var rec account.Record
		rec.Reset()
		if d := s.destination(peer); s.admit(d, &rec, peer, meshConn{peer: peer}) != (status == 200) {
			t.Errorf("%s: a connection that is not HTTP is judged otherwise", authority)
		}
	}
	s.Shutdown(t.Context())
}

// The list of models has those that the caller may use, whatever the path it may use
// them by, and is refused to who may use none.
func TestModelsAreListedToWhoMayUseThem(t *testing.T) {
	chatWith := func(r authz.Rule, models ...string) authz.Rule {
		r.When = []authz.Condition{{Key: "request.model", Values: models}}
		return r
	}
	path := func(paths ...string) (r authz.Rule) {
		r.To = []authz.Operation{{Paths: paths}}
		return r
	}
	everything := policy(authz.Allow, authz.Rule{})
	for name, tt := range map[string]struct {
		policies []authz.Policy
		want     string // "" for a refusal
	}{
		"none":                         {nil, "a b c"},
		"nothing of models":            {[]authz.Policy{policy(authz.Deny, path("/secret"))}, "a b c"},
		"some are allowed":             {[]authz.Policy{policy(authz.Allow, chatWith(authz.Rule{}, "a", "c"))}, "a c"},
		"some are denied":              {[]authz.Policy{everything, policy(authz.Deny, chatWith(authz.Rule{}, "b"))}, "a c"},
		"some are allowed by one path": {[]authz.Policy{policy(authz.Allow, path("/v1/models*")), policy(authz.Allow, chatWith(path("/v1/embeddings"), "b"))}, "b"},
		"the list itself is not":       {[]authz.Policy{policy(authz.Allow, chatWith(path("/v1/chat/completions"), "a"))}, ""},
		"none is allowed":              {[]authz.Policy{policy(authz.Allow, chatWith(authz.Rule{}, "x"))}, ""},
		"all are denied":               {[]authz.Policy{everything, policy(authz.Deny, chatWith(authz.Rule{}, "*"))}, "-"},
		"all but some are denied":      {[]authz.Policy{policy(authz.Deny, authz.Rule{When: []authz.Condition{{Key: "request.model", NotValues: []string{"c"}}}})}, "c"},
	} {
		t.Run(name, func(t *testing.T) {
			p := startPod(t, "", quick)
			w := World{Access: authz.Config{Policies: tt.policies}}
			for _, m := range []string{"a", "b", "c"} {
				w.Models = append(w.Models, Model{Name: m, Pool: "pool", Targets: []Target{{Name: "mock", Weight: 1}}})
			}
			s := startServer(t, w, p)
			m := post("/v1/models", "")
			m.head.Method = []byte("GET")
			s.Handle(m)
			if tt.want == "" {
				if typ, _ := refusal(t, m); m.answer.Status != 403 || typ != "fairway_forbidden" {
					t.Errorf("%d %s", m.answer.Status, m.seen())
				}
				return
			}
			var list struct{ Data []struct{ ID string } }
			if err := json.Unmarshal([]byte(m.seen()), &list); err != nil {
				t.Fatal(err)
			}
			got := "-"
			for i, entry := range list.Data {
				if i == 0 {
					got = ""
				}
				got += strings.Repeat(" ", min(i, 1)) + entry.ID
			}
			if got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
			for _, model := range []string{"a", "b", "c"} {
				m := post("/v1/models/"+model, "")
				m.head.Method = []byte("GET")
				want := 404
				if strings.Contains(tt.want, model) {
					want = 200
				}
				if s.Handle(m); m.answer.Status != want {
					t.Errorf("%s by itself: %d", model, m.answer.Status)
				}
			}
		})
	}
	for _, path := range usePaths {
		if openai.KindOf([]byte("POST"), []byte(path)) == openai.Other {
			t.Errorf("of %s no model is read", path)
		}
	}
}

// The model of a WebSocket is that of its query.
func TestModelOfARealtimeRequest(t *testing.T) {
	s := startServer(t, World{Access: authz.Config{Policies: []authz.Policy{
		policy(authz.Allow, authz.Rule{When: []authz.Condition{{Key: "request.model", Values: []string{"mock", "a b"}}}}),
	}}}, startPod(t, "", quick))
	for target, forbidden := range map[string]int{
		"/v1/realtime?model=mock": 0, "/v1/realtime?x=1&model=mock&model=mock": 0, "/v1/realtime?model=a%20b": 0, "/v1/realtime?mod%65l=a+b": 0,
		"/v1/realtime": 403, "/v1/realtime?model=": 403, "/v1/realtime?model=other": 403, "/v1/realtime?Model=mock": 403,
		"/v1/realtime?model=mock&model=other": 400, "/v1/realtime?model=%zz": 400, "/v1/other?model=mock": 403,
	} {
		m := post(target, "")
		m.head.Method = []byte("GET")
		if s.Handle(m); (forbidden != 0 || m.answer.Status == 403 || m.answer.Status == 400) && m.answer.Status != forbidden {
			t.Errorf("%s: %d %s", target, m.answer.Status, m.seen())
		}
	}
}
