package h1

import (
	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

// framing is how the end of a body is known: RFC 9112 section 6.3.
type framing uint8

const (
	noBody framing = iota
	fixed
	chunked
	untilClose
	tunnel // there is no body: the connection is no longer HTTP
)

// reply is where the answer to a request stands.
type reply struct {
	framing  framing
	headed   bool // its final head was written
	finished bool
	close    bool // the connection closes after it
	left     int64
	err      error // why it cannot be written on
}

// WriteHead begins the answer. What is written waits for Flush, Finish or more
// than a buffer can hold. Fields that are not end-to-end are left out. An interim
// head (status 1xx) may come before the final one and is flushed at once. A 101 is
// final: it answers a request that asked for an Upgrade, and what follows goes
// through Tunnel.
func (s *Stream) WriteHead(r *message.Response) error {
	a := &s.reply
	if a.err != nil {
		return a.err
	}
	switching := r.Status == 101
	if a.headed || switching && (s.req.Upgrade == nil || r.Upgrade == nil) {
		return ErrState
	}
	interim := r.Status < 200 && !switching
	if interim && s.parse.minor == 0 {
		return nil
	}
	if err := s.out.headRoom(r.Fields, 64+len(r.Upgrade)); err != nil {
		return s.broke()
	}
	mark := len(s.out.buf)
	err := s.out.statusLine(r.Status)
	if err == nil {
		err = s.out.fields(r.Fields)
	}
	if err == nil && switching && !message.ValidValue(r.Upgrade) {
		err = ErrField
	}
	if err != nil {
		s.out.buf = s.out.buf[:mark]
		return err
	}
	if interim {
		s.out.buf = append(s.out.buf, "\r\n"...)
		started := s.out.started
		err := s.Flush()
		s.out.started = started
		return err
	}
	a.headed = true
	if switching {
		return s.switchProtocols(r)
	}
	s.frame(r)
	return nil
}

// switchProtocols ends HTTP on the connection with a 101.
func (s *Stream) switchProtocols(r *message.Response) error {
	s.reply.framing, s.reply.close = tunnel, true
	s.out.upgrade(r.Upgrade)
	s.out.buf = append(s.out.buf, "\r\n"...)
	s.conn.Unguard()
	s.switched.Store(true) // from here on, the end of what the client sends is not its leaving
	return s.Flush()
}

// Tunnel gives the connection itself after WriteHead wrote a 101: what comes on
// it, from the first byte behind the request, and what is sent are no longer
// HTTP. Its bytes are the handler's to read and write, each side from one
// goroutine, until it calls Finish or Abort: Finish for a tunnel that both sides
// have ended, Abort to have the client see it broken. That the client closes it
// ends neither the Context nor what is bound; reading tells.
func (s *Stream) Tunnel() (*sock.Conn, error) {
	if s.reply.framing != tunnel || s.reply.err != nil || s.reply.finished {
		return nil, ErrState
	}
	if s.r < s.w {
		s.conn.Unread(s.win[s.r:s.w])
		s.r = s.w
	}
	return s.conn, nil
}

// frame says how the body ends and whether the connection does.
func (s *Stream) frame(r *message.Response) {
	a, length := &s.reply, r.ContentLength
	switch {
	case message.NoBody(s.req.Method, r.Status):
		// A HEAD or 304 may tell the length its body would have; 204 may not.
		if r.Status == 304 && length > 0 || r.Status != 304 && r.Status != 204 && length >= 0 {
			s.out.contentLength(length)
		}
	case length >= 0:
		a.framing, a.left = fixed, length
		s.out.contentLength(length)
	case s.parse.minor >= 1:
		a.framing = chunked
		s.out.buf = append(s.out.buf, "transfer-encoding: chunked\r\n"...)
	default:
		a.framing, a.close = untilClose, true
	}
	if s.server.retiring.Load() || !s.in.ended && (s.in.expects || s.in.left > drainLimit) {
		a.close = true
	}
	switch {
	case a.close:
		s.out.buf = append(s.out.buf, "connection: close\r\n"...)
	case s.parse.minor == 0:
		s.out.buf = append(s.out.buf, "connection: keep-alive\r\n"...)
	}
	s.out.buf = append(s.out.buf, "\r\n"...)
}

// Write appends to the answer's body; framing is the codec's. It blocks while
// the client is slow to read, and gives ErrTimeout when it stopped. More than
// the declared length is refused (ErrLength). The body of an answer that has
// none, such as to HEAD, is dropped.
func (s *Stream) Write(p []byte) (int, error) {
	a := &s.reply
	switch {
	case a.err != nil:
		return 0, a.err
	case !a.headed || a.finished || a.framing == tunnel:
		return 0, ErrState
	case a.framing == noBody || len(p) == 0:
		return len(p), nil
	}
	var err error
	switch a.framing {
	case fixed:
		if int64(len(p)) > a.left {
			return 0, ErrLength
		}
		a.left -= int64(len(p))
		err = s.out.raw(p)
	case chunked:
		err = s.out.chunk(p)
	default:
		err = s.out.raw(p)
	}
	if err != nil {
		return 0, s.broke()
	}
	return len(p), nil
}

// Flush hands to the connection what waits.
func (s *Stream) Flush() error {
	if s.reply.err != nil {
		return s.reply.err
	}
	if s.out.flush() != nil {
		return s.broke()
	}
	return nil
}

// Finish ends the answer and flushes it. Trailers reach only a client that gets
// the body chunked. A body shorter than declared is an error and cuts the
// connection. ErrField means that the answer was sent without the trailers.
func (s *Stream) Finish(trailers []message.Field) error {
	a := &s.reply
	switch {
	case a.err != nil:
		return a.err
	case !a.headed || a.finished:
		return ErrState
	case a.framing == fixed && a.left > 0:
		s.cut(ErrLength)
		return ErrLength
	}
	var err error
	if a.framing == chunked {
		if err = s.out.lastChunk(trailers); err != nil && err != ErrField {
			return s.broke()
		}
	}
	if s.out.flush() != nil {
		return s.broke()
	}
	a.finished = true
	return err
}

// Abort cuts the connection because the answer cannot be completed: the client
// sees it truncated. What waits to be written is dropped. After Finish it does
// nothing.
func (s *Stream) Abort() {
	if !s.reply.finished {
		s.cut(ErrState)
	}
}

// Started tells whether a byte of the answer has been handed over for writing.
// An interim head does not count.
func (s *Stream) Started() bool { return s.out.started }

// cut closes the connection at once.
func (s *Stream) cut(err error) {
	s.reply.err = err
	s.out.drop()
	if s.reply.framing >= untilClose {
		s.conn.Reset()
	} else {
		s.conn.Close()
	}
}

// broke marks the answer as one that cannot be written on, and says why.
func (s *Stream) broke() error {
	s.reply.err = s.failed()
	s.out.drop()
	return s.reply.err
}
