//go:build e2e && linux

package vllm_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

var client = &http.Client{Timeout: 10 * time.Minute}

// object is a JSON object.
type object map[string]any

// api is one of the ways to ask for a text.
type api struct {
	name, path string
	// body asks for the continuation of a prompt, the same one each time.
	body func(model, prompt string, tokens int) object
	// What the data of a stream's last events begin with: whole, or cut by the loss of its engine.
	end, cut []string
}

var (
	done         = []string{"[DONE]"}
	errorAndDone = []string{`{"error":{`, "[DONE]"}
)

var apis = []api{
	{"chat", "/v1/chat/completions", chatBody, done, errorAndDone},
	{"completions", "/v1/completions", func(model, prompt string, tokens int) object {
		return object{"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
	}, done, errorAndDone},
	{"responses", "/v1/responses", func(model, prompt string, tokens int) object {
		return object{"model": model, "input": prompt, "max_output_tokens": tokens, "temperature": 0}
	}, []string{`{"response":`}, []string{`{"type":"error","code":"fairway_upstream_failed"`}},
	{"messages", "/v1/messages", func(model, prompt string, tokens int) object {
		return object{"model": model, "messages": []message{{"user", prompt}}, "max_tokens": tokens, "temperature": 0}
	}, []string{`{"type":"message_stop"`}, []string{`{"type":"error","error":{"type":"api_error"`}},
}

func chatBody(model, prompt string, tokens int) object {
	return object{"model": model, "messages": []message{{"user", prompt}}, "max_tokens": tokens, "temperature": 0}
}

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// answer is what any of the APIs says in an answer, or in an event of a stream.
type answer struct {
	Choices []struct {
		Message, Delta struct{ Content string }
		Text           string
		FinishReason   string `json:"finish_reason"`
	}
	Output  []struct{ Content []part }
	Content []part
	Delta   json.RawMessage // a string in events of responses, an object in those of messages
	Usage   *struct {
		Prompt     int `json:"prompt_tokens"`
		Completion int `json:"completion_tokens"`
		Details    struct {
			Cached int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	}
	Error *struct{ Message, Type string }
}

type part struct{ Text string }

// text is the generated text, or the event's part of it.
func (a answer) text() string {
	text := ""
	for _, c := range a.Choices {
		text += c.Message.Content + c.Delta.Content + c.Text
	}
	for _, o := range a.Output {
		for _, p := range o.Content {
			text += p.Text
		}
	}
	for _, p := range a.Content {
		text += p.Text
	}
	var delta part
	if json.Unmarshal(a.Delta, &delta.Text) == nil || json.Unmarshal(a.Delta, &delta) == nil {
		text += delta.Text
	}
	return text
}

// response is a response with status 200, read to its end.
type response struct {
	*http.Response
	body []byte
}

func (r response) decode(t *testing.T) (a answer) {
	t.Helper()
	if err := json.Unmarshal(r.body, &a); err != nil {
		t.Fatalf("the answer is %s: %v", r.body, err)
	}
	return a
}

// endpoint is the engine that Fairway says it asked.
func (r response) endpoint() string { return r.Header.Get("x-fairway-endpoint") }

func get(t *testing.T, url string) response {
	t.Helper()
	return do(t, "GET", url, nil)
}

func post(t *testing.T, url string, body object) response {
	t.Helper()
	return do(t, "POST", url, body)
}

func do(t *testing.T, method, url string, body object) response {
	t.Helper()
	resp := send(t, context.Background(), method, url, body)
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s: %s", method, url, resp.Status, content)
	}
	return response{resp, content}
}

func send(t *testing.T, ctx context.Context, method, url string, body object) *http.Response {
	t.Helper()
	resp, err := client.Do(request(t, ctx, method, url, body))
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func request(t *testing.T, ctx context.Context, method, url string, body object) *http.Request {
	t.Helper()
	content, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	if body == nil {
		content = nil
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Fairway-Explain", "1")
	return req
}

// with is the object with one more field.
func (o object) with(name string, value any) object {
	more := object{name: value}
	maps.Copy(more, o)
	return more
}

// stream is a streamed answer whose head has come.
type stream struct {
	response
	api   api
	lines *bufio.Scanner
	later chan []string // gets what is read in the background
}

func openStream(t *testing.T, ctx context.Context, origin string, api api, body object) *stream {
	t.Helper()
	url := origin + api.path
	resp := send(t, ctx, "POST", url, body.with("stream", true))
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		content, _ := io.ReadAll(resp.Body) // as much as there is
		t.Fatalf("POST %s: %s: %s", url, resp.Status, content)
	}
	if kind := resp.Header.Get("content-type"); !strings.HasPrefix(kind, "text/event-stream") {
		t.Fatalf("POST %s: content-type is %q, want text/event-stream", url, kind)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	return &stream{response{resp, nil}, api, lines, nil}
}

// next is the data of the next event. It is false at the end, whether proper or not.
func (s *stream) next() (data string, ok bool) {
	for s.lines.Scan() {
		if data, ok := strings.CutPrefix(s.lines.Text(), "data: "); ok {
			return data, true
		}
	}
	return "", false
}

// awaitText reads until the answer has said something.
func (s *stream) awaitText(t *testing.T) {
	t.Helper()
	for {
		data, ok := s.next()
		if !ok {
			t.Fatalf("the stream of %s ended without any text: %v", s.api.name, s.lines.Err())
		}
		if decodeEvent(t, data).text() != "" {
			return
		}
	}
}

// rest reads the stream to its end.
func (s *stream) rest(t *testing.T) (events []string) {
	t.Helper()
	if s.later == nil {
		s.readOn()
	}
	events = <-s.later
	if err := s.lines.Err(); err != nil {
		t.Errorf("the stream broke: %v", err)
	}
	return events
}

// readOn reads the stream to its end in the background, for rest: who takes nothing for a minute is cut off.
func (s *stream) readOn() {
	s.later = make(chan []string, 1)
	go func() {
		var events []string
		for data, ok := s.next(); ok; data, ok = s.next() {
			events = append(events, data)
		}
		s.later <- events
	}()
}

// endsWith tells whether the last events begin with these.
func endsWith(events, beginnings []string) bool {
	if len(events) < len(beginnings) {
		return false
	}
	return slices.EqualFunc(events[len(events)-len(beginnings):], beginnings, strings.HasPrefix)
}

// last is the last few events, to be told.
func last(events []string) string { return strings.Join(events[max(0, len(events)-3):], "\n") }

func decodeEvent(t *testing.T, data string) (a answer) {
	t.Helper()
	if data == "[DONE]" {
		return a
	}
	if err := json.Unmarshal([]byte(data), &a); err != nil {
		t.Fatalf("the event is %s: %v", data, err)
	}
	return a
}
