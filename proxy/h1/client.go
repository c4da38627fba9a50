package h1

import (
	"bytes"
	"io"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

const (
	responseHeadLimit = 64 << 10
	maxInterim        = 16 // interim responses before the final one
)

// ClientConn is the client's end of a connection: one request and its response
// after another. Time-outs and interruption are its Sock's. Nothing else of it is
// safe for concurrent use.
type ClientConn struct {
	sock  *sock.Conn
	out   output
	parse parser

	buf  []byte // pooled: what was read last; nil while nothing lies in it
	win  []byte // of buf: what is behind the head, or all of it
	r, w int    // win[r:w] is read and not consumed; before the head is, buf[:w]

	sent    int    // requests begun
	noBody  bool   // the request was a HEAD
	upgrade []byte // the protocol it asked to switch to
	sending framing
	owed    int64 // of the request's body, when it is fixed

	headed bool // the response's head was read
	body   framing
	left   int64
	chunks chunks
	piece  []byte // decoded by Pending, Next's to give
	err    error  // how the body ended: io.EOF, or why it did not
}

// NewClientConn takes over a connection, which carries nothing yet.
func NewClientConn(c *sock.Conn) *ClientConn {
	return &ClientConn{sock: c, out: output{conn: c}}
}

// Sock is the connection beneath: for time-outs, interruption and the watch for
// hang-ups.
func (c *ClientConn) Sock() *sock.Conn { return c.sock }

// Used tells whether a request before the current one was sent on the
// connection. If it was, and nothing came back, the server may have closed it as
// idle, and the request may be sent once more on a fresh connection.
func (c *ClientConn) Used() bool { return c.sent > 1 }

// Close closes the connection and gives back its buffers: everything it handed
// out is invalid. From another goroutine, call Sock().Interrupt instead.
func (c *ClientConn) Close() error {
	err := c.sock.Close()
	c.out.drop()
	c.drop()
	c.err = ErrState
	return err
}

// Send writes a request whose body is at hand, gathered into one write. The
// body's length is that of its segments; ContentLength is ignored. Without an
// Authority, the Host is the server's address. When it gives an error the server
// may nevertheless have answered: ReadHead tells.
func (c *ClientConn) Send(r *message.Request, body ...[]byte) error {
	var total int64
	for _, b := range body {
		total += int64(len(b))
	}
	if err := c.head(r, total); err != nil {
		return err
	}
	c.sending = noBody
	if total > copyLimit {
		return c.out.flushWith(body...)
	}
	if err := c.out.room(int(total)); err != nil {
		return err
	}
	for _, b := range body {
		c.out.buf = append(c.out.buf, b...)
	}
	return c.out.flush()
}

// SendHead begins a request whose body follows in WriteBody and EndBody, of
// r.ContentLength bytes or, if that is Unknown, chunked. The head leaves with
// the first bytes of the body.
func (c *ClientConn) SendHead(r *message.Request) error {
	if err := c.head(r, r.ContentLength); err != nil {
		return err
	}
	if c.sending, c.owed = fixed, r.ContentLength; r.ContentLength < 0 {
		c.sending = chunked
	}
	return nil
}

// WriteBody writes p, at once.
func (c *ClientConn) WriteBody(p []byte) error {
	var err error
	switch {
	case c.sending == noBody:
		return ErrState
	case len(p) == 0:
	case c.sending == chunked:
		err = c.out.chunk(p)
	case int64(len(p)) > c.owed:
		return ErrLength
	default:
		c.owed -= int64(len(p))
		err = c.out.raw(p)
	}
	if err != nil {
		return err
	}
	return c.out.flush()
}

// EndBody ends the request. It has no trailers. A body shorter than declared is an
// error, and the connection is then of no use.
func (c *ClientConn) EndBody() error {
	switch {
	case c.sending == noBody:
		return ErrState
	case c.sending == fixed && c.owed > 0:
		return ErrLength
	case c.sending == chunked:
		if err := c.out.lastChunk(nil); err != nil {
			return err
		}
	}
	c.sending = noBody
	return c.out.flush()
}

// head appends a request's head to what waits.
func (c *ClientConn) head(r *message.Request, length int64) error {
	if c.err == ErrState || c.sending != noBody || c.sent > 0 && !c.Reusable() {
		return ErrState
	}
	if !message.ValidToken(r.Method) || !message.ValidTarget(r.Target) || len(r.Target) == 0 || !message.ValidValue(r.Authority) || !message.ValidValue(r.Upgrade) {
		return ErrField
	}
	c.recycle()
	if err := c.out.headRoom(r.Fields, len(r.Method)+len(r.Target)+len(r.Authority)+len(r.Upgrade)+96); err != nil {
		return err
	}
	b := append(c.out.buf, r.Method...)
	b = append(b, ' ')
	b = append(b, r.Target...)
	b = append(b, " HTTP/1.1\r\nhost: "...)
	if len(r.Authority) > 0 {
		b = append(b, r.Authority...)
	} else { // from a client of HTTP/1.0; nginx takes no empty Host
		b = append(b, c.sock.RemoteAddr().String()...)
	}
	c.out.buf = append(b, "\r\n"...)
	if err := c.out.fields(r.Fields); err != nil {
		c.out.drop()
		return err
	}
	if r.Upgrade != nil {
		c.out.upgrade(r.Upgrade)
	}
	switch {
	case length < 0:
		c.out.buf = append(c.out.buf, "transfer-encoding: chunked\r\n"...)
	case length > 0 || takesBody(r.Method):
		c.out.contentLength(length)
	}
	c.out.buf = append(c.out.buf, "\r\n"...)
	c.sent++
	c.noBody = string(r.Method) == "HEAD"
	c.upgrade = append(c.upgrade[:0], r.Upgrade...)
	c.headed, c.err = false, nil
	return nil
}

// takesBody tells whether a request of that method says its length even if it
// is zero: RFC 9110 section 8.6.
func takesBody(method []byte) bool {
	switch string(method) {
	case "POST", "PUT", "PATCH":
		return true
	}
	return false
}

// recycle forgets the exchange before.
func (c *ClientConn) recycle() {
	c.drop()
	c.piece = nil
	c.chunks.reset()
}

// drop gives the buffer back.
func (c *ClientConn) drop() {
	putBuffer(c.buf)
	c.buf, c.win = nil, nil
	c.r, c.w = 0, 0
}

// ReadHead reads the final response's head, which is valid until the next call of Next,
// Send or Close; interim ones are skipped, but for a 101 to the protocol that was asked
// for: what follows it is Tunnel's. io.EOF means that the connection ended before
// a byte of the response came.
func (c *ClientConn) ReadHead(r *message.Response) error {
	if c.headed || c.sent == 0 || c.err != nil {
		return ErrState
	}
	for range maxInterim {
		if err := c.readHead(r); err != nil {
			c.err = err
			return err
		}
		if r.Status >= 200 || r.Status == 101 {
			if err := c.frame(r); err != nil {
				c.err = err
				return err
			}
			c.headed = true
			return nil
		}
		c.w = copy(c.buf, c.buf[c.parse.line:c.w])
	}
	c.err = errInterim
	return errInterim
}

// readHead reads one head into buf, which holds c.w bytes already.
func (c *ClientConn) readHead(r *message.Response) error {
	c.parse.restart()
	for {
		if c.w > 0 {
			done, err := c.parse.response(c.buf[:c.w], r)
			if err == nil && (done && c.parse.line > responseHeadLimit || !done && c.w >= responseHeadLimit) {
				err = errHeadLong
			}
			if err != nil {
				return err
			}
			if done {
				return nil
			}
		}
		var n int
		var err error
		if c.w == 0 {
			c.drop()
			c.buf, n, err = c.sock.ReadLent(lender(small))
		} else {
			if c.w == len(c.buf) {
				b := getBuffer(2 * len(c.buf))
				copy(b, c.buf)
				putBuffer(c.buf)
				c.buf = b
				c.parse.restart()
			}
			n, err = c.sock.Read(c.buf[c.w:])
		}
		if c.w += n; n == 0 && err != nil {
			if err == io.EOF && c.w > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
}

// frame finds out how the body ends.
func (c *ClientConn) frame(r *message.Response) error {
	h := &c.parse.head
	c.win = c.buf[c.parse.line:]
	c.r, c.w = 0, c.w-c.parse.line
	r.ContentLength = message.Unknown
	if h.length >= 0 {
		r.ContentLength = h.length
	}
	switch {
	case r.Status == 101:
		if len(c.upgrade) == 0 || !bytes.EqualFold(c.upgrade, r.Upgrade) {
			return errSwitch
		}
		c.body = tunnel
	case c.noBody || r.Status == 204 || r.Status == 304:
		c.body = noBody
		if r.Status != 204 && r.Status != 304 {
			break
		}
		r.ContentLength = max(h.length, 0)
	case h.chunked:
		c.body = chunked
	case h.length >= 0:
		c.body, c.left = fixed, h.length
	default:
		c.body = untilClose
	}
	return nil
}

// Tunnel gives the connection itself after a 101: what comes on it, from the
// first byte behind the head, and what is sent are no longer HTTP. Its bytes are
// the caller's to read and write, each side from one goroutine, until Close.
func (c *ClientConn) Tunnel() (*sock.Conn, error) {
	if !c.headed || c.body != tunnel || c.err != nil {
		return nil, ErrState
	}
	if c.r < c.w {
		c.sock.Unread(c.win[c.r:c.w])
		c.r = c.w
	}
	c.err = ErrState
	return c.sock, nil
}

// Next gives the next piece of the body as soon as there is one, all that has
// arrived of it, valid until the next call. io.EOF is the body's end,
// io.ErrUnexpectedEOF that the connection ended before it.
func (c *ClientConn) Next() ([]byte, error) {
	if c.err != nil {
		return nil, c.err
	}
	if !c.headed || c.body == tunnel {
		return nil, ErrState
	}
	if piece := c.piece; piece != nil {
		c.piece = nil
		return piece, nil
	}
	for {
		if c.ended() {
			if c.r == c.w {
				c.drop()
			}
			c.err = io.EOF
			return nil, c.err
		}
		if c.r == c.w {
			if err := c.fill(); err != nil {
				c.err = err
				return nil, err
			}
		}
		piece, err := c.take()
		if err != nil {
			c.err = err
			return nil, err
		}
		if len(piece) > 0 {
			return piece, nil
		}
	}
}

// Pending tells whether Next would give something, or the end, without waiting.
// What Next gave before stays valid.
func (c *ClientConn) Pending() bool {
	if c.err != nil || !c.headed || c.piece != nil || c.ended() {
		return true
	}
	if c.r == c.w {
		return false
	}
	// What is there may be no more than the beginning of a chunk.
	piece, err := c.take()
	if len(piece) > 0 {
		c.piece = piece
	}
	c.err = err
	return c.piece != nil || err != nil || c.ended()
}

// Trailers are the fields that came behind a chunked body, once Next has given
// io.EOF; valid until the next Send or Close.
func (c *ClientConn) Trailers() []message.Field {
	if c.err != io.EOF {
		return nil
	}
	return c.chunks.trailers
}

// Reusable tells whether another request may be sent: this one's response was
// read to its end, and both sides keep the connection.
func (c *ClientConn) Reusable() bool {
	if c.sent == 0 {
		return c.err == nil && !c.sock.Interrupted()
	}
	return c.headed && c.ended() && c.piece == nil && (c.err == nil || c.err == io.EOF) && c.sending == noBody && c.body != untilClose && c.r == c.w &&
		c.parse.head.persistent(c.parse.minor) && !c.sock.Interrupted()
}

func (c *ClientConn) ended() bool {
	switch c.body {
	case fixed:
		return c.left == 0
	case chunked:
		return c.chunks.state == chunksDone
	}
	return c.body == noBody
}

// take consumes what of the window belongs to the body.
func (c *ClientConn) take() ([]byte, error) {
	in := c.win[c.r:c.w]
	switch c.body {
	case chunked:
		start, end, used, err := c.chunks.decode(in)
		c.r += used
		return in[start:end], err
	case fixed:
		in = in[:min(int64(len(in)), c.left)]
		c.left -= int64(len(in))
	}
	c.r += len(in)
	return in, nil
}

// fill reads more into the empty window: into another buffer, so that none is held for what
// may take long to come; a large one when as much came before as a small one holds.
func (c *ClientConn) fill() error {
	size := lender(small)
	if c.w == len(c.win) || c.w >= small {
		size = large
	}
	c.drop()
	for {
		b, n, err := c.sock.ReadLent(size)
		if n > 0 {
			c.buf, c.win, c.w = b, b, n
			return nil
		}
		if err == io.EOF && c.body != untilClose {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
	}
}
