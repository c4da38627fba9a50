package mock

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
)

// named returns the names and the data of a stream's events.
func named(text string) (names, data []string) {
	for _, event := range strings.Split(strings.TrimSuffix(text, "\n\n"), "\n\n") {
		name, d, _ := strings.Cut(strings.TrimPrefix(event, "event: "), "\ndata: ")
		names, data = append(names, name), append(data, d)
	}
	return names, data
}

type response struct {
	ID, Status string
	Incomplete *struct{ Reason string } `json:"incomplete_details"`
	Output     []struct {
		ID, Type, Name, Arguments, Status string
		CallID                            string `json:"call_id"`
		Content                           []struct{ Text string }
	}
	MaxOutputTokens int `json:"max_output_tokens"`
	ToolChoice      any `json:"tool_choice"`
	Temperature     float64
	Usage           struct {
		Input   int `json:"input_tokens"`
		Output  int `json:"output_tokens"`
		Details struct {
			Cached int `json:"cached_tokens"`
		} `json:"input_tokens_details"`
	}
}

func (c *client) respond(body string) response {
	c.t.Helper()
	resp, text := c.ask(post("/v1/responses", body))
	if resp.StatusCode != 200 {
		c.t.Fatalf("%s: %s", body, text)
	}
	return decode[response](c.t, text)
}

func TestResponses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ln := start(t, tiny())
		c := connect(t, ln)
		r := c.respond(`{"model":"tiny","instructions":"Be brief.","input":[{"role":"user","content":[{"type":"input_text","text":"hi"}]}],"temperature":0.5}`)
		if r.Status != "completed" || r.Incomplete != nil || r.Usage.Output < 16 || r.MaxOutputTokens != s.cfg.MaxModelLen-r.Usage.Input || r.Temperature != .5 {
			t.Errorf("%+v", r)
		}
		// It is the prompt that a chat completion makes of it.
		a := c.chat(`{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"hi"}]}`)
		if a.Choices[0].Message.Content != r.Output[0].Content[0].Text || a.Usage.PromptTokens != r.Usage.Input {
			t.Errorf("a response says %+v, a chat completion %+v", r, a)
		}
		_, text := c.ask(post("/v1/responses", `{"input":"hi","stream":true}`))
		names, data := named(text)
		said := ""
		for i, name := range names {
			var e struct {
				Type     string
				Sequence int `json:"sequence_number"`
				Delta    string
			}
			if err := json.Unmarshal([]byte(data[i]), &e); err != nil || e.Type != name || e.Sequence != i {
				t.Errorf("event %d: %v: %s", i, err, data[i])
			}
			said += e.Delta
		}
		last := decode[struct{ Response response }](t, data[len(data)-1]).Response
		if names[len(names)-1] != "response.completed" || last.Output[0].Content[0].Text != said || last.Status != "completed" || strings.Contains(text, "[DONE]") {
			t.Error(text)
		}
	})
}

// What is sent before the first token is sent at once.
func TestResponseIsCreatedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ln := start(t, tiny())
		c := connect(t, ln)
		c.send(post("/v1/responses", fmt.Sprintf(`{"stream":true,"input":%q}`, strings.Repeat("a long prompt ", 1000))))
		for _, want := range []string{"response.created", "response.in_progress"} {
			if e := c.readEvent(); !strings.Contains(e, want) {
				t.Errorf("got %s, want %s", e, want)
			}
		}
		if n := s.Stats().Engine.GenerationTokens; n != 0 {
			t.Errorf("%d tokens by then", n)
		}
	})
}

func TestResponseToolCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		c := connect(t, ln)
		tools := `"tools":[{"type":"web_search"},{"type":"function","name":"weather","parameters":` + weather + `}],"tool_choice":"required"`
		r := c.respond(`{"input":"hi",` + tools + `}`)
		call := r.Output[0]
		if call.Type != "function_call" || call.Name != "weather" || !strings.HasPrefix(call.ID, "fc_") || call.CallID == "" || r.ToolChoice != "required" {
			t.Errorf("%+v", r)
		}
		checkArguments(t, call.Arguments)

		_, text := c.ask(post("/v1/responses", `{"input":"hi","stream":true,`+tools+`}`))
		names, data := named(text)
		got, arguments := []string{}, ""
		for i, name := range names {
			if name == "response.function_call_arguments.delta" {
				arguments += decode[struct{ Delta string }](t, data[i]).Delta
				if got[len(got)-1] == name {
					continue
				}
			}
			got = append(got, name)
		}
		const want = "[response.created response.in_progress response.output_item.added response.function_call_arguments.delta " +
			"response.function_call_arguments.done response.output_item.done response.completed]"
		if fmt.Sprint(got) != want || arguments != call.Arguments {
			t.Errorf("events %v\narguments %q", got, arguments)
		}

		// The tool's result ends it.
		r = c.respond(fmt.Sprintf(`{"input":[{"role":"user","content":"hi"},{"type":"function_call","call_id":"x","name":"weather","arguments":%q},`+
			`{"type":"function_call_output","call_id":"x","output":"rain"}],"tools":[{"type":"function","name":"weather"}]}`, call.Arguments))
		if r.Output[0].Type != "message" || r.Status != "completed" {
			t.Errorf("%+v", r)
		}
	})
}

func TestResponseErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		c := connect(t, ln)
		for body, want := range map[string]string{
			`{}`:                           "body.input",
			`{"input":7}`:                  "valid string",
			`{"input":"x","model":"nope"}`: "does not exist",
			`{"input":"x","previous_response_id":"resp_1"}`:                                           "Response with id 'resp_1' not found.",
			`{"input":"x","temperature":"hot"}`:                                                       "valid number",
			`{"input":"x","max_output_tokens":0}`:                                                     "at least 1",
			`{"input":"x","tools":[{"name":"a"}],"tool_choice":{"type":"function","name":"b"}}`:       "does not match",
			`{"input":"x","text":{"format":{"type":"json_schema","name":"w","schema":7}},"top_p":{}}`: "valid number",
		} {
			if resp, text := c.ask(post("/v1/responses", body)); resp.StatusCode < 400 || !strings.Contains(text, want) || !strings.HasPrefix(text, `{"error":{`) {
				t.Errorf("%s: %s %s", body, resp.Status, text)
			}
		}
		r := c.respond(`{"input":"x","text":{"format":{"type":"json_schema","name":"w","schema":` + weather + `}}}`)
		checkArguments(t, r.Output[0].Content[0].Text)
	})
}

// A fault cuts a stream even before there is a token, and then nobody works for it.
func TestResponseCutEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ln := start(t, tiny())
		s.SetFaults(Faults{CutAfter: 1})
		c := connect(t, ln)
		c.send(post("/v1/responses", `{"stream":true,"input":"hi"}`))
		if said, _ := io.ReadAll(c.nc); strings.Count(string(said), "data: ") != 1 {
			t.Errorf("%s", said)
		}
		synctest.Wait()
		if st := s.Stats(); st.Engine.Running+st.Engine.Waiting != 0 || st.Aborted != 1 {
			t.Errorf("%+v", st)
		}
	})
}
