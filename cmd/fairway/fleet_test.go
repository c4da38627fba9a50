package main

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
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/proxy"
	"github.com/fairway-proxy/fairway/proxy/account"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pod is a mock engine on a loopback address of its own.
type pod struct {
	*mock.Server
	address string
	served  chan struct{} // closed when Serve has returned
}

// startPod starts an engine, at address if it is not empty.
func startPod(t testing.TB, address string, c mock.Config) *pod {
	t.Helper()
	if address == "" {
		address = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{mock.New(c), l.Addr().String(), make(chan struct{})}
	go func() {
		p.Serve(l)
		close(p.served)
	}()
	t.Cleanup(p.stop)
	return p
}

// stop ends the engine as SIGKILL would. It may be called again.
func (p *pod) stop() {
	p.Close()
	<-p.served
}

func startPods(t testing.TB, n int, c mock.Config) []*pod {
	pods := make([]*pod, n)
	for i := range pods {
		pods[i] = startPod(t, "", c)
	}
	return pods
}

// fleet is a whole proxy in front of pods, and a client of it.
type fleet struct {
	*app
	url    string
	client *http.Client
	config *file.Config

	accessed bytes.Buffer // its access log; to be read after access.Close
}

// startFleet runs a proxy with one pool of these pods until the test ends.
func startFleet(t testing.TB, pods ...*pod) *fleet {
	t.Helper()
	return startFleetWith(t, func(*file.Config) {}, pods...)
}

// startFleetWith is startFleet with a configuration of its own.
func startFleetWith(t testing.TB, change func(*file.Config), pods ...*pod) *fleet {
	t.Helper()
	c := file.Default()
	c.Listen = file.Listen{HTTP: "127.0.0.1:0"}
	c.World.Scrape.Interval = 20 * time.Millisecond
	c.World.Timeouts.Drain = time.Minute
	c.World.Timeouts.Connect = time.Minute // a machine that is busy may be late, but refuses at once
	pool := proxy.Pool{Name: "pool"}
	for _, p := range pods {
		pool.Endpoints = append(pool.Endpoints, proxy.Endpoint{Address: p.address})
	}
	c.World.Pools = []proxy.Pool{pool}
	change(c)
	f := &fleet{config: c}
	a, err := newApp(c, logs{Logger: slog.New(slog.DiscardHandler), access: account.NewLog(&f.accessed, account.JSON)}, proxy.Config{})
	if err != nil {
		t.Fatal(err)
	}
	f.app, f.url = a, "http://"+a.plain.Addr().String()
	f.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1000}}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.run(ctx) }()
	t.Cleanup(func() {
		f.client.CloseIdleConnections()
		stop()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return f
}

// speakHTTP2 has the client speak HTTP/2 with prior knowledge, all requests on one
// connection.
func (f *fleet) speakHTTP2() {
	var only http.Protocols
	only.SetUnencryptedHTTP2(true)
	f.client.Transport = &http.Transport{Protocols: &only}
}

// waitFor polls until cond holds, and fails the test if it never does.
func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(2 * time.Minute)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never came about: %s", what)
		}
	}
}

// message is one of a chat.
type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// request is a chat completion request.
type request struct {
	Messages  []message `json:"messages"`
	Model     string    `json:"model"`
	MaxTokens int       `json:"max_tokens,omitempty"`
	Stream    bool      `json:"stream"`
}

func (r request) body() io.Reader {
	raw, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	return bytes.NewReader(raw)
}

// answer is what a client got of a streamed answer.
type answer struct {
	status   int
	endpoint string
	receipt  struct {
		ID, Receipt  string
		PromptTokens int    `json:"prompt_tokens"`
		CachedTokens int    `json:"cached_tokens"`
		DecidedBy    string `json:"decided_by"`
		Prefill      string
	}
	text string
	done bool // [DONE] came
	err  string
}

// errRefused marks an answer that is not 200.
var errRefused = errors.New("refused")

// ask sends a request and reads the whole streamed answer.
func (f *fleet) ask(ctx context.Context, r request) (answer, error) {
	var a answer
	r.Stream = true
	r.Model = "mock"
	req, err := http.NewRequestWithContext(ctx, "POST", f.url+"/v1/chat/completions", r.body())
	if err != nil {
		return a, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Fairway-Explain", "1")
	resp, err := f.client.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	a.status = resp.StatusCode
	a.endpoint = resp.Header.Get("X-Fairway-Endpoint")
	if resp.StatusCode != 200 {
		raw, _ := io.ReadAll(resp.Body)
		return a, fmt.Errorf("%w: %d %s", errRefused, resp.StatusCode, raw)
	}
	json.Unmarshal([]byte(resp.Header.Get("X-Fairway-Receipt")), &a.receipt)
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		switch {
		case !ok:
			continue
		case data == "[DONE]":
			a.done = true
			continue
		}
		var event struct {
			Choices []struct {
				Delta struct{ Content string } `json:"delta"`
			} `json:"choices"`
			Error *struct{ Message string } `json:"error"`
		}
		if err := json.Unmarshal([]byte(data), &event); err != nil {
			return a, fmt.Errorf("event %q: %w", data, err)
		}
		if event.Error != nil {
			a.err = event.Error.Message
		}
		for _, c := range event.Choices {
			a.text += c.Delta.Content
		}
	}
	return a, lines.Err()
}

// mustAsk is ask for answers that have to be good.
func (f *fleet) mustAsk(t testing.TB, r request) answer {
	t.Helper()
	a, err := f.ask(t.Context(), r)
	if err != nil || !a.done || a.err != "" {
		t.Fatalf("done %v, error event %q, %v", a.done, a.err, err)
	}
	return a
}

// prose is text of about so many tokens, different for each seed.
func prose(seed, tokens int) string {
	words := []string{"river", "stone", "lantern", "harbor", "winter", "garden", "signal", "copper", "meadow", "engine", "silver", "orchard"}
	var b strings.Builder
	for i := range tokens {
		fmt.Fprintf(&b, "%s%d ", words[(i*7+seed*13+i*i*seed)%len(words)], (seed+i)%10)
	}
	return b.String()
}
