package load

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/fairway-proxy/fairway/bench/workload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// traffic is a workload for a test.
func traffic(t *testing.T, name string, p workload.Params) *workload.Workload {
	t.Helper()
	w, err := workload.New(name, p)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// run is Run, which must not fail.
func run(t *testing.T, cfg Config) *Result {
	t.Helper()
	r, err := Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// show writes a result without its records.
func show(r *Result) string {
	b, err := json.Marshal(r)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// request is what an engine is asked.
type request struct {
	Model         string    `json:"model"`
	Messages      []message `json:"messages"`
	MaxTokens     int       `json:"max_tokens"`
	Stream        bool      `json:"stream"`
	IgnoreEOS     bool      `json:"ignore_eos"`
	StreamOptions *struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
}

// answer writes the stream of a healthy engine that says the words.
func answer(w http.ResponseWriter, usage string, words ...string) {
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	fmt.Fprint(w, "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n")
	for i, word := range words {
		finish := "null"
		if i == len(words)-1 {
			finish = `"stop"`
		}
		fmt.Fprintf(w, "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":%q},\"finish_reason\":%s}]}\n\n", word, finish)
		w.(http.Flusher).Flush()
	}
	if usage != "" {
		fmt.Fprintf(w, "data: {\"choices\":[],\"usage\":%s}\n\n", usage)
	}
	fmt.Fprint(w, "data: [DONE]\n\n")
}

func TestConversation(t *testing.T) {
	var mu sync.Mutex
	var asked []request
	conns := map[string]bool{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/models" {
			fmt.Fprint(w, `{"object":"list","data":[{"id":"first"},{"id":"second"}]}`)
			return
		}
		var q request
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil || r.URL.Path != "/v1/chat/completions" || r.Method != "POST" {
			t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
		}
		if r.Header.Get("X-Fairway-Explain") != "1" || r.Header.Get("Authorization") != "Bearer k" {
			t.Errorf("headers %v", r.Header)
		}
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, q)
		conns[r.RemoteAddr] = true
		w.Header().Set("X-Fairway-Endpoint", fmt.Sprintf("10.0.0.%d:8000", len(asked)%2))
		w.Header().Set("X-Request-Id", "id-1")
		answer(w, `{"prompt_tokens":100,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":60}}`, "One", " <two>", fmt.Sprint(" ", len(asked)))
	}))
	defer srv.Close()

	w, first, end := oneConversation(t, workload.Params{
		Rate: 4, Turns: 4, SystemTokens: 20, TurnTokens: 5, AnswerTokens: 3, Think: time.Millisecond,
	})
	var progress Progress
	var seen []Record
	r := run(t, Config{
		URL: srv.URL + "/v1/", Workload: w, Duration: end, Explain: true, IgnoreEOS: true, Progress: &progress,
		Header: http.Header{"authorization": {"Bearer k"}}, OnRecord: func(r Record) { seen = append(seen, r) },
	})

	if r.Model != "first" || r.Requests != 4 || r.OK != r.Requests || r.Failed+r.Cancelled+r.Skipped != 0 {
		t.Fatal(show(r))
	}
	if *r.HitRate != 0.6 || r.CompletionTokens != 3*r.Requests || r.Good != r.Requests || r.Goodput == 0 {
		t.Error(show(r))
	}
	if len(r.Endpoints) != 2 || r.TTFT.N != r.Requests || r.InterToken.N != 2*r.Requests || r.TPOT.N != r.Requests || r.E2E.N != r.Requests {
		t.Error(show(r))
	}
	if !reflect.DeepEqual(seen, r.Records) || progress.Sent.Load() != int64(r.Requests) || progress.Done.Load() != int64(r.Requests) ||
		progress.Tokens.Load() != int64(3*r.Requests) || progress.CachedTokens.Load() != int64(60*r.Requests) {
		t.Errorf("told of %d records, %v", len(seen), &progress)
	}
	last := asked[3]
	want := []message{{"system", workload.Text(first.System...)}}
	for i, turn := range first.Turns {
		if want = append(want, message{"user", workload.Text(turn.User...)}); i < 3 {
			want = append(want, message{"assistant", fmt.Sprint("One <two> ", i+1)})
		}
	}
	if !reflect.DeepEqual(last.Messages, want) {
		t.Errorf("asked  %q\nwanted %q", last.Messages, want)
	}
	if !last.Stream || last.MaxTokens != 3 || last.Model != "first" || !last.IgnoreEOS || !last.StreamOptions.IncludeUsage {
		t.Errorf("asked %+v", last)
	}
	if len(conns) > 1 {
		t.Errorf("a conversation took %d connections", len(conns))
	}
	if rec := r.Records[0]; rec.RequestID != "id-1" || rec.Finish != "stop" || rec.Status != 200 || rec.Endpoint != "10.0.0.1:8000" || *rec.CachedTokens != 60 {
		t.Errorf("%+v", rec)
	}
}

// oneConversation looks for a seed whose first conversation starts soon and whose second starts much later, at end.
func oneConversation(t *testing.T, p workload.Params) (w *workload.Workload, first workload.Session, end time.Duration) {
	t.Helper()
	for {
		w = traffic(t, "shared-prefix", p)
		var starts []time.Duration
		for s := range w.Sessions() {
			if len(starts) == 0 {
				first = s
			}
			if starts = append(starts, s.Start); len(starts) == 2 {
				break
			}
		}
		if starts[0] < 100*time.Millisecond && starts[1] > 3*time.Second {
			return w, first, starts[1]
		}
		p.Seed++
	}
}

func TestUsageNotAskedFor(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if bytes.Contains(body, []byte("stream_options")) || bytes.Contains(body, []byte("ignore_eos")) || r.Header.Get("X-Fairway-Explain") != "" {
			t.Errorf("asked %s", body)
		}
		answer(w, "", "a", "b")
	}))
	defer srv.Close()
	r := run(t, Config{
		URL: srv.URL, Model: "m", Workload: traffic(t, "unshared", workload.Params{Rate: 200}), Duration: 50 * time.Millisecond, OmitUsage: true,
	})
	if r.OK == 0 || r.HitRate != nil || r.CompletionTokens != 2*r.OK || r.PromptTokens != 0 {
		t.Error(show(r))
	}
}

func TestErrorClasses(t *testing.T) {
	stream := func(events ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for _, e := range events {
				fmt.Fprintf(w, "data: %s\n\n", e)
			}
		}
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(code)
			fmt.Fprint(w, `{"error":{"message":"no, `, code, `"}}`)
		}
	}
	token := `{"choices":[{"delta":{"content":"a"}}]}`
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		class   ErrorClass
		detail  string
		refused bool
	}{
		{"redirect", status(307), Err3xx, "no, 307", false},
		{"not found", status(404), Err4xx, "no, 404", false},
		{"too many", status(429), Err4xx, "no, 429", true},
		{"unavailable", status(503), Err5xx, "no, 503", true},
		{"bad gateway", status(502), Err5xx, "no, 502", false},
		{"no content", status(204), ErrMalformed, "", false},
		{"no answer", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, ErrConnect, "EOF", false},
		{"broken connection", func(w http.ResponseWriter, r *http.Request) {
			stream(token)(w, r)
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, ErrCut, "EOF", false},
		{"no DONE", stream(token, `{"choices":[{"delta":{},"finish_reason":"stop"}]}`), ErrCut, "without [DONE]", false},
		{"empty", stream(), ErrCut, "without [DONE]", false},
		{"error event", stream(token, `{"error":{"message":"pod died"}}`, "[DONE]"), ErrEvent, "pod died", false},
		{"abort", stream(token, `{"choices":[{"delta":{"content":"b"},"finish_reason":"abort"}]}`, "[DONE]"), ErrAbort, "gave", false},
		{"not JSON", stream(`{"choices":`), ErrMalformed, "cannot be read", false},
		{"endless line", stream(strings.Repeat("x", maxEvent)), ErrMalformed, "longer than", false},
		{"no stream", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"object":"chat.completion"}`)
		}, ErrMalformed, "chat.completion", false},
		{"timeout before the head", func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body) // only then does the server notice that the client leaves
			<-r.Context().Done()
		}, ErrTimeout, "", false},
		{"timeout in the stream", func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			stream(token)(w, r)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, ErrTimeout, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(c.handler)
			defer srv.Close()
			cfg := Config{
				URL: srv.URL, Model: "m", Duration: 20 * time.Millisecond, Timeout: time.Minute,
				Workload: traffic(t, "shared-prefix", workload.Params{Rate: 400, Turns: 2, SystemTokens: 5, TurnTokens: 5}),
			}
			if c.class == ErrTimeout {
				cfg.Timeout = 100 * time.Millisecond
			}
			r := run(t, cfg)
			if r.Requests == 0 || r.Failed != r.Requests || r.Errors[c.class] != r.Requests || len(r.Errors) != 1 || r.OK+r.Good+r.Cancelled != 0 {
				t.Fatalf("%d requests, %d failed, errors %v: %q", r.Requests, r.Failed, r.Errors, r.Records[0].Detail)
			}
			firstTurns := 0
			for _, rec := range r.Records {
				firstTurns += 1 - rec.Turn
			}
			if r.Skipped != firstTurns {
				t.Errorf("%d second turns skipped after %d first ones failed", r.Skipped, firstTurns)
			}
			if d := r.Records[0].Detail; !strings.Contains(d, c.detail) || d == "" && c.class != ErrMalformed {
				t.Errorf("detail %q", d)
			}
			if (r.Refused > 0) != c.refused || r.E2E.N != 0 {
				t.Error(show(r))
			}
		})
	}
}

// What a conversation is worth is said by the name that the server has for it, and told of by what it was.
func TestCriticality(t *testing.T) {
	var mu sync.Mutex
	said := map[string]int{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		objective := r.Header.Get("X-Gateway-Inference-Objective")
		mu.Lock()
		said[objective]++
		mu.Unlock()
		switch objective {
		case "batch":
			w.WriteHeader(http.StatusTooManyRequests)
		case "urgent":
			answer(w, "", "a", "b")
		default:
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	defer srv.Close()
	r := run(t, Config{
		URL: srv.URL, Model: "m", Duration: 200 * time.Millisecond, Objectives: map[string]string{"Critical": "urgent", "Sheddable": "batch"},
		Workload: traffic(t, "mix", workload.Params{Rate: 300, SystemTokens: 5, TurnTokens: 5}),
	})
	if len(r.Classes) != 3 || len(said) != 3 {
		t.Fatalf("%v: %s", said, show(r))
	}
	critical, standard, sheddable := r.Classes[0], r.Classes[1], r.Classes[2]
	for _, c := range []struct {
		got  Class
		want Class
		said string
	}{
		{critical, Class{Criticality: "Critical", OK: critical.Requests, CompletionTokens: 2 * critical.Requests}, "urgent"},
		{standard, Class{Criticality: "Standard", Failed: standard.Requests}, ""},
		{sheddable, Class{Criticality: "Sheddable", Refused: sheddable.Requests}, "batch"},
	} {
		c.want.Requests, c.want.Good, c.want.Goodput, c.want.TTFT = said[c.said], c.got.Good, c.got.Goodput, c.got.TTFT
		if c.got != c.want {
			t.Errorf("%+v\nwant %+v", c.got, c.want)
		}
	}
	if critical.TTFT != r.TTFT || critical.Good != r.Good || critical.Goodput != r.Goodput || sheddable.TTFT.N != 0 || r.Refused != sheddable.Requests {
		t.Error(show(r))
	}
	for _, rec := range r.Records {
		if line, _ := json.Marshal(rec); !strings.Contains(string(line), `"criticality":"`+rec.Criticality+`"`) || rec.Criticality == "" {
			t.Errorf("%s", line)
		}
	}
	if text := show(r); strings.Count(text, `"ttft_p90_s"`) != 2 || !strings.Contains(text, `"by_criticality":[{"criticality":"Critical"`) {
		t.Errorf("of all and of those that were served: %s", text)
	}
}

func TestNobodyThere(t *testing.T) {
	srv := httptest.NewServer(nil)
	url := srv.URL
	srv.Close()
	w := traffic(t, "unshared", workload.Params{Rate: 200})
	if _, err := Run(t.Context(), Config{URL: url, Workload: w}); err == nil || !strings.Contains(err.Error(), "/v1/models") {
		t.Errorf("error %v", err)
	}
	r := run(t, Config{URL: url, Workload: w, Model: "m", Duration: 50 * time.Millisecond})
	if r.Requests == 0 || r.Errors[ErrConnect] != r.Requests {
		t.Error(show(r))
	}
}

func TestModelDiscoveryFails(t *testing.T) {
	for body, want := range map[string]string{`{"data":[]}`: "lists no model", `<html>`: "name the model"} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, body) }))
		_, err := Run(t.Context(), Config{URL: srv.URL, Workload: traffic(t, "chat", workload.Params{})})
		if srv.Close(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v", body, err)
		}
	}
}

func TestBaseURL(t *testing.T) {
	for in, want := range map[string]string{
		"http://a:1": "http://a:1", "http://a:1/": "http://a:1", "http://a:1/v1": "http://a:1", "https://a/x/v1/": "https://a/x",
		"a:1": "", "ftp://a": "", "http://": "", "": "", "http://a b": "",
	} {
		if got, err := baseURL(in); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	if _, err := Run(t.Context(), Config{URL: "http://a"}); err == nil {
		t.Error("no workload is accepted")
	}
}

// fake is an engine in virtual time: its head comes after stall, then a token every gap, tokens times, then after what it does
// until the request is given up.
type fake struct {
	stall, gap time.Duration
	tokens     int
	hangAfter  bool
	requests   atomic.Int64
}

func (f *fake) RoundTrip(r *http.Request) (*http.Response, error) {
	f.requests.Add(1)
	ctx := r.Context()
	wait := func(d time.Duration) bool {
		select {
		case <-time.After(d):
			return true
		case <-ctx.Done():
			return false
		}
	}
	if !wait(f.stall) {
		return nil, ctx.Err()
	}
	read, write := io.Pipe()
	go func() {
		for i := range f.tokens {
			if i > 0 && !wait(f.gap) {
				write.CloseWithError(ctx.Err())
				return
			}
			fmt.Fprint(write, "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\r\n\r\n")
		}
		fmt.Fprint(write, "data: [DONE]\r\n\r\n")
		if f.hangAfter {
			<-ctx.Done()
		}
		write.CloseWithError(io.EOF)
	}()
	return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: read}, nil
}

// A server that stalls delays no request behind it, and is charged from when each was due.
func TestOpenLoop(t *testing.T) {
	for _, stall := range []time.Duration{0, 30 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			const gap = 20 * time.Millisecond
			w := traffic(t, "unshared", workload.Params{Seed: 2, Rate: 50, AnswerTokens: 5})
			var due []time.Duration
			for s := range w.Sessions() {
				if s.Start >= 10*time.Second {
					break
				}
				due = append(due, s.Start)
			}
			r := run(t, Config{
				URL: "http://engine", Model: "m", Workload: w, Duration: 10 * time.Second, Transport: &fake{stall: stall, gap: gap, tokens: 5},
			})
			if r.OK != len(due) || r.OK < 400 {
				t.Fatalf("%d of %d answered", r.OK, len(due))
			}
			for _, rec := range r.Records {
				if rec.Intended != due[rec.Session] || rec.Sent != rec.Intended {
					t.Fatalf("request %d was due at %v, intended at %v, sent at %v", rec.Session, due[rec.Session], rec.Intended, rec.Sent)
				}
			}
			if !near(r.TTFT.P50, stall) || !near(r.TTFT.Max, stall) || !near(r.E2E.P90, stall+4*gap) || !near(r.InterToken.P99, gap) ||
				!near(r.TPOT.Mean, gap) || r.SendLag.Max != 0 {
				t.Errorf("stall %v: %s", stall, show(r))
			}
			if good := r.Good == r.OK; good != (stall == 0) {
				t.Errorf("stall %v: %d good", stall, r.Good)
			}
		})
	}
}

// near reports whether a figure of a distribution is what it ought to be, to a thousandth.
func near(got, want time.Duration) bool { return (got - want).Abs() <= want/1000 }

// Requests of the warm-up are sent, and leave no trace in what is measured.
func TestWarmup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := &fake{tokens: 2, gap: time.Millisecond}
		cfg := Config{
			URL: "http://engine", Model: "m", Workload: traffic(t, "unshared", workload.Params{Rate: 20}), Duration: 20 * time.Second,
			Warmup: 15 * time.Second, Transport: engine, OnRecord: func(r Record) {
				if r.Intended < 15*time.Second {
					t.Errorf("told of a request that was due at %v", r.Intended)
				}
			},
		}
		r := run(t, cfg)
		if sent := int(engine.requests.Load()); r.Requests < 70 || r.Requests > 130 || sent < 300 || r.TTFT.N != r.Requests || len(r.Records) != r.Requests {
			t.Errorf("%d requests sent, of these %s", sent, show(r))
		}
		if r.Elapsed > 5.1 || r.RequestsPerS < 14 {
			t.Error(show(r))
		}
	})
}

// A ramp sends at the rate that a straight line has at each moment.
func TestRamp(t *testing.T) {
	for _, c := range []struct {
		from, to            float64
		early, middle, late int // requests in the first, middle and last tenth of 100 s
	}{
		{10, 50, 120, 300, 480},
		{50, 0.001, 475, 250, 25},
		{20, 20, 200, 200, 200},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := run(t, Config{
				URL: "http://engine", Model: "m", Workload: traffic(t, "unshared", workload.Params{Rate: c.from}), Duration: 100 * time.Second,
				RampTo: c.to, Transport: &fake{tokens: 1},
			})
			var tenths [10]int
			for _, rec := range r.Records {
				tenths[rec.Intended/(10*time.Second)]++
			}
			for _, x := range []struct{ got, want int }{{tenths[0], c.early}, {(tenths[4] + tenths[5]) / 2, c.middle}, {tenths[9], c.late}} {
				if d := x.got - x.want; d*d > 16*x.want { // four standard deviations
					t.Errorf("from %v to %v: %v requests in tenths, want %d, …, %d, …, %d", c.from, c.to, tenths, c.early, c.middle, c.late)
				}
			}
		})
	}
	if _, err := Run(t.Context(), Config{URL: "http://e", Workload: traffic(t, "chat", workload.Params{}), RampTo: 3}); err == nil {
		t.Error("a ramp without end is accepted")
	}
}

// lateness makes whoever sends late: what happens before a request leaves is charged to it.
type lateness struct {
	fake
	busy sync.Mutex
}

func (l *lateness) RoundTrip(r *http.Request) (*http.Response, error) {
	l.busy.Lock() // one at a time, as a client that is limited to one connection
	defer l.busy.Unlock()
	return l.fake.RoundTrip(r)
}

func TestWaitingForTheClientCounts(t *testing.T) {
	w := traffic(t, "unshared", workload.Params{Seed: 2, Rate: 10})
	srv := &lateness{fake: fake{stall: 50 * time.Millisecond, tokens: 1}}
	p := newPlayer(Config{Workload: w, Duration: time.Second, Progress: new(Progress)}, &client{transport: srv, base: "http://e"})
	p.start = time.Now().Add(-2 * time.Second) // a player that comes two seconds late
	p.play(t.Context())
	r := p.result(false)
	if r.OK == 0 || r.TTFT.P50 < time.Second || r.SendLag.P50 < time.Second {
		t.Errorf("%d answered, TTFT %v, lag %v", r.OK, r.TTFT.P50, r.SendLag.P50)
	}
}

// The next question comes after the pause, not before the answer's end, and the load ends for turns too.
func TestThinkTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := traffic(t, "shared-prefix", workload.Params{Rate: 1, Turns: 4, Think: 10 * time.Second, SystemTokens: 9, TurnTokens: 9})
		r := run(t, Config{
			URL: "http://engine", Model: "m", Workload: w, Duration: 2 * time.Minute,
			Transport: &fake{stall: time.Second, gap: time.Second, tokens: 3, hangAfter: true}, // an answer takes 3 s
		})
		turns := map[uint64][]Record{}
		for _, rec := range r.Records {
			turns[rec.Session] = append(turns[rec.Session], rec)
		}
		for id, list := range turns {
			for i, rec := range list {
				if rec.Turn != list[0].Turn+i || rec.Sent != rec.Intended || rec.Error != "" || i > 0 && rec.Intended != list[i-1].End+10*time.Second || rec.Intended >= 2*time.Minute {
					t.Fatalf("conversation %d, turn %d: %+v", id, i, rec)
				}
			}
			if last := list[len(list)-1]; last.Turn < 3 && last.End+10*time.Second < 2*time.Minute {
				t.Errorf("conversation %d ended after %d turns", id, len(list))
			}
		}
	})
}

func TestInterrupt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		r, err := Run(ctx, Config{
			URL: "http://engine", Model: "m", Workload: traffic(t, "unshared", workload.Params{Rate: 10}), Timeout: time.Hour,
			Transport: &fake{stall: time.Second, gap: time.Second, tokens: 5},
		})
		if err != nil {
			t.Fatal(err)
		}
		if !r.Interrupted || r.OK < 100 || r.Cancelled < 20 || r.Failed != 0 || r.Skipped != 0 || r.OK+r.Cancelled != r.Requests {
			t.Error(show(r))
		}
		if r.Elapsed != 20 {
			t.Errorf("it took %v s to stop", r.Elapsed)
		}
		if r.TTFT.N <= r.OK {
			t.Error("the first tokens of unfinished answers were dropped")
		}
	})
}

// What the player spends on a token is what it takes from the rate it can offer.
func BenchmarkReadEvent(b *testing.B) {
	const event = `data: {"id":"chatcmpl-ab0d8700821db440","object":"chat.completion.chunk","created":1795391489,"model":"tiny","choices":` +
		`[{"index":0,"delta":{"content":" con"},"logprobs":null,"finish_reason":null,"token_ids":null}]}` + "\n\n"
	stream := strings.Repeat(event, b.N) + "data: [DONE]\n\n"
	b.SetBytes(int64(len(event)))
	b.ReportAllocs()
	b.ResetTimer()
	x := exchange{start: time.Now(), rec: new(Record), progress: new(Progress)}
	if class, err := x.read(strings.NewReader(stream)); class != "" {
		b.Fatal(err)
	}
}
