package openai

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
)

// renamed passes an answer in the pieces that cut gives: each call says how long the
// next is to be.
func renamed(r *Renamer, name string, events bool, answer []byte, cut func() int) string {
	r.Reset(name, events)
	var sent []byte
	for len(answer) > 0 {
		n := min(max(cut(), 1), len(answer))
		piece := bytes.Clone(answer[:n])
		for _, s := range r.Pass(nil, piece) {
			sent = append(sent, s...)
		}
		clear(piece) // nothing may be read from a piece later
		answer = answer[n:]
	}
	return string(sent)
}

func TestCapturedAnswersAreRenamed(t *testing.T) {
	var r Renamer
	for name, models := range map[string]int{
		"chat-stream": 7, "chat-stream-n2": 10, "chat-stream-usage": 8, "completions-stream": 7,
		"responses-stream": 3, "messages-stream": 1,
		"chat-nonstream-again": 1, "completions": 1, "responses": 1, "messages": 1,
	} {
		t.Run(name, func(t *testing.T) {
			body := answer(t, name)
			events := strings.Contains(name, "stream") && !strings.Contains(name, "nonstream")
			want := strings.ReplaceAll(string(body), `"model":"tiny"`, `"model":"as \"asked\""`)
			if n := strings.Count(want, "asked"); n != models {
				t.Fatalf("the capture names the model %d times, not %d", n, models)
			}
			for at := range len(body) {
				first := true
				got := renamed(&r, `as "asked"`, events, body, func() int {
					if first {
						first = false
						return at
					}
					return whole()
				})
				if got != want {
					t.Fatalf("cut at %d:\n%s\nwant\n%s", at, got, want)
				}
			}
			if got := renamed(&r, `as "asked"`, events, body, single); got != want {
				t.Fatalf("byte by byte:\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestRenamedIsTheModelOnly(t *testing.T) {
	tests := []struct {
		name, in, want string
		events         bool
	}{
		{name: "text that looks like it", in: `{"choices":[{"text":"\"model\":\"a\"","model":"b"}],"model":"c"}`, want: `{"choices":[{"text":"\"model\":\"a\"","model":"b"}],"model":"N"}`},
		{name: "every one", in: `{"model":"a","x":{"model":"b"},"model" : "c"}`, want: `{"model":"N","x":{"model":"b"},"model" : "N"}`},
		{name: "no string", in: `{"model":null,"y":"z","model":{"model":"a"},"model":["a"]}`, want: `{"model":null,"y":"z","model":{"model":"a"},"model":["a"]}`},
		{name: "a value", in: `{"x":"model","y":"z"}`, want: `{"x":"model","y":"z"}`},
		{name: "escapes", in: `{"a\"model":"a","model":"b\\\"c\u0022d"}`, want: `{"a\"model":"a","model":"N"}`},
		{name: "envelopes", in: `{"response":{"model":"a","x":{"model":"b"}},"y":{"model":"c"},"message":{"model":"d"}}`, want: `{"response":{"model":"N","x":{"model":"b"}},"y":{"model":"c"},"message":{"model":"N"}}`},
		{name: "no envelopes", in: `{"responses":{"model":"a"},"message":[{"model":"b"}],"z":[{"message":{"model":"c"}}]}`, want: `{"responses":{"model":"a"},"message":[{"model":"b"}],"z":[{"message":{"model":"c"}}]}`},
		{name: "a list", in: `["model","a",{"model":"b"}]`, want: `["model","a",{"model":"b"}]`},
		{name: "no JSON", in: `model":"a`, want: `model":"a`},
		{
			name: "lines of events", events: true,
			in:   "event: {\"model\":\"a\"}\ndata: {\"model\":\"b\"}\r\n\r\n: \"\ndata:{\"model\":\ndata: \"c\"}\n\nid: \"\n\ndata: [DONE]\n\ndata: {\"model\":\"d\"}\n\n",
			want: "event: {\"model\":\"a\"}\ndata: {\"model\":\"N\"}\r\n\r\n: \"\ndata:{\"model\":\ndata: \"N\"}\n\nid: \"\n\ndata: [DONE]\n\ndata: {\"model\":\"N\"}\n\n",
		},
		{
			name: "an event that is no JSON", events: true,
			in:   "data: {\"model\":\"a\\\n\ndata: {\"x\":{\"model\":\"a\n\ndata: {\"model\":\"b\"}\n\ndata: {\"model\":\"c\nd\"}\n\ndata: {\"model\":\"e\"}\n\n",
			want: "data: {\"model\":\"N\"\n\ndata: {\"x\":{\"model\":\"a\n\ndata: {\"model\":\"N\"}\n\ndata: {\"model\":\"N\"\nd\"}\n\ndata: {\"model\":\"N\"}\n\n",
		},
	}
	var r Renamer
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, cut := range []func() int{whole, single} {
				if got := renamed(&r, "N", tt.events, []byte(tt.in), cut); got != tt.want {
					t.Errorf("got  %q\nwant %q", got, tt.want)
				}
			}
		})
	}
}

// renamedByTokens is what Renamer is held to: the same by encoding/json's tokens. False
// is for what is not JSON.
func renamedByTokens(name string, body []byte) (string, bool) {
	type level struct {
		object, envelope bool
		key              string // the last one, raw; empty where a key comes next
	}
	quoted := string(AppendQuoted(nil, name))
	var out strings.Builder
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var stack []level
	done := int64(0)
	for {
		before := dec.InputOffset()
		token, err := dec.Token()
		if err == io.EOF && len(stack) == 0 {
			break
		}
		if err != nil {
			return "", false
		}
		raw := body[before:dec.InputOffset()]
		start := dec.InputOffset() - int64(len(bytes.TrimLeft(raw, " \t\r\n:,")))
		raw = body[start:dec.InputOffset()]
		top := &level{}
		if len(stack) > 0 {
			top = &stack[len(stack)-1]
		}
		wasKey := top.key
		if top.object && token != json.Delim('}') && top.key == "" {
			top.key = string(raw)
			continue
		}
		top.key = ""
		switch token {
		case json.Delim('{'):
			stack = append(stack, level{object: true, envelope: len(stack) == 1 && (wasKey == `"response"` || wasKey == `"message"`)})
		case json.Delim('['):
			stack = append(stack, level{})
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:len(stack)-1]
		default:
			if _, ok := token.(string); ok && wasKey == `"model"` && (len(stack) == 1 || top.envelope) {
				out.Write(body[done:start])
				out.WriteString(quoted)
				done = dec.InputOffset()
			}
		}
	}
	out.Write(body[done:])
	return out.String(), true
}

// FuzzRenamer holds Renamer to encoding/json on what is JSON, as a document and as an
// event, and on all to be the same however the answer is cut.
func FuzzRenamer(f *testing.F) {
	for _, name := range []string{"chat-nonstream-again", "responses", "messages", "err-bad-json", "completions"} {
		f.Add(answer(f, name), "as asked", uint16(7))
	}
	f.Add([]byte(`{"response":{"model":"a","model":{"model":"b"}},"message":{"x":[{"model":1}],"model":"c\\"},"model":"\"d"}`), "ü\"", uint16(3))
	f.Add(answer(f, "responses-stream"), "x", uint16(11))
	f.Add([]byte("data: {\"model\":\n\ndata:\"a\"}\r\r\n\r\n\ndata{\"model\":\"a\n"), "x", uint16(2))
	var r Renamer
	f.Fuzz(func(t *testing.T, body []byte, name string, seed uint16) {
		x := uint32(seed) + 1
		random := func() int { x = x*1664525 + 1013904223; return int(x>>24) % 32 }
		for _, events := range []bool{false, true} {
			want := renamed(&r, name, events, body, whole)
			for _, cut := range []func() int{single, random} {
				if got := renamed(&r, name, events, body, cut); got != want {
					t.Fatalf("events=%v, cut: %q\nwhole: %q", events, got, want)
				}
			}
		}
		want, ok := renamedByTokens(name, body)
		if !ok {
			return
		}
		if got := renamed(&r, name, false, body, whole); got != want {
			t.Fatalf("got  %q\nwant %q", got, want)
		}
		// As an event, one line of data for each line.
		event := "event: x\ndata: " + strings.ReplaceAll(string(body), "\n", "\ndata: ") + "\n\n"
		want = "event: x\ndata: " + strings.ReplaceAll(want, "\n", "\ndata: ") + "\n\n"
		if got := renamed(&r, name, true, []byte(event), random); got != want {
			t.Fatalf("event\ngot  %q\nwant %q", got, want)
		}
	})
}

func TestRenamerAllocatesNothing(t *testing.T) {
	stream := answer(t, "chat-stream")
	var r Renamer
	dst := make([][]byte, 0, 64)
	if n := testing.AllocsPerRun(100, func() {
		r.Reset("as asked", true)
		dst = r.Pass(dst[:0], stream)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRenamer(b *testing.B) {
	event := bytes.SplitAfter(answer(b, "chat-stream"), []byte("\n\n"))[1]
	var r Renamer
	r.Reset("as asked", true)
	dst := make([][]byte, 0, 4)
	b.SetBytes(int64(len(event)))
	b.ReportAllocs()
	for b.Loop() {
		dst = r.Pass(dst[:0], event)
	}
}
