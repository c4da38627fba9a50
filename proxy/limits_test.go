package proxy

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/http2"

	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/authz"
)

// A principal that has as many requests under way as it may is told so; others are
// served, and so is it when one of them has ended.
func TestRequestsByPrincipal(t *testing.T) {
	begun, answer := make(chan struct{}), make(chan struct{})
	p := scripted(t, func(c net.Conn, in *bufio.Reader) {
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			io.Copy(io.Discard, r.Body)
			begun <- struct{}{}
			<-answer
			io.WriteString(c, okAnswer)
		}
	})
	s := startServer(t, World{
		Access: authz.Config{HasKeys: true, Keys: []authz.Key{{Name: "a", Sum: sha256.Sum256([]byte("A"))}, {Name: "b", Sum: sha256.Sum256([]byte("B"))}}},
		Limits: Limits{RequestsByPrincipal: 2}, Queue: Queue{Off: true},
	}, p)
	ended := make(chan *memoryStream)
	ask := func(key string) {
		fields := []string{"Authorization", "Bearer " + key}
		if key == "" {
			fields = nil
		}
		m := post("/v1/chat/completions", chat(false, 1, "hello"), fields...)
		s.Handle(m)
		ended <- m
	}
	for _, key := range []string{"A", "A", "B", "", ""} { // who shows no key is its address
		go ask(key)
		<-begun
	}
	for _, key := range []string{"A", ""} {
		go ask(key)
		m := <-ended
		if typ, _ := refusal(t, m); m.answer.Status != 429 || typ != "fairway_too_many_requests" || m.field("retry-after") == "" {
			t.Errorf("%q: %d %s", key, m.answer.Status, typ)
		}
	}
	go ask("B")
	<-begun
	answer <- struct{}{}
	<-ended
	for range 5 {
		answer <- struct{}{}
		if m := <-ended; m.answer.Status != 200 {
			t.Errorf("status %d", m.answer.Status)
		}
	}
	go ask("A")
	<-begun
	answer <- struct{}{}
	if m := <-ended; m.answer.Status != 200 {
		t.Errorf("after the others have ended: status %d", m.answer.Status)
	}
	if n := s.Reached()[LimitRequestsByPrincipal]; n != 2 {
		t.Errorf("counted %d times, want 2", n)
	}
	if n := len(s.shares.has); n != 0 {
		t.Errorf("%d principals are remembered that have nothing under way", n)
	}
}

// A body that comes byte by byte has no longer than timeouts.request in all.
func TestSlowBodyIsBounded(t *testing.T) {
	s := startServer(t, World{Timeouts: Timeouts{Request: 20 * time.Millisecond}}, startPod(t, "", quick))
	m := post("/v1/chat/completions", chat(false, 1, strings.Repeat("x", 100_000)))
	all := m.body
	m.body = readerFunc(func(p []byte) (int, error) {
		<-time.After(time.Millisecond)
		return all.Read(p[:1])
	})
	s.Handle(m)
	if typ, _ := refusal(t, m); m.answer.Status != 408 || typ != "fairway_timeout" || s.Reached()[LimitTime] != 1 {
		t.Errorf("%d %s, counted %d times", m.answer.Status, typ, s.Reached()[LimitTime])
	}
}

// Large bodies are read by so many at once: the next waits, others do not, and it waits no
// longer than its client or its time.
func TestLargeBodiesAreReadInTurn(t *testing.T) {
	s := startServer(t, World{Timeouts: Timeouts{Request: time.Minute}}, startPod(t, "", quick))
	for range cap(s.readers) {
		s.readers <- struct{}{}
	}
	ended := make(chan *memoryStream)
	large := post("/v1/chat/completions", chat(false, 1, strings.Repeat("x", longRead)))
	gone := post("/v1/chat/completions", chat(false, 1, strings.Repeat("x", longRead)))
	for _, m := range []*memoryStream{large, gone} {
		go func() {
			s.Handle(m)
			ended <- m
		}()
	}
	gone.leave()
	if m := <-ended; m != gone || m.started {
		t.Errorf("whose client has gone: status %d", m.answer.Status)
	}
	small := post("/v1/chat/completions", chat(false, 1, "hello"))
	s.Handle(small)
	if small.answer.Status != 200 {
		t.Errorf("a small one: status %d", small.answer.Status)
	}
	<-s.readers
	if m := <-ended; m.answer.Status != 200 {
		t.Errorf("status %d", m.answer.Status)
	}
	for range cap(s.readers) - 1 {
		<-s.readers
	}
	if len(s.readers) != 0 {
		t.Error("a reader has not ended")
	}
}

// said sends text on a new connection and gives the status of the answer, 0 for none.
func said(t *testing.T, address, text string) (net.Conn, int) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if text == "" {
		return c, 0
	}
	io.WriteString(c, text)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return c, 0
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return c, resp.StatusCode
}

const listModels = "GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"

func TestConnectionsByAddress(t *testing.T) {
	w := World{Limits: Limits{ConnectionsByAddress: 2}}
	s := startServer(t, w, startPod(t, "", quick))
	address := serveOn(t, s)
	first, status := said(t, address, listModels)
	if _, second := said(t, address, listModels); status != 200 || second != 200 {
		t.Fatalf("%d, %d", status, second)
	}
	if _, third := said(t, address, listModels); third != 0 || s.Reached()[LimitConnectionsByAddress] != 1 {
		t.Errorf("one too many is answered with %d; counted %d times", third, s.Reached()[LimitConnectionsByAddress])
	}
	first.Close()
	for status = 0; status != 200; { // as soon as its end was noticed
		_, status = said(t, address, listModels)
	}
	w.Pools = s.World().Pools
	w.Access.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	s.SetWorld(&w)
	for range 3 {
		if _, status := said(t, address, listModels); status != 200 {
			t.Errorf("of a trusted proxy: %d", status)
		}
	}
}

// Beyond the limit of connections, those on which nothing goes on make room for who
// comes, whatever version of HTTP they speak.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	p := startPod(t, "", quick)
	s := New(Config{Account: account.New(prometheus.NewRegistry(), account.Config{}), Log: slog.New(slog.DiscardHandler), Connections: 3})
	s.SetWorld(&World{Pools: []Pool{{Name: "pool", Endpoints: []Endpoint{{Address: p.address}}}}})
	t.Cleanup(func() { s.Shutdown(t.Context()) })
	address := serveOn(t, s)
	var idle []net.Conn
	for range 2 {
		c, _ := said(t, address, listModels)
		idle = append(idle, c)
	}
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, http2.ClientPreface)
	fr := http2.NewFramer(c, c)
	fr.WriteSettings()
	for ack := false; !ack; { // it is served
		f, err := fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		settings, ok := f.(*http2.SettingsFrame)
		ack = ok && settings.IsAck()
	}
	for i := range 3 { // they stay, with something going on
		if _, status := said(t, address, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"); status != 100 {
			t.Errorf("newcomer %d: %d", i, status)
		}
	}
	if n := s.Reached()[LimitConnections]; n != 3 {
		t.Errorf("counted %d times, want 3", n)
	}
	for _, c := range append(idle, c) {
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Errorf("the connection that made room ended with %v", err)
		}
	}
}
