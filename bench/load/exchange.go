package load

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"
)

const (
	maxEvent = 4 << 20         // bytes of one line of a stream
	maxRest  = 64 << 10        // bytes after [DONE]
	restTime = 2 * time.Second // for what comes after [DONE]
)

// exchange is one request and its answer. It belongs to one goroutine.
type exchange struct {
	client   *client
	start    time.Time
	rec      *Record
	progress *Progress
	cancel   context.CancelFunc // of the request
	answer   strings.Builder
	events   int             // with content
	gaps     []time.Duration // between them
	finish   string
}

func (x *exchange) now() time.Duration { return time.Since(x.start) }

// run sends the request, with the objective that it names, if any, and reads the whole answer into the record.
func (x *exchange) run(ctx context.Context, objective string, body []byte) {
	resp, err := x.client.do(ctx, http.MethodPost, "/v1/chat/completions", objective, body)
	if err != nil {
		x.end(ctx, ErrConnect, err)
		return
	}
	defer resp.Body.Close()
	rec := x.rec
	rec.Status = resp.StatusCode
	rec.Endpoint = resp.Header.Get("X-Fairway-Endpoint")
	rec.RequestID = resp.Header.Get("X-Request-Id")
	if resp.StatusCode != http.StatusOK {
		x.end(ctx, statusClass(resp.StatusCode), errors.New(excerpt(resp.Body)))
		return
	}
	if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); kind != "text/event-stream" {
		x.end(ctx, ErrMalformed, fmt.Errorf("the answer is %q and no stream: %s", kind, excerpt(resp.Body)))
		return
	}
	class, err := x.read(resp.Body)
	x.end(ctx, class, err)
	if class == "" {
		// The connection can be used again only if it is read to its end, which ought to be here already.
		timer := time.AfterFunc(restTime, x.cancel)
		io.Copy(io.Discard, io.LimitReader(resp.Body, maxRest))
		timer.Stop()
	}
}

// end sets the record's end and, if it ended badly, why.
func (x *exchange) end(ctx context.Context, class ErrorClass, err error) {
	rec := x.rec
	rec.End = x.now()
	rec.Finish = x.finish
	if rec.CompletionTokens == 0 {
		rec.CompletionTokens = x.events
	}
	if class == "" {
		return
	}
	if ctx.Err() != nil {
		if class = ErrCancelled; errors.Is(context.Cause(ctx), errTimeout) {
			class = ErrTimeout
		}
	}
	rec.Error = class
	if err != nil {
		rec.Detail = err.Error()
	}
}

// event is what is read of a chunk of the stream.
type event struct {
	Choices []struct {
		Delta struct {
			Content          string `json:"content"`
			Reasoning        string `json:"reasoning"`         // vLLM
			ReasoningContent string `json:"reasoning_content"` // older vLLM, and others
		} `json:"delta"`
		FinishReason string `json:"finish_reason"`
	} `json:"choices"`
	Usage *struct {
		PromptTokens     int `json:"prompt_tokens"`
		CompletionTokens int `json:"completion_tokens"`
		Details          struct {
			CachedTokens *int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	} `json:"usage"`
	Error json.RawMessage `json:"error"`
}

// read reads the stream up to [DONE] and tells what was wrong with it, if anything was.
func (x *exchange) read(body io.Reader) (ErrorClass, error) {
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 0, 8<<10), maxEvent)
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data:"))
		if !ok {
			continue // an empty line, a comment, a field that OpenAI's streams do not use
		}
		data = bytes.TrimSpace(data)
		if string(data) == "[DONE]" {
			if x.finish == "abort" {
				return ErrAbort, errors.New("the server gave the answer up")
			}
			return "", nil
		}
		var e event
		if err := json.Unmarshal(data, &e); err != nil {
			return ErrMalformed, fmt.Errorf("an event that cannot be read: %w: %.200q", err, data)
		}
		if len(e.Error) > 0 && string(e.Error) != "null" {
			return ErrEvent, errors.New(excerpt(bytes.NewReader(e.Error)))
		}
		x.take(&e)
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return ErrMalformed, fmt.Errorf("an event longer than %d bytes", maxEvent)
	} else if err != nil {
		return ErrCut, err
	}
	return ErrCut, errors.New("the stream ended without [DONE]")
}

// take notes what an event says, and when.
func (x *exchange) take(e *event) {
	rec := x.rec
	if u := e.Usage; u != nil {
		rec.PromptTokens, rec.CompletionTokens = u.PromptTokens, u.CompletionTokens
		if u.Details.CachedTokens != nil {
			rec.CachedTokens = u.Details.CachedTokens
		}
	}
	if len(e.Choices) == 0 {
		return
	}
	choice := &e.Choices[0]
	if choice.FinishReason != "" {
		x.finish = choice.FinishReason
	}
	d := &choice.Delta
	if d.Content == "" && d.Reasoning == "" && d.ReasoningContent == "" {
		return // vLLM's first event has the role only
	}
	x.answer.WriteString(d.Content)
	now := x.now()
	if x.events == 0 {
		rec.FirstToken = now
	} else {
		gap := now - rec.LastToken
		x.gaps = append(x.gaps, gap)
		rec.MaxGap = max(rec.MaxGap, gap)
	}
	rec.LastToken = now
	x.events++
	x.progress.Tokens.Add(1)
}
