package route

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// naive finds the rule by the words of the specification: every match of every
// route is tried, and of those that fit the one that goes first is taken.
func naive(routes []Route, r *message.Request) *Rule {
	type candidate struct {
		rule *Rule
		rank []int // the greater goes first
	}
	var best candidate
	better := func(a, b []int) bool {
		for i := range a {
			if a[i] != b[i] {
				return a[i] > b[i]
			}
		}
		return false // the earlier stays
	}
	for i := range routes {
		host := naiveHost(routes[i].Hostnames, string(r.Authority))
		if host < 0 {
			continue
		}
		for j := range routes[i].Rules {
			rule := &routes[i].Rules[j]
			matches := rule.Matches
			if len(matches) == 0 {
				matches = []Match{{Path: PathMatch{PathPrefix, "/"}}}
			}
			for _, m := range matches {
				if rank, ok := naiveMatch(m, r); ok {
					c := candidate{rule, append([]int{host}, rank...)}
					if best.rule == nil || better(c.rank, best.rank) {
						best = c
					}
				}
			}
		}
	}
	return best.rule
}

// naiveHost gives how specific the hostname is that matches, -1 for none.
func naiveHost(hostnames []string, authority string) int {
	if len(hostnames) == 0 {
		return 0
	}
	host := strings.ToLower(naivePort.ReplaceAllString(authority, ""))
	host = strings.TrimSuffix(host, ".")
	most := -1
	for _, h := range hostnames {
		h = strings.ToLower(h)
		switch {
		case h == host:
			most = max(most, 1000+len(h))
		case strings.HasPrefix(h, "*.") && len(host) >= len(h) && strings.HasSuffix(host, h[1:]):
			most = max(most, len(h))
		}
	}
	return most
}

var naivePort = regexp.MustCompile(`:[0-9]*$`)

// naiveWhole is an expression that has to match all of a text; nil if it is none.
// Those that the generator makes are few.
func naiveWhole(expression string) *regexp.Regexp {
	e, known := naiveKnown.Load(expression)
	if !known {
		compiled, _ := regexp.Compile("^(?:" + expression + ")$")
		e, _ = naiveKnown.LoadOrStore(expression, compiled)
	}
	return e.(*regexp.Regexp)
}

var naiveKnown sync.Map

func naiveMatch(m Match, r *message.Request) (rank []int, ok bool) {
	path, rawQuery, _ := strings.Cut(string(r.Target), "?")
	kind, length := 0, 0
	switch value := m.Path.Value; m.Path.Type {
	case Exact:
		kind = 2
		if path != value {
			return nil, false
		}
	case RegularExpression:
		kind, length = 1, len(value)
		if e := naiveWhole(value); e == nil || !e.MatchString(path) {
			return nil, false
		}
	default:
		if value = strings.TrimRight(value, "/"); path != value && !strings.HasPrefix(path, value+"/") {
			return nil, false
		}
		length = len(value)
	}
	if m.Method != "" && m.Method != string(r.Method) {
		return nil, false
	}
	have := make(map[string]string)
	for _, f := range r.Fields {
		name := strings.ToLower(string(f.Name))
		if old, twice := have[name]; twice {
			have[name] = old + "," + string(f.Value)
		} else {
			have[name] = string(f.Value)
		}
	}
	nHeaders, ok := naiveValues(m.Headers, have, strings.ToLower)
	if !ok {
		return nil, false
	}
	params := make(map[string]string)
	for _, one := range strings.Split(rawQuery, "&") {
		key, value, _ := strings.Cut(one, "=")
		key, err1 := url.QueryUnescape(key)
		value, err2 := url.QueryUnescape(value)
		if err1 != nil || err2 != nil {
			panic("the generator makes valid escapes only")
		}
		if _, twice := params[key]; !twice && one != "" {
			params[key] = value
		}
	}
	nParams, ok := naiveValues(m.Query, params, func(s string) string { return s })
	hasMethod := 0
	if m.Method != "" {
		hasMethod = 1
	}
	return []int{kind, length, hasMethod, nHeaders, nParams}, ok
}

func naiveValues(matches []ValueMatch, have map[string]string, key func(string) string) (n int, ok bool) {
	seen := make(map[string]bool)
	for _, m := range matches {
		name := key(m.Name)
		if seen[name] {
			continue
		}
		seen[name] = true
		n++
		v, there := have[name]
		if m.Type == RegularExpression {
			e := naiveWhole(m.Value)
			if there = there && e != nil && e.MatchString(v); !there {
				return n, false
			}
		} else if !there || v != m.Value {
			return n, false
		}
	}
	return n, true
}

// generator makes routes and requests of few parts, so that they meet often.
type generator struct{ *rand.Rand }

func (g generator) one(of ...string) string { return of[g.IntN(len(of))] }

func (g generator) path() string {
	var b strings.Builder
	for range g.IntN(4) {
		b.WriteString("/" + g.one("a", "b", "ab", "v1", "%2F", "~", ""))
	}
	if b.Len() == 0 || g.IntN(4) == 0 {
		b.WriteString("/")
	}
	return b.String()
}

func (g generator) host() string {
	return g.one("a.com", "b.a.com", "c.b.a.com", "com", "xa.com", "A.COM", "[::1]", "")
}

func (g generator) values(names ...string) (all []ValueMatch) {
	for range g.IntN(3) {
		v := ValueMatch{Name: g.one(names...), Value: g.one("1", "2", "a b", "1,2")}
		switch g.IntN(6) {
		case 0:
			v.Type, v.Value = RegularExpression, g.one("[12]", ".*", "1|2", "(", "a b?")
		case 1:
			v.Type = Exact
		}
		all = append(all, v)
	}
	return all
}

func (g generator) routes() []Route {
	routes := make([]Route, 1+g.IntN(4))
	for i := range routes {
		for range g.IntN(3) {
			routes[i].Hostnames = append(routes[i].Hostnames, g.one("a.com", "*.a.com", "*.com", "b.a.com", "*.b.a.com", "B.a.com", "[::1]"))
		}
		for j := range 1 + g.IntN(3) {
			rule := Rule{Name: fmt.Sprint(i, " ", j)}
			for range g.IntN(4) {
				m := Match{Headers: g.values("x-a", "X-A", "x-b", "X-b"), Query: g.values("a", "A", "b c")}
				switch g.IntN(5) {
				case 0:
					m.Path = PathMatch{Exact, string(normal(g.path()))}
				case 1:
					m.Path = PathMatch{RegularExpression, g.one("/a.*", "/(a|b)", ".*", "/[^/]*/b", "/(", "")}
				case 2, 3:
					m.Path = PathMatch{PathPrefix, string(normal(g.path()))}
				}
				if g.IntN(3) == 0 {
					m.Method = g.one("GET", "POST")
				}
				rule.Matches = append(rule.Matches, m)
			}
			routes[i].Rules = append(routes[i].Rules, rule)
		}
	}
	return routes
}

func (g generator) request() *message.Request {
	target := g.path()
	for i := range g.IntN(3) {
		target += g.one("?", "&")
		if i == 0 {
			target = strings.Replace(target, "&", "?", 1)
		}
		target += g.one("a", "A", "b+c", "b%20c", "%61") + g.one("=1", "=2", "=a+b", "=a%20b", "=%31", "=1,2", "=", "")
	}
	r := head(g.one("GET", "POST", "PUT") + " " + g.host() + g.one("", ":80", ".") + " " + target)
	for range g.IntN(4) {
		r.Fields = append(r.Fields, message.Field{Name: []byte(g.one("x-a", "X-A", "x-b", "other")), Value: []byte(g.one("1", "2", "a b", "1,2", ""))})
	}
	return r
}

// The index finds the same as trying everything.
func TestFindEqualsNaive(t *testing.T) {
	const rounds = 4000
	matched := 0
	for seed := range uint64(rounds) {
		g := generator{rand.New(rand.NewPCG(seed, 1))}
		routes := g.routes()
		table := Compile(routes)
		for range 5 {
			r := g.request()
			got, want := table.Find(r).Rule, naive(routes, r)
			if want != nil {
				matched++
			}
			if got != want {
				t.Fatalf("seed %d: %s %s %s %q: found %+v, want %+v among %+v", seed, r.Method, r.Authority, r.Target, texts(r.Fields), got, want, routes)
			}
		}
	}
	if share := float64(matched) / float64(5*rounds); share < 0.2 || share > 0.9 {
		t.Errorf("%.2f of the requests matched: the test shows little", share)
	}
}

// FuzzFind holds the index to the naive matcher for whatever a stranger asks, and
// the paths of rewrites to being paths.
func FuzzFind(f *testing.F) {
	f.Add(uint64(1), "a.com", "/a/b?a=1", "x-a", "1")
	f.Add(uint64(7), "b.a.com:80", "/a/../b/%61?b+c=a%20b&a=", "x-b", "1,2")
	f.Add(uint64(9), "[::1]:80", "//a//?&&a", "X-A", "")
	f.Add(uint64(3), ".a.com", "/%2e%2e/\\a", "x-a", "a b")
	f.Add(uint64(4), ":", "/", "", "")
	f.Fuzz(func(t *testing.T, seed uint64, authority, target, name, value string) {
		g := generator{rand.New(rand.NewPCG(seed, 1))}
		routes := g.routes()
		for i := range routes {
			for j := range routes[i].Rules {
				routes[i].Rules[j].Rewrite = &Rewrite{Path: &PathModifier{Prefix: true, Replacement: "/x"}}
			}
		}
		r := &message.Request{Method: []byte("GET"), Authority: []byte(authority), Target: normal(target),
			Fields: []message.Field{{Name: []byte(name), Value: []byte(value)}, {Name: []byte("x-a"), Value: []byte("1")}}}
		found := Compile(routes).Find(r)
		if found.Rule != nil {
			kept := bytes.Clone(r.Target)
			c := *r
			found.Rewrite(&c)
			if !bytes.HasPrefix(c.Target, []byte("/")) || !bytes.Equal(r.Target, kept) {
				t.Errorf("%q is rewritten to %q", r.Target, c.Target)
			}
		}
		_, rawQuery, _ := strings.Cut(string(r.Target), "?")
		for _, one := range strings.Split(rawQuery, "&") { // those the reference cannot decode
			if _, err := url.QueryUnescape(one); err != nil {
				return
			}
		}
		if !strings.HasPrefix(string(r.Target), "/") || len(authority) > 200 || !message.ValidAuthority(r.Authority) {
			return // a request that is refused before
		}
		for i := range len(name) { // ASCII folds, and nothing else
			if name[i] >= 0x80 {
				return
			}
		}
		for i := range len(authority) {
			if authority[i] >= 0x80 {
				return
			}
		}
		if want := naive(routes, r); found.Rule != want {
			t.Errorf("%q %q %q: found %+v, want %+v", authority, r.Target, name, found.Rule, want)
		}
	})
}
