//go:build e2e

// Package smuggling_test sends requests of which two servers could think differently through Fairway to uvicorn and nginx,
// and compares what each of the three took them for. `make e2e-smuggling` runs it.
package smuggling_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-proxy/fairway/proxy"
	"github.com/fairway-proxy/fairway/proxy/account"
)

// servers are those that are put behind Fairway.
var servers = []struct {
	name  string
	start func(*testing.T) *server
}{
	{"uvicorn with h11", func(t *testing.T) *server { return startUvicorn(t, "h11") }},
	{"uvicorn with httptools", func(t *testing.T) *server { return startUvicorn(t, "httptools") }},
	{"nginx", startNginx},
}

func TestSmuggling(t *testing.T) {
	for _, behind := range servers {
		t.Run(behind.name, func(t *testing.T) {
			s := behind.start(t)
			f := startFairway(t, s.address)
			var outcomes []*outcome
			for i := range corpus {
				outcomes = append(outcomes, f.try(t, &corpus[i], false), f.try(t, &corpus[i], true))
			}
			accessed := f.stop(t)
			j := newJudge(accessed, s.stop(t))
			for _, o := range outcomes {
				t.Run(o.name, func(t *testing.T) { j.judge(t, o) })
			}
			for id, r := range j.records {
				t.Errorf("a request that no client made and Fairway did not count reached the server: %s %s (id %q)", r.Method, r.Target, id)
			}
			for id, a := range j.accessed {
				t.Errorf("Fairway counted a request that no client got an answer to: %s %s %d (id %q)", a.Method, a.Path, a.Status, id)
			}
			if strings.Contains(s.Output(), "Invalid HTTP request") {
				t.Errorf("the server was sent what it does not take for HTTP:\n%s", s.Output())
			}
		})
	}
}

// fairway is the proxy on a socket of its own.
type fairway struct {
	*proxy.Server
	address string
	log     accessLog
	access  *account.Log // writes to log
	served  chan error
}

// access is a line of its access log.
type access struct {
	ID       string `json:"request_id"`
	Method   string `json:"method"`
	Path     string `json:"path"`
	Status   int    `json:"response_code"`
	Endpoint string `json:"upstream_host"`
	Received int    `json:"bytes_received"`
}

type accessLog struct {
	mu    sync.Mutex
	lines []access
}

func (l *accessLog) Write(lines []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range bytes.Lines(lines) {
		var a access
		if err := json.Unmarshal(line, &a); err != nil {
			return 0, err
		}
		l.lines = append(l.lines, a)
	}
	return len(lines), nil
}

func startFairway(t *testing.T, endpoint string, changes ...func(*proxy.World)) *fairway {
	t.Helper()
	f := &fairway{served: make(chan error, 1)}
	f.access = account.NewLog(&f.log, account.JSON)
	f.Server = proxy.New(proxy.Config{
		Account: account.New(prometheus.NewRegistry(), account.Config{Access: f.access}),
		Log:     slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	w := &proxy.World{Pools: []proxy.Pool{{Name: "pool", Endpoints: []proxy.Endpoint{{Address: endpoint}}}}}
	for _, change := range changes {
		change(w)
	}
	f.SetWorld(w)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.address = l.Addr().String()
	go func() { f.served <- f.Serve(l) }()
	return f
}

// stop ends the proxy and gives its access log.
func (f *fairway) stop(t *testing.T) []access {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := f.Shutdown(ctx); err != nil {
		t.Errorf("exchanges are left over: %v", err)
	}
	<-f.served
	if err := f.access.Close(); err != nil {
		t.Error(err)
	}
	return f.log.lines
}

// outcome is what a client saw of an attempt.
type outcome struct {
	*attempt
	name    string
	answers []answer
	err     error // why no further answer could be read
}

type answer struct {
	status   int
	id, body string
}

// try writes an attempt on a connection, at once or in pieces, and reads all that comes back.
func (f *fairway) try(t *testing.T, a *attempt, pieces bool) *outcome {
	t.Helper()
	o := &outcome{attempt: a, name: a.name}
	c, err := net.Dial("tcp", f.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	text := a.raw
	if !a.open {
		text += tail
	}
	size := len(text)
	if pieces {
		o.name += " in pieces"
		size = max(1, len(text)/200)
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		for piece := range slices.Chunk([]byte(text), size) {
			if _, err := c.Write(piece); err != nil {
				return // refused before it was written
			}
		}
		if a.open {
			c.(*net.TCPConn).CloseWrite()
		}
	}()
	o.read(c)
	c.Close()
	<-written
	return o
}

// read reads answers until the connection ends.
func (o *outcome) read(c net.Conn) {
	r := bufio.NewReader(c)
	for {
		asked := &http.Request{Method: "GET"}
		if n := len(o.answers); n < len(o.want) {
			asked.Method = o.want[n].method
		}
		head, err := http.ReadResponse(r, asked)
		if err != nil {
			// ErrUnexpectedEOF is how it tells the end; a reset is one to a client that wrote what nobody was to read.
			if err != io.ErrUnexpectedEOF && !((o.last || o.open) && errors.Is(err, syscall.ECONNRESET)) {
				o.err = err
			}
			return
		}
		if head.StatusCode < 200 {
			continue
		}
		body, err := io.ReadAll(head.Body)
		if err != nil {
			o.err = err
			return
		}
		o.answers = append(o.answers, answer{head.StatusCode, head.Header.Get("X-Request-Id"), string(body)})
	}
}

// judge holds what Fairway and the server behind it say of the same requests, by id. What an attempt explains is taken out.
type judge struct {
	accessed map[string]access
	records  map[string]record
}

func newJudge(accessed []access, records []record) *judge {
	j := &judge{make(map[string]access), make(map[string]record)}
	for _, a := range accessed {
		if a.Status != 499 { // the client left, in an open attempt; nobody behind may have heard of it
			j.accessed[a.ID] = a
		}
	}
	for i, r := range records {
		if _, twice := j.records[r.ID]; twice || r.ID == "" {
			r.ID += fmt.Sprintf(" record %d", i)
		}
		j.records[r.ID] = r
	}
	return j
}

func (j *judge) judge(t *testing.T, o *outcome) {
	if o.http2 {
		if o.err == nil || len(o.answers) > 0 {
			t.Errorf("%d answers in HTTP/1.1", len(o.answers))
		}
		return
	}
	want := o.want
	if o.refused == 0 && !o.last && !o.open {
		want = append(slices.Clone(want), meant{"GET", "/tail", ""})
	}
	answers := len(want)
	if o.refused != 0 {
		answers++
	}
	if o.err != nil || len(o.answers) != answers {
		t.Errorf("%d answers, want %d, and then %v", len(o.answers), answers, o.err)
	}
	for i, got := range o.answers {
		a, counted := j.accessed[got.id]
		delete(j.accessed, got.id)
		if !counted || a.Status != got.status {
			t.Errorf("answer %d: status %d, which Fairway counted as %+v", i, got.status, a)
		}
		r, reached := j.records[got.id]
		delete(j.records, got.id)
		if i >= len(want) {
			if got.status != o.refused || reached {
				t.Errorf("answer %d: status %d, want %d; it reached the server: %v %+v", i, got.status, o.refused, reached, r)
			}
			continue
		}
		if !reached {
			t.Errorf("answer %d: status %d, and the server knows nothing of it: %s", i, got.status, got.body)
			continue
		}
		w := want[i]
		if r.Method != w.method || r.Target != w.target || r.Body != w.body {
			t.Errorf("request %d: the server took it for %s %s %q, the client meant %s %s %q", i, r.Method, r.Target, r.Body, w.method, w.target, w.body)
		}
		if !soundFraming(&r) {
			t.Errorf("request %d: content-length %q, transfer-encoding %q, host %q for a body of %d bytes", i, r.Length, r.Coding, r.Host, len(r.Body))
		}
		if a.Method != w.method || a.Received != len(w.body) {
			t.Errorf("request %d: Fairway counted %s with %d bytes, the client meant %s with %d", i, a.Method, a.Received, w.method, len(w.body))
		}
		if says := w.method + " " + w.target + "\n"; got.status == 200 && w.method != "HEAD" && got.body != says {
			t.Errorf("answer %d: is for %q, not %q", i, got.body, says)
		}
	}
}

// soundFraming tells whether a request says in one way, and truly, how long its body is, and has one host.
func soundFraming(r *record) bool {
	switch {
	case r.Coding != "":
		return r.Coding == "chunked" && r.Length == ""
	case r.Length == "":
		return r.Body == ""
	}
	return r.Length == fmt.Sprint(len(r.Body)) && !strings.Contains(r.Host, ", ")
}
