package rpc

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"strconv"
	"sync"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Call is one call: messages both ways, until its handler returns. It is used by that
// goroutine alone; Context may be kept.
type Call struct {
	conn   *conn
	id     uint32
	method string
	ctx    context.Context
	cancel context.CancelCauseFunc
	wake   chan struct{} // has a token when waiting was taken back

	memory *buffers // of heard and in
	heard  []byte   // messages that were taken, and not yet given
	given  int      // bytes of heard that were

	headed bool  // the answer's head was sent; guarded by the connection's lock
	window int64 // what may be sent; guarded by the connection's lock
	over   bool  // it was reset: nothing more is sent; guarded by the connection's lock

	mu       sync.Mutex
	in       []byte // what was received and not taken; guarded by mu
	complete int    // bytes of in that are whole messages; guarded by mu
	granted  int    // what the client may send; guarded by mu
	ended    bool   // it says no more; guarded by mu
	waiting  bool   // for wake; guarded by mu
	err      error  // why nothing more will come; guarded by mu
}

const (
	prefixSize  = 5 // of a message: whether it is compressed, and its length
	contentType = "application/grpc"
	keptMemory  = 256 << 10
)

// memory is what calls receive to.
var memory = sync.Pool{New: func() any { return new(buffers) }}

type buffers struct{ heard, in []byte }

func newCall(c *conn, id uint32, method string) *Call {
	b := memory.Get().(*buffers)
	call := &Call{conn: c, id: id, method: method, memory: b, granted: streamWindow, wake: make(chan struct{}, 1), heard: b.heard[:0], in: b.in[:0]}
	call.ctx, call.cancel = context.WithCancelCause(context.Background())
	return call
}

// run serves the call.
func (c *Call) run() {
	err := c.conn.server.Handler(c)
	c.finish(err)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failLocked(context.Canceled) // the reader may still hold it
	c.conn.server.held.Add(-int64(len(c.heard) + len(c.in)))
	if cap(c.heard) <= keptMemory && cap(c.in) <= keptMemory {
		c.memory.heard, c.memory.in = c.heard, c.in
		memory.Put(c.memory)
	}
	c.heard, c.in = nil, nil
}

// Method is the call's path, such as "/grpc.health.v1.Health/Check".
func (c *Call) Method() string { return c.method }

// Context is done when the client has cancelled the call or is gone, and when the
// handler has returned.
func (c *Call) Context() context.Context { return c.ctx }

// RemoteAddr is the client's address.
func (c *Call) RemoteAddr() net.Addr { return c.conn.nc.RemoteAddr() }

// Remote is RemoteAddr as text.
func (c *Call) Remote() string { return c.conn.remote }

// Receive waits for the client's next message, which is valid until the next call of
// Receive. io.EOF: it says no more. What was sent leaves before.
func (c *Call) Receive() ([]byte, error) {
	for flushed := false; ; {
		if rest := c.heard[c.given:]; len(rest) > 0 {
			end := prefixSize + int(binary.BigEndian.Uint32(rest[1:]))
			c.given += end
			return rest[prefixSize:end], nil
		}
		c.mu.Lock()
		switch {
		case c.complete > 0:
			c.take()
			c.mu.Unlock()
			continue
		case c.err != nil:
			c.mu.Unlock()
			return nil, c.err
		case c.ended && len(c.in) > 0:
			c.mu.Unlock()
			return nil, io.ErrUnexpectedEOF
		case c.ended:
			c.mu.Unlock()
			return nil, io.EOF
		}
		more := c.replenish()
		if c.waiting = flushed && more == 0; c.waiting {
			c.mu.Unlock()
			<-c.wake
			continue
		}
		c.mu.Unlock()
		flushed = true
		c.conn.mu.Lock()
		if more > 0 && !c.over {
			c.conn.appendWindowUpdate(c.id, more)
		}
		c.conn.flush()
		c.conn.mu.Unlock()
	}
}

// take takes the whole messages that were received. Guarded by mu.
func (c *Call) take() {
	c.conn.server.held.Add(-int64(len(c.heard)))
	whole, rest := c.in[:c.complete], c.in[c.complete:]
	c.in = append(c.heard[:0], rest...)
	c.heard, c.given, c.complete = whole, 0, 0
}

// replenish gives what the client may be told that it may send beyond what it knows:
// enough for the message that is waited for, and a window. Guarded by mu.
func (c *Call) replenish() int {
	want := streamWindow
	if len(c.in) >= prefixSize {
		want = max(want, prefixSize+int(binary.BigEndian.Uint32(c.in[1:])))
	}
	more := want - c.granted - len(c.in)
	if more < streamWindow/2 && !c.short() || more <= 0 || c.ended {
		return 0
	}
	c.granted += more
	return more
}

// countData counts data that has arrived. It is the reader's, as are add and endInput.
func (c *Call) countData(n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
	case c.ended:
		return http2.StreamError{StreamID: c.id, Code: http2.ErrCodeStreamClosed}
	case n > c.granted:
		return http2.StreamError{StreamID: c.id, Code: http2.ErrCodeFlowControl}
	}
	c.granted -= n
	return nil
}

// add takes data in.
func (c *Call) add(p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil
	}
	if s := c.conn.server; s.held.Add(int64(len(p))) > s.bufferLimit() {
		s.held.Add(-int64(len(p)))
		c.failLocked(status.Error(codes.ResourceExhausted, "too much is held of what was sent"))
		return nil
	}
	c.in = append(c.in, p...)
	for rest := c.in[c.complete:]; len(rest) >= prefixSize; rest = c.in[c.complete:] {
		length := binary.BigEndian.Uint32(rest[1:])
		switch {
		case rest[0] != 0:
			c.failLocked(status.Error(codes.Unimplemented, "compressed messages are not understood"))
			return nil
		case int64(length) > int64(c.conn.server.limit()):
			c.failLocked(status.Errorf(codes.ResourceExhausted, "a message of %d bytes is longer than %d", length, c.conn.server.limit()))
			return nil
		}
		if uint32(len(rest)-prefixSize) < length {
			break
		}
		c.complete += prefixSize + int(length)
	}
	if c.complete > 0 || c.short() {
		c.awake()
	}
	return nil
}

// short tells whether the client has to be let send more for the message that has begun.
// Guarded by mu.
func (c *Call) short() bool {
	return len(c.in) >= prefixSize && prefixSize+int(binary.BigEndian.Uint32(c.in[1:])) > c.granted+len(c.in)
}

// endInput notes that the client says no more.
func (c *Call) endInput() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.awake()
	return nil
}

// lose ends the call, for that reason.
func (c *Call) lose(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failLocked(err)
}

func (c *Call) failLocked(err error) {
	if c.err == nil {
		c.err = err
		c.cancel(err)
	}
	c.awake()
}

// awake ends a wait. Guarded by mu.
func (c *Call) awake() {
	if c.waiting {
		c.waiting = false
		c.wake <- struct{}{}
	}
}

// Send says a message, which is made of these parts. They are not kept. It waits while
// the client does not take what it is sent.
func (c *Call) Send(parts ...[]byte) error {
	length := 0
	for _, p := range parts {
		length += len(p)
	}
	var prefix [prefixSize]byte
	binary.BigEndian.PutUint32(prefix[1:], uint32(length))
	w := c.conn
	w.mu.Lock()
	defer w.mu.Unlock()
	if !c.over && w.err == nil {
		c.begin()
	}
	part, at := prefix[:], 0 // what is being sent, and the index of what follows
	for left := prefixSize + length; left > 0; {
		for !c.over && w.err == nil && (c.window <= 0 || w.window <= 0 || len(w.out) > maxUnsent) {
			w.flush()
			if c.over || w.err != nil || c.window > 0 && w.window > 0 && len(w.out) <= maxUnsent {
				break
			}
			w.wait()
		}
		if c.over || w.err != nil {
			return c.lost()
		}
		n := int(min(int64(left), int64(w.frame), c.window, w.window))
		w.appendFrameHead(http2.FrameData, 0, c.id, n)
		c.window -= int64(n)
		w.window -= int64(n)
		left -= n
		for n > 0 {
			for len(part) == 0 {
				part, at = parts[at], at+1
			}
			k := min(n, len(part))
			w.out = append(w.out, part[:k]...)
			part, n = part[k:], n-k
		}
	}
	return nil
}

// Flush has what was sent leave now, for a handler that goes on to wait for something
// else than the client.
func (c *Call) Flush() {
	c.conn.mu.Lock()
	defer c.conn.mu.Unlock()
	c.conn.flush()
}

// lost is why nothing can be sent any more.
func (c *Call) lost() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		return errPeer // and soon that is known there
	}
	return c.err
}

// The blocks of fields that answers are made of, without Huffman's code.
var (
	// ":status: 200" is index 8 of the static table, the name content-type index 31.
	answerHead  = append([]byte{0x88, 0x0f, 31 - 15, byte(len(contentType))}, contentType...)
	statusName  = append([]byte{0, byte(len("grpc-status"))}, "grpc-status"...)
	messageName = append([]byte{0, byte(len("grpc-message"))}, "grpc-message"...)
)

// begin sends the answer's head. Guarded by the connection's lock.
func (c *Call) begin() {
	if !c.headed {
		c.headed = true
		c.conn.appendHead(c.id, 0, answerHead)
	}
}

// finish ends the call, with the status that err is.
func (c *Call) finish(err error) {
	c.mu.Lock()
	ended := c.ended
	if c.err != nil && status.Code(c.err) != codes.Unknown {
		err = c.err // the client broke the rules, and hears which
	}
	c.mu.Unlock()
	s := status.Convert(err)
	w := c.conn
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.calls, c.id)
	if !c.over && w.err == nil {
		var block []byte
		if !c.headed { // "Trailers-Only"
			block = append(block, answerHead...)
		}
		block = appendText(append(block, statusName...), strconv.Itoa(int(s.Code())))
		if s.Message() != "" {
			block = appendText(append(block, messageName...), percentEncoded(s.Message()))
		}
		w.appendHead(c.id, http2.FlagHeadersEndStream, block)
		if !ended {
			w.appendReset(c.id, http2.ErrCodeNo) // RFC 9113 section 8.1: the rest is not wanted
		}
	}
	w.flush()
}

// appendText appends a string of HPACK (RFC 7541 section 5.2).
func appendText(b []byte, s string) []byte {
	n := len(s)
	if n < 127 {
		b = append(b, byte(n))
	} else {
		b = append(b, 127)
		for n -= 127; n >= 128; n >>= 7 {
			b = append(b, byte(n)|128)
		}
		b = append(b, byte(n))
	}
	return append(b, s...)
}

// maxMessage bounds what a status says in words: a frame holds it.
const maxMessage = 1 << 10

// percentEncoded is how a status's message is sent.
func percentEncoded(s string) string {
	const hex = "0123456789ABCDEF"
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s) && len(b) < maxMessage; i++ {
		if c := s[i]; c < ' ' || c > '~' || c == '%' {
			b = append(b, '%', hex[c>>4], hex[c&15])
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}
