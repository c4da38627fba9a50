package proxy

import (
	"bufio"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// chunks has what is written sent as chunks of HTTP/1.1.
type chunks struct{ w io.Writer }

func (c chunks) Write(p []byte) (int, error) {
	_, err := fmt.Fprintf(c.w, "%x\r\n%s\r\n", len(p), p)
	return len(p), err
}

// Nobody can tell one event of a compressed stream from another: it is passed on as it comes, and nothing is written
// into it.
func TestCompressedStream(t *testing.T) {
	for _, whole := range []bool{true, false} {
		t.Run(fmt.Sprint("whole ", whole), func(t *testing.T) {
			var head http.Header
			more := make(chan struct{}, 1)
			p := scripted(t, func(c net.Conn, in *bufio.Reader) {
				r, err := take(in)
				if err != nil {
					return
				}
				head = r.Header
				io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n")
				z := gzip.NewWriter(chunks{c})
				io.WriteString(z, event)
				z.Flush()
				select {
				case <-more:
				case <-time.After(10 * time.Second): // nothing of it was passed on
					t.Error("what came was held back")
				}
				if !whole {
					return
				}
				io.WriteString(z, "data: [DONE]\n\n")
				z.Close()
				io.WriteString(c, "0\r\n\r\n")
			})
			s := startServer(t, World{}, p)
			m := post("/v1/chat/completions", chat(true, 5, "hello"), "Accept-Encoding", "gzip", "X-Other", "1")
			m.onWrite = func() { // nothing of what came is held back
				if len(m.seen()) > 10 {
					select {
					case more <- struct{}{}:
					default:
					}
				}
			}
			s.Handle(m)
			if head.Get("Accept-Encoding") != "" || head.Get("X-Other") != "1" {
				t.Errorf("what is to be withheld was asked for in a form in which it cannot be: %v", head)
			}
			z, err := gzip.NewReader(strings.NewReader(m.seen()))
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(z)
			switch {
			case whole && (err != nil || string(text) != event+"data: [DONE]\n\n" || !m.finished):
				t.Errorf("the client reads %q, %v", text, err)
			case !whole && (err != io.ErrUnexpectedEOF || string(text) != event || !m.aborted):
				t.Errorf("of what was cut the client reads %q, %v", text, err)
			}
		})
	}
}

// A client that is told the usage may have it as it likes.
func TestAcceptEncodingIsTheClients(t *testing.T) {
	var head http.Header
	p := scripted(t, func(c net.Conn, in *bufio.Reader) {
		if r, err := take(in); err == nil {
			head = r.Header
			io.WriteString(c, okAnswer)
		}
	})
	s := startServer(t, World{}, p)
	s.Handle(post("/v1/chat/completions", chat(false, 5, "hello"), "Accept-Encoding", "gzip"))
	if head.Get("Accept-Encoding") != "gzip" {
		t.Errorf("asked for %q", head.Get("Accept-Encoding"))
	}
}
