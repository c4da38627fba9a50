package proxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/extauthz"
)

// The access log tells by Envoy's flags who it was that failed a request: an authorizer
// or a policy, an endpoint that takes no connections or one that does not answer. The
// bodies of our own answers count as sent.
func TestResponseFlagsAreLogged(t *testing.T) {
	_, authorizer := startAuthorizer(t, func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		return no(403, ""), nil
	})
	sound := startPod(t, "", quick)
	closed := listenTCP(t, func(*net.TCPConn) {})
	mute := scripted(t, func(_ net.Conn, in *bufio.Reader) { take(in) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	ask := []authz.Policy{custom("authorizer", on("authorizer")), custom("away", on("away")), custom("nobody", on("nobody")),
		policy(authz.Deny, authz.Rule{When: []authz.Condition{{Key: "request.headers[x-ask]", Values: []string{"policy"}}}})}
	for _, tt := range []struct {
		ask    string
		to     []string
		status int
		flags  string
	}{
		{"", []string{sound.address}, 200, "-"},
		{"policy", []string{sound.address}, 403, "-"},
		{"nobody", []string{sound.address}, 403, "-"}, // such a provider is not configured, so nobody was asked
		{"authorizer", []string{sound.address}, 403, "UAEX"},
		{"away", []string{sound.address}, 403, "UAEX"},
		{"", nil, 503, "UH"},
		{"", []string{l.Addr().String()}, 502, "UF"},
		{"", []string{mute.address}, 502, "UC"},
		{"", []string{mute.address, closed}, 502, "UC,URX"}, // whichever is first
	} {
		var log bytes.Buffer
		access := account.NewLog(&log, account.JSON)
		s := New(Config{Account: account.New(prometheus.NewRegistry(), account.Config{Access: access}), Log: slog.New(slog.DiscardHandler)})
		pool := Pool{Name: "pool"}
		for _, a := range tt.to {
			pool.Endpoints = append(pool.Endpoints, Endpoint{Address: a})
		}
		s.SetWorld(&World{Pools: []Pool{pool}, Access: authz.Config{Policies: ask},
			Authorizers: []extauthz.Provider{{Name: "authorizer", Address: authorizer}, {Name: "away", Address: l.Addr().String()}}})
		m := post("/v1/chat/completions", chat(false, 1, "hi"), "X-Ask", tt.ask)
		s.Handle(m)
		s.Shutdown(t.Context())
		access.Close()
		var line struct {
			Flags string `json:"response_flags"`
			Sent  int    `json:"bytes_sent"`
		}
		if err := json.Unmarshal(log.Bytes(), &line); err != nil || m.answer.Status != tt.status || line.Flags != tt.flags {
			t.Errorf("%+v: %d, %s (%v): %s", tt, m.answer.Status, line.Flags, err, &log)
		}
		if line.Sent != len(m.seen()) {
			t.Errorf("%+v: %d bytes sent, the log says %d", tt, len(m.seen()), line.Sent)
		}
	}
}

// What we say to a head that cannot be read, and behind a stream that breaks off, counts
// as sent too.
func TestBytesOfOwnErrorsAreLogged(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 1000\r\n\r\n"
	p := startTunnelProxy(t, Timeouts{}, func(c *net.TCPConn, _ *bufio.Reader, _ *http.Request) {
		io.WriteString(c, head+event)
	})
	body := chat(true, 5, "hi")
	for _, tt := range []struct {
		request, reason string
		status, in      int
	}{
		{"GET / HTTP/1.1\r\n\r\n", "fairway_bad_request", 400, 0},
		{fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", len(body), body), account.UpstreamCut, 200, len(body)},
	} {
		c, err := net.Dial("tcp", p.address)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, tt.request)
		answer, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(answer.Body)
		c.Close()
		if !strings.Contains(string(got), `"type":"fairway_`) {
			t.Errorf("%q", got)
		}
		p.accessed.expect(t, tt.status, tt.reason, tt.in, len(got))
	}
}
