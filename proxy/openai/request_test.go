package openai

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/fairway-proxy/fairway/picker/prefix"
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
		{"system blocks", Messages, `{"system":[{"text":"s"}],"messages":[]}`, `[{"text":"s"}]`},
		{"system without the billing header", Messages, `{"system":[{"type":"text","text":"x-anthropic-billing-header: a=1"},{"text":"s"}],"messages":[]}`, `,{"text":"s"}]`},
		{"billing header behind text", Messages, `{"system":[{"text":"s"},{"text":"x-anthropic-billing-header"}]}`, `[{"text":"s"},{"text":"x-anthropic-billing-header"}]`},
		{"cache_control moves about", Messages, `{"messages":[{"role":"user","content":[{"type":"text","text":"a","cache_control":{"type":"ephemeral"}}]}]}`, `user|a`},
		{"tool result", Messages, `{"messages":[{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":[{"type":"image","source":{"type":"base64","data":"D"}}]}]}]}`, `user|"tool_use_id":"t"|<D>`},
		{"null messages beside an input", Embeddings, `{"input":"a","messages":null}`, `a`},
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

func TestOptions(t *testing.T) {
	// What is compared: the exported fields that are not the prompt.
	type options struct {
		Stream, StreamOptions, IncludeUsage bool
		MaxTokens, N                        int
		CacheSalt                           string
	}
	tests := []struct {
		name string
		kind Kind
		body string
		want options
	}{
		{"nothing", Chat, `{}`, options{MaxTokens: -1, N: 1}},
		{"all", Chat, `{"stream":true,"stream_options":{"include_usage":true},"max_tokens":5,"n":2,"cache_salt":"s\n"}`,
			options{true, true, true, 5, 2, `s\n`}},
		{"nulls", Chat, `{"stream":null,"stream_options":null,"max_tokens":null,"n":null,"cache_salt":null}`,
			options{StreamOptions: true, MaxTokens: -1, N: 1}},
		{"last wins", Chat, `{"stream":true,"max_tokens":5,"n":2,"stream":false,"max_tokens":6,"n":3}`, options{MaxTokens: 6, N: 3}},
		{"the newer name wins", Chat, `{"max_completion_tokens":7,"max_tokens":5}`, options{MaxTokens: 7, N: 1}},
		{"unless it is null", Chat, `{"max_completion_tokens":null,"max_tokens":5}`, options{MaxTokens: 5, N: 1}},
		{"not for completions", Completions, `{"max_completion_tokens":7,"max_tokens":5}`, options{MaxTokens: 5, N: 1}},
		{"responses", Responses, `{"max_output_tokens":7,"max_tokens":5}`, options{MaxTokens: 5, N: 1}},
		{"as pydantic reads them", Chat, `{"stream":"YES","max_tokens":"12","n":2.0}`, options{Stream: true, MaxTokens: 12, N: 2}},
		{"number for true", Chat, `{"stream":1}`, options{Stream: true, MaxTokens: -1, N: 1}},
		{"escaped word", Chat, `{"stream":"\u0074rue"}`, options{Stream: true, MaxTokens: -1, N: 1}},
		{"what it refuses", Chat, `{"stream":"maybe","max_tokens":1.5,"n":-2}`, options{MaxTokens: -1, N: 1}},
		{"beyond any limit", Chat, `{"max_tokens":1e300,"n":99999999999999999999999}`, options{MaxTokens: -1, N: 1}},
		{"include_usage false", Chat, `{"stream_options":{"include_usage":false}}`, options{StreamOptions: true, MaxTokens: -1, N: 1}},
		{"include_usage twice", Chat, `{"stream_options":{"include_usage":false,"include_usage":true}}`, options{StreamOptions: true, IncludeUsage: true, MaxTokens: -1, N: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r Request
			if err := r.Read(tt.kind, []byte(tt.body)); err != nil {
				t.Fatal(err)
			}
			got := options{r.Stream, r.StreamOptions, r.IncludeUsage, r.MaxTokens, r.N, string(r.CacheSalt)}
			if got != tt.want {
				t.Errorf("\n got %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

// Each prompt has N answers, each of MaxTokens.
func TestMaxGenerated(t *testing.T) {
	for body, want := range map[string]int{
		`{"prompt":"a"}`:                                                          -1,
		`{"prompt":"a","n":8}`:                                                    -1,
		`{"prompt":"a","max_tokens":16}`:                                          16,
		`{"prompt":"a","n":8,"max_tokens":16}`:                                    128,
		`{"prompt":["a","b","c"],"n":2,"max_tokens":5}`:                           30,
		`{"prompt":"a","n":1000000,"max_tokens":5}`:                               5120,
		`{"prompt":"a","n":0,"max_tokens":0}`:                                     0,
		`{"prompt":["a","b"],"n":9007199254740992,"max_tokens":9007199254740992}`: 1 << 40,
	} {
		var r Request
		if err := r.Read(Completions, []byte(body)); err != nil {
			t.Fatal(err)
		}
		if got := r.MaxGenerated(); got != want {
			t.Errorf("%s: %d tokens, want %d", body, got, want)
		}
	}
}

func TestSizeOfPrompt(t *testing.T) {
	tests := []struct {
		name                                          string
		kind                                          Kind
		body                                          string
		text, tokens, prompts, images, audios, videos int
	}{
		{"text", Chat, `{"messages":[{"role":"user","content":"hi"}]}`, 6, -1, 1, 0, 0, 0},
		{"media are not text", Chat, `{"messages":[{"role":"u","content":[{"image_url":{"url":"0123456789"}},{"input_audio":{"data":"x"}},{"video_url":null},{"video_url":"y"}]}]}`, 1, -1, 1, 1, 1, 1},
		{"media of the last content", Chat, `{"messages":[{"content":[{"image_url":"x"}]},{"content":[{"image_url":"x"}],"content":[{"audio_url":"x"}]}]}`, 0, -1, 1, 1, 1, 0},
		{"media of the last messages", Chat, `{"messages":[{"content":[{"image_url":"x"}]}],"messages":[]}`, 0, -1, 1, 0, 0, 0},
		{"ids", Completions, `{"prompt":[1,23,456]}`, 8, 3, 1, 0, 0, 0},
		{"lists of ids", Completions, `{"prompt":[[1, 23],[],[456]]}`, 8, 3, 3, 0, 0, 0},
		{"no ids", Completions, `{"prompt":[]}`, 0, -1, 1, 0, 0, 0},
		{"texts", Completions, `{"prompt":["ab","c"]}`, 3, -1, 2, 0, 0, 0},
		{"texts and ids", Completions, `{"prompt":["ab",[1]]}`, 3, -1, 2, 0, 0, 0},
		{"the last prompt", Completions, `{"prompt":[1,2,3],"prompt":"a"}`, 1, -1, 1, 0, 0, 0},
	}
	for _, tt := range tests {
		var r Request
		if err := r.Read(tt.kind, []byte(tt.body)); err != nil {
			t.Fatal(err)
		}
		if r.TextBytes != tt.text || r.Tokens != tt.tokens || r.Prompts != tt.prompts || r.Images != tt.images || r.Audios != tt.audios || r.Videos != tt.videos {
			t.Errorf("%s: %d bytes, %d tokens, %d prompts, media %+v", tt.name, r.TextBytes, r.Tokens, r.Prompts, r.Media)
		}
		if want := tt.images*ImageTokens + tt.audios*AudioTokens + tt.videos*VideoTokens; r.MediaTokens != want {
			t.Errorf("%s: media of %d tokens", tt.name, r.MediaTokens)
		}
	}
}

func TestEdits(t *testing.T) {
	const ask = `"stream_options":{"include_usage":true}`
	tests := []struct {
		name      string
		kind      Kind
		body      string
		model     string // empty: not replaced
		want      string
		withUsage bool
	}{
		{"nothing to edit", Chat, `{"model":"m"}`, "", `{"model":"m"}`, false},
		{"usage", Chat, `{"model":"m","stream":true }  `, "", `{"model":"m","stream":true ,` + ask + `}  `, true},
		{"usage of completions", Completions, `{"stream":true}`, "", `{"stream":true,` + ask + `}`, true},
		{"responses say it anyway", Responses, `{"stream":true}`, "", `{"stream":true}`, false},
		{"messages say it anyway", Messages, `{"stream":true}`, "", `{"stream":true}`, false},
		{"no stream", Chat, `{"stream":false}`, "", `{"stream":false}`, false},
		{"options as they are", Chat, `{"stream":true,"stream_options":{}}`, "", `{"stream":true,"stream_options":{}}`, false},
		{"options null", Chat, `{"stream":true,"stream_options":null}`, "", `{"stream":true,"stream_options":null}`, false},
		{"options escaped", Chat, `{"stream":true,"stream\u005foptions":null}`, "", `{"stream":true,"stream\u005foptions":null}`, false},
		{"model", Chat, `{"a":1, "model" : "m" ,"b":2}`, "x", `{"a":1, "model" : "x" ,"b":2}`, false},
		{"last model", Chat, `{"model":"m","model":"n"}`, "x", `{"model":"m","model":"x"}`, false},
		{"model null", Chat, `{"model":null,"b":2}`, "x", `{"model":"x","b":2}`, false},
		{"no model", Chat, `{"b":2}`, "x", `{"b":2,"model":"x"}`, false},
		{"nothing at all", Chat, ` { } `, "x", ` { "model":"x"} `, false},
		{"both", Chat, `{"model":"m","stream":true}`, "x", `{"model":"x","stream":true,` + ask + `}`, true},
		{"both, no model", Chat, `{"stream":true}`, "x", `{"stream":true,"model":"x",` + ask + `}`, true},
		{"byte order mark", Chat, "\ufeff" + `{"stream":true}`, "", "\ufeff" + `{"stream":true,` + ask + `}`, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r Request
			if err := r.Read(tt.kind, []byte(tt.body)); err != nil {
				t.Fatal(err)
			}
			if got := r.InjectUsage(); got != tt.withUsage {
				t.Errorf("InjectUsage says %v", got)
			}
			if tt.model != "" {
				r.ReplaceModel("a target tried before")
				r.ReplaceModel(tt.model)
			}
			got := bytes.Join(r.AppendSegments(nil, []byte(tt.body)), nil)
			if string(got) != tt.want || r.Len() != len(tt.want) {
				t.Errorf("\n got %s (%d)\nwant %s (%d)", got, r.Len(), tt.want, len(tt.want))
			}
		})
	}
}

func TestReplaceSalt(t *testing.T) {
	for _, tt := range []struct {
		kind             Kind
		body, salt, want string
	}{
		{Chat, `{"messages":[]}`, "s", `{"messages":[],"cache_salt":"s"}`},
		{Chat, `{"cache_salt":"other","messages":[]}`, "s", `{"cache_salt":"s","messages":[]}`},
		{Chat, `{"cache_salt" : null}`, "s", `{"cache_salt" : "s"}`},
		{Chat, `{"cache_salt":1,"cache\u005fsalt":"x" }`, "s", `{"cache_salt":1,"cache\u005fsalt":"s" }`},
		{Embeddings, `{}`, "s", `{"cache_salt":"s"}`},
		{Completions, `{"model":"m","cache_salt":"x"}`, "", `{"model":"m","cache_salt":"x"}`},
		{Tokenize, `{"prompt":""}`, "s", `{"prompt":""}`},
	} {
		var r Request
		if err := r.Read(tt.kind, []byte(tt.body)); err != nil {
			t.Fatal(err)
		}
		r.ReplaceSalt("one tried before")
		r.ReplaceSalt(tt.salt)
		if got := string(bytes.Join(r.AppendSegments(nil, []byte(tt.body)), nil)); got != tt.want || r.Len() != len(tt.want) {
			t.Errorf("\n got %s (%d)\nwant %s (%d)", got, r.Len(), tt.want, len(tt.want))
		}
	}
	// Together with the other edits, in the order in which they lie in the body.
	for body, want := range map[string]string{
		`{"cache_salt":"x","stream":true,"model":"m"}`: `{"cache_salt":"s","stream":true,"model":"n","stream_options":{"include_usage":true}}`,
		`{"model":"m","stream":true,"cache_salt":"x"}`: `{"model":"n","stream":true,"cache_salt":"s","stream_options":{"include_usage":true}}`,
		`{"stream":true}`: `{"stream":true,"model":"n","stream_options":{"include_usage":true},"cache_salt":"s"}`,
	} {
		var r Request
		if err := r.Read(Chat, []byte(body)); err != nil {
			t.Fatal(err)
		}
		r.ReplaceModel("n")
		r.ReplaceSalt("s")
		r.InjectUsage()
		if got := string(bytes.Join(r.AppendSegments(nil, []byte(body)), nil)); got != want || r.Len() != len(want) {
			t.Errorf("\n got %s (%d)\nwant %s (%d)", got, r.Len(), want, len(want))
		}
	}
}

// A used Request says nothing of the body before.
func TestRequestIsReusable(t *testing.T) {
	var used Request
	full := []byte(`{"model":"\u0061","messages":[{"role":"user","content":[{"image_url":"x"}]}],"tools":[1],"stream":true,"stream_options":{},"max_tokens":1,"n":2,"priority":3,"cache_salt":"s","user":"u"}`)
	for _, reset := range []bool{false, true} {
		if err := used.Read(Chat, full); err != nil {
			t.Fatal(err)
		}
		used.ReplaceModel("x")
		if reset {
			used.Reset()
		}
		if err := used.Read(Completions, []byte(`{}`)); err != nil {
			t.Fatal(err)
		}
		var fresh Request
		if err := fresh.Read(Completions, []byte(`{}`)); err != nil {
			t.Fatal(err)
		}
		used.spans, fresh.spans, used.rest, fresh.rest = nil, nil, nil, nil
		used.modelBuf, fresh.modelBuf, used.renamed, fresh.renamed, used.scan, fresh.scan = nil, nil, nil, nil, scanner{}, scanner{}
		if !reflect.DeepEqual(used, fresh) {
			t.Errorf("reset=%v\n got %+v\nwant %+v", reset, used, fresh)
		}
	}
}

// Long conversations are read in memory that was there before, by a Request that keeps little of it.
func TestReadLongAllocatesNothing(t *testing.T) {
	body := []byte(`{"model":"m","messages":[` + strings.Repeat(`{"role":"user","content":"a"},`, 3_000) + `{}]}`)
	var r Request
	if n := testing.AllocsPerRun(100, func() {
		if err := r.Read(Chat, body); err != nil || len(r.spans) < 6_000 {
			t.Fatal(len(r.spans), err)
		}
		r.Reset()
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// The spans of a body of tiny messages take bounded memory, and still cover it.
func TestSpansAreBounded(t *testing.T) {
	many := func(of string) string { return strings.TrimSuffix(strings.Repeat(of+",", 30_000), ",") }
	for _, body := range []string{
		`{"messages":[` + many(`{}`) + `]}`,
		`{"messages":[` + many(`{"role":"a","content":"b"}`) + `]}`,
		`{"messages":[{"content":[` + many(`"a"`) + `]}]}`,
		`{"messages":[{"content":[` + many(`{"image_url":"a"}`) + `],"role":"a"}]}`,
		`{"messages":[{` + many(`"a":1`) + `}]}`,
		`{"prompt":[` + many(`"a"`) + `]}`,
		`{"prompt":[` + many(`[1]`) + `]}`,
	} {
		for _, kind := range []Kind{Chat, Completions} {
			var r Request
			if err := r.Read(kind, []byte(body)); err != nil {
				t.Fatal(err)
			}
			if len(r.Spans) > maxSpans || cap(r.spans) > 2*maxSpans || cap(r.rest) > 2*maxRest {
				t.Errorf("%.40s: %d spans, room for %d and %d", body, len(r.Spans), cap(r.spans), cap(r.rest))
			}
			if len(r.spans) == maxSpans && !strings.Contains(body, "{}") && r.TextBytes < len(body)/4 {
				t.Errorf("%.40s: the spans have %d of %d bytes", body, r.TextBytes, len(body))
			}
			r.Reset()
			if cap(r.spans) > 1024 {
				t.Errorf("Reset keeps %d spans", cap(r.spans))
			}
			for _, span := range r.spans[:cap(r.spans)] {
				if span.Data != nil {
					t.Fatalf("Reset keeps %.40q", span.Data)
				}
			}
		}
	}
}

func TestReadAllocatesNothing(t *testing.T) {
	bodies := map[string][]byte{
		"prose": chatBody(16<<10, false), "code": chatBody(16<<10, true),
		"parts":   []byte(`{"messages":[{"content":[{"text":"a"},{"image_url":{"url":"u"}}],"name":"n","role":"user"}],"tools":[{}],"mod\u0065l":"\u00e9","stream":"true","max_tokens":"7"}`),
		"prompts": []byte(`{"prompt":["a","b"],"model":"m"}`),
		"ids":     []byte(`{"prompt":[[1,2],[3]],"model":"m"}`),
	}
	for name, body := range bodies {
		for _, kind := range []Kind{Chat, Completions} {
			var r Request
			dst := make([][]byte, 0, 8)
			if n := testing.AllocsPerRun(100, func() {
				if err := r.Read(kind, body); err != nil {
					t.Fatal(err)
				}
				r.InjectUsage()
				r.ReplaceModel("other")
				dst = r.AppendSegments(dst[:0], body)
			}); n != 0 {
				t.Errorf("%s: %v allocations", name, n)
			}
		}
	}
}

func TestKindOf(t *testing.T) {
	tests := []struct {
		method, path string
		want         Kind
	}{
		{"POST", "/v1/chat/completions", Chat},
		{"POST", "/v1/chat/completions?a=b", Chat},
		{"POST", "/v1/completions", Completions},
		{"POST", "/v1/responses", Responses},
		{"POST", "/v1/messages", Messages},
		{"POST", "/v1/messages/count_tokens", CountTokens},
		{"POST", "/v1/embeddings", Embeddings},
		{"POST", "/v2/rerank", Rerank},
		{"POST", "/tokenize", Tokenize},
		{"POST", "/v1/audio/transcriptions", Transcription},
		{"POST", "/v1/audio/translations", Translation},
		{"POST", "/v1/audio/speech", Other},
		{"GET", "/v1/chat/completions", Other},
		{"POST", "/v1/chat/completions/", Other},
		{"POST", "/v1/models", Other},
		{"POST", "", Other},
	}
	for _, tt := range tests {
		if got := KindOf([]byte(tt.method), []byte(tt.path)); got != tt.want {
			t.Errorf("%s %s: got %v, want %v", tt.method, tt.path, got, tt.want)
		}
	}
}

// Others go first now and then while a large body is read, whatever it is large by; who does not
// want to know any more ends it.
func TestReadingYields(t *testing.T) {
	const size = 300 << 10
	fill := func(head, part, tail string) []byte {
		return []byte(head + strings.Repeat(part, size/len(part)) + tail)
	}
	for name, body := range map[string][]byte{
		"messages":  fill(`{"model":"m","messages":[`, `{"role":"user"},`, `{}]}`),
		"parts":     fill(`{"model":"m","messages":[{"content":[`, `{"text":"x"},`, `{}]}]}`),
		"text":      fill(`{"model":"m","messages":[{"role":"user","content":"`, `text `, `"}]}`),
		"escapes":   fill(`{"model":"m","messages":[{"role":"user","content":"`, `\u4e2d`, `"}]}`),
		"ids":       fill(`{"model":"m","prompt":[`, `1,`, `1]}`),
		"lists":     fill(`{"model":"m","prompt":[`, `[1],`, `[1]]}`),
		"members":   fill(`{"model":"m",`, `"":1,`, `"x":1}`),
		"elsewhere": fill(`{"model":"m","x":[`, `1,[{}],`, `1]}`),
	} {
		for _, kind := range []Kind{Chat, Completions} {
			var plain, r Request
			if err := plain.Read(kind, body); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			calls := 0
			r.Yield = func() bool { calls++; return true }
			if err := r.Read(kind, body); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if want := len(body)/yieldEvery - 1; calls < want {
				t.Errorf("%s: others go first %d times, want %d", name, calls, want)
			}
			if !slices.EqualFunc(r.Spans, plain.Spans, func(a, b prefix.Span) bool { return bytes.Equal(a.Data, b.Data) }) || r.Tokens != plain.Tokens {
				t.Errorf("%s is read differently", name)
			}
			r.Yield = func() bool { return false }
			if err := r.Read(kind, body); err == nil {
				t.Errorf("%s is read on", name)
			}
			r.Reset()
			if r.Yield != nil {
				t.Error("Reset keeps who is to be asked")
			}
		}
	}
}
