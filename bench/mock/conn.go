package mock

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	maxHead = 1 << 20   // bytes of a request's head
	maxBody = 256 << 20 // bytes of its body
)

// conn is one client's connection. net/http's server cannot write uvicorn's answers, so this is an own loop: net/http parses the
// request, and the answer is written here.
type conn struct {
	s     *Server
	nc    net.Conn
	in    *input
	limit *io.LimitedReader // over in: bounds a request
	br    *bufio.Reader     // over limit
	out   []byte            // scratch for what is written next
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{s: s, nc: nc, in: newInput(nc)}
	c.attach()
	return c
}

// attach puts the readers over the input.
func (c *conn) attach() {
	c.limit = &io.LimitedReader{R: c.in}
	c.br = bufio.NewReaderSize(c.limit, 4<<10)
}

// run serves requests one after the other until either side is done.
func (c *conn) run() {
	defer c.s.forget(c)
	filled := make(chan struct{})
	go func() {
		c.in.fill()
		close(filled)
	}()
	for served := 0; c.await(served) && c.serveOne(); served++ {
	}
	c.in.stop()
	c.nc.Close()
	<-filled
}

// await waits for the first byte of a request. uvicorn closes a connection that is idle after a request, but not one that never
// had one.
func (c *conn) await(served int) bool {
	if c.br.Buffered() > 0 {
		return !c.s.stopping()
	}
	var timeout chan struct{}
	if served > 0 {
		timeout = make(chan struct{})
		t := time.AfterFunc(c.s.cfg.KeepAlive, func() { close(timeout) })
		defer t.Stop()
	}
	return c.in.await(timeout) == nil
}

// reset breaks the connection without a goodbye.
func (c *conn) reset() {
	if tcp, ok := c.nc.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.nc.Close()
}

// serveOne reads a request and answers it. It reports whether the connection can take another.
func (c *conn) serveOne() bool {
	c.limit.N = maxHead
	req, err := http.ReadRequest(c.br)
	if err != nil {
		if !c.in.left() {
			c.writeInvalid()
		}
		return false
	}
	x := &exchange{s: c.s, c: c, req: req, begun: time.Now(), keepAlive: !req.Close && req.ProtoAtLeast(1, 1)}
	c.limit.N = maxBody + 64<<10
	if strings.EqualFold(req.Header.Get("Expect"), "100-continue") {
		if _, err := c.nc.Write([]byte("HTTP/1.1 100 Continue\r\n\r\n")); err != nil {
			return false
		}
	}
	if x.body, err = readBody(req); err != nil {
		if !c.in.left() {
			c.writeInvalid()
		}
		return false
	}
	x.serve()
	return x.keepAlive && x.err == nil && !c.in.left() && !c.s.stopping()
}

func readBody(req *http.Request) ([]byte, error) {
	var b bytes.Buffer
	if n := req.ContentLength; n > 0 && n <= maxBody {
		b.Grow(int(n) + bytes.MinRead)
	}
	n, err := b.ReadFrom(io.LimitReader(req.Body, maxBody+1))
	if err == nil && n > maxBody {
		err = errors.New("request body too large")
	}
	return b.Bytes(), err
}

func (c *conn) writeInvalid() {
	c.nc.Write([]byte("HTTP/1.1 400 Bad Request\r\ndate: " + c.s.date() + "\r\nserver: uvicorn\r\n" +
		"content-type: text/plain; charset=utf-8\r\nconnection: close\r\n\r\nInvalid HTTP request received."))
}

// date is the time in an answer.
func (s *Server) date() string { return time.Now().Add(s.cfg.ClockSkew).UTC().Format(http.TimeFormat) }

// field is a response header.
type field struct{ name, value string }

// exchange is one request and its answer.
type exchange struct {
	s         *Server
	c         *conn
	req       *http.Request
	body      []byte
	begun     time.Time
	keepAlive bool

	status int
	sent   int   // Content-Length of the answer; 0 for a stream
	err    error // of writing
}

// write sends what is in the connection's scratch buffer.
func (x *exchange) write() {
	if x.err == nil {
		_, x.err = x.c.nc.Write(x.c.out)
	}
	x.c.out = x.c.out[:0]
}

// head appends the status line and the headers uvicorn puts first.
func (x *exchange) head(status int, fields ...field) {
	x.status = status
	b := x.c.out[:0]
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(status)...)
	b = append(b, "\r\ndate: "...)
	b = append(b, x.s.date()...)
	b = append(b, "\r\nserver: uvicorn\r\n"...)
	for _, f := range fields {
		b = append(b, f.name...)
		b = append(b, ": "...)
		b = append(b, f.value...)
		b = append(b, "\r\n"...)
	}
	x.c.out = b
}

// lastFields adds what the outermost middleware and uvicorn itself say.
func (x *exchange) lastFields(fields []field) []field {
	if x.s.cfg.RequestIDHeaders {
		id := x.req.Header.Get("X-Request-Id")
		if id == "" {
			id = randomID() + randomID()
		}
		fields = append(fields, field{"x-request-id", id})
	}
	if !x.keepAlive {
		fields = append(fields, field{"connection", "close"})
	}
	return fields
}

// answer sends a whole response. extra fields come before content-length, as those of vLLM's handlers do.
func (x *exchange) answer(status int, contentType string, body []byte, extra ...field) {
	x.sent = len(body)
	fields := append(extra, field{"content-length", strconv.Itoa(len(body))})
	if contentType != "" {
		fields = append(fields, field{"content-type", contentType})
	}
	if status != http.StatusUnauthorized { // said by a middleware outside the one that adds vary
		fields = append(fields, field{"vary", "Origin"})
	}
	x.head(status, x.lastFields(fields)...)
	x.c.out = append(x.c.out, "\r\n"...)
	if x.req.Method != http.MethodHead {
		x.c.out = append(x.c.out, body...)
	}
	x.write()
}

// startStream sends the head of a stream of events. Even HTTP/1.0 clients get chunks.
func (x *exchange) startStream() {
	fields := x.lastFields([]field{{"content-type", "text/event-stream; charset=utf-8"}, {"vary", "Origin"}})
	x.head(http.StatusOK, append(fields, field{"transfer-encoding", "chunked"})...)
	x.c.out = append(x.c.out, "\r\n"...)
	x.write()
}

// chunk appends an HTTP chunk that holds data.
func (x *exchange) chunk(data []byte) {
	b := strconv.AppendUint(x.c.out, uint64(len(data)), 16)
	b = append(b, "\r\n"...)
	b = append(b, data...)
	x.c.out = append(b, "\r\n"...)
}
