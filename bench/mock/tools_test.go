package mock

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
)

const weather = `{"type":"object","properties":{"city":{"type":"string"},"days":{"type":"integer","minimum":1,"maximum":7},` +
	`"units":{"enum":["metric","imperial"]},"note":{"type":"string"}},"required":["city","days","units"]}`

// arguments are what weather requires.
type arguments struct {
	City, Units string
	Days        int
}

func checkArguments(t *testing.T, text string) {
	t.Helper()
	var a arguments
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&a); err != nil || a.City == "" || a.Days < 1 || a.Days > 7 || a.Units != "metric" && a.Units != "imperial" {
		t.Errorf("arguments %q: %v", text, err)
	}
}

// chatEvent is what the tests look at in an event of a chat completion.
type chatEvent struct {
	Choices []struct {
		Delta struct {
			Content   *string
			ToolCalls []struct {
				ID, Type string
				Index    *int
				Function struct{ Name, Arguments string }
			} `json:"tool_calls"`
		}
		FinishReason string `json:"finish_reason"`
	}
}

// stream returns the data of a stream's events.
func stream(text string) (all []string) {
	for _, event := range strings.Split(text, "\n\n") {
		if _, data, ok := strings.Cut(event, "data: "); ok && data != "[DONE]" {
			all = append(all, data)
		}
	}
	return all
}

func decode[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return v
}

func TestChatToolCalls(t *testing.T) {
	tools := fmt.Sprintf(`,"tools":[{"type":"function","function":{"name":"weather","parameters":%s}}]`, weather)
	for _, tt := range []struct{ name, choice, finish string }{
		{"required", `"required"`, "tool_calls"},
		{"named", `{"type":"function","function":{"name":"weather"}}`, "stop"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, ln := start(t, tiny())
				c := connect(t, ln)
				more := tools + `,"tool_choice":` + tt.choice

				_, text := c.ask(post("/v1/chat/completions", userSays("hi", more)))
				type call struct {
					ID, Type string
					Function struct{ Name, Arguments string }
				}
				choice := decode[struct {
					Choices []struct {
						Message struct {
							Content   *string
							ToolCalls []call `json:"tool_calls"`
						}
						FinishReason string `json:"finish_reason"`
					}
				}](t, text).Choices[0]
				if choice.FinishReason != tt.finish || len(choice.Message.ToolCalls) != 1 || choice.Message.Content == nil || *choice.Message.Content != "" {
					t.Fatal(text)
				}
				whole := choice.Message.ToolCalls[0]
				if whole.Type != "function" || whole.Function.Name != "weather" || !strings.HasPrefix(whole.ID, "chatcmpl-tool-") {
					t.Error(text)
				}
				checkArguments(t, whole.Function.Arguments)

				_, text = c.ask(post("/v1/chat/completions", userSays("hi", more+`,"stream":true`)))
				arguments, finish := "", ""
				for i, data := range stream(text)[1:] {
					ch := decode[chatEvent](t, data).Choices[0]
					d := ch.Delta.ToolCalls
					if ch.Delta.Content != nil || len(d) != 1 || d[0].Index == nil || *d[0].Index != 0 || (d[0].ID != "") != (i == 0) || (d[0].Function.Name != "") != (i == 0) {
						t.Fatal(data)
					}
					arguments += d[0].Function.Arguments
					finish = ch.FinishReason
				}
				if arguments != whole.Function.Arguments || finish != tt.finish {
					t.Errorf("streamed %q, %q; whole %q", arguments, finish, whole.Function.Arguments)
				}
			})
		})
	}
}

// "auto" calls a tool for some seeds, the same ones every time, and never after a tool's result.
func TestAutoToolChoice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		c := connect(t, ln)
		tools := fmt.Sprintf(`"tools":[{"type":"function","function":{"name":"weather","parameters":%s}}]`, weather)
		calls := func(seed int, messages string) bool {
			_, text := c.ask(post("/v1/chat/completions", fmt.Sprintf(`{"seed":%d,"messages":[%s],%s}`, seed, messages, tools)))
			return strings.Contains(text, `"tool_calls"`)
		}
		const asked, answered = `{"role":"user","content":"hi"}`, `{"role":"user","content":"hi"},{"role":"tool","tool_call_id":"x","content":"rain"}`
		called := 0
		for seed := range 20 {
			first := calls(seed, asked)
			if first {
				called++
			}
			if calls(seed, asked) != first {
				t.Errorf("seed %d gave both", seed)
			}
			if calls(seed, answered) {
				t.Errorf("seed %d: a tool was called after a result", seed)
			}
		}
		if called < 4 || called > 16 {
			t.Errorf("%d of 20 seeds call the tool", called)
		}
	})
}

func TestToolChoiceErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		c := connect(t, ln)
		for more, want := range map[string]string{
			`,"tool_choice":"required"`: "`tools` must be set",
			`,"tools":[{"type":"function","function":{"name":"a"}}],"tool_choice":{"type":"function","function":{"name":"b"}}`: "does not match any",
			`,"tools":7`:                   "valid list",
			`,"tools":[],"tool_choice":{}`: "valid dictionary",
			`,"tools":[{"type":"function","function":{"name":"a"}}],"tool_choice":"maybe"`: "none, auto or required",
		} {
			if resp, text := c.ask(post("/v1/chat/completions", userSays("hi", more))); resp.StatusCode != 400 || !strings.Contains(text, want) {
				t.Errorf("%s: %s %s", more, resp.Status, text)
			}
		}
	})
}

// A limit cuts a call short, as it does a text.
func TestToolCallCutShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		c := connect(t, ln)
		more := fmt.Sprintf(`,"max_tokens":3,"tools":[{"type":"function","function":{"name":"weather","parameters":%s}}],"tool_choice":"required"`, weather)
		if a := c.chat(userSays("hi", more)); a.Choices[0].FinishReason != "length" || a.Usage.CompletionTokens != 3 || a.Choices[0].Message.Content == "" {
			t.Errorf("%+v", a)
		}
	})
}

func TestResponseFormat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		c := connect(t, ln)
		schema := `,"response_format":{"type":"json_schema","json_schema":{"name":"w","schema":` + weather + `}}`
		a := c.chat(userSays("hi", schema))
		checkArguments(t, a.Choices[0].Message.Content)
		if a.Choices[0].FinishReason != "stop" {
			t.Errorf("%+v", a)
		}
		checkArguments(t, c.chat(userSays("hi", `,"structured_outputs":{"json":`+weather+`}`)).Choices[0].Message.Content)
		if text := c.chat(userSays("hi", `,"response_format":{"type":"json_object"}`)).Choices[0].Message.Content; text != "{}" {
			t.Errorf("json_object: %q", text)
		}
		if text := c.chat(userSays("hi", `,"response_format":{"type":"text"}`)).Choices[0].Message.Content; len(text) < 40 {
			t.Errorf("text: %q", text)
		}
		if resp, text := c.ask(post("/v1/chat/completions", userSays("hi", `,"response_format":{"type":"json_schema"}`))); resp.StatusCode != 400 {
			t.Errorf("no schema: %s", text)
		}
	})
}

func TestExample(t *testing.T) {
	for schema, fits := range map[string]func(v any) bool{
		`{}`:                         func(v any) bool { return len(v.(map[string]any)) == 0 },
		`{"type":"object"}`:          func(v any) bool { return len(v.(map[string]any)) == 0 },
		`{"type":["null","string"]}`: func(v any) bool { return v.(string) != "" },
		`{"type":"null"}`:            func(v any) bool { return v == nil },
		`{"type":"boolean"}`:         func(v any) bool { _, ok := v.(bool); return ok },
		`{"const":{"a":[1,"<"]}}`:    func(v any) bool { return v.(map[string]any)["a"].([]any)[1] == "<" },
		`{"enum":["a","b"]}`:         func(v any) bool { return v == "a" || v == "b" },
		`{"type":"integer","exclusiveMinimum":3,"exclusiveMaximum":5}`:                     func(v any) bool { return v == 4.0 },
		`{"type":"number","exclusiveMinimum":0,"exclusiveMaximum":1}`:                      func(v any) bool { return v.(float64) > 0 && v.(float64) < 1 },
		`{"type":"number","minimum":0.5,"maximum":0.75}`:                                   func(v any) bool { return v.(float64) >= .5 && v.(float64) <= .75 },
		`{"type":"integer","minimum":10,"multipleOf":7}`:                                   func(v any) bool { return int(v.(float64))%7 == 0 && v.(float64) >= 10 },
		`{"type":"integer","maximum":-5}`:                                                  func(v any) bool { return v.(float64) <= -5 },
		`{"type":"string","minLength":100}`:                                                func(v any) bool { return len(v.(string)) >= 100 },
		`{"type":"string","maxLength":3}`:                                                  func(v any) bool { return len(v.(string)) <= 3 },
		`{"type":"string","format":"date"}`:                                                func(v any) bool { return len(v.(string)) == 10 },
		`{"type":"array","items":{"type":"boolean"},"minItems":3}`:                         func(v any) bool { return len(v.([]any)) == 3 },
		`{"type":"array","prefixItems":[{"const":1},{"const":"x"}]}`:                       func(v any) bool { return v.([]any)[1] == "x" },
		`{"type":"array","items":{"type":"string"}}`:                                       func(v any) bool { return len(v.([]any)) == 0 },
		`{"anyOf":[{"type":"null"},{"const":2}]}`:                                          func(v any) bool { return v == 2.0 },
		`{"allOf":[{"properties":{"a":{"const":1}},"required":["a"]},{"required":["b"]}]}`: func(v any) bool { return v.(map[string]any)["a"] == 1.0 && len(v.(map[string]any)) == 2 },
		`{"$ref":"#/$defs/x~1y","$defs":{"x/y":{"const":9}}}`:                              func(v any) bool { return v == 9.0 },
		`{"required":["a","a"],"properties":{"a":{"$ref":"#/$defs/n"}},"$defs":{"n":{"type":"object","required":["n"],"properties":{"n":{"$ref":"#/$defs/n"}}}}}`: func(v any) bool { return v != nil }, // endless
		`true`:                     func(v any) bool { return v != nil },
		`{"type":7,"minItems":""}`: func(v any) bool { return v != nil },
	} {
		for seed := range uint64(10) {
			text := example(json.RawMessage(schema), seed)
			var v any
			if err := json.Unmarshal([]byte(text), &v); err != nil || !fits(v) {
				t.Errorf("%s: %s", schema, text)
				break
			}
		}
	}
}

// A schema that wants too much gets an answer of a bounded size.
func TestExampleIsBounded(t *testing.T) {
	many := `{"type":"array","minItems":1000000000,"items":` // nested five times: 10^45 items
	schema := strings.Repeat(many, 5) + `{"type":"string","minLength":1000000000}` + strings.Repeat("}", 5)
	if text := example(json.RawMessage(schema), 1); len(text) > 1<<20 {
		t.Errorf("%d bytes", len(text))
	}
}

func FuzzExample(f *testing.F) {
	f.Add(weather, uint64(1))
	f.Add(`{"$ref":"#/a/b","a":{"b":{"$ref":"#"}}}`, uint64(2))
	f.Add(`{"type":"number","minimum":1e308,"multipleOf":5e-324}`, uint64(2))
	f.Fuzz(func(t *testing.T, schema string, seed uint64) {
		if !json.Valid([]byte(schema)) {
			return
		}
		if text := example(json.RawMessage(schema), seed); !json.Valid([]byte(text)) {
			t.Errorf("%s: %s", schema, text)
		}
	})
}
