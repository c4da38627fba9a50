package mock

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-proxy/fairway/bench/engine"
)

func TestSameRequestSameAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ask := func(seed uint64, body string) string {
			cfg := tiny()
			cfg.Seed = seed
			_, ln := start(t, cfg)
			return connect(t, ln).chat(body).Choices[0].Message.Content
		}
		body := userSays("Tell me a story.", "")
		first := ask(1, body)
		if again := ask(1, body); again != first || len(first) < 40 {
			t.Errorf("got %q and %q", first, again)
		}
		for what, other := range map[string]string{
			"server's seed":  ask(2, body),
			"request's seed": ask(1, userSays("Tell me a story.", `,"seed":7`)),
			"prompt":         ask(1, userSays("Tell me a story!", "")),
		} {
			if other == first {
				t.Errorf("another %s gave the same answer", what)
			}
		}
	})
}

// A zero Config works, and so does a profile of which only the engine is given.
func TestDefaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, cfg := range []Config{{}, {Profile: engine.Profile{Engine: engine.Config{Blocks: 100}}}} {
			_, ln := start(t, cfg)
			a := connect(t, ln).chat(`{"messages":[{"role":"user","content":"hi"}],"max_tokens":3}`)
			if a.Usage.CompletionTokens != 3 || a.Model != "mock" {
				t.Errorf("%+v: %+v", cfg, a)
			}
		}
	})
}

func TestLengths(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		c := connect(t, ln)
		for _, tt := range []struct {
			more, finish string
			tokens       int
		}{
			{`,"max_tokens":7`, "length", 7},
			{`,"max_completion_tokens":9,"max_tokens":7`, "length", 9},
			{`,"max_tokens":null`, "stop", 0},
			{"", "stop", 0},
		} {
			a := c.chat(userSays("hi", tt.more))
			if a.Choices[0].FinishReason != tt.finish || tt.tokens != 0 && a.Usage.CompletionTokens != tt.tokens || a.Usage.CompletionTokens < 1 {
				t.Errorf("%s: %+v", tt.more, a)
			}
		}
	})
}

// The next turn of a conversation finds the last one's prompt and answer in the cache.
func TestConversationHitsTheCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ln := start(t, tiny())
		c := connect(t, ln)
		type message struct {
			Role    string `json:"role"`
			Content string `json:"content"`
		}
		talk := []message{{"system", strings.Repeat("You are helpful. ", 30)}, {"user", "Tell me about rivers."}}
		ask := func(more string) answer {
			m, _ := json.Marshal(talk)
			return c.chat(`{"tools":[{"type":"function"}],"messages":` + string(m) + more + `}`)
		}
		first := ask(`,"max_tokens":100`)
		if first.Usage.Details.Cached != 0 {
			t.Errorf("cached %d at first", first.Usage.Details.Cached)
		}
		talk = append(talk, message{"assistant", first.Choices[0].Message.Content}, message{"user", "And lakes?"})
		second := ask(`,"max_tokens":5`)
		known := first.Usage.PromptTokens + first.Usage.CompletionTokens - 1
		if want := known / 16 * 16; second.Usage.Details.Cached != want {
			t.Errorf("cached %d of %d known tokens, want %d", second.Usage.Details.Cached, known, want)
		}
		salted := ask(`,"max_tokens":5,"cache_salt":"tenant"`)
		if salted.Usage.Details.Cached != 0 {
			t.Errorf("a salt shares %d tokens", salted.Usage.Details.Cached)
		}
		st := s.Stats().Engine
		if st.PrefixHits != uint64(second.Usage.Details.Cached) {
			t.Errorf("the engine counted %d hits", st.PrefixHits)
		}
	})
}

func TestStopStrings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ln := start(t, tiny())
		c := connect(t, ln)
		whole := c.chat(userSays("hi", `,"max_tokens":60`)).Choices[0].Message.Content
		sentence, _, _ := strings.Cut(whole, ". ")
		stop := fmt.Sprintf(`,"max_tokens":60,"stop":["never there",%q]`, whole[len(sentence)-3:len(sentence)+2])
		a := c.chat(userSays("hi", stop))
		if got := a.Choices[0]; got.Message.Content != sentence[:len(sentence)-3] || got.FinishReason != "stop" || got.StopReason == nil {
			t.Errorf("got %+v\nof  %q", got, whole)
		}
		_, stream := c.ask(post("/v1/chat/completions", userSays("hi", stop+`,"stream":true`)))
		text := ""
		for _, line := range strings.Split(stream, "\n\n") {
			var e struct {
				Choices []struct{ Delta struct{ Content string } }
			}
			if json.Unmarshal([]byte(strings.TrimPrefix(line, "data: ")), &e) == nil && len(e.Choices) > 0 {
				text += e.Choices[0].Delta.Content
			}
		}
		if text != sentence[:len(sentence)-3] || !strings.Contains(stream, `"finish_reason":"stop"`) {
			t.Errorf("streamed %q", text)
		}
		if st := s.Stats(); st.Engine.Running != 0 || st.Answered != 3 {
			t.Errorf("stats %+v", st)
		}
	})
}

func TestCompletionPrompts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		c := connect(t, ln)
		for _, tt := range []struct {
			body    string
			choices int
		}{
			{`{"prompt":"hi"}`, 1}, {`{"prompt":["hi","there"],"n":2}`, 4}, {`{"prompt":[1,2,3]}`, 1}, {`{"prompt":[[1,2],[3]]}`, 2},
		} {
			_, text := c.ask(post("/v1/completions", tt.body))
			var a answer
			json.Unmarshal([]byte(text), &a)
			if len(a.Choices) != tt.choices || a.Usage.CompletionTokens != 16*tt.choices {
				t.Errorf("%s: %s", tt.body, text)
			}
			for i, choice := range a.Choices {
				if choice.Index != i || choice.Text == "" {
					t.Errorf("%s: choice %d: %+v", tt.body, i, choice)
				}
			}
		}
		for _, body := range []string{`{}`, `{"prompt":5}`, `{"prompt":[]}`, `{"prompt":[[]]}`, `{"prompt":"a","n":0}`, `{"prompt":"a","n":1000000}`, `[]`, `{"prompt":"a","model":3}`} {
			if resp, text := c.ask(post("/v1/completions", body)); resp.StatusCode != http.StatusBadRequest {
				t.Errorf("%s: %s %s", body, resp.Status, text)
			}
		}
	})
}

func TestQueueLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := tiny()
		cfg.MaxQueued = 1
		s, ln := start(t, cfg)
		busy := connect(t, ln)
		busy.send(post("/v1/chat/completions", userSays("hi", `,"max_tokens":100`)))
		synctest.Wait()
		resp, text := connect(t, ln).ask(post("/v1/chat/completions", userSays("hi", "")))
		const want = `{"error":{"message":"The engine is currently busy and cannot accept new requests. Please try again later or on a different ` +
			`instance.","type":"Service Unavailable","param":null,"code":503}}`
		if resp.StatusCode != http.StatusServiceUnavailable || text != want || resp.Header.Get("Retry-After") != "" {
			t.Errorf("%s: %s", resp.Status, text)
		}
		busy.read()
		if st := s.Stats(); st.Answered != 1 || st.Refused != 1 || st.Received != 2 {
			t.Errorf("stats %+v", st)
		}
	})
}

func TestAPIKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := tiny()
		cfg.APIKey = "secret"
		_, ln := start(t, cfg)
		c := connect(t, ln)
		for _, tt := range []struct {
			raw    string
			status int
		}{
			{get("/v1/models"), 401},
			{strings.Replace(get("/v1/models"), "Host", "Authorization: Bearer wrong\r\nHost", 1), 401},
			{strings.Replace(get("/v1/models"), "Host", "Authorization: Bearer secret\r\nHost", 1), 200},
			{get("/metrics"), 200}, {get("/health"), 200},
		} {
			if resp, _ := c.ask(tt.raw); resp.StatusCode != tt.status {
				t.Errorf("%q: %s", tt.raw, resp.Status)
			}
		}
	})
}

func TestRequestIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ln := start(t, tiny())
		c := connect(t, ln)
		a := c.chat(userSays("hi", `,"max_tokens":1`), `X-Request-Id: my "id"`)
		if a.ID != `chatcmpl-my "id"` || s.ReceivedID(`my "id"`) != 1 || s.ReceivedID("other") != 0 {
			t.Errorf("id %q, received %d", a.ID, s.ReceivedID(`my "id"`))
		}
	})
}

func TestHideCachedTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := tiny()
		cfg.HideCachedTokens = true
		_, ln := start(t, cfg)
		c := connect(t, ln)
		if a := c.chat(userSays("hi", `,"max_tokens":1`)); a.Usage.Details != nil || a.Usage.PromptTokens == 0 {
			t.Errorf("usage %+v", a.Usage)
		}
		_, text := c.ask(post("/v1/chat/completions", userSays("hi", `,"max_tokens":1,"stream":true,"stream_options":{"include_usage":true}`)))
		if strings.Contains(text, "cached_tokens") || !strings.Contains(text, `"completion_tokens":1}`) {
			t.Error(text)
		}
	})
}

// SIGTERM ends a stream cleanly, and says abort.
func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ln := New(tiny()), newPipes()
		served := make(chan error, 1)
		go func() { served <- s.Serve(ln) }()
		stream, whole, idle, late := connect(t, ln), connect(t, ln), connect(t, ln), connect(t, ln)
		stream.send(post("/v1/chat/completions", userSays("hi", `,"max_tokens":5000,"stream":true`)))
		whole.send(post("/v1/chat/completions", userSays("hi", `,"max_tokens":5000`)))
		late.send("POST /v1/chat/completions HTTP/1.1\r\nHost: mock\r\nContent-Type: application/json\r\nContent-Length: 60\r\n\r\n")
		for range 3 {
			stream.readEvent()
		}
		synctest.Wait()
		done := make(chan error, 1)
		go func() { done <- s.Shutdown(t.Context()) }()

		last, event := "", stream.readEvent()
		for ; event != "data: [DONE]\n"; event = stream.readEvent() {
			last = event
		}
		_, capture, _ := strings.Cut(testdata(t, "stream-while-sigterm.txt"), `"finish_reason":"abort"`)
		want, _, _ := strings.Cut(capture, "\n")
		if _, got, _ := strings.Cut(mask(last), `"finish_reason":"abort"`); got != mask(want)+"\n" {
			t.Errorf("the stream ended with %q, want ...%q", last, want)
		}
		go io.Copy(io.Discard, stream.br)
		if _, text := whole.read(); !strings.Contains(text, `"finish_reason":"abort"`) {
			t.Errorf("the whole answer: %s", text)
		}
		if _, err := idle.br.ReadByte(); err != io.EOF {
			t.Errorf("an idle connection: %v", err)
		}
		if _, err := ln.dial(); err == nil {
			t.Error("a new connection was accepted")
		}
		late.send(userSays("hi", `,"max_tokens":5000`)[:60])
		late.read() // cut JSON: an error; but an answer
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := <-served; err != ErrClosed {
			t.Error(err)
		}
	})
}

func TestShutdownGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ln := New(tiny()), newPipes()
		go s.Serve(ln)
		stuck := connect(t, ln)
		stuck.send("POST /v1/chat/completions HTTP/1.1\r\nHost: mock\r\nContent-Length: 60\r\n\r\n")
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != context.DeadlineExceeded {
			t.Errorf("got %v", err)
		}
	})
}

func TestCloseResets(t *testing.T) {
	s := New(tiny())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	c := &client{t, nc, nil}
	c.send(post("/v1/chat/completions", userSays("hi", `,"max_tokens":5000,"stream":true`)))
	nc.Read(make([]byte, 1))
	s.Close()
	if _, err := io.ReadAll(nc); err == nil {
		t.Error("the connection ended without an error")
	}
	if err := <-served; err != ErrClosed {
		t.Error(err)
	}
	s.Close() // again
	if err := s.Serve(ln); err != ErrClosed {
		t.Error(err)
	}
}

func TestFaults(t *testing.T) {
	body := userSays("hi", `,"max_tokens":5,"stream":true`)
	synctest.Test(t, func(t *testing.T) {
		s, ln := start(t, tiny())
		raw := post("/v1/chat/completions", body)

		var seen string
		s.SetFaults(Faults{OnRequest: func(r *http.Request, b []byte) { seen = r.URL.Path + string(b) }, HeaderDelay: time.Second})
		begun := time.Now()
		connect(t, ln).ask(raw)
		if time.Since(begun) < time.Second || seen != "/v1/chat/completions"+body {
			t.Errorf("after %v saw %q", time.Since(begun), seen)
		}
		s.SetFaults(Faults{Status: 500})
		if resp, text := connect(t, ln).ask(raw); resp.StatusCode != 500 {
			t.Errorf("%s: %s", resp.Status, text)
		}
		s.SetFaults(Faults{Garbage: true})
		c := connect(t, ln)
		c.send(raw)
		if said, _ := io.ReadAll(c.nc); len(said) == 0 || strings.HasPrefix(string(said), "HTTP") {
			t.Errorf("garbage: %q", said)
		}
		s.SetFaults(Faults{CutAfter: 3})
		c = connect(t, ln)
		c.send(raw)
		if said, _ := io.ReadAll(c.nc); strings.Count(string(said), "data: ") != 3 {
			t.Errorf("cut: %q", said)
		}
		s.SetFaults(Faults{})
		if _, text := connect(t, ln).ask(raw); !strings.Contains(text, "[DONE]") {
			t.Errorf("no fault: %q", text)
		}
	})
}

// The engine's time is the wall's: a step's end is when its tokens are there, and Speed divides it.
func TestPace(t *testing.T) {
	for _, speed := range []float64{1, 10} {
		synctest.Test(t, func(t *testing.T) {
			_, ln := start(t, Config{Model: "tiny", Speed: speed}) // an H100: 7 ms a step
			c := connect(t, ln)
			begun := time.Now()
			prompt := c.chat(userSays("hi", `,"max_tokens":101`)).Usage.PromptTokens
			took := time.Since(begun).Seconds() * speed
			want := 101*.007 + 25e-6*float64(prompt) + 100*39e-9*(float64(prompt)+49.5)
			if took < want-1e-6 || took > want+1e-5 {
				t.Errorf("at speed %v an answer of 101 tokens took %.6f s of the engine's time, want %.6f", speed, took, want)
			}
		})
	}
}
