package openai

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
)

// answer reads the body of a captured answer, its chunks joined.
func answer(t testing.TB, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata/captures", name+".resp.txt"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(raw)), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// seen is what Events says of a whole stream, and what the client got.
type seen struct {
	Usage                             Usage
	Count, Withheld, Unread           int
	FirstToken, Done, Failed, Aborted bool
	Open                              bool
	Sent                              string
	FirstTokenAt                      int // how many events had passed
}

// watch passes a stream in the pieces that cut gives: each call says how long the
// next is to be.
func watch(e *Events, withhold bool, stream []byte, cut func() int) seen {
	e.Reset(withhold)
	var sent []byte
	at := -1
	for len(stream) > 0 {
		n := min(max(cut(), 1), len(stream))
		piece := bytes.Clone(stream[:n])
		for _, s := range e.Pass(nil, piece) {
			sent = append(sent, s...)
		}
		if e.FirstToken && at < 0 {
			at = e.Count
		}
		clear(piece) // nothing may be read from a piece later
		stream = stream[n:]
	}
	open := e.Open()
	sent = append(sent, e.Rest()...)
	return seen{e.Usage, e.Count, e.Withheld, e.Unread, e.FirstToken, e.Done, e.Failed, e.Aborted, open, string(sent), at}
}

// String shortens what was sent.
func (s seen) String() string {
	sent := s.Sent
	if len(sent) > 300 {
		sent = fmt.Sprintf("%d bytes, %x", len(sent), xxhash.Sum64String(sent))
	}
	type plain seen
	s.Sent = sent
	return fmt.Sprintf("%+v", plain(s))
}

func whole() int  { return 1 << 30 }
func single() int { return 1 }

func TestCapturedStreams(t *testing.T) {
	const none = -1
	tests := []struct {
		name       string
		want       seen // without Sent
		withheld   int
		firstToken int // the event that brings it, counting from 1
	}{
		{"chat-stream", seen{Usage: unsaid, Count: 8, Done: true}, 0, 2},
		{"chat-stream-n2", seen{Usage: unsaid, Count: 11, Done: true}, 0, 3},
		{"chat-stream-usage", seen{Usage: Usage{1149, 6, 1155, 1120}, Count: 9, Done: true}, 1, 2},
		{"chat-stream-contusage", seen{Usage: Usage{1149, 6, 1155, 1120}, Count: 9, Done: true}, 1, 2},
		{"chat-stream-logprobs", seen{Usage: unsaid, Count: 5, Done: true}, 0, 2},
		{"return-token-ids", seen{Usage: unsaid, Count: 5, Done: true}, 0, 2},
		{"completions-stream", seen{Usage: Usage{4, 6, 10, 0}, Count: 8, Done: true}, 1, 1},
		{"responses-stream", seen{Usage: Usage{7, 6, 13, 0}, Count: 13}, 0, 5},
		{"messages-stream", seen{Usage: Usage{5, 6, none, 0}, Count: 11}, 0, 3},
		{"sigterm", seen{Usage: unsaid, Count: 7, Done: true, Aborted: true}, 0, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			stream := answer(t, tt.name)
			var e Events
			for _, withhold := range []bool{false, true} {
				want := tt.want
				want.FirstToken = true
				want.FirstTokenAt = tt.firstToken
				want.Sent = string(stream)
				if withhold && tt.withheld > 0 {
					want.Withheld = tt.withheld
					events := strings.SplitAfter(want.Sent, "\n\n")
					kept := events[:0]
					for _, ev := range events {
						if !strings.Contains(ev, `"choices":[]`) {
							kept = append(kept, ev)
						}
					}
					want.Sent = strings.Join(kept, "")
				}
				if got := watch(&e, withhold, stream, single); got != want {
					t.Errorf("byte by byte, withhold=%v\n got %+v\nwant %+v", withhold, got, want)
				}
				// The first token shows once its piece has passed, whatever came with it.
				want.FirstTokenAt = want.Count
				if got := watch(&e, withhold, stream, whole); got != want {
					t.Errorf("whole, withhold=%v\n got %+v\nwant %+v", withhold, got, want)
				}
				for at := 1; at < len(stream); at += 1 + len(stream)/500 {
					first := true
					got := watch(&e, withhold, stream, func() int {
						if first {
							first = false
							return at
						}
						return whole()
					})
					got.FirstTokenAt = want.FirstTokenAt
					if got != want {
						t.Fatalf("cut at %d, withhold=%v\n got %+v\nwant %+v", at, withhold, got, want)
					}
				}
			}
		})
	}
}

func TestEventsUnderstood(t *testing.T) {
	done := "data: [DONE]\n\n"
	token := `data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}` + "\n\n"
	tests := []struct {
		name, stream string
		want         seen
		sent         string // with withholding; empty: all of it
	}{
		{"CRLF", "data: {\"choices\":[{\"text\":\"a\"}]}\r\n\r\ndata: [DONE]\r\n\r\n", seen{Usage: unsaid, Count: 2, FirstToken: true, Done: true}, ""},
		{"LF then CRLF", "data: {\"choices\":[{\"text\":\"a\"}]}\n\r\n" + done, seen{Usage: unsaid, Count: 2, FirstToken: true, Done: true}, ""},
		{"no space", "data:{\"choices\":[{\"text\":\"a\"}]}\n\ndata:[DONE]\n\n", seen{Usage: unsaid, Count: 2, FirstToken: true, Done: true}, ""},
		{"comment", ": ping\n\n" + done, seen{Usage: unsaid, Count: 1, Done: true}, ""},
		{"other fields", "id: 1\nevent: x\nretry: 3\ndata: {\"choices\":[{\"text\":\"a\"}]}\n\n", seen{Usage: unsaid, Count: 1, FirstToken: true}, ""},
		{"data in lines", "data: {\"choices\":\ndata: [],\ndata: \"usage\":{\"prompt_tokens\":1}}\n\n" + done,
			seen{Usage: Usage{1, -1, -1, -1}, Count: 2, Done: true}, done},
		{"spaces", `data: {"id": "x", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}` + "\n\n" + done,
			seen{Usage: Usage{3, 4, 7, -1}, Count: 2, Done: true}, done},
		{"usage null", `data: {"choices":[{"delta":{"content":"a"}}],"usage":null}` + "\n\n", seen{Usage: unsaid, Count: 1, FirstToken: true}, ""},
		{"usage with the last choice", `data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":3}}` + "\n\n", seen{Usage: Usage{3, -1, -1, -1}, Count: 1}, ""},
		{"no choices, no usage", `data: {"choices":[],"prompt_filter_results":[]}` + "\n\n", seen{Usage: unsaid, Count: 1}, ""},
		{"no choices, usage null", `data: {"choices":[],"usage":null}` + "\n\n", seen{Usage: unsaid, Count: 1}, ""},
		{"text that says usage", `data: {"choices":[{"delta":{"content":"\"choices\":[],\"usage\":{\"prompt_tokens\":9}"}}]}` + "\n\n", seen{Usage: unsaid, Count: 1, FirstToken: true}, ""},
		{"text that is usage", `data: {"choices":[{"text":"usage","logprobs":{"top_logprobs":[{"usage":-1.5}]}}]}` + "\n\n", seen{Usage: unsaid, Count: 1, FirstToken: true}, ""},
		{"text that says done", `data: {"choices":[{"delta":{"content":"\n\ndata: [DONE]\n\n"}}]}` + "\n\n", seen{Usage: unsaid, Count: 1, FirstToken: true}, ""},
		{"role only", `data: {"choices":[{"delta":{"role":"assistant","content":"","tool_calls":[]}}]}` + "\n\n", seen{Usage: unsaid, Count: 1}, ""},
		{"reasoning", `data: {"choices":[{"delta":{"reasoning":"a"}}]}` + "\n\n", seen{Usage: unsaid, Count: 1, FirstToken: true}, ""},
		{"tool call", `data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}` + "\n\n", seen{Usage: unsaid, Count: 1, FirstToken: true}, ""},
		{"error", `data: {"error":{"message":"x","code":500}}` + "\n\n" + done, seen{Usage: unsaid, Count: 2, Failed: true, Done: true}, ""},
		{"error null", `data: {"id":"x","choices":[],"error":null}` + "\n\n", seen{Usage: unsaid, Count: 1}, ""},
		{"error of messages", "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"x\"}}\n\n", seen{Usage: unsaid, Count: 1, Failed: true}, ""},
		{"error of responses", `data: {"type":"response.failed","response":{"error":{"code":"x"}}}` + "\n\n", seen{Usage: unsaid, Count: 1, Failed: true}, ""},
		{"not JSON", "data: hello\n\ndata: {\"usage\":\n\n", seen{Usage: unsaid, Count: 2}, ""},
		{"cached tokens of messages", `data: {"type":"message_delta","usage":{"input_tokens":5,"output_tokens":2,"cache_read_input_tokens":32,"cache_creation_input_tokens":3}}` + "\n\n",
			seen{Usage: Usage{40, 2, -1, 32}, Count: 1}, ""},
		{"usage behind a choice that goes on", token + `data: {"id":"x","choices":[{"delta":{"content":"b"},"finish_reason":null}],"usage":{"prompt_tokens":3}}` + "\n\n", seen{Usage: Usage{3, -1, -1, -1}, Count: 2, FirstToken: true}, ""},
		{"usage before a choice that goes on", token + `data: {"usage":{"prompt_tokens":3},"choices":[{"delta":{"content":"b"},"finish_reason":null}]}` + "\n\n", seen{Usage: Usage{3, -1, -1, -1}, Count: 2, FirstToken: true}, ""},
		{"error behind a choice that goes on", token + `data: {"id":"x","choices":[{"delta":{"content":""},"finish_reason":null}],"error":{"code":1}}` + "\n\n", seen{Usage: unsaid, Count: 2, FirstToken: true, Failed: true}, ""},
		{"second choice aborted", token + `data: {"choices":[{"index":0,"finish_reason":null},{"index":1,"finish_reason":"abort"}]}` + "\n\n", seen{Usage: unsaid, Count: 2, FirstToken: true, Aborted: true}, ""},
		{"text that says it goes on", token + `data: {"choices":[{"delta":{"content":"\"finish_reason\":null"},"finish_reason":"abort"}]}` + "\n\n", seen{Usage: unsaid, Count: 2, FirstToken: true, Aborted: true}, ""},
		{"cut short", `data: {"choices":[{"text":"a"}]}` + "\n\ndata: {\"cho", seen{Usage: unsaid, Count: 1, FirstToken: true, Open: true}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var e Events
			for _, withhold := range []bool{false, true} {
				want := tt.want
				want.Sent = tt.stream
				if withhold {
					want.Open = false
					if tt.sent != "" {
						want.Sent, want.Withheld = tt.sent, 1
					}
				}
				for name, cut := range map[string]func() int{"whole": whole, "single": single} {
					got := watch(&e, withhold, []byte(tt.stream), cut)
					got.FirstTokenAt = 0
					if got != want {
						t.Errorf("%s, withhold=%v\n got %+v\nwant %+v", name, withhold, got, want)
					}
				}
			}
		})
	}
}

// An event longer than MaxEvent passes unread, and what follows is read again.
func TestLongEventPassesUnread(t *testing.T) {
	long := fmt.Sprintf(`data: {"choices":[],"usage":{"prompt_tokens":1},"x":"%s"}`+"\n\n", strings.Repeat("a", MaxEvent))
	stream := []byte(long + "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":2}}\n\ndata: [DONE]\n\n")
	var e Events
	for _, n := range []int{1 << 30, 100_000, 4096, 777, 1} {
		got := watch(&e, true, stream, func() int { return n })
		want := seen{Usage: Usage{2, -1, -1, -1}, Count: 2, Withheld: 1, Unread: 1, Done: true, Sent: long + "data: [DONE]\n\n", FirstTokenAt: -1}
		if got != want {
			t.Errorf("pieces of %d\n got %+v\nwant %+v", n, got, want)
		}
		if cap(e.tail)+cap(e.spare) > 4*MaxEvent {
			t.Errorf("pieces of %d: keeps %d bytes", n, cap(e.tail)+cap(e.spare))
		}
	}
}

// An event is sent on with the piece it came in: one segment, the piece itself.
func TestPassGivesThePieceItself(t *testing.T) {
	stream := answer(t, "chat-stream-usage")
	var e Events
	for _, withhold := range []bool{false, true} {
		e.Reset(withhold)
		for _, p := range bytes.SplitAfter(stream, []byte("\n\n")) {
			out := e.Pass(nil, p)
			if withhold && bytes.Contains(p, []byte(`"choices":[]`)) || len(p) == 0 {
				if len(out) != 0 {
					t.Errorf("sent %q", out)
				}
				continue
			}
			if len(out) != 1 || &out[0][0] != &p[0] || len(out[0]) != len(p) {
				t.Errorf("withhold=%v: %q became %q", withhold, p, out)
			}
		}
	}
}

func TestEventsAllocateNothing(t *testing.T) {
	stream := answer(t, "chat-stream-usage")
	pieces := bytes.SplitAfter(stream, []byte("\n\n"))
	var e Events
	dst := make([][]byte, 0, 8)
	if n := testing.AllocsPerRun(100, func() {
		e.Reset(true)
		for _, p := range pieces {
			dst = e.Pass(dst[:0], p)
		}
		for i := 0; i < len(stream); i += 100 {
			dst = e.Pass(dst[:0], stream[i:min(i+100, len(stream))])
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
