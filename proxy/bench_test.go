package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// sink is a Stream that lets everything pass and keeps nothing.
type sink struct{ *memoryStream }

func (s sink) WriteHead(*message.Response) error { return nil }
func (s sink) Write(p []byte) (int, error)       { return len(p), nil }
func (s sink) Flush() error                      { return nil }
func (s sink) Finish([]message.Field) error      { return nil }

// canned is an engine that gives one prepared answer to every request, so that
// a benchmark measures the proxy.
func canned(b *testing.B, answer string) *pod {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				in := bufio.NewReader(c)
				for {
					r, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					io.Copy(io.Discard, r.Body)
					if _, err := io.WriteString(c, answer); err != nil {
						return
					}
				}
			}()
		}
	}()
	return &pod{address: l.Addr().String()}
}

const event = `data: {"id":"chatcmpl-ad21222a669abc15","object":"chat.completion.chunk","created":1795388419,"model":"mock","choices":[{"index":0,"delta":{"content":" contents"},"logprobs":null,"finish_reason":null,"token_ids":null}]}` + "\n\n"

// BenchmarkRelay is a stream of a thousand events, each in a chunk of its own:
// one op is one event.
func BenchmarkRelay(b *testing.B) {
	const events = 1000
	var answer strings.Builder
	answer.WriteString("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n")
	for range events {
		fmt.Fprintf(&answer, "%x\r\n%s\r\n", len(event), event)
	}
	done := "data: [DONE]\n\n"
	fmt.Fprintf(&answer, "%x\r\n%s\r\n0\r\n\r\n", len(done), done)
	s := startServer(b, World{}, canned(b, answer.String()))
	body := chat(true, events, "hello")
	b.ReportAllocs()
	for i := 0; i < b.N; i += events {
		s.Handle(sink{post("/v1/chat/completions", body)})
	}
}

// BenchmarkExchange is a whole request that does not stream, but for HTTP on
// the client's side.
func BenchmarkExchange(b *testing.B) {
	answer := "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 75\r\n\r\n" +
		`{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":1,"total":10}}`
	for _, size := range []int{1, 16, 220} {
		b.Run(fmt.Sprintf("%dKB", size), func(b *testing.B) {
			s := startServer(b, World{}, canned(b, answer))
			body := chat(false, 1, strings.Repeat("a prompt of some length. ", size*1024/25))
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				s.Handle(sink{post("/v1/chat/completions", body)})
			}
		})
	}
}
