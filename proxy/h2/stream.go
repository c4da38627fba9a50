package h2

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/sock"
	"github.com/fairway-proxy/fairway/proxy/turn"
)

// Stream is one request and its answer. It is the handler's alone, and only
// until the handler returns; Context may be kept.
type Stream struct {
	server *Server
	conn   *sock.Conn
	ctx    context.Context
	cancel context.CancelCauseFunc
	forget func() bool // ends the watch of the library's context

	w       http.ResponseWriter
	r       *http.Request
	control *http.ResponseController
	req     message.Request

	// The writing half's.
	headed   bool
	finished bool
	noBody   bool
	left     int64 // of a declared length; message.Unknown
	err      error // why nothing can be written any more

	reading, writing stall
	beginning        beginning

	mu    sync.Mutex
	gone  bool                     // guarded by mu
	ended bool                     // the handler has returned; guarded by mu
	bound interface{ Interrupt() } // guarded by mu
}

// stall ends a stream whose client keeps it waiting for too long.
type stall struct {
	limit time.Duration
	timer *time.Timer
}

// beginning is a request until it is under way.
type beginning struct {
	of   *handed // nil: it is under way, or over
	turn turn.Turn
}

// begin waits for the request's turn if others of its connection are not under way either.
// It gives false if it was over before.
func (b *beginning) begin(h *handed, over <-chan struct{}) bool {
	turns := h.server.Turns
	if turns == nil {
		return true
	}
	b.of = h
	if h.beginning.Add(1) == 1 {
		return true
	}
	ok := false
	select {
	case h.door <- struct{}{}:
		ok = turns.Take(&b.turn, over)
		<-h.door
	case <-over:
	}
	if !ok {
		b.end()
	}
	return ok
}

func (b *beginning) end() {
	if h := b.of; h != nil {
		b.of = nil
		h.beginning.Add(-1)
	}
}

// watch has the stream end with the library's.
func (st *Stream) watch() {
	s, r := st.server, st.r
	st.ctx, st.cancel = context.WithCancelCause(context.WithoutCancel(r.Context()))
	st.forget = context.AfterFunc(r.Context(), func() {
		cause := context.Cause(r.Context())
		if cause == context.Canceled { // the library's word for a reset
			cause = ErrClientGone
		}
		st.lose(cause)
	})
	st.reading.limit = timeout(s.BodyTimeout, time.Minute)
	st.writing.limit = timeout(s.WriteTimeout, time.Minute)
}

// Context is done when the client is gone: it has reset the stream, or the
// connection has ended; context.Cause says which.
func (st *Stream) Context() context.Context { return st.ctx }

// Head is the request's head, valid until the handler returns. Its Fields may be
// edited.
func (st *Stream) Head() *message.Request { return &st.req }

// Conn is the connection the request came on, for what can be asked of it, such
// as the peer of a tunnel. It is not to be read, written or closed.
func (st *Stream) Conn() net.Conn { return st.conn.Conn }

// RemoteAddr is the client's address.
func (st *Stream) RemoteAddr() net.Addr { return st.conn.RemoteAddr() }

// Remote is RemoteAddr as text.
func (st *Stream) Remote() string { return st.conn.RemoteAddr().String() }

// Bind has i interrupted, at most once, when the client goes away. False: it has
// gone already, and i is not bound. A stream has one thing bound at a time.
// Interrupt must not block or call back. The request is under way then: those that
// come behind it on the connection have their turn.
func (st *Stream) Bind(i interface{ Interrupt() }) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.gone {
		return false
	}
	st.bound = i
	st.beginning.end()
	return true
}

// Unbind undoes Bind: when it returns, what was bound is not touched any more.
func (st *Stream) Unbind() {
	st.mu.Lock()
	st.bound = nil
	st.mu.Unlock()
}

// lose ends everything that goes on for the client, for that cause. The context
// is done before what is bound is interrupted, so that whoever is interrupted
// finds out why.
func (st *Stream) lose(cause error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.gone = true
	st.cancel(cause)
	if st.bound != nil {
		st.bound.Interrupt()
		st.bound = nil
	}
}

// expire is what a stall calls.
func (st *Stream) expire() {
	st.lose(ErrTimeout)
	st.mu.Lock()
	defer st.mu.Unlock()
	if !st.ended {
		past := time.Unix(1, 0)
		st.control.SetReadDeadline(past)
		st.control.SetWriteDeadline(past) // resets the stream
	}
}

// begin starts the wait for the client, end ends it.
func (b *stall) begin(st *Stream) {
	switch {
	case b.limit == 0:
	case b.timer == nil:
		b.timer = time.AfterFunc(b.limit, st.expire)
	default:
		b.timer.Reset(b.limit)
	}
}

func (b *stall) end() {
	if b.timer != nil {
		b.timer.Stop()
	}
}

// end lets go of the request, after the handler.
func (st *Stream) end() {
	st.beginning.end()
	st.reading.end()
	st.writing.end()
	st.forget()
	st.mu.Lock()
	st.ended = true
	st.mu.Unlock()
	st.cancel(ErrClientGone)
}

// readHead makes the request's head of the library's, and judges what the library
// lets pass. It refuses by itself, with a reset of the stream, unless said
// otherwise here: pseudo-fields that are missing, unknown, repeated or late, names
// in upper case, and fields of a connection (400): RFC 9113 sections 8.2 and 8.3.
func (st *Stream) readHead() *ProtocolError {
	r, h := st.r, &st.req
	*h = message.Request{
		Method:    []byte(r.Method),
		Target:    []byte(r.RequestURI),
		Authority: []byte(r.Host),
		Fields:    make([]message.Field, 0, len(r.Header)+2), // the proxy adds some
	}
	switch {
	case r.Method == "CONNECT":
		return errConnect
	case !message.ValidToken(h.Method):
		return errMethod
	case len(h.Target) > maxTarget:
		return errTargetLong
	case h.Target[0] != '/' && (r.Method != "OPTIONS" || r.RequestURI != "*") || !message.ValidTarget(h.Target):
		return errTarget
	case !message.ValidAuthority(h.Authority):
		return errAuthority
	}
	size := len(h.Method) + len(h.Target) + len(h.Authority) + 3*fieldOverhead
	for name, values := range r.Header {
		switch name {
		case "Content-Length":
			if err := st.length(values); err != nil {
				return err
			}
			continue
		case "Host": // beside an :authority, or in its place
			if len(values) != 1 || values[0] != r.Host {
				return errHost
			}
			continue
		case "Expect": // the library has taken 100-continue out
			return errExpect
		case "Te": // hop by hop
			continue
		}
		for _, v := range values {
			size += len(name) + len(v) + fieldOverhead
			h.Fields = append(h.Fields, message.Field{Name: []byte(name), Value: []byte(v)})
		}
	}
	switch {
	case size > st.server.headerLimit():
		return errHeadLong
	case len(h.Fields) > maxFields:
		return errFieldCount
	}
	if r.Header["Content-Length"] == nil {
		h.ContentLength = r.ContentLength // Unknown, or 0 when the head ended the stream
	}
	return nil
}

// length takes the Content-Length. The library goes by the first one, and by none
// when the head ends the stream.
func (st *Stream) length(values []string) *ProtocolError {
	if len(values) != 1 {
		return errLength
	}
	n, err := strconv.ParseUint(values[0], 10, 62)
	if err != nil || values[0][0] == '+' {
		return errLength
	}
	if int64(n) != st.r.ContentLength {
		return errLengthWrong
	}
	st.req.ContentLength = int64(n)
	return nil
}

// Read reads the request's body. io.EOF is its end. ErrClientGone and ErrTimeout
// mean that it will not come, a *ProtocolError that it is not what it was said to
// be.
func (st *Stream) Read(p []byte) (int, error) {
	st.reading.begin(st)
	n, err := st.r.Body.Read(p)
	st.reading.end()
	switch {
	case err == nil || err == io.EOF:
		return n, err
	case n > 0:
		return n, nil // the next one tells
	case st.ctx.Err() != nil:
		return 0, context.Cause(st.ctx)
	case st.r.Context().Err() != nil:
		return 0, ErrClientGone
	case st.req.ContentLength != message.Unknown:
		return 0, errLengthWrong
	}
	return 0, err
}

// Duplex lets a Read wait for as long as it takes: body and answer go on beside each
// other, as in gRPC. It is called before the first Read.
func (st *Stream) Duplex() { st.reading.limit = 0 }

// StopReading has a Read that waits, and all that follow, fail: the answer is
// over before the request's body is, as in gRPC.
func (st *Stream) StopReading() { st.r.Body.Close() }

// WriteHead begins the answer. What is written waits for Flush, Finish or more
// than a buffer can hold. Fields that are not end-to-end are left out. An interim head (status 1xx, but not 101, which HTTP/2
// does not have) may come before the final one and is sent at once.
func (st *Stream) WriteHead(r *message.Response) error {
	switch {
	case st.err != nil:
		return st.err
	case st.headed || r.Status == 101:
		return ErrState
	}
	h := st.w.Header()
	clear(h)
	for _, f := range r.Fields {
		if !hopByHop(f.Name) {
			h.Add(string(f.Name), string(f.Value))
		}
	}
	if r.Status >= 200 {
		st.frame(r, h)
	}
	st.writing.begin(st)
	st.w.WriteHeader(r.Status)
	st.writing.end()
	return nil
}

// hopByHop tells whether a field has no place in an HTTP/2 message, or is framing:
// RFC 9113 section 8.2.2.
func hopByHop(name []byte) bool {
	for _, n := range []string{"connection", "content-length", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"} {
		if message.EqualFold(name, n) {
			return true
		}
	}
	return false
}

// frame takes the body's length, and has the library add no length or type of its
// own.
func (st *Stream) frame(r *message.Response, h http.Header) {
	st.headed = true
	st.beginning.end()
	st.noBody = message.NoBody(st.req.Method, r.Status)
	st.left = message.Unknown
	length := r.ContentLength
	if r.Status == 204 || r.Status == 304 && length == 0 {
		length = message.Unknown
	}
	if length >= 0 {
		h.Set("Content-Length", strconv.FormatInt(length, 10))
		if !st.noBody {
			st.left = length
		}
	} else {
		h["Content-Length"] = nil
	}
	if _, typed := h["Content-Type"]; !typed {
		h["Content-Type"] = nil
	}
}

// Write appends to the answer's body. It blocks while the client's window is
// used up, and gives ErrTimeout when it stays so. More than the declared length is
// refused (ErrLength). The body of an answer that has none, such as to HEAD, is
// dropped.
func (st *Stream) Write(p []byte) (int, error) {
	switch {
	case st.err != nil:
		return 0, st.err
	case !st.headed || st.finished:
		return 0, ErrState
	case st.noBody || len(p) == 0:
		return len(p), nil
	case st.left != message.Unknown:
		if int64(len(p)) > st.left {
			return 0, ErrLength
		}
		st.left -= int64(len(p))
	}
	st.writing.begin(st)
	n, err := st.w.Write(p)
	st.writing.end()
	return n, st.broke(err)
}

// Flush hands to the client what waits.
func (st *Stream) Flush() error {
	if st.err != nil {
		return st.err
	}
	st.writing.begin(st)
	err := st.control.Flush()
	st.writing.end()
	return st.broke(err)
}

// Finish ends the answer; it is sent whole when the handler returns. A body
// shorter than declared is an error and resets the stream.
func (st *Stream) Finish(trailers []message.Field) error {
	switch {
	case st.err != nil:
		return st.err
	case !st.headed || st.finished:
		return ErrState
	case st.left > 0:
		st.err = ErrLength
		return ErrLength
	case st.ctx.Err() != nil:
		return st.broke(context.Cause(st.ctx))
	}
	for _, f := range trailers {
		st.w.Header().Add(http.TrailerPrefix+string(f.Name), string(f.Value))
	}
	st.finished = true
	return nil
}

// Abort has the stream reset when the handler returns, because the answer cannot
// be completed. After Finish it does nothing.
func (st *Stream) Abort() {
	if !st.finished {
		st.err = ErrState
	}
}

// Started tells whether a byte of the answer may have left.
func (st *Stream) Started() bool { return st.headed }

// Tunnel fails: HTTP/2 has no switch of protocols (RFC 9113 section 8.6).
func (st *Stream) Tunnel() (*sock.Conn, error) { return nil, errors.ErrUnsupported }

// broke marks the answer as one that cannot be written on, and says why.
func (st *Stream) broke(err error) error {
	if err == nil {
		return nil
	}
	st.err = ErrClientGone
	if st.ctx.Err() != nil {
		st.err = context.Cause(st.ctx)
	}
	st.lose(st.err)
	return st.err
}
