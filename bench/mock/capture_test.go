package mock

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
)

func testdata(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// masks take out of a response what differs between two runs of the same server: ids, times, texts, and counts of tokens.
var masks = []struct {
	re   *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`date: [^\r]*GMT`), "date: D"},
	{regexp.MustCompile(`"(id|item_id)":"(chatcmpl-|cmpl-|modelperm-|resp_|msg_)[0-9a-f]{16}"`), `"$1":"${2}X"`},
	{regexp.MustCompile(`"(content|text|delta)":"(?:[^"\\]|\\.)+"`), `"$1":"T"`},
	{regexp.MustCompile(`"(content|text)":""(},"logprobs":null,"finish_reason":null,"token_ids")`), `"$1":"T"$2`},
	{regexp.MustCompile(`"(created|created_at|sequence_number|(?:prompt|total|completion|cached|created_cache|input|original_input|output)_tokens)":\d+`), `"$1":N`},
	{regexp.MustCompile(`"(token|prompt)":"(?:[^"\\]|\\.)+"`), `"$1":"T"`},
	{regexp.MustCompile(`"(logprob|count)":-?[0-9.e+-]+`), `"$1":N`},
	{regexp.MustCompile(`"(bytes|token_ids|prompt_token_ids|tokens)":\[[0-9,]+\]`), `"$1":[N]`},
	{regexp.MustCompile(`content-length: \d\d+`), "content-length: N"},
	{regexp.MustCompile(`(?m)^[0-9a-f]+\r\n(data: |event: )`), `$1`},
	{regexp.MustCompile(`vllm-0.32.0-[0-9a-f]{8}`), "vllm-0.32.0-F"},
	{regexp.MustCompile(`x-request-id: [0-9a-f]{32}`), "x-request-id: X"},
}

func mask(raw string) string {
	for _, m := range masks {
		raw = m.re.ReplaceAllString(raw, m.with)
	}
	return raw
}

// sortedEvents puts the events of a stream in order, for answers whose choices take turns as they like.
func sortedEvents(raw string) string {
	events := strings.Split(raw, "\r\n")
	sort.Strings(events)
	return strings.Join(events, "\r\n")
}

// collapsed makes one of equal events in a row, for texts whose number of tokens is not what counts.
func collapsed(raw string) string {
	return strings.Join(slices.Compact(strings.Split(raw, "\n\n\r\n")), "\n\n\r\n")
}

// exchangeRaw sends a request and returns the response as it is on the wire, and checks that its framing is right: an event a chunk.
func exchangeRaw(t *testing.T, c *client, raw string) string {
	t.Helper()
	var wire bytes.Buffer
	c.send(raw)
	resp, err := http.ReadResponse(bufio.NewReader(io.TeeReader(oneByte{c.nc}, &wire)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.TransferEncoding) == 0 {
		if _, err := io.ReadAll(resp.Body); err != nil {
			t.Fatal(err)
		}
		return wire.String()
	}
	for !strings.HasSuffix(wire.String(), "\r\n0\r\n\r\n") {
		var b [1]byte
		if _, err := c.nc.Read(b[:]); err != nil {
			t.Fatal(err)
		}
		wire.Write(b[:])
	}
	_, chunks, _ := strings.Cut(wire.String(), "\r\n\r\n")
	for rest := chunks; !strings.HasPrefix(rest, "0\r\n"); {
		size, after, _ := strings.Cut(rest, "\r\n")
		n, err := strconv.ParseInt(size, 16, 32)
		if err != nil || !strings.HasPrefix(after, "data: ") && !strings.HasPrefix(after, "event: ") || strings.Count(after[:n], "\n\n") != 1 {
			t.Fatalf("a chunk is not one event: %q", rest)
		}
		rest = after[n+2:]
	}
	if _, err := io.ReadAll(httputil.NewChunkedReader(strings.NewReader(chunks))); err != nil {
		t.Fatal(err)
	}
	return wire.String()
}

// oneByte keeps a bufio.Reader from reading beyond what it is asked for.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:1]) }

const chat, completions = "/v1/chat/completions", "/v1/completions"

// withLora is the configuration of the server whose captures are about adapters.
func withLora(c *Config) {
	c.Loras, c.LoraUpdates, c.LoraRoot, c.RequestIDHeaders, c.ForceUsage = []string{"ad1"}, true, "./lora/", true, true
}

// captures are requests and what vLLM 0.32.0 said to them.
var captures = []struct {
	name, path string
	raw        string // instead of a POST of NAME.req.json
	capture    string // instead of NAME.resp.txt
	headers    []string
	sort       bool
	collapse   bool
	cfg        func(*Config)
}{
	{name: "chat-stream", path: chat},
	{name: "chat-stream-usage", path: chat, headers: []string{"X-Request-Id: my-req-id-43"}},
	{name: "chat-stream-contusage", path: chat},
	{name: "chat-stream-n2", path: chat, sort: true},
	{name: "chat-nonstream", path: chat},
	{name: "cache-salt", path: chat},
	{name: "chat-orca-TEXT", path: chat, headers: []string{"endpoint-load-metrics-format: TEXT"}},
	{name: "chat-orca-text", path: chat, headers: []string{"endpoint-load-metrics-format: text"}},
	{name: "chat-orca-JSON", path: chat, headers: []string{"endpoint-load-metrics-format: JSON"}},
	{name: "err-no-model", path: chat},
	{name: "err-unknown-field", path: chat},
	{name: "completions", path: completions},
	{name: "completions-tokens", path: completions},
	{name: "completions-stream", path: completions},
	{name: "err-bad-json", path: chat},
	{name: "err-bad-type", path: chat},
	{name: "err-missing-messages", path: chat},
	{name: "err-neg-max", path: chat},
	{name: "err-maxtokens-too-big", path: chat},
	{name: "err-unknown-model", path: chat},
	{name: "err-unknown-model-stream", path: chat},
	{name: "err-too-long", raw: post(chat, userSays(strings.Repeat("The quick brown fox. ", 5000), ""))},
	{name: "err-bad-content-type", raw: strings.Replace(post(chat, `{"model":"tiny","messages":[]}`), "application/json", "text/plain", 1)},
	{name: "chat-http10", raw: strings.Replace(post(chat, `{"model":"tiny","messages":[{"role":"user","content":"hi"}],"max_tokens":4,"stream":true}`), "HTTP/1.1", "HTTP/1.0", 1)},
	{name: "models", raw: get("/v1/models"), capture: "models.txt"},
	{name: "models-lora", raw: get("/v1/models"), capture: "models-lora.txt", cfg: func(c *Config) { withLora(c); c.MaxModelLen = 1024 }},
	{name: "lora-chat-stream", path: chat, cfg: withLora},
	{name: "lora-completions-stream", path: completions, cfg: withLora},
	{name: "lora-load", raw: post("/v1/load_lora_adapter", `{"lora_name":"a","lora_path":"/nope"}`), cfg: withLora},
	{name: "lora-load-off", raw: post("/v1/load_lora_adapter", `{"lora_name":"a","lora_path":"/nope"}`)},
	{name: "chat-stream-logprobs", path: chat},
	{name: "dp-rank-bad", path: chat, headers: []string{"X-data-parallel-rank: 3"}},
	{name: "render", path: chat + "/render"},
	{name: "return-token-ids", path: chat},
	{name: "tokenize", path: "/tokenize"},
	{name: "tokenize-chat", path: "/tokenize"},
	{name: "detokenize", path: "/detokenize"},
	{name: "tokenize-noauth", raw: post("/tokenize", `{}`), capture: "tokenize-noauth.txt", cfg: func(c *Config) { c.APIKey = "secret" }},
	{name: "responses", path: "/v1/responses"},
	{name: "responses-stream", path: "/v1/responses", collapse: true},
	{name: "messages", path: "/v1/messages"},
	{name: "messages-stream", path: "/v1/messages"},
	{name: "count-tokens", path: "/v1/messages/count_tokens"},
	{name: "health", raw: get("/health"), capture: "health.txt"},
	{name: "ping", raw: get("/ping"), capture: "ping.txt"},
	{name: "version", raw: get("/version"), capture: "version.txt"},
	{name: "load", raw: get("/load"), capture: "load.txt"},
	{name: "notfound", raw: get("/nothing"), capture: "notfound.txt"},
	{name: "get-on-chat", raw: get(chat), capture: "get-on-chat.txt"},
	{name: "noauth", raw: get("/v1/models"), capture: "noauth.txt", cfg: func(c *Config) { c.APIKey = "secret" }},
}

// Every shape of answer is, byte for byte, what vLLM 0.32.0 said to the same request.
func TestCaptures(t *testing.T) {
	for _, tt := range captures {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := tiny()
				if tt.cfg != nil {
					tt.cfg(&cfg)
				}
				_, ln := start(t, cfg)
				if tt.raw == "" {
					tt.raw = post(tt.path, testdata(t, tt.name+".req.json"), tt.headers...)
				}
				if tt.capture == "" {
					tt.capture = tt.name + ".resp.txt"
				}
				got, want := mask(exchangeRaw(t, connect(t, ln), tt.raw)), mask(testdata(t, tt.capture))
				if tt.sort {
					got, want = sortedEvents(got), sortedEvents(want)
				}
				if tt.collapse {
					got, want = collapsed(got), collapsed(want)
				}
				if got != want {
					t.Errorf("got:\n%s\nwant:\n%s", got, want)
				}
			})
		})
	}
}
