package mock

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/fairway-proxy/fairway/bench/engine"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pipes is a listener whose connections are in memory, so that a synctest bubble knows when everybody waits.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (p *pipes) dial() (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-p.done:
		return nil, errors.New("connection refused")
	}
}

// scarce is a listener that has no file left for the first connections.
type scarce struct {
	*pipes
	failures int
}

func (s *scarce) Accept() (net.Conn, error) {
	if s.failures--; s.failures >= 0 {
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return s.pipes.Accept()
}

// A server that could not accept for want of files does so later.
func TestAcceptsAgainWhenThereAreFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ln := New(tiny()), &scarce{newPipes(), 3}
		served := make(chan error, 1)
		go func() { served <- s.Serve(ln) }()
		c, err := ln.dial()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		s.Close()
		if err := <-served; err != ErrClosed {
			t.Error(err)
		}
	})
}

// tiny is the configuration of the server the captures are of.
func tiny() Config {
	p, err := engine.ProfileNamed("tiny-cpu")
	if err != nil {
		panic(err)
	}
	return Config{Model: "tiny", Profile: p}
}

// start serves cfg on pipes until the test ends.
func start(t *testing.T, cfg Config) (*Server, *pipes) {
	t.Helper()
	s, ln := New(cfg), newPipes()
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != ErrClosed {
			t.Errorf("Serve returned %v", err)
		}
	})
	return s, ln
}

// client is a connection and a reader over it.
type client struct {
	t  *testing.T
	nc net.Conn
	br *bufio.Reader
}

func connect(t *testing.T, ln *pipes) *client {
	t.Helper()
	nc, err := ln.dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return &client{t, nc, bufio.NewReader(nc)}
}

func (c *client) send(raw string) {
	c.t.Helper()
	if _, err := io.WriteString(c.nc, raw); err != nil {
		c.t.Fatal(err)
	}
}

func post(path, body string, headers ...string) string {
	r := "POST " + path + " HTTP/1.1\r\nHost: mock\r\nContent-Type: application/json\r\n"
	for _, h := range headers {
		r += h + "\r\n"
	}
	return r + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)
}

func get(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: mock\r\n\r\n" }

// read reads a response to its end.
func (c *client) read() (*http.Response, string) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("after %q: %v", body, err)
	}
	return resp, string(body)
}

func (c *client) ask(raw string) (*http.Response, string) {
	c.t.Helper()
	c.send(raw)
	return c.read()
}

// readEvent reads one chunk of a stream, the response's head included if it comes first.
func (c *client) readEvent() string {
	c.t.Helper()
	var b bytes.Buffer
	for {
		line, err := c.br.ReadString('\n')
		if err != nil {
			c.t.Fatalf("after %q: %v", b.String(), err)
		}
		b.WriteString(line)
		if strings.HasPrefix(line, "data: ") {
			return line
		}
	}
}

// answer is what the tests look at in a chat completion.
type answer struct {
	ID      string
	Model   string
	Choices []struct {
		Index        int
		Text         string
		Message      struct{ Content string }
		FinishReason string  `json:"finish_reason"`
		StopReason   *string `json:"stop_reason"`
	}
	Usage struct {
		PromptTokens     int `json:"prompt_tokens"`
		CompletionTokens int `json:"completion_tokens"`
		Details          *struct {
			Cached int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	}
}

func (c *client) chat(body string, headers ...string) answer {
	c.t.Helper()
	resp, text := c.ask(post("/v1/chat/completions", body, headers...))
	var a answer
	if err := json.Unmarshal([]byte(text), &a); err != nil || resp.StatusCode != http.StatusOK {
		c.t.Fatalf("%s: %s", resp.Status, text)
	}
	return a
}

func userSays(text, more string) string {
	return fmt.Sprintf(`{"model":"tiny","messages":[{"role":"user","content":%q}]%s}`, text, more)
}
