package openai

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// usageOf passes an answer in pieces of n bytes.
func usageOf(b *Body, answer []byte, n int) Usage {
	b.Reset()
	for len(answer) > 0 {
		piece := bytes.Clone(answer[:min(n, len(answer))])
		b.Pass(piece)
		clear(piece)
		answer = answer[min(n, len(answer)):]
	}
	return b.Usage
}

func TestCapturedUsage(t *testing.T) {
	tests := map[string]Usage{
		"chat-nonstream-again": {1149, 8, 1157, 1120},
		"cache-salt":           {1149, 2, 1151, 0},
		"completions":          {4, 6, 10, 0},
		"completions-tokens":   {36, 2, 38, 0},
		"responses":            {7, 6, 13, 0},
		"messages":             {5, 6, -1, 0},
		"priority":             {6, 2, 8, 0},
		"err-unknown-model":    unsaid,
		"err-bad-json":         unsaid,
	}
	var b Body
	for name, want := range tests {
		body := answer(t, name)
		for n := 1; n <= len(body); n++ {
			if got := usageOf(&b, body, n); got != want {
				t.Fatalf("%s in pieces of %d: got %+v, want %+v", name, n, got, want)
			}
		}
		if b.Whole(body); b.Usage != want {
			t.Fatalf("%s as a whole: got %+v, want %+v", name, b.Usage, want)
		}
	}
}

func TestUsageFound(t *testing.T) {
	tests := []struct {
		name, answer string
		want         Usage
	}{
		{"spaces", ` { "usage" : { "prompt_tokens" : 3 , "total_tokens" : 4 } } `, Usage{3, -1, 4, -1}},
		{"last wins", `{"usage":{"prompt_tokens":3},"usage":{"prompt_tokens":5}}`, Usage{5, -1, -1, -1}},
		{"in text", `{"choices":[{"message":{"content":"{\"usage\":{\"prompt_tokens\":3}}"}}]}`, unsaid},
		{"text that ends like a key", `{"a":"\"usage","usage":{"prompt_tokens":3}}`, Usage{3, -1, -1, -1}},
		{"deeper", `{"tools":[{"usage":{"prompt_tokens":3}}],"x":{"usage":{"prompt_tokens":3}}}`, unsaid},
		{"deeper and at the end", `{"x":{"a":1,"usage":{"prompt_tokens":3}}}`, unsaid},
		{"in parts", `{"usage":{"prompt_tokens":3},"usage":{"total_tokens":5}}`, Usage{3, -1, 5, -1}},
		{"before others", `{"usage":{"prompt_tokens":3},"a":[{"b":{}}],"c":"}"}`, Usage{3, -1, -1, -1}},
		{"null", `{"usage":null}`, unsaid},
		{"value is the word", `{"a":"usage","b":{"prompt_tokens":3}}`, unsaid},
		{"key that starts so", `{"usages":{"prompt_tokens":3},"usage_":{"prompt_tokens":3},"usage_and_more":{"prompt_tokens":3}}`, unsaid},
		{"braces in strings", `{"a":"}{","usage":{"x":"}","prompt_tokens":3}}`, Usage{3, -1, -1, -1}},
		{"backslashes", `{"a":"\\","b":"\\\"","usage":{"prompt_tokens":3}}`, Usage{3, -1, -1, -1}},
		{"figures that are none", `{"usage":{"prompt_tokens":-3,"completion_tokens":"4","total_tokens":1.5,"prompt_tokens_details":[]}}`, unsaid},
		{"too long to read", `{"usage":{"x":"` + strings.Repeat("x", maxUsage) + `","prompt_tokens":3}}`, unsaid},
		{"unbalanced", `}}}{"usage":{"prompt_tokens":3}}`, unsaid},
	}
	var b Body
	for _, tt := range tests {
		for _, n := range []int{1 << 20, 1, 2, 3, 7} {
			if got := usageOf(&b, []byte(tt.answer), n); got != tt.want {
				t.Errorf("%s in pieces of %d: got %+v, want %+v", tt.name, n, got, tt.want)
			}
		}
		if b.Whole([]byte(tt.answer)); json.Valid([]byte(tt.answer)) && b.Usage != tt.want {
			t.Errorf("%s as a whole: got %+v, want %+v", tt.name, b.Usage, tt.want)
		}
	}
}

func TestBodyAllocatesNothing(t *testing.T) {
	body := answer(t, "chat-nonstream-again")
	var b Body
	if n := testing.AllocsPerRun(100, func() {
		b.Reset()
		b.Whole(body)
		b.Reset()
		b.Pass(body[:500])
		b.Pass(body[500:])
	}); n != 0 {
		t.Error(n, "allocations")
	}
	if want := (Usage{1149, 8, 1157, 1120}); b.Usage != want {
		t.Error(fmt.Sprint(b.Usage))
	}
}
