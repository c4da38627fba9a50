package route

import (
	"strings"
	"testing"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// head makes a request's head of "METHOD authority target" and "name: value"
// lines.
func head(line string, fields ...string) *message.Request {
	method, rest, _ := strings.Cut(line, " ")
	authority, target, _ := strings.Cut(rest, " ")
	r := &message.Request{Method: []byte(method), Authority: []byte(authority), Target: normal(target)}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		r.Fields = append(r.Fields, message.Field{Name: []byte(name), Value: []byte(value)})
	}
	return r
}

// to is a rule that sends what it matches to one pool.
func to(pool string, matches ...Match) Rule {
	return Rule{Matches: matches, Backends: []Backend{{Pool: pool, Weight: 1}}}
}

func prefix(p string) Match  { return Match{Path: PathMatch{PathPrefix, p}} }
func exact(p string) Match   { return Match{Path: PathMatch{Exact, p}} }
func pattern(p string) Match { return Match{Path: PathMatch{RegularExpression, p}} }
func method(m string) Match  { return Match{Method: m} }

// headers makes a Match of "name: value" texts.
func headers(texts ...string) (m Match) {
	for _, t := range texts {
		name, value, _ := strings.Cut(t, ": ")
		m.Headers = append(m.Headers, ValueMatch{Name: name, Value: value})
	}
	return m
}

// query makes a Match of "name=value" texts.
func query(texts ...string) (m Match) {
	for _, t := range texts {
		name, value, _ := strings.Cut(t, "=")
		m.Query = append(m.Query, ValueMatch{Name: name, Value: value})
	}
	return m
}

// and is both in one.
func and(a, b Match) Match {
	if b.Path != (PathMatch{}) {
		a.Path = b.Path
	}
	if b.Method != "" {
		a.Method = b.Method
	}
	a.Headers = append(a.Headers, b.Headers...)
	a.Query = append(a.Query, b.Query...)
	return a
}

// ask is a request and the pool it goes to; empty for none (404).
type ask struct {
	line   string
	fields []string
	pool   string
}

func with(line, pool string, fields ...string) ask { return ask{line, fields, pool} }

// The HTTPRoute cases of the Gateway API's conformance suite that are about which
// rule serves a request (sigs.k8s.io/gateway-api, conformance/tests), each by its
// name there, and the examples of its reference documentation.
func TestConformance(t *testing.T) {
	for _, test := range []struct {
		name   string
		routes []Route
		asks   []ask
	}{
		{"HTTPRouteSimpleSameNamespace", []Route{{Rules: []Rule{to("v1")}}}, []ask{
			with("GET any.example /", "v1"),
			with("POST 192.0.2.1:8080 /x/y?z", "v1"),
			with("GET  /", "v1"),
		}},
		{"HTTPExactPathMatching", []Route{{Rules: []Rule{to("v1", exact("/one")), to("v2", exact("/two"))}}}, []ask{
			with("GET h /one", "v1"), with("GET h /two", "v2"),
			with("GET h /", ""), with("GET h /one/example", ""), with("GET h /two/", ""), with("GET h /Two", ""),
			with("GET h /one?x=y", "v1"), with("GET h /one/", ""), with("GET h /onetwo", ""),
		}},
		{"HTTPRouteMatching", []Route{{Rules: []Rule{
			to("v1", prefix("/"), headers("version: one")),
			to("v2", prefix("/v2"), headers("version: two")),
		}}}, []ask{
			with("GET h /", "v1"), with("GET h /example", "v1"), with("GET h /", "v1", "Version: one"),
			with("GET h /v2", "v2"), with("GET h /v2/example", "v2"), with("GET h /", "v2", "Version: two"),
			with("GET h /v2/", "v2"), with("GET h /v2example", "v1"), with("GET h /foo/v2/example", "v1"),
		}},
		{"HTTPRouteMatchingAcrossRoutes", []Route{
			{Hostnames: []string{"example.com", "example.net"}, Rules: []Rule{to("v1", prefix("/"), headers("version: one"))}},
			{Hostnames: []string{"example.com"}, Rules: []Rule{to("v2", prefix("/v2"), headers("version: two"))}},
		}, []ask{
			with("GET example.com /", "v1"), with("GET example.com /example", "v1"), with("GET example.net /example", "v1"),
			with("GET example.com /example", "v1", "Version: one"), with("GET example.com /v2", "v2"), with("GET example.net /v2", "v1"),
			with("GET example.com /v2/example", "v2"), with("GET example.com /", "v2", "Version: two"),
		}},
		{"HTTPRoutePathMatchOrder", []Route{{Rules: []Rule{
			to("v1", exact("/match")), to("v2", exact("/match/exact")), to("v3", exact("/match/exact/one")),
			to("v3", prefix("/match/")), to("v1", prefix("/match/prefix/")), to("v2", prefix("/match/prefix/one")),
		}}}, []ask{
			with("GET h /match/exact/one", "v3"), with("GET h /match/exact", "v2"), with("GET h /match", "v1"),
			with("GET h /match/prefix/one/any", "v2"), with("GET h /match/prefix/any", "v1"), with("GET h /match/any", "v3"),
		}},
		{"HTTPRouteHeaderMatching", []Route{{Rules: []Rule{
			to("v1", headers("version: one")), to("v2", headers("version: two")),
			to("v1", headers("version: two", "color: orange")),
			to("v1", headers("color: blue"), headers("color: green")),
			to("v2", headers("color: red"), headers("color: yellow")),
		}}}, []ask{
			with("GET h /", "v1", "Version: one"), with("GET h /", "v2", "Version: two"),
			with("GET h /", "v1", "Version: two", "Color: orange"), with("GET h /", "v2", "Version: two", "Color: blue"),
			with("GET h /", "", "Color: orange"), with("GET h /", "", "Some-Other-Header: one"),
			with("GET h /", "v1", "Color: blue"), with("GET h /", "v1", "Color: green"),
			with("GET h /", "v2", "Color: red"), with("GET h /", "v2", "Color: yellow"), with("GET h /", "", "Color: purple"),
		}},
		{"HTTPRouteQueryParamMatching", []Route{{Rules: []Rule{
			to("v1", query("animal=whale")), to("v2", query("animal=dolphin")),
			to("v3", query("animal=dolphin", "color=blue"), query("ANIMAL=Whale")),
			to("v1", and(prefix("/path1"), query("animal=whale"))),
			to("v2", and(headers("version: one"), query("animal=whale"))),
			to("v3", and(and(prefix("/path2"), headers("version: two")), query("animal=whale"))),
			to("v1", and(prefix("/path3"), query("animal=shark")), and(and(prefix("/path4"), headers("version: three")), query("animal=kraken"))),
			to("v1", prefix("/path5")), to("v2", query("animal=hydra")), to("v3", headers("version: four")),
		}}}, []ask{
			with("GET h /?animal=whale", "v1"), with("GET h /?animal=dolphin", "v2"), with("GET h /?animal=dolphin&color=blue", "v3"),
			with("GET h /?color=blue&animal=dolphin", "v3"),
			with("GET h /?ANIMAL=Whale", "v3"), with("GET h /?animal=whale&otherparam=irrelevant", "v1"),
			with("GET h /?animal=dolphin&color=yellow", "v2"), with("GET h /?color=blue", ""), with("GET h /?animal=dog", ""),
			with("GET h /?animal=whaledolphin", ""), with("GET h /", ""),
			with("GET h /path1?animal=whale", "v1"), with("GET h /?animal=whale", "v2", "version: one"),
			with("GET h /path2?animal=whale", "v3", "version: two"),
			with("GET h /path3?animal=shark", "v1"), with("GET h /path4?animal=kraken", "v1", "version: three"),
			with("GET h /?animal=shark", ""), with("GET h /path4?animal=kraken", ""),
			with("GET h /path5?animal=hydra", "v1"), with("GET h /?animal=hydra", "v3", "version: four"),
		}},
		{"HTTPRouteMethodMatching", []Route{{Rules: []Rule{
			to("v1", method("POST")), to("v2", method("GET")),
			to("v1", and(prefix("/path1"), method("GET"))),
			to("v2", and(headers("version: one"), method("PUT"))),
			to("v3", and(and(prefix("/path2"), headers("version: two")), method("POST"))),
			to("v1", and(prefix("/path3"), method("PATCH")), and(and(prefix("/path4"), headers("version: three")), method("DELETE"))),
			to("v1", prefix("/path5")), to("v2", method("PATCH")), to("v3", headers("version: four")),
		}}}, []ask{
			with("POST h /", "v1"), with("GET h /", "v2"), with("HEAD h /", ""), with("get h /", ""),
			with("GET h /path1", "v1"), with("PUT h /", "v2", "version: one"), with("POST h /path2", "v3", "version: two"),
			with("PATCH h /path3", "v1"), with("DELETE h /path4", "v1", "version: three"),
			with("PUT h /", ""), with("PUT h /path3", ""), with("DELETE h /path4", ""),
			with("PATCH h /path5", "v1"), with("PATCH h /", "v2", "version: four"),
		}},
		{"HTTPRouteHostnameIntersection", []Route{
			{Hostnames: []string{"non.matching.com", "*.nonmatchingwildcard.io", "very.specific.com"}, Rules: []Rule{to("v1", prefix("/s1"))}},
			{Hostnames: []string{"foo.wildcard.io", "bar.wildcard.io", "foo.bar.wildcard.io"}, Rules: []Rule{to("v2", prefix("/s2"))}},
			{Hostnames: []string{"*.anotherwildcard.io"}, Rules: []Rule{to("v1", prefix("/s4"))}},
		}, []ask{
			with("GET very.specific.com /s1", "v1"), with("GET very.specific.com:1234 /s1", "v1"), with("GET foo.wildcard.io /s1", ""),
			with("GET VERY.Specific.com /s1", "v1"), with("GET very.specific.com. /s1", "v1"),
			with("GET very.specific.com /non-matching-prefix", ""),
			with("GET foo.wildcard.io /s2", "v2"), with("GET foo.bar.wildcard.io /s2", "v2"), with("GET wildcard.io /s2", ""),
			with("GET very.specific.com /s2", ""), with("GET foo.wildcard.io /non-matching-prefix", ""),
			with("GET foo.anotherwildcard.io /s4", "v1"), with("GET foo.bar.anotherwildcard.io /s4", "v1"),
			with("GET anotherwildcard.io /s4", ""), with("GET .anotherwildcard.io /s4", ""), with("GET fooanotherwildcard.io /s4", ""),
		}},
		{"HTTPRouteListenerHostnameMatching", []Route{
			{Hostnames: []string{"bar.com"}, Rules: []Rule{to("v1")}},
			{Hostnames: []string{"*.bar.com"}, Rules: []Rule{to("v2")}},
			{Hostnames: []string{"*.foo.com"}, Rules: []Rule{to("v3")}},
		}, []ask{
			with("GET bar.com /", "v1"), with("GET foo.bar.com /", "v2"), with("GET baz.bar.com /", "v2"), with("GET boo.bar.com /", "v2"),
			with("GET multiple.prefixes.bar.com /", "v2"), with("GET multiple.prefixes.foo.com /", "v3"), with("GET foo.com /", ""), with("GET no.matching.host /", ""),
		}},
		{"HTTPRouteSpec.hostnames: exact before wildcard, longest wildcard first, then none", []Route{
			{Rules: []Rule{to("any")}},
			{Hostnames: []string{"*.com"}, Rules: []Rule{to("com")}},
			{Hostnames: []string{"*.example.com"}, Rules: []Rule{to("wildcard")}},
			{Hostnames: []string{"foo.example.com"}, Rules: []Rule{to("exact", prefix("/only"))}},
			{Hostnames: []string{"[2001:db8::1]"}, Rules: []Rule{to("never")}},
		}, []ask{
			with("GET foo.example.com /only", "exact"), with("GET foo.example.com /else", "wildcard"), with("GET bar.example.com /", "wildcard"),
			with("GET example.com /", "com"), with("GET com /", "any"), with("GET other.org /", "any"), with("GET [2001:db8::1]:80 /", "never"),
			with("GET "+strings.Repeat("x.", 200)+"example.com /", "any"),
		}},
		{"HTTPRouteRule.matches: path goes before header, method before both header and query", []Route{{Rules: []Rule{
			to("query", query("a=1", "b=2", "c=3")), to("header", headers("a: 1")), to("headers", headers("a: 1", "b: 2")),
			to("method", method("GET")), to("long", prefix("/long")), to("longer", prefix("/long/er")), to("exact", exact("/long/er")),
		}}}, []ask{
			with("POST h /?a=1&b=2&c=3", "query"), with("POST h /?a=1&b=2&c=3", "header", "a: 1"), with("POST h /", "headers", "a: 1", "b: 2"),
			with("GET h /?a=1&b=2&c=3", "method", "a: 1", "b: 2"), with("GET h /long/x?a=1&b=2&c=3", "long", "a: 1"),
			with("GET h /long/er/x", "longer", "a: 1"), with("GET h /long/er", "exact", "a: 1"), with("GET h /long/er/", "longer"),
		}},
		{"HTTPRouteRule.matches: ties go to the older route, then the first rule", []Route{
			{Rules: []Rule{to("old", prefix("/a")), to("old2", prefix("/a"))}}, {Rules: []Rule{to("young", prefix("/a")), to("other", prefix("/b"))}},
		}, []ask{with("GET h /a", "old"), with("GET h /b", "other")}},
		{"HTTPPathMatch: PathPrefix by element, a trailing slash ignored", []Route{{Rules: []Rule{to("abc", prefix("/abc/")), to("de", prefix("/d/e"))}}}, []ask{
			with("GET h /abc", "abc"), with("GET h /abc/", "abc"), with("GET h /abc/def", "abc"), with("GET h /abcd", ""), with("GET h /ab", ""),
			with("GET h /abc?x", "abc"), with("GET h /d/e", "de"), with("GET h /d", ""), with("GET h //abc", ""), with("OPTIONS h *", ""),
		}},
		{"HTTPPathMatch: RegularExpression, whole, between Exact and PathPrefix", []Route{{Rules: []Rule{
			to("all"), to("short", pattern("/v[0-9]+/.*")), to("long", pattern("/v[0-9]+/chat/.*")), to("exact", exact("/v1/chat/x")), to("p", prefix("/v1/chat")),
			to("bad", pattern("/(")), to("trick", pattern("/a|/b")),
		}}}, []ask{
			with("GET h /v1/models", "short"), with("GET h /v1/chat/completions", "long"), with("GET h /v1/chat/x", "exact"), with("GET h /v1/chat", "short"),
			with("GET h /x/v1/models", "all"), with("GET h /a", "trick"), with("GET h /b", "trick"), with("GET h /ab", "all"), with("GET h /bx", "all"),
		}},
		{"HTTPHeaderMatch: RegularExpression, repeated fields, repeated names", []Route{{Rules: []Rule{
			to("re", Match{Headers: []ValueMatch{{RegularExpression, "X-Tenant", "t-[0-9]+"}}}),
			to("both", headers("x-list: a,b")),
			to("first", headers("x-a: 1", "X-A: 2")),
			to("empty", Match{Headers: []ValueMatch{{RegularExpression, "x-may-be-empty", ".*"}}}),
		}}}, []ask{
			with("GET h /", "re", "x-tenant: t-42"), with("GET h /", "", "x-tenant: xt-42"), with("GET h /", "", "x-tenant: t-4", "x-tenant: t-5"),
			with("GET h /", "both", "X-List: a", "x-list: b"), with("GET h /", "", "X-List: b", "x-list: a"), with("GET h /", "both", "X-List: a,b"),
			with("GET h /", "first", "x-a: 1"), with("GET h /", "", "x-a: 2"), with("GET h /", "empty", "x-may-be-empty: "),
		}},
		{"HTTPQueryParamMatch: decoded, the first of many", []Route{{Rules: []Rule{
			to("space", query("q=a b")), to("re", Match{Query: []ValueMatch{{RegularExpression, "id", "[0-9]{3}"}}}), to("flag", query("flag=")),
		}}}, []ask{
			with("GET h /?q=a%20b", "space"), with("GET h /?q=a+b", "space"), with("GET h /?%71=a%20b", "space"), with("GET h /?q=a&q=a+b", ""),
			with("GET h /?id=123", "re"), with("GET h /?id=1234", ""), with("GET h /?id=%31%32%33", "re"), with("GET h /?flag", "flag"), with("GET h /?flag=", "flag"),
			with("GET h /?q=a%2", ""), with("GET h /?&&q=a+b&", "space"),
		}},
		{"a path has one spelling", []Route{{Rules: []Rule{to("admin", prefix("/admin")), to("tilde", exact("/%7Ejoe/a%2fb")), to("rest", prefix("/"))}}}, []ask{
			with("GET h /./admin", "admin"), with("GET h /x/../admin/y", "admin"), with("GET h /%61dmin", "admin"), with("GET h /x/%2e%2E/admin", "admin"),
			with("GET h /..\\admin", "admin"), with("GET h /admin/../x", "rest"), with("GET h /~joe/a%2Fb", "tilde"), with("GET h /%7ejoe/a%2fb", "tilde"),
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			table := Compile(test.routes)
			for _, a := range test.asks {
				got := ""
				if f := table.Find(head(a.line, a.fields...)); f.Rule != nil {
					got = f.Rule.Backends[0].Pool
				}
				if got != a.pool {
					t.Errorf("%s %q goes to %q, want %q", a.line, a.fields, got, a.pool)
				}
			}
		})
	}
}
