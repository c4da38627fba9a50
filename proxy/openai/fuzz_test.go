package openai

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

// finite replaces Python's NaN and Infinity by arrays, so that encoding/json can
// read what Python's json reads: what stands beside an array is no part of it, such as
// the digit of 1Infinity.
func finite(body []byte) []byte {
	var out []byte
	inString := false
	for i := 0; i < len(body); i++ {
		c := body[i]
		switch {
		case inString && c == '\\' && i+1 < len(body):
			out = append(out, c)
			i++
			c = body[i]
		case c == '"':
			inString = !inString
		case !inString:
			if word := infinite.Find(body[i:]); word != nil {
				out = append(out, "[]"...)
				i += len(word) - 1
				continue
			}
		}
		out = append(out, c)
	}
	return out
}

var infinite = regexp.MustCompile(`^(NaN|-?Infinity)`)

// reference is what encoding/json reads. Decoding into a map keeps the last of
// duplicate keys, and matches keys exactly.
type reference map[string]json.RawMessage

func (r reference) text(key string) (s string, ok bool) {
	raw, there := r[key]
	return s, there && len(raw) > 0 && raw[0] == '"' && json.Unmarshal(raw, &s) == nil
}

// FuzzRequest holds Read to encoding/json. What it accepts is JSON, with the model
// and the prompt that encoding/json reads; what it refuses is not JSON, or has a
// model that is none, or is nested too deeply.
func FuzzRequest(f *testing.F) {
	files, _ := filepath.Glob("testdata/captures/*.req.json")
	for _, name := range files {
		body, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for kind := range kindNames {
			f.Add(uint8(kind), body)
		}
	}
	for _, body := range []string{
		`{"mod\u0065l":"\ud83d\ude00","model":null,"stream":1,"stream":"TRUE","n":NaN,"max_tokens":-Infinity}`,
		`{"messages":[{"content":"a","role":"user","content":[{"text":"b","text":"c"},{"image_url":{"url":"u"}}]}],"messages":[{"role":"x","content":"d\"\\"}]}`,
		`{"prompt":["a",[1,2],3],"prompt":[[1 , 2],[3]],"model":"m"}`,
		"\ufeff {\"a\" : [ 1.5e-3 , true , { } , [ ] ] } ",
		`{"system":[{"text":"x-anthropic-billing-header"},{}],"tools":[{"a":{"b":[]}}],"documents":[""],"input":[{"role":"user","content":[{"content":[{"source":{"data":"x"}}]}]}]}`,
		`{"a":"` + strings.Repeat(`prose and \"code\"\n`, 20) + `","model":"m"}`,
	} {
		for kind := range kindNames {
			f.Add(uint8(kind), []byte(body))
		}
	}
	var r Request
	f.Fuzz(func(t *testing.T, k uint8, body []byte) {
		kind := Kind(int(k) % len(kindNames))
		err := r.Read(kind, body)
		var ref reference
		refErr := json.Unmarshal(finite(bytes.TrimPrefix(body, []byte("\ufeff"))), &ref)
		model, isText := ref.text("model")
		if err != nil {
			if refErr == nil && ref != nil && utf8.Valid(body) && err.(*Error).Reason != "nested too deeply" &&
				(isText && len(model) <= MaxModel && !strings.Contains(model, "\ufffd") || ref["model"] == nil || string(ref["model"]) == "null") {
				t.Fatalf("refused: %v", err)
			}
			return
		}
		if refErr != nil {
			t.Fatalf("read what is not JSON: %v", refErr)
		}
		if string(r.Model) != model || !isText && ref["model"] != nil && string(ref["model"]) != "null" {
			t.Fatalf("model %q, encoding/json says %s", r.Model, ref["model"])
		}
		checkPrompt(t, &r, ref)
		checkEdits(t, &r, body, ref)
	})
}

// checkPrompt tells whether the texts of the prompt are among the spans in order.
func checkPrompt(t *testing.T, r *Request, ref reference) {
	var want []string
	raw := func(v json.RawMessage) {
		if len(v) > 2 && v[0] == '"' {
			want = append(want, string(v[1:len(v)-1]))
		}
	}
	switch r.Kind {
	case Completions:
		var list []json.RawMessage
		if json.Unmarshal(ref["prompt"], &list) != nil {
			list = []json.RawMessage{ref["prompt"]}
		}
		for _, v := range list {
			raw(v)
		}
	case Chat:
		var list []json.RawMessage
		if json.Unmarshal(ref["messages"], &list) != nil {
			return
		}
		for _, v := range list {
			var m reference
			if json.Unmarshal(v, &m) == nil {
				raw(m["role"])
				raw(m["content"])
			}
		}
	}
	i := 0
	for _, s := range r.Spans {
		if i < len(want) && string(s.Data) == want[i] {
			i++
		}
	}
	// Beyond maxSpans they are joined.
	if i < len(want) && len(r.spans) < maxSpans {
		t.Fatalf("%q is not in the prompt %q", want[i], prompt(r))
	}
}

// checkEdits tells whether the edited body is the same request but for the edits.
func checkEdits(t *testing.T, r *Request, body []byte, ref reference) {
	asked := r.InjectUsage()
	r.ReplaceModel("other")
	r.ReplaceSalt("pepper")
	edited := bytes.Join(r.AppendSegments(nil, body), nil)
	if len(edited) != r.Len() {
		t.Fatalf("Len says %d, it is %d", r.Len(), len(edited))
	}
	var again Request
	if err := again.Read(r.Kind, edited); err != nil {
		t.Fatalf("edited: %v: %q", err, edited)
	}
	if string(again.Model) != "other" || asked && !again.IncludeUsage || again.StreamOptions != (r.StreamOptions || asked) || again.Stream != r.Stream {
		t.Fatalf("edited: %q", edited)
	}
	if salted := string(again.CacheSalt) == "pepper"; salted != r.Kind.salted() && string(r.CacheSalt) != "pepper" {
		t.Fatalf("edited: %q", edited)
	}
	if prompt(&again) != prompt(r) {
		t.Fatalf("edited: the prompt is %q, was %q", prompt(&again), prompt(r))
	}
	r.ReplaceModel("")
	r.ReplaceSalt("")
	if same := bytes.Join(r.AppendSegments(nil, body), nil); !asked && !bytes.Equal(same, body) {
		t.Fatalf("unedited body changed: %q", same)
	}
	var edit reference
	if json.Unmarshal(finite(bytes.TrimPrefix(edited, []byte("\ufeff"))), &edit) != nil {
		t.Fatalf("edited: not JSON: %q", edited)
	}
	if len(edit) < len(ref) {
		t.Fatalf("edited: lost a member: %q", edited)
	}
}

// FuzzEvents holds that how a stream is cut changes nothing, and that only whole
// events are withheld.
func FuzzEvents(f *testing.F) {
	files, _ := filepath.Glob("testdata/captures/*stream*.resp.txt")
	for i, name := range files {
		f.Add(answer(f, strings.TrimSuffix(filepath.Base(name), ".resp.txt")), uint16(i*31))
	}
	f.Add([]byte("data: {\"choices\":[],\ndata:\"usage\":{\"prompt_tokens\":1}}\r\n\r\n: x\n\ndata: [DONE]\n\n"), uint16(5))
	f.Add([]byte("\n\r\n\r\r\ndata\n\ndata:\n\n"), uint16(1))
	var e Events
	f.Fuzz(func(t *testing.T, stream []byte, seed uint16) {
		for _, withhold := range []bool{false, true} {
			want := watch(&e, withhold, stream, whole)
			if !withhold && want.Sent != string(stream) || len(want.Sent) > len(stream) || withhold && want.Withheld == 0 && want.Sent != string(stream) {
				t.Fatalf("sent %q", want.Sent)
			}
			x := uint32(seed) + 1
			random := func() int { x = x*1664525 + 1013904223; return int(x>>24) % 64 }
			for name, cut := range map[string]func() int{"single": single, "random": random} {
				got := watch(&e, withhold, stream, cut)
				got.FirstTokenAt = want.FirstTokenAt
				if got != want {
					t.Fatalf("%s, withhold=%v\n got %v\nwant %v", name, withhold, got, want)
				}
			}
		}
	})
}

// FuzzUsage holds Body to encoding/json on what is JSON, and to itself on all.
func FuzzUsage(f *testing.F) {
	for _, name := range []string{"chat-nonstream-again", "responses", "messages", "err-bad-json"} {
		f.Add(answer(f, name))
	}
	f.Add([]byte(`{"a":"\\\"","usage":{"prompt_tokens":1},"usage":null,"usage":{"x":{"usage":{}},"total_tokens":7}}`))
	var b Body
	f.Fuzz(func(t *testing.T, body []byte) {
		want := usageOf(&b, body, len(body))
		for _, n := range []int{1, 3, 8} {
			if got := usageOf(&b, body, n); got != want {
				t.Fatalf("in pieces of %d: %+v, whole %+v", n, got, want)
			}
		}
		if b.Whole(body); json.Valid(body) && b.Usage != want {
			t.Fatalf("as a whole: %+v, want %+v", b.Usage, want)
		}
		var ref reference
		if json.Unmarshal(body, &ref) != nil || !utf8.Valid(body) || bytes.Contains(body, []byte(`\`)) || bytes.Count(body, []byte("usage")) != 1 {
			return
		}
		var usage reference
		if raw := ref["usage"]; len(raw) > maxUsage || json.Unmarshal(raw, &usage) != nil {
			return
		}
		var n uint32
		if raw, ok := usage["total_tokens"]; ok && json.Unmarshal(raw, &n) == nil && string(raw) != "null" && want.Total != int(n) {
			t.Fatalf("total %d, encoding/json says %d", want.Total, n)
		}
	})
}
