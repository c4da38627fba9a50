//go:build e2e

package soak_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// A question is a prompt of which it is known what the engines answer: mock engines of one seed give
// the same request the same answer.
type question struct {
	prompt string
	tokens int    // of the answer
	text   string // of the answer
}

func (q *question) body(model string, stream bool) []byte {
	body, err := json.Marshal(map[string]any{
		"model": model, "messages": []map[string]string{{"role": "user", "content": q.prompt}}, "max_tokens": q.tokens, "stream": stream,
	})
	if err != nil {
		panic(err)
	}
	return body
}

const (
	groups   = 24   // beginnings that prompts share
	perGroup = 20   // prompts of each
	shared   = 1200 // words of a beginning
	own      = 500  // words of what is a prompt's own
)

// known are the questions, once they have been answered.
var known []question

// ask makes the questions, and has an engine that does nothing else, and is fast, answer them.
func ask(t *testing.T) []question {
	t.Helper()
	if known != nil {
		return known
	}
	address := process.FreeAddress()
	log := logFile(t, t.TempDir()+"/reference.log")
	engine := start(t, log, "http://"+address+"/health", program("mockvllm"), "--listen", address, "--speed", "500")
	defer engine.End(9)
	random := rand.New(rand.NewPCG(13, 1))
	questions := make([]question, groups*perGroup)
	for g := range groups {
		beginning := prose(random, shared)
		for i := range perGroup {
			questions[g*perGroup+i] = question{prompt: beginning + prose(random, own), tokens: 24 + random.IntN(60)}
		}
	}
	var wg sync.WaitGroup
	next := make(chan *question)
	for range 8 {
		wg.Go(func() {
			for q := range next {
				q.text = answerOf(t, "http://"+address, q)
			}
		})
	}
	for i := range questions {
		next <- &questions[i]
	}
	close(next)
	wg.Wait()
	texts := map[string]bool{}
	for i := range questions {
		texts[questions[i].text] = true
	}
	if len(texts) != len(questions) || texts[""] {
		t.Fatalf("%d questions have %d answers: a mixed-up one would not be seen", len(questions), len(texts))
	}
	known = questions
	return questions
}

func answerOf(t *testing.T, url string, q *question) string {
	r, err := http.Post(url+"/v1/chat/completions", "application/json", bytes.NewReader(q.body("mock", false)))
	if err != nil {
		t.Error(err)
		return ""
	}
	defer r.Body.Close()
	text, err := wholeText(r.Body)
	if err != nil {
		t.Error(err)
	}
	return text
}

var wordList = strings.Fields("river stone lantern harbor winter garden signal copper meadow engine silver orchard letter market window bridge doctor table")

// prose is so many words that nobody else gets.
func prose(random *rand.Rand, words int) string {
	var b strings.Builder
	for range words {
		b.WriteString(wordList[random.IntN(len(wordList))])
		b.WriteByte(' ')
	}
	return b.String()
}

// wholeText reads an answer that does not stream.
func wholeText(body io.Reader) (string, error) {
	raw, err := io.ReadAll(body)
	if err != nil {
		return "", err
	}
	var answer struct {
		Choices []struct {
			Message struct{ Content string } `json:"message"`
			Finish  string                   `json:"finish_reason"`
		} `json:"choices"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return "", fmt.Errorf("answer %q: %w", clip(raw), err)
	}
	if len(answer.Choices) != 1 || answer.Choices[0].Finish == "" {
		return "", fmt.Errorf("answer %q: not one choice that has ended", clip(raw))
	}
	return answer.Choices[0].Message.Content, nil
}

func clip(b []byte) []byte { return b[:min(len(b), 300)] }

// An outcome is how a request ended, for its client.
type outcome struct {
	id         string
	start, end time.Time
	ttft       time.Duration // 0: no token came, or it did not stream
	status     int           // 0: no answer
	stream     bool
	text       string // as far as it came
	left       bool   // the client did, of its own will
	done       bool   // the answer came to its end
	err        error  // what kept it from that
}

// client sends requests and reads their answers.
type client struct {
	url  string
	http *http.Client
	seq  atomic.Int64
}

func newClient(url string) *client {
	return &client{url: url, http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4000, IdleConnTimeout: 2 * time.Second}}}
}

var errLeft = errors.New("left")

// ask sends a question and reads the answer; after leave events of a stream it leaves, unless that is 0.
func (c *client) ask(ctx context.Context, q *question, model string, stream bool, leave int) (o outcome) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o.id, o.stream, o.start = fmt.Sprintf("soak-%d-%d", os.Getpid(), c.seq.Add(1)), stream, time.Now()
	defer func() { o.end = time.Now() }()
	req, err := http.NewRequestWithContext(ctx, "POST", c.url+"/v1/chat/completions", bytes.NewReader(q.body(model, stream)))
	if err != nil {
		o.err = err
		return o
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Request-Id", o.id)
	r, err := c.http.Do(req)
	if err != nil {
		o.err = err
		return o
	}
	defer r.Body.Close()
	o.status = r.StatusCode
	switch {
	case r.StatusCode != 200:
		raw, _ := io.ReadAll(r.Body)
		o.err = fmt.Errorf("status %d: %s", r.StatusCode, clip(raw))
	case stream:
		o.err = o.readEvents(r.Body, leave)
		o.left = o.err == errLeft
	default:
		o.text, o.err = wholeText(r.Body)
	}
	o.done = o.err == nil
	return o
}

// readEvents reads a stream to its end.
func (o *outcome) readEvents(body io.Reader, leave int) error {
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 1<<20)
	var text strings.Builder
	finished, done, events := false, false, 0
	defer func() { o.text = text.String() }()
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		switch {
		case lines.Text() == "":
			continue
		case !ok:
			return fmt.Errorf("line %q is no event", clip(lines.Bytes()))
		case done:
			return fmt.Errorf("%q after the end", clip(lines.Bytes()))
		case data == "[DONE]":
			done = true
			continue
		}
		var event struct {
			Choices []struct {
				Delta  struct{ Content string } `json:"delta"`
				Finish string                   `json:"finish_reason"`
			} `json:"choices"`
			Error *struct{ Type, Message string } `json:"error"`
		}
		if err := json.Unmarshal([]byte(data), &event); err != nil {
			return fmt.Errorf("event %q: %w", clip([]byte(data)), err)
		}
		switch {
		case event.Error != nil:
			return fmt.Errorf("%s: %s", event.Error.Type, event.Error.Message)
		case len(event.Choices) != 1:
			return fmt.Errorf("event %q has not one choice", clip([]byte(data)))
		case finished:
			return fmt.Errorf("event %q after the last", clip([]byte(data)))
		}
		if content := event.Choices[0].Delta.Content; content != "" {
			if o.ttft == 0 {
				o.ttft = time.Since(o.start)
			}
			text.WriteString(content)
		}
		finished = event.Choices[0].Finish != ""
		if events++; events == leave {
			return errLeft
		}
	}
	switch {
	case lines.Err() != nil:
		return lines.Err()
	case !done || !finished:
		return fmt.Errorf("the stream ended early: last event %v, [DONE] %v", finished, done)
	}
	return nil
}

// traffic is questions that come at random times, whatever becomes of those before.
type traffic struct {
	client    *client
	questions []question
	rate      float64 // requests a second
	asked     float64 // share for the model that another picker picks for
	leave     float64 // share of the streams whose client leaves
	told      func(q *question, o *outcome)
}

// run sends until ctx is done, and returns when every answer has ended.
func (f *traffic) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	next := time.Now()
	for {
		next = next.Add(time.Duration(rand.ExpFloat64() / f.rate * float64(time.Second)))
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(next)):
		}
		q := &f.questions[rand.IntN(len(f.questions))]
		model, stream, leave := "mock", rand.IntN(3) > 0, 0
		if rand.Float64() < f.asked {
			model = "asked"
		}
		if stream && rand.Float64() < f.leave {
			leave = 1 + rand.IntN(20)
		}
		wg.Go(func() {
			limit, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			o := f.client.ask(limit, q, model, stream, leave)
			f.told(q, &o)
		})
	}
}

// saturate finds how many requests a second pass when so many are always under way.
func saturate(c *client, questions []question, concurrency int, warm, measured time.Duration) float64 {
	var done atomic.Int64
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range concurrency {
		wg.Go(func() {
			for ctx.Err() == nil {
				if o := c.ask(ctx, &questions[rand.IntN(len(questions))], "mock", true, 0); o.done {
					done.Add(1)
				}
			}
		})
	}
	time.Sleep(warm)
	before := done.Load()
	time.Sleep(measured)
	rate := float64(done.Load()-before) / measured.Seconds()
	stop()
	wg.Wait()
	return rate
}
