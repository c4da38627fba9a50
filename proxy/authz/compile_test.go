package authz

import (
	"fmt"
	"strings"
	"testing"

	"github.com/fairway-proxy/fairway/proxy/normalize"
)

func (r *Rule) key() string {
	if len(r.When) == 0 {
		return ""
	}
	return r.When[0].Key
}

// What cannot be understood is found, allows nothing, and denies what the rest of its
// rule matches.
func TestUnclearPolicies(t *testing.T) {
	for _, tt := range []struct {
		rule Rule
		path string
		text string // in the finding
	}{
		{when("destination.labels[x]", "1"), "rules[0].when[0].key", `unknown attribute "destination.labels[x]"`},
		{when("experimental.envoy.filters.network.mysql_proxy[db.table]", "[update]"), "rules[0].when[0].key", "unknown attribute"},
		{when("request.header[x]", "1"), "rules[0].when[0].key", "unknown attribute"},
		{when("", "1"), "rules[0].when[0].key", "unknown attribute"},
		{when("request.headers[x", "1"), "rules[0].when[0].key", "names no header field"},
		{when("request.headers[]", "1"), "rules[0].when[0].key", "names no header field"},
		{when("request.headers[a b]", "1"), "rules[0].when[0].key", "names no header field"},
		{when("request.headers[:scheme]", "1"), "rules[0].when[0].key", "names no header field"},
		{when("request.headers[Content-Length]", "1"), "rules[0].when[0].key", "never passed on"},
		{when("request.headers[transfer-encoding]", "chunked"), "rules[0].when[0].key", "never passed on"},
		{when("request.headers[x_user]", "1"), "rules[0].when[0].key", "underscore"},
		{when("request.auth.claims[]", "1"), "rules[0].when[0].key", "names no claim"},
		{when("request.auth.claims[a", "1"), "rules[0].when[0].key", "names no claim"},
		{when("source.ip", "10.0.0"), "rules[0].when[0].values[0]", "neither an IP address nor a CIDR"},
		{whenNot("source.ip", "10.0.0.0/40"), "rules[0].when[0].notValues[0]", "neither an IP address nor a CIDR"},
		{when("destination.port", "http"), "rules[0].when[0].values[0]", "no port"},
		{when("source.ip"), "rules[0].when[0]", "no values"},
		{when("request.headers[x]", "1", ""), "rules[0].when[0].values[1]", "empty"},
		{from(Source{}), "rules[0].from[0].source", "empty"},
		{from(Source{Principals: list("")}), "rules[0].from[0].source.principals[0]", "empty"},
		{from(Source{NotPrincipals: list("")}), "rules[0].from[0].source.notPrincipals[0]", "empty"},
		{from(Source{RequestPrincipals: list("")}), "rules[0].from[0].source.requestPrincipals[0]", "empty"},
		{from(Source{Namespaces: list("")}), "rules[0].from[0].source.namespaces[0]", "empty"},
		{from(Source{ServiceAccounts: list("a/b/c")}), "rules[0].from[0].source.serviceAccounts[0]", "service account"},
		{from(Source{ServiceAccounts: list("a/*")}), "rules[0].from[0].source.serviceAccounts[0]", "without wildcards"},
		{from(Source{ServiceAccounts: list("/a")}), "rules[0].from[0].source.serviceAccounts[0]", "service account"},
		{from(Source{ServiceAccounts: list("a"), Namespaces: list("b")}), "rules[0].from[0].source.serviceAccounts", "cannot stand beside"},
		{from(Source{TrustDomains: list("a*b")}), "rules[0].from[0].source.trustDomains[0]", "trust domain"},
		{from(Source{TrustDomains: list("a/b")}), "rules[0].from[0].source.trustDomains[0]", "trust domain"},
		{from(Source{IPBlocks: list("10.0.0.0/8", "x")}), "rules[0].from[0].source.ipBlocks[1]", "neither an IP address nor a CIDR"},
		{from(Source{NotRemoteIPBlocks: list("x")}), "rules[0].from[0].source.notRemoteIpBlocks[0]", "neither an IP address nor a CIDR"},
		{to(Operation{}), "rules[0].to[0].operation", "empty"},
		{to(Operation{Ports: list("65536")}), "rules[0].to[0].operation.ports[0]", "no port"},
		{to(Operation{Ports: list("80", "-1")}), "rules[0].to[0].operation.ports[1]", "no port"},
		{to(Operation{Methods: list("")}), "rules[0].to[0].operation.methods[0]", "empty"},
		{to(Operation{Hosts: list("")}), "rules[0].to[0].operation.hosts[0]", "empty"},
		{to(Operation{Paths: list("/{**}/{*}")}), "rules[0].to[0].operation.paths[0]", "nothing but literals can follow"},
		{to(Operation{Paths: list("/{**}/a/{**}")}), "rules[0].to[0].operation.paths[0]", "nothing but literals can follow"},
		{to(Operation{Paths: list("/a{*}")}), "rules[0].to[0].operation.paths[0]", "each segment is"},
		{to(Operation{Paths: list("/{*}/b*")}), "rules[0].to[0].operation.paths[0]", "each segment is"},
		{to(Operation{Paths: list("/{name}")}), "rules[0].to[0].operation.paths[0]", "each segment is"},
		{to(Operation{NotPaths: list("{*}/a")}), "rules[0].to[0].operation.notPaths[0]", "begins with a slash"},
	} {
		t.Run(tt.path+" "+tt.text, func(t *testing.T) {
			r := request(t, "GET / port=80 src=192.0.2.1 peer=cluster.local/ns/foo/sa/a h.y=1")
			tt.rule.To = append(tt.rule.To, to(Operation{Ports: list("80")}).To...)
			for _, action := range []Action{Allow, "", Deny, Custom, "LOG"} {
				if action == Custom && strings.HasPrefix(tt.rule.key(), "request.auth.") {
					continue // of that it understands nothing
				}
				g, findings := compile(&Config{Policies: rules(action, tt.rule)}, nil)
				found := false
				for _, f := range findings {
					found = found || f.Policy == 0 && f.Path == tt.path && strings.Contains(f.Text, tt.text)
				}
				if !found {
					t.Errorf("%s: %v", action, findings)
				}
				if d := g.Judge(r); !d.Denied && len(g.Asks(nil, r)) == 0 {
					t.Errorf("%s: %+v", action, d)
				}
				r.Head = nil
				if d := g.JudgeConn(r); !d.Denied && len(g.AsksConn(nil, r)) == 0 {
					t.Errorf("%s on a connection: %+v", action, d)
				}
				r = request(t, "GET / port=80 src=192.0.2.1 peer=cluster.local/ns/foo/sa/a h.y=1")
			}
			// Another rule of the policy is not touched.
			if g, _ := compile(&Config{Policies: rules(Allow, tt.rule, to(Operation{Methods: list("GET")}))}, nil); g.Judge(r).Denied {
				t.Error("the other rule allows nothing")
			}
		})
	}
}

func TestUnknownActionsDeny(t *testing.T) {
	g, findings := compile(&Config{Policies: rules("allow", to(Operation{Paths: list("/a")}))}, nil)
	if len(findings) != 1 || findings[0].Path != "action" {
		t.Error(findings)
	}
	if !g.Judge(request(t, "GET /a")).Denied || g.Judge(request(t, "GET /b")).Denied {
		t.Error("it denies what it does not match, or does not what it does")
	}
	if _, findings := compile(&Config{Policies: rules(Deny)}, nil); len(findings) != 1 {
		t.Errorf("a DENY without rules: %v", findings)
	}
}

func TestDecisionNames(t *testing.T) {
	policies := both(rules(Deny, to(Operation{Paths: list("/deny")})), rules(Audit, to(Operation{Paths: list("/audit*")})))
	policies = both(policies, rules(Allow, to(Operation{NotPaths: list("/none")})))
	dry := both(rules(Deny, to(Operation{Paths: list("/dry")})), rules(Allow, to(Operation{NotPaths: list("/dry2")})))
	for i := range dry {
		dry[i].DryRun, dry[i].Name = true, "dry"
	}
	g, _ := compile(&Config{Policies: both(policies, dry)}, nil)
	for line, want := range map[string]Decision{
		"GET /":      {DryRun: true},
		"GET /deny":  {DryRun: true, Denied: true, Policy: "foo/deny"},
		"GET /none":  {DryRun: true, Denied: true},
		"GET /audit": {DryRun: true, AuditPolicy: "foo/audit"},
		"GET /dry":   {DryRun: true, DryRunDenied: true, DryRunPolicy: "foo/dry"},
		"GET /dry2":  {DryRun: true, DryRunDenied: true},
	} {
		if d := g.Judge(request(t, line)); d != want {
			t.Errorf("%s: %+v, want %+v", line, d, want)
		}
	}
}

// CUSTOM policies say who is to be asked, once whichever of them says so.
func TestAsks(t *testing.T) {
	ask := func(provider string, r Rule) Policy {
		return Policy{Namespace: "foo", Name: "ask-" + provider, Action: Custom, Provider: provider, Rules: []Rule{r}}
	}
	model := Rule{To: to(Operation{Paths: list("/m*")}).To, When: when("request.model", "secret").When}
	dry := ask("dry", Rule{})
	dry.DryRun = true
	c := &Config{Policies: []Policy{
		ask("a", to(Operation{Paths: list("/a*")})), ask("b", to(Operation{Paths: list("*b")})), ask("a", to(Operation{Paths: list("/x", "/ab")})),
		ask("m", model), ask("c", from(Source{Principals: list("cluster.local/ns/foo/sa/a")})), dry,
	}}
	g, _ := compile(c, nil)
	for line, want := range map[string]string{
		"GET /":                                  "",
		"GET /a":                                 "a",
		"GET /ab":                                "a b",
		"GET /b":                                 "b",
		"GET /x":                                 "a",
		"POST /m model=secret":                   "m",
		"POST /m model=open":                     "",
		"GET / peer=cluster.local/ns/foo/sa/a":   "c",
		"TCP peer=cluster.local/ns/foo/sa/other": "a b", // what is about HTTP alone counts as matching
	} {
		r := request(t, line)
		all := g.AsksConn
		if r.Head != nil {
			all = g.Asks
			r.ModelPending = true
			for _, a := range g.Asks(nil, r) {
				if a.Provider == "m" {
					t.Errorf("%s: asked before the model is known", line)
				}
			}
			r.ModelPending = false
		}
		var got []string
		for _, a := range all(nil, r) {
			if a.Policy != "foo/ask-"+a.Provider {
				t.Errorf("%s: %v", line, a)
			}
			if got = append(got, a.Provider); a.Provider == "m" && r.Head == nil {
				got = got[:len(got)-1]
			}
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: %q, want %q", line, s, want)
		}
		if g.Judge(request(t, "GET /a")).Denied {
			t.Error("CUSTOM denies by itself")
		}
	}
	for _, tt := range []struct {
		rule Rule
		path string
	}{
		{from(Source{RequestPrincipals: list("*")}), "rules[0].from[0].source.requestPrincipals"},
		{when("request.auth.claims[a]", "b"), "rules[0].when[0].key"},
		{when("request.auth.principal", "b"), "rules[0].when[0].key"},
	} {
		g, findings := compile(&Config{Policies: []Policy{ask("a", tt.rule)}}, nil)
		if len(findings) != 1 || findings[0].Path != tt.path || len(g.Asks(nil, request(t, "GET /"))) != 1 {
			t.Errorf("%+v: %v", tt.rule, findings)
		}
	}
	if findings := (&Config{Policies: []Policy{ask("", Rule{})}}).Check(); len(findings) != 1 || findings[0].Path != "provider" {
		t.Error(findings)
	}
}

// What several Scopes have is compiled once, and one Scope's are none of another's.
func TestScopes(t *testing.T) {
	path := func(name string, action Action, path string) *Policy {
		return &Policy{Namespace: "foo", Name: name, Action: action, Rules: []Rule{to(Operation{Paths: list(path)})}}
	}
	gateway, one, other := path("gateway", Deny, "/g"), path("one", Deny, "/1"), path("other", Allow, "/2")
	m := NewCompiler(&Config{Policies: []Policy{*path("all", Deny, "/all")}}, nil)
	guards := map[string]*Guard{
		"none": m.Guard(nil), "empty": m.Guard(&Scope{}),
		"one": m.Guard(&Scope{Policies: []*Policy{gateway, one}}), "other": m.Guard(&Scope{Policies: []*Policy{gateway, other}}),
		"withheld": m.Guard(&Scope{Withheld: "for now"}),
	}
	for name, want := range map[string]string{"none": "/all", "empty": "/all", "one": "/all /g /1", "other": "/all /g /1 /3", "withheld": "/all"} {
		var denied []string
		for _, path := range list("/all", "/g", "/1", "/2", "/3") {
			if guards[name].Judge(request(t, "GET "+path)).Denied {
				denied = append(denied, path)
			}
		}
		if got := strings.Join(denied, " "); got != want {
			t.Errorf("%s denies %s, want %s", name, got, want)
		}
	}
	if guards["none"] != guards["empty"] || guards["withheld"].Withheld != "for now" {
		t.Error("a Scope without anything has a Guard of its own, or one that is withheld has not")
	}
	a, b := guards["one"].policies.http[kindDeny], guards["other"].policies.http[kindDeny]
	if len(a) != 3 || len(b) != 2 || &a[1].rules[0] != &b[1].rules[0] || len(m.policies) != 4 {
		t.Error("a policy of two Scopes is compiled twice")
	}
}

func TestBeforeTheModelIsKnown(t *testing.T) {
	policies := both(rules(Deny, Rule{To: to(Operation{Paths: list("/a")}).To, When: when("request.model", "secret").When}),
		rules(Allow, Rule{To: to(Operation{NotPaths: list("/c")}).To, When: when("request.model", "open", "secret").When}))
	g, _ := compile(&Config{Policies: policies}, nil)
	if !g.ReadsModel() {
		t.Error("no policy is about the model")
	}
	for line, want := range map[string][2]bool{ // denied before and after
		"POST /a model=secret": {false, true},
		"POST /a model=open":   {false, false},
		"POST /b model=secret": {false, false},
		"POST /b model=other":  {false, true},
		"POST /c model=open":   {true, true},
	} {
		r := request(t, line)
		r.ModelPending = true
		early := g.Judge(r).Denied
		r.ModelPending = false
		if got := [2]bool{early, g.Judge(r).Denied}; got != want {
			t.Errorf("%s: %v, want %v", line, got, want)
		}
	}
}

// A policy's path is spelled as those of requests are.
func TestPathsAreSpelledAlike(t *testing.T) {
	for _, path := range []string{"/a;b", "/a%3Bb", "/a%3bb", "/a%2f%62", `/a\b`, "/%61/b", "/é", "/%c3%a9*", "/x/{*}/%62;"} {
		for _, n := range []normalize.Mode{"", normalize.MergeSlashes, normalize.Base} {
			g, findings := compile(&Config{Policies: rules(Deny, to(Operation{Paths: list(path)})), Normalization: n}, nil)
			if len(findings) > 0 {
				t.Fatal(findings)
			}
			r := request(t, "GET /")
			asked := strings.NewReplacer("{*}", "y", "*", "").Replace(path)
			var err error
			if r.Head.Target, err = n.Target(nil, []byte(asked)); err != nil {
				t.Fatal(err)
			}
			if !g.Judge(r).Denied {
				t.Errorf("%s: a policy for %s does not match it", n, path)
			}
		}
	}
}

// benchmarkPolicies are n policies of the kinds that people write, of which none but
// the last matches.
func benchmarkPolicies(n int) (all []Policy) {
	for i := range n {
		p := Policy{Namespace: "default", Name: fmt.Sprint("policy", i), Action: Deny}
		switch i % 5 {
		case 0:
			p.Rules = []Rule{{From: from(Source{NotNamespaces: list("default", "models")}).From, To: to(Operation{Methods: list("DELETE")}).To}}
		case 1:
			p.Rules = []Rule{to(Operation{Paths: list(fmt.Sprintf("/admin/%d/*", i), "/internal*", "/debug/{**}")})}
		case 2:
			p.Rules = []Rule{{From: from(Source{Principals: list(fmt.Sprintf("cluster.local/ns/team%d/sa/*", i))}).From, To: to(Operation{Paths: list("/v1/*")}).To}}
		case 3:
			p.Rules = []Rule{when("request.headers[x-tenant]", "blocked", fmt.Sprint("tenant-", i)), when("source.ip", "203.0.113.0/24")}
		case 4:
			p.Action = Allow
			p.Rules = []Rule{{
				From: from(Source{Principals: list(fmt.Sprintf("cluster.local/ns/team%d/sa/client", i))}).From,
				To:   to(Operation{Methods: list("POST"), Paths: list("/v1/chat/completions", "/v1/completions")}).To,
			}}
		}
		all = append(all, p)
	}
	all[n-1] = rules(Allow, when("request.auth.claims[groups]", "inference"))[0]
	return all
}

func benchmarkRequest(t testing.TB) *Request {
	return request(t, `POST /v1/chat/completions peer=cluster.local/ns/default/sa/client src=10.1.2.3 host=llama.default.svc.cluster.local `+
		`h.content-type=application/json h.user-agent=OpenAI/Python h.accept=application/json h.x-stainless-lang=python h.x-stainless-os=Linux `+
		`h.traceparent=00-1 h.x-request-id=1 claims={"iss":"issuer","sub":"sub","groups":["staff","inference"]} model=llama`)
}

func TestJudgeAllocs(t *testing.T) {
	g, _ := compile(&Config{Policies: benchmarkPolicies(50)}, nil)
	r := benchmarkRequest(t)
	if g.Judge(r).Denied {
		t.Fatal("denied")
	}
	twice := request(t, "GET / h.x-tenant=a h.x-tenant=b h.x-tenant=c")
	g.Judge(twice)
	if n := testing.AllocsPerRun(100, func() { g.Judge(r); g.JudgeConn(r); g.Judge(twice) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkJudge(b *testing.B) {
	for _, n := range []int{1, 50} {
		b.Run(fmt.Sprint(n, " policies"), func(b *testing.B) {
			g, _ := compile(&Config{Policies: benchmarkPolicies(n)}, nil)
			r := benchmarkRequest(b)
			b.ReportAllocs()
			for b.Loop() {
				if g.Judge(r).Denied {
					b.Fatal("denied")
				}
			}
		})
	}
}
