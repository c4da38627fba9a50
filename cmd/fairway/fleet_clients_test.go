package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/engine"
	"github.com/fairway-proxy/fairway/bench/mock"
)

// noticed is how soon a pod must hear that its client has left.
const noticed = 100 * time.Millisecond

// TestClientThatLeavesCancelsItsRequest shows that the work of a client that
// leaves is given up, in whichever phase it is. A busy machine may be late, so
// it is tried until it is given up in time once: what is late by design is late
// every time.
func TestClientThatLeavesCancelsItsRequest(t *testing.T) {
	slow := engine.Profiles[0]
	slow.Engine.MaxSeqs = 1
	for _, test := range []struct {
		phase   string
		config  mock.Config
		request request
		before  int // requests that must run to bring the next one into the phase
		reached func(engine.Stats) bool
	}{
		{
			phase:   "waiting in the engine's queue",
			config:  mock.Config{Profile: slow},
			request: request{Messages: []message{{"user", "hello"}}, MaxTokens: 100_000},
			before:  1,
			reached: func(s engine.Stats) bool { return s.Waiting == 1 },
		},
		{
			phase:   "prefilling",
			config:  mock.Config{Speed: 0.05}, // four seconds for this prompt
			request: request{Messages: []message{{"user", prose(1, 4000)}}, MaxTokens: 10},
			reached: func(s engine.Stats) bool { return s.Running == 1 && s.GenerationTokens == 0 },
		},
		{
			phase:   "streaming",
			config:  mock.Config{},
			request: request{Messages: []message{{"user", "hello"}}, MaxTokens: 100_000},
			reached: func(s engine.Stats) bool { return s.GenerationTokens > 3 },
		},
	} {
		for _, version := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s, HTTP/%d", test.phase, version), func(t *testing.T) {
				var took []time.Duration
				for len(took) < 5 || slices.Min(took) > noticed && len(took) < 50 {
					took = append(took, timeToCancel(t, version, test.config, test.request, test.before, test.reached))
				}
				slices.Sort(took)
				t.Logf("noticed after %v", took)
				if took[0] > noticed {
					t.Errorf("never within %v", noticed)
				}
			})
		}
	}
}

// timeToCancel is the time from a client's leaving to the engine's giving up.
func timeToCancel(t *testing.T, version int, c mock.Config, r request, before int, reached func(engine.Stats) bool) time.Duration {
	p := startPod(t, "", c)
	defer p.stop()
	f := startFleet(t, p)
	if version == 2 {
		f.speakHTTP2()
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	send := func() context.CancelFunc {
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() { f.ask(ctx, r) })
		return cancel
	}
	for range before {
		defer send()()
		waitFor(t, "the request before is running", func() bool { return p.Stats().Engine.Running == 1 })
	}
	cancel := send()
	waitFor(t, "the phase", func() bool { return reached(p.Stats().Engine) })
	aborted := p.Stats().Aborted
	start := time.Now()
	cancel()
	waitFor(t, "the engine gives the request up", func() bool { return p.Stats().Aborted == aborted+1 })
	return time.Since(start)
}

func TestClientThatLeavesWhileItSendsItsBody(t *testing.T) {
	p := startPod(t, "", quick)
	f := startFleet(t, p)
	c, err := net.Dial("tcp", f.plain.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{\"model\":\"mock\",")
	waitFor(t, "the exchange is under way", func() bool { return f.server.Live() == 1 })
	start := time.Now()
	c.Close()
	waitFor(t, "the exchange ends", func() bool { return f.server.Live() == 0 })
	t.Logf("noticed after %v", time.Since(start))
	if n := p.Stats().Received; n != 0 || f.server.Buffered() != 0 {
		t.Errorf("%d requests upstream, %d bytes held", n, f.server.Buffered())
	}
}

// Pipelined bytes must not hide that the client has gone.
func TestClientThatLeavesBehindAPipelinedRequest(t *testing.T) {
	p := startPod(t, "", mock.Config{})
	f := startFleet(t, p)
	c, err := net.Dial("tcp", f.plain.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	body := `{"model":"mock","messages":[{"role":"user","content":"hi"}],"max_tokens":100000,"stream":true}`
	one := fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	fmt.Fprint(c, one, one)
	waitFor(t, "the first request is streaming", func() bool { return p.Stats().Engine.GenerationTokens > 3 })
	c.Close()
	waitFor(t, "the engine gives the request up", func() bool { return p.Stats().Aborted == 1 })
}

func TestEjectedPodIsProbedBack(t *testing.T) {
	pods := startPods(t, 2, quick)
	f := startFleet(t, pods...)
	pods[0].stop()
	ejected := func() bool {
		for _, e := range describeEndpoints(f.server) {
			if e.Address == pods[0].address {
				return e.Ejected
			}
		}
		return false
	}
	for i := 0; !ejected(); i++ {
		f.mustAsk(t, request{Messages: []message{{"user", fmt.Sprint("hello ", i)}}, MaxTokens: 1})
	}
	startPod(t, pods[0].address, quick)
	waitFor(t, "the pod is back", func() bool { return !ejected() })
}

var churn = flag.Duration("churn", 5*time.Second, "how long TestStreamsWhilePodsComeAndGo runs at least")

// TestStreamsWhilePodsComeAndGo keeps 300 streams going while pods are killed
// and started again on their addresses. One of the four is left alone at any
// time, so every request has a live pod: each must be answered to its end, or,
// if its pod was killed in the middle of its answer, be told so. A request is
// sent twice at most, so one that lived through two kills may be refused. The engines are
// slow, so that two cores can carry all of it with the race detector on.
func TestStreamsWhilePodsComeAndGo(t *testing.T) {
	config := mock.Config{Speed: 0.3}
	pods := startPods(t, 4, config)
	f := startFleet(t, pods...)

	var over atomic.Bool
	var whole, cut, refused, begun, ended atomic.Int64 // the last two count kills
	var wg sync.WaitGroup
	for client := range 300 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(client)))
			for !over.Load() {
				r := request{Messages: []message{{"system", prose(client%20, 200)}, {"user", prose(random.IntN(1e6), 50)}}, MaxTokens: 5 + random.IntN(50)}
				before := ended.Load()
				a, err := f.ask(context.Background(), r)
				switch {
				case errors.Is(err, errRefused) && begun.Load()-before >= 2:
					refused.Add(1)
				case errors.Is(err, errRefused):
					t.Error(err)
				case err != nil || !a.done:
					t.Errorf("broken without a word: done %v, %v", a.done, err)
				case a.err != "":
					cut.Add(1)
				default:
					whole.Add(1)
				}
			}
		})
	}
	end := time.After(*churn)
	for random := rand.New(rand.NewPCG(1, 2)); !over.Load(); {
		select {
		case <-end:
			end = time.After(time.Second)
			over.Store(whole.Load() > 0 && cut.Load() > 0) // a slow machine takes longer until there is anything to see
		case <-time.After(time.Duration(300+random.IntN(700)) * time.Millisecond):
			i := random.IntN(len(pods))
			begun.Add(1)
			pods[i].stop()
			ended.Add(1)
			<-time.After(time.Duration(random.IntN(200)) * time.Millisecond)
			pods[i] = startPod(t, pods[i].address, config)
		}
	}
	wg.Wait()
	t.Logf("%d answered whole, %d cut with an error event, %d killed twice, over %d kills", whole.Load(), cut.Load(), refused.Load(), ended.Load())
	// A client has its last byte before the exchange is over.
	waitFor(t, "nothing is live and nothing buffered", func() bool { return f.server.Live() == 0 && f.server.Buffered() == 0 })
	for _, e := range describeEndpoints(f.server) {
		if e.InFlight != 0 || e.QueuedTokens != 0 {
			t.Errorf("%s: in flight %d, queued %d", e.Address, e.InFlight, e.QueuedTokens)
		}
	}
}

// descriptors is how many files this process has open.
func descriptors(t testing.TB) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("descriptors are counted in /proc, which this system does not have:", err)
	}
	return len(entries)
}

func TestDescriptorsReturnToTheirStart(t *testing.T) {
	pods := startPods(t, 3, quick)
	f := startFleet(t, pods...)
	f.mustAsk(t, request{Messages: []message{{"user", "hello"}}, MaxTokens: 1})
	before := descriptors(t)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			f.ask(t.Context(), request{Messages: []message{{"user", prose(i, 100)}}, MaxTokens: 20})
		})
	}
	wg.Wait()
	f.client.CloseIdleConnections()
	for _, p := range pods {
		p.stop() // and with them the connections that wait for work
	}
	waitFor(t, "all descriptors are closed", func() bool { return descriptors(t) <= before })
}
