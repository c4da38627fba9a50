package file

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/route"
)

// twoPools is the beginning of a file with routes.
const twoPools = "pools: [{name: a, endpoints: [http://10.0.0.1:8000]}, {name: b, endpoints: [http://10.0.0.2:8000]}]\n"

func TestEverySettingOfARouteIsRead(t *testing.T) {
	got := parse(t, twoPools+`
models: [{name: m, pool: a}, {name: m, pool: b}]
routes:
  - name: chat
    hostnames: [llm.example.com, "*.example.org"]
    matches:
      - path: {type: Exact, value: /v1/chat/completions}
        method: POST
        headers: [{name: x-tenant, value: a}, {type: RegularExpression, name: X-Team, value: "t[0-9]"}]
        queryParams: [{name: version, value: "2"}]
      - path: {value: /v2}
      - path: {}
      - headers: [{name: a, value: b}]
    filters:
      - type: RequestHeaderModifier
        requestHeaderModifier: {set: [{name: x-a, value: b}], add: [{name: x-c, value: d}], remove: [X-E]}
      - type: ResponseHeaderModifier
        responseHeaderModifier: {remove: [server]}
      - type: URLRewrite
        urlRewrite: {hostname: in.example, path: {type: ReplaceFullPath, replaceFullPath: /x}}
      - type: RequestMirror
        requestMirror: {backendRef: {name: b}}
      - type: RequestMirror
        requestMirror: {backendRef: {name: a}, percent: 5}
      - type: RequestMirror
        requestMirror: {backendRef: {name: a}, fraction: {numerator: 1, denominator: 1000}}
    backendRefs:
      - {name: a, weight: 90}
      - name: b
        filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: x-pool, value: b}]}}]
    timeouts: {request: 10s, backendRequest: 0}
    retry: {codes: [500, 503], attempts: 3, backoff: 100ms}
  - matches: [{path: {type: PathPrefix, value: /old}}]
    filters:
      - type: RequestRedirect
        requestRedirect: {scheme: https, hostname: new.example, port: 8443, statusCode: 301, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}
  - backendRefs: [{name: a}]
    retry: {}
`).World.Routes
	fields := func(texts ...string) (all []message.Field) {
		for _, t := range texts {
			name, value, _ := strings.Cut(t, ": ")
			all = append(all, message.Field{Name: []byte(name), Value: []byte(value)})
		}
		return all
	}
	request, backend := 10*time.Second, time.Duration(0)
	want := []route.Route{
		{Name: "chat", Hostnames: []string{"llm.example.com", "*.example.org"}, Rules: []route.Rule{{
			Matches: []route.Match{
				{Path: route.PathMatch{Type: route.Exact, Value: "/v1/chat/completions"}, Method: "POST",
					Headers: []route.ValueMatch{{Type: route.Exact, Name: "x-tenant", Value: "a"}, {Type: route.RegularExpression, Name: "X-Team", Value: "t[0-9]"}},
					Query:   []route.ValueMatch{{Type: route.Exact, Name: "version", Value: "2"}}},
				{Path: route.PathMatch{Type: route.PathPrefix, Value: "/v2"}},
				{Path: route.PathMatch{Type: route.PathPrefix, Value: "/"}},
				{Headers: []route.ValueMatch{{Type: route.Exact, Name: "a", Value: "b"}}},
			},
			Filters: route.Filters{
				RequestHeaders:  &route.HeaderModifier{Set: fields("x-a: b"), Add: fields("x-c: d"), Remove: []string{"x-e"}},
				ResponseHeaders: &route.HeaderModifier{Remove: []string{"server"}},
				Rewrite:         &route.Rewrite{Hostname: "in.example", Path: &route.PathModifier{Replacement: "/x"}},
				Mirrors:         []route.Mirror{{Pool: "b"}, {Pool: "a", Numerator: 5, Denominator: 100}, {Pool: "a", Numerator: 1, Denominator: 1000}},
			},
			Backends: []route.Backend{{Pool: "a", Weight: 90}, {Pool: "b", Weight: 1, RequestHeaders: &route.HeaderModifier{Add: fields("x-pool: b")}}},
			Timeouts: route.Timeouts{Request: &request, BackendRequest: &backend},
			Retry:    &route.Retry{Codes: []int{500, 503}, Attempts: 3, Backoff: 100 * time.Millisecond},
		}}},
		{Name: "routes[1]", Rules: []route.Rule{{
			Matches: []route.Match{{Path: route.PathMatch{Type: route.PathPrefix, Value: "/old"}}},
			Filters: route.Filters{Redirect: &route.Redirect{Scheme: "https", Hostname: "new.example", Port: 8443, Status: 301,
				Path: &route.PathModifier{Prefix: true, Replacement: "/new"}}},
		}}},
		{Name: "routes[2]", Rules: []route.Rule{{Backends: []route.Backend{{Pool: "a", Weight: 1}}, Retry: &route.Retry{Attempts: 1}}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// Each file is twoPools and one route; its errors are told exactly.
func TestErrorsOfRoutes(t *testing.T) {
	const to = "backendRefs: [{name: a}]"
	for _, test := range []struct{ name, route, want string }{
		{"nothing", "{}", `f:3: routes[0].backendRefs: missing: want at least one pool (a, b), or a RequestRedirect`},
		{"rules", "{rules: []}", `f:3: routes[0].rules: unknown key (keys: backendRefs, filters, hostnames, matches, name, retry, timeouts)` + "\n" +
			`f:3: routes[0].backendRefs: missing: want at least one pool (a, b), or a RequestRedirect`},
		{"hostname", "{hostnames: ['a:80'], " + to + "}",
			`f:3: routes[0].hostnames[0]: "a:80" is no hostname: want a DNS name such as llm.example.com, or *.example.com for all below it, without a port`},
		{"pool", "{backendRefs: [{name: aa}]}", `f:3: routes[0].backendRefs[0].name: no pool is named "aa": did you mean "a"? (pools: a, b)`},
		{"no pool", "{backendRefs: [{weight: 1}]}", `f:3: routes[0].backendRefs[0].name: missing: want the name of a pool (a, b)`},
		{"path", "{matches: [{path: {value: v1}}], " + to + "}", `f:3: routes[0].matches[0].path.value: "v1": want a path that begins with /`},
		{"path type", "{matches: [{path: {type: Prefix, value: /v1}}], " + to + "}",
			`f:3: routes[0].matches[0].path.type: "Prefix": want Exact, PathPrefix or RegularExpression`},
		{"expression", "{matches: [{path: {type: RegularExpression, value: '('}}], " + to + "}",
			"f:3: routes[0].matches[0].path.value: \"(\" is no regular expression (RE2): missing closing ): `(`"},
		{"filter type", "{filters: [{type: URLRewrit}], " + to + "}",
			`f:3: routes[0].filters[0].type: "URLRewrit": did you mean "URLRewrite"?: want RequestHeaderModifier, RequestMirror, RequestRedirect, ResponseHeaderModifier or URLRewrite`},
		{"no filter type", "{filters: [{urlRewrite: {}}], " + to + "}",
			`f:3: routes[0].filters[0].type: missing: want RequestHeaderModifier, RequestMirror, RequestRedirect, ResponseHeaderModifier or URLRewrite`},
		{"settings of another filter", "{filters: [{type: URLRewrite, requestRedirect: {}}], " + to + "}",
			`f:3: routes[0].filters[0]: a URLRewrite has its settings in urlRewrite: want that, and no settings of another filter`},
		{"twice", "{filters: [{type: URLRewrite, urlRewrite: {}}, {type: URLRewrite, urlRewrite: {}}], " + to + "}",
			`f:3: routes[0].filters[1].urlRewrite: a second filter of this type: want it once`},
		{"path modifier", "{filters: [{type: URLRewrite, urlRewrite: {path: {replaceFullPath: /a}}}], " + to + "}",
			`f:3: routes[0].filters[0].urlRewrite.path.type: "": want ReplaceFullPath or ReplacePrefixMatch`},
		{"percent and fraction", "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: b}, percent: 1, fraction: {numerator: 1}}}], " + to + "}",
			`f:3: routes[0].filters[0].requestMirror: percent and fraction exclude one another`},
		{"a backend's filter", "{backendRefs: [{name: a, filters: [{type: URLRewrite, urlRewrite: {}}]}]}",
			`f:3: routes[0].backendRefs[0].filters: a backend's own filters are RequestHeaderModifier and ResponseHeaderModifier only: put others into the filters of the route`},
		{"mirror", "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: c}}}], " + to + "}", `f:3: routes[0].filters: no pool is named "c": did you mean "a"? (pools: a, b)`},
		{"weight", "{backendRefs: [{name: a, weight: 1000001}]}", `f:3: routes[0].backendRefs[0].weight: "1000001": want a whole number from 0 to 1000000`},
		{"codes", "{retry: {codes: [200]}, " + to + "}", `f:3: routes[0].retry.codes[0]: 200: want a status from 400 to 599`},
		{"redirect and backend", "{filters: [{type: RequestRedirect, requestRedirect: {}}], " + to + "}",
			`f:3: routes[0].filters: RequestRedirect answers every request: want no backendRefs beside it`},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := Parse("f", []byte(twoPools+"routes:\n- "+test.route))
			if err == nil {
				t.Fatalf("accepted as %+v", c.World.Routes)
			}
			if got := err.Error(); got != test.want {
				t.Errorf("\ngot  %s\nwant %s", got, test.want)
			}
		})
	}
}

// A port of a Service has routes like those of the plain listener.
func TestRoutesOfAServicePort(t *testing.T) {
	const services = twoPools + `
listen: {http: ":8080", sandwich: "127.0.0.1:1"}
models: [{name: m, pool: a}]
services: [{host: llm.default.svc.cluster.local, vip: 10.96.0.7, ports: [{port: 80, protocol: %PROTOCOL%, routes: [{backendRefs: [{name: %POOL%}]}]}]}]
`
	file := func(protocol, pool string) string {
		return strings.NewReplacer("%PROTOCOL%", protocol, "%POOL%", pool).Replace(services)
	}
	got := parse(t, file("http", "b")).World.Services[0].Ports[0].Routes
	want := []route.Route{{Name: "services[0].ports[0].routes[0]", Rules: []route.Rule{{Backends: []route.Backend{{Pool: "b", Weight: 1}}}}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	for says, text := range map[string]string{
		`f:5: services[0].ports[0].routes[0].backendRefs[0].name: no pool is named "c": did you mean "a"? (pools: a, b)`: file("http", "c"),
		`f:5: services[0].ports[0].routes: what is passed on unread has no routes: want protocol http`:                   file("tcp", "a"),
	} {
		if _, err := Parse("f", []byte(text)); err == nil || err.Error() != says {
			t.Errorf("\ngot  %v\nwant %s", err, says)
		}
	}
}
