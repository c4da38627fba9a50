package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/proxy"
)

// ranked starts a proxy before pods of so many data-parallel engines each.
func ranked(t *testing.T, ranks int, pods ...*pod) *fleet {
	return startFleetWith(t, func(c *file.Config) {
		for i := range c.World.Pools[0].Endpoints {
			c.World.Pools[0].Endpoints[i].Ranks = ranks
		}
	}, pods...)
}

// engineOf finds the pod and the rank that an endpoint's name means.
func engineOf(t *testing.T, pods []*pod, name string) (p *pod, rank int) {
	t.Helper()
	address, number, ok := strings.Cut(name, "@dp")
	for _, p := range pods {
		if _, err := fmt.Sscan(number, &rank); ok && err == nil && p.address == address {
			return p, rank
		}
	}
	t.Fatalf("%q is no engine of the pods", name)
	return nil, 0
}

func TestConversationStaysOnItsRank(t *testing.T) {
	pods := startPods(t, 2, mock.Config{Speed: 50, DataParallel: 4})
	f := ranked(t, 4, pods...)
	chat := request{Messages: []message{{"system", prose(1, 500)}}, MaxTokens: 50}
	home := ""
	for turn := range 10 {
		chat.Messages = append(chat.Messages, message{"user", prose(100+turn, 100)})
		a := f.mustAsk(t, chat)
		chat.Messages = append(chat.Messages, message{"assistant", a.text})
		if home == "" {
			home = a.endpoint
		}
		if a.endpoint != home {
			t.Errorf("turn %d went to %s, the conversation is on %s", turn, a.endpoint, home)
		}
	}
	p, rank := engineOf(t, pods, home)
	for _, o := range pods {
		for r := range 4 {
			st := o.EngineStats(r)
			switch {
			case o == p && r == rank:
				if rate := float64(st.PrefixHits) / float64(st.PrefixQueries); st.Finished != 10 || rate < 0.75 {
					t.Errorf("its rank served %d turns and found %.0f %% of the prompts in its cache", st.Finished, 100*rate)
				}
			case st.Finished != 0:
				t.Errorf("rank %d of %s served %d turns", r, o.address, st.Finished)
			}
		}
	}
}

// What a client says of ranks goes past the picker, and is not passed on where there are any.
func TestClientDoesNotChooseTheRank(t *testing.T) {
	pods := startPods(t, 1, mock.Config{Speed: 50, DataParallel: 2})
	f := ranked(t, 2, pods...)
	for i := range 20 {
		req, err := http.NewRequestWithContext(t.Context(), "POST", f.url+"/v1/chat/completions",
			request{Model: "mock", Messages: []message{{"user", prose(i, 50)}}, MaxTokens: 1}.body())
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-Data-Parallel-Rank", "7")
		resp, err := f.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Fatalf("status %d", resp.StatusCode)
		}
	}
	if a, b := pods[0].EngineStats(0).Finished, pods[0].EngineStats(1).Finished; a == 0 || b == 0 || a+b != 20 {
		t.Errorf("the ranks served %d and %d of 20 requests that have nothing in common", a, b)
	}
}

func TestSaturatedRankDoesNotRepelFromItsSiblings(t *testing.T) {
	pods := startPods(t, 2, mock.Config{Speed: 5, DataParallel: 2})
	f := ranked(t, 2, pods...)
	chat := request{Messages: []message{{"system", prose(1, 500)}, {"user", prose(2, 50)}}, MaxTokens: 5}
	home := f.mustAsk(t, chat).endpoint
	p, rank := engineOf(t, pods, home)
	sibling := 1 - rank

	// Somebody else fills the sibling, past the proxy.
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	client := &http.Client{Transport: &http.Transport{}}
	for i := range 64 {
		wg.Go(func() {
			r := request{Model: "mock", Messages: []message{{"user", prose(1000+i, 1000)}}, MaxTokens: 100_000}
			req, err := http.NewRequestWithContext(ctx, "POST", "http://"+p.address+"/v1/chat/completions", r.body())
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("X-Data-Parallel-Rank", fmt.Sprint(sibling))
			if resp, err := client.Do(req); err == nil {
				resp.Body.Close()
			}
		})
	}
	busy := fmt.Sprintf("%s@dp%d", p.address, sibling)
	waitFor(t, "scrapes that see one rank busy", func() bool {
		seen := 0
		for _, e := range f.server.Endpoints() {
			load := e.Endpoint.Load(proxy.Now())
			switch {
			case e.Endpoint.Name() == busy && load.Foreign >= 60:
				seen++
			case e.Endpoint.Name() != busy && load.Foreign == 0 && load.ScrapeAge >= 0 && load.InFlight == 0:
				seen++
			}
		}
		return seen == 4
	})

	// Neither the conversation nor what has nothing to do with it avoids the server.
	for turn := range 5 {
		// Before a scrape has seen what was sent, as much again is taken to have been sent by others.
		asked := proxy.Now()
		waitFor(t, "scrapes after the last turn", func() bool {
			for _, e := range f.server.Endpoints() {
				now := proxy.Now()
				if load := e.Endpoint.Load(now); load.InFlight > 0 || load.ScrapeAge < 0 || now-load.ScrapeAge <= asked {
					return false
				}
			}
			return true
		})
		chat.Messages = append(chat.Messages, message{"user", prose(10+turn, 50)})
		if a := f.mustAsk(t, chat); a.endpoint != home {
			t.Errorf("turn %d went to %s, the conversation is on %s", turn, a.endpoint, home)
		}
	}
	went := map[string]int{}
	for i := range 60 {
		a := f.mustAsk(t, request{Messages: []message{{"user", prose(100+i, 40)}}, MaxTokens: 1})
		went[a.endpoint]++
	}
	if went[busy] != 0 || went[home] < 5 {
		t.Errorf("60 requests that have nothing in common went to %v: %s is busy, %s beside it is not", went, busy, home)
	}
	cancel()
	wg.Wait()
	client.CloseIdleConnections()
}

func TestServerThatIsGoneTakesAllItsRanks(t *testing.T) {
	pods := startPods(t, 2, mock.Config{Speed: 50, DataParallel: 3})
	f := ranked(t, 3, pods...)
	pods[0].stop()
	for i := range 20 {
		a := f.mustAsk(t, request{Messages: []message{{"user", prose(i, 40)}}, MaxTokens: 1})
		if p, _ := engineOf(t, pods, a.endpoint); p != pods[1] {
			t.Fatalf("%s answered", a.endpoint)
		}
	}
	waitFor(t, "the ejection of all its ranks, and of no other", func() bool {
		out := map[string]int{}
		for _, e := range f.server.Endpoints() {
			if e.Endpoint.Ejected(proxy.Now()) {
				out[e.Endpoint.Address()]++
			}
		}
		return out[pods[0].address] == 3 && len(out) == 1
	})
	back := startPod(t, pods[0].address, mock.Config{Speed: 50, DataParallel: 3})
	waitFor(t, "its return", func() bool {
		for _, e := range f.server.Endpoints() {
			if e.Endpoint.Ejected(proxy.Now()) {
				return false
			}
		}
		return true
	})
	for i := 0; back.Stats().Answered == 0; i++ {
		f.mustAsk(t, request{Messages: []message{{"user", prose(100+i, 40)}}, MaxTokens: 1})
	}
}

// One server is asked once, however many engines it has: for its models, its metrics and to load an adapter.
func TestServerOfRanksIsOneServer(t *testing.T) {
	pods := startPods(t, 1, mock.Config{Speed: 50, DataParallel: 4, LoraUpdates: true})
	f := ranked(t, 4, pods...)
	resp, err := f.client.Post(f.url+"/v1/load_lora_adapter", "application/json", strings.NewReader(`{"lora_name":"a","lora_path":"/a"}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 { // a second time it is a 400
		t.Errorf("loading an adapter: status %d", resp.StatusCode)
	}
	if n := len(describeEndpoints(f.server)); n != 4 {
		t.Errorf("%d endpoints", n)
	}
}
