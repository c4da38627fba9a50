package authz

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/normalize"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// request reads a request of the tables: a method and a target, or "TCP" for a
// connection that is not HTTP, and then words: peer=, src=, remote=, dst=, port=, sni=,
// host=, model=, claims= with JSON, and h.name= for a field.
func request(t testing.TB, line string) *Request {
	t.Helper()
	words := strings.Fields(line)
	r := &Request{Port: 80}
	if words[0] == "TCP" {
		words = words[1:]
	} else {
		r.Head = &message.Request{Method: []byte(words[0]), Target: []byte(words[1]), Authority: []byte("example.com")}
		words = words[2:]
	}
	for _, word := range words {
		name, value, _ := strings.Cut(word, "=")
		switch name {
		case "peer":
			r.Peer = ParsePeer("spiffe://" + value)
		case "src":
			r.Source = netip.MustParseAddr(value)
		case "remote":
			r.Remote = netip.MustParseAddr(value)
		case "dst":
			r.Destination = netip.MustParseAddr(value)
		case "port":
			port, err := strconv.ParseUint(value, 10, 16)
			if err != nil {
				t.Fatal(err)
			}
			r.Port = uint16(port)
		case "sni":
			r.SNI = value
		case "host":
			r.Head.Authority = []byte(value)
		case "model":
			r.Model = []byte(value)
		case "claims":
			claims := make(map[string]any)
			if err := json.Unmarshal([]byte(value), &claims); err != nil {
				t.Fatal(err)
			}
			iss, _ := claims["iss"].(string)
			sub, _ := claims["sub"].(string)
			r.Identity = newIdentity(iss, sub, claims)
		default:
			field, ok := strings.CutPrefix(name, "h.")
			if !ok {
				t.Fatalf("%s: what is %s?", line, name)
			}
			r.Head.Fields = append(r.Head.Fields, message.Field{Name: []byte(field), Value: []byte(value)})
		}
	}
	return r
}

// decide judges r by policies. Only the policies' own words are looked at.
func decide(t testing.TB, g *Guard, r *Request) Decision {
	t.Helper()
	if r.Head == nil {
		return g.JudgeConn(r)
	}
	return g.Judge(r)
}

// judgement is policies and requests: those with a + pass, those with a - are denied.
type judgement struct {
	cite     string // where Istio says so
	policies []Policy
	cases    string
}

// compile makes the Guard of a Config without Scopes, and tells what of it cannot be understood.
func compile(c *Config, sets *KeySets) (*Guard, []Finding) {
	return NewCompiler(c, sets).Guard(nil), c.Check()
}

func rules(action Action, all ...Rule) []Policy {
	return []Policy{{Namespace: "foo", Name: strings.ToLower(string(action)), Action: action, Rules: all}}
}

func both(a, b []Policy) []Policy { return append(append([]Policy{}, a...), b...) }

func from(all ...Source) (r Rule)                { r.From = all; return r }
func to(all ...Operation) (r Rule)               { r.To = all; return r }
func when(key string, values ...string) (r Rule) { r.When = []Condition{{key, values, nil}}; return r }
func whenNot(key string, values ...string) (r Rule) {
	r.When = []Condition{{key, nil, values}}
	return r
}
func list(all ...string) []string { return all }

func TestJudge(t *testing.T) {
	n := 0
	for _, j := range judgements {
		g, findings := compile(&Config{Policies: j.policies, TrustDomains: list("cluster.local", "old.local"), Normalization: normalize.None}, nil)
		if len(findings) > 0 {
			t.Errorf("%s: %v", j.cite, findings)
		}
		for line := range strings.SplitSeq(strings.TrimSpace(j.cases), "\n") {
			line = strings.TrimSpace(line)
			n++
			r := request(t, line[2:])
			if d := decide(t, g, r); d.Denied != (line[0] == '-') {
				t.Errorf("%s: %s: %+v", j.cite, line, d)
			}
		}
	}
	if n < 200 {
		t.Errorf("%d cases", n)
	}
	t.Logf("%d cases", n)
}

const sleep = "cluster.local/ns/default/sa/sleep"

// AP is istio/api security/v1beta1/authorization_policy.proto (the reference page
// Authorization Policy), AC the reference page Authorization Policy Conditions, and what
// begins with a directory a file of istio/istio under pilot/pkg/security.
var judgements = []judgement{
	{"AP, AuthorizationPolicy: without policies everything passes (rule 3)", nil, `
		+ GET /
		+ TCP`},
	{"AP, rules: without rules an ALLOW policy never matches, which denies everything", rules(Allow), `
		- GET /
		- TCP port=80`},
	{"AP, Rule: an empty rule matches always", rules(Allow, Rule{}), `
		+ GET /
		+ TCP`},
	{"AP, Rule: an empty rule matches always, DENY", rules(Deny, Rule{}), `
		- GET /
		- TCP`},
	{"AP, rules 2 to 5: DENY comes before ALLOW", both(rules(Allow, to(Operation{Methods: list("GET")})), rules(Deny, to(Operation{Paths: list("/secret")}))), `
		+ GET /open
		- GET /secret
		- POST /open
		- POST /secret`},
	{"AP, rule 4: one ALLOW policy that matches is enough", both(rules(Allow, to(Operation{Paths: list("/a")})), rules(Allow, to(Operation{Paths: list("/b")}))), `
		+ GET /a
		+ GET /b
		- GET /c`},
	{"AP, action: AUDIT decides nothing", rules(Audit, Rule{}), `
		+ GET /
		+ TCP`},
	{"AP, action: AUDIT beside ALLOW", both(rules(Audit, Rule{}), rules(Allow, to(Operation{Paths: list("/a")}))), `
		+ GET /a
		- GET /b`},
	{"AP, the first example", rules(Allow, Rule{
		From: []Source{{Principals: list(sleep)}, {Namespaces: list("test")}},
		To:   []Operation{{Methods: list("GET"), Paths: list("/info*")}, {Methods: list("POST"), Paths: list("/data")}},
		When: []Condition{{Key: "request.auth.claims[iss]", Values: list("https://accounts.google.com")}},
	}), `
		+ GET /info peer=cluster.local/ns/default/sa/sleep claims={"iss":"https://accounts.google.com"}
		+ GET /info/x peer=cluster.local/ns/test/sa/any claims={"iss":"https://accounts.google.com"}
		+ POST /data peer=cluster.local/ns/test/sa/any claims={"iss":"https://accounts.google.com"}
		- POST /info peer=cluster.local/ns/test/sa/any claims={"iss":"https://accounts.google.com"}
		- GET /data peer=cluster.local/ns/test/sa/any claims={"iss":"https://accounts.google.com"}
		- POST /data/x peer=cluster.local/ns/test/sa/any claims={"iss":"https://accounts.google.com"}
		- GET /info peer=cluster.local/ns/other/sa/any claims={"iss":"https://accounts.google.com"}
		- GET /info peer=cluster.local/ns/test/sa/any claims={"iss":"https://evil.example"}
		- GET /info peer=cluster.local/ns/test/sa/any
		- GET /info claims={"iss":"https://accounts.google.com"}`},
	{"AP, the second example: DENY from a namespace by method", rules(Deny, Rule{From: []Source{{Namespaces: list("dev")}}, To: []Operation{{Methods: list("POST")}}}), `
		- POST / peer=cluster.local/ns/dev/sa/a
		+ GET / peer=cluster.local/ns/dev/sa/a
		+ POST / peer=cluster.local/ns/prod/sa/a
		+ POST /`},
	{"AP, the third example: on TCP, missing attributes of a DENY rule are matches", rules(Deny, to(Operation{Methods: list("POST"), Ports: list("8080")})), `
		- POST / port=8080
		+ GET / port=8080
		+ POST / port=80
		- TCP port=8080
		+ TCP port=80`},
	{"AP, ibid.: without the port all TCP would be denied", rules(Deny, to(Operation{Methods: list("POST")})), `
		- POST /
		+ GET /
		- TCP port=8080
		- TCP port=80`},
	{"authz/model/model.go, checkError: on TCP an ALLOW rule with HTTP fields is left out as a whole", rules(Allow, to(Operation{Methods: list("GET"), Ports: list("80")}, Operation{Ports: list("81")})), `
		+ GET / port=80
		+ POST / port=81
		- TCP port=80
		- TCP port=81`},
	{"authz/model/model.go: other rules of the policy stay", rules(Allow, to(Operation{Methods: list("GET")}), to(Operation{Ports: list("81")})), `
		+ GET /
		+ TCP port=81
		- TCP port=80`},
	{"authz/model/model.go: on TCP a DENY rule goes by what is left of it", rules(Deny, Rule{From: []Source{{RequestPrincipals: list("*"), Namespaces: list("dev")}}}), `
		- TCP peer=cluster.local/ns/dev/sa/a
		+ TCP peer=cluster.local/ns/prod/sa/a
		+ GET / peer=cluster.local/ns/dev/sa/a`},
	{"authz/model/model.go: on TCP a negated HTTP field of a DENY rule is left out", rules(Deny, to(Operation{NotPaths: list("/ok"), Ports: list("80")})), `
		+ GET /ok
		- GET /bad
		- TCP port=80
		+ TCP port=81`},
	{"AC: HTTP-only conditions on TCP, ALLOW", rules(Allow, when("request.headers[x]", "1")), `
		+ GET / h.x=1
		- TCP`},
	{"AC: HTTP-only conditions on TCP, DENY", rules(Deny, when("request.headers[x]", "1")), `
		- GET / h.x=1
		+ GET / h.x=2
		- TCP`},

	{"AP, Rule: exact match", rules(Allow, to(Operation{Paths: list("/abc")})), `
		+ GET /abc
		- GET /abcd
		- GET /ab
		- GET /ABC
		- GET /xabc
		- GET /abc/`},
	{"AP, Rule: prefix match", rules(Allow, to(Operation{Paths: list("/abc*")})), `
		+ GET /abc
		+ GET /abcd
		+ GET /abc/d
		- GET /ab
		- GET /xabc`},
	{"AP, Rule: suffix match", rules(Allow, to(Operation{Paths: list("*abc")})), `
		+ GET /abc
		+ GET /xabc
		+ GET /x/abc
		- GET /abcd
		- GET /bc`},
	{"AP, Rule: presence match", rules(Allow, to(Operation{Paths: list("*")})), `
		+ GET /
		+ OPTIONS *
		+ GET /abc`},
	{"AP, Rule: presence is of a value that is not empty", rules(Allow, from(Source{Principals: list("*")})), `
		+ GET / peer=cluster.local/ns/default/sa/sleep
		- GET /`},
	{"authz/matcher/string.go: one asterisk at one end; another is literal", rules(Allow, to(Operation{Paths: list("*b*", "/c*d", "/e**")})), `
		- GET /abc
		+ GET /ab*
		- GET /cxd
		+ GET /c*d
		+ GET /e*f
		- GET /ef`},
	{"AP, Operation.paths: the query is no part of it (Normalization, 5)", rules(Allow, to(Operation{Paths: list("/foo")})), `
		+ GET /foo?v=1
		+ GET /foo?
		- GET /foo/?v=1
		- GET /bar?/foo`},
	{"AP, Operation.paths: of the values one is enough", rules(Allow, to(Operation{Paths: list("/a", "/b*", "*c")})), `
		+ GET /a
		+ GET /b1
		+ GET /xc
		- GET /d`},
	{"AP, Operation.not_paths", rules(Allow, to(Operation{NotPaths: list("/admin*", "/x")})), `
		+ GET /
		- GET /admin
		- GET /admin/a
		- GET /x
		+ GET /xx`},
	{"AP, Operation: paths and notPaths together", rules(Allow, to(Operation{Paths: list("/a*"), NotPaths: list("/a/private*")})), `
		+ GET /a/public
		- GET /a/private/x
		- GET /b`},
	{"AP, Operation, its example", rules(Allow, to(Operation{Hosts: list("*.example.com"), Methods: list("GET", "HEAD"), NotPaths: list("/admin*")})), `
		+ GET / host=www.example.com
		+ HEAD / host=www.example.com
		- POST / host=www.example.com
		- GET /admin host=www.example.com
		- GET / host=example.com
		- GET / host=www.example.org`},

	{"tests/integration authz_test.go: {**} at the end", rules(Allow, to(Operation{Paths: list("/allow/admin/{**}")})), `
		+ GET /allow/admin/
		- GET /allow/admin
		- GET /allow/user/
		- GET /allow/admin?param=value
		- GET /allow
		+ GET /allow/admin/temp
		+ GET /allow/admin/temp.txt
		+ GET /allow/admin/foo/temp.txt`},
	{"tests/integration authz_test.go: {*} and {**}", rules(Allow, to(Operation{Paths: list("/foo/{*}/bar/{**}")})), `
		+ GET /foo/buzz/bar/bat.txt
		+ GET /foo/buzz/bar/bat.temp.txt
		+ GET /foo/buzz/bar/bat/fuzz.txt
		- GET /foo/bar/bat.txt
		- GET /foo//bar/bat.txt
		+ GET /foo/buzz/bar/bat
		- GET /foo/a/b/bar/c`},
	{"tests/integration authz_test.go: {**} inside", rules(Allow, to(Operation{Paths: list("/store/{**}/cart")})), `
		+ GET /store//cart
		- GET /store/cart
		+ GET /store/foo/cart
		+ GET /store/foo/bar/cart
		- GET /store/foo/cart/x`},
	{"envoy uri_template_internal.cc: {*} is one segment that is not empty", rules(Allow, to(Operation{Paths: list("/{*}/models/{*}", "/{*}")})), `
		+ GET /v1/models/llama
		- GET /v1/models/
		- GET /v1/models/a/b
		- GET //models/a
		+ GET /v1
		- GET /
		- GET /v1/x`},
	{"AP, Operation.not_paths: a template", rules(Deny, to(Operation{NotPaths: list("/v1/{**}")})), `
		+ GET /v1/models
		- GET /v2/models`},

	{"AP, Operation.hosts: whatever the case", rules(Allow, to(Operation{Hosts: list("Example.COM")})), `
		+ GET / host=example.com
		+ GET / host=EXAMPLE.com
		- GET / host=www.example.com
		- GET / host=example.org`},
	{"istio.io best practices, writing host match policies: the port is part of it", rules(Allow, to(Operation{Hosts: list("example.com", "example.com:*")})), `
		+ GET / host=example.com
		+ GET / host=example.com:8080
		- GET / host=example.com.evil.org`},
	{"authz/matcher/header.go, HostMatcher: suffix and presence", rules(Allow, to(Operation{Hosts: list("*.Svc.local")})), `
		+ GET / host=a.svc.LOCAL
		- GET / host=svc.local`},
	{"authz/matcher/header.go, HostMatcher: presence", rules(Allow, to(Operation{Hosts: list("*")})), `
		+ GET / host=a
		- GET / host=`},
	{"AP, Operation.not_hosts", rules(Deny, to(Operation{NotHosts: list("good.example")})), `
		+ GET / host=good.example
		+ GET / host=GOOD.example
		- GET / host=bad.example`},

	{"AP, Operation.methods", rules(Allow, to(Operation{Methods: list("GET", "PO*")})), `
		+ GET /
		+ POST /
		- PUT /
		- get /`},
	{"AP, Operation.not_methods", rules(Allow, to(Operation{NotMethods: list("DELETE")})), `
		+ GET /
		- DELETE /`},
	{"AP, Operation.ports", rules(Allow, to(Operation{Ports: list("80", "443")})), `
		+ GET / port=80
		+ GET / port=443
		- GET / port=8080
		+ TCP port=443
		- TCP port=8080`},
	{"AP, Operation.not_ports", rules(Deny, to(Operation{NotPorts: list("80")})), `
		+ GET / port=80
		- GET / port=81
		- TCP port=81`},

	{"AP, Source.principals: exact", rules(Allow, from(Source{Principals: list(sleep)})), `
		+ GET / peer=cluster.local/ns/default/sa/sleep
		- GET / peer=cluster.local/ns/default/sa/sleeper
		- GET / peer=cluster.local/ns/other/sa/sleep
		- GET / peer=other.org/ns/default/sa/sleep
		- GET /
		+ TCP peer=cluster.local/ns/default/sa/sleep
		- TCP`},
	{"authz/matcher/string.go, StringMatcherWithPrefix: prefix and suffix of principals", rules(Allow, from(Source{Principals: list("cluster.local/ns/a/*", "*/sa/b")})), `
		+ GET / peer=cluster.local/ns/a/sa/x
		+ GET / peer=any.org/ns/c/sa/b
		- GET / peer=cluster.local/ns/ab/sa/x
		- GET / peer=any.org/ns/c/sa/bb`},
	{"AP, Source.not_principals: somebody unknown is not one of them either", rules(Deny, from(Source{NotPrincipals: list(sleep)})), `
		+ GET / peer=cluster.local/ns/default/sa/sleep
		- GET / peer=cluster.local/ns/default/sa/other
		- GET /
		- TCP`},
	{"AP, Source.not_principals: * is anybody known", rules(Deny, from(Source{NotPrincipals: list("*")})), `
		+ GET / peer=any.org/ns/default/sa/other
		- GET /`},
	{"trustdomain/bundle.go: ours and its aliases are one", rules(Allow, from(Source{Principals: list("cluster.local/ns/a/sa/b")})), `
		+ GET / peer=cluster.local/ns/a/sa/b
		+ GET / peer=old.local/ns/a/sa/b
		- GET / peer=new.local/ns/a/sa/b`},
	{"trustdomain/bundle.go: an alias stands for ours", rules(Allow, from(Source{Principals: list("old.local/ns/a/sa/b")})), `
		+ GET / peer=cluster.local/ns/a/sa/b
		+ GET / peer=old.local/ns/a/sa/b`},
	{"trustdomain/bundle.go: a trust domain of others stays as it is", rules(Allow, from(Source{Principals: list("other.org/ns/a/sa/b")})), `
		+ GET / peer=other.org/ns/a/sa/b
		- GET / peer=cluster.local/ns/a/sa/b`},
	{"trustdomain/bundle.go: a suffix of trust domains", rules(Allow, from(Source{Principals: list("*.local/ns/a/sa/b")})), `
		+ GET / peer=cluster.local/ns/a/sa/b
		+ GET / peer=old.local/ns/a/sa/b
		+ GET / peer=x.local/ns/a/sa/b
		- GET / peer=x.org/ns/a/sa/b`},
	{"trustdomain/bundle.go: aliases in notPrincipals", rules(Deny, from(Source{NotPrincipals: list("old.local/ns/a/sa/b")})), `
		+ GET / peer=cluster.local/ns/a/sa/b
		- GET / peer=cluster.local/ns/a/sa/c`},

	{"AP, Source.namespaces", rules(Allow, from(Source{Namespaces: list("prod", "test")})), `
		+ GET / peer=cluster.local/ns/prod/sa/a
		+ GET / peer=any.org/ns/test/sa/a
		- GET / peer=cluster.local/ns/production/sa/a
		- GET / peer=cluster.local/ns/dev/sa/prod
		- GET /
		+ TCP peer=cluster.local/ns/prod/sa/a`},
	{"authz/model/generator.go, srcNamespaceGenerator: asterisks anywhere", rules(Allow, from(Source{Namespaces: list("a*c", "*-prod", "x*y*z")})), `
		+ GET / peer=cluster.local/ns/ac/sa/s
		+ GET / peer=cluster.local/ns/abbc/sa/s
		- GET / peer=cluster.local/ns/abcd/sa/s
		+ GET / peer=cluster.local/ns/team-prod/sa/s
		- GET / peer=cluster.local/ns/team-prods/sa/s
		+ GET / peer=cluster.local/ns/x1y2z/sa/s
		- GET / peer=cluster.local/ns/xz/sa/s`},
	{"AP, Source.not_namespaces", rules(Deny, from(Source{NotNamespaces: list("prod")})), `
		+ GET / peer=cluster.local/ns/prod/sa/a
		- GET / peer=cluster.local/ns/dev/sa/a
		- GET /`},
	{"AP, Source, its example: fields are ANDed", rules(Allow, from(Source{Principals: list("cluster.local/ns/prod/sa/admin", "cluster.local/ns/test/sa/dev"), Namespaces: list("prod", "test"), NotIPBlocks: list("203.0.113.4")})), `
		+ GET / peer=cluster.local/ns/prod/sa/admin src=10.0.0.1
		- GET / peer=cluster.local/ns/prod/sa/admin src=203.0.113.4
		- GET / peer=cluster.local/ns/prod/sa/other src=10.0.0.1`},
	{"authz/model/generator.go, serviceAccountRegex: of the policy's namespace", rules(Allow, from(Source{ServiceAccounts: list("client")})), `
		+ GET / peer=cluster.local/ns/foo/sa/client
		+ GET / peer=any.org/ns/foo/sa/client
		- GET / peer=cluster.local/ns/bar/sa/client
		- GET / peer=cluster.local/ns/foo/sa/client-2
		- GET /`},
	{"authz/model/generator.go, serviceAccountRegex: of another namespace", rules(Allow, from(Source{ServiceAccounts: list("bar/client")})), `
		+ GET / peer=cluster.local/ns/bar/sa/client
		+ GET / peer=cluster.local/ns/bar/x/y/sa/client/pod/z
		- GET / peer=cluster.local/ns/foo/sa/client`},
	{"AP, Source.not_service_accounts", rules(Deny, from(Source{NotServiceAccounts: list("bar/client")})), `
		+ GET / peer=cluster.local/ns/bar/sa/client
		- GET / peer=cluster.local/ns/bar/sa/other`},
	{"authz/model/generator.go, srcTrustDomainGenerator: exact", rules(Allow, from(Source{TrustDomains: list("other.org")})), `
		+ GET / peer=other.org/ns/a/sa/b
		- GET / peer=other.org.evil/ns/a/sa/b
		- GET / peer=cluster.local/ns/a/sa/b
		- GET /`},
	{"trustdomain/bundle.go, ExpandTrustDomainAliases", rules(Allow, from(Source{TrustDomains: list("old.local")})), `
		+ GET / peer=cluster.local/ns/a/sa/b
		+ GET / peer=old.local/ns/a/sa/b
		- GET / peer=other.org/ns/a/sa/b`},
	{"authz/model/generator.go, srcTrustDomainGenerator: patterns", rules(Allow, from(Source{TrustDomains: list("*.org", "td-*")})), `
		+ GET / peer=other.org/ns/a/sa/b
		+ GET / peer=td-1/ns/a/sa/b
		- GET / peer=td/ns/a/sa/b
		- GET /`},
	{"authz/model/generator.go: any trust domain", rules(Deny, from(Source{NotTrustDomains: list("*")})), `
		+ GET / peer=any/ns/a/sa/b
		- GET /`},

	{"AP, Source.ip_blocks: address and CIDR", rules(Allow, from(Source{IPBlocks: list("203.0.113.4", "10.1.0.0/16", "2001:db8::/32")})), `
		+ GET / src=203.0.113.4
		- GET / src=203.0.113.5
		+ GET / src=10.1.2.3
		- GET / src=10.2.0.1
		+ GET / src=2001:db8::1
		- GET / src=2001:db9::1
		+ GET / src=::ffff:10.1.2.3
		- GET /
		+ TCP src=10.1.2.3
		- TCP src=10.2.0.1`},
	{"AP, Source.not_ip_blocks", rules(Allow, from(Source{NotIPBlocks: list("10.0.0.0/8")})), `
		+ GET / src=192.0.2.1
		- GET / src=10.1.1.1`},
	{"AP, Source.remote_ip_blocks: the client behind proxies", rules(Allow, from(Source{RemoteIPBlocks: list("198.51.100.0/24")})), `
		+ GET / src=10.0.0.1 remote=198.51.100.7
		- GET / src=198.51.100.7 remote=10.0.0.1`},
	{"AP, Source.not_remote_ip_blocks", rules(Deny, from(Source{NotRemoteIPBlocks: list("198.51.100.0/24")})), `
		+ GET / remote=198.51.100.7
		- GET / remote=192.0.2.1`},

	{"AP, Source.request_principals: exact", rules(Allow, from(Source{RequestPrincipals: list("example.com/sub-1")})), `
		+ GET / claims={"iss":"example.com","sub":"sub-1"}
		- GET / claims={"iss":"example.com","sub":"sub-2"}
		- GET / claims={"iss":"example.org","sub":"sub-1"}
		- GET /`},
	{"AP, Source.request_principals: any", rules(Allow, from(Source{RequestPrincipals: list("*")})), `
		+ GET / claims={"iss":"a","sub":"b"}
		- GET / claims={"iss":"a"}
		- GET / claims={"sub":"b"}
		- GET /
		- TCP`},
	{"authz/model/generator.go, requestPrincipalGenerator: the last slash parts, for issuers may be URLs", rules(Allow, from(Source{RequestPrincipals: list("https://accounts.example/*")})), `
		+ GET / claims={"iss":"https://accounts.example","sub":"x"}
		- GET / claims={"iss":"https://accounts.example.evil","sub":"x"}
		- GET / claims={"iss":"https://accounts.example/realm","sub":"x"}`},
	{"authz/model/generator.go, requestPrincipalGenerator: patterns of the subject", rules(Allow, from(Source{RequestPrincipals: list("iss/team-*", "*/admin", "*.org/bot", "*-svc")})), `
		+ GET / claims={"iss":"iss","sub":"team-a"}
		- GET / claims={"iss":"other","sub":"team-a"}
		+ GET / claims={"iss":"any","sub":"admin"}
		- GET / claims={"iss":"any","sub":"admins"}
		+ GET / claims={"iss":"x.org","sub":"bot"}
		- GET / claims={"iss":"x.com","sub":"bot"}
		+ GET / claims={"iss":"any","sub":"a-svc"}`},
	{"authz/model/generator.go, requestPrincipalGenerator: without a slash", rules(Allow, from(Source{RequestPrincipals: list("iss*")})), `
		+ GET / claims={"iss":"issuer","sub":"x"}
		- GET / claims={"iss":"other","sub":"x"}`},
	{"AP, Source.not_request_principals", rules(Deny, from(Source{NotRequestPrincipals: list("*")})), `
		+ GET / claims={"iss":"a","sub":"b"}
		- GET /`},
	{"AP, RequestAuthentication, fine tuning: a token on all paths except one", rules(Allow, from(Source{RequestPrincipals: list("*")}), to(Operation{Paths: list("/healthz")})), `
		+ GET / claims={"iss":"a","sub":"b"}
		+ GET /healthz
		- GET /`},

	{"AC, request.headers", rules(Allow, when("request.headers[User-Agent]", "Mozilla/*")), `
		+ GET / h.User-Agent=Mozilla/5.0
		+ GET / h.user-agent=Mozilla/4
		- GET / h.user-agent=curl
		- GET /`},
	{"Normalization, duplicate headers: joined by commas", rules(Allow, when("request.headers[x-header]", "foo,bar")), `
		+ GET / h.x-header=foo h.x-header=bar
		+ GET / h.x-header=foo,bar
		- GET / h.x-header=bar h.x-header=foo
		- GET / h.x-header=foo`},
	{"Normalization, duplicate headers: three, by prefix and suffix", rules(Allow, when("request.headers[x]", "a,b*"), when("request.headers[x]", "*,z")), `
		+ GET / h.x=a h.x=b h.x=c
		+ GET / h.x=q h.X=z
		- GET / h.x=b h.x=a`},
	{"authz/matcher/header.go: * asks whether it is there", rules(Allow, when("request.headers[x]", "*")), `
		+ GET / h.x=1
		+ GET / h.x=
		- GET / h.y=1`},
	{"AP, Condition.not_values of a header", rules(Deny, whenNot("request.headers[x]", "1")), `
		+ GET / h.x=1
		- GET / h.x=2
		- GET /`},
	{"AP, Condition.not_values: presence", rules(Deny, whenNot("request.headers[x]", "*")), `
		+ GET / h.x=
		- GET /`},
	{"Envoy: pseudo-headers are headers", rules(Allow, when("request.headers[:authority]", "a.example"), when("request.headers[:method]", "PUT"), when("request.headers[:path]", "/q?a=b")), `
		+ GET / host=a.example
		+ PUT /
		+ GET /q?a=b
		- GET /q`},
	{"Envoy: Host is :authority", rules(Allow, when("request.headers[Host]", "a.example")), `
		+ GET / host=a.example
		- GET / host=b.example`},
	{"AC, source.ip", rules(Allow, when("source.ip", "10.1.2.3", "10.2.0.0/16")), `
		+ GET / src=10.1.2.3
		+ TCP src=10.2.1.1
		- GET / src=10.3.1.1`},
	{"AC, remote.ip", rules(Allow, when("remote.ip", "10.2.0.0/16")), `
		+ GET / remote=10.2.1.1
		- GET / src=10.2.1.1`},
	{"AC, source.namespace", rules(Allow, when("source.namespace", "default")), `
		+ GET / peer=cluster.local/ns/default/sa/a
		- GET / peer=cluster.local/ns/other/sa/a`},
	{"AC, source.principal", rules(Allow, when("source.principal", "cluster.local/ns/default/sa/productpage")), `
		+ GET / peer=cluster.local/ns/default/sa/productpage
		+ GET / peer=old.local/ns/default/sa/productpage
		- GET / peer=cluster.local/ns/default/sa/other`},
	{"authz/model/model.go, source.serviceAccount and source.trustDomain", rules(Allow, Rule{When: []Condition{{Key: "source.serviceAccount", Values: list("a/b")}, {Key: "source.trustDomain", NotValues: list("evil.org")}}}), `
		+ GET / peer=cluster.local/ns/a/sa/b
		- GET / peer=evil.org/ns/a/sa/b
		- GET / peer=cluster.local/ns/a/sa/c`},
	{"AC, request.auth.principal", rules(Allow, when("request.auth.principal", "accounts.my-svc.com/104958560606")), `
		+ GET / claims={"iss":"accounts.my-svc.com","sub":"104958560606"}
		- GET / claims={"iss":"accounts.my-svc.com","sub":"1"}`},
	{"AC, request.auth.audiences: string or list", rules(Allow, when("request.auth.audiences", "my-svc.com")), `
		+ GET / claims={"aud":"my-svc.com"}
		+ GET / claims={"aud":["other","my-svc.com"]}
		- GET / claims={"aud":["other"]}
		- GET / claims={"iss":"my-svc.com"}
		- GET /`},
	{"AC, request.auth.presenter is azp", rules(Allow, when("request.auth.presenter", "123456789012.my-svc.com")), `
		+ GET / claims={"azp":"123456789012.my-svc.com"}
		- GET / claims={"azp":"other"}`},
	{"AC, request.auth.claims", rules(Allow, when("request.auth.claims[email]", "*@foo.com")), `
		+ GET / claims={"email":"a@foo.com"}
		- GET / claims={"email":"a@bar.com"}
		- GET / claims={"mail":"a@foo.com"}`},
	{"authz/model/util.go: claims may be lists and nested", rules(Allow, when("request.auth.claims[realm][roles]", "admin")), `
		+ GET / claims={"realm":{"roles":["user","admin"]}}
		+ GET / claims={"realm":{"roles":"admin"}}
		- GET / claims={"realm":{"roles":["user"]}}
		- GET / claims={"roles":["admin"]}
		- GET / claims={"realm":"admin"}
		- GET / claims={"realm":{"roles":{"admin":"admin"}}}`},
	{"authz/model/util.go: only strings match", rules(Allow, when("request.auth.claims[n]", "1", "true")), `
		+ GET / claims={"n":"1"}
		- GET / claims={"n":1}
		- GET / claims={"n":true}
		- GET / claims={"n":[1]}
		- GET / claims={"n":null}`},
	{"authz/model/util.go: brackets that do not pair are part of the name", rules(Allow, when("request.auth.claims[a[b]", "1")), `
		+ GET / claims={"a[b":"1"}
		- GET / claims={"a":{"b":"1"}}`},
	{"AP, Condition.not_values of a claim: a token without it is not one of them", rules(Deny, whenNot("request.auth.claims[group]", "staff")), `
		+ GET / claims={"group":["x","staff"]}
		- GET / claims={"group":"x"}
		- GET /`},
	{"AC, destination.ip", rules(Allow, when("destination.ip", "10.1.2.3", "10.2.0.0/16")), `
		+ GET / dst=10.1.2.3
		+ TCP dst=10.2.3.4
		- GET / dst=10.3.0.1
		- GET /`},
	{"AC, destination.port", rules(Allow, when("destination.port", "80", "443")), `
		+ GET / port=443
		- GET / port=8080
		- TCP port=8080`},
	{"AC, connection.sni", rules(Allow, when("connection.sni", "www.example.com", "*.org")), `
		+ GET / sni=www.example.com
		+ GET / sni=a.org
		- GET / sni=example.com
		- GET /
		- TCP`},
	// A connection that is passed on unread may be TLS for any name.
	{"AC, connection.sni of what is not read", rules(Deny, when("connection.sni", "www.example.com")), `
		- GET / sni=www.example.com
		+ GET / sni=example.com
		- TCP`},
	{"AP, Rule.when: all conditions must hold", rules(Allow, Rule{When: []Condition{{Key: "source.ip", Values: list("10.0.0.0/8")}, {Key: "request.headers[x]", Values: list("1")}}}), `
		+ GET / src=10.1.1.1 h.x=1
		- GET / src=10.1.1.1
		- GET / src=11.1.1.1 h.x=1`},
	{"AP, Condition: values and notValues together", rules(Allow, Rule{When: []Condition{{Key: "request.headers[x]", Values: list("a*"), NotValues: list("ab")}}}), `
		+ GET / h.x=a
		- GET / h.x=ab
		- GET / h.x=b`},
	{"Fairway, request.model", rules(Allow, Rule{From: []Source{{RequestPrincipals: list("key/team-a")}}, When: []Condition{{Key: "request.model", Values: list("llama-*", "qwen")}}}), `
		+ POST /v1/completions claims={"iss":"key","sub":"team-a"} model=llama-3
		+ POST /v1/completions claims={"iss":"key","sub":"team-a"} model=qwen
		- POST /v1/completions claims={"iss":"key","sub":"team-a"} model=gpt
		- POST /v1/completions claims={"iss":"key","sub":"team-b"} model=qwen
		- GET /v1/models claims={"iss":"key","sub":"team-a"}`},
	{"Fairway, request.model by the name that Istio's validation lets pass", rules(Deny, when("experimental.envoy.filters.fairway[model]", "secret*")), `
		- POST / model=secret-1
		+ POST / model=open
		+ POST /`},
}
