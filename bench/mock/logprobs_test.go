package mock

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
)

type chatLogprobs struct {
	Choices []struct {
		Message  struct{ Content string }
		TokenIDs []uint32 `json:"token_ids"`
		Logprobs struct {
			Content []struct {
				Token   string
				Logprob float64
				Bytes   []int
				Top     []struct {
					Token   string
					Logprob float64
				} `json:"top_logprobs"`
			}
		}
	}
	PromptTokenIDs []uint32 `json:"prompt_token_ids"`
}

func TestChatLogprobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		c := connect(t, ln)
		_, text := c.ask(post("/v1/chat/completions", userSays("hi", `,"max_tokens":12,"logprobs":true,"top_logprobs":3,"return_token_ids":true,"n":2`)))
		r := decode[chatLogprobs](t, text)
		for _, choice := range r.Choices {
			said := ""
			for _, l := range choice.Logprobs.Content {
				said += l.Token
				if l.Logprob > 0 || len(l.Bytes) != len(l.Token) || len(l.Top) != 3 || l.Top[0].Token != l.Token || l.Top[1].Logprob >= l.Logprob {
					t.Errorf("%+v", l)
				}
			}
			if said != choice.Message.Content || len(choice.TokenIDs) != 12 || len(choice.Logprobs.Content) != 12 {
				t.Errorf("%q of %q, %d ids", said, choice.Message.Content, len(choice.TokenIDs))
			}
		}
		if len(r.PromptTokenIDs) == 0 {
			t.Error("no prompt ids")
		}
		if resp, text := c.ask(post("/v1/chat/completions", userSays("hi", `,"logprobs":true,"top_logprobs":21`))); resp.StatusCode != 400 {
			t.Error(text)
		}
	})
}

func TestCompletionLogprobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		c := connect(t, ln)
		type completion struct {
			Choices []struct {
				Text     string
				Logprobs struct {
					TextOffset    []int                `json:"text_offset"`
					TokenLogprobs []float64            `json:"token_logprobs"`
					TopLogprobs   []map[string]float64 `json:"top_logprobs"`
					Tokens        []string
				}
			}
		}
		const body = `{"prompt":["a","b"],"max_tokens":9,"logprobs":2`
		_, text := c.ask(post("/v1/completions", body+`}`))
		whole := decode[completion](t, text)
		for _, choice := range whole.Choices {
			l := choice.Logprobs
			for i, piece := range l.Tokens {
				if !strings.HasPrefix(choice.Text[l.TextOffset[i]:], piece) || l.TopLogprobs[i][piece] != l.TokenLogprobs[i] {
					t.Errorf("token %d %q: %+v", i, piece, l)
				}
			}
			if strings.Join(l.Tokens, "") != choice.Text {
				t.Errorf("%+v", choice)
			}
		}
		_, text = c.ask(post("/v1/completions", body+`,"stream":true}`))
		var offsets [2][]int
		for _, data := range stream(text) {
			e := decode[struct{ Choices []struct{ Index int } }](t, data)
			offsets[e.Choices[0].Index] = append(offsets[e.Choices[0].Index], decode[completion](t, data).Choices[0].Logprobs.TextOffset...)
		}
		for i, choice := range whole.Choices {
			if fmt.Sprint(offsets[i]) != fmt.Sprint(choice.Logprobs.TextOffset) {
				t.Errorf("choice %d: offsets %v in the stream, %v in one piece", i, offsets[i], choice.Logprobs.TextOffset)
			}
		}
	})
}

func TestRequestIDHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := tiny()
		cfg.RequestIDHeaders, cfg.APIKey = true, "secret"
		_, ln := start(t, cfg)
		c := connect(t, ln)
		authorized := "Authorization: Bearer secret"
		for _, raw := range []string{
			post("/v1/chat/completions", userSays("hi", `,"max_tokens":1`), authorized), post("/v1/messages", `{}`, authorized), get("/v1/models"), get("/health"),
			post("/v1/chat/completions", userSays("hi", `,"max_tokens":1,"stream":true`), authorized), get("/nothing"),
		} {
			for _, id := range []string{"", "mine"} {
				sent := raw
				if id != "" {
					sent = strings.Replace(raw, "\r\nHost", "\r\nX-Request-Id: "+id+"\r\nHost", 1)
				}
				resp, _ := c.ask(sent)
				if got := resp.Header[http.CanonicalHeaderKey("X-Request-Id")]; len(got) != 1 || id != "" && got[0] != id || id == "" && len(got[0]) != 32 {
					t.Errorf("%.40q with the id %q: %v", raw, id, got)
				}
			}
		}
	})
}
