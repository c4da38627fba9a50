//go:build e2e && linux

// Package vllm_test runs Fairway in front of two real vLLM engines and holds it to what clients get from the engines
// themselves. `make e2e-vllm` installs vLLM, makes a tiny model, and runs it.
package vllm_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// fleet is what the steps share: two engines behind Fairway, and the first of them behind another one alone.
type fleet struct {
	engines [2]*engine
	fairway *fairway // before both
	single  *fairway // before engines[0]
}

func (f *fleet) addresses() []string {
	return []string{f.engines[0].address, f.engines[1].address}
}

// running is how many requests the engines work on.
func (f *fleet) running(t *testing.T) float64 {
	t.Helper()
	return f.engines[0].running(t) + f.engines[1].running(t)
}

// finished is how many answers the engines have brought to the length that was asked for.
func (f *fleet) finished(t *testing.T) float64 {
	t.Helper()
	return f.engines[0].finished(t) + f.engines[1].finished(t)
}

// at is the engine with that address.
func (f *fleet) at(t *testing.T, address string) *engine {
	t.Helper()
	i := slices.Index(f.addresses(), address)
	if i < 0 {
		t.Fatalf("x-fairway-endpoint is %q, want one of %v", address, f.addresses())
	}
	return f.engines[i]
}

func TestVLLM(t *testing.T) {
	begin := time.Now()
	f := new(fleet)
	for i := range f.engines {
		f.engines[i] = startEngine(t, fmt.Sprintf("engine-%d", i+1), process.FreeAddress())
	}
	for _, e := range f.engines {
		e.awaitUp(t)
	}
	t.Logf("two engines were up after %v", time.Since(begin).Round(time.Second))
	f.fairway = startFairway(t, "fairway", f.engines[:]...)
	f.single = startFairway(t, "fairway-single", f.engines[0])

	steps := []struct {
		name string
		test func(*testing.T, *fleet)
	}{
		{"answers", testAnswers},
		{"the same as directly", testDifferences},
		{"doctor", testDoctor},
		{"adapters", testAdapters},
		{"conversation", testConversation},
		{"client leaves", testLeaving},
		{"pauses", testPauses},
		{"engines end", testEnds}, // last
	}
	for _, step := range steps {
		t.Run(step.name, func(t *testing.T) { step.test(t, f) })
	}
}

// testAnswers asks for the same text by every API, of the model and of its adapters, in one piece and streamed,
// and compares it with what an engine says directly.
func testAnswers(t *testing.T, f *fleet) {
	const prompt, tokens = "Tell me about the scheduler of the engine.", 24
	for _, api := range apis {
		texts := map[string]string{} // to the model that says it
		for _, model := range append([]string{"tiny"}, adapters...) {
			t.Run(api.name+"/"+model, func(t *testing.T) {
				body := api.body(model, prompt, tokens)
				want := post(t, f.engines[1].url()+api.path, body).decode(t).text()
				if other := texts[want]; want == "" || other != "" {
					t.Fatalf("directly it says %q as %q does, want a text of its own", want, other)
				}
				texts[want] = model

				resp := post(t, f.fairway.origin+api.path, body)
				f.at(t, resp.endpoint())
				if got := resp.decode(t).text(); got != want {
					t.Errorf("in one piece it says %q, directly %q", got, want)
				}

				s := openStream(t, context.Background(), f.fairway.origin, api, body)
				f.at(t, s.endpoint())
				events := s.rest(t)
				got := ""
				for _, e := range events {
					a := decodeEvent(t, e)
					if len(a.Output) == 0 { // the last event of responses repeats the text
						got += a.text()
					}
					if a.Usage != nil && len(a.Choices) == 0 && endsWith(events, done) {
						t.Errorf("the stream tells usage, which was not asked for: %s", e)
					}
				}
				if got != want {
					t.Errorf("streamed it says %q, directly %q", got, want)
				}
				if !endsWith(events, api.end) {
					t.Errorf("the stream ends with\n%s\nwant %s…", last(events), api.end)
				}
			})
		}
	}
}
