package h1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

// scripted is a client's end of a connection on which the server says in, step
// bytes at a time, and then closes.
func scripted(in string, step int) (*ClientConn, *script) {
	s := &script{in: []byte(in), step: step}
	return NewClientConn(sock.New(s)), s
}

func request(method string) *message.Request {
	return &message.Request{Method: []byte(method), Target: []byte("/v1?x"), Authority: []byte("pod:8000"),
		Fields: []message.Field{{Name: []byte("X-A"), Value: []byte("b")}, {Name: []byte("Connection"), Value: []byte("close")}}}
}

// body reads a response's body; end is nil when it came whole.
func body(c *ClientConn) (string, error) {
	var all []byte
	for {
		p, err := c.Next()
		all = append(all, p...)
		if err == io.EOF {
			return string(all), nil
		}
		if err != nil {
			return string(all), err
		}
	}
}

func TestResponses(t *testing.T) {
	for _, tt := range []struct {
		name, method, in string
		status           int
		length           int64
		body             string
		end              error
		reusable         bool
	}{
		{"length", "GET", "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", 200, 3, "abc", nil, true},
		{"empty", "POST", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200, 0, "", nil, true},
		{"chunked", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0A;x=y\r\n0123456789\r\n0\r\nx: y\r\n\r\n", 200, -1, "abc0123456789", nil, true},
		{"until close", "GET", "HTTP/1.1 200 OK\r\n\r\nabc", 200, -1, "abc", nil, false},
		{"until close, 1.0", "GET", "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n\r\nabc", 200, -1, "abc", nil, false},
		{"keep-alive, 1.0", "GET", "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 3\r\n\r\nabc", 200, 3, "abc", nil, true},
		{"1.0", "GET", "HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nabc", 200, 3, "abc", nil, false},
		{"close", "GET", "HTTP/1.1 200 OK\r\nConnection: close\r\ncontent-length: 3\r\n\r\nabc", 200, 3, "abc", nil, false},
		{"interim", "GET", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\nlink: y\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", 200, 3, "abc", nil, true},
		{"head", "HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n", 200, 3, "", nil, true},
		{"head, chunked", "HEAD", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", 200, -1, "", nil, true},
		{"204", "GET", "HTTP/1.1 204 No Content\r\n\r\n", 204, 0, "", nil, true},
		{"304", "GET", "HTTP/1.1 304 Not Modified\r\ncontent-length: 3\r\n\r\n", 304, 3, "", nil, true},
		{"more than declared", "GET", "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcd", 200, 3, "abc", nil, false},
		{"body of a head", "HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", 200, 3, "", nil, false},
		{"cut length", "GET", "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab", 200, 3, "ab", io.ErrUnexpectedEOF, false},
		{"cut chunk", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab", 200, -1, "ab", io.ErrUnexpectedEOF, false},
		{"cut between chunks", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", 200, -1, "abc", io.ErrUnexpectedEOF, false},
		{"cut trailer", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n", 200, -1, "abc", io.ErrUnexpectedEOF, false},
		{"bad chunk", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 200, -1, "", errChunkSize, false},
	} {
		for _, step := range []int{1, 2, 7, 4096} {
			c, _ := scripted(tt.in, step)
			var resp message.Response
			if err := c.Send(request(tt.method)); err != nil {
				t.Fatal(err)
			}
			if err := c.ReadHead(&resp); err != nil {
				t.Errorf("%s/%d: %v", tt.name, step, err)
				continue
			}
			got, end := body(c)
			if resp.Status != tt.status || resp.ContentLength != tt.length || got != tt.body || !errors.Is(end, tt.end) {
				t.Errorf("%s/%d: %d, length %d, %q, %v", tt.name, step, resp.Status, resp.ContentLength, got, end)
			}
			// What is beyond the end may not have been read yet, byte by byte.
			if r := c.Reusable(); r != tt.reusable && (step == 4096 || tt.reusable) {
				t.Errorf("%s/%d: reusable %v", tt.name, step, r)
			}
			c.Close()
		}
	}
}

func TestRefusedResponses(t *testing.T) {
	for in, want := range map[string]error{
		"":                io.EOF,
		"HTTP/1.1 200 OK": io.ErrUnexpectedEOF,
		"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n": io.ErrUnexpectedEOF,
		"HTTP/1.1 200 OK\n\n":                      errBareLF,
		"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n":              errLengthAndCoding,
		"HTTP/1.1 200 OK\r\nx: " + strings.Repeat("x", responseHeadLimit):                         errHeadLong,
		strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", maxInterim+1) + "HTTP/1.1 200 OK\r\n\r\n": errInterim,
	} {
		c, _ := scripted(in, 4096)
		c.Send(request("GET"))
		var resp message.Response
		if err := c.ReadHead(&resp); !errors.Is(err, want) {
			t.Errorf("%.40q: %v, want %v", in, err, want)
		}
		if _, err := c.Next(); err == nil {
			t.Errorf("%.40q: a body without a head", in)
		}
		if c.Reusable() || c.Send(request("GET")) == nil {
			t.Errorf("%.40q: the connection is used again", in)
		}
		c.Close()
	}
}

// What is sent is what net/http reads, and it is one write.
func TestRequests(t *testing.T) {
	long := strings.Repeat("0123456789", 5000)
	read := func(s *script) (*http.Request, string) {
		h, err := http.ReadRequest(bufio.NewReader(&s.out))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(h.Body)
		if err != nil {
			t.Fatal(err)
		}
		return h, string(b)
	}
	for _, tt := range []struct {
		method string
		body   []string
		length string // the field, "" for none
	}{
		{"GET", nil, ""}, {"POST", nil, "0"}, {"PUT", nil, "0"}, {"PATCH", nil, "0"}, {"DELETE", nil, ""},
		{"POST", []string{"abc"}, "3"}, {"POST", []string{"abc", "", "def"}, "6"},
		{"POST", []string{long, "x", long}, "100001"},
	} {
		c, s := scripted("", 1)
		var segments [][]byte
		for _, b := range tt.body {
			segments = append(segments, []byte(b))
		}
		if err := c.Send(request(tt.method), segments...); err != nil {
			t.Fatal(err)
		}
		h, got := read(s)
		if h.Method != tt.method || h.RequestURI != "/v1?x" || h.Host != "pod:8000" || h.Header.Get("X-A") != "b" || h.Close ||
			got != strings.Join(tt.body, "") || h.Header.Get("Content-Length") != tt.length {
			t.Errorf("%s of %d segments: %+v, %d bytes", tt.method, len(tt.body), h, len(got))
		}
		if s.writes > 1 && len(got) < 1000 {
			t.Errorf("%d writes", s.writes)
		}
		c.Close()
	}

	for _, length := range []int64{message.Unknown, 6} {
		c, s := scripted("", 1)
		r := request("POST")
		r.ContentLength = length
		for _, err := range []error{c.SendHead(r), c.WriteBody([]byte("abc")), c.WriteBody(nil), c.WriteBody([]byte("def")),
			c.EndBody()} {
			if err != nil {
				t.Fatal(err)
			}
		}
		h, got := read(s)
		if got != "abcdef" || h.ContentLength != length || len(h.Trailer) > 0 {
			t.Errorf("length %d: %+v, %q, trailer %v", length, h, got, h.Trailer)
		}
		if s.writes > 3 {
			t.Errorf("%d writes", s.writes)
		}
		if c.WriteBody([]byte("x")) != ErrState || c.EndBody() != ErrState {
			t.Error("a body after its end")
		}
		c.Close()
	}
}

func TestRequestsThatCannotBeSent(t *testing.T) {
	for name, spoil := range map[string]func(*message.Request){
		"method":    func(r *message.Request) { r.Method = []byte("A B") },
		"no method": func(r *message.Request) { r.Method = nil },
		"target":    func(r *message.Request) { r.Target = []byte("/ HTTP/1.1\r\nx: y") },
		"no target": func(r *message.Request) { r.Target = nil },
		"authority": func(r *message.Request) { r.Authority = []byte("a\r\nx: y") },
		"name":      func(r *message.Request) { r.Fields[0].Name = []byte("x y") },
		"value":     func(r *message.Request) { r.Fields[0].Value = []byte("x\ny") },
	} {
		c, s := scripted("", 1)
		r := request("GET")
		spoil(r)
		if err := c.Send(r); err != ErrField || s.out.Len() != 0 {
			t.Errorf("%s: %v, %q", name, err, s.out.String())
		}
		if err := c.Send(request("GET")); err != nil {
			t.Errorf("%s: a good request afterwards: %v", name, err)
		}
		c.Close()
	}
	c, _ := scripted("", 1)
	defer c.Close()
	r := request("POST")
	r.ContentLength = 3
	c.SendHead(r)
	if c.WriteBody([]byte("abcd")) != ErrLength || c.EndBody() != ErrLength {
		t.Error("a body that is not as long as declared")
	}
	if c.Send(request("GET")) != ErrState {
		t.Error("a request within another")
	}
}

// Chunks that arrived together come together, and Pending tells whether more is
// there.
func TestNextGivesAllThatArrived(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	c := NewClientConn(sock.New(near))
	defer c.Close()
	say := make(chan string)
	go func() {
		io.ReadFull(far, make([]byte, 1)) // the request begins
		go io.Copy(io.Discard, far)
		for s := range say {
			io.WriteString(far, s)
		}
	}()
	defer close(say)
	if err := c.Send(request("GET")); err != nil {
		t.Fatal(err)
	}
	say <- "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
	var resp message.Response
	if err := c.ReadHead(&resp); err != nil {
		t.Fatal(err)
	}
	if c.Pending() {
		t.Error("a body is pending before it was sent")
	}
	for _, tt := range []struct{ say, want string }{
		{"3\r\nabc\r\n", "abc"},
		{"3\r\nabc\r\n3\r\ndef\r\n1\r\nx\r\n5\r\nhe", "abcdefxhe"},
		{"llo", "llo"},
	} {
		say <- tt.say
		got, err := c.Next()
		if string(got) != tt.want || err != nil || c.Pending() {
			t.Errorf("%q: %q, %v, pending %v", tt.say, got, err, c.Pending())
		}
	}
	say <- "\r\n2\r\nab\r\n0\r\n\r\n"
	if got, err := c.Next(); string(got) != "ab" || err != nil || !c.Pending() {
		t.Errorf("%q, %v, pending %v", got, err, c.Pending())
	}
	if _, err := c.Next(); err != io.EOF || !c.Reusable() {
		t.Errorf("%v, reusable %v", err, c.Reusable())
	}
}

// What arrives with the head is pending, unless it is only the beginning of a
// chunk; asking does not lose it.
func TestPendingWithHead(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
	for _, tt := range []struct {
		first, rest, want string
		pending           bool
	}{
		{"1", "0\r\n0123456789abcdef\r\n0\r\n\r\n", "0123456789abcdef", false},
		{"3\r\nab", "c\r\n0\r\n\r\n", "abc", true},
		{"3\r\nabc\r\n0\r\n\r\n", "", "abc", true},
		{"0\r\n\r\n", "", "", true},
	} {
		c, s := scripted(head+tt.first, 4096)
		c.Send(request("GET"))
		var resp message.Response
		if err := c.ReadHead(&resp); err != nil {
			t.Fatal(err)
		}
		if got := c.Pending(); got != tt.pending || c.Pending() != got {
			t.Errorf("%q: pending %v", tt.first, got)
		}
		s.in = []byte(tt.rest)
		if got, err := body(c); got != tt.want || err != nil {
			t.Errorf("%q: %q, %v", tt.first, got, err)
		}
		c.Close()
	}
}

// A body that comes faster than the first window holds comes in larger pieces,
// and whole.
func TestLargeResponse(t *testing.T) {
	want := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	addr := listen(t, &Server{Handler: func(s *Stream) {
		length := int64(len(want))
		if string(s.Head().Method) == "POST" {
			length = message.Unknown
		}
		s.WriteHead(&message.Response{Status: 200, ContentLength: length})
		s.Write(want)
		s.Finish(nil)
	}})
	c := dial(t, addr)
	var resp message.Response
	for range 3 {
		for _, method := range []string{"GET", "POST"} {
			if err := c.Send(request(method)); err != nil {
				t.Fatal(err)
			}
			if err := c.ReadHead(&resp); err != nil {
				t.Fatal(err)
			}
			if got := readAll(t, c); got != string(want) {
				t.Fatalf("%s: %d bytes of %d", method, len(got), len(want))
			}
		}
	}
}

func TestPiecesGrow(t *testing.T) {
	c, _ := scripted("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n"+strings.Repeat("x", 100000), 1<<20)
	defer c.Close()
	c.Send(request("GET"))
	var resp message.Response
	if err := c.ReadHead(&resp); err != nil {
		t.Fatal(err)
	}
	pieces := 0
	for ; ; pieces++ {
		if _, err := c.Next(); err != nil {
			break
		}
	}
	if pieces > 4 {
		t.Errorf("100,000 bytes came in %d pieces", pieces)
	}
}

func TestUsed(t *testing.T) {
	c, _ := scripted("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 4096)
	defer c.Close()
	c.Send(request("GET"))
	if c.Used() {
		t.Error("used by its first request")
	}
	var resp message.Response
	c.ReadHead(&resp)
	c.Send(request("GET"))
	if err := c.ReadHead(&resp); !c.Used() || err != io.EOF {
		t.Errorf("used %v, %v", c.Used(), err)
	}
}

func TestInterruptedClient(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	go io.Copy(io.Discard, far)
	c := NewClientConn(sock.New(near))
	defer c.Close()
	c.Send(request("GET"))
	c.Sock().SetTimeout(time.Millisecond)
	var resp message.Response
	if err := c.ReadHead(&resp); !errors.Is(err, os.ErrDeadlineExceeded) || !c.Sock().TimedOut() || c.Reusable() {
		t.Errorf("%v, timed out %v, reusable %v", err, c.Sock().TimedOut(), c.Reusable())
	}
}

// poolsLose tells that pooled buffers get lost in this build.
var poolsLose bool

// Neither end allocates in the steady state.
func TestAllocations(t *testing.T) {
	if poolsLose {
		t.Skip("pooled buffers get lost under the race detector")
	}
	answerHead := message.Response{Status: 200, ContentLength: message.Unknown,
		Fields: []message.Field{{Name: []byte("content-type"), Value: []byte("text/event-stream")}}}
	event := []byte("data: {\"choices\":[{\"delta\":{\"content\":\"hello\"}}]}\n\n")
	scratch := make([]byte, 4096)
	addr := listen(t, &Server{Handler: func(s *Stream) {
		for {
			if _, err := s.Read(scratch); err != nil {
				break
			}
		}
		s.WriteHead(&answerHead)
		for range 3 {
			s.Write(event)
			s.Flush()
		}
		s.Finish(nil)
	}})
	c := dial(t, addr)
	req := message.Request{Method: []byte("POST"), Target: []byte("/v1/chat/completions"), Authority: []byte("pod"),
		Fields: []message.Field{{Name: []byte("content-type"), Value: []byte("application/json")}}}
	payload, large := bytes.Repeat([]byte("x"), 1000), bytes.Repeat([]byte("y"), 30000)
	var resp message.Response
	for name, body := range map[string][]byte{"small": payload, "large": large} {
		n := testing.AllocsPerRun(200, func() {
			if err := c.Send(&req, body); err != nil {
				t.Fatal(err)
			}
			if err := c.ReadHead(&resp); err != nil {
				t.Fatal(err)
			}
			for {
				if _, err := c.Next(); err == io.EOF {
					return
				} else if err != nil {
					t.Fatal(err)
				}
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations in a request and its answer", name, n)
		}
	}
}

func TestParsingAllocatesNothing(t *testing.T) {
	req, resp := []byte(sdkHead), []byte(vllmHead)
	var p, q parser
	var r message.Request
	var a message.Response
	if n := testing.AllocsPerRun(100, func() {
		p.restart()
		q.restart()
		p.request(req, &r)
		q.response(resp, &a)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	refused := []byte("GET / HTTP/1.1\r\nHost: a b\r\n\r\n")
	if n := testing.AllocsPerRun(100, func() { p.restart(); p.request(refused, &r) }); n != 0 {
		t.Errorf("%v allocations to refuse", n)
	}
}

func TestHostWithoutAuthority(t *testing.T) {
	hosts := make(chan string, 1)
	addr := listen(t, &Server{Handler: func(s *Stream) {
		hosts <- string(s.Head().Authority)
		s.WriteHead(&message.Response{Status: 204})
		s.Finish(nil)
	}})
	c := dial(t, addr)
	if err := c.Send(&message.Request{Method: []byte("GET"), Target: []byte("/")}); err != nil {
		t.Fatal(err)
	}
	if host := <-hosts; host != addr {
		t.Errorf("Host %q, want %q", host, addr)
	}
}

// Whoever waits for the rest of a body holds no buffer meanwhile, nor does a connection that is idle.
func TestWaitingHoldsNoBuffer(t *testing.T) {
	silent := make(chan struct{})
	addr := listen(t, &Server{Handler: func(s *Stream) {
		s.WriteHead(&message.Response{Status: 200, ContentLength: message.Unknown})
		s.Write([]byte("first"))
		s.Flush()
		if string(s.Head().Target) == "/silent" {
			<-silent
		}
		s.Finish(nil)
	}})
	t.Cleanup(func() { close(silent) })
	c := dial(t, addr)
	var resp message.Response
	r := request("GET")
	if err := c.Send(r); err != nil {
		t.Fatal(err)
	}
	if err := c.ReadHead(&resp); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, c); got != "first" || !c.Reusable() || c.buf != nil {
		t.Errorf("%q, reusable %v, holds %d bytes", got, c.Reusable(), len(c.buf))
	}

	r.Target = []byte("/silent")
	if err := c.Send(r); err != nil {
		t.Fatal(err)
	}
	if err := c.ReadHead(&resp); err != nil {
		t.Fatal(err)
	}
	if p, err := c.Next(); string(p) != "first" || err != nil {
		t.Fatalf("%q, %v", p, err)
	}
	c.Sock().SetTimeout(time.Millisecond)
	if p, err := c.Next(); err == nil || c.buf != nil {
		t.Errorf("%q, %v, holds %d bytes", p, err, len(c.buf))
	}
}
