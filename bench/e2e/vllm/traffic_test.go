//go:build e2e && linux

package vllm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// testConversation compares what the engines find cached during a conversation: each turn sent through Fairway, and
// the turns of a conversation of the same length sent to the engines in turn.
func testConversation(t *testing.T, f *fleet) {
	const turns, blockTokens = 10, 32
	var home string
	last := 0
	through := converse(t, "Ahab", turns, func(turn int) string { return f.fairway.origin }, func(turn int, resp response, a answer) {
		if turn == 0 {
			home = resp.endpoint()
		} else if resp.endpoint() != home {
			t.Errorf("turn %d went to %s, the conversation is cached on %s", turn, resp.endpoint(), home)
		}
		// All of the previous turn's prompt is cached, but for a block that was not full.
		if cached := a.Usage.Details.Cached; cached < last-blockTokens {
			t.Errorf("turn %d found %d tokens cached, want at least %d", turn, cached, last-blockTokens)
		}
		last = a.Usage.Prompt
	})
	robin := converse(t, "Zeno", turns, func(turn int) string { return f.engines[turn%2].url() }, func(int, response, answer) {})
	t.Logf("cached of prompt tokens: %d of %d (%.1f %%) through Fairway, %d of %d (%.1f %%) by round robin",
		through.cached, through.prompt, through.percent(), robin.cached, robin.prompt, robin.percent())
	if through.percent() < robin.percent()+5 {
		t.Errorf("through Fairway %.1f %% were cached, by round robin %.1f %%: want 5 points more", through.percent(), robin.percent())
	}
}

// tokens are what the engines told of a conversation's prompts.
type tokens struct{ prompt, cached int }

func (n tokens) percent() float64 { return 100 * float64(n.cached) / float64(n.prompt) }

// converse holds a conversation of which every turn carries all before it. The name makes it unlike any other.
func converse(t *testing.T, name string, turns int, origin func(turn int) string, look func(int, response, answer)) (total tokens) {
	t.Helper()
	messages := []message{{"system", name + " is asked. " + strings.Repeat("Answer with care and in order. ", 20)}}
	for turn := range turns {
		question := fmt.Sprintf("Question %d of %s: ", turn, name) + strings.Repeat("what does the scheduler do then? ", 30)
		messages = append(messages, message{"user", question})
		resp := post(t, origin(turn)+chatPath, object{
			"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 32, "ignore_eos": true,
		})
		a := resp.decode(t)
		if a.Usage == nil || a.Usage.Completion != 32 {
			t.Fatalf("turn %d: the answer is %s, want 32 tokens counted", turn, resp.body)
		}
		total.prompt += a.Usage.Prompt
		total.cached += a.Usage.Details.Cached
		look(turn, resp, a)
		messages = append(messages, message{"assistant", a.text()})
	}
	return total
}

// testLeaving leaves in the middle of an answer, streamed and in one piece: the engine stops working on it.
func testLeaving(t *testing.T, f *fleet) {
	body := chatBody("tiny", "Tell a long story.", 4000).with("ignore_eos", true)
	t.Run("stream", func(t *testing.T) {
		testDropped(t, f, func(ctx context.Context, leave func()) {
			s := openStream(t, ctx, f.fairway.origin, apis[0], body)
			for range 5 {
				s.next()
			}
			leave()
		})
	})
	t.Run("in one piece", func(t *testing.T) {
		testDropped(t, f, func(ctx context.Context, leave func()) {
			answered := make(chan error, 1)
			go func() {
				resp, err := client.Do(request(t, ctx, "POST", f.fairway.origin+chatPath, body))
				if err == nil {
					resp.Body.Close()
				}
				answered <- err
			}()
			process.Eventually(t, patience, func() error {
				if f.running(t) == 0 && len(answered) == 0 {
					return errors.New("no engine works on the request")
				}
				return nil
			})
			leave()
			if err := <-answered; err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("the request ended with %v", err)
			}
		})
	})
}

// testDropped has ask send a long request and leave it, and wants it dropped: no engine works on it soon, nor has finished
// it. An engine may be deaf for seconds while it computes, and be done before it hears: then it is tried again.
func testDropped(t *testing.T, f *fleet, ask func(ctx context.Context, leave func())) {
	idle := func() error {
		if n := f.running(t); n != 0 {
			return fmt.Errorf("the engines work on %v requests", n)
		}
		return nil
	}
	for range 5 {
		process.Eventually(t, patience, idle)
		finished := f.finished(t)
		ctx, leave := context.WithCancel(t.Context())
		ask(ctx, leave)
		took := process.Eventually(t, patience, idle)
		if f.finished(t) == finished {
			t.Logf("no request running %v after the client left", took.Round(time.Millisecond))
			return
		}
	}
	t.Error("the engines finish answers that nobody waits for")
}

// testPauses keeps 40 connections that pause for about as long as an engine keeps an idle connection (5 s), so that
// requests meet connections which the engine is just closing.
func testPauses(t *testing.T, f *fleet) {
	const connections, duration = 40, 90 * time.Second
	retries := process.Metric(t, f.fairway.ops+"/metrics", "fairway_retries_total")
	ctx, stop := context.WithTimeout(t.Context(), duration)
	defer stop()
	var answers atomic.Int64
	var wg sync.WaitGroup
	for i := range connections {
		wg.Go(func() {
			transport := &http.Transport{}
			defer transport.CloseIdleConnections()
			for turn := 0; ctx.Err() == nil; turn++ {
				if err := ask(transport, f.fairway.origin, fmt.Sprintf("Client %d, turn %d.", i, turn)); err != nil {
					t.Errorf("connection %d, turn %d: %v", i, turn, err)
				}
				answers.Add(1)
				select {
				case <-time.After(4500*time.Millisecond + rand.N(time.Second)):
				case <-ctx.Done():
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d answers in %v, %v of them after a retry", answers.Load(), duration,
		process.Metric(t, f.fairway.ops+"/metrics", "fairway_retries_total")-retries)
}

// ask asks for one token and wants it.
func ask(transport http.RoundTripper, origin, prompt string) error {
	body, err := json.Marshal(chatBody("tiny", prompt, 1))
	if err != nil {
		return err
	}
	client := http.Client{Transport: transport, Timeout: 10 * time.Minute}
	resp, err := client.Post(origin+chatPath, "application/json", strings.NewReader(string(body)))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, content)
	}
	return nil
}
