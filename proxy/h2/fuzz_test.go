package h2

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/fairway-proxy/fairway/proxy/h1"
	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

// Whatever head is accepted can be sent on by HTTP/1.1, and says there what it
// said here.
func FuzzHead(f *testing.F) {
	f.Add("POST", "/v1/chat/completions?a=b", "fairway.test:80", "x-one", "1", "5", false)
	f.Add("GET", "/", "[::1]", "host", "[::1]", "", true)
	f.Add("OPTIONS", "*", "a", "te", "trailers", "0", true)
	f.Add("OPTIONS", "http://b/admin", "a", "x-one", "1", "", true)
	f.Add("CONNECT", "", "a:80", "expect", "100-continue", "5", false)
	f.Add("G T", "/a b", "a/b", "x-one", "a\r\nb: c", "5, 5", false)
	f.Add("GET", "/%zz#", "u@a", "transfer-encoding", "chunked", "+5", false)
	f.Add("PUT", "/", "a", "content-length", "6", "5", false)
	f.Add("POST", "//b/../c", "a", "connection", "x-one", "", false)
	f.Fuzz(func(t *testing.T, method, target, authority, name, value, length string, end bool) {
		if len(method)+len(target)+len(authority)+len(name)+len(value)+len(length) > 4096 {
			return
		}
		near, far := net.Pipe()
		s := &Server{Handler: func(s *Stream) {
			compare(t, s.Head())
			answer(s, 200, "")
		}}
		var served sync.WaitGroup
		served.Go(func() { s.ServeConn(context.Background(), sock.New(near)) })
		defer served.Wait()
		defer far.Close()

		var block bytes.Buffer
		enc := hpack.NewEncoder(&block)
		for _, h := range [][2]string{{":method", method}, {":scheme", "http"}, {":path", target}, {":authority", authority}, {name, value}} {
			enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
		}
		if length != "" {
			enc.WriteField(hpack.HeaderField{Name: "content-length", Value: length})
		}
		fr := http2.NewFramer(far, far)
		served.Go(func() {
			io.WriteString(far, http2.ClientPreface)
			fr.WriteSettings()
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: end, BlockFragment: block.Bytes()})
		})
		for {
			frame, err := fr.ReadFrame()
			if err != nil {
				return
			}
			switch frame.(type) {
			case *http2.HeadersFrame, *http2.RSTStreamFrame, *http2.GoAwayFrame:
				return
			}
		}
	})
}

// compare writes h as HTTP/1.1 and has net/http read it.
func compare(t *testing.T, h *message.Request) {
	near, far := net.Pipe()
	c := h1.NewClientConn(sock.New(near))
	defer c.Close()
	defer far.Close()
	sent := make(chan error, 1)
	go func() {
		err := c.SendHead(h)
		if err == nil && h.ContentLength == 0 {
			err = c.EndBody()
		} else if err == nil {
			err = c.WriteBody([]byte("x"))
		}
		sent <- err
		near.Close()
	}()
	r, err := http.ReadRequest(bufio.NewReader(far))
	if err != nil {
		t.Errorf("%+v: %v (sent: %v)", h, err, <-sent)
		return
	}
	far.Close()
	<-sent
	if r.Method != string(h.Method) || r.RequestURI != string(h.Target) || r.Host != string(h.Authority) || r.ContentLength != h.ContentLength {
		t.Errorf("%+v became %q %q %q, length %d", h, r.Method, r.RequestURI, r.Host, r.ContentLength)
	}
	for _, f := range h.Fields {
		if got := r.Header.Values(string(f.Name)); len(got) != 1 || got[0] != string(bytes.Trim(f.Value, " \t")) {
			t.Errorf("%+v: %q became %q", h, f.Value, got)
		}
	}
}
