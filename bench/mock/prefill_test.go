package mock

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// listen serves cfg on a loopback address, since one server asks the other.
func listen(t *testing.T, cfg Config) (s *Server, address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s = New(cfg)
	served := make(chan struct{})
	go func() {
		s.Serve(ln)
		close(served)
	}()
	t.Cleanup(func() {
		s.Close()
		<-served
	})
	return s, ln.Addr().String()
}

func TestPromptComputedByAnotherServer(t *testing.T) {
	cfg := tiny()
	cfg.Speed = 100
	prefill, prefiller := listen(t, cfg)
	decode, address := listen(t, cfg)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	ask := func(path, body, from string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+address+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-Prefiller-Host-Port", from)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); resp.StatusCode != 200 || err != nil {
			t.Fatalf("%d %s %v", resp.StatusCode, body, err)
		}
	}
	long := strings.Repeat("many words ", 200)
	ask("/v1/chat/completions", userSays(long, `,"max_tokens":50,"stream":true,"stream_options":{"include_usage":true}`), prefiller)
	p, d := prefill.Stats(), decode.Stats()
	if p.Received != 1 || p.Prefills != 1 || p.Engine.GenerationTokens != 1 || p.Engine.PromptTokens < 400 {
		t.Errorf("the one that computes: %+v", p)
	}
	if d.Remote != 1 || d.Prefills != 0 || d.Engine.PromptTokensReceived < 400 || d.Engine.PromptTokensReceived > p.Engine.PromptTokens {
		t.Errorf("the one that decodes: %+v", d)
	}
	// Of the same prompt, only what it has not got is transferred; of one whose server is gone it computes all itself.
	ask("/v1/completions", `{"prompt":"hello there","max_tokens":2}`, "127.0.0.1:1")
	if st := decode.Stats(); st.Remote != 1 || st.Engine.PromptTokensReceived != d.Engine.PromptTokensReceived {
		t.Errorf("it claims to have been sent a prompt by nobody: %+v", st)
	}
}
