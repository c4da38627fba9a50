//go:build e2e && linux

package vllm_test

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// exchange is a request that is sent to an engine directly and through Fairway. The answers must be the same: status,
// fields and body.
type exchange struct {
	name    string
	method  string // POST if empty
	target  string
	plain   string   // the target as Fairway normalises it, if that is another: the engine itself is asked for that
	fields  []string // besides Host, Connection, X-Request-Id and, for a body, Content-Type and Content-Length
	body    string
	noType  bool // no Content-Type
	chunked bool // the body is sent in chunks
	http10  bool
	anyBody bool           // the bodies tell of the moment and are not compared
	without *regexp.Regexp // what is cut out of the bodies: there they may differ
	// fairways says why Fairway gives an answer of its own. The status is the same; the rest is the same too
	// (same), or an error of Fairway's.
	fairways string
	same     bool
}

// testDifferences sends each exchange both ways.
func testDifferences(t *testing.T, f *fleet) {
	direct, through := f.engines[0].address, strings.TrimPrefix(f.single.origin, "http://")
	for i, x := range exchanges() {
		t.Run(x.name, func(t *testing.T) {
			x.warm(t, direct, i)
			plain := x
			plain.target = cmp.Or(x.plain, x.target)
			if x.fairways != "" {
				x.compareOwn(t, direct, through, i)
				return
			}
			// An engine joins the tokens that it made while it was busy sending into one event. How many events
			// there are is chance, so each side is asked until one has said the same as the other.
			var wants, gots []result
			for range 12 {
				wants = append(wants, plain.send(t, direct, i))
				gots = append(gots, x.send(t, through, i))
				for _, want := range wants {
					if slices.ContainsFunc(gots, func(got result) bool { return got == want }) {
						return
					}
				}
				if !strings.Contains(x.body, `"stream":true`) {
					break
				}
			}
			t.Errorf("of %d answers none is the same both ways.\n--- directly\n%s\n--- through Fairway\n%s",
				len(wants), wants[0], gots[0])
		})
	}
}

// warm sends the exchange once, so that the prompt is cached for both comparisons.
func (x exchange) warm(t *testing.T, address string, i int) {
	if x.method == "" {
		x.send(t, address, i)
	}
}

// compareOwn is for what Fairway answers itself.
func (x exchange) compareOwn(t *testing.T, direct, through string, i int) {
	want, got := x.send(t, direct, i), x.send(t, through, i)
	if got.status != want.status {
		t.Errorf("Fairway says %d, the engine %d: %s", got.status, want.status, want.body)
	}
	if x.same {
		if got.body != want.body || got.fields != want.fields {
			t.Errorf("Fairway says %s, the engine %s", got, want)
		}
		return
	}
	var body struct {
		Error struct{ Type, Message string }
	}
	if err := json.Unmarshal([]byte(got.body), &body); err != nil || !strings.HasPrefix(body.Error.Type, "fairway_") || body.Error.Message == "" {
		t.Errorf("Fairway says %s (%v), want an error object with a type of its own", got.body, err)
	}
}

// result is an answer without what differs from one request to the next.
type result struct {
	status int
	fields string
	body   string
}

func (r result) String() string { return fmt.Sprintf("%d\n%s\n%s", r.status, r.fields, r.body) }

// notCompared are fields that speak of one connection (RFC 9110, section 7.6.1), and others that may differ.
var notCompared = []string{"Connection", "Keep-Alive", "Date", "X-Request-Id"}

var (
	times = regexp.MustCompile(`"(created|created_at)": ?\d+`)
	ids   = regexp.MustCompile(`\b(chatcmpl|cmpl|resp|msg|modelperm|call|chatcmpl-tool)[-_][0-9a-f]{16,32}\b`)
)

// send sends the request on a connection of its own and reads the answer.
func (x exchange) send(t *testing.T, address string, i int) result {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(x.bytes(i)); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, &http.Request{Method: x.verb()})
	for err == nil && resp.StatusCode == http.StatusContinue {
		resp, err = http.ReadResponse(in, &http.Request{Method: x.verb()})
	}
	if err != nil {
		t.Fatalf("no answer from %s: %v", address, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("the answer from %s breaks off after %q: %v", address, body, err)
	}
	text := string(body)
	if x.anyBody {
		text = ""
		resp.Header.Del("Content-Length")
	}
	text = ids.ReplaceAllString(times.ReplaceAllString(text, `"$1":0`), "$1-ID")
	if x.without != nil {
		text = x.without.ReplaceAllString(text, "")
	}
	return result{resp.StatusCode, fields(resp), text}
}

// fields are the answer's fields, in a fixed order.
func fields(resp *http.Response) string {
	for _, name := range notCompared {
		resp.Header.Del(name)
	}
	var lines strings.Builder
	for _, name := range slices.Sorted(maps.Keys(resp.Header)) {
		if !strings.HasPrefix(name, "X-Fairway-") {
			fmt.Fprintf(&lines, "%s: %s\n", name, strings.Join(resp.Header[name], ", "))
		}
	}
	return lines.String()
}

func (x exchange) verb() string {
	if x.method == "" {
		return "POST"
	}
	return x.method
}

// bytes are the request on the wire.
func (x exchange) bytes(i int) []byte {
	var b bytes.Buffer
	version := "1.1"
	if x.http10 {
		version = "1.0"
	}
	fmt.Fprintf(&b, "%s %s HTTP/%s\r\nHost: models.test\r\nConnection: close\r\nX-Request-Id: request-%d\r\n", x.verb(), x.target, version, i)
	for _, f := range x.fields {
		b.WriteString(f + "\r\n")
	}
	if x.verb() == "POST" && !x.noType {
		b.WriteString("Content-Type: application/json\r\n")
	}
	switch {
	case x.chunked:
		half := len(x.body) / 2
		fmt.Fprintf(&b, "Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n", half, x.body[:half], len(x.body)-half, x.body[half:])
	case x.verb() == "POST" || x.body != "":
		fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n%s", len(x.body), x.body)
	default:
		b.WriteString("\r\n")
	}
	return b.Bytes()
}
