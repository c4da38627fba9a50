package h1

import (
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

const (
	// copyLimit is up to which a payload is copied behind what waits to be
	// written; a longer one is written from where it lies.
	copyLimit = 4 << 10
	// pieceLimit is how much is written at a time under a time-out: the peer's
	// progress is seen piece by piece.
	pieceLimit = 128 << 10
)

// output gathers what is to be written to one connection, so that a head and
// the body behind it leave together.
type output struct {
	conn    *sock.Conn
	timeout time.Duration // without progress, 0 for none
	buf     []byte        // what waits, in a pooled buffer; nil when nothing does
	vec     [][]byte      // scratch for one writev
	bufs    net.Buffers   // what of vec is left
	started bool          // something was handed to the connection
}

// room makes room for n bytes more, in one buffer.
func (o *output) room(n int) error {
	switch {
	case o.buf == nil:
		o.buf = getBuffer(n)[:0]
	case cap(o.buf)-len(o.buf) >= n:
	case len(o.buf)+n <= large:
		b := append(getBuffer(len(o.buf) + n)[:0], o.buf...)
		putBuffer(o.buf)
		o.buf = b
	default:
		if err := o.flush(); err != nil {
			return err
		}
		return o.room(n)
	}
	return nil
}

// flush writes what waits and gives the buffer back.
func (o *output) flush() error {
	if len(o.buf) == 0 {
		o.drop()
		return nil
	}
	err := o.send(o.buf)
	o.drop()
	return err
}

// drop forgets what waits.
func (o *output) drop() {
	if o.buf != nil {
		putBuffer(o.buf)
		o.buf = nil
	}
}

// send writes p, piece by piece when there is a time-out.
func (o *output) send(p []byte) error {
	o.started = true
	for o.timeout > 0 && len(p) > pieceLimit {
		o.conn.SetTimeout(o.timeout)
		if _, err := o.conn.Write(p[:pieceLimit]); err != nil {
			return err
		}
		p = p[pieceLimit:]
	}
	if o.timeout > 0 {
		o.conn.SetTimeout(o.timeout)
		defer o.conn.SetTimeout(0)
	}
	_, err := o.conn.Write(p)
	return err
}

// flushWith writes what waits and then the segments, gathered into as few
// writes as may be. It does not keep the segments.
func (o *output) flushWith(segments ...[]byte) error {
	o.vec = o.vec[:0]
	total := len(o.buf)
	if total > 0 {
		o.vec = append(o.vec, o.buf)
	}
	for _, s := range segments {
		if len(s) > 0 {
			o.vec = append(o.vec, s)
			total += len(s)
		}
	}
	var err error
	if o.timeout > 0 && total > pieceLimit {
		for _, s := range o.vec {
			if err = o.send(s); err != nil {
				break
			}
		}
	} else {
		o.started = true
		if o.timeout > 0 {
			o.conn.SetTimeout(o.timeout)
		}
		o.bufs = o.vec
		_, err = o.conn.WriteBuffers(&o.bufs)
		if o.timeout > 0 {
			o.conn.SetTimeout(0)
		}
	}
	clear(o.vec)
	o.bufs = nil
	o.drop()
	return err
}

// headRoom makes room for a head of these fields and n bytes besides.
func (o *output) headRoom(fields []message.Field, n int) error {
	n += 128 // framing and connection
	for _, f := range fields {
		n += len(f.Name) + len(f.Value) + 4
	}
	return o.room(n)
}

// fields appends field lines, for which room was made. Fields that are not
// end-to-end are left out: they are this package's to write.
func (o *output) fields(fields []message.Field) error {
	b := o.buf
	for i := range fields {
		f := &fields[i]
		if k := kindOf(f.Name); k != endToEnd && k != trailer {
			continue
		}
		if !message.ValidToken(f.Name) || !message.ValidValue(f.Value) {
			return ErrField
		}
		b = append(b, f.Name...)
		b = append(b, ": "...)
		b = append(b, f.Value...)
		b = append(b, "\r\n"...)
	}
	o.buf = b
	return nil
}

// upgrade appends the fields of a switch of protocols, for which headRoom has
// room if the protocol's name was counted in.
func (o *output) upgrade(protocol []byte) {
	o.buf = append(o.buf, "connection: upgrade\r\nupgrade: "...)
	o.buf = append(o.buf, protocol...)
	o.buf = append(o.buf, "\r\n"...)
}

func (o *output) contentLength(n int64) {
	o.buf = append(o.buf, "content-length: "...)
	o.buf = strconv.AppendInt(o.buf, n, 10)
	o.buf = append(o.buf, "\r\n"...)
}

// chunk writes p as one chunk: copied behind what waits when it is short, else
// at once. p is not empty.
func (o *output) chunk(p []byte) error {
	const frame = 20 // a size line and a CRLF
	if len(p) > copyLimit {
		if err := o.room(frame); err != nil {
			return err
		}
		o.sizeLine(len(p))
		return o.flushWith(p, crlf)
	}
	if err := o.room(len(p) + 2*frame); err != nil {
		return err
	}
	o.sizeLine(len(p))
	o.buf = append(o.buf, p...)
	o.buf = append(o.buf, "\r\n"...)
	return nil
}

var crlf = []byte("\r\n")

func (o *output) sizeLine(n int) {
	o.buf = strconv.AppendInt(o.buf, int64(n), 16)
	o.buf = append(o.buf, "\r\n"...)
}

// raw writes p as it is, copied behind what waits when it is short.
func (o *output) raw(p []byte) error {
	if len(p) > copyLimit {
		return o.flushWith(p)
	}
	if err := o.room(len(p)); err != nil {
		return err
	}
	o.buf = append(o.buf, p...)
	return nil
}

// lastChunk appends the end of a chunked body.
func (o *output) lastChunk(trailers []message.Field) error {
	if err := o.headRoom(trailers, 8); err != nil {
		return err
	}
	o.buf = append(o.buf, "0\r\n"...)
	mark := len(o.buf)
	err := o.fields(trailers)
	if err != nil {
		o.buf = o.buf[:mark] // the body is whole without them
	}
	o.buf = append(o.buf, "\r\n"...)
	return err
}

// statusLines holds the status lines of the known statuses.
var statusLines = func() (t [600]string) {
	for i := 100; i < 600; i++ {
		t[i] = "HTTP/1.1 " + strconv.Itoa(i) + " " + http.StatusText(i) + "\r\n"
	}
	return t
}()

func (o *output) statusLine(status int) error {
	if status < 100 || status > 999 {
		return ErrField
	}
	if status < len(statusLines) {
		o.buf = append(o.buf, statusLines[status]...)
		return nil
	}
	o.buf = append(o.buf, "HTTP/1.1 "...)
	o.buf = strconv.AppendInt(o.buf, int64(status), 10)
	o.buf = append(o.buf, " \r\n"...)
	return nil
}
