package proxy

import (
	"bufio"
	"io"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/picker/queue"
	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/openai"
)

// Whose a request is goes by what was verified, and else by where it comes from: a stranger is one flow whatever keys it shows.
func TestFlowsAreOfWhoIsKnown(t *testing.T) {
	flow := func(principal, address, key string) uint64 {
		x := Exchange{progress: progress{head: &message.Request{Fields: []message.Field{{Name: []byte("Authorization"), Value: []byte(key)}, {Name: []byte("X-Api-Key"), Value: []byte(key)}}}}}
		x.judged.Source = netip.MustParseAddr(address)
		x.record.Principal = principal
		return x.flowKey()
	}
	base := flow("", "192.0.2.1", "a")
	for _, c := range []struct {
		name                    string
		principal, address, key string
		same                    bool
	}{
		{"another key", "", "192.0.2.1", "b", true},
		{"mapped to IPv6", "", "::ffff:192.0.2.1", "a", true},
		{"another address", "", "192.0.2.2", "a", false},
		{"somebody who is known", "k", "192.0.2.1", "a", false},
	} {
		if same := flow(c.principal, c.address, c.key) == base; same != c.same {
			t.Errorf("%s: the same flow: %v", c.name, same)
		}
	}
	if flow("", "2001:db8::1", "") != flow("", "2001:db8::2:0:0:1", "") || flow("", "2001:db8::1", "") == flow("", "2001:db8:0:1::1", "") {
		t.Error("hosts in IPv6 are not told apart by their networks")
	}
	if flow("k", "192.0.2.1", "a") != flow("k", "192.0.2.2", "b") {
		t.Error("who is known is another flow from another address")
	}
}

// A request for several answers is expected to cost as many times what one of them may have, or has as a rule.
func TestBudgetCountsAllAnswers(t *testing.T) {
	for _, tt := range []struct {
		limits string
		tokens float64
	}{{`"max_tokens":20`, 30}, {`"stop":"x"`, 500}} {
		t.Run(tt.limits, func(t *testing.T) { testBudgetCountsAllAnswers(t, tt.limits, tt.tokens) })
	}
}

func testBudgetCountsAllAnswers(t *testing.T, limits string, tokens float64) {
	asked := make(chan struct{}, 2)
	p := scripted(t, func(_ net.Conn, in *bufio.Reader) {
		take(in)
		asked <- struct{}{}
		io.Copy(io.Discard, in)
	})
	s := startServer(t, World{Budgets: []queue.Limit{{TokensPerMinute: tokens}}}, p)
	m := post("/v1/chat/completions", `{"model":"mock","n":8,"messages":[{"role":"user","content":"hi"}],`+limits+`}`)
	done := make(chan struct{})
	go func() { s.Handle(m); close(done) }()
	<-asked
	m.leave()
	<-done
	m = post("/v1/chat/completions", chat(false, 1, "hi"))
	go func() { <-asked; m.leave() }()
	if s.Handle(m); m.answer.Status != 429 {
		t.Errorf("%d %s", m.answer.Status, m.seen())
	}
	asked <- struct{}{}
}

// What an engine has refused costs nothing; what it was asked costs what was expected, though the client leaves before the answer.
func TestBudgetIsNotGivenBackForLeaving(t *testing.T) {
	for _, leaves := range []bool{false, true} {
		asked := make(chan struct{}, 2)
		var left atomic.Bool
		p := scripted(t, func(c net.Conn, in *bufio.Reader) {
			for {
				if _, err := take(in); err != nil {
					return
				}
				asked <- struct{}{}
				if !leaves || left.Load() {
					io.WriteString(c, "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}")
				}
			}
		})
		s := startServer(t, World{Budgets: []queue.Limit{{TokensPerMinute: 100}}}, p)
		body := chat(false, 5, strings.Repeat("word ", 300))
		m := post("/v1/chat/completions", body)
		done := make(chan struct{})
		go func() { s.Handle(m); close(done) }()
		<-asked
		if leaves {
			left.Store(true)
			m.leave()
		}
		<-done
		m = post("/v1/chat/completions", body)
		s.Handle(m)
		if want := map[bool]int{false: 400, true: 429}[leaves]; m.answer.Status != want {
			t.Errorf("it leaves: %v: then %d %s, want %d", leaves, m.answer.Status, m.seen(), want)
		}
	}
}

// A request should get what its head says, and otherwise what is said of its pool.
func TestWhatARequestShouldGet(t *testing.T) {
	world := &World{SLOs: []SLO{{Pool: "a", TTFT: time.Second, TPOT: 50 * time.Millisecond}, {TTFT: 2 * time.Second}, {Pool: "b", TPOT: time.Second}}}
	const ms = time.Millisecond
	for _, tt := range []struct {
		pool       string
		fields     []string
		ttft, tpot time.Duration
		until      time.Duration
	}{
		{"a", nil, time.Second, 50 * ms, 0},
		{"b", nil, 2 * time.Second, 0, 0},
		{"a", []string{"x-slo-ttft-ms", "300"}, 300 * ms, 50 * ms, 0},
		{"a", []string{"X-SLO-TPOT-MS", "80.5", "x-llm-d-slo-ttft-ms", "1500"}, 1500 * ms, 80500 * time.Microsecond, 0},
		{"b", []string{"x-llm-d-slo-tpot-ms", "30", "x-slo-tpot-ms", "40"}, 2 * time.Second, 30 * ms, 0},
		{"b", []string{"x-slo-ttft-ms", "soon", "x-slo-tpot-ms", "-1"}, 2 * time.Second, 0, 0},
		{"b", []string{"x-slo-ttft-ms", "NaN", "x-slo-tpot-ms", "1e300"}, 2 * time.Second, 0, 0},
		{"b", []string{"x-slo-ttft-ms", "100", "x-stainless-timeout", "3", "x-envoy-expected-rq-timeout-ms", "5000"}, 100 * ms, 0, 3 * time.Second},
	} {
		x := Exchange{progress: progress{serving: &serving{world: world}, pool: &pool{name: tt.pool}, start: time.Minute, kind: openai.Chat}}
		x.judged.Source = netip.MustParseAddr("192.0.2.1")
		for i := 0; i < len(tt.fields); i += 2 {
			x.takeRank(&message.Field{Name: []byte(tt.fields[i]), Value: []byte(tt.fields[i+1])})
		}
		x.rank()
		want := picker.SLO{FirstToken: time.Minute + tt.ttft, PerToken: tt.tpot}
		if x.want.SLO != want || x.record.WantTTFT != tt.ttft || x.record.WantTPOT != tt.tpot {
			t.Errorf("%s %q: %v, want %v", tt.pool, tt.fields, x.want.SLO, want)
		}
		if tt.until > 0 {
			tt.until += time.Minute
		}
		if x.want.Until != tt.until {
			t.Errorf("%q: until %v, want %v", tt.fields, x.want.Until, tt.until)
		}
	}
}

// What cannot be in time goes where it is soonest, unless it is sheddable; and whether an objective is kept is counted.
func TestLateRequestsAreServed(t *testing.T) {
	s := startServer(t, World{SLOs: []SLO{{TTFT: time.Microsecond, TPOT: time.Hour}}}, startPod(t, "", quick))
	reg := prometheus.NewRegistry()
	s.account = account.New(reg, account.Config{})
	m := post("/v1/chat/completions", chat(true, 5, "hi"))
	s.Handle(m)
	if m.answer.Status != 200 {
		t.Fatalf("%d %s", m.answer.Status, m.seen())
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		if f.GetName() != "fairway_slo_requests_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			key := ""
			for _, l := range m.GetLabel() {
				key += l.GetName() + "=" + l.GetValue() + " "
			}
			got[key] = m.GetCounter().GetValue()
		}
	}
	want := map[string]float64{
		"met=false objective=ttft pool=pool ": 1, "met=true objective=ttft pool=pool ": 0,
		"met=false objective=tpot pool=pool ": 0, "met=true objective=tpot pool=pool ": 1,
	}
	if !maps.Equal(got, want) {
		t.Errorf("counted %v, want %v", got, want)
	}
}

// What an endpoint costs is no part of what it is: it keeps its connections, and what is known of it.
func TestCostChangesNoEndpoint(t *testing.T) {
	p := startPod(t, "", quick)
	s := startServer(t, World{}, p)
	before := s.Endpoints()[0]
	s.SetWorld(&World{Pools: []Pool{{Name: "pool", Endpoints: []Endpoint{{Address: p.address, Cost: 2.5}}}}})
	after := s.Endpoints()[0]
	if after.Endpoint != before.Endpoint || after.Transport != before.Transport || after.Endpoint.Cost() != 2.5 {
		t.Errorf("it costs %v; the same endpoint: %v, the same connections: %v", after.Endpoint.Cost(), after.Endpoint == before.Endpoint, after.Transport == before.Transport)
	}
}
