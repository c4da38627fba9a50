package authz

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// naive judges by reading the policies anew for each request, with regular expressions
// as Istio writes them for Envoy.
type naive struct {
	policies     []Policy
	trustDomains []string
	r            *Request
}

func (n naive) denied(dry bool) bool {
	var deny, allowed, hasAllow bool
	for _, p := range n.policies {
		if p.DryRun != dry {
			continue
		}
		matched := slices.ContainsFunc(p.Rules, func(r Rule) bool { return n.rule(p, r) })
		switch p.Action {
		case Deny:
			deny = deny || matched
		case Allow:
			hasAllow, allowed = true, allowed || matched
		}
	}
	return deny || hasAllow && !allowed
}

func (n naive) rule(p Policy, r Rule) bool {
	conn := n.r.Head == nil
	if conn && p.Action == Allow && n.aboutHTTP(r) {
		return false
	}
	source := func(s Source) bool {
		return n.field(p, "principal", s.Principals, s.NotPrincipals) && n.field(p, "request principal", s.RequestPrincipals, s.NotRequestPrincipals) &&
			n.field(p, "namespace", s.Namespaces, s.NotNamespaces) && n.field(p, "account", s.ServiceAccounts, s.NotServiceAccounts) &&
			n.field(p, "trust domain", s.TrustDomains, s.NotTrustDomains) &&
			n.field(p, "source", s.IPBlocks, s.NotIPBlocks) && n.field(p, "remote", s.RemoteIPBlocks, s.NotRemoteIPBlocks)
	}
	operation := func(o Operation) bool {
		return n.field(p, "host", o.Hosts, o.NotHosts) && n.field(p, "port", o.Ports, o.NotPorts) &&
			n.field(p, "method", o.Methods, o.NotMethods) && n.field(p, "path", o.Paths, o.NotPaths)
	}
	condition := func(c Condition) bool { return n.field(p, c.Key, c.Values, c.NotValues) }
	return (len(r.From) == 0 || slices.ContainsFunc(r.From, source)) && (len(r.To) == 0 || slices.ContainsFunc(r.To, operation)) &&
		!slices.ContainsFunc(r.When, func(c Condition) bool { return !condition(c) })
}

func (n naive) aboutHTTP(r Rule) bool {
	return slices.ContainsFunc(r.From, func(s Source) bool { return len(s.RequestPrincipals)+len(s.NotRequestPrincipals) > 0 }) ||
		slices.ContainsFunc(r.To, func(o Operation) bool {
			return len(o.Hosts)+len(o.NotHosts)+len(o.Methods)+len(o.NotMethods)+len(o.Paths)+len(o.NotPaths) > 0
		}) ||
		slices.ContainsFunc(r.When, func(c Condition) bool { return strings.HasPrefix(c.Key, "request.") || c.Key == "connection.sni" })
}

func (n naive) field(p Policy, name string, some, not []string) bool {
	if n.r.Head == nil && (strings.HasPrefix(name, "request") || slices.Contains([]string{"host", "method", "path", "connection.sni"}, name)) {
		return true
	}
	matches := func(value string) bool { return n.value(p, name, value) }
	return (len(some) == 0 || slices.ContainsFunc(some, matches)) && !slices.ContainsFunc(not, matches)
}

var expressions = make(map[string]*regexp.Regexp)

// full matches a whole string.
func full(expression, s string) bool {
	e := expressions[expression]
	if e == nil {
		e = regexp.MustCompile(`(?s)^(?:` + expression + `)$`)
		expressions[expression] = e
	}
	return e.MatchString(s)
}

// text is the expression of a value; before is put before what is literal.
func text(value, before string) string {
	q := regexp.QuoteMeta
	switch {
	case value == "*":
		return ".+"
	case value[0] == '*':
		return q(before) + ".*" + q(value[1:])
	case value[len(value)-1] == '*':
		return q(before+value[:len(value)-1]) + ".*"
	}
	return q(before + value)
}

func in(cidr string, a netip.Addr) bool {
	if !strings.Contains(cidr, "/") {
		return netip.MustParseAddr(cidr) == a
	}
	return netip.MustParsePrefix(cidr).Contains(a)
}

func (n naive) value(p Policy, name, value string) bool {
	r, peer := n.r, n.r.Peer.String()
	claims := map[string]any{}
	if r.Identity != nil {
		claims = r.Identity.claims
	}
	str := func(v any) string { s, _ := v.(string); return s }
	switch name {
	case "principal", "source.principal":
		parts := strings.SplitN(value, "/", 2)
		for _, domain := range n.trustDomains {
			if strings.Count(value, "/") == 4 && (parts[0] == "cluster.local" || slices.Contains(n.trustDomains, parts[0])) && full(text(domain+"/"+parts[1], "spiffe://"), peer) {
				return true
			}
		}
		return full(text(value, "spiffe://"), peer)
	case "namespace", "source.namespace":
		return full(".*/ns/"+strings.ReplaceAll(regexp.QuoteMeta(value), `\*`, ".*")+"/.*", peer)
	case "account", "source.serviceAccount":
		ns, sa, ok := strings.Cut(value, "/")
		if !ok {
			ns, sa = p.Namespace, value
		}
		return full("spiffe://.+/ns/"+regexp.QuoteMeta(ns)+"/(.+/|)sa/"+regexp.QuoteMeta(sa)+"(/.+)?", peer)
	case "trust domain", "source.trustDomain":
		domains := []string{value}
		if slices.Contains(n.trustDomains, value) {
			domains = n.trustDomains
		}
		return slices.ContainsFunc(domains, func(d string) bool {
			return full("spiffe://"+strings.ReplaceAll(regexp.QuoteMeta(d), `\*`, "[^/]*")+"/.*", peer)
		})
	case "source", "source.ip":
		return in(value, r.Source)
	case "remote", "remote.ip":
		return in(value, r.Remote)
	case "destination.ip":
		return in(value, r.Destination)
	case "port", "destination.port":
		return value == strconv.Itoa(int(r.Port))
	case "connection.sni":
		return full(text(value, ""), r.SNI)
	case "host":
		return full("(?i:"+text(value, "")+")", string(r.Head.Authority))
	case "method":
		return full(text(value, ""), string(r.Head.Method))
	case "path":
		path, _, _ := strings.Cut(string(r.Head.Target), "?")
		if strings.Contains(value, "{") {
			e := strings.NewReplacer(`\{\*\*\}`, ".*", `\{\*\}`, "[^/]+").Replace(regexp.QuoteMeta(value))
			return full(e, path)
		}
		return full(text(value, ""), path)
	case "request.model":
		return full(text(value, ""), string(r.Model))
	case "request principal", "request.auth.principal":
		iss, sub := str(claims["iss"]), str(claims["sub"])
		if iss == "" || sub == "" {
			return false
		}
		// The subject has no slash in these tests.
		if value == "*" || value[0] == '*' || value[len(value)-1] == '*' || strings.Contains(value, "/") {
			return full(text(value, ""), iss+"/"+sub)
		}
		return false
	}
	if claim, ok := strings.CutPrefix(name, "request.auth.claims["); ok {
		var v any = claims
		for _, key := range strings.Split(strings.TrimSuffix(claim, "]"), "][") {
			m, _ := v.(map[string]any)
			v = m[key]
		}
		if list, ok := v.([]any); ok {
			return slices.ContainsFunc(list, func(e any) bool { s, ok := e.(string); return ok && full(text(value, ""), s) })
		}
		s, ok := v.(string)
		return ok && full(text(value, ""), s)
	}
	if header, ok := strings.CutPrefix(name, "request.headers["); ok {
		var all []string
		for _, f := range r.Head.Fields {
			if strings.EqualFold(string(f.Name), strings.TrimSuffix(header, "]")) {
				all = append(all, string(f.Value))
			}
		}
		return len(all) > 0 && (value == "*" || full(text(value, ""), strings.Join(all, ",")))
	}
	panic(name)
}

// random makes policies and requests of few values, so that they often meet.
type random struct{ *rand.Rand }

func pick[T any](r random, all ...T) T { return all[r.IntN(len(all))] }

// some gives now and then one to three of all.
func (r random) some(all ...string) (picked []string) {
	if r.IntN(4) > 0 {
		return nil
	}
	for range 1 + r.IntN(3) {
		picked = append(picked, pick(r, all...))
	}
	return picked
}

var (
	somePeers      = []string{"cluster.local/ns/a/sa/x", "old.local/ns/a/sa/y", "other.org/ns/ab/sa/x", "other.org/ns/b/sa/xy", "cluster.local/ns/b/k/v/sa/x/pod/z", "cluster.local/node/n"}
	principals     = []string{"cluster.local/ns/a/sa/x", "old.local/ns/a/sa/y", "other.org/ns/b/sa/xy", "*", "*/sa/x", "other.org/*", "cluster.local/ns/*"}
	namespaces     = []string{"a", "b", "ab", "a*", "*b", "*", "a*b"}
	accounts       = []string{"x", "a/x", "b/xy", "b/x"}
	trustDomains   = []string{"cluster.local", "old.local", "other.org", "*", "*.org", "o*"}
	addresses      = []string{"10.0.0.1", "10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32", "0.0.0.0/0"}
	someAddresses  = []string{"10.0.0.1", "10.9.9.9", "192.0.2.7", "2001:db8::1", "203.0.113.9"}
	ports          = []string{"80", "443", "8080"}
	hosts          = []string{"a.example", "A.Example", "*.example", "a.*", "*", "b.example:80"}
	methods        = []string{"GET", "POST", "P*", "*T", "*"}
	paths          = []string{"/a", "/a*", "*b", "*", "/a/{*}", "/{**}/b", "/{*}/b/{**}", "/a/b"}
	targets        = []string{"/a", "/ab", "/a/b", "/b/b/c", "/x/b/", "/a/b/b?q=/a", "/", "/a//b"}
	requestNames   = []string{"iss/sub", "iss/*", "*", "*/sub", "*b", "i*", "https://a.b/c/*", "*.b/c/sub", "iss"}
	claimValues    = []string{"v", "v*", "*w", "*", "vw"}
	headerValues   = []string{"1", "1,2", "1*", "*2", "*"}
	models         = []string{"llama", "llama-*", "*-8b", "*"}
	conditionNames = []string{"source.ip", "remote.ip", "source.namespace", "source.serviceAccount", "source.principal", "source.trustDomain", "destination.ip",
		"destination.port", "connection.sni", "request.model", "request.auth.principal", "request.auth.claims[c]", "request.auth.claims[n][c]", "request.headers[X-H]"}
	valuesOf = map[string][]string{
		"source.ip": addresses, "remote.ip": addresses, "destination.ip": addresses, "source.namespace": namespaces, "source.serviceAccount": accounts,
		"source.principal": principals, "source.trustDomain": trustDomains, "destination.port": ports, "connection.sni": {"s.example", "*.example", "*"},
		"request.model": models, "request.auth.principal": requestNames, "request.auth.claims[c]": claimValues, "request.auth.claims[n][c]": claimValues, "request.headers[X-H]": headerValues,
	}
)

func (r random) policy(i int) Policy {
	p := Policy{Namespace: pick(r, "a", "b"), Name: fmt.Sprint("p", i), Action: pick(r, Allow, Deny), DryRun: r.IntN(5) == 0}
	for range 1 + r.IntN(2) {
		var u Rule
		for range r.IntN(3) {
			s := Source{
				RequestPrincipals: r.some(requestNames...), NotRequestPrincipals: r.some(requestNames...),
				TrustDomains: r.some(trustDomains...), NotTrustDomains: r.some(trustDomains...), IPBlocks: r.some(addresses...), NotIPBlocks: r.some(addresses...),
				RemoteIPBlocks: r.some(addresses...), NotRemoteIPBlocks: r.some(addresses...),
			}
			if r.IntN(2) == 0 {
				s.ServiceAccounts, s.NotServiceAccounts = r.some(accounts...), r.some(accounts...)
			} else {
				s.Principals, s.NotPrincipals = r.some(principals...), r.some(principals...)
				s.Namespaces, s.NotNamespaces = r.some(namespaces...), r.some(namespaces...)
			}
			if !s.isEmpty() {
				u.From = append(u.From, s)
			}
		}
		for range r.IntN(3) {
			o := Operation{r.some(hosts...), r.some(hosts...), r.some(ports...), r.some(ports...), r.some(methods...), r.some(methods...), r.some(paths...), r.some(paths...)}
			if !o.isEmpty() {
				u.To = append(u.To, o)
			}
		}
		for range r.IntN(3) {
			key := pick(r, conditionNames...)
			c := Condition{key, r.some(valuesOf[key]...), r.some(valuesOf[key]...)}
			if len(c.Values)+len(c.NotValues) > 0 {
				u.When = append(u.When, c)
			}
		}
		p.Rules = append(p.Rules, u)
	}
	return p
}

func (r random) request() *Request {
	address := func() (a netip.Addr) {
		if r.IntN(8) > 0 {
			a = netip.MustParseAddr(pick(r, someAddresses...))
		}
		return a
	}
	q := &Request{Source: address(), Remote: address(), Destination: address(), Port: pick[uint16](r, 80, 443, 8080, 9), SNI: pick(r, "", "s.example", "other")}
	if r.IntN(4) > 0 {
		q.Peer = ParsePeer("spiffe://" + pick(r, somePeers...))
	}
	if r.IntN(5) == 0 {
		return q
	}
	q.Head = &message.Request{Method: []byte(pick(r, "GET", "POST", "PUT")), Target: []byte(pick(r, targets...)), Authority: []byte(pick(r, "a.example", "b.EXAMPLE", "b.example:80", "c"))}
	for range r.IntN(4) {
		q.Head.Fields = append(q.Head.Fields, message.Field{Name: []byte(pick(r, "x-h", "X-H", "x-o")), Value: []byte(pick(r, "1", "2", "1,2"))})
	}
	if r.IntN(2) == 0 {
		claims := map[string]any{"iss": pick(r, "iss", "https://a.b/c", "x.b/c"), "sub": pick(r, "sub", "b", "o"), "c": pick[any](r, "v", []any{"x", "vw"}, 1)}
		claims["n"] = map[string]any{"c": pick[any](r, "vw", []any{"v"}, nil)}
		if r.IntN(6) == 0 {
			delete(claims, "sub")
		}
		sub, _ := claims["sub"].(string)
		q.Identity = newIdentity(claims["iss"].(string), sub, claims)
	}
	q.Model = []byte(pick(r, "", "llama", "llama-8b", "other-8b"))
	return q
}

var (
	seed  = flag.Uint64("seed", 1, "of random policies and requests")
	times = flag.Int("times", 3000, "how many random sets of policies")
)

// On random policies and requests, the compiled evaluator decides as the naive one
// does.
func TestJudgeAsTheNaiveOneDoes(t *testing.T) {
	r := random{rand.New(rand.NewPCG(*seed, 0))}
	trusted := []string{"cluster.local", "old.local"}
	counts := make(map[bool]int)
	for range *times {
		var policies []Policy
		for i := range 1 + r.IntN(3) {
			policies = append(policies, r.policy(i))
		}
		g, findings := compile(&Config{Policies: policies, TrustDomains: trusted}, nil)
		if len(findings) > 0 {
			t.Fatalf("%+v: %v", policies, findings)
		}
		for range 5 {
			q := r.request()
			want := naive{policies, trusted, q}
			d := decide(t, g, q)
			counts[d.Denied]++
			if d.Denied != want.denied(false) || d.DryRunDenied != want.denied(true) {
				t.Fatalf("%+v: want denied %v, dry run %v\npolicies %+v\nrequest %+v, head %+v", d, want.denied(false), want.denied(true), policies, q, q.Head)
			}
			// What is denied before the model is known is denied whatever it is.
			if q.Head != nil {
				q.ModelPending = true
				if early := g.Judge(q); early.Denied && !d.Denied || early.Denied != d.Denied && !g.ReadsModel() {
					t.Fatalf("%+v before the model is known, %+v then\npolicies %+v\nrequest %+v", early, d, policies, q)
				}
				q.ModelPending = false
			}
		}
	}
	if counts[true] < *times/2 || counts[false] < *times/2 {
		t.Errorf("%v: this shows little", counts)
	}
}

// The same Config makes the same Guard, and judging changes nothing in it.
func TestGuardDoesNotChange(t *testing.T) {
	r := random{rand.New(rand.NewPCG(*seed, 1))}
	var policies []Policy
	for i := range 20 {
		policies = append(policies, r.policy(i))
	}
	one, _ := compile(&Config{Policies: policies}, nil)
	other, _ := compile(&Config{Policies: policies}, nil)
	for range 100 {
		decide(t, one, r.request())
	}
	if !reflect.DeepEqual(one, other) {
		t.Error("it changed")
	}
}
