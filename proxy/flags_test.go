package proxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/extauthz"
)

// The access log tells by Envoy's flags who it was that failed a request: an authorizer
// or a policy, an endpoint that takes no connections or one that does not answer.
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
		}
		if err := json.Unmarshal(log.Bytes(), &line); err != nil || m.answer.Status != tt.status || line.Flags != tt.flags {
			t.Errorf("%+v: %d, %s (%v): %s", tt, m.answer.Status, line.Flags, err, &log)
		}
	}
}
