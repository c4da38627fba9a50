package proxy

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-proxy/fairway/proxy/account"
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

// BenchmarkObserved is what it costs to tell of a request of 1 KB: metrics, receipts, access log and 1 % of traces, or nothing of it. CPU time
// is that of the process, with the engine that gives the answers.
func BenchmarkObserved(b *testing.B) {
	answer := "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 75\r\n\r\n" +
		`{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":1,"total":10}}`
	for _, on := range []bool{false, true} {
		b.Run(map[bool]string{false: "off", true: "on"}[on], func(b *testing.B) {
			var a *account.Recorder
			if on {
				f, err := os.Create(filepath.Join(b.TempDir(), "log"))
				if err != nil {
					b.Fatal(err)
				}
				defer f.Close()
				log := account.NewLog(f, account.JSON)
				defer log.Close()
				a = account.New(prometheus.NewRegistry(), account.Config{Access: log, Tracing: &account.Tracing{Ratio: .01, Span: func(*account.Record) {}}})
			}
			s := New(Config{Account: a, Log: slog.New(slog.DiscardHandler)})
			b.Cleanup(func() { s.Shutdown(b.Context()) })
			s.SetWorld(&World{Pools: []Pool{{Name: "pool", Endpoints: []Endpoint{{Address: canned(b, answer).address}}}}})
			body := chat(false, 1, strings.Repeat("a prompt of some length. ", 1024/25))
			before := cpuTime(b)
			b.ReportAllocs()
			for b.Loop() {
				s.Handle(sink{post("/v1/chat/completions", body)})
			}
			b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}

// cpuTime is what the process has used.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkTakeFields is what it takes to find what the head that the OpenAI SDK sends says to the proxy.
func BenchmarkTakeFields(b *testing.B) {
	var sent []message.Field
	for _, line := range strings.Split("accept: application/json\r\ncontent-type: application/json\r\nuser-agent: OpenAI/Python 2.8.0\r\n"+
		"x-stainless-lang: python\r\nx-stainless-package-version: 2.8.0\r\nx-stainless-os: Linux\r\nx-stainless-arch: x64\r\nx-stainless-runtime: CPython\r\n"+
		"x-stainless-runtime-version: 3.12.3\r\nauthorization: Bearer none\r\nx-stainless-async: false\r\nx-stainless-retry-count: 0\r\n"+
		"x-stainless-read-timeout: 600\r\naccept-encoding: gzip, deflate", "\r\n") {
		name, value, _ := strings.Cut(line, ": ")
		sent = append(sent, message.Field{Name: []byte(name), Value: []byte(value)})
	}
	x := &Exchange{}
	x.serving = &serving{world: &World{}}
	x.head = &message.Request{Method: []byte("POST")}
	b.ReportAllocs()
	for b.Loop() {
		x.head.Fields = append(x.head.Fields[:0], sent...)
		x.id = x.id[:0]
		x.takeFields(false)
	}
}
