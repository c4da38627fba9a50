//go:build e2e

package smuggling_test

import (
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/proxy"
	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/normalize"
)

// forbid denies one path, with all below it, and one field.
func forbid(mode normalize.Mode) authz.Config {
	deny := func(r authz.Rule) authz.Policy {
		return authz.Policy{Name: "forbidden", Action: authz.Deny, Rules: []authz.Rule{r}}
	}
	return authz.Config{Normalization: mode, Policies: []authz.Policy{
		deny(authz.Rule{To: []authz.Operation{{Paths: []string{"/secret", "/secret/*"}}}}),
		deny(authz.Rule{When: []authz.Condition{{Key: "request.headers[x-forbidden]", Values: []string{"*"}}}}),
	}}
}

// forbiddenTargets are spellings of /secret, or of what is below it, and what could be taken for one.
func forbiddenTargets() (all []string) {
	add := func(targets ...string) { all = append(all, targets...) }
	add("/secret", "/secret/", "/secret?a", "/secret?", "/secret/x", "/secret//", "/secret/.", "/secret/./", "/secret/x/..", "/secret/..%2fsecret")
	for i, c := range "secret" { // each letter encoded, alone and with all before it
		hex := fmt.Sprintf("%%%02x", c)
		add("/secret"[:i+1]+hex+"/secret"[i+2:], "/secret"[:i+1]+strings.ToUpper(hex)+"/secret"[i+2:])
	}
	add("/%73%65%63%72%65%74", "/%73%65%63%72%65%74/", "/%73ecret%2f", "/secret%2f", "/secret%2F", "/secret%2fx", "/secret%5cx", "/secret%5c", `/secret\x`, `/secret\`)
	for _, slashes := range []string{"//", "///", "////////", `/\`, `\/`, `/\/`, "/./", "/././", "//./", "/.//", "/%2f", "/%2F", "/%2f%2f", "/%5c", "/%5C", "/%2e/", "/%2E/", "/%2e%2f", "/.%2f", "/.%5c"} {
		add(slashes+"secret", slashes+"secret/x")
	}
	for _, up := range []string{"/x/../", "/x/%2e%2e/", "/x/%2E%2E/", "/x/.%2e/", "/x/%2e./", "/x/..%2f", "/x%2f../", "/x%2f..%2f", `/x\..\`, "/x%5c..%5c", "/x/..//", "/x//../", "/x/y/../../", "/../", "/../../", "/%2e%2e/", "/..%2f", "/x/./../", "/x/.//../", "/v1/../"} {
		add(up+"secret", up+"secret/x?y")
	}
	add("/secret;x", "/secret;", "/secret;x=y/z", "/;/secret", "/x;y/../secret", "/x/..;/secret", "/x/..;y/secret", "/secret/;x", "/%3b/secret", "/secret%3bx", "/secret%3b", "/.;/secret")
	add("/secret%00", "/%00/secret", "/secret%00x", "/secret%20", "/secret%09", "/secret%0a", "/secret%0d%0a", "/secret%3f", "/secret%3fx", "/secret%23", "/secret%23x", "/%20secret", "/secret.", "/secret%2e", "/secret..", "/secret%e2%80%8b", "/secret%c0%af", "/%c0%ae%c0%ae/secret", "/%u0073ecret", "/%s", "/secret%", "/secret%2")
	add("/%2573ecret", "/%252fsecret", "/x/%252e%252e/secret", "/secret%252f", "/%25%37%33ecret")
	add("/SECRET", "/Secret", "/sEcret/x", "/%53ecret")
	add("http://a/secret", "HTTP://a//secret", "http://a/x/../secret", "http://a/%73ecret", "https://a/secret", "http://a:80/secret", "http://a?/secret", "http://a/secret#x", "http:///secret", "//a/secret", "http://a\\secret")
	add("/secret#", "/secret#x", "/#/secret", "/?/../secret", "/?/secret", "*", "secret", "./secret", "../secret")
	return all
}

// forbiddenFields are field lines that say X-Forbidden, and what could be taken for it.
var forbiddenFields = []string{
	"X-Forbidden: 1\r\n", "x-forbidden: 1\r\n", "X-FORBIDDEN: 1\r\n", "x-FoRbIdDeN: 1\r\n", "X-Forbidden:1\r\n", "X-Forbidden:\t1\r\n", "X-Forbidden:  1  \r\n", "X-Forbidden:\r\n", "X-Forbidden: \r\n",
	"X-Forbidden: 1\r\nX-Forbidden: 2\r\n", "X-Forbidden: \r\nX-Forbidden: 2\r\n", "X-Forbidden: ,\r\n", "X-Forbidden: \xff\r\n",
	"X_Forbidden: 1\r\n", "x_forbidden: 1\r\n", "X-Forbidden: 1\r\nX_Forbidden: 2\r\n", "X_FORBIDDEN: 1\r\n", "X-_Forbidden: 1\r\n", "X-Forbidden_: 1\r\n", "_X-Forbidden: 1\r\n",
	"X-Forbidden : 1\r\n", "X-Forbidden\t: 1\r\n", " X-Forbidden: 1\r\n", "\tX-Forbidden: 1\r\n", "X: y\r\n X-Forbidden: 1\r\n", "X: y\r\n\tX-Forbidden: 1\r\n", "X-Forbidden\r\n : 1\r\n", "X-Forbidden:\r\n 1\r\n", "X-Forbidden:\r\n\t1\r\n",
	"X: y\nX-Forbidden: 1\r\n", "X: y\rX-Forbidden: 1\r\n", "X: y\r\r\nX-Forbidden: 1\r\n", "X: y\x00\r\nX-Forbidden: 1\r\n", "X: y\x0b\r\nX-Forbidden: 1\r\n", "X: y\x0cX-Forbidden: 1\r\n", "X: y\xc2\x85X-Forbidden: 1\r\n", "X: y\xe2\x80\xa8X-Forbidden: 1\r\n",
	"X-Forbidden\x00: 1\r\n", "\x00X-Forbidden: 1\r\n", "X-Forbidden\x0b: 1\r\n", "X\xe2\x80\x91Forbidden: 1\r\n", "X\xe2\x88\x92Forbidden: 1\r\n", "X-Forbidden\xc2\xa0: 1\r\n", "X-Forbidden;: 1\r\n", "\"X-Forbidden\": 1\r\n", "(X-Forbidden): 1\r\n",
	"Connection: X-Forbidden\r\nX-Forbidden: 1\r\n", "X-Forbidden: 1\r\nConnection: x-forbidden\r\n", "Connection: x_forbidden\r\nX-Forbidden: 1\r\n", "Connection: close, X-Forbidden\r\nX-Forbidden: 1\r\n", "Connection: X-Forbidden\r\nX-Forbidden: 1\r\nX-Forbidden: 2\r\n",
	"TE: trailers\r\nTrailer: X-Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Forbidden: 1\r\n", "Transfer-Encoding: chunked\r\n\r\n0\r\nX_Forbidden: 1\r\n", "Transfer-Encoding: chunked\r\n\r\n1;X-Forbidden: 1\r\na\r\n0\r\n",
	"Content-Length: 16\r\n\r\nX-Forbidden: 1\r\n", "Upgrade: websocket\r\nConnection: upgrade\r\nX-Forbidden: 1\r\n", "Expect: 100-continue\r\nX-Forbidden: 1\r\n",
	strings.Repeat("X-Filler: y\r\n", 150) + "X-Forbidden: 1\r\n", "X-Filler: " + strings.Repeat("y", 30_000) + "\r\nX-Forbidden: 1\r\n", "Forbidden: 1\r\n", "X-X-Forbidden: 1\r\n", "X--Forbidden: 1\r\n", "XForbidden: 1\r\n",
}

// bypass is a request that no server behind is to take for what is forbidden.
type bypass struct{ id, raw string }

func bypasses() (all []bypass) {
	for i, target := range forbiddenTargets() {
		for _, method := range []string{"GET", "POST"} {
			id := fmt.Sprintf("path-%d-%s", i, method)
			all = append(all, bypass{id, fmt.Sprintf("%s %s HTTP/1.1\r\nHost: a\r\nX-Request-Id: %s\r\nConnection: close\r\n\r\n", method, target, id)})
		}
	}
	for i, line := range forbiddenFields {
		for _, version := range []string{"1.1", "1.0"} {
			id := fmt.Sprintf("field-%d-%s", i, version)
			all = append(all, bypass{id, fmt.Sprintf("POST /open HTTP/%s\r\nHost: a\r\nX-Request-Id: %s\r\nConnection: close\r\n%s\r\n", version, id, line)})
		}
	}
	return all
}

var (
	// secret matches what a server takes a path for, when that is what is forbidden.
	secret = regexp.MustCompile(`^/+secret(/.*)?$`)
	// parameters matches a target that servers which know of path parameters would cut down to it.
	parameters = regexp.MustCompile(`^/+secret;`)
)

// forbidden tells what of a record is, "" for nothing.
func (r *record) forbidden() string {
	switch {
	case secret.MatchString(r.Path), parameters.MatchString(r.Target):
		return fmt.Sprintf("the path %s, of %s", r.Path, r.Target)
	case r.Forbidden != "" && r.Forbidden != "-":
		return fmt.Sprintf("the field %q", r.Forbidden)
	}
	return ""
}

// send writes a request and takes what comes until the connection ends.
func (b *bypass) send(t *testing.T, address string) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second)) // some never end
	if _, err := io.WriteString(c, b.raw); err != nil {
		return // refused before it was written
	}
	io.Copy(io.Discard, c)
}

// No spelling of a forbidden path or field reaches a server as such. With paths left as they came many do, which shows
// that these spellings are worth trying.
func TestBypass(t *testing.T) {
	all := bypasses()
	if n := len(forbiddenTargets()); n < 100 || len(forbiddenFields) < 50 {
		t.Fatalf("%d paths and %d fields", n, len(forbiddenFields))
	}
	for _, behind := range servers {
		for _, mode := range []normalize.Mode{normalize.DecodeAndMergeSlashes, normalize.None} {
			t.Run(behind.name+" "+string(mode), func(t *testing.T) {
				s := behind.start(t)
				f := startFairway(t, s.address, func(w *proxy.World) { w.Access = forbid(mode) })
				for i := range all {
					all[i].send(t, f.address)
				}
				f.stop(t)
				records := s.stop(t)
				reached := 0
				for _, r := range records {
					what := r.forbidden()
					if what == "" {
						continue
					}
					reached++
					if mode != normalize.None {
						i := slices.IndexFunc(all, func(b bypass) bool { return b.id == r.ID })
						t.Errorf("%s reached the server (id %s): %.200q", what, r.ID, all[max(i, 0)].raw)
					}
				}
				t.Logf("%d requests, %d reached the server, %d of them as what is forbidden", len(all), len(records), reached)
				if mode == normalize.None && reached < 20 {
					t.Errorf("without normalisation %d of %d requests reach what is forbidden: this shows little", reached, len(all))
				}
				if len(records) < 20 {
					t.Errorf("%d requests reached the server at all: this shows little", len(records))
				}
			})
		}
	}
}
