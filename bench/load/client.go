package load

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// newTransport makes a connection whenever none is idle, so that requests never queue in the player, and gives up an idle one before
// a server does that closes them after 5 s, as uvicorn.
func newTransport() *http.Transport {
	return &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 1 << 16,
		IdleConnTimeout:     4 * time.Second,
		DisableCompression:  true,
		WriteBufferSize:     64 << 10,
		ReadBufferSize:      16 << 10,
	}
}

// client knows the server and how to address it.
type client struct {
	transport http.RoundTripper
	base      string // URL up to and without /v1
	header    http.Header
	explain   bool
}

// do sends a request, with the objective that it names, if any. Redirects are not followed: a server under test that redirects is misaddressed.
func (c *client) do(ctx context.Context, method, path, objective string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for name, values := range c.header {
		req.Header[http.CanonicalHeaderKey(name)] = values
	}
	req.Header.Set("User-Agent", "fairway-loadtest")
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	if objective != "" {
		req.Header.Set("X-Gateway-Inference-Objective", objective)
	}
	if c.explain {
		req.Header.Set("X-Fairway-Explain", "1")
	}
	return c.transport.RoundTrip(req)
}

// firstModel asks the server what it serves.
func (c *client) firstModel(ctx context.Context) (string, error) {
	const path = "/v1/models"
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, path, "", nil)
	if err != nil {
		return "", fmt.Errorf("asking %s%s for a model: %w; is the server up?", c.base, path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("asking %s%s for a model: status %d, %s; name the model instead", c.base, path, resp.StatusCode, excerpt(resp.Body))
	}
	var list struct {
		Data []struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 8<<20)).Decode(&list); err != nil {
		return "", fmt.Errorf("asking %s%s for a model: %w; name the model instead", c.base, path, err)
	}
	if len(list.Data) == 0 {
		return "", fmt.Errorf("%s%s lists no model; name one", c.base, path)
	}
	return list.Data[0].ID, nil
}

// message is one of a chat.
type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// body writes out a request; adapter is the model to ask for, "" the configured one.
func (p *player) body(adapter string, messages []message, answerTokens int) []byte {
	type streamOptions struct {
		IncludeUsage bool `json:"include_usage"`
	}
	req := struct {
		Model         string         `json:"model"`
		Messages      []message      `json:"messages"`
		MaxTokens     int            `json:"max_tokens"`
		Stream        bool           `json:"stream"`
		StreamOptions *streamOptions `json:"stream_options,omitempty"`
		IgnoreEOS     bool           `json:"ignore_eos,omitempty"`
	}{Model: cmp.Or(adapter, p.cfg.Model), Messages: messages, MaxTokens: answerTokens, Stream: true, IgnoreEOS: p.cfg.IgnoreEOS}
	if !p.cfg.OmitUsage {
		req.StreamOptions = &streamOptions{true}
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(req); err != nil {
		panic(err) // strings, numbers and booleans always encode
	}
	return b.Bytes()
}

// excerpt is the beginning of an error's body, on one line.
func excerpt(r io.Reader) string {
	b, _ := io.ReadAll(io.LimitReader(r, 512))
	return strings.Join(strings.Fields(strings.ToValidUTF8(string(b), "?")), " ")
}
