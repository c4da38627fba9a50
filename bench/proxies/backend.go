package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// backend is an engine whose answers are canned: what it costs to give them is the
// same behind every proxy. It speaks as much HTTP/1.1 as the proxies do to it.
type backend struct {
	listener net.Listener
	page     []byte // of metrics
}

// A prompt that begins like this asks for a stream of so many events, so far apart.
// It says so in its text because not every proxy passes on fields that it does not know.
const streamFormat = "events=%d pace=%dus "

// scrapes counts the metrics pages that all backends gave.
var scrapes atomic.Int64

var (
	answer = canned("application/json", `{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Forty-two."},"finish_reason":"stop"}],"usage":{"prompt_tokens":300,"completion_tokens":4,"total_tokens":304,"prompt_tokens_details":{"cached_tokens":0}}}`)
	models = canned("application/json", `{"object":"list","data":[{"id":"m","object":"model","created":1,"owned_by":"vllm","max_model_len":131072}]}`)
	event  = []byte(`data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null,"token_ids":null}]}` + "\n\n")
)

func canned(kind, body string) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s", kind, len(body), body)
}

// newBackend serves from now on; page is its metrics page.
func newBackend(page []byte) (*backend, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &backend{listener: l, page: canned("text/plain; version=0.0.4", string(page))}
	go b.accept(l)
	return b, nil
}

// accept serves what connects to l.
func (b *backend) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go b.serve(c)
	}
}

func (b *backend) address() string { return b.listener.Addr().String() }

func (b *backend) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReaderSize(c, 64<<10)
	for {
		head, err := readHead(r)
		if err != nil {
			return
		}
		body, _ := r.Peek(min(r.Buffered(), 1<<10))
		n, pace := wantsStream(body)
		if err := skipBody(r, head); err != nil {
			return
		}
		switch {
		case bytes.HasPrefix(head, []byte("GET /metrics")):
			scrapes.Add(1)
			_, err = c.Write(b.page)
		case bytes.HasPrefix(head, []byte("GET /v1/models")):
			_, err = c.Write(models)
		case n > 0:
			err = stream(c, n, pace)
		default:
			_, err = c.Write(answer)
		}
		if err != nil {
			return
		}
	}
}

// wantsStream reads what streamFormat says; n is 0 where it says nothing.
func wantsStream(body []byte) (n int, pace time.Duration) {
	var us int64
	if i := bytes.Index(body, []byte("events=")); i >= 0 {
		fmt.Sscanf(string(body[i:]), streamFormat, &n, &us)
	}
	return n, time.Duration(us) * time.Microsecond
}

// stream writes each event by itself, as an engine does.
func stream(c net.Conn, n int, pace time.Duration) error {
	if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"); err != nil {
		return err
	}
	chunk := fmt.Appendf(nil, "%x\r\n%s\r\n", len(event), event)
	due := time.Now()
	for range n {
		due = due.Add(pace)
		time.Sleep(time.Until(due))
		if _, err := c.Write(chunk); err != nil {
			return err
		}
	}
	const done = "data: [DONE]\n\n"
	_, err := fmt.Fprintf(c, "%x\r\n%s\r\n0\r\n\r\n", len(done), done)
	return err
}

// readHead reads a message's head, with the empty line.
func readHead(r *bufio.Reader) ([]byte, error) {
	var head []byte
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return nil, err
		}
		head = append(head, line...)
		if len(line) <= 2 && len(head) > 2 {
			return head, nil
		}
	}
}

// field is a field's value, "" without one. The name is in lower case.
func field(head []byte, name string) string {
	for line := range bytes.Lines(head) {
		if len(line) > len(name) && line[len(name)] == ':' && strings.EqualFold(string(line[:len(name)]), name) {
			return strings.TrimSpace(string(line[len(name)+1:]))
		}
	}
	return ""
}

// skipBody reads to the end of the message's body.
func skipBody(r *bufio.Reader, head []byte) error {
	if strings.EqualFold(field(head, "transfer-encoding"), "chunked") {
		for {
			n, err := chunkSize(r)
			if err != nil {
				return err
			}
			if _, err := r.Discard(n + 2); err != nil || n == 0 {
				return err
			}
		}
	}
	length := field(head, "content-length")
	if length == "" {
		return nil
	}
	n, err := strconv.Atoi(length)
	if err != nil {
		return err
	}
	_, err = r.Discard(n)
	return err
}

func chunkSize(r *bufio.Reader) (int, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(line)), 16, 32)
	return int(n), err
}
