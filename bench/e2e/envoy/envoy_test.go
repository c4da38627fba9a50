//go:build e2e

// Package envoy_test runs a real Envoy, set up as gateways of the Gateway API
// Inference Extension set it up, in front of `fairway epp`.
package envoy_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// chat sends a chat completion request and gives its answer, not yet read.
func chat(t *testing.T, url string, stream bool, tokens int, messages ...message) *http.Response {
	t.Helper()
	body, err := json.Marshal(map[string]any{"messages": messages, "model": "m", "stream": stream, "max_tokens": tokens, "ignore_eos": true})
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequest("POST", url+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Fairway-Explain", "1")
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func text(t *testing.T, r *http.Response) string {
	t.Helper()
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatalf("status %d: after %q: %v", r.StatusCode, body, err)
	}
	return string(body)
}

// A ten-turn conversation stays on the engine that has it, streaming and not, and
// the picker learns from the answers that pass it.
func TestConversation(t *testing.T) {
	for _, s := range []setup{{}, {request: "BUFFERED", response: "STREAMED"}} {
		t.Run(fmt.Sprintf("%+v", s), func(t *testing.T) {
			engines := startEngines(t, 3)
			p := startPicker(t, "", addressesOf(engines))
			url, _ := startEnvoy(t, s, addressesOf(engines), p)
			history := []message{{"system", strings.Repeat("You are a patient teacher. ", 200)}}
			first := ""
			for turn := range 10 {
				history = append(history, message{"user", fmt.Sprintf("Question %d: %s", turn, strings.Repeat("why? ", 20))})
				r := chat(t, url, turn%2 == 0, 20, history...)
				answer := text(t, r)
				if r.StatusCode != 200 {
					t.Fatalf("turn %d: status %d: %s", turn, r.StatusCode, answer)
				}
				where := r.Header.Get("X-Fairway-Endpoint")
				if first == "" {
					first = where
				}
				if where != first || where == "" {
					t.Errorf("turn %d went to %q, the first to %q", turn, where, first)
				}
				if turn%2 == 0 && (!strings.HasSuffix(answer, "data: [DONE]\n\n") || strings.Contains(answer, `"usage"`)) {
					t.Errorf("turn %d: not a whole stream without the usage that nobody asked for: %s", turn, answer)
				}
				history = append(history, message{"assistant", strings.Repeat("Because. ", 30)})
			}
			for kind, most := range map[string]float64{"prompt": 1, "cached": 0.7} {
				got := process.Metric(t, "http://"+p.metrics+"/metrics", "fairway_tokens_total", fmt.Sprintf("kind=%q", kind), `model="m"`)
				var want float64
				for _, e := range engines {
					if kind == "prompt" {
						want += e.gauge(t, "vllm:prompt_tokens_total")
					} else {
						want += e.gauge(t, "vllm:prefix_cache_hits_total")
					}
				}
				if got != want || want < most {
					t.Errorf("the picker counted %v %s tokens, the engines %v", got, kind, want)
				}
			}
			process.Await(t, patience, "no request is counted as in flight", func() bool {
				return process.Metric(t, "http://"+p.metrics+"/metrics", "fairway_endpoint_requests_in_flight") == 0
			})
		})
	}
}

// Bodies of 1 KB to 32 MB come to the engine as they were sent.
func TestBodies(t *testing.T) {
	var mu sync.Mutex
	sums := make(map[string][32]byte) // by request id, of what the engine got
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	engine := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		if _, err := io.Copy(h, r.Body); err == nil && r.Method == "POST" {
			mu.Lock()
			sums[r.Header.Get("X-Request-Id")] = [32]byte(h.Sum(nil))
			mu.Unlock()
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"choices":[]}`)
	})}
	go engine.Serve(l)
	t.Cleanup(func() { engine.Close() })
	endpoint := l.Addr().String()

	for _, s := range []setup{{}, {request: "BUFFERED", response: "BUFFERED"}} {
		t.Run(fmt.Sprintf("%+v", s), func(t *testing.T) {
			url, _ := startEnvoy(t, s, []string{endpoint}, startPicker(t, "", []string{endpoint}))
			for _, size := range []int{1 << 10, 16 << 10, 220 << 10, 1 << 20, 8 << 20, 32 << 20} {
				for _, chunked := range []bool{false, true} {
					prompt := make([]byte, size/2)
					rand.NewChaCha8([32]byte{byte(size)}).Read(prompt)
					body := fmt.Appendf(nil, `{"messages":[{"role":"user","content":"%x"}],"model":"m"}`, prompt)
					var reader io.Reader = bytes.NewReader(body)
					if chunked {
						reader = io.MultiReader(reader) // hides its length
					}
					r, err := http.NewRequest("POST", url+"/v1/chat/completions", reader)
					if err != nil {
						t.Fatal(err)
					}
					r.Header.Set("Content-Type", "application/json")
					id := fmt.Sprintf("%d-%v-%s", size, chunked, s.request)
					r.Header.Set("X-Request-Id", id)
					answer, err := http.DefaultClient.Do(r)
					if err != nil {
						t.Fatal(err)
					}
					if got := text(t, answer); answer.StatusCode != 200 || got != `{"choices":[]}` {
						t.Errorf("%d bytes, chunked %v: status %d: %s", size, chunked, answer.StatusCode, got)
						continue
					}
					mu.Lock()
					if sums[id] != sha256.Sum256(body) {
						t.Errorf("%d bytes, chunked %v: the engine got another body", size, chunked)
					}
					mu.Unlock()
				}
			}
		})
	}
}

// What the picker refuses, the client hears in OpenAI's form.
func TestRefusals(t *testing.T) {
	engines := startEngines(t, 1)
	url, _ := startEnvoy(t, setup{}, addressesOf(engines), startPicker(t, "", addressesOf(engines)))
	for _, tt := range []struct {
		body   string
		status int
		kind   string
	}{
		{`{"model":"m","messages":[`, 400, "fairway_bad_request"},
		{`{"model":7,"messages":[]}`, 400, "fairway_bad_request"},
		{`{"model":"nobody","messages":[{"role":"user","content":"x"}]}`, 404, "NotFoundError"}, // the engine's own
	} {
		r, err := http.Post(url+"/v1/chat/completions", "application/json", strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		var e struct{ Error struct{ Type string } }
		answer := text(t, r)
		if err := json.Unmarshal([]byte(answer), &e); err != nil || r.StatusCode != tt.status || e.Error.Type != tt.kind {
			t.Errorf("%s: status %d: %s", tt.body, r.StatusCode, answer)
		}
	}
}

// Only endpoints of the subset that Envoy gives are named; where none is, the
// answer is 503 at once.
func TestSubset(t *testing.T) {
	engines := startEngines(t, 2)
	p := startPicker(t, "", addressesOf(engines))
	url, _ := startEnvoy(t, setup{subset: engines[1].address}, addressesOf(engines), p)
	for i := range 20 {
		r := chat(t, url, false, 1, message{"user", fmt.Sprint(i)})
		if answer := text(t, r); r.StatusCode != 200 || r.Header.Get("X-Fairway-Endpoint") != engines[1].address {
			t.Fatalf("status %d from %s: %s", r.StatusCode, r.Header.Get("X-Fairway-Endpoint"), answer)
		}
	}
	url, _ = startEnvoy(t, setup{subset: process.FreeAddress()}, addressesOf(engines), p)
	r := chat(t, url, false, 1, message{"user", "x"})
	if answer := text(t, r); r.StatusCode != 503 || !strings.Contains(answer, "fairway_no_endpoint") {
		t.Errorf("status %d: %s", r.StatusCode, answer)
	}
}

// With a list of endpoints, Envoy turns to the next where the first takes no connection.
func TestFallback(t *testing.T) {
	engines := startEngines(t, 2)
	p := startPicker(t, "", addressesOf(engines), "--fallbacks", "1")
	url, _ := startEnvoy(t, setup{override: true}, addressesOf(engines), p)
	warm := message{"user", strings.Repeat("The same prompt every time. ", 200)}
	where := ""
	for range 3 {
		r := chat(t, url, false, 1, warm)
		where = r.Header.Get("X-Fairway-Endpoint")
		text(t, r)
	}
	for _, e := range engines {
		if e.address == where {
			e.End(syscall.SIGKILL)
		}
	}
	// From the first moment on, while the picker cannot know yet.
	for i := range 50 {
		r := chat(t, url, false, 1, warm)
		if answer := text(t, r); r.StatusCode != 200 {
			t.Fatalf("request %d after the engine's death: status %d: %s", i, r.StatusCode, answer)
		}
	}
}

// The client's leaving ends the engine's work, and is counted.
func TestClientLeaves(t *testing.T) {
	engines := startEngines(t, 1)
	p := startPicker(t, "", addressesOf(engines))
	url, _ := startEnvoy(t, setup{}, addressesOf(engines), p)
	r := chat(t, url, true, 100_000, message{"user", "Go on for ever."})
	if _, err := io.ReadFull(r.Body, make([]byte, 500)); err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	process.Await(t, patience, "the engine has stopped", func() bool { return engines[0].gauge(t, "vllm:num_requests_running") == 0 })
	process.Await(t, patience, "the picker has let go", func() bool {
		return process.Metric(t, "http://"+p.metrics+"/metrics", "fairway_endpoint_requests_in_flight") == 0
	})
}

// Two pickers that know nothing of each other send a prompt that is new to both to the
// same engine.
func TestReplicasAgree(t *testing.T) {
	engines := startEngines(t, 4)
	var urls []string
	for range 2 {
		p := startPicker(t, "", addressesOf(engines), "--replicas", "2")
		url, _ := startEnvoy(t, setup{}, addressesOf(engines), p)
		urls = append(urls, url)
	}
	used := make(map[string]bool)
	same := 0
	const prompts = 20
	for i := range prompts {
		prompt := message{"user", strings.Repeat(fmt.Sprintf("Document %d says so. ", i), 300)}
		var where [2]string
		for j, url := range urls {
			r := chat(t, url, false, 1, prompt)
			if answer := text(t, r); r.StatusCode != 200 {
				t.Fatalf("status %d: %s", r.StatusCode, answer)
			}
			where[j] = r.Header.Get("X-Fairway-Endpoint")
		}
		used[where[0]] = true
		if where[0] == where[1] {
			same++
		}
	}
	if same < prompts*3/4 || len(used) < 2 {
		t.Errorf("%d of %d prompts went to one engine each, %d engines were used", same, prompts, len(used))
	}
}

// Fairway asks Fairway: a proxy whose pool names a picker, and that picker, over TLS
// with a certificate that it made up.
func TestBothEnds(t *testing.T) {
	engines := startEngines(t, 3)
	p := startPicker(t, "", addressesOf(engines), "--secure-serving")
	for _, mode := range []string{"FULL_DUPLEX_STREAMED", "BUFFERED"} {
		listen, metrics := process.FreeAddress(), process.FreeAddress()
		config := filepath.Join(t.TempDir(), "fairway.yaml")
		var endpoints []string
		for _, e := range engines {
			endpoints = append(endpoints, "http://"+e.address)
		}
		yaml := fmt.Sprintf("listen: {http: %q, metrics: %q, admin: %q}\npools:\n  - name: llama\n    endpoints: [%s]\n    picker: {address: %q, body_mode: %s, answers: body, timeout: 30s}\n",
			listen, metrics, process.FreeAddress(), strings.Join(endpoints, ", "), p.address, mode)
		if err := os.WriteFile(config, []byte(yaml), 0o644); err != nil {
			t.Fatal(err)
		}
		start(t, "http://"+metrics+"/healthz/ready", filepath.Join(os.Getenv("E2E_BIN"), "fairway"), "serve", "--config", config)
		warm := message{"user", strings.Repeat("The same prompt every time. ", 3000)}
		first := ""
		for i := range 6 {
			r := chat(t, "http://"+listen, i%2 == 0, 20, warm)
			answer := text(t, r)
			if r.StatusCode != 200 || i%2 == 0 && !strings.HasSuffix(answer, "data: [DONE]\n\n") {
				t.Fatalf("%s: status %d: %s", mode, r.StatusCode, answer)
			}
			where := r.Header.Get("X-Fairway-Endpoint")
			if first == "" {
				first = where
			}
			if where != first {
				t.Errorf("%s: request %d went to %s, the first to %s", mode, i, where, first)
			}
		}
		if n := process.Metric(t, "http://"+metrics+"/metrics", "fairway_own_picker_requests_total", `outcome="named"`); n != 6 {
			t.Errorf("%s: the picker named an endpoint for %v requests of 6", mode, n)
		}
	}
	process.Await(t, patience, "the picker counts no request as in flight", func() bool {
		return process.Metric(t, "http://"+p.metrics+"/metrics", "fairway_endpoint_requests_in_flight") == 0
	})
	if process.Metric(t, "http://"+p.metrics+"/metrics", "fairway_tokens_total") == 0 {
		t.Error("the picker learned no tokens from the answers that it was told of")
	}
}

// Two pickers; one after the other is stopped and started again, while clients go
// on asking: no request is lost.
func TestRestart(t *testing.T) {
	engines := startEngines(t, 3)
	pickers := []*picker{startPicker(t, "", addressesOf(engines), "--replicas", "2"), startPicker(t, "", addressesOf(engines), "--replicas", "2")}
	url, healthy := startEnvoy(t, setup{}, addressesOf(engines), pickers...)

	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var whole atomic.Int64
	for i := range 8 {
		clients.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				r := chat(t, url, n%2 == 0, 50, message{"user", fmt.Sprintf("%d %d %s", i, n/8, strings.Repeat("and so on ", 50))})
				answer := text(t, r)
				if r.StatusCode != 200 || n%2 == 0 && !strings.HasSuffix(answer, "data: [DONE]\n\n") {
					t.Errorf("status %d: %s", r.StatusCode, answer)
				} else {
					whole.Add(1)
				}
			}
		})
	}
	for range 3 {
		for i, p := range pickers {
			before := whole.Load()
			process.Await(t, patience, "requests flow", func() bool { return whole.Load() > before+100 })
			p.End(syscall.SIGTERM)
			before = whole.Load()
			process.Await(t, patience, "requests flow past the picker that is gone", func() bool { return whole.Load() > before+100 })
			pickers[i] = startPicker(t, p.address, addressesOf(engines), "--replicas", "2")
			healthy(len(pickers))
		}
	}
	stop()
	clients.Wait()
	t.Logf("%d requests, 6 restarts", whole.Load())
}
