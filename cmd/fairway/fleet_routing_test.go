package main

import (
	"context"
	"sync"
	"testing"

	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/proxy"
)

var quick = mock.Config{Speed: 50}

// received is how many requests each pod got.
func received(pods []*pod) []uint64 {
	n := make([]uint64, len(pods))
	for i, p := range pods {
		n[i] = p.Stats().Received
	}
	return n
}

func TestConversationOfTenTurnsStaysOnItsPod(t *testing.T) {
	pods := startPods(t, 4, quick)
	f := startFleet(t, pods...)
	chat := request{Messages: []message{{"system", prose(1, 500)}}, MaxTokens: 50}
	for turn := range 10 {
		chat.Messages = append(chat.Messages, message{"user", prose(100+turn, 100)})
		a := f.mustAsk(t, chat)
		chat.Messages = append(chat.Messages, message{"assistant", a.text})
	}
	n, home := received(pods), -1
	for i := range n {
		switch n[i] {
		case 10:
			home = i
		case 0:
		default:
			t.Errorf("a pod got %d of the 10 turns", n[i])
		}
	}
	if home < 0 {
		t.Fatalf("no pod got all turns: %v", n)
	}
	st := pods[home].Stats().Engine
	if rate := float64(st.PrefixHits) / float64(st.PrefixQueries); rate < 0.75 {
		t.Errorf("the engine found %.0f %% of the prompts in its cache", 100*rate)
	}
}

func TestSharedSystemPromptIsSharedWhenIdleAndSpreadWhenBusy(t *testing.T) {
	pods := startPods(t, 4, mock.Config{Speed: 20})
	f := startFleet(t, pods...)
	system := message{"system", prose(1, 2000)}
	first := f.mustAsk(t, request{Messages: []message{system, {"user", prose(2, 30)}}, MaxTokens: 5})
	second := f.mustAsk(t, request{Messages: []message{system, {"user", prose(3, 30)}}, MaxTokens: 5})
	if first.endpoint != second.endpoint {
		t.Errorf("idle: the second conversation went to %s, its system prompt is on %s", second.endpoint, first.endpoint)
	}
	hits := uint64(0)
	for _, p := range pods {
		hits += p.Stats().Engine.PrefixHits
	}
	if hits < 1500 {
		t.Errorf("idle: the engines found %d tokens of the system prompt in their caches", hits)
	}

	// Forty at once, each streaming until the others have arrived, and longer.
	before := received(pods)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			f.ask(ctx, request{Messages: []message{system, {"user", prose(10+i, 30)}}, MaxTokens: 100_000})
		})
	}
	total := func() (n uint64, used int) {
		for i, now := range received(pods) {
			if now > before[i] {
				used++
			}
			n += now - before[i]
		}
		return n, used
	}
	waitFor(t, "forty requests at the pods", func() bool { n, _ := total(); return n == 40 })
	if _, used := total(); used < 2 {
		t.Errorf("busy: forty conversations at once stayed on %d pod", used)
	}
	cancel()
	wg.Wait()
}

func TestThousandReloadsThatLeaveThePodsAloneCostNoCacheHit(t *testing.T) {
	pods := startPods(t, 4, quick)
	f := startFleet(t, pods...)
	chat := request{Messages: []message{{"system", prose(1, 500)}, {"user", prose(2, 100)}}, MaxTokens: 5}
	before := f.mustAsk(t, chat)
	for range 1000 {
		again := *f.config
		world := *f.config.World
		again.World = &world
		f.apply(&again)
	}
	after := f.mustAsk(t, chat)
	if after.endpoint != before.endpoint || after.receipt.CachedTokens < 500 {
		t.Errorf("went to %s with %d tokens believed cached; before the reloads to %s", after.endpoint, after.receipt.CachedTokens, before.endpoint)
	}
}

func TestRestartedPodGetsNoAffinityFromItsFormerLife(t *testing.T) {
	pods := startPods(t, 2, quick)
	f := startFleet(t, pods...)
	chat := request{Messages: []message{{"system", prose(1, 500)}, {"user", prose(2, 100)}}, MaxTokens: 5}
	first := f.mustAsk(t, chat)
	if again := f.mustAsk(t, chat); again.receipt.CachedTokens == 0 {
		t.Fatal("nothing was cached to begin with: this test shows nothing")
	}
	state := func() (v endpointView) {
		for _, e := range describeEndpoints(f.server) {
			if e.Address == first.endpoint {
				v = e
			}
		}
		return v
	}
	waitFor(t, "a scrape of the first process after its answers", func() bool {
		for _, e := range f.server.Endpoints() {
			load := e.Endpoint.Load(proxy.Now())
			if n, _ := load.Scrape.Get(picker.PrefixQueries); n > 0 {
				return true
			}
		}
		return false
	})
	for _, p := range pods {
		if p.address == first.endpoint {
			p.stop()
			startPod(t, p.address, quick)
		}
	}
	waitFor(t, "a scrape of the new process", func() bool { return state().IndexEntries == 0 })
	if a := f.mustAsk(t, chat); a.receipt.CachedTokens != 0 {
		t.Errorf("%d tokens are believed to be in a cache that is empty", a.receipt.CachedTokens)
	}
}
