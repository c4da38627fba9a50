package load

import (
	"net"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/bench/workload"
)

// startMock starts a mock vLLM and returns its URL.
func startMock(t *testing.T, cfg mock.Config) (*mock.Server, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := mock.New(cfg)
	served := make(chan error)
	go func() { served <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Close()
		<-served
	})
	return srv, "http://" + ln.Addr().String()
}

// What the player reports is what the engine counted, prompts are as long as described, and later turns are found in the cache up to
// the question: they hold the answers that were really given.
func TestAgainstMockEngine(t *testing.T) {
	srv, url := startMock(t, mock.Config{Speed: 20})
	w := traffic(t, "chat", workload.Params{
		Seed: 4, Rate: 40, Groups: 2, SystemTokens: 400, TurnTokens: 60, AnswerTokens: 40, Turns: 4, Think: 100 * time.Millisecond,
	})
	r := run(t, Config{URL: url, Workload: w, Duration: 2 * time.Second, IgnoreEOS: true})
	if r.OK != r.Requests || r.OK < 40 || r.Model != "mock" {
		t.Fatal(show(r))
	}
	if st := srv.Stats(); st.Received != uint64(r.OK) || st.Engine.GenerationTokens != uint64(r.CompletionTokens) ||
		st.Engine.PromptTokensCached != uint64(r.CachedTokens) || st.Engine.PromptTokens != uint64(r.PromptTokens) {
		t.Errorf("the engine counted %+v\nthe player %s", st, show(r))
	}

	described := map[uint64]workload.Session{}
	for s := range w.Sessions() {
		if s.Start > 2*time.Second {
			break
		}
		described[s.ID] = s
	}
	before := map[uint64]Record{} // the turn before, by conversation
	followUps := 0
	for _, rec := range r.Records {
		s := described[rec.Session]
		// The chat template adds a few tokens to each message.
		if extra := rec.PromptTokens - s.PromptTokens(rec.Turn); extra < 0 || extra > 12*(2*rec.Turn+3) {
			t.Errorf("turn %d of %d has %d tokens, described as %d", rec.Turn, rec.Session, rec.PromptTokens, s.PromptTokens(rec.Turn))
		}
		if rec.CompletionTokens != s.Turns[rec.Turn].Answer.Tokens {
			t.Errorf("an answer of %d tokens, asked for %d", rec.CompletionTokens, s.Turns[rec.Turn].Answer.Tokens)
		}
		if last, ok := before[rec.Session]; ok {
			followUps++
			const block = 16 // tokens; the last token's keys and values are never computed
			if want := last.PromptTokens + last.CompletionTokens - 2*block; *rec.CachedTokens < want {
				t.Errorf("turn %d of %d: %d tokens cached, want %d of the turn before", rec.Turn, rec.Session, *rec.CachedTokens, want)
			}
		} else if rec.Turn != s.Resume {
			t.Errorf("%d begins with turn %d, want %d", rec.Session, rec.Turn, s.Resume)
		}
		before[rec.Session] = rec
	}
	if followUps < 10 {
		t.Errorf("only %d turns follow another", followUps)
	}
}

// The engine's faults are told apart.
func TestMockEngineFaults(t *testing.T) {
	w := traffic(t, "unshared", workload.Params{Rate: 100, TurnTokens: 20, AnswerTokens: 10})
	for _, c := range []struct {
		faults mock.Faults
		class  ErrorClass
	}{
		{mock.Faults{Status: 500}, Err5xx},
		{mock.Faults{Garbage: true}, ErrConnect},
		{mock.Faults{CutAfter: 3}, ErrCut},
		{mock.Faults{HeaderDelay: time.Minute}, ErrTimeout},
	} {
		srv, url := startMock(t, mock.Config{Speed: 50})
		srv.SetFaults(c.faults)
		cfg := Config{URL: url, Workload: w, Model: "mock", Duration: 100 * time.Millisecond, Timeout: time.Minute}
		if c.class == ErrTimeout {
			cfg.Timeout = 500 * time.Millisecond
		}
		r := run(t, cfg)
		if r.Requests == 0 || r.Errors[c.class] != r.Requests {
			t.Errorf("%+v: %v, as %s", c.faults, r.Errors, r.Records[0].Detail)
		}
	}
}

// A server told to stop ends its answers cleanly with finish_reason abort, which is a failure all the same.
func TestMockEngineShutsDown(t *testing.T) {
	srv, url := startMock(t, mock.Config{})
	progress := new(Progress)
	done := make(chan *Result)
	go func() {
		r, err := Run(t.Context(), Config{
			URL: url, Model: "mock", Workload: traffic(t, "unshared", workload.Params{Rate: 50, AnswerTokens: 2000}),
			Duration: 200 * time.Millisecond, IgnoreEOS: true, Progress: progress,
		})
		if err != nil {
			t.Error(err)
		}
		done <- r
	}()
	for tick := time.Tick(time.Millisecond); progress.Tokens.Load() < 20; {
		<-tick
	}
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if r := <-done; r.Errors[ErrAbort] == 0 || r.OK != 0 || r.TTFT.N == 0 {
		t.Errorf("%v", r.Errors)
	}
}
