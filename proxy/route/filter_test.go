package route

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/normalize"
)

func fields(texts ...string) []message.Field { return head("GET h /", texts...).Fields }

func texts(fields []message.Field) []string {
	var all []string
	for _, f := range fields {
		all = append(all, string(f.Name)+": "+string(f.Value))
	}
	return all
}

// HTTPRouteRequestHeaderModifier and HTTPRouteResponseHeaderModifier of the
// conformance suite: the answers' fields go the same way.
func TestHeaderModifier(t *testing.T) {
	multiple := &HeaderModifier{
		Set:    fields("X-Header-Set-1: header-set-1", "X-Header-Set-2: header-set-2"),
		Add:    fields("X-Header-Add-1: header-add-1", "X-Header-Add-2: header-add-2"),
		Remove: []string{"x-header-remove-1", "x-header-remove-2"},
	}
	for _, test := range []struct {
		name     string
		m        *HeaderModifier
		in, want []string
	}{
		{"none", nil, []string{"A: 1"}, []string{"A: 1"}},
		{"set a new one", &HeaderModifier{Set: fields("X-Header-Set: new")}, []string{"Some-Other-Header: val"}, []string{"Some-Other-Header: val", "X-Header-Set: new"}},
		{"set overwrites", &HeaderModifier{Set: fields("X-Header-Set: new")}, []string{"X-Header-Set: old", "A: b", "x-header-set: older"}, []string{"A: b", "X-Header-Set: new"}},
		{"add a new one", &HeaderModifier{Add: fields("X-Header-Add: new")}, nil, []string{"X-Header-Add: new"}},
		{"add appends", &HeaderModifier{Add: fields("X-Header-Add: new")}, []string{"x-header-add: old"}, []string{"x-header-add: old", "X-Header-Add: new"}},
		{"remove", &HeaderModifier{Remove: []string{"x-header-remove"}}, []string{"X-Header-Remove: a", "B: c", "x-header-remove: d"}, []string{"B: c"}},
		{"multiple", multiple, []string{"X-Header-Set-2: set-val-2", "X-Header-Add-2: add-val-2", "X-Header-Remove-2: remove-val-2", "Another-Header: val"},
			[]string{"X-Header-Add-2: add-val-2", "Another-Header: val", "X-Header-Set-1: header-set-1", "X-Header-Set-2: header-set-2",
				"X-Header-Add-1: header-add-1", "X-Header-Add-2: header-add-2"}},
		{"remove goes first", &HeaderModifier{Add: fields("a: new"), Remove: []string{"a"}}, []string{"A: old"}, []string{"a: new"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := texts(test.m.Apply(fields(test.in...))); !slices.Equal(got, test.want) {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}

// find is what a request finds among these rules.
func find(t *testing.T, r *message.Request, rules ...Rule) Found {
	t.Helper()
	f := Compile([]Route{{Rules: rules}}).Find(r)
	if f.Rule == nil {
		t.Fatalf("%s matches nothing", r.Target)
	}
	return f
}

func TestRewrite(t *testing.T) {
	full := func(p string) *PathModifier { return &PathModifier{Replacement: p} }
	part := func(p string) *PathModifier { return &PathModifier{Prefix: true, Replacement: p} }
	for _, test := range []struct {
		name, line, prefix string
		rewrite            Rewrite
		authority, target  string
	}{
		// The table of HTTPPathModifier.replacePrefixMatch.
		{"1", "GET h /foo/bar", "/foo", Rewrite{Path: part("/xyz")}, "h", "/xyz/bar"},
		{"2", "GET h /foo/bar", "/foo", Rewrite{Path: part("/xyz/")}, "h", "/xyz/bar"},
		{"3", "GET h /foo/bar", "/foo/", Rewrite{Path: part("/xyz")}, "h", "/xyz/bar"},
		{"4", "GET h /foo/bar", "/foo/", Rewrite{Path: part("/xyz/")}, "h", "/xyz/bar"},
		{"5", "GET h /foo", "/foo", Rewrite{Path: part("/xyz")}, "h", "/xyz"},
		{"6", "GET h /foo/", "/foo", Rewrite{Path: part("/xyz")}, "h", "/xyz/"},
		{"7", "GET h /foo/bar", "/foo", Rewrite{Path: part("")}, "h", "/bar"},
		{"8", "GET h /foo/", "/foo", Rewrite{Path: part("")}, "h", "/"},
		{"9", "GET h /foo", "/foo", Rewrite{Path: part("")}, "h", "/"},
		{"10", "GET h /foo/", "/foo", Rewrite{Path: part("/")}, "h", "/"},
		{"11", "GET h /foo", "/foo", Rewrite{Path: part("/")}, "h", "/"},
		{"the root is a prefix", "GET h /foo", "/", Rewrite{Path: part("/xyz")}, "h", "/xyz/foo"},
		{"of the root, too", "GET h /", "/", Rewrite{Path: part("/xyz")}, "h", "/xyz/"},
		{"the query stays", "GET h /foo/bar?a=/foo&b", "/foo", Rewrite{Path: part("/xyz")}, "h", "/xyz/bar?a=/foo&b"},
		{"the query stays behind nothing", "GET h /foo?a", "/foo", Rewrite{Path: part("")}, "h", "/?a"},
		// HTTPRouteRewritePath.
		{"strip-prefix", "GET h /strip-prefix/three", "/strip-prefix", Rewrite{Path: part("/")}, "h", "/three"},
		{"full", "GET h /full/one/two?q", "/full/one", Rewrite{Path: full("/one")}, "h", "/one?q"},
		// HTTPRouteRewriteHost.
		{"host", "GET rewrite.example /one", "/one", Rewrite{Hostname: "one.example.org"}, "one.example.org", "/one"},
		{"host and path", "GET h:81 /one", "/one", Rewrite{Hostname: "two.example.org", Path: full("/x")}, "two.example.org", "/x"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := head(test.line)
			f := find(t, r, Rule{Matches: []Match{prefix(test.prefix)}, Filters: Filters{Rewrite: &test.rewrite}})
			f.Rewrite(r)
			if string(r.Authority) != test.authority || string(r.Target) != test.target {
				t.Errorf("%s becomes %s %s, want %s %s", test.line, r.Authority, r.Target, test.authority, test.target)
			}
		})
	}
	r := head("GET h /foo")
	find(t, r, to("pool")).Rewrite(r)
	if string(r.Authority) != "h" || string(r.Target) != "/foo" {
		t.Errorf("without a rewrite: %s %s", r.Authority, r.Target)
	}
}

// HTTPRouteRedirectHostAndStatus, -Path, -Port, -Scheme and -PortAndScheme.
func TestRedirect(t *testing.T) {
	part := &PathModifier{Prefix: true, Replacement: "/replacement-prefix"}
	full := &PathModifier{Replacement: "/full-path-replacement"}
	for _, test := range []struct {
		name, line, scheme string
		redirect           Redirect
		status             int
		location           string
	}{
		{"hostname", "GET h /p/hostname-redirect", "http", Redirect{Hostname: "example.org"}, 302, "http://example.org/p/hostname-redirect"},
		{"status", "GET h:80 /p", "http", Redirect{Status: 301}, 301, "http://h/p"},
		{"prefix", "GET h /p/lemon?q=1", "http", Redirect{Path: part}, 302, "http://h/replacement-prefix/lemon?q=1"},
		{"full", "GET h /p/path/original", "http", Redirect{Path: full, Status: 308}, 308, "http://h/full-path-replacement"},
		{"port", "GET h /p", "http", Redirect{Port: 8083}, 302, "http://h:8083/p"},
		{"port and host", "GET h:1 /p", "http", Redirect{Port: 8083, Hostname: "example.org", Status: 307}, 307, "http://example.org:8083/p"},
		{"the listener's port", "GET h:8080 /p", "http", Redirect{Hostname: "example.org"}, 302, "http://example.org:8080/p"},
		{"port 80", "GET h:8080 /p", "http", Redirect{Port: 80, Hostname: "example.org"}, 302, "http://example.org/p"},
		{"https", "GET h:8080 /p", "http", Redirect{Scheme: "https", Status: 303}, 303, "https://h/p"},
		{"https, port 443", "GET h:8080 /p", "http", Redirect{Scheme: "https", Port: 443}, 302, "https://h/p"},
		{"https, port 8443", "GET h /p", "http", Redirect{Scheme: "https", Port: 8443}, 302, "https://h:8443/p"},
		{"https listener", "GET h:443 /p", "https", Redirect{Hostname: "example.org"}, 302, "https://example.org/p"},
		{"https listener, http", "GET h:443 /p", "https", Redirect{Scheme: "http"}, 302, "http://h/p"},
		{"https listener, port 80", "GET h /p", "https", Redirect{Port: 80}, 302, "https://h:80/p"},
		{"IPv6", "GET [2001:db8::1]:8080 /p", "http", Redirect{}, 302, "http://[2001:db8::1]:8080/p"},
		{"IPv6 without a port", "GET [2001:db8::1] /p", "http", Redirect{Port: 81}, 302, "http://[2001:db8::1]:81/p"},
		{"no host", "GET  /p", "http", Redirect{Path: &PathModifier{Prefix: true}}, 302, "http:///"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := head(test.line)
			f := find(t, r, Rule{Matches: []Match{prefix("/p")}, Filters: Filters{Redirect: &test.redirect}})
			if got := string(f.Location(r, test.scheme)); got != test.location || f.Redirect.StatusCode() != test.status {
				t.Errorf("%d %s, want %d %s", f.Redirect.StatusCode(), got, test.status, test.location)
			}
		})
	}
}

// HTTPRouteWeight: 70, 30 and 0, and what is said of backends that are not valid.
func TestBackend(t *testing.T) {
	share := func(weights ...int) []int {
		r := Rule{}
		for _, w := range weights {
			r.Backends = append(r.Backends, Backend{Weight: w})
		}
		got := make([]int, len(weights)+1) // the last: none
		random := rand.New(rand.NewPCG(1, 2))
		for range 10000 {
			b := r.Backend(random.Uint64())
			i := len(weights)
			for j := range r.Backends {
				if b == &r.Backends[j] {
					i = j
				}
			}
			got[i]++
		}
		return got
	}
	for _, test := range []struct {
		weights []int
		want    []int // percent; the last one is none
	}{
		{[]int{70, 30, 0}, []int{70, 30, 0, 0}},
		{[]int{0, 1}, []int{0, 100, 0}},
		{[]int{0, 0}, []int{0, 0, 100}},
		{nil, []int{100}},
		{[]int{1, 1_000_000}, []int{0, 100, 0}},
	} {
		for i, n := range share(test.weights...) {
			if off := n - 100*test.want[i]; off < -200 || off > 200 {
				t.Errorf("weights %v: %d of 10000 to %d, want %d %%", test.weights, n, i, test.want[i])
			}
		}
	}
}

func TestMirrorShare(t *testing.T) {
	for _, test := range []struct {
		m    Mirror
		want int
	}{{Mirror{}, 1000}, {Mirror{Numerator: 1, Denominator: 4}, 250}, {Mirror{Numerator: 0, Denominator: 100}, 0}, {Mirror{Numerator: 100, Denominator: 100}, 1000}} {
		n := 0
		for roll := range uint64(1000) {
			if test.m.Hit(roll) {
				n++
			}
		}
		if n != test.want {
			t.Errorf("%+v: %d of 1000, want %d", test.m, n, test.want)
		}
	}
}

// normal is a request's target as it comes to a Table.
func normal(target string) []byte {
	spelled, err := normalize.Base.Target(nil, []byte(target))
	if err != nil {
		return []byte(target)
	}
	return spelled
}
