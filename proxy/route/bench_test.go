package route

import (
	"fmt"
	"testing"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// some makes n rules of the kinds that there are in clusters: a host and a path
// for each team, and one path that is shared out by a header field.
func some(n int) *Table {
	routes := make([]Route, 0, n)
	for i := range n {
		r := Route{Name: fmt.Sprint("default/r", i)}
		switch i % 4 {
		case 0:
			r.Hostnames, r.Rules = []string{fmt.Sprintf("team%d.example.com", i)}, []Rule{to("a", prefix("/v1"), prefix("/v2"))}
		case 1:
			r.Rules = []Rule{to("b", prefix(fmt.Sprintf("/team%d/v1", i)))}
		case 2:
			r.Rules = []Rule{to("c", and(and(prefix("/v1/chat"), headers(fmt.Sprintf("x-tenant: t%d", i))), method("POST")))}
		case 3:
			r.Hostnames, r.Rules = []string{fmt.Sprintf("*.team%d.example.com", i)}, []Rule{to("d", query("version=2"))}
		}
		routes = append(routes, r)
	}
	return Compile(append(routes, Route{Rules: []Rule{to("rest")}}))
}

// usual is a request with as many fields as an SDK sends.
func usual(line string, more ...string) *message.Request {
	return head(line, append([]string{"Accept: application/json", "Content-Type: application/json", "User-Agent: OpenAI/Python 1.99.1", "X-Stainless-Lang: python",
		"X-Stainless-Package-Version: 1.99.1", "X-Stainless-OS: Linux", "X-Stainless-Arch: x64", "X-Stainless-Runtime: CPython", "Authorization: Bearer x",
		"X-Stainless-Async: false", "x-stainless-retry-count: 0", "Accept-Encoding: gzip, deflate"}, more...)...)
}

func BenchmarkFind(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		table := some(n)
		for _, r := range []struct {
			name string
			*message.Request
		}{
			{"path", usual(fmt.Sprintf("POST api.example.com /team%d/v1/chat/completions", n/4*4-3))},
			{"host", usual("POST team0.example.com /v1/chat/completions")},
			{"header", usual("POST api.example.com /v1/chat/completions", fmt.Sprintf("x-tenant: t%d", n-2))},
			{"rest", usual("POST api.example.com /v1/chat/completions")},
		} {
			b.Run(fmt.Sprintf("%d/%s", n, r.name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if table.Find(r.Request).Rule == nil {
						b.Fatal("nothing found")
					}
				}
			})
		}
	}
}

func TestFindAllocs(t *testing.T) {
	table := Compile([]Route{
		{Hostnames: []string{"team.example.com", "*.example.com"}, Rules: []Rule{to("a", and(and(and(prefix("/v1"), method("POST")),
			headers("x-tenant: t1", "x-b: 2")), query("version=2")))}},
		{Rules: []Rule{to("re", Match{Path: PathMatch{RegularExpression, "/v[0-9]+/.*"}, Headers: []ValueMatch{{RegularExpression, "x-tenant", "t[0-9]"}}})}},
	})
	a := usual("POST Team.Example.com:8080 /v1/chat/completions?x&version=2", "X-Tenant: t1", "x-b: 2")
	re := usual("POST other /v1/chat/completions?x&version=2", "X-Tenant: t1")
	none := usual("POST other.example.com /v1/chat/completions")
	if table.Find(a).Rule == nil || table.Find(re).Rule == nil || table.Find(none).Rule != nil {
		t.Fatal("not the rules that are meant")
	}
	rule := to("a")
	if n := testing.AllocsPerRun(100, func() {
		table.Find(a)
		table.Find(re)
		table.Find(none)
		rule.Backend(7)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
