//go:build e2e && linux

package vllm_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// testEnds ends engines: the first is killed and comes back, then the second is told to end.
func testEnds(t *testing.T, f *fleet) {
	cached := cachedAt(t, f, f.engines[0])
	t.Run("killed", func(t *testing.T) { testKilled(t, f) })
	f.engines[0] = startEngine(t, "engine-1-again", f.engines[0].address)
	t.Run("back", func(t *testing.T) { testComesBack(t, f, cached) })
	t.Run("told to end", func(t *testing.T) { testTerminated(t, f) })
}

// openStreams opens long streams until each engine serves one of every API, and returns them by engine. All of them
// have told some text: an engine that aborts a completion before its first token says nothing but [DONE].
func openStreams(t *testing.T, f *fleet) map[*engine][]*stream {
	t.Helper()
	streams := map[*engine][]*stream{}
	missing := map[string]bool{}
	for _, e := range f.engines {
		for _, a := range apis {
			missing[e.Name+a.name] = true
		}
	}
	for i := 0; len(missing) > 0; i++ {
		if i == 60 {
			t.Fatalf("60 streams did not reach each of the engines by every API: %v are missing", missing)
		}
		api := apis[i%len(apis)]
		body := api.body("tiny", strings.Repeat(fmt.Sprintf("Story %d at %s. ", i, t.Name()), 20), 3000) // longer than a busy machine takes to open them all
		s := openStream(t, t.Context(), f.fairway.origin, api, body.with("ignore_eos", true))
		s.awaitText(t)
		s.readOn()
		e := f.at(t, s.endpoint())
		streams[e] = append(streams[e], s)
		delete(missing, e.Name+api.name)
	}
	return streams
}

// wantWhole reads streams to their proper end.
func wantWhole(t *testing.T, streams []*stream) {
	t.Helper()
	for _, s := range streams {
		if events := s.rest(t); !endsWith(events, s.api.end) || endsWith(events, s.api.cut) {
			t.Errorf("a stream of the engine that runs on ends with\n%s\nwant %s…", last(events), s.api.end)
		}
	}
}

// ends is how many streams ended in each way. A stream may have ended of itself before its engine does: engines are
// faster than expected, or opening others took long.
type ends struct {
	whole, cut int
	aborted    int // given up by the engine, which says so
}

// endsOf reads streams to their end.
func endsOf(t *testing.T, streams []*stream) (n ends) {
	t.Helper()
	for _, s := range streams {
		events := s.rest(t)
		switch {
		case endsWith(events, s.api.cut):
			n.cut++
		case !endsWith(events, s.api.end):
			t.Errorf("a stream of %s ends with\n%s\nwant %s… or %s…", s.api.name, last(events), s.api.end, s.api.cut)
		case endsWith(events, done) && finishReason(t, events) == "abort":
			n.aborted++
		default:
			n.whole++
		}
	}
	return n
}

// finishReason is what the last event before [DONE] with a choice says of its end.
func finishReason(t *testing.T, events []string) string {
	t.Helper()
	for i := len(events) - 2; i >= 0; i-- {
		if e := decodeEvent(t, events[i]); len(e.Choices) > 0 {
			return e.Choices[0].FinishReason
		}
	}
	return ""
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
	cut, whole := f.fairway.count(t, "upstream_cut"), f.fairway.count(t, "")
	streams := openStreams(t, f)
	victim.Kill()
	n := endsOf(t, streams[victim])
	if n.cut == 0 || n.aborted > 0 {
		t.Errorf("of %d streams of an engine that was killed %d were cut, and %d ended as aborted", len(streams[victim]), n.cut, n.aborted)
	}
	f.fairway.awaitCount(t, "upstream_cut", cut+float64(n.cut))
	wantServedBy(t, f, other)
	wantWhole(t, streams[other])
	f.fairway.awaitCount(t, "", whole+10+float64(n.whole+len(streams[other])))
}

// testComesBack waits for the killed engine, which was started again at its address: it is used again, and nothing is
// believed to be cached there that the old one had.
func testComesBack(t *testing.T, f *fleet, cached object) {
	begin := time.Now()
	f.engines[0].awaitUp(t)
	t.Logf("up again after %v", time.Since(begin).Round(time.Second))
	process.Eventually(t, patience, func() error {
		return f.fairway.scraped(t, f.engines[0]) // by which it learns that a new process is there
	})
	if predicted := predictedHit(t, post(t, f.fairway.origin+chatPath, cached)); predicted != 0 {
		t.Errorf("of a prompt that the killed engine had cached, Fairway believes %d tokens cached", predicted)
	}
	i := 0
	took := process.Eventually(t, patience, func() error {
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

// testTerminated sends the second engine the signal by which orchestrators end a program. It ends its streams in
// order, those of chat and completions with finish_reason "abort": failures all the same. Nothing in the ends of
// responses and messages tells an aborted answer from a whole one.
func testTerminated(t *testing.T, f *fleet) {
	victim, other := f.engines[1], f.engines[0]
	aborted, cut := f.fairway.count(t, "upstream_aborted"), f.fairway.count(t, "upstream_cut")
	streams := openStreams(t, f)
	// The server's first act on SIGTERM is to pass it on to the process that computes; then it kills that at once.
	// Whether the process has aborted its requests by then is chance. If not, the server keeps their streams open and
	// silent. So that process is sent the signal first, which makes it rare, and the server ends them if it happens.
	if err := syscall.Kill(victim.core(t), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	silent := time.AfterFunc(30*time.Second, victim.Stop)
	n := endsOf(t, streams[victim])
	silent.Stop()
	victim.Stop()
	t.Logf("of %d streams %d were aborted, and %d cut", len(streams[victim]), n.aborted, n.cut)
	if n.aborted+n.cut == 0 {
		t.Errorf("no stream says that its engine was told to end")
	}
	f.fairway.awaitCount(t, "upstream_aborted", aborted+float64(n.aborted))
	f.fairway.awaitCount(t, "upstream_cut", cut+float64(n.cut))
	wantServedBy(t, f, other)
	wantWhole(t, streams[other])
}
