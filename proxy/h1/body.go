package h1

import (
	"context"
	"io"
	"time"
)

// inbound is where a request's body stands.
type inbound struct {
	chunked  bool
	expects  bool // 100 Continue is to be sent before the body is read
	ended    bool // all of it was read
	draining bool // it is read only to find its end; the time-out is set already
	left     int64
	chunks   chunks
	data     []byte // decoded, not yet read; in the window
	err      error  // why it cannot be read on
}

func (in *inbound) begin(h *head) {
	in.chunks.reset()
	*in = inbound{chunked: h.chunked, expects: h.expects, left: max(h.length, 0), chunks: in.chunks}
	in.ended = !in.chunked && in.left == 0
}

// Read reads the request's body, decoded, straight into p when nothing lies
// buffered. io.EOF is its end. ErrClientGone and ErrTimeout mean that it will
// not come, a *ProtocolError that it is malformed; the connection then closes.
func (s *Stream) Read(p []byte) (int, error) {
	in := &s.in
	switch {
	case in.err != nil:
		return 0, in.err
	case in.ended:
		return 0, io.EOF
	case len(p) == 0:
		return 0, nil
	}
	var n int
	var err error
	if in.chunked {
		n, err = s.readChunked(p)
	} else {
		n, err = s.readFixed(p)
	}
	if err == io.EOF {
		in.ended = true
	} else if err != nil {
		in.err = err
		s.reply.close = true
	}
	if in.ended {
		s.conn.Guard() // nobody reads any more
	}
	return n, err
}

func (s *Stream) readFixed(p []byte) (n int, err error) {
	in := &s.in
	p = p[:min(int64(len(p)), in.left)]
	if s.r < s.w {
		n = copy(p, s.win[s.r:s.w])
		s.r += n
	} else if n, err = s.receive(p); err != nil {
		return 0, err
	}
	in.left -= int64(n)
	in.ended = in.left == 0
	return n, nil
}

func (s *Stream) readChunked(p []byte) (n int, err error) {
	in := &s.in
	for {
		switch {
		case len(in.data) > 0:
			n = copy(p, in.data)
			in.data = in.data[n:]
			return n, nil
		case in.chunks.state == chunksDone:
			return 0, io.EOF
		case s.r < s.w:
			start, end, used, err := in.chunks.decode(s.win[s.r:s.w])
			in.data = s.win[s.r+start : s.r+end]
			s.r += used
			if err != nil {
				return 0, err
			}
		case in.chunks.state == chunkData:
			n, err = s.receive(p[:min(int64(len(p)), in.chunks.left)])
			in.chunks.take(n)
			return n, err
		default:
			s.r, s.w = 0, 0
			if len(s.win) < small/4 {
				s.over = getBuffer(small)
				s.win = s.over
			}
			if s.w, err = s.receive(s.win); err != nil {
				return 0, err
			}
		}
	}
}

// take counts n bytes of chunk data that were read past the decoder.
func (d *chunks) take(n int) {
	if d.left -= int64(n); d.left == 0 {
		d.state = chunkDataCR
	}
}

// receive reads at least one byte of the body from the connection.
func (s *Stream) receive(p []byte) (int, error) {
	if s.in.expects {
		s.in.expects = false
		if err := s.proceed(); err != nil {
			return 0, err
		}
	}
	for {
		if !s.in.draining {
			s.conn.SetTimeout(timeout(s.server.BodyTimeout, time.Minute))
		}
		n, err := s.conn.Read(p)
		if !s.in.draining {
			s.conn.SetTimeout(0)
		}
		if n > 0 {
			return n, nil
		}
		if err != nil {
			return 0, s.failed()
		}
	}
}

// proceed asks for the body: before the final head, even if that was written and
// still waits. Once the final head has left it is too late to ask.
func (s *Stream) proceed() error {
	if s.out.started {
		return s.Flush()
	}
	started := s.out.started
	err := s.out.send(continueHead)
	s.out.started = started
	if err != nil {
		return s.failed()
	}
	return nil
}

var continueHead = []byte("HTTP/1.1 100 Continue\r\n\r\n")

// failed gives the reason why the connection can no longer be used, after it
// gave an error.
func (s *Stream) failed() error {
	cause := ErrClientGone
	if s.conn.TimedOut() {
		cause = ErrTimeout
	}
	s.lose(cause)
	return context.Cause(s.ctx)
}
