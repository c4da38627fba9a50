package proxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"mime/multipart"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc/grpclog"

	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/message"
)

func TestMain(m *testing.M) {
	if os.Getenv(pickerProcess) != "" {
		runPicker()
		return
	}
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	goleak.VerifyTestMain(m)
}

// pod is a mock engine on a loopback address of its own.
type pod struct {
	*mock.Server
	address string
}

// startPod starts an engine, at address if it is not empty.
func startPod(t testing.TB, address string, c mock.Config) *pod {
	t.Helper()
	if address == "" {
		address = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{mock.New(c), l.Addr().String()}
	served := make(chan error, 1)
	go func() { served <- p.Serve(l) }()
	t.Cleanup(func() {
		p.Close()
		<-served
	})
	return p
}

// startServer makes a Server with one pool of these pods.
func startServer(t testing.TB, w World, pods ...*pod) *Server {
	t.Helper()
	pool := Pool{Name: "pool"}
	for _, p := range pods {
		pool.Endpoints = append(pool.Endpoints, Endpoint{Address: p.address})
	}
	w.Pools = append(w.Pools, pool)
	s := New(Config{Account: account.New(prometheus.NewRegistry(), account.Config{}), Log: slog.New(slog.DiscardHandler)})
	s.SetWorld(&w)
	t.Cleanup(func() { s.Shutdown(t.Context()) })
	return s
}

// quick is an engine a hundred times faster than a real one.
var quick = mock.Config{Speed: 100}

func chat(stream bool, tokens int, messages ...string) string {
	type message struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	body := struct {
		Messages  []message `json:"messages"` // before model, as the Python SDK sends them
		Model     string    `json:"model"`
		MaxTokens int       `json:"max_tokens"`
		Stream    bool      `json:"stream,omitempty"`
	}{Model: "mock", MaxTokens: tokens, Stream: stream}
	for i, text := range messages {
		role := "user"
		if i%2 == 1 {
			role = "assistant"
		}
		body.Messages = append(body.Messages, message{role, text})
	}
	raw, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	return string(raw)
}

func TestStreamIsRelayedWithoutTheUsageNobodyAskedFor(t *testing.T) {
	s := startServer(t, World{}, startPod(t, "", quick))
	m := post("/v1/chat/completions", chat(true, 5, "hello"))
	s.Handle(m)

	if m.answer.Status != 200 || !m.finished || m.aborted {
		t.Fatalf("status %d, finished %v, aborted %v", m.answer.Status, m.finished, m.aborted)
	}
	events := strings.Split(strings.TrimSuffix(m.seen(), "\n\n"), "\n\n")
	if got, want := len(events), 1+5+1; got != want { // role, five tokens, [DONE]
		t.Errorf("%d events, want %d:\n%s", got, want, m.seen())
	}
	if last := events[len(events)-1]; last != "data: [DONE]" {
		t.Errorf("the last event is %q", last)
	}
	if strings.Contains(m.seen(), `"usage"`) {
		t.Errorf("the usage event was not withheld:\n%s", m.seen())
	}
}

func TestStreamOptionsOfTheClientAreItsOwn(t *testing.T) {
	p := startPod(t, "", quick)
	s := startServer(t, World{}, p)
	body := strings.TrimSuffix(chat(true, 3, "hello"), "}") + `,"stream_options":{"include_usage":true}}`
	var got string
	p.SetFaults(mock.Faults{OnRequest: func(_ *http.Request, b []byte) { got = string(b) }})
	m := post("/v1/chat/completions", body)
	s.Handle(m)
	if got != body {
		t.Errorf("the body was changed:\n%s\nwas\n%s", got, body)
	}
	if !strings.Contains(m.seen(), `"choices":[],"usage"`) {
		t.Errorf("the usage event is missing:\n%s", m.seen())
	}
}

func TestObserveSendsEveryBodyAsItCame(t *testing.T) {
	p := startPod(t, "", quick)
	s := startServer(t, World{Usage: UsageObserve}, p)
	var got string
	p.SetFaults(mock.Faults{OnRequest: func(_ *http.Request, b []byte) { got = string(b) }})
	body := chat(true, 3, "hello")
	s.Handle(post("/v1/chat/completions", body))
	if got != body {
		t.Errorf("the body was changed:\n%s\nwas\n%s", got, body)
	}
}

func TestAnswerThatIsNoStreamIsRelayedWhole(t *testing.T) {
	s := startServer(t, World{}, startPod(t, "", quick))
	m := post("/v1/chat/completions", chat(false, 5, "hello"))
	s.Handle(m)
	var answer struct {
		Usage struct {
			Completion int `json:"completion_tokens"`
		} `json:"usage"`
	}
	if err := json.Unmarshal([]byte(m.seen()), &answer); err != nil || answer.Usage.Completion != 5 {
		t.Errorf("%v in %s", err, m.seen())
	}
	if m.answer.ContentLength != int64(len(m.seen())) {
		t.Errorf("content-length %d, body %d", m.answer.ContentLength, len(m.seen()))
	}
}

func TestRequestID(t *testing.T) {
	p := startPod(t, "", quick)
	s := startServer(t, World{}, p)
	for _, test := range []struct {
		name, given string
		kept        bool
	}{
		{"passed on", "my-id.42", true},
		{"made", "", false},
		{"unsafe is replaced", "a b\tc", false},
		{"too long is replaced", strings.Repeat("x", longestID+1), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			var upstream []string
			p.SetFaults(mock.Faults{OnRequest: func(r *http.Request, _ []byte) { upstream = r.Header.Values("X-Request-Id") }})
			m := post("/v1/chat/completions", chat(false, 1, "hi"))
			if test.given != "" {
				m = post("/v1/chat/completions", chat(false, 1, "hi"), "X-Request-ID", test.given)
			}
			s.Handle(m)
			id := m.field("x-request-id")
			if len(upstream) != 1 || upstream[0] != id {
				t.Errorf("answered with %q, sent %q upstream", id, upstream)
			}
			if test.kept != (id == test.given) || id == "" {
				t.Errorf("id %q for %q", id, test.given)
			}
			if n := len(regexp.MustCompile("(?i)x-request-id").FindAllString(fmt.Sprintf("%s", m.fields), -1)); n != 1 {
				t.Errorf("%d x-request-id fields in the answer", n)
			}
		})
	}
}

func TestExplain(t *testing.T) {
	p := startPod(t, "", quick)
	for _, test := range []struct {
		mode      ExplainMode
		asked     string
		explained bool
	}{
		{"", "", false},
		{"", "1", true},
		{ExplainOnRequest, "0", false},
		{ExplainAlways, "", true},
		{ExplainNever, "1", false},
	} {
		t.Run(fmt.Sprintf("%s/%s", test.mode, test.asked), func(t *testing.T) {
			s := startServer(t, World{Explain: test.mode}, p)
			var upstream http.Header
			p.SetFaults(mock.Faults{OnRequest: func(r *http.Request, _ []byte) { upstream = r.Header }})
			m := post("/v1/chat/completions", chat(false, 1, "hi"), "X-Fairway-Explain", test.asked)
			s.Handle(m)
			endpoint, receipt := m.field("x-fairway-endpoint"), m.field("x-fairway-receipt")
			if !test.explained {
				if endpoint != "" || receipt != "" {
					t.Errorf("explained: %q %q", endpoint, receipt)
				}
			} else {
				if endpoint != p.address {
					t.Errorf("endpoint %q, want %q", endpoint, p.address)
				}
				var r struct{ Endpoint, Pool, ID string }
				if err := json.Unmarshal([]byte(receipt), &r); err != nil || r.Endpoint != p.address || r.Pool != "pool" || r.ID == "" {
					t.Errorf("receipt %q: %v", receipt, err)
				}
			}
			if upstream.Get("X-Fairway-Explain") != "" {
				t.Error("the field that speaks to the proxy went upstream")
			}
		})
	}
}

// refusal takes an error answer apart.
func refusal(t *testing.T, m *memoryStream) (typ, message string) {
	t.Helper()
	var body struct {
		Error struct {
			Message, Type string
			Param         *string
			Code          int
		}
	}
	if err := json.Unmarshal([]byte(m.seen()), &body); err != nil {
		t.Fatalf("%v in %q", err, m.seen())
	}
	if body.Error.Code != m.answer.Status || !m.finished {
		t.Errorf("code %d in an answer of status %d, finished %v", body.Error.Code, m.answer.Status, m.finished)
	}
	return body.Error.Type, body.Error.Message
}

func TestRefusals(t *testing.T) {
	p := startPod(t, "", quick)
	known := World{Models: []Model{{Name: "known", Pool: "pool"}}}
	small := World{Limits: Limits{Body: 100}}
	spent := World{Limits: Limits{Buffers: 100}}
	unknownLength := post("/v1/chat/completions", chat(false, 1, strings.Repeat("x", 1<<14)))
	unknownLength.head.ContentLength = -1
	cut := post("/v1/chat/completions", chat(false, 1, "hi"))
	cut.head.ContentLength += 10
	for _, test := range []struct {
		name   string
		world  World
		stream *memoryStream
		status int
		typ    string
		says   string
	}{
		{"unknown model", known, post("/v1/chat/completions", chat(false, 1, "hi")), 404, "fairway_unknown_model", "`mock`"},
		{"body too large", small, post("/v1/chat/completions", chat(false, 1, strings.Repeat("x", 200))), 413, "fairway_body_too_large", "100 bytes"},
		{"unknown length too large", small, unknownLength, 413, "fairway_body_too_large", "100 bytes"},
		{"buffers spent", spent, post("/v1/chat/completions", chat(false, 1, strings.Repeat("x", 200))), 503, "fairway_buffers_spent", "limits.buffers"},
		{"no JSON", World{}, post("/v1/chat/completions", `{"model":`), 400, "fairway_bad_request", "byte 9"},
		{"model is no string", World{}, post("/v1/chat/completions", `{"model":7,"messages":[]}`), 400, "fairway_bad_request", "model"},
		{"body cut off", World{}, cut, 400, "fairway_bad_request", "broke off"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := startServer(t, test.world, p)
			before := p.Stats().Received
			s.Handle(test.stream)
			typ, says := refusal(t, test.stream)
			if test.stream.answer.Status != test.status || typ != test.typ || !strings.Contains(says, test.says) {
				t.Errorf("%d %s: %s", test.stream.answer.Status, typ, says)
			}
			if p.Stats().Received != before {
				t.Error("the request went to an engine")
			}
			if s.Buffered() != 0 {
				t.Errorf("%d bytes are still held", s.Buffered())
			}
		})
	}
}

func TestModelsGoToTheirPoolUnderTheirTargetName(t *testing.T) {
	a, b := startPod(t, "", mock.Config{Speed: 100, Model: "a-v1"}), startPod(t, "", mock.Config{Speed: 100, Model: "b"})
	w := World{
		Pools: []Pool{{Name: "b", Endpoints: []Endpoint{{Address: b.address}}}},
		Models: []Model{
			{Name: "alpha", Pool: "pool", Targets: []Target{{Name: "a-v1", Weight: 1}}},
			{Name: "b", Pool: "b"},
		},
	}
	s := startServer(t, w, a)
	for _, test := range []struct {
		model string
		to    *pod
	}{{"alpha", a}, {"b", b}} {
		before := test.to.Stats().Received
		m := post("/v1/chat/completions", strings.Replace(chat(false, 1, "hi"), `"mock"`, `"`+test.model+`"`, 1))
		s.Handle(m)
		if m.answer.Status != 200 || test.to.Stats().Received != before+1 {
			t.Errorf("%s: %d %s", test.model, m.answer.Status, m.seen())
		}
	}
	m := post("/v1/unknown", "{}")
	s.Handle(m)
	if typ, _ := refusal(t, m); typ != "fairway_no_route" {
		t.Errorf("a path that names no model, between two pools: %s", typ)
	}
}

// In the form of a transcription the model is a field among others.
func TestFormsAreRoutedByTheirModel(t *testing.T) {
	a, b := startPod(t, "", mock.Config{Speed: 100, Model: "whisper-1"}), startPod(t, "", mock.Config{Speed: 100, Model: "b"})
	w := World{
		Pools:  []Pool{{Name: "b", Endpoints: []Endpoint{{Address: b.address}}}},
		Models: []Model{{Name: "b", Pool: "b"}, {Name: "whisper", Pool: "pool", Targets: []Target{{Name: "whisper-1", Weight: 1}}}},
	}
	s := startServer(t, w, a)
	form := func(model string) *memoryStream {
		var body bytes.Buffer
		f := multipart.NewWriter(&body)
		file, _ := f.CreateFormFile("file", "speech.wav")
		file.Write(bytes.Repeat([]byte("RIFF\x00\xff"), 1000))
		f.WriteField("model", model)
		f.Close()
		m := post("/v1/audio/transcriptions", body.String())
		m.head.Fields[0].Value = []byte(f.FormDataContentType())
		return m
	}
	for model, to := range map[string]*pod{"whisper": a, "b": b} {
		before := to.Stats().Received
		m := form(model)
		s.Handle(m)
		if m.answer.Status != 200 || to.Stats().Received != before+1 {
			t.Errorf("%s: %d %s", model, m.answer.Status, m.seen())
		}
	}
	m := form("nobody")
	s.Handle(m)
	if typ, _ := refusal(t, m); typ != "fairway_unknown_model" {
		t.Errorf("an unknown model: %s", typ)
	}
}

func TestOtherPathsPassThrough(t *testing.T) {
	s := startServer(t, World{}, startPod(t, "", quick))
	for path, want := range map[string]string{"/version": `{"version":`, "/v1/models": `"id":"mock"`, "/nowhere": `{"detail":"Not Found"}`} {
		m := post(path, "")
		m.head.Method = []byte("GET")
		s.Handle(m)
		if !strings.Contains(m.seen(), want) {
			t.Errorf("%s: %d %s", path, m.answer.Status, m.seen())
		}
	}
}

// An adapter is loaded by every pod, or the answer says which has not.
func TestAdaptersAreLoadedByEveryPod(t *testing.T) {
	updating := mock.Config{Speed: 100, LoraUpdates: true}
	a, b, fixed := startPod(t, "", updating), startPod(t, "", updating), startPod(t, "", quick)
	load := `{"lora_name":"sql","lora_path":"/adapters/sql"}`
	s := startServer(t, World{}, a, b)
	m := post("/v1/load_lora_adapter", load)
	s.Handle(m)
	if m.answer.Status != 200 || !strings.Contains(m.seen(), "sql") {
		t.Fatalf("%d %s", m.answer.Status, m.seen())
	}
	for _, p := range []*pod{a, b} {
		m := post("/v1/chat/completions", strings.Replace(chat(false, 1, "hi"), `"mock"`, `"sql"`, 1))
		startServer(t, World{}, p).Handle(m)
		if m.answer.Status != 200 {
			t.Errorf("%s: %d %s", p.address, m.answer.Status, m.seen())
		}
	}
	m = post("/v1/load_lora_adapter", load)
	s.Handle(m) // all refuse: the engine's own answer
	if m.answer.Status != 400 || strings.Contains(m.seen(), "fairway_") {
		t.Errorf("loaded twice: %d %s", m.answer.Status, m.seen())
	}
	m = post("/v1/unload_lora_adapter", `{"lora_name":"sql"}`)
	startServer(t, World{}, a, fixed).Handle(m)
	if typ, says := refusal(t, m); m.answer.Status != 502 || typ != "fairway_partly_done" || !strings.Contains(says, fixed.address) || strings.Contains(says, a.address) {
		t.Errorf("%d %s: %s", m.answer.Status, typ, says)
	}
}

func TestLoadReportIsThePickersUnlessTheClientAsked(t *testing.T) {
	p := startPod(t, "", quick)
	s := startServer(t, World{}, p)
	endpoint := s.Endpoints()[0].Endpoint
	for _, stream := range []bool{false, true} {
		m := post("/v1/chat/completions", chat(stream, 1, "hi"))
		s.Handle(m)
		if got := m.field(fieldLoad); m.answer.Status != 200 || got != "" {
			t.Errorf("stream %v: status %d, report %q", stream, m.answer.Status, got)
		}
	}
	if age := endpoint.Load(Now()).ScrapeAge; age < 0 {
		t.Error("the picker heard nothing")
	}
	for _, format := range []string{"TEXT", "JSON"} {
		m := post("/v1/chat/completions", chat(false, 1, "hi"), "Endpoint-Load-Metrics-Format", format)
		s.Handle(m)
		if got := m.field(fieldLoad); !strings.HasPrefix(got, format) {
			t.Errorf("asked for %s, got %q", format, got)
		}
	}
}

func TestLoadValue(t *testing.T) {
	for _, test := range []struct {
		report string
		value  float64
		ok     bool
	}{
		{"TEXT named_metrics.num_requests_waiting=3.0, named_metrics.kv_cache_usage_perc=0.25", 0.25, true},
		{`JSON {"named_metrics": {"num_requests_waiting": 3.0, "kv_cache_usage_perc": 0.25}}`, 0.25, true},
		{"TEXT named_metrics.kv_cache_usage_perc=", 0, false},
		{"TEXT named_metrics.kv_cache_usage_perc=x", 0, false},
		{"", 0, false},
	} {
		if v, ok := loadValue([]byte(test.report), "kv_cache_usage_perc"); v != test.value || ok != test.ok {
			t.Errorf("%q: %v, %v", test.report, v, ok)
		}
	}
}

func TestModelsAreListedOverAllEndpoints(t *testing.T) {
	a := startPod(t, "", mock.Config{Speed: 100, Model: "a", Loras: []string{"shared"}})
	b := startPod(t, "", mock.Config{Speed: 100, Model: "b", Loras: []string{"shared"}})
	dead := startPod(t, "", quick)
	dead.Close()
	var fields []message.Field
	list := func(s *Server) (ids []string) {
		m := post("/v1/models", "")
		m.head.Method = []byte("GET")
		s.Handle(m)
		var list struct{ Data []struct{ ID string } }
		if err := json.Unmarshal([]byte(m.seen()), &list); err != nil || m.answer.Status != 200 {
			t.Fatalf("%d %s: %v", m.answer.Status, m.seen(), err)
		}
		fields = m.answer.Fields
		for _, d := range list.Data {
			ids = append(ids, d.ID)
		}
		return ids
	}
	if ids := list(startServer(t, World{}, dead, a, b)); !slices.Equal(ids, []string{"a", "shared", "b"}) {
		t.Errorf("listed %v", ids)
	}
	if string(message.Get(fields, "vary")) != "Origin" || string(message.Get(fields, "content-type")) != "application/json" {
		t.Errorf("what the engine says to other origins is withheld: %s", fields)
	}
	configured := World{Models: []Model{{Name: "users-name", Pool: "pool", Targets: []Target{{Name: "a", Weight: 1}}}}}
	if ids := list(startServer(t, configured, a)); !slices.Equal(ids, []string{"users-name"}) {
		t.Errorf("listed %v", ids)
	}
	m := post("/v1/models", "")
	m.head.Method = []byte("GET")
	startServer(t, World{}, dead).Handle(m)
	if typ, _ := refusal(t, m); m.answer.Status != 502 || typ != "fairway_upstream_failed" {
		t.Errorf("%d %s", m.answer.Status, typ)
	}
}

func TestDeadEndpointIsPassedOver(t *testing.T) {
	dead, alive := startPod(t, "", quick), startPod(t, "", quick)
	dead.Close()
	s := startServer(t, World{}, dead, alive)
	for i := range 20 {
		m := post("/v1/chat/completions", chat(true, 2, fmt.Sprint("hello ", i)))
		s.Handle(m)
		if m.answer.Status != 200 || !m.finished {
			t.Fatalf("%d %s", m.answer.Status, m.seen())
		}
	}
	for _, e := range s.Endpoints() {
		if got := e.Endpoint.Ejected(Now()); got != (e.Endpoint.Address() == dead.address) {
			t.Errorf("%s ejected: %v", e.Endpoint.Address(), got)
		}
	}
}

// A pool that is down costs its requests little, once that is known.
func TestPoolThatIsDown(t *testing.T) {
	var pods []*pod
	for range 10 {
		p := startPod(t, "", quick)
		p.Close()
		pods = append(pods, p)
	}
	s := startServer(t, World{}, pods...)
	for i := range 3 {
		m := post("/v1/chat/completions", chat(true, 2, "hello"))
		s.Handle(m)
		if typ, _ := refusal(t, m); m.answer.Status != 502 || typ != "fairway_upstream_failed" {
			t.Errorf("%d %s", m.answer.Status, typ)
		}
		receipt := s.Endpoints()[0].Endpoint.Load(Now())
		if i > 0 && receipt.Failures > 3 {
			t.Errorf("%d failures of one endpoint", receipt.Failures)
		}
	}
}

func TestNoEndpointAlive(t *testing.T) {
	dead := startPod(t, "", quick)
	dead.Close()
	s := startServer(t, World{}, dead)
	m := post("/v1/chat/completions", chat(true, 2, "hello"))
	s.Handle(m)
	if typ, says := refusal(t, m); m.answer.Status != 502 || typ != "fairway_upstream_failed" || !strings.Contains(says, dead.address) {
		t.Errorf("%d %s: %s", m.answer.Status, typ, says)
	}
	none := startServer(t, World{})
	m = post("/v1/chat/completions", chat(true, 2, "hello"))
	none.Handle(m)
	if typ, _ := refusal(t, m); m.answer.Status != 503 || typ != "fairway_no_endpoint" {
		t.Errorf("%d %s", m.answer.Status, typ)
	}
}

func TestEngineThatAnswersGarbageIsNotTheClientsProblem(t *testing.T) {
	broken, sound := startPod(t, "", quick), startPod(t, "", quick)
	broken.SetFaults(mock.Faults{Garbage: true})
	s := startServer(t, World{}, broken, sound)
	for i := range 20 {
		m := post("/v1/chat/completions", chat(true, 2, fmt.Sprint("hello ", i)))
		s.Handle(m)
		if m.answer.Status != 200 {
			t.Fatalf("%d %s", m.answer.Status, m.seen())
		}
	}
	if broken.Stats().Received == 0 {
		t.Error("the broken engine was never asked: this test shows nothing")
	}
	alone := startServer(t, World{}, broken)
	m := post("/v1/chat/completions", chat(true, 2, "hello"))
	alone.Handle(m)
	if typ, _ := refusal(t, m); m.answer.Status != 502 || typ != "fairway_upstream_failed" {
		t.Errorf("%d %s", m.answer.Status, typ)
	}
}

func TestStreamCutByItsEngineEndsWithAnErrorEvent(t *testing.T) {
	p := startPod(t, "", quick)
	p.SetFaults(mock.Faults{CutAfter: 3})
	s := startServer(t, World{}, p)
	m := post("/v1/chat/completions", chat(true, 50, "hello"))
	s.Handle(m)
	events := strings.Split(strings.TrimSuffix(m.seen(), "\n\n"), "\n\n")
	n := len(events)
	if n < 3 || events[n-1] != "data: [DONE]" || !strings.HasPrefix(events[n-2], `data: {"error":{`) || !strings.Contains(events[n-2], "fairway_upstream_failed") {
		t.Errorf("ended with\n%s", m.seen())
	}
	if !m.finished || p.Stats().Received != 1 {
		t.Errorf("finished %v after %d requests", m.finished, p.Stats().Received)
	}
}

// A vLLM that is told to end ends its streams in order, with finish_reason
// "abort": the client sees that, and it counts as a failure.
func TestStreamAbortedByItsEngineCountsAsAFailure(t *testing.T) {
	p := startPod(t, "", mock.Config{})
	registry := prometheus.NewRegistry()
	s := New(Config{Account: account.New(registry, account.Config{}), Log: slog.New(slog.DiscardHandler)})
	s.SetWorld(&World{Pools: []Pool{{Name: "pool", Endpoints: []Endpoint{{Address: p.address}}}}})
	defer s.Shutdown(t.Context())
	m := post("/v1/chat/completions", chat(true, 100_000, "hello"))
	var once sync.Once
	ended := make(chan struct{})
	m.onWrite = func() {
		once.Do(func() {
			go func() {
				p.Shutdown(context.Background())
				close(ended)
			}()
		})
	}
	s.Handle(m)
	<-ended
	if !strings.Contains(m.seen(), `"finish_reason":"abort"`) || !strings.HasSuffix(m.seen(), "data: [DONE]\n\n") || strings.Contains(m.seen(), `"error"`) {
		t.Errorf("it ended with\n%s", m.seen()[max(0, len(m.seen())-600):])
	}
	families, err := registry.Gather()
	if err != nil || !strings.Contains(fmt.Sprint(families), account.UpstreamAborted) {
		t.Errorf("the failure was not counted: %v, %v", families, err)
	}
}

// A fault of ours in the middle of an answer is ours, not the client's leaving.
func TestFaultInTheMiddleOfAnAnswer(t *testing.T) {
	p := startPod(t, "", quick)
	registry := prometheus.NewRegistry()
	s := New(Config{Account: account.New(registry, account.Config{}), Log: slog.New(slog.DiscardHandler)})
	s.SetWorld(&World{Pools: []Pool{{Name: "pool", Endpoints: []Endpoint{{Address: p.address}}}}})
	defer s.Shutdown(t.Context())
	m := post("/v1/chat/completions", chat(true, 5, "hello"))
	m.onWrite = func() { panic("a bug") }
	s.Handle(m)
	families, err := registry.Gather()
	if all := fmt.Sprint(families); err != nil || !m.aborted || !strings.Contains(all, "fairway_internal") || strings.Contains(all, account.ClientGone) {
		t.Errorf("broken off: %t; counted as %v, %v", m.aborted, families, err)
	}
}

func TestClientThatLeavesIsNotAnswered(t *testing.T) {
	p := startPod(t, "", mock.Config{})
	s := startServer(t, World{}, p)
	m := post("/v1/chat/completions", chat(true, 100_000, "hello"))
	m.onWrite = m.leave
	s.Handle(m)
	if !m.aborted || m.finished {
		t.Errorf("aborted %v, finished %v", m.aborted, m.finished)
	}
	left := post("/v1/chat/completions", chat(true, 5, "hello"))
	left.leave()
	s.Handle(left)
	if left.started || !left.aborted {
		t.Errorf("a client that had left before: started %v, aborted %v", left.started, left.aborted)
	}
}

// The OpenAI Python SDK closes its connection at [DONE], before the end of the
// body: that client has all it wanted.
func TestClientThatLeavesAtTheEndMark(t *testing.T) {
	left := make(chan struct{})
	p := scripted(t, func(c net.Conn, in *bufio.Reader) {
		take(in)
		done := event + "data: [DONE]\n\n"
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n", len(done), done)
		<-left
	})
	registry := prometheus.NewRegistry()
	s := New(Config{Account: account.New(registry, account.Config{}), Log: slog.New(slog.DiscardHandler)})
	s.SetWorld(&World{Pools: []Pool{{Name: "pool", Endpoints: []Endpoint{{Address: p.address}}}}})
	defer s.Shutdown(t.Context())
	m := post("/v1/chat/completions", chat(true, 1, "hello"))
	m.onWrite = func() {
		if strings.Contains(m.seen(), "[DONE]") {
			m.writeErr = errClientLeft
			m.leave()
		}
	}
	s.Handle(m)
	close(left)
	families, err := registry.Gather()
	if err != nil || strings.Contains(fmt.Sprint(families), account.ClientGone) {
		t.Errorf("%v, %v", families, err)
	}
}

func TestFirstByteTimeout(t *testing.T) {
	p := startPod(t, "", quick)
	p.SetFaults(mock.Faults{HeaderDelay: time.Minute})
	s := startServer(t, World{Timeouts: Timeouts{FirstByte: 50 * time.Millisecond}}, p)
	m := post("/v1/chat/completions", chat(true, 2, "hello"))
	s.Handle(m)
	if typ, says := refusal(t, m); m.answer.Status != 504 || typ != "fairway_timeout" || !strings.Contains(says, "50ms") {
		t.Errorf("%d %s: %s", m.answer.Status, typ, says)
	}
}

// Faults that only a bug could cause are kept to the request that met them.
func TestPanicIsContained(t *testing.T) {
	p := startPod(t, "", quick)
	s := startServer(t, World{}, p)
	m := post("/v1/chat/completions", chat(true, 2, "hello"))
	m.body = panicking{}
	s.Handle(m)
	if typ, _ := refusal(t, m); m.answer.Status != 500 || typ != "fairway_internal" {
		t.Errorf("%d %s", m.answer.Status, typ)
	}
	if s.Live() != 0 || s.Buffered() != 0 {
		t.Errorf("live %d, buffered %d", s.Live(), s.Buffered())
	}
}

type panicking struct{ io.Reader }

func (panicking) Read([]byte) (int, error) { panic("a bug") }
