//go:build e2e && linux

package vllm_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// testEnds ends engines: the first is killed and comes back, then the second is told to end.
func testEnds(t *testing.T, f *fleet) {
	cached := cachedAt(t, f, f.engines[0])
	t.Run("killed", func(t *testing.T) { testKilled(t, f) })
	f.engines[0] = startEngine(t, "engine-1-again", f.engines[0].address)
	t.Run("back", func(t *testing.T) { testComesBack(t, f, cached) })
	t.Run("told to end", func(t *testing.T) { testTerminated(t, f) })
}

// openStreams opens long streams until each engine serves two of them, and returns them by engine.
func openStreams(t *testing.T, f *fleet, engines ...*engine) map[*engine][]*stream {
	t.Helper()
	streams := map[*engine][]*stream{}
	for i := range 40 {
		prompt := strings.Repeat(fmt.Sprintf("Story %d at %s. ", i, t.Name()), 20)
		s := openStream(t, t.Context(), f.fairway.origin+chatPath, chatBody("tiny", prompt, 600).with("ignore_eos", true))
		e := f.at(t, s.endpoint())
		streams[e] = append(streams[e], s)
		enough := true
		for _, e := range engines {
			enough = enough && len(streams[e]) >= 2
		}
		if enough {
			return streams
		}
	}
	t.Fatalf("40 streams did not reach each of the engines: %v", streams)
	return nil
}

// wantWhole reads a stream to its proper end.
func wantWhole(t *testing.T, s *stream) {
	t.Helper()
	finish := ""
	events := s.rest(t)
	for _, e := range events {
		a := decodeEvent(t, e)
		if a.Error != nil {
			t.Errorf("a stream of the engine that runs on has an error: %s", e)
		}
		if len(a.Choices) > 0 && a.Choices[0].FinishReason != "" {
			finish = a.Choices[0].FinishReason
		}
	}
	if last := events[len(events)-1]; finish != "length" || last != "[DONE]" {
		t.Errorf("a stream of the engine that runs on finishes with %q and %s, want length and [DONE]", finish, last)
	}
}

// wantServedBy asks new questions and wants every one answered, by that engine.
func wantServedBy(t *testing.T, f *fleet, e *engine) {
	t.Helper()
	for i := range 10 {
		prompt := strings.Repeat(fmt.Sprintf("Question %d at %s. ", i, t.Name()), 20)
		resp := post(t, f.fairway.origin+chatPath, chatBody("tiny", prompt, 1))
		if resp.endpoint() != e.address {
			t.Errorf("request %d went to %s, which is gone; %s is left", i, resp.endpoint(), e.address)
		}
	}
}

// testKilled kills the first engine while both stream.
func testKilled(t *testing.T, f *fleet) {
	victim, other := f.engines[0], f.engines[1]
	streams := openStreams(t, f, victim, other)
	cut, whole := f.fairway.count(t, "upstream_cut"), f.fairway.count(t, "")
	for _, s := range streams[victim] {
		s.next()
	}
	victim.kill()
	for _, s := range streams[victim] {
		events := s.rest(t)
		if n := len(events); n < 2 || events[n-1] != "[DONE]" {
			t.Fatalf("the stream that was cut ends with %q, want an error event and [DONE]", events[max(0, n-2):])
		}
		e := decodeEvent(t, events[len(events)-2])
		if e.Error == nil || e.Error.Type != "fairway_upstream_failed" {
			t.Errorf("before [DONE] the stream that was cut says %s, want an error of type fairway_upstream_failed", events[len(events)-2])
		}
	}
	f.fairway.awaitCount(t, "upstream_cut", cut+float64(len(streams[victim])))
	wantServedBy(t, f, other)
	for _, s := range streams[other] {
		wantWhole(t, s)
	}
	f.fairway.awaitCount(t, "", whole+10+float64(len(streams[other])))
}

// testComesBack waits for the killed engine, which was started again at its address: it is used again, and nothing is
// believed to be cached there that the old one had.
func testComesBack(t *testing.T, f *fleet, cached object) {
	begin := time.Now()
	f.engines[0].awaitUp(t)
	t.Logf("up again after %v", time.Since(begin).Round(time.Second))
	if predicted := predictedHit(t, post(t, f.fairway.origin+chatPath, cached)); predicted != 0 {
		t.Errorf("of a prompt that the killed engine had cached, Fairway believes %d tokens cached", predicted)
	}
	i := 0
	took := within(t, 30*time.Second, func() error {
		i++
		prompt := strings.Repeat(fmt.Sprintf("Question %d to who is back. ", i), 50)
		resp := post(t, f.fairway.origin+chatPath, chatBody("tiny", prompt, 1))
		if resp.endpoint() != f.engines[0].address {
			return fmt.Errorf("%d requests after it came back, the engine has not served one", i)
		}
		return nil
	})
	t.Logf("it served again %v and %d requests after it was healthy", took.Round(time.Millisecond), i)
}

// predictedHit is how many of the prompt's tokens Fairway believed to be cached.
func predictedHit(t *testing.T, resp response) int {
	t.Helper()
	var receipt struct {
		Cached int `json:"cached_tokens"`
	}
	if err := json.Unmarshal([]byte(resp.Header.Get("x-fairway-receipt")), &receipt); err != nil {
		t.Fatalf("x-fairway-receipt is %q: %v", resp.Header.Get("x-fairway-receipt"), err)
	}
	return receipt.Cached
}

// cachedAt asks long questions until that engine has answered one, which is cached there then.
func cachedAt(t *testing.T, f *fleet, e *engine) object {
	t.Helper()
	for i := range 40 {
		body := chatBody("tiny", strings.Repeat(fmt.Sprintf("Long question %d. ", i), 200), 1)
		if post(t, f.fairway.origin+chatPath, body).endpoint() != e.address {
			continue
		}
		if again := post(t, f.fairway.origin+chatPath, body); predictedHit(t, again) == 0 {
			t.Errorf("asked again, Fairway believes nothing cached: %s", again.Header.Get("x-fairway-receipt"))
		}
		return body
	}
	t.Fatalf("of 40 questions none went to %s", e.address)
	return nil
}

// testTerminated sends the second engine the signal by which an orchestrator ends it. It ends its streams in order,
// each with finish_reason "abort": failures all the same.
func testTerminated(t *testing.T, f *fleet) {
	victim, other := f.engines[1], f.engines[0]
	streams := openStreams(t, f, victim, other)
	aborted := f.fairway.count(t, "upstream_aborted")
	if err := victim.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for _, s := range streams[victim] {
		events := s.rest(t)
		n := len(events)
		if n < 2 || events[n-1] != "[DONE]" {
			t.Fatalf("the stream ends with %q, want [DONE] last", events[max(0, n-2):])
		}
		e := decodeEvent(t, events[n-2])
		if len(e.Choices) == 0 || e.Choices[0].FinishReason != "abort" {
			t.Errorf("before [DONE] the stream says %s, want finish_reason abort", events[n-2])
		}
	}
	f.fairway.awaitCount(t, "upstream_aborted", aborted+float64(len(streams[victim])))
	wantServedBy(t, f, other)
	for _, s := range streams[other] {
		wantWhole(t, s)
	}
}
