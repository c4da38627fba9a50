package openai

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// chatBody makes a request of about that many bytes: a conversation of prose or of
// source code, which is full of escapes once it is JSON.
func chatBody(size int, code bool) []byte {
	text := "The quick brown fox jumps over the lazy dog while seven wizards quietly box with five dozen liquor jugs. "
	if code {
		text = "\tif err := json.Unmarshal([]byte(`x`), &v); err != nil {\n\t\treturn fmt.Errorf(\"read %q: %w\", name, err)\n\t}\n"
	}
	type message struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	body := struct {
		Messages  []message `json:"messages"`
		Model     string    `json:"model"`
		MaxTokens int       `json:"max_tokens"`
		Stream    bool      `json:"stream"`
	}{Model: "meta-llama/Llama-3.1-8B-Instruct", MaxTokens: 256, Stream: true}
	turn := min(2000, size-200)
	for n := 0; n < size-200; n += turn {
		role := [...]string{"user", "assistant"}[len(body.Messages)%2]
		body.Messages = append(body.Messages, message{role, strings.Repeat(text, turn/len(text)+1)[:turn]})
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(body); err != nil {
		panic(err)
	}
	return buf.Bytes()
}

func BenchmarkRead(b *testing.B) {
	read := func(name string, kind Kind, body []byte) {
		b.Run(name, func(b *testing.B) {
			var r Request
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if err := r.Read(kind, body); err != nil {
					b.Fatal(err)
				}
				r.Reset()
			}
		})
	}
	for _, text := range []string{"prose", "code"} {
		for _, size := range []int{1 << 10, 16 << 10, 220 << 10} {
			read(fmt.Sprintf("%s/%dKB", text, size>>10), Chat, chatBody(size, text == "code"))
		}
	}
	read("escapes/216KB", Chat, []byte(`{"model":"m","messages":[{"role":"user","content":"`+strings.Repeat(`\u4e2d\u6587`, 18_000)+`"}]}`))
	read("3000messages/88KB", Chat, []byte(`{"model":"m","messages":[`+strings.Repeat(`{"role":"user","content":"a"},`, 3_000)+`{}]}`))
	read("ids/216KB", Completions, []byte(`{"model":"m","prompt":[`+strings.Repeat("12345,", 36000)+`1]}`))
}

// BenchmarkEvents passes 1,000 events, one a piece, as vLLM sends them.
func BenchmarkEvents(b *testing.B) {
	events := bytes.SplitAfter(answer(b, "chat-stream-usage"), []byte("\n\n"))
	stream := [][]byte{events[0]}
	for len(stream) < 998 {
		stream = append(stream, events[1])
	}
	stream = append(stream, events[7], events[8])
	size := 0
	for _, e := range stream {
		size += len(e)
	}
	for _, withhold := range []bool{false, true} {
		b.Run(fmt.Sprintf("withhold=%v", withhold), func(b *testing.B) {
			var e Events
			dst := make([][]byte, 0, 4)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				e.Reset(withhold)
				for _, p := range stream {
					dst = e.Pass(dst[:0], p)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(stream)), "ns/event")
		})
	}
}

func BenchmarkBody(b *testing.B) {
	body := answer(b, "chat-nonstream-again")
	var w Body
	b.Run("pieces", func(b *testing.B) {
		b.SetBytes(int64(len(body)))
		b.ReportAllocs()
		for b.Loop() {
			w.Reset()
			w.Pass(body)
		}
	})
	b.Run("whole", func(b *testing.B) {
		b.SetBytes(int64(len(body)))
		b.ReportAllocs()
		for b.Loop() {
			w.Whole(body)
		}
	})
}
