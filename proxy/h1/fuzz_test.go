package h1

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// requestSeeds are requests that are taken, or nearly.
var requestSeeds = []string{
	sdkHead,
	"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"GET /x?y=%zz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
	"OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\nConnection: x-a, te\r\nX-A: b\r\nTE: trailers\r\n\r\n",
	"GET http://b:1/p?q HTTP/1.1\r\nHost: a\r\nPragma: no-cache\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
	"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
	"POST / HTTP/1.1\r\nHost: a\r\nX: b\r\n Transfer-Encoding: chunked\r\n\r\nabc",
	"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
	preface,
}

// canonical lists end-to-end fields in an order and spelling that do not depend
// on the parser.
func canonical(fields []message.Field) []string {
	var all []string
	for _, f := range fields {
		all = append(all, strings.ToLower(string(f.Name))+": "+string(f.Value))
	}
	slices.Sort(all)
	return all
}

// FuzzRequestHead holds the parser to two others: what it takes, they must take,
// and read alike. What it refuses they may take.
func FuzzRequestHead(f *testing.F) {
	for _, s := range requestSeeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var p parser
		var r message.Request
		p.restart()
		done, err := p.request(in, &r)
		if !done || err != nil {
			return
		}
		got := canonical(r.Fields)
		end := p.line

		// No beginning of it is a request, and wherever it is cut it is the same.
		var q parser
		var whole message.Request
		for cut := range end {
			if cut < 64 || cut > end-64 {
				q.restart()
				if done, err := q.request(in[:cut], &whole); done || err != nil {
					t.Fatalf("cut at %d: %v, %v", cut, done, err)
				}
				if done, err := q.request(in[:end], &whole); !done || err != nil || show(&whole) != show(&r) {
					t.Fatalf("the rest after %d: %v, %v", cut, done, err)
				}
			}
		}
		likeNetHTTP(t, in[:end], &p, &r, got)
		likeFasthttp(t, in[:end], &p, &r, got)
	})
}

func likeNetHTTP(t *testing.T, in []byte, p *parser, r *message.Request, fields []string) {
	h, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(in)))
	if err != nil {
		if bytes.Contains(bytes.ToLower(in), []byte("trailer")) {
			return // it reads the Trailer field, which this package takes out
		}
		t.Fatalf("net/http refuses %q: %v", in, err)
	}
	target, authority := h.RequestURI, h.Host
	if h.URL.Host != "" {
		// URL.RequestURI would spell the path anew.
		_, after, _ := strings.Cut(h.RequestURI, "://")
		target = after[len(h.URL.Host):]
		if target == "" && h.Method == "OPTIONS" {
			target = "*"
		} else if target == "" {
			target = "/"
		}
	}
	length := h.ContentLength
	if h.Method != string(r.Method) || target != string(r.Target) || authority != string(r.Authority) || length != r.ContentLength {
		t.Fatalf("net/http reads %q as %s %s | %s | %d, not %s", in, h.Method, target, authority, length, show(r))
	}
	var theirs []string
	pragma := h.Header.Get("Pragma") == "no-cache"
	for name, values := range h.Header {
		if kindOf([]byte(name)) != endToEnd || p.head.isNominated([]byte(name)) || pragma && name == "Cache-Control" {
			continue
		}
		for _, v := range values {
			theirs = append(theirs, strings.ToLower(name)+": "+v)
		}
	}
	slices.Sort(theirs)
	if pragma {
		fields = slices.DeleteFunc(slices.Clone(fields), func(s string) bool { return strings.HasPrefix(s, "cache-control:") })
	}
	if !slices.Equal(fields, theirs) {
		t.Fatalf("net/http reads the fields %q, not %q", theirs, fields)
	}
	if h.Close == p.head.persistent(p.minor) {
		t.Fatalf("net/http reads close %v of %q", h.Close, in)
	}
}

func likeFasthttp(t *testing.T, in []byte, p *parser, r *message.Request, fields []string) {
	var h fasthttp.RequestHeader
	h.DisableNormalizing()
	if err := h.Read(bufio.NewReaderSize(bytes.NewReader(in), len(in)+16)); err != nil {
		if bytes.Contains(bytes.ToLower(in), []byte("trailer")) {
			return
		}
		t.Fatalf("fasthttp refuses %q: %v", in, err)
	}
	length := int64(h.ContentLength())
	if length < -1 {
		length = 0
	}
	uri := string(h.RequestURI())
	if !strings.HasSuffix(uri, string(r.Target)) && len(r.Target) > 1 || string(h.Method()) != string(r.Method) || length != r.ContentLength {
		t.Fatalf("fasthttp reads %q as %s %s | %d, not %s", in, h.Method(), uri, length, show(r))
	}
	if uri[0] == '/' && string(h.Host()) != string(r.Authority) {
		t.Fatalf("fasthttp reads the host %q of %q, not %q", h.Host(), in, r.Authority)
	}
	var theirs []string
	for k, v := range h.AllInOrder() {
		if kindOf(k) == endToEnd && !p.head.isNominated(k) {
			theirs = append(theirs, strings.ToLower(string(k))+": "+string(v))
		}
	}
	slices.Sort(theirs)
	if !slices.Equal(fields, theirs) {
		t.Fatalf("fasthttp reads the fields %q, not %q", theirs, fields)
	}
}

func FuzzResponseHead(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\ndate: Mon, 23 Nov 2026 01:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: 3\r\n\r\nabc",
		"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
		"HTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.0 200\r\nConnection: keep-alive, x\r\nX: y\r\n\r\n",
		"HTTP/1.1 304 Not Modified\r\ncontent-length: 0\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var p parser
		var r message.Response
		p.restart()
		done, err := p.response(in, &r)
		if !done || err != nil {
			return
		}
		h, herr := http.ReadResponse(bufio.NewReader(bytes.NewReader(in[:p.line])), nil)
		if herr != nil {
			if bytes.Contains(bytes.ToLower(in), []byte("trailer")) {
				return
			}
			t.Fatalf("net/http refuses %q: %v", in[:p.line], herr)
		}
		if h.StatusCode != r.Status {
			t.Fatalf("net/http reads status %d of %q", h.StatusCode, in)
		}
		if r.Status >= 200 && r.Status != 204 && r.Status != 304 && h.ContentLength != p.head.length {
			t.Fatalf("net/http reads length %d of %q, not %d", h.ContentLength, in, p.head.length)
		}
		for _, f := range r.Fields {
			if kindOf(f.Name) == endToEnd && !slices.Contains(h.Header.Values(string(f.Name)), string(f.Value)) &&
				!strings.EqualFold(string(f.Name), "cache-control") {
				t.Fatalf("net/http does not read %s: %q of %q", f.Name, f.Value, in)
			}
		}
	})
}

// FuzzClient: a response that is read to its end is what net/http reads,
// however it arrives.
func FuzzClient(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc",
		"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nx: y\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nabc",
		"HTTP/1.0 204 No Content\r\nconnection: keep-alive\r\n\r\nabc",
	} {
		f.Add([]byte(s), uint16(0), true)
		f.Add([]byte(s), uint16(4096), false)
	}
	f.Fuzz(func(t *testing.T, in []byte, step uint16, pending bool) {
		c, _ := scripted(string(in), int(step)+1)
		defer c.Close()
		if err := c.Send(request("GET")); err != nil {
			t.Fatal(err)
		}
		var r message.Response
		if c.ReadHead(&r) != nil || r.Status == 101 {
			return
		}
		if pending {
			c.Pending()
		}
		got, err := body(c)
		if err != nil {
			if c.Reusable() {
				t.Fatalf("reusable after %v", err)
			}
			return
		}
		theirs := bufio.NewReader(bytes.NewReader(in))
		for {
			h, err := http.ReadResponse(theirs, nil)
			if err != nil {
				if bytes.Contains(bytes.ToLower(in), []byte("trailer")) {
					return
				}
				t.Fatalf("net/http refuses %q: %v", in, err)
			}
			if h.StatusCode < 200 {
				continue
			}
			if b, err := io.ReadAll(h.Body); err != nil || string(b) != got || h.StatusCode != r.Status {
				t.Fatalf("net/http reads %d %q, %v of %q; not %d %q", h.StatusCode, b, err, in, r.Status, got)
			}
			if h.Close && c.Reusable() {
				t.Fatalf("net/http would close after %q", in)
			}
			return
		}
	})
}

// decodeAll decodes in, cut into pieces of the given sizes in turn.
func decodeAll(in []byte, sizes []byte) (data, rest []byte, d *chunks, err error) {
	d = new(chunks)
	in = bytes.Clone(in)
	for i := 0; len(in) > 0 && d.state != chunksDone; i++ {
		n := len(in)
		if len(sizes) > 0 {
			n = min(n, int(sizes[i%len(sizes)])+1)
		}
		start, end, used, err := d.decode(in[:n])
		if err != nil {
			return data, in, d, err
		}
		data = append(data, in[start:end]...)
		in = in[used:]
	}
	return data, in, d, nil
}

// FuzzChunked: however the wire cuts a body, it is the same, and net/http reads
// it as well.
func FuzzChunked(f *testing.F) {
	for _, s := range []string{
		"0\r\n\r\n", "3\r\nabc\r\n0\r\n\r\nrest", "a;x=\"y\"\r\n0123456789\r\n1\r\nx\r\n000\r\nA: b\r\nc: d\r\n\r\n",
		"3\r\nabcd\r\n0\r\n\r\n", "fffffffffffffffff\r\n", "3\nabc\n0\n\n", "3 \r\nabc\r\n0\r\n\r\n", "\r\n", "0\r\nx\r\n\r\n",
	} {
		f.Add([]byte(s), []byte{0})
		f.Add([]byte(s), []byte{1, 4, 0})
	}
	f.Fuzz(func(t *testing.T, in, sizes []byte) {
		data, rest, d, err := decodeAll(in, nil)
		data2, rest2, d2, err2 := decodeAll(in, sizes)
		if (err != nil) != (err2 != nil) || err == nil && (!bytes.Equal(data, data2) || d.state != d2.state || !bytes.Equal(rest, rest2)) {
			t.Fatalf("whole %q, %v; cut %q, %v", data, err, data2, err2)
		}
		if err != nil || d.state != chunksDone {
			return
		}
		h, herr := http.ReadRequest(bufio.NewReader(io.MultiReader(
			strings.NewReader("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"), bytes.NewReader(in))))
		if herr != nil {
			t.Fatal(herr)
		}
		theirs, herr := io.ReadAll(h.Body)
		if herr != nil || !bytes.Equal(theirs, data) {
			t.Fatalf("net/http reads %q, %v of %q; not %q", theirs, herr, in, data)
		}
	})
}

// script is a connection whose other end says what the test has it say, a few
// bytes at a time.
type script struct {
	net.Conn
	in   []byte
	step int

	out    bytes.Buffer
	writes int
}

func (c *script) Read(p []byte) (int, error) {
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.step)], c.in)
	c.in = c.in[n:]
	return n, nil
}

func (c *script) Write(p []byte) (int, error) {
	c.writes++
	return c.out.Write(p)
}

func (c *script) Close() error                  { return nil }
func (c *script) SetDeadline(t time.Time) error { return nil }
func (c *script) RemoteAddr() net.Addr          { return &net.TCPAddr{} }
func (c *script) OnHangup(func())               {}

// FuzzServer: no handler gets a request that net/http would read differently
// from the same bytes, and nothing panics.
func FuzzServer(f *testing.F) {
	for _, s := range requestSeeds {
		f.Add([]byte(s+s), uint16(7))
		f.Add([]byte(s), uint16(4096))
	}
	f.Fuzz(func(t *testing.T, in []byte, step uint16) {
		theirs := bufio.NewReader(bytes.NewReader(in))
		server := Server{Handler: func(s *Stream) {
			h, err := http.ReadRequest(theirs)
			if err != nil {
				if bytes.Contains(bytes.ToLower(in), []byte("trailer")) {
					s.Abort()
					theirs.Reset(strings.NewReader(""))
					return
				}
				t.Fatalf("net/http refuses %q: %v", in, err)
			}
			if string(s.Head().Method) != h.Method || string(s.Head().Authority) != h.Host {
				t.Fatalf("net/http reads %s for %s, not %s", h.Method, h.Host, show(s.Head()))
			}
			body, err := io.ReadAll(s)
			if err != nil {
				s.Abort()
				return
			}
			their, err := io.ReadAll(h.Body)
			if err != nil || !bytes.Equal(body, their) {
				t.Fatalf("net/http reads the body %q, %v, not %q", their, err, body)
			}
			s.WriteHead(&message.Response{Status: 200, ContentLength: message.Unknown})
			fmt.Fprintf(s, "%s", body)
			s.Finish(nil)
		}}
		server.ServeConn(context.Background(), &script{in: in, step: int(step) + 1})
	})
}
