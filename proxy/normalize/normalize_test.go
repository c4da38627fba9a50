package normalize

import (
	"bytes"
	"strings"
	"testing"
)

func TestTarget(t *testing.T) {
	const bad = "\x00"
	for _, tt := range []struct{ target, none, base, merge, decode string }{
		// The examples of Istio's page.
		{"/some%2fdata/%61%62%63", "/some%2fdata/%61%62%63", "/some%2Fdata/abc", "/some%2Fdata/abc", "/some/data/abc"},
		{`/some\data`, `/some\data`, "/some/data", "/some/data", "/some/data"},
		{"/some//data///abc", "/some//data///abc", "/some//data///abc", "/some/data/abc", "/some/data/abc"},
		{"/public/./data/abc/../xyz", "/public/./data/abc/../xyz", "/public/data/xyz", "/public/data/xyz", "/public/data/xyz"},
		{"/foo?v=1", "/foo?v=1", "/foo?v=1", "/foo?v=1", "/foo?v=1"},
		{"/a%00b", "/a%00b", bad, bad, bad},
		// Decoding happens once.
		{"/%252e%252e/a", "/%252e%252e/a", "/%252e%252e/a", "/%252e%252e/a", "/%252e%252e/a"},
		{"/a%252fb", "/a%252fb", "/a%252fb", "/a%252fb", "/a%252fb"},
		// Dot segments, plain and encoded.
		{"/a/%2e%2E/b", "/a/%2e%2E/b", "/b", "/b", "/b"},
		{"/a/.%2e/b", "/a/.%2e/b", "/b", "/b", "/b"},
		{"/a/..%2fb", "/a/..%2fb", "/a/..%2Fb", "/a/..%2Fb", "/b"},
		{`/a/..%5cb`, `/a/..%5cb`, "/a/..%5Cb", "/a/..%5Cb", "/b"},
		{"/../../a", "/../../a", "/a", "/a", "/a"},
		{"/a/.", "/a/.", "/a/", "/a/", "/a/"},
		{"/a/..", "/a/..", "/", "/", "/"},
		{"/a/b/..", "/a/b/..", "/a/", "/a/", "/a/"},
		{"/.", "/.", "/", "/", "/"},
		{"/..", "/..", "/", "/", "/"},
		{"/a/.../b", "/a/.../b", "/a/.../b", "/a/.../b", "/a/.../b"},
		{"/.a/..b/c.", "/.a/..b/c.", "/.a/..b/c.", "/.a/..b/c.", "/.a/..b/c."},
		{"/a//../b", "/a//../b", "/a/b", "/b", "/b"},
		// Slashes.
		{"//", "//", "//", "/", "/"},
		{"//a", "//a", "//a", "/a", "/a"},
		{"/a//", "/a//", "/a//", "/a/", "/a/"},
		{"/%2f%2fa", "/%2f%2fa", "/%2F%2Fa", "/%2F%2Fa", "/a"},
		// What need not be encoded is not, and the rest is in one way.
		{"/a%21%24%26%27%28%29%2a%2b%2c%3d%3a%40", "/a%21%24%26%27%28%29%2a%2b%2c%3d%3a%40", "/a!$&'()*+,=:@", "/a!$&'()*+,=:@", "/a!$&'()*+,=:@"},
		{"/a;b", "/a;b", "/a%3Bb", "/a%3Bb", "/a%3Bb"},
		{"/a%3bb", "/a%3bb", "/a%3Bb", "/a%3Bb", "/a%3Bb"},
		{"/..;/a", "/..;/a", "/..%3B/a", "/..%3B/a", "/..%3B/a"},
		{"/a%3fb", "/a%3fb", "/a%3Fb", "/a%3Fb", "/a%3Fb"},
		{"/a%23b", "/a%23b", "/a%23b", "/a%23b", "/a%23b"},
		{"/%c3%a9", "/%c3%a9", "/%C3%A9", "/%C3%A9", "/%C3%A9"},
		{"/\xc3\xa9", "/\xc3\xa9", "/%C3%A9", "/%C3%A9", "/%C3%A9"},
		{`/a"b<c>`, `/a"b<c>`, "/a%22b%3Cc%3E", "/a%22b%3Cc%3E", "/a%22b%3Cc%3E"},
		{"/a%0d%0ab", "/a%0d%0ab", "/a%0D%0Ab", "/a%0D%0Ab", "/a%0D%0Ab"},
		// The query is left alone.
		{"/a/./b?c=//%2e%2e/;", "/a/./b?c=//%2e%2e/;", "/a/b?c=//%2e%2e/;", "/a/b?c=//%2e%2e/;", "/a/b?c=//%2e%2e/;"},
		{"/?//..", "/?//..", "/?//..", "/?//..", "/?//.."},
		// What is no path is left alone, what is no encoding refused.
		{"*", "*", "*", "*", "*"},
		{"", "", "", "", ""},
		{"/a%", "/a%", bad, bad, bad},
		{"/a%2", "/a%2", bad, bad, bad},
		{"/a%zz", "/a%zz", bad, bad, bad},
		{"/a%2g?", "/a%2g?", bad, bad, bad},
		{"/a?%zz", "/a?%zz", "/a?%zz", "/a?%zz", "/a?%zz"},
	} {
		for n, want := range map[Mode]string{None: tt.none, Base: tt.base, MergeSlashes: tt.merge, DecodeAndMergeSlashes: tt.decode, "": tt.decode} {
			got, err := n.Target(nil, []byte(tt.target))
			if err != nil && want != bad || err == nil && string(got) != want {
				t.Errorf("%s: %q became %q, %v; want %q", n, tt.target, got, err, want)
			}
		}
	}
}

// Whatever comes has one spelling: normalising twice is normalising once, and what
// comes out holds no other spelling of a slash, a dot or a letter.
func FuzzTarget(f *testing.F) {
	for _, seed := range []string{"/", "//a", "/a/../b", "/%2e%2e%2fa", `/a\..\b`, "/a;b?c", "/%25%32%65", "/a/%2e", "*", "/\xff%ff", "/.%2e/%2F/."} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, target string) {
		for _, n := range []Mode{Base, MergeSlashes, DecodeAndMergeSlashes} {
			once, err := n.Target(nil, []byte(target))
			if err != nil || !strings.HasPrefix(target, "/") {
				continue
			}
			twice, err := n.Target(nil, once)
			if err != nil || !bytes.Equal(once, twice) {
				t.Errorf("%s: %q became %q, and that %q, %v", n, target, once, twice, err)
			}
			path, query, _ := bytes.Cut(once, []byte("?"))
			if _, want, _ := strings.Cut(target, "?"); string(query) != want {
				t.Errorf("%s: the query of %q became %q", n, target, query)
			}
			for _, segment := range bytes.Split(path[1:], []byte("/")) {
				if s := string(segment); s == "." || s == ".." {
					t.Errorf("%s: %q became %q", n, target, once)
				}
			}
			if path[0] != '/' || n.mergesSlashes() && bytes.Contains(path, []byte("//")) || bytes.ContainsAny(path, `\;#"`) {
				t.Errorf("%s: %q became %q", n, target, once)
			}
		}
	})
}

func TestTargetAllocs(t *testing.T) {
	var n Mode
	scratch := make([]byte, 0, 100)
	for _, target := range []string{"/v1/chat/completions?a=b", "/v1//%63hat/../completions"} {
		target := []byte(target)
		if a := testing.AllocsPerRun(100, func() { n.Target(scratch, target) }); a != 0 {
			t.Errorf("%s: %v allocations", target, a)
		}
	}
}
