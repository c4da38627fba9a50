package h2

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

// ClientConn is the client's end of a connection: many requests at once. It is
// safe for concurrent use.
type ClientConn struct {
	conn    *http.ClientConn
	addr    net.Addr
	used    atomic.Bool
	leaving atomic.Bool // no further stream is given
}

// NewClientConn begins HTTP/2 on c, with prior knowledge, and takes it over. It
// waits for nothing.
func NewClientConn(c net.Conn) (*ClientConn, error) {
	t := &http.Transport{
		Protocols:              new(http.Protocols),
		HTTP2:                  &http.HTTP2Config{MaxReceiveBufferPerStream: streamWindow, MaxReceiveBufferPerConnection: connWindow, SendPingTimeout: pingAfter, PingTimeout: pingWait},
		DialContext:            func(context.Context, string, string) (net.Conn, error) { return c, nil },
		DisableCompression:     true,
		MaxResponseHeaderBytes: responseHeadLimit,
	}
	t.Protocols.SetUnencryptedHTTP2(true)
	conn, err := t.NewClientConn(context.Background(), "http", "endpoint:80")
	if err != nil {
		c.Close()
		return nil, err
	}
	cc := &ClientConn{conn: conn, addr: c.RemoteAddr()}
	conn.SetStateHook(func(*http.ClientConn) { cc.settle() })
	return cc, nil
}

const responseHeadLimit = 64 << 10

// Open gives a stream for one request, or nil if the connection has ended or has as
// many as its server allows.
func (c *ClientConn) Open() *ClientStream {
	if c.leaving.Load() || c.conn.Reserve() != nil {
		return nil
	}
	s := &ClientStream{conn: c, used: c.used.Swap(true), answered: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Streams is how many requests are under way.
func (c *ClientConn) Streams() int { return c.conn.InFlight() }

// Ended tells that no further stream will be given.
func (c *ClientConn) Ended() bool { return c.leaving.Load() || c.conn.Err() != nil }

// Drain has the connection close with the last of its requests, at once if there are
// none. No further stream is given.
func (c *ClientConn) Drain() {
	c.leaving.Store(true)
	c.settle()
}

// settle closes a connection that has nothing left to do.
func (c *ClientConn) settle() {
	if c.Ended() && c.conn.InFlight() == 0 {
		go c.conn.Close() // not from within the library's call
	}
}

// Close closes the connection with all that is under way on it.
func (c *ClientConn) Close() error { return c.conn.Close() }

// ClientStream is one request and its answer, with the methods of an
// h1.ClientConn. Interrupt may be called from any goroutine, and the answer be read
// beside the writing of the request; nothing else is safe for concurrent use.
type ClientStream struct {
	conn   *ClientConn
	used   bool
	ctx    context.Context
	cancel context.CancelFunc

	timer *time.Timer
	late  atomic.Bool

	body     *outgoing      // of Send
	pipe     *io.PipeWriter // of SendHead
	sent     bool           // a request has begun
	head     bool           // it was a HEAD
	answered chan struct{}  // closed when response or failure is there
	response *http.Response
	failure  error

	closed bool
	ended  bool
	err    error // how the answer's body ended
	buf    *[]byte
}

// SetTimeout interrupts the stream when d has passed without another call; zero
// disarms it.
func (s *ClientStream) SetTimeout(d time.Duration) {
	switch {
	case d <= 0 && s.timer != nil:
		s.timer.Stop()
	case d <= 0:
	case s.timer == nil:
		s.timer = time.AfterFunc(d, func() {
			s.late.Store(true)
			s.cancel()
		})
	default:
		s.timer.Reset(d)
	}
}

// TimedOut tells whether the time-out interrupted the stream.
func (s *ClientStream) TimedOut() bool { return s.late.Load() }

// Interrupt resets the stream: whoever waits for it gets an error at once.
func (s *ClientStream) Interrupt() { s.cancel() }

// Used tells whether the connection has had requests before.
func (s *ClientStream) Used() bool { return s.used }

// Reusable is false: a stream is for one request.
func (s *ClientStream) Reusable() bool { return false }

// Close ends the stream: one that is not over is reset. Nothing that Send was given
// is touched any more.
func (s *ClientStream) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
	if s.body != nil {
		s.body.letGo()
	}
	s.cancel()
	if s.sent {
		<-s.answered // soon: the context is done
		if s.response != nil {
			s.response.Body.Close()
		}
	} else {
		s.conn.conn.Release()
	}
	if s.buf != nil {
		buffers.Put(s.buf)
		s.buf = nil
	}
	s.err = ErrState
	return nil
}

// Send writes a request whose body is at hand; its segments are not touched any
// more when ReadHead has returned. When it gives an error the server may
// nevertheless have answered: ReadHead tells.
func (s *ClientStream) Send(r *message.Request, body ...[]byte) error {
	var total int64
	for _, b := range body {
		total += int64(len(b))
	}
	if total == 0 {
		return s.begin(r, nil, 0)
	}
	s.body = &outgoing{parts: body, done: make(chan struct{}), over: s.ctx.Done()}
	if err := s.begin(r, s.body, total); err != nil {
		return err
	}
	select {
	case <-s.body.done:
		return nil
	case <-s.answered:
		if s.body.letGo() {
			return nil
		}
		return errEarly
	}
}

// errEarly: the answer came before the whole request was sent.
var errEarly = errors.New("http/2: answered before the whole request was sent")

// SendHead begins a request whose body follows in WriteBody and EndBody, of
// r.ContentLength bytes or, if that is Unknown, any number.
func (s *ClientStream) SendHead(r *message.Request) error {
	in, out := io.Pipe()
	s.pipe = out
	return s.begin(r, in, r.ContentLength)
}

// WriteBody writes p, and returns when it was taken.
func (s *ClientStream) WriteBody(p []byte) error {
	if s.pipe == nil {
		return ErrState
	}
	_, err := s.pipe.Write(p)
	return err
}

// EndBody ends the request. It has no trailers.
func (s *ClientStream) EndBody() error {
	if s.pipe == nil {
		return ErrState
	}
	return s.pipe.Close()
}

// begin has the request sent by a goroutine of its own, which waits for the head of
// the answer.
func (s *ClientStream) begin(m *message.Request, body io.ReadCloser, length int64) error {
	if s.sent {
		return ErrState
	}
	r, err := request(m, s.conn.addr)
	if err != nil {
		return err
	}
	if body != nil {
		r.Body, r.ContentLength = body, length
	}
	s.sent, s.head = true, r.Method == "HEAD"
	r = r.WithContext(s.ctx)
	go s.roundTrip(r)
	return nil
}

func (s *ClientStream) roundTrip(r *http.Request) {
	s.response, s.failure = s.conn.conn.RoundTrip(r)
	close(s.answered)
}

// request makes the library's request of ours. The target stays as it is, byte for
// byte.
func request(m *message.Request, addr net.Addr) (*http.Request, error) {
	if !message.ValidToken(m.Method) || len(m.Target) == 0 || !message.ValidTarget(m.Target) {
		return nil, errTarget
	}
	host := string(m.Authority)
	if host == "" { // from a client of HTTP/1.0
		host = addr.String()
	}
	target := string(m.Target)
	if strings.HasPrefix(target, "//") { // see url.URL.RequestURI: the library takes scheme and host off again
		target = "//" + host + target
	}
	r := &http.Request{
		Method: string(m.Method),
		URL:    &url.URL{Scheme: "http", Host: host, Opaque: target},
		Host:   host,
		Header: make(http.Header, len(m.Fields)+2),
	}
	for _, f := range m.Fields {
		if !hopByHop(f.Name) {
			r.Header.Add(string(f.Name), string(f.Value))
		}
	}
	if r.Header["User-Agent"] == nil {
		r.Header["User-Agent"] = nil // none of the library's
	}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		r.Header["Te"] = []string{"trailers"} // gRPC over HTTP2, Requests: "te" must be there
	}
	return r, nil
}

// ReadHead waits for the head of the answer. io.EOF means that the connection ended
// before one came.
func (s *ClientStream) ReadHead(r *message.Response) error {
	if !s.sent || s.err != nil {
		return ErrState
	}
	<-s.answered
	if s.body != nil {
		s.body.letGo()
	}
	if s.failure != nil {
		s.err = s.failure
		return s.err
	}
	h := s.response.Header
	*r = message.Response{Status: s.response.StatusCode, ContentLength: s.response.ContentLength, Fields: r.Fields[:0]}
	for name, values := range h {
		if name == "Content-Length" {
			continue
		}
		for _, v := range values {
			r.Fields = append(r.Fields, message.Field{Name: []byte(name), Value: []byte(v)})
		}
	}
	for name := range s.response.Trailer { // what is announced
		r.Fields = append(r.Fields, message.Field{Name: []byte("Trailer"), Value: []byte(name)})
	}
	// The head that ends the stream says so by a length of 0 that is not among its fields.
	s.ended = s.head || r.Status == 204 || r.Status == 304 || r.ContentLength == 0 && h["Content-Length"] == nil
	return nil
}

// buffers are for what comes of answers.
var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// Next gives the next piece of the body as soon as there is one, valid until the
// next call. io.EOF is the body's end.
func (s *ClientStream) Next() ([]byte, error) {
	switch {
	case s.err != nil:
		return nil, s.err
	case s.response == nil:
		return nil, ErrState
	case s.ended:
		s.err = io.EOF
		return nil, s.err
	case s.buf == nil:
		s.buf = buffers.Get().(*[]byte)
	}
	n, err := s.response.Body.Read(*s.buf)
	s.err = err
	if n > 0 {
		return (*s.buf)[:n], nil
	}
	return nil, err
}

// Pending tells whether Next is known not to wait.
func (s *ClientStream) Pending() bool { return s.ended || s.err != nil }

// Trailers are the fields that came behind the body, once Next has given io.EOF;
// valid until Close.
func (s *ClientStream) Trailers() []message.Field {
	if s.err != io.EOF {
		return nil
	}
	var all []message.Field
	for name, values := range s.response.Trailer {
		for _, v := range values {
			all = append(all, message.Field{Name: []byte(name), Value: []byte(v)})
		}
	}
	return all
}

// Tunnel fails: HTTP/2 has no switch of protocols.
func (s *ClientStream) Tunnel() (*sock.Conn, error) { return nil, errors.ErrUnsupported }

// outgoing is a body that is read by the library as long as it is not let go.
type outgoing struct {
	done chan struct{} // closed when all of it was read
	over <-chan struct{}

	mu    sync.Mutex
	parts [][]byte // what is left, nil when it was let go or read
	gone  bool     // it was let go
	read  bool     // all of it
}

func (o *outgoing) Read(p []byte) (int, error) {
	o.mu.Lock()
	if o.gone && !o.read {
		o.mu.Unlock()
		<-o.over // failing at once would take the answer with it
		return 0, context.Canceled
	}
	defer o.mu.Unlock()
	n := 0
	for len(o.parts) > 0 && n < len(p) {
		k := copy(p[n:], o.parts[0])
		n += k
		if k == len(o.parts[0]) {
			o.parts = o.parts[1:]
		} else {
			o.parts[0] = o.parts[0][k:]
		}
	}
	if len(o.parts) > 0 {
		return n, nil
	}
	if !o.read {
		o.read = true
		close(o.done)
	}
	return n, io.EOF
}

func (o *outgoing) Close() error { return nil }

// letGo has nothing of the body read any more, and tells whether all of it was.
func (o *outgoing) letGo() (whole bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.parts, o.gone = nil, true
	return o.read
}
