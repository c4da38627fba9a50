package openai

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// stream is the spans as they are hashed, one after the other.
func stream(r *Request) string {
	var b strings.Builder
	for _, s := range r.Spans {
		b.Write(s.Data)
		if s.Media {
			b.WriteByte(0xfe)
		} else {
			b.WriteByte(0xff)
		}
	}
	return b.String()
}

func TestStartIsKnown(t *testing.T) {
	enough, little := strings.Repeat("x", MinStart), strings.Repeat("x", MinStart-10)
	tests := []struct {
		name, start, model string
		kind               Kind
		known              bool
	}{
		{"model and text", `{"model":"m","messages":[{"role":"user","content":"` + enough, "m", Chat, true},
		{"too little text", `{"model":"m","messages":[{"role":"user","content":"` + little, "m", Chat, false},
		{"no model yet", `{"messages":[{"role":"user","content":"` + enough, "", Chat, false},
		{"model behind the text", `{"messages":[{"role":"user","content":"` + enough + `"}],"model":"m"`, "m", Chat, true},
		{"model cut off", `{"messages":[{"role":"user","content":"` + enough + `"}],"model":"m`, "", Chat, false},
		{"model cut off in an escape", `{"messages":[{"role":"user","content":"` + enough + `"}],"model":"m\u00`, "", Chat, false},
		{"a second model cut off", `{"model":"a","messages":[{"role":"user","content":"` + enough + `"}],"model":"b`, "", Chat, false},
		{"model null", `{"model":null,"messages":[{"role":"user","content":"` + enough, "", Chat, true},
		{"model null cut off", `{"messages":[{"role":"user","content":"` + enough + `"}],"model":nul`, "", Chat, false},
		{"model a number so far", `{"model":1,"messages":[{"role":"user","content":"` + enough, "", Chat, false},
		{"model of another object", `{"x":{"model":"m"},"messages":[{"model":"m","content":"` + enough, "", Chat, false},
		{"a medium is no text", `{"model":"m","messages":[{"role":"user","content":[{"image_url":{"url":"` + enough, "m", Chat, false},
		{"nor a whole one", `{"model":"m","messages":[{"role":"user","content":[{"image_url":{"url":"` + enough + `"}}`, "m", Chat, false},
		{"prompt", `{"model":"m","prompt":"` + enough, "m", Completions, true},
		{"token ids", `{"model":"m","prompt":[[` + strings.Repeat("123,", MinStart/4) + "12", "m", Completions, true},
		{"system text", `{"model":"m","system":"` + enough, "m", Messages, true},
		{"system blocks", `{"model":"m","system":[{"text":"a"},{"text":"` + enough, "m", Messages, true},
		{"system block that may be dropped", `{"model":"m","system":[{"text":"` + enough, "m", Messages, false},
		{"documents", `{"model":"m","documents":["` + enough, "m", Rerank, true},
		{"tools behind messages", `{"model":"m","messages":[],"tools":["` + enough, "m", Chat, true},
		{"a complete body", `{"model":"m","prompt":"` + enough + `"}`, "m", Completions, true},
		{"nothing", "", "", Chat, false},
		{"half a byte order mark", "\xef\xbb", "", Chat, false},
		{"white space", " ", "", Chat, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r Request
			known, err := r.ReadStart(tt.kind, []byte(tt.start))
			if err != nil || known != tt.known || string(r.Model) != tt.model {
				t.Errorf("known %v, model %q, %d bytes of text, error %v", known, r.Model, r.TextBytes, err)
			}
		})
	}
}

// What no continuation can mend is refused at once, and nothing else.
func TestStartRefused(t *testing.T) {
	for body, want := range map[string]string{
		`[`:                  "it is not a JSON object",
		`{"a":1 "`:           "expected ',' or '}'",
		"{\"a\":\"\n":        "control character in a string (it must be escaped)",
		`{"a":trux`:          "expected a value",
		`{"model":1}`:        "the model must be a string",
		`{"model":"m"} {`:    "something follows the JSON object",
		"{\"\xff\":":         "the key is not valid UTF-8",
		`{"a":"\u12g4      `: "invalid escape in a string",
	} {
		var r Request
		_, err := r.ReadStart(Chat, []byte(body))
		if e, ok := errors.AsType[*Error](err); !ok || e.Reason != want {
			t.Errorf("%s: %v, want %s", body, err, want)
		}
	}
}

// Wherever a body is cut, its start is read without an error, agrees with the whole
// on the model, and has a prefix of its prompt.
func TestStartIsPrefix(t *testing.T) {
	bodies := map[string]Kind{
		`{"model":"m\u00e9","tools":[{"a":[1]}],"documents":["d"],"messages":[{"role":"system","content":"s\n\u0041"},{"role":"user","name":"n","content":[{"type":"text","text":"é😀"},{"type":"image_url","image_url":{"url":"data:x","detail":null}},{"type":"video_url","video_url":"v"},{"type":"input_audio","input_audio":[1]},"t"],"x":[-1.5e+3,NaN,-Infinity,true,null]},{"content":"c","role":"user","tool_calls":[{}]},{"role":"tool","content":{"a":1}}],"stream":true}`: Chat,
		`{"model":"m","system":[{"text":"x-anthropic-billing-header: 1"},{"text":"s"}],"messages":[{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":[{"source":{"data":"D"}},{"text":"a"}]}]}]}`:                                                                                                                                                                                                                                                         Messages,
		`{"model":"m","instructions":"i","input":[{"role":"user","content":[{"type":"input_text","text":"a"},{"type":"input_image","image_url":"u"}]},"b"]}`:                                                                                                                                                                                                                                                                                                                        Responses,
		`{"prompt":["a",[1, 22],[333]],"model":"m"}`:  Completions,
		`{"model":"m","query":"q","documents":["a"]}`: Rerank,
		"\ufeff" + ` {"prompt":"a\\","model":null}`:   Completions,
	}
	files, _ := filepath.Glob("testdata/captures/chat*.req.json")
	for _, name := range files {
		body, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(body, []byte(`"tools"`)) { // there they come behind
			bodies[string(body)] = Chat
		}
	}
	for body, kind := range bodies {
		var whole, r Request
		if err := whole.Read(kind, []byte(body)); err != nil {
			continue // captured as what a server refuses
		}
		want := stream(&whole)
		for n := range len(body) + 1 {
			if _, err := r.ReadStart(kind, []byte(body[:n])); err != nil {
				t.Fatalf("%q: %v", body[:n], err)
			}
			if r.hasModel && string(r.Model) != string(whole.Model) {
				t.Fatalf("%q: model %q", body[:n], r.Model)
			}
			got := stream(&r)
			if got != "" && !strings.HasPrefix(want, got[:len(got)-1]) {
				t.Fatalf("%q\n got %q\nof %q", body[:n], got, want)
			}
			if n == len(body) && got != want {
				t.Fatalf("whole:\n got %q\nwant %q", got, want)
			}
			if r.Images > whole.Images || r.Audios > whole.Audios || r.Videos > whole.Videos {
				t.Fatalf("%q: %+v", body[:n], r.Media)
			}
		}
	}
}

func TestRestMustNotRename(t *testing.T) {
	tests := []struct {
		start, rest string
		ok          bool
	}{
		{`{"model":"a",`, `"n":1}`, true},
		{`{"model":"\u0061",`, `"model":"a"}`, true},
		{`{"model":"a",`, `"model":"b"}`, false},
		{`{"model":"a",`, `"mod\u0065l":null}`, false},
		{`{"model":null,`, `"model":"b"}`, false},
		{`{"model":"a",`, `"model":1}`, false},
		{`{"model":"a",`, `]`, false},
		{`{"model":1,`, `"model":"b"}`, true},
		{`{"n":1,`, `"model":"b"}`, true},
		{`{"model":"a`, `b"}`, true},
	}
	for _, tt := range tests {
		var r Request
		if _, err := r.ReadStart(Chat, []byte(tt.start)); err != nil {
			t.Fatal(err)
		}
		err := r.ReadRest([]byte(tt.start + tt.rest))
		if _, isError := errors.AsType[*Error](err); (err == nil) != tt.ok || err != nil && !isError {
			t.Errorf("%s %s: %v", tt.start, tt.rest, err)
		}
	}
}

// FuzzStart holds the start of a body to the whole: what the whole can mend is no
// error, and a model that was known is the whole's, or ReadRest says that it is not.
func FuzzStart(f *testing.F) {
	for i, body := range []string{
		`{"messages":[{"content":"a","role":"user"},{"content":[{"text":"b"},{"image_url":{"url":"u"}}]}],"model":"m","model":"n"}`,
		`{"model":1,"prompt":[[1,2],[3,"x"]],"model":null,"tools":[1],"system":[{"a":"x-anthropic-billing-header"},2]}`,
		"\ufeff{\"mod\\u0065l\":\"\\u00e9\",\"input\":\"a\",\"instructions\":-Infinity}",
	} {
		for kind := range kindNames {
			f.Add(uint8(kind), []byte(body), uint(i*17+kind*5))
		}
	}
	var r, whole Request
	f.Fuzz(func(t *testing.T, k uint8, body []byte, cut uint) {
		kind := Kind(int(k) % len(kindNames))
		start := body[: cut%uint(len(body)+1) : cut%uint(len(body)+1)]
		wholeErr := whole.Read(kind, body)
		known, err := r.ReadStart(kind, start)
		if err != nil {
			if wholeErr == nil {
				t.Fatalf("refused the start %q: %v", start, err)
			}
			return
		}
		if known && (!r.hasModel || r.TextBytes < MinStart) {
			t.Fatal("known too early")
		}
		text := 0
		for _, s := range r.Spans {
			text += len(s.Data)
		}
		if text > len(start)+len("user")*len(r.Spans) {
			t.Fatalf("%d bytes of spans from %d", text, len(start))
		}
		if len(start) == len(body) && wholeErr == nil && stream(&r) != stream(&whole) {
			t.Fatalf("got %q, want %q", stream(&r), stream(&whole))
		}
		model, named := string(r.Model), r.hasModel
		err = r.ReadRest(body)
		if named && wholeErr == nil && (err == nil) != (model == string(whole.Model)) || wholeErr != nil && err == nil || !named && wholeErr == nil && err != nil {
			t.Fatalf("model %q, then %q: %v", model, whole.Model, err)
		}
	})
}

func TestStartAllocatesNothing(t *testing.T) {
	body := chatBody(220<<10, false)
	var r Request
	if n := testing.AllocsPerRun(20, func() {
		if _, err := r.ReadStart(Chat, body[:100<<10]); err != nil {
			t.Fatal(err)
		}
		if err := r.ReadRest(body); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkReadStart(b *testing.B) {
	for _, size := range []int{128 << 10, 1 << 20} {
		start := chatBody(2<<20, false)[:size]
		b.Run(fmt.Sprintf("%dKB", size>>10), func(b *testing.B) {
			var r Request
			b.SetBytes(int64(len(start)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.ReadStart(Chat, start); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
