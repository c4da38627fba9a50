package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/proxy"
	"github.com/fairway-proxy/fairway/proxy/extproc"
	heads "github.com/fairway-proxy/fairway/proxy/message"
)

// withRoles has the first pods of a fleet compute prompts for the others.
func withRoles(prefill, least int) func(*file.Config) {
	return func(c *file.Config) {
		c.World.RemotePrefill = least
		for i := range c.World.Pools[0].Endpoints {
			e := &c.World.Pools[0].Endpoints[i]
			if e.Role = proxy.RoleDecode; i < prefill {
				e.Role = proxy.RolePrefill
			}
		}
	}
}

// burst sends so many requests, 32 at a time, of which some stream, some are long and some share a beginning. It returns how many were
// answered with 200.
func (f *fleet) burst(t *testing.T, n int, seed uint64) (good int64) {
	var sent atomic.Int64
	var ok atomic.Int64
	var wg sync.WaitGroup
	for w := range 32 {
		rng := rand.New(rand.NewPCG(seed, uint64(w)))
		wg.Go(func() {
			for sent.Add(1) <= int64(n) {
				r := request{Model: "mock", MaxTokens: 1 + rng.IntN(4), Stream: rng.IntN(2) == 0}
				r.Messages = []message{{"system", prose(rng.IntN(4), 20)}, {"user", prose(1000+rng.IntN(1<<20), 1+rng.IntN(60))}}
				resp, err := f.client.Post(f.url+"/v1/chat/completions", "application/json", r.body())
				if err != nil {
					t.Error(err)
					return
				}
				var b bytes.Buffer
				b.ReadFrom(resp.Body)
				resp.Body.Close()
				if resp.StatusCode == 200 {
					ok.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return ok.Load()
}

// No request of a client's ever reaches a prefill pod: not when the others fail requests, take no connections, or are all gone. Under the
// race detector it is a thousand; package picker picks ten thousand times under all conditions there are.
func TestPrefillPodsGetNoRequestInTenThousand(t *testing.T) {
	pods := startPods(t, 5, mock.Config{Speed: 300})
	prefill, decode := pods[:2], pods[2:]
	f := startFleetWith(t, withRoles(2, 16), pods...)

	n := 10_000
	if raceEnabled {
		n = 1000
	}
	if good := f.burst(t, n*6/10, 1); good != int64(n*6/10) {
		t.Errorf("all well: %d of %d answered", good, n*6/10)
	}
	computed := uint64(0)
	for _, p := range prefill {
		computed += p.Stats().Prefills
	}
	if computed < uint64(n/100) {
		t.Fatalf("the prefill pods have computed %d prompts: this test shows nothing", computed)
	}
	decode[0].SetFaults(mock.Faults{Status: 503})
	f.burst(t, n*15/100, 2)
	decode[0].SetFaults(mock.Faults{CutAfter: 1})
	f.burst(t, n*15/100, 3)
	decode[1].stop()
	f.burst(t, n*9/100, 4)
	decode[0].stop()
	decode[2].stop()
	if good := f.burst(t, n/100, 5); good != 0 {
		t.Errorf("%d requests were answered by no decode pod", good)
	}
	for i, p := range prefill {
		if st := p.Stats(); st.Received != st.Prefills {
			t.Errorf("prefill pod %d got %d requests that were no decode pod's, of %d", i, st.Received-st.Prefills, st.Received)
		}
	}
	remote := uint64(0)
	for _, p := range decode {
		remote += p.Stats().Remote
	}
	t.Logf("of %d requests %d had their prompts computed by a prefill pod", n, remote)
}

// A prompt is computed elsewhere where that pays: it is long, and others decode where it goes.
func TestRemotePrefillSparesThoseWhoDecode(t *testing.T) {
	pods := startPods(t, 2, mock.Config{Speed: 5})
	f := startFleetWith(t, withRoles(1, 512), pods...)
	alone := f.mustAsk(t, request{Messages: []message{{"user", prose(1, 1000)}}, MaxTokens: 2})
	if alone.receipt.Prefill != "" || alone.endpoint != pods[1].address {
		t.Errorf("nobody decodes: the prompt was computed by %q for %s", alone.receipt.Prefill, alone.endpoint)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			f.ask(ctx, request{Messages: []message{{"user", prose(10+i, 20)}}, MaxTokens: 100_000})
		})
	}
	waitFor(t, "sixteen that decode", func() bool { return pods[1].Stats().Engine.Running == 16 })
	before := pods[1].Stats().Engine
	busy := f.mustAsk(t, request{Messages: []message{{"user", prose(2, 1000)}}, MaxTokens: 2})
	if busy.receipt.Prefill != pods[0].address || busy.endpoint != pods[1].address {
		t.Errorf("sixteen decode: the prompt was computed by %q for %s", busy.receipt.Prefill, busy.endpoint)
	}
	after := pods[1].Stats().Engine
	if got := after.PromptTokensReceived - before.PromptTokensReceived; got < 900 {
		t.Errorf("the engine that decodes got %d tokens of the prompt from the other", got)
	}
	short := f.mustAsk(t, request{Messages: []message{{"user", prose(3, 50)}}, MaxTokens: 2})
	if short.receipt.Prefill != "" {
		t.Errorf("a short prompt was computed by %s", short.receipt.Prefill)
	}
	cancel()
	wg.Wait()
	for _, e := range f.server.Endpoints() {
		waitFor(t, "the end of all leases", func() bool {
			l := e.Endpoint.Load(proxy.Now())
			return l.InFlight == 0 && l.Queued == 0
		})
	}
}

// Nobody but Fairway says which host an engine asks for a prompt.
func TestClientDoesNotNameThePrefillPod(t *testing.T) {
	pods := startPods(t, 1, mock.Config{Speed: 50})
	f := startFleet(t, pods...)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{}, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Close()
			asked <- struct{}{}
		}
		close(asked)
	}()
	req, err := http.NewRequestWithContext(t.Context(), "POST", f.url+"/v1/chat/completions",
		request{Model: "mock", Messages: []message{{"user", prose(1, 50)}}, MaxTokens: 1}.body())
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Prefiller-Host-Port", l.Addr().String())
	resp, err := f.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	l.Close()
	if _, was := <-asked; was {
		t.Error("the engine asked the host that a client named")
	}
	if resp.StatusCode != 200 {
		t.Errorf("status %d", resp.StatusCode)
	}
}

// The picker of another proxy says the same: which engine, and who computes the prompt; and never names a prefill pod.
func TestPickerOfAnotherProxyKnowsRolesAndRanks(t *testing.T) {
	pods := startPods(t, 3, mock.Config{Speed: 5, DataParallel: 2})
	f := startFleetWith(t, func(c *file.Config) {
		withRoles(1, 512)(c)
		for i := range c.World.Pools[0].Endpoints {
			c.World.Pools[0].Endpoints[i].Ranks = 2
		}
		c.World.Access.Elsewhere = true
	}, pods...)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	service := &extproc.Server{Handler: func(s *extproc.Stream) { f.server.Handle(s) }}
	served := make(chan struct{})
	go func() {
		service.Serve(l)
		close(served)
	}()
	defer func() {
		service.Close()
		<-served
	}()
	service.SetReady(true)
	client := extproc.NewClient(extproc.ClientConfig{Address: l.Addr().String(), MessageLimit: 1 << 20})
	defer client.Close()

	ranks, remote := map[string]int{}, 0
	var open []*extproc.Ruling
	for i := range 200 {
		var body bytes.Buffer
		body.ReadFrom(request{Model: "mock", Messages: []message{{"user", prose(i, 20+i%2*800)}}, MaxTokens: 100, Stream: true}.body())
		r, err := client.Ask(t.Context(), &extproc.Question{
			Head: &heads.Request{Method: []byte("POST"), Target: []byte("/v1/chat/completions"), Authority: []byte("m"), ContentLength: int64(body.Len()),
				Fields: []heads.Field{{Name: []byte("content-type"), Value: []byte("application/json")}, {Name: []byte("x-data-parallel-rank"), Value: []byte("7")},
					{Name: []byte("x-prefiller-host-port"), Value: []byte("10.9.9.9:1")}, {Name: []byte("X-Encoder-Hosts-Ports"), Value: []byte("10.9.9.9:1")},
					{Name: []byte("x-data-parallel-host-port"), Value: []byte("10.9.9.9:1")}, {Name: []byte("x-kv-cache-source-host-port"), Value: []byte("10.9.9.9:1")}}},
			Body: [][]byte{body.Bytes()}, Timeout: time.Minute, Wait: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, r) // none of them ends: the engines fill up
		rank, prefiller, removed := "", "10.9.9.9:1", 0
		for _, c := range r.Fields {
			if c.Value == nil {
				removed++
			}
			switch string(c.Name) {
			case "x-data-parallel-rank":
				rank = string(c.Value)
			case "x-prefiller-host-port":
				prefiller = string(c.Value)
			}
		}
		for _, e := range r.Endpoints {
			if e != pods[1].address && e != pods[2].address {
				t.Fatalf("request %d is to go to %s", i, e)
			}
		}
		if removed < 3 {
			t.Errorf("request %d: of what the client says of other hosts only %d fields are removed", i, removed)
		}
		if prefiller != "" {
			if remote++; prefiller != pods[0].address || i%2 == 0 {
				t.Errorf("request %d: its prompt is to be computed by %s", i, prefiller)
			}
		}
		ranks[fmt.Sprint(r.Endpoints[0], " ", rank)]++
	}
	for _, r := range open {
		r.End()
	}
	if len(ranks) != 4 || remote == 0 {
		t.Errorf("went to %v, %d prompts to be computed elsewhere", ranks, remote)
	}
}
