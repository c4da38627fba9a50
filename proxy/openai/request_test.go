package openai

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// prompt joins the spans the way a reader can check: media in angle brackets.
func prompt(r *Request) string {
	var parts []string
	for _, s := range r.Spans {
		if s.Media {
			parts = append(parts, "<"+string(s.Data)+">")
		} else {
			parts = append(parts, string(s.Data))
		}
	}
	return strings.Join(parts, "|")
}

func TestPromptInTemplateOrder(t *testing.T) {
	tests := []struct {
		name string
		kind Kind
		body string
		want string
	}{
		{"messages before model", Chat, `{"messages":[{"role":"user","content":"hi"}],"model":"m"}`, "user|hi"},
		{"content before role", Chat, `{"model":"m","messages":[{"content":"hi","role":"user"}]}`, "user|hi"},
		{"tools behind messages", Chat, `{"messages":[{"role":"user","content":"hi"}],"tools":[{"type":"function"}]}`, `[{"type":"function"}]|user|hi`},
		{"name between role and content", Chat, `{"messages":[{"role":"user","name":"n","content":"hi"}]}`, `user|hi|"name":"n"`},
		{"tool call", Chat, `{"messages":[{"role":"assistant","content":null,"refusal":null,"tool_calls":[{"id":"1"}]},{"role":"tool","tool_call_id":"1","content":"ok"}]}`,
			`assistant|"tool_calls":[{"id":"1"}]|tool|ok|"tool_call_id":"1"`},
		{"parts", Chat, `{"messages":[{"role":"user","content":[{"type":"text","text":"see"},{"image_url":{"detail":"low","url":"data:x"},"type":"image_url"},{"type":"input_audio","input_audio":{"data":"AA","format":"wav"}},{"type":"video_url","video_url":{"url":"v"}}]}]}`,
			`user|see|<data:x>|<AA>|<v>`},
		{"escapes stay", Chat, `{"messages":[{"role":"user","content":"a\"b\\"}]}`, `user|a\"b\\`},
		{"last content wins", Chat, `{"messages":[{"role":"user","content":"a","content":"b"}]}`, `user|b`},
		{"last content wins over parts", Chat, `{"messages":[{"role":"user","content":[{"image_url":"a"},{"text":"x"}],"content":"b"}]}`, `user|b`},
		{"last messages win", Chat, `{"messages":[{"role":"user","content":"a"}],"messages":[{"role":"user","content":"b"}]}`, `user|b`},
		{"last messages null", Chat, `{"messages":[{"role":"user","content":"a"}],"messages":null}`, ``},
		{"last text of a part wins", Chat, `{"messages":[{"role":"user","content":[{"text":"a","text":"b"}]}]}`, `user|b`},
		{"documents", Chat, `{"messages":[{"role":"user","content":"a"}],"documents":[1],"tools":[2]}`, `[2]|[1]|user|a`},
		{"prompt", Completions, `{"prompt":"a b"}`, `a b`},
		{"prompts", Completions, `{"prompt":["a","b"]}`, `a|b`},
		{"ids", Completions, `{"prompt":[1, 2,3]}`, `1, 2,3`},
		{"lists of ids", Completions, `{"prompt":[[1,2],[3]]}`, `1,2|3`},
		{"messages are no prompt of completions", Completions, `{"prompt":"a","messages":[{"content":"b"}]}`, `a`},
		{"input", Responses, `{"input":"a","instructions":"i"}`, `i|a`},
		{"input items", Responses, `{"input":[{"role":"user","content":[{"type":"input_text","text":"a"},{"type":"input_image","image_url":"u"}]}]}`, `user|a|<u>`},
		{"system", Messages, `{"messages":[{"role":"user","content":"a"}],"system":"s","tools":[1]}`, `[1]|s|user|a`},
		{"tool result", Messages, `{"messages":[{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":[{"type":"image","source":{"type":"base64","data":"D"}}]}]}]}`, `user|"tool_use_id":"t"|<D>`},
		{"embeddings", Embeddings, `{"input":["a","b"]}`, `a|b`},
		{"rerank", Rerank, `{"documents":["a"],"query":"q"}`, `q|["a"]`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r Request
			if err := r.Read(tt.kind, []byte(tt.body)); err != nil {
				t.Fatal(err)
			}
			if got := prompt(&r); got != tt.want {
				t.Errorf("prompt\n got %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestCapturedRequestsRead(t *testing.T) {
	files, err := filepath.Glob("testdata/captures/*.req.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no captures", err)
	}
	var r Request
	for _, f := range files {
		body, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		kind := Chat
		switch name := filepath.Base(f); {
		case strings.HasPrefix(name, "completions"):
			kind = Completions
		case strings.HasPrefix(name, "responses"):
			kind = Responses
		case strings.HasPrefix(name, "messages"):
			kind = Messages
		case strings.HasPrefix(name, "tokenize"):
			kind = Tokenize
		}
		err = r.Read(kind, body)
		switch {
		case strings.Contains(f, "bad-json"):
			if err == nil {
				t.Errorf("%s: no error", f)
			}
			continue
		case err != nil:
			t.Errorf("%s: %v", f, err)
			continue
		}
		if want := !strings.Contains(f, "no-model"); (string(r.Model) == "tiny") != want {
			t.Errorf("%s: model %q", f, r.Model)
		}
		if want := bytes.Contains(body, []byte(`"stream":true`)); r.Stream != want {
			t.Errorf("%s: stream %v", f, r.Stream)
		}
		if len(r.Spans) == 0 && !strings.Contains(f, "missing-messages") {
			t.Errorf("%s: no spans", f)
		}
		t.Log(filepath.Base(f), r.MaxTokens, r.N, r.Tokens, r.TextBytes, len(r.Spans))
	}
}

func TestInjectUsage(t *testing.T) {
	var r Request
	body := []byte(`{"model":"m","stream":true} `)
	if err := r.Read(Chat, body); err != nil {
		t.Fatal(err)
	}
	if !r.InjectUsage() {
		t.Fatal("not injected")
	}
	r.ReplaceModel([]byte(`"other"`))
	got := bytes.Join(r.AppendSegments(nil, body), nil)
	if want := `{"model":"other","stream":true,"stream_options":{"include_usage":true}} `; string(got) != want || r.Len() != len(want) {
		t.Errorf("got %s (%d)", got, r.Len())
	}
}
