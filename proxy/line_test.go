package proxy

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/picker/queue"
	"github.com/fairway-proxy/fairway/proxy/account"
)

// occupy gives every endpoint of a pool more to do than anybody may add to.
func occupy(t testing.TB, p *picker.Pool) (release func()) {
	t.Helper()
	var leases []picker.Lease
	for _, e := range p.Endpoints() {
		var others []*picker.Endpoint
		for _, o := range p.Endpoints() {
			if o != e {
				others = append(others, o)
			}
		}
		l, err := p.Pick(&picker.Request{Bytes: 1 << 20, Stream: true, Exclude: others}, Now())
		if err != nil {
			t.Fatal(err)
		}
		leases = append(leases, l)
	}
	return func() {
		for i := range leases {
			leases[i].End(Now(), picker.Failed)
		}
	}
}

// Who waits gets its lease when the endpoint becomes less busy, in the order of priorities, and hears in time that it does not.
func TestGoroutinesParkOnTheirTickets(t *testing.T) {
	defer func(at time.Time) { processStart = at }(processStart)
	synctest.Test(t, func(t *testing.T) {
		processStart = time.Now() // a bubble has its own time
		l, p := newLine(picker.Config{})
		p.SetEndpoints([]picker.Spec{{Address: "a"}})
		release := occupy(t, p)
		var mu sync.Mutex
		var order []string
		var wg sync.WaitGroup
		ask := func(name string, r picker.Request) {
			wg.Go(func() {
				r.Now = Now()
				lease, err := l.lease(t.Context(), &r)
				if refused, ok := errors.AsType[*queue.Refusal](err); ok {
					name += " " + refused.Reason.String()
				} else if err != nil {
					t.Error(err)
				}
				mu.Lock()
				order = append(order, name)
				mu.Unlock()
				lease.End(Now(), picker.Failed)
			})
			synctest.Wait()
		}
		start := Now()
		ask("standard", picker.Request{})
		ask("late", picker.Request{Until: Now() + 2*time.Second})
		ask("sheddable", picker.Request{Priority: queue.Sheddable})
		ask("critical", picker.Request{Priority: queue.Critical})
		time.Sleep(time.Second)
		synctest.Wait()
		mu.Lock()
		if got := fmt.Sprint(order); got != "[sheddable saturated]" {
			t.Errorf("after a second: %s", got)
		}
		mu.Unlock()
		time.Sleep(2 * time.Second)
		release()
		wg.Wait()
		slices.Sort(order[2:]) // both hear at the same time
		if got, want := fmt.Sprint(order), "[sheddable saturated late deadline critical standard]"; got != want || Now()-start != 3*time.Second {
			t.Errorf("%v after %v", order, Now()-start)
		}
		time.Sleep(2 * lineTick)
		if l.ticking.Load() {
			t.Error("the queue is looked after though nobody waits")
		}
	})
}

// Ten thousand clients that leave give everything back.
func TestStormOfDisconnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, p := newLine(picker.Config{})
		l.set(Queue{Requests: 10_000})
		p.SetEndpoints([]picker.Spec{{Address: "a"}})
		release := occupy(t, p)
		before := p.Endpoints()[0].Load(Now())
		heap := func() uint64 {
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc + m.StackInuse
		}
		start := heap()
		for round := range 3 {
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			for i := range 10_000 {
				wg.Go(func() {
					r := picker.Request{Now: Now(), Flow: uint64(i % 300), Held: 100, Bytes: 4000}
					if _, err := l.lease(ctx, &r); !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
				})
			}
			synctest.Wait()
			if _, n, _ := l.queue.Len(); n != 10_000 {
				t.Fatalf("%d wait", n)
			}
			cancel()
			wg.Wait()
			if l.queue.Waiting() || p.Endpoints()[0].Load(Now()) != before {
				t.Fatalf("round %d: %+v, was %+v", round, p.Endpoints()[0].Load(Now()), before)
			}
		}
		if end := heap(); end > start+8<<20 {
			t.Errorf("%d KiB more than before", (end-start)>>10)
		}
		release()
		time.Sleep(2 * lineTick)
	})
}

// queued is a Server with one engine that has no room, and what it counts.
func queued(t *testing.T, w World) (s *Server, reg *prometheus.Registry, release func()) {
	s = startServer(t, w, startPod(t, "", quick))
	reg = prometheus.NewRegistry()
	s.account = account.New(reg, account.Config{})
	return s, reg, occupy(t, s.pools["pool"].picker)
}

// waitFor waits until one request of a class waits.
func waitFor(s *Server, one func(QueueState) int) {
	for one(s.Queues()[0]) != 1 {
		runtime.Gosched()
	}
}

func TestRefusalsSayWhyAndWhenToComeAgain(t *testing.T) {
	w := World{Objectives: []Objective{{Name: "batch", Pool: "pool", Priority: -1}, {Name: "vip", Pool: "pool", Priority: 5}}}
	for _, c := range []struct {
		name, typ, dropped, reason, class string
		queue                             Queue
		fields                            []string
	}{
		{"sheddable", "fairway_saturated", "rejected-saturated", "saturated", "sheddable",
			Queue{SheddableWait: time.Millisecond}, []string{"x-gateway-inference-objective", "batch"}},
		{"newer name", "fairway_saturated", "rejected-saturated", "saturated", "sheddable",
			Queue{SheddableWait: time.Millisecond}, []string{"X-LLM-D-Inference-Objective", "batch"}},
		{"a stranger raises nothing", "fairway_queue_timeout", "rejected-ttl-expired", "queue_timeout", "standard",
			Queue{Wait: time.Millisecond}, []string{"x-gateway-inference-objective", "vip"}},
		{"unknown objective", "fairway_queue_timeout", "rejected-ttl-expired", "queue_timeout", "standard",
			Queue{Wait: time.Millisecond}, []string{"x-gateway-inference-objective", "no such"}},
		{"full", "fairway_queue_full", "rejected-saturated", "queue_full", "standard", Queue{Bytes: 1}, nil},
		{"deadline", "fairway_deadline", "rejected-ttl-expired", "deadline", "standard", Queue{}, []string{"x-envoy-expected-rq-timeout-ms", "5"}},
		{"SLO", "fairway_slo", "rejected-saturated", "slo", "sheddable", Queue{}, []string{"x-gateway-inference-objective", "batch", "x-slo-ttft-ms", "5"}},
		{"SLO, newer name", "fairway_slo", "rejected-saturated", "slo", "sheddable", Queue{Off: true}, []string{"x-gateway-inference-objective", "batch", "x-llm-d-slo-ttft-ms", "5"}},
		{"deadline of the SDK", "fairway_deadline", "rejected-ttl-expired", "deadline", "standard", Queue{}, []string{"x-stainless-read-timeout", "0.01"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := w
			w.Queue = c.queue
			s, reg, release := queued(t, w)
			defer release()
			m := post("/v1/chat/completions", chat(false, 3, "hi"), c.fields...)
			s.Handle(m)
			if m.answer.Status != 429 || !strings.Contains(m.seen(), `"type":"`+c.typ+`"`) || m.field("x-llm-d-request-dropped-reason") != c.dropped {
				t.Errorf("%d %q: %s", m.answer.Status, m.field("x-llm-d-request-dropped-reason"), m.seen())
			}
			if after := m.field("retry-after"); after != "1" {
				t.Errorf("Retry-After %q", after)
			}
			if n := shed(t, reg, c.class, c.reason); n != 1 {
				t.Errorf("%v are counted as shed", n)
			}
		})
	}
}

// shed is what fairway_shed_total counts of a class and a reason.
func shed(t *testing.T, reg *prometheus.Registry, class, reason string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := make(map[string]string)
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if f.GetName() == "fairway_shed_total" && labels["pool"] == "pool" && labels["criticality"] == class && labels["reason"] == reason {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// A request that waits is served as soon as there is room, whoever it is, and one whose client leaves is forgotten at once.
func TestWaitingRequestsAreServed(t *testing.T) {
	w := World{
		Models:        []Model{{Name: "mock", Pool: "pool"}, {Name: "critical", Pool: "pool", Criticality: Critical, Targets: []Target{{"mock", 1}}}},
		Objectives:    []Objective{{Name: "vip", Pool: "pool", Priority: 5}},
		RaisePriority: RaiseAnyone,
	}
	s, _, release := queued(t, w)
	var wg sync.WaitGroup
	begin := func(body string, fields ...string) *memoryStream {
		m := post("/v1/chat/completions", body, fields...)
		wg.Go(func() { s.Handle(m) })
		return m
	}
	standard := begin(chat(false, 3, "hi"))
	waitFor(s, func(q QueueState) int { return q.Standard })
	raised := begin(chat(true, 3, "hi"), "x-gateway-inference-objective", "vip")
	waitFor(s, func(q QueueState) int { return q.Critical })
	raised.leave()
	waitFor(s, func(q QueueState) int { return 1 - q.Critical })
	byModel := begin(strings.Replace(chat(false, 3, "hi"), `"mock"`, `"critical"`, 1))
	waitFor(s, func(q QueueState) int { return q.Critical })
	// What is for no model goes past them.
	m := post("/tokenize", `{"model":"mock","prompt":"a"}`)
	m.head.Target = []byte("/version")
	m.head.Method, m.head.ContentLength, m.body = []byte("GET"), 0, strings.NewReader("")
	s.Handle(m)
	if m.answer.Status != 200 {
		t.Errorf("GET /version: %d %s", m.answer.Status, m.seen())
	}
	release()
	wg.Wait()
	for _, m := range []*memoryStream{standard, byModel} {
		if m.answer.Status != 200 {
			t.Errorf("%d %s", m.answer.Status, m.seen())
		}
	}
	if raised.started {
		t.Error("who has left was answered")
	}
}

// Where the queue is off, everything is sent at once.
func TestQueueOff(t *testing.T) {
	s, _, release := queued(t, World{Queue: Queue{Off: true}})
	defer release()
	m := post("/v1/chat/completions", chat(false, 3, "hi"))
	s.Handle(m)
	if m.answer.Status != 200 {
		t.Errorf("%d %s", m.answer.Status, m.seen())
	}
}

// What a request was expected to cost is settled by what it has cost.
func TestBudget(t *testing.T) {
	s := startServer(t, World{Budgets: []queue.Limit{{Model: "mock", TokensPerMinute: 1000}}}, startPod(t, "", quick))
	ask := func(model string, tokens int) *memoryStream {
		m := post("/v1/chat/completions", strings.Replace(chat(false, tokens, strings.Repeat("word ", 300)), `"mock"`, `"`+model+`"`, 1))
		s.Handle(m)
		return m
	}
	served := 0
	for range 20 {
		m := ask("mock", 5)
		if m.answer.Status == 200 {
			served++
			continue
		}
		if m.answer.Status != 429 || !strings.Contains(m.seen(), `"fairway_budget_exceeded"`) || m.field("retry-after") == "" {
			t.Fatalf("%d %s", m.answer.Status, m.seen())
		}
	}
	if served < 1 || served > 4 {
		t.Errorf("%d requests of more than 300 tokens were served of 1000 a minute", served)
	}
}
