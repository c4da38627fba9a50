package h1

import (
	"bufio"
	"bytes"
	"testing"

	"github.com/valyala/fasthttp"

	"github.com/fairway-proxy/fairway/proxy/message"
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
