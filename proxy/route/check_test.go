package route

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestCheck(t *testing.T) {
	second, minute := time.Second, time.Minute
	less := -time.Second
	for _, test := range []struct {
		name string
		rule Rule
		want string // where and what of each problem; empty: it is good
	}{
		{"nothing", Rule{}, ""},
		{"everything", Rule{
			Matches: []Match{and(and(and(prefix("/v1"), method("GET")), headers("x-a: b")), query("a=b")), {}},
			Filters: Filters{
				RequestHeaders:  &HeaderModifier{Set: fields("a: b"), Add: fields("a: c\td"), Remove: []string{"x"}},
				ResponseHeaders: &HeaderModifier{Set: fields("a: ")},
				Rewrite:         &Rewrite{Hostname: "a.example", Path: &PathModifier{Prefix: true}},
				Mirrors:         []Mirror{{Pool: "a"}, {Pool: "b", Numerator: 1, Denominator: 3}},
			},
			Backends: []Backend{{Pool: "a", Weight: 0}, {Pool: "b", Weight: 1_000_000}},
			Timeouts: Timeouts{Request: &minute, BackendRequest: &second},
			Retry:    &Retry{Codes: []int{400, 599}, Attempts: 3, Backoff: second},
		}, ""},
		{"no slash", Rule{Matches: []Match{prefix("v1")}}, `matches[0].path.value: "v1": want a path that begins with /`},
		{"two slashes", Rule{Matches: []Match{{}, exact("/a//b")}}, "matches[1].path.value"},
		{"a dot segment", Rule{Matches: []Match{exact("/a/../b")}}, "matches[0].path.value"},
		{"ends in dots", Rule{Matches: []Match{exact("/a/..")}}, "matches[0].path.value"},
		{"an encoded slash", Rule{Matches: []Match{exact("/a%2Fb")}}, "matches[0].path.value"},
		{"a query", Rule{Matches: []Match{exact("/a?b")}}, "matches[0].path.value"},
		{"no path", Rule{Matches: []Match{{Path: PathMatch{Type: Exact}}}}, "matches[0].path.value"},
		{"a long path", Rule{Matches: []Match{exact("/" + strings.Repeat("a", 1024))}}, "matches[0].path.value: 1025 bytes"},
		{"no such type", Rule{Matches: []Match{{Path: PathMatch{"Glob", "/*"}}}}, `matches[0].path.type: "Glob"`},
		{"no expression", Rule{Matches: []Match{pattern("/(")}}, "matches[0].path.value: \"/(\" is no regular expression (RE2): missing closing )"},
		{"an expression that closes ours", Rule{Matches: []Match{pattern("a)|(b")}}, "matches[0].path.value"},
		{"no such method", Rule{Matches: []Match{method("get")}}, `matches[0].method: "get": want one of GET`},
		{"a field's name", Rule{Matches: []Match{headers("a b: c")}}, "matches[0].headers[0].name"},
		{"no value", Rule{Matches: []Match{query("a=")}}, "matches[0].queryParams[0].value"},
		{"a prefix of a value", Rule{Matches: []Match{{Headers: []ValueMatch{{PathPrefix, "a", "b"}}}}}, "matches[0].headers[0].type"},
		{"a value's expression", Rule{Matches: []Match{{Query: []ValueMatch{{RegularExpression, "a", "*"}}}}}, "matches[0].queryParams[0].value"},
		{"a framing field", Rule{Filters: Filters{RequestHeaders: &HeaderModifier{Set: fields("Content-Length: 5")}}}, "filters: set Content-Length"},
		{"removes the host", Rule{Filters: Filters{ResponseHeaders: &HeaderModifier{Remove: []string{"Host"}}}}, "filters: remove Host"},
		{"a line break", Rule{Filters: Filters{ResponseHeaders: &HeaderModifier{Add: fields("a: b\r\nc: d")}}}, "filters: add a"},
		{"a backend's field", Rule{Backends: []Backend{{Pool: "a"}, {Pool: "b", RequestHeaders: &HeaderModifier{Add: fields("te: x")}}}}, "backendRefs[1].filters"},
		{"redirect and rewrite", Rule{Filters: Filters{Redirect: &Redirect{}, Rewrite: &Rewrite{}}}, "filters: RequestRedirect and URLRewrite"},
		{"redirect and backends", Rule{Filters: Filters{Redirect: &Redirect{}}, Backends: []Backend{{Pool: "a"}}}, "filters: RequestRedirect answers"},
		{"a redirect", Rule{Filters: Filters{Redirect: &Redirect{Scheme: "ftp", Port: 70000, Status: 305, Hostname: "*.a"}}},
			"filters: requestRedirect.scheme; filters: requestRedirect.port; filters: requestRedirect.statusCode; filters: requestRedirect.hostname"},
		{"an address and a port", Rule{Filters: Filters{Rewrite: &Rewrite{Hostname: "a.example:80"}}}, "filters: urlRewrite.hostname"},
		{"a prefix of an exact path", Rule{Matches: []Match{exact("/a")}, Filters: Filters{Rewrite: &Rewrite{Path: &PathModifier{Prefix: true, Replacement: "/b"}}}},
			"filters: urlRewrite.path.replacePrefixMatch goes with PathPrefix matches only: matches[0] is Exact"},
		{"no full path", Rule{Filters: Filters{Rewrite: &Rewrite{Path: &PathModifier{}}}}, "filters: urlRewrite.path"},
		{"a fraction", Rule{Filters: Filters{Mirrors: []Mirror{{Numerator: 2, Denominator: 1}}}}, "filters: requestMirror.fraction"},
		{"a weight", Rule{Backends: []Backend{{Weight: 1}, {Weight: -1}, {Weight: 1_000_001}}}, "backendRefs[1].weight; backendRefs[2].weight"},
		{"time-outs", Rule{Timeouts: Timeouts{Request: &second, BackendRequest: &minute}}, "timeouts.backendRequest"},
		{"negative time-outs", Rule{Timeouts: Timeouts{Request: &less, BackendRequest: &less}}, "timeouts.request; timeouts.backendRequest"},
		{"a retry", Rule{Retry: &Retry{Codes: []int{500, 200}, Attempts: -1, Backoff: -1}}, "retry.codes[1]; retry.attempts; retry.backoff"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			test.rule.Check(func(path, problem string) { got = append(got, path+": "+problem) })
			want := strings.Split(test.want, "; ")
			if test.want == "" {
				want = nil
			}
			if !slices.EqualFunc(got, want, strings.HasPrefix) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}

func TestCheckHostname(t *testing.T) {
	for hostname, good := range map[string]bool{
		"a": true, "a.example": true, "*.example": true, "A.Example": true, "a-b.c1": true, "a_b.example": true, "1password.example": true,
		"": false, "*": false, "*.": false, "a.*.b": false, "a:80": false, "1.2.3.4": false, "[::1]": false, "-a": false, "a-": false, "a..b": false, "a.": false,
		"*.*.a": false, strings.Repeat("a.", 127) + "b": false, "http://a": false,
	} {
		if got := CheckHostname(hostname); (got == "") != good {
			t.Errorf("%q: %q", hostname, got)
		}
	}
}
