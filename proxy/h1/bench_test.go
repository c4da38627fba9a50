package h1

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"strconv"
	"testing"

	"github.com/valyala/fasthttp"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

const vllmHead = "HTTP/1.1 200 OK\r\ndate: Mon, 23 Nov 2026 01:00:00 GMT\r\nserver: uvicorn\r\n" +
	"content-type: text/event-stream; charset=utf-8\r\nx-request-id: chatcmpl-0123456789abcdef\r\ntransfer-encoding: chunked\r\n\r\n"

func BenchmarkParseRequest(b *testing.B) {
	in := []byte(sdkHead)
	b.Run("own", func(b *testing.B) {
		var p parser
		var r message.Request
		b.ReportAllocs()
		b.SetBytes(int64(len(in)))
		for b.Loop() {
			p.restart()
			if done, err := p.request(in, &r); !done || err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("fasthttp-codec", func(b *testing.B) {
		var h fasthttp.RequestHeader
		h.DisableNormalizing()
		src := bytes.NewReader(in)
		r := bufio.NewReader(src)
		b.ReportAllocs()
		b.SetBytes(int64(len(in)))
		for b.Loop() {
			src.Reset(in)
			r.Reset(src)
			if err := h.Read(r); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkParseResponse(b *testing.B) {
	in := []byte(vllmHead)
	b.Run("own", func(b *testing.B) {
		var p parser
		var r message.Response
		b.ReportAllocs()
		for b.Loop() {
			p.restart()
			if done, err := p.response(in, &r); !done || err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("fasthttp-codec", func(b *testing.B) {
		var h fasthttp.ResponseHeader
		h.DisableNormalizing()
		src := bytes.NewReader(in)
		r := bufio.NewReader(src)
		b.ReportAllocs()
		for b.Loop() {
			src.Reset(in)
			r.Reset(src)
			if err := h.Read(r); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkExchange is a whole request and its answer over the loopback, both
// ends of it.
func BenchmarkExchange(b *testing.B) {
	answerHead := message.Response{Status: 200, ContentLength: 1000}
	payload := make([]byte, 1000)
	scratch := make([]byte, 4096)
	c := dial(b, listen(b, &Server{Handler: func(s *Stream) {
		for {
			if _, err := s.Read(scratch); err != nil {
				break
			}
		}
		s.WriteHead(&answerHead)
		s.Write(payload)
		s.Finish(nil)
	}}))
	req := message.Request{Method: []byte("POST"), Target: []byte("/v1/chat/completions"), Authority: []byte("pod")}
	var resp message.Response
	b.ReportAllocs()
	for b.Loop() {
		if err := c.Send(&req, payload); err != nil {
			b.Fatal(err)
		}
		if err := c.ReadHead(&resp); err != nil {
			b.Fatal(err)
		}
		for {
			if _, err := c.Next(); err == io.EOF {
				break
			} else if err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkRelayChunk is what one event costs besides the system calls: decoded
// from an upstream's chunk, and written as a chunk to a client.
func BenchmarkRelayChunk(b *testing.B) {
	for _, size := range []int{200, 4000, 30000} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			event := make([]byte, size)
			wire := append(strconv.AppendInt(nil, int64(size), 16), "\r\n"...)
			wire = append(append(wire, event...), "\r\n"...)
			up := &endless{wire: wire}
			c := NewClientConn(sock.New(up))
			defer c.Close()
			up.in = []byte("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
			c.Send(&message.Request{Method: []byte("GET"), Target: []byte("/")})
			var resp message.Response
			if err := c.ReadHead(&resp); err != nil {
				b.Fatal(err)
			}
			s := newStream(b.Context(), &Server{}, sock.New(&endless{}))
			s.parse.minor = 1
			s.WriteHead(&message.Response{Status: 200, ContentLength: message.Unknown})
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				p, err := c.Next()
				if err != nil {
					b.Fatal(err)
				}
				if _, err := s.Write(p); err != nil {
					b.Fatal(err)
				}
				if err := s.Flush(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// endless says in once, then wire for ever, one per read, and takes everything.
type endless struct {
	net.Conn
	in, wire []byte
}

func (c *endless) Read(p []byte) (int, error) {
	if len(c.in) > 0 {
		n := copy(p, c.in)
		c.in = c.in[n:]
		return n, nil
	}
	n := copy(p, c.wire)
	c.in = c.wire[n:]
	return n, nil
}
func (c *endless) Write(p []byte) (int, error) { return len(p), nil }
func (c *endless) Close() error                { return nil }
