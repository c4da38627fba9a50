package mock

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
)

type message struct {
	StopReason   *string `json:"stop_reason"`
	StopSequence *string `json:"stop_sequence"`
	Content      []struct {
		Type, Text, ID, Name string
		Input                json.RawMessage
	}
	Usage struct {
		Input    int  `json:"input_tokens"`
		Output   int  `json:"output_tokens"`
		Creation *int `json:"cache_creation_input_tokens"`
		Read     *int `json:"cache_read_input_tokens"`
	}
}

func (c *client) message(more string) message {
	c.t.Helper()
	resp, text := c.ask(post("/v1/messages", `{"model":"tiny",`+more+`}`))
	if resp.StatusCode != 200 {
		c.t.Fatalf("%s: %s", more, text)
	}
	return decode[message](c.t, text)
}

func TestMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		c := connect(t, ln)
		long := strings.Repeat("The river runs. ", 50)
		body := fmt.Sprintf(`"max_tokens":9,"system":[{"type":"text","text":%q}],"messages":[{"role":"user","content":"hi"}]`, long)
		first, second := c.message(body), c.message(body)
		// It is the prompt that a chat completion makes of it.
		a := c.chat(fmt.Sprintf(`{"max_tokens":9,"messages":[{"role":"system","content":%q},{"role":"user","content":"hi"}]}`, long))
		if first.Content[0].Text != a.Choices[0].Message.Content || *first.StopReason != "max_tokens" {
			t.Errorf("%+v and %+v", first, a)
		}
		// What is read from the cache and written to it is not counted as input.
		prompt := a.Usage.PromptTokens
		if first.Usage.Input+*first.Usage.Creation != prompt || *first.Usage.Read != 0 || second.Usage.Input+*second.Usage.Read+*second.Usage.Creation != prompt ||
			*second.Usage.Read == 0 || second.Usage.Output != 9 {
			t.Errorf("%+v then %+v of %d", first.Usage, second.Usage, prompt)
		}
		whole := a.Choices[0].Message.Content
		stop := whole[len(whole)-5:]
		if m := c.message(body + fmt.Sprintf(`,"stop_sequences":[%q]`, stop)); *m.StopReason != "stop_sequence" || *m.StopSequence != stop || m.Content[0].Text+stop != whole {
			t.Errorf("%+v", m)
		}
		_, text := c.ask(post("/v1/messages/count_tokens", `{"model":"tiny",`+body+`}`))
		if n := decode[map[string]any](t, text)["input_tokens"]; n != float64(prompt) {
			t.Errorf("%s, want %d", text, prompt)
		}
	})
}

func TestMessageToolCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		c := connect(t, ln)
		const hi = `"max_tokens":500,"messages":[{"role":"user","content":"hi"}]`
		tools := `,"tools":[{"name":"weather","input_schema":` + weather + `}],"tool_choice":`
		for _, choice := range []string{`{"type":"any"}`, `{"type":"tool","name":"weather"}`} {
			m := c.message(hi + tools + choice)
			if b := m.Content[0]; len(m.Content) != 1 || b.Type != "tool_use" || b.Name != "weather" || b.ID == "" || *m.StopReason != "tool_use" {
				t.Errorf("%+v", m)
			}
			checkArguments(t, string(m.Content[0].Input))

			_, text := c.ask(post("/v1/messages", `{"model":"tiny","stream":true,`+hi+tools+choice+`}`))
			names, data := named(text)
			arguments := ""
			for i, name := range names {
				if name == "content_block_delta" {
					arguments += decode[struct {
						Delta struct {
							PartialJSON string `json:"partial_json"`
						}
					}](t, data[i]).Delta.PartialJSON
				}
			}
			checkArguments(t, arguments)
			if strings.ReplaceAll(arguments, " ", "") != strings.ReplaceAll(string(m.Content[0].Input), " ", "") || names[len(names)-1] != "message_stop" || !strings.Contains(data[len(data)-2], `"stop_reason":"tool_use"`) ||
				!strings.Contains(data[1], `"content_block":{"type":"tool_use","id":"chatcmpl-tool-`) {
				t.Error(text)
			}
		}
		// The tool's result ends it; its text counts as a prompt, not as an image.
		m := c.message(`"max_tokens":500,"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":[{"type":"text","text":"Let me see."},` +
			`{"type":"tool_use","id":"x","name":"weather","input":{"city":"a"}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"x","content":"rain"},` +
			`{"type":"text","text":"Well?"}]}],"tools":[{"name":"weather"}],"tool_choice":{"type":"none"}`)
		if *m.StopReason != "end_turn" || m.Content[0].Type != "text" || m.Usage.Input+*m.Usage.Creation > linkedImage {
			t.Errorf("%+v", m.Usage)
		}
	})
}

// A conversation through one API is found in the cache by another: the same words make the same prompt.
func TestToolResultsAreTheSamePrompt(t *testing.T) {
	anthropic := []chatMessage{
		{Role: "assistant", Content: []byte(`[{"type":"text","text":"Let me see."},{"type":"tool_use","id":"x","name":"f","input":{"a":"b"}}]`)},
		{Role: "user", Content: []byte(`[{"type":"tool_result","tool_use_id":"x","content":"rain"}]`)},
	}
	var got []chatMessage
	for _, m := range anthropic {
		got = append(got, chatMessages(m)...)
	}
	want := []chatMessage{
		{Role: "assistant", Content: []byte(`"Let me see."`), ToolCalls: []byte(`[{"id":"x","type":"function","function":{"name":"f","arguments":"{\"a\":\"b\"}"}}]`)},
		{Role: "tool", ToolCallID: "x", Content: []byte(`"rain"`)},
	}
	if a, b := chatTemplate(nil, got), chatTemplate(nil, want); fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("%s", got)
	}
}

// vLLM words what the engine refuses as Anthropic does, and what its own validation refuses as always.
func TestMessageErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := tiny()
		cfg.MaxQueued = 1
		_, ln := start(t, cfg)
		c := connect(t, ln)
		const hi = `"messages":[{"role":"user","content":"hi"}]`
		for body, want := range map[string]string{
			`{` + hi + `}`: `{"error":{"message":"2 validation errors`,
			`{"model":"tiny","max_tokens":0,` + hi + `}`:                                                                 `max_tokens must be positive`,
			`{"model":"tiny","max_tokens":1,"messages":7}`:                                                               `{"error":{"message":"1 validation error`,
			`{"model":"nope","max_tokens":1,` + hi + `}`:                                                                 `{"type":"error","error":{"type":"NotFoundError","message":"The model `,
			`{"model":"tiny","max_tokens":1,` + hi + `,"tool_choice":{"type":"tool","name":"x"},"tools":[{"name":"y"}]}`: "does not match",
		} {
			if resp, text := c.ask(post("/v1/messages", body)); resp.StatusCode < 400 || !strings.Contains(text, want) {
				t.Errorf("%s: %s %s", body, resp.Status, text)
			}
		}
		busy := connect(t, ln)
		busy.send(post("/v1/messages", `{"model":"tiny","max_tokens":5000,`+hi+`}`))
		synctest.Wait()
		if resp, text := c.ask(post("/v1/messages", `{"model":"tiny","max_tokens":1,`+hi+`}`)); resp.StatusCode != 503 || !strings.HasPrefix(text, `{"type":"error"`) {
			t.Errorf("%s %s", resp.Status, text)
		}
		if resp, text := c.ask(post("/v1/messages/count_tokens", `{"model":"nope",`+hi+`}`)); resp.StatusCode != 404 || !strings.HasPrefix(text, `{"type":"error"`) {
			t.Errorf("%s %s", resp.Status, text)
		}
	})
}
